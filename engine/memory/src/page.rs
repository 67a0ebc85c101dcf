//! What is known about one 4 KiB page of guest memory.
//!
//! Code detection works at 64-byte grains: a CPU backend that has decoded instructions from a page marks their grains;
//! a write into a marked grain raises the page's generation, which makes everything decoded from the page stale.
//! A backend must look at `code_generation` before it runs what it decoded, and must send writes to pages that hold
//! code through [`PageState::note_write`].

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// Bytes in a page.
pub const PAGE_BYTES: u64 = 4096;
/// Bytes in a code grain: 64 grains to a page.
pub const GRAIN_BYTES: u64 = 64;

/// Flag bits of a page.
pub struct PageFlags;

impl PageFlags {
    /// Written since the last snapshot.
    pub const WRITTEN: u8 = 1 << 0;
    /// Written since the screen was last drawn from it.
    pub const DRAWN_ON: u8 = 1 << 1;
    /// Holds code that a backend has decoded or translated.
    pub const TRANSLATED: u8 = 1 << 2;
    /// Belongs to a block whose writes must be noted one by one (video memory): never cache a fast write path to it.
    pub const WATCHED: u8 = 1 << 3;
}

/// The flags and code grains of one page. All zero is the state of a fresh page.
#[derive(Debug, Default)]
#[repr(C)]
pub struct PageState {
    code_grains: AtomicU64,
    code_generation: AtomicU32,
    flags: AtomicU8,
}

// SAFETY: every field is an integer atomic, for which all-zero bytes are valid.
unsafe impl bytemuck::Zeroable for PageState {}

impl PageState {
    /// The distance of the flag bits from the state's start, for code that is made at run time.
    pub const FLAGS_AT: usize = std::mem::offset_of!(PageState, flags);

    /// The flag bits, as in [`PageFlags`].
    #[inline]
    pub fn flags(&self) -> u8 {
        self.flags.load(Ordering::Acquire)
    }

    /// Sets flag bits.
    #[inline]
    pub fn set_flags(&self, bits: u8) {
        if self.flags() & bits != bits {
            self.flags.fetch_or(bits, Ordering::AcqRel);
        }
    }

    /// Clears flag bits; returns which of them were set.
    pub fn take_flags(&self, bits: u8) -> u8 {
        if self.flags() & bits == 0 {
            return 0;
        }
        self.flags.fetch_and(!bits, Ordering::AcqRel) & bits
    }

    /// Which 64-byte grains hold decoded code.
    #[inline]
    pub fn code_grains(&self) -> u64 {
        self.code_grains.load(Ordering::Acquire)
    }

    /// Rises each time decoded code on this page goes stale.
    #[inline]
    pub fn code_generation(&self) -> u32 {
        self.code_generation.load(Ordering::Acquire)
    }

    /// The number behind [`PageState::code_generation`], for translated code that looks at it by itself (32 bits, host byte order).
    pub fn code_generation_cell(&self) -> &AtomicU32 {
        &self.code_generation
    }

    /// A backend has decoded the bytes `first..first + len` of the page. Call it before reading the bytes for the last time.
    /// Returns whether the page did not hold code before: then fast write paths to it must be revoked first.
    pub fn add_code(&self, first: u64, len: u64) -> bool {
        // The grains come first: whoever clears `TRANSLATED` because there are none looks again afterwards.
        self.code_grains.fetch_or(grain_mask(first, len), Ordering::SeqCst);
        self.flags.fetch_or(PageFlags::TRANSLATED, Ordering::SeqCst) & PageFlags::TRANSLATED == 0
    }

    /// Bytes `first..first + len` of the page have just been written. Returns whether decoded code went stale.
    #[inline]
    pub fn note_write(&self, first: u64, len: u64) -> bool {
        self.set_flags(PageFlags::WRITTEN | PageFlags::DRAWN_ON);
        let mask = grain_mask(first, len);
        if self.flags() & PageFlags::TRANSLATED == 0 || self.code_grains() & mask == 0 {
            return false;
        }
        // All blocks of the page go stale together, so all grains are free again until code is decoded anew.
        self.code_grains.store(0, Ordering::Release);
        self.code_generation.fetch_add(1, Ordering::AcqRel);
        true
    }
}

fn grain_mask(first: u64, len: u64) -> u64 {
    debug_assert!(len > 0 && first + len <= PAGE_BYTES);
    let from = first / GRAIN_BYTES;
    let to = (first + len - 1) / GRAIN_BYTES;
    (u64::MAX >> (63 - (to - from).min(63))) << (from & 63)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writes_into_code_grains_make_code_stale() {
        let page = PageState::default();
        page.add_code(64, 65);
        assert_eq!(page.code_grains(), 0b110);
        assert!(!page.note_write(0, 64));
        assert!(!page.note_write(192, 8));
        let before = page.code_generation();
        assert!(page.note_write(60, 8), "60..68 reaches grain 1");
        assert_eq!(page.code_generation(), before + 1);
        assert!(!page.note_write(60, 8), "nothing is decoded any more");
    }

    #[test]
    fn a_whole_page_is_all_grains() {
        assert_eq!(grain_mask(0, PAGE_BYTES), u64::MAX);
        assert_eq!(grain_mask(4095, 1), 1 << 63);
    }
}
