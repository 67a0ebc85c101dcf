//! A further hard disk for a machine: a new one, or an image that exists. Disks lie in the machine's own folder, so an image
//! from elsewhere is copied there, with all that it is built on, and stays as it is.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use egui::{DragValue, Ui};
use engine_config::Disk;
use engine_disk::{BackingFiles, CreateOptions, Format, OpenOptions};
use engine_session::library::MachineFolder;
use ui_assets::Icon;

use crate::gui::file_dialog::{FileDialog, Wanted};
use crate::gui::form::{caption_ui, expand_home, file_row_ui, indented, weak};
use crate::gui::job::Job;
use crate::gui::parts::{self, Tone, Weight, finding};

const GIB: u64 = 1 << 30;
const MOST_GIB: u64 = 64 * 1024;

/// The rows in which a disk is described, until it is made or left.
pub struct NewDisk {
    kind: Kind,
    making: Option<Job<Result<Disk, String>>>,
    failure: Option<String>,
}

enum Kind {
    Empty { gib: u64 },
    Existing { path: String, chooser: Option<FileDialog> },
}

/// What has come of it.
pub enum Outcome {
    /// The rows stay.
    Open,
    /// The person has left them.
    Left,
    /// The machine can have this disk.
    Made(Disk),
}

impl NewDisk {
    /// A new, empty disk.
    pub fn empty() -> Self {
        Self { kind: Kind::Empty { gib: 20 }, making: None, failure: None }
    }

    /// A disk that exists.
    pub fn existing() -> Self {
        Self { kind: Kind::Existing { path: String::new(), chooser: None }, making: None, failure: None }
    }

    /// Draws the rows for a disk of the machine in `folder`; `program` copies.
    pub fn ui(&mut self, ui: &mut Ui, folder: &MachineFolder, program: &Path) -> Outcome {
        if let Some(result) = self.making.as_mut().and_then(Job::poll) {
            self.making = None;
            match result.and_then(|result| result) {
                Ok(disk) => return Outcome::Made(disk),
                Err(reason) => self.failure = Some(reason),
            }
        }
        let is_idle = self.making.is_none();
        ui.add_enabled_ui(is_idle, |ui| self.kind.ui(ui));
        if let Some(reason) = &self.failure {
            indented(ui, |ui| finding(ui, Tone::Failure, reason));
        }
        let mut outcome = Outcome::Open;
        indented(ui, |ui| {
            ui.horizontal(|ui| {
                let plan = self.kind.plan().filter(|_| is_idle);
                let add = ui.add_enabled_ui(plan.is_some(), |ui| parts::button(ui, Icon::Check, "Add this disk", Weight::Plain));
                if let (Some(plan), true) = (plan, add.inner.clicked()) {
                    let (folder, program) = (folder.path().to_path_buf(), program.to_path_buf());
                    self.failure = None;
                    self.making = Some(Job::start(ui.ctx(), "new-disk", move |_| plan.carry_out(&folder, &program)));
                }
                if is_idle && ui.button("Leave it").clicked() {
                    outcome = Outcome::Left;
                }
                if !is_idle {
                    ui.spinner();
                    weak(ui, "The disk is being made.");
                }
            });
        });
        outcome
    }
}

impl Kind {
    fn ui(&mut self, ui: &mut Ui) {
        match self {
            Kind::Empty { gib } => {
                ui.horizontal(|ui| {
                    let label = caption_ui(ui, "New disk");
                    ui.add(DragValue::new(gib).range(1..=MOST_GIB).suffix(" GiB")).labelled_by(label.id);
                    weak(ui, "It takes space on this computer as the guest fills it.");
                });
            }
            Kind::Existing { path, chooser } => {
                if let Some(chosen) = FileDialog::follow(chooser) {
                    *path = chosen.display().to_string();
                }
                file_row_ui(ui, "Disk image", path, chooser, "/path/to/disk.qcow2", Wanted::Image);
                indented(ui, |ui| {
                    FileDialog::hint_ui(chooser, ui);
                    weak(ui, "The machine gets a copy in its own folder. The image stays as it is.");
                });
            }
        }
    }

    fn plan(&self) -> Option<Plan> {
        match self {
            Kind::Empty { gib } => Some(Plan::Make(gib * GIB)),
            Kind::Existing { path, .. } if path.trim().is_empty() => None,
            Kind::Existing { path, .. } => Some(Plan::Take(expand_home(path.trim()))),
        }
    }
}

/// What is to be done.
enum Plan {
    /// An empty disk of so many bytes.
    Make(u64),
    /// The content of this image.
    Take(PathBuf),
}

impl Plan {
    /// Does it in the folder of a machine.
    fn carry_out(self, folder: &Path, program: &Path) -> Result<Disk, String> {
        match self {
            Plan::Make(size) => {
                let file = free_name(folder)?;
                engine_disk::create(&folder.join(&file), &CreateOptions::new(Format::Qcow2, size))
                    .map_err(|error| error.to_string())?;
                Ok(disk(file, Format::Qcow2))
            }
            Plan::Take(image) => take(&image, folder, program),
        }
    }
}

fn disk(file: PathBuf, format: Format) -> Disk {
    Disk { file, format: format.name().to_owned() }
}

/// A name for a disk that nothing has yet, relative to the machine's folder.
fn free_name(folder: &Path) -> Result<PathBuf, String> {
    let disks = Path::new("disks");
    std::fs::create_dir_all(folder.join(disks)).map_err(|error| format!("The folder for disks could not be made: {error}."))?;
    let mut names = (1..10_000).map(|number| disks.join(format!("disk {number}.qcow2")));
    let is_free = |name: &PathBuf| !folder.join(name).exists() && !folder.join(name).with_extension("unfinished").exists();
    names.find(is_free).ok_or_else(|| "The machine's folder has too many disks.".to_owned())
}

/// Gives the machine an image: as it is where it lies in the machine's folder already, else as a copy.
fn take(image: &Path, folder: &Path, program: &Path) -> Result<Disk, String> {
    let format = match engine_disk::probe(image).map_err(|error| error.to_string())? {
        Some(Format::Iso) => return Err("This is a CD or DVD. Put it into a CD drive instead.".to_owned()),
        format => format.unwrap_or(Format::Raw),
    };
    if let Ok(inside) = image.strip_prefix(folder) {
        return Ok(disk(inside.to_path_buf(), format));
    }
    let look = OpenOptions { format: Some(format), backing_files: BackingFiles::LeftOut, ..OpenOptions::read_only(image) };
    if engine_disk::open(&look).map_err(|error| error.to_string())?.info().encrypted {
        return Err(format!(
            "This image is encrypted. Copy it into the machine's folder yourself, so that it stays so, and choose the copy: {}",
            folder.join("disks").display()
        ));
    }
    let file = free_name(folder)?;
    let (finished, unfinished) = (folder.join(&file), folder.join(&file).with_extension("unfinished"));
    let copied = Command::new(program)
        .args(["img", "convert", "-q", "-t", "writeback", "-f", format.name(), "-O", Format::Qcow2.name()])
        .arg(image)
        .arg(&unfinished)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("The program could not be started ({error}): {}", program.display()))
        .and_then(|output| match output.status.success() {
            true => std::fs::rename(&unfinished, &finished).map_err(|error| error.to_string()),
            false => Err(String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned()),
        });
    if let Err(reason) = copied {
        std::fs::remove_file(&unfinished).ok(); // Nothing may have been made.
        return Err(format!("The image could not be copied. {reason}"));
    }
    Ok(disk(file, Format::Qcow2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_made_taken_where_it_is_or_refused_with_advice() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("machine");
        let program = Path::new("/nowhere/program");
        let make = |plan: Plan| plan.carry_out(&folder, program);
        let first = make(Plan::Make(GIB)).unwrap();
        assert_eq!((first.file.to_str(), first.format.as_str()), (Some("disks/disk 1.qcow2"), "qcow2"));
        assert_eq!(make(Plan::Make(GIB)).unwrap().file, Path::new("disks/disk 2.qcow2"));
        assert_eq!(make(Plan::Take(folder.join("disks/disk 1.qcow2"))).unwrap(), first, "what is there is not copied");
        let outside = home.path().join("disk.img");
        std::fs::write(&outside, [1; 1024]).unwrap();
        assert!(make(Plan::Take(outside.clone())).unwrap_err().contains("/nowhere/program"));
        let mut disc = vec![0; 20 * 2048];
        disc[16 * 2048..][..7].copy_from_slice(b"\x01CD001\x01");
        std::fs::write(&outside, &disc).unwrap();
        assert!(make(Plan::Take(outside)).unwrap_err().contains("CD drive"));
        assert_eq!(std::fs::read_dir(folder.join("disks")).unwrap().count(), 2, "no half copy is left");
    }
}
