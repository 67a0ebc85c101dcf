//! `dd`: a part of an image as a new image, by blocks.

use super::Failure;
use super::copy::{Content, Copy, Zeros, usual_workers};
use super::format_options::NewFile;
use super::options::{Known, Options};
use super::progress::Progress;
use super::source::{How, Source, format_by_name, plain_path};
use super::units::parse_size;

pub const SYNOPSIS: &str = "[--object secret,id=…] [--image-opts] [-U] [-f fmt] [-O output_fmt] [bs=block_size] [count=blocks] [skip=blocks] if=input of=output";

#[derive(Default)]
struct Operands<'a> {
    block_size: Option<u64>,
    count: Option<u64>,
    skip: u64,
    input: Option<&'a str>,
    output: Option<&'a str>,
}

pub fn run(arguments: &[String]) -> Result<u8, Failure> {
    let options = Options::parse(arguments, &Known { short: "f:O:U", long: &["object=", "image-opts", "force-share"] })?;
    let operands = operands(&options.operands)?;
    let (Some(input), Some(output)) = (operands.input, operands.output) else {
        return Err(Failure::new("Must specify both input and output files"));
    };
    let format = format_by_name(options.value("O").unwrap_or("raw"), "Unknown file format")?;
    let source = Source::named(input, options.value("f"), options.has("image-opts"))?;
    let image = source.open(&How::reading().asked_by(&options)?)?;
    let block_size = operands.block_size.unwrap_or(512);
    let beyond = || Failure::new(format!("{input}: cannot skip to specified offset"));
    let skip = operands.skip.checked_mul(block_size).ok_or_else(beyond)?;
    let end = match operands.count {
        None => image.len(),
        Some(count) => image.len().min(count.saturating_add(operands.skip).saturating_mul(block_size)),
    };
    if skip > image.len() {
        eprintln!("bellglass img: {}", beyond().message);
    }
    let length = end.saturating_sub(skip);
    let target = NewFile::new(format).finished(length, &options.secrets()?)?;
    let path = plain_path(output)?;
    let while_creating =
        |failure: Failure| failure.while_doing(format!("{output}: error while creating output image of type '{format}'"));
    engine_disk::create_over(&path, &target).map_err(|error| while_creating(error.into()))?;
    let target = Source::named(output, Some(format.name()), false)?.open(&How::writing())?;
    let content = Content::of(vec![image]).from(skip);
    let copy = Copy {
        content: &content,
        target: &*target,
        length: length.min(target.len()),
        zeros: Zeros::LeftOut(512),
        target_is_blank: true,
        compressed_clusters: None,
        out_of_order: false,
        workers: usual_workers(),
        salvage: false,
        rate_limit: None,
    };
    copy.run(&Progress::start(false, 0))?;
    target.flush()?;
    Ok(0)
}

fn operands(words: &[String]) -> Result<Operands<'_>, Failure> {
    let mut operands = Operands::default();
    for word in words {
        let Some((key, value)) = word.split_once('=') else {
            return Err(Failure::new(format!("unrecognized operand {word}")));
        };
        let number = || parse_size(value).ok_or_else(|| Failure::new(format!("invalid number: '{value}'")));
        match key {
            "if" => operands.input = Some(value),
            "of" => operands.output = Some(value),
            "bs" => operands.block_size = Some(number()?).filter(|size| *size > 0),
            "count" => operands.count = Some(number()?),
            "skip" => operands.skip = number()?,
            _ => return Err(Failure::new(format!("unrecognized operand {word}"))),
        }
    }
    Ok(operands)
}
