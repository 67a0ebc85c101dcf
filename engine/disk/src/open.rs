//! Opening and making disks: from a file name to a [`DiskImage`].

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::block_file::{Access, BlockFile, FileIdentity, fill_with_zeros, read_zero_padded};
use crate::formats::{HEAD_LENGTH, Opening, WriteEmpty};
use crate::host_file::HostFile;
use crate::image::DiskImage;
use crate::luks::{KeyChange, Passphrase};
use crate::overlay::{Forgetful, throw_away};
use crate::probe::recognise;
use crate::qcow2::Qcow2Options;
use crate::vhdx::VhdxOptions;
use crate::vmdk::VmdkOptions;
use crate::write_through::WriteThrough;
use crate::{DiskError, Format};

/// How to open a disk. `OpenOptions::new(path)` asks for a writable disk with no guessing.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The file.
    pub path: PathBuf,
    /// Its format. `None` asks for a look at its signature; a writable file without one is then treated as
    /// [`probed_raw`](Self::probed_raw) says.
    pub format: Option<Format>,
    /// Whether the guest may write.
    pub access: Access,
    /// Whether what the guest writes is thrown away when the disk is closed. The file itself is then only read.
    pub snapshot: bool,
    /// Which base images may be opened.
    pub backing_files: BackingFiles,
    /// What to do with a writable file that carries no signature and whose format was not stated.
    pub probed_raw: ProbedRaw,
    /// Whether others may have the file open for writing at the same time.
    pub sharing: Sharing,
    /// What a flush means.
    pub flushing: Flushing,
    /// Whether data goes through the host's page cache. Base images go the same way.
    pub host_cache: HostCache,
    /// How many bytes of a qcow2 disk's mapping tables are kept in memory at most. `None`: as many as it has, up to 32 MiB.
    pub table_cache_bytes: Option<u64>,
    /// The id or name of a snapshot inside the file that is to be read instead of the disk as it is now.
    pub internal_snapshot: Option<String>,
    /// What unlocks an encrypted disk; base images are opened without. Without it such a disk is refused, unless
    /// [`BackingFiles::LeftOut`] says that it is only looked at.
    pub passphrase: Option<Passphrase>,
    /// The file that holds the data of a qcow2 disk, in place of the one that the disk names.
    pub data_file: Option<PathBuf>,
}

impl OpenOptions {
    /// A writable disk whose format is told by its signature, or else refused.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: None,
            access: Access::ReadWrite,
            snapshot: false,
            backing_files: BackingFiles::Anywhere,
            probed_raw: ProbedRaw::Refuse,
            sharing: Sharing::Locked,
            flushing: Flushing::Durable,
            host_cache: HostCache::Used,
            table_cache_bytes: None,
            internal_snapshot: None,
            passphrase: None,
            data_file: None,
        }
    }

    /// A medium that is only read.
    pub fn read_only(path: impl Into<PathBuf>) -> Self {
        Self { access: Access::ReadOnly, ..Self::new(path) }
    }
}

/// Which base images may be opened. Their names stand in the disk file, and so may come from a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackingFiles {
    /// Any file that the person running us may read, as QEMU does.
    Anywhere,
    /// Only files in the disk's own folder or below it.
    BesideDisk,
    /// None: a disk with a base image is refused.
    Refused,
    /// None: the disk is opened without its base image, for tools that look at one file alone. What it does not hold
    /// itself reads as zeros.
    LeftOut,
}

/// Whether a file may be used by several programs at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// A writer is alone, readers share.
    Locked,
    /// No locks are taken or looked at. What is read while somebody writes may be nonsense, but no worse than that.
    Unlocked,
}

/// What a flush means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flushing {
    /// What was written before it survives a crash of the host.
    #[default]
    Durable,
    /// The same, and no write is acknowledged before it would survive: for guests that never flush (`cache=writethrough`).
    EachWrite,
    /// Nothing (`cache=unsafe`): for files that are made again after a crash, such as the target of a copy.
    Skipped,
}

/// A file as the formats see it: with its flushes, and past the host's cache, as was asked.
fn prepared(mut file: HostFile, access: Access, flushing: Flushing, host_cache: HostCache) -> Arc<dyn BlockFile> {
    if host_cache == HostCache::Bypassed
        && let Err(error) = file.bypass_cache(access)
    {
        tracing::warn!(path = %file.path().display(), %error, "this file cannot be used past the host's cache; the cache is used");
    }
    match flushing {
        Flushing::Durable | Flushing::EachWrite => Arc::new(file),
        Flushing::Skipped => Arc::new(Forgetful(file)),
    }
}

/// Whether data goes through the host's page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostCache {
    /// It does: what is read again comes from memory, and what is written goes to the host's disk when there is time.
    #[default]
    Used,
    /// It goes past it (`O_DIRECT`), so that host memory is not used twice for what the guest caches itself. Where the
    /// host's file system refuses that, the log says so, and the cache is used.
    Bypassed,
}

/// What QEMU calls a cache mode: how far writes get before they are acknowledged, and whether the host caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheMode {
    /// What a flush means.
    pub flushing: Flushing,
    /// Whether data goes through the host's page cache.
    pub host_cache: HostCache,
}

impl CacheMode {
    /// The names of the modes, for messages.
    pub const NAMES: &str = "none, writeback, writethrough, directsync and unsafe";

    /// The mode that QEMU gives this name.
    pub fn named(name: &str) -> Option<Self> {
        let (flushing, host_cache) = match name {
            "writeback" => (Flushing::Durable, HostCache::Used),
            "none" | "off" => (Flushing::Durable, HostCache::Bypassed),
            "writethrough" => (Flushing::EachWrite, HostCache::Used),
            "directsync" => (Flushing::EachWrite, HostCache::Bypassed),
            "unsafe" => (Flushing::Skipped, HostCache::Used),
            _ => return None,
        };
        Some(Self { flushing, host_cache })
    }
}

/// How much of a disk's space is set aside when it is made or grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// None.
    #[default]
    Off,
    /// All clusters are mapped, but the host sets no space aside.
    Metadata,
    /// The host sets space aside without writing it.
    Falloc,
    /// All space is written with zeros.
    Full,
}

/// What to do with a writable file without signature whose format was not stated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbedRaw {
    /// Refuse it and ask for the format.
    Refuse,
    /// Take it as raw, but let the guest write no first sector that looks like another format.
    Guarded,
    /// Raw was stated: the guest may write what it likes.
    Stated,
}

/// How to make a new disk file.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// The format.
    pub format: Format,
    /// Size of the disk in bytes, a multiple of 512.
    pub size: u64,
    /// The base image, as it is to be written in the file (relative names are relative to the file's folder).
    pub backing: Option<Backing>,
    /// How much space is set aside.
    pub preallocation: Preallocation,
    /// What only a qcow2 file has.
    pub qcow2: Qcow2Options,
    /// The file that is to hold the data of a qcow2 disk, if that is to be another one.
    pub data_file: Option<NewDataFile>,
    /// What only a VMDK disk has.
    pub vmdk: VmdkOptions,
    /// What only a VHDX disk has.
    pub vhdx: VhdxOptions,
    /// Encrypts the disk, where the format can: LUKS always does, qcow2 if this is there.
    pub passphrase: Option<Passphrase>,
    /// How long this computer is to take to try a passphrase.
    pub passphrase_time: Duration,
}

/// The file that holds the data of a qcow2 disk. It is made with the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDataFile {
    /// Its name as it is to be written in the disk file; relative names are relative to that file's folder.
    pub name: String,
    /// Whether it must always read as the disk does, by itself. Then the disk can have no base image.
    pub raw: bool,
}

/// A base image of a new disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its name as it is to be written in the file.
    pub name: String,
    /// Its format, which is always written down too.
    pub format: Format,
}

impl CreateOptions {
    /// A disk of `size` bytes with the format's usual options.
    pub fn new(format: Format, size: u64) -> Self {
        Self {
            format,
            size,
            backing: None,
            preallocation: Preallocation::Off,
            qcow2: Qcow2Options::default(),
            data_file: None,
            vmdk: VmdkOptions::default(),
            vhdx: VhdxOptions::default(),
            passphrase: None,
            passphrase_time: KeyChange::USUAL_TIME,
        }
    }
}

/// How many files a disk may be built on.
const MAX_CHAIN: usize = 64;

/// Opens a disk.
pub fn open(options: &OpenOptions) -> Result<Arc<dyn DiskImage>, DiskError> {
    let file_access = if options.snapshot { Access::ReadOnly } else { options.access };
    let disk = Chain::default().open(&OpenOptions { access: file_access, ..options.clone() })?;
    match (options.access, options.snapshot, options.flushing) {
        (Access::ReadWrite, true, _) => throw_away(disk, &options.path),
        (Access::ReadWrite, false, Flushing::EachWrite) => Ok(Arc::new(WriteThrough(disk))),
        _ => Ok(disk),
    }
}

/// A file that is open, and what it is taken for.
pub(crate) struct OpenedFile {
    pub(crate) file: HostFile,
    pub(crate) format: Format,
    /// Reading only where the format has no writing.
    access: Access,
    first_sector: ProbedRaw,
}

impl OpenedFile {
    /// Keeps others away from it.
    pub(crate) fn lock(&self, sharing: Sharing) -> Result<(), DiskError> {
        if sharing == Sharing::Unlocked {
            return Ok(());
        }
        let path = self.file.path();
        self.file.lock(self.access).map_err(|source| match (source.kind(), self.access) {
            (std::io::ErrorKind::WouldBlock, Access::ReadOnly) => DiskError::InUse { hint: "", path: path.to_path_buf() },
            (std::io::ErrorKind::WouldBlock, Access::ReadWrite) => {
                DiskError::InUse { hint: ", or attach the disk read-only", path: path.to_path_buf() }
            }
            _ => DiskError::host("lock", path, source),
        })
    }
}

/// Opens a file and decides its format.
pub(crate) fn open_file(options: &OpenOptions) -> Result<OpenedFile, DiskError> {
    let path = &options.path;
    // Looked at through a reading handle first, so that a CD image never needs write permission.
    let reader = HostFile::open(path, Access::ReadOnly)?;
    let (format, first_sector) = match options.format {
        Some(format) => (format, ProbedRaw::Stated),
        None => (decide_format(&reader, options.access, options.probed_raw)?, options.probed_raw),
    };
    let access = if format.driver().writable { options.access } else { Access::ReadOnly };
    let file = match access {
        Access::ReadOnly => reader,
        Access::ReadWrite => HostFile::open(path, Access::ReadWrite)?,
    };
    Ok(OpenedFile { file, format, access, first_sector })
}

/// The files that were opened on the way to this one, and what goes for all of them.
pub(crate) struct Chain {
    backing_files: BackingFiles,
    sharing: Sharing,
    flushing: Flushing,
    host_cache: HostCache,
    table_cache_bytes: Option<u64>,
    data_file: Option<PathBuf>,
    visited: Vec<FileIdentity>,
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            backing_files: BackingFiles::Anywhere,
            sharing: Sharing::Locked,
            flushing: Flushing::Durable,
            host_cache: HostCache::Used,
            table_cache_bytes: None,
            data_file: None,
            visited: Vec::new(),
        }
    }
}

impl Chain {
    /// One in which every base image is left out.
    #[cfg(test)]
    pub(crate) fn leaving_out() -> Self {
        Self { backing_files: BackingFiles::LeftOut, ..Self::default() }
    }

    fn open(&self, options: &OpenOptions) -> Result<Arc<dyn DiskImage>, DiskError> {
        let opened = open_file(options)?;
        let identity = opened.file.identity();
        if let Some(identity) = identity
            && self.visited.contains(&identity)
        {
            let reason = "the files are built on each other in a circle".into();
            return Err(DiskError::Backing { reason, path: options.path.clone() });
        }
        opened.lock(options.sharing)?;
        let OpenedFile { file, format, access, first_sector } = opened;
        let visited = self.visited.iter().copied().chain(identity).collect();
        let chain = Chain {
            backing_files: options.backing_files,
            sharing: options.sharing,
            flushing: options.flushing,
            host_cache: options.host_cache,
            table_cache_bytes: options.table_cache_bytes,
            data_file: options.data_file.clone(),
            visited,
        };
        let internal_snapshot = options.internal_snapshot.as_deref();
        let driver = format.driver();
        if internal_snapshot.is_some() && !driver.has_snapshots {
            return Err(DiskError::NotPossible { title: driver.title, action: "keep snapshots" });
        }
        let file = prepared(file, access, options.flushing, options.host_cache);
        let passphrase = options.passphrase.as_ref();
        (driver.open)(Opening { file, access, first_sector, internal_snapshot, passphrase, chain: &chain })
    }

    /// Where the data file of the disk at `main` is: where somebody said, or by the name that stands in it. What goes for
    /// base images goes for such a name too: never is anything but an ordinary file opened, and only where names may be followed.
    pub(crate) fn data_file(&self, main: &Path, name: Option<&str>, access: Access) -> Result<PartPlace, DiskError> {
        if let Some(path) = &self.data_file {
            return Ok(self.part(main, path.clone(), access));
        }
        let refuse = |reason: String| DiskError::DataFile { reason, path: main.to_path_buf() };
        let name = name.ok_or_else(|| refuse("its name is not written down".into()))?;
        if let Some(protocol) = protocol(name) {
            return Err(refuse(format!("\"{}:\" is no way that Bellglass goes to a file", protocol.escape_debug())));
        }
        let named = Path::new(name);
        match self.backing_files {
            BackingFiles::Anywhere | BackingFiles::LeftOut => {}
            BackingFiles::BesideDisk if is_beside(named) => {}
            BackingFiles::BesideDisk => return Err(refuse("it lies outside the disk's own folder".into())),
            BackingFiles::Refused => return Err(refuse("other files are not allowed here".into())),
        }
        Ok(self.part(main, main.parent().unwrap_or(Path::new("")).join(named), access))
    }

    fn part(&self, main: &Path, path: PathBuf, access: Access) -> PartPlace {
        PartPlace {
            main: main.to_path_buf(),
            path,
            access,
            sharing: self.sharing,
            flushing: self.flushing,
            host_cache: self.host_cache,
            visited: self.visited.clone(),
        }
    }

    /// Opens another file that belongs to the disk at `main` and lies beside it.
    pub(crate) fn open_part(&self, main: &Path, name: &str, access: Access) -> Result<Arc<dyn BlockFile>, DiskError> {
        let mut parts = Path::new(name).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            let detail = "it names a file that does not lie beside it".into();
            return Err(DiskError::WrongFormat { expected: "disk", detail, path: main.to_path_buf() });
        }
        let file = HostFile::open(&main.with_file_name(name), access)?;
        if let Some(identity) = file.identity()
            && self.visited.contains(&identity)
        {
            let detail = "it names itself as a part of itself".into();
            return Err(DiskError::WrongFormat { expected: "disk", detail, path: main.to_path_buf() });
        }
        let opened = OpenedFile { file, format: Format::Raw, access, first_sector: ProbedRaw::Stated };
        opened.lock(self.sharing)?;
        Ok(prepared(opened.file, access, self.flushing, self.host_cache))
    }

    /// How many bytes of mapping tables may be kept in memory, if anybody said so.
    pub(crate) fn table_cache_bytes(&self) -> Option<u64> {
        self.table_cache_bytes
    }

    /// Looks at the base that a disk at `overlay` is to be built on, whoever has it open and whatever it is built on.
    pub(crate) fn look_at(overlay: &Path, backing: &Backing) -> Result<Arc<dyn DiskImage>, DiskError> {
        let path = overlay.parent().unwrap_or(Path::new("")).join(&backing.name);
        let options = OpenOptions {
            format: Some(backing.format),
            backing_files: BackingFiles::LeftOut,
            sharing: Sharing::Unlocked,
            ..OpenOptions::read_only(path)
        };
        Self::default().open(&options)
    }

    /// Whether base images are only taken from the disk's own folder.
    pub(crate) fn keeps_to_its_folder(&self) -> bool {
        self.backing_files == BackingFiles::BesideDisk
    }

    /// Whether base images are left out.
    pub(crate) fn leaves_out_backing(&self) -> bool {
        self.backing_files == BackingFiles::LeftOut
    }

    /// Opens the base image that the disk at `overlay` names.
    pub(crate) fn open_backing(
        &self,
        overlay: &Path,
        name: &str,
        format: Option<Format>,
    ) -> Result<Arc<dyn DiskImage>, DiskError> {
        let refuse = |reason: &str| DiskError::Backing { reason: reason.into(), path: overlay.to_path_buf() };
        if self.visited.len() >= MAX_CHAIN {
            return Err(refuse("more than 64 files are built on each other"));
        }
        let Some(format) = format else {
            return Err(refuse("the format of its base image is not written down, and guessing it would be unsafe"));
        };
        let named = Path::new(name);
        match self.backing_files {
            BackingFiles::Anywhere => {}
            BackingFiles::BesideDisk if is_beside(named) => {}
            BackingFiles::BesideDisk => return Err(refuse("its base image lies outside the disk's own folder")),
            BackingFiles::Refused | BackingFiles::LeftOut => return Err(refuse("base images are not allowed here")),
        }
        let path = overlay.parent().unwrap_or(Path::new("")).join(named);
        let options = OpenOptions {
            format: Some(format),
            backing_files: self.backing_files,
            sharing: self.sharing,
            host_cache: self.host_cache,
            table_cache_bytes: self.table_cache_bytes,
            ..OpenOptions::read_only(path)
        };
        self.open(&options).map_err(|error| match error {
            DiskError::Backing { .. } => error,
            error => refuse(&error.to_string()),
        })
    }
}

/// Another file that belongs to a disk, before it is opened.
#[derive(Debug)]
pub(crate) struct PartPlace {
    main: PathBuf,
    path: PathBuf,
    access: Access,
    sharing: Sharing,
    flushing: Flushing,
    host_cache: HostCache,
    visited: Vec<FileIdentity>,
}

impl PartPlace {
    /// Opens the file and keeps others away from it.
    pub(crate) fn open(&self) -> Result<Arc<dyn BlockFile>, DiskError> {
        let told = |error: DiskError| self.error(&error.to_string());
        let file = HostFile::open(&self.path, self.access).map_err(told)?;
        if file.identity().is_some_and(|identity| self.visited.contains(&identity)) {
            return Err(self.error("it is the disk itself, or what it is built on"));
        }
        let opened = OpenedFile { file, format: Format::Raw, access: self.access, first_sector: ProbedRaw::Stated };
        opened.lock(self.sharing).map_err(told)?;
        Ok(prepared(opened.file, self.access, self.flushing, self.host_cache))
    }

    pub(crate) fn error(&self, reason: &str) -> DiskError {
        DiskError::DataFile { reason: reason.to_owned(), path: self.main.clone() }
    }
}

/// The word before the colon of a name that is no file's, such as `nbd:`.
pub(crate) fn protocol(name: &str) -> Option<&str> {
    name.split_once(':').map(|(protocol, _)| protocol).filter(|protocol| !protocol.contains('/'))
}

/// Whether a name can only lead into the folder it is relative to.
fn is_beside(name: &Path) -> bool {
    name.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// The format of a file about which nothing was said.
fn decide_format(file: &HostFile, access: Access, probed_raw: ProbedRaw) -> Result<Format, DiskError> {
    let mut head = vec![0; HEAD_LENGTH];
    read_zero_padded(file, 0, &mut head).map_err(|source| DiskError::host("read", file.path(), source))?;
    match (recognise(&head), access, probed_raw) {
        // A hard disk may begin with a CD's descriptors (installation sticks do); only a reader takes it for a CD.
        (Some(format), _, _) if format.driver().writable => Ok(format),
        (Some(format), Access::ReadOnly, _) => Ok(format),
        (None, Access::ReadOnly, _) => Ok(Format::Raw),
        (_, Access::ReadWrite, ProbedRaw::Guarded | ProbedRaw::Stated) => Ok(Format::Raw),
        (_, Access::ReadWrite, ProbedRaw::Refuse) => Err(DiskError::FormatNotStated { path: file.path().to_path_buf() }),
    }
}

/// Makes a new disk file. It appears under its name only when it is complete; an existing file is never replaced.
pub fn create(path: &Path, options: &CreateOptions) -> Result<(), DiskError> {
    let bad = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: path.to_path_buf() };
    let write_empty = check_create(path, options)?;
    if path.symlink_metadata().is_ok() {
        return Err(DiskError::AlreadyExists { path: path.to_path_buf() });
    }
    let Some(name) = path.file_name() else {
        return Err(bad("This names no file. Choose a file name"));
    };
    let mut unfinished = std::ffi::OsString::from(".");
    unfinished.push(name);
    unfinished.push(format!(".{}.unfinished", std::process::id()));
    let unfinished = path.with_file_name(unfinished);
    let file = HostFile::create_new(&unfinished)?;
    let make = || {
        if let Some(data_file) = &options.data_file {
            let place = Chain::default().data_file(path, Some(&data_file.name), Access::ReadWrite)?;
            fill_data_file(&HostFile::create_new(&place.path)?, options)?;
        }
        write_empty(&file, options)
    };
    let result = make()
        .and_then(|()| file.flush().map_err(|source| DiskError::host("flush", path, source)))
        .and_then(|()| publish(&unfinished, path));
    if result.is_err() {
        // The error that counts is on its way already; a file that stays behind is only clutter.
        std::fs::remove_file(&unfinished).ok();
    }
    result
}

/// Makes a disk file in place of whatever a file of this name held before, as tools do that are told to. The file
/// keeps its owner, links and permissions; one that is in use is left alone. Nothing is flushed.
pub fn create_over(path: &Path, options: &CreateOptions) -> Result<(), DiskError> {
    let write_empty = check_create(path, options)?;
    let file = match HostFile::open(path, Access::ReadWrite) {
        Err(DiskError::NotFound { .. }) => HostFile::create_new(path)?,
        other => other?,
    };
    let opened = OpenedFile { file, format: options.format, access: Access::ReadWrite, first_sector: ProbedRaw::Stated };
    opened.lock(Sharing::Locked)?;
    opened.file.truncate(0).map_err(|source| DiskError::host("empty", path, source))?;
    if let Some(data_file) = &options.data_file {
        let place = Chain::default().data_file(path, Some(&data_file.name), Access::ReadWrite)?;
        if !place.path.exists() {
            HostFile::create_new(&place.path)?;
        }
        let file = PartPlace { visited: opened.file.identity().into_iter().collect(), ..place }.open()?;
        file.truncate(0).map_err(|source| DiskError::host("empty", path, source))?;
        fill_data_file(&*file, options)?;
    }
    write_empty(&Forgetful(opened.file), options)
}

/// Gives an empty data file the size of its disk.
fn fill_data_file(file: &dyn BlockFile, options: &CreateOptions) -> Result<(), DiskError> {
    file.truncate(options.size).map_err(|source| DiskError::host("create", file.path(), source))?;
    set_space_aside(file, 0, options.size, options.preallocation)
}

/// Has the host keep space for what a new file will hold, where that was asked for.
pub(crate) fn set_space_aside(file: &dyn BlockFile, offset: u64, length: u64, how: Preallocation) -> Result<(), DiskError> {
    let set_aside = match how {
        Preallocation::Off | Preallocation::Metadata => Ok(()),
        Preallocation::Falloc => match file.allocate(offset, length) {
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => fill_with_zeros(file, offset, length),
            result => result,
        },
        Preallocation::Full => fill_with_zeros(file, offset, length),
    };
    set_aside.map_err(|source| DiskError::host("set space aside in", file.path(), source))
}

/// Whether such a disk can be made at all, and how.
fn check_create(path: &Path, options: &CreateOptions) -> Result<WriteEmpty, DiskError> {
    let bad = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: path.to_path_buf() };
    let Some(write_empty) = options.format.driver().create else {
        return Err(bad("Bellglass does not make files of this format. Use raw, qcow2 or another disk format"));
    };
    if !options.size.is_multiple_of(512) {
        return Err(bad("The size of a disk must be a multiple of 512 bytes"));
    }
    if options.passphrase.is_some() && !matches!(options.format, Format::Qcow2 | Format::Luks) {
        return Err(bad("Disks of this format cannot be encrypted. Use qcow2 or luks"));
    }
    if options.data_file.is_some() && options.format != Format::Qcow2 {
        return Err(bad("Only a qcow2 disk can keep its data in another file"));
    }
    if options.size > i64::MAX as u64 {
        return Err(bad("This size is larger than any file can be. Choose a smaller one"));
    }
    Ok(write_empty)
}

/// Gives a finished file its name, without replacing another, and makes the name durable.
fn publish(unfinished: &Path, path: &Path) -> Result<(), DiskError> {
    // A hard link fails when the name is taken, on every file system that has links.
    match std::fs::hard_link(unfinished, path) {
        Ok(()) => std::fs::remove_file(unfinished).map_err(|source| DiskError::host("tidy", unfinished, source))?,
        Err(source) if source.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(DiskError::AlreadyExists { path: path.to_path_buf() });
        }
        Err(_) if path.symlink_metadata().is_ok() => return Err(DiskError::AlreadyExists { path: path.to_path_buf() }),
        Err(_) => std::fs::rename(unfinished, path).map_err(|source| DiskError::host("name", path, source))?,
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let folder = std::fs::File::open(folder).map_err(|source| DiskError::host("open the folder of", path, source))?;
    folder.sync_all().map_err(|source| DiskError::host("flush the folder of", path, source))
}
