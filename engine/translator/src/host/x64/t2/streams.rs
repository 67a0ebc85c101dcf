//! Streams: accesses of a loop that stay in one page for many rounds. Each keeps the page that it met last and what makes host
//! addresses there in two cells, and asks the TLB only where it has left that page. So the host address does not wait for a
//! look into a table, and the look costs less.
//!
//! A probe *asks* its stream if its address moves by steps: it is made of parameters to which constants or what does not change
//! in the loop are added. All probes of the same guest instruction that want the same rights belong to one stream. Those that
//! do not ask (that of a loop's first round, which stands before it) tell it what they have found. What a cell says holds as
//! long as any addend does: until the region is left.

use super::plan::Plan;
use crate::ir::region::{BlockId, Loops, PROBE_WRITE, Region};
use crate::ir::{Op, Val};
use std::collections::HashMap;

/// Most streams of a region.
const MOST: usize = 12;
/// How deep an address is looked into.
const DEEPEST: u32 = 12;

/// What a probe has to do with a stream, and the stream's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Asks(usize),
    Tells(usize),
}

/// The streams of a region.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub count: usize,
    parts: HashMap<Val, Part>,
}

impl Streams {
    /// Finds them. (Blocks are in reverse postorder.)
    pub fn find(region: &Region) -> Self {
        let mut streams = Self::default();
        let steps = Steps::new(region);
        let probes = move || {
            region.blocks.iter().enumerate().flat_map(move |(number, block)| {
                let probes = block.body.iter().filter(move |value| region.def(**value).op == Op::Probe);
                probes.map(move |value| (number as BlockId, *value))
            })
        };
        let key = |probe: Val| {
            let inst = region.def(probe);
            let pc = region.snapshot(inst).map_or(u64::MAX, |state| state.pc);
            (pc, inst.aux & PROBE_WRITE)
        };
        let mut numbers = HashMap::new();
        for (block, probe) in probes() {
            if steps.is_stepped(block, region.def(probe).args[0]) && (numbers.len() < MOST || numbers.contains_key(&key(probe))) {
                let next = numbers.len();
                let number = *numbers.entry(key(probe)).or_insert(next);
                streams.parts.insert(probe, Part::Asks(number));
            }
        }
        for (_, probe) in probes() {
            if let Some(number) = numbers.get(&key(probe)) {
                streams.parts.entry(probe).or_insert(Part::Tells(*number));
            }
        }
        streams.count = numbers.len();
        streams
    }

    /// What a probe has to do with them.
    pub fn part(&self, probe: Val) -> Option<Part> {
        self.parts.get(&probe).copied()
    }
}

impl Plan<'_> {
    /// What a probe has to do with streams.
    pub fn stream_part(&self, probe: Val) -> Option<Part> {
        self.streams.part(probe)
    }
}

/// Which values move by steps.
struct Steps<'a> {
    region: &'a Region,
    loops: Loops,
    /// The block that defines each value.
    home: Vec<BlockId>,
    /// Of each parameter: what it is handed, and by which block.
    handed: HashMap<Val, Vec<(BlockId, Val)>>,
}

impl<'a> Steps<'a> {
    fn new(region: &'a Region) -> Self {
        let mut home = vec![BlockId::MAX; region.insts.len()];
        let mut handed: HashMap<Val, Vec<(BlockId, Val)>> = HashMap::new();
        for (number, block) in region.blocks.iter().enumerate() {
            for value in block.params.iter().chain(&block.body) {
                home[value.index()] = number as BlockId;
            }
            for edge in block.end.edges() {
                if let crate::ir::region::To::Block(to) = edge.to {
                    for (param, arg) in region.blocks[to as usize].params.iter().zip(&edge.args) {
                        handed.entry(*param).or_default().push((number as BlockId, *arg));
                    }
                }
            }
        }
        Self { region, loops: Loops::find(region), home, handed }
    }

    /// Whether an address that is looked up in a block moves by steps in the innermost loop around that. One that does not move
    /// at all is no stream: its probe stands before the loop, or something between has made that impossible.
    fn is_stepped(&self, block: BlockId, address: Val) -> bool {
        let around = self.loops.loops.iter().find(|of| of.blocks.contains(&block));
        around.is_some_and(|of| {
            let mut open = Vec::new();
            !self.is_fixed(&of.blocks, address) && self.steps(&of.blocks, address, DEEPEST, &mut open)
        })
    }

    fn is_fixed(&self, inside: &[BlockId], value: Val) -> bool {
        !inside.contains(&self.home[value.index()])
    }

    fn steps(&self, inside: &[BlockId], value: Val, deeper: u32, open: &mut Vec<Val>) -> bool {
        if self.is_fixed(inside, value) || open.contains(&value) {
            return true;
        }
        if deeper == 0 {
            return false;
        }
        let inst = self.region.def(value);
        match inst.op {
            Op::Const | Op::Pc => true,
            Op::Add | Op::Sub | Op::Inc | Op::Dec | Op::Address | Op::ZeroExtend | Op::SignExtend | Op::Truncate => {
                inst.arguments().all(|arg| self.steps(inside, arg, deeper - 1, open))
            }
            Op::Shl => self.region.constant(inst.args[1]).is_some() && self.steps(inside, inst.args[0], deeper - 1, open),
            Op::Select => inst.args[1..].iter().all(|arg| self.steps(inside, *arg, deeper - 1, open)),
            // What comes from outside the loop says nothing.
            Op::Param => {
                open.push(value);
                let handed = self.handed.get(&value);
                let back = handed.into_iter().flatten().filter(|(from, _)| inside.contains(from));
                let stepped = back.into_iter().all(|(_, arg)| self.steps(inside, *arg, deeper - 1, open));
                if !stepped {
                    open.retain(|other| *other != value);
                }
                stepped
            }
            _ => false,
        }
    }
}
