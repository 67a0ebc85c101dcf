//! Ticks of a periodic timer that the host was too busy to deliver when they were due. Guests keep time by counting such
//! interrupts, so they are made good: one comes half-way between every two regular ones until none is owed. Many at once
//! would be lost again in the interrupt controller, which remembers one.
//! See: Intel 8259A data sheet, "Interrupt request register".

use engine_base::VmTime;
use serde::{Deserialize, Serialize};

/// What was lost in a longer stall stays lost: no guest shall run at double speed for minutes.
const MOST_OWED_NANOS: u64 = 60_000_000_000;

/// The account of one timer. It is its own saved form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwedTicks {
    count: u64,
    due: VmTime,
}

impl OwedTicks {
    /// Nothing is owed.
    pub const NONE: Self = Self { count: 0, due: VmTime::NEVER };

    /// A regular tick is delivered at `now`, `missed` more were due before it; ticks are `period_nanos` apart.
    pub fn delivered(&mut self, now: VmTime, missed: u64, period_nanos: u64) {
        let most = MOST_OWED_NANOS / period_nanos.max(1);
        self.count = self.count.saturating_add(missed).min(most);
        self.due = if self.count > 0 { now.after_nanos(period_nanos / 2) } else { VmTime::NEVER };
    }

    /// When the next tick is to be made good.
    pub fn due(&self) -> VmTime {
        self.due
    }

    /// Whether a tick is to be made good at `now`; the next comes after the next regular one.
    pub fn take(&mut self, now: VmTime) -> bool {
        let is_due = self.due <= now && self.count > 0;
        if is_due {
            self.count -= 1;
            self.due = VmTime::NEVER;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_tick_comes_between_two_regular_ones() {
        let mut owed = OwedTicks::NONE;
        owed.delivered(VmTime(0), 0, 1000);
        assert_eq!(owed.due(), VmTime::NEVER);
        owed.delivered(VmTime(3000), 2, 1000);
        assert!(!owed.take(VmTime(3499)) && owed.take(VmTime(3500)) && !owed.take(VmTime(3600)));
        owed.delivered(VmTime(4000), 0, 1000);
        assert!(owed.take(VmTime(4500)));
        owed.delivered(VmTime(5000), 0, 1000);
        assert_eq!(owed, OwedTicks::NONE);
    }

    #[test]
    fn a_long_stall_is_forgiven() {
        let mut owed = OwedTicks::NONE;
        owed.delivered(VmTime(0), u64::MAX, 1_000_000_000);
        assert_eq!(owed.count, 60);
    }
}
