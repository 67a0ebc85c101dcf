//! The selected machine: its screen, what can be done with it, what it is made of, what went wrong.

use egui::{CornerRadius, Rect, RichText, ScrollArea, Sense, Ui, Vec2};
use engine_config::{Accelerator, Lifetime, Machine};
use ui_assets::{Icon, Theme};

use super::commands::UiCommand;
use super::scan::{Row, Status};
use super::{Manager, status_color, status_word};
use crate::gui::parts::{self, Tone, Weight, badge, bytes_text, fact};

impl Manager {
    /// Draws the details.
    pub(super) fn details_ui(&mut self, ui: &mut Ui) {
        let Some(row) = self.selected_row().cloned() else { return };
        let theme = Theme::of(ui.visuals());
        ScrollArea::vertical().auto_shrink(false).show(ui, |ui| {
            ui.horizontal(|ui| {
                ui.heading(row.entry.name());
                match &row.entry.machine {
                    Ok(machine) => {
                        badge(ui, status_word(&row.status), status_color(theme, &row.status));
                        if machine.lifetime == Lifetime::Disposable {
                            badge(ui, "Disposable", *theme.accent);
                        }
                    }
                    Err(_) => badge(ui, "Damaged", *theme.error),
                }
            });
            ui.add_space(4.0);
            self.failures_ui(ui, &row);
            if let Err(reason) = &row.entry.machine {
                parts::banner(ui, Tone::Failure, "This machine cannot be used.", reason, |_| {});
            }
            self.screen_ui(ui, &row);
            ui.add_space(4.0);
            self.actions_ui(ui, &row);
            ui.add_space(6.0);
            if let Ok(machine) = &row.entry.machine {
                parts::card(ui, |ui| facts_ui(ui, machine, &row));
            }
        });
    }

    fn failures_ui(&mut self, ui: &mut Ui, row: &Row) {
        let (mut dismissed, mut settings) = (None, false);
        for (index, (folder, reason)) in self.failures.iter().enumerate() {
            if folder.as_ref() == Some(&row.entry.folder) {
                let (what, advice) = reason.split_once(". ").map_or((reason.as_str(), ""), |(what, advice)| (what, advice));
                let what = if advice.is_empty() { what.to_owned() } else { format!("{what}.") };
                parts::banner(ui, Tone::Failure, &what, advice, |ui| {
                    if ui.button("Dismiss").clicked() {
                        dismissed = Some(index);
                    }
                    settings |= ui.button("Change settings").clicked();
                });
            }
        }
        if settings {
            self.carry_out(ui.ctx(), UiCommand::Settings);
        }
        if let Some(index) = dismissed {
            self.failures.remove(index);
        }
    }

    fn screen_ui(&mut self, ui: &mut Ui, row: &Row) {
        let theme = Theme::of(ui.visuals());
        let width = ui.available_width().min(480.0);
        let (rect, response) = ui.allocate_exact_size(Vec2::new(width, width * 0.5625), Sense::click());
        let on = row.status != Status::Off;
        let name = format!("Picture of {}", row.entry.name());
        response.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Button, true, &name));
        match self.pictures.get(row.entry.folder.path()) {
            Some((_, texture)) => {
                ui.painter().rect_filled(rect, CornerRadius::same(8), *theme.stage);
                let size = texture.size_vec2();
                let place = Rect::from_center_size(
                    rect.center(),
                    size * ((rect.width() - 8.0) / size.x).min((rect.height() - 8.0) / size.y),
                );
                // A machine that is off shows its last picture, faded, so that nobody takes it for a live one.
                let tint = if on { egui::Color32::WHITE } else { egui::Color32::from_white_alpha(90) };
                let whole = Rect::from_min_max(egui::pos2(0.0, 0.0), egui::pos2(1.0, 1.0));
                ui.painter().image(texture.id(), place, whole, tint);
            }
            None => parts::blank_screen(ui.painter(), rect, theme, if on { "No picture yet" } else { "Off" }),
        }
        if response.on_hover_text(if on { "Bring its window to the front" } else { "Start it" }).clicked() {
            self.carry_out(ui.ctx(), if on { UiCommand::Show } else { UiCommand::Start });
        }
    }

    fn actions_ui(&mut self, ui: &mut Ui, row: &Row) {
        ui.horizontal_wrapped(|ui| {
            let commands: &[UiCommand] = match row.status {
                Status::Off => &[UiCommand::Start, UiCommand::Settings, UiCommand::Delete],
                Status::Paused => {
                    &[UiCommand::Show, UiCommand::Resume, UiCommand::Reset, UiCommand::PowerOff, UiCommand::Settings]
                }
                Status::Busy | Status::Running | Status::Stopped => &[
                    UiCommand::Show,
                    UiCommand::Pause,
                    UiCommand::ShutDown,
                    UiCommand::Reset,
                    UiCommand::PowerOff,
                    UiCommand::Settings,
                ],
            };
            for (index, command) in commands.iter().enumerate() {
                let weight = if index == 0 { Weight::Primary } else { Weight::Plain };
                self.command_ui(ui, *command, weight);
            }
        });
    }
}

fn facts_ui(ui: &mut Ui, machine: &Machine, row: &Row) {
    let theme = Theme::of(ui.visuals());
    let backend = match machine.accelerator {
        Accelerator::Software => "software",
        Accelerator::Kvm => "KVM",
    };
    ui.spacing_mut().item_spacing.y = 7.0;
    let cpus = if machine.cpus == 1 { format!("1, {backend}") } else { format!("{}, {backend}", machine.cpus) };
    fact(ui, Icon::Chip, "CPUs", &cpus);
    fact(ui, Icon::Chip, "Memory", &bytes_text(machine.memory_mib << 20));
    for disk in &machine.disks {
        let on_host =
            std::path::Path::new(&disk.file).file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        fact(ui, Icon::HardDisk, "Disk", &on_host);
    }
    for drive in &machine.cdroms {
        let medium = match &drive.medium {
            Some(path) => path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            None => "empty".to_owned(),
        };
        fact(ui, Icon::Disc, "CD drive", &medium);
    }
    for drive in &machine.floppies {
        let medium = drive.medium.as_ref().map_or_else(|| "empty".to_owned(), |path| path.display().to_string());
        fact(ui, Icon::Floppy, "Floppy", &medium);
    }
    ui.horizontal(|ui| {
        fact(ui, Icon::Folder, "Folder", "");
        let text = RichText::new(row.entry.folder.path().display().to_string()).size(12.5).color(*theme.weak_text);
        ui.add(egui::Label::new(text).truncate().selectable(true));
    });
}
