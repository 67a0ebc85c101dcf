//! The guest's own instruction on other operands: its prefixes, opcode and immediate, with the host's registers and addresses in ModRM and VEX.

use super::emit::Emitter;
use crate::host::x64::asm::{Rm, Vex, X};
use iced_x86::{EncodingKind, Instruction, MandatoryPrefix, OpCodeOperandKind, OpCodeTableKind, OpKind};

/// Which part of the encoding names an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// ModRM.reg
    Reg,
    /// VEX.vvvv
    Vex,
    /// ModRM.rm
    Rm,
    /// The upper half of the immediate.
    Immediate,
    /// None: an immediate, or implied.
    Nowhere,
}

impl Place {
    /// That of operand `at`.
    pub fn of(instruction: &Instruction, at: u32) -> Self {
        use OpCodeOperandKind as K;
        match instruction.code().op_code().op_kind(at) {
            K::xmm_reg | K::ymm_reg | K::mm_reg | K::r32_reg | K::r64_reg => Self::Reg,
            K::xmm_vvvv | K::ymm_vvvv | K::r32_vvvv | K::r64_vvvv => Self::Vex,
            K::xmm_is4 | K::ymm_is4 => Self::Immediate,
            K::xmm_or_mem | K::ymm_or_mem | K::mm_or_mem | K::xmm_rm | K::ymm_rm | K::mm_rm | K::mem => Self::Rm,
            K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::r32_rm | K::r64_rm => Self::Rm,
            _ => Self::Nowhere,
        }
    }
}

/// What the parts of the encoding are to name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operands {
    pub reg: u8,
    pub vvvv: u8,
    pub rm: Rm,
    /// The register in the immediate.
    pub immediate: u8,
}

impl Operands {
    /// None yet, but for the digit that some opcodes have in place of a register.
    pub fn none(instruction: &Instruction) -> Self {
        let digit = instruction.code().op_code().group_index().max(0) as u8;
        Self { reg: digit, vvvv: 0, rm: Rm::Vector(X(0)), immediate: 0 }
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
fn is_wide(instruction: &Instruction) -> bool {
    use OpCodeOperandKind as K;
    use iced_x86::Code::{Pcmpestri64_xmm_xmmm128_imm8, Pcmpestrm64_xmm_xmmm128_imm8};
    let op_code = instruction.code().op_code();
    let by_operand = (0..instruction.op_count()).any(|at| matches!(op_code.op_kind(at), K::r64_reg | K::r64_or_mem | K::r64_rm));
    by_operand || matches!(instruction.code(), Pcmpestri64_xmm_xmmm128_imm8 | Pcmpestrm64_xmm_xmmm128_imm8)
}

impl Emitter<'_> {
    /// Writes the current instruction, legacy- or VEX-encoded, with these operands.
    pub fn same(&mut self, operands: Operands) {
        let instruction = &self.source().instruction;
        let op_code = instruction.code().op_code();
        let number = op_code.op_code() as u8;
        let by_register = (0..instruction.op_count()).any(|at| Place::of(instruction, at) == Place::Immediate);
        let last = instruction.op_count().saturating_sub(1);
        let immediate = if by_register {
            Some(operands.immediate << 4)
        } else {
            (instruction.op_kind(last) == OpKind::Immediate8).then(|| instruction.immediate8())
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
            self.asm.vex(vex, number, operands.reg, operands.vvvv, operands.rm, immediate);
            return;
        }
        let prefix = [None, Some(0x66), Some(0xf3), Some(0xf2)][usize::from(prefix)];
        let opcode: &[u8] = match map {
            2 => &[0x0f, 0x38, number],
            3 => &[0x0f, 0x3a, number],
            _ => &[0x0f, number],
        };
        self.asm.vector(prefix, is_wide(instruction), opcode, operands.reg, operands.rm, immediate);
    }
}
