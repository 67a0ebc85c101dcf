//! Opens what goes into a drive.

use crate::spec::{DriveKind, ImageSource};
use engine_bus::Medium;
use engine_disk::{Access, DiskError, Format, OpenOptions, ProbedRaw};

/// A medium could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// The disk crate says why.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The person or the system stood in the way.
    #[error("{0}")]
    Refused(String),
}

/// Opens an image for a drive of `kind`. A CD-ROM is only ever read, and is an ISO unless a format is stated.
///
/// # Errors
/// When the file is missing, damaged, in use, or not what the drive takes.
pub fn open_medium(source: &ImageSource, kind: DriveKind) -> Result<Medium, MediaError> {
    let read_only = source.read_only || kind == DriveKind::Cdrom;
    let format = match (kind, source.format) {
        (DriveKind::Cdrom, None | Some(Format::Raw)) => Some(Format::Iso),
        (_, format) => format,
    };
    let options = OpenOptions {
        format,
        access: if read_only { Access::ReadOnly } else { Access::ReadWrite },
        snapshot: source.snapshot && !read_only,
        probed_raw: if source.format == Some(Format::Raw) { ProbedRaw::Stated } else { ProbedRaw::Guarded },
        ..OpenOptions::new(&source.path)
    };
    let image = engine_disk::open(&options)?;
    Ok(Medium { image, read_only, title: source.path.display().to_string() })
}
