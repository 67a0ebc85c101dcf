//! `convert`: the content of one or more images as a new image, in any format.

use std::sync::Arc;

use engine_disk::{BitmapInfo, DiskImage, Format};

use super::bitmap::{bitmaps_of, merge};
use super::copy::{Content, Copy, Zeros, usual_workers};
use super::format_options::{NewFile, asks_for_help, list};
use super::options::{Known, Options};
use super::progress::Progress;
use super::source::{How, Source, format_by_name, plain_path};
use super::units::{parse_size, parse_with};
use super::{Failure, source};

pub const SYNOPSIS: &str = "[--object secret,id=…] [--image-opts] [--target-image-opts] [--target-is-zero] [-U] [-c] [-p] [-q] [-n] [-f fmt] [-t cache] \
[-T src_cache] [-O output_fmt] [-B backing_file [-F backing_fmt]] [-o options] [-l snapshot_param] [-S sparse_size] \
[-r rate_limit] [-m num_workers] [-W] [--salvage] [--bitmaps [--skip-broken-bitmaps]] filename [filename2 [...]] output_filename";

const KNOWN: Known<'_> = Known {
    short: "f:O:B:CcF:o:l:S:pt:T:qnm:WUr:",
    long: &[
        "object=",
        "image-opts",
        "target-image-opts",
        "force-share",
        "salvage",
        "target-is-zero",
        "bitmaps",
        "skip-broken-bitmaps",
    ],
};

/// Runs of zeros from this length on are left out.
const USUAL_SPARSE_SIZE: u64 = 4096;
const MAX_SPARSE_SIZE: u64 = 2 << 20;
const MAX_WORKERS: usize = 16;

pub fn run(arguments: &[String]) -> Result<u8, Failure> {
    let options = Options::parse(arguments, &KNOWN)?;
    let output_format = format_by_name(options.value("O").unwrap_or("raw"), "Unknown file format")?;
    if options.values("o").any(asks_for_help) {
        list(output_format)?;
        return Ok(0);
    }
    let Some((output, inputs)) = options.operands.split_last() else { return Err(Failure::new("Must specify image file name")) };
    if inputs.is_empty() {
        return Err(Failure::new("Must specify image file name"));
    }
    refuse_contradictions(&options)?;
    let zeros = sparse_size(&options)?;
    let images = open_inputs(&options, inputs)?;
    let bitmaps = match images.first() {
        Some(source) if options.has("bitmaps") => wanted_bitmaps(&**source, &inputs[0], options.has("skip-broken-bitmaps"))?,
        _ => Vec::new(),
    };
    let source = images.first().cloned();
    let content = Content::of(images);
    let length = content.len();

    let mut file = NewFile::new(output_format);
    for text in options.values("o") {
        file.take(text, output)?;
    }
    if let Some(backing) = options.value("B") {
        file.backing = Some(backing.to_owned());
    }
    if let Some(backing_format) = options.value("F") {
        file.backing_format = Some(backing_format.to_owned());
    }
    let has_backing = file.backing.is_some();
    if has_backing && inputs.len() > 1 {
        return Err(Failure::new("Having a backing file for the target makes no sense when concatenating multiple input images"));
    }
    let size = file.size.unwrap_or(length);
    let while_converting = |failure: Failure| failure.while_doing(format!("{output}: error while converting {output_format}"));
    if !options.has("n") {
        let finished = file.finished(size, &options.secrets()?).map_err(while_converting)?;
        let path = plain_path(output).map_err(while_converting)?;
        engine_disk::create_over(&path, &finished).map_err(|error| while_converting(error.into()))?;
    }
    let target = open_target(&options, output, &file)?;
    if target.len() < length {
        return Err(Failure::new("output file is smaller than input file"));
    }
    let info = target.info();
    let compressed_clusters = match (options.has("c") || info.writes_whole_clusters_compressed, info.cluster_size) {
        (false, _) => None,
        (true, Some(size)) if output_format == Format::Qcow2 || info.writes_whole_clusters_compressed => Some(size),
        (true, _) => return Err(Failure::new("Compression not supported for this file format")),
    };
    if compressed_clusters.is_some() && info.encrypted {
        return Err(Failure::new("Compression and encryption not supported at the same time"));
    }
    let content = if has_backing { content.without_bases() } else { content };
    let copy = Copy {
        content: &content,
        target: &*target,
        length,
        zeros,
        // Over a base image zeros must be written: the base would show through.
        // In a LUKS file what was never written is noise.
        target_is_blank: (!options.has("n") || options.has("target-is-zero")) && !has_backing && target.format() != Format::Luks,
        compressed_clusters,
        // qcow2 packs before it takes its lock: in any order, workers never wait for each other's packing.
        out_of_order: options.has("W") || (compressed_clusters.is_some() && output_format == Format::Qcow2),
        workers: workers(&options)?,
        salvage: options.has("salvage"),
        rate_limit: rate_limit(&options)?,
    };
    let progress = Progress::start(options.has("p") && !options.has("q"), length);
    copy.run(&progress)?;
    if let (true, Some(source)) = (options.has("bitmaps"), source) {
        copy_bitmaps(&*source, &*target, &bitmaps)?;
    }
    target.flush()?;
    drop(target);
    progress.finish();
    Ok(0)
}

fn refuse_contradictions(options: &Options) -> Result<(), Failure> {
    let refuse = |message: &str| Err(Failure::new(message));
    if options.has("skip-broken-bitmaps") && !options.has("bitmaps") {
        return refuse("Use of --skip-broken-bitmaps requires --bitmaps");
    }
    if options.has("bitmaps") && options.has("l") {
        return refuse("--bitmaps cannot be used with a snapshot: bitmaps tell of the present alone");
    }
    if options.has("bitmaps") && options.operands.len() > 2 {
        return refuse("Copying bitmaps only possible with single source");
    }
    if options.has("C") && options.has("S") {
        return refuse("Cannot enable copy offloading when -S is used");
    }
    if options.has("C") && options.has("c") {
        return refuse("Cannot enable copy offloading when -c is used");
    }
    if options.has("n") && options.values("o").next().is_some() {
        eprintln!("warning: -o has no effect when skipping image creation");
    }
    if options.has("n") && options.has("B") {
        return refuse("-B cannot be used with -n: the target has its base image already");
    }
    if options.has("target-is-zero") && !options.has("n") {
        return refuse("--target-is-zero requires use of -n flag");
    }
    if options.has("target-image-opts") && !options.has("n") {
        return refuse("--target-image-opts requires use of -n flag");
    }
    if options.has("target-image-opts") && options.has("O") {
        return refuse("--target-image-opts and -O are mutually exclusive");
    }
    Ok(())
}

/// The bitmaps that are to be copied. One that is out of date ends everything, unless it is to be skipped.
fn wanted_bitmaps(source: &dyn DiskImage, name: &str, skip_broken: bool) -> Result<Vec<BitmapInfo>, Failure> {
    let mut wanted = bitmaps_of(source, name)?.list();
    for broken in wanted.iter().filter(|bitmap| bitmap.out_of_date) {
        if !skip_broken {
            return Err(Failure::new(format!(
                "Cannot copy inconsistent bitmap '{}'\nTry --skip-broken-bitmaps, or use 'bitmap --remove'",
                broken.name
            )));
        }
        eprintln!("warning: Skipping inconsistent bitmap '{}'", broken.name);
    }
    wanted.retain(|bitmap| !bitmap.out_of_date);
    Ok(wanted)
}

fn copy_bitmaps(source: &dyn DiskImage, target: &dyn DiskImage, wanted: &[BitmapInfo]) -> Result<(), Failure> {
    let bitmaps = bitmaps_of(target, "the target")?;
    for BitmapInfo { name, granularity, enabled, .. } in wanted {
        let copy = || {
            bitmaps.add(name, Some(*granularity))?;
            bitmaps.set_enabled(name, *enabled)?;
            merge(source, name, target, name)
        };
        copy().map_err(|failure| failure.while_doing(format!("Failed to populate bitmap {name}")))?;
    }
    Ok(())
}

fn sparse_size(options: &Options) -> Result<Zeros, Failure> {
    let Some(text) = options.value("S") else { return Ok(Zeros::LeftOut(USUAL_SPARSE_SIZE)) };
    match parse_size(text) {
        Some(0) => Ok(Zeros::Copied),
        Some(size) if size % 512 == 0 && size <= MAX_SPARSE_SIZE => Ok(Zeros::LeftOut(size)),
        _ => Err(Failure::new(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to 2097152. \
             Select 0 to disable sparse detection (fully allocates output).",
        )),
    }
}

pub fn rate_limit(options: &Options) -> Result<Option<u64>, Failure> {
    let Some(text) = options.value("r") else { return Ok(None) };
    let rate = parse_with(text, 1).filter(|rate| *rate > 0);
    rate.map(Some).ok_or_else(|| Failure::new(format!("Invalid rate limit: {text}")))
}

fn workers(options: &Options) -> Result<usize, Failure> {
    let Some(text) = options.value("m") else { return Ok(usual_workers()) };
    text.parse()
        .ok()
        .filter(|count| (1..=MAX_WORKERS).contains(count))
        .ok_or_else(|| Failure::new("Invalid number of coroutines. Allowed number of coroutines is between 1 and 16"))
}

fn open_inputs(options: &Options, inputs: &[String]) -> Result<Vec<Arc<dyn DiskImage>>, Failure> {
    let internal_snapshot = options.value("l").map(source::snapshot_parameter).transpose()?;
    if internal_snapshot.is_some() && inputs.len() > 1 {
        return Err(Failure::new("No support for concatenating multiple snapshot"));
    }
    let how =
        How { internal_snapshot, ..How::reading() }.cached_by(options.value("T").unwrap_or("writeback"))?.asked_by(options)?;
    let open = |name: &String| Source::named(name, options.value("f"), options.has("image-opts"))?.open(&how);
    inputs.iter().map(open).collect()
}

fn open_target(options: &Options, output: &str, file: &NewFile) -> Result<Arc<dyn DiskImage>, Failure> {
    let how = How::writing().cached_by(options.value("t").unwrap_or("unsafe"))?.asked_by(options)?;
    match options.has("target-image-opts") {
        true => Source::named(output, None, true)?.open(&how),
        false => {
            let source = Source::named(output, Some(file.options.format.name()), false)?;
            Source { key_secret: file.key_secret.clone(), ..source }.open(&how)
        }
    }
}
