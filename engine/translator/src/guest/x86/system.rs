//! The system instructions and what happens between instructions: segments, far transfers, tasks, exceptions, interrupts,
//! control and debug registers, MSRs, CPUID, ports. One file each; this one is the table and the run loop's way in.

mod control;
mod debug;
mod exceptions;
mod far;
mod fast_calls;
mod interrupts;
mod msr;
mod ports;
mod segments;
mod stack;
mod tasks;

#[allow(unused_imports, reason = "for the block translator")]
pub(super) use fast_calls::flat;

use super::cpu::Cpu;
use super::fault::{Exception, Exec};
use super::op::Handler;
use iced_x86::{Code, Instruction};

/// The handler of a system instruction.
pub(super) fn handler(code: Code, _instruction: &Instruction) -> Option<Handler> {
    segments::handler(code)
        .or_else(|| far::handler(code))
        .or_else(|| interrupts::handler(code))
        .or_else(|| control::handler(code))
        .or_else(|| debug::handler(code))
        .or_else(|| msr::handler(code))
        .or_else(|| fast_calls::handler(code))
        .or_else(|| ports::handler(code))
}

/// Whether the current privilege level may use `bytes` ports from `port` on: IOPL, or the TSS's permission bitmap. Notes I/O
/// breakpoints.
pub(super) fn check_port(cpu: &mut Cpu, port: u16, bytes: u8) -> Exec {
    cpu.check_io(port, bytes)?;
    cpu.note_io_breakpoints(port, bytes);
    Ok(())
}

/// Delivers a fault of an instruction: pushes the frame and enters the handler, or escalates to #DF and
/// [`super::fault::Stop::TripleFault`]. `cpu.rip` is the faulting instruction's start.
pub(super) fn deliver(cpu: &mut Cpu, exception: Exception) -> Exec {
    cpu.deliver(exception)
}

/// Between instructions, when the local APIC has raised its attention bit or `cpu.events_waiting` is set: takes over INIT,
/// start-up, NMI and the timer, and delivers at most one interrupt if RFLAGS.IF, the shadow and priorities allow it. What
/// cannot be delivered yet leaves `cpu.events_waiting` set. Ends a halt (`cpu.activity`). Err is only TripleFault or EndTrace.
pub(super) fn service_events(cpu: &mut Cpu) -> Exec {
    interrupts::service_events(cpu)
}

/// After an instruction with `cpu.pending_debug` set (data breakpoints; bit 14 is single step): delivers #DB as a trap.
pub(super) fn debug_trap(cpu: &mut Cpu) -> Exec {
    debug::debug_trap(cpu)
}

/// #DB if a breakpoint is on the instruction at `cpu.rip`, unless RF holds it back.
pub(super) fn check_instruction(cpu: &mut Cpu) -> Exec {
    debug::check_instruction(cpu)
}
