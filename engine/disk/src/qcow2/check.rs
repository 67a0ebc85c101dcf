//! Checking a qcow2 file: counting every reference and comparing with the counts in the file.
//!
//! Deliberately a second implementation: apart from the parsers of the header and of the snapshot table it shares no
//! code with the reading and writing side, so that a mistake there cannot hide itself here. `repair.rs` puts right
//! what is found here.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use crate::DiskError;
use crate::check::CheckReport;
use crate::fenced_file::FencedFile;

use super::header::{AUTOCLEAR_BITMAPS, EXTENSION_BITMAPS, Header, be32, be64};
use super::snapshot_table::SnapshotTable;

/// More clusters than this (in 64 KiB clusters: 16 TiB) would need too much memory.
const MAX_CLUSTERS: u64 = 1 << 28;

/// Blocks that count nothing but clusters past the end of the file are looked at up to this number.
const MAX_BLOCKS_BEYOND: usize = 1024;
/// So many wrong counts are kept one by one; if there are more, all counts are better made anew.
const MAX_MISCOUNTS: usize = 1 << 20;

pub(super) const OFFLAG_COPIED: u64 = 0x8000_0000_0000_0000;
const OFFLAG_COMPRESSED: u64 = 0x4000_0000_0000_0000;
const OFFLAG_ZERO: u64 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const RESERVED_IN_REFCOUNT_TABLE: u64 = 0x1ff;

/// Everything that is known of a file after it was looked through.
pub(super) struct Findings {
    pub(super) report: CheckReport,
    /// References to each cluster of the file, as counted.
    pub(super) references: Vec<u32>,
    /// Clusters of the refcount table and its blocks, as far as they lie in the file.
    pub(super) refcount_clusters: Vec<u64>,
    /// Clusters whose count in the file is wrong.
    pub(super) miscounted: Vec<Miscount>,
    /// Whether every wrong count can be put right where it stands.
    pub(super) blocks_are_sound: bool,
    /// Entries that make no sense, and that stand where nothing else claims the place.
    pub(super) nonsense: Vec<Nonsense>,
    /// Places of entries in the active tables whose mark "ours alone" is wrong, with their right content.
    pub(super) wrong_marks: Vec<(u64, u64)>,
}

/// A cluster whose count in the file is not the number of its references.
pub(super) struct Miscount {
    pub(super) cluster: u64,
    pub(super) counted: u64,
    pub(super) used: u64,
    /// Where its block lies in the file, if it has one.
    pub(super) block: Option<u64>,
}

/// An entry that cannot be right.
pub(super) struct Nonsense {
    /// Where in the file it stands.
    pub(super) at: u64,
    pub(super) is_first_level: bool,
}

/// What is known of a cluster before the data is looked at: a byte each, of which zeros take no memory until they change.
/// A file of nothing but holes costs whoever made it nothing, and must not cost much more here.
mod holds {
    pub(super) const NO_TABLE: u8 = 0;
    pub(super) const SECOND_LEVEL_TABLE: u8 = 1;
    /// Any other table; only one thing may lie there.
    pub(super) const TABLE: u8 = 2;
    /// Two that exclude each other. Nothing in it is certain, so nothing in it is repaired.
    pub(super) const CONFLICT: u8 = 3;
}

struct Checker<'a> {
    file: &'a FencedFile,
    header: &'a Header,
    cluster: u64,
    end: u64,
    references: Vec<u32>,
    /// Clusters up to the last one that anything refers to.
    used: u64,
    /// What kind of table each cluster holds: see [`holds`].
    holds: Vec<u8>,
    /// Second-level tables by place: how many entries of any first-level table lead there, and which is the first of the
    /// disk's clusters that the first of them maps.
    tables: BTreeMap<u64, (u32, u64)>,
    report: CheckReport,
    nonsense: Vec<Nonsense>,
}

/// Looks a file through. Changes nothing.
pub(super) fn examine(file: &FencedFile, header: &Header, snapshots: &SnapshotTable) -> Result<Findings, DiskError> {
    let end = file.len()?;
    let cluster = 1_u64 << header.cluster_bits;
    let clusters = end.div_ceil(cluster);
    if clusters > MAX_CLUSTERS {
        return Err(too_large(file.path()));
    }
    let mut checker = Checker {
        file,
        header,
        cluster,
        end,
        references: vec![0; clusters as usize],
        used: 0,
        holds: vec![holds::NO_TABLE; clusters as usize],
        tables: BTreeMap::new(),
        report: CheckReport { total_clusters: header.size.div_ceil(cluster), ..CheckReport::default() },
        nonsense: Vec::new(),
    };
    let (refcount_clusters, table_is_sound) = checker.count_tables(snapshots)?;
    checker.count_bitmaps()?;
    checker.count_data()?;
    let (miscounted, counts) = checker.compare()?;
    let mut wrong_marks = checker.check_marks(&counts)?;
    let Checker { references, used, mut report, mut nonsense, holds: held, .. } = checker;
    let is_certain = |at: u64| held.get((at / cluster) as usize) != Some(&holds::CONFLICT);
    nonsense.retain(|nonsense| is_certain(nonsense.at));
    wrong_marks.retain(|(at, _)| is_certain(*at));
    report.image_end = used * cluster;
    let is_alone = |cluster: &u64| references.get(*cluster as usize) == Some(&1);
    let blocks_are_sound = table_is_sound
        && refcount_clusters.iter().all(is_alone)
        && miscounted.len() < MAX_MISCOUNTS
        && miscounted.iter().all(|miscount| miscount.block.is_some() && miscount.used <= largest_count(header));
    Ok(Findings { report, references, refcount_clusters, miscounted, blocks_are_sound, nonsense, wrong_marks })
}

/// The largest count that fits the image's refcount width.
pub(super) fn largest_count(header: &Header) -> u64 {
    u64::MAX >> (64 - (1_u32 << header.refcount_order))
}

impl Checker<'_> {
    /// Counts everything but data; returns the clusters of the refcount table and its blocks, and whether the table's
    /// entries make sense.
    fn count_tables(&mut self, snapshots: &SnapshotTable) -> Result<(Vec<u64>, bool), DiskError> {
        let header = self.header;
        self.count_table("header", 0, 1);
        let table_bytes = u64::from(header.refcount_table_clusters) * self.cluster;
        self.count_table("refcount table", header.refcount_table_offset, table_bytes);
        let first = header.refcount_table_offset / self.cluster;
        let mut own: Vec<u64> = (first..first + u64::from(header.refcount_table_clusters)).collect();
        let mut is_sound = true;
        for block in self.refcount_table()?.into_iter().filter(|block| *block != 0) {
            if block & RESERVED_IN_REFCOUNT_TABLE != 0 {
                self.report.error_with(|| format!("refcount table entry {block:#x} has reserved bits set"));
                is_sound = false;
            } else if self.count_table("refcount block", block, self.cluster) {
                own.push(block / self.cluster);
            } else {
                is_sound = false;
            }
        }
        self.count_first_level(header.l1_offset, header.l1_entries)?;
        self.count_table("snapshot table", header.snapshots_offset, snapshots.bytes);
        if let Some((offset, length)) = header.luks {
            self.count_table("header of the encryption", offset, length);
        }
        let all_l1: u64 = snapshots.snapshots.iter().map(|snapshot| u64::from(snapshot.l1_entries) * 8).sum();
        if all_l1 > self.end {
            // They must overlap, and following each of them could take for ever.
            self.report.error("the tables of the snapshots are larger than the file".into());
            return Ok((own, is_sound));
        }
        for snapshot in &snapshots.snapshots {
            self.count_first_level(snapshot.l1_offset, snapshot.l1_entries)?;
        }
        Ok((own, is_sound))
    }

    fn refcount_table(&self) -> Result<Vec<u64>, DiskError> {
        let words = u64::from(self.header.refcount_table_clusters) * self.cluster / 8;
        self.words(self.header.refcount_table_offset, words)
    }

    fn words(&self, offset: u64, count: u64) -> Result<Vec<u64>, DiskError> {
        let mut bytes = vec![0; count as usize * 8];
        self.file.read_zero_padded(offset, &mut bytes)?;
        Ok(bytes.chunks_exact(8).map(|word| be64(word, 0)).collect())
    }

    /// Counts a reference to each cluster of a table; says whether it lies in the file.
    fn count_table(&mut self, what: &str, offset: u64, bytes: u64) -> bool {
        let is_inside = self.count(what, offset, bytes, 1);
        if !is_inside || bytes == 0 {
            return is_inside;
        }
        let mut overlaps = false;
        for held in &mut self.holds[(offset / self.cluster) as usize..=((offset + bytes - 1) / self.cluster) as usize] {
            *held = match (*held, what) {
                (holds::NO_TABLE | holds::SECOND_LEVEL_TABLE, "second-level table") => holds::SECOND_LEVEL_TABLE,
                (holds::NO_TABLE, _) => holds::TABLE,
                _ => holds::CONFLICT,
            };
            overlaps |= *held == holds::CONFLICT;
        }
        if overlaps {
            self.report.error_with(|| format!("the {what} at {offset:#x} overlaps another table"));
        }
        is_inside
    }

    /// Counts references to each cluster that a range of bytes touches; says whether it lies in the file.
    fn count(&mut self, what: &str, offset: u64, bytes: u64, times: u32) -> bool {
        if bytes == 0 {
            return true;
        }
        let is_aligned = offset.is_multiple_of(self.cluster) || what == "compressed cluster";
        let last = offset.saturating_add(bytes - 1) / self.cluster;
        if !is_aligned || offset >= self.end || last as usize >= self.references.len() {
            self.report.error_with(|| format!("a {what} at {offset:#x} is not a cluster of the file"));
            return false;
        }
        for count in &mut self.references[(offset / self.cluster) as usize..=last as usize] {
            *count = count.saturating_add(times);
        }
        self.used = self.used.max(last + 1);
        true
    }

    fn count_first_level(&mut self, offset: u64, entries: u32) -> Result<(), DiskError> {
        self.count_table("first-level table", offset, u64::from(entries) * 8);
        let words = self.words(offset, u64::from(entries))?;
        if self.leads_nowhere(&words) {
            self.report.error("a first-level table has more entries than the file has clusters".into());
            return Ok(());
        }
        for (index, entry) in words.into_iter().enumerate().filter(|(_, entry)| *entry != 0) {
            let at = offset + index as u64 * 8;
            let table = entry & OFFSET;
            if entry & !(OFFLAG_COPIED | OFFSET) != 0 || table == 0 {
                self.report.error_with(|| format!("first-level entry {entry:#x} makes no sense"));
                self.nonsense.push(Nonsense { at, is_first_level: true });
            } else if self.tables.contains_key(&table) || !self.is_known_table(table) {
                if self.count_table("second-level table", table, self.cluster) {
                    let first = index as u64 * self.entries_per_table();
                    let (times, _) = self.tables.entry(table).or_insert((0, first));
                    *times = times.saturating_add(1);
                } else {
                    self.nonsense.push(Nonsense { at, is_first_level: true });
                }
            } else {
                self.report.error_with(|| format!("first-level entry {entry:#x} points at another table"));
                self.nonsense.push(Nonsense { at, is_first_level: true });
            }
        }
        Ok(())
    }

    /// Whether so many entries are used that they cannot be true; following them all could take very long.
    fn leads_nowhere(&self, l1: &[u64]) -> bool {
        l1.iter().filter(|entry| **entry != 0).count() > self.references.len()
    }

    fn is_known_table(&self, offset: u64) -> bool {
        self.holds.get((offset / self.cluster) as usize).is_some_and(|held| *held != holds::NO_TABLE)
    }

    /// Counts what the second-level tables lead to.
    fn count_data(&mut self) -> Result<(), DiskError> {
        for (table, (times, first)) in std::mem::take(&mut self.tables) {
            for (index, (entry, pieces)) in self.entries(table)?.into_iter().enumerate() {
                let is_sensible = match self.header.has_data_file() {
                    true => self.judge_external(entry, (first + index as u64) * self.cluster),
                    false => entry == 0 || self.count_entry(entry, times),
                };
                if !is_sensible || !self.judge_subclusters(entry, pieces) {
                    self.nonsense.push(Nonsense { at: self.place(table, index), is_first_level: false });
                }
            }
        }
        Ok(())
    }

    /// Entries of a second-level table: each with its subclusters, if there are such.
    fn entries(&self, table: u64) -> Result<Vec<(u64, u64)>, DiskError> {
        let words = self.words(table, self.cluster / 8)?;
        Ok(match self.header.has_extended_l2() {
            true => words.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect(),
            false => words.into_iter().map(|word| (word, 0)).collect(),
        })
    }

    fn entries_per_table(&self) -> u64 {
        self.cluster / if self.header.has_extended_l2() { 16 } else { 8 }
    }

    /// Where in the file an entry of a second-level table stands.
    fn place(&self, table: u64, index: usize) -> u64 {
        table + index as u64 * if self.header.has_extended_l2() { 16 } else { 8 }
    }

    /// Whether what an entry says of its 32 subclusters makes sense: each stored, zeros or neither, and stored somewhere.
    fn judge_subclusters(&mut self, entry: u64, pieces: u64) -> bool {
        let (stored, zeros) = (pieces & 0xffff_ffff, pieces >> 32);
        let has_place = entry & OFFSET != 0 || (self.header.has_data_file() && entry & OFFLAG_COPIED != 0);
        let is_sensible = match entry & OFFLAG_COMPRESSED != 0 {
            true => pieces == 0,
            false => stored & zeros == 0 && (stored == 0 || has_place),
        };
        if !is_sensible {
            self.report.error_with(|| format!("second-level entry {entry:#x} has impossible subclusters {pieces:#x}"));
        }
        is_sensible
    }

    /// Whether an entry makes sense where the data lies in another file: there it lies where the disk has it.
    fn judge_external(&mut self, entry: u64, guest: u64) -> bool {
        let is_there = entry & OFFSET != 0 || entry & OFFLAG_COPIED != 0;
        let allowed = OFFLAG_COPIED | OFFSET | self.zero_flag();
        let is_sensible = entry & !allowed == 0 && (!is_there || entry & OFFSET == guest);
        if !is_sensible {
            self.report.error_with(|| format!("second-level entry {entry:#x} is not that of a data file at {guest:#x}"));
        }
        is_sensible
    }

    /// The flag "zeros", where entries have it.
    fn zero_flag(&self) -> u64 {
        if self.header.version >= 3 && !self.header.has_extended_l2() { OFFLAG_ZERO } else { 0 }
    }

    /// Counts what one entry leads to; says whether the entry makes sense.
    fn count_entry(&mut self, entry: u64, times: u32) -> bool {
        if entry & OFFLAG_COMPRESSED != 0 {
            return self.count_compressed(entry, times);
        }
        let is_zero = entry & self.zero_flag() != 0;
        let reserved = !(OFFLAG_COPIED | OFFSET | self.zero_flag());
        let host = entry & OFFSET;
        if entry & reserved != 0 || (host == 0 && !is_zero) || (host == 0 && entry & OFFLAG_COPIED != 0) {
            self.report.error_with(|| format!("second-level entry {entry:#x} makes no sense"));
            return false;
        }
        if host != 0 && self.is_known_table(host) {
            self.report.error_with(|| format!("second-level entry {entry:#x} points at a table"));
            return false;
        }
        host == 0 || self.count("data cluster", host, self.cluster, times)
    }

    fn count_compressed(&mut self, entry: u64, times: u32) -> bool {
        let (start, bytes) = compressed_range(entry, self.header.cluster_bits);
        let last = (start + bytes - 1) / self.cluster;
        if entry & OFFLAG_COPIED != 0 || last > start / self.cluster + 1 {
            self.report.error_with(|| format!("compressed entry {entry:#x} makes no sense"));
            return false;
        }
        if (start / self.cluster..=last).any(|cluster| self.is_known_table(cluster * self.cluster)) {
            self.report.error_with(|| format!("compressed entry {entry:#x} points at a table"));
            return false;
        }
        // The last sectors need not be in the file.
        let bytes = bytes.min(self.end.saturating_sub(start)).max(1);
        self.count("compressed cluster", start, bytes, times)
    }

    fn count_bitmaps(&mut self) -> Result<(), DiskError> {
        let Some(extension) = self.header.extension(EXTENSION_BITMAPS) else { return Ok(()) };
        if self.header.autoclear & AUTOCLEAR_BITMAPS == 0 || extension.len() < 24 {
            return Ok(());
        }
        let (bitmaps, size, offset) = (be32(extension, 0), be64(extension, 8), be64(extension, 16));
        if bitmaps > 65_535 || size > 64 << 20 || offset.saturating_add(size) > self.end {
            self.report.error("the directory of bitmaps makes no sense".into());
            return Ok(());
        }
        self.count_table("bitmap directory", offset, size);
        let mut directory = vec![0; size as usize];
        self.file.read_zero_padded(offset, &mut directory)?;
        let mut at = 0;
        for _ in 0..bitmaps {
            let Some(entry) = directory.get(at..at + 24) else {
                self.report.error("the directory of bitmaps is cut short".into());
                return Ok(());
            };
            let (table, entries) = (be64(entry, 0), be32(entry, 8));
            let (name, extra) = (u16::from_be_bytes([entry[18], entry[19]]), be32(entry, 20));
            if u64::from(entries) * 8 > self.end.min(64 << 20) {
                self.report.error("a bitmap is too large".into());
                return Ok(());
            }
            self.count_table("bitmap table", table, u64::from(entries) * 8);
            for word in self.words(table, u64::from(entries))? {
                if word & OFFSET != 0 {
                    self.count_table("bitmap cluster", word & OFFSET, self.cluster);
                }
            }
            at += (24 + usize::from(name) + extra as usize).next_multiple_of(8);
        }
        Ok(())
    }

    /// Compares what was counted with what the file says; returns the differences and all counts of the file.
    fn compare(&mut self) -> Result<(Vec<Miscount>, Vec<u32>), DiskError> {
        let bits = 1_u64 << self.header.refcount_order;
        let per_block = self.cluster * 8 / bits;
        let mut miscounted = Vec::new();
        let mut counts = vec![0_u32; self.references.len()];
        let mut bytes = vec![0; self.cluster as usize];
        let known = (self.references.len() as u64).div_ceil(per_block);
        let blocks = self.refcount_table()?;
        let mut beyond = HashSet::new();
        for index in 0..(blocks.len() as u64).max(known) {
            let offset = blocks.get(index as usize).copied().unwrap_or(0);
            let is_usable = offset != 0
                && offset & RESERVED_IN_REFCOUNT_TABLE == 0
                && offset < self.end
                && offset.is_multiple_of(self.cluster);
            // Clusters past the end: allocated just before a crash, never written.
            if index >= known && (!is_usable || beyond.len() >= MAX_BLOCKS_BEYOND || !beyond.insert(offset)) {
                continue;
            }
            if !is_usable && !self.uses_any(index * per_block, per_block) {
                continue;
            }
            bytes.fill(0);
            if is_usable {
                self.file.read_zero_padded(offset, &mut bytes)?;
            }
            for entry in 0..per_block {
                let cluster = index * per_block + entry;
                let counted = count_in(&bytes, entry, bits);
                let used = self.references.get(cluster as usize).copied().map_or(0, u64::from);
                if counted > 0
                    && let Some(place) = counts.get_mut(cluster as usize)
                {
                    *place = counted.min(u64::from(u32::MAX)) as u32;
                }
                if counted == used {
                    continue;
                }
                let block = is_usable.then_some(offset);
                if miscounted.len() < MAX_MISCOUNTS {
                    miscounted.push(Miscount { cluster, counted, used, block });
                }
                if counted < used {
                    self.report.error_with(|| format!("cluster {cluster} is used {used} times but counted {counted} times"));
                } else {
                    self.report.leaks += 1;
                    self.report.note_with(|| format!("cluster {cluster} is used {used} times but counted {counted} times"));
                }
            }
        }
        Ok((miscounted, counts))
    }

    /// Whether anything refers to one of so many clusters from `first` on.
    fn uses_any(&self, first: u64, clusters: u64) -> bool {
        (first..self.used.min(first + clusters)).any(|cluster| self.references[cluster as usize] > 0)
    }

    /// Compares the marks "ours alone" of the active tables with the counts of the file, and takes the figures of the
    /// guest's clusters on the way.
    fn check_marks(&mut self, counts: &[u32]) -> Result<Vec<(u64, u64)>, DiskError> {
        let mut wrong = Vec::new();
        let mut expected_next = 0;
        let mut bad: Vec<u64> = self.nonsense.iter().map(|nonsense| nonsense.at).collect();
        bad.sort_unstable();
        let is_bad = |at: &u64| bad.binary_search(at).is_ok();
        let (offset, entries) = (self.header.l1_offset, u64::from(self.header.l1_entries));
        let words = self.words(offset, entries)?;
        if self.leads_nowhere(&words) {
            return Ok(wrong);
        }
        let mut seen = HashSet::new();
        for (index, entry) in words.into_iter().enumerate().filter(|(_, entry)| *entry != 0) {
            let at = offset + index as u64 * 8;
            if is_bad(&at) {
                continue;
            }
            self.check_mark(at, entry, counts, &mut wrong);
            let table = entry & OFFSET;
            // Where entries share a table, once is enough.
            if !seen.insert(table) {
                continue;
            }
            for (index, (entry, _)) in self.entries(table)?.into_iter().enumerate().filter(|(_, (entry, _))| *entry != 0) {
                let at = self.place(table, index);
                if is_bad(&at) {
                    continue;
                }
                if entry & OFFLAG_COMPRESSED != 0 {
                    // Their nature is to lie scattered; QEMU counts them so too.
                    self.report.allocated_clusters += 1;
                    self.report.compressed_clusters += 1;
                    self.report.fragmented_clusters += 1;
                    continue;
                }
                let host = entry & OFFSET;
                if self.header.has_data_file() {
                    self.report.allocated_clusters += u64::from(entry & OFFLAG_COPIED != 0);
                } else if host != 0 {
                    self.report.allocated_clusters += 1;
                    self.report.fragmented_clusters += u64::from(expected_next != 0 && host != expected_next);
                    expected_next = host + self.cluster;
                    self.check_mark(at, entry, counts, &mut wrong);
                }
            }
        }
        Ok(wrong)
    }

    fn check_mark(&mut self, at: u64, entry: u64, counts: &[u32], wrong: &mut Vec<(u64, u64)>) {
        let host = entry & OFFSET;
        let counted = counts.get((host / self.cluster) as usize).copied().unwrap_or(0);
        match (entry & OFFLAG_COPIED != 0, counted) {
            (true, 1) | (false, 0 | 2..) => {}
            (false, 1) => {
                self.report.unmarked += 1;
                wrong.push((at, entry | OFFLAG_COPIED));
            }
            (true, _) => {
                self.report.error_with(|| format!("the entry for {host:#x} says \"ours alone\", but its count is {counted}"));
                wrong.push((at, entry & !OFFLAG_COPIED));
            }
        }
    }
}

/// Where a compressed cluster lies, and how many bytes it has at most.
fn compressed_range(entry: u64, cluster_bits: u32) -> (u64, u64) {
    let sector_bits = cluster_bits - 8;
    let start = entry & ((1 << (62 - sector_bits)) - 1);
    let sectors = (entry >> (62 - sector_bits)) & ((1 << sector_bits) - 1);
    (start, (sectors + 1) * 512 - (start & 511))
}

/// Reads one count, whatever its width in bits.
fn count_in(block: &[u8], entry: u64, bits: u64) -> u64 {
    let bit = entry * bits;
    let byte = (bit / 8) as usize;
    match bits {
        1 | 2 | 4 => u64::from(block[byte] >> (bit % 8)) & ((1 << bits) - 1),
        8 => u64::from(block[byte]),
        16 => u64::from(u16::from_be_bytes([block[byte], block[byte + 1]])),
        32 => u64::from(be32(block, byte)),
        _ => be64(block, byte),
    }
}

fn too_large(path: &Path) -> DiskError {
    DiskError::Unsupported { feature: "more clusters than can be checked".into(), path: path.to_path_buf() }
}
