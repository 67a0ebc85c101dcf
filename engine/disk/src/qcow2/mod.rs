//! qcow2: a disk that grows, can be built on another, and survives a crash at any instant.
//!
//! Done: versions 2 and 3, all cluster sizes and refcount widths, base images, zero and compressed clusters, discard,
//! internal snapshots with the state of a machine, resizing, space set aside, subclusters, data in a file of its own,
//! bitmaps that follow what is written, LUKS, checking, repairing and changing what a file is. Data is encrypted in
//! `payload.rs`, on its way to its place in the file; tables never are.
//!
//! ## The order of writes
//!
//! Tables change in memory only; data goes to the file at once, into clusters that nothing in the file points at
//! (or in place, where the mapping exists already). A flush then writes the tables in this order, with `fdatasync`
//! where a bar stands:
//!
//! ```text
//!   data, raised counts, new tables ┃ pointers to new refcount blocks ┃ pointers to data and new tables ┃ lowered counts
//! ```
//!
//! So nothing is ever pointed at before it is there and counted, and nothing is counted as free while a pointer to
//! it may survive. A crash leaves the last flushed state and at worst some unused clusters. The second bar is only
//! needed when a refcount block was added, the third only when a pointer changed. Lowered counts are written with
//! the next flush. After a failed flush the file is fenced: nobody knows what it holds until it is opened again.
//!
//! See: the qcow2 specification (`docs/interop/qcow2` of QEMU).

mod bitmaps;
mod check;
mod compressed;
mod create;
mod data_file;
mod header;
mod header_edit;
mod l2_cache;
mod mapping;
mod metadata;
mod packing;
mod payload;
mod refcounts;
mod repair;
mod resize;
mod snapshot_table;
mod snapshots;
mod write;

#[cfg(test)]
pub(crate) mod tests;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::DiskError;
use crate::block_file::{Access, BlockFile};
use crate::fenced_file::FencedFile;
use crate::formats::{Driver, Format, Opening};
use crate::image::{DiskImage, Extent, ExtentKind, check_range};
use crate::image_info::{Amendment, BackingInfo, BitmapInfo, Bitmaps, ImageInfo, InfoValue, NewSnapshot, SnapshotInfo};
use crate::luks::{KeyChange, change_keys};
use crate::open::{Backing, Chain, Preallocation, protocol};

pub use create::Qcow2Options;
pub use header::Compression;

use bitmaps::{CannotRead, Directory, Tracking};
use compressed::UnpackedCache;
use data_file::DataFile;
use header::{BackingName, Header, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY};
use mapping::{Entries, Geometry, Mapping};
use metadata::{Metadata, TableError};
use payload::Encryption;
use snapshot_table::SnapshotTable;
use snapshots::vm_state_start;

pub(crate) const DRIVER: Driver = Driver {
    format: Format::Qcow2,
    name: "qcow2",
    title: "qcow2 disk",
    recognise: |head| head.starts_with(header::MAGIC),
    open: |opening| Ok(Arc::new(Qcow2::open_with_chain(opening)?)),
    create: Some(create::create),
    check: Some(repair::check),
    writable: true,
    has_snapshots: true,
};

const HOW_TO_REPAIR: &str = "Repair it with bellglass img check -r all, or open it read-only to save what is there";

/// An open qcow2 disk.
pub(crate) struct Qcow2 {
    file: Arc<FencedFile>,
    access: Access,
    geometry: Geometry,
    size: AtomicU64,
    compression: header::Compression,
    backing: Option<Arc<dyn DiskImage>>,
    encryption: Option<Encryption>,
    /// Where the data lies, if that is another file.
    data_file: Option<Arc<DataFile>>,
    /// Bitmaps that follow what is written.
    tracking: Tracking,
    unpacked: UnpackedCache,
    warnings: Vec<String>,
    /// Shared by reads and by writes in place, which hold it while they touch the file, so that no cluster changes
    /// its owner under them. Whatever changes a table holds it alone.
    metadata: RwLock<Metadata>,
    /// Whether the header promises nothing any more that writing would break.
    is_prepared: AtomicBool,
    is_corrupt: AtomicBool,
}

/// A stretch of the disk that can be read in one go.
struct Run {
    mapping: Mapping,
    length: u64,
}

impl Qcow2 {
    fn open_with_chain(opening: Opening<'_>) -> Result<Self, DiskError> {
        let Opening { file, access, first_sector: _, internal_snapshot, passphrase, chain } = opening;
        let path = file.path().to_path_buf();
        let mut disk = Self::open_at(file, access, internal_snapshot, |backing| match chain.leaves_out_backing() {
            true => Ok(None),
            false => open_named_backing(chain, &path, backing).map(Some),
        })?;
        if disk.geometry.external_data {
            let name = disk.shared()?.header.data_file.clone();
            match chain.data_file(&path, name.as_deref(), disk.access) {
                Ok(place) => disk.attach_data_file(DataFile::new(place), chain)?,
                // Who only looks at the disk need not care.
                Err(_) if chain.leaves_out_backing() => {}
                Err(error) => return Err(error),
            }
        }
        disk.unlock(passphrase, chain)?;
        if let Some(bytes) = chain.table_cache_bytes() {
            disk.alone()?.l2.keep_at_most(bytes);
        }
        Ok(disk)
    }

    /// Opens an image; `open_backing` finds the base image that its header names.
    #[cfg(test)]
    fn open(
        file: Arc<dyn BlockFile>,
        access: Access,
        open_backing: impl FnOnce(&BackingName) -> Result<Arc<dyn DiskImage>, DiskError>,
    ) -> Result<Self, DiskError> {
        Self::open_at(file, access, None, |backing| open_backing(backing).map(Some))
    }

    /// Opens an image as it is, or to read it as it was at a snapshot. `open_backing` finds the base image that its
    /// header names, or leaves it out.
    fn open_at(
        file: Arc<dyn BlockFile>,
        access: Access,
        snapshot: Option<&str>,
        open_backing: impl FnOnce(&BackingName) -> Result<Option<Arc<dyn DiskImage>>, DiskError>,
    ) -> Result<Self, DiskError> {
        let file = Arc::new(FencedFile::new(file));
        let mut end = file.len()?;
        let mut header = Header::read(&file, end)?;
        let mut snapshots = SnapshotTable::read(&file, &header, end)?;
        let path = file.path().to_path_buf();
        let access = match snapshot {
            None => access,
            Some(name) => {
                let snapshot =
                    snapshots.find(name).ok_or_else(|| DiskError::NoSuchSnapshot { name: name.into(), path: path.clone() })?;
                snapshot.put_in_place_of_the_present(&mut header, &path)?;
                Access::ReadOnly
            }
        };
        let geometry = Geometry::of(&header);
        let mut warnings = Vec::new();
        if header.incompatible & INCOMPATIBLE_CORRUPT != 0 {
            if access == Access::ReadWrite {
                return Err(TableError::Bad("an earlier program found contradictions in it").into_disk_error(&path));
            }
            warnings
                .push("This disk needs a repair before it can be written: an earlier program found contradictions in it.".into());
        }
        if header.incompatible & INCOMPATIBLE_DIRTY != 0 {
            match access {
                Access::ReadWrite => {
                    let found = repair::repair_dirty(&file)?;
                    tracing::warn!(path = %path.display(), leaks = found.leaks, errors = found.errors, "the free space of a disk that was not closed properly was counted anew");
                    (header, snapshots) = read_again(&file)?;
                    end = file.len()?;
                }
                Access::ReadOnly => {
                    warnings.push("This disk was not closed properly. It is repaired when it is next opened for writing.".into())
                }
            }
        }
        let bitmaps = match Directory::read(&file, &header, end) {
            // They tell of the present alone.
            _ if snapshot.is_some() => Directory::default(),
            Ok(bitmaps) => bitmaps,
            Err(CannotRead::Broken(detail)) => {
                warnings.push(format!("The bitmaps of this disk are of no use: {detail}."));
                Directory::default()
            }
            Err(CannotRead::Disk(error)) => return Err(error),
        };
        let mut metadata = Metadata::read(&file, header.clone(), snapshots, geometry, end)?;
        metadata.bitmaps = bitmaps;
        if access == Access::ReadWrite {
            metadata.prepare_writing().map_err(|error| error.into_disk_error(&path))?;
        }
        let backing = header.backing.as_ref().map(open_backing).transpose()?.flatten();
        let encryption = Encryption::locked(&file, &header)?;
        warnings.extend(backing.iter().flat_map(|backing| backing.warnings()));
        Ok(Self {
            file,
            access,
            geometry,
            size: AtomicU64::new(header.size),
            compression: header.compression,
            is_prepared: AtomicBool::new(header.autoclear == 0),
            backing,
            encryption,
            data_file: None,
            tracking: Tracking::default(),
            unpacked: UnpackedCache::new(geometry.cluster_size()),
            warnings,
            metadata: RwLock::new(metadata),
            is_corrupt: AtomicBool::new(false),
        })
    }

    /// Puts the file in place that holds the data.
    fn attach_data_file(&mut self, data_file: DataFile, chain: &Chain) -> Result<(), DiskError> {
        // Who only looks at the disk need not follow the name in it.
        if !chain.leaves_out_backing() {
            data_file.get()?;
        }
        let data_file = Arc::new(data_file);
        self.data_file = Some(Arc::clone(&data_file));
        self.alone()?.data_file = Some(data_file);
        Ok(())
    }

    /// Opens an image for writing, built on `base` whatever its header says.
    pub(crate) fn open_on(file: Arc<dyn BlockFile>, base: Arc<dyn DiskImage>) -> Result<Self, DiskError> {
        let mut disk = Self::open_at(file, Access::ReadWrite, None, |_| Ok(None))?;
        disk.backing = Some(base);
        Ok(disk)
    }

    fn path(&self) -> &Path {
        self.file.path()
    }

    fn shared(&self) -> Result<RwLockReadGuard<'_, Metadata>, DiskError> {
        self.metadata.read().map_err(|_| self.fence())
    }

    fn alone(&self) -> Result<RwLockWriteGuard<'_, Metadata>, DiskError> {
        self.metadata.write().map_err(|_| self.fence())
    }

    /// A thread died while it was changing the tables: what is in memory must not reach the file.
    fn fence(&self) -> DiskError {
        self.file.fence();
        DiskError::Fenced { path: self.path().to_path_buf() }
    }

    fn damaged(&self, detail: &'static str) -> DiskError {
        TableError::Bad(detail).into_disk_error(self.path())
    }

    /// Reports a contradiction in the tables; a writable image is marked so that nobody writes to it any more.
    fn explain(&self, metadata: &mut Metadata, error: TableError) -> DiskError {
        match error {
            TableError::Bad(detail) => {
                if self.access == Access::ReadWrite && !self.is_corrupt.swap(true, Ordering::AcqRel) {
                    tracing::error!(path = %self.path().display(), detail, "disk found damaged; it takes no more writes");
                    if let Err(error) = metadata.mark_corrupt() {
                        tracing::warn!(%error, "the disk could not be marked as damaged");
                    }
                }
                self.damaged(detail)
            }
            error => error.into_disk_error(self.path()),
        }
    }

    /// Finds how the disk is mapped at `offset`, and how far the same mapping goes on (at most `limit` bytes).
    /// The lock that is returned keeps it true.
    fn find_run(&self, offset: u64, limit: u64) -> Result<(RwLockReadGuard<'_, Metadata>, Run), DiskError> {
        // Normally the second round succeeds; others may push the table out of the cache in between.
        for _ in 0..MAX_LOAD_ATTEMPTS {
            let metadata = self.shared()?;
            let found = match metadata.peek_entries(offset) {
                Ok(Some(entries)) => Some(self.run_in(entries, offset, limit)),
                Ok(None) => None,
                Err(error) => Some(Err(error)),
            };
            match found {
                Some(Ok(run)) => return Ok((metadata, run)),
                Some(Err(bad)) => {
                    drop(metadata);
                    return Err(self.explain(&mut *self.alone()?, bad.into()));
                }
                None => {
                    drop(metadata);
                    let mut metadata = self.alone()?;
                    if let Err(error) = metadata.load_entries(offset) {
                        return Err(self.explain(&mut metadata, error));
                    }
                }
            }
        }
        Err(self.damaged("its tables are used by too many at once"))
    }

    fn run_in(&self, entries: Entries<'_>, offset: u64, limit: u64) -> Result<Run, mapping::BadEntry> {
        let (cluster_size, unit) = (self.geometry.cluster_size(), self.geometry.unit_size());
        let (_, first) = self.geometry.indices(offset);
        if entries.is_empty() {
            let rest = (self.geometry.l2_entries() - first as u64) * cluster_size - offset % cluster_size;
            return Ok(Run { mapping: Mapping::Unallocated { host: None }, length: rest.min(limit) });
        }
        let mut index = first;
        let mut cluster = entries.cluster(index)?;
        // Positions count from the beginning of the first cluster.
        let begin = offset % cluster_size;
        let mapping = cluster.unit(begin / unit);
        let mut end = begin / unit * unit + unit;
        while end - begin < limit {
            let in_cluster = end % cluster_size;
            if in_cluster == 0 {
                index += 1;
                // A bad entry further on is met by the read that begins there.
                match entries.cluster(index) {
                    Ok(next) if index < entries.len() => cluster = next,
                    _ => break,
                }
            }
            let ahead = (index - first) as u64 * cluster_size;
            let continues = match (mapping, cluster.unit(in_cluster / unit)) {
                (Mapping::Unallocated { host }, Mapping::Unallocated { host: next })
                | (Mapping::Zero { host }, Mapping::Zero { host: next }) => host.map(|host| host + ahead) == next,
                (Mapping::Data { host }, Mapping::Data { host: next }) => host + ahead == next,
                (Mapping::Compressed { .. }, Mapping::Compressed { .. }) => in_cluster != 0,
                _ => false,
            };
            if !continues {
                break;
            }
            end += unit;
        }
        Ok(Run { mapping, length: (end - begin).min(limit) })
    }

    /// Reads, also past the end of the disk, where the state of a saved machine lies.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let (_unchanging, run) = self.find_run(at, (buffer.len() - done) as u64)?;
            let end = done + run.length as usize;
            self.read_mapped(run.mapping, at, &mut buffer[done..end])?;
            done = end;
        }
        Ok(())
    }

    /// Reads from a run. `buffer` lies inside it.
    fn read_mapped(&self, mapping: Mapping, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let in_cluster = offset % self.geometry.cluster_size();
        match mapping {
            Mapping::Zero { .. } => buffer.fill(0),
            Mapping::Unallocated { .. } => match &self.backing {
                Some(backing) => read_backing(&**backing, offset, buffer)?,
                None => buffer.fill(0),
            },
            Mapping::Data { host } => {
                let in_file = self.read_payload(host + in_cluster, buffer)?;
                // Only the last cluster of a file may be cut short; one wholly outside was never written by anybody.
                if in_file == 0 && !self.geometry.external_data && self.file.len()? <= host {
                    return Err(self.damaged("a cluster lies past the end of the file"));
                }
            }
            Mapping::Compressed { .. } if self.encryption.is_some() => {
                return Err(self.damaged("a cluster of an encrypted disk is compressed"));
            }
            Mapping::Compressed { start, length } => {
                let content = self.unpacked_cluster(start, length)?;
                let from = in_cluster as usize;
                let Some(part) = content.get(from..from + buffer.len()) else {
                    return Err(self.damaged("a read reaches past its cluster"));
                };
                buffer.copy_from_slice(part);
            }
        }
        Ok(())
    }

    fn unpacked_cluster(&self, start: u64, length: u64) -> Result<Arc<[u8]>, DiskError> {
        if let Some(content) = self.unpacked.get(start) {
            return Ok(content);
        }
        if self.file.len()? <= start {
            return Err(self.damaged("a compressed cluster lies past the end of the file"));
        }
        let mut input = vec![0; length as usize];
        self.file.read_zero_padded(start, &mut input)?;
        let mut content = vec![0; self.geometry.cluster_size() as usize];
        compressed::unpack(self.compression, &input, &mut content)
            .map_err(|_| self.damaged("a compressed cluster cannot be unpacked"))?;
        let content: Arc<[u8]> = content.into();
        self.unpacked.put(start, Arc::clone(&content));
        Ok(content)
    }
}

fn read_again(file: &FencedFile) -> Result<(Header, SnapshotTable), DiskError> {
    let end = file.len()?;
    let header = Header::read(file, end)?;
    let snapshots = SnapshotTable::read(file, &header, end)?;
    if header.incompatible & INCOMPATIBLE_DIRTY != 0 {
        return Err(TableError::Bad("it was not closed properly, and a repair left contradictions").into_disk_error(file.path()));
    }
    Ok((header, snapshots))
}

/// How often a lookup tries again when its table is pushed out of the cache before it could be used.
const MAX_LOAD_ATTEMPTS: usize = 1000;

/// Reads a base image, which may be shorter than the disk built on it: zeros follow.
fn read_backing(backing: &dyn DiskImage, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
    let inside = backing.len().saturating_sub(offset).min(buffer.len() as u64) as usize;
    let (stored, past_end) = buffer.split_at_mut(inside);
    past_end.fill(0);
    if stored.is_empty() { Ok(()) } else { backing.read_at(offset, stored) }
}

fn open_named_backing(chain: &Chain, path: &Path, backing: &BackingName) -> Result<Arc<dyn DiskImage>, DiskError> {
    if let Some(protocol) = protocol(&backing.name) {
        return Err(DiskError::Backing {
            reason: format!("\"{}:\" is no way that Bellglass goes to a base image", protocol.escape_debug()),
            path: path.to_path_buf(),
        });
    }
    let format = match &backing.format {
        None => None,
        Some(word) => Some(word.parse().map_err(|error: crate::formats::UnknownFormat| DiskError::Backing {
            reason: error.to_string(),
            path: path.to_path_buf(),
        })?),
    };
    chain.open_backing(path, &backing.name, format)
}

fn describe(header: &Header, geometry: Geometry, encryption: Option<&Encryption>, bitmaps: &[BitmapInfo]) -> ImageInfo {
    let Header { version, backing, incompatible, compatible, refcount_order, compression, .. } = header;
    let compression = match compression {
        Compression::Deflate => "zlib",
        Compression::Zstd => "zstd",
    };
    let mut specific = vec![
        ("compat", InfoValue::Text(if *version == 2 { "0.10" } else { "1.1" }.into())),
        ("compression-type", InfoValue::Text(compression.into())),
    ];
    if *version >= 3 {
        specific.push(("lazy-refcounts", InfoValue::Flag(compatible & header::COMPATIBLE_LAZY_REFCOUNTS != 0)));
    }
    if !bitmaps.is_empty() {
        specific.push(("bitmaps", InfoValue::List(bitmaps.iter().map(describe_bitmap).collect())));
    }
    specific.push(("refcount-bits", InfoValue::Number(1 << refcount_order)));
    specific.extend(encryption.map(|encryption| ("encrypt", InfoValue::Record(encryption.info.clone()))));
    if *version >= 3 {
        if header.has_data_file() {
            specific.extend(header.data_file.clone().map(|name| ("data-file", InfoValue::Text(name))));
            specific.push(("data-file-raw", InfoValue::Flag(header.has_raw_data_file())));
        }
        specific.push(("corrupt", InfoValue::Flag(incompatible & INCOMPATIBLE_CORRUPT != 0)));
        specific.push(("extended-l2", InfoValue::Flag(header.has_extended_l2())));
    }
    ImageInfo {
        cluster_size: Some(1 << header.cluster_bits),
        backing: backing.as_ref().map(|name| BackingInfo { name: name.name.clone(), format: name.format.clone() }),
        dirty: incompatible & INCOMPATIBLE_DIRTY != 0,
        encrypted: encryption.is_some(),
        data_file: header.data_file.clone(),
        vm_state_offset: vm_state_start(geometry, header.size),
        specific,
        ..ImageInfo::default()
    }
}

fn describe_bitmap(bitmap: &BitmapInfo) -> InfoValue {
    let flags = [(bitmap.out_of_date, "in-use"), (bitmap.enabled, "auto")];
    let flags = flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| InfoValue::Text(name.into()));
    InfoValue::Record(vec![
        ("flags", InfoValue::List(flags.collect())),
        ("name", InfoValue::Text(bitmap.name.clone())),
        ("granularity", InfoValue::Number(bitmap.granularity)),
    ])
}

impl DiskImage for Qcow2 {
    fn len(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        check_range(self.path(), self.len(), offset, buffer.len() as u64)?;
        self.read(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.check_write(offset, data.len() as u64)?;
        self.write(offset, data)
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        self.file.check_fence()?;
        if self.is_corrupt.load(Ordering::Acquire) {
            return Err(self.damaged("a contradiction was found in it earlier"));
        }
        let metadata = self.shared()?;
        if !metadata.has_changes() {
            metadata.flush_data()?;
            return self.file.flush();
        }
        drop(metadata);
        self.alone()?.commit()
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.check_write(offset, length)?;
        self.drop_clusters(offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.check_write(offset, length)?;
        self.zero(offset, length)
    }

    fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn format(&self) -> Format {
        Format::Qcow2
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        check_range(self.path(), self.len(), offset, 0)?;
        let (_unchanging, run) = self.find_run(offset, self.len() - offset)?;
        let in_cluster = offset % self.geometry.cluster_size();
        let extent = |kind| Extent::new(kind, run.length);
        let extent = match run.mapping {
            Mapping::Unallocated { host } => {
                let kind = if self.backing.is_some() { ExtentKind::Backing } else { ExtentKind::Zero };
                Extent { present: false, host_offset: host.map(|host| host + in_cluster), ..extent(kind) }
            }
            Mapping::Zero { host } => Extent { host_offset: host.map(|host| host + in_cluster), ..extent(ExtentKind::Zero) },
            Mapping::Data { host } => Extent { host_offset: Some(host + in_cluster), ..extent(ExtentKind::Data) },
            Mapping::Compressed { .. } => Extent { compressed: true, ..extent(ExtentKind::Data) },
        };
        // Where everything is encrypted nothing lies as it is.
        Ok(Extent { host_offset: extent.host_offset.filter(|_| self.encryption.is_none()), ..extent })
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    fn backing(&self) -> Option<Arc<dyn DiskImage>> {
        self.backing.clone()
    }

    fn info(&self) -> ImageInfo {
        let bitmaps = Bitmaps::list(self);
        let describe = |metadata: RwLockReadGuard<'_, Metadata>| {
            describe(&metadata.header, self.geometry, self.encryption.as_ref(), &bitmaps)
        };
        self.shared().map(describe).unwrap_or_default()
    }

    fn write_compressed(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.check_write(offset, data.len() as u64)?;
        self.write_packed(offset, data)
    }

    fn resize(&self, size: u64, preallocation: Preallocation) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        self.change_size(size, preallocation)
    }

    fn snapshots(&self) -> Vec<SnapshotInfo> {
        let Ok(metadata) = self.shared() else { return Vec::new() };
        metadata.snapshots.snapshots.iter().map(|snapshot| snapshot.info.clone()).collect()
    }

    fn create_snapshot(&self, snapshot: &NewSnapshot) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        self.take_snapshot(snapshot)
    }

    fn apply_snapshot(&self, name: &str) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        self.return_to_snapshot(name)
    }

    fn delete_snapshot(&self, name: &str) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        self.drop_snapshot(name)
    }

    fn read_vm_state(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let start = vm_state_start(self.geometry, self.len());
        match start.checked_add(offset).and_then(|at| at.checked_add(buffer.len() as u64)) {
            Some(end) if end <= i64::MAX as u64 => self.read(start + offset, buffer),
            _ => Err(self.damaged("the state of its machine has an impossible size")),
        }
    }

    fn write_vm_state(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        self.put_vm_state(offset, data)
    }

    fn set_backing(&self, backing: Option<&Backing>) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        self.write_backing_name(backing)
    }

    fn amend(&self, wanted: &Amendment) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        self.change_options(wanted)
    }

    fn change_keys(&self, change: &KeyChange, force: bool) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        let metadata = self.alone()?;
        let (start, length) = metadata.header.luks.ok_or_else(|| self.cannot("have passphrases unless it is encrypted"))?;
        change_keys(&self.file, start, length, change, force)
    }

    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        Some(self)
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        if self.access == Access::ReadOnly || self.is_corrupt.load(Ordering::Acquire) || self.file.check_fence().is_err() {
            return;
        }
        let Ok(mut metadata) = self.alone() else { return };
        let stored = self.store_bitmaps(&mut metadata).map_err(|error| error.into_disk_error(self.path()));
        if let Err(error) = stored.and_then(|()| metadata.settle()) {
            tracing::error!(%error, "a disk could not be closed properly; writes since its last flush are lost");
        }
    }
}
