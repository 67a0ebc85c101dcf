//! The lamps of the keyboard, on their way from the device to the person. A machine may have two keyboards (PS/2 and USB);
//! people look at one, so the lamps show what was set last.

use std::sync::{Arc, Mutex, OnceLock};

use engine_input::KeyboardLeds;

/// The lamps; clones share them.
#[derive(Clone, Default)]
pub struct LedPanel(Arc<Panel>);

#[derive(Default)]
struct Panel {
    leds: Mutex<KeyboardLeds>,
    listener: OnceLock<Box<dyn Fn(KeyboardLeds) + Send + Sync>>,
}

impl LedPanel {
    /// Sets the lamps; the listener hears of a change.
    pub fn set(&self, leds: KeyboardLeds) {
        let before = std::mem::replace(&mut *self.0.leds.lock().unwrap_or_else(|poison| poison.into_inner()), leds);
        if let Some(listener) = self.0.listener.get().filter(|_| before != leds) {
            listener(leds);
        }
    }

    /// How they are now.
    pub fn get(&self) -> KeyboardLeds {
        *self.0.leds.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// `listener` is told of changes, on the thread of the CPU that made them: it must not block. There is one at most; a
    /// second is ignored.
    pub fn listen(&self, listener: impl Fn(KeyboardLeds) + Send + Sync + 'static) {
        self.0.listener.set(Box::new(listener)).ok(); // As documented.
    }
}
