//! `amend`: changes options of an image that exists. Possible are its size and its base image's name.

use super::Failure;
use super::format_options::{NewFile, asks_for_help, list};
use super::info::one_file;
use super::options::{Known, Options};
use super::secrets::Secrets;
use super::source::{How, Source, key_values};

pub const SYNOPSIS: &str = "[--object secret,id=…] [--image-opts] [-p] [-q] [-f fmt] [-t cache] [--force] -o options filename";

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
    for text in options.values("o") {
        wanted.take(text, name)?;
        let fixed =
            key_values(text).into_iter().find(|(key, _)| !["size", "backing_file", "backing_fmt"].contains(&key.as_str()));
        if let Some((key, _)) = fixed {
            return Err(Failure::new(format!("'{key}' cannot be changed in place; convert the image with -o {key}=… instead")));
        }
    }
    if wanted.backing.is_some() {
        let finished = wanted.finished(0, &secrets)?;
        image.set_backing(finished.backing.as_ref())?;
    }
    if let Some(size) = wanted.size {
        let size = wanted.finished(size, &secrets)?.size;
        image.resize(size, wanted.options.preallocation)?;
    }
    Ok(0)
}
