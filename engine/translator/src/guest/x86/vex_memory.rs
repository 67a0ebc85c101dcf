//! Memory under a mask: VMASKMOVPS and its kin, VMASKMOVDQU, and the gathers. An element whose mask is clear is not accessed,
//! whatever lies at its address.
//! See: Intel SDM volume 2, "VMASKMOV", "VPGATHERDD".

use super::cpu::Cpu;
use super::fault::{Exec, Stop};
use super::op::Op;
use super::sse::{store_masked, xmm};
use super::vex::{set, vex_ready, ymm};
use super::vex_lanes::Wide;
use crate::mmu::class;

/// Element `lane` of `BITS` bits.
#[inline(always)]
fn element<const BITS: u32>(vector: Wide, lane: u32) -> u64 {
    let at = lane * BITS;
    (vector[(at >> 7) as usize] >> (at & 127)) as u64 & (u64::MAX >> (64 - BITS))
}

#[inline(always)]
fn set_element<const BITS: u32>(vector: &mut Wide, lane: u32, value: u64) {
    let at = lane * BITS;
    let half = &mut vector[(at >> 7) as usize];
    *half = *half & !(u128::from(u64::MAX >> (64 - BITS)) << (at & 127)) | u128::from(value) << (at & 127);
}

#[inline(always)]
fn is_set<const BITS: u32>(mask: Wide, lane: u32) -> bool {
    element::<BITS>(mask, lane) >> (BITS - 1) != 0
}

fn read_element<const BITS: u32>(cpu: &mut Cpu, op: &Op, offset: u64) -> Result<u64, Stop> {
    Ok(if BITS == 32 { u64::from(cpu.read::<u32>(op.segment, offset)?) } else { cpu.read::<u64>(op.segment, offset)? })
}

/// The offset of element `lane` of the memory operand.
fn place<const BITS: u32>(cpu: &Cpu, op: &Op, lane: u32) -> u64 {
    cpu.operand_address(op).wrapping_add(u64::from(lane * BITS / 8)) & op.address_mask()
}

const fn lanes(wide: bool, bits: u32) -> u32 {
    if wide { 256 / bits } else { 128 / bits }
}

/// Accesses that raise no #AC: those under a mask do not.
fn unchecked<R>(cpu: &mut Cpu, access: impl FnOnce(&mut Cpu) -> R) -> R {
    let class = cpu.tlb_class;
    if class == class::USER_ALIGNED {
        cpu.tlb_class = class::USER;
    }
    let result = access(cpu);
    cpu.tlb_class = class;
    result
}

/// VMASKMOVPS, VMASKMOVPD, VPMASKMOVD, VPMASKMOVQ from memory: the rest becomes zero.
pub(super) fn masked_load<const WIDE: bool, const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let mask = ymm(cpu, op.vvvv);
    let mut result = [0; 2];
    unchecked(cpu, |cpu| {
        for lane in (0..lanes(WIDE, BITS)).filter(|lane| is_set::<BITS>(mask, *lane)) {
            let value = read_element::<BITS>(cpu, op, place::<BITS>(cpu, op, lane))?;
            set_element::<BITS>(&mut result, lane, value);
        }
        Ok(())
    })?;
    set::<WIDE>(cpu, op.reg, result);
    Ok(())
}

/// The same to memory.
pub(super) fn masked_store<const WIDE: bool, const BITS: u32>(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    let (mask, value) = (ymm(cpu, op.vvvv), ymm(cpu, op.reg));
    let chosen = || (0..lanes(WIDE, BITS)).filter(|lane| is_set::<BITS>(mask, *lane));
    unchecked(cpu, |cpu| {
        for lane in chosen() {
            cpu.probe_write(op.segment, place::<BITS>(cpu, op, lane), u64::from(BITS / 8))?;
        }
        for lane in chosen() {
            let (offset, value) = (place::<BITS>(cpu, op, lane), element::<BITS>(value, lane));
            if BITS == 32 {
                cpu.write(op.segment, offset, value as u32)?;
            } else {
                cpu.write(op.segment, offset, value)?;
            }
        }
        Ok(())
    })
}

/// VMASKMOVDQU
pub(super) fn masked_bytes(cpu: &mut Cpu, op: &Op) -> Exec {
    vex_ready(cpu)?;
    store_masked(cpu, op, xmm(cpu, op.reg), xmm(cpu, op.rm), 16)
}

/// VGATHERDPS and its kin: indices of `INDEX` bits, elements of `BITS`, `COUNT` of them. What has been loaded when an element
/// faults stays loaded, and its mask is clear: the instruction goes on from there when it is done again.
pub(super) fn gather<const INDEX: u32, const BITS: u32, const COUNT: u32>(cpu: &mut Cpu, op: &Op) -> Exec {
    if op.reg == op.vvvv || op.reg == op.index || op.vvvv == op.index {
        return Err(Stop::ud());
    }
    vex_ready(cpu)?;
    let indices = ymm(cpu, op.index);
    let (mut result, mut mask) = (ymm(cpu, op.reg), ymm(cpu, op.vvvv));
    let base = cpu.gpr[usize::from(op.base & 31)].wrapping_add(op.disp);
    let mut outcome = Ok(());
    // Until the last element is there, nothing else of the registers changes.
    for lane in 0..COUNT {
        if is_set::<BITS>(mask, lane) {
            let index = element::<INDEX>(indices, lane);
            let index = if INDEX == 32 { index as i32 as i64 as u64 } else { index };
            let offset = base.wrapping_add(index << op.scale) & op.address_mask();
            match unchecked(cpu, |cpu| read_element::<BITS>(cpu, op, offset)) {
                Ok(value) => set_element::<BITS>(&mut result, lane, value),
                Err(stop) => {
                    outcome = Err(stop);
                    break;
                }
            }
        }
        set_element::<BITS>(&mut mask, lane, 0);
    }
    if outcome.is_ok() {
        mask = [0; 2];
        if BITS * COUNT < 256 {
            result[1] = 0;
        }
        if BITS * COUNT == 64 {
            result[0] &= u128::from(u64::MAX);
        }
    }
    set::<true>(cpu, op.reg, result);
    set::<true>(cpu, op.vvvv, mask);
    outcome
}
