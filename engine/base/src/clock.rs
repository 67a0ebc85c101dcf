//! Guest time. `VmTime` is nanoseconds since the machine was switched on; it stands still while the machine is paused.
//! A [`Clock`] either follows the host (`Real`) or follows retired instructions (`Counted`), which makes a whole boot
//! repeatable to the instruction. Devices never call `Instant::now`: they ask the clock they were wired to.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Nanoseconds of guest time since power-on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct VmTime(pub u64);

impl VmTime {
    /// Power-on.
    pub const ZERO: VmTime = VmTime(0);
    /// A deadline that never comes.
    pub const NEVER: VmTime = VmTime(u64::MAX);

    /// Nanoseconds since power-on.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// This time plus `nanos`, stopping at [`VmTime::NEVER`].
    pub const fn after_nanos(self, nanos: u64) -> VmTime {
        VmTime(self.0.saturating_add(nanos))
    }

    /// Nanoseconds from `earlier` to this time; 0 when `earlier` is later.
    pub const fn nanos_since(self, earlier: VmTime) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Whole ticks of a `hz` clock since power-on.
    pub const fn ticks(self, hz: u64) -> u64 {
        (self.0 as u128 * hz as u128 / 1_000_000_000) as u64
    }

    /// The first moment at which a `hz` clock has counted `ticks`.
    pub const fn at_tick(ticks: u64, hz: u64) -> VmTime {
        let nanos = (ticks as u128 * 1_000_000_000).div_ceil(hz as u128);
        VmTime(if nanos > u64::MAX as u128 { u64::MAX } else { nanos as u64 })
    }
}

/// What drives a [`Clock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockMode {
    /// The host's monotonic clock.
    Real,
    /// Retired instructions, each worth this many picoseconds; the wall clock starts at a fixed date.
    Counted {
        /// Guest time per instruction.
        picos_per_instruction: u64,
    },
}

/// The clock of one machine; clones share it. It starts paused.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    mode: ClockMode,
    /// Real: guest time minus host monotonic time, wrapping, while running. Counted: unused.
    offset: AtomicU64,
    /// `RUNNING` or the time at which the clock stands. Counted: the time itself, in picoseconds.
    stands_at: AtomicU64,
    origin: Instant,
    /// Held while time is stopped or let go: only one change at a time.
    change: Mutex<()>,
}

const RUNNING: u64 = u64::MAX;
/// 2026-01-01 00:00:00 UTC: the date at which every counted machine is switched on.
const COUNTED_EPOCH_SECONDS: u64 = 1_767_225_600;

impl Clock {
    /// A clock at `start`, paused.
    pub fn new(mode: ClockMode, start: VmTime) -> Self {
        let stands_at = match mode {
            ClockMode::Real => start.0,
            ClockMode::Counted { .. } => start.0.saturating_mul(1000),
        };
        Self(Arc::new(Inner {
            mode,
            offset: AtomicU64::new(0),
            stands_at: AtomicU64::new(stands_at),
            origin: Instant::now(),
            change: Mutex::new(()),
        }))
    }

    /// What drives it.
    pub fn mode(&self) -> ClockMode {
        self.0.mode
    }

    /// Guest time now.
    pub fn now(&self) -> VmTime {
        let stands_at = self.0.stands_at.load(Ordering::Acquire);
        match self.0.mode {
            ClockMode::Counted { .. } => VmTime(stands_at / 1000),
            ClockMode::Real if stands_at != RUNNING => VmTime(stands_at),
            ClockMode::Real => VmTime(self.host_nanos().wrapping_add(self.0.offset.load(Ordering::Acquire))),
        }
    }

    /// Lets time run (Real). Counted time runs with instructions only.
    pub fn resume(&self) {
        let _change = self.0.change.lock().unwrap_or_else(|poison| poison.into_inner());
        let stands_at = self.0.stands_at.load(Ordering::Acquire);
        if self.0.mode == ClockMode::Real && stands_at != RUNNING {
            self.0.offset.store(stands_at.wrapping_sub(self.host_nanos()), Ordering::Release);
            self.0.stands_at.store(RUNNING, Ordering::Release);
        }
    }

    /// Stops time (Real).
    pub fn pause(&self) {
        let _change = self.0.change.lock().unwrap_or_else(|poison| poison.into_inner());
        if self.0.mode == ClockMode::Real {
            let now = self.now();
            self.0.stands_at.store(now.0, Ordering::Release);
        }
    }

    /// Counted: `instructions` have been retired. Real: nothing.
    pub fn count_instructions(&self, instructions: u64) {
        if let ClockMode::Counted { picos_per_instruction } = self.0.mode {
            self.0.stands_at.fetch_add(instructions.saturating_mul(picos_per_instruction), Ordering::AcqRel);
        }
    }

    /// Counted: every CPU is idle, so time leaps to `deadline`. Real: nothing. Never goes back.
    pub fn leap_to(&self, deadline: VmTime) {
        if matches!(self.0.mode, ClockMode::Counted { .. }) {
            self.0.stands_at.fetch_max(deadline.0.saturating_mul(1000), Ordering::AcqRel);
        }
    }

    /// Counted: how many instructions may run before `deadline`. Real: no limit.
    pub fn instructions_until(&self, deadline: VmTime) -> u64 {
        match self.0.mode {
            ClockMode::Real => u64::MAX,
            ClockMode::Counted { picos_per_instruction } => {
                let left = deadline.0.saturating_mul(1000).saturating_sub(self.0.stands_at.load(Ordering::Acquire));
                left.div_ceil(picos_per_instruction.max(1))
            }
        }
    }

    /// How long the host has to wait until `deadline`; `None` while the clock stands or counts instructions.
    pub fn host_wait(&self, deadline: VmTime) -> Option<Duration> {
        if self.0.mode != ClockMode::Real || self.0.stands_at.load(Ordering::Acquire) != RUNNING {
            return None;
        }
        Some(Duration::from_nanos(deadline.nanos_since(self.now())))
    }

    /// The date, as nanoseconds since 1970-01-01 UTC, for the real-time clock. It follows the host; a counted machine
    /// is always switched on at the same moment.
    pub fn wall_clock_nanos(&self) -> u128 {
        match self.0.mode {
            ClockMode::Real => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos()),
            ClockMode::Counted { .. } => u128::from(COUNTED_EPOCH_SECONDS) * 1_000_000_000 + u128::from(self.now().0),
        }
    }

    fn host_nanos(&self) -> u64 {
        self.0.origin.elapsed().as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stands_while_paused() {
        let clock = Clock::new(ClockMode::Real, VmTime(5));
        assert_eq!(clock.now(), VmTime(5));
        clock.resume();
        std::thread::sleep(Duration::from_millis(2));
        clock.pause();
        let paused = clock.now();
        assert!(paused.0 >= 2_000_005);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(clock.now(), paused);
    }

    #[test]
    fn counted_time_moves_with_instructions_only() {
        let clock = Clock::new(ClockMode::Counted { picos_per_instruction: 500 }, VmTime::ZERO);
        clock.resume();
        assert_eq!(clock.instructions_until(VmTime(10)), 20);
        clock.count_instructions(20);
        assert_eq!(clock.now(), VmTime(10));
        clock.leap_to(VmTime(1000));
        clock.leap_to(VmTime(500));
        assert_eq!(clock.now(), VmTime(1000));
    }

    #[test]
    fn ticks_and_their_moments_agree() {
        for hz in [1_193_182, 3_579_545, 14_318_180, 32_768] {
            for ticks in [0, 1, 2, 1000, 65_535, 123_456_789] {
                assert_eq!(VmTime::at_tick(ticks, hz).ticks(hz), ticks, "{ticks} at {hz} Hz");
            }
        }
    }
}
