//! What every region must keep. Debug builds run it after forming and after every pass.

use super::super::ops::{Effects, Op, Ty};
use super::super::verify::{check_argument, check_shape, check_slot};
use super::super::{NO_SNAPSHOT, Val};
use super::{BlockId, GuestState, Region, RegionBlock, Terminator, To};

/// Says what is wrong with a region.
///
/// # Errors
/// The first rule that is broken, and where.
pub(crate) fn verify(region: &Region) -> Result<(), String> {
    let rules = Rules::new(region).map_err(|why| format!("{why}\n{region}"))?;
    for number in 0..region.blocks.len() {
        rules.check_block(number as BlockId).map_err(|why| format!("b{number}: {why}\n{region}"))?;
    }
    Ok(())
}

struct Rules<'a> {
    region: &'a Region,
    /// The block that defines each value, and at which step of it. Parameters are step 0.
    places: Vec<Option<(BlockId, u32)>>,
    /// The immediate dominators.
    dominators: Vec<BlockId>,
}

impl<'a> Rules<'a> {
    fn new(region: &'a Region) -> Result<Self, String> {
        let mut places = vec![None; region.insts.len()];
        for (number, block) in region.blocks.iter().enumerate() {
            for (step, value) in steps(block) {
                let place = places.get_mut(value.index()).ok_or_else(|| format!("{value:?} is nowhere"))?;
                if place.replace((number as BlockId, step)).is_some() {
                    return Err(format!("{value:?} is in two places"));
                }
            }
            for edge in block.end.edges() {
                match edge.to {
                    To::Block(0) => return Err("the entry has a predecessor".into()),
                    To::Block(to) => {
                        let Some(to) = region.blocks.get(to as usize) else { return Err("an edge leads nowhere".into()) };
                        if to.params.len() != edge.args.len() {
                            return Err(format!("b{number}: an edge has {} arguments of {}", edge.args.len(), to.params.len()));
                        }
                    }
                    To::Exit(exit) if exit as usize >= region.exits.len() => return Err("an edge leads to no exit".into()),
                    To::Exit(_) if !edge.args.is_empty() => return Err("an exit takes no arguments".into()),
                    To::Exit(_) => {}
                }
            }
        }
        let dominators = super::dominators(region);
        for (number, block) in region.blocks.iter().enumerate().skip(1) {
            if dominators[number] == BlockId::MAX && !block.body.is_empty() {
                return Err(format!("b{number} cannot be reached"));
            }
        }
        Ok(Self { region, places, dominators })
    }

    fn check_block(&self, number: BlockId) -> Result<(), String> {
        let block = &self.region.blocks[number as usize];
        if block.params.iter().any(|param| self.region.def(*param).op != Op::Param) {
            return Err("a parameter is none".into());
        }
        for (at, value) in block.body.iter().enumerate() {
            let step = at as u32 + 1;
            self.check_inst(number, step, block, *value)
                .map_err(|why| format!("{value:?} {}: {why}", self.region.def(*value).op.info().name))?;
        }
        let end = block.body.len() as u32 + 1;
        if let Some(value) = block.end.looks_at() {
            self.check_use(number, end, value)?;
            let wanted = if matches!(block.end, Terminator::Branch { .. }) { Ty::Bool } else { Ty::I64 };
            if self.region.def(value).result() != Some(wanted) {
                return Err("ends with what is no Bool, or no pc".into());
            }
        }
        for edge in block.end.edges() {
            match edge.to {
                To::Block(to) => {
                    for (arg, param) in edge.args.iter().zip(&self.region.blocks[to as usize].params) {
                        self.check_use(number, end, *arg)?;
                        if self.region.def(*arg).result() != self.region.def(*param).result() {
                            return Err(format!("{arg:?} is not what {param:?} wants"));
                        }
                    }
                }
                To::Exit(exit) => {
                    let exit = &self.region.exits[exit as usize];
                    let indirect = matches!(exit.op, Op::JumpIndirect | Op::CallIndirect | Op::Ret);
                    if !indirect && !matches!(exit.op, Op::Jump | Op::Call) || indirect != exit.target.is_some() {
                        return Err(format!("an exit cannot be {}", exit.op.info().name));
                    }
                    if indirect {
                        self.check_use(number, end, exit.target)?;
                    }
                    self.check_state(number, end, &exit.state)?;
                }
            }
        }
        Ok(())
    }

    fn check_inst(&self, number: BlockId, step: u32, block: &RegionBlock, value: Val) -> Result<(), String> {
        let region = self.region;
        let inst = region.def(value);
        check_shape(inst)?;
        let effects = inst.op.info().effects;
        if matches!(inst.op, Op::Nop | Op::Param) || effects.contains(Effects::ENDS_BLOCK) {
            return Err("cannot be in a body".into());
        }
        if region.is_ssa && matches!(inst.op, Op::GetSlot | Op::SetSlot | Op::GetFlags | Op::SetFlags | Op::CallInterp) {
            return Err("slots are values by now".into());
        }
        for (argument, arg) in inst.args.iter().enumerate().filter(|(_, arg)| arg.is_some()) {
            self.check_use(number, step, *arg)?;
            check_argument(inst, argument, region.def(*arg))?;
        }
        check_slot(inst, region.slots)?;
        if effects.contains(Effects::MAY_BAIL) {
            let Some(state) = region.snapshot(inst) else { return Err("has no snapshot".into()) };
            self.check_state(number, step, state)?;
        } else if inst.snapshot != NO_SNAPSHOT {
            return Err("needs no snapshot".into());
        }
        if inst.op == Op::FlagsOf && !inst.need.is_empty() {
            let before = step.checked_sub(2).and_then(|at| block.body.get(at as usize));
            if before != Some(&inst.args[0]) {
                return Err("does not follow its instruction".into());
            }
        }
        Ok(())
    }

    fn check_state(&self, number: BlockId, step: u32, state: &GuestState) -> Result<(), String> {
        if state.flags.is_some() {
            self.check_use(number, step, state.flags)?;
            if self.region.def(state.flags).result() != Some(Ty::Flags) {
                return Err("a state's flags are none".into());
            }
        }
        if state.slots.end as usize > self.region.slot_values.len() || state.slots.start > state.slots.end {
            return Err("a state's slots are nowhere".into());
        }
        for held in self.region.slots_of(state) {
            self.check_use(number, step, held.value)?;
            let slot = self.region.slots.get(usize::from(held.slot)).ok_or("a state has an unknown slot")?;
            if self.region.def(held.value).result() != Some(slot.ty) {
                return Err(format!("a state's {} has another type", slot.name));
            }
        }
        Ok(())
    }

    /// Whether a value is defined on every way to a step of a block.
    fn check_use(&self, number: BlockId, step: u32, value: Val) -> Result<(), String> {
        let Some((by, at)) = self.places.get(value.index()).copied().flatten() else {
            return Err(format!("{value:?} is in no block"));
        };
        let fits = if by == number { at < step } else { super::dominates(&self.dominators, by, number) };
        if fits { Ok(()) } else { Err(format!("{value:?} is not defined yet")) }
    }
}

/// Parameters and body with their steps.
fn steps(block: &RegionBlock) -> impl Iterator<Item = (u32, Val)> {
    let params = block.params.iter().map(|param| (0, *param));
    params.chain(block.body.iter().enumerate().map(|(at, value)| (at as u32 + 1, *value)))
}

#[cfg(test)]
mod tests {
    use super::super::{Edge, Exit, GuestState, SlotValue};
    use super::*;
    use crate::ir::{FlagSet, Inst, SlotInfo};

    const SLOTS: &[SlotInfo] = &[SlotInfo { name: "a", ty: Ty::I64 }, SlotInfo { name: "b", ty: Ty::I64 }];

    /// The entry with slot a, a block that increments it, and an exit with that.
    fn region() -> (Region, Val, Val) {
        let mut region = Region::new(SLOTS, 0x1000, u64::MAX, 0);
        region.is_ssa = true;
        for to in [To::Block(1), To::Exit(0)] {
            let end = Terminator::Jump(Edge::new(to));
            let (params, body) = (Vec::new(), Vec::new());
            region.blocks.push(RegionBlock { params, body, end, pc: 0, retired: 1, depth: 0, weight: 1 });
        }
        let a = region.add_param(0, Ty::I64, 0);
        let r = region.add(Inst { args: [a, Val::NONE, Val::NONE], ..Inst::new(Op::Inc, Ty::I64) });
        region.blocks[1].body.push(r);
        region.slot_values.push(SlotValue { slot: 0, value: r });
        let state = GuestState { pc: 3, retired: 0, flags: Val::NONE, slots: 0..1 };
        region.exits.push(Exit { op: Op::Jump, target: Val::NONE, back: 0, need: FlagSet::all(), state });
        (region, a, r)
    }

    fn wrong(change: impl FnOnce(&mut Region, Val, Val)) -> String {
        let (mut region, a, r) = region();
        change(&mut region, a, r);
        verify(&region).expect_err("the region is wrong")
    }

    #[test]
    fn a_sound_region_passes_and_prints() {
        let (region, ..) = region();
        assert_eq!(verify(&region), Ok(()));
        let expected = "\
b0(%0.i64 a) @ +0x0, 1 retired, depth 0, weight 1:
    Jump b1()
b1() @ +0x0, 1 retired, depth 0, weight 1:
    %1 = Inc.i64 %0
    Jump x0
x0: Jump [+0x3 a=%1]
";
        assert_eq!(region.to_string(), expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let early = wrong(|region, _, r| {
            let user = region.add(Inst { args: [r, Val::NONE, Val::NONE], ..Inst::new(Op::Not, Ty::I64) });
            region.blocks[1].body.insert(0, user);
        });
        assert!(early.contains("%1 is not defined yet"), "{early}");
        let twice = wrong(|region, _, r| region.blocks[0].body.push(r));
        assert!(twice.contains("in two places"), "{twice}");
        let arguments = wrong(|region, a, _| {
            if let Some(edge) = region.blocks[0].end.edges_mut().next() {
                edge.args.push(a);
            }
        });
        assert!(arguments.contains("1 arguments of 0"), "{arguments}");
        let entry = wrong(|region, _, _| region.blocks[1].end = Terminator::Jump(Edge::new(To::Block(0))));
        assert!(entry.contains("the entry has a predecessor"), "{entry}");
        let slot = wrong(|region, _, _| region.slot_values[0].slot = 9);
        assert!(slot.contains("unknown slot"), "{slot}");
        let bails = wrong(|region, _, _| {
            let poll = region.add(Inst::new(Op::Poll, Ty::None));
            region.blocks[1].body.push(poll);
        });
        assert!(bails.contains("has no snapshot"), "{bails}");
        let slots = wrong(|region, _, _| {
            let get = region.add(Inst::new(Op::GetSlot, Ty::I64));
            region.blocks[1].body.push(get);
        });
        assert!(slots.contains("slots are values by now"), "{slots}");
        let far = wrong(|region, _, r| {
            let between = region.add(Inst { imm: 1, ..Inst::new(Op::Const, Ty::I64) });
            let flags = region.add(Inst { args: [r, Val::NONE, Val::NONE], ..Inst::new(Op::FlagsOf, Ty::Flags) });
            region.blocks[1].body.extend([between, flags]);
        });
        assert!(far.contains("does not follow its instruction"), "{far}");
    }
}
