//! VHDX, the disk of Hyper-V.
//!
//! Done: dynamic, fixed and differencing disks, read and written; growing where the table has room, and shrinking where
//! nothing is lost; a log that somebody left is replayed (in memory, if the file is only read). We write no log of our
//! own: blocks go to the end of the file and their table entries, eight bytes that no crash can tear, follow after a flush,
//! so the log can stay empty. A new base is written beside the old one's description, and one sector leads there.
//! See: Microsoft, MS-VHDX "Virtual Hard Disk v2 File Format".

mod base_locator;
mod create;
mod header;
mod log;
mod metadata;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::DiskError;
use crate::block_file::{Access, BlockFile};
use crate::block_table::{BitOrder, Block, BlockTableDisk, Grown, Growth, Layout, MAX_BLOCKS, MarksHome, MarksLayout, Opened};
use crate::check::{CheckReport, Repair};
use crate::fenced_file::FencedFile;
use crate::fields::Fields;
use crate::formats::{Driver, Format, Opening};
use crate::image::DiskImage;
use crate::image_info::{BackingInfo, Identity, ImageInfo};
use crate::open::Backing;
use crate::parent::{Base, name_of_base};

use base_locator::BaseLocator;
pub use create::VhdxOptions;
use header::{Header, Regions};
use metadata::Metadata;

#[cfg(test)]
pub(crate) use {create::create_small, create::create_small_over, log::tests::image_with_log};

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

/// Bytes of a block of marks.
const MAP_BLOCK: u64 = MIB;

struct Vhdx {
    header: Mutex<Header>,
    regions: Regions,
    metadata: Metadata,
    base_name: Option<String>,
    chunk_ratio: u64,
}

impl Vhdx {
    fn header(&self) -> MutexGuard<'_, Header> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_size(&self, file: &FencedFile, size: u64) -> Result<(), DiskError> {
        if size > metadata::MAX_SIZE || !size.is_multiple_of(self.metadata.sector_size) {
            let reason = "This size is larger than a VHDX disk can be, or no multiple of its sectors".into();
            return Err(DiskError::BadOptions { reason, path: file.path().to_path_buf() });
        }
        file.write_at(self.metadata.size_at, &size.to_le_bytes())?;
        file.flush()
    }
}

impl Layout for Vhdx {
    fn format(&self) -> Format {
        Format::Vhdx
    }

    fn info(&self) -> ImageInfo {
        let backing = self.base_name.clone().map(|name| BackingInfo { name, format: Some(DRIVER.name.into()) });
        let identity = Some(Identity { disk: 0, content: self.header().content_id() });
        ImageInfo { cluster_size: Some(self.metadata.block_size), backing, identity, ..ImageInfo::default() }
    }

    fn entries(&self, index: usize, block: Block) -> Vec<(u64, Vec<u8>)> {
        let at = self.regions.table.offset + table_index(index as u64, self.chunk_ratio) * 8;
        let entry = match block {
            Block::Absent => NOT_PRESENT,
            Block::Zero => ZERO,
            Block::Stored(place) => place | FULLY_PRESENT,
            Block::Partial(place) => place | PARTIALLY_PRESENT,
        };
        vec![(at, entry.to_le_bytes().to_vec())]
    }

    fn map_block_entry(&self, number: usize, place: u64) -> (u64, Vec<u8>) {
        let at = self.regions.table.offset + map_index(number as u64, self.chunk_ratio) * 8;
        (at, (place | FULLY_PRESENT).to_le_bytes().to_vec())
    }

    fn alignment(&self) -> u64 {
        MIB
    }

    fn keeps_zeros(&self) -> bool {
        true
    }

    fn begin_change(&self, file: &FencedFile) -> Result<(), DiskError> {
        self.header().begin_change(file)
    }

    fn grow(&self, file: &FencedFile, growth: Growth) -> Result<Grown, DiskError> {
        let Growth { size, old_blocks, blocks, .. } = growth;
        let has_maps = self.metadata.base.is_some();
        let (from, to) =
            (table_entries(old_blocks, self.chunk_ratio, has_maps), table_entries(blocks, self.chunk_ratio, has_maps));
        if to * 8 > self.regions.table.length {
            let reason = "This VHDX disk has no room for a larger table. Convert it to a new one".into();
            return Err(DiskError::BadOptions { reason, path: file.path().to_path_buf() });
        }
        file.write_at(self.regions.table.offset + from * 8, &vec![0; ((to - from) * 8) as usize])?;
        if has_maps {
            // The last chunk has more blocks now; in front of its marks there may be entries that nobody used.
            let old_end = old_blocks.checked_sub(1).map_or(0, |last| table_index(last, self.chunk_ratio) + 1);
            let unused = from.saturating_sub(1).saturating_sub(old_end);
            file.write_at(self.regions.table.offset + old_end * 8, &vec![0; (unused * 8) as usize])?;
        }
        file.flush()?;
        self.write_size(file, size)?;
        Ok(Grown::default())
    }

    fn shrink(&self, file: &FencedFile, size: u64, _blocks: u64) -> Result<(), DiskError> {
        self.write_size(file, size)
    }

    fn set_base(&self, file: &FencedFile, base: Option<(&Backing, Identity)>, _end: &mut u64) -> Result<(), DiskError> {
        let locator = base.map(|(backing, identity)| BaseLocator::new(backing, identity));
        self.metadata.write_base(file, self.regions.metadata, locator.as_ref())
    }
}

/// After each chunk's blocks the table has one entry for the block of their marks, which only differencing disks use.
fn table_index(block: u64, chunk_ratio: u64) -> u64 {
    block + block / chunk_ratio
}

/// The entry of a chunk's marks.
fn map_index(chunk: u64, chunk_ratio: u64) -> u64 {
    chunk * (chunk_ratio + 1) + chunk_ratio
}

/// Entries that a table of so many blocks has.
fn table_entries(blocks: u64, chunk_ratio: u64, has_maps: bool) -> u64 {
    match blocks.checked_sub(1) {
        None => 0,
        Some(last) if has_maps => map_index(last / chunk_ratio, chunk_ratio) + 1,
        Some(last) => table_index(last, chunk_ratio) + 1,
    }
}

/// Blocks whose marks share one block of marks.
fn chunk_ratio(sector_size: u64, block_size: u64) -> u64 {
    ((1 << 23) * sector_size / block_size).max(1)
}

/// All that the headers say, checked.
struct Contents {
    regions: Regions,
    metadata: Metadata,
    /// Where the last of the regions ends.
    data_start: u64,
    entries: Vec<u64>,
    /// The entries of blocks of marks; none for a disk that stands by itself.
    maps: Vec<u64>,
    chunk_ratio: u64,
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
        let has_maps = metadata.base.is_some();
        let needed = table_entries(blocks, ratio, has_maps);
        if needed * 8 > regions.table.length {
            return Err(wrong("its table is too short for its size"));
        }
        let mut bytes = vec![0; needed as usize * 8];
        file.read_zero_padded(regions.table.offset, &mut bytes)?;
        let entry = |index: u64| Fields(&bytes).le64(index as usize * 8);
        let entries = (0..blocks).map(|block| entry(table_index(block, ratio))).collect();
        let chunks = if has_maps { blocks.div_ceil(ratio) } else { 0 };
        let maps = (0..chunks).map(|chunk| entry(map_index(chunk, ratio))).collect();
        let log_end = header.log.map_or(0, |log| log.offset + log.length);
        let data_start = regions.table.end().max(regions.metadata.end()).max(log_end).max(MIB);
        Ok(Self { regions, metadata, data_start, entries, maps, chunk_ratio: ratio })
    }

    /// Where a chunk's marks are; 0 where there are none.
    fn map_block(entry: &u64) -> u64 {
        if entry & STATE_MASK == FULLY_PRESENT { entry & PLACE_MASK } else { 0 }
    }

    fn block(&self, index: usize, entry: u64) -> Result<Block, &'static str> {
        let place = entry & PLACE_MASK;
        match entry & STATE_MASK {
            NOT_PRESENT => Ok(Block::Absent),
            // What the guest no longer needed is zeros, not what it once was in the base.
            UNDEFINED | UNMAPPED if self.metadata.base.is_some() => Ok(Block::Zero),
            UNDEFINED | UNMAPPED => Ok(Block::Absent),
            ZERO => Ok(Block::Zero),
            FULLY_PRESENT if place >= MIB => Ok(Block::Stored(place)),
            PARTIALLY_PRESENT if self.metadata.base.is_none() => Err("a block shows a base that the disk does not have"),
            PARTIALLY_PRESENT
                if self.maps.get(index / self.chunk_ratio as usize).is_none_or(|map| Self::map_block(map) < MIB) =>
            {
                Err("a block shows a base, and nothing says where")
            }
            PARTIALLY_PRESENT if place >= MIB => Ok(Block::Partial(place)),
            FULLY_PRESENT | PARTIALLY_PRESENT => Err("a block lies in the headers"),
            _ => Err("a table entry has a state that does not exist"),
        }
    }
}

fn open(opening: Opening<'_>) -> Result<Arc<dyn DiskImage>, DiskError> {
    let Opening { file, access, chain, .. } = opening;
    let mut header = Header::read(&FencedFile::new(Arc::clone(&file)))?;
    let file = log::replayed(file, &mut header, access)?;
    let fenced = FencedFile::new(Arc::clone(&file));
    let contents = Contents::read(&fenced, &header)?;
    let damaged = |detail: &str| DiskError::Damaged { detail: detail.into(), advice: ADVICE, path: file.path().into() };
    let entries = contents.entries.iter().enumerate();
    let blocks = entries.map(|(index, entry)| contents.block(index, *entry).map_err(damaged)).collect::<Result<_, _>>()?;
    let (mut base, mut base_name, mut marks) = (Base::None, None, None);
    if let Some(locator) = &contents.metadata.base {
        let name = name_of_base(file.path(), &locator.names());
        let name = name.ok_or_else(|| header::wrong(file.path(), "it does not say what it is built on"))?;
        let backing = Backing { name: name.clone(), format: Format::Vhdx };
        base = Base::open(chain, file.path(), &backing, |identity| locator.expects(identity))?;
        base_name = Some(name);
        marks = Some(MarksLayout {
            sector_size: contents.metadata.sector_size,
            order: BitOrder::LowestFirst,
            home: MarksHome::MapBlocks { blocks_each: contents.chunk_ratio, length: MAP_BLOCK },
        });
    }
    if access == Access::ReadWrite {
        header.begin_writing(&fenced)?;
    }
    let map_blocks = contents.maps.iter().map(Contents::map_block).collect();
    let Contents { regions, metadata, data_start, chunk_ratio, .. } = contents;
    let (size, block_size) = (metadata.size, metadata.block_size);
    let layout = Vhdx { header: Mutex::new(header), regions, metadata, base_name, chunk_ratio };
    let opened = Opened { base, marks, map_blocks, ..Opened::new(layout, size, block_size, blocks, data_start) };
    Ok(Arc::new(BlockTableDisk::new(file, access, opened)?))
}

/// Headers, tables and log are sound; every block lies inside the file at a place of its own.
fn check(file: Arc<dyn BlockFile>, repair: Repair) -> Result<CheckReport, DiskError> {
    let mut header = Header::read(&FencedFile::new(Arc::clone(&file)))?;
    let has_log = header.has_log();
    let access = if repair == Repair::Nothing { Access::ReadOnly } else { Access::ReadWrite };
    let file = FencedFile::new(log::replayed(file, &mut header, access)?);
    let contents = Contents::read(&file, &header)?;
    let (end, block_size) = (file.len()?, contents.metadata.block_size);
    let mut report = CheckReport { total_clusters: contents.entries.len() as u64, ..CheckReport::default() };
    if has_log && repair == Repair::Nothing {
        report.error("the log holds changes that were never carried out; -r all does that".into());
    } else if has_log {
        report.errors_fixed += 1;
    }
    // Where something lies, and its number: a block's, or behind these that of a block of marks.
    let mut places: Vec<(u64, u32)> = Vec::new();
    let blocks = contents.entries.len();
    let length_of = |number: u32| if (number as usize) < blocks { block_size } else { MAP_BLOCK };
    let name_of = |number: u32| match (number as usize).checked_sub(blocks) {
        None => format!("block {number}"),
        Some(marks) => format!("marks {marks}"),
    };
    for (index, entry) in contents.entries.iter().enumerate() {
        match contents.block(index, *entry) {
            Ok(Block::Absent | Block::Zero) => {}
            Ok(Block::Stored(place) | Block::Partial(place)) => {
                report.allocated_clusters += 1;
                places.push((place, index as u32));
            }
            Err(detail) => report.error_with(|| format!("block {index}: {detail}")),
        }
    }
    let maps = contents.maps.iter().map(Contents::map_block).enumerate().filter(|(_, place)| *place > 0);
    places.extend(maps.map(|(number, place)| (place, (blocks + number) as u32)));
    places.sort_unstable();
    for (place, number) in places.iter().copied() {
        let stop = place.saturating_add(length_of(number));
        if place < MIB || stop > end {
            report.error_with(|| format!("{} lies outside the file", name_of(number)));
        }
        report.image_end = report.image_end.max(stop);
    }
    for pair in places.windows(2).filter(|pair| pair[1].0 - pair[0].0 < length_of(pair[0].1)) {
        report.error_with(|| format!("{} overlaps {}", name_of(pair[1].1), name_of(pair[0].1)));
    }
    Ok(report)
}
