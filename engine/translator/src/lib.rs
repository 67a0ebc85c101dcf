//! Our own CPU backend. Tier 0 is an interpreter of pre-decoded traces behind a software TLB, the reference for all others:
//! exact first, then fast. Tier 1 translates hot traces to code of an x86-64 host ([`Interpreter::translating`]) and leaves
//! what is rare to tier 0.
//!
//! It is *not* KVM (`engine_kvm`) and knows no devices: a CPU reaches its board through [`engine_cpu::CpuIo`].
//!
//! How it works: `guest/x86/decode.rs` turns guest bytes into [`Op`](guest)s of a trace (≤ 32 instructions up to a transfer),
//! each with the address of its handler; `guest/x86/run.rs` looks the trace up and calls the handlers one after the
//! other; `guest/x86/interp_*.rs` and their neighbours are the handlers; `mmu/` is the TLB and the page walk under them.
//! `guest/x86/paravirt/` is what hypervisors offer beyond a CPU: KVM's clock and hypercalls, Microsoft's registers.
//!
//! Threads: none of its own. Each vCPU belongs to the thread that runs it; what others may touch is in `shared.rs`
//! (attention bits, the local APIC behind its lock) and nothing else.
//! `watch/` is what a person can see of all that: figures, samples, a profile.
//!
//! `guest/x86/t1/` translates, with the assembler and stubs of `host/x64/`, into the memory of `run/`. It goes from decoded
//! instructions straight to the host's: guest and host are of one kind.
//!
//! `ir/` is what the optimising tier will work on: guest code lifted by `guest/x86/lift`, changed by `ir/pass`, and for tests
//! evaluated by `ir/eval.rs` ([`Interpreter::evaluating`]).
//!
//! Start at [`Interpreter`]; then `guest/x86/op.rs`, which holds the conventions that every handler follows.

mod backend;
mod chaos;
mod guest;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod host;
#[allow(dead_code, reason = "the emitters and the second tier are being built on it")]
mod ir;
mod mmu;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod run;
mod shared;
mod watch;

pub use backend::{Interpreter, Tier2Options, TranslatorOptions};
pub use chaos::Chaos;
pub use guest::x86::evaluate::{Evaluation, EvaluationUnit, REGION_PASSES};
pub use watch::code_log::WatchOptions;
