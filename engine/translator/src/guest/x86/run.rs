//! The run loop: polls between traces, single steps where something watches every instruction, and the chain of traces otherwise.
//!
//! A poll happens when the attention word is not zero, when a trace ended by [`Stop::EndTrace`], and when a counting
//! clock has reached the next timer. Whatever depends on the clock is exact to the instruction there: the loop never runs past
//! `limit`, and [`Cpu::sync_clock`] tells the clock of every instruction before the board is asked anything.

use super::cpu::{Board, Cpu};
use super::fault::Stop;
use super::flags::bit;
use super::op::Op;
use super::paravirt;
use super::system;
use super::t1::Left;
use super::trace::{Trace, TraceRef};
use crate::shared::attention;
use crate::watch::sampler::Place;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::watch::sampler::Watched;
use crate::watch::tally::Happening;
use engine_base::{ClockMode, VmTime};
use engine_cpu::x86::Activity;
use engine_cpu::{CpuIo, Exit};
use iced_x86::Code;

/// What is executed next.
#[derive(Clone, Copy)]
enum Found {
    Trace(TraceRef),
    /// The entry of translated code.
    Translation(u64),
}

/// How a run of ops ended.
enum Ended {
    /// All done.
    Through,
    /// Op number `.0` stopped; its start was at offset `.1`.
    At(u64, u64, Stop),
}

impl Cpu {
    /// Runs until the machine is needed.
    pub fn run(&mut self, io: &dyn CpuIo) -> Exit {
        self.board = Some(Board::new(io));
        self.counts = matches!(io.clock().mode(), ClockMode::Counted { .. });
        self.counted = self.retired;
        self.limit = if self.counts { self.retired } else { u64::MAX };
        self.shared.leave_quiet();
        self.memory_generation = self.fabric.memory.generation();
        self.physical_pages.forget();
        // Between runs others may have taken page flags that write entries had set, or loaded memory.
        self.flush_tlb();
        self.events_waiting = true;
        let shared = self.shared.clone();
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        // SAFETY: the CPU and what it shares outlive this call, at whose end the sampling ends.
        let _sampling = unsafe { shared.sampler.sample(Watched { rip: &raw const self.rip, mode: &raw const self.mode }) };
        let exit = self.run_loop();
        paravirt::settle_lazy_end(self);
        self.sync_clock();
        self.shared.enter_quiet();
        self.board = None;
        exit
    }

    fn run_loop(&mut self) -> Exit {
        loop {
            self.running.count = 0;
            self.shared.tally.set(Happening::Retired, self.retired);
            if let Some(exit) = self.poll() {
                return exit;
            }
            let watched = self.is_watched();
            let stop = if watched || self.evaluation.is_some() {
                match self.find_trace() {
                    Ok(trace) if watched => self.step(trace),
                    Ok(trace) => self.evaluate(trace),
                    Err(stop) => self.fetch_failed(stop),
                }
            } else {
                self.run_chain()
            };
            if stop == Some(Stop::TripleFault) {
                return self.triple_fault();
            }
        }
    }

    fn triple_fault(&mut self) -> Exit {
        self.activity = Activity::Shutdown;
        Exit::TripleFault
    }

    // ---- Polls -------------------------------------------------------------------------------------------------

    /// Everything that may happen between two instructions. `Some` leaves `run`.
    fn poll(&mut self) -> Option<Exit> {
        loop {
            if self.counts && self.retired >= self.limit {
                self.reach_timers();
            }
            if self.shared.attention() != 0 && self.attend() {
                return Some(Exit::Kicked);
            }
            if self.fabric.memory.generation() != self.memory_generation {
                self.memory_changed();
            }
            if self.events_waiting && system::service_events(self) == Err(Stop::TripleFault) {
                return Some(self.triple_fault());
            }
            match self.activity {
                Activity::Running => return None,
                Activity::Shutdown => return Some(Exit::TripleFault),
                Activity::Halted | Activity::WaitForSipi => self.wait(),
            }
        }
    }

    /// Takes the attention word. Says whether somebody kicked.
    fn attend(&mut self) -> bool {
        // First, since what is asked of a quiet CPU counts as done: flushes come after.
        let fabric = self.fabric.clone();
        fabric.stand_by(&self.shared);
        let bits = self.shared.take(attention::FLUSH | attention::APIC | attention::SELF);
        self.leave_old_spaces();
        if bits & attention::FLUSH != 0 {
            let asked = self.shared.flushes_asked();
            if self.shared.take_shot_down() {
                self.flush_tlb();
            }
            self.flush_as_asked();
            self.shared.flush_done(asked);
        }
        if bits & attention::APIC != 0 {
            self.events_waiting = true;
        }
        self.shared.take(attention::KICK) != 0
    }

    /// A counting clock: fires what is due and finds out how far to run next.
    fn reach_timers(&mut self) {
        self.sync_clock();
        let io = self.io();
        if io.next_timer() <= io.clock().now() {
            io.fire_timers();
        }
        // At least one instruction runs between two looks, even if a timer is for ever due.
        self.limit = self.retired + io.clock().instructions_until(io.next_timer()).max(1);
    }

    /// Waits for attention.
    fn wait(&mut self) {
        if self.counts {
            let io = self.io();
            let next = io.next_timer();
            if next != VmTime::NEVER && self.shared.attention() == 0 {
                self.sync_clock();
                io.clock().leap_to(next);
                io.fire_timers();
                self.limit = self.retired;
                return;
            }
        }
        paravirt::about_to_wait(self);
        self.shared.enter_quiet();
        self.shared.sleep(None);
        self.shared.leave_quiet();
        paravirt::back_from_waiting(self);
    }

    /// Tells a counting clock about all instructions retired so far, the current one not included.
    pub fn sync_clock(&mut self) {
        if self.counts {
            let now = self.retired + self.running_index();
            let new = now - self.counted;
            self.counted = now;
            if new != 0 {
                self.io().clock().count_instructions(new);
            }
        }
    }

    /// How many instructions of the running trace are done.
    fn running_index(&self) -> u64 {
        let mut rip = self.running.rip;
        for at in 0..self.running.count {
            // SAFETY: the running trace's ops stay where they are until the next poll.
            rip = rip.wrapping_add(u64::from(unsafe { (*self.running.first.wrapping_add(at as usize)).len }));
            if rip == self.rip {
                return u64::from(at);
            }
        }
        0
    }

    // ---- Execution ---------------------------------------------------------------------------------------------

    /// Runs trace after trace, and translated code where there is some, until something needs a poll.
    fn run_chain(&mut self) -> Option<Stop> {
        // The trace that has just been executed, and whether translated code may be known here.
        let (mut last, mut look) = (None, self.translates());
        loop {
            let next = last.and_then(|last| self.traces.follow(last, self.rip));
            // Code at an address that is new here may have been translated for another: a program that is started again, a library.
            let known = if look && next.is_none() { self.known_translation() } else { None };
            let found = match (known, next) {
                (Some(entry), _) => Found::Translation(entry),
                (None, Some(next)) => Found::Trace(next),
                (None, None) => match self.find_next_trace(last) {
                    Ok(next) => Found::Trace(next),
                    Err(stop) => return self.fetch_failed(stop),
                },
            };
            let found = match found {
                Found::Trace(at) if self.translates() => self.hot_translation(at).map_or(found, Found::Translation),
                _ => found,
            };
            let at = match found {
                Found::Trace(at) => at,
                Found::Translation(entry) => match self.run_watched(entry) {
                    Left::At => {
                        (last, look) = (None, false);
                        continue;
                    }
                    Left::Poll => return None,
                    Left::Stopped(start, stop) => return self.stopped(0, start, stop),
                },
            };
            let trace: *const Trace = self.traces.get(at);
            // SAFETY: traces stay where they are until `find_trace` is called, and `trace` is not used after that.
            let (first, count) = unsafe { ((*trace).first, (*trace).count) };
            let allowed = self.limit.saturating_sub(self.retired).min(u64::from(count)) as u32;
            if allowed == 0 {
                return None;
            }
            self.running.first = first;
            self.running.rip = self.rip;
            self.running.trace = at;
            self.running.count = count;
            let ended = if self.counts { self.execute_by_the_clock(first, allowed) } else { Some(self.execute(first, allowed)) };
            match ended? {
                Ended::Through => self.retired += u64::from(allowed),
                Ended::At(index, start, stop) => return self.stopped(index, start, stop),
            }
            self.running.count = 0;
            if allowed != count || self.shared.attention() != 0 {
                return None;
            }
            (last, look) = (Some(at), self.translates());
        }
    }

    /// The trace at RIP, which is remembered as a successor of `last`.
    fn find_next_trace(&mut self, last: Option<TraceRef>) -> Result<TraceRef, Stop> {
        let epoch = self.traces.epoch();
        let next = self.find_trace()?;
        if let Some(last) = last
            // When the arena was full, `last` has been dropped.
            && self.traces.epoch() == epoch
        {
            self.traces.link(last, next);
        }
        Ok(next)
    }

    /// Runs translated code from `entry`, and counts.
    fn run_watched(&mut self, entry: u64) -> Left {
        let before = (self.shared.sampler.begin(Place::CalledByCode), self.retired);
        let left = self.run_translated(entry);
        let tally = &self.shared.tally;
        tally.count(Happening::Entered);
        tally.count_many(Happening::Translated, self.retired.wrapping_sub(before.1));
        tally.set(Happening::Retired, self.retired);
        self.shared.sampler.end(before.0);
        left
    }

    /// Executes `count` ops.
    #[inline(always)]
    fn execute(&mut self, first: *const Op, count: u32) -> Ended {
        let mut rip = self.rip;
        let mut op = first;
        let end = first.wrapping_add(count as usize);
        macro_rules! next {
            () => {
                // SAFETY: `op` is within the trace's ops, which stay where they are while the trace runs.
                let current = unsafe { &*op };
                let start = rip;
                rip = rip.wrapping_add(u64::from(current.len));
                self.rip = rip;
                if let Err(stop) = (current.handler)(self, current) {
                    let index = (op as usize - first as usize) / size_of::<Op>();
                    return Ended::At(index as u64, start, stop);
                }
                op = op.wrapping_add(1);
                if op == end {
                    return Ended::Through;
                }
            };
        }
        loop {
            // Several call sites: the host predicts an indirect call by its address, and what follows what in a trace repeats.
            next!();
            next!();
            next!();
            next!();
            next!();
            next!();
        }
    }

    /// The same under a clock that counts instructions: an op that has called the board may have set a timer, which is then looked at
    /// before the next one: then nothing is left to be said, and the ops done are counted.
    fn execute_by_the_clock(&mut self, first: *const Op, count: u32) -> Option<Ended> {
        let limit = self.limit;
        for done in 0..count {
            match self.execute(first.wrapping_add(done as usize), 1) {
                Ended::At(_, start, stop) => return Some(Ended::At(u64::from(done), start, stop)),
                Ended::Through => {}
            }
            if self.limit != limit {
                self.running.count = 0;
                self.retired += u64::from(done) + 1;
                return None;
            }
        }
        Some(Ended::Through)
    }

    /// Op number `index` of the running trace, which started at `start`, did not simply go on.
    pub(super) fn stopped(&mut self, index: u64, start: u64, stop: Stop) -> Option<Stop> {
        self.running.count = 0;
        self.retired += index;
        match stop {
            Stop::EndTrace => {
                self.retired += 1;
                None
            }
            Stop::Again => {
                self.retired += 1;
                self.rip = start;
                None
            }
            Stop::Exception(exception) => {
                self.rip = start;
                system::deliver(self, exception).err()
            }
            Stop::Stale => {
                self.rip = start;
                None
            }
            Stop::TripleFault => Some(stop),
        }
    }

    /// Executes one op of a trace by its handler, at `rip`: what a bail asks for.
    pub(super) fn interpret_one(&mut self, at: TraceRef, op: *const Op) -> Option<Stop> {
        self.running.first = op;
        self.running.rip = self.rip;
        self.running.trace = at;
        self.running.count = 1;
        match self.execute(op, 1) {
            Ended::Through => {
                self.running.count = 0;
                self.retired += 1;
                None
            }
            Ended::At(index, start, stop) => self.stopped(index, start, stop),
        }
    }

    pub(super) fn fetch_failed(&mut self, stop: Stop) -> Option<Stop> {
        self.running.count = 0;
        match stop {
            Stop::Exception(exception) => system::deliver(self, exception).err(),
            stop => Some(stop),
        }
    }

    // ---- Single steps ------------------------------------------------------------------------------------------

    /// Whether every instruction needs a look: single step, RF, an interrupt shadow, armed breakpoints.
    pub(super) fn is_watched(&self) -> bool {
        self.interrupt_shadow || self.flags.has(bit::TF | bit::RF) || self.dr7 & 0xff != 0
    }

    /// Executes one instruction with everything that surrounds it.
    fn step(&mut self, at: TraceRef) -> Option<Stop> {
        let trace: *const Trace = self.traces.get(at);
        // SAFETY: as in `run_chain`.
        let (first, code) = unsafe { ((*trace).first, (*(*trace).first).code) };
        let stepping = self.flags.has(bit::TF);
        if self.dr7 & 0xff != 0
            && !self.interrupt_shadow
            && let Err(Stop::Exception(exception)) = system::check_instruction(self)
        {
            return system::deliver(self, exception).err();
        }
        self.flags.remove(bit::RF);
        self.interrupt_shadow = false;
        self.running.first = first;
        self.running.rip = self.rip;
        self.running.trace = at;
        self.running.count = 1;
        let completed = match self.execute(first, 1) {
            Ended::Through => {
                self.running.count = 0;
                self.retired += 1;
                true
            }
            Ended::At(index, start, stop) => {
                if let Some(stop) = self.stopped(index, start, stop) {
                    return Some(stop);
                }
                matches!(stop, Stop::EndTrace | Stop::Again)
            }
        };
        if !completed {
            return None;
        }
        // INT and SYSCALL clear TF on their way in and are not trapped; POPF and IRET, which may clear it too, are.
        let leaves = matches!(code, Code::Popfw | Code::Popfd | Code::Popfq | Code::Iretw | Code::Iretd | Code::Iretq);
        let loads_stack_segment = matches!(code, Code::Popw_SS | Code::Popd_SS | Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16);
        let held_back = self.interrupt_shadow && loads_stack_segment;
        // A breakpoint that was met waits behind MOV SS, a single step does not: the next instruction has its own.
        if stepping && (self.flags.has(bit::TF) || leaves) && !held_back {
            self.pending_debug |= 1 << 14;
        }
        if self.pending_debug != 0 && !held_back {
            return system::debug_trap(self).err();
        }
        None
    }
}
