//! Sector marks: differencing VHD and VHDX disks keep one bit for each sector of a block, which says whether the sector
//! is theirs or shows through from the base. The bits of a block are read when they are first asked for; changed ones
//! stay here until the disk is flushed.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::DiskError;
use crate::fenced_file::FencedFile;

/// Bits that are held in memory although the file has them too.
const MOST_KEPT: usize = 32 << 20;

/// Which end of a byte belongs to its first sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BitOrder {
    HighestFirst,
    LowestFirst,
}

/// Where the marks of a block stand in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MarksHome {
    /// At the start of the head of each block.
    BlockHead,
    /// Side by side in blocks of their own, each of `length` bytes and for so many blocks.
    MapBlocks { blocks_each: u64, length: u64 },
}

/// How a format keeps the marks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MarksLayout {
    pub(crate) sector_size: u64,
    pub(crate) order: BitOrder,
    pub(crate) home: MarksHome,
}

/// The marks of all blocks that may lack sectors.
pub(crate) struct Marks {
    pub(crate) layout: MarksLayout,
    sectors: u64,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    /// By block; the lowest bit of a byte is its first sector, whatever the file says.
    bits: HashMap<usize, Vec<u8>>,
    /// Blocks whose marks the file does not have yet.
    changed: BTreeSet<usize>,
}

impl Marks {
    pub(crate) fn new(layout: MarksLayout, block_size: u64) -> Self {
        Self { layout, sectors: (block_size / layout.sector_size).max(1), cache: Mutex::default() }
    }

    /// Bytes that the marks of one block take.
    pub(crate) fn length(&self) -> u64 {
        self.sectors.div_ceil(8)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The marks of a block that stand at `place`.
    fn loaded<'a>(
        &self,
        cache: &'a mut Cache,
        file: &FencedFile,
        block: usize,
        place: u64,
    ) -> Result<&'a mut Vec<u8>, DiskError> {
        if !cache.bits.contains_key(&block) {
            if cache.bits.len() >= MOST_KEPT / self.length() as usize {
                let Cache { bits, changed } = cache;
                bits.retain(|block, _| changed.contains(block));
            }
            let mut bits = vec![0; self.length() as usize];
            file.read_zero_padded(place, &mut bits)?;
            self.turn(&mut bits);
            cache.bits.insert(block, bits);
        }
        Ok(cache.bits.entry(block).or_default())
    }

    /// From the file's order of bits to ours, and back.
    fn turn(&self, bits: &mut [u8]) {
        if self.layout.order == BitOrder::HighestFirst {
            bits.iter_mut().for_each(|byte| *byte = byte.reverse_bits());
        }
    }

    /// From byte `from` of a block, at most to `to`: how many bytes are alike, and whether they are the disk's own.
    pub(crate) fn run(&self, file: &FencedFile, block: usize, place: u64, from: u64, to: u64) -> Result<(bool, u64), DiskError> {
        let mut cache = self.cache();
        let bits = self.loaded(&mut cache, file, block, place)?;
        let size = self.layout.sector_size;
        let is_marked = |sector: u64| bits.get((sector / 8) as usize).is_some_and(|byte| byte >> (sector % 8) & 1 == 1);
        let first = from / size;
        let is_own = is_marked(first);
        let end = (first + 1..to.div_ceil(size)).find(|sector| is_marked(*sector) != is_own);
        Ok((is_own, end.map_or(to, |sector| sector * size) - from))
    }

    /// Whether all of these bytes of a block are the disk's own.
    pub(crate) fn covers(&self, file: &FencedFile, block: usize, place: u64, from: u64, to: u64) -> Result<bool, DiskError> {
        Ok(self.run(file, block, place, from, to)? == (true, to - from))
    }

    /// Says that these whole sectors are the disk's own from now on.
    pub(crate) fn mark(&self, file: &FencedFile, block: usize, place: u64, from: u64, to: u64) -> Result<(), DiskError> {
        let mut cache = self.cache();
        let bits = self.loaded(&mut cache, file, block, place)?;
        let size = self.layout.sector_size;
        for sector in from / size..(to / size).min(self.sectors) {
            if let Some(byte) = bits.get_mut((sector / 8) as usize) {
                *byte |= 1 << (sector % 8);
            }
        }
        cache.changed.insert(block);
        Ok(())
    }

    /// Begins anew with a block of which no sector is the disk's own.
    pub(crate) fn clear(&self, block: usize) {
        let mut cache = self.cache();
        cache.bits.insert(block, vec![0; self.length() as usize]);
        cache.changed.insert(block);
    }

    /// Forgets a block that is no longer stored.
    pub(crate) fn forget(&self, block: usize) {
        let mut cache = self.cache();
        cache.bits.remove(&block);
        cache.changed.remove(&block);
    }

    /// The blocks whose marks the file does not have yet, and these as the file is to have them.
    pub(crate) fn changed(&self) -> Vec<(usize, Vec<u8>)> {
        let cache = self.cache();
        let in_file = |block: &usize| {
            let mut bits = cache.bits.get(block)?.clone();
            self.turn(&mut bits);
            Some((*block, bits))
        };
        cache.changed.iter().filter_map(in_file).collect()
    }

    /// Whether so much was changed that it should be written down.
    pub(crate) fn are_crowded(&self) -> bool {
        self.cache().changed.len() >= MOST_KEPT / self.length() as usize
    }

    pub(crate) fn have_changed(&self) -> bool {
        !self.cache().changed.is_empty()
    }

    /// The file has them all now.
    pub(crate) fn are_written(&self) {
        self.cache().changed.clear();
    }
}
