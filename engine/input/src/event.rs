//! What a person does to a machine.

use serde::{Deserialize, Serialize};

/// A physical key: its Linux input event code (`KEY_A` is 30), see `linux/input-event-codes.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyCode(pub u16);

/// A pointer button.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Button {
    /// The first.
    Left,
    /// The second.
    Right,
    /// The wheel, pressed.
    Middle,
    /// Fourth ("back").
    Side,
    /// Fifth ("forward").
    Extra,
}

/// One event on its way to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InputEvent {
    /// A key goes down or up.
    Key {
        /// Which.
        code: KeyCode,
        /// Down.
        pressed: bool,
    },
    /// The pointer is at a place of the screen: 0 to 32767 in both directions.
    PointerAt {
        /// From the left edge.
        x: u16,
        /// From the top edge.
        y: u16,
    },
    /// The pointer moved: counts to the right and down.
    PointerMoved {
        /// To the right.
        dx: i32,
        /// Down.
        dy: i32,
    },
    /// A button goes down or up.
    Button {
        /// Which.
        button: Button,
        /// Down.
        pressed: bool,
    },
    /// The wheel turned: notches away from the person.
    Wheel {
        /// Positive is up.
        notches: i32,
    },
}

/// The lamps of a keyboard, as the guest has switched them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyboardLeds {
    /// Caps Lock.
    pub caps_lock: bool,
    /// Num Lock.
    pub num_lock: bool,
    /// Scroll Lock.
    pub scroll_lock: bool,
}
