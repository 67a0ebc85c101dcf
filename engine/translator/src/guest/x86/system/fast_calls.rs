//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, by Intel's rules; SWAPGS and the FS/GS base instructions; RDTSC, RDTSCP, RDPMC, RDRAND, RDSEED.

use super::super::cpu::{Cpu, cr4, efer, is_canonical, reg, seg};
use super::super::cpuid::feature;
use super::super::fault::{Exec, Stop};
use super::super::flags::bit;
use super::super::op::{Handler, Op};
use engine_cpu::x86::Segment;
use iced_x86::Code;

pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Syscall => syscall,
        Code::Sysretd => sysret::<false>,
        Code::Sysretq => sysret::<true>,
        Code::Sysenter => sysenter,
        Code::Sysexitd => sysexit::<false>,
        Code::Sysexitq => sysexit::<true>,
        Code::Swapgs => swap_gs,
        Code::Rdfsbase_r32 => read_base::<{ seg::FS }, 4>,
        Code::Rdfsbase_r64 => read_base::<{ seg::FS }, 8>,
        Code::Rdgsbase_r32 => read_base::<{ seg::GS }, 4>,
        Code::Rdgsbase_r64 => read_base::<{ seg::GS }, 8>,
        Code::Wrfsbase_r32 => write_base::<{ seg::FS }, 4>,
        Code::Wrfsbase_r64 => write_base::<{ seg::FS }, 8>,
        Code::Wrgsbase_r32 => write_base::<{ seg::GS }, 4>,
        Code::Wrgsbase_r64 => write_base::<{ seg::GS }, 8>,
        Code::Rdtsc => read_time_stamp,
        Code::Rdtscp => read_time_stamp_and_cpu,
        // No counter exists, so every number is wrong.
        Code::Rdpmc => no_counter,
        Code::Rdrand_r16 => random::<2, false>,
        Code::Rdrand_r32 => random::<4, false>,
        Code::Rdrand_r64 => random::<8, false>,
        Code::Rdseed_r16 => random::<2, true>,
        Code::Rdseed_r32 => random::<4, true>,
        Code::Rdseed_r64 => random::<8, true>,
        _ => return None,
    })
}

/// What SYSCALL and its kin load without looking at descriptors.
pub(crate) mod flat {
    use engine_cpu::x86::Segment;

    /// The flags that SYSRET takes from R11.
    pub const RETURNED_FLAGS: u64 = 0x003c_7fd7;

    /// A flat code segment of `cpl`, 64 or 32 bits.
    pub fn code(selector: u16, cpl: u8, long: bool) -> Segment {
        let size = if long { 0x2000 } else { 0x4000 };
        Segment { selector, base: 0, limit: 0xffff_ffff, attributes: 0x809b | size | u16::from(cpl) << 5 }
    }

    /// A flat data segment of `cpl`.
    pub fn data(selector: u16, cpl: u8) -> Segment {
        Segment { selector, base: 0, limit: 0xffff_ffff, attributes: 0xc093 | u16::from(cpl) << 5 }
    }
}

impl Cpu {
    /// Sets CS and SS without looking at descriptors, and goes on at `target`.
    fn enter_flat(&mut self, code: Segment, stack: Segment, cpl: u8, target: u64) -> Exec {
        self.set_code_segment(code, cpl);
        self.segments[usize::from(seg::SS)] = Segment { selector: stack.selector & !3 | u16::from(cpl), ..stack };
        self.rip = target;
        self.mode_changed();
        Err(Stop::EndTrace)
    }
}

/// SYSCALL: only in 64-bit code on an Intel CPU.
fn syscall(cpu: &mut Cpu, _: &Op) -> Exec {
    if !cpu.is_64_bit() || cpu.msr.efer & efer::SCE == 0 {
        return Err(Stop::ud());
    }
    let flags = cpu.flags.value();
    cpu.gpr[usize::from(reg::CX)] = cpu.rip;
    cpu.gpr[11] = flags & !bit::RF;
    cpu.flags.set(flags & !cpu.msr.fmask & !bit::RF);
    let selector = (cpu.msr.star >> 32) as u16 & !3;
    let target = cpu.msr.lstar;
    cpu.enter_flat(flat::code(selector, 0, true), flat::data(selector.wrapping_add(8), 0), 0, target)
}

fn sysret<const WIDE: bool>(cpu: &mut Cpu, _: &Op) -> Exec {
    if !cpu.is_64_bit() || cpu.msr.efer & efer::SCE == 0 {
        return Err(Stop::ud());
    }
    let target = cpu.gpr[usize::from(reg::CX)];
    // Intel checks the target while still in ring 0.
    if cpu.cpl != 0 || WIDE && !is_canonical(target) {
        return Err(Stop::gp(0));
    }
    let flags = cpu.gpr[11] & flat::RETURNED_FLAGS;
    cpu.flags.set(flags);
    let base = (cpu.msr.star >> 48) as u16;
    let stack = flat::data(base.wrapping_add(8), 3);
    if WIDE {
        cpu.enter_flat(flat::code(base.wrapping_add(16), 3, true), stack, 3, target)
    } else {
        cpu.enter_flat(flat::code(base, 3, false), stack, 3, target & 0xffff_ffff)
    }
}

fn sysenter(cpu: &mut Cpu, _: &Op) -> Exec {
    let selector = cpu.msr.sysenter_cs as u16 & !3;
    if !cpu.is_protected() || selector == 0 {
        return Err(Stop::gp(0));
    }
    cpu.flags.remove(bit::VM | bit::IF | bit::RF);
    let long = cpu.is_long();
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    cpu.gpr[usize::from(reg::SP)] = cpu.msr.sysenter_esp & mask;
    let target = cpu.msr.sysenter_eip & mask;
    cpu.enter_flat(flat::code(selector, 0, long), flat::data(selector.wrapping_add(8), 0), 0, target)
}

fn sysexit<const WIDE: bool>(cpu: &mut Cpu, _: &Op) -> Exec {
    let selector = cpu.msr.sysenter_cs as u16;
    if !cpu.is_protected() || selector & !3 == 0 || cpu.cpl != 0 {
        return Err(Stop::gp(0));
    }
    let (target, stack) = (cpu.gpr[usize::from(reg::DX)], cpu.gpr[usize::from(reg::CX)]);
    if WIDE {
        if !is_canonical(target) || !is_canonical(stack) {
            return Err(Stop::gp(0));
        }
        cpu.gpr[usize::from(reg::SP)] = stack;
        let code = flat::code(selector.wrapping_add(32), 3, true);
        return cpu.enter_flat(code, flat::data(selector.wrapping_add(40), 3), 3, target);
    }
    cpu.gpr[usize::from(reg::SP)] = stack & 0xffff_ffff;
    let code = flat::code(selector.wrapping_add(16), 3, false);
    cpu.enter_flat(code, flat::data(selector.wrapping_add(24), 3), 3, target & 0xffff_ffff)
}

fn swap_gs(cpu: &mut Cpu, _: &Op) -> Exec {
    if !cpu.is_64_bit() {
        return Err(Stop::ud());
    }
    if cpu.cpl != 0 {
        return Err(Stop::gp(0));
    }
    std::mem::swap(&mut cpu.segments[usize::from(seg::GS)].base, &mut cpu.msr.kernel_gs_base);
    cpu.mode_changed();
    Ok(())
}

fn require_base_instructions(cpu: &Cpu) -> Exec {
    if cpu.is_64_bit() && cpu.cr4 & cr4::FSGSBASE != 0 { Ok(()) } else { Err(Stop::ud()) }
}

fn read_base<const REGISTER: u8, const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    require_base_instructions(cpu)?;
    let base = cpu.segments[usize::from(REGISTER)].base;
    cpu.set_reg(op.rm, BYTES, base);
    Ok(())
}

fn write_base<const REGISTER: u8, const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    require_base_instructions(cpu)?;
    let base = cpu.reg(op.rm, BYTES);
    if !is_canonical(base) {
        return Err(Stop::gp(0));
    }
    cpu.segments[usize::from(REGISTER)].base = base;
    cpu.mode_changed();
    Ok(())
}

fn time_stamp_is_allowed(cpu: &Cpu) -> Exec {
    if cpu.cr4 & cr4::TSD != 0 && cpu.cpl != 0 { Err(Stop::gp(0)) } else { Ok(()) }
}

fn read_time_stamp(cpu: &mut Cpu, _: &Op) -> Exec {
    time_stamp_is_allowed(cpu)?;
    let value = cpu.time_stamp();
    cpu.set_reg32(reg::AX, value as u32);
    cpu.set_reg32(reg::DX, (value >> 32) as u32);
    Ok(())
}

fn read_time_stamp_and_cpu(cpu: &mut Cpu, op: &Op) -> Exec {
    if !cpu.cpuid.has(feature::RDTSCP) {
        return Err(Stop::ud());
    }
    read_time_stamp(cpu, op)?;
    cpu.set_reg32(reg::CX, cpu.msr.tsc_aux as u32);
    Ok(())
}

fn no_counter(cpu: &mut Cpu, _: &Op) -> Exec {
    let _ = cpu;
    Err(Stop::gp(0))
}

/// RDRAND and RDSEED. A counted machine must run the same way twice, so its numbers follow from its own history.
fn random<const BYTES: u8, const SEED: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    if !cpu.cpuid.has(if SEED { feature::RDSEED } else { feature::RDRAND }) {
        return Err(Stop::ud());
    }
    let mut bytes = [0; 8];
    let there = if let engine_base::ClockMode::Counted { .. } = cpu.io().clock().mode() {
        bytes = mixed(cpu.retired ^ u64::from(cpu.index) << 56).to_le_bytes();
        true
    } else {
        host_random(&mut bytes)
    };
    let value = if there { u64::from_le_bytes(bytes) } else { 0 };
    cpu.set_reg(op.rm, BYTES, value);
    cpu.flags.set_arithmetic(u64::from(there) * bit::CF);
    Ok(())
}

/// Bytes from the host's generator; the guest is told when there are none.
fn host_random(bytes: &mut [u8; 8]) -> bool {
    use std::io::Read;
    thread_local! {
        static SOURCE: std::cell::RefCell<Option<std::io::BufReader<std::fs::File>>> = const { std::cell::RefCell::new(None) };
    }
    SOURCE.with_borrow_mut(|source| {
        if source.is_none() {
            *source = std::fs::File::open("/dev/urandom").ok().map(|file| std::io::BufReader::with_capacity(256, file));
        }
        source.as_mut().is_some_and(|source| source.read_exact(bytes).is_ok())
    })
}

/// A bijection that scatters its argument: the finaliser of splitmix64.
fn mixed(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
