//! Reading and writing `machine.ron`. A file begins with `version`, one integer, and is read by that version's line in
//! [`READERS`]. When the format changes, today's types are copied, frozen, into a file `v1.rs` with a `From` into the new
//! ones, and its line stays; the files in `samples/` must load for ever.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Machine;

/// The version that we write.
pub const CURRENT_VERSION: u32 = 1;

/// Each version that we read.
const READERS: &[(u32, fn(&str) -> Result<Machine, ron::error::SpannedError>)] = &[(1, read_v1)];

/// No honest machine file comes near this.
const LARGEST_FILE: u64 = 256 * 1024;
/// A machine file nests three deep.
const DEEPEST_NESTING: usize = 16;

/// A machine file that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is not there.
    #[error("There is no machine here. Choose a folder that holds a machine.ron: {}", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// The host would not let us.
    #[error("The machine's settings could not be {wanted} ({source}). Check the host's disk and the file's permissions: {}", path.display())]
    Host {
        /// "read" or "written".
        wanted: &'static str,
        /// What the host said.
        source: io::Error,
        /// The file.
        path: PathBuf,
    },
    /// It is no machine file, or a damaged one.
    #[error("The machine's settings are damaged: {detail}. Put back an earlier copy of the file, or correct it in an editor: {}", path.display())]
    Damaged {
        /// What was found, and where.
        detail: String,
        /// The file.
        path: PathBuf,
    },
    /// A newer Bellglass wrote it; reading half of it could lose settings.
    #[error("This machine was last changed by a newer Bellglass (format {found}; this one knows up to {CURRENT_VERSION}). Start it with that version: {}", path.display())]
    Newer {
        /// The version in the file.
        found: u32,
        /// The file.
        path: PathBuf,
    },
}

/// Reads the machine file at `path`.
///
/// # Errors
/// [`FileError`], each a sentence for people.
pub fn load(path: &Path) -> Result<Machine, FileError> {
    let host = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => FileError::NotFound { path: path.to_path_buf() },
        _ => FileError::Host { wanted: "read", source, path: path.to_path_buf() },
    };
    let file = File::open(path).map_err(host)?;
    let mut text = Vec::new();
    file.take(LARGEST_FILE + 1).read_to_end(&mut text).map_err(host)?;
    if text.len() as u64 > LARGEST_FILE {
        let detail = format!("the file is larger than {} KiB", LARGEST_FILE / 1024);
        return Err(FileError::Damaged { detail, path: path.to_path_buf() });
    }
    let text =
        String::from_utf8(text).map_err(|_| FileError::Damaged { detail: "it is not text".into(), path: path.to_path_buf() })?;
    parse(&text, path)
}

/// Reads a machine file's text; `path` is for the message.
///
/// # Errors
/// [`FileError`], each a sentence for people.
pub fn parse(text: &str, path: &Path) -> Result<Machine, FileError> {
    /// All that every version shares.
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let damaged = |error: ron::error::SpannedError| FileError::Damaged {
        detail: format!("line {}, {}", error.span.start.line, error.code),
        path: path.to_path_buf(),
    };
    let Head { version } = ron_options().from_str(text).map_err(damaged)?;
    match READERS.iter().find(|(known, _)| *known == version) {
        Some((_, read)) => read(text).map_err(damaged),
        None if version > CURRENT_VERSION => Err(FileError::Newer { found: version, path: path.to_path_buf() }),
        None => Err(FileError::Damaged { detail: format!("there never was a version {version}"), path: path.to_path_buf() }),
    }
}

fn ron_options() -> ron::Options {
    ron::Options::default().with_recursion_limit(DEEPEST_NESTING)
}

fn read_v1(text: &str) -> Result<Machine, ron::error::SpannedError> {
    let FileV1 { version: _, machine } = ron_options().from_str(text)?;
    Ok(machine)
}

/// What stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileV1 {
    version: u32,
    machine: Machine,
}

/// The text of `machine`'s file, laid out for people to edit.
///
/// # Panics
/// Never: a [`Machine`] is plain data.
pub fn to_ron(machine: &Machine) -> String {
    let layout = ron::ser::PrettyConfig::new().indentor("    ");
    let file = FileV1 { version: CURRENT_VERSION, machine: machine.clone() };
    let text = ron::Options::default().to_string_pretty(&file, layout).expect("plain data always serialises");
    format!("// A Bellglass machine. Names are relative to this folder. Change it while the machine is off.\n{text}\n")
}

/// Writes the machine file: to a temporary file beside it first, which takes its name once it is on the disk.
///
/// # Errors
/// [`FileError::Host`]; the old file is then untouched.
pub fn save(machine: &Machine, path: &Path) -> Result<(), FileError> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{}.unfinished", std::process::id()));
    let unfinished = PathBuf::from(unfinished);
    let result = write_whole(to_ron(machine).as_bytes(), &unfinished, path);
    if result.is_err() {
        std::fs::remove_file(&unfinished).ok(); // The error that counts is on its way; this file is only clutter.
    }
    result.map_err(|source| FileError::Host { wanted: "written", source, path: path.to_path_buf() })
}

fn write_whole(text: &[u8], unfinished: &Path, path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(unfinished)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(unfinished, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Accelerator, CdDrive, Disk, FloppyDrive, Lifetime};
    use proptest::prelude::*;

    #[test]
    fn every_sample_still_loads() {
        let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
        let mut seen = 0;
        for entry in std::fs::read_dir(samples).unwrap() {
            let path = entry.unwrap().path();
            let machine = load(&path).unwrap_or_else(|error| panic!("{error}"));
            assert!(!machine.name.is_empty());
            seen += 1;
        }
        assert!(seen >= 2);
    }

    #[test]
    fn what_a_short_file_leaves_out_has_its_default() {
        let machine = parse("(version: 1, machine: (name: \"short\"))", Path::new("x")).unwrap();
        assert_eq!((machine.cpus, machine.memory_mib, machine.disks.len()), (1, 1024, 0));
    }

    #[test]
    fn a_newer_file_is_refused_unread() {
        let error = parse("(version: 7, machine: (soul: \"yes\"))", Path::new("m/machine.ron")).unwrap_err();
        assert!(matches!(error, FileError::Newer { found: 7, .. }), "{error}");
    }

    #[test]
    fn a_misspelt_setting_is_refused_by_name_and_line() {
        let error = parse("(version: 1,\nmachine: (name: \"x\",\nmemory_mb: 5))", Path::new("x")).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("line 3") && text.contains("memory_mb"), "{text}");
    }

    #[test]
    fn hostile_files_are_refused_quickly() {
        let deep = format!("(version: 1, machine: {}", "(".repeat(100_000));
        assert!(matches!(parse(&deep, Path::new("x")), Err(FileError::Damaged { .. })));
        let folder = tempfile::tempdir().unwrap();
        let large = folder.path().join("large.ron");
        std::fs::write(&large, vec![b' '; LARGEST_FILE as usize + 1]).unwrap();
        assert!(matches!(load(&large), Err(FileError::Damaged { .. })));
        std::fs::write(&large, [0xff, 0xfe, 0x00]).unwrap();
        assert!(matches!(load(&large), Err(FileError::Damaged { .. })));
        assert!(matches!(load(folder.path()), Err(FileError::Host { .. })));
        assert!(matches!(load(Path::new("/nowhere/machine.ron")), Err(FileError::NotFound { .. })));
    }

    #[test]
    fn saving_replaces_the_file_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("machine.ron");
        let mut machine = Machine::new("first");
        save(&machine, &path).unwrap();
        machine.name = "second".into();
        save(&machine, &path).unwrap();
        assert_eq!(load(&path).unwrap(), machine);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_save_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("machine.ron");
        std::fs::create_dir(&path).unwrap(); // A folder cannot be replaced by a file.
        std::fs::write(path.join("inside"), "kept").unwrap();
        assert!(save(&Machine::new("x"), &path).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(std::fs::read_to_string(path.join("inside")).unwrap(), "kept");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            name in ".{0,40}", cpus in any::<u32>(), memory_mib in any::<u64>(), file in "[a-z \"\\\\]{1,9}",
            medium in proptest::option::of("/[a-z äö\"']{1,9}"), choice in any::<bool>(),
        ) {
            let mut machine = Machine::new(name);
            machine.cpus = cpus;
            machine.memory_mib = memory_mib;
            machine.disks.push(Disk { file: file.into(), format: "qcow2".into() });
            machine.cdroms.push(CdDrive { medium: medium.clone().map(Into::into) });
            machine.floppies.push(FloppyDrive { medium: medium.map(Into::into) });
            if choice {
                (machine.accelerator, machine.lifetime) = (Accelerator::Kvm, Lifetime::Disposable);
            }
            prop_assert_eq!(parse(&to_ron(&machine), Path::new("x")).unwrap(), machine);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
            // Whether it is refused is not the point here; that it returns is.
            let _: Result<_, _> = parse(&text, Path::new("x"));
        }
    }
}
