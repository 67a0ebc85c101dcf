//! The register map of a local APIC: one number (`offset / 16`) names a register in the xAPIC page and in the x2APIC MSRs.

use super::{ApicBus, ApicMode, Event, LocalApic, Refused, RegisterFile, esr, lvt};
use engine_base::VmTime;
use engine_cpu::{CpuIo, DeliveryMode};

/// SVR bit 8.
pub const SOFTWARE_ENABLE: u32 = 1 << 8;

/// Version 14h; the local vector table ends with entry 5 (no CMCI); no EOI suppression.
const VERSION: u32 = 0x0005_0014;

/// Register numbers.
mod reg {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const APR: u32 = 0x09;
    pub const PPR: u32 = 0x0a;
    pub const EOI: u32 = 0x0b;
    pub const REMOTE_READ: u32 = 0x0c;
    pub const LDR: u32 = 0x0d;
    pub const DFR: u32 = 0x0e;
    pub const SVR: u32 = 0x0f;
    pub const ISR: u32 = 0x10;
    pub const TMR: u32 = 0x18;
    pub const IRR: u32 = 0x20;
    pub const ESR: u32 = 0x28;
    pub const ICR_LOW: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_THERMAL: u32 = 0x33;
    pub const LVT_ERROR: u32 = 0x37;
    pub const TIMER_INITIAL: u32 = 0x38;
    pub const TIMER_CURRENT: u32 = 0x39;
    pub const TIMER_DIVIDE: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;
}

/// The writable bits of each local vector table entry, from the timer (32h) on.
const LVT_WRITABLE: [u32; 6] = [
    0x0007_00ff, // timer: mode, mask, vector
    0x0001_07ff, // thermal
    0x0001_07ff, // performance
    0x0001_a7ff, // LINT0: polarity and trigger too
    0x0001_a7ff, // LINT1
    0x0001_00ff, // error
];

/// The delivery mode in bits 8 to 10 of a table entry, an interrupt command or a message.
pub fn delivery_mode(bits: u32) -> Option<DeliveryMode> {
    Some(match bits >> 8 & 7 {
        0 => DeliveryMode::Fixed,
        1 => DeliveryMode::LowestPriority,
        2 => DeliveryMode::Smi,
        4 => DeliveryMode::Nmi,
        5 => DeliveryMode::Init,
        6 => DeliveryMode::StartUp,
        7 => DeliveryMode::ExtInt,
        _ => return None,
    })
}

impl LocalApic {
    /// Reads from the xAPIC page. Registers are 32 bits wide on 16-byte boundaries; the bytes between them read as zero.
    pub fn page_read(&self, offset: u64, bytes: u8, io: &dyn CpuIo) -> u64 {
        let skip = offset & 15;
        if skip + u64::from(bytes) > 4 {
            engine_base::warn_limited!(target: "lapic", offset, bytes, "read across a register's end");
        }
        if skip >= 4 {
            return 0;
        }
        let value = self.read((offset >> 4) as u32 & 0xff, io).unwrap_or_else(|Refused| {
            self.note_error(esr::ILLEGAL_REGISTER);
            0
        });
        let mask = if bytes >= 8 { u64::MAX } else { (1 << (bytes * 8)) - 1 };
        u64::from(value >> (skip * 8)) & mask
    }

    /// Writes to the xAPIC page. Only aligned 32-bit writes are defined (SDM 11.4.1); the others are ignored.
    pub fn page_write(&self, offset: u64, bytes: u8, value: u64, bus: &ApicBus, io: &dyn CpuIo) {
        if offset & 15 != 0 || bytes < 4 {
            engine_base::warn_limited!(target: "lapic", offset, bytes, "write that is not 32 bits on a 16-byte boundary, ignored");
            return;
        }
        let register = (offset >> 4) as u32 & 0xff;
        let value = value as u32;
        match register {
            reg::ID => self.change(|file| file.state.id = value >> 24),
            reg::LDR => self.change(|file| file.state.ldr = value & 0xff00_0000),
            reg::DFR => self.change(|file| file.state.dfr = value | 0x0fff_ffff),
            reg::ESR => self.latch_errors(),
            reg::EOI => self.end_of_interrupt(io),
            reg::ICR_HIGH => {
                self.change(|file| file.state.icr = file.state.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32)
            }
            reg::ICR_LOW => {
                let command = self.change(|file| {
                    file.state.icr = file.state.icr & !0xffff_ffff | u64::from(value & 0x000c_cfff);
                    file.state.icr
                });
                self.send(command, (command >> 56) as u32, bus);
            }
            // Read-only registers: writes are dropped.
            reg::VERSION | reg::APR | reg::PPR | reg::REMOTE_READ | reg::ISR..=0x27 | reg::TIMER_CURRENT => {}
            _ => {
                if self.write(register, value, io).is_err() {
                    self.note_error(esr::ILLEGAL_REGISTER);
                }
            }
        }
    }

    /// RDMSR of 800h to 8FFh.
    ///
    /// # Errors
    /// Outside x2APIC mode, for write-only and for missing registers.
    pub fn msr_read(&self, msr: u32, io: &dyn CpuIo) -> Result<u64, Refused> {
        if self.mode() != ApicMode::X2Apic {
            return Err(Refused);
        }
        match msr & 0xff {
            reg::ICR_LOW => Ok(self.look(|file| file.state.icr)),
            reg::ICR_HIGH | reg::DFR | reg::EOI | reg::APR | reg::REMOTE_READ => Err(Refused),
            register => self.read(register, io).map(u64::from),
        }
    }

    /// WRMSR to 800h to 8FFh.
    ///
    /// # Errors
    /// Outside x2APIC mode, for read-only and missing registers, and for reserved bits.
    pub fn msr_write(&self, msr: u32, value: u64, bus: &ApicBus, io: &dyn CpuIo) -> Result<(), Refused> {
        if self.mode() != ApicMode::X2Apic {
            return Err(Refused);
        }
        let register = msr & 0xff;
        if register == reg::ICR_LOW {
            if value & 0xfff3_2000 != 0 {
                return Err(Refused);
            }
            let command = value & !0x1000;
            self.change(|file| file.state.icr = command);
            self.send(command, (command >> 32) as u32, bus);
            return Ok(());
        }
        let low = u32::try_from(value).map_err(|_| Refused)?;
        match register {
            reg::EOI if low == 0 => self.end_of_interrupt(io),
            reg::ESR if low == 0 => self.latch_errors(),
            reg::SELF_IPI if low < 0x100 => self.send_to_self(low as u8),
            reg::TPR if low < 0x100 => self.write(register, low, io)?,
            reg::SVR if low & !0x1ff == 0 => self.write(register, low, io)?,
            reg::TIMER_DIVIDE if low & !0xb == 0 => self.write(register, low, io)?,
            reg::TIMER_INITIAL => self.write(register, low, io)?,
            reg::LVT_TIMER..=reg::LVT_ERROR => {
                let writable = LVT_WRITABLE[(register - reg::LVT_TIMER) as usize];
                // Delivery status and remote IRR are read-only, not reserved.
                if low & !(writable | 0x5000) != 0 {
                    return Err(Refused);
                }
                self.write(register, low, io)?;
            }
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// Reads what both forms share.
    fn read(&self, register: u32, io: &dyn CpuIo) -> Result<u32, Refused> {
        let now = io.clock().now();
        self.look(|file| {
            let state = &file.state;
            let x2apic = file.mode() == ApicMode::X2Apic;
            Ok(match register {
                reg::ID if x2apic => state.id,
                reg::ID => state.id << 24,
                reg::VERSION => VERSION,
                reg::TPR => u32::from(state.tpr),
                reg::APR | reg::PPR => u32::from(file.processor_priority()),
                reg::EOI | reg::REMOTE_READ => 0,
                reg::LDR => state.ldr,
                reg::DFR => state.dfr,
                reg::SVR => state.svr,
                reg::ISR..=0x17 => state.isr[(register - reg::ISR) as usize],
                reg::TMR..=0x1f => state.tmr[(register - reg::TMR) as usize],
                reg::IRR..=0x27 => state.irr[(register - reg::IRR) as usize],
                reg::ESR => state.esr,
                reg::ICR_LOW => state.icr as u32,
                reg::ICR_HIGH => (state.icr >> 32) as u32,
                reg::LVT_TIMER..=reg::LVT_ERROR => state.lvt[(register - reg::LVT_TIMER) as usize + lvt::TIMER],
                reg::TIMER_INITIAL => state.timer_initial,
                reg::TIMER_CURRENT => file.timer_count(now),
                reg::TIMER_DIVIDE => state.timer_divide,
                _ => return Err(Refused),
            })
        })
    }

    /// Writes what both forms share.
    fn write(&self, register: u32, value: u32, io: &dyn CpuIo) -> Result<(), Refused> {
        if matches!(register, reg::LVT_TIMER | reg::TIMER_INITIAL | reg::TIMER_DIVIDE) {
            // A count that has run out ends by the old settings, although nobody has looked at it yet.
            self.arm(io);
        }
        let now = io.clock().now();
        match register {
            reg::TPR => self.change(|file| file.state.tpr = value as u8),
            reg::SVR => self.change(|file| file.set_svr(value)),
            reg::LVT_TIMER => {
                self.change(|file| {
                    let before = file.timer_mode();
                    file.set_lvt(lvt::TIMER, value & LVT_WRITABLE[0]);
                    if file.timer_mode() != before && file.uses_deadline(before) != file.uses_deadline(file.timer_mode()) {
                        file.state.tsc_deadline = 0;
                        file.state.timer_started = VmTime::NEVER;
                        file.state.timer_initial = 0;
                    }
                });
                self.arm(io);
            }
            reg::LVT_THERMAL..=reg::LVT_ERROR => {
                let entry = (register - reg::LVT_TIMER) as usize;
                self.change(|file| file.set_lvt(entry + lvt::TIMER, value & LVT_WRITABLE[entry]));
            }
            reg::TIMER_INITIAL => {
                self.change(|file| file.start_timer(value, now));
                self.arm(io);
            }
            reg::TIMER_DIVIDE => {
                self.change(|file| file.set_divider(value & 0xb, now));
                self.arm(io);
            }
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// A write to the error status register: what was noted since the last one becomes visible.
    fn latch_errors(&self) {
        self.change(|file| {
            file.state.esr = file.state.pending_errors;
            file.state.pending_errors = 0;
        });
    }

    /// The self IPI register.
    fn send_to_self(&self, vector: u8) {
        if vector < 16 {
            self.note_error(esr::SEND_ILLEGAL_VECTOR);
        } else {
            self.deliver(DeliveryMode::Fixed, vector, false);
        }
    }

    /// Carries out an interrupt command.
    fn send(&self, command: u64, destination: u32, bus: &ApicBus) {
        let Some(mode) = delivery_mode(command as u32) else {
            engine_base::warn_limited!(target: "lapic", command, "interrupt command with a reserved delivery mode");
            return;
        };
        let vector = command as u8;
        let level_assert = command & 1 << 14 != 0;
        let level_triggered = command & 1 << 15 != 0;
        match mode {
            // INIT level de-assert only set arbitration ids, on CPUs before the Pentium 4.
            DeliveryMode::Init if !level_assert && level_triggered => return,
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if vector < 16 => {
                self.note_error(esr::SEND_ILLEGAL_VECTOR);
                return;
            }
            // The manual calls ExtINT from an interrupt command reserved.
            DeliveryMode::ExtInt => return,
            _ => {}
        }
        bus.send(self.cpu, command, destination, mode, self.mode());
    }

    /// Whether a logical destination means this APIC.
    pub(super) fn matches_logical(&self, destination: u32) -> bool {
        self.look(|file| {
            let state = &file.state;
            match file.mode() {
                ApicMode::Disabled => false,
                ApicMode::X2Apic => destination >> 16 == state.ldr >> 16 && destination & state.ldr & 0xffff != 0,
                ApicMode::XApic => {
                    let (wanted, own) = (destination & 0xff, state.ldr >> 24);
                    match state.dfr >> 28 {
                        0xf => wanted & own != 0,
                        // Cluster model: the upper half names the cluster, 15 all of them.
                        0 => (wanted >> 4 == own >> 4 || wanted >> 4 == 15) && wanted & own & 15 != 0,
                        _ => false,
                    }
                }
            }
        })
    }

    /// Whether a physical destination means this APIC.
    pub(super) fn matches_physical(&self, destination: u32) -> bool {
        self.look(|file| file.mode() != ApicMode::Disabled && file.state.id == destination)
    }

    /// Whether it takes part in the bus at all.
    pub(super) fn is_on_the_bus(&self) -> bool {
        self.mode() != ApicMode::Disabled
    }

    /// The offset of the time stamp counter has changed.
    pub fn set_tsc_offset(&self, offset: u64, io: &dyn CpuIo) {
        self.change(|file| file.tsc_offset = offset);
        self.arm(io);
    }

    /// IA32_TSC_DEADLINE: 0 while disarmed or in another timer mode.
    pub fn tsc_deadline(&self) -> u64 {
        self.look(|file| file.state.tsc_deadline)
    }

    /// Writes IA32_TSC_DEADLINE; ignored in the other timer modes (SDM 11.5.4.1).
    pub fn set_tsc_deadline(&self, value: u64, io: &dyn CpuIo) {
        let armed = self.change(|file| {
            let listens = file.uses_deadline(file.timer_mode());
            if listens {
                file.state.tsc_deadline = value;
            }
            listens
        });
        if armed {
            self.arm(io);
        }
    }

    /// The timer's interrupt.
    pub(super) fn timer_entry(&self) -> u32 {
        self.look(|file| file.state.lvt[lvt::TIMER])
    }

    /// CPU time has come to the timer: the vCPU's thread must call [`LocalApic::service_timer`].
    pub fn timer_due(&self) {
        self.latch(Event::TIMER);
    }
}

impl RegisterFile {
    fn set_svr(&mut self, value: u32) {
        self.state.svr = value & 0x1ff;
        if value & SOFTWARE_ENABLE == 0 {
            self.state.lvt.iter_mut().for_each(|entry| *entry |= lvt::MASKED);
        }
    }

    /// While software has the APIC disabled, its entries cannot be unmasked (SDM 11.4.7.2).
    fn set_lvt(&mut self, index: usize, value: u32) {
        let forced = if self.state.svr & SOFTWARE_ENABLE == 0 { lvt::MASKED } else { 0 };
        self.state.lvt[index] = value | forced;
    }
}
