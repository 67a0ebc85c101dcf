//! Making, applying and deleting internal snapshots.
//!
//! A snapshot is a copy of the first-level table and one more count on all it leads to. Each operation has one
//! instant at which it happens, the write of a header field; before it nothing but counts has risen, after it they
//! only fall:
//!
//! ```text
//!   create   marks "ours alone" taken off ┃ counts raised, copies written ┃ header: new snapshot table
//!   apply    counts raised, copy of the snapshot's table written ┃ header: that table, its size ┃ old counts lowered
//!   delete   snapshot table without it written ┃ header: that table ┃ counts lowered
//! ```
//!
//! A crash leaves unused clusters at worst, or entries that are "ours alone" without saying so, which costs a copy.
//! The marks come last again: after the counts that fell are durable, entries that are alone are marked.
//! The state of a saved machine lies on the disk as if it were longer than it is.

use std::path::Path;
use std::sync::atomic::Ordering;

use crate::DiskError;
use crate::image::DiskImage;
use crate::image_info::NewSnapshot;

use super::Qcow2;
use super::header::{AT_SNAPSHOTS, MAX_SNAPSHOTS};
use super::mapping::{COPIED, Cluster, Entries, Entry, Geometry};
use super::metadata::{Metadata, TableError};
use super::snapshot_table::{Snapshot, SnapshotTable};
use super::write::Clearing;

impl Qcow2 {
    pub(super) fn take_snapshot(&self, new: &NewSnapshot) -> Result<(), DiskError> {
        let refuse = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: self.path().to_path_buf() };
        if new.name.len() > usize::from(u16::MAX) {
            return Err(refuse("The name of a snapshot may not be so long"));
        }
        if self.geometry.external_data {
            return Err(self.cannot("keep snapshots while its data lies in another file"));
        }
        let mut metadata = self.alone()?;
        if metadata.snapshots.snapshots.len() >= MAX_SNAPSHOTS as usize {
            return Err(refuse("A disk cannot have more snapshots than it has. Delete one first"));
        }
        let size = self.len();
        let take = |metadata: &mut Metadata| {
            if new.vm_state_size == 0 {
                self.forget_vm_state(metadata)?;
            }
            metadata.add_snapshot(new, size)?;
            // From now on it is the snapshot's.
            let forgotten = self.forget_vm_state(metadata);
            metadata.tidy(forgotten);
            Ok(())
        };
        take(&mut metadata).map_err(|error| self.explain(&mut metadata, error))
    }

    pub(super) fn return_to_snapshot(&self, name: &str) -> Result<(), DiskError> {
        let mut metadata = self.alone()?;
        let index = find(&metadata, name, self.path())?;
        let old = metadata.header.size;
        self.note_all_changed();
        let result = metadata.apply_snapshot(index);
        result.map_err(|error| self.explain(&mut metadata, error))?;
        self.size.store(metadata.header.size, Ordering::Release);
        self.note_all_changed();
        if metadata.header.size != old {
            let fitted = self.track_usable(&mut metadata).map_err(TableError::from);
            let fitted = fitted.and_then(|()| self.fit_bitmaps(&mut metadata));
            metadata.tidy(fitted);
        }
        Ok(())
    }

    pub(super) fn drop_snapshot(&self, name: &str) -> Result<(), DiskError> {
        let mut metadata = self.alone()?;
        let index = find(&metadata, name, self.path())?;
        let result = metadata.remove_snapshot(index);
        result.map_err(|error| self.explain(&mut metadata, error))
    }

    /// Writes a part of the machine state that the next snapshot is to keep.
    pub(super) fn put_vm_state(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let start = vm_state_start(self.geometry, self.len());
        let end =
            start.checked_add(offset).and_then(|at| at.checked_add(data.len() as u64)).filter(|end| *end <= MAX_VM_STATE_END);
        let Some(end) = end else {
            let reason = "The state of this machine does not fit into the disk".into();
            return Err(DiskError::BadOptions { reason, path: self.path().to_path_buf() });
        };
        let mut metadata = self.alone()?;
        let put = |metadata: &mut Metadata| {
            metadata.grow_l1(end.div_ceil(self.geometry.bytes_per_table()))?;
            self.write_alone(metadata, start + offset, data)
        };
        put(&mut metadata).map_err(|error| self.explain(&mut metadata, error))
    }

    /// Drops what lies past the end of the disk.
    fn forget_vm_state(&self, metadata: &mut Metadata) -> Result<(), TableError> {
        let start = vm_state_start(self.geometry, self.len());
        let end = metadata.l1.len() as u64 * self.geometry.bytes_per_table();
        if start < end { self.clear_units(metadata, start..end, Clearing::Unmap) } else { Ok(()) }
    }
}

/// No machine state reaches past this place in the disk's address space.
const MAX_VM_STATE_END: u64 = 1 << 62;

/// Where the state of a saved machine begins: behind the last table that maps the disk.
pub(super) fn vm_state_start(geometry: Geometry, size: u64) -> u64 {
    size.next_multiple_of(geometry.bytes_per_table())
}

fn find(metadata: &Metadata, name: &str, path: &Path) -> Result<usize, DiskError> {
    metadata.snapshots.position(name).ok_or_else(|| DiskError::NoSuchSnapshot { name: name.into(), path: path.to_path_buf() })
}

impl Metadata {
    fn add_snapshot(&mut self, new: &NewSnapshot, disk_size: u64) -> Result<(), TableError> {
        self.settle()?;
        let references = self.references(&self.l1.clone())?;
        self.check_can_raise(&references)?;
        self.take_off_marks()?;
        self.settle()?;
        let (offset, clusters) = self.write_l1_copy(&self.l1.clone())?;
        let info = new.clone().into_info(self.snapshots.next_id(), disk_size);
        let snapshot = Snapshot { l1_offset: offset, l1_entries: self.l1.len() as u32, info, unknown_extra: Vec::new() };
        let mut table = self.snapshots.clone();
        table.snapshots.push(snapshot);
        let result = self.raise_all(&references).and_then(|()| {
            let result = self.switch_snapshot_table(table);
            if result.is_err() {
                self.lower_all(&references);
            }
            result
        });
        if let Err(error) = result {
            self.take_back(clusters);
            self.put_marks_back();
            return Err(error);
        }
        self.tidy(Ok(()));
        Ok(())
    }

    fn remove_snapshot(&mut self, index: usize) -> Result<(), TableError> {
        self.settle()?;
        let mut table = self.snapshots.clone();
        let snapshot = table.snapshots.remove(index);
        let l1 = self.read_l1(&snapshot)?;
        let references = self.references(&l1)?;
        self.switch_snapshot_table(table)?;
        self.released.extend(references);
        self.released.extend(self.clusters(snapshot.l1_offset, u64::from(snapshot.l1_entries) * 8));
        self.tidy(Ok(()));
        self.put_marks_back();
        self.tidy(Ok(()));
        Ok(())
    }

    fn apply_snapshot(&mut self, index: usize) -> Result<(), TableError> {
        self.settle()?;
        let Some(snapshot) = self.snapshots.snapshots.get(index).cloned() else {
            return Err(TableError::Bad("a snapshot is gone"));
        };
        let mut l1 = self.read_l1(&snapshot)?;
        let size = snapshot.info.disk_size;
        if size > i64::MAX as u64 || size.div_ceil(self.geometry.bytes_per_table()) > l1.len() as u64 {
            return Err(TableError::Bad("a snapshot's table does not fit its size"));
        }
        let raised = self.references(&l1)?;
        let lowered = self.references(&self.l1.clone())?;
        self.check_can_raise(&raised)?;
        l1.iter_mut().for_each(|entry| *entry &= !COPIED);
        let place = self.allocate_together(self.clusters(0, l1.len().max(1) as u64 * 8).end)?;
        let result = self.raise_all(&raised).and_then(|()| {
            let moved = self.settle().and_then(|()| self.move_l1(l1, place.start << self.geometry.cluster_bits, size));
            if moved.is_err() {
                self.lower_all(&raised);
            }
            Ok(moved?)
        });
        if let Err(error) = result {
            self.take_back(place);
            return Err(error);
        }
        self.l2.clear();
        self.tables = self.refcounts.iter().flat_map(|refcounts| refcounts.own_clusters()).collect();
        if self.claim_second_level_tables().is_err() {
            // What `references` let pass cannot fail here but by a mistake of ours.
            self.file.fence();
        }
        self.released.extend(lowered);
        self.tidy(Ok(()));
        self.put_marks_back();
        self.tidy(Ok(()));
        Ok(())
    }

    /// Finishes an operation that has happened already: what fails now is done with the next flush, or left behind as
    /// unused space.
    pub(super) fn tidy(&mut self, so_far: Result<(), TableError>) {
        if let Err(TableError::Disk(error)) = so_far.and_then(|()| Ok(self.settle()?)) {
            tracing::warn!(%error, "some space in a disk was not given back yet");
        }
    }

    pub(super) fn read_l1(&self, snapshot: &Snapshot) -> Result<Vec<u64>, DiskError> {
        let mut bytes = vec![0; snapshot.l1_entries as usize * 8];
        self.file.read_exact(snapshot.l1_offset, &mut bytes)?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
    }

    /// Writes a first-level table for a snapshot; returns where, and in which clusters.
    fn write_l1_copy(&mut self, l1: &[u64]) -> Result<(u64, std::ops::Range<u64>), TableError> {
        // A disk without any cluster has an empty table, but a place for it nonetheless.
        let clusters = self.allocate_together(self.clusters(0, l1.len().max(1) as u64 * 8).end)?;
        let offset = clusters.start << self.geometry.cluster_bits;
        let mut bytes: Vec<u8> = l1.iter().flat_map(|entry| (entry & !COPIED).to_be_bytes()).collect();
        bytes.resize(((clusters.end - clusters.start) << self.geometry.cluster_bits) as usize, 0);
        if let Err(error) = self.file.write_at(offset, &bytes) {
            self.take_back(clusters);
            return Err(error.into());
        }
        Ok((offset, clusters))
    }

    /// Writes another snapshot table and makes the header point at it. All else that it needs becomes durable first.
    fn switch_snapshot_table(&mut self, mut table: SnapshotTable) -> Result<(), TableError> {
        let bytes = table.encode();
        table.bytes = bytes.len() as u64;
        let place = self.allocate_together(self.clusters(0, table.bytes).end)?;
        let offset = if bytes.is_empty() { 0 } else { place.start << self.geometry.cluster_bits };
        let mut padded = bytes;
        padded.resize(((place.end - place.start) << self.geometry.cluster_bits) as usize, 0);
        let mut prepare = || {
            if !padded.is_empty() {
                self.file.write_at(offset, &padded)?;
            }
            self.settle()?;
            self.file.flush()
        };
        if let Err(error) = prepare() {
            self.take_back(place);
            return Err(error.into());
        }
        let mut fields = [0; 12];
        fields[..4].copy_from_slice(&(table.snapshots.len() as u32).to_be_bytes());
        fields[4..].copy_from_slice(&offset.to_be_bytes());
        self.write_header_field(AT_SNAPSHOTS, &fields)?;
        let old = self.clusters(self.header.snapshots_offset, self.snapshots.bytes);
        self.released.extend(old);
        (self.header.snapshots, self.header.snapshots_offset) = (table.snapshots.len() as u32, offset);
        self.snapshots = table;
        self.refresh_fixed();
        Ok(())
    }

    /// Fails if one of these references would not fit its count any more.
    fn check_can_raise(&mut self, references: &[u64]) -> Result<(), TableError> {
        let mut sorted = references.to_vec();
        sorted.sort_unstable();
        for same in sorted.chunk_by(|left, right| left == right) {
            let count = self.refcount(same[0])?;
            let largest = self.refcounts.as_ref().map_or(0, |refcounts| refcounts.largest_count());
            if count.checked_add(same.len() as u64).is_none_or(|count| count > largest) {
                return Err(TableError::TooShared);
            }
        }
        Ok(())
    }

    /// Counts all of these once more, or none.
    fn raise_all(&mut self, references: &[u64]) -> Result<(), TableError> {
        let Some(refcounts) = &mut self.refcounts else { return Err(TableError::Bad("the disk is read-only")) };
        for (done, cluster) in references.iter().enumerate() {
            if let Err(error) = refcounts.raise(&self.file, *cluster) {
                self.lower_all(&references[..done]);
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn lower_all(&mut self, references: &[u64]) {
        let Some(refcounts) = &mut self.refcounts else { return };
        for cluster in references {
            if let Err(error) = refcounts.lower(&self.file, *cluster) {
                tracing::warn!(%error, cluster, "a count stays too high: unused space, nothing worse");
            }
        }
    }

    /// Takes the mark "ours alone" off all entries, because they are going to be shared.
    fn take_off_marks(&mut self) -> Result<(), TableError> {
        self.change_marks(|_| false)
    }

    /// Marks the entries that are "ours alone" again. Where that fails a write costs a copy, and no more.
    fn put_marks_back(&mut self) {
        let mark = |metadata: &mut Self| {
            metadata.settle()?;
            metadata.change_marks(|count| count == 1)
        };
        if let Err(TableError::Disk(error)) = mark(self) {
            tracing::warn!(%error, "some entries could not be marked as belonging to the disk alone");
        }
    }

    /// Sets the mark of every entry by the count of its cluster. The counts must be durable.
    fn change_marks(&mut self, is_alone: impl Fn(u64) -> bool) -> Result<(), TableError> {
        for index in 0..self.l1.len() {
            let Some(offset) = self.l2_offset(index)? else { continue };
            let table_count = self.refcount(offset >> self.geometry.cluster_bits)?;
            // A table that is shared is not ours to write to, and none of its clusters is ours alone.
            if table_count == 1 {
                self.commit_if_crowded()?;
                let words = self.l2.load(&self.file, offset)?.to_vec();
                for (place, entry) in Entries::new(&words, self.geometry, 0).used() {
                    let Cluster::Mapped { host: Some(host), .. } = Cluster::decode(entry, self.geometry)? else { continue };
                    let word = marked(entry.word, is_alone(self.refcount(host >> self.geometry.cluster_bits)?));
                    if word != entry.word {
                        self.l2.set(offset, place, Entry { word, ..entry });
                    }
                }
            }
            let entry = self.l1[index];
            let marked = marked(entry, is_alone(table_count));
            if marked != entry {
                self.l1[index] = marked;
                self.dirty_l1.insert(index);
            }
        }
        Ok(())
    }
}

fn marked(entry: u64, is_alone: bool) -> u64 {
    if is_alone { entry | COPIED } else { entry & !COPIED }
}
