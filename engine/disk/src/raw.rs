//! Raw disks: byte n of the disk is byte n of the file.
//!
//! The disk's size is the file's, rounded up to a whole sector of zeros. Discarded and zeroed ranges become holes
//! where the host's file system can. When raw was only guessed (a command line without `format=`), the guest may not
//! write a first sector that would be taken for another format the next time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::block_file::Access;
use crate::fenced_file::FencedFile;
use crate::formats::{Driver, Format, Opening};
use crate::image::{DiskImage, Extent, ExtentKind, check_range};
use crate::open::{CreateOptions, Preallocation, set_space_aside};
use crate::probe::recognise;
use crate::{BlockFile, DiskError, ProbedRaw};

pub(crate) const DRIVER: Driver = Driver {
    format: Format::Raw,
    name: "raw",
    title: "raw disk",
    recognise: |_| false,
    open: |opening| Ok(Arc::new(Raw::open(opening)?)),
    create: Some(create),
    check: None,
    writable: true,
    has_snapshots: false,
};

const SECTOR: u64 = 512;

/// An open raw disk.
struct Raw {
    file: FencedFile,
    access: Access,
    first_sector: ProbedRaw,
    size: AtomicU64,
    /// Bytes that the file had when it was opened or resized; reads below it must find data.
    stored: AtomicU64,
}

impl Raw {
    fn open(opening: Opening<'_>) -> Result<Self, DiskError> {
        let file = FencedFile::new(opening.file);
        let stored = file.len()?;
        let size = stored.checked_next_multiple_of(SECTOR).unwrap_or(stored);
        let (size, stored) = (AtomicU64::new(size), AtomicU64::new(stored));
        Ok(Self { file, access: opening.access, first_sector: opening.first_sector, size, stored })
    }

    fn check_write(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        if self.access == Access::ReadOnly {
            return Err(DiskError::ReadOnly { path: self.file.path().to_path_buf() });
        }
        self.file.check_fence()?;
        check_range(self.file.path(), self.len(), offset, length)
    }

    /// Fails if `data` at `offset` would give the file another format's signature.
    fn check_first_sector(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        if self.first_sector != ProbedRaw::Guarded || offset >= SECTOR {
            return Ok(());
        }
        let mut head = [0; SECTOR as usize];
        self.file.read_zero_padded(0, &mut head)?;
        for (place, byte) in head.iter_mut().skip(offset as usize).zip(data) {
            *place = *byte;
        }
        match recognise(&head) {
            None => Ok(()),
            Some(format) => {
                Err(DiskError::WouldChangeFormat { looks_like: format.driver().title, path: self.file.path().to_path_buf() })
            }
        }
    }
}

impl DiskImage for Raw {
    fn len(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        check_range(self.file.path(), self.len(), offset, buffer.len() as u64)?;
        // Only the tail of the last sector may be missing; more means that somebody cut the file.
        let stored = self.stored.load(Ordering::Acquire).saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (inside, tail) = buffer.split_at_mut(stored);
        self.file.read_exact(offset, inside)?;
        if !tail.is_empty() {
            self.file.read_zero_padded(offset + stored as u64, tail)?;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.check_write(offset, data.len() as u64)?;
        self.check_first_sector(offset, data)?;
        self.file.write_at(offset, data)
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.access == Access::ReadOnly { Ok(()) } else { self.file.flush() }
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.check_write(offset, length)?;
        if length > 0 {
            // Where holes are impossible the content stays, which a discard allows.
            self.file.punch_hole(offset, length)?;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.check_write(offset, length)?;
        if length == 0 || self.file.punch_hole(offset, length)? {
            return Ok(());
        }
        self.file.write_zeros(offset, length)
    }

    fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn format(&self) -> Format {
        Format::Raw
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        file_extent(&self.file, self.len(), offset)
    }

    fn resize(&self, size: u64, preallocation: Preallocation) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        let refuse = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: self.file.path().to_path_buf() };
        if !size.is_multiple_of(SECTOR) || size > i64::MAX as u64 {
            return Err(refuse("The size of a disk must be a multiple of 512 bytes, and no larger than a file can be"));
        }
        if preallocation == Preallocation::Metadata {
            return Err(refuse(NO_METADATA));
        }
        let old = self.file.len()?;
        // The size changes in one step, before any space is set aside, so that a crash leaves the old one or the new one.
        self.file.truncate(size)?;
        if size > old {
            let set_aside = match preallocation {
                Preallocation::Off | Preallocation::Metadata => Ok(()),
                Preallocation::Falloc => self.file.allocate(old, size - old),
                Preallocation::Full => self.file.write_zeros(old, size - old),
            };
            if let Err(error) = set_aside {
                self.file.truncate(old)?;
                return Err(error);
            }
        }
        self.size.store(size, Ordering::Release);
        self.stored.store(size, Ordering::Release);
        self.file.flush()
    }
}

/// An extent of a disk whose bytes lie one after the other in `file`.
pub(crate) fn file_extent(file: &FencedFile, size: u64, offset: u64) -> Result<Extent, DiskError> {
    check_range(file.path(), size, offset, 0)?;
    let (kind, end) = match file.next_data(offset)? {
        None => (ExtentKind::Zero, size),
        Some((start, _)) if start > offset => (ExtentKind::Zero, start),
        Some((_, end)) => (ExtentKind::Data, end),
    };
    let length = end.min(size).saturating_sub(offset);
    Ok(Extent { host_offset: Some(offset), ..Extent::new(kind, length) })
}

const NO_METADATA: &str = "A raw disk has no metadata to set aside. Use off, falloc or full";

fn create(file: &dyn BlockFile, options: &CreateOptions) -> Result<(), DiskError> {
    let refuse = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: file.path().to_path_buf() };
    if options.backing.is_some() {
        return Err(refuse("A raw disk cannot be built on another file. Use qcow2 for that"));
    }
    if options.preallocation == Preallocation::Metadata {
        return Err(refuse(NO_METADATA));
    }
    file.truncate(options.size).map_err(|source| DiskError::host("create", file.path(), source))?;
    set_space_aside(file, 0, options.size, options.preallocation)
}

#[cfg(test)]
mod tests {
    use crate::{
        Access, CreateOptions, DiskError, DiskImage, ExtentKind, Format, OpenOptions, Preallocation, ProbedRaw, create, open,
    };
    use std::path::PathBuf;
    use std::sync::Arc;

    fn disk_of(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        std::fs::write(&path, content).unwrap();
        (folder, path)
    }

    fn open_raw(path: &std::path::Path) -> Arc<dyn DiskImage> {
        open(&OpenOptions { format: Some(Format::Raw), ..OpenOptions::new(path) }).unwrap()
    }

    #[test]
    fn what_is_written_is_read_back_and_stays_after_reopening() {
        let (_folder, path) = disk_of(&[0; 8192]);
        let disk = open_raw(&path);
        disk.write_at(1000, b"hello").unwrap();
        disk.flush().unwrap();
        drop(disk);
        let mut buffer = [0; 7];
        open_raw(&path).read_at(999, &mut buffer).unwrap();
        assert_eq!(&buffer, b"\0hello\0");
    }

    #[test]
    fn a_raw_disk_grows_with_zeros_and_shrinks_and_says_what_it_cannot() {
        let (_folder, path) = disk_of(&[9; 700]);
        let disk = open_raw(&path);
        for (size, mode) in [(4096, Preallocation::Off), (1 << 20, Preallocation::Falloc), (2 << 20, Preallocation::Full)] {
            disk.resize(size, mode).unwrap();
            assert_eq!((disk.len(), std::fs::metadata(&path).unwrap().len()), (size, size));
        }
        let mut content = vec![1; 2 << 20];
        disk.read_at(0, &mut content).unwrap();
        assert!(content[..700] == [9; 700] && content[700..].iter().all(|byte| *byte == 0));
        disk.resize(512, Preallocation::Off).unwrap();
        assert!(disk.read_at(512, &mut [0]).is_err());
        assert!(matches!(disk.resize(1024, Preallocation::Metadata), Err(DiskError::BadOptions { .. })));
        assert!(matches!(disk.resize(100, Preallocation::Off), Err(DiskError::BadOptions { .. })));
        assert_eq!(disk.len(), 512);
        drop(disk);
        assert_eq!(open_raw(&path).len(), 512);
    }

    #[test]
    fn a_size_that_is_no_whole_sector_is_rounded_up_with_zeros() {
        let (_folder, path) = disk_of(&[9; 700]);
        let disk = open_raw(&path);
        assert_eq!(disk.len(), 1024);
        let mut last = [1; 512];
        disk.read_at(512, &mut last).unwrap();
        assert_eq!((&last[..188], &last[188..]), (&[9; 188][..], &[0; 324][..]));
        disk.write_at(1020, &[5; 4]).unwrap();
        disk.read_at(512, &mut last).unwrap();
        assert_eq!((last[187], last[188], last[511]), (9, 0, 5));
    }

    #[test]
    fn ranges_past_the_end_fail_and_change_nothing() {
        let (_folder, path) = disk_of(&[1; 1024]);
        let disk = open_raw(&path);
        for (offset, length) in [(1024, 1), (1000, 25), (u64::MAX, 2), (u64::MAX - 1, 1)] {
            assert!(matches!(disk.write_at(offset, &vec![0; length]), Err(DiskError::OutOfRange { .. })));
            assert!(matches!(disk.read_at(offset, &mut vec![0; length]), Err(DiskError::OutOfRange { .. })));
        }
        assert_eq!(std::fs::read(&path).unwrap(), [1; 1024]);
    }

    #[test]
    fn zeroed_ranges_become_holes() {
        let (_folder, path) = disk_of(&[1; 1 << 20]);
        let disk = open_raw(&path);
        disk.write_zeroes(0, 1 << 19).unwrap();
        let mut byte = [1];
        disk.read_at((1 << 19) - 1, &mut byte).unwrap();
        assert_eq!(byte, [0]);
        let first = disk.extent_at(0).unwrap();
        assert!(first.kind == ExtentKind::Data || first.length == 1 << 19);
    }

    #[test]
    fn a_disk_cut_short_under_us_fails_its_reads_instead_of_inventing_zeros() {
        let (_folder, path) = disk_of(&[1; 8192]);
        let disk = open_raw(&path);
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
        assert!(disk.read_at(4096, &mut [0; 512]).is_err());
        disk.read_at(0, &mut [0; 512]).unwrap();
    }

    #[test]
    fn a_guessed_raw_disk_refuses_to_become_another_format_and_a_stated_one_does_not() {
        let (_folder, path) = disk_of(&[0; 8192]);
        assert!(matches!(open(&OpenOptions::new(&path)), Err(DiskError::FormatNotStated { .. })));
        let guessed = open(&OpenOptions { probed_raw: ProbedRaw::Guarded, ..OpenOptions::new(&path) }).unwrap();
        guessed.write_at(0, b"QF").unwrap();
        assert!(matches!(guessed.write_at(2, b"I\xfb\0\0\0\x03"), Err(DiskError::WouldChangeFormat { .. })));
        guessed.write_at(512, b"QFI\xfb").unwrap();
        drop(guessed);
        open_raw(&path).write_at(0, b"QFI\xfb\0\0\0\x03").unwrap();
    }

    #[test]
    fn a_read_only_disk_refuses_every_kind_of_write() {
        let (_folder, path) = disk_of(&[0; 8192]);
        let disk = open(&OpenOptions { access: Access::ReadOnly, ..OpenOptions::new(&path) }).unwrap();
        assert!(disk.read_only());
        assert!(matches!(disk.write_at(0, &[0]), Err(DiskError::ReadOnly { .. })));
        assert!(matches!(disk.discard(0, 512), Err(DiskError::ReadOnly { .. })));
        assert!(matches!(disk.write_zeroes(0, 512), Err(DiskError::ReadOnly { .. })));
    }

    #[test]
    fn creating_never_overwrites() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new.img");
        create(&path, &CreateOptions::new(Format::Raw, 1 << 30)).unwrap();
        assert_eq!(open_raw(&path).len(), 1 << 30);
        let again = create(&path, &CreateOptions::new(Format::Raw, 512));
        assert!(matches!(again, Err(DiskError::AlreadyExists { .. })));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 30);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }
}
