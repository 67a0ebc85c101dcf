//! A machine's settings, on one page. There is no "OK": what is right is saved as soon as it is entered, what is wrong is
//! told beside the field and not saved, and *Undo* takes the last change back. A machine that runs keeps what it has; its
//! new settings count from its next start.

use std::path::PathBuf;

use egui::{Key, KeyboardShortcut, Modifiers, TextEdit, Ui};
use engine_config::{CdDrive, Host, Machine, check, check_name};
use engine_session::library::MachineFolder;
use ui_assets::Icon;

use super::new_disk::{self, NewDisk};
use super::scan::Status;
use crate::gui::file_dialog::FileDialog;
use crate::gui::form::{caption_ui, expand_home, indented, iso_row_ui, page_ui, size_findings_ui, size_rows_ui, weak};
use crate::gui::job::Job;
use crate::gui::parts::{self, Tone, Weight, finding};

const UNDO: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND, Key::Z);
/// Changes that can be taken back.
const MOST_UNDONE: usize = 50;

/// Whether the page stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// It is still open.
    Open,
    /// The person is done.
    Done,
}

/// The page and what has been entered.
pub struct Settings {
    folder: MachineFolder,
    host: Host,
    /// What copies images.
    program: PathBuf,
    /// As the file has it.
    saved: Machine,
    /// As the page shows it.
    edited: Machine,
    /// What is in each CD drive, as entered.
    media: Vec<String>,
    choosers: Vec<Option<FileDialog>>,
    /// A disk that is being added.
    new_disk: Option<NewDisk>,
    before: Vec<Machine>,
    /// What is saved next is an earlier state.
    going_back: bool,
    /// *Done* was clicked, and something is still to be saved.
    leaving: bool,
    saving: Option<(Machine, Job<Result<(), String>>)>,
    /// What was refused, and why.
    refused: Option<(Machine, String)>,
}

impl Settings {
    /// The settings of the machine in `folder`; `program` copies images for it.
    pub fn new(folder: MachineFolder, machine: Machine, host: Host, program: PathBuf) -> Self {
        Self {
            folder,
            host,
            program,
            new_disk: None,
            media: media_of(&machine),
            choosers: machine.cdroms.iter().map(|_| None).collect(),
            edited: machine.clone(),
            saved: machine,
            before: Vec::new(),
            going_back: false,
            leaving: false,
            saving: None,
            refused: None,
        }
    }

    /// Whose settings they are.
    pub fn folder(&self) -> &MachineFolder {
        &self.folder
    }

    /// Draws the page.
    pub fn page_ui(&mut self, ui: &mut Ui, status: &Status) -> Page {
        let mut done = false;
        self.follow(ui);
        page_ui(ui, &format!("Settings of {}", self.saved.name), |ui| {
            if *status != Status::Off {
                parts::banner(ui, Tone::Note, "The machine is on.", "What is changed here counts from its next start.", |_| {});
            }
            parts::card(ui, |ui| self.name_ui(ui));
            parts::card(ui, |ui| {
                size_rows_ui(ui, &self.host, &mut self.edited.cpus, &mut self.edited.memory_mib);
                indented(ui, |ui| size_findings_ui(ui, &self.host, self.edited.cpus, self.edited.memory_mib));
            });
            parts::card(ui, |ui| self.drives_ui(ui));
            if let Some(reason) = self.refusal() {
                parts::banner(ui, Tone::Failure, "This was not saved.", reason, |_| {});
            }
            done = self.buttons_ui(ui);
        });
        // Who has read why a change was refused, and leaves, leaves it behind.
        if done && self.refusal().is_some() {
            return Page::Done;
        }
        self.leaving |= done;
        // While a slider is dragged or a field typed into, the change is not finished.
        let editing = ui.ctx().egui_wants_keyboard_input() || ui.input(|input| input.pointer.any_down());
        if !editing || self.leaving {
            self.save(ui.ctx());
        }
        if self.leaving && self.saving.is_none() && self.edited == self.saved { Page::Done } else { Page::Open }
    }

    /// Why what the page shows was not saved.
    fn refusal(&self) -> Option<&str> {
        self.refused.as_ref().filter(|(machine, _)| *machine == self.edited).map(|(_, reason)| reason.as_str())
    }

    fn name_ui(&mut self, ui: &mut Ui) {
        ui.horizontal(|ui| {
            let label = caption_ui(ui, "Name");
            let width = ui.available_width();
            ui.add(TextEdit::singleline(&mut self.edited.name).desired_width(width).char_limit(80)).labelled_by(label.id);
        });
        indented(ui, |ui| match check_name(&self.edited.name) {
            Err(reason) => finding(ui, Tone::Failure, &reason),
            Ok(()) => weak(ui, &format!("Its folder keeps its name: {}", self.folder.path().display())),
        });
    }

    fn drives_ui(&mut self, ui: &mut Ui) {
        for (index, (medium, chooser)) in self.media.iter_mut().zip(&mut self.choosers).enumerate() {
            let caption = if index == 0 { "CD drive".to_owned() } else { format!("CD drive {}", index + 1) };
            iso_row_ui(ui, &caption, medium, chooser, "Empty");
            indented(ui, |ui| FileDialog::hint_ui(chooser, ui));
            let path = medium.trim();
            if let Some(drive) = self.edited.cdroms.get_mut(index) {
                drive.medium = (!path.is_empty()).then(|| expand_home(path));
            }
        }
        let mut removed = None;
        for (index, disk) in self.edited.disks.iter().enumerate() {
            ui.horizontal(|ui| {
                caption_ui(ui, "Hard disk");
                ui.add(egui::Label::new(disk.file.display().to_string()).truncate().selectable(true));
                weak(ui, &disk.format);
                let remove = parts::button(ui, Icon::Eject, "Remove", Weight::Quiet);
                if remove.on_hover_text("The machine loses this disk; its file stays in the machine's folder").clicked() {
                    removed = Some(index);
                }
            });
        }
        if let Some(index) = removed {
            self.edited.disks.remove(index);
        }
        self.new_disk_ui(ui);
        if self.edited.disks.len() + self.edited.cdroms.len() < 4 && self.new_disk.is_none() {
            ui.horizontal_wrapped(|ui| {
                if parts::button(ui, Icon::Plus, "Add a new disk", Weight::Quiet).clicked() {
                    self.new_disk = Some(NewDisk::empty());
                }
                if parts::button(ui, Icon::Plus, "Add an existing disk", Weight::Quiet).clicked() {
                    self.new_disk = Some(NewDisk::existing());
                }
                let add = parts::button(ui, Icon::Plus, "Add a CD drive", Weight::Quiet);
                if add.on_hover_text("An empty one; put an ISO in here or while it runs").clicked() {
                    self.edited.cdroms.push(CdDrive { medium: None });
                    self.media.push(String::new());
                    self.choosers.push(None);
                }
            });
        }
    }

    fn new_disk_ui(&mut self, ui: &mut Ui) {
        let Some(new_disk) = &mut self.new_disk else { return };
        match new_disk.ui(ui, &self.folder, &self.program) {
            new_disk::Outcome::Open => {}
            new_disk::Outcome::Left => self.new_disk = None,
            new_disk::Outcome::Made(disk) => {
                self.edited.disks.push(disk);
                self.new_disk = None;
            }
        }
    }

    /// Whether *Done* was clicked.
    fn buttons_ui(&mut self, ui: &mut Ui) -> bool {
        let mut done = false;
        ui.add_space(4.0);
        let row = egui::vec2(ui.available_width(), ui.spacing().interact_size.y);
        ui.allocate_ui_with_layout(row, egui::Layout::right_to_left(egui::Align::Center), |ui| {
            let escaped = ui.input(|input| input.key_pressed(Key::Escape));
            done = parts::button(ui, Icon::Check, "Done", Weight::Primary).clicked() || escaped;
            let undoable = self.edited != self.saved || !self.before.is_empty();
            let undo = ui.add_enabled_ui(undoable, |ui| parts::button(ui, Icon::Reset, "Undo", Weight::Plain)).inner;
            let by_key = !ui.ctx().egui_wants_keyboard_input() && ui.input_mut(|input| input.consume_shortcut(&UNDO));
            if undo.on_hover_text("Take the last change back (Ctrl+Z)").clicked() || (by_key && undoable) {
                self.undo();
            }
            match (&self.saving, self.edited == self.saved) {
                (Some(_), _) => weak(ui, "Saving…"),
                (None, true) => weak(ui, "Changes are saved as you make them."),
                (None, false) => weak(ui, "Not saved yet."),
            }
        });
        done
    }

    fn undo(&mut self) {
        // First what was not saved, then what was.
        self.going_back = self.edited == self.saved;
        let earlier = if self.going_back { self.before.pop() } else { Some(self.saved.clone()) };
        if let Some(earlier) = earlier {
            self.edited = earlier;
            self.media = media_of(&self.edited);
            self.choosers.resize_with(self.media.len(), || None);
            self.refused = None;
        }
    }

    fn follow(&mut self, ui: &Ui) {
        for (medium, chooser) in self.media.iter_mut().zip(&mut self.choosers) {
            if let Some(path) = FileDialog::follow(chooser) {
                *medium = path.display().to_string();
                ui.ctx().request_repaint();
            }
        }
        let Some((machine, job)) = &mut self.saving else { return };
        let Some(result) = job.poll() else { return };
        match result.and_then(|result| result) {
            Ok(()) => {
                let was = std::mem::replace(&mut self.saved, machine.clone());
                // Going back is not a change of its own.
                if !std::mem::take(&mut self.going_back) {
                    self.before.push(was);
                    let surplus = self.before.len().saturating_sub(MOST_UNDONE);
                    self.before.drain(..surplus);
                }
            }
            Err(reason) => {
                self.refused = Some((machine.clone(), reason));
                self.leaving = false;
            }
        }
        self.saving = None;
    }

    /// Writes what is new; files are looked at, so on a thread.
    fn save(&mut self, ctx: &egui::Context) {
        if self.edited == self.saved || self.saving.is_some() || self.refusal().is_some() {
            return;
        }
        let (machine, folder, host) = (self.edited.clone(), self.folder.clone(), self.host);
        let job = Job::start(ctx, "save-settings", move |_| {
            let problems: Vec<String> =
                check(&machine, folder.path(), &host).into_iter().map(|problem| problem.message).collect();
            if problems.is_empty() { folder.save(&machine).map_err(|error| error.to_string()) } else { Err(problems.join("\n")) }
        });
        self.saving = Some((self.edited.clone(), job));
    }
}

fn media_of(machine: &Machine) -> Vec<String> {
    let text = |path: &PathBuf| path.display().to_string();
    machine.cdroms.iter().map(|drive| drive.medium.as_ref().map_or_else(String::new, text)).collect()
}
