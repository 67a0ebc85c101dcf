//! The leaves of hypervisors: KVM's, and Microsoft's before them where its interface is asked for.
//! See: Linux, Documentation/virt/kvm/x86/cpuid.rst; Microsoft, Hypervisor Top-Level Functional Specification 6.0b, 2.4.

use super::features::{FeatureSet, Offer, TABLE, TOGETHER, Word};
use super::{CpuidPolicy, feature, text_words};
use engine_cpu::CpuError;
use engine_cpu::x86::paravirt::{hyperv, kvm};
use engine_cpu::x86::{APIC_TIMER_HZ, TSC_HZ};

/// Where no other hypervisor's interface is offered guests must not take us for one.
const NOBODY: &[u8; 12] = b"BellglassVM\0";
/// The timing leaf, which hypervisors share.
const TIMING: u32 = 0x4000_0010;
/// Build number and version (10.0) of the Windows Server whose interface this is.
const WINDOWS: [u32; 2] = [14393, 10 << 16];

/// What of Microsoft's leaves is more than a bit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `hv-vendor-id`: who says that he is the hypervisor.
    vendor: [u8; 12],
    /// `hv-spinlocks`: how often a guest tries a lock before it tells us; all ones is never.
    spinlock_tries: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { vendor: *hyperv::SIGNATURE, spinlock_tries: u32::MAX }
    }
}

impl Settings {
    /// Takes `hv-spinlocks=0x1fff` or `hv-vendor-id=text` over. `None` if `name` is neither.
    ///
    /// # Errors
    /// For a value that cannot be.
    pub fn set(&mut self, name: &str, value: &str) -> Option<Result<(), CpuError>> {
        match super::plain(name).as_str() {
            "hvspinlocks" => {
                let hexadecimal = value.strip_prefix("0x").or_else(|| value.strip_prefix("0X"));
                let tries = hexadecimal.map_or_else(|| value.parse(), |digits| u32::from_str_radix(digits, 16));
                match tries {
                    Ok(tries) if tries >= 0xfff => self.spinlock_tries = tries,
                    _ => return Some(Err(CpuError::Model(format!("{name}={value}: possible are 0xfff to 0xffffffff.")))),
                }
            }
            "hvvendorid" if value.len() <= self.vendor.len() => {
                self.vendor = [0; 12];
                self.vendor[..value.len()].copy_from_slice(value.as_bytes());
            }
            "hvvendorid" => return Some(Err(CpuError::Model(format!("{name}={value}: at most 12 letters are possible.")))),
            _ => return None,
        }
        Some(Ok(()))
    }

    fn were_given(&self) -> bool {
        *self != Self::default()
    }
}

/// Which interfaces there are follows from what is asked of them.
///
/// # Errors
/// When one of Microsoft's features is asked for without those that guests expect beside it.
pub fn settle(features: &mut FeatureSet, settings: &Settings) -> Result<(), CpuError> {
    for (one, others) in TOGETHER.iter().filter(|(one, _)| features.has(*one)) {
        if let Some(missing) = others.iter().find(|other| !features.has(**other)) {
            let name = |feature| TABLE.iter().find(|row| row.feature == feature).map_or("", |row| row.names[0]);
            let (one, missing) = (name(*one), name(*missing));
            return Err(CpuError::Model(format!("“{one}” works only together with “{missing}”. Ask for both: {one},{missing}.")));
        }
    }
    let asked = [Word::HyperVEax, Word::HyperVEdx, Word::HyperVAdvice].iter().any(|word| features.word(*word) != 0);
    features.set(feature::HYPER_V, features.has(feature::HYPERVISOR) && (asked || settings.were_given()));
    Ok(())
}

/// `hv-passthrough`: everything of Microsoft's that there is.
pub fn set_all_of_microsoft(features: &mut FeatureSet, on: bool) {
    for row in TABLE.iter().filter(|row| row.offer == Offer::Asked) {
        features.set(row.feature, on);
    }
}

/// EAX, EBX, ECX, EDX of a leaf from 4000_0000h on.
pub fn leaf(policy: &CpuidPolicy, leaf: u32) -> [u32; 4] {
    if !policy.has(feature::HYPERVISOR) {
        return [0; 4];
    }
    let microsoft = policy.has(feature::HYPER_V);
    let kvm = if microsoft { kvm::LEAVES_BEHIND_MICROSOFT } else { kvm::LEAVES };
    match leaf {
        0x4000_0000..=0x4000_0006 if microsoft => hyper_v_leaf(policy, leaf),
        _ if leaf == kvm && policy.has(feature::KVM) => {
            let [b, c, d] = text_words(kvm::SIGNATURE);
            [if microsoft { kvm + 1 } else { TIMING }, b, c, d]
        }
        _ if leaf == kvm + 1 && policy.has(feature::KVM) => {
            let mut eax = policy.features.word(Word::KvmEax);
            if policy.has(feature::KVM_CLOCK) {
                eax |= 1; // The same clock under its older numbers.
            }
            [eax, 0, 0, 0]
        }
        0x4000_0000 => {
            let [b, c, d] = text_words(NOBODY);
            [TIMING, b, c, d]
        }
        // kHz of the time stamp counter and of the APIC timer.
        TIMING if !microsoft => [(TSC_HZ / 1000) as u32, (APIC_TIMER_HZ / 1000) as u32, 0, 0],
        _ => [0; 4],
    }
}

fn hyper_v_leaf(policy: &CpuidPolicy, leaf: u32) -> [u32; 4] {
    let (has, word) = (|feature| policy.has(feature), |word| policy.features.word(word));
    match leaf {
        0x4000_0000 => {
            let [b, c, d] = text_words(&policy.hyper_v.vendor);
            [0x4000_0006, b, c, d]
        }
        0x4000_0001 => [hyperv::INTERFACE, 0, 0, 0],
        0x4000_0002 => [WINDOWS[0], WINDOWS[1], 0, 0],
        0x4000_0003 => {
            let mut eax = word(Word::HyperVEax) | 1 << 5; // The hypercall page.
            let (mut ebx, mut edx) = (0, word(Word::HyperVEdx));
            if has(feature::HV_TIME) {
                eax |= 1 << 1; // The reference counter beside its page.
            }
            if has(feature::HV_SYNIC) {
                ebx |= 1 << 4 | 1 << 5; // To post messages and to signal events.
            }
            if has(feature::HV_FREQUENCIES) {
                edx |= 1 << 8;
            }
            [eax, ebx, 0, edx]
        }
        0x4000_0004 => {
            let mut eax = word(Word::HyperVAdvice);
            if has(feature::HV_TLBFLUSH) || has(feature::HV_IPI) {
                eax |= 1 << 11; // Sets of CPUs beyond 64.
            }
            if has(feature::HV_VAPIC) {
                eax |= 1 << 3; // Its registers rather than the APIC's page.
            }
            [eax, policy.hyper_v.spinlock_tries, 0, 0]
        }
        0x4000_0005 => [policy.topology.cpus(), policy.topology.cpus(), 0, 0],
        _ => [0; 4],
    }
}

#[cfg(test)]
mod tests {
    use super::super::Asker;
    use super::*;
    use engine_cpu::{CpuModel, Topology};

    const ASKER: Asker = Asker { apic_id: 0, osxsave: true, apic_enabled: true, long_mode: true, xcr0: 3, xss: 0 };

    fn policy(features: &[(&str, bool)]) -> Result<CpuidPolicy, CpuError> {
        let topology = Topology { sockets: 1, cores: 2, threads: 1 };
        let features = features.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect();
        CpuidPolicy::new(&CpuModel { name: "max".to_owned(), features, topology })
    }

    fn name(policy: &CpuidPolicy, leaf: u32) -> Vec<u8> {
        let [_, b, c, d] = policy.query(leaf, 0, &ASKER);
        [b, c, d].into_iter().flat_map(u32::to_le_bytes).collect()
    }

    #[test]
    fn kvm_is_there_unless_it_is_switched_off() {
        let plain = policy(&[]).unwrap();
        assert_eq!(name(&plain, 0x4000_0000), kvm::SIGNATURE);
        let all = [0, 1, 3, 5, 6, 7, 9, 11, 13, 24].iter().fold(0, |bits, bit| bits | 1 << bit);
        assert_eq!(plain.query(0x4000_0001, 0, &ASKER), [all, 0, 0, 0]);
        let hidden = policy(&[("kvm", false)]).unwrap();
        assert_eq!(name(&hidden, 0x4000_0000), NOBODY);
        assert_eq!(hidden.query(0x4000_0001, 0, &ASKER), [0; 4]);
        assert!(!hidden.has(feature::KVM_CLOCK), "what stands on it goes with it");
        let without = policy(&[("kvm-steal-time", false)]).unwrap();
        assert!(!without.has(feature::KVM_PV_TLB_FLUSH), "its record says who does not run");
        assert_eq!(policy(&[("hypervisor", false)]).unwrap().query(0x4000_0000, 0, &ASKER), [0; 4]);
    }

    #[test]
    fn microsofts_leaves_come_first_when_they_are_asked_for() {
        let windows = policy(&[("hv_relaxed", true), ("hv-time", true), ("hv-vpindex", true), ("hv-ipi", true)]).unwrap();
        assert_eq!(name(&windows, 0x4000_0000), hyperv::SIGNATURE);
        assert_eq!(windows.query(0x4000_0003, 0, &ASKER)[0], 1 << 1 | 1 << 5 | 1 << 6 | 1 << 9);
        assert_eq!(windows.query(0x4000_0004, 0, &ASKER)[0], 1 << 5 | 1 << 10 | 1 << 11);
        assert_eq!(windows.query(0x4000_0005, 0, &ASKER)[0], 2);
        assert_eq!(name(&windows, 0x4000_0100), kvm::SIGNATURE);
        assert!(!policy(&[]).unwrap().has(feature::HYPER_V));
        let tuned = policy(&[("hv-spinlocks=0x1fff", true), ("hv_vendor_id=Somebody", true)]).unwrap();
        assert_eq!(name(&tuned, 0x4000_0000), b"Somebody\0\0\0\0");
        assert_eq!(tuned.query(0x4000_0004, 0, &ASKER)[1], 0x1fff);
        assert!(policy(&[("hv-spinlocks=5", true)]).is_err() && policy(&[("hv-vendor-id=thirteen-long", true)]).is_err());
        assert!(policy(&[("hv-passthrough", true)]).unwrap().has(feature::HV_STIMER_DIRECT));
    }

    #[test]
    fn what_guests_expect_together_is_asked_for_together() {
        let refusal = policy(&[("hv-stimer", true), ("hv-vpindex", true), ("hv-synic", true)]).unwrap_err().to_string();
        assert!(refusal.contains("“hv-stimer”") && refusal.contains("“hv-time”"), "{refusal}");
        assert!(policy(&[("hv-stimer", true), ("hv-vpindex", true), ("hv-synic", true), ("hv-time", true)]).is_ok());
        assert!(policy(&[("hv-evmcs", true)]).unwrap_err().to_string().contains("yet"));
    }
}
