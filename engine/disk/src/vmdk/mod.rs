//! VMDK, VMware's disk: a descriptor in words, and the extents that it names, in the same file or in others beside it.
//!
//! Done: monolithicSparse, monolithicFlat, twoGbMaxExtentSparse and twoGbMaxExtentFlat, read and written;
//! streamOptimized, read, and written once from its start to its end. Disks with a parent, which the descriptor names and
//! knows by the identifier of its content. The first and second kind grow. ESX's own kinds and devices as extents are
//! refused. Extents are only ever opened beside their descriptor.
//! See: VMware, "Virtual Disk Format 5.0".

mod concat;
mod create;
mod descriptor;
mod sparse;
mod stream;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::DiskError;
use crate::block_file::{Access, BlockFile};
use crate::block_table::{BlockTableDisk, MAX_BLOCKS, Opened};
use crate::check::{CheckReport, Repair};
use crate::fenced_file::FencedFile;
use crate::flat::Flat;
use crate::formats::{Driver, Format, Opening};
use crate::image::DiskImage;
use crate::image_info::{BackingInfo, Identity, ImageInfo, InfoValue};
use crate::open::{Backing, Chain};
use crate::parent::{Base, name_of_base};

use concat::{Concat, Window, Zeros};
use descriptor::{Descriptor, ExtentLine, Parent};
use sparse::SparseHeader;

pub use create::{VmdkAdapter, VmdkKind, VmdkOptions};
#[cfg(test)]
pub(crate) use create::{create_small, create_small_over};

pub(crate) const DRIVER: Driver = Driver {
    format: Format::Vmdk,
    name: "vmdk",
    title: "VMDK disk",
    recognise: |head| head.starts_with(sparse::MAGIC) || descriptor::is_descriptor(head),
    open,
    create: Some(create::create),
    check: Some(check),
    has_snapshots: false,
    writable: true,
};

const SECTOR: u64 = 512;
/// A descriptor longer than this is nobody's.
const MAX_DESCRIPTOR: u64 = 1 << 20;
const MAX_EXTENTS: usize = 4096;

fn wrong(file: &FencedFile, detail: &str) -> DiskError {
    DiskError::WrongFormat { expected: DRIVER.title, detail: detail.into(), path: file.path().into() }
}

fn unsupported(file: &FencedFile, feature: impl Into<String>) -> DiskError {
    DiskError::Unsupported { feature: feature.into(), path: file.path().into() }
}

fn open(opening: Opening<'_>) -> Result<Arc<dyn DiskImage>, DiskError> {
    let Opening { file, access, chain, .. } = opening;
    let fenced = FencedFile::new(Arc::clone(&file));
    let mut start = [0; 512];
    fenced.read_zero_padded(0, &mut start)?;
    if start.starts_with(b"COWD") {
        return Err(unsupported(&fenced, "ESX's own sparse extents"));
    }
    if start.starts_with(sparse::MAGIC) {
        let header = SparseHeader::read(&fenced)?;
        let descriptor = header.embedded_descriptor(&fenced)?;
        let base = open_base(&fenced, chain, &descriptor)?;
        return sparse_extent(file, access, header, Some(descriptor), base);
    }
    if !descriptor::is_descriptor(&start) {
        return Err(wrong(&fenced, "its first bytes are not those of a VMDK disk"));
    }
    let descriptor = Descriptor::file(&fenced)?;
    if descriptor.extents.is_empty() || descriptor.extents.len() > MAX_EXTENTS {
        return Err(wrong(&fenced, "it names no extents, or too many"));
    }
    let base = open_base(&fenced, chain, &descriptor)?;
    let mut parts: Vec<Arc<dyn DiskImage>> = Vec::new();
    let mut grains = Vec::new();
    let mut flat_files: HashMap<String, Arc<dyn BlockFile>> = HashMap::new();
    let (mut at, mut all_grains) = (0_u64, 0_u64);
    for line in &descriptor.extents {
        let size = line.sectors.checked_mul(SECTOR).filter(|size| *size <= i64::MAX as u64);
        let size = size.ok_or_else(|| wrong(&fenced, "an extent has an impossible size"))?;
        let (part, grain): (Arc<dyn DiskImage>, Option<u64>) = match line.kind.as_str() {
            "ZERO" => (Arc::new(Zeros { size }), None),
            "FLAT" | "VMFS" => {
                // Several extents may lie in one file, each at its own offset.
                let file = match flat_files.get(&line.file) {
                    Some(file) => Arc::clone(file),
                    None => chain.open_part(fenced.path(), &line.file, access)?,
                };
                flat_files.insert(line.file.clone(), Arc::clone(&file));
                let file = FencedFile::new(file);
                let start = line.offset.checked_mul(SECTOR).and_then(|start| Some((start, start.checked_add(size)?)));
                let Some((start, _)) = start.filter(|(_, end)| file.len().is_ok_and(|length| *end <= length)) else {
                    return Err(wrong(&fenced, "a flat extent is larger than its file"));
                };
                let flat = Flat::new(file, access, Format::Vmdk, start, size, ImageInfo::default());
                (Arc::new(flat.growing_by(move |file, old, new| grow_flat(file, start + old, start + new))), None)
            }
            "SPARSE" => {
                let file = chain.open_part(fenced.path(), &line.file, access)?;
                let header = SparseHeader::read(&FencedFile::new(Arc::clone(&file)))?;
                if header.capacity != size {
                    return Err(wrong(&fenced, "a sparse extent has another size than the descriptor says"));
                }
                let grain = header.grain;
                all_grains += header.capacity.div_ceil(grain);
                if all_grains > MAX_BLOCKS {
                    return Err(wrong(&fenced, "its extents have too many grains together"));
                }
                let base = match &base {
                    Base::Open(base) => Base::Open(Arc::new(Window { image: Arc::clone(base), start: at })),
                    Base::LeftOut => Base::LeftOut,
                    Base::None => Base::None,
                };
                (sparse_extent(file, access, header, None, base)?, Some(grain))
            }
            other => return Err(unsupported(&fenced, format!("extents of the kind {other}"))),
        };
        parts.push(part);
        grains.push(grain);
        at = at.saturating_add(size);
    }
    Ok(Arc::new(Concat::new(parts, grains, descriptor, base, fenced, access)?))
}

/// The disk that a descriptor says it is built on.
fn open_base(file: &FencedFile, chain: &Chain, descriptor: &Descriptor) -> Result<Base, DiskError> {
    let Some(parent) = &descriptor.parent else { return Ok(Base::None) };
    let backing = Backing { name: name_of_parent(file.path(), parent), format: Format::Vmdk };
    Base::open(chain, file.path(), &backing, |identity| identity.content == u128::from(parent.cid))
}

fn name_of_parent(overlay: &Path, parent: &Parent) -> String {
    name_of_base(overlay, std::slice::from_ref(&parent.name)).unwrap_or_default()
}

fn sparse_extent(
    file: Arc<dyn BlockFile>,
    access: Access,
    header: SparseHeader,
    descriptor: Option<Descriptor>,
    base: Base,
) -> Result<Arc<dyn DiskImage>, DiskError> {
    let path = file.path().to_path_buf();
    let describe = move |descriptor: Option<&Descriptor>, header: &SparseHeader| match descriptor {
        None => ImageInfo::default(),
        Some(descriptor) => {
            let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let line = ExtentLine { sectors: header.capacity / SECTOR, kind: "SPARSE".into(), file, offset: 0 };
            info(&path, descriptor, &[(line, Some(header.grain))], header.is_compressed)
        }
    };
    if header.is_compressed {
        if !matches!(base, Base::None) {
            return Err(unsupported(&FencedFile::new(file), "a parent of a streamOptimized disk"));
        }
        let info = describe(descriptor.as_ref(), &header);
        return Ok(Arc::new(stream::Stream::open(file, access, header, info)?));
    }
    let fenced = FencedFile::new(Arc::clone(&file));
    let opened = sparse::read(&fenced, header, descriptor, access, Box::new(describe))?;
    Ok(Arc::new(BlockTableDisk::new(file, access, Opened { base, ..opened })?))
}

/// A larger file of a flat extent; what was behind the extent's end becomes zeros.
fn grow_flat(file: &FencedFile, old_end: u64, new_end: u64) -> Result<(), DiskError> {
    if file.len()? > old_end {
        file.truncate(old_end)?;
    }
    file.truncate(new_end)?;
    file.flush()
}

fn info(path: &Path, descriptor: &Descriptor, extents: &[(ExtentLine, Option<u64>)], is_compressed: bool) -> ImageInfo {
    let extent = |(line, grain): &(ExtentLine, Option<u64>)| {
        let mut record = vec![
            ("virtual-size", InfoValue::Number(line.sectors.saturating_mul(SECTOR))),
            ("filename", InfoValue::Text(line.file.clone())),
        ];
        record.extend(grain.map(|grain| ("cluster-size", InfoValue::Number(grain))));
        let word = if line.kind == "FLAT" { "FLAT" } else { "" };
        record.push(("format", InfoValue::Text(word.into())));
        if is_compressed {
            record.push(("compressed", InfoValue::Flag(true)));
        }
        InfoValue::Record(record)
    };
    let parent = descriptor.parent.as_ref();
    ImageInfo {
        cluster_size: extents.iter().find_map(|(_, grain)| *grain),
        writes_whole_clusters_compressed: is_compressed,
        backing: parent.map(|parent| BackingInfo { name: name_of_parent(path, parent), format: Some(DRIVER.name.into()) }),
        identity: Some(Identity { disk: 0, content: descriptor.cid.into() }),
        specific: vec![
            ("cid", InfoValue::Number(descriptor.cid.into())),
            ("parent-cid", InfoValue::Number(parent.map_or(descriptor::NO_PARENT, |parent| parent.cid).into())),
            ("create-type", InfoValue::Text(descriptor.create_type.clone())),
            ("extents", InfoValue::List(extents.iter().map(extent).collect())),
        ],
        ..ImageInfo::default()
    }
}

/// Every grain of a sparse file lies inside it at a place of its own, and both its tables say the same.
/// A descriptor's own extents are checked one by one, as the files they are.
fn check(file: Arc<dyn BlockFile>, repair: Repair) -> Result<CheckReport, DiskError> {
    let fenced = FencedFile::new(Arc::clone(&file));
    let mut start = [0; 512];
    fenced.read_zero_padded(0, &mut start)?;
    if !start.starts_with(sparse::MAGIC) {
        Descriptor::file(&fenced)?;
        return Ok(CheckReport::default());
    }
    let header = SparseHeader::read(&fenced)?;
    sparse::check(&fenced, &header, repair)
}
