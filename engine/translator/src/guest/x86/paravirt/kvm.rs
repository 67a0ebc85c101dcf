//! KVM's registers: the clock, the calendar, stolen time. See: Linux, Documentation/virt/kvm/x86/msr.rst.

use super::super::cpu::Cpu;
use super::super::cpuid::feature;
use super::{ENABLED, Refused, exchange, lazy_end, put};
use crate::watch::tally::Happening;
use engine_base::{ClockMode, VmTime};
use engine_cpu::x86::TSC_HZ;
use engine_cpu::x86::paravirt::kvm::msr;
use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Seek};

/// `kvm_steal_time`: nanoseconds stolen, a version that is odd while they are written, flags, and what other CPUs are told
/// about this one.
mod steal {
    pub const VERSION: u64 = 8;
    pub const PREEMPTED: u64 = 16;
    /// In `PREEMPTED`: this CPU does not run.
    pub const DOES_NOT_RUN: u8 = 1;
    /// In `PREEMPTED`, set by other CPUs instead of an interrupt: drop all translations before running on.
    pub const FLUSH: u8 = 2;
    /// The record is aligned to its size of 64 bytes.
    pub const RESERVED: u64 = 0x3e;
}

/// How often stolen time is looked up, in nanoseconds: a guest's scheduler accounts by its ticks.
const STEAL_PERIOD: u64 = 10_000_000;

pub(super) fn read(cpu: &mut Cpu, number: u32) -> Option<u64> {
    let (has, kvm) = (|feature| cpu.cpuid.has(feature), &cpu.paravirt.kvm);
    Some(match number {
        msr::WALL_CLOCK | msr::WALL_CLOCK_OLD if has(feature::KVM_CLOCK) => kvm.wall_clock,
        msr::SYSTEM_TIME | msr::SYSTEM_TIME_OLD if has(feature::KVM_CLOCK) => kvm.system_time,
        msr::STEAL_TIME if has(feature::KVM_STEAL_TIME) => kvm.steal_time,
        msr::PV_EOI if has(feature::KVM_PV_EOI) => kvm.pv_eoi,
        _ => return None,
    })
}

pub(super) fn write(cpu: &mut Cpu, number: u32, value: u64) -> Option<Result<(), Refused>> {
    let has = |feature| cpu.cpuid.has(feature);
    match number {
        msr::WALL_CLOCK | msr::WALL_CLOCK_OLD if has(feature::KVM_CLOCK) => {
            cpu.paravirt.kvm.wall_clock = value;
            write_wall_clock(cpu, value);
        }
        msr::SYSTEM_TIME | msr::SYSTEM_TIME_OLD if has(feature::KVM_CLOCK) => {
            cpu.paravirt.kvm.system_time = value;
            write_system_time(cpu);
        }
        msr::STEAL_TIME if has(feature::KVM_STEAL_TIME) => {
            if value & steal::RESERVED != 0 {
                return Some(Err(Refused));
            }
            cpu.paravirt.kvm.steal_time = value;
            cpu.steal_meter = StealMeter::default();
            note_stolen_time(cpu);
        }
        msr::PV_EOI if has(feature::KVM_PV_EOI) => {
            if value & 2 != 0 {
                return Some(Err(Refused));
            }
            lazy_end::settle(cpu);
            cpu.paravirt.kvm.pv_eoi = value;
        }
        _ => return None,
    }
    Some(Ok(()))
}

// ---- Clocks ----------------------------------------------------------------------------------------------------

/// `pvclock_vcpu_time_info`: a time stamp, the time it stands for, and how the one becomes the other.
pub(super) fn write_system_time(cpu: &mut Cpu) {
    const STABLE: u8 = 1;
    let at = cpu.paravirt.kvm.system_time;
    if at & ENABLED == 0 {
        return;
    }
    let now = cpu.now();
    let stamp = now.ticks(TSC_HZ).wrapping_add(cpu.msr.tsc_offset);
    let (multiplier, shift) = nanos_a_tick(TSC_HZ);
    let flags = if cpu.cpuid.has(feature::KVM_CLOCK_STABLE) { STABLE } else { 0 };
    let mut info = [0u8; 32];
    // An even version: nobody is writing.
    info[0..4].copy_from_slice(&2u32.to_le_bytes());
    info[8..16].copy_from_slice(&stamp.to_le_bytes());
    info[16..24].copy_from_slice(&now.nanos().to_le_bytes());
    info[24..28].copy_from_slice(&multiplier.to_le_bytes());
    info[28] = shift as u8;
    info[29] = flags;
    put(&cpu.fabric.memory, at & !ENABLED, &info);
}

/// Nanoseconds = (ticks shifted left by the second) × the first / 2³².
const fn nanos_a_tick(hz: u64) -> (u32, i8) {
    let mut shift = 0;
    let mut scaled = (1_000_000_000u128 << 32) / hz as u128;
    while scaled >> 32 != 0 {
        scaled >>= 1;
        shift += 1;
    }
    while scaled >> 31 == 0 {
        scaled <<= 1;
        shift -= 1;
    }
    (scaled as u32, shift)
}

/// `pvclock_wall_clock`: the calendar's time at which the system's time was zero.
fn write_wall_clock(cpu: &mut Cpu, at: u64) {
    cpu.sync_clock();
    let clock = cpu.io().clock();
    let start = clock.wall_clock_nanos().saturating_sub(u128::from(clock.now().nanos()));
    let mut wall = [0u8; 12];
    wall[0..4].copy_from_slice(&2u32.to_le_bytes());
    wall[4..8].copy_from_slice(&((start / 1_000_000_000) as u32).to_le_bytes());
    wall[8..12].copy_from_slice(&((start % 1_000_000_000) as u32).to_le_bytes());
    put(&cpu.fabric.memory, at, &wall);
}

// ---- Stolen time -----------------------------------------------------------------------------------------------

/// How far the host's own account of this CPU's thread has been passed on.
#[derive(Debug, Default)]
pub(crate) struct StealMeter {
    waited: Option<u64>,
    next_look: VmTime,
}

/// Passes on for how long this CPU wanted to run and the host ran something else; not oftener than a scheduler asks.
pub(crate) fn note_stolen_time(cpu: &mut Cpu) {
    let at = cpu.paravirt.kvm.steal_time;
    if at & ENABLED == 0 {
        return;
    }
    let now = cpu.now();
    if now < cpu.steal_meter.next_look {
        return;
    }
    cpu.steal_meter.next_look = now.after_nanos(STEAL_PERIOD);
    // A counted machine must run the same way twice.
    if let ClockMode::Counted { .. } = cpu.io().clock().mode() {
        return;
    }
    let Some(times) = ThreadTimes::now() else { return };
    let before = cpu.steal_meter.waited.replace(times.waited_nanos);
    cpu.paravirt.kvm.stolen_nanos += times.waited_nanos.saturating_sub(before.unwrap_or(times.waited_nanos));
    let (memory, at) = (&cpu.fabric.memory, at & !ENABLED);
    let Ok(version) = memory.read_array(at.wrapping_add(steal::VERSION)).map(u32::from_le_bytes) else { return };
    let writing = version | 1;
    put(memory, at.wrapping_add(steal::VERSION), &writing.to_le_bytes());
    put(memory, at, &cpu.paravirt.kvm.stolen_nanos.to_le_bytes());
    put(memory, at.wrapping_add(steal::VERSION), &writing.wrapping_add(1).to_le_bytes());
}

/// What the host's scheduler says of the calling thread.
pub(super) struct ThreadTimes {
    /// It ran for so long, in nanoseconds.
    pub ran_nanos: u64,
    /// It could have run and did not, in nanoseconds.
    pub waited_nanos: u64,
}

impl ThreadTimes {
    /// `None` where the host does not say.
    pub fn now() -> Option<Self> {
        thread_local! {
            static ACCOUNT: RefCell<Option<File>> = RefCell::new(File::open("/proc/thread-self/schedstat").ok());
        }
        ACCOUNT.with_borrow_mut(|account| {
            let file = account.as_mut()?;
            let mut text = [0; 96];
            file.rewind().ok()?;
            let len = file.read(&mut text).ok()?;
            let mut numbers =
                std::str::from_utf8(&text[..len]).ok()?.split_ascii_whitespace().map_while(|word| word.parse().ok());
            Some(Self { ran_nanos: numbers.next()?, waited_nanos: numbers.next()? })
        })
    }
}

/// This CPU waits from now on: others need not send it their flushes, nor wait for it in spin locks.
pub(crate) fn about_to_wait(cpu: &mut Cpu) {
    let at = cpu.paravirt.kvm.steal_time;
    if at & ENABLED != 0 {
        exchange(&cpu.fabric.memory, (at & !ENABLED).wrapping_add(steal::PREEMPTED), steal::DOES_NOT_RUN);
    }
}

/// It goes on, and makes up for what others left for it to do.
pub(crate) fn back_from_waiting(cpu: &mut Cpu) {
    let at = cpu.paravirt.kvm.steal_time;
    if at & ENABLED == 0 {
        return;
    }
    let asked = exchange(&cpu.fabric.memory, (at & !ENABLED).wrapping_add(steal::PREEMPTED), 0).unwrap_or(0);
    if asked & steal::FLUSH != 0 {
        cpu.shared.tally.count(Happening::FlushedAfterWaiting);
        cpu.flush_tlb();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_nanoseconds() {
        for hz in [1_000_000_000, 2_400_000_000, 1_193_182, 999_999_999] {
            let (multiplier, shift) = nanos_a_tick(hz);
            for ticks in [1u64 << 20, 123_456_789_012] {
                let shifted = if shift >= 0 { u128::from(ticks) << shift } else { u128::from(ticks) >> -shift };
                let nanos = (shifted * u128::from(multiplier)) >> 32;
                let exact = u128::from(ticks) * 1_000_000_000 / u128::from(hz);
                assert!(nanos.abs_diff(exact) * 100_000_000 <= exact.max(1) + 400_000_000, "{hz} Hz: {nanos} and {exact}");
            }
        }
    }

    #[test]
    fn the_host_says_how_long_a_thread_ran() {
        let Some(before) = ThreadTimes::now() else { return println!("skipped: this host keeps no account of threads") };
        let started = std::time::Instant::now();
        while started.elapsed().as_millis() < 30 {
            std::hint::spin_loop();
        }
        let after = ThreadTimes::now().unwrap();
        let [ran, waited] = [after.ran_nanos - before.ran_nanos, after.waited_nanos - before.waited_nanos];
        assert!(ran + waited >= 20_000_000, "ran {ran}, waited {waited}");
    }
}
