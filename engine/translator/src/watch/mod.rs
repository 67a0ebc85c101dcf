//! What a person can see of the translator: what it counts, where its time goes, which guest code is hot.
//!
//! * `tally.rs`: what each vCPU counts, on paths that are slow already.
//! * `sampler.rs`: where a vCPU's thread is, looked at every few milliseconds of its own processor time.
//! * `code_log.rs`: which host code belongs to which guest code, for a profile and for `perf`; kept only when somebody asked for either.
//! * `profile.rs`: the hottest guest code as text, from the two before.
//! * `report.rs`: all of it as [`engine_cpu::Section`]s, for `info jit`.
//!
//! A tier more is a [`sampler::Place`] (where its code lies, by [`sampler::Sampler::set_code`]), a [`code_log::Placed`] for each piece of code that it
//! makes, and a [`report::TierFigures`] in [`report::sections`].

pub(crate) mod code_log;
pub(crate) mod profile;
pub(crate) mod report;
pub(crate) mod sampler;
pub(crate) mod tally;
