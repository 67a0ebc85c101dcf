//! SSE arithmetic while some exceptions are unmasked: which flags are raised, and whether #XM follows.
//!
//! The host runs with everything masked, and its flags say almost all. Two things they do not say: with underflow unmasked, a
//! tiny result raises it even if exact; and an unmasked overflow or underflow raises "inexact" only if the result would not
//! fit with an unbounded exponent either. So in this (rare) state each element is computed for itself, and where these two
//! matter once more on the x87 with the element's precision, whose exponent is wide enough. DPPS and DPPD stop at the stage
//! that raises an exception.
//! See: Intel SDM volume 1, 4.9 and 11.5.

use super::cpu::{Cpu, cr4};
use super::fault::{Exec, Stop, vector};
use super::host_fp::{
    Addsd, Addss, Cvtsd2ss, Divsd, Divss, FaddM32, FaddM64, FdivM32, FdivM64, FldM32, FldM64, Float, FmulM32, FmulM64, Frame,
    FsubM32, FsubM64, Mulsd, Mulss, Operation, Subsd, Subss,
};

/// The six exception flags of MXCSR; its masks are [`MASK_SHIFT`] higher.
const FLAGS: u32 = 0x3f;
const MASK_SHIFT: u32 = 7;
pub(super) const MASKS: u32 = FLAGS << MASK_SHIFT;
/// Invalid operation, denormal operand, division by zero: found before anything is computed.
const BEFORE: u32 = 0x07;
const OVERFLOW: u32 = 0x08;
const UNDERFLOW: u32 = 0x10;
const INEXACT: u32 = 0x20;
const UNDERFLOW_MASK: u32 = UNDERFLOW << MASK_SHIFT;
const FLUSH_TO_ZERO: u32 = 1 << 15;
const DENORMALS_ARE_ZERO: u32 = 1 << 6;

/// A basic operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Basic {
    Add,
    Subtract,
    Multiply,
    Divide,
}

/// Which elements an instruction combines: what its exceptions are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Elements {
    /// Neither overflows nor underflows: the host's flags are right.
    Simple,
    /// The lowest `lanes`, each with its counterpart.
    Vertical(Basic, Width, u32),
    /// Differences in even lanes, sums in odd ones.
    Alternating(Width),
    /// Neighbours of the destination, then of the source.
    Horizontal(Basic, Width),
    /// The lowest `n` doubles of the source become singles.
    Narrowing(u32),
    /// Products chosen by the immediate's upper half, then their sum.
    DotProduct(Width),
}

/// Single or double.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Single,
    Double,
}

impl Width {
    fn bits(self) -> u32 {
        match self {
            Self::Single => 32,
            Self::Double => 64,
        }
    }

    fn lanes(self) -> u32 {
        128 / self.bits()
    }

    fn get(self, vector: u128, lane: u32) -> u64 {
        let value = (vector >> (lane * self.bits())) as u64;
        value & (u64::MAX >> (64 - self.bits()))
    }

    fn is_denormal(self, value: u64) -> bool {
        match self {
            Self::Single => value & 0x7fff_ffff != 0 && value & 0x7f80_0000 == 0,
            Self::Double => value << 1 != 0 && value >> 52 & 0x7ff == 0,
        }
    }

    /// A finite number taken apart.
    fn parts(self, value: u64) -> Parts {
        let (fraction_bits, bias) = match self {
            Self::Single => (23, 127),
            Self::Double => (52, 1023),
        };
        let negative = value >> (self.bits() - 1) != 0;
        let exponent = (value >> fraction_bits) as i32 & (2 * bias + 1);
        let fraction = u128::from(value & ((1 << fraction_bits) - 1));
        let hidden = if exponent == 0 { 0 } else { 1 << fraction_bits };
        Parts::new(negative, hidden | fraction, exponent.max(1) - bias - fraction_bits)
    }

    /// As the operation sees it.
    fn operand(self, value: u64, mxcsr: u32) -> u64 {
        if mxcsr & DENORMALS_ARE_ZERO != 0 && self.is_denormal(value) { value & 1 << (self.bits() - 1) } else { value }
    }
}

/// Where operations run: the guest's rounding, everything masked.
pub(super) fn environment(mxcsr: u32) -> u32 {
    // Results are flushed to zero only where underflow is masked.
    let flush = if mxcsr & UNDERFLOW_MASK == 0 { FLUSH_TO_ZERO } else { 0 };
    mxcsr & !(FLAGS | flush) | MASKS
}

/// Result and flags of one element.
fn element(mxcsr: u32, basic: Basic, width: Width, a: u64, b: u64) -> (u64, u32) {
    let run = match (basic, width) {
        (Basic::Add, Width::Single) => Addss::run,
        (Basic::Subtract, Width::Single) => Subss::run,
        (Basic::Multiply, Width::Single) => Mulss::run,
        (Basic::Divide, Width::Single) => Divss::run,
        (Basic::Add, Width::Double) => Addsd::run,
        (Basic::Subtract, Width::Double) => Subsd::run,
        (Basic::Multiply, Width::Double) => Mulsd::run,
        (Basic::Divide, Width::Double) => Divsd::run,
    };
    let (result, after) = run(u128::from(a), u128::from(b), environment(mxcsr));
    let result = width.get(result, 0);
    let inexact = || {
        let run = match (basic, width) {
            (Basic::Add, Width::Single) => FaddM32::run,
            (Basic::Subtract, Width::Single) => FsubM32::run,
            (Basic::Multiply, Width::Single) => FmulM32::run,
            (Basic::Divide, Width::Single) => FdivM32::run,
            (Basic::Add, Width::Double) => FaddM64::run,
            (Basic::Subtract, Width::Double) => FsubM64::run,
            (Basic::Multiply, Width::Double) => FmulM64::run,
            (Basic::Divide, Width::Double) => FdivM64::run,
        };
        is_inexact(run, mxcsr, width, width.operand(a, mxcsr), width, width.operand(b, mxcsr))
    };
    (result, complete(mxcsr, after & FLAGS, width, result, inexact))
}

/// The flags of an element, given those with everything masked.
fn complete(mxcsr: u32, mut flags: u32, width: Width, result: u64, inexact: impl Fn() -> bool) -> u32 {
    let allowed = !(mxcsr >> MASK_SHIFT) & FLAGS;
    if allowed & UNDERFLOW != 0 && width.is_denormal(result) {
        flags |= UNDERFLOW;
    }
    if flags & allowed & (OVERFLOW | UNDERFLOW) != 0 {
        flags = flags & !INEXACT | if inexact() { INEXACT } else { 0 };
    }
    flags
}

/// Whether `a op b`, rounded to the precision of `to`, is inexact when the exponent has room.
fn is_inexact(run: fn(u16, &mut Frame) -> super::host_fp::Report, mxcsr: u32, from: Width, a: u64, to: Width, b: u64) -> bool {
    const PRECISION: u16 = INEXACT as u16;
    let load = match from {
        Width::Single => FldM32::run,
        Width::Double => FldM64::run,
    };
    let mut frame: Frame = [0, u128::from(a)];
    load(0x37f, &mut frame);
    let precision = match to {
        Width::Single => 0,
        Width::Double => 0x200,
    };
    frame[1] = u128::from(b);
    let rounding = (mxcsr >> 13 & 3) as u16;
    run(0x7f | precision | rounding << 10, &mut frame).exceptions() & PRECISION != 0
}

/// One double to single.
fn narrow(mxcsr: u32, value: u64) -> (u64, u32) {
    let (result, after) = Cvtsd2ss::run(0, u128::from(value), environment(mxcsr));
    let result = Width::Single.get(result, 0);
    const ONE: u64 = 0x3f80_0000;
    let operand = Width::Double.operand(value, mxcsr);
    let inexact = || is_inexact(FmulM32::run, mxcsr, Width::Double, operand, Width::Single, ONE);
    (result, complete(mxcsr, after & FLAGS, Width::Single, result, inexact))
}

/// Adds `raised` to MXCSR; if one of them is unmasked, that is #XM.
pub(super) fn raise(cpu: &mut Cpu, mut raised: u32) -> Exec {
    let allowed = !(cpu.fpu.mxcsr >> MASK_SHIFT) & FLAGS;
    if raised & BEFORE & allowed != 0 {
        raised &= BEFORE;
    }
    cpu.fpu.mxcsr |= raised;
    if raised & allowed == 0 {
        return Ok(());
    }
    Err(if cpu.cr4 & cr4::OSXMMEXCPT != 0 { Stop::plain(vector::XM) } else { Stop::ud() })
}

/// Raises what an instruction raises that combines `elements` of its operands, destination and source in pairs of 128 bits;
/// `masked` are the flags that the host gave with everything masked.
pub(super) fn check(cpu: &mut Cpu, elements: Elements, operands: &[[u128; 2]], immediate: u8, masked: u32) -> Exec {
    // For the x87 of the host.
    cpu.x87_from_host();
    if let Elements::DotProduct(width) = elements {
        return dot_product(cpu, width, operands, immediate);
    }
    let mxcsr = cpu.fpu.mxcsr;
    let raised = operands.iter().fold(0, |all, pair| all | raised(mxcsr, elements, *pair, masked));
    raise(cpu, raised)
}

/// What the elements of one pair raise; a dot product is not asked for here.
fn raised(mxcsr: u32, elements: Elements, [destination, source]: [u128; 2], masked: u32) -> u32 {
    match elements {
        Elements::Simple | Elements::DotProduct(_) => masked & FLAGS,
        Elements::Vertical(basic, width, lanes) => (0..lanes)
            .map(|lane| element(mxcsr, basic, width, width.get(destination, lane), width.get(source, lane)).1)
            .fold(0, |all, flags| all | flags),
        Elements::Alternating(width) => (0..width.lanes())
            .map(|lane| {
                let basic = if lane & 1 == 0 { Basic::Subtract } else { Basic::Add };
                element(mxcsr, basic, width, width.get(destination, lane), width.get(source, lane)).1
            })
            .fold(0, |all, flags| all | flags),
        Elements::Horizontal(basic, width) => [destination, source]
            .into_iter()
            .flat_map(|vector| {
                (0..width.lanes()).step_by(2).map(move |lane| (width.get(vector, lane), width.get(vector, lane + 1)))
            })
            .map(|(a, b)| element(mxcsr, basic, width, a, b).1)
            .fold(0, |all, flags| all | flags),
        Elements::Narrowing(count) => {
            (0..count).map(|lane| narrow(mxcsr, Width::Double.get(source, lane)).1).fold(0, |all, flags| all | flags)
        }
    }
}

fn dot_product(cpu: &mut Cpu, width: Width, operands: &[[u128; 2]], immediate: u8) -> Exec {
    let mxcsr = cpu.fpu.mxcsr;
    let add = |a, b| element(mxcsr, Basic::Add, width, a, b);
    // Each stage is done for all pairs before the next.
    let mut values = [[0; 4]; 2];
    let mut raised = 0;
    for (values, [destination, source]) in values.iter_mut().zip(operands) {
        for lane in (0..width.lanes()).filter(|lane| immediate >> (4 + lane) & 1 != 0) {
            let (a, b) = (width.get(*destination, lane), width.get(*source, lane));
            let (value, flags) = element(mxcsr, Basic::Multiply, width, a, b);
            values[lane as usize] = value;
            raised |= flags;
        }
    }
    raise(cpu, raised)?;
    raised = 0;
    let mut sums = [[0; 2]; 2];
    for (sums, values) in sums.iter_mut().zip(values) {
        for (sum, pair) in sums.iter_mut().zip(values.chunks_exact(2)) {
            let (value, flags) = add(pair[0], pair[1]);
            *sum = value;
            raised |= flags;
        }
    }
    raise(cpu, raised)?;
    if width == Width::Double {
        return Ok(());
    }
    let raised = sums.into_iter().fold(0, |all, [low, high]| all | add(low, high).1);
    raise(cpu, raised)
}

/// Which of the operands of a fused multiplication and addition (destination, second, third) are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Destination and third.
    O132,
    /// Second and destination.
    O213,
    /// Second and third.
    O231,
}

/// Whether the addend has the product's sign turned around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signs {
    /// VFMADD and VFNMSUB: both keep their signs, or both lose them.
    Same,
    /// VFMSUB and VFNMADD.
    Opposite,
    /// VFMADDSUB: opposite in even lanes.
    EvenOpposite,
    /// VFMSUBADD: opposite in odd lanes.
    OddOpposite,
}

/// Raises what a fused operation raises. `run` gives result and flags of one element in its place, all others being zero.
pub(super) fn check_fused(
    cpu: &mut Cpu,
    (order, signs, width, lanes): (Order, Signs, Width, u32),
    operands: &[[u128; 3]],
    run: fn(u128, u128, u128, u32) -> (u128, u32),
) -> Exec {
    let mxcsr = cpu.fpu.mxcsr;
    let mut raised = 0;
    for [a, b, c] in operands {
        for lane in 0..lanes {
            let [a, b, c] = [a, b, c].map(|vector| width.get(*vector, lane));
            let place = |value: u64| u128::from(value) << (lane * width.bits());
            let (result, after) = run(place(a), place(b), place(c), environment(mxcsr));
            let opposite = match signs {
                Signs::Same => false,
                Signs::Opposite => true,
                Signs::EvenOpposite => lane & 1 == 0,
                Signs::OddOpposite => lane & 1 != 0,
            };
            let inexact = || {
                let [a, b, c] = [a, b, c].map(|value| width.operand(value, mxcsr));
                let (x, y, addend) = match order {
                    Order::O132 => (a, c, b),
                    Order::O213 => (b, a, c),
                    Order::O231 => (b, c, a),
                };
                is_fused_inexact(width, x, y, addend, opposite)
            };
            raised |= complete(mxcsr, after & FLAGS, width, width.get(result, lane), inexact);
        }
    }
    raise(cpu, raised)
}

/// Whether the finite `x * y + addend` (or minus) has more significant bits than a number of `width` can hold.
fn is_fused_inexact(width: Width, x: u64, y: u64, addend: u64, opposite: bool) -> bool {
    let [x, y, addend] = [x, y, addend].map(|value| width.parts(value));
    let product = Parts::new(
        x.negative != y.negative,
        u128::from(x.significand as u64) * u128::from(y.significand as u64),
        x.exponent + y.exponent,
    );
    let addend = Parts { negative: addend.negative != opposite, ..addend };
    let precision = match width {
        Width::Single => 24,
        Width::Double => 53,
    };
    product.sum_bits(addend).is_none_or(|bits| bits > precision)
}

/// A finite number: an odd significand (or zero) times a power of two.
#[derive(Debug, Clone, Copy)]
struct Parts {
    negative: bool,
    significand: u128,
    exponent: i32,
}

impl Parts {
    fn new(negative: bool, significand: u128, exponent: i32) -> Self {
        let zeros = if significand == 0 { 0 } else { significand.trailing_zeros() };
        Self { negative, significand: significand >> zeros, exponent: exponent + zeros as i32 }
    }

    /// How many significant bits the sum of two has. `None`: more than 120, for they lie so far apart.
    fn sum_bits(self, other: Self) -> Option<u32> {
        let bits = |value: u128| if value == 0 { 0 } else { 128 - value.leading_zeros() - value.trailing_zeros() };
        if self.significand == 0 || other.significand == 0 {
            return Some(bits(self.significand | other.significand));
        }
        let (low, high) = if self.exponent <= other.exponent { (self, other) } else { (other, self) };
        let shift = (high.exponent - low.exponent) as u32;
        if shift + (128 - high.significand.leading_zeros()) > 120 {
            return None;
        }
        let (low_value, high_value) = (low.significand, high.significand << shift);
        Some(bits(if low.negative == high.negative { low_value + high_value } else { low_value.abs_diff(high_value) }))
    }
}

/// Raises what VCVTPS2PH raises for these singles. `run` gives the flags of one.
pub(super) fn check_to_half(cpu: &mut Cpu, singles: &[u32], run: impl Fn(u32, u32) -> (u16, u32)) -> Exec {
    let mxcsr = cpu.fpu.mxcsr;
    let allowed = !(mxcsr >> MASK_SHIFT) & FLAGS;
    let mut raised = 0;
    for single in singles {
        let (half, after) = run(*single, environment(mxcsr));
        let mut flags = after & FLAGS;
        if allowed & UNDERFLOW != 0 && half & 0x7fff != 0 && half & 0x7c00 == 0 {
            flags |= UNDERFLOW;
        }
        if flags & allowed & (OVERFLOW | UNDERFLOW) != 0 {
            let operand = Width::Single.operand(u64::from(*single), mxcsr);
            let bits = Width::Single.parts(operand).significand;
            flags = flags & !INEXACT | if bits >> 11 != 0 { INEXACT } else { 0 };
        }
        raised |= flags;
    }
    raise(cpu, raised)
}
