//! CD and DVD images: read-only media of 2,048-byte blocks. What is on them is told by `iso_volume.rs`.

use std::sync::Arc;

use crate::DiskError;
use crate::fenced_file::FencedFile;
use crate::formats::{Driver, Format, Opening};
use crate::image::{DiskImage, Extent, check_range};
use crate::iso_volume::{carries_descriptor, describe_iso};
use crate::raw::file_extent;

pub(crate) const DRIVER: Driver = Driver {
    format: Format::Iso,
    name: "iso",
    title: "CD or DVD image",
    recognise: carries_descriptor,
    open: |opening| Ok(Arc::new(Iso::open(opening)?)),
    create: None,
    check: None,
    writable: false,
    has_snapshots: false,
};

const BLOCK: u64 = 2048;

/// An open CD or DVD image.
struct Iso {
    file: FencedFile,
    size: u64,
    stored: u64,
    warnings: Vec<String>,
}

impl Iso {
    fn open(opening: Opening<'_>) -> Result<Self, DiskError> {
        // An unreadable description is no reason to refuse the medium: audio-like and UDF-only discs have none.
        let warnings =
            describe_iso(&*opening.file).ok().flatten().and_then(|volume| volume.shortfall_message()).into_iter().collect();
        let file = FencedFile::new(opening.file);
        let stored = file.len()?;
        if stored == 0 {
            return Err(DiskError::WrongFormat {
                expected: DRIVER.title,
                detail: "the file is empty; was its download finished?".into(),
                path: file.path().to_path_buf(),
            });
        }
        let size = stored.checked_next_multiple_of(BLOCK).unwrap_or(stored);
        Ok(Self { file, size, stored, warnings })
    }

    fn refuse(&self) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly { path: self.file.path().to_path_buf() })
    }
}

impl DiskImage for Iso {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        check_range(self.file.path(), self.size, offset, buffer.len() as u64)?;
        let stored = self.stored.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (inside, tail) = buffer.split_at_mut(stored);
        tail.fill(0);
        self.file.read_exact(offset, inside)
    }

    fn write_at(&self, _offset: u64, _data: &[u8]) -> Result<(), DiskError> {
        self.refuse()
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _length: u64) -> Result<(), DiskError> {
        self.refuse()
    }

    fn write_zeroes(&self, _offset: u64, _length: u64) -> Result<(), DiskError> {
        self.refuse()
    }

    fn read_only(&self) -> bool {
        true
    }

    fn format(&self) -> Format {
        Format::Iso
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        file_extent(&self.file, self.size, offset)
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }
}
