//! `rebase`: the same disk, built on another image, or on none.
//!
//! In the safe way the overlay first takes over everything in which the new base differs from the old one; only when
//! that is durable does the name in its header change. Cut off in between, it still reads right on its old base.

use std::path::Path;
use std::sync::Arc;

use engine_disk::{Backing, DiskImage, Format, probe};

use super::Failure;
use super::chain::is_zero;
use super::info::one_file;
use super::options::{Known, Options};
use super::progress::Progress;
use super::source::{How, Source, format_by_name};

pub const SYNOPSIS: &str = "[--object secret,id=…] [--image-opts] [-U] [-q] [-f fmt] [-t cache] [-T src_cache] [-p] [-u] -b backing_file [-F backing_fmt] filename";

/// Bytes compared at a time.
const STRETCH: u64 = 1 << 20;

pub fn run(arguments: &[String]) -> Result<u8, Failure> {
    let known = Known { short: "f:F:b:upt:T:qU", long: &["object=", "image-opts", "force-share"] };
    let options = Options::parse(arguments, &known)?;
    let name = match options.operands.as_slice() {
        [_] => one_file(&options)?,
        _ => return Err(Failure::usage("Expecting one image file name")),
    };
    let is_unsafe = options.has("u");
    let Some(new_name) = options.value("b").or(is_unsafe.then_some("")) else {
        return Err(Failure::usage("Use backing file (-b) option"));
    };
    if let Some(format) = options.value("F") {
        format_by_name(format, "Invalid format name:")?;
    }
    let source = Source::named(name, options.value("f"), options.has("image-opts"))?;
    let how = How::writing().cached_by(options.value("t").unwrap_or("writeback"))?.asked_by(&options)?;
    // In the unsafe way nothing is read, so the old base need not even be there.
    let image = source.open(&if is_unsafe { how.alone() } else { how })?;
    let folder = source.path.parent().unwrap_or(Path::new(""));
    let backing = match new_name {
        "" => None,
        new_name => Some(Backing {
            name: new_name.to_owned(),
            format: backing_format(options.value("F"), &folder.join(new_name), is_unsafe)?,
        }),
    };
    if !is_unsafe {
        let new_base = match &backing {
            None => None,
            Some(Backing { name, format }) => {
                let base = Source::named(&folder.join(name).to_string_lossy(), Some(format.name()), false)?;
                Some(base.open(&How::reading()).map_err(|failure| failure.while_doing("Could not open new backing file"))?)
            }
        };
        let progress = Progress::start(options.has("p") && !options.has("q"), image.len());
        take_over(&image, new_base.as_deref(), &progress)?;
        image.flush()?;
        progress.finish();
    }
    image.set_backing(backing.as_ref())?;
    Ok(0)
}

fn backing_format(stated: Option<&str>, path: &Path, is_unsafe: bool) -> Result<Format, Failure> {
    match stated {
        Some(name) => format_by_name(name, "Invalid format name:"),
        None if is_unsafe => Err(Failure::new("Backing file specified without backing format; say it with -F")),
        None => match probe(path)? {
            Some(format) if format != Format::Iso => Ok(format),
            _ => Err(Failure::new("Backing file specified without backing format; if it is a raw disk say -F raw")),
        },
    }
}

/// Writes to `image` what it reads from its base now and would read differently from `new_base`.
fn take_over(image: &Arc<dyn DiskImage>, new_base: Option<&dyn DiskImage>, progress: &Progress) -> Result<(), Failure> {
    let mut old = vec![0; STRETCH as usize];
    let mut new = vec![0; STRETCH as usize];
    // Whole clusters are taken over at once: a part of one would copy the rest of it as well.
    let step = image.info().cluster_size.unwrap_or(STRETCH).min(STRETCH);
    let mut at = 0;
    while at < image.len() {
        let extent = image.extent_at(at)?;
        let length = extent.length.min(STRETCH).min(image.len() - at);
        if !extent.present {
            let (old, new) = (&mut old[..length as usize], &mut new[..length as usize]);
            image.read_at(at, old)?;
            read_padded(new_base, at, new)?;
            let mut from = 0;
            while from < old.len() {
                let to = old.len().min(from + (step - (at + from as u64) % step) as usize);
                let (before, after) = (&old[from..to], &new[from..to]);
                if before != after {
                    match is_zero(before) {
                        true => image.write_zeroes(at + from as u64, before.len() as u64)?,
                        false => image.write_at(at + from as u64, before)?,
                    }
                }
                from = to;
            }
        }
        progress.add(length);
        at += length;
    }
    Ok(())
}

/// Reads a base, or zeros where it ends or where there is none.
fn read_padded(base: Option<&dyn DiskImage>, at: u64, buffer: &mut [u8]) -> Result<(), Failure> {
    let inside = base.map_or(0, |base| base.len().saturating_sub(at).min(buffer.len() as u64)) as usize;
    let (stored, past_end) = buffer.split_at_mut(inside);
    past_end.fill(0);
    match base {
        Some(base) if !stored.is_empty() => Ok(base.read_at(at, stored)?),
        _ => Ok(()),
    }
}
