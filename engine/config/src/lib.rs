//! The machine file `machine.ron` and only that: what a [`Machine`] is made of, reading it (also as older versions wrote
//! it), checking it, and writing it so that a crash leaves the old file or the new one, never half of one.
//!
//! ```text
//!   file ──load──► Machine ──check(host, folder)──► every problem at once, each with a path such as `disks[0].file`
//!                     └────save──► temporary file, fsync, rename, fsync of the folder
//! ```
//! It is *not* the list of machines (that is `session::library`) and opens no disks. All names in the file are relative
//! to the machine's folder, except media such as ISOs, which stay where the person keeps them.
//!
//! The file may come from a stranger: its size and its nesting are bounded, and unknown fields are refused by name.
//! Threads: none. Start at [`Machine`].
#![forbid(unsafe_code)]

mod check;
mod file;
mod host;
mod machine;

pub use check::{Problem, check, check_name, check_size};
pub use file::{CURRENT_VERSION, FileError, load, parse, save, to_ron};
pub use host::Host;
pub use machine::{Accelerator, Board, CdDrive, Disk, Firmware, FloppyDrive, Lifetime, Machine, VideoCard};
