//! Vector instructions that the host has too: they are passed through ([`crate::ir::native`]), and only their addresses,
//! general registers and flags are lifted.

use super::super::op::Op;
use super::super::t1::host_has;
use super::gather::is_gather;
use super::operand::Access;
use super::{ByInterpreter, Flow, Lift, Lifted};
use crate::ir::native::{Memory, Native, Place, Shape};
use crate::ir::{self, Ty, Val};
use iced_x86::EncodingKind;

impl Lift {
    pub(super) fn native(&mut self, op: &Op) -> Lifted {
        let (code, has_memory) = (op.code, op.has_memory());
        if is_gather(op) {
            return self.gather(op);
        }
        let is_on = self.mode.avx || code.op_code().encoding() != EncodingKind::VEX;
        let Some(shape) = Shape::of(code, has_memory).filter(|_| is_on && host_has(code)) else { return Err(ByInterpreter) };
        let by_register = (0..code.op_code().op_count()).any(|at| Place::of(code.op_code().op_kind(at)) == Place::Immediate);
        let immediate = if by_register { op.imm2 << 4 } else { op.imm as u8 };
        let mut native = Native { code, reg: op.reg, vvvv: op.vvvv, rm: op.rm, immediate, displacement: 0 };
        let mut args = [Val::NONE; 2];
        if let Some(memory) = shape.memory {
            (args, native.displacement) = self.native_memory(op, memory)?;
        }
        let Some(integer) = shape.integer else {
            let op = match shape.memory {
                Some(Memory { written: true, .. }) => ir::Op::NativeStore,
                _ if shape.flags => {
                    let flags = self.b.native(ir::Op::NativeFlags, Ty::Flags, args, native);
                    self.b.set_flags(flags);
                    return Ok(Flow::Next);
                }
                _ => ir::Op::Native,
            };
            self.b.native(op, Ty::None, args, native);
            return Ok(Flow::Next);
        };
        let number = if integer.place == Place::Reg { op.reg } else { op.rm };
        if integer.written {
            let value = self.b.native(ir::Op::NativeInteger, integer.ty, args, native);
            self.set(integer.ty, number, value);
        } else {
            let value = self.get(integer.ty, number);
            self.b.native(ir::Op::Native, Ty::None, [value, Val::NONE], native);
        }
        Ok(Flow::Next)
    }

    /// Address and addend of the memory operand, and how far from the address it lies.
    fn native_memory(&mut self, op: &Op, memory: Memory) -> Result<([Val; 2], i32), ByInterpreter> {
        let place = self.place(op, if memory.written { Access::Write } else { Access::Read })?;
        let near = i32::try_from(place.displacement as i64).ok().filter(|near| near.checked_add(memory.bytes.into()).is_some());
        let (address, displacement) = match near {
            Some(near) => (place.address, near),
            None => (self.b.address(Ty::I64, place.address, Val::NONE, 0, place.displacement), 0),
        };
        let addend = self.b.vouched(address, displacement, memory);
        Ok(([address, addend], displacement))
    }
}
