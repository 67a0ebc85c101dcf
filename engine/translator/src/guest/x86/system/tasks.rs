//! Task switches through a TSS of 16 or 32 bits (Intel SDM volume 3, chapter 8), and what the 64-bit TSS still holds.
//! A switch has a point of no return: faults before it belong to the old task and change nothing; faults after it are
//! raised in the new task, at its first instruction.

use super::super::cpu::{Cpu, cr0, cr4, reg, seg};
use super::super::fault::{Exception, Exec, Stop};
use super::super::flags::bit;
use super::exceptions::{Cause, Event, with_ext};
use super::segments::{Found, Selector, kind};
use super::stack::NewStack;
use engine_cpu::x86::{Descriptor, Segment};

/// How a task is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Linkage {
    /// JMP: the old task ends.
    Jump,
    /// CALL: the new task returns by IRET.
    Call,
    /// An interrupt or exception through a task gate, with its error code.
    Nested {
        /// Pushed on the new task's stack.
        error: Option<u16>,
    },
    /// IRET with NT.
    Return,
}

/// A task switch that is to be done.
#[derive(Debug, Clone, Copy)]
pub(super) struct TaskSwitch {
    /// The new task's TSS.
    pub selector: Selector,
    pub linkage: Linkage,
    /// The EXT bit of error codes.
    pub ext: u16,
    /// The selector came out of a gate, whose own checks are done; otherwise it is the operand of JMP or CALL.
    pub through_gate: bool,
}

/// Offsets in a 32-bit TSS.
mod tss32 {
    pub const CR3: u64 = 28;
    pub const EIP: u64 = 32;
    pub const EFLAGS: u64 = 36;
    pub const REGISTERS: u64 = 40;
    pub const SEGMENTS: u64 = 72;
    pub const LDT: u64 = 96;
    pub const TRAP: u64 = 100;
    pub const IO_MAP: u64 = 102;
    pub const LAST: u32 = 103;
}

/// Offsets in a 16-bit TSS.
mod tss16 {
    pub const IP: u64 = 14;
    pub const FLAGS: u64 = 16;
    pub const REGISTERS: u64 = 18;
    pub const SEGMENTS: u64 = 34;
    pub const LDT: u64 = 42;
    pub const LAST: u32 = 43;
}

/// What a TSS holds of a task.
#[derive(Debug, Default)]
struct Task {
    cr3: u64,
    ip: u64,
    flags: u64,
    registers: [u64; 8],
    /// ES, CS, SS, DS, FS, GS.
    segments: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl Cpu {
    /// Switches tasks. Errors before the point of no return leave the registers as they were; after it TR has changed:
    /// see [`Cpu::finish_task_switch`].
    pub(super) fn switch_task(&mut self, switch: TaskSwitch) -> Exec {
        let mut next = self.find_task(switch)?;
        let wide = next.kind() & !kind::BUSY == kind::TSS32;
        let mut tss = next.segment();
        let last = if wide { tss32::LAST } else { tss16::LAST };
        if tss.limit < last {
            return Err(Stop::ts(switch.selector.error() | switch.ext));
        }
        // Everything that the switch will touch, before anything is changed.
        let nested = matches!(switch.linkage, Linkage::Call | Linkage::Nested { .. });
        self.probe_old_task()?;
        if nested {
            self.probe_system_write(tss.base, 2)?;
        }
        let mut task = self.read_task(&tss, wide)?;
        let old = self.tr;
        let old_descriptor = self.gdtr.base.wrapping_add(u64::from(old.selector & !7));
        if !nested {
            self.probe_system_write(old_descriptor, 8)?;
        }
        if switch.linkage != Linkage::Return {
            self.probe_system_write(next.address, 8)?;
        }

        let flags = self.flags.value();
        self.write_old_task(if switch.linkage == Linkage::Return { flags & !bit::NT } else { flags })?;
        if !nested {
            let mut descriptor: u64 = self.read_system(old_descriptor)?;
            descriptor &= !(u64::from(kind::BUSY) << 40);
            self.write_system(old_descriptor, descriptor)?;
        }
        if switch.linkage != Linkage::Return {
            next.descriptor.0 |= u64::from(kind::BUSY) << 40;
            self.write_system(next.address, next.descriptor.0)?;
        }
        if nested {
            self.write_system(tss.base, old.selector)?;
            task.flags |= bit::NT;
        }

        // The point of no return.
        tss.attributes |= u16::from(kind::BUSY);
        self.tr = tss;
        self.cr0 |= cr0::TS;
        self.enter_task(&task, wide).map_err(|stop| with_ext(stop, switch.ext))?;
        if let Linkage::Nested { error: Some(error) } = switch.linkage {
            let mut stack = NewStack::current(self);
            stack.ext = switch.ext;
            stack.push(self, if wide { 4 } else { 2 }, u64::from(error))?;
            self.set_sp(stack.pointer);
        }
        if self.rip > u64::from(self.segments[usize::from(seg::CS)].limit) {
            return Err(Stop::gp(switch.ext));
        }
        if task.trap {
            // Before the first instruction of the new task: the next poll delivers it.
            self.pending_debug |= 1 << 15;
            self.events_waiting = true;
        }
        Ok(())
    }

    /// What an instruction does with the result of a task switch (or of what may contain one): a fault that was raised
    /// in the new task is delivered there, not at the instruction.
    pub(super) fn finish_task_switch(&mut self, old_tr: u16, result: Exec) -> Exec {
        match result {
            Ok(()) => Err(Stop::EndTrace),
            Err(Stop::Exception(Exception { vector, error })) if self.tr.selector != old_tr => {
                self.deliver_event(Event { vector, error, cause: Cause::Fault })?;
                Err(Stop::EndTrace)
            }
            Err(other) => Err(other),
        }
    }

    /// IRET with NT: to the task that the back link names.
    pub(super) fn return_from_task(&mut self) -> Exec {
        let before = self.tr.selector;
        let link: u16 = self.read_system(self.tr.base)?;
        let switch = TaskSwitch { selector: Selector(link), linkage: Linkage::Return, ext: 0, through_gate: true };
        let result = self.switch_task(switch);
        self.finish_task_switch(before, result)
    }

    /// The TSS descriptor, with the checks that depend on how it is reached.
    fn find_task(&mut self, switch: TaskSwitch) -> Result<Found, Stop> {
        let TaskSwitch { selector, linkage, ext, .. } = switch;
        let (blame, wanted_busy): (fn(u16) -> Stop, u8) =
            if linkage == Linkage::Return { (Stop::ts, kind::BUSY) } else { (Stop::gp, 0) };
        let error = selector.error() | ext;
        if selector.is_local() || selector.is_null() {
            return Err(blame(error));
        }
        let found = self.find_descriptor(selector, blame).map_err(|stop| with_ext(stop, ext))?;
        let is_tss = matches!(found.kind() & !kind::BUSY, kind::TSS16 | kind::TSS32) && !found.is_code_or_data();
        if !is_tss || found.kind() & kind::BUSY != wanted_busy {
            return Err(blame(error));
        }
        if !switch.through_gate && found.dpl() < self.cpl.max(selector.rpl()) {
            return Err(blame(error));
        }
        if !found.is_present() {
            return Err(Stop::np(error));
        }
        Ok(found)
    }

    fn probe_old_task(&mut self) -> Exec {
        let wide = self.tr.kind() & !kind::BUSY == kind::TSS32;
        let (from, to) = if wide { (tss32::EIP, tss32::LDT) } else { (tss16::IP, tss16::LDT) };
        let base = self.tr.base;
        self.probe_system_write(base.wrapping_add(from), 4)?;
        self.probe_system_write(base.wrapping_add(to - 4), 4)
    }

    fn write_old_task(&mut self, flags: u64) -> Exec {
        let base = self.tr.base;
        let selectors: [u16; 6] = std::array::from_fn(|number| self.segments[number].selector);
        if self.tr.kind() & !kind::BUSY == kind::TSS32 {
            self.write_system(base.wrapping_add(tss32::EIP), self.rip as u32)?;
            self.write_system(base.wrapping_add(tss32::EFLAGS), flags as u32)?;
            for number in 0..8 {
                self.write_system(base.wrapping_add(tss32::REGISTERS + number * 4), self.gpr[number as usize] as u32)?;
            }
            for (number, selector) in (0..).zip(selectors) {
                self.write_system(base.wrapping_add(tss32::SEGMENTS + number * 4), selector)?;
            }
        } else {
            self.write_system(base.wrapping_add(tss16::IP), self.rip as u16)?;
            self.write_system(base.wrapping_add(tss16::FLAGS), flags as u16)?;
            for number in 0..8 {
                self.write_system(base.wrapping_add(tss16::REGISTERS + number * 2), self.gpr[number as usize] as u16)?;
            }
            for (number, selector) in (0..4).zip(selectors) {
                self.write_system(base.wrapping_add(tss16::SEGMENTS + number * 2), selector)?;
            }
        }
        Ok(())
    }

    fn read_task(&mut self, tss: &Segment, wide: bool) -> Result<Task, Stop> {
        let at = |offset: u64| tss.base.wrapping_add(offset);
        let mut task = Task::default();
        if wide {
            task.cr3 = u64::from(self.read_system::<u32>(at(tss32::CR3))?);
            task.ip = u64::from(self.read_system::<u32>(at(tss32::EIP))?);
            task.flags = u64::from(self.read_system::<u32>(at(tss32::EFLAGS))?);
            for (number, register) in (0..).zip(&mut task.registers) {
                *register = u64::from(self.read_system::<u32>(at(tss32::REGISTERS + number * 4))?);
            }
            for (number, selector) in (0..).zip(&mut task.segments) {
                *selector = self.read_system(at(tss32::SEGMENTS + number * 4))?;
            }
            task.ldt = self.read_system(at(tss32::LDT))?;
            task.trap = self.read_system::<u16>(at(tss32::TRAP))? & 1 != 0;
        } else {
            task.ip = u64::from(self.read_system::<u16>(at(tss16::IP))?);
            task.flags = u64::from(self.read_system::<u16>(at(tss16::FLAGS))?);
            for (number, register) in (0..).zip(&mut task.registers) {
                // The upper halves are not part of a 16-bit task; CPUs leave all ones there.
                *register = 0xffff_0000 | u64::from(self.read_system::<u16>(at(tss16::REGISTERS + number * 2))?);
            }
            for (number, selector) in (0..4).zip(&mut task.segments) {
                *selector = self.read_system(at(tss16::SEGMENTS + number * 2))?;
            }
            task.ldt = self.read_system(at(tss16::LDT))?;
        }
        Ok(task)
    }

    /// Loads the new task's registers. From here on faults are the new task's.
    fn enter_task(&mut self, task: &Task, wide: bool) -> Exec {
        if wide && self.is_paged() && self.cr3 != task.cr3 {
            if self.cr4 & cr4::PAE != 0 {
                self.load_pdptes(task.cr3)?;
            }
            self.cr3 = task.cr3;
            self.enter_address_space(false);
        }
        self.rip = task.ip;
        self.flags.set(task.flags);
        self.gpr[..8].copy_from_slice(&task.registers);
        // All segments first become their selectors, without descriptors behind them: whichever load fails, the handler
        // sees the new task's selectors.
        for (number, selector) in task.segments.into_iter().enumerate() {
            self.segments[number] = Segment { selector, ..Segment::default() };
        }
        self.ldtr = Segment { selector: task.ldt, ..Segment::default() };
        self.dr7 &= !0x155;
        let cs = Selector(task.segments[usize::from(seg::CS)]);
        self.cpl = if self.is_v86() { 3 } else { cs.rpl() };
        self.mode_changed();
        self.load_task_ldt(Selector(task.ldt))?;
        if wide && self.is_paged() && self.cr4 & cr4::PAE != 0 {
            self.load_pdptes(self.cr3)?;
        }
        if self.is_v86() {
            for (number, selector) in (0..).zip(task.segments) {
                self.segments[usize::from(number)] = self.paragraph(number, selector);
            }
            self.mode_changed();
            return Ok(());
        }
        let code = self.task_code(cs)?;
        let ss = Selector(task.segments[usize::from(seg::SS)]);
        let stack = self.stack_segment(ss, cs.rpl(), Stop::ts)?;
        self.segments[usize::from(seg::SS)] = stack;
        self.segments[usize::from(seg::CS)] = code;
        self.mode_changed();
        for number in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let segment = self.checked_segment(number, task.segments[usize::from(number)]).map_err(|stop| match stop {
                // What a MOV would call #GP is an invalid TSS here.
                Stop::Exception(Exception { vector: super::super::fault::vector::GP, error: Some(error) }) => Stop::ts(error),
                other => other,
            })?;
            self.segments[usize::from(number)] = segment;
        }
        self.mode_changed();
        Ok(())
    }

    fn load_task_ldt(&mut self, selector: Selector) -> Exec {
        if selector.is_null() {
            return Ok(());
        }
        if selector.is_local() {
            return Err(Stop::ts(selector.error()));
        }
        let found = self.find_descriptor(selector, Stop::ts)?;
        if found.is_code_or_data() || found.kind() != kind::LDT || !found.is_present() {
            return Err(Stop::ts(selector.error()));
        }
        self.ldtr = found.segment();
        Ok(())
    }

    fn task_code(&mut self, selector: Selector) -> Result<Segment, Stop> {
        if selector.is_null() {
            return Err(Stop::ts(0));
        }
        let found = self.find_descriptor(selector, Stop::ts)?;
        let error = selector.error();
        let privileged = if found.is_conforming() { found.dpl() <= selector.rpl() } else { found.dpl() == selector.rpl() };
        if !found.is_code() || !privileged {
            return Err(Stop::ts(error));
        }
        if !found.is_present() {
            return Err(Stop::np(error));
        }
        self.accessed_segment(found)
    }

    /// Eight bytes of the 64-bit TSS.
    pub(super) fn read_tss64(&mut self, offset: u64, ext: u16) -> Result<u64, Stop> {
        if offset + 7 > u64::from(self.tr.limit) {
            return Err(Stop::ts(self.tr.selector & !3 | ext));
        }
        self.read_system(self.tr.base.wrapping_add(offset))
    }

    /// Whether the I/O permission bitmap lets the current privilege level reach `bytes` ports from `port` on.
    pub(crate) fn check_io(&mut self, port: u16, bytes: u8) -> Exec {
        let unrestricted = !self.is_protected() || !self.is_v86() && self.cpl <= self.flags.iopl();
        if unrestricted {
            return Ok(());
        }
        // Only TSSs of 32 and 64 bits have a bitmap; they share the place of its offset.
        if !self.tr.is_present() || self.tr.kind() & !kind::BUSY != kind::TSS32 || self.tr.limit < tss32::LAST {
            return Err(Stop::gp(0));
        }
        let map: u16 = self.read_system(self.tr.base.wrapping_add(tss32::IO_MAP))?;
        let offset = u64::from(map) + u64::from(port / 8);
        // The CPU reads two bytes, so that any access is covered; both must be inside.
        if offset + 1 > u64::from(self.tr.limit) {
            return Err(Stop::gp(0));
        }
        let bits: u16 = self.read_system(self.tr.base.wrapping_add(offset))?;
        let mask = (1u16 << bytes) - 1;
        if bits >> (port % 8) & mask != 0 { Err(Stop::gp(0)) } else { Ok(()) }
    }

    /// LTR and LLDT: a system segment from the GDT.
    pub(super) fn system_segment(&mut self, selector: Selector, wanted: &[u8]) -> Result<(Found, Segment), Stop> {
        if selector.is_local() {
            return Err(Stop::gp(selector.error()));
        }
        let found = self.find_descriptor(selector, Stop::gp)?;
        if found.is_code_or_data() || !wanted.contains(&found.kind()) {
            return Err(Stop::gp(selector.error()));
        }
        if !found.is_present() {
            return Err(Stop::np(selector.error()));
        }
        let mut segment = Segment::from_descriptor(selector.0, Descriptor(found.descriptor.0));
        if self.is_long() {
            segment.base |= self.upper_descriptor(&found, Stop::gp)? << 32;
            if !super::super::cpu::is_canonical(segment.base) {
                return Err(Stop::gp(selector.error()));
            }
        }
        Ok((found, segment))
    }

    /// The stack pointer register, whole.
    pub(super) fn rsp(&self) -> u64 {
        self.gpr[usize::from(reg::SP)]
    }
}
