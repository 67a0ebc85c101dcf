//! What must be known of a region before its code is written: how each token of flags is delivered, which conditions are never
//! values, and how far away the next use of each value is.
//!
//! # Flags
//! A token whose `need` is empty costs nothing on the way: whoever leaves recovers it from its [`Recipe`]. The others are
//! delivered in one of three ways ([`Delivery`]): left in the host's flags, when nothing between the instruction and all who
//! ask touches these; computed again by one instruction; or packed into a word that is a value like others.

use super::Refused;
use super::retired::Retired;
use super::streams::Streams;
use crate::ir::region::{BlockId, GuestState, Region, RegionBlock, Terminator, To};
use crate::ir::{Effects, FlagSet, Inst, Op, Ty, Val};
use rustc_hash::FxHashMap as HashMap;

/// How far away a use counts as that is not on the way: in a bail, or in an exit.
const COLD: u32 = 1 << 16;
/// What leaving a loop adds to the distance of what comes behind it.
const OUT_OF_LOOP: u32 = 1 << 10;

/// How whoever asks on the way gets a token's flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// Nobody asks.
    Nobody,
    /// They still are in the host's flags.
    InHost,
    /// `cmp` of the operands again.
    Compare,
    /// `test` of the result with itself.
    Test,
    /// The token is a word, as in the state.
    Packed,
}

/// From what the flags of an instruction can be had again, where the region is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recipe {
    /// `test r, r`
    Result,
    /// The instruction again, on its operands.
    Again,
    /// The instruction again, on a first operand that is computed from the result.
    Back,
}

/// A region as the emitter needs it.
pub(super) struct Plan<'a> {
    pub region: &'a Region,
    pub delivery: Vec<Delivery>,
    /// `Cond`s that are asked where they are used.
    pub is_virtual: Vec<bool>,
    /// Values that are used by something else than their flags.
    is_value: Vec<bool>,
    /// The value in whose place each value is: extensions and truncations that cost nothing.
    roots: Vec<Val>,
    /// The slot that each value goes to where the region is left.
    slots: HashMap<Val, u8>,
    /// Flags of each token that must be right on the way.
    need: Vec<FlagSet>,
    /// The `FlagsOf` that stands directly behind each value.
    token_behind: Vec<Val>,
    /// Accesses that ask for the same page again and again.
    pub streams: Streams,
    pub retired: Retired,
    /// Values that only guest states want: by how much each is more than another.
    derived: HashMap<Val, (Val, i32)>,
    /// Values that the guest's registers hold at the entry and that no parameter brings, by slot.
    untouched: Vec<Val>,
    /// For each block: positions of uses on the way, and of the last one in a guest state.
    positions: Vec<HashMap<Val, Positions>>,
    /// For each block: what is wanted behind it, and how far behind.
    behind: Vec<HashMap<Val, u32>>,
    /// For each block: what is wanted at its start.
    before: Vec<HashMap<Val, u32>>,
}

#[derive(Debug, Default, Clone)]
struct Positions {
    hot: Vec<u32>,
    cold: Option<u32>,
}

impl<'a> Plan<'a> {
    /// Of a region in SSA form. `untouched`: values for the slots with registers that no parameter of the entry brings.
    ///
    /// # Errors
    /// When there is something in it that the emitter does not know.
    pub fn new(region: &'a Region, untouched: Vec<Val>) -> Result<Self, Refused> {
        let count = region.insts.len();
        let mut plan = Self {
            region,
            delivery: vec![Delivery::Nobody; count],
            is_virtual: vec![false; count],
            is_value: vec![false; count],
            roots: (0..count as u32).map(Val).collect(),
            slots: HashMap::default(),
            need: vec![FlagSet::empty(); count],
            token_behind: vec![Val::NONE; count],
            streams: Streams::find(region),
            retired: Retired::plan(region),
            derived: HashMap::default(),
            untouched,
            positions: vec![HashMap::default(); region.blocks.len()],
            behind: vec![HashMap::default(); region.blocks.len()],
            before: vec![HashMap::default(); region.blocks.len()],
        };
        plan.find_roots();
        plan.find_values();
        plan.find_virtual_conditions();
        plan.deliver()?;
        plan.find_derived()?;
        plan.find_uses()?;
        plan.find_distances();
        Ok(plan)
    }

    // ---- Values that are others --------------------------------------------------------------------------------

    fn find_roots(&mut self) {
        let region = self.region;
        for value in region.blocks.iter().flat_map(|block| &block.body) {
            let inst = region.def(*value);
            let is_free = match inst.op {
                Op::Truncate => true,
                Op::ZeroExtend => inst.ty == Ty::I64 && region.def(inst.args[0]).ty == Ty::I32 && self.is_clean(inst.args[0]),
                _ => false,
            };
            if is_free {
                self.roots[value.index()] = self.root(inst.args[0]);
            }
        }
        for held in &region.slot_values {
            let root = self.root(held.value);
            self.slots.insert(root, held.slot);
        }
    }

    /// Whether the upper half of a 32-bit value's place is zero: the host's instructions see to that.
    fn is_clean(&self, value: Val) -> bool {
        let inst = self.region.def(self.root(value));
        let op = inst.op;
        let computes = op >= Op::Add && op <= Op::ShrDouble && inst.op.info().result == crate::ir::ops::Gives::Same;
        let moves = matches!(
            op,
            Op::BitSet
                | Op::BitReset
                | Op::BitFlip
                | Op::SwapBytes
                | Op::ZeroExtend
                | Op::SignExtend
                | Op::Address
                | Op::Select
                | Op::LoadVia
                | Op::Load
                | Op::NativeInteger
                | Op::Const
                | Op::Pc
        );
        inst.ty == Ty::I32 && (computes || moves)
    }

    /// The value in whose place a value is.
    pub fn root(&self, value: Val) -> Val {
        self.roots.get(value.index()).copied().unwrap_or(value)
    }

    /// The slot that a value goes to where the region is left.
    pub fn slot_of(&self, value: Val) -> Option<u8> {
        self.slots.get(&value).copied()
    }

    // ---- Who uses what -----------------------------------------------------------------------------------------

    fn find_values(&mut self) {
        let region = self.region;
        for block in &region.blocks {
            for value in &block.body {
                let inst = region.def(*value);
                if inst.op == Op::FlagsOf {
                    continue;
                }
                for arg in inst.arguments() {
                    self.is_value[arg.index()] = true;
                }
            }
            for pair in block.body.windows(2) {
                let next = region.def(pair[1]);
                if next.op == Op::FlagsOf && next.args[0] == pair[0] {
                    self.token_behind[pair[0].index()] = pair[1];
                }
            }
            for arg in block.end.edges().flat_map(|edge| &edge.args) {
                self.is_value[arg.index()] = true;
            }
            if let Terminator::Switch { target, .. } = block.end {
                self.is_value[target.index()] = true;
            }
        }
        for held in &region.slot_values {
            self.is_value[held.value.index()] = true;
        }
        for exit in region.exits.iter().filter(|exit| exit.target.is_some()) {
            self.is_value[exit.target.index()] = true;
        }
    }

    /// A `Cond` is virtual if all who use it are in its block and ask for a condition rather than a value.
    fn find_virtual_conditions(&mut self) {
        let region = self.region;
        let mut home = vec![BlockId::MAX; region.insts.len()];
        for (number, block) in region.blocks.iter().enumerate() {
            for value in &block.body {
                if region.def(*value).op == Op::Cond {
                    self.is_virtual[value.index()] = true;
                    home[value.index()] = number as BlockId;
                }
            }
        }
        for (number, block) in region.blocks.iter().enumerate() {
            let mut is_used = |value: Val, asks: bool| {
                if !asks || home[value.index()] != number as BlockId {
                    self.is_virtual[value.index()] = false;
                }
            };
            for value in &block.body {
                let inst = region.def(*value);
                let extends = inst.op == Op::ZeroExtend && region.def(inst.args[0]).result() == Some(Ty::Bool);
                for (number, arg) in inst.args.into_iter().enumerate().filter(|(_, arg)| arg.is_some()) {
                    is_used(arg, number == 0 && (extends || matches!(inst.op, Op::Select | Op::BailIf)));
                }
            }
            if let Terminator::Branch { condition, .. } = block.end {
                is_used(condition, true);
            }
            for edge in block.end.edges() {
                edge.args.iter().for_each(|arg| is_used(*arg, false));
            }
        }
    }

    // ---- Flags -------------------------------------------------------------------------------------------------

    /// The token at which an instruction looks on its way, conditions that are asked there included; and which flags.
    fn asks(&self, inst: &Inst) -> Option<(Val, FlagSet)> {
        match inst.op {
            Op::Select | Op::BailIf | Op::ZeroExtend => self.asked_by_condition(inst.args[0]),
            Op::Cond => Some((inst.args[0], inst.condition().flags())),
            Op::AddCarry | Op::SubBorrow | Op::RolCarry | Op::RorCarry => Some((inst.args[2], FlagSet::C)),
            _ => None,
        }
    }

    fn asked_by_condition(&self, condition: Val) -> Option<(Val, FlagSet)> {
        let def = self.region.def(condition);
        (def.op == Op::Cond && self.is_virtual[condition.index()]).then(|| (def.args[0], def.condition().flags()))
    }

    /// Flags of the old token that a `FlagsOf` passes on, of those that somebody needs of it.
    pub fn passed_on(&self, flags_of: &Inst, need: FlagSet) -> FlagSet {
        let source = self.region.def(flags_of.args[0]);
        let kept = match source.op.count_argument() {
            Some(argument) => match self.region.constant(source.args[argument]) {
                Some(count) if count as u8 & source.ty.count_mask() != 0 => source.op.flags_written().complement(),
                _ => FlagSet::all(),
            },
            None => source.op.flags_written().complement(),
        };
        need & kept
    }

    /// What of each token must be right on the way: what is asked there, and everything where a block is handed it.
    fn find_needs(&mut self) {
        let region = self.region;
        let mut changed = true;
        while std::mem::take(&mut changed) {
            let mut asks = Vec::new();
            for block in &region.blocks {
                for value in &block.body {
                    let inst = region.def(*value);
                    if !(inst.op == Op::Cond && self.is_virtual[value.index()]) {
                        asks.extend(self.asks(inst));
                    }
                    if inst.op == Op::FlagsOf && inst.args[1].is_some() {
                        asks.push((inst.args[1], self.passed_on(inst, self.need[value.index()])));
                    }
                }
                if let Terminator::Branch { condition, .. } = block.end {
                    asks.extend(self.asked_by_condition(condition));
                }
                let args = block.end.edges().flat_map(|edge| &edge.args);
                asks.extend(args.filter(|arg| region.def(**arg).ty == Ty::Flags).map(|arg| (*arg, FlagSet::all())));
            }
            for (token, flags) in asks {
                let need = &mut self.need[token.index()];
                changed |= !need.contains(flags);
                *need |= flags;
            }
        }
    }

    fn deliver(&mut self) -> Result<(), Refused> {
        let region = self.region;
        self.find_needs();
        let mut is_handed_on = vec![false; region.insts.len()];
        for arg in region.blocks.iter().flat_map(|block| block.end.edges()).flat_map(|edge| &edge.args) {
            is_handed_on[arg.index()] = true;
        }
        let in_states = self.values_of_states();
        for block in &region.blocks {
            for param in block.params.iter().filter(|param| region.def(**param).ty == Ty::Flags) {
                self.delivery[param.index()] = Delivery::Packed;
            }
            for (at, value) in block.body.iter().enumerate() {
                let inst = region.def(*value);
                if inst.result() != Some(Ty::Flags) {
                    if inst.op == Op::FlagsPack {
                        return Err(Refused::Operation(inst.op));
                    }
                    continue;
                }
                if inst.op == Op::NativeFlags {
                    // They cannot be had again: its operands have no values.
                    let stays = || self.stays_in_host(block, at, *value);
                    self.delivery[value.index()] = match self.need[value.index()].is_empty() {
                        _ if in_states[value.index()] || is_handed_on[value.index()] => Delivery::Packed,
                        true => Delivery::Nobody,
                        false if stays() => Delivery::InHost,
                        false => Delivery::Packed,
                    };
                    continue;
                }
                if inst.op != Op::FlagsOf {
                    return Err(Refused::Operation(inst.op));
                }
                if self.need[value.index()].is_empty() {
                    continue;
                }
                if at == 0 || block.body[at - 1] != inst.args[0] {
                    return Err(Refused::FlagsAreLate);
                }
                let handed_on = is_handed_on[value.index()];
                self.delivery[value.index()] = if handed_on { Delivery::Packed } else { self.deliver_one(block, at, *value) };
            }
        }
        Ok(())
    }

    /// What bails and exits recover flags from.
    fn values_of_states(&self) -> Vec<bool> {
        let region = self.region;
        let mut found = vec![false; region.insts.len()];
        let mut each = |value: Val| found[value.index()] = true;
        for block in &region.blocks {
            let snapshots = block.body.iter().filter_map(|value| region.snapshot(region.def(*value)));
            snapshots.for_each(|state| region.recipe(state.flags, &mut each));
        }
        region.exits.iter().for_each(|exit| region.recipe(exit.state.flags, &mut each));
        found
    }

    /// Whether a token can be left in the host's flags: nothing touches these before the last who asks, and nobody asks elsewhere.
    fn stays_in_host(&self, block: &RegionBlock, at: usize, token: Val) -> bool {
        let region = self.region;
        let (mut is_clean, mut is_in_host) = (true, true);
        for value in &block.body[at + 1..] {
            let later = region.def(*value);
            if later.op == Op::Cond && self.is_virtual[value.index()] {
                continue;
            }
            if self.asks(later).is_some_and(|(asked, _)| asked == token) {
                is_in_host &= is_clean;
            }
            is_clean &= !self.touches_flags(later, token);
        }
        if let Terminator::Branch { condition, .. } = block.end
            && self.asked_by_condition(condition).is_some_and(|(asked, _)| asked == token)
        {
            is_in_host &= is_clean;
        }
        is_in_host && !self.is_asked_elsewhere(block, token)
    }

    fn deliver_one(&self, block: &RegionBlock, at: usize, token: Val) -> Delivery {
        if self.stays_in_host(block, at, token) {
            return Delivery::InHost;
        }
        let region = self.region;
        let need = self.need[token.index()];
        let inst = region.def(token);
        let source = region.def(inst.args[0]);
        let by_test = (FlagSet::Z | FlagSet::S | FlagSet::P).contains(need) && self.is_value[inst.args[0].index()];
        match source.op {
            Op::And | Op::Or | Op::Xor if !need.contains(FlagSet::A) => Delivery::Test,
            Op::Add | Op::Inc | Op::Dec | Op::Neg | Op::Sub | Op::AddCarry | Op::SubBorrow if by_test => Delivery::Test,
            Op::Sub => Delivery::Compare,
            _ => Delivery::Packed,
        }
    }

    /// Whether a token is asked for in another block than its own, or by an instruction that passes some of it on.
    fn is_asked_elsewhere(&self, home: &RegionBlock, token: Val) -> bool {
        let region = self.region;
        region.blocks.iter().any(|block| {
            let elsewhere = !std::ptr::eq(block, home);
            let in_body = block.body.iter().any(|value| {
                let inst = region.def(*value);
                let passes =
                    inst.op == Op::FlagsOf && inst.args[1] == token && !self.passed_on(inst, self.need[value.index()]).is_empty();
                passes || elsewhere && self.asks(inst).is_some_and(|(asked, _)| asked == token)
            });
            in_body
                || elsewhere
                    && matches!(block.end, Terminator::Branch { condition, .. }
                        if self.asked_by_condition(condition).is_some_and(|(asked, _)| asked == token))
        })
    }

    /// Whether the host's flags may be lost by an instruction, other than to one who asks for `token` itself.
    fn touches_flags(&self, inst: &Inst, token: Val) -> bool {
        let from_bool = || self.region.def(inst.args[0]).result() == Some(Ty::Bool);
        match inst.op {
            Op::Const | Op::Pc | Op::FlagsOf | Op::LoadVia | Op::StoreVia | Op::Address => false,
            Op::Native | Op::NativeStore | Op::NativeInteger => false,
            Op::Truncate | Op::Not | Op::InsertLow | Op::SwapBytes => false,
            Op::SignExtend => from_bool(),
            Op::ZeroExtend if !from_bool() => false,
            Op::Select | Op::ZeroExtend | Op::BailIf | Op::Cond => self.asks(inst).is_none_or(|(asked, _)| asked != token),
            _ => true,
        }
    }

    /// The token for which the code of a value must leave all flags of the instruction in the host's.
    pub fn wanted_token(&self, value: Val) -> Option<Val> {
        let token = *self.token_behind.get(value.index())?;
        (token.is_some() && matches!(self.delivery[token.index()], Delivery::InHost | Delivery::Packed)).then_some(token)
    }

    /// How to have the flags of an instruction again.
    pub fn recipe(&self, source: Val) -> Result<Recipe, Refused> {
        let inst = self.region.def(source);
        let is_value = self.is_value[source.index()];
        Ok(match inst.op {
            Op::And | Op::Or | Op::Xor if is_value => Recipe::Result,
            Op::And | Op::Or | Op::Xor => Recipe::Again,
            Op::Add | Op::Sub | Op::Inc | Op::Dec | Op::Neg if is_value => Recipe::Back,
            Op::Add | Op::Sub | Op::Inc | Op::Dec | Op::Neg | Op::AddCarry | Op::SubBorrow => Recipe::Again,
            Op::Shl | Op::Shr | Op::Sar | Op::Rol | Op::Ror | Op::RolCarry | Op::RorCarry => Recipe::Again,
            Op::ShlDouble | Op::ShrDouble => Recipe::Again,
            Op::BitTest | Op::BitSet | Op::BitReset | Op::BitFlip => Recipe::Again,
            Op::MulSigned | Op::MulUnsigned if inst.ty != Ty::I8 => Recipe::Again,
            op => return Err(Refused::Operation(op)),
        })
    }

    /// The values from which a token's flags are had on the way.
    fn delivered_from(&self, token: Val, each: &mut impl FnMut(Val)) {
        let inst = self.region.def(token);
        match self.delivery[token.index()] {
            Delivery::Packed => each(token),
            Delivery::Test => each(inst.args[0]),
            Delivery::Compare => self.region.def(inst.args[0]).arguments().for_each(each),
            Delivery::InHost | Delivery::Nobody => {}
        }
    }

    /// Whether a token is a word with all six flags.
    pub fn is_whole(&self, token: Val) -> bool {
        let inst = self.region.def(token);
        let is_packed = self.delivery[token.index()] == Delivery::Packed;
        let passes = || self.passed_on(inst, FlagSet::all());
        is_packed && (inst.op != Op::FlagsOf || self.need[token.index()].contains(passes()))
    }

    /// The values from which a token's flags are recovered where the region is left.
    fn recovered_from(&self, token: Val, each: &mut impl FnMut(Val)) -> Result<(), Refused> {
        if !token.is_some() {
            return Ok(());
        }
        let inst = self.region.def(token);
        if self.is_whole(token) {
            each(token);
            return Ok(());
        }
        if inst.op != Op::FlagsOf {
            return Err(Refused::Operation(inst.op));
        }
        let source = self.region.def(inst.args[0]);
        match self.recipe(inst.args[0])? {
            Recipe::Result => each(inst.args[0]),
            Recipe::Back => {
                each(inst.args[0]);
                if source.args[1].is_some() {
                    each(source.args[1]);
                }
            }
            Recipe::Again => {
                // What comes through the carry and what is passed on must be had in one.
                if matches!(source.op, Op::RolCarry | Op::RorCarry) && inst.args[1] != source.args[2] {
                    return Err(Refused::Operation(source.op));
                }
                for arg in source.arguments() {
                    if self.region.def(arg).result() == Some(Ty::Flags) {
                        self.recovered_from(arg, each)?;
                    } else {
                        each(arg);
                    }
                }
            }
        }
        if !self.passed_on(inst, FlagSet::all()).is_empty() {
            self.recovered_from(inst.args[1], each)?;
        }
        Ok(())
    }

    // ---- Where they are used -----------------------------------------------------------------------------------

    fn find_uses(&mut self) -> Result<(), Refused> {
        let region = self.region;
        for (number, block) in region.blocks.iter().enumerate() {
            let mut positions: HashMap<Val, Positions> = HashMap::default();
            let add = |positions: &mut HashMap<Val, Positions>, used: Val, at: u32, hot: bool| {
                add(positions, self.root(used), at, hot);
            };
            for (at, value) in block.body.iter().enumerate() {
                let inst = region.def(*value);
                let at = at as u32;
                if !self.derived.contains_key(value) {
                    self.hot_uses(*value, inst, &mut |used| add(&mut positions, used, at, true));
                }
                if inst.op.info().effects.contains(Effects::MAY_BAIL) {
                    let state = region.snapshot(inst).ok_or(Refused::Operation(inst.op))?;
                    let at = if self.late_check(block) == Some(*value) { block.body.len() as u32 } else { at };
                    self.cold_uses(state, &mut |used| add(&mut positions, used, at, false))?;
                }
            }
            let end = block.body.len() as u32;
            match block.end {
                Terminator::Branch { condition, .. } => {
                    self.condition_uses(condition, &mut |used| add(&mut positions, used, end, true));
                }
                Terminator::Switch { target, .. } => add(&mut positions, target, end, true),
                Terminator::Jump(_) => {}
            }
            for edge in block.end.edges() {
                match edge.to {
                    To::Block(_) => edge.args.iter().for_each(|arg| add(&mut positions, *arg, end, true)),
                    To::Exit(exit) => {
                        let exit = &region.exits[exit as usize];
                        let mut each = |used| add(&mut positions, used, end, false);
                        self.cold_uses(&exit.state, &mut each)?;
                        if exit.target.is_some() {
                            each(exit.target);
                        }
                    }
                }
            }
            self.positions[number] = positions;
        }
        Ok(())
    }

    /// A block's check of the target of its indirect jump or return, if nothing with an effect comes between: it is made only
    /// where the target is none of those that are known, which are as they should be.
    pub fn late_check(&self, block: &RegionBlock) -> Option<Val> {
        let Terminator::Switch { target, .. } = block.end else { return None };
        let has_effect = |value: &&Val| self.region.def(**value).op.info().effects != Effects::PURE;
        let check = *block.body.iter().rev().find(has_effect)?;
        let inst = self.region.def(check);
        (inst.op == Op::CheckPc && inst.args[0] == target).then_some(check)
    }

    fn condition_uses(&self, condition: Val, each: &mut impl FnMut(Val)) {
        match self.asked_by_condition(condition) {
            Some((token, _)) => self.delivered_from(token, each),
            None => each(condition),
        }
    }

    /// What an instruction uses on the way.
    fn hot_uses(&self, value: Val, inst: &Inst, each: &mut impl FnMut(Val)) {
        if self.is_virtual[value.index()] && inst.op == Op::Cond || inst.op == Op::FlagsOf {
            return;
        }
        for (number, arg) in inst.args.into_iter().enumerate().filter(|(_, arg)| arg.is_some()) {
            if self.region.def(arg).result() == Some(Ty::Flags) {
                self.delivered_from(arg, each);
            } else if number == 0 && matches!(inst.op, Op::Select | Op::BailIf | Op::ZeroExtend) {
                self.condition_uses(arg, each);
            } else {
                each(arg);
            }
        }
        // Flags that an instruction leaves as they are must be in the host's before it.
        if let Some(old) = self.old_flags(value) {
            self.delivered_from(old, each);
        }
    }

    /// The token whose flags must be in the host's before an instruction, because it passes some of them on.
    pub fn old_flags(&self, value: Val) -> Option<Val> {
        let token = self.wanted_token(value)?;
        let inst = self.region.def(token);
        (inst.args[1].is_some() && !self.passed_on(inst, self.need[token.index()]).is_empty()).then_some(inst.args[1])
    }

    /// What a value that only states want is made of there: another value (itself if it is none of those) and a distance.
    pub fn derived_from(&self, value: Val) -> (Val, i32) {
        let root = self.root(value);
        self.derived.get(&root).copied().unwrap_or((root, 0))
    }

    /// Finds sums with constants that only states want: these are computed where the region is left.
    fn find_derived(&mut self) -> Result<(), Refused> {
        let region = self.region;
        let mut derived: HashMap<Val, (Val, i32)> = HashMap::default();
        for value in region.blocks.iter().flat_map(|block| &block.body) {
            let inst = region.def(*value);
            let number = |value: Val| region.constant(value);
            let by = match inst.op {
                Op::Address if inst.args[0].is_some() && !inst.args[1].is_some() => Some(inst.imm),
                Op::Add => number(inst.args[1]),
                Op::Sub => number(inst.args[1]).map(u64::wrapping_neg),
                Op::Inc => Some(1),
                Op::Dec => Some(u64::MAX),
                _ => None,
            };
            // Sums of all of a region's instructions stay in range.
            if let Some(by) = by.and_then(|by| i16::try_from(by as i64).ok())
                && inst.ty == Ty::I64
                && self.root(*value) == *value
                && self.wanted_token(*value).is_none()
            {
                derived.insert(*value, (self.root(inst.args[0]), by.into()));
            }
        }
        // What is used on the way by something that is not among them is not among them itself.
        let mut count = usize::MAX;
        while count != derived.len() {
            count = derived.len();
            self.used_otherwise(&derived.clone(), &mut |used| _ = derived.remove(&self.root(used)))?;
        }
        // A sum's base comes before it.
        for value in region.blocks.iter().flat_map(|block| &block.body) {
            if let Some((base, by)) = derived.get(value).copied()
                && let Some((below, more)) = derived.get(&base).copied()
            {
                derived.insert(*value, (below, by + more));
            }
        }
        self.derived = derived;
        Ok(())
    }

    /// All that is used by more than the slots of states, but for what makes these values.
    fn used_otherwise(&self, but: &HashMap<Val, (Val, i32)>, each: &mut impl FnMut(Val)) -> Result<(), Refused> {
        let region = self.region;
        for block in &region.blocks {
            for value in &block.body {
                let inst = region.def(*value);
                if self.root(*value) == *value && !but.contains_key(value) {
                    self.hot_uses(*value, inst, each);
                }
                if let Some(state) = region.snapshot(inst) {
                    self.recovered_from(state.flags, each)?;
                }
            }
            if let Terminator::Branch { condition, .. } = block.end {
                self.condition_uses(condition, each);
            } else if let Some(target) = block.end.looks_at() {
                each(target);
            }
            for edge in block.end.edges() {
                edge.args.iter().for_each(|arg| each(*arg));
                if let To::Exit(exit) = edge.to {
                    let exit = &region.exits[exit as usize];
                    self.recovered_from(exit.state.flags, each)?;
                    if exit.target.is_some() {
                        each(exit.target);
                    }
                }
            }
        }
        Ok(())
    }

    /// What restoring a state needs.
    fn cold_uses(&self, state: &GuestState, each: &mut impl FnMut(Val)) -> Result<(), Refused> {
        let slots = self.region.slots_of(state);
        for held in slots {
            each(self.derived_from(held.value).0);
        }
        for (slot, value) in self.untouched.iter().enumerate() {
            if value.is_some() && !slots.iter().any(|held| usize::from(held.slot) == slot) {
                each(*value);
            }
        }
        self.recovered_from(state.flags, each)
    }

    /// The value that a slot with a register had at the region's entry.
    pub fn at_entry(&self, slot: usize) -> Val {
        self.untouched.get(slot).copied().unwrap_or(Val::NONE)
    }

    // ---- How far away ------------------------------------------------------------------------------------------

    fn find_distances(&mut self) {
        let region = self.region;
        let defined: Vec<Vec<Val>> =
            region.blocks.iter().map(|block| block.params.iter().chain(&block.body).copied().collect()).collect();
        // Distances of values that go around several loops settle after as many rounds; that they are wanted at all is found first.
        for round in 0.. {
            let mut changed = false;
            for number in (0..region.blocks.len()).rev() {
                let block = &region.blocks[number];
                let mut behind = std::mem::take(&mut self.behind[number]);
                for to in block.end.successors() {
                    let depth = region.blocks[to as usize].depth;
                    let extra = OUT_OF_LOOP * u32::from(block.depth.saturating_sub(depth));
                    for (value, distance) in &self.before[to as usize] {
                        let distance = (distance + extra).min(COLD);
                        let known = behind.entry(*value).or_insert_with(|| {
                            changed = true;
                            u32::MAX
                        });
                        *known = (*known).min(distance);
                    }
                }
                let len = block.body.len() as u32 + 1;
                let mut before: HashMap<Val, u32> =
                    behind.iter().map(|(value, distance)| (*value, (distance + len).min(COLD))).collect();
                for (value, positions) in &self.positions[number] {
                    let distance = positions.hot.first().copied().unwrap_or(COLD);
                    let known = before.entry(*value).or_insert(distance);
                    *known = (*known).min(distance);
                }
                for value in &defined[number] {
                    before.remove(value);
                }
                self.behind[number] = behind;
                self.before[number] = before;
            }
            if !changed && round >= 2 {
                return;
            }
        }
    }

    /// How far behind a position of a block a value is used next. `None`: never.
    pub fn next_use(&self, block: usize, position: u32, value: Val) -> Option<u32> {
        let value = self.root(value);
        let mut best = self.behind[block]
            .get(&value)
            .map(|distance| distance + (self.region.blocks[block].body.len() as u32 + 1).saturating_sub(position));
        if let Some(positions) = self.positions[block].get(&value) {
            let hot = positions.hot.iter().find(|at| **at >= position).map(|at| at - position);
            let cold = positions.cold.filter(|at| *at >= position).map(|_| COLD);
            best = [best, hot, cold].into_iter().flatten().min();
        }
        best
    }

    /// Whether a block wants a value at its start.
    pub fn is_wanted(&self, block: usize, value: Val) -> bool {
        self.before[block].contains_key(&value)
    }
}

fn add(positions: &mut HashMap<Val, Positions>, value: Val, at: u32, hot: bool) {
    let known = positions.entry(value).or_default();
    if !hot {
        known.cold = Some(at);
    } else if known.hot.last() != Some(&at) {
        known.hot.push(at);
    }
}
