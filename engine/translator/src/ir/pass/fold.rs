//! Constant arithmetic that front ends leave behind: extensions and truncations of constants, addresses of constants, nested
//! displacements.

use super::super::ops::{Op, Ty};
use super::super::{Block, Val};

/// The pass.
pub(super) fn run(block: &mut Block) {
    for at in 0..block.insts.len() {
        let inst = block.insts[at];
        let a = inst.args[0];
        match inst.op {
            Op::ZeroExtend | Op::Truncate => {
                if let Some(value) = block.constant(a) {
                    make_constant(block, at, value);
                }
            }
            Op::SignExtend => {
                if let Some(value) = block.constant(a) {
                    let unused = 64 - block.def(a).ty.bits();
                    make_constant(block, at, ((value << unused) as i64 >> unused) as u64);
                }
            }
            Op::Address => fold_address(block, at),
            Op::Load | Op::Store | Op::AtomicRmw | Op::AtomicCas => {
                // Base plus displacement, twice: the access takes the sum.
                let def = *block.def(a);
                if def.op == Op::Address && !def.args[1].is_some() && def.ty == Ty::I64 {
                    block.insts[at].args[0] = def.args[0];
                    block.insts[at].imm = inst.imm.wrapping_add(def.imm);
                }
            }
            _ => {}
        }
    }
}

fn fold_address(block: &mut Block, at: usize) {
    let mut inst = block.insts[at];
    if let Some(index) = block.constant(inst.args[1]) {
        inst.imm = inst.imm.wrapping_add(index << inst.aux);
        inst.args[1] = Val::NONE;
        inst.aux = 0;
    }
    if let Some(base) = block.constant(inst.args[0]) {
        if !inst.args[1].is_some() {
            return make_constant(block, at, base.wrapping_add(inst.imm));
        }
        inst.imm = inst.imm.wrapping_add(base);
        inst.args[0] = Val::NONE;
    }
    if !inst.args[0].is_some() && !inst.args[1].is_some() {
        return make_constant(block, at, inst.imm);
    }
    if inst.args[0].is_some() {
        let def = *block.def(inst.args[0]);
        if def.op == Op::Address && !def.args[1].is_some() {
            inst.args[0] = def.args[0];
            inst.imm = inst.imm.wrapping_add(def.imm);
        }
    }
    block.insts[at] = inst;
}

fn make_constant(block: &mut Block, at: usize, value: u64) {
    let inst = &mut block.insts[at];
    inst.op = Op::Const;
    inst.aux = 0;
    inst.args = [Val::NONE; 3];
    inst.imm = value & inst.ty.mask();
}
