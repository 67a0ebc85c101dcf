//! Data in a file of its own, each byte where the disk has it; the qcow2 file then holds the tables alone.
//!
//! The data file is opened with the disk, or, where the disk is only looked at, when data is first asked for: what a
//! file says of itself can be told without following a name that stands in it. A *raw* data file must read as the disk
//! does, by itself; so zeros are really written there and nothing is unmapped.
//!
//! See: the qcow2 specification, "External data file".

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::DiskError;
use crate::fenced_file::FencedFile;
use crate::open::PartPlace;

use super::Qcow2;
use super::metadata::{Metadata, TableError};

/// The file that holds a disk's data.
pub(super) struct DataFile {
    place: PartPlace,
    opened: OnceLock<Arc<FencedFile>>,
}

impl DataFile {
    pub(super) fn new(place: PartPlace) -> Self {
        Self { place, opened: OnceLock::new() }
    }

    /// This file, whatever name the disk knows it by.
    #[cfg(test)]
    pub(super) fn on(place: PartPlace, file: Arc<dyn crate::BlockFile>) -> Self {
        Self { place, opened: OnceLock::from(Arc::new(FencedFile::new(file))) }
    }

    /// The file, opened now if it was not yet.
    pub(super) fn get(&self) -> Result<&FencedFile, DiskError> {
        if self.opened.get().is_none() {
            let file = Arc::new(FencedFile::new(self.place.open()?));
            // Somebody else may have been faster; that file is the same.
            self.opened.set(file).ok();
        }
        self.opened.get().map(Arc::as_ref).ok_or_else(|| self.place.error("it could not be opened"))
    }

    /// Makes durable what was written to it, if anything was.
    pub(super) fn flush(&self) -> Result<(), DiskError> {
        self.opened.get().map_or(Ok(()), |file| file.flush())
    }

    /// Turns a range into zeros, as a hole where the host can.
    pub(super) fn zero(&self, range: Range<u64>) -> Result<(), DiskError> {
        let file = self.get()?;
        let inside = range.start..range.end.min(file.len()?);
        if !inside.is_empty() && !file.punch_hole(inside.start, inside.end - inside.start)? {
            file.write_zeros(inside.start, inside.end - inside.start)?;
        }
        file.grow_to(range.end)
    }
}

impl Qcow2 {
    /// The file in which the data lies.
    pub(super) fn payload_file(&self) -> Result<&FencedFile, DiskError> {
        match &self.data_file {
            None if self.geometry.external_data => {
                let reason = "it was not opened".into();
                Err(DiskError::DataFile { reason, path: self.path().to_path_buf() })
            }
            None => Ok(&self.file),
            Some(data_file) => data_file.get(),
        }
    }

    /// Zeros in a raw data file, where they are really written; says whether the disk has one.
    pub(super) fn zero_raw_data(&self, range: Range<u64>) -> Result<bool, DiskError> {
        let Some(data_file) = &self.data_file else { return Ok(false) };
        // Held while the file is touched, as in writing in place.
        let metadata = self.shared()?;
        match metadata.header.has_raw_data_file() {
            true => data_file.zero(range).map(|()| true),
            false => Ok(false),
        }
    }

    /// Sees to it that a data file is as long as the disk will be, zeros where it grows.
    pub(super) fn resize_data_file(&self, metadata: &Metadata, old: u64, size: u64) -> Result<(), TableError> {
        let Some(data_file) = &self.data_file else { return Ok(()) };
        let file = data_file.get()?;
        if size > old {
            file.grow_to(size)?;
        } else if metadata.header.has_raw_data_file() {
            file.truncate(size)?;
        }
        Ok(())
    }
}

impl Metadata {
    /// Makes data durable, wherever it lies. Tables that point at it may be written only afterwards.
    pub(super) fn flush_data(&self) -> Result<(), DiskError> {
        let Some(data_file) = &self.data_file else { return Ok(()) };
        // What did not arrive there must not be pointed at either.
        data_file.flush().inspect_err(|_| self.file.fence())
    }

    /// Keeps book of the clusters of a data file that nothing points at any more.
    pub(super) fn note_freed_data(&mut self, old: Option<u64>, new: Option<u64>) {
        if !self.geometry.external_data {
            return;
        }
        match (old, new) {
            (_, Some(host)) => {
                self.freed_data.remove(&(host >> self.geometry.cluster_bits));
            }
            (Some(host), None) => {
                self.freed_data.insert(host >> self.geometry.cluster_bits);
            }
            (None, None) => {}
        }
    }

    /// Gives the space of freed clusters of a data file back to the host. No pointer to them is left in the file.
    pub(super) fn release_data(&mut self) {
        let freed: Vec<u64> = std::mem::take(&mut self.freed_data).into_iter().collect();
        let Some(data_file) = self.data_file.as_ref().filter(|_| !self.header.has_raw_data_file()) else { return };
        let bits = self.geometry.cluster_bits;
        for run in freed.chunk_by(|left, right| left + 1 == *right) {
            let Some(first) = run.first() else { break };
            let length = (run.len() as u64) << bits;
            let punched = data_file.get().and_then(|file| file.punch_hole(first << bits, length));
            // Giving space back is a courtesy; a host that cannot is asked no more.
            if !matches!(punched, Ok(true)) {
                break;
            }
        }
    }
}
