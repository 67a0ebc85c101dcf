//! Bitmaps in the file, which say what changed since a backup. We do not follow our own writes in them, so before the
//! first write each is marked as one that a program has in use: QEMU then takes it for out of date, but its clusters
//! stay accounted for and the person can see it and remove it.
//!
//! See: the qcow2 specification, "Bitmaps extension".

use crate::DiskError;

use super::header::{AUTOCLEAR_BITMAPS, EXTENSION_BITMAPS, be32, be64};
use super::metadata::Metadata;

/// Bytes of a directory entry before its extra data and name.
const ENTRY: usize = 24;
const AT_FLAGS: usize = 12;
const FLAG_IN_USE: u32 = 1;
/// Limits that the specification and QEMU set.
const MAX_BITMAPS: u32 = 65_535;
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;

impl Metadata {
    /// Marks every bitmap as out of date. Says whether there are bitmaps whose directory makes sense; if not, they are
    /// to be disowned.
    pub(super) fn mark_bitmaps_out_of_date(&mut self) -> Result<bool, DiskError> {
        let Some(extension) = self.header.extension(EXTENSION_BITMAPS) else { return Ok(false) };
        if self.header.autoclear & AUTOCLEAR_BITMAPS == 0 || extension.len() < 24 {
            return Ok(false);
        }
        let (bitmaps, size, offset) = (be32(extension, 0), be64(extension, 8), be64(extension, 16));
        let is_inside = offset.checked_add(size).is_some_and(|end| end <= self.end);
        if bitmaps > MAX_BITMAPS || size > MAX_DIRECTORY_BYTES || !is_inside || offset < self.geometry.cluster_size() {
            return Ok(false);
        }
        if (offset..offset + size)
            .step_by(1 << self.geometry.cluster_bits)
            .any(|at| self.is_metadata(at >> self.geometry.cluster_bits))
        {
            return Ok(false);
        }
        let mut directory = vec![0; size as usize];
        self.file.read_exact(offset, &mut directory)?;
        let mut flags = Vec::new();
        let mut at = 0;
        for _ in 0..bitmaps {
            let Some(entry) = directory.get(at..at + ENTRY) else { return Ok(false) };
            flags.push((offset + (at + AT_FLAGS) as u64, be32(entry, AT_FLAGS)));
            let name = usize::from(u16::from_be_bytes([entry[18], entry[19]]));
            at += (ENTRY + name + be32(entry, 20) as usize).next_multiple_of(8);
        }
        for (place, flags) in flags.into_iter().filter(|(_, flags)| flags & FLAG_IN_USE == 0) {
            self.file.write_at(place, &(flags | FLAG_IN_USE).to_be_bytes())?;
        }
        self.file.flush()?;
        Ok(true)
    }
}
