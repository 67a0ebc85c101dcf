//! VDI, VirtualBox's disk: blocks of one mebibyte and a table of them.
//!
//! Done: dynamic, fixed and differencing disks, read and written; growing, and shrinking where nothing is lost. A
//! differencing disk knows its base only by an identifier, which VirtualBox's register turns into a file; we look for it
//! among the VDI files in the disk's folder and the one above it, which is where VirtualBox puts them.
//! See: the structures in VirtualBox's documentation of VDI; limits as QEMU sets them.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::DiskError;
use crate::block_file::{Access, BlockFile};
use crate::block_table::{Block, BlockTableDisk, Grown, Growth, Layout, MAX_BLOCKS, Opened};
use crate::check::{CheckReport, Repair};
use crate::fenced_file::FencedFile;
use crate::fields::{Fields, put};
use crate::formats::{Driver, Format, Opening};
use crate::host_file::HostFile;
use crate::image_info::{BackingInfo, Identity, ImageInfo};
use crate::open::{Backing, Chain, CreateOptions, Preallocation};
use crate::parent::{Base, identify};

pub(crate) const DRIVER: Driver = Driver {
    format: Format::Vdi,
    name: "vdi",
    title: "VDI disk",
    recognise: |head| Fields(head).le32(0x40) == SIGNATURE,
    open: |opening| {
        let Opening { file, access, chain, .. } = opening;
        let opened = read(&FencedFile::new(Arc::clone(&file)), chain)?;
        Ok(Arc::new(BlockTableDisk::new(file, access, opened)?))
    },
    create: Some(create),
    check: Some(check),
    has_snapshots: false,
    writable: true,
};

const SIGNATURE: u32 = 0xbeda_107f;
const VERSION: u32 = 0x0001_0001;
const HEADER_LENGTH: usize = 512;
/// How much of the header its length field counts: from that field on, all up to the identifiers' end.
const COUNTED_LENGTH: u32 = 0x180;
const TEXT: &[u8] = b"<<< Bellglass Virtual Disk Image >>>\n";
const BLOCK_SIZE: u64 = 1 << 20;
const DYNAMIC: u32 = 1;
const FIXED: u32 = 2;
const UNDO: u32 = 3;
const DIFFERENCING: u32 = 4;

const AT_KIND: usize = 0x4c;
const AT_SIZE: u64 = 0x170;
const AT_BLOCKS_ALLOCATED: u64 = 0x184;
/// Identifiers: of the disk, of its content, and both of the base.
const AT_ID: usize = 0x188;
const AT_CONTENT_ID: usize = 0x198;
const AT_BASE_ID: usize = 0x1a8;
const AT_BASE_CONTENT_ID: usize = 0x1b8;
/// Files that are looked at in search of a base.
const MAX_NEIGHBOURS: usize = 4096;
const NO_BLOCK: u32 = 0xffff_ffff;
const ZERO_BLOCK: u32 = 0xffff_fffe;

struct Vdi {
    map_offset: u64,
    data_offset: u64,
    is_fixed: bool,
    disk: u128,
    content: Mutex<u128>,
    base: Option<BackingInfo>,
}

impl Vdi {
    fn content(&self) -> MutexGuard<'_, u128> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry_at(&self, index: u64) -> u64 {
        self.map_offset + index * 4
    }

    /// Size, block size, bytes beside each block, and number of blocks stand side by side in one sector.
    fn write_size(&self, file: &FencedFile, size: u64, blocks: u64) -> Result<(), DiskError> {
        let mut fields = [0; 20];
        put(&mut fields, 0, &size.to_le_bytes());
        put(&mut fields, 8, &(BLOCK_SIZE as u32).to_le_bytes());
        put(&mut fields, 16, &(blocks as u32).to_le_bytes());
        file.write_at(AT_SIZE, &fields)?;
        file.flush()
    }
}

impl Layout for Vdi {
    fn format(&self) -> Format {
        Format::Vdi
    }

    fn info(&self) -> ImageInfo {
        ImageInfo {
            cluster_size: Some(BLOCK_SIZE),
            backing: self.base.clone(),
            identity: Some(Identity { disk: self.disk, content: *self.content() }),
            ..ImageInfo::default()
        }
    }

    fn entries(&self, index: usize, block: Block) -> Vec<(u64, Vec<u8>)> {
        let number = match block {
            Block::Absent => NO_BLOCK,
            Block::Zero => ZERO_BLOCK,
            Block::Stored(place) | Block::Partial(place) => ((place - self.data_offset) / BLOCK_SIZE) as u32,
        };
        vec![(self.entry_at(index as u64), number.to_le_bytes().to_vec())]
    }

    fn alignment(&self) -> u64 {
        // The first block lies at `data_offset`, which need not be a multiple of the block size; all others follow it.
        1
    }

    fn keeps_zeros(&self) -> bool {
        true
    }

    /// The count first: a table that knows more blocks than the header counts is damaged to others.
    fn before_entries(&self, file: &FencedFile, end: u64, _stored: u64) -> Result<(), DiskError> {
        let count = (end.saturating_sub(self.data_offset) / BLOCK_SIZE) as u32;
        file.write_at(AT_BLOCKS_ALLOCATED, &count.to_le_bytes())
    }

    fn begin_change(&self, file: &FencedFile) -> Result<(), DiskError> {
        let content = uuid::Uuid::new_v4();
        file.write_at(AT_CONTENT_ID as u64, content.as_bytes())?;
        file.flush()?;
        *self.content() = content.as_u128();
        Ok(())
    }

    fn grow(&self, file: &FencedFile, growth: Growth) -> Result<Grown, DiskError> {
        let Growth { size, old_blocks, blocks, end } = growth;
        if self.entry_at(blocks) > self.data_offset {
            let reason = "This VDI disk has no room for a larger table. Convert it to a new one".into();
            return Err(DiskError::BadOptions { reason, path: file.path().to_path_buf() });
        }
        let new_blocks: Vec<Block> = match self.is_fixed {
            true => (0..blocks - old_blocks).map(|number| Block::Stored(end + number * BLOCK_SIZE)).collect(),
            false => Vec::new(),
        };
        let new_end = end + new_blocks.len() as u64 * BLOCK_SIZE;
        if self.is_fixed {
            // Cut and grown, so that nothing that a crash left there becomes content.
            file.truncate(end)?;
            file.truncate(new_end)?;
            self.before_entries(file, new_end, blocks)?;
            file.flush()?;
        }
        let entry = |index: u64| new_blocks.get((index - old_blocks) as usize).copied().unwrap_or(Block::Absent);
        let entries = (old_blocks..blocks).flat_map(|index| self.entries(index as usize, entry(index)));
        let entries: Vec<u8> = entries.flat_map(|(_, bytes)| bytes).collect();
        file.write_at(self.entry_at(old_blocks), &entries)?;
        file.flush()?;
        self.write_size(file, size, blocks)?;
        Ok(Grown { end: new_end, new_blocks })
    }

    fn shrink(&self, file: &FencedFile, size: u64, blocks: u64) -> Result<(), DiskError> {
        self.write_size(file, size, blocks)
    }

    /// All of it stands in the header's one sector.
    fn set_base(&self, file: &FencedFile, base: Option<(&Backing, Identity)>, _end: &mut u64) -> Result<(), DiskError> {
        let base = base.map(|(backing, _)| identity_of_base(file.path(), backing)).transpose()?;
        let mut header = [0; HEADER_LENGTH];
        file.read_exact(0, &mut header)?;
        put_base(&mut header, base);
        file.write_at(0, &header)?;
        file.flush()
    }
}

/// Makes a header that of a differencing disk, or of one that stands by itself.
fn put_base(header: &mut [u8; HEADER_LENGTH], base: Option<Identity>) {
    let kind = if base.is_some() { DIFFERENCING } else { DYNAMIC };
    let Identity { disk, content } = base.unwrap_or(Identity { disk: 0, content: 0 });
    put(header, AT_KIND, &kind.to_le_bytes());
    put(header, AT_BASE_ID, &disk.to_be_bytes());
    put(header, AT_BASE_CONTENT_ID, &content.to_be_bytes());
}

/// The header's figures, checked as far as they concern only each other.
struct Header {
    map_offset: u64,
    data_offset: u64,
    size: u64,
    blocks: u64,
    allocated: u64,
    is_fixed: bool,
    identity: Identity,
    /// What it remembers of its base.
    base: Option<Identity>,
}

fn read_header(file: &FencedFile) -> Result<Header, DiskError> {
    let wrong = |detail: &str| DiskError::WrongFormat { expected: DRIVER.title, detail: detail.into(), path: file.path().into() };
    let unsupported = |feature: String| DiskError::Unsupported { feature, path: file.path().into() };
    let mut bytes = [0; HEADER_LENGTH];
    file.read_zero_padded(0, &mut bytes)?;
    let fields = Fields(&bytes);
    if fields.le32(0x40) != SIGNATURE {
        return Err(wrong("its signature is missing"));
    }
    if fields.le32(0x44) != VERSION {
        return Err(unsupported(format!("VDI version {}.{}", fields.le32(0x44) >> 16, fields.le32(0x44) & 0xffff)));
    }
    let kind = fields.le32(AT_KIND);
    match kind {
        DYNAMIC | FIXED | DIFFERENCING => {}
        UNDO => return Err(unsupported("VirtualBox's undo blocks".into())),
        kind => return Err(wrong(&format!("its kind {kind} does not exist"))),
    }
    let (sector_size, block_size) = (fields.le32(0x168), fields.le32(0x178));
    if sector_size != 512 {
        return Err(unsupported(format!("sectors of {sector_size} bytes")));
    }
    if u64::from(block_size) != BLOCK_SIZE || fields.le32(0x17c) != 0 {
        return Err(unsupported(format!("blocks of {block_size} bytes with {} more", fields.le32(0x17c))));
    }
    let identity =
        |disk, content| Identity { disk: u128::from_be_bytes(fields.id(disk)), content: u128::from_be_bytes(fields.id(content)) };
    let base = identity(AT_BASE_ID, AT_BASE_CONTENT_ID);
    let no_base = Identity { disk: 0, content: 0 };
    if (base != no_base) != (kind == DIFFERENCING) {
        return Err(wrong("its kind and its base do not fit each other"));
    }
    let header = Header {
        map_offset: fields.le32(0x154).into(),
        data_offset: fields.le32(0x158).into(),
        size: fields.le64(0x170),
        blocks: fields.le32(0x180).into(),
        allocated: fields.le32(0x184).into(),
        is_fixed: kind == FIXED,
        identity: identity(AT_ID, AT_CONTENT_ID),
        base: Some(base).filter(|base| *base != no_base),
    };
    let end = file.len()?;
    let map_end = header.map_offset + header.blocks * 4;
    if header.blocks > MAX_BLOCKS || header.size > header.blocks * BLOCK_SIZE {
        return Err(wrong("its size and its number of blocks do not fit each other"));
    }
    if header.map_offset < HEADER_LENGTH as u64 || map_end > header.data_offset || map_end > end {
        return Err(wrong("its table lies outside the file, or in its other parts"));
    }
    Ok(header)
}

fn read_map(file: &FencedFile, header: &Header) -> Result<Vec<u32>, DiskError> {
    let mut bytes = vec![0; header.blocks as usize * 4];
    file.read_exact(header.map_offset, &mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|entry| Fields(entry).le32(0)).collect())
}

fn read(file: &FencedFile, chain: &Chain) -> Result<Opened<Vdi>, DiskError> {
    let header = read_header(file)?;
    let needed = header.size.div_ceil(BLOCK_SIZE) as usize;
    let block = |entry: u32| match entry {
        NO_BLOCK => Block::Absent,
        ZERO_BLOCK => Block::Zero,
        number => Block::Stored(header.data_offset + u64::from(number) * BLOCK_SIZE),
    };
    let blocks = read_map(file, &header)?.into_iter().take(needed).map(block).collect();
    let base_name = header.base.map(|base| name_of_base(file.path(), chain, base.disk));
    let base = match (&header.base, &base_name) {
        (Some(expected), Some(name)) => {
            let backing = Backing { name: name.clone(), format: Format::Vdi };
            Base::open(chain, file.path(), &backing, |identity| identity == expected)?
        }
        _ => Base::None,
    };
    let layout = Vdi {
        map_offset: header.map_offset,
        data_offset: header.data_offset,
        is_fixed: header.is_fixed,
        disk: header.identity.disk,
        content: Mutex::new(header.identity.content),
        base: base_name.map(|name| BackingInfo { name, format: Some(DRIVER.name.into()) }),
    };
    Ok(Opened { base, ..Opened::new(layout, header.size, BLOCK_SIZE, blocks, header.data_offset) })
}

/// The file beside the disk, or in the folder above, that has this identifier; if there is none, what VirtualBox would
/// call it.
fn name_of_base(overlay: &Path, chain: &Chain, disk: u128) -> String {
    let own = overlay.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let places = [("", own.to_path_buf()), ("../", own.join(".."))];
    for (prefix, folder) in &places[..if chain.keeps_to_its_folder() { 1 } else { 2 }] {
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        for entry in entries.flatten().take(MAX_NEIGHBOURS) {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| name.to_ascii_lowercase().ends_with(".vdi")) else { continue };
            let has_id = |path: &Path| {
                let file = HostFile::open(path, Access::ReadOnly).ok()?;
                let mut header = [0; HEADER_LENGTH];
                file.read_at(0, &mut header).ok()?;
                let fields = Fields(&header);
                (fields.le32(0x40) == SIGNATURE && u128::from_be_bytes(fields.id(AT_ID)) == disk).then_some(())
            };
            if has_id(&entry.path()).is_some() {
                return format!("{prefix}{name}");
            }
        }
    }
    format!("{{{}}}.vdi", uuid::Uuid::from_bytes_le(disk.to_be_bytes()))
}

fn create(file: &dyn BlockFile, options: &CreateOptions) -> Result<(), DiskError> {
    let refuse = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: file.path().to_path_buf() };
    let host = |source| DiskError::host("create", file.path(), source);
    let base = match &options.backing {
        None => None,
        Some(backing) => Some(identity_of_base(file.path(), backing)?),
    };
    let blocks = options.size.div_ceil(BLOCK_SIZE);
    if blocks > MAX_BLOCKS {
        return Err(refuse("This is larger than a VDI disk of ours can be (16 TiB). Choose a smaller size, or qcow2"));
    }
    let is_fixed = options.preallocation != Preallocation::Off;
    if is_fixed && base.is_some() {
        return Err(refuse("A fixed VDI disk cannot be built on another file. Use a dynamic one"));
    }
    let allocated = if is_fixed { blocks } else { 0 };
    // Room for the table to grow: the hole between costs nothing.
    let data_offset = (HEADER_LENGTH as u64 + blocks * 4).next_multiple_of(BLOCK_SIZE);
    let mut header = [0; HEADER_LENGTH];
    put(&mut header, 0, TEXT);
    for (at, value) in [
        (0x40, SIGNATURE),
        (0x44, VERSION),
        (0x48, COUNTED_LENGTH),
        (AT_KIND, if is_fixed { FIXED } else { DYNAMIC }),
        (0x154, HEADER_LENGTH as u32),
        (0x158, data_offset as u32),
        (0x168, 512),
        (0x178, BLOCK_SIZE as u32),
        (0x180, blocks as u32),
        (0x184, allocated as u32),
    ] {
        put(&mut header, at, &value.to_le_bytes());
    }
    put(&mut header, 0x170, &options.size.to_le_bytes());
    put(&mut header, AT_ID, uuid::Uuid::new_v4().as_bytes());
    put(&mut header, AT_CONTENT_ID, uuid::Uuid::new_v4().as_bytes());
    if base.is_some() {
        put_base(&mut header, base);
    }
    let entry = |number: u32| if is_fixed { number } else { NO_BLOCK };
    let map: Vec<u8> = (0..blocks as u32).flat_map(|number| entry(number).to_le_bytes()).collect();
    file.truncate(data_offset + allocated * BLOCK_SIZE).map_err(host)?;
    file.write_at(HEADER_LENGTH as u64, &map).map_err(host)?;
    file.write_at(0, &header).map_err(host)
}

/// What to remember of a base. It must lie where it will be found again.
fn identity_of_base(overlay: &Path, backing: &Backing) -> Result<Identity, DiskError> {
    let (identity, _) = identify(overlay, backing, Format::Vdi)?;
    let place = |name: &str| overlay.parent().unwrap_or(Path::new("")).join(name).canonicalize().ok();
    if place(&name_of_base(overlay, &Chain::default(), identity.disk)) != place(&backing.name) {
        let reason = "A VDI disk finds its base only in its own folder or the one above, by an identifier that no other file \
                      there has. Put the base there under a name that ends in .vdi"
            .into();
        return Err(DiskError::BadOptions { reason, path: overlay.to_path_buf() });
    }
    Ok(identity)
}

/// Every entry points inside the file, at a place of its own, and as many as the header counts.
fn check(file: Arc<dyn BlockFile>, repair: Repair) -> Result<CheckReport, DiskError> {
    let file = FencedFile::new(file);
    let header = read_header(&file)?;
    let end = file.len()?;
    let mut report = CheckReport { total_clusters: header.blocks, ..CheckReport::default() };
    let mut inside = Vec::new();
    for (index, number) in read_map(&file, &header)?.into_iter().enumerate() {
        if number >= ZERO_BLOCK {
            continue;
        }
        report.allocated_clusters += 1;
        let place = header.data_offset + u64::from(number) * BLOCK_SIZE;
        if place >= end {
            report.error_with(|| format!("block {index} lies past the end of the file"));
        } else {
            inside.push((number, index as u32));
        }
        report.image_end = report.image_end.max(place + BLOCK_SIZE);
    }
    inside.sort_unstable();
    for pair in inside.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
        report.error_with(|| format!("block {} shares its place with another", pair[1].1));
    }
    let known = inside.last().map_or(0, |(last, _)| u64::from(*last) + 1);
    if known > header.allocated {
        report.error(format!("the header counts {} blocks, and the table has {known}", header.allocated));
    }
    // Written before a crash, and never found its way into the table.
    report.leaks = header.allocated.max(known).saturating_sub(report.allocated_clusters);
    if repair != Repair::Nothing && header.allocated != known && report.errors <= 1 {
        file.write_at(AT_BLOCKS_ALLOCATED, &(known as u32).to_le_bytes())?;
        file.flush()?;
        // Where two entries share a block, fewer are known than entries have one.
        let still = known.saturating_sub(report.allocated_clusters);
        (report.leaks_fixed, report.leaks) = (report.leaks.saturating_sub(still), still);
        if known > header.allocated {
            (report.errors_fixed, report.errors) = (1, report.errors - 1);
        }
    }
    Ok(report)
}
