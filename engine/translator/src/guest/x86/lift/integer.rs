//! ADD to TEST, INC to NOT, MUL to IDIV, XADD, CMPXCHG.

use super::super::cpu::reg;
use super::super::op::{HIGH_BYTE, Op, OpFlags};
use super::operand::{Access, Operand, operand, operand_type};
use super::{ByInterpreter, Flow, Lift, Lifted};
use crate::ir::ops::Atomic;
use crate::ir::{self, Condition, Ty, Val};
use iced_x86::Mnemonic;

/// The operation of a two-operand instruction, and whether it writes its result.
fn operation(mnemonic: Mnemonic) -> (ir::Op, bool) {
    match mnemonic {
        Mnemonic::Add => (ir::Op::Add, true),
        Mnemonic::Or => (ir::Op::Or, true),
        Mnemonic::Adc => (ir::Op::AddCarry, true),
        Mnemonic::Sbb => (ir::Op::SubBorrow, true),
        Mnemonic::And => (ir::Op::And, true),
        Mnemonic::Sub => (ir::Op::Sub, true),
        Mnemonic::Xor => (ir::Op::Xor, true),
        Mnemonic::Cmp => (ir::Op::Sub, false),
        _ => (ir::Op::And, false),
    }
}

impl Lift {
    pub(super) fn arithmetic(&mut self, op: &Op) -> Lifted {
        let (operation, writes) = operation(op.code.mnemonic());
        let ty = operand_type(op, 0);
        let (first, second) = (operand(op, 0)?, operand(op, 1)?);
        if op.flags.contains(OpFlags::LOCK) {
            return self.locked_arithmetic(op, operation, second, ty);
        }
        let (a, b, place) = if first == Operand::Memory && writes {
            let place = self.place(op, Access::Write)?;
            let a = self.load_for_write(ty, place);
            (a, self.read(op, second, ty)?, Some(place))
        } else {
            (self.read(op, first, ty)?, self.read(op, second, ty)?, None)
        };
        let carry = match operation {
            ir::Op::AddCarry | ir::Op::SubBorrow => self.b.flags(),
            _ => Val::NONE,
        };
        let result = self.b.ternary(operation, ty, a, b, carry);
        let flags = self.b.flags_of(result, Val::NONE);
        match place {
            Some(place) => self.store(ty, place, result),
            None if writes => self.write_register(op, first, ty, result),
            None => {}
        }
        self.b.set_flags(flags);
        Ok(Flow::Next)
    }

    fn locked_arithmetic(&mut self, op: &Op, operation: ir::Op, second: Operand, ty: Ty) -> Lifted {
        let kind = match operation {
            ir::Op::Add => Atomic::Add,
            ir::Op::Sub => Atomic::Sub,
            ir::Op::And => Atomic::And,
            ir::Op::Or => Atomic::Or,
            ir::Op::Xor => Atomic::Xor,
            _ => return Err(ByInterpreter),
        };
        let place = self.place(op, Access::Write)?;
        let b = self.read(op, second, ty)?;
        let old = self.b.atomic(kind, ty, place.address, place.displacement, b);
        let result = self.b.binary(operation, ty, old, b);
        let flags = self.b.flags_of(result, Val::NONE);
        self.b.set_flags(flags);
        Ok(Flow::Next)
    }

    /// INC, DEC, NEG, NOT.
    pub(super) fn unary(&mut self, op: &Op) -> Lifted {
        let ty = operand_type(op, 0);
        let operation = match op.code.mnemonic() {
            Mnemonic::Inc => ir::Op::Inc,
            Mnemonic::Dec => ir::Op::Dec,
            Mnemonic::Neg => ir::Op::Neg,
            _ => ir::Op::Not,
        };
        let first = operand(op, 0)?;
        let place = if first == Operand::Memory { Some(self.place(op, Access::Write)?) } else { None };
        let keeps = matches!(operation, ir::Op::Inc | ir::Op::Dec);
        let old_flags = if keeps { self.b.flags() } else { Val::NONE };
        let a = match place {
            Some(place) if op.flags.contains(OpFlags::LOCK) => {
                let (kind, by) = match operation {
                    ir::Op::Inc => (Atomic::Add, 1),
                    ir::Op::Dec => (Atomic::Sub, 1),
                    ir::Op::Not => (Atomic::Xor, u64::MAX),
                    _ => return Err(ByInterpreter),
                };
                let by = self.b.constant(ty, by);
                self.b.atomic(kind, ty, place.address, place.displacement, by)
            }
            Some(place) => self.load_for_write(ty, place),
            None => self.read(op, first, ty)?,
        };
        let result = self.b.unary(operation, ty, a);
        let flags = (operation != ir::Op::Not).then(|| self.b.flags_of(result, old_flags));
        match place {
            Some(_) if op.flags.contains(OpFlags::LOCK) => {}
            Some(place) => self.store(ty, place, result),
            None => self.write_register(op, first, ty, result),
        }
        if let Some(flags) = flags {
            self.b.set_flags(flags);
        }
        Ok(Flow::Next)
    }

    pub(super) fn multiply_or_divide(&mut self, op: &Op) -> Lifted {
        let ty = operand_type(op, 0);
        let count = op.code.op_code().op_count();
        match op.code.mnemonic() {
            Mnemonic::Imul if count > 1 => {
                let last = operand(op, count - 1)?;
                let a = self.read(op, operand(op, count - 2)?, ty)?;
                let b = self.read(op, last, ty)?;
                let result = self.b.binary(ir::Op::MulSigned, ty, a, b);
                let flags = self.b.flags_of(result, Val::NONE);
                self.set(ty, op.reg, result);
                self.b.set_flags(flags);
            }
            Mnemonic::Mul => self.multiply(op, ty, ir::Op::MulUnsigned, ir::Op::MulHighUnsigned)?,
            Mnemonic::Imul => self.multiply(op, ty, ir::Op::MulSigned, ir::Op::MulHighSigned)?,
            mnemonic => self.divide(op, ty, mnemonic == Mnemonic::Idiv)?,
        }
        Ok(Flow::Next)
    }

    /// AX:AX, or DX:AX and its wider forms.
    fn multiply(&mut self, op: &Op, ty: Ty, low: ir::Op, high: ir::Op) -> Result<(), ByInterpreter> {
        let b = self.read(op, operand(op, 0)?, ty)?;
        let a = self.get(ty, reg::AX);
        let low = self.b.binary(low, ty, a, b);
        let flags = self.b.flags_of(low, Val::NONE);
        let high = self.b.binary(high, ty, a, b);
        self.set(ty, reg::AX, low);
        self.set(ty, upper_half(ty), high);
        self.b.set_flags(flags);
        Ok(())
    }

    fn divide(&mut self, op: &Op, ty: Ty, signed: bool) -> Result<(), ByInterpreter> {
        let divisor = self.read(op, operand(op, 0)?, ty)?;
        let low = self.get(ty, reg::AX);
        let high = self.get(ty, upper_half(ty));
        let (quotient, remainder) = if signed {
            // Only what compilers make: a dividend that was sign-extended to double width, and no quotient that overflows.
            let count = self.b.constant(Ty::I8, u64::from(ty.bits()) - 1);
            let sign = self.b.binary(ir::Op::Sar, ty, low, count);
            self.bail_if(ir::Op::Sub, ty, high, sign, Condition::NotEqual);
            let one = self.b.constant(ty, 1);
            // −1, 0 → 0, 1
            let moved = self.b.binary(ir::Op::Add, ty, divisor, one);
            self.bail_if(ir::Op::Sub, ty, moved, one, Condition::BelowOrEqual);
            (ir::Op::DivSigned, ir::Op::RemSigned)
        } else {
            self.bail_if(ir::Op::Sub, ty, high, divisor, Condition::NotBelow);
            (ir::Op::DivUnsigned, ir::Op::RemUnsigned)
        };
        let quotient = self.b.ternary(quotient, ty, high, low, divisor);
        let remainder = self.b.ternary(remainder, ty, high, low, divisor);
        self.set(ty, reg::AX, quotient);
        self.set(ty, upper_half(ty), remainder);
        Ok(())
    }

    /// Bails if a condition holds for what an operation leaves. The guest's flags stay.
    fn bail_if(&mut self, operation: ir::Op, ty: Ty, a: Val, b: Val, condition: Condition) {
        let result = self.b.binary(operation, ty, a, b);
        let flags = self.b.flags_of(result, Val::NONE);
        let answer = self.b.condition(flags, condition);
        self.b.check(ir::Op::BailIf, answer);
    }

    pub(super) fn exchange_add(&mut self, op: &Op) -> Lifted {
        let ty = operand_type(op, 0);
        let memory = operand(op, 0)? == Operand::Memory;
        let b = self.get(ty, op.reg);
        let a = if memory {
            let place = self.place(op, Access::Write)?;
            self.b.atomic(Atomic::Add, ty, place.address, place.displacement, b)
        } else {
            self.get(ty, op.rm)
        };
        let result = self.b.binary(ir::Op::Add, ty, a, b);
        let flags = self.b.flags_of(result, Val::NONE);
        self.set(ty, op.reg, a);
        if !memory {
            self.set(ty, op.rm, result);
        }
        self.b.set_flags(flags);
        Ok(Flow::Next)
    }

    pub(super) fn compare_exchange(&mut self, op: &Op) -> Lifted {
        if operand(op, 0)? != Operand::Memory {
            return Err(ByInterpreter);
        }
        let ty = operand_type(op, 0);
        let place = self.place(op, Access::Write)?;
        let (expected, new) = (self.get(ty, reg::AX), self.get(ty, op.reg));
        let old = self.b.compare_and_swap(ty, place.address, place.displacement, expected, new);
        let difference = self.b.binary(ir::Op::Sub, ty, expected, old);
        let flags = self.b.flags_of(difference, Val::NONE);
        let same = self.b.condition(flags, Condition::Equal);
        if ty == Ty::I32 {
            // The upper half goes only with a comparison that failed.
            let (whole, old) = (self.get(Ty::I64, reg::AX), self.b.unary(ir::Op::ZeroExtend, Ty::I64, old));
            let accumulator = self.b.ternary(ir::Op::Select, Ty::I64, same, whole, old);
            self.set(Ty::I64, reg::AX, accumulator);
        } else {
            self.set(ty, reg::AX, old);
        }
        self.b.set_flags(flags);
        Ok(Flow::Next)
    }
}

/// Where the upper half of a double-width value is.
fn upper_half(ty: Ty) -> u8 {
    if ty == Ty::I8 { reg::AX | HIGH_BYTE } else { reg::DX }
}
