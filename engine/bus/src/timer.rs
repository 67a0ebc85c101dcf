//! Deadlines of devices in guest time. A device sets its [`Timer`]; the machine's `vm-clock` thread (or, when time is
//! counted in instructions, the vCPU thread itself) takes what is due and calls the device.
//! The heap holds one entry per armed timer, so a guest that re-arms in a loop costs no memory.

use crate::DeviceCell;
use engine_base::{Clock, VmTime};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// All armed timers of a machine; clones share them.
#[derive(Clone)]
pub struct TimerQueue(Arc<Inner>);

struct Inner {
    clock: Clock,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    order: BTreeSet<(VmTime, u64)>,
    owners: HashMap<u64, Owner>,
    next_key: u64,
    nudged: bool,
}

#[derive(Clone)]
struct Owner {
    deadline: VmTime,
    target: Target,
}

#[derive(Clone)]
enum Target {
    Device(Arc<DeviceCell>, u32),
    Call(Arc<dyn Fn(VmTime) + Send + Sync>),
}

impl TimerQueue {
    /// An empty queue on `clock`.
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner { clock, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// The clock that deadlines are in.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn add(&self, target: Target) -> Timer {
        let mut state = self.state();
        let key = state.next_key;
        state.next_key += 1;
        state.owners.insert(key, Owner { deadline: VmTime::NEVER, target });
        Timer { queue: self.clone(), key }
    }

    pub(crate) fn timer(&self, cell: Arc<DeviceCell>, timer: u32) -> Timer {
        self.add(Target::Device(cell, timer))
    }

    /// A timer that calls `call` with the time: for the machine itself (local APIC timers), not for devices.
    pub fn callback(&self, call: impl Fn(VmTime) + Send + Sync + 'static) -> Timer {
        self.add(Target::Call(Arc::new(call)))
    }

    /// The earliest deadline; [`VmTime::NEVER`] when no timer is armed.
    pub fn next_deadline(&self) -> VmTime {
        self.state().order.first().map_or(VmTime::NEVER, |(deadline, _)| *deadline)
    }

    /// Fires everything that is due now. No lock of the queue is held while devices are called.
    pub fn fire_due(&self) {
        loop {
            let now = self.0.clock.now();
            let target = {
                let mut state = self.state();
                let Some((deadline, key)) = state.order.first().copied().filter(|(deadline, _)| *deadline <= now) else { return };
                state.order.remove(&(deadline, key));
                let Some(owner) = state.owners.get_mut(&key) else { continue };
                owner.deadline = VmTime::NEVER;
                owner.target.clone()
            };
            match target {
                Target::Call(call) => call(now),
                Target::Device(cell, timer) => {
                    if let Some(timed) = cell.lock().as_timed() {
                        timed.timer_fired(timer, now);
                    }
                }
            }
        }
    }

    /// Waits until the next deadline, a change of the queue, a [`TimerQueue::nudge`], or `longest`.
    pub fn wait(&self, longest: Duration) {
        let mut state = self.state();
        if state.nudged {
            state.nudged = false;
            return;
        }
        let first = state.order.first().map_or(VmTime::NEVER, |(deadline, _)| *deadline);
        let wait = self.0.clock.host_wait(first).unwrap_or(longest).min(longest);
        if !wait.is_zero() {
            let (mut state, _timeout) = self.0.changed.wait_timeout(state, wait).unwrap_or_else(|poison| poison.into_inner());
            state.nudged = false;
        }
    }

    /// Ends a [`TimerQueue::wait`]: the clock was paused or resumed, or the machine ends.
    pub fn nudge(&self) {
        self.state().nudged = true;
        self.0.changed.notify_all();
    }
}

/// One timer of one device: at most one deadline at a time.
pub struct Timer {
    queue: TimerQueue,
    key: u64,
}

impl Timer {
    /// Arms it for `deadline`, in place of an earlier one. [`VmTime::NEVER`] disarms.
    pub fn set(&self, deadline: VmTime) {
        let mut state = self.queue.state();
        let before = state.order.first().copied();
        let Some(owner) = state.owners.get_mut(&self.key) else { return };
        let old = std::mem::replace(&mut owner.deadline, deadline);
        if old == deadline {
            return;
        }
        if old != VmTime::NEVER {
            state.order.remove(&(old, self.key));
        }
        if deadline != VmTime::NEVER {
            state.order.insert((deadline, self.key));
        }
        if state.order.first().copied() != before {
            state.nudged = true;
            self.queue.0.changed.notify_all();
        }
    }

    /// Disarms.
    pub fn cancel(&self) {
        self.set(VmTime::NEVER);
    }

    /// When it will fire; [`VmTime::NEVER`] when not armed.
    pub fn deadline(&self) -> VmTime {
        self.queue.state().owners.get(&self.key).map_or(VmTime::NEVER, |owner| owner.deadline)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.cancel();
        self.queue.state().owners.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_base::ClockMode;
    use std::sync::Mutex;

    #[test]
    fn due_timers_fire_in_order_of_deadline_and_once() {
        let clock = Clock::new(ClockMode::Counted { picos_per_instruction: 1000 }, VmTime::ZERO);
        let queue = TimerQueue::new(clock.clone());
        let fired = Arc::new(Mutex::new(Vec::new()));
        let timers: Vec<Timer> = [30, 10, 20]
            .map(|nanos| {
                let log = Arc::clone(&fired);
                let timer = queue.callback(move |_| log.lock().unwrap().push(nanos));
                timer.set(VmTime(nanos));
                timer
            })
            .into();
        timers[1].set(VmTime(25));
        assert_eq!(queue.next_deadline(), VmTime(20));
        clock.count_instructions(25);
        queue.fire_due();
        queue.fire_due();
        assert_eq!(*fired.lock().unwrap(), [20, 10]);
        timers[0].cancel();
        assert_eq!(queue.next_deadline(), VmTime::NEVER);
    }
}
