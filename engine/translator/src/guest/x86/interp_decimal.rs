//! Decimal adjustment: DAA, DAS, AAA, AAS, AAM, AAD; and SALC, the undocumented neighbour. None of them exist in 64-bit code,
//! where the decoder refuses them.

use super::cpu::{Cpu, reg};
use super::fault::{Exec, Stop};
use super::op::{HIGH_BYTE, Handler, Op};
use iced_x86::Code;

/// The handler of an instruction of this file.
pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Daa => decimal_after_addition,
        Code::Das => decimal_after_subtraction,
        Code::Aaa => ascii_after_addition,
        Code::Aas => ascii_after_subtraction,
        Code::Aam_imm8 => ascii_after_multiplication,
        Code::Aad_imm8 => ascii_before_division,
        Code::Salc => set_al_from_carry,
        _ => return None,
    })
}

fn sign_extended(value: u8) -> u64 {
    value as i8 as i64 as u64
}

fn decimal_after_addition(cpu: &mut Cpu, _: &Op) -> Exec {
    let old = cpu.reg8(reg::AX);
    let (old_cf, old_af) = (cpu.flags.cf(), cpu.flags.af());
    let mut al = old;
    let af = old & 15 > 9 || old_af;
    if af {
        al = al.wrapping_add(6);
    }
    let cf = old > 0x99 || old_cf;
    if cf {
        al = al.wrapping_add(0x60);
    }
    // OF is undefined; processors give the overflow of adding the correction.
    let of = (old ^ al) & !old & 0x80 != 0;
    cpu.set_reg8(reg::AX, al);
    cpu.flags.set_result(sign_extended(al), cf, of, af);
    Ok(())
}

fn decimal_after_subtraction(cpu: &mut Cpu, _: &Op) -> Exec {
    let old = cpu.reg8(reg::AX);
    let (old_cf, old_af) = (cpu.flags.cf(), cpu.flags.af());
    let mut al = old;
    let mut cf = old_cf;
    let af = old & 15 > 9 || old_af;
    if af {
        cf |= al < 6;
        al = al.wrapping_sub(6);
    }
    if old > 0x99 || old_cf {
        al = al.wrapping_sub(0x60);
        cf = true;
    }
    let of = (old ^ al) & old & 0x80 != 0;
    cpu.set_reg8(reg::AX, al);
    cpu.flags.set_result(sign_extended(al), cf, of, af);
    Ok(())
}

fn ascii_after_addition(cpu: &mut Cpu, _: &Op) -> Exec {
    let adjust = cpu.reg8(reg::AX) & 15 > 9 || cpu.flags.af();
    if adjust {
        cpu.set_reg16(reg::AX, cpu.reg16(reg::AX).wrapping_add(0x106));
    }
    let al = cpu.reg8(reg::AX) & 15;
    cpu.set_reg8(reg::AX, al);
    cpu.flags.set_result(sign_extended(al), adjust, false, adjust);
    Ok(())
}

fn ascii_after_subtraction(cpu: &mut Cpu, _: &Op) -> Exec {
    let adjust = cpu.reg8(reg::AX) & 15 > 9 || cpu.flags.af();
    if adjust {
        cpu.set_reg16(reg::AX, cpu.reg16(reg::AX).wrapping_sub(6));
        let ah = cpu.reg8(reg::AX | HIGH_BYTE).wrapping_sub(1);
        cpu.set_reg8(reg::AX | HIGH_BYTE, ah);
    }
    let al = cpu.reg8(reg::AX) & 15;
    cpu.set_reg8(reg::AX, al);
    cpu.flags.set_result(sign_extended(al), adjust, false, adjust);
    Ok(())
}

fn ascii_after_multiplication(cpu: &mut Cpu, op: &Op) -> Exec {
    let base = op.imm as u8;
    if base == 0 {
        return Err(Stop::de());
    }
    let al = cpu.reg8(reg::AX);
    cpu.set_reg16(reg::AX, u16::from(al / base) << 8 | u16::from(al % base));
    cpu.flags.set_logic(sign_extended(al % base));
    Ok(())
}

fn ascii_before_division(cpu: &mut Cpu, op: &Op) -> Exec {
    let (al, ah) = (cpu.reg8(reg::AX), cpu.reg8(reg::AX | HIGH_BYTE));
    let result = al.wrapping_add(ah.wrapping_mul(op.imm as u8));
    cpu.set_reg16(reg::AX, u16::from(result));
    cpu.flags.set_logic(sign_extended(result));
    Ok(())
}

fn set_al_from_carry(cpu: &mut Cpu, _: &Op) -> Exec {
    let value = if cpu.flags.cf() { 0xff } else { 0 };
    cpu.set_reg8(reg::AX, value);
    Ok(())
}
