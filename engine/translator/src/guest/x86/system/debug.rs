//! Debug registers and the traps they raise (Intel SDM volume 3, chapter 17). Data breakpoints are noticed by the slow path of memory
//! accesses; this file reads and writes the registers, finds instruction and I/O breakpoints and delivers #DB.

use super::super::cpu::{Cpu, cr4, seg};
use super::super::fault::{Exec, Stop, vector};
use super::super::flags::bit;
use super::super::op::{Handler, Op};
use super::exceptions::{Cause, Event};
use engine_cpu::x86::Activity;
use iced_x86::Code;

/// DR6 bits.
mod dr6 {
    pub const BREAKPOINTS: u64 = 0xf;
    pub const BD: u64 = 1 << 13;
    pub const BS: u64 = 1 << 14;
    pub const BT: u64 = 1 << 15;
    /// Those that software can change; the rest reads as one, but bit 12.
    pub const WRITABLE: u64 = 0xe00f;
    pub const ONES: u64 = 0xffff_0ff0;
}

/// DR7 bits.
mod dr7 {
    pub const GD: u64 = 1 << 13;
    /// Bits 10 and up that exist: GD and the four kinds and lengths.
    pub const WRITABLE: u64 = 0xffff_2bff;
    pub const ONES: u64 = 0x400;
}

pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Mov_r32_dr => read_register::<4>,
        Code::Mov_r64_dr => read_register::<8>,
        Code::Mov_dr_r32 => write_register::<4>,
        Code::Mov_dr_r64 => write_register::<8>,
        _ => return None,
    })
}

/// Delivers #DB behind an instruction that met breakpoints or ran under TF: `pending_debug` holds the DR6 bits.
pub(super) fn debug_trap(cpu: &mut Cpu) -> Exec {
    let met = std::mem::take(&mut cpu.pending_debug) & (dr6::BREAKPOINTS | dr6::BS | dr6::BT);
    if met == 0 {
        return Ok(());
    }
    cpu.note_met(met);
    cpu.note_debug_trap();
    // A step over HLT ends the halt.
    cpu.activity = Activity::Running;
    cpu.deliver_event(Event { vector: vector::DB, error: None, cause: Cause::Event })?;
    Err(Stop::EndTrace)
}

/// #DB before the instruction at RIP if a breakpoint is on it and RF does not hold it back.
pub(super) fn check_instruction(cpu: &mut Cpu) -> Exec {
    if cpu.flags.has(bit::RF) {
        return Ok(());
    }
    let base = if cpu.is_64_bit() { 0 } else { cpu.segments[usize::from(seg::CS)].base };
    let linear = base.wrapping_add(cpu.rip) & cpu.linear_mask;
    let met: u64 = (0..4).filter(|number| kind(cpu, *number) == 0 && cpu.dr[*number] == linear).map(|number| 1 << number).sum();
    if !(0..4).any(|number| met >> number & 1 != 0 && is_armed(cpu, number)) {
        return Ok(());
    }
    cpu.note_met(met);
    Err(Stop::plain(vector::DB))
}

fn is_armed(cpu: &Cpu, number: usize) -> bool {
    cpu.dr7 >> (number * 2) & 3 != 0
}

fn kind(cpu: &Cpu, number: usize) -> u64 {
    cpu.dr7 >> (16 + number * 4) & 3
}

impl Cpu {
    /// Says in DR6 what a #DB is for. Which breakpoints were met earlier is forgotten, as CPUs do; the rest stays until
    /// software clears it.
    fn note_met(&mut self, met: u64) {
        self.dr6 = self.dr6 & !dr6::BREAKPOINTS | met;
    }

    /// A #DB is about to be delivered: general detection and branch records are switched off.
    pub(super) fn note_debug_trap(&mut self) {
        self.dr7 &= !dr7::GD;
        self.msr.debugctl &= !3;
    }

    /// Notes breakpoints on an I/O port (CR4.DE and kind 2).
    pub(super) fn note_io_breakpoints(&mut self, port: u16, bytes: u8) {
        if self.dr7 & 0xff == 0 || self.cr4 & cr4::DE == 0 {
            return;
        }
        let (first, last) = (u64::from(port), u64::from(port) + u64::from(bytes) - 1);
        let mut met = 0;
        let mut armed = false;
        for number in 0..4 {
            let len = [1u64, 2, 8, 4][(self.dr7 >> (18 + number * 4) & 3) as usize];
            let start = self.dr[number] & !(len - 1);
            if kind(self, number) == 2 && start <= last && first < start + len {
                met |= 1 << number;
                armed |= is_armed(self, number);
            }
        }
        if armed {
            self.pending_debug |= met;
        }
    }
}

/// The checks that both directions share; gives the register's real number.
fn check_access(cpu: &mut Cpu, number: u8) -> Result<u8, Stop> {
    let real = match number {
        4 | 5 if cpu.cr4 & cr4::DE != 0 => return Err(Stop::ud()),
        4 | 5 => number + 2,
        0..=7 => number,
        _ => return Err(Stop::ud()),
    };
    if cpu.cpl != 0 {
        return Err(Stop::gp(0));
    }
    if cpu.dr7 & dr7::GD != 0 {
        cpu.note_met(dr6::BD);
        return Err(Stop::plain(vector::DB));
    }
    Ok(real)
}

fn read_register<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = match check_access(cpu, op.reg)? {
        6 => cpu.dr6,
        7 => cpu.dr7,
        number => cpu.dr[usize::from(number & 3)],
    };
    cpu.set_reg(op.rm, BYTES, value);
    Ok(())
}

fn write_register<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let number = check_access(cpu, op.reg)?;
    let value = cpu.reg(op.rm, BYTES);
    match number {
        6 | 7 if value >> 32 != 0 => return Err(Stop::gp(0)),
        6 => cpu.dr6 = value & dr6::WRITABLE | dr6::ONES,
        7 => cpu.dr7 = value & dr7::WRITABLE | dr7::ONES,
        number => cpu.dr[usize::from(number & 3)] = value,
    }
    // Pages with breakpoints must not be in the TLB's first level, and traces must not run past instruction breakpoints.
    cpu.tlb.flush();
    Err(Stop::EndTrace)
}
