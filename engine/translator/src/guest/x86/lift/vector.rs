//! SSE that moves, and SSE on integer lanes. Only while nothing about the unit is in the way ([`super::LiftMode::vectors`]).

use super::super::op::Op;
use super::operand::Access;
use super::{ByInterpreter, Flow, Lift, Lifted, Vectors, XMM};
use crate::ir::vector::{Takes, VectorOp};
use crate::ir::{self, MemoryAccess, Ty, Val};
use iced_x86::Code;

impl Lift {
    /// An instruction on XMM registers.
    pub(super) fn vector(&mut self, op: &Op) -> Lifted {
        match self.mode.vectors {
            Vectors::Interpreted => return Err(ByInterpreter),
            Vectors::Native => return self.native(op),
            Vectors::Lifted => {}
        }
        if let Some(operation) = operation(op.code) {
            let b = match operation.info().takes {
                Takes::Immediate => Val::NONE,
                Takes::Count if !op.has_memory() && is_by_immediate(op.code) => Val::NONE,
                _ => self.source(op, 16, true)?,
            };
            let by_immediate = b == Val::NONE;
            let to = if by_immediate { op.rm } else { op.reg };
            let a = self.b.get(Ty::V128, XMM + to);
            let immediate = if by_immediate || operation.info().takes == Takes::ValueAndImmediate { op.imm as u8 } else { 0 };
            let result = self.b.vector(operation, a, b, immediate);
            self.b.set(Ty::V128, XMM + to, result);
            return Ok(Flow::Next);
        }
        self.vector_move(op)
    }

    fn vector_move(&mut self, op: &Op) -> Lifted {
        use Code as C;
        match op.code {
            C::Movaps_xmm_xmmm128 | C::Movapd_xmm_xmmm128 | C::Movdqa_xmm_xmmm128 | C::Movntdqa_xmm_m128 => {
                let value = self.source(op, 16, true)?;
                self.b.set(Ty::V128, XMM + op.reg, value);
            }
            C::Movups_xmm_xmmm128 | C::Movupd_xmm_xmmm128 | C::Movdqu_xmm_xmmm128 | C::Lddqu_xmm_m128 => {
                let value = self.source(op, 16, false)?;
                self.b.set(Ty::V128, XMM + op.reg, value);
            }
            C::Movaps_xmmm128_xmm
            | C::Movapd_xmmm128_xmm
            | C::Movdqa_xmmm128_xmm
            | C::Movntps_m128_xmm
            | C::Movntpd_m128_xmm
            | C::Movntdq_m128_xmm => self.store_vector(op, true)?,
            C::Movups_xmmm128_xmm | C::Movupd_xmmm128_xmm | C::Movdqu_xmmm128_xmm => self.store_vector(op, false)?,
            C::Movss_xmm_xmmm32 => self.load_low(op, 4, VectorOp::Insert32)?,
            C::Movsd_xmm_xmmm64 => self.load_low(op, 8, VectorOp::Insert64)?,
            C::Movq_xmm_xmmm64 => self.load_low(op, 8, VectorOp::Low64)?,
            C::Movss_xmmm32_xmm => self.store_low(op, Ty::I32, VectorOp::Insert32)?,
            C::Movsd_xmmm64_xmm => self.store_low(op, Ty::I64, VectorOp::Insert64)?,
            C::Movq_xmmm64_xmm => self.store_low(op, Ty::I64, VectorOp::Low64)?,
            C::Movlps_m64_xmm | C::Movlpd_m64_xmm => self.store_low(op, Ty::I64, VectorOp::Low64)?,
            C::Movlps_xmm_m64 | C::Movlpd_xmm_m64 => self.combine(op, 8, VectorOp::Insert64)?,
            C::Movhps_xmm_m64 | C::Movhpd_xmm_m64 | C::Movlhps_xmm_xmm => self.combine(op, 8, VectorOp::InsertHigh64)?,
            C::Movhlps_xmm_xmm => self.combine(op, 8, VectorOp::HighToLow64)?,
            C::Movhps_m64_xmm | C::Movhpd_m64_xmm => {
                let place = self.place(op, Access::Write)?;
                let value = self.b.get(Ty::V128, XMM + op.reg);
                let high = self.b.vector_lane(Ty::I64, value, 1);
                self.store(Ty::I64, place, high);
            }
            C::Movd_xmm_rm32 => self.load_general(op, Ty::I32)?,
            C::Movq_xmm_rm64 => self.load_general(op, Ty::I64)?,
            C::Movd_rm32_xmm => self.store_general(op, Ty::I32)?,
            C::Movq_rm64_xmm => self.store_general(op, Ty::I64)?,
            C::Pmovmskb_r32_xmm | C::Pmovmskb_r64_xmm => self.signs(op, 1),
            C::Movmskps_r32_xmm | C::Movmskps_r64_xmm => self.signs(op, 4),
            C::Movmskpd_r32_xmm | C::Movmskpd_r64_xmm => self.signs(op, 8),
            _ => return self.float(op),
        }
        Ok(Flow::Next)
    }

    /// The second operand: a register, or memory of `bytes` bytes, zero-extended.
    fn source(&mut self, op: &Op, bytes: u8, aligned: bool) -> Result<Val, ByInterpreter> {
        if !op.has_memory() {
            return Ok(self.b.get(Ty::V128, XMM + op.rm));
        }
        let place = self.place(op, Access::Read)?;
        let access = MemoryAccess { aligned, ..MemoryAccess::tso(bytes) };
        Ok(self.b.load(Ty::V128, place.address, place.displacement, access))
    }

    fn store_vector(&mut self, op: &Op, aligned: bool) -> Result<(), ByInterpreter> {
        let value = self.b.get(Ty::V128, XMM + op.reg);
        if !op.has_memory() {
            self.b.set(Ty::V128, XMM + op.rm, value);
            return Ok(());
        }
        let place = self.place(op, Access::Write)?;
        if aligned {
            self.b.store_aligned(Ty::V128, place.address, place.displacement, value);
        } else {
            self.store(Ty::V128, place, value);
        }
        Ok(())
    }

    /// From memory: the low part, zero above. From a register: as `in_register` puts it together.
    fn load_low(&mut self, op: &Op, bytes: u8, in_register: VectorOp) -> Result<(), ByInterpreter> {
        if !op.has_memory() {
            return self.combine(op, bytes, in_register);
        }
        let value = self.source(op, bytes, false)?;
        self.b.set(Ty::V128, XMM + op.reg, value);
        Ok(())
    }

    fn combine(&mut self, op: &Op, bytes: u8, operation: VectorOp) -> Result<(), ByInterpreter> {
        let b = self.source(op, bytes, false)?;
        let a = self.b.get(Ty::V128, XMM + op.reg);
        let result = self.b.vector(operation, a, b, 0);
        self.b.set(Ty::V128, XMM + op.reg, result);
        Ok(())
    }

    fn store_low(&mut self, op: &Op, ty: Ty, in_register: VectorOp) -> Result<(), ByInterpreter> {
        let value = self.b.get(Ty::V128, XMM + op.reg);
        if op.has_memory() {
            let place = self.place(op, Access::Write)?;
            let low = self.b.vector_lane(ty, value, 0);
            self.store(ty, place, low);
        } else {
            let old = self.b.get(Ty::V128, XMM + op.rm);
            let result = self.b.vector(in_register, old, value, 0);
            self.b.set(Ty::V128, XMM + op.rm, result);
        }
        Ok(())
    }

    fn load_general(&mut self, op: &Op, ty: Ty) -> Result<(), ByInterpreter> {
        let value = if op.has_memory() {
            self.source(op, ty.bytes(), false)?
        } else {
            let value = self.get(ty, op.rm);
            self.b.unary(ir::Op::ToVector, Ty::V128, value)
        };
        self.b.set(Ty::V128, XMM + op.reg, value);
        Ok(())
    }

    fn store_general(&mut self, op: &Op, ty: Ty) -> Result<(), ByInterpreter> {
        let place = if op.has_memory() { Some(self.place(op, Access::Write)?) } else { None };
        let value = self.b.get(Ty::V128, XMM + op.reg);
        let low = self.b.vector_lane(ty, value, 0);
        match place {
            Some(place) => self.store(ty, place, low),
            None => self.set(ty, op.rm, low),
        }
        Ok(())
    }

    fn signs(&mut self, op: &Op, bytes: u8) {
        let value = self.b.get(Ty::V128, XMM + op.rm);
        let signs = self.b.vector_signs(Ty::I32, value, bytes);
        self.set(Ty::I32, op.reg, signs);
    }
}

/// Whether a shift's count is an immediate: then the register is ModRM.rm's.
fn is_by_immediate(code: Code) -> bool {
    use Code as C;
    matches!(
        code,
        C::Psrlw_xmm_imm8
            | C::Psraw_xmm_imm8
            | C::Psllw_xmm_imm8
            | C::Psrld_xmm_imm8
            | C::Psrad_xmm_imm8
            | C::Pslld_xmm_imm8
            | C::Psrlq_xmm_imm8
            | C::Psllq_xmm_imm8
    )
}

/// `xmm ← operation(xmm, xmm or aligned memory)`.
#[rustfmt::skip]
fn operation(code: Code) -> Option<VectorOp> {
    use Code as C;
    use VectorOp as V;
    Some(match code {
        C::Andps_xmm_xmmm128 | C::Andpd_xmm_xmmm128 | C::Pand_xmm_xmmm128 => V::And,
        C::Andnps_xmm_xmmm128 | C::Andnpd_xmm_xmmm128 | C::Pandn_xmm_xmmm128 => V::AndNot,
        C::Orps_xmm_xmmm128 | C::Orpd_xmm_xmmm128 | C::Por_xmm_xmmm128 => V::Or,
        C::Xorps_xmm_xmmm128 | C::Xorpd_xmm_xmmm128 | C::Pxor_xmm_xmmm128 => V::Xor,
        C::Paddb_xmm_xmmm128 => V::Add8,
        C::Paddw_xmm_xmmm128 => V::Add16,
        C::Paddd_xmm_xmmm128 => V::Add32,
        C::Paddq_xmm_xmmm128 => V::Add64,
        C::Psubb_xmm_xmmm128 => V::Sub8,
        C::Psubw_xmm_xmmm128 => V::Sub16,
        C::Psubd_xmm_xmmm128 => V::Sub32,
        C::Psubq_xmm_xmmm128 => V::Sub64,
        C::Paddusb_xmm_xmmm128 => V::AddSaturated8,
        C::Paddusw_xmm_xmmm128 => V::AddSaturated16,
        C::Psubusb_xmm_xmmm128 => V::SubSaturated8,
        C::Psubusw_xmm_xmmm128 => V::SubSaturated16,
        C::Paddsb_xmm_xmmm128 => V::AddSaturatedSigned8,
        C::Paddsw_xmm_xmmm128 => V::AddSaturatedSigned16,
        C::Psubsb_xmm_xmmm128 => V::SubSaturatedSigned8,
        C::Psubsw_xmm_xmmm128 => V::SubSaturatedSigned16,
        C::Pavgb_xmm_xmmm128 => V::Average8,
        C::Pavgw_xmm_xmmm128 => V::Average16,
        C::Pminub_xmm_xmmm128 => V::Min8,
        C::Pminuw_xmm_xmmm128 => V::Min16,
        C::Pminud_xmm_xmmm128 => V::Min32,
        C::Pmaxub_xmm_xmmm128 => V::Max8,
        C::Pmaxuw_xmm_xmmm128 => V::Max16,
        C::Pmaxud_xmm_xmmm128 => V::Max32,
        C::Pminsb_xmm_xmmm128 => V::MinSigned8,
        C::Pminsw_xmm_xmmm128 => V::MinSigned16,
        C::Pminsd_xmm_xmmm128 => V::MinSigned32,
        C::Pmaxsb_xmm_xmmm128 => V::MaxSigned8,
        C::Pmaxsw_xmm_xmmm128 => V::MaxSigned16,
        C::Pmaxsd_xmm_xmmm128 => V::MaxSigned32,
        C::Pcmpeqb_xmm_xmmm128 => V::Equal8,
        C::Pcmpeqw_xmm_xmmm128 => V::Equal16,
        C::Pcmpeqd_xmm_xmmm128 => V::Equal32,
        C::Pcmpeqq_xmm_xmmm128 => V::Equal64,
        C::Pcmpgtb_xmm_xmmm128 => V::Greater8,
        C::Pcmpgtw_xmm_xmmm128 => V::Greater16,
        C::Pcmpgtd_xmm_xmmm128 => V::Greater32,
        C::Pcmpgtq_xmm_xmmm128 => V::Greater64,
        C::Pmullw_xmm_xmmm128 => V::Mul16,
        C::Pmulld_xmm_xmmm128 => V::Mul32,
        C::Pmulhuw_xmm_xmmm128 => V::MulHigh16,
        C::Pmulhw_xmm_xmmm128 => V::MulHighSigned16,
        C::Pmuludq_xmm_xmmm128 => V::MulWide32,
        C::Pmuldq_xmm_xmmm128 => V::MulWideSigned32,
        C::Pmaddwd_xmm_xmmm128 => V::MulAdd16,
        C::Pmaddubsw_xmm_xmmm128 => V::MulAdd8,
        C::Psadbw_xmm_xmmm128 => V::SumOfDifferences8,
        C::Pabsb_xmm_xmmm128 => V::Absolute8,
        C::Pabsw_xmm_xmmm128 => V::Absolute16,
        C::Pabsd_xmm_xmmm128 => V::Absolute32,
        C::Psllw_xmm_xmmm128 | C::Psllw_xmm_imm8 => V::Shl16,
        C::Pslld_xmm_xmmm128 | C::Pslld_xmm_imm8 => V::Shl32,
        C::Psllq_xmm_xmmm128 | C::Psllq_xmm_imm8 => V::Shl64,
        C::Psrlw_xmm_xmmm128 | C::Psrlw_xmm_imm8 => V::Shr16,
        C::Psrld_xmm_xmmm128 | C::Psrld_xmm_imm8 => V::Shr32,
        C::Psrlq_xmm_xmmm128 | C::Psrlq_xmm_imm8 => V::Shr64,
        C::Psraw_xmm_xmmm128 | C::Psraw_xmm_imm8 => V::Sar16,
        C::Psrad_xmm_xmmm128 | C::Psrad_xmm_imm8 => V::Sar32,
        C::Pslldq_xmm_imm8 => V::ShlBytes,
        C::Psrldq_xmm_imm8 => V::ShrBytes,
        C::Punpcklbw_xmm_xmmm128 => V::UnpackLow8,
        C::Punpcklwd_xmm_xmmm128 => V::UnpackLow16,
        C::Punpckldq_xmm_xmmm128 | C::Unpcklps_xmm_xmmm128 => V::UnpackLow32,
        C::Punpcklqdq_xmm_xmmm128 | C::Unpcklpd_xmm_xmmm128 => V::UnpackLow64,
        C::Punpckhbw_xmm_xmmm128 => V::UnpackHigh8,
        C::Punpckhwd_xmm_xmmm128 => V::UnpackHigh16,
        C::Punpckhdq_xmm_xmmm128 | C::Unpckhps_xmm_xmmm128 => V::UnpackHigh32,
        C::Punpckhqdq_xmm_xmmm128 | C::Unpckhpd_xmm_xmmm128 => V::UnpackHigh64,
        C::Packsswb_xmm_xmmm128 => V::PackSigned16,
        C::Packssdw_xmm_xmmm128 => V::PackSigned32,
        C::Packuswb_xmm_xmmm128 => V::Pack16,
        C::Packusdw_xmm_xmmm128 => V::Pack32,
        C::Pshufb_xmm_xmmm128 => V::Shuffle8,
        C::Pshufd_xmm_xmmm128_imm8 => V::Shuffle32,
        C::Pshuflw_xmm_xmmm128_imm8 => V::ShuffleLow16,
        C::Pshufhw_xmm_xmmm128_imm8 => V::ShuffleHigh16,
        C::Shufps_xmm_xmmm128_imm8 => V::ShufflePair32,
        C::Shufpd_xmm_xmmm128_imm8 => V::ShufflePair64,
        C::Palignr_xmm_xmmm128_imm8 => V::Align8,
        _ => return None,
    })
}
