//! `amend`: changes options of an image that exists: its size, its base image's name, and what kind of file it is.

use engine_disk::Amendment;

use super::Failure;
use super::format_options::{NewFile, asks_for_help, list};
use super::info::one_file;
use super::options::{Known, Options};
use super::secrets::Secrets;
use super::source::{How, Source, key_values};

pub const SYNOPSIS: &str = "[--object secret,id=…] [--image-opts] [-p] [-q] [-f fmt] [-t cache] [--force] -o options filename";

/// What can be changed where it stands.
const AMENDABLE: [&str; 8] =
    ["size", "backing_file", "backing_fmt", "compat", "data_file", "data_file_raw", "lazy_refcounts", "refcount_bits"];

pub fn run(arguments: &[String]) -> Result<u8, Failure> {
    let options = Options::parse(arguments, &Known { short: "o:f:t:pq", long: &["object=", "image-opts", "force"] })?;
    if options.value("o").is_none() {
        return Err(Failure::usage("Must specify options (-o)"));
    }
    let name = one_file(&options)?;
    let source = Source::named(name, options.value("f"), options.has("image-opts"))?;
    let secrets = Secrets::of(&options)?;
    let image = source.open(&How::writing().alone().asked_by(&options)?)?;
    if options.values("o").any(asks_for_help) {
        list(image.format())?;
        return Ok(0);
    }
    let mut wanted = NewFile::new(image.format());
    let mut given = Vec::new();
    for text in options.values("o") {
        wanted.take(text, name)?;
        given.extend(key_values(text).into_iter().map(|(key, _)| key));
    }
    if let Some(key) = given.iter().find(|key| !AMENDABLE.contains(&key.as_str())) {
        return Err(Failure::new(format!("'{key}' cannot be changed in place; convert the image with -o {key}=… instead")));
    }
    let is_given = |key: &str| given.iter().any(|given| given == key);
    let new = &wanted.options.qcow2;
    let amendment = Amendment {
        version: is_given("compat").then_some(new.version),
        lazy_refcounts: is_given("lazy_refcounts").then_some(new.lazy_refcounts),
        refcount_bits: is_given("refcount_bits").then_some(new.refcount_bits),
        data_file: wanted.data_file.take(),
        raw_data_file: wanted.data_file_raw.take(),
    };
    if amendment != Amendment::default() {
        image.amend(&amendment)?;
    }
    if wanted.backing.is_some() {
        image.set_backing(wanted.finished(0, &secrets)?.backing.as_ref())?;
    }
    if let Some(size) = wanted.size {
        let size = wanted.finished(size, &secrets)?.size;
        image.resize(size, wanted.options.preallocation)?;
    }
    Ok(0)
}
