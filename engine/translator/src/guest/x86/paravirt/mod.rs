//! What hypervisors offer guests beyond a PC: KVM's interface and, for those who ask, Microsoft's. Clocks are made from the one
//! clock that the time stamp counter follows, so that what is written into guest memory stays true without being touched again.
//!
//! * `kvm.rs`: KVM's clock, stolen time, and what a waiting CPU says of itself;
//! * `hyperv.rs`: Microsoft's registers, pages and reference time; `synthetic.rs`: its interrupt controller and timers;
//! * `hypercalls.rs`: VMCALL and VMMCALL for both; `lazy_end.rs`: ends of interrupts that need no register, for both.
//!
//! Left out: asynchronous page faults (no page of RAM is ever away), and the parts of Microsoft's interface that belong to
//! VMBus. Numbers and state are in [`engine_cpu::x86::paravirt`], which names the specifications. Addresses come from guests
//! and may point anywhere: where there is no RAM nothing is read or written.

mod hypercalls;
mod hyperv;
mod kvm;
mod lazy_end;
mod synthetic;

pub(crate) use hypercalls::handler;
pub(crate) use kvm::{StealMeter, about_to_wait, back_from_waiting, note_stolen_time};
pub(crate) use lazy_end::{offer as offer_lazy_end, settle as settle_lazy_end};
pub(crate) use synthetic::{loaded, service_timers};

use super::cpu::Cpu;
use engine_cpu::x86::paravirt::kvm::msr;
use engine_memory::GuestMemory;
use std::sync::atomic::{AtomicU8, Ordering};

/// The lowest bit of a register that holds an address: what is there is in use.
const ENABLED: u64 = 1;
/// Where the page is that such a register names.
const PAGE: u64 = !0xfff;

/// A value that a register does not take, or a register that cannot be read: #GP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

/// Reads a paravirtual register. `None`: this CPU has none of this number.
pub(crate) fn read(cpu: &mut Cpu, number: u32) -> Option<Result<u64, Refused>> {
    match number {
        msr::WALL_CLOCK_OLD | msr::SYSTEM_TIME_OLD | 0x4b56_4d00..=0x4b56_4dff => kvm::read(cpu, number).map(Ok),
        0x4000_0000..=0x4000_0fff => hyperv::read(cpu, number),
        _ => None,
    }
}

/// Writes a paravirtual register. `None`: this CPU has none of this number.
pub(crate) fn write(cpu: &mut Cpu, number: u32, value: u64) -> Option<Result<(), Refused>> {
    match number {
        msr::WALL_CLOCK_OLD | msr::SYSTEM_TIME_OLD | 0x4b56_4d00..=0x4b56_4dff => kvm::write(cpu, number, value),
        0x4000_0000..=0x4000_0fff => hyperv::write(cpu, number, value),
        _ => None,
    }
}

/// The time stamp counter's distance from the clock has changed: what guests compute from both is written anew.
pub(crate) fn time_stamp_moved(cpu: &mut Cpu) {
    kvm::write_system_time(cpu);
    hyperv::write_reference_page(cpu);
}

/// Writes guest-physical memory, as a device would. Where there is none the guest gets nothing.
fn put(memory: &GuestMemory, at: u64, bytes: &[u8]) {
    if memory.write(at, bytes).is_err() {
        engine_base::warn_limited!(target: "paravirt", at = format_args!("{at:#x}"), "a paravirtual page outside memory, ignored");
    }
}

/// Exchanges a byte of RAM in one step, for what several CPUs write. `None` where there is no RAM.
fn exchange(memory: &GuestMemory, at: u64, value: u8) -> Option<u8> {
    let (block, offset) = memory.find(at)?.write?;
    // SAFETY: `host_address` checks the offset, the block keeps the byte alive, and a byte is always aligned. Guest code and devices access it
    // by single instructions and volatile copies at most, as they do all guest memory.
    let old = unsafe { AtomicU8::from_ptr(block.host_address(offset)) }.swap(value, Ordering::SeqCst);
    block.note_write(offset, 1);
    Some(old)
}
