//! The desktop's file dialog, away from the window's thread: it blocks until the person has chosen. Where the desktop has
//! none, nothing is chosen; every place that offers it therefore has a field for the path too.

use std::path::{Path, PathBuf};

use super::job::Job;

/// What to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A CD or DVD image.
    Iso,
}

/// A dialog that is open.
pub struct FileDialog(Job<Option<PathBuf>>);

impl FileDialog {
    /// Opens the dialog, in the folder of `near` if that is there.
    pub fn open(ctx: &egui::Context, wanted: Wanted, near: Option<&Path>) -> Self {
        let folder = near.and_then(|path| if path.is_dir() { Some(path) } else { path.parent() }).map(Path::to_path_buf);
        Self(Job::start(ctx, "file-dialog", move |_| {
            let mut dialog = match wanted {
                Wanted::Iso => rfd::FileDialog::new()
                    .set_title("Choose a CD or DVD image")
                    .add_filter("CD and DVD images", &["iso", "img", "ISO"]),
            };
            dialog = dialog.add_filter("All files", &["*"]);
            if let Some(folder) = folder.filter(|folder| folder.is_dir()) {
                dialog = dialog.set_directory(folder);
            }
            dialog.pick_file()
        }))
    }

    /// `Some` once it has closed: what was chosen, if anything.
    pub fn poll(&mut self) -> Option<Option<PathBuf>> {
        self.0.poll().map(|result| result.unwrap_or(None))
    }
}
