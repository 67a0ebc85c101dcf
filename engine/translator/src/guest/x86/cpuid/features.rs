//! The table of CPU features: where CPUID shows each, under which names the command line knows it, and who gets it.

use super::super::host_fp::{self, Extension};

/// A word of CPUID that holds feature bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    Leaf1Ecx,
    Leaf1Edx,
    Leaf6Eax,
    Leaf7Ebx,
    Leaf7Ecx,
    Leaf7Edx,
    Leaf7Sub2Edx,
    XsaveEax,
    Extended1Ecx,
    Extended1Edx,
    PowerEdx,
    /// Not CPUID's: which hypervisors' leaves there are.
    Interfaces,
    /// EAX of KVM's leaf 1.
    KvmEax,
    /// EAX of Microsoft's leaf 3.
    HyperVEax,
    /// EDX of Microsoft's leaf 3.
    HyperVEdx,
    /// EAX of Microsoft's leaf 4.
    HyperVAdvice,
}

const WORDS: usize = Word::HyperVAdvice as usize + 1;

/// One feature bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature(Word, u8);

/// Which model has a feature without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// Every model whose family had it.
    Always,
    /// Not the default: it is exact, but it costs speed.
    Max,
    /// None: guests of one kind only want it, and others would be misled.
    Asked,
}

/// One row of the table.
pub struct Row {
    pub feature: Feature,
    pub names: &'static [&'static str],
    pub offer: Offer,
    /// What it builds on.
    pub needs: Option<Feature>,
    /// Whether it can be had on this host.
    pub host: fn() -> bool,
}

/// The features, by the manuals' names.
#[allow(missing_docs, reason = "the manuals' names")]
pub mod feature {
    use super::{Feature, Word::*};

    pub const SSE3: Feature = Feature(Leaf1Ecx, 0);
    pub const PCLMULQDQ: Feature = Feature(Leaf1Ecx, 1);
    pub const SSSE3: Feature = Feature(Leaf1Ecx, 9);
    pub const FMA: Feature = Feature(Leaf1Ecx, 12);
    pub const CX16: Feature = Feature(Leaf1Ecx, 13);
    pub const PCID: Feature = Feature(Leaf1Ecx, 17);
    pub const SSE4_1: Feature = Feature(Leaf1Ecx, 19);
    pub const SSE4_2: Feature = Feature(Leaf1Ecx, 20);
    pub const X2APIC: Feature = Feature(Leaf1Ecx, 21);
    pub const MOVBE: Feature = Feature(Leaf1Ecx, 22);
    pub const POPCNT: Feature = Feature(Leaf1Ecx, 23);
    pub const TSC_DEADLINE: Feature = Feature(Leaf1Ecx, 24);
    pub const AES: Feature = Feature(Leaf1Ecx, 25);
    pub const XSAVE: Feature = Feature(Leaf1Ecx, 26);
    pub const AVX: Feature = Feature(Leaf1Ecx, 28);
    pub const F16C: Feature = Feature(Leaf1Ecx, 29);
    pub const RDRAND: Feature = Feature(Leaf1Ecx, 30);
    pub const HYPERVISOR: Feature = Feature(Leaf1Ecx, 31);
    pub const FPU: Feature = Feature(Leaf1Edx, 0);
    pub const VME: Feature = Feature(Leaf1Edx, 1);
    pub const DE: Feature = Feature(Leaf1Edx, 2);
    pub const PSE: Feature = Feature(Leaf1Edx, 3);
    pub const TSC: Feature = Feature(Leaf1Edx, 4);
    pub const MSR: Feature = Feature(Leaf1Edx, 5);
    pub const PAE: Feature = Feature(Leaf1Edx, 6);
    pub const MCE: Feature = Feature(Leaf1Edx, 7);
    pub const CX8: Feature = Feature(Leaf1Edx, 8);
    pub const APIC: Feature = Feature(Leaf1Edx, 9);
    pub const SEP: Feature = Feature(Leaf1Edx, 11);
    pub const MTRR: Feature = Feature(Leaf1Edx, 12);
    pub const PGE: Feature = Feature(Leaf1Edx, 13);
    pub const MCA: Feature = Feature(Leaf1Edx, 14);
    pub const CMOV: Feature = Feature(Leaf1Edx, 15);
    pub const PAT: Feature = Feature(Leaf1Edx, 16);
    pub const PSE36: Feature = Feature(Leaf1Edx, 17);
    pub const CLFLUSH: Feature = Feature(Leaf1Edx, 19);
    pub const MMX: Feature = Feature(Leaf1Edx, 23);
    pub const FXSR: Feature = Feature(Leaf1Edx, 24);
    pub const SSE: Feature = Feature(Leaf1Edx, 25);
    pub const SSE2: Feature = Feature(Leaf1Edx, 26);
    pub const HTT: Feature = Feature(Leaf1Edx, 28);
    pub const ARAT: Feature = Feature(Leaf6Eax, 2);
    pub const FSGSBASE: Feature = Feature(Leaf7Ebx, 0);
    pub const TSC_ADJUST: Feature = Feature(Leaf7Ebx, 1);
    pub const BMI1: Feature = Feature(Leaf7Ebx, 3);
    pub const AVX2: Feature = Feature(Leaf7Ebx, 5);
    pub const FDP_EXCPTN_ONLY: Feature = Feature(Leaf7Ebx, 6);
    pub const SMEP: Feature = Feature(Leaf7Ebx, 7);
    pub const BMI2: Feature = Feature(Leaf7Ebx, 8);
    pub const ERMS: Feature = Feature(Leaf7Ebx, 9);
    pub const INVPCID: Feature = Feature(Leaf7Ebx, 10);
    pub const ZERO_FCS_FDS: Feature = Feature(Leaf7Ebx, 13);
    pub const RDSEED: Feature = Feature(Leaf7Ebx, 18);
    pub const ADX: Feature = Feature(Leaf7Ebx, 19);
    pub const SMAP: Feature = Feature(Leaf7Ebx, 20);
    pub const SHA: Feature = Feature(Leaf7Ebx, 29);
    pub const UMIP: Feature = Feature(Leaf7Ecx, 2);
    pub const VAES: Feature = Feature(Leaf7Ecx, 9);
    pub const VPCLMULQDQ: Feature = Feature(Leaf7Ecx, 10);
    pub const FSRM: Feature = Feature(Leaf7Edx, 4);
    pub const SPEC_CTRL: Feature = Feature(Leaf7Edx, 26);
    pub const STIBP: Feature = Feature(Leaf7Edx, 27);
    pub const ARCH_CAPABILITIES: Feature = Feature(Leaf7Edx, 29);
    pub const SSBD: Feature = Feature(Leaf7Edx, 31);
    pub const BHI_CTRL: Feature = Feature(Leaf7Sub2Edx, 4);
    pub const XSAVEOPT: Feature = Feature(XsaveEax, 0);
    pub const XSAVEC: Feature = Feature(XsaveEax, 1);
    pub const XGETBV1: Feature = Feature(XsaveEax, 2);
    pub const XSAVES: Feature = Feature(XsaveEax, 3);
    pub const LAHF_LM: Feature = Feature(Extended1Ecx, 0);
    pub const LZCNT: Feature = Feature(Extended1Ecx, 5);
    pub const PREFETCHW: Feature = Feature(Extended1Ecx, 8);
    pub const SYSCALL: Feature = Feature(Extended1Edx, 11);
    pub const NX: Feature = Feature(Extended1Edx, 20);
    pub const PDPE1GB: Feature = Feature(Extended1Edx, 26);
    pub const RDTSCP: Feature = Feature(Extended1Edx, 27);
    pub const LM: Feature = Feature(Extended1Edx, 29);
    pub const INVARIANT_TSC: Feature = Feature(PowerEdx, 8);
    pub const KVM: Feature = Feature(Interfaces, 0);
    pub const KVM_NOP_IO_DELAY: Feature = Feature(KvmEax, 1);
    pub const KVM_CLOCK: Feature = Feature(KvmEax, 3);
    pub const KVM_STEAL_TIME: Feature = Feature(KvmEax, 5);
    pub const KVM_PV_EOI: Feature = Feature(KvmEax, 6);
    pub const KVM_PV_UNHALT: Feature = Feature(KvmEax, 7);
    pub const KVM_PV_TLB_FLUSH: Feature = Feature(KvmEax, 9);
    pub const KVM_PV_IPI: Feature = Feature(KvmEax, 11);
    pub const KVM_PV_SCHED_YIELD: Feature = Feature(KvmEax, 13);
    pub const KVM_CLOCK_STABLE: Feature = Feature(KvmEax, 24);
    pub const HYPER_V: Feature = Feature(Interfaces, 1);
    pub const HV_RUNTIME: Feature = Feature(HyperVEax, 0);
    pub const HV_SYNIC: Feature = Feature(HyperVEax, 2);
    pub const HV_STIMER: Feature = Feature(HyperVEax, 3);
    pub const HV_VAPIC: Feature = Feature(HyperVEax, 4);
    pub const HV_VPINDEX: Feature = Feature(HyperVEax, 6);
    pub const HV_RESET: Feature = Feature(HyperVEax, 7);
    pub const HV_TIME: Feature = Feature(HyperVEax, 9);
    pub const HV_FREQUENCIES: Feature = Feature(HyperVEax, 11);
    pub const HV_CRASH: Feature = Feature(HyperVEdx, 10);
    pub const HV_STIMER_DIRECT: Feature = Feature(HyperVEdx, 19);
    pub const HV_TLBFLUSH: Feature = Feature(HyperVAdvice, 2);
    pub const HV_RELAXED: Feature = Feature(HyperVAdvice, 5);
    pub const HV_IPI: Feature = Feature(HyperVAdvice, 10);
}

impl Row {
    /// Whether it costs no speed.
    pub fn is_free(&self) -> bool {
        self.offer == Offer::Always
    }
}

use feature as f;

const fn row(feature: Feature, names: &'static [&'static str]) -> Row {
    Row { feature, names, offer: Offer::Always, needs: None, host: anywhere }
}

const fn on(feature: Feature, names: &'static [&'static str], needs: Feature) -> Row {
    Row { feature, names, offer: Offer::Always, needs: Some(needs), host: anywhere }
}

/// What the host's own instructions carry out.
const fn by_host(feature: Feature, names: &'static [&'static str], needs: Feature, host: fn() -> bool) -> Row {
    Row { feature, names, offer: Offer::Always, needs: Some(needs), host }
}

/// Of Microsoft's interface: any of them brings its leaves.
const fn asked(feature: Feature, names: &'static [&'static str]) -> Row {
    Row { feature, names, offer: Offer::Asked, needs: Some(f::HYPERVISOR), host: anywhere }
}

fn anywhere() -> bool {
    true
}

/// All that can be offered. A row stands below what it needs.
pub const TABLE: &[Row] = &[
    row(f::FPU, &["fpu"]),
    row(f::DE, &["de"]),
    row(f::PSE, &["pse"]),
    row(f::TSC, &["tsc"]),
    row(f::MSR, &["msr"]),
    row(f::PAE, &["pae"]),
    row(f::MCE, &["mce"]),
    row(f::CX8, &["cx8"]),
    row(f::APIC, &["apic"]),
    row(f::SEP, &["sep"]),
    row(f::MTRR, &["mtrr"]),
    row(f::PGE, &["pge"]),
    on(f::MCA, &["mca"], f::MCE),
    row(f::CMOV, &["cmov"]),
    row(f::PAT, &["pat"]),
    on(f::PSE36, &["pse36"], f::PSE),
    row(f::CLFLUSH, &["clflush", "clfsh"]),
    on(f::MMX, &["mmx"], f::FPU),
    on(f::FXSR, &["fxsr"], f::FPU),
    on(f::SSE, &["sse"], f::FXSR),
    on(f::SSE2, &["sse2"], f::SSE),
    row(f::HTT, &["ht", "htt"]),
    on(f::SSE3, &["sse3", "pni"], f::SSE2),
    on(f::SSSE3, &["ssse3"], f::SSE3),
    on(f::SSE4_1, &["sse4.1"], f::SSSE3),
    on(f::SSE4_2, &["sse4.2"], f::SSE4_1),
    row(f::POPCNT, &["popcnt"]),
    on(f::CX16, &["cx16"], f::CX8),
    on(f::X2APIC, &["x2apic"], f::APIC),
    on(f::TSC_DEADLINE, &["tsc-deadline", "tsc-deadline-timer"], f::APIC),
    on(f::XSAVE, &["xsave"], f::FXSR),
    on(f::XSAVEOPT, &["xsaveopt"], f::XSAVE),
    on(f::XSAVEC, &["xsavec"], f::XSAVE),
    on(f::XGETBV1, &["xgetbv1"], f::XSAVE),
    by_host(f::AES, &["aes", "aes-ni"], f::SSE2, || Extension::Aes.is_here()),
    by_host(f::PCLMULQDQ, &["pclmulqdq", "pclmuldq"], f::SSE2, || Extension::Pclmulqdq.is_here()),
    by_host(f::SHA, &["sha-ni"], f::SSE2, || Extension::Sha.is_here()),
    by_host(f::AVX, &["avx"], f::XSAVE, host_fp::available),
    on(f::AVX2, &["avx2"], f::AVX),
    by_host(f::FMA, &["fma"], f::AVX, || Extension::Fma.is_here()),
    by_host(f::F16C, &["f16c"], f::AVX, || Extension::F16c.is_here()),
    by_host(f::VAES, &["vaes"], f::AVX2, || Extension::Aes.is_here()),
    by_host(f::VPCLMULQDQ, &["vpclmulqdq"], f::AVX2, || Extension::Pclmulqdq.is_here()),
    row(f::MOVBE, &["movbe"]),
    row(f::LZCNT, &["abm", "lzcnt"]),
    row(f::BMI1, &["bmi1"]),
    row(f::BMI2, &["bmi2"]),
    row(f::ADX, &["adx"]),
    row(f::RDRAND, &["rdrand"]),
    row(f::RDSEED, &["rdseed"]),
    row(f::HYPERVISOR, &["hypervisor"]),
    row(f::ARAT, &["arat"]),
    row(f::TSC_ADJUST, &["tsc-adjust"]),
    row(f::FDP_EXCPTN_ONLY, &["fdp-excptn-only"]),
    row(f::ZERO_FCS_FDS, &["zero-fcs-fds"]),
    row(f::SMEP, &["smep"]),
    Row { feature: f::SMAP, names: &["smap"], offer: Offer::Max, needs: None, host: anywhere },
    row(f::UMIP, &["umip"]),
    row(f::ERMS, &["erms"]),
    row(f::FSRM, &["fsrm"]),
    row(f::SPEC_CTRL, &["spec-ctrl", "ibrs"]),
    row(f::STIBP, &["stibp"]),
    row(f::SSBD, &["ssbd"]),
    row(f::ARCH_CAPABILITIES, &["arch-capabilities"]),
    // Linux then sets a bit once instead of clearing the branch history in software at every system call.
    on(f::BHI_CTRL, &["bhi-ctrl"], f::SPEC_CTRL),
    row(f::PREFETCHW, &["3dnowprefetch"]),
    row(f::NX, &["nx", "xd"]),
    on(f::LM, &["lm"], f::PAE),
    on(f::LAHF_LM, &["lahf-lm"], f::LM),
    on(f::SYSCALL, &["syscall"], f::LM),
    on(f::PDPE1GB, &["pdpe1gb"], f::LM),
    on(f::PCID, &["pcid"], f::LM),
    on(f::INVPCID, &["invpcid"], f::LM),
    on(f::FSGSBASE, &["fsgsbase"], f::LM),
    on(f::RDTSCP, &["rdtscp"], f::TSC),
    on(f::INVARIANT_TSC, &["invtsc"], f::TSC),
    on(f::KVM, &["kvm"], f::HYPERVISOR),
    on(f::KVM_NOP_IO_DELAY, &["kvm-nopiodelay"], f::KVM),
    on(f::KVM_CLOCK, &["kvmclock"], f::KVM),
    on(f::KVM_CLOCK_STABLE, &["kvmclock-stable-bit"], f::KVM_CLOCK),
    on(f::KVM_STEAL_TIME, &["kvm-steal-time"], f::KVM),
    on(f::KVM_PV_EOI, &["kvm-pv-eoi"], f::KVM),
    on(f::KVM_PV_UNHALT, &["kvm-pv-unhalt"], f::KVM),
    on(f::KVM_PV_TLB_FLUSH, &["kvm-pv-tlb-flush"], f::KVM_STEAL_TIME),
    on(f::KVM_PV_IPI, &["kvm-pv-ipi"], f::KVM),
    on(f::KVM_PV_SCHED_YIELD, &["kvm-pv-sched-yield"], f::KVM),
    asked(f::HV_RELAXED, &["hv-relaxed"]),
    asked(f::HV_VAPIC, &["hv-vapic"]),
    asked(f::HV_TIME, &["hv-time"]),
    asked(f::HV_VPINDEX, &["hv-vpindex"]),
    asked(f::HV_RUNTIME, &["hv-runtime"]),
    asked(f::HV_RESET, &["hv-reset"]),
    asked(f::HV_CRASH, &["hv-crash"]),
    asked(f::HV_FREQUENCIES, &["hv-frequencies"]),
    asked(f::HV_SYNIC, &["hv-synic"]),
    asked(f::HV_STIMER, &["hv-stimer"]),
    asked(f::HV_STIMER_DIRECT, &["hv-stimer-direct"]),
    asked(f::HV_TLBFLUSH, &["hv-tlbflush"]),
    asked(f::HV_IPI, &["hv-ipi"]),
];

/// What guests of Microsoft's interface take for granted beside a feature: asking for one without the others is a mistake, as in QEMU.
pub const TOGETHER: &[(Feature, &[Feature])] = &[
    (f::HV_SYNIC, &[f::HV_VPINDEX]),
    (f::HV_STIMER, &[f::HV_VPINDEX, f::HV_SYNIC, f::HV_TIME]),
    (f::HV_STIMER_DIRECT, &[f::HV_STIMER]),
    (f::HV_TLBFLUSH, &[f::HV_VPINDEX]),
    (f::HV_IPI, &[f::HV_VPINDEX]),
];

/// Features that exist and that this backend does not have: `-flag` is always true of them, `+flag` is refused.
pub const NOT_YET: &[(&[&str], Feature)] = &[
    (&["vme"], f::VME),
    (&["monitor"], Feature(Word::Leaf1Ecx, 3)),
    (&["vmx"], Feature(Word::Leaf1Ecx, 5)),
    (&["smx"], Feature(Word::Leaf1Ecx, 6)),
    (&["est"], Feature(Word::Leaf1Ecx, 7)),
    (&["pdcm"], Feature(Word::Leaf1Ecx, 15)),
    (&["ds"], Feature(Word::Leaf1Edx, 21)),
    (&["acpi"], Feature(Word::Leaf1Edx, 22)),
    (&["hle"], Feature(Word::Leaf7Ebx, 4)),
    (&["rtm"], Feature(Word::Leaf7Ebx, 11)),
    (&["mpx"], Feature(Word::Leaf7Ebx, 14)),
    (&["avx512f"], Feature(Word::Leaf7Ebx, 16)),
    (&["clflushopt"], Feature(Word::Leaf7Ebx, 23)),
    (&["clwb"], Feature(Word::Leaf7Ebx, 24)),
    (&["pku"], Feature(Word::Leaf7Ecx, 3)),
    (&["la57"], Feature(Word::Leaf7Ecx, 16)),
    (&["rdpid"], Feature(Word::Leaf7Ecx, 22)),
    (&["md-clear"], Feature(Word::Leaf7Edx, 10)),
    (&["xsaves"], f::XSAVES),
    (&["svm"], Feature(Word::Extended1Ecx, 2)),
    (&["sse4a"], Feature(Word::Extended1Ecx, 6)),
    (&["xop"], Feature(Word::Extended1Ecx, 11)),
    (&["fma4"], Feature(Word::Extended1Ecx, 16)),
    (&["mmxext"], Feature(Word::Extended1Edx, 22)),
    (&["3dnowext"], Feature(Word::Extended1Edx, 30)),
    (&["3dnow"], Feature(Word::Extended1Edx, 31)),
    (&["kvm-asyncpf"], Feature(Word::KvmEax, 4)),
    (&["kvm-asyncpf-vmexit"], Feature(Word::KvmEax, 10)),
    (&["kvm-poll-control"], Feature(Word::KvmEax, 12)),
    (&["kvm-asyncpf-int"], Feature(Word::KvmEax, 14)),
    (&["kvm-msi-ext-dest-id"], Feature(Word::KvmEax, 15)),
    (&["hv-reenlightenment"], Feature(Word::HyperVEax, 13)),
    (&["hv-xmm-input"], Feature(Word::HyperVEdx, 4)),
    (&["hv-syndbg"], Feature(Word::HyperVEdx, 1)),
    (&["hv-tlbflush-ext"], Feature(Word::HyperVEdx, 14)),
    (&["hv-avic"], Feature(Word::HyperVAdvice, 9)),
    (&["hv-evmcs"], Feature(Word::HyperVAdvice, 14)),
    (&["hv-no-nonarch-coresharing"], Feature(Word::HyperVAdvice, 18)),
];

/// The feature bits of one CPU.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FeatureSet([u32; WORDS]);

impl FeatureSet {
    pub fn word(&self, word: Word) -> u32 {
        self.0[word as usize]
    }

    pub fn has(&self, Feature(word, bit): Feature) -> bool {
        self.0[word as usize] >> bit & 1 != 0
    }

    pub fn set(&mut self, Feature(word, bit): Feature, on: bool) {
        let word = &mut self.0[word as usize];
        *word = *word & !(1 << bit) | u32::from(on) << bit;
    }

    /// Without its base a feature cannot be: `-sse2` takes SSE3 with it.
    pub fn drop_what_lacks_its_base(&mut self) {
        for row in TABLE {
            if row.needs.is_some_and(|base| !self.has(base)) {
                self.set(row.feature, false);
            }
        }
    }
}
