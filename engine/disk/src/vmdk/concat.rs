//! Extents one behind the other, and extents that are nothing but zeros.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::block_file::Access;
use crate::image::{DiskImage, Extent, ExtentKind, check_range};
use crate::image_info::ImageInfo;
use crate::{DiskError, Format};

/// Several images as one.
pub(super) struct Concat {
    /// Where each begins, and the image.
    parts: Vec<(u64, Arc<dyn DiskImage>)>,
    size: u64,
    info: ImageInfo,
    path: PathBuf,
    access: Access,
}

impl Concat {
    pub(super) fn new(parts: Vec<Arc<dyn DiskImage>>, info: ImageInfo, path: &Path, access: Access) -> Result<Self, DiskError> {
        let mut size = 0_u64;
        let mut placed = Vec::with_capacity(parts.len());
        for part in parts {
            let length = part.len();
            placed.push((size, part));
            size = size.checked_add(length).filter(|size| *size <= i64::MAX as u64).ok_or_else(|| DiskError::WrongFormat {
                expected: Format::Vmdk.driver().title,
                detail: "its extents are too large together".into(),
                path: path.to_path_buf(),
            })?;
        }
        Ok(Self { parts: placed, size, info, path: path.to_path_buf(), access })
    }

    /// Calls `visit` with each part that a range touches: the part, the position in it, and where in the range it lies.
    fn for_each(
        &self,
        offset: u64,
        length: u64,
        mut visit: impl FnMut(&dyn DiskImage, u64, std::ops::Range<usize>) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        check_range(&self.path, self.size, offset, length)?;
        let end = offset + length;
        let first = self.parts.partition_point(|(start, part)| start + part.len() <= offset);
        for (start, part) in self.parts.iter().skip(first).take_while(|(start, _)| *start < end) {
            let (from, to) = (offset.max(*start), end.min(start + part.len()));
            if from < to {
                visit(&**part, from - start, (from - offset) as usize..(to - offset) as usize)?;
            }
        }
        Ok(())
    }
}

impl DiskImage for Concat {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.for_each(offset, buffer.len() as u64, |part, at, range| part.read_at(at, &mut buffer[range]))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.for_each(offset, data.len() as u64, |part, at, range| part.write_at(at, &data[range]))
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.parts.iter().try_for_each(|(_, part)| part.flush())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.for_each(offset, length, |part, at, range| part.discard(at, range.len() as u64))
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.for_each(offset, length, |part, at, range| part.write_zeroes(at, range.len() as u64))
    }

    fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn format(&self) -> Format {
        Format::Vmdk
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        check_range(&self.path, self.size, offset, 0)?;
        let index = self.parts.partition_point(|(start, part)| start + part.len() <= offset);
        match self.parts.get(index) {
            // Its place is in another file than the one that is asked, so it is not told.
            Some((start, part)) => Ok(Extent { host_offset: None, ..part.extent_at(offset - start)? }),
            None => Ok(Extent::new(ExtentKind::Zero, self.size - offset)),
        }
    }

    fn info(&self) -> ImageInfo {
        self.info.clone()
    }
}

/// An extent without a file: zeros, whatever is written.
pub(super) struct Zeros {
    pub(super) size: u64,
}

impl DiskImage for Zeros {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, _offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        buffer.fill(0);
        Ok(())
    }

    fn write_at(&self, _offset: u64, _data: &[u8]) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly { path: PathBuf::from("(an extent of zeros)") })
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _length: u64) -> Result<(), DiskError> {
        Ok(())
    }

    fn write_zeroes(&self, _offset: u64, _length: u64) -> Result<(), DiskError> {
        Ok(())
    }

    fn read_only(&self) -> bool {
        true
    }

    fn format(&self) -> Format {
        Format::Vmdk
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        Ok(Extent::new(ExtentKind::Zero, self.size.saturating_sub(offset)))
    }
}
