//! What happens between instructions: INIT, start-up, NMI and interrupts, in their order of priority; and the instructions
//! that decide about them (CLI, STI, HLT, PUSHF, POPF, I/O permission).

use super::super::cpu::{Cpu, seg};
use super::super::fault::{Exec, Stop, vector};
use super::super::flags::bit;
use super::super::lapic::Event as Waiting;
use super::super::op::{Handler, Op};
use super::super::paravirt;
use super::exceptions::{Cause, Event};
use engine_cpu::x86::paravirt::{KvmState, ParavirtState};
use engine_cpu::x86::{Activity, Segment, X86State};
use iced_x86::Code;

pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Cli => clear_interrupt_flag,
        Code::Sti => set_interrupt_flag,
        Code::Hlt => halt,
        Code::Pushfw | Code::Pushfd | Code::Pushfq => push_flags,
        Code::Popfw | Code::Popfd | Code::Popfq => pop_flags,
        Code::Bound_r16_m1616 => bound::<2>,
        Code::Bound_r32_m3232 => bound::<4>,
        _ => return None,
    })
}

/// Takes over what other threads left for this CPU and delivers at most one event. See `system::service_events`.
pub(super) fn service_events(cpu: &mut Cpu) -> Exec {
    if cpu.pending_debug != 0 {
        return super::debug_trap(cpu);
    }
    cpu.sync_clock();
    let apic = cpu.shared.apic.clone();
    let init = apic.take_events(Waiting::INIT) != 0;
    if init {
        apic.carry_out_init();
        cpu.load_core(&after_init(cpu.save(), cpu.index));
    }
    let start_up = apic.take_events(Waiting::START_UP) != 0 && cpu.activity == Activity::WaitForSipi;
    if start_up {
        let mut state = cpu.save();
        start_up_at(&mut state, apic.start_up_page());
        cpu.load_core(&state);
    }
    if init || start_up {
        return Err(Stop::EndTrace);
    }
    if apic.events() & Waiting::LAZY_END != 0 {
        paravirt::settle_lazy_end(cpu);
    }
    if apic.take_events(Waiting::TIMER) != 0 {
        paravirt::note_stolen_time(cpu);
        paravirt::service_timers(cpu);
        apic.service_timer(cpu.io());
        // A counting clock must hear of the new deadline.
        cpu.after_io();
    }
    if cpu.nmi_pending && cpu.nmi_blocked {
        // Beside the one in progress only one waits (SDM volume 3, 6.7.1).
        apic.take_events(Waiting::NMI | Waiting::NMI_AGAIN);
    } else if !cpu.nmi_pending {
        cpu.nmi_pending = apic.take_nmi();
    }
    if matches!(cpu.activity, Activity::WaitForSipi | Activity::Shutdown) {
        cpu.events_waiting = false;
        return Ok(());
    }
    if cpu.activity == Activity::Halted && apic.take_events(Waiting::KICK) != 0 {
        cpu.activity = Activity::Running;
    }
    cpu.events_waiting = cpu.nmi_pending || apic.events() & Waiting::MASKABLE != 0;
    if !cpu.events_waiting || cpu.interrupt_shadow {
        return Ok(());
    }
    if cpu.nmi_pending && !cpu.nmi_blocked {
        cpu.nmi_pending = false;
        cpu.nmi_blocked = true;
        return enter_handler(cpu, vector::NMI);
    }
    if !cpu.flags.has(bit::IF) {
        return Ok(());
    }
    if let Some(number) = apic.take_interrupt() {
        paravirt::offer_lazy_end(cpu, number);
        return enter_handler(cpu, number);
    }
    if apic.events() & Waiting::EXTERNAL != 0 {
        // First what was latched goes: a message that comes during the INTA cycle is the next one.
        apic.external_taken();
        let number = cpu.io().acknowledge_interrupt();
        return enter_handler(cpu, number);
    }
    Ok(())
}

fn enter_handler(cpu: &mut Cpu, number: u8) -> Exec {
    cpu.activity = Activity::Running;
    // There may be more: the handler's own interrupt flag decides when.
    cpu.events_waiting = true;
    cpu.deliver_event(Event { vector: number, error: None, cause: Cause::Event })?;
    Err(Stop::EndTrace)
}

/// What INIT leaves of a CPU (SDM volume 3, table 9-1): as after reset, but caches, x87, SSE and most MSRs stay. The boot
/// processor goes to the reset vector, the others wait for a start-up. The APIC is in `state` as INIT left it. As under KVM,
/// its own registers are as after reset and Microsoft's stay.
pub(super) fn after_init(state: X86State, index: u32) -> X86State {
    let fresh = X86State::after_reset(index);
    let mut msr = state.msr;
    msr.efer = 0;
    // CD and NW stay as they were.
    let cr0 = fresh.cr0 & !0x6000_0000 | state.cr0 & 0x6000_0000;
    let paravirt = ParavirtState { kvm: KvmState::default(), ..state.paravirt };
    X86State { cr0, msr, xcr0: state.xcr0, fpu: state.fpu, apic: state.apic, paravirt, ..fresh }
}

/// A start-up message: real mode at `page:0`.
pub(super) fn start_up_at(state: &mut X86State, page: u8) {
    if state.activity == Activity::WaitForSipi {
        let base = u64::from(page) << 12;
        state.segments[usize::from(seg::CS)] = Segment { selector: u16::from(page) << 8, base, limit: 0xffff, attributes: 0x9b };
        state.rip = 0;
        state.activity = Activity::Running;
    }
}

/// In virtual-8086 mode IF belongs to whoever has IOPL 3; elsewhere to those at or inside IOPL.
fn may_change_interrupt_flag(cpu: &Cpu) -> Exec {
    if cpu.is_protected() && cpu.cpl > cpu.flags.iopl() { Err(Stop::gp(0)) } else { Ok(()) }
}

fn clear_interrupt_flag(cpu: &mut Cpu, _: &Op) -> Exec {
    may_change_interrupt_flag(cpu)?;
    cpu.flags.remove(bit::IF);
    Ok(())
}

fn set_interrupt_flag(cpu: &mut Cpu, _: &Op) -> Exec {
    may_change_interrupt_flag(cpu)?;
    if cpu.flags.has(bit::IF) {
        return Ok(());
    }
    cpu.flags.insert(bit::IF);
    cpu.interrupt_shadow = true;
    Err(Stop::EndTrace)
}

fn halt(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cpl != 0 {
        return Err(Stop::gp(0));
    }
    cpu.activity = Activity::Halted;
    // Whatever is waiting ends the halt at once.
    cpu.events_waiting = true;
    Err(Stop::EndTrace)
}

fn push_flags(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.is_v86() && cpu.flags.iopl() < 3 {
        return Err(Stop::gp(0));
    }
    let value = cpu.flags.value() & !(bit::VM | bit::RF);
    cpu.push_sized(op.operand_bytes, value)
}

fn pop_flags(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.is_v86() && cpu.flags.iopl() < 3 {
        return Err(Stop::gp(0));
    }
    let value = cpu.peek_sized(op.operand_bytes, 0)?;
    let mut mask = bit::ARITHMETIC | bit::TF | bit::DF | bit::NT | bit::AC | bit::ID;
    if cpu.cpl <= cpu.flags.iopl() || !cpu.is_protected() {
        mask |= bit::IF;
    }
    if cpu.cpl == 0 {
        mask |= bit::IOPL;
    }
    cpu.set_sp(cpu.sp().wrapping_add(u64::from(op.operand_bytes)));
    let before = cpu.flags.value();
    cpu.set_flags_masked(value, op.operand_bytes, mask);
    let changed = before ^ cpu.flags.value();
    if changed & bit::AC != 0 {
        cpu.mode_changed();
    }
    // TF traps begin behind the next instruction, interrupts and alignment checks at it.
    if changed & (bit::TF | bit::IF | bit::AC) != 0 || cpu.flags.has(bit::TF) { Err(Stop::EndTrace) } else { Ok(()) }
}

/// BOUND: #BR outside two signed bounds.
fn bound<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let at = cpu.operand_address(op);
    let sign = |value: u64| if BYTES == 2 { i64::from(value as i16) } else { i64::from(value as i32) };
    let lower = sign(cpu.read_sized(op.segment, at, BYTES)?);
    let upper = sign(cpu.read_sized(op.segment, at.wrapping_add(u64::from(BYTES)) & op.address_mask(), BYTES)?);
    let index = sign(cpu.reg(op.reg, BYTES));
    if index < lower || index > upper { Err(Stop::plain(vector::BR)) } else { Ok(()) }
}
