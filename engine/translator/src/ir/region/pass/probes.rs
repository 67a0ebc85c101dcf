//! Memory checks: splits loads and stores into a probe of their address and the access by its addend, and lets one probe serve many accesses.
//!
//! Accesses near one value, whatever was added to it since, share a probe that dominates them: its span is widened and its rights are raised where what would fail earlier for that
//! would fail later anyway, or nearly so. Which never makes anything wrong, for a probe that fails only bails. With loops peeled this takes probes of what does not change out of them.
//! Where several ways meet, an address that each brings by another value is not looked up again either: what each has found comes with it, by a parameter.

use super::super::super::ops::{MemoryAccess, Op, Ty};
use super::super::super::{Inst, NO_SNAPSHOT, Val};
use super::super::{BlockId, NO_SLOT, PROBE_RAISED, PROBE_READ, PROBE_WRITE, Region, Span, dominates, dominators, ssa::incoming};
use std::collections::HashMap;

/// Most bytes for which one probe vouches. What is larger crosses pages too often.
const WIDEST: i32 = 256;

/// The pass.
pub(super) fn run(region: &mut Region) {
    let params =
        region.blocks.iter().enumerate().flat_map(|(number, block)| {
            block.params.iter().enumerate().map(move |(at, param)| (*param, (number as BlockId, at)))
        });
    let mut splitting = Splitting {
        dominators: dominators(region),
        incoming: incoming(region),
        params: params.collect(),
        probes: HashMap::new(),
        joined: HashMap::new(),
        region,
    };
    for block in 0..splitting.region.blocks.len() {
        splitting.block(block as BlockId);
    }
}

/// A probe that is there.
struct Known {
    block: BlockId,
    probe: Val,
}

/// A parameter that brings the addend of another.
struct Joined {
    span: Span,
    rights: u8,
    addend: Val,
}

struct Splitting<'a> {
    region: &'a mut Region,
    dominators: Vec<BlockId>,
    /// The edges that lead to each block.
    incoming: Vec<Vec<(BlockId, usize)>>,
    /// Of each parameter: its block, and which of its parameters it is.
    params: HashMap<Val, (BlockId, usize)>,
    /// By the parameter whose addends they bring.
    joined: HashMap<Val, Vec<Joined>>,
    /// By the value near which they probe.
    probes: HashMap<Val, Vec<Known>>,
}

impl Splitting<'_> {
    fn block(&mut self, block: BlockId) {
        let body = std::mem::take(&mut self.region.blocks[block as usize].body);
        let mut new = Vec::with_capacity(body.len() + body.len() / 4);
        for value in body {
            let inst = *self.region.def(value);
            let splits = matches!(inst.op, Op::Load | Op::Store) && !inst.access().aligned;
            if splits {
                let addend = self.addend(block, &inst, &mut new);
                let [address, stored, _] = inst.args;
                let (op, args) = match inst.op {
                    Op::Load => (Op::LoadVia, [address, addend, Val::NONE]),
                    _ => (Op::StoreVia, [address, addend, stored]),
                };
                self.region.insts[value.index()] = Inst { op, args, snapshot: NO_SNAPSHOT, ..inst };
            }
            new.push(value);
        }
        self.region.blocks[block as usize].body = new;
    }

    /// The addend for an access.
    fn addend(&mut self, block: BlockId, inst: &Inst, body: &mut Vec<Val>) -> Val {
        let (root, distance) = root_of(self.region, inst.args[0]);
        let access: MemoryAccess = inst.access();
        let (bytes, rights) = match inst.op {
            Op::Store => (inst.ty.bytes(), PROBE_WRITE),
            _ if access.for_write => (access.bytes, PROBE_READ | PROBE_WRITE),
            _ => (access.bytes, PROBE_READ),
        };
        let low = distance.wrapping_add(inst.imm) as i64;
        let near = i32::try_from(low).ok().filter(|low| low.checked_add(WIDEST).is_some());
        let Some(low) = near else {
            // Far from what it is relative to: alone.
            let span = Span { low: inst.imm as i32, high: (inst.imm as i32).wrapping_add(bytes.into()) };
            if i32::try_from(inst.imm as i64).is_ok_and(|imm| imm.checked_add(WIDEST).is_some()) {
                return self.probe(block, inst.args[0], span, rights, inst.snapshot, body);
            }
            let imm = inst.imm;
            let address =
                self.region.add(Inst { args: [inst.args[0], Val::NONE, Val::NONE], imm, ..Inst::new(Op::Address, Ty::I64) });
            body.push(address);
            let span = Span { low: 0, high: bytes.into() };
            return self.probe(block, address, span, rights, inst.snapshot, body);
        };
        let span = Span { low, high: low.saturating_add(bytes.into()) };
        let weight = self.region.blocks[block as usize].weight;
        let known = self.shared(block, weight, root, span, rights).or_else(|| self.joined(weight, root, span, rights));
        known.unwrap_or_else(|| self.probe(block, root, span, rights, inst.snapshot, body))
    }

    /// The addend of a parameter whose arguments have all been looked up.
    fn joined(&mut self, weight: u32, root: Val, span: Span, rights: u8) -> Option<Val> {
        let &(block, at) = self.params.get(&root)?;
        let fits = |joined: &&Joined| joined.span.contains(span) && joined.rights & rights == rights;
        if let Some(joined) = self.joined.get(&root).and_then(|all| all.iter().find(fits)) {
            return Some(joined.addend);
        }
        let edges = self.incoming[block as usize].clone();
        // Those of a loop's way back are not known yet.
        if edges.is_empty() || edges.iter().any(|(from, _)| *from >= block) {
            return None;
        }
        let mut addends = Vec::with_capacity(edges.len());
        for (from, edge) in &edges {
            let arg = self.region.blocks[*from as usize].end.edges().nth(*edge)?.args[at];
            let (root, distance) = root_of(self.region, arg);
            let distance = i32::try_from(distance as i64).ok()?;
            let span = Span { low: span.low.checked_add(distance)?, high: span.high.checked_add(distance)? };
            addends.push(self.shared(*from, weight, root, span, rights)?);
        }
        if addends.iter().all(|addend| *addend == addends[0]) {
            return addends.first().copied();
        }
        let addend = self.region.add_param(block, Ty::I64, NO_SLOT);
        for ((from, edge), arg) in edges.iter().zip(addends) {
            self.region.blocks[*from as usize].end.edges_mut().nth(*edge)?.args.push(arg);
        }
        self.joined.entry(root).or_default().push(Joined { span, rights, addend });
        Some(addend)
    }

    /// A probe that is there and vouches for a span, or can be made to by those who run as often as `often` says.
    fn shared(&mut self, block: BlockId, often: u32, root: Val, span: Span, rights: u8) -> Option<Val> {
        for known in self.probes.get(&root)?.iter().rev() {
            if !dominates(&self.dominators, known.block, block) {
                continue;
            }
            let inst = *self.region.def(known.probe);
            let has = Span::unpack(inst.imm);
            if has.contains(span) && inst.aux & rights == rights {
                return Some(known.probe);
            }
            let both = has.union(span);
            // Whoever is seldom here must not make those fail who are always there.
            let is_often = often >= self.region.blocks[known.block as usize].weight / 4 * 3;
            if is_often && both.high.checked_sub(both.low).is_some_and(|wide| wide <= WIDEST) {
                let raised = if rights & !inst.aux & PROBE_WRITE != 0 { PROBE_RAISED } else { 0 };
                let inst = &mut self.region.insts[known.probe.index()];
                (inst.imm, inst.aux) = (both.pack(), inst.aux | rights | raised);
                return Some(known.probe);
            }
        }
        None
    }

    fn probe(&mut self, block: BlockId, root: Val, span: Span, rights: u8, snapshot: u16, body: &mut Vec<Val>) -> Val {
        let args = [root, Val::NONE, Val::NONE];
        let probe = self.region.add(Inst { args, aux: rights, imm: span.pack(), snapshot, ..Inst::new(Op::Probe, Ty::I64) });
        body.push(probe);
        self.probes.entry(root).or_default().push(Known { block, probe });
        probe
    }
}

/// What an address of 64 bits is relative to, and by how much, as far as constants were added.
pub(super) fn root_of(region: &Region, mut address: Val) -> (Val, u64) {
    let mut distance = 0u64;
    loop {
        let def = region.def(address);
        if def.ty != Ty::I64 {
            return (address, distance);
        }
        let by = match def.op {
            Op::Address if !def.args[1].is_some() => def.imm,
            Op::Add => match region.constant(def.args[1]) {
                Some(by) => by,
                None => return (address, distance),
            },
            Op::Sub => match region.constant(def.args[1]) {
                Some(by) => by.wrapping_neg(),
                None => return (address, distance),
            },
            Op::Inc => 1,
            Op::Dec => u64::MAX,
            _ => return (address, distance),
        };
        distance = distance.wrapping_add(by);
        address = def.args[0];
    }
}
