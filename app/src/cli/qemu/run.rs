//! Carries a [`Plan`] out: opens its streams and leads them to the machine's process.

use super::chardev::Lead;
use super::command_line::{Plan, Request, Window, parse};
use super::console::{self, Serial, Sharing};
use crate::machine_process::{Face, MachineProcess, exit_code};
use anyhow::{Result, bail};
use engine_session::{RawTerminal, StreamTarget};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// `qemu-system-x86_64` with these arguments.
pub fn main(arguments: &[OsString]) -> ExitCode {
    let arguments: Vec<String> = arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let outcome = parse(&arguments).and_then(|request| match request {
        Request::Print(text) => {
            print!("{text}");
            Ok(ExitCode::SUCCESS)
        }
        Request::Run(plan) => run(*plan),
    });
    outcome.unwrap_or_else(|error| {
        eprintln!("bellglass: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs a machine until it ends.
pub fn run(mut plan: Plan) -> Result<ExitCode> {
    for note in &plan.notes {
        eprintln!("bellglass: {note}");
    }
    let mut serials = Vec::new();
    let mut socket_files = Vec::new();
    for (index, lead) in plan.serials.iter().enumerate() {
        let Some(target) = lead.target() else { continue };
        let sharing = if matches!(lead, Lead::Shared(_)) { Sharing::WithMonitor } else { Sharing::Alone };
        let (port, serial) = Serial::open(target, sharing)?;
        socket_files.extend(serial.socket_file());
        plan.spec.char_ports.insert(format!("serial{index}"), port);
        serials.push(serial);
    }
    if let Some(target) = plan.debug_port.as_ref().and_then(Lead::target) {
        let (port, serial) = Serial::open(target, Sharing::Alone)?;
        socket_files.extend(serial.socket_file());
        plan.spec.char_ports.insert("debugcon".to_owned(), port);
        serials.push(serial);
    }
    let process = MachineProcess::start(&plan.spec, plan.policy)?;
    let session = process.session();
    let _pid_file = plan.pid_file.as_deref().map(PidFile::write).transpose()?;
    for serial in serials {
        serial.start(session)?;
    }
    let leads = plan.serials.iter().chain(&plan.debug_port).chain(&plan.monitors).chain(&plan.qmps);
    let mut targets = leads.filter_map(Lead::target);
    let raw = targets.any(|target| *target == StreamTarget::Stdio).then(|| RawTerminal::enter(plan.interrupt_key));
    let mut tellers = Vec::new();
    for target in plan.monitors.iter().filter_map(Lead::target) {
        socket_files.extend(console::monitor(target, session)?);
    }
    for target in plan.qmps.iter().filter_map(Lead::target) {
        let (file, teller) = console::qmp(target, session, &plan.spec.name)?;
        socket_files.extend(file);
        tellers.extend(teller);
    }
    let face = if plan.window == Window::Wanted { Face::Window } else { Face::Headless };
    let reason = process.until_end(face, None)?;
    // The last event is on its way; clients and the person are to see it.
    tellers.into_iter().for_each(|thread| thread.join().unwrap_or_default());
    drop((raw, socket_files));
    Ok(exit_code(reason))
}

/// `-pidfile`: written when the machine runs, removed at the end.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: &Path) -> Result<Self> {
        if let Err(error) = std::fs::write(path, format!("{}\n", std::process::id())) {
            bail!("The process id could not be written ({error}). Choose another place: {}", path.display());
        }
        Ok(Self(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok(); // Somebody may have taken it away.
    }
}
