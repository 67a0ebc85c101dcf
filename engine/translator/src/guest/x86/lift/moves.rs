//! MOV and its extending and conditional forms, LEA, XCHG, PUSH, POP, LEAVE, the accumulator's extensions, single flags.

use super::super::cpu::{reg, seg};
use super::super::op::{HIGH_BYTE, Op};
use super::operand::{Access, Operand, operand, operand_type};
use super::{ByInterpreter, Flow, Lift, Lifted};
use crate::ir::ops::Atomic;
use crate::ir::{self, Condition, FlagSet, MemoryAccess, Ty, Val};
use iced_x86::{Code, Mnemonic};

impl Lift {
    pub(super) fn move_value(&mut self, op: &Op) -> Lifted {
        let (first, second) = (operand(op, 0)?, operand(op, 1)?);
        // An address alone has no size: then the other operand says it.
        let ty = operand_type(op, if first == Operand::Memory && second == Operand::Reg { 1 } else { 0 });
        let value = self.read(op, second, ty)?;
        if first == Operand::Memory {
            let place = self.place(op, Access::Write)?;
            self.store(ty, place, value);
        } else {
            self.write_register(op, first, ty, value);
        }
        Ok(Flow::Next)
    }

    /// MOVZX, MOVSX, MOVSXD.
    pub(super) fn move_extended(&mut self, op: &Op) -> Lifted {
        let (to, from) = (operand_type(op, 0), operand_type(op, 1));
        let signed = op.code.mnemonic() != Mnemonic::Movzx;
        let value = if operand(op, 1)? == Operand::Memory {
            let place = self.place(op, Access::Read)?;
            let access = MemoryAccess { signed: signed && from < to, ..MemoryAccess::tso(from.bytes()) };
            self.b.load(to, place.address, place.displacement, access)
        } else {
            let value = self.get(from, op.rm);
            match (from < to, signed) {
                (false, _) => value,
                (true, false) => self.b.unary(ir::Op::ZeroExtend, to, value),
                (true, true) => self.b.unary(ir::Op::SignExtend, to, value),
            }
        };
        self.set(to, op.reg, value);
        Ok(Flow::Next)
    }

    pub(super) fn load_address(&mut self, op: &Op) -> Lifted {
        let ty = operand_type(op, 0);
        let value = self.effective_address(op, ty);
        self.set(ty, op.reg, value);
        Ok(Flow::Next)
    }

    pub(super) fn exchange(&mut self, op: &Op) -> Lifted {
        let ty = operand_type(op, 0);
        let value = self.get(ty, op.reg);
        if op.has_memory() {
            let place = self.place(op, Access::Write)?;
            let old = self.b.atomic(Atomic::Exchange, ty, place.address, place.displacement, value);
            self.set(ty, op.reg, old);
        } else {
            let other = self.get(ty, op.rm);
            self.set(ty, op.rm, value);
            self.set(ty, op.reg, other);
        }
        Ok(Flow::Next)
    }

    /// CMOVcc. A move that is not done still cuts a 32-bit register.
    pub(super) fn move_if(&mut self, op: &Op, condition: Condition) -> Lifted {
        let ty = operand_type(op, 0);
        let source = self.read(op, operand(op, 1)?, ty)?;
        let old = self.get(ty, op.reg);
        let flags = self.b.flags();
        let answer = self.b.condition(flags, condition);
        let value = self.b.ternary(ir::Op::Select, ty, answer, source, old);
        self.set(ty, op.reg, value);
        Ok(Flow::Next)
    }

    /// SETcc.
    pub(super) fn set_if(&mut self, op: &Op, condition: Condition) -> Lifted {
        let first = operand(op, 0)?;
        let place = if first == Operand::Memory { Some(self.place(op, Access::Write)?) } else { None };
        let flags = self.b.flags();
        let answer = self.b.condition(flags, condition);
        let value = self.b.unary(ir::Op::ZeroExtend, Ty::I8, answer);
        match place {
            Some(place) => self.store(Ty::I8, place, value),
            None => self.write_register(op, first, Ty::I8, value),
        }
        Ok(Flow::Next)
    }

    // ---- The stack -----------------------------------------------------------------------------------------------

    pub(super) fn push(&mut self, op: &Op) -> Lifted {
        let ty = match op.code {
            Code::Push_r16 | Code::Push_rm16 | Code::Push_imm16 | Code::Pushw_imm8 => Ty::I16,
            Code::Push_r32 | Code::Push_rm32 | Code::Pushd_imm32 | Code::Pushd_imm8 => Ty::I32,
            Code::Push_r64 | Code::Push_rm64 | Code::Pushq_imm32 | Code::Pushq_imm8 => Ty::I64,
            _ => return Err(ByInterpreter),
        };
        let value = self.read(op, operand(op, 0)?, ty)?;
        self.push_value(ty, value)?;
        Ok(Flow::Next)
    }

    pub(super) fn pop(&mut self, op: &Op) -> Lifted {
        let first = operand(op, 0)?;
        let ty = operand_type(op, 0);
        let from = self.stack(0, Access::Read)?;
        let value = self.load(ty, from);
        if first == Operand::Memory {
            if op.base == reg::SP {
                // The address would be that of the pointer after the increment.
                return Err(ByInterpreter);
            }
            let place = self.place(op, Access::Write)?;
            self.store(ty, place, value);
            self.move_stack_pointer(ty.bytes().into());
        } else {
            // POP SP: the value replaces the incremented pointer.
            self.move_stack_pointer(ty.bytes().into());
            self.set(ty, op.rm, value);
        }
        Ok(Flow::Next)
    }

    pub(super) fn leave(&mut self, op: &Op) -> Lifted {
        let ty = match op.code {
            Code::Leavew => Ty::I16,
            Code::Leaved => Ty::I32,
            _ => Ty::I64,
        };
        self.check_segment(seg::SS, Access::Read)?;
        if !self.mode.wide_stack {
            return Err(ByInterpreter);
        }
        let pointer = self.stack_type();
        let frame = self.get(pointer, reg::BP);
        let address = if pointer == Ty::I64 { frame } else { self.linear(seg::SS, frame, pointer).address };
        let value = self.b.load(ty, address, 0, MemoryAccess::tso(ty.bytes()));
        let above = self.b.address(pointer, frame, Val::NONE, 0, ty.bytes().into());
        self.set(pointer, reg::SP, above);
        self.set(ty, reg::BP, value);
        Ok(Flow::Next)
    }

    // ---- The accumulator and the flags ---------------------------------------------------------------------------

    pub(super) fn spread_accumulator(&mut self, op: &Op) -> Lifted {
        let (from, to, spreads) = match op.code.mnemonic() {
            Mnemonic::Cbw => (Ty::I8, Ty::I16, false),
            Mnemonic::Cwde => (Ty::I16, Ty::I32, false),
            Mnemonic::Cdqe => (Ty::I32, Ty::I64, false),
            Mnemonic::Cwd => (Ty::I16, Ty::I16, true),
            Mnemonic::Cdq => (Ty::I32, Ty::I32, true),
            _ => (Ty::I64, Ty::I64, true),
        };
        let value = self.get(from, reg::AX);
        if spreads {
            let count = self.b.constant(Ty::I8, u64::from(to.bits()) - 1);
            let sign = self.b.binary(ir::Op::Sar, to, value, count);
            self.set(to, reg::DX, sign);
        } else {
            let wide = self.b.unary(ir::Op::SignExtend, to, value);
            self.set(to, reg::AX, wide);
        }
        Ok(Flow::Next)
    }

    pub(super) fn move_flags(&mut self, op: &Op) -> Lifted {
        let old = self.b.flags();
        let new = match op.code.mnemonic() {
            Mnemonic::Lahf => {
                let word = self.b.flags_pack(old);
                // Bit 1 of the flags register is always set.
                let always = self.b.constant(Ty::I16, 2);
                let word = self.b.binary(ir::Op::Or, Ty::I16, word, always);
                let byte = self.b.unary(ir::Op::Truncate, Ty::I8, word);
                self.set(Ty::I8, reg::AX | HIGH_BYTE, byte);
                return Ok(Flow::Next);
            }
            Mnemonic::Sahf => {
                let byte = self.get(Ty::I8, reg::AX | HIGH_BYTE);
                let word = self.b.unary(ir::Op::ZeroExtend, Ty::I16, byte);
                let new = self.b.flags_unpack(word);
                self.b.flags_merge(old, new, FlagSet::O.complement())
            }
            Mnemonic::Cmc => {
                let (word, carry) = (self.b.flags_pack(old), self.b.constant(Ty::I16, 1));
                let word = self.b.binary(ir::Op::Xor, Ty::I16, word, carry);
                let new = self.b.flags_unpack(word);
                self.b.flags_merge(old, new, FlagSet::C)
            }
            mnemonic => {
                let word = self.b.constant(Ty::I16, u64::from(mnemonic == Mnemonic::Stc));
                let new = self.b.flags_unpack(word);
                self.b.flags_merge(old, new, FlagSet::C)
            }
        };
        self.b.set_flags(new);
        Ok(Flow::Next)
    }
}
