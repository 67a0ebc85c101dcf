//! Finding places for blocks, and copying what shows through into them.

use std::sync::atomic::Ordering;

use crate::DiskError;
use crate::parent::Base;

use super::marks::MarksHome;
use super::{Block, BlockTableDisk, Layout, Table, end_of};

/// Bytes that are copied from the base at a time.
const COPIED_AT_ONCE: u64 = 1 << 20;

impl<L: Layout> BlockTableDisk<L> {
    /// A place at the end of the file for so many bytes, of which nobody knows yet: full of zeros, and behind a block's
    /// head if it is to have one.
    fn new_place(&self, table: &Table, head: &[u8], length: u64) -> Result<u64, DiskError> {
        let full = || DiskError::FormatFull { path: self.path().to_path_buf() };
        let start = table.end.checked_next_multiple_of(self.layout.alignment()).ok_or_else(full)?;
        let place = start.checked_add(head.len() as u64).filter(|place| *place <= self.layout.max_place()).ok_or_else(full)?;
        let end = place.checked_add(length).ok_or_else(full)?;
        let file_end = self.file.len()?;
        if file_end < end {
            self.file.truncate(end)?;
        }
        // What a crash or an old footer left here must not become content.
        if file_end > start {
            self.wipe(start, file_end.min(end) - start)?;
        }
        if !head.is_empty() && self.marks.is_none() {
            self.file.write_at(start, head)?;
        }
        Ok(place)
    }

    /// Stores `data` in a block of which not all of it is stored yet.
    pub(super) fn store(&self, table: &mut Table, index: usize, in_block: u64, data: &[u8]) -> Result<(), DiskError> {
        // Somebody else may have been faster.
        if self.write_in_place(table, index, in_block, data)? {
            return Ok(());
        }
        let block = table.block(index);
        if self.marks.is_some() && !matches!(block, Block::Zero) {
            let place = self.place_for_sectors(table, index)?;
            let (from, to) = self.write_sectors(table, index, place, in_block, data)?;
            return self.own_sectors(table, index, place, from, to);
        }
        let place = self.new_place(table, self.layout.block_head(), self.block_size)?;
        if block == Block::Absent {
            self.copy_base(index, place, in_block, in_block + data.len() as u64)?;
        }
        self.file.write_at(place + in_block, data)?;
        self.take(table, index, Block::Stored(place));
        Ok(())
    }

    /// Makes a part of a block zeros although the base shows through there.
    pub(super) fn store_zeros(&self, table: &mut Table, index: usize, in_block: u64, length: u64) -> Result<(), DiskError> {
        let end = in_block + length;
        let block = table.block(index);
        let used = self.block_size.min(self.size.load(Ordering::Acquire) - index as u64 * self.block_size);
        match (block, &self.marks) {
            (Block::Stored(place), _) => self.wipe(place + in_block, length),
            (Block::Zero, _) => Ok(()),
            (Block::Absent, _) if self.layout.keeps_zeros() && in_block == 0 && end >= used => {
                table.set(index, Block::Zero);
                Ok(())
            }
            (_, Some(marks)) => {
                let size = marks.layout.sector_size;
                let place = self.place_for_sectors(table, index)?;
                let (first, last) = (in_block.next_multiple_of(size), end / size * size);
                if first >= last {
                    let (from, to) = self.write_sectors(table, index, place, in_block, &vec![0; length as usize])?;
                    return self.own_sectors(table, index, place, from, to);
                }
                for (from, to) in [(in_block, first), (last, end)] {
                    if from < to {
                        self.write_sectors(table, index, place, from, &vec![0; (to - from) as usize])?;
                    }
                }
                self.wipe(place + first, last - first)?;
                self.own_sectors(table, index, place, in_block / size * size, end.next_multiple_of(size))
            }
            (Block::Absent | Block::Partial(_), None) => {
                let place = self.new_place(table, self.layout.block_head(), self.block_size)?;
                self.copy_base(index, place, in_block, end)?;
                self.take(table, index, Block::Stored(place));
                Ok(())
            }
        }
    }

    /// Where the sectors of a block are or can be stored. Nothing is decided yet for one that was not.
    fn place_for_sectors(&self, table: &mut Table, index: usize) -> Result<u64, DiskError> {
        if let Some(place) = table.block(index).place() {
            return Ok(place);
        }
        self.ensure_map_block(table, index)?;
        self.new_place(table, self.layout.block_head(), self.block_size)
    }

    /// The block of marks that this block's belong in.
    fn ensure_map_block(&self, table: &mut Table, index: usize) -> Result<(), DiskError> {
        let Some(MarksHome::MapBlocks { blocks_each, length }) = self.marks.as_ref().map(|marks| marks.layout.home) else {
            return Ok(());
        };
        let number = (index as u64 / blocks_each) as usize;
        if table.map_blocks.get(number).is_none_or(|place| *place > 0) {
            return Ok(());
        }
        let place = self.new_place(table, &[], length)?;
        if let Some(entry) = table.map_blocks.get_mut(number) {
            *entry = place;
        }
        table.unwritten_map_blocks.insert(number);
        table.end = place + length;
        Ok(())
    }

    /// Writes whole sectors, with what reads beside `data` in the first and the last; returns where they begin and end.
    fn write_sectors(
        &self,
        table: &Table,
        index: usize,
        place: u64,
        in_block: u64,
        data: &[u8],
    ) -> Result<(u64, u64), DiskError> {
        let size = self.marks.as_ref().map_or(1, |marks| marks.layout.sector_size);
        let end = in_block + data.len() as u64;
        let (from, to) = (in_block / size * size, end.next_multiple_of(size).min(self.block_size));
        if (from, to) == (in_block, end) {
            self.file.write_at(place + from, data)?;
        } else {
            let mut sectors = vec![0; (to - from) as usize];
            self.read_block(table, index, from, &mut sectors)?;
            let start = (in_block - from) as usize;
            sectors[start..start + data.len()].copy_from_slice(data);
            self.file.write_at(place + from, &sectors)?;
        }
        Ok((from, to))
    }

    /// Sectors that have been written belong to the disk from now on.
    fn own_sectors(&self, table: &mut Table, index: usize, place: u64, from: u64, to: u64) -> Result<(), DiskError> {
        let Some(marks) = &self.marks else { return Ok(()) };
        if table.block(index).place().is_none() {
            self.take(table, index, Block::Partial(place));
            marks.clear(index);
        }
        marks.mark(&self.file, index, self.marks_place(table, index, place), from, to.min(self.block_size))?;
        if marks.are_crowded() { self.commit(table) } else { Ok(()) }
    }

    fn take(&self, table: &mut Table, index: usize, block: Block) {
        table.set(index, block);
        table.end = table.end.max(block.place().unwrap_or(0) + self.block_size);
        table.stored += 1;
    }

    /// Copies what shows through of a block to its new place, but for the bytes between `from` and `to`.
    fn copy_base(&self, index: usize, place: u64, from: u64, to: u64) -> Result<(), DiskError> {
        if !matches!(self.base, Base::Open(_)) {
            return Ok(());
        }
        let start = index as u64 * self.block_size;
        let mut buffer = vec![0; COPIED_AT_ONCE.min(self.block_size) as usize];
        for (mut at, end) in [(0, from), (to, self.block_size)] {
            while at < end {
                let piece = &mut buffer[..COPIED_AT_ONCE.min(end - at) as usize];
                self.base.read(start + at, piece)?;
                // The new place is zeros already.
                if piece.iter().any(|byte| *byte != 0) {
                    self.file.write_at(place + at, piece)?;
                }
                at += piece.len() as u64;
            }
        }
        Ok(())
    }

    /// Turns a range of the file into zeros.
    pub(super) fn wipe(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        if length == 0 || self.file.punch_hole(offset, length)? {
            return Ok(());
        }
        self.file.write_zeros(offset, length)
    }

    /// Gives up whole blocks, so that the base shows through there again. Durable when it returns.
    pub(super) fn forget(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        let size = self.size.load(Ordering::Acquire);
        let head = self.layout.block_head().len() as u64;
        let mut table = self.alone()?;
        let mut freed = Vec::new();
        for (index, in_block, length) in self.pieces(offset, length) {
            let is_whole = in_block == 0 && length == self.block_size.min(size - index as u64 * self.block_size);
            if !is_whole || table.block(index) == Block::Absent {
                continue;
            }
            if let Some(place) = table.block(index).place() {
                freed.push(place - head);
                table.stored -= 1;
                if let Some(marks) = &self.marks {
                    marks.forget(index);
                }
            }
            table.set(index, Block::Absent);
        }
        self.commit(&mut table)?;
        // Only now does nothing point there any more.
        for place in freed {
            self.file.punch_hole(place, head + self.block_size)?;
        }
        self.cut_tail(&mut table)
    }

    /// Gives back what lies behind the last block.
    pub(super) fn cut_tail(&self, table: &mut Table) -> Result<(), DiskError> {
        let end = end_of(table, self.block_size, self.marks.as_ref());
        if end < table.end {
            table.end = end;
            self.layout.before_entries(&self.file, end, table.stored)?;
            self.file.flush()?;
            self.file.truncate(end + self.layout.tail_length())?;
        }
        self.file.flush()
    }

    /// Before the base goes: sectors that are not the disk's own become zeros that are.
    pub(super) fn complete_blocks(&self, table: &mut Table) -> Result<(), DiskError> {
        let Some(marks) = &self.marks else { return Ok(()) };
        for index in 0..table.places.len() {
            let Block::Partial(place) = table.block(index) else { continue };
            let marks_place = self.marks_place(table, index, place);
            let mut at = 0;
            while at < self.block_size {
                let (is_own, length) = marks.run(&self.file, index, marks_place, at, self.block_size)?;
                if !is_own {
                    self.wipe(place + at, length)?;
                }
                at += length;
            }
            marks.mark(&self.file, index, marks_place, 0, self.block_size)?;
        }
        // What is wiped must be durable before it is said to be there, and only then may the blocks be called whole.
        self.commit(table)?;
        for index in 0..table.places.len() {
            if let Block::Partial(place) = table.block(index) {
                table.set(index, Block::Stored(place));
            }
        }
        Ok(())
    }
}
