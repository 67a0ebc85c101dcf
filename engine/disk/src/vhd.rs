//! VHD, the disk of Virtual PC and older Hyper-V ("vpc" to QEMU).
//!
//! Done: fixed and dynamic disks, read and written. Differencing disks are refused. A dynamic disk's footer has a copy
//! at the start of the file, which never changes and which we go by; the one at the end moves on as the file grows.
//! See: Microsoft, "Virtual Hard Disk Image Format Specification".

use std::sync::Arc;

use crate::DiskError;
use crate::block_file::BlockFile;
use crate::block_table::{Block, BlockTableDisk, Layout, MAX_BLOCKS, Opened};
use crate::check::{CheckReport, Repair};
use crate::fenced_file::FencedFile;
use crate::fields::{Fields, put};
use crate::flat::Flat;
use crate::formats::{Driver, Format, Opening};
use crate::image::DiskImage;
use crate::image_info::ImageInfo;
use crate::open::{CreateOptions, Preallocation};

pub(crate) const DRIVER: Driver = Driver {
    format: Format::Vhd,
    name: "vpc",
    title: "VHD disk",
    recognise: |head| head.starts_with(FOOTER_MAGIC),
    open,
    create: Some(create),
    check: Some(check),
    has_snapshots: false,
    writable: true,
};

const FOOTER_MAGIC: &[u8] = b"conectix";
const HEADER_MAGIC: &[u8] = b"cxsparse";
const FOOTER_LENGTH: usize = 512;
const HEADER_LENGTH: usize = 1024;
const SECTOR: u64 = 512;
const BLOCK_SIZE: u64 = 2 << 20;
const MAX_BLOCK_SIZE: u64 = 256 << 20;
const NO_BLOCK: u32 = 0xffff_ffff;

const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;

/// Programs whose disks are as large as "current size" says. All others mean what the geometry gives.
const SIZE_COUNTS_FOR: [&[u8; 4]; 4] = [b"win ", b"qem2", b"d2v ", b"tap\0"];
/// What we sign with: with any other word QEMU would go by the geometry and round the size.
const CREATOR: &[u8; 4] = b"win ";
/// Cylinders, heads and sectors of a disk too large for them.
const LARGEST_GEOMETRY: (u16, u8, u8) = (65535, 16, 255);

struct Vhd {
    footer: [u8; FOOTER_LENGTH],
    table_offset: u64,
    block_size: u64,
    /// Ones for every sector: blocks are always written whole.
    sector_bitmap: Vec<u8>,
}

impl Layout for Vhd {
    fn format(&self) -> Format {
        Format::Vhd
    }

    fn info(&self) -> ImageInfo {
        ImageInfo { cluster_size: Some(self.block_size), ..ImageInfo::default() }
    }

    fn entries(&self, index: usize, place: u64) -> Vec<(u64, Vec<u8>)> {
        let sector = ((place - self.sector_bitmap.len() as u64) / SECTOR) as u32;
        vec![(self.table_offset + index as u64 * 4, sector.to_be_bytes().to_vec())]
    }

    fn block_head(&self) -> &[u8] {
        &self.sector_bitmap
    }

    fn max_place(&self) -> u64 {
        // One number stands for "no block".
        u64::from(NO_BLOCK - 1) * SECTOR
    }

    fn before_entries(&self, file: &FencedFile, end: u64, _stored: u64) -> Result<(), DiskError> {
        file.write_at(end, &self.footer)
    }
}

/// The footer, wherever it was found.
struct Footer {
    bytes: [u8; FOOTER_LENGTH],
    size: u64,
    kind: u32,
    header_offset: u64,
}

fn wrong(file: &FencedFile, detail: &str) -> DiskError {
    DiskError::WrongFormat { expected: DRIVER.title, detail: detail.into(), path: file.path().into() }
}

fn read_footer(file: &FencedFile) -> Result<Footer, DiskError> {
    let end = file.len()?;
    let mut bytes = [0; FOOTER_LENGTH];
    file.read_zero_padded(0, &mut bytes)?;
    if !bytes.starts_with(FOOTER_MAGIC) {
        // A fixed disk begins with its content.
        let Some(at) = end.checked_sub(FOOTER_LENGTH as u64) else { return Err(wrong(file, "it is too short")) };
        file.read_exact(at, &mut bytes)?;
    }
    if !bytes.starts_with(FOOTER_MAGIC) {
        return Err(wrong(file, "neither its beginning nor its end has the signature"));
    }
    let fields = Fields(&bytes);
    if fields.be32(64) != checksum(&bytes, 64) {
        return Err(wrong(file, "its footer does not add up"));
    }
    let (cylinders, heads, sectors) = (fields.be16(56), bytes[58], bytes[59]);
    let by_geometry = u64::from(cylinders) * u64::from(heads) * u64::from(sectors) * SECTOR;
    let size_counts = SIZE_COUNTS_FOR.iter().any(|word| bytes[28..32] == word[..])
        || (cylinders, heads, sectors) == LARGEST_GEOMETRY
        || by_geometry == 0;
    let size = if size_counts { fields.be64(48) } else { by_geometry };
    if size > i64::MAX as u64 || !size.is_multiple_of(SECTOR) {
        return Err(wrong(file, "its size is impossible"));
    }
    Ok(Footer { size, kind: fields.be32(60), header_offset: fields.be64(16), bytes })
}

/// The complement of the sum of all bytes but the four of the checksum itself.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let outside = |(index, _): &(usize, &u8)| !(at..at + 4).contains(index);
    !bytes.iter().enumerate().filter(outside).fold(0_u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)))
}

/// The dynamic disk's own header and table.
struct Dynamic {
    table_offset: u64,
    block_size: u64,
    table: Vec<u32>,
}

impl Dynamic {
    fn bitmap_length(&self) -> u64 {
        (self.block_size / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
    }

    fn data_start(&self) -> u64 {
        (self.table_offset + self.table.len() as u64 * 4).next_multiple_of(SECTOR)
    }
}

fn read_dynamic(file: &FencedFile, footer: &Footer) -> Result<Dynamic, DiskError> {
    let end = file.len()?;
    let inside = |start: u64, length: u64| start.checked_add(length).is_some_and(|stop| stop <= end);
    if !inside(footer.header_offset, HEADER_LENGTH as u64) {
        return Err(wrong(file, "its header lies outside the file"));
    }
    let mut bytes = [0; HEADER_LENGTH];
    file.read_exact(footer.header_offset, &mut bytes)?;
    let fields = Fields(&bytes);
    if !bytes.starts_with(HEADER_MAGIC) || fields.be32(36) != checksum(&bytes, 36) {
        return Err(wrong(file, "its header is missing or does not add up"));
    }
    let block_size = u64::from(fields.be32(32));
    if !block_size.is_power_of_two() || !(SECTOR..=MAX_BLOCK_SIZE).contains(&block_size) {
        return Err(wrong(file, "its block size is impossible"));
    }
    let (table_offset, entries) = (fields.be64(16), u64::from(fields.be32(28)));
    let needed = footer.size.div_ceil(block_size);
    if entries < needed || needed > MAX_BLOCKS {
        return Err(wrong(file, "its size and its number of blocks do not fit each other"));
    }
    if table_offset < FOOTER_LENGTH as u64 || !inside(table_offset, entries * 4) {
        return Err(wrong(file, "its table lies outside the file"));
    }
    let mut table = vec![0; needed as usize * 4];
    file.read_exact(table_offset, &mut table)?;
    let table = table.chunks_exact(4).map(|entry| Fields(entry).be32(0)).collect();
    Ok(Dynamic { table_offset, block_size, table })
}

fn open(opening: Opening<'_>) -> Result<Arc<dyn DiskImage>, DiskError> {
    let Opening { file, access, .. } = opening;
    let fenced = FencedFile::new(Arc::clone(&file));
    let footer = read_footer(&fenced)?;
    match footer.kind {
        FIXED => {
            if fenced.len()? < footer.size {
                return Err(wrong(&fenced, "it is shorter than its size"));
            }
            let flat =
                Flat { file: fenced, access, format: Format::Vhd, start: 0, size: footer.size, info: ImageInfo::default() };
            Ok(Arc::new(flat))
        }
        DYNAMIC => {
            let dynamic = read_dynamic(&fenced, &footer)?;
            let bitmap_length = dynamic.bitmap_length();
            let block = |sector: &u32| match *sector {
                NO_BLOCK => Block::Absent,
                sector => Block::Stored(u64::from(sector) * SECTOR + bitmap_length),
            };
            let blocks = dynamic.table.iter().map(block).collect();
            let layout = Vhd {
                footer: footer.bytes,
                table_offset: dynamic.table_offset,
                block_size: dynamic.block_size,
                sector_bitmap: vec![0xff; bitmap_length as usize],
            };
            let (block_size, data_start) = (dynamic.block_size, dynamic.data_start());
            let opened = Opened {
                layout,
                size: footer.size,
                block_size,
                blocks,
                data_start,
                first_free: data_start,
                unwritten: Default::default(),
            };
            Ok(Arc::new(BlockTableDisk::new(file, access, opened)?))
        }
        DIFFERENCING => {
            Err(DiskError::Unsupported { feature: "a base (a differencing VHD)".into(), path: file.path().to_path_buf() })
        }
        kind => Err(wrong(&fenced, &format!("its kind {kind} does not exist"))),
    }
}

fn create(file: &dyn BlockFile, options: &CreateOptions) -> Result<(), DiskError> {
    let refuse = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: file.path().to_path_buf() };
    let host = |source| DiskError::host("create", file.path(), source);
    if options.backing.is_some() {
        return Err(refuse("A VHD disk cannot be built on another file here. Use qcow2 for that"));
    }
    // Sector numbers of blocks have 32 bits.
    if options.size > 2040 << 30 {
        return Err(refuse("A VHD disk cannot be larger than 2,040 GiB. Use VHDX or qcow2 for that"));
    }
    if options.preallocation != Preallocation::Off {
        let footer = footer(options.size, FIXED);
        file.truncate(options.size + FOOTER_LENGTH as u64).map_err(host)?;
        return file.write_at(options.size, &footer).map_err(host);
    }
    write_dynamic(file, options.size, BLOCK_SIZE)
}

/// Footer, header and table of a disk without blocks, and the footer again.
fn write_dynamic(file: &dyn BlockFile, size: u64, block_size: u64) -> Result<(), DiskError> {
    let footer = footer(size, DYNAMIC);
    let entries = size.div_ceil(block_size);
    let table_offset = (FOOTER_LENGTH + HEADER_LENGTH) as u64;
    let table_length = (entries * 4).next_multiple_of(SECTOR);
    let mut header = [0; HEADER_LENGTH];
    put(&mut header, 0, HEADER_MAGIC);
    put(&mut header, 8, &u64::MAX.to_be_bytes());
    put(&mut header, 16, &table_offset.to_be_bytes());
    put(&mut header, 24, &0x0001_0000_u32.to_be_bytes());
    put(&mut header, 28, &(entries as u32).to_be_bytes());
    put(&mut header, 32, &(block_size as u32).to_be_bytes());
    let sum = checksum(&header, 36);
    put(&mut header, 36, &sum.to_be_bytes());
    let mut start = footer.to_vec();
    start.extend(header);
    start.resize(start.len() + table_length as usize, 0xff);
    start.extend(footer);
    file.write_at(0, &start).map_err(|source| DiskError::host("create", file.path(), source))
}

fn footer(size: u64, kind: u32) -> [u8; FOOTER_LENGTH] {
    /// Seconds from 1970 to 2000, when VHD's time begins.
    const YEAR_2000: u64 = 946_684_800;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (cylinders, heads, sectors) = geometry(size);
    let mut footer = [0; FOOTER_LENGTH];
    put(&mut footer, 0, FOOTER_MAGIC);
    put(&mut footer, 8, &2_u32.to_be_bytes()); // features: none but the bit that is always set
    put(&mut footer, 12, &0x0001_0000_u32.to_be_bytes());
    put(&mut footer, 16, &if kind == FIXED { u64::MAX } else { FOOTER_LENGTH as u64 }.to_be_bytes());
    put(&mut footer, 24, &(now.saturating_sub(YEAR_2000) as u32).to_be_bytes());
    put(&mut footer, 28, CREATOR);
    put(&mut footer, 32, &0x0005_0003_u32.to_be_bytes());
    put(&mut footer, 36, b"Wi2k");
    put(&mut footer, 40, &size.to_be_bytes());
    put(&mut footer, 48, &size.to_be_bytes());
    put(&mut footer, 56, &cylinders.to_be_bytes());
    put(&mut footer, 58, &[heads, sectors]);
    put(&mut footer, 60, &kind.to_be_bytes());
    put(&mut footer, 68, uuid::Uuid::new_v4().as_bytes());
    let sum = checksum(&footer, 64);
    put(&mut footer, 64, &sum.to_be_bytes());
    footer
}

/// Cylinders, heads and sectors, as the specification's appendix finds them.
fn geometry(size: u64) -> (u16, u8, u8) {
    let total = (size / SECTOR).min(65535 * 16 * 255);
    if total >= 65535 * 16 * 63 {
        return ((total / 255 / 16) as u16, 16, 255);
    }
    let mut sectors = 17;
    let mut tracks = total / sectors;
    let mut heads = tracks.div_ceil(1024).max(4);
    if tracks >= heads * 1024 || heads > 16 {
        (sectors, heads) = (31, 16);
        tracks = total / sectors;
    }
    if tracks >= heads * 1024 {
        (sectors, heads) = (63, 16);
        tracks = total / sectors;
    }
    ((tracks / heads) as u16, heads as u8, sectors as u8)
}

/// Every entry points inside the file, and no two blocks share a place.
fn check(file: Arc<dyn BlockFile>, _repair: Repair) -> Result<CheckReport, DiskError> {
    let file = FencedFile::new(file);
    let footer = read_footer(&file)?;
    let end = file.len()?;
    if footer.kind == FIXED {
        let mut report = CheckReport { image_end: footer.size + FOOTER_LENGTH as u64, ..CheckReport::default() };
        if end < footer.size {
            report.error("the file is shorter than its disk".into());
        }
        return Ok(report);
    }
    let dynamic = read_dynamic(&file, &footer)?;
    let length = dynamic.bitmap_length() + dynamic.block_size;
    let mut report = CheckReport { total_clusters: dynamic.table.len() as u64, ..CheckReport::default() };
    let mut places: Vec<(u64, usize)> = Vec::new();
    for (index, sector) in dynamic.table.iter().enumerate().filter(|(_, sector)| **sector != NO_BLOCK) {
        report.allocated_clusters += 1;
        places.push((u64::from(*sector) * SECTOR, index));
    }
    places.sort_unstable();
    for (place, index) in &places {
        if *place < dynamic.data_start() {
            report.error(format!("block {index} lies in the headers"));
        } else if place + length > end {
            report.error(format!("block {index} lies past the end of the file"));
        }
        report.image_end = report.image_end.max(place + length);
    }
    for pair in places.windows(2).filter(|pair| pair[1].0 - pair[0].0 < length) {
        report.error(format!("block {} overlaps block {}", pair[1].1, pair[0].1));
    }
    Ok(report)
}

/// A dynamic disk with blocks smaller than anybody makes them, so that small files have many.
#[cfg(test)]
pub(crate) fn create_small(file: &dyn BlockFile, size: u64) {
    write_dynamic(file, size, 4096).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_follows_the_specification_at_its_turning_points() {
        assert_eq!(geometry(64 << 20), (963, 8, 17));
        assert_eq!(geometry(2 << 30), (4161, 16, 63));
        assert_eq!(geometry(2040 << 30), LARGEST_GEOMETRY);
    }
}
