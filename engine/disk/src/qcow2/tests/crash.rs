//! Crashes between any two writes. Each image that a crash could leave must open, must have every count at least as
//! high as its references, and must hold in each sector what was flushed last or something written after it.

use std::collections::HashMap;
use std::time::Instant;

use super::*;
use crate::sim_file::CrashImages;

const SECTOR: u64 = 512;

/// What a sector held from when on. `started` counts recorded file operations, `step` what was done with the disk.
#[derive(Clone, Debug)]
struct Version {
    started: usize,
    step: usize,
    content: Stamp,
}

/// The content of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stamp {
    /// Zeros.
    Zero,
    /// As the base image has it.
    Base,
    /// The n-th write.
    Written(u64),
}

impl Stamp {
    fn fill(self, sector: u64, buffer: &mut [u8], base: Option<&[u8]>) {
        match self {
            Stamp::Zero => buffer.fill(0),
            Stamp::Base => {
                let start = (sector * SECTOR) as usize;
                buffer.fill(0);
                if let Some(bytes) = base.and_then(|base| base.get(start..)) {
                    let count = bytes.len().min(buffer.len());
                    buffer[..count].copy_from_slice(&bytes[..count]);
                }
            }
            // Sector and number are in every word, so that content from elsewhere is never mistaken.
            Stamp::Written(number) => {
                for (index, word) in buffer.chunks_mut(8).enumerate() {
                    let value = (sector << 40 | number << 8 | 0x80) ^ (index as u64) << 56;
                    word.copy_from_slice(&value.to_be_bytes());
                }
            }
        }
    }
}

/// A disk with its operations and what each sector has held.
struct Recorded {
    base: Option<Vec<u8>>,
    file: Arc<SimFile>,
    image: Vec<u8>,
    history: Vec<Vec<Version>>,
    /// What was done so far: changes and flushes.
    steps: usize,
    /// For each flush that succeeded: the step that it was, and recorded operations after it ended.
    flushes: Vec<(usize, usize)>,
}

impl Recorded {
    fn new(kind: Qcow2Options, size: u64, base: Option<Vec<u8>>, prepare: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut image = empty(kind, size);
        prepare(&mut image);
        let file = Arc::new(SimFile::new(image.clone()));
        file.start_recording();
        let first = if base.is_some() { Stamp::Base } else { Stamp::Zero };
        let history = vec![vec![Version { started: 0, step: 0, content: first }]; (size / SECTOR) as usize];
        Self { base, file, image, history, steps: 0, flushes: Vec::new() }
    }

    fn note(&mut self, sectors: std::ops::Range<u64>, started: usize, content: Stamp) {
        self.steps += 1;
        let step = self.steps;
        for sector in sectors {
            self.history[sector as usize].push(Version { started, step, content });
        }
    }

    fn note_flush(&mut self) {
        self.steps += 1;
        self.flushes.push((self.steps, self.file.recorded()));
    }

    /// Runs random operations on the disk.
    fn run(&mut self, seed: u64, operations: u64, longest: u64) {
        let disk = open_sim(&self.file, Access::ReadWrite, self.base.as_deref()).unwrap();
        let mut random = seed;
        let sectors = self.history.len() as u64;
        let mut buffer = Vec::new();
        for number in 1..=operations {
            let first = next(&mut random) % sectors;
            let count = (1 + next(&mut random) % (longest / SECTOR)).min(sectors - first);
            let started = self.file.recorded();
            let (offset, length) = (first * SECTOR, count * SECTOR);
            match next(&mut random) % 12 {
                0..6 => {
                    buffer.resize(length as usize, 0);
                    for (index, sector) in buffer.chunks_mut(SECTOR as usize).enumerate() {
                        Stamp::Written(number).fill(first + index as u64, sector, None);
                    }
                    disk.write_at(offset, &buffer).unwrap();
                    self.note(first..first + count, started, Stamp::Written(number));
                }
                6 => {
                    disk.write_zeroes(offset, length).unwrap();
                    self.note(first..first + count, started, Stamp::Zero);
                }
                7 | 8 => {
                    disk.discard(offset, length).unwrap();
                    let mut now = vec![0; length as usize];
                    disk.read_at(offset, &mut now).unwrap();
                    for (index, sector) in now.chunks(SECTOR as usize).enumerate() {
                        if sector.iter().all(|byte| *byte == 0) {
                            self.note(first + index as u64..first + index as u64 + 1, started, Stamp::Zero);
                        }
                    }
                }
                _ => {
                    disk.flush().unwrap();
                    self.note_flush();
                }
            }
        }
        drop(disk);
    }

    /// Visits crash images and checks each; returns how many there were, and how many had leaks.
    fn crash(&self, crashes: CrashImages, most: usize, context: &str) -> (usize, usize) {
        let (mut images, mut leaking) = (0, 0);
        let log = self.file.log();
        let mut expected = vec![0; SECTOR as usize];
        let mut seen_before = HashMap::new();
        let file = Arc::new(SimFile::new(Vec::new()));
        crashes.visit_on(&file, &self.image, &log, |crashed_at| {
            images += 1;
            if images > most {
                return;
            }
            // Many sets of lost writes leave the same bytes behind at the same moment.
            let hash = file.look(fingerprint);
            if seen_before.insert(hash, crashed_at) == Some(crashed_at) {
                return;
            }
            let report = check(Arc::clone(&file) as Arc<dyn BlockFile>).unwrap();
            assert_eq!((report.errors, report.unmarked), (0, 0), "{context}, crash at {crashed_at}: {:?}", report.details);
            leaking += usize::from(report.leaks > 0);
            let disk = open_sim(&file, Access::ReadWrite, self.base.as_deref())
                .unwrap_or_else(|error| panic!("{context}, crash at {crashed_at}: {error}"));
            let content = read_all(&disk);
            // The last flush that had succeeded by then; what was done before it is durable.
            let durable = self.flushes.iter().rev().find(|(_, ended)| *ended <= crashed_at).map_or(0, |(step, _)| *step);
            for (sector, found) in content.chunks(SECTOR as usize).enumerate() {
                let versions = &self.history[sector];
                let oldest = versions.iter().rposition(|version| version.step <= durable).unwrap_or(0);
                let allowed = versions[oldest..].iter().filter(|version| version.started <= crashed_at);
                let is_allowed = allowed.clone().any(|version| {
                    version.content.fill(sector as u64, &mut expected, self.base.as_deref());
                    expected == found
                });
                assert!(
                    is_allowed,
                    "{context}, crash at {crashed_at}: sector {sector} begins {:02x?}, allowed {:?}",
                    &found[..16],
                    allowed.collect::<Vec<_>>()
                );
            }
            // The disk must go on working: what it writes now may not destroy what it holds.
            if hash.is_multiple_of(16) {
                disk.write_at(0, &[0x5a; 3 * SECTOR as usize]).unwrap();
                disk.flush().unwrap();
                let again = read_all(&disk);
                assert!(again[3 * SECTOR as usize..] == content[3 * SECTOR as usize..], "{context}: a write went astray");
                drop(disk);
                assert_eq!(check(Arc::clone(&file) as _).unwrap().errors, 0, "{context}: after going on");
            }
        });
        (images.min(most), leaking)
    }
}

pub(super) fn fingerprint(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // Four sums side by side, which a processor adds up at once.
    let mut sums = [bytes.len() as u64, 1, 2, 3];
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        for (sum, word) in sums.iter_mut().zip(block.as_chunks::<8>().0) {
            *sum = mix(*sum, u64::from_le_bytes(*word));
        }
    }
    rest.iter().map(|byte| u64::from(*byte)).chain(sums).fold(0, mix)
}

/// So many images are checked in the normal run. `DISK_CRASH_IMAGES` asks for another number.
const IMAGES: usize = 110_000;

#[test]
fn no_crash_leaves_more_than_unused_clusters() {
    let wanted = std::env::var("DISK_CRASH_IMAGES").ok().and_then(|n| n.parse().ok()).unwrap_or(IMAGES);
    let started = Instant::now();
    let three = Qcow2Options::default();
    let small = Qcow2Options { cluster_size: 512, ..three };
    let kinds = [
        (small, 48 << 10, 5 << 10),
        (Qcow2Options { version: 2, ..small }, 48 << 10, 5 << 10),
        (Qcow2Options { refcount_bits: 1, ..small }, 48 << 10, 5 << 10),
        (Qcow2Options { refcount_bits: 2, ..small }, 48 << 10, 5 << 10),
        (Qcow2Options { refcount_bits: 4, ..small }, 48 << 10, 5 << 10),
        (Qcow2Options { refcount_bits: 8, ..small }, 48 << 10, 5 << 10),
        (Qcow2Options { refcount_bits: 32, ..small }, 48 << 10, 5 << 10),
        (Qcow2Options { refcount_bits: 64, ..small }, 96 << 10, 9 << 10),
        (Qcow2Options { cluster_size: 4096, ..three }, 160 << 10, 16 << 10),
        (Qcow2Options { cluster_size: 4096, version: 2, ..three }, 160 << 10, 16 << 10),
        (three, 512 << 10, 80 << 10),
    ];
    let jobs: Vec<_> = kinds.into_iter().flat_map(|kind| [(kind, false), (kind, true)]).collect();
    let share = wanted.div_ceil(jobs.len());
    // Two threads, because the machines this runs on have two cores.
    let halves: Vec<Vec<_>> = (0..2).map(|half| jobs.iter().skip(half).step_by(2).collect()).collect();
    let (images, leaking) = std::thread::scope(|scope| {
        let workers: Vec<_> = halves
            .iter()
            .map(|jobs| scope.spawn(move || jobs.iter().fold((0, 0), |sum, job| add(sum, crash_job(job, share)))))
            .collect();
        workers.into_iter().fold((0, 0), |sum, worker| add(sum, worker.join().unwrap()))
    });
    println!("{images} crash images, {leaking} with unused clusters, 0 inconsistent, in {:.1?}", started.elapsed());
    assert!(images >= wanted.min(100_000), "only {images} images");
}

fn add(left: (usize, usize), right: (usize, usize)) -> (usize, usize) {
    (left.0 + right.0, left.1 + right.1)
}

type Job = ((Qcow2Options, u64, u64), bool);

/// Crashes runs of one kind of image until there were enough.
fn crash_job(((kind, size, longest), with_base): &Job, share: usize) -> (usize, usize) {
    let mut sum = (0, 0);
    for seed in 1.. {
        if sum.0 >= share {
            break;
        }
        let base = with_base.then(|| (0..size - 1536).map(|n| (n / 512 % 251 + 1) as u8).collect());
        let mut recorded = Recorded::new(*kind, *size, base, |_| {});
        recorded.run(seed * 0x1234_5677, 60, *longest);
        let crashes = CrashImages { seed, pairs: 200, random_sets: 60, ..CrashImages::default() };
        let context = format!("{kind:?}, base {with_base}, seed {seed}");
        sum = add(sum, recorded.crash(crashes, share - sum.0, &context));
    }
    sum
}

#[test]
fn no_crash_while_the_refcount_table_moves_does_harm() {
    // A table of one cluster with 64 blocks of 64 clusters: it is full after 2 MiB, so most of it is filled first.
    let kind = Qcow2Options { cluster_size: 512, refcount_bits: 64, ..Qcow2Options::default() };
    let size = 2304 << 10;
    let file = Arc::new(SimFile::new(empty(kind, size)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    let mut filled = 0;
    while file.content().len() < (2 << 20) - 8192 {
        disk.write_at(filled, &[9; 4096]).unwrap();
        filled += 4096;
    }
    drop(disk);
    let image = file.content();
    let before = image[48..60].to_vec();
    let mut recorded = Recorded::new(kind, size, None, |content| *content = image);
    for sector in 0..filled / SECTOR {
        recorded.history[sector as usize].clear();
    }
    let disk = open_sim(&recorded.file, Access::ReadWrite, None).unwrap();
    for number in 0..12 {
        let first = filled / SECTOR + number * 4;
        let started = recorded.file.recorded();
        let mut data = vec![0; 2048];
        for (index, sector) in data.chunks_mut(512).enumerate() {
            Stamp::Written(number + 1).fill(first + index as u64, sector, None);
        }
        disk.write_at(first * SECTOR, &data).unwrap();
        recorded.note(first..first + 4, started, Stamp::Written(number + 1));
        if number % 4 == 3 {
            disk.flush().unwrap();
            recorded.note_flush();
        }
    }
    drop(disk);
    assert_ne!(recorded.file.content()[48..60], before, "the table was meant to move");
    // The filled part is not looked at sector by sector; here the structure counts.
    let log = recorded.file.log();
    let mut images = 0;
    CrashImages { seed: 3, pairs: 100, random_sets: 30, ..CrashImages::default() }.visit(&recorded.image, &log, |at, image| {
        images += 1;
        let file = Arc::new(SimFile::new(image.to_vec()));
        let report = check(Arc::clone(&file) as Arc<dyn BlockFile>).unwrap();
        assert_eq!(report.errors, 0, "crash at {at}: {:?}", report.details);
        open_sim(&file, Access::ReadWrite, None).unwrap();
    });
    assert!(images > 200, "{images}");
}

#[test]
fn qemu_too_finds_nothing_but_unused_clusters_after_a_crash() {
    let Some((folder, _alone)) = super::qemu::bench("crash images") else { return };
    let path = folder.path().join("crashed.qcow2");
    let three = Qcow2Options::default();
    let kinds = [
        (Qcow2Options { cluster_size: 512, ..three }, 48 << 10),
        (Qcow2Options { version: 2, cluster_size: 4096, ..three }, 160 << 10),
        (three, 512 << 10),
    ];
    let mut checked = 0;
    for (number, (kind, size)) in kinds.into_iter().enumerate() {
        let mut recorded = Recorded::new(kind, size, None, |_| {});
        recorded.run(number as u64 + 55, 60, size / 8);
        let mut images = 0;
        CrashImages { seed: 4, pairs: 20, random_sets: 20, ..CrashImages::default() }.visit(
            &recorded.image,
            &recorded.file.log(),
            |at, image| {
                images += 1;
                if images % 13 != 0 || images > 13 * 60 {
                    return;
                }
                std::fs::write(&path, image).unwrap();
                let output = std::process::Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&path).output().unwrap();
                // 0: sound, 3: leaks.
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(matches!(output.status.code(), Some(0 | 3)), "{kind:?}, crash at {at}: {said}");
                checked += 1;
            },
        );
    }
    println!("{checked} crash images checked by QEMU");
    assert!(checked > 60, "{checked}");
}

#[test]
fn the_oracle_finds_a_planted_mistake_in_the_order() {
    // The same bytes, but with every flush but the last removed from the log: now writes may overtake each other.
    let kind = Qcow2Options { cluster_size: 512, ..Qcow2Options::default() };
    let mut recorded = Recorded::new(kind, 48 << 10, None, |_| {});
    recorded.run(99, 60, 5 << 10);
    let mut log = recorded.file.log();
    log.retain(|operation| *operation != crate::Operation::Flush);
    let mut wrong = 0;
    CrashImages { seed: 1, pairs: 50, random_sets: 50, ..CrashImages::default() }.visit(&recorded.image, &log, |_, image| {
        let report = check(Arc::new(SimFile::new(image.to_vec())));
        wrong += u64::from(report.map_or(1, |report| report.errors) > 0);
    });
    assert!(wrong > 20, "a log without barriers must leave broken images; only {wrong} were");
}
