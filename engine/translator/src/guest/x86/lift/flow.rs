//! Near transfers. Those with a 16-bit target, and all where the limit of CS could be met, are left to the interpreter.

use super::super::cpu::{is_canonical, reg};
use super::super::op::Op;
use super::operand::{Access, Operand, operand};
use super::{ByInterpreter, Flow, Lift, Lifted};
use crate::ir::{self, Condition, Ty, Val};
use iced_x86::{Code, Mnemonic};

impl Lift {
    pub(super) fn jump_if(&mut self, op: &Op, condition: Condition) -> Lifted {
        let displacement = self.displacement(op)?;
        let flags = self.b.flags();
        let answer = self.b.condition(flags, condition);
        self.b.exit(ir::Op::Branch, answer, displacement);
        Ok(Flow::Ended)
    }

    pub(super) fn transfer(&mut self, op: &Op) -> Lifted {
        let ty = if self.mode.is_64_bit() { Ty::I64 } else { Ty::I32 };
        if !self.mode.open_code || op.operand_bytes == 2 {
            return Err(ByInterpreter);
        }
        match op.code.mnemonic() {
            Mnemonic::Jmp if is_direct(op) => {
                let displacement = self.displacement(op)?;
                self.b.exit(ir::Op::Jump, Val::NONE, displacement);
            }
            Mnemonic::Call if is_direct(op) => {
                let displacement = self.displacement(op)?;
                let back = self.b.pc(ty, self.next);
                self.push_value(ty, back)?;
                self.b.exit(ir::Op::Call, Val::NONE, displacement);
            }
            Mnemonic::Jmp if op.code.is_jmp_near_indirect() => {
                let target = self.indirect_target(op, ty)?;
                self.b.exit(ir::Op::JumpIndirect, target, 0);
            }
            Mnemonic::Call if op.code.is_call_near_indirect() => {
                let target = self.indirect_target(op, ty)?;
                let back = self.b.pc(ty, self.next);
                self.push_value(ty, back)?;
                self.b.exit(ir::Op::CallIndirect, target, 0);
            }
            Mnemonic::Ret => {
                let from = self.stack(0, Access::Read)?;
                let target = self.load(ty, from);
                let target = self.checked(ty, target);
                self.move_stack_pointer(u64::from(ty.bytes()) + (op.imm & 0xffff));
                self.b.exit(ir::Op::Ret, target, 0);
            }
            _ => self.counted(op)?,
        }
        Ok(Flow::Ended)
    }

    /// JCXZ and LOOP.
    fn counted(&mut self, op: &Op) -> Result<(), ByInterpreter> {
        use Code as C;
        let displacement = self.displacement(op)?;
        let (ty, loops) = match op.code {
            C::Jrcxz_rel8_64 => (Ty::I64, false),
            C::Jecxz_rel8_32 | C::Jecxz_rel8_64 => (Ty::I32, false),
            C::Loop_rel8_64_RCX => (Ty::I64, true),
            C::Loop_rel8_32_ECX | C::Loop_rel8_64_ECX => (Ty::I32, true),
            _ => return Err(ByInterpreter),
        };
        let mut count = self.get(ty, reg::CX);
        if loops {
            count = self.b.address(ty, count, Val::NONE, 0, u64::MAX);
        }
        // The guest's flags are not touched.
        let test = self.b.binary(ir::Op::And, ty, count, count);
        let flags = self.b.flags_of(test, Val::NONE);
        let answer = self.b.condition(flags, if loops { Condition::NotEqual } else { Condition::Equal });
        if loops {
            self.set(ty, reg::CX, count);
        }
        self.b.exit(ir::Op::Branch, answer, displacement);
        Ok(())
    }

    /// A direct target, relative to the block's start.
    fn displacement(&self, op: &Op) -> Result<u64, ByInterpreter> {
        if !self.mode.open_code || op.operand_bytes == 2 || self.mode.is_64_bit() && !is_canonical(op.imm) {
            return Err(ByInterpreter);
        }
        Ok(op.imm.wrapping_sub(self.b.block().pc))
    }

    fn indirect_target(&mut self, op: &Op, ty: Ty) -> Result<Val, ByInterpreter> {
        let from = operand(op, 0)?;
        if !matches!(from, Operand::Rm | Operand::Memory) {
            return Err(ByInterpreter);
        }
        let target = self.read(op, from, ty)?;
        Ok(self.checked(ty, target))
    }

    /// A target of 64 bits that may be gone to.
    fn checked(&mut self, ty: Ty, target: Val) -> Val {
        if ty == Ty::I64 {
            self.b.check(ir::Op::CheckPc, target);
            return target;
        }
        self.b.unary(ir::Op::ZeroExtend, Ty::I64, target)
    }
}

fn is_direct(op: &Op) -> bool {
    op.code.is_jmp_short_or_near() || op.code.is_call_near()
}
