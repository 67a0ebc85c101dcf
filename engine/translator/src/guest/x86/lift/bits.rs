//! BT and its writing forms, scans, POPCNT, BSWAP.

use super::super::op::{Op, OpFlags};
use super::operand::{Access, Operand, Place, operand, operand_type};
use super::{ByInterpreter, Flow, Lift, Lifted};
use crate::ir::ops::Atomic;
use crate::ir::{self, Ty, Val};
use iced_x86::Mnemonic;

impl Lift {
    pub(super) fn bit_test(&mut self, op: &Op) -> Lifted {
        let ty = operand_type(op, 0);
        let operation = match op.code.mnemonic() {
            Mnemonic::Bts => ir::Op::BitSet,
            Mnemonic::Btr => ir::Op::BitReset,
            Mnemonic::Btc => ir::Op::BitFlip,
            _ => ir::Op::BitTest,
        };
        let writes = operation != ir::Op::BitTest;
        let (first, second) = (operand(op, 0)?, operand(op, 1)?);
        let by_register = second != Operand::Immediate;
        let old_flags = self.b.flags();
        let place = match first {
            Operand::Memory => {
                let place = self.place(op, if writes { Access::Write } else { Access::Read })?;
                Some(if by_register { self.element(op, ty, place)? } else { place })
            }
            _ => None,
        };
        let number = if by_register { self.get(Ty::I8, op.reg) } else { self.b.constant(Ty::I8, op.imm) };
        if let Some(place) = place
            && op.flags.contains(OpFlags::LOCK)
        {
            return self.locked_bit(ty, operation, place, number, old_flags);
        }
        let a = match place {
            Some(place) if writes => self.load_for_write(ty, place),
            Some(place) => self.load(ty, place),
            None => self.read(op, first, ty)?,
        };
        let result = self.b.binary(operation, ty, a, number);
        let flags = self.b.flags_of(result, old_flags);
        match place {
            Some(place) if writes => self.store(ty, place, result),
            None if writes => self.write_register(op, first, ty, result),
            _ => {}
        }
        self.b.set_flags(flags);
        Ok(Flow::Next)
    }

    /// Where the element lies that holds a bit of the bit string at `place`, by a signed number in a register.
    fn element(&mut self, op: &Op, ty: Ty, place: Place) -> Result<Place, ByInterpreter> {
        if op.address_shift != 0 || ty == Ty::I16 {
            return Err(ByInterpreter);
        }
        let number = self.get(ty, op.reg);
        let number = if ty == Ty::I64 { number } else { self.b.unary(ir::Op::SignExtend, Ty::I64, number) };
        let count = self.b.constant(Ty::I8, ty.bits().trailing_zeros().into());
        let step = self.b.binary(ir::Op::Sar, Ty::I64, number, count);
        let scale = ty.bytes().trailing_zeros() as u8;
        let address = self.b.address(Ty::I64, place.address, step, scale, place.displacement);
        Ok(Place { address, displacement: 0 })
    }

    fn locked_bit(&mut self, ty: Ty, operation: ir::Op, place: Place, number: Val, old_flags: Val) -> Lifted {
        if ty == Ty::I16 {
            // Shifts do not take their count modulo 16.
            return Err(ByInterpreter);
        }
        let one = self.b.constant(ty, 1);
        let bit = self.b.binary(ir::Op::Shl, ty, one, number);
        let (kind, mask) = match operation {
            ir::Op::BitSet => (Atomic::Or, bit),
            ir::Op::BitReset => (Atomic::And, self.b.unary(ir::Op::Not, ty, bit)),
            _ => (Atomic::Xor, bit),
        };
        let old = self.b.atomic(kind, ty, place.address, place.displacement, mask);
        let test = self.b.binary(ir::Op::BitTest, ty, old, number);
        let flags = self.b.flags_of(test, old_flags);
        self.b.set_flags(flags);
        Ok(Flow::Next)
    }

    /// BSF, BSR, POPCNT, BSWAP.
    pub(super) fn bits(&mut self, op: &Op) -> Lifted {
        let ty = operand_type(op, 0);
        match op.code.mnemonic() {
            Mnemonic::Bswap => {
                if ty == Ty::I16 {
                    return Err(ByInterpreter);
                }
                let a = self.get(ty, op.rm);
                let result = self.b.unary(ir::Op::SwapBytes, ty, a);
                self.set(ty, op.rm, result);
            }
            Mnemonic::Popcnt => {
                let a = self.read(op, operand(op, 1)?, ty)?;
                let result = self.b.unary(ir::Op::CountOnes, ty, a);
                let flags = self.b.flags_of(result, Val::NONE);
                self.set(ty, op.reg, result);
                self.b.set_flags(flags);
            }
            mnemonic => {
                let scan = if mnemonic == Mnemonic::Bsf { ir::Op::BitScanForward } else { ir::Op::BitScanReverse };
                let a = self.read(op, operand(op, 1)?, ty)?;
                // Nothing found leaves all of the register, a 32-bit one's upper half too.
                let wide = if ty == Ty::I32 { Ty::I64 } else { ty };
                let from = if wide == ty { a } else { self.b.unary(ir::Op::ZeroExtend, wide, a) };
                let old = self.get(wide, op.reg);
                let result = self.b.binary(scan, wide, from, old);
                let test = self.b.binary(ir::Op::And, ty, a, a);
                let flags = self.b.flags_of(test, Val::NONE);
                self.set(wide, op.reg, result);
                self.b.set_flags(flags);
            }
        }
        Ok(Flow::Next)
    }
}
