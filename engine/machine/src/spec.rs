//! What computer to build: resolved from a machine file or a command line, with nothing left to guess.

use engine_base::ClockMode;
use engine_bus::{CharPort, DriveRules, Options};
use engine_cpu::{CpuModel, Topology};
use engine_disk::{CacheMode, Format, Passphrase};
use engine_firmware::linux::DirectKernel;
use engine_firmware::pc::BootDevice;
use engine_translator::Tier2Options;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A computer.
pub struct Spec {
    /// Its name, for logs and the monitor.
    pub name: String,
    /// RAM in bytes, a multiple of 1 MiB.
    pub memory_bytes: u64,
    /// Which CPU, and how many.
    pub cpu: CpuModel,
    /// Drives present, with what is in them.
    pub drives: Vec<DriveSpec>,
    /// Boot order.
    pub boot_order: Vec<BootDevice>,
    /// Whether the BIOS offers its boot menu, and for how long.
    pub boot_menu_millis: Option<u16>,
    /// Another BIOS image than the board's own.
    pub bios: Option<String>,
    /// Direct kernel boot.
    pub kernel: Option<DirectKernel>,
    /// Whether there is a display adapter (`-vga std`) or none.
    pub display: Display,
    /// Whether the BIOS uses the first serial port as its console (`-nographic`).
    pub serial_console: bool,
    /// Parts beyond the board's own: `-device isa-debug-exit,iobase=0x501`.
    pub parts: Vec<Part>,
    /// Where serial ports and the debug port lead, by name: `serial0`, `debugcon`. A serial port exists if it leads somewhere.
    pub char_ports: BTreeMap<String, CharPort>,
    /// What drives time.
    pub clock: ClockMode,
    /// Whether hot guest code is translated to host code, or all of it interpreted. (A clock that counts instructions needs the
    /// interpreter.)
    pub translator: bool,
    /// After how many rounds a loop of translated code is compiled once more by the optimising tier; `None`: never.
    pub tier2: Option<u32>,
    /// Bytes of host code that the translator keeps at most; `None`: as many as it thinks fit.
    pub code_bytes: Option<usize>,
    /// For tests: what is rare in the translator's life happens all the time, by this seed. Guests must not notice.
    pub chaos: Option<u64>,
    /// Where a profile of the hottest guest code is written at the end. Taking it costs memory and a little time.
    pub profile: Option<PathBuf>,
    /// Whether `perf` is told which host code is which guest code, by `/tmp/perf-PID.map`.
    pub perf_map: bool,
    /// Sentences for the person that came up on the way here; the machine reports them first of all.
    pub notices: Vec<String>,
}

/// The display adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Display {
    /// Standard VGA.
    StandardVga,
    /// None.
    None,
}

/// A part beyond the board's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The model's id in the device registry.
    pub model: String,
    /// Its options.
    pub options: Options,
}

/// A drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveSpec {
    /// Where it is plugged in.
    pub slot: DriveSlot,
    /// Hard disk, CD-ROM or floppy.
    pub kind: DriveKind,
    /// What is in it.
    pub source: Option<ImageSource>,
}

/// Where a drive is plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DriveSlot {
    /// IDE channel (0, 1) and unit (0 master, 1 slave).
    Ide {
        /// 0 or 1.
        channel: u8,
        /// 0 or 1.
        unit: u8,
    },
    /// Floppy drive 0 or 1.
    Floppy(u8),
}

/// What kind of drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriveKind {
    /// A hard disk.
    Disk,
    /// A CD-ROM.
    Cdrom,
    /// A floppy.
    Floppy,
}

/// An image file and how to use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSource {
    /// The file.
    pub path: PathBuf,
    /// Its format; `None` looks at its signature.
    pub format: Option<Format>,
    /// Whether writes are thrown away at the end.
    pub snapshot: bool,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// How far its writes get before they are acknowledged, and whether the host caches.
    pub cache: CacheMode,
    /// How many bytes of its mapping tables are kept in memory at most, where that is not left to the format.
    pub table_cache_bytes: Option<u64>,
    /// What becomes of discards, zeros and failures.
    pub rules: DriveRules,
    /// What unlocks it, if it is encrypted.
    pub passphrase: Option<Passphrase>,
    /// The file that holds its data, in place of the one that it names.
    pub data_file: Option<PathBuf>,
}

impl ImageSource {
    /// A writable image whose format its signature tells, used as is usual.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: None,
            snapshot: false,
            read_only: false,
            cache: CacheMode::default(),
            table_cache_bytes: None,
            rules: DriveRules::default(),
            passphrase: None,
            data_file: None,
        }
    }
}

impl DriveSlot {
    /// The drive's name on the board, which controllers look for.
    pub fn board_name(self) -> String {
        match self {
            DriveSlot::Ide { channel, unit } => format!("ide{channel}-{unit}"),
            DriveSlot::Floppy(unit) => format!("floppy{unit}"),
        }
    }

    /// The name that QEMU's monitor uses: `ide1-cd0`.
    pub fn monitor_name(self, kind: DriveKind) -> String {
        match (self, kind) {
            (DriveSlot::Ide { channel, unit }, DriveKind::Cdrom) => format!("ide{channel}-cd{unit}"),
            (DriveSlot::Ide { channel, unit }, _) => format!("ide{channel}-hd{unit}"),
            (DriveSlot::Floppy(unit), _) => format!("floppy{unit}"),
        }
    }
}

impl Default for Spec {
    /// A PC with one CPU, 128 MiB and no drives: what `qemu-system-x86_64 -nodefaults` would give.
    fn default() -> Self {
        Self {
            name: "bellglass".to_owned(),
            memory_bytes: 128 << 20,
            cpu: CpuModel {
                name: "default".to_owned(),
                features: Vec::new(),
                topology: Topology { sockets: 1, cores: 1, threads: 1 },
            },
            drives: Vec::new(),
            boot_order: vec![BootDevice::Disk, BootDevice::Cdrom, BootDevice::Floppy],
            boot_menu_millis: None,
            bios: None,
            kernel: None,
            display: Display::StandardVga,
            serial_console: false,
            parts: Vec::new(),
            char_ports: BTreeMap::new(),
            clock: ClockMode::Real,
            translator: true,
            tier2: Some(Tier2Options::default().threshold),
            code_bytes: None,
            chaos: None,
            profile: None,
            perf_map: false,
            notices: Vec::new(),
        }
    }
}
