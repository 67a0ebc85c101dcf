//! From linear addresses to host memory: the software TLB (`tlb.rs`), the page walk (`walk.rs`) and everything that is
//! not a plain access to RAM (`slow.rs`).

mod slow;
mod tlb;
mod walk;

pub(crate) use slow::{PhysicalPage, PhysicalPages};
#[allow(unused_imports, reason = "the tables' places are for the block translator")]
pub(crate) use tlb::{ENTRIES, TlbEntry, read_table, write_table};
pub(crate) use tlb::{Tlb, class};
pub(crate) use walk::PHYSICAL_BITS;

/// Bits of an address above the page offset.
pub(crate) const PAGE_MASK: u64 = !0xfff;

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Execute,
}
