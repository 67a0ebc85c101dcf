//! Instructions that kernels execute on every way in and out: CLI, STI, STAC, CLAC, SWAPGS, PUSHF, CLD, fences, PAUSE, and MOV
//! from segment and control registers. They look at or change a few words of the CPU's state; the rings between 0 and 3, SMAP
//! switched off, and STI while an interrupt waits are the interpreter's.

use super::emit::{Emitter, FlagsAt, Operand, field, packed_flags, state};
use crate::guest::x86::cpu::{Span, cr4, seg};
use crate::guest::x86::flags::{Flags, bit};
use crate::guest::x86::interp_move::PAUSES_BETWEEN_YIELDS;
use crate::host::x64::asm::{Alu, Cond, Label, Mem, R, W};
use crate::mmu::class;
use engine_cpu::x86::Segment;
use iced_x86::{Mnemonic, Register};
use std::mem::offset_of;

/// RFLAGS without the arithmetic flags.
pub(super) fn other_flags() -> Mem {
    state(field!(flags) + Flags::OTHERS as i32)
}

impl Emitter<'_> {
    /// Translates the current instruction if it is one of this file's. `None`: it is not, or not in this ring.
    pub fn system(&mut self) -> Option<()> {
        let source = self.source();
        let mnemonic = source.instruction.mnemonic();
        if source.op.code != source.instruction.code() {
            return None;
        }
        match mnemonic {
            Mnemonic::Pushfq | Mnemonic::Pushfd => return self.push_flags(),
            Mnemonic::Mov if source.instruction.op1_register().is_segment_register() => return self.read_selector(),
            Mnemonic::Cld | Mnemonic::Std => {
                self.spoil_flags();
                let (op, mask) =
                    if mnemonic == Mnemonic::Std { (Alu::Or, bit::DF as i32) } else { (Alu::And, !(bit::DF as i32)) };
                self.asm.alu_imm(op, W::B4, other_flags(), mask);
                return Some(());
            }
            Mnemonic::Lfence | Mnemonic::Mfence | Mnemonic::Sfence => {
                self.asm.fence(match mnemonic {
                    Mnemonic::Lfence => 5,
                    Mnemonic::Mfence => 6,
                    _ => 7,
                });
                return Some(());
            }
            Mnemonic::Pause => {
                self.spoil_flags();
                let (cold, pauses) = (self.cold_path(), state(field!(pauses)));
                self.asm.load(W::B4, R::Ax, pauses);
                self.asm.alu_imm(Alu::Add, W::B4, R::Ax, 1);
                // The interpreter gives way to other threads of the host.
                self.asm.test_imm(W::B4, R::Ax, PAUSES_BETWEEN_YIELDS as i32 - 1);
                self.asm.jcc(Cond::E, cold);
                self.asm.mov(W::B4, pauses, R::Ax);
                return Some(());
            }
            _ => {}
        }
        if !matches!(self.class(), class::SUPERVISOR | class::SUPERVISOR_AC) {
            return None;
        }
        match mnemonic {
            Mnemonic::Cli => {
                self.ring_0_alone();
                self.asm.alu_imm(Alu::And, W::B4, other_flags(), !(bit::IF as i32));
            }
            Mnemonic::Sti => {
                let cold = self.ring_0_alone();
                // What comes later is seen at the next poll, which is behind the next instruction at least: so nobody sees the shadow.
                self.asm.alu_imm(Alu::Cmp, W::B1, state(field!(events_waiting)), 0);
                self.asm.jcc(Cond::NE, cold);
                self.asm.alu_imm(Alu::Or, W::B4, other_flags(), bit::IF as i32);
            }
            Mnemonic::Stac => {
                self.smap_alone();
                self.asm.alu_imm(Alu::Or, W::B4, other_flags(), bit::AC as i32);
                self.change_class(class::SUPERVISOR_AC);
            }
            Mnemonic::Clac => {
                self.smap_alone();
                self.asm.alu_imm(Alu::And, W::B4, other_flags(), !(bit::AC as i32));
                self.change_class(class::SUPERVISOR);
            }
            Mnemonic::Mov => {
                let from = match source.instruction.op1_register() {
                    Register::CR0 => field!(cr0),
                    Register::CR2 => field!(cr2),
                    Register::CR3 => field!(cr3),
                    Register::CR4 => field!(cr4),
                    _ => return None,
                };
                let (Operand::Reg(number), w) = (self.operand(0), self.pointer()) else { return None };
                self.ring_0_alone();
                let to = self.whole(number);
                self.asm.load(w, to, state(from));
                self.commit(Operand::Reg(number));
            }
            Mnemonic::Swapgs if self.wide => {
                self.ring_0_alone();
                let segment =
                    field!(segments) + i32::from(seg::GS) * size_of::<Segment>() as i32 + offset_of!(Segment, base) as i32;
                let span = field!(spans) + i32::from(seg::GS) * size_of::<Span>() as i32 + offset_of!(Span, base) as i32;
                let other = field!(msr.kernel_gs_base);
                self.asm.load(W::B8, R::Ax, state(segment));
                self.asm.load(W::B8, R::Cx, state(other));
                self.asm.mov(W::B8, state(segment), R::Cx);
                self.asm.mov(W::B8, state(span), R::Cx);
                self.asm.mov(W::B8, state(other), R::Ax);
            }
            _ => return None,
        }
        Some(())
    }

    /// MOV from a segment register to a general one.
    fn read_selector(&mut self) -> Option<()> {
        let (to, w) = (self.operand(0), self.width(0)?);
        let Operand::Reg(number) = to else { return None };
        let register = self.source().op.reg % 6;
        let offset = i32::from(register) * size_of::<Segment>() as i32 + offset_of!(Segment, selector) as i32;
        let selector = state(field!(segments) + offset);
        if w == W::B2 {
            self.asm.movzx(W::B2, R::Cx, selector);
            let rm = self.writable(to);
            self.asm.mov(w, rm, R::Cx);
        } else {
            let whole = self.whole(number);
            self.asm.movzx(W::B2, whole, selector);
        }
        self.commit(to);
        Some(())
    }

    /// The rest of the instruction is for ring 0; rings 1 and 2 go to the cold path.
    pub fn ring_0_alone(&mut self) -> Label {
        self.spoil_flags();
        let cold = self.cold_path();
        self.asm.alu_imm(Alu::Cmp, W::B1, state(field!(cpl)), 0);
        self.asm.jcc(Cond::NE, cold);
        cold
    }

    /// The same, while SMAP is switched on: only then EFLAGS.AC decides about the class of accesses.
    fn smap_alone(&mut self) {
        let cold = self.ring_0_alone();
        self.asm.test_imm(W::B4, state(field!(cr4)), cr4::SMAP as i32);
        self.asm.jcc(Cond::E, cold);
    }

    /// PUSHF of the stack's own width.
    fn push_flags(&mut self) -> Option<()> {
        let w = self.pointer();
        let bytes = i32::from(w.bytes());
        if self.source().op.operand_bytes != w.bytes() {
            return None;
        }
        self.save_flags();
        self.flags = FlagsAt::State;
        self.flags_to_ax();
        let asm = &mut self.asm;
        asm.mov(W::B8, state(field!(t1.scratch)), R::Ax);
        let mem = self.stack(true, bytes as u8, -bytes);
        self.asm.load(W::B8, R::Dx, state(field!(t1.scratch)));
        self.asm.mov(w, mem, R::Dx);
        self.move_stack(-bytes);
        Some(())
    }

    /// RAX becomes RFLAGS without VM and RF; the arithmetic flags are in the state. Spoils RCX.
    pub fn flags_to_ax(&mut self) {
        let asm = &mut self.asm;
        asm.movzx(W::B2, R::Ax, packed_flags());
        asm.mov(W::B4, R::Cx, R::Ax);
        asm.alu_imm(Alu::And, W::B4, R::Cx, 1);
        asm.shift_imm(4, W::B4, R::Cx, 11);
        asm.shift_imm(5, W::B4, R::Ax, 8);
        asm.alu(Alu::Or, W::B4, R::Ax, R::Cx);
        asm.alu_load(Alu::Or, W::B4, R::Ax, other_flags());
        asm.alu_imm(Alu::And, W::B4, R::Ax, !((bit::VM | bit::RF) as i32));
    }
}
