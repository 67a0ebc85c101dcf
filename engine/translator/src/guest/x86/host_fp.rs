//! The host's own SSE and x87 units, as functions: the guest's arithmetic is carried out by the same instruction on the
//! host, under the guest's MXCSR or control word, so that NaNs, rounding, denormals and status flags are exact by
//! construction.
//!
//! Every operation is one `asm!` block that loads the guest's environment, computes, takes the status and puts the host's
//! environment back: nothing of the guest's leaks into Rust. SSE operations run with all exceptions masked (the caller
//! decides from the flags, [`super::sse`]); x87 ones run unmasked, because the x87 defers its exceptions to the next
//! waiting instruction, and there is none before `fnclex`.
//!
//! Only x86-64 hosts with SSE4.2 are served: [`available`] says so, and without it the guest gets #UD for everything here. What needs
//! more of the host (FMA, F16C, AES …) is in `extensions.rs`; CPUID offers it only where it is there.
//! Other host architectures want a softfloat behind the same traits; that is to come.
//! See: Intel SDM volume 1, chapters 8, 10 and 11.

use super::sse_unmasked::{Basic, Elements, Width};
#[cfg(target_arch = "x86_64")]
use core::arch::{asm, x86_64::__m128i};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod whole_x87;
mod x87;
pub use x87::*;

/// Whether this host can carry out everything in this module.
pub fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("sse4.2") && std::arch::is_x86_feature_detected!("ssse3")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// What MXCSR must be while Rust code runs, but for the flags in its low six bits.
#[cfg(target_arch = "x86_64")]
pub static HOST_MXCSR: u32 = 0x1f80;

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn lanes(value: u128) -> __m128i {
    // SAFETY: both are sixteen bytes without padding or invalid values.
    unsafe { core::mem::transmute(value) }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn number(value: __m128i) -> u128 {
    // SAFETY: both are sixteen bytes without padding or invalid values.
    unsafe { core::mem::transmute(value) }
}

/// An operation on integer lanes: no environment, no flags.
pub trait Lanes {
    /// `destination op source`, or a function of the source alone.
    fn run(destination: u128, source: u128) -> u128;
}

/// An operation under MXCSR.
pub trait Float {
    /// Which elements it combines.
    const ELEMENTS: Elements;
    /// The result, and MXCSR with the flags that were raised added. `mxcsr` must have all exceptions masked.
    fn run(destination: u128, source: u128, mxcsr: u32) -> (u128, u32);
}

/// An operation under MXCSR with an immediate.
pub trait FloatImmediate {
    /// Which elements it combines.
    const ELEMENTS: Elements;
    /// As [`Float::run`].
    fn run(destination: u128, source: u128, mxcsr: u32, immediate: u8) -> (u128, u32);
}

/// A comparison that sets RFLAGS under MXCSR.
pub trait FloatFlags {
    /// RFLAGS bits 0–7 and MXCSR.
    fn run(destination: u128, source: u128, mxcsr: u32) -> (u8, u32);
}

/// A conversion from a general register.
pub trait FromInteger {
    /// The result in the low lane of `destination`, and MXCSR.
    fn run(destination: u128, source: u64, mxcsr: u32) -> (u128, u32);
}

/// A conversion to a general register.
pub trait ToInteger {
    /// The integer (zero-extended from 32 bits) and MXCSR.
    fn run(source: u128, mxcsr: u32) -> (u64, u32);
}

macro_rules! lanes {
    ($($Name:ident $text:literal)*) => {$(
        #[doc = concat!("`", $text, "`")]
        pub struct $Name;
        impl Lanes for $Name {
            #[inline(always)]
            #[cfg(target_arch = "x86_64")]
            fn run(destination: u128, source: u128) -> u128 {
                let mut value = lanes(destination);
                // SAFETY: computes on two registers only; the caller checked `available`.
                unsafe {
                    asm!(concat!($text, " {d}, {s}"), d = inout(xmm_reg) value, s = in(xmm_reg) lanes(source),
                        options(pure, nomem, nostack, preserves_flags));
                }
                number(value)
            }
            #[cfg(not(target_arch = "x86_64"))]
            fn run(destination: u128, _: u128) -> u128 {
                destination
            }
        }
    )*};
}

lanes! {
    Paddb "paddb" Paddw "paddw" Paddd "paddd" Paddq "paddq" Paddsb "paddsb" Paddsw "paddsw" Paddusb "paddusb" Paddusw "paddusw"
    Psubb "psubb" Psubw "psubw" Psubd "psubd" Psubq "psubq" Psubsb "psubsb" Psubsw "psubsw" Psubusb "psubusb" Psubusw "psubusw"
    Pmullw "pmullw" Pmulhw "pmulhw" Pmulhuw "pmulhuw" Pmuludq "pmuludq" Pmaddwd "pmaddwd" Pmuldq "pmuldq" Pmulld "pmulld"
    Pmulhrsw "pmulhrsw" Pmaddubsw "pmaddubsw"
    Pcmpeqb "pcmpeqb" Pcmpeqw "pcmpeqw" Pcmpeqd "pcmpeqd" Pcmpeqq "pcmpeqq"
    Pcmpgtb "pcmpgtb" Pcmpgtw "pcmpgtw" Pcmpgtd "pcmpgtd" Pcmpgtq "pcmpgtq"
    Pavgb "pavgb" Pavgw "pavgw" Psadbw "psadbw" Phminposuw "phminposuw"
    Pminub "pminub" Pminuw "pminuw" Pminud "pminud" Pminsb "pminsb" Pminsw "pminsw" Pminsd "pminsd"
    Pmaxub "pmaxub" Pmaxuw "pmaxuw" Pmaxud "pmaxud" Pmaxsb "pmaxsb" Pmaxsw "pmaxsw" Pmaxsd "pmaxsd"
    Psllw "psllw" Pslld "pslld" Psllq "psllq" Psrlw "psrlw" Psrld "psrld" Psrlq "psrlq" Psraw "psraw" Psrad "psrad"
    Packsswb "packsswb" Packssdw "packssdw" Packuswb "packuswb" Packusdw "packusdw"
    Punpcklbw "punpcklbw" Punpcklwd "punpcklwd" Punpckldq "punpckldq" Punpcklqdq "punpcklqdq"
    Punpckhbw "punpckhbw" Punpckhwd "punpckhwd" Punpckhdq "punpckhdq" Punpckhqdq "punpckhqdq"
    Unpcklps "unpcklps" Unpckhps "unpckhps" Unpcklpd "unpcklpd" Unpckhpd "unpckhpd"
    Pshufb "pshufb" Psignb "psignb" Psignw "psignw" Psignd "psignd" Pabsb "pabsb" Pabsw "pabsw" Pabsd "pabsd"
    Phaddw "phaddw" Phaddd "phaddd" Phaddsw "phaddsw" Phsubw "phsubw" Phsubd "phsubd" Phsubsw "phsubsw"
    Pmovsxbw "pmovsxbw" Pmovsxbd "pmovsxbd" Pmovsxbq "pmovsxbq" Pmovsxwd "pmovsxwd" Pmovsxwq "pmovsxwq" Pmovsxdq "pmovsxdq"
    Pmovzxbw "pmovzxbw" Pmovzxbd "pmovzxbd" Pmovzxbq "pmovzxbq" Pmovzxwd "pmovzxwd" Pmovzxwq "pmovzxwq" Pmovzxdq "pmovzxdq"
    Movshdup "movshdup" Movsldup "movsldup" Movddup "movddup"
    Rcpps "rcpps" Rcpss "rcpss" Rsqrtps "rsqrtps" Rsqrtss "rsqrtss"
}

macro_rules! bitwise {
    ($($Name:ident |$d:ident, $s:ident| $result:expr;)*) => {$(
        #[doc = concat!("The bitwise operation ", stringify!($Name))]
        pub struct $Name;
        impl Lanes for $Name {
            #[inline(always)]
            fn run($d: u128, $s: u128) -> u128 {
                $result
            }
        }
    )*};
}

bitwise! {
    And |d, s| d & s;
    AndNot |d, s| !d & s;
    Or |d, s| d | s;
    Xor |d, s| d ^ s;
}

/// The body of an operation under MXCSR: loads the guest's, runs the text, stores it, loads the host's.
#[cfg(target_arch = "x86_64")]
macro_rules! under_mxcsr {
    ($mxcsr:ident, [$($text:expr),*], $($operands:tt)*) => {
        // SAFETY: reads and writes the local MXCSR image and registers only; the host's MXCSR is back at the end; all
        // exceptions are masked in the image, so nothing traps; the caller checked `available`.
        unsafe {
            asm!("ldmxcsr [{m}]", $($text,)* "stmxcsr [{m}]", "ldmxcsr [{h}]",
                m = in(reg) &raw mut $mxcsr, h = in(reg) &raw const HOST_MXCSR, $($operands)*)
        }
    };
}

macro_rules! floats {
    ($($Name:ident $text:literal $elements:expr,)*) => {$(
        #[doc = concat!("`", $text, "`")]
        pub struct $Name;
        impl Float for $Name {
            const ELEMENTS: Elements = $elements;
            #[inline(always)]
            #[cfg(target_arch = "x86_64")]
            fn run(destination: u128, source: u128, mut mxcsr: u32) -> (u128, u32) {
                let mut value = lanes(destination);
                under_mxcsr!(mxcsr, [concat!($text, " {d}, {s}")], d = inout(xmm_reg) value, s = in(xmm_reg) lanes(source),
                    options(nostack, preserves_flags));
                (number(value), mxcsr)
            }
            #[cfg(not(target_arch = "x86_64"))]
            fn run(destination: u128, _: u128, mxcsr: u32) -> (u128, u32) {
                (destination, mxcsr)
            }
        }
    )*};
}

floats! {
    Addps "addps" Elements::Vertical(Basic::Add, Width::Single, 4),
    Addpd "addpd" Elements::Vertical(Basic::Add, Width::Double, 2),
    Addss "addss" Elements::Vertical(Basic::Add, Width::Single, 1),
    Addsd "addsd" Elements::Vertical(Basic::Add, Width::Double, 1),
    Subps "subps" Elements::Vertical(Basic::Subtract, Width::Single, 4),
    Subpd "subpd" Elements::Vertical(Basic::Subtract, Width::Double, 2),
    Subss "subss" Elements::Vertical(Basic::Subtract, Width::Single, 1),
    Subsd "subsd" Elements::Vertical(Basic::Subtract, Width::Double, 1),
    Mulps "mulps" Elements::Vertical(Basic::Multiply, Width::Single, 4),
    Mulpd "mulpd" Elements::Vertical(Basic::Multiply, Width::Double, 2),
    Mulss "mulss" Elements::Vertical(Basic::Multiply, Width::Single, 1),
    Mulsd "mulsd" Elements::Vertical(Basic::Multiply, Width::Double, 1),
    Divps "divps" Elements::Vertical(Basic::Divide, Width::Single, 4),
    Divpd "divpd" Elements::Vertical(Basic::Divide, Width::Double, 2),
    Divss "divss" Elements::Vertical(Basic::Divide, Width::Single, 1),
    Divsd "divsd" Elements::Vertical(Basic::Divide, Width::Double, 1),
    Minps "minps" Elements::Simple,
    Minpd "minpd" Elements::Simple,
    Minss "minss" Elements::Simple,
    Minsd "minsd" Elements::Simple,
    Maxps "maxps" Elements::Simple,
    Maxpd "maxpd" Elements::Simple,
    Maxss "maxss" Elements::Simple,
    Maxsd "maxsd" Elements::Simple,
    Sqrtps "sqrtps" Elements::Simple,
    Sqrtpd "sqrtpd" Elements::Simple,
    Sqrtss "sqrtss" Elements::Simple,
    Sqrtsd "sqrtsd" Elements::Simple,
    Addsubps "addsubps" Elements::Alternating(Width::Single),
    Addsubpd "addsubpd" Elements::Alternating(Width::Double),
    Haddps "haddps" Elements::Horizontal(Basic::Add, Width::Single),
    Haddpd "haddpd" Elements::Horizontal(Basic::Add, Width::Double),
    Hsubps "hsubps" Elements::Horizontal(Basic::Subtract, Width::Single),
    Hsubpd "hsubpd" Elements::Horizontal(Basic::Subtract, Width::Double),
    Cvtps2pd "cvtps2pd" Elements::Simple,
    Cvtpd2ps "cvtpd2ps" Elements::Narrowing(2),
    Cvtss2sd "cvtss2sd" Elements::Simple,
    Cvtsd2ss "cvtsd2ss" Elements::Narrowing(1),
    Cvtdq2ps "cvtdq2ps" Elements::Simple,
    Cvtdq2pd "cvtdq2pd" Elements::Simple,
    Cvtps2dq "cvtps2dq" Elements::Simple,
    Cvttps2dq "cvttps2dq" Elements::Simple,
    Cvtpd2dq "cvtpd2dq" Elements::Simple,
    Cvttpd2dq "cvttpd2dq" Elements::Simple,
}

/// `[[f::<0>, …], …, [… f::<255>]]`: one function for each immediate.
macro_rules! each_immediate {
    ($f:ident) => {
        [
            each_immediate!($f 0), each_immediate!($f 1), each_immediate!($f 2), each_immediate!($f 3),
            each_immediate!($f 4), each_immediate!($f 5), each_immediate!($f 6), each_immediate!($f 7),
            each_immediate!($f 8), each_immediate!($f 9), each_immediate!($f 10), each_immediate!($f 11),
            each_immediate!($f 12), each_immediate!($f 13), each_immediate!($f 14), each_immediate!($f 15),
        ]
    };
    ($f:ident $h:literal) => {
        [
            $f::<{ $h * 16 }>, $f::<{ $h * 16 + 1 }>, $f::<{ $h * 16 + 2 }>, $f::<{ $h * 16 + 3 }>,
            $f::<{ $h * 16 + 4 }>, $f::<{ $h * 16 + 5 }>, $f::<{ $h * 16 + 6 }>, $f::<{ $h * 16 + 7 }>,
            $f::<{ $h * 16 + 8 }>, $f::<{ $h * 16 + 9 }>, $f::<{ $h * 16 + 10 }>, $f::<{ $h * 16 + 11 }>,
            $f::<{ $h * 16 + 12 }>, $f::<{ $h * 16 + 13 }>, $f::<{ $h * 16 + 14 }>, $f::<{ $h * 16 + 15 }>,
        ]
    };
}

macro_rules! float_immediates {
    ($($Name:ident $text:literal $mask:literal $elements:expr,)*) => {$(
        #[doc = concat!("`", $text, "`; of the immediate, only the bits ", stringify!($mask), " count")]
        pub struct $Name;
        impl FloatImmediate for $Name {
            const ELEMENTS: Elements = $elements;
            #[cfg(target_arch = "x86_64")]
            #[inline]
            fn run(destination: u128, source: u128, mxcsr: u32, immediate: u8) -> (u128, u32) {
                fn with<const IMMEDIATE: u8>(destination: u128, source: u128, mut mxcsr: u32) -> (u128, u32) {
                    let mut value = lanes(destination);
                    under_mxcsr!(mxcsr, [concat!($text, " {d}, {s}, {i}")], d = inout(xmm_reg) value,
                        s = in(xmm_reg) lanes(source), i = const IMMEDIATE & $mask, options(nostack, preserves_flags));
                    (number(value), mxcsr)
                }
                type Table = [[fn(u128, u128, u32) -> (u128, u32); 16]; 16];
                static TABLE: Table = each_immediate!(with);
                TABLE[usize::from(immediate & $mask) >> 4][usize::from(immediate & $mask) & 15](destination, source, mxcsr)
            }
            #[cfg(not(target_arch = "x86_64"))]
            fn run(destination: u128, _: u128, mxcsr: u32, _: u8) -> (u128, u32) {
                (destination, mxcsr)
            }
        }
    )*};
}

float_immediates! {
    Cmpps "cmpps" 7 Elements::Simple, Cmppd "cmppd" 7 Elements::Simple, Cmpss "cmpss" 7 Elements::Simple, Cmpsd "cmpsd" 7 Elements::Simple,
    Roundps "roundps" 15 Elements::Simple, Roundpd "roundpd" 15 Elements::Simple, Roundss "roundss" 15 Elements::Simple, Roundsd "roundsd" 15 Elements::Simple,
    Dpps "dpps" 255 Elements::DotProduct(Width::Single), Dppd "dppd" 0x33 Elements::DotProduct(Width::Double),
}

macro_rules! float_flags {
    ($($Name:ident $text:literal)*) => {$(
        #[doc = concat!("`", $text, "`")]
        pub struct $Name;
        impl FloatFlags for $Name {
            #[inline(always)]
            #[cfg(target_arch = "x86_64")]
            fn run(destination: u128, source: u128, mut mxcsr: u32) -> (u8, u32) {
                let flags: u32;
                under_mxcsr!(mxcsr, [concat!($text, " {d}, {s}"), "lahf"], d = in(xmm_reg) lanes(destination),
                    s = in(xmm_reg) lanes(source), out("eax") flags, options(nostack));
                ((flags >> 8) as u8, mxcsr)
            }
            #[cfg(not(target_arch = "x86_64"))]
            fn run(_: u128, _: u128, mxcsr: u32) -> (u8, u32) {
                (0, mxcsr)
            }
        }
    )*};
}

float_flags! { Comiss "comiss" Comisd "comisd" Ucomiss "ucomiss" Ucomisd "ucomisd" }

macro_rules! from_integer {
    ($($Name:ident $text:literal)*) => {$(
        #[doc = concat!("`", $text, "`")]
        pub struct $Name;
        impl FromInteger for $Name {
            #[inline(always)]
            #[cfg(target_arch = "x86_64")]
            fn run(destination: u128, source: u64, mut mxcsr: u32) -> (u128, u32) {
                let mut value = lanes(destination);
                under_mxcsr!(mxcsr, [$text], d = inout(xmm_reg) value, s = in(reg) source, options(nostack, preserves_flags));
                (number(value), mxcsr)
            }
            #[cfg(not(target_arch = "x86_64"))]
            fn run(destination: u128, _: u64, mxcsr: u32) -> (u128, u32) {
                (destination, mxcsr)
            }
        }
    )*};
}

from_integer! {
    Cvtsi2ss32 "cvtsi2ss {d}, {s:e}" Cvtsi2ss64 "cvtsi2ss {d}, {s}"
    Cvtsi2sd32 "cvtsi2sd {d}, {s:e}" Cvtsi2sd64 "cvtsi2sd {d}, {s}"
}

macro_rules! to_integer {
    ($($Name:ident $text:literal)*) => {$(
        #[doc = concat!("`", $text, "`")]
        pub struct $Name;
        impl ToInteger for $Name {
            #[inline(always)]
            #[cfg(target_arch = "x86_64")]
            fn run(source: u128, mut mxcsr: u32) -> (u64, u32) {
                let value: u64;
                under_mxcsr!(mxcsr, [$text], d = out(reg) value, s = in(xmm_reg) lanes(source), options(nostack, preserves_flags));
                (value, mxcsr)
            }
            #[cfg(not(target_arch = "x86_64"))]
            fn run(_: u128, mxcsr: u32) -> (u64, u32) {
                (0, mxcsr)
            }
        }
    )*};
}

to_integer! {
    Cvtss2si32 "cvtss2si {d:e}, {s}" Cvtss2si64 "cvtss2si {d}, {s}" Cvttss2si32 "cvttss2si {d:e}, {s}" Cvttss2si64 "cvttss2si {d}, {s}"
    Cvtsd2si32 "cvtsd2si {d:e}, {s}" Cvtsd2si64 "cvtsd2si {d}, {s}" Cvttsd2si32 "cvttsd2si {d:e}, {s}" Cvttsd2si64 "cvttsd2si {d}, {s}"
}

/// What a string comparison (SSE4.2) gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StringMatch {
    /// The index (ECX) or the mask (XMM0).
    pub result: u128,
    /// RFLAGS: CF, ZF, SF, OF as the comparison sets them, AF and PF clear.
    pub rflags: u64,
}

/// PCMPISTRI, PCMPISTRM, PCMPESTRI, PCMPESTRM.
pub trait StringCompare {
    /// Compares; `lengths` are the explicit ones of destination and source, at most ±16 (more means no more).
    fn run(destination: u128, source: u128, lengths: [i32; 2], immediate: u8) -> StringMatch;
}

macro_rules! string_compares {
    ($($Name:ident $text:literal $out:literal)*) => {$(
        #[doc = concat!("`", $text, "`")]
        pub struct $Name;
        impl StringCompare for $Name {
            #[cfg(target_arch = "x86_64")]
            fn run(destination: u128, source: u128, lengths: [i32; 2], immediate: u8) -> StringMatch {
                fn with<const IMMEDIATE: u8>(destination: u128, source: u128, lengths: [i32; 2]) -> StringMatch {
                    let (flags, index): (u64, u64);
                    let mask: __m128i;
                    // SAFETY: computes on registers only; the caller checked `available`.
                    unsafe {
                        asm!(concat!($text, " {d}, {s}, {i}"), "lahf", "seto al",
                            d = in(xmm_reg) lanes(destination), s = in(xmm_reg) lanes(source), i = const IMMEDIATE,
                            out("xmm0") mask, inout("rcx") 0u64 => index, inout("rax") i64::from(lengths[0]) => flags,
                            in("rdx") i64::from(lengths[1]),
                            options(pure, nomem, nostack));
                    }
                    let [index, mask] = [u128::from(index), number(mask)];
                    StringMatch { result: [index, mask][$out], rflags: flags >> 8 & 0xd5 | (flags & 1) << 11 }
                }
                type Table = [[fn(u128, u128, [i32; 2]) -> StringMatch; 16]; 16];
                static TABLE: Table = each_immediate!(with);
                TABLE[usize::from(immediate) >> 4][usize::from(immediate) & 15](destination, source, lengths)
            }
            #[cfg(not(target_arch = "x86_64"))]
            fn run(_: u128, _: u128, _: [i32; 2], _: u8) -> StringMatch {
                StringMatch { result: 0, rflags: 0 }
            }
        }
    )*};
}

string_compares! {
    Pcmpistri "pcmpistri" 0 Pcmpistrm "pcmpistrm" 1
    Pcmpestri "pcmpestri" 0 Pcmpestrm "pcmpestrm" 1
}

// Behind the macros that it uses.
mod extensions;
pub use extensions::*;
