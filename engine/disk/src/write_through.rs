//! A disk on which nothing is acknowledged before it is durable (`cache=writethrough` and `directsync`): for guests that
//! never flush.

use std::sync::Arc;

use crate::image::{DiskImage, Extent};
use crate::image_info::{Amendment, Bitmaps, ImageInfo, NewSnapshot, SnapshotInfo};
use crate::luks::KeyChange;
use crate::open::{Backing, Preallocation};
use crate::{DiskError, Format};

/// Flushes after every change.
pub(crate) struct WriteThrough(pub(crate) Arc<dyn DiskImage>);

impl DiskImage for WriteThrough {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.0.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.0.write_at(offset, data)?;
        self.0.flush()
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.0.flush()
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.0.discard(offset, length)?;
        self.0.flush()
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.0.write_zeroes(offset, length)?;
        self.0.flush()
    }

    fn read_only(&self) -> bool {
        self.0.read_only()
    }

    fn format(&self) -> Format {
        self.0.format()
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        self.0.extent_at(offset)
    }

    fn warnings(&self) -> Vec<String> {
        self.0.warnings()
    }

    fn backing(&self) -> Option<Arc<dyn DiskImage>> {
        self.0.backing()
    }

    fn info(&self) -> ImageInfo {
        self.0.info()
    }

    fn write_compressed(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.0.write_compressed(offset, data)?;
        self.0.flush()
    }

    fn resize(&self, size: u64, preallocation: Preallocation) -> Result<(), DiskError> {
        self.0.resize(size, preallocation)
    }

    fn snapshots(&self) -> Vec<SnapshotInfo> {
        self.0.snapshots()
    }

    fn create_snapshot(&self, snapshot: &NewSnapshot) -> Result<(), DiskError> {
        self.0.create_snapshot(snapshot)
    }

    fn apply_snapshot(&self, name: &str) -> Result<(), DiskError> {
        self.0.apply_snapshot(name)
    }

    fn delete_snapshot(&self, name: &str) -> Result<(), DiskError> {
        self.0.delete_snapshot(name)
    }

    fn read_vm_state(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.0.read_vm_state(offset, buffer)
    }

    fn write_vm_state(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        // The snapshot that keeps it makes it durable.
        self.0.write_vm_state(offset, data)
    }

    fn set_backing(&self, backing: Option<&Backing>) -> Result<(), DiskError> {
        self.0.set_backing(backing)
    }

    fn amend(&self, wanted: &Amendment) -> Result<(), DiskError> {
        self.0.amend(wanted)
    }

    fn change_keys(&self, change: &KeyChange, force: bool) -> Result<(), DiskError> {
        self.0.change_keys(change, force)
    }

    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        self.0.bitmaps()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::Opening;
    use crate::open::{Chain, CreateOptions};
    use crate::{Access, Operation, SimFile};

    #[test]
    fn every_change_is_durable_when_it_returns() {
        for format in [Format::Raw, Format::Qcow2, Format::Vdi] {
            let file = Arc::new(SimFile::new(Vec::new()));
            format.driver().create.unwrap()(&*file, &CreateOptions::new(format, 4 << 20)).unwrap();
            let chain = Chain::default();
            let opening = Opening::of(Arc::clone(&file) as _, Access::ReadWrite, &chain);
            let disk = WriteThrough((format.driver().open)(opening).unwrap());
            file.start_recording();
            let changes: [&dyn Fn(); 3] =
                [&|| disk.write_at(512, &[1; 700]).unwrap(), &|| disk.write_zeroes(0, 65536).unwrap(), &|| {
                    disk.discard(0, 1 << 20).unwrap()
                }];
            for (number, change) in changes.iter().enumerate() {
                change();
                let log = file.log();
                let durable = log.iter().rposition(|operation| *operation == Operation::Flush);
                let later: Vec<_> = log.iter().skip(durable.map_or(0, |at| at + 1)).collect();
                // Counts that fall may wait: no data hangs on them.
                assert!(
                    !later.iter().any(|operation| matches!(operation, Operation::Write(..))) && !log.is_empty(),
                    "{format}, change {number}: {later:?}"
                );
            }
        }
    }
}
