//! The x86 architectural state, as the Intel and AMD manuals define it, independent of who runs it.

mod apic;
pub mod paravirt;
mod state;

pub use apic::{ApicState, ApicTimerMode};
pub use state::{Activity, Descriptor, FpuState, MsrState, Segment, SegmentRegister, TableRegister, X86State};

/// The processor signature: EDX after reset and INIT, and EAX of CPUID's leaf 1. Family 6, model 2Ch, stepping 2 (Westmere).
pub const PROCESSOR_SIGNATURE: u32 = 0x0002_06c2;
/// The frequency of the guest's time stamp counter: 1 GHz × guest time, so that one tick is one nanosecond.
/// CPUID leaves 15h/16h tell the guest, so that it need not calibrate.
pub const TSC_HZ: u64 = 1_000_000_000;
/// The frequency of the local APIC's timer before its divider.
pub const APIC_TIMER_HZ: u64 = 1_000_000_000;
