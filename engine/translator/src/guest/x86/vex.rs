//! AVX, AVX2, FMA, F16C: the shapes of VEX-encoded vector instructions. What an instruction computes is, lane by lane of 128 bits, what its SSE
//! ancestor does: a type of [`super::host_fp`] or [`super::shuffle`]. Which instruction is which, is `vex_table.rs`.
//!
//! A VEX instruction writes a whole register: with 128 bits, the upper half becomes zero. Memory operands may lie anywhere but for the aligned
//! moves. The instructions exist in protected mode only, once the system has enabled YMM state in XCR0.
//! See: Intel SDM volume 1, chapter 14; volume 2, 2.3 and 2.4.

use super::cpu::{Cpu, cr0};
use super::fault::{Exec, Stop};
use super::op::Op;

/// #UD and #NM of VEX-encoded vector instructions.
#[inline(always)]
pub(super) fn vex_ready(cpu: &Cpu) -> Exec {
    if !cpu.avx_enabled() {
        return Err(Stop::ud());
    }
    if cpu.cr0 & cr0::TS != 0 { Err(Stop::nm()) } else { Ok(()) }
}

/// How many vector registers the running code has.
fn register_count(cpu: &Cpu) -> usize {
    if cpu.is_64_bit() { 16 } else { 8 }
}

/// VZEROUPPER, VZEROALL
pub(super) fn zero_registers<const ALL: bool>(cpu: &mut Cpu, _: &Op) -> Exec {
    vex_ready(cpu)?;
    let count = register_count(cpu);
    cpu.fpu.ymm_high[..count].fill(0);
    if ALL {
        cpu.fpu.xmm[..count].fill(0);
    }
    Ok(())
}
