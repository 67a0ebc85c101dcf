//! The software TLB: direct-mapped tables of (page tag, addend), apart for reading and writing and for each class of access.
//!
//! An entry exists only for plain memory: devices, pages that hold decoded code (writes), watched pages (writes) and pages
//! with a breakpoint are never entered, so that their accesses take the slow path. A write entry exists only once the page's
//! dirty bit is set. Filled slots are logged, so that a flush costs what has been filled, not what could be.

use super::PAGE_MASK;
use crate::guest::x86::access::last_page;

const ENTRIES: usize = 1024;
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
#[derive(Clone, Copy)]
struct Entry {
    tag: u64,
    addend: u64,
}

const EMPTY: Entry = Entry { tag: NO_PAGE, addend: 0 };

struct Class {
    read: [Entry; ENTRIES],
    write: [Entry; ENTRIES],
}

/// The TLB of one vCPU.
pub(crate) struct Tlb {
    classes: [Class; class::COUNT],
    /// Slots filled since the last flush: class in the upper bits, index in the lower ten.
    filled: Vec<u16>,
}

impl Tlb {
    /// An empty TLB.
    pub fn new() -> Box<Self> {
        Box::new(Self {
            classes: [const { Class { read: [EMPTY; ENTRIES], write: [EMPTY; ENTRIES] } }; class::COUNT],
            filled: Vec::with_capacity(LOG_LIMIT),
        })
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

fn entry(linear: u64, page: *const u8) -> Entry {
    let tag = linear & PAGE_MASK;
    Entry { tag, addend: (page as u64).wrapping_sub(tag) }
}
