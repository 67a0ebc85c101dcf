//! `create`: a new, empty image, perhaps built on another.

use std::path::Path;

use super::format_options::{NewFile, asks_for_help, list};
use super::options::{Known, Options};
use super::source::{How, Source, format_by_name, plain_path};
use super::units::parse_size;
use super::{Failure, say};

pub const SYNOPSIS: &str =
    "[--object secret,id=…] [-q] [-f fmt] [-b backing_file [-F backing_fmt]] [-u] [-o options] filename [size]";

pub fn run(arguments: &[String]) -> Result<u8, Failure> {
    let options = Options::parse(arguments, &Known { short: "F:b:f:o:qu", long: &["object="] })?;
    let name = options.operands.first();
    let shown = name.map_or("", String::as_str);
    let format = format_by_name(options.value("f").unwrap_or("raw"), "Unknown file format")
        .map_err(|failure| if shown.is_empty() { failure } else { failure.while_doing(shown) })?;
    if options.values("o").any(asks_for_help) {
        list(format)?;
        return Ok(0);
    }
    let Some(name) = name else { return Err(Failure::usage("Expecting image file name")) };
    if let Some(extra) = options.operands.get(2) {
        return Err(Failure::usage(format!("Unexpected argument: {extra}")));
    }
    let mut file = NewFile::new(format);
    for text in options.values("o") {
        file.take(text, name)?;
    }
    if let Some(backing) = options.value("b") {
        file.backing = Some(backing.to_owned()).filter(|name| !name.is_empty());
    }
    if let Some(backing_format) = options.value("F") {
        file.backing_format = Some(backing_format.to_owned());
    }
    if let Some(text) = options.operands.get(1) {
        file.size = Some(parse_size(text).ok_or_else(bad_size)?);
    }
    let told = |failure: Failure| failure.while_doing(name);
    let path = plain_path(name).map_err(told)?;
    if let Some(backing) = &file.backing {
        if file.backing_format.is_none() {
            return Err(without_format(backing, &path).while_doing(name));
        }
        // Also where the size is given: a base that does not open is better met now than at the first start.
        if !options.has("u") {
            let beside = path.parent().unwrap_or(Path::new("")).join(backing);
            let base = Source::named(&beside.to_string_lossy(), file.backing_format.as_deref(), false)
                .and_then(|source| source.open(&How::reading()))
                .map_err(told)?;
            file.size.get_or_insert(base.len());
        }
    }
    let size = file.size.ok_or_else(|| Failure::new(format!("{name}: Image creation needs a size parameter")))?;
    let finished = file.finished(size, &options.secrets()?).map_err(told)?;
    if !options.has("q") {
        file.announce(name)?;
    }
    engine_disk::create_over(&path, &finished).map_err(|error| told(error.into()))?;
    Ok(0)
}

/// A base without a format would be guessed at every start; QEMU refuses that too, and says what it looks like.
fn without_format(backing: &str, path: &Path) -> Failure {
    let beside = path.parent().unwrap_or(Path::new("")).join(backing);
    let detected = match engine_disk::probe(&beside) {
        Ok(Some(format)) => format!("\nDetected format of {}; say -F {} to use it.", format.name(), format.name()),
        _ => String::new(),
    };
    Failure::new(format!("Backing file specified without backing format{detected}"))
}

/// What QEMU says of sizes that are none.
pub fn bad_size() -> Failure {
    Failure::new(
        "Invalid image size specified. You may use k, M, G, T, P or E suffixes for \n\
         kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.",
    )
}

/// Tells that something was done, unless quiet was asked for.
pub fn told_unless_quiet(options: &Options, text: &str) -> Result<(), Failure> {
    if !options.has("q") {
        say!("{text}\n");
    }
    Ok(())
}
