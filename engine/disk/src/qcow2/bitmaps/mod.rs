//! Bitmaps in the file, which say what changed since a backup.
//!
//! ```text
//!  first write ─► each enabled bitmap is marked "in use" in the file ┃
//!  every write ─► bits in memory
//!  closing     ─► bits into their clusters ┃ tables ┃ a new directory without the marks ┃ header: that directory
//! ```
//!
//! So whoever finds a bitmap without the mark can rely on it; after a crash it has the mark, and is of no use any more
//! but to be removed. A discard, zeros and a growing size are changes too. What QEMU
//! calls *persistent* and *auto-loading* is a bitmap that is enabled. Where the directory makes no sense, or a program
//! that knows no bitmaps has written to the disk, there are none, and the first write says so in the header.
//!
//! See: the qcow2 specification, "Bitmaps extension".

mod directory;
mod tracking;

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::DiskError;
use crate::fenced_file::FencedFile;
use crate::image::DiskImage;
use crate::image_info::{BitmapInfo, Bitmaps};

use super::Qcow2;
use super::header::{AT_AUTOCLEAR, AUTOCLEAR_BITMAPS, AUTOCLEAR_RAW_DATA_FILE, EXTENSION_BITMAPS};
use super::l2_cache::write_words;
use super::mapping::OFFSET_MASK;
use super::metadata::{Metadata, TableError};

use directory::{ALL_ONES, AUTO, Bitmap, GRANULARITY_BITS, IN_USE, MAX_BITMAPS, MAX_NAME, MAX_TABLE_BYTES, table_entries};
pub(super) use directory::{CannotRead, Directory};
use tracking::Tracked;
pub(super) use tracking::Tracking;

/// The usual granularity is that of a cluster, within these bounds; so it is QEMU's.
const USUAL_GRANULARITY: std::ops::RangeInclusive<u64> = 4096..=65_536;

impl Qcow2 {
    /// Before the first write: bitmaps that follow writes are marked as in use, and what the header promises and nobody
    /// keeps true from now on is taken back.
    pub(super) fn prepare_bitmaps(&self, metadata: &mut Metadata) -> Result<(), DiskError> {
        self.track(metadata, |bitmap| bitmap.flags & AUTO != 0)?;
        let has_bitmaps = !metadata.bitmaps.bitmaps.is_empty();
        let kept = if has_bitmaps { AUTOCLEAR_BITMAPS } else { 0 } | AUTOCLEAR_RAW_DATA_FILE;
        let autoclear = metadata.header.autoclear & kept;
        if metadata.header.autoclear != autoclear {
            tracing::debug!(bits = metadata.header.autoclear & !kept, "clearing autoclear bits before the first write");
            metadata.write_header_field(AT_AUTOCLEAR, &autoclear.to_be_bytes())?;
            metadata.header.autoclear = autoclear;
        }
        Ok(())
    }

    /// Begins to change bitmaps: marks them as in use. Those that somebody left in use are of no use any more.
    fn track(&self, metadata: &mut Metadata, is_wanted: impl Fn(&Bitmap) -> bool) -> Result<(), DiskError> {
        let Metadata { file, bitmaps, .. } = metadata;
        let mut is_marked = Ok(false);
        for bitmap in bitmaps.bitmaps.iter_mut().filter(|bitmap| bitmap.flags & IN_USE == 0) {
            if is_wanted(bitmap) && is_marked.is_ok() {
                is_marked = self.track_bitmap(file, bitmap).map(|()| true);
            }
        }
        self.tracking.refresh();
        if is_marked? { file.flush() } else { Ok(()) }
    }

    fn track_bitmap(&self, file: &FencedFile, bitmap: &mut Bitmap) -> Result<(), DiskError> {
        // The file first: where it could not be told, the next attempt must tell it, or the bitmap would look sound.
        let flags = bitmap.flags | IN_USE;
        file.write_at(bitmap.flags_at, &flags.to_be_bytes())?;
        bitmap.flags = flags;
        // One with unknown extra data stays in use for ever.
        if bitmap.is_known() {
            let page_bytes = self.geometry.cluster_size() as usize;
            self.tracking.lock().push(Tracked::new(&bitmap.name, bitmap.granularity_bits, flags & AUTO != 0, page_bytes));
        }
        Ok(())
    }

    /// Writes down what has changed in bitmaps and takes their marks away. Where that fails, they are out of date.
    pub(super) fn store_bitmaps(&self, metadata: &mut Metadata) -> Result<(), TableError> {
        let directory = metadata.bitmaps.clone();
        self.store_as(metadata, directory, Vec::new())
    }

    /// The same as `directory`, which has the bitmaps at another size; then `old_places` in the file, offset and length, are
    /// given up.
    fn store_as(&self, metadata: &mut Metadata, directory: Directory, old_places: Vec<(u64, u64)>) -> Result<(), TableError> {
        let tracked = std::mem::take(&mut *self.tracking.lock());
        self.tracking.refresh();
        if tracked.is_empty() {
            return Ok(());
        }
        // The next write must mark them again.
        self.is_prepared.store(false, Ordering::Release);
        let mut taken = Vec::new();
        let result = metadata.store_tracked(directory, &tracked, old_places, &mut taken);
        // Until the header has changed nothing points at what is new; after a header write that failed nothing may be written.
        if result.is_err() && metadata.file.check_fence().is_ok() {
            taken.into_iter().for_each(|clusters| metadata.take_back(clusters));
        }
        result
    }

    /// The content of every bitmap has become another size with the disk. Must follow [`track_all`](Self::track_all).
    pub(super) fn fit_bitmaps(&self, metadata: &mut Metadata) -> Result<(), TableError> {
        let size = metadata.header.size;
        let mut directory = metadata.bitmaps.clone();
        let mut old_places = Vec::new();
        for tracked in self.tracking.lock().iter_mut().filter(|tracked| !tracked.is_lost) {
            let Some(index) = directory.position(&tracked.name) else { continue };
            let bitmap = &mut directory.bitmaps[index];
            let entries = table_entries(size, bitmap.granularity_bits, self.geometry) as usize;
            let cut: Vec<u64> = bitmap.table.drain(entries.min(bitmap.table.len())..).collect();
            let places = cut.iter().map(|word| word & OFFSET_MASK).filter(|offset| *offset != 0);
            old_places.extend(places.map(|offset| (offset, self.geometry.cluster_size())));
            bitmap.table.resize(entries, 0);
            let per_page = self.geometry.cluster_size() * 8;
            tracked.pages.retain(|page, _| *page < entries as u64);
            // Bits past the new end are cut off when the last page is written.
            if size >> bitmap.granularity_bits < entries as u64 * per_page && entries > 0 {
                tracked.page(entries as u64 - 1);
            }
        }
        self.store_as(metadata, directory, old_places)
    }

    /// Before the disk changes its size: all bitmaps change with it. Those that are out of date cannot, and forbid it.
    pub(super) fn track_all(&self, metadata: &mut Metadata) -> Result<(), DiskError> {
        let known: Vec<String> = self.tracking.lock().iter().map(|tracked| tracked.name.clone()).collect();
        let mut bitmaps = metadata.bitmaps.bitmaps.iter();
        if let Some(bitmap) = bitmaps.find(|bitmap| bitmap.flags & IN_USE != 0 && !known.contains(&bitmap.name)) {
            let reason = format!("The bitmap \"{}\" is out of date, so it cannot change its size. Remove it first", bitmap.name);
            return Err(DiskError::BadOptions { reason, path: self.path().to_path_buf() });
        }
        self.track_usable(metadata)
    }

    /// The same, without those that are out of date.
    pub(super) fn track_usable(&self, metadata: &mut Metadata) -> Result<(), DiskError> {
        self.track(metadata, |_| true)
    }

    /// Notes that anything on the disk may have changed.
    pub(super) fn note_all_changed(&self) {
        self.tracking.note(0..self.len());
    }

    fn no_such_bitmap(&self, name: &str) -> DiskError {
        DiskError::NoSuchBitmap { name: name.into(), path: self.path().to_path_buf() }
    }

    fn refuse_bitmap(&self, reason: String) -> DiskError {
        DiskError::BadOptions { reason, path: self.path().to_path_buf() }
    }

    /// Begins to change one bitmap; fails where it is out of date.
    fn track_one(&self, metadata: &mut Metadata, name: &str) -> Result<(), DiskError> {
        metadata.bitmaps.position(name).ok_or_else(|| self.no_such_bitmap(name))?;
        self.track(metadata, |bitmap| bitmap.name == name)?;
        let is_tracked = self.tracking.lock().iter().any(|tracked| tracked.name == name && !tracked.is_lost);
        match is_tracked {
            true => Ok(()),
            false => {
                Err(self.refuse_bitmap(format!("The bitmap \"{name}\" is out of date. All that can be done is to remove it")))
            }
        }
    }

    /// Changes what is tracked of one bitmap.
    fn change_tracked(&self, name: &str, change: impl FnOnce(&mut Tracked)) {
        if let Some(tracked) = self.tracking.lock().iter_mut().find(|tracked| tracked.name == name) {
            change(tracked);
        }
        self.tracking.refresh();
    }
}

impl Bitmaps for Qcow2 {
    fn list(&self) -> Vec<BitmapInfo> {
        let Ok(metadata) = self.shared() else { return Vec::new() };
        let tracked = self.tracking.lock();
        let info = |bitmap: &Bitmap| BitmapInfo {
            name: bitmap.name.clone(),
            granularity: 1 << bitmap.granularity_bits,
            enabled: bitmap.flags & AUTO != 0,
            out_of_date: bitmap.flags & IN_USE != 0
                && !tracked.iter().any(|tracked| tracked.name == bitmap.name && !tracked.is_lost),
        };
        metadata.bitmaps.bitmaps.iter().map(info).collect()
    }

    fn add(&self, name: &str, granularity: Option<u64>) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        let usual = self.geometry.cluster_size().clamp(*USUAL_GRANULARITY.start(), *USUAL_GRANULARITY.end());
        let granularity = granularity.unwrap_or(usual);
        if !granularity.is_power_of_two() || !GRANULARITY_BITS.contains(&granularity.trailing_zeros()) {
            let reason = "The granularity of a bitmap must be a power of two from 512 bytes to 2 GiB";
            return Err(self.refuse_bitmap(reason.into()));
        }
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(self.refuse_bitmap("The name of a bitmap must have 1 to 1,023 bytes".into()));
        }
        let mut metadata = self.alone()?;
        if metadata.header.version < 3 {
            return Err(self.refuse_bitmap("Version 2 disks cannot keep bitmaps. Change the disk to version 3 first".into()));
        }
        if metadata.bitmaps.position(name).is_some() {
            return Err(self.refuse_bitmap(format!("There is a bitmap \"{name}\" already")));
        }
        if metadata.bitmaps.bitmaps.len() >= MAX_BITMAPS {
            return Err(self.refuse_bitmap("A disk cannot have more bitmaps than it has. Remove one first".into()));
        }
        let entries = table_entries(self.len(), granularity.trailing_zeros(), self.geometry);
        let table_bytes = metadata.bitmaps.bitmaps.iter().map(|bitmap| bitmap.table_bytes).sum::<u64>();
        if table_bytes.saturating_add(entries.saturating_mul(8)) > MAX_TABLE_BYTES {
            return Err(self.refuse_bitmap("A bitmap as fine as this is too large for this disk. Choose a coarser one".into()));
        }
        let add = |metadata: &mut Metadata| {
            let mut directory = metadata.bitmaps.clone();
            let mut bitmap = Bitmap::new(name, granularity.trailing_zeros(), entries);
            let place = metadata.allocate_together(metadata.clusters(0, entries.max(1) * 8).end)?;
            bitmap.table_offset = place.start << self.geometry.cluster_bits;
            bitmap.table_bytes = entries * 8;
            let cleared = metadata.file.write_zeros(bitmap.table_offset, (place.end - place.start) << self.geometry.cluster_bits);
            directory.bitmaps.push(bitmap);
            let result = cleared.map_err(TableError::from).and_then(|()| metadata.switch_bitmaps(directory, Vec::new()));
            if result.is_err() && metadata.file.check_fence().is_ok() {
                metadata.take_back(place);
            }
            result
        };
        let result = add(&mut metadata);
        self.is_prepared.store(false, Ordering::Release);
        result.map_err(|error| self.explain(&mut metadata, error))
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        let mut metadata = self.alone()?;
        let index = metadata.bitmaps.position(name).ok_or_else(|| self.no_such_bitmap(name))?;
        let mut directory = metadata.bitmaps.clone();
        let removed = directory.bitmaps.remove(index);
        let places = removed.ranges(self.geometry).collect();
        let result = metadata.switch_bitmaps(directory, places);
        result.map_err(|error| self.explain(&mut metadata, error))?;
        self.tracking.lock().retain(|tracked| tracked.name != name);
        self.tracking.refresh();
        Ok(())
    }

    fn set_enabled(&self, name: &str, enabled: bool) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        let mut metadata = self.alone()?;
        self.track_one(&mut metadata, name)?;
        let index = metadata.bitmaps.position(name).ok_or_else(|| self.no_such_bitmap(name))?;
        let Metadata { file, bitmaps, .. } = &mut *metadata;
        let bitmap = &mut bitmaps.bitmaps[index];
        let flags = if enabled { bitmap.flags | AUTO } else { bitmap.flags & !AUTO };
        file.write_at(bitmap.flags_at, &flags.to_be_bytes())?;
        bitmap.flags = flags;
        self.change_tracked(name, |tracked| tracked.follows = enabled);
        Ok(())
    }

    fn clear(&self, name: &str) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        let mut metadata = self.alone()?;
        self.track_one(&mut metadata, name)?;
        self.change_tracked(name, |tracked| {
            tracked.is_cleared = true;
            tracked.pages.clear();
        });
        Ok(())
    }

    fn mark(&self, name: &str, range: Range<u64>) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        let mut metadata = self.alone()?;
        self.track_one(&mut metadata, name)?;
        let end = range.end.min(self.len());
        self.change_tracked(name, |tracked| tracked.set(range.start..end.max(range.start)));
        Ok(())
    }

    fn marked(&self, name: &str, from: u64, most: usize) -> Result<Vec<Range<u64>>, DiskError> {
        let metadata = self.shared()?;
        let index = metadata.bitmaps.position(name).ok_or_else(|| self.no_such_bitmap(name))?;
        let bitmap = &metadata.bitmaps.bitmaps[index];
        let tracked = self.tracking.lock();
        let changes = tracked.iter().find(|tracked| tracked.name == name && !tracked.is_lost);
        if bitmap.flags & IN_USE != 0 && changes.is_none() {
            return Err(self.refuse_bitmap(format!("The bitmap \"{name}\" is out of date. All that can be done is to remove it")));
        }
        let per_page = self.geometry.cluster_size() * 8;
        let size = self.len();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for page in (from >> bitmap.granularity_bits) / per_page..bitmap.table.len() as u64 {
            let Some(bits) = metadata.bits(bitmap, changes, page)? else { continue };
            for (number, byte) in bits.iter().enumerate().filter(|(_, byte)| **byte != 0) {
                for bit in (0..8).filter(|bit| byte >> bit & 1 != 0) {
                    let start = (page * per_page + number as u64 * 8 + bit) << bitmap.granularity_bits;
                    let end = (start + (1 << bitmap.granularity_bits)).min(size);
                    if end <= from || start >= size {
                        continue;
                    }
                    let is_full = ranges.len() >= most;
                    match ranges.last_mut() {
                        Some(last) if last.end == start => last.end = end,
                        _ if is_full => return Ok(ranges),
                        _ => ranges.push(start.max(from)..end),
                    }
                }
            }
        }
        Ok(ranges)
    }
}

impl Metadata {
    /// The bits of one page of a bitmap, changes and all; `None` where none is set.
    fn bits(&self, bitmap: &Bitmap, changes: Option<&Tracked>, page: u64) -> Result<Option<Vec<u8>>, DiskError> {
        let word = match changes {
            Some(changes) if changes.is_cleared => 0,
            _ => bitmap.table.get(page as usize).copied().unwrap_or(0),
        };
        let cluster_size = self.geometry.cluster_size() as usize;
        let mut bits = match word & OFFSET_MASK {
            0 if word & ALL_ONES != 0 => vec![0xff; cluster_size],
            0 => vec![0; cluster_size],
            offset => {
                let mut bits = vec![0; cluster_size];
                self.file.read_zero_padded(offset, &mut bits)?;
                bits
            }
        };
        let changed = changes.and_then(|changes| changes.pages.get(&page));
        for (bits, changed) in bits.iter_mut().zip(changed.iter().flat_map(|page| page.iter())) {
            *bits |= changed;
        }
        Ok(Some(bits).filter(|_| word != 0 || changed.is_some()))
    }

    /// Writes down what was tracked, and a directory that says so. New clusters are noted in `taken`.
    fn store_tracked(
        &mut self,
        mut directory: Directory,
        tracked: &[Tracked],
        mut old_places: Vec<(u64, u64)>,
        taken: &mut Vec<Range<u64>>,
    ) -> Result<(), TableError> {
        for changes in tracked.iter().filter(|tracked| !tracked.is_lost) {
            let Some(index) = directory.position(&changes.name) else { continue };
            let bitmap = &mut directory.bitmaps[index];
            self.store_bits(bitmap, changes, &mut old_places, taken)?;
            let place = self.allocate_together(self.clusters(0, bitmap.table.len().max(1) as u64 * 8).end)?;
            taken.push(place.clone());
            old_places.push((bitmap.table_offset, bitmap.table_bytes));
            bitmap.table_offset = place.start << self.geometry.cluster_bits;
            bitmap.table_bytes = bitmap.table.len() as u64 * 8;
            let mut words = bitmap.table.clone();
            words.resize(((place.end - place.start) * self.geometry.cluster_size() / 8) as usize, 0);
            write_words(&self.file, bitmap.table_offset, &words, 0..words.len())?;
            bitmap.flags &= !IN_USE;
        }
        self.switch_bitmaps(directory, old_places)
    }

    /// Writes the changed bits of a bitmap; its table takes up where they lie. What is given up goes to `old_places`, new
    /// clusters to `taken`.
    fn store_bits(
        &mut self,
        bitmap: &mut Bitmap,
        changes: &Tracked,
        old_places: &mut Vec<(u64, u64)>,
        taken: &mut Vec<Range<u64>>,
    ) -> Result<(), TableError> {
        let (cluster_size, bits) = (self.geometry.cluster_size(), self.geometry.cluster_bits);
        let disk_bits = self.header.size.div_ceil(1 << bitmap.granularity_bits);
        let mut kept = BTreeSet::new();
        let entries = bitmap.table.len() as u64;
        for page in changes.pages.keys().filter(|page| **page < entries) {
            let mut content = self.bits(bitmap, Some(changes), *page)?.unwrap_or_else(|| vec![0; cluster_size as usize]);
            cut_off(&mut content, disk_bits.saturating_sub(page * cluster_size * 8));
            if content.iter().all(|byte| *byte == 0) {
                continue;
            }
            kept.insert(*page);
            // Nobody relies on a bitmap that is in use, so its bits may be written over.
            let word = &mut bitmap.table[*page as usize];
            if *word & OFFSET_MASK == 0 {
                let clusters = self.allocate(1)?.clusters;
                *word = clusters.start << bits;
                taken.push(clusters);
            }
            self.file.write_at(*word & OFFSET_MASK, &content)?;
        }
        for (page, word) in bitmap.table.iter_mut().enumerate() {
            let page = page as u64;
            let is_empty = !kept.contains(&page) && (changes.is_cleared || changes.pages.contains_key(&page));
            if is_empty && *word & OFFSET_MASK != 0 {
                old_places.push((*word & OFFSET_MASK, cluster_size));
            }
            if is_empty {
                *word = 0;
            }
        }
        Ok(())
    }

    /// Writes another directory and makes the header point at it; then the old one and `old_places` are given up. All
    /// that the new one needs becomes durable first.
    fn switch_bitmaps(&mut self, mut directory: Directory, mut old_places: Vec<(u64, u64)>) -> Result<(), TableError> {
        old_places.push((self.bitmaps.offset, self.bitmaps.size));
        let (bytes, flags_at) = directory.encode();
        let place = self.allocate_together(self.clusters(0, bytes.len() as u64).end)?;
        directory.size = bytes.len() as u64;
        directory.offset = if bytes.is_empty() { 0 } else { place.start << self.geometry.cluster_bits };
        for (bitmap, at) in directory.bitmaps.iter_mut().zip(flags_at) {
            bitmap.flags_at = directory.offset + at;
        }
        let mut padded = bytes;
        padded.resize(((place.end - place.start) << self.geometry.cluster_bits) as usize, 0);
        let mut prepare = || {
            if !padded.is_empty() {
                self.file.write_at(directory.offset, &padded)?;
            }
            self.settle()?;
            self.file.flush()
        };
        if let Err(error) = prepare() {
            self.take_back(place);
            return Err(error.into());
        }
        let mut header = self.header.clone();
        header.extensions.retain(|(kind, _)| *kind != EXTENSION_BITMAPS);
        header.autoclear &= !AUTOCLEAR_BITMAPS;
        if !directory.bitmaps.is_empty() {
            header.extensions.push((EXTENSION_BITMAPS, directory.extension()));
            header.autoclear |= AUTOCLEAR_BITMAPS;
        }
        let is_written = self.write_header(header);
        if !matches!(is_written, Ok(true)) && self.file.check_fence().is_ok() {
            self.take_back(place);
        }
        if !is_written? {
            let reason = "The header of this disk has no room for bitmaps".into();
            return Err(DiskError::BadOptions { reason, path: self.file.path().to_path_buf() }.into());
        }
        for (offset, length) in old_places {
            let clusters = self.clusters(offset, length);
            self.released.extend(clusters);
        }
        self.bitmaps = directory;
        self.refresh_fixed();
        self.tidy(Ok(()));
        Ok(())
    }

    /// Takes the bitmaps of a file over for writing, if they lie where nothing else does.
    pub(super) fn adopt_bitmaps(&mut self, bitmaps: Directory) -> Result<(), TableError> {
        let clusters: Vec<u64> =
            bitmaps.ranges(self.geometry).flat_map(|(offset, length)| self.clusters(offset, length)).collect();
        let mut seen = HashSet::new();
        for cluster in clusters {
            if self.is_metadata(cluster) || !seen.insert(cluster) || self.refcount(cluster)? != 1 {
                tracing::warn!(path = %self.file.path().display(), "the bitmaps of a disk overlap other parts of it");
                return Ok(());
            }
        }
        self.bitmaps = bitmaps;
        Ok(self.note_fixed_tables()?)
    }
}

/// Clears all bits of a page from `end` on.
fn cut_off(page: &mut [u8], end: u64) {
    let byte = usize::try_from(end / 8).unwrap_or(usize::MAX);
    if let Some(last) = page.get_mut(byte) {
        *last &= !(0xff << (end % 8));
    }
    if let Some(rest) = page.get_mut(byte.saturating_add(1)..) {
        rest.fill(0);
    }
}
