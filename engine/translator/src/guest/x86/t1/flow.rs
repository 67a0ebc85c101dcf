//! Near transfers. Within the page they are links; elsewhere the jump cache is asked, and what it does not know the interpreter
//! does, with all checks that a transfer has.

use super::emit::{Emitter, FlagsAt, Operand, field, state};
use super::integer::condition;
use crate::guest::x86::cpu::reg;
use crate::host::x64::asm::{Cond, Mem, R, W};
use iced_x86::{Mnemonic, OpKind};

/// Where a direct transfer goes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    /// Within the page, at this byte; backwards (or to itself).
    Near { at: u32, backwards: bool },
    /// This far from the page's start.
    Far(i32),
}

/// Most instructions that share a look at the TLB.
const MOST_IN_GROUP: usize = 16;

impl Emitter<'_> {
    /// Translates the current instruction if it is a near transfer: it is the block's last. `None`: it is not, or not in this form.
    pub fn transfer(&mut self) -> Option<()> {
        let mnemonic = self.source().instruction.mnemonic();
        match mnemonic {
            Mnemonic::Jmp if self.is_direct() => {
                let target = self.target()?;
                self.end_flags();
                self.go(target);
            }
            // Far ones have the same mnemonics.
            Mnemonic::Jmp if self.source().instruction.is_jmp_near_indirect() => {
                self.indirect_target()?;
                let miss = self.cold_path();
                self.look_up(miss);
                self.note_target();
                self.take_jump();
            }
            Mnemonic::Call if self.is_direct() => self.call()?,
            Mnemonic::Call if self.source().instruction.is_call_near_indirect() => self.call_indirect()?,
            Mnemonic::Ret => self.pop_and_return(&[])?,
            Mnemonic::Jmp | Mnemonic::Call => return None,
            _ => self.branch(condition(mnemonic)?)?,
        }
        Some(())
    }

    /// The block ends without a transfer: goes on with the next instruction.
    pub fn fall_through(&mut self) {
        self.end_flags();
        let next = self.source().next;
        self.go_behind(next);
    }

    fn go_behind(&mut self, next: u32) {
        if next < 4096 {
            self.go_to(next, false);
            return;
        }
        let miss = self.leave_at_ax();
        self.look_up_at(next as i32, miss);
        self.take_jump();
    }

    /// Everybody behind the block wants the flags.
    fn end_flags(&mut self) {
        self.save_flags();
    }

    fn is_direct(&self) -> bool {
        matches!(self.source().instruction.op_kind(0), OpKind::NearBranch32 | OpKind::NearBranch64)
    }

    fn target(&self) -> Option<Target> {
        let source = self.source();
        let kind = source.instruction.op_kind(0);
        if kind != if self.wide { OpKind::NearBranch64 } else { OpKind::NearBranch32 } {
            return None;
        }
        let distance = source.op.imm.wrapping_sub(self.page);
        let distance = if self.wide { i32::try_from(distance as i64).ok()? } else { distance as i32 };
        Some(match u32::try_from(distance) {
            Ok(at) if at < 4096 => Target::Near { at, backwards: at <= source.start },
            _ => Target::Far(distance),
        })
    }

    /// Goes to the target of the current instruction. Flags are in the state.
    pub fn go(&mut self, target: Target) {
        match target {
            Target::Near { at, backwards } => {
                if backwards {
                    self.count_jump(at);
                }
                self.go_to(at, backwards);
            }
            Target::Far(distance) => {
                self.flags = FlagsAt::State;
                let miss = self.cold_path();
                self.look_up_at(distance, miss);
                self.take_jump();
            }
        }
    }

    fn branch(&mut self, cond: Cond) -> Option<()> {
        let target = self.target()?;
        let ends = self.at + 1 == self.sources.len();
        if ends {
            self.end_flags();
        }
        let cond = self.ask(cond);
        let (flags, saved) = (self.flags, self.flags != FlagsAt::Host { saved: false });
        match target {
            Target::Near { at, backwards: false } if saved => self.go_to_if(cond, at),
            Target::Near { backwards: false, .. } | Target::Far(_) if !ends => {
                let side = self.side(target);
                self.asm.jcc(cond, side);
            }
            _ => {
                // Loops: the way that is taken comes first.
                let not_taken = self.asm.label();
                self.asm.jcc(Cond(cond.0 ^ 1), not_taken);
                self.end_flags();
                self.go(target);
                self.asm.bind(not_taken);
                self.flags = flags;
            }
        }
        if ends {
            let next = self.source().next;
            self.go_behind(next);
        }
        Some(())
    }

    /// The operand of JMP and CALL in RAX. Flags are in the state.
    fn indirect_target(&mut self) -> Option<()> {
        let w = self.width(0)?;
        if w != self.pointer() {
            return None;
        }
        self.spoil_flags();
        match self.operand(0) {
            Operand::Mem => {
                let mem = self.memory(false, w.bytes())?;
                self.asm.load(w, R::Ax, mem);
            }
            from @ Operand::Reg(_) => {
                let reg = self.value(from, R::Ax);
                if reg != R::Ax {
                    self.asm.mov(w, R::Ax, reg);
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn call(&mut self) -> Option<()> {
        let target = self.target()?;
        let bytes = i32::from(self.pointer().bytes());
        self.spoil_flags();
        match target {
            Target::Near { at, backwards } => {
                self.push_return(bytes);
                // One of the calls of a recursion leads back.
                if backwards {
                    self.count_jump(at);
                }
                self.go_to(at, backwards);
            }
            Target::Far(distance) => {
                let miss = self.cold_path();
                self.look_up_at(distance, miss);
                self.call_found(bytes);
            }
        }
        Some(())
    }

    fn call_indirect(&mut self) -> Option<()> {
        self.indirect_target()?;
        let bytes = i32::from(self.pointer().bytes());
        let miss = self.cold_path();
        self.look_up(miss);
        self.call_found(bytes);
        Some(())
    }

    /// Calls the offset in RAX, whose entry is at RCX: it was found first, so that nothing is pushed if the interpreter has to do
    /// it all.
    fn call_found(&mut self, bytes: i32) {
        self.asm.mov(W::B8, state(field!(t1.scratch)), R::Ax);
        self.asm.mov(W::B8, state(field!(t1.scratch) + 8), R::Cx);
        self.push_return(bytes);
        self.asm.load(W::B8, R::Ax, state(field!(t1.scratch)));
        self.asm.load(W::B8, R::Cx, state(field!(t1.scratch) + 8));
        self.take_jump();
    }

    fn push_return(&mut self, bytes: i32) {
        let w = self.pointer();
        let mem = self.stack(true, bytes as u8, -bytes);
        let next = self.source().next as i32;
        self.offset_in_page(R::Dx, next);
        self.asm.mov(w, mem, R::Dx);
        self.move_stack(-bytes);
    }

    /// POPs to `registers` and the current instruction, which is RET, with one look at the TLB.
    fn pop_and_return(&mut self, registers: &[Operand]) -> Option<()> {
        let w = self.pointer();
        let bytes = i32::from(w.bytes());
        // The operand size is how far the stack pointer moves, less the immediate.
        let moved = self.source().instruction.stack_pointer_increment();
        let extra = match self.operand(0) {
            Operand::Imm(value) if self.source().instruction.op_count() == 1 => value as i32 & 0xffff,
            _ => 0,
        };
        if moved != bytes + extra {
            return None;
        }
        let (count, last) = (registers.len(), self.at);
        let popped = count as i32 * bytes;
        self.at = last - count;
        self.settle();
        self.spoil_flags();
        let cold = self.cold_path_of(count + 1);
        let mem = self.stack_at(false, (popped + bytes) as u8, 0, cold);
        let slot = |number: usize| Mem { disp: bytes * number as i32, ..mem };
        for (number, operand) in registers.iter().enumerate() {
            if let Operand::Reg(to) = *operand {
                let target = self.whole(to);
                self.asm.load(w, target, slot(number));
                self.commit(*operand);
            }
        }
        self.asm.load(w, R::Ax, slot(count));
        self.at = last;
        self.move_stack(popped + moved);
        // The POPs are done if the target is not known: the interpreter returns, and no more.
        let (otherwise, alone) = (self.asm.label(), self.cold_path());
        self.look_up(otherwise);
        self.take_jump();
        self.asm.bind(otherwise);
        self.move_stack(-moved);
        self.asm.jmp(alone);
        Some(())
    }

    /// A run of PUSHes of registers and immediates, or of POPs to registers and perhaps RET, with one look at the TLB: how many
    /// instructions were written; 0 if there is no such run.
    pub fn stack_group(&mut self) -> usize {
        let w = self.pointer();
        let bytes = i32::from(w.bytes());
        let (first, sources) = (self.at, self.sources);
        let pushes = match sources[first].instruction.mnemonic() {
            Mnemonic::Push => true,
            Mnemonic::Pop => false,
            _ => return 0,
        };
        let mnemonic = sources[first].instruction.mnemonic();
        let mut operands = Vec::new();
        for (at, source) in sources.iter().enumerate().skip(first).take(MOST_IN_GROUP) {
            self.at = at;
            let instruction = &source.instruction;
            let moved = if pushes { -bytes } else { bytes };
            if instruction.mnemonic() != mnemonic || instruction.stack_pointer_increment() != moved || source.interpreted {
                break;
            }
            match self.operand(0) {
                Operand::Reg(reg::SP) => break,
                operand @ Operand::Reg(_) => operands.push(operand),
                operand @ Operand::Imm(_) if pushes => operands.push(operand),
                _ => break,
            }
        }
        let count = operands.len();
        self.at = first + count;
        let returns = !pushes && count != 0 && self.at < sources.len() && !self.source().interpreted;
        if returns && self.source().instruction.mnemonic() == Mnemonic::Ret && self.pop_and_return(&operands).is_some() {
            self.at = first + count;
            return count + 1;
        }
        self.at = first;
        if count < 2 {
            return 0;
        }
        let size = count as i32 * bytes;
        self.spoil_flags();
        let cold = self.cold_path_of(count);
        let mem = self.stack_at(pushes, size as u8, if pushes { -size } else { 0 }, cold);
        // Scratch registers may be what the address is made of, but RDX.
        for (number, operand) in operands.into_iter().enumerate() {
            let number = number as i32;
            let slot = Mem { disp: bytes * if pushes { count as i32 - 1 - number } else { number }, ..mem };
            match operand {
                Operand::Imm(value) => self.asm.mov_imm(w, slot, value as i32),
                Operand::Reg(_) if pushes => {
                    let value = self.value(operand, R::Dx);
                    self.asm.mov(w, slot, value);
                }
                Operand::Reg(to) => {
                    let target = self.whole(to);
                    self.asm.load(w, target, slot);
                    self.commit(operand);
                }
                _ => {}
            }
        }
        self.move_stack(if pushes { -size } else { size });
        // All of them have been written.
        for at in first..first + count {
            self.at = at;
            self.forget_groups();
        }
        // What follows belongs to the last of them.
        self.at = first + count - 1;
        count
    }

    /// PUSH, POP and LEAVE of the stack's own width. `None`: none of these.
    pub fn stack_instruction(&mut self) -> Option<()> {
        let w = self.pointer();
        let bytes = i32::from(w.bytes());
        let moved = self.source().instruction.stack_pointer_increment();
        match self.source().instruction.mnemonic() {
            Mnemonic::Push if moved == -bytes => {
                let operand = self.operand(0);
                match operand {
                    Operand::Reg(_) | Operand::Imm(_) => {}
                    Operand::Mem => {
                        let mem = self.memory(false, bytes as u8)?;
                        self.asm.load(w, R::Dx, mem);
                        self.asm.mov(W::B8, state(field!(t1.scratch)), R::Dx);
                    }
                    _ => return None,
                }
                let mem = self.stack(true, bytes as u8, -bytes);
                match operand {
                    Operand::Imm(value) => self.asm.mov_imm(w, mem, value as i32),
                    Operand::Mem => {
                        self.asm.load(W::B8, R::Dx, state(field!(t1.scratch)));
                        self.asm.mov(w, mem, R::Dx);
                    }
                    operand => {
                        let reg = self.value(operand, R::Dx);
                        self.asm.mov(w, mem, reg);
                    }
                }
                self.move_stack(-bytes);
            }
            Mnemonic::Pop if moved == bytes => {
                let to = self.operand(0);
                let Operand::Reg(number) = to else { return None };
                let mem = self.stack(false, bytes as u8, 0);
                self.asm.load(w, R::Dx, mem);
                self.move_stack(bytes);
                match self.pinned(number) {
                    Some(reg) => self.asm.mov(w, reg, R::Dx),
                    None => self.commit(to),
                }
            }
            Mnemonic::Leave if self.source().op.operand_bytes == w.bytes() => {
                let (sp, bp) = (self.pinned(reg::SP)?, self.pinned(reg::BP)?);
                self.spoil_flags();
                let cold = self.cold_path();
                self.asm.mov(w, R::Ax, bp);
                let mem = self.probe(false, bytes as u8, cold, R::Ax);
                self.asm.load(w, R::Dx, mem);
                self.asm.lea(w, sp, Mem::at(bp, bytes));
                self.asm.mov(w, bp, R::Dx);
            }
            _ => return None,
        }
        Some(())
    }
}
