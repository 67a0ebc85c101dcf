//! The bar below the guest's picture: drives with a light that shows their work (a click on the CD drive is its menu),
//! what runs the guest, the picture's size, and who has the keyboard.

use egui::{RichText, Sense, Ui, Vec2};
use engine_session::DriveKind;
use ui_assets::{Icon, Theme};

use super::commands::UiCommand;
use super::guest_input::Keyboard;
use super::{HOST_KEY_NAME, VmWindow};

impl VmWindow {
    /// Draws the bar.
    pub(super) fn status_bar_ui(&mut self, ui: &mut Ui) {
        let theme = Theme::of(ui.visuals());
        ui.horizontal(|ui| {
            ui.spacing_mut().item_spacing.x = 14.0;
            for drive in self.session.drives() {
                let icon = match drive.kind {
                    DriveKind::HardDisk => Icon::HardDisk,
                    DriveKind::Cdrom => Icon::Disc,
                    DriveKind::Floppy => Icon::Floppy,
                };
                let text = match &drive.medium {
                    Some(medium) if drive.removable => medium.clone(),
                    Some(_) => drive.title.clone(),
                    None => "empty".to_owned(),
                };
                let label = format!("{}: {}", drive.title, drive.medium.as_deref().unwrap_or("empty"));
                let shown = ui.horizontal(|ui| {
                    ui.spacing_mut().item_spacing.x = 5.0;
                    let (rect, _) = ui.allocate_exact_size(Vec2::splat(15.0), Sense::hover());
                    icon.paint(ui.painter(), rect, if drive.working { *theme.running } else { *theme.weak_text });
                    let text = RichText::new(shorten(&text, 28)).size(12.5).color(*theme.weak_text);
                    ui.add(egui::Label::new(text).selectable(false));
                });
                if drive.kind == DriveKind::Cdrom {
                    let button = shown.response.interact(Sense::click()).on_hover_text(&label);
                    button.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Button, true, &label));
                    self.commands_menu_ui(&button, &[UiCommand::InsertMedium, UiCommand::EjectMedium]);
                } else {
                    shown.response.on_hover_text(label);
                }
            }
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                let keyboard = self.input.borrow().keyboard();
                let caught = self.input.borrow().is_caught();
                let (text, tip) = match keyboard {
                    Keyboard::Guest if caught => {
                        (format!("{HOST_KEY_NAME} releases the pointer"), "The guest has keyboard and pointer")
                    }
                    Keyboard::Guest => (HOST_KEY_NAME.to_owned(), "The guest has the keyboard; this key gives it back to you"),
                    Keyboard::Window => ("Keyboard is yours".to_owned(), "Click the guest's picture to type there"),
                };
                let color = if keyboard == Keyboard::Guest { *theme.weak_text } else { *theme.accent };
                small(ui, &text, color).on_hover_text(tip);
                let (rect, _) = ui.allocate_exact_size(Vec2::splat(15.0), Sense::hover());
                Icon::Keyboard.paint(ui.painter(), rect, color);
                if let Some(placement) = self.placement {
                    let (width, height) = placement.guest;
                    small(ui, &format!("{width} × {height} at {:.0} %", placement.scale() * 100.0), *theme.weak_text);
                }
                small(ui, &self.session.backend(), *theme.weak_text).on_hover_text("What runs the guest's code");
            });
        });
    }
}

fn small(ui: &mut Ui, text: &str, color: egui::Color32) -> egui::Response {
    ui.label(RichText::new(text).size(12.5).color(color))
}

/// The text, with its middle left out where it is long: names of files differ at both ends.
fn shorten(text: &str, most: usize) -> String {
    let letters: Vec<char> = text.chars().collect();
    if letters.len() <= most {
        return text.to_owned();
    }
    let half = (most - 1) / 2;
    letters[..half].iter().chain(&['…']).chain(&letters[letters.len() - half..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_keep_both_ends() {
        assert_eq!(shorten("debian.iso", 28), "debian.iso");
        assert_eq!(shorten("debian-12.5.0-amd64-netinst-unofficial.iso", 20), "debian-12…icial.iso");
    }
}
