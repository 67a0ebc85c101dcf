//! From linear addresses to host memory: the software TLB's first level (`tlb.rs`) and second (`l2.rs`), the page walk
//! (`walk.rs`), what takes entries away again (`invalidate.rs`), and everything that is not a plain access to RAM (`slow.rs`).
//! Translated code refills the first level from the second by itself: `refill.rs` says from what.

mod invalidate;
mod l2;
pub(crate) mod refill;
mod slow;
mod tlb;
mod walk;

#[cfg(test)]
pub(crate) use l2::Leaf;
pub(crate) use l2::SecondLevel;
pub(crate) use slow::{PhysicalPage, PhysicalPages};
#[allow(unused_imports, reason = "the tables' places are for the block translator")]
pub(crate) use tlb::{ENTRIES, TlbEntry, read_table, write_table};
pub(crate) use tlb::{Extent, Tlb, class};
pub(crate) use walk::PHYSICAL_BITS;

/// Bits of an address above the page offset.
pub(crate) const PAGE_MASK: u64 = !0xfff;

/// A table of equal entries, made where it stays.
fn boxed<T: Clone, const COUNT: usize>(entry: T) -> Box<[T; COUNT]> {
    let Ok(table) = vec![entry; COUNT].into_boxed_slice().try_into() else { unreachable!("it has as many entries") };
    table
}

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Execute,
}
