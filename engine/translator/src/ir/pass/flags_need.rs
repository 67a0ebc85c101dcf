//! Which flags of each token anybody looks at: one walk backwards. What only snapshots mention ends with an empty `need`, and
//! old flags that bring nothing are dropped, so that a chain of INCs does not keep alive what nobody asks for.
//!
//! At the exit all six are needed: what follows is not known here.

use super::super::ops::{Effects, FlagSet, Op, Ty};
use super::super::{Block, Inst, Val};

/// The pass.
pub(super) fn run(block: &mut Block) {
    let mut room = std::mem::take(&mut block.room);
    room.clear(block.insts.len());
    mark_recoverable(block, &mut room.marks);
    ask_backwards(block, &mut room.need);
    for at in 0..block.insts.len() {
        let inst = block.insts[at];
        if inst.result() != Some(Ty::Flags) {
            continue;
        }
        block.insts[at].need = room.need[at];
        let old = match inst.op {
            Op::FlagsOf => Some((1, kept(block, &inst))),
            Op::FlagsMerge => Some((0, FlagSet::from_bits_truncate(inst.imm as u8).complement())),
            _ => None,
        };
        if let Some((argument, brings)) = old
            && !room.need[at].intersects(brings)
            && !room.marks[at]
        {
            block.insts[at].args[argument] = Val::NONE;
        }
    }
    block.room = room;
}

/// What is asked of each token by those behind it.
fn ask_backwards(block: &Block, need: &mut [FlagSet]) {
    // Whether a `SetFlags` further down replaces the flags before anybody but a snapshot can see them.
    let mut replaced = false;
    for at in (0..block.insts.len()).rev() {
        let inst = block.insts[at];
        let effects = inst.op.info().effects;
        if effects.contains(Effects::ENDS_BLOCK) || inst.op == Op::CallInterp {
            replaced = false;
        }
        let own = need[at];
        let mut ask = |value: Val, flags: FlagSet| {
            if value.is_some() {
                need[value.index()] |= flags;
            }
        };
        match inst.op {
            Op::SetFlags => {
                if !replaced {
                    ask(inst.args[0], FlagSet::all());
                }
                replaced = true;
            }
            Op::Cond => ask(inst.args[0], inst.condition().flags()),
            Op::FlagsPack => ask(inst.args[0], FlagSet::all()),
            Op::AddCarry | Op::SubBorrow | Op::RolCarry | Op::RorCarry => ask(inst.args[2], FlagSet::C),
            Op::FlagsOf => ask(inst.args[1], own & kept(block, &inst)),
            Op::FlagsMerge => {
                let mask = FlagSet::from_bits_truncate(inst.imm as u8);
                ask(inst.args[0], own & mask.complement());
                ask(inst.args[1], own & mask);
            }
            _ => {}
        }
    }
}

/// Which flags a `FlagsOf` may take from its old token.
fn kept(block: &Block, inst: &Inst) -> FlagSet {
    let source = block.def(inst.args[0]);
    let may_be_zero = source.op.count_argument().is_some_and(|count| {
        let count = block.constant(source.args[count]);
        count.is_none_or(|count| count as u8 & source.ty.count_mask() == 0)
    });
    if may_be_zero { FlagSet::all() } else { source.op.flags_written().complement() }
}

/// Marks tokens of which some snapshot wants all flags, by themselves or through another token.
fn mark_recoverable(block: &Block, marks: &mut [bool]) {
    for snapshot in block.snapshots.iter().filter(|snapshot| snapshot.flags.is_some()) {
        marks[snapshot.flags.index()] = true;
    }
    for at in (0..block.insts.len()).rev() {
        let inst = &block.insts[at];
        if marks[at] && matches!(inst.op, Op::FlagsOf | Op::FlagsMerge) {
            for arg in inst.arguments() {
                marks[arg.index()] = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::build::Builder;
    use super::super::super::ops::{Condition, MemoryAccess};
    use super::super::super::{SlotInfo, verify};
    use super::*;

    const SLOTS: &[SlotInfo] = &[SlotInfo { name: "a", ty: Ty::I64 }];

    fn block(build: impl FnOnce(&mut Builder)) -> Block {
        let mut builder = Builder::new(Block::new(SLOTS, 0, u64::MAX, 0));
        builder.guest_instruction(1);
        build(&mut builder);
        builder.exit(Op::Jump, Val::NONE, 1);
        let mut block = builder.finish();
        run(&mut block);
        assert_eq!(verify::verify(&block), Ok(()));
        block
    }

    fn set(b: &mut Builder, op: Op) -> Val {
        let a = b.get(Ty::I64, 0);
        let old = if op == Op::Inc { b.flags() } else { Val::NONE };
        let r = if op == Op::Inc { b.unary(op, Ty::I64, a) } else { b.binary(op, Ty::I64, a, a) };
        let flags = b.flags_of(r, old);
        b.set_flags(flags);
        flags
    }

    #[test]
    fn flags_that_are_replaced_are_not_needed_and_the_last_ones_are() {
        let (mut first, mut asked, mut last) = (Val::NONE, Val::NONE, Val::NONE);
        let block = block(|b| {
            first = set(b, Op::Add);
            asked = set(b, Op::Sub);
            b.condition(asked, Condition::Below);
            last = set(b, Op::Add);
        });
        assert_eq!(block.def(first).need, FlagSet::empty());
        assert_eq!(block.def(asked).need, FlagSet::C);
        assert_eq!(block.def(last).need, FlagSet::all());
    }

    #[test]
    fn an_increment_passes_on_only_the_carry() {
        let (mut add, mut inc, mut dropped) = (Val::NONE, Val::NONE, Val::NONE);
        let block = block(|b| {
            dropped = set(b, Op::Inc);
            add = set(b, Op::Add);
            inc = set(b, Op::Inc);
        });
        assert_eq!(block.def(add).need, FlagSet::C);
        assert_eq!(block.def(inc).args[1], add);
        assert_eq!(block.def(dropped).args[1], Val::NONE, "nobody asks for what it would keep");
    }

    #[test]
    fn what_only_a_snapshot_mentions_stays_recoverable() {
        let mut inc = Val::NONE;
        let block = block(|b| {
            inc = set(b, Op::Inc);
            b.guest_instruction(1);
            let a = b.get(Ty::I64, 0);
            b.load(Ty::I64, a, 0, MemoryAccess::tso(8));
            set(b, Op::Add);
        });
        assert_eq!(block.def(inc).need, FlagSet::empty());
        assert!(block.def(inc).args[1].is_some(), "the carry from before is part of the recipe");
    }
}
