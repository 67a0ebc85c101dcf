//! The state of a local APIC (Intel SDM volume 3, chapter 11).

use engine_base::VmTime;
use serde::{Deserialize, Serialize};

/// All registers of a local APIC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApicState {
    /// IA32_APIC_BASE: base, enable, x2APIC, boot processor.
    pub base: u64,
    /// APIC id (x2APIC: 32 bits).
    pub id: u32,
    /// Task priority.
    pub tpr: u8,
    /// Logical destination.
    pub ldr: u32,
    /// Destination format.
    pub dfr: u32,
    /// Spurious vector, software enable.
    pub svr: u32,
    /// In service.
    pub isr: [u32; 8],
    /// Trigger mode.
    pub tmr: [u32; 8],
    /// Requested.
    pub irr: [u32; 8],
    /// Error status, as last written back.
    pub esr: u32,
    /// Errors since then.
    pub pending_errors: u32,
    /// Interrupt command.
    pub icr: u64,
    /// Local vector table: CMCI, timer, thermal, performance, LINT0, LINT1, error.
    pub lvt: [u32; 7],
    /// Timer: initial count.
    pub timer_initial: u32,
    /// Timer: divide configuration.
    pub timer_divide: u32,
    /// When the count was started.
    pub timer_started: VmTime,
    /// IA32_TSC_DEADLINE; 0 is disarmed.
    pub tsc_deadline: u64,
}

/// What the timer does, from its local vector table entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApicTimerMode {
    /// Counts down once.
    OneShot,
    /// Counts down again and again.
    Periodic,
    /// Fires when the time stamp counter reaches IA32_TSC_DEADLINE.
    TscDeadline,
}
