//! Changing the size of a disk. The header takes the new size, and the new place of the first-level table, in one
//! write; before it everything the new size needs is durable, after it what is no longer needed is given up.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use crate::DiskError;
use crate::image::DiskImage;
use crate::open::Preallocation;

use super::Qcow2;
use super::create::CANNOT_KEEP_SPACE_OVER_BASE;
use super::header::{AT_SIZE, MAX_L1_BYTES, METHOD_LUKS};
use super::l2_cache::write_words;
use super::mapping::{Cluster, Entries};
use super::metadata::{Metadata, TableError};
use super::write::Clearing;

impl Qcow2 {
    pub(super) fn change_size(&self, size: u64, preallocation: Preallocation) -> Result<(), DiskError> {
        let refuse = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: self.path().to_path_buf() };
        let old = self.len();
        if !size.is_multiple_of(512) {
            return Err(refuse("The size of a disk must be a multiple of 512 bytes"));
        }
        let l1_entries = size.div_ceil(self.geometry.bytes_per_table());
        if size > i64::MAX as u64 || l1_entries * 8 > MAX_L1_BYTES {
            return Err(refuse("A disk of this size needs larger clusters. Copy it into a new disk with larger ones"));
        }
        if preallocation != Preallocation::Off && self.backing.is_some() && !self.geometry.extended_l2 {
            return Err(refuse(CANNOT_KEEP_SPACE_OVER_BASE));
        }
        if preallocation != Preallocation::Off && self.encryption.is_some() {
            return Err(refuse("An encrypted disk cannot set space aside"));
        }
        let mut metadata = self.alone()?;
        // A raw data file reads as the disk does only where every cluster is mapped.
        let preallocation = match preallocation {
            Preallocation::Off if metadata.header.has_raw_data_file() => Preallocation::Metadata,
            preallocation => preallocation,
        };
        if metadata.header.version < 3 && !metadata.snapshots.snapshots.is_empty() {
            return Err(refuse("A version 2 disk with snapshots cannot change its size. Delete the snapshots first"));
        }
        self.track_all(&mut metadata)?;
        let result = if size > old {
            self.grow(&mut metadata, old, size, l1_entries, preallocation)
        } else {
            self.shrink(&mut metadata, old, size)
        };
        // What is added was something else before, if the disk was larger once.
        self.tracking.note(old.min(size)..size);
        result.map_err(|error| self.explain(&mut metadata, error))?;
        // The disk has its new size, whatever becomes of the bitmaps: those that cannot be written down are out of date.
        if let Err(error) = self.fit_bitmaps(&mut metadata) {
            let error = self.explain(&mut metadata, error);
            metadata.file.check_fence()?;
            tracing::warn!(%error, path = %self.path().display(), "bitmaps could not follow the disk's new size");
        }
        Ok(())
    }

    fn grow(
        &self,
        metadata: &mut Metadata,
        old: u64,
        size: u64,
        l1_entries: u64,
        preallocation: Preallocation,
    ) -> Result<(), TableError> {
        let cluster_size = self.geometry.cluster_size();
        metadata.grow_l1(l1_entries)?;
        // What an earlier shrinking or a saved machine left past the end must not come to light, and neither must
        // the base image.
        let boundary = old.next_multiple_of(cluster_size);
        self.write_zeros(metadata, old, boundary.min(size))?;
        if boundary < size {
            let end = size.next_multiple_of(cluster_size);
            self.clear_units(metadata, boundary..end, Clearing::Unmap)?;
            let base = self.backing.as_ref().map_or(0, |backing| backing.len()).min(end).next_multiple_of(cluster_size);
            if base > boundary && metadata.has_zero_flag() {
                self.clear_units(metadata, boundary..base, Clearing::Zero)?;
            } else if base > boundary {
                self.write_zeros(metadata, boundary, base.min(size))?;
            }
            if preallocation != Preallocation::Off {
                self.set_space_aside(metadata, boundary, size, preallocation)?;
            }
        }
        self.resize_data_file(metadata, old, size)?;
        metadata.settle()?;
        metadata.write_size(size)?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    fn shrink(&self, metadata: &mut Metadata, old: u64, size: u64) -> Result<(), TableError> {
        let cluster_size = self.geometry.cluster_size();
        metadata.settle()?;
        metadata.write_size(size)?;
        self.size.store(size, Ordering::Release);
        let range = size.next_multiple_of(cluster_size)..old.next_multiple_of(cluster_size);
        let cleared = if range.is_empty() { Ok(()) } else { self.clear_units(metadata, range, Clearing::Unmap) };
        let cleared = cleared.and_then(|()| self.resize_data_file(metadata, old, size));
        metadata.tidy(cleared);
        Ok(())
    }

    /// Gives every cluster from `start` on a place in the file.
    fn set_space_aside(
        &self,
        metadata: &mut Metadata,
        start: u64,
        end: u64,
        preallocation: Preallocation,
    ) -> Result<(), TableError> {
        let cluster_size = self.geometry.cluster_size();
        let mut at = start;
        while at < end {
            metadata.commit_if_crowded()?;
            let (table_index, index) = self.geometry.indices(at);
            let table = metadata.writable_table(table_index)?;
            let wanted = (self.geometry.l2_entries() - index as u64).min((end - at).div_ceil(cluster_size));
            let allocation = metadata.allocate_for(at, wanted)?;
            let clusters = allocation.clusters;
            let (host, length) = (clusters.start * cluster_size, (clusters.end - clusters.start) * cluster_size);
            let result = match (&self.data_file, preallocation) {
                (Some(data_file), Preallocation::Off | Preallocation::Metadata) => data_file.zero(host..(host + length).min(end)),
                (Some(data_file), _) => data_file.get().and_then(|file| file.write_zeros(host, length.min(end - host))),
                (None, Preallocation::Off | Preallocation::Metadata) if allocation.is_fresh => Ok(()),
                (None, Preallocation::Falloc) if allocation.is_fresh => self.file.allocate(host, length),
                (None, _) => self.file.write_zeros(host, length),
            };
            // The last cluster is only known to the file once its end is there.
            let result = result.and_then(|()| match self.data_file {
                Some(_) => Ok(()),
                None => self.file.grow_to(host + length),
            });
            if let Err(error) = result {
                metadata.take_back_data(clusters);
                return Err(error.into());
            }
            for (number, cluster) in clusters.enumerate() {
                let host = Some(cluster * cluster_size);
                // With subclusters a place can be kept without anything being stored in it.
                let stored = if self.geometry.extended_l2 { 0 } else { 1 };
                let cluster = Cluster::Mapped { host, copied: true, stored, zeros: 0 };
                metadata.set_entry(table, index + number, cluster.encode(self.geometry))?;
            }
            at += length;
        }
        Ok(())
    }
}

impl Metadata {
    /// Makes sure that the first-level table has at least so many entries, moving it where it can grow.
    pub(super) fn grow_l1(&mut self, entries: u64) -> Result<(), TableError> {
        if entries <= self.l1.len() as u64 {
            return Ok(());
        }
        let mut l1 = self.l1.clone();
        l1.resize(entries as usize, 0);
        let clusters = self.clusters(0, entries * 8).end;
        let place = self.allocate_together(clusters)?;
        let result = self.settle().and_then(|()| {
            // Settling may have changed entries.
            l1[..self.l1.len()].copy_from_slice(&self.l1);
            self.move_l1(l1, place.start << self.geometry.cluster_bits, self.header.size)
        });
        if result.is_err() && self.file.check_fence().is_ok() {
            self.take_back(place);
        }
        Ok(result?)
    }

    /// Writes a first-level table into clusters that nothing points at, and makes the header point there. All tables
    /// must be settled. The old table's clusters are released.
    pub(super) fn move_l1(&mut self, l1: Vec<u64>, offset: u64, size: u64) -> Result<(), DiskError> {
        let cluster_words = (self.geometry.cluster_size() / 8) as usize;
        let mut padded = l1.clone();
        padded.resize(l1.len().next_multiple_of(cluster_words), 0);
        write_words(&self.file, offset, &padded, 0..padded.len())?;
        self.settle()?;
        self.file.flush()?;
        let old = self.clusters(self.l1_offset, self.l1.len() as u64 * 8);
        let mut fields = [0; 24];
        fields[..8].copy_from_slice(&size.to_be_bytes());
        // It lies between the two and stays: without it nobody could read the disk again.
        let method = if self.header.luks.is_some() { METHOD_LUKS } else { 0 };
        fields[8..12].copy_from_slice(&method.to_be_bytes());
        fields[12..16].copy_from_slice(&(l1.len() as u32).to_be_bytes());
        fields[16..].copy_from_slice(&offset.to_be_bytes());
        self.write_header_field(AT_SIZE, &fields)?;
        self.header.size = size;
        (self.header.l1_entries, self.header.l1_offset) = (l1.len() as u32, offset);
        (self.l1, self.l1_offset) = (l1, offset);
        self.released.extend(old);
        self.refresh_fixed();
        Ok(())
    }

    fn write_size(&mut self, size: u64) -> Result<(), DiskError> {
        self.write_header_field(AT_SIZE, &size.to_be_bytes())?;
        self.header.size = size;
        Ok(())
    }

    /// Writes a field of the header and makes it durable. If that fails, nobody knows what the header says, so the
    /// file takes no more writes.
    pub(super) fn write_header_field(&mut self, at: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let result = self.file.write_at(at, bytes).and_then(|()| self.file.flush());
        if result.is_err() {
            self.file.fence();
        }
        result
    }

    /// Takes down anew where the fixed tables lie, after one has moved.
    pub(super) fn refresh_fixed(&mut self) {
        if self.note_fixed_tables().is_err() {
            // Only a mistake of ours can lead here; then nothing more may be written.
            self.file.fence();
        }
    }

    /// Every host cluster that a first-level table leads to, second-level tables included, once for each entry.
    /// The tables must be settled, for they are read from the file.
    pub(super) fn references(&mut self, l1: &[u64]) -> Result<Vec<u64>, TableError> {
        let cluster_size = self.geometry.cluster_size();
        let mut references = Vec::new();
        let used = l1.iter().filter(|entry| **entry != 0);
        if used.clone().count() as u64 > self.end / cluster_size {
            return Err(TableError::Bad("a first-level table has more entries than the file has clusters"));
        }
        let mut bytes = vec![0; cluster_size as usize];
        for entry in used {
            let offset = self.checked_l2_offset(*entry)?;
            references.push(offset / cluster_size);
            self.file.read_exact(offset, &mut bytes)?;
            let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect();
            for (_, entry) in Entries::new(&words, self.geometry, 0).used() {
                references.extend(Cluster::decode(entry, self.geometry)?.host_clusters(self.geometry));
            }
        }
        let counts: HashSet<u64> = self.refcounts.iter().flat_map(|refcounts| refcounts.own_clusters()).collect();
        for cluster in &references {
            if cluster * cluster_size >= self.end || self.is_fixed(*cluster) || counts.contains(cluster) {
                return Err(TableError::Bad("a cluster lies past the end of the file or overlaps a table"));
            }
            if self.refcount(*cluster)? == 0 {
                return Err(TableError::Bad("a used cluster is counted as free space"));
            }
        }
        Ok(references)
    }
}
