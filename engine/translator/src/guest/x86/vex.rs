//! AVX, AVX2, FMA, F16C: the shapes of VEX-encoded vector instructions. What an instruction computes is, lane by lane of 128
//! bits, what its SSE ancestor does: a type of [`super::host_fp`] or [`super::shuffle`], put on two lanes by an adapter of
//! `vex_lanes.rs`. Which instruction is which, is `vex_table.rs`; memory under a mask is `vex_memory.rs`.
//!
//! A VEX instruction writes a whole register: with 128 bits, the upper half becomes zero. Memory operands may lie anywhere but
//! for the aligned moves. The instructions exist in protected mode only, once the system has enabled YMM state in XCR0.
//! See: Intel SDM volume 1, chapter 14; volume 2, 2.3 and 2.4.

use super::cpu::{Cpu, cr0, reg};
use super::fault::{Exec, Stop};
use super::flags::bit;
use super::host_fp::{FloatFlags, FromInteger, Fused, Lanes, StringCompare, ToInteger, singles_to_halves};
use super::op::Op;
use super::shuffle::blend_bytes;
use super::sse::{general, sign_mask, simple, store, string_compare, under_mxcsr};
use super::sse_unmasked;
use super::vex_lanes::{Wide, WideFloat, WideOp};

// ---- Preconditions and registers -------------------------------------------------------------------------------

/// #UD and #NM of VEX-encoded vector instructions.
#[inline(always)]
pub(super) fn vex_ready(cpu: &Cpu) -> Exec {
    if !cpu.avx_enabled() {
        return Err(Stop::ud());
    }
    if cpu.cr0 & cr0::TS != 0 { Err(Stop::nm()) } else { Ok(()) }
}

/// How many vector registers the running code has.
fn register_count(cpu: &Cpu) -> usize {
    if cpu.is_64_bit() { 16 } else { 8 }
}

#[inline(always)]
pub(super) fn ymm(cpu: &Cpu, number: u8) -> Wide {
    let number = usize::from(number & 15);
    [cpu.fpu.xmm[number], cpu.fpu.ymm_high[number]]
}

/// Sets a register: all of it if `WIDE`, else its lower half, and the upper one becomes zero.
#[inline(always)]
pub(super) fn set<const WIDE: bool>(cpu: &mut Cpu, number: u8, [low, high]: Wide) {
    let number = usize::from(number & 15);
    cpu.fpu.xmm[number] = low;
    cpu.fpu.ymm_high[number] = if WIDE { high } else { 0 };
}

// ---- Operands --------------------------------------------------------------------------------------------------

/// Where the last source is.
pub(super) trait Source {
    /// Its value, zero-extended.
    fn get(cpu: &mut Cpu, op: &Op) -> Result<Wide, Stop>;
}

/// The register of ModRM.rm.
pub(super) struct Reg;
/// Memory, `BYTES` bytes, wherever.
pub(super) struct Mem<const BYTES: u8>;
/// Memory, `BYTES` bytes, aligned.
pub(super) struct Aligned<const BYTES: u8>;

impl Source for Reg {
    #[inline(always)]
    fn get(cpu: &mut Cpu, op: &Op) -> Result<Wide, Stop> {
        Ok(ymm(cpu, op.rm))
    }
}

impl<const BYTES: u8> Source for Mem<BYTES> {
    #[inline(always)]
    fn get(cpu: &mut Cpu, op: &Op) -> Result<Wide, Stop> {
        let offset = cpu.operand_address(op);
        let narrow = match BYTES {
            1 => u128::from(cpu.read::<u8>(op.segment, offset)?),
            2 => u128::from(cpu.read::<u16>(op.segment, offset)?),
            4 => u128::from(cpu.read::<u32>(op.segment, offset)?),
            8 => u128::from(cpu.read::<u64>(op.segment, offset)?),
            16 => cpu.read::<u128>(op.segment, offset)?,
            _ => return read_wide(cpu, op.segment, offset),
        };
        Ok([narrow, 0])
    }
}

impl<const BYTES: u8> Source for Aligned<BYTES> {
    #[inline(always)]
    fn get(cpu: &mut Cpu, op: &Op) -> Result<Wide, Stop> {
        check_alignment::<BYTES>(cpu, op)?;
        Mem::<BYTES>::get(cpu, op)
    }
}

/// #GP(0) if the memory operand does not lie at a multiple of `BYTES`.
#[inline(always)]
fn check_alignment<const BYTES: u8>(cpu: &Cpu, op: &Op) -> Exec {
    let offset = cpu.operand_address(op);
    let linear = cpu.spans[usize::from(op.segment & 7)].base.wrapping_add(offset);
    if linear & u64::from(BYTES - 1) != 0 { Err(Stop::gp(0)) } else { Ok(()) }
}

/// 32 bytes: all faults of the whole come before the first half is read.
fn read_wide(cpu: &mut Cpu, segment: u8, offset: u64) -> Result<Wide, Stop> {
    cpu.probe_read(segment, offset, 32)?;
    Ok([cpu.read(segment, offset)?, cpu.read(segment, offset.wrapping_add(16))?])
}

fn write_wide(cpu: &mut Cpu, segment: u8, offset: u64, [low, high]: Wide) -> Exec {
    cpu.probe_write(segment, offset, 32)?;
    cpu.write(segment, offset, low)?;
    cpu.write(segment, offset.wrapping_add(16), high)
}

// ---- Shapes ----------------------------------------------------------------------------------------------------

/// `reg ← O(vvvv, source, immediate)`; what has one source does not look at `vvvv`.
pub(super) fn lanes<O: WideOp, S: Source, const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let source = S::get(cpu, op)?;
    let result = O::run(ymm(cpu, op.vvvv), source, op.imm as u8);
    set::<WIDE>(cpu, op.reg, result);
    Ok(())
}

/// `vvvv ← O(rm, immediate)`: shifts.
pub(super) fn shift<O: Lanes, const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let count = u128::from(op.imm as u8);
    let result = ymm(cpu, op.rm).map(|half| O::run(half, count));
    set::<WIDE>(cpu, op.vvvv, result);
    Ok(())
}

/// `reg ← O(vvvv, source, immediate)` under MXCSR
pub(super) fn float<O: WideFloat, S: Source, const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let source = S::get(cpu, op)?;
    let (first, immediate) = (ymm(cpu, op.vvvv), op.imm as u8);
    let result = under_mxcsr(
        cpu,
        |mxcsr| O::run::<WIDE>(first, source, immediate, mxcsr),
        |cpu, after| {
            let pairs = [[first[0], source[0]], [first[1], source[1]]];
            sse_unmasked::check(cpu, O::ELEMENTS, &pairs[..1 + usize::from(WIDE)], immediate, after)
        },
    )?;
    set::<WIDE>(cpu, op.reg, result);
    Ok(())
}

/// `reg ← O(reg, vvvv, source)` under MXCSR: fused multiplication and addition.
pub(super) fn fused<O: Fused, S: Source, const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let [c, b, a] = [S::get(cpu, op)?, ymm(cpu, op.vvvv), ymm(cpu, op.reg)];
    let result = under_mxcsr(
        cpu,
        |mxcsr| {
            let (low, mxcsr) = O::run(a[0], b[0], c[0], mxcsr);
            let (high, mxcsr) = if WIDE { O::run(a[1], b[1], c[1], mxcsr) } else { (0, mxcsr) };
            ([low, high], mxcsr)
        },
        |cpu, _| {
            let halves = [[a[0], b[0], c[0]], [a[1], b[1], c[1]]];
            sse_unmasked::check_fused(cpu, O::SHAPE, &halves[..1 + usize::from(WIDE)], O::run)
        },
    )?;
    set::<WIDE>(cpu, op.reg, result);
    Ok(())
}

/// VCOMISS and the like: RFLAGS ← O(reg, source)
pub(super) fn compare<O: FloatFlags, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let [source, _] = S::get(cpu, op)?;
    let [first, _] = ymm(cpu, op.reg);
    let flags = under_mxcsr(cpu, |mxcsr| O::run(first, source, mxcsr), simple)?;
    cpu.flags.set_arithmetic(u64::from(flags) & (bit::ZF | bit::PF | bit::CF));
    Ok(())
}

/// VCVTSI2SS and the like
pub(super) fn from_integer<O: FromInteger, const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let source = general::<BYTES>(cpu, op)?;
    let [first, _] = ymm(cpu, op.vvvv);
    let result = under_mxcsr(cpu, |mxcsr| O::run(first, source, mxcsr), simple)?;
    set::<false>(cpu, op.reg, [result, 0]);
    Ok(())
}

/// VCVTSS2SI and the like
pub(super) fn to_integer<O: ToInteger, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let [source, _] = S::get(cpu, op)?;
    let result = under_mxcsr(cpu, |mxcsr| O::run(source, mxcsr), simple)?;
    cpu.set_reg64(op.reg, result);
    Ok(())
}

/// VCVTPS2PH: the one conversion with a destination in memory.
pub(super) fn to_halves<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let (source, immediate) = (ymm(cpu, op.reg), op.imm as u8);
    if op.has_memory() {
        // Faults of the store go before those of the conversion, and leave the flags alone.
        cpu.probe_write(op.segment, cpu.operand_address(op), if WIDE { 16 } else { 8 })?;
    }
    let result = under_mxcsr(
        cpu,
        |mxcsr| {
            let (low, mxcsr) = singles_to_halves(source[0], mxcsr, immediate);
            let (high, mxcsr) = if WIDE { singles_to_halves(source[1], mxcsr, immediate) } else { (0, mxcsr) };
            (low & u128::from(u64::MAX) | high << 64, mxcsr)
        },
        |cpu, _| {
            let singles: [u32; 8] = std::array::from_fn(|lane| (source[lane / 4] >> (32 * (lane % 4))) as u32);
            sse_unmasked::check_to_half(cpu, &singles[..if WIDE { 8 } else { 4 }], |single, mxcsr| {
                let (half, mxcsr) = singles_to_halves(u128::from(single), mxcsr, immediate);
                (half as u16, mxcsr)
            })
        },
    )?;
    if !op.has_memory() {
        set::<false>(cpu, op.rm, [result, 0]);
        return Ok(());
    }
    if WIDE { store::<16>(cpu, op, result) } else { store::<8>(cpu, op, result) }
}

/// VPCMPISTRI, VPCMPESTRI: ECX ← index
pub(super) fn string_index<O: StringCompare, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let [source, _] = S::get(cpu, op)?;
    let found = string_compare::<O>(cpu, op, source);
    cpu.set_reg64(reg::CX, found.result as u64);
    cpu.flags.set_arithmetic(found.rflags);
    Ok(())
}

/// VPCMPISTRM, VPCMPESTRM: XMM0 ← mask
pub(super) fn string_mask<O: StringCompare, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let [source, _] = S::get(cpu, op)?;
    let found = string_compare::<O>(cpu, op, source);
    set::<false>(cpu, 0, [found.result, 0]);
    cpu.flags.set_arithmetic(found.rflags);
    Ok(())
}

/// VPTEST, VTESTPS, VTESTPD: of the lanes of `BITS` bits only the signs count, if they are not whole registers.
pub(super) fn test<S: Source, const WIDE: bool, const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let source = S::get(cpu, op)?;
    let first = ymm(cpu, op.reg);
    let looked_at = match BITS {
        32 => 0x8000_0000_8000_0000_8000_0000_8000_0000,
        64 => 0x8000_0000_0000_0000_8000_0000_0000_0000,
        _ => u128::MAX,
    };
    let high = if WIDE { looked_at } else { 0 };
    let both = source[0] & first[0] & looked_at | source[1] & first[1] & high;
    let rest = source[0] & !first[0] & looked_at | source[1] & !first[1] & high;
    let zf = if both == 0 { bit::ZF } else { 0 };
    let cf = if rest == 0 { bit::CF } else { 0 };
    cpu.flags.set_arithmetic(zf | cf);
    Ok(())
}

/// VBLENDVPS, VBLENDVPD, VPBLENDVB: the sign bits of the register in the immediate choose.
pub(super) fn blend<S: Source, const WIDE: bool, const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let source = S::get(cpu, op)?;
    let (first, mask) = (ymm(cpu, op.vvvv), ymm(cpu, op.imm2));
    let half = |at: usize| blend_bytes(first[at], source[at], sign_mask(mask[at], BITS, 128 / BITS), BITS / 8);
    set::<WIDE>(cpu, op.reg, [half(0), half(1)]);
    Ok(())
}

// ---- Moves -----------------------------------------------------------------------------------------------------

/// A move of a register to that of ModRM.rm.
pub(super) fn store_register<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    set::<WIDE>(cpu, op.rm, ymm(cpu, op.reg));
    Ok(())
}

/// VMOVSS, VMOVSD in their store encodings with registers: the low `BITS` bits of `reg`, the rest of `vvvv`.
pub(super) fn store_register_low<const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let mask = (1 << BITS) - 1;
    let ([rest, _], [low, _]) = (ymm(cpu, op.vvvv), ymm(cpu, op.reg));
    set::<false>(cpu, op.rm, [rest & !mask | low & mask, 0]);
    Ok(())
}

/// VMOVQ in its store encoding with a register operand.
pub(super) fn store_register_quad(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let [low, _] = ymm(cpu, op.reg);
    set::<false>(cpu, op.rm, [u128::from(low as u64), 0]);
    Ok(())
}

/// A store of `BYTES` bytes.
pub(super) fn store_to_memory<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let value = ymm(cpu, op.reg);
    if BYTES == 32 {
        return write_wide(cpu, op.segment, cpu.operand_address(op), value);
    }
    store::<BYTES>(cpu, op, value[0])
}

/// A store of `BYTES` aligned bytes.
pub(super) fn store_aligned<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    check_alignment::<BYTES>(cpu, op)?;
    store_to_memory::<BYTES>(cpu, op)
}

/// VMOVHPS to memory.
pub(super) fn store_high(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    store::<8>(cpu, op, ymm(cpu, op.reg)[0] >> 64)
}

/// VEXTRACTF128, VEXTRACTI128
pub(super) fn extract_half(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let half = ymm(cpu, op.reg)[op.imm as usize & 1];
    if op.has_memory() {
        return store::<16>(cpu, op, half);
    }
    set::<false>(cpu, op.rm, [half, 0]);
    Ok(())
}

/// VMOVD, VMOVQ from a general register or memory.
pub(super) fn from_general<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let value = general::<BYTES>(cpu, op)?;
    set::<false>(cpu, op.reg, [u128::from(value), 0]);
    Ok(())
}

/// VMOVD, VMOVQ to a general register or memory; VPEXTRB and the like.
pub(super) fn extract<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let bits = 8 * u32::from(BYTES);
    let value = ymm(cpu, op.reg)[0] >> ((op.imm as u32 & (128 / bits - 1)) * bits);
    if op.has_memory() {
        return store::<BYTES>(cpu, op, value);
    }
    cpu.set_reg64(op.rm, value as u64 & (u64::MAX >> (64 - bits)));
    Ok(())
}

/// VPEXTRW in the encoding of SSE2.
pub(super) fn extract_word(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let value = ymm(cpu, op.rm)[0] >> (16 * (op.imm & 7));
    cpu.set_reg64(op.reg, u64::from(value as u16));
    Ok(())
}

/// VPINSRB and the like
pub(super) fn insert<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let value = general::<BYTES>(cpu, op)?;
    let bits = 8 * u32::from(BYTES);
    let shift = (op.imm as u32 & (128 / bits - 1)) * bits;
    let mask = u128::from(u64::MAX >> (64 - bits)) << shift;
    let [first, _] = ymm(cpu, op.vvvv);
    set::<false>(cpu, op.reg, [first & !mask | u128::from(value) << shift, 0]);
    Ok(())
}

/// VMOVMSKPS, VMOVMSKPD, VPMOVMSKB
pub(super) fn mask_to_general<const WIDE: bool, const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let [low, high] = ymm(cpu, op.rm).map(|half| sign_mask(half, BITS, 128 / BITS));
    cpu.set_reg64(op.reg, low | if WIDE { high << (128 / BITS) } else { 0 });
    Ok(())
}

/// VZEROUPPER, VZEROALL
pub(super) fn zero_registers<const ALL: bool>(cpu: &mut Cpu, _: &Op) -> Exec {
    vex_ready(cpu)?;
    let count = register_count(cpu);
    cpu.fpu.ymm_high[..count].fill(0);
    if ALL {
        cpu.fpu.xmm[..count].fill(0);
    }
    Ok(())
}
