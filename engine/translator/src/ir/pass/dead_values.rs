//! Removes what nobody uses: pure instructions whose value no instruction and no snapshot mentions.

use super::super::ops::{Effects, Op, Ty};
use super::super::{Block, Inst};

/// The pass.
pub(super) fn run(block: &mut Block) {
    let mut room = std::mem::take(&mut block.room);
    room.clear(block.insts.len());
    let used = &mut room.marks;
    for inst in &block.insts {
        if let Some(snapshot) = block.snapshots.get(usize::from(inst.snapshot))
            && snapshot.flags.is_some()
        {
            used[snapshot.flags.index()] = true;
        }
    }
    let mut replaced = false;
    for at in (0..block.insts.len()).rev() {
        let inst = block.insts[at];
        let effects = inst.op.info().effects;
        if effects.contains(Effects::ENDS_BLOCK) || inst.op == Op::CallInterp {
            replaced = false;
        }
        // Reading state has no effect; a commit of flags that is followed by another says nothing, for snapshots have their own.
        let removable = match inst.op {
            Op::SetFlags => std::mem::replace(&mut replaced, true),
            _ => inst.result().is_some() && Effects::READ_STATE.contains(effects) && !used[at],
        };
        if removable {
            block.insts[at] = Inst::new(Op::Nop, Ty::None);
            continue;
        }
        for arg in inst.arguments() {
            used[arg.index()] = true;
        }
    }
    block.room = room;
}
