//! Opens what goes into a drive.

use crate::spec::{DriveKind, ImageSource};
use engine_bus::Medium;
use engine_disk::{Access, DiskError, DiskImage, Format, OpenOptions, ProbedRaw};

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

/// Opens an image for a drive of `kind`. A CD-ROM is only ever read, and is an ISO unless a format is stated. One that was
/// not downloaded whole is refused, since its guest would fail in the middle; whoever states `raw` gets what is there.
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
        flushing: source.cache.flushing,
        host_cache: source.cache.host_cache,
        table_cache_bytes: source.table_cache_bytes,
        passphrase: source.passphrase.clone(),
        data_file: source.data_file.clone(),
        ..OpenOptions::new(&source.path)
    };
    let image = engine_disk::open(&options)?;
    if kind == DriveKind::Cdrom && source.format.is_none() {
        refuse_half_a_disc(&*image, source)?;
    }
    Ok(Medium { image, read_only, title: source.path.display().to_string(), rules: source.rules })
}

/// The volume descriptors of a disc lie in its seventeenth block and behind it (ECMA-119, 6.2.1).
const LEAST_DISC_BYTES: u64 = 17 * 2048;

fn refuse_half_a_disc(image: &dyn DiskImage, source: &ImageSource) -> Result<(), MediaError> {
    let too_short = || "The file is too short to be a CD or DVD image. Download it again.".to_owned();
    let warning = image.warnings().into_iter().next();
    match warning.or_else(|| (image.len() < LEAST_DISC_BYTES).then(too_short)) {
        Some(sentence) => Err(MediaError::Refused(format!("{}: {}", sentence.trim_end_matches('.'), source.path.display()))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cd(path: &std::path::Path, format: Option<Format>) -> Result<Medium, MediaError> {
        open_medium(&ImageSource { format, read_only: true, ..ImageSource::new(path) }, DriveKind::Cdrom)
    }

    #[test]
    fn half_a_disc_is_refused_unless_it_is_said_to_be_raw() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("half.iso");
        // A primary volume descriptor of a disc of 1000 blocks, in a file of 20.
        let mut bytes = vec![0; 20 * 2048];
        bytes[16 * 2048..][..7].copy_from_slice(b"\x01CD001\x01");
        bytes[16 * 2048 + 80..][..8].copy_from_slice(&[0xe8, 3, 0, 0, 0, 0, 3, 0xe8]);
        bytes[16 * 2048 + 128..][..4].copy_from_slice(&[0, 8, 8, 0]);
        std::fs::write(&path, &bytes).unwrap();
        let refusal = cd(&path, None).err().unwrap().to_string();
        assert!(refusal.contains("98 %") && refusal.ends_with("half.iso"), "{refusal}");
        assert!(cd(&path, Some(Format::Raw)).is_ok());
        std::fs::write(&path, [0; 1000]).unwrap();
        assert!(cd(&path, None).err().unwrap().to_string().contains("too short"));
        bytes[16 * 2048 + 80..][..8].copy_from_slice(&[20, 0, 0, 0, 0, 0, 0, 20]);
        std::fs::write(&path, &bytes).unwrap();
        assert!(cd(&path, None).is_ok());
    }
}
