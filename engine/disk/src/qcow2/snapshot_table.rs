//! The table of internal snapshots: reading and writing it. See: the qcow2 specification, "Snapshots".

use std::path::Path;

use crate::DiskError;
use crate::fenced_file::FencedFile;
use crate::image_info::SnapshotInfo;

use super::header::{Header, MAX_L1_BYTES, be32, be64, wrong};
use super::mapping::Geometry;

/// Bytes of a table entry before its extra data.
const FIXED: usize = 40;
/// Extra data that the specification knows: size of the machine state, of the disk, and an instruction count.
const KNOWN_EXTRA: usize = 24;
const MAX_EXTRA: u32 = 1024;
const MAX_TABLE_BYTES: u64 = 64 << 20;
/// The instruction count of a machine that does not count.
const NOT_COUNTED: u64 = u64::MAX;

/// One snapshot.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) l1_offset: u64,
    pub(super) l1_entries: u32,
    pub(super) info: SnapshotInfo,
    /// Extra data past what we know, kept as it is.
    pub(super) unknown_extra: Vec<u8>,
}

/// The snapshots of an image and the size of their table.
#[derive(Clone, Debug, Default)]
pub(super) struct SnapshotTable {
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) bytes: u64,
}

impl SnapshotTable {
    pub(super) fn read(file: &FencedFile, header: &Header, file_size: u64) -> Result<Self, DiskError> {
        let damaged = |detail: &str| wrong(file.path(), detail);
        let mut table = SnapshotTable::default();
        for _ in 0..header.snapshots {
            let at = header.snapshots_offset.saturating_add(table.bytes);
            let mut fixed = [0; FIXED];
            if at.saturating_add(FIXED as u64) > file_size || table.bytes > MAX_TABLE_BYTES {
                return Err(damaged("its snapshot table reaches past the end of the file"));
            }
            file.read_exact(at, &mut fixed)?;
            let id_length = usize::from(u16::from_be_bytes([fixed[12], fixed[13]]));
            let name_length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
            let extra_length = be32(&fixed, 36);
            if extra_length > MAX_EXTRA {
                return Err(damaged("a snapshot carries too much extra data"));
            }
            let extra_length = extra_length as usize;
            let length = (FIXED + extra_length + id_length + name_length) as u64;
            if at.saturating_add(length) > file_size {
                return Err(damaged("its snapshot table reaches past the end of the file"));
            }
            let mut rest = vec![0; extra_length + id_length + name_length];
            file.read_exact(at + FIXED as u64, &mut rest)?;
            let (extra, names) = rest.split_at(extra_length);
            let (id, name) = names.split_at(id_length);
            let snapshot = Snapshot::decode(&fixed, extra, id, name, header.size);
            let l1_bytes = u64::from(snapshot.l1_entries) * 8;
            let inside = snapshot.l1_offset.checked_add(l1_bytes).is_some_and(|end| end <= file_size);
            if l1_bytes > MAX_L1_BYTES || !inside || !snapshot.l1_offset.is_multiple_of(1 << header.cluster_bits) {
                return Err(damaged("a snapshot's table lies outside the file"));
            }
            table.snapshots.push(snapshot);
            table.bytes += length.next_multiple_of(8);
        }
        Ok(table)
    }

    /// The snapshot with this id or, if there is none, with this name.
    pub(super) fn position(&self, name: &str) -> Option<usize> {
        let by_id = self.snapshots.iter().position(|snapshot| snapshot.info.id == name);
        by_id.or_else(|| self.snapshots.iter().position(|snapshot| snapshot.info.name == name))
    }

    pub(super) fn find(&self, name: &str) -> Option<&Snapshot> {
        self.position(name).and_then(|index| self.snapshots.get(index))
    }

    /// An id that no snapshot has: one more than the largest number among them.
    pub(super) fn next_id(&self) -> String {
        let numbers = self.snapshots.iter().filter_map(|snapshot| snapshot.info.id.parse::<u64>().ok());
        numbers.max().unwrap_or(0).saturating_add(1).to_string()
    }

    /// The table as it stands in a file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for snapshot in &self.snapshots {
            snapshot.encode(&mut bytes);
        }
        bytes
    }
}

impl Snapshot {
    fn decode(fixed: &[u8; FIXED], extra: &[u8], id: &[u8], name: &[u8], disk_size: u64) -> Self {
        let word = |at: usize| extra.get(at..at + 8).map(|_| be64(extra, at));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            l1_offset: be64(fixed, 0),
            l1_entries: be32(fixed, 8),
            info: SnapshotInfo {
                id: text(id),
                name: text(name),
                taken: (be32(fixed, 16), be32(fixed, 20)),
                vm_clock_nanos: be64(fixed, 24),
                vm_state_size: word(0).unwrap_or(u64::from(be32(fixed, 32))),
                disk_size: word(8).unwrap_or(disk_size),
                instructions: word(16).filter(|count| *count != NOT_COUNTED),
            },
            unknown_extra: extra.get(KNOWN_EXTRA..).unwrap_or_default().to_vec(),
        }
    }

    fn encode(&self, bytes: &mut Vec<u8>) {
        let Self { l1_offset, l1_entries, info, unknown_extra } = self;
        bytes.extend(l1_offset.to_be_bytes());
        bytes.extend(l1_entries.to_be_bytes());
        bytes.extend((info.id.len() as u16).to_be_bytes());
        bytes.extend((info.name.len() as u16).to_be_bytes());
        bytes.extend(info.taken.0.to_be_bytes());
        bytes.extend(info.taken.1.to_be_bytes());
        bytes.extend(info.vm_clock_nanos.to_be_bytes());
        // The narrow field is for old readers; the one in the extra data counts.
        bytes.extend(u32::try_from(info.vm_state_size).unwrap_or(0).to_be_bytes());
        bytes.extend(((KNOWN_EXTRA + unknown_extra.len()) as u32).to_be_bytes());
        bytes.extend(info.vm_state_size.to_be_bytes());
        bytes.extend(info.disk_size.to_be_bytes());
        bytes.extend(info.instructions.unwrap_or(NOT_COUNTED).to_be_bytes());
        bytes.extend(unknown_extra);
        bytes.extend(info.id.as_bytes());
        bytes.extend(info.name.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }

    /// Makes a header describe the disk as it was at this snapshot.
    pub(super) fn put_in_place_of_the_present(&self, header: &mut Header, path: &Path) -> Result<(), DiskError> {
        let covered = u128::from(Geometry::of(header).bytes_per_table()) * u128::from(self.l1_entries);
        if self.info.disk_size > i64::MAX as u64 || u128::from(self.info.disk_size) > covered {
            return Err(wrong(path, "a snapshot's table does not fit its size"));
        }
        (header.l1_offset, header.l1_entries, header.size) = (self.l1_offset, self.l1_entries, self.info.disk_size);
        Ok(())
    }
}
