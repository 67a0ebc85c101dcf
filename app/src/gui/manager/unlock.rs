//! The question for the passphrases of a machine that is about to start. They are tried before anything starts, so that a
//! wrong one is told where it was typed, and handed to the machine's process alone.

use egui::{Context, Key, Ui};
use engine_disk::Passphrase;
use engine_session::library::MachineFolder;
use ui_assets::Icon;

use crate::gui::form::{Secret, indented, secret_row_ui, weak};
use crate::gui::job::Job;
use crate::gui::parts::{self, Tone, Weight, finding};
use crate::machine_process::{LockedDisk, locked_disks};

/// The question and what has been entered.
pub struct Unlock {
    folder: MachineFolder,
    disks: Vec<(LockedDisk, Secret)>,
    /// The passphrases are being tried: which disk they fail on, and why.
    trying: Option<Job<Result<(), Refusal>>>,
    refused: Option<Refusal>,
}

/// Which disk stays locked, and why.
type Refusal = (usize, String);

/// What the person wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// To start the machine.
    Start,
    /// To leave it off.
    Leave,
}

/// The encrypted disks of the machine in `folder`; a machine that cannot be read has none.
pub fn disks_to_unlock(folder: &MachineFolder) -> Vec<LockedDisk> {
    folder.load().map(|machine| locked_disks(&machine, folder.path())).unwrap_or_default()
}

impl Unlock {
    /// The question about these disks of the machine in `folder`.
    pub fn new(folder: MachineFolder, disks: Vec<LockedDisk>) -> Self {
        let disks = disks.into_iter().map(|disk| (disk, Secret::default())).collect();
        Self { folder, disks, trying: None, refused: None }
    }

    /// Draws it.
    pub fn ui(&mut self, ui: &mut Ui) -> Option<Wish> {
        ui.heading(format!("Unlock {}", self.folder.folder_name()));
        let several = self.disks.len() > 1;
        let text = if several { "Its disks are encrypted." } else { "Its disk is encrypted." };
        weak(ui, &format!("{text} What is entered here unlocks it for this once, and is not kept."));
        ui.add_space(4.0);
        let mut entered = false;
        for (index, (disk, secret)) in self.disks.iter_mut().enumerate() {
            let name = disk.name();
            let before = secret.clone();
            let field = ui.add_enabled_ui(self.trying.is_none(), |ui| secret_row_ui(ui, "Passphrase", secret)).inner;
            let field = field.on_hover_text(disk.path.display().to_string());
            // Before the keyboard is given back: a field that has it has not lost it.
            entered |= field.lost_focus() && ui.input(|input| input.key_pressed(Key::Enter));
            if index == 0 && ui.ctx().memory(|memory| memory.focused().is_none()) && self.trying.is_none() {
                field.request_focus();
            }
            if *secret != before {
                self.refused = None;
            }
            indented(ui, |ui| match &self.refused {
                Some((refused, reason)) if *refused == index => finding(ui, Tone::Failure, reason),
                _ => weak(ui, &name),
            });
        }
        let is_complete = self.disks.iter().all(|(_, secret)| !secret.0.is_empty());
        let mut wish = None;
        ui.add_space(8.0);
        let row = egui::vec2(ui.available_width(), ui.spacing().interact_size.y);
        ui.allocate_ui_with_layout(row, egui::Layout::right_to_left(egui::Align::Center), |ui| {
            let may_start = is_complete && self.trying.is_none();
            let start = ui.add_enabled_ui(may_start, |ui| parts::button(ui, Icon::Play, "Unlock and start", Weight::Primary));
            if start.inner.clicked() || entered && may_start {
                wish = Some(Wish::Start);
            }
            if ui.button("Cancel").clicked() {
                wish = Some(Wish::Leave);
            }
            if self.trying.is_some() {
                ui.spinner();
            }
        });
        wish
    }

    /// Tries what was entered, on a thread: trying a passphrase is slow by design.
    pub fn try_passphrases(&mut self, ctx: &Context) {
        let disks = self.disks.clone();
        self.refused = None;
        self.trying = Some(Job::start(ctx, "unlock", move |_| {
            for (index, (disk, secret)) in disks.iter().enumerate() {
                let tried = disk.try_passphrase(&Passphrase::new(secret.0.clone().into_bytes()));
                tried.map_err(|error| match error {
                    engine_disk::DiskError::WrongPassphrase { .. } => {
                        (index, "This passphrase does not unlock the disk. Try another.".to_owned())
                    }
                    error => (index, error.to_string()),
                })?;
            }
            Ok(())
        }));
    }

    /// What to start and with which passphrases, once they have been found to be right.
    pub fn poll(&mut self) -> Option<(MachineFolder, Vec<Secret>)> {
        let result = self.trying.as_mut()?.poll()?;
        self.trying = None;
        match result.map_err(|reason| (0, reason)).and_then(|result| result) {
            Ok(()) => Some((self.folder.clone(), self.disks.iter().map(|(_, secret)| secret.clone()).collect())),
            Err(refusal) => {
                self.refused = Some(refusal);
                None
            }
        }
    }
}
