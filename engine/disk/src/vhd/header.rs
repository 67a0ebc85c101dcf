//! The header of disks that grow: where the table is, and what a differencing disk is built on. It is found by the footer,
//! so a changed one is written elsewhere and takes effect with the footer's one sector.

use std::path::Path;

use crate::DiskError;
use crate::fenced_file::FencedFile;
use crate::fields::{Fields, put};
use crate::image_info::Identity;
use crate::open::Backing;
use crate::parent::{for_windows, name_of_base};

use super::footer::{DIFFERENCING, Footer, checksum, since_2000};
use super::{MAX_BLOCKS, SECTOR, wrong};

const HEADER_MAGIC: &[u8] = b"cxsparse";
pub(super) const HEADER_LENGTH: usize = 1024;
const MAX_BLOCK_SIZE: u64 = 256 << 20;
const LOCATORS_AT: usize = 576;
const LOCATOR_LENGTH: usize = 24;
/// Names of the base as Windows writes them: relative to the disk, and not.
const RELATIVE: &[u8] = b"W2ru";
const ABSOLUTE: &[u8] = b"W2ku";
/// No name is longer in bytes.
const MAX_NAME: usize = 1024;

#[derive(Clone)]
pub(super) struct Header {
    pub(super) bytes: [u8; HEADER_LENGTH],
    pub(super) table_offset: u64,
    pub(super) block_size: u64,
    /// Entries that the table has, which may be more than the disk needs.
    pub(super) entries: u64,
}

/// What a differencing disk remembers of its base.
pub(super) struct BaseRecord {
    pub(super) id: u128,
    /// When the base's file was last written to.
    pub(super) time: u32,
    /// Under which name it is found, if the file gives it any.
    pub(super) name: Option<String>,
    /// Where in the file the last of the names ends.
    pub(super) end: u64,
}

impl Header {
    pub(super) fn read(file: &FencedFile, footer: &Footer) -> Result<Self, DiskError> {
        let end = file.len()?;
        let inside = |start: u64, length: u64| start.checked_add(length).is_some_and(|stop| stop <= end);
        if footer.header_offset < SECTOR || !inside(footer.header_offset, HEADER_LENGTH as u64) {
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
        if table_offset < SECTOR || !inside(table_offset, entries * 4) {
            return Err(wrong(file, "its table lies outside the file"));
        }
        Ok(Self { bytes, table_offset, block_size, entries })
    }

    pub(super) fn new(table_offset: u64, block_size: u64, entries: u64) -> Self {
        let mut bytes = [0; HEADER_LENGTH];
        put(&mut bytes, 0, HEADER_MAGIC);
        put(&mut bytes, 8, &u64::MAX.to_be_bytes());
        put(&mut bytes, 24, &0x0001_0000_u32.to_be_bytes());
        put(&mut bytes, 32, &(block_size as u32).to_be_bytes());
        let mut header = Self { bytes, table_offset, block_size, entries };
        header.seal();
        header
    }

    /// Puts the figures into the bytes and makes the checksum right.
    pub(super) fn seal(&mut self) {
        put(&mut self.bytes, 16, &self.table_offset.to_be_bytes());
        put(&mut self.bytes, 28, &(self.entries as u32).to_be_bytes());
        let sum = checksum(&self.bytes, 36);
        put(&mut self.bytes, 36, &sum.to_be_bytes());
    }

    /// Bytes of marks in front of each block.
    pub(super) fn marks_length(&self) -> u64 {
        (self.block_size / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
    }

    pub(super) fn table_length(&self) -> u64 {
        (self.entries * 4).next_multiple_of(SECTOR)
    }

    pub(super) fn read_table(&self, file: &FencedFile, size: u64) -> Result<Vec<u32>, DiskError> {
        let mut table = vec![0; size.div_ceil(self.block_size) as usize * 4];
        file.read_exact(self.table_offset, &mut table)?;
        Ok(table.chunks_exact(4).map(|entry| Fields(entry).be32(0)).collect())
    }

    /// What the header says of the base of a differencing disk.
    pub(super) fn base(&self, file: &FencedFile, footer: &Footer) -> Result<Option<BaseRecord>, DiskError> {
        if footer.kind != DIFFERENCING {
            return Ok(None);
        }
        let fields = Fields(&self.bytes);
        let file_end = file.len()?;
        let mut names = Vec::new();
        let mut end = 0;
        for wanted in [RELATIVE, ABSOLUTE] {
            for locator in self.bytes[LOCATORS_AT..].chunks_exact(LOCATOR_LENGTH).take(8) {
                let (length, at) = (Fields(locator).be32(8) as usize, Fields(locator).be64(16));
                let stop = at.checked_add(length as u64).filter(|stop| *stop <= file_end);
                let Some(stop) = stop.filter(|_| locator.starts_with(wanted) && length <= MAX_NAME) else { continue };
                let mut bytes = vec![0; length];
                file.read_exact(at, &mut bytes)?;
                names.push(utf16(bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]))));
                end = end.max(stop.next_multiple_of(SECTOR));
            }
        }
        names.push(utf16(self.bytes[64..LOCATORS_AT].chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))));
        let name = name_of_base(file.path(), &names);
        Ok(Some(BaseRecord { id: u128::from_be_bytes(fields.id(40)), time: fields.be32(56), name, end }))
    }

    /// Writes a base into the header, or none. `names_at` is where in the file the bytes that are returned will stand.
    pub(super) fn set_base(&mut self, overlay: &Path, base: Option<(&Backing, Identity)>, names_at: u64) -> Option<Vec<u8>> {
        self.bytes[40..LOCATORS_AT + 8 * LOCATOR_LENGTH].fill(0);
        let Some((Backing { name, .. }, identity)) = base else {
            self.seal();
            return Some(Vec::new());
        };
        put(&mut self.bytes, 40, &identity.disk.to_be_bytes());
        put(&mut self.bytes, 56, &time_of_file(overlay, name).to_be_bytes());
        let file_name = name.rsplit('/').next().unwrap_or(name);
        for (place, unit) in self.bytes[64..LOCATORS_AT - 2].chunks_exact_mut(2).zip(file_name.encode_utf16()) {
            place.copy_from_slice(&unit.to_be_bytes());
        }
        let written: Vec<u8> = for_windows(name).encode_utf16().flat_map(u16::to_le_bytes).collect();
        if written.len() > MAX_NAME {
            return None;
        }
        let locator = &mut self.bytes[LOCATORS_AT..LOCATORS_AT + LOCATOR_LENGTH];
        put(locator, 0, if name.starts_with('/') { ABSOLUTE } else { RELATIVE });
        put(locator, 4, &(MAX_NAME as u32).to_be_bytes());
        put(locator, 8, &(written.len() as u32).to_be_bytes());
        put(locator, 16, &names_at.to_be_bytes());
        let mut names = written;
        names.resize(MAX_NAME, 0);
        self.seal();
        Some(names)
    }
}

/// When the file called `name` beside `overlay` was last written to; 0 where nobody knows.
pub(super) fn time_of_file(overlay: &Path, name: &str) -> u32 {
    let path = overlay.parent().unwrap_or(Path::new("")).join(name);
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).map_or(0, since_2000)
}

/// Text up to its first zero.
fn utf16(units: impl Iterator<Item = u16>) -> String {
    char::decode_utf16(units.take_while(|unit| *unit != 0)).map(|letter| letter.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}
