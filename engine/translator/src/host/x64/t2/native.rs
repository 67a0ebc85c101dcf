//! Vector instructions: the guest's own, on the registers that they name, which are the guest's as well. What they share with
//! the region are addresses, integers and flags.

use super::plan::Delivery;
use super::{Emitter, Refused, Ways};
use crate::host::x64::asm::Rm;
use crate::host::x64::same::{self, Operands};
use crate::ir::native::{Native, Place, Shape};
use crate::ir::{Inst, Op, Val};
use iced_x86::Code;

impl<W_: Ways> Emitter<'_, W_> {
    pub(super) fn native(&mut self, value: Val, inst: &Inst) -> Result<(), Refused> {
        let native = Native::of(inst);
        if matches!(native.code, Code::VEX_Vzeroupper | Code::VEX_Vzeroall) {
            self.asm.zero_vectors(native.code == Code::VEX_Vzeroall);
            return Ok(());
        }
        let [first, addend, _] = inst.args;
        let shape = Shape::of(native.code, addend.is_some()).ok_or(Refused::Operation(inst.op))?;
        let mut operands = Operands::of(&native);
        if addend.is_some() {
            let memory = self.host_memory(first, addend, i64::from(native.displacement) as u64)?;
            operands.set(Place::Rm, memory.into());
        }
        match shape.integer {
            Some(integer) if integer.written => {
                let register = if addend.is_some() {
                    self.result_register(value, &[first, addend])?
                } else {
                    let hint = self.hint(value);
                    self.allocate(hint)?
                };
                operands.set(integer.place, Rm::Reg(register));
                same::write(&mut self.asm, native.code, operands, native.immediate);
                return self.define(register, value);
            }
            Some(integer) => {
                let register = self.read(first)?;
                operands.set(integer.place, Rm::Reg(register));
            }
            None => {}
        }
        same::write(&mut self.asm, native.code, operands, native.immediate);
        if inst.op != Op::NativeFlags {
            return Ok(());
        }
        match self.plan.delivery[value.index()] {
            Delivery::InHost => {
                self.host_flags = value;
                Ok(())
            }
            Delivery::Packed => self.pack_flags(value),
            _ => {
                self.host_flags = Val::NONE;
                Ok(())
            }
        }
    }
}
