//! The commands. Each is a row: its name, how many arguments it takes, its options, and what it does.

use std::time::Instant;

use engine_disk::{Access, DiskError, DiskImage, Preallocation};

use crate::cli::img::Failure;
use crate::cli::img::chain::layered_above;
use crate::cli::img::info::specific_text;
use crate::cli::img::options::{Known, Options};
use crate::cli::img::source::How;
use crate::cli::img::units::parse_size;

use super::report::{Moved, size};
use super::session::{Next, Session, in_host_words};

/// A command.
struct Command {
    name: &'static str,
    /// What follows the name, for people.
    synopsis: &'static str,
    meaning: &'static str,
    /// Its options, as in getopt.
    options: &'static str,
    /// Fewest and most operands.
    operands: (usize, usize),
    needs_image: bool,
    run: fn(&mut Session, &Options) -> Result<(), Problem>,
}

/// Why a command did not succeed.
enum Problem {
    /// Something to tell on the standard output, as QEMU does.
    Told(String),
    /// It was told already.
    Silent,
    /// The image said no while something was being done.
    Disk(&'static str, DiskError),
    /// The command line makes no sense: the command is shown as it should be.
    Synopsis,
    /// Not an error: the program is to end.
    Quit,
}

const MANY: usize = usize::MAX;
/// No request may be longer than this.
const MAX_LENGTH: u64 = i32::MAX as u64 / 512 * 512;
/// What a read buffer holds before, and a write without a pattern writes.
const USUAL_PATTERN: u8 = 0xcd;

const COMMANDS: &[Command] = &[
    Command {
        name: "aio_flush",
        synopsis: "",
        meaning: "completes all outstanding aio requests",
        options: "",
        operands: (0, 0),
        needs_image: true,
        run: |session, _| flush(session),
    },
    Command {
        name: "aio_read",
        synopsis: "[-Ciqv] [-P pattern] off len [len..]",
        meaning: "asynchronously reads a number of bytes",
        options: "CP:iqv",
        operands: (2, MANY),
        needs_image: true,
        run: readv,
    },
    Command {
        name: "aio_write",
        synopsis: "[-Cfiquz] [-P pattern] off len [len..]",
        meaning: "asynchronously writes a number of bytes",
        options: "CfiP:quz",
        operands: (2, MANY),
        needs_image: true,
        run: writev,
    },
    Command {
        name: "alloc",
        synopsis: "offset [count]",
        meaning: "checks if offset is allocated in the file",
        options: "",
        operands: (1, 2),
        needs_image: true,
        run: alloc,
    },
    Command {
        name: "close",
        synopsis: "",
        meaning: "close the current open file",
        options: "",
        operands: (0, 0),
        needs_image: true,
        run: |session, _| {
            session.close();
            Ok(())
        },
    },
    Command {
        name: "discard",
        synopsis: "[-Cq] off len",
        meaning: "discards a number of bytes at a specified offset",
        options: "Cq",
        operands: (2, 2),
        needs_image: true,
        run: discard,
    },
    Command {
        name: "flush",
        synopsis: "",
        meaning: "flush all in-core file state to disk",
        options: "",
        operands: (0, 0),
        needs_image: true,
        run: |session, _| flush(session),
    },
    Command {
        name: "help",
        synopsis: "[command]",
        meaning: "help for one or all commands",
        options: "",
        operands: (0, 1),
        needs_image: false,
        run: help,
    },
    Command {
        name: "info",
        synopsis: "",
        meaning: "prints information about the current file",
        options: "",
        operands: (0, 0),
        needs_image: true,
        run: info,
    },
    Command {
        name: "length",
        synopsis: "",
        meaning: "gets the length of the current file",
        options: "",
        operands: (0, 0),
        needs_image: true,
        run: |session, _| {
            println!("{}", size(image(session)?.len() as f64));
            Ok(())
        },
    },
    Command {
        name: "map",
        synopsis: "",
        meaning: "prints the allocated areas of a file",
        options: "",
        operands: (0, 0),
        needs_image: true,
        run: map,
    },
    Command {
        name: "open",
        synopsis: "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
        meaning: "open the file specified by path",
        options: "rsCnkUt:d:o:",
        operands: (0, 1),
        needs_image: false,
        run: open,
    },
    Command {
        name: "quit",
        synopsis: "",
        meaning: "exit the program",
        options: "",
        operands: (0, 0),
        needs_image: false,
        run: |_, _| Err(Problem::Quit),
    },
    Command {
        name: "read",
        synopsis: "[-abCqv] [-P pattern [-s off] [-l len]] off len",
        meaning: "reads a number of bytes at a specified offset",
        options: "abCl:pP:qs:v",
        operands: (2, 2),
        needs_image: true,
        run: read,
    },
    Command {
        name: "readv",
        synopsis: "[-Cqv] [-P pattern] off len [len..]",
        meaning: "reads a number of bytes at a specified offset",
        options: "CP:qv",
        operands: (2, MANY),
        needs_image: true,
        run: readv,
    },
    Command {
        name: "reopen",
        synopsis: "[(-r|-w)] [-c cache] [-o options]",
        meaning: "reopens an image with new options",
        options: "rwc:o:",
        operands: (0, 0),
        needs_image: true,
        run: reopen,
    },
    Command {
        name: "sleep",
        synopsis: "",
        meaning: "waits for the given value in milliseconds",
        options: "",
        operands: (1, 1),
        needs_image: false,
        run: sleep,
    },
    Command {
        name: "truncate",
        synopsis: "[-m prealloc_mode] off",
        meaning: "truncates the current file at the given offset",
        options: "m:",
        operands: (1, 1),
        needs_image: true,
        run: truncate,
    },
    Command {
        name: "write",
        synopsis: "[-bcCfnquz] [-P pattern | -s source_file] off len",
        meaning: "writes a number of bytes at a specified offset",
        options: "bcCfnpP:qs:uz",
        operands: (2, 2),
        needs_image: true,
        run: write,
    },
    Command {
        name: "writev",
        synopsis: "[-Cfq] [-P pattern] off len [len..]",
        meaning: "writes a number of bytes at a specified offset",
        options: "CfqP:",
        operands: (2, MANY),
        needs_image: true,
        run: writev,
    },
];

/// Carries out one line.
pub fn run(session: &mut Session, line: &str) -> Result<Next, Failure> {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let Some((name, arguments)) = words.split_first() else { return Ok(Next::Continue { succeeded: true }) };
    let name = match name.as_str() {
        "r" => "read",
        "w" => "write",
        "rv" => "readv",
        "wv" => "writev",
        "d" => "discard",
        "f" => "flush",
        "i" => "info",
        "l" => "length",
        "q" => "quit",
        "s" => "truncate",
        "o" => "open",
        "c" => "close",
        "?" => "help",
        name => name,
    };
    let failed = Ok(Next::Continue { succeeded: false });
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        eprintln!("command \"{name}\" not found");
        return failed;
    };
    if command.needs_image && session.image().is_none() {
        eprintln!("no file open, try 'help open'");
        return failed;
    }
    let options = match Options::parse(arguments, &Known { short: command.options, long: &[] }) {
        Ok(options) => options,
        Err(failure) => {
            println!("{name}: {}\n{}", failure.message, command.line());
            return failed;
        }
    };
    let count = options.operands.len();
    let (fewest, most) = command.operands;
    if count < fewest || count > most {
        println!("bad argument count {count} to {name}, expected {}", command.expected());
        return failed;
    }
    match (command.run)(session, &options) {
        Ok(()) => Ok(Next::Continue { succeeded: true }),
        Err(Problem::Quit) => Ok(Next::Quit),
        Err(problem) => {
            match problem {
                Problem::Told(text) => println!("{text}"),
                Problem::Disk(doing, error) => println!("{doing} failed: {}", in_host_words(&error)),
                Problem::Synopsis => println!("{}", command.line()),
                Problem::Silent | Problem::Quit => {}
            }
            failed
        }
    }
}

impl Command {
    fn line(&self) -> String {
        format!("{} {} -- {}", self.name, self.synopsis, self.meaning).replace("  ", " ")
    }

    fn expected(&self) -> String {
        match self.operands {
            (fewest, MANY) => format!("at least {fewest} arguments"),
            (fewest, most) if fewest == most && fewest < 2 => format!("{fewest} arguments"),
            (fewest, most) if fewest == most => format!("at least {fewest} arguments"),
            (fewest, most) => format!("between {fewest} and {most} arguments"),
        }
    }
}

fn image(session: &Session) -> Result<&dyn DiskImage, Problem> {
    session.image().map(|image| &**image).ok_or(Problem::Silent)
}

fn number(text: &str) -> Result<u64, Problem> {
    let told = || Problem::Told(format!("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}"));
    parse_size(text).ok_or_else(told)
}

fn length(text: &str) -> Result<u64, Problem> {
    match number(text)? {
        length if length <= MAX_LENGTH => Ok(length),
        _ => Err(Problem::Told(format!("length cannot exceed {MAX_LENGTH}, given {text}"))),
    }
}

/// The byte that `-P` names.
fn pattern(options: &Options) -> Result<Option<u8>, Problem> {
    let Some(text) = options.value("P") else { return Ok(None) };
    match parse_size(text).and_then(|value| u8::try_from(value).ok()) {
        Some(byte) => Ok(Some(byte)),
        None => Err(Problem::Told(format!("{text} is not a valid pattern byte"))),
    }
}

/// A buffer for so many bytes; a request too long for memory is the image's to refuse.
fn buffer(length: u64, byte: u8) -> Vec<u8> {
    vec![byte; length as usize]
}

fn read(session: &mut Session, options: &Options) -> Result<(), Problem> {
    let pattern = pattern(options)?;
    let offset = number(&options.operands[0])?;
    let count = length(&options.operands[1])?;
    if pattern.is_none() && (options.has("l") || options.has("s")) {
        return Err(Problem::Synopsis);
    }
    let from = options.value("s").map(number).transpose()?.unwrap_or(0);
    let checked = options.value("l").map(number).transpose()?.unwrap_or(count.saturating_sub(from));
    if from.checked_add(checked).is_none_or(|end| end > count) {
        return Err(Problem::Told("pattern verification range exceeds end of read data".into()));
    }
    let mut bytes = buffer(count, 0xab);
    let begun = Instant::now();
    image(session)?.read_at(offset, &mut bytes).map_err(|error| Problem::Disk("read", error))?;
    let took = begun.elapsed();
    let range = &bytes[from as usize..(from + checked) as usize];
    let matches = pattern.is_none_or(|byte| range.iter().all(|found| *found == byte));
    if !matches {
        println!("Pattern verification failed at offset {}, {checked} bytes", offset + from);
    }
    finish_read(options, offset, &bytes, took, matches)
}

fn readv(session: &mut Session, options: &Options) -> Result<(), Problem> {
    let pattern = pattern(options)?;
    let (offset, count) = vector(options)?;
    let mut bytes = buffer(count, 0xab);
    let begun = Instant::now();
    image(session)?.read_at(offset, &mut bytes).map_err(|error| Problem::Disk("readv", error))?;
    let took = begun.elapsed();
    let matches = pattern.is_none_or(|byte| bytes.iter().all(|found| *found == byte));
    if !matches {
        println!("Pattern verification failed at offset {offset}, {count} bytes");
    }
    finish_read(options, offset, &bytes, took, matches)
}

fn finish_read(options: &Options, offset: u64, bytes: &[u8], took: std::time::Duration, matches: bool) -> Result<(), Problem> {
    if !options.has("q") {
        if options.has("v") {
            dump(bytes, offset);
        }
        let done = bytes.len() as u64;
        Moved { verb: "read", offset, asked: done, done, requests: 1, took }.print(options.has("C"));
    }
    if matches { Ok(()) } else { Err(Problem::Silent) }
}

/// Offset and total length of a request in several pieces.
fn vector(options: &Options) -> Result<(u64, u64), Problem> {
    let mut total = 0_u64;
    for text in &options.operands[1..] {
        total = total.saturating_add(length(text)?);
    }
    if total > MAX_LENGTH {
        return Err(Problem::Told(format!("The total number of bytes exceed the maximum size {MAX_LENGTH}")));
    }
    Ok((number(&options.operands[0])?, total))
}

fn write(session: &mut Session, options: &Options) -> Result<(), Problem> {
    let told = |text: &str| Err(Problem::Told(text.into()));
    let [zeros, compressed, fua] = ["z", "c", "f"].map(|option| options.has(option));
    if options.has("b") && zeros {
        return told("-b and -z cannot be specified at the same time");
    }
    if fua && (options.has("b") || compressed) {
        return told("-f and -b or -c cannot be specified at the same time");
    }
    if options.has("n") && !zeros {
        return told("-n requires -z to be specified");
    }
    if options.has("u") && !zeros {
        return told("-u requires -z to be specified");
    }
    if [zeros, options.has("P"), options.has("s")].iter().filter(|given| **given).count() > 1 {
        return told("Only one of -z, -P, and -s can be specified at the same time");
    }
    let pattern = pattern(options)?;
    let offset = number(&options.operands[0])?;
    let count = if zeros { number(&options.operands[1])? } else { length(&options.operands[1])? };
    if options.has("n") {
        // "Only if it is faster than writing": which nobody knows beforehand.
        return told("write failed: Operation not supported");
    }
    let image = image(session)?;
    let bytes = match (zeros, options.value("s")) {
        (true, _) => Vec::new(),
        (false, Some(file)) => pattern_file(file, count)?,
        (false, None) => buffer(count, pattern.unwrap_or(USUAL_PATTERN)),
    };
    let begun = Instant::now();
    let result = match (zeros, compressed) {
        (true, _) => image.write_zeroes(offset, count),
        (false, true) => image.write_compressed(offset, &bytes),
        (false, false) => image.write_at(offset, &bytes),
    };
    let result = if fua { result.and_then(|()| image.flush()) } else { result };
    result.map_err(|error| Problem::Disk("write", error))?;
    finish_write(options, "wrote", offset, count, begun);
    Ok(())
}

/// So many bytes of a file, over and over.
fn pattern_file(name: &str, count: u64) -> Result<Vec<u8>, Problem> {
    let content = std::fs::read(name).map_err(|error| Problem::Told(format!("{name}: {error}")))?;
    if content.is_empty() {
        return Err(Problem::Told(format!("{name}: file is empty")));
    }
    Ok(content.into_iter().cycle().take(count as usize).collect())
}

fn writev(session: &mut Session, options: &Options) -> Result<(), Problem> {
    let told = |text: &str| Err(Problem::Told(text.into()));
    if options.has("u") && !options.has("z") {
        return told("-u requires -z to be specified");
    }
    if options.has("z") && options.has("P") {
        return told("-z and -P cannot be specified at the same time");
    }
    if options.has("z") && options.operands.len() != 2 {
        return told("-z supports only a single length parameter");
    }
    let byte = pattern(options)?.unwrap_or(USUAL_PATTERN);
    let (offset, count) = vector(options)?;
    let image = image(session)?;
    let begun = Instant::now();
    let result = match options.has("z") {
        true => image.write_zeroes(offset, count),
        false => image.write_at(offset, &buffer(count, byte)),
    };
    let result = if options.has("f") { result.and_then(|()| image.flush()) } else { result };
    result.map_err(|error| Problem::Disk("writev", error))?;
    finish_write(options, "wrote", offset, count, begun);
    Ok(())
}

fn discard(session: &mut Session, options: &Options) -> Result<(), Problem> {
    let (offset, count) = (number(&options.operands[0])?, number(&options.operands[1])?);
    let begun = Instant::now();
    image(session)?.discard(offset, count).map_err(|error| Problem::Disk("discard", error))?;
    finish_write(options, "discard", offset, count, begun);
    Ok(())
}

fn finish_write(options: &Options, verb: &'static str, offset: u64, count: u64, begun: Instant) {
    if !options.has("q") {
        Moved { verb, offset, asked: count, done: count, requests: 1, took: begun.elapsed() }.print(options.has("C"));
    }
}

fn flush(session: &mut Session) -> Result<(), Problem> {
    image(session)?.flush().map_err(|error| Problem::Disk("flush", error))
}

fn alloc(session: &mut Session, options: &Options) -> Result<(), Problem> {
    let start = number(&options.operands[0])?;
    let count = options.operands.get(1).map(|text| number(text)).transpose()?.unwrap_or(512);
    let disk = session.image().ok_or(Problem::Silent)?;
    let mut allocated = 0;
    let mut at = start;
    let end = start.checked_add(count).filter(|end| *end <= disk.len());
    let end = end.ok_or_else(|| Problem::Told("is_allocated failed: Input/output error".into()))?;
    while at < end {
        let stretch = layered_above(disk, Some(1), at, end - at).map_err(|error| Problem::Disk("is_allocated", error))?;
        if stretch.present {
            allocated += stretch.length;
        }
        at += stretch.length;
    }
    println!("{allocated}/{count} bytes allocated at offset {}", size(start as f64));
    Ok(())
}

fn map(session: &mut Session, _: &Options) -> Result<(), Problem> {
    let disk = session.image().ok_or(Problem::Silent)?;
    let mut at = 0;
    while at < disk.len() {
        let start = at;
        let mut kind = None;
        while at < disk.len() {
            let stretch = layered_above(disk, Some(1), at, disk.len() - at).map_err(|error| Problem::Disk("map", error))?;
            if *kind.get_or_insert(stretch.present) != stretch.present {
                break;
            }
            at += stretch.length;
        }
        let word = if kind == Some(true) { "    allocated" } else { "not allocated" };
        let length = at - start;
        println!("{} ({length:#x}) bytes {word} at offset {} ({start:#x})", size(length as f64), size(start as f64));
    }
    Ok(())
}

fn info(session: &mut Session, _: &Options) -> Result<(), Problem> {
    let disk = image(session)?;
    println!("format name: {}", disk.format());
    let info = disk.info();
    if let Some(cluster_size) = info.cluster_size {
        println!("cluster size: {}", size(cluster_size as f64));
    }
    println!("vm state offset: {}", size(info.vm_state_offset as f64));
    print!("{}", specific_text(&info));
    Ok(())
}

fn truncate(session: &mut Session, options: &Options) -> Result<(), Problem> {
    let size = number(&options.operands[0])?;
    image(session)?.resize(size, Preallocation::Off).map_err(|error| Problem::Disk("truncate", error))
}

fn open(session: &mut Session, options: &Options) -> Result<(), Problem> {
    if session.image().is_some() {
        return Err(Problem::Told("file open already, try 'help close'".into()));
    }
    let mut how = How::writing().asked_by(options).map_err(|failure| Problem::Told(failure.message))?;
    if options.has("r") {
        how.access = Access::ReadOnly;
    }
    let format = options
        .value("o")
        .map(crate::cli::img::source::key_values)
        .and_then(|pairs| pairs.into_iter().find(|(key, _)| key == "driver").map(|(_, format)| format));
    let Some(name) = options.operands.first() else { return Err(Problem::Synopsis) };
    session.open(name, format.as_deref(), false, &how, options.has("s")).map_err(|failure| Problem::Told(failure.message))
}

fn reopen(session: &mut Session, options: &Options) -> Result<(), Problem> {
    let access = match (options.has("r"), options.has("w")) {
        (true, true) => return Err(Problem::Told("Only one -r/-w option can be given".into())),
        (true, false) => Access::ReadOnly,
        (false, _) => Access::ReadWrite,
    };
    session.reopen(access).map_err(|failure| Problem::Told(failure.message))
}

fn sleep(_: &mut Session, options: &Options) -> Result<(), Problem> {
    let millis = options.operands[0].parse().map_err(|_| Problem::Told("sleep: not a number of milliseconds".into()))?;
    std::thread::sleep(std::time::Duration::from_millis(millis));
    Ok(())
}

fn help(_: &mut Session, options: &Options) -> Result<(), Problem> {
    match options.operands.first() {
        Some(name) => match COMMANDS.iter().find(|command| command.name == name) {
            Some(command) => println!("{}", command.line()),
            None => println!("command {name} not found"),
        },
        None => {
            COMMANDS.iter().for_each(|command| println!("{}", command.line()));
            println!("\nUse 'help commandname' for extended help.");
        }
    }
    Ok(())
}

/// Sixteen bytes a row: position, hexadecimal, letters.
fn dump(bytes: &[u8], offset: u64) {
    for (number, row) in bytes.chunks(16).enumerate() {
        let hex: String = row.iter().map(|byte| format!("{byte:02x} ")).collect();
        let letter = |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' };
        let letters: String = row.iter().map(letter).collect();
        println!("{:08x}:  {hex} {letters}", offset + number as u64 * 16);
    }
}
