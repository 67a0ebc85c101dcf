//! The log: changes that a writer had decided on and may not have carried out. Entries form a ring; the newest sequence
//! that is complete counts, and all of it is carried out before anything else is looked at.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::DiskError;
use crate::block_file::{Access, BlockFile, FileIdentity, read_zero_padded};
use crate::fenced_file::FencedFile;
use crate::fields::Fields;

use super::ADVICE;
use super::header::{Header, sum};

const PAGE: usize = 4096;
const PAGE_U64: u64 = PAGE as u64;
const ENTRY_HEADER: usize = 64;
const DESCRIPTOR: usize = 32;
/// Zeros written by a log in all; more is nobody's.
const MAX_ZEROS: u64 = 1 << 30;

/// One entry, sound in itself.
struct Entry {
    sequence: u64,
    tail: u64,
    length: u64,
    flushed_size: u64,
    last_size: u64,
    changes: Vec<Change>,
}

enum Change {
    Zeros { offset: u64, length: u64 },
    Data { offset: u64, page: Box<[u8]> },
}

/// The file as it is once its log has been carried out: in the file itself if it may be written, else in memory.
pub(super) fn replayed(file: Arc<dyn BlockFile>, header: &mut Header, access: Access) -> Result<Arc<dyn BlockFile>, DiskError> {
    let Some(log) = header.log.filter(|_| header.has_log()) else { return Ok(file) };
    let damaged = |detail: &str| DiskError::Damaged { detail: detail.into(), advice: ADVICE, path: file.path().into() };
    let fenced = FencedFile::new(Arc::clone(&file));
    let mut bytes = vec![0; log.length as usize];
    fenced.read_zero_padded(log.offset, &mut bytes)?;
    let entries = newest_sequence(&bytes, header).ok_or_else(|| damaged("its log is not sound"))?;
    let size = fenced.len()?;
    let last = entries.last().map_or((0, 0), |entry| (entry.flushed_size, entry.last_size));
    if size < last.0 {
        return Err(damaged("it is shorter than its log says it was"));
    }
    let zeros: u64 = entries.iter().flat_map(|entry| &entry.changes).fold(0, |sum, change| match change {
        Change::Zeros { length, .. } => sum.saturating_add(*length),
        Change::Data { .. } => sum,
    });
    if zeros > MAX_ZEROS || last.1 > i64::MAX as u64 {
        return Err(damaged("its log would write beyond measure"));
    }
    // The log itself and the headers are not the log's to change.
    let touches = |offset: u64, length: u64| {
        let end = offset.checked_add(length);
        !offset.is_multiple_of(PAGE_U64)
            || end.is_none_or(|end| end > last.1.max(size))
            || offset < super::header::REGION_PLACES[0]
    };
    let is_bad = |change: &Change| match change {
        Change::Zeros { offset, length } => touches(*offset, *length) || length % PAGE_U64 != 0,
        Change::Data { offset, .. } => touches(*offset, PAGE_U64),
    };
    if entries.iter().flat_map(|entry| &entry.changes).any(is_bad) {
        return Err(damaged("its log would write outside the file"));
    }
    let changes = entries.into_iter().flat_map(|entry| entry.changes);
    match access {
        Access::ReadWrite => {
            if size < last.1 {
                fenced.truncate(last.1)?;
            }
            for change in changes {
                match change {
                    Change::Data { offset, page } => fenced.write_at(offset, &page)?,
                    Change::Zeros { offset, length } => {
                        for at in (offset..offset + length).step_by(PAGE) {
                            fenced.write_at(at, &[0; PAGE])?;
                        }
                    }
                }
            }
            // Only when all of it is durable may the header say that there is no log.
            fenced.flush()?;
            header.begin_writing(&fenced)?;
            Ok(file)
        }
        Access::ReadOnly => {
            let mut pages = BTreeMap::new();
            for change in changes {
                match change {
                    Change::Data { offset, page } => {
                        pages.insert(offset, page);
                    }
                    Change::Zeros { offset, length } => {
                        for at in (offset..offset + length).step_by(PAGE) {
                            pages.insert(at, vec![0; PAGE].into());
                        }
                    }
                }
            }
            Ok(Arc::new(Replayed { file, pages, size: size.max(last.1) }))
        }
    }
}

/// The complete sequence of entries that ends with the newest one.
fn newest_sequence(log: &[u8], header: &Header) -> Option<Vec<Entry>> {
    let mut entries: BTreeMap<u64, Entry> = BTreeMap::new();
    // Entries may claim any length; the sum of what is looked at is bounded, whatever they claim.
    let mut budget = 8 * log.len();
    for start in (0..log.len()).step_by(PAGE) {
        if let Some(entry) = Entry::parse(log, start, header, &mut budget) {
            entries.insert(start as u64, entry);
        }
    }
    let newest = entries.iter().max_by_key(|(_, entry)| entry.sequence)?;
    let mut at = newest.1.tail;
    let end = *newest.0;
    let mut order = Vec::new();
    let mut expected = None;
    loop {
        let entry = entries.get(&at)?;
        if expected.is_some_and(|expected| entry.sequence != expected) || order.len() > entries.len() {
            return None;
        }
        expected = Some(entry.sequence + 1);
        order.push(at);
        if at == end {
            break;
        }
        at = (at + entry.length) % log.len() as u64;
    }
    order.into_iter().map(|at| entries.remove(&at)).collect()
}

impl Entry {
    fn parse(log: &[u8], start: usize, header: &Header, budget: &mut usize) -> Option<Self> {
        let first = log.get(start..start + PAGE)?;
        let fields = Fields(first);
        let length = fields.le32(8) as usize;
        if !first.starts_with(b"loge") || length == 0 || !length.is_multiple_of(PAGE) || length > log.len() {
            return None;
        }
        *budget = budget.checked_sub(length)?;
        // The ring goes on at its start.
        let bytes: Vec<u8> = log[start..].iter().chain(log).copied().take(length).collect();
        let (tail, sequence, count) = (u64::from(fields.le32(12)), fields.le64(16), fields.le32(24) as usize);
        if fields.le32(4) != sum(&bytes) || fields.id(32) != header.log_id || sequence == 0 || sequence == u64::MAX {
            return None;
        }
        let descriptor_bytes = ENTRY_HEADER.checked_add(count.checked_mul(DESCRIPTOR)?)?;
        let mut next_page = descriptor_bytes.next_multiple_of(PAGE);
        let descriptors = bytes.get(ENTRY_HEADER..descriptor_bytes)?;
        let mut changes = Vec::new();
        for descriptor in descriptors.chunks_exact(DESCRIPTOR) {
            let fields = Fields(descriptor);
            if fields.le64(24) != sequence {
                return None;
            }
            let offset = fields.le64(16);
            match &descriptor[..4] {
                b"zero" => changes.push(Change::Zeros { offset, length: fields.le64(8) }),
                b"desc" => {
                    let sector = bytes.get(next_page..next_page + PAGE)?;
                    let halves = Fields(sector);
                    let written = u64::from(halves.le32(4)) << 32 | u64::from(halves.le32(PAGE - 4));
                    if !sector.starts_with(b"data") || written != sequence {
                        return None;
                    }
                    // The sector's first eight and last four bytes made room for its marks; they stand in the descriptor.
                    let mut page = descriptor[8..16].to_vec();
                    page.extend(&sector[8..PAGE - 4]);
                    page.extend(&descriptor[4..8]);
                    changes.push(Change::Data { offset, page: page.into() });
                    next_page += PAGE;
                }
                _ => return None,
            }
        }
        let (flushed_size, last_size) = (fields.le64(48), fields.le64(56));
        Some(Self { sequence, tail, length: length as u64, flushed_size, last_size, changes })
    }
}

/// A file that is only read, with its log carried out in memory.
struct Replayed {
    file: Arc<dyn BlockFile>,
    /// Pages that read differently, by position.
    pages: BTreeMap<u64, Box<[u8]>>,
    size: u64,
}

impl BlockFile for Replayed {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let buffer = &mut buffer[..count];
        read_zero_padded(&*self.file, offset, buffer)?;
        let end = offset + count as u64;
        for (at, page) in self.pages.range(offset.saturating_sub(PAGE_U64 - 1)..end) {
            let (from, to) = ((*at).max(offset), (at + PAGE_U64).min(end));
            buffer[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&page[(from - at) as usize..(to - at) as usize]);
        }
        Ok(count)
    }

    fn write_at(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch_hole(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn allocate(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn truncate(&self, _size: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn lock(&self, access: Access) -> io::Result<()> {
        self.file.lock(access)
    }

    fn identity(&self) -> Option<FileIdentity> {
        self.file.identity()
    }

    fn path(&self) -> &Path {
        self.file.path()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::fields::put;
    use crate::formats::Opening;
    use crate::image::DiskImage;
    use crate::open::Chain;
    use crate::sim_file::SimFile;

    const MIB: usize = 1 << 20;
    const LOG_ID: [u8; 16] = [7; 16];

    fn open(file: &Arc<SimFile>, access: Access) -> Result<Arc<dyn DiskImage>, DiskError> {
        (super::super::DRIVER.open)(Opening::of(Arc::clone(file) as _, access, &Chain::default()))
    }

    /// A disk whose first block is stored, but only its log says so. The second header is the newer one.
    pub(crate) fn image_with_log(sequence: u64) -> Vec<u8> {
        let file = Arc::new(SimFile::new(Vec::new()));
        super::super::create_small(&*file, 4 << 20);
        let disk = open(&file, Access::ReadWrite).unwrap();
        disk.write_at(0, &[5; 4096]).unwrap();
        drop(disk);
        let mut image = file.content();
        // Writing the table's first page again is what the log has yet to do.
        let table = 3 * MIB;
        let page: Vec<u8> = image[table..table + PAGE].to_vec();
        image[table..table + PAGE].fill(0);
        let mut entry = vec![0; 2 * PAGE];
        put(&mut entry, 0, b"loge");
        put(&mut entry, 8, &(2 * PAGE as u32).to_le_bytes());
        put(&mut entry, 16, &sequence.to_le_bytes());
        put(&mut entry, 24, &1_u32.to_le_bytes());
        put(&mut entry, 32, &LOG_ID);
        put(&mut entry, 48, &(image.len() as u64).to_le_bytes());
        put(&mut entry, 56, &(image.len() as u64).to_le_bytes());
        put(&mut entry, 64, b"desc");
        put(&mut entry, 68, &page[PAGE - 4..]);
        put(&mut entry, 72, &page[..8]);
        put(&mut entry, 80, &(table as u64).to_le_bytes());
        put(&mut entry, 88, &sequence.to_le_bytes());
        put(&mut entry, PAGE, b"data");
        put(&mut entry, PAGE + 4, &((sequence >> 32) as u32).to_le_bytes());
        put(&mut entry, PAGE + 8, &page[8..PAGE - 4]);
        put(&mut entry, 2 * PAGE - 4, &(sequence as u32).to_le_bytes());
        let entry_sum = sum(&entry);
        put(&mut entry, 4, &entry_sum.to_le_bytes());
        put(&mut image, MIB, &entry);
        for place in super::super::header::HEADER_PLACES {
            let header = &mut image[place as usize..][..super::super::header::HEADER_LENGTH];
            put(header, 48, &LOG_ID);
            let header_sum = sum(header);
            put(header, 4, &header_sum.to_le_bytes());
        }
        image
    }

    fn first_bytes(disk: &dyn DiskImage) -> [u8; 4] {
        let mut bytes = [9; 4];
        disk.read_at(0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_log_is_carried_out_in_memory_for_readers_and_in_the_file_for_writers() {
        let image = image_with_log(1 << 33 | 4);
        let file = Arc::new(SimFile::new(image.clone()));
        assert_eq!(first_bytes(&*open(&file, Access::ReadOnly).unwrap()), [5; 4]);
        assert!(file.content() == image, "a reader changes nothing");
        drop(open(&file, Access::ReadWrite).unwrap());
        let content = file.content();
        assert!(content != image && content[3 * MIB] != 0, "the table has its entry now");
        assert!(!Header::read(&FencedFile::new(Arc::clone(&file) as _)).unwrap().has_log());
        assert_eq!(first_bytes(&*open(&file, Access::ReadOnly).unwrap()), [5; 4]);
    }

    #[test]
    fn a_log_that_is_not_whole_or_goes_astray_is_refused_and_nothing_is_changed() {
        // The sum, the tail, the page's mark, the place that is written.
        for (at, bytes) in [(4, &[0; 4][..]), (12, &[0, 16, 0, 0]), (PAGE + 4, &[1; 4]), (80, &[0xff; 8]), (80, &[0; 8])] {
            let mut image = image_with_log(9);
            put(&mut image, MIB + at, bytes);
            if at != 4 {
                let entry_sum = sum(&image[MIB..MIB + 2 * PAGE]);
                put(&mut image, MIB + 4, &entry_sum.to_le_bytes());
            }
            for access in [Access::ReadOnly, Access::ReadWrite] {
                let file = Arc::new(SimFile::new(image.clone()));
                assert!(matches!(open(&file, access), Err(DiskError::Damaged { .. })), "{at}: {bytes:?}");
                assert!(file.content() == image, "{at}");
            }
        }
    }
}
