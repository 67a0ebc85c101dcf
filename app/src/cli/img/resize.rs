//! `resize`: a larger or smaller disk in the same file.

use super::Failure;
use super::create::{bad_size, told_unless_quiet};
use super::format_options::preallocation;
use super::options::{Known, Options};
use super::source::{How, Source};
use super::units::parse_size;

pub const SYNOPSIS: &str =
    "[--object secret,id=…] [--image-opts] [-f fmt] [--preallocation=prealloc] [-q] [--shrink] filename [+ | -]size";

pub fn run(arguments: &[String]) -> Result<u8, Failure> {
    // The size comes last and may begin with a minus, so it is no option whatever it looks like.
    let Some((size, rest)) = arguments.split_last().filter(|(_, rest)| !rest.is_empty()) else {
        return Err(Failure::usage("Not enough arguments"));
    };
    let known = Known { short: "f:q", long: &["object=", "image-opts", "preallocation=", "shrink"] };
    let options = Options::parse(rest, &known)?;
    let [name] = options.operands.as_slice() else { return Err(Failure::usage("Expecting image file name and size")) };
    let mode = options.value("preallocation").unwrap_or("off");
    let mode = preallocation(mode).ok_or_else(|| Failure::new(format!("Invalid preallocation mode '{mode}'")))?;
    let (sign, digits) = match size.split_at_checked(1) {
        Some(("+", digits)) => (1, digits),
        Some(("-", digits)) => (-1, digits),
        _ => (0, size.as_str()),
    };
    let amount = parse_size(digits).ok_or_else(bad_size)?;
    let source = Source::named(name, options.value("f"), options.has("image-opts"))?;
    let image = source.open(&How::writing().asked_by(&options)?)?;
    let now = image.len();
    let wanted = match sign {
        1 => now.checked_add(amount),
        -1 => now.checked_sub(amount),
        _ => Some(amount),
    };
    let wanted = wanted.filter(|size| *size > 0 || sign == 0).ok_or_else(|| Failure::new("New image size must be positive"))?;
    let wanted = wanted.checked_next_multiple_of(512).ok_or_else(bad_size)?;
    if wanted < now && !options.has("shrink") {
        eprintln!(
            "warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an \
             operation, make sure there is no important data there."
        );
        return Err(Failure::new("Use the --shrink option to perform a shrink operation."));
    }
    image.resize(wanted, mode)?;
    told_unless_quiet(&options, "Image resized.")?;
    Ok(0)
}
