//! The disk's description: its size, its block size, its sectors.

use uuid::{Uuid, uuid};

use crate::DiskError;
use crate::fenced_file::FencedFile;
use crate::fields::{Fields, put};

use super::MIB;
use super::base_locator::BaseLocator;
use super::header::{Region, wrong};

pub(super) const TABLE_MAGIC: &[u8] = b"metadata";
pub(super) const TABLE_LENGTH: usize = 64 << 10;
pub(super) const FILE_PARAMETERS: Uuid = uuid!("CAA16737-FA36-4D43-B3B6-33F0AA44E76B");
pub(super) const DISK_SIZE: Uuid = uuid!("2FA54224-CD1B-4876-B211-5DBED83BF4B8");
pub(super) const DISK_ID: Uuid = uuid!("BECA12AB-B2E6-4523-93EF-C309E000C746");
pub(super) const LOGICAL_SECTOR: Uuid = uuid!("8141BF1D-A96F-4709-BA47-F233A8FAAB5F");
pub(super) const PHYSICAL_SECTOR: Uuid = uuid!("CDA348C7-445D-4471-9CC9-E9885251C556");
pub(super) const BASE_LOCATOR: Uuid = uuid!("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C");

const MAX_ENTRIES: u16 = 2047;
pub(super) const MAX_BLOCK_SIZE: u64 = 256 << 20;
pub(super) const MAX_SIZE: u64 = 64 << 40;
pub(super) const HAS_BASE: u32 = 2;
/// Flags of items: of the disk rather than the file, and not to be ignored.
pub(super) const OF_DISK: u32 = 2;
pub(super) const REQUIRED: u32 = 4;
/// Bytes of an entry in the table of items, and how many of them share the table's first sector with its head.
const ENTRY: usize = 32;
const ENTRIES_IN_FIRST_SECTOR: usize = 15;
const SECTOR: u64 = 512;

/// What we need of it.
#[derive(Clone, Debug)]
pub(super) struct Metadata {
    pub(super) size: u64,
    /// Where in the file it stands.
    pub(super) size_at: u64,
    pub(super) block_size: u64,
    pub(super) sector_size: u64,
    /// What a differencing disk says of its base.
    pub(super) base: Option<BaseLocator>,
}

impl Metadata {
    pub(super) fn read(file: &FencedFile, region: Region) -> Result<Self, DiskError> {
        let wrong = |detail: &str| wrong(file.path(), detail);
        let unsupported = |feature: String| DiskError::Unsupported { feature, path: file.path().to_path_buf() };
        if region.length < TABLE_LENGTH as u64 {
            return Err(wrong("its description is too short"));
        }
        let mut table = vec![0; TABLE_LENGTH];
        file.read_zero_padded(region.offset, &mut table)?;
        let count = Fields(&table).le16(10);
        if !table.starts_with(TABLE_MAGIC) || count > MAX_ENTRIES {
            return Err(wrong("its description has no table"));
        }
        let (mut parameters, mut size, mut size_at, mut sector_size, mut locator) = (None, None, 0, None, None);
        for entry in table[ENTRY..].chunks_exact(ENTRY).take(count.into()) {
            let fields = Fields(entry);
            let (offset, length, flags) = (u64::from(fields.le32(16)), u64::from(fields.le32(20)), fields.le32(24));
            let is_inside = offset >= TABLE_LENGTH as u64 && offset + length <= region.length;
            let value = |wanted: u64| {
                if length < wanted || !is_inside {
                    return Err(wrong("an item of its description lies outside it"));
                }
                let mut bytes = [0; 8];
                file.read_zero_padded(region.offset + offset, &mut bytes)?;
                Ok(u64::from_le_bytes(bytes))
            };
            let (is_user, is_required) = (flags & 1 != 0, flags & 4 != 0);
            match Uuid::from_bytes_le(fields.id(0)) {
                FILE_PARAMETERS => parameters = Some(value(8)?),
                DISK_SIZE => (size, size_at) = (Some(value(8)?), region.offset + offset),
                LOGICAL_SECTOR => sector_size = Some(value(4)? & u64::from(u32::MAX)),
                DISK_ID | PHYSICAL_SECTOR => {}
                BASE_LOCATOR if is_inside && length <= BaseLocator::MAX_LENGTH => {
                    let mut bytes = vec![0; length as usize];
                    file.read_zero_padded(region.offset + offset, &mut bytes)?;
                    locator = BaseLocator::parse(&bytes);
                }
                BASE_LOCATOR => return Err(wrong("what it says of its base lies outside its description")),
                other if is_required && !is_user => {
                    return Err(unsupported(format!("a description that is newer than this program ({other})")));
                }
                _ => {}
            }
        }
        let (Some(parameters), Some(size), Some(sector_size)) = (parameters, size, sector_size) else {
            return Err(wrong("its description is not complete"));
        };
        let (block_size, flags) = (parameters & u64::from(u32::MAX), (parameters >> 32) as u32);
        let base = match flags & HAS_BASE != 0 {
            true => Some(locator.ok_or_else(|| wrong("it does not say what it is built on"))?),
            false => None,
        };
        if !block_size.is_power_of_two() || !(MIB..=MAX_BLOCK_SIZE).contains(&block_size) {
            return Err(wrong("its block size is impossible"));
        }
        if sector_size != 512 && sector_size != 4096 {
            return Err(wrong("its sector size is impossible"));
        }
        if size > MAX_SIZE || !size.is_multiple_of(sector_size) {
            return Err(wrong("its size is impossible"));
        }
        // A size that lies across two sectors could be torn by a crash; nobody puts it there.
        if size_at % 8 != 0 {
            return Err(wrong("its size stands at an impossible place"));
        }
        Ok(Self { size, size_at, block_size, sector_size, base })
    }

    /// Makes the disk name another base, or none. What is new is written into unused room first; the table's first sector,
    /// in which all entries must stand, then leads there.
    pub(super) fn write_base(&self, file: &FencedFile, region: Region, base: Option<&BaseLocator>) -> Result<(), DiskError> {
        let refuse = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: file.path().to_path_buf() };
        let mut head = [0; SECTOR as usize];
        file.read_exact(region.offset, &mut head)?;
        let count = usize::from(Fields(&head).le16(10));
        if count > ENTRIES_IN_FIRST_SECTOR - 1 {
            return Err(refuse("The description of this disk is too long to be changed safely. Convert it to a new one"));
        }
        let mut entries: Vec<[u8; ENTRY]> =
            head[ENTRY..].chunks_exact(ENTRY).take(count).filter_map(|entry| entry.first_chunk().copied()).collect();
        let locator = base.map(BaseLocator::bytes).unwrap_or_default();
        let needed = SECTOR + (locator.len() as u64).next_multiple_of(SECTOR);
        let used: Vec<(u64, u64)> = entries
            .iter()
            .map(|entry| (u64::from(Fields(entry).le32(16)), u64::from(Fields(entry).le32(20))))
            .map(|(at, length)| (at, at + length))
            .collect();
        let is_free =
            |at: &u64| at + needed <= region.length && used.iter().all(|(start, end)| *end <= *at || *start >= at + needed);
        let candidates = used.iter().map(|(_, end)| end.next_multiple_of(SECTOR)).chain([TABLE_LENGTH as u64]);
        let at = candidates.filter(|at| *at >= TABLE_LENGTH as u64).find(is_free);
        let at = at.ok_or_else(|| refuse("The description of this disk has no room left. Convert it to a new one"))?;

        let mut flags = [0; 4];
        for entry in entries.iter().filter(|entry| Uuid::from_bytes_le(Fields(&entry[..]).id(0)) == FILE_PARAMETERS) {
            file.read_exact(region.offset + u64::from(Fields(entry).le32(16)) + 4, &mut flags)?;
        }
        let flags = u32::from_le_bytes(flags) & !HAS_BASE | if base.is_some() { HAS_BASE } else { 0 };
        let mut values = (self.block_size as u32).to_le_bytes().to_vec();
        values.extend(flags.to_le_bytes());
        values.resize(SECTOR as usize, 0);
        values.extend(&locator);
        file.write_at(region.offset + at, &values)?;
        file.flush()?;

        entries.retain(|entry| Uuid::from_bytes_le(Fields(entry).id(0)) != BASE_LOCATOR);
        for entry in &mut entries {
            if Uuid::from_bytes_le(Fields(&entry[..]).id(0)) == FILE_PARAMETERS {
                put(entry, 16, &(at as u32).to_le_bytes());
            }
        }
        if base.is_some() {
            entries.push(entry(BASE_LOCATOR, at + SECTOR, locator.len() as u64, REQUIRED));
        }
        head[ENTRY..].fill(0);
        put(&mut head, 10, &(entries.len() as u16).to_le_bytes());
        for (place, entry) in head[ENTRY..].chunks_exact_mut(ENTRY).zip(entries) {
            place.copy_from_slice(&entry);
        }
        file.write_at(region.offset, &head)?;
        file.flush()
    }
}

/// An entry of the table of items.
pub(super) fn entry(id: Uuid, offset: u64, length: u64, flags: u32) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    put(&mut entry, 0, &id.to_bytes_le());
    put(&mut entry, 16, &(offset as u32).to_le_bytes());
    put(&mut entry, 20, &(length as u32).to_le_bytes());
    put(&mut entry, 24, &flags.to_le_bytes());
    entry
}
