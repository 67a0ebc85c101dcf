//! Fuzzing: images of every format, damaged with an eye for their structure, for as long as one likes.
//!
//! ```text
//! DISK_FUZZ_SECONDS=600 cargo test --release -p engine_disk -- --ignored --nocapture fuzz_qcow2     (or another target)
//! ```
//!
//! An input is a sound image and a list of changes to it. Changes hit what is not zero: words become values that parsers
//! trip over, other words of the file, or pointers somewhere near; checksums are usually made right again, because
//! otherwise nothing behind them would ever be reached. Inputs that end in a way not seen before (what opening, reading,
//! writing and checking answered) are kept and changed further. Whatever the input, each must come back within
//! [`MOST_TIME`] without a panic, and what was written and flushed must be read again.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashSet};
use std::hash::{Hash, Hasher};
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::block_file::{Access, BlockFile, FileIdentity, read_zero_padded};
use crate::check::Repair;
use crate::formats::Opening;
use crate::image::DiskImage;
use crate::open::{Backing, Chain, CreateOptions, Preallocation};
use crate::sim_file::{SimFile, next};
use crate::{Compression, DiskError, Format, NewSnapshot, Qcow2Options, VmdkKind, VmdkOptions, vhd, vhdx, vmdk};

/// What one input may cost, in processor time.
pub(crate) const MOST_TIME: Duration = Duration::from_secs(2);
/// What one input may write before its host is full.
const MOST_WRITTEN: usize = 16 << 20;
/// So many inputs with an end of their own are kept.
const MOST_KEPT: usize = 4000;
const PAGE: u64 = 4096;

/// A file of which only changed pages are copied, so that an input of mebibytes costs little.
struct ChangedFile {
    base: Arc<[u8]>,
    state: Mutex<Changes>,
    path: PathBuf,
}

struct Changes {
    pages: BTreeMap<u64, Box<[u8]>>,
    size: u64,
    /// How much of the base still shows.
    shown: u64,
}

impl ChangedFile {
    fn new(base: &Arc<[u8]>) -> Self {
        let size = base.len() as u64;
        let state = Mutex::new(Changes { pages: BTreeMap::new(), size, shown: size });
        Self { base: Arc::clone(base), state, path: "/simulated/disk".into() }
    }

    fn state(&self) -> MutexGuard<'_, Changes> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn page(&self, state: &Changes, number: u64) -> Box<[u8]> {
        if let Some(page) = state.pages.get(&number) {
            return page.clone();
        }
        let mut page = vec![0; PAGE as usize];
        let (start, end) = (number.saturating_mul(PAGE), (number + 1).saturating_mul(PAGE).min(state.shown));
        if let Some(bytes) = self.base.get(start as usize..end.max(start) as usize) {
            page[..bytes.len()].copy_from_slice(bytes);
        }
        page.into()
    }

    /// Changes part of a page.
    fn change(&self, state: &mut Changes, at: u64, bytes: &[u8]) -> io::Result<()> {
        let number = at / PAGE;
        if !state.pages.contains_key(&number) {
            if (state.pages.len() + 1) * PAGE as usize > MOST_WRITTEN {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let page = self.page(state, number);
            state.pages.insert(number, page);
        }
        let from = (at % PAGE) as usize;
        if let Some(page) = state.pages.get_mut(&number) {
            page[from..from + bytes.len()].copy_from_slice(bytes);
        }
        Ok(())
    }
}

/// The pieces of a range that lie in one page each: position, start and end in the range.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset.checked_add(done as u64)?;
        let piece = ((PAGE - at % PAGE) as usize).min(length - done);
        let range = done..done + piece;
        done += piece;
        (piece > 0).then_some((at, range))
    })
}

impl BlockFile for ChangedFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let state = self.state();
        let length = state.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        for (at, range) in pieces(offset, length) {
            let from = (at % PAGE) as usize;
            buffer[range.clone()].copy_from_slice(&self.page(&state, at / PAGE)[from..from + range.len()]);
        }
        Ok(length)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= i64::MAX as u64);
        let end = end.ok_or(io::ErrorKind::FileTooLarge)?;
        let mut state = self.state();
        for (at, range) in pieces(offset, data.len()) {
            self.change(&mut state, at, &data[range])?;
        }
        state.size = state.size.max(end);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut state = self.state();
        let end = offset.saturating_add(length).min(state.size);
        // Beyond the base and the changes there is nothing to turn into zeros.
        let end = end.min(state.shown.max(state.pages.keys().last().map_or(0, |last| (last + 1) * PAGE)));
        for (at, range) in pieces(offset, end.saturating_sub(offset) as usize) {
            self.change(&mut state, at, &[0; PAGE as usize][..range.len()])?;
        }
        Ok(())
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        if length > MOST_WRITTEN as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut state = self.state();
        state.size = state.size.max(offset.saturating_add(length));
        Ok(())
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        if size > i64::MAX as u64 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut state = self.state();
        if size < state.size {
            let tail = size.next_multiple_of(PAGE) - size;
            if tail > 0 {
                self.change(&mut state, size, &[0; PAGE as usize][..tail as usize])?;
            }
            state.pages.split_off(&size.div_ceil(PAGE));
            state.shown = state.shown.min(size);
        }
        state.size = size;
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state().size)
    }

    fn lock(&self, _access: Access) -> io::Result<()> {
        Ok(())
    }

    fn identity(&self) -> Option<FileIdentity> {
        None
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// A parser under fire.
pub(crate) struct Target {
    pub(crate) format: Format,
    /// Sound images to begin with.
    seeds: fn() -> Vec<Vec<u8>>,
    /// Makes the checksums right again.
    seal: fn(&dyn BlockFile),
}

/// All of them but LUKS, which has its own.
pub(crate) const TARGETS: [Target; 6] = [QCOW2, VDI, VHD, VHDX, VMDK, ISO];
const QCOW2: Target = Target { format: Format::Qcow2, seeds: qcow2_seeds, seal: |_| {} };
const VDI: Target = Target { format: Format::Vdi, seeds: vdi_seeds, seal: |_| {} };
const VHD: Target = Target { format: Format::Vhd, seeds: vhd_seeds, seal: seal_vhd };
const VHDX: Target = Target { format: Format::Vhdx, seeds: vhdx_seeds, seal: seal_vhdx };
const VMDK: Target = Target { format: Format::Vmdk, seeds: vmdk_seeds, seal: |_| {} };
/// Discs, and what else a file can be taken for.
const ISO: Target = Target { format: Format::Iso, seeds: iso_seeds, seal: |_| {} };

fn open(format: Format, file: &Arc<dyn BlockFile>, access: Access) -> Result<Arc<dyn DiskImage>, DiskError> {
    (format.driver().open)(Opening::of(Arc::clone(file), access, &Chain::leaving_out()))
}

/// An image made by `create`, then worked with.
fn seed(format: Format, create: impl FnOnce(&dyn BlockFile), work: impl FnOnce(&dyn DiskImage)) -> Vec<u8> {
    let file = Arc::new(SimFile::new(Vec::new()));
    create(&*file);
    let dynamic: Arc<dyn BlockFile> = Arc::clone(&file) as _;
    work(&*open(format, &dynamic, Access::ReadWrite).unwrap());
    file.content()
}

fn create(options: CreateOptions) -> impl FnOnce(&dyn BlockFile) {
    move |file| options.format.driver().create.unwrap()(file, &options).unwrap()
}

fn qcow2_seeds() -> Vec<Vec<u8>> {
    let kinds = [
        (512, 16, 3, false),
        (512, 1, 3, false),
        (4096, 64, 3, false),
        (512, 16, 2, false),
        (65536, 16, 3, false),
        (16384, 16, 3, true),
    ];
    let mut seeds = Vec::new();
    for (cluster_size, refcount_bits, version, extended_l2) in kinds {
        for compression in [Compression::Deflate, Compression::Zstd] {
            if version == 2 && compression == Compression::Zstd {
                continue;
            }
            let qcow2 =
                Qcow2Options { cluster_size, refcount_bits, version, compression, extended_l2, ..Qcow2Options::default() };
            let options = CreateOptions { qcow2, ..CreateOptions::new(Format::Qcow2, 24 * cluster_size) };
            seeds.push(seed(Format::Qcow2, create(options), |disk| {
                disk.write_at(0, &[7; 100]).unwrap();
                disk.write_compressed(4 * cluster_size, &vec![8; 2 * cluster_size as usize]).unwrap();
                if refcount_bits > 1 {
                    disk.create_snapshot(&NewSnapshot { name: "s".into(), ..NewSnapshot::default() }).unwrap();
                }
                // Bitmaps that are up to date, one of which follows; version 2 has none.
                let bitmaps = disk.bitmaps().unwrap();
                if version == 3 && compression == Compression::Deflate {
                    bitmaps.add("halted", None).unwrap();
                    bitmaps.set_enabled("halted", false).unwrap();
                    bitmaps.add("b", Some(512)).unwrap();
                }
                disk.write_at(cluster_size, &[9; 100]).unwrap();
                disk.write_zeroes(10 * cluster_size, cluster_size / 2).unwrap();
            }));
        }
    }
    seeds
}

/// A disk that is built on another, with a little of its own. Its base is gone when it is looked at.
fn differencing_seed(format: Format, create: impl FnOnce(&dyn BlockFile, &Backing)) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let name = format!("base.{format}").replace("vpc", "vhd");
    crate::create(&folder.path().join(&name), &CreateOptions::new(format, 3 << 20)).unwrap();
    let file = Arc::new(SimFile::new(Vec::new()).named(folder.path().join("disk")));
    create(&*file, &Backing { name, format });
    let dynamic: Arc<dyn BlockFile> = Arc::clone(&file) as _;
    let disk = open(format, &dynamic, Access::ReadWrite).unwrap();
    disk.write_at(1000, &[7; 3000]).unwrap();
    disk.write_zeroes(2 << 20, 1 << 20).unwrap();
    disk.write_at((1 << 20) + 512, &[8; 512]).unwrap();
    drop(disk);
    file.content()
}

fn vdi_seeds() -> Vec<Vec<u8>> {
    let mut seeds = plain_vdi_seeds();
    seeds.push(differencing_seed(Format::Vdi, |file, backing| {
        let options = CreateOptions { backing: Some(backing.clone()), ..CreateOptions::new(Format::Vdi, 3 << 20) };
        create(options)(file);
    }));
    seeds
}

fn plain_vdi_seeds() -> Vec<Vec<u8>> {
    [Preallocation::Off, Preallocation::Full]
        .map(|preallocation| {
            let options = CreateOptions { preallocation, ..CreateOptions::new(Format::Vdi, 3 << 20) };
            seed(Format::Vdi, create(options), |disk| {
                disk.write_at(2 << 20, &[7; 100]).unwrap();
                disk.write_at(0, &[8; 100]).unwrap();
            })
        })
        .into()
}

fn vhd_seeds() -> Vec<Vec<u8>> {
    let write = |disk: &dyn DiskImage| {
        disk.write_at(40 << 10, &[7; 100]).unwrap();
        disk.write_at(0, &[8; 100]).unwrap();
    };
    let fixed = CreateOptions { preallocation: Preallocation::Full, ..CreateOptions::new(Format::Vhd, 64 << 10) };
    vec![
        seed(Format::Vhd, |file| vhd::create_small(file, 64 << 10), write),
        seed(Format::Vhd, create(CreateOptions::new(Format::Vhd, 8 << 20)), write),
        seed(Format::Vhd, create(fixed), write),
        differencing_seed(Format::Vhd, vhd::create_small_over),
    ]
}

fn vhdx_seeds() -> Vec<Vec<u8>> {
    let write = |disk: &dyn DiskImage| disk.write_at(1 << 20, &[7; 100]).unwrap();
    vec![
        seed(Format::Vhdx, |file| vhdx::create_small(file, 3 << 20), write),
        vhdx::image_with_log(5),
        differencing_seed(Format::Vhdx, vhdx::create_small_over),
    ]
}

fn vmdk_seeds() -> Vec<Vec<u8>> {
    let write = |disk: &dyn DiskImage| {
        disk.write_at(40 << 10, &[7; 100]).unwrap();
        disk.write_at(0, &[8; 100]).unwrap();
    };
    let kind = VmdkOptions { kind: VmdkKind::StreamOptimized, ..VmdkOptions::default() };
    let stream = CreateOptions { vmdk: kind, ..CreateOptions::new(Format::Vmdk, 256 << 10) };
    let words = b"# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"custom\"\n\n\
        RW 64 ZERO\nRW 8 ZERO\n\nddb.adapterType = \"ide\"\nddb.geometry.heads = \"16\"\n";
    vec![
        seed(Format::Vmdk, |file| vmdk::create_small(file, 64 << 10), write),
        seed(Format::Vmdk, create(CreateOptions::new(Format::Vmdk, 1 << 20)), write),
        seed(Format::Vmdk, create(stream), |disk| {
            disk.write_compressed(0, &[8; 64 << 10]).unwrap();
            disk.write_compressed(128 << 10, &[9; 64 << 10]).unwrap();
            disk.flush().unwrap();
        }),
        words.to_vec(),
        differencing_seed(Format::Vmdk, vmdk::create_small_over),
    ]
}

/// Small discs, and one that is a hard disk too. The beginnings of all other formats are among what is put into them.
fn iso_seeds() -> Vec<Vec<u8>> {
    let disc = crate::iso_volume::tests::disc("Debian 12.5.0 amd64 1", 24, 24);
    let mut hybrid = disc.clone();
    hybrid[510..512].copy_from_slice(&[0x55, 0xaa]);
    hybrid[446] = 0x80;
    vec![disc, hybrid, vec![1; 40 << 10]]
}

/// Sums up what stands at `at` and puts the complement at `place` in it.
fn seal_vhd_part(file: &dyn BlockFile, at: u64, length: usize, place: usize) {
    let mut bytes = vec![0; length];
    read_zero_padded(file, at, &mut bytes).unwrap();
    bytes[place..place + 4].fill(0);
    let sum = !bytes.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    file.write_at(at + place as u64, &sum.to_be_bytes()).ok();
}

pub(crate) fn seal_vhd(file: &dyn BlockFile) {
    seal_vhd_part(file, 0, 512, 64);
    let mut offset = [0; 8];
    read_zero_padded(file, 16, &mut offset).unwrap();
    let header = u64::from_be_bytes(offset);
    if header < file.len().unwrap() {
        seal_vhd_part(file, header, 1024, 36);
    }
    if let Some(end) = file.len().unwrap().checked_sub(512) {
        seal_vhd_part(file, end, 512, 64);
    }
}

fn seal_vhdx(file: &dyn BlockFile) {
    let seal = |at: u64, length: usize| {
        let mut bytes = vec![0; length];
        read_zero_padded(file, at, &mut bytes).unwrap();
        bytes[4..8].fill(0);
        file.write_at(at + 4, &crc32c::crc32c(&bytes).to_le_bytes()).ok();
    };
    for (at, length) in [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 64 << 10), (256 << 10, 64 << 10)] {
        if at < file.len().unwrap() {
            seal(at, length);
        }
    }
    let mut start = [0; 12];
    read_zero_padded(file, 1 << 20, &mut start).unwrap();
    let length = u32::from_le_bytes([start[8], start[9], start[10], start[11]]) as usize;
    if start.starts_with(b"loge") && (64..1 << 20).contains(&length) {
        seal(1 << 20, length);
    }
}

/// A sound image and what is changed in it.
#[derive(Clone, Default)]
pub(crate) struct Input {
    seed: usize,
    changes: Vec<(u64, Vec<u8>)>,
    size: Option<u64>,
    is_sealed: bool,
}

pub(crate) struct Fuzzer<'a> {
    target: &'a Target,
    seeds: Vec<Arc<[u8]>>,
    /// For each seed: where something other than zeros stands, in steps of 16 bytes.
    places: Vec<Vec<u64>>,
    random: u64,
}

impl<'a> Fuzzer<'a> {
    pub(crate) fn new(target: &'a Target, random: u64) -> Self {
        let seeds: Vec<Arc<[u8]>> = (target.seeds)().into_iter().map(Arc::from).collect();
        let used = |seed: &Arc<[u8]>| {
            let lines = seed.chunks(16).enumerate().filter(|(_, line)| line.iter().any(|byte| *byte != 0));
            lines.map(|(number, _)| number as u64 * 16).collect()
        };
        let places = seeds.iter().map(used).collect();
        Self { target, seeds, places, random }
    }

    /// The sound images, with nothing changed yet.
    pub(crate) fn sound(&self) -> Vec<Input> {
        (0..self.seeds.len()).map(|seed| Input { seed, ..Input::default() }).collect()
    }

    fn roll(&mut self, sides: usize) -> usize {
        (next(&mut self.random) >> 16) as usize % sides.max(1)
    }

    pub(crate) fn change(&mut self, input: &Input) -> Input {
        let mut input = input.clone();
        for _ in 0..1 + self.roll(4) {
            match self.roll(24) {
                0 if !input.changes.is_empty() => {
                    let index = self.roll(input.changes.len());
                    input.changes.remove(index);
                }
                1 => {
                    let size = self.seeds[input.seed].len();
                    let near = self.place(input.seed);
                    input.size = Some([near, self.roll(size + 8192) as u64, size as u64 + 1][self.roll(3)]);
                }
                _ => {
                    let change = self.one_change(input.seed);
                    input.changes.push(change);
                }
            }
        }
        input.is_sealed = self.roll(16) != 0;
        input
    }

    /// Somewhere that is used, or just beside it.
    fn place(&mut self, seed: usize) -> u64 {
        let index = self.roll(self.places[seed].len());
        let place = self.places[seed][index] + self.roll(16) as u64;
        if self.roll(8) == 0 { place + 16 } else { place }
    }

    fn one_change(&mut self, seed: usize) -> (u64, Vec<u8>) {
        let at = self.place(seed);
        let content = Arc::clone(&self.seeds[seed]);
        let old = |at: u64, width: usize| content.iter().copied().skip(at as usize).take(width);
        let width = [1, 2, 4, 8, 8][self.roll(5)];
        let aligned = at / width as u64 * width as u64;
        let current = old(aligned, width).fold(0, |value, byte| value << 8 | u64::from(byte));
        let value = match self.roll(8) {
            0 => [0, 1, 2, 3, 7, 8, 9, 31, 63, 127, 255, 511, 512, 513, 4095, 4096, 65535, 65536, 1 << 20][self.roll(19)],
            1 => u64::MAX >> self.roll(64),
            2 => 1 << self.roll(64),
            3 => current.wrapping_add([1, 2, 8, 512, 4096, 65536][self.roll(6)]),
            4 => current.wrapping_sub([1, 2, 8, 512, 4096, 65536][self.roll(6)]),
            5 => current ^ 1 << self.roll(64),
            6 => {
                (content.len() as u64).wrapping_add(self.roll(1025) as u64).wrapping_sub(512) / [1, 1, 512, 1 << 20][self.roll(4)]
            }
            _ => next(&mut self.random),
        };
        match self.roll(10) {
            0 => {
                // What stands elsewhere, so that things lead to each other's places.
                let from = self.place(seed) / 8 * 8;
                let width = [4, 8, 16, 32][self.roll(4)];
                (at / 8 * 8, old(from, width).collect())
            }
            1 => {
                const WORDS: [&str; 18] = [
                    "CD001",
                    "EL TORITO SPECIFICATION",
                    "conectix",
                    "vhdxfile",
                    "KDMV",
                    "# Disk DescriptorFile\n",
                    "\"",
                    "\n",
                    "RW 9999999999999 FLAT \"../x\" 0\n",
                    "RW 64 ZERO\n",
                    "=",
                    "parentCID=0\n",
                    "encoding=\"x\"\n",
                    "RW 18446744073709551615 ZERO\n",
                    "RW 1 SPARSE \"disk\"\n",
                    "\0",
                    "createType=\"\n",
                    "CID=zz\n",
                ];
                (at, WORDS[self.roll(WORDS.len())].as_bytes().to_vec())
            }
            2..6 => (aligned, value.to_le_bytes()[..width].to_vec()),
            _ => (aligned, value.to_be_bytes()[8 - width..].to_vec()),
        }
    }

    pub(crate) fn file(&self, input: &Input) -> Arc<dyn BlockFile> {
        let file = ChangedFile::new(&self.seeds[input.seed]);
        for (at, bytes) in &input.changes {
            file.write_at(*at, bytes).ok();
        }
        if let Some(size) = input.size {
            file.truncate(size).unwrap();
        }
        if input.is_sealed {
            (self.target.seal)(&file);
        }
        Arc::new(file)
    }

    /// Does everything with an input; returns what tells one end from another.
    fn work(&self, input: &Input) -> u64 {
        let mut ends = DefaultHasher::new();
        let mut note = |step: u32, result: Result<(), DiskError>| {
            // Figures differ from input to input; the words tell what was met.
            let words = result.err().map(|error| error.to_string().replace(|c: char| c.is_ascii_digit(), ""));
            (step, words).hash(&mut ends);
        };
        let format = self.target.format;
        let file = self.file(input);
        let mut head = vec![0; crate::formats::HEAD_LENGTH];
        read_zero_padded(&*file, 0, &mut head).unwrap();
        note(
            7,
            crate::probe::recognise(&head)
                .map_or(Ok(()), |found| Err(DiskError::NotPossible { title: found.name(), action: "" })),
        );
        let check = format.driver().check.unwrap_or(|_, _| Ok(crate::CheckReport::default()));
        match open(format, &file, Access::ReadOnly) {
            Ok(disk) => look_at(&*disk, &mut |result| note(1, result)),
            Err(error) => note(0, Err(error)),
        }
        note(2, check(Arc::clone(&file), Repair::Nothing).map(|_| ()));
        match open(format, &file, Access::ReadWrite) {
            Ok(disk) => {
                write_and_read_again(format, &file, disk, &mut note);
                if let Ok(disk) = open(format, &file, Access::ReadWrite) {
                    change_everything(&*disk, &mut |result| note(5, result));
                }
            }
            Err(error) => note(3, Err(error)),
        }
        let patient = self.file(input);
        note(6, check(patient, Repair::All).map(|_| ()));
        if format == Format::Iso {
            let description = crate::describe_iso(&*file).map(|volume| format!("{volume:?}"));
            description.unwrap_or_default().replace(|c: char| c.is_ascii_digit(), "").hash(&mut ends);
        }
        ends.finish()
    }
}

pub(crate) fn look_at(disk: &dyn DiskImage, note: &mut impl FnMut(Result<(), DiskError>)) {
    let mut buffer = vec![0; 4096];
    let size = disk.len();
    for at in [0, 512, 4096, size / 2, size.saturating_sub(4096), size.saturating_sub(512)] {
        let length = size.saturating_sub(at).min(4096) as usize;
        note(disk.read_at(at, &mut buffer[..length]));
    }
    let mut at = 0;
    for _ in 0..64 {
        let Ok(extent) = disk.extent_at(at) else { break };
        assert!(extent.length > 0 || at >= size, "an extent of no bytes at {at} of {size}");
        at += extent.length;
        if at >= size {
            break;
        }
    }
    disk.info();
    disk.warnings();
    disk.snapshots();
    note(disk.read_vm_state(0, &mut buffer));
}

/// What a disk took and flushed it must hold when it is opened again.
fn write_and_read_again(
    format: Format,
    file: &Arc<dyn BlockFile>,
    disk: Arc<dyn DiskImage>,
    note: &mut impl FnMut(u32, Result<(), DiskError>),
) {
    let data: Vec<u8> = (0..2048_u32).map(|number| (number * 7 + 1) as u8).collect();
    let at = 512.min(disk.len());
    let length = (disk.len() - at).min(data.len() as u64) as usize;
    let written = disk.write_at(at, &data[..length]).and_then(|()| disk.flush());
    drop(disk);
    let is_written = written.is_ok();
    note(4, written);
    if !is_written {
        return;
    }
    let disk = open(format, file, Access::ReadOnly).unwrap_or_else(|error| panic!("it was written to, and then: {error}"));
    let mut found = vec![0; length];
    match disk.read_at(at, &mut found) {
        Ok(()) => assert!(found == data[..length], "what was flushed is not what is read"),
        Err(error) => panic!("what was flushed cannot be read: {error}"),
    }
}

pub(crate) fn change_everything(disk: &dyn DiskImage, note: &mut impl FnMut(Result<(), DiskError>)) {
    let size = disk.len();
    let cluster = disk.info().cluster_size.unwrap_or(4096).min(65536);
    note(disk.create_snapshot(&NewSnapshot { name: "t".into(), ..NewSnapshot::default() }));
    note(disk.write_at(size / 2 / 512 * 512, &[3; 512]));
    if cluster <= size {
        note(disk.write_compressed(0, &vec![4; cluster as usize]));
    }
    if let Some(bitmaps) = disk.bitmaps() {
        for bitmap in bitmaps.list().iter().take(4) {
            note(bitmaps.marked(&bitmap.name, 0, 100).map(drop));
            note(bitmaps.set_enabled(&bitmap.name, !bitmap.enabled));
        }
        note(bitmaps.add("new", None));
        note(bitmaps.remove("b"));
        note(bitmaps.clear("halted"));
    }
    note(disk.apply_snapshot("s"));
    note(disk.discard(0, disk.len().min(1 << 20)));
    note(disk.write_zeroes(0, disk.len().min(3000)));
    note(disk.flush());
    note(disk.resize(disk.len().min(1 << 30) + 4096, Preallocation::Off));
    note(disk.delete_snapshot("s"));
    note(disk.resize(1024, Preallocation::Off));
    note(disk.delete_snapshot("t"));
    note(disk.set_backing(None));
    note(disk.write_at(0, &[6; 512]));
    note(disk.flush());
}

/// Processor time of this thread, for limits that hold beside other work too.
pub(crate) fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0))
}

/// Fuzzes until `is_done` says so about the time and the number of inputs.
fn fuzz(target: &Target, is_done: impl Fn(Duration, u64) -> bool) {
    let random = std::env::var("DISK_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0x5eed);
    let mut fuzzer = Fuzzer::new(target, random);
    let mut kept = fuzzer.sound();
    let mut ends = HashSet::new();
    let (begun, mut inputs) = (Instant::now(), 0_u64);
    for input in &kept {
        fuzzer.work(input);
    }
    while !is_done(begun.elapsed(), inputs) {
        // The newest ones lead further.
        let newest = kept.len() - fuzzer.roll(kept.len()).min(fuzzer.roll(kept.len())) - 1;
        let input = fuzzer.change(&kept[newest]);
        let (wall, before) = (Instant::now(), processor_time());
        let end = std::panic::catch_unwind(AssertUnwindSafe(|| fuzzer.work(&input)));
        let too_long = wall.elapsed() > MOST_TIME && processor_time().saturating_sub(before) > MOST_TIME;
        let Ok(end) = end.map_err(drop).and_then(|end| if too_long { Err(()) } else { Ok(end) }) else {
            let file = fuzzer.file(&input);
            let mut content = vec![0; file.len().unwrap().min(64 << 20) as usize];
            file.read_at(0, &mut content).unwrap();
            let path = std::env::temp_dir().join(format!("fuzz-{}-{inputs}", target.format));
            std::fs::write(&path, content).unwrap();
            let what = if too_long { "takes too long" } else { "panics" };
            panic!("{}: input {inputs} {what}: {:?}; kept in {}", target.format, input.changes, path.display());
        };
        inputs += 1;
        if ends.insert(end) && kept.len() < MOST_KEPT {
            kept.push(input);
        }
    }
    let memory = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let memory = memory.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default().to_owned();
    println!("{}: {inputs} inputs in {:.0?}, {} different ends; {memory}", target.format, begun.elapsed(), ends.len());
    assert!(ends.len() > 10, "{}: only {} different ends: the fuzzer does not get anywhere", target.format, ends.len());
}

/// As long as `DISK_FUZZ_SECONDS` says, or ten minutes.
fn fuzz_long(target: &Target) {
    let seconds = std::env::var("DISK_FUZZ_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(600);
    fuzz(target, |elapsed, _| elapsed >= Duration::from_secs(seconds));
}

#[test]
fn no_parser_falls_over_in_a_short_fuzz() {
    for target in &TARGETS {
        fuzz(target, |_, inputs| inputs >= 400);
    }
}

#[test]
#[ignore = "runs for minutes"]
fn fuzz_qcow2() {
    fuzz_long(&QCOW2);
}

#[test]
#[ignore = "runs for minutes"]
fn fuzz_vdi() {
    fuzz_long(&VDI);
}

#[test]
#[ignore = "runs for minutes"]
fn fuzz_vpc() {
    fuzz_long(&VHD);
}

#[test]
#[ignore = "runs for minutes"]
fn fuzz_vhdx() {
    fuzz_long(&VHDX);
}

#[test]
#[ignore = "runs for minutes"]
fn fuzz_vmdk() {
    fuzz_long(&VMDK);
}

#[test]
#[ignore = "runs for minutes"]
fn fuzz_iso() {
    fuzz_long(&ISO);
}
