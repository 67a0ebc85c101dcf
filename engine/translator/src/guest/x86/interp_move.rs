//! Data movement: MOV, MOVZX, MOVSX, LEA, XCHG, BSWAP, CMOV, SETcc, PUSH, POP, PUSHA, ENTER, LEAVE, XLAT, sign extensions,
//! LAHF/SAHF, MOVNTI, and what does nothing: NOP, prefetches, fences.

use super::cpu::{Cpu, reg, seg};
use super::fault::Exec;
use super::flags::bit;
use super::interp_integer::{Form, Int, by_size, by_wide_size, form, only_general_registers, operand_bytes};
use super::op::{HIGH_BYTE, Handler, Op};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use std::sync::atomic::{Ordering, fence};

/// The handler of an instruction of this file.
pub(super) fn handler(instruction: &Instruction) -> Option<Handler> {
    if let Some(handler) = conditional(instruction) {
        return Some(handler);
    }
    Some(match instruction.mnemonic() {
        Mnemonic::Mov if only_general_registers(instruction) => {
            let bytes = operand_bytes(instruction, 0);
            match form(instruction) {
                Form::RegisterRegister => by_size!(bytes, move_register_register),
                Form::ReversedRegisters => by_size!(bytes, move_reversed),
                Form::RegisterMemory => by_size!(bytes, load),
                Form::MemoryRegister => by_size!(bytes, store),
                Form::MemoryImmediate | Form::Memory => by_size!(bytes, store_immediate),
                Form::RegisterImmediate | Form::Register => by_size!(bytes, move_immediate),
            }
        }
        Mnemonic::Movnti => by_size!(operand_bytes(instruction, 0), store),
        Mnemonic::Movzx => {
            let memory = instruction.op_kind(1) == OpKind::Memory;
            match (operand_bytes(instruction, 1), memory) {
                (1, false) => by_wide_size!(operand_bytes(instruction, 0), zero_extend, u8),
                (1, true) => by_wide_size!(operand_bytes(instruction, 0), zero_extend_memory, u8),
                (_, false) => by_wide_size!(operand_bytes(instruction, 0), zero_extend, u16),
                (_, true) => by_wide_size!(operand_bytes(instruction, 0), zero_extend_memory, u16),
            }
        }
        Mnemonic::Movsx | Mnemonic::Movsxd => {
            let memory = instruction.op_kind(1) == OpKind::Memory;
            match (operand_bytes(instruction, 1), memory) {
                (1, false) => by_wide_size!(operand_bytes(instruction, 0), sign_extend, u8),
                (1, true) => by_wide_size!(operand_bytes(instruction, 0), sign_extend_memory, u8),
                (2, false) => by_wide_size!(operand_bytes(instruction, 0), sign_extend, u16),
                (2, true) => by_wide_size!(operand_bytes(instruction, 0), sign_extend_memory, u16),
                (_, false) => by_wide_size!(operand_bytes(instruction, 0), sign_extend, u32),
                (_, true) => by_wide_size!(operand_bytes(instruction, 0), sign_extend_memory, u32),
            }
        }
        Mnemonic::Lea => by_wide_size!(operand_bytes(instruction, 0), load_address),
        Mnemonic::Xchg => {
            let bytes = operand_bytes(instruction, 0);
            if instruction.op_kind(0) == OpKind::Memory || instruction.op_kind(1) == OpKind::Memory {
                by_size!(bytes, exchange_memory)
            } else {
                by_size!(bytes, exchange)
            }
        }
        Mnemonic::Bswap => match operand_bytes(instruction, 0) {
            2 => swap_word,
            4 => swap_dword,
            _ => swap_qword,
        },
        Mnemonic::Xlatb => translate_byte,
        Mnemonic::Cbw => extend_accumulator::<u8, u16>,
        Mnemonic::Cwde => extend_accumulator::<u16, u32>,
        Mnemonic::Cdqe => extend_accumulator::<u32, u64>,
        Mnemonic::Cwd => spread_sign::<u16>,
        Mnemonic::Cdq => spread_sign::<u32>,
        Mnemonic::Cqo => spread_sign::<u64>,
        Mnemonic::Lahf => load_flags,
        Mnemonic::Sahf => store_flags,
        Mnemonic::Clc => set_carry::<0>,
        Mnemonic::Stc => set_carry::<1>,
        Mnemonic::Cmc => complement_carry,
        Mnemonic::Cld => clear_direction,
        Mnemonic::Std => set_direction,
        Mnemonic::Push if only_general_registers(instruction) => match instruction.op_kind(0) {
            OpKind::Register => by_wide_size!(operand_bytes(instruction, 0), push_register),
            OpKind::Memory => by_wide_size!(operand_bytes(instruction, 0), push_memory),
            _ => by_wide_size!(stack_bytes(instruction), push_immediate),
        },
        Mnemonic::Pop if only_general_registers(instruction) => match instruction.op_kind(0) {
            OpKind::Register => by_wide_size!(operand_bytes(instruction, 0), pop_register),
            _ => by_wide_size!(operand_bytes(instruction, 0), pop_memory),
        },
        Mnemonic::Pusha => push_all::<u16>,
        Mnemonic::Pushad => push_all::<u32>,
        Mnemonic::Popa => pop_all::<u16>,
        Mnemonic::Popad => pop_all::<u32>,
        Mnemonic::Enter => by_wide_size!(stack_bytes(instruction), enter),
        Mnemonic::Leave => by_wide_size!(stack_bytes(instruction), leave),
        Mnemonic::Nop
        | Mnemonic::Reservednop
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Rdsspd
        | Mnemonic::Rdsspq => do_nothing,
        Mnemonic::Pause => pause,
        Mnemonic::Lfence | Mnemonic::Sfence | Mnemonic::Mfence => memory_fence,
        _ => return None,
    })
}

/// The size that a stack instruction without a sized operand moves.
fn stack_bytes(instruction: &Instruction) -> usize {
    match instruction.code() {
        Code::Enterw_imm16_imm8 | Code::Leavew | Code::Push_imm16 | Code::Pushw_imm8 => 2,
        Code::Enterd_imm16_imm8 | Code::Leaved | Code::Pushd_imm32 | Code::Pushd_imm8 => 4,
        _ => 8,
    }
}

/// SETcc and CMOVcc.
fn conditional(instruction: &Instruction) -> Option<Handler> {
    let memory = instruction.op_count() > 0 && instruction.op_kind(instruction.op_count() - 1) == OpKind::Memory;
    macro_rules! each {
        ($($set:ident $cmov:ident $number:literal),*) => {
            match instruction.mnemonic() {
                $(Mnemonic::$set => Some(if memory { set_memory::<$number> } else { set_register::<$number> }),
                  Mnemonic::$cmov => Some(match (operand_bytes(instruction, 0), memory) {
                      (2, false) => move_if::<$number, u16>,
                      (4, false) => move_if::<$number, u32>,
                      (_, false) => move_if::<$number, u64>,
                      (2, true) => load_if::<$number, u16>,
                      (4, true) => load_if::<$number, u32>,
                      (_, true) => load_if::<$number, u64>,
                  }),)*
                _ => None,
            }
        };
    }
    each!(
        Seto Cmovo 0, Setno Cmovno 1, Setb Cmovb 2, Setae Cmovae 3, Sete Cmove 4, Setne Cmovne 5, Setbe Cmovbe 6, Seta Cmova 7,
        Sets Cmovs 8, Setns Cmovns 9, Setp Cmovp 10, Setnp Cmovnp 11, Setl Cmovl 12, Setge Cmovge 13, Setle Cmovle 14, Setg Cmovg 15
    )
}

fn set_register<const N: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = u8::from(cpu.condition::<N>());
    cpu.set_reg8(op.rm, value);
    Ok(())
}

fn set_memory<const N: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = u8::from(cpu.condition::<N>());
    cpu.write(op.segment, cpu.operand_address(op), value)
}

fn move_if<const N: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    // A move that is not done still cuts a 32-bit destination.
    let from = if cpu.condition::<N>() { op.rm } else { op.reg };
    T::get(cpu, from).set(cpu, op.reg);
    Ok(())
}

fn load_if<const N: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = cpu.read::<T>(op.segment, cpu.operand_address(op))?;
    let value = if cpu.condition::<N>() { value } else { T::get(cpu, op.reg) };
    value.set(cpu, op.reg);
    Ok(())
}

fn move_register_register<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    T::get(cpu, op.reg).set(cpu, op.rm);
    Ok(())
}

fn move_reversed<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    T::get(cpu, op.rm).set(cpu, op.reg);
    Ok(())
}

fn move_immediate<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    T::cut(op.imm).set(cpu, op.rm);
    Ok(())
}

fn load<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.read::<T>(op.segment, cpu.operand_address(op))?.set(cpu, op.reg);
    Ok(())
}

fn store<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = T::get(cpu, op.reg);
    cpu.write(op.segment, cpu.operand_address(op), value)
}

fn store_immediate<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.write(op.segment, cpu.operand_address(op), T::cut(op.imm))
}

fn zero_extend<S: Int, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    T::cut(S::get(cpu, op.rm).zx()).set(cpu, op.reg);
    Ok(())
}

fn zero_extend_memory<S: Int, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = cpu.read::<S>(op.segment, cpu.operand_address(op))?;
    T::cut(value.zx()).set(cpu, op.reg);
    Ok(())
}

fn sign_extend<S: Int, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    T::cut(S::get(cpu, op.rm).sx()).set(cpu, op.reg);
    Ok(())
}

fn sign_extend_memory<S: Int, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = cpu.read::<S>(op.segment, cpu.operand_address(op))?;
    T::cut(value.sx()).set(cpu, op.reg);
    Ok(())
}

fn load_address<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    T::cut(cpu.operand_address(op)).set(cpu, op.reg);
    Ok(())
}

fn exchange<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (a, b) = (T::get(cpu, op.rm), T::get(cpu, op.reg));
    b.set(cpu, op.rm);
    a.set(cpu, op.reg);
    Ok(())
}

fn exchange_memory<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = T::get(cpu, op.reg);
    let old: T = cpu.modify_locked(op.segment, cpu.operand_address(op), |_, _| value)?;
    old.set(cpu, op.reg);
    Ok(())
}

fn swap_word(cpu: &mut Cpu, op: &Op) -> Exec {
    // Undefined by the manuals; processors clear the register's low word.
    cpu.set_reg16(op.rm, 0);
    Ok(())
}

fn swap_dword(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.set_reg32(op.rm, cpu.reg32(op.rm).swap_bytes());
    Ok(())
}

fn swap_qword(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.set_reg64(op.rm, cpu.reg64(op.rm).swap_bytes());
    Ok(())
}

fn translate_byte(cpu: &mut Cpu, op: &Op) -> Exec {
    let at = cpu.operand_address(op).wrapping_add(u64::from(cpu.reg8(reg::AX))) & op.address_mask();
    let value = cpu.read::<u8>(op.segment, at)?;
    cpu.set_reg8(reg::AX, value);
    Ok(())
}

fn extend_accumulator<S: Int, T: Int>(cpu: &mut Cpu, _: &Op) -> Exec {
    T::cut(S::get(cpu, reg::AX).sx()).set(cpu, reg::AX);
    Ok(())
}

fn spread_sign<T: Int>(cpu: &mut Cpu, _: &Op) -> Exec {
    T::cut((T::get(cpu, reg::AX).sx() as i64 >> 63) as u64).set(cpu, reg::DX);
    Ok(())
}

fn load_flags(cpu: &mut Cpu, _: &Op) -> Exec {
    let value = cpu.flags.value() as u8;
    cpu.set_reg8(reg::AX | HIGH_BYTE, value);
    Ok(())
}

fn store_flags(cpu: &mut Cpu, _: &Op) -> Exec {
    let of = cpu.flags.of();
    let value = u64::from(cpu.reg8(reg::AX | HIGH_BYTE)) & !bit::OF | if of { bit::OF } else { 0 };
    cpu.flags.set_arithmetic(value);
    Ok(())
}

fn set_carry<const CARRY: u8>(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.flags.set_cf(CARRY != 0);
    Ok(())
}

fn complement_carry(cpu: &mut Cpu, _: &Op) -> Exec {
    let cf = cpu.flags.cf();
    cpu.flags.set_cf(!cf);
    Ok(())
}

fn clear_direction(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.flags.remove(bit::DF);
    Ok(())
}

fn set_direction(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.flags.insert(bit::DF);
    Ok(())
}

fn push_register<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = T::get(cpu, op.rm);
    cpu.push(value)
}

fn push_memory<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = cpu.read::<T>(op.segment, cpu.operand_address(op))?;
    cpu.push(value)
}

fn push_immediate<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.push(T::cut(op.imm))
}

fn pop_register<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    // POP SP: the value read replaces the incremented pointer.
    let value = cpu.pop::<T>()?;
    value.set(cpu, op.rm);
    Ok(())
}

fn pop_memory<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let before = cpu.gpr[usize::from(reg::SP)];
    // An address based on SP uses its value after the increment.
    let value = cpu.pop::<T>()?;
    let result = cpu.write(op.segment, cpu.operand_address(op), value);
    if result.is_err() {
        cpu.gpr[usize::from(reg::SP)] = before;
    }
    result
}

fn push_all<T: Int>(cpu: &mut Cpu, _: &Op) -> Exec {
    let slot = |cpu: &Cpu, number: u64| cpu.sp().wrapping_sub(T::BYTES * (number + 1)) & cpu.stack_mask;
    for number in 0..8 {
        let at = slot(cpu, number);
        cpu.probe_write(seg::SS, at, T::BYTES)?;
    }
    for number in 0..8 {
        // SP is pushed as it was before.
        let (at, value) = (slot(cpu, number), T::get(cpu, number as u8));
        cpu.write(seg::SS, at, value)?;
    }
    let sp = slot(cpu, 7);
    cpu.set_sp(sp);
    Ok(())
}

fn pop_all<T: Int>(cpu: &mut Cpu, _: &Op) -> Exec {
    let mut values = [T::cut(0); 8];
    for (number, value) in values.iter_mut().enumerate() {
        *value = cpu.peek(T::BYTES * number as u64)?;
    }
    for (number, value) in values.into_iter().enumerate() {
        // The last pushed is DI, the first AX; SP is skipped.
        let register = 7 - number as u8;
        if register != reg::SP {
            value.set(cpu, register);
        }
    }
    cpu.set_sp(cpu.sp().wrapping_add(8 * T::BYTES));
    Ok(())
}

fn enter<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (size, level) = (op.imm & 0xffff, op.imm2 & 31);
    let mask = cpu.stack_mask;
    let mut sp = cpu.sp().wrapping_sub(T::BYTES) & mask;
    let frame_pointer = T::get(cpu, reg::BP);
    cpu.write(seg::SS, sp, frame_pointer)?;
    let frame = sp;
    if level > 0 {
        let mut outer = cpu.gpr[usize::from(reg::BP)] & mask;
        for _ in 1..level {
            outer = outer.wrapping_sub(T::BYTES) & mask;
            let display: T = cpu.read(seg::SS, outer)?;
            sp = sp.wrapping_sub(T::BYTES) & mask;
            cpu.write(seg::SS, sp, display)?;
        }
        sp = sp.wrapping_sub(T::BYTES) & mask;
        cpu.write(seg::SS, sp, T::cut(frame))?;
    }
    sp = sp.wrapping_sub(size) & mask;
    // The new top of the stack must be writable, though nothing is written.
    cpu.probe_write(seg::SS, sp, T::BYTES)?;
    // BP takes the frame in the operand's size, and the stack's where that is smaller.
    T::cut(frame).set(cpu, reg::BP);
    cpu.set_sp(sp);
    Ok(())
}

fn leave<T: Int>(cpu: &mut Cpu, _: &Op) -> Exec {
    let at = cpu.gpr[usize::from(reg::BP)] & cpu.stack_mask;
    let value: T = cpu.read(seg::SS, at)?;
    cpu.set_sp(at.wrapping_add(T::BYTES));
    value.set(cpu, reg::BP);
    Ok(())
}

fn do_nothing(_: &mut Cpu, _: &Op) -> Exec {
    Ok(())
}

/// After how many PAUSEs other threads of the host have their turn: a power of 2.
pub(super) const PAUSES_BETWEEN_YIELDS: u32 = 32;

fn pause(cpu: &mut Cpu, _: &Op) -> Exec {
    // A spinning CPU waits for another one, which may not have a host CPU of its own. A single CPU waits for time to pass
    // (drivers' delays), and would lose far more of it to whoever else is busy on the host.
    cpu.pauses = cpu.pauses.wrapping_add(1);
    if cpu.pauses.is_multiple_of(PAUSES_BETWEEN_YIELDS) && cpu.fabric.cpu_count() > 1 {
        std::thread::yield_now();
    }
    Ok(())
}

fn memory_fence(_: &mut Cpu, _: &Op) -> Exec {
    fence(Ordering::SeqCst);
    Ok(())
}
