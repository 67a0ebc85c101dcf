//! Forming a region: finds the blocks that can be reached from an entry by direct branches, and by indirect jumps as far as is
//! known where they lead ([`Targets`]), lifts each, and puts them together.
//!
//! A region stays within the pages that its caller has bytes of, and within [`MAX_INSTRUCTIONS`]. Where it ends (a page without
//! bytes, an instruction that is the interpreter's, one too many) an exit leads to the pc there.

use super::super::cpuid::InstructionSets;
use super::super::decode::{Decoded, MAX_BYTES, decode};
use super::super::op::{Op, OpFlags};
use super::{LiftMode, SLOTS, lift};
use crate::ir::ops::Effects;
use crate::ir::region::{self, BlockId, Code, Edge, Exit, GuestState, Region, RegionBlock, Terminator, To};
use crate::ir::{self, Block, FlagSet, NO_SNAPSHOT, Ty, Val};
use iced_x86::{FlowControl, Mnemonic};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Most guest instructions of a region.
pub(crate) const MAX_INSTRUCTIONS: usize = 500;
/// Most guest instructions of one block: as many as a block's numbers can hold, and no more than are worth a look at once.
const MAX_BLOCK: usize = 200;
const PAGE: usize = 4096;
/// Most targets that are guessed.
const MOST_GUESSED: usize = 4;

/// The region of all that can be reached from `entry`, an offset in a flat CS. `page` gives the bytes of the page at an offset,
/// if the region may reach into it. Nothing comes of code that begins with something for the interpreter.
pub(crate) fn form_region<'a>(
    entry: u64,
    mode: LiftMode,
    sets: &InstructionSets,
    page: impl FnMut(u64) -> Option<&'a [u8; PAGE]>,
) -> Option<Region> {
    let flow = Flow::explore(entry, mode, sets, Targets::Guessed(Vec::new()), page);
    flow.region(entry, &flow.leaders)
}

/// Where indirect jumps lead, as far as that is known. What is wrong here only costs time.
#[derive(Debug)]
pub(crate) enum Targets {
    /// What has been seen: by the place of a jump in its page the pcs, frequent ones first.
    Seen(BTreeMap<u32, Vec<u64>>),
    /// For tests, which have seen nothing: wherever some RIP-relative LEA points that has been found.
    Guessed(Vec<u64>),
}

impl Targets {
    fn of(&self, jump: u64) -> &[u64] {
        match self {
            Self::Seen(seen) => seen.get(&(jump as u32 % PAGE as u32)).map_or(&[], Vec::as_slice),
            Self::Guessed(places) => places,
        }
    }
}

/// The instructions that can be reached from one, as blocks.
pub(crate) struct Flow {
    entry: u64,
    mode: LiftMode,
    targets: Targets,
    /// Decoded instructions by their pc.
    ops: BTreeMap<u64, Op>,
    /// Where blocks begin, in the order in which they were found.
    leaders: Vec<u64>,
}

/// A loop with those inside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoopAround {
    /// The first instruction of its head.
    pub head: u64,
    /// The first instructions of its blocks, the head's among them.
    blocks: Vec<u64>,
}

struct Exploring<'s, F> {
    flow: Flow,
    /// What the CPU has.
    sets: &'s InstructionSets,
    page: F,
}

impl<'a, F: FnMut(u64) -> Option<&'a [u8; PAGE]>> Exploring<'_, F> {
    fn explore(&mut self) {
        let mut open = VecDeque::from([self.flow.entry]);
        while let Some(leader) = open.pop_front() {
            if self.flow.leaders.contains(&leader) || !self.flow.is_canonical(leader) {
                continue;
            }
            self.flow.leaders.push(leader);
            let (mut pc, mut count) = (leader, 0);
            while !self.flow.ops.contains_key(&pc) && self.flow.ops.len() < MAX_INSTRUCTIONS {
                let Some(op) = self.decode(pc) else { break };
                self.flow.ops.insert(pc, op);
                self.guess(pc, &op);
                let (ways, ends) = self.flow.ways(pc, &op);
                pc = self.flow.behind(pc, &op);
                open.extend(ways);
                if ends {
                    break;
                }
                count += 1;
                if count == MAX_BLOCK {
                    open.push_back(pc);
                    break;
                }
            }
        }
    }

    fn guess(&mut self, pc: u64, op: &Op) {
        let there = op.disp;
        if let Targets::Guessed(places) = &mut self.flow.targets
            && op.code.mnemonic() == Mnemonic::Lea
            && op.flags.contains(OpFlags::RIP_RELATIVE)
            && there / PAGE as u64 == pc / PAGE as u64
            && !places.contains(&there)
            && places.len() < MOST_GUESSED
        {
            places.push(there);
        }
    }

    /// The instruction at `pc`, if all its bytes are there.
    fn decode(&mut self, pc: u64) -> Option<Op> {
        let size = self.flow.mode.code_size;
        let (base, from) = (pc & !(PAGE as u64 - 1), pc as usize % PAGE);
        let first = (self.page)(base)?;
        if let Decoded::Op(op) = decode(&first[from..], size, pc, self.sets) {
            return Some(op);
        }
        let next = self.flow.cut(base.wrapping_add(PAGE as u64));
        let second = (self.page)(next)?;
        let mut bytes = [0; MAX_BYTES];
        let here = (PAGE - from).min(MAX_BYTES);
        bytes[..here].copy_from_slice(&first[from..from + here]);
        bytes[here..].copy_from_slice(&second[..MAX_BYTES - here]);
        match decode(&bytes, size, pc, self.sets) {
            Decoded::Op(op) => Some(op),
            Decoded::Incomplete => None,
        }
    }
}

impl Flow {
    /// What can be reached from `entry` in the pages whose bytes `page` gives.
    pub fn explore<'a>(
        entry: u64,
        mode: LiftMode,
        sets: &InstructionSets,
        targets: Targets,
        page: impl FnMut(u64) -> Option<&'a [u8; PAGE]>,
    ) -> Self {
        let flow = Self { entry, mode, targets, ops: BTreeMap::new(), leaders: Vec::new() };
        let mut exploring = Exploring { flow, sets, page };
        exploring.explore();
        exploring.flow
    }

    fn behind(&self, pc: u64, op: &Op) -> u64 {
        self.cut(pc.wrapping_add(op.len.into()))
    }

    /// Where the instruction at `pc` leads, if it is a branch within the region. And whether its block ends with it.
    fn ways(&self, pc: u64, op: &Op) -> (Vec<u64>, bool) {
        match op.code.flow_control() {
            FlowControl::ConditionalBranch => (vec![self.behind(pc, op), op.imm], true),
            FlowControl::UnconditionalBranch if op.code.is_jmp_short_or_near() => (vec![op.imm], true),
            FlowControl::IndirectBranch if op.code.is_jmp_near_indirect() => (self.targets.of(pc).to_vec(), true),
            _ => (Vec::new(), op.flags.contains(OpFlags::LAST)),
        }
    }

    // ---- Loops -------------------------------------------------------------------------------------------------

    /// The loops that the entry lies in, those around others first, as far as they have no more than `most` instructions; the
    /// last, whatever its size, is the one whose head it is.
    ///
    /// Compilers put a loop's head in front of what is in it, so of several instructions that branches lead back to the first
    /// is taken for the outermost head. Where that is not so the loops are others, but loops all the same.
    pub fn loops_around(&self, most: usize) -> Vec<LoopAround> {
        let blocks: HashMap<u64, (usize, Vec<u64>)> =
            self.leaders.iter().map(|leader| (*leader, self.block_at(*leader))).collect();
        let all = cycle(&blocks, self.entry, |_| true);
        let mut heads: Vec<u64> =
            all.iter().flat_map(|from| blocks[from].1.iter().filter(move |to| *to <= from)).copied().collect();
        heads.retain(|head| all.contains(head) && *head <= self.entry);
        heads.sort_unstable();
        heads.dedup();
        let around = heads.iter().map(|head| {
            // What is around it is not in it.
            let blocks = cycle(&blocks, *head, |block| block == *head || !(heads.contains(&block) && block < *head));
            LoopAround { head: *head, blocks }
        });
        let size = |of: &LoopAround| of.blocks.iter().map(|block| blocks[block].0).sum::<usize>();
        let fits = |of: &LoopAround| of.head == self.entry || size(of) <= most;
        around.filter(|of| of.blocks.contains(&self.entry) && fits(of)).collect()
    }

    /// How many instructions the block at a leader has, and where it leads.
    fn block_at(&self, leader: u64) -> (usize, Vec<u64>) {
        let ops = self.run(leader);
        let to = match ops.split_last() {
            Some((last, before)) => {
                let pc = before.iter().fold(leader, |pc, op| self.behind(pc, op));
                match self.ways(pc, last) {
                    (ways, true) => ways,
                    (_, false) => vec![self.behind(pc, last)],
                }
            }
            None => Vec::new(),
        };
        (ops.len(), to.into_iter().filter(|to| self.leaders.contains(to)).collect())
    }

    /// The region of a loop.
    pub fn loop_region(&self, of: &LoopAround) -> Option<Region> {
        self.region(of.head, &of.blocks)
    }

    // ---- Putting together --------------------------------------------------------------------------------------

    fn cut(&self, pc: u64) -> u64 {
        if self.mode.is_64_bit() { pc } else { pc & 0xffff_ffff }
    }

    fn is_canonical(&self, pc: u64) -> bool {
        !self.mode.is_64_bit() || super::super::cpu::is_canonical(pc)
    }

    /// The instructions of the block at a leader: up to a transfer, the next leader or the region's end.
    fn run(&self, leader: u64) -> Vec<Op> {
        let mut ops = Vec::new();
        let mut pc = leader;
        while let Some(op) = self.ops.get(&pc) {
            ops.push(*op);
            pc = self.cut(pc.wrapping_add(op.len.into()));
            let ends = op.code.flow_control() != FlowControl::Next || op.flags.contains(OpFlags::LAST);
            if ends || self.leaders.contains(&pc) || ops.len() == MAX_BLOCK {
                break;
            }
        }
        ops
    }

    /// The region of some blocks that begins at one of them. Where others follow it is left.
    fn region(&self, entry: u64, blocks: &[u64]) -> Option<Region> {
        let mut region = Region::new(SLOTS, entry, self.mode.pc_mask(), (entry % PAGE as u64) as u16);
        // Block 0 is the way in, which nobody takes again; the first behind it the entry's.
        let order = move || std::iter::once(entry).chain(blocks.iter().copied().filter(move |leader| *leader != entry));
        let numbers: HashMap<u64, BlockId> = order().zip(1..).collect();
        region.blocks.push(empty_block(0, Terminator::Jump(Edge::new(To::Block(1)))));
        for leader in order() {
            let block = lift(&self.run(leader), self.mode, leader, (leader % PAGE as u64) as u16);
            let last = block.guest.last().map_or(leader, |last| leader.wrapping_add(last.offset.into()));
            let targets = self.targets.of(self.cut(last));
            add_block(&mut region, &block, leader.wrapping_sub(entry), targets, |target| numbers.get(&target).copied());
        }
        if region.blocks[1].retired == 0 {
            return None;
        }
        finish(&mut region);
        Some(region)
    }
}

/// The blocks from which `head` can be reached that can be reached from it, as far as they are `allowed`: none if it is in no loop.
fn cycle(blocks: &HashMap<u64, (usize, Vec<u64>)>, head: u64, allowed: impl Fn(u64) -> bool) -> Vec<u64> {
    let reached = |start: u64, ways: &dyn Fn(u64) -> Vec<u64>| {
        let mut found = Vec::new();
        let mut open = ways(start);
        while let Some(block) = open.pop() {
            if !found.contains(&block) && allowed(block) {
                found.push(block);
                open.extend(ways(block));
            }
        }
        found
    };
    let before =
        |to: u64| -> Vec<u64> { blocks.iter().filter(|(_, block)| block.1.contains(&to)).map(|(from, _)| *from).collect() };
    let back = reached(head, &before);
    let mut found = reached(head, &|from| blocks[&from].1.clone());
    found.retain(|block| back.contains(block));
    found.sort_unstable();
    found
}

fn empty_block(pc: u64, end: Terminator) -> RegionBlock {
    RegionBlock { params: Vec::new(), body: Vec::new(), end, pc, retired: 0, depth: 0, weight: 0 }
}

/// Adds a lifted block that begins `displacement` from the region's start, up to the first instruction that is the interpreter's.
/// `targets`: where its end leads, if that is an indirect jump.
fn add_block(region: &mut Region, block: &Block, displacement: u64, targets: &[u64], find: impl Fn(u64) -> Option<BlockId>) {
    let first = region.insts.len() as u32;
    let first_snapshot = region.snapshots.len();
    let moved = |value: Val| if value.is_some() { Val(value.0 + first) } else { value };
    for snapshot in &block.snapshots {
        let pc = displacement.wrapping_add(block.guest[usize::from(snapshot.instruction)].offset.into());
        region.snapshots.push(state_at(pc, snapshot.instruction));
    }
    let mut added = empty_block(displacement, Terminator::Jump(Edge::new(To::Exit(0))));
    added.retired = block.guest.len() as u16;
    let mut end = None;
    for (at, inst) in block.insts.iter().enumerate() {
        let effects = inst.op.info().effects;
        if inst.op == ir::Op::CallInterp || inst.op == ir::Op::Bail {
            let number = match block.snapshots.get(usize::from(inst.snapshot)) {
                Some(snapshot) => snapshot.instruction,
                None => inst.imm as u16,
            };
            added.retired = number;
            end = Some(number);
            break;
        }
        if effects.contains(Effects::ENDS_BLOCK) {
            break;
        }
        let imm = if inst.op == ir::Op::Pc { inst.imm.wrapping_add(displacement) } else { inst.imm };
        let snapshot =
            if inst.snapshot == NO_SNAPSHOT { NO_SNAPSHOT } else { (first_snapshot + usize::from(inst.snapshot)) as u16 };
        let value = region.add(ir::Inst { args: inst.args.map(moved), imm, snapshot, ..*inst });
        debug_assert_eq!(value.0, first + at as u32);
        if inst.op != ir::Op::Nop {
            added.body.push(value);
        }
    }
    let bytes = match end {
        Some(number) => u64::from(block.guest[usize::from(number)].offset),
        None => block.bytes(),
    };
    if bytes != 0 {
        region.code.push(Code { pc: displacement, len: bytes as u32 });
    }
    let back = displacement.wrapping_add(bytes);
    let block_is_empty = bytes == 0;
    let way = |region: &mut Region, target: u64| {
        let pc = displacement.wrapping_add(target);
        // A block of nothing (its bytes are not there) must not go on at itself.
        Edge::new(match find(region.target(pc)) {
            Some(block) if !block_is_empty => To::Block(block),
            _ => exit(region, ir::Op::Jump, Val::NONE, pc, 0),
        })
    };
    let last = block.insts.iter().rfind(|inst| inst.op != ir::Op::Nop).filter(|_| end.is_none());
    added.end = match last.map(|last| (last.op, *last)) {
        None => Terminator::Jump(Edge::new(exit(region, ir::Op::Jump, Val::NONE, back, 0))),
        Some((ir::Op::Branch, last)) => {
            let (taken, not_taken) = (way(region, last.imm), way(region, bytes));
            Terminator::Branch { condition: moved(last.args[0]), taken, not_taken }
        }
        Some((ir::Op::Jump, last)) => Terminator::Jump(way(region, last.imm)),
        Some((ir::Op::Call, last)) => {
            let pc = displacement.wrapping_add(last.imm);
            Terminator::Jump(Edge::new(exit(region, ir::Op::Call, Val::NONE, pc, back)))
        }
        Some((ir::Op::JumpIndirect, last)) if targets.iter().any(|target| find(*target).is_some()) => {
            let way = |target: &u64| Some((target.wrapping_sub(region.pc), Edge::new(To::Block(find(*target)?))));
            let ways = targets.iter().filter_map(way).collect();
            let target = moved(last.args[0]);
            Terminator::Switch { target, ways, otherwise: Edge::new(exit(region, last.op, target, 0, 0)) }
        }
        Some((op, last)) => {
            let back = if op == ir::Op::CallIndirect { back } else { 0 };
            Terminator::Jump(Edge::new(exit(region, op, moved(last.args[0]), 0, back)))
        }
    };
    region.blocks.push(added);
}

fn state_at(pc: u64, retired: u16) -> GuestState {
    GuestState { pc, retired, flags: Val::NONE, slots: 0..0 }
}

fn exit(region: &mut Region, op: ir::Op, target: Val, pc: u64, back: u64) -> To {
    region.exits.push(Exit { op, target, back, need: FlagSet::all(), state: state_at(pc, 0) });
    To::Exit(region.exits.len() as u32 - 1)
}

/// Drops what cannot be reached, and puts polls on ways back.
fn finish(region: &mut Region) {
    region::arrange(region);
    add_polls(region);
    region::arrange(region);
    if cfg!(debug_assertions)
        && let Err(why) = region::verify::verify(region)
    {
        panic!("a region was formed wrongly: {why}");
    }
}

/// A block with a poll in every way back. Blocks must be in reverse postorder.
fn add_polls(region: &mut Region) {
    for from in 0..region.blocks.len() {
        for at in 0..region.blocks[from].end.edges().count() {
            let Some(To::Block(to)) = region.blocks[from].end.edges().nth(at).map(|edge| edge.to) else { continue };
            if to as usize > from {
                continue;
            }
            let pc = region.blocks[to as usize].pc;
            region.snapshots.push(state_at(pc, 0));
            let snapshot = (region.snapshots.len() - 1) as u16;
            let poll = region.add(ir::Inst { snapshot, ..ir::Inst::new(ir::Op::Poll, Ty::None) });
            let between = region.blocks.len() as BlockId;
            region.blocks.push(empty_block(pc, Terminator::Jump(Edge::new(To::Block(to)))));
            region.blocks[between as usize].body.push(poll);
            if let Some(edge) = region.blocks[from].end.edges_mut().nth(at) {
                edge.to = To::Block(between);
            }
        }
    }
}
