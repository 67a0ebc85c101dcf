//! A virtual disk as the machine sees it: so many bytes, read and written by position.
//!
//! Nothing here knows of sectors, controllers or file formats. All calls take `&self`, because several device
//! threads may work on one disk at once; an implementation does its own locking. The first half of [`DiskImage`] is
//! what a machine needs; the second half is for tools, and every format answers it: with what it can, or else with
//! [`DiskError::NotPossible`].

use std::sync::Arc;

use crate::image_info::{Amendment, Bitmaps, ImageInfo, NewSnapshot, SnapshotInfo};
use crate::luks::KeyChange;
use crate::open::{Backing, Preallocation};
use crate::{DiskError, Format};

/// What [`DiskImage::extent_at`] says of a stretch of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Stored in this file (it may still happen to be zeros).
    Data,
    /// Known to read as zeros without reading it.
    Zero,
    /// Not stored here: the base image shows through.
    Backing,
}

/// A stretch of the disk that is all of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// What it is.
    pub kind: ExtentKind,
    /// How many bytes from the asked offset on; never 0 inside the disk.
    pub length: u64,
    /// Whether this layer has an entry for it, so that no base image shows through: true for all data, for zeros
    /// that were written or set aside, false for what was never written.
    pub present: bool,
    /// Where in the file the first of these bytes lies; the others follow it. `None` where they lie nowhere as they
    /// are, because they are zeros, compressed or encrypted.
    pub host_offset: Option<u64>,
    /// Whether they are stored compressed.
    pub compressed: bool,
}

impl Extent {
    /// An extent of which nothing more is known than its kind: data and zeros are present, the base's bytes are not.
    pub fn new(kind: ExtentKind, length: u64) -> Self {
        Self { kind, length, present: kind != ExtentKind::Backing, host_offset: None, compressed: false }
    }
}

/// One virtual disk.
///
/// A range must lie inside `0..len()`; otherwise the call fails with [`DiskError::OutOfRange`] and changes nothing.
/// Any offset and length is allowed, whatever the format's block size. Where two calls overlap in time and place,
/// each 512-byte sector holds the result of one of them.
pub trait DiskImage: Send + Sync {
    /// Size of the disk in bytes, as the guest sees it. Changes only by [`resize`](Self::resize).
    fn len(&self) -> u64;

    /// Whether the disk has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buffer` from `offset` on.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError>;

    /// Stores `data` from `offset` on. Durable only after a later [`flush`](Self::flush) has succeeded.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError>;

    /// Makes every write that has returned durable, and all that is needed to read it back.
    ///
    /// A failed flush is never retried as a success: the image then refuses writes until it is opened again.
    fn flush(&self) -> Result<(), DiskError>;

    /// Says that the guest no longer needs these bytes. What they read as afterwards is the old content or zeros.
    /// Parts smaller than the format's block are left alone.
    fn discard(&self, offset: u64, length: u64) -> Result<(), DiskError>;

    /// Makes these bytes read as zeros, giving space back to the host where that is possible.
    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DiskError>;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// The format of the file.
    fn format(&self) -> Format;

    /// What lies at `offset`, for copying, comparing and mapping without reading it all.
    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError>;

    /// What the person should know about this file although it could be opened. Whole sentences.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// The opened base image that shows through where this image has nothing.
    fn backing(&self) -> Option<Arc<dyn DiskImage>> {
        None
    }

    /// What the file says of itself, for people and scripts. Costs no reading.
    fn info(&self) -> ImageInfo {
        ImageInfo::default()
    }

    /// Stores whole clusters compressed where that makes them smaller. `offset` lies between clusters, and so does
    /// the end unless it is the disk's. Several threads may call this at once: they pack side by side.
    fn write_compressed(&self, _offset: u64, _data: &[u8]) -> Result<(), DiskError> {
        Err(self.cannot("store anything compressed"))
    }

    /// Changes the size of the disk, a multiple of 512 bytes. What is added reads as zeros, never as the base image;
    /// what is cut off is gone. Durable when it returns. The caller sees to it that nobody reads or writes meanwhile.
    fn resize(&self, _size: u64, _preallocation: Preallocation) -> Result<(), DiskError> {
        Err(self.cannot("change its size"))
    }

    /// The snapshots inside the file, oldest first.
    fn snapshots(&self) -> Vec<SnapshotInfo> {
        Vec::new()
    }

    /// Keeps the disk as it is now under a new snapshot inside the file. Durable when it returns.
    /// To read a snapshot, open the file with [`OpenOptions::internal_snapshot`](crate::OpenOptions::internal_snapshot).
    fn create_snapshot(&self, _snapshot: &NewSnapshot) -> Result<(), DiskError> {
        Err(self.cannot("keep snapshots"))
    }

    /// Makes the disk what it was when a snapshot was taken; what is on it now is lost unless another snapshot has it.
    /// `name` is a snapshot's id or, if none has that id, its name. The size may change with it.
    fn apply_snapshot(&self, _name: &str) -> Result<(), DiskError> {
        Err(self.cannot("keep snapshots"))
    }

    /// Forgets a snapshot, named as in [`apply_snapshot`](Self::apply_snapshot).
    fn delete_snapshot(&self, _name: &str) -> Result<(), DiskError> {
        Err(self.cannot("keep snapshots"))
    }

    /// Reads the machine state that belongs to the snapshot this image was opened at.
    fn read_vm_state(&self, _offset: u64, _buffer: &mut [u8]) -> Result<(), DiskError> {
        Err(self.cannot("keep the state of a machine"))
    }

    /// Writes a part of the machine state that the next snapshot is to keep; its maker says how long it is in all.
    fn write_vm_state(&self, _offset: u64, _data: &[u8]) -> Result<(), DiskError> {
        Err(self.cannot("keep the state of a machine"))
    }

    /// Does what the first write after opening does before it changes anything: the file says, durably, that its content is
    /// another one from now on (see [`Identity`](crate::Identity)). Who renews the link of a disk that is built on this one
    /// needs it before.
    fn announce_change(&self) -> Result<(), DiskError> {
        Ok(())
    }

    /// Writes another base image (or none) into the file. Nothing else changes, so the caller has made sure that the
    /// content stays right, or wants it so. The image that is open now keeps reading its old base until it is
    /// opened again.
    fn set_backing(&self, _backing: Option<&Backing>) -> Result<(), DiskError> {
        Err(self.cannot("be built on another disk"))
    }

    /// Changes what the file is without changing what is on the disk.
    fn amend(&self, _wanted: &Amendment) -> Result<(), DiskError> {
        Err(self.cannot("change its options"))
    }

    /// Changes which passphrases open an encrypted disk. What [`info`](Self::info) says of them follows when it is opened
    /// again. `force` also overwrites a passphrase, or erases the last one.
    fn change_keys(&self, _change: &KeyChange, _force: bool) -> Result<(), DiskError> {
        Err(self.cannot("have passphrases"))
    }

    /// The bitmaps of the file, if the format has such.
    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        None
    }

    /// The error for what this format does not have. `action` completes "A … disk cannot".
    fn cannot(&self, action: &'static str) -> DiskError {
        DiskError::NotPossible { title: self.format().driver().title, action }
    }
}

/// Checks that `offset..offset+length` lies inside a disk of `size` bytes.
pub(crate) fn check_range(path: &std::path::Path, size: u64, offset: u64, length: u64) -> Result<(), DiskError> {
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(()),
        _ => Err(DiskError::OutOfRange { offset, length, size, path: path.to_path_buf() }),
    }
}
