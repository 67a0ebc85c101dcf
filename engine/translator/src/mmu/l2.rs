//! The second level of the software TLB: what page walks have found, by linear address and address-space context. It refills the
//! first level (`tlb.rs`), whose entries are host addresses for one class of accesses, without a walk.
//!
//! A context is a number that is given out once. Each PCID has one; whoever invalidates a PCID gives it a new number, which makes all
//! of its entries unreachable at no further cost. Global pages have a context of their own, so they survive CR3 loads. Entries
//! keep the rights of the page, not those of an access: who asks decides (`walk.rs`).
//!
//! Pages of 4 KiB are in a set-associative table; larger ones in a table of their own by 2 MiB, each part of a page by itself, so that
//! INVLPG finds all of them. See: Intel SDM volume 3, 4.10.

use super::PAGE_MASK;
use std::mem::offset_of;

const SETS: usize = 1024;
const WAYS: usize = 4;
const LARGE: usize = 256;
const LARGE_SHIFT: u32 = 21;
const PCIDS: usize = 4096;
/// The number of no context.
const NEVER: u32 = 0;

/// What a walk found of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// Physical address of the 4 KiB page, before the A20 gate.
    pub physical: u64,
    /// Writable at all levels.
    pub writable: bool,
    /// A user page at all levels.
    pub user: bool,
    /// No fetches, at any level.
    pub no_execute: bool,
    /// Its dirty bit is set.
    pub dirty: bool,
    /// It survives CR3 loads.
    pub global: bool,
    /// Log2 of the page's size in bytes: 12, 21, 22, 30.
    pub shift: u8,
}

/// Bits of an entry's rights.
pub(super) mod right {
    pub const USER: u8 = 1 << 0;
    pub const WRITABLE: u8 = 1 << 1;
    pub const DIRTY: u8 = 1 << 2;
    /// Those above.
    pub const MASK: u8 = 7;
    pub const NO_EXECUTE: u8 = 1 << 3;
    pub const GLOBAL: u8 = 1 << 4;
}

/// A page as the tables hold it. Code that is made at run time looks at them (see `refill.rs`), so the layout is a contract.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Entry {
    /// Address of the page, or of its part of 2 MiB.
    linear: u64,
    physical: u64,
    context: u32,
    /// See [`right`].
    rights: u8,
    shift: u8,
}

const EMPTY: Entry = Entry { linear: 1, physical: 0, context: NEVER, rights: right::NO_EXECUTE, shift: 12 };

impl Entry {
    fn new(linear: u64, context: u32, leaf: Leaf) -> Self {
        let Leaf { physical, writable, user, no_execute, dirty, global, shift } = leaf;
        let bit = |is: bool, bit: u8| if is { bit } else { 0 };
        let rights = bit(user, right::USER)
            | bit(writable, right::WRITABLE)
            | bit(dirty, right::DIRTY)
            | bit(no_execute, right::NO_EXECUTE)
            | bit(global, right::GLOBAL);
        Self { linear, physical, context, rights, shift }
    }

    #[inline]
    fn leaf(&self) -> Leaf {
        leaf(self.physical, self.rights, self.shift)
    }
}

/// What is known of a page with these rights.
#[inline]
pub(super) const fn leaf(physical: u64, rights: u8, shift: u8) -> Leaf {
    Leaf {
        physical,
        writable: rights & right::WRITABLE != 0,
        user: rights & right::USER != 0,
        no_execute: rights & right::NO_EXECUTE != 0,
        dirty: rights & right::DIRTY != 0,
        global: rights & right::GLOBAL != 0,
        shift,
    }
}

/// The second-level TLB of one vCPU.
pub(crate) struct SecondLevel {
    sets: Box<[[Entry; WAYS]; SETS]>,
    /// Which way of a set goes next.
    victim: u8,
    large: Box<[Entry; LARGE]>,
    /// The context of each PCID; numbers below `oldest` are not valid any more.
    pcids: Box<[u32]>,
    oldest: u32,
    next: u32,
    /// The context of the PCID that is in use.
    current: u32,
    global: u32,
    /// A page of more than 4 MiB may be in `large`.
    has_huge: bool,
}

/// What code that is made at run time must know of the tables. A set is found by bits 12 and up of an address, each bit
/// exclusive-or the one ten above it; a large page by bits [`LARGE_SHIFT`] and up. An entry holds if its context is the current
/// one or the global one.
pub(crate) mod layout {
    use super::*;
    pub const SETS: usize = super::SETS;
    pub const WAYS: usize = super::WAYS;
    pub const LARGE: usize = super::LARGE;
    pub const LARGE_SHIFT: u8 = super::LARGE_SHIFT as u8;
    pub const ENTRY_BYTES: usize = size_of::<Entry>();
    pub const LINEAR: usize = offset_of!(Entry, linear);
    pub const PHYSICAL: usize = offset_of!(Entry, physical);
    pub const CONTEXT: usize = offset_of!(Entry, context);
    pub const RIGHTS: usize = offset_of!(Entry, rights);
    pub const SHIFT: usize = offset_of!(Entry, shift);
    /// Distances from the start of [`SecondLevel`]: pointers to the tables, numbers of the contexts.
    pub const SETS_AT: usize = offset_of!(SecondLevel, sets);
    pub const LARGE_AT: usize = offset_of!(SecondLevel, large);
    pub const CURRENT_AT: usize = offset_of!(SecondLevel, current);
    pub const GLOBAL_AT: usize = offset_of!(SecondLevel, global);
}

impl SecondLevel {
    /// Holds nothing; PCID 0 is in use.
    pub fn new() -> Self {
        let mut new = Self {
            sets: super::boxed([EMPTY; WAYS]),
            victim: 0,
            large: super::boxed(EMPTY),
            pcids: vec![NEVER; PCIDS].into(),
            oldest: 1,
            next: 1,
            current: NEVER,
            global: NEVER,
            has_huge: false,
        };
        new.forget_all(0);
        new
    }

    fn number(&mut self) -> u32 {
        let number = self.next;
        match number.checked_add(1) {
            Some(next) => self.next = next,
            None => {
                // All numbers have been used: begin again with empty tables.
                self.sets.fill([EMPTY; WAYS]);
                self.large.fill(EMPTY);
                self.pcids.fill(NEVER);
                (self.oldest, self.next) = (1, 3);
                (self.global, self.current) = (1, 2);
                return 2;
            }
        }
        number
    }

    /// PCID `pcid` is in use from now on.
    pub fn enter(&mut self, pcid: u16) {
        let slot = usize::from(pcid) % PCIDS;
        if self.pcids[slot] < self.oldest {
            self.pcids[slot] = self.number();
        }
        self.current = self.pcids[slot];
    }

    /// The number of the context that is in use: never the same again once its pages have been forgotten.
    pub fn context(&self) -> u32 {
        self.current
    }

    /// Forgets a PCID's pages, but for the global ones. If it is in use, [`SecondLevel::enter`] must follow.
    pub fn forget(&mut self, pcid: u16) {
        self.pcids[usize::from(pcid) % PCIDS] = NEVER;
    }

    /// Forgets the pages of all PCIDs, but for the global ones; `pcid` is in use.
    pub fn forget_local(&mut self, pcid: u16) {
        self.oldest = self.next;
        self.enter(pcid);
    }

    /// Forgets everything; `pcid` is in use.
    pub fn forget_all(&mut self, pcid: u16) {
        self.global = self.number();
        self.has_huge = false;
        self.forget_local(pcid);
    }

    /// Forgets the page of `linear` in the PCID in use and among the global ones.
    pub fn forget_page(&mut self, linear: u64) {
        let context = self.current;
        self.forget_page_in(context, linear);
    }

    /// Forgets the page of `linear` in a PCID, and the global one.
    pub fn forget_page_of(&mut self, pcid: u16, linear: u64) {
        let context = self.pcids[usize::from(pcid) % PCIDS];
        self.forget_page_in(context, linear);
    }

    fn forget_page_in(&mut self, context: u32, linear: u64) {
        let global = self.global;
        let goes = |entry: &Entry| entry.context == context || entry.context == global;
        for entry in &mut self.sets[set(linear)] {
            if entry.linear == linear & PAGE_MASK && goes(entry) {
                entry.context = NEVER;
            }
        }
        let forget = |entry: &mut Entry| {
            // Pages of 4 MiB come in two parts.
            let shift = entry.shift.max(LARGE_SHIFT as u8);
            if (entry.linear ^ linear) >> shift == 0 && goes(entry) {
                entry.context = NEVER;
            }
        };
        if self.has_huge {
            self.large.iter_mut().for_each(forget);
        } else {
            for part in [linear, linear ^ 1 << LARGE_SHIFT] {
                forget(&mut self.large[large_slot(part)]);
            }
        }
    }

    /// The page of `linear` in the PCID in use, if it is here.
    #[inline]
    pub fn find(&self, linear: u64) -> Option<Leaf> {
        let valid = |entry: &Entry| entry.context == self.current || entry.context == self.global;
        for entry in &self.sets[set(linear)] {
            if entry.linear == linear & PAGE_MASK && valid(entry) {
                return Some(entry.leaf());
            }
        }
        let entry = &self.large[large_slot(linear)];
        if entry.linear >> LARGE_SHIFT == linear >> LARGE_SHIFT && valid(entry) {
            let inside = linear & ((1 << LARGE_SHIFT) - 1) & PAGE_MASK;
            return Some(Leaf { physical: entry.physical + inside, ..entry.leaf() });
        }
        None
    }

    /// Enters what a walk has found for `linear`.
    pub fn fill(&mut self, linear: u64, leaf: Leaf) {
        let context = if leaf.global { self.global } else { self.current };
        if leaf.shift >= LARGE_SHIFT as u8 {
            self.has_huge |= leaf.shift > 22;
            let inside = linear & ((1 << LARGE_SHIFT) - 1) & PAGE_MASK;
            let linear = linear >> LARGE_SHIFT << LARGE_SHIFT;
            let whole = Leaf { physical: leaf.physical - inside, ..leaf };
            self.large[large_slot(linear)] = Entry::new(linear, context, whole);
            return;
        }
        let entry = Entry::new(linear & PAGE_MASK, context, leaf);
        let (current, global) = (self.current, self.global);
        let ways = &mut self.sets[set(linear)];
        let same = ways.iter().position(|old| old.linear == entry.linear && (old.context == current || old.context == global));
        let way = same.unwrap_or_else(|| {
            self.victim = self.victim.wrapping_add(1);
            usize::from(self.victim) % WAYS
        });
        ways[way] = entry;
    }
}

fn set(linear: u64) -> usize {
    (linear >> 12 ^ linear >> 22) as usize % SETS
}

fn large_slot(linear: u64) -> usize {
    (linear >> LARGE_SHIFT) as usize % LARGE
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 0x7fff_1234_5000;

    fn leaf(physical: u64) -> Leaf {
        Leaf { physical, writable: true, user: true, no_execute: false, dirty: false, global: false, shift: 12 }
    }

    #[test]
    fn a_pcid_finds_its_own_pages_again() {
        let mut level = SecondLevel::new();
        level.fill(PAGE + 0x123, leaf(0x1000));
        level.enter(5);
        assert_eq!(level.find(PAGE), None);
        level.fill(PAGE, leaf(0x2000));
        level.enter(0);
        assert_eq!(level.find(PAGE + 0xfff), Some(leaf(0x1000)));
        level.forget(5);
        level.enter(5);
        assert_eq!(level.find(PAGE), None);
    }

    #[test]
    fn global_pages_survive_all_but_a_full_flush() {
        let mut level = SecondLevel::new();
        let global = Leaf { global: true, ..leaf(0x3000) };
        level.fill(PAGE, global);
        level.fill(PAGE + 0x1000, leaf(0x4000));
        level.forget_local(0);
        assert_eq!((level.find(PAGE), level.find(PAGE + 0x1000)), (Some(global), None));
        level.forget(0);
        level.enter(0);
        assert_eq!(level.find(PAGE), Some(global));
        level.forget_all(0);
        assert_eq!(level.find(PAGE), None);
    }

    #[test]
    fn one_page_is_forgotten_in_its_pcid_and_if_global() {
        let mut level = SecondLevel::new();
        level.fill(PAGE, leaf(0x1000));
        level.enter(1);
        level.fill(PAGE, leaf(0x2000));
        level.forget_page(PAGE + 8);
        assert_eq!(level.find(PAGE), None);
        level.enter(0);
        assert_eq!(level.find(PAGE), Some(leaf(0x1000)));
        level.fill(PAGE, Leaf { global: true, ..leaf(0x3000) });
        level.forget_page_of(1, PAGE);
        assert_eq!(level.find(PAGE), None);
    }

    #[test]
    fn all_parts_of_a_large_page_go_together() {
        for (shift, other) in [(21, 0x1f_f000), (22, 0x3f_f000), (30, 0x3fff_f000)] {
            let mut level = SecondLevel::new();
            let base = 0x40_0000_0000;
            level.fill(base, Leaf { shift, ..leaf(0x8000_0000) });
            level.fill(base + other, Leaf { shift, ..leaf(0x8000_0000 + other) });
            let found = level.find(base + other).expect("it was entered");
            assert_eq!(found.physical, 0x8000_0000 + other);
            level.forget_page(base + 0x5000);
            assert_eq!((level.find(base), level.find(base + other)), (None, None), "pages of 1 << {shift}");
        }
    }

    #[test]
    fn numbers_that_run_out_empty_the_tables() {
        let mut level = SecondLevel::new();
        level.next = u32::MAX - 1;
        level.forget_all(3);
        level.fill(PAGE, leaf(0x1000));
        for _ in 0..4 {
            level.forget(3);
            level.enter(3);
            assert_eq!(level.find(PAGE), None);
            level.fill(PAGE, leaf(0x1000));
            assert_eq!(level.find(PAGE), Some(leaf(0x1000)));
        }
    }
}
