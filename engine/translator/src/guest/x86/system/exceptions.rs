//! The delivery of exceptions and interrupts: through the real-mode table, gates of 16, 32 and 64 bits, task gates; double
//! faults and shutdown (Intel SDM volume 3, chapter 6).

use super::super::cpu::{Cpu, is_canonical, reg, seg};
use super::super::fault::{Exception, Exec, Stop, vector};
use super::super::flags::bit;
use super::segments::{Found, Selector, kind, null_stack};
use super::stack::NewStack;
use super::tasks::{Linkage, TaskSwitch};
use engine_cpu::x86::Segment;

/// Where an event comes from: it decides about privilege checks, the pushed RF and the EXT bit of error codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// An exception that restarts its instruction.
    Fault,
    /// An exception behind its instruction, an external interrupt, NMI or INT1.
    Event,
    /// INT n, INT3, INTO: the gate's DPL is checked.
    Software,
}

/// One event on its way into the guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub vector: u8,
    pub error: Option<u16>,
    pub cause: Cause,
}

impl Event {
    fn ext(&self) -> u16 {
        u16::from(self.cause != Cause::Software)
    }

    /// The error code that names this event's gate.
    fn gate_error(&self) -> u16 {
        u16::from(self.vector) * 8 + 2 + self.ext()
    }
}

/// How exceptions combine into a double fault (SDM volume 3, table 6-5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(number: u8) -> Class {
    match number {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::PageFault,
        vector::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

impl Cpu {
    /// Delivers the fault of an instruction; RIP is at its start.
    ///
    /// # Errors
    /// [`Stop::TripleFault`].
    pub(crate) fn deliver(&mut self, exception: Exception) -> Exec {
        let Exception { vector: number, error } = exception;
        let cause = if number == vector::DB { Cause::Event } else { Cause::Fault };
        if number == vector::DB {
            self.note_debug_trap();
        }
        self.deliver_event(Event { vector: number, error, cause })
    }

    /// Delivers an event and whatever exceptions its delivery raises. RIP is where the guest is to return to.
    ///
    /// # Errors
    /// [`Stop::TripleFault`].
    pub(crate) fn deliver_event(&mut self, mut event: Event) -> Exec {
        loop {
            if event.vector == vector::PF && event.cause == Cause::Fault {
                self.cr2 = self.fault_address;
            }
            let next = match self.try_deliver(event) {
                Ok(()) => return Ok(()),
                Err(Stop::Exception(next)) => next,
                Err(other) => return Err(other),
            };
            if event.vector == vector::DF {
                return Err(Stop::TripleFault);
            }
            let combines = event.cause == Cause::Fault
                && matches!(
                    (class(event.vector), class(next.vector)),
                    (Class::Contributory, Class::Contributory) | (Class::PageFault, Class::Contributory | Class::PageFault)
                );
            if combines && next.vector == vector::PF {
                self.cr2 = self.fault_address;
            }
            event = if combines {
                Event { vector: vector::DF, error: Some(0), cause: Cause::Fault }
            } else {
                Event { vector: next.vector, error: next.error, cause: Cause::Fault }
            };
        }
    }

    /// INT n, INT3, INTO, INT1: RIP is behind the instruction. A fault on the way leaves everything as it was, so that the
    /// run loop can report it at the instruction.
    pub(super) fn software_interrupt(&mut self, number: u8, cause: Cause) -> Exec {
        let before = self.tr.selector;
        let result = self.try_deliver(Event { vector: number, error: None, cause });
        self.finish_task_switch(before, result)
    }

    /// One attempt: all or nothing, as far as registers go.
    fn try_deliver(&mut self, event: Event) -> Exec {
        if !self.is_protected() {
            self.deliver_real(event)
        } else if self.is_long() {
            self.deliver_long(event)
        } else {
            self.deliver_protected(event)
        }?;
        self.interrupt_shadow = false;
        Ok(())
    }

    /// RFLAGS as the handler will find it on its stack.
    fn pushed_flags(&self, event: Event) -> u64 {
        // A fault restarts its instruction, which must not meet the same instruction breakpoint again.
        let resume = if event.cause == Cause::Fault { bit::RF } else { 0 };
        self.flags.value() & !bit::RF | resume | self.flags.value() & bit::RF
    }

    fn deliver_real(&mut self, event: Event) -> Exec {
        let at = u64::from(event.vector) * 4;
        if at + 3 > u64::from(self.idtr.limit) {
            return Err(Stop::gp(event.gate_error()));
        }
        let entry: u32 = self.read_system(self.idtr.base.wrapping_add(at))?;
        let (offset, selector) = (entry & 0xffff, (entry >> 16) as u16);
        let mut stack = NewStack::current(self);
        stack.push(self, 2, self.flags.value() & 0xffff)?;
        stack.push(self, 2, u64::from(self.segments[usize::from(seg::CS)].selector))?;
        stack.push(self, 2, self.rip)?;
        let segment = self.paragraph(seg::CS, selector);
        if offset > segment.limit {
            return Err(Stop::gp(event.ext()));
        }
        self.set_sp(stack.pointer);
        self.segments[usize::from(seg::CS)] = segment;
        self.rip = u64::from(offset);
        self.flags.remove(bit::IF | bit::TF | bit::RF | bit::AC);
        self.mode_changed();
        Ok(())
    }

    /// Through a gate of the 8-byte kind.
    fn deliver_protected(&mut self, event: Event) -> Exec {
        let at = u64::from(event.vector) * 8;
        if at + 7 > u64::from(self.idtr.limit) {
            return Err(Stop::gp(event.gate_error()));
        }
        let gate: u64 = self.read_system(self.idtr.base.wrapping_add(at))?;
        let gate_kind = (gate >> 40 & 0x1f) as u8;
        let known = matches!(
            gate_kind,
            kind::TASK_GATE | kind::INTERRUPT_GATE16 | kind::TRAP_GATE16 | kind::INTERRUPT_GATE32 | kind::TRAP_GATE32
        );
        self.check_gate(event, gate, known)?;
        let selector = Selector((gate >> 16) as u16);
        if gate_kind == kind::TASK_GATE {
            let linkage = Linkage::Nested { error: event.error };
            return self.switch_task(TaskSwitch { selector, linkage, ext: event.ext(), through_gate: true });
        }
        let code = self.handler_segment(event, selector)?;
        let wide = gate_kind & 8 != 0;
        let offset = if wide { gate & 0xffff | gate >> 32 & 0xffff_0000 } else { gate & 0xffff };
        let bytes = if wide { 4 } else { 2 };
        let inner = !code.is_conforming() && code.dpl() < self.cpl;
        let from_v86 = self.is_v86();
        if from_v86 && (!inner || code.dpl() != 0) {
            return Err(Stop::gp(selector.error() | event.ext()));
        }
        let new_cpl = if inner { code.dpl() } else { self.cpl };
        let flags = self.pushed_flags(event);
        let mut stack = if inner { NewStack::of_tss(self, new_cpl, event.ext())? } else { NewStack::current(self) };
        stack.ext = event.ext();
        if inner {
            if from_v86 {
                for register in [seg::GS, seg::FS, seg::DS, seg::ES] {
                    stack.push(self, bytes, u64::from(self.segments[usize::from(register)].selector))?;
                }
            }
            stack.push(self, bytes, u64::from(self.segments[usize::from(seg::SS)].selector))?;
            stack.push(self, bytes, self.gpr[usize::from(reg::SP)])?;
        }
        stack.push(self, bytes, flags)?;
        stack.push(self, bytes, u64::from(self.segments[usize::from(seg::CS)].selector))?;
        stack.push(self, bytes, self.rip)?;
        if let Some(error) = event.error {
            stack.push(self, bytes, u64::from(error))?;
        }
        let segment = self.accessed_segment(code)?;
        if offset > u64::from(segment.limit) {
            return Err(Stop::gp(event.ext()));
        }
        if inner {
            stack.install(self);
            if from_v86 {
                for register in [seg::GS, seg::FS, seg::DS, seg::ES] {
                    self.segments[usize::from(register)] = Segment::default();
                }
            }
        } else {
            self.set_sp(stack.pointer);
        }
        self.flags.remove(bit::TF | bit::NT | bit::RF | bit::VM);
        if gate_kind & 1 == 0 {
            self.flags.remove(bit::IF);
        }
        self.set_code_segment(segment, new_cpl);
        self.rip = offset;
        self.mode_changed();
        Ok(())
    }

    /// Through a 16-byte gate.
    fn deliver_long(&mut self, event: Event) -> Exec {
        let at = u64::from(event.vector) * 16;
        if at + 15 > u64::from(self.idtr.limit) {
            return Err(Stop::gp(event.gate_error()));
        }
        let gate: u64 = self.read_system(self.idtr.base.wrapping_add(at))?;
        let upper: u64 = self.read_system(self.idtr.base.wrapping_add(at + 8))?;
        let gate_kind = (gate >> 40 & 0x1f) as u8;
        let known = matches!(gate_kind, kind::INTERRUPT_GATE32 | kind::TRAP_GATE32) && upper >> 40 & 0x1f == 0;
        self.check_gate(event, gate, known)?;
        let selector = Selector((gate >> 16) as u16);
        let code = self.handler_segment(event, selector)?;
        if !code.is_long() || code.is_big() {
            return Err(Stop::gp(selector.error() | event.ext()));
        }
        let offset = gate & 0xffff | gate >> 32 & 0xffff_0000 | upper << 32;
        let inner = !code.is_conforming() && code.dpl() < self.cpl;
        let new_cpl = if inner { code.dpl() } else { self.cpl };
        let ist = (gate >> 32 & 7) as u8;
        let top = if ist != 0 {
            self.read_tss64(28 + u64::from(ist) * 8, event.ext())?
        } else if inner {
            self.read_tss64(4 + u64::from(new_cpl) * 8, event.ext())?
        } else {
            self.gpr[usize::from(reg::SP)]
        };
        if !is_canonical(top) {
            return Err(Stop::ss(event.ext()));
        }
        let mut stack = NewStack::long(self, top & !15, new_cpl);
        stack.ext = event.ext();
        stack.push(self, 8, u64::from(self.segments[usize::from(seg::SS)].selector))?;
        stack.push(self, 8, self.gpr[usize::from(reg::SP)])?;
        stack.push(self, 8, self.pushed_flags(event))?;
        stack.push(self, 8, u64::from(self.segments[usize::from(seg::CS)].selector))?;
        stack.push(self, 8, self.rip)?;
        if let Some(error) = event.error {
            stack.push(self, 8, u64::from(error))?;
        }
        let segment = self.accessed_segment(code)?;
        if !is_canonical(offset) {
            return Err(Stop::gp(event.ext()));
        }
        if inner {
            self.segments[usize::from(seg::SS)] = null_stack(new_cpl);
        }
        self.gpr[usize::from(reg::SP)] = stack.pointer;
        self.flags.remove(bit::TF | bit::NT | bit::RF | bit::VM);
        if gate_kind & 1 == 0 {
            self.flags.remove(bit::IF);
        }
        self.set_code_segment(segment, new_cpl);
        self.rip = offset;
        self.mode_changed();
        Ok(())
    }

    /// The checks of a gate itself.
    fn check_gate(&self, event: Event, gate: u64, known: bool) -> Exec {
        let dpl = (gate >> 45 & 3) as u8;
        if !known || event.cause == Cause::Software && dpl < self.cpl {
            return Err(Stop::gp(event.gate_error()));
        }
        if gate >> 47 & 1 == 0 {
            return Err(Stop::np(event.gate_error()));
        }
        Ok(())
    }

    /// The checks of the code segment that a gate names.
    fn handler_segment(&mut self, event: Event, selector: Selector) -> Result<Found, Stop> {
        let ext = event.ext();
        if selector.is_null() {
            return Err(Stop::gp(ext));
        }
        let code = self.find_descriptor(selector, Stop::gp).map_err(|stop| with_ext(stop, ext))?;
        if !code.is_code() || code.dpl() > self.cpl {
            return Err(Stop::gp(selector.error() | ext));
        }
        if !code.is_present() {
            return Err(Stop::np(selector.error() | ext));
        }
        Ok(code)
    }

    /// Marks a descriptor accessed and gives its segment.
    pub(super) fn accessed_segment(&mut self, mut found: Found) -> Result<Segment, Stop> {
        self.mark_accessed(&mut found)?;
        Ok(found.segment())
    }
}

/// Adds the EXT bit to the error code of a selector's exception; a page fault's code is its own.
pub(super) fn with_ext(stop: Stop, ext: u16) -> Stop {
    match stop {
        Stop::Exception(Exception { vector: number, error: Some(error) }) if number != vector::PF => {
            Stop::with_error(number, error | ext)
        }
        other => other,
    }
}
