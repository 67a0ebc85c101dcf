//! BMI1, BMI2, LZCNT, ADX, MOVBE: integer instructions that came with and after AVX. Those encoded by VEX exist in protected
//! mode only.
//! See: Intel SDM volume 2, each instruction.

use super::cpu::{Cpu, reg};
use super::fault::{Exec, Stop};
use super::flags::bit;
use super::interp_bits::source;
use super::interp_integer::{Int, by_wide_size, operand_bytes};
use super::op::{Handler, Op};
use iced_x86::{Instruction, Mnemonic};

/// The handler of an instruction of this file.
pub(super) fn handler(instruction: &Instruction) -> Option<Handler> {
    let bytes = if instruction.op_count() > 0 { operand_bytes(instruction, 0) } else { 0 };
    Some(match instruction.mnemonic() {
        Mnemonic::Tzcnt => by_wide_size!(bytes, count_trailing_zeros),
        Mnemonic::Lzcnt => by_wide_size!(bytes, count_leading_zeros),
        Mnemonic::Adcx => by_wide_size!(bytes, add_with_carry),
        Mnemonic::Adox => by_wide_size!(bytes, add_with_overflow),
        Mnemonic::Movbe if instruction.op0_register().is_gpr() => by_wide_size!(bytes, load_swapped),
        Mnemonic::Movbe => by_wide_size!(bytes, store_swapped),
        Mnemonic::Andn => by_wide_size!(bytes, and_not),
        Mnemonic::Bextr => by_wide_size!(bytes, extract),
        Mnemonic::Blsi => by_wide_size!(bytes, isolate_lowest),
        Mnemonic::Blsmsk => by_wide_size!(bytes, mask_to_lowest),
        Mnemonic::Blsr => by_wide_size!(bytes, reset_lowest),
        Mnemonic::Bzhi => by_wide_size!(bytes, zero_high),
        Mnemonic::Mulx => by_wide_size!(bytes, multiply),
        Mnemonic::Pdep => by_wide_size!(bytes, deposit),
        Mnemonic::Pext => by_wide_size!(bytes, gather),
        Mnemonic::Rorx => by_wide_size!(bytes, rotate),
        Mnemonic::Shlx => by_wide_size!(bytes, shift_left),
        Mnemonic::Shrx => by_wide_size!(bytes, shift_right),
        Mnemonic::Sarx => by_wide_size!(bytes, shift_right_signed),
        _ => return None,
    })
}

// ---- Legacy encodings ------------------------------------------------------------------------------------------

/// TZCNT, LZCNT: CF says that there was no bit, ZF that the first was one.
fn counted<T: Int>(cpu: &mut Cpu, op: &Op, count: u32) {
    let cf = if count == T::BITS { bit::CF } else { 0 };
    let zf = if count == 0 { bit::ZF } else { 0 };
    T::cut(u64::from(count)).set(cpu, op.reg);
    cpu.flags.set_arithmetic(cf | zf);
}

fn count_trailing_zeros<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = source::<T>(cpu, op)?.zx();
    counted::<T>(cpu, op, value.trailing_zeros().min(T::BITS));
    Ok(())
}

fn count_leading_zeros<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = source::<T>(cpu, op)?.zx();
    counted::<T>(cpu, op, value.leading_zeros() - (64 - T::BITS));
    Ok(())
}

#[inline(always)]
fn sum<T: Int>(cpu: &mut Cpu, op: &Op, carry: bool) -> Result<bool, Stop> {
    let value = source::<T>(cpu, op)?.zx();
    let sum = u128::from(T::get(cpu, op.reg).zx()) + u128::from(value) + u128::from(carry);
    T::cut(sum as u64).set(cpu, op.reg);
    Ok(sum >> T::BITS != 0)
}

/// ADCX
fn add_with_carry<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let carry = sum::<T>(cpu, op, cpu.flags.cf())?;
    cpu.flags.set_cf(carry);
    Ok(())
}

/// ADOX
fn add_with_overflow<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let carry = sum::<T>(cpu, op, cpu.flags.of())?;
    cpu.flags.set_of(carry);
    Ok(())
}

#[inline(always)]
fn swapped<T: Int>(value: T) -> T {
    T::cut(value.zx().swap_bytes() >> (64 - T::BITS))
}

/// MOVBE from memory
fn load_swapped<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = cpu.read::<T>(op.segment, cpu.operand_address(op))?;
    swapped(value).set(cpu, op.reg);
    Ok(())
}

/// MOVBE to memory
fn store_swapped<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = swapped(T::get(cpu, op.reg));
    cpu.write(op.segment, cpu.operand_address(op), value)
}

// ---- VEX -------------------------------------------------------------------------------------------------------

/// The operand of ModRM.rm; #UD where VEX is not known.
#[inline(always)]
fn vex_source<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<T, Stop> {
    if cpu.uses_paragraphs() {
        return Err(Stop::ud());
    }
    source::<T>(cpu, op)
}

/// ANDN
fn and_not<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = vex_source::<T>(cpu, op)?.zx();
    let result = T::cut(!T::get(cpu, op.vvvv).zx() & value);
    result.set(cpu, op.reg);
    cpu.flags.set_logic(result.sx());
    Ok(())
}

/// BEXTR: start in bits 0–7 of the control, length in 8–15.
fn extract<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = vex_source::<T>(cpu, op)?.zx();
    let control = T::get(cpu, op.vvvv).zx();
    let (start, length) = (control as u32 & 0xff, control as u32 >> 8 & 0xff);
    let result = T::cut(value.checked_shr(start).unwrap_or(0) & below(length));
    result.set(cpu, op.reg);
    cpu.flags.set_logic(result.sx());
    Ok(())
}

/// The lowest `count` bits.
fn below(count: u32) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// BLSI, BLSMSK, BLSR
#[inline(always)]
fn lowest<T: Int>(cpu: &mut Cpu, op: &Op, run: impl Fn(u64) -> u64, carry: impl Fn(u64) -> bool) -> Exec {
    let value = vex_source::<T>(cpu, op)?.zx();
    let result = T::cut(run(value));
    result.set(cpu, op.vvvv);
    cpu.flags.set_result(result.sx(), carry(value), false, false);
    Ok(())
}

fn isolate_lowest<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    lowest::<T>(cpu, op, |value| value & value.wrapping_neg(), |value| value != 0)
}

fn mask_to_lowest<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    lowest::<T>(cpu, op, |value| value ^ value.wrapping_sub(1), |value| value == 0)
}

fn reset_lowest<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    lowest::<T>(cpu, op, |value| value & value.wrapping_sub(1), |value| value == 0)
}

/// BZHI
fn zero_high<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = vex_source::<T>(cpu, op)?.zx();
    let from = T::get(cpu, op.vvvv).zx() as u32 & 0xff;
    let result = T::cut(value & below(from));
    result.set(cpu, op.reg);
    cpu.flags.set_result(result.sx(), from >= T::BITS, false, false);
    Ok(())
}

/// MULX: the upper half goes to ModRM.reg's register, also if the lower half's is the same.
fn multiply<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = vex_source::<T>(cpu, op)?.zx();
    let product = u128::from(T::get(cpu, reg::DX).zx()) * u128::from(value);
    T::cut(product as u64).set(cpu, op.vvvv);
    T::cut((product >> T::BITS) as u64).set(cpu, op.reg);
    Ok(())
}

/// The bits of `mask`, from the lowest up, one at a time.
fn bits_of(mut mask: u64) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let lowest = mask & mask.wrapping_neg();
        mask ^= lowest;
        (lowest != 0).then_some(lowest)
    })
}

/// PDEP
fn deposit<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let mask = vex_source::<T>(cpu, op)?.zx();
    let value = T::get(cpu, op.vvvv).zx();
    let result = bits_of(mask).enumerate().filter(|(at, _)| value >> at & 1 != 0).fold(0, |result, (_, bit)| result | bit);
    T::cut(result).set(cpu, op.reg);
    Ok(())
}

/// PEXT
fn gather<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let mask = vex_source::<T>(cpu, op)?.zx();
    let value = T::get(cpu, op.vvvv).zx();
    let result = bits_of(mask).enumerate().filter(|(_, bit)| value & bit != 0).fold(0, |result, (at, _)| result | 1 << at);
    T::cut(result).set(cpu, op.reg);
    Ok(())
}

/// RORX
fn rotate<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = vex_source::<T>(cpu, op)?.zx();
    let count = op.imm as u32 & (T::BITS - 1);
    let wrapped = value << ((T::BITS - count) & (T::BITS - 1));
    T::cut(value >> count | wrapped).set(cpu, op.reg);
    Ok(())
}

#[inline(always)]
fn shift<T: Int>(cpu: &mut Cpu, op: &Op, run: impl Fn(T, u32) -> u64) -> Exec {
    let value = vex_source::<T>(cpu, op)?;
    let count = T::get(cpu, op.vvvv).zx() as u32 & (T::BITS - 1);
    T::cut(run(value, count)).set(cpu, op.reg);
    Ok(())
}

/// SHLX
fn shift_left<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    shift::<T>(cpu, op, |value, count| value.zx() << count)
}

/// SHRX
fn shift_right<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    shift::<T>(cpu, op, |value, count| value.zx() >> count)
}

/// SARX
fn shift_right_signed<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    shift::<T>(cpu, op, |value, count| (value.sx() as i64 >> count) as u64)
}
