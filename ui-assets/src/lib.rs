//! How the windows look: colours and spacing as tokens in RON files, and icons drawn by ourselves as strokes on a
//! 24 × 24 grid. A window asks for "accent" or [`Icon::Play`], never for a colour value or a picture file.
//!
//! It holds *no* widgets and no text; those are `app`. Fonts are egui's own.
//! Threads: none. Start at [`Theme`] and [`Icon`].
#![forbid(unsafe_code)]

mod icon;
mod theme;

pub use icon::Icon;
pub use theme::{Theme, apply};
