//! The questions a machine's window asks. One at a time; Esc is "no"; the answer that loses nothing is the plain one.

use std::path::PathBuf;

use egui::{Id, Modal, TextEdit, Ui};
use engine_session::{Command, RunState};
use ui_assets::Icon;

use super::VmWindow;
use super::commands::UiCommand;
use crate::gui::file_dialog::{FileDialog, Wanted};
use crate::gui::parts::{self, Weight};

/// The question that is open.
pub enum Dialog {
    /// Reset?
    Reset,
    /// Pull the plug?
    PowerOff,
    /// What becomes of the machine when its window closes?
    Close,
    /// Which text shall be typed?
    TypeText {
        /// What has been entered.
        text: String,
    },
    /// Which file goes into the CD drive?
    InsertMedium {
        /// What has been entered.
        path: String,
        /// The desktop's dialog, while it is open.
        chooser: Option<FileDialog>,
    },
}

enum Answer {
    Cancel,
    Reset,
    PowerOff,
    ShutDown,
    KeepRunning,
    Type(String),
    Insert(PathBuf),
}

impl VmWindow {
    /// Draws the open question, if there is one, and carries out its answer.
    pub(super) fn dialog_ui(&mut self, ui: &mut Ui) {
        let ctx = ui.ctx().clone();
        let state = self.session.state();
        let can_hide = self.can_hide();
        let Some(dialog) = &mut self.dialog else { return };
        let mut answer = None;
        let modal = Modal::new(Id::unique("question")).frame(egui::Frame::window(&ctx.global_style())).show(&ctx, |ui| {
            ui.set_width(440.0);
            ui.spacing_mut().item_spacing.y = 10.0;
            match dialog {
                Dialog::Reset => confirm_ui(
                    ui,
                    "Reset the machine",
                    "It starts again at once. What the guest has not saved is lost.",
                    (Icon::Reset, "Reset"),
                    &mut answer,
                    Answer::Reset,
                ),
                Dialog::PowerOff => confirm_ui(
                    ui,
                    "Power the machine off",
                    "This is like pulling the plug. What the guest has not saved is lost; its disks stay as they are now.",
                    (Icon::Plug, "Power off"),
                    &mut answer,
                    Answer::PowerOff,
                ),
                Dialog::Close => close_ui(ui, state, can_hide, &mut answer),
                Dialog::TypeText { text } => type_text_ui(ui, text, &mut answer),
                Dialog::InsertMedium { path, chooser } => insert_ui(ui, path, chooser, &mut answer),
            }
        });
        if modal.should_close() && answer.is_none() {
            answer = Some(Answer::Cancel);
        }
        let Some(answer) = answer else { return };
        self.dialog = None;
        // The guest gets the keyboard back, which the next drawing tells its input.
        ctx.memory_mut(|memory| memory.stop_text_input());
        ctx.request_repaint();
        match answer {
            Answer::Cancel => {}
            Answer::Reset => self.session.send(Command::Reset),
            Answer::PowerOff => self.session.send(Command::PowerOff),
            Answer::ShutDown => self.carry_out(&ctx, UiCommand::PressPowerButton),
            Answer::KeepRunning => self.hide(&ctx),
            Answer::Type(text) => self.type_text(text),
            Answer::Insert(path) => self.insert_medium(path),
        }
    }
}

fn title_ui(ui: &mut Ui, title: &str, text: &str) {
    ui.heading(title);
    if !text.is_empty() {
        ui.add(egui::Label::new(text).wrap());
    }
    ui.add_space(4.0);
}

fn buttons_ui(ui: &mut Ui, contents: impl FnOnce(&mut Ui)) {
    ui.add_space(6.0);
    let row = egui::vec2(ui.available_width(), ui.spacing().interact_size.y);
    ui.allocate_ui_with_layout(row, egui::Layout::right_to_left(egui::Align::Center), contents);
}

/// Gives `response` the keyboard when a question has just opened: Enter then means it, or typing goes there.
fn default_focus(ui: &Ui, response: &egui::Response) {
    if ui.ctx().memory(|memory| memory.focused().is_none()) {
        response.request_focus();
    }
}

fn confirm_ui(ui: &mut Ui, title: &str, text: &str, (icon, word): (Icon, &str), answer: &mut Option<Answer>, yes: Answer) {
    title_ui(ui, title, text);
    buttons_ui(ui, |ui| {
        if parts::button(ui, icon, word, Weight::Plain).clicked() {
            *answer = Some(yes);
        }
        // Enter loses nothing.
        let cancel = ui.button("Cancel");
        default_focus(ui, &cancel);
        if cancel.clicked() {
            *answer = Some(Answer::Cancel);
        }
    });
}

fn close_ui(ui: &mut Ui, state: RunState, can_hide: bool, answer: &mut Option<Answer>) {
    title_ui(ui, "The machine is still running", "What shall become of it? It goes on while you decide.");
    ui.vertical_centered(|ui| {
        let mut offer = |ui: &mut Ui, icon, text, weight, choice| {
            let response = parts::button(ui, icon, text, weight);
            if weight == Weight::Primary {
                default_focus(ui, &response);
            }
            if response.clicked() {
                *answer = Some(choice);
            }
        };
        if can_hide {
            offer(ui, Icon::Screen, "Keep running in the background", Weight::Primary, Answer::KeepRunning);
        }
        if state != RunState::Paused {
            offer(ui, Icon::Power, "Shut down the guest", Weight::Plain, Answer::ShutDown);
        }
        offer(ui, Icon::Plug, "Power off without saving", Weight::Plain, Answer::PowerOff);
        if ui.button("Cancel").clicked() {
            *answer = Some(Answer::Cancel);
        }
    });
}

fn type_text_ui(ui: &mut Ui, text: &mut String, answer: &mut Option<Answer>) {
    title_ui(ui, "Type text", "It is typed key by key, as on a US keyboard. Paste with Ctrl+V.");
    let label = ui.label("Text");
    let field = ui.add(TextEdit::multiline(text).desired_rows(4).desired_width(f32::INFINITY)).labelled_by(label.id);
    default_focus(ui, &field);
    buttons_ui(ui, |ui| {
        let ready = !text.is_empty();
        if ui.add_enabled_ui(ready, |ui| parts::button(ui, Icon::Keyboard, "Type", Weight::Primary)).inner.clicked() {
            *answer = Some(Answer::Type(std::mem::take(text)));
        }
        if ui.button("Cancel").clicked() {
            *answer = Some(Answer::Cancel);
        }
    });
}

fn insert_ui(ui: &mut Ui, path: &mut String, chooser: &mut Option<FileDialog>, answer: &mut Option<Answer>) {
    if let Some(chosen) = FileDialog::follow(chooser) {
        *answer = Some(Answer::Insert(chosen));
    }
    title_ui(ui, "Insert a CD", "Choose an ISO file, or drop one on the window.");
    let label = ui.label("ISO file");
    let mut entered = false;
    ui.horizontal(|ui| {
        let field = ui
            .add(TextEdit::singleline(path).hint_text("/home/…/debian.iso").desired_width(ui.available_width() - 120.0))
            .labelled_by(label.id);
        entered = field.lost_focus() && ui.input(|input| input.key_pressed(egui::Key::Enter));
        default_focus(ui, &field);
        let free = !FileDialog::is_open(chooser);
        if ui.add_enabled_ui(free, |ui| parts::button(ui, Icon::Folder, "Choose…", Weight::Plain)).inner.clicked() {
            *chooser = Some(FileDialog::open(ui.ctx(), Wanted::Iso, None));
        }
    });
    FileDialog::hint_ui(chooser, ui);
    buttons_ui(ui, |ui| {
        let ready = !path.trim().is_empty();
        let insert = ui.add_enabled_ui(ready, |ui| parts::button(ui, Icon::Disc, "Insert", Weight::Primary)).inner.clicked();
        if ready && (insert || entered) {
            *answer = Some(Answer::Insert(PathBuf::from(path.trim())));
        }
        if ui.button("Cancel").clicked() {
            *answer = Some(Answer::Cancel);
        }
    });
}
