//! A small board for unit tests: a real backplane with a hand-turned clock, 2 MiB of RAM at 0, and records of what left it
//! (power requests, interrupt messages, bytes for the host).
#![allow(dead_code, reason = "a shelf of instruments: each device's tests take what they need")]

use engine_base::{Clock, ClockMode, VmTime};
use engine_bus::{
    Backplane, CharHost, DeviceCell, DeviceModel, InterruptMessage, MessageSender, Options, PciAddress, Power, PowerRequest,
    ResetKind, SavedState, SharedFlag, Width, char_port,
};
use engine_memory::{Contents, GuestMemory, Layer};
use std::sync::{Arc, Mutex};

pub const RAM_BYTES: u64 = 2 << 20;

pub struct Bench {
    pub board: Backplane,
    pub clock: Clock,
    power: Arc<Mutex<Vec<PowerRequest>>>,
    messages: Arc<Mutex<Vec<InterruptMessage>>>,
}

/// What a character port's host end has received.
#[derive(Clone, Default)]
pub struct Received(Arc<Mutex<Vec<u8>>>);

impl Received {
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Bench {
    /// A board with nothing plugged in, at time zero.
    pub fn new() -> Self {
        Self::at(VmTime::ZERO)
    }

    /// The same at another time.
    pub fn at(start: VmTime) -> Self {
        let clock = Clock::new(ClockMode::Counted { picos_per_instruction: 1000 }, start);
        let memory = GuestMemory::new();
        let ram = memory.add_block("ram", RAM_BYTES).unwrap();
        memory.set_layer(Layer { name: "ram".into(), priority: 0, base: 0, len: RAM_BYTES, contents: Contents::Ram(ram, 0) });
        let power: Arc<Mutex<Vec<PowerRequest>>> = Arc::default();
        let messages: Arc<Mutex<Vec<InterruptMessage>>> = Arc::default();
        let (power_log, message_log) = (Arc::clone(&power), Arc::clone(&messages));
        let board = Backplane::new(
            memory,
            clock.clone(),
            Power::new(move |request| power_log.lock().unwrap().push(request)),
            MessageSender::new(move |message| message_log.lock().unwrap().push(message)),
        );
        Self { board, clock, power, messages }
    }

    /// A board with one device on it (PCI functions at 3.0), built without options.
    pub fn with(model: &DeviceModel) -> (Self, Arc<DeviceCell>) {
        let mut bench = Self::new();
        let cell = bench.plug(model, &[]);
        (bench, cell)
    }

    /// Plugs a device in; PCI functions come to 3.0.
    pub fn plug(&mut self, model: &DeviceModel, options: &[(&str, &str)]) -> Arc<DeviceCell> {
        let pci = (model.slot == engine_bus::Slot::Pci).then_some(PciAddress { device: 3, function: 0 });
        self.board.plug(model, model.id, pci, &Options::of(options)).unwrap()
    }

    /// Gives the board a character port; call before plugging in who uses it.
    pub fn char_port(&mut self, name: &str) -> (Received, CharHost) {
        let received = Received::default();
        let log = received.clone();
        let (port, host) = char_port(move |bytes| log.0.lock().unwrap().extend_from_slice(bytes));
        self.board.char_ports.insert(name.to_owned(), port);
        (received, host)
    }

    /// A flag of the board, to play the part at its other end.
    pub fn shared_flag(&self, name: &str) -> SharedFlag {
        self.board.shared_flag(name)
    }

    pub fn inb(&self, port: u16) -> u8 {
        self.board.router.port_read(port, Width::Byte) as u8
    }

    pub fn inw(&self, port: u16) -> u16 {
        self.board.router.port_read(port, Width::Word) as u16
    }

    pub fn inl(&self, port: u16) -> u32 {
        self.board.router.port_read(port, Width::Dword)
    }

    pub fn outb(&self, port: u16, value: u8) {
        self.board.router.port_write(port, Width::Byte, value.into());
    }

    pub fn outw(&self, port: u16, value: u16) {
        self.board.router.port_write(port, Width::Word, value.into());
    }

    pub fn outl(&self, port: u16, value: u32) {
        self.board.router.port_write(port, Width::Dword, value);
    }

    fn select_config(&self, offset: u8) -> u16 {
        self.outl(0xcf8, 0x8000_0000 | 3 << 11 | u32::from(offset & 0xfc));
        0xcfc + u16::from(offset & 3)
    }

    /// Reads a byte of the configuration space of the function at 3.0.
    pub fn config_byte(&self, offset: u8) -> u8 {
        let port = self.select_config(offset);
        self.inb(port)
    }

    pub fn config_dword(&self, offset: u8) -> u32 {
        let port = self.select_config(offset);
        self.inl(port)
    }

    pub fn set_config_byte(&self, offset: u8, value: u8) {
        let port = self.select_config(offset);
        self.outb(port, value);
    }

    pub fn set_config_dword(&self, offset: u8, value: u32) {
        let port = self.select_config(offset);
        self.outl(port, value);
    }

    /// Lets guest time pass, firing timers at their deadlines.
    pub fn advance(&self, nanos: u64) {
        let end = self.clock.now().after_nanos(nanos);
        while self.board.timers.next_deadline() <= end {
            self.clock.leap_to(self.board.timers.next_deadline());
            self.board.timers.fire_due();
        }
        self.clock.leap_to(end);
    }

    /// Lets guest time pass on a host too busy to fire timers; they fire with the next [`Bench::advance`].
    pub fn stall(&self, nanos: u64) {
        self.clock.leap_to(self.clock.now().after_nanos(nanos));
    }

    /// The level of a wire; false when nobody has named it.
    pub fn level(&self, wire: &str) -> bool {
        self.board.wires.levels().iter().any(|(name, high)| name == wire && *high)
    }

    /// Records the changes of a wire.
    pub fn watch(&self, wire: &str) -> Arc<Mutex<Vec<bool>>> {
        let log: Arc<Mutex<Vec<bool>>> = Arc::default();
        let heard = Arc::clone(&log);
        self.board.wires.listen(wire, move |high| heard.lock().unwrap().push(high));
        log
    }

    pub fn take_power_requests(&self) -> Vec<PowerRequest> {
        std::mem::take(&mut self.power.lock().unwrap())
    }

    pub fn take_messages(&self) -> Vec<InterruptMessage> {
        std::mem::take(&mut self.messages.lock().unwrap())
    }
}

/// Saves `cell`, restores it into a device of the same model on a fresh board at the same time, and checks that the
/// copy saves to the same state. Returns the copy with its board.
pub fn moved(bench: &Bench, cell: &Arc<DeviceCell>, model: &DeviceModel) -> (Bench, Arc<DeviceCell>) {
    let saved: SavedState = cell.lock().save();
    let mut other = Bench::at(bench.clock.now());
    let copy = other.plug(model, &[]);
    copy.lock().restore(&saved).unwrap();
    assert_eq!(copy.lock().save(), saved);
    (other, copy)
}

/// The RESET line.
pub fn reset(cell: &Arc<DeviceCell>) {
    cell.lock().reset(ResetKind::System);
}
