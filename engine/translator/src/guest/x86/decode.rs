//! From guest bytes to [`Op`]s: one instruction at a time, by iced-x86.
//!
//! Which instructions exist is decided by the tables of handlers and by the CPU's model ([`InstructionSets`]), not here; the
//! decoder only refuses what no encoding allows: LOCK where it may not be, invalid forms, the encodings that came after VEX,
//! more than 15 bytes.

use super::cpu::CodeSize;
use super::cpuid::InstructionSets;
use super::handlers;
use super::op::{HIGH_BYTE, NO_REGISTER, Op, OpFlags};
use iced_x86::{
    Code, Decoder, DecoderError, DecoderOptions, EncodingKind, FlowControl, Instruction, OpCodeOperandKind as Kind, OpKind,
    Register,
};

/// The longest instruction.
pub(crate) const MAX_BYTES: usize = 15;

/// What decoding gave.
pub(crate) enum Decoded {
    /// An instruction (perhaps one that raises #UD).
    Op(Op),
    /// The bytes end before the instruction does.
    Incomplete,
}

fn bits(size: CodeSize) -> u32 {
    match size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    }
}

/// The decoder's own terms for the instruction at the start of `bytes`, and what it says if that is none.
fn decode_instruction(bytes: &[u8], size: CodeSize, rip: u64, sets: &InstructionSets) -> (Instruction, DecoderError) {
    let bits = bits(size);
    let mut decoder = Decoder::with_ip(bits, &bytes[..bytes.len().min(MAX_BYTES)], rip, sets.decoder_options());
    let mut instruction = decoder.decode();
    if instruction.code() == Code::Pause
        && let Some(exchange) = exchange_with_high_register(&bytes[..instruction.len()], bits, rip)
    {
        instruction = exchange;
    }
    (instruction, decoder.last_error())
}

/// The same instruction as [`decode`] finds, in the decoder's own terms.
#[allow(dead_code, reason = "hosts without a translator")]
pub(crate) fn instruction(bytes: &[u8], size: CodeSize, rip: u64, sets: &InstructionSets) -> Instruction {
    decode_instruction(bytes, size, rip, sets).0
}

/// Decodes the instruction at the start of `bytes` (at most 15 are looked at), which lies at offset `rip` of CS, for a CPU with these
/// instruction sets.
pub(crate) fn decode(bytes: &[u8], size: CodeSize, rip: u64, sets: &InstructionSets) -> Decoded {
    let (instruction, error) = decode_instruction(bytes, size, rip, sets);
    if instruction.is_invalid() {
        return match error {
            DecoderError::NoMoreBytes => Decoded::Incomplete,
            // Fifteen bytes and no end: too long, which is #GP.
            _ if instruction.len() >= MAX_BYTES => Decoded::Incomplete,
            _ => Decoded::Op(undefined(&instruction)),
        };
    }
    let known = matches!(instruction.op_code().encoding(), EncodingKind::Legacy | EncodingKind::VEX);
    if !known || !sets.have(instruction.code()) {
        return Decoded::Op(undefined(&instruction));
    }
    Decoded::Op(translate(&instruction, size))
}

/// F3 before 90 with REX.B does not make it PAUSE: it stays XCHG of R8 and the accumulator, and F3 means nothing.
fn exchange_with_high_register(pause: &[u8], bits: u32, rip: u64) -> Option<Instruction> {
    let rex = pause.iter().rev().nth(1).filter(|byte| bits == 64 && **byte & 0xf1 == 0x41)?;
    let narrow = [0x66, *rex, 0x90];
    let from = if pause.contains(&0x66) { 0 } else { 1 };
    let mut instruction = Decoder::with_ip(bits, &narrow[from..], rip, DecoderOptions::NONE).decode();
    instruction.set_len(pause.len());
    Some(instruction)
}

fn undefined(instruction: &Instruction) -> Op {
    Op {
        handler: handlers::undefined,
        imm: 0,
        disp: 0,
        code: Code::INVALID,
        len: instruction.len().max(1) as u8,
        reg: 0,
        rm: 0,
        base: NO_REGISTER,
        index: NO_REGISTER,
        scale: 0,
        segment: 0,
        address_shift: 0,
        imm2: 0,
        vvvv: 0,
        operand_bytes: 0,
        flags: OpFlags::LAST,
    }
}

fn translate(instruction: &Instruction, size: CodeSize) -> Op {
    let mut op = Op {
        handler: handlers::handler(instruction),
        code: instruction.code(),
        flags: OpFlags::empty(),
        ..undefined(instruction)
    };
    let info = instruction.op_code();
    op.operand_bytes = match (info.operand_size(), size) {
        (16, _) | (0, CodeSize::Bits16) => 2,
        (64, _) => 8,
        _ => 4,
    };
    op.flags.set(OpFlags::LOCK, instruction.has_lock_prefix());
    op.flags.set(OpFlags::REP, instruction.has_rep_prefix());
    op.flags.set(OpFlags::REPNE, instruction.has_repne_prefix());
    op.flags.set(OpFlags::WIDE, op.operand_bytes == 8);
    op.flags.set(OpFlags::LAST, ends_trace(instruction));

    let (mut rm_taken, mut reg_taken, mut imm_taken) = (false, false, false);
    for at in 0..instruction.op_count() {
        match instruction.op_kind(at) {
            OpKind::Register => {
                let number = register_number(instruction.op_register(at));
                match info.op_kind(at) {
                    kind if is_reg_field(kind) => (op.reg, reg_taken) = (number, true),
                    kind if is_rm_field(kind) => (op.rm, rm_taken) = (number, true),
                    kind if is_vex_field(kind) => op.vvvv = number,
                    Kind::xmm_is4 | Kind::ymm_is4 => op.imm2 = number,
                    _ => {}
                }
            }
            OpKind::Memory => {
                take_memory(&mut op, instruction, size);
                rm_taken = true;
            }
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => op.imm = instruction.near_branch_target(),
            OpKind::FarBranch16 => {
                (op.imm, op.disp) = (u64::from(instruction.far_branch16()), u64::from(instruction.far_branch_selector()))
            }
            OpKind::FarBranch32 => {
                (op.imm, op.disp) = (u64::from(instruction.far_branch32()), u64::from(instruction.far_branch_selector()))
            }
            OpKind::Immediate8_2nd => op.imm2 = instruction.immediate8_2nd(),
            OpKind::MemorySegSI | OpKind::MemorySegDI => set_string(&mut op, instruction, 48),
            OpKind::MemorySegESI | OpKind::MemorySegEDI => set_string(&mut op, instruction, 32),
            OpKind::MemorySegRSI | OpKind::MemorySegRDI => set_string(&mut op, instruction, 0),
            OpKind::MemoryESDI => op.address_shift = 48,
            OpKind::MemoryESEDI => op.address_shift = 32,
            OpKind::MemoryESRDI => op.address_shift = 0,
            _ => {
                let value = instruction.immediate(at);
                if imm_taken {
                    op.imm2 = value as u8;
                } else {
                    (op.imm, imm_taken) = (value, true);
                }
            }
        }
    }
    // Implied registers take what the explicit ones have left.
    for at in 0..instruction.op_count() {
        let kind = info.op_kind(at);
        if instruction.op_kind(at) == OpKind::Register && !is_reg_field(kind) && !is_rm_field(kind) && !is_vex(kind) {
            let number = register_number(instruction.op_register(at));
            if at == 0 && !rm_taken {
                (op.rm, rm_taken) = (number, true);
            } else if !reg_taken {
                (op.reg, reg_taken) = (number, true);
            }
        }
    }
    op
}

pub(super) fn is_reg_field(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::r8_reg
            | Kind::r16_reg
            | Kind::r16_reg_mem
            | Kind::r32_reg
            | Kind::r32_reg_mem
            | Kind::r64_reg
            | Kind::r64_reg_mem
            | Kind::seg_reg
            | Kind::mm_reg
            | Kind::xmm_reg
            | Kind::ymm_reg
            | Kind::cr_reg
            | Kind::dr_reg
            | Kind::tr_reg
            | Kind::bnd_reg
    )
}

fn is_rm_field(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::r8_or_mem
            | Kind::r16_or_mem
            | Kind::r32_or_mem
            | Kind::r64_or_mem
            | Kind::mm_or_mem
            | Kind::xmm_or_mem
            | Kind::ymm_or_mem
            | Kind::r8_opcode
            | Kind::r16_opcode
            | Kind::r32_opcode
            | Kind::r64_opcode
            | Kind::r16_rm
            | Kind::r32_rm
            | Kind::r64_rm
            | Kind::mm_rm
            | Kind::xmm_rm
            | Kind::ymm_rm
            | Kind::sti_opcode
    )
}

/// The register in the VEX prefix.
fn is_vex_field(kind: Kind) -> bool {
    matches!(kind, Kind::r32_vvvv | Kind::r64_vvvv | Kind::xmm_vvvv | Kind::ymm_vvvv)
}

/// A register that only VEX instructions name.
fn is_vex(kind: Kind) -> bool {
    is_vex_field(kind) || matches!(kind, Kind::xmm_is4 | Kind::ymm_is4)
}

fn register_number(register: Register) -> u8 {
    match register {
        Register::AH => HIGH_BYTE,
        Register::CH => HIGH_BYTE + 1,
        Register::DH => HIGH_BYTE + 2,
        Register::BH => HIGH_BYTE + 3,
        // iced counts AH to BH as 4 to 7, so SPL follows at 8.
        _ if register >= Register::SPL && register <= Register::R15L => (register as u32 - Register::SPL as u32 + 4) as u8,
        _ => register.number() as u8,
    }
}

/// The segment of the memory operand. 64-bit code ignores the prefixes for ES, CS, SS and DS, which iced reports all the same.
fn segment_number(instruction: &Instruction) -> u8 {
    let register = instruction.memory_segment();
    let is_64_bit = instruction.code_size() == iced_x86::CodeSize::Code64;
    if is_64_bit && instruction.has_segment_prefix() && !matches!(register, Register::FS | Register::GS) {
        let on_stack = matches!(instruction.memory_base(), Register::RSP | Register::RBP | Register::ESP | Register::EBP);
        return if on_stack { super::cpu::seg::SS } else { super::cpu::seg::DS };
    }
    if register.is_segment_register() { (register as u32 - Register::ES as u32) as u8 } else { super::cpu::seg::DS }
}

fn set_string(op: &mut Op, instruction: &Instruction, address_shift: u8) {
    op.segment = segment_number(instruction);
    op.address_shift = address_shift;
}

fn take_memory(op: &mut Op, instruction: &Instruction, size: CodeSize) {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    op.flags.insert(OpFlags::MEMORY);
    op.flags.set(OpFlags::RIP_RELATIVE, matches!(base, Register::RIP | Register::EIP));
    op.segment = segment_number(instruction);
    let address_bytes = match (base, index) {
        (Register::None, index) if !index.is_gpr() => match (instruction.memory_displ_size(), size) {
            (2, _) => 2,
            (8, _) => 8,
            (4, CodeSize::Bits16 | CodeSize::Bits32) => 4,
            // 64-bit code: a 4-byte displacement without a base comes with the address-size prefix.
            (4, CodeSize::Bits64) => 4,
            (_, CodeSize::Bits16) => 2,
            (_, CodeSize::Bits32) => 4,
            (_, CodeSize::Bits64) => 8,
        },
        (Register::None, index) => index.size(),
        (base, _) => base.size(),
    };
    op.address_shift = 64 - 8 * address_bytes as u8;
    op.disp = instruction.memory_displacement64();
    op.base = match base {
        // The displacement of a RIP-relative operand is absolute already.
        Register::None | Register::RIP | Register::EIP => NO_REGISTER,
        base => base.number() as u8,
    };
    // XLAT's index is AL, which its handler adds.
    op.index = if index == Register::None || index == Register::AL { NO_REGISTER } else { index.number() as u8 };
    op.scale = instruction.memory_index_scale().trailing_zeros() as u8;
}

/// Whether nothing may follow in the same trace.
fn ends_trace(instruction: &Instruction) -> bool {
    instruction.flow_control() != FlowControl::Next
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(bytes: &[u8], size: CodeSize) -> Op {
        match decode(bytes, size, 0x1000, &InstructionSets::all()) {
            Decoded::Op(op) => op,
            Decoded::Incomplete => panic!("incomplete: {bytes:02x?}"),
        }
    }

    #[test]
    fn an_op_is_small() {
        assert!(size_of::<Op>() <= 40, "{}", size_of::<Op>());
    }

    #[test]
    fn byte_registers_are_numbered_with_a_mark_for_the_high_ones() {
        assert_eq!(
            (op(&[0x88, 0xe3], CodeSize::Bits32).reg, op(&[0x88, 0xe3], CodeSize::Bits32).rm),
            (HIGH_BYTE, 3),
            "mov bl, ah"
        );
        let spl = op(&[0x40, 0x88, 0xe7], CodeSize::Bits64);
        assert_eq!((spl.reg, spl.rm), (4, 7), "mov dil, spl");
        let r15 = op(&[0x45, 0x88, 0xf8], CodeSize::Bits64);
        assert_eq!((r15.reg, r15.rm), (15, 8), "mov r8b, r15b");
    }

    #[test]
    fn memory_operands_name_their_parts() {
        let scaled = op(&[0x8b, 0x44, 0xb3, 0xfc], CodeSize::Bits64); // mov eax, [rbx+rsi*4-4]
        assert_eq!((scaled.base, scaled.index, scaled.scale, scaled.disp as i64), (3, 6, 2, -4));
        assert_eq!(scaled.address_mask(), u64::MAX);
        let relative = op(&[0x8b, 0x05, 0x10, 0, 0, 0], CodeSize::Bits64);
        assert_eq!((relative.base, relative.disp), (NO_REGISTER, 0x1016));
        let bp = op(&[0x8b, 0x02], CodeSize::Bits16); // mov ax, [bp+si]
        assert_eq!((bp.base, bp.index, bp.segment, bp.address_mask()), (5, 6, 2, 0xffff));
        let fs = op(&[0x64, 0xa1, 0x34, 0x12], CodeSize::Bits16); // mov ax, fs:[1234h]
        assert_eq!((fs.segment, fs.disp, fs.has_memory(), fs.reg), (4, 0x1234, true, 0));
        let absolute = op(&[0x8b, 0x04, 0x25, 0xf0, 0xff, 0xff, 0xff], CodeSize::Bits64); // mov eax, [-16]
        assert_eq!(absolute.disp & absolute.address_mask(), -16i64 as u64);
        let narrow = op(&[0x67, 0x8b, 0x04, 0x25, 0xf0, 0xff, 0xff, 0xff], CodeSize::Bits64); // the same with 32-bit addresses
        assert_eq!(narrow.disp & narrow.address_mask(), 0xffff_fff0);
    }

    #[test]
    fn implied_registers_fill_what_is_left() {
        let add = op(&[0x04, 0x80], CodeSize::Bits32); // add al, 80h
        assert_eq!((add.rm, add.imm), (0, 0x80));
        let shift = op(&[0xd3, 0xe3], CodeSize::Bits32); // shl ebx, cl
        assert_eq!((shift.rm, shift.reg), (3, 1));
        let sign = op(&[0x48, 0x83, 0xc0, 0xff], CodeSize::Bits64); // add rax, -1
        assert_eq!(sign.imm, u64::MAX);
        let wrapped = op(&[0xeb, 0x80], CodeSize::Bits16);
        assert_eq!(wrapped.imm, 0xf82);
        let wrapped = decode(&[0xeb, 0x80], CodeSize::Bits16, 0x10, &InstructionSets::all());
        assert!(matches!(wrapped, Decoded::Op(op) if op.imm == 0xff92), "16-bit targets wrap");
    }

    #[test]
    fn pause_with_a_high_register_is_an_exchange() {
        let code = |bytes: &[u8]| (op(bytes, CodeSize::Bits64).code, op(bytes, CodeSize::Bits64).len);
        assert_eq!(code(&[0xf3, 0x90]), (Code::Pause, 2));
        assert_eq!(code(&[0xf3, 0x48, 0x90]), (Code::Pause, 3), "REX without B");
        assert_eq!(code(&[0xf3, 0x41, 0x90]), (Code::Xchg_r32_EAX, 3));
        assert_eq!(code(&[0xf3, 0x49, 0x90]), (Code::Xchg_r64_RAX, 3));
        assert_eq!(code(&[0x66, 0xf3, 0x41, 0x90]), (Code::Xchg_r16_AX, 4));
        assert_eq!(op(&[0xf3, 0x41, 0x90], CodeSize::Bits64).rm, 8);
        assert_eq!(op(&[0xf3, 0x90], CodeSize::Bits32).code, Code::Pause);
    }

    #[test]
    fn vex_operands_have_places_of_their_own() {
        let shifted = op(&[0xc4, 0xe2, 0x79, 0xf7, 0xd3], CodeSize::Bits32); // shlx edx, ebx, eax
        assert_eq!((shifted.reg, shifted.rm, shifted.vvvv), (2, 3, 0));
        let lowest = op(&[0xc4, 0xe2, 0x70, 0xf3, 0xdb], CodeSize::Bits64); // blsi ecx, ebx
        assert_eq!((lowest.vvvv, lowest.rm), (1, 3));
        let blend = op(&[0xc4, 0xe3, 0x6d, 0x4b, 0xcb, 0x40], CodeSize::Bits64); // vblendvpd ymm1, ymm2, ymm3, ymm4
        assert_eq!((blend.reg, blend.vvvv, blend.rm, blend.imm2), (1, 2, 3, 4));
        let gather = op(&[0xc4, 0xe2, 0x6d, 0x92, 0x4c, 0xb8, 0x08], CodeSize::Bits64); // vgatherdps ymm1, [rax+ymm7*4+8], ymm2
        assert_eq!((gather.reg, gather.vvvv, gather.base, gather.index, gather.scale, gather.disp), (1, 2, 0, 7, 2, 8));
        let absolute = op(&[0x67, 0xc4, 0xe2, 0x6d, 0x92, 0x0c, 0x3d, 0, 0, 0, 0x80], CodeSize::Bits64); // the same without a base
        assert_eq!((absolute.base, absolute.address_mask(), absolute.disp as u32), (NO_REGISTER, 0xffff_ffff, 0x8000_0000));
    }

    #[test]
    fn what_is_not_offered_is_undefined() {
        let is_undefined = |bytes: &[u8]| op(bytes, CodeSize::Bits64).code == Code::INVALID;
        assert!(is_undefined(&[0xf0, 0x90]), "lock nop");
        assert!(is_undefined(&[0xf0, 0x01, 0xc0]), "lock add eax, eax");
        assert!(!is_undefined(&[0xf0, 0x01, 0x00]), "lock add [rax], eax");
        assert!(is_undefined(&[0x66, 0xc5, 0xf8, 0x58, 0xc1]), "66 before VEX");
        assert!(is_undefined(&[0x62, 0xf1, 0x74, 0x48, 0x58, 0xc2]), "vaddps zmm0, zmm1, zmm2");
        let all = InstructionSets::all();
        assert!(matches!(decode(&[0x0f], CodeSize::Bits64, 0, &all), Decoded::Incomplete));
        let code = |bytes: &[u8], sets: &InstructionSets| match decode(bytes, CodeSize::Bits64, 0, sets) {
            Decoded::Op(op) => op.code,
            Decoded::Incomplete => panic!("incomplete: {bytes:02x?}"),
        };
        let none = InstructionSets::none();
        for (bytes, with, without) in [
            (&[0xc5, 0xf8, 0x58, 0xc1][..], Code::VEX_Vaddps_xmm_xmm_xmmm128, Code::INVALID),
            (&[0xf3, 0x0f, 0xbd, 0xc1], Code::Lzcnt_r32_rm32, Code::Bsr_r32_rm32),
            (&[0xf3, 0x0f, 0xbc, 0xc1], Code::Tzcnt_r32_rm32, Code::Bsf_r32_rm32),
            (&[0x66, 0x0f, 0x38, 0xdc, 0xc1], Code::Aesenc_xmm_xmmm128, Code::INVALID),
        ] {
            assert_eq!((code(bytes, &all), code(bytes, &none)), (with, without), "{bytes:02x?}");
        }
    }
}
