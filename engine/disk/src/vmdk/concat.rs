//! Extents one behind the other, and what stands in for them: nothing but zeros, or a part of a base.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::block_file::Access;
use crate::fenced_file::FencedFile;
use crate::image::{DiskImage, Extent, ExtentKind, check_range};
use crate::image_info::ImageInfo;
use crate::open::{Backing, Preallocation};
use crate::parent::{Base, identify};
use crate::{DiskError, Format};

use super::descriptor::{Descriptor, Parent};
use super::{SECTOR, info, wrong};

/// Several images as one.
pub(super) struct Concat {
    /// Where each begins, and the image.
    parts: Vec<(u64, Arc<dyn DiskImage>)>,
    size: AtomicU64,
    grains: Vec<Option<u64>>,
    /// The descriptor, and the file that it is.
    descriptor: Mutex<Descriptor>,
    file: FencedFile,
    base: Base,
    /// Whether the descriptor says already that the content is another one than before the disk was opened.
    is_changed: AtomicBool,
    access: Access,
}

impl Concat {
    pub(super) fn new(
        parts: Vec<Arc<dyn DiskImage>>,
        grains: Vec<Option<u64>>,
        descriptor: Descriptor,
        base: Base,
        file: FencedFile,
        access: Access,
    ) -> Result<Self, DiskError> {
        let mut size = 0_u64;
        let mut placed = Vec::with_capacity(parts.len());
        for part in parts {
            let length = part.len();
            placed.push((size, part));
            size = size
                .checked_add(length)
                .filter(|size| *size <= i64::MAX as u64)
                .ok_or_else(|| wrong(&file, "its extents are too large together"))?;
        }
        let (size, descriptor, is_changed) = (AtomicU64::new(size), Mutex::new(descriptor), AtomicBool::new(false));
        Ok(Self { parts: placed, size, grains, descriptor, file, base, is_changed, access })
    }

    fn descriptor(&self) -> MutexGuard<'_, Descriptor> {
        self.descriptor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before the first change: may the disk be written to, and does its descriptor say that it is another one now?
    fn begin_change(&self) -> Result<(), DiskError> {
        if self.access == Access::ReadOnly {
            return Err(DiskError::ReadOnly { path: self.file.path().to_path_buf() });
        }
        if !self.is_changed.load(Ordering::Acquire) {
            let mut descriptor = self.descriptor();
            if !self.is_changed.load(Ordering::Acquire) {
                descriptor.begin_change(&self.file)?;
                self.is_changed.store(true, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Calls `visit` with each part that a range touches: the part, the position in it, and where in the range it lies.
    fn for_each(
        &self,
        offset: u64,
        length: u64,
        mut visit: impl FnMut(&dyn DiskImage, u64, std::ops::Range<usize>) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        check_range(self.file.path(), self.len(), offset, length)?;
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
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.for_each(offset, buffer.len() as u64, |part, at, range| part.read_at(at, &mut buffer[range]))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.begin_change()?;
        self.for_each(offset, data.len() as u64, |part, at, range| part.write_at(at, &data[range]))
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.parts.iter().try_for_each(|(_, part)| part.flush())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.begin_change()?;
        self.for_each(offset, length, |part, at, range| part.discard(at, range.len() as u64))
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.begin_change()?;
        self.for_each(offset, length, |part, at, range| part.write_zeroes(at, range.len() as u64))
    }

    fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn format(&self) -> Format {
        Format::Vmdk
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        check_range(self.file.path(), self.len(), offset, 0)?;
        let index = self.parts.partition_point(|(start, part)| start + part.len() <= offset);
        match self.parts.get(index) {
            // Its place is in another file than the one that is asked, so it is not told.
            Some((start, part)) => Ok(Extent { host_offset: None, ..part.extent_at(offset - start)? }),
            None => Ok(Extent::new(ExtentKind::Zero, self.len() - offset)),
        }
    }

    fn backing(&self) -> Option<Arc<dyn DiskImage>> {
        self.base.image().cloned()
    }

    fn info(&self) -> ImageInfo {
        let descriptor = self.descriptor();
        let extents: Vec<_> = descriptor.extents.iter().cloned().zip(self.grains.iter().copied()).collect();
        info(self.file.path(), &descriptor, &extents, false)
    }

    /// Only one flat extent can grow: its file first, which may be longer than the descriptor says.
    fn resize(&self, size: u64, preallocation: Preallocation) -> Result<(), DiskError> {
        self.begin_change()?;
        let [(_, part)] = self.parts.as_slice() else { return Err(self.cannot("change its size when it has several files")) };
        let mut descriptor = self.descriptor();
        descriptor.check_last_extent(&self.file, size / SECTOR)?;
        part.resize(size, preallocation)?;
        descriptor.set_last_extent(&self.file, size / SECTOR)?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    fn announce_change(&self) -> Result<(), DiskError> {
        self.begin_change()
    }

    fn set_backing(&self, backing: Option<&Backing>) -> Result<(), DiskError> {
        self.begin_change()?;
        if matches!(self.base, Base::None) {
            return Err(self.cannot("be put on another disk when it was not made on one"));
        }
        let parent = match backing {
            None => None,
            Some(backing) => {
                let (identity, _) = identify(self.file.path(), backing, Format::Vmdk)?;
                Some(Parent { cid: identity.content as u32, name: backing.name.clone() })
            }
        };
        self.flush()?;
        self.descriptor().set_parent(&self.file, parent)
    }
}

/// What shows of a disk behind an extent that does not begin where the disk does.
pub(super) struct Window {
    pub(super) image: Arc<dyn DiskImage>,
    pub(super) start: u64,
}

impl DiskImage for Window {
    fn len(&self) -> u64 {
        self.image.len().saturating_sub(self.start)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.image.read_at(self.start.saturating_add(offset), buffer)
    }

    fn write_at(&self, _offset: u64, _data: &[u8]) -> Result<(), DiskError> {
        Err(self.is_a_base())
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _length: u64) -> Result<(), DiskError> {
        Err(self.is_a_base())
    }

    fn write_zeroes(&self, _offset: u64, _length: u64) -> Result<(), DiskError> {
        Err(self.is_a_base())
    }

    fn read_only(&self) -> bool {
        true
    }

    fn format(&self) -> Format {
        Format::Vmdk
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        self.image.extent_at(self.start.saturating_add(offset))
    }
}

impl Window {
    fn is_a_base(&self) -> DiskError {
        DiskError::ReadOnly { path: PathBuf::from("(the base of an extent)") }
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
