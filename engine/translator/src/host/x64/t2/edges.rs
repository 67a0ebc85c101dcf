//! From block to block: what is where at a block's start is settled by the first edge to it, and the others move values there.

use super::moves::{self, From, Move, Place};
use super::registers::State;
use super::{ColdKind, Emitter, Refused, Ways};
use crate::host::x64::asm::{Alu, Cond, Label, R, W};
use crate::ir::region::{BlockId, Edge, Terminator, To};
use crate::ir::{Op, Val};

impl<W_: Ways> Emitter<'_, W_> {
    /// The block's terminator.
    pub(super) fn write_end(&mut self) -> Result<(), Refused> {
        let region = self.region;
        match &region.blocks[self.block].end {
            Terminator::Jump(edge) => self.go(edge),
            Terminator::Branch { condition, taken, not_taken } => {
                let condition = self.truth(*condition)?;
                self.branch(condition, taken, not_taken)
            }
            Terminator::Switch { target, ways, otherwise } => self.switch(*target, ways, otherwise),
        }
    }

    /// Many ways, by comparisons of places in the code, one after the other: the region may run wherever its page is.
    fn switch(&mut self, target: Val, ways: &[(u64, Edge)], otherwise: &Edge) -> Result<(), Refused> {
        let region = self.region;
        let To::Exit(otherwise) = otherwise.to else { return Err(Refused::Operation(Op::JumpIndirect)) };
        let target = self.read(target)?;
        let place = self.allocate(None)?;
        self.asm.mov(W::B8, place, target);
        self.asm.alu_load(Alu::Sub, W::B8, place, moves::cell(self.frame.page));
        self.host_flags = Val::NONE;
        // What goes straight on is asked for last.
        let next = To::Block(self.block as BlockId + 1);
        let last = ways.iter().position(|(_, edge)| edge.to == next).unwrap_or(ways.len() - 1);
        let asides = ways.iter().enumerate().filter(|(at, _)| *at != last);
        for (number, (distance, edge)) in asides.map(|(_, way)| way).chain(ways.get(last)).enumerate() {
            let distance = i64::from(region.page_offset).wrapping_add(*distance as i64);
            let distance = i32::try_from(distance).map_err(|_| Refused::Operation(Op::JumpIndirect))?;
            self.asm.alu_imm(Alu::Cmp, W::B8, place, distance);
            if number + 1 == ways.len() {
                self.busy = 0;
                let check = self.plan.late_check(&region.blocks[self.block]);
                let label = self.cold(ColdKind::Otherwise(otherwise, check));
                self.asm.jcc(Cond::NE, label);
                return self.go(edge);
            }
            let label = self.aside(edge)?;
            self.asm.jcc(Cond::E, label);
        }
        Err(Refused::Operation(Op::JumpIndirect))
    }

    /// Where a conditional jump leads that goes along an edge.
    fn aside(&mut self, edge: &Edge) -> Result<Label, Refused> {
        Ok(match edge.to {
            To::Exit(exit) => self.cold(ColdKind::Exit(exit)),
            To::Block(to) => {
                let moves = self.moves_along(edge, to)?;
                let retired = self.plan.retired.on_the_way(self.block as BlockId, to);
                if retired == 0 && moves.iter().all(|one| one.from == From::Place(one.to)) {
                    self.labels[to as usize]
                } else {
                    self.cold(ColdKind::Edge { to, moves, retired })
                }
            }
        })
    }

    /// Goes along an edge, from here.
    fn go(&mut self, edge: &Edge) -> Result<(), Refused> {
        match edge.to {
            To::Exit(exit) => {
                let label = self.cold(ColdKind::Exit(exit));
                self.asm.jmp(label);
            }
            To::Block(to) => {
                let moves = self.moves_along(edge, to)?;
                moves::write(&mut self.asm, &moves);
                self.add_retired(self.plan.retired.on_the_way(self.block as BlockId, to));
                if to as usize != self.block + 1 {
                    self.asm.jmp(self.labels[to as usize]);
                }
            }
        }
        Ok(())
    }

    /// Two ways: one by a conditional jump, one straight on.
    fn branch(&mut self, condition: Cond, taken: &Edge, not_taken: &Edge) -> Result<(), Refused> {
        // What goes straight on: the block that comes next, or else the way back of a loop, or else a block.
        let is_next = |edge: &Edge| edge.to == To::Block(self.block as BlockId + 1);
        let is_back = |edge: &Edge| matches!(edge.to, To::Block(to) if to as usize <= self.block);
        let is_block = |edge: &Edge| matches!(edge.to, To::Block(_));
        let rank = |edge: &Edge| u8::from(is_block(edge)) + u8::from(is_back(edge)) + 2 * u8::from(is_next(edge));
        let (aside, condition, straight) =
            if rank(taken) > rank(not_taken) { (not_taken, Cond(condition.0 ^ 1), taken) } else { (taken, condition, not_taken) };
        let label = self.aside(aside)?;
        self.asm.jcc(condition, label);
        self.go(straight)
    }

    /// The moves along an edge to a block, from where everything is now.
    fn moves_along(&mut self, edge: &Edge, to: BlockId) -> Result<Vec<Move>, Refused> {
        if self.entries[to as usize].is_none() {
            self.settle(edge, to)?;
        }
        let Some(entry) = self.entries[to as usize].clone() else { return Err(Refused::Cells) };
        let params = &self.region.blocks[to as usize].params;
        let source =
            |value: Val| params.iter().position(|param| *param == value).map_or(value, |at| self.plan.root(edge.args[at]));
        let is_back = to as usize <= self.block;
        let mut moves = Vec::new();
        for (register, value) in entry.held() {
            let from = self.place(&self.state, source(value))?;
            if is_back && source(value) == value && matches!(from, From::Place(Place::Cell(_))) {
                // The loop has had no room for it: next time it enters in memory.
                self.lessons.in_memory.insert((to, value));
            }
            moves.push(Move { from, to: Place::Reg(register) });
        }
        for value in entry.in_memory() {
            let from = source(value);
            if from == value && self.state.is_in_memory(value) {
                continue;
            }
            let cell = Place::Cell(self.cell_of(value)?);
            moves.push(Move { from: self.place(&self.state, from)?, to: cell });
        }
        Ok(moves)
    }

    /// Says what is where at a block's start: as it is now, with parameters in the place of their arguments where these are not
    /// wanted any more.
    fn settle(&mut self, edge: &Edge, to: BlockId) -> Result<(), Refused> {
        let target = to as usize;
        let region = self.region;
        let plan = self.plan;
        let is_wanted = |value: Val| plan.is_wanted(target, value);
        let in_memory = &self.lessons.in_memory;
        let preferred: Vec<Val> = in_memory.iter().filter(|(block, _)| *block == to).map(|(_, value)| *value).collect();
        let prefers_memory = |value: Val| preferred.contains(&value);
        let mut entry = State::new(region.insts.len() + self.frame.homes.len());
        let held: Vec<(R, Val)> = self.state.held().collect();
        for (register, value) in &held {
            if is_wanted(*value) && !prefers_memory(*value) {
                entry.put(*register, *value);
            }
        }
        let in_memory: Vec<Val> = self.state.in_memory().filter(|value| is_wanted(*value)).collect();
        for value in in_memory {
            entry.set_in_memory(value);
        }
        for (_, value) in &held {
            if is_wanted(*value) && prefers_memory(*value) {
                entry.set_in_memory(*value);
            }
        }
        let params = &region.blocks[target].params;
        let mut left = Vec::new();
        for (param, arg) in params.iter().zip(&edge.args) {
            match self.state.register_of(self.plan.root(*arg)) {
                Some(register) if !entry.value_in(register).is_some() && !prefers_memory(*param) => entry.put(register, *param),
                _ => left.push(*param),
            }
        }
        for param in left {
            let free = entry.free().next().filter(|_| !prefers_memory(param));
            match free {
                Some(register) => entry.put(register, param),
                None => {
                    self.cell_of(param)?;
                    entry.set_in_memory(param);
                }
            }
        }
        self.entries[target] = Some(entry);
        Ok(())
    }
}
