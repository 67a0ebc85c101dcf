//! Removes what nobody uses: instructions without effect, loads that cannot fail, and parameters, whose values neither code nor
//! the states of exits and of snapshots that are left mention.

use super::super::super::Val;
use super::super::super::ops::{Effects, Op};
use super::super::{GuestState, Region, To, ssa};

/// The pass.
pub(super) fn run(region: &mut Region) {
    let mut marking = Marking { region, used: vec![false; region.insts.len()], open: Vec::new() };
    marking.roots();
    let arguments = marking.arguments();
    while let Some(value) = marking.open.pop() {
        marking.follow(value, &arguments);
    }
    let used = marking.used;
    for block in &mut region.blocks {
        block.body.retain(|value| used[value.index()]);
    }
    ssa::retain_params(region, |param| used[param.index()]);
}

struct Marking<'a> {
    region: &'a Region,
    used: Vec<bool>,
    /// Used, and what they use is not marked yet.
    open: Vec<Val>,
}

impl Marking<'_> {
    fn mark(&mut self, value: Val) {
        if value.is_some() && !std::mem::replace(&mut self.used[value.index()], true) {
            self.open.push(value);
        }
    }

    fn mark_state(&mut self, state: &GuestState) {
        self.mark(state.flags);
        for held in self.region.slots_of(state) {
            self.mark(held.value);
        }
    }

    /// What has effects, and what blocks' ends look at.
    fn roots(&mut self) {
        let region = self.region;
        for block in &region.blocks {
            for value in &block.body {
                let inst = region.def(*value);
                let effects = inst.op.info().effects.difference(Effects::READ_STATE);
                // A load that cannot fail may be left out; its probe stays, for it may bail.
                if !effects.is_empty() && inst.op != Op::LoadVia {
                    self.mark(*value);
                }
            }
            if let Some(value) = block.end.looks_at() {
                self.mark(value);
            }
            for edge in block.end.edges() {
                if let To::Exit(exit) = edge.to {
                    let exit = &region.exits[exit as usize];
                    self.mark(exit.target);
                    self.mark_state(&exit.state);
                }
            }
        }
    }

    /// What each parameter may be handed.
    fn arguments(&self) -> Vec<Vec<Val>> {
        let mut arguments = vec![Vec::new(); self.region.insts.len()];
        for block in &self.region.blocks {
            for edge in block.end.edges() {
                if let To::Block(to) = edge.to {
                    for (arg, param) in edge.args.iter().zip(&self.region.blocks[to as usize].params) {
                        arguments[param.index()].push(*arg);
                    }
                }
            }
        }
        arguments
    }

    fn follow(&mut self, value: Val, arguments: &[Vec<Val>]) {
        let region = self.region;
        let inst = region.def(value);
        for arg in inst.arguments() {
            self.mark(arg);
        }
        if let Some(state) = region.snapshot(inst) {
            self.mark_state(state);
        }
        if inst.op == Op::Param {
            for arg in &arguments[value.index()] {
                self.mark(*arg);
            }
        }
    }
}
