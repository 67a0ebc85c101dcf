//! The x86 guest. `op.rs` holds the conventions; `cpu.rs` the state; `handlers.rs` says which file handles which instruction.

pub(crate) mod access;
pub(crate) mod cpu;
pub(crate) mod cpuid;
pub(crate) mod decode;
pub(crate) mod evaluate;
mod evaluate_float;
pub(crate) mod fault;
mod fetched;
pub(crate) mod flags;
mod fp;
mod fxsave;
pub(crate) mod handlers;
mod host_fp;
mod interp_alu;
mod interp_bits;
mod interp_bmi;
mod interp_decimal;
mod interp_flow;
mod interp_integer;
mod interp_move;
mod interp_multiply;
mod interp_shift;
mod interp_string;
pub(crate) mod lapic;
pub(crate) mod lift;
pub(crate) mod op;
pub(crate) mod paravirt;
pub(crate) mod run;
mod shuffle;
mod sse;
mod sse_table;
mod sse_unmasked;
mod system;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod t1;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[path = "t1/absent.rs"]
pub(crate) mod t1;
pub(crate) mod trace;
mod vex;
mod vex_lanes;
mod vex_memory;
mod vex_table;
mod x87;
mod x87_environment;
mod x87_table;
