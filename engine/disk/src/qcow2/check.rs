//! Checking a qcow2 file: counting every reference and comparing with the counts in the file.
//!
//! Deliberately a second implementation: apart from the header's parser it shares no code with the reading and
//! writing side, so that a mistake there cannot hide itself here. It changes nothing.

use std::path::Path;
use std::sync::Arc;

use crate::DiskError;
use crate::block_file::BlockFile;
use crate::check::CheckReport;
use crate::fenced_file::FencedFile;

use super::header::{AUTOCLEAR_BITMAPS, EXTENSION_BITMAPS, Header, be32, be64};
use super::snapshots::SnapshotTable;

/// More clusters than this (in 64 KiB clusters: 16 TiB) would need too much memory.
const MAX_CLUSTERS: u64 = 1 << 28;

const OFFLAG_COPIED: u64 = 0x8000_0000_0000_0000;
const OFFLAG_COMPRESSED: u64 = 0x4000_0000_0000_0000;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

struct Checker<'a> {
    file: &'a FencedFile,
    header: &'a Header,
    cluster: u64,
    end: u64,
    references: Vec<u32>,
    report: CheckReport,
    /// Entries of the active tables that say "writable in place", and those that do not, by cluster.
    flags: Vec<(u64, bool)>,
}

/// Checks an image.
pub fn check(file: Arc<dyn BlockFile>) -> Result<CheckReport, DiskError> {
    let file = FencedFile::new(file);
    let end = file.len()?;
    let header = Header::read(&file, end)?;
    let snapshots = SnapshotTable::read(&file, &header, end)?;
    let cluster = 1_u64 << header.cluster_bits;
    let clusters = end.div_ceil(cluster);
    if clusters > MAX_CLUSTERS {
        return Err(too_large(file.path()));
    }
    let references = vec![0; clusters as usize];
    let mut checker =
        Checker { file: &file, header: &header, cluster, end, references, report: CheckReport::default(), flags: Vec::new() };
    checker.count_everything(&snapshots)?;
    checker.compare()?;
    Ok(checker.report)
}

impl Checker<'_> {
    fn count_everything(&mut self, snapshots: &SnapshotTable) -> Result<(), DiskError> {
        let header = self.header;
        self.count("header", 0, 1);
        self.count("refcount table", header.refcount_table_offset, u64::from(header.refcount_table_clusters) * self.cluster);
        for block in self.words(header.refcount_table_offset, self.table_words())? {
            if block & 0x1ff != 0 {
                self.report.error(format!("refcount table entry {block:#x} has reserved bits set"));
            } else if block != 0 {
                self.count("refcount block", block, self.cluster);
            }
        }
        self.count_tables(header.l1_offset, header.l1_entries, true)?;
        self.count("snapshot table", header.snapshots_offset, snapshots.bytes);
        for snapshot in &snapshots.snapshots {
            self.count_tables(snapshot.l1_offset, snapshot.l1_entries, false)?;
        }
        self.count_bitmaps()
    }

    fn table_words(&self) -> u64 {
        u64::from(self.header.refcount_table_clusters) * self.cluster / 8
    }

    fn words(&self, offset: u64, count: u64) -> Result<Vec<u64>, DiskError> {
        let mut bytes = vec![0; count as usize * 8];
        self.file.read_zero_padded(offset, &mut bytes)?;
        Ok(bytes.chunks_exact(8).map(|word| be64(word, 0)).collect())
    }

    /// Counts a reference to each cluster that a range of bytes touches.
    fn count(&mut self, what: &str, offset: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let aligned = offset.is_multiple_of(self.cluster) || what == "compressed cluster";
        let last = offset.saturating_add(bytes - 1) / self.cluster;
        if !aligned || offset >= self.end || last as usize >= self.references.len() {
            self.report.error(format!("a {what} at {offset:#x} is not a cluster of the file"));
            return;
        }
        for count in &mut self.references[(offset / self.cluster) as usize..=last as usize] {
            *count = count.saturating_add(1);
        }
    }

    fn count_tables(&mut self, l1_offset: u64, l1_entries: u32, active: bool) -> Result<(), DiskError> {
        self.count("first-level table", l1_offset, u64::from(l1_entries) * 8);
        for l1_entry in self.words(l1_offset, u64::from(l1_entries))? {
            if l1_entry == 0 {
                continue;
            }
            let l2 = l1_entry & OFFSET;
            if l1_entry & !(OFFLAG_COPIED | OFFSET) != 0 {
                self.report.error(format!("first-level entry {l1_entry:#x} has reserved bits set"));
            }
            self.count("second-level table", l2, self.cluster);
            if active {
                self.flags.push((l2, l1_entry & OFFLAG_COPIED != 0));
            }
            if l2 < self.end {
                for entry in self.words(l2, self.cluster / 8)? {
                    self.count_entry(entry, active);
                }
            }
        }
        Ok(())
    }

    fn count_entry(&mut self, entry: u64, active: bool) {
        if entry == 0 {
            return;
        }
        if entry & OFFLAG_COMPRESSED != 0 {
            let sector_bits = self.header.cluster_bits - 8;
            let start = entry & ((1 << (62 - sector_bits)) - 1);
            let sectors = (entry >> (62 - sector_bits)) & ((1 << sector_bits) - 1);
            if entry & OFFLAG_COPIED != 0 {
                self.report.error(format!("compressed entry {entry:#x} is marked as writable in place"));
            }
            // The last sectors need not be in the file.
            let bytes = (sectors + 1) * 512 - (start & 511);
            self.count("compressed cluster", start, bytes.min(self.end.saturating_sub(start)).max(1));
            self.report.allocated_clusters += u64::from(active);
            return;
        }
        let is_zero = self.header.version >= 3 && entry & 1 != 0;
        let reserved = if self.header.version >= 3 { !(OFFLAG_COPIED | OFFSET | 1) } else { !(OFFLAG_COPIED | OFFSET) };
        let host = entry & OFFSET;
        if entry & reserved != 0 || (host == 0 && !is_zero) || (host == 0 && entry & OFFLAG_COPIED != 0) {
            self.report.error(format!("second-level entry {entry:#x} makes no sense"));
        } else if host != 0 {
            self.count("data cluster", host, self.cluster);
            if active {
                self.flags.push((host, entry & OFFLAG_COPIED != 0));
                self.report.allocated_clusters += 1;
            }
        }
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
        self.count("bitmap directory", offset, size);
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
            if u64::from(entries) * 8 > 64 << 20 {
                self.report.error("a bitmap is too large".into());
                return Ok(());
            }
            self.count("bitmap table", table, u64::from(entries) * 8);
            for word in self.words(table, u64::from(entries))? {
                if word & OFFSET != 0 {
                    self.count("bitmap cluster", word & OFFSET, self.cluster);
                }
            }
            at += (24 + usize::from(name) + extra as usize).next_multiple_of(8);
        }
        Ok(())
    }

    /// Compares what was counted with what the file says.
    fn compare(&mut self) -> Result<(), DiskError> {
        let bits = 1_u64 << self.header.refcount_order;
        let per_block = self.cluster * 8 / bits;
        let table = self.words(self.header.refcount_table_offset, self.table_words())?;
        let mut counts = vec![0_u64; self.references.len()];
        let mut block = vec![0; self.cluster as usize];
        for (index, offset) in table.iter().enumerate() {
            if *offset == 0 || *offset & 0x1ff != 0 || *offset >= self.end {
                continue;
            }
            self.file.read_zero_padded(*offset, &mut block)?;
            for entry in 0..per_block {
                let count = count_in(&block, entry, bits);
                let cluster = index as u64 * per_block + entry;
                match counts.get_mut(cluster as usize) {
                    Some(place) => *place = count,
                    // Counts for clusters past the end: allocated just before a crash, never written.
                    None => self.report.leaks += u64::from(count > 0),
                }
            }
        }
        for (cluster, (used, counted)) in self.references.iter().zip(&counts).enumerate() {
            let used = u64::from(*used);
            if *counted < used {
                let detail = format!("cluster {cluster} is used {used} times but counted {counted} times");
                self.report.error(detail);
            } else if *counted > used {
                self.report.leaks += 1;
            }
        }
        for (host, copied) in std::mem::take(&mut self.flags) {
            let counted = counts.get((host / self.cluster) as usize).copied().unwrap_or(0);
            match (copied, counted) {
                (true, 1) | (false, 2..) => {}
                (false, _) => self.report.unmarked += 1,
                (true, _) => {
                    self.report.error(format!("the entry for {host:#x} says \"ours alone\", but its count is {counted}"))
                }
            }
        }
        Ok(())
    }
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
