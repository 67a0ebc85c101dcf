//! Which handler executes which instruction: the areas are asked in order, the first that knows the instruction gets it.
//! What nobody knows is #UD, as on a CPU that does not have it.

use super::cpu::Cpu;
use super::fault::{Exec, Stop};
use super::op::{Handler, Op};
use super::{fp, interp_integer, paravirt, system};
use iced_x86::{Code, Instruction};

/// Asks one area.
type Area = fn(Code, &Instruction) -> Option<Handler>;

/// All areas.
const AREAS: &[Area] = &[interp_integer::handler, system::handler, fp::handler, |code, _| paravirt::handler(code)];

/// The handler of an instruction.
pub(super) fn handler(instruction: &Instruction) -> Handler {
    let code = instruction.code();
    AREAS.iter().find_map(|area| area(code, instruction)).unwrap_or(undefined)
}

/// #UD
pub(super) fn undefined(_cpu: &mut Cpu, _op: &Op) -> Exec {
    Err(Stop::ud())
}
