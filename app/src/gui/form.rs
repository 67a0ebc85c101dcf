//! The rows that pages with settings share: the wizard's and a machine's.

use std::path::PathBuf;

use egui::{DragValue, Response, RichText, ScrollArea, Slider, SliderClamping, TextEdit, Ui};
use engine_config::{Host, check_size};
use ui_assets::{Icon, Theme};

use super::file_dialog::{FileDialog, Wanted};
use super::parts::{self, Tone, Weight, bytes_text, finding};

const PAGE_WIDTH: f32 = 680.0;
const CAPTION_WIDTH: f32 = 84.0;

/// A passphrase, which no log shows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

/// A page of cards in the middle of the window, under its heading.
pub fn page_ui(ui: &mut Ui, heading: &str, contents: impl FnOnce(&mut Ui)) {
    ScrollArea::vertical().show(ui, |ui| {
        let margin = ((ui.available_width() - PAGE_WIDTH) / 2.0).max(0.0);
        ui.horizontal_top(|ui| {
            ui.add_space(margin);
            ui.vertical(|ui| {
                ui.set_width(PAGE_WIDTH.min(ui.available_width()));
                ui.add_space(12.0);
                ui.heading(heading);
                ui.add_space(6.0);
                contents(ui);
            });
        });
    });
}

/// What stands before a field. Its id labels the field for screen readers.
pub fn caption_ui(ui: &mut Ui, text: &str) -> Response {
    let theme = Theme::of(ui.visuals());
    let layout = egui::Layout::left_to_right(egui::Align::Center);
    ui.allocate_ui_with_layout(egui::vec2(CAPTION_WIDTH, ui.spacing().interact_size.y), layout, |ui| {
        ui.set_min_width(CAPTION_WIDTH);
        ui.label(RichText::new(text).color(*theme.weak_text))
    })
    .inner
}

/// Lines under a field.
pub fn indented(ui: &mut Ui, contents: impl FnOnce(&mut Ui)) {
    ui.horizontal_top(|ui| {
        ui.add_space(CAPTION_WIDTH + 8.0);
        ui.vertical(|ui| {
            ui.spacing_mut().item_spacing.y = 4.0;
            contents(ui);
        });
    });
}

/// A small line that explains.
pub fn weak(ui: &mut Ui, text: &str) {
    let theme = Theme::of(ui.visuals());
    ui.add(egui::Label::new(RichText::new(text).size(12.5).color(*theme.weak_text)).wrap());
}

/// A field for the path of an ISO, and the desktop's dialog beside it. Returns the field.
pub fn iso_row_ui(ui: &mut Ui, caption: &str, iso: &mut String, chooser: &mut Option<FileDialog>, hint: &str) -> Response {
    file_row_ui(ui, caption, iso, chooser, hint, Wanted::Iso)
}

/// The same for the path of any file.
pub fn file_row_ui(
    ui: &mut Ui,
    caption: &str,
    path: &mut String,
    chooser: &mut Option<FileDialog>,
    hint: &str,
    wanted: Wanted,
) -> Response {
    ui.horizontal(|ui| {
        let label = caption_ui(ui, caption);
        let field = TextEdit::singleline(path).hint_text(hint).desired_width(ui.available_width() - 130.0);
        let response = ui.add(field).labelled_by(label.id);
        let free = !FileDialog::is_open(chooser);
        if ui.add_enabled_ui(free, |ui| parts::button(ui, Icon::Folder, "Choose…", Weight::Plain)).inner.clicked() {
            let near = expand_home(path.trim());
            *chooser = Some(FileDialog::open(ui.ctx(), wanted, Some(&near)));
        }
        response
    })
    .inner
}

/// A field for a passphrase. Returns the field.
pub fn secret_row_ui(ui: &mut Ui, caption: &str, secret: &mut Secret) -> Response {
    ui.horizontal(|ui| {
        let label = caption_ui(ui, caption);
        let field = TextEdit::singleline(&mut secret.0).password(true).desired_width(f32::INFINITY);
        ui.add(field).labelled_by(label.id)
    })
    .inner
}

/// The rows for CPUs and memory.
pub fn size_rows_ui(ui: &mut Ui, host: &Host, cpus: &mut u32, memory_mib: &mut u64) {
    ui.horizontal(|ui| {
        let label = caption_ui(ui, "CPUs");
        let most = host.cpus.max(4);
        ui.add(Slider::new(cpus, 1..=most).integer().clamping(SliderClamping::Edits).show_value(false)).labelled_by(label.id);
        ui.add(DragValue::new(cpus).range(1..=64)).labelled_by(label.id);
        weak(ui, &format!("This computer has {}.", host.cpus));
    });
    ui.horizontal(|ui| {
        let label = caption_ui(ui, "Memory");
        let most = host.memory_mib.max(64);
        let slider = Slider::new(memory_mib, 16..=most).logarithmic(true).step_by(16.0).clamping(SliderClamping::Edits);
        ui.add(slider.show_value(false)).labelled_by(label.id);
        ui.add(DragValue::new(memory_mib).range(1..=u64::from(u32::MAX)).suffix(" MiB")).labelled_by(label.id);
        weak(ui, &format!("{} of {} are free.", bytes_text(host.available_mib << 20), bytes_text(host.memory_mib << 20)));
    });
}

/// What is wrong, or unwise, about a machine of this size.
pub fn size_findings_ui(ui: &mut Ui, host: &Host, cpus: u32, memory_mib: u64) {
    for problem in check_size(cpus, memory_mib, host) {
        finding(ui, Tone::Failure, &problem.message);
    }
    if memory_mib <= host.memory_mib && memory_mib > host.available_mib {
        let text = "This is more memory than is free now. Other programs will become slow while the machine runs.";
        finding(ui, Tone::Warning, text);
    }
    if cpus > host.cpus {
        finding(ui, Tone::Warning, "More CPUs than this computer has make the machine slower, not faster.");
    }
}

/// `~/x` as a person types it.
pub fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), directories::BaseDirs::new()) {
        (Some(rest), Some(dirs)) => dirs.home_dir().join(rest),
        _ => PathBuf::from(path),
    }
}
