//! What an emulated part is: a [`Device`] with the faces it has, behind its own lock in a [`DeviceCell`].

use crate::{Options, PciConfig, RestoreError, SavedState, Wiring};
use engine_base::{RankedGuard, RankedMutex, VmTime};
use engine_display::Screen;
use engine_input::InputEvent;
use std::sync::OnceLock;

/// One emulated part. Its own lock is held around every call; no other device's ever is.
pub trait Device: Send + 'static {
    /// Puts the part into the state after `kind`.
    fn reset(&mut self, kind: ResetKind);
    /// All state that the guest can see. No default: "no state" is written down, never assumed.
    fn save(&self) -> SavedState;
    /// Takes saved state over, after the same checks that register writes go through: saved state is hostile input.
    ///
    /// # Errors
    /// When the state is of another version, incomplete, or holds values that the part cannot have.
    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError>;

    /// Answers at I/O ports.
    fn as_port_io(&mut self) -> Option<&mut dyn PortIo> {
        None
    }
    /// Answers at memory addresses.
    fn as_mmio(&mut self) -> Option<&mut dyn Mmio> {
        None
    }
    /// Is a PCI function.
    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        None
    }
    /// Has timers.
    fn as_timed(&mut self) -> Option<&mut dyn Timed> {
        None
    }
    /// Has work done for it elsewhere (drives, character ports) and wants to hear when it is done.
    fn as_worker(&mut self) -> Option<&mut dyn Worker> {
        None
    }
    /// Has interrupt inputs.
    fn as_interrupt_controller(&mut self) -> Option<&mut dyn InterruptController> {
        None
    }
    /// Takes keys or pointer movements.
    fn as_input(&mut self) -> Option<&mut dyn InputSink> {
        None
    }
    /// Has the machine's power button wired to it.
    fn as_power_button(&mut self) -> Option<&mut dyn PowerButton> {
        None
    }
    /// Makes a picture.
    fn as_screen(&mut self) -> Option<&mut dyn ScreenSource> {
        None
    }
}

/// Why a part is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetKind {
    /// Power was off.
    PowerOn,
    /// The RESET line: power stayed on, so battery-backed and sticky state survives.
    System,
}

/// The size of one access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Width {
    /// 1 byte.
    Byte = 1,
    /// 2 bytes.
    Word = 2,
    /// 4 bytes.
    Dword = 4,
    /// 8 bytes (MMIO only).
    Qword = 8,
}

impl Width {
    /// 1, 2, 4 or 8.
    pub const fn bytes(self) -> u64 {
        self as u64
    }

    /// All ones in this width: what an undriven bus reads.
    pub const fn all_ones(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }

    /// The width of `bytes` bytes.
    pub const fn of(bytes: u64) -> Option<Self> {
        match bytes {
            1 => Some(Width::Byte),
            2 => Some(Width::Word),
            4 => Some(Width::Dword),
            8 => Some(Width::Qword),
            _ => None,
        }
    }
}

/// Which port of a device is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// A port at a fixed address, claimed with [`Wiring::claim_ports`].
    Fixed(u16),
    /// A port inside a PCI base address register's range.
    Bar {
        /// Base address register 0 to 5.
        index: u8,
        /// Bytes from its start.
        offset: u16,
    },
}

/// I/O ports. The router has split accesses wider than claimed.
pub trait PortIo {
    /// Reads; the value's high bits beyond `width` are ignored.
    fn port_read(&mut self, port: Port, width: Width) -> u32;
    /// Reads the same port again and again until `into`, a multiple of `width`, is full: a repeated INS.
    fn port_read_run(&mut self, port: Port, width: Width, into: &mut [u8]) {
        for element in into.chunks_exact_mut(width.bytes() as usize) {
            let value = self.port_read(port, width).to_le_bytes();
            element.copy_from_slice(&value[..element.len()]);
        }
    }
    /// Writes; bits beyond `width` are zero.
    fn port_write(&mut self, port: Port, width: Width, value: u32);
}

/// Memory-mapped registers. `region` is the number given to [`Wiring::claim_mmio`], or the base address register's index (0 to 5).
pub trait Mmio {
    /// Reads `width` at `offset` bytes into the region; not necessarily aligned.
    fn mmio_read(&mut self, region: u8, offset: u64, width: Width) -> u64;
    /// Writes.
    fn mmio_write(&mut self, region: u8, offset: u64, width: Width, value: u64);
}

/// A PCI function. The router reads and writes [`PciConfig`] by its masks; the function reacts.
pub trait PciFunction {
    /// Configuration space.
    fn config(&self) -> &PciConfig;
    /// Configuration space, to be written.
    fn config_mut(&mut self) -> &mut PciConfig;
    /// The guest has written `len` bytes at `offset` of the configuration space, masks applied. Base address registers and
    /// the command register need no reaction: the router re-reads them afterwards.
    fn config_written(&mut self, offset: u8, len: u8) {
        let _ = (offset, len); // Most functions have nothing of their own there.
    }
}

/// Timers set through [`crate::Timer`].
pub trait Timed {
    /// A timer is due. It may come late, and once more after being cancelled: compare deadlines with `now`.
    fn timer_fired(&mut self, timer: u32, now: VmTime);
}

/// Work finished elsewhere.
pub trait Worker {
    /// Look at drives and character ports: something is there. It may come without reason.
    fn work_ready(&mut self);
}

/// A part with interrupt inputs: PIC, IOAPIC, or a router between.
pub trait InterruptController {
    /// Input `input` (as numbered in [`Wiring::listen`]) changed its level.
    fn set_input(&mut self, input: u32, high: bool);
    /// The CPU acknowledges (INTA cycle): the vector; `None` for controllers that are not asked this way.
    fn acknowledge(&mut self) -> Option<u8> {
        None
    }
    /// A local APIC broadcasts the end of a level-triggered interrupt.
    fn end_of_interrupt(&mut self, vector: u8) {
        let _ = vector; // Only the IOAPIC listens.
    }
}

/// The power button's end: what a person asks of a running guest, which may answer or not.
pub trait PowerButton {
    /// Pressed and let go.
    fn press(&mut self);
}

/// A keyboard or pointer.
pub trait InputSink {
    /// Whether it takes this kind of event now. An absolute pointer says no until the guest's driver has set it up.
    fn wants(&self, event: &InputEvent) -> bool;
    /// One event.
    fn input(&mut self, event: &InputEvent);
}

/// A display adapter.
pub trait ScreenSource {
    /// Draws what changed since the last call into `screen`, and reports it as damage. `everything` asks for a whole picture.
    fn draw(&mut self, screen: &Screen, everything: bool);
}

/// A device model: what the registry, `-device help`, the settings page and the tests know of a part.
pub struct DeviceModel {
    /// Its name on the command line and in `machine.ron`: `isa-serial`.
    pub id: &'static str,
    /// Its name for people: `16550A serial port`.
    pub title: &'static str,
    /// Where it is plugged in.
    pub slot: Slot,
    /// Lock rank: `rank::DEVICE` but for interrupt routers and controllers.
    pub rank: u8,
    /// The options it takes: name, what it means.
    pub options: &'static [(&'static str, &'static str)],
    /// Builds one. It comes up in the state after [`ResetKind::PowerOn`].
    pub build: fn(&Options, &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError>,
}

/// Where a device is plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Soldered on the board.
    Chipset,
    /// An ISA card.
    Isa,
    /// A PCI function.
    Pci,
}

/// A device could not be built from its options.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// An option has a value that the device cannot take.
    #[error("{device}: the option {option}={value} is not possible: {expected}")]
    Option {
        /// The model's id.
        device: &'static str,
        /// The option's name.
        option: &'static str,
        /// What was given.
        value: String,
        /// What would be possible.
        expected: &'static str,
    },
    /// Something that the device cannot work without is not there.
    #[error("{device}: {missing}")]
    Missing {
        /// The model's id.
        device: &'static str,
        /// What is missing and what to do.
        missing: String,
    },
    /// No room for its memory.
    #[error(transparent)]
    Memory(#[from] engine_memory::MemoryError),
}

/// A device in its place on the board, behind its lock.
pub struct DeviceCell {
    name: String,
    rank: u8,
    device: OnceLock<RankedMutex<Box<dyn Device>>>,
}

impl DeviceCell {
    pub(crate) fn empty(name: String, rank: u8) -> Self {
        Self { name, rank, device: OnceLock::new() }
    }

    pub(crate) fn fill(&self, device: Box<dyn Device>) {
        let filled = self.device.set(RankedMutex::new(self.rank, "device", device));
        assert!(filled.is_ok(), "a device cell is filled once");
    }

    /// Its name on this board: the model's id, with a number where there are several.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Locks the device.
    ///
    /// # Panics
    /// Before the device has been built: nothing may reach it that early.
    pub fn lock(&self) -> RankedGuard<'_, Box<dyn Device>> {
        self.device.get().expect("the device is built before it is used").lock()
    }

    /// Tells the device that work is ready. Nothing happens while it is still being built.
    pub fn ring(&self) {
        if let Some(device) = self.device.get()
            && let Some(worker) = device.lock().as_worker()
        {
            worker.work_ready();
        }
    }
}
