//! Making an empty VHDX file.

use crate::DiskError;
use crate::block_file::BlockFile;
use crate::block_table::MAX_BLOCKS;
use crate::fields::put;
use crate::formats::Format;
#[cfg(test)]
use crate::open::Backing;
use crate::open::{CreateOptions, Preallocation};
use crate::parent::identify;

use super::base_locator::BaseLocator;
use super::header::{
    FILE_MAGIC, HEADER_LENGTH, HEADER_MAGIC, HEADER_PLACES, MAX_LOG, METADATA_REGION, REGION_MAGIC, REGION_PLACES,
    REGION_TABLE_LENGTH, TABLE_REGION, sum,
};
use super::metadata::{
    BASE_LOCATOR, DISK_ID, DISK_SIZE, FILE_PARAMETERS, HAS_BASE, LOGICAL_SECTOR, MAX_BLOCK_SIZE, OF_DISK, PHYSICAL_SECTOR,
    REQUIRED, TABLE_LENGTH, TABLE_MAGIC, entry,
};
use super::{FULLY_PRESENT, MIB, ZERO, chunk_ratio, table_entries, table_index};

/// What only a VHDX disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VhdxOptions {
    /// Bytes of a block, a power of two from 1 to 256 MiB. `None`: what suits the size.
    pub block_size: Option<u64>,
    /// Bytes of the log, a multiple of 1 MiB.
    pub log_size: u64,
    /// Whether blocks that were never written are called zeros, as QEMU does, instead of not present.
    pub absent_is_zero: bool,
}

impl Default for VhdxOptions {
    fn default() -> Self {
        Self { block_size: None, log_size: MIB, absent_is_zero: false }
    }
}

/// Where things lie: the log, the description, the table, then blocks.
const LOG_OFFSET: u64 = MIB;
const METADATA_LENGTH: u64 = MIB;
const SECTOR_SIZE: u64 = 512;
const PHYSICAL_SECTOR_SIZE: u32 = 4096;
const MAX_SIZE: u64 = 64 << 40;
/// As Hyper-V makes them: what is copied on write is a sector anyway.
const DIFFERENCING_BLOCK_SIZE: u64 = 2 * MIB;

pub(super) fn create(file: &dyn BlockFile, options: &CreateOptions) -> Result<(), DiskError> {
    let refuse = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: file.path().to_path_buf() };
    let host = |source| DiskError::host("create", file.path(), source);
    if options.size > MAX_SIZE {
        return Err(refuse("A VHDX disk cannot be larger than 64 TiB"));
    }
    let VhdxOptions { block_size, log_size, absent_is_zero } = options.vhdx;
    if block_size.is_some_and(|size| !size.is_power_of_two() || !(MIB..=MAX_BLOCK_SIZE).contains(&size)) {
        return Err(refuse("The blocks of a VHDX disk must be a power of two from 1 to 256 MiB long"));
    }
    if log_size == 0 || !log_size.is_multiple_of(MIB) || log_size > MAX_LOG {
        return Err(refuse("The log of a VHDX disk must be a multiple of 1 MiB long, and at most 64 MiB"));
    }
    let is_fixed = options.preallocation != Preallocation::Off;
    let shape = match &options.backing {
        None => {
            let block_size = block_size.unwrap_or(usual_block_size(options.size));
            Shape { size: options.size, block_size, log_size, is_fixed, absent_is_zero, base: None }
        }
        Some(_) if is_fixed => return Err(refuse("A fixed VHDX disk cannot be built on another file. Use a dynamic one")),
        Some(backing) => {
            let (identity, _) = identify(file.path(), backing, Format::Vhdx)?;
            let base = Some(BaseLocator::new(backing, identity));
            let block_size = block_size.unwrap_or(DIFFERENCING_BLOCK_SIZE);
            // Zeros would hide the base.
            Shape { size: options.size, block_size, log_size, is_fixed, absent_is_zero: false, base }
        }
    };
    if shape.size.div_ceil(shape.block_size) > MAX_BLOCKS {
        return Err(refuse("This VHDX disk would have too many blocks. Choose larger ones, or use qcow2"));
    }
    write_empty(file, &shape).map_err(host)
}

/// What an empty disk is to be.
struct Shape {
    size: u64,
    block_size: u64,
    log_size: u64,
    is_fixed: bool,
    absent_is_zero: bool,
    base: Option<BaseLocator>,
}

impl Shape {
    fn metadata_offset(&self) -> u64 {
        LOG_OFFSET + self.log_size
    }

    fn table_offset(&self) -> u64 {
        self.metadata_offset() + METADATA_LENGTH
    }
}

fn write_empty(file: &dyn BlockFile, shape: &Shape) -> std::io::Result<()> {
    let Shape { size, block_size, is_fixed, absent_is_zero, base, .. } = shape;
    let ratio = chunk_ratio(SECTOR_SIZE, *block_size);
    let blocks = size.div_ceil(*block_size);
    let entries = table_entries(blocks, ratio, base.is_some());
    let table_length = (entries * 8).next_multiple_of(MIB).max(MIB);
    let data_start = shape.table_offset() + table_length;
    let data_length = if *is_fixed { blocks * block_size } else { 0 };
    file.truncate(data_start + data_length)?;
    if *is_fixed || *absent_is_zero {
        let mut table = vec![0; (entries * 8) as usize];
        for block in 0..blocks {
            let entry = if *is_fixed { (data_start + block * block_size) | FULLY_PRESENT } else { ZERO };
            put(&mut table, table_index(block, ratio) as usize * 8, &entry.to_le_bytes());
        }
        file.write_at(shape.table_offset(), &table)?;
    }
    file.write_at(shape.metadata_offset(), &description(shape))?;
    let regions = region_table(shape, table_length);
    for place in REGION_PLACES {
        file.write_at(place, &regions)?;
    }
    for (sequence, place) in HEADER_PLACES.into_iter().enumerate() {
        file.write_at(place, &header(shape, sequence as u64))?;
    }
    let mut start = vec![0; 520];
    put(&mut start, 0, FILE_MAGIC);
    let creator: Vec<u8> = "Bellglass".encode_utf16().flat_map(u16::to_le_bytes).collect();
    put(&mut start, 8, &creator);
    file.write_at(0, &start)
}

/// Larger blocks for larger disks, so that the table stays small.
fn usual_block_size(size: u64) -> u64 {
    match size >> 30 {
        0..=100 => 8 * MIB,
        101..=1023 => 16 * MIB,
        1024..=10_239 => 32 * MIB,
        _ => 64 * MIB,
    }
}

fn header(shape: &Shape, sequence: u64) -> Vec<u8> {
    let mut header = vec![0; HEADER_LENGTH];
    put(&mut header, 0, HEADER_MAGIC);
    put(&mut header, 8, &sequence.to_le_bytes());
    put(&mut header, 16, uuid::Uuid::new_v4().as_bytes());
    put(&mut header, 32, uuid::Uuid::new_v4().as_bytes());
    put(&mut header, 66, &1_u16.to_le_bytes());
    put(&mut header, 68, &(shape.log_size as u32).to_le_bytes());
    put(&mut header, 72, &LOG_OFFSET.to_le_bytes());
    let sum = sum(&header);
    put(&mut header, 4, &sum.to_le_bytes());
    header
}

fn region_table(shape: &Shape, table_length: u64) -> Vec<u8> {
    let mut table = vec![0; REGION_TABLE_LENGTH];
    put(&mut table, 0, REGION_MAGIC);
    put(&mut table, 8, &2_u32.to_le_bytes());
    let regions =
        [(TABLE_REGION, shape.table_offset(), table_length), (METADATA_REGION, shape.metadata_offset(), METADATA_LENGTH)];
    for (number, (id, offset, length)) in regions.into_iter().enumerate() {
        let at = 16 + number * 32;
        put(&mut table, at, &id.to_bytes_le());
        put(&mut table, at + 16, &offset.to_le_bytes());
        put(&mut table, at + 24, &(length as u32).to_le_bytes());
        put(&mut table, at + 28, &1_u32.to_le_bytes());
    }
    let sum = sum(&table);
    put(&mut table, 4, &sum.to_le_bytes());
    table
}

fn description(shape: &Shape) -> Vec<u8> {
    let flags = u32::from(shape.is_fixed) | if shape.base.is_some() { HAS_BASE } else { 0 };
    let mut parameters = (shape.block_size as u32).to_le_bytes().to_vec();
    parameters.extend(flags.to_le_bytes());
    let mut items = vec![
        (FILE_PARAMETERS, parameters, REQUIRED),
        (DISK_SIZE, shape.size.to_le_bytes().to_vec(), REQUIRED | OF_DISK),
        (DISK_ID, uuid::Uuid::new_v4().as_bytes().to_vec(), REQUIRED | OF_DISK),
        (LOGICAL_SECTOR, (SECTOR_SIZE as u32).to_le_bytes().to_vec(), REQUIRED | OF_DISK),
        (PHYSICAL_SECTOR, PHYSICAL_SECTOR_SIZE.to_le_bytes().to_vec(), REQUIRED | OF_DISK),
    ];
    items.extend(shape.base.as_ref().map(|base| (BASE_LOCATOR, base.bytes(), REQUIRED)));
    let mut bytes = vec![0; TABLE_LENGTH];
    put(&mut bytes, 0, TABLE_MAGIC);
    put(&mut bytes, 10, &(items.len() as u16).to_le_bytes());
    for (number, (id, value, flags)) in items.into_iter().enumerate() {
        let offset = bytes.len() as u64;
        put(&mut bytes, 32 + number * 32, &entry(id, offset, value.len() as u64, flags));
        bytes.extend(value);
    }
    bytes
}

/// A disk with blocks as small as they can be, so that small files have many.
#[cfg(test)]
pub(crate) fn create_small(file: &dyn BlockFile, size: u64) {
    write_empty(file, &small(size, None)).unwrap();
}

/// The same, built on another.
#[cfg(test)]
pub(crate) fn create_small_over(file: &dyn BlockFile, backing: &Backing) {
    let (identity, size) = identify(file.path(), backing, Format::Vhdx).unwrap();
    let base = Some(BaseLocator::new(backing, identity));
    write_empty(file, &small(size, base)).unwrap();
}

#[cfg(test)]
fn small(size: u64, base: Option<BaseLocator>) -> Shape {
    Shape { size, block_size: MIB, log_size: MIB, is_fixed: false, absent_is_zero: false, base }
}
