//! The first level of the software TLB: direct-mapped tables of (page tag, addend), apart for reading and writing and for each
//! class of access.
//!
//! Translated code probes these tables by itself, so their layout is a contract. A table is [`ENTRIES`] entries of 16 bytes; its
//! distance from the start of [`Cpu`] is [`read_table`] or [`write_table`] of the class, a constant. To access `size` bytes (at most
//! 4096) at the linear address `A`:
//! ```text
//! index = A >> 12 & 1023                     (as a byte distance: A >> 8 & 0x3ff0)
//! hit   = (A + size - 1) & !0xfff == table[index].tag         a crosser compares its second page and misses
//! host  = A + table[index].addend            (wrapping)
//! ```
//! A miss goes to `Cpu::read_slowly`, `Cpu::write_slowly` and their like. An entry may go (never change where it leads) at any call
//! into the CPU that can walk, write past the TLB, change the mode or poll; between two such calls it stays.
//!
//! An entry exists only for plain memory: devices, pages that hold decoded code (writes), watched pages (writes) and pages
//! with a breakpoint are never entered, so that their accesses take the slow path. A write entry exists only once the page's
//! dirty bit is set. Filled slots are logged, so that a flush costs what has been filled, not what could be; those of global pages
//! apart, which stay when another address space is entered.
//!
//! Two pages that are a multiple of 4 MiB apart want the same slot, and programs that use both in turn would miss all the time.
//! What the stub that refills the tables drives out of a slot it keeps among a few [victims](Tlb), where it looks first. They
//! are as true as the tables' entries, but not worth a log: whatever makes any entry go makes all of them go.

use super::PAGE_MASK;
use crate::guest::x86::access::last_page;
use crate::guest::x86::cpu::Cpu;
use std::mem::offset_of;

/// Entries of a table.
pub(crate) const ENTRIES: usize = 1024;
/// A tag that nothing is found by: bit 11 is in no page's address, and not among the low bits that a probe for aligned operands
/// compares as well.
const NO_PAGE: u64 = 1 << 11;
/// Victims of a table: so many for slots whose numbers have the same low bits.
const WAYS: usize = 2;
const SETS: usize = 8;
/// Beyond this many fills a flush clears everything.
const LOG_LIMIT: usize = 1024;
/// Sizes of pages larger than 4 KiB, as log2.
pub(crate) const LARGE_SHIFTS: [u8; 3] = [21, 22, 30];
/// Words of a set of large pages.
const LARGE_WORDS: usize = 16;

/// Classes of accesses: each sees the same page tables with other rights.
pub(crate) mod class {
    /// CPL 0–2, and implicit accesses; under SMAP with EFLAGS.AC clear.
    pub const SUPERVISOR: u8 = 0;
    /// CPL 3.
    pub const USER: u8 = 1;
    /// CPL 0–2 under SMAP with EFLAGS.AC set.
    pub const SUPERVISOR_AC: u8 = 2;
    /// CPL 3 with alignment checks on: never filled, so that every access is checked.
    pub const USER_ALIGNED: u8 = 3;
    pub const COUNT: usize = 4;
}

/// One page: its linear address, and what turns a linear address in it into a host address.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct TlbEntry {
    /// The page's linear address; low bits that are not zero mean that there is none.
    pub tag: u64,
    /// Host address minus linear address, wrapping.
    pub addend: u64,
}

/// What flushes need to know of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// It survives CR3 loads.
    pub global: bool,
    /// Log2 of its size in bytes.
    pub shift: u8,
}

const EMPTY: TlbEntry = TlbEntry { tag: NO_PAGE, addend: 0 };

/// The tables of one class.
#[repr(C)]
struct Class {
    read: [TlbEntry; ENTRIES],
    write: [TlbEntry; ENTRIES],
}

/// The TLB of one vCPU.
#[repr(C)]
pub(crate) struct Tlb {
    classes: [Class; class::COUNT],
    /// Slots filled since the last flush, but for those of global pages.
    local: Log,
    /// Slots filled with global pages since the last full flush.
    global: Log,
    /// Pages of 2 MiB, 4 MiB and 1 GiB of which a part may be entered, hashed by their number.
    large: [[u64; LARGE_WORDS]; LARGE_SHIFTS.len()],
    /// What has been driven out of its slot, by table. Translated code alone puts it there, and takes it back.
    victims: [[[TlbEntry; WAYS]; SETS]; 2 * class::COUNT],
    /// There may be any.
    has_victims: bool,
}

/// Slots: class in the upper bits, index in the lower ten.
#[repr(C)]
struct Log {
    slots: [u16; LOG_LIMIT],
    len: u32,
}

impl Log {
    fn new() -> Self {
        Self { slots: [0; LOG_LIMIT], len: 0 }
    }

    fn add(&mut self, class: u8, linear: u64) {
        if let Some(place) = self.slots.get_mut(self.len as usize) {
            *place = u16::from(class) << 10 | slot(linear) as u16;
            self.len += 1;
        }
    }

    /// Whether slots were filled that are not in it.
    fn is_full(&self) -> bool {
        self.len as usize >= LOG_LIMIT
    }

    fn filled(&self) -> &[u16] {
        &self.slots[..(self.len as usize).min(LOG_LIMIT)]
    }

    fn clear(&mut self) {
        self.len = 0;
    }
}

/// What code that is made at run time must know to fill the tables, besides [`read_table`] and [`write_table`].
pub(crate) mod layout {
    use super::{Class, LARGE_WORDS, Log, Tlb, TlbEntry, class};
    use std::mem::offset_of;
    /// From a class's table for reading to that for writing, and from there to the next class's.
    pub const TABLE_BYTES: usize = size_of::<Class>() / 2;
    pub const CLASSES: usize = class::COUNT;
    /// Most slots in a log; words.
    pub const LOG_LIMIT: usize = super::LOG_LIMIT;
    pub const LOG_LEN: usize = offset_of!(Log, len);
    /// Bits of each set of large pages, which lie side by side in the order of [`super::LARGE_SHIFTS`].
    pub const LARGE_BITS: usize = 64 * LARGE_WORDS;
    /// Distances from the start of [`Tlb`].
    pub const TABLES_AT: usize = offset_of!(Tlb, classes);
    pub const LOCAL_AT: usize = offset_of!(Tlb, local);
    pub const GLOBAL_AT: usize = offset_of!(Tlb, global);
    pub const LARGE_AT: usize = offset_of!(Tlb, large);
    /// Victims lie by table, in the tables' order, then by the low bits of the slot's number.
    pub const VICTIMS_AT: usize = offset_of!(Tlb, victims);
    pub const HAS_VICTIMS_AT: usize = offset_of!(Tlb, has_victims);
    pub const SETS: usize = super::SETS;
    pub const WAYS: usize = super::WAYS;
    pub const ENTRY_BYTES: usize = size_of::<TlbEntry>();
    /// What is in a slot's tag if no page is.
    pub const NO_PAGE: u64 = super::NO_PAGE;
    const _: () = assert!(offset_of!(Log, slots) == 0 && offset_of!(Class, read) == 0);
}

/// Distance in bytes from the start of [`Cpu`] to the table that reads of this class look at.
#[allow(dead_code, reason = "for the block translator")]
pub(crate) const fn read_table(class: u8) -> usize {
    offset_of!(Cpu, tlb) + offset_of!(Tlb, classes) + class as usize * size_of::<Class>() + offset_of!(Class, read)
}

/// The same for writes.
#[allow(dead_code, reason = "for the block translator")]
pub(crate) const fn write_table(class: u8) -> usize {
    offset_of!(Cpu, tlb) + offset_of!(Tlb, classes) + class as usize * size_of::<Class>() + offset_of!(Class, write)
}

impl Tlb {
    /// An empty TLB.
    pub fn new() -> Self {
        Self {
            classes: [const { Class { read: [EMPTY; ENTRIES], write: [EMPTY; ENTRIES] } }; class::COUNT],
            local: Log::new(),
            global: Log::new(),
            large: [[0; LARGE_WORDS]; LARGE_SHIFTS.len()],
            victims: [[[EMPTY; WAYS]; SETS]; 2 * class::COUNT],
            has_victims: false,
        }
    }

    fn forget_victims(&mut self) {
        if self.has_victims {
            self.victims = [[[EMPTY; WAYS]; SETS]; 2 * class::COUNT];
            self.has_victims = false;
        }
    }

    /// Where the host has `bytes` readable bytes at `linear`, if the page is entered and the access stays in it.
    #[inline(always)]
    pub fn read_pointer(&self, class: u8, linear: u64, bytes: u64) -> Option<*const u8> {
        let entry = &self.classes[usize::from(class) % class::COUNT].read[slot(linear)];
        (entry.tag == last_page(linear, bytes)).then(|| linear.wrapping_add(entry.addend) as *const u8)
    }

    /// Where the host has `bytes` writable bytes at `linear`.
    #[inline(always)]
    pub fn write_pointer(&self, class: u8, linear: u64, bytes: u64) -> Option<*mut u8> {
        let entry = &self.classes[usize::from(class) % class::COUNT].write[slot(linear)];
        (entry.tag == last_page(linear, bytes)).then(|| linear.wrapping_add(entry.addend) as *mut u8)
    }

    /// Enters the page of `linear` for reading; `page` is the host address of its first byte.
    pub fn fill_read(&mut self, class: u8, linear: u64, page: *const u8, extent: Extent) {
        self.log(class, linear, extent);
        self.classes[usize::from(class) % class::COUNT].read[slot(linear)] = entry(linear, page);
    }

    /// Enters the page of `linear` for writing.
    pub fn fill_write(&mut self, class: u8, linear: u64, page: *const u8, extent: Extent) {
        self.log(class, linear, extent);
        self.classes[usize::from(class) % class::COUNT].write[slot(linear)] = entry(linear, page);
    }

    fn log(&mut self, class: u8, linear: u64, extent: Extent) {
        if extent.global { &mut self.global } else { &mut self.local }.add(class, linear);
        if let Some(size) = LARGE_SHIFTS.iter().position(|shift| *shift == extent.shift) {
            let (word, bit) = large_bit(linear, extent.shift);
            self.large[size][word] |= bit;
        }
    }

    /// Forgets everything.
    pub fn flush(&mut self) {
        self.flush_local();
        if self.global.is_full() {
            self.clear();
        } else {
            undo(&mut self.classes, &self.global);
        }
        self.global.clear();
        self.large = [[0; LARGE_WORDS]; LARGE_SHIFTS.len()];
    }

    /// Forgets everything but global pages.
    pub fn flush_local(&mut self) {
        self.forget_victims();
        if self.local.is_full() {
            self.clear();
        } else {
            undo(&mut self.classes, &self.local);
        }
        self.local.clear();
    }

    fn clear(&mut self) {
        for class in &mut self.classes[..usize::from(class::USER_ALIGNED)] {
            class.read.fill(EMPTY);
            class.write.fill(EMPTY);
        }
        self.global.clear();
        self.large = [[0; LARGE_WORDS]; LARGE_SHIFTS.len()];
    }

    /// Forgets the page of `linear` (INVLPG): all parts of it, should it be a large one.
    pub fn flush_page(&mut self, linear: u64) {
        self.forget_victims();
        for class in &mut self.classes {
            class.read[slot(linear)] = EMPTY;
            class.write[slot(linear)] = EMPTY;
        }
        for (size, shift) in LARGE_SHIFTS.into_iter().enumerate() {
            let (word, bit) = large_bit(linear, shift);
            if self.large[size][word] & bit != 0 {
                self.forget_parts(linear, shift);
            }
        }
    }

    /// Forgets all entries in the page of `1 << shift` bytes around `linear`.
    fn forget_parts(&mut self, linear: u64, shift: u8) {
        let first = linear >> shift << shift;
        for number in 0..ENTRIES.min(1 << (shift - 12)) as u64 {
            let slot = slot(first + (number << 12));
            for class in &mut self.classes {
                for entry in [&mut class.read[slot], &mut class.write[slot]] {
                    if (entry.tag ^ linear) >> shift == 0 {
                        *entry = EMPTY;
                    }
                }
            }
        }
    }

    /// Forgets all write entries that lead to the host page at `page`: it has become code.
    pub fn revoke_writes(&mut self, page: *const u8) {
        self.forget_victims();
        for class in &mut self.classes {
            for entry in &mut class.write {
                if entry.tag != NO_PAGE && entry.tag.wrapping_add(entry.addend) == page as u64 {
                    *entry = EMPTY;
                }
            }
        }
    }
}

fn undo(classes: &mut [Class; class::COUNT], log: &Log) {
    for &at in log.filled() {
        let class = &mut classes[usize::from(at >> 10) % class::COUNT];
        let slot = usize::from(at) % ENTRIES;
        class.read[slot] = EMPTY;
        class.write[slot] = EMPTY;
    }
}

/// Where the sets of large pages have the one of `linear`.
fn large_bit(linear: u64, shift: u8) -> (usize, u64) {
    let number = linear >> shift;
    let hash = (number ^ number >> 10) as usize % (64 * LARGE_WORDS);
    (hash / 64, 1 << (hash % 64))
}

#[inline(always)]
fn slot(linear: u64) -> usize {
    (linear >> 12) as usize % ENTRIES
}

fn entry(linear: u64, page: *const u8) -> TlbEntry {
    let tag = linear & PAGE_MASK;
    TlbEntry { tag, addend: (page as u64).wrapping_sub(tag) }
}

#[cfg(test)]
mod tests {
    use super::class::{SUPERVISOR, USER};
    use super::*;

    const LOCAL: Extent = Extent { global: false, shift: 12 };
    const GLOBAL: Extent = Extent { global: true, shift: 12 };
    const HOST: *const u8 = std::ptr::without_provenance(0x7000_0000_0000);

    #[test]
    fn the_tables_lie_where_translated_code_looks() {
        let tlb = Box::new(Tlb::new());
        let base = (&raw const *tlb).addr();
        for class in 0..class::COUNT as u8 {
            let tables = &tlb.classes[usize::from(class)];
            assert_eq!((&raw const tables.read).addr() - base, read_table(class) - offset_of!(Cpu, tlb));
            assert_eq!((&raw const tables.write).addr() - base, write_table(class) - offset_of!(Cpu, tlb));
        }
        assert_eq!((size_of::<TlbEntry>(), offset_of!(TlbEntry, addend)), (16, 8));
    }

    #[test]
    fn another_address_space_keeps_global_pages() {
        let mut tlb = Box::new(Tlb::new());
        tlb.fill_read(USER, 0x1000, HOST, LOCAL);
        tlb.fill_write(SUPERVISOR, 0xffff_8000_0000_2000, HOST, GLOBAL);
        tlb.flush_local();
        assert!(tlb.read_pointer(USER, 0x1000, 1).is_none());
        assert!(tlb.write_pointer(SUPERVISOR, 0xffff_8000_0000_2ff8, 8).is_some());
        assert!(tlb.write_pointer(SUPERVISOR, 0xffff_8000_0000_2ff9, 8).is_none(), "it crosses");
        tlb.flush();
        assert!(tlb.write_pointer(SUPERVISOR, 0xffff_8000_0000_2ff8, 8).is_none());
    }

    #[test]
    fn a_local_page_in_the_slot_of_a_global_one_goes() {
        let mut tlb = Box::new(Tlb::new());
        tlb.fill_read(SUPERVISOR, 0x1000, HOST, GLOBAL);
        tlb.fill_read(SUPERVISOR, 0x40_1000, HOST, LOCAL);
        tlb.flush_local();
        assert!(tlb.read_pointer(SUPERVISOR, 0x40_1000, 1).is_none());
    }

    #[test]
    fn more_pages_than_the_log_holds_are_all_forgotten() {
        for extent in [LOCAL, GLOBAL] {
            let mut tlb = Box::new(Tlb::new());
            let pages = || (0..1500u64).map(|number| (if number < 750 { USER } else { SUPERVISOR }, number << 12));
            pages().for_each(|(class, linear)| tlb.fill_read(class, linear, HOST, extent));
            tlb.flush();
            assert!(pages().all(|(class, linear)| tlb.read_pointer(class, linear, 1).is_none()));
        }
    }

    #[test]
    fn all_parts_of_a_large_page_go_together() {
        let mut tlb = Box::new(Tlb::new());
        let large = Extent { global: false, shift: 21 };
        tlb.fill_read(USER, 0x20_3000, HOST, large);
        tlb.fill_read(USER, 0x80_0000, HOST, LOCAL);
        tlb.flush_page(0x80_0000);
        assert!(tlb.read_pointer(USER, 0x20_3000, 1).is_some());
        tlb.fill_read(USER, 0x40_4000, HOST, LOCAL);
        tlb.flush_page(0x3f_f000);
        assert!(tlb.read_pointer(USER, 0x20_3000, 1).is_none());
        assert!(tlb.read_pointer(USER, 0x40_4000, 1).is_some(), "its neighbour stays");
        for shift in [22, 30] {
            let (start, end) =
                (0x40_4040_0000u64 >> shift << shift, (0x40_4040_0000u64 >> shift << shift) + (1 << shift) - 0x1000);
            tlb.fill_write(SUPERVISOR, start + 0x5000, HOST, Extent { global: true, shift });
            tlb.flush_page(end);
            assert!(tlb.write_pointer(SUPERVISOR, start + 0x5000, 1).is_none(), "pages of 1 << {shift}");
        }
    }

    #[test]
    fn no_probe_finds_an_empty_slot() {
        // What translated code compares: a page's address, and for operands of up to 64 bytes that must be aligned the bits
        // that must be zero.
        for page in [0, 1 << 12, 0xffff_8000_0000_0000] {
            assert!((0..64).all(|low| page | low != EMPTY.tag));
        }
    }

    #[test]
    fn a_page_that_became_code_is_not_written_past_the_slow_path() {
        let mut tlb = Box::new(Tlb::new());
        tlb.fill_write(USER, 0x5000, HOST, LOCAL);
        tlb.fill_write(SUPERVISOR, 0xffff_8000_0000_5000, HOST, GLOBAL);
        tlb.revoke_writes(HOST);
        assert!(tlb.write_pointer(USER, 0x5000, 1).is_none());
        assert!(tlb.write_pointer(SUPERVISOR, 0xffff_8000_0000_5000, 1).is_none());
    }
}
