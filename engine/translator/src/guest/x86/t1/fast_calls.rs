//! SYSCALL and SYSRET of 64-bit code: the ring changes, and with it the mode's key, and what the CPU derives from both. The
//! rest of the key stays, for it does not depend on the ring. What kernels do not do is the interpreter's: a mask that leaves
//! arithmetic flags or AC set, a return to AC, TF or an interrupt that waits.
//! See: Intel SDM volume 2, "SYSCALL", "SYSRET".

use super::emit::{Emitter, FlagsAt, field, packed_flags, state};
use super::system::other_flags;
use crate::guest::x86::cpu::{CodeSize, Cpu, efer, reg, seg};
use crate::guest::x86::flags::bit;
use crate::guest::x86::system::flat;
use crate::host::x64::asm::{Alu, Cond, Label, Mem, R, W};
use crate::host::x64::stubs::PINNED;
use crate::mmu::class;
use engine_cpu::x86::Segment;
use iced_x86::Code;
use std::mem::offset_of;

const CX: R = PINNED[reg::CX as usize];
/// The guest's R11.
const R11: u8 = 11;
/// What FMASK must clear.
const CLEARED: u64 = bit::ARITHMETIC | bit::AC;
/// LAHF's byte with no flag but the one that is always set.
const NO_FLAGS: i32 = 0x200;

/// Where a part of a segment register is.
fn part(number: u8, inside: usize) -> Mem {
    state(field!(segments) + i32::from(number) * size_of::<Segment>() as i32 + inside as i32)
}

impl Emitter<'_> {
    /// Translates the current instruction if it is one of this file's. `None`: it is not, or not in this ring.
    pub fn fast_call(&mut self) -> Option<()> {
        match (self.source().op.code, self.class()) {
            (Code::Syscall, class::USER) if self.wide => self.system_call(),
            (Code::Sysretq, class::SUPERVISOR) if self.wide => self.system_return(),
            _ => return None,
        }
        Some(())
    }

    /// What both ask first.
    fn fast_calls_alone(&mut self, cold: Label) {
        self.asm.test_imm(W::B4, state(field!(msr.efer)), efer::SCE as i32);
        self.asm.jcc(Cond::E, cold);
        // The interpreter's links would have to be forgotten.
        self.asm.alu_imm(Alu::Cmp, W::B4, state(Cpu::LINKED_LIMIT as i32), -1);
        self.asm.jcc(Cond::NE, cold);
    }

    fn system_call(&mut self) {
        self.spoil_flags();
        let cold = self.cold_path();
        self.fast_calls_alone(cold);
        self.asm.load(W::B4, R::Ax, state(field!(msr.fmask)));
        self.asm.alu_imm(Alu::And, W::B4, R::Ax, CLEARED as i32);
        self.asm.alu_imm(Alu::Cmp, W::B4, R::Ax, CLEARED as i32);
        self.asm.jcc(Cond::NE, cold);
        if let FlagsAt::Again(_) = self.flags {
            self.save_flags();
        }
        self.flags = FlagsAt::State;
        self.flags_to_ax();
        let saved = self.slot(R11);
        self.asm.mov(W::B8, saved, R::Ax);
        let next = self.source().next as i32;
        self.offset_in_page(CX, next);
        let asm = &mut self.asm;
        asm.load(W::B4, R::Ax, state(field!(msr.fmask)));
        asm.alu_imm(Alu::Or, W::B4, R::Ax, bit::RF as i32);
        asm.group3(2, W::B4, R::Ax);
        asm.alu(Alu::And, W::B4, other_flags(), R::Ax);
        asm.mov_imm(W::B2, packed_flags(), NO_FLAGS);
        asm.load(W::B8, R::Ax, state(field!(msr.star)));
        asm.shift_imm(5, W::B8, R::Ax, 32);
        asm.alu_imm(Alu::And, W::B4, R::Ax, 0xfffc);
        asm.lea(W::B4, R::Cx, Mem::at(R::Ax, 8));
        self.enter_flat(0);
        let target = field!(msr.lstar);
        self.asm.load(W::B8, R::Ax, state(target));
        self.go_to_ax(class::SUPERVISOR);
    }

    fn system_return(&mut self) {
        let cold = self.ring_0_alone();
        self.fast_calls_alone(cold);
        let asm = &mut self.asm;
        // What has waited for RFLAGS.IF.
        asm.alu_imm(Alu::Cmp, W::B1, state(field!(events_waiting)), 0);
        asm.jcc(Cond::NE, cold);
        asm.mov(W::B8, R::Ax, CX);
        asm.shift_imm(4, W::B8, R::Ax, 16);
        asm.shift_imm(7, W::B8, R::Ax, 16);
        asm.alu(Alu::Cmp, W::B8, R::Ax, CX);
        asm.jcc(Cond::NE, cold);
        let saved = self.slot(R11);
        let asm = &mut self.asm;
        asm.load(W::B4, R::Ax, saved);
        asm.test_imm(W::B4, R::Ax, (bit::TF | bit::AC) as i32);
        asm.jcc(Cond::NE, cold);
        asm.mov(W::B4, R::Cx, R::Ax);
        asm.alu_imm(Alu::And, W::B4, R::Cx, (flat::RETURNED_FLAGS & bit::ALL & !bit::ARITHMETIC) as i32);
        asm.mov(W::B8, other_flags(), R::Cx);
        asm.mov(W::B4, R::Cx, R::Ax);
        asm.alu_imm(Alu::And, W::B4, R::Cx, 0xd5);
        asm.alu_imm(Alu::Or, W::B4, R::Cx, 2);
        asm.shift_imm(4, W::B4, R::Cx, 8);
        asm.shift_imm(5, W::B4, R::Ax, 11);
        asm.alu_imm(Alu::And, W::B4, R::Ax, 1);
        asm.alu(Alu::Or, W::B4, R::Ax, R::Cx);
        asm.mov(W::B2, packed_flags(), R::Ax);
        asm.load(W::B8, R::Ax, state(field!(msr.star)));
        asm.shift_imm(5, W::B8, R::Ax, 48);
        asm.lea(W::B4, R::Cx, Mem::at(R::Ax, 8));
        asm.alu_imm(Alu::Add, W::B4, R::Ax, 16);
        for selector in [R::Ax, R::Cx] {
            asm.alu_imm(Alu::Or, W::B4, selector, 3);
        }
        self.flags = FlagsAt::State;
        self.enter_flat(3);
        self.asm.mov(W::B8, R::Ax, CX);
        self.go_to_ax(class::USER);
    }

    /// CS and SS become flat segments of a ring, with the selectors in AX and CX.
    fn enter_flat(&mut self, cpl: u8) {
        let segments = [(seg::CS, R::Ax, flat::code(0, cpl, true)), (seg::SS, R::Cx, flat::data(0, cpl))];
        let asm = &mut self.asm;
        for (number, selector, segment) in segments {
            asm.mov(W::B2, part(number, offset_of!(Segment, selector)), selector);
            asm.mov_imm(W::B8, part(number, offset_of!(Segment, base)), segment.base as i32);
            asm.mov_imm(W::B4, part(number, offset_of!(Segment, limit)), segment.limit as i32);
            asm.mov_imm(W::B2, part(number, offset_of!(Segment, attributes)), segment.attributes.into());
        }
        asm.mov_imm(W::B1, state(field!(cpl)), cpl.into());
        let mode = Cpu::mode_of(CodeSize::Bits64, cpl);
        self.asm.mov_imm(W::B1, state(field!(mode)), mode.into());
    }

    /// Goes on at the offset in RAX with accesses of another class.
    fn go_to_ax(&mut self, class: u8) {
        let before = self.class();
        self.change_class(class);
        let miss = self.leave_at_ax();
        self.look_up(miss);
        self.take_jump();
        self.set_class(before);
    }
}
