//! The x86-64 host: the assembler and the stubs between Rust and translated code.

pub(crate) mod asm;
pub(crate) mod stubs;
pub(crate) mod vectors;
