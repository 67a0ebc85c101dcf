//! VDI, VHD, VHDX and VMDK, alone and over a base, under crashes, failing hosts and hostile files.

mod differencing;
mod growth;

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::block_file::{Access, BlockFile};
use crate::check::Repair;
use crate::formats::Opening;
use crate::fuzz_tests::processor_time;
use crate::image::DiskImage;
use crate::open::{Backing, Chain, CreateOptions, OpenOptions, Preallocation};
use crate::sim_file::{CrashImages, Fault, SimFile, next};
use crate::{DiskError, Format, vhd, vhdx, vmdk};

const SECTOR: usize = 512;

/// A kind of disk, and how to make a small one.
struct Kind {
    name: &'static str,
    format: Format,
    size: u64,
    create: fn(&dyn BlockFile, u64),
    /// Whether it is built on one of [`bases`].
    is_differencing: bool,
}

impl Kind {
    const fn alone(name: &'static str, format: Format, size: u64, create: fn(&dyn BlockFile, u64)) -> Self {
        Self { name, format, size, create, is_differencing: false }
    }

    const fn over(name: &'static str, format: Format, size: u64, create: fn(&dyn BlockFile, u64)) -> Self {
        Self { name, format, size, create, is_differencing: true }
    }
}

const KINDS: [Kind; 8] = [
    Kind::alone("vdi", Format::Vdi, 4 << 20, |file, size| create(Format::Vdi, file, size)),
    Kind::alone("vhd", Format::Vhd, 160 << 10, vhd::create_small),
    Kind::alone("vhdx", Format::Vhdx, 4 << 20, vhdx::create_small),
    Kind::alone("vmdk", Format::Vmdk, 160 << 10, vmdk::create_small),
    Kind::over("differencing vdi", Format::Vdi, 4 << 20, |file, size| {
        let backing = Some(base(Format::Vdi, 0));
        let options = CreateOptions { backing, ..CreateOptions::new(Format::Vdi, size) };
        Format::Vdi.driver().create.unwrap()(file, &options).unwrap();
    }),
    Kind::over("differencing vhd", Format::Vhd, 160 << 10, |file, _| vhd::create_small_over(file, &base(Format::Vhd, 0))),
    Kind::over("differencing vhdx", Format::Vhdx, 4 << 20, |file, _| vhdx::create_small_over(file, &base(Format::Vhdx, 0))),
    Kind::over("differencing vmdk", Format::Vmdk, 160 << 10, |file, _| vmdk::create_small_over(file, &base(Format::Vmdk, 0))),
];

/// Those that stand by themselves, in their order, come first.
const VDI: usize = 0;
const VHD: usize = 1;
const VHDX: usize = 2;
const VMDK: usize = 3;

fn create(format: Format, file: &dyn BlockFile, size: u64) {
    format.driver().create.unwrap()(file, &CreateOptions::new(format, size)).unwrap();
}

/// A disk that others are built on, by its number: two of each format lie in one folder.
fn base(format: Format, number: usize) -> Backing {
    let extension = if format == Format::Vhd { "vhd" } else { format.name() };
    Backing { name: format!("base{number}.{extension}"), format }
}

/// The number of the write that a sector of a base bears; every third sector was never written.
fn in_base(base: usize, sector: u64) -> u64 {
    if sector.is_multiple_of(3) { 0 } else { 0xba5e + base as u64 }
}

/// The folder with the bases.
fn bases() -> &'static Path {
    static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        for kind in KINDS.iter().filter(|kind| kind.is_differencing) {
            for number in 0..2 {
                let path = folder.path().join(base(kind.format, number).name);
                crate::create(&path, &CreateOptions::new(kind.format, kind.size)).unwrap();
                let disk = crate::open(&OpenOptions { format: Some(kind.format), ..OpenOptions::new(&path) }).unwrap();
                let mut content = vec![0; kind.size as usize];
                for (sector, bytes) in content.chunks_mut(SECTOR).enumerate() {
                    stamp(sector as u64, in_base(number, sector as u64), bytes);
                }
                disk.write_at(0, &content).unwrap();
                disk.flush().unwrap();
            }
        }
        folder
    });
    FOLDER.path()
}

impl Kind {
    fn empty(&self) -> Vec<u8> {
        let file = self.file(Vec::new());
        (self.create)(&*file, self.size);
        file.content()
    }

    /// A file that lies beside the bases, if it needs one.
    fn file(&self, content: Vec<u8>) -> Arc<SimFile> {
        let file = SimFile::new(content);
        Arc::new(if self.is_differencing { file.named(bases().join("disk")) } else { file })
    }

    /// What a sector that was never written reads as.
    fn untouched(&self, sector: u64) -> u64 {
        if self.is_differencing { in_base(0, sector) } else { 0 }
    }
}

fn open(format: Format, file: &Arc<SimFile>, access: Access) -> Result<Arc<dyn DiskImage>, DiskError> {
    (format.driver().open)(Opening::of(Arc::clone(file) as _, access, &Chain::default()))
}

fn errors(format: Format, content: &[u8]) -> Vec<String> {
    errors_in(format, &Arc::new(SimFile::new(content.to_vec())))
}

fn errors_in(format: Format, file: &Arc<SimFile>) -> Vec<String> {
    let report = format.driver().check.unwrap()(Arc::clone(file) as _, Repair::Nothing).unwrap();
    if report.errors == 0 { Vec::new() } else { report.details }
}

/// Fills a sector so that neither another place nor another time could have written it.
fn stamp(sector: u64, number: u64, bytes: &mut [u8]) {
    for (index, word) in bytes.chunks_mut(8).enumerate() {
        let value = if number == 0 { 0 } else { (sector << 40 | number << 8 | 0x80) ^ (index as u64) << 56 };
        word.copy_from_slice(&value.to_be_bytes());
    }
}

/// What a sector was given: file operations recorded before and after, and the number of the write (0: zeros).
#[derive(Clone, Copy)]
struct Version {
    started: usize,
    ended: usize,
    number: u64,
}

/// A disk with what was done to it.
struct Recorded {
    image: Vec<u8>,
    file: Arc<SimFile>,
    history: Vec<Vec<Version>>,
    flushes: Vec<(usize, usize)>,
}

fn record(kind: &Kind, seed: u64, operations: u64) -> Recorded {
    let file = kind.file(kind.empty());
    let image = file.start_recording();
    let sectors = kind.size / SECTOR as u64;
    let mut recorded = Recorded {
        image,
        file: Arc::clone(&file),
        history: (0..sectors).map(|sector| vec![Version { started: 0, ended: 0, number: kind.untouched(sector) }]).collect(),
        flushes: Vec::new(),
    };
    let disk = open(kind.format, &file, Access::ReadWrite).unwrap();
    let mut random = seed;
    for number in 1..=operations {
        let first = next(&mut random) % sectors;
        let count = (1 + next(&mut random) % 24).min(sectors - first);
        let started = file.recorded();
        let written = match next(&mut random) % 8 {
            0..5 => {
                let mut data = vec![0; count as usize * SECTOR];
                for (index, sector) in data.chunks_mut(SECTOR).enumerate() {
                    stamp(first + index as u64, number, sector);
                }
                disk.write_at(first * SECTOR as u64, &data).unwrap();
                number
            }
            5 => {
                disk.write_zeroes(first * SECTOR as u64, count * SECTOR as u64).unwrap();
                0
            }
            _ => {
                disk.flush().unwrap();
                recorded.flushes.push((started, file.recorded()));
                continue;
            }
        };
        let version = Version { started, ended: file.recorded(), number: written };
        for history in &mut recorded.history[first as usize..(first + count) as usize] {
            history.push(version);
        }
    }
    drop(disk);
    recorded
}

/// Whether a sector may read so after a crash: as it was at the last flush, or as something written after it.
fn may_read(history: &[Version], flushed: usize, crashed_at: usize, sector: u64, bytes: &[u8]) -> bool {
    let durable = history.iter().rposition(|version| version.ended <= flushed).unwrap_or(0);
    let mut expected = [0; SECTOR];
    history[durable..].iter().filter(|version| version.ended <= flushed || version.started <= crashed_at).any(|version| {
        stamp(sector, version.number, &mut expected);
        bytes == expected
    })
}

#[test]
fn no_crash_loses_what_was_flushed_or_leaves_a_contradiction() {
    let all: usize = KINDS.iter().map(|kind| crash(kind, 2000)).sum();
    assert!(all >= 2000 * KINDS.len(), "{all}");
}

/// As many images as the release figures ask for, more of the kinds whose files are small.
#[test]
#[ignore = "runs for a quarter of an hour"]
fn one_million_crash_images() {
    let share = |kind: &Kind| if kind.size > 1 << 20 { 60_000 } else { 195_000 };
    let all: usize = std::thread::scope(|scope| {
        // Two threads, because the machines this runs on have two cores.
        let halves = KINDS
            .chunks(KINDS.len() / 2)
            .map(|half| scope.spawn(move || half.iter().map(|kind| crash(kind, share(kind))).sum::<usize>()));
        halves.collect::<Vec<_>>().into_iter().map(|half| half.join().unwrap()).sum()
    });
    println!("{all} crash images in all");
    assert!(all >= 1_000_000, "{all}");
}

/// Crashes random runs on one kind of disk until there were so many images; returns how many.
fn crash(kind: &Kind, wanted: usize) -> usize {
    let mut images = 0;
    for seed in 1.. {
        let recorded = record(kind, seed * 0x9e37_79b9, 30);
        let crashes = CrashImages { seed, pairs: 60, random_sets: 20, ..CrashImages::default() };
        let file = kind.file(Vec::new());
        crashes.visit_on(&file, &recorded.image, &recorded.file.log(), |crashed_at| {
            images += 1;
            let context = format!("{}, seed {seed}, crash at {crashed_at}", kind.name);
            assert_eq!(errors_in(kind.format, &file), Vec::<String>::new(), "{context}");
            let disk = open(kind.format, &file, Access::ReadWrite).unwrap_or_else(|error| panic!("{context}: {error}"));
            let flushed = recorded.flushes.iter().rev().find(|(_, ended)| *ended <= crashed_at).map_or(0, |(began, _)| *began);
            let mut bytes = [0; SECTOR];
            for (sector, history) in recorded.history.iter().enumerate().filter(|(_, history)| history.len() > 1) {
                disk.read_at((sector * SECTOR) as u64, &mut bytes).unwrap();
                let is_allowed = may_read(history, flushed, crashed_at, sector as u64, &bytes);
                assert!(is_allowed, "{context}: sector {sector} reads {:02x?}…", &bytes[..16]);
            }
        });
        if images >= wanted {
            break;
        }
    }
    println!("{}: {images} crash images, none inconsistent", kind.name);
    images
}

#[test]
fn the_oracle_finds_a_planted_mistake_in_the_order() {
    // Without barriers entries may reach the file before what they point at.
    for kind in &KINDS {
        let recorded = record(kind, 77, 60);
        let mut log = recorded.file.log();
        log.retain(|operation| *operation != crate::Operation::Flush);
        let mut wrong = 0;
        CrashImages { seed: 1, pairs: 40, random_sets: 40, ..CrashImages::default() }.visit(&recorded.image, &log, |_, image| {
            wrong += u64::from(!errors(kind.format, image).is_empty());
        });
        // Many of a differencing disk's writes go to blocks that are there already, so there is less to go wrong.
        let expected = if kind.is_differencing { 1 } else { 6 };
        assert!(wrong >= expected, "{}: a log without barriers must leave broken images; only {wrong} were", kind.name);
    }
}

#[test]
fn a_failing_host_changes_nothing_that_was_flushed() {
    for kind in &KINDS {
        for errno in [5, 28] {
            for at in 0.. {
                let file = kind.file(kind.empty());
                let disk = open(kind.format, &file, Access::ReadWrite).unwrap();
                disk.write_at(0, &[1; 1024]).unwrap();
                disk.flush().unwrap();
                file.fail(Some(Fault { at, persists: false, errno }));
                let write = disk.write_at(kind.size / 2 + 100, &[2; 1024]);
                let flush = disk.flush();
                let was_reached = file.operations() > at;
                file.fail(None);
                // What failed may be tried again; after a failed flush it is refused until the disk is opened again.
                let again = disk.write_at(kind.size / 2 + 100, &[2; 1024]).and_then(|()| disk.flush());
                drop(disk);
                let context = format!("{} operation {at}, errno {errno}: {write:?}, {flush:?}", kind.name);
                assert_eq!(errors(kind.format, &file.content()), Vec::<String>::new(), "{context}");
                let disk = open(kind.format, &file, Access::ReadOnly).unwrap();
                let mut bytes = [9; 1024];
                disk.read_at(0, &mut bytes).unwrap();
                assert_eq!(bytes, [1; 1024], "{context}");
                disk.read_at(kind.size / 2 + 100, &mut bytes).unwrap();
                assert!(again.is_err() || bytes == [2; 1024], "{context}");
                // What lies beside it in its first sector is what was there before.
                let mut sector = [9; SECTOR];
                stamp(kind.size / 2 / SECTOR as u64, kind.untouched(kind.size / 2 / SECTOR as u64), &mut sector);
                disk.read_at(kind.size / 2, &mut bytes[..100]).unwrap();
                assert_eq!(bytes[..100], sector[..100], "{context}");
                if !was_reached {
                    assert!(at > 3, "{context}");
                    break;
                }
            }
        }
    }
}

/// A sound image with some content.
fn good(kind: &Kind) -> Vec<u8> {
    let file = kind.file(kind.empty());
    let disk = open(kind.format, &file, Access::ReadWrite).unwrap();
    disk.write_at(0, &[7; 8192]).unwrap();
    disk.write_at(kind.size - 4096, &[8; 4096]).unwrap();
    drop(disk);
    file.content()
}

#[test]
fn headers_that_make_no_sense_are_refused_and_left_alone() {
    let le = |value: u32| value.to_le_bytes().to_vec();
    let be = |value: u32| value.to_be_bytes().to_vec();
    let long = |value: u64| value.to_le_bytes().to_vec();
    let cases: Vec<(usize, &str, usize, Vec<u8>)> = vec![
        (VDI, "signature", 0x40, le(0)),
        (VDI, "version", 0x44, le(0x0002_0000)),
        (VDI, "kind", 0x4c, le(3)),
        (VDI, "kind", 0x4c, le(4)),
        (VDI, "kind", 0x4c, le(9)),
        (VDI, "map past the end", 0x154, le(u32::MAX)),
        (VDI, "map in the header", 0x154, le(0)),
        (VDI, "data in the map", 0x158, le(512)),
        (VDI, "sector size", 0x168, le(4096)),
        (VDI, "size", 0x170, long(u64::MAX)),
        (VDI, "block size 0", 0x178, le(0)),
        (VDI, "block size 3", 0x178, le(3)),
        (VDI, "block extra", 0x17c, le(1)),
        (VDI, "blocks", 0x180, le(u32::MAX)),
        (VDI, "no blocks", 0x180, le(0)),
        (VDI, "parent", 0x1b8, le(1)),
        (VHD, "signature and its copy", 0, b"x".to_vec()),
        (VHD, "footer's sum", 64, be(0)),
        (VHD, "header", 512, b"x".to_vec()),
        (VHD, "header's sum", 512 + 36, be(0)),
        (VHDX, "signature", 0, b"x".to_vec()),
        (VHDX, "both headers", 64 << 10, vec![0; 128 << 10]),
        (VHDX, "region tables", 192 << 10, vec![0; 128 << 10]),
        (VHDX, "description", 2 << 20, b"x".to_vec()),
        (VHDX, "number of items", (2 << 20) + 10, vec![0, 0]),
        (VMDK, "version", 4, le(9)),
        (VMDK, "capacity", 12, long(u64::MAX)),
        (VMDK, "capacity", 12, long(1 << 50)),
        (VMDK, "grain 0", 20, long(0)),
        (VMDK, "grain 3", 20, long(3)),
        (VMDK, "grain 2^32", 20, long(1 << 32)),
        (VMDK, "descriptor past any file", 28, long(u64::MAX / 512)),
        (VMDK, "descriptor of 1 GiB", 36, long(1 << 21)),
        (VMDK, "no table entries", 44, le(0)),
        (VMDK, "513 table entries", 44, le(513)),
        (VMDK, "directory past the end", 56, long(1 << 40)),
        (VMDK, "directory in the header", 56, long(0)),
        (VMDK, "footer missing", 56, long(u64::MAX)),
        (VMDK, "newline test", 75, b"\n".to_vec()),
    ];
    for (kind, what, at, bytes) in cases {
        let kind = &KINDS[kind];
        let mut content = good(kind);
        content[at..at + bytes.len()].copy_from_slice(&bytes);
        if what == "signature and its copy" {
            let end = content.len();
            content[end - 512] = b'x';
        }
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let file = Arc::new(SimFile::new(content.clone()));
            let result = open(kind.format, &file, access);
            let message = result.err().unwrap_or_else(|| panic!("{} with a bad {what} was opened", kind.format)).to_string();
            assert!(message.ends_with("/simulated/disk"), "the path comes last: {message}");
            assert!(file.content() == content, "{} with a bad {what} was changed", kind.format);
        }
    }
}

#[test]
fn two_blocks_in_one_place_can_be_read_but_not_written() {
    // Where the tables of the good images lie; the entry of the first block is written over the last one's.
    for (kind, table, length, last) in [(VDI, 512, 4, 3), (VHD, 1536, 4, 39), (VHDX, 3 << 20, 8, 3)] {
        let kind = &KINDS[kind];
        let mut content = good(kind);
        content.copy_within(table..table + length, table + last * length);
        assert!(!errors(kind.format, &content).is_empty(), "{}", kind.format);
        let file = Arc::new(SimFile::new(content));
        open(kind.format, &file, Access::ReadOnly).unwrap();
        assert!(matches!(open(kind.format, &file, Access::ReadWrite), Err(DiskError::Damaged { .. })), "{}", kind.format);
    }
}

#[test]
fn random_damage_never_makes_a_panic_or_a_hang() {
    for (number, kind) in KINDS.iter().enumerate() {
        let good = good(kind);
        // Where headers and tables are; damage to content proves nothing.
        let places: &[(usize, usize)] = match kind.format {
            Format::Vdi => &[(0x40, 0x200), (0x200, 0x210)],
            Format::Vhd => &[(0, 2048)],
            Format::Vhdx => &[
                (64 << 10, (64 << 10) + 100),
                (192 << 10, (192 << 10) + 96),
                (2 << 20, (2 << 20) + 200),
                (3 << 20, (3 << 20) + 64),
            ],
            _ => &[(0, 100), (512, 1200), (10_752, 11_500)],
        };
        let mut random = 99 + number as u64;
        let rounds = if good.len() > 1 << 20 { 300 } else { 1500 };
        for _ in 0..rounds {
            let mut content = good.clone();
            for _ in 0..1 + next(&mut random) % 4 {
                let (from, to) = places[(next(&mut random) % places.len() as u64) as usize];
                let at = from + (next(&mut random) % (to - from) as u64) as usize;
                content[at] = match next(&mut random) % 4 {
                    0 => 0,
                    1 => 0xff,
                    _ => next(&mut random) as u8,
                };
            }
            if next(&mut random).is_multiple_of(10) {
                content.truncate((next(&mut random) % good.len() as u64) as usize);
            }
            let began = processor_time();
            for access in [Access::ReadOnly, Access::ReadWrite] {
                let file = kind.file(content.clone());
                // Whether it opens is the file's affair; that we come back is ours.
                let Ok(disk) = open(kind.format, &file, access) else { continue };
                let mut bytes = [0; 4096];
                for at in [0, 4096, disk.len() / 2, disk.len().saturating_sub(4096)] {
                    disk.read_at(at, &mut bytes).ok();
                    disk.extent_at(at).ok();
                }
                disk.info();
            }
            let file = Arc::new(SimFile::new(content));
            kind.format.driver().check.unwrap()(file, Repair::Nothing).ok();
            assert!(processor_time() - began < Duration::from_secs(2), "{}", kind.format);
        }
    }
}
