//! Virtual disks on host files.
//!
//! A disk is a [`DiskImage`]: so many bytes by position. [`open`] gives one from a file of any format in
//! `formats.rs`; [`create`] makes a new file. Formats touch files only through [`BlockFile`], so that tests can
//! crash and fail between any two operations; `FencedFile` in between turns host errors into [`DiskError`] and
//! lets no write pass after a failed flush.
//!
//! ```text
//!  device thread ─► dyn DiskImage: raw · iso · qcow2 · … ─► FencedFile ─► dyn BlockFile: HostFile (or SimFile in tests)
//!                                     └─ backing: another DiskImage, read-only
//! ```
//!
//! What this crate is not: it knows no sectors, controllers, CD commands or guest file systems, and starts no
//! threads. All image content is treated as hostile: no panic, no unbounded loop or allocation follows from it.
//! Never is a format guessed for a file that a guest could have written and can write again.
//!
//! Start at `image.rs` and `open.rs`; the interesting part is `qcow2/`, whose `mod.rs` tells the write ordering. VDI, VHD,
//! VHDX and sparse VMDK share `block_table/`, and what makes differencing disks of them `parent.rs`.

#![forbid(unsafe_code)]

mod block_file;
mod block_table;
mod check;
mod direct_io;
mod error;
mod fenced_file;
mod fields;
mod flat;
mod formats;
#[cfg(test)]
mod fuzz_tests;
mod host_file;
#[cfg(test)]
mod hostile_tests;
mod image;
mod image_info;
mod iso;
mod iso_volume;
mod luks;
mod open;
mod overlay;
mod parent;
mod probe;
mod qcow2;
mod raw;
#[cfg(any(test, feature = "simulation"))]
mod sim_file;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;
mod write_through;

pub use block_file::{Access, BlockFile, FileIdentity};
pub use check::{CheckReport, Repair, check};
pub use error::DiskError;
pub use formats::{Format, UnknownFormat};
pub use host_file::HostFile;
pub use image::{DiskImage, Extent, ExtentKind};
pub use image_info::{Amendment, BackingInfo, BitmapInfo, Bitmaps, Identity, ImageInfo, InfoValue, NewSnapshot, SnapshotInfo};
pub use iso_volume::{BootEntry, BootPlatform, GuestArch, GuestFamily, GuestGuess, VolumeDescription, describe_iso};
pub use luks::{KeyChange, Passphrase};
pub use open::{
    Backing, BackingFiles, CacheMode, CreateOptions, Flushing, HostCache, NewDataFile, OpenOptions, Preallocation, ProbedRaw,
    Sharing, create, create_over, open,
};
pub use probe::probe;
pub use qcow2::{Compression, Qcow2Options};
#[cfg(any(test, feature = "simulation"))]
pub use sim_file::{CrashImages, Fault, Operation, SimFile};
pub use vhdx::VhdxOptions;
pub use vmdk::{VmdkAdapter, VmdkKind, VmdkOptions};
