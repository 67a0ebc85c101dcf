//! Which VEX-encoded vector instruction is which shape of `vex.rs` with which operation.

use super::op::Handler;
use super::vex::*;
use super::{fxsave, host_fp};
use iced_x86::{Code, EncodingKind, Instruction};

/// The handler of a VEX-encoded vector instruction.
pub(super) fn handler(code: Code, instruction: &Instruction) -> Option<Handler> {
    if instruction.op_code().encoding() != EncodingKind::VEX || !host_fp::available() {
        return None;
    }
    single(code)
}

/// What is one of a kind.
fn single(code: Code) -> Option<Handler> {
    use Code::*;
    Some(match code {
        VEX_Vzeroupper => zero_registers::<false>,
        VEX_Vzeroall => zero_registers::<true>,
        VEX_Vldmxcsr_m32 => fxsave::ldmxcsr::<true>,
        VEX_Vstmxcsr_m32 => fxsave::stmxcsr::<true>,
        _ => return None,
    })
}
