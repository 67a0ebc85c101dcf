//! streamOptimized extents: compressed grains one after the other, with marks between them, and the tables at the end.
//! They are made to be sent somewhere, so they are written once, in the order of the disk.

use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::block_file::{Access, BlockFile};
use crate::fenced_file::FencedFile;
use crate::fields::{Fields, put};
use crate::image::{DiskImage, Extent, ExtentKind, check_range};
use crate::image_info::ImageInfo;
use crate::{DiskError, Format};

use super::SECTOR;
use super::sparse::{HEADER_LENGTH, SparseHeader, TABLE_ENTRIES};

/// In front of each grain: its first sector, and how many bytes follow.
const GRAIN_MARK: u64 = 12;
const TABLE_MARK: u32 = 1;
const DIRECTORY_MARK: u32 = 2;
const FOOTER_MARK: u32 = 3;
const END_MARK: u32 = 0;

/// See the file's story.
pub(super) struct Stream {
    file: FencedFile,
    access: Access,
    header: SparseHeader,
    info: ImageInfo,
    state: Mutex<State>,
    /// The grain that was unpacked last: whoever reads a part of it reads the next part soon.
    recent: Mutex<Option<(usize, Arc<[u8]>)>>,
}

struct State {
    /// Sector of each grain's mark; 0 where there is none.
    grains: Vec<u32>,
    /// Where the next grain goes.
    end: u64,
    /// Whether the tables at the end are missing.
    is_open: bool,
}

impl Stream {
    pub(super) fn open(
        file: Arc<dyn BlockFile>,
        access: Access,
        header: SparseHeader,
        info: ImageInfo,
    ) -> Result<Self, DiskError> {
        let file = FencedFile::new(file);
        let directory = header.directory(&file, header.directory)?;
        let grains = header.grains(&file, &directory)?;
        if access == Access::ReadWrite && grains.iter().any(|sector| *sector != 0) {
            let feature = "writing into a streamOptimized disk that has content".into();
            return Err(DiskError::Unsupported { feature, path: file.path().to_path_buf() });
        }
        let state = State { grains, end: header.overhead.max(HEADER_LENGTH as u64), is_open: false };
        Ok(Self { file, access, header, info, state: Mutex::new(state), recent: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn damaged(&self, detail: &str) -> DiskError {
        DiskError::Damaged { detail: detail.into(), advice: "Fetch the file again", path: self.file.path().to_path_buf() }
    }

    /// The content of a grain; as long as a grain, also where the disk ends before it does.
    fn grain(&self, index: usize, sector: u32) -> Result<Arc<[u8]>, DiskError> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, content)) = &*recent
            && *known == index
        {
            return Ok(Arc::clone(content));
        }
        drop(recent);
        let place = u64::from(sector) * SECTOR;
        let mut mark = [0; GRAIN_MARK as usize];
        self.file.read_exact(place, &mut mark)?;
        let length = u64::from(Fields(&mark).le32(8));
        // What does not shrink may grow a little, but never to twice its size.
        if length == 0 || length > 2 * self.header.grain {
            return Err(self.damaged("a grain has an impossible length"));
        }
        if Fields(&mark).le64(0) != index as u64 * (self.header.grain / SECTOR) {
            return Err(self.damaged("a grain's mark names another place of the disk"));
        }
        let mut packed = vec![0; length as usize];
        self.file.read_exact(place + GRAIN_MARK, &mut packed)?;
        let mut content = Vec::new();
        let limit = self.header.grain;
        flate2::read::ZlibDecoder::new(&packed[..])
            .take(limit)
            .read_to_end(&mut content)
            .map_err(|_| self.damaged("a grain cannot be unpacked"))?;
        let here = self.header.capacity - index as u64 * limit;
        if (content.len() as u64) < limit.min(here) {
            return Err(self.damaged("a grain is too short"));
        }
        content.resize(limit as usize, 0);
        let content: Arc<[u8]> = content.into();
        recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        *recent = Some((index, Arc::clone(&content)));
        Ok(content)
    }

    /// Writes the tables, the directory and the footer behind the last grain.
    fn finish(&self, state: &mut State) -> Result<(), DiskError> {
        let mut tail = Vec::new();
        let mut directory = Vec::new();
        for table in state.grains.chunks(TABLE_ENTRIES as usize) {
            if table.iter().all(|sector| *sector == 0) {
                directory.push(0);
                continue;
            }
            tail.extend(mark(TABLE_ENTRIES * 4 / SECTOR, TABLE_MARK));
            directory.push(((state.end + tail.len() as u64) / SECTOR) as u32);
            let start = tail.len();
            tail.extend(table.iter().flat_map(|sector| sector.to_le_bytes()));
            tail.resize(start + TABLE_ENTRIES as usize * 4, 0);
        }
        let directory_length = (directory.len() as u64 * 4).next_multiple_of(SECTOR);
        tail.extend(mark(directory_length / SECTOR, DIRECTORY_MARK));
        let directory_sector = (state.end + tail.len() as u64) / SECTOR;
        let start = tail.len();
        tail.extend(directory.iter().flat_map(|sector| sector.to_le_bytes()));
        tail.resize(start + directory_length as usize, 0);
        tail.extend(mark(1, FOOTER_MARK));
        let mut footer = [0; HEADER_LENGTH];
        self.file.read_exact(0, &mut footer)?;
        put(&mut footer, 56, &directory_sector.to_le_bytes());
        tail.extend(footer);
        tail.extend(mark(0, END_MARK));
        self.file.write_at(state.end, &tail)?;
        self.file.truncate(state.end + tail.len() as u64)?;
        state.is_open = false;
        Ok(())
    }
}

/// A mark that is no grain's: how many sectors follow, and what they are.
pub(super) fn mark(sectors: u64, kind: u32) -> [u8; SECTOR as usize] {
    let mut mark = [0; SECTOR as usize];
    put(&mut mark, 0, &sectors.to_le_bytes());
    put(&mut mark, 12, &kind.to_le_bytes());
    mark
}

impl DiskImage for Stream {
    fn len(&self) -> u64 {
        self.header.capacity
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        check_range(self.file.path(), self.header.capacity, offset, buffer.len() as u64)?;
        let grain = self.header.grain;
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let (index, in_grain) = ((at / grain) as usize, (at % grain) as usize);
            let length = (grain as usize - in_grain).min(buffer.len() - done);
            let piece = &mut buffer[done..done + length];
            let sector = self.state().grains.get(index).copied().unwrap_or(0);
            match sector {
                0 | 1 => piece.fill(0),
                sector => piece.copy_from_slice(&self.grain(index, sector)?[in_grain..in_grain + length]),
            }
            done += length;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.write_compressed(offset, data)
    }

    fn write_compressed(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        if self.access == Access::ReadOnly {
            return Err(DiskError::ReadOnly { path: self.file.path().to_path_buf() });
        }
        let Self { header: SparseHeader { capacity, grain, .. }, file, .. } = self;
        check_range(file.path(), *capacity, offset, data.len() as u64)?;
        let end = offset + data.len() as u64;
        if !offset.is_multiple_of(*grain) || (!end.is_multiple_of(*grain) && end != *capacity) {
            return Err(self.cannot("store parts of grains"));
        }
        for (number, content) in data.chunks(*grain as usize).enumerate() {
            let index = (offset / grain) as usize + number;
            let mut packed = Vec::with_capacity(content.len() / 2);
            // The last grain of the disk is stored whole, as others expect it.
            let mut padded = content.to_vec();
            padded.resize(*grain as usize, 0);
            let mut encoder = flate2::bufread::ZlibEncoder::new(&padded[..], flate2::Compression::default());
            encoder.read_to_end(&mut packed).map_err(|source| DiskError::host("pack", file.path(), source))?;
            let mut record = (index as u64 * (grain / SECTOR)).to_le_bytes().to_vec();
            record.extend((packed.len() as u32).to_le_bytes());
            record.extend(packed);
            record.resize(record.len().next_multiple_of(SECTOR as usize), 0);
            let mut state = self.state();
            let sector = u32::try_from(state.end / SECTOR);
            let sector = sector.map_err(|_| DiskError::FormatFull { path: file.path().to_path_buf() })?;
            match state.grains.get(index) {
                Some(0) => {}
                _ => return Err(self.cannot("store a grain twice")),
            }
            file.write_at(state.end, &record)?;
            state.grains[index] = sector;
            state.end += record.len() as u64;
            state.is_open = true;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        let mut state = self.state();
        if state.is_open {
            self.finish(&mut state)?;
        }
        if self.access == Access::ReadOnly { Ok(()) } else { self.file.flush() }
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        check_range(self.file.path(), self.header.capacity, offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        check_range(self.file.path(), self.header.capacity, offset, length)?;
        let first = (offset / self.header.grain) as usize;
        let last = (offset + length).div_ceil(self.header.grain) as usize;
        match self.state().grains.get(first..last) {
            Some(grains) if grains.iter().all(|sector| *sector == 0) => Ok(()),
            _ => Err(self.cannot("turn stored grains into zeros")),
        }
    }

    fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn format(&self) -> Format {
        Format::Vmdk
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        check_range(self.file.path(), self.header.capacity, offset, 0)?;
        let state = self.state();
        let first = (offset / self.header.grain) as usize;
        let is_stored = |sector: &u32| *sector > 1;
        let stored = state.grains.get(first).is_some_and(is_stored);
        let count = state.grains.iter().skip(first).take_while(|sector| is_stored(sector) == stored).count().max(1);
        let end = ((first + count) as u64 * self.header.grain).min(self.header.capacity);
        let kind = if stored { ExtentKind::Data } else { ExtentKind::Zero };
        Ok(Extent { present: stored, compressed: stored, ..Extent::new(kind, end - offset) })
    }

    fn info(&self) -> ImageInfo {
        self.info.clone()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.state();
        if state.is_open
            && self.file.check_fence().is_ok()
            && let Err(error) = self.finish(&mut state)
        {
            tracing::error!(%error, "a streamOptimized disk could not be finished");
        }
    }
}
