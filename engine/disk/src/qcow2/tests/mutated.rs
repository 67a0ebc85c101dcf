//! Files made hostile by machine: every byte of every table of a rich image, changed in several ways. Whatever the
//! result, it is read, checked, repaired and worked with; nothing may panic, take long, grow without bound, change a
//! file that was refused, or make the counts worse than they were.

use std::time::Duration;

use super::*;
use crate::fuzz_tests::processor_time;
use crate::{NewSnapshot, Preallocation};

const CLUSTER: usize = 512;
/// What one file may cost at most.
const MOST_TIME: Duration = Duration::from_secs(2);
const MOST_GROWTH: usize = 8 << 20;

/// An image with data, zeros, compressed clusters, a snapshot, unknown extensions and all its tables; with the ranges
/// of the file that are metadata.
fn rich(compression: Compression) -> (Vec<u8>, Vec<std::ops::Range<usize>>) {
    let kind = Qcow2Options { cluster_size: CLUSTER as u64, compression, ..Qcow2Options::default() };
    let file = Arc::new(SimFile::new(empty(kind, 40 << 10)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    disk.write_at(0, &[7; 5 * CLUSTER]).unwrap();
    disk.write_compressed(8 * CLUSTER as u64, &[8; 3 * CLUSTER]).unwrap();
    disk.create_snapshot(&NewSnapshot { name: "s".into(), ..NewSnapshot::default() }).unwrap();
    disk.write_at(CLUSTER as u64, &[9; 2 * CLUSTER]).unwrap();
    disk.write_zeroes(12 * CLUSTER as u64, 2 * CLUSTER as u64).unwrap();
    disk.write_at(36 << 10, &[1; CLUSTER]).unwrap();
    drop(disk);
    let content = file.content();
    let field = |at: usize| u64::from_be_bytes(content[at..at + 8].try_into().unwrap());
    let (l1, refcounts, snapshots) = (field(40) as usize, field(48) as usize, field(64) as usize);
    let l2 = (field(l1) & mapping::OFFSET_MASK) as usize;
    let block = field(refcounts) as usize;
    let (snapshot_l1, packed) = (field(snapshots) as usize, (field(l2 + 64) & 0xff_ffff) as usize);
    let header = 0..176;
    let ranges = vec![header, l1..l1 + 16, l2..l2 + 120, refcounts..refcounts + 16, block..block + 48, snapshots..snapshots + 72];
    (content, [ranges, vec![snapshot_l1..snapshot_l1 + 16, packed..packed + 24]].concat())
}

/// Works with a file in every way. Says whether it could be opened for writing.
fn work(content: &[u8], context: &str) -> bool {
    let began = processor_time();
    let file = Arc::new(SimFile::new(content.to_vec()));
    let base = |_: &header::BackingName| Ok(Arc::new(Base(vec![1; 4096])) as Arc<dyn DiskImage>);
    let mut piece = vec![0; CLUSTER];
    let mut read = |disk: &Qcow2| {
        for at in (0..disk.len().min(64 << 10)).step_by(CLUSTER) {
            let length = (disk.len() - at).min(CLUSTER as u64) as usize;
            disk.read_at(at, &mut piece[..length]).ok();
            disk.extent_at(at).ok();
        }
    };
    if let Ok(disk) = Qcow2::open(Arc::clone(&file) as _, Access::ReadOnly, base) {
        read(&disk);
        disk.info();
        for snapshot in disk.snapshots().into_iter().take(3) {
            if let Ok(then) = Qcow2::open_at(Arc::clone(&file) as _, Access::ReadOnly, Some(&snapshot.id), |_| Ok(None)) {
                read(&then);
                then.read_vm_state(0, &mut [0; 512]).ok();
            }
        }
    }
    let found = check(Arc::clone(&file) as _);
    assert!(file.content() == content, "{context}: looking changed it");
    let is_dirty = content[79] & 1 == 1;
    let is_opened = match Qcow2::open(Arc::clone(&file) as _, Access::ReadWrite, base) {
        Err(_) => {
            assert!(file.content() == content || is_dirty, "{context}: refusing changed it");
            false
        }
        Ok(disk) => {
            disk.write_at(512, &[3; 2048]).ok();
            disk.create_snapshot(&NewSnapshot { name: "t".into(), ..NewSnapshot::default() }).ok();
            disk.write_compressed(0, &[4; 2 * CLUSTER]).ok();
            disk.apply_snapshot("s").ok();
            disk.discard(0, disk.len().min(8192)).ok();
            disk.resize(disk.len().min(1 << 20) + 4096, Preallocation::Off).ok();
            disk.delete_snapshot("s").ok();
            disk.delete_snapshot("t").ok();
            disk.write_zeroes(0, 1024).ok();
            disk.flush().ok();
            drop(disk);
            let before = found.as_ref().map_or(0, |report| report.errors);
            let after = check(Arc::clone(&file) as _).unwrap();
            assert!(after.errors <= before, "{context}: {before} errors became {}: {:?}", after.errors, after.details);
            true
        }
    };
    assert!(file.content().len() <= content.len() + MOST_GROWTH, "{context}: it grew to {}", file.content().len());
    // A repair of the file as it was either refuses or leaves nothing that it could have put right.
    let patient = Arc::new(SimFile::new(content.to_vec()));
    if let Ok(report) = repair::check(Arc::clone(&patient) as _, Repair::All) {
        let again = repair::check(Arc::clone(&patient) as _, Repair::All).unwrap();
        assert_eq!(
            (again.errors, again.leaks),
            (report.errors, report.leaks),
            "{context}: a second repair found more: {:?} {:?}",
            report,
            again.details
        );
        assert!(patient.content().len() <= content.len() + MOST_GROWTH, "{context}: the repair grew it");
    }
    assert!(processor_time() - began < MOST_TIME, "{context}: took {:?}", processor_time() - began);
    is_opened
}

#[test]
fn every_byte_of_every_table_may_be_hostile() {
    let (mut files, mut opened) = (0, 0);
    for compression in [Compression::Deflate, Compression::Zstd] {
        let (content, ranges) = rich(compression);
        assert!(work(&content, "unchanged"));
        for at in ranges.into_iter().flatten() {
            for new in [0, 1, 0x7f, 0x80, 0xff, content[at] ^ 0x40, content[at].wrapping_add(1), content[at].wrapping_sub(1)] {
                if new == content[at] {
                    continue;
                }
                let mut changed = content.clone();
                changed[at] = new;
                files += 1;
                opened += usize::from(work(&changed, &format!("{compression:?}, byte {at:#x} = {new:#x}")));
            }
        }
    }
    println!("{files} hostile files, {opened} of them could be written to");
    assert!(files >= 2300 && opened > 100, "{files}, {opened}");
}

#[test]
fn many_bytes_at_once_may_be_hostile() {
    let rounds = std::env::var("DISK_HOSTILE_FILES").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    let seed = std::env::var("DISK_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0x5eed_u64);
    let (content, ranges) = rich(Compression::Deflate);
    let places: Vec<usize> = ranges.into_iter().flatten().collect();
    let mut random = seed;
    let mut opened = 0;
    for round in 0..rounds {
        let mut changed = content.clone();
        for _ in 0..2 + next(&mut random) % 6 {
            let at = places[next(&mut random) as usize % places.len()];
            changed[at] = match next(&mut random) % 3 {
                0 => [0, 1, 0x7f, 0x80, 0xff][next(&mut random) as usize % 5],
                1 => changed[at] ^ 1 << (next(&mut random) % 8),
                _ => next(&mut random) as u8,
            };
        }
        opened += usize::from(work(&changed, &format!("seed {seed:#x}, round {round}")));
    }
    println!("{rounds} hostile files of seed {seed:#x}, {opened} of them could be written to");
}
