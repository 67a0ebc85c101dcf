//! Shifts and rotates. Counts are taken modulo 32 (64 for 64-bit operands); a count of zero changes no flag. OF is defined for
//! counts of one only; for others it gets what current processors give, which is the same formula.

use super::cpu::{Cpu, reg};
use super::fault::Exec;
use super::flags::Flags;
use super::interp_integer::{Form, Int, by_size, by_wide_size, form, operand_bytes};
use super::op::{Handler, Op};
use iced_x86::{Instruction, Mnemonic, OpKind};

trait Shift: 'static {
    /// `count` is not zero.
    fn run<T: Int>(flags: &mut Flags, a: T, count: u32) -> T;
}

macro_rules! shift {
    ($name:ident, |$flags:ident, $a:ident, $count:ident| $body:expr) => {
        struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn run<T: Int>($flags: &mut Flags, $a: T, $count: u32) -> T {
                $body
            }
        }
    };
}

fn top<T: Int>(value: u64) -> bool {
    value >> (T::BITS - 1) & 1 != 0
}

shift!(Shl, |flags, a, count| {
    let wide = u128::from(a.zx()) << count;
    let result = T::cut(wide as u64);
    let cf = wide >> T::BITS & 1 != 0;
    flags.set_result(result.sx(), cf, cf != top::<T>(result.zx()), false);
    result
});
shift!(Shr, |flags, a, count| {
    let result = T::cut(a.zx().checked_shr(count).unwrap_or(0));
    let cf = a.zx().checked_shr(count - 1).unwrap_or(0) & 1 != 0;
    // For a count of one: the sign bit of the operand.
    flags.set_result(result.sx(), cf, top::<T>(result.zx()) != top::<T>(result.zx() << 1), false);
    result
});
shift!(Sar, |flags, a, count| {
    let wide = a.sx() as i64;
    let result = T::cut((wide >> count.min(63)) as u64);
    let cf = wide >> (count - 1).min(63) & 1 != 0;
    flags.set_result(result.sx(), cf, false, false);
    result
});
shift!(Rol, |flags, a, count| {
    let result = rotated_left::<T>(a.zx(), count);
    let cf = result & 1 != 0;
    flags.set_cf(cf);
    flags.set_of(cf != top::<T>(result));
    T::cut(result)
});
shift!(Ror, |flags, a, count| {
    let result = rotated_left::<T>(a.zx(), T::BITS - count % T::BITS);
    flags.set_cf(top::<T>(result));
    flags.set_of(top::<T>(result) != top::<T>(result << 1));
    T::cut(result)
});
shift!(Rcl, |flags, a, count| {
    let count = count % (T::BITS + 1);
    if count == 0 {
        // Whole turns through the carry: nothing moves, but OF follows the formula.
        let cf = flags.cf();
        flags.set_of(cf != top::<T>(a.zx()));
        return a;
    }
    let ring = u128::from(a.zx()) | u128::from(flags.cf()) << T::BITS;
    let turned = ring << count | ring >> (T::BITS + 1 - count);
    let (result, cf) = (T::cut(turned as u64), turned >> T::BITS & 1 != 0);
    flags.set_cf(cf);
    flags.set_of(cf != top::<T>(result.zx()));
    result
});
shift!(Rcr, |flags, a, count| {
    let count = count % (T::BITS + 1);
    if count == 0 {
        flags.set_of(top::<T>(a.zx()) != top::<T>(a.zx() << 1));
        return a;
    }
    let ring = u128::from(a.zx()) | u128::from(flags.cf()) << T::BITS;
    let turned = ring >> count | ring << (T::BITS + 1 - count);
    let (result, cf) = (T::cut(turned as u64), turned >> T::BITS & 1 != 0);
    flags.set_cf(cf);
    flags.set_of(top::<T>(result.zx()) != top::<T>(result.zx() << 1));
    result
});

fn rotated_left<T: Int>(value: u64, count: u32) -> u64 {
    let count = count % T::BITS;
    if count == 0 { value } else { (value << count | value >> (T::BITS - count)) & T::MASK }
}

/// The handler of an instruction of this file.
pub(super) fn handler(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => shift::<Shl>(instruction),
        Mnemonic::Shr => shift::<Shr>(instruction),
        Mnemonic::Sar => shift::<Sar>(instruction),
        Mnemonic::Rol => shift::<Rol>(instruction),
        Mnemonic::Ror => shift::<Ror>(instruction),
        Mnemonic::Rcl => shift::<Rcl>(instruction),
        Mnemonic::Rcr => shift::<Rcr>(instruction),
        Mnemonic::Shld => double::<Left>(instruction),
        Mnemonic::Shrd => double::<Right>(instruction),
        _ => return None,
    })
}

fn shift<S: Shift>(instruction: &Instruction) -> Handler {
    let bytes = operand_bytes(instruction, 0);
    let by_cl = instruction.op_kind(1) == OpKind::Register;
    match (instruction.op_kind(0) == OpKind::Memory, by_cl) {
        (false, false) => by_size!(bytes, register_immediate, S),
        (false, true) => by_size!(bytes, register_cl, S),
        (true, false) => by_size!(bytes, memory_immediate, S),
        (true, true) => by_size!(bytes, memory_cl, S),
    }
}

fn masked<T: Int>(count: u64) -> u32 {
    count as u32 & if T::BITS == 64 { 63 } else { 31 }
}

fn register_immediate<S: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    register::<S, T>(cpu, op, masked::<T>(op.imm))
}

fn register_cl<S: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    register::<S, T>(cpu, op, masked::<T>(cpu.gpr[usize::from(reg::CX)]))
}

#[inline(always)]
fn register<S: Shift, T: Int>(cpu: &mut Cpu, op: &Op, count: u32) -> Exec {
    let a = T::get(cpu, op.rm);
    // A count of zero changes nothing, but a 32-bit operand still loses its upper half.
    let result = if count == 0 { a } else { S::run(&mut cpu.flags, a, count) };
    result.set(cpu, op.rm);
    Ok(())
}

fn memory_immediate<S: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    memory::<S, T>(cpu, op, masked::<T>(op.imm))
}

fn memory_cl<S: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    memory::<S, T>(cpu, op, masked::<T>(cpu.gpr[usize::from(reg::CX)]))
}

#[inline(always)]
fn memory<S: Shift, T: Int>(cpu: &mut Cpu, op: &Op, count: u32) -> Exec {
    cpu.modify(op.segment, cpu.operand_address(op), |flags, a: T| if count == 0 { a } else { S::run(flags, a, count) })
}

trait Double: 'static {
    fn run<T: Int>(flags: &mut Flags, a: T, b: T, count: u32) -> T;
}

struct Left;
impl Double for Left {
    fn run<T: Int>(flags: &mut Flags, a: T, b: T, count: u32) -> T {
        // 16-bit operands with counts above 16 are undefined; processors shift the first operand in again.
        let wide = if T::BITS == 16 {
            u128::from(a.zx()) << 32 | u128::from(b.zx()) << 16 | u128::from(a.zx())
        } else {
            u128::from(a.zx()) << T::BITS | u128::from(b.zx())
        };
        let below = if T::BITS == 16 { 32 } else { T::BITS };
        let result = T::cut((wide << count >> below) as u64);
        let cf = wide >> (below + T::BITS - count) & 1 != 0;
        flags.set_result(result.sx(), cf, top::<T>(result.zx()) != top::<T>(a.zx()), false);
        result
    }
}

struct Right;
impl Double for Right {
    fn run<T: Int>(flags: &mut Flags, a: T, b: T, count: u32) -> T {
        let wide = if T::BITS == 16 {
            u128::from(a.zx()) | u128::from(b.zx()) << 16 | u128::from(a.zx()) << 32
        } else {
            u128::from(a.zx()) | u128::from(b.zx()) << T::BITS
        };
        let result = T::cut((wide >> count) as u64);
        let cf = wide >> (count - 1) & 1 != 0;
        flags.set_result(result.sx(), cf, top::<T>(result.zx()) != top::<T>(a.zx()), false);
        result
    }
}

fn double<D: Double>(instruction: &Instruction) -> Handler {
    let bytes = operand_bytes(instruction, 0);
    let by_cl = instruction.op_kind(2) == OpKind::Register;
    match (form(instruction), by_cl) {
        (Form::MemoryRegister, false) => by_wide_size!(bytes, double_memory_immediate, D),
        (Form::MemoryRegister, true) => by_wide_size!(bytes, double_memory_cl, D),
        (_, false) => by_wide_size!(bytes, double_register_immediate, D),
        (_, true) => by_wide_size!(bytes, double_register_cl, D),
    }
}

fn double_register_immediate<D: Double, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    double_register::<D, T>(cpu, op, masked::<T>(op.imm))
}

fn double_register_cl<D: Double, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    double_register::<D, T>(cpu, op, masked::<T>(cpu.gpr[usize::from(reg::CX)]))
}

#[inline(always)]
fn double_register<D: Double, T: Int>(cpu: &mut Cpu, op: &Op, count: u32) -> Exec {
    let (a, b) = (T::get(cpu, op.rm), T::get(cpu, op.reg));
    let result = if count == 0 { a } else { D::run(&mut cpu.flags, a, b, count) };
    result.set(cpu, op.rm);
    Ok(())
}

fn double_memory_immediate<D: Double, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    double_memory::<D, T>(cpu, op, masked::<T>(op.imm))
}

fn double_memory_cl<D: Double, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    double_memory::<D, T>(cpu, op, masked::<T>(cpu.gpr[usize::from(reg::CX)]))
}

#[inline(always)]
fn double_memory<D: Double, T: Int>(cpu: &mut Cpu, op: &Op, count: u32) -> Exec {
    let b = T::get(cpu, op.reg);
    cpu.modify(op.segment, cpu.operand_address(op), |flags, a: T| if count == 0 { a } else { D::run(flags, a, b, count) })
}
