//! A drive as a controller sees it: requests go in, completions come out, media change. The image is read and written on
//! the drive's own worker thread (`vm-disk<n>`), which rings the controller when something is done.
//! Requests are carried out in the order given. A request carries the controller's generation, so that what was asked
//! before a reset is recognised and dropped after it.
//!
//! What finds the host's disk full is not failed, be it a write, a flush or a discard: the guest would take it for a
//! broken disk. The worker holds it back, reports it, and tries it again when the person has made room ([`Drive::retry`]).
//!
//! In a counted machine ([`engine_base::ClockMode::Counted`]) there is no worker: [`Drive::submit`] does the work at once,
//! and the controller is rung by a timer a fixed guest time later, so that a run repeats exactly.

use crate::{DeviceCell, Timer, TimerQueue};
use engine_base::{RankedMutex, rank};
use engine_disk::DiskImage;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

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

/// What is in the drive.
#[derive(Clone)]
pub struct Medium {
    /// The image.
    pub image: Arc<dyn DiskImage>,
    /// Whether the guest may not write, whatever the image allows.
    pub read_only: bool,
    /// Where it came from, for people: a path.
    pub title: String,
}

/// A drive; clones share it. Controllers hold one end, the machine puts media in and out.
#[derive(Clone)]
pub struct Drive(Arc<Shared>);

struct Shared {
    name: String,
    state: Mutex<State>,
    work: Condvar,
    bell: RankedMutex<Option<Arc<DeviceCell>>>,
    /// Present in counted machines: work is done in place, and this rings the controller.
    counted: RankedMutex<Option<(TimerQueue, Timer)>>,
    on_error: RankedMutex<Option<ErrorHook>>,
    on_tray: RankedMutex<Option<TrayHook>>,
}

type ErrorHook = Arc<dyn Fn(&str, DriveError) + Send + Sync>;
type TrayHook = Arc<dyn Fn(bool) + Send + Sync>;

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
    requests: VecDeque<DriveRequest>,
    /// Requests ever handed over.
    submitted: u64,
    busy: bool,
    /// The first request found no room on the host and waits for [`Drive::retry`] or [`Drive::give_up`].
    stalled: bool,
    done: VecDeque<Completion>,
    closed: bool,
}

/// The worker's end.
pub struct DriveServer(Arc<Shared>);

impl Drive {
    /// An empty drive, and the server that a `vm-disk` thread runs.
    pub fn new(name: impl Into<String>) -> (Drive, DriveServer) {
        let shared = Arc::new(Shared {
            name: name.into(),
            state: Mutex::default(),
            work: Condvar::new(),
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

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(|poison| poison.into_inner())
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

    /// `hook` hears of every failed host operation, so that the machine can tell the person (or pause when space is out).
    pub fn on_error(&self, hook: impl Fn(&str, DriveError) + Send + Sync + 'static) {
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
        self.state().submitted += 1;
        let counted = self.0.counted.lock().is_some();
        if !counted {
            self.state().requests.push_back(request);
            self.0.work.notify_one();
            return;
        }
        let medium = self.medium();
        let result = perform(medium, &request.operation);
        report(&self.0, result.as_ref().err().copied());
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
        self.state().stalled = false;
        self.0.work.notify_all();
    }

    /// Fails what was held back, for a controller that is about to be reset.
    pub fn give_up(&self) {
        let mut state = self.state();
        if std::mem::take(&mut state.stalled)
            && let Some(request) = state.requests.pop_front()
        {
            state.done.push_back(Completion { token: request.token, result: Err(DriveError::NoSpace) });
        }
        drop(state);
        self.0.work.notify_all();
    }

    /// Waits until no request is queued or under way, or the rest is held back for want of room: for pause, save and
    /// tear-down.
    pub fn drain(&self) {
        let mut state = self.state();
        while !state.closed && !state.stalled && (state.busy || !state.requests.is_empty()) {
            state = self.0.work.wait(state).unwrap_or_else(|poison| poison.into_inner());
        }
    }

    /// Ends the worker after what is queued.
    pub fn close(&self) {
        self.state().closed = true;
        self.0.work.notify_all();
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
        loop {
            let (request, medium) = {
                let mut state = self.0.state.lock().unwrap_or_else(|poison| poison.into_inner());
                loop {
                    if state.closed && (state.stalled || state.requests.is_empty()) {
                        return;
                    }
                    if !state.stalled
                        && let Some(request) = state.requests.pop_front()
                    {
                        state.busy = true;
                        break (request, state.medium.clone());
                    }
                    state = self.0.work.wait(state).unwrap_or_else(|poison| poison.into_inner());
                }
            };
            let result = perform(medium, &request.operation);
            let holds_back = result == Err(DriveError::NoSpace);
            let error = result.as_ref().err().copied();
            {
                let mut state = self.0.state.lock().unwrap_or_else(|poison| poison.into_inner());
                state.busy = false;
                if holds_back {
                    state.stalled = true;
                    state.requests.push_front(request);
                } else {
                    state.done.push_back(Completion { token: request.token, result });
                }
            }
            self.0.work.notify_all();
            report(&self.0, error);
            ring(&self.0);
        }
    }
}

fn perform(medium: Option<Medium>, operation: &DriveOperation) -> Result<Vec<u8>, DriveError> {
    match medium {
        None => Err(DriveError::NoMedium),
        Some(medium) => carry_out(&medium, operation),
    }
}

/// Tells the machine of a failure that is the host's, not the guest's.
fn report(shared: &Shared, error: Option<DriveError>) {
    if let Some(error @ (DriveError::NoSpace | DriveError::Io)) = error {
        let hook = shared.on_error.lock().clone();
        if let Some(hook) = hook {
            hook(&shared.name, error);
        }
    }
}

fn carry_out(medium: &Medium, operation: &DriveOperation) -> Result<Vec<u8>, DriveError> {
    let image = &medium.image;
    let in_range = |offset: u64, len: u64| match offset.checked_add(len) {
        Some(end) if end <= image.len() => Ok(()),
        _ => Err(DriveError::OutOfRange),
    };
    let writable = || if medium.read_only || image.read_only() { Err(DriveError::ReadOnly) } else { Ok(()) };
    let failed = |error: engine_disk::DiskError| {
        tracing::error!(%error, image = medium.title, "the image could not be read or written");
        if error.is_no_space() { DriveError::NoSpace } else { DriveError::Io }
    };
    match *operation {
        DriveOperation::Read { offset, len } => {
            in_range(offset, len as u64)?;
            let mut data = vec![0; len];
            image.read_at(offset, &mut data).map_err(failed)?;
            Ok(data)
        }
        DriveOperation::Write { offset, ref data } => {
            writable()?;
            in_range(offset, data.len() as u64)?;
            image.write_at(offset, data).map_err(failed)?;
            Ok(Vec::new())
        }
        DriveOperation::Flush => {
            if !image.read_only() {
                image.flush().map_err(failed)?;
            }
            Ok(Vec::new())
        }
        DriveOperation::Discard { offset, len } => {
            writable()?;
            in_range(offset, len)?;
            image.discard(offset, len).map_err(failed)?;
            Ok(Vec::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_disk::{DiskError, Extent, Format};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    /// A disk on a host that has no room until it is told otherwise.
    struct Cramped {
        room: AtomicBool,
        /// There is room for one operation only.
        only_once: AtomicBool,
        written: Mutex<Vec<u8>>,
    }

    impl Cramped {
        fn check(&self) -> Result<(), DiskError> {
            let has_room = self.room.load(Ordering::Relaxed);
            if self.only_once.load(Ordering::Relaxed) {
                self.room.store(false, Ordering::Relaxed);
            }
            if has_room { Ok(()) } else { Err(DiskError::NoSpace { path: "/cramped".into() }) }
        }
    }

    impl DiskImage for Cramped {
        fn len(&self) -> u64 {
            512
        }
        fn read_at(&self, _: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
            buffer.fill(0);
            Ok(())
        }
        fn write_at(&self, _: u64, data: &[u8]) -> Result<(), DiskError> {
            self.check()?;
            *self.written.lock().unwrap() = data.to_vec();
            Ok(())
        }
        fn flush(&self) -> Result<(), DiskError> {
            self.check()
        }
        fn discard(&self, _: u64, _: u64) -> Result<(), DiskError> {
            self.check()
        }
        fn write_zeroes(&self, _: u64, _: u64) -> Result<(), DiskError> {
            Ok(())
        }
        fn read_only(&self) -> bool {
            false
        }
        fn format(&self) -> Format {
            Format::Raw
        }
        fn extent_at(&self, _: u64) -> Result<Extent, DiskError> {
            Err(DiskError::NoSpace { path: "/cramped".into() })
        }
    }

    fn cramped_drive() -> (Drive, Arc<Cramped>, std::thread::JoinHandle<()>, mpsc::Receiver<DriveError>) {
        let image =
            Arc::new(Cramped { room: AtomicBool::new(false), only_once: AtomicBool::new(false), written: Mutex::default() });
        let (drive, server) = Drive::new("ide0-0");
        drive.set_medium(Some(Medium { image: image.clone(), read_only: false, title: "cramped".into() }));
        let (sender, errors) = mpsc::channel();
        drive.on_error(move |_, error| sender.send(error).unwrap());
        let worker = std::thread::spawn(move || server.serve());
        drive.submit(DriveRequest { token: 5, operation: DriveOperation::Write { offset: 0, data: vec![7; 512] } });
        (drive, image, worker, errors)
    }

    #[test]
    fn a_write_without_room_is_held_back_and_tried_again_when_there_is_some() {
        let (drive, image, worker, errors) = cramped_drive();
        assert_eq!(errors.recv().unwrap(), DriveError::NoSpace);
        drive.drain();
        assert_eq!(drive.take_completion(), None, "the guest must not be told of an error");
        drive.retry();
        assert_eq!(errors.recv().unwrap(), DriveError::NoSpace, "there is still no room");
        image.room.store(true, Ordering::Relaxed);
        drive.retry();
        drive.drain();
        assert_eq!(drive.take_completion(), Some(Completion { token: 5, result: Ok(Vec::new()) }));
        assert_eq!(*image.written.lock().unwrap(), [7; 512]);
        drive.close();
        worker.join().unwrap();
    }

    #[test]
    fn flushes_and_discards_are_held_back_too_and_nothing_overtakes_them() {
        let (drive, image, worker, errors) = cramped_drive();
        drive.submit(DriveRequest { token: 6, operation: DriveOperation::Flush });
        drive.submit(DriveRequest { token: 7, operation: DriveOperation::Discard { offset: 0, len: 512 } });
        assert_eq!(errors.recv().unwrap(), DriveError::NoSpace);
        for token in [5, 6, 7] {
            drive.drain();
            assert_eq!(drive.take_completion(), None, "request {token} waits");
            image.room.store(true, Ordering::Relaxed);
            image.only_once.store(true, Ordering::Relaxed);
            drive.retry();
            while drive.take_completion().is_none_or(|done| done != Completion { token, result: Ok(Vec::new()) }) {
                std::thread::yield_now();
            }
            if token < 7 {
                assert_eq!(errors.recv().unwrap(), DriveError::NoSpace);
            }
        }
        drive.close();
        worker.join().unwrap();
    }

    #[test]
    fn what_is_held_back_hinders_neither_a_reset_nor_the_end() {
        let (drive, _image, worker, errors) = cramped_drive();
        errors.recv().unwrap();
        drive.give_up();
        drive.drain();
        assert_eq!(drive.take_completion().unwrap().result, Err(DriveError::NoSpace));
        drive.submit(DriveRequest { token: 6, operation: DriveOperation::Write { offset: 0, data: vec![7; 512] } });
        errors.recv().unwrap();
        drive.close();
        worker.join().unwrap();
    }
}
