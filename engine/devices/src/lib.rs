//! Every emulated part: one file each, one line each in [`registry`].
//!
//! It is *not* a machine: no file here knows which other parts a board has. A device takes wires, timers, drives and
//! memory access from its `Wiring`, answers through the faces of `engine_bus::Device`, and is driven alone by its own
//! unit tests (see `bench.rs`). `tests/every_device.rs` walks the registry: builds each, pokes at it at random, and
//! checks that save, restore and reset hold.
//!
//! Threads: none. Calls arrive on vCPU threads, on `vm-clock` (timers) and on workers (drives, character ports), each
//! under the device's own lock.
//!
//! Start at [`registry::MODELS`]; a small complete part to read first is `legacy/port92.rs`.
#![forbid(unsafe_code)]

pub mod registry;

pub mod chipset;
pub mod firmware;
pub mod input;
pub mod interrupt;
pub mod legacy;
pub mod serial;
pub mod storage;
pub mod time;
pub mod usb;
pub mod video;

#[cfg(test)]
mod bench;
mod fifo;
