//! Near control flow: JMP, Jcc, CALL, RET, LOOP, JCXZ. Far transfers and interrupts belong to `system/`.

use super::cpu::{CodeSize, Cpu, is_canonical, reg, seg};
use super::fault::{Exec, Stop};
use super::interp_integer::{Int, by_wide_size, operand_bytes};
use super::op::{Handler, Op};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

/// The handler of an instruction of this file.
pub(super) fn handler(code: Code, instruction: &Instruction) -> Option<Handler> {
    if let Some(handler) = conditional(instruction.mnemonic()) {
        return Some(handler);
    }
    Some(match code {
        Code::Jmp_rel8_16 | Code::Jmp_rel8_32 | Code::Jmp_rel8_64 | Code::Jmp_rel16 | Code::Jmp_rel32_32 | Code::Jmp_rel32_64 => {
            jump
        }
        Code::Jmp_rm16 | Code::Jmp_rm32 | Code::Jmp_rm64 => match instruction.op_kind(0) {
            OpKind::Register => by_wide_size!(operand_bytes(instruction, 0), jump_register),
            _ => by_wide_size!(operand_bytes(instruction, 0), jump_memory),
        },
        Code::Call_rel16 => call::<u16>,
        Code::Call_rel32_32 => call::<u32>,
        Code::Call_rel32_64 => call::<u64>,
        Code::Call_rm16 | Code::Call_rm32 | Code::Call_rm64 => match instruction.op_kind(0) {
            OpKind::Register => by_wide_size!(operand_bytes(instruction, 0), call_register),
            _ => by_wide_size!(operand_bytes(instruction, 0), call_memory),
        },
        Code::Retnw | Code::Retnw_imm16 => ret::<u16>,
        Code::Retnd | Code::Retnd_imm16 => ret::<u32>,
        Code::Retnq | Code::Retnq_imm16 => ret::<u64>,
        Code::Jcxz_rel8_16 | Code::Jcxz_rel8_32 => jump_if_no_count::<u16>,
        Code::Jecxz_rel8_16 | Code::Jecxz_rel8_32 | Code::Jecxz_rel8_64 => jump_if_no_count::<u32>,
        Code::Jrcxz_rel8_16 | Code::Jrcxz_rel8_64 => jump_if_no_count::<u64>,
        Code::Loop_rel8_16_CX | Code::Loop_rel8_32_CX => count::<u16, ALWAYS>,
        Code::Loop_rel8_16_ECX | Code::Loop_rel8_32_ECX | Code::Loop_rel8_64_ECX => count::<u32, ALWAYS>,
        Code::Loop_rel8_16_RCX | Code::Loop_rel8_64_RCX => count::<u64, ALWAYS>,
        Code::Loope_rel8_16_CX | Code::Loope_rel8_32_CX => count::<u16, WHILE_ZERO>,
        Code::Loope_rel8_16_ECX | Code::Loope_rel8_32_ECX | Code::Loope_rel8_64_ECX => count::<u32, WHILE_ZERO>,
        Code::Loope_rel8_16_RCX | Code::Loope_rel8_64_RCX => count::<u64, WHILE_ZERO>,
        Code::Loopne_rel8_16_CX | Code::Loopne_rel8_32_CX => count::<u16, WHILE_NOT_ZERO>,
        Code::Loopne_rel8_16_ECX | Code::Loopne_rel8_32_ECX | Code::Loopne_rel8_64_ECX => count::<u32, WHILE_NOT_ZERO>,
        Code::Loopne_rel8_16_RCX | Code::Loopne_rel8_64_RCX => count::<u64, WHILE_NOT_ZERO>,
        _ => return None,
    })
}

fn conditional(mnemonic: Mnemonic) -> Option<Handler> {
    macro_rules! each {
        ($($jump:ident $number:literal),*) => {
            match mnemonic { $(Mnemonic::$jump => Some(jump_if::<$number>),)* _ => None }
        };
    }
    each!(Jo 0, Jno 1, Jb 2, Jae 3, Je 4, Jne 5, Jbe 6, Ja 7, Js 8, Jns 9, Jp 10, Jnp 11, Jl 12, Jge 13, Jle 14, Jg 15)
}

fn jump(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.jump(op.imm)
}

fn jump_if<const N: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.condition::<N>() { cpu.jump(op.imm) } else { Ok(()) }
}

fn jump_register<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let target = T::get(cpu, op.rm).zx();
    cpu.jump(target)
}

fn jump_memory<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let target = cpu.read::<T>(op.segment, cpu.operand_address(op))?.zx();
    cpu.jump(target)
}

fn call<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    call_to::<T>(cpu, op.imm)
}

fn call_register<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let target = T::get(cpu, op.rm).zx();
    call_to::<T>(cpu, target)
}

fn call_memory<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let target = cpu.read::<T>(op.segment, cpu.operand_address(op))?.zx();
    call_to::<T>(cpu, target)
}

#[inline(always)]
fn call_to<T: Int>(cpu: &mut Cpu, target: u64) -> Exec {
    // The target is checked before anything is pushed, but a stack that cannot be pushed to is the fault that counts.
    let back = cpu.rip;
    if let Err(stop) = cpu.jump(target) {
        let below = cpu.sp().wrapping_sub(T::BYTES) & cpu.stack_mask;
        cpu.probe_write(seg::SS, below, T::BYTES)?;
        return Err(stop);
    }
    let result = cpu.push(T::cut(back));
    if result.is_err() {
        cpu.rip = back;
    }
    result
}

fn ret<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let target = cpu.peek::<T>(0)?.zx();
    if cpu.code_size == CodeSize::Bits64 {
        if !is_canonical(target) {
            return Err(Stop::gp(0));
        }
    } else if target > u64::from(cpu.segments[usize::from(seg::CS)].limit) {
        return Err(Stop::gp(0));
    }
    cpu.set_sp(cpu.sp().wrapping_add(T::BYTES).wrapping_add(op.imm & 0xffff));
    cpu.rip = target;
    Ok(())
}

fn jump_if_no_count<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    if T::get(cpu, reg::CX).zx() == 0 { cpu.jump(op.imm) } else { Ok(()) }
}

const ALWAYS: u8 = 0;
const WHILE_ZERO: u8 = 1;
const WHILE_NOT_ZERO: u8 = 2;

fn count<T: Int, const WHILE: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let left = T::cut(T::get(cpu, reg::CX).zx().wrapping_sub(1));
    let goes_on = match WHILE {
        WHILE_ZERO => cpu.flags.zf(),
        WHILE_NOT_ZERO => !cpu.flags.zf(),
        _ => true,
    };
    if left.zx() != 0 && goes_on {
        cpu.jump(op.imm)?;
    }
    left.set(cpu, reg::CX);
    Ok(())
}
