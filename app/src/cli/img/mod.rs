//! `qemu-img` in QEMU's own words: each command is a file and a row in [`COMMANDS`]. Options, output and exit statuses are
//! QEMU's, so that scripts written for it run unchanged; messages about what went wrong are in our words.
//!
//! [`options`] sorts command lines out, [`source`] opens images as such command lines name them, [`chain`] looks through an
//! image and all that it is built on, and [`copy`] is the engine of everything that moves content.

mod amend;
mod bench;
mod bitmap;
pub mod chain;
mod check;
mod commit;
mod compare;
mod convert;
mod copy;
mod create;
mod dd;
mod format_options;
#[cfg(test)]
mod fuzz_tests;
pub mod info;
mod map;
mod measure;
pub mod options;
mod progress;
mod rebase;
mod resize;
mod snapshot;
pub mod source;
pub mod units;

use std::ffi::OsString;
use std::fmt;
use std::process::ExitCode;

use engine_disk::DiskError;

use super::qemu::nearest;

/// A command of `qemu-img`.
struct Command {
    name: &'static str,
    /// Its options, for people.
    synopsis: &'static str,
    run: fn(&[String]) -> Result<u8, Failure>,
}

const COMMANDS: &[Command] = &[
    Command { name: "amend", synopsis: amend::SYNOPSIS, run: amend::run },
    Command { name: "bench", synopsis: bench::SYNOPSIS, run: bench::run },
    Command { name: "bitmap", synopsis: bitmap::SYNOPSIS, run: bitmap::run },
    Command { name: "check", synopsis: check::SYNOPSIS, run: check::run },
    Command { name: "commit", synopsis: commit::SYNOPSIS, run: commit::run },
    Command { name: "compare", synopsis: compare::SYNOPSIS, run: compare::run },
    Command { name: "convert", synopsis: convert::SYNOPSIS, run: convert::run },
    Command { name: "create", synopsis: create::SYNOPSIS, run: create::run },
    Command { name: "dd", synopsis: dd::SYNOPSIS, run: dd::run },
    Command { name: "info", synopsis: info::SYNOPSIS, run: info::run },
    Command { name: "map", synopsis: map::SYNOPSIS, run: map::run },
    Command { name: "measure", synopsis: measure::SYNOPSIS, run: measure::run },
    Command { name: "rebase", synopsis: rebase::SYNOPSIS, run: rebase::run },
    Command { name: "resize", synopsis: resize::SYNOPSIS, run: resize::run },
    Command { name: "snapshot", synopsis: snapshot::SYNOPSIS, run: snapshot::run },
];

/// Why a command ended early.
#[derive(Debug)]
pub struct Failure {
    /// What to tell.
    pub message: String,
    /// The exit status.
    pub status: u8,
    /// Whether to add where help is.
    points_to_help: bool,
}

impl Failure {
    /// Something went wrong.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), status: 1, points_to_help: false }
    }

    /// The command line makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { points_to_help: true, ..Self::new(message) }
    }

    /// The same failure with another exit status.
    pub fn with_status(self, status: u8) -> Self {
        Self { status, ..self }
    }

    /// The same failure, told after what was being done.
    pub fn while_doing(self, doing: impl fmt::Display) -> Self {
        Self { message: format!("{doing}: {}", self.message), ..self }
    }
}

impl From<DiskError> for Failure {
    fn from(error: DiskError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// Writes to the standard output; a reader that went away ends the command quietly, as it would end a filter.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        write!(std::io::stdout(), $($text)*).map_err($crate::cli::img::Failure::from)?
    }};
}
pub(crate) use say;

/// Runs `qemu-img`; `program` is how messages call it.
pub fn main(program: &str, arguments: &[OsString]) -> ExitCode {
    match run(arguments) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("{program}: {}", failure.message);
            }
            if failure.points_to_help {
                eprintln!("Try '{program} --help' for more information");
            }
            ExitCode::from(failure.status)
        }
    }
}

fn run(arguments: &[OsString]) -> Result<u8, Failure> {
    let arguments = in_text(arguments)?;
    let (word, rest) = without_tracing(&arguments).split_first().ok_or_else(|| Failure::usage("Not enough arguments"))?;
    match word.as_str() {
        "-h" | "--help" => {
            help()?;
            return Ok(0);
        }
        "-V" | "--version" => {
            say!("bellglass img version {}\n", env!("CARGO_PKG_VERSION"));
            return Ok(0);
        }
        _ => {}
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == word) else {
        let names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
        let near = nearest(word, &names).map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
        return Err(Failure::usage(format!("Command not found: {word}{near}")));
    };
    if rest.iter().any(|argument| argument == "-h" || argument == "--help") {
        say!("usage: bellglass img {} {}\n", command.name, command.synopsis);
        return Ok(0);
    }
    (command.run)(rest)
}

/// What follows `-T …` and `--trace …`, which ask QEMU for a trace of itself. There is none here (`BELLGLASS_LOG` is ours).
fn without_tracing(mut arguments: &[String]) -> &[String] {
    loop {
        arguments = match arguments {
            [option, _, rest @ ..] if option == "-T" || option == "--trace" => rest,
            [option, rest @ ..] if option.starts_with("--trace=") => rest,
            rest => return rest,
        };
    }
}

/// Arguments as text: names in the files' headers are text too, so others could not be written down there.
pub fn in_text(arguments: &[OsString]) -> Result<Vec<String>, Failure> {
    let text = |argument: &OsString| {
        let told = || Failure::new(format!("This argument is not valid text: {}", argument.to_string_lossy()));
        argument.clone().into_string().map_err(|_| told())
    };
    arguments.iter().map(text).collect()
}

fn help() -> Result<(), Failure> {
    say!("usage: bellglass img command [command options]\nDisk image tool; takes qemu-img's command lines\n\nCommands:\n");
    for Command { name, synopsis, .. } in COMMANDS {
        say!("  {name} {synopsis}\n");
    }
    let formats: Vec<&str> = source::formats().map(|format| format.name()).collect();
    say!("\nSizes are in bytes, or with k, M, G, T, P or E in powers of 1024.\nSupported formats: {}\n", formats.join(" "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_asks_for_a_trace_is_passed_over() {
        for line in ["info x", "-T enable=a info x", "--trace enable=a,file=b info x", "--trace=a -T b info x"] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(without_tracing(&words), ["info", "x"], "{line}");
        }
    }
}
