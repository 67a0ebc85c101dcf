//! String instructions: MOVS, STOS, LODS, SCAS, CMPS, INS, OUTS, alone and repeated.
//!
//! A repeated instruction works through at most [`BUDGET`] elements and then asks to be run again, so that interrupts get
//! their turn. RCX, RSI and RDI are committed element by element: a fault leaves them at the element that failed. MOVS and STOS move
//! whole runs within a page when both pages are in the TLB.

use super::cpu::{Cpu, reg, seg};
use super::fault::{Exec, Stop};
use super::flags::bit;
use super::interp_alu::{Binary, Cmp};
use super::interp_integer::{Int, by_size};
use super::op::{Handler, Op, OpFlags};
use super::system;
use iced_x86::{Code, Instruction};

/// Most elements between two polls.
const BUDGET: u64 = 4096;
/// Most port accesses between two polls.
const PORT_BUDGET: u64 = 512;

/// The handler of an instruction of this file.
pub(super) fn handler(instruction: &Instruction) -> Option<Handler> {
    macro_rules! forms {
        ($bytes:expr, $operation:ident) => {
            if instruction.has_rep_prefix() || instruction.has_repne_prefix() {
                by_size!($bytes, repeat, $operation)
            } else {
                by_size!($bytes, once, $operation)
            }
        };
    }
    Some(match instruction.code() {
        Code::Movsb_m8_m8 => forms!(1, Move),
        Code::Movsw_m16_m16 => forms!(2, Move),
        Code::Movsd_m32_m32 => forms!(4, Move),
        Code::Movsq_m64_m64 => forms!(8, Move),
        Code::Stosb_m8_AL => forms!(1, Store),
        Code::Stosw_m16_AX => forms!(2, Store),
        Code::Stosd_m32_EAX => forms!(4, Store),
        Code::Stosq_m64_RAX => forms!(8, Store),
        Code::Lodsb_AL_m8 => forms!(1, Load),
        Code::Lodsw_AX_m16 => forms!(2, Load),
        Code::Lodsd_EAX_m32 => forms!(4, Load),
        Code::Lodsq_RAX_m64 => forms!(8, Load),
        Code::Scasb_AL_m8 => forms!(1, Scan),
        Code::Scasw_AX_m16 => forms!(2, Scan),
        Code::Scasd_EAX_m32 => forms!(4, Scan),
        Code::Scasq_RAX_m64 => forms!(8, Scan),
        Code::Cmpsb_m8_m8 => forms!(1, Compare),
        Code::Cmpsw_m16_m16 => forms!(2, Compare),
        Code::Cmpsd_m32_m32 => forms!(4, Compare),
        Code::Cmpsq_m64_m64 => forms!(8, Compare),
        Code::Insb_m8_DX => forms!(1, Input),
        Code::Insw_m16_DX => forms!(2, Input),
        Code::Insd_m32_DX => forms!(4, Input),
        Code::Outsb_DX_m8 => forms!(1, Output),
        Code::Outsw_DX_m16 => forms!(2, Output),
        Code::Outsd_DX_m32 => forms!(4, Output),
        _ => return None,
    })
}

/// One string operation.
trait Operation: 'static {
    /// Whether REPE and REPNE look at ZF.
    const TESTS: bool = false;
    const USES_SOURCE: bool;
    const USES_DESTINATION: bool;
    const BUDGET: u64 = BUDGET;
    /// What is checked even if there is nothing to do.
    fn permit<T: Int>(_cpu: &mut Cpu) -> Exec {
        Ok(())
    }
    /// One element at the given offsets; moves no pointers.
    fn element<T: Int>(cpu: &mut Cpu, op: &Op, source: u64, destination: u64) -> Exec;
    /// Up to `count` elements upwards at once; gives how many were done: 0 when it has to go element by element.
    fn run<T: Int>(_cpu: &mut Cpu, _op: &Op, _source: u64, _destination: u64, _count: u64) -> u64 {
        0
    }
}

fn step<T: Int>(cpu: &Cpu) -> u64 {
    if cpu.flags.has(bit::DF) { T::BYTES.wrapping_neg() } else { T::BYTES }
}

/// Adds to an address register in the address size.
#[inline(always)]
fn advance(cpu: &mut Cpu, op: &Op, register: u8, by: u64) {
    let whole = &mut cpu.gpr[usize::from(register)];
    let mask = op.address_mask();
    let new = whole.wrapping_add(by) & mask;
    // 16-bit addresses leave the rest of the register alone, 32-bit ones clear it.
    *whole = if op.address_shift == 48 { *whole & !mask | new } else { new };
}

#[inline(always)]
fn one<O: Operation, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let mask = op.address_mask();
    let (source, destination) = (cpu.gpr[usize::from(reg::SI)] & mask, cpu.gpr[usize::from(reg::DI)] & mask);
    O::element::<T>(cpu, op, source, destination)?;
    let step = step::<T>(cpu);
    if O::USES_SOURCE {
        advance(cpu, op, reg::SI, step);
    }
    if O::USES_DESTINATION {
        advance(cpu, op, reg::DI, step);
    }
    Ok(())
}

fn once<O: Operation, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    one::<O, T>(cpu, op)
}

fn repeat<O: Operation, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let mask = op.address_mask();
    let mut left = cpu.gpr[usize::from(reg::CX)] & mask;
    if left == 0 {
        return O::permit::<T>(cpu);
    }
    // Under single step and breakpoints each element is an instruction.
    let mut budget = if cpu.is_watched() { 1 } else { O::BUDGET };
    while budget > 0 {
        let (source, destination) = (cpu.gpr[usize::from(reg::SI)] & mask, cpu.gpr[usize::from(reg::DI)] & mask);
        let done =
            if budget > 1 && !cpu.flags.has(bit::DF) { O::run::<T>(cpu, op, source, destination, left.min(budget)) } else { 0 };
        if done > 0 {
            if O::USES_SOURCE {
                advance(cpu, op, reg::SI, done * T::BYTES);
            }
            if O::USES_DESTINATION {
                advance(cpu, op, reg::DI, done * T::BYTES);
            }
        } else {
            one::<O, T>(cpu, op)?;
        }
        let done = done.max(1);
        advance(cpu, op, reg::CX, done.wrapping_neg());
        left -= done;
        budget -= done.min(budget);
        if O::TESTS && cpu.flags.zf() == op.flags.contains(OpFlags::REPNE) {
            return Ok(());
        }
        if left == 0 {
            return Ok(());
        }
    }
    Err(Stop::Again)
}

struct Move;
impl Operation for Move {
    const USES_SOURCE: bool = true;
    const USES_DESTINATION: bool = true;

    fn element<T: Int>(cpu: &mut Cpu, op: &Op, source: u64, destination: u64) -> Exec {
        let value = cpu.read::<T>(op.segment, source)?;
        cpu.write(seg::ES, destination, value)
    }

    fn run<T: Int>(cpu: &mut Cpu, op: &Op, source: u64, destination: u64, count: u64) -> u64 {
        let count = count.min(cpu.elements_in_page::<T>(op.segment, source)).min(cpu.elements_in_page::<T>(seg::ES, destination));
        let bytes = count * T::BYTES;
        if count < 2 || !fits(op, source, bytes) || !fits(op, destination, bytes) {
            return 0;
        }
        let (Some(from), Some(to)) =
            (cpu.run_read_pointer(op.segment, source, bytes), cpu.run_write_pointer(seg::ES, destination, bytes))
        else {
            return 0;
        };
        // A destination just above the source repeats what it overtakes, element by element.
        if (to as u64).wrapping_sub(from as u64) < bytes && to.cast_const() != from {
            return 0;
        }
        // SAFETY: both runs are inside pages that the TLB holds.
        unsafe { copy_upwards(from, to, bytes) };
        count
    }
}

struct Store;
impl Operation for Store {
    const USES_SOURCE: bool = false;
    const USES_DESTINATION: bool = true;

    fn element<T: Int>(cpu: &mut Cpu, _: &Op, _: u64, destination: u64) -> Exec {
        let value = T::get(cpu, reg::AX);
        cpu.write(seg::ES, destination, value)
    }

    fn run<T: Int>(cpu: &mut Cpu, op: &Op, _: u64, destination: u64, count: u64) -> u64 {
        let count = count.min(cpu.elements_in_page::<T>(seg::ES, destination));
        let bytes = count * T::BYTES;
        if count < 2 || !fits(op, destination, bytes) {
            return 0;
        }
        let Some(to) = cpu.run_write_pointer(seg::ES, destination, bytes) else { return 0 };
        let value = T::get(cpu, reg::AX);
        // SAFETY: the run is inside a page that the TLB holds.
        unsafe { fill_upwards(to, value, count) };
        count
    }
}

struct Load;
impl Operation for Load {
    const USES_SOURCE: bool = true;
    const USES_DESTINATION: bool = false;

    fn element<T: Int>(cpu: &mut Cpu, op: &Op, source: u64, _: u64) -> Exec {
        cpu.read::<T>(op.segment, source)?.set(cpu, reg::AX);
        Ok(())
    }
}

struct Scan;
impl Operation for Scan {
    const TESTS: bool = true;
    const USES_SOURCE: bool = false;
    const USES_DESTINATION: bool = true;

    fn element<T: Int>(cpu: &mut Cpu, _: &Op, _: u64, destination: u64) -> Exec {
        let value = cpu.read::<T>(seg::ES, destination)?;
        let accumulator = T::get(cpu, reg::AX);
        Cmp::run(&mut cpu.flags, accumulator, value);
        Ok(())
    }
}

struct Compare;
impl Operation for Compare {
    const TESTS: bool = true;
    const USES_SOURCE: bool = true;
    const USES_DESTINATION: bool = true;

    fn element<T: Int>(cpu: &mut Cpu, op: &Op, source: u64, destination: u64) -> Exec {
        // The destination goes first on the CPUs at hand: seen when both pages are missing.
        let b = cpu.read::<T>(seg::ES, destination)?;
        let a = cpu.read::<T>(op.segment, source)?;
        Cmp::run(&mut cpu.flags, a, b);
        Ok(())
    }
}

struct Input;
impl Operation for Input {
    const USES_SOURCE: bool = false;
    const USES_DESTINATION: bool = true;
    const BUDGET: u64 = PORT_BUDGET;

    fn permit<T: Int>(cpu: &mut Cpu) -> Exec {
        let port = cpu.reg16(reg::DX);
        system::check_port(cpu, port, T::BYTES as u8)
    }

    fn element<T: Int>(cpu: &mut Cpu, _: &Op, _: u64, destination: u64) -> Exec {
        let port = cpu.reg16(reg::DX);
        system::check_port(cpu, port, T::BYTES as u8)?;
        // What a port gives is gone once read, so the store must not fault.
        cpu.probe_write(seg::ES, destination, T::BYTES)?;
        cpu.sync_clock();
        let value = cpu.io().port_read(port, T::BYTES as u8);
        cpu.after_io();
        cpu.write(seg::ES, destination, T::cut(u64::from(value)))
    }
}

struct Output;
impl Operation for Output {
    const USES_SOURCE: bool = true;
    const USES_DESTINATION: bool = false;
    const BUDGET: u64 = PORT_BUDGET;

    fn permit<T: Int>(cpu: &mut Cpu) -> Exec {
        let port = cpu.reg16(reg::DX);
        system::check_port(cpu, port, T::BYTES as u8)
    }

    fn element<T: Int>(cpu: &mut Cpu, op: &Op, source: u64, _: u64) -> Exec {
        let port = cpu.reg16(reg::DX);
        system::check_port(cpu, port, T::BYTES as u8)?;
        let value = cpu.read::<T>(op.segment, source)?;
        cpu.sync_clock();
        cpu.io().port_write(port, T::BYTES as u8, value.zx() as u32);
        cpu.after_io();
        Ok(())
    }
}

/// Whether a run does not wrap around the address size.
fn fits(op: &Op, start: u64, bytes: u64) -> bool {
    start.checked_add(bytes - 1).is_some_and(|last| last <= op.address_mask())
}

/// Fills upwards as STOS does.
///
/// # Safety
/// The run of `count` elements is inside a block of guest memory that is kept alive.
unsafe fn fill_upwards<T: Int>(to: *mut u8, value: T, count: u64) {
    #[cfg(target_arch = "x86_64")]
    {
        // All bytes alike: what hosts are fastest at, and nearly all fills are of zeros.
        let bytes = value.zx().to_le_bytes();
        if bytes[..T::BYTES as usize].iter().all(|byte| *byte == bytes[0]) {
            // SAFETY: the caller vouches for the memory; DF is clear in Rust code.
            unsafe {
                std::arch::asm!(
                    "rep stosb",
                    inout("rcx") count * T::BYTES => _,
                    inout("rdi") to => _,
                    in("al") bytes[0],
                    options(nostack, preserves_flags)
                );
            }
            return;
        }
    }
    for at in 0..count {
        // SAFETY: the caller vouches for the memory.
        unsafe { value.store(to.wrapping_add((at * T::BYTES) as usize)) };
    }
}

/// Copies upwards as MOVS does.
///
/// # Safety
/// Both runs are inside blocks of guest memory that are kept alive.
unsafe fn copy_upwards(from: *const u8, to: *mut u8, bytes: u64) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller vouches for the memory; DF is clear in Rust code.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") bytes => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    for at in 0..bytes as usize {
        // SAFETY: as above.
        unsafe { to.wrapping_add(at).write_volatile(from.wrapping_add(at).read_volatile()) };
    }
}
