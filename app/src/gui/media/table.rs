//! The list of images. What is built on another image stands under it, set in.

use egui::{Align2, CornerRadius, FontId, Rect, ScrollArea, Sense, Stroke, TextEdit, Ui, Vec2};
use ui_assets::{Icon, Theme};

use super::Media;
use super::catalogue::{Image, State};
use crate::gui::parts::{bytes_text, file_name_text};

const ROW_HEIGHT: f32 = 34.0;
const INDENT: f32 = 18.0;

/// The column whose ink says how the image is.
const STATE_COLUMN: usize = 6;

/// A column: its heading, how much of the width it takes, and how its text stands.
struct Column {
    heading: &'static str,
    width: f32,
    right: bool,
}

const COLUMNS: [Column; 7] = [
    Column { heading: "Name", width: 0.29, right: false },
    Column { heading: "Format", width: 0.07, right: false },
    Column { heading: "Size", width: 0.10, right: true },
    Column { heading: "On disk", width: 0.10, right: true },
    Column { heading: "Freeable", width: 0.10, right: true },
    Column { heading: "Used by", width: 0.16, right: false },
    Column { heading: "State", width: 0.18, right: false },
];

impl Media {
    /// The images that match the filter.
    pub(super) fn shown(&self) -> impl Iterator<Item = &Image> {
        let filter = self.filter.to_lowercase();
        self.catalogue.images.iter().filter(move |image| {
            image.name().to_lowercase().contains(&filter) || image.users.iter().any(|user| user.to_lowercase().contains(&filter))
        })
    }

    /// Draws the list.
    pub(super) fn table_ui(&mut self, ui: &mut Ui) {
        let field = TextEdit::singleline(&mut self.filter).hint_text("Filter images").desired_width(260.0);
        ui.add(field).widget_info(|| egui::WidgetInfo::labeled(egui::Role::TextInput, true, "Filter images"));
        let theme = Theme::of(ui.visuals());
        let (heading, _) = ui.allocate_exact_size(Vec2::new(ui.available_width(), 22.0), Sense::hover());
        for (column, place) in COLUMNS.iter().zip(cells(heading)) {
            text(ui, place, column, column.heading, 12.5, *theme.weak_text);
        }
        if self.catalogue.images.is_empty() {
            let words = if self.read { "No images yet. Make a new disk, or drop an image file here." } else { "" };
            ui.label(egui::RichText::new(words).color(*theme.weak_text));
        }
        let mut clicked = None;
        ScrollArea::vertical().auto_shrink(false).show_rows(ui, ROW_HEIGHT, self.shown().count(), |ui, range| {
            for image in self.shown().skip(range.start).take(range.len()) {
                let selected = self.selected.as_deref() == Some(image.path.as_path());
                if row_ui(ui, image, selected) {
                    clicked = Some(image.path.clone());
                }
            }
        });
        if clicked.is_some() {
            self.selected = clicked;
        }
    }
}

/// Draws one image; whether it was clicked.
fn row_ui(ui: &mut Ui, image: &Image, selected: bool) -> bool {
    let theme = Theme::of(ui.visuals());
    let (rect, response) = ui.allocate_exact_size(Vec2::new(ui.available_width(), ROW_HEIGHT), Sense::click());
    let state = state_text(image);
    response.widget_info(|| egui::WidgetInfo::selected(egui::Role::Button, true, selected, format!("{}, {state}", image.name())));
    if ui.is_rect_visible(rect) {
        let fill = match (selected, response.hovered()) {
            (true, _) => *theme.selection,
            (false, true) => *theme.hovered,
            (false, false) => egui::Color32::TRANSPARENT,
        };
        let border = if response.has_focus() { Stroke::new(2.0, *theme.accent) } else { Stroke::NONE };
        ui.painter().rect(rect, CornerRadius::same(7), fill, border, egui::StrokeKind::Inside);
        let known = |bytes: Option<u64>| bytes.map_or_else(|| "–".to_owned(), bytes_text);
        let users = if image.users.is_empty() { "no machine".to_owned() } else { image.users.join(", ") };
        let ink = match image.state {
            State::Fine => *theme.weak_text,
            State::InUse => *theme.running,
            State::NeedsCheck | State::Unfinished => *theme.warning,
            State::Missing | State::Damaged(_) => *theme.error,
        };
        let format = if image.state == State::Missing { "–" } else { image.format.name() };
        let freeable = known(image.freeable.filter(|bytes| *bytes > 0));
        let words = [image.name(), format.to_owned(), known(image.size), known(image.on_disk), freeable, users, state.clone()];
        for (at, ((column, mut place), word)) in COLUMNS.iter().zip(cells(rect)).zip(&words).enumerate() {
            if at == 0 {
                place.min.x += INDENT * image.depth.min(8) as f32;
                let icon = Rect::from_center_size(egui::pos2(place.left() + 9.0, rect.center().y), Vec2::splat(16.0));
                let picture = if image.format == engine_disk::Format::Iso { Icon::Disc } else { Icon::HardDisk };
                picture.paint(ui.painter(), icon, *theme.weak_text);
                place.min.x += 26.0;
            }
            let ink = if at == STATE_COLUMN { ink } else { *theme.text };
            text(ui, place, column, word, 14.0, ink);
        }
    }
    response.on_hover_text(details(image)).clicked()
}

/// The places of the columns in a row.
fn cells(row: Rect) -> [Rect; COLUMNS.len()] {
    const PADDING: f32 = 8.0;
    let mut left = row.left();
    COLUMNS.each_ref().map(|column| {
        let width = column.width * row.width();
        let place =
            Rect::from_min_size(egui::pos2(left + PADDING, row.top()), Vec2::new((width - 2.0 * PADDING).max(0.0), row.height()));
        left += width;
        place
    })
}

fn text(ui: &Ui, place: Rect, column: &Column, words: &str, size: f32, ink: egui::Color32) {
    let format = egui::TextFormat::simple(FontId::proportional(size), ink);
    let job = egui::text::LayoutJob {
        wrap: egui::text::TextWrapping::truncate_at_width(place.width()),
        ..egui::text::LayoutJob::single_section(words.to_owned(), format)
    };
    let galley = ui.painter().layout_job(job);
    let anchor = if column.right { Align2::RIGHT_CENTER } else { Align2::LEFT_CENTER };
    let at = anchor.anchor_size(if column.right { place.right_center() } else { place.left_center() }, galley.size());
    ui.painter().galley(at.min, galley, ink);
}

fn state_text(image: &Image) -> String {
    match (&image.state, &image.base) {
        (State::Fine, _) if image.encrypted => "encrypted, locked".to_owned(),
        (State::Fine, Some(base)) => format!("needs {}", file_name_text(base)),
        (State::Fine, None) if image.snapshots == 1 => "1 snapshot inside".to_owned(),
        (State::Fine, None) if image.snapshots > 1 => format!("{} snapshots inside", image.snapshots),
        (State::Fine, None) if image.orphan => "unused".to_owned(),
        (State::Fine, None) => "fine".to_owned(),
        (State::InUse, _) => "in use".to_owned(),
        (State::NeedsCheck, _) => "needs a check".to_owned(),
        (State::Unfinished, _) => "unfinished copy".to_owned(),
        (State::Missing, _) => "missing".to_owned(),
        (State::Damaged(_), _) => "damaged".to_owned(),
    }
}

fn details(image: &Image) -> String {
    let path = image.path.display();
    match &image.state {
        State::Damaged(reason) => format!("{path}\n{reason}"),
        State::Missing => {
            format!("{path}\nThe file is not there. If it was moved, Locate puts its new place where the old one is named.")
        }
        _ if image.encrypted => format!("{path}\nWhat is on it can only be read with its passphrase."),
        _ => match image.freeable {
            Some(bytes @ 1..) => {
                format!("{path}\nIt holds {} that the disk does not use. Compact gives them back.", bytes_text(bytes))
            }
            _ => path.to_string(),
        },
    }
}
