//! USB keyboard: a HID device with the boot protocol, whose report is the same eight bytes: modifiers, and up to six keys.
//! See: USB Device Class Definition for Human Interface Devices 1.11, appendices B and F.

use super::device::{CONTROL_PACKET_BYTES, Descriptors, Function, SavedFunction, Setup};
use engine_bus::{LedPanel, RestoreError};
use engine_input::{InputEvent, KeyboardLeds, key_by_code};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

const MOST_REPORTS: usize = 32;
const MOST_KEYS: usize = 6;
const ENDPOINT: u8 = 1;
/// All places of a report hold this while too many keys are down.
const ROLL_OVER: u8 = 1;
/// Usages from here on are the eight modifiers.
const FIRST_MODIFIER: u8 = 0xe0;

const REPORT_DESCRIPTOR: &[u8] = &[
    0x05, 0x01, 0x09, 0x06, 0xa1, 0x01, // Generic desktop: keyboard
    0x05, 0x07, 0x19, 0xe0, 0x29, 0xe7, 0x15, 0x00, 0x25, 0x01, 0x75, 0x01, 0x95, 0x08, 0x81, 0x02, // Modifiers, a bit each
    0x95, 0x01, 0x75, 0x08, 0x81, 0x01, // A byte of padding
    0x95, 0x05, 0x75, 0x01, 0x05, 0x08, 0x19, 0x01, 0x29, 0x05, 0x91, 0x02, // Five LEDs
    0x95, 0x01, 0x75, 0x03, 0x91, 0x01, // Three bits of padding
    0x95, 0x06, 0x75, 0x08, 0x15, 0x00, 0x26, 0xff, 0x00, 0x05, 0x07, 0x19, 0x00, 0x2a, 0xff, 0x00, 0x81, 0x00, // Six keys
    0xc0,
];

const CONFIGURATION: &[u8] = &[
    9,
    2,
    34,
    0,
    1,
    1,
    0,
    0xa0,
    50, // Configuration 1: one interface, remote wake-up, 100 mA
    9,
    4,
    0,
    0,
    1,
    3,
    1,
    1,
    0, // Interface 0: HID, boot keyboard, one endpoint
    9,
    0x21,
    0x11,
    0x01,
    0,
    1,
    0x22,
    REPORT_DESCRIPTOR.len() as u8,
    0, // HID 1.11, one report descriptor
    7,
    5,
    0x80 | ENDPOINT,
    3,
    8,
    0,
    8, // Endpoint 1 in: interrupt, 8 bytes, every 8 ms
];

type Report = [u8; 8];

/// The keyboard.
#[derive(Default)]
pub struct Keyboard {
    // Wires
    panel: LedPanel,
    // State the guest can see; all of it is saved
    modifiers: u8,
    /// Usages of the keys that are down, in the order in which they went down.
    keys: Vec<u8>,
    waiting: VecDeque<Report>,
    idle: u8,
    is_boot_protocol: bool,
    /// The output report: Num Lock, Caps Lock, Scroll Lock from bit 0 on.
    leds: u8,
}

/// The saved form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedKeyboard {
    modifiers: u8,
    keys: Vec<u8>,
    waiting: Vec<Report>,
    idle: u8,
    is_boot_protocol: bool,
    leds: u8,
}

/// No keyboard has more keys than there are usages for them.
const MOST_DOWN: usize = 256;

impl Keyboard {
    /// A keyboard whose lamps show on `panel`.
    pub fn new(panel: LedPanel) -> Self {
        Self { panel, ..Self::default() }
    }

    fn set_leds(&mut self, leds: u8) {
        self.leds = leds & 0x1f;
        let lit = |bit: u8| leds >> bit & 1 != 0;
        self.panel.set(KeyboardLeds { num_lock: lit(0), caps_lock: lit(1), scroll_lock: lit(2) });
    }

    fn now(&self) -> Report {
        let mut report = [0; 8];
        report[0] = self.modifiers;
        if self.keys.len() > MOST_KEYS {
            report[2..].fill(ROLL_OVER);
        } else {
            report[2..2 + self.keys.len()].copy_from_slice(&self.keys);
        }
        report
    }
}

impl Function for Keyboard {
    fn descriptors(&self) -> Descriptors {
        Descriptors {
            device: [18, 1, 0x10, 0x01, 0, 0, 0, CONTROL_PACKET_BYTES as u8, 0x27, 0x06, 0x01, 0x00, 0, 0, 1, 2, 3, 1],
            configuration: CONFIGURATION,
            strings: ["Bellglass", "USB Keyboard", "1"],
        }
    }

    fn reset(&mut self) {
        let Self { panel: _, modifiers: _, keys: _, waiting, idle, is_boot_protocol, leds } = self;
        waiting.clear();
        (*idle, *is_boot_protocol) = (0, false);
        if *leds != 0 {
            self.set_leds(0);
        }
    }

    fn control_in(&mut self, setup: Setup) -> Option<Vec<u8>> {
        match (setup.kind, setup.request, setup.value >> 8) {
            (0x81, 6, 0x22) => Some(REPORT_DESCRIPTOR.to_vec()),
            (0x81, 6, 0x21) => Some(CONFIGURATION[18..27].to_vec()),
            (0xa1, 1, 1) => Some(self.now().to_vec()),                    // GET_REPORT
            (0xa1, 2, _) => Some(vec![self.idle]),                        // GET_IDLE
            (0xa1, 3, _) => Some(vec![u8::from(!self.is_boot_protocol)]), // GET_PROTOCOL
            _ => None,
        }
    }

    fn control_out(&mut self, setup: Setup, data: &[u8]) -> Option<()> {
        match (setup.kind, setup.request) {
            (0x21, 9) if setup.value >> 8 == 2 => self.set_leds(*data.first()?), // SET_REPORT
            (0x21, 10) => self.idle = (setup.value >> 8) as u8,                  // SET_IDLE
            (0x21, 11) => self.is_boot_protocol = setup.value == 0,
            _ => return None,
        }
        Some(())
    }

    fn interrupt_in(&mut self, endpoint: u8) -> Option<Vec<u8>> {
        if endpoint != ENDPOINT {
            return None;
        }
        self.waiting.pop_front().map(|report| report.to_vec())
    }

    fn takes(&self, event: &InputEvent) -> bool {
        matches!(event, InputEvent::Key { .. })
    }

    fn input(&mut self, event: &InputEvent) {
        let InputEvent::Key { code, pressed } = *event else { return };
        let Some(usage) = key_by_code(code).map(|key| key.hid).filter(|usage| *usage != 0) else { return };
        if let Some(bit) = usage.checked_sub(FIRST_MODIFIER).filter(|bit| *bit < 8) {
            self.modifiers = if pressed { self.modifiers | 1 << bit } else { self.modifiers & !(1 << bit) };
        } else {
            self.keys.retain(|key| *key != usage);
            if pressed {
                self.keys.push(usage);
            }
        }
        let (report, is_full) = (self.now(), self.waiting.len() >= MOST_REPORTS);
        match self.waiting.back_mut() {
            // A guest that does not listen gets the latest state when it does.
            Some(last) if is_full => *last = report,
            _ => self.waiting.push_back(report),
        }
    }

    fn save(&self) -> SavedFunction {
        let Self { panel: _, modifiers, keys, waiting, idle, is_boot_protocol, leds } = self;
        SavedFunction::Keyboard(SavedKeyboard {
            modifiers: *modifiers,
            keys: keys.clone(),
            waiting: waiting.iter().copied().collect(),
            idle: *idle,
            is_boot_protocol: *is_boot_protocol,
            leds: *leds,
        })
    }

    fn restore(&mut self, saved: SavedFunction) -> Result<(), RestoreError> {
        let SavedFunction::Keyboard(SavedKeyboard { modifiers, keys, waiting, idle, is_boot_protocol, leds }) = saved else {
            return Err(RestoreError::impossible("another USB device than a keyboard"));
        };
        if keys.len() > MOST_DOWN || waiting.len() > MOST_REPORTS {
            return Err(RestoreError::impossible("impossible reports of a USB keyboard"));
        }
        let panel = self.panel.clone();
        *self = Self { panel, modifiers, keys, waiting: waiting.into(), idle, is_boot_protocol, leds: 0 };
        self.set_leds(leds);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_report_sets_the_lamps_and_a_bus_reset_puts_them_out() {
        let panel = LedPanel::default();
        let mut keyboard = Keyboard::new(panel.clone());
        let set_report = Setup { kind: 0x21, request: 9, value: 0x0200, index: 0, length: 1 };
        assert_eq!(keyboard.control_out(set_report, &[]), None);
        keyboard.control_out(set_report, &[0x05]).unwrap();
        assert_eq!(panel.get(), KeyboardLeds { num_lock: true, caps_lock: false, scroll_lock: true });
        let saved = keyboard.save();
        keyboard.reset();
        assert_eq!(panel.get(), KeyboardLeds::default());
        keyboard.restore(saved.clone()).unwrap();
        assert!(panel.get().scroll_lock && keyboard.save() == saved);
    }
}
