//! Regions: what the optimising tier compiles at once, a loop or a function body of several blocks.
//!
//! A [`Region`] is a graph of [`RegionBlock`]s over one list of instructions, `insts`; a [`Val`] is a place in it. A block's
//! `body` says which of them it executes, in order; places that no body names are dead. Block 0 is the entry, nobody jumps to
//! it, and every block stands behind one of its predecessors (but for loops: reverse postorder). A block ends with a
//! [`Terminator`], whose [`Edge`]s lead to blocks or to [`Exit`]s.
//!
//! # Form
//! A region is *formed* with `GetSlot`, `SetSlot`, `GetFlags` and `SetFlags` as in a block of `ir/mod.rs`. [`ssa`] takes them
//! away: then slots and flags are values that blocks hand to each other by *parameters* ([`Op::Param`], `imm`: the slot it
//! brings, [`FLAGS`] or [`NO_SLOT`]), and the entry's parameters are the guest's slots as the region is entered (those that
//! anybody asks for; flags: as they are in the guest's state). All values are defined before their uses in every path
//! ("dominate" them). A parameter's arguments stand in the edges, at the same place.
//!
//! # Guest state
//! Inside a region nothing commits anything. A [`GuestState`] says what the guest's registers are at one point: where they are
//! not what they were at the region's entry, by slot and value; flags by their token (one whose `need` is empty is to be
//! *recovered* from its instruction's operands, which [`Region::recipe`] names and which therefore live as long); the pc; and
//! how many guest instructions of the block are retired by then. Exits have one and so has whatever may bail (`Inst::snapshot`
//! is its number in [`Region::snapshots`]): *a bail restores it and has the interpreter execute the instruction there*, as in a
//! block. So the sinking of state comes by itself: values are moved where the guest has them only where the region is left.
//!
//! # Flags
//! `need` is what the region's own code looks at on its way (`Cond`, `AddCarry`, `FlagsPack`, an edge's argument). Exits and
//! snapshots do not count: whoever leaves recovers. [`Exit::need`] says which flags anybody looks at behind the exit. A
//! `FlagsOf` stands directly behind its instruction in the body as long as its `need` is not empty; others may stand anywhere
//! behind it.
//!
//! # Polls
//! `Poll` stands on every way back in a loop. Where the vCPU is wanted the region is left with the state of its snapshot, and
//! *no* instruction is interpreted.
//!
//! # Memory
//! [`Op::Probe`] looks an address up and gives what makes a host address of it, its *addend*, for the bytes from `low` to
//! `high` around it ([`Span`]) with rights to read or write; `LoadVia` and `StoreVia` access memory by it and cannot fail. A
//! probe that cannot be satisfied bails. An addend holds until something with [`Effects::MMU`](super::Effects::MMU) or a taken
//! poll. `Load` and `Store` do both at once (vector instructions that are passed through, see [`native`](super::native), have
//! their probe from the start); none are left behind the pass that splits them, except with
//! [`MemoryAccess::aligned`](super::MemoryAccess::aligned).

pub(crate) mod eval;
pub(crate) mod pass;
pub(crate) mod print;
pub(crate) mod range;
pub(crate) mod ssa;
pub(crate) mod sum;
pub(crate) mod verify;

use super::{FlagSet, Inst, Op, SlotInfo, Ty, Val};
use std::ops::Range;

/// `Param`'s `imm`: it brings the guest's flags.
pub(crate) const FLAGS: u64 = 0xff;
/// `Param`'s `imm`: what it brings is not a slot.
pub(crate) const NO_SLOT: u64 = 0xfe;

/// A place in [`Region::blocks`].
pub(crate) type BlockId = u32;

/// Where an edge leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    Block(BlockId),
    /// A place in [`Region::exits`].
    Exit(u32),
}

/// A way from a block's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edge {
    pub to: To,
    /// One for each parameter of the block; none for an exit.
    pub args: Vec<Val>,
}

impl Edge {
    /// To where no parameters are.
    pub fn new(to: To) -> Self {
        Self { to, args: Vec::new() }
    }
}

/// How a block ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Terminator {
    Jump(Edge),
    Branch {
        /// A `Bool`. When it is a `Cond` nothing but instructions without effect on the host's flags should come between.
        condition: Val,
        taken: Edge,
        not_taken: Edge,
    },
    /// An indirect jump, some of whose targets are in the region.
    Switch {
        /// The pc that is jumped to.
        target: Val,
        /// Those in the region, by their distance from its start; the most frequent ones first.
        ways: Vec<(u64, Edge)>,
        /// All others.
        otherwise: Edge,
    },
}

impl Terminator {
    /// Its edges, the taken one first.
    pub fn edges(&self) -> impl Iterator<Item = &Edge> {
        let (ways, first, second): (&[(u64, Edge)], _, _) = match self {
            Self::Jump(edge) => (&[], edge, None),
            Self::Branch { taken, not_taken, .. } => (&[], taken, Some(not_taken)),
            Self::Switch { ways, otherwise, .. } => (ways, otherwise, None),
        };
        ways.iter().map(|(_, edge)| edge).chain(std::iter::once(first)).chain(second)
    }
    /// The same, to change them.
    pub fn edges_mut(&mut self) -> impl Iterator<Item = &mut Edge> {
        let (ways, first, second): (&mut [(u64, Edge)], _, _) = match self {
            Self::Jump(edge) => (&mut [], edge, None),
            Self::Branch { taken, not_taken, .. } => (&mut [], taken, Some(not_taken)),
            Self::Switch { ways, otherwise, .. } => (ways, otherwise, None),
        };
        ways.iter_mut().map(|(_, edge)| edge).chain(std::iter::once(first)).chain(second)
    }
    /// What it looks at to choose a way.
    pub fn looks_at(&self) -> Option<Val> {
        match self {
            Self::Jump(_) => None,
            Self::Branch { condition: value, .. } | Self::Switch { target: value, .. } => Some(*value),
        }
    }
    /// The same, to change it.
    pub fn looks_at_mut(&mut self) -> Option<&mut Val> {
        match self {
            Self::Jump(_) => None,
            Self::Branch { condition: value, .. } | Self::Switch { target: value, .. } => Some(value),
        }
    }
    /// The blocks it leads to.
    pub fn successors(&self) -> impl Iterator<Item = BlockId> {
        self.edges().filter_map(|edge| if let To::Block(block) = edge.to { Some(block) } else { None })
    }
}

/// A straight run of instructions.
#[derive(Debug, Clone)]
pub(crate) struct RegionBlock {
    /// `Param`s.
    pub params: Vec<Val>,
    pub body: Vec<Val>,
    pub end: Terminator,
    /// Its first guest instruction, from the region's start.
    pub pc: u64,
    /// Guest instructions that are retired when it has been run through.
    pub retired: u16,
    /// In how many loops it lies.
    pub depth: u8,
    /// How often it runs, as far as one can guess: 16 for each entry of the region.
    pub weight: u32,
}

/// What the guest's state is at one point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestState {
    /// From the region's start.
    pub pc: u64,
    /// Guest instructions of the block that are retired before it.
    pub retired: u16,
    /// The flags; [`Val::NONE`]: as they were at the region's entry, in the state.
    pub flags: Val,
    /// Which of [`Region::slot_values`]: slots that are not what they were at the region's entry.
    pub slots: Range<u32>,
}

/// A slot and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotValue {
    pub slot: u8,
    pub value: Val,
}

/// A way out of the region. All guest instructions of the block that leads to it are retired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    /// `Jump` or `Call` (to `state.pc`), `JumpIndirect`, `CallIndirect` or `Ret` (to `target`).
    pub op: Op,
    pub target: Val,
    /// Of calls: where they return to, from the region's start.
    pub back: u64,
    /// Flags that anybody behind it may look at.
    pub need: FlagSet,
    pub state: GuestState,
}

/// A run of guest bytes that the region was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code {
    /// From the region's start.
    pub pc: u64,
    /// Bytes.
    pub len: u32,
}

/// The bytes around an address for which a probe vouches: from `address + low` to, exclusively, `address + high`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub low: i32,
    pub high: i32,
}

impl Span {
    /// As a probe's `imm`.
    pub fn pack(self) -> u64 {
        u64::from(self.low as u32) | u64::from(self.high as u32) << 32
    }
    /// From a probe's `imm`.
    pub fn unpack(imm: u64) -> Self {
        Self { low: imm as u32 as i32, high: (imm >> 32) as u32 as i32 }
    }
    /// Both.
    pub fn union(self, other: Self) -> Self {
        Self { low: self.low.min(other.low), high: self.high.max(other.high) }
    }
    /// Whether the other lies in this one.
    pub fn contains(self, other: Self) -> bool {
        self.low <= other.low && other.high <= self.high
    }
}

/// A probe's `aux`: rights to read.
pub(crate) const PROBE_READ: u8 = 1;
/// A probe's `aux`: rights to write.
pub(crate) const PROBE_WRITE: u8 = 2;

/// A probe's `aux`: its instruction does not write, a later one will. Where rights to write are not at hand it bails, and
/// leaves no trace of a write.
pub(crate) const PROBE_RAISED: u8 = 4;

/// What the optimising tier compiles at once.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    pub insts: Vec<Inst>,
    pub blocks: Vec<RegionBlock>,
    pub exits: Vec<Exit>,
    pub snapshots: Vec<GuestState>,
    pub slot_values: Vec<SlotValue>,
    /// The guest's bytes.
    pub code: Vec<Code>,
    /// The pc of the first instruction.
    pub pc: u64,
    /// What a pc keeps: 64 or 32 bits.
    pub pc_mask: u64,
    /// Where in its page the first byte lies.
    pub page_offset: u16,
    /// The guest's registers.
    pub slots: &'static [SlotInfo],
    /// Whether slots and flags have become values.
    pub is_ssa: bool,
    /// By slot: what the first ones may hold when the region is entered. What is wrong here only costs time.
    pub guesses: Vec<u64>,
    /// Each probe vouches for what its own instruction accesses and no more: where probes that do more have failed too often,
    /// at the end of a page or for want of rights to write.
    pub cautious: bool,
}

impl Region {
    /// An empty region at `pc`.
    pub fn new(slots: &'static [SlotInfo], pc: u64, pc_mask: u64, page_offset: u16) -> Self {
        Self {
            insts: Vec::new(),
            blocks: Vec::new(),
            exits: Vec::new(),
            snapshots: Vec::new(),
            slot_values: Vec::new(),
            code: Vec::new(),
            pc,
            pc_mask,
            page_offset,
            slots,
            is_ssa: false,
            guesses: Vec::new(),
            cautious: false,
        }
    }

    /// The pc that lies `displacement` from the region's start.
    pub fn target(&self, displacement: u64) -> u64 {
        self.pc.wrapping_add(displacement) & self.pc_mask
    }

    /// The instruction that defines a value.
    pub fn def(&self, value: Val) -> &Inst {
        &self.insts[value.index()]
    }

    /// The number, if a value is a constant, cut to its width.
    pub fn constant(&self, value: Val) -> Option<u64> {
        let def = self.insts.get(value.index())?;
        (def.op == Op::Const).then(|| def.imm & def.ty.mask())
    }

    /// A new instruction, in no block yet.
    pub fn add(&mut self, inst: Inst) -> Val {
        let at = Val(self.insts.len() as u32);
        self.insts.push(inst);
        at
    }

    /// A new parameter of a block; its arguments are up to the caller.
    pub fn add_param(&mut self, block: BlockId, ty: Ty, slot: u64) -> Val {
        let param = self.add(Inst { imm: slot, ..Inst::new(Op::Param, ty) });
        self.blocks[block as usize].params.push(param);
        param
    }

    /// A state's slots.
    pub fn slots_of(&self, state: &GuestState) -> &[SlotValue] {
        &self.slot_values[state.slots.start as usize..state.slots.end as usize]
    }

    /// The snapshot of what may bail.
    pub fn snapshot(&self, inst: &Inst) -> Option<&GuestState> {
        self.snapshots.get(usize::from(inst.snapshot))
    }

    /// For each block the blocks that lead to it, once for each edge.
    pub fn predecessors(&self) -> Vec<Vec<BlockId>> {
        let mut before = vec![Vec::new(); self.blocks.len()];
        for (from, block) in self.blocks.iter().enumerate() {
            for to in block.end.successors() {
                before[to as usize].push(from as BlockId);
            }
        }
        before
    }

    /// The values from which a token's flags can be computed when it was not done on the way: for `FlagsOf` its instruction's
    /// operands and result and the old token's, for a token that is computed anyway the token itself.
    pub fn recipe(&self, token: Val, use_value: &mut impl FnMut(Val)) {
        if !token.is_some() {
            return;
        }
        let def = self.def(token);
        match def.op {
            Op::FlagsOf => {
                let source = self.def(def.args[0]);
                use_value(def.args[0]);
                for arg in source.arguments() {
                    if self.def(arg).result() == Some(Ty::Flags) {
                        self.recipe(arg, use_value);
                    } else {
                        use_value(arg);
                    }
                }
                self.recipe(def.args[1], use_value);
            }
            Op::FlagsMerge => {
                self.recipe(def.args[0], use_value);
                self.recipe(def.args[1], use_value);
            }
            Op::FlagsUnpack => use_value(def.args[0]),
            _ => use_value(token),
        }
    }
}

/// Each block's immediate dominator, the last of those that are on every way to it; the entry is its own. `BlockId::MAX`:
/// cannot be reached.
///
/// See: Cooper, Harvey, Kennedy, "A Simple, Fast Dominance Algorithm". It wants blocks in reverse postorder, or takes longer.
pub(crate) fn dominators(region: &Region) -> Vec<BlockId> {
    const UNKNOWN: BlockId = BlockId::MAX;
    let before = region.predecessors();
    let order = reverse_postorder(region);
    let mut rank = vec![u32::MAX; region.blocks.len()];
    for (at, block) in order.iter().enumerate() {
        rank[*block as usize] = at as u32;
    }
    let mut found = vec![UNKNOWN; region.blocks.len()];
    if let Some(entry) = found.first_mut() {
        *entry = 0;
    }
    let mut changed = true;
    while changed {
        changed = false;
        for &block in order.iter().skip(1) {
            let known = before[block as usize].iter().copied().filter(|from| found[*from as usize] != UNKNOWN);
            let meet = known.reduce(|mut a, mut b| {
                while a != b {
                    if rank[a as usize] > rank[b as usize] {
                        a = found[a as usize];
                    } else {
                        b = found[b as usize];
                    }
                }
                a
            });
            if let Some(meet) = meet
                && found[block as usize] != meet
            {
                found[block as usize] = meet;
                changed = true;
            }
        }
    }
    found
}

/// Whether `above` is on every way to `below`.
pub(crate) fn dominates(dominators: &[BlockId], above: BlockId, mut below: BlockId) -> bool {
    while below != above {
        let up = dominators[below as usize];
        if up == below || up == BlockId::MAX {
            return false;
        }
        below = up;
    }
    true
}

/// The blocks that can be reached, each before those that it leads to, but for the ways back in loops. A branch's not taken
/// side comes right behind it where it can.
pub(crate) fn reverse_postorder(region: &Region) -> Vec<BlockId> {
    let mut seen = vec![false; region.blocks.len()];
    let mut order = Vec::with_capacity(region.blocks.len());
    let mut open = Vec::new();
    if region.blocks.is_empty() {
        return order;
    }
    seen[0] = true;
    open.push((0, region.blocks[0].end.successors().collect::<Vec<_>>()));
    while let Some((block, left)) = open.last_mut() {
        if left.is_empty() {
            order.push(*block);
            open.pop();
            continue;
        }
        // The taken side first: what is finished last comes first.
        let next = left.remove(0);
        if !seen[next as usize] {
            seen[next as usize] = true;
            open.push((next, region.blocks[next as usize].end.successors().collect()));
        }
    }
    order.reverse();
    order
}

/// Drops blocks that cannot be reached and exits to which nothing leads, and puts the blocks in reverse postorder, with depths
/// and weights by the loops they lie in.
pub(crate) fn arrange(region: &mut Region) {
    let order = reverse_postorder(region);
    let mut number = vec![BlockId::MAX; region.blocks.len()];
    for (at, block) in order.iter().enumerate() {
        number[*block as usize] = at as BlockId;
    }
    let mut old: Vec<Option<RegionBlock>> = std::mem::take(&mut region.blocks).into_iter().map(Some).collect();
    region.blocks = order.iter().filter_map(|block| old[*block as usize].take()).collect();
    let old_exits = std::mem::take(&mut region.exits);
    for block in &mut region.blocks {
        for edge in block.end.edges_mut() {
            match &mut edge.to {
                To::Block(to) => *to = number[*to as usize],
                To::Exit(exit) => {
                    region.exits.push(old_exits[*exit as usize].clone());
                    *exit = region.exits.len() as u32 - 1;
                }
            }
        }
    }
    let loops = Loops::find(region);
    for (block, depth) in region.blocks.iter_mut().zip(&loops.depths) {
        block.depth = *depth;
    }
    guess_weights(region);
}

/// The natural loops of a region: those with one head, which is on every way into them.
#[derive(Debug)]
pub(crate) struct Loops {
    pub dominators: Vec<BlockId>,
    /// How many loops each block lies in.
    pub depths: Vec<u8>,
    /// Inner loops before those around them.
    pub loops: Vec<Loop>,
}

/// A loop.
#[derive(Debug, Clone)]
pub(crate) struct Loop {
    pub head: BlockId,
    /// In ascending order; the head is one of them.
    pub blocks: Vec<BlockId>,
}

impl Loops {
    /// Finds them. Blocks must be in reverse postorder.
    pub fn find(region: &Region) -> Self {
        let dominators = dominators(region);
        let before = region.predecessors();
        let mut loops = Vec::new();
        // Heads from the last to the first: a loop's head comes behind the heads of loops around it.
        for head in (0..region.blocks.len() as BlockId).rev() {
            let mut open: Vec<BlockId> =
                before[head as usize].iter().copied().filter(|from| dominates(&dominators, head, *from)).collect();
            if open.is_empty() {
                continue;
            }
            let mut inside = vec![false; region.blocks.len()];
            inside[head as usize] = true;
            while let Some(block) = open.pop() {
                if !std::mem::replace(&mut inside[block as usize], true) {
                    open.extend(&before[block as usize]);
                }
            }
            let blocks = (0..region.blocks.len() as BlockId).filter(|block| inside[*block as usize]).collect();
            loops.push(Loop { head, blocks });
        }
        let mut depths = vec![0u8; region.blocks.len()];
        for of in &loops {
            for block in &of.blocks {
                depths[*block as usize] = depths[*block as usize].saturating_add(1);
            }
        }
        Self { dominators, depths, loops }
    }
}

/// Sixteen entries; a branch goes half here, half there, but exits of loops are taken once in sixteen; what is in a loop runs
/// sixteen times as often.
fn guess_weights(region: &mut Region) {
    const ENTRY: u32 = 16;
    let mut weights = vec![0u64; region.blocks.len()];
    if let Some(entry) = weights.first_mut() {
        *entry = ENTRY.into();
    }
    for from in 0..region.blocks.len() {
        let depth = region.blocks[from].depth;
        // Ways out are seldom taken: a sixteenth of the weight goes each of them.
        let level = |edge: &Edge| match edge.to {
            To::Block(to) => Some(region.blocks[to as usize].depth),
            To::Exit(_) => None,
        };
        let leaves = |edge: &&Edge| level(edge).is_none_or(|inward| inward < depth);
        let ways: Vec<(To, bool, u64)> =
            region.blocks[from].end.edges().map(|edge| (edge.to, leaves(&edge), level(edge).map_or(0, u64::from))).collect();
        let staying = ways.iter().filter(|way| !way.1).count() as u64;
        for (to, leaves, inward) in ways {
            let To::Block(to) = to else { continue };
            if to as usize <= from {
                continue;
            }
            let share = match leaves {
                true if staying == 0 => weights[from],
                true => weights[from] / 16,
                false => weights[from] / staying,
            };
            // A loop's head runs sixteen times for each time it is reached from outside.
            weights[to as usize] += if inward > u64::from(depth) { share * 16 } else { share };
        }
    }
    for (block, weight) in region.blocks.iter_mut().zip(weights) {
        block.weight = weight.clamp(1, u64::from(u32::MAX)) as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A region of empty blocks with these ways.
    fn graph(ways: &[&[BlockId]]) -> Region {
        let mut region = Region::new(&[], 0, u64::MAX, 0);
        let condition = region.add(Inst::new(Op::Const, Ty::Bool));
        for to in ways {
            let edge = |at: usize| Edge::new(To::Block(to[at]));
            let end = match to.len() {
                0 => Terminator::Jump(Edge::new(To::Exit(0))),
                1 => Terminator::Jump(edge(0)),
                _ => Terminator::Branch { condition, taken: edge(0), not_taken: edge(1) },
            };
            region.blocks.push(RegionBlock { params: Vec::new(), body: Vec::new(), end, pc: 0, retired: 1, depth: 0, weight: 0 });
        }
        let state = GuestState { pc: 0, retired: 0, flags: Val::NONE, slots: 0..0 };
        region.exits.push(Exit { op: Op::Jump, target: Val::NONE, back: 0, need: FlagSet::all(), state });
        region
    }

    #[test]
    fn loops_in_loops_are_found_from_the_inside() {
        // 1 is the outer head, 2 the inner one; 3 leads back to 2 or on to 4, that to 1 or out.
        let mut region = graph(&[&[1], &[2], &[3], &[2, 4], &[1, 5], &[]]);
        arrange(&mut region);
        let loops = Loops::find(&region);
        let found: Vec<(BlockId, &[BlockId])> = loops.loops.iter().map(|of| (of.head, &of.blocks[..])).collect();
        assert_eq!(found, [(2, &[2, 3][..]), (1, &[1, 2, 3, 4][..])]);
        assert_eq!(loops.depths, [0, 1, 2, 2, 1, 0]);
        let weights: Vec<u32> = region.blocks.iter().map(|block| block.weight).collect();
        assert!(weights[2] > weights[1] && weights[1] > weights[5], "{weights:?}");
    }

    #[test]
    fn a_diamond_is_dominated_by_its_top_alone() {
        let region = graph(&[&[1], &[2, 3], &[4], &[4], &[], &[4]]);
        let dominators = dominators(&region);
        assert_eq!(dominators, [0, 0, 1, 1, 1, BlockId::MAX]);
        assert!(dominates(&dominators, 1, 4) && !dominates(&dominators, 2, 4));
    }

    #[test]
    fn what_cannot_be_reached_goes() {
        let mut region = graph(&[&[2], &[2], &[]]);
        arrange(&mut region);
        assert_eq!((region.blocks.len(), region.exits.len()), (2, 1));
    }

    #[test]
    fn spans_come_back_from_a_probe() {
        for span in [Span { low: -8, high: 16 }, Span { low: i32::MIN, high: i32::MAX }, Span { low: 0, high: 1 }] {
            assert_eq!(Span::unpack(span.pack()), span);
        }
        let span = Span { low: -8, high: 4 }.union(Span { low: 0, high: 8 });
        assert_eq!(span, Span { low: -8, high: 8 });
        assert!(span.contains(Span { low: -8, high: 0 }) && !span.contains(Span { low: 4, high: 9 }));
    }
}
