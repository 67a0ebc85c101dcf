//! The qcow2 header: reading it with all its checks, and the few bytes of it that change afterwards.
//!
//! A file's header is never rewritten as a whole, so whatever we do not understand in it stays as it is.
//! See: the qcow2 specification, "Header" and "Header extensions".

use std::path::Path;

use crate::DiskError;
use crate::fenced_file::FencedFile;

use super::mapping::Geometry;

pub(super) const MAGIC: &[u8; 4] = b"QFI\xfb";
pub(super) const V2_LENGTH: usize = 72;
pub(super) const V3_LENGTH: usize = 104;
/// Header length once the compression type has a field of its own.
pub(super) const V3_LENGTH_WITH_COMPRESSION: usize = 112;

pub(super) const MIN_CLUSTER_BITS: u32 = 9;
pub(super) const MAX_CLUSTER_BITS: u32 = 21;
/// Clusters with subclusters are at least this large, so that a subcluster is no smaller than a sector.
pub(super) const MIN_EXTENDED_CLUSTER_BITS: u32 = 14;
/// Limits that QEMU sets too, so that an image of ours opens there and no header makes us allocate without bound.
pub(super) const MAX_L1_BYTES: u64 = 32 << 20;
pub(super) const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
pub(super) const MAX_SNAPSHOTS: u32 = 65_536;
pub(super) const MAX_BACKING_NAME: u32 = 1023;

/// Byte positions of the fields that change while an image is open.
pub(super) const AT_BACKING: usize = 8;
/// Size, encryption method, and length and place of the first-level table: one write changes them together.
pub(super) const AT_SIZE: u64 = 24;
pub(super) const AT_REFCOUNT_TABLE: u64 = 48;
/// Number and place of the snapshots: one write changes them together.
pub(super) const AT_SNAPSHOTS: u64 = 60;
pub(super) const AT_INCOMPATIBLE: u64 = 72;
pub(super) const AT_AUTOCLEAR: u64 = 88;
pub(super) const AT_REFCOUNT_ORDER: u64 = 96;

pub(super) const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
pub(super) const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
pub(super) const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
pub(super) const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
pub(super) const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
/// Writers may leave the refcounts behind while the image is marked dirty. We never do.
pub(super) const COMPATIBLE_LAZY_REFCOUNTS: u64 = 1 << 0;
/// The bitmaps in the file describe its content.
pub(super) const AUTOCLEAR_BITMAPS: u64 = 1 << 0;
/// The data file by itself reads as the disk does, byte by byte.
pub(super) const AUTOCLEAR_RAW_DATA_FILE: u64 = 1 << 1;

pub(super) const EXTENSION_END: u32 = 0;
pub(super) const EXTENSION_BACKING_FORMAT: u32 = 0xE279_2ACA;
pub(super) const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
pub(super) const EXTENSION_BITMAPS: u32 = 0x2385_2875;
pub(super) const EXTENSION_LUKS: u32 = 0x0537_BE77;
/// The encryption method of the header field whose details stand in the extension.
pub(super) const METHOD_LUKS: u32 = 2;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate.
    Deflate,
    /// A zstd frame.
    Zstd,
}

/// The header, checked.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) backing: Option<BackingName>,
    pub(super) cluster_bits: u32,
    pub(super) size: u64,
    pub(super) l1_entries: u32,
    pub(super) l1_offset: u64,
    pub(super) refcount_table_offset: u64,
    pub(super) refcount_table_clusters: u32,
    pub(super) snapshots: u32,
    pub(super) snapshots_offset: u64,
    pub(super) incompatible: u64,
    pub(super) compatible: u64,
    pub(super) autoclear: u64,
    pub(super) refcount_order: u32,
    pub(super) compression: Compression,
    /// Where the header of its encryption lies, and how long it is.
    pub(super) luks: Option<(u64, u64)>,
    /// The name of the file that holds the data, if that is another file and was written down.
    pub(super) data_file: Option<String>,
    /// Bytes of the header before its extensions.
    pub(super) length: usize,
    /// Extensions in file order, the backing format among them.
    pub(super) extensions: Vec<(u32, Vec<u8>)>,
}

/// The base image that a header names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BackingName {
    pub(super) name: String,
    /// The word that QEMU would use, if one was written down.
    pub(super) format: Option<String>,
}

impl Header {
    /// Reads and checks the header. `file_size` bounds all that it may point at.
    pub(super) fn read(file: &FencedFile, file_size: u64) -> Result<Self, DiskError> {
        let path = file.path();
        let mut fixed = [0; V3_LENGTH_WITH_COMPRESSION];
        let available = file_size.min(fixed.len() as u64) as usize;
        file.read_exact(0, &mut fixed[..available])?;
        if !fixed.starts_with(MAGIC) || available < V2_LENGTH {
            return Err(wrong(path, "its first bytes are not those of a qcow2 disk"));
        }
        let version = be32(&fixed, 4);
        if version != 2 && version != 3 {
            return Err(unsupported(path, format!("qcow2 version {version}")));
        }
        let cluster_bits = be32(&fixed, 20);
        if !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&cluster_bits) {
            return Err(wrong(path, "its cluster size is impossible"));
        }
        let cluster_size = 1_u64 << cluster_bits;
        let (features, refcount_order, header_length) = match version {
            2 => ((0, 0, 0), 4, V2_LENGTH),
            _ if available < V3_LENGTH => return Err(wrong(path, "its header is cut short")),
            _ => ((be64(&fixed, 72), be64(&fixed, 80), be64(&fixed, 88)), be32(&fixed, 96), be32(&fixed, 100) as usize),
        };
        let (incompatible, compatible, autoclear) = features;
        if version == 3 && (header_length < V3_LENGTH || !header_length.is_multiple_of(8) || header_length as u64 > cluster_size)
        {
            return Err(wrong(path, "its header length is impossible"));
        }
        // A file of only a header can be shorter than a cluster; the rest of it counts as zeros.
        let mut first_cluster = vec![0; cluster_size as usize];
        file.read_zero_padded(0, &mut first_cluster)?;
        refuse_unknown_features(path, incompatible, be32(&fixed, 32))?;
        let compression = compression_type(path, &first_cluster, header_length, incompatible)?;
        if refcount_order > 6 {
            return Err(wrong(path, "its refcount width is impossible"));
        }
        let mut header = Header {
            version,
            backing: None,
            cluster_bits,
            size: be64(&fixed, 24),
            l1_entries: be32(&fixed, 36),
            l1_offset: be64(&fixed, 40),
            refcount_table_offset: be64(&fixed, 48),
            refcount_table_clusters: be32(&fixed, 56),
            snapshots: be32(&fixed, 60),
            snapshots_offset: be64(&fixed, 64),
            incompatible,
            compatible,
            autoclear,
            refcount_order,
            compression,
            luks: None,
            data_file: None,
            length: header_length,
            extensions: Vec::new(),
        };
        if header.has_extended_l2() && cluster_bits < MIN_EXTENDED_CLUSTER_BITS {
            return Err(wrong(path, "its clusters are too small for subclusters"));
        }
        header.check_tables(path, file_size)?;
        header.read_extensions(path, &first_cluster, header_length)?;
        if be32(&fixed, 32) == METHOD_LUKS {
            header.luks = Some(header.find_luks(path, file_size)?);
        }
        Ok(header)
    }

    fn check_tables(&self, path: &Path, file_size: u64) -> Result<(), DiskError> {
        let cluster_size = 1_u64 << self.cluster_bits;
        if self.size > i64::MAX as u64 {
            return Err(wrong(path, "its size is impossible"));
        }
        let l1_bytes = u64::from(self.l1_entries) * 8;
        if l1_bytes > MAX_L1_BYTES || u64::from(self.l1_entries) < self.size.div_ceil(Geometry::of(self).bytes_per_table()) {
            return Err(wrong(path, "its first-level table does not fit its size"));
        }
        let table_bytes = u64::from(self.refcount_table_clusters) * cluster_size;
        if self.refcount_table_clusters == 0 || table_bytes > MAX_REFCOUNT_TABLE_BYTES || self.refcount_table_offset == 0 {
            return Err(wrong(path, "its refcount table has an impossible size"));
        }
        if self.snapshots > MAX_SNAPSHOTS {
            return Err(wrong(path, "it claims too many snapshots"));
        }
        let l1 = Region { what: "first-level table", start: self.l1_offset, length: l1_bytes };
        let refcount_table = Region { what: "refcount table", start: self.refcount_table_offset, length: table_bytes };
        let snapshots =
            Region { what: "snapshot table", start: self.snapshots_offset, length: u64::from(self.snapshots).min(1) * 40 };
        let header = Region { what: "header", start: 0, length: cluster_size };
        let regions = [header, l1, refcount_table, snapshots];
        for (index, region) in regions.iter().enumerate().filter(|(_, region)| region.length > 0) {
            let inside = region.start.checked_add(region.length).is_some_and(|end| end <= file_size);
            // The header's cluster and the last table may end with the file, before their cluster does.
            if region.start % cluster_size != 0 || (!inside && index != 0) {
                return Err(wrong(path, &format!("its {} lies outside the file", region.what)));
            }
            if let Some(other) = regions[..index].iter().find(|other| other.overlaps(region, cluster_size)) {
                return Err(wrong(path, &format!("its {} overlaps its {}", region.what, other.what)));
            }
        }
        Ok(())
    }

    fn read_extensions(&mut self, path: &Path, first_cluster: &[u8], header_length: usize) -> Result<(), DiskError> {
        let (name_offset, name_length) = (be64(first_cluster, 8), be32(first_cluster, 16));
        let has_name = name_offset != 0;
        if has_name != (name_length != 0) || name_length > MAX_BACKING_NAME {
            return Err(wrong(path, "the name of its base image has an impossible size"));
        }
        let name_end = name_offset.checked_add(u64::from(name_length));
        let fits = name_end.is_some_and(|end| end <= first_cluster.len() as u64);
        if has_name && (name_offset < header_length as u64 || !fits) {
            return Err(wrong(path, "the name of its base image lies outside the header"));
        }
        let area_end = if has_name { name_offset as usize } else { first_cluster.len() };
        let mut rest = first_cluster.get(header_length..area_end).unwrap_or_default();
        // An area too small for any extension needs no end mark: old writers put the name right behind the header.
        while !rest.is_empty() {
            let (Some(kind), Some(length)) = (checked_be32(rest, 0), checked_be32(rest, 4)) else {
                return Err(wrong(path, "its header extensions have no end"));
            };
            if kind == EXTENSION_END {
                break;
            }
            let Some(data) = rest.get(8..).and_then(|after| after.get(..length as usize)) else {
                return Err(wrong(path, "a header extension is longer than the header"));
            };
            if self.extensions.iter().any(|(known, _)| *known == kind) {
                return Err(wrong(path, "a header extension is there twice"));
            }
            self.extensions.push((kind, data.to_vec()));
            rest = rest.get(8 + data.len().next_multiple_of(8)..).unwrap_or_default();
        }
        if has_name {
            let bytes = &first_cluster[name_offset as usize..][..name_length as usize];
            let name = std::str::from_utf8(bytes).ok().filter(|name| !name.contains('\0'));
            let Some(name) = name else {
                return Err(wrong(path, "the name of its base image is not text"));
            };
            let format = self.extension(EXTENSION_BACKING_FORMAT).map(|data| String::from_utf8_lossy(data).into_owned());
            self.backing = Some(BackingName { name: name.to_owned(), format });
        }
        if self.has_data_file()
            && let Some(bytes) = self.extension(EXTENSION_DATA_FILE)
        {
            let name = std::str::from_utf8(bytes).ok().filter(|name| !name.is_empty() && !name.contains('\0'));
            let Some(name) = name else { return Err(wrong(path, "the name of its data file is not text")) };
            self.data_file = Some(name.to_owned());
        }
        Ok(())
    }

    /// Where the header of its encryption lies, by the extension that tells it.
    fn find_luks(&self, path: &Path, file_size: u64) -> Result<(u64, u64), DiskError> {
        let Some(extension) = self.extension(EXTENSION_LUKS).filter(|extension| extension.len() >= 16) else {
            return Err(wrong(path, "it is encrypted, but says nothing of its keys"));
        };
        let (offset, length) = (be64(extension, 0), be64(extension, 8));
        let is_inside = offset.checked_add(length).is_some_and(|end| end <= file_size);
        if offset == 0 || !offset.is_multiple_of(1 << self.cluster_bits) || length == 0 || !is_inside {
            return Err(wrong(path, "the header of its encryption lies outside the file"));
        }
        Ok((offset, length))
    }

    /// Whether second-level entries have a second word, for subclusters.
    pub(super) fn has_extended_l2(&self) -> bool {
        self.incompatible & INCOMPATIBLE_EXTENDED_L2 != 0
    }

    /// Whether the data lies in another file.
    pub(super) fn has_data_file(&self) -> bool {
        self.incompatible & INCOMPATIBLE_DATA_FILE != 0
    }

    /// Whether that other file must read as the disk does.
    pub(super) fn has_raw_data_file(&self) -> bool {
        self.has_data_file() && self.autoclear & AUTOCLEAR_RAW_DATA_FILE != 0
    }

    /// The data of an extension.
    pub(super) fn extension(&self, kind: u32) -> Option<&[u8]> {
        self.extensions.iter().find(|(known, _)| *known == kind).map(|(_, data)| data.as_slice())
    }
}

/// A stretch of the file that the header names.
struct Region {
    what: &'static str,
    start: u64,
    length: u64,
}

impl Region {
    fn overlaps(&self, other: &Region, cluster_size: u64) -> bool {
        let end = |region: &Region| region.start.saturating_add(region.length).div_ceil(cluster_size);
        let begin = |region: &Region| region.start / cluster_size;
        self.length > 0 && other.length > 0 && begin(self) < end(other) && begin(other) < end(self)
    }
}

fn refuse_unknown_features(path: &Path, incompatible: u64, crypt_method: u32) -> Result<(), DiskError> {
    let known =
        INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT | INCOMPATIBLE_DATA_FILE | INCOMPATIBLE_COMPRESSION | INCOMPATIBLE_EXTENDED_L2;
    match crypt_method {
        0 => {}
        METHOD_LUKS => {}
        1 => return Err(unsupported(path, "an old kind of encryption (AES-CBC), which does not protect it".into())),
        _ => return Err(wrong(path, "its encryption method does not exist")),
    }
    if incompatible & !known != 0 {
        return Err(unsupported(path, format!("features that are newer than this program (bits {:#x})", incompatible & !known)));
    }
    Ok(())
}

fn compression_type(path: &Path, cluster: &[u8], header_length: usize, incompatible: u64) -> Result<Compression, DiskError> {
    let field = if header_length > V3_LENGTH { cluster.get(V3_LENGTH).copied() } else { None };
    let has_bit = incompatible & INCOMPATIBLE_COMPRESSION != 0;
    match (field, has_bit) {
        (None | Some(0), false) => Ok(Compression::Deflate),
        (Some(1), true) => Ok(Compression::Zstd),
        (Some(kind), true) if kind != 0 => Err(unsupported(path, format!("compression type {kind}"))),
        _ => Err(wrong(path, "its compression type contradicts its features")),
    }
}

pub(super) fn wrong(path: &Path, detail: &str) -> DiskError {
    DiskError::WrongFormat { expected: "qcow2 disk", detail: detail.into(), path: path.to_path_buf() }
}

pub(super) fn unsupported(path: &Path, feature: String) -> DiskError {
    DiskError::Unsupported { feature, path: path.to_path_buf() }
}

pub(super) fn checked_be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|field| u32::from_be_bytes(*field))
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    checked_be32(bytes, at).unwrap_or(0)
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |field| u64::from_be_bytes(*field))
}
