//! Putting right what `check.rs` found. Each step alone leaves the file no worse than it was, wherever it is cut off:
//!
//! 1. Entries that make no sense are taken out: what they should lead to cannot be read anyway.
//! 2. Counts become what was counted: each where it stands if the blocks are sound, else all of them anew, behind
//!    the end of the file, with one write of the header that makes it point there.
//! 3. The marks "ours alone" follow the counts.
//! 4. The header says that the file is sound.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::DiskError;
use crate::block_file::BlockFile;
use crate::check::{CheckReport, Repair};
use crate::fenced_file::FencedFile;

use super::check::{Findings, Miscount, examine, largest_count};
use super::header::{
    AT_INCOMPATIBLE, AT_REFCOUNT_ORDER, AT_REFCOUNT_TABLE, Header, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY,
    MAX_REFCOUNT_TABLE_BYTES,
};
use super::metadata::TableError;
use super::snapshot_table::SnapshotTable;

/// Checks a file and repairs what it is told to.
pub(super) fn check(file: Arc<dyn BlockFile>, repair: Repair) -> Result<CheckReport, DiskError> {
    let file = FencedFile::new(file);
    let (header, _, found) = look(&file)?;
    match repair {
        Repair::Nothing => return Ok(found.report),
        Repair::Leaks => {
            let leaks: Vec<&Miscount> = found.miscounted.iter().filter(|miscount| miscount.counted > miscount.used).collect();
            Patient { file: &file, header: &header }.correct_counts(&leaks)?;
            file.flush()?;
            // What is alone again may say so, and must: an entry without the mark is an error to others.
            let (.., lowered) = look(&file)?;
            let known: HashSet<u64> = found.wrong_marks.iter().map(|(at, _)| *at).collect();
            for (at, entry) in lowered.wrong_marks.iter().filter(|(at, _)| !known.contains(at)) {
                file.write_at(*at, &entry.to_be_bytes())?;
            }
            file.flush()?;
        }
        Repair::All => repair_all(&file)?,
    }
    let before = found.report;
    let (.., after) = look(&file)?;
    let mut report = after.report;
    report.leaks_fixed = before.leaks.saturating_sub(report.leaks);
    report.errors_fixed = (before.errors + before.unmarked).saturating_sub(report.errors + report.unmarked);
    report.details = before.details;
    Ok(report)
}

fn look(file: &FencedFile) -> Result<(Header, SnapshotTable, Findings), DiskError> {
    let end = file.len()?;
    let header = Header::read(file, end)?;
    let snapshots = SnapshotTable::read(file, &header, end)?;
    let findings = examine(file, &header, &snapshots)?;
    Ok((header, snapshots, findings))
}

/// Counts anew what a writer left uncounted, before the file is opened for writing. Anything worse than wrong counts is
/// for a person to decide on: a repair could lose content.
pub(super) fn repair_dirty(file: &FencedFile) -> Result<CheckReport, DiskError> {
    let worse = |detail: &'static str| TableError::Bad(detail).into_disk_error(file.path());
    let end = file.len()?;
    let header = Header::read(file, end)?;
    if end >> header.cluster_bits > MAX_DIRTY_CLUSTERS {
        return Err(worse("it was not closed properly, and is too large to be repaired while it is opened"));
    }
    let (.., found) = look(file)?;
    if !found.nonsense.is_empty() {
        return Err(worse("it was not closed properly, and has entries that make no sense"));
    }
    repair_all(file)?;
    Ok(found.report)
}

/// Writes all counts anew, in another width. They are the same in every other way.
pub(super) fn change_refcount_width(
    file: &FencedFile,
    header: &Header,
    snapshots: &SnapshotTable,
    order: u32,
) -> Result<(), DiskError> {
    let found = examine(file, header, snapshots)?;
    if found.report.errors > 0 {
        return Err(TableError::Bad("a check finds contradictions").into_disk_error(file.path()));
    }
    let header = Header { refcount_order: order, ..header.clone() };
    Patient { file, header: &header }.count_anew(&found)
}

/// A file of more clusters than this (in 64 KiB clusters: 256 GiB) is not repaired on the way.
const MAX_DIRTY_CLUSTERS: u64 = 1 << 22;

/// What one round puts right may show more that can be; after so many the rest is left as it is.
const MAX_ROUNDS: usize = 4;

/// Repairs until nothing is left, or nothing more can be done.
fn repair_all(file: &FencedFile) -> Result<(), DiskError> {
    for _ in 0..MAX_ROUNDS {
        let (header, snapshots, found) = look(file)?;
        repair_once(file, header, snapshots, &found)?;
        let (header, _, healed) = look(file)?;
        let CheckReport { errors, leaks, unmarked, .. } = healed.report;
        if errors == 0 {
            Patient { file, header: &header }.mark_sound()?;
        }
        if errors + leaks + unmarked == 0 {
            break;
        }
    }
    Ok(())
}

fn repair_once(file: &FencedFile, mut header: Header, snapshots: SnapshotTable, found: &Findings) -> Result<(), DiskError> {
    let mut patient = Patient { file, header: &header };
    let mut again;
    let mut found = found;
    if !found.nonsense.is_empty() {
        patient.take_out_nonsense(found)?;
        again = examine(file, &header, &snapshots)?;
        found = &again;
    }
    if !found.miscounted.is_empty() {
        if found.blocks_are_sound {
            patient.correct_counts(&found.miscounted.iter().collect::<Vec<_>>())?;
            file.flush()?;
        } else {
            patient.count_anew(found)?;
            header = Header::read(file, file.len()?)?;
            patient = Patient { file, header: &header };
        }
        again = examine(file, patient.header, &snapshots)?;
        found = &again;
    }
    for (at, entry) in &found.wrong_marks {
        file.write_at(*at, &entry.to_be_bytes())?;
    }
    file.flush()
}

struct Patient<'a> {
    file: &'a FencedFile,
    header: &'a Header,
}

impl Patient<'_> {
    /// Empties entries that make no sense. A cluster becomes zeros where that can be said, a table nothing.
    fn take_out_nonsense(&self, found: &Findings) -> Result<(), DiskError> {
        for nonsense in &found.nonsense {
            let nothing: &[u64] = match nonsense.is_first_level || self.header.version < 3 {
                true => &[0],
                // All subclusters zeros.
                false if self.header.has_extended_l2() => &[0, 0xffff_ffff_0000_0000],
                false => &[1],
            };
            let bytes: Vec<u8> = nothing.iter().flat_map(|word| word.to_be_bytes()).collect();
            self.file.write_at(nonsense.at, &bytes)?;
        }
        self.file.flush()
    }

    /// Writes right counts over wrong ones, each where it stands.
    fn correct_counts(&self, wrong: &[&Miscount]) -> Result<(), DiskError> {
        let bits = 1_u64 << self.header.refcount_order;
        let per_block = (1_u64 << self.header.cluster_bits) * 8 / bits;
        for miscount in wrong {
            let (Some(block), entry) = (miscount.block, miscount.cluster % per_block) else { continue };
            let at = block + entry * bits / 8;
            let mut field = vec![0; bits.div_ceil(8) as usize];
            self.file.read_zero_padded(at, &mut field)?;
            put_count(&mut field, entry * bits % 8, bits, miscount.used);
            self.file.write_at(at, &field)?;
        }
        Ok(())
    }

    /// Writes a new refcount table with all its blocks behind the end of the file, and makes the header point there.
    fn count_anew(&self, found: &Findings) -> Result<(), DiskError> {
        let cluster = 1_u64 << self.header.cluster_bits;
        let bits = 1_u64 << self.header.refcount_order;
        let per_block = cluster * 8 / bits;
        let mut old_own: HashMap<u64, u32> = HashMap::new();
        for own in &found.refcount_clusters {
            *old_own.entry(*own).or_default() += 1;
        }
        let first = found.references.len() as u64;
        // What is behind the end now are the new table and its blocks.
        let count_of = |number: u64| match found.references.get(number as usize) {
            None => 1,
            Some(0) => 0,
            Some(count) => count.saturating_sub(old_own.get(&number).copied().unwrap_or(0)),
        };
        let (mut blocks, mut table_clusters) = (1, 1);
        loop {
            let needed = (first + blocks + table_clusters).div_ceil(per_block);
            let table_needed = (needed * 8).div_ceil(cluster);
            if needed <= blocks && table_needed <= table_clusters {
                break;
            }
            (blocks, table_clusters) = (blocks.max(needed), table_clusters.max(table_needed));
        }
        if table_clusters * cluster > MAX_REFCOUNT_TABLE_BYTES {
            return Err(DiskError::FormatFull { path: self.file.path().to_path_buf() });
        }
        let end = first + blocks + table_clusters;
        if (0..first).any(|number| u64::from(count_of(number)) > largest_count(self.header)) {
            return Err(DiskError::TooShared { path: self.file.path().to_path_buf() });
        }
        for number in 0..end.div_ceil(per_block) {
            let mut block = vec![0; cluster as usize];
            for entry in 0..per_block.min(end - number * per_block) {
                let (bit, count) = (entry * bits, count_of(number * per_block + entry));
                let at = (bit / 8) as usize;
                put_count(&mut block[at..at + bits.div_ceil(8) as usize], bit % 8, bits, count.into());
            }
            self.file.write_at((first + number) * cluster, &block)?;
        }
        let table_offset = (first + blocks) * cluster;
        let mut table: Vec<u8> = (0..blocks).flat_map(|block| ((first + block) * cluster).to_be_bytes()).collect();
        table.resize((table_clusters * cluster) as usize, 0);
        self.file.write_at(table_offset, &table)?;
        self.file.flush()?;
        // Place, length and width in one write.
        let end = if self.header.version >= 3 { AT_REFCOUNT_ORDER + 4 } else { AT_REFCOUNT_TABLE + 12 };
        let mut fields = vec![0; (end - AT_REFCOUNT_TABLE) as usize];
        self.file.read_exact(AT_REFCOUNT_TABLE, &mut fields)?;
        fields[..8].copy_from_slice(&table_offset.to_be_bytes());
        fields[8..12].copy_from_slice(&(table_clusters as u32).to_be_bytes());
        if let Some(order) = fields.get_mut((AT_REFCOUNT_ORDER - AT_REFCOUNT_TABLE) as usize..) {
            order.copy_from_slice(&self.header.refcount_order.to_be_bytes());
        }
        self.file.write_at(AT_REFCOUNT_TABLE, &fields)?;
        self.file.flush()
    }

    fn mark_sound(&self) -> Result<(), DiskError> {
        let incompatible = self.header.incompatible & !(INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT);
        if incompatible != self.header.incompatible {
            self.file.write_at(AT_INCOMPATIBLE, &incompatible.to_be_bytes())?;
            self.file.flush()?;
        }
        Ok(())
    }
}

/// Puts a count of `bits` bits into its bytes, or into the bits of its byte from `shift` on.
fn put_count(field: &mut [u8], shift: u64, bits: u64, count: u64) {
    if bits < 8 {
        let mask = ((1_u16 << bits) - 1) as u8;
        field[0] = field[0] & !(mask << shift) | ((count as u8) & mask) << shift;
    } else {
        let bytes = count.to_be_bytes();
        field.copy_from_slice(&bytes[8 - field.len()..]);
    }
}
