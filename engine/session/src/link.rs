//! The two ends of a session. Fronts clone [`Session`]; the machine's control thread holds the one [`EngineSide`].
//! Events go to every listener; a listener that sleeps through 1,024 of them loses the newest, never the machine's time.
//! What must not be lost (state, drives) can be asked for again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, unbounded};
use engine_base::{RankedMutex, rank};
use engine_display::Screen;
use engine_input::KeyboardLeds;

use crate::{Command, Event, PauseReason, RunState};

const MOST_WAITING_EVENTS: usize = 1024;
/// What is told while a machine is built is kept for the listeners that come a moment later.
const MOST_EARLY_EVENTS: usize = 16;

/// A drive as front ends show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveStatus {
    /// The name that commands use, such as `cdrom`.
    pub name: String,
    /// The name for people, such as `CD drive`.
    pub title: String,
    /// What it is.
    pub kind: DriveKind,
    /// Whether its medium can be changed while the machine runs.
    pub removable: bool,
    /// The medium in it, for people: its file name. None while its tray is open.
    pub medium: Option<String>,
    /// Whether it reads or writes: its light. It stays on for a second, so that busy drives do not flicker.
    pub working: bool,
}

/// The kind of a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriveKind {
    /// A hard disk.
    HardDisk,
    /// A CD or DVD drive.
    Cdrom,
    /// A floppy drive.
    Floppy,
}

/// A front end's end: cheap to clone, never blocks.
#[derive(Clone)]
pub struct Session(Arc<Shared>);

/// The machine's end. Dropping it ends the session.
pub struct EngineSide {
    shared: Arc<Shared>,
    commands: Receiver<Command>,
}

struct Shared {
    commands: Sender<Command>,
    screen: Screen,
    status: RankedMutex<Status>,
    pointer_is_absolute: AtomicBool,
    listeners: RankedMutex<Listeners>,
}

#[derive(Default)]
struct Listeners {
    senders: Vec<Sender<Event>>,
    /// Notices and failures from before the machine ran; each new listener hears them first.
    early: Vec<Event>,
}

struct Status {
    state: RunState,
    pause_reason: PauseReason,
    drives: Vec<DriveStatus>,
    backend: String,
    keyboard_leds: KeyboardLeds,
}

/// A fresh session in state `Starting`, whose picture is `screen`.
pub fn link(screen: Screen) -> (Session, EngineSide) {
    // Unbounded, because a window may neither wait nor lose the release of a key; people type slower than machines listen.
    let (sender, commands) = unbounded();
    let status = Status {
        state: RunState::Starting,
        pause_reason: PauseReason::NotStarted,
        drives: Vec::new(),
        backend: String::new(),
        keyboard_leds: KeyboardLeds::default(),
    };
    let shared = Arc::new(Shared {
        commands: sender,
        screen,
        status: RankedMutex::new(rank::LEAF, "session status", status),
        pointer_is_absolute: AtomicBool::new(false),
        listeners: RankedMutex::new(rank::LEAF, "session listeners", Listeners::default()),
    });
    (Session(Arc::clone(&shared)), EngineSide { shared, commands })
}

impl Session {
    /// Hands a command to the machine. After the machine has ended it goes nowhere; a reply inside is then dropped.
    pub fn send(&self, command: Command) {
        self.0.commands.send(command).ok(); // The machine has ended; its listeners were told.
    }

    /// The guest's display.
    pub fn screen(&self) -> Screen {
        self.0.screen.clone()
    }

    /// A new listener: it hears what went wrong while the machine was built, and everything from now on.
    pub fn events(&self) -> Receiver<Event> {
        let (sender, receiver) = bounded(MOST_WAITING_EVENTS);
        let mut listeners = self.0.listeners.lock();
        for event in &listeners.early {
            sender.try_send(event.clone()).ok(); // There is room for all of them.
        }
        listeners.senders.push(sender);
        receiver
    }

    /// What the machine is doing.
    pub fn state(&self) -> RunState {
        self.0.status.lock().state
    }

    /// Why it stands still; means something only in state [`RunState::Paused`].
    pub fn pause_reason(&self) -> PauseReason {
        self.0.status.lock().pause_reason
    }

    /// Whether the guest takes absolute pointer positions (a tablet is in use), so that the pointer need not be caught.
    pub fn pointer_is_absolute(&self) -> bool {
        self.0.pointer_is_absolute.load(Ordering::Relaxed)
    }

    /// The lamps of the guest's keyboard.
    pub fn keyboard_leds(&self) -> KeyboardLeds {
        self.0.status.lock().keyboard_leds
    }

    /// The drives, in the order in which a person knows them.
    pub fn drives(&self) -> Vec<DriveStatus> {
        self.0.status.lock().drives.clone()
    }

    /// What runs the guest's code, for people: `software CPU`, `KVM`.
    pub fn backend(&self) -> String {
        self.0.status.lock().backend.clone()
    }
}

impl EngineSide {
    /// What front ends ask for.
    pub fn commands(&self) -> &Receiver<Command> {
        &self.commands
    }

    /// The picture to draw on.
    pub fn screen(&self) -> &Screen {
        &self.shared.screen
    }

    /// Tells every listener.
    pub fn tell(&self, event: Event) {
        let starting = self.shared.status.lock().state == RunState::Starting;
        let mut listeners = self.shared.listeners.lock();
        let is_for_people = matches!(event, Event::Notice { .. } | Event::Failed { .. });
        if starting && is_for_people && listeners.early.len() < MOST_EARLY_EVENTS {
            listeners.early.push(event.clone());
        }
        listeners.senders.retain(|listener| match listener.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                tracing::warn!(?event, "a front end is not listening; it misses this event");
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        });
    }

    /// Sets the state, and tells every listener if it is another one.
    pub fn set_state(&self, state: RunState) {
        let before = std::mem::replace(&mut self.shared.status.lock().state, state);
        if before != state {
            self.tell(Event::StateChanged(state));
        }
    }

    /// What [`Session::pause_reason`] answers.
    pub fn pause_reason(&self) -> PauseReason {
        self.shared.status.lock().pause_reason
    }

    /// Sets what [`Session::pause_reason`] answers; to be done before the state becomes `Paused`.
    pub fn set_pause_reason(&self, reason: PauseReason) {
        self.shared.status.lock().pause_reason = reason;
    }

    /// What [`Session::drives`] answers.
    pub fn drives(&self) -> Vec<DriveStatus> {
        self.shared.status.lock().drives.clone()
    }

    /// Sets what [`Session::drives`] answers.
    pub fn set_drives(&self, drives: Vec<DriveStatus>) {
        self.shared.status.lock().drives = drives;
    }

    /// Sets what [`Session::pointer_is_absolute`] answers.
    pub fn set_pointer_is_absolute(&self, absolute: bool) {
        self.shared.pointer_is_absolute.store(absolute, Ordering::Relaxed);
    }

    /// Sets what [`Session::keyboard_leds`] answers, and tells every listener if that is news.
    pub fn set_keyboard_leds(&self, leds: KeyboardLeds) {
        let before = std::mem::replace(&mut self.shared.status.lock().keyboard_leds, leds);
        if before != leds {
            self.tell(Event::KeyboardLeds(leds));
        }
    }

    /// Sets what [`Session::backend`] answers.
    pub fn set_backend(&self, backend: impl Into<String>) {
        self.shared.status.lock().backend = backend.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listener_hears_a_change_of_state_once() {
        let (session, engine) = link(Screen::new());
        let (first, second) = (session.events(), session.events());
        engine.set_state(RunState::Running);
        engine.set_state(RunState::Running);
        for listener in [first, second] {
            assert_eq!(listener.try_iter().collect::<Vec<_>>(), [Event::StateChanged(RunState::Running)]);
        }
        assert_eq!(session.state(), RunState::Running);
    }

    #[test]
    fn what_went_wrong_while_building_is_heard_by_those_who_come_later() {
        let (session, engine) = link(Screen::new());
        let notice = Event::Notice { text: "The file is short.".into() };
        engine.tell(notice.clone());
        engine.set_state(RunState::Running);
        engine.tell(Event::Notice { text: "Not kept.".into() });
        assert_eq!(session.events().try_iter().collect::<Vec<_>>(), [notice]);
    }

    #[test]
    fn commands_after_the_end_go_nowhere_and_drop_their_reply() {
        let (session, engine) = link(Screen::new());
        drop(engine);
        let (reply, asked) = engine_base::reply();
        session.send(Command::TypeText { text: "ls".into(), reply });
        assert_eq!(asked.wait(), None);
    }
}
