//! A virtual disk as the machine sees it: so many bytes, read and written by position.
//!
//! Nothing here knows of sectors, controllers or file formats. All calls take `&self`, because several device
//! threads may work on one disk at once; an implementation does its own locking.

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
}

/// One virtual disk.
///
/// A range must lie inside `0..len()`; otherwise the call fails with [`DiskError::OutOfRange`] and changes nothing.
/// Any offset and length is allowed, whatever the format's block size. Where two calls overlap in time and place,
/// each 512-byte sector holds the result of one of them.
pub trait DiskImage: Send + Sync {
    /// Size of the disk in bytes, as the guest sees it. Never changes while the image is open.
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
}

/// Checks that `offset..offset+length` lies inside a disk of `size` bytes.
pub(crate) fn check_range(path: &std::path::Path, size: u64, offset: u64, length: u64) -> Result<(), DiskError> {
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(()),
        _ => Err(DiskError::OutOfRange { offset, length, size, path: path.to_path_buf() }),
    }
}
