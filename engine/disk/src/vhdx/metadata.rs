//! The disk's description: its size, its block size, its sectors.

use uuid::{Uuid, uuid};

use crate::DiskError;
use crate::fenced_file::FencedFile;
use crate::fields::Fields;

use super::MIB;
use super::header::{Region, wrong};

pub(super) const TABLE_MAGIC: &[u8] = b"metadata";
pub(super) const TABLE_LENGTH: usize = 64 << 10;
pub(super) const FILE_PARAMETERS: Uuid = uuid!("CAA16737-FA36-4D43-B3B6-33F0AA44E76B");
pub(super) const DISK_SIZE: Uuid = uuid!("2FA54224-CD1B-4876-B211-5DBED83BF4B8");
pub(super) const DISK_ID: Uuid = uuid!("BECA12AB-B2E6-4523-93EF-C309E000C746");
pub(super) const LOGICAL_SECTOR: Uuid = uuid!("8141BF1D-A96F-4709-BA47-F233A8FAAB5F");
pub(super) const PHYSICAL_SECTOR: Uuid = uuid!("CDA348C7-445D-4471-9CC9-E9885251C556");
const PARENT_LOCATOR: Uuid = uuid!("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C");

const MAX_ENTRIES: u16 = 2047;
const MAX_BLOCK_SIZE: u64 = 256 << 20;
pub(super) const MAX_SIZE: u64 = 64 << 40;
const HAS_PARENT: u32 = 2;

/// What we need of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metadata {
    pub(super) size: u64,
    /// Where in the file it stands.
    pub(super) size_at: u64,
    pub(super) block_size: u64,
    pub(super) sector_size: u64,
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
        let (mut parameters, mut size, mut size_at, mut sector_size) = (None, None, 0, None);
        for entry in table[32..].chunks_exact(32).take(count.into()) {
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
                PARENT_LOCATOR => return Err(unsupported("a base (a differencing VHDX)".into())),
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
        if flags & HAS_PARENT != 0 {
            return Err(unsupported("a base (a differencing VHDX)".into()));
        }
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
        Ok(Self { size, size_at, block_size, sector_size })
    }
}
