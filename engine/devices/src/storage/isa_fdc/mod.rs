//! 82078 floppy disk controller with two drives, `floppy0` and `floppy1`: reading, writing and formatting by DMA channel 2
//! or by the data register, seeks, sense commands, the disk-change line. Which geometry a disk has follows from its size.
//!
//! Each command has a fixed number of parameters in [`COMMANDS`], and the bytes of a command never outgrow it.
//! Left out: deleted data marks, scan commands, tape drives, timing (heads move at once), sectors of other than 512 bytes.
//! See: Intel 290474-001, "82078 CHMOS Single-Chip Floppy Disk Controller".

mod geometry;
#[cfg(test)]
mod tests;
mod transfer;

use engine_base::{Clock, rank, warn_limited};
use engine_bus::{
    BuildError, Device, DeviceModel, Drive, IrqLine, IsaDmaChannel, Options, Port, PortIo, ResetKind, RestoreError, SavedState,
    Slot, Timed, Timer, Width, Wiring, Worker,
};
use geometry::Geometry;
use serde::{Deserialize, Serialize};
use transfer::{Job, Transfer, is_write_protected};

/// The model.
pub const MODEL: DeviceModel = DeviceModel {
    id: "isa-fdc",
    title: "82078 floppy disk controller",
    slot: Slot::Isa,
    rank: rank::DEVICE,
    options: &[],
    build,
};

const SECTOR_BYTES: usize = 512;
/// No track of any geometry has more.
const MOST_SECTORS: u8 = 64;
/// The longest command is 9 bytes, the longest answer 10.
const MOST_BYTES: usize = 16;
/// How long a transfer waits before it looks again whether its DMA channel is ready.
const DMA_RETRY_NANOS: u64 = 1_000_000;

// Ports
const STATUS_A: u16 = 0x3f0;
const STATUS_B: u16 = 0x3f1;
const DIGITAL_OUTPUT: u16 = 0x3f2;
const TAPE_DRIVE: u16 = 0x3f3;
const MAIN_STATUS: u16 = 0x3f4;
const FIFO: u16 = 0x3f5;
const DIGITAL_INPUT: u16 = 0x3f7;

// Digital output register
const NOT_RESET: u8 = 1 << 2;
const DMA_GATE: u8 = 1 << 3;

// Main status register
const REQUEST_FOR_MASTER: u8 = 1 << 7;
const TO_HOST: u8 = 1 << 6;
const NON_DMA: u8 = 1 << 5;
const BUSY: u8 = 1 << 4;

// Status register 0
const ABNORMAL: u8 = 0x40;
const INVALID_COMMAND: u8 = 0x80;
const READY_CHANGED: u8 = 0xc0;
const SEEK_END: u8 = 0x20;
const EQUIPMENT_CHECK: u8 = 0x10;
// Status register 1
const END_OF_CYLINDER: u8 = 0x80;
const DATA_ERROR: u8 = 0x20;
const NO_DATA: u8 = 0x04;
const NOT_WRITABLE: u8 = 0x02;
const MISSING_ADDRESS_MARK: u8 = 0x01;

/// A command: how it is recognised, how many bytes follow it, what it does.
struct Command {
    mask: u8,
    code: u8,
    parameters: usize,
    run: fn(&mut Fdc, &[u8]),
}

const fn command(mask: u8, code: u8, parameters: usize, run: fn(&mut Fdc, &[u8])) -> Command {
    Command { mask, code, parameters, run }
}

/// Every command that is done; others answer "invalid".
const COMMANDS: &[Command] = &[
    command(0x1f, 0x06, 8, |fdc, bytes| fdc.start_transfer(Job::Read, bytes)),
    command(0x1f, 0x0c, 8, |fdc, bytes| fdc.start_transfer(Job::ReadDeleted, bytes)),
    command(0x9f, 0x02, 8, |fdc, bytes| fdc.start_transfer(Job::ReadTrack, bytes)),
    command(0x3f, 0x05, 8, |fdc, bytes| fdc.start_transfer(Job::Write, bytes)),
    command(0x1f, 0x16, 8, |fdc, bytes| fdc.start_transfer(Job::Verify, bytes)),
    command(0xbf, 0x0d, 5, Fdc::format_track),
    command(0xbf, 0x0a, 1, Fdc::read_id),
    command(0xff, 0x07, 1, |fdc, bytes| fdc.seek(bytes[1] & 3, Some(0))),
    command(0xff, 0x0f, 2, |fdc, bytes| fdc.seek(bytes[1] & 3, Some(bytes[2]))),
    command(0xbf, 0x8f, 2, Fdc::relative_seek),
    command(0xff, 0x08, 0, |fdc, _| fdc.sense_interrupt()),
    command(0xff, 0x04, 1, Fdc::sense_drive_status),
    command(0xff, 0x03, 2, |fdc, bytes| {
        fdc.specify = [bytes[1], bytes[2]];
        fdc.phase = Phase::Command(Vec::new());
    }),
    command(0xff, 0x13, 3, |fdc, bytes| {
        fdc.configure = [bytes[2], bytes[3]];
        fdc.phase = Phase::Command(Vec::new());
    }),
    command(0xff, 0x12, 1, |fdc, bytes| {
        // PERPENDICULAR MODE: the drive bits change only when "overwrite" is set.
        let keeps = if bytes[1] & 0x80 != 0 { 0 } else { 0x3c };
        fdc.perpendicular = fdc.perpendicular & keeps | bytes[1] & 0x3f & !keeps;
        fdc.phase = Phase::Command(Vec::new());
    }),
    command(0x7f, 0x14, 0, |fdc, bytes| {
        fdc.is_locked = bytes[0] & 0x80 != 0;
        fdc.answer(&[u8::from(fdc.is_locked) << 4]);
    }),
    command(0xff, 0x0e, 0, |fdc, _| fdc.dump_registers()),
    command(0xff, 0x10, 0, |fdc, _| fdc.answer(&[0x90])), // VERSION: enhanced controller
    command(0xff, 0x18, 0, |fdc, _| fdc.answer(&[0x41])), // PART ID: 82078
    command(0xff, 0x17, 1, |fdc, bytes| fdc.answer(&[bytes[1] & 0x3f])), // POWERDOWN MODE
    command(0xff, 0x33, 1, |fdc, _| fdc.phase = Phase::Command(Vec::new())), // OPTION
];

/// What the controller is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// It takes command bytes; these have come.
    Command(Vec<u8>),
    /// It waits for the disk to be read.
    Reading(Transfer),
    /// It waits for the disk to be written.
    Writing(Transfer),
    /// It has bytes for the host: by DMA as soon as the channel is ready, or through the data register.
    ToHost(Transfer),
    /// It wants bytes from the host.
    FromHost(Transfer),
    /// It has result bytes; these are left.
    Result(Vec<u8>),
}

/// A drive's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct UnitState {
    track: u8,
    /// The disk-change line.
    is_changed: bool,
}

struct Fdc {
    // Wires
    irq: IrqLine,
    dma: IsaDmaChannel,
    timer: Timer,
    clock: Clock,
    drives: [Option<Drive>; 2],
    // State the guest can see; all of it is saved
    digital_output: u8,
    tape_drive: u8,
    /// Bits 0 and 1 of the data rate and configuration control registers.
    rate: u8,
    specify: [u8; 2],
    configure: [u8; 2],
    perpendicular: u8,
    is_locked: bool,
    is_interrupting: bool,
    /// Status register 0 of a finished seek, for SENSE INTERRUPT.
    seek_status: Option<u8>,
    /// After a reset each of four drives reports in.
    resets_to_sense: u8,
    units: [UnitState; 2],
    phase: Phase,
    // What is under way
    seen_changes: [u64; 2],
    pending: Option<u64>,
    next_token: u64,
}

fn build(_options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    wiring.claim_ports(STATUS_A, 6, Width::Byte);
    wiring.claim_ports(DIGITAL_INPUT, 1, Width::Byte);
    let drives = [wiring.drive("floppy0"), wiring.drive("floppy1")];
    let mut fdc = Fdc {
        irq: wiring.isa_irq(6),
        dma: wiring.isa_dma_channel(2),
        timer: wiring.timer(0),
        clock: wiring.clock(),
        seen_changes: drives.each_ref().map(|drive| drive.as_ref().map_or(0, Drive::changes)),
        drives,
        digital_output: 0,
        tape_drive: 0,
        rate: 0,
        specify: [0; 2],
        configure: [0; 2],
        perpendicular: 0,
        is_locked: false,
        is_interrupting: false,
        seek_status: None,
        resets_to_sense: 0,
        units: [UnitState { track: 0, is_changed: true }; 2],
        phase: Phase::Command(Vec::new()),
        pending: None,
        next_token: 0,
    };
    fdc.reset(ResetKind::PowerOn);
    Ok(Box::new(fdc))
}

impl Fdc {
    fn show_interrupt(&self) {
        self.irq.set(self.is_interrupting && self.digital_output & DMA_GATE != 0);
    }

    fn set_interrupt(&mut self, is_interrupting: bool) {
        self.is_interrupting = is_interrupting;
        self.show_interrupt();
    }

    /// Everything stops; what the image still has to say is not listened to.
    fn stop(&mut self) {
        self.phase = Phase::Command(Vec::new());
        self.pending = None;
        self.seek_status = None;
        self.timer.cancel();
        self.set_interrupt(false);
    }

    /// The end of a reset by software: the drives report in.
    fn come_back(&mut self) {
        self.stop();
        if !self.is_locked {
            self.configure = [0, 0];
        }
        self.perpendicular &= 0x3c;
        self.resets_to_sense = 4;
        self.set_interrupt(true);
    }

    fn is_in_reset(&self) -> bool {
        self.digital_output & NOT_RESET == 0
    }

    fn selected(&self) -> usize {
        usize::from(self.digital_output & 3)
    }

    /// The geometry of the disk in a drive, and the drive.
    fn disk(&self, unit: u8) -> Option<(&Drive, Geometry)> {
        let drive = self.drives.get(usize::from(unit))?.as_ref()?;
        Some((drive, Geometry::of(drive.len())?))
    }

    /// Looks whether the machine has changed a disk since.
    fn notice_changes(&mut self) {
        for (index, drive) in self.drives.iter().enumerate() {
            let Some(drive) = drive else { continue };
            if std::mem::replace(&mut self.seen_changes[index], drive.changes()) != drive.changes() {
                self.units[index].is_changed = true;
            }
        }
    }

    fn uses_dma(&self) -> bool {
        self.specify[1] & 1 == 0
    }

    fn main_status(&self) -> u8 {
        if self.is_in_reset() {
            return 0;
        }
        match &self.phase {
            Phase::Command(bytes) if bytes.is_empty() => REQUEST_FOR_MASTER,
            Phase::Command(_) => REQUEST_FOR_MASTER | BUSY,
            Phase::Result(_) => REQUEST_FOR_MASTER | TO_HOST | BUSY,
            Phase::ToHost(_) if !self.uses_dma() => REQUEST_FOR_MASTER | TO_HOST | NON_DMA | BUSY,
            Phase::FromHost(_) if !self.uses_dma() => REQUEST_FOR_MASTER | NON_DMA | BUSY,
            _ => BUSY,
        }
    }

    // The data register

    fn write_fifo(&mut self, value: u8) {
        if self.is_in_reset() {
            return;
        }
        match &mut self.phase {
            Phase::Command(bytes) => {
                bytes.push(value);
                let Some(command) = COMMANDS.iter().find(|command| bytes[0] & command.mask == command.code) else {
                    let code = bytes[0];
                    warn_limited!(target: "isa-fdc", code, "unknown floppy command");
                    return self.answer(&[INVALID_COMMAND]);
                };
                if bytes.len() > command.parameters {
                    let bytes = std::mem::take(bytes);
                    self.notice_changes();
                    (command.run)(self, &bytes);
                }
            }
            Phase::FromHost(transfer) if self.specify[1] & 1 != 0 => {
                if let Some(place) = transfer.buffer.get_mut(transfer.position) {
                    *place = value;
                    transfer.position += 1;
                }
                if transfer.position >= transfer.buffer.len() {
                    self.filled();
                }
            }
            _ => warn_limited!(target: "isa-fdc", value, "a byte that the floppy controller has not asked for"),
        }
    }

    fn read_fifo(&mut self) -> u8 {
        match &mut self.phase {
            Phase::Result(bytes) => {
                let byte = if bytes.is_empty() { 0 } else { bytes.remove(0) };
                if bytes.is_empty() {
                    self.phase = Phase::Command(Vec::new());
                }
                self.set_interrupt(false);
                byte
            }
            Phase::ToHost(transfer) if self.specify[1] & 1 != 0 => {
                let byte = transfer.buffer.get(transfer.position).copied().unwrap_or(0);
                transfer.position += 1;
                if transfer.position >= transfer.buffer.len() {
                    self.emptied();
                }
                byte
            }
            _ => 0,
        }
    }

    fn answer(&mut self, bytes: &[u8]) {
        self.phase = Phase::Result(bytes.to_vec());
    }

    // Commands without data

    /// Moves a drive's head: to a track, or (without one) it stays.
    fn seek(&mut self, unit: u8, track: Option<u8>) {
        self.phase = Phase::Command(Vec::new());
        let mut status = SEEK_END | unit;
        let Some((place, drive)) = self.units.get_mut(usize::from(unit)).zip(self.drives.get(usize::from(unit))) else {
            return self.seek_done(status | ABNORMAL | EQUIPMENT_CHECK);
        };
        match (drive, track) {
            (Some(drive), Some(track)) => {
                // A step with a disk in the drive takes the disk-change line back.
                if place.track != track && drive.medium().is_some() {
                    place.is_changed = false;
                }
                place.track = track.min(84);
            }
            (Some(_), None) => {}
            // Nobody answers, so that track 0 is never found.
            (None, _) => status |= ABNORMAL | EQUIPMENT_CHECK,
        }
        self.seek_done(status);
    }

    fn seek_done(&mut self, status: u8) {
        self.seek_status = Some(status);
        self.set_interrupt(true);
    }

    fn relative_seek(&mut self, bytes: &[u8]) {
        let unit = bytes[1] & 3;
        let here = self.units.get(usize::from(unit)).map_or(0, |place| place.track);
        let steps = bytes[2];
        let track = if bytes[0] & 0x40 != 0 { here.saturating_add(steps) } else { here.saturating_sub(steps) };
        self.seek(unit, Some(track));
    }

    fn sense_interrupt(&mut self) {
        if self.resets_to_sense > 0 {
            let unit = 4 - self.resets_to_sense;
            self.resets_to_sense -= 1;
            self.set_interrupt(false);
            let track = self.units.get(usize::from(unit)).map_or(0, |place| place.track);
            return self.answer(&[READY_CHANGED | unit, track]);
        }
        let Some(status) = self.seek_status.take() else { return self.answer(&[INVALID_COMMAND]) };
        self.set_interrupt(false);
        let track = self.units.get(usize::from(status & 3)).map_or(0, |place| place.track);
        self.answer(&[status, track]);
    }

    fn sense_drive_status(&mut self, bytes: &[u8]) {
        let unit = bytes[1] & 3;
        let mut status = bytes[1] & 7 | 0x28; // Ready, two sides
        if self.units.get(usize::from(unit)).is_some_and(|place| place.track == 0) {
            status |= 0x10;
        }
        if self.disk(unit).is_some_and(|(drive, _)| is_write_protected(drive)) {
            status |= 0x40;
        }
        self.answer(&[status]);
    }

    fn dump_registers(&mut self) {
        let [first, second] = self.units.map(|place| place.track);
        let lock = u8::from(self.is_locked) << 7;
        let [specify_1, specify_2] = self.specify;
        let [configure_1, configure_2] = self.configure;
        self.answer(&[first, second, 0, 0, specify_1, specify_2, 0, lock | self.perpendicular, configure_1, configure_2]);
    }

    // Registers

    fn write_digital_output(&mut self, value: u8) {
        let was_in_reset = self.is_in_reset();
        self.digital_output = value;
        match (was_in_reset, self.is_in_reset()) {
            (false, true) => self.stop(),
            (true, false) => self.come_back(),
            _ => self.show_interrupt(),
        }
    }
}

impl Device for Fdc {
    fn reset(&mut self, _kind: ResetKind) {
        self.stop();
        let Self {
            irq: _,
            dma: _,
            timer: _,
            clock: _,
            drives: _,
            digital_output,
            tape_drive,
            rate,
            specify,
            configure,
            perpendicular,
            is_locked,
            is_interrupting: _,
            seek_status: _,
            resets_to_sense,
            units,
            phase: _,
            seen_changes: _,
            pending: _,
            next_token: _,
        } = self;
        (*digital_output, *tape_drive, *rate) = (0, 0, 2);
        (*specify, *configure) = ([0; 2], [0; 2]);
        (*perpendicular, *is_locked, *resets_to_sense) = (0, false, 0);
        *units = [UnitState { track: 0, is_changed: true }; 2];
    }

    fn save(&self) -> SavedState {
        let Self {
            irq: _,
            dma: _,
            timer: _,
            clock: _,
            drives,
            digital_output,
            tape_drive,
            rate,
            specify,
            configure,
            perpendicular,
            is_locked,
            is_interrupting,
            seek_status,
            resets_to_sense,
            units,
            phase,
            seen_changes,
            pending: _,
            next_token: _,
        } = self;
        let mut units = *units;
        for ((unit, drive), seen) in units.iter_mut().zip(drives).zip(seen_changes) {
            // What has not been noticed yet is noticed now: another machine's drive counts from another number.
            unit.is_changed |= drive.as_ref().is_some_and(|drive| drive.changes() != *seen);
        }
        SavedState::of(
            saved::VERSION,
            &saved::Fdc {
                digital_output: *digital_output,
                tape_drive: *tape_drive,
                rate: *rate,
                specify: *specify,
                configure: *configure,
                perpendicular: *perpendicular,
                is_locked: *is_locked,
                is_interrupting: *is_interrupting,
                seek_status: *seek_status,
                resets_to_sense: *resets_to_sense,
                units,
                phase: phase.clone(),
            },
        )
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        let saved: saved::Fdc = saved.read(saved::VERSION)?;
        saved.check()?;
        let saved::Fdc {
            digital_output,
            tape_drive,
            rate,
            specify,
            configure,
            perpendicular,
            is_locked,
            is_interrupting,
            seek_status,
            resets_to_sense,
            units,
            phase,
        } = saved;
        self.stop();
        (self.digital_output, self.tape_drive, self.rate) = (digital_output, tape_drive & 3, rate & 3);
        (self.specify, self.configure, self.perpendicular) = (specify, configure, perpendicular & 0x3f);
        (self.is_locked, self.seek_status, self.resets_to_sense) = (is_locked, seek_status, resets_to_sense);
        (self.units, self.phase) = (units, phase);
        for (seen, drive) in self.seen_changes.iter_mut().zip(&self.drives) {
            *seen = drive.as_ref().map_or(0, Drive::changes);
        }
        self.set_interrupt(is_interrupting);
        if self.uses_dma() && matches!(self.phase, Phase::ToHost(_) | Phase::FromHost(_)) {
            self.retry_later();
        }
        self.ask_again();
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

impl PortIo for Fdc {
    fn port_read(&mut self, port: Port, _width: Width) -> u32 {
        let Port::Fixed(port) = port else { return u32::MAX };
        let value = match port {
            STATUS_A => u8::from(self.is_interrupting) << 7 | u8::from(self.drives[1].is_none()) << 6,
            STATUS_B => 0xc0 | self.digital_output >> 4 & 3,
            DIGITAL_OUTPUT => self.digital_output,
            TAPE_DRIVE => self.tape_drive,
            MAIN_STATUS => self.main_status(),
            FIFO => self.read_fifo(),
            // The other bits belong to the hard disk controller that shared this port.
            DIGITAL_INPUT => {
                self.notice_changes();
                let is_there = self.drives.get(self.selected()).is_some_and(Option::is_some);
                let is_changed = self.units.get(self.selected()).is_some_and(|place| place.is_changed);
                u8::from(is_there && is_changed) << 7
            }
            _ => 0xff,
        };
        value.into()
    }

    fn port_write(&mut self, port: Port, _width: Width, value: u32) {
        let (Port::Fixed(port), value) = (port, value as u8) else { return };
        match port {
            DIGITAL_OUTPUT => self.write_digital_output(value),
            TAPE_DRIVE => self.tape_drive = value & 3,
            MAIN_STATUS => {
                // Data rate select; bit 7 resets and takes itself back.
                self.rate = value & 3;
                if value & 0x80 != 0 && !self.is_in_reset() {
                    self.come_back();
                }
            }
            FIFO => self.write_fifo(value),
            DIGITAL_INPUT => self.rate = value & 3, // Configuration control
            _ => {}
        }
    }
}

impl Timed for Fdc {
    fn timer_fired(&mut self, _timer: u32, _now: engine_base::VmTime) {
        if self.uses_dma() && matches!(self.phase, Phase::ToHost(_) | Phase::FromHost(_)) {
            self.run_dma();
        }
    }
}

impl Worker for Fdc {
    fn work_ready(&mut self) {
        for index in 0..2 {
            while let Some(completion) = self.drives[index].as_ref().and_then(Drive::take_completion) {
                self.completed(completion);
            }
        }
    }
}

mod saved {
    use super::{MOST_BYTES, MOST_SECTORS, Phase, SECTOR_BYTES, UnitState};
    use engine_bus::RestoreError;
    use serde::{Deserialize, Serialize};

    pub const VERSION: u32 = 1;

    #[derive(Serialize, Deserialize)]
    pub struct Fdc {
        pub digital_output: u8,
        pub tape_drive: u8,
        pub rate: u8,
        pub specify: [u8; 2],
        pub configure: [u8; 2],
        pub perpendicular: u8,
        pub is_locked: bool,
        pub is_interrupting: bool,
        pub seek_status: Option<u8>,
        pub resets_to_sense: u8,
        pub units: [UnitState; 2],
        pub phase: Phase,
    }

    impl Fdc {
        /// What register writes can never lead to.
        pub fn check(&self) -> Result<(), RestoreError> {
            let possible = match &self.phase {
                Phase::Command(bytes) | Phase::Result(bytes) => bytes.len() <= MOST_BYTES,
                Phase::Reading(transfer) | Phase::Writing(transfer) | Phase::ToHost(transfer) | Phase::FromHost(transfer) => {
                    transfer.buffer.len() <= usize::from(MOST_SECTORS) * SECTOR_BYTES
                        && transfer.position <= transfer.buffer.len()
                        && transfer.to_fill.len() <= 4
                        && transfer.unit < 4
                        && transfer.head < 2
                }
            };
            if !possible || self.resets_to_sense > 4 {
                return Err(RestoreError::impossible("a floppy command longer than there are any"));
            }
            Ok(())
        }
    }
}
