//! The CPU models by name. A model is a set of features; vendor, family and brand are the same for all of them (see [`super`]).
//!
//! `default` and `qemu64` have all that costs no speed, `max` and `host` all there is. The others are families of Intel's: what
//! a family brought, all later ones have too; and all have what every model has, like the features of virtual machines.

use super::features::{Feature, FeatureSet, Offer, TABLE, feature as f};

/// Models with all that costs no speed.
const DEFAULTS: [&str; 3] = ["", "default", "qemu64"];
/// Models with all there is.
const EVERYTHING: [&str; 2] = ["max", "host"];

/// What each family brought, the oldest first.
const FAMILIES: &[(&str, &[Feature])] = &[
    ("Nehalem", &[f::SSE4_2, f::POPCNT]),
    ("Westmere", &[f::AES, f::PCLMULQDQ, f::PCID, f::PDPE1GB]),
    ("SandyBridge", &[f::AVX, f::XSAVE, f::XSAVEOPT, f::X2APIC, f::TSC_DEADLINE]),
    ("IvyBridge", &[f::F16C, f::RDRAND, f::FSGSBASE, f::SMEP, f::ERMS]),
    ("Haswell", &[f::AVX2, f::FMA, f::BMI1, f::BMI2, f::LZCNT, f::MOVBE, f::INVPCID]),
    ("Broadwell", &[f::ADX, f::RDSEED, f::SMAP, f::PREFETCHW]),
    ("Skylake-Client", &[f::XSAVEC, f::XGETBV1]),
    ("Icelake-Client", &[f::SHA, f::VAES, f::VPCLMULQDQ, f::UMIP, f::FSRM]),
];

/// The names, for messages.
pub fn names() -> impl Iterator<Item = &'static str> {
    let families = FAMILIES.iter().map(|(name, _)| *name);
    ["qemu64"].into_iter().chain(families).chain(EVERYTHING)
}

/// The features of a model, as far as this host has them; `None` if there is no such model.
pub fn features(name: &str) -> Option<FeatureSet> {
    let everything = EVERYTHING.contains(&name);
    let family = FAMILIES.iter().position(|(known, _)| known.eq_ignore_ascii_case(name));
    if !everything && !DEFAULTS.contains(&name) && family.is_none() {
        return None;
    }
    let mut features = FeatureSet::default();
    for row in TABLE {
        let offered = row.is_free() || row.offer == Offer::Max && (everything || family.is_some());
        features.set(row.feature, offered && (row.host)());
    }
    if let Some(family) = family {
        for feature in FAMILIES[family + 1..].iter().flat_map(|(_, brought)| *brought) {
            features.set(*feature, false);
        }
    }
    Some(features)
}
