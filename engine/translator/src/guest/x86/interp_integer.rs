//! The table of integer instructions. The handlers are in `interp_*.rs`: arithmetic, moves, shifts, bits, BMI, multiplication,
//! decimal, strings, control flow. They are monomorphised by operation, size and operand form, so that nothing is decided
//! twice.

use super::access::Word;
use super::cpu::Cpu;
use super::op::Handler;
use super::{
    interp_alu, interp_bits, interp_bmi, interp_decimal, interp_flow, interp_move, interp_multiply, interp_shift, interp_string,
};
use iced_x86::{Code, Instruction, OpKind, Register};

/// An operand size: arithmetic is done in 64 bits and cut.
pub(super) trait Int: Word {
    const BITS: u32;
    /// All ones.
    const MASK: u64 = u64::MAX >> (64 - Self::BITS);
    /// Cut to size.
    fn cut(value: u64) -> Self;
    /// Zero-extended.
    fn zx(self) -> u64;
    /// Sign-extended.
    fn sx(self) -> u64;
    /// Register `number`.
    fn get(cpu: &Cpu, number: u8) -> Self;
    /// Sets register `number` by the rules of the size.
    fn set(self, cpu: &mut Cpu, number: u8);
    /// Replaces `old` by `new` at `at` if it is still there, as one locked operation.
    ///
    /// # Safety
    /// `at..at + BYTES` is inside a block of guest memory that is kept alive.
    unsafe fn exchange_if(at: *mut u8, old: Self, new: Self) -> bool;
}

macro_rules! int {
    ($type:ty, $signed:ty, $atomic:ty, $get:ident, $set:ident, $exchange:literal, $class:ident, $acc:tt) => {
        impl Int for $type {
            const BITS: u32 = <$type>::BITS;
            #[inline(always)]
            fn cut(value: u64) -> Self {
                value as $type
            }
            #[inline(always)]
            fn zx(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn sx(self) -> u64 {
                self as $signed as i64 as u64
            }
            #[inline(always)]
            fn get(cpu: &Cpu, number: u8) -> Self {
                cpu.$get(number)
            }
            #[inline(always)]
            fn set(self, cpu: &mut Cpu, number: u8) {
                cpu.$set(number, self);
            }
            #[inline(always)]
            unsafe fn exchange_if(at: *mut u8, old: Self, new: Self) -> bool {
                #[cfg(target_arch = "x86_64")]
                {
                    let done: u8;
                    // SAFETY: the caller vouches for the memory; a locked x86 operation needs no alignment.
                    unsafe {
                        std::arch::asm!(
                            $exchange, "sete {done}",
                            at = in(reg) at, new = in($class) new, done = out(reg_byte) done, inout($acc) old => _,
                            options(nostack)
                        );
                    }
                    done != 0
                }
                #[cfg(not(target_arch = "x86_64"))]
                // SAFETY: the caller vouches for the memory; unaligned locked operations are not atomic on this host.
                unsafe {
                    use std::sync::atomic::Ordering;
                    if at.addr() % size_of::<$type>() == 0 {
                        let cell = <$atomic>::from_ptr(at.cast());
                        cell.compare_exchange(old.to_le(), new.to_le(), Ordering::SeqCst, Ordering::SeqCst).is_ok()
                    } else {
                        let same = <$type>::load(at) == old;
                        if same {
                            new.store(at);
                        }
                        same
                    }
                }
            }
        }
    };
}

int!(u8, i8, std::sync::atomic::AtomicU8, reg8, set_reg8, "lock cmpxchg byte ptr [{at}], {new}", reg_byte, "al");
int!(u16, i16, std::sync::atomic::AtomicU16, reg16, set_reg16, "lock cmpxchg word ptr [{at}], {new:x}", reg, "ax");
int!(u32, i32, std::sync::atomic::AtomicU32, reg32, set_reg32, "lock cmpxchg dword ptr [{at}], {new:e}", reg, "eax");
int!(u64, i64, std::sync::atomic::AtomicU64, reg64, set_reg64, "lock cmpxchg qword ptr [{at}], {new}", reg, "rax");

/// `$handler::<$types…, T>` for the size in bytes.
macro_rules! by_size {
    ($bytes:expr, $handler:ident) => {
        match $bytes {
            1 => $handler::<u8>,
            2 => $handler::<u16>,
            4 => $handler::<u32>,
            _ => $handler::<u64>,
        }
    };
    ($bytes:expr, $handler:ident, $($parameter:tt),+) => {
        match $bytes {
            1 => $handler::<$($parameter),+, u8>,
            2 => $handler::<$($parameter),+, u16>,
            4 => $handler::<$($parameter),+, u32>,
            _ => $handler::<$($parameter),+, u64>,
        }
    };
}
/// The same for instructions without a byte form.
macro_rules! by_wide_size {
    ($bytes:expr, $handler:ident) => {
        match $bytes {
            2 => $handler::<u16>,
            4 => $handler::<u32>,
            _ => $handler::<u64>,
        }
    };
    ($bytes:expr, $handler:ident, $($parameter:tt),+) => {
        match $bytes {
            2 => $handler::<$($parameter),+, u16>,
            4 => $handler::<$($parameter),+, u32>,
            _ => $handler::<$($parameter),+, u64>,
        }
    };
}
pub(super) use {by_size, by_wide_size};

/// What an instruction's operands are, as far as the choice of a handler needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// rm register, reg register.
    RegisterRegister,
    /// reg register, rm register.
    ReversedRegisters,
    /// Memory, reg register.
    MemoryRegister,
    /// reg register, memory.
    RegisterMemory,
    /// rm register, immediate.
    RegisterImmediate,
    /// Memory, immediate.
    MemoryImmediate,
    /// rm register alone.
    Register,
    /// Memory alone.
    Memory,
}

/// The form of the first two operands.
pub(super) fn form(instruction: &Instruction) -> Form {
    let second = (instruction.op_count() > 1).then(|| instruction.op_kind(1));
    match (instruction.op_kind(0), second) {
        (OpKind::Memory, None) => Form::Memory,
        (_, None) => Form::Register,
        (OpKind::Memory, Some(OpKind::Register)) => Form::MemoryRegister,
        (OpKind::Memory, Some(_)) => Form::MemoryImmediate,
        (_, Some(OpKind::Memory)) => Form::RegisterMemory,
        (_, Some(OpKind::Register)) if super::decode::is_reg_field(instruction.op_code().op_kind(0)) => Form::ReversedRegisters,
        (_, Some(OpKind::Register)) => Form::RegisterRegister,
        (_, Some(_)) => Form::RegisterImmediate,
    }
}

/// The size of operand `number` in bytes.
pub(super) fn operand_bytes(instruction: &Instruction, number: u32) -> usize {
    match instruction.op_kind(number) {
        OpKind::Register => instruction.op_register(number).size(),
        _ => instruction.memory_size().size(),
    }
}

/// Whether a general register is among the operands' registers only (no segment, control or debug register).
pub(super) fn only_general_registers(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).all(|at| {
        instruction.op_kind(at) != OpKind::Register || {
            let register: Register = instruction.op_register(at);
            register.is_gpr()
        }
    })
}

/// The handler of an integer instruction.
pub(super) fn handler(code: Code, instruction: &Instruction) -> Option<Handler> {
    interp_alu::handler(instruction)
        .or_else(|| interp_move::handler(instruction))
        .or_else(|| interp_flow::handler(code, instruction))
        .or_else(|| interp_shift::handler(instruction))
        .or_else(|| interp_bits::handler(instruction))
        .or_else(|| interp_multiply::handler(instruction))
        .or_else(|| interp_bmi::handler(instruction))
        .or_else(|| interp_string::handler(instruction))
        .or_else(|| interp_decimal::handler(code))
}
