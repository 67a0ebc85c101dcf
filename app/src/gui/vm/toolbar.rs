//! The bar above the guest's picture. Every button and menu line comes from the table of commands.

use egui::{Button, Popup, Ui};
use engine_session::RunState;
use ui_assets::Icon;

use super::commands::UiCommand;
use super::placement::ScaleMode;
use super::{HOST_KEY_NAME, VmWindow};
use crate::gui::parts;

impl VmWindow {
    /// Draws the bar.
    pub(super) fn toolbar_ui(&mut self, ui: &mut Ui) {
        ui.horizontal(|ui| {
            ui.spacing_mut().item_spacing.x = 4.0;
            self.pause_button_ui(ui);
            self.menu_ui(ui, Icon::Power, "Power", &[UiCommand::PressPowerButton, UiCommand::Reset, UiCommand::PowerOff]);
            self.menu_ui(ui, Icon::Disc, "CD", &[UiCommand::InsertMedium, UiCommand::EjectMedium]);
            self.menu_ui(ui, Icon::Keyboard, "Keyboard", &[UiCommand::SendCtrlAltDel, UiCommand::TypeText]);
            ui.separator();
            self.tool_ui(ui, UiCommand::Screenshot);
            self.scale_menu_ui(ui);
            self.tool_ui(ui, UiCommand::FullScreen);
        });
    }

    fn pause_button_ui(&mut self, ui: &mut Ui) {
        let (icon, text) = match self.session.state() {
            RunState::Paused => (Icon::Play, "Resume"),
            _ => (Icon::Pause, "Pause"),
        };
        let available = self.available(UiCommand::PauseOrResume);
        let response = ui.add_enabled_ui(available.is_ok(), |ui| parts::button(ui, icon, text, parts::Weight::Quiet)).inner;
        let response = explain(response, UiCommand::PauseOrResume, available);
        if response.clicked() {
            self.carry_out(ui.ctx(), UiCommand::PauseOrResume);
        }
    }

    fn tool_ui(&mut self, ui: &mut Ui, command: UiCommand) {
        let available = self.available(command);
        let response =
            ui.add_enabled_ui(available.is_ok(), |ui| parts::tool(ui, command.entry().icon, command.entry().text)).inner;
        if explain(response, command, available).clicked() {
            self.carry_out(ui.ctx(), command);
        }
    }

    fn menu_ui(&mut self, ui: &mut Ui, icon: Icon, title: &str, commands: &[UiCommand]) {
        let button = parts::button(ui, icon, title, parts::Weight::Quiet);
        self.commands_menu_ui(&button, commands);
    }

    /// A menu of commands under what was clicked.
    pub(super) fn commands_menu_ui(&mut self, clicked: &egui::Response, commands: &[UiCommand]) {
        Popup::menu(clicked).show(|ui| {
            ui.set_min_width(230.0);
            for command in commands {
                let entry = command.entry();
                let available = self.available(*command);
                let keys = entry.chord.map_or_else(String::new, |(_, key)| format!("{HOST_KEY_NAME}+{key}"));
                let response = ui.add_enabled(available.is_ok(), Button::new(entry.text).shortcut_text(keys).frame(false));
                if explain(response, *command, available).clicked() {
                    self.carry_out(ui.ctx(), *command);
                    ui.close();
                }
            }
        });
    }

    fn scale_menu_ui(&mut self, ui: &mut Ui) {
        let button = parts::tool(ui, Icon::Scale, "Scale");
        Popup::menu(&button).show(|ui| {
            ui.set_min_width(200.0);
            for (mode, words) in ScaleMode::ALL {
                if ui.radio(self.scale == mode, words).clicked() {
                    self.scale = mode;
                    ui.close();
                }
            }
            ui.separator();
            let command = UiCommand::WindowToGuestSize;
            if ui.add(Button::new(command.entry().text).frame(false)).on_hover_text(command.entry().tooltip).clicked() {
                self.carry_out(ui.ctx(), command);
                ui.close();
            }
        });
    }
}

fn explain(response: egui::Response, command: UiCommand, available: Result<(), &'static str>) -> egui::Response {
    let entry = command.entry();
    let tip = match entry.chord {
        Some((_, key)) => format!("{} ({HOST_KEY_NAME}+{key})", entry.tooltip),
        None => entry.tooltip.to_owned(),
    };
    match available {
        Ok(()) => response.on_hover_text(tip),
        Err(reason) => response.on_disabled_hover_text(format!("{tip}\n{reason}")),
    }
}
