//! How the wizard looks.

use egui::{DragValue, Slider, SliderClamping, TextEdit, Ui};
use ui_assets::Icon;

use super::{GIB, Outcome, Preset, Then, Wizard};
use crate::gui::file_dialog::FileDialog;
use crate::gui::form::{caption_ui, indented, iso_row_ui, page_ui, size_findings_ui, size_rows_ui, weak};
use crate::gui::parts::{self, Tone, Weight, bytes_text, finding};

impl Wizard {
    /// Draws the page and says what came of it.
    pub fn page_ui(&mut self, ui: &mut Ui) -> Outcome {
        let mut outcome = self.follow(ui.ctx());
        self.take_drop(ui);
        page_ui(ui, "New machine", |ui| {
            let enabled = self.creating.is_none();
            ui.add_enabled_ui(enabled, |ui| {
                parts::card(ui, |ui| self.source_ui(ui));
                parts::card(ui, |ui| self.name_ui(ui));
                parts::card(ui, |ui| self.size_ui(ui));
            });
            if let Some(reason) = &self.failure {
                parts::banner(ui, Tone::Failure, "The machine was not created.", reason, |_| {});
            }
            if let Some(reason) = self.space_error() {
                parts::banner(ui, Tone::Failure, "There is no room.", &reason, |_| {});
            }
            ui.add_space(4.0);
            if let Some(done) = self.buttons_ui(ui) {
                outcome = done;
            }
        });
        outcome
    }

    fn source_ui(&mut self, ui: &mut Ui) {
        let response =
            iso_row_ui(ui, "ISO file", &mut self.iso, &mut self.chooser, "A CD or DVD image to start from; drop one here");
        if !std::mem::replace(&mut self.greeted, true) {
            response.request_focus();
        }
        indented(ui, |ui| {
            FileDialog::hint_ui(&self.chooser, ui);
            if FileDialog::is_open(&self.chooser) {
                return;
            }
            if self.iso.trim().is_empty() {
                weak(ui, "Without one, the machine begins with an empty CD drive.");
            } else if let Some((_, result)) = self.looked.as_ref().filter(|(path, _)| path == self.iso.trim()) {
                match result {
                    Ok(facts) => {
                        finding(ui, Tone::Note, &facts.summary);
                        facts.warnings.iter().for_each(|warning| finding(ui, Tone::Warning, warning));
                    }
                    Err(reason) => finding(ui, Tone::Failure, reason),
                }
            } else {
                weak(ui, "Looking at it…");
            }
        });
    }

    fn name_ui(&mut self, ui: &mut Ui) {
        ui.horizontal(|ui| {
            let label = caption_ui(ui, "Name");
            let field = TextEdit::singleline(&mut self.name).desired_width(ui.available_width()).char_limit(80);
            if ui.add(field).labelled_by(label.id).changed() {
                self.name_is_theirs = !self.name.is_empty();
            }
        });
        indented(ui, |ui| match &self.name_error {
            Some(reason) if !self.name.is_empty() => finding(ui, Tone::Failure, reason),
            _ => weak(ui, &format!("Its folder is made in {}", self.library.root().display())),
        });
    }

    fn size_ui(&mut self, ui: &mut Ui) {
        ui.horizontal(|ui| {
            caption_ui(ui, "Size");
            for (preset, words) in Preset::ALL {
                let chosen = self.preset(preset) == (self.cpus, self.memory_mib, self.disk_gib);
                if ui.selectable_label(chosen, words).clicked() {
                    self.apply(preset);
                    self.size_is_theirs = true;
                }
            }
        });
        let before = (self.cpus, self.memory_mib, self.disk_gib);
        size_rows_ui(ui, &self.host, &mut self.cpus, &mut self.memory_mib);
        ui.horizontal(|ui| {
            let label = caption_ui(ui, "Disk");
            ui.add_enabled_ui(self.with_disk, |ui| {
                ui.add(
                    Slider::new(&mut self.disk_gib, 1..=500).logarithmic(true).clamping(SliderClamping::Edits).show_value(false),
                )
                .labelled_by(label.id);
                ui.add(DragValue::new(&mut self.disk_gib).range(1..=8192).suffix(" GiB")).labelled_by(label.id);
            });
            ui.checkbox(&mut self.with_disk, "Hard disk");
        });
        self.size_is_theirs |= before != (self.cpus, self.memory_mib, self.disk_gib);
        indented(ui, |ui| {
            size_findings_ui(ui, &self.host, self.cpus, self.memory_mib);
            match self.free_bytes {
                Some(free) if self.with_disk && self.disk_gib * GIB > free => {
                    let text = format!(
                        "The disk may grow larger than the {} that are free there. The machine pauses when they are used up.",
                        bytes_text(free)
                    );
                    finding(ui, Tone::Warning, &text);
                }
                _ if self.with_disk => weak(ui, "The disk grows as the guest fills it; now it takes almost nothing."),
                _ => {}
            }
        });
    }

    fn buttons_ui(&mut self, ui: &mut Ui) -> Option<Outcome> {
        let mut outcome = None;
        let obstacle = self.obstacle();
        let ready = obstacle.is_none();
        let reason = obstacle.unwrap_or_default();
        let row = egui::vec2(ui.available_width(), ui.spacing().interact_size.y);
        ui.allocate_ui_with_layout(row, egui::Layout::right_to_left(egui::Align::Center), |ui| {
            let start = ui.add_enabled_ui(ready, |ui| parts::button(ui, Icon::Play, "Create and start", Weight::Primary)).inner;
            // Enter in a field gives it up and means the default; on a button it means that button.
            let entered =
                ready && ui.input(|input| input.key_pressed(egui::Key::Enter)) && ui.memory(|memory| memory.focused().is_none());
            if start.on_disabled_hover_text(&reason).clicked() || entered {
                self.create(ui.ctx(), Then::Start);
            }
            let create = ui.add_enabled_ui(ready, |ui| parts::button(ui, Icon::Plus, "Create", Weight::Plain)).inner;
            if create.on_disabled_hover_text(&reason).clicked() {
                self.create(ui.ctx(), Then::Stay);
            }
            if ui.button("Cancel").clicked() || ui.input(|input| input.key_pressed(egui::Key::Escape)) {
                outcome = Some(Outcome::Cancelled);
            }
            if ready {
                let copy = parts::button(ui, Icon::Text, "Copy as command", Weight::Quiet);
                if copy.on_hover_text("Copy what makes and starts this machine in a terminal").clicked() {
                    ui.ctx().copy_text(self.as_commands());
                }
            }
            if self.creating.is_some() {
                ui.spinner();
            } else if !ready {
                weak(ui, &reason);
            }
        });
        outcome
    }

    fn take_drop(&mut self, ui: &Ui) {
        let dropped = ui.input(|input| input.raw.dropped_files.first().map(|file| file.path().display().to_string()));
        if let Some(path) = dropped {
            self.iso = path;
        }
    }
}
