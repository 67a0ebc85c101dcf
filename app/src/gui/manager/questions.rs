//! The questions that the manager asks before something is lost. One at a time; Esc is "no".

use std::path::PathBuf;

use egui::{Context, Id, Modal, RichText, ScrollArea, Ui};
use engine_session::library::MachineFolder;
use ui_assets::{Icon, Theme};

use super::Manager;
use super::unlock::{Unlock, Wish};
use crate::gui::job::Job;
use crate::gui::parts::{self, Weight, bytes_text};

/// The question that is open.
pub enum Question {
    /// Reset it?
    Reset(MachineFolder),
    /// Pull its plug?
    PowerOff(MachineFolder),
    /// Throw it away, with these files?
    Delete {
        /// Which machine.
        folder: MachineFolder,
        /// What goes with it.
        files: FileList,
    },
    /// Which passphrases unlock its disks?
    Unlock(Unlock),
}

/// The files of a machine, once they have been counted.
pub enum FileList {
    /// Not yet asked for: that needs a window.
    Wanted,
    /// Being counted.
    Counting(Job<Result<Vec<(PathBuf, u64)>, String>>),
    /// Counted.
    Known(Result<Vec<(PathBuf, u64)>, String>),
}

impl FileList {
    /// Looks whether the counting has ended.
    pub fn poll(&mut self) {
        if let FileList::Counting(job) = self
            && let Some(result) = job.poll()
        {
            *self = FileList::Known(result.and_then(|result| result));
        }
    }
}

impl Question {
    /// The question before a machine is thrown away.
    pub fn delete(folder: MachineFolder) -> Self {
        Question::Delete { folder, files: FileList::Wanted }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Yes,
    No,
}

impl Manager {
    /// Draws the open question, if there is one, and carries out its answer.
    pub(super) fn question_ui(&mut self, ctx: &Context) {
        let Some(question) = &mut self.question else { return };
        let mut answer = None;
        let modal = Modal::new(Id::unique("question")).frame(egui::Frame::window(&ctx.global_style())).show(ctx, |ui| {
            ui.set_width(440.0);
            match question {
                Question::Reset(folder) => {
                    let text = "It starts again at once. What the guest has not saved is lost.";
                    ask_ui(ui, &format!("Reset {}", folder.folder_name()), text, (Icon::Reset, "Reset"), &mut answer);
                }
                Question::PowerOff(folder) => {
                    let text =
                        "This is like pulling the plug. What the guest has not saved is lost; its disks stay as they are now.";
                    ask_ui(ui, &format!("Power {} off", folder.folder_name()), text, (Icon::Plug, "Power off"), &mut answer);
                }
                Question::Delete { folder, files } => {
                    if let FileList::Wanted = files {
                        let target = folder.clone();
                        *files = FileList::Counting(Job::start(ui.ctx(), "list-files", move |_| {
                            target.files().map_err(|error| error.to_string())
                        }));
                    }
                    ui.heading(format!("Delete {}", folder.folder_name()));
                    ui.label("The whole folder goes to the trash, from where it can be put back:");
                    files_ui(ui, files);
                    answer_ui(ui, (Icon::Trash, "Move to trash"), &mut answer);
                }
                // The question stays until the passphrases have been tried.
                Question::Unlock(unlock) => match unlock.ui(ui) {
                    Some(Wish::Start) => unlock.try_passphrases(ui.ctx()),
                    Some(Wish::Leave) => answer = Some(Answer::No),
                    None => {}
                },
            }
        });
        if modal.should_close() && answer.is_none() {
            answer = Some(Answer::No);
        }
        let Some(answer) = answer else { return };
        let Some(question) = self.question.take().filter(|_| answer == Answer::Yes) else { return };
        match question {
            Question::Reset(folder) => self.tell(ctx, folder, "system_reset"),
            Question::PowerOff(folder) => self.tell(ctx, folder, "quit"),
            Question::Unlock(_) => {}
            Question::Delete { folder, .. } => {
                self.in_background(ctx, folder, |folder| folder.move_to_trash().map_err(|error| error.to_string()));
            }
        }
    }
}

fn ask_ui(ui: &mut Ui, title: &str, text: &str, yes: (Icon, &str), answer: &mut Option<Answer>) {
    ui.heading(title);
    ui.add(egui::Label::new(text).wrap());
    answer_ui(ui, yes, answer);
}

fn answer_ui(ui: &mut Ui, (icon, word): (Icon, &str), answer: &mut Option<Answer>) {
    ui.add_space(8.0);
    let row = egui::vec2(ui.available_width(), ui.spacing().interact_size.y);
    ui.allocate_ui_with_layout(row, egui::Layout::right_to_left(egui::Align::Center), |ui| {
        if parts::button(ui, icon, word, Weight::Plain).clicked() {
            *answer = Some(Answer::Yes);
        }
        if ui.button("Cancel").clicked() {
            *answer = Some(Answer::No);
        }
    });
}

fn files_ui(ui: &mut Ui, files: &FileList) {
    let theme = Theme::of(ui.visuals());
    match files {
        FileList::Wanted | FileList::Counting(_) => {
            ui.spinner();
        }
        FileList::Known(Err(reason)) => {
            ui.label(reason);
        }
        FileList::Known(Ok(files)) => {
            ScrollArea::vertical().max_height(180.0).show(ui, |ui| {
                ui.spacing_mut().item_spacing.y = 3.0;
                for (name, bytes) in files {
                    ui.label(RichText::new(format!("{} ({})", name.display(), bytes_text(*bytes))).monospace());
                }
            });
            let total: u64 = files.iter().map(|(_, bytes)| bytes).sum();
            ui.label(RichText::new(format!("{} in all.", bytes_text(total))).color(*theme.weak_text));
        }
    }
}
