//! Files made to break a parser, each with its expected result. Never may there be a panic, a hang, growth without
//! bound, or a change to a file that is refused.

use std::time::Duration;

use super::*;
use crate::fuzz_tests::processor_time;

/// What must happen with a hostile file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// It cannot be opened at all.
    Refused,
    /// It opens for reading and reads everywhere; opening it for writing is refused.
    OnlyRead,
    /// The same, and the person is warned.
    OnlyReadWithWarning,
    /// It opens for reading, but reading the bad place fails; opening it for writing is refused.
    BadPlace,
}

const CLUSTER: usize = 4096;
const REFCOUNT_TABLE: usize = CLUSTER;
const REFCOUNT_BLOCK: usize = 2 * CLUSTER;
const L1: usize = 3 * CLUSTER;
const SIZE: u64 = 4 << 20;

/// Where the good image has things, besides the constants above.
struct Places {
    l2: usize,
    data: usize,
}

/// A small sound image: two second-level tables, some data.
fn good() -> (Vec<u8>, Places) {
    let kind = Qcow2Options { cluster_size: CLUSTER as u64, ..Qcow2Options::default() };
    let file = Arc::new(SimFile::new(empty(kind, SIZE)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    disk.write_at(0, &[7; 3 * CLUSTER]).unwrap();
    disk.write_at(SIZE / 2, &[8; CLUSTER]).unwrap();
    drop(disk);
    let content = file.content();
    let l2 = (be(&content, L1) & mapping::OFFSET_MASK) as usize;
    let data = (be(&content, l2) & mapping::OFFSET_MASK) as usize;
    (content, Places { l2, data })
}

fn be(content: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(content[at..at + 8].try_into().unwrap())
}

fn put(content: &mut [u8], at: usize, bytes: &[u8]) {
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

fn put32(content: &mut [u8], at: usize, value: u32) {
    put(content, at, &value.to_be_bytes());
}

fn put64(content: &mut [u8], at: usize, value: u64) {
    put(content, at, &value.to_be_bytes());
}

fn set_count(content: &mut [u8], offset: usize, count: u16) {
    put(content, REFCOUNT_BLOCK + offset / CLUSTER * 2, &count.to_be_bytes());
}

/// Opens and reads a file in both ways and says what happened.
fn observe(content: &[u8]) -> Expected {
    let began = processor_time();
    let file = Arc::new(SimFile::new(content.to_vec()));
    let reader = Qcow2::open(Arc::clone(&file) as _, Access::ReadOnly, |_| Ok(Arc::new(Base(vec![1; 4096]))));
    let writer = Qcow2::open(Arc::clone(&file) as _, Access::ReadWrite, |_| Ok(Arc::new(Base(vec![1; 4096]))));
    let observed = match (&reader, &writer) {
        (Err(_), Err(_)) => Expected::Refused,
        (Err(error), Ok(_)) => panic!("a writer was let in where a reader was not: {error}"),
        (Ok(_), Ok(_)) => panic!("a damaged image was opened for writing"),
        (Ok(disk), Err(_)) => {
            let mut piece = vec![0; CLUSTER];
            let places = (0..disk.len().min(64 << 20)).step_by(CLUSTER);
            let bad =
                places.filter(|at| disk.read_at(*at, &mut piece[..(disk.len() - at).min(CLUSTER as u64) as usize]).is_err());
            match (bad.count(), disk.warnings().is_empty()) {
                (0, true) => Expected::OnlyRead,
                (0, false) => Expected::OnlyReadWithWarning,
                _ => Expected::BadPlace,
            }
        }
    };
    drop((reader, writer));
    assert!(file.content() == content, "a refused file was changed");
    assert!(processor_time() - began < Duration::from_secs(2), "took {:?}", processor_time() - began);
    // The check may refuse the file or count errors, but it too must come to an end.
    check(file).ok();
    observed
}

type Mutation = Box<dyn Fn(&mut Vec<u8>, &Places)>;

fn case(
    name: &'static str,
    expected: Expected,
    change: impl Fn(&mut Vec<u8>, &Places) + 'static,
) -> (String, Expected, Mutation) {
    (name.into(), expected, Box::new(change))
}

#[test]
fn the_good_image_is_good() {
    let (content, _) = good();
    assert_clean(content.clone(), &"good");
    open_sim(&Arc::new(SimFile::new(content)), Access::ReadWrite, None).unwrap();
}

#[test]
fn hostile_headers_are_refused() {
    let fields32: [(&str, usize, &[u32]); 9] = [
        ("version", 4, &[0, 1, 4, u32::MAX]),
        ("cluster bits", 20, &[0, 8, 22, 31, 63, u32::MAX]),
        ("encryption", 32, &[1, 2, 3, u32::MAX]),
        ("first-level entries", 36, &[0, 1, u32::MAX, 4 << 20]),
        ("refcount table clusters", 56, &[0, 2049, u32::MAX]),
        ("snapshots", 60, &[65_537, u32::MAX]),
        ("refcount width", 96, &[7, 64, u32::MAX]),
        ("header length", 100, &[0, 103, 105, 4104, u32::MAX]),
        ("backing name length alone", 16, &[1, 1024, u32::MAX]),
    ];
    let fields64: [(&str, usize, &[u64]); 5] = [
        ("backing name offset alone", 8, &[200, u64::MAX]),
        ("size", 24, &[1 << 63, u64::MAX, 1 << 62]),
        ("first-level offset", 40, &[L1 as u64 + 8, 1 << 40, u64::MAX - 4095, 0, REFCOUNT_TABLE as u64]),
        ("refcount table offset", 48, &[0, 8, 1 << 40, u64::MAX - 4095]),
        ("compression type without its feature", 72, &[8]),
    ];
    let (good, _) = good();
    let mut cases = 0;
    let mut expect_refused = |content: &[u8], what: &str| {
        cases += 1;
        assert_eq!(observe(content), Expected::Refused, "{what}");
    };
    for (name, at, values) in fields32 {
        for value in values {
            let mut content = good.clone();
            put32(&mut content, at, *value);
            expect_refused(&content, &format!("{name} {value:#x}"));
        }
    }
    for (name, at, values) in fields64 {
        for value in values {
            let mut content = good.clone();
            put64(&mut content, at, *value);
            expect_refused(&content, &format!("{name} {value:#x}"));
        }
    }
    // Without a data file nothing can be read; `data_file.rs` has the rest of that story.
    for bit in 3..64 {
        let mut content = good.clone();
        put64(&mut content, 72, 1 << bit);
        expect_refused(&content, &format!("incompatible bit {bit}"));
    }
    for length in 0..=112 {
        expect_refused(&good[..length], &format!("{length} bytes"));
    }
    println!("{cases} hostile headers refused");
}

#[test]
fn hostile_extensions_names_and_snapshots_are_refused() {
    let with_name = |content: &mut Vec<u8>, offset: u64, length: u32, name: &[u8]| {
        put64(content, 8, offset);
        put32(content, 16, length);
        let at = (offset as usize).min(CLUSTER - name.len());
        put(content, at, name);
    };
    let with_snapshot = |content: &mut Vec<u8>, change: &dyn Fn(&mut [u8])| {
        let at = content.len().next_multiple_of(CLUSTER);
        content.resize(at + CLUSTER, 0);
        put32(content, 60, 1);
        put64(content, 64, at as u64);
        let entry = &mut content[at..];
        put64(entry, 0, L1 as u64);
        put32(entry, 8, 1);
        change(entry);
    };
    use Expected::Refused;
    let cases = [
        case("an extension as long as can be", Refused, |c, _| put(c, 104, &[1, 1, 1, 1, 0xff, 0xff, 0xff, 0xff])),
        case("an extension over the cluster", Refused, |c, _| put(c, 104, &[1, 1, 1, 1, 0, 0, 0x10, 0])),
        case("an extension twice", Refused, |c, _| {
            put(c, 104, &[1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]);
        }),
        case("no end of extensions", Refused, |c, _| {
            for at in (104..CLUSTER).step_by(8) {
                put(c, at, &[at as u8, (at >> 8) as u8, 9, 9, 0, 0, 0, 0]);
            }
            c[CLUSTER - 8..CLUSTER].copy_from_slice(&[5, 5, 5, 5, 0, 0, 0, 9]);
        }),
        case("a name over the header", Refused, move |c, _| with_name(c, 90, 4, b"base")),
        case("a name over the cluster", Refused, move |c, _| with_name(c, 4094, 4, b"base")),
        case("a name far away", Refused, move |c, _| with_name(c, u64::MAX - 1, 4, b"base")),
        case("a name of 1,024 bytes", Refused, move |c, _| with_name(c, 200, 1024, b"base")),
        case("a name with a zero byte", Refused, move |c, _| with_name(c, 200, 4, b"b\0se")),
        case("a name that is no text", Refused, move |c, _| with_name(c, 200, 4, b"b\xff\xfee")),
        case("a name over an extension", Refused, move |c, _| {
            put(c, 104, &[1, 1, 1, 1, 0, 0, 0, 200]);
            with_name(c, 200, 4, b"base");
        }),
        case("snapshots past the end", Refused, |c, _| {
            put32(c, 60, 1);
            put64(c, 64, 1 << 40);
        }),
        case("a snapshot's name past the end", Refused, move |c, _| with_snapshot(c, &|e| put(e, 12, &[0xff; 4]))),
        case("a snapshot's extra data", Refused, move |c, _| with_snapshot(c, &|e| put(e, 36, &[0xff; 4]))),
        case("a snapshot's table larger than the file", Refused, move |c, _| {
            with_snapshot(c, &|e| put32(e, 8, 4 << 20));
        }),
        case("a snapshot's table unaligned", Refused, move |c, _| with_snapshot(c, &|e| put64(e, 0, 12_289))),
        case("a snapshot's table that wraps around", Refused, move |c, _| with_snapshot(c, &|e| put64(e, 0, u64::MAX - 4095))),
        case("65,536 snapshots of nothing", Refused, |c, _| {
            put32(c, 60, 65_536);
            put64(c, 64, 4 * CLUSTER as u64);
        }),
    ];
    run(&cases);
}

#[test]
fn hostile_tables_are_never_written_to_and_reading_them_is_bounded() {
    use Expected::{BadPlace, OnlyRead, OnlyReadWithWarning, Refused};
    const COPIED: u64 = mapping::COPIED;
    let compressed = |start: u64, more: u64| 1 << 62 | more << (62 - 4) | start;
    let cases = [
        case("entry for the header", BadPlace, |c, p| put64(c, p.l2, COPIED)),
        case("entry for the first-level table", OnlyRead, |c, p| put64(c, p.l2, COPIED | L1 as u64)),
        case("entry for the refcount table", OnlyRead, |c, p| put64(c, p.l2, COPIED | REFCOUNT_TABLE as u64)),
        case("entry for its own table", OnlyRead, |c, p| put64(c, p.l2, COPIED | p.l2 as u64)),
        case("first-level entry for its own table", BadPlace, |c, _| put64(c, L1 + 8, COPIED | L1 as u64 | 0x1ff)),
        case("first-level entry unaligned", BadPlace, |c, p| put64(c, L1, COPIED | (p.l2 as u64 + 512))),
        case("first-level entry past the end", BadPlace, |c, _| put64(c, L1, COPIED | 1 << 50)),
        case("two entries for one cluster", OnlyRead, |c, p| put64(c, p.l2 + 8, COPIED | p.data as u64)),
        case("two first-level entries for one table", OnlyRead, |c, p| put64(c, L1 + 8, COPIED | p.l2 as u64)),
        case("entry unaligned", BadPlace, |c, p| put64(c, p.l2, COPIED | (p.data as u64 + 512))),
        case("entry with reserved bits", BadPlace, |c, p| put64(c, p.l2, COPIED | p.data as u64 | 1 << 58)),
        case("entry past the end", BadPlace, |c, p| put64(c, p.l2, COPIED | 1 << 54)),
        case("refcount table unaligned", Refused, |c, _| put64(c, 48, REFCOUNT_TABLE as u64 + 512)),
        case("refcount table over the first-level table", Refused, |c, _| put64(c, 48, L1 as u64)),
        case("refcount block counted as itself", OnlyRead, |c, _| put64(c, REFCOUNT_TABLE + 8, REFCOUNT_BLOCK as u64)),
        case("refcount block is the table", OnlyRead, |c, _| put64(c, REFCOUNT_TABLE, REFCOUNT_TABLE as u64)),
        case("refcount block past the end", OnlyRead, |c, _| put64(c, REFCOUNT_TABLE + 8, 1 << 50)),
        case("refcount block with reserved bits", OnlyRead, |c, _| put64(c, REFCOUNT_TABLE, REFCOUNT_BLOCK as u64 | 1)),
        case("no refcounts at all", OnlyRead, |c, _| put64(c, REFCOUNT_TABLE, 0)),
        case("all counts zero", OnlyRead, |c, _| c[REFCOUNT_BLOCK..L1].fill(0)),
        case("a used cluster counted as free", OnlyRead, |c, p| set_count(c, p.data, 0)),
        case("a used table counted as free", OnlyRead, |c, p| set_count(c, p.l2, 0)),
        case("a shared cluster marked as ours", OnlyRead, |c, p| set_count(c, p.data, 2)),
        case("corrupt bit", OnlyReadWithWarning, |c, _| put64(c, 72, 2)),
        case("compressed garbage past the end", BadPlace, move |c, p| put64(c, p.l2, compressed(1 << 40, 0))),
        case("compressed at the header", BadPlace, move |c, p| put64(c, p.l2, compressed(100, 0))),
        case("compressed over three clusters", BadPlace, move |c, p| put64(c, p.l2, compressed(p.data as u64 + 4000, 15))),
        case("compressed and ours", BadPlace, move |c, p| put64(c, p.l2, COPIED | compressed(p.data as u64, 0))),
        case("compressed beyond 56 bits", BadPlace, move |c, p| put64(c, p.l2, compressed(1 << 57, 0))),
    ];
    run(&cases);
}

fn run(cases: &[(String, Expected, Mutation)]) {
    for (name, expected, change) in cases {
        let (mut content, places) = good();
        change(&mut content, &places);
        let observed = observe(&content);
        assert_eq!(observed, *expected, "{name}");
    }
    println!("{} hostile files met", cases.len());
}

#[test]
fn garbage_in_a_compressed_cluster_fails_that_read_alone() {
    let (mut content, places) = good();
    put64(&mut content, places.l2, 1 << 62 | places.data as u64);
    let disk = open_sim(&Arc::new(SimFile::new(content)), Access::ReadOnly, None).unwrap();
    let mut piece = [0; CLUSTER];
    assert!(matches!(disk.read_at(0, &mut piece), Err(DiskError::Damaged { .. })));
    disk.read_at(CLUSTER as u64, &mut piece).unwrap();
    assert_eq!(piece, [7; CLUSTER]);
}

#[test]
fn a_contradiction_met_while_writing_marks_the_image_and_stops_all_writes() {
    // Clusters of 2 MiB: nine tables are more than are checked at opening, so this is met on the way.
    let kind = Qcow2Options { cluster_size: 2 << 20, ..Qcow2Options::default() };
    let per_table = (2_u64 << 20) * (1 << 18);
    let file = Arc::new(SimFile::new(empty(kind, 9 * per_table)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    for table in 0..9 {
        disk.write_at(table * per_table, &[table as u8 + 1; 512]).unwrap();
    }
    drop(disk);
    let sound = file.content();
    let l1 = be(&sound, 40) as usize;
    let l2 = |table: usize| (be(&sound, l1 + 8 * table) & mapping::OFFSET_MASK) as usize;
    let host = |table: usize| be(&sound, l2(table)) & mapping::OFFSET_MASK;
    let planted = [
        ("the first-level table", mapping::COPIED | l1 as u64),
        ("a reserved bit", mapping::COPIED | host(3) | 1 << 58),
        ("far past the end", mapping::COPIED | 1 << 54),
    ];
    for (what, entry) in planted {
        let mut content = sound.clone();
        put64(&mut content, l2(3), entry);
        let file = Arc::new(SimFile::new(content));
        let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
        disk.write_at(1024, &[9; 512]).unwrap();
        disk.flush().unwrap();
        let before = file.content();
        let result = disk.write_at(3 * per_table, &[9; 512]);
        assert!(matches!(result, Err(DiskError::Damaged { .. })), "{what}: {result:?}");
        assert!(matches!(disk.write_at(0, &[9; 512]), Err(DiskError::Damaged { .. })), "{what}");
        assert!(disk.flush().is_err(), "{what}");
        disk.read_at(per_table, &mut [0; 512]).unwrap();
        drop(disk);
        let mut expected = before;
        expected[79] |= 2;
        assert!(file.content() == expected, "{what}: only the corrupt bit may change");
        assert!(open_sim(&file, Access::ReadWrite, None).is_err());
        assert!(!open_sim(&file, Access::ReadOnly, None).unwrap().warnings().is_empty());
    }
}

#[test]
fn a_file_cut_short_while_open_fails_its_reads_and_does_not_grow_wildly() {
    let (content, _) = good();
    let file = Arc::new(SimFile::new(content));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    file.truncate(L1 as u64).unwrap();
    let mut piece = [0; CLUSTER];
    assert!(disk.read_at(0, &mut piece).is_err());
    disk.write_at(SIZE - 512, &[1; 512]).ok();
    drop(disk);
    assert!(file.content().len() < 64 * CLUSTER);
}

#[test]
fn base_names_that_lead_to_no_disk_file_are_refused_with_their_reason() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0).unwrap();
    std::fs::write(folder.path().join("not.qcow2"), [0; 8192]).unwrap();
    let cases = [
        ("/dev/null", Format::Raw, "a device"),
        ("pipe", Format::Raw, "a pipe"),
        (".", Format::Raw, "a folder"),
        ("/proc/self/mem", Format::Raw, "kernel"),
        ("missing", Format::Raw, "no such file"),
        ("nbd://1.2.3.4", Format::Raw, "\"nbd:\""),
        ("json:{\"driver\":\"null-co\"}", Format::Raw, "\"json:\""),
        ("host_device:/dev/sda", Format::Raw, "\"host_device:\""),
        ("not.qcow2", Format::Qcow2, "not a qcow2 disk"),
    ];
    for (index, (name, format, expected)) in cases.into_iter().enumerate() {
        let path = folder.path().join(format!("{index}.qcow2"));
        let backing = Some(Backing { name: name.into(), format });
        create(&path, &CreateOptions { backing, ..CreateOptions::new(Format::Qcow2, 1 << 20) }).unwrap();
        let error = open(&OpenOptions::new(&path)).err().unwrap();
        assert!(matches!(error, DiskError::Backing { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        // One file alone can be looked at all the same.
        let alone = OpenOptions { backing_files: crate::BackingFiles::LeftOut, ..OpenOptions::read_only(&path) };
        assert_eq!(open(&alone).unwrap().info().backing.unwrap().name, name);
    }
    // A chain that is too deep, and one whose base has no recorded format.
    create(&folder.path().join("deep0"), &CreateOptions::new(Format::Qcow2, 1 << 20)).unwrap();
    for depth in 1..70 {
        let backing = Some(Backing { name: format!("deep{}", depth - 1), format: Format::Qcow2 });
        let path = folder.path().join(format!("deep{depth}"));
        create(&path, &CreateOptions { backing, ..CreateOptions::new(Format::Qcow2, 1 << 20) }).unwrap();
    }
    open(&OpenOptions::new(folder.path().join("deep60"))).unwrap();
    let error = open(&OpenOptions::new(folder.path().join("deep69"))).err().unwrap().to_string();
    assert!(error.contains("more than 64"), "{error}");
    let unnamed = folder.path().join("deep1");
    let mut content = std::fs::read(&unnamed).unwrap();
    content[104..120].fill(0);
    std::fs::write(&unnamed, content).unwrap();
    let error = open(&OpenOptions::new(&unnamed)).err().unwrap().to_string();
    assert!(error.contains("not written down"), "{error}");
}

#[test]
fn random_damage_never_panics_hangs_or_breaks_the_counts_further() {
    let (sound, places) = good();
    let sound_end = sound.len() as u64;
    let mut random = 0x5eed;
    let interesting = [0, 1, 0x7f, 0x80, 0xff, 0x40, 0xc0, 0x10];
    let (mut opened, mut wrote) = (0, 0);
    let rounds = 6000;
    for round in 0..rounds {
        let mut content = sound.clone();
        for _ in 0..1 + next(&mut random) % 4 {
            let region = [0, REFCOUNT_TABLE, REFCOUNT_BLOCK, L1, places.l2][next(&mut random) as usize % 5];
            let at = region + next(&mut random) as usize % 128;
            content[at] = match next(&mut random) % 3 {
                0 => interesting[next(&mut random) as usize % interesting.len()],
                1 => content[at] ^ 1 << (next(&mut random) % 8),
                _ => next(&mut random) as u8,
            };
        }
        let began = processor_time();
        let file = Arc::new(SimFile::new(content));
        let base = |_: &header::BackingName| Ok(Arc::new(Base(vec![1; 4096])) as Arc<dyn DiskImage>);
        let mut piece = vec![0; CLUSTER];
        if let Ok(disk) = Qcow2::open(Arc::clone(&file) as _, Access::ReadOnly, base) {
            opened += 1;
            for at in (0..disk.len().min(SIZE)).step_by(CLUSTER * 16) {
                let length = (disk.len() - at).min(CLUSTER as u64) as usize;
                disk.read_at(at, &mut piece[..length]).ok();
            }
        }
        // Some damage is harmless to a writer: a missing "ours alone" mark only costs a copy.
        let errors_before = check(Arc::clone(&file) as Arc<dyn BlockFile>).map_or(0, |report| report.errors);
        if let Ok(disk) = Qcow2::open(Arc::clone(&file) as _, Access::ReadWrite, base) {
            wrote += 1;
            for at in (0..disk.len().min(SIZE)).step_by(CLUSTER * 64 + 512) {
                let length = (disk.len() - at).min(CLUSTER as u64);
                disk.write_at(at, &piece[..length as usize]).ok();
                disk.discard(at, length).ok();
            }
            disk.flush().ok();
            drop(disk);
            let report = check(Arc::clone(&file) as Arc<dyn BlockFile>).unwrap();
            assert!(report.errors <= errors_before, "round {round}: {:?}", report.details);
        }
        assert!(file.content().len() as u64 <= sound_end + (8 << 20), "round {round} grew the file");
        assert!(processor_time() - began < Duration::from_secs(2), "round {round} took {:?}", processor_time() - began);
    }
    println!("{rounds} damaged files: {opened} could be read, {wrote} written");
    assert!(opened > rounds / 10 && wrote > 100);
}

#[test]
fn a_dirty_file_full_of_lies_is_refused_or_repaired_in_bounded_time() {
    // A refcount table of 8 MiB whose every entry names the same block of garbage; a first-level table of garbage; a
    // size that no file has.
    let table_clusters = 128_usize;
    let cluster = 65536_usize;
    let mut content = empty(Qcow2Options::default(), 1 << 30);
    let table_at = content.len();
    content.resize(table_at + table_clusters * cluster, 0);
    let block_at = content.len() as u64;
    content.resize(content.len() + cluster, 0xa5);
    put64(&mut content, 48, table_at as u64);
    put32(&mut content, 56, table_clusters as u32);
    for at in (table_at..table_at + table_clusters * cluster).step_by(8) {
        put64(&mut content, at, block_at);
    }
    let mut with_bad_l1 = empty(Qcow2Options::default(), 1 << 30);
    let l1_at = with_bad_l1.len();
    with_bad_l1.resize(l1_at + (32 << 20), 0x5a);
    put64(&mut with_bad_l1, 40, l1_at as u64);
    put32(&mut with_bad_l1, 36, 4 << 20);
    let mut huge = good().0;
    put64(&mut huge, 24, 1 << 60);
    for (name, mut content) in [("refcounts", content), ("first-level table", with_bad_l1), ("size", huge)] {
        put64(&mut content, 72, 1);
        let file = Arc::new(SimFile::new(content));
        let began = processor_time();
        let opened = open_sim(&file, Access::ReadWrite, None);
        assert!(opened.is_ok() == (name == "refcounts"), "{name}: {:?}", opened.err());
        let opening = processor_time() - began;
        assert!(opening < Duration::from_secs(5), "{name}: opening took {opening:?}");
        check(Arc::clone(&file) as _).ok();
        let checking = processor_time() - began - opening;
        assert!(checking < Duration::from_secs(5), "{name}: checking took {checking:?}");
        assert!(file.content().len() < 64 << 20);
    }
}
