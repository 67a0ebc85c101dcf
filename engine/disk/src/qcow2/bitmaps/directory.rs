//! The directory of bitmaps as it stands in a file.
//!
//! See: the qcow2 specification, "Bitmap directory" and "Bitmap table".

use std::collections::HashSet;

use crate::DiskError;
use crate::fenced_file::FencedFile;
use crate::qcow2::header::{AUTOCLEAR_BITMAPS, EXTENSION_BITMAPS, Header, be32, be64};
use crate::qcow2::mapping::{Geometry, OFFSET_MASK};

/// The content of the file cannot be trusted: a program uses the bitmap, or used it and never finished.
pub(in crate::qcow2) const IN_USE: u32 = 1 << 0;
/// The bitmap follows every write.
pub(in crate::qcow2) const AUTO: u32 = 1 << 1;
/// Programs that do not know the extra data of the entry may use the bitmap.
const EXTRA_DATA_COMPATIBLE: u32 = 1 << 2;
/// The one type of bitmaps that tracks changes.
const TYPE_DIRTY_TRACKING: u8 = 1;
/// All bits of this part are set; nothing is stored.
pub(super) const ALL_ONES: u64 = 1;

/// Bytes of a directory entry before its extra data and name.
const ENTRY: usize = 24;
const AT_FLAGS: usize = 12;
/// Limits that the specification and QEMU set.
pub(super) const MAX_BITMAPS: usize = 65_535;
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;
pub(super) const MAX_NAME: usize = 1023;
pub(super) const GRANULARITY_BITS: std::ops::RangeInclusive<u32> = 9..=31;
/// Bytes of all tables together, in this program.
pub(super) const MAX_TABLE_BYTES: u64 = 8 << 20;

/// A bitmap of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::qcow2) struct Bitmap {
    pub(in crate::qcow2) name: String,
    pub(in crate::qcow2) flags: u32,
    /// One bit stands for so many bytes, as a power of two.
    pub(in crate::qcow2) granularity_bits: u32,
    pub(super) table_offset: u64,
    /// Bytes of its table as it stands in the file.
    pub(super) table_bytes: u64,
    /// A word for each cluster of bits: where it lies, or 0 or [`ALL_ONES`].
    pub(super) table: Vec<u64>,
    /// What a later version of the format has to say of it.
    extra: Vec<u8>,
    /// Where in the file its flags stand.
    pub(super) flags_at: u64,
}

/// The bitmaps of a file, and where the directory lies that tells of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::qcow2) struct Directory {
    pub(in crate::qcow2) bitmaps: Vec<Bitmap>,
    pub(super) offset: u64,
    pub(super) size: u64,
}

/// Why there are no bitmaps although a file says so.
pub(in crate::qcow2) enum CannotRead {
    /// The directory contradicts itself or the file.
    Broken(&'static str),
    /// The host failed.
    Disk(DiskError),
}

impl From<DiskError> for CannotRead {
    fn from(error: DiskError) -> Self {
        CannotRead::Disk(error)
    }
}

/// How many words the table of a bitmap has.
pub(super) fn table_entries(size: u64, granularity_bits: u32, geometry: Geometry) -> u64 {
    let granularity = 1_u64 << granularity_bits;
    size.div_ceil(granularity).div_ceil(8).div_ceil(geometry.cluster_size())
}

impl Bitmap {
    pub(super) fn new(name: &str, granularity_bits: u32, entries: u64) -> Self {
        let table = vec![0; entries as usize];
        Self {
            name: name.into(),
            flags: AUTO,
            granularity_bits,
            table_offset: 0,
            table_bytes: 0,
            table,
            extra: Vec::new(),
            flags_at: 0,
        }
    }

    /// Whether this program may use it: there is nothing about it that we do not know.
    pub(super) fn is_known(&self) -> bool {
        self.extra.is_empty() || self.flags & EXTRA_DATA_COMPATIBLE != 0
    }

    fn encoded_length(&self) -> usize {
        (ENTRY + self.extra.len() + self.name.len()).next_multiple_of(8)
    }

    /// Places in the file that belong to it: offset and length.
    pub(super) fn ranges(&self, geometry: Geometry) -> impl Iterator<Item = (u64, u64)> {
        let clusters = self.table.iter().map(|word| word & OFFSET_MASK).filter(|offset| *offset != 0);
        std::iter::once((self.table_offset, self.table_bytes))
            .chain(clusters.map(move |offset| (offset, geometry.cluster_size())))
    }
}

impl Directory {
    /// Reads what the header tells of, tables and all.
    pub(in crate::qcow2) fn read(file: &FencedFile, header: &Header, end: u64) -> Result<Self, CannotRead> {
        use CannotRead::Broken;
        let Some(extension) = header.extension(EXTENSION_BITMAPS) else { return Ok(Self::default()) };
        if header.autoclear & AUTOCLEAR_BITMAPS == 0 {
            return Err(Broken("a program that knows no bitmaps has written to the disk"));
        }
        let geometry = Geometry::of(header);
        let (count, size, offset) = (be32(extension, 0) as usize, be64(extension, 8), be64(extension, 16));
        let is_inside = offset.checked_add(size).is_some_and(|place| place <= end);
        let is_aligned = offset != 0 && offset.is_multiple_of(geometry.cluster_size());
        if extension.len() != 24 || count == 0 || count > MAX_BITMAPS || size > MAX_DIRECTORY_BYTES || !is_inside || !is_aligned {
            return Err(Broken("their directory has an impossible size or place"));
        }
        let mut bytes = vec![0; size as usize];
        file.read_exact(offset, &mut bytes)?;
        let mut directory = Self { bitmaps: Vec::new(), offset, size };
        let (mut at, mut table_bytes, mut names) = (0, 0, HashSet::new());
        for _ in 0..count {
            let (bitmap, length) = decode(&bytes[at..], offset + at as u64)?;
            let entries = be32(&bytes[at..], 8);
            at += length;
            table_bytes += u64::from(entries) * 8;
            let is_inside = bitmap.table_offset.checked_add(u64::from(entries) * 8).is_some_and(|place| place <= end);
            if bitmap.table_offset == 0 || !bitmap.table_offset.is_multiple_of(geometry.cluster_size()) || !is_inside {
                return Err(Broken("a table lies outside the file"));
            }
            if table_bytes > MAX_TABLE_BYTES {
                return Err(Broken("their tables are too large"));
            }
            // What is in use may have been left in the middle of a change of size.
            if bitmap.flags & IN_USE == 0 && u64::from(entries) != table_entries(header.size, bitmap.granularity_bits, geometry) {
                return Err(Broken("a table does not fit the size of the disk"));
            }
            if !names.insert(bitmap.name.clone()) {
                return Err(Broken("two have the same name"));
            }
            let mut words = vec![0; entries as usize * 8];
            file.read_exact(bitmap.table_offset, &mut words)?;
            let table: Vec<u64> = words.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect();
            let is_sensible = |word: &u64| {
                let place = word & OFFSET_MASK;
                word & !(OFFSET_MASK | ALL_ONES) == 0
                    && (place == 0 || (word & ALL_ONES == 0 && place.is_multiple_of(geometry.cluster_size()) && place < end))
            };
            if !table.iter().all(is_sensible) {
                return Err(Broken("a table makes no sense"));
            }
            directory.bitmaps.push(Bitmap { table, ..bitmap });
        }
        if at as u64 != size {
            return Err(Broken("their directory has another size than its entries"));
        }
        Ok(directory)
    }

    /// The directory as it stands in a file, and where in it the flags of each bitmap stand.
    pub(super) fn encode(&self) -> (Vec<u8>, Vec<u64>) {
        let mut bytes = Vec::new();
        let mut flags_at = Vec::new();
        for bitmap in &self.bitmaps {
            let end = bytes.len() + bitmap.encoded_length();
            flags_at.push((bytes.len() + AT_FLAGS) as u64);
            bytes.extend(bitmap.table_offset.to_be_bytes());
            bytes.extend(((bitmap.table_bytes / 8) as u32).to_be_bytes());
            bytes.extend(bitmap.flags.to_be_bytes());
            bytes.extend([TYPE_DIRTY_TRACKING, bitmap.granularity_bits as u8]);
            bytes.extend((bitmap.name.len() as u16).to_be_bytes());
            bytes.extend((bitmap.extra.len() as u32).to_be_bytes());
            bytes.extend(&bitmap.extra);
            bytes.extend(bitmap.name.as_bytes());
            bytes.resize(end, 0);
        }
        (bytes, flags_at)
    }

    /// The extension that tells where a directory lies.
    pub(super) fn extension(&self) -> Vec<u8> {
        let count = (self.bitmaps.len() as u64) << 32;
        [count, self.size, self.offset].into_iter().flat_map(u64::to_be_bytes).collect()
    }

    pub(in crate::qcow2) fn position(&self, name: &str) -> Option<usize> {
        self.bitmaps.iter().position(|bitmap| bitmap.name == name)
    }

    /// All places in the file that belong to bitmaps, the directory among them.
    pub(in crate::qcow2) fn ranges(&self, geometry: Geometry) -> impl Iterator<Item = (u64, u64)> {
        std::iter::once((self.offset, self.size)).chain(self.bitmaps.iter().flat_map(move |bitmap| bitmap.ranges(geometry)))
    }
}

/// An entry without its table, and the bytes it takes.
fn decode(entry: &[u8], place: u64) -> Result<(Bitmap, usize), CannotRead> {
    use CannotRead::Broken;
    let Some(fixed) = entry.first_chunk::<ENTRY>() else { return Err(Broken("their directory is cut short")) };
    let flags = be32(fixed, AT_FLAGS);
    let (kind, granularity_bits) = (fixed[16], u32::from(fixed[17]));
    let name_length = usize::from(u16::from_be_bytes([fixed[18], fixed[19]]));
    let extra_length = be32(fixed, 20) as usize;
    if kind != TYPE_DIRTY_TRACKING || flags & !(IN_USE | AUTO | EXTRA_DATA_COMPATIBLE) != 0 {
        return Err(Broken("one is of a kind that this program does not know"));
    }
    if !GRANULARITY_BITS.contains(&granularity_bits) || name_length == 0 || name_length > MAX_NAME {
        return Err(Broken("one has an impossible granularity or name"));
    }
    let length = (ENTRY + name_length).saturating_add(extra_length).next_multiple_of(8);
    let (Some(extra), Some(name), true) = (
        entry.get(ENTRY..ENTRY + extra_length),
        entry.get(ENTRY + extra_length..ENTRY + extra_length + name_length),
        entry.len() >= length,
    ) else {
        return Err(Broken("their directory is cut short"));
    };
    let Ok(name) = std::str::from_utf8(name) else { return Err(Broken("the name of one is not text")) };
    let bitmap = Bitmap {
        name: name.to_owned(),
        flags,
        granularity_bits,
        table_offset: be64(fixed, 0),
        table_bytes: u64::from(be32(fixed, 8)) * 8,
        table: Vec::new(),
        extra: extra.to_vec(),
        flags_at: place + AT_FLAGS as u64,
    };
    Ok((bitmap, length))
}
