//! Larger and smaller disks. What is added reads as zeros; what is cut off must be zeros already, because these formats
//! have no way to give content up that a crash could not leave half done.

use std::sync::atomic::Ordering;

use crate::DiskError;
use crate::image::{DiskImage, ExtentKind};
use crate::open::Preallocation;

use super::{ABSENT, BlockTableDisk, Growth, Layout, MAX_BLOCKS, MarksHome, word_of};

/// Bytes looked at together.
const STRETCH: u64 = 1 << 20;

impl<L: Layout> BlockTableDisk<L> {
    pub(super) fn change_size(&self, size: u64, preallocation: Preallocation) -> Result<(), DiskError> {
        let refuse = |reason: &str| Err(DiskError::BadOptions { reason: reason.into(), path: self.path().to_path_buf() });
        let old = self.len();
        if preallocation != Preallocation::Off {
            return refuse("A disk of this format cannot set space aside while it grows");
        }
        if !size.is_multiple_of(512) || size > i64::MAX as u64 || size.div_ceil(self.block_size) > MAX_BLOCKS {
            return refuse("This size is larger than a disk of this format can be, or no multiple of 512 bytes");
        }
        if size > old && self.base.image().is_some_and(|base| base.len() > old) {
            return refuse("This disk is smaller than the one it is built on, which would show where it grows. Convert it");
        }
        if size < old && !self.is_empty_from(size)? {
            return refuse("There is content behind the new end, which would be lost. Convert the disk to a smaller one");
        }
        self.begin_change()?;
        if size < old { self.shrink(size) } else { self.grow(old, size) }
    }

    /// Whether the file holds nothing but zeros from `from` on. What is the base's is not lost.
    fn is_empty_from(&self, from: u64) -> Result<bool, DiskError> {
        let mut buffer = vec![0; STRETCH as usize];
        let mut at = from;
        while at < self.len() {
            let extent = self.extent_at(at)?;
            let mut length = extent.length;
            if extent.kind == ExtentKind::Data {
                length = length.min(STRETCH);
                let piece = &mut buffer[..length as usize];
                self.read_at(at, piece)?;
                if piece.iter().any(|byte| *byte != 0) {
                    return Ok(false);
                }
            }
            at += length;
        }
        Ok(true)
    }

    fn grow(&self, old: u64, size: u64) -> Result<(), DiskError> {
        let mut table = self.alone()?;
        let (old_blocks, blocks) = (old.div_ceil(self.block_size), size.div_ceil(self.block_size));
        // What another program left behind the disk's end must not come to light.
        if let (Some(place), rest @ 1..) = (table.block((old / self.block_size) as usize).place(), old % self.block_size) {
            self.wipe(place + rest, self.block_size - rest)?;
        }
        self.commit(&mut table)?;
        let grown = self.layout.grow(&self.file, Growth { size, old_blocks, blocks, end: table.end })?;
        let new_blocks = grown.new_blocks;
        table.end = table.end.max(grown.end);
        if new_blocks.is_empty() {
            table.first_free = table.first_free.max(grown.end);
        }
        table.stored += new_blocks.len() as u64;
        table.places.extend(new_blocks.into_iter().map(word_of));
        table.places.resize(blocks as usize, ABSENT);
        let chunks = self.map_blocks_for(blocks);
        table.map_blocks.resize(chunks, 0);
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    fn shrink(&self, size: u64) -> Result<(), DiskError> {
        let mut table = self.alone()?;
        let blocks = size.div_ceil(self.block_size) as usize;
        self.commit(&mut table)?;
        self.layout.shrink(&self.file, size, blocks as u64)?;
        table.stored -= (blocks..table.places.len()).filter(|index| table.block(*index).place().is_some()).count() as u64;
        table.places.truncate(blocks);
        let chunks = self.map_blocks_for(blocks as u64);
        table.map_blocks.truncate(chunks);
        self.size.store(size, Ordering::Release);
        self.cut_tail(&mut table)
    }

    /// How many blocks of marks so many blocks need.
    fn map_blocks_for(&self, blocks: u64) -> usize {
        match self.marks.as_ref().map(|marks| marks.layout.home) {
            Some(MarksHome::MapBlocks { blocks_each, .. }) => blocks.div_ceil(blocks_each) as usize,
            _ => 0,
        }
    }
}
