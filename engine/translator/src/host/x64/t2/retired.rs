//! The count of retired guest instructions, with few additions to it: a block leaves it to those behind it to add what it has
//! retired, as long as all who come to a place have the same amount to bring; ways out of a loop bring what they have more.
//! Nothing is left at the heads of loops.

use crate::ir::region::{BlockId, Region, RegionBlock};

/// What has yet to be added, and where it is.
#[derive(Debug, Default)]
pub(super) struct Retired {
    /// For each block what those before it have not added.
    before: Vec<u32>,
    /// What is added at its start.
    added: Vec<u32>,
    /// How many instructions it retires itself.
    own: Vec<u32>,
    /// What is left at its end.
    behind: Vec<u32>,
}

/// No amount is known yet.
const UNKNOWN: u32 = u32::MAX;

impl Retired {
    /// Of a region whose blocks are in reverse postorder.
    pub fn plan(region: &Region) -> Self {
        let count = region.blocks.len();
        // The ends of blocks come behind the starts: places from one of which an edge leads to the other have the same amount,
        // and one name.
        let mut names: Vec<usize> = (0..2 * count).collect();
        let mut is_head = vec![false; count];
        let leaves_loop = |from: &RegionBlock, to: BlockId| region.blocks[to as usize].depth < from.depth;
        for (from, block) in region.blocks.iter().enumerate() {
            for to in block.end.successors() {
                is_head[to as usize] |= to as usize <= from;
                if leaves_loop(block, to) {
                    continue;
                }
                let (old, new) = (names[count + from], names[to as usize]);
                names.iter_mut().filter(|name| **name == old).for_each(|name| *name = new);
            }
        }
        let own: Vec<u32> = region.blocks.iter().map(|block| block.retired.into()).collect();
        let mut amounts = vec![UNKNOWN; 2 * count];
        for block in (0..count).filter(|block| *block == 0 || is_head[*block]) {
            amounts[names[block]] = 0;
        }
        let mut changed = true;
        while std::mem::take(&mut changed) {
            for block in 0..count {
                let (before, end) = (amounts[names[block]], names[count + block]);
                let amount = before.saturating_add(own[block]);
                let mut lower = |name: usize, amount: u32| {
                    changed |= amount < amounts[name];
                    amounts[name] = amounts[name].min(amount);
                    amounts[name]
                };
                let left = lower(end, amount);
                let of = &region.blocks[block];
                for to in of.end.successors().filter(|to| leaves_loop(of, *to)) {
                    lower(names[to as usize], left);
                }
            }
        }
        let before: Vec<u32> = (0..count).map(|block| amounts[names[block]]).collect();
        let behind: Vec<u32> = (0..count).map(|block| amounts[names[count + block]]).collect();
        let added = (0..count).map(|block| before[block] + own[block] - behind[block]).collect();
        Self { before, added, own, behind }
    }

    /// What is to be added on the way from a block to another.
    pub fn on_the_way(&self, from: BlockId, to: BlockId) -> i32 {
        (self.behind[from as usize] - self.before[to as usize]) as i32
    }

    /// What is to be added at a block's start.
    pub fn at_start(&self, block: BlockId) -> u32 {
        self.added[block as usize]
    }

    /// What is missing where a block is left after `retired` of its instructions; less than nothing where too much has been added.
    pub fn missing(&self, block: BlockId, retired: u32) -> i32 {
        let block = block as usize;
        (self.before[block] + retired) as i32 - self.added[block] as i32
    }

    /// The same at its end.
    pub fn missing_at_end(&self, block: BlockId) -> i32 {
        self.missing(block, self.own[block as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::region::{Edge, Exit, GuestState, Terminator, To, arrange};
    use crate::ir::{FlagSet, Inst, Op, Ty, Val};

    /// Blocks with what they retire and where they lead.
    fn graph(blocks: &[(u16, &[BlockId])]) -> Region {
        let mut region = Region::new(&[], 0, u64::MAX, 0);
        let condition = region.add(Inst::new(Op::Const, Ty::Bool));
        for (retired, to) in blocks {
            let edge = |at: usize| Edge::new(to.get(at).map_or(To::Exit(0), |to| To::Block(*to)));
            let end = match to.len() {
                2 => Terminator::Branch { condition, taken: edge(0), not_taken: edge(1) },
                _ => Terminator::Jump(edge(0)),
            };
            let (params, body) = (Vec::new(), Vec::new());
            region.blocks.push(RegionBlock { params, body, end, pc: 0, retired: *retired, depth: 0, weight: 0 });
        }
        let state = GuestState { pc: 0, retired: 0, flags: Val::NONE, slots: 0..0 };
        region.exits.push(Exit { op: Op::Jump, target: Val::NONE, back: 0, need: FlagSet::all(), state });
        arrange(&mut region);
        region
    }

    #[test]
    fn a_loop_adds_once_a_round_and_a_side_way_what_it_has_more() {
        let plan = Retired::plan(&graph(&[(0, &[1]), (4, &[2, 3]), (2, &[3]), (5, &[4, 5]), (0, &[1]), (1, &[])]));
        // The way out of the loop stands before the way back.
        assert_eq!(plan.added, [0, 0, 2, 0, 0, 9]);
        assert_eq!(plan.before, [0, 0, 4, 4, 9, 9]);
        assert_eq!((plan.missing(3, 2), plan.missing_at_end(4), plan.missing(5, 0), plan.missing(2, 1)), (6, 10, 0, 3));
    }

    #[test]
    fn every_way_adds_what_it_has_retired() {
        let blocks: &[(u16, &[BlockId])] =
            &[(0, &[1]), (3, &[2, 4]), (1, &[3, 1]), (7, &[5, 1]), (2, &[3, 6]), (1, &[6, 2]), (4, &[])];
        let (region, plan) = (graph(blocks), Retired::plan(&graph(blocks)));
        let mut seed = 1u32;
        for _ in 0..200 {
            let (mut at, mut retired, mut added) = (0u32, 0, 0);
            loop {
                added += plan.at_start(at);
                retired += u32::from(region.blocks[at as usize].retired);
                let ways: Vec<BlockId> = region.blocks[at as usize].end.successors().collect();
                if ways.is_empty() {
                    assert_eq!(added as i32 + plan.missing_at_end(at), retired as i32);
                    break;
                }
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let next = ways[(seed >> 16) as usize % ways.len()];
                added = added.wrapping_add_signed(plan.on_the_way(at, next));
                at = next;
            }
        }
    }
}
