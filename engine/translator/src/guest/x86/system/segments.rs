//! Segment registers: selectors, descriptors, and the checks of loading them (Intel SDM volume 3, 3.4, 3.5 and 5).

use super::super::cpu::{Cpu, seg};
use super::super::fault::{Exec, Stop};
use super::super::op::{Handler, Op};
use engine_cpu::x86::{Descriptor, Segment};
use iced_x86::Code;

/// The visible part of a segment register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Selector(pub u16);

impl Selector {
    /// Requested privilege level.
    pub fn rpl(self) -> u8 {
        (self.0 & 3) as u8
    }
    /// Entry 0 of the GDT, with any RPL.
    pub fn is_null(self) -> bool {
        self.0 & !3 == 0
    }
    /// In the local descriptor table.
    pub fn is_local(self) -> bool {
        self.0 & 4 != 0
    }
    /// As an error code: without the RPL.
    pub fn error(self) -> u16 {
        self.0 & !3
    }
}

/// System descriptor types (SDM volume 3, table 3-2), without the busy bit where there is one.
pub(crate) mod kind {
    pub const TSS16: u8 = 1;
    pub const LDT: u8 = 2;
    pub const CALL_GATE16: u8 = 4;
    pub const TASK_GATE: u8 = 5;
    pub const INTERRUPT_GATE16: u8 = 6;
    pub const TRAP_GATE16: u8 = 7;
    pub const TSS32: u8 = 9;
    pub const CALL_GATE32: u8 = 12;
    pub const INTERRUPT_GATE32: u8 = 14;
    pub const TRAP_GATE32: u8 = 15;
    /// The busy bit of a TSS.
    pub const BUSY: u8 = 2;
}

/// What a bad selector raises, given its error code.
pub(crate) type Blame = fn(u16) -> Stop;

/// A descriptor and where it lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub selector: Selector,
    /// Its linear address.
    pub address: u64,
    pub descriptor: Descriptor,
}

impl Found {
    /// What loading it into a segment register gives.
    pub fn segment(&self) -> Segment {
        Segment::from_descriptor(self.selector.0, self.descriptor)
    }
    pub fn is_code_or_data(&self) -> bool {
        self.descriptor.0 >> 44 & 1 != 0
    }
    pub fn is_code(&self) -> bool {
        self.descriptor.0 >> 43 & 3 == 3
    }
    pub fn is_data(&self) -> bool {
        self.descriptor.0 >> 43 & 3 == 2
    }
    /// Code: readable. Data: writable.
    pub fn is_readable_or_writable(&self) -> bool {
        self.descriptor.0 >> 41 & 1 != 0
    }
    /// Code only: runs at the caller's privilege.
    pub fn is_conforming(&self) -> bool {
        self.is_code() && self.descriptor.0 >> 42 & 1 != 0
    }
    pub fn is_present(&self) -> bool {
        self.descriptor.0 >> 47 & 1 != 0
    }
    pub fn dpl(&self) -> u8 {
        (self.descriptor.0 >> 45 & 3) as u8
    }
    /// The type of a system descriptor.
    pub fn kind(&self) -> u8 {
        (self.descriptor.0 >> 40 & 15) as u8
    }
    /// L
    pub fn is_long(&self) -> bool {
        self.descriptor.0 >> 53 & 1 != 0
    }
    /// D/B
    pub fn is_big(&self) -> bool {
        self.descriptor.0 >> 54 & 1 != 0
    }
}

impl Cpu {
    /// The linear address of a descriptor of `bytes`, if its table reaches that far.
    fn descriptor_address(&self, selector: Selector, bytes: u64) -> Option<u64> {
        let (base, limit) = if selector.is_local() {
            if !self.ldtr.is_present() {
                return None;
            }
            (self.ldtr.base, u64::from(self.ldtr.limit))
        } else {
            (self.gdtr.base, u64::from(self.gdtr.limit))
        };
        let offset = u64::from(selector.0 & !7);
        (offset + bytes - 1 <= limit).then(|| base.wrapping_add(offset))
    }

    /// Reads the descriptor of a selector that is not null; `blame` when its table does not reach that far.
    pub(crate) fn find_descriptor(&mut self, selector: Selector, blame: Blame) -> Result<Found, Stop> {
        let address = self.descriptor_address(selector, 8).ok_or_else(|| blame(selector.error()))?;
        let descriptor = Descriptor(self.read_system(address)?);
        Ok(Found { selector, address, descriptor })
    }

    /// The upper half of a 16-byte system descriptor.
    pub(crate) fn upper_descriptor(&mut self, found: &Found, blame: Blame) -> Result<u64, Stop> {
        let error = found.selector.error();
        self.descriptor_address(found.selector, 16).ok_or_else(|| blame(error))?;
        let upper: u64 = self.read_system(found.address.wrapping_add(8))?;
        // Its type field must be zero, so that it cannot be taken for a descriptor of its own.
        if upper >> 40 & 0x1f != 0 { Err(blame(error)) } else { Ok(upper) }
    }

    /// Sets the accessed bit of a code or data descriptor in its table.
    pub(crate) fn mark_accessed(&mut self, found: &mut Found) -> Exec {
        if found.descriptor.0 & 1 << 40 == 0 {
            found.descriptor.0 |= 1 << 40;
            self.write_system(found.address.wrapping_add(5), (found.descriptor.0 >> 40) as u8)?;
        }
        Ok(())
    }

    /// Loads ES, SS, DS, FS or GS with all checks of the mode.
    pub(crate) fn load_segment(&mut self, register: u8, value: u16) -> Exec {
        let segment = self.checked_segment(register, value)?;
        self.segments[usize::from(register % 6)] = segment;
        self.mode_changed();
        Ok(())
    }

    /// What loading `value` into `register` (not CS) would give.
    pub(crate) fn checked_segment(&mut self, register: u8, value: u16) -> Result<Segment, Stop> {
        if self.uses_paragraphs() {
            return Ok(self.paragraph(register, value));
        }
        let selector = Selector(value);
        if register == seg::SS {
            let cpl = self.cpl;
            if selector.is_null() {
                // 64-bit code runs without a stack segment, outside ring 3.
                let allowed = self.is_64_bit() && cpl != 3 && selector.rpl() == cpl;
                return if allowed { Ok(null_stack(cpl)) } else { Err(Stop::gp(0)) };
            }
            return self.stack_segment(selector, cpl, Stop::gp);
        }
        if selector.is_null() {
            return Ok(Segment { selector: value, ..Segment::default() });
        }
        let mut found = self.find_descriptor(selector, Stop::gp)?;
        let readable = found.is_data() || found.is_code() && found.is_readable_or_writable();
        let privileged = found.is_conforming() || selector.rpl().max(self.cpl) <= found.dpl();
        if !readable || !privileged {
            return Err(Stop::gp(selector.error()));
        }
        if !found.is_present() {
            return Err(Stop::np(selector.error()));
        }
        self.mark_accessed(&mut found)?;
        Ok(found.segment())
    }

    /// The stack segment that `selector` names, for privilege level `cpl`; `blame` is #TS when a TSS or a task names it.
    pub(crate) fn stack_segment(&mut self, selector: Selector, cpl: u8, blame: Blame) -> Result<Segment, Stop> {
        if selector.is_null() {
            return Err(blame(0));
        }
        let mut found = self.find_descriptor(selector, blame)?;
        let error = selector.error();
        if selector.rpl() != cpl || !found.is_data() || !found.is_readable_or_writable() || found.dpl() != cpl {
            return Err(blame(error));
        }
        if !found.is_present() {
            return Err(Stop::ss(error));
        }
        self.mark_accessed(&mut found)?;
        Ok(found.segment())
    }

    /// What a selector gives in real and virtual-8086 mode. In real mode limit and rights stay as they were loaded in
    /// protected mode, which is what "unreal mode" lives on.
    pub(crate) fn paragraph(&self, register: u8, value: u16) -> Segment {
        if self.is_v86() {
            return Segment::real_mode(value, 0xf3);
        }
        let before = self.segments[usize::from(register % 6)];
        let mut segment = Segment { selector: value, base: u64::from(value) << 4, ..before };
        if !before.is_present() {
            // A null segment of protected mode becomes usable again.
            segment.limit = 0xffff;
            segment.attributes = 0x93;
        }
        segment
    }

    /// Sets CS for code at privilege level `cpl`, which becomes the RPL of its selector.
    pub(crate) fn set_code_segment(&mut self, mut segment: Segment, cpl: u8) {
        segment.selector = segment.selector & !3 | u16::from(cpl);
        self.segments[usize::from(seg::CS)] = segment;
        self.cpl = cpl;
    }
}

/// SS of 64-bit code at `cpl` without a segment: unusable, but it knows its privilege level.
pub(crate) fn null_stack(cpl: u8) -> Segment {
    Segment { selector: u16::from(cpl), base: 0, limit: 0, attributes: u16::from(cpl) << 5 }
}

// ---- Instructions ----------------------------------------------------------------------------------------------

pub(super) fn handler(code: Code) -> Option<Handler> {
    use seg::{CS, DS, ES, FS, GS, SS};
    Some(match code {
        Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => store_selector,
        Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => load_selector,
        Code::Pushw_ES | Code::Pushd_ES => push_selector::<ES>,
        Code::Pushw_CS | Code::Pushd_CS => push_selector::<CS>,
        Code::Pushw_SS | Code::Pushd_SS => push_selector::<SS>,
        Code::Pushw_DS | Code::Pushd_DS => push_selector::<DS>,
        Code::Pushw_FS | Code::Pushd_FS | Code::Pushq_FS => push_selector::<FS>,
        Code::Pushw_GS | Code::Pushd_GS | Code::Pushq_GS => push_selector::<GS>,
        Code::Popw_ES | Code::Popd_ES => pop_selector::<ES>,
        Code::Popw_SS | Code::Popd_SS => pop_selector::<SS>,
        Code::Popw_DS | Code::Popd_DS => pop_selector::<DS>,
        Code::Popw_FS | Code::Popd_FS | Code::Popq_FS => pop_selector::<FS>,
        Code::Popw_GS | Code::Popd_GS | Code::Popq_GS => pop_selector::<GS>,
        Code::Les_r16_m1616 | Code::Les_r32_m1632 => load_pointer::<ES>,
        Code::Lds_r16_m1616 | Code::Lds_r32_m1632 => load_pointer::<DS>,
        Code::Lss_r16_m1616 | Code::Lss_r32_m1632 | Code::Lss_r64_m1664 => load_pointer::<SS>,
        Code::Lfs_r16_m1616 | Code::Lfs_r32_m1632 | Code::Lfs_r64_m1664 => load_pointer::<FS>,
        Code::Lgs_r16_m1616 | Code::Lgs_r32_m1632 | Code::Lgs_r64_m1664 => load_pointer::<GS>,
        _ => return None,
    })
}

/// MOV r/m, Sreg: 16 bits to memory; zero-extended to the operand size in a register.
fn store_selector(cpu: &mut Cpu, op: &Op) -> Exec {
    let selector = cpu.segments[usize::from(op.reg % 6)].selector;
    if op.has_memory() {
        return cpu.write(op.segment, cpu.operand_address(op), selector);
    }
    cpu.set_reg(op.rm, op.operand_bytes, u64::from(selector));
    Ok(())
}

/// MOV Sreg, r/m.
fn load_selector(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = cpu.read_rm16(op)?;
    if op.reg == seg::CS || op.reg > seg::GS {
        return Err(Stop::ud());
    }
    cpu.load_segment(op.reg, value)?;
    if op.reg == seg::SS {
        cpu.start_shadow_of_stack_load();
    }
    Err(Stop::EndTrace)
}

/// PUSH Sreg. With a 32-bit operand only 16 bits are written, as CPUs have done since the Pentium Pro.
fn push_selector<const REGISTER: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let selector = cpu.segments[usize::from(REGISTER)].selector;
    if op.operand_bytes == 4 {
        let to = cpu.sp().wrapping_sub(4) & cpu.stack_mask;
        cpu.write(seg::SS, to, selector)?;
        cpu.set_sp(to);
        return Ok(());
    }
    cpu.push_sized(op.operand_bytes, u64::from(selector))
}

/// POP Sreg.
fn pop_selector<const REGISTER: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value: u16 = cpu.peek(0)?;
    let segment = cpu.checked_segment(REGISTER, value)?;
    // The pointer moves by the old stack's size.
    cpu.set_sp(cpu.sp().wrapping_add(u64::from(op.operand_bytes)));
    cpu.segments[usize::from(REGISTER)] = segment;
    cpu.mode_changed();
    if REGISTER == seg::SS {
        cpu.start_shadow_of_stack_load();
    }
    Err(Stop::EndTrace)
}

/// LES, LDS, LSS, LFS, LGS.
fn load_pointer<const REGISTER: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let bytes = op.operand_bytes;
    let at = cpu.operand_address(op);
    let offset = cpu.read_sized(op.segment, at, bytes)?;
    let selector: u16 = cpu.read(op.segment, at.wrapping_add(u64::from(bytes)) & op.address_mask())?;
    cpu.load_segment(REGISTER, selector)?;
    cpu.set_reg(op.reg, bytes, offset);
    Err(Stop::EndTrace)
}

impl Cpu {
    /// A 16-bit r/m operand.
    pub(super) fn read_rm16(&mut self, op: &Op) -> Result<u16, Stop> {
        if op.has_memory() { self.read(op.segment, self.operand_address(op)) } else { Ok(self.reg16(op.rm)) }
    }

    /// Reads 2, 4 or 8 bytes.
    pub(super) fn read_sized(&mut self, segment: u8, offset: u64, bytes: u8) -> Result<u64, Stop> {
        Ok(match bytes {
            2 => u64::from(self.read::<u16>(segment, offset)?),
            4 => u64::from(self.read::<u32>(segment, offset)?),
            _ => self.read::<u64>(segment, offset)?,
        })
    }

    /// MOV SS, POP SS: no interrupt and no debug trap before the next instruction is done, so that SP can follow.
    fn start_shadow_of_stack_load(&mut self) {
        self.interrupt_shadow = true;
        // A breakpoint that this load met is lost with it, as on CPUs that hold it back to the next instruction only.
        self.pending_debug = 0;
    }
}
