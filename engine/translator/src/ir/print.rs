//! Blocks as text: one line an instruction, guest instructions as headings. The form of golden tests and of `info jit`.

use super::float::FloatOp;
use super::gather::Gather;
use super::native::Native;
use super::ops::{Arg, Atomic, FlagSet, Op, Ordering, Ty};
use super::region;
use super::vector::VectorOp;
use super::{Block, HIGH_BYTE, Inst, SlotInfo};
use std::fmt::{self, Display, Write};

impl Display for FlagSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, flag) in [('S', Self::S), ('Z', Self::Z), ('C', Self::C), ('O', Self::O), ('P', Self::P), ('A', Self::A)] {
            if self.contains(flag) {
                f.write_char(name)?;
            }
        }
        if self.is_empty() { f.write_char('-') } else { Ok(()) }
    }
}

impl Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut guest = self.guest.iter().enumerate().peekable();
        for (at, inst) in self.insts.iter().enumerate() {
            while let Some((number, starting)) = guest.next_if(|(_, guest)| guest.first as usize <= at) {
                writeln!(f, "{number} @ +{:#x}:", starting.offset)?;
            }
            if inst.op != Op::Nop {
                f.write_str("    ")?;
                write_inst(f, at, inst, self.slots)?;
                if let Some(snapshot) = self.snapshots.get(usize::from(inst.snapshot))
                    && snapshot.flags.is_some()
                {
                    write!(f, " flags={:?}", snapshot.flags)?;
                }
                f.write_char('\n')?;
            }
        }
        Ok(())
    }
}

/// One instruction, without its snapshot.
pub(super) fn write_inst(f: &mut fmt::Formatter<'_>, at: usize, inst: &Inst, slots: &[SlotInfo]) -> fmt::Result {
    let info = inst.op.info();
    if inst.result().is_some() {
        write!(f, "%{at} = ")?;
    }
    f.write_str(info.name)?;
    if !matches!(inst.ty, Ty::None | Ty::Flags) {
        write!(f, ".{}", inst.ty.name())?;
    }
    match inst.op {
        Op::Cond => write!(f, " {:?}", inst.condition())?,
        Op::VectorFloat => write!(f, " {}", FloatOp::from_number(inst.imm as u8).map_or("?", FloatOp::name))?,
        Op::FloatCompare | Op::IntToFloat | Op::FloatToInt => write!(f, " f{}", u32::from(inst.aux & 15) * 8)?,
        Op::Vector => write!(f, " {}", VectorOp::from_number(inst.imm as u8).map_or("?", |op| op.info().name))?,
        Op::AtomicRmw => write!(f, " {:?}", Atomic::from_bits(inst.aux))?,
        Op::Load | Op::Store | Op::AtomicCas | Op::LoadVia | Op::StoreVia => write_access(f, inst)?,
        Op::Native | Op::NativeStore | Op::NativeInteger | Op::NativeFlags => write_native(f, inst)?,
        Op::NativeGather => write_gather(f, inst)?,
        Op::GetSlot | Op::SetSlot => {
            let name = slots.get(inst.imm as usize).map_or("?", |slot| slot.name);
            write!(f, " {name}{}", if inst.aux == HIGH_BYTE { ".high" } else { "" })?;
        }
        _ => {}
    }
    let mut separator = " ";
    for (number, arg) in inst.args.iter().enumerate().take(info.args.len()) {
        write!(f, "{separator}{arg:?}")?;
        separator = ", ";
        match (info.args[number], inst.op) {
            (Arg::Address, Op::Load | Op::Store | Op::LoadVia | Op::StoreVia | Op::AtomicRmw | Op::AtomicCas)
                if number == 0 && inst.imm != 0 =>
            {
                write!(f, "{}", Signed(inst.imm))?;
            }
            (Arg::Address, Op::CheckAligned) if inst.imm != 0 => write!(f, "{}", Signed(inst.imm))?,
            (_, Op::Address) if number == 1 && arg.is_some() && inst.aux != 0 => write!(f, "<<{}", inst.aux)?,
            _ => {}
        }
    }
    match inst.op {
        Op::Const => write!(f, " {:#x}", inst.imm)?,
        Op::Pc | Op::Jump | Op::Branch | Op::Call => write!(f, "{separator}pc{}", Signed(inst.imm))?,
        Op::Address => write!(f, "{separator}{}", Signed(inst.imm))?,
        Op::FlagsMerge => write!(f, " {}", FlagSet::from_bits_truncate(inst.imm as u8))?,
        Op::CallInterp => write!(f, " {}", inst.imm)?,
        Op::Vector | Op::VectorFloat if inst.imm > 0xff => write!(f, ", {:#x}", inst.imm >> 8)?,
        Op::FloatCompare if inst.aux & 16 != 0 => f.write_str(", signals")?,
        Op::FloatToInt if inst.aux & 16 != 0 => f.write_str(", truncated")?,
        Op::Param => write!(f, " {}", ParamName(inst.imm, slots))?,
        Op::Probe => {
            let span = region::Span::unpack(inst.imm);
            let rights = ["", "r", "w", "rw"][usize::from(inst.aux & 3)];
            write!(f, " {rights} {}..{}", Signed(span.low as u64), Signed(span.high as u64))?;
        }
        Op::VectorLane => write!(f, ", {}", inst.imm)?,
        Op::CheckAligned => write!(f, ", {}", inst.aux)?,
        Op::VectorSigns => write!(f, ", i{}", u32::from(inst.aux) * 8)?,
        _ => {}
    }
    if inst.result() == Some(Ty::Flags) && !inst.need.is_all() {
        write!(f, " need={}", inst.need)?;
    }
    Ok(())
}

fn write_native(f: &mut fmt::Formatter<'_>, inst: &Inst) -> fmt::Result {
    let Native { code, reg, vvvv, rm, immediate, displacement } = Native::of(inst);
    write!(f, " {code:?} {reg} {vvvv} {rm} {immediate:#x}")?;
    if inst.args[1].is_some() { write!(f, " {}", Signed(i64::from(displacement) as u64)) } else { Ok(()) }
}

fn write_gather(f: &mut fmt::Formatter<'_>, inst: &Inst) -> fmt::Result {
    let Gather { code, result, mask, index, scale, displacement } = Gather::of(inst);
    write!(f, " {code:?} {result} {mask} {index}<<{scale} {}", Signed(i64::from(displacement) as u64))
}

fn write_access(f: &mut fmt::Formatter<'_>, inst: &Inst) -> fmt::Result {
    let access = inst.access();
    if matches!(inst.op, Op::Load | Op::LoadVia) && access.bytes != inst.ty.bytes() {
        write!(f, " {}{}", if access.signed { 's' } else { 'u' }, u32::from(access.bytes) * 8)?;
    }
    if access.aligned {
        f.write_str(" aligned")?;
    }
    if access.for_write {
        f.write_str(" for_write")?;
    }
    match (access.ordering, inst.op) {
        (Ordering::Tso, Op::Load | Op::Store | Op::LoadVia | Op::StoreVia) | (Ordering::Sequential, Op::AtomicCas) => Ok(()),
        (ordering, _) => write!(f, " {ordering:?}"),
    }
}

/// A displacement with its sign.
pub(super) struct Signed(pub u64);

impl Display for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0 as i64;
        write!(f, "{}{:#x}", if value < 0 { '-' } else { '+' }, value.unsigned_abs())
    }
}

/// What a parameter brings.
pub(super) struct ParamName<'a>(pub u64, pub &'a [SlotInfo]);

impl Display for ParamName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            region::FLAGS => f.write_str("flags"),
            region::NO_SLOT => f.write_char('-'),
            slot => f.write_str(self.1.get(slot as usize).map_or("?", |slot| slot.name)),
        }
    }
}
