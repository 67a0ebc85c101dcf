//! VMCALL and VMMCALL: a guest asks its hypervisor. KVM's calls until a guest has given Microsoft's interface its name, then
//! Microsoft's.
//! See: Linux, Documentation/virt/kvm/x86/hypercalls.rst; TLFS, chapter 3.

use super::super::cpu::{Cpu, reg};
use super::super::cpuid::feature;
use super::super::fault::{Exec, Stop};
use super::super::op::{Handler, Op};
use super::hyperv::partition;
use crate::watch::tally::Happening;
use engine_cpu::DeliveryMode;
use engine_cpu::x86::paravirt::hyperv::{call as hv, status};
use engine_cpu::x86::paravirt::kvm::{call as kvm, error};
use iced_x86::Code;

pub(crate) fn handler(code: Code) -> Option<Handler> {
    matches!(code, Code::Vmcall | Code::Vmmcall).then_some(call)
}

fn call(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cpuid.has(feature::HYPER_V) && partition(cpu).guest_os_id != 0 {
        return call_microsoft(cpu);
    }
    if !cpu.cpuid.has(feature::KVM) {
        return Err(Stop::ud());
    }
    let wide = cpu.is_64_bit();
    let argument = |cpu: &Cpu, number| if wide { cpu.reg64(number) } else { u64::from(cpu.reg32(number)) };
    let [number, a, b, c, d] = [reg::AX, reg::BX, reg::CX, reg::DX, reg::SI].map(|register| argument(cpu, register));
    let result = if cpu.cpl != 0 { error::NO_PERMISSION } else { call_kvm(cpu, number, [a, b, c, d], wide) };
    cpu.set_reg(reg::AX, if wide { 8 } else { 4 }, result as u64);
    // Others may have been interrupted, and so may this CPU.
    cpu.events_waiting = true;
    Err(Stop::EndTrace)
}

// ---- KVM -------------------------------------------------------------------------------------------------------

fn call_kvm(cpu: &Cpu, number: u64, arguments: [u64; 4], wide: bool) -> i64 {
    let [a, b, c, d] = arguments;
    match number {
        kvm::KICK_CPU if cpu.cpuid.has(feature::KVM_PV_UNHALT) => {
            cpu.shared.tally.count(Happening::KickedCpu);
            if let Some(apic) = cpu.fabric.apics.of_id(b as u32) {
                apic.kick();
            }
            0
        }
        kvm::SEND_IPI if cpu.cpuid.has(feature::KVM_PV_IPI) => send_ipis(cpu, [a, b], c as u32, d as u32, wide),
        kvm::SCHED_YIELD if cpu.cpuid.has(feature::KVM_PV_SCHED_YIELD) => {
            std::thread::yield_now();
            0
        }
        _ => error::NO_SUCH_CALL,
    }
}

/// Interrupts the CPUs whose APIC ids are set in `sets`, counted from `first`. Says how many there were.
fn send_ipis(cpu: &Cpu, sets: [u64; 2], first: u32, command: u32, wide: bool) -> i64 {
    const SHORTHAND_OR_LOGICAL: u32 = 3 << 18 | 1 << 11;
    let mode = match command >> 8 & 7 {
        0 => DeliveryMode::Fixed,
        4 => DeliveryMode::Nmi,
        _ => return error::INVALID,
    };
    if command & SHORTHAND_OR_LOGICAL != 0 {
        return error::INVALID;
    }
    cpu.shared.tally.count(Happening::SentByHypercall);
    let width: u64 = if wide { 64 } else { 32 };
    let mut sent = 0;
    for (offset, set) in [(0, sets[0]), (width, sets[1])] {
        let mut left = set;
        while left != 0 {
            let id = u64::from(first) + offset + u64::from(left.trailing_zeros());
            left &= left - 1;
            if let Some(apic) = u32::try_from(id).ok().and_then(|id| cpu.fabric.apics.of_id(id)) {
                apic.deliver(mode, command as u8, false);
                sent += 1;
            }
        }
    }
    sent
}

// ---- Microsoft -------------------------------------------------------------------------------------------------

/// A call's input value and where its parameters are (TLFS 3.8).
struct Call {
    code: u16,
    /// The parameters are in registers.
    fast: bool,
    /// How long the variable part is, in units of 8 bytes.
    variable: u32,
    repetitions: u16,
    /// The address of the parameters, or the first of them.
    input: u64,
    /// The second parameter in registers.
    second: u64,
}

fn call_microsoft(cpu: &mut Cpu) -> Exec {
    if cpu.cpl != 0 || cpu.uses_paragraphs() {
        return Err(Stop::ud());
    }
    let wide = cpu.is_64_bit();
    let pair = |cpu: &Cpu, high, low| u64::from(cpu.reg32(high)) << 32 | u64::from(cpu.reg32(low));
    let (value, input, second) = if wide {
        (cpu.reg64(reg::CX), cpu.reg64(reg::DX), cpu.reg64(8))
    } else {
        (pair(cpu, reg::DX, reg::AX), pair(cpu, reg::BX, reg::CX), pair(cpu, reg::DI, reg::SI))
    };
    let call = Call {
        code: value as u16,
        fast: value >> 16 & 1 != 0,
        variable: (value >> 17 & 0x3ff) as u32,
        repetitions: (value >> 32 & 0xfff) as u16,
        input,
        second,
    };
    let (status, done) = match carry_out(cpu, &call) {
        Ok(()) => (status::SUCCESS, call.repetitions),
        Err(status) => (status, 0),
    };
    let result = u64::from(status) | u64::from(done) << 32;
    if wide {
        cpu.set_reg64(reg::AX, result);
    } else {
        cpu.set_reg32(reg::AX, result as u32);
        cpu.set_reg32(reg::DX, (result >> 32) as u32);
    }
    cpu.events_waiting = true;
    Err(Stop::EndTrace)
}

fn carry_out(cpu: &mut Cpu, call: &Call) -> Result<(), u16> {
    let has = |feature| cpu.cpuid.has(feature);
    let list = matches!(call.code, hv::FLUSH_VIRTUAL_ADDRESS_LIST | hv::FLUSH_VIRTUAL_ADDRESS_LIST_EX);
    if list != (call.repetitions != 0) {
        return Err(status::INVALID_HYPERCALL_INPUT);
    }
    match call.code {
        hv::FLUSH_VIRTUAL_ADDRESS_SPACE | hv::FLUSH_VIRTUAL_ADDRESS_LIST if has(feature::HV_TLBFLUSH) => {
            let [_, flags, set] = parameters(cpu, call, 0)?;
            flush(cpu, &flush_targets(flags).unwrap_or(Targets::Set([(0, set)].into())));
        }
        hv::FLUSH_VIRTUAL_ADDRESS_SPACE_EX | hv::FLUSH_VIRTUAL_ADDRESS_LIST_EX if has(feature::HV_TLBFLUSH) => {
            let [_, flags] = parameters(cpu, call, 0)?;
            let targets = flush_targets(flags).map_or_else(|| sparse_set(cpu, call, 16), Ok)?;
            flush(cpu, &targets);
        }
        hv::SEND_SYNTHETIC_CLUSTER_IPI if has(feature::HV_IPI) => {
            let [vector, set] = if call.fast { [call.input, call.second] } else { parameters(cpu, call, 0)? };
            interrupt(cpu, vector, &Targets::Set([(0, set)].into()))?;
        }
        hv::SEND_SYNTHETIC_CLUSTER_IPI_EX if has(feature::HV_IPI) => {
            let [vector] = parameters(cpu, call, 0)?;
            interrupt(cpu, vector, &sparse_set(cpu, call, 8)?)?;
        }
        hv::NOTIFY_LONG_SPIN_WAIT => std::thread::yield_now(),
        // Nobody is at the other end: there is no VMBus.
        hv::POST_MESSAGE | hv::SIGNAL_EVENT if has(feature::HV_SYNIC) => return Err(status::INVALID_CONNECTION_ID),
        _ => return Err(status::INVALID_HYPERCALL_CODE),
    }
    Ok(())
}

/// Reads parameters from the guest's memory, `offset` bytes behind the first.
fn parameters<const COUNT: usize>(cpu: &Cpu, call: &Call, offset: u64) -> Result<[u64; COUNT], u16> {
    if call.fast {
        // More than two do not fit into registers, as those of vectors are not offered.
        return Err(status::INVALID_HYPERCALL_INPUT);
    }
    if call.input & 7 != 0 {
        return Err(status::INVALID_ALIGNMENT);
    }
    let mut words = [0; COUNT];
    let mut at = call.input.wrapping_add(offset);
    for word in &mut words {
        let bytes = cpu.fabric.memory.read_array(at).map_err(|_| status::INVALID_HYPERCALL_INPUT)?;
        *word = u64::from_le_bytes(bytes);
        at = at.wrapping_add(8);
    }
    Ok(words)
}

/// Which CPUs a call is about.
enum Targets {
    All,
    /// Banks of 64 CPUs: the bank's number and its set.
    Set(Vec<(u32, u64)>),
}

impl Targets {
    fn has(&self, cpu: u32) -> bool {
        match self {
            Self::All => true,
            Self::Set(banks) => banks.iter().any(|(bank, set)| *bank == cpu / 64 && set >> (cpu % 64) & 1 != 0),
        }
    }
}

/// `HV_VP_SET` (TLFS 7.8.7.3) at `offset` of the parameters.
fn sparse_set(cpu: &Cpu, call: &Call, offset: u64) -> Result<Targets, u16> {
    const SPARSE: u64 = 0;
    const ALL: u64 = 1;
    let [format, valid] = parameters(cpu, call, offset)?;
    match format {
        ALL => Ok(Targets::All),
        SPARSE if valid.count_ones() == call.variable => {
            let banks = (0..64).filter(|bank| valid >> bank & 1 != 0).zip(0..);
            let bank = |(bank, at): (u32, u64)| Ok((bank, parameters::<1>(cpu, call, offset + 16 + at * 8)?[0]));
            Ok(Targets::Set(banks.map(bank).collect::<Result<_, u16>>()?))
        }
        _ => Err(status::INVALID_HYPERCALL_INPUT),
    }
}

/// The flag that means every CPU.
fn flush_targets(flags: u64) -> Option<Targets> {
    (flags & 1 != 0).then_some(Targets::All)
}

/// Drops the translations of `targets`: all of them, as which address space was meant costs more to find out than it saves.
fn flush(cpu: &mut Cpu, targets: &Targets) {
    cpu.shared.tally.count(Happening::FlushedByHypercall);
    cpu.fabric.clone().shoot_down_and_wait(&cpu.shared.clone(), |index| targets.has(index));
    if targets.has(cpu.index) {
        cpu.flush_tlb();
    }
}

fn interrupt(cpu: &Cpu, vector: u64, targets: &Targets) -> Result<(), u16> {
    // The upper half holds the trust level, of which there is one.
    let vector = u8::try_from(vector as u32).ok().filter(|vector| *vector >= 16).ok_or(status::INVALID_HYPERCALL_INPUT)?;
    cpu.shared.tally.count(Happening::SentByHypercall);
    cpu.fabric.apics.each(|apic| {
        if targets.has(apic.cpu()) {
            apic.deliver(DeliveryMode::Fixed, vector, false);
        }
    });
    Ok(())
}
