//! Reference counts of host clusters, and handing out free ones.
//!
//! Everything here happens in memory; `metadata.rs` writes it down in the right order. A count that falls is only
//! lowered here after the pointer is durably gone, so whatever this calls free may be reused at once.
//! See: the qcow2 specification, "Host cluster management".

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use crate::DiskError;
use crate::fenced_file::FencedFile;

use super::header::{Header, MAX_REFCOUNT_TABLE_BYTES};
use super::l2_cache::write_words;
use super::mapping::{Geometry, MAX_HOST_OFFSET};

/// Bits 9–63 of a table entry: where its block lies.
pub(super) const BLOCK_OFFSET_MASK: u64 = !0x1ff;

/// One refcount block in memory.
struct Block {
    bytes: Box<[u8]>,
    dirty: Option<Range<usize>>,
}

/// The refcount table, its blocks, and where to look for free clusters.
pub(super) struct Refcounts {
    geometry: Geometry,
    table: Vec<u64>,
    table_offset: u64,
    table_clusters: u32,
    /// Table entries that the file does not have yet.
    dirty_entries: BTreeSet<usize>,
    place: TablePlace,
    blocks: HashMap<usize, Block>,
    dirty_blocks: BTreeSet<usize>,
    /// No cluster below this one is free.
    hint: u64,
}

/// Whether the header points at the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TablePlace {
    /// It does.
    Known,
    /// The table has moved; the header still points at the old one.
    New,
    /// A header write was tried; nobody knows which table it points at.
    Unsure,
}

/// What the growth of a structure occupies or leaves behind, for the caller to keep book of.
#[derive(Debug, Default)]
pub(super) struct Growth {
    /// Clusters that now hold metadata.
    pub(super) taken: Vec<u64>,
    /// Clusters to be released once the header points at the new table.
    pub(super) left: Vec<u64>,
}

/// Why no cluster could be had.
pub(super) enum AllocateError {
    /// The format cannot describe a larger file.
    Full,
    /// A count is as high as its width allows.
    TooShared,
    /// A refcount block could not be read.
    Disk(DiskError),
}

impl From<DiskError> for AllocateError {
    fn from(error: DiskError) -> Self {
        AllocateError::Disk(error)
    }
}

/// Clean blocks are dropped when more bytes than this are in memory.
const CACHE_BYTES: u64 = 16 << 20;

impl Refcounts {
    pub(super) fn read(file: &FencedFile, header: &Header, geometry: Geometry) -> Result<Self, DiskError> {
        let mut bytes = vec![0; (u64::from(header.refcount_table_clusters) * geometry.cluster_size()) as usize];
        file.read_exact(header.refcount_table_offset, &mut bytes)?;
        Ok(Self {
            geometry,
            table: bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect(),
            table_offset: header.refcount_table_offset,
            table_clusters: header.refcount_table_clusters,
            dirty_entries: BTreeSet::new(),
            place: TablePlace::Known,
            blocks: HashMap::new(),
            dirty_blocks: BTreeSet::new(),
            hint: 0,
        })
    }

    /// Table entries in file order, for the checks at opening.
    pub(super) fn table(&self) -> &[u64] {
        &self.table
    }

    /// Clusters of the table itself.
    pub(super) fn table_range(&self) -> Range<u64> {
        let first = self.table_offset / self.geometry.cluster_size();
        first..first + u64::from(self.table_clusters)
    }

    /// Clusters of the table and of all blocks.
    pub(super) fn own_clusters(&self) -> impl Iterator<Item = u64> {
        let blocks = self.table.iter().filter(|entry| **entry != 0);
        self.table_range().chain(blocks.map(|entry| (entry & BLOCK_OFFSET_MASK) / self.geometry.cluster_size()))
    }

    /// The count of a cluster, if its block is in memory.
    pub(super) fn peek(&self, cluster: u64) -> Option<u64> {
        let (index, entry) = self.position(cluster);
        match self.table.get(index) {
            None | Some(0) => Some(0),
            Some(_) => self.blocks.get(&index).map(|block| get(&block.bytes, entry, self.geometry.refcount_order)),
        }
    }

    /// The count of a cluster.
    pub(super) fn get(&mut self, file: &FencedFile, cluster: u64) -> Result<u64, DiskError> {
        let (index, entry) = self.position(cluster);
        if matches!(self.table.get(index), None | Some(0)) {
            return Ok(0);
        }
        let order = self.geometry.refcount_order;
        Ok(get(&self.load(file, index)?.bytes, entry, order))
    }

    /// Finds free clusters that lie together, at most `wanted`, and gives each the count 1.
    pub(super) fn allocate(&mut self, file: &FencedFile, wanted: u64, growth: &mut Growth) -> Result<Range<u64>, AllocateError> {
        let order = self.geometry.refcount_order;
        let per_block = self.geometry.block_entries();
        let mut cluster = self.hint;
        loop {
            let index = (cluster / per_block) as usize;
            if index >= self.table.len() {
                self.grow_table(growth)?;
            } else if self.table[index] == 0 {
                self.add_block(index, growth)?;
            }
            let block = self.load(file, index)?;
            let first_of_block = index as u64 * per_block;
            let is_free = |entry: &u64| get(&block.bytes, *entry as usize, order) == 0;
            let Some(first) = (cluster - first_of_block..per_block).find(is_free) else {
                cluster = first_of_block + per_block;
                self.hint = cluster;
                continue;
            };
            let limit = (first + wanted.max(1)).min(per_block);
            let end = (first + 1..limit).find(|entry| !is_free(entry)).unwrap_or(limit);
            let found = first_of_block + first..first_of_block + end;
            if found.end * self.geometry.cluster_size() > MAX_HOST_OFFSET {
                return Err(AllocateError::Full);
            }
            for entry in found.clone() {
                self.set_loaded(entry, 1);
            }
            self.hint = found.end;
            return Ok(found);
        }
    }

    /// Finds exactly `wanted` free clusters that lie together, and gives each the count 1.
    pub(super) fn allocate_together(
        &mut self,
        file: &FencedFile,
        wanted: u64,
        growth: &mut Growth,
    ) -> Result<Range<u64>, AllocateError> {
        let per_block = self.geometry.block_entries();
        let mut start = self.hint;
        let mut cluster = start;
        while cluster < start + wanted {
            let index = (cluster / per_block) as usize;
            if index >= self.table.len() {
                self.grow_table(growth)?;
                cluster = start;
            } else if self.table[index] == 0 {
                // A block usually lies first in what it counts, but here it would cut a long stretch in two.
                let place = self.allocate(file, 1, growth)?;
                if self.table[index] == 0 {
                    self.new_block(index, place.start);
                    growth.taken.push(place.start);
                } else {
                    self.take_back(place);
                }
                cluster = start;
            } else if self.get(file, cluster)? != 0 {
                start = cluster + 1;
                cluster = start;
            } else {
                cluster += 1;
            }
        }
        if (start + wanted) * self.geometry.cluster_size() > MAX_HOST_OFFSET {
            return Err(AllocateError::Full);
        }
        for cluster in start..start + wanted {
            self.load(file, (cluster / per_block) as usize)?;
            self.set_loaded(cluster, 1);
        }
        Ok(start..start + wanted)
    }

    /// Counts a cluster once more.
    pub(super) fn raise(&mut self, file: &FencedFile, cluster: u64) -> Result<(), AllocateError> {
        let count = self.get(file, cluster)?;
        if count >= self.largest_count() {
            return Err(AllocateError::TooShared);
        }
        self.set_loaded(cluster, count + 1);
        Ok(())
    }

    /// The largest count that fits the width.
    pub(super) fn largest_count(&self) -> u64 {
        u64::MAX >> (64 - (1 << self.geometry.refcount_order))
    }

    /// Takes back clusters that were allocated and that nothing has ever pointed at.
    pub(super) fn take_back(&mut self, clusters: Range<u64>) {
        for cluster in clusters {
            self.set_loaded(cluster, 0);
            self.hint = self.hint.min(cluster);
        }
    }

    /// Lowers the count of a cluster whose pointer is durably gone; returns what is left.
    pub(super) fn lower(&mut self, file: &FencedFile, cluster: u64) -> Result<u64, DiskError> {
        let count = self.get(file, cluster)?;
        // A count of 0 here means that the image was damaged before we came; there is nothing to lower.
        let left = count.saturating_sub(1);
        if count > 0 {
            self.set_loaded(cluster, left);
        }
        if left == 0 {
            self.hint = self.hint.min(cluster);
        }
        Ok(left)
    }

    fn position(&self, cluster: u64) -> (usize, usize) {
        let per_block = self.geometry.block_entries();
        ((cluster / per_block) as usize, (cluster % per_block) as usize)
    }

    /// Sets a count whose block is in memory.
    fn set_loaded(&mut self, cluster: u64, count: u64) {
        let (index, entry) = self.position(cluster);
        let order = self.geometry.refcount_order;
        let Some(block) = self.blocks.get_mut(&index) else { return };
        set(&mut block.bytes, entry, order, count);
        let byte = (entry << order) / 8;
        let width = ((1 << order) / 8).max(1);
        let dirty = block.dirty.take().unwrap_or(byte..byte);
        block.dirty = Some(dirty.start.min(byte)..dirty.end.max(byte + width));
        self.dirty_blocks.insert(index);
    }

    fn load(&mut self, file: &FencedFile, index: usize) -> Result<&Block, DiskError> {
        if !self.blocks.contains_key(&index) {
            let mut bytes = vec![0; self.geometry.cluster_size() as usize].into_boxed_slice();
            let offset = self.table.get(index).copied().unwrap_or(0) & BLOCK_OFFSET_MASK;
            file.read_exact(offset, &mut bytes)?;
            if self.blocks.len() as u64 * self.geometry.cluster_size() >= CACHE_BYTES {
                let dirty = &self.dirty_blocks;
                self.blocks.retain(|known, _| dirty.contains(known));
            }
            self.blocks.insert(index, Block { bytes, dirty: None });
        }
        Ok(&self.blocks[&index])
    }

    fn new_block(&mut self, index: usize, cluster: u64) {
        let bytes = vec![0; self.geometry.cluster_size() as usize].into_boxed_slice();
        let dirty = Some(0..bytes.len());
        self.blocks.insert(index, Block { bytes, dirty });
        self.dirty_blocks.insert(index);
        self.table[index] = cluster * self.geometry.cluster_size();
        self.dirty_entries.insert(index);
    }

    /// Adds a missing block. All clusters it covers are free, so it takes the first of them and counts itself.
    fn add_block(&mut self, index: usize, growth: &mut Growth) -> Result<(), AllocateError> {
        let cluster = index as u64 * self.geometry.block_entries();
        if (cluster + 1) * self.geometry.cluster_size() > MAX_HOST_OFFSET {
            return Err(AllocateError::Full);
        }
        self.new_block(index, cluster);
        self.set_loaded(cluster, 1);
        growth.taken.push(cluster);
        Ok(())
    }

    /// Moves the table to a larger place: right behind all that the old one covers, with the blocks that count it.
    fn grow_table(&mut self, growth: &mut Growth) -> Result<(), AllocateError> {
        let cluster_size = self.geometry.cluster_size();
        let per_block = self.geometry.block_entries();
        let covered = self.table.len() as u64;
        let first = covered * per_block;
        let mut table_clusters = u64::from(self.table_clusters) + 1;
        let blocks = loop {
            table_clusters = table_clusters.max((covered * 3 / 2 * 8).div_ceil(cluster_size));
            // The new blocks lie in what they cover, and so does the table.
            let mut blocks = 1;
            while blocks * per_block < blocks + table_clusters {
                blocks += 1;
            }
            if (covered + blocks) * 8 <= table_clusters * cluster_size {
                break blocks;
            }
            table_clusters += 1;
        };
        let end = first + blocks + table_clusters;
        if table_clusters * cluster_size > MAX_REFCOUNT_TABLE_BYTES || end * cluster_size > MAX_HOST_OFFSET {
            return Err(AllocateError::Full);
        }
        growth.left.extend(self.table_range());
        self.table.resize((table_clusters * cluster_size / 8) as usize, 0);
        for number in 0..blocks {
            self.new_block((covered + number) as usize, first + number);
        }
        for cluster in first..end {
            self.set_loaded(cluster, 1);
        }
        growth.taken.extend(first..end);
        self.table_offset = (first + blocks) * cluster_size;
        self.table_clusters = table_clusters as u32;
        self.place = TablePlace::New;
        Ok(())
    }

    /// Whether counts are waiting to be written.
    pub(super) fn has_dirty_blocks(&self) -> bool {
        !self.dirty_blocks.is_empty()
    }

    /// Whether the file cannot find some blocks yet.
    pub(super) fn has_unpublished_blocks(&self) -> bool {
        !self.dirty_entries.is_empty() || self.place != TablePlace::Known
    }

    /// Writes all changed blocks, and the table if the file does not know it yet. A flush must follow.
    pub(super) fn write_blocks(&mut self, file: &FencedFile) -> Result<(), DiskError> {
        for index in self.dirty_blocks.clone() {
            let offset = self.table.get(index).copied().unwrap_or(0) & BLOCK_OFFSET_MASK;
            let Some(block) = self.blocks.get_mut(&index) else { continue };
            if let Some(range) = block.dirty.clone() {
                let start = range.start / 512 * 512;
                let end = range.end.next_multiple_of(512).min(block.bytes.len());
                file.write_at(offset + start as u64, &block.bytes[start..end])?;
            }
            block.dirty = None;
            self.dirty_blocks.remove(&index);
        }
        if self.place == TablePlace::New {
            write_words(file, self.table_offset, &self.table, 0..self.table.len())?;
            self.dirty_entries.clear();
        }
        Ok(())
    }

    /// Makes the file point at all blocks, whose content is durable by now. A flush must follow.
    pub(super) fn publish_blocks(&mut self, file: &FencedFile) -> Result<(), DiskError> {
        let unwritten = self.dirty_entries.clone();
        for index in unwritten {
            write_words(file, self.table_offset, &self.table, index..index + 1)?;
            self.dirty_entries.remove(&index);
        }
        if self.place != TablePlace::Known {
            self.place = TablePlace::Unsure;
            let mut fields = [0; 12];
            fields[..8].copy_from_slice(&self.table_offset.to_be_bytes());
            fields[8..].copy_from_slice(&self.table_clusters.to_be_bytes());
            // Both fields in one write, so that no crash can leave one of each.
            file.write_at(super::header::AT_REFCOUNT_TABLE, &fields)?;
            self.place = TablePlace::Known;
        }
        Ok(())
    }
}

/// Reads entry `index` of a block. Entries narrower than a byte are packed from its lowest bit up.
pub(super) fn get(block: &[u8], index: usize, order: u32) -> u64 {
    let bits = 1_usize << order;
    if bits < 8 {
        let byte = block.get(index * bits / 8).copied().unwrap_or(0);
        return u64::from(byte >> (index * bits % 8)) & ((1 << bits) - 1);
    }
    let bytes = bits / 8;
    let field = block.get(index * bytes..(index + 1) * bytes).unwrap_or_default();
    field.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Writes entry `index` of a block.
pub(super) fn set(block: &mut [u8], index: usize, order: u32, value: u64) {
    let bits = 1_usize << order;
    if bits < 8 {
        if let Some(byte) = block.get_mut(index * bits / 8) {
            let shift = index * bits % 8;
            let mask = ((1_u16 << bits) - 1) as u8;
            *byte = *byte & !(mask << shift) | ((value as u8) & mask) << shift;
        }
        return;
    }
    let bytes = bits / 8;
    if let Some(field) = block.get_mut(index * bytes..(index + 1) * bytes) {
        field.copy_from_slice(&value.to_be_bytes()[8 - bytes..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_keeps_neighbours_apart() {
        for order in 0..=6 {
            let mut block = [0; 64];
            let entries = (64 * 8) >> order;
            let largest = if order == 6 { u64::MAX } else { (1 << (1 << order)) - 1 };
            for index in (0..entries).step_by(2) {
                set(&mut block, index, order, largest);
            }
            for index in 0..entries {
                let expected = if index % 2 == 0 { largest } else { 0 };
                assert_eq!(get(&block, index, order), expected, "order {order}, entry {index}");
            }
        }
    }

    #[test]
    fn narrow_entries_start_at_the_lowest_bit_and_wide_ones_are_big_endian() {
        let mut block = [0; 8];
        set(&mut block, 1, 0, 1);
        set(&mut block, 3, 2, 0xa);
        assert_eq!(block[..2], [0b10, 0xa0]);
        set(&mut block, 2, 4, 0x1234);
        assert_eq!(block[4..6], [0x12, 0x34]);
    }
}
