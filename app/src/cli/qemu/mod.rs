//! `qemu-system-x86_64` in QEMU's own words: [`command_line`] turns its options into a [`command_line::Plan`], [`run`] carries
//! the plan out. Scripts written for QEMU run unchanged as far as the options go that we have; any other is an error that
//! names the nearest one known.

mod chardev;
pub mod command_line;
mod console;
mod drives;
#[cfg(test)]
mod fuzz_tests;
mod key_values;
mod kvm;
pub mod run;

pub use key_values::{flatten, nearest, size};
pub use kvm::why_not as why_not_kvm;
