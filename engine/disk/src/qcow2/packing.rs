//! Writing compressed clusters: packed without any lock, then laid one behind the other into host clusters that
//! several of them share. A host cluster is counted once for each piece that touches it.

use crate::DiskError;
use crate::image::DiskImage;

use super::compressed::pack;
use super::mapping::{COMPRESSED, Cluster, Entry};
use super::metadata::{Metadata, TableError};
use super::{Qcow2, UnpackedCache};

/// The unit in which an entry tells the length of what is packed.
const SECTOR: u64 = 512;

impl Qcow2 {
    pub(super) fn write_packed(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        if self.encryption.is_some() {
            return Err(self.cannot("store anything compressed while it is encrypted"));
        }
        if self.geometry.external_data {
            return Err(self.cannot("store anything compressed while its data lies in another file"));
        }
        let cluster_size = self.geometry.cluster_size();
        let end = offset + data.len() as u64;
        if !offset.is_multiple_of(cluster_size) || (!end.is_multiple_of(cluster_size) && end != self.len()) {
            return Err(DiskError::BadOptions {
                reason: "Only whole clusters can be written compressed".into(),
                path: self.path().to_path_buf(),
            });
        }
        for (number, cluster) in data.chunks(cluster_size as usize).enumerate() {
            let at = offset + number as u64 * cluster_size;
            // The last cluster of the disk may be cut short, but what is packed is always a whole one.
            let mut whole;
            let whole = if cluster.len() as u64 == cluster_size {
                cluster
            } else {
                whole = cluster.to_vec();
                whole.resize(cluster_size as usize, 0);
                &whole[..]
            };
            match pack(self.compression, whole) {
                Some(packed) => {
                    let mut metadata = self.alone()?;
                    let result = self.write_piece(&mut metadata, at, &packed);
                    result.map_err(|error| self.explain(&mut metadata, error))?;
                }
                None => self.write(at, cluster)?,
            }
        }
        Ok(())
    }

    fn write_piece(&self, metadata: &mut Metadata, guest: u64, packed: &[u8]) -> Result<(), TableError> {
        metadata.commit_if_crowded()?;
        let (table_index, index) = self.geometry.indices(guest);
        let table = metadata.writable_table(table_index)?;
        let length = packed.len() as u64;
        let start = metadata.allocate_bytes(length)?;
        // Nothing points at these bytes any more, but what once lay there may still be remembered.
        self.unpacked.forget(start);
        let sectors = (start + length - 1) / SECTOR - start / SECTOR;
        let word = COMPRESSED | sectors << (62 - (self.geometry.cluster_bits - 8)) | start;
        let entry = Entry { word, subclusters: 0 };
        let padding = (start + length).next_multiple_of(SECTOR) - (start + length);
        let bytes = [packed, &[0; SECTOR as usize][..padding as usize]].concat();
        let result = self.file.write_at(start, &bytes).map_err(TableError::from);
        if let Err(error) = result {
            metadata.give_back_bytes(entry);
            return Err(error);
        }
        Ok(metadata.set_entry(table, index, entry)?)
    }
}

impl Metadata {
    /// Finds room for a packed cluster, behind the last one if it fits there, and counts the host clusters it touches.
    fn allocate_bytes(&mut self, length: u64) -> Result<u64, TableError> {
        let cluster_size = self.geometry.cluster_size();
        let bits = self.geometry.cluster_bits;
        if let Some(start) = self.packed_end.take() {
            let room = cluster_size - start % cluster_size;
            let (Some(refcounts), cluster) = (&mut self.refcounts, start >> bits) else {
                return Err(TableError::Bad("the disk is read-only"));
            };
            if length <= room && refcounts.raise(&self.file, cluster).is_ok() {
                self.note_packed_end(start + length);
                return Ok(start);
            }
            if length > room {
                let next = self.allocate(1)?.clusters.start;
                let is_raised = match &mut self.refcounts {
                    Some(refcounts) if next == cluster + 1 => refcounts.raise(&self.file, cluster).is_ok(),
                    _ => false,
                };
                let start = if is_raised { start } else { next << bits };
                self.note_packed_end(start + length);
                return Ok(start);
            }
        }
        let start = self.allocate(1)?.clusters.start << bits;
        self.note_packed_end(start + length);
        Ok(start)
    }

    fn note_packed_end(&mut self, end: u64) {
        self.packed_end = (!end.is_multiple_of(self.geometry.cluster_size())).then_some(end);
    }

    /// Takes back what was counted for a piece that could not be written.
    fn give_back_bytes(&mut self, entry: Entry) {
        self.packed_end = None;
        let Ok(packed) = Cluster::decode(entry, self.geometry) else { return };
        for cluster in packed.host_clusters(self.geometry) {
            if let Some(refcounts) = &mut self.refcounts {
                // Its block is in memory, because it was counted a moment ago.
                refcounts.lower(&self.file, cluster).ok();
            }
        }
    }
}

impl UnpackedCache {
    /// Forgets the cluster that was packed at a host position.
    fn forget(&self, start: u64) {
        self.retain(|known| known != start);
    }
}
