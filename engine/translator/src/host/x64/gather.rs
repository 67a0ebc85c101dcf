//! Gathers as both tiers write them: each element by a look at the TLB of its own. Nothing is committed before the last of them
//! has been found; whatever a look does not find the interpreter does, from the first element on. So a fault leaves the elements
//! before it loaded and their mask clear, as the hardware does.
//!
//! No vector register is scratch, so the two that are written hold what has been loaded so far: the mask is the result's upper
//! half. They get back what they were ([`Writer::undo`]) before the interpreter looks at them.

use super::asm::{Alu, Asm, Cond, Label, Mem, R, Rm, Vex, W, X};
use crate::ir::gather::{Form, Gather};

/// Bytes of a vector register.
const VECTOR_BYTES: i32 = 32;

/// Which elements are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    All,
    /// Those that the mask names.
    Masked,
}

/// What finds elements.
pub(crate) trait Elements {
    fn asm(&mut self) -> &mut Asm;
    /// Writes what finds the element whose index is in memory, or leaves. The operand must keep nothing from the one before.
    fn find(&mut self, index: Mem) -> Mem;
}

/// Writes a gather. In this order: [`Writer::keep`], [`Writer::ask`], the elements, [`Writer::end`]; the host's flags are lost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writer {
    pub form: Form,
    result: X,
    mask: X,
    index: X,
    /// Room for three vector registers, from RBP.
    room: i32,
}

impl Writer {
    /// `None`: it is no gather, or one that faults by its registers.
    pub fn new(gather: &Gather, room: i32) -> Option<Self> {
        let &Gather { code, result, mask, index, .. } = gather;
        let form = Form::of(code).filter(|_| gather.is_valid())?;
        Some(Self { form, result: X(result), mask: X(mask), index: X(index), room })
    }

    /// The registers that are spoilt before the last element has been found, and where what they were is kept.
    pub fn undo(&self) -> [(X, Mem); 2] {
        [(self.result, self.kept(1)), (self.mask, self.kept(2))]
    }

    /// Keeps index, result and mask in memory.
    pub fn keep(&self, asm: &mut Asm) {
        for (number, register) in [self.index, self.result, self.mask].into_iter().enumerate() {
            asm.store_vector(self.kept(number as i32), register);
        }
    }

    /// Jumps if not all elements are wanted. Usually all are.
    pub fn ask(&self, asm: &mut Asm, scratch: R, some: Label) {
        // VMOVMSKPS or VMOVMSKPD. Where there are fewer elements than the mask has room for, the rest of it says nothing.
        let signs = Vex { prefix: u8::from(self.is_wide()), map: 1, wide: false, long: self.is_long() };
        asm.vex(signs, 0x50, scratch as u8, 0, Rm::Vector(self.mask), None);
        if self.form.count < self.form.half() {
            asm.alu_imm(Alu::And, W::B4, scratch, self.form.all());
        }
        asm.alu_imm(Alu::Cmp, W::B4, scratch, self.form.all());
        asm.jcc(Cond::NE, some);
    }

    /// Loads elements: the lower half of the result to where that is, the upper one to where the mask was.
    pub fn elements(&self, elements: &mut impl Elements, wanted: Wanted) {
        if wanted == Wanted::Masked {
            self.split_result(elements.asm());
        }
        let (index, element, half) = (self.form.index, self.form.element, self.form.half());
        for lane in 0..self.form.count {
            let of = |number: i32, bytes: u8| {
                let kept = self.kept(number);
                Mem { disp: kept.disp + i32::from(lane * bytes), ..kept }
            };
            let skip = elements.asm().label();
            if wanted == Wanted::Masked {
                let w = if self.is_wide() { W::B8 } else { W::B4 };
                elements.asm().alu_imm(Alu::Cmp, w, of(2, element), 0);
                elements.asm().jcc(Cond::NS, skip);
            }
            let from = Rm::Mem(elements.find(of(0, index)));
            let into = if lane < half { self.result } else { self.mask };
            let asm = elements.asm();
            if wanted == Wanted::All && lane % half == 0 {
                // VMOVD or VMOVQ: what was there before is nobody's business.
                asm.vex(Vex { prefix: 1, map: 1, wide: self.is_wide(), long: false }, 0x6e, into.0, 0, from, None);
            } else {
                // VPINSRD or VPINSRQ
                let insert = Vex { prefix: 1, map: 3, wide: self.is_wide(), long: false };
                asm.vex(insert, 0x22, into.0, into.0, from, Some(lane % half));
            }
            asm.bind(skip);
        }
    }

    /// What is not loaded stays: the result's halves go to where elements are put.
    fn split_result(&self, asm: &mut Asm) {
        let move_low = Vex { prefix: 1, map: 1, wide: false, long: false };
        // VMOVDQA makes the upper half zero.
        asm.vex(move_low, 0x6f, self.result.0, 0, Rm::Vector(self.result), None);
        if self.is_long() {
            let kept = self.kept(1);
            let upper = Mem { disp: kept.disp + VECTOR_BYTES / 2, ..kept };
            asm.vex(move_low, 0x6f, self.mask.0, 0, Rm::Mem(upper), None);
        }
    }

    /// The result becomes whole, and the mask zero.
    pub fn end(&self, asm: &mut Asm) {
        if self.is_long() {
            // VINSERTI128
            let insert = Vex { prefix: 1, map: 3, wide: false, long: true };
            asm.vex(insert, 0x38, self.result.0, self.result.0, Rm::Vector(self.mask), Some(1));
        }
        if self.form.count < self.form.half() {
            // VMOVQ: the upper half of the lower half becomes zero.
            asm.vex(Vex { prefix: 2, map: 1, wide: false, long: false }, 0x7e, self.result.0, 0, Rm::Vector(self.result), None);
        }
        let xor = Vex { prefix: 1, map: 1, wide: false, long: false };
        asm.vex(xor, 0xef, self.mask.0, self.mask.0, Rm::Vector(self.mask), None);
    }

    fn kept(&self, number: i32) -> Mem {
        Mem::at(R::Bp, self.room + number * VECTOR_BYTES)
    }

    fn is_wide(&self) -> bool {
        self.form.element == 8
    }

    fn is_long(&self) -> bool {
        self.form.count > self.form.half()
    }
}
