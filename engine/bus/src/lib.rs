//! All that an emulated device may touch: the faces it shows ([`Device`]), the capabilities it is handed ([`Wiring`]),
//! and the board's plumbing between them: port and MMIO router, PCI, interrupt wires, DMA, timers, drives, character
//! ports, saved state.
//!
//! It is *not* a machine: nothing here knows which parts a PC has, and it does not know CPUs at all (the machine crate
//! adapts one to the other). A device holds wires, never other devices; everything shared is reached through a handle.
//!
//! Threads: none of its own. The machine's `vm-clock` drives [`TimerQueue`], `vm-disk` threads serve
//! [`DriveServer`], `vm-screen` calls [`ScreenSource`]; vCPU threads enter through [`Router`].
//! Start at [`Device`], then [`Wiring`], then any file in `engine/devices`.
#![forbid(unsafe_code)]

mod backplane;
mod char_port;
mod device;
mod dma;
mod drive;
mod irq;
mod isa_dma;
mod led_panel;
mod pci;
mod power;
mod router;
mod saved_state;
mod timer;
mod wiring;

pub use backplane::{Backplane, FirmwareFile};
pub use char_port::{CharHost, CharPort, char_port};
pub use device::{
    BuildError, Device, DeviceCell, DeviceModel, InputSink, InterruptController, Mmio, PciFunction, Port, PortIo, PowerButton,
    ResetKind, ScreenSource, Slot, Timed, Width, Worker,
};
pub use dma::{Dma, DmaFault};
pub use drive::{
    Completion, Discards, Drive, DriveError, DriveOperation, DriveRequest, DriveRules, DriveServer, Medium, OnError, RequestFate,
    Zeros,
};
pub use irq::{InterruptMessage, IrqLine, MessageSender, Wires};
pub use isa_dma::{IsaDma, IsaDmaChannel, IsaDmaDirection, IsaDmaRegisters, IsaDmaTransfer};
pub use led_panel::LedPanel;
pub use pci::{Bar, BarKind, PciAddress, PciBus, PciConfig, ROM_BAR, SavedPciConfig};
pub use power::{Power, PowerRequest};
pub use router::Router;
pub use saved_state::{RestoreError, SavedState};
pub use timer::{Timer, TimerQueue};
pub use wiring::{Options, SharedFlag, SharedNumber, Wiring};
