//! Disks that keep blocks of one size, found by one table: VDI, VHD, VHDX and VMDK differ only in how they write it down.
//!
//! A block that is first written goes to the end of the file; the table in memory knows it at once, the table in the
//! file when the disk is flushed, in this order, with `fdatasync` where a bar stands:
//!
//! ```text
//!   data, what the format keeps beside it (counts, footers) ┃ table entries ┃
//! ```
//!
//! So an entry never points at what is not there. A crash leaves the last flushed state and at worst blocks at the end
//! that nobody knows; the next block takes their place, and is wiped first. A block once stored stays where it is: zeros
//! and discards punch holes into it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::block_file::{Access, BlockFile};
use crate::fenced_file::FencedFile;
use crate::image::{DiskImage, Extent, ExtentKind, check_range};
use crate::image_info::ImageInfo;
use crate::open::Preallocation;
use crate::{DiskError, Format};

/// More blocks than this would need too much memory for their table (128 MiB).
pub(crate) const MAX_BLOCKS: u64 = 1 << 24;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// Never written: zeros.
    Absent,
    /// Written as zeros, without place in the file.
    Zero,
    /// At this position of the file (behind the format's own bytes, if it puts any before the data).
    Stored(u64),
}

/// What differs between the formats.
pub(crate) trait Layout: Send + Sync {
    /// Which format it is.
    fn format(&self) -> Format;

    /// What the file says of itself.
    fn info(&self) -> ImageInfo;

    /// What to write where, so that the table says block `index` is stored at `place`.
    fn entries(&self, index: usize, place: u64) -> Vec<(u64, Vec<u8>)>;

    /// Bytes that stand before the data of each new block.
    fn block_head(&self) -> &[u8] {
        &[]
    }

    /// New blocks begin at multiples of this.
    fn alignment(&self) -> u64 {
        512
    }

    /// The last place that an entry can name.
    fn max_place(&self) -> u64 {
        i64::MAX as u64
    }

    /// Writes what must be durable before the table's new entries: `end` is where the last block ends, `stored` how many
    /// there are.
    fn before_entries(&self, _file: &FencedFile, _end: u64, _stored: u64) -> Result<(), DiskError> {
        Ok(())
    }

    /// Makes the file tell of a larger disk, with so many blocks: first entries that say "never written", durably, then, in
    /// one write that cannot tear, the size. All else has been written down before.
    fn grow(&self, _file: &FencedFile, _size: u64, _old_blocks: u64, _blocks: u64) -> Result<(), DiskError> {
        Err(DiskError::NotPossible { title: self.format().driver().title, action: "change its size" })
    }

    /// Whether a block that was never written counts as decided by this file.
    fn absent_is_present(&self) -> bool {
        true
    }
}

/// The table in memory. Positions as `u64`, because there may be many; 0 and 1 lie in every format's header.
struct Table {
    places: Vec<u64>,
    /// Blocks of which the file's table does not know yet.
    unwritten: BTreeSet<usize>,
    /// Where the next block goes.
    end: u64,
    stored: u64,
}

const ABSENT: u64 = 0;
const ZERO: u64 = 1;

impl Table {
    fn block(&self, index: usize) -> Block {
        match self.places.get(index).copied().unwrap_or(ABSENT) {
            ABSENT => Block::Absent,
            ZERO => Block::Zero,
            place => Block::Stored(place),
        }
    }
}

/// An open disk of such a format.
pub(crate) struct BlockTableDisk<L: Layout> {
    file: FencedFile,
    access: Access,
    layout: L,
    size: AtomicU64,
    block_size: u64,
    table: RwLock<Table>,
}

/// What a format has read from its headers.
pub(crate) struct Opened<L> {
    pub(crate) layout: L,
    pub(crate) size: u64,
    pub(crate) block_size: u64,
    /// One for each block of the disk.
    pub(crate) blocks: Vec<Block>,
    /// Where the first block may lie.
    pub(crate) data_start: u64,
    /// New blocks never go before this.
    pub(crate) first_free: u64,
    /// Blocks whose entries a crash left half written; the next flush writes them again.
    pub(crate) unwritten: BTreeSet<usize>,
}

impl<L: Layout> BlockTableDisk<L> {
    /// Takes over what a format has read. Two entries for one place, or one outside the file, refuse writing.
    pub(crate) fn new(file: Arc<dyn BlockFile>, access: Access, opened: Opened<L>) -> Result<Self, DiskError> {
        let Opened { layout, size, block_size, blocks, data_start, first_free, unwritten } = opened;
        let file = FencedFile::new(file);
        let file_end = file.len()?;
        let head = layout.block_head().len() as u64;
        let (mut end, mut stored) = (data_start.max(first_free), 0);
        let mut places = Vec::with_capacity(blocks.len());
        for block in blocks {
            places.push(match block {
                Block::Absent => ABSENT,
                Block::Zero => ZERO,
                Block::Stored(place) => {
                    stored += 1;
                    end = end.max(place.saturating_add(block_size));
                    place
                }
            });
        }
        if access == Access::ReadWrite {
            let mut sorted: Vec<u64> = places.iter().copied().filter(|place| *place > ZERO).collect();
            sorted.sort_unstable();
            let overlap = sorted.windows(2).any(|pair| pair[1] - pair[0] < block_size);
            let outside = sorted.first().is_some_and(|first| *first < data_start + head)
                || sorted.last().is_some_and(|last| *last >= file_end.max(1));
            if overlap || outside {
                let detail = if overlap { "two blocks share one place" } else { "a block lies outside the file" };
                let advice = "Open it read-only and copy what is there";
                return Err(DiskError::Damaged { detail: detail.into(), advice, path: file.path().to_path_buf() });
            }
        }
        let table = RwLock::new(Table { places, unwritten, end, stored });
        Ok(Self { file, access, layout, size: AtomicU64::new(size), block_size, table })
    }

    fn path(&self) -> &Path {
        self.file.path()
    }

    fn shared(&self) -> Result<RwLockReadGuard<'_, Table>, DiskError> {
        self.table.read().map_err(|_| self.fence())
    }

    fn alone(&self) -> Result<RwLockWriteGuard<'_, Table>, DiskError> {
        self.table.write().map_err(|_| self.fence())
    }

    /// A thread died while it was changing the table: what is in memory must not reach the file.
    fn fence(&self) -> DiskError {
        self.file.fence();
        DiskError::Fenced { path: self.path().to_path_buf() }
    }

    fn check_write(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        if self.access == Access::ReadOnly {
            return Err(DiskError::ReadOnly { path: self.path().to_path_buf() });
        }
        self.file.check_fence()?;
        check_range(self.path(), self.len(), offset, length)
    }

    /// The pieces of a range that lie in one block each: block, position in it, length.
    fn pieces(&self, offset: u64, length: u64) -> impl Iterator<Item = (usize, u64, u64)> {
        let block_size = self.block_size;
        let end = offset + length;
        let mut at = offset;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let in_block = at % block_size;
            let piece = ((at / block_size) as usize, in_block, (block_size - in_block).min(end - at));
            at += piece.2;
            Some(piece)
        })
    }

    /// Finds a place for a block that has none, full of zeros but for `data`.
    fn store(&self, table: &mut Table, index: usize, in_block: u64, data: &[u8]) -> Result<(), DiskError> {
        let head = self.layout.block_head();
        let start = table.end.checked_next_multiple_of(self.layout.alignment());
        let full = || DiskError::FormatFull { path: self.path().to_path_buf() };
        let place = start.and_then(|start| start.checked_add(head.len() as u64)).ok_or_else(full)?;
        let start = place - head.len() as u64;
        let end = place.checked_add(self.block_size).filter(|_| place <= self.layout.max_place()).ok_or_else(full)?;
        let file_end = self.file.len()?;
        if file_end < end {
            self.file.truncate(end)?;
        }
        // What a crash or an old footer left here must not become content.
        if file_end > start {
            self.wipe(start, file_end.min(end) - start)?;
        }
        if !head.is_empty() {
            self.file.write_at(start, head)?;
        }
        self.file.write_at(place + in_block, data)?;
        if let Some(entry) = table.places.get_mut(index) {
            *entry = place;
        }
        table.unwritten.insert(index);
        table.end = end;
        table.stored += 1;
        Ok(())
    }

    fn wipe(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        if self.file.punch_hole(offset, length)? {
            return Ok(());
        }
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(ZEROS.len() as u64);
            self.file.write_at(offset + done, &ZEROS[..piece as usize])?;
            done += piece;
        }
        Ok(())
    }

    fn commit(&self, table: &mut Table) -> Result<(), DiskError> {
        if table.unwritten.is_empty() {
            return self.file.flush();
        }
        self.layout.before_entries(&self.file, table.end, table.stored)?;
        self.file.flush()?;
        let mut writes: Vec<(u64, Vec<u8>)> = Vec::new();
        for index in &table.unwritten {
            let place = table.places.get(*index).copied().unwrap_or(ABSENT);
            writes.extend(self.layout.entries(*index, place));
        }
        writes.sort_unstable_by_key(|(at, _)| *at);
        // Entries that lie side by side are written together.
        let mut joined: Vec<(u64, Vec<u8>)> = Vec::new();
        for (at, bytes) in writes {
            match joined.last_mut() {
                Some((start, run)) if *start + run.len() as u64 == at => run.extend(bytes),
                _ => joined.push((at, bytes)),
            }
        }
        for (at, bytes) in joined {
            self.file.write_at(at, &bytes)?;
        }
        self.file.flush()?;
        table.unwritten.clear();
        Ok(())
    }
}

impl<L: Layout> DiskImage for BlockTableDisk<L> {
    fn len(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        check_range(self.path(), self.len(), offset, buffer.len() as u64)?;
        let table = self.shared()?;
        let mut rest = buffer;
        for (index, in_block, length) in self.pieces(offset, rest.len() as u64) {
            let (piece, later) = rest.split_at_mut(length as usize);
            match table.block(index) {
                Block::Absent | Block::Zero => piece.fill(0),
                Block::Stored(place) => {
                    if self.file.len()? <= place {
                        let detail = "a block lies past the end of the file".into();
                        let advice = "Copy what can be read, or restore a backup";
                        return Err(DiskError::Damaged { detail, advice, path: self.path().to_path_buf() });
                    }
                    self.file.read_zero_padded(place.saturating_add(in_block), piece)?;
                }
            }
            rest = later;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.check_write(offset, data.len() as u64)?;
        let mut rest = data;
        for (index, in_block, length) in self.pieces(offset, data.len() as u64) {
            let (piece, later) = rest.split_at(length as usize);
            rest = later;
            let table = self.shared()?;
            if let Block::Stored(place) = table.block(index) {
                self.file.write_at(place + in_block, piece)?;
                continue;
            }
            drop(table);
            let mut table = self.alone()?;
            match table.block(index) {
                // Somebody else was faster.
                Block::Stored(place) => self.file.write_at(place + in_block, piece)?,
                Block::Absent | Block::Zero => self.store(&mut table, index, in_block, piece)?,
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        self.file.check_fence()?;
        let has_changes = !self.shared()?.unwritten.is_empty();
        if has_changes { self.commit(&mut *self.alone()?) } else { self.file.flush() }
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.check_write(offset, length)?;
        let table = self.shared()?;
        for (index, in_block, length) in self.pieces(offset, length) {
            if let Block::Stored(place) = table.block(index) {
                // Where holes are impossible the content stays, which a discard allows.
                self.file.punch_hole(place + in_block, length)?;
            }
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.check_write(offset, length)?;
        let table = self.shared()?;
        for (index, in_block, length) in self.pieces(offset, length) {
            if let Block::Stored(place) = table.block(index) {
                self.wipe(place + in_block, length)?;
            }
        }
        Ok(())
    }

    fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn format(&self) -> Format {
        self.layout.format()
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        check_range(self.path(), self.len(), offset, 0)?;
        let table = self.shared()?;
        let (first, in_block) = ((offset / self.block_size) as usize, offset % self.block_size);
        let block = table.block(first);
        let mut count = 1;
        while first + (count as usize) < table.places.len() {
            let next = table.block(first + count as usize);
            let continues = match (block, next) {
                (Block::Stored(place), Block::Stored(next)) => place.saturating_add(count * self.block_size) == next,
                (one, other) => one == other,
            };
            if !continues {
                break;
            }
            count += 1;
        }
        let length = (count * self.block_size - in_block).min(self.len() - offset);
        Ok(match block {
            Block::Absent => Extent { present: self.layout.absent_is_present(), ..Extent::new(ExtentKind::Zero, length) },
            Block::Zero => Extent::new(ExtentKind::Zero, length),
            Block::Stored(place) => {
                Extent { host_offset: Some(place.saturating_add(in_block)), ..Extent::new(ExtentKind::Data, length) }
            }
        })
    }

    fn info(&self) -> ImageInfo {
        self.layout.info()
    }

    fn resize(&self, size: u64, preallocation: Preallocation) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        let refuse = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: self.path().to_path_buf() };
        let mut table = self.alone()?;
        let old = self.len();
        let (old_blocks, blocks) = (old.div_ceil(self.block_size), size.div_ceil(self.block_size));
        if size < old {
            return Err(refuse("A disk of this format can grow but not shrink. Convert it to a smaller one"));
        }
        if preallocation != Preallocation::Off {
            return Err(refuse("A disk of this format cannot set space aside while it grows"));
        }
        if !size.is_multiple_of(512) || size > i64::MAX as u64 || blocks > MAX_BLOCKS {
            return Err(refuse("This size is larger than a disk of this format can be, or no multiple of 512 bytes"));
        }
        // What another program left behind the disk's end must not come to light.
        if let (Block::Stored(place), rest @ 1..) = (table.block((old / self.block_size) as usize), old % self.block_size) {
            self.wipe(place + rest, self.block_size - rest)?;
        }
        self.commit(&mut table)?;
        self.layout.grow(&self.file, size, old_blocks, blocks)?;
        table.places.resize(blocks as usize, ABSENT);
        self.size.store(size, Ordering::Release);
        Ok(())
    }
}

impl<L: Layout> Drop for BlockTableDisk<L> {
    fn drop(&mut self) {
        if self.access == Access::ReadOnly || self.file.check_fence().is_err() {
            return;
        }
        let Ok(mut table) = self.table.write() else { return };
        if !table.unwritten.is_empty()
            && let Err(error) = self.commit(&mut table)
        {
            tracing::error!(%error, "a disk could not be closed properly; writes since its last flush are lost");
        }
    }
}
