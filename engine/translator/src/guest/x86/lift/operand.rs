//! Operands: which of them an instruction has, how they are read and written, and linear addresses.

use super::super::cpu::{reg, seg};
use super::super::op::{HIGH_BYTE, NO_REGISTER, Op, OpFlags};
use super::{ByInterpreter, GPR, Lift, SEGMENT_BASE};
use crate::ir::{self, MemoryAccess, Ty, Val};
use iced_x86::OpCodeOperandKind as Kind;

/// What operand number `n` of an instruction is, in the terms of [`Op`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operand {
    /// The register `op.rm`.
    Rm,
    /// The register `op.reg`.
    Reg,
    Memory,
    /// `op.imm`.
    Immediate,
}

/// Operand number `number`, if it is one of integer instructions.
pub(super) fn operand(op: &Op, number: u32) -> Result<Operand, ByInterpreter> {
    use Kind as K;
    let rm = if op.has_memory() { Operand::Memory } else { Operand::Rm };
    Ok(match op.code.op_code().op_kind(number) {
        K::r8_reg | K::r16_reg | K::r32_reg | K::r64_reg | K::r16_reg_mem | K::r32_reg_mem | K::r64_reg_mem => Operand::Reg,
        K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem => rm,
        K::r8_opcode | K::r16_opcode | K::r32_opcode | K::r64_opcode | K::r16_rm | K::r32_rm | K::r64_rm => Operand::Rm,
        K::mem | K::mem_offs => Operand::Memory,
        K::al | K::ax | K::eax | K::rax if number == 0 && !op.has_memory() => Operand::Rm,
        K::al | K::ax | K::eax | K::rax | K::cl => Operand::Reg,
        K::imm8
        | K::imm8_const_1
        | K::imm8sex16
        | K::imm8sex32
        | K::imm8sex64
        | K::imm16
        | K::imm32
        | K::imm32sex64
        | K::imm64 => Operand::Immediate,
        _ => return Err(ByInterpreter),
    })
}

/// The type of operand number `number`.
pub(super) fn operand_type(op: &Op, number: u32) -> Ty {
    use Kind as K;
    match op.code.op_code().op_kind(number) {
        K::r8_reg | K::r8_or_mem | K::r8_opcode | K::al | K::cl => Ty::I8,
        K::r16_reg | K::r16_or_mem | K::r16_opcode | K::r16_rm | K::ax => Ty::I16,
        K::r32_reg | K::r32_or_mem | K::r32_opcode | K::r32_rm | K::eax => Ty::I32,
        K::r64_reg | K::r64_or_mem | K::r64_opcode | K::r64_rm | K::rax => Ty::I64,
        _ => Ty::of_bytes(op.operand_bytes),
    }
}

/// A place in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub address: Val,
    pub displacement: u64,
}

impl Lift {
    // ---- Registers -----------------------------------------------------------------------------------------------

    /// A general register in the numbering of [`Op`].
    pub(super) fn get(&mut self, ty: Ty, number: u8) -> Val {
        if ty == Ty::I8 && number & HIGH_BYTE != 0 {
            return self.b.get_high(GPR + (number & 15));
        }
        self.b.get(ty, GPR + (number & 15))
    }

    /// Commits a general register.
    pub(super) fn set(&mut self, ty: Ty, number: u8, value: Val) {
        if ty == Ty::I8 && number & HIGH_BYTE != 0 {
            self.b.set_high(GPR + (number & 15), value);
        } else {
            self.b.set(ty, GPR + (number & 15), value);
        }
    }

    // ---- Operands ------------------------------------------------------------------------------------------------

    /// The value of an operand; memory is loaded from its place, made now.
    pub(super) fn read(&mut self, op: &Op, operand: Operand, ty: Ty) -> Result<Val, ByInterpreter> {
        Ok(match operand {
            Operand::Rm => self.get(ty, op.rm),
            Operand::Reg => self.get(ty, op.reg),
            Operand::Immediate => self.b.constant(ty, op.imm),
            Operand::Memory => {
                let place = self.place(op, Access::Read)?;
                self.load(ty, place)
            }
        })
    }

    /// Loads a whole value.
    pub(super) fn load(&mut self, ty: Ty, place: Place) -> Val {
        self.b.load(ty, place.address, place.displacement, MemoryAccess::tso(ty.bytes()))
    }

    /// Loads what will be written back.
    pub(super) fn load_for_write(&mut self, ty: Ty, place: Place) -> Val {
        let access = MemoryAccess { for_write: true, ..MemoryAccess::tso(ty.bytes()) };
        self.b.load(ty, place.address, place.displacement, access)
    }

    /// Stores.
    pub(super) fn store(&mut self, ty: Ty, place: Place, value: Val) {
        self.b.store(ty, place.address, place.displacement, value);
    }

    /// Commits a register operand.
    pub(super) fn write_register(&mut self, op: &Op, operand: Operand, ty: Ty, value: Val) {
        self.set(ty, if operand == Operand::Reg { op.reg } else { op.rm }, value);
    }

    // ---- Addresses -----------------------------------------------------------------------------------------------

    /// The linear address of the memory operand.
    pub(super) fn place(&mut self, op: &Op, access: Access) -> Result<Place, ByInterpreter> {
        self.check_segment(op.segment, access)?;
        if op.address_shift == 0 {
            let place = self.wide_offset(op);
            return Ok(self.in_segment(op.segment, place));
        }
        let ty = if op.address_shift == 32 { Ty::I32 } else { Ty::I16 };
        let offset = self.narrow_offset(op, ty);
        Ok(self.linear(op.segment, offset, ty))
    }

    /// Whether a segment needs no look at its limit and rights.
    pub(super) fn check_segment(&self, segment: u8, access: Access) -> Result<(), ByInterpreter> {
        let usable = match access {
            Access::Read => self.mode.readable,
            Access::Write => self.mode.writable,
        };
        if usable >> segment & 1 != 0 { Ok(()) } else { Err(ByInterpreter) }
    }

    /// The offset that LEA gives, in type `ty`.
    pub(super) fn effective_address(&mut self, op: &Op, ty: Ty) -> Val {
        let from = match op.address_shift {
            0 => Ty::I64,
            32 => Ty::I32,
            _ => Ty::I16,
        };
        let value = if from == Ty::I64 {
            let place = self.wide_offset(op);
            if place.displacement == 0 {
                place.address
            } else {
                self.b.address(Ty::I64, place.address, Val::NONE, 0, place.displacement)
            }
        } else {
            self.narrow_offset(op, from)
        };
        match ty.cmp(&from) {
            std::cmp::Ordering::Equal => value,
            std::cmp::Ordering::Less => self.b.unary(ir::Op::Truncate, ty, value),
            std::cmp::Ordering::Greater => self.b.unary(ir::Op::ZeroExtend, ty, value),
        }
    }

    fn wide_offset(&mut self, op: &Op) -> Place {
        if op.flags.contains(OpFlags::RIP_RELATIVE) {
            let displacement = op.disp.wrapping_sub(self.b.block().pc);
            return Place { address: self.b.pc(Ty::I64, displacement), displacement: 0 };
        }
        let base = self.part(op.base, Ty::I64);
        let index = self.part(op.index, Ty::I64);
        if index.is_some() {
            return Place { address: self.b.address(Ty::I64, base, index, op.scale, op.disp), displacement: 0 };
        }
        if base.is_some() {
            return Place { address: base, displacement: op.disp };
        }
        Place { address: self.b.constant(Ty::I64, op.disp), displacement: 0 }
    }

    fn narrow_offset(&mut self, op: &Op, ty: Ty) -> Val {
        if op.flags.contains(OpFlags::RIP_RELATIVE) {
            let displacement = op.disp.wrapping_sub(self.b.block().pc);
            return self.b.pc(ty, displacement);
        }
        let base = self.part(op.base, ty);
        let index = self.part(op.index, ty);
        if !base.is_some() && !index.is_some() {
            return self.b.constant(ty, op.disp);
        }
        if base.is_some() && !index.is_some() && op.disp & ty.mask() == 0 {
            return base;
        }
        self.b.address(ty, base, index, op.scale, op.disp)
    }

    fn part(&mut self, number: u8, ty: Ty) -> Val {
        if number == NO_REGISTER { Val::NONE } else { self.b.get(ty, GPR + number) }
    }

    /// Adds a segment's base to a 64-bit offset.
    fn in_segment(&mut self, segment: u8, place: Place) -> Place {
        if self.mode.based >> segment & 1 == 0 {
            return place;
        }
        let base = self.b.get(Ty::I64, SEGMENT_BASE + segment);
        if let Some(offset) = self.b.block().constant(place.address) {
            return Place { address: base, displacement: offset.wrapping_add(place.displacement) };
        }
        let address = self.b.address(Ty::I64, base, place.address, 0, place.displacement);
        Place { address, displacement: 0 }
    }

    /// The linear address of a 16- or 32-bit offset.
    pub(super) fn linear(&mut self, segment: u8, offset: Val, ty: Ty) -> Place {
        let based = self.mode.based >> segment & 1 != 0;
        if self.mode.is_64_bit() {
            let address = self.b.unary(ir::Op::ZeroExtend, Ty::I64, offset);
            return self.in_segment(segment, Place { address, displacement: 0 });
        }
        let offset = if ty == Ty::I16 { self.b.unary(ir::Op::ZeroExtend, Ty::I32, offset) } else { offset };
        let linear = if based {
            let base = self.b.get(Ty::I32, SEGMENT_BASE + segment);
            self.b.address(Ty::I32, base, offset, 0, 0)
        } else {
            offset
        };
        Place { address: self.b.unary(ir::Op::ZeroExtend, Ty::I64, linear), displacement: 0 }
    }

    // ---- The stack -----------------------------------------------------------------------------------------------

    /// The type of the stack pointer.
    pub(super) fn stack_type(&self) -> Ty {
        if self.mode.is_64_bit() { Ty::I64 } else { Ty::I32 }
    }

    /// The place `above` bytes above the stack pointer, and the pointer that many bytes above.
    pub(super) fn stack(&mut self, above: u64, access: Access) -> Result<Place, ByInterpreter> {
        self.check_segment(seg::SS, access)?;
        if !self.mode.wide_stack {
            return Err(ByInterpreter);
        }
        let pointer = self.b.get(self.stack_type(), GPR + reg::SP);
        if self.mode.is_64_bit() {
            return Ok(Place { address: pointer, displacement: above });
        }
        let offset = if above == 0 { pointer } else { self.b.address(Ty::I32, pointer, Val::NONE, 0, above) };
        Ok(self.linear(seg::SS, offset, Ty::I32))
    }

    /// Commits the stack pointer, moved by `by` bytes.
    pub(super) fn move_stack_pointer(&mut self, by: u64) {
        let ty = self.stack_type();
        let pointer = self.b.get(ty, GPR + reg::SP);
        let moved = self.b.address(ty, pointer, Val::NONE, 0, by);
        self.b.set(ty, GPR + reg::SP, moved);
    }

    /// Stores `value` below the stack pointer and commits the pointer.
    pub(super) fn push_value(&mut self, ty: Ty, value: Val) -> Result<(), ByInterpreter> {
        let below = u64::from(ty.bytes()).wrapping_neg();
        let place = self.stack(below, Access::Write)?;
        self.store(ty, place, value);
        self.move_stack_pointer(below);
        Ok(())
    }
}

/// What a segment must allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}
