//! Keys and pointers, named once. A key is its Linux input event code (what winit reports as the physical key's
//! scancode); tables turn it into PS/2 scancodes, USB HID usages and QEMU's key names, and text into keystrokes.
//!
//! It is *not* a keyboard layout: guests see physical keys, as a real keyboard sends them.
//! Threads: none. Start at [`InputEvent`].
#![forbid(unsafe_code)]

mod event;
mod keys;

pub use event::{Button, InputEvent, KeyCode, KeyboardLeds};
pub use keys::{KEYS, Key, SHIFT, key_by_code, key_by_name, key_by_set1, keystrokes};
