//! What a disk file says of itself, in a form that fits every format.

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
    /// Where the state of a saved machine begins in the disk's address space; 0 for formats that keep none.
    pub vm_state_offset: u64,
    /// Whether its content is encrypted.
    pub encrypted: bool,
    /// What only this format has: names as `qemu-img info` prints them in JSON, in its order.
    pub specific: Vec<(&'static str, InfoValue)>,
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
