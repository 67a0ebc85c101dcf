//! A block file that says its errors in our words and is fenced after a failed flush.
//!
//! When `fdatasync` fails, the kernel may already have dropped the dirty pages, and asking again "succeeds" without
//! them. So the first failure closes the fence: from then on writes and flushes fail until the disk is opened again.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::DiskError;
use crate::block_file::{self, BlockFile};

/// See the file's story.
pub(crate) struct FencedFile {
    file: Arc<dyn BlockFile>,
    fenced: AtomicBool,
}

impl FencedFile {
    pub(crate) fn new(file: Arc<dyn BlockFile>) -> Self {
        Self { file, fenced: AtomicBool::new(false) }
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Refuses all further writes.
    pub(crate) fn fence(&self) {
        self.fenced.store(true, Ordering::Release);
    }

    /// Fails once the fence is closed.
    pub(crate) fn check_fence(&self) -> Result<(), DiskError> {
        if self.fenced.load(Ordering::Acquire) {
            return Err(DiskError::Fenced { path: self.path().to_path_buf() });
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> Result<u64, DiskError> {
        self.file.len().map_err(|source| self.error("look at", source))
    }

    /// Reads a range that must be there; the file may have been cut short under us.
    pub(crate) fn read_exact(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        block_file::read_exact(&*self.file, offset, buffer).map_err(|source| self.error("read", source))
    }

    /// Reads a range of which a tail may lie past the end; that tail is zeros. Returns how many bytes lie before it.
    pub(crate) fn read_zero_padded(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, DiskError> {
        block_file::read_zero_padded(&*self.file, offset, buffer).map_err(|source| self.error("read", source))
    }

    pub(crate) fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.check_fence()?;
        self.file.write_at(offset, data).map_err(|source| self.error("write", source))
    }

    pub(crate) fn flush(&self) -> Result<(), DiskError> {
        self.check_fence()?;
        self.file.flush().map_err(|source| {
            self.fence();
            self.error("flush", source)
        })
    }

    /// Sets the size; what is added is zeros.
    pub(crate) fn truncate(&self, size: u64) -> Result<(), DiskError> {
        self.check_fence()?;
        self.file.truncate(size).map_err(|source| self.error("resize", source))
    }

    /// Punches a hole; says whether the file system could.
    pub(crate) fn punch_hole(&self, offset: u64, length: u64) -> Result<bool, DiskError> {
        self.check_fence()?;
        match self.file.punch_hole(offset, length) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported) => Ok(false),
            Err(error) => Err(self.error("free space in", error)),
        }
    }

    /// Has the host set space aside; where it cannot, zeros are written. The range must hold nothing yet.
    pub(crate) fn allocate(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.check_fence()?;
        match self.file.allocate(offset, length) {
            Ok(()) => Ok(()),
            Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported) => self.write_zeros(offset, length),
            Err(error) => Err(self.error("set space aside in", error)),
        }
    }

    /// Writes zeros, really.
    pub(crate) fn write_zeros(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.check_fence()?;
        block_file::fill_with_zeros(&*self.file, offset, length).map_err(|source| self.error("write", source))
    }

    /// Makes the file at least so long; what is added reads as zeros.
    pub(crate) fn grow_to(&self, size: u64) -> Result<(), DiskError> {
        self.check_fence()?;
        if self.len()? >= size {
            return Ok(());
        }
        self.file.truncate(size).map_err(|source| self.error("grow", source))
    }

    pub(crate) fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>, DiskError> {
        self.file.next_data(offset).map_err(|source| self.error("look at", source))
    }

    fn error(&self, doing: &'static str, source: io::Error) -> DiskError {
        DiskError::host(doing, self.path(), source)
    }
}
