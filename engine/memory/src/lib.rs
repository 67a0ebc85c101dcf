//! Guest-physical memory: blocks of host memory, the layout that maps physical addresses to them, and per-page flags
//! that say who touched what. Built on `vm-memory`'s mapped regions, whose generics stay inside this crate.
//!
//! It is *not* the bus: an address that no block answers is the router's business ([`GuestMemory::find`] says `None`).
//! Memory is copied in and out; no `&mut [u8]` of guest RAM is ever lent, because a vCPU may write it at any time.
//! Every write path — CPU slow path, DMA, loader — ends in [`PageState::note_write`], which honours the flags.
//!
//! Threads: none; everything may be called from any thread. Start at [`GuestMemory`]; CPU backends at [`GuestMemory::find`].

mod block;
mod guest_memory;
mod layout;
mod page;

pub use block::Block;
pub use guest_memory::{GuestMemory, MemoryError, NotRam};
pub use layout::{Contents, Layer, Place};
pub use page::{GRAIN_BYTES, PAGE_BYTES, PageFlags, PageState};
