//! What the manager does to machines: starting their processes, asking them over QMP, throwing them away. All of it
//! takes time, so all of it runs on threads; what fails comes back as a sentence.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use engine_remote::{ClientError, QmpClient};
use engine_session::library::MachineFolder;
use serde_json::json;

use crate::gui::form::Secret;
use crate::gui::vm::call_window;

/// Starts the machine's process and waits for its end, which may be far away: run it on a thread of its own. It gets the
/// passphrases of its encrypted disks through a pipe.
///
/// # Errors
/// When it cannot start, or ends with an error: what it said.
pub fn run_process(program: &Path, folder: &MachineFolder, passphrases: &[Secret]) -> Result<(), String> {
    let log_path = folder.log_folder().join("last-run.log");
    let log = fs::create_dir_all(folder.log_folder())
        .and_then(|()| File::options().read(true).write(true).create(true).truncate(true).open(&log_path))
        .and_then(|log| Ok((log.try_clone()?, log)));
    let (out, log) = log.map_err(|error| {
        format!(
            "The machine's log could not be written ({error}). Check the free space and the permissions there: {}",
            log_path.display()
        )
    })?;
    // A group of its own: Ctrl+C in the manager's terminal, or the manager's end, is not the machine's.
    let started = Command::new(program)
        .arg("run")
        .arg(folder.path())
        .args((!passphrases.is_empty()).then_some("--passphrases-on-stdin"))
        .stdin(if passphrases.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(out)
        .stderr(log.try_clone().map_err(|error| error.to_string())?)
        .process_group(0)
        .spawn();
    let mut child = started.map_err(|error| {
        format!("The machine's process could not be started ({error}). Install Bellglass again: {}", program.display())
    })?;
    if let Some(mut pipe) = child.stdin.take() {
        let lines: String = passphrases.iter().flat_map(|secret| [secret.0.as_str(), "\n"]).collect();
        pipe.write_all(lines.as_bytes()).ok(); // A process that hangs up says why itself.
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if status.success() {
        return Ok(());
    }
    let said = last_words(log).unwrap_or_default();
    Err(match said.trim() {
        "" => format!("Its process ended ({status}). The log may say more: {}", log_path.display()),
        said => said.to_owned(),
    })
}

/// What a process said about its end: the last lines of ours, without the program's name.
fn last_words(mut log: File) -> io::Result<String> {
    const MOST: u64 = 4096;
    let end = log.seek(SeekFrom::End(0))?;
    log.seek(SeekFrom::Start(end.saturating_sub(MOST)))?;
    let mut bytes = Vec::new();
    log.take(MOST).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let ours: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("bellglass: ")).collect();
    let from = ours.len().saturating_sub(3);
    Ok(ours[from..].join("\n"))
}

/// Brings the machine's window to the front.
///
/// # Errors
/// A sentence.
pub fn show(folder: &MachineFolder) -> Result<(), String> {
    call_window(folder)
        .map_err(|_| "This machine has no window: it was started without one. It can be stopped from here.".to_owned())
}

/// Tells a running machine to do something.
///
/// # Errors
/// A sentence.
pub fn tell(folder: &MachineFolder, command: &str) -> Result<(), String> {
    let refused = |error: ClientError| format!("The machine did not follow. {error}");
    let mut machine = QmpClient::connect(&folder.control_socket()).map_err(refused)?;
    match machine.execute(command, json!({})) {
        Ok(_) => Ok(()),
        // A machine that ends may hang up before its answer has left.
        Err(ClientError::Unreachable { .. }) if command == "quit" => Ok(()),
        Err(error) => Err(refused(error)),
    }
}

/// The program to start machines with: this one.
pub fn this_program() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("bellglass"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_config::Machine;
    use engine_session::library::{Library, NewMachine};
    use std::os::unix::fs::PermissionsExt as _;

    fn machine() -> (tempfile::TempDir, MachineFolder) {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::at(folder.path().join("machines"), folder.path().join("run"));
        let made = library.create(NewMachine { machine: Machine::new("x"), disk_bytes: None }).unwrap();
        (folder, made)
    }

    fn program(folder: &Path, script: &str) -> PathBuf {
        let path = folder.join("program");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_machine_that_cannot_start_tells_what_it_said() {
        let (folder, machine) = machine();
        let script = "echo noise >&2; echo 'bellglass: The ISO is not there any more. Choose it again.' >&2; exit 1";
        let said = run_process(&program(folder.path(), script), &machine, &[]).unwrap_err();
        assert_eq!(said, "The ISO is not there any more. Choose it again.");
    }

    #[test]
    fn a_machine_that_dies_without_a_word_is_told_of_with_its_log() {
        let (folder, machine) = machine();
        let said = run_process(&program(folder.path(), "kill -9 $$"), &machine, &[]).unwrap_err();
        assert!(said.contains("last-run.log"), "{said}");
        assert_eq!(run_process(&program(folder.path(), "exit 0"), &machine, &[]), Ok(()));
    }

    #[test]
    fn passphrases_go_through_a_pipe_and_stand_in_no_list_of_processes() {
        let (folder, machine) = machine();
        let script = "read first; read second; echo \"bellglass: $* $first $second\" >&2; exit 1";
        let passphrases = ["one", "two words"].map(|word| Secret(word.into()));
        let said = run_process(&program(folder.path(), script), &machine, &passphrases).unwrap_err();
        assert!(said.starts_with("run /") && said.ends_with("--passphrases-on-stdin one two words"), "{said}");
    }

    #[test]
    fn a_machine_that_is_off_cannot_be_told_anything() {
        let (_folder, machine) = machine();
        assert!(tell(&machine, "stop").unwrap_err().starts_with("The machine did not follow"));
        assert!(show(&machine).is_err());
    }
}
