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
//! dirty bit is set. Filled slots are logged, so that a flush costs what has been filled, not what could be.

use super::PAGE_MASK;
use crate::guest::x86::access::last_page;
use crate::guest::x86::cpu::Cpu;
use std::mem::offset_of;

/// Entries of a table.
pub(crate) const ENTRIES: usize = 1024;
/// A tag that no page has: its low bits are not zero.
const NO_PAGE: u64 = 1;
/// Beyond this many fills a flush clears everything.
const LOG_LIMIT: usize = 512;

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
    /// Slots filled since the last flush: class in the upper bits, index in the lower ten.
    filled: Vec<u16>,
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
            filled: Vec::with_capacity(LOG_LIMIT),
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
    pub fn fill_read(&mut self, class: u8, linear: u64, page: *const u8) {
        self.log(class, linear);
        self.classes[usize::from(class) % class::COUNT].read[slot(linear)] = entry(linear, page);
    }

    /// Enters the page of `linear` for writing.
    pub fn fill_write(&mut self, class: u8, linear: u64, page: *const u8) {
        self.log(class, linear);
        self.classes[usize::from(class) % class::COUNT].write[slot(linear)] = entry(linear, page);
    }

    fn log(&mut self, class: u8, linear: u64) {
        if self.filled.len() < LOG_LIMIT {
            self.filled.push(u16::from(class) << 10 | slot(linear) as u16);
        }
    }

    /// Forgets everything.
    pub fn flush(&mut self) {
        if self.filled.len() < LOG_LIMIT {
            for &at in &self.filled {
                let class = &mut self.classes[usize::from(at >> 10) % class::COUNT];
                let slot = usize::from(at) % ENTRIES;
                class.read[slot] = EMPTY;
                class.write[slot] = EMPTY;
            }
        } else {
            for class in &mut self.classes {
                class.read.fill(EMPTY);
                class.write.fill(EMPTY);
            }
        }
        self.filled.clear();
    }

    /// Forgets the page of `linear` (INVLPG).
    pub fn flush_page(&mut self, linear: u64) {
        for class in &mut self.classes {
            class.read[slot(linear)] = EMPTY;
            class.write[slot(linear)] = EMPTY;
        }
    }

    /// Forgets all write entries that lead to the host page at `page`: it has become code.
    pub fn revoke_writes(&mut self, page: *const u8) {
        for class in &mut self.classes {
            for entry in &mut class.write {
                if entry.tag != NO_PAGE && entry.tag.wrapping_add(entry.addend) == page as u64 {
                    *entry = EMPTY;
                }
            }
        }
    }
}

#[inline(always)]
fn slot(linear: u64) -> usize {
    (linear >> 12) as usize % ENTRIES
}

fn entry(linear: u64, page: *const u8) -> TlbEntry {
    let tag = linear & PAGE_MASK;
    TlbEntry { tag, addend: (page as u64).wrapping_sub(tag) }
}
