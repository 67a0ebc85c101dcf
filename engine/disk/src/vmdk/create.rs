//! Making empty VMDK disks of every kind that we write.

use std::path::Path;

use crate::DiskError;
use crate::block_file::{Access, BlockFile};
use crate::fields::put;
use crate::formats::Format;
use crate::host_file::HostFile;
use crate::open::CreateOptions;
use crate::parent::identify;

use super::SECTOR;
use super::descriptor::{ExtentLine, Parent, text};
use super::sparse::{
    AT_END, HAS_MARKERS, HAS_NEWLINE_TEST, HAS_REDUNDANT_TABLE, HAS_ZERO_GRAINS, HEADER_LENGTH, IS_COMPRESSED, MAGIC,
    NEWLINE_TEST, TABLE_ENTRIES,
};
use super::stream::mark;

/// The kinds of VMDK that can be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VmdkKind {
    /// One file that grows.
    #[default]
    MonolithicSparse,
    /// A descriptor, and one file as large as the disk.
    MonolithicFlat,
    /// A descriptor, and growing files of two gigabytes each.
    TwoGbMaxExtentSparse,
    /// A descriptor, and files of two gigabytes each.
    TwoGbMaxExtentFlat,
    /// One compressed file, to be written once.
    StreamOptimized,
}

impl VmdkKind {
    /// All of them.
    pub const ALL: [VmdkKind; 5] = [
        VmdkKind::MonolithicSparse,
        VmdkKind::MonolithicFlat,
        VmdkKind::TwoGbMaxExtentSparse,
        VmdkKind::TwoGbMaxExtentFlat,
        VmdkKind::StreamOptimized,
    ];

    /// VMware's word for it.
    pub fn name(self) -> &'static str {
        match self {
            VmdkKind::MonolithicSparse => "monolithicSparse",
            VmdkKind::MonolithicFlat => "monolithicFlat",
            VmdkKind::TwoGbMaxExtentSparse => "twoGbMaxExtentSparse",
            VmdkKind::TwoGbMaxExtentFlat => "twoGbMaxExtentFlat",
            VmdkKind::StreamOptimized => "streamOptimized",
        }
    }
}

/// The controller on which VMware's virtual machines are to put a disk. It decides about the geometry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VmdkAdapter {
    /// IDE.
    #[default]
    Ide,
    /// BusLogic's SCSI controller.
    BusLogic,
    /// LSI Logic's SCSI controller.
    LsiLogic,
    /// What ESX calls its older SCSI disks.
    LegacyEsx,
}

impl VmdkAdapter {
    /// All of them.
    pub const ALL: [VmdkAdapter; 4] = [VmdkAdapter::Ide, VmdkAdapter::BusLogic, VmdkAdapter::LsiLogic, VmdkAdapter::LegacyEsx];

    /// VMware's word for it.
    pub fn name(self) -> &'static str {
        match self {
            VmdkAdapter::Ide => "ide",
            VmdkAdapter::BusLogic => "buslogic",
            VmdkAdapter::LsiLogic => "lsilogic",
            VmdkAdapter::LegacyEsx => "legacyESX",
        }
    }
}

/// What only a VMDK disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmdkOptions {
    /// What kind of file, or files, it becomes.
    pub kind: VmdkKind,
    /// Its controller.
    pub adapter: VmdkAdapter,
    /// The version of VMware's virtual hardware that it is for.
    pub hardware_version: u32,
    /// The version of VMware's tools in the guest that is noted in it, if any is.
    pub tools_version: Option<u32>,
    /// Whether a grain of zeros can be told without being stored, in kinds that grow.
    pub has_zero_grains: bool,
}

impl Default for VmdkOptions {
    fn default() -> Self {
        Self {
            kind: VmdkKind::default(),
            adapter: VmdkAdapter::default(),
            hardware_version: 4,
            tools_version: None,
            has_zero_grains: false,
        }
    }
}

const GRAIN: u64 = 64 << 10;
const DESCRIPTOR_OFFSET: u64 = SECTOR;
const DESCRIPTOR_LENGTH: u64 = 20 * SECTOR;
/// A little less than two gigabytes, so that no file reaches them.
const SPLIT: u64 = 2_146_435_072;

pub(super) fn create(file: &dyn BlockFile, options: &CreateOptions) -> Result<(), DiskError> {
    let refuse = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: file.path().to_path_buf() };
    let parent = match &options.backing {
        None => None,
        Some(_) if options.vmdk.kind != VmdkKind::MonolithicSparse => {
            return Err(refuse("Of VMDK disks only monolithicSparse ones can be built on another file"));
        }
        Some(backing) => {
            let (identity, _) = identify(file.path(), backing, Format::Vmdk)?;
            Some(Parent { cid: identity.content as u32, name: backing.name.clone() })
        }
    };
    let name = file.path().file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| refuse("The name of a VMDK disk must be text, because it is written down in it"))?;
    let size = options.size;
    let sparse_line =
        |name: &str, size: u64| ExtentLine { sectors: size / SECTOR, kind: "SPARSE".into(), file: name.to_owned(), offset: 0 };
    let kind = options.vmdk.kind;
    let words = |lines: &[ExtentLine]| text(&options.vmdk, lines, size, parent.as_ref());
    // Where a base shows through, grains that are zeros must be able to say so.
    let flags = if parent.is_some() || options.vmdk.has_zero_grains { HAS_ZERO_GRAINS } else { 0 };
    match kind {
        VmdkKind::MonolithicSparse | VmdkKind::TwoGbMaxExtentSparse | VmdkKind::StreamOptimized if size > 1 << 40 => {
            Err(refuse("A VMDK disk that grows cannot be larger than 1 TiB here. Use monolithicFlat or qcow2"))
        }
        VmdkKind::MonolithicSparse => {
            let words = words(&[sparse_line(name, size)]);
            if words.len() as u64 > DESCRIPTOR_LENGTH {
                return Err(refuse("The name of the base file is too long for a VMDK disk. Rename it or put it elsewhere"));
            }
            write_sparse(file, size, GRAIN, flags, Some(&words))
        }
        VmdkKind::StreamOptimized => write_stream(file, size, &words(&[sparse_line(name, size)])),
        VmdkKind::MonolithicFlat | VmdkKind::TwoGbMaxExtentFlat | VmdkKind::TwoGbMaxExtentSparse => {
            let stem = name.strip_suffix(".vmdk").unwrap_or(name);
            let is_sparse = kind == VmdkKind::TwoGbMaxExtentSparse;
            let mut lines = Vec::new();
            let mut at = 0;
            while at < size || lines.is_empty() {
                let number = lines.len() + 1;
                let (part, part_size) = match kind {
                    VmdkKind::MonolithicFlat => (format!("{stem}-flat.vmdk"), size),
                    _ => (format!("{stem}-{}{number:03}.vmdk", if is_sparse { 's' } else { 'f' }), SPLIT.min(size - at)),
                };
                write_part(&file.path().with_file_name(&part), part_size, is_sparse.then_some(flags))?;
                let kind = if is_sparse { "SPARSE" } else { "FLAT" }.to_owned();
                lines.push(ExtentLine { sectors: part_size / SECTOR, kind, file: part, offset: 0 });
                at += part_size;
            }
            write(file, 0, words(&lines).as_bytes())
        }
    }
}

fn write(file: &dyn BlockFile, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
    file.write_at(offset, bytes).map_err(|source| DiskError::host("create", file.path(), source))
}

/// Makes a file beside the descriptor, in place of what it held before: a sparse one with these flags, or a flat one.
fn write_part(path: &Path, size: u64, sparse: Option<u32>) -> Result<(), DiskError> {
    let file = match HostFile::open(path, Access::ReadWrite) {
        Err(DiskError::NotFound { .. }) => HostFile::create_new(path)?,
        other => other?,
    };
    let host = |source| DiskError::host("create", path, source);
    file.lock(Access::ReadWrite).map_err(|_| DiskError::InUse { hint: "", path: path.to_path_buf() })?;
    file.truncate(0).map_err(host)?;
    match sparse {
        Some(flags) => write_sparse(&file, size, GRAIN, flags, None),
        None => file.truncate(size).map_err(host),
    }
}

fn header(size: u64, grain: u64, flags: u32, with_descriptor: bool) -> [u8; HEADER_LENGTH] {
    let is_stream = flags & IS_COMPRESSED != 0;
    let mut header = [0; HEADER_LENGTH];
    put(&mut header, 0, MAGIC);
    let version = match flags {
        _ if is_stream => 3_u32,
        flags if flags & HAS_ZERO_GRAINS != 0 => 2,
        _ => 1,
    };
    put(&mut header, 4, &version.to_le_bytes());
    put(&mut header, 8, &(HAS_NEWLINE_TEST | flags).to_le_bytes());
    put(&mut header, 12, &(size / SECTOR).to_le_bytes());
    put(&mut header, 20, &(grain / SECTOR).to_le_bytes());
    if with_descriptor {
        put(&mut header, 28, &(DESCRIPTOR_OFFSET / SECTOR).to_le_bytes());
        put(&mut header, 36, &(DESCRIPTOR_LENGTH / SECTOR).to_le_bytes());
    }
    put(&mut header, 44, &(TABLE_ENTRIES as u32).to_le_bytes());
    put(&mut header, 73, &NEWLINE_TEST);
    put(&mut header, 77, &u16::from(is_stream).to_le_bytes());
    header
}

/// Header, descriptor, then twice: the directory and all its tables. Grains follow.
fn write_sparse(file: &dyn BlockFile, size: u64, grain: u64, flags: u32, descriptor: Option<&str>) -> Result<(), DiskError> {
    let tables = size.div_ceil(grain).div_ceil(TABLE_ENTRIES);
    let directory_length = (tables * 4).next_multiple_of(SECTOR);
    let table_length = TABLE_ENTRIES * 4;
    let redundant = DESCRIPTOR_OFFSET + DESCRIPTOR_LENGTH;
    let main = redundant + directory_length + tables * table_length;
    let end = (main + directory_length + tables * table_length).next_multiple_of(grain);
    let mut header = header(size, grain, HAS_REDUNDANT_TABLE | flags, descriptor.is_some());
    put(&mut header, 48, &(redundant / SECTOR).to_le_bytes());
    put(&mut header, 56, &(main / SECTOR).to_le_bytes());
    put(&mut header, 64, &(end / SECTOR).to_le_bytes());
    file.truncate(end).map_err(|source| DiskError::host("create", file.path(), source))?;
    for directory in [redundant, main] {
        let first = (directory + directory_length) / SECTOR;
        let entries: Vec<u8> =
            (0..tables).flat_map(|table| ((first + table * table_length / SECTOR) as u32).to_le_bytes()).collect();
        write(file, directory, &entries)?;
    }
    write(file, DESCRIPTOR_OFFSET, descriptor.unwrap_or_default().as_bytes())?;
    write(file, 0, &header)
}

/// A stream without grains: header, descriptor, an empty directory, footer, end.
fn write_stream(file: &dyn BlockFile, size: u64, descriptor: &str) -> Result<(), DiskError> {
    let grains_at = (DESCRIPTOR_OFFSET + DESCRIPTOR_LENGTH).next_multiple_of(GRAIN);
    let directory_length = (size.div_ceil(GRAIN).div_ceil(TABLE_ENTRIES) * 4).next_multiple_of(SECTOR);
    let mut header = header(size, GRAIN, IS_COMPRESSED | HAS_MARKERS, true);
    put(&mut header, 56, &AT_END.to_le_bytes());
    put(&mut header, 64, &(grains_at / SECTOR).to_le_bytes());
    let mut tail = mark(directory_length / SECTOR, 2).to_vec();
    let directory_sector = (grains_at + SECTOR) / SECTOR;
    tail.resize(tail.len() + directory_length as usize, 0);
    tail.extend(mark(1, 3));
    let mut footer = header;
    put(&mut footer, 56, &directory_sector.to_le_bytes());
    tail.extend(footer);
    tail.extend(mark(0, 0));
    write(file, DESCRIPTOR_OFFSET, descriptor.as_bytes())?;
    write(file, grains_at, &tail)?;
    write(file, 0, &header)
}

/// A growing disk with grains as small as they can be, so that small files have many.
#[cfg(test)]
pub(crate) fn create_small(file: &dyn BlockFile, size: u64) {
    let words = small_words(size, None);
    write_sparse(file, size, 4096, 0, Some(&words)).unwrap();
}

/// The same, built on another.
#[cfg(test)]
pub(crate) fn create_small_over(file: &dyn BlockFile, backing: &crate::Backing) {
    let (identity, size) = identify(file.path(), backing, Format::Vmdk).unwrap();
    let words = small_words(size, Some(&Parent { cid: identity.content as u32, name: backing.name.clone() }));
    write_sparse(file, size, 4096, HAS_ZERO_GRAINS, Some(&words)).unwrap();
}

#[cfg(test)]
fn small_words(size: u64, parent: Option<&Parent>) -> String {
    let line = ExtentLine { sectors: size / SECTOR, kind: "SPARSE".into(), file: "disk".into(), offset: 0 };
    text(&VmdkOptions::default(), &[line], size, parent)
}
