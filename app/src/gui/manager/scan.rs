//! Looks after the machines from a thread: which there are, what they are doing, what their screens show. The window is
//! woken only when something has changed, so that a list nobody touches costs no drawing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use egui::ColorImage;
use engine_base::spawn_guarded;
use engine_remote::QmpClient;
use engine_session::library::{Entry, Library, Running};
use serde_json::{Value, json};

const PERIOD: Duration = Duration::from_secs(1);
/// A machine that does not answer within this is busy, and must not hold up the others.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a machine is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Nothing.
    Off,
    /// It starts, or does not answer just now.
    Busy,
    /// Guest time passes.
    Running,
    /// Guest time stands still.
    Paused,
    /// It has stopped and will not go on.
    Stopped,
}

/// One machine as last seen.
#[derive(Debug, Clone)]
pub struct Row {
    /// Folder, settings, lock.
    pub entry: Entry,
    /// What it is doing.
    pub status: Status,
    /// Its screen's small picture and when that was taken.
    pub thumbnail: Option<(SystemTime, Arc<ColorImage>)>,
}

impl Row {
    fn looks_like(&self, other: &Row) -> bool {
        self.entry.folder == other.entry.folder
            && self.entry.machine == other.entry.machine
            && self.entry.running == other.entry.running
            && self.status == other.status
            && self.thumbnail.as_ref().map(|(taken, _)| taken) == other.thumbnail.as_ref().map(|(taken, _)| taken)
    }
}

/// The machines, or why they cannot be listed.
pub type Rows = Result<Vec<Row>, String>;

/// The thread `library-scan`; it ends when this is dropped.
pub struct Scanner {
    latest: Arc<Mutex<Option<Rows>>>,
    nudge: Sender<()>,
}

impl Scanner {
    /// Starts it. `wake` is called when there is something new to see.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn start(library: Library, wake: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let latest = Arc::new(Mutex::new(None));
        let (nudge, nudges) = bounded::<()>(1);
        let found = Arc::clone(&latest);
        spawn_guarded(
            "library-scan",
            move || {
                let mut before: Option<Rows> = None;
                loop {
                    let rows = scan(&library, before.as_ref());
                    if !before.as_ref().is_some_and(|before| same(before, &rows)) {
                        *found.lock().unwrap_or_else(|poison| poison.into_inner()) = Some(rows.clone());
                        before = Some(rows);
                        wake();
                    }
                    match nudges.recv_timeout(PERIOD) {
                        Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
            },
            |_| {},
        )?;
        Ok(Self { latest, nudge })
    }

    /// What is new since the last call.
    pub fn take(&self) -> Option<Rows> {
        self.latest.lock().unwrap_or_else(|poison| poison.into_inner()).take()
    }

    /// Something was done: look again at once.
    pub fn look_again(&self) {
        self.nudge.try_send(()).ok(); // Full: it will look anyway.
    }

    /// For threads that have done something.
    pub fn nudger(&self) -> Sender<()> {
        self.nudge.clone()
    }
}

fn same(before: &Rows, now: &Rows) -> bool {
    match (before, now) {
        (Ok(before), Ok(now)) => before.len() == now.len() && before.iter().zip(now).all(|(a, b)| a.looks_like(b)),
        (Err(before), Err(now)) => before == now,
        _ => false,
    }
}

fn scan(library: &Library, before: Option<&Rows>) -> Rows {
    let mut pictures: HashMap<&Path, &(SystemTime, Arc<ColorImage>)> = HashMap::new();
    if let Some(Ok(rows)) = before {
        pictures.extend(rows.iter().filter_map(|row| Some((row.entry.folder.path(), row.thumbnail.as_ref()?))));
    }
    let entries = library.list().map_err(|error| error.to_string())?;
    let row = |entry: Entry| {
        let thumbnail = thumbnail(&entry.folder.thumbnail_path(), pictures.get(entry.folder.path()).copied());
        let status = match entry.running {
            Running::No => Status::Off,
            Running::Yes { .. } => status(&entry.folder.control_socket()),
        };
        Row { entry, status, thumbnail }
    };
    Ok(entries.into_iter().map(row).collect())
}

fn status(socket: &Path) -> Status {
    let asked = QmpClient::connect_within(socket, PATIENCE).and_then(|mut machine| machine.execute("query-status", json!({})));
    let Ok(answer) = asked else { return Status::Busy };
    match answer.get("status").and_then(Value::as_str) {
        Some("running") => Status::Running,
        Some("paused" | "prelaunch" | "suspended") => Status::Paused,
        Some("internal-error" | "io-error" | "guest-panicked" | "shutdown") => Status::Stopped,
        _ => Status::Busy,
    }
}

fn thumbnail(path: &PathBuf, known: Option<&(SystemTime, Arc<ColorImage>)>) -> Option<(SystemTime, Arc<ColorImage>)> {
    let taken = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()?;
    if let Some(known) = known.filter(|(known, _)| *known == taken) {
        return Some(known.clone());
    }
    Some((taken, Arc::new(read_png(path)?)))
}

/// A small PNG as egui wants it. The folder may come from a stranger, so large ones are refused.
fn read_png(path: &Path) -> Option<ColorImage> {
    const LARGEST_SIDE: u32 = 2048;
    let file = std::io::BufReader::new(std::fs::File::open(path).ok()?);
    let mut decoder = png::Decoder::new_with_limits(file, png::Limits { bytes: 64 << 20 });
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().ok()?;
    let size = [reader.info().width, reader.info().height];
    if size.iter().any(|side| *side == 0 || *side > LARGEST_SIDE) {
        return None;
    }
    let mut bytes = vec![0; reader.output_buffer_size()?];
    let frame = reader.next_frame(&mut bytes).ok()?;
    let size = size.map(|side| side as usize);
    match frame.color_type {
        png::ColorType::Rgb => Some(ColorImage::from_rgb(size, &bytes)),
        png::ColorType::Rgba => Some(ColorImage::from_rgba_unmultiplied(size, &bytes)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_config::Machine;
    use engine_session::library::NewMachine;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn the_window_is_woken_by_changes_only() {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::at(folder.path().join("machines"), folder.path().join("run"));
        let woken = Arc::new(AtomicU32::new(0));
        let scanner = Scanner::start(library.clone(), {
            let woken = Arc::clone(&woken);
            move || {
                woken.fetch_add(1, Ordering::Relaxed);
            }
        })
        .unwrap();
        let wait_for = |count: u32| {
            for _ in 0..500 {
                if woken.load(Ordering::Relaxed) >= count {
                    return;
                }
                scanner.look_again();
                std::thread::sleep(Duration::from_millis(10));
            }
            panic!("woken {} times only", woken.load(Ordering::Relaxed));
        };
        wait_for(1);
        assert!(scanner.take().unwrap().unwrap().is_empty());
        let made = library.create(NewMachine { machine: Machine::new("x"), disk_bytes: None }).unwrap();
        wait_for(2);
        assert_eq!(scanner.take().unwrap().unwrap()[0].status, Status::Off);
        let _lock = made.lock().unwrap();
        wait_for(3);
        assert_eq!(scanner.take().unwrap().unwrap()[0].status, Status::Busy, "it has no control socket yet");
        for _ in 0..5 {
            scanner.look_again();
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(woken.load(Ordering::Relaxed), 3);
        assert!(scanner.take().is_none());
    }
}
