//! One guest display, shared between who draws it and who shows it.

use crate::{Damage, Rect};
use engine_base::{RankedMutex, rank};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The pixels of a screen: `0x00RRGGBB`, row after row, no padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `width * height` pixels.
    pub pixels: Vec<u32>,
}

impl Picture {
    /// A black picture.
    pub fn black(width: u32, height: u32) -> Self {
        Self { width, height, pixels: vec![0; width as usize * height as usize] }
    }
}

/// One guest display; clones share it.
#[derive(Clone)]
pub struct Screen(Arc<Shared>);

struct Shared {
    state: RankedMutex<State>,
    readers: AtomicUsize,
}

struct State {
    picture: Picture,
    readers: Vec<ReaderSlot>,
    next_reader: u64,
}

struct ReaderSlot {
    id: u64,
    unseen: Damage,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}

impl Screen {
    /// A black screen of 720 × 400, the size of VGA text.
    pub fn new() -> Self {
        let state = State { picture: Picture::black(720, 400), readers: Vec::new(), next_reader: 0 };
        Self(Arc::new(Shared { state: RankedMutex::new(rank::LEAF, "screen", state), readers: AtomicUsize::new(0) }))
    }

    /// Whether anybody watches: if not, drawing may wait until [`Screen::picture`] is asked for.
    pub fn is_watched(&self) -> bool {
        self.0.readers.load(Ordering::Relaxed) > 0
    }

    /// Draws: `draw` changes the picture (it may resize it, keeping `pixels` in step) and adds what it changed to the damage.
    /// Readers that have something new to see are woken afterwards.
    pub fn draw(&self, draw: impl FnOnce(&mut Picture, &mut Damage)) {
        let mut wake = Vec::new();
        {
            let mut state = self.0.state.lock();
            let before = (state.picture.width, state.picture.height);
            let mut damage = Damage::default();
            draw(&mut state.picture, &mut damage);
            let (width, height) = (state.picture.width, state.picture.height);
            debug_assert_eq!(state.picture.pixels.len(), width as usize * height as usize);
            if before != (width, height) {
                damage.add(Rect { left: 0, top: 0, right: width, bottom: height });
            }
            if damage.is_empty() {
                return;
            }
            for reader in &mut state.readers {
                for rect in damage.rects() {
                    reader.unseen.add(*rect);
                }
                wake.push(Arc::clone(&reader.wake));
            }
        }
        for wake in wake {
            wake();
        }
    }

    /// Columns and rows now.
    pub fn size(&self) -> (u32, u32) {
        let state = self.0.state.lock();
        (state.picture.width, state.picture.height)
    }

    /// A copy of the picture.
    pub fn picture(&self) -> Picture {
        self.0.state.lock().picture.clone()
    }

    /// A reader, to whom the whole picture is new. `wake` is called, on the drawing thread, whenever there is more to see.
    pub fn watch(&self, wake: impl Fn() + Send + Sync + 'static) -> ScreenReader {
        let mut state = self.0.state.lock();
        let id = state.next_reader;
        state.next_reader += 1;
        let mut unseen = Damage::default();
        unseen.add(Rect { left: 0, top: 0, right: state.picture.width, bottom: state.picture.height });
        state.readers.push(ReaderSlot { id, unseen, wake: Arc::new(wake) });
        self.0.readers.store(state.readers.len(), Ordering::Relaxed);
        drop(state);
        ScreenReader { screen: self.clone(), id }
    }
}

/// Somebody who shows the screen.
pub struct ScreenReader {
    screen: Screen,
    id: u64,
}

impl ScreenReader {
    /// Shows what is new: `show` gets the picture and what changed since the last call. Not called when nothing did.
    /// The screen is locked meanwhile: copy or upload, then return.
    pub fn read(&mut self, show: impl FnOnce(&Picture, &Damage)) {
        let mut state = self.screen.0.state.lock();
        let state = &mut *state;
        let Some(slot) = state.readers.iter_mut().find(|slot| slot.id == self.id) else { return };
        let mut unseen = Damage::default();
        for rect in slot.unseen.take().rects() {
            if let Some(rect) = rect.clipped(state.picture.width, state.picture.height) {
                unseen.add(rect);
            }
        }
        if !unseen.is_empty() {
            show(&state.picture, &unseen);
        }
    }

    /// The screen this reader watches.
    pub fn screen(&self) -> &Screen {
        &self.screen
    }
}

impl Drop for ScreenReader {
    fn drop(&mut self) {
        let mut state = self.screen.0.state.lock();
        state.readers.retain(|slot| slot.id != self.id);
        self.screen.0.readers.store(state.readers.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_of_skipped_frames_is_carried_over() {
        let screen = Screen::new();
        let mut reader = screen.watch(|| {});
        reader.read(|_, _| {});
        for left in [0, 100] {
            screen.draw(|_, damage| damage.add(Rect { left, top: 0, right: left + 1, bottom: 1 }));
        }
        let mut seen = 0;
        reader.read(|_, damage| seen = damage.rects().len());
        assert_eq!(seen, 2);
        reader.read(|_, _| panic!("nothing is new"));
    }

    #[test]
    fn a_resize_is_wholly_new_and_old_damage_is_clipped() {
        let screen = Screen::new();
        let mut reader = screen.watch(|| {});
        screen.draw(|picture, _| *picture = Picture::black(10, 10));
        reader.read(|picture, damage| {
            assert_eq!((picture.width, picture.height), (10, 10));
            assert_eq!(damage.rects(), [Rect { left: 0, top: 0, right: 10, bottom: 10 }]);
        });
    }
}
