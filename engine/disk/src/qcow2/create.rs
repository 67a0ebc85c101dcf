//! Making an empty qcow2 file: header, refcount table and blocks, first-level table, in this order.

use crate::block_file::BlockFile;
use crate::luks;
use crate::open::{CreateOptions, Preallocation, set_space_aside};
use crate::{DiskError, Format};

use super::header::{
    AUTOCLEAR_RAW_DATA_FILE, COMPATIBLE_LAZY_REFCOUNTS, Compression, EXTENSION_BACKING_FORMAT, EXTENSION_DATA_FILE,
    EXTENSION_END, EXTENSION_LUKS, INCOMPATIBLE_COMPRESSION, INCOMPATIBLE_DATA_FILE, INCOMPATIBLE_EXTENDED_L2, MAGIC,
    MAX_CLUSTER_BITS, MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES, METHOD_LUKS, MIN_CLUSTER_BITS, MIN_EXTENDED_CLUSTER_BITS,
    V2_LENGTH, V3_LENGTH, V3_LENGTH_WITH_COMPRESSION,
};
use super::mapping::{COPIED, Cluster, Geometry};
use super::refcounts::set;

/// What can be chosen for a new qcow2 file. The defaults are QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qcow2Options {
    /// 2 (for QEMU before 1.1) or 3.
    pub version: u32,
    /// Bytes in a cluster: a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
    /// Width of a reference count: 1, 2, 4, 8, 16, 32 or 64 bits; version 2 has 16 only.
    pub refcount_bits: u32,
    /// How clusters would be compressed; only version 3 has a choice.
    pub compression: Compression,
    /// Whether writers may leave the refcounts behind. A permission for other programs; we keep them exact anyway.
    pub lazy_refcounts: bool,
    /// Whether clusters are mapped in 32 pieces each: small writes copy less, and the tables are twice as large.
    /// Needs version 3 and clusters of 16 KiB or more.
    pub extended_l2: bool,
}

impl Default for Qcow2Options {
    fn default() -> Self {
        Self {
            version: 3,
            cluster_size: 65_536,
            refcount_bits: 16,
            compression: Compression::Deflate,
            lazy_refcounts: false,
            extended_l2: false,
        }
    }
}

/// Where things lie in a new file, in clusters.
struct Layout {
    table_clusters: u64,
    blocks: u64,
    l1_entries: u64,
    l1_clusters: u64,
    /// The header of the encryption.
    luks: u64,
    /// Second-level tables and data that are mapped from the beginning.
    tables: u64,
    data: u64,
}

impl Layout {
    fn of(geometry: Geometry, size: u64, luks: u64, preallocation: Preallocation) -> Self {
        let cluster_size = geometry.cluster_size();
        let l1_entries = size.div_ceil(cluster_size * geometry.l2_entries()).max(1);
        let l1_clusters = (l1_entries * 8).div_ceil(cluster_size);
        let (tables, data) = match preallocation {
            Preallocation::Off => (0, 0),
            // With a data file there is nothing but tables here.
            _ if geometry.external_data => (size.div_ceil(geometry.bytes_per_table()), 0),
            _ => (size.div_ceil(geometry.bytes_per_table()), size.div_ceil(cluster_size)),
        };
        let (mut table_clusters, mut blocks) = (1, 1);
        // Each round can only grow; it ends as soon as the blocks count everything and the table finds the blocks.
        loop {
            let total = 1 + table_clusters + blocks + l1_clusters + luks + tables + data;
            let needed = (total.div_ceil(geometry.block_entries()), (blocks * 8).div_ceil(cluster_size));
            if needed.0 <= blocks && needed.1 <= table_clusters {
                return Self { table_clusters, blocks, l1_entries, l1_clusters, luks, tables, data };
            }
            (blocks, table_clusters) = (blocks.max(needed.0), table_clusters.max(needed.1));
        }
    }
}

pub(super) fn create(file: &dyn BlockFile, options: &CreateOptions) -> Result<(), DiskError> {
    let Qcow2Options { version, cluster_size, refcount_bits, compression, lazy_refcounts, extended_l2 } = options.qcow2;
    let refuse = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: file.path().to_path_buf() };
    let cluster_bits = cluster_size.trailing_zeros();
    if !cluster_size.is_power_of_two() || !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&cluster_bits) {
        return Err(refuse("The cluster size must be a power of two from 512 bytes to 2 MiB"));
    }
    if !refcount_bits.is_power_of_two() || refcount_bits > 64 {
        return Err(refuse("The refcount width must be 1, 2, 4, 8, 16, 32 or 64 bits"));
    }
    match version {
        3 => {}
        2 if refcount_bits == 16 && compression == Compression::Deflate && !lazy_refcounts && !extended_l2 => {}
        2 => {
            return Err(refuse(
                "Version 2 has only exact 16-bit refcounts, deflate and no subclusters. Use version 3 for others",
            ));
        }
        _ => return Err(refuse("The qcow2 version must be 2 or 3")),
    }
    if extended_l2 && cluster_bits < MIN_EXTENDED_CLUSTER_BITS {
        return Err(refuse("Subclusters need clusters of at least 16 KiB"));
    }
    let refcount_order = refcount_bits.trailing_zeros();
    let geometry = Geometry { cluster_bits, refcount_order, version, extended_l2, external_data: options.data_file.is_some() };
    if options.preallocation != Preallocation::Off && options.backing.is_some() && !extended_l2 {
        return Err(refuse(CANNOT_KEEP_SPACE_OVER_BASE));
    }
    let luks = match &options.passphrase {
        None => Vec::new(),
        Some(_) if version < 3 => return Err(refuse("Version 2 disks cannot be encrypted. Use version 3")),
        Some(_) if options.preallocation != Preallocation::Off => {
            return Err(refuse("An encrypted disk cannot set space aside"));
        }
        Some(passphrase) => luks::new_header(passphrase, options.passphrase_time)
            .map_err(|source| DiskError::host("create", file.path(), source))?,
    };
    if let Some(data_file) = &options.data_file {
        match options {
            _ if version < 3 => return Err(refuse("Version 2 disks cannot keep their data in another file. Use version 3")),
            CreateOptions { backing: Some(_), .. } if data_file.raw => {
                return Err(refuse("A disk with a raw data file cannot be built on another"));
            }
            _ if data_file.name.is_empty() || data_file.name.contains('\0') => return Err(refuse("The data file needs a name")),
            _ => {}
        }
    }
    // A raw data file reads as the disk does only where every cluster is mapped.
    let preallocation = match (options.preallocation, &options.data_file) {
        (Preallocation::Off, Some(data_file)) if data_file.raw => Preallocation::Metadata,
        (preallocation, _) => preallocation,
    };
    let luks_clusters = (luks.len() as u64).div_ceil(cluster_size);
    let layout = Layout::of(geometry, options.size, luks_clusters, preallocation);
    let table_fits = layout.table_clusters * cluster_size <= MAX_REFCOUNT_TABLE_BYTES;
    if layout.l1_entries * 8 > MAX_L1_BYTES || !table_fits {
        return Err(refuse("A disk of this size needs larger clusters. Choose a larger cluster size"));
    }
    let header = encode_header(options, geometry, &layout, luks.len() as u64)
        .ok_or_else(|| refuse("The name of the base image is too long"))?;

    let first_block = 1 + layout.table_clusters;
    let l1 = first_block + layout.blocks;
    let tables = l1 + layout.l1_clusters + layout.luks;
    let data = tables + layout.tables;
    let used = data + layout.data;
    let host = |doing: &'static str| move |source| DiskError::host(doing, file.path(), source);
    let write = |offset: u64, bytes: &[u8]| file.write_at(offset, bytes).map_err(host("write"));
    // The first-level table may be all zeros, which is what a file grown by `truncate` holds.
    file.truncate(used * cluster_size).map_err(host("create"))?;
    set_space_aside(file, data * cluster_size, layout.data * cluster_size, options.preallocation)?;
    write(cluster_size, &offsets(first_block, layout.blocks, cluster_size, 0))?;
    for number in 0..layout.blocks {
        let mut block = vec![0; cluster_size as usize];
        let counted = number * geometry.block_entries()..used.min((number + 1) * geometry.block_entries());
        for entry in 0..counted.end - counted.start {
            set(&mut block, entry as usize, geometry.refcount_order, 1);
        }
        write((first_block + number) * cluster_size, &block)?;
    }
    write((l1 + layout.l1_clusters) * cluster_size, &luks)?;
    write(l1 * cluster_size, &offsets(tables, layout.tables, cluster_size, COPIED))?;
    for number in 0..layout.tables {
        let mapped = number * geometry.l2_entries();
        let entries = (options.size.div_ceil(cluster_size) - mapped).min(geometry.l2_entries());
        // With subclusters a place is kept without anything being stored in it.
        let stored = if extended_l2 { 0 } else { 1 };
        let first = if geometry.external_data { mapped } else { data + mapped };
        let entries = (first..first + entries).flat_map(|host| {
            let cluster = Cluster::Mapped { host: Some(host * cluster_size), copied: true, stored, zeros: 0 };
            cluster.encode(geometry).bytes(geometry)
        });
        write((tables + number) * cluster_size, &entries.collect::<Vec<u8>>())?;
    }
    write(0, &header)
}

pub(super) const CANNOT_KEEP_SPACE_OVER_BASE: &str =
    "A disk that is built on another can set space aside only with subclusters (extended_l2)";

/// Table entries for so many clusters that follow each other.
fn offsets(first: u64, count: u64, cluster_size: u64, marks: u64) -> Vec<u8> {
    (first..first + count).flat_map(|cluster| ((cluster * cluster_size) | marks).to_be_bytes()).collect()
}

/// The header with its extensions and the name of the base image; `None` if that does not fit the first cluster.
fn encode_header(options: &CreateOptions, geometry: Geometry, layout: &Layout, luks_length: u64) -> Option<Vec<u8>> {
    let cluster_size = geometry.cluster_size();
    let with_zstd = options.qcow2.compression == Compression::Zstd;
    let length = match (geometry.version, with_zstd) {
        (2, _) => V2_LENGTH,
        (_, false) => V3_LENGTH,
        (_, true) => V3_LENGTH_WITH_COMPRESSION,
    };
    let l1_offset = (1 + layout.table_clusters + layout.blocks) * cluster_size;
    let format = options.backing.as_ref().map(|backing| backing_word(backing.format).as_bytes().to_vec());
    let mut extensions: Vec<_> = format.map(|word| (EXTENSION_BACKING_FORMAT, word)).into_iter().collect();
    let is_encrypted = luks_length > 0;
    if is_encrypted {
        let luks_offset = l1_offset + layout.l1_clusters * cluster_size;
        extensions.push((EXTENSION_LUKS, [luks_offset.to_be_bytes(), luks_length.to_be_bytes()].concat()));
    }
    let data_file = options.data_file.as_ref();
    extensions.extend(data_file.map(|data_file| (EXTENSION_DATA_FILE, data_file.name.as_bytes().to_vec())));
    let extensions = encode_extensions(&extensions);
    let name = options.backing.as_ref().map_or(&[][..], |backing| backing.name.as_bytes());
    let name_offset = if name.is_empty() { 0 } else { (length + extensions.len()) as u64 };
    if name.len() > 1023 || (length + extensions.len() + name.len()) as u64 > cluster_size || name.contains(&0) {
        return None;
    }
    let mut header = Vec::with_capacity(length);
    header.extend(MAGIC);
    header.extend(geometry.version.to_be_bytes());
    header.extend(name_offset.to_be_bytes());
    header.extend((name.len() as u32).to_be_bytes());
    header.extend(geometry.cluster_bits.to_be_bytes());
    header.extend(options.size.to_be_bytes());
    header.extend(if is_encrypted { METHOD_LUKS } else { 0 }.to_be_bytes());
    header.extend((layout.l1_entries as u32).to_be_bytes());
    header.extend(l1_offset.to_be_bytes());
    header.extend(cluster_size.to_be_bytes()); // the refcount table follows the header
    header.extend((layout.table_clusters as u32).to_be_bytes());
    header.extend([0; 12]); // snapshots: none
    if geometry.version >= 3 {
        let incompatible = if with_zstd { INCOMPATIBLE_COMPRESSION } else { 0 }
            | if geometry.extended_l2 { INCOMPATIBLE_EXTENDED_L2 } else { 0 }
            | if geometry.external_data { INCOMPATIBLE_DATA_FILE } else { 0 };
        header.extend(incompatible.to_be_bytes());
        header.extend((if options.qcow2.lazy_refcounts { COMPATIBLE_LAZY_REFCOUNTS } else { 0 }).to_be_bytes());
        let is_raw = data_file.is_some_and(|data_file| data_file.raw);
        header.extend((if is_raw { AUTOCLEAR_RAW_DATA_FILE } else { 0 }).to_be_bytes());
        header.extend(geometry.refcount_order.to_be_bytes());
        header.extend((length as u32).to_be_bytes());
        if with_zstd {
            header.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        }
    }
    header.extend(extensions);
    header.extend(name);
    Some(header)
}

/// Header extensions as they stand in a file, with their end mark.
pub(super) fn encode_extensions(extensions: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, data) in extensions {
        bytes.extend(kind.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes.extend(EXTENSION_END.to_be_bytes());
    bytes.extend([0; 4]);
    bytes
}

/// The word that QEMU knows a format by; it has none for CD images, which are raw to it.
pub(super) fn backing_word(format: Format) -> &'static str {
    match format {
        Format::Iso => Format::Raw.name(),
        other => other.name(),
    }
}
