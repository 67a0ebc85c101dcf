//! Ends of interrupts that need no register: the CPU sets a bit in guest memory when it delivers an interrupt, and a handler
//! that finds it takes it away instead of writing to the local APIC. KVM calls this PV EOI, Microsoft has it on the VP assist
//! page.
//!
//! What the handler did is looked up before anybody looks at the APIC's registers: when another interrupt is requested, and
//! before accesses of the guest's own. Only this CPU's thread reads and writes the bit, since guests change it without a lock.

use super::super::cpu::Cpu;
use super::{ENABLED, PAGE, put};
use crate::watch::tally::Happening;

/// The bit: no register need be written.
const NOT_NEEDED: u8 = 1;

/// Where this CPU's guest wants the bit.
fn place(cpu: &Cpu) -> Option<u64> {
    let (assist, kvm) = (cpu.paravirt.hyper_v.vp_assist_page, cpu.paravirt.kvm.pv_eoi);
    if assist & ENABLED != 0 {
        return Some(assist & PAGE);
    }
    (kvm & ENABLED != 0).then_some(kvm & !ENABLED)
}

/// The interrupt `vector` is being delivered.
pub(crate) fn offer(cpu: &mut Cpu, vector: u8) {
    let Some(at) = place(cpu) else { return };
    let Ok([byte]) = cpu.fabric.memory.read_array(at) else { return };
    if cpu.shared.apic.arm_lazy_end(vector) {
        put(&cpu.fabric.memory, at, &[byte | NOT_NEEDED]);
        cpu.lazy_end = Some(at);
    }
}

/// Finds out whether the handler is done, and ends the interrupt if so. Otherwise it will have to write to the register.
pub(crate) fn settle(cpu: &mut Cpu) {
    let Some(at) = cpu.lazy_end.take() else { return };
    let ended = match cpu.fabric.memory.read_array(at) {
        Ok([byte]) if byte & NOT_NEEDED == 0 => true,
        Ok([byte]) => {
            put(&cpu.fabric.memory, at, &[byte & !NOT_NEEDED]);
            false
        }
        Err(_) => false,
    };
    if ended {
        cpu.shared.tally.count(Happening::EndedLazily);
    }
    cpu.shared.apic.settle_lazy_end(ended);
}
