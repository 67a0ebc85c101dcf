//! The colour tokens, read from `themes/*.ron`, and how egui's own widgets take them.

use std::fmt;
use std::sync::OnceLock;

use egui::{Color32, CornerRadius, FontFamily, FontId, Margin, Shadow, Stroke, TextStyle, Vec2};
use serde::Deserialize;

/// The tokens of one theme.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Theme {
    /// Behind everything.
    pub window: Hex,
    /// Cards, lists and fields.
    pub surface: Hex,
    /// Buttons and badges.
    pub raised: Hex,
    /// A button under the pointer.
    pub hovered: Hex,
    /// A button held down.
    pub pressed: Hex,
    /// Lines between things.
    pub border: Hex,
    /// Text.
    pub text: Hex,
    /// Less important text.
    pub weak_text: Hex,
    /// The one action that matters most; links; focus.
    pub accent: Hex,
    /// Text on `accent`.
    pub on_accent: Hex,
    /// Behind what is selected.
    pub selection: Hex,
    /// A machine that runs.
    pub running: Hex,
    /// A machine that is paused.
    pub paused: Hex,
    /// Text that warns.
    pub warning: Hex,
    /// Behind text that warns.
    pub warning_surface: Hex,
    /// Text of failures.
    pub error: Hex,
    /// Behind text of failures.
    pub error_surface: Hex,
    /// Around a guest's screen.
    pub stage: Hex,
}

/// A colour, written `#rrggbb` in the files.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Hex(pub Color32);

impl fmt::Debug for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.to_hex())
    }
}

impl TryFrom<String> for Hex {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Color32::from_hex(&text).map(Self).map_err(|_| format!("{text} is not a colour such as #1c2430"))
    }
}

impl std::ops::Deref for Hex {
    type Target = Color32;
    fn deref(&self) -> &Color32 {
        &self.0
    }
}

impl Theme {
    /// The tokens for egui's present mode.
    pub fn of(visuals: &egui::Visuals) -> &'static Theme {
        if visuals.dark_mode { Self::dark() } else { Self::light() }
    }

    /// The light theme.
    pub fn light() -> &'static Theme {
        static LIGHT: OnceLock<Theme> = OnceLock::new();
        LIGHT.get_or_init(|| parse(include_str!("../themes/light.ron")))
    }

    /// The dark theme.
    pub fn dark() -> &'static Theme {
        static DARK: OnceLock<Theme> = OnceLock::new();
        DARK.get_or_init(|| parse(include_str!("../themes/dark.ron")))
    }
}

fn parse(text: &str) -> Theme {
    // Part of this program and read by its tests, so it cannot fail on a person's machine.
    ron::from_str(text).unwrap_or_else(|error| panic!("a built-in theme does not parse: {error}"))
}

/// Gives a window our looks, light and dark. Which one shows follows the desktop, unless `BELLGLASS_THEME` says `light` or
/// `dark`; desktops on X11 do not tell, and get the dark one.
pub fn apply(ctx: &egui::Context) {
    match std::env::var("BELLGLASS_THEME").as_deref() {
        Ok("light") => ctx.set_theme(egui::Theme::Light),
        Ok("dark") => ctx.set_theme(egui::Theme::Dark),
        _ => {}
    }
    for (mode, theme) in [(egui::Theme::Light, Theme::light()), (egui::Theme::Dark, Theme::dark())] {
        ctx.style_mut_of(mode, |style| style_from(theme, style));
    }
}

fn style_from(theme: &Theme, style: &mut egui::Style) {
    let font = |size| FontId::new(size, FontFamily::Proportional);
    style.text_styles = [
        (TextStyle::Small, font(11.5)),
        (TextStyle::Body, font(14.0)),
        (TextStyle::Button, font(14.0)),
        (TextStyle::Heading, font(21.0)),
        (TextStyle::Monospace, FontId::new(13.0, FontFamily::Monospace)),
    ]
    .into();
    let spacing = &mut style.spacing;
    spacing.item_spacing = Vec2::new(8.0, 8.0);
    spacing.button_padding = Vec2::new(12.0, 6.0);
    spacing.interact_size = Vec2::new(36.0, 30.0);
    spacing.menu_margin = Margin::same(6);
    spacing.window_margin = Margin::same(20);
    spacing.slider_width = 220.0;
    spacing.slider_rail_height = 5.0;
    style.interaction.selectable_labels = false;
    style.interaction.tooltip_delay = 0.4;

    let visuals = &mut style.visuals;
    visuals.panel_fill = *theme.window;
    visuals.window_fill = *theme.surface;
    visuals.window_stroke = Stroke::new(1.0, *theme.border);
    visuals.window_corner_radius = CornerRadius::same(12);
    visuals.menu_corner_radius = CornerRadius::same(8);
    visuals.window_shadow = Shadow { offset: [0, 8], blur: 28, spread: 0, color: Color32::from_black_alpha(70) };
    visuals.popup_shadow = Shadow { offset: [0, 4], blur: 14, spread: 0, color: Color32::from_black_alpha(50) };
    visuals.extreme_bg_color = *theme.surface;
    visuals.text_edit_bg_color = Some(*theme.surface);
    visuals.faint_bg_color = *theme.raised;
    visuals.code_bg_color = *theme.raised;
    visuals.hyperlink_color = *theme.accent;
    visuals.warn_fg_color = *theme.warning;
    visuals.error_fg_color = *theme.error;
    visuals.weak_text_color = Some(*theme.weak_text);
    visuals.selection.bg_fill = *theme.selection;
    visuals.selection.stroke = Stroke::new(1.5, *theme.accent);
    visuals.slider_trailing_fill = true;

    let radius = CornerRadius::same(7);
    for (state, fill, border, expansion) in [
        (&mut visuals.widgets.noninteractive, *theme.surface, *theme.border, 0.0),
        (&mut visuals.widgets.inactive, *theme.raised, *theme.border, 0.0),
        (&mut visuals.widgets.hovered, *theme.hovered, *theme.border, 0.0),
        (&mut visuals.widgets.active, *theme.pressed, *theme.accent, 0.0),
        (&mut visuals.widgets.open, *theme.hovered, *theme.border, 0.0),
    ] {
        state.bg_fill = fill;
        state.weak_bg_fill = fill;
        state.bg_stroke = Stroke::new(1.0, border);
        state.fg_stroke = Stroke::new(1.5, *theme.text);
        state.corner_radius = radius;
        state.expansion = expansion;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// WCAG 2 relative luminance.
    fn luminance(color: Color32) -> f64 {
        let part = |value: u8| {
            let value = f64::from(value) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * part(color.r()) + 0.7152 * part(color.g()) + 0.0722 * part(color.b())
    }

    #[test]
    fn every_text_can_be_read_on_what_it_stands_on() {
        for theme in [Theme::light(), Theme::dark()] {
            for (name, text, behind) in [
                ("text on window", theme.text, theme.window),
                ("text on selection", theme.text, theme.selection),
                ("text on a button", theme.text, theme.hovered),
                ("weak text", theme.weak_text, theme.window),
                ("weak text on a card", theme.weak_text, theme.surface),
                ("weak text on selection", theme.weak_text, theme.selection),
                ("accent", theme.on_accent, theme.accent),
                ("running", theme.running, theme.surface),
                ("paused", theme.paused, theme.surface),
                ("warning", theme.warning, theme.warning_surface),
                ("error", theme.error, theme.error_surface),
            ] {
                let (a, b) = (luminance(*text), luminance(*behind));
                let contrast = (a.max(b) + 0.05) / (a.min(b) + 0.05);
                assert!(contrast >= 4.5, "{name}: {text:?} on {behind:?} has only {contrast:.2}");
            }
        }
    }
}
