//! Gathers, as [`crate::host::x64::gather`] says; a page that the second level of the TLB knows is entered on the way.

use super::emit::{Emitter, Operand, field};
use crate::guest::x86::cpu::{CodeSize, seg};
use crate::guest::x86::cpuid::InstructionSets;
use crate::guest::x86::decode::{Decoded, decode};
use crate::guest::x86::op::{NO_REGISTER, Op};
use crate::host::x64::asm::{Alu, Asm, Label, Mem, R, Rm, W};
use crate::host::x64::gather::{Elements, Wanted, Writer};
use crate::ir::gather::{Form, Gather};
use iced_x86::Instruction;

/// Where gathers keep three vector registers, from the start of the CPU.
pub(super) const ROOM: i32 = field!(t1.gather);

/// What an instruction says if it is a gather.
fn gather_of(instruction: &Instruction) -> Option<Gather> {
    Form::of(instruction.code())?;
    let number = |register: iced_x86::Register| register.number() as u8;
    Some(Gather {
        code: instruction.code(),
        result: number(instruction.op_register(0)),
        mask: number(instruction.op_register(2)),
        index: number(instruction.memory_index()),
        scale: instruction.memory_index_scale().trailing_zeros() as u8,
        displacement: instruction.memory_displacement64() as i32,
    })
}

/// Whether an instruction is a gather that does not fault by its registers.
pub(super) fn is_native(instruction: &Instruction) -> bool {
    gather_of(instruction).is_some_and(|gather| gather.is_valid())
}

/// A gather with RAX as its base: for tests, which execute it by the interpreter.
pub(in super::super) fn with_accumulator(gather: &Gather, sets: &InstructionSets) -> Op {
    let &Gather { code, result, mask, index, scale, displacement } = gather;
    let op_code = code.op_code();
    let map = 2 | 1 << 5 | (!index >> 3 & 1) << 6 | (!result >> 3 & 1) << 7;
    let rest = 1 | (op_code.l() as u8) << 2 | (!mask & 15) << 3 | (op_code.w() as u8) << 7;
    let mut bytes = vec![0xc4, map, rest, op_code.op_code() as u8, 0x84 | (result & 7) << 3, scale << 6 | (index & 7) << 3];
    bytes.extend(displacement.to_le_bytes());
    match decode(&bytes, CodeSize::Bits64, 0, sets) {
        Decoded::Op(op) => op,
        Decoded::Incomplete => unreachable!("{gather:?} has been written whole"),
    }
}

/// A gather's elements: their indices in RAX, their addresses too.
struct Looking<'e, 'a> {
    emitter: &'e mut Emitter<'a>,
    form: Form,
    cold: Label,
}

impl Elements for Looking<'_, '_> {
    fn asm(&mut self) -> &mut Asm {
        &mut self.emitter.asm
    }

    fn find(&mut self, index: Mem) -> Mem {
        let Self { emitter, form, cold } = self;
        match form.index {
            8 => emitter.asm.load(W::B8, R::Ax, index),
            _ => emitter.asm.movsx(W::B8, W::B4, R::Ax, index),
        }
        emitter.element_address();
        emitter.look(false, form.element.into(), 1, *cold, R::Ax);
        Mem::sum(R::Cx, R::Ax)
    }
}

impl Emitter<'_> {
    /// Translates the current instruction if it is a gather from a segment without a base. `None`: it is not.
    pub fn gather(&mut self) -> Option<()> {
        let source = self.source();
        let writer = Writer::new(&gather_of(&source.instruction)?, ROOM)?;
        self.address_width()?;
        if matches!(source.op.segment, seg::FS | seg::GS) {
            return None;
        }
        self.spoil_flags();
        writer.keep(&mut self.asm);
        let cold = self.cold_path_with(&writer.undo());
        let (some, done) = (self.asm.label(), self.asm.label());
        writer.ask(&mut self.asm, R::Ax, some);
        let mut looking = Looking { emitter: self, form: writer.form, cold };
        writer.elements(&mut looking, Wanted::All);
        looking.asm().jmp(done);
        looking.asm().bind(some);
        writer.elements(&mut looking, Wanted::Masked);
        self.asm.bind(done);
        writer.end(&mut self.asm);
        Some(())
    }

    /// RAX, an index, becomes the address of its element.
    fn element_address(&mut self) {
        let op = &self.source().op;
        let w = self.address_width().unwrap_or(W::B8);
        let (base, scale, disp) = (op.base, op.scale, op.disp as i32);
        if base == NO_REGISTER {
            return self.asm.lea_scaled(w, R::Ax, R::Ax, scale, disp);
        }
        match self.readable(Operand::Reg(base), R::Cx) {
            Rm::Reg(base) => self.asm.lea(w, R::Ax, Mem { base, index: Some((R::Ax, scale)), disp }),
            base => {
                self.asm.lea_scaled(w, R::Ax, R::Ax, scale, disp);
                self.asm.alu_load(Alu::Add, w, R::Ax, base);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn decoded(bytes: &[u8]) -> Instruction {
        Decoder::new(64, bytes, DecoderOptions::NONE).decode()
    }

    #[test]
    fn a_gather_that_names_a_register_twice_is_left_to_the_interpreter() {
        // vgatherdps ymm1, [rax+ymm7*4+8], ymm2
        assert!(is_native(&decoded(&[0xc4, 0xe2, 0x6d, 0x92, 0x4c, 0xb8, 8])));
        // vgatherdps ymm2, [rax+ymm7*4], ymm2: #UD
        assert!(!is_native(&decoded(&[0xc4, 0xe2, 0x6d, 0x92, 0x14, 0xb8])));
    }

    #[test]
    fn a_gather_with_another_base_says_the_same() {
        // vpgatherdq ymm9, [rbx+xmm12*8-40h], ymm13
        let gather = gather_of(&decoded(&[0xc4, 0x22, 0x95, 0x90, 0x4c, 0xe3, 0xc0])).expect("it is one");
        let expected = Gather { result: 9, mask: 13, index: 12, scale: 3, displacement: -0x40, ..gather };
        assert_eq!(gather, expected);
        let op = with_accumulator(&gather, &InstructionSets::all());
        assert_eq!((op.code, op.reg, op.vvvv, op.index, op.base), (gather.code, 9, 13, 12, 0));
        assert_eq!((op.scale, op.disp), (3, -0x40i64 as u64));
    }
}
