//! Microsoft's synthetic registers, but for the interrupt controller and its timers. See: TLFS, chapters 3, 7, 10 and 12.

use super::super::cpu::Cpu;
use super::super::cpuid::feature;
use super::super::lapic::ApicMode;
use super::kvm::ThreadTimes;
use super::{ENABLED, PAGE, Refused, lazy_end, put, synthetic};
use engine_base::ClockMode;
use engine_cpu::x86::paravirt::HyperVPartition;
use engine_cpu::x86::paravirt::hyperv::msr;
use engine_cpu::x86::{APIC_TIMER_HZ, TSC_HZ};
use std::sync::{MutexGuard, PoisonError};

/// The hypercall register's second bit: no more changes.
const LOCKED: u64 = 2;
/// The unit of reference time, in nanoseconds.
pub(super) const REFERENCE_NANOS: u64 = 100;
/// The crash register's only bit: the parameters are complete.
const CRASH_NOTIFY: u64 = 1 << 63;
/// What a guest finds on its hypercall page.
const HYPERCALL_PAGE: &[u8] = &[
    0x0f, 0x01, 0xc1, // vmcall
    0xc3, // ret
];
/// The PC's reset control register, and "everything, now".
const RESET_CONTROL: (u16, u32) = (0xcf9, 6);

/// A register of the local APIC's page.
mod apic {
    pub const TPR: u64 = 0x80;
    pub const EOI: u64 = 0xb0;
    pub const ICR_LOW: u64 = 0x300;
    pub const ICR_HIGH: u64 = 0x310;
}

pub(super) fn read(cpu: &mut Cpu, number: u32) -> Option<Result<u64, Refused>> {
    let has = |feature| cpu.cpuid.has(feature);
    Some(Ok(match number {
        msr::GUEST_OS_ID if has(feature::HYPER_V) => partition(cpu).guest_os_id,
        msr::HYPERCALL if has(feature::HYPER_V) => partition(cpu).hypercall,
        msr::VP_INDEX if has(feature::HV_VPINDEX) => cpu.index.into(),
        msr::RESET if has(feature::HV_RESET) => 0,
        msr::VP_RUNTIME if has(feature::HV_RUNTIME) => run_time(cpu),
        msr::TIME_REF_COUNT if has(feature::HV_TIME) => reference_time(cpu),
        msr::REFERENCE_TSC if has(feature::HV_TIME) => partition(cpu).reference_tsc,
        msr::TSC_FREQUENCY if has(feature::HV_FREQUENCIES) => TSC_HZ,
        msr::APIC_FREQUENCY if has(feature::HV_FREQUENCIES) => APIC_TIMER_HZ,
        msr::EOI if has(feature::HV_VAPIC) => return Some(Err(Refused)),
        msr::TPR if has(feature::HV_VAPIC) => apic_read(cpu, apic::TPR),
        msr::ICR if has(feature::HV_VAPIC) => apic_read(cpu, apic::ICR_HIGH) << 32 | apic_read(cpu, apic::ICR_LOW),
        msr::VP_ASSIST_PAGE if has(feature::HV_VAPIC) => cpu.paravirt.hyper_v.vp_assist_page,
        msr::SCONTROL..=msr::SINT15 if has(feature::HV_SYNIC) => return synthetic::read_controller(cpu, number),
        msr::STIMER0_CONFIG..=msr::STIMER3_COUNT if has(feature::HV_STIMER) => synthetic::read_timer(cpu, number),
        msr::CRASH_P0..=msr::CRASH_P4 if has(feature::HV_CRASH) => partition(cpu).crash[(number - msr::CRASH_P0) as usize],
        msr::CRASH_CTL if has(feature::HV_CRASH) => CRASH_NOTIFY,
        _ => return None,
    }))
}

pub(super) fn write(cpu: &mut Cpu, number: u32, value: u64) -> Option<Result<(), Refused>> {
    let has = |feature| cpu.cpuid.has(feature);
    match number {
        msr::GUEST_OS_ID if has(feature::HYPER_V) => {
            let mut partition = partition(cpu);
            partition.guest_os_id = value;
            if value == 0 {
                partition.hypercall &= !ENABLED;
            }
        }
        msr::HYPERCALL if has(feature::HYPER_V) => write_hypercall(cpu, value),
        msr::RESET if has(feature::HV_RESET) => {
            if value & 1 != 0 {
                let (port, command) = RESET_CONTROL;
                cpu.in_device(|io| io.port_write(port, 1, command));
            }
        }
        msr::REFERENCE_TSC if has(feature::HV_TIME) => {
            partition(cpu).reference_tsc = value;
            write_reference_page(cpu);
        }
        msr::EOI if has(feature::HV_VAPIC) => apic_write(cpu, apic::EOI, 0),
        msr::ICR if has(feature::HV_VAPIC) => return Some(write_command(cpu, value)),
        msr::TPR if has(feature::HV_VAPIC) => apic_write(cpu, apic::TPR, value & 0xff),
        msr::VP_ASSIST_PAGE if has(feature::HV_VAPIC) => {
            lazy_end::settle(cpu);
            cpu.paravirt.hyper_v.vp_assist_page = value;
            if value & ENABLED != 0 {
                put(&cpu.fabric.memory, value & PAGE, &[0; 4096]);
            }
        }
        msr::SCONTROL..=msr::SINT15 if has(feature::HV_SYNIC) => return synthetic::write_controller(cpu, number, value),
        msr::STIMER0_CONFIG..=msr::STIMER3_COUNT if has(feature::HV_STIMER) => synthetic::write_timer(cpu, number, value),
        msr::CRASH_P0..=msr::CRASH_P4 if has(feature::HV_CRASH) => {
            partition(cpu).crash[(number - msr::CRASH_P0) as usize] = value;
        }
        msr::CRASH_CTL if has(feature::HV_CRASH) => {
            if value & CRASH_NOTIFY != 0 {
                let parameters = partition(cpu).crash;
                engine_base::warn_limited!(target: "paravirt", parameters = format_args!("{parameters:#x?}"), "the guest's system says that it has crashed");
            }
        }
        // What can only be read.
        _ => return read(cpu, number).map(|_| Err(Refused)),
    }
    Some(Ok(()))
}

/// What all CPUs share.
pub(super) fn partition(cpu: &Cpu) -> MutexGuard<'_, HyperVPartition> {
    cpu.fabric.hyper_v.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Time since the machine was switched on, in units of 100 ns.
pub(super) fn reference_time(cpu: &mut Cpu) -> u64 {
    cpu.now().nanos() / REFERENCE_NANOS
}

/// For how long this CPU has run, in units of 100 ns.
fn run_time(cpu: &mut Cpu) -> u64 {
    let counted = matches!(cpu.io().clock().mode(), ClockMode::Counted { .. });
    match ThreadTimes::now() {
        Some(times) if !counted => times.ran_nanos / REFERENCE_NANOS,
        _ => reference_time(cpu),
    }
}

fn write_hypercall(cpu: &Cpu, value: u64) {
    let mut partition = partition(cpu);
    // Without a name the guest gets no page.
    if partition.guest_os_id == 0 || partition.hypercall & LOCKED != 0 {
        return;
    }
    partition.hypercall = value;
    drop(partition);
    if value & ENABLED != 0 {
        put(&cpu.fabric.memory, value & PAGE, HYPERCALL_PAGE);
    }
}

/// `HV_REFERENCE_TSC_PAGE` (TLFS 12.6): reference time = (time stamp × scale) / 2⁶⁴ + offset.
pub(super) fn write_reference_page(cpu: &mut Cpu) {
    const REFERENCE_HZ: u128 = (1_000_000_000 / REFERENCE_NANOS) as u128;
    const SCALE: u64 = ((REFERENCE_HZ << 64) / TSC_HZ as u128) as u64;
    let at = partition(cpu).reference_tsc;
    if at & ENABLED == 0 {
        return;
    }
    let now = cpu.now();
    let stamp = now.ticks(TSC_HZ).wrapping_add(cpu.msr.tsc_offset);
    let scaled = ((u128::from(stamp) * u128::from(SCALE)) >> 64) as u64;
    let offset = (now.nanos() / REFERENCE_NANOS).wrapping_sub(scaled);
    let mut page = [0u8; 24];
    // A sequence of zero would say that the page is of no use.
    page[0..4].copy_from_slice(&1u32.to_le_bytes());
    page[8..16].copy_from_slice(&SCALE.to_le_bytes());
    page[16..24].copy_from_slice(&offset.to_le_bytes());
    put(&cpu.fabric.memory, at & PAGE, &page);
}

/// The interrupt command: in the form of the mode that the APIC is in.
fn write_command(cpu: &mut Cpu, value: u64) -> Result<(), Refused> {
    const X2APIC_COMMAND: u32 = 0x830;
    if cpu.shared.apic.mode() != ApicMode::X2Apic {
        apic_write(cpu, apic::ICR_HIGH, value >> 32);
        apic_write(cpu, apic::ICR_LOW, value & 0xffff_ffff);
        return Ok(());
    }
    let (apic, fabric, io) = (cpu.shared.apic.clone(), cpu.fabric.clone(), cpu.io());
    apic.msr_write(X2APIC_COMMAND, value, &fabric.apics, io).map_err(|_| Refused)?;
    cpu.events_waiting = true;
    Ok(())
}

fn apic_read(cpu: &mut Cpu, register: u64) -> u64 {
    lazy_end::settle(cpu);
    cpu.sync_clock();
    let (apic, io) = (cpu.shared.apic.clone(), cpu.io());
    apic.page_read(register, 4, io)
}

fn apic_write(cpu: &mut Cpu, register: u64, value: u64) {
    lazy_end::settle(cpu);
    cpu.sync_clock();
    let (apic, fabric, io) = (cpu.shared.apic.clone(), cpu.fabric.clone(), cpu.io());
    apic.page_write(register, 4, value, &fabric.apics, io);
    cpu.after_io();
    cpu.events_waiting = true;
}
