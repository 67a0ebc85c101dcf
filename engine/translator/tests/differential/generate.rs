//! Makes cases from iced's instruction tables: for each form (an opcode, in register or memory shape, in a mode) random
//! encodings that decode to it, with registers, memory and immediates steered towards the interesting.

use crate::{
    case::{CODE_BASE, CODE_BYTES, Case, FxImage, MODE_32, Registers, WINDOW_BASE, WINDOW_BYTES},
    native::GS_BASE,
    values::Random,
};
use iced_x86::{
    Code, ConstantOffsets, CpuidFeature, Decoder, DecoderOptions, EncodingKind, Instruction, MandatoryPrefix, Mnemonic,
    OpCodeOperandKind, OpCodeTableKind, OpKind, Register,
};

/// What is covered or not: one opcode in one shape in one mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Form {
    pub code: Code,
    pub mode: u32,
    pub shape: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shape {
    Register,
    Memory,
}

/// The features of x86-64-v3 and what every such CPU also has.
const FEATURES: &[CpuidFeature] = {
    use CpuidFeature as F;
    &[
        F::INTEL8086,
        F::INTEL186,
        F::INTEL286,
        F::INTEL386,
        F::INTEL486,
        F::X64,
        F::CMOV,
        F::CX8,
        F::CMPXCHG16B,
        F::FPU,
        F::FPU287,
        F::FPU387,
        F::MMX,
        F::SSE,
        F::SSE2,
        F::SSE3,
        F::SSSE3,
        F::SSE4_1,
        F::SSE4_2,
        F::POPCNT,
        F::FXSR,
        F::MULTIBYTENOP,
        F::PAUSE,
        F::CLFSH,
        F::PREFETCHW,
        F::XSAVE,
        F::XSAVEOPT,
        F::XSAVEC,
        F::MSR,
        F::INTEL8086_ONLY,
        F::LZCNT,
        F::BMI1,
        F::BMI2,
        F::ADX,
        F::MOVBE,
        F::AES,
        F::PCLMULQDQ,
        F::SHA,
        F::AVX,
        F::AVX2,
        F::FMA,
        F::F16C,
        F::VAES,
        F::VPCLMULQDQ,
    ]
};

/// Whether the host has what is not in x86-64-v2.
fn is_on_host(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    use std::arch::is_x86_feature_detected as detected;
    match feature {
        F::LZCNT => detected!("lzcnt"),
        F::BMI1 => detected!("bmi1"),
        F::BMI2 => detected!("bmi2"),
        F::ADX => detected!("adx"),
        F::MOVBE => detected!("movbe"),
        F::AES => detected!("aes"),
        F::PCLMULQDQ => detected!("pclmulqdq"),
        F::SHA => detected!("sha"),
        F::AVX => detected!("avx"),
        F::AVX2 => detected!("avx2"),
        F::FMA => detected!("fma"),
        F::F16C => detected!("f16c"),
        F::VAES => detected!("vaes"),
        F::VPCLMULQDQ => detected!("vpclmulqdq"),
        _ => true,
    }
}

/// Why the host cannot be asked about an instruction.
fn excluded(code: Code) -> Option<&'static str> {
    use Mnemonic::*;
    Some(match code.mnemonic() {
        Rdtsc | Rdpmc | Cpuid | Xgetbv => "answers differ from machine to machine",
        Syscall | Sysenter | Int | Int1 | Int3 => "enters the host's kernel, or is the sign that a case is over",
        Sgdt | Sidt | Sldt | Str | Smsw | Lar | Lsl | Verr | Verw => "looks at the host kernel's descriptor tables",
        Lds | Les | Lss | Lfs | Lgs | Iret | Iretd | Iretq | Retf | Sysret | Sysretq => "loads segments of the host's tables",
        Fstenv | Fstcw | Fsave | Fstsw | Fclex | Finit | Feni | Fdisi | Fsetpm => "two instructions: WAIT and the FN form",
        Ud0 if code == Code::Ud0 => "the same bytes as a form with operands",
        Movsxd if matches!(code, Code::Movsxd_r16_rm16) => "vendors disagree about how much it reads",
        Reservednop if code.op_code().op_code() == 0x0d => "is PREFETCHW",
        _ => {
            let info = code.op_code();
            let kinds = (0..info.op_count()).map(|i| info.op_kind(i)).collect::<Vec<_>>();
            let far = kinds.iter().any(|kind| matches!(kind, OpCodeOperandKind::farbr2_2 | OpCodeOperandKind::farbr4_2));
            let indirect_far = matches!(
                code,
                Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664 | Code::Call_m1616 | Code::Call_m1632 | Code::Call_m1664
            );
            let loads_segment = matches!(code.mnemonic(), Mov | Pop)
                && kinds.first().is_some_and(|kind| {
                    matches!(
                        kind,
                        OpCodeOperandKind::seg_reg
                            | OpCodeOperandKind::es
                            | OpCodeOperandKind::cs
                            | OpCodeOperandKind::ss
                            | OpCodeOperandKind::ds
                            | OpCodeOperandKind::fs
                            | OpCodeOperandKind::gs
                    )
                });
            if far || indirect_far || loads_segment {
                return Some("loads segments of the host's tables");
            }
            return None;
        }
    })
}

fn is_near_branch(code: Code) -> bool {
    code.is_jcc_short_or_near()
        || code.is_jmp_short_or_near()
        || code.is_jmp_near_indirect()
        || code.is_call_near()
        || code.is_call_near_indirect()
        || code.is_loop()
        || code.is_loopcc()
        || code.is_jcx_short()
        || code.mnemonic() == Mnemonic::Ret
}

/// All user-mode forms that can be put to the host.
pub fn forms(mode: u32) -> Vec<Form> {
    let mut forms = Vec::new();
    for code in Code::values() {
        let info = code.op_code();
        let usable = info.is_instruction()
            && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
            && if mode == MODE_32 { info.mode32() } else { info.mode64() }
            && !code.cpuid_features().is_empty()
            && code.cpuid_features().iter().all(|feature| FEATURES.contains(feature) && is_on_host(*feature))
            && excluded(code).is_none()
            && !(mode != MODE_32 && is_near_branch(code) && info.operand_size() == 16);
        if !usable {
            continue;
        }
        let kinds: Vec<_> = (0..info.op_count()).map(|i| info.op_kind(i)).collect();
        let either = kinds.iter().any(|kind| {
            use OpCodeOperandKind::*;
            matches!(kind, r8_or_mem | r16_or_mem | r32_or_mem | r64_or_mem | mm_or_mem | xmm_or_mem | ymm_or_mem)
        });
        let memory = kinds.iter().any(|kind| {
            use OpCodeOperandKind::*;
            is_vector_indexed(*kind) || matches!(kind, mem | mem_offs | seg_rBX_al)
        });
        if !memory {
            forms.push(Form { code, mode, shape: Shape::Register });
        }
        if memory || either {
            forms.push(Form { code, mode, shape: Shape::Memory });
        }
    }
    forms
}

/// A gather's operand.
fn is_vector_indexed(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind::*;
    matches!(kind, mem_vsib32x | mem_vsib32y | mem_vsib64x | mem_vsib64y)
}

/// VEX prefix and opcode of `form` with everything else random.
fn vex(form: Form, bytes: &mut Vec<u8>, random: &mut Random) {
    use OpCodeOperandKind::*;
    let info = form.code.op_code();
    let kinds = (0..info.op_count()).map(|i| info.op_kind(i));
    let map = match info.table() {
        OpCodeTableKind::T0F38 => 2,
        OpCodeTableKind::T0F3A => 3,
        _ => 1,
    };
    let prefix = match info.mandatory_prefix() {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        _ => 0,
    };
    // VPEXTRD and VPINSRD with W in 32-bit code: #UD on AMD's CPUs, W is ignored on Intel's.
    let wide = if info.is_wig() { random.u64() as u8 & 1 } else { info.w() as u8 };
    let length = if info.is_lig() { random.u64() as u8 & 1 } else { info.l() as u8 };
    let names = kinds.into_iter().any(|kind| matches!(kind, r32_vvvv | r64_vvvv | xmm_vvvv | ymm_vvvv));
    // Stored inverted; all ones where no register is named.
    let vvvv = if names || random.chance(1) { random.u64() as u8 & 15 } else { 15 };
    let low = vvvv << 3 | length << 2 | prefix;
    // R, X and B, inverted too; in 32-bit code R and X must be ones, or it is LES or LDS.
    let high = if form.mode == MODE_32 { 0xc0 | random.u64() as u8 & 0x20 } else { random.u64() as u8 & 0xe0 };
    if map == 1 && wide == 0 && random.chance(60) {
        bytes.extend([0xc5, high & 0x80 | low]);
    } else {
        bytes.extend([0xc4, high | map, wide << 7 | low]);
    }
}

/// Legacy or VEX encoding of `form` with everything else random; `None` if the dice made another instruction.
fn encode(form: Form, rip: u64, random: &mut Random) -> Option<(Vec<u8>, Instruction, ConstantOffsets)> {
    let info = form.code.op_code();
    let kinds: Vec<_> = (0..info.op_count()).map(|i| info.op_kind(i)).collect();
    let mut bytes = Vec::with_capacity(32);
    // With a 16-bit operand size, vendors disagree about near branches in 64-bit mode.
    let branch = form.mode != MODE_32 && is_near_branch(form.code);
    let default_size = if form.mode == MODE_32 { 32 } else { 64 };
    let by_vex = info.encoding() == EncodingKind::VEX;
    if !by_vex && random.chance(if info.can_use_lock_prefix() { 25 } else { 1 }) {
        bytes.push(0xf0);
    }
    if random.chance(8) {
        // Not FS: in the native process it is somebody else's.
        bytes.push(random.pick(&[0x26, 0x2e, 0x36, 0x3e, 0x65, 0x65]));
    }
    if !by_vex && (info.operand_size() == 16 || random.chance(2) && !branch) {
        bytes.push(0x66);
    }
    let wants_other_address_size = info.address_size() != 0 && info.address_size() != default_size;
    if wants_other_address_size || random.chance(4) {
        bytes.push(0x67);
    }
    if info.can_use_rep_prefix() && random.chance(50) {
        bytes.push(random.pick(&[0xf3, 0xf3, 0xf2]));
    }
    match info.mandatory_prefix() {
        _ if by_vex => {}
        MandatoryPrefix::P66 => bytes.push(0x66),
        MandatoryPrefix::PF3 => bytes.push(0xf3),
        MandatoryPrefix::PF2 => bytes.push(0xf2),
        _ => {}
    }
    if form.mode != MODE_32 && !by_vex {
        let wide = info.operand_size() == 64 && !branch || info.w() != 0;
        if wide || random.chance(40) {
            let low = random.u64() as u8 & 7;
            bytes.push(0x40 | low | if wide || random.chance(10) && !branch { 8 } else { 0 });
        }
    }
    match info.table() {
        _ if by_vex => vex(form, &mut bytes, random),
        OpCodeTableKind::T0F => bytes.push(0x0f),
        OpCodeTableKind::T0F38 => bytes.extend([0x0f, 0x38]),
        OpCodeTableKind::T0F3A => bytes.extend([0x0f, 0x3a]),
        _ => {}
    }
    let in_opcode = kinds.iter().any(|kind| {
        use OpCodeOperandKind::*;
        matches!(kind, r8_opcode | r16_opcode | r32_opcode | r64_opcode | sti_opcode)
    });
    let register_bits = if in_opcode { random.u64() as u8 & 7 } else { 0 };
    if info.op_code_len() == 2 {
        bytes.push((info.op_code() >> 8) as u8);
    }
    bytes.push(info.op_code() as u8 | register_bits);
    if info.op_code_len() == 1 {
        let mut modrm = random.u64() as u8;
        if let Ok(group @ 0..8) = u8::try_from(info.group_index()) {
            modrm = modrm & 0xc7 | group << 3;
        }
        if let Ok(group @ 0..8) = u8::try_from(info.rm_group_index()) {
            modrm = modrm & 0xf8 | group;
        }
        let has_modrm = kinds.iter().any(|kind| {
            use OpCodeOperandKind::*;
            by_vex
                || matches!(
                    kind,
                    mem | r8_or_mem
                        | r16_or_mem
                        | r32_or_mem
                        | r64_or_mem
                        | mm_or_mem
                        | xmm_or_mem
                        | r8_reg
                        | r16_reg
                        | r32_reg
                        | r64_reg
                        | r16_rm
                        | r32_rm
                        | r64_rm
                        | seg_reg
                        | cr_reg
                        | dr_reg
                        | mm_reg
                        | mm_rm
                        | xmm_reg
                        | xmm_rm
                )
        });
        if info.group_index() >= 0 || has_modrm {
            match form.shape {
                Shape::Memory if modrm >= 0xc0 => modrm = modrm & 0x3f | random.pick(&[0, 0x40, 0x80]),
                Shape::Register => modrm |= 0xc0,
                Shape::Memory => {}
            }
            if kinds.iter().any(|kind| is_vector_indexed(*kind)) {
                modrm = modrm & 0xf8 | 4;
            }
        }
        bytes.push(modrm);
    }
    bytes.extend((0..12).map(|_| random.u64() as u8));
    let mut decoder = Decoder::with_ip(form.mode, &bytes, rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    let memory = (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
    let shape = if memory { Shape::Memory } else { Shape::Register };
    if instruction.is_invalid() || instruction.code() != form.code || shape != form.shape || instruction.len() > 15 {
        // A LOCK that is not allowed is #UD whatever follows; iced calls it invalid, and it is put to the host elsewhere.
        return None;
    }
    if form.code == Code::Pause && form.mode != MODE_32 && bytes[..instruction.len()].iter().any(|byte| byte & 0xf1 == 0x41) {
        return None; // With REX.B it is XCHG r8, rAX, whatever the decoder says.
    }
    let offsets = decoder.get_constant_offsets(&instruction);
    bytes.truncate(instruction.len());
    Some((bytes, instruction, offsets))
}

/// A place in (or not quite in) the window for an access of `bytes`.
fn target(bytes: u64, mode: u32, random: &mut Random) -> u64 {
    let bytes = bytes.max(1);
    let window = WINDOW_BYTES as u64;
    match random.below(100) {
        0..70 => WINDOW_BASE + random.below(window.saturating_sub(bytes) / 16 + 1) * 16,
        70..86 => WINDOW_BASE + random.below(window - bytes + 1),
        86..91 => WINDOW_BASE + 0x1000 - random.below(bytes.max(2)),
        91..95 => WINDOW_BASE + window - random.below(bytes + 1),
        95..97 => WINDOW_BASE.wrapping_sub(random.below(bytes + 1)),
        97 if mode != MODE_32 => 0x8000_0000_0000_0000 | random.u64(),
        98 if mode != MODE_32 => 0x8000_0000_0000 - bytes - random.below(16),
        _ => WINDOW_BASE + window + random.below(0x1000),
    }
}

fn put(bytes: &mut [u8], offset: usize, size: usize, value: u64) {
    if let Some(place) = offset.checked_add(size).and_then(|end| bytes.get_mut(offset..end)) {
        place.copy_from_slice(&value.to_le_bytes()[..size]);
    }
}

fn number(register: Register) -> Option<usize> {
    (register.is_gpr()).then(|| register.full_register().number())
}

/// x87 and SSE state.
fn fx_image(random: &mut Random) -> FxImage {
    let mut fx = FxImage([0; 512]);
    let control = if random.chance(70) { 0x37f | random.u64() as u16 & 0xc00 } else { random.u64() as u16 & 0x1f3f | 0x40 };
    let control = if random.chance(20) { control & !0x300 | random.u64() as u16 & 0x300 } else { control };
    let mut status = random.u64() as u16 & 0x7f7f;
    if status & 0x3f & !control != 0 && random.chance(93) {
        status &= !0x3f | control & 0x3f;
    }
    if status & 0x3f & !control != 0 {
        status |= 0x8080;
    }
    let tags = match random.below(8) {
        0 => 0,
        1 | 2 => random.u64() as u8,
        _ => 0xff,
    };
    fx.put(0, &control.to_le_bytes());
    fx.put(2, &status.to_le_bytes());
    fx.put(4, &[tags]);
    for i in 0..8 {
        let value = if random.chance(15) { u128::from(random.vector() as u64) | 0xffff << 64 } else { random.f80_bits() };
        fx.put(32 + 16 * i, &value.to_le_bytes()[..10]);
    }
    fx.put(24, &mxcsr(random).to_le_bytes());
    fx.put(28, &0xffffu32.to_le_bytes());
    for i in 0..16 {
        fx.put(160 + 16 * i, &random.vector().to_le_bytes());
    }
    fx
}

fn mxcsr(random: &mut Random) -> u32 {
    let mut mxcsr = random.u64() as u32 & 0x603f | 0x1f80;
    if random.chance(25) {
        mxcsr &= !0x1f80 | random.u64() as u32;
    }
    if random.chance(25) {
        mxcsr |= random.u64() as u32 & 0x8040;
    }
    mxcsr
}

/// A case of `form`. `None` now and then, when the dice fall badly.
pub fn generate(form: Form, random: &mut Random) -> Option<Case> {
    // Mostly in the middle of the first code page; sometimes across the boundary of the two.
    let rip = CODE_BASE + if random.chance(4) { 0x1000 - random.below(15) } else { 0x800 + random.below(16) };
    let (mut code, mut instruction, offsets) = (0..40).find_map(|_| encode(form, rip, random))?;
    let mut window = Box::new([0u8; WINDOW_BYTES]);
    for chunk in window.chunks_exact_mut(16) {
        chunk.copy_from_slice(&(u128::from(random.u64()) << 64 | u128::from(random.u64())).to_le_bytes());
    }
    let ymm_high = if crate::native::has_avx() { std::array::from_fn(|_| random.vector()) } else { [0; 16] };
    let rflags = 0x202 | random.u64() & 0x8d5;
    let mut registers = Registers { fx: fx_image(random), ymm_high, gpr: [0; 16], rip, rflags };
    if random.chance(20) {
        registers.rflags |= 0x400;
    }
    if random.chance(3) {
        registers.rflags |= 1 << 18;
    }
    for value in &mut registers.gpr {
        *value = if random.chance(20) { target(8, form.mode, random) } else { random.integer() };
    }
    // RSP and RBP
    registers.gpr[4] = WINDOW_BASE + 0x800 + random.below(0x800) / 8 * 8;
    if random.chance(10) {
        registers.gpr[4] = target(8, form.mode, random);
    }
    if random.chance(70) {
        registers.gpr[5] = WINDOW_BASE + 0x800 + random.below(0x1000);
    }

    let limit = if form.mode == MODE_32 { u64::from(u32::MAX) } else { u64::MAX };
    let mut place = None;
    if offsets.has_immediate() && random.chance(50) {
        let value = if instruction.is_jcc_short_or_near() || instruction.is_jmp_short_or_near() || instruction.is_call_near() {
            random.below(0x200).wrapping_sub(0x100)
        } else {
            random.integer()
        };
        put(&mut code, offsets.immediate_offset(), offsets.immediate_size(), value);
    }
    if form.shape == Shape::Memory {
        let bytes = instruction.memory_size().size() as u64;
        let mut address = target(bytes, form.mode, random);
        let segment_base = if instruction.memory_segment() == Register::GS { GS_BASE } else { 0 };
        let displacement = instruction.memory_displacement64();
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let scale = u64::from(instruction.memory_index_scale());
        let aimed = address.wrapping_sub(segment_base);
        if instruction.is_ip_rel_memory_operand() {
            let aimed = if address >> 31 == 0 { aimed } else { WINDOW_BASE };
            let next = rip + code.len() as u64;
            put(&mut code, offsets.displacement_offset(), offsets.displacement_size(), aimed.wrapping_sub(next));
            address = aimed.wrapping_add(segment_base);
        } else if let Some(base) = number(base) {
            if let Some(index) = number(index) {
                if index == base && random.chance(90) {
                    return None;
                }
                if random.chance(80) {
                    registers.gpr[index] = random.below(64).wrapping_sub(32);
                }
                let offset = registers.gpr[index].wrapping_mul(scale).wrapping_add(displacement);
                registers.gpr[base] = aimed.wrapping_sub(offset);
            } else {
                registers.gpr[base] = aimed.wrapping_sub(displacement);
            }
        } else if index.is_vector_register() {
            // All depends on the indices, which `steer` chooses.
        } else if let Some(index) = number(index) {
            registers.gpr[index] = aimed.wrapping_sub(displacement) / scale.max(1);
            address =
                (aimed.wrapping_sub(displacement) / scale.max(1) * scale).wrapping_add(displacement).wrapping_add(segment_base);
        } else if offsets.has_displacement() {
            let size = offsets.displacement_size();
            let aimed = if size < 8 && address >> 31 != 0 { WINDOW_BASE } else { aimed };
            put(&mut code, offsets.displacement_offset(), size, aimed);
            address = aimed.wrapping_add(segment_base);
        }
        place = Some((address & limit).wrapping_sub(WINDOW_BASE) as usize);
    }
    instruction = Decoder::with_ip(form.mode, &code, rip, DecoderOptions::NONE).decode();
    let inside = rip..rip + code.len() as u64;
    if instruction.op_count() > 0 && inside.contains(&instruction.near_branch_target()) {
        return None; // It would run for ever, or run its own second half.
    }
    // EAX must choose x87, SSE and AVX only: the host has more components than we.
    let is_xsave = instruction
        .code()
        .cpuid_features()
        .iter()
        .any(|feature| matches!(feature, CpuidFeature::XSAVE | CpuidFeature::XSAVEOPT | CpuidFeature::XSAVEC));
    if is_xsave
        && [instruction.memory_base(), instruction.memory_index()].into_iter().filter_map(number).any(|r| r == 0 || r == 2)
    {
        return None;
    }
    // Where AVX's part alone lies outside, CPUs differ in whether they look at it when it is in its initial state.
    if is_xsave && place.is_some_and(|offset| (WINDOW_BYTES - 832 + 1..=WINDOW_BYTES - 576).contains(&offset)) {
        return None;
    }
    if let Some(offset) = place {
        fill_operand(&instruction, &mut window[..], offset, random);
    }
    steer(&instruction, &mut registers, &mut window, place, form.mode, random);
    if form.mode == MODE_32 {
        for value in &mut registers.gpr {
            *value &= limit;
        }
        registers.gpr[8..].fill(0);
        registers.fx.0[288..416].fill(0);
        registers.ymm_high[8..].fill(0);
    }
    if registers.rip + code.len() as u64 > CODE_BASE + CODE_BYTES as u64 {
        return None;
    }
    Some(Case { mode: form.mode, code, registers, window })
}

/// Something interesting in the memory operand.
fn fill_operand(instruction: &Instruction, window: &mut [u8], offset: usize, random: &mut Random) {
    let bytes: Vec<u8> = match instruction.memory_size().size() {
        1 | 2 => random.integer().to_le_bytes()[..2].to_vec(),
        4 if random.chance(50) => random.f32_bits().to_le_bytes().to_vec(),
        8 if random.chance(50) => random.f64_bits().to_le_bytes().to_vec(),
        4 | 8 => random.integer().to_le_bytes().to_vec(),
        10 if instruction.mnemonic() == Mnemonic::Fbld => random.bcd_bits().to_le_bytes()[..10].to_vec(),
        10 => random.f80_bits().to_le_bytes()[..10].to_vec(),
        16 => random.vector().to_le_bytes().to_vec(),
        32 => [random.vector(), random.vector()].map(u128::to_le_bytes).concat(),
        _ => return,
    };
    for (place, byte) in window.iter_mut().skip(offset).zip(bytes) {
        *place = byte;
    }
}

/// Indices of a gather that lead into the window, from its base register; few beyond.
fn aim_gather(instruction: &Instruction, registers: &mut Registers, random: &mut Random) {
    let index = instruction.memory_index().number();
    let scale = u64::from(instruction.memory_index_scale());
    if let Some(base) = number(instruction.memory_base()) {
        let middle = WINDOW_BASE + if random.chance(80) { 0x1000 } else { random.below(0x2000) };
        registers.gpr[base] = middle.wrapping_sub(instruction.memory_displacement64());
    }
    let reach = (if random.chance(80) { 0xfe0 } else { 0x1008 }) / scale;
    let mut value = || random.below(2 * reach).wrapping_sub(reach);
    let mut half = || match instruction.is_vsib64() {
        false => (0..4).fold(0, |half, _| half << 32 | u128::from(value() as u32)),
        true => (0..2).fold(0, |half, _| half << 64 | u128::from(value())),
    };
    let halves = [half(), half()];
    registers.fx.put(160 + 16 * index, &halves[0].to_le_bytes());
    registers.ymm_high[index] = halves[1];
}

/// Values that make an instruction do something rather than fault.
fn steer(
    instruction: &Instruction,
    registers: &mut Registers,
    window: &mut [u8; WINDOW_BYTES],
    place: Option<usize>,
    mode: u32,
    random: &mut Random,
) {
    use Mnemonic::*;
    let word = if mode == MODE_32 { 4 } else { 8 };
    let code_address = CODE_BASE + 0x40 + random.below(0x600);
    let stack = registers.gpr[4].wrapping_sub(WINDOW_BASE) as usize;
    if instruction.is_vsib() {
        aim_gather(instruction, registers, random);
        return;
    }
    let registers_gpr = &mut registers.gpr;
    match instruction.mnemonic() {
        _ if instruction.is_string_instruction() => {
            registers_gpr[6] = target(64, mode, random);
            registers_gpr[7] = target(64, mode, random);
            if random.chance(85) {
                registers_gpr[1] = random.below(40);
            }
            if matches!(instruction.mnemonic(), Scasb | Cmpsb | Cmpsw | Scasw | Cmpsd | Scasd | Cmpsq | Scasq)
                && random.chance(70)
            {
                let byte = random.u64() as u8 & 1;
                for place in
                    registers_gpr[7].wrapping_sub(WINDOW_BASE)..registers_gpr[7].wrapping_sub(WINDOW_BASE).wrapping_add(64)
                {
                    if let Some(place) = window.get_mut(place as usize) {
                        *place = byte;
                    }
                }
                registers_gpr[0] = u64::from_ne_bytes([byte; 8]);
            }
        }
        Xlatb => registers_gpr[3] = target(256, mode, random),
        Maskmovq | Maskmovdqu | Vmaskmovdqu => registers_gpr[7] = target(16, mode, random),
        Ret if random.chance(80) => put(window, stack, word, code_address),
        Push if mode == MODE_32 && instruction.op0_register().is_segment_register() => {
            // CPUs differ in whether they write two bytes or four: not where that shows.
            registers_gpr[4] &= !3;
        }
        Popf | Popfd | Popfq => {
            // TF would trace the trap that ends the case; NT and ID stay behind in the host's flags.
            if let Some(image) = window.get(stack..stack.saturating_add(8)) {
                let flags = u64::from_le_bytes(image.try_into().expect("eight bytes")) & !0x20_4100;
                put(window, stack, 8, flags);
            } else {
                registers_gpr[4] = WINDOW_BASE + 0x2000;
            }
        }
        Jmp | Call if random.chance(75) => match (place, number(instruction.op0_register())) {
            (Some(offset), _) => put(window, offset, word, code_address),
            // Not RSP: CALL would store into the code.
            (_, Some(register)) if register != 4 => registers_gpr[register] = code_address,
            _ => {}
        },
        Div if random.chance(75) => {
            registers_gpr[2] = random.below(3);
            registers_gpr[0] &= 0x00ff_ffff_ffff_007f;
        }
        Idiv if random.chance(75) => {
            registers_gpr[2] = if random.chance(50) { 0 } else { u64::MAX };
            registers_gpr[0] = if registers_gpr[2] == 0 { random.below(0x7f) } else { random.below(0x80).wrapping_neg() };
        }
        Bt | Bts | Btr | Btc if instruction.op1_kind() == OpKind::Register && random.chance(85) => {
            if let Some(register) = number(instruction.op1_register())
                && Some(register) != number(instruction.memory_base())
                && Some(register) != number(instruction.memory_index())
            {
                registers_gpr[register] = random.below(0x400).wrapping_sub(0x100);
            }
        }
        Cmpxchg | Cmpxchg8b | Cmpxchg16b if random.chance(50) => {
            if let Some(image) = place.and_then(|offset| window.get(offset..offset.checked_add(16)?)) {
                let low = u64::from_le_bytes(image[..8].try_into().expect("eight bytes"));
                let high = u64::from_le_bytes(image[8..].try_into().expect("eight bytes"));
                let taken = [number(instruction.memory_base()), number(instruction.memory_index())];
                let (rax, rdx) = if instruction.mnemonic() == Cmpxchg8b { (low & 0xffff_ffff, low >> 32) } else { (low, high) };
                if !taken.contains(&Some(0)) && !taken.contains(&Some(2)) {
                    (registers_gpr[0], registers_gpr[2]) = (rax, rdx);
                }
            }
        }
        Pcmpestri | Pcmpestrm | Pcmpestri64 | Pcmpestrm64 | Vpcmpestri | Vpcmpestrm | Vpcmpestri64 | Vpcmpestrm64 => {
            for register in [0, 2] {
                if Some(register) != number(instruction.memory_base()) && Some(register) != number(instruction.memory_index()) {
                    registers_gpr[register] = random.below(40).wrapping_sub(20);
                }
            }
        }
        Fxrstor | Fxrstor64 | Xrstor | Xrstor64 | Frstor | Fldenv | Fldcw | Ldmxcsr | Vldmxcsr => {
            let taken = [number(instruction.memory_base()), number(instruction.memory_index())];
            if matches!(instruction.mnemonic(), Xrstor | Xrstor64) && !taken.contains(&Some(0)) && !taken.contains(&Some(2)) {
                (registers_gpr[0], registers_gpr[2]) = (random.below(8), random.below(2) * random.u64());
            }
            let Some(offset) = place else { return };
            let mut image = fx_image(random).0.to_vec();
            match instruction.mnemonic() {
                Ldmxcsr | Vldmxcsr => {
                    image = (mxcsr(random) | (random.below(10) as u32 / 9) << 16 & 0xf_0000).to_le_bytes().to_vec()
                }
                Fldcw => image.truncate(2),
                Fldenv | Frstor => {
                    let mut environment = Vec::new();
                    for (value, junk) in [image[..2].to_vec(), image[2..4].to_vec(), random.u64().to_le_bytes()[..2].to_vec()]
                        .into_iter()
                        .map(|value| (value, random.u64() as u16))
                    {
                        environment.extend(value);
                        environment.extend(junk.to_le_bytes());
                    }
                    image = environment;
                }
                Xrstor | Xrstor64 => {
                    if random.chance(10) {
                        put(&mut image, 26, 2, 1);
                    }
                    image.extend([0; 64]);
                    image[512] = random.below(8) as u8;
                    if random.chance(30) {
                        // The compacted format: XCOMP_BV has what XSTATE_BV has, mostly.
                        image[520] = image[512] | random.below(8) as u8;
                        image[527] = 0x80;
                    }
                    image.extend((0..16).flat_map(|_| random.vector().to_le_bytes()));
                    if random.chance(5) {
                        // Not among the components that the host may have and the guest has not.
                        let wrong = 516 + random.below(20) as usize;
                        image[wrong] = random.u64() as u8;
                    }
                }
                _ => {
                    if random.chance(10) {
                        put(&mut image, 26, 2, random.below(2));
                    }
                }
            }
            for (place, byte) in window.iter_mut().skip(offset).zip(image) {
                *place = byte;
            }
        }
        Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64 => {
            let taken = [number(instruction.memory_base()), number(instruction.memory_index())];
            if !taken.contains(&Some(0)) && !taken.contains(&Some(2)) {
                (registers_gpr[0], registers_gpr[2]) = (random.below(8), 0);
            }
            if let Some(offset) = place {
                for place in window.iter_mut().skip(offset.saturating_add(512)).take(64) {
                    *place = 0;
                }
            }
        }
        _ => {}
    }
}
