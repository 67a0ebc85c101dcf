//! The x86-64 host: the assembler, the stubs between Rust and translated code, and the emitter of the optimising tier.

pub(crate) mod asm;
pub(crate) mod gather;
pub(crate) mod refill;
pub(crate) mod same;
pub(crate) mod stubs;
pub(crate) mod t2;
pub(crate) mod vectors;
