//! What a disk file says of itself, in a form that fits every format.

use std::ops::Range;

use crate::DiskError;

/// What [`DiskImage::info`](crate::DiskImage::info) tells.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageInfo {
    /// Bytes in the format's unit of allocation, if it has one.
    pub cluster_size: Option<u64>,
    /// The base image as it is written in the file, whether or not it was opened.
    pub backing: Option<BackingInfo>,
    /// Whether the file was not closed properly and needs a check.
    pub dirty: bool,
    /// Whether it takes only whole clusters, compressed, each once: a file made to be sent.
    pub writes_whole_clusters_compressed: bool,
    /// The name of the file that holds the data, where that is another one.
    pub data_file: Option<String>,
    /// Where the state of a saved machine begins in the disk's address space; 0 for formats that keep none.
    pub vm_state_offset: u64,
    /// Whether its content is encrypted.
    pub encrypted: bool,
    /// What a disk that is built on this one remembers of it; `None` for formats whose disks remember nothing.
    pub identity: Option<Identity>,
    /// What only this format has: names as `qemu-img info` prints them in JSON, in its order.
    pub specific: Vec<(&'static str, InfoValue)>,
}

/// What tells a disk, and the state that its content is in, from others. Which of the two a format has is its own affair;
/// the other is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Stays the same as long as the file lives.
    pub disk: u128,
    /// Changes whenever the content does (at the first write after opening).
    pub content: u128,
}

/// The base image that a file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingInfo {
    /// Its name as it stands in the file.
    pub name: String,
    /// The word for its format as it stands in the file, which need not be one that we know.
    pub format: Option<String>,
}

/// A value that only one format has.
#[derive(Clone, Debug, PartialEq)]
pub enum InfoValue {
    /// A word or a text.
    Text(String),
    /// A number.
    Number(u64),
    /// Yes or no.
    Flag(bool),
    /// Several of a kind.
    List(Vec<InfoValue>),
    /// Named values.
    Record(Vec<(&'static str, InfoValue)>),
}

/// A snapshot inside a disk file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// A short word that no other snapshot of the file has; usually a number.
    pub id: String,
    /// What the person called it; several may have the same name.
    pub name: String,
    /// When it was taken: seconds since 1970, and nanoseconds in that second.
    pub taken: (u32, u32),
    /// Guest time that had passed, in nanoseconds.
    pub vm_clock_nanos: u64,
    /// Bytes of saved machine state that belong to it; 0 for a snapshot of the disk alone.
    pub vm_state_size: u64,
    /// Size of the disk then, in bytes.
    pub disk_size: u64,
    /// Guest instructions that had been executed, where they were counted.
    pub instructions: Option<u64>,
}

/// A bitmap of a disk file: it says which parts of the disk changed since something was done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name; no other bitmap of the file has it.
    pub name: String,
    /// How many bytes of the disk a bit stands for.
    pub granularity: u64,
    /// Whether it follows what is written.
    pub enabled: bool,
    /// Whether a program used it and never finished; then it can only be removed.
    pub out_of_date: bool,
}

/// The bitmaps of a disk file. What is changed is in the file when the disk is closed.
pub trait Bitmaps {
    /// All bitmaps, in the order of the file.
    fn list(&self) -> Vec<BitmapInfo>;

    /// Makes a new bitmap that follows what is written from now on. Without a granularity the usual one is taken.
    fn add(&self, name: &str, granularity: Option<u64>) -> Result<(), DiskError>;

    /// Removes a bitmap.
    fn remove(&self, name: &str) -> Result<(), DiskError>;

    /// Says whether a bitmap follows what is written.
    fn set_enabled(&self, name: &str, enabled: bool) -> Result<(), DiskError>;

    /// Makes a bitmap say that nothing has changed.
    fn clear(&self, name: &str) -> Result<(), DiskError>;

    /// Makes a bitmap say that a range of the disk has changed.
    fn mark(&self, name: &str, range: Range<u64>) -> Result<(), DiskError>;

    /// The ranges of the disk that a bitmap says have changed: in order, from `from` on, at most `most` of them.
    fn marked(&self, name: &str, from: u64, most: usize) -> Result<Vec<Range<u64>>, DiskError>;
}

/// What is to change in a disk file that exists; `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amendment {
    /// The version of the format.
    pub version: Option<u32>,
    /// Whether writers may leave the refcounts behind.
    pub lazy_refcounts: Option<bool>,
    /// The width of a reference count in bits.
    pub refcount_bits: Option<u32>,
    /// Another name for the file that holds the data.
    pub data_file: Option<String>,
    /// Whether that file must read as the disk does.
    pub raw_data_file: Option<bool>,
}

/// What the maker of a snapshot decides. The file chooses the id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewSnapshot {
    /// Its name.
    pub name: String,
    /// Now: seconds since 1970, and nanoseconds in that second.
    pub taken: (u32, u32),
    /// Guest time that has passed, in nanoseconds.
    pub vm_clock_nanos: u64,
    /// Bytes of saved machine state that were written for it.
    pub vm_state_size: u64,
    /// Guest instructions executed so far, where they are counted.
    pub instructions: Option<u64>,
}

impl NewSnapshot {
    /// The finished snapshot.
    pub(crate) fn into_info(self, id: String, disk_size: u64) -> SnapshotInfo {
        let Self { name, taken, vm_clock_nanos, vm_state_size, instructions } = self;
        SnapshotInfo { id, name, taken, vm_clock_nanos, vm_state_size, disk_size, instructions }
    }
}
