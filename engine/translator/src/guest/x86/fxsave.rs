//! The x87, MMX, SSE and AVX state as memory images: FXSAVE, FXRSTOR, the XSAVE family, LDMXCSR and STMXCSR.
//!
//! XINUSE is kept by looking: a component that holds its initial values is not in use. XSAVEOPT does without the "modified"
//! optimisation, which software cannot tell.
//! See: Intel SDM volume 1, 10.5 and chapter 13.

use super::cpu::{Cpu, cr0, cr4, is_canonical, seg};
use super::cpuid::feature;
use super::fault::{Exec, Stop, vector};
use super::op::{Handler, Op};
use super::x87;
use crate::mmu::class;
use iced_x86::Code;

/// Bits of MXCSR that exist; loading another is #GP(0).
const MXCSR_MASK: u32 = 0xffff;
const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
/// XCOMP_BV bit 63: the compacted format.
const COMPACTED: u64 = 1 << 63;
const HEADER: usize = 512;
/// Where the upper halves of the YMM registers lie, behind the header, and how long they are.
const AVX_AREA: usize = 576;
const AVX_BYTES: usize = 256;
const INITIAL_MXCSR: u32 = 0x1f80;

/// The handlers of this file.
pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Fxsave_m512byte => fxsave::<false>,
        Code::Fxsave64_m512byte => fxsave::<true>,
        Code::Fxrstor_m512byte => fxrstor::<false>,
        Code::Fxrstor64_m512byte => fxrstor::<true>,
        Code::Xsave_mem => xsave::<false, PLAIN>,
        Code::Xsave64_mem => xsave::<true, PLAIN>,
        Code::Xsaveopt_mem => xsave::<false, OPTIMISED>,
        Code::Xsaveopt64_mem => xsave::<true, OPTIMISED>,
        Code::Xsavec_mem => xsave::<false, COMPACT>,
        Code::Xsavec64_mem => xsave::<true, COMPACT>,
        Code::Xrstor_mem => xrstor::<false>,
        Code::Xrstor64_mem => xrstor::<true>,
        Code::Ldmxcsr_m32 => ldmxcsr::<false>,
        Code::Stmxcsr_m32 => stmxcsr::<false>,
        _ => return None,
    })
}

// ---- The legacy region -----------------------------------------------------------------------------------------

fn put(image: &mut [u8], offset: usize, bytes: &[u8]) {
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn word(image: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([image[offset], image[offset + 1]])
}

fn quad(image: &[u8], offset: usize) -> u64 {
    image[offset..offset + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The first 160 bytes, x87 part: all but MXCSR and its mask.
fn put_x87(cpu: &Cpu, image: &mut [u8], wide: bool) {
    let fpu = &cpu.fpu;
    put(image, 0, &fpu.control.to_le_bytes());
    put(image, 2, &fpu.status.to_le_bytes());
    put(image, 4, &[fpu.tags, 0]);
    put(image, 6, &fpu.opcode.to_le_bytes());
    put(image, 8, &fpu.instruction_pointer.to_le_bytes());
    put(image, 16, &fpu.data_pointer.to_le_bytes());
    if !wide {
        put(image, 12, &u32::from(fpu.instruction_segment).to_le_bytes());
        put(image, 20, &u32::from(fpu.data_segment).to_le_bytes());
    }
    for i in 0..8 {
        put(image, 32 + 16 * i, &x87::stack_register(cpu, i as u8).to_le_bytes());
    }
}

fn get_x87(cpu: &mut Cpu, image: &[u8], wide: bool) {
    let fpu = &mut cpu.fpu;
    fpu.control = x87::valid_control(word(image, 0));
    fpu.status = word(image, 2);
    fpu.tags = image[4];
    fpu.opcode = word(image, 6) & 0x7ff;
    fpu.instruction_pointer = quad(image, 8);
    fpu.data_pointer = quad(image, 16);
    if !wide {
        fpu.instruction_pointer &= 0xffff_ffff;
        fpu.data_pointer &= 0xffff_ffff;
        fpu.instruction_segment = word(image, 12);
        fpu.data_segment = word(image, 20);
    }
    let top = usize::from(fpu.status >> 11 & 7);
    for i in 0..8 {
        let offset = 32 + 16 * i;
        fpu.registers[(top + i) & 7] = u128::from(quad(image, offset)) | u128::from(word(image, offset + 8)) << 64;
    }
    x87::update_summary(cpu);
}

/// XMM0 to XMM7 outside 64-bit code, XMM0 to XMM15 in it.
fn xmm_count(cpu: &Cpu) -> usize {
    if cpu.is_64_bit() { 16 } else { 8 }
}

fn put_xmm(cpu: &Cpu, image: &mut [u8]) {
    for i in 0..xmm_count(cpu) {
        put(image, 160 + 16 * i, &cpu.fpu.xmm[i].to_le_bytes());
    }
}

fn get_xmm(cpu: &mut Cpu, image: &[u8]) {
    for i in 0..xmm_count(cpu) {
        let offset = 160 + 16 * i;
        cpu.fpu.xmm[i] = u128::from(quad(image, offset)) | u128::from(quad(image, offset + 8)) << 64;
    }
}

fn put_mxcsr(cpu: &Cpu, image: &mut [u8]) {
    put(image, 24, &cpu.fpu.mxcsr.to_le_bytes());
    put(image, 28, &MXCSR_MASK.to_le_bytes());
}

/// MXCSR of an image; #GP(0) if it has bits that do not exist.
fn mxcsr_of(image: &[u8]) -> Result<u32, Stop> {
    let mxcsr = quad(image, 24) as u32;
    if mxcsr & !MXCSR_MASK != 0 { Err(Stop::gp(0)) } else { Ok(mxcsr) }
}

/// Reads the whole of `image`; faults come in the order of addresses.
fn read_image(cpu: &mut Cpu, op: &Op, start: u64, image: &mut [u8]) -> Exec {
    for (i, chunk) in image.chunks_exact_mut(8).enumerate() {
        let value: u64 = cpu.read(op.segment, start.wrapping_add(8 * i as u64) & op.address_mask())?;
        chunk.copy_from_slice(&value.to_le_bytes());
    }
    Ok(())
}

fn write_image(cpu: &mut Cpu, op: &Op, start: u64, image: &[u8]) -> Exec {
    for (i, chunk) in image.chunks_exact(8).enumerate() {
        cpu.write(op.segment, start.wrapping_add(8 * i as u64) & op.address_mask(), quad(chunk, 0))?;
    }
    Ok(())
}

/// The offset of an image that must be aligned to `alignment` bytes.
fn image_address(cpu: &Cpu, op: &Op, alignment: u64) -> Result<u64, Stop> {
    let offset = cpu.operand_address(op);
    let linear = cpu.spans[usize::from(op.segment & 7)].base.wrapping_add(offset);
    if linear & (alignment - 1) == 0 {
        return Ok(offset);
    }
    // With alignment checks on, what is not even aligned to 4 bytes is #AC for FXSAVE and FXRSTOR.
    let span = &cpu.spans[usize::from(op.segment & 7)];
    let reachable = if cpu.is_64_bit() { is_canonical(linear) } else { offset.wrapping_add(512) <= span.read_end };
    let checked = alignment == 16 && cpu.tlb_class == class::USER_ALIGNED && linear & 3 != 0 && reachable;
    Err(if checked {
        Stop::with_error(vector::AC, 0)
    } else if alignment == 16 && !reachable && op.segment == seg::SS {
        Stop::ss(0)
    } else {
        Stop::gp(0)
    })
}

fn fxsave<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.cr0 & (cr0::EM | cr0::TS) != 0 {
        return Err(Stop::nm());
    }
    let start = image_address(cpu, op, 16)?;
    cpu.probe_write(op.segment, start, 512)?;
    let mut image = [0; 416];
    put_x87(cpu, &mut image, WIDE);
    put_mxcsr(cpu, &mut image);
    let mut length = 160;
    if cpu.cr4 & cr4::OSFXSR != 0 {
        put_xmm(cpu, &mut image);
        length += 16 * xmm_count(cpu);
    }
    write_image(cpu, op, start, &image[..length])
}

fn fxrstor<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.cr0 & (cr0::EM | cr0::TS) != 0 {
        return Err(Stop::nm());
    }
    let start = image_address(cpu, op, 16)?;
    let mut image = [0; 512];
    read_image(cpu, op, start, &mut image)?;
    let mxcsr = mxcsr_of(&image)?;
    get_x87(cpu, &image, WIDE);
    if cpu.cr4 & cr4::OSFXSR != 0 {
        cpu.fpu.mxcsr = mxcsr;
        cpu.mxcsr_changed();
        get_xmm(cpu, &image);
    }
    Ok(())
}

// ---- XSAVE -----------------------------------------------------------------------------------------------------

const PLAIN: u8 = 0;
const OPTIMISED: u8 = 1;
const COMPACT: u8 = 2;

/// #UD and #NM, then the requested components.
fn requested(cpu: &Cpu) -> Result<u64, Stop> {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(Stop::ud());
    }
    if cpu.cr0 & cr0::TS != 0 {
        return Err(Stop::nm());
    }
    let mask = u64::from(cpu.reg32(super::cpu::reg::AX)) | u64::from(cpu.reg32(super::cpu::reg::DX)) << 32;
    Ok(cpu.xcr0 & mask)
}

/// XINUSE: the components that do not hold their initial values. MXCSR is not looked at.
pub(super) fn in_use(cpu: &Cpu) -> u64 {
    let fpu = &cpu.fpu;
    let initial = fpu.control == 0x37f
        && fpu.status == 0
        && fpu.tags == 0
        && fpu.opcode == 0
        && fpu.instruction_pointer == 0
        && fpu.data_pointer == 0
        && fpu.registers.iter().all(|register| *register == 0);
    let holds = |registers: &[u128; 16]| registers.iter().any(|register| *register != 0);
    (u64::from(!initial) * X87) | (u64::from(holds(&fpu.xmm)) * SSE) | (u64::from(holds(&fpu.ymm_high)) * AVX)
}

fn xsave<const WIDE: bool, const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let requested = requested(cpu)?;
    let start = image_address(cpu, op, 64)?;
    let mut used = in_use(cpu);
    if FORM == COMPACT && cpu.fpu.mxcsr != INITIAL_MXCSR {
        // XSAVEC counts MXCSR as part of the XMM registers.
        used |= SSE;
    }
    // A component in its initial state is written only by plain XSAVE.
    let written = if FORM == PLAIN { requested } else { requested & used };
    let length = if written & AVX != 0 { AVX_AREA + AVX_BYTES } else { AVX_AREA };
    cpu.probe_write(op.segment, start, length as u64)?;
    let mut image = [0; AVX_AREA + AVX_BYTES];
    read_image(cpu, op, start, &mut image[..length])?;
    if written & X87 != 0 {
        put_x87(cpu, &mut image, WIDE);
    }
    // XSAVE and XSAVEOPT store MXCSR whenever SSE or AVX is asked for; XSAVEC only with SSE's state.
    let mxcsr = if FORM == COMPACT { written & SSE } else { requested & (SSE | AVX) };
    if mxcsr != 0 {
        put_mxcsr(cpu, &mut image);
    }
    if written & SSE != 0 {
        put_xmm(cpu, &mut image);
    }
    if written & AVX != 0 {
        for i in 0..xmm_count(cpu) {
            put(&mut image, AVX_AREA + 16 * i, &cpu.fpu.ymm_high[i].to_le_bytes());
        }
    }
    let old = quad(&image, HEADER);
    if FORM == COMPACT {
        put(&mut image, HEADER, &(requested & used).to_le_bytes());
        put(&mut image, HEADER + 8, &(requested | COMPACTED).to_le_bytes());
    } else {
        put(&mut image, HEADER, &(old & !requested | requested & used).to_le_bytes());
    }
    write_image(cpu, op, start, &image[..length])
}

fn xrstor<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let requested = requested(cpu)?;
    let start = image_address(cpu, op, 64)?;
    let mut image = [0; AVX_AREA + AVX_BYTES];
    read_image(cpu, op, start, &mut image[..AVX_AREA])?;
    let (present, layout) = (quad(&image, HEADER), quad(&image, HEADER + 8));
    let compacted = layout & COMPACTED != 0;
    let allowed = if compacted { layout & !COMPACTED } else { cpu.xcr0 };
    let reserved = if compacted { 16..64 } else { 8..24 };
    if compacted && !cpu.cpuid.has(feature::XSAVEC)
        || allowed & !cpu.xcr0 != 0
        || present & !allowed != 0
        || reserved.clone().any(|byte| image[HEADER + byte] != 0)
    {
        return Err(Stop::gp(0));
    }
    let mxcsr = if compacted {
        match requested & SSE {
            0 => None,
            _ if present & SSE != 0 => Some(mxcsr_of(&image)?),
            _ => Some(INITIAL_MXCSR),
        }
    } else if requested & (SSE | AVX) != 0 {
        Some(mxcsr_of(&image)?)
    } else {
        None
    };
    if requested & present & AVX != 0 {
        // In either format it lies right behind the header: no component comes before it.
        let from = start.wrapping_add(AVX_AREA as u64) & op.address_mask();
        read_image(cpu, op, from, &mut image[AVX_AREA..])?;
    }
    if requested & X87 != 0 {
        if present & X87 != 0 {
            get_x87(cpu, &image, WIDE);
        } else {
            x87::initialise(cpu);
            cpu.fpu.registers = [0; 8];
        }
    }
    let count = xmm_count(cpu);
    if requested & SSE != 0 {
        if present & SSE != 0 {
            get_xmm(cpu, &image);
        } else {
            cpu.fpu.xmm[..count].fill(0);
        }
    }
    if requested & AVX != 0 {
        // What is not present is zero in `image`.
        for i in 0..count {
            let offset = AVX_AREA + 16 * i;
            cpu.fpu.ymm_high[i] = u128::from(quad(&image, offset)) | u128::from(quad(&image, offset + 8)) << 64;
        }
    }
    if let Some(mxcsr) = mxcsr {
        cpu.fpu.mxcsr = mxcsr;
        cpu.mxcsr_changed();
    }
    Ok(())
}

// ---- MXCSR -----------------------------------------------------------------------------------------------------

fn mxcsr_ready<const VEX: bool>(cpu: &Cpu) -> Exec {
    if VEX { super::vex::vex_ready(cpu) } else { super::sse::sse_ready(cpu) }
}

/// LDMXCSR, VLDMXCSR
pub(super) fn ldmxcsr<const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    mxcsr_ready::<VEX>(cpu)?;
    let offset = cpu.operand_address(op);
    let mxcsr: u32 = cpu.read(op.segment, offset)?;
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(Stop::gp(0));
    }
    cpu.fpu.mxcsr = mxcsr;
    cpu.mxcsr_changed();
    Ok(())
}

/// STMXCSR, VSTMXCSR
pub(super) fn stmxcsr<const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    mxcsr_ready::<VEX>(cpu)?;
    let offset = cpu.operand_address(op);
    cpu.write(op.segment, offset, cpu.fpu.mxcsr)
}
