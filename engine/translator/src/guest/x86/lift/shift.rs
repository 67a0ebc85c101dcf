//! Shifts and rotates.

use super::super::op::Op;
use super::operand::{Access, Operand, operand, operand_type};
use super::{ByInterpreter, Flow, Lift, Lifted};
use crate::ir::{self, Ty, Val};
use iced_x86::Mnemonic;

/// A count as far as it is known.
#[derive(Clone, Copy)]
struct Count {
    value: Val,
    /// Nothing happens.
    is_zero: bool,
    /// It is only known when it comes to it, so it may be zero.
    may_be_zero: bool,
}

impl Lift {
    pub(super) fn shift(&mut self, op: &Op) -> Lifted {
        let operation = match op.code.mnemonic() {
            Mnemonic::Shr => ir::Op::Shr,
            Mnemonic::Sar => ir::Op::Sar,
            Mnemonic::Rol => ir::Op::Rol,
            Mnemonic::Ror => ir::Op::Ror,
            Mnemonic::Rcl => ir::Op::RolCarry,
            Mnemonic::Rcr => ir::Op::RorCarry,
            _ => ir::Op::Shl,
        };
        let ty = operand_type(op, 0);
        let carry = match operation {
            ir::Op::RolCarry | ir::Op::RorCarry => self.b.flags(),
            _ => Val::NONE,
        };
        self.shifted(op, ty, 1, operation, |lift, a, count| lift.b.ternary(operation, ty, a, count, carry))
    }

    pub(super) fn double_shift(&mut self, op: &Op) -> Lifted {
        let operation = if op.code.mnemonic() == Mnemonic::Shld { ir::Op::ShlDouble } else { ir::Op::ShrDouble };
        let ty = operand_type(op, 0);
        let from = self.get(ty, op.reg);
        self.shifted(op, ty, 2, operation, |lift, a, count| lift.b.ternary(operation, ty, a, from, count))
    }

    /// Shifts the first operand by the count in operand `counted`.
    fn shifted(
        &mut self,
        op: &Op,
        ty: Ty,
        counted: u32,
        operation: ir::Op,
        compute: impl FnOnce(&mut Self, Val, Val) -> Val,
    ) -> Lifted {
        let first = operand(op, 0)?;
        let place = if first == Operand::Memory { Some(self.place(op, Access::Write)?) } else { None };
        let a = match place {
            Some(place) => self.load_for_write(ty, place),
            None => self.read(op, first, ty)?,
        };
        let count = self.count(op, ty, counted)?;
        let (result, flags) = if count.is_zero {
            // Written back all the same: a 32-bit register loses its upper half.
            (a, None)
        } else {
            let keeps = count.may_be_zero || !operation.flags_written().is_all();
            let old = if keeps { self.b.flags() } else { Val::NONE };
            let result = compute(self, a, count.value);
            (result, Some(self.b.flags_of(result, old)))
        };
        match place {
            Some(place) => self.store(ty, place, result),
            None => self.write_register(op, first, ty, result),
        }
        if let Some(flags) = flags {
            self.b.set_flags(flags);
        }
        Ok(Flow::Next)
    }

    fn count(&mut self, op: &Op, ty: Ty, number: u32) -> Result<Count, ByInterpreter> {
        if operand(op, number)? == Operand::Immediate {
            let count = op.imm as u8 & ty.count_mask();
            let value = self.b.constant(Ty::I8, count.into());
            return Ok(Count { value, is_zero: count == 0, may_be_zero: false });
        }
        let value = self.get(Ty::I8, super::super::cpu::reg::CX);
        Ok(Count { value, is_zero: false, may_be_zero: true })
    }
}
