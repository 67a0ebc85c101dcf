//! x87 and MMX instructions: the guest's own, on the host's x87, which then holds the guest's whole x87 state.
//!
//! # Where the state is
//! In the CPU, or in the host ([`super::Translator::x87_in_host`]). A block with x87 or MMX instructions tests that at its
//! start and has it brought if need be; it stays over calls of the interpreter and from block to block. It goes back to the CPU
//! before anything looks at it or might disturb it: handlers of x87, MMX, FXSAVE, … instructions ([`touches_x87`]), the board's
//! code ([`Cpu::io`]), and everything that comes after translated code has been left.
//!
//! # Exceptions
//! The mode's key says that CR0 lets x87 instructions run and that the control word masks all six exceptions ([`super::X87`]);
//! without that the interpreter has them. So nothing in here raises anything but what a memory operand raises, which is the
//! cold path's, and nothing can be pending.
//!
//! # Pointers
//! The guest's instruction and data pointers are not those of the host, so translated code keeps them: the data pointer at each
//! memory operand, the rest of them as a [`Note`], written when the block ends or somebody may look.
//!
//! Environments, FNINIT, FFREE and the mask move stay with the interpreter. MMX instructions have the shapes of vector
//! instructions and are written by `vector.rs`.

use super::emit::{ALL_FLAGS, Emitter, field, state};
use super::{VECTOR, X87};
use crate::guest::x86::cpu::{Cpu, seg};
use crate::guest::x86::fault::Exec;
use crate::guest::x86::host_fp::whole_x87::{self, MASKED};
use crate::guest::x86::op::Op;
use crate::guest::x86::x87_table;
use crate::host::x64::asm::{Alu, Asm, Cond, Mem, R, W};
use engine_cpu::x86::Segment;
use iced_x86::{CpuidFeature, Instruction, Mnemonic, OpCodeOperandKind, OpKind};
use std::mem::offset_of;

// ---- The vCPU's side -------------------------------------------------------------------------------------------

impl Cpu {
    /// Brings the x87 state into the host.
    pub(super) fn x87_to_host(&mut self) {
        if !self.t1.x87_in_host {
            whole_x87::enter(&self.fpu);
            self.t1.x87_in_host = true;
        }
    }

    /// The x87 state is in the CPU, and the host's x87 is clean.
    #[inline]
    pub(crate) fn x87_from_host(&mut self) {
        if self.t1.x87_in_host {
            whole_x87::leave(&mut self.fpu);
            self.t1.x87_in_host = false;
        }
    }

    /// The control word has changed: its masks are part of the mode's key.
    pub(in crate::guest::x86) fn x87_control_changed(&mut self) {
        self.translation_mode_changed();
    }

    /// Whether x87 instructions of the guest raise nothing by themselves.
    pub(super) fn x87_is_masked(&self) -> bool {
        self.fpu.control & MASKED == MASKED
    }
}

/// The handler of a site that only wants the x87 state in the host.
pub(super) fn nothing(_: &mut Cpu, _: &Op) -> Exec {
    Ok(())
}

/// Whether an instruction's handler looks at the x87 state or changes it.
pub(super) fn touches_x87(instruction: &Instruction) -> bool {
    use CpuidFeature::*;
    let named = |at| {
        instruction.op_kind(at) == OpKind::Register
            && (instruction.op_register(at).is_mm() || instruction.op_register(at).is_st())
    };
    is_x87(instruction)
        || (0..instruction.op_count()).any(named)
        || instruction.cpuid_features().iter().any(|feature| {
            matches!(
                feature,
                FPU | FPU287 | FPU287XL_ONLY | FPU387 | FPU387SL_ONLY | MMX | FXSR | XSAVE | XSAVEC | XSAVEOPT | XSAVES
            )
        })
}

/// The opcode byte, D8 to DF, and what is encoded of ModRM; `None`: no x87 instruction.
fn opcode(instruction: &Instruction) -> Option<(u8, u8)> {
    let op_code = instruction.code().op_code();
    let value = op_code.op_code();
    let (byte, rest) = if op_code.op_code_len() == 2 { ((value >> 8) as u8, value as u8) } else { (value as u8, 0) };
    (op_code.table() == iced_x86::OpCodeTableKind::Normal && byte & 0xf8 == 0xd8).then_some((byte, rest))
}

fn is_x87(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Wait || opcode(instruction).is_some()
}

/// Whether an instruction is executed on the host's x87 in mode `key`.
pub(super) fn is_native(op: &Op, instruction: &Instruction, key: u8) -> bool {
    use CpuidFeature as F;
    use Mnemonic::*;
    let mnemonic = instruction.mnemonic();
    if op.code != instruction.code() || key & X87 == 0 || uses_vectors(instruction) && key & VECTOR == 0 {
        return false;
    }
    if is_x87(instruction) {
        // CPUs differ in what becomes of C1 by FFREE.
        let left = matches!(mnemonic, Fninit | Fnstenv | Fldenv | Fnsave | Frstor | Fneni | Fndisi | Fnsetpm | Ffree | Ffreep);
        return !left && x87_table::handler(instruction.code()).is_some();
    }
    let known = |feature: &F| matches!(feature, F::MMX | F::SSE | F::SSE2 | F::SSSE3);
    let names_mm = |at| instruction.op_kind(at) == OpKind::Register && instruction.op_register(at).is_mm();
    (mnemonic == Emms || (0..instruction.op_count()).any(names_mm))
        && mnemonic != Maskmovq
        && instruction.cpuid_features().iter().all(known)
}

/// Whether an MMX instruction also uses XMM registers or MXCSR.
pub(super) fn uses_vectors(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(instruction.mnemonic(), Movq2dq | Movdq2q | Cvtpi2ps | Cvtpi2pd | Cvtps2pi | Cvttps2pi | Cvtpd2pi | Cvttpd2pi)
}

// ---- The emitter's side ----------------------------------------------------------------------------------------

/// Instruction pointer and selectors of the last x87 instruction, not yet in the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Note {
    /// Its place in the page.
    start: u32,
    /// The segment of the last memory operand since the state was right.
    data_segment: Option<u8>,
}

/// The selector of a segment register in the state.
fn selector(number: u8) -> Mem {
    let at = usize::from(number) * size_of::<Segment>() + offset_of!(Segment, selector);
    state(field!(segments) + at as i32)
}

/// Writes a note to the state. Keeps flags; spoils RAX.
pub(super) fn emit_note(asm: &mut Asm, note: Note, pointer: W) {
    asm.load(W::B8, R::Ax, state(field!(t1.page_base)));
    asm.lea(pointer, R::Ax, Mem::at(R::Ax, note.start as i32));
    asm.mov(W::B8, state(field!(fpu.instruction_pointer)), R::Ax);
    asm.movzx(W::B2, R::Ax, selector(seg::CS));
    asm.mov(W::B2, state(field!(fpu.instruction_segment)), R::Ax);
    if let Some(segment) = note.data_segment {
        asm.movzx(W::B2, R::Ax, selector(segment));
        asm.mov(W::B2, state(field!(fpu.data_segment)), R::Ax);
    }
}

/// What an x87 instruction does with its memory operand.
fn stores(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Fst | Fstp | Fist | Fistp | Fisttp | Fbstp | Fnstcw | Fnstsw)
}

impl Emitter<'_> {
    /// Translates the current instruction if it is an x87 instruction or EMMS. `None`: it is not (other MMX instructions are
    /// `vector.rs`'s), or not in this mode.
    pub fn x87(&mut self) -> Option<()> {
        use Mnemonic::*;
        let source = self.source();
        if !source.x87 {
            return None;
        }
        let instruction = &source.instruction;
        let mnemonic = instruction.mnemonic();
        match mnemonic {
            // Nothing is pending, and TS is clear.
            Wait => return Some(()),
            Fldcw => return self.load_control(),
            Emms => {
                self.asm.emms();
                return Some(());
            }
            _ => {}
        }
        let (byte, rest) = opcode(instruction)?;
        if source.op.has_memory() {
            let digit = u8::try_from(instruction.code().op_code().group_index()).ok()?;
            let bytes = instruction.memory_size().size() as u8;
            let mem = self.memory(stores(mnemonic), bytes)?;
            self.asm.x87_memory(byte, digit, mem);
            if !matches!(mnemonic, Fnstcw | Fnstsw) {
                let known = self.address();
                debug_assert_eq!(known, Some(()), "the operand has just been found");
                self.asm.mov(W::B8, state(field!(fpu.data_pointer)), R::Ax);
                self.note = Some(Note { start: source.start, data_segment: Some(source.op.segment) });
            }
            return Some(());
        }
        let code = instruction.code().op_code();
        let register = (0..instruction.op_count()).find(|at| code.op_kind(*at) == OpCodeOperandKind::sti_opcode);
        let modrm = rest | register.map_or(0, |at| instruction.op_register(at).number() as u8);
        let conditional = instruction.rflags_read() & ALL_FLAGS != 0;
        let compares = instruction.rflags_modified() & ALL_FLAGS != 0;
        if conditional {
            self.load_flags();
        }
        self.asm.x87_register(byte, modrm);
        match mnemonic {
            Fnclex => {}
            Fnstsw => {
                let ax = self.pinned(crate::guest::x86::cpu::reg::AX)?;
                self.asm.mov(W::B2, ax, R::Ax);
            }
            _ => {
                if compares {
                    self.wrote_flags();
                }
                let data_segment = self.note.and_then(|note| note.data_segment);
                self.note = Some(Note { start: source.start, data_segment });
            }
        }
        Some(())
    }

    /// FLDCW: of what masks everything, read once; another CPU may be writing it.
    fn load_control(&mut self) -> Option<()> {
        let mem = self.memory(false, 2)?;
        self.asm.movzx(W::B2, R::Dx, mem);
        self.asm.mov(W::B4, R::Cx, R::Dx);
        self.asm.alu_imm(Alu::And, W::B4, R::Cx, i32::from(MASKED));
        self.asm.alu_imm(Alu::Cmp, W::B4, R::Cx, i32::from(MASKED));
        let unmasks = self.cold_path();
        self.asm.jcc(Cond::NE, unmasks);
        let scratch = state(field!(t1.scratch));
        self.asm.mov(W::B2, scratch, R::Dx);
        self.asm.x87_memory(0xd9, 5, scratch);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::x86::cpu::CodeSize;
    use crate::guest::x86::cpuid::InstructionSets;
    use crate::guest::x86::decode::{Decoded, decode};
    use iced_x86::{Decoder, DecoderOptions};

    fn is_native_in(key: u8, bytes: &[u8]) -> bool {
        let Decoded::Op(op) = decode(bytes, CodeSize::Bits64, 0, &InstructionSets::all()) else {
            panic!("incomplete: {bytes:02x?}")
        };
        is_native(&op, &Decoder::new(64, bytes, DecoderOptions::NONE).decode(), key)
    }

    #[test]
    fn x87_and_mmx_are_native_and_environments_are_not() {
        let native: &[&'static [u8]] = &[
            &[0xdd, 0x00],             // fld qword [rax]
            &[0xd8, 0xc1],             // fadd st0, st1
            &[0xdb, 0x38],             // fstp tword [rax]
            &[0xdf, 0xe0],             // fnstsw ax
            &[0xd9, 0x28],             // fldcw [rax]
            &[0x9b],                   // wait
            &[0x0f, 0xfc, 0xc1],       // paddb mm0, mm1
            &[0x48, 0x0f, 0x6e, 0xc0], // movq mm0, rax
            &[0x0f, 0x77],             // emms
        ];
        let others: &[&'static [u8]] = &[
            &[0xdb, 0xe3],             // fninit
            &[0xd9, 0x30],             // fnstenv [rax]
            &[0xdd, 0xc1],             // ffree st1
            &[0x0f, 0xf7, 0xc1],       // maskmovq mm0, mm1
            &[0x0f, 0x58, 0xc1],       // addps xmm0, xmm1
            &[0x0f, 0x2a, 0x00],       // cvtpi2ps xmm0, [rax]
            &[0x48, 0x0f, 0xae, 0x00], // fxsave64 [rax]
        ];
        let list =
            |of: &[&'static [u8]], are| of.iter().copied().filter(|bytes| is_native_in(X87, bytes) != are).collect::<Vec<_>>();
        assert_eq!((list(native, true), list(others, false)), (Vec::new(), Vec::new()));
        let between: &[u8] = &[0x0f, 0x2a, 0xc1]; // cvtpi2ps xmm0, mm1
        assert_eq!([X87, VECTOR, X87 | VECTOR].map(|key| is_native_in(key, between)), [false, false, true]);
    }

    #[test]
    fn whoever_looks_at_the_x87_state_is_known() {
        let touches = |bytes: &[u8]| touches_x87(&Decoder::new(64, bytes, DecoderOptions::NONE).decode());
        let yes: &[&'static [u8]] = &[
            &[0xdb, 0xe3],
            &[0xd9, 0x30],
            &[0x0f, 0xf7, 0xc1],
            &[0x0f, 0xae, 0x00],
            &[0x0f, 0xae, 0x20],
            &[0x0f, 0xc7, 0x20],
            &[0x9b],
        ];
        let no: &[&'static [u8]] = &[&[0x0f, 0x58, 0xc1], &[0x0f, 0xae, 0x10], &[0x0f, 0xa2], &[0xf3, 0xa4]];
        assert!(yes.iter().all(|bytes| touches(bytes)), "fninit, fnstenv, maskmovq, fxsave, xsave, xsavec, wait");
        assert!(!no.iter().any(|bytes| touches(bytes)), "addps, ldmxcsr, cpuid, rep movsb");
    }
}
