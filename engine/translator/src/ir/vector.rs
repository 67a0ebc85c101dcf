//! What `Vector` does: operations on the lanes of 128-bit values. A host has one instruction for most of them.
//!
//! A line of the table is name, shape and meaning; the meaning is what the evaluator runs, in plain Rust. Lanes are numbered
//! from the low end.

/// What an operation takes besides the first value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// The second value.
    Value,
    /// The second value and the immediate.
    ValueAndImmediate,
    /// The second value (its low 64 bits), or if there is none the immediate: a shift count.
    Count,
    /// The immediate.
    Immediate,
}

/// A line of the table.
pub(crate) struct VectorInfo {
    pub name: &'static str,
    pub takes: Takes,
    /// The first value, the second, the immediate.
    pub run: fn(u128, u128, u8) -> u128,
}

macro_rules! vectors {
    ($($(#[$doc:meta])* $name:ident: $takes:ident, |$a:pat_param, $b:pat_param, $i:pat_param| $body:expr;)*) => {
        /// An operation on vectors.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub(crate) enum VectorOp { $($(#[$doc])* $name),* }

        /// The table, in the order of [`VectorOp`].
        const TABLE: &[VectorInfo] =
            &[$(VectorInfo { name: stringify!($name), takes: Takes::$takes, run: |$a, $b, $i| $body }),*];

        const ALL: &[VectorOp] = &[$(VectorOp::$name),*];
    };
}

impl VectorOp {
    /// Its line of the table.
    pub fn info(self) -> &'static VectorInfo {
        &TABLE[self as usize]
    }
    /// By its number.
    pub fn from_number(number: u8) -> Option<Self> {
        ALL.get(usize::from(number)).copied()
    }
    /// `imm` of a `Vector` instruction: the operation, and its immediate above.
    pub fn pack(self, immediate: u8) -> u64 {
        self as u64 | u64::from(immediate) << 8
    }
}

macro_rules! lane_type {
    ($map:ident, $join:ident, $type:ty) => {
        /// Lane by lane.
        fn $map(a: u128, b: u128, f: impl Fn($type, $type) -> $type) -> u128 {
            $join(|lane| {
                let shift = lane as u32 * <$type>::BITS;
                f((a >> shift) as $type, (b >> shift) as $type)
            })
        }
        /// A vector from the lanes that `f` gives for their numbers.
        fn $join(f: impl Fn(usize) -> $type) -> u128 {
            (0..128 / <$type>::BITS as usize).fold(0, |all, lane| all | u128::from(f(lane)) << (lane as u32 * <$type>::BITS))
        }
    };
}
lane_type!(each8, join8, u8);
lane_type!(each16, join16, u16);
lane_type!(each32, join32, u32);
lane_type!(each64, join64, u64);

fn lane8(v: u128, lane: usize) -> u8 {
    (v >> (lane * 8)) as u8
}
fn lane16(v: u128, lane: usize) -> u16 {
    (v >> (lane * 16)) as u16
}
fn lane32(v: u128, lane: usize) -> u32 {
    (v >> (lane * 32)) as u32
}
fn lane64(v: u128, lane: usize) -> u64 {
    (v >> (lane * 64)) as u64
}
/// A lane full of ones if true.
macro_rules! ones {
    ($type:ty, $is:expr) => {
        if $is { <$type>::MAX } else { 0 }
    };
}
/// The count of a shift; more than `bits` is `bits`.
fn count(b: u128, bits: u32) -> u32 {
    (b as u64).min(bits.into()) as u32
}
fn clamp8(value: i16) -> u8 {
    value.clamp(i8::MIN.into(), i8::MAX.into()) as i8 as u8
}
fn clamp16(value: i32) -> u16 {
    value.clamp(i16::MIN.into(), i16::MAX.into()) as i16 as u16
}

vectors! {
    And: Value, |a, b, _| a & b;
    /// ¬a ∧ b.
    AndNot: Value, |a, b, _| !a & b;
    Or: Value, |a, b, _| a | b;
    Xor: Value, |a, b, _| a ^ b;

    Add8: Value, |a, b, _| each8(a, b, u8::wrapping_add);
    Add16: Value, |a, b, _| each16(a, b, u16::wrapping_add);
    Add32: Value, |a, b, _| each32(a, b, u32::wrapping_add);
    Add64: Value, |a, b, _| each64(a, b, u64::wrapping_add);
    Sub8: Value, |a, b, _| each8(a, b, u8::wrapping_sub);
    Sub16: Value, |a, b, _| each16(a, b, u16::wrapping_sub);
    Sub32: Value, |a, b, _| each32(a, b, u32::wrapping_sub);
    Sub64: Value, |a, b, _| each64(a, b, u64::wrapping_sub);
    /// Saturating, unsigned.
    AddSaturated8: Value, |a, b, _| each8(a, b, u8::saturating_add);
    AddSaturated16: Value, |a, b, _| each16(a, b, u16::saturating_add);
    SubSaturated8: Value, |a, b, _| each8(a, b, u8::saturating_sub);
    SubSaturated16: Value, |a, b, _| each16(a, b, u16::saturating_sub);
    /// Saturating, signed.
    AddSaturatedSigned8: Value, |a, b, _| each8(a, b, |a, b| (a as i8).saturating_add(b as i8) as u8);
    AddSaturatedSigned16: Value, |a, b, _| each16(a, b, |a, b| (a as i16).saturating_add(b as i16) as u16);
    SubSaturatedSigned8: Value, |a, b, _| each8(a, b, |a, b| (a as i8).saturating_sub(b as i8) as u8);
    SubSaturatedSigned16: Value, |a, b, _| each16(a, b, |a, b| (a as i16).saturating_sub(b as i16) as u16);
    /// (a + b + 1) / 2, unsigned.
    Average8: Value, |a, b, _| each8(a, b, |a, b| ((u16::from(a) + u16::from(b) + 1) >> 1) as u8);
    Average16: Value, |a, b, _| each16(a, b, |a, b| ((u32::from(a) + u32::from(b) + 1) >> 1) as u16);
    Min8: Value, |a, b, _| each8(a, b, u8::min);
    Min16: Value, |a, b, _| each16(a, b, u16::min);
    Min32: Value, |a, b, _| each32(a, b, u32::min);
    Max8: Value, |a, b, _| each8(a, b, u8::max);
    Max16: Value, |a, b, _| each16(a, b, u16::max);
    Max32: Value, |a, b, _| each32(a, b, u32::max);
    MinSigned8: Value, |a, b, _| each8(a, b, |a, b| (a as i8).min(b as i8) as u8);
    MinSigned16: Value, |a, b, _| each16(a, b, |a, b| (a as i16).min(b as i16) as u16);
    MinSigned32: Value, |a, b, _| each32(a, b, |a, b| (a as i32).min(b as i32) as u32);
    MaxSigned8: Value, |a, b, _| each8(a, b, |a, b| (a as i8).max(b as i8) as u8);
    MaxSigned16: Value, |a, b, _| each16(a, b, |a, b| (a as i16).max(b as i16) as u16);
    MaxSigned32: Value, |a, b, _| each32(a, b, |a, b| (a as i32).max(b as i32) as u32);

    /// Ones where equal.
    Equal8: Value, |a, b, _| each8(a, b, |a, b| ones!(u8, a == b));
    Equal16: Value, |a, b, _| each16(a, b, |a, b| ones!(u16, a == b));
    Equal32: Value, |a, b, _| each32(a, b, |a, b| ones!(u32, a == b));
    Equal64: Value, |a, b, _| each64(a, b, |a, b| ones!(u64, a == b));
    /// Ones where a > b, signed.
    Greater8: Value, |a, b, _| each8(a, b, |a, b| ones!(u8, a as i8 > b as i8));
    Greater16: Value, |a, b, _| each16(a, b, |a, b| ones!(u16, a as i16 > b as i16));
    Greater32: Value, |a, b, _| each32(a, b, |a, b| ones!(u32, a as i32 > b as i32));
    Greater64: Value, |a, b, _| each64(a, b, |a, b| ones!(u64, a as i64 > b as i64));

    /// The low halves of the products.
    Mul16: Value, |a, b, _| each16(a, b, u16::wrapping_mul);
    Mul32: Value, |a, b, _| each32(a, b, u32::wrapping_mul);
    /// The high halves.
    MulHigh16: Value, |a, b, _| each16(a, b, |a, b| ((u32::from(a) * u32::from(b)) >> 16) as u16);
    MulHighSigned16: Value, |a, b, _| each16(a, b, |a, b| ((i32::from(a as i16) * i32::from(b as i16)) >> 16) as u16);
    /// Products of the even 32-bit lanes, 64 bits wide.
    MulWide32: Value, |a, b, _| each64(a, b, |a, b| u64::from(a as u32) * u64::from(b as u32));
    MulWideSigned32: Value, |a, b, _| each64(a, b, |a, b| (i64::from(a as i32) * i64::from(b as i32)) as u64);
    /// Signed 16-bit products, added in pairs.
    MulAdd16: Value, |a, b, _| join32(|lane| {
        let product = |lane| i32::from(lane16(a, lane) as i16) * i32::from(lane16(b, lane) as i16);
        product(2 * lane).wrapping_add(product(2 * lane + 1)) as u32
    });
    /// Products of a's unsigned and b's signed bytes, added in pairs, saturating.
    MulAdd8: Value, |a, b, _| join16(|lane| {
        let product = |lane| i32::from(lane8(a, lane)) * i32::from(lane8(b, lane) as i8);
        clamp16(product(2 * lane) + product(2 * lane + 1))
    });
    /// In each half: the sum of the absolute differences of the bytes.
    SumOfDifferences8: Value, |a, b, _| join64(|half| {
        (0..8).map(|lane| u64::from(lane8(a, half * 8 + lane).abs_diff(lane8(b, half * 8 + lane)))).sum()
    });
    /// |b|.
    Absolute8: Value, |_, b, _| each8(b, 0, |b, _| (b as i8).unsigned_abs());
    Absolute16: Value, |_, b, _| each16(b, 0, |b, _| (b as i16).unsigned_abs());
    Absolute32: Value, |_, b, _| each32(b, 0, |b, _| (b as i32).unsigned_abs());

    /// Counts as large as a lane leave zeros (or signs).
    Shl16: Count, |a, b, _| each16(a, 0, |a, _| a.checked_shl(count(b, 16)).unwrap_or(0));
    Shl32: Count, |a, b, _| each32(a, 0, |a, _| a.checked_shl(count(b, 32)).unwrap_or(0));
    Shl64: Count, |a, b, _| each64(a, 0, |a, _| a.checked_shl(count(b, 64)).unwrap_or(0));
    Shr16: Count, |a, b, _| each16(a, 0, |a, _| a.checked_shr(count(b, 16)).unwrap_or(0));
    Shr32: Count, |a, b, _| each32(a, 0, |a, _| a.checked_shr(count(b, 32)).unwrap_or(0));
    Shr64: Count, |a, b, _| each64(a, 0, |a, _| a.checked_shr(count(b, 64)).unwrap_or(0));
    Sar16: Count, |a, b, _| each16(a, 0, |a, _| (a as i16 >> count(b, 15)) as u16);
    Sar32: Count, |a, b, _| each32(a, 0, |a, _| (a as i32 >> count(b, 31)) as u32);
    /// By bytes.
    ShlBytes: Immediate, |a, _, i| a.checked_shl(u32::from(i) * 8).unwrap_or(0);
    ShrBytes: Immediate, |a, _, i| a.checked_shr(u32::from(i) * 8).unwrap_or(0);

    /// The low halves of a and b, interleaved.
    UnpackLow8: Value, |a, b, _| join8(|lane| lane8(if lane % 2 == 0 { a } else { b }, lane / 2));
    UnpackLow16: Value, |a, b, _| join16(|lane| lane16(if lane % 2 == 0 { a } else { b }, lane / 2));
    UnpackLow32: Value, |a, b, _| join32(|lane| lane32(if lane % 2 == 0 { a } else { b }, lane / 2));
    UnpackLow64: Value, |a, b, _| join64(|lane| lane64(if lane == 0 { a } else { b }, 0));
    /// The high halves.
    UnpackHigh8: Value, |a, b, _| join8(|lane| lane8(if lane % 2 == 0 { a } else { b }, 8 + lane / 2));
    UnpackHigh16: Value, |a, b, _| join16(|lane| lane16(if lane % 2 == 0 { a } else { b }, 4 + lane / 2));
    UnpackHigh32: Value, |a, b, _| join32(|lane| lane32(if lane % 2 == 0 { a } else { b }, 2 + lane / 2));
    UnpackHigh64: Value, |a, b, _| join64(|lane| lane64(if lane == 0 { a } else { b }, 1));
    /// a's lanes, then b's, signed, cut to half their width: saturating as signed …
    PackSigned16: Value, |a, b, _| join8(|lane| clamp8(lane16(if lane < 8 { a } else { b }, lane % 8) as i16));
    PackSigned32: Value, |a, b, _| join16(|lane| clamp16(lane32(if lane < 4 { a } else { b }, lane % 4) as i32));
    /// … and as unsigned.
    Pack16: Value, |a, b, _| join8(|lane| (lane16(if lane < 8 { a } else { b }, lane % 8) as i16).clamp(0, 0xff) as u8);
    Pack32: Value, |a, b, _| join16(|lane| (lane32(if lane < 4 { a } else { b }, lane % 4) as i32).clamp(0, 0xffff) as u16);

    /// Byte i of the result: byte b\[i\] mod 16 of a, or 0 if b\[i\] is negative.
    Shuffle8: Value, |a, b, _| join8(|lane| {
        let chosen = lane8(b, lane);
        if chosen & 0x80 != 0 { 0 } else { lane8(a, usize::from(chosen & 15)) }
    });
    /// Lanes of b, chosen by two bits each.
    Shuffle32: ValueAndImmediate, |_, b, i| join32(|lane| lane32(b, usize::from(i >> (2 * lane) & 3)));
    /// b with the lanes of its low half chosen by two bits each.
    ShuffleLow16: ValueAndImmediate, |_, b, i| join16(|lane| {
        lane16(b, if lane < 4 { usize::from(i >> (2 * lane) & 3) } else { lane })
    });
    /// b with the lanes of its high half chosen.
    ShuffleHigh16: ValueAndImmediate, |_, b, i| join16(|lane| {
        lane16(b, if lane < 4 { lane } else { 4 + usize::from(i >> (2 * (lane - 4)) & 3) })
    });
    /// Two lanes of a, then two of b, chosen by two bits each.
    ShufflePair32: ValueAndImmediate, |a, b, i| join32(|lane| {
        lane32(if lane < 2 { a } else { b }, usize::from(i >> (2 * lane) & 3))
    });
    /// A lane of a, then one of b, chosen by a bit each.
    ShufflePair64: ValueAndImmediate, |a, b, i| join64(|lane| lane64(if lane == 0 { a } else { b }, usize::from(i >> lane & 1)));
    /// Bytes from number `immediate` on of b with a behind it.
    Align8: ValueAndImmediate, |a, b, i| join8(|lane| match lane + usize::from(i) {
        at @ 0..16 => lane8(b, at),
        at @ 16..32 => lane8(a, at - 16),
        _ => 0,
    });

    /// b's low 32 bits in a.
    Insert32: Value, |a, b, _| a & !0xffff_ffff | b & 0xffff_ffff;
    /// b's low 64 bits in a.
    Insert64: Value, |a, b, _| a & !u128::from(u64::MAX) | b & u128::from(u64::MAX);
    /// b's low 64 bits as the high half of a.
    InsertHigh64: Value, |a, b, _| a & u128::from(u64::MAX) | b << 64;
    /// b's high 64 bits as the low half of a.
    HighToLow64: Value, |a, b, _| a & !u128::from(u64::MAX) | b >> 64;
    /// b's low 64 bits, zero above.
    Low64: Value, |_, b, _| b & u128::from(u64::MAX);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_come_back_from_their_numbers() {
        for (number, op) in ALL.iter().enumerate() {
            assert_eq!(VectorOp::from_number(number as u8), Some(*op));
            assert_eq!(op.info().name, format!("{op:?}"));
        }
        assert_eq!(VectorOp::from_number(ALL.len() as u8), None);
    }
}
