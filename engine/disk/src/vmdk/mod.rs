//! VMDK, VMware's disk: a descriptor in words, and the extents that it names, in the same file or in others beside it.
//!
//! Done: monolithicSparse, monolithicFlat, twoGbMaxExtentSparse and twoGbMaxExtentFlat, read and written;
//! streamOptimized, read, and written once from its start to its end. Disks with a parent, ESX's own kinds and devices
//! as extents are refused. Extents are only ever opened beside their descriptor.
//! See: VMware, "Virtual Disk Format 5.0".

mod concat;
mod create;
mod descriptor;
mod sparse;
mod stream;

use std::sync::Arc;

use crate::DiskError;
use crate::block_file::{Access, BlockFile};
use crate::block_table::BlockTableDisk;
use crate::check::{CheckReport, Repair};
use crate::fenced_file::FencedFile;
use crate::flat::Flat;
use crate::formats::{Driver, Format, Opening};
use crate::image::DiskImage;
use crate::image_info::{ImageInfo, InfoValue};

use concat::{Concat, Zeros};
use descriptor::{Descriptor, ExtentLine};
use sparse::SparseHeader;

pub use create::VmdkKind;
#[cfg(test)]
pub(crate) use create::create_small;

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
    let name = file.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut start = [0; 512];
    fenced.read_zero_padded(0, &mut start)?;
    if start.starts_with(b"COWD") {
        return Err(unsupported(&fenced, "ESX's own sparse extents"));
    }
    if start.starts_with(sparse::MAGIC) {
        let header = SparseHeader::read(&fenced)?;
        let descriptor = header.embedded_descriptor(&fenced)?;
        let line = ExtentLine { sectors: header.capacity / SECTOR, kind: "SPARSE".into(), file: name, offset: 0 };
        let info = info(&descriptor, &[(line, Some(header.grain))], header.is_compressed);
        return sparse_extent(file, access, header, info);
    }
    if !descriptor::is_descriptor(&start) {
        return Err(wrong(&fenced, "its first bytes are not those of a VMDK disk"));
    }
    let descriptor = Descriptor::read(&fenced, 0, fenced.len()?)?;
    if descriptor.extents.is_empty() || descriptor.extents.len() > MAX_EXTENTS {
        return Err(wrong(&fenced, "it names no extents, or too many"));
    }
    let mut parts: Vec<Arc<dyn DiskImage>> = Vec::new();
    let mut lines = Vec::new();
    for line in &descriptor.extents {
        let size = line.sectors.checked_mul(SECTOR).filter(|size| *size <= i64::MAX as u64);
        let size = size.ok_or_else(|| wrong(&fenced, "an extent has an impossible size"))?;
        let (part, grain): (Arc<dyn DiskImage>, Option<u64>) = match line.kind.as_str() {
            "ZERO" => (Arc::new(Zeros { size }), None),
            "FLAT" | "VMFS" => {
                let file = FencedFile::new(chain.open_part(fenced.path(), &line.file, access)?);
                let start = line.offset.checked_mul(SECTOR).and_then(|start| Some((start, start.checked_add(size)?)));
                let Some((start, _)) = start.filter(|(_, end)| file.len().is_ok_and(|length| *end <= length)) else {
                    return Err(wrong(&fenced, "a flat extent is larger than its file"));
                };
                (Arc::new(Flat { file, access, format: Format::Vmdk, start, size, info: ImageInfo::default() }), None)
            }
            "SPARSE" => {
                let file = chain.open_part(fenced.path(), &line.file, access)?;
                let header = SparseHeader::read(&FencedFile::new(Arc::clone(&file)))?;
                if header.capacity != size {
                    return Err(wrong(&fenced, "a sparse extent has another size than the descriptor says"));
                }
                let grain = header.grain;
                (sparse_extent(file, access, header, ImageInfo::default())?, Some(grain))
            }
            other => return Err(unsupported(&fenced, format!("extents of the kind {other}"))),
        };
        parts.push(part);
        lines.push((line.clone(), grain));
    }
    let info = info(&descriptor, &lines, false);
    Ok(Arc::new(Concat::new(parts, info, fenced.path(), access)?))
}

fn sparse_extent(
    file: Arc<dyn BlockFile>,
    access: Access,
    header: SparseHeader,
    info: ImageInfo,
) -> Result<Arc<dyn DiskImage>, DiskError> {
    if header.is_compressed {
        return Ok(Arc::new(stream::Stream::open(file, access, header, info)?));
    }
    let opened = sparse::read(&FencedFile::new(Arc::clone(&file)), header, access, info)?;
    Ok(Arc::new(BlockTableDisk::new(file, access, opened)?))
}

fn info(descriptor: &Descriptor, extents: &[(ExtentLine, Option<u64>)], is_compressed: bool) -> ImageInfo {
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
    ImageInfo {
        cluster_size: extents.iter().find_map(|(_, grain)| *grain),
        writes_whole_clusters_compressed: is_compressed,
        specific: vec![
            ("cid", InfoValue::Number(descriptor.cid.into())),
            ("parent-cid", InfoValue::Number(descriptor::NO_PARENT.into())),
            ("create-type", InfoValue::Text(descriptor.create_type.clone())),
            ("extents", InfoValue::List(extents.iter().map(extent).collect())),
        ],
        ..ImageInfo::default()
    }
}

/// Every grain of a sparse file lies inside it at a place of its own, and both its tables say the same.
/// A descriptor's own extents are checked one by one, as the files they are.
fn check(file: Arc<dyn BlockFile>, _repair: Repair) -> Result<CheckReport, DiskError> {
    let fenced = FencedFile::new(Arc::clone(&file));
    let mut start = [0; 512];
    fenced.read_zero_padded(0, &mut start)?;
    if !start.starts_with(sparse::MAGIC) {
        Descriptor::read(&fenced, 0, fenced.len()?)?;
        return Ok(CheckReport::default());
    }
    let header = SparseHeader::read(&fenced)?;
    sparse::check(&fenced, &header)
}
