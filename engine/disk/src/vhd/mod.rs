//! VHD, the disk of Virtual PC and older Hyper-V ("vpc" to QEMU).
//!
//! Done: fixed, dynamic and differencing disks, read and written; growing. A disk that grows by itself has a copy of its
//! footer at the start of the file, which we go by; the one at the end moves on as the file grows. What the footer leads
//! to (header, table, the base's names) is never changed in place, except for the table's entries: new ones are written
//! behind the old file's end, and take effect with the footer's one sector.
//! A differencing disk cannot tell by an identifier whether its base has changed; the time of the base's file is all there
//! is, and gives a warning.
//! See: Microsoft, "Virtual Hard Disk Image Format Specification".

mod create;
mod footer;
mod header;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::DiskError;
use crate::block_file::{Access, BlockFile};
use crate::block_table::{BitOrder, Block, BlockTableDisk, Grown, Growth, Layout, MAX_BLOCKS, MarksHome, MarksLayout, Opened};
use crate::check::{CheckReport, Repair};
use crate::fenced_file::FencedFile;
use crate::flat::Flat;
use crate::formats::{Driver, Format, Opening};
use crate::image::DiskImage;
use crate::image_info::{BackingInfo, Identity, ImageInfo};
use crate::open::Backing;
use crate::parent::Base;

use footer::{DIFFERENCING, DYNAMIC, FIXED, FOOTER_LENGTH, FOOTER_MAGIC, Footer};
use header::{HEADER_LENGTH, Header, time_of_file};

#[cfg(test)]
pub(crate) use create::{create_small, create_small_over};

pub(crate) const DRIVER: Driver = Driver {
    format: Format::Vhd,
    name: "vpc",
    title: "VHD disk",
    recognise: |head| head.starts_with(FOOTER_MAGIC),
    open,
    create: Some(create::create),
    check: Some(check),
    has_snapshots: false,
    writable: true,
};

const SECTOR: u64 = 512;
const NO_BLOCK: u32 = 0xffff_ffff;

struct Vhd {
    head: Mutex<Head>,
    block_size: u64,
    /// What is put in front of new blocks: ones for every sector, where all of it is the disk's own.
    marks: Vec<u8>,
    base: Option<BackingInfo>,
    warnings: Vec<String>,
}

/// What the footer says and leads to.
struct Head {
    footer: Footer,
    header: Header,
}

impl Vhd {
    fn head(&self) -> MutexGuard<'_, Head> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Head {
    /// Puts a table (if it is a new one), a header and names behind the end of the file, durably, and then has both footers
    /// lead there. Returns where they end.
    fn switch(
        &mut self,
        file: &FencedFile,
        mut footer: Footer,
        mut header: Header,
        table: &[u8],
        name_it: impl FnOnce(&mut Header, u64) -> Option<Vec<u8>>,
    ) -> Result<u64, DiskError> {
        let start = file.len()?.next_multiple_of(SECTOR);
        if !table.is_empty() {
            header.table_offset = start;
        }
        footer.header_offset = start + table.len() as u64;
        let names = name_it(&mut header, footer.header_offset + HEADER_LENGTH as u64);
        let names = names.ok_or_else(|| DiskError::BadOptions {
            reason: "The name of the base file is too long for a VHD disk. Rename it or put it elsewhere".into(),
            path: file.path().to_path_buf(),
        })?;
        header.seal();
        footer.seal();
        let mut tail = table.to_vec();
        tail.extend(header.bytes);
        tail.extend(names);
        let end = start + tail.len() as u64;
        tail.extend(footer.bytes);
        file.write_at(start, &tail)?;
        file.flush()?;
        file.write_at(0, &footer.bytes)?;
        file.flush()?;
        *self = Self { footer, header };
        Ok(end)
    }
}

impl Layout for Vhd {
    fn format(&self) -> Format {
        Format::Vhd
    }

    fn info(&self) -> ImageInfo {
        ImageInfo { cluster_size: Some(self.block_size), backing: self.base.clone(), ..info_of(&self.head().footer) }
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    fn entries(&self, index: usize, block: Block) -> Vec<(u64, Vec<u8>)> {
        let sector = match block {
            Block::Absent | Block::Zero => NO_BLOCK,
            Block::Stored(place) | Block::Partial(place) => ((place - self.marks.len() as u64) / SECTOR) as u32,
        };
        vec![(self.head().header.table_offset + index as u64 * 4, sector.to_be_bytes().to_vec())]
    }

    fn block_head(&self) -> &[u8] {
        &self.marks
    }

    fn max_place(&self) -> u64 {
        // One number stands for "no block".
        u64::from(NO_BLOCK - 1) * SECTOR
    }

    fn before_entries(&self, file: &FencedFile, end: u64, _stored: u64) -> Result<(), DiskError> {
        file.write_at(end, &self.head().footer.bytes)
    }

    fn tail_length(&self) -> u64 {
        FOOTER_LENGTH as u64
    }

    fn grow(&self, file: &FencedFile, growth: Growth) -> Result<Grown, DiskError> {
        let Growth { size, old_blocks, blocks, .. } = growth;
        check_size(file, size)?;
        let mut head = self.head();
        let mut header = head.header.clone();
        let mut table = vec![0; old_blocks as usize * 4];
        file.read_exact(header.table_offset, &mut table)?;
        header.entries = blocks;
        table.resize(header.table_length() as usize, 0xff);
        let footer = Footer { size, ..head.footer };
        // The names of a base stay where they are.
        let end = head.switch(file, footer, header, &table, |_, _| Some(Vec::new()))?;
        Ok(Grown { end, new_blocks: Vec::new() })
    }

    fn set_base(&self, file: &FencedFile, base: Option<(&Backing, Identity)>, end: &mut u64) -> Result<(), DiskError> {
        let mut head = self.head();
        let kind = if base.is_some() { DIFFERENCING } else { DYNAMIC };
        let (footer, header) = (Footer { kind, ..head.footer }, head.header.clone());
        *end = head.switch(file, footer, header, &[], |header, names_at| header.set_base(file.path(), base, names_at))?;
        Ok(())
    }
}

fn info_of(footer: &Footer) -> ImageInfo {
    ImageInfo { identity: Some(Identity { disk: footer.id, content: 0 }), ..ImageInfo::default() }
}

fn wrong(file: &FencedFile, detail: &str) -> DiskError {
    DiskError::WrongFormat { expected: DRIVER.title, detail: detail.into(), path: file.path().into() }
}

fn check_size(file: &FencedFile, size: u64) -> Result<(), DiskError> {
    if size <= create::MAX_SIZE {
        return Ok(());
    }
    let reason = "A VHD disk cannot be larger than 2,040 GiB. Use VHDX or qcow2 for that".into();
    Err(DiskError::BadOptions { reason, path: file.path().to_path_buf() })
}

fn open(opening: Opening<'_>) -> Result<Arc<dyn DiskImage>, DiskError> {
    let Opening { file, access, chain, .. } = opening;
    let fenced = FencedFile::new(Arc::clone(&file));
    let footer = Footer::read(&fenced)?;
    match footer.kind {
        FIXED => {
            if fenced.len()? < footer.size {
                return Err(wrong(&fenced, "it is shorter than its size"));
            }
            let end = footer.place + FOOTER_LENGTH as u64;
            if access == Access::ReadWrite && end < fenced.len()? {
                // It began to grow, and never came to its new footer.
                fenced.truncate(end)?;
                fenced.flush()?;
            }
            let flat = Flat::new(fenced, access, Format::Vhd, 0, footer.size, info_of(&footer));
            Ok(Arc::new(flat.growing_by(move |file, old, new| grow_fixed(file, footer, old, new))))
        }
        DYNAMIC | DIFFERENCING => {
            let header = Header::read(&fenced, &footer)?;
            let table = header.read_table(&fenced, footer.size)?;
            let record = header.base(&fenced, &footer)?;
            let is_differencing = record.is_some();
            let (mut base, mut base_info, mut warnings, mut names_end) = (Base::None, None, Vec::new(), 0);
            if let Some(record) = record {
                let name = record.name.unwrap_or_else(|| format!("{{{}}}.vhd", uuid::Uuid::from_u128(record.id)));
                let backing = Backing { name: name.clone(), format: Format::Vhd };
                base = Base::open(chain, fenced.path(), &backing, |identity| identity.disk == record.id)?;
                if base.image().is_some() && time_of_file(fenced.path(), &name) != record.time {
                    warnings.push(format!(
                        "The file \"{}\" that this disk is built on was written to after this disk was made. If that was more \
                         than a copy, the content of this disk no longer fits it.",
                        name.escape_debug()
                    ));
                }
                base_info = Some(BackingInfo { name, format: Some(DRIVER.name.into()) });
                names_end = record.end;
            }
            let marks_length = header.marks_length();
            let block = |sector: &u32| match *sector {
                NO_BLOCK => Block::Absent,
                sector if is_differencing => Block::Partial(u64::from(sector) * SECTOR + marks_length),
                sector => Block::Stored(u64::from(sector) * SECTOR + marks_length),
            };
            let blocks = table.iter().map(block).collect();
            let mut reserved = vec![(footer.header_offset, HEADER_LENGTH as u64), (header.table_offset, table.len() as u64 * 4)];
            let ends = reserved.iter().map(|(start, length)| start + length);
            let first_free = ends.max().unwrap_or(0).max(header.table_offset + header.entries * 4).max(names_end);
            let has_no_copy = footer.place > 0;
            if has_no_copy {
                reserved.push((footer.place, FOOTER_LENGTH as u64));
            }
            let marks = is_differencing.then_some(MarksLayout {
                sector_size: SECTOR,
                order: BitOrder::HighestFirst,
                home: MarksHome::BlockHead,
            });
            let layout = Vhd {
                block_size: header.block_size,
                marks: vec![0xff; marks_length as usize],
                head: Mutex::new(Head { footer, header }),
                base: base_info,
                warnings,
            };
            let block_size = layout.block_size;
            let opened = Opened {
                first_free: first_free.next_multiple_of(SECTOR),
                base,
                marks,
                reserved,
                ..Opened::new(layout, footer.size, block_size, blocks, FOOTER_LENGTH as u64)
            };
            let disk = BlockTableDisk::new(file, access, opened)?;
            if has_no_copy && access == Access::ReadWrite {
                // New blocks go where the footer is, and a crash before it stands behind them would leave none.
                fenced.write_at(0, &footer.bytes)?;
                fenced.flush()?;
            }
            Ok(Arc::new(disk))
        }
        kind => Err(wrong(&fenced, &format!("its kind {kind} does not exist"))),
    }
}

/// A larger fixed disk, whose only footer must be at the file's end at every instant: first a footer, which still tells the
/// old size, at its new place; then zeros where the old one stood and whatever else was behind the disk; and then the size.
fn grow_fixed(file: &FencedFile, footer: Footer, old: u64, new: u64) -> Result<(), DiskError> {
    const LENGTH: u64 = FOOTER_LENGTH as u64;
    check_size(file, new)?;
    let place = file.len()?.saturating_sub(LENGTH);
    let new_place = if new <= place { place } else { new.max((place + LENGTH).next_multiple_of(SECTOR)) };
    let mut moved = Footer { size: old, ..footer };
    moved.seal();
    if new_place > place {
        let begun = file.truncate(new_place + LENGTH).and_then(|()| file.write_at(new_place, &moved.bytes));
        if let Err(error) = begun {
            // Where this fails as well, the next one to open the disk finds the footer before the zeros.
            file.truncate(place + LENGTH).ok();
            return Err(error);
        }
        file.flush()?;
    }
    let stale = new.min(place + LENGTH) - old;
    if !file.punch_hole(old, stale)? {
        file.write_zeros(old, stale)?;
    }
    file.flush()?;
    moved.size = new;
    moved.seal();
    file.write_at(new_place, &moved.bytes)?;
    file.flush()
}

/// Every entry points inside the file, and no two blocks share a place, also not with what tells where they are.
fn check(file: Arc<dyn BlockFile>, repair: Repair) -> Result<CheckReport, DiskError> {
    let file = FencedFile::new(file);
    let footer = Footer::read(&file)?;
    let end = file.len()?;
    if footer.kind == FIXED {
        let mut report = CheckReport { image_end: footer.size + FOOTER_LENGTH as u64, ..CheckReport::default() };
        if end < footer.size {
            report.error("the file is shorter than its disk".into());
        }
        if footer.place + (FOOTER_LENGTH as u64) < end {
            report.note("the file goes on behind its footer".into());
            if repair == Repair::Nothing {
                report.leaks = 1;
            } else {
                file.truncate(footer.place + FOOTER_LENGTH as u64)?;
                file.flush()?;
                report.leaks_fixed = 1;
            }
        }
        return Ok(report);
    }
    let header = Header::read(&file, &footer)?;
    let table = header.read_table(&file, footer.size)?;
    let length = header.marks_length() + header.block_size;
    let mut report = CheckReport { total_clusters: table.len() as u64, ..CheckReport::default() };
    let mut places: Vec<(u64, u32)> = Vec::new();
    for (index, sector) in table.iter().enumerate().filter(|(_, sector)| **sector != NO_BLOCK) {
        report.allocated_clusters += 1;
        places.push((u64::from(*sector) * SECTOR, index as u32));
    }
    places.sort_unstable();
    for (place, index) in &places {
        if *place < FOOTER_LENGTH as u64 {
            report.error_with(|| format!("block {index} lies in the headers"));
        } else if place + length > end {
            report.error_with(|| format!("block {index} lies past the end of the file"));
        }
        report.image_end = report.image_end.max(place + length);
    }
    for pair in places.windows(2).filter(|pair| pair[1].0 - pair[0].0 < length) {
        report.error_with(|| format!("block {} overlaps block {}", pair[1].1, pair[0].1));
    }
    for (start, size) in [(footer.header_offset, HEADER_LENGTH as u64), (header.table_offset, table.len() as u64 * 4)] {
        let after = places.partition_point(|(place, _)| place + length <= start);
        if let Some((_, index)) = places.get(after).filter(|(place, _)| *place < start.saturating_add(size)) {
            report.error(format!("block {index} overlaps the header or the table"));
        }
    }
    Ok(report)
}
