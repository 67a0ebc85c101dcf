//! The command line: `bellglass <word> …`, or a symlink with the name of the program to be (`qemu-system-x86_64`,
//! `qemu-img`, `qemu-io`).
//! No word at all is the manager's window (see `main.rs`).

mod img;
mod io;
mod machines;
mod qemu;
mod secrets;
pub mod signals;
#[cfg(test)]
mod text_fuzzer;

pub use qemu::why_not_kvm;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

/// Whether `name` is a program that we can be.
pub fn is_program(name: &str) -> bool {
    matches!(name, "qemu-system-x86_64" | "qemu-system-i386" | "qemu" | "qemu-img" | "qemu-io")
}

/// Bellglass runs whole computers. Without a command it opens the window with your machines.
#[derive(Parser)]
#[command(name = "bellglass", version, disable_help_subcommand = false, arg_required_else_help = true)]
#[command(after_help = "bellglass qemu-system-x86_64 … runs a machine by QEMU's command line; so does a symlink of that name.\n\
bellglass img … and bellglass io … are qemu-img and qemu-io.")]
struct Cli {
    #[command(subcommand)]
    command: machines::MachineCommand,
}

/// Runs the command line; the first argument is the word (or the program we were called as).
pub fn main(arguments: &[OsString]) -> ExitCode {
    if let Some((word, rest)) = arguments.split_first() {
        match &*word.to_string_lossy() {
            "img" => return img::main("bellglass img", rest),
            "qemu-img" => return img::main("qemu-img", rest),
            "io" => return io::main("bellglass io", rest),
            "qemu-io" => return io::main("qemu-io", rest),
            program if is_program(program) => return qemu::run::main(rest),
            _ => {}
        }
    }
    let words = std::iter::once(OsString::from("bellglass")).chain(arguments.iter().cloned());
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            error.print().ok(); // With the terminal gone there is nobody to tell.
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    machines::carry_out(cli.command).unwrap_or_else(|error| {
        eprintln!("bellglass: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_table_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_unknown_command_names_the_nearest() {
        let error = Cli::try_parse_from(["bellglass", "lst"]).err().unwrap();
        assert!(error.to_string().contains("list"), "{error}");
    }
}
