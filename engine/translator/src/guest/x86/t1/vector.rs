//! Vector instructions: the guest's own instruction on the host, on the same registers, which are resident (see
//! [`crate::host::x64::vectors`]). General registers are where the guest's are held, memory operands where the TLB probe found
//! them.
//!
//! The mode's key says that CR0 and CR4 let SSE instructions run and that MXCSR masks all six exceptions ([`super::VECTOR`]);
//! without that the interpreter has them. So nothing in here raises anything but what a memory operand raises, which is the
//! cold path's. Loads and stores of MXCSR and the mask move stay with the interpreter. MMX instructions are written here, too,
//! but it is `x87.rs` that says which and when.

use super::emit::{ALL_FLAGS, Emitter, Operand};
use super::gather;
use super::x87::{self, uses_vectors};
use super::{AVX, VECTOR, WIDE};
use crate::guest::x86::cpu::{CodeSize, reg};
use crate::guest::x86::cpuid::InstructionSets;
use crate::guest::x86::decode::{Decoded, decode};
use crate::guest::x86::op::Op;
use crate::host::x64::asm::{Asm, Mem, R, Rm, W, X};
use crate::host::x64::same::{self, Operands};
use crate::host::x64::stubs::PINNED;
use crate::host::x64::vectors::Residency;
use crate::ir::native::{Native, Place, Shape};
use iced_x86::{Code, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind, OpKind};

/// What an instruction of this file wants to be resident in mode `key`; nothing: it is none, or the interpreter's.
pub(super) fn wanted(op: &Op, instruction: &Instruction, key: u8) -> Residency {
    let moves_between = uses_vectors(instruction) && x87::is_native(op, instruction, key);
    if op.code != instruction.code() || key & VECTOR == 0 || !(moves_between || is_native(instruction)) {
        // Among others, what this CPU model does not have.
        return Residency::Nothing;
    }
    if instruction.code().op_code().encoding() == EncodingKind::Legacy {
        return Residency::Xmm;
    }
    // In 32-bit code, VZEROUPPER and VZEROALL leave the other eight registers alone.
    let all_or_none = instruction.op_count() == 0 && key & WIDE == 0;
    if key & AVX != 0 && !all_or_none { Residency::Ymm } else { Residency::Nothing }
}

/// Whether an instruction is one of this file's, and one of the host's.
fn is_native(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    let vector = |at: u32| {
        let register = instruction.op_register(at);
        instruction.op_kind(at) == OpKind::Register && (register.is_xmm() || register.is_ymm())
    };
    let usual = |at: u32| match instruction.op_kind(at) {
        OpKind::Register => vector(at) || instruction.op_register(at).is_gpr(),
        // CVTPI2PS reads memory where it might read MMX registers, and switches to them all the same.
        OpKind::Memory => {
            let index = instruction.memory_index();
            instruction.code().op_code().op_kind(at) != OpCodeOperandKind::mm_or_mem
                && (!(index.is_xmm() || index.is_ymm()) || gather::is_native(instruction))
        }
        OpKind::Immediate8 => true,
        _ => false,
    };
    // From memory to a general register, and to all vector registers: none is named.
    let nameless = matches!(
        instruction.mnemonic(),
        Cvtss2si | Cvttss2si | Cvtsd2si | Cvttsd2si | Vcvtss2si | Vcvttss2si | Vcvtsd2si | Vcvttsd2si | Vzeroupper | Vzeroall
    );
    let operands = 0..instruction.op_count();
    (nameless || operands.clone().any(vector)) && operands.clone().all(usual) && same::host_has(instruction.code())
}

/// What a string comparison uses besides its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StringCompare {
    /// Lengths in EAX and EDX.
    lengths: bool,
    /// An index into ECX.
    pub index: bool,
}

/// What a mnemonic uses if it compares strings.
pub(super) fn string_compare(mnemonic: Mnemonic) -> Option<StringCompare> {
    use Mnemonic::*;
    let (lengths, index) = match mnemonic {
        Pcmpestri | Pcmpestri64 | Vpcmpestri | Vpcmpestri64 => (true, true),
        Pcmpestrm | Pcmpestrm64 | Vpcmpestrm | Vpcmpestrm64 => (true, false),
        Pcmpistri | Vpcmpistri => (false, true),
        Pcmpistrm | Vpcmpistrm => (false, false),
        _ => return None,
    };
    Some(StringCompare { lengths, index })
}

/// Which part of an instruction's encoding names an operand.
pub(super) fn place_of(instruction: &Instruction, at: u32) -> Place {
    Place::of(instruction.code().op_code().op_kind(at))
}

/// A vector instruction with RAX as its general register, or as the address of its memory operand: for tests, which execute it
/// by the interpreter.
pub(in super::super) fn with_accumulator(native: &Native, has_memory: bool, sets: &InstructionSets) -> Op {
    let mut operands = Operands::of(native);
    let accumulator = if has_memory { Rm::Mem(Mem::at(R::Ax, 0)) } else { R::Ax.into() };
    let integer = Shape::of(native.code, has_memory).and_then(|shape| shape.integer);
    if has_memory {
        operands.set(Place::Rm, accumulator);
    }
    if let Some(integer) = integer {
        operands.set(integer.place, R::Ax.into());
    }
    let mut asm = Asm::new(0);
    match native.code {
        Code::VEX_Vzeroupper | Code::VEX_Vzeroall => asm.zero_vectors(native.code == Code::VEX_Vzeroall),
        code => same::write(&mut asm, code, operands, native.immediate),
    }
    match decode(&asm.finish(), CodeSize::Bits64, 0, sets) {
        Decoded::Op(op) => op,
        Decoded::Incomplete => unreachable!("{native:?} has been written whole"),
    }
}

impl Emitter<'_> {
    /// Writes the current instruction with these operands.
    pub fn same(&mut self, operands: Operands) {
        let instruction = &self.source().instruction;
        same::write(&mut self.asm, instruction.code(), operands, instruction.immediate8());
    }

    /// Translates the current instruction if it is one of this file's, or an MMX one. `None`: it is not, or not in this mode.
    pub fn vector(&mut self) -> Option<()> {
        let source = self.source();
        if source.vectors == Residency::Nothing && !source.x87 {
            return None;
        }
        let instruction = &source.instruction;
        if instruction.op_count() == 0 {
            self.asm.zero_vectors(instruction.mnemonic() == Mnemonic::Vzeroall);
            return Some(());
        }
        if instruction.is_vsib() {
            return self.gather();
        }
        let mut operands = Operands::none(instruction.code());
        let mut result = None;
        for at in 0..instruction.op_count() {
            let operand = match self.operand(at) {
                Operand::Mem => self.vector_memory(at == 0)?.into(),
                general @ Operand::Reg(_) if at == 0 => {
                    result = Some(general);
                    self.writable(general)
                }
                general @ Operand::Reg(_) => self.value(general, R::Cx).into(),
                _ if instruction.op_kind(at) == OpKind::Register => X(instruction.op_register(at).number() as u8).into(),
                _ => continue,
            };
            operands.set(place_of(instruction, at), operand);
        }
        let strings = string_compare(instruction.mnemonic());
        if let Some(StringCompare { lengths, .. }) = strings {
            if let Rm::Mem(mem) = operands.rm {
                self.asm.lea(W::B8, R::Cx, mem);
                operands.rm = Mem::at(R::Cx, 0).into();
            }
            if lengths {
                self.asm.mov(W::B8, R::Ax, PINNED[usize::from(reg::AX)]);
                self.asm.mov(W::B8, R::Dx, PINNED[usize::from(reg::DX)]);
            }
        }
        self.same(operands);
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
        let mnemonic = instruction.mnemonic();
        let aligned = if instruction.code().op_code().encoding() == EncodingKind::Legacy {
            bytes == 16 && !matches!(mnemonic, Movups | Movupd | Movdqu | Lddqu) && string_compare(mnemonic).is_none()
        } else {
            matches!(mnemonic, Vmovaps | Vmovapd | Vmovdqa | Vmovntps | Vmovntpd | Vmovntdq | Vmovntdqa)
        };
        if aligned { self.aligned_memory(write, bytes) } else { self.memory(write, bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, OpAccess, Register};

    #[test]
    fn string_compares_write_the_index_that_they_are_said_to() {
        let mut factory = InstructionInfoFactory::new();
        for opcode in 0x60..=0x63 {
            let forms: [&[u8]; 4] = [
                &[0x66, 0x0f, 0x3a, opcode, 0xc1, 0],
                &[0x66, 0x48, 0x0f, 0x3a, opcode, 0xc1, 0],
                &[0xc4, 0xe3, 0x79, opcode, 0xc1, 0],
                &[0xc4, 0xe3, 0xf9, opcode, 0xc1, 0],
            ];
            for bytes in forms {
                let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
                let is_index = |register: Register| register.full_register() == Register::RCX;
                let used = factory.info(&instruction).used_registers();
                let writes = used.iter().any(|used| is_index(used.register()) && used.access() == OpAccess::Write);
                let said = string_compare(instruction.mnemonic()).is_some_and(|strings| strings.index);
                assert_eq!(said, writes, "{bytes:x?}");
            }
        }
    }

    #[test]
    fn vectors_are_native_and_what_has_other_registers_is_not() {
        let native: &[&'static [u8]] = &[
            &[0x0f, 0x28, 0x00],                      // movaps xmm0, [rax]
            &[0xf3, 0x0f, 0x7f, 0x00],                // movdqu [rax], xmm0
            &[0x66, 0x0f, 0x73, 0xf9, 4],             // pslldq xmm1, 4
            &[0x66, 0x48, 0x0f, 0x6e, 0xc0],          // movq xmm0, rax
            &[0xf2, 0x0f, 0x2c, 0x00],                // cvttsd2si eax, [rax]
            &[0x66, 0x0f, 0x2f, 0xc1],                // comisd xmm0, xmm1
            &[0x66, 0x0f, 0x38, 0x10, 0xc1],          // pblendvb xmm0, xmm1
            &[0x66, 0x0f, 0x3a, 0x63, 0xc1, 0x0c],    // pcmpistri xmm0, xmm1, 12
            &[0xc5, 0xf4, 0x58, 0xc2],                // vaddps ymm0, ymm1, ymm2
            &[0xc5, 0xfa, 0x2c, 0x00],                // vcvttss2si eax, [rax]
            &[0xc4, 0xe3, 0x6d, 0x4b, 0xcb, 0x40],    // vblendvpd ymm1, ymm2, ymm3, ymm4
            &[0xc5, 0xf8, 0x77],                      // vzeroupper
            &[0xc4, 0xe2, 0x6d, 0x92, 0x4c, 0xb8, 8], // vgatherdps ymm1, [rax+ymm7*4+8], ymm2
        ];
        let others: &[&'static [u8]] = &[
            &[0x0f, 0xfc, 0xc1],                   // paddb mm0, mm1
            &[0x48, 0x0f, 0x6e, 0xc0],             // movq mm0, rax
            &[0x0f, 0x2a, 0xc1],                   // cvtpi2ps xmm0, mm1
            &[0x0f, 0x2a, 0x00],                   // cvtpi2ps xmm0, [rax]
            &[0xa5],                               // movsd
            &[0xc4, 0xe2, 0x6d, 0x92, 0x14, 0xb8], // vgatherdps ymm2, [rax+ymm7*4], ymm2
            &[0xc4, 0xe2, 0x70, 0xf3, 0xdb],       // blsi ecx, ebx
            &[0x0f, 0xae, 0x10],                   // ldmxcsr [rax]
            &[0x66, 0x0f, 0xf7, 0xc1],             // maskmovdqu xmm0, xmm1
            &[0x0f, 0xc3, 0x00],                   // movnti [rax], eax
            &[0xf2, 0x0f, 0x38, 0xf1, 0xc1],       // crc32 eax, ecx
        ];
        let native_of = |bytes: &[u8]| is_native(&Decoder::new(64, bytes, DecoderOptions::NONE).decode());
        let list = |of: &[&'static [u8]], are| of.iter().copied().filter(|bytes| native_of(bytes) != are).collect::<Vec<_>>();
        assert_eq!((list(native, true), list(others, false)), (Vec::new(), Vec::new()));
    }
}
