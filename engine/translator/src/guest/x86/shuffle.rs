//! SSE and MMX instructions that only move bytes, or compute so little that the immediate would be more work to give to the
//! host than the operation itself.
//! See: Intel SDM volume 2, each instruction's "Operation".

/// A function of destination, source and immediate.
pub(super) trait Shuffle {
    /// The new destination.
    fn run(destination: u128, source: u128, immediate: u8) -> u128;
}

/// Element `index` of `BITS` bits.
#[inline(always)]
fn element<const BITS: u32>(value: u128, index: u32) -> u128 {
    value >> (index * BITS) & ((1 << BITS) - 1)
}

/// `count` lanes of `size` bytes from `source` where `selector` has a bit, from `destination` elsewhere.
#[inline(always)]
pub(super) fn blend_bytes(destination: u128, source: u128, selector: u64, size: u32) -> u128 {
    let lane = u128::MAX >> (128 - 8 * size);
    let mask = (0..16 / size).filter(|i| selector >> i & 1 != 0).fold(0, |mask, i| mask | lane << (8 * size * i));
    destination & !mask | source & mask
}

/// Four elements chosen by two bits each of `control`.
#[inline(always)]
fn choose_four<const BITS: u32>(value: u128, control: u8) -> u128 {
    (0..4).fold(0, |result, i| result | element::<BITS>(value, u32::from(control >> (2 * i) & 3)) << (BITS * i))
}

macro_rules! shuffles {
    ($($Name:ident |$d:pat_param, $s:pat_param, $i:ident| $result:expr;)*) => {$(
        #[doc = stringify!($Name)]
        pub(super) struct $Name;
        impl Shuffle for $Name {
            #[inline(always)]
            fn run($d: u128, $s: u128, $i: u8) -> u128 {
                $result
            }
        }
    )*};
}

const LOW: u128 = u64::MAX as u128;

shuffles! {
    Pshufd |_, s, i| choose_four::<32>(s, i);
    Pshuflw |_, s, i| s & !LOW | choose_four::<16>(s, i);
    Pshufhw |_, s, i| s & LOW | choose_four::<16>(s >> 64, i) << 64;
    Pshufw |_, s, i| choose_four::<16>(s, i);
    Shufps |d, s, i| choose_four::<32>(d, i) & LOW | choose_four::<32>(s, i) & !LOW;
    Shufpd |d, s, i| element::<64>(d, u32::from(i & 1)) | element::<64>(s, u32::from(i >> 1 & 1)) << 64;
    Blendps |d, s, i| blend_bytes(d, s, u64::from(i), 4);
    Blendpd |d, s, i| blend_bytes(d, s, u64::from(i), 8);
    Pblendw |d, s, i| blend_bytes(d, s, u64::from(i), 2);
    Palignr |d, s, i| match u32::from(i) {
        0 => s,
        n @ 1..16 => s >> (8 * n) | d << (128 - 8 * n),
        n @ 16..32 => d >> (8 * (n - 16)),
        _ => 0,
    };
    PalignrMmx |d, s, i| if i < 16 { (d << 64 | s) >> (8 * u32::from(i)) } else { 0 };
    Mpsadbw |d, s, i| {
        let (d, s) = (d >> (32 * u32::from(i >> 2 & 1)), s >> (32 * u32::from(i & 3)));
        (0..8).fold(0, |result, lane| {
            let sum: u128 = (0..4).map(|j| element::<8>(d, lane + j).abs_diff(element::<8>(s, j))).sum();
            result | sum << (16 * lane)
        })
    };
    InsertpsRegister |d, s, i| insert_single(d, element::<32>(s, u32::from(i >> 6)), i);
    InsertpsMemory |d, s, i| insert_single(d, s, i);
}

/// INSERTPS once the source element is known.
#[inline(always)]
fn insert_single(destination: u128, single: u128, immediate: u8) -> u128 {
    let place = 1u64 << (immediate >> 4 & 3);
    let inserted = blend_bytes(destination, single << (32 * u32::from(immediate >> 4 & 3)), place, 4);
    blend_bytes(inserted, 0, u64::from(immediate & 15), 4)
}

/// PSLLDQ, as an operation whose source is the count.
pub(super) struct Pslldq;
impl super::host_fp::Lanes for Pslldq {
    #[inline(always)]
    fn run(destination: u128, count: u128) -> u128 {
        if count < 16 { destination << (8 * count as u32) } else { 0 }
    }
}

/// PSRLDQ
pub(super) struct Psrldq;
impl super::host_fp::Lanes for Psrldq {
    #[inline(always)]
    fn run(destination: u128, count: u128) -> u128 {
        if count < 16 { destination >> (8 * count as u32) } else { 0 }
    }
}

/// An MMX operation that narrows or works on neighbours: both operands in one vector, the low half of the result.
pub(super) struct Joined<O>(std::marker::PhantomData<O>);
impl<O: super::host_fp::Lanes> super::host_fp::Lanes for Joined<O> {
    #[inline(always)]
    fn run(destination: u128, source: u128) -> u128 {
        let both = destination & LOW | source << 64;
        O::run(both, both)
    }
}

/// An MMX PUNPCKH…: the upper half of what the PUNPCKL… of the low halves gives.
pub(super) struct UpperOf<O>(std::marker::PhantomData<O>);
impl<O: super::host_fp::Lanes> super::host_fp::Lanes for UpperOf<O> {
    #[inline(always)]
    fn run(destination: u128, source: u128) -> u128 {
        O::run(destination, source) >> 64
    }
}

/// The MMX PSHUFB: indices have three bits.
pub(super) struct PshufbMmx;
impl super::host_fp::Lanes for PshufbMmx {
    #[inline(always)]
    fn run(destination: u128, source: u128) -> u128 {
        super::host_fp::Pshufb::run(destination, source & 0x8787_8787_8787_8787)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insertps_takes_places_and_zeroes() {
        let destination = 0x4444_4444_3333_3333_2222_2222_1111_1111;
        let source = 0xdddd_dddd_cccc_cccc_bbbb_bbbb_aaaa_aaaa;
        // Source element 2 to place 1, element 3 zeroed.
        let result = InsertpsRegister::run(destination, source, 0b1001_1000);
        assert_eq!(result, 0x0000_0000_3333_3333_cccc_cccc_1111_1111);
    }

    #[test]
    fn palignr_shifts_through_both_operands_and_out() {
        assert_eq!(Palignr::run(2, 1, 16), 2);
        assert_eq!(Palignr::run(0xff, 1 << 120, 15), 0xff01);
        assert_eq!(Palignr::run(2, 1, 32), 0);
    }
}
