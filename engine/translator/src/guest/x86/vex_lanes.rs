//! From operations on 128 bits to operations on 256: adapters, and the few operations that cross the middle.

use super::host_fp::{Cmppd, Cmpps, Cmpsd, Cmpss, Float, FloatImmediate, Lanes};
use super::shuffle::{Shuffle, blend_bytes};
use super::sse_unmasked::Elements;
use std::marker::PhantomData;

/// The lower and the upper half of a YMM register.
pub(super) type Wide = [u128; 2];

/// An operation without an environment. The upper half of the result does not count where the instruction has 128 bits.
pub(super) trait WideOp {
    /// The result for the two sources and the immediate.
    fn run(first: Wide, source: Wide, immediate: u8) -> Wide;
}

/// An operation under MXCSR.
pub(super) trait WideFloat {
    /// Which elements it combines, in each half.
    const ELEMENTS: Elements;
    /// The result, and MXCSR with the flags that were raised added. `mxcsr` must have all exceptions masked.
    fn run<const WIDE: bool>(first: Wide, source: Wide, immediate: u8, mxcsr: u32) -> (Wide, u32);
}

macro_rules! adapters {
    ($($(#[$doc:meta])* $Name:ident<$O:ident: $bound:ident $(, const $N:ident: $type:ty)?> |$d:pat_param, $s:pat_param, $i:pat_param| $result:expr;)*) => {$(
        $(#[$doc])*
        pub(super) struct $Name<$O $(, const $N: $type)?>(PhantomData<$O>);
        impl<$O: $bound $(, const $N: $type)?> WideOp for $Name<$O $(, $N)?> {
            #[inline(always)]
            fn run($d: Wide, $s: Wide, $i: u8) -> Wide {
                $result
            }
        }
    )*};
}

adapters! {
    /// Both halves alike.
    Each<O: Lanes> |d, s, _| [O::run(d[0], s[0]), O::run(d[1], s[1])];
    /// Both halves with the source's lower half: shifts by a count in a register.
    Count<O: Lanes> |d, s, _| [O::run(d[0], s[0]), O::run(d[1], s[0])];
    /// Each half from `BITS` bits of the source: VPMOVSX, VPMOVZX.
    Extend<O: Lanes, const BITS: u32> |_, s, _| [O::run(0, s[0]), O::run(0, s[0] >> BITS)];
    /// Both halves with the immediate, of which the upper half takes the bits from `SHIFT` on.
    By<O: Shuffle, const SHIFT: u32> |d, s, i| [O::run(d[0], s[0], i), O::run(d[1], s[1], i >> SHIFT)];
}

const LOW: u128 = u64::MAX as u128;

macro_rules! wide_ops {
    ($($(#[$doc:meta])* $Name:ident |$d:pat_param, $s:pat_param, $i:pat_param| $result:expr;)*) => {$(
        $(#[$doc])*
        pub(super) struct $Name;
        impl WideOp for $Name {
            #[inline(always)]
            fn run($d: Wide, $s: Wide, $i: u8) -> Wide {
                $result
            }
        }
    )*};
}

wide_ops! {
    /// A move.
    Copy |_, s, _| s;
    /// VMOVSS of registers: the low single of the source.
    LowSingle |d, s, _| [d[0] & !0xffff_ffff | s[0] & 0xffff_ffff, 0];
    /// VMOVSD of registers, VMOVLPS: the low double of the source.
    LowDouble |d, s, _| [d[0] & !LOW | s[0] & LOW, 0];
    /// VMOVLHPS, VMOVHPS: the source's low double goes up.
    LowToHigh |d, s, _| [d[0] & LOW | s[0] << 64, 0];
    /// VMOVHLPS: the source's high double comes down.
    HighToLow |d, s, _| [d[0] & !LOW | s[0] >> 64, 0];
    /// VMOVQ: the rest becomes zero.
    Quad |_, s, _| [s[0] & LOW, 0];
    /// VBROADCASTF128
    BroadcastHalf |_, s, _| [s[0], s[0]];
    /// VINSERTF128
    InsertHalf |d, s, i| if i & 1 == 0 { [s[0], d[1]] } else { [d[0], s[0]] };
    /// VPERM2F128
    PermuteHalves |d, s, i| {
        let choose = |control: u8| match control & 0xb {
            0 => d[0],
            1 => d[1],
            2 => s[0],
            3 => s[1],
            _ => 0,
        };
        [choose(i), choose(i >> 4)]
    };
    /// VPERMQ, VPERMPD
    PermuteQuads |_, s, i| {
        let quad = |at: u8| s[usize::from(at >> 1 & 1)] >> (64 * (at & 1)) & LOW;
        [quad(i) | quad(i >> 2) << 64, quad(i >> 4) | quad(i >> 6) << 64]
    };
    /// VPERMD, VPERMPS: the first source says where from.
    PermuteDoubles |d, s, _| {
        let half = |control: u128| (0..4).fold(0, |result, lane| {
            let from = control >> (32 * lane);
            result | (s[(from >> 2 & 1) as usize] >> (32 * (from & 3) as u32) & 0xffff_ffff) << (32 * lane)
        });
        [half(d[0]), half(d[1])]
    };
}

/// VBROADCASTSS, VPBROADCASTB and the like: the lowest `BITS` bits everywhere.
pub(super) struct Broadcast<const BITS: u32>;
impl<const BITS: u32> WideOp for Broadcast<BITS> {
    #[inline(always)]
    fn run(_: Wide, source: Wide, _: u8) -> Wide {
        let element = source[0] & ((1 << BITS) - 1);
        let half = (0..128 / BITS).fold(0, |half, lane| half | element << (BITS * lane));
        [half; 2]
    }
}

/// Each element of `BITS` bits shifted by its own count.
macro_rules! variable_shifts {
    ($($Name:ident $bits:literal |$value:ident, $count:ident| $result:expr;)*) => {$(
        #[doc = stringify!($Name)]
        pub(super) struct $Name;
        impl Lanes for $Name {
            #[inline(always)]
            fn run(destination: u128, source: u128) -> u128 {
                (0..128 / $bits).fold(0, |result, lane| {
                    let mask = u64::MAX >> (64 - $bits);
                    let [$value, count] = [destination, source].map(|vector| (vector >> ($bits * lane)) as u64 & mask);
                    let $count = count.min($bits) as u32;
                    result | u128::from($result & mask) << ($bits * lane)
                })
            }
        }
    )*};
}

variable_shifts! {
    Psllvd 32 |value, count| value << count;
    Psrlvd 32 |value, count| value >> count;
    Psravd 32 |value, count| (i64::from(value as i32) >> count) as u64;
    Psllvq 64 |value, count| value.checked_shl(count).unwrap_or(0);
    Psrlvq 64 |value, count| value.checked_shr(count).unwrap_or(0);
}

/// VPERMILPS by a vector: each single of the half that the control's two low bits name.
pub(super) struct Permilps;
impl Lanes for Permilps {
    #[inline(always)]
    fn run(destination: u128, source: u128) -> u128 {
        (0..4).fold(0, |result, lane| {
            let from = (source >> (32 * lane)) as u32 & 3;
            result | (destination >> (32 * from) & 0xffff_ffff) << (32 * lane)
        })
    }
}

/// VPERMILPD by a vector: bit 1 of the control.
pub(super) struct Permilpd;
impl Lanes for Permilpd {
    #[inline(always)]
    fn run(destination: u128, source: u128) -> u128 {
        (0..2).fold(0, |result, lane| {
            let from = (source >> (64 * lane + 1)) as u32 & 1;
            result | (destination >> (64 * from) & LOW) << (64 * lane)
        })
    }
}

/// VPERMILPD by an immediate: a bit for each double.
pub(super) struct PermilpdImmediate;
impl Shuffle for PermilpdImmediate {
    #[inline(always)]
    fn run(_: u128, source: u128, immediate: u8) -> u128 {
        let double = |bit: u8| source >> (64 * (bit & 1)) & LOW;
        double(immediate) | double(immediate >> 1) << 64
    }
}

/// VPBLENDD
pub(super) struct Pblendd;
impl Shuffle for Pblendd {
    #[inline(always)]
    fn run(destination: u128, source: u128, immediate: u8) -> u128 {
        blend_bytes(destination, source, u64::from(immediate), 4)
    }
}

// ---- Under MXCSR -----------------------------------------------------------------------------------------------

macro_rules! float_adapters {
    ($($(#[$doc:meta])* $Name:ident<$O:ident: $bound:ident> |$d:pat_param, $s:pat_param, $i:pat_param, $m:ident, $wide:ident| $result:expr;)*) => {$(
        $(#[$doc])*
        pub(super) struct $Name<$O>(PhantomData<$O>);
        impl<$O: $bound> WideFloat for $Name<$O> {
            const ELEMENTS: Elements = $O::ELEMENTS;
            #[inline(always)]
            fn run<const $wide: bool>($d: Wide, $s: Wide, $i: u8, $m: u32) -> (Wide, u32) {
                $result
            }
        }
    )*};
}

/// One half, then the other if there are two.
#[inline(always)]
fn halves<const WIDE: bool>(
    mxcsr: u32,
    low: impl FnOnce(u32) -> (u128, u32),
    high: impl FnOnce(u32) -> (u128, u32),
) -> (Wide, u32) {
    let (low, mxcsr) = low(mxcsr);
    let (high, mxcsr) = if WIDE { high(mxcsr) } else { (0, mxcsr) };
    ([low, high], mxcsr)
}

float_adapters! {
    /// Both halves alike.
    F<O: Float> |d, s, _, m, WIDE| halves::<WIDE>(m, |m| O::run(d[0], s[0], m), |m| O::run(d[1], s[1], m));
    /// Both halves alike, with an immediate.
    FBy<O: FloatImmediate> |d, s, i, m, WIDE| {
        halves::<WIDE>(m, |m| O::run(d[0], s[0], m, i), |m| O::run(d[1], s[1], m, i))
    };
    /// Each half from 64 bits of the source.
    Widen<O: Float> |_, s, _, m, WIDE| halves::<WIDE>(m, |m| O::run(0, s[0], m), |m| O::run(0, s[0] >> 64, m));
    /// 64 bits from each half of the source.
    Narrow<O: Float> |_, s, _, m, WIDE| {
        let ([low, high], m) = halves::<WIDE>(m, |m| O::run(0, s[0], m), |m| O::run(0, s[1], m));
        ([low & LOW | high << 64, 0], m)
    };
}

/// The 32 predicates of VCMPPS and the like, made of the eight of CMPPS: by exchanging the operands, by putting two together,
/// and by taking the flags from another one that is silent, or signals, about quiet NaNs.
macro_rules! comparisons {
    ($($Name:ident $Legacy:ident $bits:literal;)*) => {$(
        #[doc = stringify!($Name)]
        pub(super) struct $Name;
        impl $Name {
            fn half(a: u128, b: u128, immediate: u8, mxcsr: u32) -> (u128, u32) {
                const EQUAL: u8 = 0;
                const LESS: u8 = 1;
                let run = |a, b, predicate| $Legacy::run(a, b, mxcsr, predicate).0;
                let signals = matches!(immediate & 3, 1 | 2) != (immediate & 16 != 0);
                let (_, after) = $Legacy::run(a, b, mxcsr, if signals { LESS } else { EQUAL });
                let result = match immediate & 15 {
                    predicate @ 0..=7 => run(a, b, predicate),
                    8 => run(a, b, EQUAL) | run(a, b, 3),
                    9 => run(b, a, 6),
                    10 => run(b, a, 5),
                    11 => 0,
                    12 => run(a, b, 4) & run(a, b, 7),
                    13 => run(b, a, 2),
                    14 => run(b, a, LESS),
                    _ => u128::MAX,
                };
                let compared = u128::MAX >> (128 - $bits);
                (a & !compared | result & compared, after)
            }
        }
        impl WideFloat for $Name {
            const ELEMENTS: Elements = Elements::Simple;
            #[inline]
            fn run<const WIDE: bool>(d: Wide, s: Wide, immediate: u8, mxcsr: u32) -> (Wide, u32) {
                halves::<WIDE>(mxcsr, |m| Self::half(d[0], s[0], immediate, m), |m| Self::half(d[1], s[1], immediate, m))
            }
        }
    )*};
}

comparisons! {
    Vcmpps Cmpps 128;
    Vcmppd Cmppd 128;
    Vcmpss Cmpss 32;
    Vcmpsd Cmpsd 64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_permuted_and_cleared_by_the_control() {
        let (first, second) = ([1, 2], [3, 4]);
        assert_eq!(PermuteHalves::run(first, second, 0x31), [2, 4]);
        assert_eq!(PermuteHalves::run(first, second, 0x82), [3, 0]);
        assert_eq!(PermuteQuads::run(first, [0x1_0000_0000_0000_0000, 5], 0b00_10_01_00), [1 << 64, 5]);
    }

    #[test]
    fn counts_beyond_the_element_clear_it_or_leave_its_sign() {
        assert_eq!(Psllvd::run(0x1_0000_0001, 0x20_0000_001f), 0x8000_0000);
        assert_eq!(Psravd::run(0x8000_0000, 0xffff_ffff), 0xffff_ffff);
        assert_eq!(Psrlvq::run(u128::MAX, 64), u128::from(u64::MAX) << 64);
    }
}
