//! From slots to values: takes `GetSlot`, `SetSlot`, `GetFlags` and `SetFlags` out of a formed region and gives every snapshot
//! and exit its state.
//!
//! Every block with several predecessors first gets a parameter for each slot that anything in the region sets; those that
//! would be handed one value only are then removed again, until none is left. (Aycock, Horspool, "Simple Generation of Static
//! Single-Assignment Form".)

use super::super::ops::{Effects, Op, Ty};
use super::super::{HIGH_BYTE, Inst, NO_SNAPSHOT, Val};
use super::{BlockId, Edge, FLAGS, GuestState, Region, SlotValue, To};

/// Slots and, last, the flags.
const PLACES: usize = 64;
const FLAGS_PLACE: usize = PLACES - 1;

/// How often parameters are gone through.
const ROUNDS: usize = 12;

/// What each place holds; `NONE`: nobody has asked yet for what it held at the entry.
type Held = [Val; PLACES];

/// The conversion. Blocks must be in reverse postorder, the entry without predecessors and empty.
pub(crate) fn slots_to_ssa(region: &mut Region) {
    debug_assert!(region.slots.len() < FLAGS_PLACE && region.blocks[0].body.is_empty());
    let mut conversion = Conversion::new(region);
    for block in 0..conversion.region.blocks.len() as BlockId {
        conversion.convert(block);
    }
    conversion.fill_arguments();
    let alias = conversion.alias;
    region.is_ssa = true;
    substitute(region, alias);
    remove_needless_params(region);
}

struct Conversion<'a> {
    region: &'a mut Region,
    before: Vec<Vec<BlockId>>,
    /// Places that something sets, and those alone that are asked for.
    set: u64,
    asked: u64,
    entry: Held,
    /// What each block leaves.
    left: Vec<Held>,
    /// What stands for a value that is no more.
    alias: Vec<Val>,
}

impl<'a> Conversion<'a> {
    fn new(region: &'a mut Region) -> Self {
        let (mut set, mut asked) = (0u64, 0u64);
        for block in &region.blocks {
            for value in &block.body {
                let inst = region.def(*value);
                match inst.op {
                    Op::SetSlot => set |= 1 << inst.imm,
                    Op::GetSlot => asked |= 1 << inst.imm,
                    Op::SetFlags => set |= 1 << FLAGS_PLACE,
                    Op::GetFlags => asked |= 1 << FLAGS_PLACE,
                    _ => {}
                }
            }
        }
        let before = region.predecessors();
        let left = vec![[Val::NONE; PLACES]; region.blocks.len()];
        let mut conversion = Self { region, before, set, asked, entry: [Val::NONE; PLACES], left, alias: Vec::new() };
        conversion.entry = conversion.params(0, set | asked);
        conversion
    }

    /// A parameter of a block for each of some places.
    fn params(&mut self, block: BlockId, places: u64) -> Held {
        let mut held = [Val::NONE; PLACES];
        for (place, held) in held.iter_mut().enumerate().filter(|(place, _)| places >> place & 1 != 0) {
            *held = match self.region.slots.get(place) {
                Some(slot) => self.region.add_param(block, slot.ty, place as u64),
                None => self.region.add_param(block, Ty::Flags, FLAGS),
            };
        }
        held
    }

    fn convert(&mut self, block: BlockId) {
        let mut held = match self.before[block as usize][..] {
            [] => self.entry,
            [one] if one < block => self.left[one as usize],
            _ => {
                let mut held = self.params(block, self.set);
                for place in (0..PLACES).filter(|place| (self.asked & !self.set) >> place & 1 != 0) {
                    held[place] = self.entry[place];
                }
                held
            }
        };
        let body = std::mem::take(&mut self.region.blocks[block as usize].body);
        let mut kept = Vec::with_capacity(body.len());
        for value in body {
            if self.convert_inst(value, &mut held) {
                kept.push(value);
            }
        }
        let ends: Vec<To> = self.region.blocks[block as usize].end.edges().map(|edge| edge.to).collect();
        for to in ends {
            let To::Exit(exit) = to else { continue };
            let state = self.state(&held, self.region.exits[exit as usize].state.clone());
            self.region.exits[exit as usize].state = state;
        }
        self.region.blocks[block as usize].body = kept;
        self.left[block as usize] = held;
    }

    /// Whether the instruction stays, as what it has become.
    fn convert_inst(&mut self, value: Val, held: &mut Held) -> bool {
        let inst = *self.region.def(value);
        let high = inst.aux == HIGH_BYTE;
        let place = if matches!(inst.op, Op::GetFlags | Op::SetFlags) { FLAGS_PLACE } else { inst.imm as usize % PLACES };
        let becomes = |op, ty, args| Inst { args, ..Inst::new(op, ty) };
        let new = match (inst.op, inst.ty) {
            (Op::GetSlot, Ty::I64 | Ty::V128) | (Op::GetFlags, _) => {
                self.stand_in(value, held[place]);
                return false;
            }
            (Op::GetSlot, ty) => becomes(if high { Op::HighByte } else { Op::Truncate }, ty, [held[place], Val::NONE, Val::NONE]),
            (Op::SetSlot, Ty::I64 | Ty::V128) | (Op::SetFlags, _) => {
                held[place] = inst.args[0];
                return false;
            }
            (Op::SetSlot, ty) => {
                let new = match ty {
                    Ty::I32 => becomes(Op::ZeroExtend, Ty::I64, inst.args),
                    _ => becomes(
                        if high { Op::InsertHigh } else { Op::InsertLow },
                        Ty::I64,
                        [held[place], inst.args[0], Val::NONE],
                    ),
                };
                held[place] = value;
                new
            }
            _ => {
                if inst.op.info().effects.contains(Effects::MAY_BAIL) && inst.snapshot != NO_SNAPSHOT {
                    // All of a guest instruction that may bail stands before its first commit: they have one state.
                    let snapshot = usize::from(inst.snapshot);
                    let state = self.state(held, self.region.snapshots[snapshot].clone());
                    self.region.snapshots[snapshot] = state;
                }
                return true;
            }
        };
        self.region.insts[value.index()] = new;
        true
    }

    fn stand_in(&mut self, value: Val, by: Val) {
        if self.alias.len() <= value.index() {
            self.alias.resize(self.region.insts.len(), Val::NONE);
        }
        self.alias[value.index()] = by;
    }

    /// A state with what is held now.
    fn state(&mut self, held: &Held, state: GuestState) -> GuestState {
        let start = self.region.slot_values.len() as u32;
        let set = (0..FLAGS_PLACE).filter(|slot| self.set >> slot & 1 != 0);
        let values = set.map(|slot| SlotValue { slot: slot as u8, value: held[slot] });
        self.region.slot_values.extend(values.filter(|held| held.value != self.entry[usize::from(held.slot)]));
        let flags = if self.set >> FLAGS_PLACE & 1 != 0 { held[FLAGS_PLACE] } else { Val::NONE };
        GuestState { flags, slots: start..self.region.slot_values.len() as u32, ..state }
    }

    fn fill_arguments(&mut self) {
        for from in 0..self.region.blocks.len() {
            let place = |param: &Val| match self.region.def(*param).imm {
                FLAGS => FLAGS_PLACE,
                slot => slot as usize,
            };
            let args = |edge: &Edge| match edge.to {
                To::Block(to) => {
                    self.region.blocks[to as usize].params.iter().map(|param| self.left[from][place(param)]).collect()
                }
                To::Exit(_) => Vec::new(),
            };
            let args: Vec<Vec<Val>> = self.region.blocks[from].end.edges().map(args).collect();
            for (edge, args) in self.region.blocks[from].end.edges_mut().zip(args) {
                edge.args = args;
            }
        }
    }
}

/// Puts for each value that has a stand-in (that may have one too) the last of them wherever it is used, and cleans states of
/// what did not change since the region's entry. The places of values that are no more are nobody's business.
pub(crate) fn substitute(region: &mut Region, mut alias: Vec<Val>) {
    alias.resize(region.insts.len(), Val::NONE);
    let mut last = |value: &mut Val| {
        if !value.is_some() {
            return;
        }
        let mut end = *value;
        while alias[end.index()].is_some() {
            end = alias[end.index()];
        }
        // Later questions take one step.
        let mut at = *value;
        while at != end {
            at = std::mem::replace(&mut alias[at.index()], end);
        }
        *value = end;
    };
    let Region { insts, blocks, exits, snapshots, slot_values, .. } = region;
    for block in blocks.iter_mut() {
        for value in &block.body {
            let inst = &mut insts[value.index()];
            // A token belongs to its very instruction.
            let fixed = usize::from(inst.op == Op::FlagsOf);
            inst.args[fixed..].iter_mut().for_each(&mut last);
        }
        if let Some(value) = block.end.looks_at_mut() {
            last(value);
        }
        for edge in block.end.edges_mut() {
            edge.args.iter_mut().for_each(&mut last);
        }
    }
    for held in slot_values.iter_mut() {
        last(&mut held.value);
    }
    for exit in exits.iter_mut() {
        last(&mut exit.target);
        last(&mut exit.state.flags);
    }
    for state in snapshots.iter_mut() {
        last(&mut state.flags);
    }
    drop_unchanged(region);
}

/// Takes out of all states what is as it was at the region's entry.
fn drop_unchanged(region: &mut Region) {
    let mut at_entry = [Val::NONE; 256];
    for param in &region.blocks[0].params {
        at_entry[region.insts[param.index()].imm as usize & 0xff] = *param;
    }
    let old = std::mem::take(&mut region.slot_values);
    let mut new = Vec::with_capacity(old.len());
    for state in region.snapshots.iter_mut().chain(region.exits.iter_mut().map(|exit| &mut exit.state)) {
        let start = new.len() as u32;
        let held = &old[state.slots.start as usize..state.slots.end as usize];
        new.extend(held.iter().filter(|held| held.value != at_entry[usize::from(held.slot)]));
        state.slots = start..new.len() as u32;
        if state.flags == at_entry[FLAGS as usize] {
            state.flags = Val::NONE;
        }
    }
    region.slot_values = new;
}

/// Removes parameters that are handed one value only (besides themselves), and those that are handed the same as another of
/// their block.
pub(crate) fn remove_needless_params(region: &mut Region) {
    // Each round may show more of them. What is left after some does no harm.
    for _ in 0..ROUNDS {
        let mut alias = vec![Val::NONE; region.insts.len()];
        let resolve = |alias: &[Val], mut value: Val| {
            while alias[value.index()].is_some() {
                value = alias[value.index()];
            }
            value
        };
        let mut any = false;
        let incoming = incoming(region);
        for (number, block) in region.blocks.iter().enumerate().skip(1) {
            let arguments = |at: usize| incoming[number].iter().map(move |(from, edge)| (*from, *edge, at));
            let argument = |alias: &[Val], (from, edge, at): (BlockId, usize, usize)| {
                let edge = region.blocks[from as usize].end.edges().nth(edge);
                edge.map_or(Val::NONE, |edge| resolve(alias, edge.args[at]))
            };
            for (at, param) in block.params.iter().enumerate() {
                let mut one = Val::NONE;
                let needless = arguments(at).all(|way| {
                    let arg = argument(&alias, way);
                    let fits = arg == *param || arg == one || !one.is_some();
                    if fits && arg != *param {
                        one = arg;
                    }
                    fits
                });
                let twin = || {
                    (0..at).map(|before| (before, block.params[before])).find(|(before, twin)| {
                        !alias[twin.index()].is_some()
                            && region.def(*twin).ty == region.def(*param).ty
                            && arguments(at).zip(arguments(*before)).all(|(a, b)| {
                                let (a, b) = (argument(&alias, a), argument(&alias, b));
                                a == b || a == *param && b == *twin
                            })
                    })
                };
                if needless && one.is_some() {
                    alias[param.index()] = one;
                } else if let Some((_, twin)) = twin() {
                    alias[param.index()] = twin;
                } else {
                    continue;
                }
                any = true;
            }
        }
        if !any {
            return;
        }
        retain_params(region, |param| !alias[param.index()].is_some());
        substitute(region, alias);
    }
}

/// For each block the edges that lead to it: from which block, and which of its edges.
pub(crate) fn incoming(region: &Region) -> Vec<Vec<(BlockId, usize)>> {
    let mut incoming = vec![Vec::new(); region.blocks.len()];
    for (from, block) in region.blocks.iter().enumerate() {
        for (at, edge) in block.end.edges().enumerate() {
            if let To::Block(to) = edge.to {
                incoming[to as usize].push((from as BlockId, at));
            }
        }
    }
    incoming
}

/// Keeps only some of all blocks' parameters, and their arguments.
pub(crate) fn retain_params(region: &mut Region, keeps: impl Fn(Val) -> bool) {
    let kept: Vec<Vec<bool>> =
        region.blocks.iter().map(|block| block.params.iter().map(|param| keeps(*param)).collect()).collect();
    for block in &mut region.blocks {
        for edge in block.end.edges_mut() {
            if let To::Block(to) = edge.to {
                let mut kept = kept[to as usize].iter();
                edge.args.retain(|_| kept.next().is_some_and(|kept| *kept));
            }
        }
    }
    for (block, kept) in region.blocks.iter_mut().zip(&kept) {
        let mut kept = kept.iter();
        block.params.retain(|_| kept.next().is_some_and(|kept| *kept));
    }
}
