//! `bitmap`: makes, changes and removes the bitmaps that say what changed since a backup.

use engine_disk::{Bitmaps, DiskImage};

use super::Failure;
use super::options::{Known, Options};
use super::source::{How, Source};
use super::units::parse_size;

pub const SYNOPSIS: &str = "(--merge SOURCE | --add | --remove | --clear | --enable | --disable)... [-b source_file [-F source_fmt]] \
[-g granularity] [--object secret,id=…] [--image-opts | -f fmt] filename bitmap";

const KNOWN: Known<'_> = Known {
    short: "b:f:F:g:",
    long: &[
        "add",
        "clear",
        "disable",
        "enable",
        "granularity=",
        "image-opts",
        "merge=",
        "object=",
        "remove",
        "source-file=",
        "source-format=",
    ],
};

/// Ranges that are carried over at a time.
const RANGES: usize = 4096;

pub fn run(arguments: &[String]) -> Result<u8, Failure> {
    let options = Options::parse(arguments, &KNOWN)?;
    let [name, bitmap] = options.operands.as_slice() else {
        return Err(Failure::usage("Expecting filename and bitmap name"));
    };
    let actions: Vec<(&str, &str)> = options
        .in_order()
        .filter(|(option, _)| ["add", "clear", "disable", "enable", "merge", "remove"].contains(option))
        .collect();
    let given = |short: &str, long: &str| options.value(short).or(options.value(long)).map(str::to_owned);
    let granularity = match given("g", "granularity") {
        None => None,
        Some(text) => Some(parse_size(&text).ok_or_else(|| Failure::new(format!("Invalid granularity specified: {text}")))?),
    };
    let (source_file, source_format) = (given("b", "source-file"), given("F", "source-format"));
    if actions.is_empty() {
        return Err(Failure::new("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"));
    }
    let asks_for = |action: &str| actions.iter().any(|(given, _)| *given == action);
    if granularity.is_some() && !asks_for("add") {
        return Err(Failure::new("granularity only supported with --add"));
    }
    if source_file.is_some() && !asks_for("merge") {
        return Err(Failure::new("Merge bitmap source file only supported with --merge"));
    }
    if source_format.is_some() && source_file.is_none() {
        return Err(Failure::new("-F only supported with -b"));
    }
    let source = Source::named(name, options.value("f"), options.has("image-opts"))?;
    // The content is not looked at, so the base image need not be there.
    let image = source.open(&How::writing().alone().asked_by(&options)?)?;
    let bitmaps = bitmaps_of(&*image, name)?;
    let other = match &source_file {
        None => None,
        Some(name) => {
            let source = Source::named(name, source_format.as_deref(), false)?;
            Some(
                source
                    .open(&How::reading().alone())
                    .map_err(|failure| failure.while_doing(format!("Could not open '{name}'")))?,
            )
        }
    };
    for (action, value) in actions {
        let done = match action {
            "add" => bitmaps.add(bitmap, granularity).map_err(Failure::from),
            "remove" => bitmaps.remove(bitmap).map_err(Failure::from),
            "clear" => bitmaps.clear(bitmap).map_err(Failure::from),
            "enable" => bitmaps.set_enabled(bitmap, true).map_err(Failure::from),
            "disable" => bitmaps.set_enabled(bitmap, false).map_err(Failure::from),
            _ => merge(other.as_deref().unwrap_or(&*image), value, &*image, bitmap),
        };
        done.map_err(|failure| failure.while_doing(format!("Operation {action} on bitmap {bitmap} failed")))?;
    }
    Ok(0)
}

/// The bitmaps of an image whose format has such.
pub fn bitmaps_of<'a>(image: &'a dyn DiskImage, name: &str) -> Result<&'a dyn Bitmaps, Failure> {
    let none = || Failure::new(format!("'{name}': the format {} does not support bitmaps", image.format()));
    image.bitmaps().ok_or_else(none)
}

/// Marks in a bitmap of `target` whatever a bitmap of `source` has marked.
pub fn merge(source: &dyn DiskImage, from: &str, target: &dyn DiskImage, into: &str) -> Result<(), Failure> {
    if source.len() != target.len() {
        return Err(Failure::new(format!(
            "Bitmaps are of different sizes (destination size is {}, source size is {}) and can't be merged",
            target.len(),
            source.len()
        )));
    }
    let (marked, bitmaps) = (bitmaps_of(source, from)?, bitmaps_of(target, into)?);
    let mut at = 0;
    loop {
        let ranges = marked.marked(from, at, RANGES)?;
        let Some(last) = ranges.last() else { break };
        at = last.end;
        for range in ranges {
            bitmaps.mark(into, range)?;
        }
    }
    Ok(())
}
