//! CPUID: which CPU the guest sees. Models (`qemu64`, the default: x86-64-v3, AES and SHA; `max`: all that is exact here;
//! Intel's families by name), `+flag` and `-flag`, and the answer to every leaf. Nothing is listed that the interpreter does
//! not do exactly, on this host.
//!
//! The vendor is GenuineIntel and the signature that of a Westmere (family 6, model 2Ch). Guests go by the feature bits; what
//! they know by the numbers of later families are their errata. Linux takes the crystal clock of leaf 15h from Intel only,
//! reads no vendor MSR of its errata tables there, and with IA32_ARCH_CAPABILITIES drops page-table isolation and retpolines.
//! It also decides between the vendors where they differ: SYSCALL only in 64-bit mode, SYSENTER in every protected mode.
//! See: Intel SDM volume 2, "CPUID"; AMD APM volume 3, appendix E.

mod features;
mod hypervisors;
mod instruction_sets;
mod models;

pub use features::{Feature, feature};
pub use instruction_sets::InstructionSets;

pub(crate) use crate::mmu::PHYSICAL_BITS;
use engine_cpu::x86::{APIC_TIMER_HZ, PROCESSOR_SIGNATURE, TSC_HZ};
use engine_cpu::{CpuError, CpuModel, Topology};
use features::{FeatureSet, TABLE, Word};

/// Width of a linear address.
pub const LINEAR_BITS: u32 = 48;

const VENDOR: &[u8; 12] = b"GenuineIntel";
const BRAND: &[u8; 48] = b"Bellglass virtual CPU\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const LAST_BASIC: u32 = 0x16;
const LAST_EXTENDED: u32 = 0x8000_0008;

/// What parts of the answers follow from the asking CPU's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// Its APIC id.
    pub apic_id: u32,
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// IA32_APIC_BASE.EN.
    pub apic_enabled: bool,
    /// In 64-bit mode.
    pub long_mode: bool,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_XSS.
    pub xss: u64,
}

/// The CPU that a machine's guest sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuidPolicy {
    features: FeatureSet,
    sets: InstructionSets,
    topology: Topology,
    hyper_v: hypervisors::Settings,
}

impl CpuidPolicy {
    /// Resolves a model and its flags.
    ///
    /// # Errors
    /// For a model or flag that is not known (the nearest one is named), or known and not there yet.
    pub fn new(model: &CpuModel) -> Result<Self, CpuError> {
        let Some(mut features) = models::features(&model.name) else {
            let (name, known) = (&model.name, models::names().collect::<Vec<_>>());
            let nearest = nearest(name, known.iter().copied()).unwrap_or("qemu64");
            return Err(CpuError::Model(format!(
                "There is no CPU model “{name}”. The nearest one is “{nearest}”; the models are {}.",
                known.join(", ")
            )));
        };
        let mut hyper_v = hypervisors::Settings::default();
        for (name, on) in &model.features {
            if let Some(set) = name.split_once('=').and_then(|(name, value)| hyper_v.set(name, value)) {
                set?;
            } else if plain(name) == "hvpassthrough" {
                hypervisors::set_all_of_microsoft(&mut features, *on);
            } else {
                features.set(find_feature(name, *on)?, *on);
            }
        }
        features.drop_what_lacks_its_base();
        hypervisors::settle(&mut features, &hyper_v)?;
        let sets = InstructionSets::new(|feature| features.has(feature));
        Ok(Self { features, sets, topology: model.topology, hyper_v })
    }

    /// Whether the guest has `feature`.
    pub fn has(&self, feature: Feature) -> bool {
        self.features.has(feature)
    }

    /// Which instructions the decoder knows.
    pub fn instruction_sets(&self) -> &InstructionSets {
        &self.sets
    }

    /// The bits that MOV to CR4 accepts.
    pub fn cr4_allowed(&self) -> u64 {
        let by_feature = [
            (feature::VME, 0b11),
            (feature::TSC, 1 << 2),
            (feature::DE, 1 << 3),
            (feature::PSE, 1 << 4),
            (feature::PAE, 1 << 5),
            (feature::MCE, 1 << 6),
            (feature::PGE, 1 << 7),
            (feature::FXSR, 1 << 9),
            (feature::SSE, 1 << 10),
            (feature::UMIP, 1 << 11),
            (feature::FSGSBASE, 1 << 16),
            (feature::PCID, 1 << 17),
            (feature::XSAVE, 1 << 18),
            (feature::SMEP, 1 << 20),
            (feature::SMAP, 1 << 21),
        ];
        // PCE: RDPMC is never allowed to anything, but kernels set the bit.
        by_feature.iter().filter(|(feature, _)| self.has(*feature)).fold(1 << 8, |bits, (_, bit)| bits | bit)
    }

    /// The bits that WRMSR to EFER accepts.
    pub fn efer_allowed(&self) -> u64 {
        let mut bits = 0;
        if self.has(feature::SYSCALL) {
            bits |= 1;
        }
        if self.has(feature::LM) {
            bits |= 1 << 8 | 1 << 10;
        }
        if self.has(feature::NX) {
            bits |= 1 << 11;
        }
        bits
    }

    /// The state components that XCR0 accepts: x87, SSE, and AVX where offered.
    pub fn xcr0_allowed(&self) -> u64 {
        if self.has(feature::AVX) { 7 } else { 3 }
    }

    /// IA32_ARCH_CAPABILITIES: what this CPU is not vulnerable to. An interpreter does not speculate on the guest's
    /// behalf; what the host does is held by the process boundary, which the guest's own fences could not strengthen.
    pub fn arch_capabilities(&self) -> u64 {
        const NOT_VULNERABLE: &[u32] = &[
            0,  // RDCL_NO
            1,  // IBRS_ALL
            3,  // SKIP_L1DFL_VMENTRY
            4,  // SSB_NO
            5,  // MDS_NO
            6,  // IF_PSCHANGE_MC_NO
            8,  // TAA_NO
            13, // SBDR_SSDP_NO
            14, // FBSDP_NO
            15, // PSDP_NO
            20, // BHI_NO
            24, // PBRSB_NO
            26, // GDS_NO
            27, // RFDS_NO
            62, // ITS_NO
        ];
        NOT_VULNERABLE.iter().fold(0, |bits, bit| bits | 1 << bit)
    }

    /// EAX, EBX, ECX, EDX of `leaf`, sub-leaf `subleaf`.
    pub fn query(&self, leaf: u32, subleaf: u32, asker: &Asker) -> [u32; 4] {
        match leaf {
            0x4000_0000..=0x4fff_ffff => hypervisors::leaf(self, leaf),
            0x8000_0000..=LAST_EXTENDED => self.extended_leaf(leaf, asker),
            0..=LAST_BASIC => self.basic_leaf(leaf, subleaf, asker),
            // Intel's answer to any other number is that of the last basic leaf.
            _ => self.basic_leaf(LAST_BASIC, subleaf, asker),
        }
    }

    fn basic_leaf(&self, leaf: u32, subleaf: u32, asker: &Asker) -> [u32; 4] {
        match leaf {
            0 => {
                let [b, d, c] = text_words(VENDOR);
                [LAST_BASIC, b, c, d]
            }
            1 => {
                let mut ecx = self.features.word(Word::Leaf1Ecx);
                let mut edx = self.features.word(Word::Leaf1Edx);
                if asker.osxsave {
                    ecx |= 1 << 27;
                }
                if !asker.apic_enabled {
                    edx &= !(1 << 9);
                }
                let logical = self.package_ids().min(255);
                [PROCESSOR_SIGNATURE, asker.apic_id << 24 | logical << 16 | 8 << 8, ecx, edx]
            }
            // Descriptor FFh: the caches are in leaf 4.
            2 => [0x00ff_ff01, 0, 0, 0],
            4 => self.cache_leaf(subleaf),
            // ARAT: the APIC timer runs in every sleep state.
            6 => [self.features.word(Word::Leaf6Eax), 0, 0, 0],
            7 => match subleaf {
                0 => {
                    let [ebx, ecx, edx] = [Word::Leaf7Ebx, Word::Leaf7Ecx, Word::Leaf7Edx].map(|word| self.features.word(word));
                    let last_subleaf = 2;
                    [last_subleaf, ebx, ecx, edx]
                }
                2 => [0, 0, 0, self.features.word(Word::Leaf7Sub2Edx)],
                _ => [0; 4],
            },
            0xb => self.topology_leaf(subleaf, asker),
            0xd if self.has(feature::XSAVE) => self.xsave_leaf(subleaf, asker),
            // A crystal of the APIC timer's frequency, and the ratio of the time stamp counter to it.
            0x15 => [1, (TSC_HZ / APIC_TIMER_HZ) as u32, APIC_TIMER_HZ as u32, 0],
            0x16 => [(TSC_HZ / 1_000_000) as u32, (TSC_HZ / 1_000_000) as u32, 100, 0],
            _ => [0; 4],
        }
    }

    fn extended_leaf(&self, leaf: u32, asker: &Asker) -> [u32; 4] {
        match leaf {
            0x8000_0000 => [LAST_EXTENDED, 0, 0, 0],
            0x8000_0001 => {
                let mut edx = self.features.word(Word::Extended1Edx);
                // Intel shows SYSCALL only where it works.
                if !asker.long_mode {
                    edx &= !(1 << 11);
                }
                [0, 0, self.features.word(Word::Extended1Ecx), edx]
            }
            0x8000_0002..=0x8000_0004 => {
                let at = (leaf - 0x8000_0002) as usize * 16;
                std::array::from_fn(|word| word_at(BRAND, at + word * 4))
            }
            // L2: 256 KiB, 8 ways, 64-byte lines.
            0x8000_0006 => [0, 0, 256 << 16 | 6 << 12 | 64, 0],
            0x8000_0007 => [0, 0, 0, self.features.word(Word::PowerEdx)],
            0x8000_0008 => [LINEAR_BITS << 8 | PHYSICAL_BITS, 0, 0, 0],
            _ => [0; 4],
        }
    }

    /// Leaf 4: L1 data and code 32 KiB, L2 256 KiB, L3 8 MiB shared by the package. The sizes are those of a common
    /// desktop; a guest only tunes its loops by them.
    fn cache_leaf(&self, subleaf: u32) -> [u32; 4] {
        let thread_ids = self.topology.threads.max(1).next_power_of_two();
        let package_ids = self.package_ids();
        let (kind, level, sharing, ways, sets) = match subleaf {
            0 => (1, 1, thread_ids, 8, 64),
            1 => (2, 1, thread_ids, 8, 64),
            2 => (3, 2, thread_ids, 8, 512),
            3 => (3, 3, package_ids, 16, 8192),
            _ => return [0; 4],
        };
        let core_ids = package_ids / thread_ids;
        // The fields are 12 and 6 bits wide and hold one less than the count.
        let eax = ((core_ids - 1) & 0x3f) << 26 | ((sharing - 1) & 0xfff) << 14 | 1 << 8 | level << 5 | kind;
        let line_bytes = 64;
        [eax, (ways - 1) << 22 | (line_bytes - 1), sets - 1, 0]
    }

    /// Leaf 0Bh: threads, then cores.
    fn topology_leaf(&self, subleaf: u32, asker: &Asker) -> [u32; 4] {
        let threads = self.topology.threads.max(1);
        let thread_bits = threads.next_power_of_two().ilog2();
        let package_bits = self.package_ids().ilog2();
        let (shift, count, kind) = match subleaf {
            0 => (thread_bits, threads, 1),
            1 => (package_bits, threads * self.topology.cores.max(1), 2),
            _ => (0, 0, 0),
        };
        [shift, count & 0xffff, kind << 8 | subleaf & 0xff, asker.apic_id]
    }

    fn xsave_leaf(&self, subleaf: u32, asker: &Asker) -> [u32; 4] {
        const LEGACY_AND_HEADER: u32 = 512 + 64;
        const AVX_BYTES: u32 = 256;
        let size = |components: u64| LEGACY_AND_HEADER + if components & 4 != 0 { AVX_BYTES } else { 0 };
        let allowed = self.xcr0_allowed();
        match subleaf {
            0 => [allowed as u32, size(asker.xcr0), size(allowed), 0],
            1 => {
                let eax = self.features.word(Word::XsaveEax);
                let compacted = eax & 0b1010 != 0;
                [eax, if compacted { size(asker.xcr0 | asker.xss) } else { 0 }, 0, 0]
            }
            2 if allowed & 4 != 0 => [AVX_BYTES, LEGACY_AND_HEADER, 0, 0],
            _ => [0; 4],
        }
    }

    /// How many APIC ids a package spans.
    fn package_ids(&self) -> u32 {
        let threads = self.topology.threads.max(1).next_power_of_two();
        let cores = self.topology.cores.max(1).next_power_of_two();
        threads.saturating_mul(cores).min(0x1000)
    }
}

/// The feature of a `+flag` (`on`) or `-flag`.
fn find_feature(name: &str, on: bool) -> Result<Feature, CpuError> {
    let plain = plain(name);
    if let Some(row) = TABLE.iter().find(|row| row.names.iter().any(|known| self::plain(known) == plain)) {
        if on && !(row.host)() {
            return Err(CpuError::Model(format!(
                "The software CPU carries “{name}” out by the host's own instructions, and this host has none. Leave +{name} out."
            )));
        }
        return Ok(row.feature);
    }
    if let Some((_, feature)) = features::NOT_YET.iter().find(|(known, _)| known.iter().any(|known| self::plain(known) == plain))
    {
        if !on {
            return Ok(*feature);
        }
        return Err(CpuError::Model(format!("The software CPU does not have the feature “{name}” yet. Leave +{name} out.")));
    }
    let known = TABLE.iter().map(|row| row.names).chain(features::NOT_YET.iter().map(|(names, _)| *names)).flatten().copied();
    let nearest = nearest(name, known).unwrap_or("sse4.2");
    Err(CpuError::Model(format!("There is no CPU feature “{name}”. The nearest one is “{nearest}”.")))
}

/// `SSE4_1`, `sse4.1` and `sse4-1` are one name.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '_' | '.' | '-')).map(|c| c.to_ascii_lowercase()).collect()
}

/// The candidate that the fewest typing errors lead to.
fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = plain(name);
    candidates.min_by_key(|candidate| edit_distance(&name, &plain(candidate)))
}

fn edit_distance(a: &str, b: &str) -> usize {
    // A name from the command line may be of any length; ours are short.
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substitution = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn word_at(text: &[u8], at: usize) -> u32 {
    text[at..at + 4].iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

fn text_words(text: &[u8; 12]) -> [u32; 3] {
    std::array::from_fn(|word| word_at(text, word * 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKER: Asker = Asker { apic_id: 3, osxsave: true, apic_enabled: true, long_mode: true, xcr0: 3, xss: 0 };

    fn policy(name: &str, features: &[(&str, bool)]) -> Result<CpuidPolicy, CpuError> {
        let topology = Topology { sockets: 1, cores: 2, threads: 2 };
        let features = features.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect();
        CpuidPolicy::new(&CpuModel { name: name.to_owned(), features, topology })
    }

    #[test]
    fn the_default_is_x86_64_v3() {
        let policy = policy("qemu64", &[]).unwrap();
        let [_, _, ecx, edx] = policy.query(1, 0, &ASKER);
        // SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT; CMOV, CX8, FPU, FXSR, MMX, SSE, SSE2.
        let (v2, v1) =
            (1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23, 1 | 1 << 8 | 1 << 15 | 1 << 23 | 1 << 24 | 1 << 25 | 1 << 26);
        assert_eq!((ecx & v2, edx & v1), (v2, v1));
        // What needs nothing of the host: MOVBE, OSXSAVE, AVX; BMI1, AVX2, BMI2; LAHF, LZCNT.
        let v3 = 1 << 22 | 1 << 27 | 1 << 28;
        assert_eq!(ecx & v3, v3);
        let [_, ebx, _, _] = policy.query(7, 0, &ASKER);
        let v3 = 1 << 3 | 1 << 5 | 1 << 8;
        assert_eq!(ebx & v3, v3);
        let [_, _, ecx, edx] = policy.query(0x8000_0001, 0, &ASKER);
        assert_eq!((ecx & 0x21, edx & (1 << 29 | 1 << 20 | 1 << 11)), (0x21, 1 << 29 | 1 << 20 | 1 << 11), "LM, NX, SYSCALL");
    }

    #[test]
    fn nothing_is_listed_that_is_not_there() {
        let policy = policy("max", &[]).unwrap();
        assert!(policy.has(feature::SMAP));
        for (names, feature) in features::NOT_YET {
            assert!(!policy.has(*feature), "{names:?}");
        }
        for row in TABLE.iter().filter(|row| !(row.host)()) {
            assert!(!policy.has(row.feature), "{:?}", row.names);
        }
    }

    #[test]
    fn each_family_has_what_it_brought_and_nothing_later() {
        let has = |name: &str| {
            let policy = policy(name, &[]).unwrap();
            [feature::SSE4_2, feature::XSAVE, feature::AVX, feature::BMI2, feature::SMAP, feature::XSAVEC].map(|f| policy.has(f))
        };
        assert_eq!(has("Nehalem"), [true, false, false, false, false, false]);
        assert_eq!(has("SandyBridge"), [true, true, true, false, false, false]);
        assert_eq!(has("haswell"), [true, true, true, true, false, false], "in any case of letters");
        assert_eq!(has("Skylake-Client"), [true; 6]);
        assert!(!policy("Nehalem", &[]).unwrap().has(feature::AVX2), "what stands on AVX goes with it");
        assert!(policy("Nehalem", &[("avx", true), ("xsave", true)]).unwrap().has(feature::AVX), "+flag adds");
    }

    #[test]
    fn the_layout_of_xsave_follows_xcr0() {
        let max = policy("max", &[]).unwrap();
        assert_eq!(max.xcr0_allowed(), 7);
        assert_eq!(max.query(0xd, 0, &ASKER), [7, 576, 832, 0]);
        assert_eq!(max.query(0xd, 0, &Asker { xcr0: 7, ..ASKER }), [7, 832, 832, 0]);
        assert_eq!(max.query(0xd, 1, &Asker { xcr0: 7, ..ASKER })[1], 832, "compacted");
        assert_eq!(max.query(0xd, 2, &ASKER), [256, 576, 0, 0]);
        let without = policy("max", &[("avx", false)]).unwrap();
        assert_eq!((without.xcr0_allowed(), without.query(0xd, 0, &ASKER)), (3, [3, 576, 576, 0]));
        assert!(!without.has(feature::AVX2) && !without.has(feature::FMA), "they stand on AVX");
        assert!(without.has(feature::BMI2), "it does not");
    }

    #[test]
    fn flags_switch_features_under_any_spelling() {
        let policy = policy("qemu64", &[("SMAP", true), ("sse4_2", false), ("avx", false)]).unwrap();
        assert!(policy.has(feature::SMAP) && !policy.has(feature::SSE4_2));
        assert_ne!(policy.cr4_allowed() & 1 << 21, 0);
    }

    #[test]
    fn taking_a_base_away_takes_what_stands_on_it() {
        let policy = policy("max", &[("xsave", false), ("sse2", false)]).unwrap();
        assert!(!policy.has(feature::XSAVEC) && !policy.has(feature::SSE3) && !policy.has(feature::SSE4_2));
        assert_eq!(policy.query(0xd, 0, &ASKER), [0; 4]);
    }

    #[test]
    fn unknown_names_are_answered_with_the_nearest() {
        let says = |result: Result<CpuidPolicy, CpuError>| result.unwrap_err().to_string();
        assert!(says(policy("qemu46", &[])).contains("“qemu64”"));
        assert!(says(policy("max", &[("rdrnd", true)])).contains("“rdrand”"));
        assert!(says(policy("max", &[("avx512f", true)])).contains("yet"));
    }

    #[test]
    fn dynamic_bits_follow_the_asker() {
        let policy = policy("qemu64", &[]).unwrap();
        let off = Asker { osxsave: false, apic_enabled: false, long_mode: false, ..ASKER };
        assert_eq!(policy.query(1, 0, &ASKER)[2] >> 27 & 1, 1);
        assert_eq!(policy.query(1, 0, &off)[2] >> 27 & 1, 0);
        assert_eq!(policy.query(1, 0, &off)[3] >> 9 & 1, 0);
        assert_eq!(policy.query(0x8000_0001, 0, &off)[3] >> 11 & 1, 0);
    }

    #[test]
    fn topology_and_clocks_are_told() {
        let policy = policy("qemu64", &[]).unwrap();
        assert_eq!(policy.query(0xb, 0, &ASKER), [1, 2, 0x100, 3]);
        assert_eq!(policy.query(0xb, 1, &ASKER), [2, 4, 0x201, 3]);
        assert_eq!(policy.query(0xb, 2, &ASKER), [0, 0, 2, 3]);
        assert_eq!(policy.query(1, 0, &ASKER)[1], 3 << 24 | 4 << 16 | 8 << 8);
        let [denominator, numerator, crystal, _] = policy.query(0x15, 0, &ASKER).map(u64::from);
        assert_eq!(crystal * numerator / denominator, TSC_HZ);
        let [_, ebx, ecx, _] = policy.query(4, 3, &ASKER).map(u64::from);
        assert_eq!(((ebx >> 22) + 1) * ((ebx & 0xfff) + 1) * (ecx + 1), 8 << 20, "L3");
    }

    #[test]
    fn numbers_past_the_last_leaf_answer_like_it() {
        let policy = policy("qemu64", &[]).unwrap();
        assert_eq!(policy.query(0x1234, 0, &ASKER), policy.query(LAST_BASIC, 0, &ASKER));
        assert_eq!(policy.query(0x9000_0000, 0, &ASKER), policy.query(LAST_BASIC, 0, &ASKER));
        assert_eq!(policy.query(0x4000_0200, 0, &ASKER), [0; 4], "no hypervisor here");
    }
}
