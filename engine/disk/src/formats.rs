//! The disk formats, one line each. A new format is its own file, a variant, and a line in [`DRIVERS`].

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::block_file::{Access, BlockFile};
use crate::check::{CheckReport, Repair};
use crate::image::DiskImage;
use crate::open::{Chain, CreateOptions};
use crate::{DiskError, Passphrase, ProbedRaw, iso, luks, qcow2, raw, vdi, vhd, vhdx, vmdk};

/// A disk format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// The bytes of the disk, one after the other.
    Raw,
    /// QEMU's growing disk.
    Qcow2,
    /// VirtualBox's disk.
    Vdi,
    /// VMware's disk.
    Vmdk,
    /// The disk of Virtual PC and older Hyper-V.
    Vhd,
    /// Hyper-V's disk.
    Vhdx,
    /// A raw disk that is encrypted.
    Luks,
    /// A CD or DVD image; read-only.
    Iso,
}

/// Writes an empty disk into an empty file.
pub(crate) type WriteEmpty = fn(&dyn BlockFile, &CreateOptions) -> Result<(), DiskError>;

/// Checks a file, and repairs what it is told to.
pub(crate) type CheckFile = fn(Arc<dyn BlockFile>, Repair) -> Result<CheckReport, DiskError>;

/// What a format can do; the table below has one for each.
pub(crate) struct Driver {
    pub(crate) format: Format,
    /// The word for it on command lines and in machine files.
    pub(crate) name: &'static str,
    /// What people call it in a sentence.
    pub(crate) title: &'static str,
    /// Whether the first [`HEAD_LENGTH`] bytes of a file carry this format's signature.
    pub(crate) recognise: fn(head: &[u8]) -> bool,
    pub(crate) open: fn(Opening<'_>) -> Result<Arc<dyn DiskImage>, DiskError>,
    /// `None` where we do not make such files.
    pub(crate) create: Option<WriteEmpty>,
    /// `None` where there is nothing to check.
    pub(crate) check: Option<CheckFile>,
    /// Whether files of this format can be written to.
    pub(crate) writable: bool,
    /// Whether files of this format can hold snapshots.
    pub(crate) has_snapshots: bool,
}

/// All that a format needs to open a file. The file is locked already.
pub(crate) struct Opening<'a> {
    pub(crate) file: Arc<dyn BlockFile>,
    pub(crate) access: Access,
    /// `Guarded` when raw was only guessed.
    pub(crate) first_sector: ProbedRaw,
    /// The id or name of the snapshot that is to be read instead of the disk as it is now.
    pub(crate) internal_snapshot: Option<&'a str>,
    /// What unlocks it, if it is encrypted.
    pub(crate) passphrase: Option<&'a Passphrase>,
    /// Opens base images.
    pub(crate) chain: &'a Chain,
}

#[cfg(test)]
impl<'a> Opening<'a> {
    /// Of a file whose format somebody stated.
    pub(crate) fn of(file: Arc<dyn BlockFile>, access: Access, chain: &'a Chain) -> Self {
        Self { file, access, first_sector: ProbedRaw::Stated, internal_snapshot: None, passphrase: None, chain }
    }
}

/// How much of a file [`Driver::recognise`] is shown: up to and with the first volume descriptor of an ISO.
pub(crate) const HEAD_LENGTH: usize = 0x8800;

pub(crate) static DRIVERS: &[Driver] =
    &[raw::DRIVER, qcow2::DRIVER, vdi::DRIVER, vmdk::DRIVER, vhd::DRIVER, vhdx::DRIVER, luks::DRIVER, iso::DRIVER];

impl Format {
    pub(crate) fn driver(self) -> &'static Driver {
        // Every variant has its line; the test below keeps that true.
        DRIVERS.iter().find(|driver| driver.format == self).unwrap_or(&DRIVERS[0])
    }

    /// The word for this format on command lines and in machine files.
    pub fn name(self) -> &'static str {
        self.driver().name
    }

    /// All formats, in the order in which they are offered.
    pub fn all() -> impl Iterator<Item = Format> {
        DRIVERS.iter().map(|driver| driver.format)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A word that names no format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("There is no disk format \"{0}\". Use one of: {known}", known = Format::all().map(Format::name).collect::<Vec<_>>().join(", "))]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        DRIVERS.iter().find(|driver| driver.name == name).map(|driver| driver.format).ok_or_else(|| UnknownFormat(name.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_its_own_line() {
        for format in Format::all() {
            assert_eq!(format.driver().format, format);
            assert_eq!(format.name().parse(), Ok(format));
        }
        let error = "vhdz".parse::<Format>().unwrap_err().to_string();
        assert!(error.contains("raw, qcow2, vdi"), "{error}");
    }
}
