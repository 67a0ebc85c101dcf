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

/// Raises what an instruction raises that combines `elements` of its operands; `masked` are the flags that the host gave
/// with everything masked.
pub(super) fn check(cpu: &mut Cpu, elements: Elements, destination: u128, source: u128, immediate: u8, masked: u32) -> Exec {
    // For the x87 of the host.
    cpu.x87_from_host();
    let mxcsr = cpu.fpu.mxcsr;
    let raised = match elements {
        Elements::Simple => masked & FLAGS,
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
        Elements::DotProduct(width) => return dot_product(cpu, width, destination, source, immediate),
    };
    raise(cpu, raised)
}

fn dot_product(cpu: &mut Cpu, width: Width, destination: u128, source: u128, immediate: u8) -> Exec {
    let mxcsr = cpu.fpu.mxcsr;
    let mut values = [0; 4];
    let mut raised = 0;
    for lane in (0..width.lanes()).filter(|lane| immediate >> (4 + lane) & 1 != 0) {
        let (value, flags) = element(mxcsr, Basic::Multiply, width, width.get(destination, lane), width.get(source, lane));
        values[lane as usize] = value;
        raised |= flags;
    }
    raise(cpu, raised)?;
    let (low, mut raised) = element(mxcsr, Basic::Add, width, values[0], values[1]);
    if width == Width::Double {
        return raise(cpu, raised);
    }
    let (high, flags) = element(mxcsr, Basic::Add, width, values[2], values[3]);
    raised |= flags;
    raise(cpu, raised)?;
    raise(cpu, element(mxcsr, Basic::Add, width, low, high).1)
}
