//! Gathers, passed through ([`crate::ir::gather`]): only the base of their addresses is lifted.

use super::super::op::{NO_REGISTER, Op};
use super::super::t1::host_has;
use super::operand::Access;
use super::{ByInterpreter, Flow, GPR, Lift, Lifted, SEGMENT_BASE};
use crate::ir::gather::{Form, Gather};
use crate::ir::{Ty, Val};

/// Whether an instruction is a gather.
pub(super) fn is_gather(op: &Op) -> bool {
    Form::of(op.code).is_some()
}

impl Lift {
    /// A gather, where vector instructions are passed through.
    pub(super) fn gather(&mut self, op: &Op) -> Lifted {
        let &Op { code, reg: result, vvvv: mask, index, scale, .. } = op;
        let displacement = i32::try_from(op.disp as i64).map_err(|_| ByInterpreter)?;
        let gather = Gather { code, result, mask, index, scale, displacement };
        if !self.mode.avx || !host_has(code) || !gather.is_valid() || op.address_shift != 0 {
            return Err(ByInterpreter);
        }
        self.check_segment(op.segment, Access::Read)?;
        let mut base = if op.base == NO_REGISTER { Val::NONE } else { self.b.get(Ty::I64, GPR + op.base) };
        if self.mode.based >> op.segment & 1 != 0 {
            let segment = self.b.get(Ty::I64, SEGMENT_BASE + op.segment);
            base = if base.is_some() { self.b.address(Ty::I64, segment, base, 0, 0) } else { segment };
        }
        self.b.gather(base, gather);
        Ok(Flow::Next)
    }
}
