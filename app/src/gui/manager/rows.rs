//! The list of machines, and what stands there when there are none.

use egui::{CornerRadius, Rect, RichText, ScrollArea, Sense, Stroke, TextEdit, Ui, Vec2};
use ui_assets::{Icon, Theme};

use super::commands::UiCommand;
use super::scan::Row;
use super::{Manager, status_color, status_word};
use crate::gui::parts::{self, Weight};

const ROW_HEIGHT: f32 = 62.0;

impl Manager {
    /// The machines whose names match the filter.
    pub(super) fn shown_rows(&self) -> impl Iterator<Item = &Row> {
        let filter = self.filter.to_lowercase();
        self.rows.iter().filter(move |row| row.entry.name().to_lowercase().contains(&filter))
    }

    /// Draws the list.
    pub(super) fn rows_ui(&mut self, ui: &mut Ui) {
        let field = TextEdit::singleline(&mut self.filter).hint_text("Filter machines").desired_width(f32::INFINITY);
        let response = ui.add(field);
        response.widget_info(|| egui::WidgetInfo::labeled(egui::Role::TextInput, true, "Filter machines"));
        ui.add_space(4.0);
        let mut clicked = None;
        let mut opened = false;
        ScrollArea::vertical().auto_shrink(false).show_rows(ui, ROW_HEIGHT, self.shown_rows().count(), |ui, range| {
            for row in self.shown_rows().skip(range.start).take(range.len()) {
                let response = self.row_ui(ui, row);
                if response.clicked() || response.double_clicked() {
                    clicked = Some(row.entry.folder.clone());
                    opened = response.double_clicked();
                }
            }
        });
        if let Some(folder) = clicked {
            self.selected = Some(folder);
            if opened {
                let open = if self.available(UiCommand::Start).is_ok() { UiCommand::Start } else { UiCommand::Show };
                self.carry_out(ui.ctx(), open);
            }
        }
    }

    fn row_ui(&self, ui: &mut Ui, row: &Row) -> egui::Response {
        let theme = Theme::of(ui.visuals());
        let (rect, response) = ui.allocate_exact_size(Vec2::new(ui.available_width(), ROW_HEIGHT), Sense::click());
        let name = row.entry.name();
        let damaged = row.entry.machine.is_err();
        let word = if damaged { "Damaged" } else { status_word(&row.status) };
        let selected = self.selected.as_ref() == Some(&row.entry.folder);
        response.widget_info(|| egui::WidgetInfo::selected(egui::Role::Button, true, selected, format!("{name}, {word}")));
        if !ui.is_rect_visible(rect) {
            return response;
        }
        let painter = ui.painter().with_clip_rect(rect.intersect(ui.clip_rect()));
        let fill = match (selected, response.hovered()) {
            (true, _) => *theme.selection,
            (false, true) => *theme.hovered,
            (false, false) => egui::Color32::TRANSPARENT,
        };
        let border = if response.has_focus() { Stroke::new(2.0, *theme.accent) } else { Stroke::NONE };
        painter.rect(rect, CornerRadius::same(9), fill, border, egui::StrokeKind::Inside);
        let picture = Rect::from_min_size(rect.min + egui::vec2(8.0, 7.0), Vec2::new(64.0, ROW_HEIGHT - 14.0));
        match self.pictures.get(row.entry.folder.path()) {
            Some((_, texture)) => {
                painter.rect_filled(picture, CornerRadius::same(5), *theme.stage);
                let size = texture.size_vec2();
                let scale = (picture.width() / size.x).min(picture.height() / size.y);
                let place = Rect::from_center_size(picture.center(), size * scale);
                painter.image(
                    texture.id(),
                    place,
                    Rect::from_min_max(egui::pos2(0.0, 0.0), egui::pos2(1.0, 1.0)),
                    egui::Color32::WHITE,
                );
            }
            None => parts::blank_screen(&painter, picture, theme, ""),
        }
        let left = picture.right() + 12.0;
        let name = painter.layout_job(egui::text::LayoutJob {
            wrap: egui::text::TextWrapping::truncate_at_width(rect.right() - left - 10.0),
            ..egui::text::LayoutJob::single_section(name, egui::TextFormat::simple(egui::FontId::proportional(15.0), *theme.text))
        });
        painter.galley(egui::pos2(left, rect.top() + 11.0), name, *theme.text);
        let color = if damaged { *theme.error } else { status_color(theme, &row.status) };
        let center = egui::pos2(left + 4.0, rect.bottom() - 19.0);
        painter.circle_filled(center, 4.0, color);
        painter.text(
            center + egui::vec2(11.0, 0.0),
            egui::Align2::LEFT_CENTER,
            word,
            egui::FontId::proportional(12.5),
            *theme.weak_text,
        );
        response
    }

    /// Draws the first page: no machines yet.
    pub(super) fn empty_ui(&mut self, ui: &mut Ui) {
        self.news_ui(ui);
        if let Some(reason) = self.list_error.clone() {
            parts::banner(ui, parts::Tone::Failure, "The machines cannot be listed.", &reason, |_| {});
        }
        if !self.scanned {
            return; // Nothing is known yet; that is a matter of milliseconds.
        }
        let theme = Theme::of(ui.visuals());
        ui.vertical_centered(|ui| {
            ui.add_space((ui.available_height() * 0.24).max(10.0));
            let (rect, _) = ui.allocate_exact_size(Vec2::splat(84.0), Sense::hover());
            Icon::Bellglass.paint(ui.painter(), rect, *theme.accent);
            ui.add_space(10.0);
            ui.heading("No machines yet");
            ui.label(RichText::new("Run another operating system in a window.").color(*theme.weak_text));
            ui.add_space(16.0);
            ui.allocate_ui(Vec2::new(300.0, 120.0), |ui| {
                ui.vertical_centered_justified(|ui| {
                    self.command_ui(ui, UiCommand::TryLiveLinux, Weight::Primary);
                    let response = parts::button(ui, Icon::Disc, "New from ISO…", Weight::Plain);
                    if response.on_hover_text(UiCommand::New.entry().tooltip).clicked() {
                        self.carry_out(ui.ctx(), UiCommand::New);
                    }
                });
            });
            ui.add_space(8.0);
            ui.label(RichText::new("Or drop an ISO file here.").color(*theme.weak_text));
        });
    }
}
