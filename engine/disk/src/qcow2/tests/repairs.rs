//! Repairs: damage of every kind, put right as far as it can be, and never with a loss that could be avoided.

use super::*;
use crate::sim_file::CrashImages;

const CLUSTER: usize = 4096;
const REFCOUNT_TABLE: usize = CLUSTER;
const REFCOUNT_BLOCK: usize = 2 * CLUSTER;
const L1: usize = 3 * CLUSTER;

fn be(content: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(content[at..at + 8].try_into().unwrap())
}

fn put64(content: &mut [u8], at: usize, value: u64) {
    content[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// A sound image with two tables and a snapshot; the place of its first table and the first data cluster.
pub(super) fn sound() -> (Vec<u8>, usize, usize) {
    let kind = Qcow2Options { cluster_size: CLUSTER as u64, ..Qcow2Options::default() };
    let file = Arc::new(SimFile::new(empty(kind, 4 << 20)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    disk.write_at(0, &[7; 6 * CLUSTER]).unwrap();
    disk.create_snapshot(&crate::NewSnapshot { name: "s".into(), ..crate::NewSnapshot::default() }).unwrap();
    disk.write_at(0, &[8; 2 * CLUSTER]).unwrap();
    disk.write_at(2 << 20, &[9; CLUSTER]).unwrap();
    drop(disk);
    let content = file.content();
    let l2 = (be(&content, L1) & mapping::OFFSET_MASK) as usize;
    let data = (be(&content, l2) & mapping::OFFSET_MASK) as usize;
    (content, l2, data)
}

fn count_at(content: &mut [u8], offset: usize, count: u16) {
    content[REFCOUNT_BLOCK + offset / CLUSTER * 2..][..2].copy_from_slice(&count.to_be_bytes());
}

pub(super) type Damage = Box<dyn Fn(&mut Vec<u8>, usize, usize)>;

pub(super) fn damages() -> Vec<(&'static str, Damage)> {
    let damage =
        |name: &'static str, change: fn(&mut Vec<u8>, usize, usize)| -> (&'static str, Damage) { (name, Box::new(change)) };
    vec![
        damage("a leak", |c, _, _| {
            let end = c.len();
            c.resize(end + CLUSTER, 1);
            count_at(c, end, 3);
        }),
        damage("a data cluster counted too often", |c, _, data| count_at(c, data, 9)),
        damage("a data cluster counted as free", |c, _, data| count_at(c, data, 0)),
        damage("a table counted as free", |c, l2, _| count_at(c, l2, 0)),
        damage("all counts gone", |c, _, _| c[REFCOUNT_BLOCK..L1].fill(0)),
        damage("all counts garbage", |c, _, _| c[REFCOUNT_BLOCK..L1].fill(0xa5)),
        damage("the block of counts unknown", |c, _, _| put64(c, REFCOUNT_TABLE, 0)),
        damage("the block of counts far away", |c, _, _| put64(c, REFCOUNT_TABLE, 1 << 50)),
        damage("the table as its own block", |c, _, _| put64(c, REFCOUNT_TABLE, REFCOUNT_TABLE as u64)),
        damage("a mark too few", |c, l2, data| put64(c, l2, data as u64)),
        damage("a mark too many", |c, l2, _| {
            let entry = be(c, l2 + 24) | mapping::COPIED;
            put64(c, l2 + 24, entry);
        }),
        damage("two entries for one cluster", |c, l2, data| put64(c, l2 + 8, mapping::COPIED | data as u64)),
        damage("two tables in one place", |c, l2, _| put64(c, L1 + 8, mapping::COPIED | l2 as u64)),
        damage("an entry for the header", |c, l2, _| put64(c, l2, mapping::COPIED)),
        damage("an entry for the first-level table", |c, l2, _| put64(c, l2, mapping::COPIED | L1 as u64)),
        damage("an entry for its own table", |c, l2, _| put64(c, l2, mapping::COPIED | l2 as u64)),
        damage("an entry between clusters", |c, l2, data| put64(c, l2, mapping::COPIED | (data as u64 + 512))),
        damage("an entry with reserved bits", |c, l2, data| put64(c, l2, mapping::COPIED | data as u64 | 1 << 58)),
        damage("an entry far past the end", |c, l2, _| put64(c, l2, mapping::COPIED | 1 << 54)),
        damage("a table far past the end", |c, _, _| put64(c, L1 + 8, mapping::COPIED | 1 << 54)),
        damage("a table between clusters", |c, _, _| put64(c, L1 + 8, mapping::COPIED | 0x5200)),
        damage("the corrupt bit", |c, _, _| put64(c, 72, 2)),
        damage("the dirty bit", |c, _, _| put64(c, 72, 1)),
        damage("both bits and no counts", |c, _, _| {
            put64(c, 72, 3);
            c[REFCOUNT_BLOCK..L1].fill(0);
        }),
    ]
}

#[test]
fn every_damage_is_repaired_and_what_could_be_read_still_is() {
    for (name, damage) in damages() {
        let (mut content, l2, data) = sound();
        damage(&mut content, l2, data);
        let readable = |content: &[u8]| -> Vec<Option<Vec<u8>>> {
            let disk = open_sim(&Arc::new(SimFile::new(content.to_vec())), Access::ReadOnly, None).unwrap();
            let mut piece = vec![0; CLUSTER];
            let places = (0..disk.len()).step_by(CLUSTER);
            places.map(|at| disk.read_at(at, &mut piece).ok().map(|()| piece.clone())).collect()
        };
        let before = readable(&content);
        let file = Arc::new(SimFile::new(content));
        let found = check(Arc::clone(&file) as _).unwrap();
        let report = repair::check(Arc::clone(&file) as _, Repair::All).unwrap();
        assert_eq!((report.errors, report.leaks, report.unmarked), (0, 0, 0), "{name}: {:?}", report.details);
        assert_eq!(report.leaks_fixed, found.leaks, "{name}");
        let after = readable(&file.content());
        for (cluster, (before, after)) in before.iter().zip(&after).enumerate() {
            // An entry for a table reads the table; afterwards it reads zeros.
            let was_nonsense = found.details.iter().any(|detail| detail.contains("points at a table"));
            match before {
                Some(before) => {
                    assert!(Some(before) == after.as_ref() || (was_nonsense && cluster == 0), "{name}: cluster {cluster} changed")
                }
                None => assert!(after.is_some(), "{name}: cluster {cluster} still cannot be read"),
            }
        }
        let disk = open_sim(&file, Access::ReadWrite, None).unwrap_or_else(|error| panic!("{name}: {error}"));
        disk.write_at(0, &vec![3; 3 << 20]).unwrap();
        drop(disk);
        assert_clean(file.content(), &name);
        let snapshot = Qcow2::open_at(Arc::clone(&file) as _, Access::ReadOnly, Some("s"), |_| Ok(None)).unwrap();
        let mut seen = vec![0; 6 * CLUSTER];
        snapshot.read_at(0, &mut seen).unwrap();
        assert!(seen.iter().all(|byte| *byte == 7) || name.contains("mark too many"), "{name}: the snapshot changed");
    }
}

#[test]
fn repairing_leaks_touches_nothing_else() {
    let (mut content, l2, data) = sound();
    count_at(&mut content, data, 9);
    put64(&mut content, l2 + 8, mapping::COPIED | 1 << 54);
    let file = Arc::new(SimFile::new(content.clone()));
    let report = repair::check(Arc::clone(&file) as _, Repair::Leaks).unwrap();
    assert_eq!((report.leaks_fixed, report.leaks), (2, 0), "the other is the cluster whose entry was overwritten");
    assert!(report.errors > 0, "the entry past the end is still there");
    let after = file.content();
    let changed: Vec<usize> = (0..after.len()).filter(|at| after[*at] != content[*at]).collect();
    assert!(changed.iter().all(|at| (REFCOUNT_BLOCK..L1).contains(at)), "{changed:?}");
}

#[test]
fn a_disk_that_was_not_closed_properly_is_repaired_when_it_is_opened_for_writing_and_only_then() {
    let (mut content, ..) = sound();
    put64(&mut content, 72, 1);
    put64(&mut content, 80, 1);
    // Lazy counts: what was allocated last was never counted.
    content[REFCOUNT_BLOCK + 12..L1].fill(0);
    let expected = {
        let disk = open_sim(&Arc::new(SimFile::new(content.clone())), Access::ReadOnly, None).unwrap();
        assert!(disk.info().dirty);
        assert!(disk.warnings()[0].contains("not closed properly"));
        read_all(&disk)
    };
    let file = Arc::new(SimFile::new(content.clone()));
    drop(open_sim(&file, Access::ReadOnly, None).unwrap());
    assert!(file.content() == content, "reading repairs nothing");
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    assert!(read_all(&disk) == expected);
    assert!(!disk.info().dirty);
    drop(disk);
    assert_clean(file.content(), &"opened");
    assert_eq!(file.content()[87] & 1, 1, "the permission for lazy counts stays");
}

#[test]
fn a_repair_cut_off_anywhere_can_be_done_again() {
    for (name, damage) in damages() {
        let (mut content, l2, data) = sound();
        damage(&mut content, l2, data);
        let file = Arc::new(SimFile::new(content));
        let base = file.start_recording();
        repair::check(Arc::clone(&file) as _, Repair::All).unwrap();
        CrashImages { seed: 2, pairs: 30, random_sets: 8, ..CrashImages::default() }.visit(&base, &file.log(), |at, image| {
            let cut = Arc::new(SimFile::new(image.to_vec()));
            let report = repair::check(Arc::clone(&cut) as _, Repair::All)
                .unwrap_or_else(|error| panic!("{name}, cut off at {at}: {error}"));
            assert_eq!((report.errors, report.leaks), (0, 0), "{name}, cut off at {at}: {:?}", report.details);
            open_sim(&cut, Access::ReadWrite, None).unwrap_or_else(|error| panic!("{name}, cut off at {at}: {error}"));
        });
    }
}
