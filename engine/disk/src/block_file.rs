//! The only way in which disk formats touch files.
//!
//! Formats read and write by position; there is no cursor to race over. Production is [`HostFile`](crate::HostFile);
//! tests use `SimFile`, which records every operation, crashes between any two of them, and fails on request.

use std::io;
use std::path::Path;

/// Whether a file is opened for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads only; several readers may share the file.
    ReadOnly,
    /// Reads and writes; nobody else may have the file open.
    ReadWrite,
}

/// What tells one file from another whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// Device number of the file system.
    pub device: u64,
    /// Inode number in it.
    pub inode: u64,
}

/// One open file.
pub trait BlockFile: Send + Sync {
    /// Reads from `offset` on until the buffer is full or the file ends; returns the bytes read.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes all of `data` at `offset`, growing the file where needed.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes all completed writes durable, with the size needed to read them (`fdatasync`).
    fn flush(&self) -> io::Result<()>;

    /// Turns a range inside the file into zeros and gives its space back where the file system can.
    /// The size stays. Fails with `Unsupported` where that is impossible; then nothing has changed.
    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Has the host set space aside for a range, growing the file where needed; what is in it stays.
    /// Fails with `Unsupported` where that is impossible.
    fn allocate(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Sets the size, cutting off or adding zeros.
    fn truncate(&self, size: u64) -> io::Result<()>;

    /// Size in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether there is nothing in the file.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// The first data at or after `offset` as (start, end), or `None` when only holes follow.
    /// A file system that does not know answers that all is data.
    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let size = self.len()?;
        Ok((offset < size).then_some((offset, size)))
    }

    /// Takes the locks that keep others away from this file, or says `WouldBlock` if somebody holds them.
    /// They are held until the file is closed.
    fn lock(&self, access: Access) -> io::Result<()>;

    /// What tells this file from others, where it has something that does.
    fn identity(&self) -> Option<FileIdentity>;

    /// The name, for messages.
    fn path(&self) -> &Path;
}

/// Reads a range, with zeros for what lies past the end of the file; returns how many bytes lie before it.
pub(crate) fn read_zero_padded(file: &dyn BlockFile, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let got = file.read_at(offset, buffer)?;
    if let Some(rest) = buffer.get_mut(got..) {
        rest.fill(0);
    }
    Ok(got)
}

/// Reads a range that must lie inside the file.
pub(crate) fn read_exact(file: &dyn BlockFile, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    if file.read_at(offset, buffer)? == buffer.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[repr(align(4096))]
struct Pages([u8; 256 * 1024]);

/// A source of zeros, for writes; as many as a write should carry at most.
///
/// It begins where a page of memory does. Linux copies up to the first page of a source that is not in memory and only then
/// fetches that page; who is killed meanwhile leaves a write that ends there. With whole sectors in each page that is
/// between two sectors, as on a disk, and never inside one.
pub(crate) static ZEROS: &[u8] = &Pages([0; 256 * 1024]).0;

/// Writes zeros, really.
pub(crate) fn fill_with_zeros(file: &dyn BlockFile, offset: u64, length: u64) -> io::Result<()> {
    let mut done = 0;
    while done < length {
        let piece = (length - done).min(ZEROS.len() as u64);
        file.write_at(offset + done, &ZEROS[..piece as usize])?;
        done += piece;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_zeros_holds_whole_sectors() {
        assert!(ZEROS.as_ptr().addr().is_multiple_of(4096) && ZEROS.len().is_multiple_of(4096));
    }
}
