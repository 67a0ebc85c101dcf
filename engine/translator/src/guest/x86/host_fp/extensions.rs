//! What the host may have beyond SSE4.2: AES, carry-less multiplication, SHA, conversions of half floats, fused multiplication
//! and addition. [`Extension::is_here`] says whether it has; the guest's CPUID offers nothing else, so nothing else gets here.
//! See: Intel SDM volume 1, chapter 14; volume 2, each instruction.

use super::super::shuffle::Shuffle;
use super::super::sse_unmasked::{Elements, Order, Signs, Width};
use super::{Float, Lanes};
#[cfg(target_arch = "x86_64")]
use super::{HOST_MXCSR, lanes, number};
#[cfg(target_arch = "x86_64")]
use core::arch::asm;

/// A group of instructions of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension {
    Aes,
    Pclmulqdq,
    Sha,
    F16c,
    Fma,
}

impl Extension {
    /// Whether this host has it, and its system allows it.
    pub fn is_here(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as detected;
            match self {
                Self::Aes => detected!("aes"),
                Self::Pclmulqdq => detected!("pclmulqdq"),
                Self::Sha => detected!("sha"),
                Self::F16c => detected!("f16c"),
                Self::Fma => detected!("fma"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            false
        }
    }
}

// ---- Cryptography ----------------------------------------------------------------------------------------------

lanes! {
    Aesenc "aesenc" Aesenclast "aesenclast" Aesdec "aesdec" Aesdeclast "aesdeclast" Aesimc "aesimc"
    Sha1nexte "sha1nexte" Sha1msg1 "sha1msg1" Sha1msg2 "sha1msg2" Sha256msg1 "sha256msg1" Sha256msg2 "sha256msg2"
}

/// One instruction with its immediate in the text.
macro_rules! with_immediate {
    ($text:literal, $destination:expr, $source:expr) => {{
        #[cfg(target_arch = "x86_64")]
        {
            let mut value = lanes($destination);
            // SAFETY: computes on two registers only; the host has the instruction, or the guest would not.
            unsafe {
                asm!($text, d = inout(xmm_reg) value, s = in(xmm_reg) lanes($source), options(pure, nomem, nostack, preserves_flags));
            }
            number(value)
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = $source;
            $destination
        }
    }};
}

/// AESKEYGENASSIST
pub struct Aeskeygenassist;
impl Shuffle for Aeskeygenassist {
    fn run(destination: u128, source: u128, immediate: u8) -> u128 {
        // The immediate is added to the two rotated words at the end.
        let constants = u128::from(immediate) << 32 | u128::from(immediate) << 96;
        with_immediate!("aeskeygenassist {d}, {s}, 0", destination, source) ^ constants
    }
}

/// PCLMULQDQ
pub struct Pclmulqdq;
impl Shuffle for Pclmulqdq {
    fn run(destination: u128, source: u128, immediate: u8) -> u128 {
        let (a, b) = (destination >> (64 * (immediate & 1)), source >> (64 * (immediate >> 4 & 1)));
        with_immediate!("pclmulqdq {d}, {s}, 0", a, b)
    }
}

/// SHA1RNDS4
pub struct Sha1rnds4;
impl Shuffle for Sha1rnds4 {
    fn run(destination: u128, source: u128, immediate: u8) -> u128 {
        match immediate & 3 {
            0 => with_immediate!("sha1rnds4 {d}, {s}, 0", destination, source),
            1 => with_immediate!("sha1rnds4 {d}, {s}, 1", destination, source),
            2 => with_immediate!("sha1rnds4 {d}, {s}, 2", destination, source),
            _ => with_immediate!("sha1rnds4 {d}, {s}, 3", destination, source),
        }
    }
}

/// SHA256RNDS2 with what XMM0 holds.
#[cfg(target_arch = "x86_64")]
pub fn sha256rnds2(destination: u128, source: u128, xmm0: u128) -> u128 {
    let mut value = lanes(destination);
    // SAFETY: computes on three registers only; the host has the instruction, or the guest would not.
    unsafe {
        asm!("sha256rnds2 {d}, {s}", d = inout(xmm_reg) value, s = in(xmm_reg) lanes(source), in("xmm0") lanes(xmm0),
            options(pure, nomem, nostack, preserves_flags));
    }
    number(value)
}
/// No such host, no such guest.
#[cfg(not(target_arch = "x86_64"))]
pub fn sha256rnds2(destination: u128, _: u128, _: u128) -> u128 {
    destination
}

// ---- Half floats -----------------------------------------------------------------------------------------------

floats! {
    Vcvtph2ps "vcvtph2ps" Elements::Simple,
}

/// VCVTPS2PH: four singles to halves in the low 64 bits. Of the immediate, three bits count.
#[allow(unused_variables, unused_mut, reason = "other hosts")]
pub fn singles_to_halves(source: u128, mut mxcsr: u32, immediate: u8) -> (u128, u32) {
    #[cfg(target_arch = "x86_64")]
    {
        let value;
        macro_rules! with {
            ($immediate:literal) => {
                under_mxcsr!(mxcsr, [concat!("vcvtps2ph {d}, {s}, ", $immediate)], d = out(xmm_reg) value,
                    s = in(xmm_reg) lanes(source), options(nostack, preserves_flags))
            };
        }
        match immediate & 7 {
            0 => with!("0"),
            1 => with!("1"),
            2 => with!("2"),
            3 => with!("3"),
            _ => with!("4"),
        }
        (number(value), mxcsr)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        (source, mxcsr)
    }
}

// ---- Fused multiplication and addition -------------------------------------------------------------------------

/// A fused operation on 128 bits.
pub trait Fused {
    /// What it combines, in how many lanes.
    const SHAPE: (Order, Signs, Width, u32);
    /// The new destination, and MXCSR with the flags that were raised added. `mxcsr` must have all exceptions masked.
    fn run(destination: u128, second: u128, third: u128, mxcsr: u32) -> (u128, u32);
}

macro_rules! fused {
    ($($signs:ident $width:ident $lanes:literal: $first:ident $second:ident $third:ident;)*) => {$(
        fused!($first, Order::O132, $signs, $width, $lanes);
        fused!($second, Order::O213, $signs, $width, $lanes);
        fused!($third, Order::O231, $signs, $width, $lanes);
    )*};
    ($Name:ident, $order:expr, $signs:ident, $width:ident, $lanes:literal) => {
        #[doc = stringify!($Name)]
        pub struct $Name;
        impl Fused for $Name {
            const SHAPE: (Order, Signs, Width, u32) = ($order, Signs::$signs, Width::$width, $lanes);
            #[inline(always)]
            #[cfg(target_arch = "x86_64")]
            fn run(destination: u128, second: u128, third: u128, mut mxcsr: u32) -> (u128, u32) {
                let mut value = lanes(destination);
                under_mxcsr!(mxcsr, [concat!(stringify!($Name), " {d}, {b}, {c}")], d = inout(xmm_reg) value,
                    b = in(xmm_reg) lanes(second), c = in(xmm_reg) lanes(third), options(nostack, preserves_flags));
                (number(value), mxcsr)
            }
            #[cfg(not(target_arch = "x86_64"))]
            fn run(destination: u128, _: u128, _: u128, mxcsr: u32) -> (u128, u32) {
                (destination, mxcsr)
            }
        }
    };
}

fused! {
    Same Single 4: Vfmadd132ps Vfmadd213ps Vfmadd231ps;
    Same Double 2: Vfmadd132pd Vfmadd213pd Vfmadd231pd;
    Same Single 1: Vfmadd132ss Vfmadd213ss Vfmadd231ss;
    Same Double 1: Vfmadd132sd Vfmadd213sd Vfmadd231sd;
    Opposite Single 4: Vfmsub132ps Vfmsub213ps Vfmsub231ps;
    Opposite Double 2: Vfmsub132pd Vfmsub213pd Vfmsub231pd;
    Opposite Single 1: Vfmsub132ss Vfmsub213ss Vfmsub231ss;
    Opposite Double 1: Vfmsub132sd Vfmsub213sd Vfmsub231sd;
    Opposite Single 4: Vfnmadd132ps Vfnmadd213ps Vfnmadd231ps;
    Opposite Double 2: Vfnmadd132pd Vfnmadd213pd Vfnmadd231pd;
    Opposite Single 1: Vfnmadd132ss Vfnmadd213ss Vfnmadd231ss;
    Opposite Double 1: Vfnmadd132sd Vfnmadd213sd Vfnmadd231sd;
    Same Single 4: Vfnmsub132ps Vfnmsub213ps Vfnmsub231ps;
    Same Double 2: Vfnmsub132pd Vfnmsub213pd Vfnmsub231pd;
    Same Single 1: Vfnmsub132ss Vfnmsub213ss Vfnmsub231ss;
    Same Double 1: Vfnmsub132sd Vfnmsub213sd Vfnmsub231sd;
    EvenOpposite Single 4: Vfmaddsub132ps Vfmaddsub213ps Vfmaddsub231ps;
    EvenOpposite Double 2: Vfmaddsub132pd Vfmaddsub213pd Vfmaddsub231pd;
    OddOpposite Single 4: Vfmsubadd132ps Vfmsubadd213ps Vfmsubadd231ps;
    OddOpposite Double 2: Vfmsubadd132pd Vfmsubadd213pd Vfmsubadd231pd;
}
