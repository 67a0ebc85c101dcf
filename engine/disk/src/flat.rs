//! A stretch of a file that is a disk, byte for byte: what stands in front of a fixed VHD's footer, or in a flat extent
//! of a VMDK.

use crate::block_file::Access;
use crate::fenced_file::FencedFile;
use crate::image::{DiskImage, Extent, ExtentKind, check_range};
use crate::image_info::ImageInfo;
use crate::{DiskError, Format};

/// See the file's story.
pub(crate) struct Flat {
    pub(crate) file: FencedFile,
    pub(crate) access: Access,
    pub(crate) format: Format,
    /// Where in the file the disk begins.
    pub(crate) start: u64,
    pub(crate) size: u64,
    pub(crate) info: ImageInfo,
}

impl Flat {
    fn check_write(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        if self.access == Access::ReadOnly {
            return Err(DiskError::ReadOnly { path: self.file.path().to_path_buf() });
        }
        self.file.check_fence()?;
        check_range(self.file.path(), self.size, offset, length)
    }
}

impl DiskImage for Flat {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        check_range(self.file.path(), self.size, offset, buffer.len() as u64)?;
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
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        self.check_write(offset, length)?;
        if length == 0 || self.file.punch_hole(self.start + offset, length)? {
            return Ok(());
        }
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(ZEROS.len() as u64);
            self.file.write_at(self.start + offset + done, &ZEROS[..piece as usize])?;
            done += piece;
        }
        Ok(())
    }

    fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn format(&self) -> Format {
        self.format
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        check_range(self.file.path(), self.size, offset, 0)?;
        let (at, end) = (self.start + offset, self.start + self.size);
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
}
