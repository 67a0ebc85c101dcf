//! Gathers: each element by a look at the TLB of its own. Nothing is committed before the last of them has been found: whatever
//! a look does not find the interpreter does, from the first element on. So a fault leaves the elements before it loaded and
//! their mask clear, as the hardware does.
//!
//! No vector register is scratch, so the two that are written hold what has been loaded so far, and get back what they were before the
//! interpreter looks at them.
//! See: Intel SDM volume 2, "VPGATHERDD/VPGATHERDQ", "VGATHERDPS/VGATHERDPD".

use super::emit::{Emitter, Operand, field, state};
use crate::guest::x86::cpu::seg;
use crate::guest::x86::op::NO_REGISTER;
use crate::host::x64::asm::{Alu, Cond, Label, Mem, R, Rm, Vex, W, X};
use iced_x86::{Instruction, Mnemonic};

/// Bytes of a vector register.
const VECTOR_BYTES: u8 = 32;

/// A gather's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    index: W,
    element: W,
    count: u8,
}

impl Form {
    fn of(instruction: &Instruction) -> Option<Self> {
        use Mnemonic::*;
        let (index, element) = match instruction.mnemonic() {
            Vpgatherdd | Vgatherdps => (W::B4, W::B4),
            Vpgatherdq | Vgatherdpd => (W::B4, W::B8),
            Vpgatherqd | Vgatherqps => (W::B8, W::B4),
            Vpgatherqq | Vgatherqpd => (W::B8, W::B8),
            _ => return None,
        };
        let bytes = if instruction.code().op_code().l() == 1 { VECTOR_BYTES } else { VECTOR_BYTES / 2 };
        Some(Self { index, element, count: bytes / index.bytes().max(element.bytes()) })
    }

    /// Elements in half a vector register.
    fn half(self) -> u8 {
        VECTOR_BYTES / 2 / self.element.bytes()
    }

    /// The mask that VMOVMSKPS or VMOVMSKPD gives if all elements are wanted.
    fn all(self) -> i32 {
        (1 << self.count) - 1
    }
}

/// Whether an instruction is a gather that does not fault by its registers.
pub(super) fn is_native(instruction: &Instruction) -> bool {
    let register = |at| instruction.op_register(at).number();
    let (result, mask, index) = (register(0), register(2), instruction.memory_index().number());
    Form::of(instruction).is_some() && result != mask && result != index && mask != index
}

/// An AVX2 instruction of 128 (or, `long`, 256) bits with prefix 66.
fn avx(map: u8, wide: bool, long: bool) -> Vex {
    Vex { prefix: 1, map, wide, long }
}

/// Where indices, result and mask are while elements are looked for.
fn kept(number: u8) -> Mem {
    state(field!(t1.gather) + i32::from(number * VECTOR_BYTES))
}

/// The registers that a gather names.
#[derive(Clone, Copy)]
struct Registers {
    result: X,
    mask: X,
    index: X,
}

impl Emitter<'_> {
    /// Translates the current instruction if it is a gather from a segment without a base. `None`: it is not.
    pub fn gather(&mut self) -> Option<()> {
        let source = self.source();
        let form = Form::of(&source.instruction)?;
        self.address_width()?;
        if matches!(source.op.segment, seg::FS | seg::GS) {
            return None;
        }
        let vector = |register: iced_x86::Register| X(register.number() as u8);
        let instruction = &source.instruction;
        let registers = Registers {
            result: vector(instruction.op_register(0)),
            mask: vector(instruction.op_register(2)),
            index: vector(instruction.memory_index()),
        };
        self.spoil_flags();
        let Registers { result, mask, index } = registers;
        for (number, register) in [index, result, mask].into_iter().enumerate() {
            self.asm.store_vector(kept(number as u8), register);
        }
        let cold = self.cold_path_with(&[(result, kept(1)), (mask, kept(2))]);
        let wide = form.element == W::B8;
        let long = form.count > form.half();
        let (some, done) = (self.asm.label(), self.asm.label());
        // VMOVMSKPS or VMOVMSKPD: usually all elements are wanted. Where there are fewer than the mask has room for, the rest
        // of it says nothing.
        let prefix = u8::from(wide);
        self.asm.vex(Vex { prefix, map: 1, wide: false, long }, 0x50, R::Ax as u8, 0, Rm::Vector(mask), None);
        if form.count < form.half() {
            self.asm.alu_imm(Alu::And, W::B4, R::Ax, form.all());
        }
        // The upper half of the result is put together where the mask was; the upper halves of both are zero from here on.
        self.asm.vex(avx(1, false, false), 0x6f, result.0, 0, Rm::Vector(result), None);
        if long {
            let upper = kept(1);
            let upper = Mem { disp: upper.disp + i32::from(VECTOR_BYTES / 2), ..upper };
            self.asm.vex(avx(1, false, false), 0x6f, mask.0, 0, Rm::Mem(upper), None);
        }
        self.asm.alu_imm(Alu::Cmp, W::B4, R::Ax, form.all());
        self.asm.jcc(Cond::NE, some);
        self.elements(form, registers, cold, false);
        self.asm.jmp(done);
        self.asm.bind(some);
        self.elements(form, registers, cold, true);
        self.asm.bind(done);
        if long {
            self.asm.vex(avx(3, false, true), 0x38, result.0, result.0, Rm::Vector(mask), Some(1));
        }
        if form.count < form.half() {
            // VMOVQ: the upper half of the lower half becomes zero.
            self.asm.vex(Vex { prefix: 2, map: 1, wide: false, long: false }, 0x7e, result.0, 0, Rm::Vector(result), None);
        }
        self.asm.vex(avx(1, false, false), 0xef, mask.0, mask.0, Rm::Vector(mask), None);
        Some(())
    }

    /// Loads the elements; where `masked`, those that the mask names.
    fn elements(&mut self, form: Form, registers: Registers, cold: Label, masked: bool) {
        let Form { index, element, count } = form;
        for lane in 0..count {
            let of = |number: u8, w: W| Mem { disp: kept(number).disp + i32::from(lane * w.bytes()), ..kept(number) };
            let skip = self.asm.label();
            if masked {
                self.asm.alu_imm(Alu::Cmp, element, of(2, element), 0);
                self.asm.jcc(Cond::NS, skip);
            }
            match index {
                W::B8 => self.asm.load(W::B8, R::Ax, of(0, index)),
                _ => self.asm.movsx(W::B8, W::B4, R::Ax, of(0, index)),
            }
            self.element_address();
            self.look(false, element.bytes().into(), 1, cold, R::Ax);
            let into = if lane < form.half() { registers.result } else { registers.mask };
            let from = Rm::Mem(Mem::sum(R::Cx, R::Ax));
            self.asm.vex(avx(3, element == W::B8, false), 0x22, into.0, into.0, from, Some(lane % form.half()));
            self.asm.bind(skip);
        }
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

    #[test]
    fn elements_are_as_many_as_both_vectors_have_room_for() {
        let cases: [(&[u8], W, W, u8); 5] = [
            (&[0xc4, 0xe2, 0x6d, 0x92, 0x4c, 0xb8, 8], W::B4, W::B4, 8), // vgatherdps ymm1, [rax+ymm7*4+8], ymm2
            (&[0xc4, 0xe2, 0xed, 0x90, 0x0c, 0xb8], W::B4, W::B8, 4),    // vpgatherdq ymm1, [rax+xmm7*4], ymm2
            (&[0xc4, 0xe2, 0x69, 0x91, 0x0c, 0xb8], W::B8, W::B4, 2),    // vpgatherqd xmm1, [rax+xmm7*4], xmm2
            (&[0xc4, 0xe2, 0x6d, 0x93, 0x0c, 0xb8], W::B8, W::B4, 4),    // vgatherqps xmm1, [rax+ymm7*4], xmm2
            (&[0xc4, 0xe2, 0xe9, 0x93, 0x0c, 0xb8], W::B8, W::B8, 2),    // vgatherqpd xmm1, [rax+xmm7*4], xmm2
        ];
        for (bytes, index, element, count) in cases {
            let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
            assert!(is_native(&instruction), "{instruction}");
            assert_eq!(Form::of(&instruction), Some(Form { index, element, count }), "{instruction}");
        }
        // vgatherdps ymm2, [rax+ymm7*4], ymm2: #UD
        let same = Decoder::new(64, &[0xc4, 0xe2, 0x6d, 0x92, 0x14, 0xb8], DecoderOptions::NONE).decode();
        assert!(!is_native(&same));
    }
}
