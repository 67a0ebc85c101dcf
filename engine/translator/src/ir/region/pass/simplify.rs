//! Constants, copies, and what is computed already: one walk over the blocks, each behind those that dominate it. Of two
//! instructions that compute the same the dominating one stays.
//!
//! An instruction whose flags somebody holds (a `FlagsOf` behind it) keeps its place; where its value is known all the same,
//! others use that.

use super::super::super::eval::fold;
use super::super::super::native::Native;
use super::super::super::ops::{Effects, Op, Ty};
use super::super::super::{Inst, Val};
use super::super::{BlockId, Region, dominates, dominators, ssa};
use std::collections::HashMap;

/// The pass.
pub(super) fn run(region: &mut Region) {
    let narrow = narrow_params(region);
    let mut walk = Walk {
        dominators: dominators(region),
        alias: vec![Val::NONE; region.insts.len()],
        narrow,
        seen: HashMap::with_capacity(region.insts.len()),
        region,
    };
    for block in 0..walk.region.blocks.len() {
        walk.block(block);
    }
    let alias = walk.alias;
    ssa::substitute(region, alias);
    ssa::remove_needless_params(region);
}

/// What makes instructions the same.
#[derive(PartialEq, Eq, Hash)]
struct Key(Op, Ty, u8, [Val; 3], u64);

/// What an instruction is known to be.
enum Known {
    /// This value.
    Value(Val),
    Constant(u64),
    /// The same, put better.
    Inst(Inst),
    Nothing,
}

struct Walk<'a> {
    region: &'a mut Region,
    dominators: Vec<BlockId>,
    alias: Vec<Val>,
    /// Parameters of 64 bits whose upper half is zero.
    narrow: Vec<bool>,
    seen: HashMap<Key, (BlockId, Val)>,
}

impl Walk<'_> {
    fn block(&mut self, block: usize) {
        let body = std::mem::take(&mut self.region.blocks[block].body);
        let mut kept = Vec::with_capacity(body.len());
        for (at, value) in body.iter().copied().enumerate() {
            let mut inst = *self.region.def(value);
            let fixed = usize::from(inst.op == Op::FlagsOf);
            for arg in &mut inst.args[fixed..] {
                *arg = self.resolved(*arg);
            }
            self.region.insts[value.index()] = inst;
            let holds_flags = body.get(at + 1).is_some_and(|next| {
                let next = self.region.def(*next);
                next.op == Op::FlagsOf && next.args[0] == value
            });
            // Putting one thing better may let the next be known.
            for _ in 0..4 {
                match self.known(&inst) {
                    Known::Inst(better) if !holds_flags => inst = better,
                    _ => break,
                }
            }
            match self.known(&inst) {
                Known::Value(known) => {
                    self.stand_in(value, known);
                    if holds_flags {
                        kept.push(value);
                    }
                    continue;
                }
                Known::Constant(number) => {
                    let constant = Inst { imm: number & inst.ty.mask(), ..Inst::new(Op::Const, inst.ty) };
                    if holds_flags {
                        let constant = self.region.add(constant);
                        self.stand_in(value, constant);
                        kept.extend([constant, value]);
                        continue;
                    }
                    inst = constant;
                }
                _ => {}
            }
            self.region.insts[value.index()] = inst;
            if !self.is_repeated(block as BlockId, value, &inst, holds_flags) {
                kept.push(value);
            }
        }
        self.region.blocks[block].body = kept;
    }

    /// Whether a value like this one is there already, which then stands for it.
    fn is_repeated(&mut self, block: BlockId, value: Val, inst: &Inst, holds_flags: bool) -> bool {
        let numbered = inst.op.info().effects == Effects::PURE && !matches!(inst.op, Op::FlagsOf | Op::Cond | Op::FlagsMerge);
        if !numbered {
            return false;
        }
        let key = Key(inst.op, inst.ty, inst.aux, inst.args, inst.imm);
        match self.seen.get(&key) {
            Some((by, known)) if dominates(&self.dominators, *by, block) => {
                let known = *known;
                if !holds_flags {
                    self.stand_in(value, known);
                }
                !holds_flags
            }
            _ => {
                self.seen.insert(key, (block, value));
                false
            }
        }
    }

    fn resolved(&self, mut value: Val) -> Val {
        while let Some(next) = self.alias.get(value.index()).filter(|next| value.is_some() && next.is_some()) {
            value = *next;
        }
        value
    }

    fn stand_in(&mut self, value: Val, by: Val) {
        if self.alias.len() < self.region.insts.len() {
            self.alias.resize(self.region.insts.len(), Val::NONE);
        }
        self.alias[value.index()] = by;
    }

    fn known(&self, inst: &Inst) -> Known {
        let region = &*self.region;
        let [a, b, _] = inst.args;
        let same = a == b;
        let number = |value: Val| region.constant(value);
        if let Some(result) = self.folded(inst) {
            return Known::Constant(result);
        }
        match inst.op {
            Op::Add | Op::Sub | Op::Or | Op::Xor if number(b) == Some(0) => Known::Value(a),
            Op::Add | Op::Or | Op::Xor if number(a) == Some(0) => Known::Value(b),
            Op::Sub | Op::Xor if same => Known::Constant(0),
            Op::And | Op::Or if same => Known::Value(a),
            Op::And if number(a) == Some(0) || number(b) == Some(0) => Known::Constant(0),
            Op::And if number(b) == Some(inst.ty.mask()) => Known::Value(a),
            Op::Shl | Op::Shr | Op::Sar | Op::Rol | Op::Ror
                if number(b).is_some_and(|count| count as u8 & inst.ty.count_mask() == 0) =>
            {
                Known::Value(a)
            }
            Op::Select if inst.args[1] == inst.args[2] => Known::Value(inst.args[1]),
            Op::Truncate => self.truncated(inst),
            Op::HighByte => self.high_byte(inst),
            Op::ZeroExtend | Op::SignExtend => self.extended(inst),
            Op::InsertLow | Op::InsertHigh => {
                // What is overwritten need not be made first.
                let below = region.def(a);
                let (op, ty) = (inst.op, region.def(b).result());
                if below.op == op && ty.is_some() && region.def(below.args[1]).result() == ty {
                    return Known::Inst(Inst { args: [below.args[0], b, Val::NONE], ..*inst });
                }
                Known::Nothing
            }
            Op::Address => self.address(inst),
            Op::Native | Op::NativeStore | Op::NativeInteger | Op::NativeFlags if b.is_some() => {
                let (base, native) = (region.def(a), Native::of(inst));
                let moved = i64::from(native.displacement).wrapping_add(base.imm as i64);
                match i32::try_from(moved) {
                    Ok(displacement) if base.op == Op::Address && !base.args[1].is_some() => {
                        let (aux, imm) = Native { displacement, ..native }.pack();
                        Known::Inst(Inst { args: [base.args[0], b, Val::NONE], aux, imm, ..*inst })
                    }
                    _ => Known::Nothing,
                }
            }
            Op::Load | Op::Store | Op::AtomicRmw | Op::AtomicCas | Op::CheckAligned => {
                let base = region.def(a);
                if base.op == Op::Address && !base.args[1].is_some() {
                    let mut args = inst.args;
                    args[0] = base.args[0];
                    return Known::Inst(Inst { args, imm: inst.imm.wrapping_add(base.imm), ..*inst });
                }
                Known::Nothing
            }
            _ => Known::Nothing,
        }
    }

    /// The result of an operation on constants.
    fn folded(&self, inst: &Inst) -> Option<u64> {
        let divides = matches!(inst.op, Op::DivUnsigned | Op::DivSigned | Op::RemUnsigned | Op::RemSigned);
        let folds = inst.op.info().effects == Effects::PURE && inst.ty.is_integer() && !divides;
        if !folds || inst.op == Op::Const || inst.op == Op::Pc || inst.arguments().next().is_none() {
            return None;
        }
        let mut numbers = [0; 3];
        for (number, arg) in numbers.iter_mut().zip(inst.args).filter(|(_, arg)| arg.is_some()) {
            *number = self.region.constant(arg)?;
        }
        Some(fold(inst, numbers, |value| self.region.def(value).result()) & inst.ty.mask())
    }

    fn truncated(&self, inst: &Inst) -> Known {
        let region = &*self.region;
        let below = region.def(inst.args[0]);
        let part = match below.op {
            Op::ZeroExtend | Op::SignExtend | Op::Truncate => below.args[0],
            Op::InsertLow => below.args[1],
            Op::InsertHigh if inst.ty == Ty::I8 => below.args[0],
            _ => return Known::Nothing,
        };
        match region.def(part).result() {
            Some(ty) if ty == inst.ty => Known::Value(part),
            Some(ty) if ty > inst.ty => Known::Inst(Inst { args: [part, Val::NONE, Val::NONE], ..*inst }),
            Some(_) if matches!(below.op, Op::ZeroExtend | Op::SignExtend) => {
                Known::Inst(Inst { op: below.op, args: [part, Val::NONE, Val::NONE], ..*inst })
            }
            _ => Known::Nothing,
        }
    }

    fn high_byte(&self, inst: &Inst) -> Known {
        let region = &*self.region;
        let below = region.def(inst.args[0]);
        match below.op {
            Op::InsertHigh => Known::Value(below.args[1]),
            Op::InsertLow if region.def(below.args[1]).result() == Some(Ty::I8) => {
                Known::Inst(Inst { args: [below.args[0], Val::NONE, Val::NONE], ..*inst })
            }
            Op::ZeroExtend if matches!(region.def(below.args[0]).result(), Some(Ty::I8 | Ty::Bool)) => Known::Constant(0),
            _ => Known::Nothing,
        }
    }

    fn extended(&self, inst: &Inst) -> Known {
        let region = &*self.region;
        let below = region.def(inst.args[0]);
        match (inst.op, below.op) {
            (Op::ZeroExtend, Op::ZeroExtend) | (Op::SignExtend, Op::SignExtend) => {
                Known::Inst(Inst { args: [below.args[0], Val::NONE, Val::NONE], ..*inst })
            }
            (Op::SignExtend, Op::ZeroExtend) => {
                Known::Inst(Inst { op: Op::ZeroExtend, args: [below.args[0], Val::NONE, Val::NONE], ..*inst })
            }
            // Cut to 32 bits and widened again, while the upper half was zero all the time.
            (Op::ZeroExtend, Op::Truncate) if inst.ty == Ty::I64 && below.ty == Ty::I32 && self.is_narrow(below.args[0]) => {
                Known::Value(below.args[0])
            }
            _ => Known::Nothing,
        }
    }

    fn is_narrow(&self, value: Val) -> bool {
        is_narrow(self.region, &self.narrow, value)
    }

    fn address(&self, inst: &Inst) -> Known {
        let region = &*self.region;
        let mut new = *inst;
        if let Some(index) = region.constant(new.args[1]) {
            new.imm = new.imm.wrapping_add(index << new.aux);
            (new.args[1], new.aux) = (Val::NONE, 0);
        }
        if !new.args[0].is_some() && new.aux == 0 {
            new.args.swap(0, 1);
        }
        if let Some(base) = region.constant(new.args[0]) {
            new.imm = new.imm.wrapping_add(base);
            new.args[0] = Val::NONE;
        }
        match new.args {
            [Val::NONE, Val::NONE, _] => return Known::Constant(new.imm),
            [base, Val::NONE, _] if new.imm & new.ty.mask() == 0 => return Known::Value(base),
            _ => {}
        }
        for (at, scale) in [(0, 0), (1, new.aux)] {
            if !new.args[at].is_some() {
                continue;
            }
            let below = region.def(new.args[at]);
            if below.op == Op::Address && !below.args[1].is_some() {
                new.args[at] = below.args[0];
                new.imm = new.imm.wrapping_add(below.imm << scale);
            }
        }
        if new == *inst { Known::Nothing } else { Known::Inst(new) }
    }
}

/// Whether the upper half of a value of 64 bits is zero, given which parameters' are.
fn is_narrow(region: &Region, params: &[bool], value: Val) -> bool {
    let def = region.def(value);
    match def.op {
        Op::Param => params[value.index()],
        Op::Const => def.imm >> 32 == 0,
        Op::ZeroExtend => region.def(def.args[0]).result() != Some(Ty::I64),
        Op::Load | Op::LoadVia => def.access().bytes <= 4 && !def.access().signed,
        Op::Shr => region.constant(def.args[1]).is_some_and(|count| count & 63 >= 32),
        Op::And => def.args[..2].iter().any(|arg| region.constant(*arg).is_some_and(|mask| mask >> 32 == 0)),
        // A part that is put in does not change the rest.
        Op::InsertLow | Op::InsertHigh => {
            let base = region.def(def.args[0]);
            base.op != Op::InsertLow && base.op != Op::InsertHigh && is_narrow(region, params, def.args[0])
        }
        _ => false,
    }
}

/// Which parameters of 64 bits never have anything in their upper halves: those of which nothing says otherwise.
fn narrow_params(region: &Region) -> Vec<bool> {
    let mut narrow = vec![false; region.insts.len()];
    for block in region.blocks.iter().skip(1) {
        for param in &block.params {
            narrow[param.index()] = region.def(*param).ty == Ty::I64;
        }
    }
    let mut changed = true;
    while changed {
        changed = false;
        for block in &region.blocks {
            for edge in block.end.edges() {
                let super::super::To::Block(to) = edge.to else { continue };
                for (arg, param) in edge.args.iter().zip(&region.blocks[to as usize].params) {
                    if narrow[param.index()] && !is_narrow(region, &narrow, *arg) {
                        narrow[param.index()] = false;
                        changed = true;
                    }
                }
            }
        }
    }
    narrow
}
