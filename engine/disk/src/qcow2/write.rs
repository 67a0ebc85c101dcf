//! Writing: in place where the mapping allows it, else into new clusters; zeroing and discarding.
//!
//! An operation that fails has changed nothing it did not finish: clusters that were allocated for it are taken
//! back, and an entry changes only after the data it will point at was written without error.

use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::DiskError;
use crate::block_file::{Access, ZEROS};
use crate::image::{DiskImage, check_range};

use super::Qcow2;
use super::mapping::{BadEntry, Cluster, Entries, Geometry, Mapping};
use super::metadata::{Metadata, TableError};

/// Bytes that are allocated at once; a larger write takes several rounds.
const MAX_ALLOCATION: u64 = 4 << 20;
/// Up to this size old and new content are put together in memory and written in one go.
const MAX_ASSEMBLED: u64 = 2 << 20;

/// What a run of whole units is to become.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Clearing {
    /// Anything that gives space back.
    Discard,
    /// Zeros.
    Zero,
    /// No entry at all; the base image may show through. For what lies past the end of the disk.
    Unmap,
}

/// A write into units that nothing points at.
struct NewUnits<'a> {
    /// Index of the first-level entry.
    table: usize,
    /// Where the first of the host clusters lies.
    host: u64,
    is_fresh: bool,
    /// The part of the disk that is written: whole units, of clusters that follow each other.
    range: Range<u64>,
    /// Guest position of the data, inside that range.
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
        self.prepare_first_write()?;
        self.tracking.note(offset..offset + length);
        Ok(())
    }

    /// See [`prepare_bitmaps`](Self::prepare_bitmaps).
    fn prepare_first_write(&self) -> Result<(), DiskError> {
        if self.is_prepared.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut metadata = self.alone()?;
        if !self.is_prepared.load(Ordering::Acquire) {
            self.prepare_bitmaps(&mut metadata)?;
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
    fn run_in_place(&self, metadata: &Metadata, entries: Entries<'_>, offset: u64, limit: u64) -> Option<(u64, u64)> {
        let cluster_size = self.geometry.cluster_size();
        let (_, first) = self.geometry.indices(offset);
        let begin = offset % cluster_size;
        // How far the units from `from` on are stored in a cluster that is ours, and where that lies.
        let own_host = |index: usize, from: u64| {
            let cluster = entries.cluster(index).ok()?;
            let host = cluster.own_place()?;
            metadata.is_own(host).ok()??;
            let Cluster::Mapped { stored, .. } = cluster else { return None };
            let missing = (!stored & self.geometry.all_units()) >> from;
            let units = u64::from(missing.trailing_zeros()).min(self.geometry.units_per_cluster() - from);
            (units > 0).then_some((host, (from + units) * self.geometry.unit_size()))
        };
        let (host, mut end) = own_host(first, begin / self.geometry.unit_size())?;
        let mut clusters = 1;
        while end == clusters * cluster_size && end - begin < limit {
            match own_host(first + clusters as usize, 0) {
                Some((next, length)) if next == host + end => end += length,
                _ => break,
            }
            clusters += 1;
        }
        Some((host + begin, (end - begin).min(limit)))
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
        let geometry = self.geometry;
        let (cluster_size, unit) = (geometry.cluster_size(), geometry.unit_size());
        let (table, index) = geometry.indices(offset);
        let in_cluster = offset % cluster_size;
        let start = offset - in_cluster;
        let table_offset = metadata.writable_table(table)?;
        let entries = metadata.entries_at(offset)?;
        let cluster = entries.cluster(index)?;
        let own = cluster.own_place();
        let (hosts, is_fresh, range) = match own {
            Some(host) if matches!(cluster.unit(in_cluster / unit), Mapping::Data { .. }) => {
                metadata.check_own_cluster(host)?;
                let entries = metadata.peek_entries(offset)?.ok_or(BadEntry("a table is gone from memory"))?;
                let run = self.run_in_place(metadata, entries, offset, data.len() as u64);
                let (host, length) = run.ok_or(TableError::Bad("a cluster cannot be written in place"))?;
                let data = &data[..length as usize];
                self.write_payload(host, data)?;
                return Ok(data.len());
            }
            // There is a place, but nothing is stored in these units of it yet.
            Some(host) => {
                let run = self.run_in(entries, offset, data.len() as u64)?;
                let end = (in_cluster + run.length).min(cluster_size);
                metadata.check_own_cluster(host)?;
                let clusters = host >> geometry.cluster_bits..(host >> geometry.cluster_bits) + 1;
                (clusters, false, offset / unit * unit..start + end.next_multiple_of(unit))
            }
            None => {
                let touched = (in_cluster + data.len() as u64).div_ceil(cluster_size);
                let most = touched.min(geometry.l2_entries() - index as u64).min((MAX_ALLOCATION / cluster_size).max(1));
                let wanted = count_needing_clusters(entries, index, most);
                let allocation = metadata.allocate_for(start, wanted)?;
                let clusters = allocation.clusters.end - allocation.clusters.start;
                let end = (offset + data.len() as u64).min(start + clusters * cluster_size);
                let range = metadata.entries_at(offset).and_then(|entries| Ok(self.range_to_fill(entries, offset..end)?));
                let range = range.inspect_err(|_| metadata.take_back_data(allocation.clusters.clone()))?;
                // Where everything is encrypted, what was never written does not read as zeros.
                (allocation.clusters, allocation.is_fresh && self.encryption.is_none(), range)
            }
        };
        let data = &data[..data.len().min((range.end - offset) as usize)];
        let host = hosts.start << geometry.cluster_bits;
        let new = NewUnits { table, host, is_fresh, range: range.clone(), offset, data };
        if let Err(error) = self.fill_new_units(metadata, &new) {
            if own.is_none() {
                metadata.take_back_data(hosts);
            }
            return Err(error);
        }
        for (number, host) in hosts.enumerate() {
            let at = start + number as u64 * cluster_size;
            let written = geometry.units(range.start.saturating_sub(at)..range.end.saturating_sub(at).min(cluster_size));
            let (stored, zeros) = match metadata.entries_at(at)?.cluster(index + number)? {
                Cluster::Mapped { stored, zeros, .. } => (stored, zeros),
                Cluster::Compressed { .. } => (0, 0),
            };
            let host = Some(host << geometry.cluster_bits);
            let cluster = Cluster::Mapped { host, copied: true, stored: stored | written, zeros: zeros & !written };
            metadata.set_entry(table_offset, index + number, cluster.encode(geometry))?;
        }
        Ok(data.len())
    }

    /// The whole units around a write into new clusters, and all that is stored beside it in the clusters they replace.
    fn range_to_fill(&self, entries: Entries<'_>, data: Range<u64>) -> Result<Range<u64>, BadEntry> {
        let geometry = self.geometry;
        let unit = geometry.unit_size();
        // Where in its cluster the stored units begin and end.
        let stored = |cluster: Cluster| match cluster {
            Cluster::Mapped { stored: 0, .. } => None,
            Cluster::Mapped { stored, .. } => {
                Some(u64::from(stored.trailing_zeros()) * unit..u64::from(32 - stored.leading_zeros()) * unit)
            }
            Cluster::Compressed { .. } => Some(0..geometry.cluster_size()),
        };
        let mut range = data.start / unit * unit..data.end.next_multiple_of(unit);
        for at in [data.start, data.end - 1] {
            let cluster = at / geometry.cluster_size() * geometry.cluster_size();
            if let Some(stored) = stored(entries.cluster(geometry.indices(at).1)?) {
                range = range.start.min(cluster + stored.start)..range.end.max(cluster + stored.end);
            }
        }
        Ok(range)
    }

    /// Writes data into new units, with the old content around it.
    fn fill_new_units(&self, metadata: &Metadata, new: &NewUnits<'_>) -> Result<(), TableError> {
        let data_end = new.offset + new.data.len() as u64;
        let first = new.range.start / self.geometry.cluster_size() * self.geometry.cluster_size();
        let head = self.old_content(metadata, new, new.range.start..new.offset)?;
        let tail = self.old_content(metadata, new, data_end..new.range.end)?;
        let parts: [(u64, &[u8]); 3] = [(new.range.start, &head), (new.offset, new.data), (data_end, &tail)];
        let total = new.range.end - new.range.start;
        if (!head.is_empty() || !tail.is_empty()) && (total <= MAX_ASSEMBLED || self.encryption.is_some()) {
            let whole: Vec<u8> = parts.iter().flat_map(|(_, part)| part.iter().copied()).collect();
            // An empty head stands for a hole of zeros, if there is anything before the data at all.
            let start = if head.is_empty() { new.offset } else { new.range.start };
            self.write_payload(new.host + (start - first), &whole)?;
            return Ok(());
        }
        for (at, part) in parts.into_iter().filter(|(_, part)| !part.is_empty()) {
            self.write_payload(new.host + (at - first), part)?;
        }
        Ok(())
    }

    /// The old content of a part of one cluster; empty if that is zeros and the new cluster holds zeros already.
    fn old_content(&self, metadata: &Metadata, new: &NewUnits<'_>, range: Range<u64>) -> Result<Vec<u8>, TableError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let entries = metadata.peek_entries(new.table as u64 * self.geometry.bytes_per_table())?;
        let entries = entries.ok_or(BadEntry("a table is gone from memory"))?;
        let mut content = vec![0; (range.end - range.start) as usize];
        let mut is_zero = true;
        let mut at = range.start;
        while at < range.end {
            let run = self.run_in(entries, at, range.end - at)?;
            let reads_zero = match run.mapping {
                Mapping::Zero { .. } => true,
                Mapping::Unallocated { .. } => self.backing.as_ref().is_none_or(|backing| backing.len() <= at),
                Mapping::Data { .. } | Mapping::Compressed { .. } => false,
            };
            if !reads_zero {
                is_zero = false;
                let from = (at - range.start) as usize;
                self.read_mapped(run.mapping, at, &mut content[from..from + run.length as usize])?;
            }
            at += run.length;
        }
        if is_zero && new.is_fresh {
            content.clear();
        }
        Ok(content)
    }

    pub(super) fn drop_clusters(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        let whole = self.whole_units(offset, offset + length);
        if whole.is_empty() || self.zero_raw_data(whole.start..whole.end.min(self.len()))? {
            return Ok(());
        }
        let mut metadata = self.alone()?;
        self.clear_units(&mut metadata, whole, Clearing::Discard).map_err(|error| self.explain(&mut metadata, error))
    }

    pub(super) fn zero(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        let end = offset + length;
        if self.zero_raw_data(offset..end)? {
            return Ok(());
        }
        let whole = self.whole_units(offset, end);
        let mut metadata = self.alone()?;
        let clear = |metadata: &mut Metadata| {
            if whole.is_empty() {
                return self.write_zeros(metadata, offset, end);
            }
            self.write_zeros(metadata, offset, whole.start)?;
            self.clear_units(metadata, whole.clone(), Clearing::Zero)?;
            self.write_zeros(metadata, whole.end.min(end), end)
        };
        clear(&mut metadata).map_err(|error| self.explain(&mut metadata, error))
    }

    /// The whole units between two places. The last unit of the disk may be a part of one; up to the end takes it too.
    fn whole_units(&self, offset: u64, end: u64) -> Range<u64> {
        let unit = self.geometry.unit_size();
        let stop = if end == self.len() { end.next_multiple_of(unit) } else { end / unit * unit };
        offset.next_multiple_of(unit)..stop
    }

    /// Writes zeros as data, except where zeros are read already.
    pub(super) fn write_zeros(&self, metadata: &mut Metadata, start: u64, end: u64) -> Result<(), TableError> {
        let cluster_size = self.geometry.cluster_size();
        let mut at = start;
        while at < end {
            let limit = (end - at).min(cluster_size - at % cluster_size).min(ZEROS.len() as u64);
            let run = self.run_in(metadata.entries_at(at)?, at, limit)?;
            let piece = run.length;
            let is_zero = match run.mapping {
                Mapping::Zero { .. } => true,
                Mapping::Unallocated { .. } => self.backing.is_none(),
                _ => false,
            };
            if !is_zero {
                self.write_alone(metadata, at, &ZEROS[..piece as usize])?;
            }
            at += piece;
        }
        Ok(())
    }

    /// Unmaps or zeroes whole units; both ends of `range` lie between units.
    pub(super) fn clear_units(&self, metadata: &mut Metadata, range: Range<u64>, how: Clearing) -> Result<(), TableError> {
        let geometry = self.geometry;
        let cluster_size = geometry.cluster_size();
        let has_zero_flag = metadata.has_zero_flag();
        let becomes_zeros = match (self.backing.is_some(), has_zero_flag, how) {
            (_, _, Clearing::Unmap) | (false, _, _) => false,
            (true, true, _) => true,
            // Version 2 cannot hide the base image: a discard is left undone, zeros are written.
            (true, false, Clearing::Discard) => return Ok(()),
            (true, false, Clearing::Zero) => return self.write_zeros(metadata, range.start, range.end.min(self.len())),
        };
        let mut at = range.start;
        while at < range.end {
            metadata.commit_if_crowded()?;
            let (table, _) = geometry.indices(at);
            let table_end = (table as u64 + 1) * geometry.bytes_per_table();
            let end = range.end.min(table_end);
            // Without a table the base image shows through, or zeros; only hiding the base needs a table.
            if metadata.entries_at(at)?.is_empty() && !becomes_zeros {
                at = end;
                continue;
            }
            let mut table_offset = None;
            while at < end {
                let (_, index) = geometry.indices(at);
                let in_cluster = at % cluster_size;
                let piece = in_cluster..cluster_size.min(in_cluster + (end - at));
                let old = metadata.entries_at(at)?.cluster(index)?;
                match cleared(old, geometry.units(piece.clone()), becomes_zeros, geometry) {
                    Some(new) if new == old => {}
                    Some(new) => {
                        let table_offset = match table_offset {
                            Some(known) => known,
                            None => *table_offset.insert(metadata.writable_table(table)?),
                        };
                        metadata.set_entry(table_offset, index, new.encode(geometry))?;
                    }
                    None if how == Clearing::Zero => {
                        let piece_end = (at + (piece.end - piece.start)).min(self.len());
                        self.write_zeros(metadata, at, piece_end)?;
                        // That may have written the tables down and changed where they lie.
                        table_offset = None;
                    }
                    None => {}
                }
                at += piece.end - piece.start;
            }
        }
        Ok(())
    }
}

/// How many entries from `index` on want a new cluster, at most `most`.
fn count_needing_clusters(entries: Entries<'_>, index: usize, most: u64) -> u64 {
    let wants_new = |index: &usize| entries.cluster(*index).is_ok_and(|cluster| cluster.own_place().is_none());
    (index..entries.len()).take(most as usize).take_while(wants_new).count().max(1) as u64
}

/// What becomes of a cluster of which some units are cleared; `None` where a part of it cannot be told apart, because the
/// whole is compressed. A place in which nothing is stored any more is given up.
fn cleared(old: Cluster, units: u32, becomes_zeros: bool, geometry: Geometry) -> Option<Cluster> {
    let zeros_of = |units: u32| if becomes_zeros { units } else { 0 };
    if units == geometry.all_units() {
        return Some(Cluster::Mapped { host: None, copied: false, stored: 0, zeros: zeros_of(units) });
    }
    let Cluster::Mapped { host, copied, stored, zeros } = old else { return None };
    let (stored, zeros) = (stored & !units, zeros & !units | zeros_of(units));
    let host = host.filter(|_| stored != 0);
    Some(Cluster::Mapped { host, copied: copied && host.is_some(), stored, zeros })
}
