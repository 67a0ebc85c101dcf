//! Keyboards and pointers.

pub mod i8042;
mod ps2_keyboard;
mod ps2_mouse;
mod scancode_set3;
