//! x87: the register stack, its tags and faults, and what instructions do with the results that [`super::host_fp`] brings
//! back from the host's x87.
//!
//! An unmasked exception is only noted (ES, B) and is raised by the next waiting instruction: #MF, or with CR0.NE clear the
//! FERR# pin. The pointers of the last instruction and operand are kept; the last opcode is only kept for one that raised an
//! unmasked exception, as on every CPU since the Pentium 4. Environments and the instruction table are `x87_table.rs`.
//! See: Intel SDM volume 1, chapter 8; volume 2, each instruction.

use super::cpu::{Cpu, cr0, seg};
use super::fault::{Exec, Stop, vector};
use super::flags::bit;
use super::host_fp::{Frame, Fxam, Operation, Report};
use super::op::Op;

/// Status word.
pub(super) const INVALID: u16 = 1 << 0;
const ZERO_DIVIDE: u16 = 1 << 2;
const STACK_FAULT: u16 = 1 << 6;
/// ES and its copy B.
const SUMMARY: u16 = 1 << 7 | 1 << 15;
const C0: u16 = 1 << 8;
const C1: u16 = 1 << 9;
const C2: u16 = 1 << 10;
const C3: u16 = 1 << 14;
const EXCEPTIONS: u16 = 0x3f;
/// Found before anything is computed: unmasked, they leave the operands alone.
const BEFORE: u16 = INVALID | 1 << 1 | ZERO_DIVIDE;

/// The "real indefinite" quiet NaN, the masked answer to an invalid operation.
pub(super) const INDEFINITE: u128 = 0xffff_c000_0000_0000_0000;
const SIGN: u128 = 1 << 79;

// ---- State -----------------------------------------------------------------------------------------------------

/// The physical register that ST(`i`) is.
#[inline(always)]
fn physical(cpu: &Cpu, i: u8) -> usize {
    usize::from(((cpu.fpu.status >> 11) as u8 + i) & 7)
}

/// ST(`i`), whether or not it is empty.
#[inline(always)]
pub(super) fn stack_register(cpu: &Cpu, i: u8) -> u128 {
    cpu.fpu.registers[physical(cpu, i)]
}

#[inline(always)]
fn is_empty(cpu: &Cpu, i: u8) -> bool {
    cpu.fpu.tags >> physical(cpu, i) & 1 == 0
}

/// Sets ST(`i`), which is then not empty.
#[inline(always)]
fn set(cpu: &mut Cpu, i: u8, value: u128) {
    let at = physical(cpu, i);
    cpu.fpu.registers[at] = value;
    cpu.fpu.tags |= 1 << at;
}

#[inline(always)]
fn turn(cpu: &mut Cpu, by: u16) {
    let fpu = &mut cpu.fpu;
    fpu.status = fpu.status & !0x3800 | fpu.status.wrapping_add(by << 11) & 0x3800;
}

#[inline(always)]
fn pop(cpu: &mut Cpu) {
    let at = physical(cpu, 0);
    cpu.fpu.tags &= !(1 << at);
    turn(cpu, 1);
}

#[inline(always)]
fn push(cpu: &mut Cpu, value: u128) {
    turn(cpu, 7);
    set(cpu, 0, value);
}

/// The control word as a load leaves it: bit 6 is always set, 7 and 13 to 15 do not exist.
pub(super) fn valid_control(value: u16) -> u16 {
    value & 0x1f3f | 0x40
}

/// ES and B from the flags and masks: after the control word or the flags have been loaded.
#[inline(always)]
pub(super) fn update_summary(cpu: &mut Cpu) {
    let fpu = &mut cpu.fpu;
    if fpu.status & !fpu.control & EXCEPTIONS != 0 {
        fpu.status |= SUMMARY;
    } else {
        fpu.status &= !SUMMARY;
    }
    cpu.x87_control_changed();
}

/// What FNINIT leaves. The registers keep their contents.
pub(super) fn initialise(cpu: &mut Cpu) {
    let fpu = &mut cpu.fpu;
    fpu.control = 0x37f;
    fpu.status = 0;
    fpu.tags = 0;
    fpu.opcode = 0;
    (fpu.instruction_pointer, fpu.instruction_segment) = (0, 0);
    (fpu.data_pointer, fpu.data_segment) = (0, 0);
    cpu.x87_control_changed();
}

// ---- Preconditions ---------------------------------------------------------------------------------------------

/// #NM of every x87 instruction but WAIT.
#[inline(always)]
pub(super) fn available(cpu: &Cpu) -> Exec {
    if cpu.cr0 & (cr0::EM | cr0::TS) != 0 { Err(Stop::nm()) } else { Ok(()) }
}

/// Waiting instructions raise a pending exception: #MF, or FERR#.
#[inline(always)]
pub(super) fn raise_pending(cpu: &mut Cpu) -> Exec {
    if cpu.fpu.status & SUMMARY == 0 {
        return Ok(());
    }
    pending(cpu)
}

#[cold]
fn pending(cpu: &mut Cpu) -> Exec {
    if cpu.cr0 & cr0::NE != 0 {
        return Err(Stop::plain(vector::MF));
    }
    // PC style: the exception is an interrupt (IRQ 13). The CPU would wait for it here unless IGNNE# is active; we go on, as
    // if it were, because the interrupt arrives at the next poll.
    cpu.io().set_ferr();
    Ok(())
}

/// What a waiting instruction does first. Notes the instruction's address.
#[inline(always)]
pub(super) fn begin(cpu: &mut Cpu, op: &Op) -> Exec {
    available(cpu)?;
    raise_pending(cpu)?;
    let _ = op;
    Ok(())
}

/// Notes instruction and operand as the last ones: when the instruction is sure to be done.
#[inline(always)]
fn note(cpu: &mut Cpu, op: &Op) {
    let selector = cpu.segments[usize::from(seg::CS)].selector;
    cpu.fpu.instruction_pointer = cpu.rip.wrapping_sub(u64::from(op.len));
    cpu.fpu.instruction_segment = selector;
    if op.has_memory() {
        let offset = cpu.operand_address(op);
        cpu.fpu.data_pointer = offset;
        cpu.fpu.data_segment = cpu.segments[usize::from(op.segment) % 6].selector;
    }
}

// ---- Outcomes --------------------------------------------------------------------------------------------------

/// Adds exception flags; the condition codes in `defined` become those of `condition`.
#[inline(always)]
fn finish(cpu: &mut Cpu, op: &Op, exceptions: u16, condition: u16, defined: u16) {
    let fpu = &mut cpu.fpu;
    fpu.status = fpu.status & !defined | condition & defined | exceptions & (EXCEPTIONS | STACK_FAULT);
    if exceptions & !fpu.control & EXCEPTIONS != 0 {
        unmasked(cpu, op);
    }
    note(cpu, op);
}

#[cold]
fn unmasked(cpu: &mut Cpu, op: &Op) {
    cpu.fpu.status |= SUMMARY;
    // The opcode's eleven bits, from memory: nobody keeps them for the rare case that somebody asks.
    let start = cpu.rip.wrapping_sub(u64::from(op.len));
    let mut bytes = (0..u64::from(op.len)).map_while(|i| cpu.read::<u8>(seg::CS, start.wrapping_add(i)).ok());
    if let Some(first) = bytes.find(|byte| byte & 0xf8 == 0xd8)
        && let Some(second) = bytes.next()
    {
        cpu.fpu.opcode = u16::from(first & 7) << 8 | u16::from(second);
    }
}

#[inline(always)]
fn is_masked(cpu: &Cpu, exception: u16) -> bool {
    cpu.fpu.control & exception == exception
}

/// A read of an empty register. The caller gives the masked answer if this says so.
#[cold]
fn underflow(cpu: &mut Cpu, op: &Op) -> bool {
    finish(cpu, op, INVALID | STACK_FAULT, 0, C1);
    is_masked(cpu, INVALID)
}

/// A push on a register that is not empty.
#[cold]
fn overflow(cpu: &mut Cpu, op: &Op) -> bool {
    finish(cpu, op, INVALID | STACK_FAULT, C1, C1);
    is_masked(cpu, INVALID)
}

/// Whether a report contains an unmasked exception that leaves the operands as they were.
#[inline(always)]
fn stopped(cpu: &Cpu, report: Report) -> bool {
    report.exceptions() & BEFORE & !cpu.fpu.control != 0
}

// ---- Operands --------------------------------------------------------------------------------------------------

/// A memory operand's format.
pub(super) trait Format {
    /// Bytes.
    const BYTES: u64;
    /// The masked answer to storing what cannot be stored.
    const INDEFINITE: u128;
}

macro_rules! formats {
    ($($(#[$doc:meta])* $Name:ident $bytes:literal $indefinite:literal;)*) => {$(
        $(#[$doc])*
        pub(super) struct $Name;
        impl Format for $Name {
            const BYTES: u64 = $bytes;
            const INDEFINITE: u128 = $indefinite;
        }
    )*};
}

formats! {
    /// Single real.
    Single 4 0xffc0_0000;
    /// Double real.
    Double 8 0xfff8_0000_0000_0000;
    /// Extended real.
    Extended 10 0xffff_c000_0000_0000_0000;
    /// Word integer.
    Word 2 0x8000;
    /// Double-word integer.
    Short 4 0x8000_0000;
    /// Quad-word integer.
    Long 8 0x8000_0000_0000_0000;
    /// Packed decimal.
    Decimal 10 0xffff_c000_0000_0000_0000;
}

#[inline(always)]
fn read<F: Format>(cpu: &mut Cpu, op: &Op) -> Result<u128, Stop> {
    let offset = cpu.operand_address(op);
    Ok(match F::BYTES {
        2 => u128::from(cpu.read::<u16>(op.segment, offset)?),
        4 => u128::from(cpu.read::<u32>(op.segment, offset)?),
        8 => u128::from(cpu.read::<u64>(op.segment, offset)?),
        _ => {
            let low = cpu.read::<u64>(op.segment, offset)?;
            let high = cpu.read::<u16>(op.segment, offset.wrapping_add(8) & op.address_mask())?;
            u128::from(low) | u128::from(high) << 64
        }
    })
}

/// Raises what a store would raise.
fn probe<F: Format>(cpu: &mut Cpu, op: &Op) -> Exec {
    let offset = cpu.operand_address(op);
    // The alignment of ten bytes is that of a quad word.
    cpu.probe_write(op.segment, offset, F::BYTES.min(8))?;
    cpu.probe_write(op.segment, offset, F::BYTES)
}

#[inline(always)]
fn write<F: Format>(cpu: &mut Cpu, op: &Op, value: u128) -> Exec {
    let offset = cpu.operand_address(op);
    match F::BYTES {
        2 => cpu.write(op.segment, offset, value as u16),
        4 => cpu.write(op.segment, offset, value as u32),
        8 => cpu.write(op.segment, offset, value as u64),
        _ => {
            probe::<F>(cpu, op)?;
            cpu.write(op.segment, offset, value as u64)?;
            cpu.write(op.segment, offset.wrapping_add(8) & op.address_mask(), (value >> 64) as u16)
        }
    }
}

// ---- Arithmetic ------------------------------------------------------------------------------------------------

/// `ST(0) ← ST(0) O ST(i)`
pub(super) fn arithmetic<O: Operation>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    binary::<O>(cpu, op, 0, op.rm);
    Ok(())
}

/// `ST(i) ← ST(i) O ST(0)`
pub(super) fn arithmetic_to<O: Operation>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    binary::<O>(cpu, op, op.rm, 0);
    Ok(())
}

/// `ST(i) ← ST(i) O ST(0)`, then pop
pub(super) fn arithmetic_pop<O: Operation>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    if binary::<O>(cpu, op, op.rm, 0) {
        pop(cpu);
    }
    Ok(())
}

/// Whether there is a result (and a pop follows, if one does).
#[inline(always)]
fn binary<O: Operation>(cpu: &mut Cpu, op: &Op, to: u8, with: u8) -> bool {
    if is_empty(cpu, to) || is_empty(cpu, with) {
        let masked = underflow(cpu, op);
        if masked {
            set(cpu, to, INDEFINITE);
        }
        return masked;
    }
    let mut frame: Frame = [stack_register(cpu, to), stack_register(cpu, with)];
    let report = O::run(cpu.fpu.control, &mut frame);
    let stopped = stopped(cpu, report);
    set(cpu, to, frame[0]);
    finish(cpu, op, report.exceptions(), report.condition(), C1);
    !stopped
}

/// `ST(0) ← ST(0) O memory`
pub(super) fn arithmetic_memory<O: Operation, F: Format>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    let operand = read::<F>(cpu, op)?;
    if is_empty(cpu, 0) {
        if underflow(cpu, op) {
            set(cpu, 0, INDEFINITE);
        }
        return Ok(());
    }
    let mut frame: Frame = [stack_register(cpu, 0), operand];
    let report = O::run(cpu.fpu.control, &mut frame);
    set(cpu, 0, frame[0]);
    finish(cpu, op, report.exceptions(), report.condition(), C1);
    Ok(())
}

/// `ST(0) ← O ST(0)`; `DEFINED` are the condition codes that it sets.
pub(super) fn unary<O: Operation, const DEFINED: u16>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    if is_empty(cpu, 0) {
        cpu.fpu.status &= !(DEFINED & C2);
        if underflow(cpu, op) {
            set(cpu, 0, INDEFINITE);
        }
        return Ok(());
    }
    let mut frame: Frame = [stack_register(cpu, 0), 0];
    let report = O::run(cpu.fpu.control, &mut frame);
    set(cpu, 0, frame[0]);
    finish(cpu, op, report.exceptions(), report.condition(), DEFINED);
    Ok(())
}

/// `ST(0) ← ST(0) O ST(1)`: FPREM, FPREM1, FSCALE
pub(super) fn unary_with_next<O: Operation, const DEFINED: u16>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    if is_empty(cpu, 0) || is_empty(cpu, 1) {
        cpu.fpu.status &= !(DEFINED & C2);
        if underflow(cpu, op) {
            set(cpu, 0, INDEFINITE);
        }
        return Ok(());
    }
    let mut frame: Frame = [stack_register(cpu, 0), stack_register(cpu, 1)];
    let report = O::run(cpu.fpu.control, &mut frame);
    let stopped = stopped(cpu, report);
    set(cpu, 0, frame[0]);
    // Without a remainder there is no quotient: C0 and C3 stay.
    let quotient = !stopped && frame[0] >> 64 & 0x7fff != 0x7fff;
    let defined = if quotient { DEFINED } else { DEFINED & (C1 | C2) };
    finish(cpu, op, report.exceptions(), report.condition(), defined);
    Ok(())
}

/// `ST(1) ← ST(0) O ST(1)`, then pop: FPATAN, FYL2X, FYL2XP1
pub(super) fn into_next<O: Operation>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    if is_empty(cpu, 0) || is_empty(cpu, 1) {
        if underflow(cpu, op) {
            set(cpu, 1, INDEFINITE);
            pop(cpu);
        }
        return Ok(());
    }
    let mut frame: Frame = [stack_register(cpu, 0), stack_register(cpu, 1)];
    let report = O::run(cpu.fpu.control, &mut frame);
    if report.depth() == 1 {
        set(cpu, 1, frame[0]);
        pop(cpu);
    } else {
        set(cpu, 0, frame[0]);
        set(cpu, 1, frame[1]);
    }
    finish(cpu, op, report.exceptions(), report.condition(), C1);
    Ok(())
}

/// One operand, two results: FPTAN, FSINCOS, FXTRACT
pub(super) fn splitting<O: Operation, const DEFINED: u16>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    if is_empty(cpu, 0) {
        cpu.fpu.status &= !(DEFINED & C2);
        if underflow(cpu, op) {
            set(cpu, 0, INDEFINITE);
            push(cpu, INDEFINITE);
        }
        return Ok(());
    }
    if !is_empty(cpu, 7) {
        cpu.fpu.status &= !(DEFINED & C2);
        if overflow(cpu, op) {
            set(cpu, 0, INDEFINITE);
            push(cpu, INDEFINITE);
        }
        return Ok(());
    }
    let mut frame: Frame = [stack_register(cpu, 0), 0];
    let report = O::run(cpu.fpu.control, &mut frame);
    if report.depth() == 2 {
        set(cpu, 0, frame[1]);
        push(cpu, frame[0]);
    } else {
        set(cpu, 0, frame[0]);
    }
    finish(cpu, op, report.exceptions(), report.condition(), DEFINED);
    Ok(())
}

/// FABS, FCHS: only the sign bit, whatever the operand.
pub(super) fn sign<const NEGATE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    if is_empty(cpu, 0) {
        if underflow(cpu, op) {
            set(cpu, 0, INDEFINITE);
        }
        return Ok(());
    }
    let value = stack_register(cpu, 0);
    set(cpu, 0, if NEGATE { value ^ SIGN } else { value & !SIGN });
    finish(cpu, op, 0, 0, C1);
    Ok(())
}

// ---- Comparisons -----------------------------------------------------------------------------------------------

const UNORDERED: u16 = C0 | C2 | C3;
const COMPARED: u16 = UNORDERED | C1;

/// FCOM, FUCOM with ST(i), FCOMPP, FUCOMPP; then `POPS` pops.
pub(super) fn compare<O: Operation, const POPS: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    // FCOMPP and FUCOMPP name no register.
    let with = if POPS == 2 { 1 } else { op.rm };
    let operand = stack_register(cpu, with);
    let empty = is_empty(cpu, with);
    comparison::<O, POPS>(cpu, op, operand, empty);
    Ok(())
}

/// FCOM, FICOM with memory
pub(super) fn compare_memory<O: Operation, F: Format, const POPS: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    let operand = read::<F>(cpu, op)?;
    comparison::<O, POPS>(cpu, op, operand, false);
    Ok(())
}

/// FTST
pub(super) fn compare_zero<O: Operation>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    comparison::<O, 0>(cpu, op, 0, false);
    Ok(())
}

#[inline(always)]
fn comparison<O: Operation, const POPS: u8>(cpu: &mut Cpu, op: &Op, operand: u128, empty: bool) {
    if empty || is_empty(cpu, 0) {
        let masked = underflow(cpu, op);
        cpu.fpu.status |= UNORDERED;
        if masked {
            (0..POPS).for_each(|_| pop(cpu));
        }
        return;
    }
    let mut frame: Frame = [stack_register(cpu, 0), operand];
    let report = O::run(cpu.fpu.control, &mut frame);
    finish(cpu, op, report.exceptions(), report.condition(), COMPARED);
    // Unmasked exceptions answer but do not pop.
    (report.depth()..O::OPERANDS).for_each(|_| pop(cpu));
}

/// FCOMI, FUCOMI and their popping forms: the answer goes to RFLAGS.
pub(super) fn compare_flags<O: Operation, const POPS: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    let unordered = bit::ZF | bit::PF | bit::CF;
    if is_empty(cpu, 0) || is_empty(cpu, op.rm) {
        cpu.flags.set_arithmetic(unordered);
        if underflow(cpu, op) {
            (0..POPS).for_each(|_| pop(cpu));
        }
        return Ok(());
    }
    let mut frame: Frame = [stack_register(cpu, 0), stack_register(cpu, op.rm)];
    let report = O::run(cpu.fpu.control, &mut frame);
    finish(cpu, op, report.exceptions(), 0, 0);
    cpu.flags.set_arithmetic(report.rflags() & unordered);
    (report.depth()..O::OPERANDS).for_each(|_| pop(cpu));
    Ok(())
}

/// FXAM
pub(super) fn examine(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    let value = stack_register(cpu, 0);
    let condition = if is_empty(cpu, 0) {
        C3 | C0 | if value & SIGN != 0 { C1 } else { 0 }
    } else {
        Fxam::run(cpu.fpu.control, &mut [value, 0]).condition()
    };
    finish(cpu, op, 0, condition, COMPARED);
    Ok(())
}

// ---- Loads and stores ------------------------------------------------------------------------------------------

/// FLD, FILD, FBLD: memory to a new ST(0)
pub(super) fn load<O: Operation, F: Format>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    let operand = read::<F>(cpu, op)?;
    push_result::<O>(cpu, op, operand);
    Ok(())
}

/// FLD1 and the other constants
pub(super) fn constant<O: Operation>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    push_result::<O>(cpu, op, 0);
    Ok(())
}

#[inline(always)]
fn push_result<O: Operation>(cpu: &mut Cpu, op: &Op, operand: u128) {
    if !is_empty(cpu, 7) {
        if overflow(cpu, op) {
            push(cpu, INDEFINITE);
        }
        return;
    }
    let mut frame: Frame = [0, operand];
    let report = O::run(cpu.fpu.control, &mut frame);
    finish(cpu, op, report.exceptions(), report.condition(), C1);
    if report.depth() == 1 {
        push(cpu, frame[0]);
    }
}

/// FLD m80: no conversion, no exception but the stack's.
pub(super) fn load_extended(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    let value = read::<Extended>(cpu, op)?;
    if !is_empty(cpu, 7) {
        if overflow(cpu, op) {
            push(cpu, INDEFINITE);
        }
        return Ok(());
    }
    push(cpu, value);
    finish(cpu, op, 0, 0, C1);
    Ok(())
}

/// FLD ST(i)
pub(super) fn load_register(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    if is_empty(cpu, op.rm) {
        if underflow(cpu, op) {
            push(cpu, INDEFINITE);
        }
        return Ok(());
    }
    if !is_empty(cpu, 7) {
        if overflow(cpu, op) {
            push(cpu, INDEFINITE);
        }
        return Ok(());
    }
    let value = stack_register(cpu, op.rm);
    push(cpu, value);
    finish(cpu, op, 0, 0, C1);
    Ok(())
}

/// FST, FIST, FISTTP, FBSTP: ST(0) to memory, then `POPS` pops
pub(super) fn store<O: Operation, F: Format, const POPS: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    if is_empty(cpu, 0) {
        if is_masked(cpu, INVALID) {
            write::<F>(cpu, op, F::INDEFINITE)?;
        } else {
            probe::<F>(cpu, op)?;
        }
        if underflow(cpu, op) {
            (0..POPS).for_each(|_| pop(cpu));
        }
        return Ok(());
    }
    let mut frame: Frame = [stack_register(cpu, 0), 0];
    let report = O::run(cpu.fpu.control, &mut frame);
    if report.depth() == 0 {
        write::<F>(cpu, op, frame[1])?;
    } else {
        probe::<F>(cpu, op)?;
    }
    finish(cpu, op, report.exceptions(), report.condition(), C1);
    if report.depth() == 0 {
        (0..POPS).for_each(|_| pop(cpu));
    }
    Ok(())
}

/// FSTP m80
pub(super) fn store_extended(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    if is_empty(cpu, 0) {
        if is_masked(cpu, INVALID) {
            write::<Extended>(cpu, op, Extended::INDEFINITE)?;
        } else {
            probe::<Extended>(cpu, op)?;
        }
        if underflow(cpu, op) {
            pop(cpu);
        }
        return Ok(());
    }
    let value = stack_register(cpu, 0);
    write::<Extended>(cpu, op, value)?;
    finish(cpu, op, 0, 0, C1);
    pop(cpu);
    Ok(())
}

/// FST ST(i), FSTP ST(i)
pub(super) fn store_register<const POPS: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    if is_empty(cpu, 0) {
        if underflow(cpu, op) {
            set(cpu, op.rm, INDEFINITE);
            (0..POPS).for_each(|_| pop(cpu));
        }
        return Ok(());
    }
    let value = stack_register(cpu, 0);
    set(cpu, op.rm, value);
    finish(cpu, op, 0, 0, C1);
    (0..POPS).for_each(|_| pop(cpu));
    Ok(())
}

/// D9 D8+i: an FSTP that does not mind an empty ST(0)
pub(super) fn store_unchecked(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    if !is_empty(cpu, 0) {
        let value = stack_register(cpu, 0);
        set(cpu, op.rm, value);
    }
    finish(cpu, op, 0, 0, C1);
    pop(cpu);
    Ok(())
}

/// FXCH
pub(super) fn exchange(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    if is_empty(cpu, 0) || is_empty(cpu, op.rm) {
        if !underflow(cpu, op) {
            return Ok(());
        }
        for i in [0, op.rm] {
            if is_empty(cpu, i) {
                set(cpu, i, INDEFINITE);
            }
        }
    }
    let (first, second) = (stack_register(cpu, 0), stack_register(cpu, op.rm));
    set(cpu, 0, second);
    set(cpu, op.rm, first);
    finish(cpu, op, 0, 0, C1);
    Ok(())
}

/// FCMOVcc
pub(super) fn move_if<const CONDITION: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    if is_empty(cpu, 0) || is_empty(cpu, op.rm) {
        if underflow(cpu, op) {
            set(cpu, 0, INDEFINITE);
        }
        return Ok(());
    }
    if cpu.condition::<CONDITION>() {
        let value = stack_register(cpu, op.rm);
        set(cpu, 0, value);
    }
    note(cpu, op);
    Ok(())
}

// ---- Control ---------------------------------------------------------------------------------------------------

/// FINCSTP (1), FDECSTP (7)
pub(super) fn rotate<const BY: u16>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    turn(cpu, BY);
    finish(cpu, op, 0, 0, C1);
    Ok(())
}

/// FFREE, and FFREEP with `POPS` 1
pub(super) fn free<const POPS: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    cpu.fpu.tags &= !(1 << physical(cpu, op.rm));
    note(cpu, op);
    (0..POPS).for_each(|_| pop(cpu));
    Ok(())
}

/// FNOP
pub(super) fn nothing(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    note(cpu, op);
    Ok(())
}

/// FNENI, FNDISI, FNSETPM: 8087 and 287 instructions that later coprocessors ignore.
pub(super) fn ignored(cpu: &mut Cpu, _op: &Op) -> Exec {
    available(cpu)
}

/// WAIT
pub(super) fn wait(cpu: &mut Cpu, _op: &Op) -> Exec {
    if cpu.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
        return Err(Stop::nm());
    }
    raise_pending(cpu)
}

/// FNINIT
pub(super) fn init(cpu: &mut Cpu, _op: &Op) -> Exec {
    available(cpu)?;
    initialise(cpu);
    Ok(())
}

/// FNCLEX
pub(super) fn clear_exceptions(cpu: &mut Cpu, _op: &Op) -> Exec {
    available(cpu)?;
    cpu.fpu.status &= !(EXCEPTIONS | STACK_FAULT | SUMMARY);
    Ok(())
}

/// FLDCW
pub(super) fn load_control(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    let value = read::<Word>(cpu, op)?;
    cpu.fpu.control = valid_control(value as u16);
    update_summary(cpu);
    Ok(())
}

/// FNSTCW
pub(super) fn store_control(cpu: &mut Cpu, op: &Op) -> Exec {
    available(cpu)?;
    write::<Word>(cpu, op, u128::from(cpu.fpu.control))
}

/// FNSTSW m16
pub(super) fn store_status(cpu: &mut Cpu, op: &Op) -> Exec {
    available(cpu)?;
    write::<Word>(cpu, op, u128::from(cpu.fpu.status))
}

/// FNSTSW AX
pub(super) fn store_status_ax(cpu: &mut Cpu, _op: &Op) -> Exec {
    available(cpu)?;
    cpu.set_reg16(super::cpu::reg::AX, cpu.fpu.status);
    Ok(())
}
