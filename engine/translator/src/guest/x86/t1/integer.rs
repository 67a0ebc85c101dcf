//! Integer instructions: the same instruction on the host, with operands where the guest's are kept.

use super::emit::{ALL_FLAGS, Emitter, FlagsAt, Operand, packed_flags, packed_high};
use super::recipe::{Recipe, Second};
use crate::guest::x86::cpu::reg;
use crate::host::x64::asm::{Alu, Cond, Mem, R, Rm, W};
use crate::host::x64::stubs::PINNED;
use iced_x86::{Mnemonic, RflagsBits};

const AX: R = PINNED[reg::AX as usize];
const CX: R = PINNED[reg::CX as usize];
const DX: R = PINNED[reg::DX as usize];

/// The condition of Jcc, SETcc and CMOVcc, if it is one.
pub(super) fn condition(mnemonic: Mnemonic) -> Option<Cond> {
    use Mnemonic::*;
    Some(Cond(match mnemonic {
        Jo | Seto | Cmovo => 0,
        Jno | Setno | Cmovno => 1,
        Jb | Setb | Cmovb => 2,
        Jae | Setae | Cmovae => 3,
        Je | Sete | Cmove => 4,
        Jne | Setne | Cmovne => 5,
        Jbe | Setbe | Cmovbe => 6,
        Ja | Seta | Cmova => 7,
        Js | Sets | Cmovs => 8,
        Jns | Setns | Cmovns => 9,
        Jp | Setp | Cmovp => 10,
        Jnp | Setnp | Cmovnp => 11,
        Jl | Setl | Cmovl => 12,
        Jge | Setge | Cmovge => 13,
        Jle | Setle | Cmovle => 14,
        Jg | Setg | Cmovg => 15,
        _ => return None,
    }))
}

/// Whether an instruction may leave all flags as they were: a shift or rotate by a count that is, or may be, zero.
pub(super) fn may_keep_all_flags(instruction: &iced_x86::Instruction) -> bool {
    use Mnemonic::*;
    let shift = matches!(instruction.mnemonic(), Rol | Ror | Rcl | Rcr | Shl | Sal | Shr | Sar | Shld | Shrd);
    let last = instruction.op_count().saturating_sub(1);
    // A count of 1 is an opcode of its own, an immediate can be looked at, and everything else is in CL.
    shift && !(instruction.op_kind(last) == iced_x86::OpKind::Immediate8 && instruction.immediate(last) & 31 != 0)
}

impl Emitter<'_> {
    /// Translates the current instruction if it is one of this file's. `None`: it is not, or not in this form.
    pub fn integer(&mut self) -> Option<()> {
        use Mnemonic::*;
        let mnemonic = self.source().instruction.mnemonic();
        match mnemonic {
            Add => self.alu(Alu::Add),
            Or => self.alu(Alu::Or),
            Adc => self.alu(Alu::Adc),
            Sbb => self.alu(Alu::Sbb),
            And => self.alu(Alu::And),
            Sub => self.alu(Alu::Sub),
            Xor => self.alu(Alu::Xor),
            Cmp => self.alu(Alu::Cmp),
            Test => self.test(),
            Inc => self.unary(|this, w, rm| this.asm.group4(0, w, rm), ALL_FLAGS & !RflagsBits::CF),
            Dec => self.unary(|this, w, rm| this.asm.group4(1, w, rm), ALL_FLAGS & !RflagsBits::CF),
            Neg => self.unary(|this, w, rm| this.asm.group3(3, w, rm), ALL_FLAGS),
            Not => self.unary(|this, w, rm| this.asm.group3(2, w, rm), 0),
            Mov => self.mov(),
            Movzx => self.extend(false),
            Movsx | Movsxd => self.extend(true),
            Lea => self.lea(),
            Xchg => self.xchg(),
            Cbw => self.accumulator(|this| this.asm.movsx(W::B2, W::B1, AX, AX)),
            Cwde => self.accumulator(|this| this.asm.movsx(W::B4, W::B2, AX, AX)),
            Cdqe => self.accumulator(|this| this.asm.movsx(W::B8, W::B4, AX, AX)),
            Cwd => self.accumulator(|this| this.sign_into_dx(W::B2)),
            Cdq => self.accumulator(|this| this.sign_into_dx(W::B4)),
            Cqo => self.accumulator(|this| this.sign_into_dx(W::B8)),
            Shl | Sal => self.shift(4),
            Shr => self.shift(5),
            Sar => self.shift(7),
            Rol => self.shift(0),
            Ror => self.shift(1),
            Rcl => self.shift(2),
            Rcr => self.shift(3),
            Shld => self.double_shift(true),
            Shrd => self.double_shift(false),
            Imul if self.source().instruction.op_count() > 1 => self.imul(),
            Imul => self.multiply(5),
            Mul => self.multiply(4),
            Div => self.divide(),
            Idiv => self.divide_signed(),
            Bt => self.bit(4),
            Bts => self.bit(5),
            Btr => self.bit(6),
            Btc => self.bit(7),
            Bsf => self.bit_scan(false),
            Bsr => self.bit_scan(true),
            Bswap => self.bswap(),
            Cmpxchg => self.compare_exchange(),
            Cmpxchg16b => self.compare_exchange_16(),
            Xadd => self.exchange_add(),
            Stc => self.carry(0xf9),
            Clc => self.carry(0xf8),
            Cmc => self.carry(0xf5),
            Nop | Endbr32 | Endbr64 | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchnta | Prefetchw => Some(()),
            _ => {
                let cond = condition(mnemonic)?;
                match self.operand(1) {
                    _ if self.source().instruction.op_count() == 1 => self.setcc(cond),
                    _ => self.cmov(cond),
                }
            }
        }
    }

    fn is_locked(&self) -> bool {
        self.source().instruction.has_lock_prefix()
    }

    /// LOCK, where the instruction has it.
    pub fn lock(&mut self) {
        if self.is_locked() {
            self.asm.lock();
        }
    }

    /// RAX and RCX hold the memory operand: RCX alone holds it afterwards, so that RAX is free.
    pub fn fold(&mut self, mem: Mem) -> Mem {
        self.asm.lea(W::B8, R::Cx, mem);
        Mem::at(R::Cx, 0)
    }

    fn alu(&mut self, op: Alu) -> Option<()> {
        let (to, from) = (self.operand(0), self.operand(1));
        let w = self.width(0)?;
        let writes = op != Alu::Cmp;
        let carry = matches!(op, Alu::Adc | Alu::Sbb);
        let recipe = self.recipe_of(op, false, to, from, w);
        match (to, from) {
            (Operand::Reg(number), Operand::Reg(_) | Operand::Imm(_))
                if self.pinned(number).is_none() && !carry && (w == W::B8 || !writes) =>
            {
                // Where it is kept.
                let slot = self.slot(number);
                match from {
                    Operand::Imm(value) => self.asm.alu_imm(op, w, slot, value as i32),
                    from => {
                        let reg = self.value(from, R::Cx);
                        self.asm.alu(op, w, slot, reg);
                    }
                }
            }
            (Operand::Mem, _) => {
                let from = self.source_of_store(from)?;
                let mem = self.memory(writes, w.bytes())?;
                let from = from.fetch(self);
                if carry {
                    self.load_carry();
                }
                self.lock();
                match from {
                    Fetched::Reg(reg) => self.asm.alu(op, w, mem, reg),
                    Fetched::Imm(value) => self.asm.alu_imm(op, w, mem, value),
                }
            }
            (Operand::Reg(_) | Operand::High(_), Operand::Imm(value)) => {
                let rm = self.writable(to);
                if carry {
                    self.load_carry();
                }
                self.asm.alu_imm(op, w, rm, value as i32);
                if writes {
                    self.commit(to);
                }
            }
            (Operand::Reg(_) | Operand::High(_), _) => {
                let mut rm = match from {
                    Operand::Mem => self.memory(false, w.bytes())?.into(),
                    Operand::Reg(_) | Operand::High(_) => self.readable(from, R::Cx),
                    _ => return None,
                };
                let changed = self.writable(to);
                if carry {
                    self.load_carry();
                }
                match changed {
                    Rm::Reg(reg) => self.asm.alu_load(op, w, reg, rm),
                    changed => {
                        // A high byte register excludes operands that need REX.
                        if rm != Rm::Reg(R::Cx) {
                            self.asm.load(W::B1, R::Cx, rm);
                            rm = R::Cx.into();
                        }
                        debug_assert_eq!(rm, Rm::Reg(R::Cx));
                        self.asm.alu(op, w, changed, R::Cx);
                    }
                }
                if writes {
                    self.commit(to);
                }
            }
            _ => return None,
        }
        self.wrote_flags_by(recipe);
        Some(())
    }

    /// How to compute the flags of an instruction again, if its operands are in registers of the host.
    fn recipe_of(&self, op: Alu, test: bool, to: Operand, from: Operand, w: W) -> Option<Recipe> {
        let Operand::Reg(first) = to else { return None };
        if !matches!(w, W::B4 | W::B8) || matches!(op, Alu::Adc | Alu::Sbb) {
            return None;
        }
        let mut registers = 1 << first;
        let second = match from {
            Operand::Reg(second) => {
                // What has been added to itself is gone.
                if second == first && matches!(op, Alu::Add | Alu::Sub) {
                    return None;
                }
                registers |= 1 << second;
                Second::Reg(self.pinned(second)?)
            }
            // The distance goes both ways.
            Operand::Imm(value) => Second::Imm(Some(value as i32).filter(|value| *value != i32::MIN)?),
            _ => return None,
        };
        Some(Recipe { op, test, w, first: self.pinned(first)?, second, registers })
    }

    fn test(&mut self) -> Option<()> {
        let (to, from) = (self.operand(0), self.operand(1));
        let w = self.width(0)?;
        let rm = match to {
            Operand::Mem => {
                let from = self.source_of_store(from)?;
                let mem = self.memory(false, w.bytes())?;
                match from.fetch(self) {
                    Fetched::Reg(reg) => self.asm.test(w, mem, reg),
                    Fetched::Imm(value) => self.asm.test_imm(w, mem, value),
                }
                self.wrote_flags();
                return Some(());
            }
            Operand::Reg(_) | Operand::High(_) => self.readable(to, R::Dx),
            _ => return None,
        };
        match from {
            Operand::Imm(value) => self.asm.test_imm(w, rm, value as i32),
            Operand::Reg(_) | Operand::High(_) => {
                let reg = self.value(from, R::Cx);
                self.asm.test(w, rm, reg);
            }
            _ => return None,
        }
        let recipe = self.recipe_of(Alu::And, true, to, from, w);
        self.wrote_flags_by(recipe);
        Some(())
    }

    /// One operand, read and written. `written`: which flags the operation writes.
    fn unary(&mut self, operation: impl Fn(&mut Self, W, Rm), written: u32) -> Option<()> {
        let (to, w) = (self.operand(0), self.width(0)?);
        match to {
            Operand::Mem => {
                let mut mem = self.memory(true, w.bytes())?;
                if written != 0 {
                    if self.keeps_by_load(written) {
                        mem = self.fold(mem);
                    }
                    self.keep_flags(written);
                }
                self.lock();
                operation(self, w, mem.into());
            }
            Operand::Reg(_) | Operand::High(_) => {
                let rm = self.writable(to);
                if written != 0 {
                    self.keep_flags(written);
                }
                operation(self, w, rm);
                self.commit(to);
            }
            _ => return None,
        }
        if written != 0 {
            self.wrote_flags();
        }
        Some(())
    }

    // ---- Moves -------------------------------------------------------------------------------------------------

    /// A register operand that is written without being read: 32 and 64 bits are all of it.
    fn written(&mut self, to: Operand, w: W) -> Option<R> {
        match (to, w) {
            (Operand::Reg(number), W::B4 | W::B8) => Some(self.whole(number)),
            (Operand::Reg(_), _) => match self.writable(to) {
                Rm::Reg(reg) => Some(reg),
                _ => None,
            },
            _ => None,
        }
    }

    fn mov(&mut self) -> Option<()> {
        let (to, from) = (self.operand(0), self.operand(1));
        let w = self.width(0)?;
        match (to, from) {
            (Operand::Mem, _) => {
                let from = self.source_of_store(from)?;
                let mem = self.memory(true, w.bytes())?;
                match from.fetch(self) {
                    Fetched::Reg(reg) => self.asm.mov(w, mem, reg),
                    Fetched::Imm(value) => self.asm.mov_imm(w, mem, value),
                }
            }
            (Operand::Reg(number), Operand::Imm(value)) => {
                let whole = matches!(w, W::B4 | W::B8);
                let value64 = if w == W::B4 { u64::from(value as u32) } else { value as u64 };
                match self.pinned(number) {
                    Some(reg) if whole => self.asm.set(reg, value64),
                    None if whole => {
                        self.asm.set(R::Dx, value64);
                        self.commit(to);
                    }
                    _ => {
                        let rm = self.writable(to);
                        self.asm.mov_imm(w, rm, value as i32);
                        self.commit(to);
                    }
                }
            }
            (Operand::High(_), Operand::Imm(value)) => {
                let rm = self.writable(to);
                self.asm.mov_imm(w, rm, value as i32);
                self.commit(to);
            }
            (Operand::Reg(_), _) => {
                let rm = match from {
                    Operand::Mem => self.memory(false, w.bytes())?.into(),
                    Operand::Reg(_) | Operand::High(_) => self.readable(from, R::Cx),
                    _ => return None,
                };
                let reg = self.written(to, w)?;
                self.asm.load(w, reg, rm);
                self.commit(to);
            }
            (Operand::High(_), _) => {
                match from {
                    Operand::Mem => {
                        let mem = self.memory(false, 1)?;
                        self.asm.load(W::B1, R::Cx, mem);
                    }
                    Operand::Reg(_) | Operand::High(_) => {
                        let reg = self.value(from, R::Cx);
                        self.asm.mov(W::B4, R::Cx, reg);
                    }
                    _ => return None,
                }
                let rm = self.writable(to);
                self.asm.mov(W::B1, rm, R::Cx);
                self.commit(to);
            }
            _ => return None,
        }
        Some(())
    }

    fn extend(&mut self, signed: bool) -> Option<()> {
        let (to, from) = (self.operand(0), self.operand(1));
        let (w, narrow) = (self.width(0)?, self.width(1)?);
        let rm = match from {
            Operand::Mem => self.memory(false, narrow.bytes())?.into(),
            Operand::Reg(_) | Operand::High(_) => self.readable(from, R::Cx),
            _ => return None,
        };
        let reg = self.written(to, w)?;
        match (signed, w) {
            _ if narrow == w => self.asm.load(w, reg, rm),
            (true, _) => self.asm.movsx(w, narrow, reg, rm),
            (false, W::B2) => self.asm.movzx_word(reg, rm),
            (false, _) => self.asm.movzx(narrow, reg, rm),
        }
        self.commit(to);
        Some(())
    }

    fn lea(&mut self) -> Option<()> {
        let (to, w) = (self.operand(0), self.width(0)?);
        let address = self.address_width()?;
        let Operand::Reg(number) = to else { return None };
        if let (Some(mem), Some(reg)) = (self.plain_address(), self.pinned(number))
            && w != W::B2
            && (address == W::B8 || w == W::B4)
        {
            self.asm.lea(w, reg, mem);
            return Some(());
        }
        self.address()?;
        let reg = self.written(to, w)?;
        self.asm.mov(w, reg, R::Ax);
        self.commit(to);
        Some(())
    }

    fn accumulator(&mut self, write: impl Fn(&mut Self)) -> Option<()> {
        write(self);
        Some(())
    }

    fn sign_into_dx(&mut self, w: W) {
        self.asm.mov(W::B8, R::Ax, AX);
        self.asm.sign_into_dx(w);
        self.asm.mov(w, DX, R::Dx);
    }

    fn bswap(&mut self) -> Option<()> {
        let (to, w) = (self.operand(0), self.width(0)?);
        if !matches!(w, W::B4 | W::B8) {
            return None;
        }
        if let Rm::Reg(reg) = self.writable(to) {
            self.asm.bswap(w, reg);
        }
        self.commit(to);
        Some(())
    }

    // ---- Shifts ------------------------------------------------------------------------------------------------

    fn shift(&mut self, number: u8) -> Option<()> {
        let (to, count) = (self.operand(0), self.operand(1));
        let w = self.width(0)?;
        let rotates = number < 4;
        let mask = if w == W::B8 { 63 } else { 31 };
        match count {
            Operand::Imm(count) => {
                let count = count as u8 & mask;
                let through_carry = matches!(number, 2 | 3);
                // Once around with the carry neither reads nor writes a flag, as no rotation at all.
                if count == 0 || through_carry && count.is_multiple_of(8 * w.bytes() + 1) {
                    return None;
                }
                // OF is defined for counts of 1 only, but the host is the same kind of machine.
                let written = if rotates { RflagsBits::CF | RflagsBits::OF } else { ALL_FLAGS };
                let rm = match to {
                    Operand::Mem => {
                        let mut mem = self.memory(true, w.bytes())?;
                        if self.keeps_by_load(written) {
                            mem = self.fold(mem);
                        }
                        mem.into()
                    }
                    Operand::Reg(_) | Operand::High(_) => self.writable(to),
                    _ => return None,
                };
                self.keep_flags(written);
                if through_carry {
                    self.load_carry();
                }
                self.asm.shift_imm(number, w, rm, count);
            }
            // CL
            Operand::Reg(reg::CX) => {
                if to == Operand::Mem {
                    return None;
                }
                // A count of zero keeps all flags.
                if self.source().live_after != 0 || matches!(number, 2 | 3) {
                    self.load_flags();
                }
                self.asm.mov(W::B4, R::Cx, CX);
                let rm = self.writable(to);
                self.asm.shift_cl(number, w, rm);
            }
            _ => return None,
        }
        self.commit(to);
        self.wrote_flags();
        Some(())
    }

    fn double_shift(&mut self, left: bool) -> Option<()> {
        let (to, from, count) = (self.operand(0), self.operand(1), self.operand(2));
        let w = self.width(0)?;
        let (Operand::Reg(_), Operand::Reg(_), Operand::Imm(count)) = (to, from, count) else { return None };
        let count = count as u8 & if w == W::B8 { 63 } else { 31 };
        if count == 0 || w == W::B2 {
            return None;
        }
        let from = self.value(from, R::Cx);
        let rm = self.writable(to);
        self.asm.double_shift_imm(left, w, rm, from, count);
        self.commit(to);
        self.wrote_flags();
        Some(())
    }

    // ---- Multiplication and division ---------------------------------------------------------------------------

    fn imul(&mut self) -> Option<()> {
        let (to, from) = (self.operand(0), self.operand(1));
        let w = self.width(0)?;
        let rm = match from {
            Operand::Mem => self.memory(false, w.bytes())?.into(),
            Operand::Reg(_) => self.readable(from, R::Cx),
            _ => return None,
        };
        let Rm::Reg(reg) = self.writable(to) else { return None };
        match self.source().instruction.op_count() {
            3 => {
                let Operand::Imm(value) = self.operand(2) else { return None };
                self.asm.imul_imm(w, reg, rm, value as i32);
            }
            _ => self.asm.imul(w, reg, rm),
        }
        self.commit(to);
        self.wrote_flags();
        Some(())
    }

    /// The one explicit operand of MUL and its like in RCX.
    fn factor(&mut self, w: W) -> Option<()> {
        match self.operand(0) {
            Operand::Mem => {
                let mem = self.memory(false, w.bytes())?;
                self.asm.load(w, R::Cx, mem);
            }
            from @ (Operand::Reg(_) | Operand::High(_)) => {
                let reg = self.value(from, R::Cx);
                if reg != R::Cx {
                    self.asm.mov(W::B8, R::Cx, reg);
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn multiply(&mut self, number: u8) -> Option<()> {
        let w = self.width(0)?;
        self.factor(w)?;
        self.asm.mov(W::B8, R::Ax, AX);
        self.asm.group3(number, w, R::Cx);
        self.take_product(w);
        self.wrote_flags();
        Some(())
    }

    /// RAX and RDX of the host become those of the guest.
    fn take_product(&mut self, w: W) {
        match w {
            W::B1 => self.asm.mov(W::B2, AX, R::Ax),
            _ => {
                self.asm.mov(w, AX, R::Ax);
                self.asm.mov(w, DX, R::Dx);
            }
        }
    }

    /// DIV, where the quotient fits; the interpreter raises #DE.
    fn divide(&mut self) -> Option<()> {
        let w = self.width(0)?;
        if !matches!(w, W::B4 | W::B8) {
            return None;
        }
        self.spoil_flags();
        self.factor(w)?;
        let cold = self.cold_path();
        self.asm.mov(W::B8, R::Dx, DX);
        self.asm.alu(Alu::Cmp, w, R::Dx, R::Cx);
        self.asm.jcc(Cond::AE, cold);
        self.asm.mov(W::B8, R::Ax, AX);
        self.asm.group3(6, w, R::Cx);
        self.take_product(w);
        self.wrote_flags();
        Some(())
    }

    /// IDIV of a sign-extended dividend by something other than 0 and -1; the rest is rare.
    fn divide_signed(&mut self) -> Option<()> {
        let w = self.width(0)?;
        if !matches!(w, W::B4 | W::B8) {
            return None;
        }
        self.spoil_flags();
        self.factor(w)?;
        let cold = self.cold_path();
        self.asm.lea(w, R::Ax, Mem::at(R::Cx, 1));
        self.asm.alu_imm(Alu::Cmp, w, R::Ax, 1);
        self.asm.jcc(Cond(6), cold);
        self.asm.mov(W::B8, R::Ax, AX);
        self.asm.sign_into_dx(w);
        self.asm.alu(Alu::Cmp, w, R::Dx, DX);
        self.asm.jcc(Cond::NE, cold);
        self.asm.group3(7, w, R::Cx);
        self.take_product(w);
        self.wrote_flags();
        Some(())
    }

    // ---- Bits --------------------------------------------------------------------------------------------------

    fn bit_scan(&mut self, reverse: bool) -> Option<()> {
        let (to, from) = (self.operand(0), self.operand(1));
        let w = self.width(0)?;
        let rm = match from {
            Operand::Mem => self.memory(false, w.bytes())?.into(),
            Operand::Reg(_) => self.readable(from, R::Cx),
            _ => return None,
        };
        // With no bit set the destination keeps all 64 bits; hosts differ in the upper half.
        let Rm::Reg(reg) = self.writable(to) else { return None };
        self.asm.bit_scan(reverse, w, R::Cx, rm);
        let nothing = self.asm.label();
        self.asm.jcc(Cond::E, nothing);
        self.asm.mov(w, reg, R::Cx);
        self.asm.bind(nothing);
        self.commit(to);
        self.wrote_flags();
        Some(())
    }

    // ---- Flags -------------------------------------------------------------------------------------------------

    fn carry(&mut self, opcode: u8) -> Option<()> {
        self.keep_flags(RflagsBits::CF);
        if opcode == 0xf5 {
            self.load_carry();
        }
        self.asm.carry(opcode);
        self.wrote_flags();
        Some(())
    }

    /// Makes the host's flags such that the condition can be asked; the condition to ask. Spoils RAX unless the guest's flags
    /// are the host's.
    pub fn ask(&mut self, cond: Cond) -> Cond {
        if self.flags != FlagsAt::State {
            // Computed again, if that is where they are.
            self.load_flags();
            return cond;
        }
        // One flag can be tested where it lies: NZ then means that it is set.
        let (byte, mask) = match cond.0 >> 1 {
            0 => (packed_flags(), 1),
            1 => (packed_high(), 0x01),
            2 => (packed_high(), 0x40),
            3 => (packed_high(), 0x41),
            4 => (packed_high(), 0x80),
            5 => (packed_high(), 0x04),
            _ => {
                self.load_flags();
                return cond;
            }
        };
        self.asm.test_imm(W::B1, byte, mask);
        Cond(Cond::NE.0 ^ cond.0 & 1)
    }

    fn setcc(&mut self, cond: Cond) -> Option<()> {
        let to = self.operand(0);
        match to {
            Operand::Mem => {
                let mem = self.memory(true, 1)?;
                let mem = self.fold(mem);
                let cond = self.ask(cond);
                self.asm.setcc(cond, mem);
            }
            Operand::Reg(_) | Operand::High(_) => {
                let cond = self.ask(cond);
                let rm = self.writable(to);
                self.asm.setcc(cond, rm);
                self.commit(to);
            }
            _ => return None,
        }
        Some(())
    }

    fn cmov(&mut self, cond: Cond) -> Option<()> {
        let (to, from) = (self.operand(0), self.operand(1));
        let w = self.width(0)?;
        let rm = match from {
            Operand::Mem => {
                let mem = self.memory(false, w.bytes())?;
                self.asm.load(w, R::Cx, mem);
                R::Cx.into()
            }
            Operand::Reg(_) => self.readable(from, R::Cx),
            _ => return None,
        };
        let cond = self.ask(cond);
        let Rm::Reg(reg) = self.writable(to) else { return None };
        self.asm.cmov(cond, w, reg, rm);
        self.commit(to);
        Some(())
    }

    /// What a store stores: looked at before anything is written, fetched when RAX and RCX hold the address.
    pub fn source_of_store(&self, from: Operand) -> Option<StoreSource> {
        match from {
            Operand::Imm(value) => Some(StoreSource(Operand::Imm(value))),
            Operand::Reg(_) | Operand::High(_) => Some(StoreSource(from)),
            _ => None,
        }
    }
}

/// See [`Emitter::source_of_store`].
pub(super) struct StoreSource(Operand);

/// A value at hand.
pub(super) enum Fetched {
    Reg(R),
    Imm(i32),
}

impl StoreSource {
    /// The register that holds it (RDX if it needs one).
    pub fn fetch(self, emitter: &mut Emitter<'_>) -> Fetched {
        match self.0 {
            Operand::Imm(value) => Fetched::Imm(value as i32),
            operand => Fetched::Reg(emitter.value(operand, R::Dx)),
        }
    }
}
