//! Bitmaps: what they say after writes, changes of size and snapshots, to us and to QEMU; and hostile ones.

#![expect(clippy::single_range_in_vec_init)]

use super::qemu::{at, bench, img, run};
use super::*;
use crate::{BitmapInfo, NewSnapshot};

const KIND: Qcow2Options = Qcow2Options {
    version: 3,
    cluster_size: 4096,
    refcount_bits: 16,
    compression: Compression::Deflate,
    lazy_refcounts: false,
    extended_l2: false,
};

/// All that a bitmap has marked.
fn marked(disk: &dyn DiskImage, name: &str) -> Vec<std::ops::Range<u64>> {
    disk.bitmaps().unwrap().marked(name, 0, usize::MAX).unwrap()
}

fn listed(disk: &dyn DiskImage) -> Vec<(String, u64, bool, bool)> {
    let tuple = |BitmapInfo { name, granularity, enabled, out_of_date }| (name, granularity, enabled, out_of_date);
    disk.bitmaps().unwrap().list().into_iter().map(tuple).collect()
}

/// What a bitmap of a disk marks, where it claims to be up to date.
pub(super) fn trusted_marks(disk: &Qcow2, name: &str) -> Option<Vec<std::ops::Range<u64>>> {
    let bitmaps = disk.bitmaps().unwrap();
    let is_trusted = bitmaps.list().iter().any(|bitmap| bitmap.name == name && !bitmap.out_of_date);
    is_trusted.then(|| bitmaps.marked(name, 0, usize::MAX).unwrap())
}

/// The first sector that has changed without a mark.
pub(super) fn unmarked_change(marks: &[std::ops::Range<u64>], now: &[u8], then: &[u8]) -> Option<usize> {
    let has_mark = |sector: usize| marks.iter().any(|range| range.contains(&(sector as u64 * 512)));
    let mut sectors = now.chunks(512).zip(then.chunks(512)).enumerate();
    sectors.find(|(sector, (now, then))| now != then && !has_mark(*sector)).map(|(sector, _)| sector)
}

#[test]
fn a_bitmap_says_what_was_written_since_it_was_made_or_cleared() {
    let file = Arc::new(SimFile::new(empty(KIND, 1 << 20)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    disk.write_at(0, &[1; 4096]).unwrap();
    let bitmaps = disk.bitmaps().unwrap();
    bitmaps.add("fine", Some(512)).unwrap();
    bitmaps.add("usual", None).unwrap();
    assert!(bitmaps.add("usual", None).is_err() && bitmaps.add("x", Some(700)).is_err() && bitmaps.add("", None).is_err());
    disk.write_at(10_000, &[2; 100]).unwrap();
    disk.write_zeroes(65_536, 1024).unwrap();
    disk.discard(1 << 19, 8192).unwrap();
    disk.write_compressed(40_960, &[3; 4096]).unwrap();
    let fine = vec![9728..10_240, 40_960..45_056, 65_536..66_560, 524_288..532_480];
    assert_eq!(marked(&disk, "fine"), fine);
    drop(disk);
    assert_clean(file.content(), &"closed");
    // Closed and opened again, it is all there; in pieces too.
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    assert_eq!(listed(&disk), [("fine".into(), 512, true, false), ("usual".into(), 4096, true, false)]);
    assert_eq!(marked(&disk, "fine"), fine);
    assert_eq!(marked(&disk, "usual"), [8192..12_288, 40_960..45_056, 65_536..69_632, 524_288..532_480]);
    let bitmaps = disk.bitmaps().unwrap();
    assert_eq!(bitmaps.marked("fine", 42_000, 1).unwrap(), [42_000..45_056]);
    // One is halted, the other begins anew.
    bitmaps.set_enabled("usual", false).unwrap();
    bitmaps.clear("fine").unwrap();
    disk.write_at(900_000, &[4; 10]).unwrap();
    bitmaps.mark("usual", 0..1).unwrap();
    drop(disk);
    assert_clean(file.content(), &"cleared");
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    assert_eq!(listed(&disk)[1], ("usual".into(), 4096, false, false));
    assert_eq!(marked(&disk, "fine"), [899_584..900_096]);
    assert_eq!(marked(&disk, "usual")[0], 0..4096);
    assert_eq!(marked(&disk, "usual").len(), 5);
    let bitmaps = disk.bitmaps().unwrap();
    bitmaps.remove("fine").unwrap();
    assert!(matches!(bitmaps.remove("fine"), Err(DiskError::NoSuchBitmap { .. })));
    bitmaps.remove("usual").unwrap();
    drop(disk);
    assert_clean(file.content(), &"removed");
    assert_eq!(file.content()[88..96], [0; 8], "nothing is left of them in the header");
}

#[test]
fn bitmaps_change_their_size_with_the_disk_and_forget_what_was_cut_off() {
    for kind in [KIND, Qcow2Options { cluster_size: 512, ..KIND }] {
        let file = Arc::new(SimFile::new(empty(kind, 8 << 20)));
        let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
        disk.bitmaps().unwrap().add("a", Some(512)).unwrap();
        disk.bitmaps().unwrap().add("still", Some(512)).unwrap();
        disk.write_at(1 << 20, &[1; 512]).unwrap();
        disk.write_at(7 << 20, &[1; 512]).unwrap();
        disk.bitmaps().unwrap().set_enabled("still", false).unwrap();
        drop(disk);
        for size in [3 << 20, 20 << 20, 5 << 20, 8 << 20] {
            let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
            disk.resize(size, Preallocation::Off).unwrap();
            let written = 1 << 20..(1 << 20) + 512;
            // What was added counts as changed, for one that follows.
            let added = (size > 3 << 20).then_some(3 << 20..size);
            assert_eq!(marked(&disk, "a"), [Some(written.clone()), added].into_iter().flatten().collect::<Vec<_>>(), "{size}");
            assert_eq!(marked(&disk, "still"), [written], "{size}");
            drop(disk);
            assert_clean(file.content(), &size);
        }
        let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
        disk.create_snapshot(&NewSnapshot { name: "s".into(), ..NewSnapshot::default() }).unwrap();
        disk.resize(9 << 20, Preallocation::Off).unwrap();
        disk.write_at((9 << 20) - 512, &[5; 512]).unwrap();
        // The snapshot is smaller; everything may be different there.
        disk.apply_snapshot("s").unwrap();
        assert_eq!(marked(&disk, "a"), [0..8 << 20]);
        assert_eq!(marked(&disk, "still"), [1 << 20..(1 << 20) + 512]);
        drop(disk);
        assert_clean(file.content(), &"applied");
        let disk = open_sim(&file, Access::ReadOnly, None).unwrap();
        assert_eq!(marked(&disk, "a"), [0..8 << 20]);
    }
}

#[test]
fn who_dies_while_writing_leaves_bitmaps_that_are_known_to_be_out_of_date() {
    let file = Arc::new(SimFile::new(empty(KIND, 1 << 20)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    disk.bitmaps().unwrap().add("on", None).unwrap();
    disk.bitmaps().unwrap().add("off", None).unwrap();
    disk.bitmaps().unwrap().set_enabled("off", false).unwrap();
    drop(disk);
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    disk.write_at(0, &[1; 512]).unwrap();
    let dead = Arc::new(SimFile::new(file.content()));
    drop(disk);
    let disk = open_sim(&dead, Access::ReadWrite, None).unwrap();
    assert_eq!(listed(&disk), [("on".into(), 4096, true, true), ("off".into(), 4096, false, false)]);
    let bitmaps = disk.bitmaps().unwrap();
    assert!(bitmaps.marked("on", 0, 9).is_err() && bitmaps.clear("on").is_err() && bitmaps.set_enabled("on", false).is_err());
    assert!(matches!(disk.resize(2 << 20, Preallocation::Off), Err(DiskError::BadOptions { .. })));
    assert_eq!(marked(&disk, "off"), []);
    disk.write_at(8192, &[1; 512]).unwrap();
    bitmaps.remove("on").unwrap();
    drop(disk);
    assert_clean(dead.content(), &"removed");
}

/// Where the directory lies.
fn directory(content: &[u8]) -> usize {
    let extension = content.windows(4).position(|word| word == 0x2385_2875_u32.to_be_bytes()).unwrap();
    u64::from_be_bytes(content[extension + 24..extension + 32].try_into().unwrap()) as usize
}

#[test]
fn hostile_bitmaps_are_dropped_and_the_disk_goes_on() {
    let file = Arc::new(SimFile::new(empty(KIND, 1 << 20)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    disk.bitmaps().unwrap().add("first", None).unwrap();
    disk.bitmaps().unwrap().add("second", Some(512)).unwrap();
    disk.write_at(0, &[1; 5000]).unwrap();
    drop(disk);
    let good = file.content();
    let place = directory(&good);
    let extension = good.windows(4).position(|word| word == 0x2385_2875_u32.to_be_bytes()).unwrap() + 8;
    type Change = Box<dyn Fn(&mut [u8])>;
    let word32 = |at: usize, value: u32| -> Change { Box::new(move |c| c[at..at + 4].copy_from_slice(&value.to_be_bytes())) };
    let word64 = |at: usize, value: u64| -> Change { Box::new(move |c| c[at..at + 8].copy_from_slice(&value.to_be_bytes())) };
    let byte = |at: usize, value: u8| -> Change { Box::new(move |c| c[at] = value) };
    let cases: Vec<(&str, Change)> = vec![
        ("none", word32(extension, 0)),
        ("65,536 of them", word32(extension, 65_536)),
        ("more than there are", word32(extension, 3)),
        ("fewer than there are", word32(extension, 1)),
        ("a directory of another size", word64(extension + 8, 56)),
        ("a huge directory", word64(extension + 8, u64::MAX)),
        ("a directory past the end", word64(extension + 16, 1 << 40)),
        ("a directory in the header", word64(extension + 16, 0)),
        ("an unaligned directory", word64(extension + 16, place as u64 + 8)),
        ("a table of 2^32 entries", word32(place + 8, u32::MAX)),
        ("a table of no entries", word32(place + 8, 0)),
        ("a table in the header", word64(place, 0)),
        ("a table past the end", word64(place, 1 << 50)),
        ("a table over the first-level table", word64(place, 3 * 4096)),
        ("unknown flags", word32(place + 12, 1 << 7)),
        ("an unknown type", byte(place + 16, 2)),
        ("granularity 0", byte(place + 17, 0)),
        ("granularity 63", byte(place + 17, 63)),
        ("no name", word32(place + 16, 0x010c_0000)),
        ("a name past the end", word32(place + 16, 0x010c_0400)),
        ("extra data past the end", word32(place + 20, u32::MAX)),
        (
            "the same name twice",
            Box::new(move |c| {
                let second = place + 32;
                c[second + 19] = 5;
                c[second + 24..second + 30].copy_from_slice(b"first\0");
            }),
        ),
    ];
    for (name, change) in cases {
        let mut content = good.clone();
        change(&mut content);
        let file = Arc::new(SimFile::new(content));
        let reader = open_sim(&file, Access::ReadOnly, None).unwrap();
        let may_be_listed = name == "a table over the first-level table";
        assert!(may_be_listed || (listed(&reader).is_empty() && !reader.warnings().is_empty()), "{name}: {:?}", listed(&reader));
        check(Arc::clone(&file) as _).ok();
        drop(reader);
        let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
        assert!(listed(&disk).is_empty(), "{name}");
        disk.write_at(70_000, &[7; 3000]).unwrap();
        disk.bitmaps().unwrap().add("new", None).unwrap();
        drop(disk);
        let report = check(Arc::clone(&file) as _).unwrap();
        // What the old ones held is lost space now.
        assert_eq!((report.errors, report.unmarked), (0, 0), "{name}: {:?}", report.details);
        assert_eq!(listed(&open_sim(&file, Access::ReadWrite, None).unwrap()).len(), 1, "{name}");
    }
}

#[test]
fn random_damage_of_bitmaps_never_panics_or_makes_anything_worse() {
    let file = Arc::new(SimFile::new(empty(KIND, 4 << 20)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    for name in ["one", "two"] {
        disk.bitmaps().unwrap().add(name, Some(512)).unwrap();
    }
    disk.write_at(0, &[1; 100_000]).unwrap();
    drop(disk);
    let good = file.content();
    let place = directory(&good);
    let tables = [0, 32].map(|entry| u64::from_be_bytes(good[place + entry..][..8].try_into().unwrap()) as usize);
    let mut random = 0xb17;
    for round in 0..3000 {
        let mut content = good.clone();
        for _ in 0..1 + next(&mut random) % 3 {
            let (start, length) = [(104, 48), (place, 72), (tables[0], 16), (tables[1], 16)][next(&mut random) as usize % 4];
            content[start + next(&mut random) as usize % length] = next(&mut random) as u8;
        }
        let file = Arc::new(SimFile::new(content));
        let before = check(Arc::clone(&file) as _).map_or(0, |report| report.errors);
        let Ok(disk) = open_sim(&file, Access::ReadWrite, None) else { continue };
        disk.write_at(next(&mut random) % 4_000_000, &[3; 1000]).unwrap();
        disk.bitmaps().unwrap().list().iter().for_each(|bitmap| {
            disk.bitmaps().unwrap().marked(&bitmap.name, 0, 100).ok();
        });
        if round % 3 == 0 {
            disk.resize(5 << 20, Preallocation::Off).ok();
        }
        drop(disk);
        let report = check(Arc::clone(&file) as _).unwrap();
        assert!(report.errors <= before, "round {round}: {:?}", report.details);
    }
}

/// What QEMU reads of a bitmap: the ranges that are marked.
fn marked_for_qemu(folder: &tempfile::TempDir, file: &str, bitmap: &str) -> Vec<std::ops::Range<u64>> {
    // Bits that are set look like holes through this window.
    let image = format!("driver=nbd,server.type=unix,server.path=nbd.sock,x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}");
    let mut server = std::process::Command::new("qemu-nbd")
        .args(["-r", "-f", "qcow2", "-B", bitmap, "-k"])
        .arg(folder.path().join("nbd.sock"))
        .args(["-x", "", file])
        .current_dir(folder.path())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..200 {
        if folder.path().join("nbd.sock").exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let said = run(folder, "qemu-img", &["map", "--output=json", "--image-opts", &image]);
    server.wait().unwrap();
    let number = |line: &str, key: &str| -> u64 {
        let rest = &line[line.find(key).unwrap() + key.len()..];
        rest.trim_start_matches([':', ' ', '"']).split([',', ' ', '}']).next().unwrap().parse().unwrap()
    };
    let mut ranges: Vec<std::ops::Range<u64>> = Vec::new();
    for line in said.lines().filter(|line| line.contains("\"data\": false")) {
        let (start, length) = (number(line, "\"start\""), number(line, "\"length\""));
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end += length,
            _ => ranges.push(start..start + length),
        }
    }
    ranges
}

#[test]
fn qemu_and_we_read_the_same_in_bitmaps_that_either_of_us_kept() {
    let Some((folder, _alone)) = bench("bitmaps") else { return };
    for made in ["cluster_size=64k", "cluster_size=4k", "cluster_size=64k,extended_l2=on"] {
        let name = "disk.qcow2";
        std::fs::remove_file(at(&folder, name)).ok();
        img(&folder, &["create", "-q", "-f", "qcow2", "-o", made, name, "8M"]);
        img(&folder, &["bitmap", "--add", name, "theirs"]);
        img(&folder, &["bitmap", "--add", "-g", "512", name, "fine, theirs"]);
        img(&folder, &["bitmap", "--add", "--disable", name, "halted"]);
        run(&folder, "qemu-io", &["-c", "write -P 3 1M 100k", name]);
        let disk = open(&OpenOptions::new(at(&folder, name))).unwrap();
        assert_eq!(disk.bitmaps().unwrap().list().len(), 3);
        assert_eq!(marked(&*disk, "fine, theirs"), [1 << 20..(1 << 20) + (100 << 10)]);
        disk.bitmaps().unwrap().add("ours", Some(4096)).unwrap();
        disk.write_at(3 << 20, &[5; 200_000]).unwrap();
        disk.write_zeroes(5 << 20, 65536).unwrap();
        let ours = ["theirs", "fine, theirs", "halted", "ours"].map(|bitmap| marked(&*disk, bitmap));
        drop(disk);
        img(&folder, &["check", "-q", name]);
        let info = img(&folder, &["info", name]);
        assert!(!info.contains("in-use"), "{info}");
        for (bitmap, expected) in ["theirs", "halted", "ours"].into_iter().zip([&ours[0], &ours[2], &ours[3]]) {
            // A bitmap that still follows writes cannot be shown by a reader, so it is halted first.
            img(&folder, &["bitmap", "--disable", name, bitmap]);
            assert_eq!(&marked_for_qemu(&folder, name, bitmap), expected, "{made}: {bitmap}");
        }
        // And on from there: QEMU writes, resizes, merges and removes.
        img(&folder, &["bitmap", "--enable", name, "ours"]);
        run(&folder, "qemu-io", &["-c", "write -P 9 7M 4k", name]);
        img(&folder, &["bitmap", "--merge", "theirs", name, "halted"]);
        img(&folder, &["bitmap", "--remove", name, "fine, theirs"]);
        img(&folder, &["resize", "-q", name, "9M"]);
        let disk = open(&OpenOptions::new(at(&folder, name))).unwrap();
        assert_eq!(marked(&*disk, "halted"), ours[0], "{made}");
        assert_eq!(marked(&*disk, "ours").last(), Some(&(7 << 20..(7 << 20) + 4096)), "{made}");
        disk.resize(12 << 20, Preallocation::Off).unwrap();
        disk.write_at(11 << 20, &[1; 4096]).unwrap();
        drop(disk);
        img(&folder, &["check", "-q", name]);
        img(&folder, &["bitmap", "--disable", name, "ours"]);
        assert_eq!(marked_for_qemu(&folder, name, "ours").last(), Some(&(9 << 20..12 << 20)), "{made}");
        let disk = open(&OpenOptions::new(at(&folder, name))).unwrap();
        for bitmap in disk.bitmaps().unwrap().list() {
            disk.bitmaps().unwrap().remove(&bitmap.name).unwrap();
        }
        drop(disk);
        img(&folder, &["check", "-q", name]);
    }
}

#[test]
fn qemu_finds_out_of_date_what_we_could_not_finish() {
    let Some((folder, _alone)) = bench("bitmaps out of date") else { return };
    img(&folder, &["create", "-q", "-f", "qcow2", "disk.qcow2", "8M"]);
    img(&folder, &["bitmap", "--add", "disk.qcow2", "daily"]);
    // Reading changes nothing about it.
    let path = at(&folder, "disk.qcow2");
    let before = std::fs::read(&path).unwrap();
    drop(open(&OpenOptions::new(&path)).unwrap());
    assert!(std::fs::read(&path).unwrap() == before);
    let disk = open(&OpenOptions::new(&path)).unwrap();
    disk.write_at(5 << 20, &[5; 100_000]).unwrap();
    disk.flush().unwrap();
    std::fs::copy(&path, at(&folder, "dead.qcow2")).unwrap();
    drop(disk);
    let info = img(&folder, &["info", "dead.qcow2"]);
    assert!(info.contains("in-use"), "{info}");
    img(&folder, &["check", "-q", "dead.qcow2"]);
    img(&folder, &["bitmap", "--remove", "dead.qcow2", "daily"]);
    img(&folder, &["check", "-q", "dead.qcow2"]);
}
