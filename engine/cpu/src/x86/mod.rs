//! The x86 architectural state, as the Intel and AMD manuals define it, independent of who runs it.

mod apic;
mod state;

pub use apic::{ApicState, ApicTimerMode};
pub use state::{Activity, Descriptor, FpuState, MsrState, Segment, SegmentRegister, TableRegister, X86State};

/// The frequency of the guest's time stamp counter: 1 GHz × guest time, so that one tick is one nanosecond.
/// CPUID leaves 15h/16h tell the guest, so that it need not calibrate.
pub const TSC_HZ: u64 = 1_000_000_000;
/// The frequency of the local APIC's timer before its divider.
pub const APIC_TIMER_HZ: u64 = 1_000_000_000;
