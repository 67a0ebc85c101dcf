//! Takes away blocks that only lead on, and joins those that always follow each other, while values do not yet leave their blocks.

use super::super::{BlockId, Edge, Region, Terminator, To, arrange};
use super::loops::is_poll;
use crate::ir::NO_SNAPSHOT;

/// The pass.
pub(super) fn run(region: &mut Region) {
    skip_empty(region);
    arrange(region);
    join(region);
    arrange(region);
}

fn skip_empty(region: &mut Region) {
    // Where an empty block leads; the entry stays.
    let leads: Vec<Option<BlockId>> = region
        .blocks
        .iter()
        .enumerate()
        .map(|(number, block)| match &block.end {
            Terminator::Jump(Edge { to: To::Block(to), .. }) if number != 0 && block.body.is_empty() && block.retired == 0 => {
                Some(*to)
            }
            _ => None,
        })
        .collect();
    for block in &mut region.blocks {
        for edge in block.end.edges_mut() {
            if let To::Block(to) = &mut edge.to {
                // A ring of nothing but empty blocks is left as it is.
                for _ in 0..leads.len() {
                    let Some(next) = leads[*to as usize] else { break };
                    *to = next;
                }
            }
        }
    }
}

fn join(region: &mut Region) {
    let mut ways = vec![0; region.blocks.len()];
    for block in &region.blocks {
        for to in block.end.successors() {
            ways[to as usize] += 1;
        }
    }
    // Block 0 stays empty: it is where the parameters of the region are.
    for at in 1..region.blocks.len() {
        while let Terminator::Jump(Edge { to: To::Block(next), .. }) = region.blocks[at].end
            && ways[next as usize] == 1
            && next as usize != at
            && !is_poll(region, next)
            && region.blocks[at].retired.checked_add(region.blocks[next as usize].retired).is_some()
        {
            let retired = region.blocks[at].retired;
            let hole = Terminator::Jump(Edge::new(To::Block(next)));
            let joined = &mut region.blocks[next as usize];
            let (body, end) = (std::mem::take(&mut joined.body), std::mem::replace(&mut joined.end, hole));
            let more = std::mem::take(&mut joined.retired);
            // What `next` was is a ring of its own now, which nobody reaches.
            ways[next as usize] = 0;
            // Those of one guest instruction share their snapshot.
            let mut last = NO_SNAPSHOT;
            for value in &body {
                let snapshot = region.insts[value.index()].snapshot;
                if snapshot != NO_SNAPSHOT && snapshot != last {
                    region.snapshots[usize::from(snapshot)].retired += retired;
                    last = snapshot;
                }
            }
            let block = &mut region.blocks[at];
            block.body.extend(body);
            block.end = end;
            block.retired += more;
        }
    }
}
