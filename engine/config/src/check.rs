//! Whether a machine can be built here: every problem at once, each with the path of the setting and a sentence that
//! says what is wrong and what would be right.

use std::fmt;
use std::path::{Component, Path};

use crate::{CdDrive, Disk, FloppyDrive, Host, Machine};

/// One thing that keeps a machine from starting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The setting, such as `disks[0].file`.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.path)
    }
}

const MOST_CPUS: u32 = 64;
const MOST_DISKS: usize = 4;
const MOST_FLOPPIES: usize = 2;
/// Letters that a name may have; file systems allow 255 bytes.
const LONGEST_NAME: usize = 60;

/// Everything that keeps `machine`, whose folder is `folder`, from starting on `host`. Looks at files, so call it away
/// from a window's thread.
pub fn check(machine: &Machine, folder: &Path, host: &Host) -> Vec<Problem> {
    // Every field is named, so that a new one cannot be forgotten here.
    let Machine {
        name,
        id: _,
        created: _,
        board: _,
        cpus,
        memory_mib,
        accelerator: _,
        firmware: _,
        video: _,
        disks,
        cdroms,
        floppies,
        lifetime: _,
    } = machine;
    let mut problems = Vec::new();
    let mut report = |path: String, message: String| problems.push(Problem { path, message });

    if let Err(message) = check_name(name) {
        report("name".into(), message);
    }
    for problem in check_size(*cpus, *memory_mib, host) {
        report(problem.path, problem.message);
    }
    if disks.len() + cdroms.len() > MOST_DISKS {
        report(
            "disks".into(),
            format!(
                "The board has room for {MOST_DISKS} disks and CD drives together. Remove {}.",
                disks.len() + cdroms.len() - MOST_DISKS
            ),
        );
    }
    if floppies.len() > MOST_FLOPPIES {
        report("floppies".into(), format!("The board has room for {MOST_FLOPPIES} floppy drives. Remove the others."));
    }
    for (index, Disk { file, format }) in disks.iter().enumerate() {
        if format.is_empty() {
            report(format!("disks[{index}].format"), "The format of this disk is not stated. Write qcow2 or raw.".into());
        }
        if !stays_inside(file) {
            report(
                format!("disks[{index}].file"),
                "A disk's file must lie in the machine's own folder. Move it into disks and write its name relative to the folder."
                    .into(),
            );
        } else if let Err(message) =
            check_file(&folder.join(file), "disk file", "Put it back, or remove the disk from the machine")
        {
            report(format!("disks[{index}].file"), message);
        }
    }
    for (index, CdDrive { medium }) in cdroms.iter().enumerate() {
        if let Some(medium) = medium
            && let Err(message) = check_file(&folder.join(medium), "ISO", "Choose it again, or take it out of the drive")
        {
            report(format!("cdroms[{index}].medium"), message);
        }
    }
    for (index, FloppyDrive { medium }) in floppies.iter().enumerate() {
        if let Some(medium) = medium
            && let Err(message) = check_file(&folder.join(medium), "floppy image", "Choose it again, or take it out of the drive")
        {
            report(format!("floppies[{index}].medium"), message);
        }
    }
    problems
}

/// Whether `cpus` and `memory_mib` can be had from `host`; fast, for checks while a person drags a slider.
pub fn check_size(cpus: u32, memory_mib: u64, host: &Host) -> Vec<Problem> {
    let mut problems = Vec::new();
    if cpus == 0 || cpus > MOST_CPUS {
        let message = format!("A machine has between 1 and {MOST_CPUS} CPUs, not {cpus}.");
        problems.push(Problem { path: "cpus".into(), message });
    }
    if memory_mib == 0 {
        let message = "A machine without memory cannot start. Give it at least 1 MiB.".to_owned();
        problems.push(Problem { path: "memory_mib".into(), message });
    } else if memory_mib > host.memory_mib {
        let message = format!(
            "{} of memory is more than this computer has ({}). Choose at most {}.",
            size_text(memory_mib),
            size_text(host.memory_mib),
            size_text(host.memory_mib / 4 * 3),
        );
        problems.push(Problem { path: "memory_mib".into(), message });
    }
    problems
}

/// Whether a machine may have this name; the name also becomes a folder's.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.trim().is_empty() {
        return Err("The machine needs a name.".into());
    }
    if name.trim() != name {
        return Err("The name begins or ends with a space. Remove it.".into());
    }
    if name.chars().count() > LONGEST_NAME {
        return Err(format!("The name is too long. Use at most {LONGEST_NAME} letters."));
    }
    if name.starts_with('.') {
        return Err("A name that begins with a full stop would hide the machine's folder. Choose another.".into());
    }
    if let Some(letter) = name.chars().find(|letter| *letter == '/' || letter.is_control()) {
        return Err(format!("The name contains {}, which a folder's name cannot. Remove it.", letter.escape_debug()));
    }
    Ok(())
}

/// Whether a relative name stays in its folder.
fn stays_inside(file: &Path) -> bool {
    !file.as_os_str().is_empty()
        && file.components().all(|component| matches!(component, Component::Normal(_) | Component::CurDir))
        && file.file_name().is_some()
}

fn check_file(path: &Path, what: &str, advice: &str) -> Result<(), String> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            Err(format!("A folder stands where the {what} should be. {advice}: {}", path.display()))
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(format!("The {what} is not there any more. {advice}: {}", path.display()))
        }
        Err(error) => Err(format!("The {what} cannot be looked at ({error}). {advice}: {}", path.display())),
    }
}

fn size_text(mib: u64) -> String {
    match mib {
        0..1024 => format!("{mib} MiB"),
        1024..1_048_576 => format!("{:.1} GiB", mib as f64 / 1024.0),
        _ => format!("{:.1} TiB", mib as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host { memory_mib: 16_384, available_mib: 8192, cpus: 8 };

    #[test]
    fn a_fresh_machine_has_no_problems() {
        assert_eq!(check(&Machine::new("Debian 12"), Path::new("/nowhere"), &HOST), []);
    }

    #[test]
    fn ten_tebibytes_of_memory_are_refused_with_what_would_be_right() {
        let mut machine = Machine::new("greedy");
        machine.memory_mib = 10 * 1_048_576;
        let problems = check(&machine, Path::new("/nowhere"), &HOST);
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].path, "memory_mib");
        assert_eq!(problems[0].message, "10.0 TiB of memory is more than this computer has (16.0 GiB). Choose at most 12.0 GiB.");
    }

    #[test]
    fn all_problems_are_reported_at_once_each_with_its_path() {
        let mut machine = Machine::new("a/b");
        machine.cpus = 0;
        machine.disks = vec![
            Disk { file: "../other/disk.qcow2".into(), format: "qcow2".into() },
            Disk { file: "disks/gone.qcow2".into(), format: String::new() },
        ];
        machine.cdroms = vec![CdDrive { medium: Some("/nowhere/at/all.iso".into()) }];
        let paths: Vec<_> = check(&machine, Path::new("/nowhere"), &HOST).into_iter().map(|problem| problem.path).collect();
        assert_eq!(paths, ["name", "cpus", "disks[0].file", "disks[1].format", "disks[1].file", "cdroms[0].medium"]);
    }

    #[test]
    fn a_folder_in_the_place_of_an_iso_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut machine = Machine::new("x");
        machine.cdroms = vec![CdDrive { medium: Some(folder.path().into()) }];
        let problems = check(&machine, folder.path(), &HOST);
        assert!(problems[0].message.starts_with("A folder stands where the ISO should be."), "{}", problems[0]);
    }

    #[test]
    fn names_that_no_folder_can_have_are_refused() {
        for (name, allowed) in [
            ("Debian 12", true),
            ("Ärger & Co.", true),
            ("", false),
            ("  ", false),
            ("a/b", false),
            (".hidden", false),
            ("a\nb", false),
            (" a", false),
        ] {
            assert_eq!(check_name(name).is_ok(), allowed, "{name:?}");
        }
        assert!(check_name(&"x".repeat(61)).is_err());
    }
}
