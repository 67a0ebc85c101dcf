//! One IDE channel: the task file's ports, the device control register, the interrupt line, and up to two drives of which
//! one is selected. Register writes reach both drives; reads come from the selected one, and a place without a drive
//! reads as zero, as device 0 (or pulled-down lines) answer for it.
//! See: ATA/ATAPI-6 (T13/1410D), 7 "Register descriptions" and 9.2 "Software reset protocol".

use super::bus_master::BusMaster;
use super::ide_drive::{IdeDrive, Kind, SavedIdeDrive, Status};
use engine_bus::{Dma, IrqLine, RestoreError, Width};
use serde::{Deserialize, Serialize};

// Registers of the command block
const DATA: u16 = 0;
const FEATURES_ERROR: u16 = 1;
const COUNT: u16 = 2;
const LOW: u16 = 3;
const MID: u16 = 4;
const HIGH: u16 = 5;
const DEVICE: u16 = 6;
const COMMAND_STATUS: u16 = 7;

// Bits of the device control register
const INTERRUPT_DISABLE: u8 = 1 << 1;
const SOFTWARE_RESET: u8 = 1 << 2;
/// Reads of the task file give the bytes written before the latest ones.
const HIGH_ORDER: u8 = 1 << 7;

const EXECUTE_DEVICE_DIAGNOSTIC: u8 = 0x90;
const DEVICE_RESET: u8 = 0x08;

/// A channel.
pub struct IdeChannel {
    // Wires
    pub irq: IrqLine,
    pub dma: Dma,
    // State the guest can see; all of it is saved
    pub drives: [Option<IdeDrive>; 2],
    pub bus_master: BusMaster,
    selected: usize,
    control: u8,
    is_interrupting: bool,
}

/// The saved form.
#[derive(Serialize, Deserialize)]
pub struct SavedIdeChannel {
    drives: [Option<SavedIdeDrive>; 2],
    bus_master: BusMaster,
    selected: u8,
    control: u8,
    is_interrupting: bool,
}

impl IdeChannel {
    pub fn new(irq: IrqLine, dma: Dma, drives: [Option<IdeDrive>; 2]) -> Self {
        Self { irq, dma, drives, bus_master: BusMaster::default(), selected: 0, control: 0, is_interrupting: false }
    }

    /// The RESET line.
    pub fn reset(&mut self) {
        let Self { irq, dma: _, drives, bus_master, selected, control, is_interrupting } = self;
        drives.iter_mut().flatten().for_each(IdeDrive::reset);
        *bus_master = BusMaster::default();
        (*selected, *control, *is_interrupting) = (0, 0, false);
        irq.lower();
    }

    fn drive(&mut self) -> Option<&mut IdeDrive> {
        self.drives[self.selected & 1].as_mut()
    }

    fn set_interrupt(&mut self, is_interrupting: bool) {
        if is_interrupting && !self.is_interrupting {
            self.bus_master.note_interrupt();
        }
        self.is_interrupting = is_interrupting;
        self.irq.set(is_interrupting && self.control & INTERRUPT_DISABLE == 0);
    }

    /// Lets drives and bus master go on, and takes the drives' interrupts.
    fn settle(&mut self) {
        let mut interrupts = false;
        for drive in self.drives.iter_mut().flatten() {
            // A transfer ends, or waits for the image: each turn moves all of a buffer.
            while drive.wants_dma() && self.bus_master.is_started() {
                drive.dma(&mut self.bus_master, &self.dma);
            }
            if std::mem::take(&mut drive.interrupt) {
                interrupts = true;
                if drive.status.contains(Status::ERROR) {
                    self.bus_master.stop();
                } else if !drive.status.contains(Status::DATA_REQUEST) {
                    self.bus_master.end();
                }
            }
        }
        if interrupts {
            self.set_interrupt(true);
        }
    }

    /// The drives have news.
    pub fn work_ready(&mut self) {
        for index in 0..2 {
            while let Some(drive) = &mut self.drives[index]
                && let Some(completion) = drive.drive.take_completion()
            {
                drive.completed(completion);
                self.settle();
            }
        }
    }

    /// Reads a register of the command block.
    pub fn read(&mut self, register: u16, width: Width) -> u32 {
        if register == COMMAND_STATUS {
            let status = self.alternate_status();
            if self.drive().is_some() {
                self.set_interrupt(false);
            }
            return status.into();
        }
        let high_order = usize::from(self.control & HIGH_ORDER != 0);
        let slot = (self.selected as u8) << 4;
        let Some(drive) = self.drive() else { return 0 };
        let task = &drive.task;
        match register {
            DATA => {
                let value = drive.read_data(width.bytes() as usize);
                self.settle();
                value
            }
            FEATURES_ERROR => drive.error.into(),
            COUNT => task.count[high_order].into(),
            LOW => task.low[high_order].into(),
            MID => task.mid[high_order].into(),
            HIGH => task.high[high_order].into(),
            _ => u32::from(task.device & !0x10 | slot | 0xa0),
        }
    }

    /// Reads from the data register as often as that does nothing but hand out `bytes` bytes of a block; says how many it put
    /// `into`. 0: another register.
    pub fn read_ready(&mut self, register: u16, bytes: usize, into: &mut [u8]) -> usize {
        match self.drive() {
            Some(drive) if register == DATA => drive.read_ready(bytes, into),
            _ => 0,
        }
    }

    /// Reads the status without taking the interrupt back.
    pub fn alternate_status(&mut self) -> u8 {
        self.drive().map_or(0, |drive| drive.status.bits())
    }

    /// Writes a register of the command block.
    pub fn write(&mut self, register: u16, width: Width, value: u32) {
        let byte = value as u8;
        if register == DATA {
            if let Some(drive) = self.drive() {
                drive.write_data(width.bytes() as usize, value);
                self.settle();
            }
            return;
        }
        if register == COMMAND_STATUS {
            return self.command(byte);
        }
        self.control &= !HIGH_ORDER;
        for drive in self.drives.iter_mut().flatten().filter(|drive| !drive.is_busy()) {
            let task = &mut drive.task;
            let pair = match register {
                FEATURES_ERROR => &mut task.features,
                COUNT => &mut task.count,
                LOW => &mut task.low,
                MID => &mut task.mid,
                HIGH => &mut task.high,
                _ => {
                    task.device = byte;
                    continue;
                }
            };
            *pair = [byte, pair[0]];
        }
        if register == DEVICE {
            self.selected = usize::from(byte >> 4 & 1);
        }
    }

    fn command(&mut self, command: u8) {
        self.control &= !HIGH_ORDER;
        if command == EXECUTE_DEVICE_DIAGNOSTIC {
            return self.execute_device_diagnostic();
        }
        let Some(drive) = self.drive() else { return };
        let may = !drive.is_busy() || command == DEVICE_RESET && matches!(drive.kind, Kind::Cdrom(_));
        if !may {
            engine_base::warn_limited!(target: "ide", command = format_args!("{command:#x}"), "command to a busy drive");
            return;
        }
        drive.command(command);
        self.set_interrupt(false);
        self.settle();
    }

    fn execute_device_diagnostic(&mut self) {
        self.set_interrupt(false);
        self.selected = 0;
        self.drives.iter_mut().flatten().for_each(IdeDrive::soft_reset);
        self.set_interrupt(true);
    }

    /// Writes the device control register.
    pub fn write_control(&mut self, value: u8) {
        let before = std::mem::replace(&mut self.control, value);
        let drives = self.drives.iter_mut().flatten();
        match (before & SOFTWARE_RESET != 0, value & SOFTWARE_RESET != 0) {
            (false, true) => drives.for_each(IdeDrive::begin_soft_reset),
            (true, false) => {
                drives.for_each(IdeDrive::soft_reset);
                self.selected = 0;
            }
            _ => {}
        }
        // A reset withdraws the interrupt; nIEN only hides it.
        let is_interrupting = self.is_interrupting && value & SOFTWARE_RESET == 0;
        self.set_interrupt(is_interrupting);
    }

    /// Writes a byte of the bus master's registers.
    pub fn write_bus_master(&mut self, register: u16, value: u8) {
        if self.bus_master.write(register, value) {
            self.settle();
        }
    }

    pub fn save(&self) -> SavedIdeChannel {
        let Self { irq: _, dma: _, drives, bus_master, selected, control, is_interrupting } = self;
        SavedIdeChannel {
            drives: drives.each_ref().map(|drive| drive.as_ref().map(IdeDrive::save)),
            bus_master: bus_master.clone(),
            selected: *selected as u8,
            control: *control,
            is_interrupting: *is_interrupting,
        }
    }

    pub fn restore(&mut self, saved: SavedIdeChannel) -> Result<(), RestoreError> {
        let SavedIdeChannel { drives, bus_master, selected, control, is_interrupting } = saved;
        let bus_master = bus_master.checked()?;
        for (drive, saved) in self.drives.iter_mut().zip(drives) {
            match (drive, saved) {
                (Some(drive), Some(saved)) => drive.restore(saved)?,
                (None, None) => {}
                _ => return Err(RestoreError::impossible("another number of IDE drives than this machine has")),
            }
        }
        self.bus_master = bus_master;
        self.selected = usize::from(selected & 1);
        self.control = control;
        self.is_interrupting = is_interrupting;
        self.irq.set(is_interrupting && control & INTERRUPT_DISABLE == 0);
        self.settle();
        Ok(())
    }
}
