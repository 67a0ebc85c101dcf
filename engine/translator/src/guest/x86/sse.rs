//! MMX and SSE to SSE4.2: the shapes of instructions (register and memory forms, MXCSR exceptions, MMX aliasing). What an
//! instruction computes is a type of [`super::host_fp`] or [`super::shuffle`]; which instruction is which, is
//! `sse_table.rs`.
//!
//! Memory operands of 16 bytes must be aligned (#GP) unless the instruction is one of the unaligned moves or a string
//! comparison. MMX operations are done in the low half of a vector: the lanes do not know the difference.
//! See: Intel SDM volume 1, chapters 9 to 12; volume 3, chapter 14.

use super::cpu::{Cpu, cr0, cr4, reg};
use super::fault::{Exec, Stop};
use super::flags::bit;
use super::host_fp::{Float, FloatFlags, FloatImmediate, FromInteger, Lanes, StringCompare, StringMatch, ToInteger, sha256rnds2};
use super::op::{HIGH_BYTE, Op};
use super::shuffle::{Shuffle, blend_bytes};
use super::sse_unmasked::{self, Elements, MASKS};

// ---- Preconditions ---------------------------------------------------------------------------------------------

/// #UD and #NM of instructions on XMM registers.
#[inline(always)]
pub(super) fn sse_ready(cpu: &Cpu) -> Exec {
    if cpu.cr0 & (cr0::EM | cr0::TS) == 0 && cpu.cr4 & cr4::OSFXSR != 0 {
        return Ok(());
    }
    Err(if cpu.cr0 & cr0::EM != 0 || cpu.cr4 & cr4::OSFXSR == 0 { Stop::ud() } else { Stop::nm() })
}

/// #UD, #NM and #MF of instructions on MMX registers.
#[inline(always)]
fn mmx_ready(cpu: &mut Cpu) -> Exec {
    if cpu.cr0 & (cr0::EM | cr0::TS) != 0 {
        return Err(if cpu.cr0 & cr0::EM != 0 { Stop::ud() } else { Stop::nm() });
    }
    super::x87::raise_pending(cpu)
}

/// The x87 becomes MMX: top of stack 0, nothing empty.
#[inline(always)]
fn enter_mmx(cpu: &mut Cpu) {
    cpu.fpu.status &= !0x3800;
    cpu.fpu.tags = 0xff;
}

// ---- Operands --------------------------------------------------------------------------------------------------

#[inline(always)]
pub(super) fn xmm(cpu: &Cpu, number: u8) -> u128 {
    cpu.fpu.xmm[usize::from(number & 15)]
}

#[inline(always)]
fn set_xmm(cpu: &mut Cpu, number: u8, value: u128) {
    cpu.fpu.xmm[usize::from(number & 15)] = value;
}

#[inline(always)]
fn mm(cpu: &Cpu, number: u8) -> u64 {
    cpu.fpu.registers[usize::from(number & 7)] as u64
}

#[inline(always)]
fn set_mm(cpu: &mut Cpu, number: u8, value: u64) {
    enter_mmx(cpu);
    cpu.fpu.registers[usize::from(number & 7)] = u128::from(value) | 0xffff << 64;
}

/// The offset of a 16-byte operand; #GP(0) if it is not aligned.
#[inline(always)]
fn aligned(cpu: &Cpu, op: &Op) -> Result<u64, Stop> {
    let offset = cpu.operand_address(op);
    if cpu.spans[usize::from(op.segment & 7)].base.wrapping_add(offset) & 15 != 0 {
        return Err(Stop::gp(0));
    }
    Ok(offset)
}

/// Where the second operand is.
pub(super) trait Source {
    /// Its value, zero-extended.
    fn get(cpu: &mut Cpu, op: &Op) -> Result<u128, Stop>;
}

/// The XMM register of ModRM.rm.
pub(super) struct Xmm;
/// The MMX register of ModRM.rm.
pub(super) struct Mm;
/// Memory, 16 bytes, aligned.
pub(super) struct M128;
/// Memory, `BYTES` bytes, wherever.
pub(super) struct M<const BYTES: u8>;

impl Source for Xmm {
    #[inline(always)]
    fn get(cpu: &mut Cpu, op: &Op) -> Result<u128, Stop> {
        Ok(xmm(cpu, op.rm))
    }
}

impl Source for Mm {
    #[inline(always)]
    fn get(cpu: &mut Cpu, op: &Op) -> Result<u128, Stop> {
        Ok(u128::from(mm(cpu, op.rm)))
    }
}

impl Source for M128 {
    #[inline(always)]
    fn get(cpu: &mut Cpu, op: &Op) -> Result<u128, Stop> {
        let offset = aligned(cpu, op)?;
        cpu.read::<u128>(op.segment, offset)
    }
}

impl<const BYTES: u8> Source for M<BYTES> {
    #[inline(always)]
    fn get(cpu: &mut Cpu, op: &Op) -> Result<u128, Stop> {
        let offset = cpu.operand_address(op);
        Ok(match BYTES {
            1 => u128::from(cpu.read::<u8>(op.segment, offset)?),
            2 => u128::from(cpu.read::<u16>(op.segment, offset)?),
            4 => u128::from(cpu.read::<u32>(op.segment, offset)?),
            8 => u128::from(cpu.read::<u64>(op.segment, offset)?),
            _ => cpu.read::<u128>(op.segment, offset)?,
        })
    }
}

/// A general register or memory of `BYTES` bytes.
#[inline(always)]
pub(super) fn general<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Result<u64, Stop> {
    if op.has_memory() {
        return Ok(M::<BYTES>::get(cpu, op)? as u64);
    }
    Ok(cpu.reg64(op.rm) & (u64::MAX >> (64 - 8 * u32::from(BYTES))))
}

#[inline(always)]
pub(super) fn store<const BYTES: u8>(cpu: &mut Cpu, op: &Op, value: u128) -> Exec {
    let offset = cpu.operand_address(op);
    match BYTES {
        1 => cpu.write(op.segment, offset, value as u8),
        2 => cpu.write(op.segment, offset, value as u16),
        4 => cpu.write(op.segment, offset, value as u32),
        8 => cpu.write(op.segment, offset, value as u64),
        _ => cpu.write(op.segment, offset, value),
    }
}

// ---- Exceptions ------------------------------------------------------------------------------------------------

/// Runs `operation` under the guest's MXCSR; if it raises an unmasked exception, that is the result and nothing else has
/// changed but the flags. `check` is [`sse_unmasked::check`] with the operands.
#[inline(always)]
pub(super) fn under_mxcsr<R>(
    cpu: &mut Cpu,
    operation: impl Fn(u32) -> (R, u32),
    check: impl Fn(&mut Cpu, u32) -> Exec,
) -> Result<R, Stop> {
    let mxcsr = cpu.fpu.mxcsr;
    if mxcsr & MASKS == MASKS {
        let (result, mxcsr) = operation(mxcsr);
        cpu.fpu.mxcsr = mxcsr;
        return Ok(result);
    }
    unmasked(cpu, operation, check)
}

#[cold]
fn unmasked<R>(cpu: &mut Cpu, operation: impl Fn(u32) -> (R, u32), check: impl Fn(&mut Cpu, u32) -> Exec) -> Result<R, Stop> {
    let (result, after) = operation(sse_unmasked::environment(cpu.fpu.mxcsr));
    check(cpu, after)?;
    Ok(result)
}

/// The check of what can neither overflow nor underflow.
pub(super) fn simple(cpu: &mut Cpu, after: u32) -> Exec {
    sse_unmasked::check(cpu, Elements::Simple, &[[0; 2]], 0, after)
}

// ---- Shapes ----------------------------------------------------------------------------------------------------

/// `xmm ← O(xmm, source)`
pub(super) fn lanes<O: Lanes, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let source = S::get(cpu, op)?;
    let result = O::run(xmm(cpu, op.reg), source);
    set_xmm(cpu, op.reg, result);
    Ok(())
}

/// `mm ← O(mm, source)`
pub(super) fn mmx<O: Lanes, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    mmx_ready(cpu)?;
    let source = S::get(cpu, op)?;
    let result = O::run(u128::from(mm(cpu, op.reg)), source);
    set_mm(cpu, op.reg, result as u64);
    Ok(())
}

/// `xmm ← O(xmm, immediate)`: shifts; the register is ModRM.rm's.
pub(super) fn shift<O: Lanes>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let result = O::run(xmm(cpu, op.rm), u128::from(op.imm as u8));
    set_xmm(cpu, op.rm, result);
    Ok(())
}

/// `mm ← O(mm, immediate)`
pub(super) fn mmx_shift<O: Lanes>(cpu: &mut Cpu, op: &Op) -> Exec {
    mmx_ready(cpu)?;
    let result = O::run(u128::from(mm(cpu, op.rm)), u128::from(op.imm as u8));
    set_mm(cpu, op.rm, result as u64);
    Ok(())
}

/// `xmm ← O(xmm, source, immediate)` without arithmetic
pub(super) fn shuffle<O: Shuffle, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let source = S::get(cpu, op)?;
    let result = O::run(xmm(cpu, op.reg), source, op.imm as u8);
    set_xmm(cpu, op.reg, result);
    Ok(())
}

/// `mm ← O(mm, source, immediate)`
pub(super) fn mmx_shuffle<O: Shuffle, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    mmx_ready(cpu)?;
    let source = S::get(cpu, op)?;
    let result = O::run(u128::from(mm(cpu, op.reg)), source, op.imm as u8);
    set_mm(cpu, op.reg, result as u64);
    Ok(())
}

/// `xmm ← O(xmm, source)` under MXCSR
pub(super) fn float<O: Float, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let source = S::get(cpu, op)?;
    let destination = xmm(cpu, op.reg);
    let result = under_mxcsr(
        cpu,
        |mxcsr| O::run(destination, source, mxcsr),
        |cpu, after| sse_unmasked::check(cpu, O::ELEMENTS, &[[destination, source]], 0, after),
    )?;
    set_xmm(cpu, op.reg, result);
    Ok(())
}

/// `xmm ← O(xmm, source, immediate)` under MXCSR
pub(super) fn float_immediate<O: FloatImmediate, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let source = S::get(cpu, op)?;
    let (destination, immediate) = (xmm(cpu, op.reg), op.imm as u8);
    let result = under_mxcsr(
        cpu,
        |mxcsr| O::run(destination, source, mxcsr, immediate),
        |cpu, after| sse_unmasked::check(cpu, O::ELEMENTS, &[[destination, source]], immediate, after),
    )?;
    set_xmm(cpu, op.reg, result);
    Ok(())
}

/// COMISS and the like: RFLAGS ← O(xmm, source)
pub(super) fn compare<O: FloatFlags, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let source = S::get(cpu, op)?;
    let destination = xmm(cpu, op.reg);
    let flags = under_mxcsr(cpu, |mxcsr| O::run(destination, source, mxcsr), simple)?;
    cpu.flags.set_arithmetic(u64::from(flags) & (bit::ZF | bit::PF | bit::CF));
    Ok(())
}

/// CVTSI2SS and the like
pub(super) fn from_integer<O: FromInteger, const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let source = general::<BYTES>(cpu, op)?;
    let destination = xmm(cpu, op.reg);
    let result = under_mxcsr(cpu, |mxcsr| O::run(destination, source, mxcsr), simple)?;
    set_xmm(cpu, op.reg, result);
    Ok(())
}

/// CVTSS2SI and the like
pub(super) fn to_integer<O: ToInteger, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let source = S::get(cpu, op)?;
    let result = under_mxcsr(cpu, |mxcsr| O::run(source, mxcsr), simple)?;
    cpu.set_reg64(op.reg, result);
    Ok(())
}

/// CVTPI2PS, CVTPI2PD: two MMX or memory integers to floats. Only with a register operand is it an MMX instruction.
pub(super) fn from_mmx<O: Float, S: Source, const KEEPS_HIGH: bool, const ENTERS: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    if ENTERS {
        mmx_ready(cpu)?;
    }
    let source = S::get(cpu, op)?;
    if ENTERS {
        // Even if there is an unmasked exception.
        enter_mmx(cpu);
    }
    let result = under_mxcsr(cpu, |mxcsr| O::run(0, source, mxcsr), simple)?;
    let high = if KEEPS_HIGH { xmm(cpu, op.reg) & !u128::from(u64::MAX) } else { result & !u128::from(u64::MAX) };
    set_xmm(cpu, op.reg, high | u128::from(result as u64));
    Ok(())
}

/// CVTPS2PI, CVTPD2PI and the truncating ones: floats to two MMX integers.
pub(super) fn to_mmx<O: Float, S: Source, const HALF: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    mmx_ready(cpu)?;
    // The upper half does not take part: zeros convert without a flag.
    let source = S::get(cpu, op)? & if HALF { u128::from(u64::MAX) } else { u128::MAX };
    enter_mmx(cpu);
    let result = under_mxcsr(cpu, |mxcsr| O::run(0, source, mxcsr), simple)?;
    set_mm(cpu, op.reg, result as u64);
    Ok(())
}

/// PCMPISTRI: ECX ← index
pub(super) fn string_index<O: StringCompare, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let source = S::get(cpu, op)?;
    let found = string_compare::<O>(cpu, op, source);
    cpu.set_reg64(reg::CX, found.result as u64);
    cpu.flags.set_arithmetic(found.rflags);
    Ok(())
}

/// PCMPISTRM: XMM0 ← mask
pub(super) fn string_mask<O: StringCompare, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let source = S::get(cpu, op)?;
    let found = string_compare::<O>(cpu, op, source);
    set_xmm(cpu, 0, found.result);
    cpu.flags.set_arithmetic(found.rflags);
    Ok(())
}

/// Compares the strings in ModRM.reg's register and `source`.
#[inline(always)]
pub(super) fn string_compare<O: StringCompare>(cpu: &Cpu, op: &Op, source: u128) -> StringMatch {
    use iced_x86::Code::*;
    let wide = matches!(
        op.code,
        Pcmpestri64_xmm_xmmm128_imm8
            | Pcmpestrm64_xmm_xmmm128_imm8
            | VEX_Vpcmpestri64_xmm_xmmm128_imm8
            | VEX_Vpcmpestrm64_xmm_xmmm128_imm8
    );
    let length = |number| {
        let whole = cpu.reg64(number) as i64;
        let length = if wide { whole } else { i64::from(whole as i32) };
        length.clamp(-16, 16) as i32
    };
    O::run(xmm(cpu, op.reg), source, [length(reg::AX), length(reg::DX)], op.imm as u8)
}

// ---- Moves -----------------------------------------------------------------------------------------------------

/// A move to an XMM register that replaces all of it.
pub(super) fn load<S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let value = S::get(cpu, op)?;
    set_xmm(cpu, op.reg, value);
    Ok(())
}

/// A move of one XMM register to that of ModRM.rm (the store forms with a register operand).
pub(super) fn store_register(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    set_xmm(cpu, op.rm, xmm(cpu, op.reg));
    Ok(())
}

/// An aligned 16-byte store.
pub(super) fn store_aligned(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let offset = aligned(cpu, op)?;
    cpu.write(op.segment, offset, xmm(cpu, op.reg))
}

/// A store of the low `BYTES` bytes.
pub(super) fn store_low<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    store::<BYTES>(cpu, op, xmm(cpu, op.reg))
}

/// A store of the upper half.
pub(super) fn store_high(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    store::<8>(cpu, op, xmm(cpu, op.reg) >> 64)
}

/// Replaces the low `BITS` bits of `TO` by those of `FROM`.
#[inline(always)]
fn merge<const BITS: u32>(to: u128, from: u128) -> u128 {
    let mask = (1 << BITS) - 1;
    to & !mask | from & mask
}

/// MOVSS/MOVSD register to register, MOVLPS, MOVLPD: the low `BITS` bits change.
pub(super) fn load_low<S: Source, const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let value = S::get(cpu, op)?;
    set_xmm(cpu, op.reg, merge::<BITS>(xmm(cpu, op.reg), value));
    Ok(())
}

/// MOVSS/MOVSD in their store encodings with a register operand.
pub(super) fn store_register_low<const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    set_xmm(cpu, op.rm, merge::<BITS>(xmm(cpu, op.rm), xmm(cpu, op.reg)));
    Ok(())
}

/// MOVHPS, MOVHPD, MOVLHPS: the upper half changes.
pub(super) fn load_high<S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let value = S::get(cpu, op)?;
    set_xmm(cpu, op.reg, merge::<64>(value << 64, xmm(cpu, op.reg)));
    Ok(())
}

/// MOVHLPS
pub(super) fn high_to_low(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    set_xmm(cpu, op.reg, merge::<64>(xmm(cpu, op.reg), xmm(cpu, op.rm) >> 64));
    Ok(())
}

/// MOVQ xmm, xmm: the upper half becomes zero.
pub(super) fn move_quad(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let value = u128::from(xmm(cpu, op.rm) as u64);
    set_xmm(cpu, op.reg, value);
    Ok(())
}

/// MOVQ in its store encoding with a register operand.
pub(super) fn store_register_quad(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let value = u128::from(xmm(cpu, op.reg) as u64);
    set_xmm(cpu, op.rm, value);
    Ok(())
}

/// MOVD, MOVQ: general register or memory to XMM.
pub(super) fn from_general<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let value = general::<BYTES>(cpu, op)?;
    set_xmm(cpu, op.reg, u128::from(value));
    Ok(())
}

/// MOVD, MOVQ: XMM to general register or memory.
pub(super) fn to_general<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let value = xmm(cpu, op.reg);
    if op.has_memory() {
        return store::<BYTES>(cpu, op, value);
    }
    cpu.set_reg(op.rm, BYTES, value as u64 & (u64::MAX >> (64 - 8 * u32::from(BYTES))));
    Ok(())
}

/// MOVD, MOVQ: general register or memory to MMX.
pub(super) fn mmx_from_general<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    mmx_ready(cpu)?;
    let value = general::<BYTES>(cpu, op)?;
    set_mm(cpu, op.reg, value);
    Ok(())
}

/// MOVD, MOVQ: MMX to general register or memory.
pub(super) fn mmx_to_general<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    mmx_ready(cpu)?;
    let value = mm(cpu, op.reg);
    if op.has_memory() {
        store::<BYTES>(cpu, op, u128::from(value))?;
    } else {
        cpu.set_reg(op.rm, BYTES, value & (u64::MAX >> (64 - 8 * u32::from(BYTES))));
    }
    enter_mmx(cpu);
    Ok(())
}

/// MOVQ mm, mm/m64
pub(super) fn mmx_load<S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    mmx_ready(cpu)?;
    let value = S::get(cpu, op)?;
    set_mm(cpu, op.reg, value as u64);
    Ok(())
}

/// MOVQ mm, mm in its store encoding.
pub(super) fn mmx_store_register(cpu: &mut Cpu, op: &Op) -> Exec {
    mmx_ready(cpu)?;
    let value = mm(cpu, op.reg);
    set_mm(cpu, op.rm, value);
    Ok(())
}

/// MOVQ m64, mm and MOVNTQ
pub(super) fn mmx_store(cpu: &mut Cpu, op: &Op) -> Exec {
    mmx_ready(cpu)?;
    let value = mm(cpu, op.reg);
    store::<8>(cpu, op, u128::from(value))?;
    enter_mmx(cpu);
    Ok(())
}

/// MOVQ2DQ
pub(super) fn mmx_to_xmm(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    mmx_ready(cpu)?;
    let value = mm(cpu, op.rm);
    enter_mmx(cpu);
    set_xmm(cpu, op.reg, u128::from(value));
    Ok(())
}

/// MOVDQ2Q
pub(super) fn xmm_to_mmx(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    mmx_ready(cpu)?;
    set_mm(cpu, op.reg, xmm(cpu, op.rm) as u64);
    Ok(())
}

/// MOVNTI
pub(super) fn store_integer<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    store::<BYTES>(cpu, op, u128::from(cpu.reg64(op.reg)))
}

/// EMMS
pub(super) fn emms(cpu: &mut Cpu, _op: &Op) -> Exec {
    mmx_ready(cpu)?;
    cpu.fpu.tags = 0;
    cpu.fpu.status &= !0x3800;
    Ok(())
}

/// MASKMOVDQU, MASKMOVQ: the bytes whose mask has its top bit set go to DS:rDI.
pub(super) fn masked_store<const MMX: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (value, mask, bytes) = if MMX {
        mmx_ready(cpu)?;
        (u128::from(mm(cpu, op.reg)), u128::from(mm(cpu, op.rm)), 8)
    } else {
        sse_ready(cpu)?;
        (xmm(cpu, op.reg), xmm(cpu, op.rm), 16)
    };
    if MMX {
        enter_mmx(cpu);
    }
    store_masked(cpu, op, value, mask, bytes)
}

/// Stores the bytes of `value` whose byte of `mask` has its top bit set at DS:rDI.
pub(super) fn store_masked(cpu: &mut Cpu, op: &Op, value: u128, mask: u128, bytes: u64) -> Exec {
    let start = cpu.reg64(reg::DI) & op.address_mask();
    // All faults first, and as if every byte were written: so do the CPUs at hand. Alignment to 8 bytes is enough.
    if bytes == 8 {
        cpu.probe_write(op.segment, start, bytes)?;
    } else {
        let linear = cpu.spans[usize::from(op.segment & 7)].base.wrapping_add(start);
        let in_page = 0x1000 - (linear & 0xfff);
        cpu.probe_write(op.segment, start, 8)?;
        if in_page < bytes {
            cpu.probe_write(op.segment, start.wrapping_add(in_page) & op.address_mask(), 1)?;
        }
    }
    for byte in (0..bytes).filter(|byte| mask >> (8 * byte + 7) & 1 != 0) {
        cpu.write(op.segment, start.wrapping_add(byte) & op.address_mask(), (value >> (8 * byte)) as u8)?;
    }
    Ok(())
}

// ---- Single elements -------------------------------------------------------------------------------------------

/// Sign bits of `count` lanes of `bits` each.
pub(super) fn sign_mask(value: u128, bits: u32, count: u32) -> u64 {
    (0..count).map(|lane| ((value >> (bits * (lane + 1) - 1)) as u64 & 1) << lane).sum()
}

/// MOVMSKPS, MOVMSKPD, PMOVMSKB
pub(super) fn mask_to_general<const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let mask = sign_mask(xmm(cpu, op.rm), BITS, 128 / BITS);
    cpu.set_reg64(op.reg, mask);
    Ok(())
}

/// PMOVMSKB r, mm
pub(super) fn mmx_mask_to_general(cpu: &mut Cpu, op: &Op) -> Exec {
    mmx_ready(cpu)?;
    let mask = sign_mask(u128::from(mm(cpu, op.rm)), 8, 8);
    enter_mmx(cpu);
    cpu.set_reg64(op.reg, mask);
    Ok(())
}

/// PINSRB, PINSRW, PINSRD, PINSRQ
pub(super) fn insert<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let value = general::<BYTES>(cpu, op)?;
    let bits = 8 * u32::from(BYTES);
    let shift = (op.imm as u32 & (128 / bits - 1)) * bits;
    let mask = u128::from(u64::MAX >> (64 - bits)) << shift;
    set_xmm(cpu, op.reg, xmm(cpu, op.reg) & !mask | u128::from(value) << shift);
    Ok(())
}

/// PEXTRB, PEXTRW (SSE4.1), PEXTRD, PEXTRQ, EXTRACTPS: to a general register, zero-extended, or memory.
pub(super) fn extract<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let bits = 8 * u32::from(BYTES);
    let value = xmm(cpu, op.reg) >> ((op.imm as u32 & (128 / bits - 1)) * bits);
    if op.has_memory() {
        return store::<BYTES>(cpu, op, value);
    }
    cpu.set_reg64(op.rm, value as u64 & (u64::MAX >> (64 - bits)));
    Ok(())
}

/// PEXTRW r, xmm, imm8 of SSE2
pub(super) fn extract_word(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let value = xmm(cpu, op.rm) >> (16 * (op.imm & 7));
    cpu.set_reg64(op.reg, u64::from(value as u16));
    Ok(())
}

/// PINSRW mm, r/m16, imm8
pub(super) fn mmx_insert_word(cpu: &mut Cpu, op: &Op) -> Exec {
    mmx_ready(cpu)?;
    let value = general::<2>(cpu, op)?;
    let shift = 16 * (op.imm & 3);
    let result = mm(cpu, op.reg) & !(0xffff << shift) | value << shift;
    set_mm(cpu, op.reg, result);
    Ok(())
}

/// PEXTRW r, mm, imm8
pub(super) fn mmx_extract_word(cpu: &mut Cpu, op: &Op) -> Exec {
    mmx_ready(cpu)?;
    let value = mm(cpu, op.rm) >> (16 * (op.imm & 3));
    enter_mmx(cpu);
    cpu.set_reg64(op.reg, u64::from(value as u16));
    Ok(())
}

/// PBLENDVB, BLENDVPS, BLENDVPD: XMM0's sign bits choose.
pub(super) fn blend_by_xmm0<S: Source, const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let source = S::get(cpu, op)?;
    let selector = sign_mask(xmm(cpu, 0), BITS, 128 / BITS);
    let result = blend_bytes(xmm(cpu, op.reg), source, selector, BITS / 8);
    set_xmm(cpu, op.reg, result);
    Ok(())
}

/// SHA256RNDS2: message and constants come in XMM0.
pub(super) fn sha256_rounds<S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let source = S::get(cpu, op)?;
    let result = sha256rnds2(xmm(cpu, op.reg), source, xmm(cpu, 0));
    set_xmm(cpu, op.reg, result);
    Ok(())
}

/// PTEST
pub(super) fn test<S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    sse_ready(cpu)?;
    let source = S::get(cpu, op)?;
    let destination = xmm(cpu, op.reg);
    let zf = if source & destination == 0 { bit::ZF } else { 0 };
    let cf = if source & !destination == 0 { bit::CF } else { 0 };
    cpu.flags.set_arithmetic(zf | cf);
    Ok(())
}

/// CRC32: the Castagnoli polynomial, bit-reflected. The accumulator is ModRM.reg's register.
pub(super) fn crc32<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = match (op.has_memory(), BYTES) {
        (false, 1) => u64::from(cpu.reg8(op.rm & (15 | HIGH_BYTE))),
        _ => general::<BYTES>(cpu, op)?,
    };
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let crc = value.to_le_bytes()[..usize::from(BYTES)].iter().fold(cpu.reg32(op.reg), |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 != 0 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 })
    });
    cpu.set_reg32(op.reg, crc);
    Ok(())
}

/// PREFETCH*: a hint that nobody takes.
pub(super) fn prefetch(_cpu: &mut Cpu, _op: &Op) -> Exec {
    Ok(())
}

/// LFENCE, SFENCE, MFENCE
pub(super) fn fence(_cpu: &mut Cpu, _op: &Op) -> Exec {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

/// CLFLUSH: checked like a byte load; guest memory has no caches.
pub(super) fn clflush(cpu: &mut Cpu, op: &Op) -> Exec {
    let offset = cpu.operand_address(op);
    cpu.probe_read(op.segment, offset, 1)
}
