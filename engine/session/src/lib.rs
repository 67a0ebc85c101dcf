//! What a front end sees of a machine: a [`Session`] to send [`Command`]s to and hear [`Event`]s from, and the
//! [`library`] of machines, which is folders on disk and nothing else.
//!
//! It is *not* a window and not a protocol: those are `app` and `remote`, and both sit on this crate.
//!
//! Threads: none of the link itself. A session has two ends, made together by [`link`]: the front end's [`Session`]
//! (cloneable; never blocks) and the machine's [`EngineSide`], held by the thread that runs the machine.
//! ```text
//!   window, QMP, VNC ── Command ──► EngineSide (vm-control)
//!        ▲  each its own Receiver      │
//!        └────────── Event ────────────┘        frames: Session::screen, latest wins
//! ```
#![forbid(unsafe_code)]

mod command;
pub mod library;
mod link;
mod running;
mod stream;

pub use command::{AddressSpace, BoardDescription, Command, EndReason, Event, Force, MOST_MEMORY_READ, PauseReason, RunState};
pub use link::{DriveKind, DriveStatus, EngineSide, Session, link};
pub use running::{OnReset, OnShutdown, Policy, Running, StartAs, start};
pub use stream::{InterruptKey, Output, RawTerminal, SocketFile, SocketRole, Stream, StreamError, StreamTarget, StreamUser};

// What a front end builds a machine from.
pub use engine_machine::{
    BootDevice, DirectKernel, Display, DriveInfo, DriveKind as MachineDriveKind, DriveSlot, DriveSpec, ImageSource, MachineError,
    MemoryRegionInfo, Part, PciFunctionInfo, ResetBy, Spec,
};

/// The device models that exist, id and title: for `-device help` and the settings page.
pub fn device_models() -> impl Iterator<Item = (&'static str, &'static str)> {
    engine_machine::device_models()
}

/// The options that a device model takes, name and meaning; `None` when there is no such model.
pub fn device_options(id: &str) -> Option<&'static [(&'static str, &'static str)]> {
    engine_machine::device_options(id)
}
