//! What an address is made of: a sum of values, each so many times, and a constant. Two addresses with the same values are so
//! far apart as their constants, whatever way they were computed.

use super::super::{Op, Ty, Val};
use super::Region;

/// Most values of a sum. What has more is one value.
const MOST: usize = 4;
/// Most instructions that are looked through.
const STEPS: u32 = 24;

/// In place of a value: the pc of the region's first instruction.
const START: Val = Val(u32::MAX - 1);

/// The values and their factors, by their places; none is there twice.
pub(crate) type Terms = Vec<(Val, u64)>;

/// A sum, modulo 2^64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sum {
    pub terms: Terms,
    pub constant: u64,
}

impl Sum {
    /// That of a value of 64 bits.
    pub fn of(region: &Region, value: Val) -> Self {
        let (mut sum, mut steps) = (Self { terms: Vec::with_capacity(MOST), constant: 0 }, STEPS);
        sum.add(region, value, 1, &mut steps);
        sum.terms.sort_unstable();
        if sum.terms.len() > MOST { Self { terms: vec![(value, 1)], constant: 0 } } else { sum }
    }

    /// How far the other lies behind this one, if that is known.
    pub fn distance_to(&self, other: &Self) -> Option<u64> {
        (self.terms == other.terms).then(|| other.constant.wrapping_sub(self.constant))
    }

    fn add(&mut self, region: &Region, value: Val, factor: u64, steps: &mut u32) {
        let def = region.def(value);
        let [a, b, _] = def.args;
        if *steps == 0 || def.ty != Ty::I64 {
            return self.add_term(value, factor);
        }
        *steps -= 1;
        match def.op {
            Op::Const => self.add_constant(def.imm, factor),
            // The region may run elsewhere, where constants stay what they are.
            Op::Pc => {
                self.add_constant(def.imm, factor);
                self.add_term(START, factor);
            }
            Op::Address => {
                self.add_constant(def.imm, factor);
                if a.is_some() {
                    self.add(region, a, factor, steps);
                }
                if b.is_some() {
                    self.add(region, b, factor << (def.aux & 3), steps);
                }
            }
            Op::Add => {
                self.add(region, a, factor, steps);
                self.add(region, b, factor, steps);
            }
            Op::Sub => {
                self.add(region, a, factor, steps);
                self.add(region, b, factor.wrapping_neg(), steps);
            }
            Op::Inc | Op::Dec => {
                self.add_constant(if def.op == Op::Inc { 1 } else { u64::MAX }, factor);
                self.add(region, a, factor, steps);
            }
            Op::Shl => match region.constant(b) {
                Some(count) => self.add(region, a, factor << (count & 63), steps),
                None => self.add_term(value, factor),
            },
            _ => self.add_term(value, factor),
        }
    }

    fn add_constant(&mut self, number: u64, factor: u64) {
        self.constant = self.constant.wrapping_add(number.wrapping_mul(factor));
    }

    fn add_term(&mut self, value: Val, factor: u64) {
        match self.terms.iter().position(|(known, _)| *known == value) {
            Some(at) => {
                self.terms[at].1 = self.terms[at].1.wrapping_add(factor);
                if self.terms[at].1 == 0 {
                    self.terms.swap_remove(at);
                }
            }
            None if factor != 0 => self.terms.push((value, factor)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Inst;

    #[test]
    fn addresses_computed_in_other_ways_are_so_far_apart() {
        let mut region = Region::new(&[], 0x1000, u64::MAX, 0);
        let word =
            |op, args: [Val; 2], aux, imm| Inst { args: [args[0], args[1], Val::NONE], aux, imm, ..Inst::new(op, Ty::I64) };
        let none = Val::NONE;
        let p = region.add(word(Op::Param, [none, none], 0, 0));
        let i = region.add(word(Op::Param, [none, none], 0, 1));
        let next = region.add(word(Op::Inc, [i, none], 0, 0));
        let three = region.add(word(Op::Const, [none, none], 0, 3));
        let times = region.add(word(Op::Shl, [next, three], 0, 0));
        // p + i * 8 + 16, and 8 * (i + 1) + p
        let first = region.add(word(Op::Address, [p, i], 3, 16));
        let second = region.add(word(Op::Add, [times, p], 0, 0));
        let (first, second) = (Sum::of(&region, first), Sum::of(&region, second));
        assert_eq!(first.terms, [(p, 1), (i, 8)]);
        assert_eq!(first.distance_to(&second), Some(8u64.wrapping_neg()));
        let gone = region.add(word(Op::Sub, [p, p], 0, 0));
        assert_eq!(Sum::of(&region, gone), Sum { terms: Vec::new(), constant: 0 });
        assert_eq!(first.distance_to(&Sum::of(&region, p)), None);
    }
}
