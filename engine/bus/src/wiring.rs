//! A device's only source of capabilities while it is built: what it takes from here is all it can ever reach.

use crate::device::{BuildError, DeviceCell, Width};
use crate::{
    Backplane, CharPort, Dma, Drive, FirmwareFile, IrqLine, IsaDma, IsaDmaChannel, LedPanel, MessageSender, PciAddress, Power,
    Timer,
};
use engine_base::Clock;
use engine_display::Screen;
use engine_memory::{Block, GuestMemory};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The options a device is built with, as on the command line: `-device isa-serial,index=1`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options(pub BTreeMap<String, String>);

impl Options {
    /// Options from pairs.
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    /// The text of an option.
    pub fn text(&self, option: &str) -> Option<&str> {
        self.0.get(option).map(String::as_str)
    }

    /// A number (decimal or `0x…`), `default` when not given.
    ///
    /// # Errors
    /// When it is not a number up to `most`.
    pub fn number(&self, device: &'static str, option: &'static str, default: u64, most: u64) -> Result<u64, BuildError> {
        let Some(text) = self.text(option) else { return Ok(default) };
        let parsed = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => text.parse(),
        };
        parsed.ok().filter(|value| *value <= most).ok_or_else(|| BuildError::Option {
            device,
            option,
            value: text.to_owned(),
            expected: "a number in range",
        })
    }
}

/// A flag shared by two parts of a chipset where a wire would close a locking circle (HPET legacy routing, A20 state).
#[derive(Debug, Clone, Default)]
pub struct SharedFlag(Arc<AtomicBool>);

impl SharedFlag {
    /// The flag.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Sets it.
    pub fn set(&self, value: bool) {
        self.0.store(value, Ordering::Release);
    }
}

/// A number that several parts share; 0 until somebody sets it.
#[derive(Debug, Clone, Default)]
pub struct SharedNumber(Arc<AtomicU32>);

impl SharedNumber {
    /// The number.
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Sets it.
    pub fn set(&self, value: u32) {
        self.0.store(value, Ordering::Release);
    }
}

/// What a device is handed while it is built.
pub struct Wiring<'a> {
    board: &'a mut Backplane,
    cell: Arc<DeviceCell>,
    pci: Option<PciAddress>,
    bus_master: Arc<AtomicBool>,
}

impl<'a> Wiring<'a> {
    pub(crate) fn new(board: &'a mut Backplane, cell: Arc<DeviceCell>, pci: Option<PciAddress>) -> Self {
        Self { board, cell, pci, bus_master: Arc::default() }
    }

    pub(crate) fn bus_master(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.bus_master)
    }

    /// The device's name on this board.
    pub fn name(&self) -> &str {
        self.cell.name()
    }

    /// Its place on the PCI bus.
    pub fn pci_address(&self) -> Option<PciAddress> {
        self.pci
    }

    /// Claims `count` ports from `base`. Accesses wider than `widest` arrive as single bytes.
    pub fn claim_ports(&mut self, base: u16, count: u16, widest: Width) {
        self.board.router.claim_ports(&self.cell, base, count, widest);
    }

    /// Claims a window of physical addresses (page aligned) as `region` of [`crate::Mmio`]; use numbers from 16 on, below are BARs.
    pub fn claim_mmio(&mut self, region: u8, base: u64, len: u64) {
        self.board.router.claim_mmio(&self.cell, region, base, len);
    }

    /// A source on ISA interrupt `number` (0 to 15).
    pub fn isa_irq(&self, number: u8) -> IrqLine {
        self.board.wires.drive(&format!("isa-irq{number}"))
    }

    /// A source on this PCI function's INTx wire: pins and slots are swizzled over `pci-pirqa` … `pci-pirqd` as on the
    /// i440FX board, where device 1 INTA# is PIRQA.
    pub fn pci_irq(&self, pin: u8) -> IrqLine {
        let device = self.pci.map_or(0, |address| address.device);
        let pirq = (device.wrapping_sub(1)).wrapping_add(pin.wrapping_sub(1)) & 3;
        self.board.wires.drive(&format!("pci-pirq{}", char::from(b'a' + pirq)))
    }

    /// A source on any wire: `cpu-intr`, `cpu-nmi`, `a20`.
    pub fn wire(&self, name: &str) -> IrqLine {
        self.board.wires.drive(name)
    }

    /// Hears a wire as input `input` of this device's [`crate::InterruptController`] face.
    pub fn listen(&mut self, name: &str, input: u32) {
        self.board.wires.connect(name, Arc::clone(&self.cell), input);
    }

    /// A timer, reported as `timer` to [`crate::Timed::timer_fired`].
    pub fn timer(&self, timer: u32) -> Timer {
        self.board.timers.timer(Arc::clone(&self.cell), timer)
    }

    /// The clock.
    pub fn clock(&self) -> Clock {
        self.board.timers.clock().clone()
    }

    /// Memory access as a PCI bus master: allowed while the command register says so.
    pub fn pci_dma(&self) -> Dma {
        Dma::new(self.board.memory.clone(), Arc::clone(&self.bus_master))
    }

    /// Memory access of a board part that needs no permission (ISA DMA, fw_cfg).
    pub fn board_dma(&self) -> Dma {
        Dma::new(self.board.memory.clone(), Arc::new(AtomicBool::new(true)))
    }

    /// ISA DMA channel `number` (0 to 3 move bytes, 5 to 7 words): for a card with a DREQ line.
    pub fn isa_dma_channel(&self, number: u8) -> IsaDmaChannel {
        self.board.isa_dma_channel(number)
    }

    /// The registers of all ISA DMA channels: for the controller that shows them to the guest.
    pub fn isa_dma(&self) -> IsaDma {
        self.board.isa_dma.clone()
    }

    /// The drive of this name, if the machine has one; this device is rung when it has news.
    pub fn drive(&self, name: &str) -> Option<Drive> {
        let drive = self.board.drives.get(name)?.clone();
        drive.attach(Arc::clone(&self.cell));
        Some(drive)
    }

    /// The character port of this name, if the machine has one; this device is rung when bytes arrive.
    pub fn char_port(&self, name: &str) -> Option<CharPort> {
        let port = self.board.char_ports.get(name)?.clone();
        port.attach(Arc::clone(&self.cell));
        Some(port)
    }

    /// The guest's display.
    pub fn screen(&self) -> Screen {
        self.board.screen.clone()
    }

    /// The keyboard's lamps.
    pub fn leds(&self) -> LedPanel {
        self.board.leds.clone()
    }

    /// Video memory: a block whose writes are noted page by page.
    ///
    /// # Errors
    /// When the host has no room.
    pub fn video_memory(&mut self, bytes: u64) -> Result<Block, BuildError> {
        Ok(self.board.memory.add_watched_block("vram", bytes)?)
    }

    /// A ROM image of the board as a block: `vgabios`.
    ///
    /// # Errors
    /// When the host has no room; `Ok(None)` when the board has no such ROM.
    pub fn rom(&mut self, name: &str) -> Result<Option<Block>, BuildError> {
        let Some(bytes) = self.board.roms.get(name) else { return Ok(None) };
        let len = (bytes.len() as u64).max(1).next_power_of_two().max(4096);
        let block = self.board.memory.add_block("option rom", len)?;
        block.write(0, bytes);
        Ok(Some(block))
    }

    /// Guest-physical memory itself: for the host bridge, which changes the layout.
    pub fn memory(&self) -> GuestMemory {
        self.board.memory.clone()
    }

    /// The way to ask for reset, shutdown, exit.
    pub fn power(&self) -> Power {
        self.board.power.clone()
    }

    /// Interrupt messages to the CPUs: for the IOAPIC, HPET and MSI.
    pub fn messages(&self) -> MessageSender {
        self.board.messages.clone()
    }

    /// What fw_cfg offers.
    pub fn firmware_files(&self) -> Vec<FirmwareFile> {
        self.board.firmware_files.clone()
    }

    /// CMOS bytes set by the board.
    pub fn cmos(&self) -> Vec<(u8, u8)> {
        self.board.cmos.clone()
    }

    /// A flag shared with other parts under this name.
    pub fn shared_flag(&self, name: &str) -> SharedFlag {
        self.board.shared_flag(name)
    }

    /// A number shared with other parts under this name.
    pub fn shared_number(&self, name: &str) -> SharedNumber {
        self.board.shared_number(name)
    }
}

impl Backplane {
    /// A card's end of ISA DMA channel `number`, to play the card in tests.
    pub fn isa_dma_channel(&self, number: u8) -> IsaDmaChannel {
        IsaDmaChannel::new(self.isa_dma.clone(), number, self.memory.clone())
    }

    /// The flag of this name, to look at from outside: tests and `info`.
    pub fn shared_flag(&self, name: &str) -> SharedFlag {
        let mut flags = self.flags.lock().unwrap_or_else(|poison| poison.into_inner());
        SharedFlag(Arc::clone(flags.entry(name.to_owned()).or_default()))
    }

    /// The number of this name.
    pub fn shared_number(&self, name: &str) -> SharedNumber {
        let mut numbers = self.numbers.lock().unwrap_or_else(|poison| poison.into_inner());
        SharedNumber(Arc::clone(numbers.entry(name.to_owned()).or_default()))
    }
}
