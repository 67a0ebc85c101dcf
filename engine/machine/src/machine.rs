//! A running computer: its threads, and what may be asked of it from outside.
//!
//! Pause is a type: [`Machine::pause`] gives a [`Paused`], on which alone CPUs can be looked at and the machine reset.
//! What devices ask (reset, shutdown) never happens on the asking stack: it goes through `vm-control`'s queue.
//! Ending is explicit and ordered: CPUs park, timers stop, drives finish what was asked and flush, threads are joined.

use crate::board::Board;
use crate::gate::{Gate, Pass};
use crate::media::{MediaError, open_medium};
use crate::pc::{self, Pc};
use crate::spec::{DriveKind, DriveSlot, ImageSource, Spec};
use crate::{MemoryRegionInfo, PciFunctionInfo};
use engine_base::{Clock, ClockMode, PanicReport, VmTime, spawn_guarded};
use engine_bus::{
    Backplane, BuildError, DeviceCell, Drive, DriveError, DriveServer, Medium, MessageSender, Power, PowerRequest, RequestFate,
    ResetKind,
};
use engine_cpu::{ApicMessage, CpuBackend, CpuError, CpuIo, CpuState, Exit, Kicker, Section, Vcpu};
use engine_display::Screen;
use engine_firmware::FirmwareError;
use engine_input::{InputEvent, KeyboardLeds};
use engine_memory::{Contents, GuestMemory, MemoryError};
use engine_translator::{Chaos, Interpreter, Tier2Options, TranslatorOptions, WatchOptions};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the display is drawn while somebody watches.
const FRAME: Duration = Duration::from_millis(16);
/// How often `vm-screen` looks whether somebody watches.
const UNWATCHED: Duration = Duration::from_millis(100);

/// A machine could not be built or started.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The BIOS or the kernel.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    /// RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A part's options.
    #[error(transparent)]
    Part(#[from] BuildError),
    /// The CPU.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// A drive's image.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// No such model in the registry.
    #[error("There is no device called {id}. “-device help” lists those that exist.")]
    NoSuchPart {
        /// What was asked for.
        id: String,
    },
    /// A BIOS image of impossible size.
    #[error("The firmware file is {len} bytes long, but must be a multiple of 64 KiB. Choose another one: {name}")]
    BiosSize {
        /// Its name.
        name: String,
        /// Its size.
        len: u64,
    },
    /// More than the host has.
    #[error(
        "The machine asks for {wanted_mib} MiB of memory, but this computer has {host_mib} MiB. Give the machine less memory."
    )]
    TooMuchMemory {
        /// Asked for.
        wanted_mib: u64,
        /// There.
        host_mib: u64,
    },
    /// The host refused a thread.
    #[error("This computer could not start another thread ({0}). Close other programs and try again.")]
    Thread(#[from] std::io::Error),
}

/// Whether the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// Built, never started.
    Prelaunch,
    /// Running.
    Running,
    /// Paused by somebody.
    Paused,
    /// The guest switched itself off.
    Shutdown,
    /// Something broke; the reason was reported.
    Failed,
}

/// What a machine reports, on its own threads: take note and return.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The run state changed.
    State(RunState),
    /// The guest resets; `vm-control` does it next unless the owner ends the machine.
    ResetRequested,
    /// It was reset.
    Reset {
        /// By whom.
        by: ResetBy,
    },
    /// The guest switched itself off. The machine is paused.
    Shutdown,
    /// The guest asked for sleep, which is not there yet; it goes on running.
    SuspendRefused,
    /// `isa-debug-exit`. The machine is paused.
    Exit(i32),
    /// The host could not read or write a drive's image.
    DriveError {
        /// The drive's monitor name.
        drive: String,
        /// How.
        error: DriveError,
        /// Whether it waits for the machine to be resumed.
        fate: RequestFate,
    },
    /// A medium went in or out.
    MediumChanged {
        /// The drive's monitor name.
        drive: String,
    },
    /// A tray opened or closed, moved by the guest or by a person.
    TrayMoved {
        /// The drive's monitor name.
        drive: String,
        /// Whether it is open now.
        open: bool,
    },
    /// The guest switched the keyboard's lamps.
    KeyboardLeds(KeyboardLeds),
    /// A sentence for people that needs no action, such as what an image warns of.
    Notice(String),
    /// A thread broke; the machine is paused.
    Failed(String),
}

/// Who reset a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResetBy {
    /// The guest, or its CPUs by a triple fault.
    Guest,
    /// Somebody outside.
    Person,
}

/// What `vm-control` is asked for, one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Control {
    /// By a device.
    Power(PowerRequest),
    /// A thread broke: the machine is to stand still.
    Broken,
    /// No more is to come.
    End,
}

/// Whether to override the guest's wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// Respect a locked door.
    Polite,
    /// Like the pin hole.
    Forced,
}

/// A medium could not be taken out or put in.
#[derive(Debug, thiserror::Error)]
pub enum EjectError {
    /// No such drive.
    #[error("The machine has no drive called {0}.")]
    NoSuchDrive(String),
    /// A hard disk.
    #[error("{0} is not a drive with removable media.")]
    NotRemovable(String),
    /// The guest holds it.
    #[error("The guest has locked the drive {0}. Eject the medium in the guest first, or force it.")]
    Locked(String),
    /// The new medium could not be opened.
    #[error(transparent)]
    Media(#[from] MediaError),
}

/// A drive, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveInfo {
    /// Its monitor name: `ide1-cd0`.
    pub name: String,
    /// What kind it is.
    pub kind: DriveKind,
    /// The medium's file, when there is one: in the drive, or in its open tray.
    pub medium: Option<String>,
    /// The medium's format: `raw`, `qcow2`.
    pub format: Option<String>,
    /// Whether the guest can write.
    pub read_only: bool,
    /// Whether the guest has locked the door.
    pub locked: bool,
    /// Whether the tray is open: the guest reads nothing then.
    pub tray_open: bool,
    /// Bytes on the medium.
    pub len: u64,
    /// Requests so far: it counts up while the drive works.
    pub transfers: u64,
}

/// A computer; dropping it ends it like pulling the plug, but with its drives flushed.
pub struct Machine {
    core: Arc<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Core {
    name: String,
    plane: Backplane,
    pc: Pc,
    board: Board,
    backend: Arc<dyn CpuBackend>,
    vcpus: Vec<VcpuSeat>,
    drives: Vec<(DriveSlot, DriveKind, Drive)>,
    gate: Gate,
    /// Where a profile goes at the end.
    profile: Option<PathBuf>,
    run: Mutex<RunState>,
    control: Mutex<Sender<Control>>,
    ending: AtomicBool,
    events: Arc<dyn Fn(MachineEvent) + Send + Sync>,
}

struct VcpuSeat {
    /// Held by its thread while it runs.
    vcpu: Mutex<Box<dyn Vcpu>>,
    kicker: Kicker,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

impl Machine {
    /// Builds the computer and its threads; it stands at its first instruction until [`Machine::resume`].
    ///
    /// # Errors
    /// When a part, an image, the firmware or memory cannot be had; nothing is left behind then.
    pub fn build(spec: &Spec, events: impl Fn(MachineEvent) + Send + Sync + 'static) -> Result<Self, MachineError> {
        check_host_memory(spec.memory_bytes)?;
        let events: Arc<dyn Fn(MachineEvent) + Send + Sync> = Arc::new(events);
        spec.notices.iter().for_each(|notice| events(MachineEvent::Notice(notice.clone())));
        let clock = Clock::new(spec.clock, VmTime::ZERO);
        let memory = GuestMemory::new();
        let backend_slot: Arc<OnceLock<Arc<dyn CpuBackend>>> = Arc::default();
        let (control, control_queue) = channel();
        let power = {
            let control = Mutex::new(control.clone());
            // When vm-control is gone the machine ends anyway.
            Power::new(move |request| {
                lock(&control).send(Control::Power(request)).ok();
            })
        };
        let messages = {
            let backend = Arc::clone(&backend_slot);
            MessageSender::new(move |message| {
                if let (Some(backend), Some(message)) = (backend.get(), ApicMessage::from_msi(message.address, message.data)) {
                    backend.signal(message);
                }
            })
        };
        let mut plane = Backplane::new(memory.clone(), clock.clone(), power, messages);
        plane.char_ports = spec.char_ports.clone();
        let (drives, servers) = make_drives(spec, &mut plane, &events)?;
        let pc = pc::build(spec, &mut plane)?;
        plane.leds.listen({
            let events = Arc::clone(&events);
            move |leds| events(MachineEvent::KeyboardLeds(leds))
        });

        let cpus = spec.cpu.topology.cpus();
        let backend: Arc<dyn CpuBackend> = Arc::new(if spec.translator {
            let watch = WatchOptions { profile: spec.profile.is_some(), perf_map: spec.perf_map };
            let tier2 = spec.tier2.map(|threshold| Tier2Options { threshold, ..Tier2Options::default() });
            let defaults = TranslatorOptions::default();
            let chaos = spec.chaos.map(Chaos::of_guests);
            let usual = if chaos.is_some() { Chaos::CODE_BYTES_OF_GUESTS } else { defaults.code_bytes };
            let code_bytes = spec.code_bytes.unwrap_or(usual);
            Interpreter::translating(memory, TranslatorOptions { tier2, watch, chaos, code_bytes, ..defaults })
        } else {
            Interpreter::new(memory)
        });
        backend_slot.set(Arc::clone(&backend)).ok(); // A fresh slot: nobody else sets it.
        connect_cpu_wires(&plane, &backend);
        let board = Board::new(
            plane.router.clone(),
            plane.timers.clone(),
            cpus,
            &backend_slot,
            Arc::clone(&pc.pic),
            Arc::clone(&pc.ioapic),
            plane.wires.drive("isa-irq13"),
        );
        let vcpus = (0..cpus)
            .map(|index| {
                let vcpu = backend.create_vcpu(index, &spec.cpu)?;
                Ok(VcpuSeat { kicker: vcpu.kicker(), vcpu: Mutex::new(vcpu) })
            })
            .collect::<Result<Vec<_>, CpuError>>()?;
        let core = Arc::new(Core {
            name: spec.name.clone(),
            plane,
            pc,
            board,
            backend,
            gate: Gate::new(vcpus.len()),
            profile: spec.profile.clone(),
            vcpus,
            drives,
            run: Mutex::new(RunState::Prelaunch),
            control: Mutex::new(control),
            ending: AtomicBool::new(false),
            events,
        });
        let machine = Self { core, threads: Mutex::default() };
        machine.start_threads(control_queue, servers)?;
        Ok(machine)
    }

    fn start_threads(&self, control: Receiver<Control>, servers: Vec<(DriveKind, DriveServer)>) -> Result<(), MachineError> {
        let mut threads = lock(&self.threads);
        let mut spawn = |name: String, body: Box<dyn FnOnce(&Core) + Send>| {
            let (core, broken) = (Arc::clone(&self.core), Arc::downgrade(&self.core));
            let thread = spawn_guarded(
                name,
                move || body(&core),
                move |report| {
                    if let Some(core) = broken.upgrade() {
                        core.thread_broke(&report);
                    }
                },
            )?;
            threads.push(thread);
            Ok::<_, MachineError>(())
        };
        for index in 0..self.core.vcpus.len() {
            spawn(format!("vm-cpu{index}"), Box::new(move |core| core.run_vcpu(index)))?;
        }
        for (index, (kind, server)) in servers.into_iter().enumerate() {
            // Only hard disks are ever asked for several things at once.
            let lanes = if kind == DriveKind::Disk { REQUESTS_UNDER_WAY } else { 1 };
            for lane in 0..lanes {
                let server = server.clone();
                spawn(format!("vm-disk{index}.{lane}"), Box::new(move |_| server.serve()))?;
            }
        }
        if self.core.plane.timers.clock().mode() == ClockMode::Real {
            spawn("vm-clock".to_owned(), Box::new(Core::run_timers))?;
        }
        if self.core.pc.screen.is_some() {
            spawn("vm-screen".to_owned(), Box::new(Core::run_screen))?;
        }
        spawn("vm-control".to_owned(), Box::new(move |core| core.run_control(&control)))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// Which backend runs the CPUs.
    pub fn backend_name(&self) -> &'static str {
        self.core.backend.name()
    }

    /// What the CPUs' backend has done so far, for people.
    pub fn statistics(&self) -> Vec<Section> {
        self.core.backend.statistics()
    }

    /// The hottest guest code so far, as text. `None`: no profile is being taken ([`Spec::profile`]).
    pub fn profile(&self) -> Option<String> {
        self.core.backend.profile()
    }

    /// How many CPUs it has.
    pub fn cpus(&self) -> usize {
        self.core.vcpus.len()
    }

    /// Whether it runs.
    pub fn state(&self) -> RunState {
        *lock(&self.core.run)
    }

    /// Lets it run. Nothing happens when it runs already or can run no more.
    pub fn resume(&self) {
        let mut run = lock(&self.core.run);
        if matches!(*run, RunState::Prelaunch | RunState::Paused) {
            for (_, _, drive) in &self.core.drives {
                drive.retry();
            }
            self.core.open_gate();
            self.core.set_state(&mut run, RunState::Running);
        }
    }

    /// Pauses it until [`Machine::resume`].
    pub fn stop(&self) {
        self.core.stop_as(RunState::Paused);
    }

    /// Pauses it for as long as the returned value lives.
    pub fn pause(&self) -> Paused<'_> {
        Paused::new(&self.core)
    }

    /// Resets it, running or not. A machine that had switched itself off stands at its first instruction then.
    pub fn reset(&self) {
        self.pause().reset(ResetBy::Person);
    }

    /// Presses the power button: the guest may shut itself down.
    pub fn press_power_button(&self) {
        if let Some(cell) = &self.core.pc.power_button
            && let Some(button) = cell.lock().as_power_button()
        {
            button.press();
        }
    }

    /// The guest's display.
    pub fn screen(&self) -> Screen {
        self.core.plane.screen.clone()
    }

    /// Draws the display now, so that a picture taken next is the latest.
    pub fn draw_screen(&self) {
        self.core.draw_screen();
    }

    /// One input event to whichever part wants it; `false` when none does.
    pub fn input(&self, event: &InputEvent) -> bool {
        self.core.pc.inputs.iter().any(|cell| {
            let mut device = cell.lock();
            let Some(sink) = device.as_input().filter(|sink| sink.wants(event)) else { return false };
            sink.input(event);
            true
        })
    }

    /// Whether the guest has set up an absolute pointer, so that no grab is needed.
    pub fn pointer_is_absolute(&self) -> bool {
        let event = InputEvent::PointerAt { x: 0, y: 0 };
        self.core.pc.inputs.iter().any(|cell| cell.lock().as_input().is_some_and(|sink| sink.wants(&event)))
    }

    /// Its drives.
    pub fn drives(&self) -> Vec<DriveInfo> {
        let describe = |(slot, kind, drive): &(DriveSlot, DriveKind, Drive)| {
            let medium = drive.medium();
            DriveInfo {
                name: slot.monitor_name(*kind),
                kind: *kind,
                format: medium.as_ref().map(|medium| medium.image.format().to_string()),
                read_only: medium.as_ref().is_some_and(|medium| medium.read_only || medium.image.read_only()),
                locked: drive.is_locked(),
                tray_open: drive.is_tray_open(),
                len: drive.len(),
                transfers: drive.transfers(),
                medium: medium.map(|medium| medium.title),
            }
        };
        self.core.drives.iter().map(describe).collect()
    }

    fn removable(&self, name: &str) -> Result<(&Drive, DriveKind), EjectError> {
        let found = self.core.drives.iter().find(|(slot, kind, _)| slot.monitor_name(*kind) == name);
        let (_, kind, drive) = found.ok_or_else(|| EjectError::NoSuchDrive(name.to_owned()))?;
        if *kind == DriveKind::Disk {
            return Err(EjectError::NotRemovable(name.to_owned()));
        }
        Ok((drive, *kind))
    }

    /// Takes a medium out; the tray of a CD drive stays open. A guest that has locked it is told that somebody wants it out.
    ///
    /// # Errors
    /// When there is no such drive, its medium is fixed, or the guest has locked it.
    pub fn eject(&self, name: &str, force: Force) -> Result<(), EjectError> {
        let (drive, kind) = self.removable(name)?;
        if drive.is_locked() && force == Force::Polite {
            drive.want_eject();
            return Err(EjectError::Locked(name.to_owned()));
        }
        drive.set_locked(false);
        if kind == DriveKind::Cdrom {
            drive.set_tray_open(true);
        }
        drive.set_medium(None);
        (self.core.events)(MachineEvent::MediumChanged { drive: name.to_owned() });
        Ok(())
    }

    /// Puts a medium in, in place of the one that is there.
    ///
    /// # Errors
    /// As for [`Machine::eject`], or when the file cannot be opened: then the old medium stays.
    pub fn insert(&self, name: &str, source: &ImageSource, force: Force) -> Result<(), EjectError> {
        let (drive, kind) = self.removable(name)?;
        let medium = open_medium(source, kind)?;
        tell_warnings(&medium, &*self.core.events);
        if drive.medium().is_some() && drive.is_locked() && force == Force::Polite {
            drive.want_eject();
            return Err(EjectError::Locked(name.to_owned()));
        }
        drive.set_locked(false);
        if kind == DriveKind::Cdrom {
            drive.set_tray_open(true);
        }
        drive.set_medium(Some(medium));
        drive.set_tray_open(false);
        (self.core.events)(MachineEvent::MediumChanged { drive: name.to_owned() });
        Ok(())
    }

    /// Guest-physical memory, for the monitor.
    pub fn memory(&self) -> &GuestMemory {
        &self.core.plane.memory
    }

    /// Guest time.
    pub fn now(&self) -> VmTime {
        self.core.plane.timers.clock().now()
    }

    /// What answers where, by address: memory first, then ports.
    pub fn memory_map(&self) -> (Vec<MemoryRegionInfo>, Vec<MemoryRegionInfo>) {
        let mut memory: Vec<_> = self
            .core
            .plane
            .memory
            .layers()
            .into_iter()
            .map(|layer| MemoryRegionInfo {
                first: layer.base,
                last: layer.base + layer.len - 1,
                kind: match layer.contents {
                    Contents::Ram(..) => "ram",
                    Contents::Rom(..) => "rom",
                    Contents::Split { .. } => "shadow",
                    Contents::Device => "i/o",
                },
                name: layer.name,
            })
            .collect();
        memory.sort_by_key(|region| region.first);
        let claims = self.core.plane.router.claims().into_iter().filter(|(space, ..)| space == "io");
        let mut ports: Vec<_> =
            claims.map(|(_, first, last, name)| MemoryRegionInfo { first, last, kind: "i/o", name }).collect();
        ports.sort_by_key(|region| region.first);
        (memory, ports)
    }

    /// The PCI functions.
    pub fn pci_functions(&self) -> Vec<PciFunctionInfo> {
        let describe = |(at, cell): (engine_bus::PciAddress, Arc<DeviceCell>)| {
            let mut device = cell.lock();
            let config = device.as_pci()?.config();
            let identifiers = config.dword(0);
            Some(PciFunctionInfo {
                device: at.device,
                function: at.function,
                vendor: identifiers as u16,
                id: (identifiers >> 16) as u16,
                class: config.dword(8) >> 8,
                name: cell.name().to_owned(),
            })
        };
        self.core.plane.router.pci_functions().into_iter().filter_map(describe).collect()
    }

    /// Ends it: CPUs park, drives finish and flush, threads are joined. Calling it again does nothing.
    pub fn end(&self) {
        if self.core.ending.swap(true, Ordering::AcqRel) {
            return;
        }
        let kick = || self.core.vcpus.iter().for_each(|seat| seat.kicker.kick());
        self.core.gate.close(kick);
        self.core.gate.end();
        kick();
        self.core.plane.timers.clock().pause();
        self.core.plane.timers.nudge();
        for (_, _, drive) in &self.core.drives {
            drive.drain();
            if let Some(medium) = drive.medium().filter(|medium| !medium.read_only && !medium.image.read_only())
                && let Err(error) = medium.image.flush()
            {
                tracing::error!(%error, image = medium.title, "the image could not be flushed at the end");
                let drive = drive.name().to_owned();
                (self.core.events)(MachineEvent::DriveError { drive, error: DriveError::Io, fate: RequestFate::Answered });
            }
            drive.close();
        }
        lock(&self.core.control).send(Control::End).ok(); // vm-control may be the one that is gone.
        let me = std::thread::current().id();
        for thread in lock(&self.threads).drain(..).filter(|thread| thread.thread().id() != me) {
            thread.join().ok(); // A panic was reported when it happened.
        }
        if let (Some(path), Some(profile)) = (&self.core.profile, self.profile())
            && let Err(error) = std::fs::write(path, profile)
        {
            tracing::error!(%error, path = %path.display(), "the profile could not be written");
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

/// A machine that stands still. When it was running before, it runs again when this is dropped.
pub struct Paused<'a> {
    core: &'a Core,
    run: MutexGuard<'a, RunState>,
}

impl<'a> Paused<'a> {
    fn new(core: &'a Core) -> Self {
        let run = lock(&core.run);
        if *run == RunState::Running {
            core.close_gate();
        }
        Self { core, run }
    }

    /// The state of CPU `index`.
    ///
    /// # Errors
    /// When there is no such CPU, or the backend cannot tell.
    pub fn cpu_state(&self, index: usize) -> Result<CpuState, CpuError> {
        let seat = self.core.vcpus.get(index).ok_or_else(|| CpuError::State(format!("there is no CPU {index}")))?;
        lock(&seat.vcpu).state()
    }

    /// Guest instructions retired by all CPUs.
    pub fn retired_instructions(&self) -> u64 {
        self.core.vcpus.iter().map(|seat| lock(&seat.vcpu).retired_instructions()).sum()
    }

    /// The RESET line.
    pub fn reset(&mut self, by: ResetBy) {
        for (_, _, drive) in &self.core.drives {
            // A write that found no room belonged to the guest before the reset.
            drive.give_up();
            drive.drain();
        }
        for cell in self.core.plane.devices() {
            cell.lock().reset(ResetKind::System);
        }
        self.core.plane.router.set_config_address(0);
        self.core.plane.router.rebuild();
        for seat in &self.core.vcpus {
            lock(&seat.vcpu).reset();
        }
        self.core.gate.note_reset();
        if matches!(*self.run, RunState::Shutdown | RunState::Failed) {
            self.core.set_state(&mut self.run, RunState::Paused);
        }
        (self.core.events)(MachineEvent::Reset { by });
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if *self.run == RunState::Running {
            self.core.open_gate();
        }
    }
}

impl Core {
    fn set_state(&self, run: &mut RunState, state: RunState) {
        if *run != state {
            *run = state;
            (self.events)(MachineEvent::State(state));
        }
    }

    fn open_gate(&self) {
        self.plane.timers.clock().resume();
        self.plane.timers.nudge();
        self.gate.open();
    }

    fn close_gate(&self) {
        self.gate.close(|| self.vcpus.iter().for_each(|seat| seat.kicker.kick()));
        self.plane.timers.clock().pause();
        self.plane.timers.nudge();
    }

    fn stop_as(&self, state: RunState) {
        let mut run = lock(&self.run);
        if *run == RunState::Running {
            self.close_gate();
        }
        if matches!(*run, RunState::Running | RunState::Prelaunch) || state == RunState::Failed {
            self.set_state(&mut run, state);
        }
    }

    fn run_vcpu(&self, index: usize) {
        let seat = &self.vcpus[index];
        while self.gate.pass() == Pass::Run {
            let exit = lock(&seat.vcpu).run(&self.board as &dyn CpuIo);
            let pass = match exit {
                Exit::Kicked => continue,
                Exit::TripleFault => {
                    tracing::info!(cpu = index, "triple fault");
                    self.plane.power.request(PowerRequest::Reset);
                    self.gate.pass_after_reset()
                }
                Exit::Failed(reason) => {
                    (self.events)(MachineEvent::Failed(format!("CPU {index} cannot go on: {reason}")));
                    self.ask(Control::Broken);
                    self.gate.pass_after_reset()
                }
            };
            if pass == Pass::End {
                break;
            }
        }
        self.gate.leave();
    }

    fn run_timers(&self) {
        while !self.ending.load(Ordering::Acquire) {
            self.plane.timers.wait(Duration::from_secs(60));
            self.plane.timers.fire_due();
        }
    }

    fn run_screen(&self) {
        while !self.ending.load(Ordering::Acquire) {
            if self.plane.screen.is_watched() {
                self.draw_screen();
                std::thread::sleep(FRAME);
            } else {
                std::thread::sleep(UNWATCHED);
            }
        }
    }

    fn draw_screen(&self) {
        if let Some(cell) = &self.pc.screen
            && let Some(source) = cell.lock().as_screen()
        {
            source.draw(&self.plane.screen, false);
        }
    }

    fn run_control(&self, queue: &Receiver<Control>) {
        for request in queue {
            match request {
                Control::End => return,
                Control::Broken => self.stop_as(RunState::Failed),
                Control::Power(PowerRequest::Reset) => {
                    (self.events)(MachineEvent::ResetRequested);
                    if !self.ending.load(Ordering::Acquire) {
                        Paused::new(self).reset(ResetBy::Guest);
                    }
                }
                Control::Power(PowerRequest::Shutdown) => {
                    self.stop_as(RunState::Shutdown);
                    (self.events)(MachineEvent::Shutdown);
                }
                Control::Power(PowerRequest::Exit(status)) => {
                    self.stop_as(RunState::Shutdown);
                    (self.events)(MachineEvent::Exit(status));
                }
                Control::Power(PowerRequest::Suspend) => (self.events)(MachineEvent::SuspendRefused),
            }
        }
    }

    fn ask(&self, request: Control) {
        lock(&self.control).send(request).ok(); // Without vm-control the machine is ending.
    }

    fn thread_broke(&self, report: &PanicReport) {
        (self.events)(MachineEvent::Failed(format!("The thread {} stopped: {}", report.thread, report.message)));
        if report.thread.starts_with("vm-cpu") {
            self.gate.leave();
        }
        self.ask(Control::Broken);
    }
}

fn check_host_memory(wanted: u64) -> Result<(), MachineError> {
    let about = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = about.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let host_kib: Option<u64> = total.and_then(|rest| rest.trim().split(' ').next()?.parse().ok());
    match host_kib {
        Some(host_kib) if wanted / 1024 > host_kib => {
            Err(MachineError::TooMuchMemory { wanted_mib: wanted >> 20, host_mib: host_kib >> 10 })
        }
        _ => Ok(()),
    }
}

/// So many requests to one hard disk are carried out side by side.
const REQUESTS_UNDER_WAY: usize = 4;

type Drives = Vec<(DriveSlot, DriveKind, Drive)>;

fn make_drives(
    spec: &Spec,
    plane: &mut Backplane,
    tell: &Arc<dyn Fn(MachineEvent) + Send + Sync>,
) -> Result<(Drives, Vec<(DriveKind, DriveServer)>), MachineError> {
    let mut drives = Vec::new();
    let mut servers = Vec::new();
    for wanted in &spec.drives {
        let (drive, server) = Drive::new(wanted.slot.board_name());
        if let Some(source) = &wanted.source {
            let medium = open_medium(source, wanted.kind)?;
            tell_warnings(&medium, &**tell);
            drive.set_medium(Some(medium));
        }
        let (events, name) = (Arc::clone(tell), wanted.slot.monitor_name(wanted.kind));
        drive.on_error(move |_, error, fate| events(MachineEvent::DriveError { drive: name.clone(), error, fate }));
        let (events, name) = (Arc::clone(tell), wanted.slot.monitor_name(wanted.kind));
        drive.on_tray(move |open| events(MachineEvent::TrayMoved { drive: name.clone(), open }));
        if spec.clock == ClockMode::Real {
            servers.push((wanted.kind, server));
        } else {
            drive.serve_in_place(&plane.timers);
        }
        plane.drives.insert(wanted.slot.board_name(), drive.clone());
        drives.push((wanted.slot, wanted.kind, drive));
    }
    Ok((drives, servers))
}

/// A truncated ISO can be read as far as it goes; the person should know why it stops there.
fn tell_warnings(medium: &Medium, events: &dyn Fn(MachineEvent)) {
    for warning in medium.image.warnings() {
        let sentence = warning.trim_end_matches('.');
        events(MachineEvent::Notice(format!("{sentence}: {}", medium.title)));
    }
}

fn connect_cpu_wires(plane: &Backplane, backend: &Arc<dyn CpuBackend>) {
    let to_backend = |wire: &str, set: fn(&dyn CpuBackend, bool)| {
        let backend = Arc::clone(backend);
        plane.wires.listen(wire, move |high| set(&*backend, high));
    };
    to_backend("cpu-intr", |backend, high| backend.set_intr(high));
    to_backend("cpu-nmi", |backend, high| backend.set_nmi(high));
    to_backend("a20", |backend, high| backend.set_a20(high));
}
