//! SSE instructions: the guest's own opcode on the host, with the guest's XMM registers in the CPU's state and the host's XMM0 and XMM1 as scratch.
//!
//! The mode's key says that CR0 and CR4 let SSE instructions run and that MXCSR masks all six exceptions ([`super::VECTOR`]); without that the
//! interpreter has them. So nothing in here raises anything but what a memory operand raises, which is the cold path's.
//!
//! # MXCSR
//! Arithmetic runs under the guest's MXCSR, whose flags gather in the host's. It is loaded before the first such instruction of a block and
//! put back, with the host's own in its place, before anything else can look: the interpreter, and the block's end.
//!
//! MMX, string comparisons, blends by XMM0, non-temporal stores of general registers and the mask move stay with the interpreter.

use super::emit::{Emitter, Operand};
use crate::host::x64::asm::{Mem, R, Rm, W};
use iced_x86::{Instruction, MandatoryPrefix, Mnemonic, OpCodeTableKind, OpKind, Register};

/// XMM0 and XMM1, as encodings name them.
const X0: R = R::Ax;
const X1: R = R::Cx;

/// What an instruction's operands are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `xmm ← xmm` whole, or to or from memory.
    Move { aligned: bool },
    /// MOVSS, MOVSD: part of a register, or zero-extended from memory, or to memory.
    Scalar,
    /// MOVLPS and the like: half of a register, from or to memory.
    Half,
    /// MOVQ on XMM registers and memory.
    Quad,
    /// `xmm ← f(xmm, xmm or memory, maybe an immediate)`
    Lanes,
    /// `xmm ← f(xmm, immediate)`
    Shift,
    /// `xmm ← f(xmm, general register or memory)`
    FromGeneral,
    /// `general register ← f(xmm or memory)`
    ToGeneral,
    /// `general register or memory ← f(xmm)`
    Extract,
    /// `flags ← f(xmm, xmm or memory)`
    Flags,
}

/// The form of an instruction, and whether it runs under MXCSR. `None`: the interpreter's.
fn form(instruction: &Instruction) -> Option<(Form, bool)> {
    use Mnemonic::*;
    let op_code = instruction.code().op_code();
    if op_code.encoding() != iced_x86::EncodingKind::Legacy || instruction.op_count() < 2 {
        return None;
    }
    let kind = |at: u32| match instruction.op_kind(at) {
        OpKind::Register if instruction.op_register(at).is_xmm() => 'x',
        OpKind::Register if instruction.op_register(at).is_gpr() => 'r',
        OpKind::Memory => 'm',
        OpKind::Immediate8 => 'i',
        _ => '?',
    };
    let kinds = [kind(0), kind(1)];
    let vectors = matches!(kinds, ['x', 'x'] | ['x', 'm']);
    let either_way = vectors || kinds == ['m', 'x'];
    let found = match instruction.mnemonic() {
        Movaps | Movapd | Movdqa | Movntps | Movntpd | Movntdq | Movntdqa if either_way => (Form::Move { aligned: true }, false),
        Movups | Movupd | Movdqu | Lddqu if either_way => (Form::Move { aligned: false }, false),
        Movss | Movsd if either_way => (Form::Scalar, false),
        Movlps | Movlpd | Movhps | Movhpd if either_way => (Form::Half, false),
        Movq if either_way => (Form::Quad, false),
        Psrlw | Psrld | Psrlq | Psraw | Psrad | Psllw | Pslld | Psllq | Psrldq | Pslldq if kinds == ['x', 'i'] => {
            (Form::Shift, false)
        }
        Movd | Movq if matches!(kinds, ['x', 'r']) || kinds == ['x', 'm'] => (Form::FromGeneral, false),
        Pinsrb | Pinsrw | Pinsrd | Pinsrq if matches!(kinds, ['x', 'r'] | ['x', 'm']) => (Form::FromGeneral, false),
        Cvtsi2ss | Cvtsi2sd if matches!(kinds, ['x', 'r'] | ['x', 'm']) => (Form::FromGeneral, true),
        Movmskps | Movmskpd | Pmovmskb if kinds == ['r', 'x'] => (Form::ToGeneral, false),
        Pextrw if kinds == ['r', 'x'] && op_code.table() == OpCodeTableKind::T0F => (Form::ToGeneral, false),
        Cvtss2si | Cvttss2si | Cvtsd2si | Cvttsd2si if matches!(kinds, ['r', 'x'] | ['r', 'm']) => (Form::ToGeneral, true),
        Movd | Movq | Pextrb | Pextrw | Pextrd | Pextrq | Extractps if matches!(kinds, ['r', 'x'] | ['m', 'x']) => {
            (Form::Extract, false)
        }
        Ptest if vectors => (Form::Flags, false),
        Comiss | Comisd | Ucomiss | Ucomisd if vectors => (Form::Flags, true),
        mnemonic if vectors && is_integer(mnemonic) => (Form::Lanes, false),
        mnemonic if vectors && is_float(mnemonic) => (Form::Lanes, true),
        _ => return None,
    };
    Some(found)
}

/// Operations on lanes without an environment.
#[rustfmt::skip]
fn is_integer(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Movhlps | Movlhps | Movsldup | Movshdup | Movddup
        | Andps | Andpd | Andnps | Andnpd | Orps | Orpd | Xorps | Xorpd | Pand | Pandn | Por | Pxor
        | Unpcklps | Unpckhps | Unpcklpd | Unpckhpd | Shufps | Shufpd | Rcpps | Rcpss | Rsqrtps | Rsqrtss
        | Punpcklbw | Punpcklwd | Punpckldq | Punpcklqdq | Punpckhbw | Punpckhwd | Punpckhdq | Punpckhqdq
        | Packsswb | Packssdw | Packuswb | Packusdw | Pshufd | Pshufhw | Pshuflw
        | Paddb | Paddw | Paddd | Paddq | Paddsb | Paddsw | Paddusb | Paddusw
        | Psubb | Psubw | Psubd | Psubq | Psubsb | Psubsw | Psubusb | Psubusw
        | Pcmpeqb | Pcmpeqw | Pcmpeqd | Pcmpeqq | Pcmpgtb | Pcmpgtw | Pcmpgtd | Pcmpgtq
        | Psrlw | Psrld | Psrlq | Psraw | Psrad | Psllw | Pslld | Psllq
        | Pmullw | Pmulhw | Pmulhuw | Pmuludq | Pmuldq | Pmulld | Pmaddwd | Pmaddubsw | Pmulhrsw
        | Pminub | Pminuw | Pminud | Pminsb | Pminsw | Pminsd | Pmaxub | Pmaxuw | Pmaxud | Pmaxsb | Pmaxsw | Pmaxsd
        | Pavgb | Pavgw | Psadbw | Mpsadbw | Phminposuw
        | Pshufb | Palignr | Psignb | Psignw | Psignd | Pabsb | Pabsw | Pabsd
        | Phaddw | Phaddd | Phaddsw | Phsubw | Phsubd | Phsubsw
        | Pmovsxbw | Pmovsxbd | Pmovsxbq | Pmovsxwd | Pmovsxwq | Pmovsxdq
        | Pmovzxbw | Pmovzxbd | Pmovzxbq | Pmovzxwd | Pmovzxwq | Pmovzxdq
        | Pblendw | Blendps | Blendpd | Insertps
    )
}

/// Arithmetic under MXCSR.
#[rustfmt::skip]
fn is_float(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Addps | Addpd | Addss | Addsd | Subps | Subpd | Subss | Subsd | Mulps | Mulpd | Mulss | Mulsd | Divps | Divpd | Divss | Divsd
        | Minps | Minpd | Minss | Minsd | Maxps | Maxpd | Maxss | Maxsd | Sqrtps | Sqrtpd | Sqrtss | Sqrtsd
        | Cmpps | Cmppd | Cmpss | Cmpsd | Addsubps | Addsubpd | Haddps | Haddpd | Hsubps | Hsubpd
        | Cvtps2pd | Cvtpd2ps | Cvtss2sd | Cvtsd2ss | Cvtdq2ps | Cvtdq2pd | Cvtps2dq | Cvttps2dq | Cvtpd2dq | Cvttpd2dq
        | Roundps | Roundpd | Roundss | Roundsd | Dpps | Dppd
    )
}

impl Emitter<'_> {
    /// Translates the current instruction if it is one of this file's. `None`: it is not, or not in this mode.
    pub fn sse(&mut self) -> Option<()> {
        if !self.vectors {
            return None;
        }
        let (form, float) = form(&self.source().instruction)?;
        match form {
            Form::Move { aligned } => self.move_vector(aligned),
            Form::Scalar => self.scalar(),
            Form::Half => self.half(),
            Form::Quad => self.quad(),
            Form::Lanes => self.lanes(float),
            Form::Shift => self.vector_shift(),
            Form::FromGeneral => self.general_to_vector(float),
            Form::ToGeneral => self.vector_to_general(float),
            Form::Extract => self.extract(),
            Form::Flags => self.flags_of(float),
        }
    }

    /// The slot of the XMM register that operand `at` is.
    fn vector(&self, at: u32) -> Option<Mem> {
        let register = self.source().instruction.op_register(at);
        (Register::XMM0..=Register::XMM15).contains(&register).then(|| self.vector_slot(register.number() as u8))
    }

    /// The current instruction's opcode and immediate with these operands. `reg` is ignored where the opcode has a digit there.
    fn same(&mut self, wide: bool, reg: R, rm: impl Into<Rm>) {
        let instruction = &self.source().instruction;
        let op_code = instruction.code().op_code();
        let prefix = match op_code.mandatory_prefix() {
            MandatoryPrefix::P66 => Some(0x66),
            MandatoryPrefix::PF3 => Some(0xf3),
            MandatoryPrefix::PF2 => Some(0xf2),
            _ => None,
        };
        let number = op_code.op_code() as u8;
        let opcode: &[u8] = match op_code.table() {
            OpCodeTableKind::T0F38 => &[0x0f, 0x38, number],
            OpCodeTableKind::T0F3A => &[0x0f, 0x3a, number],
            _ => &[0x0f, number],
        };
        let digit = op_code.group_index();
        let reg = if digit >= 0 { digit as u8 } else { reg as u8 };
        let last = instruction.op_count() - 1;
        let immediate = (instruction.op_kind(last) == OpKind::Immediate8).then(|| instruction.immediate8());
        self.asm.vector(prefix, wide, opcode, reg, rm.into(), immediate);
    }

    /// Bytes of the memory operand.
    fn memory_bytes(&self) -> u8 {
        self.source().instruction.memory_size().size() as u8
    }

    /// The second operand as something that can be read without a fault: in XMM1, or in memory if it is less than a register.
    fn second(&mut self) -> Option<Rm> {
        if let Some(slot) = self.vector(1) {
            self.asm.movaps(X1, slot);
            return Some(X1.into());
        }
        let bytes = self.memory_bytes();
        if bytes != 16 {
            return Some(self.memory(false, bytes)?.into());
        }
        let mem = self.aligned_memory(false)?;
        self.asm.movups(X1, mem);
        Some(X1.into())
    }

    fn move_vector(&mut self, aligned: bool) -> Option<()> {
        let mut operand = |at: u32, write: bool| match self.vector(at) {
            Some(slot) => Some((slot, true)),
            None if aligned => Some((self.aligned_memory(write)?, false)),
            None => Some((self.memory(write, 16)?, false)),
        };
        // Only one of the two can be in memory; the probe leaves XMM registers alone.
        let (from, to) = (operand(1, false)?, operand(0, true)?);
        match from {
            (slot, true) => self.asm.movaps(X0, slot),
            (mem, false) => self.asm.movups(X0, mem),
        }
        match to {
            (slot, true) => self.asm.store_movaps(slot, X0),
            (mem, false) => self.asm.store_movups(mem, X0),
        }
        Some(())
    }

    fn scalar(&mut self) -> Option<()> {
        let bytes = if self.source().instruction.mnemonic() == Mnemonic::Movss { 4 } else { 8 };
        match (self.vector(0), self.vector(1)) {
            (Some(to), Some(from)) => {
                self.asm.movaps(X0, to);
                self.asm.movaps(X1, from);
                // Both encodings of register to register do the same.
                self.asm.load_scalar(bytes, X0, X1);
                self.asm.store_movaps(to, X0);
            }
            (Some(to), None) => {
                let mem = self.memory(false, bytes)?;
                self.asm.load_scalar(bytes, X0, mem);
                self.asm.store_movaps(to, X0);
            }
            (None, Some(from)) => {
                let mem = self.memory(true, bytes)?;
                self.asm.load_scalar(bytes, X0, from);
                self.asm.store_scalar(bytes, mem, X0);
            }
            _ => return None,
        }
        Some(())
    }

    fn half(&mut self) -> Option<()> {
        match (self.vector(0), self.vector(1)) {
            (Some(to), None) => {
                let mem = self.memory(false, 8)?;
                self.asm.movaps(X0, to);
                self.same(false, X0, mem);
                self.asm.store_movaps(to, X0);
            }
            (None, Some(from)) => {
                let mem = self.memory(true, 8)?;
                self.asm.movaps(X0, from);
                self.same(false, X0, mem);
            }
            _ => return None,
        }
        Some(())
    }

    fn quad(&mut self) -> Option<()> {
        match (self.vector(0), self.vector(1)) {
            (Some(to), from) => {
                let from = match from {
                    Some(slot) => slot,
                    None => self.memory(false, 8)?,
                };
                // MOVSD from memory clears the upper half as MOVQ does.
                self.asm.load_scalar(8, X0, from);
                self.asm.store_movaps(to, X0);
            }
            (None, Some(from)) => {
                let mem = self.memory(true, 8)?;
                self.asm.load_scalar(8, X0, from);
                self.asm.store_scalar(8, mem, X0);
            }
            _ => return None,
        }
        Some(())
    }

    fn lanes(&mut self, float: bool) -> Option<()> {
        let to = self.vector(0)?;
        let from = self.second()?;
        if float {
            self.load_mxcsr();
        }
        self.asm.movaps(X0, to);
        self.same(false, X0, from);
        self.asm.store_movaps(to, X0);
        Some(())
    }

    fn vector_shift(&mut self) -> Option<()> {
        let to = self.vector(0)?;
        self.asm.movaps(X0, to);
        self.same(false, X0, X0);
        self.asm.store_movaps(to, X0);
        Some(())
    }

    /// Whether a general operand has 64 bits.
    fn is_wide(&self, at: u32) -> bool {
        self.width(at) == Some(W::B8)
    }

    fn general_to_vector(&mut self, float: bool) -> Option<()> {
        let to = self.vector(0)?;
        let wide = self.is_wide(1);
        let from: Rm = match self.operand(1) {
            Operand::Mem => {
                let bytes = self.memory_bytes();
                self.memory(false, bytes)?.into()
            }
            operand @ Operand::Reg(_) => self.value(operand, R::Cx).into(),
            _ => return None,
        };
        if float {
            self.load_mxcsr();
        }
        self.asm.movaps(X0, to);
        self.same(wide, X0, from);
        self.asm.store_movaps(to, X0);
        Some(())
    }

    fn vector_to_general(&mut self, float: bool) -> Option<()> {
        let to = self.operand(0);
        let wide = self.is_wide(0);
        let from = self.second()?;
        if float {
            self.load_mxcsr();
        }
        let Rm::Reg(reg) = self.writable(to) else { return None };
        self.same(wide, reg, from);
        self.commit(to);
        Some(())
    }

    fn extract(&mut self) -> Option<()> {
        let (to, from) = (self.operand(0), self.vector(1)?);
        match to {
            Operand::Mem => {
                let bytes = self.memory_bytes();
                let mem = self.memory(true, bytes)?;
                self.asm.movaps(X0, from);
                self.same(bytes == 8, X0, mem);
            }
            Operand::Reg(_) => {
                let wide = matches!(self.source().instruction.mnemonic(), Mnemonic::Movq | Mnemonic::Pextrq);
                self.asm.movaps(X0, from);
                let reg = self.writable(to);
                self.same(wide, X0, reg);
                self.commit(to);
            }
            _ => return None,
        }
        Some(())
    }

    fn flags_of(&mut self, float: bool) -> Option<()> {
        let first = self.vector(0)?;
        let from = self.second()?;
        if float {
            self.load_mxcsr();
        }
        self.asm.movaps(X0, first);
        self.same(false, X0, from);
        self.wrote_flags();
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn form_of(bytes: &[u8]) -> Option<(Form, bool)> {
        form(&Decoder::new(64, bytes, DecoderOptions::NONE).decode())
    }

    #[test]
    fn each_form_is_found_and_mmx_is_left_alone() {
        let cases: &[(&[u8], Form, bool)] = &[
            (&[0x0f, 0x28, 0x00], Form::Move { aligned: true }, false),
            (&[0xf3, 0x0f, 0x7f, 0x00], Form::Move { aligned: false }, false),
            (&[0xf2, 0x0f, 0x10, 0xc1], Form::Scalar, false),
            (&[0x0f, 0x16, 0x00], Form::Half, false),
            (&[0x0f, 0x16, 0xc1], Form::Lanes, false),
            (&[0x66, 0x0f, 0xd6, 0xc1], Form::Quad, false),
            (&[0x66, 0x0f, 0xef, 0xc1], Form::Lanes, false),
            (&[0x66, 0x0f, 0x73, 0xf9, 4], Form::Shift, false),
            (&[0xf2, 0x0f, 0x58, 0x00], Form::Lanes, true),
            (&[0x66, 0x48, 0x0f, 0x6e, 0xc0], Form::FromGeneral, false),
            (&[0xf2, 0x48, 0x0f, 0x2a, 0xc0], Form::FromGeneral, true),
            (&[0x66, 0x0f, 0xd7, 0xc1], Form::ToGeneral, false),
            (&[0xf2, 0x0f, 0x2c, 0x00], Form::ToGeneral, true),
            (&[0x66, 0x0f, 0x3a, 0x16, 0xc0, 1], Form::Extract, false),
            (&[0x66, 0x0f, 0x2f, 0xc1], Form::Flags, true),
        ];
        for (bytes, want, float) in cases {
            assert_eq!(form_of(bytes), Some((*want, *float)), "{bytes:02x?}");
        }
        // paddb mm0, mm1; movq mm0, rax; cvtpi2ps xmm0, mm1; movsd (the string instruction); vaddps xmm0, xmm1, xmm2
        let others: &[&[u8]] =
            &[&[0x0f, 0xfc, 0xc1], &[0x48, 0x0f, 0x6e, 0xc0], &[0x0f, 0x2a, 0xc1], &[0xa5], &[0xc5, 0xf0, 0x58, 0xc2]];
        for bytes in others {
            assert_eq!(form_of(bytes), None, "{bytes:02x?}");
        }
    }
}
