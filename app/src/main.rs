//! Bellglass: without arguments the manager's window, with a word the command line, under another program's name that program.

mod cli;
#[cfg(feature = "window")]
mod gui;
mod machine_process;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("BELLGLASS_LOG").unwrap_or_else(|_| "error".into()))
        .with_writer(std::io::stderr)
        .init();
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let called_as =
        arguments.first().and_then(|name| Path::new(name).file_name()).map(|name| name.to_string_lossy().into_owned());
    if called_as.as_deref().is_some_and(cli::is_program) {
        arguments[0] = called_as.unwrap_or_default().into();
        return cli::main(&arguments);
    }
    arguments.remove(0);
    if arguments.is_empty() {
        return manager();
    }
    cli::main(&arguments)
}

#[cfg(feature = "window")]
fn manager() -> ExitCode {
    gui::show_manager()
}

#[cfg(not(feature = "window"))]
fn manager() -> ExitCode {
    eprintln!("bellglass: this Bellglass was built without windows. “bellglass help” lists its commands.");
    ExitCode::FAILURE
}
