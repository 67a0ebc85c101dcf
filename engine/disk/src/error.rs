//! What can go wrong with a disk, in words for the person whose disk it is.
//!
//! The variants are the cases a caller can act on: pause and wait for space, offer read-only, offer a repair,
//! show the message. Every message says what happened, then what to do, with the path last.

use std::io;
use std::path::{Path, PathBuf};

/// A disk operation that could not be done.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No file of that name.
    #[error("There is no such file. Check the name, or choose the file again: {}", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// The host's permissions forbid it.
    #[error("This file may not be {wanted}. Change its permissions, or {alternative}: {}", path.display())]
    PermissionDenied {
        /// "read" or "written".
        wanted: &'static str,
        /// What else the person can do.
        alternative: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The name belongs to a directory, pipe, device or the like.
    #[error("This is {what}, not a disk file. {advice}: {}", path.display())]
    NotAFile {
        /// What it is, with its article.
        what: &'static str,
        /// What to do instead.
        advice: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Another program (or another machine of ours) holds the file.
    #[error("This disk is in use by another machine or program. Close that one first{hint}: {}", path.display())]
    InUse {
        /// A second way out, beginning with a comma, or nothing.
        hint: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// `create` found a file of that name.
    #[error("A file of this name exists already. Choose another name: {}", path.display())]
    AlreadyExists {
        /// The file.
        path: PathBuf,
    },
    /// The host ran out of disk space or quota. Nothing was lost; the same operation may be tried again.
    #[error("The host's disk is full. Free some space there, then try again: {}", path.display())]
    NoSpace {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// The host could not read or write the file.
    #[error("The host could not {doing} this file ({source}). Check the host's disk, then start the machine again: {}", path.display())]
    Host {
        /// The verb: "read", "write", "flush" …
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// An earlier flush failed, so nobody knows what reached the disk; writes are refused until it is opened again.
    #[error("An earlier write did not reach the host's disk, so this disk takes no more writes. Shut the machine down and start it again: {}", path.display())]
    Fenced {
        /// The file.
        path: PathBuf,
    },
    /// The content is encrypted, and nobody said the passphrase.
    #[error("This disk is encrypted. Say its passphrase: {}", path.display())]
    NeedsPassphrase {
        /// The file.
        path: PathBuf,
    },
    /// No key slot opens with this passphrase.
    #[error("This passphrase does not unlock the disk. Try another: {}", path.display())]
    WrongPassphrase {
        /// The file.
        path: PathBuf,
    },
    /// The content contradicts itself.
    #[error("This disk's records are damaged ({detail}). {advice}: {}", path.display())]
    Damaged {
        /// What was found.
        detail: String,
        /// What the person can do.
        advice: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The file is of the stated format, but uses something that we do not do.
    #[error("This disk uses {feature}, which Bellglass cannot do yet. Convert it with qemu-img, then open the copy: {}", path.display())]
    Unsupported {
        /// The feature, as a noun phrase.
        feature: String,
        /// The file.
        path: PathBuf,
    },
    /// The file is not what its stated format says.
    #[error("This is not a {expected} file ({detail}). Choose the right format, or another file: {}", path.display())]
    WrongFormat {
        /// Name of the format that was asked for.
        expected: &'static str,
        /// What was missing.
        detail: String,
        /// The file.
        path: PathBuf,
    },
    /// Nobody said what format a writable file without signature has; guessing would be unsafe.
    #[error("Nothing in this file says what format it has, so Bellglass will not write to it unasked. Say format=raw if it is a raw disk: {}", path.display())]
    FormatNotStated {
        /// The file.
        path: PathBuf,
    },
    /// The guest tried to turn a disk whose raw format was only guessed into another format.
    #[error("The guest tried to make this disk look like {looks_like}, which is refused because its format was only guessed. Say format=raw to allow it: {}", path.display())]
    WouldChangeFormat {
        /// What the first sector would look like.
        looks_like: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// A base image is missing, loops, or may not be followed.
    #[error("This disk is built on another file that cannot be used: {reason}. Put the base file back, or choose another disk: {}", path.display())]
    Backing {
        /// What is wrong, without a full stop.
        reason: String,
        /// The disk whose base is meant.
        path: PathBuf,
    },
    /// The file that holds a disk's data is missing or may not be opened.
    #[error("This disk keeps its data in another file that cannot be used: {reason}. Put that file back, or choose another disk: {}", path.display())]
    DataFile {
        /// What is wrong, without a full stop.
        reason: String,
        /// The disk whose data file is meant.
        path: PathBuf,
    },
    /// A write to a disk that was opened for reading, or whose format has no writing.
    #[error("This disk is read-only. Attach it as writable, or use a copy: {}", path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// A request reaches past the end. A device checks before it asks, so this is a caller's mistake.
    #[error("The range {offset}+{length} reaches past the end of this disk ({size} bytes): {}", path.display())]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// Bytes there are.
        size: u64,
        /// The file.
        path: PathBuf,
    },
    /// Options of `create` that do not go together or exceed the format.
    #[error("{reason}: {}", path.display())]
    BadOptions {
        /// What is wrong and what would be right.
        reason: String,
        /// The file to be made.
        path: PathBuf,
    },
    /// The format has no such thing.
    #[error("A {title} cannot {action}. Convert it to a format that can, such as qcow2")]
    NotPossible {
        /// What the format is called.
        title: &'static str,
        /// What was asked for; completes the sentence.
        action: &'static str,
    },
    /// No snapshot inside the file has this id or name.
    #[error("This disk has no snapshot \"{name}\". Look at the list of its snapshots: {}", path.display())]
    NoSuchSnapshot {
        /// What was asked for.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// No bitmap inside the file has this name.
    #[error("This disk has no bitmap \"{name}\". Look at what the disk says of itself: {}", path.display())]
    NoSuchBitmap {
        /// What was asked for.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// A cluster would belong to more snapshots than can be counted.
    #[error("Parts of this disk belong to as many snapshots as its file can count. Delete a snapshot first, or copy it into a new disk with wider refcounts: {}", path.display())]
    TooShared {
        /// The file.
        path: PathBuf,
    },
    /// The growing file reached what its format can describe.
    #[error("This disk file has grown as large as its format allows. Copy it into a new disk with larger clusters: {}", path.display())]
    FormatFull {
        /// The file.
        path: PathBuf,
    },
}

impl DiskError {
    /// Turns a host error into ours, keeping the cases that a person can act on apart.
    pub(crate) fn host(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::NoSpace { path },
            io::ErrorKind::NotFound => DiskError::NotFound { path },
            io::ErrorKind::PermissionDenied => DiskError::PermissionDenied {
                wanted: if doing == "read" || doing == "open" { "read" } else { "written" },
                alternative: "use a copy",
                path,
            },
            _ => DiskError::Host { doing, path, source },
        }
    }

    /// Whether trying again can help once the person has freed space (the machine should pause and ask).
    pub fn is_no_space(&self) -> bool {
        matches!(self, DiskError::NoSpace { .. })
    }
}
