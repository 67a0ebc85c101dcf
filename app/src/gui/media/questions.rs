//! What is asked before something is done to an image: names, formats, sizes, and whether the person is sure. What cannot be is
//! told beside the field.

use std::path::{Path, PathBuf};

use egui::{ComboBox, Context, DragValue, Id, Modal, TextEdit, Ui};
use engine_disk::{BackingFiles, Format, OpenOptions};
use ui_assets::Icon;

use super::catalogue::Image;
use super::operations::unfinished;
use crate::gui::file_dialog::{FileDialog, Wanted};
use crate::gui::form::{Secret, caption_ui, expand_home, indented, secret_row_ui, weak};
use crate::gui::parts::{self, Tone, Weight, bytes_text, finding};

const GIB: u64 = 1 << 30;
/// The largest disk that is offered; formats have lower limits of their own and say so.
const MOST_GIB: f64 = 64.0 * 1024.0;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Make an empty disk.
    Create {
        /// Where.
        path: PathBuf,
        /// What it becomes.
        format: Format,
        /// Bytes.
        size: u64,
    },
    /// Copy it.
    Convert {
        /// What.
        image: Image,
        /// Into which format.
        format: Format,
        /// Clusters are stored compressed.
        compressed: bool,
        /// Where to.
        to: PathBuf,
        /// What unlocks it, if it is encrypted.
        passphrase: Option<Secret>,
    },
    /// Change its size.
    Resize {
        /// Of which.
        image: Image,
        /// Bytes.
        size: u64,
        /// The person knows that it becomes smaller.
        shrink: bool,
        /// What unlocks it, if it is encrypted.
        passphrase: Option<Secret>,
    },
    /// Name a missing file's new place wherever its old one is named.
    Locate {
        /// What is missing.
        missing: Image,
        /// What is built on it.
        overlays: Vec<Image>,
        /// Where it is now.
        to: PathBuf,
    },
    /// Look for errors and repair what `repair` says.
    Check {
        /// In which.
        image: Image,
        /// `leaks` or `all`.
        repair: Option<&'static str>,
    },
    /// Make it smaller on the host.
    Compact(Image),
    /// Move it to the trash.
    Delete(Image),
}

impl Plan {
    /// What the person reads while it is done.
    pub fn title(&self) -> String {
        match self {
            Plan::Create { path, .. } => format!("Making {}", path.display()),
            Plan::Convert { image, .. } => format!("Converting {}", image.name()),
            Plan::Resize { image, .. } => format!("Resizing {}", image.name()),
            Plan::Check { image, repair: None } => format!("Checking {}", image.name()),
            Plan::Check { image, repair: Some(_) } => format!("Repairing {}", image.name()),
            Plan::Compact(image) => format!("Compacting {}", image.name()),
            Plan::Locate { missing, .. } => format!("Finding {} again", missing.name()),
            Plan::Delete(image) => format!("Deleting {}", image.name()),
        }
    }

    /// The files that nothing else must touch meanwhile.
    pub fn files(&self) -> Vec<PathBuf> {
        match self {
            Plan::Create { path, .. } => vec![path.clone()],
            Plan::Convert { image, to, .. } => vec![image.path.clone(), to.clone(), unfinished(to)],
            Plan::Compact(image) => vec![image.path.clone(), unfinished(&image.path)],
            Plan::Locate { missing, overlays, to } => {
                let paths = overlays.iter().map(|overlay| &overlay.path).chain([&missing.path, to]);
                paths.cloned().collect()
            }
            Plan::Resize { image, .. } | Plan::Check { image, .. } | Plan::Delete(image) => vec![image.path.clone()],
        }
    }

    /// Whether stopping it halfway leaves everything as it was.
    pub fn is_stoppable(&self) -> bool {
        matches!(self, Plan::Convert { .. } | Plan::Compact(_) | Plan::Check { repair: None, .. })
    }
}

/// The question that is open.
pub enum Question {
    /// Of which format and size, and where?
    New {
        /// As entered.
        path: String,
        /// As chosen.
        format: Format,
        /// As entered.
        gib: f64,
    },
    /// Into which format, and where?
    Convert {
        /// What is copied.
        image: Image,
        /// As chosen.
        format: Format,
        /// As ticked.
        compressed: bool,
        /// As entered.
        path: String,
        /// As entered, if it is encrypted.
        passphrase: Secret,
    },
    /// How large?
    Resize {
        /// Which.
        image: Image,
        /// As entered.
        gib: f64,
        /// The person has ticked that data may go.
        shrink: bool,
        /// As entered, if it is encrypted.
        passphrase: Secret,
        /// Bytes that are free where it lies.
        room: Option<u64>,
    },
    /// Where is it?
    Locate {
        /// What is missing.
        missing: Image,
        /// What is built on it.
        overlays: Vec<Image>,
        /// As entered.
        path: String,
        /// The desktop's dialog.
        chooser: Option<FileDialog>,
    },
    /// Really?
    Delete(Image),
    /// It cannot be deleted: who needs it, a line each.
    Needed(Image, Vec<String>),
}

/// What came of it.
pub enum Answer {
    /// Do this.
    Yes(Box<Plan>),
    /// Leave it.
    No,
}

impl Question {
    /// A new disk in `folder`.
    pub fn new_disk(folder: &Path) -> Self {
        let free = |number: &u32| !folder.join(disk_name(*number)).exists();
        let name = disk_name((1..1000).find(free).unwrap_or(1));
        Question::New { path: folder.join(name).display().to_string(), format: Format::Qcow2, gib: 32.0 }
    }

    /// A copy beside the image, in the format that most people want next.
    pub fn convert(image: Image) -> Self {
        let format = if image.format == Format::Qcow2 { Format::Raw } else { Format::Qcow2 };
        let path = copy_path(&image.path, format).display().to_string();
        Question::Convert { image, format, compressed: false, path, passphrase: Secret::default() }
    }

    /// A new size, beginning with the present one.
    pub fn resize(image: Image) -> Self {
        let gib = image.size.unwrap_or(0) as f64 / GIB as f64;
        let room =
            image.path.parent().and_then(|folder| rustix::fs::statvfs(folder).ok()).map(|host| host.f_bavail * host.f_frsize);
        Question::Resize { image, gib, shrink: false, passphrase: Secret::default(), room }
    }

    /// Where a missing file is now, beginning with where it was.
    pub fn locate(missing: Image, overlays: Vec<Image>) -> Self {
        let path = missing.path.display().to_string();
        Question::Locate { missing, overlays, path, chooser: None }
    }

    /// Draws it; the answer, once there is one.
    pub fn modal_ui(&mut self, ctx: &Context) -> Option<Answer> {
        let mut answer = None;
        let modal = Modal::new(Id::unique("media-question")).frame(egui::Frame::window(&ctx.global_style())).show(ctx, |ui| {
            ui.set_width(560.0);
            match self {
                Question::New { path, format, gib } => new_ui(ui, path, format, gib, &mut answer),
                Question::Convert { image, format, compressed, path, passphrase } => {
                    convert_ui(ui, image, format, compressed, path, passphrase, &mut answer);
                }
                Question::Resize { image, gib, shrink, passphrase, room } => {
                    resize_ui(ui, image, gib, shrink, passphrase, *room, &mut answer);
                }
                Question::Locate { missing, overlays, path, chooser } => {
                    locate_ui(ui, missing, overlays, path, chooser, &mut answer);
                }
                Question::Delete(image) => delete_ui(ui, image, &mut answer),
                Question::Needed(image, needs) => needed_ui(ui, image, needs, &mut answer),
            }
        });
        if modal.should_close() && answer.is_none() {
            answer = Some(Answer::No);
        }
        answer
    }
}

fn disk_name(number: u32) -> String {
    format!("disk {number}.qcow2")
}

/// A name beside the original that nobody has yet.
fn copy_path(path: &Path, format: Format) -> PathBuf {
    let stem = path.file_stem().map_or_else(|| "copy".to_owned(), |stem| stem.to_string_lossy().into_owned());
    let name = |number: u32| match number {
        0 => format!("{stem}.{}", extension(format)),
        number => format!("{stem} {}.{}", number + 1, extension(format)),
    };
    let free = (0..1000).map(name).find(|name| !path.with_file_name(name).exists());
    path.with_file_name(free.unwrap_or_else(|| name(0)))
}

fn extension(format: Format) -> &'static str {
    match format {
        Format::Raw => "img",
        Format::Vhd => "vhd",
        other => other.name(),
    }
}

/// The formats that are offered. LUKS is not: nobody is asked for a secret here.
fn targets() -> impl Iterator<Item = Format> {
    Format::all().filter(|format| !matches!(format, Format::Iso | Format::Luks))
}

/// What a person calls a format.
fn title(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw: the disk's bytes",
        Format::Qcow2 => "qcow2: grows, snapshots",
        Format::Vdi => "VDI: VirtualBox",
        Format::Vmdk => "VMDK: VMware",
        Format::Vhd => "VHD: Virtual PC, Azure",
        Format::Vhdx => "VHDX: Hyper-V",
        Format::Iso => "ISO: CD or DVD",
        Format::Luks => "LUKS: encrypted",
    }
}

/// The row for a format; whether another one was chosen.
fn format_ui(ui: &mut Ui, format: &mut Format) -> bool {
    let before = *format;
    ui.horizontal(|ui| {
        caption_ui(ui, "Format");
        ComboBox::from_id_salt("format").selected_text(title(*format)).width(260.0).show_ui(ui, |ui| {
            for each in targets() {
                ui.selectable_value(format, each, title(each));
            }
        });
    });
    *format != before
}

/// The row for a new file's path; the path, if a file can be made there.
fn path_ui(ui: &mut Ui, path: &mut String) -> Option<PathBuf> {
    ui.horizontal(|ui| {
        let label = caption_ui(ui, "File");
        ui.add(TextEdit::singleline(path).desired_width(f32::INFINITY)).labelled_by(label.id);
    });
    let file = expand_home(path.trim());
    let problem = if !file.is_absolute() {
        "Enter the whole path of the new file."
    } else if file.symlink_metadata().is_ok() {
        "There is a file of this name already."
    } else {
        return Some(file);
    };
    indented(ui, |ui| finding(ui, Tone::Failure, problem));
    None
}

/// The row for a size in GiB; bytes, a multiple of 512.
fn size_ui(ui: &mut Ui, gib: &mut f64) -> u64 {
    ui.horizontal(|ui| {
        let label = caption_ui(ui, "Size");
        let speed = (*gib * 0.01).max(0.01);
        ui.add(DragValue::new(gib).range(0.001..=MOST_GIB).speed(speed).max_decimals(3).suffix(" GiB")).labelled_by(label.id);
    });
    (*gib * GIB as f64) as u64 / 512 * 512
}

/// The row at the end, for buttons, from the right.
fn last_row_ui(ui: &mut Ui, buttons: impl FnOnce(&mut Ui)) {
    ui.add_space(8.0);
    let row = egui::vec2(ui.available_width(), ui.spacing().interact_size.y);
    ui.allocate_ui_with_layout(row, egui::Layout::right_to_left(egui::Align::Center), buttons);
}

fn answer_ui(ui: &mut Ui, icon: Icon, word: &str, plan: Option<Plan>, answer: &mut Option<Answer>) {
    last_row_ui(ui, |ui| {
        let yes = ui.add_enabled_ui(plan.is_some(), |ui| parts::button(ui, icon, word, Weight::Primary)).inner;
        if yes.clicked() {
            *answer = plan.map(|plan| Answer::Yes(Box::new(plan)));
        }
        if ui.button("Cancel").clicked() {
            *answer = Some(Answer::No);
        }
    });
}

fn new_ui(ui: &mut Ui, path: &mut String, format: &mut Format, gib: &mut f64, answer: &mut Option<Answer>) {
    ui.heading("New disk");
    if format_ui(ui, format) {
        *path = Path::new(path.trim()).with_extension(extension(*format)).display().to_string();
    }
    let size = size_ui(ui, gib);
    let file = path_ui(ui, path);
    indented(ui, |ui| weak(ui, "It takes almost no space until a guest writes to it."));
    let plan = file.map(|path| Plan::Create { path, format: *format, size });
    answer_ui(ui, Icon::Plus, "Make it", plan, answer);
}

fn convert_ui(
    ui: &mut Ui,
    image: &Image,
    format: &mut Format,
    compressed: &mut bool,
    path: &mut String,
    passphrase: &mut Secret,
    answer: &mut Option<Answer>,
) {
    ui.heading(format!("Convert {}", image.name()));
    ui.label("The original stays as it is. The copy is compared with it before it gets its name.");
    if format_ui(ui, format) {
        *path = copy_path(&image.path, *format).display().to_string();
    }
    let file = path_ui(ui, path);
    let unlocked = passphrase_ui(ui, image, passphrase);
    let can_compress = *format == Format::Qcow2;
    *compressed &= can_compress;
    indented(ui, |ui| {
        ui.add_enabled(can_compress, egui::Checkbox::new(compressed, "Compressed: smaller, slower to read"));
        if image.base.is_some() {
            weak(ui, "What it is built on is copied too: the new file needs no other.");
        }
        if image.encrypted {
            weak(ui, "The copy is not encrypted: whoever has the file can read it.");
        }
        if image.snapshots > 0 {
            weak(ui, "The snapshots inside stay in the original; the copy holds the disk as it is now.");
        }
    });
    let (image, format, compressed) = (image.clone(), *format, *compressed);
    let plan = file.zip(unlocked).map(|(to, passphrase)| Plan::Convert { image, format, compressed, to, passphrase });
    answer_ui(ui, Icon::HardDisk, "Convert", plan, answer);
}

fn resize_ui(
    ui: &mut Ui,
    image: &Image,
    gib: &mut f64,
    shrink: &mut bool,
    passphrase: &mut Secret,
    room: Option<u64>,
    answer: &mut Option<Answer>,
) {
    let now = image.size.unwrap_or(0);
    let now_gib = now as f64 / GIB as f64;
    ui.heading(format!("Resize {}", image.name()));
    ui.label(format!("The disk has {} now.", bytes_text(now)));
    let size = size_ui(ui, gib);
    indented(ui, |ui| {
        // From a quarter to four times of what it has; the field takes whatever else is wanted.
        let range = (now_gib / 4.0).max(0.001)..=(now_gib * 4.0).clamp(1.0, MOST_GIB);
        ui.spacing_mut().slider_width = 330.0;
        let slider = egui::Slider::new(gib, range).logarithmic(true).show_value(false).clamping(egui::SliderClamping::Never);
        ui.add(slider).widget_info(|| egui::WidgetInfo::labeled(egui::Role::Slider, true, "Drag to grow"));
        ui.horizontal(|ui| {
            for (word, more) in [("+ 1 GiB", 1.0), ("+ 10 GiB", 10.0), ("+ 100 GiB", 100.0)] {
                if ui.button(word).clicked() {
                    *gib = (*gib + more).min(MOST_GIB);
                }
            }
            if ui.button("As it is").clicked() {
                *gib = now_gib;
            }
        });
        if let Some(room) = room.filter(|room| size.saturating_sub(image.on_disk.unwrap_or(0)) > *room) {
            let words = format!("When it is full it will not fit: {} are free where it lies.", bytes_text(room));
            finding(ui, Tone::Warning, &words);
        }
    });
    let unlocked = passphrase_ui(ui, image, passphrase);
    let smaller = size < now;
    indented(ui, |ui| {
        if smaller {
            finding(ui, Tone::Failure, "Whatever lies behind the new end is lost for good. Shrink the guest's partitions first.");
            ui.checkbox(shrink, "The guest no longer uses what is cut off");
        } else {
            weak(
                ui,
                "The guest sees a larger disk at its next start. Its partitions stay as they are until they are grown there.",
            );
        }
    });
    let changed = size != now && size > 0;
    let is_meant = changed && (!smaller || *shrink);
    let plan =
        unlocked.filter(|_| is_meant).map(|passphrase| Plan::Resize { image: image.clone(), size, shrink: smaller, passphrase });
    answer_ui(ui, Icon::Scale, "Change the size", plan, answer);
}

/// The row for what unlocks an encrypted image: nothing to ask (`Some(None)`), what was entered, or nothing yet (`None`).
fn passphrase_ui(ui: &mut Ui, image: &Image, passphrase: &mut Secret) -> Option<Option<Secret>> {
    if !image.encrypted {
        return Some(None);
    }
    secret_row_ui(ui, "Passphrase", passphrase);
    if passphrase.0.is_empty() {
        indented(ui, |ui| weak(ui, "The image is encrypted. Its passphrase unlocks it for this once; it is not kept."));
        return None;
    }
    Some(Some(passphrase.clone()))
}

fn locate_ui(
    ui: &mut Ui,
    missing: &Image,
    overlays: &[Image],
    path: &mut String,
    chooser: &mut Option<FileDialog>,
    answer: &mut Option<Answer>,
) {
    ui.heading(format!("Where is {}?", missing.name()));
    ui.label("These name its old place, and will name the new one:");
    let lines = missing.users.iter().map(|user| format!("the machine {user}")).chain(overlays.iter().map(Image::name));
    for line in lines {
        ui.label(format!("  •  {line}"));
    }
    if let Some(chosen) = FileDialog::follow(chooser) {
        *path = chosen.display().to_string();
    }
    ui.horizontal(|ui| {
        let label = caption_ui(ui, "File");
        ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
            let open = !FileDialog::is_open(chooser);
            if ui.add_enabled_ui(open, |ui| parts::button(ui, Icon::Folder, "Choose…", Weight::Plain)).inner.clicked() {
                *chooser = Some(FileDialog::open(ui.ctx(), Wanted::Image, Some(missing.path.as_path())));
            }
            ui.add(TextEdit::singleline(path).desired_width(f32::INFINITY)).labelled_by(label.id);
        });
    });
    FileDialog::hint_ui(chooser, ui);
    let file = expand_home(path.trim());
    let is_there = file.is_absolute() && file.is_file();
    if !is_there {
        indented(ui, |ui| weak(ui, "There is no such file."));
    }
    let plan = is_there.then(|| Plan::Locate { missing: missing.clone(), overlays: overlays.to_vec(), to: file });
    answer_ui(ui, Icon::Check, "Use this file", plan, answer);
}

fn needed_ui(ui: &mut Ui, image: &Image, needs: &[String], answer: &mut Option<Answer>) {
    ui.heading(format!("{} is needed", image.name()));
    ui.label("It cannot be deleted as long as something else would be lost with it:");
    for line in needs {
        ui.label(format!("  •  {line}"));
    }
    ui.label("Convert what is built on it into an image of its own, or take it out of the drive, and then delete it.");
    last_row_ui(ui, |ui| {
        if parts::button(ui, Icon::Check, "Keep it", Weight::Primary).clicked() {
            *answer = Some(Answer::No);
        }
    });
}

fn delete_ui(ui: &mut Ui, image: &Image, answer: &mut Option<Answer>) {
    ui.heading(format!("Delete {}", image.name()));
    ui.label("The file goes to the trash, from where it can be put back:");
    ui.monospace(format!("{} ({})", image.path.display(), bytes_text(image.on_disk.unwrap_or(0))));
    answer_ui(ui, Icon::Trash, "Move to trash", Some(Plan::Delete(image.clone())), answer);
}

/// Moves an image to the trash, unless somebody uses it.
///
/// # Errors
/// A sentence; the file stays then.
pub fn move_to_trash(image: &Image) -> Result<(), String> {
    // What is damaged cannot be opened; nobody else can use it either.
    let alone = OpenOptions { format: Some(image.format), backing_files: BackingFiles::LeftOut, ..OpenOptions::new(&image.path) };
    let lock = engine_disk::open(&alone);
    if let Err(error @ engine_disk::DiskError::InUse { .. }) = &lock {
        return Err(error.to_string());
    }
    trash::delete(&image.path)
        .map_err(|error| format!("The file could not be moved to the trash ({error}): {}", image.path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_gets_a_name_that_nobody_has() {
        let folder = tempfile::tempdir().unwrap();
        let original = folder.path().join("a.qcow2");
        std::fs::write(&original, "x").unwrap();
        assert_eq!(copy_path(&original, Format::Vdi), folder.path().join("a.vdi"));
        assert_eq!(copy_path(&original, Format::Qcow2), folder.path().join("a 2.qcow2"));
        assert_eq!(copy_path(&original, Format::Raw), folder.path().join("a.img"));
    }
}
