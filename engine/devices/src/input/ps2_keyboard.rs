//! PS/2 keyboard (101/102 keys and the usual extra ones) in scancode sets 1, 2 and 3, behind the keyboard controller. Answers
//! to commands come before keys. Keys that do not fit into its buffer are dropped whole, never half of a sequence. Left out:
//! typematic repeat, and with it what set 3 can say about it: a key that is reported as pressed again, as a host repeats it,
//! sends its make code again.
//! See: IBM PS/2 Hardware Interface Technical Reference, "Keyboards (101- and 102-Key)".

use super::scancode_set3::{self, Breaks};
use crate::fifo::BoundedFifo;
use engine_base::warn_limited;
use engine_bus::RestoreError;
use engine_input::{KeyCode, KeyboardLeds, key_by_code};

const ACKNOWLEDGE: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
const ECHO: u8 = 0xee;
const ID: [u8; 2] = [0xab, 0x83];
const KEY_BYTES: usize = 256;
/// Kept free for keys let go, so that none seems to be held for ever.
const RESERVED_FOR_BREAKS: usize = 64;
const TYPEMATIC_DEFAULT: u8 = 0x2b;
const PAUSE: KeyCode = KeyCode(119);
const PRINT_SCREEN: KeyCode = KeyCode(99);

/// The sets that it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ScancodeSet {
    One = 1,
    Two = 2,
    Three = 3,
}

/// A command that waits for its parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaiting {
    Nothing,
    Leds,
    ScancodeSet,
    Typematic,
    /// A key of set 3 that from now on says that it is let go.
    BreakingKey,
    /// One that does not.
    SilentKey,
}

pub struct Ps2Keyboard {
    // State the guest can see; all of it is saved
    replies: BoundedFifo<16>,
    keys: BoundedFifo<KEY_BYTES>,
    scanning: bool,
    set: ScancodeSet,
    /// Set 3: which keys say that they are let go.
    breaks: Breaks,
    leds: u8,
    typematic: u8,
    awaiting: Awaiting,
    last_sent: u8,
}

impl Ps2Keyboard {
    /// After power-on: set 2, scanning. The result of the self test is long gone when software looks.
    pub fn new() -> Self {
        Self {
            replies: BoundedFifo::new(),
            keys: BoundedFifo::new(),
            scanning: true,
            set: ScancodeSet::Two,
            breaks: Breaks::at_first(),
            leds: 0,
            typematic: TYPEMATIC_DEFAULT,
            awaiting: Awaiting::Nothing,
            last_sent: 0,
        }
    }

    /// The next byte for the controller.
    pub fn pop(&mut self) -> Option<u8> {
        let byte = self.replies.pop().or_else(|| if self.scanning { self.keys.pop() } else { None })?;
        self.last_sent = byte;
        Some(byte)
    }

    fn reply(&mut self, bytes: &[u8]) {
        // A host that sends command after command without reading loses answers, as with a real one.
        self.replies.push_what_fits(bytes);
    }

    fn set_defaults(&mut self) {
        self.keys.clear();
        self.set = ScancodeSet::Two;
        self.breaks = Breaks::at_first();
        self.typematic = TYPEMATIC_DEFAULT;
    }

    /// A byte from the controller: a command or its parameter.
    pub fn command(&mut self, byte: u8) {
        // A command in place of a parameter ends the waiting.
        let awaited = std::mem::replace(&mut self.awaiting, Awaiting::Nothing);
        if awaited != Awaiting::Nothing && byte < 0xed {
            self.parameter(awaited, byte);
            return;
        }
        match byte {
            0xed => self.await_parameter(Awaiting::Leds),
            0xee => self.reply(&[ECHO]),
            0xf0 => self.await_parameter(Awaiting::ScancodeSet),
            0xf2 => self.reply(&[ACKNOWLEDGE, ID[0], ID[1]]),
            0xf3 => self.await_parameter(Awaiting::Typematic),
            0xf4 => {
                self.keys.clear();
                self.scanning = true;
                self.reply(&[ACKNOWLEDGE]);
            }
            0xf5 => {
                self.set_defaults();
                self.scanning = false;
                self.reply(&[ACKNOWLEDGE]);
            }
            0xf6 => {
                self.set_defaults();
                self.scanning = true;
                self.reply(&[ACKNOWLEDGE]);
            }
            // All keys of set 3: typematic, make and break, make only, typematic with break; then the same but the last for
            // single ones.
            0xf7..=0xfa => {
                self.breaks = Breaks::all(matches!(byte, 0xf8 | 0xfa));
                self.reply(&[ACKNOWLEDGE]);
            }
            0xfc => self.await_parameter(Awaiting::BreakingKey),
            0xfb | 0xfd => self.await_parameter(Awaiting::SilentKey),
            0xfe => self.reply(&[self.last_sent]),
            0xff => {
                *self = Self::new();
                self.reply(&[ACKNOWLEDGE, SELF_TEST_PASSED]);
            }
            _ => {
                warn_limited!(byte, "PS/2 keyboard: no such command");
                self.reply(&[RESEND]);
            }
        }
    }

    fn await_parameter(&mut self, awaiting: Awaiting) {
        self.awaiting = awaiting;
        self.reply(&[ACKNOWLEDGE]);
    }

    fn parameter(&mut self, of: Awaiting, byte: u8) {
        match (of, byte) {
            (Awaiting::Leds, leds) => self.leds = leds & 7,
            (Awaiting::Typematic, rate) => self.typematic = rate & 0x7f,
            (Awaiting::ScancodeSet, 0) => {
                self.reply(&[ACKNOWLEDGE, self.set as u8]);
                return;
            }
            (Awaiting::ScancodeSet, 1) => self.set = ScancodeSet::One,
            (Awaiting::ScancodeSet, 2) => self.set = ScancodeSet::Two,
            (Awaiting::ScancodeSet, 3) => self.set = ScancodeSet::Three,
            (Awaiting::ScancodeSet, set) => {
                warn_limited!(set, "PS/2 keyboard: no such scancode set");
                self.reply(&[RESEND]);
                return;
            }
            (Awaiting::BreakingKey, key) => self.breaks.set(key, true),
            (Awaiting::SilentKey, key) => self.breaks.set(key, false),
            (Awaiting::Nothing, _) => {}
        }
        self.reply(&[ACKNOWLEDGE]);
    }

    /// A key goes down or up.
    pub fn key(&mut self, code: KeyCode, pressed: bool) {
        if !self.scanning {
            return;
        }
        let Some(bytes) = self.scancode(code, pressed) else {
            tracing::trace!(code = code.0, "a key that PS/2 keyboards do not have");
            return;
        };
        let room = KEY_BYTES - self.keys.len();
        let reserved = if pressed { RESERVED_FOR_BREAKS } else { 0 };
        if bytes.len() + reserved <= room {
            self.keys.push_what_fits(&bytes);
        } else {
            warn_limited!(code = code.0, pressed, "PS/2 keyboard: the guest does not read its keys; one is lost");
        }
    }

    fn scancode(&self, code: KeyCode, pressed: bool) -> Option<Vec<u8>> {
        let key = key_by_code(code)?;
        let bytes = match (self.set, code, pressed) {
            (ScancodeSet::Three, ..) => {
                let code = scancode_set3::make_code(key)?;
                match pressed {
                    true => vec![code],
                    false if self.breaks.has(code) => vec![0xf0, code],
                    false => vec![],
                }
            }
            // Pause says make and break at once when pressed.
            (_, PAUSE, false) => vec![],
            (ScancodeSet::Two, PAUSE, true) => vec![0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77],
            (ScancodeSet::One, PAUSE, true) => vec![0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5],
            // Print Screen comes with a Shift around it, as the 84-key keyboard needed it.
            (ScancodeSet::Two, PRINT_SCREEN, true) => vec![0xe0, 0x12, 0xe0, 0x7c],
            (ScancodeSet::Two, PRINT_SCREEN, false) => vec![0xe0, 0xf0, 0x7c, 0xe0, 0xf0, 0x12],
            (ScancodeSet::One, PRINT_SCREEN, true) => vec![0xe0, 0x2a, 0xe0, 0x37],
            (ScancodeSet::One, PRINT_SCREEN, false) => vec![0xe0, 0xb7, 0xe0, 0xaa],
            (set, _, _) => {
                let scancode = if set == ScancodeSet::One { key.set1 } else { key.set2 };
                let [prefix, code] = scancode.to_be_bytes();
                let prefix = (prefix != 0).then_some(prefix);
                let (marker, code) = match (set, pressed) {
                    (_, true) => (None, code),
                    (ScancodeSet::One, false) => (None, code | 0x80),
                    (_, false) => (Some(0xf0), code),
                };
                prefix.into_iter().chain(marker).chain([code]).collect()
            }
        };
        Some(bytes)
    }

    /// Its lamps: in SET/RESET STATUS INDICATORS they are bits 2, 1 and 0.
    pub fn leds(&self) -> KeyboardLeds {
        KeyboardLeds { caps_lock: self.leds & 4 != 0, num_lock: self.leds & 2 != 0, scroll_lock: self.leds & 1 != 0 }
    }

    pub fn save(&self) -> saved::Ps2Keyboard {
        let Self { replies, keys, scanning, set, breaks, leds, typematic, awaiting, last_sent } = self;
        saved::Ps2Keyboard {
            replies: replies.to_vec(),
            keys: keys.to_vec(),
            scanning: *scanning,
            set: *set as u8,
            breaks: breaks.words(),
            leds: *leds,
            typematic: *typematic,
            awaiting: match awaiting {
                Awaiting::Nothing => 0,
                Awaiting::Leds => 0xed,
                Awaiting::ScancodeSet => 0xf0,
                Awaiting::Typematic => 0xf3,
                Awaiting::BreakingKey => 0xfc,
                Awaiting::SilentKey => 0xfb,
            },
            last_sent: *last_sent,
        }
    }

    pub fn of_saved(saved: saved::Ps2Keyboard) -> Result<Self, RestoreError> {
        let saved::Ps2Keyboard { replies, keys, scanning, set, breaks, leds, typematic, awaiting, last_sent } = saved;
        Ok(Self {
            replies: BoundedFifo::of_saved(&replies)?,
            keys: BoundedFifo::of_saved(&keys)?,
            scanning,
            set: match set {
                1 => ScancodeSet::One,
                2 => ScancodeSet::Two,
                3 => ScancodeSet::Three,
                _ => return Err(RestoreError::impossible("PS/2 keyboard: no such scancode set")),
            },
            breaks: Breaks::of_words(breaks),
            leds: leds & 7,
            typematic: typematic & 0x7f,
            awaiting: match awaiting {
                0 => Awaiting::Nothing,
                0xed => Awaiting::Leds,
                0xf0 => Awaiting::ScancodeSet,
                0xf3 => Awaiting::Typematic,
                0xfc => Awaiting::BreakingKey,
                0xfb => Awaiting::SilentKey,
                _ => return Err(RestoreError::impossible("PS/2 keyboard: no such command")),
            },
            last_sent,
        })
    }
}

pub mod saved {
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    pub struct Ps2Keyboard {
        pub replies: Vec<u8>,
        pub keys: Vec<u8>,
        pub scanning: bool,
        pub set: u8,
        /// Absent before set 3 was there.
        #[serde(default)]
        pub breaks: [u64; 4],
        pub leds: u8,
        pub typematic: u8,
        pub awaiting: u8,
        pub last_sent: u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(keyboard: &mut Ps2Keyboard) -> Vec<u8> {
        std::iter::from_fn(|| keyboard.pop()).collect()
    }

    #[test]
    fn keys_send_set_2_and_set_1() {
        let mut keyboard = Ps2Keyboard::new();
        keyboard.key(KeyCode(30), true);
        keyboard.key(KeyCode(30), false);
        keyboard.key(KeyCode(111), true); // Delete
        keyboard.key(KeyCode(111), false);
        assert_eq!(drain(&mut keyboard), [0x1c, 0xf0, 0x1c, 0xe0, 0x71, 0xe0, 0xf0, 0x71]);
        [0xf0, 0x01].iter().for_each(|byte| keyboard.command(*byte));
        keyboard.key(KeyCode(30), true);
        keyboard.key(KeyCode(111), false);
        assert_eq!(drain(&mut keyboard), [0xfa, 0xfa, 0x1e, 0xe0, 0xd3]);
    }

    #[test]
    fn set_3_says_what_it_is_asked_to_say() {
        let mut keyboard = Ps2Keyboard::new();
        let press = |keyboard: &mut Ps2Keyboard, code| [true, false].map(|pressed| keyboard.key(KeyCode(code), pressed));
        [0xf0, 3, 0xf0, 0].iter().for_each(|byte| keyboard.command(*byte));
        assert_eq!(drain(&mut keyboard), [0xfa, 0xfa, 0xfa, 0xfa, 3]);
        press(&mut keyboard, 30); // A
        press(&mut keyboard, 42); // Shift
        press(&mut keyboard, 111); // Delete
        press(&mut keyboard, 119); // Pause
        assert_eq!(drain(&mut keyboard), [0x1c, 0x12, 0xf0, 0x12, 0x64, 0x62], "only Shift says that it is let go");
        [0xf8, 0xfb, 0x64].iter().for_each(|byte| keyboard.command(*byte));
        press(&mut keyboard, 30);
        press(&mut keyboard, 111);
        assert_eq!(drain(&mut keyboard), [0xfa, 0xfa, 0xfa, 0x1c, 0xf0, 0x1c, 0x64], "all but Delete");
        keyboard.command(0xf6);
        press(&mut keyboard, 30);
        assert_eq!(drain(&mut keyboard), [0xfa, 0x1c, 0xf0, 0x1c], "defaults are set 2's");
    }

    #[test]
    fn commands_are_answered() {
        let cases: [(&[u8], &[u8]); 10] = [
            (&[0xee], &[0xee]),
            (&[0xf2], &[0xfa, 0xab, 0x83]),
            (&[0xed, 0x07], &[0xfa, 0xfa]),
            (&[0xf3, 0x20], &[0xfa, 0xfa]),
            (&[0xf0, 0x00], &[0xfa, 0xfa, 0x02]),
            (&[0xf0, 0x03], &[0xfa, 0xfa]),
            (&[0xf0, 0x04], &[0xfa, 0xfe]),
            (&[0xff], &[0xfa, 0xaa]),
            (&[0x01], &[0xfe]),
            (&[0xed, 0xf4], &[0xfa, 0xfa]),
        ];
        for (command, answer) in cases {
            let mut keyboard = Ps2Keyboard::new();
            command.iter().for_each(|byte| keyboard.command(*byte));
            assert_eq!(drain(&mut keyboard), answer, "{command:x?}");
        }
    }

    #[test]
    fn the_host_sets_the_leds() {
        let mut keyboard = Ps2Keyboard::new();
        [0xed, 0x06].iter().for_each(|byte| keyboard.command(*byte));
        assert_eq!(keyboard.leds(), KeyboardLeds { caps_lock: true, num_lock: true, scroll_lock: false });
    }

    #[test]
    fn disabled_it_sends_answers_only() {
        let mut keyboard = Ps2Keyboard::new();
        keyboard.command(0xf5);
        keyboard.key(KeyCode(30), true);
        keyboard.command(0xee);
        assert_eq!(drain(&mut keyboard), [0xfa, 0xee]);
    }

    #[test]
    fn a_flood_of_keys_is_cut_off_between_keys() {
        let mut keyboard = Ps2Keyboard::new();
        (0..1000).for_each(|_| keyboard.key(PAUSE, true));
        let bytes = drain(&mut keyboard);
        assert!(bytes.len() <= KEY_BYTES && bytes.len().is_multiple_of(8));
    }
}
