//! Changing what the header says besides where the tables lie: features, extensions, base image, version.
//!
//! Every change is one write of no more than the bytes that differ; with names of usual length that is one sector, which
//! cannot tear. Extensions that we do not know are kept.

use crate::DiskError;
use crate::image::DiskImage;
use crate::image_info::Amendment;
use crate::open::Backing;

use super::Qcow2;
use super::create::{backing_word, encode_extensions};
use super::header::{
    AT_BACKING, AUTOCLEAR_RAW_DATA_FILE, BackingName, COMPATIBLE_LAZY_REFCOUNTS, EXTENSION_BACKING_FORMAT, EXTENSION_BITMAPS,
    EXTENSION_DATA_FILE, Header, MAX_BACKING_NAME, V2_LENGTH, V3_LENGTH,
};
use super::mapping::{Cluster, Mapping};
use super::metadata::{Metadata, TableError};
use super::repair;

impl Qcow2 {
    pub(super) fn write_backing_name(&self, backing: Option<&Backing>) -> Result<(), DiskError> {
        let mut metadata = self.alone()?;
        if backing.is_some() && metadata.header.has_raw_data_file() {
            return Err(self.refuse("A disk with a raw data file cannot be built on another"));
        }
        let mut header = metadata.header.clone();
        header.extensions.retain(|(kind, _)| *kind != EXTENSION_BACKING_FORMAT);
        if let Some(backing) = backing {
            header.extensions.insert(0, (EXTENSION_BACKING_FORMAT, backing_word(backing.format).as_bytes().to_vec()));
        }
        header.backing = backing
            .map(|backing| BackingName { name: backing.name.clone(), format: Some(backing_word(backing.format).to_owned()) });
        match metadata.write_header(header)? {
            true => Ok(()),
            false => Err(self.refuse("The name of the base image is too long for this disk's header")),
        }
    }

    pub(super) fn change_options(&self, wanted: &Amendment) -> Result<(), DiskError> {
        let Amendment { version, lazy_refcounts, refcount_bits, data_file, raw_data_file } = wanted;
        let mut metadata = self.alone()?;
        // Upwards first: what the new version allows may be asked for in the same breath.
        if *version == Some(3) {
            self.change_version(&mut metadata, 3)?;
        }
        if let Some(bits) = *refcount_bits {
            self.change_refcount_width(&mut metadata, bits)?;
        }
        let mut header = metadata.header.clone();
        if let Some(lazy) = *lazy_refcounts {
            if lazy && (header.version < 3 || *version == Some(2)) {
                return Err(self.refuse("Lazy refcounts need version 3 (compat=1.1)"));
            }
            header.compatible = header.compatible & !COMPATIBLE_LAZY_REFCOUNTS | if lazy { COMPATIBLE_LAZY_REFCOUNTS } else { 0 };
        }
        if let Some(name) = data_file {
            if !header.has_data_file() {
                return Err(self.refuse("Only a disk that keeps its data in another file can be given another name for it"));
            }
            header.extensions.retain(|(kind, _)| *kind != EXTENSION_DATA_FILE);
            header.extensions.push((EXTENSION_DATA_FILE, name.as_bytes().to_vec()));
            header.data_file = Some(name.clone());
        }
        if let Some(raw) = *raw_data_file {
            if raw && !header.has_raw_data_file() {
                return Err(self.refuse("The data file of an existing disk cannot become raw. Copy it into a new disk"));
            }
            header.autoclear &= !AUTOCLEAR_RAW_DATA_FILE | if raw { AUTOCLEAR_RAW_DATA_FILE } else { 0 };
        }
        if !metadata.write_header(header)? {
            return Err(self.refuse("The header of this disk has no room for that"));
        }
        if *version == Some(2) {
            self.change_version(&mut metadata, 2)?;
        }
        Ok(())
    }

    fn change_version(&self, metadata: &mut Metadata, version: u32) -> Result<(), DiskError> {
        if metadata.header.version == version {
            return Ok(());
        }
        let mut header = metadata.header.clone();
        if version == 2 {
            let refusal = match &header {
                header if header.incompatible != 0 => Some("It has features that version 2 does not know"),
                header if header.refcount_order != 4 => Some("Version 2 has 16-bit refcounts only. Change them to 16 bits first"),
                header if header.extensions.iter().any(|(kind, _)| *kind == EXTENSION_BITMAPS) => {
                    Some("Version 2 knows no bitmaps. Remove them first")
                }
                header if header.luks.is_some() => Some("Version 2 disks cannot be encrypted"),
                _ if !metadata.snapshots.snapshots.is_empty() => {
                    Some("Snapshots may hold zeros in a way that version 2 does not know. Delete them first")
                }
                _ => None,
            };
            if let Some(reason) = refusal {
                return Err(self.refuse(reason));
            }
            self.expand_zeros(metadata).map_err(|error| self.explain(metadata, error))?;
            (header.compatible, header.autoclear) = (0, 0);
        }
        header.version = version;
        header.length = if version == 2 { V2_LENGTH } else { V3_LENGTH };
        match metadata.write_header(header)? {
            true => Ok(()),
            false => Err(self.refuse("The header of this disk has no room for that")),
        }
    }

    /// Turns everything that is marked as zeros into what version 2 can say: zeros that are stored, or nothing at all.
    fn expand_zeros(&self, metadata: &mut Metadata) -> Result<(), TableError> {
        let cluster_size = self.geometry.cluster_size();
        let end = self.len().next_multiple_of(cluster_size);
        let mut at = 0;
        while at < end {
            let run = self.run_in(metadata.entries_at(at)?, at, end - at)?;
            if let Mapping::Zero { .. } = run.mapping {
                for guest in (at..at + run.length).step_by(cluster_size as usize) {
                    metadata.commit_if_crowded()?;
                    if self.backing.is_some() || metadata.header.backing.is_some() {
                        self.write_alone(metadata, guest, &vec![0; cluster_size as usize])?;
                    } else {
                        let (table, index) = self.geometry.indices(guest);
                        let table = metadata.writable_table(table)?;
                        metadata.set_entry(table, index, Cluster::EMPTY.encode(self.geometry))?;
                    }
                }
            }
            at += run.length;
        }
        Ok(metadata.settle()?)
    }

    fn change_refcount_width(&self, metadata: &mut Metadata, bits: u32) -> Result<(), DiskError> {
        if !bits.is_power_of_two() || bits > 64 {
            return Err(self.refuse("The refcount width must be 1, 2, 4, 8, 16, 32 or 64 bits"));
        }
        if metadata.header.version < 3 {
            return Err(self.refuse("Version 2 has 16-bit refcounts only. Use version 3 (compat=1.1)"));
        }
        if metadata.header.refcount_order == bits.trailing_zeros() {
            return Ok(());
        }
        metadata.settle()?;
        repair::change_refcount_width(&self.file, &metadata.header, &metadata.snapshots, bits.trailing_zeros())?;
        metadata.read_refcounts_again().map_err(|error| error.into_disk_error(self.path()))
    }

    pub(super) fn refuse(&self, reason: &str) -> DiskError {
        DiskError::BadOptions { reason: reason.into(), path: self.path().to_path_buf() }
    }
}

impl Metadata {
    /// Writes what `header` says of version, features, extensions and base image. Returns whether that fits the first
    /// cluster; if not, nothing has changed.
    pub(super) fn write_header(&mut self, header: Header) -> Result<bool, DiskError> {
        let mut old = vec![0; self.geometry.cluster_size() as usize];
        self.file.read_zero_padded(0, &mut old)?;
        let Some(new) = encode(&header, &old) else { return Ok(false) };
        if let Some(first) = old.iter().zip(&new).position(|(old, new)| old != new) {
            let last = old.iter().zip(&new).rposition(|(old, new)| old != new).unwrap_or(first);
            self.write_header_field(first as u64, &new[first..=last])?;
        }
        self.header = header;
        Ok(true)
    }
}

/// The first cluster with another header; `None` if that does not fit.
fn encode(header: &Header, old: &[u8]) -> Option<Vec<u8>> {
    let mut cluster = old.to_vec();
    let name = header.backing.as_ref().map_or(&[][..], |backing| backing.name.as_bytes());
    let extensions = encode_extensions(&header.extensions);
    let name_at = header.length + extensions.len();
    if name.len() > MAX_BACKING_NAME as usize || name_at + name.len() > cluster.len() || name.contains(&0) {
        return None;
    }
    let mut put = |at: usize, bytes: &[u8]| cluster[at..at + bytes.len()].copy_from_slice(bytes);
    put(4, &header.version.to_be_bytes());
    put(AT_BACKING, &(if name.is_empty() { 0 } else { name_at as u64 }).to_be_bytes());
    put(AT_BACKING + 8, &(name.len() as u32).to_be_bytes());
    if header.version >= 3 {
        let features = [header.incompatible, header.compatible, header.autoclear];
        put(V2_LENGTH, &features.map(u64::to_be_bytes).concat());
        put(96, &header.refcount_order.to_be_bytes());
        put(100, &(header.length as u32).to_be_bytes());
    }
    // Fields that a longer header has and we do not know stay.
    cluster[header.length..].fill(0);
    cluster[header.length..name_at].copy_from_slice(&extensions);
    cluster[name_at..name_at + name.len()].copy_from_slice(name);
    Some(cluster)
}
