//! The few widgets that all our screens share. They only draw; what a click means is the caller's business.

use egui::{
    Align2, Color32, CornerRadius, FontId, Frame, Margin, Rect, Response, Sense, Stroke, TextStyle, Ui, Vec2, WidgetInfo,
};
use ui_assets::{Icon, Theme};

/// How much a button wants to be clicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// The one action of the screen.
    Primary,
    /// An action like others.
    Plain,
    /// No frame until the pointer is on it.
    Quiet,
}

/// A button with an icon before its text.
pub fn button(ui: &mut Ui, icon: Icon, text: &str, weight: Weight) -> Response {
    icon_button(ui, icon, Some(text), text, weight)
}

/// A button that is only an icon; `name` is its tooltip and what screen readers say.
pub fn tool(ui: &mut Ui, icon: Icon, name: &str) -> Response {
    icon_button(ui, icon, None, name, Weight::Quiet).on_hover_text(name)
}

fn icon_button(ui: &mut Ui, icon: Icon, text: Option<&str>, name: &str, weight: Weight) -> Response {
    let theme = Theme::of(ui.visuals());
    let icon_side = 16.0;
    let font = TextStyle::Button.resolve(ui.style());
    let galley = text.map(|text| ui.painter().layout_no_wrap(text.to_owned(), font, Color32::PLACEHOLDER));
    let text_width = galley.as_ref().map_or(0.0, |galley| 8.0 + galley.size().x);
    let padding = if text.is_some() { 12.0 } else { 8.0 };
    let size = Vec2::new(padding * 2.0 + icon_side + text_width, ui.spacing().interact_size.y);
    let (rect, response) = ui.allocate_exact_size(size, Sense::click());
    response.widget_info(|| WidgetInfo::labeled(egui::Role::Button, ui.is_enabled(), name));
    if ui.is_rect_visible(rect) {
        let active = response.is_pointer_button_down_on();
        let hovered = response.hovered() || response.has_focus();
        let (fill, border, ink) = match weight {
            Weight::Primary if active => (theme.accent.gamma_multiply(0.8), Color32::TRANSPARENT, *theme.on_accent),
            Weight::Primary if hovered => (theme.accent.gamma_multiply(0.9), Color32::TRANSPARENT, *theme.on_accent),
            Weight::Primary => (*theme.accent, Color32::TRANSPARENT, *theme.on_accent),
            _ if active => (*theme.pressed, *theme.border, *theme.text),
            _ if hovered => (*theme.hovered, *theme.border, *theme.text),
            Weight::Plain => (*theme.raised, *theme.border, *theme.text),
            Weight::Quiet => (Color32::TRANSPARENT, Color32::TRANSPARENT, *theme.text),
        };
        let painter = ui.painter();
        let border = if response.has_focus() { Stroke::new(2.0, *theme.accent) } else { Stroke::new(1.0, border) };
        painter.rect(rect, CornerRadius::same(7), fill, border, egui::StrokeKind::Inside);
        let icon_rect =
            Rect::from_min_size(egui::pos2(rect.left() + padding, rect.center().y - icon_side / 2.0), Vec2::splat(icon_side));
        icon.paint(painter, icon_rect, ink);
        if let Some(galley) = galley {
            let at = egui::pos2(icon_rect.right() + 8.0, rect.center().y - galley.size().y / 2.0);
            painter.galley_with_override_text_color(at, galley, ink);
        }
    }
    response
}

/// A white card with a thin border.
pub fn card<R>(ui: &mut Ui, contents: impl FnOnce(&mut Ui) -> R) -> R {
    let theme = Theme::of(ui.visuals());
    Frame::new()
        .fill(*theme.surface)
        .stroke(Stroke::new(1.0, *theme.border))
        .corner_radius(10)
        .inner_margin(Margin::same(16))
        .show(ui, |ui| {
            ui.set_width(ui.available_width());
            contents(ui)
        })
        .inner
}

/// How bad a banner's news is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Worth knowing.
    Note,
    /// Worth a thought.
    Warning,
    /// Something failed.
    Failure,
}

/// A banner: what happened, then what to do, then whatever `buttons` adds.
pub fn banner(ui: &mut Ui, tone: Tone, what: &str, advice: &str, buttons: impl FnOnce(&mut Ui)) {
    let theme = Theme::of(ui.visuals());
    let (icon, ink, fill) = match tone {
        Tone::Note => (Icon::Check, *theme.accent, *theme.selection),
        Tone::Warning => (Icon::Warning, *theme.warning, *theme.warning_surface),
        Tone::Failure => (Icon::Warning, *theme.error, *theme.error_surface),
    };
    Frame::new()
        .fill(fill)
        .stroke(Stroke::new(1.0, ink.gamma_multiply(0.5)))
        .corner_radius(8)
        .inner_margin(Margin::symmetric(12, 10))
        .show(ui, |ui| {
            ui.horizontal_top(|ui| {
                let (rect, _) = ui.allocate_exact_size(Vec2::splat(18.0), Sense::hover());
                icon.paint(ui.painter(), rect, ink);
                ui.vertical(|ui| {
                    ui.set_width(ui.available_width());
                    ui.spacing_mut().item_spacing.y = 3.0;
                    ui.add(egui::Label::new(egui::RichText::new(what).color(*theme.text).strong()).wrap().selectable(true));
                    if !advice.is_empty() {
                        ui.add(egui::Label::new(egui::RichText::new(advice).color(*theme.text)).wrap().selectable(true));
                    }
                    ui.horizontal_wrapped(buttons);
                });
            });
        });
}

/// A line with a small coloured sign before it: a check's outcome.
pub fn finding(ui: &mut Ui, tone: Tone, text: &str) {
    let theme = Theme::of(ui.visuals());
    let (icon, ink) = match tone {
        Tone::Note => (Icon::Check, *theme.running),
        Tone::Warning => (Icon::Warning, *theme.warning),
        Tone::Failure => (Icon::Cross, *theme.error),
    };
    ui.horizontal_top(|ui| {
        ui.spacing_mut().item_spacing.x = 6.0;
        let (rect, _) = ui.allocate_exact_size(Vec2::new(14.0, 18.0), Sense::hover());
        icon.paint(ui.painter(), rect, ink);
        let color = if tone == Tone::Note { *theme.weak_text } else { ink };
        ui.add(egui::Label::new(egui::RichText::new(text).color(color)).wrap());
    });
}

/// A coloured word in a rounded box: a machine's state. The word says it too, never colour alone.
pub fn badge(ui: &mut Ui, word: &str, ink: Color32) {
    let theme = Theme::of(ui.visuals());
    Frame::new().fill(ink.gamma_multiply(0.16)).corner_radius(9).inner_margin(Margin::symmetric(9, 2)).show(ui, |ui| {
        ui.spacing_mut().item_spacing.x = 6.0;
        ui.horizontal(|ui| {
            let (rect, _) = ui.allocate_exact_size(Vec2::new(8.0, 12.0), Sense::hover());
            ui.painter().circle_filled(rect.center(), 3.5, ink);
            ui.label(egui::RichText::new(word).size(12.5).color(*theme.text));
        });
    });
}

/// A weak caption over a value, for lists of facts.
pub fn fact(ui: &mut Ui, icon: Icon, caption: &str, value: &str) {
    let theme = Theme::of(ui.visuals());
    ui.horizontal(|ui| {
        let (rect, _) = ui.allocate_exact_size(Vec2::splat(17.0), Sense::hover());
        icon.paint(ui.painter(), rect, *theme.weak_text);
        ui.allocate_ui_with_layout(Vec2::new(84.0, 18.0), egui::Layout::left_to_right(egui::Align::Center), |ui| {
            ui.set_min_width(84.0);
            ui.label(egui::RichText::new(caption).color(*theme.weak_text));
        });
        ui.add(egui::Label::new(value).truncate());
    });
}

/// A picture in place of a machine's screen, for one that has none yet.
pub fn blank_screen(painter: &egui::Painter, rect: Rect, theme: &Theme, text: &str) {
    painter.rect_filled(rect, CornerRadius::same(8), *theme.stage);
    let side = (rect.height() * 0.3).min(46.0);
    let ink = Color32::from_gray(130);
    Icon::Bellglass.paint(
        painter,
        Rect::from_center_size(rect.center() - egui::vec2(0.0, if text.is_empty() { 0.0 } else { 10.0 }), Vec2::splat(side)),
        ink,
    );
    if !text.is_empty() {
        painter.text(
            rect.center() + egui::vec2(0.0, side * 0.6 + 4.0),
            Align2::CENTER_CENTER,
            text,
            FontId::proportional(13.0),
            ink,
        );
    }
}

/// The name of a file for people: without its folder, if it has a name at all.
pub fn file_name_text(path: &std::path::Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// A number of bytes for people: binary units, as memory and disks are counted here.
pub fn bytes_text(bytes: u64) -> String {
    const KIB: f64 = 1024.0;
    let value = bytes as f64;
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{:.0} KiB", value / KIB),
        1_048_576..1_073_741_824 => format!("{:.0} MiB", value / KIB.powi(2)),
        _ => {
            let gib = value / KIB.powi(3);
            if gib.fract() < 0.05 || gib >= 100.0 { format!("{gib:.0} GiB") } else { format!("{gib:.1} GiB") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_in_the_unit_a_person_would_use() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (2048, "2 KIB"),
            (512 << 20, "512 MiB"),
            (4 << 30, "4 GiB"),
            ((3 << 30) + (1 << 29), "3.5 GiB"),
            (500 << 30, "500 GiB"),
        ] {
            assert_eq!(bytes_text(bytes).to_lowercase(), text.to_lowercase());
        }
    }
}
