//! UHCI host controller of the PIIX3: a frame a millisecond, each a walk through the frame list's queues and transfer
//! descriptors in guest memory, and two root ports.
//!
//! The walk of a frame has a budget in descriptors and in bytes, and a queue met twice without progress ends it, so that
//! circular schedules (which Linux builds on purpose) cost no more than a real frame holds. Each descriptor is copied once.
//! While nothing but "no news" happens, frames are walked eight at a time, so that an idle guest wakes the host rarely;
//! the frame number follows the clock all the same.
//! Left out: isochronous timing, low-speed devices, remote wake-up, debug stepping.
//! See: Intel 297650-001, "Universal Host Controller Interface (UHCI) Design Guide", revision 1.1.

use super::device::{Answer, Function, SavedUsbDevice, UsbDevice};
use super::keyboard::Keyboard;
use super::tablet::Tablet;
use bitflags::bitflags;
use engine_base::{Clock, VmTime, rank, warn_limited};
use engine_bus::{
    BarKind, BuildError, Device, DeviceModel, Dma, DmaFault, InputSink, IrqLine, LedPanel, Options, PciConfig, PciFunction, Port,
    PortIo, ResetKind, RestoreError, SavedState, Slot, Timed, Timer, Width, Wiring,
};
use engine_input::InputEvent;

/// The model.
pub const MODEL: DeviceModel = DeviceModel {
    id: "piix3-usb-uhci",
    title: "PIIX3 USB controller",
    slot: Slot::Pci,
    rank: rank::DEVICE,
    options: &[
        ("port1", "what is plugged in: usb-tablet (the default), usb-kbd or none"),
        ("port2", "what is plugged in: usb-tablet, usb-kbd or none (the default)"),
    ],
    build,
};

const BAR: u8 = 4;
const FRAME_NANOS: u64 = 1_000_000;
/// Frame numbers have eleven bits; ten of them choose an entry of the frame list.
const FRAME_MASK: u16 = 0x7ff;
/// The most frames walked in one go; what is later than that is skipped.
const MOST_FRAMES: u32 = 16;
/// After so many frames without a transfer, frames are walked in bundles.
const IDLE_AFTER: u8 = 64;
const IDLE_BUNDLE: u64 = 8;
/// What a frame can hold: links followed, and bytes on the cable.
const MOST_LINKS: u32 = 512;
const MOST_FRAME_BYTES: usize = 1500;
/// What a transaction costs besides its data: token, checksum, handshake, gaps.
const TRANSACTION_BYTES: usize = 13;
/// Queues remembered to recognise a circle.
const MOST_QUEUES: usize = 128;

// Registers
const COMMAND: u16 = 0x00;
const STATUS: u16 = 0x02;
const INTERRUPT_ENABLE: u16 = 0x04;
const FRAME_NUMBER: u16 = 0x06;
const FRAME_BASE: u16 = 0x08;
const SOF_MODIFY: u16 = 0x0c;
const PORT_1: u16 = 0x10;
const PORT_2: u16 = 0x12;

bitflags! {
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Command: u16 {
        const RUN = 1 << 0;
        const CONTROLLER_RESET = 1 << 1;
        const GLOBAL_RESET = 1 << 2;
        const SUSPEND = 1 << 3;
        const FORCE_RESUME = 1 << 4;
        const DEBUG = 1 << 5;
        const CONFIGURE_FLAG = 1 << 6;
        const MAX_PACKET_64 = 1 << 7;
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Status: u16 {
        const INTERRUPT = 1 << 0;
        const ERROR_INTERRUPT = 1 << 1;
        const RESUME_DETECT = 1 << 2;
        const HOST_SYSTEM_ERROR = 1 << 3;
        const PROCESS_ERROR = 1 << 4;
        const HALTED = 1 << 5;
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Interrupts: u16 {
        const TIMEOUT_CRC = 1 << 0;
        const RESUME = 1 << 1;
        const COMPLETE = 1 << 2;
        const SHORT_PACKET = 1 << 3;
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct PortStatus: u16 {
        const CONNECTED = 1 << 0;
        const CONNECT_CHANGED = 1 << 1;
        const ENABLED = 1 << 2;
        const ENABLE_CHANGED = 1 << 3;
        const RESUME = 1 << 6;
        const ALWAYS_ONE = 1 << 7;
        const RESET = 1 << 9;
        const SUSPENDED = 1 << 12;
    }

    /// Bits of a transfer descriptor's second word, besides its two numbers.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct TdStatus: u32 {
        const TIMEOUT = 1 << 18;
        const NAK = 1 << 19;
        const BABBLE = 1 << 20;
        const BUFFER_ERROR = 1 << 21;
        const STALLED = 1 << 22;
        const ACTIVE = 1 << 23;
        const INTERRUPT_ON_COMPLETE = 1 << 24;
        const SHORT_PACKET_DETECT = 1 << 29;
    }
}

const PORT_WRITABLE: PortStatus =
    PortStatus::ENABLED.union(PortStatus::RESUME).union(PortStatus::RESET).union(PortStatus::SUSPENDED);
const PORT_CLEARED_BY_ONES: PortStatus = PortStatus::CONNECT_CHANGED.union(PortStatus::ENABLE_CHANGED);

/// A link in the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link(u32);

impl Link {
    fn is_end(self) -> bool {
        self.0 & 1 != 0
    }

    fn is_queue(self) -> bool {
        self.0 & 2 != 0
    }

    fn is_depth_first(self) -> bool {
        self.0 & 4 != 0
    }

    fn address(self) -> u64 {
        u64::from(self.0 & !15)
    }
}

/// A transfer descriptor, copied once.
#[derive(Debug, Clone, Copy)]
struct TransferDescriptor {
    link: Link,
    status: u32,
    token: u32,
    buffer: u32,
}

impl TransferDescriptor {
    fn of(bytes: [u8; 16]) -> Self {
        let dword = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { link: Link(dword(0)), status: dword(4), token: dword(8), buffer: dword(12) }
    }

    fn has(&self, bits: TdStatus) -> bool {
        self.status & bits.bits() != 0
    }

    fn device(&self) -> u8 {
        (self.token >> 8 & 0x7f) as u8
    }

    fn endpoint(&self) -> u8 {
        (self.token >> 15 & 15) as u8
    }

    /// Bytes to move; the field is one less, and all ones are none.
    fn max_len(&self) -> usize {
        ((self.token >> 21) as usize + 1) & 0x7ff
    }
}

const PID_SETUP: u8 = 0x2d;
const PID_IN: u8 = 0x69;
const PID_OUT: u8 = 0xe1;

/// How a transfer descriptor ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Done: its queue goes on to the next one.
    Done,
    /// Done with fewer bytes than there was room for, which the queue waits over.
    Short,
    /// Still to be done, or failed: the queue stays.
    Stays,
}

struct Uhci {
    // Wires
    irq: IrqLine,
    dma: Dma,
    clock: Clock,
    timer: Timer,
    // State the guest can see; all of it is saved
    config: PciConfig,
    command: Command,
    status: Status,
    interrupts: Interrupts,
    /// What the status bit INTERRUPT came from.
    causes: Interrupts,
    frame_base: u32,
    sof_modify: u8,
    /// The next frame to walk, and when it begins.
    frame: u16,
    frame_time: VmTime,
    idle_frames: u8,
    ports: [PortStatus; 2],
    devices: [Option<UsbDevice>; 2],
}

fn build(options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    let mut config = PciConfig::new(0x8086, 0x7020, (0x0c, 0x03, 0x00), 1).with_bar(BAR, BarKind::Io, 32).with_interrupt_pin(4);
    config.set_byte(0x06, 0x80);
    config.set_byte(0x07, 0x02);
    config.set_byte(0x60, 0x10); // USB 1.0
    config.allow(0xc0, &[0xff, 0xaf]); // Legacy support, which is kept and does nothing
    let leds = wiring.leds();
    let devices = [plugged(options, &leds, "port1", "usb-tablet")?, plugged(options, &leds, "port2", "none")?];
    let mut uhci = Uhci {
        irq: wiring.pci_irq(4),
        dma: wiring.pci_dma(),
        clock: wiring.clock(),
        timer: wiring.timer(0),
        config,
        command: Command::empty(),
        status: Status::HALTED,
        interrupts: Interrupts::empty(),
        causes: Interrupts::empty(),
        frame_base: 0,
        sof_modify: 64,
        frame: 0,
        frame_time: VmTime::ZERO,
        idle_frames: 0,
        ports: [PortStatus::ALWAYS_ONE; 2],
        devices,
    };
    uhci.reset(ResetKind::PowerOn);
    Ok(Box::new(uhci))
}

fn plugged(options: &Options, leds: &LedPanel, port: &'static str, default: &str) -> Result<Option<UsbDevice>, BuildError> {
    let function: Box<dyn Function> = match options.text(port).unwrap_or(default) {
        "none" => return Ok(None),
        "usb-tablet" => Box::new(Tablet::default()),
        "usb-kbd" => Box::new(Keyboard::new(leds.clone())),
        other => {
            let value = other.to_owned();
            let expected = "usb-tablet, usb-kbd or none";
            return Err(BuildError::Option { device: MODEL.id, option: port, value, expected });
        }
    };
    Ok(Some(UsbDevice::new(function)))
}

impl Uhci {
    fn is_running(&self) -> bool {
        self.command.contains(Command::RUN)
    }

    fn reset_controller(&mut self) {
        self.command = Command::empty();
        self.status = Status::HALTED;
        (self.interrupts, self.causes) = (Interrupts::empty(), Interrupts::empty());
        (self.frame_base, self.sof_modify) = (0, 64);
        (self.frame, self.frame_time, self.idle_frames) = (0, VmTime::ZERO, 0);
        self.timer.cancel();
        for (port, device) in self.ports.iter_mut().zip(&mut self.devices) {
            *port = PortStatus::ALWAYS_ONE;
            if let Some(device) = device {
                device.reset();
                *port |= PortStatus::CONNECTED | PortStatus::CONNECT_CHANGED;
            }
        }
        self.show_interrupt();
    }

    fn show_interrupt(&self) {
        let enabled = |bits: Interrupts| self.interrupts.intersects(bits);
        let is_complete = self.status.contains(Status::INTERRUPT) && self.interrupts.intersects(self.causes);
        let has_failed = self.status.contains(Status::ERROR_INTERRUPT) && enabled(Interrupts::TIMEOUT_CRC);
        let resumes = self.status.contains(Status::RESUME_DETECT) && enabled(Interrupts::RESUME);
        let is_broken = self.status.intersects(Status::HOST_SYSTEM_ERROR | Status::PROCESS_ERROR);
        self.irq.set(is_complete || has_failed || resumes || is_broken);
    }

    // Frames

    fn start(&mut self) {
        self.frame_time = self.clock.now().after_nanos(FRAME_NANOS);
        self.idle_frames = 0;
        self.timer.set(self.frame_time);
    }

    fn stop(&mut self) {
        self.frame = self.frame_number();
        self.timer.cancel();
    }

    /// The frame number as the guest reads it: frames that are not walked yet are counted, too.
    fn frame_number(&self) -> u16 {
        let late = if self.is_running() { self.clock.now().nanos_since(self.frame_time) / FRAME_NANOS } else { 0 };
        self.frame.wrapping_add(late as u16) & FRAME_MASK
    }

    /// Something may be there to do: walk every frame again.
    fn wake(&mut self) {
        self.idle_frames = 0;
        if self.is_running() {
            self.timer.set(self.frame_time);
        }
    }

    fn walk_due_frames(&mut self, now: VmTime) {
        let mut walked = 0;
        while self.is_running() && self.frame_time <= now {
            if walked == MOST_FRAMES {
                // The host was late: these frames are lost.
                let lost = now.nanos_since(self.frame_time) / FRAME_NANOS + 1;
                self.frame = self.frame.wrapping_add(lost as u16) & FRAME_MASK;
                self.frame_time = self.frame_time.after_nanos(lost * FRAME_NANOS);
                break;
            }
            walked += 1;
            match self.walk_frame() {
                Ok(moved) => self.idle_frames = if moved { 0 } else { self.idle_frames.saturating_add(1) },
                Err(fault) => {
                    warn_limited!(target: "uhci", %fault, "the schedule is not in RAM; the controller stops");
                    self.stop();
                    self.status |= Status::HOST_SYSTEM_ERROR | Status::HALTED;
                    self.command.remove(Command::RUN);
                    break;
                }
            }
            self.frame = self.frame.wrapping_add(1) & FRAME_MASK;
            self.frame_time = self.frame_time.after_nanos(FRAME_NANOS);
        }
        self.show_interrupt();
        if self.is_running() {
            let bundle = if self.idle_frames >= IDLE_AFTER { (IDLE_BUNDLE - 1) * FRAME_NANOS } else { 0 };
            self.timer.set(self.frame_time.after_nanos(bundle));
        }
    }

    /// Walks one frame's schedule; returns whether a transfer was done.
    fn walk_frame(&mut self) -> Result<bool, DmaFault> {
        let entry = u64::from(self.frame_base) + u64::from(self.frame & 0x3ff) * 4;
        let mut link = Link(u32::from_le_bytes(self.dma.read_array(entry)?));
        let mut queues: Vec<u32> = Vec::new();
        let mut bytes = 0;
        let mut moved = false;
        let mut moved_since_circle = false;
        for _ in 0..MOST_LINKS {
            if link.is_end() || bytes >= MOST_FRAME_BYTES {
                break;
            }
            if !link.is_queue() {
                // A descriptor on its own, usually isochronous.
                let (descriptor, outcome) = self.transfer(link, &mut bytes)?;
                moved |= outcome == Outcome::Done;
                link = descriptor.link;
                continue;
            }
            if queues.contains(&link.0) {
                // All around once: again only for the bandwidth's sake, while there is something to move.
                if !std::mem::take(&mut moved_since_circle) {
                    break;
                }
                queues.clear();
            }
            if queues.len() < MOST_QUEUES {
                queues.push(link.0);
            }
            let next = self.walk_queue(link, &mut bytes, &mut moved_since_circle)?;
            moved |= moved_since_circle;
            link = next;
        }
        Ok(moved)
    }

    /// Does what is next in a queue; returns the link to the queue beside it.
    fn walk_queue(&mut self, queue: Link, bytes: &mut usize, moved: &mut bool) -> Result<Link, DmaFault> {
        let at = queue.address();
        let head: [u8; 8] = self.dma.read_array(at)?;
        let beside = Link(u32::from_le_bytes([head[0], head[1], head[2], head[3]]));
        let mut element = Link(u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
        // Each turn but the last costs bytes of the frame.
        loop {
            // A queue within a queue is followed as the next one beside.
            if element.is_queue() && !element.is_end() {
                return Ok(element);
            }
            if element.is_end() || *bytes >= MOST_FRAME_BYTES {
                break;
            }
            let (descriptor, outcome) = self.transfer(element, bytes)?;
            if outcome != Outcome::Done {
                *moved |= outcome == Outcome::Short;
                break;
            }
            *moved = true;
            element = descriptor.link;
            self.dma.write(at + 4, &element.0.to_le_bytes())?;
            if !element.is_depth_first() {
                break;
            }
        }
        Ok(beside)
    }

    /// Does one transfer descriptor.
    fn transfer(&mut self, at: Link, bytes: &mut usize) -> Result<(TransferDescriptor, Outcome), DmaFault> {
        let descriptor = TransferDescriptor::of(self.dma.read_array(at.address())?);
        if !descriptor.has(TdStatus::ACTIVE) {
            return Ok((descriptor, Outcome::Stays));
        }
        *bytes += TRANSACTION_BYTES;
        let (status, outcome) = self.transact(&descriptor, bytes)?;
        if status != descriptor.status {
            self.dma.write(at.address() + 4, &status.to_le_bytes())?;
        }
        let is_over = status & TdStatus::ACTIVE.bits() == 0;
        if is_over && descriptor.has(TdStatus::INTERRUPT_ON_COMPLETE) {
            self.status |= Status::INTERRUPT;
            self.causes |= Interrupts::COMPLETE;
        }
        Ok((descriptor, outcome))
    }

    /// The transaction itself; returns the descriptor's new status word.
    fn transact(&mut self, descriptor: &TransferDescriptor, bytes: &mut usize) -> Result<(u32, Outcome), DmaFault> {
        let now = self.clock.now();
        let len = descriptor.max_len();
        let (address, endpoint) = (descriptor.device(), descriptor.endpoint());
        let pid = descriptor.token as u8;
        if !matches!(pid, PID_SETUP | PID_IN | PID_OUT) || pid == PID_SETUP && len != 8 {
            warn_limited!(target: "uhci", pid, len, "a transfer descriptor that makes no sense; the controller stops");
            self.status |= Status::PROCESS_ERROR | Status::HALTED;
            self.stop();
            self.command.remove(Command::RUN);
            return Ok((descriptor.status, Outcome::Stays));
        }
        let mut data = vec![0; len];
        if pid != PID_IN {
            self.dma.read(descriptor.buffer.into(), &mut data)?;
        }
        let device = self.ports.iter().zip(&mut self.devices).find_map(|(port, device)| {
            let is_heard = port.contains(PortStatus::ENABLED) && !port.contains(PortStatus::SUSPENDED);
            device.as_mut().filter(|device| is_heard && device.address() == address)
        });
        let Some(device) = device else { return Ok(self.failed(descriptor, TdStatus::TIMEOUT)) };
        let answer = match pid {
            PID_SETUP => device.setup(endpoint, data.as_slice().try_into().unwrap_or_default()),
            PID_IN => device.data_in(endpoint, len, now),
            _ => device.data_out(endpoint, &data),
        };
        let done = |actual: usize| {
            let kept = descriptor.status & !(0x7ff | 0xff << 16);
            kept | (actual as u32).wrapping_sub(1) & 0x7ff
        };
        match answer {
            Answer::Ack => {
                *bytes += len;
                Ok((done(len), Outcome::Done))
            }
            Answer::Data(answer) if answer.len() > len => Ok(self.failed(descriptor, TdStatus::BABBLE)),
            Answer::Data(answer) => {
                self.dma.write(descriptor.buffer.into(), &answer)?;
                *bytes += answer.len();
                let is_short = answer.len() < len && descriptor.has(TdStatus::SHORT_PACKET_DETECT);
                if is_short {
                    self.status |= Status::INTERRUPT;
                    self.causes |= Interrupts::SHORT_PACKET;
                }
                Ok((done(answer.len()), if is_short { Outcome::Short } else { Outcome::Done }))
            }
            Answer::Nak => Ok((descriptor.status | TdStatus::NAK.bits(), Outcome::Stays)),
            Answer::Stall => Ok(self.failed(descriptor, TdStatus::empty())),
        }
    }

    /// A failed transaction: the descriptor is over, and its queue halts. Real controllers try a silent device three
    /// times; here silence is certain the first time.
    fn failed(&mut self, descriptor: &TransferDescriptor, why: TdStatus) -> (u32, Outcome) {
        self.status |= Status::ERROR_INTERRUPT;
        let over = descriptor.status & !(0x7ff | TdStatus::ACTIVE.bits() | TdStatus::NAK.bits() | 3 << 27) | 0x7ff;
        (over | TdStatus::STALLED.bits() | why.bits(), Outcome::Stays)
    }

    // Registers

    fn write_command(&mut self, value: u16) {
        let new = Command::from_bits_truncate(value);
        if new.contains(Command::CONTROLLER_RESET) {
            return self.reset_controller();
        }
        if new.contains(Command::GLOBAL_RESET) && !self.command.contains(Command::GLOBAL_RESET) {
            let devices = self.devices.iter_mut().flatten();
            devices.for_each(UsbDevice::reset);
        }
        let was_running = self.is_running();
        if was_running && !new.contains(Command::RUN) {
            self.stop();
            self.status |= Status::HALTED;
        }
        self.command = new;
        if !was_running && new.contains(Command::RUN) {
            self.status.remove(Status::HALTED);
            self.start();
        }
    }

    fn write_port(&mut self, index: usize, value: u16) {
        let (Some(port), Some(device)) = (self.ports.get_mut(index), self.devices.get_mut(index)) else { return };
        let value = PortStatus::from_bits_truncate(value);
        let before = *port;
        port.remove(PORT_WRITABLE | value & PORT_CLEARED_BY_ONES);
        port.insert(value & PORT_WRITABLE);
        if port.contains(PortStatus::RESET) {
            port.remove(PortStatus::ENABLED);
        }
        if !port.contains(PortStatus::CONNECTED) {
            port.remove(PortStatus::ENABLED);
        }
        if let Some(device) = device
            && before.contains(PortStatus::RESET)
            && !port.contains(PortStatus::RESET)
        {
            device.reset();
        }
        self.wake();
    }

    fn read_word(&self, register: u16) -> u16 {
        match register {
            COMMAND => self.command.bits(),
            STATUS => self.status.bits(),
            INTERRUPT_ENABLE => self.interrupts.bits(),
            FRAME_NUMBER => self.frame_number(),
            FRAME_BASE => self.frame_base as u16,
            0x0a => (self.frame_base >> 16) as u16,
            SOF_MODIFY => self.sof_modify.into(),
            PORT_1 => self.ports[0].bits(),
            PORT_2 => self.ports[1].bits(),
            _ => 0xff7f, // No third port: bit 7 reads zero there
        }
    }

    fn write_word(&mut self, register: u16, value: u16) {
        match register {
            COMMAND => self.write_command(value),
            STATUS => {
                let cleared = Status::from_bits_truncate(value) - Status::HALTED;
                self.status.remove(cleared);
                if cleared.contains(Status::INTERRUPT) {
                    self.causes = Interrupts::empty();
                }
            }
            INTERRUPT_ENABLE => self.interrupts = Interrupts::from_bits_truncate(value),
            FRAME_NUMBER if !self.is_running() => self.frame = value & FRAME_MASK,
            FRAME_BASE => self.frame_base = self.frame_base & 0xffff_0000 | u32::from(value) & 0xf000,
            0x0a => self.frame_base = self.frame_base & 0xffff | u32::from(value) << 16,
            SOF_MODIFY => self.sof_modify = value as u8 & 0x7f,
            PORT_1 => self.write_port(0, value),
            PORT_2 => self.write_port(1, value),
            _ => {}
        }
        self.show_interrupt();
    }
}

impl Device for Uhci {
    fn reset(&mut self, _kind: ResetKind) {
        self.config.reset();
        self.reset_controller();
    }

    fn save(&self) -> SavedState {
        let Self {
            irq: _,
            dma: _,
            clock: _,
            timer: _,
            config,
            command,
            status,
            interrupts,
            causes,
            frame_base,
            sof_modify,
            frame,
            frame_time,
            idle_frames,
            ports,
            devices,
        } = self;
        SavedState::of(
            saved::VERSION,
            &saved::Uhci {
                config: config.save(),
                command: command.bits(),
                status: status.bits(),
                interrupts: interrupts.bits(),
                causes: causes.bits(),
                frame_base: *frame_base,
                sof_modify: *sof_modify,
                frame: *frame,
                frame_time: *frame_time,
                idle_frames: *idle_frames,
                ports: ports.map(|port| port.bits()),
                devices: devices.each_ref().map(|device| device.as_ref().map(UsbDevice::save)),
            },
        )
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        let saved::Uhci {
            config,
            command,
            status,
            interrupts,
            causes,
            frame_base,
            sof_modify,
            frame,
            frame_time,
            idle_frames,
            ports,
            devices,
        } = saved.read(saved::VERSION)?;
        self.config.restore(&config)?;
        for (device, saved) in self.devices.iter_mut().zip(devices) {
            match (device, saved) {
                (Some(device), Some(saved)) => device.restore(saved)?,
                (None, None) => {}
                _ => return Err(RestoreError::impossible("other USB devices than this machine has")),
            }
        }
        self.command = Command::from_bits_truncate(command) - Command::CONTROLLER_RESET;
        self.status = Status::from_bits_truncate(status);
        self.interrupts = Interrupts::from_bits_truncate(interrupts);
        self.causes = Interrupts::from_bits_truncate(causes);
        self.frame_base = frame_base & !0xfff;
        self.sof_modify = sof_modify & 0x7f;
        self.frame = frame & FRAME_MASK;
        self.frame_time = frame_time;
        self.idle_frames = idle_frames;
        for ((port, saved), device) in self.ports.iter_mut().zip(ports).zip(&self.devices) {
            *port = PortStatus::from_bits_truncate(saved) | PortStatus::ALWAYS_ONE;
            port.set(PortStatus::CONNECTED, device.is_some());
        }
        self.timer.set(if self.is_running() { self.frame_time } else { VmTime::NEVER });
        self.show_interrupt();
        Ok(())
    }

    fn as_port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }

    fn as_timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }

    fn as_input(&mut self) -> Option<&mut dyn InputSink> {
        Some(self)
    }
}

impl PortIo for Uhci {
    fn port_read(&mut self, port: Port, width: Width) -> u32 {
        let Port::Bar { offset, .. } = port else { return u32::MAX };
        let low = u32::from(self.read_word(offset & !1)) >> (8 * (offset & 1));
        match width {
            Width::Dword => low & 0xffff | u32::from(self.read_word((offset & !1) + 2)) << 16,
            _ => low,
        }
    }

    fn port_write(&mut self, port: Port, width: Width, value: u32) {
        let Port::Bar { offset, .. } = port else { return };
        match width {
            Width::Byte if offset == SOF_MODIFY => self.write_word(SOF_MODIFY, value as u16),
            // The other half keeps its value; bits that ones clear are not written there.
            Width::Byte => {
                let register = offset & !1;
                let clears = if register == STATUS { 0xffff } else { 0 };
                let clears = if matches!(register, PORT_1 | PORT_2) { PORT_CLEARED_BY_ONES.bits() } else { clears };
                let kept = self.read_word(register) & !clears;
                let value = value as u16;
                let whole = if offset & 1 == 0 { kept & 0xff00 | value } else { kept & 0x00ff | value << 8 };
                self.write_word(register, whole);
            }
            Width::Word => self.write_word(offset & !1, value as u16),
            _ => {
                self.write_word(offset & !1, value as u16);
                self.write_word((offset & !1) + 2, (value >> 16) as u16);
            }
        }
    }
}

impl PciFunction for Uhci {
    fn config(&self) -> &PciConfig {
        &self.config
    }

    fn config_mut(&mut self) -> &mut PciConfig {
        &mut self.config
    }
}

impl Timed for Uhci {
    fn timer_fired(&mut self, _timer: u32, now: VmTime) {
        self.walk_due_frames(now);
    }
}

impl InputSink for Uhci {
    fn wants(&self, event: &InputEvent) -> bool {
        let now = self.clock.now();
        self.is_running() && self.devices.iter().flatten().any(|device| device.wants(event, now))
    }

    fn input(&mut self, event: &InputEvent) {
        let now = self.clock.now();
        if let Some(device) = self.devices.iter_mut().flatten().find(|device| device.wants(event, now)) {
            device.input(event);
            self.wake();
        }
    }
}

mod saved {
    use super::SavedUsbDevice;
    use engine_base::VmTime;
    use engine_bus::SavedPciConfig;
    use serde::{Deserialize, Serialize};

    pub const VERSION: u32 = 1;

    #[derive(Serialize, Deserialize)]
    pub struct Uhci {
        pub config: SavedPciConfig,
        pub command: u16,
        pub status: u16,
        pub interrupts: u16,
        pub causes: u16,
        pub frame_base: u32,
        pub sof_modify: u8,
        pub frame: u16,
        pub frame_time: VmTime,
        pub idle_frames: u8,
        pub ports: [u16; 2],
        pub devices: [Option<SavedUsbDevice>; 2],
    }
}
