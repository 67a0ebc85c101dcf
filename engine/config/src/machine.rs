//! What a machine is made of, as a person decides it. Everything but the name has a default, so a file may be short.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One machine, as `machine.ron` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Its name, for people. The folder usually has the same one, but nothing depends on that.
    pub name: String,
    /// Tells it from its copies, and is the computer's UUID that the guest sees.
    #[serde(default = "Uuid::new_v4")]
    pub id: Uuid,
    /// When it was made, in seconds since 1970 UTC.
    #[serde(default)]
    pub created: u64,
    /// The main board.
    #[serde(default)]
    pub board: Board,
    /// Processors.
    #[serde(default = "one")]
    pub cpus: u32,
    /// RAM in MiB.
    #[serde(default = "default_memory_mib")]
    pub memory_mib: u64,
    /// What runs the guest's code.
    #[serde(default)]
    pub accelerator: Accelerator,
    /// What the computer starts with.
    #[serde(default)]
    pub firmware: Firmware,
    /// The video card.
    #[serde(default)]
    pub video: VideoCard,
    /// Hard disks, in the order in which the guest finds them.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// CD drives.
    #[serde(default)]
    pub cdroms: Vec<CdDrive>,
    /// Floppy drives.
    #[serde(default)]
    pub floppies: Vec<FloppyDrive>,
    /// What becomes of the machine when it is switched off.
    #[serde(default)]
    pub lifetime: Lifetime,
}

fn one() -> u32 {
    1
}

fn default_memory_mib() -> u64 {
    1024
}

impl Machine {
    /// A fresh machine of one CPU and 1 GiB, with an empty CD drive.
    pub fn new(name: impl Into<String>) -> Self {
        let created = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self {
            name: name.into(),
            id: Uuid::new_v4(),
            created,
            board: Board::default(),
            cpus: one(),
            memory_mib: default_memory_mib(),
            accelerator: Accelerator::default(),
            firmware: Firmware::default(),
            video: VideoCard::default(),
            disks: Vec::new(),
            cdroms: vec![CdDrive { medium: None }],
            floppies: Vec::new(),
            lifetime: Lifetime::default(),
        }
    }
}

/// The main board. The words are those of the command line's `-M`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Board {
    /// Intel 440FX and PIIX3.
    #[default]
    #[serde(rename = "pc")]
    Pc,
}

/// What runs the guest's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// Our software CPU.
    #[default]
    Software,
    /// The host's KVM; where there is none, the software CPU with the reason named.
    Kvm,
}

/// What the computer starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
}

/// The video card. The words are those of the command line's `-vga`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VideoCard {
    /// Standard VGA with the Bochs extensions.
    #[default]
    Std,
}

/// A hard disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its file, relative to the machine's folder.
    pub file: PathBuf,
    /// The file's format, in the command line's words: `qcow2`, `raw`. Always stated, because guessing the format of a
    /// file that a guest writes lets the guest choose it.
    pub format: String,
}

/// A CD drive.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CdDrive {
    /// The ISO in it: an absolute path, or one relative to the machine's folder.
    #[serde(default)]
    pub medium: Option<PathBuf>,
}

/// A floppy drive.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FloppyDrive {
    /// The image in it: an absolute path, or one relative to the machine's folder.
    #[serde(default)]
    pub medium: Option<PathBuf>,
}

/// What becomes of a machine when it is switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifetime {
    /// It stays until it is deleted.
    #[default]
    Kept,
    /// What the guest writes is thrown away; the machine was made to try something.
    Disposable,
}
