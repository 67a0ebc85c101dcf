//! What a CPU backend is, and one architectural state per guest architecture that all backends share, so that a machine
//! saved under one backend resumes under another.
//!
//! It is *not* a backend: `engine_translator` (our own) and `engine_kvm` are. It does not know the bus either: a vCPU
//! reaches the board through [`CpuIo`], which the machine implements.
//!
//! Threads: a [`Vcpu`] belongs to one host thread (`vm-cpu<n>`), which sits in [`Vcpu::run`]; everything else in
//! [`CpuBackend`] may be called from any thread at any time.
//! Start at [`CpuBackend`]; the x86 state is [`x86::X86State`].
#![forbid(unsafe_code)]

mod backend;
mod io;
mod statistics;
pub mod x86;

pub use backend::{CpuBackend, CpuError, CpuModel, CpuState, Exit, Kicker, Topology, Vcpu};
pub use io::{ApicMessage, CpuIo, DeliveryMode};
pub use statistics::{Figure, Section, print};
