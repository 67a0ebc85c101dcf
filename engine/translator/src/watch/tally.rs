//! What one vCPU counts. Only its own thread adds, so that adding is a plain load and store; anybody may read at any time.

use iced_x86::Code;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Happening {
    /// Instructions retired in all (set, not added).
    Retired,
    /// Instructions of them that were retired in translated code.
    Translated,
    /// Translated code was entered.
    Entered,
    /// It was left because a jump's target was not in the jump cache.
    JumpMissed,
    /// … because attention was wanted.
    Polled,
    /// … because the block was stale.
    WasStale,
    /// … for another reason: a fault that could not be delivered, a repeated instruction that polls.
    Stopped,
    /// The interpreter had executed an instruction behind which the block could not simply go on.
    ChangedCourse,
    /// A page was not in the first level of the TLB.
    TlbMissed,
    /// … nor in the second: the page tables were walked.
    Walked,
    /// CR3 was loaded.
    SwitchedSpace,
    /// Others asked for the first level of the TLB to be dropped, and it was.
    FlushedForOthers,
    /// This CPU wrote into code that had been decoded.
    WroteCode,
    /// The guest kicked a CPU out of its halt, by hypercall.
    KickedCpu,
    /// It sent interrupts by hypercall.
    SentByHypercall,
    /// It had translations dropped by hypercall.
    FlushedByHypercall,
    /// This CPU came back from waiting and found that others had left a flush to it.
    FlushedAfterWaiting,
    /// An interrupt was ended by a bit in memory.
    EndedLazily,
}

const HAPPENINGS: usize = Happening::EndedLazily as usize + 1;

/// Why translated code called the interpreter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Cause {
    /// The instruction has no translation in this form.
    NotTranslated,
    /// It has one, which met a rare case: a TLB miss, a device, a fault, code that is written to.
    RareCase,
}

const CAUSES: usize = 2;

/// One vCPU's counts.
pub(crate) struct Tally {
    happenings: [AtomicU64; HAPPENINGS],
    /// Calls of the interpreter: by cause, then by instruction form.
    calls: Box<[AtomicU64]>,
}

fn forms() -> usize {
    Code::values().len()
}

fn add(cell: &AtomicU64, amount: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

impl Tally {
    pub fn new() -> Self {
        Self {
            happenings: std::array::from_fn(|_| AtomicU64::new(0)),
            calls: (0..CAUSES * forms()).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Counts one more. The vCPU's own thread.
    #[inline(always)]
    pub fn count(&self, what: Happening) {
        add(&self.happenings[what as usize], 1);
    }

    /// Counts some more. The vCPU's own thread.
    #[inline(always)]
    pub fn count_many(&self, what: Happening, amount: u64) {
        add(&self.happenings[what as usize], amount);
    }

    /// Where something is counted, for code that is made at run time: on the vCPU's own thread, by a plain addition.
    #[allow(dead_code, reason = "for the block translator")]
    pub fn cell(&self, what: Happening) -> *const AtomicU64 {
        &raw const self.happenings[what as usize]
    }

    /// Puts a count to what is known elsewhere. The vCPU's own thread.
    #[inline(always)]
    pub fn set(&self, what: Happening, amount: u64) {
        self.happenings[what as usize].store(amount, Ordering::Relaxed);
    }

    /// Counts a call of the interpreter. The vCPU's own thread.
    #[inline(always)]
    pub fn count_call(&self, cause: Cause, code: Code) {
        if let Some(cell) = self.calls.get(cause as usize * forms() + code as usize) {
            add(cell, 1);
        }
    }

    /// How many so far.
    pub fn of(&self, what: Happening) -> u64 {
        self.happenings[what as usize].load(Ordering::Relaxed)
    }

    /// Calls of the interpreter so far, for each form that had any.
    pub fn calls(&self, cause: Cause) -> impl Iterator<Item = (Code, u64)> {
        let from = cause as usize * forms();
        let counts = self.calls[from..from + forms()].iter().map(|cell| cell.load(Ordering::Relaxed));
        Code::values().zip(counts).filter(|(_, count)| *count != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_cause_and_form() {
        let tally = Tally::new();
        tally.count_call(Cause::RareCase, Code::Mov_r64_rm64);
        tally.count_call(Cause::RareCase, Code::Mov_r64_rm64);
        tally.count_call(Cause::NotTranslated, Code::Cpuid);
        assert_eq!(tally.calls(Cause::RareCase).collect::<Vec<_>>(), [(Code::Mov_r64_rm64, 2)]);
        assert_eq!(tally.calls(Cause::NotTranslated).collect::<Vec<_>>(), [(Code::Cpuid, 1)]);
        tally.count_many(Happening::Translated, 32);
        tally.count(Happening::Translated);
        assert_eq!((tally.of(Happening::Translated), tally.of(Happening::Walked)), (33, 0));
    }
}
