//! Disks that keep blocks of one size, found by one table: VDI, VHD, VHDX and VMDK differ only in how they write it down.
//!
//! A block that is first written goes to the end of the file; the table in memory knows it at once, the table in the
//! file when the disk is flushed, in this order, with `fdatasync` where a bar stands:
//!
//! ```text
//!   data, what the format keeps beside it (counts, footers, marks of new blocks) ┃ places of map blocks, if there are new
//!   ones ┃ table entries, marks of other blocks ┃
//! ```
//!
//! So nothing ever points at what is not there. A crash leaves the last flushed state and at worst blocks at the end
//! that nobody knows; the next block takes their place, and is wiped first. A block once stored stays where it is: zeros
//! and discards punch holes into it.
//!
//! Over a base, a block is copied whole at its first write (VDI, VMDK), or it keeps marks of the sectors that are its own
//! (VHD, VHDX: `marks.rs`). `store.rs` finds places and copies; `resize.rs` changes the size.

mod marks;
mod resize;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::block_file::{Access, BlockFile};
use crate::fenced_file::FencedFile;
use crate::image::{DiskImage, Extent, ExtentKind, check_range};
use crate::image_info::{Identity, ImageInfo};
use crate::open::{Backing, Preallocation};
use crate::parent::{Base, identify};
use crate::{DiskError, Format};

use marks::Marks;
pub(crate) use marks::{BitOrder, MarksHome, MarksLayout};

/// More blocks than this would need too much memory for their table (128 MiB).
pub(crate) const MAX_BLOCKS: u64 = 1 << 24;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// Never written: the base, or zeros.
    Absent,
    /// Written as zeros, without place in the file.
    Zero,
    /// At this position of the file (behind the format's own bytes, if it puts any before the data).
    Stored(u64),
    /// The same, but only the sectors that its marks name are there; the others show the base.
    Partial(u64),
}

impl Block {
    fn place(self) -> Option<u64> {
        match self {
            Block::Absent | Block::Zero => None,
            Block::Stored(place) | Block::Partial(place) => Some(place),
        }
    }
}

/// What differs between the formats.
pub(crate) trait Layout: Send + Sync {
    /// Which format it is.
    fn format(&self) -> Format;

    /// What the file says of itself.
    fn info(&self) -> ImageInfo;

    /// What to write where, so that the table says this of a block.
    fn entries(&self, index: usize, block: Block) -> Vec<(u64, Vec<u8>)>;

    /// What to write where, so that the table says that a block of marks is at `place`.
    fn map_block_entry(&self, _number: usize, _place: u64) -> (u64, Vec<u8>) {
        (0, Vec::new())
    }

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

    /// Whether an entry can say that a block is zeros.
    fn keeps_zeros(&self) -> bool {
        false
    }

    /// Writes what must be durable before the table's new entries: `end` is where the last block ends, `stored` how many
    /// there are.
    fn before_entries(&self, _file: &FencedFile, _end: u64, _stored: u64) -> Result<(), DiskError> {
        Ok(())
    }

    /// Bytes that [`before_entries`](Self::before_entries) puts behind the last block.
    fn tail_length(&self) -> u64 {
        0
    }

    /// Says in the file, durably, that its content is another one from now on: see [`Identity`].
    fn begin_change(&self, _file: &FencedFile) -> Result<(), DiskError> {
        Ok(())
    }

    /// Makes the file tell of a larger disk: first all that is new, durably, then, in one write that cannot tear, the size.
    /// All else has been written down before.
    fn grow(&self, _file: &FencedFile, _growth: Growth) -> Result<Grown, DiskError> {
        Err(DiskError::NotPossible { title: self.format().driver().title, action: "change its size" })
    }

    /// Makes the file tell of a smaller disk with so many blocks, in one write that cannot tear.
    fn shrink(&self, _file: &FencedFile, _size: u64, _blocks: u64) -> Result<(), DiskError> {
        Err(DiskError::NotPossible { title: self.format().driver().title, action: "shrink" })
    }

    /// Makes the file name another base, or none, in one write that cannot tear. `end` becomes where the
    /// next block may go, if something was put behind the last one.
    fn set_base(&self, _file: &FencedFile, _base: Option<(&Backing, Identity)>, _end: &mut u64) -> Result<(), DiskError> {
        Err(DiskError::NotPossible { title: self.format().driver().title, action: "be built on another disk" })
    }

    /// What the person should know: see [`DiskImage::warnings`].
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether a block that was never written counts as decided by this file.
    fn absent_is_present(&self) -> bool {
        true
    }
}

/// How a disk is to grow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Growth {
    /// Bytes it will have.
    pub(crate) size: u64,
    pub(crate) old_blocks: u64,
    pub(crate) blocks: u64,
    /// Where the last block ends.
    pub(crate) end: u64,
}

/// What has become of it.
#[derive(Default)]
pub(crate) struct Grown {
    /// Where the next block may go, if that is further on than before.
    pub(crate) end: u64,
    /// The new blocks, if they are not absent.
    pub(crate) new_blocks: Vec<Block>,
}

/// The table in memory. Positions as `u64`, because there may be many; 0 and 1 lie in every format's header.
struct Table {
    places: Vec<u64>,
    /// Blocks of which the file's table does not know yet.
    unwritten: BTreeSet<usize>,
    /// Where the blocks of marks are, for formats that have such; 0 where there is none.
    map_blocks: Vec<u64>,
    unwritten_map_blocks: BTreeSet<usize>,
    /// New blocks never go before this.
    first_free: u64,
    /// Where the next block goes.
    end: u64,
    stored: u64,
}

const ABSENT: u64 = 0;
const ZERO: u64 = 1;
/// No place has this bit.
const PARTIAL: u64 = 1 << 63;

impl Table {
    fn block(&self, index: usize) -> Block {
        match self.places.get(index).copied().unwrap_or(ABSENT) {
            ABSENT => Block::Absent,
            ZERO => Block::Zero,
            place if place & PARTIAL != 0 => Block::Partial(place & !PARTIAL),
            place => Block::Stored(place),
        }
    }

    fn set(&mut self, index: usize, block: Block) {
        let word = word_of(block);
        if let Some(entry) = self.places.get_mut(index) {
            *entry = word;
            self.unwritten.insert(index);
        }
    }
}

/// Where all blocks of a disk are, in as few bytes as the table keeps them.
pub(crate) struct Places(Vec<u64>);

impl FromIterator<Block> for Places {
    fn from_iter<I: IntoIterator<Item = Block>>(blocks: I) -> Self {
        Self(blocks.into_iter().map(word_of).collect())
    }
}

fn word_of(block: Block) -> u64 {
    match block {
        Block::Absent => ABSENT,
        Block::Zero => ZERO,
        Block::Stored(place) => place,
        Block::Partial(place) => place | PARTIAL,
    }
}

/// An open disk of such a format.
pub(crate) struct BlockTableDisk<L: Layout> {
    file: FencedFile,
    access: Access,
    layout: L,
    base: Base,
    marks: Option<Marks>,
    size: AtomicU64,
    block_size: u64,
    /// Whether the file says already that its content is another one than before it was opened.
    is_changed: AtomicBool,
    table: RwLock<Table>,
}

/// What a format has read from its headers.
pub(crate) struct Opened<L> {
    pub(crate) layout: L,
    pub(crate) size: u64,
    pub(crate) block_size: u64,
    /// One for each block of the disk.
    pub(crate) blocks: Places,
    /// Where the first block may lie.
    pub(crate) data_start: u64,
    /// New blocks never go before this.
    pub(crate) first_free: u64,
    /// Other stretches (position, length) in which no block may lie: tables that are not in front of the data.
    pub(crate) reserved: Vec<(u64, u64)>,
    /// Blocks whose entries a crash left half written; the next flush writes them again.
    pub(crate) unwritten: BTreeSet<usize>,
    pub(crate) base: Base,
    /// How the marks of partial blocks are kept; only differencing disks have them.
    pub(crate) marks: Option<MarksLayout>,
    /// Where the blocks of marks are.
    pub(crate) map_blocks: Vec<u64>,
}

impl<L> Opened<L> {
    /// A disk that stands by itself.
    pub(crate) fn new(layout: L, size: u64, block_size: u64, blocks: Places, data_start: u64) -> Self {
        Self {
            layout,
            size,
            block_size,
            blocks,
            data_start,
            first_free: data_start,
            reserved: Vec::new(),
            unwritten: BTreeSet::new(),
            base: Base::None,
            marks: None,
            map_blocks: Vec::new(),
        }
    }
}

impl<L: Layout> BlockTableDisk<L> {
    /// Takes over what a format has read. Two entries for one place, or one outside the file, refuse writing.
    pub(crate) fn new(file: Arc<dyn BlockFile>, access: Access, opened: Opened<L>) -> Result<Self, DiskError> {
        let Opened { layout, size, block_size, blocks, data_start, first_free, reserved, unwritten, base, marks, map_blocks } =
            opened;
        let file = FencedFile::new(file);
        let file_end = file.len()?;
        let head = layout.block_head().len() as u64;
        let marks = marks.map(|layout| Marks::new(layout, block_size));
        let Places(places) = blocks;
        let stored = places.iter().filter(|word| **word > ZERO).count() as u64;
        let mut disk = Self {
            file,
            access,
            layout,
            base,
            marks,
            size: AtomicU64::new(size),
            block_size,
            is_changed: AtomicBool::new(false),
            table: RwLock::new(Table {
                places,
                unwritten,
                map_blocks,
                unwritten_map_blocks: BTreeSet::new(),
                first_free: data_start.max(first_free),
                end: 0,
                stored,
            }),
        };
        if let Ok(table) = disk.table.get_mut() {
            table.end = end_of(table, block_size, disk.marks.as_ref());
            let shape = Shape { block_size, head, map_length: map_block_length(disk.marks.as_ref()), data_start, file_end };
            if access == Access::ReadWrite
                && let Some(detail) = contradiction(table, &reserved, &shape)
            {
                let advice = "Open it read-only and copy what is there";
                return Err(DiskError::Damaged { detail: detail.into(), advice, path: disk.path().to_path_buf() });
            }
        }
        Ok(disk)
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

    /// Before the content changes for the first time, the file says so: disks that are built on it must notice.
    fn begin_change(&self) -> Result<(), DiskError> {
        if self.is_changed.load(Ordering::Acquire) {
            return Ok(());
        }
        let _table = self.alone()?;
        if !self.is_changed.load(Ordering::Acquire) {
            self.layout.begin_change(&self.file)?;
            self.is_changed.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Whether something else shows through where the file has nothing.
    fn has_base(&self) -> bool {
        !matches!(self.base, Base::None)
    }

    /// The pieces of a range that lie in one block each: block, position in it, length.
    fn pieces(&self, offset: u64, length: u64) -> impl Iterator<Item = (usize, u64, u64)> + use<L> {
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

    /// Where in the file the marks of a partial block stand.
    fn marks_place(&self, table: &Table, index: usize, place: u64) -> u64 {
        let Some(marks) = &self.marks else { return 0 };
        match marks.layout.home {
            MarksHome::BlockHead => place.saturating_sub(self.layout.block_head().len() as u64),
            MarksHome::MapBlocks { blocks_each, .. } => {
                let (number, in_map) = (index as u64 / blocks_each, index as u64 % blocks_each);
                table.map_blocks.get(number as usize).copied().unwrap_or(0) + in_map * marks.length()
            }
        }
    }

    /// Reads a part of one block.
    fn read_block(&self, table: &Table, index: usize, in_block: u64, piece: &mut [u8]) -> Result<(), DiskError> {
        let start = index as u64 * self.block_size;
        match (table.block(index), &self.marks) {
            (Block::Absent, _) => self.base.read(start + in_block, piece),
            (Block::Zero, _) => {
                piece.fill(0);
                Ok(())
            }
            (Block::Partial(place), Some(marks)) => {
                let marks_place = self.marks_place(table, index, place);
                let end = in_block + piece.len() as u64;
                let (mut at, mut rest) = (in_block, piece);
                while at < end {
                    let (is_own, length) = marks.run(&self.file, index, marks_place, at, end)?;
                    let (run, later) = rest.split_at_mut(length as usize);
                    match is_own {
                        true => self.read_stored(place, at, run)?,
                        false => self.base.read(start + at, run)?,
                    }
                    (at, rest) = (at + length, later);
                }
                Ok(())
            }
            (Block::Stored(place) | Block::Partial(place), _) => self.read_stored(place, in_block, piece),
        }
    }

    fn read_stored(&self, place: u64, in_block: u64, piece: &mut [u8]) -> Result<(), DiskError> {
        if self.file.len()? <= place {
            let detail = "a block lies past the end of the file".into();
            let advice = "Copy what can be read, or restore a backup";
            return Err(DiskError::Damaged { detail, advice, path: self.path().to_path_buf() });
        }
        self.file.read_zero_padded(place.saturating_add(in_block), piece)?;
        Ok(())
    }

    /// Writes where the block is stored already, and all that is written to is its own; says whether that was so.
    fn write_in_place(&self, table: &Table, index: usize, in_block: u64, piece: &[u8]) -> Result<bool, DiskError> {
        let place = match (table.block(index), &self.marks) {
            (Block::Stored(place), _) => place,
            (Block::Partial(place), Some(marks)) => {
                let marks_place = self.marks_place(table, index, place);
                if !marks.covers(&self.file, index, marks_place, in_block, in_block + piece.len() as u64)? {
                    return Ok(false);
                }
                place
            }
            _ => return Ok(false),
        };
        self.file.write_at(place + in_block, piece)?;
        Ok(true)
    }

    fn has_unwritten(&self, table: &Table) -> bool {
        !table.unwritten.is_empty() || self.marks.as_ref().is_some_and(Marks::have_changed)
    }

    fn commit(&self, table: &mut Table) -> Result<(), DiskError> {
        if !self.has_unwritten(table) {
            return self.file.flush();
        }
        self.layout.before_entries(&self.file, table.end, table.stored)?;
        // Marks of a new block mean nothing before its entry is there; those of others must not come before their data.
        let changed = self.marks.as_ref().map(Marks::changed).unwrap_or_default();
        let mut writes: Vec<(u64, Vec<u8>)> = Vec::new();
        for (index, bits) in changed {
            let Some(place) = table.block(index).place() else { continue };
            let at = self.marks_place(table, index, place);
            match table.unwritten.contains(&index) {
                true => self.file.write_at(at, &bits)?,
                false => writes.push((at, bits)),
            }
        }
        self.file.flush()?;
        if !table.unwritten_map_blocks.is_empty() {
            for number in &table.unwritten_map_blocks {
                let place = table.map_blocks.get(*number).copied().unwrap_or(0);
                let (at, entry) = self.layout.map_block_entry(*number, place);
                self.file.write_at(at, &entry)?;
            }
            self.file.flush()?;
            table.unwritten_map_blocks.clear();
        }
        for index in &table.unwritten {
            writes.extend(self.layout.entries(*index, table.block(*index)));
        }
        writes.sort_unstable_by_key(|(at, _)| *at);
        // What lies side by side is written together.
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
        if let Some(marks) = &self.marks {
            marks.are_written();
        }
        Ok(())
    }
}

/// Where the last block, of data or of marks, ends.
fn end_of(table: &Table, block_size: u64, marks: Option<&Marks>) -> u64 {
    let data = (0..table.places.len()).filter_map(|index| table.block(index).place()).max();
    let data_end = data.map_or(0, |place| place.saturating_add(block_size));
    let maps = table.map_blocks.iter().copied().max().filter(|place| *place > 0);
    let maps_end = maps.map_or(0, |place| place.saturating_add(map_block_length(marks)));
    table.first_free.max(data_end).max(maps_end)
}

fn map_block_length(marks: Option<&Marks>) -> u64 {
    match marks.map(|marks| marks.layout.home) {
        Some(MarksHome::MapBlocks { length, .. }) => length,
        _ => 0,
    }
}

/// Lengths and places that blocks must fit.
struct Shape {
    block_size: u64,
    head: u64,
    map_length: u64,
    data_start: u64,
    file_end: u64,
}

/// What in a table forbids writing.
fn contradiction(table: &Table, reserved: &[(u64, u64)], shape: &Shape) -> Option<&'static str> {
    let Shape { block_size, head, map_length, data_start, file_end } = *shape;
    let mut sorted: Vec<u64> = (0..table.places.len()).filter_map(|index| table.block(index).place()).collect();
    sorted.sort_unstable();
    let mut maps: Vec<u64> = table.map_blocks.iter().copied().filter(|place| *place > 0).collect();
    maps.sort_unstable();
    let is_hit = |start: u64, length: u64| {
        let after = sorted.partition_point(|place| place.saturating_add(block_size) <= start);
        sorted.get(after).is_some_and(|place| place.saturating_sub(head) < start.saturating_add(length))
    };
    if sorted.windows(2).any(|pair| pair[1] - pair[0] < block_size + head)
        || maps.windows(2).any(|pair| pair[1] - pair[0] < map_length)
        || maps.iter().any(|map| is_hit(*map, map_length))
        || reserved.iter().any(|(start, length)| is_hit(*start, *length))
    {
        return Some("two blocks share one place");
    }
    let is_outside = |places: &[u64], start: u64| {
        places.first().is_some_and(|first| *first < start) || places.last().is_some_and(|last| *last >= file_end.max(1))
    };
    (is_outside(&sorted, data_start + head) || is_outside(&maps, data_start)).then_some("a block lies outside the file")
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
            self.read_block(&table, index, in_block, piece)?;
            rest = later;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.check_write(offset, data.len() as u64)?;
        self.begin_change()?;
        let mut rest = data;
        for (index, in_block, length) in self.pieces(offset, data.len() as u64) {
            let (piece, later) = rest.split_at(length as usize);
            rest = later;
            let table = self.shared()?;
            if self.write_in_place(&table, index, in_block, piece)? {
                continue;
            }
            drop(table);
            self.store(&mut *self.alone()?, index, in_block, piece)?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        self.file.check_fence()?;
        let has_changes = self.has_unwritten(&*self.shared()?);
        if has_changes { self.commit(&mut *self.alone()?) } else { self.file.flush() }
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.check_write(offset, length)?;
        self.begin_change()?;
        if matches!(self.base, Base::LeftOut) {
            return self.forget(offset, length);
        }
        let table = self.shared()?;
        for (index, in_block, length) in self.pieces(offset, length) {
            if let Some(place) = table.block(index).place() {
                // Where holes are impossible the content stays, which a discard allows.
                self.file.punch_hole(place + in_block, length)?;
            }
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.check_write(offset, length)?;
        self.begin_change()?;
        for (index, in_block, length) in self.pieces(offset, length) {
            let table = self.shared()?;
            match table.block(index) {
                Block::Stored(place) => self.wipe(place + in_block, length)?,
                Block::Zero => {}
                Block::Absent if !self.has_base() => {}
                Block::Absent | Block::Partial(_) => {
                    drop(table);
                    self.store_zeros(&mut *self.alone()?, index, in_block, length)?;
                }
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
        let limit = self.len() - offset;
        if let (Block::Partial(place), Some(marks)) = (block, &self.marks) {
            let marks_place = self.marks_place(&table, first, place);
            let (is_own, length) = marks.run(&self.file, first, marks_place, in_block, self.block_size)?;
            let length = length.min(limit);
            return Ok(match is_own {
                true => Extent { host_offset: Some(place.saturating_add(in_block)), ..Extent::new(ExtentKind::Data, length) },
                false => self.extent_below(length),
            });
        }
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
        let length = (count * self.block_size - in_block).min(limit);
        Ok(match block {
            Block::Absent if self.has_base() => self.extent_below(length),
            Block::Absent => Extent { present: self.layout.absent_is_present(), ..Extent::new(ExtentKind::Zero, length) },
            Block::Zero => Extent::new(ExtentKind::Zero, length),
            Block::Stored(place) | Block::Partial(place) => {
                Extent { host_offset: Some(place.saturating_add(in_block)), ..Extent::new(ExtentKind::Data, length) }
            }
        })
    }

    fn warnings(&self) -> Vec<String> {
        self.layout.warnings()
    }

    fn backing(&self) -> Option<Arc<dyn DiskImage>> {
        self.base.image().cloned()
    }

    fn info(&self) -> ImageInfo {
        self.layout.info()
    }

    fn resize(&self, size: u64, preallocation: Preallocation) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        self.change_size(size, preallocation)
    }

    fn announce_change(&self) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        self.begin_change()
    }

    fn set_backing(&self, backing: Option<&Backing>) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        let refuse = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: self.path().to_path_buf() };
        if !self.has_base() {
            return Err(refuse("Only a disk of this format that was made on another can be put on another. Use qcow2"));
        }
        let base = match backing {
            None => None,
            Some(backing) => Some((backing, identify(self.path(), backing, self.format())?.0)),
        };
        let mut table = self.alone()?;
        if base.is_none() {
            self.complete_blocks(&mut table)?;
        }
        self.commit(&mut table)?;
        let mut end = table.end;
        self.layout.set_base(&self.file, base, &mut end)?;
        if end > table.end {
            (table.end, table.first_free) = (end, end);
        }
        Ok(())
    }
}

impl<L: Layout> BlockTableDisk<L> {
    fn extent_below(&self, length: u64) -> Extent {
        match &self.base {
            Base::Open(_) => Extent::new(ExtentKind::Backing, length),
            Base::None | Base::LeftOut => Extent { present: false, ..Extent::new(ExtentKind::Zero, length) },
        }
    }
}

impl<L: Layout> Drop for BlockTableDisk<L> {
    fn drop(&mut self) {
        if self.access == Access::ReadOnly || self.file.check_fence().is_err() {
            return;
        }
        let Ok(mut table) = self.table.write() else { return };
        if self.has_unwritten(&table)
            && let Err(error) = self.commit(&mut table)
        {
            tracing::error!(%error, "a disk could not be closed properly; writes since its last flush are lost");
        }
    }
}
