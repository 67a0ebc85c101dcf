//! Checking a disk file for contradictions, and repairing it.
//!
//! Each format that keeps books has a checker of its own, apart from its reading and writing side, so that a mistake
//! there cannot hide itself here.

use std::sync::Arc;

use crate::DiskError;
use crate::block_file::{Access, BlockFile};
use crate::open::{OpenOptions, open_file};

/// What a check may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nothing; the file is only read.
    Nothing,
    /// Only space that is lost is given back.
    Leaks,
    /// Everything that can be put right. Where two parts claim the same place, one of them may lose its content.
    All,
}

/// What a check found, and what is left after a repair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Places that are counted more often than they are used. Wasted space, nothing worse.
    pub leaks: u64,
    /// Entries that could say "ours alone" and do not. It costs a copy at the next write; QEMU counts it as an error.
    pub unmarked: u64,
    /// Contradictions that can lose data.
    pub errors: u64,
    /// Leaks that were given back.
    pub leaks_fixed: u64,
    /// Contradictions that were put right.
    pub errors_fixed: u64,
    /// The first of what was found, in words.
    pub details: Vec<String>,
    /// Clusters of the guest that are stored.
    pub allocated_clusters: u64,
    /// Those of them that are compressed.
    pub compressed_clusters: u64,
    /// Those of them that do not lie behind their predecessor.
    pub fragmented_clusters: u64,
    /// Clusters that the guest's disk has.
    pub total_clusters: u64,
    /// Where in the file the last used byte ends.
    pub image_end: u64,
}

/// How many findings a report keeps in words.
const MAX_DETAILS: usize = 20;

impl CheckReport {
    /// Notes a contradiction.
    pub(crate) fn error(&mut self, detail: String) {
        self.errors += 1;
        self.note(detail);
    }

    /// The same where there may be millions, of which only the first are put into words.
    pub(crate) fn error_with(&mut self, detail: impl FnOnce() -> String) {
        self.errors += 1;
        self.note_with(detail);
    }

    /// Notes something that has been counted already.
    pub(crate) fn note(&mut self, detail: String) {
        self.note_with(|| detail);
    }

    /// The same for what there may be millions of.
    pub(crate) fn note_with(&mut self, detail: impl FnOnce() -> String) {
        if self.details.len() < MAX_DETAILS {
            self.details.push(detail());
        }
    }
}

/// Checks a disk file, and repairs it if asked to. Base images are not looked at.
/// Fails with [`DiskError::NotPossible`] for formats that keep no books.
pub fn check(options: &OpenOptions, repair: Repair) -> Result<CheckReport, DiskError> {
    let access = if repair == Repair::Nothing { Access::ReadOnly } else { Access::ReadWrite };
    let opened = open_file(&OpenOptions { access, ..options.clone() })?;
    opened.lock(options.sharing)?;
    let driver = opened.format.driver();
    let Some(check) = driver.check else {
        return Err(DiskError::NotPossible { title: driver.title, action: "be checked: it keeps no books" });
    };
    check(Arc::new(opened.file) as Arc<dyn BlockFile>, repair)
}
