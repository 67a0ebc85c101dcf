//! Finds BIOS images on the host. They come from the distribution's packages (Debian: `seabios`), so that their fixes
//! reach our machines without a release of ours.

use std::path::{Path, PathBuf};

/// Where distributions put SeaBIOS: Debian's package first, then what QEMU packages carry.
const FOLDERS: [&str; 4] = ["/usr/share/seabios", "/usr/share/qemu", "/usr/share/kvm", "/usr/local/share/qemu"];
/// A folder that goes before all others, for people who build their own firmware.
const OVERRIDE: &str = "BELLGLASS_FIRMWARE";
/// No x86 firmware image is larger.
const MOST_BYTES: u64 = 16 << 20;

/// Firmware could not be had, or a kernel could not be booted.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// Not installed.
    #[error(
        "The firmware file {file} is not on this computer. Install the package “seabios” (on Debian: apt install seabios), or set {OVERRIDE} to the folder that holds it."
    )]
    NotFound {
        /// Its name.
        file: String,
    },
    /// There, but not usable.
    #[error("The file could not be used: {reason}. {advice}: {}", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
}

/// Loads a firmware file by name from the first folder that has it; `-bios` may also name a path.
///
/// # Errors
/// When no folder has it, or it cannot be read.
pub fn load(file: &str) -> Result<Vec<u8>, FirmwareError> {
    let path = if file.contains('/') { PathBuf::from(file) } else { find(file)? };
    read_capped(&path, MOST_BYTES, "Choose another firmware file")
}

fn find(file: &str) -> Result<PathBuf, FirmwareError> {
    let chosen = std::env::var_os(OVERRIDE).map(PathBuf::from);
    let folders = chosen.into_iter().chain(FOLDERS.iter().map(PathBuf::from));
    folders
        .map(|folder| folder.join(file))
        .find(|path| path.is_file())
        .ok_or_else(|| FirmwareError::NotFound { file: file.to_owned() })
}

/// Reads a whole file of at most `most` bytes.
pub(crate) fn read_capped(path: &Path, most: u64, advice: &'static str) -> Result<Vec<u8>, FirmwareError> {
    let unusable = |reason: String| FirmwareError::Unusable { path: path.to_owned(), reason, advice };
    let about = std::fs::metadata(path).map_err(|error| unusable(plain(&error)))?;
    if !about.is_file() {
        return Err(unusable("it is not a file".to_owned()));
    }
    if about.len() > most {
        return Err(unusable(format!("it is larger than {} MiB", most >> 20)));
    }
    std::fs::read(path).map_err(|error| unusable(plain(&error)))
}

fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "you may not read it".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_says_which_package_has_it() {
        let error = load("no-such-bios.bin").unwrap_err();
        assert!(error.to_string().contains("apt install seabios"), "{error}");
    }

    #[test]
    fn a_folder_is_not_a_bios() {
        let error = load("/usr/").unwrap_err();
        assert!(error.to_string().contains("not a file"), "{error}");
    }
}
