//! `map`: which parts of an image are stored, in which file of its chain, and where.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine_disk::DiskImage;

use super::chain::{Layered, layered_at, layers};
use super::info::{Output, one_file, output};
use super::options::{Known, Options};
use super::source::{How, Source};
use super::units::parse_size;
use super::{Failure, say};

pub const SYNOPSIS: &str = "[--object secret,id=…] [--image-opts] [-f fmt] [--start-offset=offset] [--max-length=len] [--output=human|json] [-U] filename";

/// A row of the map.
struct Row {
    start: u64,
    layered: Layered,
}

pub fn run(arguments: &[String]) -> Result<u8, Failure> {
    let known =
        Known { short: "f:s:l:U", long: &["output=", "object=", "image-opts", "force-share", "start-offset=", "max-length="] };
    let options = Options::parse(arguments, &known)?;
    let output = output(&options)?;
    let source = Source::named(one_file(&options)?, options.value("f"), options.has("image-opts"))?;
    let number = |short, long| match options.value(short).or(options.value(long)) {
        None => Ok(None),
        Some(text) => parse_size(text).map(Some).ok_or_else(|| Failure::new(format!("Invalid number: {text}"))),
    };
    let image = source.open(&How::reading().asked_by(&options)?)?;
    let start = number("s", "start-offset")?.unwrap_or(0).min(image.len());
    let end = number("l", "max-length")?.map_or(image.len(), |length| start.saturating_add(length).min(image.len()));
    let names = file_names(&source, &image);
    if output == Output::Human {
        say!("{:<16}{:<16}{:<16}{}\n", "Offset", "Length", "Mapped to", "File");
    }
    let mut pending: Option<Row> = None;
    let mut is_first = true;
    let mut at = start;
    while at < end {
        let layered = layered_at(&image, at, end - at)?;
        let length = layered.length;
        match &mut pending {
            Some(row) if row.continues_into(&layered) => row.layered.length += length,
            _ => {
                if let Some(row) = pending.replace(Row { start: at, layered }) {
                    row.print(output, &names, &mut is_first)?;
                }
            }
        }
        at += length;
    }
    if let Some(row) = pending {
        row.print(output, &names, &mut is_first)?;
    }
    if output == Output::Json {
        say!("{}]\n", if is_first { "[" } else { "" });
    }
    Ok(0)
}

impl Row {
    fn continues_into(&self, next: &Layered) -> bool {
        let Layered { length, depth, present, zero, host_offset, compressed } = &self.layered;
        let follows = match (host_offset, next.host_offset) {
            (Some(here), Some(there)) => here + length == there,
            (None, None) => true,
            _ => false,
        };
        follows && (*depth, *present, *zero, *compressed) == (next.depth, next.present, next.zero, next.compressed)
    }

    fn print(&self, output: Output, names: &[PathBuf], is_first: &mut bool) -> Result<(), Failure> {
        let Layered { length, depth, present, zero, host_offset, compressed: _ } = &self.layered;
        let start = self.start;
        match (output, host_offset) {
            (Output::Json, host_offset) => {
                let data = !zero && *present;
                say!(
                    "{}{{ \"start\": {start}, \"length\": {length}, \"depth\": {depth}, \"present\": {present}, \
                     \"zero\": {zero}, \"data\": {data}{}}}",
                    if *is_first { "[" } else { ",\n" },
                    host_offset.map(|offset| format!(", \"offset\": {offset}")).unwrap_or_default()
                );
            }
            (Output::Human, _) if *zero || !present => {}
            (Output::Human, Some(offset)) => {
                let file = names.get(*depth).map(|name| name.display().to_string()).unwrap_or_default();
                say!("{:<16}{:<16}{:<16}{file}\n", in_c(start), in_c(*length), in_c(*offset));
            }
            (Output::Human, None) => {
                return Err(Failure::new("File contains external, encrypted or compressed clusters."));
            }
        }
        *is_first = false;
        Ok(())
    }
}

/// Hexadecimal as C's `%#x` writes it: zero has no prefix.
fn in_c(number: u64) -> String {
    if number == 0 { "0".into() } else { format!("{number:#x}") }
}

/// The names of the files that hold the data of the chain, as they follow from each other.
fn file_names(source: &Source, image: &Arc<dyn DiskImage>) -> Vec<PathBuf> {
    let mut names = Vec::new();
    let mut path = source.path.clone();
    for layer in layers(image) {
        let info = layer.info();
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        names.push(info.data_file.map_or(path, |data_file| folder.join(data_file)));
        let Some(backing) = info.backing else { break };
        path = folder.join(backing.name);
    }
    names
}
