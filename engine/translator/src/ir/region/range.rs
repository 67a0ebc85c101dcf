//! How large a value can be: what its instruction says of it, without looking at who hands it what.

use super::super::{Op, Ty, Val};
use super::Region;

/// How deep a value is looked into.
const DEEPEST: u32 = 6;

/// The largest number that an integer can be, without sign.
pub(crate) fn most(region: &Region, value: Val) -> u64 {
    most_of(region, value, DEEPEST)
}

fn most_of(region: &Region, value: Val, deeper: u32) -> u64 {
    let def = region.def(value);
    let all = def.result().map_or(u64::MAX, Ty::mask);
    if deeper == 0 {
        return all;
    }
    let [a, b, c] = def.args;
    let of = |value: Val| most_of(region, value, deeper - 1);
    let found = match def.op {
        Op::Const => def.imm & all,
        Op::ZeroExtend | Op::Truncate => of(a),
        Op::And => of(a).min(of(b)),
        // No bit above the highest of either.
        Op::Or | Op::Xor => u64::MAX.checked_shr((of(a) | of(b)).leading_zeros()).unwrap_or(0),
        Op::Shr => region.constant(b).map_or(all, |count| of(a) >> (count & u64::from(def.ty.count_mask()))),
        Op::Select => of(b).max(of(c)),
        Op::Load | Op::LoadVia if !def.access().signed => match def.access().bytes {
            bytes @ 1..=4 => (1 << (8 * bytes)) - 1,
            _ => all,
        },
        _ => all,
    };
    // What is cut off may be all of it.
    if found > all { all } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Inst;

    #[test]
    fn bounds_are_found_through_what_keeps_them() {
        let mut region = Region::new(&[], 0x1000, u64::MAX, 0);
        let mut add =
            |op, ty, args: [Val; 2], imm| region.add(Inst { args: [args[0], args[1], Val::NONE], imm, ..Inst::new(op, ty) });
        let none = Val::NONE;
        let any = add(Op::Param, Ty::I64, [none; 2], 0);
        let byte = add(Op::Truncate, Ty::I8, [any, none], 0);
        let wide = add(Op::ZeroExtend, Ty::I32, [byte, none], 0);
        let mask = add(Op::Const, Ty::I32, [none; 2], 0x1700);
        let either = add(Op::Or, Ty::I32, [wide, mask], 0);
        let four = add(Op::Const, Ty::I8, [none; 2], 4);
        let shifted = add(Op::Shr, Ty::I32, [either, four], 0);
        let narrow = add(Op::Truncate, Ty::I8, [shifted, none], 0);
        let sum = add(Op::Add, Ty::I32, [wide, wide], 0);
        let nothing = add(Op::Const, Ty::I32, [none; 2], 0);
        let no_bits = add(Op::Xor, Ty::I32, [nothing, nothing], 0);
        let masked = add(Op::And, Ty::I32, [sum, mask], 0);
        for (value, expected) in [
            (any, u64::MAX),
            (byte, 0xff),
            (wide, 0xff),
            (either, 0x1fff),
            (shifted, 0x1ff),
            (narrow, 0xff),
            (sum, 0xffff_ffff),
            (no_bits, 0),
            (masked, 0x1700),
        ] {
            assert_eq!(most(&region, value), expected, "{value:?}");
        }
    }
}
