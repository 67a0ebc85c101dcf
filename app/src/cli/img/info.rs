//! `info`: what an image file says of itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine_disk::{DiskImage, Format, ImageInfo, InfoValue, SnapshotInfo};
use serde_json::{Map, Value, json};

use super::options::{Known, Options};
use super::snapshot;
use super::source::{How, Source};
use super::units::short_size;
use super::{Failure, say};

pub const SYNOPSIS: &str = "[--object secret,id=…] [--image-opts] [-f fmt] [--output=human|json] [--backing-chain] [-U] filename";

/// No chain is longer than this; one that claims to be is taken for a loop.
const MAX_CHAIN: usize = 200;

/// How a command prints its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Human,
    /// For programs.
    Json,
}

/// What `--output` says.
pub fn output(options: &Options) -> Result<Output, Failure> {
    match options.value("output") {
        None | Some("human") => Ok(Output::Human),
        Some("json") => Ok(Output::Json),
        Some(_) => Err(Failure::new("--output must be used with human or json as argument.")),
    }
}

/// The only operand.
pub fn one_file(options: &Options) -> Result<&str, Failure> {
    match options.operands.as_slice() {
        [name] => Ok(name),
        _ => Err(Failure::usage("Expecting one image file name")),
    }
}

pub fn run(arguments: &[String]) -> Result<u8, Failure> {
    let known = Known { short: "f:U", long: &["output=", "backing-chain", "object=", "image-opts", "force-share"] };
    let options = Options::parse(arguments, &known)?;
    let output = output(&options)?;
    let name = one_file(&options)?;
    let source = Source::named(name, options.value("f"), options.has("image-opts"))?;
    let files = collect(source, options.has("backing-chain"), &How::reading().alone().asked_by(&options)?)?;
    match (output, options.has("backing-chain")) {
        (Output::Human, _) => {
            for (number, file) in files.iter().enumerate() {
                if number > 0 {
                    say!("\n");
                }
                say!("{}", file.human());
            }
        }
        (Output::Json, true) => say!("{}\n", pretty(&files.iter().map(FileInfo::json).collect())),
        (Output::Json, false) => say!("{}\n", files.first().map(|file| pretty(&file.json())).unwrap_or_default()),
    }
    Ok(0)
}

/// One file of a chain, with all that is told of it.
struct FileInfo {
    name: String,
    format: Format,
    size: u64,
    allocated: Option<u64>,
    info: ImageInfo,
    snapshots: Vec<SnapshotInfo>,
    /// Where the base's name leads to.
    full_backing_name: Option<PathBuf>,
}

fn collect(source: Source, whole_chain: bool, how: &How) -> Result<Vec<FileInfo>, Failure> {
    let mut files = Vec::new();
    let mut seen = Vec::new();
    let mut next = Some(source);
    while let Some(source) = next.take() {
        let place = source.path.canonicalize().unwrap_or_else(|_| source.path.clone());
        if seen.contains(&place) || seen.len() >= MAX_CHAIN {
            return Err(Failure::new(format!("Backing file '{}' creates an infinite loop.", source.name)));
        }
        seen.push(place);
        let image = source.open(how)?;
        let file = FileInfo::of(&source, &image);
        if whole_chain && let (Some(backing), Some(path)) = (&file.info.backing, &file.full_backing_name) {
            next = Some(Source::named(&path.to_string_lossy(), backing.format.as_deref(), false)?);
        }
        files.push(file);
    }
    Ok(files)
}

impl FileInfo {
    fn of(source: &Source, image: &Arc<dyn DiskImage>) -> Self {
        use std::os::unix::fs::MetadataExt;
        let info = image.info();
        let folder = source.path.parent().unwrap_or(Path::new(""));
        Self {
            name: source.name.clone(),
            format: image.format(),
            size: image.len(),
            allocated: std::fs::metadata(&source.path).ok().map(|metadata| metadata.blocks() * 512),
            full_backing_name: info.backing.as_ref().map(|backing| folder.join(&backing.name)),
            info,
            snapshots: image.snapshots(),
        }
    }

    fn human(&self) -> String {
        let mut text = format!("image: {}\nfile format: {}\n", self.name, self.format);
        text += &format!("virtual size: {} ({} bytes)\n", short_size(self.size), self.size);
        let allocated = self.allocated.map_or("unavailable".into(), short_size);
        text += &format!("disk size: {allocated}\n");
        if self.info.encrypted {
            text += "encrypted: yes\n";
        }
        if let Some(size) = self.info.cluster_size {
            text += &format!("cluster_size: {size}\n");
        }
        if self.info.dirty {
            text += "cleanly shut down: no\n";
        }
        if let (Some(backing), Some(full)) = (&self.info.backing, &self.full_backing_name) {
            text += &format!("backing file: {}", backing.name);
            if full != Path::new(&backing.name) {
                text += &format!(" (actual path: {})", full.display());
            }
            text.push('\n');
            if let Some(format) = &backing.format {
                text += &format!("backing file format: {format}\n");
            }
        }
        if !self.snapshots.is_empty() {
            text += "Snapshot list:\n";
            text += &snapshot::table(&self.snapshots);
        }
        text + &specific_text(&self.info)
    }

    fn json(&self) -> Value {
        let mut object = Map::new();
        let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
        put("virtual-size", json!(self.size));
        put("filename", json!(self.name));
        put("format", json!(self.format.name()));
        put("dirty-flag", json!(self.info.dirty));
        if let Some(allocated) = self.allocated {
            put("actual-size", json!(allocated));
        }
        if let Some(size) = self.info.cluster_size {
            put("cluster-size", json!(size));
        }
        if self.info.encrypted {
            put("encrypted", json!(true));
        }
        if let (Some(backing), Some(full)) = (&self.info.backing, &self.full_backing_name) {
            put("backing-filename", json!(backing.name));
            put("full-backing-filename", json!(full));
            if let Some(format) = &backing.format {
                put("backing-filename-format", json!(format));
            }
        }
        if !self.snapshots.is_empty() {
            put("snapshots", self.snapshots.iter().map(snapshot::json).collect());
        }
        if !self.info.specific.is_empty() {
            put("format-specific", json!({ "type": self.format.name(), "data": record_json(&self.info.specific) }));
        }
        Value::Object(object)
    }
}

/// What only this format has, for people; also what `info` of `qemu-io` says.
pub fn specific_text(info: &ImageInfo) -> String {
    if info.specific.is_empty() {
        return String::new();
    }
    let mut text = "Format specific information:\n".to_owned();
    record_text(&info.specific, 1, &mut text);
    text
}

fn record_text(record: &[(&'static str, InfoValue)], depth: usize, text: &mut String) {
    for (name, value) in record {
        value_text(&name.replace('-', " "), value, depth, text);
    }
}

fn value_text(name: &str, value: &InfoValue, depth: usize, text: &mut String) {
    let indent = "    ".repeat(depth);
    match value {
        InfoValue::Text(word) => *text += &format!("{indent}{name}: {word}\n"),
        InfoValue::Number(number) => *text += &format!("{indent}{name}: {number}\n"),
        InfoValue::Flag(flag) => *text += &format!("{indent}{name}: {flag}\n"),
        InfoValue::Record(record) => {
            *text += &format!("{indent}{name}:\n");
            record_text(record, depth + 1, text);
        }
        InfoValue::List(values) => {
            *text += &format!("{indent}{name}:\n");
            for (number, value) in values.iter().enumerate() {
                value_text(&format!("[{number}]"), value, depth + 1, text);
            }
        }
    }
}

fn value_json(value: &InfoValue) -> Value {
    match value {
        InfoValue::Text(word) => json!(word),
        InfoValue::Number(number) => json!(number),
        InfoValue::Flag(flag) => json!(flag),
        InfoValue::Record(record) => record_json(record),
        InfoValue::List(values) => values.iter().map(value_json).collect(),
    }
}

fn record_json(record: &[(&'static str, InfoValue)]) -> Value {
    Value::Object(record.iter().map(|(name, value)| ((*name).to_owned(), value_json(value))).collect())
}

/// JSON indented by four spaces, as QEMU prints it.
pub fn pretty(value: &Value) -> String {
    use serde::Serialize;
    let mut text = Vec::new();
    let mut serializer =
        serde_json::Serializer::with_formatter(&mut text, serde_json::ser::PrettyFormatter::with_indent(b"    "));
    value.serialize(&mut serializer).expect("values in memory can always be written to memory");
    String::from_utf8(text).expect("JSON is text")
}
