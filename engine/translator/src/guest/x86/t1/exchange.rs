//! What reads an operand and writes it again, often under LOCK: exchanges and bit tests.

use super::emit::{Emitter, Operand};
use super::integer::Fetched;
use crate::guest::x86::cpu::{reg, seg};
use crate::host::x64::asm::{Alu, Cond, Mem, R, Rm, W};
use crate::host::x64::stubs::PINNED;
use iced_x86::RflagsBits;

const AX: R = PINNED[reg::AX as usize];
const CX: R = PINNED[reg::CX as usize];
const DX: R = PINNED[reg::DX as usize];
const BX: R = PINNED[reg::BX as usize];
/// A register that CMPXCHG16B does not name.
const FREE: R = PINNED[reg::BP as usize];

impl Emitter<'_> {
    pub fn xchg(&mut self) -> Option<()> {
        let (a, b) = (self.operand(0), self.operand(1));
        let w = self.width(0)?;
        match (a, b) {
            (Operand::Mem, Operand::Reg(_)) => {
                let mem = self.memory(true, w.bytes())?;
                if let Rm::Reg(reg) = self.writable(b) {
                    self.asm.xchg(w, mem, reg);
                }
                self.commit(b);
            }
            (Operand::Reg(x), Operand::Reg(y)) => match (self.pinned(x), self.pinned(y)) {
                (Some(x), Some(y)) => self.asm.xchg(w, x, y),
                (Some(x), None) | (None, Some(x)) => {
                    let other = if self.pinned(y).is_none() { b } else { a };
                    self.writable(other);
                    self.asm.xchg(w, x, R::Dx);
                    self.commit(other);
                }
                (None, None) => {
                    self.writable(b);
                    self.value(a, R::Cx);
                    self.asm.xchg(w, R::Cx, R::Dx);
                    self.commit(b);
                    let slot = self.slot(x);
                    self.asm.mov(W::B8, slot, R::Cx);
                }
            },
            _ => return None,
        }
        Some(())
    }

    pub fn compare_exchange(&mut self) -> Option<()> {
        let (to, from) = (self.operand(0), self.operand(1));
        let w = self.width(0)?;
        let (Operand::Mem, Operand::Reg(_)) = (to, from) else { return None };
        let mem = self.memory(true, w.bytes())?;
        let mem = self.fold(mem);
        let from = self.value(from, R::Dx);
        self.asm.mov(W::B8, R::Ax, AX);
        // The interpreter does it in one piece whether or not there is a prefix.
        self.asm.lock();
        self.asm.cmpxchg(w, mem, from);
        let same = self.asm.label();
        self.asm.jcc(Cond::E, same);
        self.asm.mov(w, AX, R::Ax);
        self.asm.bind(same);
        self.wrote_flags();
        Some(())
    }

    /// CMPXCHG16B. What is not aligned faults, in the cold path.
    pub fn compare_exchange_16(&mut self) -> Option<()> {
        let source = self.source();
        let here = self.wide && source.op.code == source.instruction.code() && std::is_x86_feature_detected!("cmpxchg16b");
        if !here {
            return None;
        }
        let mem = self.aligned_memory(true, 16)?;
        self.fold(mem);
        self.keep_flags(RflagsBits::ZF);
        let asm = &mut self.asm;
        asm.push(FREE);
        asm.mov(W::B8, FREE, R::Cx);
        asm.mov(W::B8, R::Ax, AX);
        asm.mov(W::B8, R::Cx, CX);
        asm.mov(W::B8, R::Dx, DX);
        // Guest RAX is taken from host RAX afterwards, whatever has become of it.
        const { assert!(AX as u8 == R::Bx as u8) };
        asm.mov(W::B8, R::Bx, BX);
        asm.lock();
        asm.cmpxchg16b(Mem::at(FREE, 0));
        asm.mov(W::B8, AX, R::Ax);
        asm.mov(W::B8, DX, R::Dx);
        asm.pop(FREE);
        self.wrote_flags();
        Some(())
    }

    pub fn exchange_add(&mut self) -> Option<()> {
        let (to, from) = (self.operand(0), self.operand(1));
        let w = self.width(0)?;
        let (Operand::Mem, Operand::Reg(_)) = (to, from) else { return None };
        let mem = self.memory(true, w.bytes())?;
        if let Rm::Reg(reg) = self.writable(from) {
            self.asm.lock();
            self.asm.xadd(w, mem, reg);
        }
        self.commit(from);
        self.wrote_flags();
        Some(())
    }

    /// BT, BTS, BTR, BTC: 4 to 7.
    pub fn bit(&mut self, number: u8) -> Option<()> {
        let (to, from) = (self.operand(0), self.operand(1));
        let w = self.width(0)?;
        let writes = number != 4;
        let rm = match (to, from) {
            (Operand::Reg(_), _) => self.writable(to),
            (Operand::Mem, Operand::Imm(_)) => {
                let mut mem = self.memory(writes, w.bytes())?;
                if self.keeps_by_load(RflagsBits::CF) {
                    mem = self.fold(mem);
                }
                mem.into()
            }
            (Operand::Mem, Operand::Reg(_)) => return self.bit_of_string(number, w),
            _ => return None,
        };
        let from = match from {
            Operand::Imm(value) => Fetched::Imm(value as i32),
            Operand::Reg(_) => Fetched::Reg(self.value(from, R::Cx)),
            _ => return None,
        };
        // Undefined flags are left as they are by hosts; ZF is defined to be.
        self.keep_flags(RflagsBits::CF);
        if to == Operand::Mem {
            self.lock();
        }
        match from {
            Fetched::Imm(value) => self.asm.bit_imm(number, w, rm, value as u8),
            Fetched::Reg(reg) => self.asm.bit(number, w, rm, reg),
        }
        if writes {
            self.commit(to);
        }
        self.wrote_flags();
        Some(())
    }

    /// The same where a register has the number of a bit of a string in memory, which reaches either way.
    fn bit_of_string(&mut self, number: u8, w: W) -> Option<()> {
        let address_w = self.address_width()?;
        let (writes, from) = (number != 4, self.operand(1));
        if !self.wide && self.source().op.segment == seg::CS && writes {
            return None;
        }
        self.spoil_flags();
        self.address()?;
        let index = self.value(from, R::Cx);
        match w {
            W::B8 if index != R::Cx => self.asm.mov(W::B8, R::Cx, index),
            W::B8 => {}
            _ => self.asm.movsx(W::B8, w, R::Cx, index),
        }
        let bytes = i32::from(w.bytes());
        self.asm.shift_imm(7, W::B8, R::Cx, 3);
        self.asm.alu_imm(Alu::And, W::B8, R::Cx, -bytes);
        self.asm.lea(address_w, R::Ax, Mem::sum(R::Ax, R::Cx));
        let mut mem = self.memory_at_ax(writes, w.bytes(), 1);
        let index = self.value(from, R::Dx);
        if index != R::Dx {
            self.asm.mov(W::B4, R::Dx, index);
        }
        self.asm.alu_imm(Alu::And, W::B4, R::Dx, 8 * bytes - 1);
        if self.keeps_by_load(RflagsBits::CF) {
            mem = self.fold(mem);
        }
        self.keep_flags(RflagsBits::CF);
        self.lock();
        self.asm.bit(number, w, mem, R::Dx);
        self.wrote_flags();
        Some(())
    }
}
