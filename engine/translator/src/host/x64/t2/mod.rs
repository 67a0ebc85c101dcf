//! The optimising tier's back end: a region ([`crate::ir::region`]) becomes code of an x86-64 host.
//!
//! It knows nothing of any guest. A [`Frame`] says where the guest's slots, flags and tables are, [`Ways`] writes what is done
//! where the region is left; there everything is where the block translator has it, so that code of both links.
//!
//! * `plan.rs`: how flags are delivered, and how far away each value's next use is.
//! * `registers.rs`: which values are in registers, and whom to evict.
//! * `select.rs`, `memory.rs`, `streams.rs`: the instructions; `native.rs`, `gather.rs`: vector instructions, which are the
//!   guest's own.
//! * `edges.rs`, `moves.rs`: from block to block; `retired.rs`: where guest instructions are counted.
//! * `leave.rs`: bails and exits, all of them out of the way.
//!
//! # Registers
//! Blocks are written in order, in one walk in which values get registers as they are needed: of fourteen, all but RSP and RBP.
//! Where none is free the value whose next use is farthest away goes to its cell in memory (constants go nowhere: they are made
//! again). What a block finds where is settled by the first edge that leads to it; the others move values there. A value that
//! turns out not to fit is stored where it is defined, and a value that a loop has no room for enters it in memory: both are
//! known only afterwards, so the region is written again, a few times at most, with what has been learnt ([`Lessons`]).

mod edges;
mod gather;
mod leave;
mod memory;
mod moves;
mod native;
mod plan;
mod registers;
mod retired;
mod select;
mod streams;
#[cfg(test)]
pub(crate) mod text;

use super::asm::{self, Asm, Label, Mem, R, X};
use crate::ir::region::{BlockId, Exit, Region};
use crate::ir::{Op, Ty, Val};
use plan::Plan;
use registers::{Lessons, State};

/// Where a slot is while nobody executes a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Home {
    /// The register that holds it, if one does.
    pub register: Option<R>,
    /// Its place in memory, from RBP; where a register holds it this may be anything and is free to use.
    pub memory: i32,
}

/// Where everything is. Distances are from RBP.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// By slot. Registers may be any but RSP, RBP, RAX, RCX, RDX. `None`: regions with this slot are refused.
    pub homes: Vec<Option<Home>>,
    /// The guest's flags, packed: LAHF's byte in bits 8–15, OF in bit 0.
    pub flags: i32,
    /// Counted down with each retired guest instruction: 8 bytes. Below zero it is time to look at the attention word.
    pub countdown: i32,
    /// By how much it is set up again then,
    pub interval: i32,
    /// and this, too: a count of retired guest instructions, less what is still to be counted down.
    pub retired: i32,
    /// Cells of 8 bytes that are free to use, and how many.
    pub cells: i32,
    pub cell_count: usize,
    /// A pointer to the attention word, 4 bytes: not zero when the vCPU is wanted.
    pub attention: i32,
    /// The pc of the page's first byte, wherever the region is executed: 8 bytes.
    pub page: i32,
    /// Room for three vector registers of 32 bytes.
    pub gather: i32,
    /// The host has BMI2.
    pub bmi2: bool,
    /// The tables that probes look at (see `mmu/tlb.rs`), for reading and for writing.
    pub tables: [i32; 2],
    /// Where the stubs are that are asked for what the tables do not have (see `host/x64/refill.rs`).
    pub refills: [u64; 2],
}

/// How code leaves a region. All that is written is out of the way; RAX, RCX and RDX may be spoilt.
pub(crate) trait Ways {
    /// Has somebody else execute the instruction at `pc` (from the region's start) and what follows.
    fn bail(&mut self, asm: &mut Asm, pc: u64);
    /// The vCPU is wanted; then it goes on at `pc`.
    fn poll(&mut self, asm: &mut Asm, pc: u64);
    /// Leaves by an exit. An indirect one finds its target in RAX.
    fn exit(&mut self, asm: &mut Asm, exit: &Exit);
}

/// Why there is no code for a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// An operation that is not known.
    Operation(Op),
    /// An operation that is not known in this width.
    Width(Op, Ty),
    /// A slot without a home.
    Slot(u8),
    /// More values in memory than there are cells.
    Cells,
    /// A `FlagsOf` whose instruction does not stand before it.
    FlagsAreLate,
    /// A value that is in no place: a mistake in the region.
    Lost(Val),
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Operation(op) => write!(f, "{op:?} is not known"),
            Self::Width(op, ty) => write!(f, "{op:?}.{} is not known", ty.name()),
            Self::Slot(slot) => write!(f, "slot {slot} has no home"),
            Self::Cells => f.write_str("too many values in memory"),
            Self::FlagsAreLate => f.write_str("flags away from their instruction"),
            Self::Lost(value) => write!(f, "{value:?} is nowhere"),
        }
    }
}

/// What a branch out of the way needs to know of the place that it comes from.
struct Cold {
    label: Label,
    state: State,
    /// The token in the host's flags.
    host_flags: Val,
    block: BlockId,
    kind: ColdKind,
}

enum ColdKind {
    /// An instruction's snapshot, by number: bails.
    Bail(u16),
    /// It is time to look at the attention word: goes on, or does the same with nothing interpreted.
    Poll(u16, Label),
    /// An exit, by number.
    Exit(u32),
    /// The same, but the target has yet to be checked by this.
    Otherwise(u32, Option<Val>),
    /// An edge that needs moves, or to count: goes on at a block.
    Edge { to: BlockId, moves: Vec<moves::Move>, retired: i32 },
    /// A stream has left its page.
    Left(memory::LeftPage),
    /// Not all elements of a gather are wanted.
    Gather(gather::Rest),
    /// Vector registers get back what they were, then the instruction bails.
    Undo { registers: [(X, Mem); 2], bail: Label },
    /// The table does not have a page.
    Missed(memory::Missed),
}

/// A region on its way to code.
struct Emitter<'a, W: Ways> {
    asm: Asm,
    region: &'a Region,
    frame: &'a Frame,
    plan: &'a Plan<'a>,
    ways: &'a mut W,
    lessons: &'a mut Lessons,
    state: State,
    /// Each value's cell in memory (0: none yet); the last ones are those of slots that no parameter brings.
    cells: Vec<i32>,
    cells_used: usize,
    /// Registers that the current instruction needs as they are.
    busy: u16,
    /// The token whose flags are the host's.
    host_flags: Val,
    block: usize,
    position: u32,
    labels: Vec<Label>,
    /// What is where at each block's start, once an edge has settled it.
    entries: Vec<Option<State>>,
    cold: Vec<Cold>,
}

/// Most times that a region is written for what the last time taught.
const ROUNDS: usize = 6;

/// Writes the code of a region in SSA form, all passes done. `begin` gives where it goes, behind whatever has been put there
/// before; it is called for each time that the region is written.
///
/// # Errors
/// When there is something in it that is not known, or too much of it.
pub(crate) fn emit<W: Ways>(region: &Region, frame: &Frame, mut begin: impl FnMut() -> (Asm, W)) -> Result<(Asm, W), Refused> {
    let untouched = untouched(region, frame)?;
    let plan = Plan::new(region, untouched)?;
    let mut lessons = Lessons::default();
    for round in 1.. {
        let learnt = lessons.count();
        let (asm, mut ways) = begin();
        let emitter = Emitter::new(asm, region, frame, &plan, &mut ways, &mut lessons);
        let asm = emitter.write()?;
        if lessons.count() == learnt || round == ROUNDS {
            return Ok((asm, ways));
        }
    }
    unreachable!("the loop ends by itself")
}

/// For each slot with a register the value that it holds at the entry: the parameter that brings it, or one of its own behind
/// all values of the region.
fn untouched(region: &Region, frame: &Frame) -> Result<Vec<Val>, Refused> {
    let first = region.insts.len() as u32;
    let mut values: Vec<Val> = frame
        .homes
        .iter()
        .enumerate()
        .map(|(slot, home)| match home {
            Some(Home { register: Some(_), .. }) => Val(first + slot as u32),
            _ => Val::NONE,
        })
        .collect();
    for param in &region.blocks[0].params {
        let inst = region.def(*param);
        if inst.ty == Ty::Flags {
            continue;
        }
        let home = frame.homes.get(inst.imm as usize).copied().flatten().ok_or(Refused::Slot(inst.imm as u8))?;
        if home.register.is_some() {
            values[inst.imm as usize] = *param;
        }
    }
    Ok(values)
}

impl<'a, W: Ways> Emitter<'a, W> {
    fn new(
        mut asm: Asm,
        region: &'a Region,
        frame: &'a Frame,
        plan: &'a Plan<'a>,
        ways: &'a mut W,
        lessons: &'a mut Lessons,
    ) -> Self {
        let values = region.insts.len() + frame.homes.len();
        let labels = region.blocks.iter().map(|_| asm.label()).collect();
        Self {
            asm,
            region,
            frame,
            plan,
            ways,
            lessons,
            state: State::new(values),
            cells: vec![0; values],
            // The first three are for whoever leaves.
            cells_used: leave::SCRATCH_CELLS + 2 * plan.streams.count,
            busy: 0,
            host_flags: Val::NONE,
            block: 0,
            position: 0,
            labels,
            entries: region.blocks.iter().map(|_| None).collect(),
            cold: Vec::new(),
        }
    }

    /// Everything.
    fn write(mut self) -> Result<Asm, Refused> {
        self.enter();
        self.forget_streams();
        for number in 0..self.region.blocks.len() {
            self.write_block(number)?;
        }
        while !self.cold.is_empty() {
            for cold in std::mem::take(&mut self.cold) {
                self.write_cold(cold)?;
            }
        }
        Ok(self.asm)
    }

    /// What is where as the region is entered.
    fn enter(&mut self) {
        let mut state = State::new(self.region.insts.len() + self.frame.homes.len());
        for (slot, home) in self.frame.homes.iter().enumerate() {
            let Some(Home { register: Some(register), memory }) = *home else { continue };
            let value = self.plan.at_entry(slot);
            state.put(register, value);
            self.cells[value.index()] = memory;
        }
        for param in &self.region.blocks[0].params {
            let inst = self.region.def(*param);
            if inst.ty == Ty::Flags {
                self.cells[param.index()] = self.frame.flags;
                state.set_in_memory(*param);
            } else if let Some(Home { register: None, memory }) = self.frame.homes[inst.imm as usize] {
                self.cells[param.index()] = memory;
                state.set_in_memory(*param);
            }
        }
        self.entries[0] = Some(state);
    }

    /// Counts guest instructions.
    fn add_retired(&mut self, count: i32) {
        if count != 0 {
            let countdown = moves::cell(self.frame.countdown);
            self.asm.alu_imm(asm::Alu::Sub, asm::W::B8, countdown, count);
        }
    }

    fn write_block(&mut self, number: usize) -> Result<(), Refused> {
        let region = self.region;
        let block = &region.blocks[number];
        let Some(state) = self.entries[number].clone() else { return Ok(()) };
        (self.state, self.block, self.position, self.host_flags) = (state, number, 0, Val::NONE);
        self.asm.bind(self.labels[number]);
        self.add_retired(self.plan.retired.at_start(number as BlockId) as i32);
        let (mut skip, late) = (0, self.plan.late_check(block));
        for (at, value) in block.body.iter().enumerate() {
            self.position = at as u32;
            self.busy = 0;
            if late == Some(*value) {
                // `write_end` sees to it.
            } else if skip > 0 {
                skip -= 1;
            } else {
                skip = self.write_inst(*value, &block.body[at + 1..])?;
            }
            self.forget_dead(at as u32 + 1);
        }
        (self.position, self.busy) = (block.body.len() as u32, 0);
        self.write_end()
    }
}
