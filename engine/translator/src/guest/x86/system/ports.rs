//! IN and OUT: permission, the access, I/O breakpoints.

use super::super::cpu::{Cpu, reg};
use super::super::fault::{Exec, Stop};
use super::super::op::{Handler, Op};
use iced_x86::Code;

pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code {
        Code::In_AL_imm8 => input::<1, true>,
        Code::In_AX_imm8 => input::<2, true>,
        Code::In_EAX_imm8 => input::<4, true>,
        Code::In_AL_DX => input::<1, false>,
        Code::In_AX_DX => input::<2, false>,
        Code::In_EAX_DX => input::<4, false>,
        Code::Out_imm8_AL => output::<1, true>,
        Code::Out_imm8_AX => output::<2, true>,
        Code::Out_imm8_EAX => output::<4, true>,
        Code::Out_DX_AL => output::<1, false>,
        Code::Out_DX_AX => output::<2, false>,
        Code::Out_DX_EAX => output::<4, false>,
        _ => return None,
    })
}

fn input<const BYTES: u8, const IMMEDIATE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let port = port::<IMMEDIATE>(cpu, op);
    cpu.check_io(port, BYTES)?;
    cpu.note_io_breakpoints(port, BYTES);
    cpu.sync_clock();
    let value = cpu.in_device(|io| io.port_read(port, BYTES));
    cpu.set_reg(reg::AX, BYTES, u64::from(value));
    finish(cpu)
}

fn output<const BYTES: u8, const IMMEDIATE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let port = port::<IMMEDIATE>(cpu, op);
    cpu.check_io(port, BYTES)?;
    cpu.note_io_breakpoints(port, BYTES);
    cpu.sync_clock();
    let value = cpu.reg(reg::AX, BYTES) as u32;
    cpu.in_device(|io| io.port_write(port, BYTES, value));
    finish(cpu)
}

fn port<const IMMEDIATE: bool>(cpu: &Cpu, op: &Op) -> u16 {
    if IMMEDIATE { op.imm as u8 as u16 } else { cpu.reg16(reg::DX) }
}

/// The access may have moved memory, raised an interrupt or asked for a reset: look before going on.
fn finish(cpu: &mut Cpu) -> Exec {
    cpu.after_io();
    Err(Stop::EndTrace)
}
