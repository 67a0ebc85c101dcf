//! The process of one machine, whichever command line it came from: `bellglass run FOLDER` (see [`run`]) or
//! `qemu-system-x86_64`. One process, one machine: a crash takes no other with it, and the manager is not needed.
//!
//! ```text
//!   main ── start ─► session ── Event ─► thread `notes`: what goes wrong, on standard error; the end
//!     └─ until_end: the window's event loop, or nothing; then the end, the flushed disks, the exit status
//! ```
//! Signals end it as pulling the plug would (see `cli/signals.rs`).

mod from_folder;
mod passphrases;

use std::process::ExitCode;
use std::thread::JoinHandle;

use anyhow::Result;
use crossbeam_channel::{Receiver, Sender, bounded};
use engine_base::spawn_guarded;
use engine_session::library::MachineFolder;
use engine_session::{EndReason, Event, Policy, RunState, Running, Session, Spec};

pub use from_folder::run;
pub use passphrases::Passphrases;
#[cfg(feature = "window")]
pub use passphrases::{LockedDisk, locked_disks};

use crate::cli::signals;

/// What of a running machine is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// Its window.
    Window,
    /// Nothing: others talk to it over its sockets.
    Headless,
}

/// A machine that runs in this process.
pub struct MachineProcess {
    running: Running,
    title: String,
    end: Receiver<EndReason>,
    notes: JoinHandle<()>,
}

impl MachineProcess {
    /// Builds the machine and starts it. From here on signals end it.
    ///
    /// # Errors
    /// A sentence: why it cannot be built, or that the host refuses a thread.
    pub fn start(spec: &Spec, policy: Policy) -> Result<Self> {
        let running = engine_session::start(spec, policy)?;
        let (ended, end) = bounded(1);
        let events = running.session.events();
        let notes = spawn_guarded("notes", move || print_notes(&events, &ended), |_| {})?;
        signals::end_on_signals(&running.session)?;
        Ok(Self { running, title: spec.name.clone(), end, notes })
    }

    /// The way to the machine.
    pub fn session(&self) -> &Session {
        &self.running.session
    }

    /// Shows the machine's face and waits until it has ended: its drives are flushed and closed then. `folder` is where
    /// the window puts screenshots.
    ///
    /// # Errors
    /// When there is no display for a window. The machine is switched off then.
    pub fn until_end(self, face: Face, folder: Option<&MachineFolder>) -> Result<EndReason> {
        let Self { running, title, end, notes } = self;
        if face == Face::Window {
            show(&running.session, title, folder)?;
        }
        let reason = end.recv().unwrap_or(match running.session.state() {
            RunState::Failed => EndReason::Failed,
            _ => EndReason::PoweredOff,
        });
        running.wait();
        notes.join().unwrap_or_default(); // A panic there was reported when it happened.
        Ok(reason)
    }
}

/// The exit status that tells how a machine ended.
pub fn exit_code(reason: EndReason) -> ExitCode {
    match reason {
        EndReason::GuestPoweredOff | EndReason::PoweredOff | EndReason::Quit | EndReason::Signal | EndReason::Reset(_) => {
            ExitCode::SUCCESS
        }
        EndReason::DebugExit(status) => ExitCode::from(status as u8),
        EndReason::Failed => ExitCode::from(70),
    }
}

/// The thread `notes`. It listens all the time, so the last event cannot be lost among others that nobody has read.
fn print_notes(events: &Receiver<Event>, ended: &Sender<EndReason>) {
    for event in events {
        match event {
            Event::Ended(reason) => {
                ended.send(reason).ok(); // Nobody waits when the window could not be opened.
                return;
            }
            Event::Failed { what, advice } => eprintln!("bellglass: {what} {advice}"),
            Event::Notice { text } => eprintln!("bellglass: {text}"),
            _ => {}
        }
    }
}

#[cfg(feature = "window")]
fn show(session: &Session, title: String, folder: Option<&MachineFolder>) -> Result<()> {
    let shown = crate::gui::Shown { session: session.clone(), title, folder: folder.cloned() };
    crate::gui::show_machine(shown).map_err(anyhow::Error::msg)
}

#[cfg(not(feature = "window"))]
fn show(_: &Session, _: String, _: Option<&MachineFolder>) -> Result<()> {
    anyhow::bail!("This Bellglass was built without windows. Add --headless, or -display none to a QEMU command line.")
}
