//! A machine that runs behind a [`Session`]: the thread `vm-session` owns the [`Machine`], carries out commands and turns
//! what the machine reports into events. It lives until the machine ends, by the guest's will or a front end's.

use std::collections::{HashSet, VecDeque};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select, unbounded};
use engine_base::spawn_guarded;
use engine_bus::{DriveError, RequestFate};
use engine_cpu::CpuState;
use engine_input::{Button, InputEvent, KeyCode};
use engine_machine::{
    DriveInfo, DriveKind as MachineDriveKind, ImageSource, Machine, MachineError, MachineEvent, RunState as MachineState, Spec,
    linear_to_physical,
};

use crate::{
    AddressSpace, BoardDescription, Command, DriveKind, DriveStatus, EndReason, EngineSide, Event, Force, MOST_MEMORY_READ,
    PauseReason, ResetBy, RunState, Session, link,
};

/// How often the session looks at what nobody reports: whether the pointer is absolute, and which drives work.
const LOOK: Duration = Duration::from_millis(200);
/// For how many looks a drive's light stays on.
const LIT_LOOKS: u8 = 5;
/// Between two events of typed text: no guest's keyboard driver loses keys at this pace.
const TYPING: Duration = Duration::from_millis(12);
/// The most characters that may wait to be typed.
const MOST_TYPED: usize = 64 * 1024;

/// What happens at the guest's turning points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// When the guest resets.
    pub on_reset: OnReset,
    /// When the guest switches itself off.
    pub on_shutdown: OnShutdown,
    /// How the machine starts.
    pub start: StartAs,
}

/// What a reset by the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReset {
    /// The machine resets.
    Reset,
    /// The machine ends (`-no-reboot`).
    End,
}

/// What a shutdown by the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnShutdown {
    /// The machine ends.
    End,
    /// The machine stays, switched off (`-no-shutdown`).
    Stay,
}

/// How a machine starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAs {
    /// Running.
    Running,
    /// Standing at its first instruction (`-S`).
    Paused,
}

impl Default for Policy {
    fn default() -> Self {
        Self { on_reset: OnReset::Reset, on_shutdown: OnShutdown::End, start: StartAs::Running }
    }
}

/// A machine in this process.
pub struct Running {
    /// The way to it.
    pub session: Session,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Waits until the machine has ended: drives are flushed and closed then.
    pub fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().ok(); // A panic was reported as Failed when it happened.
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.session.send(Command::PowerOff);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Builds the machine and starts it.
///
/// # Errors
/// When it cannot be built: the sentence says what to do.
pub fn start(spec: &Spec, policy: Policy) -> Result<Running, MachineError> {
    let (report, reports) = unbounded();
    // The session may be gone while the machine still ends.
    let machine = Machine::build(spec, move |event| drop(report.send(event)))?;
    let (session, engine) = link(machine.screen());
    engine.set_backend(machine.backend_name());
    let worker = Worker {
        machine,
        engine,
        reports,
        policy,
        typing: Typing::new(Instant::now()),
        down: Held::default(),
        lights: Vec::new(),
        end: None,
        power_button_pressed: false,
    };
    let failed = session.clone();
    let thread = spawn_guarded("vm-session", move || worker.run(), move |_| failed.send(Command::PowerOff))?;
    Ok(Running { session, thread: Some(thread) })
}

struct Worker {
    machine: Machine,
    engine: EngineSide,
    reports: Receiver<MachineEvent>,
    policy: Policy,
    typing: Typing,
    down: Held,
    /// Each drive's requests at the last look, and for how many looks its light stays on.
    lights: Vec<(u64, u8)>,
    end: Option<EndReason>,
    power_button_pressed: bool,
}

/// What the person holds down, to be let go when the window loses the keyboard.
#[derive(Default)]
struct Held {
    keys: HashSet<KeyCode>,
    buttons: HashSet<Button>,
}

impl Held {
    fn note(&mut self, event: &InputEvent) {
        match *event {
            InputEvent::Key { code, pressed: true } => drop(self.keys.insert(code)),
            InputEvent::Key { code, pressed: false } => drop(self.keys.remove(&code)),
            InputEvent::Button { button, pressed: true } => drop(self.buttons.insert(button)),
            InputEvent::Button { button, pressed: false } => drop(self.buttons.remove(&button)),
            _ => {}
        }
    }

    fn release(&mut self) -> Vec<InputEvent> {
        let keys = self.keys.drain().map(|code| InputEvent::Key { code, pressed: false });
        let buttons = self.buttons.drain().map(|button| InputEvent::Button { button, pressed: false });
        keys.chain(buttons).collect()
    }
}

/// Text on its way to the guest's keyboard, at a pace that it can follow.
struct Typing {
    events: VecDeque<InputEvent>,
    /// Not before this moment.
    next: Instant,
}

impl Typing {
    fn new(now: Instant) -> Self {
        Self { events: VecDeque::new(), next: now }
    }

    /// When the next event is to be sent.
    fn due(&self) -> Option<Instant> {
        (!self.events.is_empty()).then_some(self.next)
    }

    /// The event that is due by `now`.
    fn next(&mut self, now: Instant) -> Option<InputEvent> {
        let event = if self.next <= now { self.events.pop_front() } else { None };
        if event.is_some() {
            self.next = now + TYPING;
        }
        event
    }
}

impl Worker {
    fn run(mut self) {
        self.engine.set_drives(self.drives());
        self.take_reports();
        if self.policy.start == StartAs::Running {
            self.machine.resume();
        } else {
            self.engine.set_state(RunState::Paused);
        }
        let commands = self.engine.commands().clone();
        let mut look = Instant::now() + LOOK;
        while self.end.is_none() {
            // However many commands come meanwhile, typed text keeps its pace.
            let now = Instant::now();
            if let Some(event) = self.typing.next(now) {
                self.machine.input(&event);
            }
            if now >= look {
                look = now + LOOK;
                self.engine.set_pointer_is_absolute(self.machine.pointer_is_absolute());
                self.look_at_drives();
            }
            let timeout = crossbeam_channel::at(self.typing.due().map_or(look, |due| due.min(look)));
            select! {
                recv(commands) -> command => match command {
                    Ok(command) => {
                        self.carry_out(command);
                        // What it led to is told before the next command is looked at.
                        self.take_reports();
                    }
                    // Every front end is gone: nobody could ever end the machine again.
                    Err(_) => self.end = Some(EndReason::PoweredOff),
                },
                recv(self.reports) -> report => if let Ok(report) = report { self.report(report) },
                recv(timeout) -> _ => {}
            }
        }
        self.machine.end();
        while let Ok(report) = self.reports.try_recv() {
            self.report_failure(&report);
        }
        let reason = self.end.unwrap_or(EndReason::PoweredOff);
        self.engine.set_state(if reason == EndReason::Failed { RunState::Failed } else { RunState::Ended });
        self.engine.tell(Event::Ended(reason));
    }

    fn take_reports(&mut self) {
        while let Ok(report) = self.reports.try_recv() {
            self.report(report);
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Input(event) => {
                self.down.note(&event);
                self.machine.input(&event);
            }
            Command::ReleaseAllKeys => {
                for event in self.down.release() {
                    self.machine.input(&event);
                }
            }
            Command::Pause => {
                self.engine.set_pause_reason(PauseReason::Asked);
                self.machine.stop();
            }
            Command::Resume => self.machine.resume(),
            Command::Settle { reply } => {
                self.take_reports();
                reply.send(());
            }
            // Whoever asks for it: QEMU's -no-reboot makes no difference either.
            Command::Reset if self.policy.on_reset == OnReset::End => self.end = Some(EndReason::Reset(ResetBy::Person)),
            Command::Reset => self.machine.reset(),
            Command::PowerButton => {
                self.machine.press_power_button();
                self.power_button_pressed = true;
                if self.machine.state() == MachineState::Running {
                    self.engine.set_state(RunState::ShuttingDown);
                }
            }
            Command::PowerOff => self.end = Some(EndReason::PoweredOff),
            Command::Quit => self.end = Some(EndReason::Quit),
            Command::EndOnSignal => self.end = Some(EndReason::Signal),
            Command::InsertMedium { drive, path, reply } => {
                let source = ImageSource::new(path);
                let done = self.machine.insert(&self.machine_drive(&drive), &source, engine_machine::Force::Polite);
                reply.send(done.map_err(|error| error.to_string()));
            }
            Command::EjectMedium { drive, force, reply } => {
                let force = match force {
                    Force::RespectLock => engine_machine::Force::Polite,
                    Force::OverrideLock => engine_machine::Force::Forced,
                };
                reply.send(self.machine.eject(&self.machine_drive(&drive), force).map_err(|error| error.to_string()));
            }
            Command::TypeText { text, reply } => reply.send(self.start_typing(&text)),
            Command::TakePicture { reply } => {
                self.machine.draw_screen();
                reply.send(self.machine.screen().picture());
            }
            Command::ReadCpu { cpu, reply } => {
                let state = self.machine.pause().cpu_state(cpu);
                reply.send(state.map(Box::new).map_err(|error| error.to_string()));
            }
            Command::ReadMemory { space, address, len, reply } => reply.send(self.read_memory(space, address, len)),
            Command::ReadStatistics { reply } => reply.send(self.machine.statistics()),
            Command::TakeProfile { reply } => reply.send(self.machine.profile()),
            Command::DescribeBoard { reply } => reply.send(self.describe()),
        }
    }

    fn report(&mut self, report: MachineEvent) {
        self.report_failure(&report);
        match report {
            // Told when it is known why: the machine may end instead of standing still.
            MachineEvent::State(MachineState::Shutdown) => {}
            MachineEvent::State(state) => self.engine.set_state(match state {
                MachineState::Prelaunch | MachineState::Paused | MachineState::Shutdown => RunState::Paused,
                MachineState::Running if self.power_button_pressed => RunState::ShuttingDown,
                MachineState::Running => RunState::Running,
                MachineState::Failed => RunState::Failed,
            }),
            MachineEvent::ResetRequested if self.policy.on_reset == OnReset::End => {
                self.end = Some(EndReason::Reset(ResetBy::Guest));
            }
            MachineEvent::ResetRequested => {}
            MachineEvent::Reset { by } => {
                self.power_button_pressed = false;
                match self.machine.state() {
                    MachineState::Running => self.engine.set_state(RunState::Running),
                    // It had switched itself off, and stands at its first instruction now.
                    MachineState::Paused if self.engine.pause_reason() == PauseReason::GuestOff => {
                        self.engine.set_pause_reason(PauseReason::Asked);
                    }
                    _ => {}
                }
                self.engine.tell(Event::Reset { by });
            }
            MachineEvent::Shutdown => {
                self.power_button_pressed = false;
                self.engine.tell(Event::GuestShutdown);
                match self.policy.on_shutdown {
                    OnShutdown::End => self.end = Some(EndReason::GuestPoweredOff),
                    OnShutdown::Stay => {
                        self.engine.set_pause_reason(PauseReason::GuestOff);
                        self.engine.set_state(RunState::Paused);
                    }
                }
            }
            MachineEvent::Exit(status) => self.end = Some(EndReason::DebugExit(status)),
            MachineEvent::SuspendRefused => self.engine.tell(Event::Notice {
                text: "The guest wanted to sleep. Sleep is not supported yet; it goes on running.".to_owned(),
            }),
            MachineEvent::MediumChanged { drive } => self.tell_medium(drive),
            MachineEvent::TrayMoved { drive, open } => {
                self.engine.tell(Event::TrayMoved { drive: drive.clone(), open });
                self.tell_medium(drive);
            }
            MachineEvent::KeyboardLeds(leds) => self.engine.set_keyboard_leds(leds),
            MachineEvent::Notice(text) => self.engine.tell(Event::Notice { text }),
            MachineEvent::DriveError { fate: RequestFate::HeldBack, .. } => {
                // The guest has not been told: the drive holds the request back until somebody resumes.
                self.engine.set_pause_reason(PauseReason::HostDisk);
                self.machine.stop();
            }
            MachineEvent::DriveError { .. } | MachineEvent::Failed(_) => {}
        }
    }

    /// Tells what a drive holds, if that is another medium than before.
    fn tell_medium(&mut self, drive: String) {
        let medium_in = |drives: &[DriveStatus]| drives.iter().find(|status| status.name == drive)?.medium.clone();
        let (before, drives) = (medium_in(&self.engine.drives()), self.drives());
        let title = medium_in(&drives);
        self.engine.set_drives(drives);
        if title != before {
            self.engine.tell(Event::MediumChanged { drive, title });
        }
    }

    /// Failures are told even while the machine ends.
    fn report_failure(&self, report: &MachineEvent) {
        let (what, advice) = match report {
            MachineEvent::Failed(what) => (what.clone(), "Reset the machine or switch it off; its disks are safe.".to_owned()),
            MachineEvent::DriveError { drive, error: DriveError::NoSpace, fate: RequestFate::HeldBack } => (
                format!("The disk of this computer is full, so {drive} could not be written. The machine is paused."),
                "Free some space, then resume the machine: it tries again, and nothing is lost.".to_owned(),
            ),
            MachineEvent::DriveError { drive, error, fate: RequestFate::HeldBack } => (
                format!("{drive}: {error}. The machine is paused."),
                "Check the file and the disk it is on, then resume the machine: it tries again.".to_owned(),
            ),
            MachineEvent::DriveError { drive, error, fate: RequestFate::Answered } => (
                format!("{drive}: {error}."),
                "Check the file and the disk it is on; the guest was told of the error.".to_owned(),
            ),
            _ => return,
        };
        self.engine.tell(Event::Failed { what, advice });
    }

    /// Front ends may say `cdrom` and `floppy` for the first of a kind.
    fn machine_drive(&self, name: &str) -> String {
        let kind = match name {
            "cdrom" => MachineDriveKind::Cdrom,
            "floppy" => MachineDriveKind::Floppy,
            _ => return name.to_owned(),
        };
        let first = self.machine.drives().into_iter().find(|drive| drive.kind == kind);
        first.map_or_else(|| name.to_owned(), |drive| drive.name)
    }

    fn drives(&self) -> Vec<DriveStatus> {
        let lit = self.lights.iter().map(|(_, looks)| *looks > 0).chain(std::iter::repeat(false));
        self.machine.drives().into_iter().zip(lit).map(|(drive, lit)| drive_status(drive, lit)).collect()
    }

    /// Tells when a drive's light goes on or off.
    fn look_at_drives(&mut self) {
        let transfers: Vec<u64> = self.machine.drives().iter().map(|drive| drive.transfers).collect();
        let before = std::mem::take(&mut self.lights);
        let light = |(index, transfers): (usize, &u64)| match before.get(index) {
            Some((seen, looks)) if seen == transfers => (*transfers, looks.saturating_sub(1)),
            Some(_) => (*transfers, LIT_LOOKS),
            None => (*transfers, 0),
        };
        self.lights = transfers.iter().enumerate().map(light).collect();
        let lit = |lights: &[(u64, u8)]| lights.iter().map(|(_, looks)| *looks > 0).collect::<Vec<_>>();
        if before.len() == self.lights.len() && lit(&before) != lit(&self.lights) {
            self.engine.set_drives(self.drives());
            self.engine.tell(Event::DriveLights);
        }
    }

    fn start_typing(&mut self, text: &str) -> Result<usize, String> {
        if self.typing.events.len() / 2 + text.len() > MOST_TYPED {
            return Err("There is too much text to type. Type it in smaller pieces.".to_owned());
        }
        let (events, typed) = engine_input::keystrokes(text)?;
        self.typing.events.extend(events);
        Ok(typed)
    }

    fn read_memory(&self, space: AddressSpace, address: u64, len: usize) -> Result<Vec<u8>, String> {
        if len > MOST_MEMORY_READ {
            return Err(format!("At most {MOST_MEMORY_READ} bytes can be read at once."));
        }
        let memory = self.machine.memory();
        let mut bytes = vec![0; len];
        match space {
            AddressSpace::Physical => memory.read(address, &mut bytes).map_err(|fault| format!("There is {fault}."))?,
            AddressSpace::Linear { cpu } => {
                let paused = self.machine.pause();
                let CpuState::X86(state) = paused.cpu_state(cpu).map_err(|error| error.to_string())?;
                let mut done = 0;
                while done < len {
                    let at = address.wrapping_add(done as u64);
                    let now = (len - done).min(4096 - (at & 0xfff) as usize);
                    let physical =
                        linear_to_physical(&state, memory, at).ok_or_else(|| format!("Nothing is mapped at {at:#x}."))?;
                    memory.read(physical, &mut bytes[done..done + now]).map_err(|fault| format!("There is {fault}."))?;
                    done += now;
                }
            }
        }
        Ok(bytes)
    }

    fn describe(&self) -> BoardDescription {
        let (memory, ports) = self.machine.memory_map();
        BoardDescription {
            cpus: self.machine.cpus(),
            memory,
            ports,
            pci: self.machine.pci_functions(),
            drives: self.machine.drives(),
            retired_instructions: self.machine.pause().retired_instructions(),
            guest_nanos: self.machine.now().nanos(),
        }
    }
}

fn drive_status(drive: DriveInfo, working: bool) -> DriveStatus {
    let (kind, title) = match drive.kind {
        MachineDriveKind::Disk => (DriveKind::HardDisk, "Hard disk"),
        MachineDriveKind::Cdrom => (DriveKind::Cdrom, "CD drive"),
        MachineDriveKind::Floppy => (DriveKind::Floppy, "Floppy drive"),
    };
    let file_name = |path: &String| path.rsplit('/').next().unwrap_or(path).to_owned();
    DriveStatus {
        title: title.to_owned(),
        kind,
        removable: kind != DriveKind::HardDisk,
        medium: drive.medium.as_ref().filter(|_| !drive.tray_open).map(file_name),
        working,
        name: drive.name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_text_keeps_its_pace_however_often_the_session_wakes() {
        let start = Instant::now();
        let mut typing = Typing::new(start);
        assert_eq!(typing.due(), None);
        typing.events.extend((0..3).map(|code| InputEvent::Key { code: KeyCode(code), pressed: true }));
        let sent_at: Vec<u64> = (0..100).filter(|millis| typing.next(start + Duration::from_millis(*millis)).is_some()).collect();
        assert_eq!(sent_at, [0, 12, 24]);
    }

    #[test]
    fn what_is_held_down_is_let_go_once() {
        let mut held = Held::default();
        held.note(&InputEvent::Key { code: KeyCode(42), pressed: true });
        held.note(&InputEvent::Key { code: KeyCode(30), pressed: true });
        held.note(&InputEvent::Key { code: KeyCode(30), pressed: false });
        assert_eq!(held.release(), [InputEvent::Key { code: KeyCode(42), pressed: false }]);
        assert!(held.release().is_empty());
    }
}
