//! *Try a live Linux*: builds the project's small Linux ISO once, then makes a disposable machine for it.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use engine_config::{CdDrive, Lifetime, Machine};
use engine_session::library::{Library, MachineFolder, NewMachine};

use crate::gui::job::Reporter;

const TARGET: &str = "tiny-iso";

/// Where the builder of media lies: beside an installed program, or in the source tree that built it.
pub fn builder() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("BELLGLASS_MEDIA_BUILDER") {
        return Some(PathBuf::from(path)).filter(|path| path.is_file());
    }
    let program = std::env::current_exe().ok();
    let beside = program
        .iter()
        .flat_map(|program| program.ancestors().skip(1))
        .flat_map(|folder| [folder.join("share/bellglass/media/build"), folder.join("tests/media/build")]);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/media/build");
    beside.chain([source]).find(|path| path.is_file())
}

/// Builds the ISO if it is not there, and makes the machine.
///
/// # Errors
/// A sentence: why it did not work.
pub fn make<T: Send + 'static>(builder: &Path, library: &Library, reporter: &Reporter<T>) -> Result<MachineFolder, String> {
    reporter.progress("Looking for the live Linux", None);
    let iso = build(builder, |text, fraction| reporter.progress(text, fraction))?;
    let mut machine = Machine::new(library.free_name("Live Linux"));
    machine.memory_mib = 512;
    machine.lifetime = Lifetime::Disposable;
    machine.cdroms = vec![CdDrive { medium: Some(iso) }];
    library.create(NewMachine { machine, disk_bytes: None }).map_err(|error| error.to_string())
}

fn build(builder: &Path, mut progress: impl FnMut(String, Option<f32>)) -> Result<PathBuf, String> {
    let started = Command::new(builder).arg(TARGET).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = started
        .map_err(|error| format!("The builder of the live Linux could not be started ({error}): {}", builder.display()))?;
    let mut said = String::new();
    if let Some(errors) = child.stderr.take() {
        for line in BufReader::new(errors).lines().map_while(Result::ok) {
            match parse_progress(&line) {
                Some((text, fraction)) => progress(text, Some(fraction)),
                None => said = line,
            }
        }
    }
    // Standard output holds one line, which fits into the pipe, so reading it last cannot block the builder.
    let mut result = String::new();
    if let Some(output) = child.stdout.take() {
        output.take(64 * 1024).read_to_string(&mut result).map_err(|error| error.to_string())?;
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    let iso = PathBuf::from(result.lines().last().unwrap_or_default());
    if status.success() && iso.is_file() {
        return Ok(iso);
    }
    let said = said.trim().trim_start_matches("tests/media/build: ");
    Err(format!("The live Linux could not be built. {said}"))
}

/// `[2/7] Fetching packages` as words and a part of the whole.
fn parse_progress(line: &str) -> Option<(String, f32)> {
    let (count, text) = line.strip_prefix('[')?.split_once("] ")?;
    let (step, steps) = count.split_once('/')?;
    let (step, steps): (f32, f32) = (step.parse().ok()?, steps.parse().ok()?);
    (steps >= 1.0 && step >= 0.0).then(|| (text.to_owned(), ((step - 1.0) / steps).clamp(0.0, 1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn script(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("build");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn the_builders_steps_become_progress_and_its_last_line_the_iso() {
        let folder = tempfile::tempdir().unwrap();
        let iso = folder.path().join("tiny.iso");
        std::fs::write(&iso, "x").unwrap();
        let builder = script(
            folder.path(),
            &format!("echo '[1/2] Fetching' >&2; echo '      note' >&2; echo '[2/2] Packing' >&2; echo {}", iso.display()),
        );
        let mut seen = Vec::new();
        assert_eq!(build(&builder, |text, fraction| seen.push((text, fraction))), Ok(iso));
        assert_eq!(seen, [("Fetching".to_owned(), Some(0.0)), ("Packing".to_owned(), Some(0.5))]);
    }

    #[test]
    fn a_builder_that_fails_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let builder = script(folder.path(), "echo 'tests/media/build: these packages are needed first: xorriso.' >&2; exit 1");
        let reason = build(&builder, |_, _| {}).unwrap_err();
        assert_eq!(reason, "The live Linux could not be built. these packages are needed first: xorriso.");
        assert!(build(&folder.path().join("gone"), |_, _| {}).is_err());
    }
}
