//! The wizard: one page from an ISO to a machine. Every field is checked while it is edited, every mistake is told beside
//! it, and the defaults work as they stand.

mod iso_facts;
mod page;
#[cfg(test)]
mod wizard_tests;

use std::path::PathBuf;

use engine_config::{CdDrive, Host, Machine, check_name, check_size};
use engine_disk::GuestFamily;
use engine_session::library::{Library, MachineFolder, NewMachine};

use self::iso_facts::{IsoFacts, look_at};
use super::file_dialog::FileDialog;
use super::form::expand_home;
use super::job::Job;

const GIB: u64 = 1 << 30;

/// What a wizard has come to.
pub enum Outcome {
    /// It is still open.
    Open,
    /// The person has left it.
    Cancelled,
    /// There is a new machine.
    Created(MachineFolder, Then),
}

/// What follows the creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Stay,
    /// The machine starts.
    Start,
}

/// A size in one click.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preset {
    Small,
    Recommended,
    Large,
}

impl Preset {
    const ALL: [(Preset, &'static str); 3] =
        [(Preset::Small, "Small"), (Preset::Recommended, "Recommended"), (Preset::Large, "Large")];
}

/// The page and what has been entered.
pub struct Wizard {
    library: Library,
    host: Host,
    iso: String,
    looking: Option<(String, Job<Result<IsoFacts, String>>)>,
    looked: Option<(String, Result<IsoFacts, String>)>,
    chooser: Option<FileDialog>,
    name: String,
    name_is_theirs: bool,
    name_error: Option<String>,
    checked_name: String,
    size_is_theirs: bool,
    cpus: u32,
    memory_mib: u64,
    with_disk: bool,
    disk_gib: u64,
    free_bytes: Option<u64>,
    creating: Option<(Job<Result<MachineFolder, String>>, Then)>,
    /// The first field has the keyboard already.
    greeted: bool,
    failure: Option<String>,
}

impl Wizard {
    /// An empty page, for machines in `library`.
    pub fn new(library: Library, host: Host) -> Self {
        let mut wizard = Self {
            free_bytes: Host::free_bytes(library.root()),
            library,
            host,
            iso: String::new(),
            looking: None,
            looked: None,
            chooser: None,
            name: String::new(),
            name_is_theirs: false,
            name_error: None,
            checked_name: String::new(),
            size_is_theirs: false,
            cpus: 1,
            memory_mib: 1024,
            with_disk: true,
            disk_gib: 20,
            creating: None,
            greeted: false,
            failure: None,
        };
        wizard.apply(Preset::Recommended);
        wizard
    }

    /// The same, with an ISO chosen already.
    pub fn with_iso(library: Library, host: Host, iso: PathBuf) -> Self {
        let mut wizard = Self::new(library, host);
        wizard.iso = iso.display().to_string();
        wizard
    }

    /// CPUs, MiB of memory and GiB of disk of a preset, on this computer, for this system.
    fn preset(&self, preset: Preset) -> (u32, u64, u64) {
        let family = self.facts().and_then(|facts| facts.family);
        let (memory, disk) = match family {
            Some(GuestFamily::Dos) => (64, 2),
            Some(GuestFamily::OldWindows) => (512, 10),
            Some(GuestFamily::Windows) => (4096, 64),
            _ => (2048, 20),
        };
        let (cpus, memory, disk) = match preset {
            Preset::Small => (1, memory / 2, disk / 2),
            Preset::Recommended => (2, memory, disk),
            Preset::Large => (4, memory * 2, disk * 3),
        };
        // Half of the computer's memory stays the person's own.
        (cpus.min(self.host.cpus.max(1)), memory.min((self.host.memory_mib / 2).max(64)), disk.max(1))
    }

    fn apply(&mut self, preset: Preset) {
        (self.cpus, self.memory_mib, self.disk_gib) = self.preset(preset);
    }

    fn facts(&self) -> Option<&IsoFacts> {
        let (path, result) = self.looked.as_ref()?;
        result.as_ref().ok().filter(|_| *path == self.iso.trim())
    }

    /// Follows what jobs have found since the last drawing.
    fn follow(&mut self, ctx: &egui::Context) -> Outcome {
        if let Some(path) = FileDialog::follow(&mut self.chooser) {
            self.iso = path.display().to_string();
        }
        self.look(ctx);
        self.check_name();
        if let Some((job, then)) = &mut self.creating
            && let Some(result) = job.poll()
        {
            let then = *then;
            self.creating = None;
            match result.and_then(|result| result) {
                Ok(folder) => return Outcome::Created(folder, then),
                Err(reason) => self.failure = Some(reason),
            }
        }
        Outcome::Open
    }

    /// Looks at the ISO whenever its path has changed; the file may be on a slow or dead drive, so on a thread.
    fn look(&mut self, ctx: &egui::Context) {
        if let Some((path, job)) = &mut self.looking
            && let Some(result) = job.poll()
        {
            self.looked = Some((path.clone(), result.and_then(|result| result)));
            self.looking = None;
            if let Some(facts) = self.facts().cloned() {
                if !self.name_is_theirs {
                    self.name = self.library.free_name(&facts.suggested_name);
                }
                if !self.size_is_theirs {
                    self.apply(Preset::Recommended);
                }
            }
        }
        let wanted = self.iso.trim().to_owned();
        let known = self.looked.as_ref().is_some_and(|(path, _)| *path == wanted);
        if self.looking.is_none() && !known && !wanted.is_empty() {
            let path = expand_home(&wanted);
            self.looking = Some((wanted, Job::start(ctx, "look-at-iso", move |_| look_at(&path))));
        }
    }

    fn check_name(&mut self) {
        if self.checked_name != self.name {
            self.checked_name.clone_from(&self.name);
            self.name_error = match check_name(&self.name) {
                Err(reason) => Some(reason),
                Ok(()) if self.library.free_name(&self.name) != self.name => {
                    Some("There is a machine of this name already. Choose another name.".into())
                }
                Ok(()) => None,
            };
        }
    }

    /// What keeps the machine from being created, the first thing first.
    fn obstacle(&self) -> Option<String> {
        if self.creating.is_some() {
            return Some("The machine is being created".into());
        }
        if !self.iso.trim().is_empty() {
            match &self.looked {
                Some((path, result)) if *path == self.iso.trim() => {
                    if result.is_err() {
                        return Some("The ISO cannot be used".into());
                    }
                }
                _ => return Some("The ISO is being looked at".into()),
            }
        }
        if self.name.is_empty() {
            return Some("Choose an ISO, or enter a name".into());
        }
        if self.name_error.is_some() {
            return Some("The name cannot be used".into());
        }
        if let Some(problem) = check_size(self.cpus, self.memory_mib, &self.host).into_iter().next() {
            return Some(problem.message);
        }
        self.space_error()
    }

    /// A machine of no bytes free cannot even be described on the disk.
    fn space_error(&self) -> Option<String> {
        const LEAST: u64 = 64 << 20;
        self.free_bytes.filter(|free| *free < LEAST).map(|_| {
            format!(
                "There is no free space for a machine. Free some, or set BELLGLASS_HOME to another drive: {}",
                self.library.root().display()
            )
        })
    }

    /// The same machine as commands for a terminal.
    fn as_commands(&self) -> String {
        let mut words = vec!["bellglass".to_owned(), "create".to_owned(), quoted(&self.name)];
        let iso = self.iso.trim();
        if !iso.is_empty() {
            words.extend(["--iso".to_owned(), quoted(&expand_home(iso).display().to_string())]);
        }
        let disk = if self.with_disk { format!("{}G", self.disk_gib) } else { "none".to_owned() };
        words.push(format!("--cpus {} --memory {}M --disk {disk}", self.cpus, self.memory_mib));
        format!("{} && bellglass run {}", words.join(" "), quoted(&self.name))
    }

    fn create(&mut self, ctx: &egui::Context, then: Then) {
        let mut machine = Machine::new(self.name.clone());
        machine.cpus = self.cpus;
        machine.memory_mib = self.memory_mib;
        let iso = self.iso.trim();
        if !iso.is_empty() {
            let path = expand_home(iso);
            let path = path.canonicalize().unwrap_or(path);
            machine.cdroms = vec![CdDrive { medium: Some(path) }];
        }
        let plan = NewMachine { machine, disk_bytes: self.with_disk.then(|| self.disk_gib * GIB) };
        let library = self.library.clone();
        self.failure = None;
        let job = Job::start(ctx, "create-machine", move |_| library.create(plan).map_err(|error| error.to_string()));
        self.creating = Some((job, then));
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:+,@%".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}
