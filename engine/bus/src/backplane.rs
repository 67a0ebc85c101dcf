//! The board's plumbing in one place: what the machine creates first, and what every [`Wiring`](crate::Wiring) draws from.

use crate::device::{BuildError, DeviceCell, DeviceModel};
use crate::{CharPort, Drive, IsaDma, LedPanel, MessageSender, Options, PciAddress, Power, Router, TimerQueue, Wires, Wiring};
use engine_base::Clock;
use engine_display::Screen;
use engine_memory::GuestMemory;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex};

/// A file that the machine hands to firmware through fw_cfg.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirmwareFile {
    /// One of the numbered items (signature, memory size, kernel parts).
    Item {
        /// The selector key.
        key: u16,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// A named file in the directory: `etc/e820`.
    Named {
        /// At most 55 bytes.
        name: String,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// A named file in which numbers stand that firmware itself decides on, before it reads the file.
    Filled {
        /// At most 55 bytes.
        name: String,
        /// Its bytes; they stay as they are while the number is 0.
        bytes: Vec<u8>,
        /// The shared number ([`Wiring::shared_number`]).
        number: &'static str,
        /// Where it stands, in 32 bits, and what is added to it there.
        places: Vec<(usize, u32)>,
    },
}

/// The plumbing of one board.
pub struct Backplane {
    /// Guest-physical memory.
    pub memory: GuestMemory,
    /// Ports, MMIO, PCI.
    pub router: Router,
    /// Interrupt and other wires.
    pub wires: Wires,
    /// Timers, and the clock they run on.
    pub timers: TimerQueue,
    /// The way to ask for reset, shutdown, exit.
    pub power: Power,
    /// Interrupt messages to the CPUs.
    pub messages: MessageSender,
    /// The guest's display.
    pub screen: Screen,
    /// The keyboard's lamps.
    pub leds: LedPanel,
    /// Drives by name: `ide0-hd0`, `ide1-cd0`, `floppy0`.
    pub drives: BTreeMap<String, Drive>,
    /// Character ports by name: `serial0`, `debugcon`.
    pub char_ports: BTreeMap<String, CharPort>,
    /// What fw_cfg offers.
    pub firmware_files: Vec<FirmwareFile>,
    /// CMOS bytes that the board sets before the first instruction: index, value.
    pub cmos: Vec<(u8, u8)>,
    /// ROM images by name: `vgabios`.
    pub roms: BTreeMap<String, Vec<u8>>,
    pub(crate) isa_dma: IsaDma,
    pub(crate) flags: Mutex<BTreeMap<String, Arc<AtomicBool>>>,
    pub(crate) numbers: Mutex<BTreeMap<String, Arc<AtomicU32>>>,
    cells: Vec<Arc<DeviceCell>>,
}

impl Backplane {
    /// Plumbing around `memory` and `clock`, with nothing plugged in.
    pub fn new(memory: GuestMemory, clock: Clock, power: Power, messages: MessageSender) -> Self {
        Self {
            router: Router::new(memory.clone()),
            memory,
            wires: Wires::default(),
            timers: TimerQueue::new(clock),
            power,
            messages,
            screen: Screen::new(),
            leds: LedPanel::default(),
            drives: BTreeMap::new(),
            char_ports: BTreeMap::new(),
            firmware_files: Vec::new(),
            cmos: Vec::new(),
            roms: BTreeMap::new(),
            isa_dma: IsaDma::default(),
            flags: Mutex::default(),
            numbers: Mutex::default(),
            cells: Vec::new(),
        }
    }

    /// Plugs a device in. `name` is unique on the board; `pci` is its place for PCI functions.
    ///
    /// # Errors
    /// When the model cannot be built from these options.
    pub fn plug(
        &mut self,
        model: &DeviceModel,
        name: impl Into<String>,
        pci: Option<PciAddress>,
        options: &Options,
    ) -> Result<Arc<DeviceCell>, BuildError> {
        let cell = Arc::new(DeviceCell::empty(name.into(), model.rank));
        let mut wiring = Wiring::new(self, Arc::clone(&cell), pci);
        let device = (model.build)(options, &mut wiring)?;
        let bus_master = wiring.bus_master();
        cell.fill(device);
        if let Some(address) = pci {
            self.router.claim_pci(&cell, address, bus_master);
        }
        self.router.rebuild();
        self.cells.push(Arc::clone(&cell));
        Ok(cell)
    }

    /// All devices, in the order in which they were plugged in.
    pub fn devices(&self) -> &[Arc<DeviceCell>] {
        &self.cells
    }
}
