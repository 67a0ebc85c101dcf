//! A regular file of the host, opened with care and locked against others.
//!
//! Opening refuses whatever is not a regular file (a pipe would hang, a device may be somebody's hard disk, `/proc`
//! lies about sizes). The locks are single-byte open-file-description locks at the offsets QEMU uses, so that QEMU,
//! qemu-img and we refuse each other: bytes 100–103 say what a holder does, bytes 200–203 what it forbids others
//! (bit 0 consistent read, 1 write, 2 write unchanged, 3 resize). They carry no meaning for the file's content.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{FallocateFlags, FileType, SeekFrom};

use crate::block_file::{Access, BlockFile, FileIdentity};
use crate::direct_io::DirectIo;
use crate::error::DiskError;

/// A file of the host.
#[derive(Debug)]
pub struct HostFile {
    file: File,
    path: PathBuf,
    /// The way past the host's page cache, if data is to go there.
    direct: Option<DirectIo>,
}

/// Where QEMU says what a holder of the file does.
const USES_BASE: i64 = 100;
/// Where QEMU says what a holder does not want others to do.
const FORBIDS_BASE: i64 = 200;
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// File systems whose "regular files" are windows into the kernel.
const PROC_SUPER_MAGIC: u64 = 0x9fa0;
const SYSFS_MAGIC: u64 = 0x6265_6572;

impl HostFile {
    /// Opens an existing regular file, without locking it yet.
    pub fn open(path: &Path, access: Access) -> Result<Self, DiskError> {
        // Looked at before opening, because opening a device can have effects of its own (a tape rewinds).
        let stat = rustix::fs::stat(path).map_err(|errno| open_error(path, access, errno.into()))?;
        refuse_special(FileType::from_raw_mode(stat.st_mode), path)?;
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(access == Access::ReadWrite)
            // The name may have become a pipe meanwhile; then open must not wait for its other end.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|source| open_error(path, access, source))?;
        let stat = rustix::fs::fstat(&file).map_err(|errno| open_error(path, access, errno.into()))?;
        refuse_special(FileType::from_raw_mode(stat.st_mode), path)?;
        if let Ok(system) = rustix::fs::fstatfs(&file)
            && matches!(system.f_type as u64, PROC_SUPER_MAGIC | SYSFS_MAGIC)
        {
            return Err(not_a_file("a window into the kernel", "Choose an ordinary file", path));
        }
        Ok(Self { file, path: path.to_path_buf(), direct: None })
    }

    /// Makes a new file; fails if the name is taken.
    pub fn create_new(path: &Path) -> Result<Self, DiskError> {
        let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(path);
        match file {
            Ok(file) => Ok(Self { file, path: path.to_path_buf(), direct: None }),
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
                Err(DiskError::AlreadyExists { path: path.to_path_buf() })
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => Err(DiskError::BadOptions {
                reason: "The folder for this file does not exist. Make it first, or choose another".into(),
                path: path.to_path_buf(),
            }),
            Err(source) => Err(DiskError::host("create", path, source)),
        }
    }

    /// Wraps a file that is open already, such as an unnamed temporary one.
    pub fn from_file(file: File, path: PathBuf) -> Self {
        Self { file, path, direct: None }
    }

    /// From now on data goes past the host's page cache. Where the file system refuses that, nothing changes.
    pub(crate) fn bypass_cache(&mut self, access: Access) -> io::Result<()> {
        let flags = libc::O_DIRECT | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file =
            std::fs::OpenOptions::new().read(true).write(access == Access::ReadWrite).custom_flags(flags).open(&self.path)?;
        if self.identity().is_none() || identity_of(&file) != self.identity() {
            return Err(io::Error::other("another file has its name now"));
        }
        self.direct = Some(DirectIo::new(file)?);
        Ok(())
    }

    fn set_lock(&self, byte: i64) -> io::Result<()> {
        fcntl(self.file.as_fd(), FcntlArg::F_OFD_SETLK(&byte_lock(libc::F_RDLCK, byte)))?;
        Ok(())
    }

    /// Whether another open file holds any lock on `byte`.
    fn is_locked_by_other(&self, byte: i64) -> io::Result<bool> {
        let mut probe = byte_lock(libc::F_WRLCK, byte);
        fcntl(self.file.as_fd(), FcntlArg::F_OFD_GETLK(&mut probe))?;
        Ok(i32::from(probe.l_type) != libc::F_UNLCK)
    }
}

impl BlockFile for HostFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(direct) = &self.direct {
            return direct.read_at(offset, buffer);
        }
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match &self.direct {
            Some(direct) => direct.write_at(&self.file, offset, data),
            None => self.file.write_all_at(data, offset),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        loop {
            match rustix::fs::fallocate(&self.file, flags, offset, length) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        loop {
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, length) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.file.set_len(size)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let size = self.len()?;
        if offset >= size {
            return Ok(None);
        }
        // The cursor these seeks move is used by nobody: all reading and writing is by position.
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            Err(_) => return Ok(Some((offset, size))),
        };
        let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start)).unwrap_or(size);
        Ok(Some((start, end.max(start))))
    }

    fn lock(&self, access: Access) -> io::Result<()> {
        let uses: &[i64] = match access {
            Access::ReadOnly => &[CONSISTENT_READ],
            Access::ReadWrite => &[CONSISTENT_READ, WRITE, RESIZE],
        };
        // Nobody may change the file under us, reader or writer; so a writer also shuts out readers.
        let forbids = [WRITE, RESIZE];
        // First announce, then look: two who come at once may both give up, but never both go on.
        let attempt = || -> io::Result<bool> {
            for bit in uses {
                self.set_lock(USES_BASE + bit)?;
            }
            for bit in forbids {
                self.set_lock(FORBIDS_BASE + bit)?;
            }
            for bit in uses {
                if self.is_locked_by_other(FORBIDS_BASE + bit)? {
                    return Ok(false);
                }
            }
            for bit in forbids {
                if self.is_locked_by_other(USES_BASE + bit)? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        match attempt() {
            Ok(true) => Ok(()),
            Ok(false) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS)) => {
                tracing::warn!(path = %self.path.display(), "this file system has no locks; nothing keeps others from this disk");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn identity(&self) -> Option<FileIdentity> {
        identity_of(&self.file)
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for HostFile {
    /// Gives the locks back. Closing the file is not enough: a child that another thread is just starting holds copies of
    /// our open files, and with them their locks, until it has become the program it is to be.
    fn drop(&mut self) {
        let all = libc::flock { l_len: 0, ..byte_lock(libc::F_UNLCK, 0) };
        fcntl(self.file.as_fd(), FcntlArg::F_OFD_SETLK(&all)).ok(); // A file system without locks gave none.
    }
}

fn identity_of(file: &File) -> Option<FileIdentity> {
    let metadata = file.metadata().ok()?;
    Some(FileIdentity { device: metadata.dev(), inode: metadata.ino() })
}

fn byte_lock(kind: i32, byte: i64) -> libc::flock {
    libc::flock { l_type: kind as libc::c_short, l_whence: libc::SEEK_SET as libc::c_short, l_start: byte, l_len: 1, l_pid: 0 }
}

fn not_a_file(what: &'static str, advice: &'static str, path: &Path) -> DiskError {
    DiskError::NotAFile { what, advice, path: path.to_path_buf() }
}

fn refuse_special(kind: FileType, path: &Path) -> Result<(), DiskError> {
    let (what, advice) = match kind {
        FileType::RegularFile => return Ok(()),
        FileType::Directory => ("a folder", "Choose a disk file in it"),
        FileType::Fifo => ("a pipe", "Save what comes out of it to a file, and choose that"),
        FileType::Socket => ("a socket", "Choose a disk file"),
        FileType::BlockDevice => {
            ("a device of this computer", "Copy it to a file first (for example with dd), and choose the copy")
        }
        FileType::CharacterDevice => ("a device of this computer", "Choose a disk file"),
        _ => ("something unknown", "Choose a disk file"),
    };
    Err(not_a_file(what, advice, path))
}

fn open_error(path: &Path, access: Access, source: io::Error) -> DiskError {
    match (source.raw_os_error(), access) {
        (Some(libc::EACCES | libc::EPERM), Access::ReadOnly) => {
            DiskError::PermissionDenied { wanted: "read", alternative: "ask its owner for a copy", path: path.to_path_buf() }
        }
        (Some(libc::EACCES | libc::EPERM | libc::EROFS), Access::ReadWrite) => {
            DiskError::PermissionDenied { wanted: "written", alternative: "attach it read-only", path: path.to_path_buf() }
        }
        (Some(libc::ENOTDIR), _) => DiskError::NotFound { path: path.to_path_buf() },
        _ => DiskError::host("open", path, source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        std::fs::write(&path, content).unwrap();
        (folder, path)
    }

    #[test]
    fn a_writer_keeps_writers_and_readers_away_and_readers_share() {
        let (_folder, path) = file_of(&[0; 4096]);
        let first = HostFile::open(&path, Access::ReadWrite).unwrap();
        first.lock(Access::ReadWrite).unwrap();
        for access in [Access::ReadWrite, Access::ReadOnly] {
            let second = HostFile::open(&path, access).unwrap();
            assert_eq!(second.lock(access).unwrap_err().kind(), io::ErrorKind::WouldBlock, "{access:?}");
        }
        drop(first);
        let readers: Vec<_> = (0..3).map(|_| HostFile::open(&path, Access::ReadOnly).unwrap()).collect();
        for reader in &readers {
            reader.lock(Access::ReadOnly).unwrap();
        }
        let writer = HostFile::open(&path, Access::ReadWrite).unwrap();
        assert_eq!(writer.lock(Access::ReadWrite).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_with_advice() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0).unwrap();
        let cases = [
            (folder.path().to_path_buf(), "a folder"),
            (pipe, "a pipe"),
            (PathBuf::from("/dev/null"), "a device"),
            (PathBuf::from("/proc/self/mem"), "kernel"),
        ];
        for (path, expected) in cases {
            let message = HostFile::open(&path, Access::ReadOnly).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
            assert!(message.ends_with(&path.display().to_string()), "the path comes last: {message}");
        }
        let missing = folder.path().join("missing.iso");
        assert!(matches!(HostFile::open(&missing, Access::ReadOnly), Err(DiskError::NotFound { .. })));
    }

    #[test]
    fn a_punched_hole_reads_as_zeros_and_is_found_by_next_data() {
        let (_folder, path) = file_of(&[7; 1 << 20]);
        let file = HostFile::open(&path, Access::ReadWrite).unwrap();
        match file.punch_hole(0, 1 << 19) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return,
            other => other.unwrap(),
        }
        let mut byte = [1];
        file.read_at(4096, &mut byte).unwrap();
        assert_eq!(byte, [0]);
        let (start, end) = file.next_data(0).unwrap().unwrap();
        assert!(start <= 1 << 19 && end == 1 << 20);
        assert_eq!(file.len().unwrap(), 1 << 20);
    }
}
