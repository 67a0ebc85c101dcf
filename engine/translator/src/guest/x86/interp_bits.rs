//! BT, BTS, BTR, BTC (with bit offsets that reach beyond the operand), BSF, BSR, POPCNT, CRC32.

use super::cpu::Cpu;
use super::fault::Exec;
use super::flags::{Flags, bit};
use super::interp_integer::{Form, Int, by_size, by_wide_size, form, operand_bytes};
use super::op::{Handler, Op};
use iced_x86::{Instruction, Mnemonic};

trait Change: 'static {
    const WRITES: bool = true;
    fn run(value: u64, bit: u64) -> u64;
}

macro_rules! change {
    ($name:ident, $writes:literal, |$value:ident, $bit:ident| $body:expr) => {
        struct $name;
        impl Change for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn run($value: u64, $bit: u64) -> u64 {
                $body
            }
        }
    };
}
change!(Look, false, |value, _bit| value);
change!(Set, true, |value, bit| value | bit);
change!(Reset, true, |value, bit| value & !bit);
change!(Complement, true, |value, bit| value ^ bit);

/// The handler of an instruction of this file.
pub(super) fn handler(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Bt => test::<Look>(instruction),
        Mnemonic::Bts => test::<Set>(instruction),
        Mnemonic::Btr => test::<Reset>(instruction),
        Mnemonic::Btc => test::<Complement>(instruction),
        Mnemonic::Bsf => by_wide_size!(operand_bytes(instruction, 0), scan_forward),
        Mnemonic::Bsr => by_wide_size!(operand_bytes(instruction, 0), scan_reverse),
        Mnemonic::Popcnt => by_wide_size!(operand_bytes(instruction, 0), count_ones),
        Mnemonic::Crc32 => by_size!(operand_bytes(instruction, 1), crc32),
        _ => return None,
    })
}

fn test<C: Change>(instruction: &Instruction) -> Handler {
    let bytes = operand_bytes(instruction, 0);
    let locked = instruction.has_lock_prefix();
    match form(instruction) {
        Form::MemoryRegister if locked => by_wide_size!(bytes, locked_register, C),
        Form::MemoryRegister => by_wide_size!(bytes, memory_register, C),
        Form::MemoryImmediate if locked => by_wide_size!(bytes, locked_immediate, C),
        Form::MemoryImmediate => by_wide_size!(bytes, memory_immediate, C),
        Form::RegisterImmediate => by_wide_size!(bytes, register_immediate, C),
        _ => by_wide_size!(bytes, register_register, C),
    }
}

#[inline(always)]
fn apply<C: Change, T: Int>(flags: &mut Flags, value: T, number: u64) -> T {
    let mask = 1 << (number & u64::from(T::BITS - 1));
    flags.set_cf(value.zx() & mask != 0);
    T::cut(C::run(value.zx(), mask))
}

fn register_register<C: Change, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let number = T::get(cpu, op.reg).zx();
    register::<C, T>(cpu, op, number)
}

fn register_immediate<C: Change, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    register::<C, T>(cpu, op, op.imm)
}

#[inline(always)]
fn register<C: Change, T: Int>(cpu: &mut Cpu, op: &Op, number: u64) -> Exec {
    let value = T::get(cpu, op.rm);
    let result = apply::<C, T>(&mut cpu.flags, value, number);
    if C::WRITES {
        result.set(cpu, op.rm);
    }
    Ok(())
}

/// Where the operand lies that holds bit `number` (signed) of the bit string at the op's address.
fn element<T: Int>(cpu: &Cpu, op: &Op, number: u64) -> u64 {
    let step = (number as i64 >> T::BITS.trailing_zeros()) * T::BYTES as i64;
    cpu.operand_address(op).wrapping_add(step as u64) & op.address_mask()
}

fn memory_register<C: Change, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let number = T::get(cpu, op.reg).sx();
    let at = element::<T>(cpu, op, number);
    memory::<C, T>(cpu, op, at, number)
}

fn memory_immediate<C: Change, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let at = cpu.operand_address(op);
    memory::<C, T>(cpu, op, at, op.imm)
}

#[inline(always)]
fn memory<C: Change, T: Int>(cpu: &mut Cpu, op: &Op, at: u64, number: u64) -> Exec {
    if C::WRITES {
        cpu.modify(op.segment, at, |flags, value: T| apply::<C, T>(flags, value, number))
    } else {
        let value = cpu.read::<T>(op.segment, at)?;
        apply::<C, T>(&mut cpu.flags, value, number);
        Ok(())
    }
}

fn locked_register<C: Change, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let number = T::get(cpu, op.reg).sx();
    let at = element::<T>(cpu, op, number);
    cpu.modify_locked(op.segment, at, |flags, value: T| apply::<C, T>(flags, value, number)).map(|_| ())
}

fn locked_immediate<C: Change, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let at = cpu.operand_address(op);
    cpu.modify_locked(op.segment, at, |flags, value: T| apply::<C, T>(flags, value, op.imm)).map(|_| ())
}

/// The second operand, register or memory.
#[inline(always)]
pub(super) fn source<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<T, super::fault::Stop> {
    if op.has_memory() { cpu.read(op.segment, cpu.operand_address(op)) } else { Ok(T::get(cpu, op.rm)) }
}

fn scan_forward<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    scan::<T>(cpu, op, |value| value.trailing_zeros())
}

fn scan_reverse<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    scan::<T>(cpu, op, |value| 63 - value.leading_zeros())
}

#[inline(always)]
fn scan<T: Int>(cpu: &mut Cpu, op: &Op, find: impl Fn(u64) -> u32) -> Exec {
    let value = source::<T>(cpu, op)?.zx();
    // Only ZF is defined; the others are what a comparison with zero gives.
    cpu.flags.set_logic(T::cut(value).sx());
    if value != 0 {
        T::cut(u64::from(find(value))).set(cpu, op.reg);
    }
    Ok(())
}

fn count_ones<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = source::<T>(cpu, op)?.zx();
    T::cut(u64::from(value.count_ones())).set(cpu, op.reg);
    cpu.flags.set_arithmetic(if value == 0 { bit::ZF } else { 0 });
    Ok(())
}

fn crc32<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = source::<T>(cpu, op)?.zx();
    let mut crc = cpu.reg32(op.reg);
    for byte in &value.to_le_bytes()[..T::BYTES as usize] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            // The Castagnoli polynomial, reflected.
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    // A 64-bit destination gets the upper half cleared like a 32-bit one.
    cpu.set_reg32(op.reg, crc);
    Ok(())
}
