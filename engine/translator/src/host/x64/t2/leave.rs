//! Where the region is left, out of the way: flags are recovered, slots go home, and [`Ways`] does the rest.
//!
//! At first RAX, RCX and RDX are emptied: no slot lives there, so they are free to work with from then on.

use super::moves::{self, From, Move, Place, cell};
use super::plan::Recipe;
use super::registers::{State, width_of};
use super::{Cold, ColdKind, Emitter, Home, Refused, Ways};
use crate::host::x64::asm::{Alu, Cond, Mem, R, W};
use crate::ir::region::GuestState;
use crate::ir::{FlagSet, Op, Val};

/// Cells that this file needs for itself.
pub(super) const SCRATCH_CELLS: usize = 3;
const SCRATCH: [R; SCRATCH_CELLS] = [R::Ax, R::Cx, R::Dx];

/// Where everything is while a region is being left.
struct Leaving {
    state: State,
    /// What was in RAX, RCX, RDX is in cells.
    emptied: [(Val, i32); SCRATCH_CELLS],
    host_flags: Val,
}

impl<W_: Ways> Emitter<'_, W_> {
    pub(super) fn write_cold(&mut self, cold: Cold) -> Result<(), Refused> {
        let region = self.region;
        let Cold { label, state, host_flags, block, kind } = cold;
        self.asm.bind(label);
        if let ColdKind::Otherwise(exit, check) = kind {
            (self.state, self.host_flags, self.block, self.busy) = (state, host_flags, block as usize, 0);
            self.position = region.blocks[self.block].body.len() as u32;
            if let Some(check) = check {
                self.check_pc(region.def(check))?;
            }
            let (label, state) = (self.asm.label(), self.state.clone());
            return self.write_cold(Cold { label, state, host_flags: Val::NONE, block, kind: ColdKind::Exit(exit) });
        }
        let leaving = Leaving { state, emptied: [(Val::NONE, 0); SCRATCH_CELLS], host_flags };
        match kind {
            ColdKind::Left(left) => self.write_left(&left),
            ColdKind::Gather(rest) => self.write_rest(&rest),
            ColdKind::Undo { registers, bail } => self.write_undo(&registers, bail),
            ColdKind::Missed(missed) => self.write_missed(&missed),
            ColdKind::Edge { to, moves, retired } => {
                moves::write(&mut self.asm, &moves);
                self.add_retired(retired);
                self.asm.jmp(self.labels[to as usize]);
            }
            ColdKind::Bail(number) | ColdKind::Poll(number, _) => {
                let polls = matches!(kind, ColdKind::Poll(..));
                if let ColdKind::Poll(_, back) = kind {
                    self.write_look(back);
                }
                let state = &region.snapshots[usize::from(number)];
                self.restore(leaving, state, FlagSet::all(), Val::NONE)?;
                self.add_retired(self.plan.retired.missing(block, state.retired.into()));
                if polls {
                    self.ways.poll(&mut self.asm, state.pc);
                } else {
                    self.ways.bail(&mut self.asm, state.pc);
                }
            }
            ColdKind::Exit(number) | ColdKind::Otherwise(number, _) => {
                let exit = &region.exits[number as usize];
                self.restore(leaving, &exit.state, exit.need, exit.target)?;
                self.add_retired(self.plan.retired.missing_at_end(block));
                self.ways.exit(&mut self.asm, exit);
            }
        }
        Ok(())
    }

    /// Puts everything where the frame has it; `target` goes to RAX.
    fn restore(&mut self, mut from: Leaving, state: &GuestState, need: FlagSet, target: Val) -> Result<(), Refused> {
        for (at, register) in SCRATCH.into_iter().enumerate() {
            let value = from.state.value_in(register);
            if value.is_some() {
                let distance = self.frame.cells + 8 * at as i32;
                if !from.state.is_in_memory(value) {
                    self.asm.mov(W::B8, cell(distance), register);
                    from.emptied[at] = (value, distance);
                }
                from.state.put(register, Val::NONE);
            }
        }
        if state.flags.is_some() && !need.is_empty() {
            self.recover(&mut from, state.flags)?;
            self.asm.lahf();
            self.asm.setcc(Cond::O, R::Ax);
            self.asm.mov(W::B2, cell(self.frame.flags), R::Ax);
        }
        let changed = self.region.slots_of(state);
        let (mut moves, mut sums) = (Vec::with_capacity(16), Vec::new());
        for (slot, home) in self.frame.homes.iter().enumerate() {
            let held = changed.iter().find(|held| usize::from(held.slot) == slot);
            let (to, value) = match (home, held) {
                (Some(Home { register: Some(register), .. }), Some(held)) => (Place::Reg(*register), held.value),
                (Some(Home { register: Some(register), .. }), None) => (Place::Reg(*register), self.plan.at_entry(slot)),
                (Some(Home { register: None, memory }), Some(held)) => (Place::Cell(*memory), held.value),
                (None, Some(_)) => return Err(Refused::Slot(slot as u8)),
                (_, None) => continue,
            };
            let (base, distance) = self.plan.derived_from(value);
            moves.push(Move { from: self.place_leaving(&from, base)?, to });
            if distance != 0 {
                sums.push((to, distance));
            }
        }
        if target.is_some() {
            moves.push(Move { from: self.place_leaving(&from, target)?, to: Place::Reg(R::Ax) });
        }
        moves::write(&mut self.asm, &moves);
        for (to, distance) in sums {
            match to {
                Place::Reg(register) => self.asm.lea(W::B8, register, Mem::at(register, distance)),
                Place::Cell(at) => self.asm.alu_imm(Alu::Add, W::B8, cell(at), distance),
            }
        }
        Ok(())
    }

    fn place_leaving(&self, from: &Leaving, value: Val) -> Result<From, Refused> {
        let value = self.plan.root(value);
        match from.emptied.iter().find(|(emptied, _)| *emptied == value) {
            Some((_, at)) => Ok(From::Place(Place::Cell(*at))),
            None => self.place(&from.state, value),
        }
    }

    // ---- Flags -------------------------------------------------------------------------------------------------

    /// All flags of a token become the host's. Spoils RAX, RCX, RDX.
    fn recover(&mut self, from: &mut Leaving, token: Val) -> Result<(), Refused> {
        if from.host_flags == token && self.has_all_flags(token) {
            return Ok(());
        }
        from.host_flags = Val::NONE;
        let region = self.region;
        if self.plan.is_whole(token) {
            self.fetch(from, R::Ax, token)?;
            self.unpack_ax();
            return Ok(());
        }
        let inst = region.def(token);
        let source_value = inst.args[0];
        let source = region.def(source_value);
        let w = width_of(source.ty).ok_or(Refused::Width(source.op, source.ty))?;
        let recipe = self.plan.recipe(source_value)?;
        if !self.plan.passed_on(inst, FlagSet::all()).is_empty() && inst.args[1].is_some() {
            self.recover(from, inst.args[1])?;
        }
        let [a, b, c] = source.args;
        match recipe {
            Recipe::Result => {
                self.fetch(from, R::Cx, source_value)?;
                self.asm.test(w, R::Cx, R::Cx);
            }
            Recipe::Back => {
                self.fetch(from, R::Cx, source_value)?;
                match source.op {
                    Op::Inc => {
                        self.asm.lea(W::B8, R::Cx, Mem::at(R::Cx, -1));
                        self.asm.group4(0, w, R::Cx);
                    }
                    Op::Dec => {
                        self.asm.lea(W::B8, R::Cx, Mem::at(R::Cx, 1));
                        self.asm.group4(1, w, R::Cx);
                    }
                    Op::Neg => {
                        self.asm.group3(3, w, R::Cx);
                        self.asm.group3(3, w, R::Cx);
                    }
                    op => {
                        self.fetch(from, R::Dx, b)?;
                        let (back, again) = if op == Op::Add { (Alu::Sub, Alu::Add) } else { (Alu::Add, Alu::Sub) };
                        self.asm.alu(back, w, R::Cx, R::Dx);
                        self.asm.alu(again, w, R::Cx, R::Dx);
                    }
                }
            }
            Recipe::Again => match source.op {
                Op::AddCarry | Op::SubBorrow => {
                    self.recover(from, c)?;
                    self.fetch(from, R::Cx, a)?;
                    self.fetch(from, R::Dx, b)?;
                    self.asm.alu(if source.op == Op::AddCarry { Alu::Adc } else { Alu::Sbb }, w, R::Cx, R::Dx);
                }
                Op::Add | Op::Sub | Op::And | Op::Or | Op::Xor => {
                    self.fetch(from, R::Cx, a)?;
                    self.fetch(from, R::Dx, b)?;
                    let op = match source.op {
                        Op::Add => Alu::Add,
                        Op::Sub => Alu::Sub,
                        Op::And => Alu::And,
                        Op::Or => Alu::Or,
                        _ => Alu::Xor,
                    };
                    self.asm.alu(op, w, R::Cx, R::Dx);
                }
                Op::Inc | Op::Dec => {
                    self.fetch(from, R::Cx, a)?;
                    self.asm.group4(u8::from(source.op == Op::Dec), w, R::Cx);
                }
                Op::Neg => {
                    self.fetch(from, R::Cx, a)?;
                    self.asm.group3(3, w, R::Cx);
                }
                Op::Shl | Op::Shr | Op::Sar | Op::Rol | Op::Ror | Op::RolCarry | Op::RorCarry => {
                    let number = match source.op {
                        Op::Rol => 0,
                        Op::Ror => 1,
                        Op::RolCarry => 2,
                        Op::RorCarry => 3,
                        Op::Shl => 4,
                        Op::Shr => 5,
                        _ => 7,
                    };
                    if c.is_some() {
                        // The carry is the only flag of it that matters, and it comes from the same place as those that stay.
                        self.recover(from, c)?;
                    }
                    self.fetch(from, R::Dx, a)?;
                    self.fetch(from, R::Cx, b)?;
                    self.asm.shift_cl(number, w, R::Dx);
                }
                Op::ShlDouble | Op::ShrDouble => {
                    self.fetch(from, R::Dx, a)?;
                    self.fetch(from, R::Ax, b)?;
                    self.fetch(from, R::Cx, c)?;
                    self.asm.double_shift_cl(source.op == Op::ShlDouble, w, R::Dx, R::Ax);
                }
                Op::BitTest | Op::BitSet | Op::BitReset | Op::BitFlip => {
                    self.fetch(from, R::Dx, a)?;
                    self.fetch(from, R::Cx, b)?;
                    self.asm.bit(4, w, R::Dx, R::Cx);
                }
                Op::MulSigned => {
                    self.fetch(from, R::Cx, a)?;
                    self.fetch(from, R::Dx, b)?;
                    self.asm.imul(w, R::Cx, R::Dx);
                }
                Op::MulUnsigned => {
                    self.fetch(from, R::Ax, a)?;
                    self.fetch(from, R::Cx, b)?;
                    self.asm.group3(4, w, R::Cx);
                }
                op => return Err(Refused::Operation(op)),
            },
        }
        Ok(())
    }

    /// Whether a token in the host's flags is there with all six: it was left there by its instruction.
    fn has_all_flags(&self, token: Val) -> bool {
        use super::plan::Delivery;
        let region = self.region;
        let inst = region.def(token);
        let is_complete = inst.op == Op::FlagsOf && self.plan.passed_on(inst, FlagSet::all()).is_empty();
        match self.plan.delivery[token.index()] {
            Delivery::InHost => is_complete,
            Delivery::Packed => self.plan.is_whole(token),
            Delivery::Compare => true,
            Delivery::Test => matches!(region.def(inst.args[0]).op, Op::And | Op::Or | Op::Xor),
            Delivery::Nobody => false,
        }
    }

    /// A register becomes a copy of a value. Keeps the host's flags.
    fn fetch(&mut self, from: &Leaving, register: R, value: Val) -> Result<(), Refused> {
        match self.place_leaving(from, value)? {
            From::Constant(constant) => self.asm.set(register, constant),
            From::Place(Place::Reg(other)) => self.asm.mov(W::B8, register, other),
            From::Place(Place::Cell(at)) => self.asm.load(W::B8, register, cell(at)),
        }
        Ok(())
    }
}
