//! The timer and the signal that interrupt a vCPU's thread. See: timer_create(2), `SIGEV_THREAD_ID`; the signal is SIGPROF,
//! which nothing else in the program uses.

use super::{Sampler, Watched};
use std::sync::Once;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Between two samples: 0.1 % of the time goes into them at most. (The host's own tick may be longer.)
const PERIOD: Duration = Duration::from_millis(4);
/// The same for a profile.
const PROFILE_PERIOD: Duration = Duration::from_millis(1);

impl Sampler {
    /// Samples this thread, which runs the CPU, for as long as what is returned lives. Nothing is sampled where the host has no
    /// such timers.
    ///
    /// # Safety
    /// The sampler and what `watched` points to outlive what is returned, and that is dropped on this thread.
    pub unsafe fn sample(&self, watched: Watched) -> Option<Sampling<'_>> {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(install_handler);
        if self.armed.swap(true, Ordering::Relaxed) {
            return None;
        }
        self.rip.store(watched.rip.cast_mut(), Ordering::Relaxed);
        self.mode.store(watched.mode.cast_mut(), Ordering::Relaxed);
        let timer = start_timer(self, if self.spots.is_some() { PROFILE_PERIOD } else { PERIOD });
        if timer.is_none() {
            self.armed.store(false, Ordering::Relaxed);
        }
        Some(Sampling { sampler: self, timer: timer?, _not_send: std::marker::PhantomData })
    }
}

/// The thread is being sampled.
pub(crate) struct Sampling<'a> {
    sampler: &'a Sampler,
    timer: libc::timer_t,
    /// The timer belongs to the thread.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Drop for Sampling<'_> {
    fn drop(&mut self) {
        // SAFETY: made in `start_timer` and deleted once. A signal of it that is still to come is delivered to this thread before the call returns.
        unsafe { libc::timer_delete(self.timer) };
        self.sampler.rip.store(std::ptr::null_mut(), Ordering::Relaxed);
        self.sampler.mode.store(std::ptr::null_mut(), Ordering::Relaxed);
        self.sampler.armed.store(false, Ordering::Relaxed);
    }
}

fn install_handler() {
    // SAFETY: a zeroed `sigaction` is a valid one, to which handler and flags are given; the handler keeps the rules of signal handlers.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sample as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGPROF, &raw const action, std::ptr::null_mut());
    }
}

/// A timer of this thread's processor time.
fn start_timer(sampler: &Sampler, period: Duration) -> Option<libc::timer_t> {
    let nanos = libc::c_long::from(period.subsec_nanos());
    let period = libc::timespec { tv_sec: 0, tv_nsec: nanos };
    let times = libc::itimerspec { it_interval: period, it_value: period };
    // SAFETY: plain system calls on values of this frame; zeroed values of these types are valid.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGPROF;
        event.sigev_notify_thread_id = libc::gettid();
        event.sigev_value.sival_ptr = (sampler as *const Sampler).cast_mut().cast();
        let mut timer: libc::timer_t = std::mem::zeroed();
        if libc::timer_create(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut event, &raw mut timer) != 0 {
            return None;
        }
        if libc::timer_settime(timer, 0, &raw const times, std::ptr::null_mut()) != 0 {
            libc::timer_delete(timer);
            return None;
        }
        Some(timer)
    }
}

extern "C" fn on_sample(_signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes both to a handler with SA_SIGINFO. Only signals of our timers carry SI_TIMER, and their value is a sampler that
    // lives at least as long as its timer.
    unsafe {
        if (*info).si_code != libc::SI_TIMER {
            return;
        }
        let sampler = (*info).si_value().sival_ptr.cast::<Sampler>();
        let registers = &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        if let Some(sampler) = sampler.as_ref() {
            sampler.take(registers[libc::REG_RIP as usize] as u64);
        }
    }
}
