//! Forming a region: finds the blocks that can be reached from an entry by direct branches, and by indirect jumps as far as is
//! known where they lead ([`Targets`]), lifts each, and puts them together.
//!
//! Calls are branches that push an address, if the region may reach into the page of the function. A RET leads to where the
//! calls of the function that it belongs to return to, so that a recursive function is a loop. What really comes from the stack
//! is compared with these, and the region is left if it is none of them.
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
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// Most guest instructions of a region.
pub(crate) const MAX_INSTRUCTIONS: usize = 500;
/// Most guest instructions of one block: as many as a block's numbers can hold, and no more than are worth a look at once.
const MAX_BLOCK: usize = 200;
const PAGE: usize = 4096;
/// Most targets that are guessed.
const MOST_GUESSED: usize = 4;
/// Most places that one RET leads to.
const MOST_RETURNS: usize = 8;

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
    /// Calls of functions in the region, by their pcs.
    calls: BTreeMap<u64, Call>,
    /// Where each RET leads.
    returns: BTreeMap<u64, Vec<u64>>,
}

/// A block of the flow.
struct Found {
    instructions: usize,
    /// Its last instruction.
    last: u64,
    /// Where it leads: leaders.
    ways: Vec<u64>,
}

/// A direct call.
#[derive(Debug, Clone, Copy)]
struct Call {
    function: u64,
    /// Where it returns to.
    back: u64,
    /// It may be executed before the function has returned to it: the way back of a recursion.
    recurs: bool,
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
        // Functions that are called, and what follows calls: there may be room for them or not.
        let mut later = VecDeque::new();
        let mut open = VecDeque::from([self.flow.entry]);
        while let Some(leader) = open.pop_front().or_else(|| later.pop_front()) {
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
                let behind = self.flow.behind(pc, &op);
                let call = Call { function: op.imm, back: behind, recurs: false };
                if op.code.is_call_near() && self.is_here(call.function) && self.is_here(call.back) {
                    self.flow.calls.insert(pc, call);
                    later.extend([call.function, call.back]);
                }
                pc = behind;
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

    /// Whether the region may reach to a place.
    fn is_here(&mut self, pc: u64) -> bool {
        self.flow.is_canonical(pc) && (self.page)(pc & !(PAGE as u64 - 1)).is_some()
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
        let (ops, calls, returns) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let flow = Self { entry, mode, targets, ops, leaders: Vec::new(), calls, returns };
        let mut exploring = Exploring { flow, sets, page };
        exploring.explore();
        exploring.flow.match_returns();
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
            FlowControl::Call => (self.calls.get(&pc).map(|call| call.function).into_iter().collect(), true),
            FlowControl::Return => (self.returns.get(&pc).cloned().unwrap_or_default(), true),
            _ => (Vec::new(), op.flags.contains(OpFlags::LAST)),
        }
    }

    // ---- Functions ---------------------------------------------------------------------------------------------

    /// Finds where functions return to: what can be reached from where they begin, with calls passed over, is theirs.
    fn match_returns(&mut self) {
        let functions: BTreeSet<u64> = self.calls.values().map(|call| call.function).collect();
        let blocks = self.blocks();
        let lasts = |leaders: BTreeSet<u64>| -> BTreeSet<u64> { leaders.iter().map(|leader| blocks[leader].last).collect() };
        let mut returns: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for function in functions {
            for pc in lasts(reached(vec![function], |leader| self.ways_down(&blocks[&leader], false), |_| true)) {
                if self.ops.get(&pc).is_some_and(|op| op.code.flow_control() == FlowControl::Return) {
                    let backs = self.calls.values().filter(|call| call.function == function).map(|call| call.back);
                    returns.entry(pc).or_default().extend(backs);
                }
            }
            let inside = lasts(reached(vec![function], |leader| self.ways_down(&blocks[&leader], true), |_| true));
            let calls = self.calls.iter_mut().filter(|(pc, call)| call.function == function && inside.contains(pc));
            calls.for_each(|(_, call)| call.recurs = true);
        }
        for backs in returns.values_mut() {
            backs.sort_unstable();
            backs.dedup();
            backs.truncate(MOST_RETURNS);
        }
        self.returns = returns;
    }

    /// Where a block leads in its function, and, if calls are not to be passed over, in those that it calls.
    fn ways_down(&self, block: &Found, into_calls: bool) -> Vec<u64> {
        let called = if into_calls { &block.ways[..] } else { &[] };
        match self.calls.get(&block.last) {
            Some(call) => called.iter().copied().chain([call.back]).collect(),
            None if self.returns.contains_key(&block.last) => Vec::new(),
            None => block.ways.clone(),
        }
    }

    // ---- Loops -------------------------------------------------------------------------------------------------

    /// The loops that the entry lies in, those around others first, as far as they have no more than `most` instructions; the
    /// last, whatever its size, is the one whose head it is.
    ///
    /// Compilers put a loop's head in front of what is in it, so of several instructions that branches lead back to the first
    /// is taken for the outermost head; but loops of functions are in those of their callers. Where that is not so the loops
    /// are others, but loops all the same.
    pub fn loops_around(&self, most: usize) -> Vec<LoopAround> {
        let blocks = self.blocks();
        let all = cycle(&blocks, self.entry, |_| true);
        let mut heads: Vec<u64> = all.iter().flat_map(|from| self.ways_back(*from, &blocks[from])).collect();
        heads.retain(|head| all.contains(head));
        let below = |head: &u64| reached(vec![*head], |leader| self.ways_down(&blocks[&leader], true), |_| true).len();
        heads.sort_by_cached_key(|head| (Reverse(below(head)), *head));
        heads.dedup();
        let around = heads.iter().enumerate().map(|(number, head)| {
            // What is around it is not in it.
            let blocks = cycle(&blocks, *head, |block| !heads[..number].contains(&block));
            LoopAround { head: *head, blocks }
        });
        let size = |of: &LoopAround| of.blocks.iter().map(|block| blocks[block].instructions).sum::<usize>();
        let fits = |of: &LoopAround| of.head == self.entry || size(of) <= most;
        around.filter(|of| of.blocks.contains(&self.entry) && fits(of)).collect()
    }

    /// Where the block at a leader leads back to: by jumps, or by calls that recur.
    fn ways_back(&self, leader: u64, block: &Found) -> Vec<u64> {
        let is_back = match self.calls.get(&block.last) {
            Some(call) => call.recurs,
            None => !self.returns.contains_key(&block.last),
        };
        block.ways.iter().copied().filter(|to| is_back && *to <= leader).collect()
    }

    /// All blocks by their leaders.
    fn blocks(&self) -> HashMap<u64, Found> {
        self.leaders.iter().map(|leader| (*leader, self.block_at(*leader))).collect()
    }

    fn block_at(&self, leader: u64) -> Found {
        let ops = self.run(leader);
        let Some((last, before)) = ops.split_last() else {
            return Found { instructions: 0, last: leader, ways: Vec::new() };
        };
        let pc = before.iter().fold(leader, |pc, op| self.behind(pc, op));
        let mut ways = match self.ways(pc, last) {
            (ways, true) => ways,
            (_, false) => vec![self.behind(pc, last)],
        };
        ways.retain(|to| self.leaders.contains(to));
        Found { instructions: ops.len(), last: pc, ways }
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
            let last = self.cut(block.guest.last().map_or(leader, |last| leader.wrapping_add(last.offset.into())));
            let targets = self.returns.get(&last).map_or_else(|| self.targets.of(last), Vec::as_slice);
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
fn cycle(blocks: &HashMap<u64, Found>, head: u64, allowed: impl Fn(u64) -> bool) -> Vec<u64> {
    let mut before: HashMap<u64, Vec<u64>> = HashMap::new();
    for (from, block) in blocks {
        block.ways.iter().for_each(|to| before.entry(*to).or_default().push(*from));
    }
    let into = |to: u64| before.get(&to).cloned().unwrap_or_default();
    let on = |from: u64| blocks[&from].ways.clone();
    let back = reached(into(head), into, &allowed);
    let found = reached(on(head), on, &allowed);
    found.intersection(&back).copied().collect()
}

/// What can be reached from some blocks, these included, as far as it is `allowed`.
fn reached(mut open: Vec<u64>, ways: impl Fn(u64) -> Vec<u64>, allowed: impl Fn(u64) -> bool) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    while let Some(block) = open.pop() {
        if allowed(block) && found.insert(block) {
            open.extend(ways(block));
        }
    }
    found
}

fn empty_block(pc: u64, end: Terminator) -> RegionBlock {
    RegionBlock { params: Vec::new(), body: Vec::new(), end, pc, retired: 0, depth: 0, weight: 0 }
}

/// Adds a lifted block that begins `displacement` from the region's start, up to the first instruction that is the interpreter's.
/// `targets`: where its end leads, if that is an indirect jump or a RET.
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
        Some((ir::Op::Call, last)) if find(region.target(displacement.wrapping_add(last.imm))).is_some() => {
            Terminator::Jump(way(region, last.imm))
        }
        Some((ir::Op::Call, last)) => {
            let pc = displacement.wrapping_add(last.imm);
            Terminator::Jump(Edge::new(exit(region, ir::Op::Call, Val::NONE, pc, back)))
        }
        Some((ir::Op::JumpIndirect | ir::Op::Ret, last)) if targets.iter().any(|target| find(*target).is_some()) => {
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
