//! Every sequence of up to three operations, on several kinds of image, crashed at every write with every set of
//! lost writes. What is found afterwards must be a state that the disk had, or between two that it had, and nothing
//! before the last operation that promised durability: content, size and snapshots alike.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use super::bitmaps::{trusted_marks, unmarked_change};
use super::*;
use crate::sim_file::CrashImages;
use crate::{NewSnapshot, Preallocation};

const SECTOR: usize = 512;

macro_rules! steps {
    ($($step:ident),* $(,)?) => {
        /// One step of a sequence.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Step {
            $($step),*
        }

        const STEPS: &[Step] = &[$(Step::$step),*];
    };
}

steps! {
    WriteSmall, WriteCluster, WriteSpan, WriteThrough, Flush, Discard, Zero, Pack, Create, Apply, Delete, Grow, Shrink, Bitmap, Reopen,
}

use Step::*;

impl Step {
    /// Whether the marks "ours alone" may be behind the counts while it runs.
    fn moves_marks(self) -> bool {
        matches!(self, Create | Apply | Delete)
    }
}

/// All that can be seen of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    content: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
}

/// A step that was done.
struct Done {
    step: Step,
    /// Whether all that came before was durable when it returned.
    is_durable: bool,
    started: usize,
    ended: usize,
    after: State,
}

/// What every sequence on one kind of image begins with.
struct Start {
    kind: Qcow2Options,
    base: Option<Vec<u8>>,
    image: Vec<u8>,
    state: State,
}

impl Start {
    fn new(kind: Qcow2Options, clusters: u64, with_base: bool) -> Self {
        let size = clusters * kind.cluster_size;
        let base: Option<Vec<u8>> = with_base.then(|| (0..size - 1536).map(|at| (at / 512 % 251 + 1) as u8).collect());
        let file = Arc::new(SimFile::new(empty(kind, size)));
        let disk = open_sim(&file, Access::ReadWrite, base.as_deref()).unwrap();
        let cluster = kind.cluster_size;
        disk.write_at(cluster, &vec![0x61; 3 * cluster as usize]).unwrap();
        disk.write_compressed(5 * cluster, &vec![0x62; 2 * cluster as usize]).unwrap();
        // Narrow counts have no room for a snapshot; then there is none to apply or delete.
        disk.create_snapshot(&NewSnapshot { name: "kept".into(), ..NewSnapshot::default() }).ok();
        disk.write_at(2 * cluster + 512, &vec![0x63; cluster as usize]).unwrap();
        disk.write_zeroes(6 * cluster, cluster).unwrap();
        // From here on a bitmap follows, where the version knows such.
        disk.bitmaps().unwrap().add("kept", Some(512)).ok();
        drop(disk);
        let state = observe(&open_sim(&file, Access::ReadOnly, base.as_deref()).unwrap(), &file, base.as_deref());
        Self { kind, base, image: file.content(), state }
    }

    fn open(&self, file: &Arc<SimFile>) -> Result<Qcow2, DiskError> {
        open_sim(file, Access::ReadWrite, self.base.as_deref())
    }

    /// Does the steps; the file has recorded them.
    fn run(&self, steps: &[Step]) -> (Arc<SimFile>, Vec<Done>) {
        let file = Arc::new(SimFile::new(self.image.clone()));
        file.start_recording();
        let mut disk = self.open(&file).unwrap();
        let mut all_done = Vec::new();
        for (number, step) in steps.iter().enumerate() {
            let started = file.recorded();
            let byte = 0x80 + number as u8 * 16 + *step as u8;
            let is_durable = self.step(&disk, *step, byte);
            if *step == Reopen {
                drop(disk);
                disk = self.open(&file).unwrap();
            }
            let ended = file.recorded();
            let after = self.state_after(&disk, *step, all_done.last().map_or(&self.state, |done: &Done| &done.after));
            all_done.push(Done { step: *step, is_durable, started, ended, after });
        }
        // Closing is a step of its own, which every sequence ends with.
        let started = file.recorded();
        drop(disk);
        let after = all_done.last().map_or(&self.state, |done| &done.after).clone();
        all_done.push(Done { step: Reopen, is_durable: false, started, ended: file.recorded(), after });
        (file, all_done)
    }

    /// Does a step; returns whether all is durable now.
    fn step(&self, disk: &Qcow2, step: Step, byte: u8) -> bool {
        let cluster = self.kind.cluster_size;
        let part = if self.kind.extended_l2 { cluster / 32 * 3 } else { 0 };
        let (size, bytes) = (disk.len(), |length: u64| vec![byte; length as usize]);
        let result = match step {
            WriteSmall => disk.write_at(cluster, &bytes(512)),
            WriteCluster => disk.write_at(4 * cluster, &bytes(cluster)),
            WriteSpan => disk.write_at(5 * cluster - 512, &bytes(2 * cluster + 1024)),
            WriteThrough => disk.write_at(size - 1024, &bytes(1024)).and_then(|()| disk.flush()),
            Flush => disk.flush(),
            // With subclusters a part of the first and of the last cluster stays.
            Discard => disk.discard(cluster + part, 4 * cluster - 2 * part),
            Zero => disk.write_zeroes(2 * cluster - 512, 2 * cluster),
            Pack => disk.write_compressed(3 * cluster, &bytes(2 * cluster)),
            Create => disk.create_snapshot(&NewSnapshot { name: format!("{byte:x}"), ..NewSnapshot::default() }),
            Apply => disk.apply_snapshot("kept"),
            Delete => disk.delete_snapshot("kept"),
            Grow => disk.resize(size + 70 * cluster, Preallocation::Off),
            Shrink => disk.resize(size - 4 * cluster, Preallocation::Off),
            Bitmap => disk.bitmaps().unwrap().add(&format!("{byte:x}"), None),
            Reopen => Ok(()),
        };
        // A snapshot that does not fit or is not there, and a version 2 disk that has one, are refused. A refusal is
        // a thing to crash in too, but it promises nothing.
        let may_be_refused = matches!(step, Create | Apply | Delete | Grow | Shrink | Bitmap);
        assert!(may_be_refused || result.is_ok(), "{step:?}: {result:?}");
        result.is_ok() && (may_be_refused || matches!(step, WriteThrough | Flush))
    }

    /// What can be seen after a step. Content is read; snapshots follow from what was done.
    fn state_after(&self, disk: &Qcow2, step: Step, before: &State) -> State {
        let content = read_all(disk);
        let names: Vec<String> = disk.snapshots().into_iter().map(|snapshot| snapshot.name).collect();
        let known = |name: &String| before.snapshots.iter().find(|(known, _)| known == name).map(|(_, content)| content.clone());
        let snapshots = names.into_iter().map(|name| {
            let content = known(&name).unwrap_or_else(|| {
                assert_eq!(step, Create);
                before.content.clone()
            });
            (name, content)
        });
        State { content, snapshots: snapshots.collect() }
    }
}

/// Looks at a disk and all its snapshots.
fn observe(disk: &Qcow2, file: &Arc<SimFile>, base: Option<&[u8]>) -> State {
    let snapshots = disk.snapshots().into_iter().map(|snapshot| {
        let mut then = Qcow2::open_at(Arc::clone(file) as _, Access::ReadOnly, Some(&snapshot.id), |_| Ok(None)).unwrap();
        then.backing = base.map(|base| Arc::new(Base(base.to_vec())) as Arc<dyn DiskImage>);
        (snapshot.name, read_all(&then))
    });
    let snapshots = snapshots.collect();
    State { content: read_all(disk), snapshots }
}

#[derive(Clone, Copy, Default)]
struct Figures {
    sequences: usize,
    images: usize,
    distinct: usize,
    leaking: usize,
    unmarked: usize,
    trusted_bitmaps: usize,
    judged_by_qemu: usize,
}

impl Figures {
    fn and(self, other: Figures) -> Figures {
        Figures {
            sequences: self.sequences + other.sequences,
            images: self.images + other.images,
            distinct: self.distinct + other.distinct,
            leaking: self.leaking + other.leaking,
            unmarked: self.unmarked + other.unmarked,
            trusted_bitmaps: self.trusted_bitmaps + other.trusted_bitmaps,
            judged_by_qemu: self.judged_by_qemu + other.judged_by_qemu,
        }
    }
}

/// Crashes one sequence during its last step and on closing (its earlier steps were crashed as shorter sequences).
fn crash(start: &Start, steps: &[Step], figures: &mut Figures, judge: &mut impl FnMut(&SimFile, bool)) {
    let (file, all_done) = start.run(steps);
    let since = all_done[steps.len() - 1].started;
    let mut seen = HashSet::new();
    let crashes = CrashImages { seed: 11, pairs: 40, random_sets: 40, all_sets_up_to: 6, since };
    let crashed = Arc::new(SimFile::new(Vec::new()));
    figures.sequences += 1;
    crashes.visit_on(&crashed, &start.image, &file.log(), |crashed_at| {
        figures.images += 1;
        if !seen.insert((crashed.look(super::crash::fingerprint), crashed_at)) {
            return;
        }
        figures.distinct += 1;
        let context = || format!("{:?}, base {}, {steps:?}, crash at {crashed_at}", start.kind, start.base.is_some());
        let durable = all_done.iter().rposition(|done| done.is_durable && done.ended <= crashed_at);
        let begun = all_done.iter().filter(|done| done.started <= crashed_at).count();
        let next = durable.map_or(0, |index| index + 1);
        let first = durable.map_or(&start.state, |index| &all_done[index].after);
        let possible: Vec<&State> = std::iter::once(first).chain(all_done[next..begun].iter().map(|done| &done.after)).collect();

        let report = check(Arc::clone(&crashed) as _).unwrap_or_else(|error| panic!("{}: {error}", context()));
        assert_eq!(report.errors, 0, "{}: {:?}", context(), report.details);
        let may_be_unmarked = all_done[next..begun].iter().any(|done| done.step.moves_marks());
        assert!(report.unmarked == 0 || may_be_unmarked, "{}: {} entries unmarked", context(), report.unmarked);
        figures.leaking += usize::from(report.leaks > 0);
        figures.unmarked += usize::from(report.unmarked > 0);
        judge(&crashed, report.unmarked > 0);
        // Opened for writing it would be told that nobody follows the bitmap any more.
        let marks = trusted_marks(&open_sim(&crashed, Access::ReadOnly, start.base.as_deref()).unwrap(), "kept");
        figures.trusted_bitmaps += usize::from(marks.is_some());

        let disk = start.open(&crashed).unwrap_or_else(|error| panic!("{}: {error}", context()));
        let found = observe(&disk, &crashed, start.base.as_deref());
        if let Some(at) = marks.and_then(|marks| unmarked_change(&marks, &found.content, &start.state.content)) {
            panic!("{}: sector {at} has changed, and a bitmap that looks sound does not say so", context());
        }
        assert!(possible.iter().any(|state| state.snapshots == found.snapshots), "{}: other snapshots", context());
        let size = found.content.len();
        assert!(possible.iter().any(|state| state.content.len() == size), "{}: size {size}", context());
        for (sector, bytes) in found.content.chunks(SECTOR).enumerate() {
            let at = sector * SECTOR;
            let is_allowed = possible.iter().any(|state| state.content.get(at..at + SECTOR).is_some_and(|old| old == bytes));
            assert!(is_allowed, "{}: sector {sector} begins {:02x?}", context(), &bytes[..8]);
        }
        if let (true, [before, after]) = (all_done[next..begun].iter().all(|done| done.step == Apply), &possible[..]) {
            assert!(found == **before || found == **after, "{}: a snapshot was applied in part", context());
        }
        // The disk goes on working, and what it writes now harms nothing.
        if figures.distinct.is_multiple_of(8) && size >= 4096 {
            disk.write_at(512, &[0x5a; 2048]).unwrap();
            drop(disk);
            let again = observe(&start.open(&crashed).unwrap(), &crashed, start.base.as_deref());
            assert!(again.content[2560..] == found.content[2560..] && again.snapshots == found.snapshots, "{}", context());
            assert_eq!(check(Arc::clone(&crashed) as _).unwrap().errors, 0, "{}", context());
        }
    });
}

/// All sequences of exactly `length` steps, those that are alike far from each other.
fn sequences(length: u32) -> impl Iterator<Item = Vec<Step>> {
    // A prime that does not divide their number leads to each of them once.
    const STRIDE: usize = 7919;
    let count = STEPS.len().pow(length);
    let numbers = (0..count).map(move |turn| turn * STRIDE % count);
    numbers.map(move |number| (0..length).map(|place| STEPS[number / STEPS.len().pow(place) % STEPS.len()]).collect())
}

fn starts() -> Vec<Start> {
    let small = Qcow2Options { cluster_size: 512, ..Qcow2Options::default() };
    let kinds = [
        (small, false),
        (small, true),
        (Qcow2Options { version: 2, ..small }, false),
        (Qcow2Options { version: 2, ..small }, true),
        (Qcow2Options { refcount_bits: 1, ..small }, false),
        (Qcow2Options { refcount_bits: 2, ..small }, true),
        (Qcow2Options { refcount_bits: 4, ..small }, false),
        (Qcow2Options { refcount_bits: 8, ..small }, true),
        (Qcow2Options { refcount_bits: 32, ..small }, false),
        (Qcow2Options { refcount_bits: 64, ..small }, true),
        (Qcow2Options { compression: Compression::Zstd, cluster_size: 1024, ..small }, false),
        (Qcow2Options { cluster_size: 2048, ..small }, true),
        (Qcow2Options { cluster_size: 16384, extended_l2: true, ..small }, false),
        (Qcow2Options { cluster_size: 16384, extended_l2: true, ..small }, true),
    ];
    kinds.into_iter().map(|(kind, with_base)| Start::new(kind, 20, with_base)).collect()
}

/// Lets QEMU judge one image in so many, if it is there.
fn qemu_judge(one_in: usize) -> Option<impl FnMut(&SimFile, bool) -> bool + Send> {
    let bench = super::qemu::bench("judging crash images")?;
    let mut count = 0;
    Some(move |file: &SimFile, is_unmarked: bool| {
        count += 1;
        if !usize::is_multiple_of(count, one_in) {
            return false;
        }
        let path = bench.0.path().join("crashed.qcow2");
        file.look(|image| std::fs::write(&path, image)).unwrap();
        let output = std::process::Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&path).output().unwrap();
        let code = output.status.code();
        // 0: sound, 3: leaks. A missing mark is an error to QEMU, though it harms nothing.
        let is_fine = matches!(code, Some(0 | 3)) || (is_unmarked && code == Some(2));
        assert!(is_fine, "{}", String::from_utf8_lossy(&output.stdout));
        true
    })
}

/// What is to be done with one start: sequences of so many steps.
type Job<'a> = (&'a Start, std::ops::RangeInclusive<u32>);

/// So many sequences are taken at a time.
const BATCH: usize = 15;

/// Crashes the sequences of each job on two threads, because the machines this runs on have two cores. The jobs take turns,
/// so that each has had its part whenever one stops; beyond the given number of images nothing more is begun.
fn run(jobs: &[Job<'_>], most: usize, one_in_for_qemu: usize) -> Vec<Figures> {
    let began = Instant::now();
    let sequences: Vec<Vec<_>> = jobs.iter().map(|(_, lengths)| lengths.clone().flat_map(sequences).collect()).collect();
    let turns = sequences.iter().map(|all| all.len().div_ceil(BATCH)).max().unwrap_or(0) * jobs.len();
    let next_turn = AtomicUsize::new(0);
    let results = Mutex::new((vec![Figures::default(); jobs.len()], began));
    let qemu = Mutex::new(qemu_judge(one_in_for_qemu));
    let work = || {
        loop {
            let turn = next_turn.fetch_add(1, Ordering::Relaxed);
            if turn >= turns {
                break;
            }
            let job = turn % jobs.len();
            let Some(batch) = sequences[job].chunks(BATCH).nth(turn / jobs.len()) else { continue };
            let mut figures = Figures::default();
            for steps in batch {
                let mut judged = 0;
                crash(jobs[job].0, steps, &mut figures, &mut |file, is_unmarked| {
                    judged += usize::from(qemu.lock().unwrap().as_mut().is_some_and(|judge| judge(file, is_unmarked)));
                });
                figures.judged_by_qemu += judged;
            }
            let (all, told) = &mut *results.lock().unwrap();
            all[job] = all[job].and(figures);
            let images: usize = all.iter().map(|figures| figures.images).sum();
            if told.elapsed().as_secs() > 60 {
                *told = Instant::now();
                println!("{images} images so far, {:.0?}", began.elapsed());
            }
            if images >= most {
                break;
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
    results.into_inner().unwrap().0
}

fn tell(jobs: &[Job<'_>], all: &[Figures], began: Instant) -> Figures {
    for ((start, _), Figures { sequences, images, distinct, .. }) in jobs.iter().zip(all) {
        let Qcow2Options { version, cluster_size, refcount_bits, compression, extended_l2, .. } = start.kind;
        let with = [("subclusters", extended_l2), ("a base", start.base.is_some())];
        let with: Vec<_> = with.into_iter().filter_map(|(what, has)| has.then_some(what)).collect();
        println!(
            "version {version}, clusters of {cluster_size}, counts of {refcount_bits} bits, {compression:?}, with {with:?}: {sequences} \
             sequences, {images} images, {distinct} distinct"
        );
    }
    let sum = all.iter().fold(Figures::default(), |sum, figures| sum.and(*figures));
    let Figures { sequences, images, distinct, leaking, unmarked, trusted_bitmaps, judged_by_qemu } = sum;
    println!(
        "{sequences} sequences, {images} crash images ({distinct} distinct and checked), 0 inconsistent; {leaking} with unused \
         clusters, {unmarked} with missing marks, {trusted_bitmaps} with a bitmap that is up to date; {judged_by_qemu} also judged by QEMU; {:.0?}",
        began.elapsed()
    );
    sum
}

#[test]
fn every_short_sequence_survives_every_crash() {
    let began = Instant::now();
    let starts = starts();
    let mut jobs: Vec<Job> = starts[..4].iter().map(|start| (start, 1..=2)).collect();
    jobs.extend(starts.last().map(|start| (start, 1..=1)));
    let figures = tell(&jobs, &run(&jobs, usize::MAX, 500), began);
    assert!(figures.distinct > 10_000, "{}", figures.distinct);
}

/// The slow suite: `cargo test --release -p engine_disk -- --ignored --nocapture five_million`. All sequences of up
/// to three steps on every kind, then of four until there were enough images.
#[test]
#[ignore = "takes a quarter of an hour"]
fn five_million_crash_images_of_all_sequences_of_three_and_more() {
    let began = Instant::now();
    let starts = starts();
    let three: Vec<Job> = starts.iter().map(|start| (start, 1..=3)).collect();
    println!("all sequences of up to three:");
    let figures = tell(&three, &run(&three, usize::MAX, 2000), began);
    let missing = 5_000_000_usize.saturating_sub(figures.images);
    if missing > 0 {
        let four: Vec<Job> = starts.iter().map(|start| (start, 4..=4)).collect();
        println!("some of four:");
        let more = tell(&four, &run(&four, missing, 2000), began);
        println!("{} crash images in all", figures.images + more.images);
    }
}
