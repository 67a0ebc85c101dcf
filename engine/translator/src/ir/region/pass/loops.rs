//! Copies of small loops, made while values do not yet leave their blocks.
//!
//! * *Peeling*: the first iteration of a loop stands in front of it. What it computes or probes holds in the loop too, and
//!   later passes find it there: so hoisting needs no speculation, and every access still happens where the guest makes it.
//! * *Unrolling*: a small loop's body several times behind each other, with one poll, and with what one iteration knows told to
//!   the next.

use super::super::{BlockId, Loop, Loops, Region, To, arrange};
use crate::ir::{NO_SNAPSHOT, Op, Val};

/// Most instructions of an innermost loop that is peeled.
const PEELED: usize = 240;
/// Most instructions of a loop around others that is peeled.
const PEELED_WHOLE: usize = 80;
/// Most instructions of all copies of an unrolled loop.
const UNROLLED: usize = 160;
/// Most copies of an unrolled loop.
const COPIES: usize = 4;
/// Most instructions of a region that still grows.
const LARGEST: usize = 4000;

/// The pass.
pub(super) fn run(region: &mut Region) {
    debug_assert!(!region.is_ssa);
    // Each round changes blocks' numbers: heads are known by their pc. Of a loop and its copies one is treated.
    let mut done: Vec<u64> = Vec::new();
    loop {
        let loops = Loops::find(region);
        let fits =
            |of: &&Loop, most: usize| !done.contains(&region.blocks[of.head as usize].pc) && instructions(region, of) <= most;
        // Outer loops first, as long as they are small; then of inner loops those that are not in the copies.
        let outer = loops.loops.iter().rev().find(|of| !is_innermost(of, &loops) && fits(of, PEELED_WHOLE));
        let next = outer.or_else(|| loops.loops.iter().find(|of| is_innermost(of, &loops) && fits(of, PEELED)));
        let Some(of) = next else { return };
        let is_innermost = is_innermost(of, &loops);
        done.push(region.blocks[of.head as usize].pc);
        if region.insts.len() > LARGEST {
            return;
        }
        let count = instructions(region, of).max(1);
        peel(region, of);
        if is_innermost {
            unroll(region, of, (UNROLLED / count).clamp(1, COPIES));
        }
        super::straighten::run(region);
        arrange(region);
    }
}

fn is_innermost(of: &Loop, loops: &Loops) -> bool {
    of.blocks.iter().all(|block| *block == of.head || loops.loops.iter().all(|other| other.head != *block))
}

fn instructions(region: &Region, of: &Loop) -> usize {
    of.blocks.iter().map(|block| region.blocks[*block as usize].body.len()).sum()
}

/// Whether a block is nothing but a poll.
pub(super) fn is_poll(region: &Region, block: BlockId) -> bool {
    matches!(region.blocks[block as usize].body[..], [only] if region.def(only).op == Op::Poll)
}

fn peel(region: &mut Region, of: &Loop) {
    let outside: Vec<BlockId> = (0..region.blocks.len() as BlockId).filter(|block| !of.blocks.contains(block)).collect();
    let copies = copy(region, &of.blocks);
    let copy_of = |block: BlockId| of.blocks.iter().position(|old| *old == block).map(|at| copies[at]);
    for block in outside {
        redirect(region, block, |to| if to == of.head { copy_of(to) } else { None });
    }
    for (old, new) in of.blocks.iter().zip(&copies) {
        if is_poll(region, *old) {
            region.blocks[*new as usize].body.clear();
        }
        // A way back leads on, into the loop.
        redirect(region, *new, |to| if to == of.head { None } else { copy_of(to) });
    }
}

fn unroll(region: &mut Region, of: &Loop, count: usize) {
    let (polls, blocks): (Vec<BlockId>, Vec<BlockId>) = of.blocks.iter().partition(|block| is_poll(region, **block));
    // Every way back must have its poll, and nothing but the way back.
    let polled = polls.iter().all(|poll| region.blocks[*poll as usize].end.successors().all(|to| to == of.head))
        && blocks.iter().all(|block| region.blocks[*block as usize].end.successors().all(|to| to != of.head));
    if count < 2 || !polled {
        return;
    }
    let mut bodies = vec![blocks.clone()];
    for _ in 1..count {
        bodies.push(copy(region, &blocks));
    }
    for (number, body) in bodies.iter().enumerate() {
        let place = |block: BlockId| blocks.iter().position(|old| *old == block);
        for block in body {
            let next = bodies.get(number + 1);
            redirect(region, *block, |to| match (place(to), next) {
                (Some(at), _) => Some(body[at]),
                (None, Some(next)) if polls.contains(&to) => place(of.head).map(|at| next[at]),
                _ => None,
            });
        }
    }
}

/// Sends edges of a block elsewhere.
fn redirect(region: &mut Region, block: BlockId, elsewhere: impl Fn(BlockId) -> Option<BlockId>) {
    for edge in region.blocks[block as usize].end.edges_mut() {
        if let To::Block(to) = &mut edge.to
            && let Some(new) = elsewhere(*to)
        {
            *to = new;
        }
    }
}

/// Copies of blocks, whose edges still lead where those of the originals do. Exits and snapshots are copied with them.
fn copy(region: &mut Region, blocks: &[BlockId]) -> Vec<BlockId> {
    let mut copies = Vec::with_capacity(blocks.len());
    let mut moved = vec![Val::NONE; region.insts.len()];
    for block in blocks {
        let mut new = region.blocks[*block as usize].clone();
        let mut snapshots: (u16, u16) = (NO_SNAPSHOT, NO_SNAPSHOT);
        for value in &mut new.body {
            let mut inst = *region.def(*value);
            for arg in inst.args.iter_mut().filter(|arg| arg.is_some()) {
                *arg = moved[arg.index()];
            }
            if inst.snapshot != NO_SNAPSHOT {
                // Those of one guest instruction share theirs.
                if snapshots.0 != inst.snapshot {
                    let state = region.snapshots[usize::from(inst.snapshot)].clone();
                    region.snapshots.push(state);
                    snapshots = (inst.snapshot, region.snapshots.len() as u16 - 1);
                }
                inst.snapshot = snapshots.1;
            }
            let copy = region.add(inst);
            moved[value.index()] = copy;
            *value = copy;
        }
        if let Some(value) = new.end.looks_at_mut() {
            *value = moved[value.index()];
        }
        for edge in new.end.edges_mut() {
            if let To::Exit(exit) = &mut edge.to {
                let mut copy = region.exits[*exit as usize].clone();
                if copy.target.is_some() {
                    copy.target = moved[copy.target.index()];
                }
                region.exits.push(copy);
                *exit = region.exits.len() as u32 - 1;
            }
        }
        region.blocks.push(new);
        copies.push(region.blocks.len() as BlockId - 1);
    }
    copies
}
