//! Vector instructions: the guest's own instruction on the host, on the same registers, which are resident (see [`crate::host::x64::vectors`]). General registers
//! are where the guest's are held, memory operands where the TLB probe found them.
//!
//! The mode's key says that CR0 and CR4 let SSE instructions run and that MXCSR masks all six exceptions ([`super::VECTOR`]); without that the
//! interpreter has them. So nothing in here raises anything but what a memory operand raises, which is the cold path's. Loads and stores of MXCSR, MMX and the
//! mask move stay with the interpreter.

use super::emit::{ALL_FLAGS, Emitter, Operand};
use crate::guest::x86::cpu::reg;
use crate::host::x64::asm::{Mem, R, Rm, W, X};
use crate::host::x64::stubs::PINNED;
use iced_x86::{CpuidFeature, EncodingKind, Instruction, MandatoryPrefix, Mnemonic, OpCodeOperandKind, OpCodeTableKind, OpKind};

/// Whether an instruction is one of this file's.
pub(super) fn is_native(instruction: &Instruction) -> bool {
    use CpuidFeature as F;
    let known = |feature: &F| matches!(feature, F::SSE | F::SSE2 | F::SSE3 | F::SSSE3 | F::SSE4_1 | F::SSE4_2);
    let vector = |at: u32| instruction.op_kind(at) == OpKind::Register && instruction.op_register(at).is_xmm();
    let usual = |at: u32| match instruction.op_kind(at) {
        OpKind::Register => instruction.op_register(at).is_xmm() || instruction.op_register(at).is_gpr(),
        // CVTPI2PS reads memory where it might read MMX registers, and switches to them all the same.
        OpKind::Memory => instruction.code().op_code().op_kind(at) != OpCodeOperandKind::mm_or_mem,
        OpKind::Immediate8 => true,
        _ => false,
    };
    // From memory to a general register: no vector register in sight.
    let converts =
        matches!(instruction.mnemonic(), Mnemonic::Cvtss2si | Mnemonic::Cvttss2si | Mnemonic::Cvtsd2si | Mnemonic::Cvttsd2si);
    let operands = 0..instruction.op_count();
    instruction.code().op_code().encoding() == EncodingKind::Legacy
        && (converts || operands.clone().any(vector))
        && operands.clone().all(usual)
        && instruction.cpuid_features().iter().all(known)
}

/// Which part of the encoding names an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// ModRM.reg
    Reg,
    /// ModRM.rm
    Rm,
    /// None: an immediate, or implied.
    Elsewhere,
}

fn place(kind: OpCodeOperandKind) -> Place {
    use OpCodeOperandKind as K;
    match kind {
        K::xmm_reg | K::r32_reg | K::r64_reg => Place::Reg,
        K::xmm_or_mem | K::xmm_rm | K::mem | K::r32_or_mem | K::r64_or_mem | K::r32_rm | K::r64_rm => Place::Rm,
        _ => Place::Elsewhere,
    }
}

fn is_wide(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(kind, K::r64_reg | K::r64_or_mem | K::r64_rm)
}

/// What a string comparison uses besides its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct StringCompare {
    /// Lengths in EAX and EDX.
    lengths: bool,
    /// An index into ECX.
    index: bool,
}

fn string_compare(mnemonic: Mnemonic) -> Option<StringCompare> {
    let (lengths, index) = match mnemonic {
        Mnemonic::Pcmpestri | Mnemonic::Pcmpestri64 => (true, true),
        Mnemonic::Pcmpestrm | Mnemonic::Pcmpestrm64 => (true, false),
        Mnemonic::Pcmpistri => (false, true),
        Mnemonic::Pcmpistrm => (false, false),
        _ => return None,
    };
    Some(StringCompare { lengths, index })
}

impl Emitter<'_> {
    /// Translates the current instruction if it is one of this file's. `None`: it is not, or not in this mode.
    pub fn vector(&mut self) -> Option<()> {
        let source = self.source();
        if !source.vector {
            return None;
        }
        let instruction = &source.instruction;
        let op_code = instruction.code().op_code();
        let strings = string_compare(instruction.mnemonic());
        let mut reg = op_code.group_index().max(0) as u8;
        let mut rm = Rm::Vector(X(0));
        let mut result = None;
        let mut wide = matches!(instruction.mnemonic(), Mnemonic::Pcmpestri64 | Mnemonic::Pcmpestrm64);
        for at in 0..instruction.op_count() {
            let kind = op_code.op_kind(at);
            wide |= is_wide(kind);
            let operand = match self.operand(at) {
                Operand::Mem => self.vector_memory(at == 0)?.into(),
                general @ Operand::Reg(_) if at == 0 => {
                    result = Some(general);
                    self.writable(general)
                }
                general @ Operand::Reg(_) => self.value(general, R::Cx).into(),
                _ => match instruction.op_kind(at) {
                    OpKind::Register => Rm::Vector(X(instruction.op_register(at).number() as u8)),
                    _ => continue,
                },
            };
            match (place(kind), operand) {
                (Place::Rm, operand) => rm = operand,
                (Place::Reg, Rm::Vector(register)) => reg = register.0,
                (Place::Reg, Rm::Reg(register)) => reg = register as u8,
                _ => {}
            }
        }
        if let Some(StringCompare { lengths, .. }) = strings {
            if let Rm::Mem(mem) = rm {
                self.asm.lea(W::B8, R::Cx, mem);
                rm = Mem::at(R::Cx, 0).into();
            }
            if lengths {
                self.asm.mov(W::B8, R::Ax, PINNED[usize::from(reg::AX)]);
                self.asm.mov(W::B8, R::Dx, PINNED[usize::from(reg::DX)]);
            }
        }
        self.same(wide, reg, rm);
        if let Some(general) = result {
            self.commit(general);
        }
        if strings.is_some_and(|strings| strings.index) {
            self.asm.mov(W::B4, PINNED[usize::from(reg::CX)], R::Cx);
        }
        if instruction.rflags_modified() & ALL_FLAGS != 0 {
            self.wrote_flags();
        }
        Some(())
    }

    /// Probes the TLB for the memory operand.
    fn vector_memory(&mut self, write: bool) -> Option<Mem> {
        use Mnemonic::*;
        let instruction = &self.source().instruction;
        let bytes = instruction.memory_size().size() as u8;
        let anywhere = matches!(instruction.mnemonic(), Movups | Movupd | Movdqu | Lddqu)
            || string_compare(instruction.mnemonic()).is_some();
        if bytes == 16 && !anywhere { self.aligned_memory(write) } else { self.memory(write, bytes) }
    }

    /// The current instruction's opcode and immediate with these operands.
    fn same(&mut self, wide: bool, reg: u8, rm: Rm) {
        let instruction = &self.source().instruction;
        let op_code = instruction.code().op_code();
        let prefix = match op_code.mandatory_prefix() {
            MandatoryPrefix::P66 => Some(0x66),
            MandatoryPrefix::PF3 => Some(0xf3),
            MandatoryPrefix::PF2 => Some(0xf2),
            _ => None,
        };
        let number = op_code.op_code() as u8;
        let opcode: &[u8] = match op_code.table() {
            OpCodeTableKind::T0F38 => &[0x0f, 0x38, number],
            OpCodeTableKind::T0F3A => &[0x0f, 0x3a, number],
            _ => &[0x0f, number],
        };
        let last = instruction.op_count() - 1;
        let immediate = (instruction.op_kind(last) == OpKind::Immediate8).then(|| instruction.immediate8());
        self.asm.vector(prefix, wide, opcode, reg, rm, immediate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    #[test]
    fn vectors_are_native_and_what_has_other_registers_is_not() {
        let native: &[&'static [u8]] = &[
            &[0x0f, 0x28, 0x00],                   // movaps xmm0, [rax]
            &[0xf3, 0x0f, 0x7f, 0x00],             // movdqu [rax], xmm0
            &[0x66, 0x0f, 0x73, 0xf9, 4],          // pslldq xmm1, 4
            &[0x66, 0x48, 0x0f, 0x6e, 0xc0],       // movq xmm0, rax
            &[0xf2, 0x0f, 0x2c, 0x00],             // cvttsd2si eax, [rax]
            &[0x66, 0x0f, 0x2f, 0xc1],             // comisd xmm0, xmm1
            &[0x66, 0x0f, 0x38, 0x10, 0xc1],       // pblendvb xmm0, xmm1
            &[0x66, 0x0f, 0x3a, 0x63, 0xc1, 0x0c], // pcmpistri xmm0, xmm1, 12
        ];
        let others: &[&'static [u8]] = &[
            &[0x0f, 0xfc, 0xc1],             // paddb mm0, mm1
            &[0x48, 0x0f, 0x6e, 0xc0],       // movq mm0, rax
            &[0x0f, 0x2a, 0xc1],             // cvtpi2ps xmm0, mm1
            &[0x0f, 0x2a, 0x00],             // cvtpi2ps xmm0, [rax]
            &[0xa5],                         // movsd
            &[0xc5, 0xf0, 0x58, 0xc2],       // vaddps xmm0, xmm1, xmm2
            &[0x0f, 0xae, 0x10],             // ldmxcsr [rax]
            &[0x66, 0x0f, 0xf7, 0xc1],       // maskmovdqu xmm0, xmm1
            &[0x0f, 0xc3, 0x00],             // movnti [rax], eax
            &[0xf2, 0x0f, 0x38, 0xf1, 0xc1], // crc32 eax, ecx
        ];
        let native_of = |bytes: &[u8]| is_native(&Decoder::new(64, bytes, DecoderOptions::NONE).decode());
        let list = |of: &[&'static [u8]], are| of.iter().copied().filter(|bytes| native_of(bytes) != are).collect::<Vec<_>>();
        assert_eq!((list(native, true), list(others, false)), (Vec::new(), Vec::new()));
    }
}
