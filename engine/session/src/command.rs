//! Everything a front end can ask of a running machine, and everything a machine tells. Closed enums of plain data: a
//! question carries its own typed [`Reply`], so nobody has to match answers to questions.

use std::path::PathBuf;

use engine_base::Reply;
use engine_cpu::{CpuState, Section};
use engine_display::Picture;
use engine_input::{InputEvent, KeyboardLeds};
use engine_machine::{DriveInfo, MemoryRegionInfo, PciFunctionInfo, ResetBy};
use serde::{Deserialize, Serialize};

/// Something a front end asks for. Legal in every state; what makes no sense just now is ignored or answered with a reason.
#[derive(Debug)]
pub enum Command {
    /// A key, button or pointer event for the guest.
    Input(InputEvent),
    /// Every key and button that is down goes up: the window lost the keyboard.
    ReleaseAllKeys,
    /// Guest time stands still.
    Pause,
    /// Guest time goes on.
    Resume,
    /// The reset button.
    Reset,
    /// The power button: the guest is asked, through ACPI, to shut down.
    PowerButton,
    /// A person pulls the plug in the window; disks are flushed.
    PowerOff,
    /// The same, asked for by the monitor or QMP (`quit`).
    Quit,
    /// The same, because the host asked this process to end.
    EndOnSignal,
    /// Puts a medium into a removable drive, replacing what is in it.
    InsertMedium {
        /// The drive's name, such as `cdrom`.
        drive: String,
        /// The medium's file.
        path: PathBuf,
        /// Whether it is in, or a sentence why not.
        reply: Reply<Result<(), String>>,
    },
    /// Takes the medium out of a removable drive.
    EjectMedium {
        /// The drive's name.
        drive: String,
        /// What to do where the guest has locked the tray.
        force: Force,
        /// Whether it is out, or a sentence why not.
        reply: Reply<Result<(), String>>,
    },
    /// Types text as keystrokes of a US keyboard.
    TypeText {
        /// The text.
        text: String,
        /// How many characters were typed, or a sentence why none was.
        reply: Reply<Result<usize, String>>,
    },
    /// The picture as it is now, for screenshots.
    TakePicture {
        /// The picture.
        reply: Reply<Picture>,
    },
    /// The registers of a CPU. The machine stands still while they are read.
    ReadCpu {
        /// Which, from 0.
        cpu: usize,
        /// Its state, or a sentence why not.
        reply: Reply<Result<Box<CpuState>, String>>,
    },
    /// Bytes of the guest's memory.
    ReadMemory {
        /// What the address means.
        space: AddressSpace,
        /// The first byte's address.
        address: u64,
        /// How many bytes, at most [`MOST_MEMORY_READ`].
        len: usize,
        /// The bytes, or a sentence why not.
        reply: Reply<Result<Vec<u8>, String>>,
    },
    /// Answered once everything asked before has been done and reported: `stop`, then this, and the machine stands.
    Settle {
        /// The answer.
        reply: Reply<()>,
    },
    /// What the CPUs' backend has done so far: `info jit`.
    ReadStatistics {
        /// Headings with figures under them.
        reply: Reply<Vec<Section>>,
    },
    /// The hottest guest code so far.
    TakeProfile {
        /// The profile as text; nothing when none is being taken.
        reply: Reply<Option<String>>,
    },
    /// What answers where.
    DescribeBoard {
        /// The description.
        reply: Reply<BoardDescription>,
    },
}

/// The most bytes that one [`Command::ReadMemory`] may ask for.
pub const MOST_MEMORY_READ: usize = 1 << 20;

/// What an address in [`Command::ReadMemory`] means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressSpace {
    /// A guest-physical address.
    Physical,
    /// A linear address under the page tables of this CPU.
    Linear {
        /// Which CPU, from 0.
        cpu: usize,
    },
}

/// The machine's board, for the monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoardDescription {
    /// How many CPUs there are.
    pub cpus: usize,
    /// Memory and memory-mapped devices, by address.
    pub memory: Vec<MemoryRegionInfo>,
    /// I/O ports, by address.
    pub ports: Vec<MemoryRegionInfo>,
    /// PCI functions on bus 0.
    pub pci: Vec<PciFunctionInfo>,
    /// The drives in full.
    pub drives: Vec<DriveInfo>,
    /// Guest instructions retired, where the backend counts them.
    pub retired_instructions: u64,
    /// Guest time since power-on, in nanoseconds.
    pub guest_nanos: u64,
}

/// What ejecting does about a guest that holds the tray shut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Force {
    /// The guest decides.
    RespectLock,
    /// The paper clip.
    OverrideLock,
}

/// Something the machine tells every front end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It is in another state now.
    StateChanged(RunState),
    /// A removable drive holds another medium now, or none that the guest could read.
    MediumChanged {
        /// The drive's name.
        drive: String,
        /// The medium's name for people.
        title: Option<String>,
    },
    /// The light of a drive went on or off.
    DriveLights,
    /// A CD drive's tray opened or closed, moved by the guest or by a person.
    TrayMoved {
        /// The drive's name.
        drive: String,
        /// Whether it is open now.
        open: bool,
    },
    /// The guest switched the keyboard's lamps.
    KeyboardLeds(KeyboardLeds),
    /// Something worth a line, that needs no action.
    Notice {
        /// A sentence.
        text: String,
    },
    /// Something went wrong.
    Failed {
        /// What happened: a sentence.
        what: String,
        /// What the person can do: a sentence.
        advice: String,
    },
    /// The machine was reset.
    Reset {
        /// By whom.
        by: ResetBy,
    },
    /// The guest switched itself off; next the machine ends, or stands still if it was told to stay.
    GuestShutdown,
    /// The machine is gone; nothing follows.
    Ended(EndReason),
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// Being built.
    Starting,
    /// Guest time passes.
    Running,
    /// Guest time stands still.
    Paused,
    /// The power button was pressed and the guest has not finished yet; guest time passes.
    ShuttingDown,
    /// Gone, as intended.
    Ended,
    /// Stopped by a failure; the picture stays.
    Failed,
}

/// Why guest time stands still in [`RunState::Paused`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PauseReason {
    /// It was never let go (`-S`).
    NotStarted,
    /// Somebody paused it.
    Asked,
    /// The guest switched itself off and the machine was told to stay (`-no-shutdown`). Only a reset brings it back.
    GuestOff,
    /// The host's disk is full or failed; what was held back is tried again on resume.
    HostDisk,
}

/// Why a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndReason {
    /// The guest switched the computer off.
    GuestPoweredOff,
    /// A person pulled the plug.
    PoweredOff,
    /// The monitor or QMP did (`quit`).
    Quit,
    /// The host asked this process to end.
    Signal,
    /// It was to be reset, but is to end instead (`-no-reboot`).
    Reset(ResetBy),
    /// The guest asked the process to end with this exit status (`isa-debug-exit`).
    DebugExit(i32),
    /// It could not go on; an [`Event::Failed`] said why.
    Failed,
}
