//! Floating-point operations of evaluated code: those of the interpreter, under the guest's MXCSR, all exceptions masked.

use super::cpu::Cpu;
use super::host_fp::*;
use crate::ir::FlagSet;
use crate::ir::float::FloatOp;

/// `VectorFloat`.
pub(super) fn float(cpu: &mut Cpu, op: FloatOp, a: u128, b: u128, immediate: u8) -> u128 {
    use FloatOp as F;
    let mxcsr = cpu.fpu.mxcsr;
    macro_rules! table {
        ($($name:ident = $operation:ty,)* ; $($compare:ident = $predicate:ty,)*) => {
            match op {
                $(F::$name => <$operation as Float>::run(a, b, mxcsr),)*
                $(F::$compare => <$predicate as FloatImmediate>::run(a, b, mxcsr, immediate),)*
            }
        };
    }
    #[rustfmt::skip]
    let (result, mxcsr) = table! {
        AddF32x4 = Addps, AddF64x2 = Addpd, AddF32 = Addss, AddF64 = Addsd,
        SubF32x4 = Subps, SubF64x2 = Subpd, SubF32 = Subss, SubF64 = Subsd,
        MulF32x4 = Mulps, MulF64x2 = Mulpd, MulF32 = Mulss, MulF64 = Mulsd,
        DivF32x4 = Divps, DivF64x2 = Divpd, DivF32 = Divss, DivF64 = Divsd,
        MinF32x4 = Minps, MinF64x2 = Minpd, MinF32 = Minss, MinF64 = Minsd,
        MaxF32x4 = Maxps, MaxF64x2 = Maxpd, MaxF32 = Maxss, MaxF64 = Maxsd,
        SqrtF32x4 = Sqrtps, SqrtF64x2 = Sqrtpd, SqrtF32 = Sqrtss, SqrtF64 = Sqrtsd,
        WidenF32x2 = Cvtps2pd, NarrowF64x2 = Cvtpd2ps, WidenF32 = Cvtss2sd, NarrowF64 = Cvtsd2ss,
        FromI32x4 = Cvtdq2ps, FromI32x2 = Cvtdq2pd, ToI32x4 = Cvtps2dq, TruncateToI32x4 = Cvttps2dq,
        ToI32x2 = Cvtpd2dq, TruncateToI32x2 = Cvttpd2dq,
        ;
        CompareF32x4 = Cmpps, CompareF64x2 = Cmppd, CompareF32 = Cmpss, CompareF64 = Cmpsd,
    };
    cpu.fpu.mxcsr = mxcsr;
    result
}

/// `FloatCompare`.
pub(super) fn compare(cpu: &mut Cpu, a: u128, b: u128, bytes: u8, signals: bool) -> FlagSet {
    let mxcsr = cpu.fpu.mxcsr;
    let (flags, mxcsr) = match (bytes, signals) {
        (4, false) => Ucomiss::run(a, b, mxcsr),
        (4, true) => Comiss::run(a, b, mxcsr),
        (_, false) => Ucomisd::run(a, b, mxcsr),
        (_, true) => Comisd::run(a, b, mxcsr),
    };
    cpu.fpu.mxcsr = mxcsr;
    FlagSet::from_packed(flags.into()) & (FlagSet::Z | FlagSet::P | FlagSet::C)
}

/// `IntToFloat`, of 4 or 8 bytes to 4 or 8.
pub(super) fn from_integer(cpu: &mut Cpu, a: u128, value: u64, from: u8, to: u8) -> u128 {
    let mxcsr = cpu.fpu.mxcsr;
    let (result, mxcsr) = match (from, to) {
        (4, 4) => Cvtsi2ss32::run(a, value, mxcsr),
        (_, 4) => Cvtsi2ss64::run(a, value, mxcsr),
        (4, _) => Cvtsi2sd32::run(a, value, mxcsr),
        (_, _) => Cvtsi2sd64::run(a, value, mxcsr),
    };
    cpu.fpu.mxcsr = mxcsr;
    result
}

/// `FloatToInt`, of 4 or 8 bytes to 4 or 8.
pub(super) fn to_integer(cpu: &mut Cpu, value: u128, from: u8, to: u8, truncates: bool) -> u64 {
    let mxcsr = cpu.fpu.mxcsr;
    let (result, mxcsr) = match (from, to, truncates) {
        (4, 4, false) => Cvtss2si32::run(value, mxcsr),
        (4, _, false) => Cvtss2si64::run(value, mxcsr),
        (_, 4, false) => Cvtsd2si32::run(value, mxcsr),
        (_, _, false) => Cvtsd2si64::run(value, mxcsr),
        (4, 4, true) => Cvttss2si32::run(value, mxcsr),
        (4, _, true) => Cvttss2si64::run(value, mxcsr),
        (_, 4, true) => Cvttsd2si32::run(value, mxcsr),
        (_, _, true) => Cvttsd2si64::run(value, mxcsr),
    };
    cpu.fpu.mxcsr = mxcsr;
    result
}
