//! What hypervisors offer guests beyond a PC, as numbers that all backends share: the registers and CPUID bits of KVM's and of
//! Microsoft's interface, and what a CPU holds for them.
//!
//! See: Linux, Documentation/virt/kvm/x86/{cpuid,msr,hypercalls}.rst; Microsoft, Hypervisor Top-Level Functional Specification
//! 6.0b (TLFS).

use serde::{Deserialize, Serialize};

/// KVM's interface.
#[allow(missing_docs, reason = "the specification's names")]
pub mod kvm {
    /// What leaf 4000_0000h answers, EBX ECX EDX.
    pub const SIGNATURE: &[u8; 12] = b"KVMKVMKVM\0\0\0";
    /// Where the leaves are, and where when Microsoft's come first.
    pub const LEAVES: u32 = 0x4000_0000;
    pub const LEAVES_BEHIND_MICROSOFT: u32 = 0x4000_0100;

    /// Model-specific registers.
    pub mod msr {
        pub const WALL_CLOCK_OLD: u32 = 0x11;
        pub const SYSTEM_TIME_OLD: u32 = 0x12;
        pub const WALL_CLOCK: u32 = 0x4b56_4d00;
        pub const SYSTEM_TIME: u32 = 0x4b56_4d01;
        pub const STEAL_TIME: u32 = 0x4b56_4d03;
        pub const PV_EOI: u32 = 0x4b56_4d04;
    }

    /// Hypercalls: the number in EAX.
    pub mod call {
        pub const KICK_CPU: u64 = 5;
        pub const SEND_IPI: u64 = 10;
        pub const SCHED_YIELD: u64 = 11;
    }

    /// What a hypercall answers when it does not answer.
    pub mod error {
        pub const NO_PERMISSION: i64 = -1;
        pub const INVALID: i64 = -22;
        pub const NO_SUCH_CALL: i64 = -1000;
    }
}

/// Microsoft's interface.
#[allow(missing_docs, reason = "the specification's names")]
pub mod hyperv {
    /// What leaf 4000_0000h answers, EBX ECX EDX.
    pub const SIGNATURE: &[u8; 12] = b"Microsoft Hv";
    /// What leaf 4000_0001h answers: "Hv#1".
    pub const INTERFACE: u32 = 0x3123_7648;

    /// Synthetic registers (TLFS, appendix C).
    pub mod msr {
        pub const GUEST_OS_ID: u32 = 0x4000_0000;
        pub const HYPERCALL: u32 = 0x4000_0001;
        pub const VP_INDEX: u32 = 0x4000_0002;
        pub const RESET: u32 = 0x4000_0003;
        pub const VP_RUNTIME: u32 = 0x4000_0010;
        pub const TIME_REF_COUNT: u32 = 0x4000_0020;
        pub const REFERENCE_TSC: u32 = 0x4000_0021;
        pub const TSC_FREQUENCY: u32 = 0x4000_0022;
        pub const APIC_FREQUENCY: u32 = 0x4000_0023;
        pub const EOI: u32 = 0x4000_0070;
        pub const ICR: u32 = 0x4000_0071;
        pub const TPR: u32 = 0x4000_0072;
        pub const VP_ASSIST_PAGE: u32 = 0x4000_0073;
        pub const SCONTROL: u32 = 0x4000_0080;
        pub const SVERSION: u32 = 0x4000_0081;
        pub const SIEFP: u32 = 0x4000_0082;
        pub const SIMP: u32 = 0x4000_0083;
        pub const EOM: u32 = 0x4000_0084;
        pub const SINT0: u32 = 0x4000_0090;
        pub const SINT15: u32 = 0x4000_009f;
        pub const STIMER0_CONFIG: u32 = 0x4000_00b0;
        pub const STIMER3_COUNT: u32 = 0x4000_00b7;
        pub const CRASH_P0: u32 = 0x4000_0100;
        pub const CRASH_P4: u32 = 0x4000_0104;
        pub const CRASH_CTL: u32 = 0x4000_0105;
    }

    /// Hypercalls: the low half of the input value.
    pub mod call {
        pub const FLUSH_VIRTUAL_ADDRESS_SPACE: u16 = 0x2;
        pub const FLUSH_VIRTUAL_ADDRESS_LIST: u16 = 0x3;
        pub const NOTIFY_LONG_SPIN_WAIT: u16 = 0x8;
        pub const SEND_SYNTHETIC_CLUSTER_IPI: u16 = 0xb;
        pub const FLUSH_VIRTUAL_ADDRESS_SPACE_EX: u16 = 0x13;
        pub const FLUSH_VIRTUAL_ADDRESS_LIST_EX: u16 = 0x14;
        pub const SEND_SYNTHETIC_CLUSTER_IPI_EX: u16 = 0x15;
        pub const POST_MESSAGE: u16 = 0x5c;
        pub const SIGNAL_EVENT: u16 = 0x5d;
    }

    /// The low half of a hypercall's result.
    pub mod status {
        pub const SUCCESS: u16 = 0;
        pub const INVALID_HYPERCALL_CODE: u16 = 2;
        pub const INVALID_HYPERCALL_INPUT: u16 = 3;
        pub const INVALID_ALIGNMENT: u16 = 4;
        pub const INVALID_CONNECTION_ID: u16 = 0x12;
    }
}

/// What a CPU holds for both interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ParavirtState {
    /// KVM's.
    pub kvm: KvmState,
    /// Microsoft's, of this CPU.
    pub hyper_v: HyperVState,
    /// Microsoft's, of the whole machine: the same in each CPU's state.
    pub hyper_v_partition: HyperVPartition,
}

/// KVM's registers, as the guest wrote them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KvmState {
    /// Where the calendar's time was wanted.
    pub wall_clock: u64,
    /// Where this CPU's clock is; bit 0: it is in use.
    pub system_time: u64,
    /// Where the time is counted that other programs of the host took; bit 0: it is in use.
    pub steal_time: u64,
    /// Nanoseconds taken so far.
    pub stolen_nanos: u64,
    /// Where an interrupt's end need only be noted; bit 0: it is in use.
    pub pv_eoi: u64,
    /// Another CPU has kicked this one, which has not halted since.
    pub kicked: bool,
}

/// Microsoft's registers of the whole machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HyperVPartition {
    /// What the guest calls itself.
    pub guest_os_id: u64,
    /// The hypercall page; bit 0: it is in use, bit 1: it stays.
    pub hypercall: u64,
    /// The page of the reference time; bit 0: it is in use.
    pub reference_tsc: u64,
    /// What a crashed guest says of itself.
    pub crash: [u64; 5],
}

/// Microsoft's registers of one CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HyperVState {
    /// The page on which an interrupt's end need only be noted; bit 0: it is in use.
    pub vp_assist_page: u64,
    /// Bit 0: the synthetic interrupt controller is on.
    pub scontrol: u64,
    /// The page of event flags; bit 0: it is in use.
    pub siefp: u64,
    /// The page of messages; bit 0: it is in use.
    pub simp: u64,
    /// The sources of synthetic interrupts.
    pub sint: [u64; 16],
    /// The synthetic timers.
    pub timers: [SyntheticTimer; 4],
}

/// A synthetic timer (TLFS 12.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SyntheticTimer {
    /// Its configuration register.
    pub config: u64,
    /// Its count: a moment, or a period, in units of 100 ns.
    pub count: u64,
    /// When it is due next, in units of 100 ns; 0: it is not running.
    pub due: u64,
    /// When it was due, where its message still waits for room.
    pub unsent: Option<u64>,
}

impl Default for HyperVState {
    /// After a reset: all sources masked.
    fn default() -> Self {
        const MASKED: u64 = 1 << 16;
        Self { vp_assist_page: 0, scontrol: 0, siefp: 0, simp: 0, sint: [MASKED; 16], timers: [SyntheticTimer::default(); 4] }
    }
}
