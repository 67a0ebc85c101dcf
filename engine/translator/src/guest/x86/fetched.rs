//! From which pages instructions have been fetched: INVLPG of any other changes nothing for code.

/// Bits of a set of pages from which something has been fetched.
const FETCHED: usize = 1 << 15;
/// Log2 of the bytes of the smallest large pages.
const LARGE_SHIFT: u8 = 21;

/// A set of pages, hashed: it may take one for another.
pub(super) struct Fetched {
    /// Pages of 4 KiB, and of 2 MiB; those of 4 MiB are two.
    bits: Box<[u64]>,
    /// Nothing has been added.
    empty: bool,
    /// Some of them are larger than 4 MiB.
    huge: bool,
}

impl Default for Fetched {
    fn default() -> Self {
        Self { bits: vec![0; FETCHED / 64].into(), empty: true, huge: false }
    }
}

impl Fetched {
    fn bit(linear: u64, shift: u8) -> (usize, u64) {
        let bit = ((linear >> 12 ^ linear >> 27) >> (shift - 12)) as usize % FETCHED;
        (bit / 64, 1 << (bit % 64))
    }

    /// Adds the page of `1 << shift` bytes around `linear`.
    pub fn add(&mut self, linear: u64, shift: u8) {
        self.empty = false;
        let smallest = shift.min(LARGE_SHIFT);
        let other_part = if shift > LARGE_SHIFT { 1 << LARGE_SHIFT } else { 0 };
        for part in [linear, linear ^ other_part] {
            let (word, bit) = Self::bit(part, smallest);
            self.bits[word] |= bit;
        }
        self.huge |= shift > LARGE_SHIFT + 1;
    }

    /// Whether the page of `linear` may be in it, of whatever size.
    pub fn has(&self, linear: u64) -> bool {
        let known = |shift| {
            let (word, bit) = Self::bit(linear, shift);
            self.bits[word] & bit != 0
        };
        self.huge || known(12) || known(LARGE_SHIFT)
    }

    /// Makes it empty.
    pub fn clear(&mut self) {
        if !self.empty {
            self.bits.fill(0);
            (self.empty, self.huge) = (true, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fetched_pages_are_known_by_any_address_in_them_and_by_no_other() {
        for (shift, inside, outside) in [(12, 0xff8, 0x1000), (21, 0x1f_fff8, 0x20_0000), (22, 0x3f_fff8, 0x40_0000)] {
            let mut fetched = Fetched::default();
            let base = 0xffff_ffff_8100_0000;
            fetched.add(base + inside / 2, shift);
            assert!(fetched.has(base) && fetched.has(base + inside), "pages of 1 << {shift}");
            assert!(!fetched.has(base + outside) && !fetched.has(base - 8), "pages of 1 << {shift}");
            fetched.clear();
            assert!(!fetched.has(base));
        }
        let mut fetched = Fetched::default();
        fetched.add(0x4000_1000, 30);
        assert!(fetched.has(0x7fff_f000), "a page of 1 GiB");
    }
}
