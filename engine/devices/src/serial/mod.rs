//! Serial ports and other ways for a program to talk to the outside byte by byte.

pub mod isa_debug_exit;
pub mod isa_debugcon;
pub mod isa_serial;
