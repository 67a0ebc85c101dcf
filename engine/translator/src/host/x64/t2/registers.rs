//! Which values are in registers, which in memory; whom to evict.

use super::moves::{From, Place, cell};
use super::{Emitter, Refused, Ways};
use crate::host::x64::asm::{R, Rm, W};
use crate::ir::region::{BlockId, To};
use crate::ir::{Op, Ty, Val};
use std::collections::HashSet;

/// Registers in the order in which they are given out.
const ORDER: [R; 14] = [R::Ax, R::Dx, R::Cx, R::Si, R::Di, R::Bx, R::R8, R::R9, R::R10, R::R11, R::R12, R::R13, R::R14, R::R15];

/// What the writing of a region teaches for the next time.
#[derive(Debug, Default)]
pub(super) struct Lessons {
    /// Values to be stored where they are defined: something evicts them.
    pub store_early: HashSet<Val>,
    /// Values that are better off in memory at a block's start: the way back to it found them there.
    pub in_memory: HashSet<(BlockId, Val)>,
}

impl Lessons {
    pub fn count(&self) -> usize {
        self.store_early.len() + self.in_memory.len()
    }
}

/// What is where.
#[derive(Debug, Clone)]
pub(super) struct State {
    registers: [Val; 16],
    /// One bit for each value: its cell holds it.
    memory: Box<[u64]>,
}

impl State {
    pub fn new(values: usize) -> Self {
        Self { registers: [Val::NONE; 16], memory: vec![0; values.div_ceil(64)].into() }
    }
    /// The value in a register.
    pub fn value_in(&self, register: R) -> Val {
        self.registers[register as usize]
    }
    pub fn put(&mut self, register: R, value: Val) {
        self.registers[register as usize] = value;
    }
    pub fn register_of(&self, value: Val) -> Option<R> {
        if !value.is_some() {
            return None;
        }
        ORDER.into_iter().find(|register| self.registers[*register as usize] == value)
    }
    pub fn is_in_memory(&self, value: Val) -> bool {
        self.memory[value.index() / 64] >> (value.index() % 64) & 1 != 0
    }
    pub fn set_in_memory(&mut self, value: Val) {
        self.memory[value.index() / 64] |= 1 << (value.index() % 64);
    }
    pub fn forget_memory(&mut self, value: Val) {
        self.memory[value.index() / 64] &= !(1 << (value.index() % 64));
    }
    /// The registers that hold something, and what.
    pub fn held(&self) -> impl Iterator<Item = (R, Val)> + '_ {
        ORDER.into_iter().map(|register| (register, self.value_in(register))).filter(|(_, value)| value.is_some())
    }
    /// Registers that hold nothing.
    pub fn free(&self) -> impl Iterator<Item = R> + '_ {
        ORDER.into_iter().filter(|register| !self.value_in(*register).is_some())
    }
    /// Values in memory.
    pub fn in_memory(&self) -> impl Iterator<Item = Val> + '_ {
        self.memory
            .iter()
            .enumerate()
            .flat_map(|(at, word)| (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| Val((at * 64 + bit) as u32)))
    }
}

/// One bit of [`Emitter::busy`].
pub(super) fn bit(register: R) -> u16 {
    1 << register as u8
}

/// An operand as an instruction can read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Rm(Rm),
    Imm(i32),
}

impl<W_: Ways> Emitter<'_, W_> {
    // ---- Where values are --------------------------------------------------------------------------------------

    /// What a value always is.
    pub(super) fn constant(&self, value: Val) -> Option<u64> {
        let inst = self.region.insts.get(value.index())?;
        match inst.op {
            Op::Const => Some(inst.imm & inst.ty.mask()),
            _ => None,
        }
    }

    /// A value as it can be read as an immediate of width `w`.
    pub(super) fn immediate(&self, value: Val, w: W) -> Option<i32> {
        let value = self.constant(value)?;
        match w {
            W::B1 => Some(value as u8 as i8 as i32),
            W::B2 => Some(value as u16 as i16 as i32),
            W::B4 => Some(value as u32 as i32),
            W::B8 => i32::try_from(value as i64).ok(),
        }
    }

    /// Where a value can be had.
    pub(super) fn place(&self, state: &State, value: Val) -> Result<From, Refused> {
        let value = self.plan.root(value);
        if let Some(register) = state.register_of(value) {
            return Ok(From::Place(Place::Reg(register)));
        }
        if let Some(constant) = self.constant(value) {
            return Ok(From::Constant(constant));
        }
        if state.is_in_memory(value) {
            return Ok(From::Place(Place::Cell(self.cells[value.index()])));
        }
        Err(Refused::Lost(value))
    }

    /// A value's cell: its own from now on.
    pub(super) fn cell_of(&mut self, value: Val) -> Result<i32, Refused> {
        debug_assert_eq!(self.plan.root(value), value);
        if self.cells[value.index()] == 0 {
            if self.cells_used == self.frame.cell_count {
                return Err(Refused::Cells);
            }
            self.cells[value.index()] = self.frame.cells + 8 * self.cells_used as i32;
            self.cells_used += 1;
        }
        Ok(self.cells[value.index()])
    }

    /// How far away a value's next use is, from behind the current instruction. `None`: there is none.
    pub(super) fn next_use(&self, value: Val) -> Option<u32> {
        self.plan.next_use(self.block, self.position + 1, value)
    }

    /// Whether the current instruction is the last that uses it.
    pub(super) fn dies(&self, value: Val) -> bool {
        self.next_use(value).is_none()
    }

    /// Forgets what nobody uses at or behind a position of the block.
    pub(super) fn forget_dead(&mut self, position: u32) {
        for register in ORDER {
            let value = self.state.value_in(register);
            if value.is_some() && self.plan.next_use(self.block, position, value).is_none() {
                self.state.put(register, Val::NONE);
            }
        }
    }

    // ---- Registers ---------------------------------------------------------------------------------------------

    /// A register for the current instruction, of those in `allowed`; the host's flags stay.
    pub(super) fn allocate_in(&mut self, allowed: u16, hint: Option<R>) -> Result<R, Refused> {
        let allowed = allowed & !self.busy;
        let is_allowed = |register: &R| allowed & bit(*register) != 0;
        let hinted = hint.filter(|hint| is_allowed(hint) && !self.state.value_in(*hint).is_some());
        let free = hinted.or_else(|| self.state.free().find(is_allowed));
        let register = match free {
            Some(register) => register,
            None => {
                let cost = |value: Val| {
                    let distance = self.plan.next_use(self.block, self.position, value).map_or(u32::MAX, |far| far.min(1 << 20));
                    // What needs no store goes a little earlier.
                    let is_cheap = self.constant(value).is_some() || self.state.is_in_memory(value);
                    (distance.saturating_add(if is_cheap { 4 } else { 0 }), is_cheap)
                };
                let candidates = self.state.held().filter(|(register, _)| is_allowed(register));
                let (register, value) = candidates.max_by_key(|(_, value)| cost(*value)).ok_or(Refused::Cells)?;
                self.evict(register, value)?;
                register
            }
        };
        self.busy |= bit(register);
        Ok(register)
    }

    /// A register for the current instruction.
    pub(super) fn allocate(&mut self, hint: Option<R>) -> Result<R, Refused> {
        self.allocate_in(u16::MAX, hint)
    }

    /// Takes a register from the value that it holds, which goes to memory if it must.
    fn evict(&mut self, register: R, value: Val) -> Result<(), Refused> {
        let is_dead = self.plan.next_use(self.block, self.position, value).is_none();
        if !is_dead && self.constant(value).is_none() && !self.state.is_in_memory(value) {
            self.lessons.store_early.insert(value);
            self.store(register, value)?;
        }
        self.state.put(register, Val::NONE);
        Ok(())
    }

    /// Puts a value from its register to its cell as well.
    pub(super) fn store(&mut self, register: R, value: Val) -> Result<(), Refused> {
        let at = self.cell_of(value)?;
        self.asm.mov(W::B8, cell(at), register);
        self.state.set_in_memory(value);
        Ok(())
    }

    /// A certain register for the current instruction: what it holds goes elsewhere.
    pub(super) fn claim(&mut self, register: R) -> Result<(), Refused> {
        let value = self.state.value_in(register);
        if value.is_some() {
            let free = self.state.free().find(|free| self.busy & bit(*free) == 0);
            match free {
                Some(free) if self.plan.next_use(self.block, self.position, value).is_some() => {
                    self.asm.mov(W::B8, free, register);
                    self.state.put(free, value);
                    self.state.put(register, Val::NONE);
                }
                _ => self.evict(register, value)?,
            }
        }
        self.busy |= bit(register);
        Ok(())
    }

    /// Where a value would best be: where an edge or an exit wants it.
    pub(super) fn hint(&self, value: Val) -> Option<R> {
        let region = self.region;
        for edge in region.blocks[self.block].end.edges() {
            if let To::Block(to) = edge.to
                && let Some(entry) = &self.entries[to as usize]
                && let Some(at) = edge.args.iter().position(|arg| self.plan.root(*arg) == value)
                && let Some(register) = entry.register_of(region.blocks[to as usize].params[at])
            {
                return Some(register);
            }
        }
        let slot = self.plan.slot_of(value)?;
        self.frame.homes[usize::from(slot)]?.register
    }

    // ---- Operands ----------------------------------------------------------------------------------------------

    /// A value in a register, to be read.
    pub(super) fn read(&mut self, value: Val) -> Result<R, Refused> {
        let value = self.plan.root(value);
        if let Some(register) = self.state.register_of(value) {
            self.busy |= bit(register);
            return Ok(register);
        }
        let register = self.allocate(None)?;
        self.load_into(register, value)?;
        self.state.put(register, value);
        Ok(register)
    }

    /// A register's contents become those of a value; it does not count as the value's place.
    pub(super) fn load_into(&mut self, register: R, value: Val) -> Result<(), Refused> {
        match self.place(&self.state, value)? {
            From::Place(Place::Reg(from)) if from == register => {}
            From::Place(Place::Reg(from)) => self.asm.mov(W::B8, register, from),
            From::Place(Place::Cell(at)) => self.asm.load(W::B8, register, cell(at)),
            From::Constant(constant) => self.asm.set(register, constant),
        }
        Ok(())
    }

    /// A value to be read, from a register or memory.
    pub(super) fn operand(&mut self, value: Val) -> Result<Rm, Refused> {
        let value = self.plan.root(value);
        let soon = self.next_use(value).is_some_and(|far| far < 64);
        if self.state.register_of(value).is_none() && self.constant(value).is_none() && self.state.is_in_memory(value) && !soon {
            return Ok(Rm::Mem(cell(self.cells[value.index()])));
        }
        Ok(Rm::Reg(self.read(value)?))
    }

    /// A value to be read in width `w`, from anywhere.
    pub(super) fn source(&mut self, value: Val, w: W) -> Result<Source, Refused> {
        match self.immediate(value, w) {
            Some(value) => Ok(Source::Imm(value)),
            None => Ok(Source::Rm(self.operand(value)?)),
        }
    }

    /// A register with the contents of `value` that the current instruction will change into `result`.
    pub(super) fn change(&mut self, value: Val, result: Val) -> Result<R, Refused> {
        let value = self.plan.root(value);
        if let Some(register) = self.state.register_of(value)
            && self.dies(value)
        {
            self.busy |= bit(register);
            self.state.put(register, Val::NONE);
            return Ok(register);
        }
        // Reading first keeps the value's own register from being given away.
        if let Some(register) = self.state.register_of(value) {
            self.busy |= bit(register);
        }
        let hint = self.hint(result);
        let register = self.allocate(hint)?;
        self.load_into(register, value)?;
        Ok(register)
    }

    /// A certain register with a copy of a value that the current instruction will spoil. `keep`: another of its operands is
    /// the same value.
    pub(super) fn copy_into(&mut self, register: R, value: Val, keep: bool) -> Result<(), Refused> {
        let value = self.plan.root(value);
        if self.state.value_in(register) != value {
            self.claim(register)?;
            return self.load_into(register, value);
        }
        if self.dies(value) && !keep {
            self.state.put(register, Val::NONE);
            self.busy |= bit(register);
            return Ok(());
        }
        // It moves elsewhere or to memory; its old register keeps the contents.
        self.claim(register)
    }

    /// The register holds a new value from now on.
    pub(super) fn define(&mut self, register: R, value: Val) -> Result<(), Refused> {
        self.state.put(register, value);
        self.state.forget_memory(value);
        if self.lessons.store_early.contains(&value) {
            self.store(register, value)?;
        }
        Ok(())
    }

    // ---- Small things ------------------------------------------------------------------------------------------

    /// The width of a type.
    pub(super) fn width(&self, value: Val) -> Result<W, Refused> {
        let inst = self.region.def(value);
        width_of(inst.ty).ok_or(Refused::Width(inst.op, inst.ty))
    }
}

/// The width of an integer type.
pub(super) fn width_of(ty: Ty) -> Option<W> {
    match ty {
        Ty::I8 | Ty::Bool => Some(W::B1),
        Ty::I16 => Some(W::B2),
        Ty::I32 => Some(W::B4),
        Ty::I64 => Some(W::B8),
        _ => None,
    }
}
