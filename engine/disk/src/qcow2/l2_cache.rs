//! Second-level tables in memory: what is read stays for a while, what is changed until it is written down.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::DiskError;
use crate::fenced_file::FencedFile;

use super::mapping::{Entry, Geometry};

/// A second-level table in memory.
pub(super) struct L2Table {
    words: Box<[u64]>,
    /// Words that the file does not have yet.
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

/// Bytes of second-level tables kept in memory unless somebody says otherwise; at 64 KiB clusters they map 256 GiB.
const CACHE_BYTES: u64 = 32 << 20;
/// Some tables are always kept, so that those in use at one time do not push each other out.
const LEAST_TABLES: u64 = 8;
/// Bytes of changed tables after which they are written out although nobody asked for a flush.
const MAX_DIRTY_BYTES: u64 = 8 << 20;

impl L2Cache {
    pub(super) fn new(geometry: Geometry) -> Self {
        let capacity = (CACHE_BYTES / geometry.cluster_size()).max(LEAST_TABLES) as usize;
        Self { geometry, tables: HashMap::new(), dirty: BTreeSet::new(), clock: AtomicU64::new(0), capacity }
    }

    /// Sets how many bytes of tables are kept; changed ones stay until they are written all the same.
    pub(super) fn keep_at_most(&mut self, bytes: u64) {
        self.capacity = (bytes / self.geometry.cluster_size()).max(LEAST_TABLES) as usize;
    }

    /// The words of a table, if it is in memory.
    pub(super) fn peek(&self, offset: u64) -> Option<&[u64]> {
        let table = self.tables.get(&offset)?;
        table.last_use.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        Some(&table.words)
    }

    /// The words of a table, from the file if need be.
    pub(super) fn load(&mut self, file: &FencedFile, offset: u64) -> Result<&[u64], DiskError> {
        if !self.tables.contains_key(&offset) {
            let mut bytes = vec![0; self.geometry.cluster_size() as usize];
            file.read_exact(offset, &mut bytes)?;
            self.make_room();
            let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect();
            let table = L2Table { words, dirty: None, published: true, last_use: AtomicU64::new(0) };
            self.tables.insert(offset, table);
        }
        Ok(self.peek(offset).unwrap_or_default())
    }

    /// Puts a new table, at a host cluster that nothing points at yet.
    pub(super) fn insert_new(&mut self, offset: u64, words: Box<[u64]>) {
        self.make_room();
        let dirty = Some(0..words.len());
        self.tables.insert(offset, L2Table { words, dirty, published: false, last_use: AtomicU64::new(0) });
        self.dirty.insert(offset);
    }

    /// Changes one entry of a table that is in memory.
    pub(super) fn set(&mut self, offset: u64, index: usize, entry: Entry) {
        let Some(table) = self.tables.get_mut(&offset) else { return };
        let width = self.geometry.entry_words();
        let at = index * width;
        let Some(place) = table.words.get_mut(at..at + width) else { return };
        place.copy_from_slice(&[entry.word, entry.subclusters][..width]);
        let dirty = table.dirty.take().unwrap_or(at..at);
        table.dirty = Some(dirty.start.min(at)..dirty.end.max(at + width));
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
                write_words(file, offset, &table.words, range)?;
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
