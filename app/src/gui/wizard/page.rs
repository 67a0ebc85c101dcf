//! How the wizard looks.

use egui::{DragValue, RichText, ScrollArea, Slider, SliderClamping, TextEdit, Ui};
use engine_config::check_size;
use ui_assets::{Icon, Theme};

use super::{GIB, Outcome, Preset, Then, Wizard};
use crate::gui::parts::{self, Tone, Weight, bytes_text, finding};

const WIDTH: f32 = 680.0;
const CAPTION: f32 = 84.0;

impl Wizard {
    /// Draws the page and says what came of it.
    pub fn page_ui(&mut self, ui: &mut Ui) -> Outcome {
        let mut outcome = self.follow(ui.ctx());
        self.take_drop(ui);
        ScrollArea::vertical().show(ui, |ui| {
            let margin = ((ui.available_width() - WIDTH) / 2.0).max(0.0);
            ui.horizontal_top(|ui| {
                ui.add_space(margin);
                ui.vertical(|ui| {
                    ui.set_width(WIDTH.min(ui.available_width()));
                    ui.add_space(12.0);
                    ui.heading("New machine");
                    ui.add_space(6.0);
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
            });
        });
        outcome
    }

    fn source_ui(&mut self, ui: &mut Ui) {
        ui.horizontal(|ui| {
            let label = caption_ui(ui, "ISO file");
            let width = ui.available_width() - 130.0;
            let field = TextEdit::singleline(&mut self.iso)
                .hint_text("A CD or DVD image to start from; drop one here")
                .desired_width(width);
            let response = ui.add(field).labelled_by(label.id);
            if !std::mem::replace(&mut self.greeted, true) {
                response.request_focus();
            }
            let free = self.chooser.is_none();
            if ui.add_enabled_ui(free, |ui| parts::button(ui, Icon::Folder, "Choose…", Weight::Plain)).inner.clicked() {
                self.choose_iso(ui.ctx());
            }
        });
        indented(ui, |ui| {
            if self.chooser.is_some() {
                weak(ui, "The file dialog is open in a window of its own.");
            } else if self.iso.trim().is_empty() {
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
        ui.horizontal(|ui| {
            let label = caption_ui(ui, "CPUs");
            let most = self.host.cpus.max(4);
            ui.add(Slider::new(&mut self.cpus, 1..=most).integer().clamping(SliderClamping::Edits).show_value(false))
                .labelled_by(label.id);
            ui.add(DragValue::new(&mut self.cpus).range(1..=64)).labelled_by(label.id);
            weak(ui, &format!("This computer has {}.", self.host.cpus));
        });
        ui.horizontal(|ui| {
            let label = caption_ui(ui, "Memory");
            let most = self.host.memory_mib.max(64);
            ui.add(
                Slider::new(&mut self.memory_mib, 16..=most)
                    .logarithmic(true)
                    .step_by(16.0)
                    .clamping(SliderClamping::Edits)
                    .show_value(false),
            )
            .labelled_by(label.id);
            ui.add(DragValue::new(&mut self.memory_mib).range(1..=u64::from(u32::MAX)).suffix(" MiB")).labelled_by(label.id);
            weak(
                ui,
                &format!("{} of {} are free.", bytes_text(self.host.available_mib << 20), bytes_text(self.host.memory_mib << 20)),
            );
        });
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
            for problem in check_size(self.cpus, self.memory_mib, &self.host) {
                finding(ui, Tone::Failure, &problem.message);
            }
            if self.memory_mib <= self.host.memory_mib && self.memory_mib > self.host.available_mib {
                finding(
                    ui,
                    Tone::Warning,
                    "This is more memory than is free now. Other programs will become slow while the machine runs.",
                );
            }
            if self.cpus > self.host.cpus {
                finding(ui, Tone::Warning, "More CPUs than this computer has make the machine slower, not faster.");
            }
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

fn caption_ui(ui: &mut Ui, text: &str) -> egui::Response {
    let theme = Theme::of(ui.visuals());
    let layout = egui::Layout::left_to_right(egui::Align::Center);
    ui.allocate_ui_with_layout(egui::vec2(CAPTION, ui.spacing().interact_size.y), layout, |ui| {
        ui.set_min_width(CAPTION);
        ui.label(RichText::new(text).color(*theme.weak_text))
    })
    .inner
}

fn indented(ui: &mut Ui, contents: impl FnOnce(&mut Ui)) {
    ui.horizontal_top(|ui| {
        ui.add_space(CAPTION + 8.0);
        ui.vertical(|ui| {
            ui.spacing_mut().item_spacing.y = 4.0;
            contents(ui);
        });
    });
}

fn weak(ui: &mut Ui, text: &str) {
    let theme = Theme::of(ui.visuals());
    ui.add(egui::Label::new(RichText::new(text).size(12.5).color(*theme.weak_text)).wrap());
}
