//! The gate at which vCPU threads park. Pausing is: close the gate, kick every vCPU, wait until all stand at it.

use std::sync::{Condvar, Mutex, MutexGuard};

/// The gate of one machine.
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    order: Order,
    parked: usize,
    cpus: usize,
    /// Rises with each reset, so that a CPU that shut itself down knows when to go on.
    resets: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Closed,
    Open,
    Ended,
}

/// What a vCPU thread may do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Run.
    Run,
    /// Leave: the machine ends.
    End,
}

impl Gate {
    /// A closed gate for `cpus` threads.
    pub fn new(cpus: usize) -> Self {
        Self { state: Mutex::new(State { order: Order::Closed, parked: 0, cpus, resets: 0 }), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// A vCPU thread asks to pass; it waits here while the gate is closed.
    pub fn pass(&self) -> Pass {
        self.wait_while(|state| state.order == Order::Closed)
    }

    /// A vCPU thread that cannot go on (triple fault, backend failure) waits here for a reset.
    pub fn pass_after_reset(&self) -> Pass {
        let resets = self.state().resets;
        self.wait_while(|state| state.order == Order::Closed || (state.order == Order::Open && state.resets == resets))
    }

    fn wait_while(&self, wait: impl Fn(&State) -> bool) -> Pass {
        let mut state = self.state();
        if wait(&state) {
            state.parked += 1;
            self.changed.notify_all();
            while wait(&state) {
                state = self.changed.wait(state).unwrap_or_else(|poison| poison.into_inner());
            }
            state.parked -= 1;
        }
        if state.order == Order::Ended { Pass::End } else { Pass::Run }
    }

    /// Lets the vCPUs run.
    pub fn open(&self) {
        self.set(Order::Open);
    }

    /// Closes the gate; `kick` makes running vCPUs come to it. Returns when all stand there.
    pub fn close(&self, kick: impl Fn()) {
        self.set(Order::Closed);
        kick();
        let mut state = self.state();
        while state.parked < state.cpus && state.order == Order::Closed {
            let (next, timeout) = self
                .changed
                .wait_timeout(state, std::time::Duration::from_millis(20))
                .unwrap_or_else(|poison| poison.into_inner());
            state = next;
            if timeout.timed_out() {
                // A vCPU may have been on its way in when it was kicked.
                drop(state);
                kick();
                state = self.state();
            }
        }
    }

    /// A thread is gone for good (it panicked, or it ended): nobody waits for it any more.
    pub fn leave(&self) {
        self.state().cpus -= 1;
        self.changed.notify_all();
    }

    /// CPUs that wait for a reset may go on once the gate opens.
    pub fn note_reset(&self) {
        self.state().resets += 1;
        self.changed.notify_all();
    }

    /// Sends every thread home.
    pub fn end(&self) {
        self.set(Order::Ended);
    }

    fn set(&self, order: Order) {
        let mut state = self.state();
        if state.order != Order::Ended {
            state.order = order;
        }
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn nobody_passes_a_closed_gate() {
        let gate = Arc::new(Gate::new(2));
        let steps = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (gate, steps) = (Arc::clone(&gate), Arc::clone(&steps));
                std::thread::spawn(move || {
                    while gate.pass() == Pass::Run {
                        steps.fetch_add(1, Ordering::Relaxed);
                        std::thread::yield_now();
                    }
                })
            })
            .collect();
        gate.open();
        while steps.load(Ordering::Relaxed) < 100 {
            std::thread::yield_now();
        }
        gate.close(|| {});
        let standing = steps.load(Ordering::Relaxed);
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(steps.load(Ordering::Relaxed), standing);
        gate.end();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
