//! `measure`: how large a file a new image would be.

use engine_disk::{CreateOptions, DiskImage, Format, Preallocation};
use serde_json::{Map, json};

use super::chain::layered_at;
use super::create::bad_size;
use super::format_options::{NewFile, asks_for_help, list};
use super::info::{Output, output, pretty};
use super::options::{Known, Options};
use super::source::{How, Source, format_by_name, snapshot_parameter};
use super::units::parse_size;
use super::{Failure, say};

pub const SYNOPSIS: &str = "[--object secret,id=…] [--output=human|json] [-O output_fmt] [-o options] [--size N | [--image-opts] [-f fmt] [-l snapshot_param] filename]";

pub fn run(arguments: &[String]) -> Result<u8, Failure> {
    let known = Known { short: "f:l:o:O:U", long: &["image-opts", "object=", "output=", "size=", "force-share"] };
    let options = Options::parse(arguments, &known)?;
    let output = output(&options)?;
    let format = format_by_name(options.value("O").unwrap_or("raw"), "Unknown file format")?;
    if options.values("o").any(asks_for_help) {
        list(format)?;
        return Ok(0);
    }
    let mut file = NewFile::new(format);
    for text in options.values("o") {
        file.take(text, "measure")?;
    }
    let size = options.value("size").map(|text| parse_size(text).ok_or_else(bad_size)).transpose()?;
    let mut bitmaps = 0;
    let (size, data) = match (size, options.operands.as_slice()) {
        (Some(_), [_, ..]) => return Err(Failure::new("--size N cannot be used together with a filename.")),
        (Some(size), []) => (size, 0),
        (None, [name]) => {
            let internal_snapshot = options.value("l").map(snapshot_parameter).transpose()?;
            let how = How { internal_snapshot, ..How::reading() }.asked_by(&options)?;
            let image = Source::named(name, options.value("f"), options.has("image-opts"))?.open(&how)?;
            let cluster = file.options.qcow2.cluster_size;
            bitmaps = bitmaps_size(&*image, cluster);
            let mut needed = 0;
            let mut covered = 0;
            let mut at = 0;
            while at < image.len() {
                let stretch = layered_at(&image, at, image.len() - at)?;
                let end = at + stretch.length;
                if !stretch.zero {
                    // A cluster that two stretches share counts once.
                    let (first, last) = ((at / cluster * cluster).max(covered), end.next_multiple_of(cluster));
                    needed += last.saturating_sub(first);
                    covered = last;
                }
                at = end;
            }
            (image.len(), needed)
        }
        (None, _) => return Err(Failure::new("Either --size N or one filename must be specified.")),
    };
    let new = file.finished(size, &options.secrets()?)?;
    let (required, full) = match format {
        Format::Raw => (new.size, new.size),
        Format::Qcow2 => {
            let full = qcow2_size(&new);
            let virtual_size = new.size.next_multiple_of(new.qcow2.cluster_size);
            let is_full = new.preallocation == Preallocation::Full || new.preallocation == Preallocation::Falloc;
            (if is_full { full } else { full - virtual_size + data }, full)
        }
        _ => return Err(Failure::new(format!("Block driver '{format}' does not support size measurement"))),
    };
    match output {
        Output::Human => {
            say!("required size: {required}\nfully allocated size: {full}\n");
            if format == Format::Qcow2 && !options.operands.is_empty() {
                say!("bitmaps size: {bitmaps}\n");
            }
        }
        Output::Json => {
            let mut object = Map::new();
            object.insert("required".into(), json!(required));
            object.insert("fully-allocated".into(), json!(full));
            if format == Format::Qcow2 && !options.operands.is_empty() {
                object.insert("bitmaps".into(), json!(bitmaps));
            }
            say!("{}\n", pretty(&object.into()));
        }
    }
    Ok(0)
}

/// Bytes that the bitmaps of an image would take in a qcow2 file: bits, tables and directory.
fn bitmaps_size(image: &dyn DiskImage, cluster: u64) -> u64 {
    let bitmaps = image.bitmaps().map(|bitmaps| bitmaps.list()).unwrap_or_default();
    let mut directory = 0_u64;
    let mut size = 0;
    for bitmap in bitmaps.iter().filter(|bitmap| !bitmap.out_of_date) {
        let clusters = image.len().div_ceil(bitmap.granularity).div_ceil(8).div_ceil(cluster);
        size += clusters * cluster + (clusters * 8).next_multiple_of(cluster);
        directory += (24 + bitmap.name.len() as u64).next_multiple_of(8);
    }
    size + directory.next_multiple_of(cluster)
}

/// Bytes of a qcow2 file whose every cluster is stored: data, second- and first-level tables, counts, header.
fn qcow2_size(options: &CreateOptions) -> u64 {
    let cluster = options.qcow2.cluster_size;
    let data = options.size.next_multiple_of(cluster);
    let entries_per_cluster = cluster / 8;
    let l2_entry = if options.qcow2.extended_l2 { 16 } else { 8 };
    let l2_entries = (data / cluster).next_multiple_of(cluster / l2_entry);
    let l1_entries = (l2_entries * l2_entry / cluster).next_multiple_of(entries_per_cluster);
    let metadata = cluster + l2_entries * l2_entry + l1_entries * 8;
    let counts_per_block = cluster * 8 / u64::from(options.qcow2.refcount_bits);
    let counted = (data + metadata) / cluster;
    let (mut blocks, mut table, mut last) = (0, 0, u64::MAX);
    // Counts count themselves; each round can only add, and adds less each time.
    while last != blocks + table {
        last = blocks + table;
        blocks = (counted + blocks + table).div_ceil(counts_per_block);
        table = blocks.div_ceil(entries_per_cluster);
    }
    data + metadata + (blocks + table) * cluster
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_that_qemu_measures() {
        let mut options = CreateOptions::new(Format::Qcow2, 1 << 30);
        assert_eq!(qcow2_size(&options), 1_074_135_040);
        options.size = 64 << 20;
        assert_eq!(qcow2_size(&options), 67_436_544);
    }
}
