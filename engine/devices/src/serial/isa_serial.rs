//! 16550A UART on the ISA bus, at the four usual places (option `index`), with the character port `serialN` behind it.
//! What the guest sends leaves at once, and bytes from the host come in as fast as the guest takes them, so nothing is ever
//! overrun but in loopback; the line speed only sets the receive timeout. As on every PC, OUT2 gates the interrupt.
//! Left out: parity and framing errors and breaks from outside, which a byte stream cannot have.
//! See: National Semiconductor PC16550D (TL/C/8652), "Universal Asynchronous Receiver/Transmitter with FIFOs".

use crate::fifo::BoundedFifo;
use engine_base::{Clock, VmTime, rank};
use engine_bus::{
    BuildError, CharPort, Device, DeviceModel, IrqLine, Options, Port, PortIo, ResetKind, RestoreError, SavedState, Slot, Timed,
    Timer, Width, Wiring, Worker,
};

/// The model.
pub const MODEL: DeviceModel = DeviceModel {
    id: "isa-serial",
    title: "16550A serial port",
    slot: Slot::Isa,
    rank: rank::DEVICE,
    options: &[
        ("index", "0 to 3: COM1 to COM4, with their ports and interrupts"),
        ("iobase", "the first of its 8 ports, where it is not the usual one"),
        ("irq", "its interrupt, 3 to 15, where it is not the usual one"),
    ],
    build,
};

/// Ports and interrupts of COM1 to COM4.
const PLACES: [(u16, u8); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];
const BAUD_CLOCK: u64 = 115_200;
const FIFO_BYTES: usize = 16;

mod ier {
    pub const RECEIVED: u8 = 1 << 0;
    pub const TRANSMITTER_EMPTY: u8 = 1 << 1;
    pub const LINE_STATUS: u8 = 1 << 2;
    pub const MODEM_STATUS: u8 = 1 << 3;
}
mod lcr {
    pub const DIVISOR_LATCH: u8 = 1 << 7;
}
mod mcr {
    pub const DTR: u8 = 1 << 0;
    pub const RTS: u8 = 1 << 1;
    pub const OUT1: u8 = 1 << 2;
    pub const OUT2: u8 = 1 << 3;
    pub const LOOPBACK: u8 = 1 << 4;
    pub const WRITABLE: u8 = 0x1f;
}
mod lsr {
    pub const DATA_READY: u8 = 1 << 0;
    pub const OVERRUN: u8 = 1 << 1;
    pub const TRANSMITTER_EMPTY: u8 = 3 << 5; // holding and shift register
    pub const ERRORS: u8 = 0x1e;
}
mod msr {
    pub const CTS: u8 = 1 << 4;
    pub const DSR: u8 = 1 << 5;
    pub const RING: u8 = 1 << 6;
    pub const CARRIER: u8 = 1 << 7;
    /// RI counts when it falls only.
    pub const DELTA_RING: u8 = 1 << 2;
}

struct IsaSerial {
    // Wires
    irq: IrqLine,
    host: Option<CharPort>,
    clock: Clock,
    timeout: Timer,
    base: u16,
    // State the guest can see; all of it is saved
    divisor: u16,
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    fifo_enabled: bool,
    /// Bytes in the FIFO at which it interrupts.
    trigger: u8,
    received: BoundedFifo<FIFO_BYTES>,
    overrun: bool,
    /// The transmitter has become empty since the guest last asked why it was interrupted.
    transmitter_interrupt: bool,
    /// Bytes have waited in the FIFO for four characters' time.
    timed_out: bool,
    timeout_at: VmTime,
    /// Modem lines and their deltas, as last looked at.
    modem_status: u8,
}

/// Why it interrupts, as in the interrupt identification register, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    LineStatus = 0x06,
    Received = 0x04,
    ReceiveTimeout = 0x0c,
    TransmitterEmpty = 0x02,
    ModemStatus = 0x00,
}

fn build(options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    let index = options.number(MODEL.id, "index", 0, 3)?;
    let (base, irq) = PLACES[index as usize];
    let base = options.number(MODEL.id, "iobase", base.into(), 0xfff8)? as u16;
    let irq = options.number(MODEL.id, "irq", irq.into(), 15)? as u8;
    wiring.claim_ports(base, 8, Width::Byte);
    let mut serial = IsaSerial {
        irq: wiring.isa_irq(irq),
        host: wiring.char_port(&format!("serial{index}")),
        clock: wiring.clock(),
        timeout: wiring.timer(0),
        base,
        divisor: 0,
        interrupt_enable: 0,
        line_control: 0,
        modem_control: 0,
        scratch: 0,
        fifo_enabled: false,
        trigger: 1,
        received: BoundedFifo::new(),
        overrun: false,
        transmitter_interrupt: false,
        timed_out: false,
        timeout_at: VmTime::NEVER,
        modem_status: 0,
    };
    serial.modem_status = serial.modem_lines();
    Ok(Box::new(serial))
}

impl IsaSerial {
    fn is_looped_back(&self) -> bool {
        self.modem_control & mcr::LOOPBACK != 0
    }

    fn modem_lines(&self) -> u8 {
        let pairs = if self.is_looped_back() {
            let control = self.modem_control;
            [
                (control & mcr::RTS != 0, msr::CTS),
                (control & mcr::DTR != 0, msr::DSR),
                (control & mcr::OUT1 != 0, msr::RING),
                (control & mcr::OUT2 != 0, msr::CARRIER),
            ]
        } else {
            let connected = self.host.as_ref().is_some_and(CharPort::is_connected);
            [(connected, msr::CTS), (connected, msr::DSR), (false, msr::RING), (connected, msr::CARRIER)]
        };
        pairs.iter().filter(|(on, _)| *on).fold(0, |lines, (_, line)| lines | line)
    }

    /// Looks at the modem lines and notes what changed.
    fn poll_modem(&mut self) {
        let lines = self.modem_lines();
        let before = self.modem_status;
        let mut deltas = (lines ^ before) >> 4;
        if lines & msr::RING != 0 {
            deltas &= !msr::DELTA_RING;
        }
        self.modem_status = lines | before & 0x0f | deltas;
    }

    fn line_status(&self) -> u8 {
        let ready = if self.received.is_empty() { 0 } else { lsr::DATA_READY };
        let overrun = if self.overrun { lsr::OVERRUN } else { 0 };
        lsr::TRANSMITTER_EMPTY | ready | overrun
    }

    fn cause(&self) -> Option<Cause> {
        let enabled = |bit| self.interrupt_enable & bit != 0;
        let waiting = self.received.len();
        if enabled(ier::LINE_STATUS) && self.line_status() & lsr::ERRORS != 0 {
            Some(Cause::LineStatus)
        } else if enabled(ier::RECEIVED) && waiting > 0 && (!self.fifo_enabled || waiting >= usize::from(self.trigger)) {
            Some(Cause::Received)
        } else if enabled(ier::RECEIVED) && waiting > 0 && self.timed_out {
            Some(Cause::ReceiveTimeout)
        } else if enabled(ier::TRANSMITTER_EMPTY) && self.transmitter_interrupt {
            Some(Cause::TransmitterEmpty)
        } else if enabled(ier::MODEM_STATUS) && self.modem_status & 0x0f != 0 {
            Some(Cause::ModemStatus)
        } else {
            None
        }
    }

    fn update(&mut self) {
        let gate = self.modem_control & (mcr::OUT2 | mcr::LOOPBACK) == mcr::OUT2;
        self.irq.set(gate && self.cause().is_some());
    }

    /// The time in which four characters pass.
    fn timeout_nanos(&self) -> u64 {
        let bits =
            7 + u64::from(self.line_control & 3) + u64::from(self.line_control >> 2 & 1) + u64::from(self.line_control >> 3 & 1);
        4 * bits * 1_000_000_000 * u64::from(self.divisor.max(1)) / BAUD_CLOCK
    }

    /// Something happened to the receive FIFO: the timeout starts over.
    fn restart_timeout(&mut self) {
        self.timed_out = false;
        let waits = self.fifo_enabled && !self.received.is_empty();
        self.timeout_at = if waits { self.clock.now().after_nanos(self.timeout_nanos()) } else { VmTime::NEVER };
        self.timeout.set(self.timeout_at);
    }

    fn capacity(&self) -> usize {
        if self.fifo_enabled { FIFO_BYTES } else { 1 }
    }

    /// Takes what the host has for us, as far as there is room.
    fn receive(&mut self) {
        let Some(host) = self.host.as_ref().filter(|_| !self.is_looped_back()) else { return };
        let mut came = false;
        while self.received.len() < self.capacity()
            && let Some(byte) = host.read()
        {
            came |= self.received.push(byte).is_ok();
        }
        if came {
            self.restart_timeout();
        }
    }

    fn transmit(&mut self, byte: u8) {
        if self.is_looped_back() {
            if self.received.len() < self.capacity() {
                self.received.push(byte).ok(); // There is room: just checked.
            } else {
                self.overrun = true;
            }
            self.restart_timeout();
        } else if let Some(host) = &self.host {
            host.write(&[byte]);
        }
        self.transmitter_interrupt = true;
    }

    fn read_data(&mut self) -> u8 {
        let byte = self.received.pop().unwrap_or(0);
        self.receive();
        self.restart_timeout();
        byte
    }

    fn identify_interrupt(&mut self) -> u8 {
        let cause = self.cause();
        if cause == Some(Cause::TransmitterEmpty) {
            self.transmitter_interrupt = false;
        }
        let fifo = if self.fifo_enabled { 0xc0 } else { 0 };
        fifo | cause.map_or(1, |cause| cause as u8)
    }

    fn set_fifo_control(&mut self, value: u8) {
        let enabled = value & 1 != 0;
        if enabled != self.fifo_enabled || value & 2 != 0 {
            self.received.clear();
        }
        self.fifo_enabled = enabled;
        self.trigger = if enabled { [1, 4, 8, 14][usize::from(value >> 6)] } else { 1 };
        self.receive();
        self.restart_timeout();
    }

    fn set_interrupt_enable(&mut self, value: u8) {
        // Enabling the transmitter's interrupt while it is empty interrupts at once.
        if value & !self.interrupt_enable & ier::TRANSMITTER_EMPTY != 0 {
            self.transmitter_interrupt = true;
        }
        self.interrupt_enable = value & 0x0f;
    }
}

impl Device for IsaSerial {
    fn reset(&mut self, _kind: ResetKind) {
        let Self {
            irq,
            host: _,
            clock: _,
            timeout,
            base: _,
            divisor,
            interrupt_enable,
            line_control,
            modem_control,
            scratch,
            fifo_enabled,
            trigger,
            received,
            overrun,
            transmitter_interrupt,
            timed_out,
            timeout_at,
            modem_status: _,
        } = self;
        *divisor = 0;
        *interrupt_enable = 0;
        *line_control = 0;
        *modem_control = 0;
        *scratch = 0;
        *fifo_enabled = false;
        *trigger = 1;
        received.clear();
        *overrun = false;
        *transmitter_interrupt = false;
        *timed_out = false;
        *timeout_at = VmTime::NEVER;
        timeout.cancel();
        irq.lower();
        self.modem_status = self.modem_lines();
    }

    fn save(&self) -> SavedState {
        let Self {
            irq: _,
            host: _,
            clock: _,
            timeout: _,
            base: _,
            divisor,
            interrupt_enable,
            line_control,
            modem_control,
            scratch,
            fifo_enabled,
            trigger,
            received,
            overrun,
            transmitter_interrupt,
            timed_out,
            timeout_at,
            modem_status,
        } = self;
        SavedState::of(
            saved::VERSION,
            &saved::IsaSerial {
                divisor: *divisor,
                interrupt_enable: *interrupt_enable,
                line_control: *line_control,
                modem_control: *modem_control,
                scratch: *scratch,
                fifo_enabled: *fifo_enabled,
                trigger: *trigger,
                received: received.to_vec(),
                overrun: *overrun,
                transmitter_interrupt: *transmitter_interrupt,
                timed_out: *timed_out,
                timeout_at: *timeout_at,
                modem_status: *modem_status,
            },
        )
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        let saved: saved::IsaSerial = saved.read(saved::VERSION)?;
        let received = BoundedFifo::of_saved(&saved.received)?;
        if ![1, 4, 8, 14].contains(&saved.trigger) || received.len() > 1 && !saved.fifo_enabled {
            return Err(RestoreError::impossible("16550A: the FIFO cannot be in this state"));
        }
        self.divisor = saved.divisor;
        self.interrupt_enable = saved.interrupt_enable & 0x0f;
        self.line_control = saved.line_control;
        self.modem_control = saved.modem_control & mcr::WRITABLE;
        self.scratch = saved.scratch;
        self.fifo_enabled = saved.fifo_enabled;
        self.trigger = saved.trigger;
        self.received = received;
        self.overrun = saved.overrun;
        self.transmitter_interrupt = saved.transmitter_interrupt;
        self.timed_out = saved.timed_out;
        self.timeout_at = saved.timeout_at;
        self.modem_status = saved.modem_status;
        self.timeout.set(self.timeout_at);
        self.update();
        Ok(())
    }

    fn as_port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn as_timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }

    fn as_worker(&mut self) -> Option<&mut dyn Worker> {
        Some(self)
    }
}

impl PortIo for IsaSerial {
    fn port_read(&mut self, port: Port, _width: Width) -> u32 {
        let Port::Fixed(port) = port else { return 0xff };
        let divisor = self.line_control & lcr::DIVISOR_LATCH != 0;
        let value = match port.wrapping_sub(self.base) {
            0 if divisor => self.divisor as u8,
            0 => self.read_data(),
            1 if divisor => (self.divisor >> 8) as u8,
            1 => self.interrupt_enable,
            2 => self.identify_interrupt(),
            3 => self.line_control,
            4 => self.modem_control,
            5 => {
                let status = self.line_status();
                self.overrun = false;
                status
            }
            6 => {
                self.poll_modem();
                let status = self.modem_status;
                self.modem_status &= 0xf0;
                status
            }
            _ => self.scratch,
        };
        self.update();
        value.into()
    }

    fn port_write(&mut self, port: Port, _width: Width, value: u32) {
        let Port::Fixed(port) = port else { return };
        let value = value as u8;
        let divisor = self.line_control & lcr::DIVISOR_LATCH != 0;
        match port.wrapping_sub(self.base) {
            0 if divisor => self.divisor = self.divisor & 0xff00 | u16::from(value),
            0 => self.transmit(value),
            1 if divisor => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            1 => self.set_interrupt_enable(value),
            2 => self.set_fifo_control(value),
            3 => self.line_control = value,
            4 => {
                self.modem_control = value & mcr::WRITABLE;
                self.poll_modem();
                self.receive();
            }
            7 => self.scratch = value,
            _ => {} // The status registers are read-only; the factory test writes to them do nothing.
        }
        self.update();
    }
}

impl Timed for IsaSerial {
    fn timer_fired(&mut self, _timer: u32, now: VmTime) {
        if self.timeout_at <= now {
            self.timeout_at = VmTime::NEVER;
            self.timed_out = !self.received.is_empty();
            self.update();
        }
    }
}

impl Worker for IsaSerial {
    fn work_ready(&mut self) {
        self.poll_modem();
        self.receive();
        self.update();
    }
}

mod saved {
    use engine_base::VmTime;
    use serde::{Deserialize, Serialize};

    pub const VERSION: u32 = 1;

    #[derive(Serialize, Deserialize)]
    pub struct IsaSerial {
        pub divisor: u16,
        pub interrupt_enable: u8,
        pub line_control: u8,
        pub modem_control: u8,
        pub scratch: u8,
        pub fifo_enabled: bool,
        pub trigger: u8,
        pub received: Vec<u8>,
        pub overrun: bool,
        pub transmitter_interrupt: bool,
        pub timed_out: bool,
        pub timeout_at: VmTime,
        pub modem_status: u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Bench, Received, moved};
    use engine_bus::{CharHost, DeviceCell};
    use std::sync::Arc;

    const BASE: u16 = 0x3f8;

    /// COM1 as a driver sets it up: 115200 8N1, FIFO with trigger 14, DTR, RTS and OUT2 on.
    fn com1() -> (Bench, Arc<DeviceCell>, Received, CharHost) {
        let mut bench = Bench::new();
        let (received, host) = bench.char_port("serial0");
        let cell = bench.plug(&MODEL, &[]);
        for (register, value) in [(3, 0x83), (0, 1), (1, 0), (3, 0x03), (2, 0xc7), (4, 0x0b)] {
            bench.outb(BASE + register, value);
        }
        (bench, cell, received, host)
    }

    #[test]
    fn what_the_guest_sends_reaches_the_host() {
        let (bench, _cell, received, _host) = com1();
        b"hello".iter().for_each(|byte| bench.outb(BASE, *byte));
        assert_eq!(received.take(), b"hello");
        assert_eq!(bench.inb(BASE + 5), 0x60);
    }

    #[test]
    fn sending_interrupts_when_the_transmitter_is_empty() {
        let (bench, _cell, _received, _host) = com1();
        bench.outb(BASE + 1, ier::TRANSMITTER_EMPTY);
        assert!(bench.level("isa-irq4"));
        assert_eq!(bench.inb(BASE + 2), 0xc2);
        assert!(!bench.level("isa-irq4"), "asking why takes the interrupt back");
        assert_eq!(bench.inb(BASE + 2), 0xc1);
        bench.outb(BASE, b'x');
        assert!(bench.level("isa-irq4"));
    }

    #[test]
    fn received_bytes_interrupt_at_the_trigger_or_after_four_characters_time() {
        let (bench, _cell, _received, host) = com1();
        bench.outb(BASE + 1, ier::RECEIVED);
        host.feed(b"abc");
        assert!(!bench.level("isa-irq4"));
        bench.advance(400_000);
        assert_eq!(bench.inb(BASE + 2), 0xcc);
        assert_eq!(bench.inb(BASE), b'a');
        assert!(!bench.level("isa-irq4"), "reading starts the timeout over");
        host.feed(b"0123456789abcdef!");
        assert_eq!(bench.inb(BASE + 2), 0xc4);
        let mut got = Vec::new();
        while bench.inb(BASE + 5) & lsr::DATA_READY != 0 {
            got.push(bench.inb(BASE));
        }
        assert_eq!(got, b"bc0123456789abcdef!", "more than the FIFO holds, and nothing lost");
    }

    #[test]
    fn loopback_returns_bytes_and_modem_lines() {
        let (bench, _cell, received, _host) = com1();
        bench.outb(BASE + 4, 0x1a); // loopback, RTS, OUT2
        assert_eq!(bench.inb(BASE + 6) & 0xf0, msr::CTS | msr::CARRIER);
        bench.outb(BASE, 0x5a);
        assert_eq!(bench.inb(BASE), 0x5a);
        assert_eq!(received.take(), b"");
        (0..17).for_each(|byte| bench.outb(BASE, byte));
        assert_eq!(bench.inb(BASE + 5) & lsr::OVERRUN, lsr::OVERRUN);
        assert_eq!(bench.inb(BASE + 5) & lsr::OVERRUN, 0);
    }

    #[test]
    fn the_carrier_follows_the_other_end() {
        let (bench, cell, _received, host) = com1();
        bench.inb(BASE + 6);
        bench.outb(BASE + 1, ier::MODEM_STATUS);
        host.set_connected(false);
        cell.ring();
        assert!(bench.level("isa-irq4"));
        assert_eq!(bench.inb(BASE + 2), 0xc0);
        assert_eq!(bench.inb(BASE + 6), 0x0b);
        assert!(!bench.level("isa-irq4"));
    }

    #[test]
    fn without_out2_there_is_no_interrupt() {
        let (bench, _cell, _received, _host) = com1();
        bench.outb(BASE + 4, 0x03);
        bench.outb(BASE + 1, ier::TRANSMITTER_EMPTY);
        assert!(!bench.level("isa-irq4"));
    }

    #[test]
    fn com2_is_at_its_own_ports_and_interrupt() {
        let mut bench = Bench::new();
        let (received, _host) = bench.char_port("serial1");
        bench.plug(&MODEL, &[("index", "1")]);
        bench.outb(0x2f8, b'!');
        bench.outb(0x2fc, 0x08);
        bench.outb(0x2f9, ier::TRANSMITTER_EMPTY);
        assert_eq!(received.take(), b"!");
        assert!(bench.level("isa-irq3"));
    }

    #[test]
    fn waiting_bytes_survive_being_saved() {
        let (bench, cell, _received, host) = com1();
        bench.outb(BASE + 1, ier::RECEIVED);
        host.feed(b"ab");
        let (copy, _) = moved(&bench, &cell, &MODEL);
        copy.advance(400_000);
        assert!(copy.level("isa-irq4"));
        assert_eq!([copy.inb(BASE), copy.inb(BASE)], *b"ab");
    }
}
