//! Far transfers: JMP, CALL and RET to another code segment, call gates, IRET (Intel SDM volume 3, 5.8 and 6.12).

use super::super::cpu::{Cpu, is_canonical, reg, seg};
use super::super::fault::{Exec, Stop};
use super::super::flags::bit;
use super::super::op::{Handler, Op};
use super::exceptions::Cause;
use super::segments::{Found, Selector, kind, null_stack};
use super::stack::NewStack;
use super::tasks::{Linkage, TaskSwitch};
use engine_cpu::x86::Segment;
use iced_x86::Code;

pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Jmp_ptr1616 | Code::Jmp_ptr1632 => jump_pointer,
        Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664 => jump_memory,
        Code::Call_ptr1616 | Code::Call_ptr1632 => call_pointer,
        Code::Call_m1616 | Code::Call_m1632 | Code::Call_m1664 => call_memory,
        Code::Retfw | Code::Retfd | Code::Retfq | Code::Retfw_imm16 | Code::Retfd_imm16 | Code::Retfq_imm16 => return_far,
        Code::Iretw | Code::Iretd | Code::Iretq => interrupt_return,
        Code::Int_imm8 => interrupt,
        Code::Int3 => breakpoint,
        Code::Into => overflow,
        Code::Int1 => icebp,
        _ => return None,
    })
}

fn jump_pointer(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.jump_far(op.disp as u16, op.imm)
}

fn call_pointer(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.call_far(op.disp as u16, op.imm, op.operand_bytes)
}

fn jump_memory(cpu: &mut Cpu, op: &Op) -> Exec {
    let (selector, offset) = far_pointer(cpu, op)?;
    cpu.jump_far(selector, offset)
}

fn call_memory(cpu: &mut Cpu, op: &Op) -> Exec {
    let (selector, offset) = far_pointer(cpu, op)?;
    cpu.call_far(selector, offset, op.operand_bytes)
}

fn far_pointer(cpu: &mut Cpu, op: &Op) -> Result<(u16, u64), Stop> {
    let at = cpu.operand_address(op);
    let offset = cpu.read_sized(op.segment, at, op.operand_bytes)?;
    let selector = cpu.read(op.segment, at.wrapping_add(u64::from(op.operand_bytes)) & op.address_mask())?;
    Ok((selector, offset))
}

fn return_far(cpu: &mut Cpu, op: &Op) -> Exec {
    let release = match op.code {
        Code::Retfw_imm16 | Code::Retfd_imm16 | Code::Retfq_imm16 => op.imm & 0xffff,
        _ => 0,
    };
    cpu.return_far(op.operand_bytes, release)
}

fn interrupt_return(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.interrupt_return(op.operand_bytes)
}

/// INT n. In virtual-8086 mode IOPL must be 3 (there is no VME to redirect it).
fn interrupt(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.is_v86() && cpu.flags.iopl() < 3 {
        return Err(Stop::gp(0));
    }
    cpu.software_interrupt(op.imm as u8, Cause::Software)
}

fn breakpoint(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.software_interrupt(3, Cause::Software)
}

fn overflow(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.flags.of() { cpu.software_interrupt(4, Cause::Software) } else { Ok(()) }
}

/// INT1 (F1h): #DB without a DR6 bit and without a look at the gate's DPL.
fn icebp(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.note_debug_trap();
    cpu.software_interrupt(1, Cause::Event)
}

/// Where a checked code segment may be entered at `offset`.
fn check_entry(cpu: &Cpu, code: &Found, offset: u64) -> Exec {
    let inside = if cpu.is_long() && code.is_long() { is_canonical(offset) } else { offset <= u64::from(code.segment().limit) };
    if inside { Ok(()) } else { Err(Stop::gp(0)) }
}

impl Cpu {
    fn jump_far(&mut self, selector: u16, offset: u64) -> Exec {
        if self.uses_paragraphs() {
            return self.enter_paragraph(selector, offset);
        }
        let selector = Selector(selector);
        if selector.is_null() {
            return Err(Stop::gp(0));
        }
        let found = self.find_descriptor(selector, Stop::gp)?;
        if found.is_code_or_data() {
            self.check_direct(&found)?;
            check_entry(self, &found, offset)?;
            let segment = self.accessed_segment(found)?;
            return self.enter_code(segment, self.cpl, offset);
        }
        self.check_gate_access(&found)?;
        match found.kind() {
            kind::CALL_GATE16 | kind::CALL_GATE32 => {
                let (code, offset) = self.gate_target(&found)?;
                let allowed = if code.is_conforming() { code.dpl() <= self.cpl } else { code.dpl() == self.cpl };
                if !allowed {
                    return Err(Stop::gp(code.selector.error()));
                }
                self.check_gate_target(&code, offset)?;
                let segment = self.accessed_segment(code)?;
                self.enter_code(segment, self.cpl, offset)
            }
            _ => self.switch_by(&found, Linkage::Jump),
        }
    }

    fn call_far(&mut self, selector: u16, offset: u64, bytes: u8) -> Exec {
        if self.uses_paragraphs() {
            let stack = self.pushed_return(bytes)?;
            if offset > u64::from(self.segments[usize::from(seg::CS)].limit) {
                return Err(Stop::gp(0));
            }
            self.set_sp(stack.pointer);
            return self.enter_paragraph(selector, offset);
        }
        let selector = Selector(selector);
        if selector.is_null() {
            return Err(Stop::gp(0));
        }
        let found = self.find_descriptor(selector, Stop::gp)?;
        if found.is_code_or_data() {
            self.check_direct(&found)?;
            let stack = self.pushed_return(bytes)?;
            check_entry(self, &found, offset)?;
            let segment = self.accessed_segment(found)?;
            self.set_sp(stack.pointer);
            return self.enter_code(segment, self.cpl, offset);
        }
        self.check_gate_access(&found)?;
        match found.kind() {
            kind::CALL_GATE16 | kind::CALL_GATE32 => self.call_gate(&found),
            _ => self.switch_by(&found, Linkage::Call),
        }
    }

    /// CALL through a call gate.
    fn call_gate(&mut self, gate: &Found) -> Exec {
        let (code, offset) = self.gate_target(gate)?;
        let bytes = match gate.kind() {
            _ if self.is_long() => 8,
            kind::CALL_GATE32 => 4,
            _ => 2,
        };
        self.check_gate_target(&code, offset)?;
        if code.is_conforming() || code.dpl() == self.cpl {
            let stack = self.pushed_return(bytes)?;
            let segment = self.accessed_segment(code)?;
            self.set_sp(stack.pointer);
            return self.enter_code(segment, self.cpl, offset);
        }
        let cpl = code.dpl();
        let (old_ss, old_sp) = (self.segments[usize::from(seg::SS)].selector, self.rsp());
        let mut stack = if self.is_long() {
            let top = self.read_tss64(4 + u64::from(cpl) * 8, 0)?;
            NewStack::long(self, top, cpl)
        } else {
            NewStack::of_tss(self, cpl, 0)?
        };
        stack.push(self, bytes, u64::from(old_ss))?;
        stack.push(self, bytes, old_sp)?;
        // Parameters: the last one is copied first. 64-bit gates have none.
        let parameters = if self.is_long() { 0 } else { gate.descriptor.0 >> 32 & 0x1f };
        for number in (0..parameters).rev() {
            let value = self.peek_sized(bytes, number * u64::from(bytes))?;
            stack.push(self, bytes, value)?;
        }
        stack.push(self, bytes, u64::from(self.segments[usize::from(seg::CS)].selector))?;
        stack.push(self, bytes, self.rip)?;
        let segment = self.accessed_segment(code)?;
        if self.is_long() {
            self.segments[usize::from(seg::SS)] = null_stack(cpl);
            self.gpr[usize::from(reg::SP)] = stack.pointer;
        } else {
            stack.install(self);
        }
        self.enter_code(segment, cpl, offset)
    }

    fn return_far(&mut self, bytes: u8, release: u64) -> Exec {
        let size = u64::from(bytes);
        let offset = self.peek_sized(bytes, 0)?;
        let selector = self.peek_sized(bytes, size)? as u16;
        if self.uses_paragraphs() {
            if offset > u64::from(self.segments[usize::from(seg::CS)].limit) {
                return Err(Stop::gp(0));
            }
            self.set_sp(self.sp().wrapping_add(2 * size + release));
            return self.enter_paragraph(selector, offset);
        }
        let (code, cpl) = self.return_target(Selector(selector))?;
        if cpl == self.cpl {
            check_entry(self, &code, offset)?;
            let segment = self.accessed_segment(code)?;
            self.set_sp(self.sp().wrapping_add(2 * size + release));
            return self.enter_code(segment, cpl, offset);
        }
        let sp = self.peek_sized(bytes, 2 * size + release)?;
        let ss = self.peek_sized(bytes, 3 * size + release)? as u16;
        let stack = self.return_stack(Selector(ss), cpl, code.is_long())?;
        check_entry(self, &code, offset)?;
        let segment = self.accessed_segment(code)?;
        self.segments[usize::from(seg::SS)] = stack;
        self.enter_outer(segment, cpl, offset);
        self.set_sp(sp.wrapping_add(release));
        Err(Stop::EndTrace)
    }

    fn interrupt_return(&mut self, bytes: u8) -> Exec {
        // The attempt counts, even if it faults.
        self.nmi_blocked = false;
        let size = u64::from(bytes);
        if self.uses_paragraphs() {
            if self.is_v86() && self.flags.iopl() < 3 {
                return Err(Stop::gp(0));
            }
            let offset = self.peek_sized(bytes, 0)?;
            let selector = self.peek_sized(bytes, size)? as u16;
            let flags = self.peek_sized(bytes, 2 * size)?;
            if offset > u64::from(self.segments[usize::from(seg::CS)].limit) {
                return Err(Stop::gp(0));
            }
            self.set_sp(self.sp().wrapping_add(3 * size));
            let iopl = if self.is_v86() { 0 } else { bit::IOPL };
            self.set_flags_masked(
                flags,
                bytes,
                bit::ARITHMETIC | bit::TF | bit::IF | bit::DF | bit::NT | bit::RF | bit::AC | bit::ID | iopl,
            );
            return self.enter_paragraph(selector, offset);
        }
        if self.flags.has(bit::NT) {
            return if self.is_long() { Err(Stop::gp(0)) } else { self.return_from_task() };
        }
        let offset = self.peek_sized(bytes, 0)?;
        let selector = self.peek_sized(bytes, size)? as u16;
        let flags = self.peek_sized(bytes, 2 * size)?;
        if bytes == 4 && flags & bit::VM != 0 && self.cpl == 0 && !self.is_long() {
            return self.return_to_v86(offset, selector, flags);
        }
        let (code, cpl) = self.return_target(Selector(selector))?;
        let mut changeable = bit::ARITHMETIC | bit::TF | bit::DF | bit::NT | bit::RF | bit::AC | bit::ID;
        if self.cpl == 0 {
            changeable |= bit::IOPL | bit::VIF | bit::VIP;
        }
        if self.cpl <= self.flags.iopl() {
            changeable |= bit::IF;
        }
        if cpl == self.cpl && !self.is_64_bit() {
            check_entry(self, &code, offset)?;
            let segment = self.accessed_segment(code)?;
            self.set_sp(self.sp().wrapping_add(3 * size));
            self.set_flags_masked(flags, bytes, changeable);
            return self.enter_code(segment, cpl, offset);
        }
        // To an outer level; 64-bit code always gets its stack back.
        let sp = self.peek_sized(bytes, 3 * size)?;
        let ss = self.peek_sized(bytes, 4 * size)? as u16;
        let stack = self.return_stack(Selector(ss), cpl, code.is_long())?;
        check_entry(self, &code, offset)?;
        let segment = self.accessed_segment(code)?;
        let outer = cpl > self.cpl;
        self.set_flags_masked(flags, bytes, changeable);
        self.segments[usize::from(seg::SS)] = stack;
        if outer {
            self.enter_outer(segment, cpl, offset);
        } else {
            self.set_code_segment(segment, cpl);
            self.rip = offset;
            self.mode_changed();
        }
        self.set_sp(sp);
        Err(Stop::EndTrace)
    }

    fn return_to_v86(&mut self, offset: u64, selector: u16, flags: u64) -> Exec {
        let sp = self.peek_sized(4, 12)?;
        let mut selectors = [0; 5];
        for (number, value) in (0..).zip(&mut selectors) {
            *value = self.peek_sized(4, 16 + number * 4)? as u16;
        }
        let [ss, es, ds, fs, gs] = selectors;
        // V86 code has a limit of 64 KiB, whatever CS had.
        if offset > 0xffff {
            return Err(Stop::gp(0));
        }
        self.flags.set(flags & 0x003f_7fd5);
        self.cpl = 3;
        for (register, value) in [(seg::ES, es), (seg::CS, selector), (seg::SS, ss), (seg::DS, ds), (seg::FS, fs), (seg::GS, gs)]
        {
            self.segments[usize::from(register)] = self.paragraph(register, value);
        }
        self.gpr[usize::from(reg::SP)] = sp;
        self.rip = offset;
        self.mode_changed();
        Err(Stop::EndTrace)
    }

    /// Pushes CS and RIP on the current stack; the caller commits its pointer.
    fn pushed_return(&mut self, bytes: u8) -> Result<NewStack, Stop> {
        let mut stack = NewStack::current(self);
        stack.push(self, bytes, u64::from(self.segments[usize::from(seg::CS)].selector))?;
        stack.push(self, bytes, self.rip)?;
        Ok(stack)
    }

    /// Real and virtual-8086 mode.
    fn enter_paragraph(&mut self, selector: u16, offset: u64) -> Exec {
        let segment = self.paragraph(seg::CS, selector);
        if offset > u64::from(segment.limit) {
            return Err(Stop::gp(0));
        }
        self.segments[usize::from(seg::CS)] = segment;
        self.rip = offset;
        self.mode_changed();
        Err(Stop::EndTrace)
    }

    /// Enters a checked code segment.
    fn enter_code(&mut self, segment: Segment, cpl: u8, offset: u64) -> Exec {
        self.set_code_segment(segment, cpl);
        self.rip = offset;
        self.mode_changed();
        Err(Stop::EndTrace)
    }

    /// Enters code of an outer level: data segments that it may not have are taken away. Their bases stay, as in hardware:
    /// 64-bit kernels leave FS and GS with a descriptor of their own and write the bases as MSRs.
    fn enter_outer(&mut self, segment: Segment, cpl: u8, offset: u64) {
        self.set_code_segment(segment, cpl);
        self.rip = offset;
        for register in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let data = &mut self.segments[usize::from(register)];
            let conforming = data.kind() & 0b1100 == 0b1100;
            // An unusable segment stays: in 64-bit code FS and GS have bases without descriptors.
            if data.is_present() && !conforming && data.dpl() < cpl {
                *data = Segment { base: data.base, ..Segment::default() };
            }
        }
        self.mode_changed();
    }

    /// JMP or CALL straight to a code segment.
    fn check_direct(&self, found: &Found) -> Exec {
        let error = found.selector.error();
        let privileged = if found.is_conforming() {
            found.dpl() <= self.cpl
        } else {
            found.selector.rpl() <= self.cpl && found.dpl() == self.cpl
        };
        if !found.is_code() || !privileged || self.is_long() && found.is_long() && found.is_big() {
            return Err(Stop::gp(error));
        }
        if found.is_present() { Ok(()) } else { Err(Stop::np(error)) }
    }

    /// A system descriptor as the target of JMP or CALL: its type, privilege and presence. A TSS is checked on switching.
    fn check_gate_access(&self, found: &Found) -> Exec {
        let error = found.selector.error();
        let known = match found.kind() {
            kind::CALL_GATE32 => true,
            kind::CALL_GATE16 | kind::TASK_GATE | kind::TSS16 | kind::TSS32 => !self.is_long(),
            _ => false,
        };
        if !known || found.dpl() < self.cpl.max(found.selector.rpl()) {
            return Err(Stop::gp(error));
        }
        if found.is_present() { Ok(()) } else { Err(Stop::np(error)) }
    }

    /// The code segment and offset that a call gate names.
    fn gate_target(&mut self, gate: &Found) -> Result<(Found, u64), Stop> {
        let raw = gate.descriptor.0;
        let mut offset = raw & 0xffff;
        if self.is_long() {
            offset |= raw >> 32 & 0xffff_0000 | self.upper_descriptor(gate, Stop::gp)? << 32;
        } else if gate.kind() == kind::CALL_GATE32 {
            offset |= raw >> 32 & 0xffff_0000;
        }
        let selector = Selector((raw >> 16) as u16);
        if selector.is_null() {
            return Err(Stop::gp(0));
        }
        let code = self.find_descriptor(selector, Stop::gp)?;
        Ok((code, offset))
    }

    fn check_gate_target(&self, code: &Found, offset: u64) -> Exec {
        let error = code.selector.error();
        if !code.is_code() || code.dpl() > self.cpl || self.is_long() && (!code.is_long() || code.is_big()) {
            return Err(Stop::gp(error));
        }
        if !code.is_present() {
            return Err(Stop::np(error));
        }
        check_entry(self, code, offset)
    }

    /// The code segment that RETF or IRET goes back to, and its privilege level.
    fn return_target(&mut self, selector: Selector) -> Result<(Found, u8), Stop> {
        if selector.is_null() {
            return Err(Stop::gp(0));
        }
        let code = self.find_descriptor(selector, Stop::gp)?;
        let error = selector.error();
        let cpl = selector.rpl();
        let privileged = if code.is_conforming() { code.dpl() <= cpl } else { code.dpl() == cpl };
        if !code.is_code() || cpl < self.cpl || !privileged || self.is_long() && code.is_long() && code.is_big() {
            return Err(Stop::gp(error));
        }
        if !code.is_present() {
            return Err(Stop::np(error));
        }
        Ok((code, cpl))
    }

    /// The stack that RETF or IRET goes back to. 64-bit code below ring 3 may do without.
    fn return_stack(&mut self, selector: Selector, cpl: u8, to_long: bool) -> Result<Segment, Stop> {
        if selector.is_null() && self.is_long() && to_long && cpl != 3 && selector.rpl() == cpl {
            return Ok(null_stack(cpl));
        }
        self.stack_segment(selector, cpl, Stop::gp)
    }

    fn switch_by(&mut self, found: &Found, linkage: Linkage) -> Exec {
        let through_gate = found.kind() == kind::TASK_GATE;
        let selector = if through_gate { Selector((found.descriptor.0 >> 16) as u16) } else { found.selector };
        let before = self.tr.selector;
        let result = self.switch_task(TaskSwitch { selector, linkage, ext: 0, through_gate });
        self.finish_task_switch(before, result)
    }

    /// Sets those flags of `mask` that an operand of `bytes` holds.
    pub(super) fn set_flags_masked(&mut self, value: u64, bytes: u8, mask: u64) {
        let mask = if bytes == 2 { mask & 0xffff } else { mask };
        self.flags.set(self.flags.value() & !mask | value & mask);
    }
}
