//! Tier 1 on hosts for which there is none: the interpreter does everything.

use super::cpu::Cpu;
use super::cpuid::InstructionSets;
use super::fault::Stop;
use super::op::Op;
use super::trace::TraceRef;
use crate::backend::TranslatorOptions;
use crate::ir::native::Native;
use crate::shared::CpuShared;
use crate::watch::code_log::{CodeLog, WatchOptions};
use crate::watch::report::TierFigures;
use iced_x86::Code;
use std::sync::atomic::AtomicU32;

/// No translations.
pub(crate) struct Translations {
    pub watch: WatchOptions,
    pub log: CodeLog,
}

impl Translations {
    pub fn new(options: TranslatorOptions) -> Self {
        Self { watch: options.watch, log: CodeLog::new(options.watch) }
    }
    pub fn off() -> Self {
        Self { watch: WatchOptions::default(), log: CodeLog::new(WatchOptions::default()) }
    }
    pub fn is_on(&self) -> bool {
        false
    }
    pub fn figures(&self) -> Vec<TierFigures> {
        Vec::new()
    }
}

/// A vCPU's part of nothing.
pub(crate) struct Translator;

impl Translator {
    pub fn new(_: &CpuShared, _: &Translations) -> Self {
        Self
    }
}

/// Whether the host has a vector instruction: there is nobody who would use it.
pub(super) fn host_has(_: Code) -> bool {
    false
}

/// What is never lifted is never evaluated.
pub(super) fn with_accumulator(native: &Native, _: bool, _: &InstructionSets) -> Op {
    unreachable!("{native:?} is not this host's")
}

/// How translated code was left.
#[allow(dead_code, reason = "there is none that could be left")]
pub(super) enum Left {
    At,
    Poll,
    Stopped(u64, Stop),
}

impl Cpu {
    pub(super) fn translates(&self) -> bool {
        false
    }
    pub(super) fn translation_mode_changed(&mut self) {}
    pub(super) fn mxcsr_changed(&mut self) {}
    pub(super) fn x87_control_changed(&mut self) {}
    pub(crate) fn x87_from_host(&mut self) {}
    pub(super) fn hot_translation(&mut self, _: TraceRef) -> Option<u64> {
        None
    }
    pub(super) fn known_translation(&mut self) -> Option<u64> {
        None
    }
    pub(super) fn run_translated(&mut self, _: u64) -> Left {
        Left::At
    }
}
