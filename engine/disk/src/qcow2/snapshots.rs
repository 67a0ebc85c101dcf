//! The table of internal snapshots. We read it to keep clear of what snapshots own; making, loading and deleting
//! them is not here. See: the qcow2 specification, "Snapshots".

use crate::DiskError;
use crate::fenced_file::FencedFile;

use super::header::{Header, MAX_L1_BYTES, be32, be64, wrong};

/// Bytes of a table entry before its extra data.
const FIXED: usize = 40;
const MAX_EXTRA: u32 = 1024;
const MAX_TABLE_BYTES: u64 = 64 << 20;

/// What we need of a snapshot.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) l1_offset: u64,
    pub(super) l1_entries: u32,
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
            let (l1_offset, l1_entries) = (be64(&fixed, 0), be32(&fixed, 8));
            let id_length = u64::from(u16::from_be_bytes([fixed[12], fixed[13]]));
            let name_length = u64::from(u16::from_be_bytes([fixed[14], fixed[15]]));
            let extra_length = be32(&fixed, 36);
            if extra_length > MAX_EXTRA {
                return Err(damaged("a snapshot carries too much extra data"));
            }
            let length = FIXED as u64 + u64::from(extra_length) + id_length + name_length;
            if at.saturating_add(length) > file_size {
                return Err(damaged("its snapshot table reaches past the end of the file"));
            }
            let l1_bytes = u64::from(l1_entries) * 8;
            let inside = l1_offset.checked_add(l1_bytes).is_some_and(|end| end <= file_size);
            if l1_bytes > MAX_L1_BYTES || !inside || l1_offset % (1 << header.cluster_bits) != 0 {
                return Err(damaged("a snapshot's table lies outside the file"));
            }
            table.snapshots.push(Snapshot { l1_offset, l1_entries });
            table.bytes += length.next_multiple_of(8);
        }
        Ok(table)
    }
}
