//! Puts a computer together and runs it: a [`Spec`] says what it is, [`Machine::build`] plugs the parts of its board in and
//! starts its threads, and the handle that comes back pauses, resets, feeds and ends it.
//!
//! It is *not* a front end: commands, windows and the monitor are in `session` and `remote`. It adapts CPUs to the bus,
//! which do not know each other ([`board`]).
//!
//! ```text
//!  caller ── Machine ──┬─ gate ──► vm-cpu0…n      run the guest; park at the gate when the machine is paused
//!                      ├─ queue ─► vm-control     carries out what devices ask: reset, shutdown, exit
//!                      ├────────── vm-clock       fires device timers (absent in a counted machine)
//!                      ├────────── vm-screen      draws the display while somebody watches
//!                      └────────── vm-disk0…n     read and write: four for each hard disk, one for other drives
//! ```
//! Start at [`Spec`], then `pc.rs` (which parts a PC has), then `machine.rs`.
#![forbid(unsafe_code)]

mod board;
mod gate;
mod inspect;
mod machine;
mod media;
mod pc;
mod spec;

pub use inspect::{MemoryRegionInfo, PciFunctionInfo, linear_to_physical};
pub use machine::{DriveInfo, EjectError, Force, Machine, MachineError, MachineEvent, Paused, ResetBy, RunState};
pub use media::{MediaError, open_medium};
pub use spec::{Display, DriveKind, DriveSlot, DriveSpec, ImageSource, Part, Spec};

pub use engine_firmware::linux::DirectKernel;
pub use engine_firmware::pc::BootDevice;

/// The device models that exist: id and title.
pub fn device_models() -> impl Iterator<Item = (&'static str, &'static str)> {
    engine_devices::registry::MODELS.iter().map(|model| (model.id, model.title))
}

/// The options that a device model takes, name and meaning; `None` when there is no such model.
pub fn device_options(id: &str) -> Option<&'static [(&'static str, &'static str)]> {
    engine_devices::registry::model(id).map(|model| model.options)
}
