//! Sparse extents: grains, found by a directory of tables, usually kept twice.

use std::collections::BTreeSet;

use crate::DiskError;
use crate::block_file::Access;
use crate::block_table::{Block, Layout, MAX_BLOCKS, Opened};
use crate::check::CheckReport;
use crate::fenced_file::FencedFile;
use crate::fields::Fields;
use crate::formats::Format;
use crate::image_info::ImageInfo;

use super::descriptor::Descriptor;
use super::{SECTOR, unsupported, wrong};

pub(super) const MAGIC: &[u8] = b"KDMV";
pub(super) const HEADER_LENGTH: usize = 512;
/// Entries of a grain table; other numbers are allowed by nobody's writer.
pub(super) const TABLE_ENTRIES: u64 = 512;
const MAX_GRAIN: u64 = 64 << 20;
/// Stands in the header of a stream: the directory's place is told by the footer.
pub(super) const AT_END: u64 = u64::MAX;
/// The footer and the end-of-stream marker behind it.
pub(super) const FOOTER_FROM_END: u64 = 1024;

pub(super) const HAS_NEWLINE_TEST: u32 = 1 << 0;
pub(super) const HAS_REDUNDANT_TABLE: u32 = 1 << 1;
pub(super) const HAS_ZERO_GRAINS: u32 = 1 << 2;
pub(super) const IS_COMPRESSED: u32 = 1 << 16;
pub(super) const HAS_MARKERS: u32 = 1 << 17;
/// Line ends of every kind: a transfer as text would spoil them.
pub(super) const NEWLINE_TEST: [u8; 4] = [b'\n', b' ', b'\r', b'\n'];
const ZERO_GRAIN: u32 = 1;

/// The header, checked. Sizes and places in bytes.
#[derive(Clone, Debug)]
pub(super) struct SparseHeader {
    pub(super) capacity: u64,
    pub(super) grain: u64,
    descriptor: Option<(u64, u64)>,
    redundant: Option<u64>,
    pub(super) directory: u64,
    pub(super) overhead: u64,
    has_zero_grains: bool,
    pub(super) is_compressed: bool,
}

impl SparseHeader {
    pub(super) fn read(file: &FencedFile) -> Result<Self, DiskError> {
        let end = file.len()?;
        let mut bytes = [0; HEADER_LENGTH];
        file.read_zero_padded(0, &mut bytes)?;
        let is_stream = Fields(&bytes).le64(56) == AT_END;
        let descriptor = (Fields(&bytes).le64(28), Fields(&bytes).le64(36));
        if is_stream {
            let Some(footer) = end.checked_sub(FOOTER_FROM_END) else { return Err(wrong(file, "its footer is missing")) };
            file.read_exact(footer, &mut bytes)?;
        }
        let fields = Fields(&bytes);
        if !bytes.starts_with(MAGIC) {
            return Err(wrong(file, if is_stream { "its footer is missing" } else { "its signature is missing" }));
        }
        let (version, flags) = (fields.le32(4), fields.le32(8));
        if !(1..=3).contains(&version) {
            return Err(unsupported(file, format!("VMDK version {version}")));
        }
        if flags & HAS_NEWLINE_TEST != 0 && bytes[73..77] != NEWLINE_TEST {
            return Err(wrong(file, "its line ends were changed on the way, as if it were text"));
        }
        let is_compressed = flags & IS_COMPRESSED != 0;
        if is_compressed && fields.le16(77) != 1 {
            return Err(unsupported(file, "a compression that is newer than this program"));
        }
        let bytes_of = |at: usize| fields.le64(at).checked_mul(SECTOR).filter(|place| *place <= i64::MAX as u64);
        let (Some(capacity), Some(grain), Some(directory)) = (bytes_of(12), bytes_of(20), bytes_of(56)) else {
            return Err(wrong(file, "a size in its header is impossible"));
        };
        if !grain.is_power_of_two() || !(8 * SECTOR..=MAX_GRAIN).contains(&grain) {
            return Err(wrong(file, "its grain size is impossible"));
        }
        if u64::from(fields.le32(44)) != TABLE_ENTRIES {
            return Err(wrong(file, "the size of its grain tables is impossible"));
        }
        if capacity.div_ceil(grain) > MAX_BLOCKS {
            return Err(wrong(file, "it has too many grains"));
        }
        let header = Self {
            capacity,
            grain,
            descriptor: descriptor.0.checked_mul(SECTOR).zip(descriptor.1.checked_mul(SECTOR)).filter(|(at, _)| *at > 0),
            redundant: bytes_of(48).filter(|place| flags & HAS_REDUNDANT_TABLE != 0 && *place > 0),
            directory,
            overhead: bytes_of(64).unwrap_or(0),
            has_zero_grains: flags & HAS_ZERO_GRAINS != 0,
            is_compressed,
        };
        let length = header.tables() * 4;
        for place in [Some(directory), header.redundant].into_iter().flatten() {
            if place < HEADER_LENGTH as u64 || place.checked_add(length).is_none_or(|stop| stop > end) {
                return Err(wrong(file, "its directory lies outside the file"));
            }
        }
        Ok(header)
    }

    /// How many grain tables there are.
    pub(super) fn tables(&self) -> u64 {
        self.capacity.div_ceil(self.grain).div_ceil(TABLE_ENTRIES)
    }

    /// The descriptor in the file itself; an extent of a split disk has none.
    pub(super) fn embedded_descriptor(&self, file: &FencedFile) -> Result<Descriptor, DiskError> {
        let Some((offset, length)) = self.descriptor else {
            return Err(unsupported(file, "an extent without its descriptor; open the descriptor instead"));
        };
        if offset.checked_add(length).is_none_or(|end| end > i64::MAX as u64) {
            return Err(wrong(file, "its descriptor lies outside the file"));
        }
        Descriptor::read(file, offset, length)
    }

    /// Where the grain tables lie, by one of the directories; 0 where one is missing.
    pub(super) fn directory(&self, file: &FencedFile, place: u64) -> Result<Vec<u64>, DiskError> {
        let mut bytes = vec![0; self.tables() as usize * 4];
        file.read_exact(place, &mut bytes)?;
        let tables: Vec<u64> = bytes.chunks_exact(4).map(|entry| u64::from(Fields(entry).le32(0)) * SECTOR).collect();
        let end = file.len()?;
        if tables.iter().any(|table| *table != 0 && (*table < HEADER_LENGTH as u64 || table + TABLE_ENTRIES * 4 > end)) {
            return Err(wrong(file, "a grain table lies outside the file"));
        }
        Ok(tables)
    }

    /// The entries of all grains, as sector numbers.
    pub(super) fn grains(&self, file: &FencedFile, directory: &[u64]) -> Result<Vec<u32>, DiskError> {
        let count = self.capacity.div_ceil(self.grain) as usize;
        let mut grains = Vec::with_capacity(directory.len() * TABLE_ENTRIES as usize);
        let mut bytes = vec![0; TABLE_ENTRIES as usize * 4];
        for table in directory {
            match table {
                0 => bytes.fill(0),
                table => file.read_exact(*table, &mut bytes)?,
            }
            grains.extend(bytes.chunks_exact(4).map(|entry| Fields(entry).le32(0)));
        }
        grains.truncate(count);
        Ok(grains)
    }
}

/// A writable sparse extent.
pub(super) struct Sparse {
    directories: Vec<Vec<u64>>,
    info: ImageInfo,
}

impl Layout for Sparse {
    fn format(&self) -> Format {
        Format::Vmdk
    }

    fn info(&self) -> ImageInfo {
        self.info.clone()
    }

    fn entries(&self, index: usize, place: u64) -> Vec<(u64, Vec<u8>)> {
        let (table, entry) = (index / TABLE_ENTRIES as usize, index % TABLE_ENTRIES as usize);
        let bytes = ((place / SECTOR) as u32).to_le_bytes();
        let at = |directory: &Vec<u64>| directory.get(table).map(|table| (table + entry as u64 * 4, bytes.to_vec()));
        self.directories.iter().filter_map(at).collect()
    }

    fn max_place(&self) -> u64 {
        u64::from(u32::MAX) * SECTOR
    }

    fn absent_is_present(&self) -> bool {
        false
    }
}

pub(super) fn read(
    file: &FencedFile,
    header: SparseHeader,
    access: Access,
    info: ImageInfo,
) -> Result<Opened<Sparse>, DiskError> {
    let main = header.directory(file, header.directory)?;
    let mut grains = header.grains(file, &main)?;
    let mut directories = vec![main];
    let mut unwritten = BTreeSet::new();
    if let Some(place) = header.redundant {
        let other = header.directory(file, place)?;
        for (index, (one, two)) in grains.iter_mut().zip(header.grains(file, &other)?).enumerate() {
            match (*one, two) {
                (one, two) if one == two => {}
                // A crash came between the two writes. What an entry points at is there, so the one that has it is right.
                (0, two) => {
                    *one = two;
                    unwritten.insert(index);
                }
                (_, 0) => {
                    unwritten.insert(index);
                }
                _ if access == Access::ReadOnly => {}
                _ => {
                    let advice = "Open it read-only and copy what is there";
                    let detail = "its two tables do not agree".into();
                    return Err(DiskError::Damaged { detail, advice, path: file.path().into() });
                }
            }
        }
        directories.push(other);
    }
    let block = |entry: &u32| match *entry {
        0 => Block::Absent,
        ZERO_GRAIN if header.has_zero_grains => Block::Zero,
        sector => Block::Stored(u64::from(sector) * SECTOR),
    };
    let blocks: Vec<Block> = grains.iter().map(block).collect();
    unwritten.retain(|index| matches!(blocks.get(*index), Some(Block::Stored(_))));
    if access == Access::ReadWrite && directories.iter().flatten().any(|table| *table == 0) {
        return Err(unsupported(file, "grain tables that are made only when they are needed; it can be read"));
    }
    let data_start = header.overhead.max(HEADER_LENGTH as u64);
    let first_free = file.len()?.next_multiple_of(SECTOR);
    let layout = Sparse { directories, info };
    Ok(Opened { layout, size: header.capacity, block_size: header.grain, blocks, data_start, first_free, unwritten })
}

pub(super) fn check(file: &FencedFile, header: &SparseHeader) -> Result<CheckReport, DiskError> {
    let main = header.directory(file, header.directory)?;
    let grains = header.grains(file, &main)?;
    let end = file.len()?;
    let mut report = CheckReport { total_clusters: grains.len() as u64, ..CheckReport::default() };
    if let Some(place) = header.redundant {
        let other = header.directory(file, place)?;
        for (index, (one, two)) in grains.iter().zip(header.grains(file, &other)?).enumerate() {
            match (*one, two) {
                (one, two) if one == two => {}
                // Left by a crash between the two writes; put right as soon as somebody writes.
                (0, _) | (_, 0) => {
                    report.leaks += 1;
                    report.note(format!("only one of the two tables has grain {index}"));
                }
                _ => report.error(format!("the two tables do not agree about grain {index}")),
            }
        }
    }
    let is_stored = |entry: &&u32| **entry > ZERO_GRAIN || **entry == ZERO_GRAIN && !header.has_zero_grains;
    let mut places: Vec<u64> = grains.iter().filter(is_stored).map(|sector| u64::from(*sector) * SECTOR).collect();
    places.sort_unstable();
    report.allocated_clusters = places.len() as u64;
    let least = if header.is_compressed { SECTOR } else { header.grain };
    for pair in places.windows(2).filter(|pair| pair[1] - pair[0] < least) {
        report.error(format!("two grains share the place {:#x}", pair[1]));
    }
    for place in &places {
        if *place >= end {
            report.error(format!("a grain lies past the end of the file, at {place:#x}"));
        }
        report.image_end = report.image_end.max(place + least);
    }
    if header.is_compressed {
        report.compressed_clusters = report.allocated_clusters;
    }
    Ok(report)
}
