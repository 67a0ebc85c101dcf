//! Tests of qcow2: behaviour here; crashes, faults, hostile files and QEMU's own tools in the files beside.

mod amend;
mod bitmaps;
mod crash;
mod data_file;
mod differential;
mod exhaustive;
mod fault;
mod hostile;
mod mutated;
pub(crate) mod qemu;
mod repairs;
mod tools;

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::check::{CheckReport, Repair};
use crate::open::{Backing, CreateOptions};
use crate::sim_file::{SimFile, next};
use crate::{Access, OpenOptions, create, open};

/// Options of a disk of `size` bytes.
fn options(qcow2: Qcow2Options, size: u64) -> CreateOptions {
    CreateOptions { qcow2, ..CreateOptions::new(Format::Qcow2, size) }
}

/// A base image for tests: its bytes, read-only.
struct Base(Vec<u8>);

impl DiskImage for Base {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        check_range(Path::new("base"), self.len(), offset, buffer.len() as u64)?;
        buffer.copy_from_slice(&self.0[offset as usize..][..buffer.len()]);
        Ok(())
    }
    fn write_at(&self, _: u64, _: &[u8]) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly { path: "base".into() })
    }
    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> Result<(), DiskError> {
        self.write_at(0, &[])
    }
    fn write_zeroes(&self, _: u64, _: u64) -> Result<(), DiskError> {
        self.write_at(0, &[])
    }
    fn read_only(&self) -> bool {
        true
    }
    fn format(&self) -> Format {
        Format::Raw
    }
    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        Ok(Extent::new(ExtentKind::Data, self.len() - offset))
    }
}

/// An empty image in memory.
fn empty(qcow2: Qcow2Options, size: u64) -> Vec<u8> {
    let file = SimFile::new(Vec::new());
    create::create(&file, &options(qcow2, size)).unwrap();
    file.content()
}

fn open_sim(file: &Arc<SimFile>, access: Access, base: Option<&[u8]>) -> Result<Qcow2, DiskError> {
    let file: Arc<dyn BlockFile> = Arc::clone(file) as Arc<dyn BlockFile>;
    match base {
        None => Qcow2::open(file, access, |_| panic!("no base image was written down")),
        Some(base) if access == Access::ReadWrite => Qcow2::open_on(file, Arc::new(Base(base.to_vec()))),
        Some(base) => {
            let mut disk = Qcow2::open(file, access, |_| panic!("no base image was written down"))?;
            disk.backing = Some(Arc::new(Base(base.to_vec())));
            Ok(disk)
        }
    }
}

/// Checks an image without changing it.
fn check(file: Arc<dyn BlockFile>) -> Result<CheckReport, DiskError> {
    repair::check(file, Repair::Nothing)
}

fn read_all(disk: &dyn DiskImage) -> Vec<u8> {
    let mut content = vec![0xaa; disk.len() as usize];
    disk.read_at(0, &mut content).unwrap();
    content
}

/// The kinds of image that every test of writing goes through.
fn kinds() -> Vec<Qcow2Options> {
    let three = Qcow2Options::default();
    let mut kinds = vec![
        Qcow2Options { version: 2, ..three },
        Qcow2Options { version: 2, cluster_size: 512, ..three },
        Qcow2Options { cluster_size: 4096, compression: Compression::Zstd, ..three },
        Qcow2Options { cluster_size: 1 << 21, ..three },
        Qcow2Options { cluster_size: 16384, extended_l2: true, ..three },
        Qcow2Options { cluster_size: 65536, extended_l2: true, compression: Compression::Zstd, ..three },
    ];
    kinds.extend([1, 2, 4, 8, 16, 32, 64].map(|refcount_bits| Qcow2Options { cluster_size: 512, refcount_bits, ..three }));
    kinds
}

/// Random operations on a disk and, side by side, on plain bytes.
struct Script {
    random: u64,
    bytes: Vec<u8>,
}

impl Script {
    fn new(seed: u64, bytes: Vec<u8>) -> Self {
        Self { random: seed, bytes }
    }

    fn below(&mut self, limit: u64) -> u64 {
        next(&mut self.random) % limit
    }

    /// One random operation on both.
    fn step(&mut self, disk: &dyn DiskImage, longest: u64) -> Result<(), DiskError> {
        let size = self.bytes.len() as u64;
        let unit = if self.below(2) == 0 { 512 } else { 1 };
        let offset = self.below(size) / unit * unit;
        let longest = if self.below(4) == 0 { longest } else { longest.min(5000) };
        let length = ((1 + self.below(longest)).next_multiple_of(unit)).min(size - offset);
        let range = offset as usize..(offset + length) as usize;
        match self.below(10) {
            0..6 => {
                let byte = self.below(255) as u8 + 1;
                disk.write_at(offset, &vec![byte; length as usize])?;
                self.bytes[range].fill(byte);
            }
            6 => {
                disk.write_zeroes(offset, length)?;
                self.bytes[range].fill(0);
            }
            7 => {
                disk.discard(offset, length)?;
                // What a discarded byte reads as is up to the disk: old or zero.
                let mut now = vec![0; range.len()];
                disk.read_at(offset, &mut now)?;
                for (expected, now) in self.bytes[range].iter_mut().zip(now) {
                    assert!(now == 0 || now == *expected, "a discarded byte turned from {expected} into {now}");
                    *expected = now;
                }
            }
            8 => disk.flush()?,
            _ => {
                let mut seen = vec![0; range.len()];
                disk.read_at(offset, &mut seen)?;
                assert!(seen == self.bytes[range.clone()], "{range:?} reads differently");
            }
        }
        Ok(())
    }
}

fn assert_clean(content: Vec<u8>, context: &dyn std::fmt::Debug) {
    let report = check(Arc::new(SimFile::new(content))).unwrap();
    assert_eq!((report.errors, report.leaks, report.unmarked), (0, 0, 0), "{context:?}: {:?}", report.details);
}

#[test]
fn random_operations_on_every_kind_of_image_match_plain_bytes_and_leave_it_clean() {
    for (number, kind) in kinds().into_iter().enumerate() {
        for with_base in [false, true] {
            let size = if kind.cluster_size > 65536 { 9 << 20 } else { 700 * 1024 + 512 };
            // The base is a little shorter than the disk, and ends in the middle of a cluster.
            let base: Option<Vec<u8>> = with_base.then(|| (0..size - 70_144).map(|n| (n / 1000 + 1) as u8).collect());
            let mut bytes = base.clone().unwrap_or_default();
            bytes.resize(size as usize, 0);
            let file = Arc::new(SimFile::new(empty(kind, size)));
            let mut script = Script::new(77 + number as u64, bytes);
            for _ in 0..3 {
                let disk = open_sim(&file, Access::ReadWrite, base.as_deref()).unwrap();
                for _ in 0..150 {
                    script.step(&disk, 300_000).unwrap();
                }
                assert!(read_all(&disk) == script.bytes, "{kind:?}");
                drop(disk);
                assert_clean(file.content(), &kind);
                let disk = open_sim(&file, Access::ReadOnly, base.as_deref()).unwrap();
                assert!(read_all(&disk) == script.bytes, "{kind:?} after reopening");
            }
        }
    }
}

#[test]
fn the_refcount_table_moves_when_it_is_full_and_the_old_one_is_freed() {
    // 512-byte clusters with 64-bit counts: a block counts 64 clusters, the first table 64 blocks, so 2 MiB.
    let kind = Qcow2Options { cluster_size: 512, refcount_bits: 64, ..Qcow2Options::default() };
    let file = Arc::new(SimFile::new(empty(kind, 12 << 20)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    for piece in 0..12 * 16 {
        disk.write_at(piece << 16, &vec![piece as u8 + 1; 1 << 16]).unwrap();
        if piece % 5 == 0 {
            disk.flush().unwrap();
        }
    }
    drop(disk);
    assert_clean(file.content(), &kind);
    let content = read_all(&open_sim(&file, Access::ReadOnly, None).unwrap());
    assert!(content.chunks(1 << 16).enumerate().all(|(piece, bytes)| bytes.iter().all(|byte| *byte == piece as u8 + 1)));
}

#[test]
fn small_writes_with_a_flush_each_do_not_make_the_file_grow() {
    let kind = Qcow2Options { cluster_size: 4096, ..Qcow2Options::default() };
    let file = Arc::new(SimFile::new(empty(kind, 4 << 20)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    let mut random = 5;
    for round in 0..20_000_u64 {
        let at = next(&mut random) % 1024 * 4096;
        if round % 3 == 0 {
            disk.discard(at, 4096).unwrap()
        } else {
            disk.write_at(at, &[round as u8; 4096]).unwrap()
        }
        disk.flush().unwrap();
    }
    let size = file.len().unwrap();
    assert!(size <= (4 << 20) * 102 / 100 + (1 << 20), "{size}");
}

#[test]
fn unflushed_work_is_written_when_the_disk_is_closed_and_a_flush_touches_the_file_only_as_needed() {
    let file = Arc::new(SimFile::new(empty(Qcow2Options::default(), 1 << 20)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    disk.write_at(0, &[1; 4096]).unwrap();
    disk.flush().unwrap();
    disk.flush().unwrap();
    file.start_recording();
    disk.write_at(512, &[2; 512]).unwrap();
    disk.flush().unwrap();
    assert_eq!(file.recorded(), 2, "an overwrite is one write and one flush: {:?}", file.log());
    disk.write_at(200_000, &[3; 512]).unwrap();
    drop(disk);
    assert_clean(file.content(), &"closed");
    let disk = open_sim(&file, Access::ReadOnly, None).unwrap();
    let mut byte = [0];
    disk.read_at(200_000, &mut byte).unwrap();
    assert_eq!(byte, [3]);
}

#[test]
fn unknown_autoclear_bits_are_cleared_before_the_first_write_and_other_fields_stay() {
    let mut content = empty(Qcow2Options { cluster_size: 4096, ..Qcow2Options::default() }, 1 << 20);
    content[80..88].copy_from_slice(&(1_u64 << 40 | 1).to_be_bytes());
    content[88..96].copy_from_slice(&0xff00_u64.to_be_bytes());
    // An extension that we do not know, before the end mark.
    content[104..120].copy_from_slice(b"\x12\x34\x56\x78\0\0\0\x05hello\0\0\0");
    content[120..128].fill(0);
    let file = Arc::new(SimFile::new(content.clone()));
    drop(open_sim(&file, Access::ReadWrite, None).unwrap());
    assert!(file.content() == content, "opening alone changes nothing");
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    file.start_recording();
    disk.write_at(0, &[1; 512]).unwrap();
    assert_eq!(file.log()[..2], [crate::Operation::Write(88, vec![0; 8]), crate::Operation::Flush]);
    drop(disk);
    content[88..96].fill(0);
    assert!(file.content()[..4096] == content[..4096]);
}

#[test]
fn reads_and_writes_from_several_threads_keep_to_their_places() {
    let kind = Qcow2Options { cluster_size: 4096, ..Qcow2Options::default() };
    let file = Arc::new(SimFile::new(empty(kind, 8 << 20)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let disk = &disk;
            scope.spawn(move || {
                // Each thread owns every fourth sector, so that they share clusters but no bytes.
                let mut random = thread + 1;
                let mut mine = vec![0_u8; 4096];
                for round in 0..1500_u64 {
                    let slot = next(&mut random) as usize % mine.len();
                    let at = (slot as u64 * 4 + thread) * 512;
                    let byte = round as u8 | 1;
                    disk.write_at(at, &[byte; 512]).unwrap();
                    mine[slot] = byte;
                    let slot = next(&mut random) as usize % mine.len();
                    let mut seen = [0; 512];
                    disk.read_at((slot as u64 * 4 + thread) * 512, &mut seen).unwrap();
                    assert_eq!(seen, [mine[slot]; 512]);
                    if round % 100 == 0 {
                        disk.flush().unwrap();
                    }
                }
            });
        }
    });
    drop(disk);
    assert_clean(file.content(), &kind);
}

#[test]
fn a_chain_of_base_images_is_followed_and_a_circle_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    create(&place("base.raw"), &CreateOptions::new(Format::Raw, 1 << 20)).unwrap();
    let raw = open(&OpenOptions { format: Some(Format::Raw), ..OpenOptions::new(place("base.raw")) }).unwrap();
    raw.write_at(1000, b"from the base").unwrap();
    drop(raw);
    let on = |name: &str, format| CreateOptions {
        backing: Some(Backing { name: name.into(), format }),
        ..CreateOptions::new(Format::Qcow2, 2 << 20)
    };
    create(&place("middle.qcow2"), &on("base.raw", Format::Raw)).unwrap();
    create(&place("top.qcow2"), &on("middle.qcow2", Format::Qcow2)).unwrap();
    let top = open(&OpenOptions::new(place("top.qcow2"))).unwrap();
    top.write_at(1005, b"THE").unwrap();
    let mut seen = [0; 13];
    top.read_at(1000, &mut seen).unwrap();
    assert_eq!(&seen, b"from THE base");
    assert_eq!(top.extent_at(1 << 20).unwrap().kind, ExtentKind::Backing);
    drop(top);

    create(&place("a.qcow2"), &on("b.qcow2", Format::Qcow2)).unwrap();
    create(&place("b.qcow2"), &on("a.qcow2", Format::Qcow2)).unwrap();
    create(&place("self.qcow2"), &on("self.qcow2", Format::Qcow2)).unwrap();
    for name in ["a.qcow2", "self.qcow2"] {
        let error = open(&OpenOptions::new(place(name))).err().unwrap().to_string();
        assert!(error.contains("in a circle"), "{error}");
    }
}

#[test]
fn base_images_outside_the_folder_are_refused_when_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let outside = folder.path().join("outside.raw");
    std::fs::write(&outside, [1; 4096]).unwrap();
    for name in ["../outside.raw", outside.to_str().unwrap()] {
        let path = inner.join(format!("{}.qcow2", name.len()));
        let backing = Some(Backing { name: name.into(), format: Format::Raw });
        create(&path, &CreateOptions { backing, ..CreateOptions::new(Format::Qcow2, 4096) }).unwrap();
        open(&OpenOptions::new(&path)).unwrap();
        for backing_files in [crate::BackingFiles::BesideDisk, crate::BackingFiles::Refused] {
            let result = open(&OpenOptions { backing_files, ..OpenOptions::new(&path) });
            assert!(matches!(result, Err(DiskError::Backing { .. })));
        }
    }
}

#[test]
fn impossible_options_are_refused_with_a_reason_and_leave_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.qcow2");
    let usual = Qcow2Options::default();
    let cases = [
        (Qcow2Options { cluster_size: 256, ..usual }, 1 << 20),
        (Qcow2Options { cluster_size: 65_537, ..usual }, 1 << 20),
        (Qcow2Options { refcount_bits: 3, ..usual }, 1 << 20),
        (Qcow2Options { version: 2, refcount_bits: 8, ..usual }, 1 << 20),
        (Qcow2Options { version: 4, ..usual }, 1 << 20),
        (Qcow2Options { version: 2, extended_l2: true, ..usual }, 1 << 20),
        (Qcow2Options { cluster_size: 8192, extended_l2: true, ..usual }, 1 << 20),
        (Qcow2Options { cluster_size: 512, ..usual }, 1 << 40),
        (usual, 1000),
        (usual, 1 << 63),
    ];
    for (qcow2, size) in cases {
        assert!(matches!(create(&path, &options(qcow2, size)), Err(DiskError::BadOptions { .. })), "{qcow2:?} {size}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Every host error number that matters here.
const ENOSPC: i32 = 28;
const EIO: i32 = 5;

#[test]
fn a_failed_flush_fences_the_disk_until_it_is_opened_again() {
    let file = Arc::new(SimFile::new(empty(Qcow2Options::default(), 1 << 20)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    disk.write_at(0, &[1; 512]).unwrap();
    disk.flush().unwrap();
    file.fail(Some(crate::Fault { at: 1, persists: false, errno: EIO }));
    disk.write_at(0, &[2; 512]).unwrap();
    assert!(matches!(disk.flush(), Err(DiskError::Host { .. })));
    assert!(matches!(disk.flush(), Err(DiskError::Fenced { .. })), "a second flush must not pretend");
    assert!(matches!(disk.write_at(0, &[3; 512]), Err(DiskError::Fenced { .. })));
    let mut byte = [0];
    disk.read_at(0, &mut byte).unwrap();
    let before = file.operations();
    drop(disk);
    assert_eq!(file.operations(), before, "closing a fenced disk touches nothing");
    assert_eq!(io::Error::from_raw_os_error(ENOSPC).kind(), io::ErrorKind::StorageFull);
    open_sim(&file, Access::ReadWrite, None).unwrap().write_at(0, &[3; 512]).unwrap();
}

#[test]
fn threads_that_write_discard_and_flush_side_by_side_never_meet_in_one_cluster() {
    // A discarded cluster is handed out again while others still flush: its hole must not swallow the new owner's data.
    let kind = Qcow2Options { cluster_size: 4096, ..Qcow2Options::default() };
    let file = Arc::new(SimFile::new(empty(kind, 4 << 20)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    let threads = 4_u64;
    let share = disk.len() / threads;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let disk = &disk;
            scope.spawn(move || {
                let mut random = thread * 77 + 5;
                let mut bytes = vec![0_u8; share as usize];
                for round in 0..3000_u64 {
                    let at = next(&mut random) % (share / 4096) * 4096;
                    let length = (4096 * (1 + next(&mut random) % 4)).min(share - at);
                    let range = at as usize..(at + length) as usize;
                    let place = thread * share + at;
                    match next(&mut random) % 8 {
                        0..4 => {
                            let byte = (round as u8 & 0x3f) << 2 | thread as u8;
                            disk.write_at(place, &vec![byte; length as usize]).unwrap();
                            bytes[range].fill(byte);
                        }
                        4 | 5 => {
                            disk.discard(place, length).unwrap();
                            bytes[range].fill(0);
                        }
                        6 => disk.flush().unwrap(),
                        _ => {
                            let mut seen = vec![0xaa; length as usize];
                            disk.read_at(place, &mut seen).unwrap();
                            assert!(seen == bytes[range.clone()], "thread {thread}, round {round}: {range:?}");
                        }
                    }
                }
            });
        }
    });
    drop(disk);
    assert_clean(file.content(), &kind);
}
