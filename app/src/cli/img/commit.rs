//! `commit`: what an overlay holds goes into the image under it.
//!
//! Crash-safe: the base is complete and durable before anything leaves the overlay. Cut off in between, the overlay still
//! reads as before, because it hides what has already arrived below.
//!
//! A VDI, VHDX or VMDK overlay knows its base by an identifier that changes with the base's content. So before anything
//! moves, the base takes a new one and the overlay learns it. Cut off between these two, the overlay is refused until
//! `rebase -u -b BASE` tells it, and lacks nothing.

use std::path::Path;
use std::sync::Arc;

use engine_disk::{Backing, DiskImage, ExtentKind, Preallocation};

use super::Failure;
use super::convert::rate_limit;
use super::create::told_unless_quiet;
use super::info::one_file;
use super::options::{Known, Options};
use super::progress::Progress;
use super::source::{How, Source};

pub const SYNOPSIS: &str =
    "[--object secret,id=…] [--image-opts] [-q] [-f fmt] [-t cache] [-b base] [-r rate_limit] [-d] [-p] filename";

/// Bytes that are moved at a time.
const STRETCH: u64 = 2 << 20;
const MAX_CHAIN: usize = 64;

pub fn run(arguments: &[String]) -> Result<u8, Failure> {
    let options = Options::parse(arguments, &Known { short: "f:t:b:dpqr:", long: &["object=", "image-opts"] })?;
    let name = one_file(&options)?;
    rate_limit(&options)?;
    let how = How::writing().alone().cached_by(options.value("t").unwrap_or("writeback"))?.asked_by(&options)?;
    let source = Source::named(name, options.value("f"), options.has("image-opts"))?;
    // Each file is opened by itself: the base must be writable, which it cannot be while it is somebody's base.
    let top = source.open(&how)?;
    let mut layers = vec![Arc::clone(&top)];
    let mut lowest = source.clone();
    let mut base = base_of(&source, &*top)?;
    while let Some(wanted) = options.value("b").filter(|wanted| !base.is_called(wanted)) {
        let layer = base.source.open(&How::reading().alone())?;
        if layers.len() >= MAX_CHAIN {
            return Err(Failure::new(format!("'{name}' is built on too many files")));
        }
        lowest = base.source.clone();
        base = base_of(&base.source, &*layer)
            .map_err(|_| Failure::new(format!("Did not find '{wanted}' in the backing chain of '{name}'")))?;
        layers.push(layer);
    }
    let Base { source: base_source, written_name } = base;
    let base = base_source.open(&How::writing().cached_by(options.value("t").unwrap_or("writeback"))?)?;
    if layers.last().is_some_and(|layer| layer.info().identity.is_some()) {
        base.announce_change()?;
        let backing = Backing { name: written_name, format: base.format() };
        // The top is open for writing already; a file in between is for a moment.
        if layers.len() > 1 {
            layers.pop();
            lowest.open(&how.clone())?.set_backing(Some(&backing))?;
            layers.push(lowest.open(&How::reading().alone())?);
        } else {
            top.set_backing(Some(&backing))?;
        }
    }
    if base.len() < top.len() {
        base.resize(top.len(), Preallocation::Off)?;
    }
    let progress = Progress::start(options.has("p") && !options.has("q"), top.len());
    move_down(&layers, &*base, &progress)?;
    base.flush()?;
    progress.finish();
    // With files in between the top must stay: they are built on a base that has changed under them.
    if !options.has("d") && layers.len() == 1 {
        // Opened without its base, the overlay forgets what it no longer needs to hold, instead of hiding the base by zeros.
        top.discard(0, top.len())?;
        top.flush()?;
    }
    told_unless_quiet(&options, "Image committed.")?;
    Ok(0)
}

/// The file under another, and what that one calls it.
struct Base {
    source: Source,
    written_name: String,
}

impl Base {
    fn is_called(&self, name: &str) -> bool {
        let place = |path: &Path| path.canonicalize().ok();
        self.written_name == name || place(&self.source.path).is_some_and(|path| place(Path::new(name)) == Some(path))
    }
}

fn base_of(source: &Source, image: &dyn DiskImage) -> Result<Base, Failure> {
    let Some(backing) = image.info().backing else { return Err(Failure::new("Image does not have a backing file")) };
    let path = source.path.parent().unwrap_or(Path::new("")).join(&backing.name);
    let source = Source::named(&path.to_string_lossy(), backing.format.as_deref(), false)?;
    Ok(Base { source, written_name: backing.name })
}

/// Writes to `base` whatever one of `layers` (the uppermost first) holds.
fn move_down(layers: &[Arc<dyn DiskImage>], base: &dyn DiskImage, progress: &Progress) -> Result<(), Failure> {
    let end = layers.first().map_or(0, |top| top.len());
    let mut buffer = vec![0; STRETCH as usize];
    let mut at = 0;
    while at < end {
        let mut length = end - at;
        let mut holder = None;
        for layer in layers {
            if at >= layer.len() {
                // A layer that ends here hides what is under it: zeros.
                holder = Some((layer, ExtentKind::Zero));
                break;
            }
            let extent = layer.extent_at(at)?;
            length = length.min(extent.length);
            if extent.present {
                holder = Some((layer, extent.kind));
                break;
            }
        }
        match holder {
            None => {}
            Some((_, ExtentKind::Zero)) => base.write_zeroes(at, length)?,
            Some((layer, _)) => {
                length = length.min(STRETCH);
                let buffer = &mut buffer[..length as usize];
                layer.read_at(at, buffer)?;
                base.write_at(at, buffer)?;
            }
        }
        progress.add(length);
        at += length;
    }
    Ok(())
}
