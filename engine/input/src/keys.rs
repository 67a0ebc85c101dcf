//! One table of keys: for each physical key its code, what a PS/2 keyboard sends for it, its USB HID usage, QEMU's names, and
//! what a US layout prints on it. Prefixed scancodes have the prefix in their high byte (`0xe01c`); Pause, which sends a
//! sequence of its own, is written `0xe11d`/`0xe114`.
//! See: IBM PS/2 scancode sets 1 and 2; USB HID Usage Tables 1.12, page 07h; `linux/input-event-codes.h`.

use crate::{InputEvent, KeyCode};

/// What is known of a physical key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Its code.
    pub code: KeyCode,
    /// Scancode set 1 (make), prefix in the high byte.
    pub set1: u16,
    /// Scancode set 2 (make), prefix in the high byte.
    pub set2: u16,
    /// USB HID usage on the keyboard page.
    pub hid: u8,
    /// QEMU's names, the usual one first.
    pub names: &'static [&'static str],
    /// What a US layout types without Shift.
    pub plain: Option<char>,
    /// What it types with Shift.
    pub shifted: Option<char>,
}

/// Left Shift.
pub const SHIFT: KeyCode = KeyCode(42);

const fn key(
    code: u16,
    set1: u16,
    set2: u16,
    hid: u8,
    names: &'static [&'static str],
    plain: Option<char>,
    shifted: Option<char>,
) -> Key {
    Key { code: KeyCode(code), set1, set2, hid, names, plain, shifted }
}

/// Every key, by code: code, set 1, set 2, HID usage, names, US letters.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key(1, 0x01, 0x76, 0x29, &["esc"], None, None),
    key(2, 0x02, 0x16, 0x1e, &["1"], Some('1'), Some('!')),
    key(3, 0x03, 0x1e, 0x1f, &["2"], Some('2'), Some('@')),
    key(4, 0x04, 0x26, 0x20, &["3"], Some('3'), Some('#')),
    key(5, 0x05, 0x25, 0x21, &["4"], Some('4'), Some('$')),
    key(6, 0x06, 0x2e, 0x22, &["5"], Some('5'), Some('%')),
    key(7, 0x07, 0x36, 0x23, &["6"], Some('6'), Some('^')),
    key(8, 0x08, 0x3d, 0x24, &["7"], Some('7'), Some('&')),
    key(9, 0x09, 0x3e, 0x25, &["8"], Some('8'), Some('*')),
    key(10, 0x0a, 0x46, 0x26, &["9"], Some('9'), Some('(')),
    key(11, 0x0b, 0x45, 0x27, &["0"], Some('0'), Some(')')),
    key(12, 0x0c, 0x4e, 0x2d, &["minus"], Some('-'), Some('_')),
    key(13, 0x0d, 0x55, 0x2e, &["equal"], Some('='), Some('+')),
    key(14, 0x0e, 0x66, 0x2a, &["backspace"], None, None),
    key(15, 0x0f, 0x0d, 0x2b, &["tab"], Some('\t'), None),
    key(16, 0x10, 0x15, 0x14, &["q"], Some('q'), Some('Q')),
    key(17, 0x11, 0x1d, 0x1a, &["w"], Some('w'), Some('W')),
    key(18, 0x12, 0x24, 0x08, &["e"], Some('e'), Some('E')),
    key(19, 0x13, 0x2d, 0x15, &["r"], Some('r'), Some('R')),
    key(20, 0x14, 0x2c, 0x17, &["t"], Some('t'), Some('T')),
    key(21, 0x15, 0x35, 0x1c, &["y"], Some('y'), Some('Y')),
    key(22, 0x16, 0x3c, 0x18, &["u"], Some('u'), Some('U')),
    key(23, 0x17, 0x43, 0x0c, &["i"], Some('i'), Some('I')),
    key(24, 0x18, 0x44, 0x12, &["o"], Some('o'), Some('O')),
    key(25, 0x19, 0x4d, 0x13, &["p"], Some('p'), Some('P')),
    key(26, 0x1a, 0x54, 0x2f, &["bracket_left"], Some('['), Some('{')),
    key(27, 0x1b, 0x5b, 0x30, &["bracket_right"], Some(']'), Some('}')),
    key(28, 0x1c, 0x5a, 0x28, &["ret"], Some('\n'), None),
    key(29, 0x1d, 0x14, 0xe0, &["ctrl"], None, None),
    key(30, 0x1e, 0x1c, 0x04, &["a"], Some('a'), Some('A')),
    key(31, 0x1f, 0x1b, 0x16, &["s"], Some('s'), Some('S')),
    key(32, 0x20, 0x23, 0x07, &["d"], Some('d'), Some('D')),
    key(33, 0x21, 0x2b, 0x09, &["f"], Some('f'), Some('F')),
    key(34, 0x22, 0x34, 0x0a, &["g"], Some('g'), Some('G')),
    key(35, 0x23, 0x33, 0x0b, &["h"], Some('h'), Some('H')),
    key(36, 0x24, 0x3b, 0x0d, &["j"], Some('j'), Some('J')),
    key(37, 0x25, 0x42, 0x0e, &["k"], Some('k'), Some('K')),
    key(38, 0x26, 0x4b, 0x0f, &["l"], Some('l'), Some('L')),
    key(39, 0x27, 0x4c, 0x33, &["semicolon"], Some(';'), Some(':')),
    key(40, 0x28, 0x52, 0x34, &["apostrophe"], Some('\''), Some('\"')),
    key(41, 0x29, 0x0e, 0x35, &["grave_accent"], Some('`'), Some('~')),
    key(42, 0x2a, 0x12, 0xe1, &["shift"], None, None),
    key(43, 0x2b, 0x5d, 0x31, &["backslash"], Some('\\'), Some('|')),
    key(44, 0x2c, 0x1a, 0x1d, &["z"], Some('z'), Some('Z')),
    key(45, 0x2d, 0x22, 0x1b, &["x"], Some('x'), Some('X')),
    key(46, 0x2e, 0x21, 0x06, &["c"], Some('c'), Some('C')),
    key(47, 0x2f, 0x2a, 0x19, &["v"], Some('v'), Some('V')),
    key(48, 0x30, 0x32, 0x05, &["b"], Some('b'), Some('B')),
    key(49, 0x31, 0x31, 0x11, &["n"], Some('n'), Some('N')),
    key(50, 0x32, 0x3a, 0x10, &["m"], Some('m'), Some('M')),
    key(51, 0x33, 0x41, 0x36, &["comma"], Some(','), Some('<')),
    key(52, 0x34, 0x49, 0x37, &["dot"], Some('.'), Some('>')),
    key(53, 0x35, 0x4a, 0x38, &["slash"], Some('/'), Some('?')),
    key(54, 0x36, 0x59, 0xe5, &["shift_r"], None, None),
    key(55, 0x37, 0x7c, 0x55, &["kp_multiply", "asterisk"], None, None),
    key(56, 0x38, 0x11, 0xe2, &["alt"], None, None),
    key(57, 0x39, 0x29, 0x2c, &["spc"], Some(' '), None),
    key(58, 0x3a, 0x58, 0x39, &["caps_lock"], None, None),
    key(59, 0x3b, 0x05, 0x3a, &["f1"], None, None),
    key(60, 0x3c, 0x06, 0x3b, &["f2"], None, None),
    key(61, 0x3d, 0x04, 0x3c, &["f3"], None, None),
    key(62, 0x3e, 0x0c, 0x3d, &["f4"], None, None),
    key(63, 0x3f, 0x03, 0x3e, &["f5"], None, None),
    key(64, 0x40, 0x0b, 0x3f, &["f6"], None, None),
    key(65, 0x41, 0x83, 0x40, &["f7"], None, None),
    key(66, 0x42, 0x0a, 0x41, &["f8"], None, None),
    key(67, 0x43, 0x01, 0x42, &["f9"], None, None),
    key(68, 0x44, 0x09, 0x43, &["f10"], None, None),
    key(69, 0x45, 0x77, 0x53, &["num_lock"], None, None),
    key(70, 0x46, 0x7e, 0x47, &["scroll_lock"], None, None),
    key(71, 0x47, 0x6c, 0x5f, &["kp_7"], None, None),
    key(72, 0x48, 0x75, 0x60, &["kp_8"], None, None),
    key(73, 0x49, 0x7d, 0x61, &["kp_9"], None, None),
    key(74, 0x4a, 0x7b, 0x56, &["kp_subtract"], None, None),
    key(75, 0x4b, 0x6b, 0x5c, &["kp_4"], None, None),
    key(76, 0x4c, 0x73, 0x5d, &["kp_5"], None, None),
    key(77, 0x4d, 0x74, 0x5e, &["kp_6"], None, None),
    key(78, 0x4e, 0x79, 0x57, &["kp_add"], None, None),
    key(79, 0x4f, 0x69, 0x59, &["kp_1"], None, None),
    key(80, 0x50, 0x72, 0x5a, &["kp_2"], None, None),
    key(81, 0x51, 0x7a, 0x5b, &["kp_3"], None, None),
    key(82, 0x52, 0x70, 0x62, &["kp_0"], None, None),
    key(83, 0x53, 0x71, 0x63, &["kp_decimal"], None, None),
    key(86, 0x56, 0x61, 0x64, &["less"], None, None),
    key(87, 0x57, 0x78, 0x44, &["f11"], None, None),
    key(88, 0x58, 0x07, 0x45, &["f12"], None, None),
    key(89, 0x73, 0x51, 0x87, &["ro"], None, None),
    key(92, 0x79, 0x64, 0x8a, &["henkan"], None, None),
    key(93, 0x70, 0x13, 0x88, &["hiragana", "katakanahiragana"], None, None),
    key(94, 0x7b, 0x67, 0x8b, &["muhenkan"], None, None),
    key(95, 0x5c, 0x27, 0x8c, &["kp_jpcomma"], None, None),
    key(96, 0xe01c, 0xe05a, 0x58, &["kp_enter"], None, None),
    key(97, 0xe01d, 0xe014, 0xe4, &["ctrl_r"], None, None),
    key(98, 0xe035, 0xe04a, 0x54, &["kp_divide"], None, None),
    key(99, 0xe037, 0xe07c, 0x46, &["print", "sysrq"], None, None),
    key(100, 0xe038, 0xe011, 0xe6, &["alt_r"], None, None),
    key(102, 0xe047, 0xe06c, 0x4a, &["home"], None, None),
    key(103, 0xe048, 0xe075, 0x52, &["up"], None, None),
    key(104, 0xe049, 0xe07d, 0x4b, &["pgup"], None, None),
    key(105, 0xe04b, 0xe06b, 0x50, &["left"], None, None),
    key(106, 0xe04d, 0xe074, 0x4f, &["right"], None, None),
    key(107, 0xe04f, 0xe069, 0x4d, &["end"], None, None),
    key(108, 0xe050, 0xe072, 0x51, &["down"], None, None),
    key(109, 0xe051, 0xe07a, 0x4e, &["pgdn"], None, None),
    key(110, 0xe052, 0xe070, 0x49, &["insert"], None, None),
    key(111, 0xe053, 0xe071, 0x4c, &["delete"], None, None),
    key(113, 0xe020, 0xe023, 0x7f, &["audiomute"], None, None),
    key(114, 0xe02e, 0xe021, 0x81, &["volumedown"], None, None),
    key(115, 0xe030, 0xe032, 0x80, &["volumeup"], None, None),
    key(116, 0xe05e, 0xe037, 0x66, &["power"], None, None),
    key(117, 0x59, 0x0f, 0x67, &["kp_equals"], None, None),
    key(119, 0xe11d, 0xe114, 0x48, &["pause"], None, None),
    key(121, 0x7e, 0x6d, 0x85, &["kp_comma"], None, None),
    key(122, 0xf2, 0xf2, 0x90, &["lang1"], None, None),
    key(123, 0xf1, 0xf1, 0x91, &["lang2"], None, None),
    key(124, 0x7d, 0x6a, 0x89, &["yen"], None, None),
    key(125, 0xe05b, 0xe01f, 0xe3, &["meta_l"], None, None),
    key(126, 0xe05c, 0xe027, 0xe7, &["meta_r"], None, None),
    key(127, 0xe05d, 0xe02f, 0x65, &["menu", "compose"], None, None),
];

/// The key with this code.
pub fn key_by_code(code: KeyCode) -> Option<&'static Key> {
    KEYS.binary_search_by_key(&code, |key| key.code).ok().map(|at| &KEYS[at])
}

/// The key that QEMU calls so: `ret`, `kp_enter`, `ctrl`; also `0x1e`, a set 1 scancode.
pub fn key_by_name(name: &str) -> Option<KeyCode> {
    if let Some(hex) = name.strip_prefix("0x") {
        return u16::from_str_radix(hex, 16).ok().and_then(key_by_set1);
    }
    KEYS.iter().find(|key| key.names.contains(&name)).map(|key| key.code)
}

/// The key with this set 1 scancode; a prefix may be written as the high byte (`0xe01c`) or as bit 7 (`0x9c`, as QEMU does).
pub fn key_by_set1(scancode: u16) -> Option<KeyCode> {
    let scancode = if (0x80..0x100).contains(&scancode) { 0xe000 | scancode & 0x7f } else { scancode };
    KEYS.iter().find(|key| key.set1 == scancode).map(|key| key.code)
}

/// The keystrokes of a US keyboard that type `text`, and how many characters that is.
///
/// # Errors
/// A sentence that names the first character that a US keyboard does not have.
pub fn keystrokes(text: &str) -> Result<(Vec<InputEvent>, usize), String> {
    let mut events = Vec::new();
    let mut typed = 0;
    for letter in text.chars().filter(|letter| *letter != '\r') {
        let plain = KEYS.iter().find(|key| key.plain == Some(letter));
        let shifted = || KEYS.iter().find(|key| key.shifted == Some(letter));
        let stroke = |code, pressed| InputEvent::Key { code, pressed };
        match plain.or_else(shifted) {
            Some(key) if plain.is_some() => events.extend([stroke(key.code, true), stroke(key.code, false)]),
            Some(key) => {
                events.extend([stroke(SHIFT, true), stroke(key.code, true), stroke(key.code, false), stroke(SHIFT, false)]);
            }
            None => return Err(format!("A US keyboard cannot type “{letter}”. Take it out of the text.")),
        }
        typed += 1;
    }
    Ok((events, typed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_rise_and_nothing_is_there_twice() {
        assert!(KEYS.windows(2).all(|pair| pair[0].code < pair[1].code));
        let distinct = |of: fn(&Key) -> u16| KEYS.iter().map(of).collect::<BTreeSet<_>>().len();
        assert_eq!(distinct(|key| key.set1), KEYS.len());
        assert_eq!(distinct(|key| key.set2), KEYS.len());
        assert_eq!(distinct(|key| u16::from(key.hid)), KEYS.len());
    }

    #[test]
    fn names_and_scancodes_find_their_key() {
        assert_eq!(key_by_name("ret"), Some(KeyCode(28)));
        assert_eq!(key_by_name("delete"), Some(KeyCode(111)));
        assert_eq!(key_by_name("0x9c"), Some(KeyCode(96)));
        assert_eq!(key_by_name("nosuchkey"), None);
    }

    #[test]
    fn capitals_are_typed_with_shift() {
        let (events, typed) = keystrokes("aB").unwrap();
        assert_eq!((events.len(), typed), (6, 2));
        assert_eq!(events[2], InputEvent::Key { code: SHIFT, pressed: true });
        assert!(keystrokes("é").unwrap_err().contains('é'));
    }

    #[test]
    fn every_printable_ascii_character_can_be_typed() {
        let all: String = (b' '..=b'~').map(char::from).collect();
        assert_eq!(keystrokes(&all).unwrap().1, 95);
    }
}
