//! Model-specific registers (Intel SDM volume 4): what each reads, what a write may set, and #GP for everything else.
//! Stored without effect, as there is no cache: memory types (MTRR, PAT). Speculation controls are accepted and do nothing.
//! Microcode cannot be loaded; machine checks never happen.

use super::super::cpu::{Cpu, cr0, efer, is_canonical, seg};
use super::super::cpuid::{PHYSICAL_BITS, feature};
use super::super::fault::{Exec, Stop};
use super::super::lapic::Refused;
use super::super::op::{Handler, Op};
use super::super::paravirt;
use engine_cpu::x86::TSC_HZ;
use iced_x86::Code;

/// MSR numbers.
mod number {
    pub const P5_MC_ADDR: u32 = 0x0;
    pub const P5_MC_TYPE: u32 = 0x1;
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const BIOS_UPDT_TRIG: u32 = 0x79;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const PLATFORM_INFO: u32 = 0xce;
    pub const MTRRCAP: u32 = 0xfe;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MCG_CTL: u32 = 0x17b;
    pub const PERF_STATUS: u32 = 0x198;
    pub const PERF_CTL: u32 = 0x199;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const LAST_BRANCH_FROM: u32 = 0x1db;
    pub const LAST_EXCEPTION_TO: u32 = 0x1de;
    pub const MTRR_PHYS_FIRST: u32 = 0x200;
    pub const MTRR_PHYS_LAST: u32 = 0x20f;
    pub const MTRR_FIX64K: u32 = 0x250;
    pub const MTRR_FIX16K_FIRST: u32 = 0x258;
    pub const MTRR_FIX16K_LAST: u32 = 0x259;
    pub const MTRR_FIX4K_FIRST: u32 = 0x268;
    pub const MTRR_FIX4K_LAST: u32 = 0x26f;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const MC0_CTL: u32 = 0x400;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8ff;
    pub const XSS: u32 = 0xda0;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const FMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}

/// MTRRcap: 8 variable ranges, fixed ranges, write-combining.
const MTRRCAP: u64 = 8 | 1 << 8 | 1 << 10;
/// Banks of machine-check registers; MCG_CTL is there.
const MC_BANKS: u64 = 10;
/// Misc enable: no branch trace storage, no PEBS. All else is kept and changes nothing: fast strings, thermal control,
/// performance monitoring, SpeedStep, MONITOR, the limit of CPUID, xTPR messages, no-execute.
const MISC_ENABLE_ALWAYS: u64 = 1 << 11 | 1 << 12;
const MISC_ENABLE_WRITABLE: u64 = 1 | 1 << 3 | 1 << 7 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 34;

/// IA32_APIC_BASE.EXTD: x2APIC mode.
const APIC_BASE_X2APIC: u64 = 1 << 10;

const GP: Stop = Stop::Exception(super::super::fault::Exception { vector: super::super::fault::vector::GP, error: Some(0) });

pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Rdmsr => read,
        Code::Wrmsr => write,
        _ => return None,
    })
}

fn read(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cpl != 0 {
        return Err(GP);
    }
    let value = read_msr(cpu, cpu.reg32(1))?;
    cpu.set_reg32(0, value as u32);
    cpu.set_reg32(2, (value >> 32) as u32);
    Ok(())
}

fn write(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cpl != 0 {
        return Err(GP);
    }
    let value = u64::from(cpu.reg32(2)) << 32 | u64::from(cpu.reg32(0));
    write_msr(cpu, cpu.reg32(1), value)?;
    Err(Stop::EndTrace)
}

impl Cpu {
    /// The time stamp counter.
    pub(super) fn time_stamp(&mut self) -> u64 {
        self.now().ticks(TSC_HZ).wrapping_add(self.msr.tsc_offset)
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.msr.tsc_offset = offset;
        let io = self.io();
        self.shared.apic.set_tsc_offset(offset, io);
        paravirt::time_stamp_moved(self);
        self.after_io();
    }
}

fn read_msr(cpu: &mut Cpu, msr: u32) -> Result<u64, Stop> {
    use number as n;
    Ok(match msr {
        n::P5_MC_ADDR | n::P5_MC_TYPE | n::PLATFORM_ID => 0,
        n::TSC => cpu.time_stamp(),
        n::APIC_BASE => cpu.shared.apic.base(),
        // Locked, with nothing in it.
        n::FEATURE_CONTROL => 1,
        n::TSC_ADJUST if cpu.cpuid.has(feature::TSC_ADJUST) => cpu.msr.tsc_adjust,
        n::SPEC_CTRL if cpu.cpuid.has(feature::SPEC_CTRL) => cpu.msr.spec_ctrl,
        n::BIOS_SIGN_ID => cpu.msr.bios_sign_id,
        // The ratio of the time stamp counter to a 100 MHz bus, for both the lowest and the usual speed.
        n::PLATFORM_INFO => (TSC_HZ / 100_000_000) << 8 | (TSC_HZ / 100_000_000) << 40,
        n::PERF_STATUS | n::PERF_CTL => (TSC_HZ / 100_000_000) << 8,
        n::MTRRCAP => MTRRCAP,
        n::ARCH_CAPABILITIES if cpu.cpuid.has(feature::ARCH_CAPABILITIES) => cpu.cpuid.arch_capabilities(),
        n::SYSENTER_CS => cpu.msr.sysenter_cs,
        n::SYSENTER_ESP => cpu.msr.sysenter_esp,
        n::SYSENTER_EIP => cpu.msr.sysenter_eip,
        n::MCG_CAP => MC_BANKS | 1 << 8,
        n::MCG_STATUS => cpu.msr.mcg_status,
        n::MCG_CTL => cpu.msr.mcg_ctl,
        n::MISC_ENABLE => cpu.msr.misc_enable | MISC_ENABLE_ALWAYS,
        n::DEBUGCTL => cpu.msr.debugctl,
        n::LAST_BRANCH_FROM..=n::LAST_EXCEPTION_TO => 0,
        n::MTRR_PHYS_FIRST..=n::MTRR_PHYS_LAST => {
            let at = (msr - n::MTRR_PHYS_FIRST) as usize;
            cpu.msr.mtrr_variable[(at / 2) & 7][at & 1]
        }
        n::MTRR_DEF_TYPE => cpu.msr.mtrr_def_type,
        n::PAT => cpu.msr.pat,
        n::TSC_DEADLINE if cpu.cpuid.has(feature::TSC_DEADLINE) => cpu.shared.apic.tsc_deadline(),
        n::X2APIC_FIRST..=n::X2APIC_LAST => {
            paravirt::settle_lazy_end(cpu);
            cpu.sync_clock();
            let io = cpu.io();
            return cpu.shared.apic.msr_read(msr, io).map_err(|Refused| GP);
        }
        n::XSS if cpu.cpuid.has(feature::XSAVES) => cpu.msr.xss,
        n::EFER => cpu.msr.efer,
        n::STAR => cpu.msr.star,
        n::LSTAR => cpu.msr.lstar,
        n::CSTAR => cpu.msr.cstar,
        n::FMASK => cpu.msr.fmask,
        n::FS_BASE => cpu.segments[usize::from(seg::FS)].base,
        n::GS_BASE => cpu.segments[usize::from(seg::GS)].base,
        n::KERNEL_GS_BASE => cpu.msr.kernel_gs_base,
        n::TSC_AUX if cpu.cpuid.has(feature::RDTSCP) => cpu.msr.tsc_aux,
        _ => match (fixed_range(msr), bank_register(msr)) {
            (Some(range), _) => cpu.msr.mtrr_fixed[range],
            (_, Some((bank, register))) => cpu.msr.mc_banks.get(bank).map_or(0, |bank| bank[register]),
            _ => {
                if let Some(value) = paravirt::read(cpu, msr) {
                    return value.map_err(|paravirt::Refused| GP);
                }
                engine_base::warn_limited!(target: "msr", msr = format_args!("{msr:#x}"), rip = format_args!("{:#x}", cpu.rip), "unknown model-specific register read: #GP");
                return Err(GP);
            }
        },
    })
}

fn write_msr(cpu: &mut Cpu, msr: u32, value: u64) -> Exec {
    use number as n;
    let canonical = |value: u64| if is_canonical(value) { Ok(value) } else { Err(GP) };
    let only = |mask: u64| if value & !mask == 0 { Ok(value) } else { Err(GP) };
    match msr {
        n::P5_MC_ADDR | n::P5_MC_TYPE => {}
        n::TSC => {
            // The adjustment follows, so that their difference stays the counter without either (SDM volume 3, 17.17.3).
            let change = value.wrapping_sub(cpu.time_stamp());
            cpu.msr.tsc_adjust = cpu.msr.tsc_adjust.wrapping_add(change);
            cpu.set_tsc_offset(cpu.msr.tsc_offset.wrapping_add(change));
        }
        n::TSC_ADJUST if cpu.cpuid.has(feature::TSC_ADJUST) => {
            let change = value.wrapping_sub(cpu.msr.tsc_adjust);
            cpu.msr.tsc_adjust = value;
            cpu.set_tsc_offset(cpu.msr.tsc_offset.wrapping_add(change));
        }
        n::APIC_BASE if value & APIC_BASE_X2APIC != 0 && !cpu.cpuid.has(feature::X2APIC) => return Err(GP),
        n::APIC_BASE => {
            cpu.shared.apic.set_base(value, PHYSICAL_BITS).map_err(|Refused| GP)?;
            cpu.apic_base = cpu.shared.apic.base();
            cpu.flush_host_addresses();
        }
        n::SPEC_CTRL if cpu.cpuid.has(feature::SPEC_CTRL) => {
            // IBRS, STIBP, SSBD and BHI_DIS_S: kept, and without effect on an interpreter.
            let history = if cpu.cpuid.has(feature::BHI_CTRL) { 1 << 10 } else { 0 };
            cpu.msr.spec_ctrl = only(0b111 | history)?;
        }
        n::PRED_CMD if cpu.cpuid.has(feature::SPEC_CTRL) => {
            only(1)?;
        }
        // The loading of microcode is passed over, as hypervisors do.
        n::BIOS_UPDT_TRIG => {}
        n::BIOS_SIGN_ID => cpu.msr.bios_sign_id = value,
        n::SYSENTER_CS => cpu.msr.sysenter_cs = value & 0xffff_ffff,
        n::SYSENTER_ESP => cpu.msr.sysenter_esp = canonical(value)?,
        n::SYSENTER_EIP => cpu.msr.sysenter_eip = canonical(value)?,
        n::MCG_STATUS => cpu.msr.mcg_status = only(0b111)?,
        n::MCG_CTL if value == 0 || value == u64::MAX => cpu.msr.mcg_ctl = value,
        n::PERF_CTL => {}
        n::MISC_ENABLE => cpu.msr.misc_enable = value & MISC_ENABLE_WRITABLE,
        // Only single-step on branches and branch records exist; records are never made.
        n::DEBUGCTL => cpu.msr.debugctl = only(0b11)?,
        n::MTRR_PHYS_FIRST..=n::MTRR_PHYS_LAST => {
            let at = (msr - n::MTRR_PHYS_FIRST) as usize;
            let address = ((1 << PHYSICAL_BITS) - 1) & !0xfff;
            if at & 1 == 0 {
                only(address | 0xff)?;
                memory_type(value as u8)?;
            } else {
                only(address | 1 << 11)?;
            }
            cpu.msr.mtrr_variable[(at / 2) & 7][at & 1] = value;
        }
        n::MTRR_DEF_TYPE => {
            only(0xcff)?;
            cpu.msr.mtrr_def_type = memory_type(value as u8).map(|()| value)?;
        }
        n::PAT => {
            for entry in value.to_le_bytes() {
                // UC- is a type of the PAT only.
                if entry != 7 {
                    memory_type(entry)?;
                }
            }
            cpu.msr.pat = value;
        }
        n::TSC_DEADLINE if cpu.cpuid.has(feature::TSC_DEADLINE) => {
            cpu.sync_clock();
            let io = cpu.io();
            cpu.shared.apic.set_tsc_deadline(value, io);
            cpu.after_io();
            cpu.events_waiting = true;
        }
        n::X2APIC_FIRST..=n::X2APIC_LAST => {
            paravirt::settle_lazy_end(cpu);
            cpu.sync_clock();
            let (apic, fabric) = (cpu.shared.apic.clone(), cpu.fabric.clone());
            apic.msr_write(msr, value, &fabric.apics, cpu.io()).map_err(|Refused| GP)?;
            cpu.after_io();
            cpu.events_waiting = true;
        }
        n::XSS if cpu.cpuid.has(feature::XSAVES) => cpu.msr.xss = only(0)?,
        n::EFER => write_efer(cpu, value)?,
        n::STAR => cpu.msr.star = value,
        n::LSTAR => cpu.msr.lstar = canonical(value)?,
        n::CSTAR => cpu.msr.cstar = canonical(value)?,
        n::FMASK => cpu.msr.fmask = only(0xffff_ffff)?,
        n::FS_BASE | n::GS_BASE => {
            let register = if msr == n::FS_BASE { seg::FS } else { seg::GS };
            cpu.segments[usize::from(register)].base = canonical(value)?;
            cpu.mode_changed();
        }
        n::KERNEL_GS_BASE => cpu.msr.kernel_gs_base = canonical(value)?,
        n::TSC_AUX if cpu.cpuid.has(feature::RDTSCP) => cpu.msr.tsc_aux = only(0xffff_ffff)?,
        _ => match (fixed_range(msr), bank_register(msr)) {
            (Some(range), _) => {
                for entry in value.to_le_bytes() {
                    memory_type(entry)?;
                }
                cpu.msr.mtrr_fixed[range] = value;
            }
            (_, Some((bank, register))) => {
                // Control takes all ones or zeroes, but kernels leave out bits 0 and 10; status can only be cleared; address
                // and miscellany take all.
                let taken = match register {
                    0 => value == 0 || value | 1 | 1 << 10 == u64::MAX,
                    1 => value == 0,
                    _ => true,
                };
                if !taken {
                    return Err(GP);
                }
                if let Some(bank) = cpu.msr.mc_banks.get_mut(bank) {
                    bank[register] = value;
                }
            }
            _ => {
                if let Some(written) = paravirt::write(cpu, msr, value) {
                    return written.map_err(|paravirt::Refused| GP);
                }
                engine_base::warn_limited!(target: "msr", msr = format_args!("{msr:#x}"), value = format_args!("{value:#x}"), "write to an unknown or read-only model-specific register: #GP");
                return Err(GP);
            }
        },
    }
    Ok(())
}

fn write_efer(cpu: &mut Cpu, value: u64) -> Exec {
    let allowed = cpu.cpuid.efer_allowed();
    let changed = value ^ cpu.msr.efer;
    // LMA is the CPU's; LME cannot change while paging is on.
    if value & !allowed != 0 || changed & efer::LME != 0 && cpu.cr0 & cr0::PG != 0 {
        return Err(GP);
    }
    cpu.msr.efer = value & !efer::LMA | cpu.msr.efer & efer::LMA;
    if changed & efer::NXE != 0 {
        cpu.flush_tlb();
    }
    cpu.mode_changed();
    Ok(())
}

/// The memory types that exist: uncacheable, write-combining, write-through, write-protected, write-back.
fn memory_type(value: u8) -> Exec {
    if matches!(value, 0 | 1 | 4 | 5 | 6) { Ok(()) } else { Err(GP) }
}

/// Which fixed-range MTRR an MSR is.
fn fixed_range(msr: u32) -> Option<usize> {
    use number as n;
    Some(match msr {
        n::MTRR_FIX64K => 0,
        n::MTRR_FIX16K_FIRST..=n::MTRR_FIX16K_LAST => (msr - n::MTRR_FIX16K_FIRST) as usize + 1,
        n::MTRR_FIX4K_FIRST..=n::MTRR_FIX4K_LAST => (msr - n::MTRR_FIX4K_FIRST) as usize + 3,
        _ => return None,
    })
}

/// Bank and register (CTL, STATUS, ADDR, MISC) of a machine-check MSR.
fn bank_register(msr: u32) -> Option<(usize, usize)> {
    let at = msr.checked_sub(number::MC0_CTL)? as usize;
    (at < MC_BANKS as usize * 4).then_some((at / 4, at % 4))
}
