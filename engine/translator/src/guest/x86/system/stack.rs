//! A stack that is being switched to: pushes go to memory at once and faults come out; the registers change only at the end.

use super::super::access::Word;
use super::super::cpu::{Cpu, is_canonical, reg, seg};
use super::super::fault::{Exec, Stop};
use super::exceptions::with_ext;
use super::segments::{Selector, kind};
use crate::mmu::class;
use engine_cpu::x86::Segment;

/// The stack of an event's handler or of an inner procedure.
pub(super) struct NewStack {
    /// Its segment; not looked at in long mode.
    pub segment: Segment,
    /// Where the last push went.
    pub pointer: u64,
    /// The bits of the pointer.
    mask: u64,
    /// Flat and 64 bits wide.
    long: bool,
    /// Whose accesses these are.
    class: u8,
    /// The error code of a stack fault: the new selector's, or 0 for the stack in use.
    error: u16,
    /// The EXT bit of error codes.
    pub ext: u16,
}

impl NewStack {
    /// The stack in use.
    pub fn current(cpu: &Cpu) -> Self {
        let segment = cpu.segments[usize::from(seg::SS)];
        let class = cpu.tlb_class;
        Self { segment, pointer: cpu.sp(), mask: cpu.stack_mask, long: cpu.is_64_bit(), class, error: 0, ext: 0 }
    }

    /// A stack of long mode at `top`.
    pub fn long(cpu: &Cpu, top: u64, cpl: u8) -> Self {
        let segment = cpu.segments[usize::from(seg::SS)];
        Self { segment, pointer: top, mask: u64::MAX, long: true, class: class_of(cpl), error: 0, ext: 0 }
    }

    /// The stack that the TSS holds for privilege level `cpl` (0 to 2), outside long mode.
    pub fn of_tss(cpu: &mut Cpu, cpl: u8, ext: u16) -> Result<Self, Stop> {
        let tss = cpu.tr;
        let at = u64::from(cpl);
        let wide = tss.kind() & !kind::BUSY == kind::TSS32;
        let (offset, bytes) = if wide { (4 + at * 8, 6) } else { (2 + at * 4, 4) };
        if offset + bytes - 1 > u64::from(tss.limit) {
            return Err(Stop::ts(tss.selector & !3 | ext));
        }
        let from = tss.base.wrapping_add(offset);
        let (pointer, selector) = if wide {
            (u64::from(cpu.read_system::<u32>(from)?), cpu.read_system::<u16>(from.wrapping_add(4))?)
        } else {
            (u64::from(cpu.read_system::<u16>(from)?), cpu.read_system::<u16>(from.wrapping_add(2))?)
        };
        let segment = cpu.stack_segment(Selector(selector), cpl, Stop::ts).map_err(|stop| with_ext(stop, ext))?;
        let mask = if segment.is_big() { 0xffff_ffff } else { 0xffff };
        let error = selector & !3;
        Ok(Self { segment, pointer, mask, long: false, class: class_of(cpl), error, ext })
    }

    /// Pushes 2, 4 or 8 bytes.
    pub fn push(&mut self, cpu: &mut Cpu, bytes: u8, value: u64) -> Exec {
        let size = u64::from(bytes);
        // A 16-bit pointer keeps the upper half of the register.
        let to = self.pointer.wrapping_sub(size) & self.mask;
        let linear = if self.long {
            if !is_canonical(to) || !is_canonical(to.wrapping_add(size - 1)) {
                return Err(Stop::ss(self.error | self.ext));
            }
            to
        } else {
            if !holds(&self.segment, to, size) {
                return Err(Stop::ss(self.error | self.ext));
            }
            self.segment.base.wrapping_add(to) & 0xffff_ffff
        };
        match bytes {
            2 => cpu.write_linear(self.class, linear, value as u16)?,
            4 => cpu.write_linear(self.class, linear, value as u32)?,
            _ => cpu.write_linear(self.class, linear, value)?,
        }
        self.pointer = self.pointer & !self.mask | to;
        Ok(())
    }

    /// Loads SS and the stack pointer. The caller sets CPL and calls `mode_changed`.
    pub fn install(&self, cpu: &mut Cpu) {
        cpu.segments[usize::from(seg::SS)] = self.segment;
        let whole = &mut cpu.gpr[usize::from(reg::SP)];
        *whole = *whole & !self.mask | self.pointer & self.mask;
    }
}

impl Cpu {
    /// Writes at a linear address with the rights of `class`.
    fn write_linear<T: Word>(&mut self, class: u8, linear: u64, value: T) -> Exec {
        if class == class::SUPERVISOR {
            self.write_system(linear, value)
        } else {
            self.write_slowly(class, seg::SS, linear, value)
        }
    }
}

fn class_of(cpl: u8) -> u8 {
    if cpl == 3 { class::USER } else { class::SUPERVISOR }
}

/// Whether a writable data segment holds `offset … offset + bytes`.
fn holds(segment: &Segment, offset: u64, bytes: u64) -> bool {
    let last = offset + bytes - 1;
    let limit = u64::from(segment.limit);
    let top = if segment.is_big() { 0xffff_ffff } else { 0xffff };
    if segment.kind() & 0b1100 == 0b0100 { offset > limit && last <= top } else { last <= limit }
}
