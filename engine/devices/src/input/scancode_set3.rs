//! Scancode set 3: one byte for each key, no prefixes; which keys say that they are let go can be chosen.
//! See: IBM PS/2 Hardware Interface Technical Reference, "Keyboards (101- and 102-Key)", scan code set 3.

use engine_input::Key;

/// What a key sends when it is pressed. What is not listed sends its byte of set 2.
#[rustfmt::skip]
const DIFFERENT: &[(u16, u8)] = &[
    (1, 0x08),                                                                             // Esc
    (59, 0x07), (60, 0x0f), (61, 0x17), (62, 0x1f), (63, 0x27), (64, 0x2f), (65, 0x37),    // F1 to F7
    (66, 0x3f), (67, 0x47), (68, 0x4f), (87, 0x56), (88, 0x5e),                            // F8 to F12
    (99, 0x57), (70, 0x5f), (119, 0x62),                                                   // Print Screen, Scroll Lock, Pause
    (43, 0x5c), (86, 0x13), (58, 0x14),                                                    // backslash, the 102nd key, Caps Lock
    (29, 0x11), (97, 0x58), (56, 0x19), (100, 0x39), (125, 0x8b), (126, 0x8c), (127, 0x8d), // Ctrl, Alt, Windows, menu
    (110, 0x67), (111, 0x64), (102, 0x6e), (107, 0x65), (104, 0x6f), (109, 0x6d),          // Insert to Page Down
    (103, 0x63), (108, 0x60), (105, 0x61), (106, 0x6a),                                    // arrows
    (92, 0x86), (94, 0x85), (93, 0x87), (124, 0x5d),                                       // henkan, muhenkan, hiragana, yen
    (69, 0x76), (98, 0x77), (55, 0x7e), (74, 0x84), (78, 0x7c), (96, 0x79),                // Num Lock, keypad / * - + Enter
];

/// Keys that came after set 3: the keypad's comma and equals sign, Korean ones.
const ABSENT: [u16; 5] = [95, 117, 121, 122, 123];

/// The keys that say so after a reset: Shift, Ctrl and Alt on the left, Shift on the right, Caps Lock.
const BREAKS_AT_FIRST: [u8; 5] = [0x12, 0x11, 0x19, 0x59, 0x14];

/// What `key` sends when it is pressed; `None` for one that set 3 does not have.
pub fn make_code(key: &Key) -> Option<u8> {
    if ABSENT.contains(&key.code.0) {
        return None;
    }
    if let Some((_, code)) = DIFFERENT.iter().find(|(code, _)| *code == key.code.0) {
        return Some(*code);
    }
    let [prefix, code] = key.set2.to_be_bytes();
    (prefix == 0 && code != 0).then_some(code)
}

/// Which keys say that they are let go: a bit for each byte that a key can send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaks([u64; 4]);

impl Breaks {
    /// As after a reset.
    pub fn at_first() -> Self {
        let mut breaks = Self([0; 4]);
        BREAKS_AT_FIRST.into_iter().for_each(|code| breaks.set(code, true));
        breaks
    }

    /// All keys alike.
    pub fn all(on: bool) -> Self {
        Self([if on { u64::MAX } else { 0 }; 4])
    }

    /// Whether the key that sends `code` says so.
    pub fn has(&self, code: u8) -> bool {
        self.0[usize::from(code >> 6)] >> (code & 63) & 1 != 0
    }

    /// Chooses for one key.
    pub fn set(&mut self, code: u8, on: bool) {
        let word = &mut self.0[usize::from(code >> 6)];
        *word = *word & !(1 << (code & 63)) | u64::from(on) << (code & 63);
    }

    /// As it is saved.
    pub fn words(&self) -> [u64; 4] {
        self.0
    }

    /// From what was saved.
    pub fn of_words(words: [u64; 4]) -> Self {
        Self(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_input::KEYS;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_keys_send_the_same() {
        let mut seen = BTreeSet::new();
        for key in KEYS {
            if let Some(code) = make_code(key) {
                assert!(seen.insert(code), "{:?} sends {code:#x}, as another key does", key.names);
            }
        }
        assert!(seen.len() >= 104, "{} keys", seen.len());
    }
}
