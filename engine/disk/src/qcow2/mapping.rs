//! From a guest position to a place in the file: cluster arithmetic, second-level entries, and their cache.
//!
//! See: the qcow2 specification, "Cluster mapping".

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::DiskError;
use crate::fenced_file::FencedFile;

/// "Reference count is exactly one": the cluster may be written in place.
pub(super) const COPIED: u64 = 1 << 63;
pub(super) const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros (version 3).
pub(super) const ZERO: u64 = 1;
/// Bits 9–55: a host offset.
pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// No host cluster lies at or beyond this offset.
pub(super) const MAX_HOST_OFFSET: u64 = 1 << 56;

/// Sizes that follow from the header and never change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) cluster_bits: u32,
    pub(super) refcount_order: u32,
    pub(super) version: u32,
}

impl Geometry {
    pub(super) fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of a second-level table.
    pub(super) fn l2_entries(self) -> u64 {
        self.cluster_size() / 8
    }

    /// Entries of a refcount block.
    pub(super) fn block_entries(self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// Bytes of the disk that one second-level table maps.
    pub(super) fn bytes_per_table(self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    /// Position in the first-level table, and in the second-level table under it.
    pub(super) fn indices(self, guest_offset: u64) -> (usize, usize) {
        let cluster = guest_offset >> self.cluster_bits;
        ((cluster / self.l2_entries()) as usize, (cluster % self.l2_entries()) as usize)
    }
}

/// What a second-level entry says of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// Nothing here; the base image shows through.
    Unallocated,
    /// Reads as zeros. A host cluster may be set aside for it.
    Zero { host: Option<u64>, copied: bool },
    /// Stored at a host offset.
    Data { host: u64, copied: bool },
    /// Stored compressed in `length` bytes (at most) from `start` on.
    Compressed { start: u64, length: u64 },
}

/// Why an entry makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadEntry(pub(super) &'static str);

impl Mapping {
    pub(super) fn decode(entry: u64, geometry: Geometry) -> Result<Self, BadEntry> {
        // Compressed first: in such an entry bit 0 belongs to the offset and is no zero flag.
        if entry & COMPRESSED != 0 {
            return Self::decode_compressed(entry, geometry);
        }
        let copied = entry & COPIED != 0;
        let host = entry & OFFSET_MASK;
        let is_zero = entry & ZERO != 0;
        if entry & !(COPIED | OFFSET_MASK | ZERO) != 0 || (is_zero && geometry.version == 2) {
            return Err(BadEntry("a cluster entry has reserved bits set"));
        }
        if !host.is_multiple_of(geometry.cluster_size()) {
            return Err(BadEntry("a cluster entry points between clusters"));
        }
        match (is_zero, host) {
            (true, 0) if copied => Err(BadEntry("a cluster entry points at the header")),
            (true, 0) => Ok(Mapping::Zero { host: None, copied }),
            (true, _) => Ok(Mapping::Zero { host: Some(host), copied }),
            (false, 0) if copied => Err(BadEntry("a cluster entry points at the header")),
            (false, 0) => Ok(Mapping::Unallocated),
            (false, _) => Ok(Mapping::Data { host, copied }),
        }
    }

    fn decode_compressed(entry: u64, geometry: Geometry) -> Result<Self, BadEntry> {
        if entry & COPIED != 0 {
            return Err(BadEntry("a compressed cluster claims to be writable in place"));
        }
        let offset_bits = 62 - (geometry.cluster_bits - 8);
        let start = entry & ((1 << offset_bits) - 1);
        let more_sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
        let length = (more_sectors + 1) * 512 - start % 512;
        if start >= MAX_HOST_OFFSET {
            return Err(BadEntry("a compressed cluster lies beyond any file"));
        }
        let clusters = (start + length - 1) / geometry.cluster_size() - start / geometry.cluster_size() + 1;
        if start < geometry.cluster_size() || clusters > 2 {
            return Err(BadEntry("a compressed cluster has an impossible place or size"));
        }
        Ok(Mapping::Compressed { start, length })
    }

    /// The host clusters (numbers, not offsets) that hold a reference from this entry.
    pub(super) fn host_clusters(self, geometry: Geometry) -> Range<u64> {
        let bits = geometry.cluster_bits;
        match self {
            Mapping::Unallocated | Mapping::Zero { host: None, .. } => 0..0,
            Mapping::Zero { host: Some(host), .. } | Mapping::Data { host, .. } => host >> bits..(host >> bits) + 1,
            Mapping::Compressed { start, length } => start >> bits..((start + length - 1) >> bits) + 1,
        }
    }
}

/// A second-level table in memory.
pub(super) struct L2Table {
    entries: Box<[u64]>,
    /// Entries that the file does not have yet.
    dirty: Option<Range<usize>>,
    /// Whether the file's first-level table may point here already. Until then the table may be written at any time.
    published: bool,
    last_use: AtomicU64,
}

/// Second-level tables in memory, by host offset. Clean ones are dropped when there are too many.
pub(super) struct L2Cache {
    geometry: Geometry,
    tables: HashMap<u64, L2Table>,
    dirty: BTreeSet<u64>,
    clock: AtomicU64,
    capacity: usize,
}

/// Bytes of second-level tables kept in memory; at 64 KiB clusters this maps 128 GiB.
const CACHE_BYTES: u64 = 16 << 20;
/// Bytes of changed tables after which they are written out although nobody asked for a flush.
const MAX_DIRTY_BYTES: u64 = 8 << 20;

impl L2Cache {
    pub(super) fn new(geometry: Geometry) -> Self {
        let capacity = (CACHE_BYTES / geometry.cluster_size()).max(8) as usize;
        Self { geometry, tables: HashMap::new(), dirty: BTreeSet::new(), clock: AtomicU64::new(0), capacity }
    }

    /// The entries of a table, if it is in memory.
    pub(super) fn peek(&self, offset: u64) -> Option<&[u64]> {
        let table = self.tables.get(&offset)?;
        table.last_use.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        Some(&table.entries)
    }

    /// The entries of a table, from the file if need be.
    pub(super) fn load(&mut self, file: &FencedFile, offset: u64) -> Result<&[u64], DiskError> {
        if !self.tables.contains_key(&offset) {
            let mut bytes = vec![0; self.geometry.cluster_size() as usize];
            file.read_exact(offset, &mut bytes)?;
            self.make_room();
            let entries = bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect();
            let table = L2Table { entries, dirty: None, published: true, last_use: AtomicU64::new(0) };
            self.tables.insert(offset, table);
        }
        Ok(self.peek(offset).unwrap_or_default())
    }

    /// Puts a new table, at a host cluster that nothing points at yet.
    pub(super) fn insert_new(&mut self, offset: u64, entries: Box<[u64]>) {
        self.make_room();
        let dirty = Some(0..entries.len());
        self.tables.insert(offset, L2Table { entries, dirty, published: false, last_use: AtomicU64::new(0) });
        self.dirty.insert(offset);
    }

    /// Changes one entry of a table that is in memory.
    pub(super) fn set(&mut self, offset: u64, index: usize, entry: u64) {
        let Some(table) = self.tables.get_mut(&offset) else { return };
        let Some(place) = table.entries.get_mut(index) else { return };
        *place = entry;
        let dirty = table.dirty.take().unwrap_or(index..index);
        table.dirty = Some(dirty.start.min(index)..dirty.end.max(index + 1));
        self.dirty.insert(offset);
    }

    /// Forgets a table whose cluster is free.
    pub(super) fn forget(&mut self, offset: u64) {
        self.tables.remove(&offset);
        self.dirty.remove(&offset);
    }

    /// Forgets all tables; there must be nothing to write.
    pub(super) fn clear(&mut self) {
        self.tables.clear();
        self.dirty.clear();
    }

    pub(super) fn is_clean(&self) -> bool {
        self.dirty.is_empty()
    }

    pub(super) fn has_too_much_to_write(&self) -> bool {
        self.dirty.len() as u64 * self.geometry.cluster_size() > MAX_DIRTY_BYTES.max(2 * self.geometry.cluster_size())
    }

    /// Writes the changed tables that the file points at already, or those that it does not.
    pub(super) fn write_dirty(&mut self, file: &FencedFile, published: bool) -> Result<(), DiskError> {
        let wanted: Vec<u64> = self
            .dirty
            .iter()
            .copied()
            .filter(|offset| self.tables.get(offset).is_some_and(|t| t.published == published))
            .collect();
        for offset in wanted {
            let Some(table) = self.tables.get_mut(&offset) else { continue };
            if let Some(range) = table.dirty.clone() {
                write_words(file, offset, &table.entries, range)?;
            }
            table.dirty = None;
            self.dirty.remove(&offset);
        }
        Ok(())
    }

    /// From now on the file may point at every table there is.
    pub(super) fn publish_all(&mut self, offsets: impl Iterator<Item = u64>) {
        for offset in offsets {
            if let Some(table) = self.tables.get_mut(&offset) {
                table.published = true;
            }
        }
    }

    /// Drops the least recently used quarter of the clean tables when the cache is full.
    fn make_room(&mut self) {
        if self.tables.len() < self.capacity {
            return;
        }
        let mut ages: Vec<(u64, u64)> = self
            .tables
            .iter()
            .filter(|(offset, table)| table.published && !self.dirty.contains(offset))
            .map(|(offset, table)| (table.last_use.load(Ordering::Relaxed), *offset))
            .collect();
        ages.sort_unstable();
        for (_, offset) in ages.iter().take(ages.len().div_ceil(4)) {
            self.tables.remove(offset);
        }
    }
}

/// Table writes are widened to whole sectors of this size, so that the host need not read before it writes.
const WRITE_UNIT: usize = 512 / 8;

/// Writes a range of big-endian words of a table that begins at `offset`.
pub(super) fn write_words(file: &FencedFile, offset: u64, words: &[u64], range: Range<usize>) -> Result<(), DiskError> {
    let start = range.start / WRITE_UNIT * WRITE_UNIT;
    let end = range.end.next_multiple_of(WRITE_UNIT).min(words.len());
    let Some(words) = words.get(start..end) else { return Ok(()) };
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    file.write_at(offset + start as u64 * 8, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(cluster_bits: u32, version: u32) -> Geometry {
        Geometry { cluster_bits, refcount_order: 4, version }
    }

    #[test]
    fn all_sixteen_flag_combinations_decode_as_the_specification_says() {
        let host = 0x50000;
        let bad = Err(());
        let data = |copied| Ok(Mapping::Data { host, copied });
        let zero = |host, copied| Ok(Mapping::Zero { host, copied });
        // (copied, compressed, zero flag, has offset)
        let cases = [
            ((0, 0, 0, 0), Ok(Mapping::Unallocated)),
            ((0, 0, 0, 1), data(false)),
            ((0, 0, 1, 0), zero(None, false)),
            ((0, 0, 1, 1), zero(Some(host), false)),
            ((0, 1, 0, 0), bad),
            ((0, 1, 0, 1), Ok(Mapping::Compressed { start: host, length: 512 })),
            ((0, 1, 1, 0), bad),
            // Bit 0 of a compressed entry is the lowest bit of the offset, not the zero flag.
            ((0, 1, 1, 1), Ok(Mapping::Compressed { start: host + 1, length: 511 })),
            ((1, 0, 0, 0), bad),
            ((1, 0, 0, 1), data(true)),
            ((1, 0, 1, 0), bad),
            ((1, 0, 1, 1), zero(Some(host), true)),
            ((1, 1, 0, 0), bad),
            ((1, 1, 0, 1), bad),
            ((1, 1, 1, 0), bad),
            ((1, 1, 1, 1), bad),
        ];
        for ((copied, compressed, zero, offset), expected) in cases {
            let entry = copied << 63 | compressed << 62 | zero | (offset * host);
            assert_eq!(Mapping::decode(entry, geometry(16, 3)).map_err(|_| ()), expected, "{entry:#x}");
        }
    }

    #[test]
    fn reserved_bits_unaligned_offsets_and_old_versions_are_refused() {
        for bit in (1..9).chain(56..62) {
            assert!(Mapping::decode(0x50000 | 1 << bit, geometry(16, 3)).is_err(), "bit {bit}");
        }
        assert!(Mapping::decode(0x50200 | COPIED, geometry(16, 3)).is_err());
        assert!(Mapping::decode(ZERO, geometry(16, 2)).is_err());
    }

    #[test]
    fn compressed_entries_never_touch_the_header_or_more_than_two_clusters() {
        let bits = 16;
        let offset_bits = 62 - (bits - 8);
        let entry = |start: u64, more: u64| 1 << 62 | more << offset_bits | start;
        assert!(Mapping::decode(entry(0x8000, 0), geometry(bits, 3)).is_err());
        assert!(Mapping::decode(entry(0x1ff00, 255), geometry(bits, 3)).is_err(), "three clusters");
        let mapping = Mapping::decode(entry(0x1ff00, 8), geometry(bits, 3)).unwrap();
        assert_eq!(mapping.host_clusters(geometry(bits, 3)), 1..3);
    }
}
