//! What the CPUs of a machine have done so far, as `info jit` shows it.

use super::sampler::{PLACES, Place};
use super::tally::{Cause, Happening};
use crate::shared::Fabric;
use engine_cpu::{Figure, Section};
use std::collections::HashMap;
use std::time::Duration;

/// Instructions that are named for each cause.
const NAMED: usize = 20;

impl Place {
    /// Its name for people.
    pub fn title(self) -> &'static str {
        match self {
            Place::Interpreter => "interpreter",
            Place::CalledByCode => "interpreter, called by translated code, and dispatch",
            Place::Translating => "translating",
            Place::Device => "devices",
            Place::Tier1 => "tier 1",
            Place::Tier2 => "tier 2",
        }
    }
}

/// What a tier has made: a section of the report.
pub(crate) struct TierFigures {
    pub title: &'static str,
    /// Pieces of code, and the guest instructions in them.
    pub pieces: u64,
    pub instructions: u64,
    /// Host code made so far; how much of it is in use, and how much may be.
    pub made_bytes: u64,
    pub used_bytes: u64,
    pub most_bytes: u64,
    pub spent: Duration,
    /// Whatever else the tier counts.
    pub more: Vec<(String, u64)>,
}

impl TierFigures {
    /// As a section.
    pub fn section(&self) -> Section {
        let per = |amount: u64, of: u64| Figure::Ratio(if of == 0 { 0.0 } else { amount as f64 / of as f64 });
        let section = Section::new(self.title)
            .with("blocks", Figure::Count(self.pieces))
            .with("guest instructions", Figure::Count(self.instructions))
            .with("guest instructions a block", per(self.instructions, self.pieces))
            .with("host code", Figure::Bytes(self.made_bytes))
            .with("host bytes a guest instruction", per(self.made_bytes, self.instructions))
            .with("code memory in use", Figure::BytesOf(self.used_bytes, self.most_bytes))
            .with("time spent translating", Figure::Time(self.spent))
            .with("µs a block", per(self.spent.as_micros() as u64, self.pieces));
        self.more.iter().fold(section, |section, (name, count)| section.with(name.clone(), Figure::Count(*count)))
    }
}

/// Everything.
pub(crate) fn sections(fabric: &Fabric) -> Vec<Section> {
    let mut sections: Vec<Section> = fabric.translations.figures().iter().map(TierFigures::section).collect();
    sections.push(execution(fabric));
    sections.extend(time(fabric));
    sections.push(memory(fabric));
    sections.extend(paravirt(fabric));
    sections.push(calls(fabric, Cause::NotTranslated, "Interpreter called for instructions without a translation"));
    sections.push(calls(fabric, Cause::RareCase, "Interpreter called in rare cases (TLB miss, device, fault, written code)"));
    sections.retain(|section| !section.rows.is_empty());
    sections
}

fn sum(fabric: &Fabric, what: Happening) -> u64 {
    let mut total = 0;
    fabric.for_each(|cpu| total += cpu.tally.of(what));
    total
}

fn execution(fabric: &Fabric) -> Section {
    let of = |what| Figure::Count(sum(fabric, what));
    let (retired, translated) = (sum(fabric, Happening::Retired), sum(fabric, Happening::Translated));
    Section::new("Execution")
        .with("CPUs", Figure::Count(fabric.cpu_count() as u64))
        .with("instructions retired", Figure::Count(retired))
        .with("… in translated code", Figure::Of(translated, retired))
        .with("translated code entered", of(Happening::Entered))
        .with("… left: target not in the jump cache", of(Happening::JumpMissed))
        .with("… left: attention wanted", of(Happening::Polled))
        .with("… left: block stale", of(Happening::WasStale))
        .with("… left: other", of(Happening::Stopped))
        .with("blocks cut short by the interpreter", of(Happening::ChangedCourse))
}

/// What the guest had of hypervisors' interfaces, if anything.
fn paravirt(fabric: &Fabric) -> Option<Section> {
    let rows = [
        ("interrupts ended by a bit in memory", Happening::EndedLazily),
        ("interrupts sent by hypercall", Happening::SentByHypercall),
        ("CPUs kicked out of their halt", Happening::KickedCpu),
        ("TLB flushes by hypercall", Happening::FlushedByHypercall),
        ("TLB flushes left to waiting CPUs", Happening::FlushedAfterWaiting),
    ];
    let counts = rows.map(|(name, what)| (name, sum(fabric, what)));
    let section = Section::new("Hypervisors' interfaces");
    let shown = counts.iter().any(|(_, count)| *count != 0);
    shown.then(|| counts.into_iter().fold(section, |section, (name, count)| section.with(name, Figure::Count(count))))
}

fn time(fabric: &Fabric) -> Option<Section> {
    let mut samples = [0; PLACES.len()];
    fabric.for_each(|cpu| {
        for (place, count) in PLACES.into_iter().zip(&mut samples) {
            *count += cpu.sampler.at(place);
        }
    });
    let total: u64 = samples.iter().sum();
    let rows = PLACES.into_iter().zip(samples);
    let section = Section::new("Processor time of the CPUs' threads, in samples");
    (total != 0).then(|| rows.fold(section, |section, (place, count)| section.with(place.title(), Figure::Of(count, total))))
}

fn memory(fabric: &Fabric) -> Section {
    let of = |what| Figure::Count(sum(fabric, what));
    Section::new("Memory")
        .with("TLB misses", of(Happening::TlbMissed))
        .with("page walks", of(Happening::Walked))
        .with("address spaces entered", of(Happening::SwitchedSpace))
        .with("TLB flushes for other CPUs", of(Happening::FlushedForOthers))
        .with("writes into decoded code", of(Happening::WroteCode))
}

/// Calls of the interpreter by instruction, the most frequent first: what has no translation by its form, which may be all that
/// is missing of a mnemonic; rare cases by mnemonic.
fn calls(fabric: &Fabric, cause: Cause, title: &str) -> Section {
    let mut by_name = HashMap::<String, u64>::new();
    fabric.for_each(|cpu| {
        for (code, count) in cpu.tally.calls(cause) {
            let name = match cause {
                Cause::NotTranslated => format!("{code:?}"),
                Cause::RareCase => format!("{:?}", code.mnemonic()).to_lowercase(),
            };
            *by_name.entry(name).or_default() += count;
        }
    });
    let total: u64 = by_name.values().sum();
    let mut calls: Vec<_> = by_name.into_iter().collect();
    calls.sort_by(|(name, count), (other, others)| others.cmp(count).then_with(|| name.cmp(other)));
    let named = calls.into_iter().take(NAMED);
    let mut section = Section::new(title);
    if total != 0 {
        section = section.with("calls", Figure::Count(total));
    }
    named.fold(section, |section, (name, count)| section.with(name, Figure::Of(count, total)))
}
