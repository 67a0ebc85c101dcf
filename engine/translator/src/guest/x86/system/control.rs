//! Control registers, descriptor table registers, and the privileged instructions around them (Intel SDM volume 3, chapters 2 and 4).

use super::super::cpu::{Cpu, cr0, cr4, efer, is_canonical, seg};
use super::super::cpuid::{Asker, PHYSICAL_BITS, feature};
use super::super::fault::{Exec, Stop};
use super::super::flags::bit;
use super::super::fxsave::in_use;
use super::super::lapic::ApicMode;
use super::super::op::{Handler, Op};
use super::super::paravirt;
use super::segments::{Selector, kind};
use engine_cpu::x86::{Segment, TableRegister};
use iced_x86::Code;

pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Mov_r32_cr => read_control::<4>,
        Code::Mov_r64_cr => read_control::<8>,
        Code::Mov_cr_r32 => write_control::<4>,
        Code::Mov_cr_r64 => write_control::<8>,
        Code::Clts => clear_task_switched,
        Code::Smsw_rm16 | Code::Smsw_r32m16 | Code::Smsw_r64m16 => store_machine_status,
        Code::Lmsw_rm16 | Code::Lmsw_r32m16 | Code::Lmsw_r64m16 => load_machine_status,
        Code::Lgdt_m1632_16 | Code::Lgdt_m1632 | Code::Lgdt_m1664 => load_gdt,
        Code::Lidt_m1632_16 | Code::Lidt_m1632 | Code::Lidt_m1664 => load_idt,
        Code::Sgdt_m1632_16 | Code::Sgdt_m1632 | Code::Sgdt_m1664 => store_gdt,
        Code::Sidt_m1632_16 | Code::Sidt_m1632 | Code::Sidt_m1664 => store_idt,
        Code::Lldt_rm16 | Code::Lldt_r32m16 | Code::Lldt_r64m16 => load_ldt,
        Code::Ltr_rm16 | Code::Ltr_r32m16 | Code::Ltr_r64m16 => load_task,
        Code::Sldt_rm16 | Code::Sldt_r32m16 | Code::Sldt_r64m16 => store_ldt,
        Code::Str_rm16 | Code::Str_r32m16 | Code::Str_r64m16 => store_task,
        Code::Arpl_rm16_r16 | Code::Arpl_r32m16_r32 => adjust_rpl,
        Code::Lar_r16_rm16 | Code::Lar_r32_r32m16 | Code::Lar_r64_r64m16 => load_access_rights,
        Code::Lsl_r16_rm16 | Code::Lsl_r32_r32m16 | Code::Lsl_r64_r64m16 => load_segment_limit,
        Code::Verr_rm16 | Code::Verr_r32m16 | Code::Verr_r64m16 => verify_read,
        Code::Verw_rm16 | Code::Verw_r32m16 | Code::Verw_r64m16 => verify_write,
        Code::Invlpg_m => invalidate_page,
        Code::Invpcid_r32_m128 | Code::Invpcid_r64_m128 => invalidate_pcid,
        Code::Invd | Code::Wbinvd | Code::Wbnoinvd => invalidate_caches,
        Code::Clflush_m8 => flush_line,
        Code::Xgetbv => read_extended_control,
        Code::Xsetbv => write_extended_control,
        Code::Clac => set_access_check::<false>,
        Code::Stac => set_access_check::<true>,
        Code::Cpuid => identify,
        _ => return None,
    })
}

fn require_ring0(cpu: &Cpu) -> Exec {
    if cpu.cpl == 0 { Ok(()) } else { Err(Stop::gp(0)) }
}

/// With CR4.UMIP, only ring 0 learns where tables lie and what they are.
fn require_permitted_store(cpu: &Cpu) -> Exec {
    if cpu.cr4 & cr4::UMIP != 0 { require_ring0(cpu) } else { Ok(()) }
}

/// Instructions about descriptors do not exist where there are none.
fn require_descriptors(cpu: &Cpu) -> Exec {
    if cpu.uses_paragraphs() { Err(Stop::ud()) } else { Ok(()) }
}

// ---- Control registers -----------------------------------------------------------------------------------------

fn read_control<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let read: fn(&Cpu) -> u64 = match control_number(op) {
        0 => |cpu| cpu.cr0,
        2 => |cpu| cpu.cr2,
        3 => |cpu| cpu.cr3,
        4 => |cpu| cpu.cr4,
        8 if cpu.is_64_bit() => |cpu| cpu.shared.apic.cr8(),
        _ => return Err(Stop::ud()),
    };
    require_ring0(cpu)?;
    let value = read(cpu);
    cpu.set_reg(op.rm, BYTES, value);
    Ok(())
}

fn write_control<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let write: fn(&mut Cpu, u64) -> Exec = match control_number(op) {
        0 => Cpu::write_cr0,
        2 => |cpu, value| {
            cpu.cr2 = value;
            Ok(())
        },
        3 => Cpu::write_cr3,
        4 => Cpu::write_cr4,
        8 if cpu.is_64_bit() => |cpu, value| {
            if value > 15 {
                return Err(Stop::gp(0));
            }
            paravirt::settle_lazy_end(cpu);
            cpu.shared.apic.set_cr8(value);
            cpu.events_waiting = true;
            Ok(())
        },
        _ => return Err(Stop::ud()),
    };
    require_ring0(cpu)?;
    write(cpu, cpu.reg(op.rm, BYTES))?;
    Err(Stop::EndTrace)
}

/// The control register an op names. LOCK MOV CR0 is AMD's way to CR8, which this CPU does not have.
fn control_number(op: &Op) -> u8 {
    op.reg
}

impl Cpu {
    /// MOV to CR0, and what LMSW makes of it.
    fn write_cr0(&mut self, value: u64) -> Exec {
        const KNOWN: u64 =
            cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;
        let set = |mask: u64| value & mask != 0;
        if value >> 32 != 0 || set(cr0::PG) && !set(cr0::PE) || set(cr0::NW) && !set(cr0::CD) {
            return Err(Stop::gp(0));
        }
        let value = value & KNOWN | cr0::ET;
        let changed = value ^ self.cr0;
        let mut long = self.is_long();
        if changed & cr0::PG != 0 {
            if set(cr0::PG) {
                if self.msr.efer & efer::LME != 0 {
                    // Into long mode: PAE must be on, and CS must not be what 64-bit code will be; a 16-bit TSS cannot come along.
                    let tss16 = self.tr.is_present() && self.tr.kind() & !kind::BUSY == kind::TSS16;
                    if self.cr4 & cr4::PAE == 0 || self.segments[usize::from(seg::CS)].is_long() || tss16 {
                        return Err(Stop::gp(0));
                    }
                    long = true;
                } else if self.cr4 & cr4::PAE != 0 {
                    self.load_pdptes(self.cr3)?;
                }
            } else {
                // 64-bit code cannot switch paging off, nor anybody while PCIDs are in use.
                if self.is_64_bit() || self.cr4 & cr4::PCIDE != 0 {
                    return Err(Stop::gp(0));
                }
                long = false;
            }
        } else if value & cr0::PG != 0 && !long && self.cr4 & cr4::PAE != 0 && changed & (cr0::CD | cr0::NW) != 0 {
            self.load_pdptes(self.cr3)?;
        }
        self.cr0 = value;
        self.msr.efer = if long { self.msr.efer | efer::LMA } else { self.msr.efer & !efer::LMA };
        if changed & cr0::PE != 0 {
            // The privilege level of protected mode is that of SS; real mode has none.
            self.cpl = 0;
        }
        if changed & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.flush_tlb();
        }
        self.mode_changed();
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Exec {
        // With PCIDs, bit 63 asks that the PCID's translations be kept.
        let keep = self.cr4 & cr4::PCIDE != 0 && value >> 63 != 0;
        let value = if keep { value & !(1 << 63) } else { value };
        if self.is_long() && value >> PHYSICAL_BITS != 0 {
            return Err(Stop::gp(0));
        }
        if self.is_paged() && self.cr4 & cr4::PAE != 0 && !self.is_long() {
            self.load_pdptes(value)?;
        }
        self.cr3 = value;
        self.enter_address_space(keep);
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Exec {
        if value & !self.cpuid.cr4_allowed() != 0 {
            return Err(Stop::gp(0));
        }
        let changed = value ^ self.cr4;
        if self.is_long() && value & cr4::PAE == 0 {
            return Err(Stop::gp(0));
        }
        // PCIDs are switched on in long mode only, and while the current one is 0.
        if changed & value & cr4::PCIDE != 0 && (!self.is_long() || self.cr3 & 0xfff != 0) {
            return Err(Stop::gp(0));
        }
        let paging = cr4::PSE | cr4::PAE | cr4::PGE | cr4::PCIDE | cr4::SMEP | cr4::SMAP;
        if self.is_paged()
            && !self.is_long()
            && value & cr4::PAE != 0
            && changed & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0
        {
            self.load_pdptes(self.cr3)?;
        }
        self.cr4 = value;
        if changed & paging != 0 {
            self.flush_tlb();
        }
        self.mode_changed();
        Ok(())
    }

    /// What CPUID answers may depend on.
    fn asker(&self) -> Asker {
        Asker {
            apic_id: self.shared.apic.id(),
            osxsave: self.cr4 & cr4::OSXSAVE != 0,
            apic_enabled: self.shared.apic.mode() != ApicMode::Disabled,
            long_mode: self.is_64_bit(),
            xcr0: self.xcr0,
            xss: self.msr.xss,
        }
    }
}

fn clear_task_switched(cpu: &mut Cpu, _: &Op) -> Exec {
    require_ring0(cpu)?;
    cpu.cr0 &= !cr0::TS;
    cpu.mode_changed();
    Err(Stop::EndTrace)
}

/// SMSW: 16 bits to memory, the operand size to a register.
fn store_machine_status(cpu: &mut Cpu, op: &Op) -> Exec {
    require_permitted_store(cpu)?;
    store_word(cpu, op, cpu.cr0)
}

/// LMSW: PE can be set but not cleared.
fn load_machine_status(cpu: &mut Cpu, op: &Op) -> Exec {
    require_ring0(cpu)?;
    let value = u64::from(cpu.read_rm16(op)?);
    let changeable = cr0::MP | cr0::EM | cr0::TS;
    let new = cpu.cr0 & !changeable | value & (changeable | cr0::PE);
    cpu.write_cr0(new)?;
    Err(Stop::EndTrace)
}

fn read_extended_control(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(Stop::ud());
    }
    let value = match cpu.reg32(1) {
        0 => cpu.xcr0,
        1 if cpu.cpuid.has(feature::XGETBV1) => cpu.xcr0 & in_use(cpu),
        _ => return Err(Stop::gp(0)),
    };
    cpu.set_reg32(0, value as u32);
    cpu.set_reg32(2, (value >> 32) as u32);
    Ok(())
}

fn write_extended_control(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(Stop::ud());
    }
    require_ring0(cpu)?;
    let value = u64::from(cpu.reg32(2)) << 32 | u64::from(cpu.reg32(0));
    // x87 is always on; AVX needs SSE.
    let lacks_base = value & 1 == 0 || value & 0b110 == 0b100;
    if cpu.reg32(1) != 0 || lacks_base || value & !cpu.cpuid.xcr0_allowed() != 0 {
        return Err(Stop::gp(0));
    }
    cpu.xcr0 = value;
    cpu.mode_changed();
    Err(Stop::EndTrace)
}

/// STAC and CLAC.
fn set_access_check<const SET: bool>(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cpl != 0 || !cpu.cpuid.has(feature::SMAP) {
        return Err(Stop::ud());
    }
    if SET {
        cpu.flags.insert(bit::AC);
    } else {
        cpu.flags.remove(bit::AC);
    }
    cpu.mode_changed();
    Err(Stop::EndTrace)
}

fn identify(cpu: &mut Cpu, _: &Op) -> Exec {
    let [a, b, c, d] = cpu.cpuid.query(cpu.reg32(0), cpu.reg32(1), &cpu.asker());
    for (number, value) in [(0, a), (3, b), (1, c), (2, d)] {
        cpu.set_reg32(number, value);
    }
    Ok(())
}

// ---- Descriptor tables -----------------------------------------------------------------------------------------

fn load_table(cpu: &mut Cpu, op: &Op) -> Result<TableRegister, Stop> {
    require_ring0(cpu)?;
    let at = cpu.operand_address(op);
    let limit: u16 = cpu.read(op.segment, at)?;
    let from = at.wrapping_add(2) & op.address_mask();
    let base = if cpu.is_64_bit() {
        cpu.read::<u64>(op.segment, from)?
    } else {
        let base: u32 = cpu.read(op.segment, from)?;
        // With a 16-bit operand the base has 24 bits, as on the 80286.
        u64::from(if op.operand_bytes == 2 { base & 0xff_ffff } else { base })
    };
    if !is_canonical(base) && cpu.is_64_bit() {
        return Err(Stop::gp(0));
    }
    Ok(TableRegister { base, limit })
}

fn load_gdt(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.gdtr = load_table(cpu, op)?;
    Ok(())
}

fn load_idt(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.idtr = load_table(cpu, op)?;
    Ok(())
}

fn store_gdt(cpu: &mut Cpu, op: &Op) -> Exec {
    store_table(cpu, op, cpu.gdtr)
}

fn store_idt(cpu: &mut Cpu, op: &Op) -> Exec {
    store_table(cpu, op, cpu.idtr)
}

/// SGDT, SIDT. The whole base is stored even with a 16-bit operand, as CPUs do since the 80386.
fn store_table(cpu: &mut Cpu, op: &Op, table: TableRegister) -> Exec {
    require_permitted_store(cpu)?;
    let at = cpu.operand_address(op);
    let to = at.wrapping_add(2) & op.address_mask();
    if cpu.is_64_bit() {
        cpu.probe_write(op.segment, to, 8)?;
        cpu.write(op.segment, at, table.limit)?;
        cpu.write(op.segment, to, table.base)
    } else {
        cpu.probe_write(op.segment, to, 4)?;
        cpu.write(op.segment, at, table.limit)?;
        cpu.write(op.segment, to, table.base as u32)
    }
}

fn load_ldt(cpu: &mut Cpu, op: &Op) -> Exec {
    require_descriptors(cpu)?;
    require_ring0(cpu)?;
    let selector = Selector(cpu.read_rm16(op)?);
    if selector.is_null() {
        cpu.ldtr = Segment { selector: selector.0, ..Segment::default() };
        return Ok(());
    }
    let (_, segment) = cpu.system_segment(selector, &[kind::LDT])?;
    cpu.ldtr = segment;
    Ok(())
}

fn load_task(cpu: &mut Cpu, op: &Op) -> Exec {
    require_descriptors(cpu)?;
    require_ring0(cpu)?;
    let selector = Selector(cpu.read_rm16(op)?);
    if selector.is_null() {
        return Err(Stop::gp(0));
    }
    let wanted: &[u8] = if cpu.is_long() { &[kind::TSS32] } else { &[kind::TSS16, kind::TSS32] };
    let (found, mut segment) = cpu.system_segment(selector, wanted)?;
    let busy = (found.descriptor.0 >> 40) as u8 | kind::BUSY;
    cpu.write_system(found.address.wrapping_add(5), busy)?;
    segment.attributes |= u16::from(kind::BUSY);
    cpu.tr = segment;
    Ok(())
}

fn store_ldt(cpu: &mut Cpu, op: &Op) -> Exec {
    require_descriptors(cpu)?;
    require_permitted_store(cpu)?;
    store_word(cpu, op, u64::from(cpu.ldtr.selector))
}

fn store_task(cpu: &mut Cpu, op: &Op) -> Exec {
    require_descriptors(cpu)?;
    require_permitted_store(cpu)?;
    store_word(cpu, op, u64::from(cpu.tr.selector))
}

/// 16 bits to memory, the operand size to a register.
fn store_word(cpu: &mut Cpu, op: &Op, value: u64) -> Exec {
    if op.has_memory() {
        return cpu.write(op.segment, cpu.operand_address(op), value as u16);
    }
    cpu.set_reg(op.rm, op.operand_bytes, value);
    Ok(())
}

// ---- Questions about selectors ---------------------------------------------------------------------------------

/// ARPL: raises the RPL of a selector to the caller's.
fn adjust_rpl(cpu: &mut Cpu, op: &Op) -> Exec {
    require_descriptors(cpu)?;
    let own = cpu.reg16(op.reg) & 3;
    let value = cpu.read_rm16(op)?;
    let raised = value & 3 < own;
    if raised {
        let new = value & !3 | own;
        if op.has_memory() {
            cpu.write(op.segment, cpu.operand_address(op), new)?;
        } else {
            cpu.set_reg16(op.rm, new);
        }
    }
    cpu.flags.set_zf(raised);
    Ok(())
}

/// What a selector names, for LAR, LSL, VERR and VERW: `None` where a load would fault.
fn look_up(cpu: &mut Cpu, op: &Op) -> Result<Option<super::segments::Found>, Stop> {
    require_descriptors(cpu)?;
    let selector = Selector(cpu.read_rm16(op)?);
    if selector.is_null() {
        return Ok(None);
    }
    match cpu.find_descriptor(selector, Stop::gp) {
        Ok(found) => {
            let visible = found.is_conforming() || found.dpl() >= cpu.cpl.max(selector.rpl());
            Ok(visible.then_some(found))
        }
        Err(Stop::Exception(exception)) if exception.vector == super::super::fault::vector::GP => Ok(None),
        Err(other) => Err(other),
    }
}

fn load_access_rights(cpu: &mut Cpu, op: &Op) -> Exec {
    let long = cpu.is_long();
    let found = look_up(cpu, op)?.filter(|found| {
        found.is_code_or_data()
            || match found.kind() {
                kind::LDT | kind::TSS32 | 11 | kind::CALL_GATE32 => true,
                kind::TSS16 | 3 | kind::CALL_GATE16 | kind::TASK_GATE => !long,
                _ => false,
            }
    });
    if let Some(found) = found {
        cpu.set_reg(op.reg, op.operand_bytes, found.descriptor.0 >> 32 & 0x00f0_ff00);
    }
    cpu.flags.set_zf(found.is_some());
    Ok(())
}

fn load_segment_limit(cpu: &mut Cpu, op: &Op) -> Exec {
    let long = cpu.is_long();
    let found = look_up(cpu, op)?.filter(|found| {
        found.is_code_or_data()
            || match found.kind() {
                kind::LDT | kind::TSS32 | 11 => true,
                kind::TSS16 | 3 => !long,
                _ => false,
            }
    });
    if let Some(found) = found {
        cpu.set_reg(op.reg, op.operand_bytes, u64::from(found.descriptor.limit()));
    }
    cpu.flags.set_zf(found.is_some());
    Ok(())
}

fn verify_read(cpu: &mut Cpu, op: &Op) -> Exec {
    let found = look_up(cpu, op)?;
    cpu.flags.set_zf(found.is_some_and(|found| found.is_data() || found.is_code() && found.is_readable_or_writable()));
    Ok(())
}

fn verify_write(cpu: &mut Cpu, op: &Op) -> Exec {
    let found = look_up(cpu, op)?;
    cpu.flags.set_zf(found.is_some_and(|found| found.is_data() && found.is_readable_or_writable()));
    Ok(())
}

// ---- Translations and caches -----------------------------------------------------------------------------------

fn invalidate_page(cpu: &mut Cpu, op: &Op) -> Exec {
    require_ring0(cpu)?;
    let base = if cpu.is_64_bit() && op.segment < seg::FS { 0 } else { cpu.segments[usize::from(op.segment % 6)].base };
    let linear = base.wrapping_add(cpu.operand_address(op)) & cpu.linear_mask;
    cpu.flush_page(linear);
    Err(Stop::EndTrace)
}

/// INVPCID: types 0 to 3. One address of one PCID, one PCID, all with globals, all without.
fn invalidate_pcid(cpu: &mut Cpu, op: &Op) -> Exec {
    if !cpu.cpuid.has(feature::INVPCID) {
        return Err(Stop::ud());
    }
    require_ring0(cpu)?;
    if cpu.is_v86() {
        return Err(Stop::gp(0));
    }
    let bytes = if cpu.is_64_bit() { 8 } else { 4 };
    let kind = cpu.reg(op.reg, bytes);
    let descriptor: u128 = cpu.read(op.segment, cpu.operand_address(op))?;
    let (pcid, address) = (descriptor as u64, (descriptor >> 64) as u64);
    let pcids = cpu.cr4 & cr4::PCIDE != 0;
    let bad = match kind {
        0 => pcid >> 12 != 0 || !pcids && pcid != 0 || !is_canonical(address),
        1 => pcid >> 12 != 0 || !pcids && pcid != 0,
        2 | 3 => pcid >> 12 != 0,
        _ => true,
    };
    if bad {
        return Err(Stop::gp(0));
    }
    let pcid = pcid as u16;
    match kind {
        0 => cpu.flush_page_of(pcid, address),
        1 => cpu.flush_pcid(pcid),
        2 => cpu.flush_tlb(),
        _ => cpu.flush_all_local(),
    }
    Err(Stop::EndTrace)
}

/// INVD, WBINVD, WBNOINVD: there is no cache to write back; what is in memory is what has been written.
fn invalidate_caches(cpu: &mut Cpu, _: &Op) -> Exec {
    require_ring0(cpu)
}

/// CLFLUSH: only the checks of a one-byte read.
fn flush_line(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.probe_read(op.segment, cpu.operand_address(op), 1)
}
