//! The guest's own instruction on other operands: its opcode, prefixes and immediate, with the host's registers and addresses
//! in ModRM and VEX.

use super::asm::{Asm, Rm, Vex, X};
use crate::ir::native::{Native, Place};
use iced_x86::{Code, CpuidFeature, EncodingKind, MandatoryPrefix, OpCodeOperandKind as Kind, OpCodeTableKind};
use std::arch::is_x86_feature_detected;

/// What the parts of the encoding are to name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operands {
    pub reg: u8,
    pub vvvv: u8,
    pub rm: Rm,
    /// The register in the immediate.
    pub immediate: u8,
}

impl Operands {
    /// None yet, but for the digit that some opcodes have in place of a register.
    pub fn none(code: Code) -> Self {
        let digit = code.op_code().group_index().max(0) as u8;
        Self { reg: digit, vvvv: 0, rm: Rm::Vector(X(0)), immediate: 0 }
    }

    /// The vector registers that an instruction names.
    pub fn of(native: &Native) -> Self {
        let op_code = native.code.op_code();
        let mut operands = Self::none(native.code);
        for place in (0..op_code.op_count()).map(|at| Place::of(op_code.op_kind(at))) {
            let register = match place {
                Place::Reg => native.reg,
                Place::Vex => native.vvvv,
                Place::Rm => native.rm,
                Place::Immediate => native.immediate >> 4,
                Place::Nowhere => continue,
            };
            operands.set(place, X(register).into());
        }
        operands
    }

    /// A register, or (ModRM.rm) anything, takes its place.
    pub fn set(&mut self, place: Place, operand: Rm) {
        let number = match operand {
            Rm::Reg(reg) => reg as u8,
            Rm::Vector(reg) => reg.0,
            Rm::High(_) | Rm::Mem(_) => 0,
        };
        match place {
            Place::Reg => self.reg = number,
            Place::Vex => self.vvvv = number,
            Place::Rm => self.rm = operand,
            Place::Immediate => self.immediate = number,
            Place::Nowhere => {}
        }
    }
}

/// Whether a legacy encoding has REX.W.
fn is_wide(code: Code) -> bool {
    use Kind as K;
    use iced_x86::Code::{Pcmpestri64_xmm_xmmm128_imm8, Pcmpestrm64_xmm_xmmm128_imm8};
    let op_code = code.op_code();
    let by_operand = (0..op_code.op_count()).any(|at| matches!(op_code.op_kind(at), K::r64_reg | K::r64_or_mem | K::r64_rm));
    by_operand || matches!(code, Pcmpestri64_xmm_xmmm128_imm8 | Pcmpestrm64_xmm_xmmm128_imm8)
}

/// Writes an instruction, legacy- or VEX-encoded, with these operands; `immediate` if it has one.
pub(crate) fn write(asm: &mut Asm, code: Code, operands: Operands, immediate: u8) {
    let op_code = code.op_code();
    let number = op_code.op_code() as u8;
    let kinds = || (0..op_code.op_count()).map(|at| op_code.op_kind(at));
    let immediate = if kinds().any(|kind| Place::of(kind) == Place::Immediate) {
        Some(operands.immediate << 4)
    } else {
        (kinds().next_back() == Some(Kind::imm8)).then_some(immediate)
    };
    let prefix = match op_code.mandatory_prefix() {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        _ => 0,
    };
    let map = match op_code.table() {
        OpCodeTableKind::T0F38 => 2,
        OpCodeTableKind::T0F3A => 3,
        _ => 1,
    };
    if op_code.encoding() == EncodingKind::VEX {
        let vex = Vex { prefix, map, wide: op_code.w() == 1, long: op_code.l() == 1 };
        asm.vex(vex, number, operands.reg, operands.vvvv, operands.rm, immediate);
        return;
    }
    let prefix = [None, Some(0x66), Some(0xf3), Some(0xf2)][usize::from(prefix)];
    let opcode: &[u8] = match map {
        2 => &[0x0f, 0x38, number],
        3 => &[0x0f, 0x3a, number],
        _ => &[0x0f, number],
    };
    asm.vector(prefix, is_wide(code), opcode, operands.reg, operands.rm, immediate);
}

/// Whether the host has a vector instruction, if it has SSE 4.2.
pub(crate) fn host_has(code: Code) -> bool {
    let encoding = code.op_code().encoding();
    matches!(encoding, EncodingKind::Legacy | EncodingKind::VEX) && code.cpuid_features().iter().all(|set| host_has_set(*set))
}

fn host_has_set(set: CpuidFeature) -> bool {
    use CpuidFeature as F;
    match set {
        F::SSE | F::SSE2 | F::SSE3 | F::SSSE3 | F::SSE4_1 | F::SSE4_2 => true,
        F::AES => is_x86_feature_detected!("aes"),
        F::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        F::SHA => is_x86_feature_detected!("sha"),
        F::AVX => super::vectors::has_ymm(),
        F::AVX2 => is_x86_feature_detected!("avx2"),
        F::FMA => is_x86_feature_detected!("fma"),
        F::F16C => is_x86_feature_detected!("f16c"),
        F::VAES => is_x86_feature_detected!("vaes"),
        F::VPCLMULQDQ => is_x86_feature_detected!("vpclmulqdq"),
        _ => false,
    }
}
