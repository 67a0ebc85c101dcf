//! The library of machines: folders, and nothing else. A machine is a folder with a `machine.ron` in the library's
//! folder; the list is a scan, so it can never be stale. A damaged machine is listed with the reason.
//!
//! ```text
//! ~/Bellglass/Debian 12/     machine.ron  disks/  thumbnail.png  logs/  lock (held by the process that runs it)
//! $XDG_RUNTIME_DIR/bellglass/<folder's identity>/qmp.sock
//! ```
//! Whether a machine runs is told by its lock, which the kernel lets go when that process ends, however it ends.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine_config::{FileError, Machine};

const MACHINE_FILE: &str = "machine.ron";

/// Something that could not be done with the library.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The machine's settings.
    #[error(transparent)]
    Settings(#[from] FileError),
    /// A name that no folder can have.
    #[error("{0}")]
    Name(String),
    /// The name is taken.
    #[error("There is a machine of this name already. Choose another name: {}", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// No such machine.
    #[error("There is no machine of this name. `bellglass list` shows the ones there are: {name}")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// Another process runs it.
    #[error("This machine is running already. Use its window, or shut it down first: {}", path.display())]
    Running {
        /// The folder.
        path: PathBuf,
    },
    /// A disk could not be made.
    #[error(transparent)]
    Disk(#[from] engine_disk::DiskError),
    /// The host refused.
    #[error("{what} ({source}). Check the free space and the permissions there: {}", path.display())]
    Host {
        /// What could not be done: a clause such as "The machine's folder could not be made".
        what: &'static str,
        /// What the host said.
        source: io::Error,
        /// Where.
        path: PathBuf,
    },
}

fn host(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LibraryError {
    let path = path.to_path_buf();
    move |source| LibraryError::Host { what, source, path }
}

/// A folder of machines.
#[derive(Debug, Clone)]
pub struct Library {
    root: PathBuf,
    runtime: PathBuf,
}

/// One line of the list.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where it is.
    pub folder: MachineFolder,
    /// Its settings, or why they cannot be read.
    pub machine: Result<Machine, String>,
    /// Whether a process runs it now.
    pub running: Running,
}

impl Entry {
    /// Its name: that of the settings, or, if these are damaged, the folder's.
    pub fn name(&self) -> String {
        match &self.machine {
            Ok(machine) => machine.name.clone(),
            Err(_) => self.folder.folder_name(),
        }
    }
}

/// Whether a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Running {
    /// No process runs it.
    No,
    /// This process does; `None` while it has not yet said which it is.
    Yes {
        /// Its process number.
        pid: Option<u32>,
    },
}

/// A new machine, before it has a folder.
#[derive(Debug, Clone)]
pub struct NewMachine {
    /// Its settings, without disks.
    pub machine: Machine,
    /// The hard disk to make, in bytes.
    pub disk_bytes: Option<u64>,
}

impl Library {
    /// The person's library: `$BELLGLASS_HOME`, or `Bellglass` in the home folder.
    ///
    /// # Errors
    /// When neither is known.
    pub fn of_this_person() -> Result<Self, LibraryError> {
        let root = match std::env::var_os("BELLGLASS_HOME").filter(|value| !value.is_empty()) {
            Some(root) => PathBuf::from(root),
            None => directories::BaseDirs::new().map(|dirs| dirs.home_dir().join("Bellglass")).ok_or_else(|| {
                LibraryError::Name("This account has no home folder. Set BELLGLASS_HOME to a folder for the machines.".into())
            })?,
        };
        let root = std::path::absolute(&root).unwrap_or(root);
        Ok(Self::at(root, runtime_folder()))
    }

    /// A library in `root`, whose running machines have their sockets below `runtime`.
    pub fn at(root: PathBuf, runtime: PathBuf) -> Self {
        Self { root, runtime }
    }

    /// Its folder, which need not exist yet.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All machines, by name. A library without a folder is empty.
    ///
    /// # Errors
    /// When the folder is there but cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>, LibraryError> {
        let folders = match fs::read_dir(&self.root) {
            Ok(folders) => folders,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(host("The folder of machines could not be read", &self.root)(error)),
        };
        let mut entries: Vec<Entry> = folders
            .filter_map(Result::ok)
            .map(|folder| MachineFolder { path: folder.path(), runtime: self.runtime.clone() })
            .filter(|folder| folder.settings_path().symlink_metadata().is_ok())
            .map(MachineFolder::into_entry)
            .collect();
        entries.sort_by_cached_key(|entry| (entry.name().to_lowercase(), entry.folder.path.clone()));
        Ok(entries)
    }

    /// The machine that a person means by `name`: its name, its folder's name, or the path of its folder.
    ///
    /// # Errors
    /// [`LibraryError::Unknown`], or the library cannot be read.
    pub fn find(&self, name: &str) -> Result<MachineFolder, LibraryError> {
        let as_path = Path::new(name);
        if name.contains('/') || as_path.join(MACHINE_FILE).is_file() {
            return Ok(self.folder_at(as_path));
        }
        self.list()?
            .into_iter()
            .find(|entry| entry.name() == name || entry.folder.folder_name() == name)
            .map(|entry| entry.folder)
            .ok_or_else(|| LibraryError::Unknown { name: name.to_owned() })
    }

    /// The machine folder at a path, which may lie anywhere.
    pub fn folder_at(&self, path: &Path) -> MachineFolder {
        // A person may as well point at the file inside.
        let path = if path.file_name().is_some_and(|name| name == MACHINE_FILE) { path.parent().unwrap_or(path) } else { path };
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        MachineFolder { path, runtime: self.runtime.clone() }
    }

    /// Makes a machine: folder, disk, settings. The settings come last, so that a half-made machine is never listed.
    ///
    /// # Errors
    /// [`LibraryError`]; what was made is removed again.
    pub fn create(&self, plan: NewMachine) -> Result<MachineFolder, LibraryError> {
        let NewMachine { mut machine, disk_bytes } = plan;
        engine_config::check_name(&machine.name).map_err(LibraryError::Name)?;
        fs::create_dir_all(&self.root).map_err(host("The folder of machines could not be made", &self.root))?;
        let path = self.root.join(&machine.name);
        match fs::create_dir(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(LibraryError::Exists { path }),
            Err(error) => return Err(host("The machine's folder could not be made", &path)(error)),
        }
        let folder = MachineFolder { path, runtime: self.runtime.clone() };
        let made = folder.fill(&mut machine, disk_bytes);
        if made.is_err() {
            // We made this folder a moment ago, so nothing of the person's is in it.
            fs::remove_dir_all(&folder.path).ok();
        }
        made.map(|()| folder)
    }

    /// A name that no machine has yet: `wanted`, or `wanted 2`, `wanted 3` …
    pub fn free_name(&self, wanted: &str) -> String {
        let taken = |name: &str| self.root.join(name).symlink_metadata().is_ok();
        if !taken(wanted) {
            return wanted.to_owned();
        }
        (2..10_000).map(|number| format!("{wanted} {number}")).find(|name| !taken(name)).unwrap_or_else(|| wanted.to_owned())
    }
}

/// The folder of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineFolder {
    path: PathBuf,
    runtime: PathBuf,
}

impl MachineFolder {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder's own name.
    pub fn folder_name(&self) -> String {
        self.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// `machine.ron`.
    pub fn settings_path(&self) -> PathBuf {
        self.path.join(MACHINE_FILE)
    }

    /// The picture of its screen that the list shows.
    pub fn thumbnail_path(&self) -> PathBuf {
        self.path.join("thumbnail.png")
    }

    /// Where its logs go.
    pub fn log_folder(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// Where its screenshots go.
    pub fn screenshot_folder(&self) -> PathBuf {
        self.path.join("screenshots")
    }

    /// Reads its settings.
    ///
    /// # Errors
    /// [`FileError`], each a sentence for people.
    pub fn load(&self) -> Result<Machine, FileError> {
        engine_config::load(&self.settings_path())
    }

    /// Writes its settings, wholly or not at all.
    ///
    /// # Errors
    /// [`FileError`], each a sentence for people.
    pub fn save(&self, machine: &Machine) -> Result<(), FileError> {
        engine_config::save(machine, &self.settings_path())
    }

    /// The folder for its sockets. It belongs to the folder itself, so a copy of a machine has its own.
    pub fn runtime_folder(&self) -> PathBuf {
        let identity =
            fs::metadata(&self.path).map_or_else(|_| "gone".into(), |folder| format!("{:x}-{:x}", folder.dev(), folder.ino()));
        self.runtime.join(identity)
    }

    /// The control socket (QMP) of the process that runs it.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime_folder().join("qmp.sock")
    }

    /// Makes the folder for its sockets, for this person only.
    ///
    /// # Errors
    /// When the host refuses, or the folder above belongs to somebody else.
    pub fn make_runtime_folder(&self) -> Result<PathBuf, LibraryError> {
        let what = "The folder for control sockets could not be made";
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.runtime).map_err(host(what, &self.runtime))?;
        let above = fs::symlink_metadata(&self.runtime).map_err(host(what, &self.runtime))?;
        // In a shared /tmp somebody else may have made it first, to listen in.
        if above.uid() != rustix::process::getuid().as_raw() || above.permissions().mode() & 0o077 != 0 || !above.is_dir() {
            let source = io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to somebody else or is open to others");
            return Err(host(what, &self.runtime)(source));
        }
        let folder = self.runtime_folder();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(host(what, &folder))?;
        Ok(folder)
    }

    /// Whether a process runs it.
    pub fn running(&self) -> Running {
        let Ok(file) = File::open(self.lock_path()) else { return Running::No };
        // A shared try: it fails just while a process that runs the machine holds its exclusive lock.
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let pid = (&file).take(32).read_to_string(&mut pid).ok().and_then(|_| pid.trim().parse().ok());
                Running::Yes { pid }
            }
            // Released when `file` closes, at once.
            Ok(()) | Err(TryLockError::Error(_)) => Running::No,
        }
    }

    /// Takes the machine for this process until the result is dropped.
    ///
    /// # Errors
    /// [`LibraryError::Running`], or the host refuses.
    pub fn lock(&self) -> Result<RunLock, LibraryError> {
        let path = self.lock_path();
        let what = "The machine's lock could not be taken";
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(host(what, &path))?;
        // Who lists machines holds the lock, shared, for a moment; a machine that runs holds it for longer than all tries.
        let mut tries = 20;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if tries == 0 => return Err(LibraryError::Running { path: self.path.clone() }),
                Err(TryLockError::WouldBlock) => tries -= 1,
                Err(TryLockError::Error(error)) => return Err(host(what, &path)(error)),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // The number is for people and for `bellglass stop`; the lock itself is what counts.
        let written = file.set_len(0).and_then(|()| file.write_all(std::process::id().to_string().as_bytes()));
        written.map_err(host(what, &path))?;
        Ok(RunLock { _file: file })
    }

    /// The files that deleting it moves to the trash, relative to the folder, with their sizes in bytes.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn files(&self) -> Result<Vec<(PathBuf, u64)>, LibraryError> {
        const MOST_FILES: usize = 1000;
        let mut files = Vec::new();
        let mut folders = vec![self.path.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(host("The machine's folder could not be read", &folder))? {
                let entry = entry.map_err(host("The machine's folder could not be read", &folder))?;
                // `DirEntry` does not follow links, so nothing outside is ever listed.
                let Ok(metadata) = entry.metadata() else { continue };
                if metadata.is_dir() {
                    folders.push(entry.path());
                } else {
                    let path = entry.path();
                    files.push((path.strip_prefix(&self.path).unwrap_or(&path).to_path_buf(), metadata.blocks() * 512));
                }
            }
            if files.len() >= MOST_FILES {
                break; // The list is for a person to read.
            }
        }
        files.sort();
        Ok(files)
    }

    /// Moves the whole folder to the desktop's trash, from where it can be put back.
    ///
    /// # Errors
    /// [`LibraryError::Running`], or the trash refuses; the machine then stays as it is.
    pub fn move_to_trash(&self) -> Result<(), LibraryError> {
        let _lock = self.lock()?;
        trash::delete(&self.path).map_err(|error| LibraryError::Host {
            what: "The machine could not be moved to the trash",
            source: io::Error::other(error.to_string()),
            path: self.path.clone(),
        })
    }

    /// Removes a disposable machine for good; others go to the trash.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn dispose(&self) -> Result<(), LibraryError> {
        fs::remove_dir_all(&self.path).map_err(host("The disposable machine could not be removed", &self.path))
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join("lock")
    }

    fn into_entry(self) -> Entry {
        let machine = self.load().map_err(|error| error.to_string());
        let running = self.running();
        Entry { folder: self, machine, running }
    }

    fn fill(&self, machine: &mut Machine, disk_bytes: Option<u64>) -> Result<(), LibraryError> {
        for folder in [self.path.join("disks"), self.log_folder()] {
            fs::create_dir(&folder).map_err(host("The machine's folder could not be filled", &folder))?;
        }
        if let Some(bytes) = disk_bytes {
            let file = Path::new("disks").join("system.qcow2");
            engine_disk::create(&self.path.join(&file), &engine_disk::CreateOptions::new(engine_disk::Format::Qcow2, bytes))?;
            machine.disks.push(engine_config::Disk { file, format: "qcow2".into() });
        }
        Ok(self.save(machine)?)
    }
}

/// Held while this process runs a machine; let go when dropped, and by the kernel when the process dies.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

fn runtime_folder() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty()) {
        Some(folder) => PathBuf::from(folder).join("bellglass"),
        None => std::env::temp_dir().join(format!("bellglass-{}", rustix::process::getuid().as_raw())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library() -> (tempfile::TempDir, Library) {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::at(folder.path().join("machines"), folder.path().join("run"));
        (folder, library)
    }

    fn plan(name: &str) -> NewMachine {
        NewMachine { machine: Machine::new(name), disk_bytes: None }
    }

    #[test]
    fn a_created_machine_is_listed_and_found_by_its_name() {
        let (_folder, library) = library();
        assert!(library.list().unwrap().is_empty());
        let made = library.create(NewMachine { machine: Machine::new("Debian 12"), disk_bytes: Some(1 << 30) }).unwrap();
        let entries = library.list().unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].name(), "Debian 12");
        assert_eq!(entries[0].running, Running::No);
        let disk = &entries[0].machine.as_ref().unwrap().disks[0];
        assert!(made.path().join(&disk.file).is_file());
        assert_eq!(library.find("Debian 12").unwrap(), made);
        assert!(matches!(library.find("Debian 13"), Err(LibraryError::Unknown { .. })));
        assert_eq!(library.free_name("Debian 12"), "Debian 12 2");
    }

    #[test]
    fn a_second_machine_of_the_same_name_is_refused_and_the_first_kept() {
        let (_folder, library) = library();
        library.create(plan("x")).unwrap();
        assert!(matches!(library.create(plan("x")), Err(LibraryError::Exists { .. })));
        assert!(library.list().unwrap()[0].machine.is_ok());
    }

    #[test]
    fn a_machine_whose_disk_cannot_be_made_leaves_nothing_behind() {
        let (_folder, library) = library();
        let plan = NewMachine { machine: Machine::new("x"), disk_bytes: Some(u64::MAX - 511) };
        assert!(library.create(plan).is_err());
        assert_eq!(fs::read_dir(library.root()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_machine_is_listed_with_the_reason() {
        let (_folder, library) = library();
        let folder = library.create(plan("x")).unwrap();
        fs::write(folder.settings_path(), "(version: 1, machine: (na").unwrap();
        let entries = library.list().unwrap();
        assert_eq!(entries[0].name(), "x");
        assert!(entries[0].machine.as_ref().unwrap_err().starts_with("The machine's settings are damaged"));
    }

    #[test]
    fn a_machine_runs_once_and_is_seen_to_run() {
        let (_folder, library) = library();
        let folder = library.create(plan("x")).unwrap();
        let lock = folder.lock().unwrap();
        assert_eq!(folder.running(), Running::Yes { pid: Some(std::process::id()) });
        assert!(matches!(folder.lock(), Err(LibraryError::Running { .. })));
        assert!(matches!(folder.move_to_trash(), Err(LibraryError::Running { .. })));
        drop(lock);
        assert_eq!(folder.running(), Running::No);
    }

    #[test]
    fn a_copied_machine_has_its_own_control_socket() {
        let (_folder, library) = library();
        let (a, b) = (library.create(plan("a")).unwrap(), library.create(plan("b")).unwrap());
        assert_ne!(a.control_socket(), b.control_socket());
        let made = a.make_runtime_folder().unwrap();
        assert_eq!(fs::metadata(made).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_hundred_machines_are_listed_within_300_milliseconds() {
        let (_folder, library) = library();
        for number in 0..100 {
            library.create(plan(&format!("machine {number}"))).unwrap();
        }
        let start = std::time::Instant::now();
        assert_eq!(library.list().unwrap().len(), 100);
        assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
    }

    #[test]
    fn the_files_to_delete_are_named_and_links_are_not_followed() {
        let (outside, library) = library();
        let folder = library.create(plan("x")).unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.path().join("disks/out")).unwrap();
        let names: Vec<_> = folder.files().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [PathBuf::from("disks/out"), PathBuf::from("machine.ron")]);
    }
}
