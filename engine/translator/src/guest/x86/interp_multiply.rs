//! MUL, IMUL, DIV, IDIV.

use super::cpu::{Cpu, reg};
use super::fault::{Exec, Stop};
use super::interp_integer::{Int, by_size, by_wide_size, operand_bytes};
use super::op::{HIGH_BYTE, Handler, Op};
use iced_x86::{Instruction, Mnemonic};

/// The handler of an instruction of this file.
pub(super) fn handler(instruction: &Instruction) -> Option<Handler> {
    let bytes = if instruction.op_count() > 0 { operand_bytes(instruction, 0) } else { 0 };
    Some(match (instruction.mnemonic(), instruction.op_count()) {
        (Mnemonic::Mul, _) => by_size!(bytes, multiply),
        (Mnemonic::Imul, 1) => by_size!(bytes, multiply_signed),
        (Mnemonic::Imul, 2) => by_wide_size!(bytes, multiply_register),
        (Mnemonic::Imul, _) => by_wide_size!(bytes, multiply_immediate),
        (Mnemonic::Div, _) => by_size!(bytes, divide),
        (Mnemonic::Idiv, _) => by_size!(bytes, divide_signed),
        _ => return None,
    })
}

#[inline(always)]
fn source<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<T, Stop> {
    if op.has_memory() { cpu.read(op.segment, cpu.operand_address(op)) } else { Ok(T::get(cpu, op.rm)) }
}

/// Puts a double-width result into AX, or DX:AX and its wider forms.
fn set_wide<T: Int>(cpu: &mut Cpu, low: u64, high: u64) {
    T::cut(low).set(cpu, reg::AX);
    T::cut(high).set(cpu, if T::BITS == 8 { reg::AX | HIGH_BYTE } else { reg::DX });
}

fn multiply<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let b = source::<T>(cpu, op)?.zx();
    let product = u128::from(T::get(cpu, reg::AX).zx()) * u128::from(b);
    let (low, high) = (T::cut(product as u64), T::cut((product >> T::BITS) as u64));
    set_wide::<T>(cpu, low.zx(), high.zx());
    let overflow = high.zx() != 0;
    cpu.flags.set_result(low.sx(), overflow, overflow, false);
    Ok(())
}

fn multiply_signed<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let b = source::<T>(cpu, op)?.sx() as i64;
    let product = i128::from(T::get(cpu, reg::AX).sx() as i64) * i128::from(b);
    let low = T::cut(product as u64);
    set_wide::<T>(cpu, low.zx(), (product >> T::BITS) as u64);
    let overflow = i128::from(low.sx() as i64) != product;
    cpu.flags.set_result(low.sx(), overflow, overflow, false);
    Ok(())
}

#[inline(always)]
fn product<T: Int>(cpu: &mut Cpu, op: &Op, a: i64, b: i64) {
    let product = i128::from(a) * i128::from(b);
    let low = T::cut(product as u64);
    low.set(cpu, op.reg);
    let overflow = i128::from(low.sx() as i64) != product;
    cpu.flags.set_result(low.sx(), overflow, overflow, false);
}

fn multiply_register<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let b = source::<T>(cpu, op)?.sx() as i64;
    let a = T::get(cpu, op.reg).sx() as i64;
    product::<T>(cpu, op, a, b);
    Ok(())
}

fn multiply_immediate<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let a = source::<T>(cpu, op)?.sx() as i64;
    product::<T>(cpu, op, a, T::cut(op.imm).sx() as i64);
    Ok(())
}

/// The dividend: AX, or DX:AX and its wider forms.
fn dividend<T: Int>(cpu: &Cpu) -> u128 {
    let high = if T::BITS == 8 { reg::AX | HIGH_BYTE } else { reg::DX };
    u128::from(T::get(cpu, reg::AX).zx()) | u128::from(T::get(cpu, high).zx()) << T::BITS
}

fn divide<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let divisor = source::<T>(cpu, op)?.zx();
    let dividend = dividend::<T>(cpu);
    if divisor == 0 {
        return Err(Stop::de());
    }
    let (quotient, remainder) = match (u64::try_from(dividend), T::BITS) {
        // 128-bit division is slow on every host; most dividends fit in less.
        (Ok(small), _) => (u128::from(small / divisor), small % divisor),
        _ => (dividend / u128::from(divisor), (dividend % u128::from(divisor)) as u64),
    };
    if quotient > u128::from(T::MASK) {
        return Err(Stop::de());
    }
    set_wide::<T>(cpu, quotient as u64, remainder);
    Ok(())
}

fn divide_signed<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let divisor = source::<T>(cpu, op)?.sx() as i64;
    let raw = dividend::<T>(cpu);
    if divisor == 0 {
        return Err(Stop::de());
    }
    let unused = 128 - 2 * T::BITS;
    let dividend = (raw << unused) as i128 >> unused;
    let (quotient, remainder) = match i64::try_from(dividend) {
        Ok(small) if small != i64::MIN => (i128::from(small / divisor), small % divisor),
        // The one case that i128 cannot do: the lowest value divided by -1.
        _ => match dividend.checked_div(i128::from(divisor)) {
            Some(quotient) => (quotient, (dividend % i128::from(divisor)) as i64),
            None => return Err(Stop::de()),
        },
    };
    if i128::from(T::cut(quotient as u64).sx() as i64) != quotient {
        return Err(Stop::de());
    }
    set_wide::<T>(cpu, quotient as u64, remainder as u64);
    Ok(())
}
