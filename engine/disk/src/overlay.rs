//! Throw-away writes (`-snapshot`): what the guest writes goes to an unnamed temporary file and is gone at the end.
//!
//! The temporary file is a qcow2 disk built on the real one. Nothing in it needs to survive a crash, so its flushes
//! do nothing; the file has no name, so the host frees it however we end.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::block_file::{Access, BlockFile, FileIdentity};
use crate::image::DiskImage;
use crate::open::CreateOptions;
use crate::qcow2::Qcow2;
use crate::{DiskError, Format, HostFile};

/// Puts throw-away writes in front of a disk.
pub(crate) fn throw_away(base: Arc<dyn DiskImage>, base_path: &Path) -> Result<Arc<dyn DiskImage>, DiskError> {
    let folder = temporary_folder();
    let file = tempfile::tempfile_in(&folder).map_err(|source| DiskError::host("create a temporary file in", &folder, source))?;
    // Messages about a full host must name the place that is full.
    let file = Forgetful(HostFile::from_file(file, folder.join(format!("(writes to {})", base_path.display()))));
    let options = CreateOptions::new(Format::Qcow2, base.len().next_multiple_of(512));
    if let Some(write_empty) = Format::Qcow2.driver().create {
        write_empty(&file, &options)?;
    }
    let disk = Qcow2::open_on(Arc::new(file), base)?;
    Ok(Arc::new(disk))
}

/// Where QEMU puts such files too: a place meant for large ones, unless the person chose another.
fn temporary_folder() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// A file that nobody will look for after a crash.
pub(crate) struct Forgetful(pub(crate) HostFile);

impl BlockFile for Forgetful {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        self.0.punch_hole(offset, length)
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.0.allocate(offset, length)
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.0.truncate(size)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        self.0.next_data(offset)
    }

    fn lock(&self, access: Access) -> io::Result<()> {
        self.0.lock(access)
    }

    fn identity(&self) -> Option<FileIdentity> {
        self.0.identity()
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

#[cfg(test)]
mod tests {
    use crate::{Access, CreateOptions, Format, OpenOptions, create, open};

    #[test]
    fn writes_are_seen_until_the_disk_is_closed_and_never_reach_the_file() {
        let folder = tempfile::tempdir().unwrap();
        for format in [Format::Raw, Format::Qcow2] {
            let path = folder.path().join(format.name());
            create(&path, &CreateOptions::new(format, 1 << 20)).unwrap();
            let disk = open(&OpenOptions { format: Some(format), ..OpenOptions::new(&path) }).unwrap();
            disk.write_at(4096, &[1; 100]).unwrap();
            drop(disk);
            let before = std::fs::read(&path).unwrap();
            let options = OpenOptions { format: Some(format), snapshot: true, ..OpenOptions::new(&path) };
            let disk = open(&options).unwrap();
            assert!(!disk.read_only());
            disk.write_at(4100, &[2; 10]).unwrap();
            disk.write_at(900_000, &[3; 100_000]).unwrap();
            disk.write_zeroes(4096, 2).unwrap();
            disk.flush().unwrap();
            let mut seen = [9; 18];
            disk.read_at(4095, &mut seen).unwrap();
            assert_eq!(seen, [0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1]);
            drop(disk);
            assert!(std::fs::read(&path).unwrap() == before);
        }
    }

    #[test]
    fn two_machines_may_throw_away_writes_to_one_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shared.qcow2");
        create(&path, &CreateOptions::new(Format::Qcow2, 1 << 20)).unwrap();
        let options = OpenOptions { snapshot: true, access: Access::ReadWrite, ..OpenOptions::new(&path) };
        let (one, two) = (open(&options).unwrap(), open(&options).unwrap());
        one.write_at(0, b"one").unwrap();
        two.write_at(0, b"two").unwrap();
        let mut seen = [0; 3];
        one.read_at(0, &mut seen).unwrap();
        assert_eq!(&seen, b"one");
    }
}
