//! Blocks as text: one line an instruction, guest instructions as headings. The form of golden tests and of `info jit`.

use super::float::FloatOp;
use super::ops::{Arg, Atomic, Effects, FlagSet, Op, Ordering, Ty};
use super::vector::VectorOp;
use super::{Block, HIGH_BYTE, Inst};
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
                self.write_inst(f, at, inst)?;
                f.write_char('\n')?;
            }
        }
        Ok(())
    }
}

impl Block {
    fn write_inst(&self, f: &mut fmt::Formatter<'_>, at: usize, inst: &Inst) -> fmt::Result {
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
            Op::Load | Op::Store | Op::AtomicCas => self.write_access(f, inst)?,
            Op::GetSlot | Op::SetSlot => {
                let name = self.slots.get(inst.imm as usize).map_or("?", |slot| slot.name);
                write!(f, " {name}{}", if inst.aux == HIGH_BYTE { ".high" } else { "" })?;
            }
            _ => {}
        }
        let mut separator = " ";
        for (number, arg) in inst.args.iter().enumerate().take(info.args.len()) {
            write!(f, "{separator}{arg:?}")?;
            separator = ", ";
            match (info.args[number], inst.op) {
                (Arg::Address, Op::Load | Op::Store | Op::AtomicRmw | Op::AtomicCas) if inst.imm != 0 => {
                    write!(f, "{}", Signed(inst.imm))?;
                }
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
            Op::VectorLane => write!(f, ", {}", inst.imm)?,
            Op::VectorSigns => write!(f, ", i{}", u32::from(inst.aux) * 8)?,
            _ => {}
        }
        if inst.result() == Some(Ty::Flags) && !inst.need.is_all() {
            write!(f, " need={}", inst.need)?;
        }
        if info.effects.contains(Effects::MAY_BAIL)
            && let Some(snapshot) = self.snapshots.get(usize::from(inst.snapshot))
            && snapshot.flags.is_some()
        {
            write!(f, " flags={:?}", snapshot.flags)?;
        }
        Ok(())
    }

    fn write_access(&self, f: &mut fmt::Formatter<'_>, inst: &Inst) -> fmt::Result {
        let access = inst.access();
        if inst.op == Op::Load && access.bytes != inst.ty.bytes() {
            write!(f, " {}{}", if access.signed { 's' } else { 'u' }, u32::from(access.bytes) * 8)?;
        }
        if access.aligned {
            f.write_str(" aligned")?;
        }
        if access.for_write {
            f.write_str(" for_write")?;
        }
        match (access.ordering, inst.op) {
            (Ordering::Tso, Op::Load | Op::Store) | (Ordering::Sequential, Op::AtomicCas) => Ok(()),
            (ordering, _) => write!(f, " {ordering:?}"),
        }
    }
}

/// A displacement with its sign.
struct Signed(u64);

impl Display for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0 as i64;
        write!(f, "{}{:#x}", if value < 0 { '-' } else { '+' }, value.unsigned_abs())
    }
}
