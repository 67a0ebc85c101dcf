//! What every block must keep. Debug builds run it after lifting and after every pass.

use super::float::FloatOp;
use super::ops::{Arg, Effects, Op, Ty, Types};
use super::vector::VectorOp;
use super::{Block, HIGH_BYTE, Inst, NO_SNAPSHOT, SlotInfo};

/// Says what is wrong with a block.
///
/// # Errors
/// The first rule that is broken, and where.
pub(crate) fn verify(block: &Block) -> Result<(), String> {
    let mut rules = Rules { block, committed: false, stored: false, guest: 0 };
    for (at, inst) in block.insts.iter().enumerate() {
        rules.check(at, inst).map_err(|why| format!("%{at} {}: {why}\n{block}", inst.op.info().name))?;
    }
    let exits = block.insts.iter().filter(|inst| inst.op.info().effects.contains(Effects::ENDS_BLOCK)).count();
    let last = block.insts.iter().rev().find(|inst| inst.op != Op::Nop);
    if exits != 1 || last.is_none_or(|last| !last.op.info().effects.contains(Effects::ENDS_BLOCK)) {
        return Err(format!("a block has one exit, at its end\n{block}"));
    }
    Ok(())
}

/// What can be said of an instruction alone: its type, which arguments it has, its immediate.
pub(super) fn check_shape(inst: &Inst) -> Result<(), String> {
    let info = inst.op.info();
    let typed = match info.types {
        Types::NoType => inst.ty == Ty::None,
        Types::Integer => inst.ty.is_integer(),
        Types::Wide => inst.ty.is_integer() && inst.ty != Ty::I8,
        Types::Vector => inst.ty == Ty::V128,
        Types::Any => inst.ty.is_integer() || inst.ty == Ty::V128,
        Types::Flags => inst.ty == Ty::Flags,
        Types::Value => inst.ty != Ty::None,
        Types::Word => inst.ty == Ty::I64,
    };
    if !typed {
        return Err(format!("cannot have type {}", inst.ty.name()));
    }
    for (number, arg) in inst.args.iter().enumerate() {
        match info.args.get(number) {
            Some(Arg::SameOrNone | Arg::FlagsOrNone | Arg::IntegerOrNone | Arg::AddressOrNone) => {}
            Some(_) if !arg.is_some() => return Err(format!("argument {number} is missing")),
            None if arg.is_some() => return Err("has too many arguments".into()),
            _ => {}
        }
    }
    if inst.op == Op::Vector && VectorOp::from_number(inst.imm as u8).is_none() {
        return Err("no such vector operation".into());
    }
    if inst.op == Op::VectorFloat && FloatOp::from_number(inst.imm as u8).is_none() {
        return Err("no such floating-point operation".into());
    }
    let loads = matches!(inst.op, Op::Native | Op::NativeInteger | Op::NativeFlags) && inst.args[1].is_some();
    if loads && !inst.args[0].is_some() {
        return Err("an addend without an address".into());
    }
    Ok(())
}

/// Whether argument number `number` can be what `def` defines.
pub(super) fn check_argument(inst: &Inst, number: usize, def: &Inst) -> Result<(), String> {
    let Some(ty) = def.result() else { return Err(format!("argument {number} has no value")) };
    let fits = match inst.op.info().args[number] {
        Arg::Same | Arg::SameOrNone => ty == inst.ty,
        Arg::Address | Arg::AddressOrNone => ty == Ty::I64,
        Arg::Count => ty == Ty::I8,
        Arg::Bool => ty == Ty::Bool,
        Arg::Flags | Arg::FlagsOrNone => ty == Ty::Flags,
        Arg::Integer | Arg::IntegerOrNone => ty.is_integer(),
        Arg::Vector => ty == Ty::V128,
        Arg::I16 => ty == Ty::I16,
        Arg::Narrower => ty == Ty::Bool || ty.is_integer() && ty < inst.ty,
        Arg::Wider => ty.is_integer() && ty > inst.ty,
        Arg::SetsFlags => !def.op.flags_written().is_empty(),
    };
    if fits { Ok(()) } else { Err(format!("argument {number} cannot be {}", ty.name())) }
}

/// Whether a slot is one, and has the instruction's type.
pub(super) fn check_slot(inst: &Inst, slots: &[SlotInfo]) -> Result<(), String> {
    if !matches!(inst.op, Op::GetSlot | Op::SetSlot) {
        return Ok(());
    }
    let Some(slot) = slots.get(inst.imm as usize) else { return Err("no such slot".into()) };
    if (slot.ty == Ty::V128) != (inst.ty == Ty::V128) {
        return Err(format!("{} has another type", slot.name));
    }
    if inst.aux > HIGH_BYTE || inst.aux == HIGH_BYTE && inst.ty != Ty::I8 {
        return Err("only bytes can be high".into());
    }
    Ok(())
}

struct Rules<'a> {
    block: &'a Block,
    /// The current guest instruction has committed something.
    committed: bool,
    /// The current guest instruction has stored.
    stored: bool,
    /// Guest instructions begun.
    guest: usize,
}

impl Rules<'_> {
    fn check(&mut self, at: usize, inst: &Inst) -> Result<(), String> {
        while self.block.guest.get(self.guest).is_some_and(|guest| guest.first as usize <= at) {
            self.guest += 1;
            (self.committed, self.stored) = (false, false);
        }
        check_shape(inst)?;
        for (number, arg) in inst.args.iter().enumerate().filter(|(_, arg)| arg.is_some()) {
            if arg.index() >= at {
                return Err(format!("argument {number} is not defined yet"));
            }
            check_argument(inst, number, self.block.def(*arg))?;
        }
        check_slot(inst, self.block.slots)?;
        self.check_order(inst)?;
        if inst.op == Op::FlagsOf {
            self.check_flags_of(at, inst)?;
        }
        Ok(())
    }

    /// Loads and checks, then one store, then commits.
    fn check_order(&mut self, inst: &Inst) -> Result<(), String> {
        let effects = inst.op.info().effects;
        if effects.contains(Effects::MAY_BAIL) {
            let Some(snapshot) = self.block.snapshots.get(usize::from(inst.snapshot)) else {
                return Err("has no snapshot".into());
            };
            if usize::from(snapshot.instruction) + 1 != self.guest {
                return Err("has another instruction's snapshot".into());
            }
            if snapshot.flags.is_some() && self.block.def(snapshot.flags).result() != Some(Ty::Flags) {
                return Err("its snapshot's flags are none".into());
            }
            if self.committed || self.stored {
                return Err("may bail after a store or commit".into());
            }
        } else if inst.snapshot != NO_SNAPSHOT {
            return Err("needs no snapshot".into());
        }
        self.stored |= effects.contains(Effects::WRITE_MEMORY) && inst.op != Op::Fence;
        self.committed |= effects.contains(Effects::WRITE_STATE);
        Ok(())
    }

    fn check_flags_of(&self, at: usize, inst: &Inst) -> Result<(), String> {
        let source = self.block.def(inst.args[0]);
        if inst.args[0].index() + 1 != at {
            return Err("does not follow its instruction".into());
        }
        let may_keep = source.op.count_argument().is_some_and(|count| {
            let count = self.block.constant(source.args[count]);
            count.is_none_or(|count| count as u8 & source.ty.count_mask() == 0)
        });
        let brought = if may_keep { Default::default() } else { source.op.flags_written() };
        if !inst.args[1].is_some() && !brought.contains(inst.need) {
            return Err("needs the old flags".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Val;
    use super::super::build::Builder;
    use super::super::ops::MemoryAccess;
    use super::*;

    const SLOTS: &[SlotInfo] = &[SlotInfo { name: "a", ty: Ty::I64 }, SlotInfo { name: "v", ty: Ty::V128 }];

    fn wrong(build: impl FnOnce(&mut Builder)) -> String {
        let mut builder = Builder::new(Block::new(SLOTS, 0x1000, u64::MAX, 0));
        builder.guest_instruction(2);
        build(&mut builder);
        builder.exit(Op::Jump, Val::NONE, 2);
        verify(&builder.finish()).expect_err("the block is wrong")
    }

    #[test]
    fn what_is_wrong_is_named() {
        let load_after_commit = wrong(|b| {
            let a = b.get(Ty::I64, 0);
            b.set(Ty::I64, 0, a);
            b.load(Ty::I64, a, 0, MemoryAccess::tso(8));
        });
        assert!(load_after_commit.contains("may bail after a store or commit"), "{load_after_commit}");
        let widths = wrong(|b| {
            let (a, c) = (b.get(Ty::I64, 0), b.constant(Ty::I32, 1));
            b.binary(Op::Add, Ty::I64, a, c);
        });
        assert!(widths.contains("argument 1 cannot be i32"), "{widths}");
        let slot = wrong(|b| {
            b.get(Ty::I64, 1);
        });
        assert!(slot.contains("v has another type"), "{slot}");
        let early = wrong(|b| {
            b.unary(Op::Not, Ty::I64, Val(5));
        });
        assert!(early.contains("not defined yet"), "{early}");
        let partial = wrong(|b| {
            let a = b.get(Ty::I64, 0);
            let r = b.unary(Op::Inc, Ty::I64, a);
            let flags = b.flags_of(r, Val::NONE);
            b.set_flags(flags);
        });
        assert!(partial.contains("needs the old flags"), "{partial}");
        let two_exits = wrong(|b| b.exit(Op::Dispatch, Val::NONE, 0));
        assert!(two_exits.contains("one exit"), "{two_exits}");
    }

    #[test]
    fn a_sound_block_passes_and_prints() {
        let mut builder = Builder::new(Block::new(SLOTS, 0x1000, u64::MAX, 0));
        builder.guest_instruction(4);
        let a = builder.get(Ty::I64, 0);
        let m = builder.load(Ty::I32, a, 0x10u64.wrapping_neg(), MemoryAccess { signed: true, ..MemoryAccess::tso(1) });
        let c = builder.constant(Ty::I32, 5);
        let r = builder.binary(Op::Sub, Ty::I32, m, c);
        let flags = builder.flags_of(r, Val::NONE);
        builder.set_flags(flags);
        builder.guest_instruction(2);
        let flags = builder.flags();
        let is = builder.condition(flags, super::super::Condition::Less);
        builder.exit(Op::Branch, is, 4u64.wrapping_neg());
        let block = builder.finish();
        assert_eq!(verify(&block), Ok(()));
        let expected = "\
0 @ +0x0:
    %0 = GetSlot.i64 a
    %1 = Load.i32 s8 %0-0x10
    %2 = Const.i32 0x5
    %3 = Sub.i32 %1, %2
    %4 = FlagsOf %3, -
    SetFlags %4
1 @ +0x4:
    %6 = Cond Less %4
    Branch %6, pc-0x4
";
        assert_eq!(block.to_string(), expected);
    }
}
