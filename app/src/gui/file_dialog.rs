//! The desktop's file dialog, away from the window's thread: it blocks until the person has chosen. The desktop's portal
//! shows it, or the program `zenity`. Where there is neither, that is said; every place that offers the dialog therefore has
//! a field for the path too.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use egui::Ui;
use ui_assets::Theme;

use super::job::Job;
use super::parts::{Tone, finding};

/// What to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A CD or DVD image.
    Iso,
    /// A disk or CD image of any format.
    Image,
}

/// What came of a dialog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// This file.
    File(PathBuf),
    /// The person left it.
    Nothing,
    /// It never opened.
    NoDialog,
}

/// `rfd` does not tell a dialog that was left from one that never opened. No person is as quick as this.
const QUICKEST_PERSON: Duration = Duration::from_millis(150);

/// A dialog that is open, or has just not opened.
pub enum FileDialog {
    /// It is open.
    Open(Job<Choice>),
    /// The desktop has none.
    Missing,
}

impl FileDialog {
    /// Opens the dialog, in the folder of `near` if that is there.
    pub fn open(ctx: &egui::Context, wanted: Wanted, near: Option<&Path>) -> Self {
        let folder = near.and_then(|path| if path.is_dir() { Some(path) } else { path.parent() }).map(Path::to_path_buf);
        Self::Open(Job::start(ctx, "file-dialog", move |_| {
            let mut dialog = match wanted {
                Wanted::Iso => rfd::FileDialog::new()
                    .set_title("Choose a CD or DVD image")
                    .add_filter("CD and DVD images", &["iso", "img", "ISO"]),
                Wanted::Image => rfd::FileDialog::new()
                    .set_title("Choose a disk or CD image")
                    .add_filter("Disk and CD images", &["qcow2", "img", "raw", "vdi", "vmdk", "vhd", "vhdx", "iso", "ISO"]),
            };
            dialog = dialog.add_filter("All files", &["*"]);
            if let Some(folder) = folder.filter(|folder| folder.is_dir()) {
                dialog = dialog.set_directory(folder);
            }
            let opened = Instant::now();
            match dialog.pick_file() {
                Some(path) => Choice::File(path),
                None if opened.elapsed() < QUICKEST_PERSON => Choice::NoDialog,
                None => Choice::Nothing,
            }
        }))
    }

    /// Follows a dialog: what was chosen, once. It is gone (`None`) after the person has closed it.
    pub fn follow(dialog: &mut Option<Self>) -> Option<PathBuf> {
        let Some(Self::Open(job)) = dialog else { return None };
        match job.poll()?.unwrap_or(Choice::NoDialog) {
            Choice::File(path) => {
                *dialog = None;
                Some(path)
            }
            Choice::Nothing => {
                *dialog = None;
                None
            }
            Choice::NoDialog => {
                *dialog = Some(Self::Missing);
                None
            }
        }
    }

    /// Whether one is open now.
    pub fn is_open(dialog: &Option<Self>) -> bool {
        matches!(dialog, Some(Self::Open(_)))
    }

    /// A line on where the dialog is, if there is anything to say.
    pub fn hint_ui(dialog: &Option<Self>, ui: &mut Ui) {
        let theme = Theme::of(ui.visuals());
        match dialog {
            None => {}
            Some(Self::Open(_)) => {
                let words = egui::RichText::new("The file dialog is open in a window of its own.");
                ui.label(words.size(12.5).color(*theme.weak_text));
            }
            Some(Self::Missing) => finding(
                ui,
                Tone::Warning,
                "This desktop has no file dialog. Enter the path instead, or install zenity or an XDG desktop portal.",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(choice: Choice) -> (Option<PathBuf>, Option<FileDialog>) {
        let mut dialog = Some(FileDialog::Open(Job::start(&egui::Context::default(), "test-dialog", move |_| choice)));
        for _ in 0..1000 {
            if let Some(path) = FileDialog::follow(&mut dialog) {
                return (Some(path), dialog);
            }
            if !FileDialog::is_open(&dialog) {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        (None, dialog)
    }

    #[test]
    fn a_dialog_that_was_left_is_gone_and_one_that_never_opened_is_told_of() {
        assert!(matches!(after(Choice::File("/a.iso".into())), (Some(path), None) if path == Path::new("/a.iso")));
        assert!(matches!(after(Choice::Nothing), (None, None)));
        assert!(matches!(after(Choice::NoDialog), (None, Some(FileDialog::Missing))));
    }
}
