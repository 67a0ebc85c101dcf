//! What can be done to images, each as a job: a process of this same program (`bellglass img …`), so that nothing it does can
//! hold up or bring down the window, and stopping it is safe at any moment. A copy is written beside its final place and takes
//! its name only when it is whole and has been compared with what it was made from.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use engine_disk::{BackingFiles, Format, OpenOptions};
use engine_session::library::Library;
use serde_json::Value;

use super::catalogue::{Image, UNFINISHED, plain};
use crate::gui::form::Secret;
use crate::gui::job::Reporter;
use crate::gui::parts::bytes_text;

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is done: a sentence.
    Done(String),
    /// A check found something.
    Findings {
        /// Which image.
        path: PathBuf,
        /// What was found: sentences.
        text: String,
        /// Something beside lost space is wrong.
        corrupt: bool,
    },
    /// A smaller copy is there; the person says which one stays.
    Compacted(Compacted),
    /// The person stopped it; nothing is left of it.
    Cancelled,
}

/// A smaller copy beside its original. Both hold the same, which has been compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compacted {
    /// The original.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// The copy.
    pub copy: PathBuf,
    /// Bytes on the host before and after.
    pub before: u64,
    /// As above.
    pub after: u64,
}

/// Stops the process of an operation, and the operation with it.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Mutex<Cancelled>>);

#[derive(Default)]
struct Cancelled {
    wanted: bool,
    child: Option<Child>,
}

impl Cancel {
    /// Stops it now, or as soon as it starts its next process.
    pub fn cancel(&self) {
        let mut state = self.state();
        state.wanted = true;
        if let Some(child) = &mut state.child {
            child.kill().ok(); // It has ended by itself a moment ago.
        }
    }

    fn is_wanted(&self) -> bool {
        self.state().wanted
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Cancelled> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why an operation did not come to its end.
enum Ended {
    Cancelled,
    /// A sentence.
    Failed(String),
}

impl From<String> for Ended {
    fn from(reason: String) -> Self {
        Ended::Failed(reason)
    }
}

/// Runs this program's `img` command for one operation.
pub struct Tool<'a> {
    /// This program.
    pub program: &'a Path,
    /// Stops it.
    pub cancel: &'a Cancel,
    /// Hears of progress.
    pub reporter: &'a Reporter<Result<Outcome, String>>,
}

impl Tool<'_> {
    /// Makes an empty disk.
    ///
    /// # Errors
    /// A sentence.
    pub fn create(&self, path: &Path, format: Format, size: u64) -> Result<Outcome, String> {
        self.settle(|| {
            refuse_existing(path)?;
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(|error| {
                    format!("The folder could not be made ({error}). Choose another one: {}", folder.display())
                })?;
            }
            self.img("Making the disk", words(["create", "-q", "-f", format.name()]).file(path).word(size.to_string()), &[0])?;
            Ok(Outcome::Done(format!("{} was made.", path.display())))
        })
    }

    /// Copies an image into a new one of any format; the original stays as it is.
    ///
    /// # Errors
    /// A sentence; nothing is left then.
    pub fn convert(
        &self,
        image: &Image,
        passphrase: Option<&Secret>,
        format: Format,
        compressed: bool,
        to: &Path,
    ) -> Result<Outcome, String> {
        self.settle(|| {
            refuse_existing(to)?;
            let copy = unfinished(to);
            let mut arguments = words(["convert", "-p", "-t", "writeback", "-f", image.format.name(), "-O", format.name()]);
            if compressed {
                arguments = arguments.word("-c");
            }
            self.copy(image, passphrase, format, arguments, &copy, |copy| publish(copy, to))?;
            let (before, after) = (bytes_text(allocated(&image.path)?), bytes_text(allocated(to)?));
            let name = image.name();
            Ok(Outcome::Done(format!(
                "{} was made from {name} and holds the same: {before} before, {after} after.",
                to.display()
            )))
        })
    }

    /// Makes a copy without unused space beside an image. It has the same format and is built on the same base.
    ///
    /// # Errors
    /// A sentence; nothing is left then.
    pub fn compact(&self, image: &Image) -> Result<Outcome, String> {
        self.settle(|| {
            let copy = unfinished(&image.path);
            let mut arguments = words(["convert", "-p", "-t", "writeback", "-f", image.format.name(), "-O", image.format.name()]);
            if let (Some(base), Some(format)) = (&image.base, &image.base_format) {
                arguments = arguments.word("-B").file(base).words(["-F", format]);
            }
            self.copy(image, None, image.format, arguments, &copy, |_| Ok(()))?;
            let after = allocated(&copy)?;
            let before = allocated(&image.path)?;
            if after >= before {
                fs::remove_file(&copy).map_err(|error| error.to_string())?;
                return Ok(Outcome::Done(format!("{} has no space to give back.", image.name())));
            }
            let (path, format) = (image.path.clone(), image.format);
            Ok(Outcome::Compacted(Compacted { path, format, copy, before, after }))
        })
    }

    /// Changes the size of a disk.
    ///
    /// # Errors
    /// A sentence.
    pub fn resize(&self, image: &Image, passphrase: Option<&Secret>, size: u64, shrink: bool) -> Result<Outcome, String> {
        self.settle(|| {
            let mut arguments = words(["resize", "-q", "-f", image.format.name()]);
            if shrink {
                arguments = arguments.word("--shrink");
            }
            self.img("Changing the size", arguments.image(image, passphrase)?.word(size.to_string()), &[0])?;
            Ok(Outcome::Done(format!("{} has its new size.", image.name())))
        })
    }

    /// Names the new place of a file wherever its old one is named: by machines, and by images that are built on it.
    ///
    /// # Errors
    /// A sentence, when it is another kind of file, or something that names it cannot be changed.
    pub fn locate(&self, library: &Library, missing: &Image, overlays: &[Image], to: &Path) -> Result<Outcome, String> {
        self.settle(|| {
            let format = engine_disk::probe(to).map_err(|error| error.to_string())?.unwrap_or(Format::Raw);
            let is_stated = !missing.users.is_empty() || overlays.iter().any(|overlay| overlay.base_format.is_some());
            if is_stated && format != missing.format && format != Format::Iso {
                let (wanted, found) = (missing.format.name(), format.name());
                return Err(Ended::Failed(format!("This is a {found} file, and {wanted} is needed: {}", to.display())));
            }
            for overlay in overlays {
                let arguments = words(["rebase", "-u", "-f", overlay.format.name(), "-F", missing.format.name(), "-b"]);
                self.img("Naming the new place", arguments.file(to).file(&overlay.path), &[0])?;
            }
            for entry in library.list().map_err(|error| error.to_string())? {
                let Ok(mut machine) = entry.machine else { continue };
                let folder = entry.folder.path();
                let discs = machine.cdroms.iter_mut().filter_map(|drive| drive.medium.as_mut());
                let floppies = machine.floppies.iter_mut().filter_map(|drive| drive.medium.as_mut());
                let names = machine.disks.iter_mut().map(|disk| &mut disk.file).chain(discs).chain(floppies);
                let mut is_changed = false;
                for name in names.filter(|name| plain(&folder.join(name)) == missing.path) {
                    *name = to.strip_prefix(folder).unwrap_or(to).to_path_buf();
                    is_changed = true;
                }
                if is_changed {
                    entry.folder.save(&machine).map_err(|error| error.to_string())?;
                }
            }
            Ok(Outcome::Done(format!("{} is used from now on.", to.display())))
        })
    }

    /// Checks an image, and repairs what `repair` says (`leaks`, `all`).
    ///
    /// # Errors
    /// A sentence, when the check could not be carried out.
    pub fn check(&self, image: &Image, repair: Option<&str>) -> Result<Outcome, String> {
        const CORRUPTED: i32 = 2;
        const LEAKED: i32 = 3;
        const NO_CHECK: i32 = 63;
        self.settle(|| {
            let mut arguments = words(["check", "--output=json", "-f", image.format.name()]);
            if let Some(repair) = repair {
                arguments = arguments.words(["-r", repair]);
            }
            let what = if repair.is_some() { "Repairing" } else { "Checking" };
            let (status, said) = self.img(what, arguments.file(&image.path), &[0, CORRUPTED, LEAKED, NO_CHECK])?;
            let name = image.name();
            if status == NO_CHECK {
                return Ok(Outcome::Done(format!("{name}: this format keeps no records that could be wrong.")));
            }
            let report: Value =
                serde_json::from_str(&said).map_err(|error| format!("The check's report makes no sense ({error})."))?;
            let count = |key: &str| report.get(key).and_then(Value::as_u64).unwrap_or(0);
            let (errors, leaks) = (count("corruptions"), count("leaks"));
            let fixed = count("corruptions-fixed") + count("leaks-fixed");
            if errors + leaks == 0 {
                let text = if fixed == 0 { "no errors" } else { "all errors were repaired" };
                return Ok(Outcome::Done(format!("{name}: {text}.")));
            }
            let text = match (errors, leaks) {
                (0, leaks) => format!("{leaks} clusters are set aside but hold nothing. That wastes space and harms no data."),
                (errors, _) => format!(
                    "{errors} records contradict each other. Data may be damaged. Make a copy of the file before repairing it."
                ),
            };
            Ok(Outcome::Findings { path: image.path.clone(), text, corrupt: errors > 0 })
        })
    }

    /// Copies by `arguments` into `copy`, compares, then lets `finish` have it. Whatever goes wrong, no copy is left.
    fn copy(
        &self,
        image: &Image,
        passphrase: Option<&Secret>,
        format: Format,
        arguments: Words,
        copy: &Path,
        finish: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Result<(), Ended> {
        refuse_existing(copy)?;
        let arguments = arguments.image(image, passphrase)?.file(copy);
        let made = self.img("Copying", arguments, &[0]).and_then(|_| {
            let same = words(["compare", "-q", "-p", "-f", image.format.name(), "-F", format.name()]);
            let (status, _) = self.img("Comparing", same.image(image, passphrase)?.file(copy), &[0, 1])?;
            match status {
                0 => Ok(finish(copy)?),
                _ => Err(Ended::Failed("The copy differs from the original, so it was thrown away. Try again.".to_owned())),
            }
        });
        if made.is_err() {
            fs::remove_file(copy).ok(); // Nothing was made yet.
        }
        made
    }

    fn settle(&self, work: impl FnOnce() -> Result<Outcome, Ended>) -> Result<Outcome, String> {
        match work() {
            Ok(outcome) => Ok(outcome),
            Err(Ended::Cancelled) => Ok(Outcome::Cancelled),
            Err(Ended::Failed(reason)) => Err(reason),
        }
    }

    /// Runs `bellglass img` to its end: its status, which must be one of `statuses`, and what it printed.
    fn img(&self, what: &str, arguments: Words, statuses: &[i32]) -> Result<(i32, String), Ended> {
        self.reporter.progress(what, None);
        let mut child = Command::new(self.program)
            .arg("img")
            .args(arguments.words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("The program could not be started ({error}): {}", self.program.display()))?;
        if let (Some(mut input), Some(secret)) = (child.stdin.take(), arguments.secret) {
            // Where the process has ended already it says why by itself.
            input.write_all(secret.0.as_bytes()).ok();
        }
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        {
            let mut state = self.cancel.state();
            if state.wanted {
                child.kill().ok(); // It has ended already.
            }
            state.child = Some(child);
        }
        let said = std::thread::scope(|scope| {
            let errors = scope.spawn(|| last_line(errors));
            let printed = output.map_or_else(String::new, |output| self.follow(what, output));
            (printed, errors.join().unwrap_or_default())
        });
        // Taken out of the lock: waiting must not hold up whoever cancels.
        let child = self.cancel.state().child.take();
        let status = match child.map(|mut child| child.wait()) {
            Some(Ok(status)) => status.code(),
            _ => None,
        };
        let (printed, complaint) = said;
        match status {
            _ if self.cancel.is_wanted() => Err(Ended::Cancelled),
            Some(status) if statuses.contains(&status) => Ok((status, printed)),
            _ => Err(Ended::Failed(sentence(what, &complaint))),
        }
    }

    /// Reads what the process prints until it ends; lines like `(12.00/100%)` are progress.
    fn follow(&self, what: &str, mut output: impl Read) -> String {
        const MOST: usize = 1 << 20;
        let mut text = String::new();
        let mut line = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            for &byte in &buffer[..count] {
                if byte != b'\r' && byte != b'\n' {
                    line.push(byte);
                    line.truncate(MOST);
                    continue;
                }
                let words = String::from_utf8_lossy(&line);
                match percent(&words) {
                    Some(percent) => self.reporter.progress(what, Some(percent / 100.0)),
                    None if text.len() < MOST => text += &format!("{words}\n"),
                    None => {}
                }
                line.clear();
            }
        }
        text + &String::from_utf8_lossy(&line)
    }
}

/// Lets a smaller copy take the place of its original.
///
/// # Errors
/// A sentence, when somebody uses the original or the host refuses; both files stay then.
pub fn keep_compacted(compacted: &Compacted) -> Result<String, String> {
    let Compacted { path, format, copy, before, after } = compacted;
    // Alone with the original until the new one stands in its place, so that no machine starts on a file that is about to go.
    let alone = OpenOptions { format: Some(*format), backing_files: BackingFiles::LeftOut, ..OpenOptions::new(path) };
    let _original = engine_disk::open(&alone).map_err(|error| error.to_string())?;
    fs::rename(copy, path).map_err(|error| {
        format!("The copy could not take the original's place ({error}). Both are still there: {}", copy.display())
    })?;
    let saved = bytes_text(before.saturating_sub(*after));
    Ok(format!("{} takes {saved} less.", path.display()))
}

/// Where a copy lies until it is whole.
pub fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(UNFINISHED);
    PathBuf::from(name)
}

fn refuse_existing(path: &Path) -> Result<(), String> {
    match path.symlink_metadata() {
        Ok(_) => Err(format!("There is a file of this name already. Choose another name: {}", path.display())),
        Err(_) => Ok(()),
    }
}

/// Gives a whole copy its name, unless somebody has taken that meanwhile.
fn publish(copy: &Path, to: &Path) -> Result<(), String> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, copy, CWD, to, RenameFlags::NOREPLACE).or_else(|error| match error {
        // File systems that cannot rename with this care.
        rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS => {
            refuse_existing(to).and_then(|()| fs::rename(copy, to).map_err(|error| error.to_string()))
        }
        error => Err(format!("The copy could not take its name ({error}): {}", to.display())),
    })
}

fn allocated(path: &Path) -> Result<u64, String> {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path).map(|metadata| metadata.blocks() * 512).map_err(|error| format!("{}: {error}", path.display()))
}

/// The last line that is not empty.
fn last_line(output: Option<impl Read>) -> String {
    const MOST: u64 = 1 << 20;
    let mut text = Vec::new();
    if let Some(output) = output {
        output.take(MOST).read_to_end(&mut text).ok(); // What was read so far is what there is.
    }
    String::from_utf8_lossy(&text).lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
}

/// `    (12.34/100%)` as a number.
fn percent(line: &str) -> Option<f32> {
    line.trim().strip_prefix('(')?.strip_suffix("/100%)")?.parse().ok().filter(|percent| (0.0..=100.0).contains(percent))
}

/// What a process complained of, as a sentence.
fn sentence(what: &str, complaint: &str) -> String {
    let complaint = complaint.trim();
    let complaint = ["bellglass img: ", "bellglass: ", "qemu-img: "]
        .iter()
        .find_map(|prefix| complaint.strip_prefix(prefix))
        .unwrap_or(complaint);
    match complaint {
        "" => format!("{what} ended too early, without a word."),
        complaint => complaint.to_owned(),
    }
}

/// A command line in the making.
struct Words {
    words: Vec<OsString>,
    /// What the process reads from its standard input, where no list of processes shows it.
    secret: Option<Secret>,
}

fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> Words {
    Words { words: words.into_iter().map(OsString::from).collect(), secret: None }
}

impl Words {
    fn word(mut self, word: impl Into<OsString>) -> Self {
        self.words.push(word.into());
        self
    }

    fn words<'a>(mut self, more: impl IntoIterator<Item = &'a str>) -> Self {
        self.words.extend(more.into_iter().map(OsString::from));
        self
    }

    /// A file: absolute, so that no name is taken for an option or a protocol.
    fn file(self, path: &Path) -> Self {
        self.word(path)
    }

    /// An image, with what unlocks it. Options may still stand before it, but no other image with a passphrase.
    fn image(self, image: &Image, passphrase: Option<&Secret>) -> Result<Self, String> {
        let Some(passphrase) = passphrase else { return Ok(self.file(&image.path)) };
        let Some(path) = image.path.to_str() else {
            return Err(format!("The name of this file is not made of letters. Rename it first: {}", image.path.display()));
        };
        let node = serde_json::json!({ "driver": image.format.name(), "file.filename": path, "key-secret": "key" });
        let secret = Some(passphrase.clone());
        let named = self.words(["--object", "secret,id=key,file=/dev/stdin"]).word(format!("json:{node}"));
        Ok(Self { secret, ..named })
    }
}
