//! What happened to bitmaps since they were read: bits that were set, in memory until the disk is closed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// More bytes of bits than this are not kept in memory; a bitmap that would need them is given up.
const MAX_BYTES: usize = 64 << 20;

/// The bitmaps of an open disk that are changed.
#[derive(Debug, Default)]
pub(in crate::qcow2) struct Tracking {
    /// Whether any bitmap follows writes; asked before each of them.
    is_following: AtomicBool,
    bitmaps: Mutex<Vec<Tracked>>,
}

/// Changes of one bitmap.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) name: String,
    pub(super) granularity_bits: u32,
    /// Whether it follows writes.
    pub(super) follows: bool,
    /// Whether what the file holds of it is to be forgotten.
    pub(super) is_cleared: bool,
    /// Whether it was too much to keep; then it stays marked as out of date.
    pub(super) is_lost: bool,
    /// Bits that were set, by the word of the table that stands for their cluster.
    pub(super) pages: BTreeMap<u64, Box<[u8]>>,
    page_bytes: usize,
}

impl Tracked {
    pub(super) fn new(name: &str, granularity_bits: u32, follows: bool, page_bytes: usize) -> Self {
        let name = name.to_owned();
        Self { name, granularity_bits, follows, is_cleared: false, is_lost: false, pages: BTreeMap::new(), page_bytes }
    }

    /// Sets the bits of a range of the disk.
    pub(super) fn set(&mut self, range: Range<u64>) {
        if range.is_empty() || self.is_lost {
            return;
        }
        let (mut bit, last) = (range.start >> self.granularity_bits, (range.end - 1) >> self.granularity_bits);
        let per_page = self.page_bytes as u64 * 8;
        while bit <= last {
            let page = bit / per_page;
            if (self.pages.len() + 1) * self.page_bytes > MAX_BYTES && !self.pages.contains_key(&page) {
                tracing::warn!(name = self.name, "a bitmap has changed too much to be kept up to date");
                self.is_lost = true;
                self.pages.clear();
                return;
            }
            let end = last.min((page + 1) * per_page - 1);
            let bytes = self.page(page);
            set_bits(bytes, bit % per_page, end % per_page);
            bit = end + 1;
        }
    }

    /// The bits of a page, none of them set if it is new.
    pub(super) fn page(&mut self, number: u64) -> &mut [u8] {
        self.pages.entry(number).or_insert_with(|| vec![0; self.page_bytes].into_boxed_slice())
    }
}

/// Sets bits `first` to `last`; the lowest bit of a byte comes first.
fn set_bits(bytes: &mut [u8], first: u64, last: u64) {
    let (from, to) = ((first / 8) as usize, (last / 8) as usize);
    let (head, tail) = (0xff << (first % 8), 0xff >> (7 - last % 8));
    match bytes.get_mut(from..=to) {
        None => {}
        Some([only]) => *only |= head & tail,
        Some([start, middle @ .., end]) => {
            *start |= head;
            middle.fill(0xff);
            *end |= tail;
        }
        Some([]) => {}
    }
}

impl Tracking {
    /// Notes that a range of the disk is written to.
    pub(in crate::qcow2) fn note(&self, range: Range<u64>) {
        if !self.is_following.load(Ordering::Acquire) {
            return;
        }
        for tracked in self.lock().iter_mut().filter(|tracked| tracked.follows) {
            tracked.set(range.clone());
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<Tracked>> {
        self.bitmaps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up what has changed among the tracked bitmaps.
    pub(super) fn refresh(&self) {
        self.is_following.store(self.lock().iter().any(|tracked| tracked.follows), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_the_disk_become_ranges_of_bits_over_bytes_and_pages() {
        let mut tracked = Tracked::new("x", 9, true, 512);
        tracked.set(512..513);
        tracked.set(512 * 7..512 * 18 + 1);
        // The last bit of the first page and the first two of the second.
        tracked.set(512 * 4095..512 * 4098);
        tracked.set(5..5);
        let first = &tracked.pages[&0];
        assert_eq!((first[0], first[1], first[2], first[3]), (0b1000_0010, 0xff, 0b111, 0));
        assert_eq!((first[511], tracked.pages[&1][0], tracked.pages.len()), (0x80, 0b11, 2));
    }
}
