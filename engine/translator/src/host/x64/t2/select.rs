//! Integer instructions: operands, the host's instruction, the result's register.

use super::moves::cell;
use super::plan::Delivery;
use super::registers::{Source, width_of};
use super::{Emitter, Refused, Ways};
use crate::host::x64::asm::{Alu, Cond, Mem, R, Rm, W};
use crate::ir::{Effects, Inst, Op, Ty, Val};

/// The width in which an operation is done when nobody wants its flags: what is above a narrow value means nothing.
fn at_least_four(w: W) -> W {
    if w == W::B8 { W::B8 } else { W::B4 }
}

impl<W_: Ways> Emitter<'_, W_> {
    /// Writes one instruction; `rest` is what follows in its block. How many of these have been written with it.
    pub(super) fn write_inst(&mut self, value: Val, rest: &[Val]) -> Result<usize, Refused> {
        let region = self.region;
        let inst = region.def(value);
        let is_free = self.plan.root(value) != value;
        let is_dead = inst.op.info().effects == Effects::PURE
            && inst.op != Op::FlagsOf
            && self.dies(value)
            && self.plan.wanted_token(value).is_none();
        if is_free || is_dead {
            return Ok(0);
        }
        match inst.op {
            Op::Const | Op::Nop => {}
            Op::Pc => self.pc(value, inst)?,
            Op::Cond if self.plan.is_virtual[value.index()] => {}
            Op::FlagsOf => self.write_flags_of(value)?,
            Op::Add | Op::Sub | Op::And | Op::Or | Op::Xor | Op::AddCarry | Op::SubBorrow => self.arithmetic(value, inst)?,
            Op::Inc | Op::Dec | Op::Neg | Op::Not => self.unary(value, inst)?,
            Op::MulSigned | Op::MulUnsigned | Op::MulHighSigned | Op::MulHighUnsigned => return self.multiply(value, inst, rest),
            Op::DivUnsigned | Op::RemUnsigned | Op::DivSigned | Op::RemSigned => return self.divide(value, inst, rest),
            Op::Shl | Op::Shr | Op::Sar | Op::Rol | Op::Ror | Op::RolCarry | Op::RorCarry => self.shift(value, inst)?,
            Op::ShlDouble | Op::ShrDouble => self.double_shift(value, inst)?,
            Op::BitTest | Op::BitSet | Op::BitReset | Op::BitFlip => self.bit_test(value, inst)?,
            Op::BitScanForward | Op::BitScanReverse => self.bit_scan(value, inst)?,
            Op::SwapBytes => {
                let w = self.width(value)?;
                let register = self.change(inst.args[0], value)?;
                self.asm.bswap(w, register);
                self.define(register, value)?;
            }
            Op::ZeroExtend | Op::SignExtend => self.extend(value, inst)?,
            Op::HighByte => {
                let register = self.change(inst.args[0], value)?;
                self.asm.shift_imm(5, W::B4, register, 8);
                self.host_flags = Val::NONE;
                self.define(register, value)?;
            }
            Op::InsertLow | Op::InsertHigh => self.insert(value, inst)?,
            Op::Address => self.address(value, inst)?,
            Op::Select => self.select(value, inst)?,
            Op::Cond => {
                let condition = self.ask(inst.args[0], inst)?;
                self.set_condition(value, condition, Ty::I8)?;
            }
            Op::Native | Op::NativeStore | Op::NativeInteger | Op::NativeFlags => self.native(value, inst)?,
            Op::NativeGather => self.gather(inst)?,
            _ => self.write_memory(value, inst)?,
        }
        Ok(0)
    }

    /// A place in the code or near it, from where the region's page is now. Keeps the host's flags.
    fn pc(&mut self, value: Val, inst: &Inst) -> Result<(), Refused> {
        let w = at_least_four(self.width(value)?);
        let distance = i64::from(self.region.page_offset).wrapping_add(inst.imm as i64);
        let distance = i32::try_from(distance).map_err(|_| Refused::Operation(inst.op))?;
        let hint = self.hint(value);
        let register = self.allocate(hint)?;
        self.asm.load(W::B8, register, cell(self.frame.page));
        self.asm.lea(w, register, Mem::at(register, distance));
        self.define(register, value)
    }

    // ---- Flags -------------------------------------------------------------------------------------------------

    /// The instruction before has left its flags in the host's, if anybody is to find them there.
    fn write_flags_of(&mut self, token: Val) -> Result<(), Refused> {
        match self.plan.delivery[token.index()] {
            Delivery::InHost => self.host_flags = token,
            Delivery::Packed => self.pack_flags(token)?,
            Delivery::Test | Delivery::Compare | Delivery::Nobody => {}
        }
        Ok(())
    }

    /// The host's flags, which are a token's, become a word as well.
    pub(super) fn pack_flags(&mut self, token: Val) -> Result<(), Refused> {
        self.host_flags = token;
        self.claim(R::Ax)?;
        self.asm.lahf();
        self.asm.setcc(Cond::O, R::Ax);
        self.define(R::Ax, token)
    }

    /// Puts a token's flags into the host's, those of them that somebody needs on the way.
    pub(super) fn ensure_flags(&mut self, token: Val) -> Result<(), Refused> {
        if self.host_flags == token {
            return Ok(());
        }
        let region = self.region;
        let inst = region.def(token);
        match self.plan.delivery[token.index()] {
            Delivery::Packed => {
                self.copy_into(R::Ax, token, true)?;
                self.unpack_ax();
            }
            Delivery::Test => {
                let w = self.width(inst.args[0])?;
                let register = self.read(inst.args[0])?;
                self.asm.test(w, register, register);
            }
            Delivery::Compare => {
                let source = region.def(inst.args[0]);
                let w = self.width(inst.args[0])?;
                self.compare(Alu::Cmp, w, source.args[0], source.args[1])?;
            }
            Delivery::InHost | Delivery::Nobody => return Err(Refused::Lost(token)),
        }
        self.host_flags = token;
        Ok(())
    }

    /// The packed flags in RAX become the host's.
    pub(super) fn unpack_ax(&mut self) {
        // 1 + 127 overflows.
        self.asm.alu_imm(Alu::Add, W::B1, R::Ax, 127);
        self.asm.sahf();
    }

    /// A `Cond`'s question as the host's condition.
    fn ask(&mut self, token: Val, cond: &Inst) -> Result<Cond, Refused> {
        self.ensure_flags(token)?;
        Ok(Cond(cond.aux & 15))
    }

    /// A `Bool`'s truth as the host's condition.
    pub(super) fn truth(&mut self, condition: Val) -> Result<Cond, Refused> {
        let inst = self.region.def(condition);
        if inst.op == Op::Cond && self.plan.is_virtual[condition.index()] {
            return self.ask(inst.args[0], inst);
        }
        let from = self.operand(condition)?;
        self.asm.test_imm(W::B1, from, 1);
        self.host_flags = Val::NONE;
        Ok(Cond::NE)
    }

    fn set_condition(&mut self, value: Val, condition: Cond, ty: Ty) -> Result<(), Refused> {
        let hint = self.hint(value);
        let register = self.allocate(hint)?;
        self.asm.setcc(condition, register);
        if ty != Ty::I8 {
            self.asm.movzx(W::B1, register, register);
        }
        self.define(register, value)
    }

    /// What passes on flags finds them in the host's.
    fn ensure_old_flags(&mut self, value: Val) -> Result<(), Refused> {
        match self.plan.old_flags(value) {
            Some(old) => self.ensure_flags(old),
            None => Ok(()),
        }
    }

    /// The width for a value's operation, and whether its flags are wanted.
    fn working_width(&self, value: Val) -> Result<(W, bool), Refused> {
        let wanted = self.plan.wanted_token(value).is_some();
        let w = self.width(value)?;
        Ok((if wanted { w } else { at_least_four(w) }, wanted))
    }

    /// Whether two values are in one place.
    fn are_same(&self, a: Val, b: Val) -> bool {
        self.plan.root(a) == self.plan.root(b)
    }

    // ---- Arithmetic --------------------------------------------------------------------------------------------

    fn arithmetic(&mut self, value: Val, inst: &Inst) -> Result<(), Refused> {
        let (w, wanted) = self.working_width(value)?;
        let [mut a, mut b, carry] = inst.args;
        let op = match inst.op {
            Op::Add => Alu::Add,
            Op::Sub => Alu::Sub,
            Op::And => Alu::And,
            Op::Or => Alu::Or,
            Op::Xor => Alu::Xor,
            Op::AddCarry => Alu::Adc,
            _ => Alu::Sbb,
        };
        if carry.is_some() {
            self.ensure_flags(carry)?;
        }
        if self.dies(value) {
            match op {
                // Nobody wants flags either.
                _ if !wanted => {}
                Alu::Sub => self.compare(Alu::Cmp, w, a, b)?,
                Alu::And => self.compare(Alu::And, w, a, b)?,
                _ => self.destroy(op, w, value, a, b)?,
            }
            return Ok(());
        }
        let commutes = !matches!(op, Alu::Sub | Alu::Sbb);
        if commutes
            && (self.constant(a).is_some() && self.constant(b).is_none() || !self.can_be_spoilt(a) && self.can_be_spoilt(b))
        {
            (a, b) = (b, a);
        }
        if !wanted && matches!(op, Alu::Add | Alu::Sub) && self.constant(a).is_none() && !self.can_be_spoilt(a) {
            let distance = self.immediate(b, w).map(|by| if op == Alu::Sub { by.checked_neg() } else { Some(by) });
            match distance {
                Some(Some(distance)) => return self.add_by_lea(value, w, a, None, distance),
                None if op == Alu::Add => return self.add_by_lea(value, w, a, Some(b), 0),
                _ => {}
            }
        }
        self.destroy(op, w, value, a, b)
    }

    /// Whether the current instruction may write over a value's register.
    fn can_be_spoilt(&self, value: Val) -> bool {
        self.dies(value) && self.state.register_of(self.plan.root(value)).is_some()
    }

    fn add_by_lea(&mut self, value: Val, w: W, a: Val, b: Option<Val>, disp: i32) -> Result<(), Refused> {
        let base = self.read(a)?;
        let index = match b {
            Some(b) => Some((self.read(b)?, 0)),
            None => None,
        };
        let hint = self.hint(value);
        let to = self.allocate(hint)?;
        self.asm.lea(w, to, Mem { base, index, disp });
        self.define(to, value)
    }

    /// `op to, b` with `to` a copy of a.
    fn destroy(&mut self, op: Alu, w: W, value: Val, a: Val, b: Val) -> Result<(), Refused> {
        let b = self.source(b, w)?;
        let to = self.change(a, value)?;
        self.apply(op, w, to, b);
        self.host_flags = Val::NONE;
        self.define(to, value)
    }

    fn apply(&mut self, op: Alu, w: W, to: R, b: Source) {
        match b {
            Source::Imm(value) => self.asm.alu_imm(op, w, to, value),
            Source::Rm(from) => self.asm.alu_load(op, w, to, from),
        }
    }

    /// `cmp a, b`, or `test a, b` for `Alu::And`.
    fn compare(&mut self, op: Alu, w: W, a: Val, b: Val) -> Result<(), Refused> {
        let is_test = op == Alu::And;
        let (a, b) = if is_test && self.constant(a).is_some() { (b, a) } else { (a, b) };
        match self.source(b, w)? {
            Source::Imm(value) => {
                let a = self.operand_in_register_if_constant(a)?;
                match a {
                    Rm::Reg(register) if value == 0 && !is_test => self.asm.test(w, register, register),
                    a if is_test => self.asm.test_imm(w, a, value),
                    a => self.asm.alu_imm(Alu::Cmp, w, a, value),
                }
            }
            Source::Rm(Rm::Reg(b)) => {
                let a = self.operand_in_register_if_constant(a)?;
                if is_test {
                    self.asm.test(w, a, b);
                } else {
                    self.asm.alu(Alu::Cmp, w, a, b);
                }
            }
            Source::Rm(b) => {
                let a = self.read(a)?;
                if is_test {
                    self.asm.test(w, b, a);
                } else {
                    self.asm.alu_load(Alu::Cmp, w, a, b);
                }
            }
        }
        self.host_flags = Val::NONE;
        Ok(())
    }

    fn operand_in_register_if_constant(&mut self, value: Val) -> Result<Rm, Refused> {
        if self.constant(value).is_some() { Ok(Rm::Reg(self.read(value)?)) } else { self.operand(value) }
    }

    fn unary(&mut self, value: Val, inst: &Inst) -> Result<(), Refused> {
        let (w, wanted) = self.working_width(value)?;
        let a = inst.args[0];
        self.ensure_old_flags(value)?;
        if !wanted && matches!(inst.op, Op::Inc | Op::Dec) && !self.can_be_spoilt(a) {
            return self.add_by_lea(value, w, a, None, if inst.op == Op::Inc { 1 } else { -1 });
        }
        let to = self.change(a, value)?;
        match inst.op {
            Op::Inc if wanted => self.asm.group4(0, w, to),
            Op::Dec if wanted => self.asm.group4(1, w, to),
            Op::Inc => self.asm.alu_imm(Alu::Add, w, to, 1),
            Op::Dec => self.asm.alu_imm(Alu::Sub, w, to, 1),
            Op::Neg => self.asm.group3(3, w, to),
            _ => self.asm.group3(2, w, to),
        }
        if inst.op != Op::Not {
            self.host_flags = Val::NONE;
        }
        self.define(to, value)
    }

    fn multiply(&mut self, value: Val, inst: &Inst, rest: &[Val]) -> Result<usize, Refused> {
        let region = self.region;
        let (w, wanted) = self.working_width(value)?;
        let [a, b, _] = inst.args;
        let is_high = matches!(inst.op, Op::MulHighSigned | Op::MulHighUnsigned);
        let signed = matches!(inst.op, Op::MulSigned | Op::MulHighSigned);
        let high_op = if signed { Op::MulHighSigned } else { Op::MulHighUnsigned };
        // The other half, behind this one or its flags.
        let partner = rest.iter().take(2).enumerate().find_map(|(at, other)| {
            let other_inst = region.def(*other);
            let is_flags = at == 0 || region.def(rest[0]).op == Op::FlagsOf && region.def(rest[0]).args[0] == value;
            (is_flags && !is_high && other_inst.op == high_op && other_inst.ty == inst.ty && other_inst.args == inst.args)
                .then_some((at, *other))
        });
        if !is_high && partner.is_none() && (signed || !wanted) {
            if wanted && inst.ty == Ty::I8 {
                return Err(Refused::Width(inst.op, inst.ty));
            }
            let (a, b) = if self.constant(a).is_some() { (b, a) } else { (a, b) };
            match self.source(b, w)? {
                Source::Imm(by) => {
                    let from = self.operand_in_register_if_constant(a)?;
                    let hint = self.hint(value);
                    let to = match from {
                        Rm::Reg(register) if self.can_be_spoilt(a) => {
                            self.state.put(register, Val::NONE);
                            register
                        }
                        _ => self.allocate(hint)?,
                    };
                    self.asm.imul_imm(w, to, from, by);
                    self.host_flags = Val::NONE;
                    self.define(to, value)?;
                }
                Source::Rm(from) => {
                    let to = self.change(a, value)?;
                    self.asm.imul(w, to, from);
                    self.host_flags = Val::NONE;
                    self.define(to, value)?;
                }
            }
            return Ok(0);
        }
        let w = self.width(value)?;
        if w == W::B1 {
            return Err(Refused::Width(inst.op, inst.ty));
        }
        self.copy_into(R::Ax, a, self.are_same(a, b))?;
        self.claim(R::Dx)?;
        let by = self.operand_in_register_if_constant(b)?;
        self.asm.group3(if signed { 5 } else { 4 }, w, by);
        self.host_flags = Val::NONE;
        if is_high {
            self.define(R::Dx, value)?;
            return Ok(0);
        }
        self.define(R::Ax, value)?;
        let Some((at, high)) = partner else { return Ok(0) };
        self.define(R::Dx, high)?;
        if at == 1 {
            self.write_flags_of(rest[0])?;
        }
        Ok(at + 1)
    }

    fn divide(&mut self, value: Val, inst: &Inst, rest: &[Val]) -> Result<usize, Refused> {
        let region = self.region;
        let w = self.width(value)?;
        if w == W::B1 {
            return Err(Refused::Width(inst.op, inst.ty));
        }
        let [high, low, divisor] = inst.args;
        let signed = matches!(inst.op, Op::DivSigned | Op::RemSigned);
        self.copy_into(R::Ax, low, self.are_same(low, high) || self.are_same(low, divisor))?;
        self.copy_into(R::Dx, high, self.are_same(high, divisor))?;
        let by = self.operand_in_register_if_constant(divisor)?;
        self.asm.group3(if signed { 7 } else { 6 }, w, by);
        self.host_flags = Val::NONE;
        if matches!(inst.op, Op::RemUnsigned | Op::RemSigned) {
            self.define(R::Dx, value)?;
            return Ok(0);
        }
        self.define(R::Ax, value)?;
        let rest_op = if signed { Op::RemSigned } else { Op::RemUnsigned };
        match rest.first() {
            Some(next)
                if region.def(*next).op == rest_op && region.def(*next).ty == inst.ty && region.def(*next).args == inst.args =>
            {
                self.define(R::Dx, *next)?;
                Ok(1)
            }
            _ => Ok(0),
        }
    }

    // ---- Shifts and bits ---------------------------------------------------------------------------------------

    fn shift(&mut self, value: Val, inst: &Inst) -> Result<(), Refused> {
        let [a, count, carry] = inst.args;
        let number = match inst.op {
            Op::Rol => 0,
            Op::Ror => 1,
            Op::RolCarry => 2,
            Op::RorCarry => 3,
            Op::Shl => 4,
            Op::Shr => 5,
            _ => 7,
        };
        let (wide, _) = self.working_width(value)?;
        // Only what is shifted out at the left does not show in a wider register.
        let w = if inst.op == Op::Shl { wide } else { self.width(value)? };
        self.ensure_old_flags(value)?;
        if carry.is_some() {
            self.ensure_flags(carry)?;
        }
        if let Some(count) = self.constant(count) {
            let to = self.change(a, value)?;
            self.asm.shift_imm(number, w, to, count as u8 & inst.ty.count_mask());
            self.host_flags = Val::NONE;
            return self.define(to, value);
        }
        self.copy_into(R::Cx, count, self.are_same(a, count))?;
        let to = self.change(a, value)?;
        self.asm.shift_cl(number, w, to);
        self.host_flags = Val::NONE;
        self.define(to, value)
    }

    fn double_shift(&mut self, value: Val, inst: &Inst) -> Result<(), Refused> {
        let [a, b, count] = inst.args;
        let w = self.width(value)?;
        if w == W::B2 {
            // Counts above 16 are the host's business.
            return Err(Refused::Width(inst.op, inst.ty));
        }
        let left = inst.op == Op::ShlDouble;
        self.ensure_old_flags(value)?;
        let by = self.constant(count);
        if by.is_none() {
            self.copy_into(R::Cx, count, self.are_same(count, a) || self.are_same(count, b))?;
        }
        let from = self.read(b)?;
        let to = self.change(a, value)?;
        match by {
            Some(by) => self.asm.double_shift_imm(left, w, to, from, by as u8 & inst.ty.count_mask()),
            None => self.asm.double_shift_cl(left, w, to, from),
        }
        self.host_flags = Val::NONE;
        self.define(to, value)
    }

    fn bit_test(&mut self, value: Val, inst: &Inst) -> Result<(), Refused> {
        let [a, place, _] = inst.args;
        let w = self.width(value)?;
        let number = match inst.op {
            Op::BitTest => 4,
            Op::BitSet => 5,
            Op::BitReset => 6,
            _ => 7,
        };
        self.ensure_old_flags(value)?;
        let bits = inst.ty.bits() - 1;
        let place = match self.constant(place) {
            Some(place) => Err(place as u8 & bits as u8),
            None => Ok(self.read(place)?),
        };
        let keeps = inst.op == Op::BitTest && self.dies(value);
        let to = if keeps { self.read(a)? } else { self.change(a, value)? };
        match place {
            Ok(place) => self.asm.bit(number, w, to, place),
            Err(place) => self.asm.bit_imm(number, w, to, place),
        }
        self.host_flags = Val::NONE;
        if keeps { Ok(()) } else { self.define(to, value) }
    }

    fn bit_scan(&mut self, value: Val, inst: &Inst) -> Result<(), Refused> {
        let [a, otherwise, _] = inst.args;
        let w = self.width(value)?;
        let from = self.operand_in_register_if_constant(a)?;
        // The host leaves the register as it is when there is no bit.
        let to = self.change(otherwise, value)?;
        self.asm.bit_scan(inst.op == Op::BitScanReverse, w, to, from);
        self.host_flags = Val::NONE;
        self.define(to, value)
    }

    // ---- Widths ------------------------------------------------------------------------------------------------

    fn extend(&mut self, value: Val, inst: &Inst) -> Result<(), Refused> {
        let a = inst.args[0];
        let from_ty = self.region.def(a).result().unwrap_or(Ty::None);
        if from_ty == Ty::Bool {
            if inst.op == Op::ZeroExtend && self.region.def(a).op == Op::Cond && self.plan.is_virtual[a.index()] {
                let condition = self.truth(a)?;
                return self.set_condition(value, condition, inst.ty);
            }
            let to = self.change(a, value)?;
            self.asm.movzx(W::B1, to, to);
            if inst.op == Op::SignExtend {
                self.asm.group3(3, at_least_four(self.width(value)?), to);
                self.host_flags = Val::NONE;
            }
            return self.define(to, value);
        }
        let from_w = width_of(from_ty).ok_or(Refused::Width(inst.op, from_ty))?;
        let w = self.width(value)?;
        let from = self.operand_in_register_if_constant(a)?;
        let to = match from {
            Rm::Reg(register) if self.can_be_spoilt(a) => {
                self.state.put(register, Val::NONE);
                register
            }
            _ => {
                let hint = self.hint(value);
                self.allocate(hint)?
            }
        };
        match (inst.op, from_w) {
            (Op::ZeroExtend, W::B4 | W::B8) => self.asm.load(W::B4, to, from),
            (Op::ZeroExtend, from_w) => self.asm.movzx(from_w, to, from),
            (_, from_w) => self.asm.movsx(w, from_w, to, from),
        }
        self.define(to, value)
    }

    fn insert(&mut self, value: Val, inst: &Inst) -> Result<(), Refused> {
        let [a, b, _] = inst.args;
        let ty = self.region.def(b).result().unwrap_or(Ty::None);
        let w = match ty {
            Ty::I8 => W::B1,
            Ty::I16 if inst.op == Op::InsertLow => W::B2,
            ty => return Err(Refused::Width(inst.op, ty)),
        };
        let high = inst.op == Op::InsertHigh;
        let b = if high && self.are_same(a, b) {
            // What is rotated must not be read afterwards.
            let copy = self.allocate(None)?;
            self.load_into(copy, b)?;
            Source::Rm(Rm::Reg(copy))
        } else {
            self.source(b, w)?
        };
        let to = self.change(a, value)?;
        if high {
            self.asm.shift_imm(1, W::B8, to, 8);
        }
        match b {
            Source::Imm(byte) => self.asm.mov_imm(w, to, byte),
            Source::Rm(from) => self.asm.load(w, to, from),
        }
        if high {
            self.asm.shift_imm(0, W::B8, to, 8);
            self.host_flags = Val::NONE;
        }
        self.define(to, value)
    }

    // ---- Addresses and choices ---------------------------------------------------------------------------------

    fn address(&mut self, value: Val, inst: &Inst) -> Result<(), Refused> {
        let [base, index, _] = inst.args;
        let w = at_least_four(self.width(value)?);
        let scale = inst.aux & 3;
        let disp = if w == W::B8 { i32::try_from(inst.imm as i64).ok() } else { Some(inst.imm as u32 as i32) };
        let base = if base.is_some() { Some((base, self.read(base)?)) } else { None };
        let index = if index.is_some() { Some((index, self.read(index)?)) } else { None };
        let spoilt = [base, index].into_iter().flatten().find(|(value, _)| self.dies(*value));
        let Some(disp) = disp else {
            let to = self.allocate(None)?;
            self.asm.set(to, inst.imm);
            if let Some((_, base)) = base {
                self.asm.lea(w, to, Mem::sum(to, base));
            }
            if let Some((_, index)) = index {
                self.asm.lea(w, to, Mem { base: to, index: Some((index, scale)), disp: 0 });
            }
            return self.define(to, value);
        };
        let to = match spoilt {
            Some((_, register)) => {
                self.state.put(register, Val::NONE);
                register
            }
            None => {
                let hint = self.hint(value);
                self.allocate(hint)?
            }
        };
        match (base, index) {
            (Some((_, base)), index) => {
                self.asm.lea(w, to, Mem { base, index: index.map(|(_, index)| (index, scale)), disp });
            }
            (None, Some((_, index))) => self.asm.lea_scaled(w, to, index, scale, disp),
            (None, None) => self.asm.set(to, inst.imm & inst.ty.mask()),
        }
        self.define(to, value)
    }

    fn select(&mut self, value: Val, inst: &Inst) -> Result<(), Refused> {
        let [condition, yes, no] = inst.args;
        let w = at_least_four(self.width(value)?);
        let mut condition = self.truth(condition)?;
        let token = self.host_flags;
        let (mut from, mut to) = (yes, no);
        if !self.can_be_spoilt(no) && self.can_be_spoilt(yes) {
            (from, to) = (no, yes);
            condition.0 ^= 1;
        }
        let from = self.operand_in_register_if_constant(from)?;
        let to = self.change(to, value)?;
        self.asm.cmov(condition, w, to, from);
        self.host_flags = token;
        self.define(to, value)
    }
}
