//! Reading and writing a file past the host's page cache (`O_DIRECT`), for `cache=none` and `cache=directsync`.
//!
//! The host then wants addresses in memory, positions and lengths that are multiples of its block size, so data goes
//! through buffers of our own that are. What does not fill a block, at either end of a write, goes through the page cache:
//! there the kernel joins two writes to one block, where two of ours would undo each other. The kernel keeps both ways to
//! one file true to each other, and a flush is of the file, not of a way to it.
//!
//! See: open(2), "O_DIRECT"; statx(2), `STATX_DIOALIGN`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, StatxFlags};

/// Data is moved in pieces of at most so many bytes.
const PIECE: usize = 1 << 20;
/// No host wants a coarser alignment than this; our buffers have it.
const MOST_ALIGNMENT: usize = 4096;
/// So many buffers are kept for the next request.
const MOST_SPARE: usize = 4;

/// A second way to an open file, past the page cache.
#[derive(Debug)]
pub(crate) struct DirectIo {
    file: File,
    alignment: u64,
    spare: Mutex<Vec<AlignedBuffer>>,
}

impl DirectIo {
    /// Takes a handle that was opened with `O_DIRECT`, and finds out what the host wants of it.
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let alignment = wanted_alignment(&file)?;
        Ok(Self { file, alignment, spare: Mutex::default() })
    }

    /// Reads until the buffer is full or the file ends; returns the bytes read.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        let mut bounce = self.take_buffer();
        while done < buffer.len() {
            let at = offset + done as u64;
            let skipped = (at % self.alignment) as usize;
            let wanted = (buffer.len() - done).min(PIECE - MOST_ALIGNMENT);
            let length = (skipped + wanted).next_multiple_of(self.alignment as usize);
            let got = self.read_aligned(at - skipped as u64, bounce.first(length))?;
            let part = bounce.first(got.min(skipped + wanted)).get(skipped..).unwrap_or_default();
            buffer[done..done + part.len()].copy_from_slice(part);
            done += part.len();
            if part.len() < wanted {
                break;
            }
        }
        self.give_back(bounce);
        Ok(done)
    }

    fn read_aligned(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(count) => {
                    done += count;
                    // Only the end of the file ends a read inside a block.
                    if count == 0 || !(done as u64).is_multiple_of(self.alignment) {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Writes all of `data`; what fills no block goes to `cached`, the ordinary way to the same file.
    pub(crate) fn write_at(&self, cached: &File, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset.saturating_add(data.len() as u64);
        let (first, last) = (offset.next_multiple_of(self.alignment), end / self.alignment * self.alignment);
        if first >= last {
            return cached.write_all_at(data, offset);
        }
        let (head, rest) = data.split_at((first - offset) as usize);
        let (middle, tail) = rest.split_at((last - first) as usize);
        cached.write_all_at(head, offset)?;
        let mut bounce = self.take_buffer();
        for (number, piece) in middle.chunks(PIECE).enumerate() {
            let aligned = bounce.first(piece.len());
            aligned.copy_from_slice(piece);
            self.file.write_all_at(aligned, first + (number * PIECE) as u64)?;
        }
        self.give_back(bounce);
        cached.write_all_at(tail, last)
    }

    fn take_buffer(&self) -> AlignedBuffer {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(AlignedBuffer::new)
    }

    fn give_back(&self, buffer: AlignedBuffer) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < MOST_SPARE {
            spare.push(buffer);
        }
    }
}

/// A buffer of [`PIECE`] bytes that begins at a multiple of [`MOST_ALIGNMENT`].
#[derive(Debug)]
struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl AlignedBuffer {
    fn new() -> Self {
        let bytes = vec![0; PIECE + MOST_ALIGNMENT];
        let start = bytes.as_ptr().align_offset(MOST_ALIGNMENT).min(MOST_ALIGNMENT);
        Self { bytes, start }
    }

    /// Its first bytes, at most [`PIECE`].
    fn first(&mut self, length: usize) -> &mut [u8] {
        &mut self.bytes[self.start..][..length]
    }
}

/// What offsets and lengths must be multiples of. Kernels before 6.1 do not say, so then the smallest is used that works.
fn wanted_alignment(file: &File) -> io::Result<u64> {
    if let Ok(stat) = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        && stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0
    {
        let (memory, offset) = (stat.stx_dio_mem_align, stat.stx_dio_offset_align);
        let is_possible = memory > 0 && offset.is_power_of_two() && memory.max(offset) as usize <= MOST_ALIGNMENT;
        return if is_possible { Ok(memory.max(offset).into()) } else { Err(io::ErrorKind::Unsupported.into()) };
    }
    if file.metadata()?.len() < MOST_ALIGNMENT as u64 {
        return Ok(MOST_ALIGNMENT as u64); // Nothing to try it on.
    }
    let mut buffer = AlignedBuffer::new();
    for alignment in [512, MOST_ALIGNMENT] {
        match file.read_at(buffer.first(alignment), 0) {
            Ok(_) => return Ok(alignment as u64),
            Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use crate::host_file::HostFile;
    use crate::{Access, BlockFile, CreateOptions, Format, HostCache, OpenOptions, create, open};

    /// A file of known bytes in the build folder, which lies on a real file system, and two ways to it; `None` where the
    /// host refuses.
    fn file_past_the_cache(length: usize) -> Option<(tempfile::TempDir, HostFile, Vec<u8>)> {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).ok()?;
        let path = folder.path().join("disk.img");
        let content: Vec<u8> = (0..length).map(|at| (at * 7 + at / 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let mut file = HostFile::open(&path, Access::ReadWrite).unwrap();
        if let Err(error) = file.bypass_cache(Access::ReadWrite) {
            eprintln!("skipped: {error}");
            return None;
        }
        Some((folder, file, content))
    }

    #[test]
    fn any_range_is_read_and_written_as_through_the_cache() {
        let length = 3 * 1024 * 1024 + 777;
        let Some((folder, file, mut content)) = file_past_the_cache(length) else { return };
        let ranges = [
            (0, 4096),
            (0, 1),
            (511, 2),
            (512, 512),
            (4095, 4098),
            (1000, 2 << 20),
            (8192, 3 << 20),
            (length - 5, 5),
            (length - 5000, 5000),
            (1 << 20, 1 << 20),
        ];
        for (number, (start, count)) in ranges.into_iter().enumerate() {
            let end = (start + count).min(length);
            let data = vec![number as u8 + 1; end - start];
            file.write_at(start as u64, &data).unwrap();
            content[start..end].copy_from_slice(&data);
            let mut seen = vec![0; (end - start + 3000).min(length - start)];
            assert_eq!(file.read_at(start as u64, &mut seen).unwrap(), seen.len());
            assert!(seen == content[start..start + seen.len()], "{start}, {count}");
        }
        let mut beyond = [9; 100];
        assert_eq!(file.read_at(length as u64 - 40, &mut beyond).unwrap(), 40, "the file ends there");
        assert_eq!(file.read_at(length as u64 + 10_000, &mut beyond).unwrap(), 0);
        file.flush().unwrap();
        assert!(std::fs::read(folder.path().join("disk.img")).unwrap() == content, "its size has not changed either");
    }

    #[test]
    fn a_file_grows_by_writes_past_its_end() {
        let Some((folder, file, _)) = file_past_the_cache(100) else { return };
        file.write_at(1000, &[5; 10_000]).unwrap();
        file.flush().unwrap();
        let content = std::fs::read(folder.path().join("disk.img")).unwrap();
        assert_eq!(content.len(), 11_000);
        assert!(content[100..1000].iter().all(|byte| *byte == 0) && content[1000..].iter().all(|byte| *byte == 5));
    }

    #[test]
    fn a_disk_past_the_cache_holds_what_was_written_whatever_its_file_system_can_do() {
        let folders = [tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap(), tempfile::tempdir().unwrap()];
        for (folder, format) in folders.iter().flat_map(|folder| [Format::Raw, Format::Qcow2, Format::Vdi].map(|f| (folder, f))) {
            let path = folder.path().join(format.name());
            create(&path, &CreateOptions::new(format, 8 << 20)).unwrap();
            let options = OpenOptions {
                format: Some(format),
                host_cache: HostCache::Bypassed,
                table_cache_bytes: Some(1),
                ..OpenOptions::new(&path)
            };
            let disk = open(&options).unwrap();
            for (number, offset) in [0, 511, 65536, 4 << 20, (8 << 20) - 70_000].into_iter().enumerate() {
                disk.write_at(offset, &vec![number as u8 + 1; 70_000]).unwrap();
            }
            disk.discard(0, 65536).unwrap();
            disk.flush().unwrap();
            drop(disk);
            // What went past the cache is what those see who use it.
            for host_cache in [HostCache::Bypassed, HostCache::Used] {
                let disk = open(&OpenOptions { host_cache, ..options.clone() }).unwrap();
                for (offset, byte) in [(65536, 3), (65536 + 69_999, 3), (4 << 20, 4), ((8 << 20) - 1, 5), (1 << 20, 0)] {
                    let mut seen = [9];
                    disk.read_at(offset, &mut seen).unwrap();
                    assert_eq!(seen, [byte], "{format} at {offset}");
                }
            }
        }
    }
}
