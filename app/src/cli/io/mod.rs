//! `qemu-io` in QEMU's own words: reads, writes and asks an image piece by piece, for tests. The commands are rows in
//! [`commands::COMMANDS`]; what they print is what QEMU's prints, so that scripts which compare it run unchanged.

mod commands;
mod report;
mod session;

use std::ffi::OsString;
use std::io::{BufRead, Write};
use std::process::ExitCode;

use engine_disk::Access;

use super::img::Failure;
use super::img::options::{Known, Options};
use super::img::source::How;
use session::{Next, Session};

const KNOWN: Known<'_> = Known {
    short: "hVc:d:f:rsnCmki:t:T:U",
    long: &[
        "help",
        "version",
        "cmd=",
        "format=",
        "read-only",
        "snapshot",
        "nocache",
        "copy-on-read",
        "misalign",
        "native-aio",
        "aio=",
        "discard=",
        "cache=",
        "trace=",
        "force-share",
        "object=",
        "image-opts",
    ],
};

const USAGE: &str = "Usage: bellglass io [OPTIONS]... [-c STRING]... [file]
Disk exerciser; takes qemu-io's command lines

      --image-opts         treat file as option string
  -c, --cmd STRING         execute command with its arguments from the given string
  -f, --format FMT         the image's format
  -r, --read-only          open for reading only
  -s, --snapshot           throw writes away at the end
  -n, --nocache            short for -t none
  -t, --cache=MODE         writethrough: each write is flushed; unsafe: a flush does nothing
  -U, --force-share        do not mind others who use the file
  -h, --help               display this help and exit
  -V, --version            output version information and exit

'bellglass io -c help' lists the commands.
";

/// Runs `qemu-io`; `program` is how messages call it.
pub fn main(program: &str, arguments: &[OsString]) -> ExitCode {
    match run(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("{program}: {}", failure.message);
            ExitCode::from(failure.status)
        }
    }
}

/// Says whether all commands succeeded.
fn run(arguments: &[OsString]) -> Result<bool, Failure> {
    let arguments = super::img::in_text(arguments)?;
    let options = Options::parse(&arguments, &KNOWN)?;
    let has = |short: &str, long: &str| options.has(short) || options.has(long);
    if has("h", "help") {
        print!("{USAGE}");
        return Ok(true);
    }
    if has("V", "version") {
        println!("bellglass io version {}", env!("CARGO_PKG_VERSION"));
        return Ok(true);
    }
    let mut how = How::writing().asked_by(&options)?;
    if has("r", "read-only") {
        how.access = Access::ReadOnly;
    }
    if let Some(mode) = options.value("t").or(options.value("cache")) {
        how = how.cached_by(mode)?;
    }
    if options.operands.len() > 1 {
        return Err(Failure::new("more than one file was named; give them one after the other with the command open"));
    }
    let mut session = Session::default();
    if let Some(name) = options.operands.first() {
        let format = options.value("f").or(options.value("format"));
        session.open(name, format, options.has("image-opts"), &how, has("s", "snapshot"))?;
    }
    let lines: Vec<&str> = options.in_order().filter(|(name, _)| matches!(*name, "c" | "cmd")).map(|(_, line)| line).collect();
    let succeeded = if lines.is_empty() { converse(&mut session)? } else { carry_out(&mut session, &lines)? };
    session.close();
    Ok(succeeded)
}

/// The commands of the command line; a failure does not keep the later ones from being carried out.
fn carry_out(session: &mut Session, lines: &[&str]) -> Result<bool, Failure> {
    let mut succeeded = true;
    for line in lines {
        match commands::run(session, line)? {
            Next::Continue { succeeded: this } => succeeded &= this,
            Next::Quit => break,
        }
    }
    Ok(succeeded)
}

/// Commands from the standard input, with a prompt.
fn converse(session: &mut Session) -> Result<bool, Failure> {
    let mut succeeded = true;
    let mut input = std::io::stdin().lock();
    loop {
        print!("qemu-io> ");
        std::io::stdout().flush()?;
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            println!();
            return Ok(succeeded);
        }
        match commands::run(session, line.trim_end_matches('\n'))? {
            Next::Continue { succeeded: this } => succeeded &= this,
            Next::Quit => return Ok(succeeded),
        }
    }
}
