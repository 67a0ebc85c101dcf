//! Microsoft's synthetic interrupt controller, whose sources are vectors with a slot for messages, and its four timers, which
//! send such messages or, in direct mode, plain interrupts. See: TLFS, chapters 11 and 12.

use super::super::cpu::Cpu;
use super::super::cpuid::feature;
use super::hyperv::{REFERENCE_NANOS, reference_time};
use super::{ENABLED, PAGE, Refused, put};
use engine_base::VmTime;
use engine_cpu::DeliveryMode;
use engine_cpu::x86::paravirt::hyperv::msr;

/// A source's register: its vector, and what else becomes of it.
mod sint {
    pub const VECTOR: u64 = 0xff;
    pub const MASKED: u64 = 1 << 16;
    /// The interrupt is over as soon as it is delivered.
    pub const AUTO_END: u64 = 1 << 17;
    /// Only the message counts, there is no interrupt.
    pub const POLLING: u64 = 1 << 18;
}

/// A timer's configuration register.
mod config {
    pub const ENABLED: u64 = 1;
    pub const PERIODIC: u64 = 1 << 1;
    /// Writing the count starts it.
    pub const AUTO_ENABLE: u64 = 1 << 3;
    /// A plain interrupt of the vector in bits 4 to 11, and no message.
    pub const DIRECT: u64 = 1 << 12;
    pub const WRITABLE: u64 = 0xf_1fff;

    pub fn vector(value: u64) -> u8 {
        (value >> 4) as u8
    }
    pub fn source(value: u64) -> usize {
        (value >> 16 & 15) as usize
    }
}

/// A message slot: type, payload length, flags, sender, payload.
mod message {
    pub const BYTES: u64 = 256;
    pub const FLAGS: u64 = 5;
    /// In the flags: the guest is to write to EOM when it has taken the message, another one waits.
    pub const MORE: u8 = 1;
    pub const TIMER_EXPIRED: u32 = 0x8000_0010;
}

/// The shortest period that a timer keeps, in units of 100 ns: what is shorter would leave a guest no time for anything else.
const SHORTEST_PERIOD: u64 = 500;

// ---- The controller --------------------------------------------------------------------------------------------

pub(super) fn read_controller(cpu: &Cpu, number: u32) -> Option<Result<u64, Refused>> {
    let state = &cpu.paravirt.hyper_v;
    Some(Ok(match number {
        msr::SCONTROL => state.scontrol,
        msr::SVERSION => 1,
        msr::SIEFP => state.siefp,
        msr::SIMP => state.simp,
        msr::EOM => 0,
        msr::SINT0..=msr::SINT15 => state.sint[(number - msr::SINT0) as usize],
        _ => return None,
    }))
}

pub(super) fn write_controller(cpu: &mut Cpu, number: u32, value: u64) -> Option<Result<(), Refused>> {
    let page = |cpu: &Cpu| {
        if value & ENABLED != 0 {
            put(&cpu.fabric.memory, value & PAGE, &[0; 4096]);
        }
    };
    match number {
        msr::SCONTROL => cpu.paravirt.hyper_v.scontrol = value & ENABLED,
        msr::SIEFP => {
            cpu.paravirt.hyper_v.siefp = value;
            page(cpu);
        }
        msr::SIMP => {
            cpu.paravirt.hyper_v.simp = value;
            page(cpu);
        }
        msr::EOM => {
            for timer in 0..cpu.paravirt.hyper_v.timers.len() {
                send(cpu, timer);
            }
            timers_changed(cpu);
        }
        msr::SINT0..=msr::SINT15 => {
            if value & sint::VECTOR < 16 && value & sint::MASKED == 0 {
                return Some(Err(Refused));
            }
            cpu.paravirt.hyper_v.sint[(number - msr::SINT0) as usize] = value;
            tell_apic(cpu);
        }
        _ => return read_controller(cpu, number).map(|_| Err(Refused)),
    }
    Some(Ok(()))
}

/// Tells the local APIC which vectors end by themselves.
fn tell_apic(cpu: &Cpu) {
    let mut vectors = [0u32; 8];
    for source in cpu.paravirt.hyper_v.sint.iter().filter(|source| *source & sint::AUTO_END != 0 && *source & sint::MASKED == 0) {
        let vector = source & sint::VECTOR;
        vectors[(vector >> 5) as usize] |= 1 << (vector & 31);
    }
    cpu.shared.apic.set_auto_ended(vectors);
}

/// Puts a message into the slot of `source` and interrupts. Says whether there was room.
fn post(cpu: &Cpu, source: usize, kind: u32, payload: &[u8; 24]) -> bool {
    let state = &cpu.paravirt.hyper_v;
    if state.scontrol & ENABLED == 0 || state.simp & ENABLED == 0 {
        return false;
    }
    let memory = &cpu.fabric.memory;
    let slot = (state.simp & PAGE).wrapping_add(source as u64 * message::BYTES);
    let Ok(taken) = memory.read_array(slot).map(u32::from_le_bytes) else { return false };
    if taken != 0 {
        let Ok([flags]) = memory.read_array(slot + message::FLAGS) else { return false };
        put(memory, slot + message::FLAGS, &[flags | message::MORE]);
        return false;
    }
    let mut bytes = [0; 40];
    bytes[4] = payload.len() as u8;
    bytes[16..].copy_from_slice(payload);
    put(memory, slot, &bytes);
    put(memory, slot, &kind.to_le_bytes());
    let source = state.sint[source & 15];
    if source & (sint::MASKED | sint::POLLING) == 0 {
        cpu.shared.apic.deliver(DeliveryMode::Fixed, (source & sint::VECTOR) as u8, false);
    }
    true
}

// ---- Timers ----------------------------------------------------------------------------------------------------

/// Which timer a register belongs to, and whether it is the count.
fn timer_register(number: u32) -> (usize, bool) {
    let at = (number - msr::STIMER0_CONFIG) as usize & 7;
    (at / 2, at & 1 != 0)
}

pub(super) fn read_timer(cpu: &Cpu, number: u32) -> u64 {
    let (timer, count) = timer_register(number);
    let timer = &cpu.paravirt.hyper_v.timers[timer];
    if count { timer.count } else { timer.config }
}

pub(super) fn write_timer(cpu: &mut Cpu, number: u32, value: u64) {
    let (index, count) = timer_register(number);
    let now = reference_time(cpu);
    let direct = cpu.cpuid.has(feature::HV_STIMER_DIRECT);
    let timer = &mut cpu.paravirt.hyper_v.timers[index];
    if count {
        timer.count = value;
        if value == 0 {
            timer.config &= !config::ENABLED;
        } else if timer.config & config::AUTO_ENABLE != 0 {
            timer.config |= config::ENABLED;
        }
    } else {
        timer.config = value & config::WRITABLE;
        if !direct {
            timer.config &= !config::DIRECT;
        }
        // Source 0 takes no messages of timers.
        if timer.config & config::DIRECT == 0 && config::source(timer.config) == 0 {
            timer.config &= !config::ENABLED;
        }
    }
    timer.unsent = None;
    timer.due = match timer.config {
        set if set & config::ENABLED == 0 || timer.count == 0 => 0,
        set if set & config::PERIODIC != 0 => now.saturating_add(timer.count.max(SHORTEST_PERIOD)),
        // A moment, which may have passed.
        _ => timer.count,
    };
    timers_changed(cpu);
}

/// Sends the message that timer `index` owes, if there is one and room for it.
fn send(cpu: &mut Cpu, index: usize) {
    let timer = cpu.paravirt.hyper_v.timers[index];
    let Some(was_due) = timer.unsent else { return };
    let mut payload = [0; 24];
    payload[0..4].copy_from_slice(&(index as u32).to_le_bytes());
    payload[8..16].copy_from_slice(&was_due.to_le_bytes());
    payload[16..24].copy_from_slice(&reference_time(cpu).to_le_bytes());
    if post(cpu, config::source(timer.config), message::TIMER_EXPIRED, &payload) {
        cpu.paravirt.hyper_v.timers[index].unsent = None;
    }
}

/// Lets expire what is due, and has the board's timer for this CPU follow.
fn timers_changed(cpu: &mut Cpu) {
    service_timers(cpu);
    let (apic, io) = (cpu.shared.apic.clone(), cpu.io());
    apic.service_timer(io);
    cpu.after_io();
    cpu.events_waiting = true;
}

/// Lets the timers expire that are due. The local APIC, whose timer shares the board's, is told when the next one is; its own
/// service follows.
pub(crate) fn service_timers(cpu: &mut Cpu) {
    if !cpu.cpuid.has(feature::HV_STIMER) {
        return;
    }
    let now = reference_time(cpu);
    let mut next = u64::MAX;
    for index in 0..cpu.paravirt.hyper_v.timers.len() {
        let timer = &mut cpu.paravirt.hyper_v.timers[index];
        if timer.due != 0 && timer.due <= now && timer.unsent.is_none() {
            let was_due = timer.due;
            if timer.config & config::PERIODIC != 0 {
                // Missed periods are one interrupt.
                let period = timer.count.max(SHORTEST_PERIOD);
                timer.due = was_due.saturating_add(period.saturating_mul((now - was_due) / period + 1));
            } else {
                timer.due = 0;
                timer.config &= !config::ENABLED;
            }
            if timer.config & config::DIRECT != 0 {
                let vector = config::vector(timer.config);
                cpu.shared.apic.deliver(DeliveryMode::Fixed, vector, false);
            } else {
                timer.unsent = Some(was_due);
                send(cpu, index);
            }
        }
        let timer = &cpu.paravirt.hyper_v.timers[index];
        if timer.due != 0 && timer.unsent.is_none() {
            next = next.min(timer.due);
        }
    }
    let deadline = next.checked_mul(REFERENCE_NANOS).map_or(VmTime::NEVER, VmTime);
    cpu.shared.apic.set_synthetic_deadline(deadline);
}

/// A state has been taken over: the local APIC hears again what follows from it.
pub(crate) fn loaded(cpu: &Cpu) {
    tell_apic(cpu);
}
