//! The tables of an open image in memory, and the one place where they are written down: [`Metadata::commit`].
//!
//! Between two commits the file's tables do not change at all, so a crash finds the state of the last commit, plus
//! data in clusters that nothing points at. The story of the ordering is told in `mod.rs`.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::DiskError;
use crate::fenced_file::FencedFile;

use super::bitmaps::Directory;
use super::data_file::DataFile;
use super::header::{AT_INCOMPATIBLE, Header, INCOMPATIBLE_CORRUPT};
use super::l2_cache::{L2Cache, write_words};
use super::mapping::{BadEntry, COMPRESSED, COPIED, Cluster, Entries, Entry, Geometry, OFFSET_MASK};
use super::refcounts::{AllocateError, BLOCK_OFFSET_MASK, Growth, Refcounts};
use super::snapshot_table::SnapshotTable;

/// All that is known of where things lie in the file.
pub(super) struct Metadata {
    pub(super) geometry: Geometry,
    pub(super) file: Arc<FencedFile>,
    /// Where the data lies, if that is another file.
    pub(super) data_file: Option<Arc<DataFile>>,
    /// The header as the file has it now.
    pub(super) header: Header,
    pub(super) snapshots: SnapshotTable,
    /// The bitmaps as the file has them now.
    pub(super) bitmaps: Directory,
    pub(super) l1: Vec<u64>,
    pub(super) l1_offset: u64,
    /// First-level entries that the file does not have yet.
    pub(super) dirty_l1: BTreeSet<usize>,
    pub(super) l2: L2Cache,
    /// `None` while the image is only read.
    pub(super) refcounts: Option<Refcounts>,
    /// Clusters of the header, first-level and snapshot tables: they stay where they are.
    pub(super) fixed: Vec<Range<u64>>,
    /// Clusters of second-level tables, of the refcount table and of its blocks.
    pub(super) tables: HashSet<u64>,
    /// Clusters that lose a reference with the next commit.
    pub(super) released: Vec<u64>,
    /// Clusters of a data file that nothing points at after the next commit.
    pub(super) freed_data: BTreeSet<u64>,
    /// Clusters from this offset on have never been written and so hold zeros.
    pub(super) end: u64,
    /// Whether freed clusters are given back to the host.
    pub(super) can_punch: bool,
    /// Whether every second-level table was checked against the refcounts at opening.
    pub(super) all_verified: bool,
    /// Where the next compressed cluster may go: behind the last one, if its host cluster has room left.
    pub(super) packed_end: Option<u64>,
}

/// A table or cluster that cannot be what it claims.
pub(super) enum TableError {
    /// The image contradicts itself.
    Bad(&'static str),
    /// The format cannot describe a larger file.
    Full,
    /// A cluster cannot be counted once more.
    TooShared,
    /// The host failed.
    Disk(DiskError),
}

impl TableError {
    /// The error for the person.
    pub(super) fn into_disk_error(self, path: &Path) -> DiskError {
        let path = path.to_path_buf();
        match self {
            TableError::Bad(detail) => DiskError::Damaged { detail: detail.into(), advice: super::HOW_TO_REPAIR, path },
            TableError::Full => DiskError::FormatFull { path },
            TableError::TooShared => DiskError::TooShared { path },
            TableError::Disk(error) => error,
        }
    }
}

impl From<DiskError> for TableError {
    fn from(error: DiskError) -> Self {
        TableError::Disk(error)
    }
}

impl From<BadEntry> for TableError {
    fn from(BadEntry(detail): BadEntry) -> Self {
        TableError::Bad(detail)
    }
}

impl From<AllocateError> for TableError {
    fn from(error: AllocateError) -> Self {
        match error {
            AllocateError::Full => TableError::Full,
            AllocateError::TooShared => TableError::TooShared,
            AllocateError::Disk(error) => TableError::Disk(error),
        }
    }
}

/// Clusters just allocated.
pub(super) struct Allocation {
    /// Host cluster numbers.
    pub(super) clusters: Range<u64>,
    /// Whether they hold zeros, never having been written.
    pub(super) is_fresh: bool,
}

/// At opening for writing, so many bytes of second-level tables are checked; larger images are checked as they go.
const VERIFY_BYTES: u64 = 16 << 20;
/// Counting the references of more clusters than this would take too much memory.
const MAX_VERIFIED_CLUSTERS: u64 = 16 << 20;
/// So many released clusters are kept waiting for a flush before we flush by ourselves.
const MAX_RELEASED: usize = 1 << 18;

impl Metadata {
    /// Reads what a reader needs.
    pub(super) fn read(
        file: &Arc<FencedFile>,
        header: Header,
        snapshots: SnapshotTable,
        geometry: Geometry,
        end: u64,
    ) -> Result<Self, DiskError> {
        let mut bytes = vec![0; header.l1_entries as usize * 8];
        file.read_exact(header.l1_offset, &mut bytes)?;
        Ok(Self {
            geometry,
            file: Arc::clone(file),
            data_file: None,
            l1: bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect(),
            l1_offset: header.l1_offset,
            dirty_l1: BTreeSet::new(),
            l2: L2Cache::new(geometry),
            refcounts: None,
            fixed: Vec::new(),
            tables: HashSet::new(),
            released: Vec::new(),
            freed_data: BTreeSet::new(),
            end,
            can_punch: true,
            all_verified: false,
            packed_end: None,
            header,
            snapshots,
            bitmaps: Directory::default(),
        })
    }

    /// Reads and checks what a writer needs besides. An inconsistency that writing could make worse is an error.
    pub(super) fn prepare_writing(&mut self) -> Result<(), TableError> {
        let bitmaps = std::mem::take(&mut self.bitmaps);
        let mut refcounts = Refcounts::read(&self.file, &self.header, self.geometry)?;
        self.note_fixed_tables()?;
        for cluster in refcounts.table_range() {
            self.claim_table(cluster)?;
        }
        for entry in refcounts.table().iter().filter(|entry| **entry != 0) {
            if entry & !BLOCK_OFFSET_MASK != 0 || entry % self.geometry.cluster_size() != 0 || *entry >= self.end {
                return Err(TableError::Bad("a refcount block lies outside the file"));
            }
            self.claim_table(entry / self.geometry.cluster_size())?;
        }
        self.claim_second_level_tables()?;
        let fixed = self.fixed.iter().cloned().flatten();
        for cluster in fixed.chain(self.tables.iter().copied()) {
            if refcounts.get(&self.file, cluster)? == 0 {
                return Err(TableError::Bad("a table is counted as free space"));
            }
        }
        for entry in self.l1.iter().filter(|entry| *entry & COPIED != 0) {
            if refcounts.get(&self.file, (entry & OFFSET_MASK) >> self.geometry.cluster_bits)? != 1 {
                return Err(TableError::Bad("a shared table is marked as writable in place"));
            }
        }
        self.refcounts = Some(refcounts);
        self.adopt_bitmaps(bitmaps)?;
        self.verify_tables()
    }

    /// Reads the counts again after all of them were made anew somewhere else.
    pub(super) fn read_refcounts_again(&mut self) -> Result<(), TableError> {
        let header = Header::read(&self.file, self.file.len()?)?;
        self.end = self.file.len()?.max(self.end);
        // The version stays what it was at opening, for all who read entries.
        self.geometry.refcount_order = header.refcount_order;
        self.refcounts = Some(Refcounts::read(&self.file, &header, self.geometry)?);
        self.header = header;
        self.packed_end = None;
        self.tables = self.refcounts.iter().flat_map(|refcounts| refcounts.own_clusters()).collect();
        self.claim_second_level_tables()
    }

    /// Takes down where the tables lie that a header or the snapshot table points at.
    pub(super) fn note_fixed_tables(&mut self) -> Result<(), BadEntry> {
        let mut fixed = vec![0..1, self.clusters(self.l1_offset, self.l1.len() as u64 * 8)];
        fixed.push(self.clusters(self.header.snapshots_offset, self.snapshots.bytes));
        fixed.extend(self.header.luks.map(|(offset, length)| self.clusters(offset, length)));
        fixed.extend(self.bitmaps.ranges(self.geometry).map(|(offset, length)| self.clusters(offset, length)));
        for snapshot in &self.snapshots.snapshots {
            fixed.push(self.clusters(snapshot.l1_offset, u64::from(snapshot.l1_entries) * 8));
        }
        fixed.retain(|range| !range.is_empty());
        fixed.sort_unstable_by_key(|range| range.start);
        if fixed.windows(2).any(|pair| pair[0].end > pair[1].start) {
            return Err(BadEntry("two of its tables overlap"));
        }
        self.fixed = fixed;
        Ok(())
    }

    /// Puts the tables that the first-level table points at under guard.
    pub(super) fn claim_second_level_tables(&mut self) -> Result<(), TableError> {
        let mut seen = HashSet::new();
        for index in 0..self.l1.len() {
            let Some(offset) = self.l2_offset(index)? else { continue };
            let cluster = offset / self.geometry.cluster_size();
            if seen.insert(cluster) {
                self.claim_table(cluster)?;
            } else if self.l1[index] & COPIED != 0 {
                // Several entries may share a table, but then none of them may write to it.
                return Err(TableError::Bad("two of its tables overlap"));
            }
        }
        Ok(())
    }

    pub(super) fn clusters(&self, offset: u64, length: u64) -> Range<u64> {
        let bits = self.geometry.cluster_bits;
        offset >> bits..(offset + length).div_ceil(self.geometry.cluster_size())
    }

    fn claim_table(&mut self, cluster: u64) -> Result<(), TableError> {
        if self.is_fixed(cluster) || !self.tables.insert(cluster) {
            return Err(TableError::Bad("two of its tables overlap"));
        }
        Ok(())
    }

    pub(super) fn is_fixed(&self, cluster: u64) -> bool {
        let after = self.fixed.partition_point(|range| range.start <= cluster);
        after.checked_sub(1).and_then(|index| self.fixed.get(index)).is_some_and(|range| range.contains(&cluster))
    }

    /// Whether a cluster holds metadata, so that no data may ever be written there.
    pub(super) fn is_metadata(&self, cluster: u64) -> bool {
        self.is_fixed(cluster) || self.tables.contains(&cluster)
    }

    /// Checks the second-level tables of the disk and its snapshots against the refcounts, as far as the budget goes.
    fn verify_tables(&mut self) -> Result<(), TableError> {
        let cluster_size = self.geometry.cluster_size();
        let clusters = self.end.div_ceil(cluster_size);
        let active: Vec<u64> = self.l1.iter().copied().filter(|entry| *entry != 0).collect();
        if active.len() as u64 * cluster_size > VERIFY_BYTES || clusters > MAX_VERIFIED_CLUSTERS {
            return Ok(());
        }
        let mut references = vec![0_u16; clusters as usize];
        for entry in &active {
            let offset = self.checked_l2_offset(*entry)?;
            let words = self.l2.load(&self.file, offset)?.to_vec();
            self.verify_tree(offset, &words, &mut references)?;
        }
        self.all_verified = true;
        // What a snapshot alone uses must not be handed out either.
        let mut budget = VERIFY_BYTES;
        for snapshot in self.snapshots.snapshots.clone() {
            budget = budget.saturating_sub(u64::from(snapshot.l1_entries) * 8);
            if budget == 0 {
                return Ok(());
            }
            for entry in self.read_l1(&snapshot)?.into_iter().filter(|entry| *entry != 0) {
                let offset = self.checked_l2_offset(entry)?;
                budget = budget.saturating_sub(cluster_size);
                if budget == 0 {
                    return Ok(());
                }
                let mut bytes = vec![0; cluster_size as usize];
                self.file.read_exact(offset, &mut bytes)?;
                // Marks in a snapshot's tables mean nothing.
                let mut words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect();
                self.geometry.clear_marks(&mut words);
                self.verify_tree(offset, &words, &mut references)?;
            }
        }
        Ok(())
    }

    /// Checks one second-level table and its entries against the counts; `references` has what was met so far.
    fn verify_tree(&mut self, offset: u64, words: &[u64], references: &mut [u16]) -> Result<(), TableError> {
        let mut is_counted = |cluster: u64, count: u64| {
            let Some(references) = references.get_mut(cluster as usize) else { return false };
            *references = references.saturating_add(1);
            u64::from(*references) <= count
        };
        let table = offset >> self.geometry.cluster_bits;
        let count = self.refcount(table)?;
        if self.is_fixed(table) || !is_counted(table, count) {
            return Err(TableError::Bad("more entries use a table than are counted"));
        }
        self.verify_entries(words, is_counted)
    }

    /// Checks the entries of one table. `is_counted` is asked about each reference: the cluster and its count.
    fn verify_entries(&mut self, words: &[u64], mut is_counted: impl FnMut(u64, u64) -> bool) -> Result<(), TableError> {
        let geometry = self.geometry;
        for (_, entry) in Entries::new(words, geometry, 0).used() {
            for cluster in Cluster::decode(entry, geometry)?.host_clusters(geometry) {
                if cluster << self.geometry.cluster_bits >= self.end {
                    return Err(TableError::Bad("a cluster lies past the end of the file"));
                }
                if self.is_metadata(cluster) {
                    return Err(TableError::Bad("a cluster overlaps a table"));
                }
                let count = self.refcount(cluster)?;
                if count == 0 {
                    return Err(TableError::Bad("a used cluster is counted as free space"));
                }
                if entry.word & COPIED != 0 && count != 1 {
                    return Err(TableError::Bad("a shared cluster is marked as writable in place"));
                }
                if !is_counted(cluster, count) {
                    return Err(TableError::Bad("more entries use a cluster than are counted"));
                }
            }
        }
        Ok(())
    }

    pub(super) fn refcount(&mut self, cluster: u64) -> Result<u64, DiskError> {
        match &mut self.refcounts {
            Some(refcounts) => refcounts.get(&self.file, cluster),
            None => Ok(0),
        }
    }

    /// Where the second-level table under a first-level entry lies; `None` if there is none.
    pub(super) fn l2_offset(&self, index: usize) -> Result<Option<u64>, BadEntry> {
        match self.l1.get(index).copied().unwrap_or(0) {
            0 => Ok(None),
            entry => self.checked_l2_offset(entry).map(Some),
        }
    }

    /// Where the table lies that a first-level entry other than 0 points at.
    pub(super) fn checked_l2_offset(&self, entry: u64) -> Result<u64, BadEntry> {
        let offset = entry & OFFSET_MASK;
        if entry & !(COPIED | OFFSET_MASK) != 0 || offset == 0 || !offset.is_multiple_of(self.geometry.cluster_size()) {
            return Err(BadEntry("a first-level entry makes no sense"));
        }
        // A table not yet written lies past the end of the file, but not past what we have handed out.
        if offset >= self.end {
            return Err(BadEntry("a second-level table lies past the end of the file"));
        }
        Ok(offset)
    }

    /// The second-level entries that map `guest_offset`, if they are in memory: `Ok(None)` says that they must be
    /// loaded first, no entries that there is no table.
    pub(super) fn peek_entries(&self, guest_offset: u64) -> Result<Option<Entries<'_>>, BadEntry> {
        let (index, _) = self.geometry.indices(guest_offset);
        let words = match self.l2_offset(index)? {
            None => Some(&[][..]),
            Some(offset) => self.l2.peek(offset),
        };
        let start = guest_offset / self.geometry.bytes_per_table() * self.geometry.bytes_per_table();
        Ok(words.map(|words| Entries::new(words, self.geometry, start)))
    }

    /// The same, loading what must be loaded.
    pub(super) fn entries_at(&mut self, guest_offset: u64) -> Result<Entries<'_>, TableError> {
        self.load_entries(guest_offset)?;
        Ok(self.peek_entries(guest_offset)?.ok_or(BadEntry("a table is gone from memory"))?)
    }

    /// Brings the table that maps `guest_offset` into memory.
    pub(super) fn load_entries(&mut self, guest_offset: u64) -> Result<(), TableError> {
        let (index, _) = self.geometry.indices(guest_offset);
        let Some(offset) = self.l2_offset(index)? else { return Ok(()) };
        if self.l2.peek(offset).is_some() {
            return Ok(());
        }
        let words = self.l2.load(&self.file, offset)?;
        if self.refcounts.is_some() && !self.all_verified {
            let words = words.to_vec();
            if let Err(error) = self.verify_entries(&words, |_, _| true) {
                self.l2.forget(offset);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether a host cluster that an entry calls its own may be written to. `None`: its count must be read first.
    pub(super) fn is_own(&self, host: u64) -> Result<Option<()>, BadEntry> {
        if self.geometry.external_data {
            return Ok(Some(()));
        }
        let cluster = host >> self.geometry.cluster_bits;
        if self.is_metadata(cluster) {
            return Err(BadEntry("a cluster overlaps a table"));
        }
        if host >= self.end {
            return Err(BadEntry("a cluster lies past the end of the file"));
        }
        match self.refcounts.as_ref().and_then(|refcounts| refcounts.peek(cluster)) {
            Some(1) => Ok(Some(())),
            Some(_) => Err(BadEntry("a shared cluster is marked as writable in place")),
            None => Ok(None),
        }
    }

    /// The same, reading what must be read.
    pub(super) fn check_own_cluster(&mut self, host: u64) -> Result<(), TableError> {
        self.refcount(host >> self.geometry.cluster_bits)?;
        self.is_own(host)?;
        Ok(())
    }

    /// Makes sure that the table under a first-level entry exists, is in memory and belongs to nobody else.
    pub(super) fn writable_table(&mut self, index: usize) -> Result<u64, TableError> {
        self.load_entries(index as u64 * self.geometry.bytes_per_table())?;
        let old = self.l2_offset(index)?;
        let words = match old {
            Some(offset) => {
                let count = self.refcount(offset >> self.geometry.cluster_bits)?;
                match (self.l1[index] & COPIED != 0, count) {
                    (true, 1) => return Ok(offset),
                    (true, _) => return Err(TableError::Bad("a shared table is marked as writable in place")),
                    // A snapshot uses this table too. Its clusters are shared, and none of them is marked as ours.
                    (false, _) => {
                        let mut words: Box<[u64]> = self.l2.load(&self.file, offset)?.into();
                        self.geometry.clear_marks(&mut words);
                        words
                    }
                }
            }
            None => vec![0; (self.geometry.cluster_size() / 8) as usize].into_boxed_slice(),
        };
        let cluster = self.allocate(1)?.clusters.start;
        let offset = cluster << self.geometry.cluster_bits;
        self.tables.insert(cluster);
        self.l2.insert_new(offset, words);
        if let Some(old) = old {
            self.released.push(old >> self.geometry.cluster_bits);
        }
        self.l1[index] = offset | COPIED;
        self.dirty_l1.insert(index);
        Ok(offset)
    }

    /// Changes an entry; what the old one pointed at is released with the next commit.
    pub(super) fn set_entry(&mut self, table: u64, index: usize, entry: Entry) -> Result<(), BadEntry> {
        let geometry = self.geometry;
        let old = Entries::new(self.l2.peek(table).unwrap_or_default(), geometry, 0).entry(index);
        let (old, new) = (Cluster::decode(old, geometry)?, Cluster::decode(entry, geometry)?);
        let (old_clusters, new_clusters) = (old.host_clusters(geometry), new.host_clusters(geometry));
        // A compressed cluster was counted again even if it went where the old one is.
        let is_same_place = old_clusters == new_clusters && entry.word & COMPRESSED == 0;
        if !is_same_place {
            self.released.extend(old_clusters);
        }
        self.note_freed_data(old.place(), new.place());
        self.l2.set(table, index, entry);
        Ok(())
    }

    /// Hands out at most `wanted` clusters that lie together.
    pub(super) fn allocate(&mut self, wanted: u64) -> Result<Allocation, TableError> {
        self.allocate_by(|refcounts, file, growth| refcounts.allocate(file, wanted, growth))
    }

    /// Hands out at most `wanted` clusters for data of the disk from `guest` on. A data file has each where the disk has it.
    pub(super) fn allocate_for(&mut self, guest: u64, wanted: u64) -> Result<Allocation, TableError> {
        if !self.geometry.external_data {
            return self.allocate(wanted);
        }
        let first = guest >> self.geometry.cluster_bits;
        Ok(Allocation { clusters: first..first + wanted, is_fresh: false })
    }

    /// Takes back what [`allocate_for`](Self::allocate_for) gave and no entry points at.
    pub(super) fn take_back_data(&mut self, clusters: Range<u64>) {
        if !self.geometry.external_data {
            self.take_back(clusters);
        }
    }

    /// Hands out exactly `wanted` clusters that lie together, for a table.
    pub(super) fn allocate_together(&mut self, wanted: u64) -> Result<Range<u64>, TableError> {
        Ok(self.allocate_by(|refcounts, file, growth| refcounts.allocate_together(file, wanted, growth))?.clusters)
    }

    fn allocate_by(
        &mut self,
        allocate: impl FnOnce(&mut Refcounts, &FencedFile, &mut Growth) -> Result<Range<u64>, AllocateError>,
    ) -> Result<Allocation, TableError> {
        let mut growth = Growth::default();
        let Some(refcounts) = &mut self.refcounts else { return Err(TableError::Bad("the disk is read-only")) };
        let result = allocate(refcounts, &self.file, &mut growth);
        for cluster in &growth.taken {
            self.end = self.end.max((cluster + 1) << self.geometry.cluster_bits);
        }
        self.tables.extend(growth.taken);
        self.released.extend(growth.left);
        let clusters = result?;
        if clusters.clone().any(|cluster| self.is_metadata(cluster)) {
            self.take_back(clusters);
            return Err(TableError::Bad("a table is counted as free space"));
        }
        let is_fresh = clusters.start << self.geometry.cluster_bits >= self.end;
        self.end = self.end.max(clusters.end << self.geometry.cluster_bits);
        Ok(Allocation { clusters, is_fresh })
    }

    /// Takes back clusters that were allocated and that no entry points at.
    pub(super) fn take_back(&mut self, clusters: Range<u64>) {
        if let Some(refcounts) = &mut self.refcounts {
            refcounts.take_back(clusters);
        }
    }

    /// Whether a flush must write tables.
    pub(super) fn has_changes(&self) -> bool {
        let counts = self.refcounts.as_ref().is_some_and(|r| r.has_dirty_blocks() || r.has_unpublished_blocks());
        counts || !self.dirty_l1.is_empty() || !self.l2.is_clean() || !self.released.is_empty()
    }

    /// Commits when too much has piled up since the last flush.
    pub(super) fn commit_if_crowded(&mut self) -> Result<(), DiskError> {
        if self.l2.has_too_much_to_write() || self.released.len() > MAX_RELEASED { self.commit() } else { Ok(()) }
    }

    /// Writes all changes, in an order that leaves nothing but unused clusters behind wherever it is cut off.
    ///
    /// After an error nothing is lost: what could not be written is still marked as changed, and the next commit
    /// writes it again in the same order. (After a failed *flush* there is no next commit; the file is fenced.)
    pub(super) fn commit(&mut self) -> Result<(), DiskError> {
        self.flush_data()?;
        let Some(refcounts) = &mut self.refcounts else { return Ok(()) };
        // 1. Counts that rose, and tables that nothing points at yet. With them the guest's data becomes durable.
        refcounts.write_blocks(&self.file)?;
        self.l2.write_dirty(&self.file, false)?;
        self.file.flush()?;
        // 2. Pointers to new refcount blocks.
        if refcounts.has_unpublished_blocks() {
            refcounts.publish_blocks(&self.file)?;
            self.file.flush()?;
        }
        // 3. Pointers to data and to new second-level tables: what they point at is durable and counted by now.
        if !self.l2.is_clean() || !self.dirty_l1.is_empty() {
            self.l2.publish_all(self.dirty_l1.iter().map(|index| self.l1[*index] & OFFSET_MASK));
            self.l2.write_dirty(&self.file, true)?;
            for index in self.dirty_l1.clone() {
                write_words(&self.file, self.l1_offset, &self.l1, index..index + 1)?;
                self.dirty_l1.remove(&index);
            }
            self.file.flush()?;
        }
        // 4. No pointer to the released clusters is left in the file, so their counts may fall.
        self.release();
        self.release_data();
        Ok(())
    }

    /// Lowers the counts of released clusters and gives the free ones back to the host.
    pub(super) fn release(&mut self) {
        let Some(refcounts) = &mut self.refcounts else { return };
        let (mut freed, mut kept) = (Vec::new(), Vec::new());
        for cluster in std::mem::take(&mut self.released) {
            match refcounts.lower(&self.file, cluster) {
                Ok(0) => {
                    freed.push(cluster);
                    if self.tables.remove(&cluster) {
                        self.l2.forget(cluster << self.geometry.cluster_bits);
                    }
                }
                // A snapshot, or another entry, goes on using it.
                Ok(_) => {}
                // The cluster stays counted, which is safe, until the next commit.
                Err(error) => {
                    tracing::warn!(%error, cluster, "a freed cluster could not be given back yet");
                    kept.push(cluster);
                }
            }
        }
        self.released = kept;
        // Room behind a compressed cluster goes with its cluster.
        if self.packed_end.is_some_and(|end| freed.contains(&(end >> self.geometry.cluster_bits))) {
            self.packed_end = None;
        }
        freed.sort_unstable();
        let bits = self.geometry.cluster_bits;
        for run in freed.chunk_by(|left, right| left + 1 == *right) {
            let (Some(first), true) = (run.first(), self.can_punch) else { break };
            // Giving space back is a courtesy; a host that cannot is asked no more.
            self.can_punch = matches!(self.file.punch_hole(first << bits, (run.len() as u64) << bits), Ok(true));
        }
    }

    /// Commits until nothing is left to write, lowered counts included.
    pub(super) fn settle(&mut self) -> Result<(), DiskError> {
        for _ in 0..3 {
            if !self.has_changes() {
                break;
            }
            self.commit()?;
        }
        Ok(())
    }

    /// Whether entries can say "zeros": by the version now, and by the one at opening, by which they are read.
    pub(super) fn has_zero_flag(&self) -> bool {
        self.geometry.version >= 3 && self.header.version >= 3
    }

    /// Sets the bit in the header that tells every program that the image contradicts itself.
    pub(super) fn mark_corrupt(&mut self) -> Result<(), DiskError> {
        if self.header.version < 3 || self.header.incompatible & INCOMPATIBLE_CORRUPT != 0 || self.refcounts.is_none() {
            return Ok(());
        }
        self.header.incompatible |= INCOMPATIBLE_CORRUPT;
        self.file.write_at(AT_INCOMPATIBLE, &self.header.incompatible.to_be_bytes())?;
        self.file.flush()
    }
}
