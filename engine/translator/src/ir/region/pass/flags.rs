//! Flags over the graph: which of them anybody looks at on the way, and how the others can be had when something rare happens.
//!
//! First, a parameter that brings flags becomes, where all that is handed to it was left by one kind of instruction, that
//! instruction again, of parameters that bring its operands (mostly there already, as slots): nothing is to be packed on the
//! way. Then each token's `need` is found, from those that look backwards.

use super::super::super::ops::{FlagSet, Op, Ty};
use super::super::super::{Inst, Val};
use super::super::{BlockId, FLAGS, NO_SLOT, Region, To, ssa};

/// Most tokens behind each other that are told apart.
const DEEPEST: usize = 3;

/// The pass.
pub(super) fn run(region: &mut Region) {
    skip_useless(region);
    split_params(region);
    find_needs(region);
}

/// Old tokens that bring nothing of what is taken from them give way to their own old ones, so that a chain of INCs does not
/// keep alive what it started from.
fn skip_useless(region: &mut Region) {
    for block in 0..region.blocks.len() {
        for at in 0..region.blocks[block].body.len() {
            let value = region.blocks[block].body[at];
            let inst = *region.def(value);
            // What takes flags itself must have them from the token that also brings those it leaves alone.
            let takes_flags = || region.def(inst.args[0]).arguments().any(|arg| region.def(arg).result() == Some(Ty::Flags));
            if inst.op != Op::FlagsOf || !inst.args[1].is_some() || takes_flags() {
                continue;
            }
            // The old one has been shortened already, if it stands before.
            let (taken, old) = (kept(region, &inst), *region.def(inst.args[1]));
            if old.op == Op::FlagsOf && old.args[1].is_some() && !region.def(old.args[0]).op.flags_written().intersects(taken) {
                region.insts[value.index()].args[1] = old.args[1];
            }
        }
    }
}

// ---- Parameters ------------------------------------------------------------------------------------------------------

fn split_params(region: &mut Region) {
    let incoming = ssa::incoming(region);
    let mut alias = vec![Val::NONE; region.insts.len()];
    let mut any = false;
    for block in 1..region.blocks.len() as BlockId {
        let params = region.blocks[block as usize].params.clone();
        for (at, param) in params.into_iter().enumerate() {
            if region.def(param).ty != Ty::Flags {
                continue;
            }
            let edges = &incoming[block as usize];
            let tokens: Vec<Val> = edges.iter().map(|edge| argument(region, *edge, at)).collect();
            let mut split = Split { region, block, edges, made: Vec::new() };
            if let Some(token) = split.token(&tokens, DEEPEST) {
                let made = split.made;
                region.blocks[block as usize].body.splice(0..0, made);
                alias.resize(region.insts.len(), Val::NONE);
                alias[param.index()] = token;
                any = true;
            }
        }
    }
    if any {
        ssa::retain_params(region, |param| !alias.get(param.index()).is_some_and(|alias| alias.is_some()));
        ssa::substitute(region, alias);
        ssa::remove_needless_params(region);
    }
}

fn argument(region: &Region, (from, edge): (BlockId, usize), at: usize) -> Val {
    region.blocks[from as usize].end.edges().nth(edge).map_or(Val::NONE, |edge| edge.args[at])
}

/// A parameter that is being replaced: its block, the edges that lead there, the instructions that the block gets.
struct Split<'a> {
    region: &'a mut Region,
    block: BlockId,
    edges: &'a [(BlockId, usize)],
    made: Vec<Val>,
}

impl Split<'_> {
    /// A token that holds in the block what `tokens` hold at its edges, if they are of one kind.
    fn token(&mut self, tokens: &[Val], depth: usize) -> Option<Val> {
        let first = *tokens.first()?;
        if tokens.iter().all(|token| *token == first) {
            return first.is_some().then_some(first);
        }
        if depth == 0 || tokens.iter().any(|token| !token.is_some() || self.region.def(*token).op != Op::FlagsOf) {
            return None;
        }
        let source = |region: &Region, token: Val| *region.def(region.def(token).args[0]);
        let kind = source(self.region, first);
        let alike = tokens.iter().all(|token| {
            let other = source(self.region, *token);
            (other.op, other.ty, other.aux, other.imm) == (kind.op, kind.ty, kind.aux, kind.imm)
        });
        // What takes flags itself would want them told apart too.
        let takes_flags = kind.arguments().any(|arg| self.region.def(arg).result() == Some(Ty::Flags));
        if !alike || takes_flags {
            return None;
        }
        let old: Vec<Val> = tokens.iter().map(|token| self.region.def(*token).args[1]).collect();
        let old = match old.iter().filter(|old| old.is_some()).count() {
            0 => Val::NONE,
            count if count == old.len() => self.token(&old, depth - 1)?,
            _ => return None,
        };
        let args = self.operands(tokens, &kind);
        let result = self.make(Inst { args, ..kind });
        Some(self.make(Inst { args: [result, old, Val::NONE], ..Inst::new(Op::FlagsOf, Ty::Flags) }))
    }

    /// The operands of the instruction in the block. Where its result is at hand and says it all, that is used, for the operand
    /// may be gone.
    fn operands(&mut self, tokens: &[Val], kind: &Inst) -> [Val; 3] {
        let results: Vec<Val> = tokens.iter().map(|token| self.region.def(*token).args[0]).collect();
        if let Some(result) = self.at_hand(&results, kind.ty) {
            let constant = |region: &Region, at: usize| {
                let number = |result: &Val| region.constant(region.def(*result).args[at]);
                let first = number(&results[0]);
                first.filter(|_| results.iter().all(|result| number(result) == first))
            };
            let back = match kind.op {
                Op::And | Op::Or => return [result, result, Val::NONE],
                Op::Inc => Some(u64::MAX),
                Op::Dec => Some(1),
                Op::Add => constant(self.region, 1).map(u64::wrapping_neg),
                Op::Sub => constant(self.region, 1),
                _ => None,
            };
            if let Some(back) = back {
                let by = self.make(Inst { imm: back & kind.ty.mask(), ..Inst::new(Op::Const, kind.ty) });
                let before = self.make(Inst { args: [result, by, Val::NONE], ..Inst::new(Op::Add, kind.ty) });
                let second = match kind.op {
                    Op::Inc | Op::Dec => Val::NONE,
                    _ => {
                        let second = if kind.op == Op::Sub { back } else { back.wrapping_neg() };
                        self.make(Inst { imm: second & kind.ty.mask(), ..Inst::new(Op::Const, kind.ty) })
                    }
                };
                return [before, second, Val::NONE];
            }
        }
        let mut args = [Val::NONE; 3];
        for (at, arg) in args.iter_mut().enumerate().filter(|(at, _)| kind.args[*at].is_some()) {
            let given: Vec<Val> = results.iter().map(|result| self.region.def(*result).args[at]).collect();
            *arg = self.value(&given);
        }
        args
    }

    /// A value that holds in the block what these hold at its edges.
    fn value(&mut self, given: &[Val]) -> Val {
        let first = given[0];
        let ty = self.region.def(first).result().unwrap_or(Ty::None);
        if given.iter().all(|value| *value == first) {
            return first;
        }
        if let Some(number) = self.region.constant(first)
            && given.iter().all(|value| self.region.constant(*value) == Some(number))
        {
            return self.make(Inst { imm: number, ..Inst::new(Op::Const, ty) });
        }
        if let Some(value) = self.at_hand(given, ty) {
            return value;
        }
        let param = self.region.add_param(self.block, ty, NO_SLOT);
        for ((from, edge), value) in self.edges.iter().zip(given) {
            if let Some(edge) = self.region.blocks[*from as usize].end.edges_mut().nth(*edge) {
                edge.args.push(*value);
            }
        }
        param
    }

    /// The same, if a parameter brings it already, whole or widened.
    fn at_hand(&mut self, given: &[Val], ty: Ty) -> Option<Val> {
        let region = &*self.region;
        let brings = |at: usize, narrow: bool| {
            self.edges.iter().zip(given).all(|(edge, value)| {
                let arg = argument(region, *edge, at);
                let (wide, part) = (region.def(arg), region.def(*value));
                arg == *value && !narrow
                    || narrow
                        && (matches!(wide.op, Op::ZeroExtend | Op::SignExtend) && wide.args[0] == *value
                            || part.op == Op::Truncate && part.args[0] == arg
                            || wide.op == Op::Const && part.op == Op::Const && wide.imm & ty.mask() == part.imm & ty.mask())
            })
        };
        let params = &region.blocks[self.block as usize].params;
        let fits = |at: &usize, narrow: bool| {
            let wide = region.def(params[*at]).ty;
            (if narrow { wide.is_integer() && ty.is_integer() && wide > ty } else { wide == ty }) && brings(*at, narrow)
        };
        if let Some(at) = (0..params.len()).find(|at| fits(at, false)) {
            return Some(params[at]);
        }
        let at = (0..params.len()).find(|at| fits(at, true))?;
        let wide = params[at];
        Some(self.make(Inst { args: [wide, Val::NONE, Val::NONE], ..Inst::new(Op::Truncate, ty) }))
    }

    fn make(&mut self, inst: Inst) -> Val {
        let value = self.region.add(inst);
        self.made.push(value);
        value
    }
}

// ---- Needs -----------------------------------------------------------------------------------------------------------

fn find_needs(region: &mut Region) {
    let need = ask(region);
    let recoverable = mark_recoverable(region);
    for block in 0..region.blocks.len() {
        for at in 0..region.blocks[block].body.len() {
            let value = region.blocks[block].body[at];
            let inst = *region.def(value);
            if inst.result() != Some(Ty::Flags) {
                continue;
            }
            region.insts[value.index()].need = need[value.index()];
            let old = match inst.op {
                Op::FlagsOf => Some((1, kept(region, &inst))),
                Op::FlagsMerge => Some((0, FlagSet::from_bits_truncate(inst.imm as u8).complement())),
                _ => None,
            };
            if let Some((argument, brings)) = old
                && !need[value.index()].intersects(brings)
                && !recoverable[value.index()]
            {
                region.insts[value.index()].args[argument] = Val::NONE;
            }
        }
        for param in region.blocks[block].params.clone() {
            if region.def(param).imm == FLAGS {
                region.insts[param.index()].need = need[param.index()];
            }
        }
    }
}

/// What is asked of each token on the way.
fn ask(region: &Region) -> Vec<FlagSet> {
    let mut need = vec![FlagSet::empty(); region.insts.len()];
    let mut changed = true;
    while changed {
        changed = false;
        let mut ask = |need: &mut Vec<FlagSet>, value: Val, flags: FlagSet| {
            if value.is_some() && !need[value.index()].contains(flags) {
                need[value.index()] |= flags;
                changed = true;
            }
        };
        for block in region.blocks.iter().rev() {
            for edge in block.end.edges() {
                let To::Block(to) = edge.to else { continue };
                for (arg, param) in edge.args.iter().zip(&region.blocks[to as usize].params) {
                    let own = need[param.index()];
                    ask(&mut need, *arg, own);
                }
            }
            for value in block.body.iter().rev() {
                let inst = region.def(*value);
                let own = need[value.index()];
                match inst.op {
                    Op::Cond => ask(&mut need, inst.args[0], inst.condition().flags()),
                    Op::FlagsPack => ask(&mut need, inst.args[0], FlagSet::all()),
                    Op::AddCarry | Op::SubBorrow | Op::RolCarry | Op::RorCarry => ask(&mut need, inst.args[2], FlagSet::C),
                    Op::FlagsOf => ask(&mut need, inst.args[1], own & kept(region, inst)),
                    Op::FlagsMerge => {
                        let mask = FlagSet::from_bits_truncate(inst.imm as u8);
                        ask(&mut need, inst.args[0], own & mask.complement());
                        ask(&mut need, inst.args[1], own & mask);
                    }
                    _ => {}
                }
            }
        }
    }
    need
}

/// Which flags a `FlagsOf` may take from its old token.
fn kept(region: &Region, inst: &Inst) -> FlagSet {
    let source = region.def(inst.args[0]);
    let may_be_zero = source.op.count_argument().is_some_and(|count| {
        let count = region.constant(source.args[count]);
        count.is_none_or(|count| count as u8 & source.ty.count_mask() == 0)
    });
    if may_be_zero { FlagSet::all() } else { source.op.flags_written().complement() }
}

/// Marks tokens of which some state wants all flags, by themselves or through another token.
fn mark_recoverable(region: &Region) -> Vec<bool> {
    let mut marks = vec![false; region.insts.len()];
    let mut open: Vec<Val> = region.snapshots.iter().map(|state| state.flags).collect();
    open.extend(region.exits.iter().map(|exit| exit.state.flags));
    let arguments = |param: Val| {
        region.blocks.iter().flat_map(move |block| {
            block.end.edges().filter_map(move |edge| {
                let To::Block(to) = edge.to else { return None };
                let at = region.blocks[to as usize].params.iter().position(|other| *other == param)?;
                Some(edge.args[at])
            })
        })
    };
    while let Some(token) = open.pop() {
        if !token.is_some() || std::mem::replace(&mut marks[token.index()], true) {
            continue;
        }
        let inst = region.def(token);
        match inst.op {
            Op::Param => open.extend(arguments(token)),
            Op::FlagsOf => {
                open.push(inst.args[1]);
                let source = region.def(inst.args[0]);
                open.extend(source.arguments().filter(|arg| region.def(*arg).result() == Some(Ty::Flags)));
            }
            Op::FlagsMerge => open.extend(inst.arguments()),
            _ => {}
        }
    }
    marks
}
