//! A picture and its way out of the machine: one [`Screen`] per guest display. A device (through the machine's
//! `vm-screen` thread) draws into it; windows, the VNC server and screenshots read it.
//!
//! It is *not* a renderer: scaling and colour belong to whoever shows the picture.
//! The latest picture wins; what a reader has not seen yet is kept as damage, so that a skipped frame loses nothing.
//! Threads: none. Locks: one leaf per screen. Start at [`Screen`].
#![forbid(unsafe_code)]

mod damage;
mod screen;

pub use damage::{Damage, Rect};
pub use screen::{Picture, Screen, ScreenReader};
