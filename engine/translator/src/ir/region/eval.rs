//! Executes a region as `region/mod.rs` says, on the machine of `ir/eval.rs` and with its strictness. An access by an addend is
//! wrong here (and a panic) unless the addend's probe has vouched for just these bytes.

use super::super::eval::{Guest, Machine, Value};
use super::super::native::{Memory, Native, Shape};
use super::super::ops::{Effects, Op};
use super::super::{FlagSet, Inst, Val};
use super::{Edge, FLAGS, GuestState, PROBE_READ, PROBE_WRITE, Region, Span, Terminator, To};

/// How a region was left. `retired` guest instructions have been executed by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RegionLeft {
    /// To go on at this pc.
    To { pc: u64, retired: u64 },
    /// The interpreter is to execute the instruction at this pc.
    Bailed { pc: u64, retired: u64 },
}

/// Executes a region until it is left. A poll leaves it where the guest would bail at random, or once `limit` guest
/// instructions have been executed.
pub(crate) fn evaluate_region(region: &Region, guest: &mut impl Guest, limit: u64) -> RegionLeft {
    let machine = Machine::new(&region.insts, region.pc, region.pc_mask, guest);
    let probed = vec![None; region.insts.len()];
    Run { region, machine, probed, retired: 0, limit }.run()
}

/// The bytes for which a probe has vouched: the first one's address, how many, the probe's rights.
type Probed = Option<(u64, u64, u8)>;

struct Run<'a, G: Guest> {
    region: &'a Region,
    machine: Machine<'a, G>,
    probed: Vec<Probed>,
    retired: u64,
    limit: u64,
}

impl<G: Guest> Run<'_, G> {
    fn run(&mut self) -> RegionLeft {
        let region = self.region;
        let entry = &region.blocks[0];
        for param in &entry.params {
            let inst = region.def(*param);
            self.machine.values[param.index()] = match inst.imm {
                FLAGS => Value::token(self.machine.guest.flags(), inst.need),
                slot => Value::plain(self.machine.guest.slot(slot as u8)),
            };
        }
        let mut block = entry;
        loop {
            for value in &block.body {
                let inst = region.def(*value);
                if let Some(left) = self.execute(*value, inst) {
                    return left;
                }
            }
            self.retired += u64::from(block.retired);
            let edge = match &block.end {
                Terminator::Jump(edge) => edge,
                Terminator::Branch { condition, taken, .. } if self.machine.int(*condition) != 0 => taken,
                Terminator::Branch { not_taken, .. } => not_taken,
                Terminator::Switch { target, ways, otherwise } => {
                    let target = self.machine.int(*target);
                    ways.iter().find(|(pc, _)| region.target(*pc) == target).map_or(otherwise, |(_, edge)| edge)
                }
            };
            match edge.to {
                To::Block(to) => {
                    block = &region.blocks[to as usize];
                    self.hand_over(edge, &block.params);
                }
                To::Exit(exit) => {
                    let exit = &region.exits[exit as usize];
                    let pc = match exit.target {
                        Val::NONE => region.target(exit.state.pc),
                        target => self.machine.int(target),
                    };
                    self.restore(&exit.state, exit.need);
                    return RegionLeft::To { pc, retired: self.retired };
                }
            }
        }
    }

    fn hand_over(&mut self, edge: &Edge, params: &[Val]) {
        let given: Vec<(Value, Probed)> =
            edge.args.iter().map(|arg| (self.machine.values[arg.index()], self.probed[arg.index()])).collect();
        for (param, (value, probed)) in params.iter().zip(given) {
            let inst = self.region.def(*param);
            let handed = if inst.imm == FLAGS { (value.bits as u8, inst.need.complement().bits()) } else { (0, 0) };
            self.machine.values[param.index()] = value;
            // What nobody needs of a token is wrong behind the edge too.
            if handed.1 != 0 {
                let hot = FlagSet::from_bits_truncate(handed.0);
                let wrong = value.all ^ inst.need.complement();
                let bits = hot & inst.need | wrong & inst.need.complement();
                self.machine.values[param.index()].bits = bits.bits().into();
            }
            self.probed[param.index()] = probed;
        }
    }

    /// What a state's slots and flags hold; flags outside `need` are wrong.
    fn restore(&mut self, state: &GuestState, need: FlagSet) {
        for held in self.region.slots_of(state) {
            let value = self.machine.values[held.value.index()].bits;
            self.machine.guest.set_slot(held.slot, value);
        }
        let flags = if state.flags.is_some() { self.machine.values[state.flags.index()].all } else { self.machine.guest.flags() };
        self.machine.guest.set_flags(flags ^ need.complement());
    }

    fn leave(&mut self, inst: &Inst) -> RegionLeft {
        let Some(state) = self.region.snapshot(inst) else { unreachable!("the verifier has seen the snapshot") };
        self.restore(state, FlagSet::all());
        let (pc, retired) = (self.region.target(state.pc), self.retired + u64::from(state.retired));
        if inst.op == Op::Poll { RegionLeft::To { pc, retired } } else { RegionLeft::Bailed { pc, retired } }
    }

    fn execute(&mut self, value: Val, inst: &Inst) -> Option<RegionLeft> {
        let effects = inst.op.info().effects;
        let tired = inst.op == Op::Poll && self.retired >= self.limit;
        if effects.contains(Effects::MAY_BAIL) && (tired || self.machine.guest.bails_at_random()) {
            return Some(self.leave(inst));
        }
        self.check_addend(inst);
        match inst.op {
            Op::Poll => return None,
            // Before slots are values, what is set is set at once.
            Op::SetFlags => {
                let flags = self.machine.values[inst.args[0].index()].all;
                self.machine.guest.set_flags(flags);
                return None;
            }
            _ => {}
        }
        let Some(result) = self.machine.execute(inst) else { return Some(self.leave(inst)) };
        self.machine.values[value.index()] = result;
        if inst.op == Op::Probe {
            let span = Span::unpack(inst.imm);
            let from = self.machine.int(inst.args[0]).wrapping_add(span.low as u64);
            self.probed[value.index()] = Some((from, span.high.wrapping_sub(span.low) as u64, inst.aux));
        }
        None
    }

    fn check_addend(&self, inst: &Inst) {
        let (displacement, bytes, write) = match inst.op {
            Op::LoadVia => (inst.imm, inst.access().bytes, inst.access().for_write),
            Op::StoreVia => (inst.imm, inst.ty.bytes(), true),
            Op::Native | Op::NativeStore | Op::NativeInteger | Op::NativeFlags if inst.args[1].is_some() => {
                let native = Native::of(inst);
                let memory = Shape::of(native.code, true).and_then(|shape| shape.memory);
                let Some(Memory { bytes, written, .. }) = memory else { panic!("{inst:?} has no memory operand") };
                (i64::from(native.displacement) as u64, bytes, written)
            }
            _ => return,
        };
        let at = self.machine.int(inst.args[0]).wrapping_add(displacement);
        let bytes = u64::from(bytes);
        let rights = if write { PROBE_WRITE } else { PROBE_READ };
        let vouched = self.probed[inst.args[1].index()].is_some_and(|(from, count, has)| {
            at.wrapping_sub(from).checked_add(bytes).is_some_and(|end| end <= count) && has & rights != 0
        });
        assert!(vouched, "{inst:?} at {at:#x} has no probe\n{}", self.region);
    }
}
