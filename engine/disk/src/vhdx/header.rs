//! The two headers, of which the newer sound one counts, and the two region tables, which are alike.

use std::path::Path;

use crate::DiskError;
use crate::fenced_file::FencedFile;
use crate::fields::{Fields, put};

use super::{DRIVER, MIB};

pub(super) const FILE_MAGIC: &[u8] = b"vhdxfile";
pub(super) const HEADER_MAGIC: &[u8] = b"head";
pub(super) const REGION_MAGIC: &[u8] = b"regi";
pub(super) const HEADER_PLACES: [u64; 2] = [64 << 10, 128 << 10];
pub(super) const REGION_PLACES: [u64; 2] = [192 << 10, 256 << 10];
pub(super) const HEADER_LENGTH: usize = 4096;
pub(super) const REGION_TABLE_LENGTH: usize = 64 << 10;
const AT_FILE_ID: usize = 16;
const AT_CONTENT_ID: usize = 32;
const AT_LOG_ID: usize = 48;
/// A log longer than this is nobody's; reading it would take too long.
pub(super) const MAX_LOG: u64 = 64 << 20;
const MAX_REGIONS: u32 = 2047;

/// The table of blocks. Identifiers are stored with their first three parts little-endian.
pub(super) const TABLE_REGION: uuid::Uuid = uuid::uuid!("2DC27766-F623-4200-9D64-115E9BFD4A08");
pub(super) const METADATA_REGION: uuid::Uuid = uuid::uuid!("8B7CA206-4790-4B9A-B8FE-575F050F886E");

/// A stretch of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Region {
    pub(super) fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    fn overlaps(self, other: Region) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
}

/// The header that counts.
pub(super) struct Header {
    bytes: Vec<u8>,
    sequence: u64,
    /// Which of the two places it stands in.
    place: usize,
    /// What log entries must carry; zeros when the log is empty.
    pub(super) log_id: [u8; 16],
    pub(super) log: Option<Region>,
}

impl Header {
    pub(super) fn read(file: &FencedFile) -> Result<Self, DiskError> {
        let mut magic = [0; 8];
        file.read_zero_padded(0, &mut magic)?;
        if magic != *FILE_MAGIC {
            return Err(wrong(file.path(), "its signature is missing"));
        }
        let mut best: Option<Self> = None;
        for (place, offset) in HEADER_PLACES.into_iter().enumerate() {
            let mut bytes = vec![0; HEADER_LENGTH];
            file.read_zero_padded(offset, &mut bytes)?;
            let fields = Fields(&bytes);
            if !bytes.starts_with(HEADER_MAGIC) || fields.le32(4) != sum(&bytes) {
                continue;
            }
            let sequence = fields.le64(8);
            if best.as_ref().is_none_or(|best| best.sequence < sequence) {
                let length = u64::from(fields.le32(68));
                let log = (length > 0).then_some(Region { offset: fields.le64(72), length });
                best = Some(Self { sequence, place, log_id: fields.id(AT_LOG_ID), log, bytes });
            }
        }
        let Some(header) = best else { return Err(wrong(file.path(), "neither of its headers is sound")) };
        let fields = Fields(&header.bytes);
        if fields.le16(66) != 1 || fields.le16(64) != 0 {
            let feature = format!("VHDX version {} with log version {}", fields.le16(66), fields.le16(64));
            return Err(DiskError::Unsupported { feature, path: file.path().to_path_buf() });
        }
        if let Some(log) = header.log
            && (log.offset < MIB || log.offset % MIB != 0 || log.length % MIB != 0 || log.length > MAX_LOG)
        {
            return Err(wrong(file.path(), "its log has an impossible place or size"));
        }
        Ok(header)
    }

    /// Whether the log holds something.
    pub(super) fn has_log(&self) -> bool {
        self.log_id != [0; 16]
    }

    /// What stands for the content as it is now.
    pub(super) fn content_id(&self) -> u128 {
        uuid::Uuid::from_bytes_le(Fields(&self.bytes).id(AT_CONTENT_ID)).as_u128()
    }

    /// Says in the file that it will change: a new identifier, and no log.
    pub(super) fn begin_writing(&mut self, file: &FencedFile) -> Result<(), DiskError> {
        self.write_next(file, |bytes| {
            put(bytes, AT_FILE_ID, uuid::Uuid::new_v4().as_bytes());
            put(bytes, AT_LOG_ID, &[0; 16]);
        })
    }

    /// Says in the file that its content is another one from now on.
    pub(super) fn begin_change(&mut self, file: &FencedFile) -> Result<(), DiskError> {
        self.write_next(file, |bytes| put(bytes, AT_CONTENT_ID, uuid::Uuid::new_v4().as_bytes()))
    }

    /// Writes a newer header in the place of the older one, so that one sound header is there at every instant.
    fn write_next(&mut self, file: &FencedFile, change: impl FnOnce(&mut [u8])) -> Result<(), DiskError> {
        let (mut bytes, sequence, place) = (self.bytes.clone(), self.sequence.wrapping_add(1), 1 - self.place);
        put(&mut bytes, 8, &sequence.to_le_bytes());
        change(&mut bytes);
        let sum = sum(&bytes);
        put(&mut bytes, 4, &sum.to_le_bytes());
        let log_id = Fields(&bytes).id(AT_LOG_ID);
        file.write_at(HEADER_PLACES[place], &bytes)?;
        file.flush()?;
        *self = Self { bytes, sequence, place, log_id, log: self.log };
        Ok(())
    }
}

/// The regions that every disk has.
pub(super) struct Regions {
    pub(super) table: Region,
    pub(super) metadata: Region,
}

impl Regions {
    pub(super) fn read(file: &FencedFile) -> Result<Self, DiskError> {
        let mut problem = None;
        for place in REGION_PLACES {
            let mut bytes = vec![0; REGION_TABLE_LENGTH];
            file.read_zero_padded(place, &mut bytes)?;
            if !bytes.starts_with(REGION_MAGIC) || Fields(&bytes).le32(4) != sum(&bytes) {
                continue;
            }
            match Self::parse(file, &bytes) {
                Ok(regions) => return Ok(regions),
                Err(error) => problem = Some(error),
            }
        }
        Err(problem.unwrap_or_else(|| wrong(file.path(), "neither of its region tables is sound")))
    }

    fn parse(file: &FencedFile, bytes: &[u8]) -> Result<Self, DiskError> {
        let wrong = |detail: &str| wrong(file.path(), detail);
        let count = Fields(bytes).le32(8);
        if count > MAX_REGIONS {
            return Err(wrong("it claims too many regions"));
        }
        let end = file.len()?;
        let (mut table, mut metadata) = (None, None);
        let mut all: Vec<Region> = Vec::new();
        for entry in bytes[16..].chunks_exact(32).take(count as usize) {
            let fields = Fields(entry);
            let region = Region { offset: fields.le64(16), length: fields.le32(24).into() };
            if region.offset < MIB
                || !region.offset.is_multiple_of(MIB)
                || !region.length.is_multiple_of(MIB)
                || region.end() > end.max(MIB)
            {
                return Err(wrong("a region has an impossible place or size"));
            }
            if all.iter().any(|other| other.overlaps(region)) {
                return Err(wrong("two regions overlap"));
            }
            all.push(region);
            let is_required = fields.le32(28) & 1 != 0;
            match uuid::Uuid::from_bytes_le(fields.id(0)) {
                TABLE_REGION => table = Some(region),
                METADATA_REGION => metadata = Some(region),
                other if is_required => {
                    let feature = format!("a region that is newer than this program ({other})");
                    return Err(DiskError::Unsupported { feature, path: file.path().to_path_buf() });
                }
                _ => {}
            }
        }
        match (table, metadata) {
            (Some(table), Some(metadata)) => Ok(Self { table, metadata }),
            _ => Err(wrong("it has no table of blocks, or no description")),
        }
    }
}

/// The checksum of a structure whose bytes 4 to 7 hold it: CRC-32C with those as zeros.
pub(super) fn sum(bytes: &[u8]) -> u32 {
    let (head, tail) = bytes.split_at(4);
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]), &tail[4..])
}

pub(super) fn wrong(path: &Path, detail: &str) -> DiskError {
    DiskError::WrongFormat { expected: DRIVER.title, detail: detail.into(), path: path.to_path_buf() }
}
