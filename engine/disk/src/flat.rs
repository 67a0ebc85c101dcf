//! A stretch of a file that is a disk, byte for byte: what stands in front of a fixed VHD's footer, or in a flat extent
//! of a VMDK.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::block_file::Access;
use crate::fenced_file::FencedFile;
use crate::image::{DiskImage, Extent, ExtentKind, check_range};
use crate::image_info::ImageInfo;
use crate::open::Preallocation;
use crate::{DiskError, Format};

/// Makes the file one of a larger disk, crash or not: file, old size, new size.
type Grow = Box<dyn Fn(&FencedFile, u64, u64) -> Result<(), DiskError> + Send + Sync>;

/// See the file's story.
pub(crate) struct Flat {
    file: FencedFile,
    access: Access,
    format: Format,
    /// Where in the file the disk begins.
    start: u64,
    size: AtomicU64,
    info: ImageInfo,
    grow: Option<Grow>,
}

impl Flat {
    pub(crate) fn new(file: FencedFile, access: Access, format: Format, start: u64, size: u64, info: ImageInfo) -> Self {
        Self { file, access, format, start, size: AtomicU64::new(size), info, grow: None }
    }

    /// The same disk, which can grow.
    pub(crate) fn growing_by(
        self,
        grow: impl Fn(&FencedFile, u64, u64) -> Result<(), DiskError> + Send + Sync + 'static,
    ) -> Self {
        Self { grow: Some(Box::new(grow)), ..self }
    }

    fn check_write(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        if self.access == Access::ReadOnly {
            return Err(DiskError::ReadOnly { path: self.file.path().to_path_buf() });
        }
        self.file.check_fence()?;
        check_range(self.file.path(), self.len(), offset, length)
    }
}

impl DiskImage for Flat {
    fn len(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        check_range(self.file.path(), self.len(), offset, buffer.len() as u64)?;
        self.file.read_exact(self.start + offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.check_write(offset, data.len() as u64)?;
        self.file.write_at(self.start + offset, data)
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.access == Access::ReadOnly { Ok(()) } else { self.file.flush() }
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.check_write(offset, length)?;
        if length > 0 {
            // Where holes are impossible the content stays, which a discard allows.
            self.file.punch_hole(self.start + offset, length)?;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.check_write(offset, length)?;
        if length == 0 || self.file.punch_hole(self.start + offset, length)? {
            return Ok(());
        }
        self.file.write_zeros(self.start + offset, length)
    }

    fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn format(&self) -> Format {
        self.format
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        check_range(self.file.path(), self.len(), offset, 0)?;
        let (at, end) = (self.start + offset, self.start + self.len());
        let (kind, until) = match self.file.next_data(at)? {
            None => (ExtentKind::Zero, end),
            Some((start, _)) if start > at => (ExtentKind::Zero, start),
            Some((_, until)) => (ExtentKind::Data, until),
        };
        Ok(Extent { host_offset: Some(at), ..Extent::new(kind, until.min(end) - at) })
    }

    fn info(&self) -> ImageInfo {
        self.info.clone()
    }

    fn resize(&self, size: u64, preallocation: Preallocation) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        let refuse = |reason: &str| Err(DiskError::BadOptions { reason: reason.into(), path: self.file.path().to_path_buf() });
        let old = self.len();
        let Some(grow) = &self.grow else { return Err(self.cannot("change its size")) };
        if size < old {
            return refuse("A disk of this kind can grow but not shrink. Convert it to a smaller one");
        }
        if !size.is_multiple_of(512) || size > i64::MAX as u64 {
            return refuse("The size of a disk must be a multiple of 512 bytes, and no larger than a file can be");
        }
        if preallocation != Preallocation::Off {
            return refuse("A disk of this kind cannot set space aside while it grows");
        }
        if size > old {
            grow(&self.file, old, size)?;
            self.size.store(size, Ordering::Release);
        }
        Ok(())
    }
}
