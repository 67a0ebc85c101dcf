//! SSE arithmetic, as long as MXCSR masks all exceptions ([`super::LiftMode::masked_floats`]): then nothing but the sticky
//! flags can happen.

use super::super::op::Op;
use super::operand::Access;
use super::{ByInterpreter, Flow, Lift, Lifted, XMM};
use crate::ir::float::FloatOp;
use crate::ir::{MemoryAccess, Ty, Val};
use iced_x86::Code;

impl Lift {
    pub(super) fn float(&mut self, op: &Op) -> Lifted {
        if !self.mode.masked_floats {
            return Err(ByInterpreter);
        }
        if let Some((operation, bytes)) = operation(op.code) {
            let b = self.float_source(op, bytes)?;
            let a = self.b.get(Ty::V128, XMM + op.reg);
            let immediate = if operation.takes_immediate() { op.imm as u8 } else { 0 };
            let result = self.b.float(operation, a, b, immediate);
            self.b.set(Ty::V128, XMM + op.reg, result);
            return Ok(Flow::Next);
        }
        self.conversion(op)
    }

    fn conversion(&mut self, op: &Op) -> Lifted {
        use Code as C;
        match op.code {
            C::Ucomiss_xmm_xmmm32 => self.compare(op, 4, false)?,
            C::Comiss_xmm_xmmm32 => self.compare(op, 4, true)?,
            C::Ucomisd_xmm_xmmm64 => self.compare(op, 8, false)?,
            C::Comisd_xmm_xmmm64 => self.compare(op, 8, true)?,
            C::Cvtsi2ss_xmm_rm32 => self.int_to_float(op, Ty::I32, 4)?,
            C::Cvtsi2ss_xmm_rm64 => self.int_to_float(op, Ty::I64, 4)?,
            C::Cvtsi2sd_xmm_rm32 => self.int_to_float(op, Ty::I32, 8)?,
            C::Cvtsi2sd_xmm_rm64 => self.int_to_float(op, Ty::I64, 8)?,
            C::Cvtss2si_r32_xmmm32 => self.float_to_int(op, Ty::I32, 4, false)?,
            C::Cvtss2si_r64_xmmm32 => self.float_to_int(op, Ty::I64, 4, false)?,
            C::Cvtsd2si_r32_xmmm64 => self.float_to_int(op, Ty::I32, 8, false)?,
            C::Cvtsd2si_r64_xmmm64 => self.float_to_int(op, Ty::I64, 8, false)?,
            C::Cvttss2si_r32_xmmm32 => self.float_to_int(op, Ty::I32, 4, true)?,
            C::Cvttss2si_r64_xmmm32 => self.float_to_int(op, Ty::I64, 4, true)?,
            C::Cvttsd2si_r32_xmmm64 => self.float_to_int(op, Ty::I32, 8, true)?,
            C::Cvttsd2si_r64_xmmm64 => self.float_to_int(op, Ty::I64, 8, true)?,
            _ => return Err(ByInterpreter),
        }
        Ok(Flow::Next)
    }

    /// The second operand; memory of 16 bytes must be aligned.
    fn float_source(&mut self, op: &Op, bytes: u8) -> Result<Val, ByInterpreter> {
        if !op.has_memory() {
            return Ok(self.b.get(Ty::V128, XMM + op.rm));
        }
        let place = self.place(op, Access::Read)?;
        let access = MemoryAccess { aligned: bytes == 16, ..MemoryAccess::tso(bytes) };
        Ok(self.b.load(Ty::V128, place.address, place.displacement, access))
    }

    fn compare(&mut self, op: &Op, bytes: u8, signals: bool) -> Result<(), ByInterpreter> {
        let b = self.float_source(op, bytes)?;
        let a = self.b.get(Ty::V128, XMM + op.reg);
        let flags = self.b.float_compare(a, b, bytes, signals);
        self.b.set_flags(flags);
        Ok(())
    }

    fn int_to_float(&mut self, op: &Op, from: Ty, bytes: u8) -> Result<(), ByInterpreter> {
        let value = if op.has_memory() {
            let place = self.place(op, Access::Read)?;
            self.load(from, place)
        } else {
            self.get(from, op.rm)
        };
        let a = self.b.get(Ty::V128, XMM + op.reg);
        let result = self.b.int_to_float(a, value, bytes);
        self.b.set(Ty::V128, XMM + op.reg, result);
        Ok(())
    }

    fn float_to_int(&mut self, op: &Op, to: Ty, bytes: u8, truncates: bool) -> Result<(), ByInterpreter> {
        let value = self.float_source(op, bytes)?;
        let result = self.b.float_to_int(to, value, bytes, truncates);
        self.set(to, op.reg, result);
        Ok(())
    }
}

/// `xmm ← operation(xmm, source of so many bytes)`.
#[rustfmt::skip]
fn operation(code: Code) -> Option<(FloatOp, u8)> {
    use Code as C;
    use FloatOp as F;
    Some(match code {
        C::Addps_xmm_xmmm128 => (F::AddF32x4, 16),
        C::Addpd_xmm_xmmm128 => (F::AddF64x2, 16),
        C::Addss_xmm_xmmm32 => (F::AddF32, 4),
        C::Addsd_xmm_xmmm64 => (F::AddF64, 8),
        C::Subps_xmm_xmmm128 => (F::SubF32x4, 16),
        C::Subpd_xmm_xmmm128 => (F::SubF64x2, 16),
        C::Subss_xmm_xmmm32 => (F::SubF32, 4),
        C::Subsd_xmm_xmmm64 => (F::SubF64, 8),
        C::Mulps_xmm_xmmm128 => (F::MulF32x4, 16),
        C::Mulpd_xmm_xmmm128 => (F::MulF64x2, 16),
        C::Mulss_xmm_xmmm32 => (F::MulF32, 4),
        C::Mulsd_xmm_xmmm64 => (F::MulF64, 8),
        C::Divps_xmm_xmmm128 => (F::DivF32x4, 16),
        C::Divpd_xmm_xmmm128 => (F::DivF64x2, 16),
        C::Divss_xmm_xmmm32 => (F::DivF32, 4),
        C::Divsd_xmm_xmmm64 => (F::DivF64, 8),
        C::Minps_xmm_xmmm128 => (F::MinF32x4, 16),
        C::Minpd_xmm_xmmm128 => (F::MinF64x2, 16),
        C::Minss_xmm_xmmm32 => (F::MinF32, 4),
        C::Minsd_xmm_xmmm64 => (F::MinF64, 8),
        C::Maxps_xmm_xmmm128 => (F::MaxF32x4, 16),
        C::Maxpd_xmm_xmmm128 => (F::MaxF64x2, 16),
        C::Maxss_xmm_xmmm32 => (F::MaxF32, 4),
        C::Maxsd_xmm_xmmm64 => (F::MaxF64, 8),
        C::Sqrtps_xmm_xmmm128 => (F::SqrtF32x4, 16),
        C::Sqrtpd_xmm_xmmm128 => (F::SqrtF64x2, 16),
        C::Sqrtss_xmm_xmmm32 => (F::SqrtF32, 4),
        C::Sqrtsd_xmm_xmmm64 => (F::SqrtF64, 8),
        C::Cmpps_xmm_xmmm128_imm8 => (F::CompareF32x4, 16),
        C::Cmppd_xmm_xmmm128_imm8 => (F::CompareF64x2, 16),
        C::Cmpss_xmm_xmmm32_imm8 => (F::CompareF32, 4),
        C::Cmpsd_xmm_xmmm64_imm8 => (F::CompareF64, 8),
        C::Cvtps2pd_xmm_xmmm64 => (F::WidenF32x2, 8),
        C::Cvtpd2ps_xmm_xmmm128 => (F::NarrowF64x2, 16),
        C::Cvtss2sd_xmm_xmmm32 => (F::WidenF32, 4),
        C::Cvtsd2ss_xmm_xmmm64 => (F::NarrowF64, 8),
        C::Cvtdq2ps_xmm_xmmm128 => (F::FromI32x4, 16),
        C::Cvtdq2pd_xmm_xmmm64 => (F::FromI32x2, 8),
        C::Cvtps2dq_xmm_xmmm128 => (F::ToI32x4, 16),
        C::Cvttps2dq_xmm_xmmm128 => (F::TruncateToI32x4, 16),
        C::Cvtpd2dq_xmm_xmmm128 => (F::ToI32x2, 16),
        C::Cvttpd2dq_xmm_xmmm128 => (F::TruncateToI32x2, 16),
        _ => return None,
    })
}
