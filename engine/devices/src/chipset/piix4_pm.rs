//! Power management function of the PIIX4 (0:1.3): ACPI's PM1 registers and 24-bit timer behind the base at 40h, the SMBus
//! host behind the base at 90h, the APM ports B2h/B3h, and a general purpose event block at AFE0h in which nothing happens.
//! The SCI is ISA interrupt 9. Sleep type 0 is S5, 1 is S3, 2 is S4 (which switches off, as S5).
//! There is no SMM: APMC_EN reads as set from the start, by which SeaBIOS knows that there is nothing to set up, and the
//! ACPI enable and disable commands at B2h act at once. No device answers on the SMBus.
//! See: Intel 290562-001, "82371AB (PIIX4)", chapter 7 and 11; ACPI specification 6.4, chapter 4.8.

use engine_base::{Clock, VmTime, rank, warn_limited};
use engine_bus::{
    BuildError, Device, DeviceModel, IrqLine, Options, PciConfig, PciFunction, Port, PortIo, Power, PowerButton, PowerRequest,
    ResetKind, RestoreError, SavedState, SharedNumber, Slot, Timed, Timer, Width, Wiring,
};

/// The model.
pub const MODEL: DeviceModel =
    DeviceModel { id: "piix4-pm", title: "PIIX4 power management", slot: Slot::Pci, rank: rank::DEVICE, options: &[], build };

// Configuration space
const PM_BASE: u8 = 0x40;
const PM_ENABLE: (u8, u8) = (0x80, 1);
const SMBUS_BASE: u8 = 0x90;
const SMBUS_ENABLE: (u8, u8) = (0xd2, 1);
/// Bit 25 of device activity register B, APMC_EN.
const APMC_ENABLE: (u8, u8) = (0x5b, 1 << 1);
const PM_WINDOW: u8 = 8;
const SMBUS_WINDOW: u8 = 9;

const APM_PORT: u16 = 0xb2;
const GPE_PORT: u16 = 0xafe0;
/// What the ACPI tables name as the enable and disable commands.
const APM_ACPI_ENABLE: u8 = 0xf1;
const APM_ACPI_DISABLE: u8 = 0xf0;

/// Frequency of the PM timer.
const TIMER_HZ: u64 = 3_579_545;
const TIMER_MASK: u64 = 0xff_ffff;
/// The status bit comes up when the highest bit turns over.
const TIMER_HALF: u64 = 0x80_0000;

mod pm1 {
    pub const TIMER: u16 = 1 << 0;
    pub const POWER_BUTTON: u16 = 1 << 8;
    /// Status bits that exist.
    pub const STATUS: u16 = 0x8d31;
    pub const ENABLE: u16 = 0x0521;
    /// SCI_EN, BM_RLD and SLP_TYP; GBL_RLS and SLP_EN read as zero.
    pub const CONTROL: u16 = 0x1c03;
    pub const SCI_ENABLE: u16 = 1 << 0;
    pub const SLEEP_ENABLE: u16 = 1 << 13;
}

mod smbus {
    pub const STATUS_CLEARABLE: u8 = 0x1e;
    pub const DEVICE_ERROR: u8 = 1 << 2;
    pub const START: u8 = 1 << 6;
}

struct PowerManagement {
    // Wires
    sci: IrqLine,
    clock: Clock,
    timer: Timer,
    power: Power,
    /// Where the ACPI registers are, for the tables.
    base: SharedNumber,
    // State the guest can see; all of it is saved
    config: PciConfig,
    pm1_status: u16,
    pm1_enable: u16,
    pm1_control: u16,
    /// The timer tick at which the highest bit next turns over.
    next_overflow: u64,
    gpe: [u8; 4],
    apm_control: u8,
    apm_status: u8,
    smbus: Smbus,
}

/// Registers of the SMBus host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Smbus {
    status: u8,
    control: u8,
    command: u8,
    address: u8,
    data: [u8; 2],
}

fn build(_options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    let mut config = PciConfig::new(0x8086, 0x7113, (6, 0x80, 0), 3)
        .with_subsystem(0x1af4, 0x1100)
        .with_interrupt_pin(1)
        .with_io_window(PM_WINDOW, PM_BASE, 64, PM_ENABLE)
        .with_io_window(SMBUS_WINDOW, SMBUS_BASE, 16, SMBUS_ENABLE);
    for (base, mask) in [(PM_BASE, 0xc0), (SMBUS_BASE, 0xf0)] {
        config.set_byte(base, 1); // I/O space
        config.allow(base, &[mask, 0xff]);
    }
    config.allow(PM_ENABLE.0, &[PM_ENABLE.1]);
    config.allow(SMBUS_ENABLE.0, &[0x0f]);
    config.allow(0x58, &[0xff; 4]);
    wiring.claim_ports(APM_PORT, 2, Width::Byte);
    wiring.claim_ports(GPE_PORT, 4, Width::Byte);
    let mut function = PowerManagement {
        sci: wiring.isa_irq(9),
        clock: wiring.clock(),
        timer: wiring.timer(0),
        power: wiring.power(),
        base: wiring.shared_number("piix4-pm.base"),
        config,
        pm1_status: 0,
        pm1_enable: 0,
        pm1_control: 0,
        next_overflow: 0,
        gpe: [0; 4],
        apm_control: 0,
        apm_status: 0,
        smbus: Smbus::default(),
    };
    function.reset(ResetKind::PowerOn);
    Ok(Box::new(function))
}

impl PowerManagement {
    /// Tells the ACPI tables where firmware has put the registers.
    fn tell_base(&self) {
        self.base.set(self.config.dword(PM_BASE) & 0xffc0);
    }

    fn ticks(&self) -> u64 {
        self.clock.now().ticks(TIMER_HZ)
    }

    /// Notes the timer's overflow if it has come.
    fn settle(&mut self) {
        let now = self.ticks();
        if now >= self.next_overflow {
            self.pm1_status |= pm1::TIMER;
            self.next_overflow = (now / TIMER_HALF + 1) * TIMER_HALF;
        }
    }

    fn update(&mut self) {
        self.settle();
        let events = self.pm1_status & self.pm1_enable != 0;
        self.sci.set(events && self.pm1_control & pm1::SCI_ENABLE != 0);
        let waits = self.pm1_enable & !self.pm1_status & pm1::TIMER != 0;
        self.timer.set(if waits { VmTime::at_tick(self.next_overflow, TIMER_HZ) } else { VmTime::NEVER });
    }

    fn pm_read(&mut self, offset: u16) -> u32 {
        self.update();
        // The registers as bytes, since the window is read in any width at any offset.
        let timer = (self.ticks() & TIMER_MASK) as u32;
        let registers = [u32::from(self.pm1_status) | u32::from(self.pm1_enable) << 16, u32::from(self.pm1_control), timer, 0];
        let at = |byte: u16| registers.get(usize::from(byte / 4)).map_or(0, |dword| dword >> (8 * (byte % 4)) & 0xff);
        (0..4).fold(0, |value, i| value | at(offset + i) << (8 * i))
    }

    fn pm_write_byte(&mut self, offset: u16, value: u8) {
        let shift = 8 * (offset & 1);
        let (mask, value) = (0xff << shift, u16::from(value) << shift);
        match offset & !1 {
            0 => self.pm1_status &= !value,
            2 => self.pm1_enable = (self.pm1_enable & !mask | value) & pm1::ENABLE,
            4 => {
                self.pm1_control = (self.pm1_control & !mask | value) & pm1::CONTROL;
                if value & pm1::SLEEP_ENABLE != 0 {
                    self.sleep();
                }
            }
            _ => warn_limited!(offset, value, "PIIX4: write to a power management register that is not emulated"),
        }
    }

    fn sleep(&self) {
        match self.pm1_control >> 10 & 7 {
            0 | 2 => self.power.request(PowerRequest::Shutdown),
            1 => self.power.request(PowerRequest::Suspend),
            kind => warn_limited!(kind, "PIIX4: the guest asks for a sleep that the ACPI tables do not name"),
        }
    }

    fn apm_command(&mut self, value: u8) {
        self.apm_control = value;
        match value {
            APM_ACPI_ENABLE => self.pm1_control |= pm1::SCI_ENABLE,
            APM_ACPI_DISABLE => self.pm1_control &= !pm1::SCI_ENABLE,
            _ => warn_limited!(value, "PIIX4: an APM command for system management code, which is not there"),
        }
    }

    fn smbus_read(&self, offset: u16) -> u8 {
        let Smbus { status, control, command, address, data } = self.smbus;
        match offset {
            0 => status,
            2 => control,
            3 => command,
            4 => address,
            5 | 6 => data[usize::from(offset - 5)],
            _ => 0,
        }
    }

    fn smbus_write(&mut self, offset: u16, value: u8) {
        match offset {
            0 => self.smbus.status &= !(value & smbus::STATUS_CLEARABLE),
            2 => {
                self.smbus.control = value & !smbus::START;
                if value & smbus::START != 0 {
                    self.smbus.status |= smbus::DEVICE_ERROR; // Nobody acknowledges the address.
                }
            }
            3 => self.smbus.command = value,
            4 => self.smbus.address = value,
            5 | 6 => self.smbus.data[usize::from(offset - 5)] = value,
            _ => {}
        }
    }

    fn read_byte(&mut self, port: Port) -> u8 {
        match port {
            Port::Fixed(APM_PORT) => self.apm_control,
            Port::Fixed(port @ GPE_PORT..=0xafe3) => self.gpe[usize::from(port - GPE_PORT)],
            Port::Fixed(_) => self.apm_status,
            Port::Bar { index: PM_WINDOW, offset } => self.pm_read(offset) as u8,
            Port::Bar { offset, .. } => self.smbus_read(offset),
        }
    }

    fn write_byte(&mut self, port: Port, value: u8) {
        match port {
            Port::Fixed(APM_PORT) => self.apm_command(value),
            Port::Fixed(port @ GPE_PORT..=0xafe1) => self.gpe[usize::from(port - GPE_PORT)] &= !value,
            Port::Fixed(port @ 0xafe2..=0xafe3) => self.gpe[usize::from(port - GPE_PORT)] = value,
            Port::Fixed(_) => self.apm_status = value,
            Port::Bar { index: PM_WINDOW, offset } => self.pm_write_byte(offset, value),
            Port::Bar { offset, .. } => self.smbus_write(offset, value),
        }
    }
}

impl Device for PowerManagement {
    fn reset(&mut self, _kind: ResetKind) {
        let Self {
            sci: _,
            clock: _,
            timer: _,
            power: _,
            base: _,
            config,
            pm1_status,
            pm1_enable,
            pm1_control,
            next_overflow,
            gpe,
            apm_control,
            apm_status,
            smbus,
        } = self;
        config.reset();
        config.set_byte(APMC_ENABLE.0, APMC_ENABLE.1);
        *pm1_status = 0;
        *pm1_enable = 0;
        *pm1_control = 0;
        *gpe = [0; 4];
        *apm_control = 0;
        *apm_status = 0;
        *smbus = Smbus::default();
        *next_overflow = (self.clock.now().ticks(TIMER_HZ) / TIMER_HALF + 1) * TIMER_HALF;
        self.tell_base();
        self.update();
    }

    fn save(&self) -> SavedState {
        let Self {
            sci: _,
            clock: _,
            timer: _,
            power: _,
            base: _,
            config,
            pm1_status,
            pm1_enable,
            pm1_control,
            next_overflow,
            gpe,
            apm_control,
            apm_status,
            smbus,
        } = self;
        let Smbus { status, control, command, address, data } = *smbus;
        SavedState::of(
            saved::VERSION,
            &saved::PowerManagement {
                config: config.save(),
                pm1_status: *pm1_status,
                pm1_enable: *pm1_enable,
                pm1_control: *pm1_control,
                next_overflow: *next_overflow,
                gpe: *gpe,
                apm_control: *apm_control,
                apm_status: *apm_status,
                smbus: saved::Smbus { status, control, command, address, data },
            },
        )
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        let saved: saved::PowerManagement = saved.read(saved::VERSION)?;
        if saved.next_overflow == 0 || !saved.next_overflow.is_multiple_of(TIMER_HALF) {
            return Err(RestoreError::impossible("PIIX4: the timer's highest bit does not turn over then"));
        }
        self.config.restore(&saved.config)?;
        self.tell_base();
        self.pm1_status = saved.pm1_status & pm1::STATUS;
        self.pm1_enable = saved.pm1_enable & pm1::ENABLE;
        self.pm1_control = saved.pm1_control & pm1::CONTROL;
        self.next_overflow = saved.next_overflow;
        self.gpe = saved.gpe;
        self.apm_control = saved.apm_control;
        self.apm_status = saved.apm_status;
        let saved::Smbus { status, control, command, address, data } = saved.smbus;
        let (status, control) = (status & smbus::STATUS_CLEARABLE, control & !smbus::START);
        self.smbus = Smbus { status, control, command, address, data };
        self.update();
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

    fn as_power_button(&mut self) -> Option<&mut dyn PowerButton> {
        Some(self)
    }
}

impl PortIo for PowerManagement {
    fn port_read(&mut self, port: Port, width: Width) -> u32 {
        match port {
            // The timer must be read in one piece.
            Port::Bar { index: PM_WINDOW, offset } => self.pm_read(offset),
            port => (0..width.bytes() as u16).fold(0, |value, i| value | u32::from(self.read_byte(after(port, i))) << (8 * i)),
        }
    }

    fn port_write(&mut self, port: Port, width: Width, value: u32) {
        for (i, byte) in value.to_le_bytes().into_iter().take(width.bytes() as usize).enumerate() {
            self.write_byte(after(port, i as u16), byte);
        }
        self.update();
    }
}

/// The port `bytes` further.
fn after(port: Port, bytes: u16) -> Port {
    match port {
        Port::Fixed(port) => Port::Fixed(port.wrapping_add(bytes)),
        Port::Bar { index, offset } => Port::Bar { index, offset: offset.wrapping_add(bytes) },
    }
}

impl PciFunction for PowerManagement {
    fn config(&self) -> &PciConfig {
        &self.config
    }

    fn config_mut(&mut self) -> &mut PciConfig {
        &mut self.config
    }

    fn config_written(&mut self, offset: u8, _len: u8) {
        if offset & 0xfc == PM_BASE {
            self.tell_base();
        }
    }
}

impl Timed for PowerManagement {
    fn timer_fired(&mut self, _timer: u32, _now: VmTime) {
        self.update();
    }
}

impl PowerButton for PowerManagement {
    fn press(&mut self) {
        self.pm1_status |= pm1::POWER_BUTTON;
        self.update();
    }
}

mod saved {
    use engine_bus::SavedPciConfig;
    use serde::{Deserialize, Serialize};

    pub const VERSION: u32 = 1;

    #[derive(Serialize, Deserialize)]
    pub struct PowerManagement {
        pub config: SavedPciConfig,
        pub pm1_status: u16,
        pub pm1_enable: u16,
        pub pm1_control: u16,
        pub next_overflow: u64,
        pub gpe: [u8; 4],
        pub apm_control: u8,
        pub apm_status: u8,
        pub smbus: Smbus,
    }

    #[derive(Serialize, Deserialize)]
    pub struct Smbus {
        pub status: u8,
        pub control: u8,
        pub command: u8,
        pub address: u8,
        pub data: [u8; 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Bench, moved, reset};
    use engine_bus::DeviceCell;
    use std::sync::Arc;

    /// Set up as SeaBIOS does: registers at 600h, SMBus at 700h; then ACPI enabled as an operating system does.
    fn bench() -> (Bench, Arc<DeviceCell>) {
        let (bench, cell) = Bench::with(&MODEL);
        bench.set_config_dword(PM_BASE, 0x601);
        bench.set_config_byte(0x80, 1);
        bench.set_config_dword(SMBUS_BASE, 0x701);
        bench.set_config_byte(0xd2, 9);
        bench.outb(APM_PORT, APM_ACPI_ENABLE);
        (bench, cell)
    }

    #[test]
    fn seabios_finds_smm_set_up_already() {
        let (bench, cell) = Bench::with(&MODEL);
        assert_eq!(bench.config_dword(0x58) & 1 << 25, 1 << 25);
        bench.set_config_dword(0x58, 0);
        reset(&cell);
        assert_eq!(bench.config_dword(0x58) & 1 << 25, 1 << 25);
    }

    #[test]
    fn the_apm_port_enables_acpi() {
        let (bench, _cell) = bench();
        assert_eq!(bench.inw(0x604), 1);
        bench.outb(APM_PORT, APM_ACPI_DISABLE);
        assert_eq!(bench.inw(0x604), 0);
    }

    #[test]
    fn the_power_button_interrupts_until_its_status_is_cleared() {
        let (bench, cell) = bench();
        bench.outw(0x602, pm1::POWER_BUTTON);
        cell.lock().as_power_button().unwrap().press();
        assert!(bench.level("isa-irq9"));
        let (copy, _) = moved(&bench, &cell, &MODEL);
        copy.board.router.rebuild(); // as the machine does after a restore
        assert!(copy.level("isa-irq9"));
        assert_eq!(copy.board.shared_number("piix4-pm.base").get(), 0x600, "the tables hear of it again");
        assert_eq!(copy.inw(0x600) & pm1::POWER_BUTTON, pm1::POWER_BUTTON);
        copy.outw(0x600, pm1::POWER_BUTTON);
        assert!(!copy.level("isa-irq9"));
    }

    #[test]
    fn sleep_type_0_switches_off() {
        let (bench, _cell) = bench();
        bench.outw(0x604, 0x0001);
        assert_eq!(bench.take_power_requests(), []);
        bench.outw(0x604, 0x2001);
        assert_eq!(bench.take_power_requests(), [PowerRequest::Shutdown]);
        assert_eq!(bench.inw(0x604), 1, "SLP_EN reads as zero");
        bench.outw(0x604, 0x2401);
        assert_eq!(bench.take_power_requests(), [PowerRequest::Suspend]);
    }

    #[test]
    fn the_timer_runs_at_3_58_mhz_in_24_bits_and_interrupts_when_its_top_bit_turns() {
        let (bench, _cell) = bench();
        bench.advance(1_000_000_000);
        assert_eq!(bench.inl(0x608), 3_579_545);
        assert_eq!(bench.inw(0x609), (3_579_545 >> 8) as u16);
        bench.outw(0x602, pm1::TIMER);
        bench.advance(1_343_000_000);
        assert!(!bench.level("isa-irq9"));
        bench.advance(1_000_000);
        assert!(bench.level("isa-irq9"));
        bench.outw(0x600, pm1::TIMER);
        bench.advance(3_000_000_000);
        assert!(bench.level("isa-irq9"), "and when it turns back");
        assert_eq!(bench.inl(0x608) >> 24, 0);
    }

    #[test]
    fn nobody_answers_on_the_smbus() {
        let (bench, _cell) = bench();
        bench.outb(0x704, 0xa1);
        bench.outb(0x702, 0x48);
        assert_eq!(bench.inb(0x700), smbus::DEVICE_ERROR);
        bench.outb(0x700, 0xff);
        assert_eq!(bench.inb(0x700), 0);
    }

    #[test]
    fn general_purpose_events_are_there_and_never_happen() {
        let (bench, _cell) = bench();
        bench.outw(0xafe2, 0xffff);
        assert_eq!(bench.inl(GPE_PORT), 0xffff_0000);
    }
}
