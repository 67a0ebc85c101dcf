//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT, XADD, CMPXCHG, CMPXCHG8B/16B, in all operand forms, plain
//! and locked.

use super::cpu::{Cpu, reg};
use super::fault::{Exec, Stop};
use super::flags::Flags;
use super::interp_integer::{Form, Int, by_size, form, only_general_registers, operand_bytes};
use super::op::{Handler, Op};
use iced_x86::{Instruction, Mnemonic};

/// A two-operand operation.
pub(super) trait Binary: 'static {
    /// Whether the result is written back.
    const WRITES: bool = true;
    /// Computes the result (not cut to size) and sets flags.
    fn run<T: Int>(flags: &mut Flags, a: T, b: T) -> T;
}

/// A one-operand operation.
pub(super) trait Unary: 'static {
    fn run<T: Int>(flags: &mut Flags, a: T) -> T;
}

fn sum<T: Int>(flags: &mut Flags, a: u64, b: u64, carry: u64) -> T {
    let result = T::cut(a.wrapping_add(b).wrapping_add(carry));
    let r = result.sx();
    let carries = (a & b | (a | b) & !r) & T::MASK;
    set_carries::<T>(flags, r, carries);
    result
}

fn difference<T: Int>(flags: &mut Flags, a: u64, b: u64, borrow: u64) -> T {
    let result = T::cut(a.wrapping_sub(b).wrapping_sub(borrow));
    let r = result.sx();
    let carries = (!a & b | (!a | b) & r) & T::MASK;
    set_carries::<T>(flags, r, carries);
    result
}

#[inline(always)]
fn set_carries<T: Int>(flags: &mut Flags, result: u64, carries: u64) {
    match T::BITS {
        8 => flags.set_carries::<8>(result, carries),
        16 => flags.set_carries::<16>(result, carries),
        32 => flags.set_carries::<32>(result, carries),
        _ => flags.set_carries::<64>(result, carries),
    }
}

#[inline(always)]
fn set_carries_keep_cf<T: Int>(flags: &mut Flags, result: u64, carries: u64) {
    match T::BITS {
        8 => flags.set_carries_keep_cf::<8>(result, carries),
        16 => flags.set_carries_keep_cf::<16>(result, carries),
        32 => flags.set_carries_keep_cf::<32>(result, carries),
        _ => flags.set_carries_keep_cf::<64>(result, carries),
    }
}

macro_rules! binary {
    ($name:ident, $writes:literal, |$flags:ident, $a:ident, $b:ident| $body:expr) => {
        pub(super) struct $name;
        impl Binary for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn run<T: Int>($flags: &mut Flags, $a: T, $b: T) -> T {
                $body
            }
        }
    };
}

fn logic<T: Int>(flags: &mut Flags, result: u64) -> T {
    let result = T::cut(result);
    flags.set_logic(result.sx());
    result
}

binary!(Add, true, |flags, a, b| sum(flags, a.zx(), b.zx(), 0));
binary!(Adc, true, |flags, a, b| {
    let carry = u64::from(flags.cf());
    sum(flags, a.zx(), b.zx(), carry)
});
binary!(Sub, true, |flags, a, b| difference(flags, a.zx(), b.zx(), 0));
binary!(Sbb, true, |flags, a, b| {
    let borrow = u64::from(flags.cf());
    difference(flags, a.zx(), b.zx(), borrow)
});
binary!(Cmp, false, |flags, a, b| difference(flags, a.zx(), b.zx(), 0));
binary!(And, true, |flags, a, b| logic(flags, a.zx() & b.zx()));
binary!(Or, true, |flags, a, b| logic(flags, a.zx() | b.zx()));
binary!(Xor, true, |flags, a, b| logic(flags, a.zx() ^ b.zx()));
binary!(Test, false, |flags, a, b| logic(flags, a.zx() & b.zx()));

macro_rules! unary {
    ($name:ident, |$flags:ident, $a:ident| $body:expr) => {
        pub(super) struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn run<T: Int>($flags: &mut Flags, $a: T) -> T {
                $body
            }
        }
    };
}

unary!(Inc, |flags, a| {
    let (a, result) = (a.zx(), T::cut(a.zx().wrapping_add(1)));
    let r = result.sx();
    set_carries_keep_cf::<T>(flags, r, (a & 1 | (a | 1) & !r) & T::MASK);
    result
});
unary!(Dec, |flags, a| {
    let (a, result) = (a.zx(), T::cut(a.zx().wrapping_sub(1)));
    let r = result.sx();
    set_carries_keep_cf::<T>(flags, r, (!a & 1 | (!a | 1) & r) & T::MASK);
    result
});
unary!(Neg, |flags, a| difference(flags, 0, a.zx(), 0));
unary!(Not, |_flags, a| T::cut(!a.zx()));

/// The handler of an instruction of this file.
pub(super) fn handler(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Add => binary::<Add>(instruction),
        Mnemonic::Or => binary::<Or>(instruction),
        Mnemonic::Adc => binary::<Adc>(instruction),
        Mnemonic::Sbb => binary::<Sbb>(instruction),
        Mnemonic::And => binary::<And>(instruction),
        Mnemonic::Sub => binary::<Sub>(instruction),
        Mnemonic::Xor => binary::<Xor>(instruction),
        Mnemonic::Cmp => binary::<Cmp>(instruction),
        Mnemonic::Test if only_general_registers(instruction) => binary::<Test>(instruction),
        Mnemonic::Inc => unary::<Inc>(instruction),
        Mnemonic::Dec => unary::<Dec>(instruction),
        Mnemonic::Neg => unary::<Neg>(instruction),
        Mnemonic::Not => unary::<Not>(instruction),
        Mnemonic::Xadd => {
            let bytes = operand_bytes(instruction, 0);
            match form(instruction) {
                Form::MemoryRegister => by_size!(bytes, exchange_add_memory),
                _ => by_size!(bytes, exchange_add),
            }
        }
        Mnemonic::Cmpxchg => {
            let bytes = operand_bytes(instruction, 0);
            match form(instruction) {
                Form::MemoryRegister => by_size!(bytes, compare_exchange_memory),
                _ => by_size!(bytes, compare_exchange),
            }
        }
        Mnemonic::Cmpxchg8b => compare_exchange_8,
        Mnemonic::Cmpxchg16b => compare_exchange_16,
        _ => return None,
    })
}

fn binary<A: Binary>(instruction: &Instruction) -> Handler {
    let bytes = operand_bytes(instruction, 0);
    match (form(instruction), instruction.has_lock_prefix()) {
        (Form::RegisterRegister, _) => by_size!(bytes, register_register, A),
        (Form::ReversedRegisters, _) => by_size!(bytes, reversed_registers, A),
        (Form::RegisterMemory, _) => by_size!(bytes, register_memory, A),
        (Form::RegisterImmediate | Form::Register, _) => by_size!(bytes, register_immediate, A),
        (Form::MemoryRegister, false) => by_size!(bytes, memory_register, A),
        (Form::MemoryRegister, true) => by_size!(bytes, locked_register, A),
        (_, false) => by_size!(bytes, memory_immediate, A),
        (_, true) => by_size!(bytes, locked_immediate, A),
    }
}

fn register_register<A: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (a, b) = (T::get(cpu, op.rm), T::get(cpu, op.reg));
    let result = A::run(&mut cpu.flags, a, b);
    if A::WRITES {
        result.set(cpu, op.rm);
    }
    Ok(())
}

fn reversed_registers<A: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (a, b) = (T::get(cpu, op.reg), T::get(cpu, op.rm));
    let result = A::run(&mut cpu.flags, a, b);
    if A::WRITES {
        result.set(cpu, op.reg);
    }
    Ok(())
}

fn register_immediate<A: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let a = T::get(cpu, op.rm);
    let result = A::run(&mut cpu.flags, a, T::cut(op.imm));
    if A::WRITES {
        result.set(cpu, op.rm);
    }
    Ok(())
}

fn register_memory<A: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let b = cpu.read::<T>(op.segment, cpu.operand_address(op))?;
    let a = T::get(cpu, op.reg);
    let result = A::run(&mut cpu.flags, a, b);
    if A::WRITES {
        result.set(cpu, op.reg);
    }
    Ok(())
}

fn memory_register<A: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let b = T::get(cpu, op.reg);
    memory::<A, T>(cpu, op, b)
}

fn memory_immediate<A: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    memory::<A, T>(cpu, op, T::cut(op.imm))
}

#[inline(always)]
fn memory<A: Binary, T: Int>(cpu: &mut Cpu, op: &Op, b: T) -> Exec {
    let at = cpu.operand_address(op);
    if A::WRITES {
        cpu.modify(op.segment, at, |flags, a| A::run(flags, a, b))
    } else {
        let a = cpu.read::<T>(op.segment, at)?;
        A::run(&mut cpu.flags, a, b);
        Ok(())
    }
}

fn locked_register<A: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let b = T::get(cpu, op.reg);
    cpu.modify_locked(op.segment, cpu.operand_address(op), |flags, a| A::run(flags, a, b)).map(|_: T| ())
}

fn locked_immediate<A: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let b = T::cut(op.imm);
    cpu.modify_locked(op.segment, cpu.operand_address(op), |flags, a| A::run(flags, a, b)).map(|_: T| ())
}

fn unary<A: Unary>(instruction: &Instruction) -> Handler {
    let bytes = operand_bytes(instruction, 0);
    match (form(instruction), instruction.has_lock_prefix()) {
        (Form::Memory, false) => by_size!(bytes, unary_memory, A),
        (Form::Memory, true) => by_size!(bytes, unary_locked, A),
        _ => by_size!(bytes, unary_register, A),
    }
}

fn unary_register<A: Unary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let a = T::get(cpu, op.rm);
    A::run(&mut cpu.flags, a).set(cpu, op.rm);
    Ok(())
}

fn unary_memory<A: Unary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.modify(op.segment, cpu.operand_address(op), |flags, a: T| A::run(flags, a))
}

fn unary_locked<A: Unary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.modify_locked(op.segment, cpu.operand_address(op), |flags, a: T| A::run(flags, a)).map(|_| ())
}

fn exchange_add<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (a, b) = (T::get(cpu, op.rm), T::get(cpu, op.reg));
    let result: T = Add::run(&mut cpu.flags, a, b);
    a.set(cpu, op.reg);
    result.set(cpu, op.rm);
    Ok(())
}

fn exchange_add_memory<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (at, b) = (cpu.operand_address(op), T::get(cpu, op.reg));
    let old = cpu.modify_locked(op.segment, at, |flags, a| Add::run(flags, a, b))?;
    old.set(cpu, op.reg);
    Ok(())
}

fn compare_exchange<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (accumulator, old) = (T::get(cpu, reg::AX), T::get(cpu, op.rm));
    Cmp::run(&mut cpu.flags, accumulator, old);
    if cpu.flags.zf() {
        T::get(cpu, op.reg).set(cpu, op.rm);
    } else {
        old.set(cpu, reg::AX);
    }
    Ok(())
}

fn compare_exchange_memory<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (accumulator, new) = (T::get(cpu, reg::AX), T::get(cpu, op.reg));
    // A failed comparison writes the old value back, as the hardware does: page faults are those of a write either way.
    let old = cpu.modify_locked(op.segment, cpu.operand_address(op), |flags, old: T| {
        Cmp::run(flags, accumulator, old);
        if flags.zf() { new } else { old }
    })?;
    if !cpu.flags.zf() {
        old.set(cpu, reg::AX);
    }
    Ok(())
}

fn compare_exchange_8(cpu: &mut Cpu, op: &Op) -> Exec {
    let expected = u64::from(cpu.reg32(reg::AX)) | u64::from(cpu.reg32(reg::DX)) << 32;
    let new = u64::from(cpu.reg32(reg::BX)) | u64::from(cpu.reg32(reg::CX)) << 32;
    let at = cpu.operand_address(op);
    let old = cpu.modify_locked(op.segment, at, |flags, old: u64| {
        flags.set_zf(old == expected);
        if old == expected { new } else { old }
    })?;
    if old != expected {
        cpu.set_reg32(reg::AX, old as u32);
        cpu.set_reg32(reg::DX, (old >> 32) as u32);
    }
    Ok(())
}

fn compare_exchange_16(cpu: &mut Cpu, op: &Op) -> Exec {
    let at = cpu.operand_address(op);
    let linear = cpu.spans[usize::from(op.segment & 7)].base.wrapping_add(at);
    if linear & 15 != 0 {
        return Err(Stop::gp(0));
    }
    let expected = u128::from(cpu.reg64(reg::AX)) | u128::from(cpu.reg64(reg::DX)) << 64;
    let new = u128::from(cpu.reg64(reg::BX)) | u128::from(cpu.reg64(reg::CX)) << 64;
    let old = cpu.compare_exchange_wide(op.segment, at, expected, new)?;
    cpu.flags.set_zf(old == expected);
    if old != expected {
        cpu.set_reg64(reg::AX, old as u64);
        cpu.set_reg64(reg::DX, (old >> 64) as u64);
    }
    Ok(())
}
