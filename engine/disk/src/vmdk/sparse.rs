//! Sparse extents: grains, found by a directory of tables, usually kept twice.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::DiskError;
use crate::block_file::Access;
use crate::block_table::{Block, Grown, Growth, Layout, MAX_BLOCKS, Opened};
use crate::check::{CheckReport, Repair};
use crate::fenced_file::FencedFile;
use crate::fields::{Fields, put};
use crate::formats::Format;
use crate::image_info::{Identity, ImageInfo};
use crate::open::Backing;

use super::descriptor::{Descriptor, Parent};
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
    /// As it stands in the file.
    bytes: [u8; HEADER_LENGTH],
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
            bytes,
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

    /// Which of two different entries for one grain was written later: a grain is nothing at first, then perhaps zeros, and
    /// once it is stored it stays where it is.
    fn newer(&self, one: u32, two: u32) -> Option<u32> {
        let least = if self.has_zero_grains { ZERO_GRAIN } else { 0 };
        (one.min(two) <= least).then_some(one.max(two))
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
        Descriptor::embedded(file, offset, length)
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

/// A sparse extent.
pub(super) struct Sparse {
    state: Mutex<State>,
    /// What the extent says of itself, by its descriptor.
    describe: Describe,
}

/// What changes when the extent grows, or its descriptor changes.
struct State {
    header: SparseHeader,
    /// Where the grain tables are, in each of the directories.
    directories: Vec<Vec<u64>>,
    descriptor: Option<Descriptor>,
}

/// What a file says of itself, by its descriptor if it has one, and by its header.
pub(super) type Describe = Box<dyn Fn(Option<&Descriptor>, &SparseHeader) -> ImageInfo + Send + Sync>;

impl Sparse {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Layout for Sparse {
    fn format(&self) -> Format {
        Format::Vmdk
    }

    fn info(&self) -> ImageInfo {
        let state = self.state();
        (self.describe)(state.descriptor.as_ref(), &state.header)
    }

    fn entries(&self, index: usize, block: Block) -> Vec<(u64, Vec<u8>)> {
        let (table, entry) = (index / TABLE_ENTRIES as usize, index % TABLE_ENTRIES as usize);
        let sector = match block {
            Block::Absent => 0,
            Block::Zero => ZERO_GRAIN,
            Block::Stored(place) | Block::Partial(place) => (place / SECTOR) as u32,
        };
        let at =
            |directory: &Vec<u64>| directory.get(table).map(|table| (table + entry as u64 * 4, sector.to_le_bytes().to_vec()));
        self.state().directories.iter().filter_map(at).collect()
    }

    fn max_place(&self) -> u64 {
        u64::from(u32::MAX) * SECTOR
    }

    fn keeps_zeros(&self) -> bool {
        self.state().header.has_zero_grains
    }

    fn begin_change(&self, file: &FencedFile) -> Result<(), DiskError> {
        self.state().descriptor.as_mut().map_or(Ok(()), |descriptor| descriptor.begin_change(file))
    }

    /// New directories, which lead to the old grain tables and to new ones, are written behind the end; then the header's
    /// one sector leads there. The descriptor says the size too, but nobody goes by that.
    fn grow(&self, file: &FencedFile, growth: Growth) -> Result<Grown, DiskError> {
        let Growth { size, old_blocks, blocks, .. } = growth;
        let mut state = self.state();
        let Some(descriptor) = &state.descriptor else {
            let reason = "A VMDK disk of several files cannot change its size. Convert it to a new one".into();
            return Err(DiskError::BadOptions { reason, path: file.path().to_path_buf() });
        };
        descriptor.check_last_extent(file, size / SECTOR)?;
        let start = file.len()?.next_multiple_of(SECTOR);
        let mut directories = state.directories.clone();
        let mut places = Vec::new();
        let mut tail = Vec::new();
        for directory in &mut directories {
            let new_tables = blocks.div_ceil(TABLE_ENTRIES) - directory.len() as u64;
            // In the last of the old tables entries behind the old end may be anything.
            if let (Some(last), used @ 1..) = (directory.last(), old_blocks % TABLE_ENTRIES) {
                file.write_at(last + used * 4, &vec![0; ((TABLE_ENTRIES - used) * 4) as usize])?;
            }
            let directory_length = (blocks.div_ceil(TABLE_ENTRIES) * 4).next_multiple_of(SECTOR);
            places.push(start + tail.len() as u64);
            let tables_at = start + tail.len() as u64 + directory_length;
            directory.extend((0..new_tables).map(|number| tables_at + number * TABLE_ENTRIES * 4));
            let from = tail.len();
            tail.extend(directory.iter().flat_map(|table| ((table / SECTOR) as u32).to_le_bytes()));
            tail.resize(from + (directory_length + new_tables * TABLE_ENTRIES * 4) as usize, 0);
        }
        let end = start + tail.len() as u64;
        if end > self.max_place() {
            return Err(DiskError::FormatFull { path: file.path().to_path_buf() });
        }
        file.write_at(start, &tail)?;
        file.flush()?;
        let mut header = state.header.clone();
        header.capacity = size;
        put(&mut header.bytes, 12, &(size / SECTOR).to_le_bytes());
        if let Some(place) = places.first() {
            header.directory = *place;
            put(&mut header.bytes, 56, &(place / SECTOR).to_le_bytes());
        }
        if let Some(place) = places.get(1) {
            header.redundant = Some(*place);
            put(&mut header.bytes, 48, &(place / SECTOR).to_le_bytes());
        }
        file.write_at(0, &header.bytes)?;
        file.flush()?;
        (state.header, state.directories) = (header, directories);
        if let Some(descriptor) = &mut state.descriptor {
            descriptor.set_last_extent(file, size / SECTOR)?;
        }
        Ok(Grown { end, new_blocks: Vec::new() })
    }

    fn set_base(&self, file: &FencedFile, base: Option<(&Backing, Identity)>, _end: &mut u64) -> Result<(), DiskError> {
        let parent = base.map(|(backing, identity)| Parent { cid: identity.content as u32, name: backing.name.clone() });
        match &mut self.state().descriptor {
            Some(descriptor) => descriptor.set_parent(file, parent),
            None => Err(DiskError::NotPossible { title: super::DRIVER.title, action: "be built on another disk" }),
        }
    }

    fn absent_is_present(&self) -> bool {
        false
    }
}

pub(super) fn read(
    file: &FencedFile,
    header: SparseHeader,
    descriptor: Option<Descriptor>,
    access: Access,
    describe: Describe,
) -> Result<Opened<Sparse>, DiskError> {
    let main = header.directory(file, header.directory)?;
    let mut grains = header.grains(file, &main)?;
    let mut directories = vec![main];
    let mut unwritten = BTreeSet::new();
    if let Some(place) = header.redundant {
        let other = header.directory(file, place)?;
        for (index, (one, two)) in grains.iter_mut().zip(header.grains(file, &other)?).enumerate() {
            if *one == two {
                continue;
            }
            match header.newer(*one, two) {
                // A crash came between the two writes. What the newer entry points at is there.
                Some(newer) => {
                    *one = newer;
                    unwritten.insert(index);
                }
                None if access == Access::ReadOnly => {}
                None => {
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
    unwritten.retain(|index| grains.get(*index).is_some_and(|grain| *grain != 0));
    let blocks = grains.iter().map(block).collect();
    if access == Access::ReadWrite && directories.iter().flatten().any(|table| *table == 0) {
        return Err(unsupported(file, "grain tables that are made only when they are needed; it can be read"));
    }
    let data_start = header.overhead.max(HEADER_LENGTH as u64);
    let first_free = file.len()?.next_multiple_of(SECTOR);
    let mut reserved: Vec<(u64, u64)> =
        directories.iter().flatten().filter(|table| **table > 0).map(|table| (*table, TABLE_ENTRIES * 4)).collect();
    if let Some((start, length)) = descriptor.as_ref().map(Descriptor::region) {
        // The descriptor is written to as well.
        let directories = [Some(header.directory), header.redundant].into_iter().flatten();
        let others = directories.map(|place| (place, header.tables() * 4)).chain([(0, HEADER_LENGTH as u64)]);
        let is_hit = |(place, size): (u64, u64)| place < start.saturating_add(length) && start < place.saturating_add(size);
        if access == Access::ReadWrite && others.chain(reserved.iter().copied()).any(is_hit) {
            let advice = "Open it read-only and copy what is there";
            let detail = "its descriptor lies in its tables".into();
            return Err(DiskError::Damaged { detail, advice, path: file.path().into() });
        }
        reserved.push((start, length));
    }
    let (size, block_size) = (header.capacity, header.grain);
    let layout = Sparse { state: Mutex::new(State { header, directories, descriptor }), describe };
    Ok(Opened { first_free, reserved, unwritten, ..Opened::new(layout, size, block_size, blocks, data_start) })
}

pub(super) fn check(file: &FencedFile, header: &SparseHeader, repair: Repair) -> Result<CheckReport, DiskError> {
    let main = header.directory(file, header.directory)?;
    let mut grains = header.grains(file, &main)?;
    let end = file.len()?;
    let mut report = CheckReport { total_clusters: grains.len() as u64, ..CheckReport::default() };
    if let Some(place) = header.redundant {
        let other = header.directory(file, place)?;
        for (index, (one, two)) in grains.iter_mut().zip(header.grains(file, &other)?).enumerate() {
            if *one == two {
                continue;
            }
            match header.newer(*one, two) {
                // Left by a crash between the two writes; also put right as soon as somebody writes.
                Some(newer) => {
                    *one = newer;
                    report.note_with(|| format!("only one of the two tables has grain {index}"));
                    if repair == Repair::Nothing {
                        report.leaks += 1;
                        continue;
                    }
                    let (table, entry) = (index / TABLE_ENTRIES as usize, index as u64 % TABLE_ENTRIES);
                    let tables = [&main, &other].map(|directory| directory.get(table).copied().unwrap_or(0));
                    for table in tables.into_iter().filter(|table| *table > 0) {
                        file.write_at(table + entry * 4, &newer.to_le_bytes())?;
                    }
                    report.leaks_fixed += 1;
                }
                None => report.error_with(|| format!("the two tables do not agree about grain {index}")),
            }
        }
    }
    if report.leaks_fixed > 0 {
        file.flush()?;
    }
    let is_stored = |entry: &&u32| **entry > ZERO_GRAIN || **entry == ZERO_GRAIN && !header.has_zero_grains;
    let mut places: Vec<u64> = grains.iter().filter(is_stored).map(|sector| u64::from(*sector) * SECTOR).collect();
    places.sort_unstable();
    report.allocated_clusters = places.len() as u64;
    let least = if header.is_compressed { SECTOR } else { header.grain };
    for pair in places.windows(2).filter(|pair| pair[1] - pair[0] < least) {
        report.error_with(|| format!("two grains share the place {:#x}", pair[1]));
    }
    for place in &places {
        if *place >= end {
            report.error_with(|| format!("a grain lies past the end of the file, at {place:#x}"));
        }
        report.image_end = report.image_end.max(place + least);
    }
    if header.is_compressed {
        report.compressed_clusters = report.allocated_clusters;
    }
    Ok(report)
}
