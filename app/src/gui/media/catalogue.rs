//! Which disk and CD images there are: those that machines name, those that lie in machines' folders, those that the person has
//! added, and whatever these are built on. Everything here only reads, takes no locks that could be in a machine's way, and
//! treats every file as a stranger's: a file that cannot be understood is listed with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use engine_config::Machine;
use engine_disk::{BackingFiles, DiskError, DiskImage, ExtentKind, Format, OpenOptions, Sharing};
use engine_session::library::{Library, Running};
use serde::{Deserialize, Serialize};

use crate::gui::parts::file_name_text;

/// A copy that is being made has this behind its name until it is whole.
pub const UNFINISHED: &str = ".unfinished";
/// The list of images that lie elsewhere, in the library's folder.
const ADDED_FILE: &str = "media.ron";
/// Names that make a file in a machine's folder worth a look.
const EXTENSIONS: [&str; 9] = ["qcow2", "img", "raw", "vdi", "vmdk", "vhd", "vhdx", "iso", "unfinished"];
/// More images than this are not listed; nobody reads them.
const MOST_IMAGES: usize = 2000;

/// What is known of an image's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing is wrong.
    Fine,
    /// A program has it open for writing.
    InUse,
    /// It was not closed properly.
    NeedsCheck,
    /// A copy that was never finished.
    Unfinished,
    /// The file is not there.
    Missing,
    /// It cannot be used: a sentence.
    Damaged(String),
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
    /// Its format: as its machine states it, or else as its signature says.
    pub format: Format,
    /// Size of the disk in bytes, as a guest sees it.
    pub size: Option<u64>,
    /// Bytes that it takes on the host.
    pub on_disk: Option<u64>,
    /// The machines that have it in a drive.
    pub users: Vec<String>,
    /// The image that it is built on.
    pub base: Option<PathBuf>,
    /// The format of that, as the file says.
    pub base_format: Option<String>,
    /// Snapshots inside the file.
    pub snapshots: usize,
    /// Its content is encrypted, and locked until somebody says the passphrase.
    pub encrypted: bool,
    /// Bytes on the host that the disk does not use, where that can be told; `stamp` says of which state of the file.
    pub freeable: Option<u64>,
    /// When the file was last written, in nanoseconds since 1970.
    pub stamp: i128,
    /// No machine has it in a drive, and no image is built on it.
    pub orphan: bool,
    /// What is known of it.
    pub state: State,
    /// The person has added it to the list.
    pub added: bool,
    /// How many images it is built on, as far as they are listed.
    pub depth: usize,
}

impl Image {
    /// The file's name.
    pub fn name(&self) -> String {
        file_name_text(&self.path)
    }
}

/// All images, each behind the one that it is built on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue {
    /// The images.
    pub images: Vec<Image>,
}

impl Catalogue {
    /// The image at a path.
    pub fn find(&self, path: &Path) -> Option<&Image> {
        self.images.iter().find(|image| image.path == path)
    }

    /// The images that are built directly on this one.
    pub fn built_on<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = &'a Image> {
        self.images.iter().filter(move |image| image.base.as_deref() == Some(path))
    }

    /// Bytes of all images on the host.
    pub fn total_on_disk(&self) -> u64 {
        self.images.iter().filter_map(|image| image.on_disk).sum()
    }

    /// Bytes that compacting would give back to the host, as far as that can be told.
    pub fn total_freeable(&self) -> u64 {
        self.images.iter().filter_map(|image| image.freeable).sum()
    }

    /// Who needs this image, so that it must not be deleted: a line each.
    pub fn needed_by(&self, image: &Image) -> Vec<String> {
        let overlays = self.built_on(&image.path).map(|overlay| format!("{} is built on it", overlay.name()));
        overlays.chain(image.users.iter().map(|user| format!("it is in a drive of {user}"))).collect()
    }

    /// Everything that the library and the person's own list lead to. What was found `before` is not looked for again in
    /// files that have not changed.
    ///
    /// # Errors
    /// A sentence, when the library cannot be read.
    pub fn read(library: &Library, before: &Self) -> Result<Self, String> {
        let mut found = Found::default();
        for entry in library.list().map_err(|error| error.to_string())? {
            let folder = entry.folder.path();
            if let Ok(machine) = &entry.machine {
                let name = if entry.running == Running::No { machine.name.clone() } else { format!("{} (on)", machine.name) };
                found.machine(folder, &name, machine);
            }
            for (file, _) in entry.folder.files().unwrap_or_default() {
                found.file(&folder.join(file));
            }
        }
        for path in loose_files(library.root()) {
            found.file(&path);
        }
        for path in added(library) {
            found.at(&path).added = true;
        }
        Ok(found.finish(before))
    }
}

#[derive(Default)]
struct Entry {
    stated: Option<Format>,
    users: Vec<String>,
    added: bool,
}

#[derive(Default)]
struct Found {
    entries: BTreeMap<PathBuf, Entry>,
}

impl Found {
    fn at(&mut self, path: &Path) -> &mut Entry {
        self.entries.entry(plain(path)).or_default()
    }

    fn machine(&mut self, folder: &Path, name: &str, machine: &Machine) {
        for disk in &machine.disks {
            let entry = self.at(&folder.join(&disk.file));
            entry.stated = disk.format.parse().ok();
            entry.users.push(name.to_owned());
        }
        let media = machine.cdroms.iter().map(|drive| &drive.medium).chain(machine.floppies.iter().map(|drive| &drive.medium));
        for medium in media.flatten() {
            self.at(&folder.join(medium)).users.push(name.to_owned());
        }
    }

    fn file(&mut self, path: &Path) {
        let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_lowercase);
        if extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str())) {
            self.at(path);
        }
    }

    /// Looks into every file, follows what they are built on, and puts them in order.
    fn finish(mut self, before: &Catalogue) -> Catalogue {
        let mut images: BTreeMap<PathBuf, Image> = BTreeMap::new();
        while let Some((path, entry)) = self.entries.pop_first() {
            if images.len() >= MOST_IMAGES {
                break;
            }
            let known = before.find(&path);
            let image = look(path, entry, known);
            if let Some(base) = &image.base
                && !images.contains_key(base)
            {
                let format = image.base_format.as_deref().and_then(|name| name.parse().ok());
                let entry = self.entries.entry(base.clone()).or_default();
                entry.stated = entry.stated.or(format);
            }
            images.insert(image.path.clone(), image);
        }
        let bases: BTreeSet<PathBuf> = images.values().filter_map(|image| image.base.clone()).collect();
        for image in images.values_mut() {
            image.orphan = image.users.is_empty() && image.format != Format::Iso && !bases.contains(&image.path);
        }
        Catalogue { images: in_order(images) }
    }
}

/// Each image behind the one that it is built on; roots by name.
fn in_order(mut images: BTreeMap<PathBuf, Image>) -> Vec<Image> {
    let is_root = |image: &Image, all: &BTreeMap<PathBuf, Image>| image.base.as_ref().is_none_or(|base| !all.contains_key(base));
    let mut roots: Vec<PathBuf> =
        images.values().filter(|image| is_root(image, &images)).map(|image| image.path.clone()).collect();
    roots.sort_by_key(|path| path.file_name().map(|name| name.to_string_lossy().to_lowercase()));
    let mut ordered = Vec::new();
    let mut waiting: Vec<(PathBuf, usize)> = roots.into_iter().rev().map(|path| (path, 0)).collect();
    while let Some((path, depth)) = waiting.pop() {
        let Some(image) = images.remove(&path) else { continue };
        waiting.extend(
            images.values().filter(|other| other.base.as_ref() == Some(&path)).map(|other| (other.path.clone(), depth + 1)),
        );
        ordered.push(Image { depth, ..image });
    }
    // Files that are built on each other in a circle have no root.
    ordered.extend(images.into_values().map(|image| Image { depth: 0, ..image }));
    ordered
}

fn look(path: PathBuf, entry: Entry, known: Option<&Image>) -> Image {
    let mut image = Image {
        format: entry.stated.unwrap_or(Format::Raw),
        size: None,
        on_disk: None,
        users: entry.users,
        base: None,
        base_format: None,
        snapshots: 0,
        encrypted: false,
        freeable: None,
        stamp: 0,
        orphan: false,
        state: State::Fine,
        added: entry.added,
        depth: 0,
        path,
    };
    let Ok(metadata) = fs::metadata(&image.path) else {
        image.state = State::Missing;
        return image;
    };
    if !metadata.is_file() {
        image.state = State::Damaged("It is not a file.".to_owned());
        return image;
    }
    image.on_disk = Some(metadata.blocks() * 512);
    image.stamp = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    if image.path.as_os_str().to_string_lossy().ends_with(UNFINISHED) {
        image.state = State::Unfinished;
        return image;
    }
    // A person who opens the list has asked for a look at the signatures of files that no machine states the format of.
    let format = match entry.stated {
        Some(format) => Ok(format),
        None => engine_disk::probe(&image.path).map(|format| format.unwrap_or(Format::Raw)),
    };
    let opened = format.and_then(|format| {
        image.format = format;
        let options = OpenOptions {
            format: Some(format),
            backing_files: BackingFiles::LeftOut,
            sharing: Sharing::Unlocked,
            ..OpenOptions::read_only(&image.path)
        };
        engine_disk::open(&options)
    });
    let disk = match opened {
        Ok(disk) => disk,
        Err(error) => {
            image.state = State::Damaged(error.to_string());
            return image;
        }
    };
    let info = disk.info();
    image.size = Some(disk.len());
    image.encrypted = info.encrypted;
    image.snapshots = disk.snapshots().len();
    if let Some(backing) = info.backing {
        image.base = Some(plain(&image.path.parent().unwrap_or(Path::new("")).join(backing.name)));
        image.base_format = backing.format;
    }
    image.state = match (is_in_use(&image), info.dirty) {
        (true, _) => State::InUse,
        (false, true) => State::NeedsCheck,
        (false, false) => State::Fine,
    };
    // What an encrypted image does not use cannot be told from the rest once it is copied.
    if image.state == State::Fine && image.snapshots == 0 && !image.encrypted {
        let same = |known: &&Image| (known.stamp, known.on_disk, known.size) == (image.stamp, image.on_disk, image.size);
        image.freeable = match known.filter(same) {
            Some(known) => known.freeable,
            None => freeable(&*disk, metadata.blocks() * 512),
        };
    }
    image
}

/// How many of the `on_disk` bytes of a file hold nothing that its disk uses: clusters that are free inside it. `None` where
/// that cannot be told, because it is compressed or in too many pieces to look at all of them.
fn freeable(disk: &dyn DiskImage, on_disk: u64) -> Option<u64> {
    const MOST_PIECES: usize = 100_000;
    /// Tables and the like, which every file has.
    const LEAST: u64 = 1 << 20;
    let (mut at, mut used) = (0, 0);
    for _ in 0..MOST_PIECES {
        if at >= disk.len() {
            // A 256th is more than any format's tables take.
            let kept = used + used / 256 + LEAST;
            return Some(on_disk.saturating_sub(kept));
        }
        let extent = disk.extent_at(at).ok()?;
        if extent.compressed || extent.length == 0 {
            return None;
        }
        if extent.kind == ExtentKind::Data {
            used += extent.length;
        }
        at += extent.length;
    }
    None
}

/// Whether another program writes to it: it would not let us read it alone.
fn is_in_use(image: &Image) -> bool {
    let options =
        OpenOptions { format: Some(image.format), backing_files: BackingFiles::LeftOut, ..OpenOptions::read_only(&image.path) };
    matches!(engine_disk::open(&options), Err(DiskError::InUse { .. }))
}

/// An absolute path without `.` and `..` and, where the file is there, without links.
pub fn plain(path: &Path) -> PathBuf {
    if let Ok(path) = path.canonicalize() {
        return path;
    }
    let mut plain = PathBuf::new();
    for part in std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

/// Files that lie in the library's folder itself: images that belong to no machine.
fn loose_files(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let files = entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    files.map(|entry| entry.path()).take(MOST_IMAGES).collect()
}

#[derive(Default, Serialize, Deserialize)]
struct Added {
    images: Vec<PathBuf>,
}

/// The images that the person has added. A list that cannot be read is an empty one: it only points at files.
fn added(library: &Library) -> Vec<PathBuf> {
    let text = fs::read_to_string(library.root().join(ADDED_FILE)).unwrap_or_default();
    if text.is_empty() {
        return Vec::new();
    }
    match ron::from_str::<Added>(&text) {
        Ok(added) => added.images.into_iter().take(MOST_IMAGES).collect(),
        Err(error) => {
            tracing::warn!(%error, "the list of added images cannot be read");
            Vec::new()
        }
    }
}

/// Adds an image to the person's list, or takes it off.
///
/// # Errors
/// A sentence, when the list cannot be written.
pub fn set_added(library: &Library, path: &Path, wanted: bool) -> Result<(), String> {
    let path = plain(path);
    let mut images = added(library);
    images.retain(|other| *other != path);
    if wanted {
        images.push(path);
    }
    let file = library.root().join(ADDED_FILE);
    let whole = |error: String| {
        format!("The list of images could not be saved ({error}). Check the permissions there: {}", file.display())
    };
    let text = ron::ser::to_string_pretty(&Added { images }, Default::default()).map_err(|error| whole(error.to_string()))?;
    // Written beside and renamed, so that a crash leaves the old list or the new one.
    let beside = file.with_extension("ron.new");
    let written =
        fs::create_dir_all(library.root()).and_then(|()| fs::write(&beside, text)).and_then(|()| fs::rename(&beside, &file));
    written.map_err(|error| whole(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_config::Disk;
    use engine_disk::{Backing, CreateOptions};
    use engine_session::library::NewMachine;

    fn library(folder: &Path) -> Library {
        Library::at(folder.join("machines"), folder.join("run"))
    }

    fn read(library: &Library) -> Result<Catalogue, String> {
        Catalogue::read(library, &Catalogue::default())
    }

    fn overlay(path: &Path, base: &str) {
        let backing = Some(Backing { name: base.into(), format: Format::Qcow2 });
        engine_disk::create(path, &CreateOptions { backing, ..CreateOptions::new(Format::Qcow2, 1 << 20) }).unwrap();
    }

    #[test]
    fn images_are_found_with_their_users_and_stand_behind_what_they_are_built_on() {
        let folder = tempfile::tempdir().unwrap();
        let library = library(folder.path());
        let made = library.create(NewMachine { machine: Machine::new("x"), disk_bytes: Some(1 << 20) }).unwrap();
        let disks = made.path().join("disks");
        overlay(&disks.join("a.qcow2"), "system.qcow2");
        overlay(&disks.join("b.qcow2"), "a.qcow2");
        let catalogue = read(&library).unwrap();
        let lines: Vec<_> = catalogue.images.iter().map(|image| (image.name(), image.depth, image.users.len())).collect();
        assert_eq!(lines, [("system.qcow2".into(), 0, 1), ("a.qcow2".into(), 1, 0), ("b.qcow2".into(), 2, 0)]);
        let needed = |index: usize| catalogue.needed_by(&catalogue.images[index]);
        assert_eq!(needed(0), ["a.qcow2 is built on it", "it is in a drive of x"]);
        assert_eq!((needed(1), needed(2)), (vec!["b.qcow2 is built on it".to_owned()], Vec::new()));
        assert_eq!(catalogue.images.iter().map(|image| image.orphan).collect::<Vec<_>>(), [false, false, true]);
    }

    #[test]
    fn what_is_missing_damaged_or_half_made_is_listed_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let library = library(folder.path());
        let mut machine = Machine::new("x");
        machine.disks.push(Disk { file: "gone.qcow2".into(), format: "qcow2".into() });
        let made = library.create(NewMachine { machine, disk_bytes: None }).unwrap();
        fs::write(made.path().join("bad.qcow2"), b"QFI\xfb\0\0\0\x09 not a disk").unwrap();
        fs::write(made.path().join(format!("c.vdi{UNFINISHED}")), b"x").unwrap();
        let catalogue = read(&library).unwrap();
        let state = |name: &str| catalogue.images.iter().find(|image| image.name() == name).map(|image| image.state.clone());
        assert_eq!(state("gone.qcow2"), Some(State::Missing));
        assert!(matches!(state("bad.qcow2"), Some(State::Damaged(_))));
        assert_eq!(state("c.vdi.unfinished"), Some(State::Unfinished));
        let gone = catalogue.images.iter().find(|image| image.state == State::Missing).unwrap();
        assert_eq!(catalogue.needed_by(gone), ["it is in a drive of x"]);
    }

    #[test]
    fn an_encrypted_image_is_locked_and_not_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let library = library(folder.path());
        fs::create_dir_all(library.root()).unwrap();
        for (name, format) in [("a.qcow2", Format::Qcow2), ("b.img", Format::Luks)] {
            let passphrase = Some(engine_disk::Passphrase::new(b"secret".to_vec()));
            let options = CreateOptions { passphrase, ..CreateOptions::new(format, 1 << 20) };
            engine_disk::create(&library.root().join(name), &options).unwrap();
        }
        let images = read(&library).unwrap().images;
        assert_eq!(images.len(), 2);
        for image in images {
            assert_eq!(
                (image.state.clone(), image.encrypted, image.size, image.freeable),
                (State::Fine, true, Some(1 << 20), None),
                "{image:?}"
            );
        }
    }

    #[test]
    fn space_that_a_file_holds_and_its_disk_does_not_use_is_counted_once_for_each_state_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let library = library(folder.path());
        fs::create_dir_all(library.root()).unwrap();
        let path = library.root().join("a.qcow2");
        engine_disk::create(&path, &CreateOptions::new(Format::Qcow2, 64 << 20)).unwrap();
        let disk = engine_disk::open(&OpenOptions::new(&path)).unwrap();
        disk.write_at(0, &vec![7; 16 << 20]).unwrap();
        disk.flush().unwrap();
        drop(disk);
        let first = read(&library).unwrap();
        assert_eq!(first.images[0].freeable, Some(0));
        // What is there behind the disk's own clusters is of no use to it.
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut file, &vec![1; 32 << 20]).unwrap();
        drop(file);
        let second = Catalogue::read(&library, &first).unwrap();
        let freeable = second.images[0].freeable.unwrap();
        assert!(freeable > 30 << 20 && freeable <= 32 << 20, "{freeable}");
        assert_eq!(second.total_freeable(), freeable);
        assert_eq!(Catalogue::read(&library, &second).unwrap(), second);
    }

    #[test]
    fn an_image_that_somebody_writes_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let library = library(folder.path());
        let made = library.create(NewMachine { machine: Machine::new("x"), disk_bytes: Some(1 << 20) }).unwrap();
        let path = made.path().join("disks/system.qcow2");
        let open = engine_disk::open(&OpenOptions::new(&path)).unwrap();
        assert_eq!(read(&library).unwrap().images[0].state, State::InUse);
        drop(open);
        assert_eq!(read(&library).unwrap().images[0].state, State::Fine);
    }

    #[test]
    fn added_images_are_remembered_until_they_are_taken_off() {
        let folder = tempfile::tempdir().unwrap();
        let library = library(folder.path());
        let path = folder.path().join("elsewhere.vdi");
        engine_disk::create(&path, &CreateOptions::new(Format::Vdi, 1 << 20)).unwrap();
        set_added(&library, &path, true).unwrap();
        set_added(&library, &path, true).unwrap();
        let images = read(&library).unwrap().images;
        assert_eq!(images.iter().map(|image| (image.format, image.added)).collect::<Vec<_>>(), [(Format::Vdi, true)]);
        set_added(&library, &path, false).unwrap();
        assert!(read(&library).unwrap().images.is_empty());
    }

    #[test]
    fn images_that_are_built_on_each_other_in_a_circle_are_listed_once_each() {
        let folder = tempfile::tempdir().unwrap();
        let library = library(folder.path());
        fs::create_dir_all(library.root()).unwrap();
        overlay_pair(library.root());
        assert_eq!(read(&library).unwrap().images.len(), 2);
    }

    /// Two files that name each other; only a stranger makes such.
    fn overlay_pair(folder: &Path) {
        let (a, b) = (folder.join("a.qcow2"), folder.join("b.qcow2"));
        engine_disk::create(&b, &CreateOptions::new(Format::Qcow2, 1 << 20)).unwrap();
        overlay(&a, "b.qcow2");
        let mut bytes = fs::read(&a).unwrap();
        let name = bytes.windows(7).position(|window| window == b"b.qcow2").unwrap();
        bytes[name] = b'a';
        fs::write(&b, bytes).unwrap();
    }
}
