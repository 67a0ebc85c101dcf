//! VHDX, the disk of Hyper-V.
//!
//! Done: dynamic and fixed disks, read and written; a log that somebody left is replayed (in memory, if the file is
//! only read). Differencing disks are refused. We write no log of our own: blocks go to the end of the file and their
//! table entries, eight bytes that no crash can tear, follow after a flush, so the log can stay empty.
//! See: Microsoft, MS-VHDX "Virtual Hard Disk v2 File Format".

mod create;
mod header;
mod log;
mod metadata;

use std::sync::Arc;

use crate::DiskError;
use crate::block_file::{Access, BlockFile};
use crate::block_table::{Block, BlockTableDisk, Layout, MAX_BLOCKS, Opened};
use crate::check::{CheckReport, Repair};
use crate::fenced_file::FencedFile;
use crate::fields::Fields;
use crate::formats::{Driver, Format, Opening};
use crate::image::DiskImage;
use crate::image_info::ImageInfo;

use header::{Header, Region, Regions};
use metadata::Metadata;

#[cfg(test)]
pub(crate) use {create::create_small, log::tests::image_with_log};

pub(crate) const DRIVER: Driver = Driver {
    format: Format::Vhdx,
    name: "vhdx",
    title: "VHDX disk",
    recognise: |head| head.starts_with(header::FILE_MAGIC),
    open,
    create: Some(create::create),
    check: Some(check),
    has_snapshots: false,
    writable: true,
};

/// The first mebibyte is headers; whatever else there is begins at a multiple of one.
const MIB: u64 = 1 << 20;
const ADVICE: &str = "Copy what can be read, or restore a backup";

/// States of a table entry.
const NOT_PRESENT: u64 = 0;
const UNDEFINED: u64 = 1;
const ZERO: u64 = 2;
const UNMAPPED: u64 = 3;
const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;
const STATE_MASK: u64 = 7;
/// Bits 20–63: the position, in mebibytes.
const PLACE_MASK: u64 = !(MIB - 1);

struct Vhdx {
    table: Region,
    /// Where in the file the disk's size stands.
    size_at: u64,
    sector_size: u64,
    block_size: u64,
    chunk_ratio: u64,
}

impl Layout for Vhdx {
    fn format(&self) -> Format {
        Format::Vhdx
    }

    fn info(&self) -> ImageInfo {
        ImageInfo { cluster_size: Some(self.block_size), ..ImageInfo::default() }
    }

    fn entries(&self, index: usize, place: u64) -> Vec<(u64, Vec<u8>)> {
        let at = self.table.offset + table_index(index as u64, self.chunk_ratio) * 8;
        vec![(at, (place | FULLY_PRESENT).to_le_bytes().to_vec())]
    }

    fn alignment(&self) -> u64 {
        MIB
    }

    fn grow(&self, file: &FencedFile, size: u64, old_blocks: u64, blocks: u64) -> Result<(), DiskError> {
        let refuse = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: file.path().to_path_buf() };
        if size > metadata::MAX_SIZE || !size.is_multiple_of(self.sector_size) {
            return Err(refuse("This size is larger than a VHDX disk can be, or no multiple of its sectors"));
        }
        let end = |blocks: u64| blocks.checked_sub(1).map_or(0, |last| table_index(last, self.chunk_ratio) + 1) * 8;
        if end(blocks) > self.table.length {
            return Err(refuse("This VHDX disk has no room for a larger table. Convert it to a new one"));
        }
        let unused = vec![0; (end(blocks) - end(old_blocks)) as usize];
        file.write_at(self.table.offset + end(old_blocks), &unused)?;
        file.flush()?;
        file.write_at(self.size_at, &size.to_le_bytes())?;
        file.flush()
    }
}

/// After each chunk's blocks the table has one entry for their bitmap, which only differencing disks use.
fn table_index(block: u64, chunk_ratio: u64) -> u64 {
    block + block / chunk_ratio
}

/// Blocks that one bitmap block would describe.
fn chunk_ratio(sector_size: u64, block_size: u64) -> u64 {
    ((1 << 23) * sector_size / block_size).max(1)
}

/// All that the headers say, checked.
struct Contents {
    table: Region,
    metadata: Metadata,
    /// Where the last of the regions ends.
    data_start: u64,
    entries: Vec<u64>,
}

impl Contents {
    fn read(file: &FencedFile, header: &Header) -> Result<Self, DiskError> {
        let wrong = |detail: &str| header::wrong(file.path(), detail);
        let regions = Regions::read(file)?;
        let metadata = Metadata::read(file, regions.metadata)?;
        let blocks = metadata.size.div_ceil(metadata.block_size);
        if blocks > MAX_BLOCKS {
            return Err(wrong("it has too many blocks"));
        }
        let ratio = chunk_ratio(metadata.sector_size, metadata.block_size);
        let needed = if blocks == 0 { 0 } else { table_index(blocks - 1, ratio) + 1 };
        if needed * 8 > regions.table.length {
            return Err(wrong("its table is too short for its size"));
        }
        let mut bytes = vec![0; needed as usize * 8];
        file.read_zero_padded(regions.table.offset, &mut bytes)?;
        let entries = (0..blocks).map(|block| Fields(&bytes).le64(table_index(block, ratio) as usize * 8)).collect();
        let log_end = header.log.map_or(0, |log| log.offset + log.length);
        let data_start = regions.table.end().max(regions.metadata.end()).max(log_end).max(MIB);
        Ok(Self { table: regions.table, metadata, data_start, entries })
    }
}

fn open(opening: Opening<'_>) -> Result<Arc<dyn DiskImage>, DiskError> {
    let Opening { file, access, .. } = opening;
    let header = Header::read(&FencedFile::new(Arc::clone(&file)))?;
    let file = log::replayed(file, &header, access)?;
    let fenced = FencedFile::new(Arc::clone(&file));
    let contents = Contents::read(&fenced, &header)?;
    if access == Access::ReadWrite {
        header.begin_writing(&fenced)?;
    }
    let damaged = |detail: &str| DiskError::Damaged { detail: detail.into(), advice: ADVICE, path: file.path().into() };
    let block = |entry: &u64| match entry & STATE_MASK {
        NOT_PRESENT | UNDEFINED | UNMAPPED => Ok(Block::Absent),
        ZERO => Ok(Block::Zero),
        FULLY_PRESENT if entry & PLACE_MASK >= MIB => Ok(Block::Stored(entry & PLACE_MASK)),
        FULLY_PRESENT => Err(damaged("a block lies in the headers")),
        PARTIALLY_PRESENT => Err(damaged("a block shows a base that the disk does not have")),
        _ => Err(damaged("a table entry has a state that does not exist")),
    };
    let blocks = contents.entries.iter().map(block).collect::<Result<Vec<_>, _>>()?;
    let Metadata { size, size_at, block_size, sector_size } = contents.metadata;
    let chunk_ratio = chunk_ratio(sector_size, block_size);
    let layout = Vhdx { table: contents.table, size_at, sector_size, block_size, chunk_ratio };
    let data_start = contents.data_start;
    let opened = Opened { layout, size, block_size, blocks, data_start, first_free: data_start, unwritten: Default::default() };
    Ok(Arc::new(BlockTableDisk::new(file, access, opened)?))
}

/// Headers, tables and log are sound; every block lies inside the file at a place of its own.
fn check(file: Arc<dyn BlockFile>, repair: Repair) -> Result<CheckReport, DiskError> {
    let header = Header::read(&FencedFile::new(Arc::clone(&file)))?;
    let has_log = header.has_log();
    let access = if repair == Repair::Nothing { Access::ReadOnly } else { Access::ReadWrite };
    let file = FencedFile::new(log::replayed(file, &header, access)?);
    let contents = Contents::read(&file, &header)?;
    let (end, block_size) = (file.len()?, contents.metadata.block_size);
    let mut report = CheckReport { total_clusters: contents.entries.len() as u64, ..CheckReport::default() };
    if has_log && repair == Repair::Nothing {
        report.error("the log holds changes that were never carried out; -r all does that".into());
    } else if has_log {
        report.errors_fixed += 1;
    }
    let mut places = Vec::new();
    for (index, entry) in contents.entries.iter().enumerate() {
        match entry & STATE_MASK {
            NOT_PRESENT | UNDEFINED | ZERO | UNMAPPED => {}
            FULLY_PRESENT => places.push((entry & PLACE_MASK, index)),
            state => report.error(format!("block {index} has the state {state}, which is impossible here")),
        }
    }
    places.sort_unstable();
    report.allocated_clusters = places.len() as u64;
    for (place, index) in &places {
        if *place < MIB || place.saturating_add(block_size) > end {
            report.error(format!("block {index} lies outside the file"));
        }
        report.image_end = report.image_end.max(place.saturating_add(block_size));
    }
    for pair in places.windows(2).filter(|pair| pair[1].0 - pair[0].0 < block_size) {
        report.error(format!("block {} overlaps block {}", pair[1].1, pair[0].1));
    }
    Ok(report)
}
