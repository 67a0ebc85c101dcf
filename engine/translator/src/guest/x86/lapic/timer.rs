//! The local APIC's timer: one-shot and periodic over its own count, or a deadline on the time stamp counter.
//! Nothing counts: the current count follows from the clock and the moment the count was started.

use super::{LocalApic, RegisterFile, lvt};
use engine_base::VmTime;
use engine_cpu::CpuIo;
use engine_cpu::x86::{APIC_TIMER_HZ, ApicTimerMode, TSC_HZ};

impl LocalApic {
    /// Looks at the timer, on the vCPU's thread: delivers its interrupt if it is due and sets the next deadline.
    pub fn service_timer(&self, io: &dyn CpuIo) {
        self.arm(io);
    }

    /// Brings the board's deadline for this CPU up to date, having delivered what is due.
    pub(super) fn arm(&self, io: &dyn CpuIo) {
        let now = io.clock().now();
        let (expired, deadline) = self.change(|file| (file.expire(now), file.deadline().min(file.synthetic_deadline)));
        if expired {
            self.deliver_local(self.timer_entry() & !lvt::MODE);
        }
        io.set_cpu_timer(self.cpu, deadline);
    }
}

impl RegisterFile {
    pub(super) fn timer_mode(&self) -> ApicTimerMode {
        match self.state.lvt[lvt::TIMER] >> 17 & 3 {
            0 => ApicTimerMode::OneShot,
            1 => ApicTimerMode::Periodic,
            // 3 is reserved; it is taken as what it is one bit away from.
            _ => ApicTimerMode::TscDeadline,
        }
    }

    pub(super) fn uses_deadline(&self, mode: ApicTimerMode) -> bool {
        mode == ApicTimerMode::TscDeadline
    }

    /// A write to the initial count: it starts the timer, or with 0 stops it.
    pub(super) fn start_timer(&mut self, count: u32, now: VmTime) {
        if self.uses_deadline(self.timer_mode()) {
            return;
        }
        self.state.timer_initial = count;
        self.state.timer_started = if count == 0 { VmTime::NEVER } else { now };
    }

    /// A new divider: the count goes on from where it is.
    pub(super) fn set_divider(&mut self, value: u32, now: VmTime) {
        let elapsed = u64::from(self.state.timer_initial - self.timer_count(now).min(self.state.timer_initial));
        self.state.timer_divide = value;
        if self.is_counting() {
            let back = VmTime::at_tick(elapsed * self.divider(), APIC_TIMER_HZ);
            self.state.timer_started = VmTime(now.nanos().saturating_sub(back.nanos()));
        }
    }

    /// The current count register.
    pub(super) fn timer_count(&self, now: VmTime) -> u32 {
        if !self.is_counting() {
            return 0;
        }
        let elapsed = VmTime(now.nanos_since(self.state.timer_started)).ticks(APIC_TIMER_HZ) / self.divider();
        let initial = u64::from(self.state.timer_initial);
        match self.timer_mode() {
            ApicTimerMode::Periodic => (initial - elapsed % initial) as u32,
            _ => initial.saturating_sub(elapsed) as u32,
        }
    }

    /// The time at which the timer must be looked at next.
    fn deadline(&self) -> VmTime {
        if self.uses_deadline(self.timer_mode()) {
            if self.state.tsc_deadline == 0 {
                return VmTime::NEVER;
            }
            // A deadline that lies behind the counter, even by a wrap, has passed.
            let ticks = self.state.tsc_deadline.wrapping_sub(self.tsc_offset);
            return if ticks > i64::MAX as u64 { VmTime::ZERO } else { VmTime::at_tick(ticks, TSC_HZ) };
        }
        if !self.is_counting() {
            return VmTime::NEVER;
        }
        self.state.timer_started.after_nanos(self.period().nanos())
    }

    /// Takes note of an expiry at `now`: a one-shot stops, a periodic count is moved on by whole periods. Missed periods
    /// are one interrupt, as they would be in the request register.
    fn expire(&mut self, now: VmTime) -> bool {
        if self.deadline() > now {
            return false;
        }
        match self.timer_mode() {
            ApicTimerMode::TscDeadline => self.state.tsc_deadline = 0,
            ApicTimerMode::OneShot => self.state.timer_started = VmTime::NEVER,
            ApicTimerMode::Periodic => {
                let period = self.period().nanos().max(1);
                let whole = now.nanos_since(self.state.timer_started) / period;
                self.state.timer_started = self.state.timer_started.after_nanos(whole * period);
            }
        }
        true
    }

    fn is_counting(&self) -> bool {
        self.state.timer_initial != 0 && self.state.timer_started != VmTime::NEVER
    }

    fn period(&self) -> VmTime {
        VmTime::at_tick(u64::from(self.state.timer_initial) * self.divider(), APIC_TIMER_HZ)
    }

    /// Bits 0, 1 and 3 of the divide configuration register: 2, 4 … 128, and 1 for 7.
    fn divider(&self) -> u64 {
        let bits = self.state.timer_divide & 3 | self.state.timer_divide >> 1 & 4;
        1 << ((bits + 1) & 7)
    }
}
