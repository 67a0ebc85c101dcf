//! Front ends that are not windows: the human monitor ([`Monitor`], QEMU's HMP commands at the prompt `(qemu) `) and the
//! machine protocol ([`QmpServer`], QMP's JSON lines). Both sit on a [`Session`](engine_session::Session), as a window does,
//! and speak over any [`Stream`](engine_session::Stream).
//!
//! They are *not* a second way into the engine: what they can do, every front end can.
//! [`ControlSocket`] offers QMP to several clients at once; [`QmpClient`] is the other side.
//! Threads: `vm-qmp-events` for each QMP server, `vm-control-socket` for a control socket; commands run on the stream's own thread.
//! Start at [`monitor::COMMANDS`](monitor).
#![forbid(unsafe_code)]

mod client;
mod control;
mod monitor;
mod qmp;
mod screendump;

pub use client::{ClientError, QmpClient};
pub use control::ControlSocket;
pub use monitor::Monitor;
pub use qmp::QmpServer;
