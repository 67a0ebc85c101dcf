//! USB tablet: an absolute pointer with five buttons and a wheel, as a HID device. Guests need no driver of ours, and the
//! host's pointer need not be caught, since the place on the screen is what is sent.
//! It names itself as QEMU's tablet does (0627:0001), since guests carry calibrations for that name.
//! See: USB Device Class Definition for Human Interface Devices 1.11.

use super::device::{CONTROL_PACKET_BYTES, Descriptors, Function, SavedFunction, Setup};
use engine_bus::RestoreError;
use engine_input::{Button, InputEvent};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// The largest coordinate.
const MOST: u16 = 0x7fff;
/// Reports that wait for the guest; movements beyond that are merged into the last.
const MOST_REPORTS: usize = 16;
const ENDPOINT: u8 = 1;

const REPORT_DESCRIPTOR: &[u8] = &[
    0x05, 0x01, // Usage page: generic desktop
    0x09, 0x02, // Usage: mouse
    0xa1, 0x01, // Collection: application
    0x09, 0x01, //   Usage: pointer
    0xa1, 0x00, //   Collection: physical
    0x05, 0x09, //     Usage page: buttons 1 to 5, a bit each
    0x19, 0x01, 0x29, 0x05, 0x15, 0x00, 0x25, 0x01, 0x95, 0x05, 0x75, 0x01, 0x81, 0x02, //
    0x95, 0x01, 0x75, 0x03, 0x81, 0x01, //     Three bits of padding
    0x05, 0x01, 0x09, 0x30, 0x09, 0x31, //     X and Y: 0 to 32767, absolute
    0x15, 0x00, 0x26, 0xff, 0x7f, 0x35, 0x00, 0x46, 0xff, 0x7f, 0x75, 0x10, 0x95, 0x02, 0x81, 0x02, //
    0x09, 0x38, //     Wheel: -127 to 127, relative
    0x15, 0x81, 0x25, 0x7f, 0x35, 0x00, 0x45, 0x00, 0x75, 0x08, 0x95, 0x01, 0x81, 0x06, //
    0xc0, 0xc0,
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
    0,
    0,
    0, // Interface 0: HID, no boot protocol, one endpoint
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

/// What the guest is told at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Report {
    buttons: u8,
    x: u16,
    y: u16,
    wheel: i8,
    /// Whether only the place is news, so that a later place may take its place.
    is_movement: bool,
}

impl Report {
    fn bytes(self) -> Vec<u8> {
        let ([x_low, x_high], [y_low, y_high]) = (self.x.to_le_bytes(), self.y.to_le_bytes());
        vec![self.buttons, x_low, x_high, y_low, y_high, self.wheel as u8]
    }
}

/// The tablet.
#[derive(Default)]
pub struct Tablet {
    // State the guest can see; all of it is saved
    /// Where the pointer is now, and what is pressed.
    now: Report,
    waiting: VecDeque<Report>,
    idle: u8,
}

/// The saved form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTablet {
    now: Report,
    waiting: Vec<Report>,
    idle: u8,
}

impl Tablet {
    fn push(&mut self, report: Report) {
        let is_full = self.waiting.len() >= MOST_REPORTS;
        match self.waiting.back_mut() {
            // A click stays where it was made: only a movement is replaced by a movement.
            Some(last) if is_full || report.is_movement && last.is_movement => *last = report,
            _ => self.waiting.push_back(report),
        }
    }
}

impl Function for Tablet {
    fn descriptors(&self) -> Descriptors {
        Descriptors {
            device: [18, 1, 0x10, 0x01, 0, 0, 0, CONTROL_PACKET_BYTES as u8, 0x27, 0x06, 0x01, 0x00, 0, 0, 1, 2, 3, 1],
            configuration: CONFIGURATION,
            strings: ["Bellglass", "USB Tablet", "1"],
        }
    }

    fn reset(&mut self) {
        let Self { now: _, waiting, idle } = self;
        waiting.clear();
        *idle = 0;
    }

    fn control_in(&mut self, setup: Setup) -> Option<Vec<u8>> {
        match (setup.kind, setup.request, setup.value >> 8) {
            (0x81, 6, 0x22) => Some(REPORT_DESCRIPTOR.to_vec()),
            (0x81, 6, 0x21) => Some(CONFIGURATION[18..27].to_vec()),
            (0xa1, 1, 1) => Some(self.now.bytes()), // GET_REPORT
            (0xa1, 2, _) => Some(vec![self.idle]),  // GET_IDLE
            _ => None,
        }
    }

    fn control_out(&mut self, setup: Setup, _data: &[u8]) -> Option<()> {
        // SET_IDLE: kept, but reports come on changes only, as all drivers ask for.
        if (setup.kind, setup.request) != (0x21, 10) {
            return None;
        }
        self.idle = (setup.value >> 8) as u8;
        Some(())
    }

    fn interrupt_in(&mut self, endpoint: u8) -> Option<Vec<u8>> {
        if endpoint != ENDPOINT {
            return None;
        }
        self.waiting.pop_front().map(Report::bytes)
    }

    fn takes(&self, event: &InputEvent) -> bool {
        matches!(event, InputEvent::PointerAt { .. } | InputEvent::Button { .. } | InputEvent::Wheel { .. })
    }

    fn input(&mut self, event: &InputEvent) {
        match *event {
            InputEvent::PointerAt { x, y } => {
                (self.now.x, self.now.y) = (x.min(MOST), y.min(MOST));
                self.push(Report { is_movement: true, ..self.now });
            }
            InputEvent::Button { button, pressed } => {
                let bit = match button {
                    Button::Left => 1,
                    Button::Right => 2,
                    Button::Middle => 4,
                    Button::Side => 8,
                    Button::Extra => 16,
                };
                self.now.buttons = if pressed { self.now.buttons | bit } else { self.now.buttons & !bit };
                self.push(self.now);
            }
            InputEvent::Wheel { notches } => {
                let wheel = notches.clamp(-127, 127) as i8;
                self.push(Report { wheel, ..self.now });
            }
            _ => {}
        }
    }

    fn save(&self) -> SavedFunction {
        let Self { now, waiting, idle } = self;
        SavedFunction::Tablet(SavedTablet { now: *now, waiting: waiting.iter().copied().collect(), idle: *idle })
    }

    fn restore(&mut self, saved: SavedFunction) -> Result<(), RestoreError> {
        let SavedFunction::Tablet(SavedTablet { now, waiting, idle }) = saved else {
            return Err(RestoreError::impossible("another USB device than a tablet"));
        };
        let possible = |report: &Report| report.x <= MOST && report.y <= MOST && report.buttons < 32;
        if waiting.len() > MOST_REPORTS || !waiting.iter().chain([&now]).all(possible) || now.wheel != 0 || now.is_movement {
            return Err(RestoreError::impossible("impossible reports of a USB tablet"));
        }
        *self = Self { now, waiting: waiting.into(), idle };
        Ok(())
    }
}
