//! The footer: at the end of every VHD file, and once more at the start of those that grow.

use crate::DiskError;
use crate::fenced_file::FencedFile;
use crate::fields::{Fields, put};

use super::{SECTOR, wrong};

pub(super) const FOOTER_MAGIC: &[u8] = b"conectix";
pub(super) const FOOTER_LENGTH: usize = 512;

pub(super) const FIXED: u32 = 2;
pub(super) const DYNAMIC: u32 = 3;
pub(super) const DIFFERENCING: u32 = 4;

/// Programs whose disks are as large as "current size" says. All others mean what the geometry gives.
const SIZE_COUNTS_FOR: [&[u8; 4]; 4] = [b"win ", b"qem2", b"d2v ", b"tap\0"];
/// What we sign with: with any other word QEMU would go by the geometry and round the size.
const CREATOR: &[u8; 4] = b"win ";
/// Cylinders, heads and sectors of a disk too large for them.
const LARGEST_GEOMETRY: (u16, u8, u8) = (65535, 16, 255);
/// Seconds from 1970 to 2000, when VHD's time begins.
const YEAR_2000: u64 = 946_684_800;

/// The footer, wherever it was found.
#[derive(Clone, Copy)]
pub(super) struct Footer {
    pub(super) bytes: [u8; FOOTER_LENGTH],
    /// Where it was found.
    pub(super) place: u64,
    pub(super) size: u64,
    pub(super) kind: u32,
    pub(super) header_offset: u64,
    pub(super) id: u128,
}

/// Zeros behind the footer of a fixed disk that are looked through for it; holes cost nothing.
const MOST_SEARCHED: u64 = 16 << 20;
const MOST_STRETCHES: usize = 4096;

impl Footer {
    /// Finds the footer.
    ///
    /// A fixed disk begins with its content, which a guest can make look like the copy that other kinds have there. So a
    /// footer behind the content that tells of a fixed disk comes before any copy, and no copy tells of one.
    pub(super) fn read(file: &FencedFile) -> Result<Self, DiskError> {
        let end = file.len()?;
        let Some(mut place) = end.checked_sub(FOOTER_LENGTH as u64) else { return Err(wrong(file, "it is too short")) };
        let mut last = [0; FOOTER_LENGTH];
        file.read_exact(place, &mut last)?;
        if last == [0; FOOTER_LENGTH]
            && let Some(at) = last_before_zeros(file)?
        {
            place = at;
            file.read_exact(at, &mut last)?;
        }
        let last = Self::parse(file, last, place);
        if let Ok(footer) = &last
            && footer.kind == FIXED
            && footer.size <= place
        {
            return last;
        }
        let mut first = [0; FOOTER_LENGTH];
        file.read_exact(0, &mut first)?;
        let is_copy = first.starts_with(FOOTER_MAGIC) && Fields(&first).be32(60) != FIXED;
        if is_copy { Self::parse(file, first, 0) } else { last }
    }

    fn parse(file: &FencedFile, bytes: [u8; FOOTER_LENGTH], place: u64) -> Result<Self, DiskError> {
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
        let id = u128::from_be_bytes(fields.id(68));
        Ok(Self { place, size, kind: fields.be32(60), header_offset: fields.be64(16), id, bytes })
    }

    pub(super) fn new(size: u64, kind: u32) -> Self {
        let mut bytes = [0; FOOTER_LENGTH];
        let id = uuid::Uuid::new_v4();
        put(&mut bytes, 0, FOOTER_MAGIC);
        put(&mut bytes, 8, &2_u32.to_be_bytes()); // features: none but the bit that is always set
        put(&mut bytes, 12, &0x0001_0000_u32.to_be_bytes());
        put(&mut bytes, 24, &since_2000(std::time::SystemTime::now()).to_be_bytes());
        put(&mut bytes, 32, &0x0005_0003_u32.to_be_bytes());
        put(&mut bytes, 36, b"Wi2k");
        put(&mut bytes, 40, &size.to_be_bytes());
        put(&mut bytes, 68, id.as_bytes());
        let header_offset = if kind == FIXED { u64::MAX } else { FOOTER_LENGTH as u64 };
        let mut footer = Self { bytes, place: 0, size, kind, header_offset, id: id.as_u128() };
        footer.seal();
        footer
    }

    /// Puts the figures into the bytes and makes the checksum right.
    pub(super) fn seal(&mut self) {
        let Self { bytes, place: _, size, kind, header_offset, id: _ } = self;
        let (cylinders, heads, sectors) = geometry(*size);
        put(bytes, 16, &header_offset.to_be_bytes());
        // Whoever made the disk: from now on its size is what it says, not what its geometry gives.
        put(bytes, 28, CREATOR);
        put(bytes, 48, &size.to_be_bytes());
        put(bytes, 56, &cylinders.to_be_bytes());
        put(bytes, 58, &[heads, sectors]);
        put(bytes, 60, &kind.to_be_bytes());
        let sum = checksum(bytes, 64);
        put(bytes, 64, &sum.to_be_bytes());
    }
}

/// A crash while a fixed disk grew may have left its footer behind, with nothing but zeros after it. Where the last sector
/// before these is, if it looks like a footer.
fn last_before_zeros(file: &FencedFile) -> Result<Option<u64>, DiskError> {
    let (mut data, mut at) = ((0, 0), 0);
    for _ in 0..MOST_STRETCHES {
        let Some(stretch) = file.next_data(at)? else { break };
        (data, at) = (stretch, stretch.1);
    }
    let mut sector = [0; FOOTER_LENGTH];
    let mut end = data.1.next_multiple_of(SECTOR).min(file.len()? / SECTOR * SECTOR);
    let least = data.0.max(end.saturating_sub(MOST_SEARCHED));
    while end >= least + SECTOR {
        end -= SECTOR;
        file.read_exact(end, &mut sector)?;
        if sector != [0; FOOTER_LENGTH] {
            return Ok(sector.starts_with(FOOTER_MAGIC).then_some(end));
        }
    }
    Ok(None)
}

/// The complement of the sum of all bytes but the four of the checksum itself.
pub(super) fn checksum(bytes: &[u8], at: usize) -> u32 {
    let outside = |(index, _): &(usize, &u8)| !(at..at + 4).contains(index);
    !bytes.iter().enumerate().filter(outside).fold(0_u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)))
}

/// A time as VHD counts it.
pub(super) fn since_2000(time: std::time::SystemTime) -> u32 {
    let seconds = time.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    seconds.saturating_sub(YEAR_2000) as u32
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
