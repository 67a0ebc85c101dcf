//! Which instructions exist on a CPU model, for the decoder: what is not offered is #UD, or what its encoding meant before.

use super::{Feature, feature as f};
use iced_x86::{Code, CpuidFeature as Set, DecoderOptions};

/// What a feature stands for in the decoder's terms. Instructions of other sets are known to every model, or their handlers ask.
const SETS: &[(Set, Feature)] = &[
    (Set::SSE3, f::SSE3),
    (Set::SSSE3, f::SSSE3),
    (Set::SSE4_1, f::SSE4_1),
    (Set::SSE4_2, f::SSE4_2),
    (Set::POPCNT, f::POPCNT),
    (Set::LZCNT, f::LZCNT),
    (Set::BMI1, f::BMI1),
    (Set::BMI2, f::BMI2),
    (Set::ADX, f::ADX),
    (Set::MOVBE, f::MOVBE),
    (Set::AES, f::AES),
    (Set::PCLMULQDQ, f::PCLMULQDQ),
    (Set::SHA, f::SHA),
    (Set::XSAVE, f::XSAVE),
    (Set::XSAVEOPT, f::XSAVEOPT),
    (Set::XSAVEC, f::XSAVEC),
    (Set::AVX, f::AVX),
    (Set::AVX2, f::AVX2),
    (Set::FMA, f::FMA),
    (Set::F16C, f::F16C),
    (Set::VAES, f::VAES),
    (Set::VPCLMULQDQ, f::VPCLMULQDQ),
];

/// The instruction sets of one CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstructionSets {
    /// A bit for each of the decoder's numbers.
    missing: [u64; 4],
    options: u32,
}

impl InstructionSets {
    /// Those of a CPU that has these features.
    pub(super) fn new(has: impl Fn(Feature) -> bool) -> Self {
        let mut missing = [0; 4];
        for (set, _) in SETS.iter().filter(|(_, feature)| !has(*feature)) {
            let number = *set as usize;
            missing[number / 64] |= 1 << (number % 64);
        }
        // F3 means nothing before BSF and BSR where they have not become TZCNT and LZCNT.
        let mut options = DecoderOptions::NONE;
        if !has(f::BMI1) {
            options |= DecoderOptions::NO_MPFX_0FBC;
        }
        if !has(f::LZCNT) {
            options |= DecoderOptions::NO_MPFX_0FBD;
        }
        Self { missing, options }
    }

    /// All that there is.
    #[cfg(test)]
    pub fn all() -> Self {
        Self::new(|_| true)
    }

    /// None of those that can be missing.
    #[cfg(test)]
    pub fn none() -> Self {
        Self::new(|_| false)
    }

    /// How the decoder is to read what means different things to different models.
    pub fn decoder_options(&self) -> u32 {
        self.options
    }

    /// Whether an instruction is one of them.
    pub fn have(&self, code: Code) -> bool {
        code.cpuid_features().iter().all(|set| {
            let number = *set as usize;
            self.missing.get(number / 64).is_none_or(|bits| bits >> (number % 64) & 1 == 0)
        })
    }
}
