//! Writing: in place where the mapping allows it, else into new clusters; zeroing and discarding.
//!
//! An operation that fails has changed nothing it did not finish: clusters that were allocated for it are taken
//! back, and an entry changes only after the data it will point at was written without error.

use std::sync::atomic::Ordering;

use crate::DiskError;
use crate::block_file::Access;
use crate::image::{DiskImage, check_range};

use super::header::{AT_AUTOCLEAR, AUTOCLEAR_BITMAPS};
use super::mapping::{COPIED, Mapping, ZERO};
use super::metadata::{Metadata, TableError};
use super::{Qcow2, mapping};

/// Bytes that are allocated at once; a larger write takes several rounds.
const MAX_ALLOCATION: u64 = 4 << 20;
/// Up to this size old and new content are put together in memory and written in one go.
const MAX_ASSEMBLED: u64 = 2 << 20;

/// What a run of whole clusters is to become.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Clearing {
    /// Anything that gives space back.
    Discard,
    /// Zeros.
    Zero,
    /// No entry at all; the base image may show through. For what lies past the end of the disk.
    Unmap,
}

/// A write into clusters that nothing points at.
struct NewClusters<'a> {
    table: u64,
    hosts: std::ops::Range<u64>,
    is_fresh: bool,
    /// Guest position of the data.
    offset: u64,
    data: &'a [u8],
}

impl Qcow2 {
    pub(super) fn check_write(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        if self.access == Access::ReadOnly {
            return Err(DiskError::ReadOnly { path: self.path().to_path_buf() });
        }
        self.file.check_fence()?;
        if self.is_corrupt.load(Ordering::Acquire) {
            return Err(self.damaged("a contradiction was found in it earlier"));
        }
        check_range(self.path(), self.len(), offset, length)?;
        self.prepare_first_write()
    }

    /// Takes back what the header promises of the content and nobody keeps true from now on: the bitmaps are marked as
    /// out of date, and all features that we do not know are cleared.
    fn prepare_first_write(&self) -> Result<(), DiskError> {
        if self.is_prepared.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut metadata = self.alone()?;
        if !self.is_prepared.load(Ordering::Acquire) {
            let kept = if metadata.mark_bitmaps_out_of_date()? { AUTOCLEAR_BITMAPS } else { 0 };
            if metadata.header.autoclear != kept {
                tracing::debug!(bits = metadata.header.autoclear & !kept, "clearing autoclear bits before the first write");
                metadata.write_header_field(AT_AUTOCLEAR, &kept.to_be_bytes())?;
                metadata.header.autoclear = kept;
            }
            self.is_prepared.store(true, Ordering::Release);
        }
        Ok(())
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let done = self.write_in_place(offset, data)?;
        let (offset, data) = (offset + done as u64, &data[done..]);
        if data.is_empty() {
            return Ok(());
        }
        let mut metadata = self.alone()?;
        self.write_alone(&mut metadata, offset, data).map_err(|error| self.explain(&mut metadata, error))
    }

    /// Overwrites clusters that are ours and in memory already, as far as it goes; returns the bytes written.
    fn write_in_place(&self, offset: u64, data: &[u8]) -> Result<usize, DiskError> {
        let metadata = self.shared()?;
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            // Whatever is unusual is met again, and told, by the slow path.
            let Ok(Some(entries)) = metadata.peek_entries(at) else { break };
            let Some((host, length)) = self.run_in_place(&metadata, entries, at, (data.len() - done) as u64) else { break };
            let end = done + length as usize;
            self.write_payload(host, &data[done..end])?;
            done = end;
        }
        Ok(done)
    }

    /// The host position and length of the part at `offset` that may be overwritten where it is.
    fn run_in_place(&self, metadata: &Metadata, entries: &[u64], offset: u64, limit: u64) -> Option<(u64, u64)> {
        let cluster_size = self.geometry.cluster_size();
        let (_, first) = self.geometry.indices(offset);
        let in_cluster = offset % cluster_size;
        let own_host = |index: usize| {
            let mapping = Mapping::decode(*entries.get(index)?, self.geometry).ok()?;
            match (mapping, metadata.is_writable_in_place(mapping)) {
                (Mapping::Data { host, .. }, Ok(Some(true))) => Some(host),
                _ => None,
            }
        };
        let host = own_host(first)?;
        let mut clusters = 1;
        while clusters * cluster_size - in_cluster < limit
            && own_host(first + clusters as usize) == Some(host + clusters * cluster_size)
        {
            clusters += 1;
        }
        Some((host + in_cluster, (clusters * cluster_size - in_cluster).min(limit)))
    }

    pub(super) fn write_alone(&self, metadata: &mut Metadata, mut offset: u64, mut data: &[u8]) -> Result<(), TableError> {
        while !data.is_empty() {
            metadata.commit_if_crowded()?;
            let written = self.write_some(metadata, offset, data)?;
            offset += written as u64;
            data = &data[written..];
        }
        Ok(())
    }

    /// Writes the first part of `data`; returns how much that was.
    fn write_some(&self, metadata: &mut Metadata, offset: u64, data: &[u8]) -> Result<usize, TableError> {
        let cluster_size = self.geometry.cluster_size();
        let (table_index, index) = self.geometry.indices(offset);
        let in_cluster = offset % cluster_size;
        let table = metadata.writable_table(table_index)?;
        let mapping = entry_at(metadata, table, index, self)?;
        let (hosts, is_fresh, was_allocated) = match mapping {
            Mapping::Data { host, copied: true } => {
                metadata.check_own_cluster(host)?;
                let run = self.run_in_place(metadata, metadata.entries(table), offset, data.len() as u64);
                let (host, length) = run.ok_or(TableError::Bad("a cluster cannot be written in place"))?;
                let data = &data[..length as usize];
                self.write_payload(host, data)?;
                return Ok(data.len());
            }
            Mapping::Zero { host: Some(host), copied: true } => {
                metadata.check_own_cluster(host)?;
                let cluster = host >> self.geometry.cluster_bits;
                (cluster..cluster + 1, false, false)
            }
            _ => {
                let touched = (in_cluster + data.len() as u64).div_ceil(cluster_size);
                let most = touched.min(self.geometry.l2_entries() - index as u64).min((MAX_ALLOCATION / cluster_size).max(1));
                let wanted = self.count_needing_clusters(metadata.entries(table), index, most);
                let allocation = metadata.allocate(wanted)?;
                // Where everything is encrypted, what was never written does not read as zeros.
                let is_fresh = allocation.is_fresh && self.encryption.is_none();
                (allocation.clusters, is_fresh, true)
            }
        };
        let room = (hosts.end - hosts.start) * cluster_size - in_cluster;
        let data = &data[..data.len().min(room as usize)];
        let new = NewClusters { table, hosts: hosts.clone(), is_fresh, offset, data };
        if let Err(error) = self.fill_new_clusters(metadata, &new) {
            if was_allocated {
                metadata.take_back(hosts);
            }
            return Err(error);
        }
        for (number, host) in hosts.enumerate() {
            metadata.set_entry(table, index + number, host << self.geometry.cluster_bits | COPIED)?;
        }
        Ok(data.len())
    }

    /// How many entries from `index` on want a new cluster, at most `most`.
    fn count_needing_clusters(&self, entries: &[u64], index: usize, most: u64) -> u64 {
        let wants_new = |entry: &&u64| {
            !matches!(
                Mapping::decode(**entry, self.geometry),
                Ok(Mapping::Data { copied: true, .. } | Mapping::Zero { host: Some(_), copied: true }) | Err(_)
            )
        };
        entries.iter().skip(index).take(most as usize).take_while(wants_new).count().max(1) as u64
    }

    /// Writes data into new clusters, with the old content around it.
    fn fill_new_clusters(&self, metadata: &Metadata, new: &NewClusters<'_>) -> Result<(), TableError> {
        let bits = self.geometry.cluster_bits;
        let total = (new.hosts.end - new.hosts.start) << bits;
        let host = new.hosts.start << bits;
        let head = new.offset % self.geometry.cluster_size();
        let tail_at = head + new.data.len() as u64;
        let guest = new.offset - head;
        let head = self.old_content(metadata, new, guest, head)?;
        let tail = self.old_content(metadata, new, guest + tail_at, total - tail_at)?;
        let parts: [(u64, &[u8]); 3] = [(0, &head), (new.offset - guest, new.data), (tail_at, &tail)];
        if (!head.is_empty() || !tail.is_empty()) && (total <= MAX_ASSEMBLED || self.encryption.is_some()) {
            let whole: Vec<u8> = parts.iter().flat_map(|(_, part)| part.iter().copied()).collect();
            // An empty head stands for a hole of zeros, if there is anything before the data at all.
            let start = if head.is_empty() { new.offset - guest } else { 0 };
            self.write_payload(host + start, &whole)?;
            return Ok(());
        }
        for (at, part) in parts.into_iter().filter(|(_, part)| !part.is_empty()) {
            self.write_payload(host + at, part)?;
        }
        Ok(())
    }

    /// The old content of a part of one cluster; empty if that is zeros and the new cluster holds zeros already.
    fn old_content(&self, metadata: &Metadata, new: &NewClusters<'_>, guest: u64, length: u64) -> Result<Vec<u8>, TableError> {
        if length == 0 {
            return Ok(Vec::new());
        }
        let (_, index) = self.geometry.indices(guest);
        let mapping = entry_at(metadata, new.table, index, self)?;
        let is_zero = match mapping {
            Mapping::Zero { .. } => true,
            Mapping::Unallocated => self.backing.as_ref().is_none_or(|backing| backing.len() <= guest),
            Mapping::Data { .. } | Mapping::Compressed { .. } => false,
        };
        if is_zero && new.is_fresh {
            return Ok(Vec::new());
        }
        let mut content = vec![0; length as usize];
        self.read_mapped(mapping, guest, &mut content)?;
        Ok(content)
    }

    pub(super) fn drop_clusters(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        let cluster_size = self.geometry.cluster_size();
        let end = offset + length;
        // The last cluster of the disk may be a part of one; discarding up to the end takes it too.
        let end = if end == self.len() { end.next_multiple_of(cluster_size) } else { end / cluster_size * cluster_size };
        let start = offset.next_multiple_of(cluster_size);
        if start >= end {
            return Ok(());
        }
        let mut metadata = self.alone()?;
        self.clear_clusters(&mut metadata, start..end, Clearing::Discard).map_err(|error| self.explain(&mut metadata, error))
    }

    pub(super) fn zero(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        let cluster_size = self.geometry.cluster_size();
        let end = offset + length;
        // Whole clusters from `start` to `stop`; the last cluster of the disk may be a part of one.
        let start = offset.next_multiple_of(cluster_size);
        let stop = if end == self.len() { end.next_multiple_of(cluster_size) } else { end / cluster_size * cluster_size };
        let mut metadata = self.alone()?;
        let clear = |metadata: &mut Metadata| {
            if start >= stop {
                return self.write_zeros(metadata, offset, end);
            }
            self.write_zeros(metadata, offset, start)?;
            self.clear_clusters(metadata, start..stop, Clearing::Zero)?;
            self.write_zeros(metadata, stop.min(end), end)
        };
        clear(&mut metadata).map_err(|error| self.explain(&mut metadata, error))
    }

    /// Writes zeros as data, except where zeros are read already.
    pub(super) fn write_zeros(&self, metadata: &mut Metadata, start: u64, end: u64) -> Result<(), TableError> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        let cluster_size = self.geometry.cluster_size();
        let mut at = start;
        while at < end {
            let piece = (end - at).min(cluster_size - at % cluster_size).min(ZEROS.len() as u64);
            metadata.load_entries(at)?;
            let entries = metadata.peek_entries(at)?.unwrap_or_default();
            let (_, index) = self.geometry.indices(at);
            let mapping = Mapping::decode(entries.get(index).copied().unwrap_or(0), self.geometry)?;
            let is_zero = match mapping {
                Mapping::Zero { .. } => true,
                Mapping::Unallocated => self.backing.is_none(),
                _ => false,
            };
            if !is_zero {
                self.write_alone(metadata, at, &ZEROS[..piece as usize])?;
            }
            at += piece;
        }
        Ok(())
    }

    /// Unmaps or zeroes whole clusters; both ends of `range` lie between clusters.
    pub(super) fn clear_clusters(
        &self,
        metadata: &mut Metadata,
        range: std::ops::Range<u64>,
        how: Clearing,
    ) -> Result<(), TableError> {
        let cluster_size = self.geometry.cluster_size();
        let has_backing = self.backing.is_some();
        let has_zero_flag = self.geometry.version >= 3;
        let cleared = match (has_backing, has_zero_flag, how) {
            (_, _, Clearing::Unmap) | (false, _, _) => 0,
            (true, true, _) => ZERO,
            // Version 2 cannot hide the base image: a discard is left undone, zeros are written.
            (true, false, Clearing::Discard) => return Ok(()),
            (true, false, Clearing::Zero) => return self.write_zeros(metadata, range.start, range.end.min(self.len())),
        };
        let mut at = range.start;
        while at < range.end {
            metadata.commit_if_crowded()?;
            let (table_index, index) = self.geometry.indices(at);
            let count = (self.geometry.l2_entries() - index as u64).min((range.end - at) / cluster_size) as usize;
            metadata.load_entries(at)?;
            let entries = metadata.peek_entries(at)?.unwrap_or_default();
            // Without a table the base image shows through, or zeros; only hiding the base needs a table.
            let is_done = |entry: &u64| *entry == cleared;
            let nothing_to_do = match entries.is_empty() {
                true => cleared == 0,
                false => entries.iter().skip(index).take(count).all(is_done),
            };
            if !nothing_to_do {
                let table = metadata.writable_table(table_index)?;
                for index in index..index + count {
                    let entry = metadata.entries(table).get(index).copied().unwrap_or(0);
                    if !is_done(&entry) {
                        metadata.set_entry(table, index, cleared)?;
                    }
                }
            }
            at += count as u64 * cluster_size;
        }
        Ok(())
    }
}

fn entry_at(metadata: &Metadata, table: u64, index: usize, disk: &Qcow2) -> Result<Mapping, mapping::BadEntry> {
    Mapping::decode(metadata.entries(table).get(index).copied().unwrap_or(0), disk.geometry)
}
