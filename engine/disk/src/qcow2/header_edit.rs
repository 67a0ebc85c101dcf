//! Writing another base image into the header, with all extensions kept, those we do not know among them.

use crate::DiskError;
use crate::open::Backing;

use super::Qcow2;
use super::create::{backing_word, encode_extensions};
use super::header::{AT_BACKING, BackingName, EXTENSION_BACKING_FORMAT, MAX_BACKING_NAME};
use super::metadata::Metadata;

impl Qcow2 {
    pub(super) fn write_backing_name(&self, backing: Option<&Backing>) -> Result<(), DiskError> {
        let mut metadata = self.alone()?;
        let is_writable = metadata.write_backing_name(backing)?;
        if !is_writable {
            let reason = "The name of the base image is too long for this disk's header".into();
            return Err(DiskError::BadOptions { reason, path: self.path().to_path_buf() });
        }
        Ok(())
    }
}

impl Metadata {
    /// Returns whether the name fits; if not, nothing has changed.
    fn write_backing_name(&mut self, backing: Option<&Backing>) -> Result<bool, DiskError> {
        let cluster_size = self.geometry.cluster_size() as usize;
        let mut extensions = self.header.extensions.clone();
        extensions.retain(|(kind, _)| *kind != EXTENSION_BACKING_FORMAT);
        if let Some(backing) = backing {
            extensions.insert(0, (EXTENSION_BACKING_FORMAT, backing_word(backing.format).as_bytes().to_vec()));
        }
        let name = backing.map_or(&[][..], |backing| backing.name.as_bytes());
        let mut first_cluster = vec![0; cluster_size];
        self.file.read_zero_padded(0, &mut first_cluster)?;
        let old = first_cluster.clone();
        let encoded = encode_extensions(&extensions);
        let name_at = self.header.length + encoded.len();
        if name.len() > MAX_BACKING_NAME as usize || name_at + name.len() > cluster_size || name.contains(&0) {
            return Ok(false);
        }
        first_cluster[self.header.length..].fill(0);
        first_cluster[self.header.length..name_at].copy_from_slice(&encoded);
        first_cluster[name_at..name_at + name.len()].copy_from_slice(name);
        let offset = if name.is_empty() { 0 } else { name_at as u64 };
        first_cluster[AT_BACKING..AT_BACKING + 8].copy_from_slice(&offset.to_be_bytes());
        first_cluster[AT_BACKING + 8..AT_BACKING + 12].copy_from_slice(&(name.len() as u32).to_be_bytes());
        // One write of no more than what changes; with names of usual length that is one sector, which cannot tear.
        let Some(first) = old.iter().zip(&first_cluster).position(|(old, new)| old != new) else { return Ok(true) };
        let last = old.iter().zip(&first_cluster).rposition(|(old, new)| old != new).unwrap_or(first);
        self.write_header_field(first as u64, &first_cluster[first..=last])?;
        self.header.backing = backing
            .map(|backing| BackingName { name: backing.name.clone(), format: Some(backing_word(backing.format).to_owned()) });
        self.header.extensions = extensions;
        Ok(true)
    }
}
