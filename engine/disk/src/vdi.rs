//! VDI, VirtualBox's disk: blocks of one mebibyte and a table of them.
//!
//! Done: dynamic and fixed disks, read and written. Differencing disks name their base by an identifier that only
//! VirtualBox's own register can turn into a file, so they are refused.
//! See: the structures in VirtualBox's documentation of VDI; limits as QEMU sets them.

use std::sync::Arc;

use crate::DiskError;
use crate::block_file::BlockFile;
use crate::block_table::{Block, BlockTableDisk, Layout, MAX_BLOCKS, Opened};
use crate::check::{CheckReport, Repair};
use crate::fenced_file::FencedFile;
use crate::fields::{Fields, put};
use crate::formats::{Driver, Format, Opening};
use crate::image_info::ImageInfo;
use crate::open::{CreateOptions, Preallocation};

pub(crate) const DRIVER: Driver = Driver {
    format: Format::Vdi,
    name: "vdi",
    title: "VDI disk",
    recognise: |head| Fields(head).le32(0x40) == SIGNATURE,
    open: |opening| {
        let Opening { file, access, .. } = opening;
        let opened = read(&FencedFile::new(Arc::clone(&file)))?;
        Ok(Arc::new(BlockTableDisk::new(file, access, opened)?))
    },
    create: Some(create),
    check: Some(check),
    has_snapshots: false,
    writable: true,
};

const SIGNATURE: u32 = 0xbeda_107f;
const VERSION: u32 = 0x0001_0001;
const HEADER_LENGTH: usize = 512;
/// How much of the header its length field counts: from that field on, all up to the identifiers' end.
const COUNTED_LENGTH: u32 = 0x180;
const TEXT: &[u8] = b"<<< Bellglass Virtual Disk Image >>>\n";
const BLOCK_SIZE: u64 = 1 << 20;
const DYNAMIC: u32 = 1;
const FIXED: u32 = 2;

const AT_SIZE: u64 = 0x170;
const AT_BLOCKS_ALLOCATED: u64 = 0x184;
const NO_BLOCK: u32 = 0xffff_ffff;
const ZERO_BLOCK: u32 = 0xffff_fffe;

struct Vdi {
    map_offset: u64,
    data_offset: u64,
    is_fixed: bool,
}

impl Layout for Vdi {
    fn format(&self) -> Format {
        Format::Vdi
    }

    fn info(&self) -> ImageInfo {
        ImageInfo { cluster_size: Some(BLOCK_SIZE), ..ImageInfo::default() }
    }

    fn entries(&self, index: usize, place: u64) -> Vec<(u64, Vec<u8>)> {
        let number = ((place - self.data_offset) / BLOCK_SIZE) as u32;
        vec![(self.map_offset + index as u64 * 4, number.to_le_bytes().to_vec())]
    }

    fn alignment(&self) -> u64 {
        // The first block lies at `data_offset`, which need not be a multiple of the block size; all others follow it.
        1
    }

    fn grow(&self, file: &FencedFile, size: u64, old_blocks: u64, blocks: u64) -> Result<(), DiskError> {
        let refuse = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: file.path().to_path_buf() };
        if self.is_fixed {
            return Err(refuse("A fixed VDI disk cannot grow. Convert it to a dynamic one"));
        }
        if self.map_offset + blocks * 4 > self.data_offset {
            return Err(refuse("This VDI disk has no room for a larger table. Convert it to a new one"));
        }
        let unused: Vec<u8> = (old_blocks..blocks).flat_map(|_| NO_BLOCK.to_le_bytes()).collect();
        file.write_at(self.map_offset + old_blocks * 4, &unused)?;
        file.flush()?;
        // Size, block size, bytes beside each block, and number of blocks stand side by side in one sector.
        let mut fields = [0; 20];
        put(&mut fields, 0, &size.to_le_bytes());
        put(&mut fields, 8, &(BLOCK_SIZE as u32).to_le_bytes());
        put(&mut fields, 16, &(blocks as u32).to_le_bytes());
        file.write_at(AT_SIZE, &fields)?;
        file.flush()
    }

    /// The count first: a table that knows more blocks than the header counts is damaged to others.
    fn before_entries(&self, file: &FencedFile, end: u64, _stored: u64) -> Result<(), DiskError> {
        let count = (end.saturating_sub(self.data_offset) / BLOCK_SIZE) as u32;
        file.write_at(AT_BLOCKS_ALLOCATED, &count.to_le_bytes())
    }
}

/// The header's figures, checked as far as they concern only each other.
struct Header {
    map_offset: u64,
    data_offset: u64,
    size: u64,
    blocks: u64,
    allocated: u64,
    is_fixed: bool,
}

fn read_header(file: &FencedFile) -> Result<Header, DiskError> {
    let wrong = |detail: &str| DiskError::WrongFormat { expected: DRIVER.title, detail: detail.into(), path: file.path().into() };
    let unsupported = |feature: String| DiskError::Unsupported { feature, path: file.path().into() };
    let mut bytes = [0; HEADER_LENGTH];
    file.read_zero_padded(0, &mut bytes)?;
    let fields = Fields(&bytes);
    if fields.le32(0x40) != SIGNATURE {
        return Err(wrong("its signature is missing"));
    }
    if fields.le32(0x44) != VERSION {
        return Err(unsupported(format!("VDI version {}.{}", fields.le32(0x44) >> 16, fields.le32(0x44) & 0xffff)));
    }
    match fields.le32(0x4c) {
        DYNAMIC | FIXED => {}
        3 | 4 => return Err(unsupported("a base that only VirtualBox's register can find".into())),
        kind => return Err(wrong(&format!("its kind {kind} does not exist"))),
    }
    let (sector_size, block_size) = (fields.le32(0x168), fields.le32(0x178));
    if sector_size != 512 {
        return Err(unsupported(format!("sectors of {sector_size} bytes")));
    }
    if u64::from(block_size) != BLOCK_SIZE || fields.le32(0x17c) != 0 {
        return Err(unsupported(format!("blocks of {block_size} bytes with {} more", fields.le32(0x17c))));
    }
    if fields.id(0x1a8) != [0; 16] || fields.id(0x1b8) != [0; 16] {
        return Err(unsupported("a base that only VirtualBox's register can find".into()));
    }
    let header = Header {
        map_offset: fields.le32(0x154).into(),
        data_offset: fields.le32(0x158).into(),
        size: fields.le64(0x170),
        blocks: fields.le32(0x180).into(),
        allocated: fields.le32(0x184).into(),
        is_fixed: fields.le32(0x4c) == FIXED,
    };
    let end = file.len()?;
    let map_end = header.map_offset + header.blocks * 4;
    if header.blocks > MAX_BLOCKS || header.size > header.blocks * BLOCK_SIZE {
        return Err(wrong("its size and its number of blocks do not fit each other"));
    }
    if header.map_offset < HEADER_LENGTH as u64 || map_end > header.data_offset || map_end > end {
        return Err(wrong("its table lies outside the file, or in its other parts"));
    }
    Ok(header)
}

fn read_map(file: &FencedFile, header: &Header) -> Result<Vec<u32>, DiskError> {
    let mut bytes = vec![0; header.blocks as usize * 4];
    file.read_exact(header.map_offset, &mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|entry| Fields(entry).le32(0)).collect())
}

fn read(file: &FencedFile) -> Result<Opened<Vdi>, DiskError> {
    let header = read_header(file)?;
    let needed = header.size.div_ceil(BLOCK_SIZE) as usize;
    let block = |entry: u32| match entry {
        NO_BLOCK => Block::Absent,
        ZERO_BLOCK => Block::Zero,
        number => Block::Stored(header.data_offset + u64::from(number) * BLOCK_SIZE),
    };
    let blocks = read_map(file, &header)?.into_iter().take(needed).map(block).collect();
    let layout = Vdi { map_offset: header.map_offset, data_offset: header.data_offset, is_fixed: header.is_fixed };
    let data_start = header.data_offset;
    Ok(Opened {
        layout,
        size: header.size,
        block_size: BLOCK_SIZE,
        blocks,
        data_start,
        first_free: data_start,
        unwritten: Default::default(),
    })
}

fn create(file: &dyn BlockFile, options: &CreateOptions) -> Result<(), DiskError> {
    let refuse = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: file.path().to_path_buf() };
    let host = |source| DiskError::host("create", file.path(), source);
    if options.backing.is_some() {
        return Err(refuse("A VDI disk cannot be built on another file. Use qcow2 for that"));
    }
    let blocks = options.size.div_ceil(BLOCK_SIZE);
    if blocks > MAX_BLOCKS {
        return Err(refuse("This is larger than a VDI disk of ours can be (16 TiB). Choose a smaller size, or qcow2"));
    }
    let is_fixed = options.preallocation != Preallocation::Off;
    let allocated = if is_fixed { blocks } else { 0 };
    // Room for the table to grow: the hole between costs nothing.
    let data_offset = (HEADER_LENGTH as u64 + blocks * 4).next_multiple_of(BLOCK_SIZE);
    let mut header = [0; HEADER_LENGTH];
    put(&mut header, 0, TEXT);
    for (at, value) in [
        (0x40, SIGNATURE),
        (0x44, VERSION),
        (0x48, COUNTED_LENGTH),
        (0x4c, if is_fixed { FIXED } else { DYNAMIC }),
        (0x154, HEADER_LENGTH as u32),
        (0x158, data_offset as u32),
        (0x168, 512),
        (0x178, BLOCK_SIZE as u32),
        (0x180, blocks as u32),
        (0x184, allocated as u32),
    ] {
        put(&mut header, at, &value.to_le_bytes());
    }
    put(&mut header, 0x170, &options.size.to_le_bytes());
    put(&mut header, 0x188, uuid::Uuid::new_v4().as_bytes());
    put(&mut header, 0x198, uuid::Uuid::new_v4().as_bytes());
    let entry = |number: u32| if is_fixed { number } else { NO_BLOCK };
    let map: Vec<u8> = (0..blocks as u32).flat_map(|number| entry(number).to_le_bytes()).collect();
    file.truncate(data_offset + allocated * BLOCK_SIZE).map_err(host)?;
    file.write_at(HEADER_LENGTH as u64, &map).map_err(host)?;
    file.write_at(0, &header).map_err(host)
}

/// Every entry points inside the file, at a place of its own, and as many as the header counts.
fn check(file: Arc<dyn BlockFile>, repair: Repair) -> Result<CheckReport, DiskError> {
    let file = FencedFile::new(file);
    let header = read_header(&file)?;
    let end = file.len()?;
    let mut report = CheckReport { total_clusters: header.blocks, ..CheckReport::default() };
    let mut seen = std::collections::HashSet::new();
    for (index, number) in read_map(&file, &header)?.into_iter().enumerate() {
        if number >= ZERO_BLOCK {
            continue;
        }
        report.allocated_clusters += 1;
        let place = header.data_offset + u64::from(number) * BLOCK_SIZE;
        if place >= end {
            report.error(format!("block {index} lies past the end of the file"));
        } else if !seen.insert(number) {
            report.error(format!("block {index} shares its place with another"));
        }
        report.image_end = report.image_end.max(place + BLOCK_SIZE);
    }
    let known = u64::from(seen.iter().copied().max().map_or(0, |last| last + 1));
    if known > header.allocated {
        report.error(format!("the header counts {} blocks, and the table has {known}", header.allocated));
    }
    // Written before a crash, and never found its way into the table.
    report.leaks = header.allocated.max(known).saturating_sub(report.allocated_clusters);
    if repair != Repair::Nothing && header.allocated != known && report.errors <= 1 {
        file.write_at(AT_BLOCKS_ALLOCATED, &(known as u32).to_le_bytes())?;
        file.flush()?;
        // Where two entries share a block, fewer are known than entries have one.
        let still = known.saturating_sub(report.allocated_clusters);
        (report.leaks_fixed, report.leaks) = (report.leaks.saturating_sub(still), still);
        if known > header.allocated {
            (report.errors_fixed, report.errors) = (1, report.errors - 1);
        }
    }
    Ok(report)
}
