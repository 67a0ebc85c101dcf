//! What a person can see of the translator: what it counts, where its time goes, which guest code is hot.
//!
//! * `tally.rs`: what each vCPU counts, on paths that are slow already.
//! * `sampler.rs`: where a vCPU's thread is, looked at every few milliseconds of its own processor time.
//! * `code_log.rs`: which host code belongs to which guest code, for a profile and for `perf`; kept only when somebody asked
//!   for either.
//! * `profile.rs`: the hottest guest code as text, from the two before.
//! * `report.rs`: all of it as [`engine_cpu::Section`]s, for `info jit`.
//!
//! A tier more is a [`sampler::Place`] (told by where its code lies: [`sampler::Sampler::set_code`]), a [`code_log::Placed`] for
//! each piece of code that it makes, and a [`report::TierFigures`] in [`report::sections`].

//!
//! # Where the time of a boot goes
//! Processor time of the CPU's thread, by the samples of `info jit` at the last mark; one CPU, tier 2 off, as measured in
//! November 2026 on an AMD EPYC. The marks: a kernel's first word of init; the text installer's first question; after four runs
//! of `python` and `sqlite` in the bench's guest.
//!
//! | | kernel, 2.8 s | installer, 7.6 s | programs, 3.9 s |
//! |---|---|---|---|
//! | tier 1's code | 78 % | 66 % | 74 % |
//! | interpreter: cold code, 16-bit code, decoding (5 % of the installer) | 8 % | 11 % | 11 % |
//! | interpreter for translated code, and dispatch: TLB misses, strings, jump caches | 8 % | 18 % | 8 % |
//! | translating | 5 % | 5 % | 5 % |
//! | devices | 1 % | 0.3 % | 1 % |
//!
//! * Of the kernel's boot 61 % is its own unpacking in tier 1: xz and its checksum, a few loops. More than any other thing it
//!   is tier 2's to mend.
//! * Translating costs 0.9 µs an instruction, decoding them again included: 0.14 s of a kernel's boot, 0.3 s of the
//!   installer's. A translation cache on disk could save no more than that, and is worth its trouble from 15 % on: there is
//!   none.
//! * The host's kernel takes 6 %, nearly all for the first touch of guest memory. Large pages (MADV_HUGEPAGE) halved the faults
//!   and trebled the time, 0.15 to 0.47 s, for clearing what nobody needs.
//! * Traces are translated after 16 rounds; after 4 or 8 boots and programs took as long, within what runs differ by.
//!
//! * Late interrupts on a busy host are the host's: between a kick and the end of the run a CPU's thread works for 0.2 ms at
//!   most, in the worst loop of `tests/latency.rs`, while the wall's clock says 6 ms on two cores with a load of 24.
//!
//! How to see that: `tests/media/boot`'s scenarios or `tests/bench/run`'s guest with `-perfmap`, `perf record -e cpu-clock -p
//! PID`, and `info jit` in the monitor.

pub(crate) mod code_log;
pub(crate) mod profile;
pub(crate) mod report;
pub(crate) mod sampler;
pub(crate) mod tally;
