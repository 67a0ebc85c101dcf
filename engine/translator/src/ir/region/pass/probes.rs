//! Memory checks: splits loads and stores into a probe of their address and the access by its addend, and lets one probe serve
//! many accesses. Vector instructions bring their own probes, which are shared with the others.
//!
//! Accesses whose addresses are sums of the same values ([`Sum`]) share a probe that dominates them: its span is widened and
//! its rights are raised where what would fail earlier for that would fail later anyway, or nearly so. Which never makes
//! anything wrong, for a probe that fails only bails. With loops peeled this takes probes of what does not change out of them.
//! Where several ways meet, an address that each brings by another value is not looked up again either: what each has found
//! comes with it, by a parameter. Where an address was computed for an access alone, that takes the probe's instead, and what
//! is between them as a displacement.
//!
//! A table with a small index (a byte, something masked: [`most`]) is looked up as a whole if it seems to lie in one page, and
//! most often once, before the loop. Nothing then stands between the index and the access.

use super::super::super::native::Native;
use super::super::super::ops::{MemoryAccess, Op, Ty};
use super::super::super::{Inst, NO_SNAPSHOT, Val};
use super::super::range::most;
use super::super::sum::{Sum, Terms};
use super::super::{BlockId, NO_SLOT, PROBE_RAISED, PROBE_READ, PROBE_WRITE, Region, Span, dominates, dominators, ssa};
use std::collections::HashMap;

/// Most bytes for which one probe vouches. What is larger crosses pages too often.
const WIDEST: i32 = 256;
const PAGE: u64 = 4096;
/// Most bytes more for which a probe vouches as often as it is asked to. To cross a page costs some fifty times as much as a
/// probe of one's own, and one of so many does for each byte more.
const SELDOM: u64 = 64;

/// The pass.
pub(super) fn run(region: &mut Region) {
    let params =
        region.blocks.iter().enumerate().flat_map(|(number, block)| {
            block.params.iter().enumerate().map(move |(at, param)| (*param, (number as BlockId, at)))
        });
    let mut splitting = Splitting {
        dominators: dominators(region),
        incoming: ssa::incoming(region),
        params: params.collect(),
        probes: HashMap::new(),
        joined: HashMap::new(),
        aligned: HashMap::new(),
        alias: vec![Val::NONE; region.insts.len()],
        region,
    };
    for block in 0..splitting.region.blocks.len() {
        splitting.block(block as BlockId);
    }
    let alias = splitting.alias;
    ssa::substitute(region, alias);
}

/// A probe that is there.
struct Known {
    block: BlockId,
    probe: Val,
    /// The constant of its address.
    constant: u64,
}

/// An access: where, how many bytes, with which rights.
struct Access {
    address: Val,
    displacement: u64,
    bytes: i32,
    rights: u8,
    snapshot: u16,
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
    /// By the values of which their addresses are sums.
    probes: HashMap<Terms, Vec<Known>>,
    /// Addresses that have been found to be aligned: the values of which they are sums, what the constant leaves of the
    /// multiple, and that; and where it was.
    aligned: HashMap<(Terms, u64, u8), Vec<BlockId>>,
    /// What stands for a probe that is no more.
    alias: Vec<Val>,
}

impl Splitting<'_> {
    fn block(&mut self, block: BlockId) {
        let body = std::mem::take(&mut self.region.blocks[block as usize].body);
        let mut new = Vec::with_capacity(body.len() + body.len() / 4);
        for value in body {
            let inst = *self.region.def(value);
            match inst.op {
                Op::Probe => {
                    let addend = self.addend_of_probe(block, &inst, &mut new);
                    self.alias[value.index()] = addend;
                    continue;
                }
                Op::CheckAligned if self.is_aligned(block, &inst) => continue,
                Op::Load | Op::Store if !inst.access().aligned => self.split(block, value, &inst, &mut new),
                Op::Native | Op::NativeStore | Op::NativeInteger | Op::NativeFlags if inst.args[1].is_some() => {
                    let native = Native::of(&inst);
                    let addend = self.alias[inst.args[1].index()];
                    let (address, distance) = self.rebased(inst.args[0], i64::from(native.displacement), addend);
                    let (aux, imm) = Native { displacement: distance as i32, ..native }.pack();
                    self.region.insts[value.index()] = Inst { args: [address, addend, Val::NONE], aux, imm, ..inst };
                }
                _ => {}
            }
            new.push(value);
        }
        self.region.blocks[block as usize].body = new;
    }

    fn split(&mut self, block: BlockId, value: Val, inst: &Inst, body: &mut Vec<Val>) {
        let [address, stored, _] = inst.args;
        let access: MemoryAccess = inst.access();
        let (bytes, rights) = match inst.op {
            Op::Store => (inst.ty.bytes(), PROBE_WRITE),
            _ if access.for_write => (access.bytes, PROBE_READ | PROBE_WRITE),
            _ => (access.bytes, PROBE_READ),
        };
        let access = Access { address, displacement: inst.imm, bytes: bytes.into(), rights, snapshot: inst.snapshot };
        let access = self.table_around(&access, body).unwrap_or(access);
        let addend = self.addend(block, &access, body);
        let (address, distance) = self.rebased(address, inst.imm as i64, addend);
        let (op, args) = match inst.op {
            Op::Load => (Op::LoadVia, [address, addend, Val::NONE]),
            _ => (Op::StoreVia, [address, addend, stored]),
        };
        self.region.insts[value.index()] = Inst { op, args, imm: distance as u64, snapshot: NO_SNAPSHOT, ..*inst };
    }

    /// The address and displacement by which something is accessed at `address + displacement`: those of its probe, if its own
    /// address is nothing but that and the distance is one that an instruction can have.
    fn rebased(&self, address: Val, displacement: i64, probe: Val) -> (Val, i64) {
        let region = &*self.region;
        let root = region.def(probe).args[0];
        // What several ways have brought has no address of its own.
        if !root.is_some() || root == address || !matches!(region.def(address).op, Op::Address | Op::Const | Op::Pc) {
            return (address, displacement);
        }
        let distance = Sum::of(region, root).distance_to(&Sum::of(region, address));
        let distance = distance.map(|between| (between as i64).wrapping_add(displacement));
        match distance.filter(|distance| i32::try_from(*distance).is_ok()) {
            Some(distance) => (root, distance),
            None => (address, displacement),
        }
    }

    /// The addend for an access that has a probe of its own already.
    fn addend_of_probe(&mut self, block: BlockId, inst: &Inst, body: &mut Vec<Val>) -> Val {
        let span = Span::unpack(inst.imm);
        let (address, displacement, bytes) = (inst.args[0], i64::from(span.low) as u64, span.high - span.low);
        self.addend(block, &Access { address, displacement, bytes, rights: inst.aux, snapshot: inst.snapshot }, body)
    }

    /// The whole table in which an access lies, if the index is small and the table, as far as one can guess, in one page.
    fn table_around(&mut self, access: &Access, body: &mut Vec<Val>) -> Option<Access> {
        let (root, stripped) = root_of(self.region, access.address);
        let def = *self.region.def(root);
        if self.region.cautious || def.op != Op::Address || def.ty != Ty::I64 || !def.args[1].is_some() {
            return None;
        }
        let (scale, [table, index, _]) = (u32::from(def.aux & 3), def.args);
        let is_swapped = scale == 0 && table.is_some() && most(self.region, index) >= PAGE;
        let [table, index] = if is_swapped { [index, table] } else { [table, index] };
        let indexes = most(self.region, index).checked_mul(1 << scale).filter(|most| *most < PAGE)?;
        let first = def.imm.wrapping_add(stripped).wrapping_add(access.displacement);
        let bytes = indexes + access.bytes as u64;
        let start = if table.is_some() { self.guess(table)? } else { 0 }.wrapping_add(first);
        if start % PAGE + bytes > PAGE {
            return None;
        }
        let address = match table.is_some() {
            true => table,
            false => {
                let zero = self.region.add(Inst::new(Op::Const, Ty::I64));
                body.push(zero);
                self.alias.resize(self.region.insts.len(), Val::NONE);
                zero
            }
        };
        Some(Access { address, displacement: first, bytes: bytes as i32, ..*access })
    }

    /// What a value may be that does not change in the region.
    fn guess(&self, value: Val) -> Option<u64> {
        let (root, distance) = root_of(self.region, value);
        let def = self.region.def(root);
        let found = match def.op {
            Op::Const => def.imm,
            Op::Pc => self.region.target(def.imm),
            Op::Param if self.params.get(&root)?.0 == 0 => *self.region.guesses.get(usize::try_from(def.imm).ok()?)?,
            _ => return None,
        };
        Some(found.wrapping_add(distance))
    }

    /// Whether an address has been found aligned already. If not it is from here on.
    fn is_aligned(&mut self, block: BlockId, inst: &Inst) -> bool {
        let Sum { terms, constant } = Sum::of(self.region, inst.args[0]);
        let from = constant.wrapping_add(inst.imm) % u64::from(inst.aux);
        let known = self.aligned.entry((terms, from, inst.aux)).or_default();
        if known.iter().any(|known| dominates(&self.dominators, *known, block)) {
            return true;
        }
        known.push(block);
        false
    }

    /// The addend for an access.
    fn addend(&mut self, block: BlockId, access: &Access, body: &mut Vec<Val>) -> Val {
        let Access { address, displacement, bytes, rights, snapshot } = *access;
        let (root, stripped) = root_of(self.region, address);
        let Sum { terms, constant } = Sum::of(self.region, root);
        let distance = stripped.wrapping_add(displacement);
        let weight = self.region.blocks[block as usize].weight;
        if let Some(probe) = self.shared(block, weight, &terms, constant.wrapping_add(distance), bytes, rights) {
            return probe;
        }
        let near = |distance: u64| i32::try_from(distance as i64).ok().filter(|low| low.checked_add(PAGE as i32).is_some());
        let span = |low: i32| Span { low, high: low + bytes };
        if let Some(low) = near(distance)
            && let Some(addend) = self.joined(weight, root, span(low), rights)
        {
            return addend;
        }
        let (at, beyond, span) = match (near(distance), near(displacement)) {
            (Some(low), _) => (root, 0, span(low)),
            // Far from what it is relative to.
            (None, Some(low)) => (address, stripped, span(low)),
            (None, None) => {
                let args = [address, Val::NONE, Val::NONE];
                let sum = self.region.add(Inst { args, imm: displacement, ..Inst::new(Op::Address, Ty::I64) });
                body.push(sum);
                (sum, distance, span(0))
            }
        };
        let constant = constant.wrapping_add(beyond);
        let args = [at, Val::NONE, Val::NONE];
        let probe = self.region.add(Inst { args, aux: rights, imm: span.pack(), snapshot, ..Inst::new(Op::Probe, Ty::I64) });
        body.push(probe);
        self.alias.resize(self.region.insts.len(), Val::NONE);
        self.probes.entry(terms).or_default().push(Known { block, probe, constant });
        probe
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
            let Sum { terms, constant } = Sum::of(self.region, arg);
            let low = constant.wrapping_add(i64::from(span.low) as u64);
            addends.push(self.shared(*from, weight, &terms, low, span.high - span.low, rights)?);
        }
        if addends.iter().all(|addend| *addend == addends[0]) {
            return addends.first().copied();
        }
        let addend = self.region.add_param(block, Ty::I64, NO_SLOT);
        self.alias.resize(self.region.insts.len(), Val::NONE);
        for ((from, edge), arg) in edges.iter().zip(addends) {
            self.region.blocks[*from as usize].end.edges_mut().nth(*edge)?.args.push(arg);
        }
        self.joined.entry(root).or_default().push(Joined { span, rights, addend });
        Some(addend)
    }

    /// A probe that is there and vouches for bytes at a constant behind the sum of some values, or can be made to by those who
    /// run as often as `often` says.
    fn shared(&mut self, block: BlockId, often: u32, terms: &Terms, constant: u64, bytes: i32, rights: u8) -> Option<Val> {
        for known in self.probes.get(terms)?.iter().rev() {
            let low = i32::try_from(constant.wrapping_sub(known.constant) as i64).ok();
            let span = low.and_then(|low| Some(Span { low, high: low.checked_add(bytes)? }));
            let Some(span) = span.filter(|_| dominates(&self.dominators, known.block, block)) else { continue };
            let inst = *self.region.def(known.probe);
            let has = Span::unpack(inst.imm);
            if has.contains(span) && inst.aux & rights == rights {
                return Some(known.probe);
            }
            if self.region.cautious {
                continue;
            }
            let both = has.union(span);
            // Whoever is seldom here must not make those fail who are always there: for few bytes more they seldom do.
            let weight = self.region.blocks[known.block as usize].weight;
            let Some(wide) = both.high.checked_sub(both.low).filter(|wide| *wide <= WIDEST) else { continue };
            let more = (wide - (has.high - has.low)).unsigned_abs();
            let is_cheap = inst.aux & rights == rights && u64::from(more) * u64::from(weight) <= SELDOM * u64::from(often);
            if is_cheap || often >= weight / 4 * 3 {
                let raised = if rights & !inst.aux & PROBE_WRITE != 0 { PROBE_RAISED } else { 0 };
                let inst = &mut self.region.insts[known.probe.index()];
                (inst.imm, inst.aux) = (both.pack(), inst.aux | rights | raised);
                return Some(known.probe);
            }
        }
        None
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
