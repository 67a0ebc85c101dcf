//! A drive as a controller sees it: requests go in, completions come out, media change. The image is read and written on
//! the drive's own worker threads (`vm-disk<n>`), which ring the controller when something is done.
//!
//! ```text
//!  controller ─submit─► Queue ─Batch─► worker … worker ─► Medium ─► DiskImage
//!      ▲                                        │
//!      └────────── take_completion ◄── ring ────┘
//! ```
//! Several requests may be under way at once; `queue.rs` says which may pass which. A request carries the controller's
//! token, so that what was asked before a reset is recognised and dropped after it.
//!
//! What finds the host's disk full is not failed, be it a write, a flush or a discard: the guest would take it for a
//! broken disk. The worker holds it back, reports it, and tries it again when the person has made room ([`Drive::retry`]).
//! [`DriveRules`] can say otherwise.
//!
//! In a counted machine ([`engine_base::ClockMode::Counted`]) there is no worker: [`Drive::submit`] does the work at once,
//! and the controller is rung by a timer a fixed guest time later, so that a run repeats exactly.

mod medium;
mod queue;
#[cfg(test)]
mod tests;

use crate::{DeviceCell, Timer, TimerQueue};
use engine_base::{RankedMutex, rank};
use medium::Verdict;
use queue::{Batch, Queue};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

pub use medium::{Discards, DriveRules, Medium, OnError, Zeros};

/// Guest time that a request takes in a counted machine.
const COUNTED_LATENCY_NANOS: u64 = 50_000;

/// What a request does. Offsets and lengths are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriveOperation {
    /// Read `len` bytes.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: usize,
    },
    /// Write these bytes.
    Write {
        /// First byte.
        offset: u64,
        /// What to write.
        data: Vec<u8>,
    },
    /// Everything written before is to be safe on the host's disk.
    Flush,
    /// The guest no longer needs these bytes.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveRequest {
    /// Comes back in the completion: the controller's generation or slot.
    pub token: u64,
    /// What to do.
    pub operation: DriveOperation,
}

/// A finished request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// From the request.
    pub token: u64,
    /// What was read (empty for other operations).
    pub result: Result<Vec<u8>, DriveError>,
}

/// Why a request failed, as far as a controller can say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DriveError {
    /// No medium, or it has just changed.
    #[error("there is no medium in the drive")]
    NoMedium,
    /// Past the end of the medium.
    #[error("outside the medium")]
    OutOfRange,
    /// The medium is write-protected.
    #[error("the medium is write-protected")]
    ReadOnly,
    /// The host's disk is full.
    #[error("the host's disk is full")]
    NoSpace,
    /// The host could not read or write.
    #[error("the host could not read or write the image")]
    Io,
}

/// A drive; clones share it. Controllers hold one end, the machine puts media in and out.
#[derive(Clone)]
pub struct Drive(Arc<Shared>);

struct Shared {
    name: String,
    state: Mutex<State>,
    /// There may be something to do for a worker.
    work: Condvar,
    /// Nothing is under way any more, or all that is left is held back.
    quiet: Condvar,
    bell: RankedMutex<Option<Arc<DeviceCell>>>,
    /// Present in counted machines: work is done in place, and this rings the controller.
    counted: RankedMutex<Option<(TimerQueue, Timer)>>,
    on_error: RankedMutex<Option<ErrorHook>>,
    on_tray: RankedMutex<Option<TrayHook>>,
}

type ErrorHook = Arc<dyn Fn(&str, DriveError, RequestFate) + Send + Sync>;
type TrayHook = Arc<dyn Fn(bool) + Send + Sync>;

/// Whether a request that failed waits for the person, or the guest has its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestFate {
    /// It is tried again by [`Drive::retry`].
    HeldBack,
    /// It is done with.
    Answered,
}

#[derive(Default)]
struct State {
    medium: Option<Medium>,
    /// Rises with every insertion and ejection.
    changes: u64,
    locked: bool,
    /// The medium may lie in the open tray: then it is there for people, but not for the guest.
    tray_open: bool,
    /// A person pressed the eject button of a locked drive, and the guest has not been told.
    eject_wanted: bool,
    queue: Queue,
    /// Requests ever handed over.
    submitted: u64,
    done: VecDeque<Completion>,
    closed: bool,
}

/// The workers' end: each of them has a clone.
#[derive(Clone)]
pub struct DriveServer(Arc<Shared>);

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drive {
    /// An empty drive, and the server that `vm-disk` threads run: as many as requests may be under way at once.
    pub fn new(name: impl Into<String>) -> (Drive, DriveServer) {
        let shared = Arc::new(Shared {
            name: name.into(),
            state: Mutex::default(),
            work: Condvar::new(),
            quiet: Condvar::new(),
            bell: RankedMutex::new(rank::LEAF, "drive bell", None),
            counted: RankedMutex::new(rank::LEAF, "drive timer", None),
            on_error: RankedMutex::new(rank::LEAF, "drive errors", None),
            on_tray: RankedMutex::new(rank::LEAF, "drive tray", None),
        });
        (Drive(Arc::clone(&shared)), DriveServer(shared))
    }

    /// Its name: `ide0-hd0`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }

    pub(crate) fn attach(&self, cell: Arc<DeviceCell>) {
        *self.0.bell.lock() = Some(cell);
    }

    /// Makes this the drive of a counted machine.
    pub fn serve_in_place(&self, timers: &TimerQueue) {
        let shared = Arc::downgrade(&self.0);
        let timer = timers.callback(move |_| {
            if let Some(shared) = shared.upgrade() {
                ring(&shared);
            }
        });
        *self.0.counted.lock() = Some((timers.clone(), timer));
    }

    /// `hook` hears of every failed host operation, so that the machine can tell the person (or pause where it is held back).
    pub fn on_error(&self, hook: impl Fn(&str, DriveError, RequestFate) + Send + Sync + 'static) {
        *self.0.on_error.lock() = Some(Arc::new(hook));
    }

    /// `hook` hears of every movement of the tray (`true`: it opened), whoever moves it.
    pub fn on_tray(&self, hook: impl Fn(bool) + Send + Sync + 'static) {
        *self.0.on_tray.lock() = Some(Arc::new(hook));
    }

    /// What is in the drive now, or lies in its open tray.
    pub fn medium(&self) -> Option<Medium> {
        self.state().medium.clone()
    }

    /// How many bytes the medium has; 0 without one.
    pub fn len(&self) -> u64 {
        self.state().medium.as_ref().map_or(0, |medium| medium.image.len())
    }

    /// Whether there is no medium, or one without bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rises with every insertion and ejection: a controller that remembers it notices a change of medium.
    pub fn changes(&self) -> u64 {
        self.state().changes
    }

    /// Puts a medium in (or takes it out) and rings the controller. Requests under way still finish on the old medium.
    pub fn set_medium(&self, medium: Option<Medium>) {
        {
            let mut state = self.state();
            state.medium = medium;
            state.changes += 1;
        }
        ring(&self.0);
    }

    /// The guest locks the door (ATAPI PREVENT ALLOW MEDIUM REMOVAL).
    pub fn set_locked(&self, locked: bool) {
        self.state().locked = locked;
    }

    /// Whether the guest has locked the door.
    pub fn is_locked(&self) -> bool {
        self.state().locked
    }

    /// Requests handed over so far: it counts up while the drive works.
    pub fn transfers(&self) -> u64 {
        self.state().submitted
    }

    /// Opens or closes the tray, for the guest or for a person; what lies in it stays there.
    pub fn set_tray_open(&self, open: bool) {
        let was_open = std::mem::replace(&mut self.state().tray_open, open);
        let hook = self.0.on_tray.lock().clone();
        if let Some(hook) = hook.filter(|_| was_open != open) {
            hook(open);
        }
    }

    /// Whether the tray is open.
    pub fn is_tray_open(&self) -> bool {
        self.state().tray_open
    }

    /// A person presses the eject button while the guest holds the door shut: it hears of that, and may let go.
    pub fn want_eject(&self) {
        self.state().eject_wanted = true;
    }

    /// Whether the eject button was pressed since this was last asked.
    pub fn take_eject_wanted(&self) -> bool {
        std::mem::take(&mut self.state().eject_wanted)
    }

    /// Hands a request over; the device is rung when it is done.
    pub fn submit(&self, request: DriveRequest) {
        let is_counted = self.0.counted.lock().is_some();
        let mut state = self.state();
        state.submitted += 1;
        if !is_counted {
            state.queue.push(request);
            drop(state);
            self.0.work.notify_one();
            return;
        }
        let medium = state.medium.clone();
        drop(state);
        let result = perform(medium.as_ref(), &request);
        if let Err(error) = result {
            report(&self.0, error, RequestFate::Answered);
        }
        self.state().done.push_back(Completion { token: request.token, result });
        if let Some((timers, timer)) = &*self.0.counted.lock() {
            timer.set(timers.clock().now().after_nanos(COUNTED_LATENCY_NANOS));
        }
    }

    /// Takes the next finished request.
    pub fn take_completion(&self) -> Option<Completion> {
        self.state().done.pop_front()
    }

    /// There may be room on the host now: tries again what was held back.
    pub fn retry(&self) {
        self.state().queue.resume();
        self.0.work.notify_all();
    }

    /// Fails what was held back, for a controller that is about to be reset.
    pub fn give_up(&self) {
        let mut state = self.state();
        let failed = state.queue.fail_held_back();
        state.done.extend(failed);
        drop(state);
        self.0.work.notify_all();
        self.0.quiet.notify_all();
    }

    /// Waits until no request is queued or under way, or the rest is held back: for pause, save and tear-down.
    pub fn drain(&self) {
        let mut state = self.state();
        while !state.closed && !state.queue.is_empty() && !state.queue.is_stuck() {
            state = self.0.quiet.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the workers after what is queued.
    pub fn close(&self) {
        self.state().closed = true;
        self.0.work.notify_all();
        self.0.quiet.notify_all();
    }
}

fn ring(shared: &Shared) {
    let bell = shared.bell.lock().clone();
    if let Some(cell) = bell {
        cell.ring();
    }
}

impl DriveServer {
    /// Serves requests until the drive is closed: the body of a `vm-disk` thread.
    pub fn serve(&self) {
        while let Some((batch, medium)) = self.next_batch() {
            let results = match &medium {
                None => batch.requests.iter().map(|_| Err(DriveError::NoMedium)).collect(),
                Some(medium) => medium.carry_out_all(&batch),
            };
            let mut failures = Vec::new();
            let mut state = self.0.state();
            for ((order, request), result) in batch.requests.into_iter().zip(results) {
                match settled(medium.as_ref(), &request, result) {
                    Settled::Done(result) => {
                        failures.extend(result.as_ref().err().map(|error| (*error, RequestFate::Answered)));
                        state.queue.finish(order);
                        state.done.push_back(Completion { token: request.token, result });
                    }
                    Settled::HeldBack(error) => {
                        failures.push((error, RequestFate::HeldBack));
                        state.queue.hold_back(order, request, error);
                    }
                }
            }
            let (is_quiet, is_closed) = (state.queue.is_empty() || state.queue.is_stuck(), state.closed);
            drop(state);
            if is_quiet {
                self.0.quiet.notify_all();
            }
            if is_closed {
                self.0.work.notify_all();
            }
            failures.dedup();
            for (error, fate) in failures {
                report(&self.0, error, fate);
            }
            ring(&self.0);
        }
    }

    /// Waits for something to do; `None` when the drive is closed and nothing is left that can be done.
    fn next_batch(&self) -> Option<(Batch, Option<Medium>)> {
        let mut state = self.0.state();
        loop {
            if state.closed && (state.queue.is_empty() || state.queue.is_stuck()) {
                return None;
            }
            if let Some(batch) = state.queue.take() {
                let medium = state.medium.clone();
                let is_more = state.queue.has_startable();
                drop(state);
                if is_more {
                    self.0.work.notify_one();
                }
                return Some((batch, medium));
            }
            state = self.0.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What becomes of a request that was carried out.
enum Settled {
    Done(Result<Vec<u8>, DriveError>),
    HeldBack(DriveError),
}

fn settled(medium: Option<&Medium>, request: &DriveRequest, result: Result<Vec<u8>, DriveError>) -> Settled {
    let (Some(medium), Err(error)) = (medium, &result) else { return Settled::Done(result) };
    match (medium.verdict(&request.operation, *error), &request.operation) {
        (Verdict::Report, _) => Settled::Done(result),
        (Verdict::HoldBack, _) => Settled::HeldBack(*error),
        (Verdict::Ignore, DriveOperation::Read { len, .. }) => Settled::Done(Ok(vec![0; *len])),
        (Verdict::Ignore, _) => Settled::Done(Ok(Vec::new())),
    }
}

/// Carries a request out at once; what would be held back fails, as nobody could try it again.
fn perform(medium: Option<&Medium>, request: &DriveRequest) -> Result<Vec<u8>, DriveError> {
    let result = medium.ok_or(DriveError::NoMedium)?.carry_out(&request.operation);
    match settled(medium, request, result) {
        Settled::Done(result) => result,
        Settled::HeldBack(error) => Err(error),
    }
}

/// Tells the machine of a failure that is the host's, not the guest's.
fn report(shared: &Shared, error: DriveError, fate: RequestFate) {
    if matches!(error, DriveError::NoSpace | DriveError::Io) {
        let hook = shared.on_error.lock().clone();
        if let Some(hook) = hook {
            hook(&shared.name, error, fate);
        }
    }
}
