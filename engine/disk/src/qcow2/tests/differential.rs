//! The same random scripts through us and through qemu-io, on images that each of us made; then `qemu-img compare`
//! must find them equal and `qemu-img check` both sound. Skipped where QEMU's tools are not installed.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;

const SIZE: u64 = 6 << 20;

/// One operation that both sides understand.
#[derive(Clone, Copy, Debug)]
enum Act {
    Write(u8, u64, u64),
    Zero(u64, u64),
    Discard(u64, u64),
    Pack(u8, u64, u64),
    Flush,
}

impl Act {
    fn random(random: &mut u64, cluster: u64) -> Self {
        let mut below = |limit: u64| next(random) % limit;
        let what = below(17);
        let byte = below(255) as u8 + 1;
        let sector = below(2) == 0;
        let unit = if sector { 512 } else { 1 };
        let offset = below(SIZE - 1) / unit * unit;
        let longest = if below(5) == 0 { 300_000 } else { 6000 };
        let length = (1 + below(longest)).next_multiple_of(unit).min(SIZE - offset);
        let whole = |offset: u64, clusters: u64| (offset / cluster * cluster, clusters * cluster);
        match what {
            0..11 => Act::Write(byte, offset, length),
            11 | 12 => Act::Zero(offset, length),
            13 | 14 => {
                let (offset, length) = whole(offset, 1 + below(5));
                Act::Discard(offset, length.min(SIZE - offset))
            }
            _ => Act::Flush,
        }
    }

    /// A cluster to be written compressed.
    fn packing(random: &mut u64, cluster: u64) -> Self {
        let offset = next(random) % (SIZE / cluster) * cluster;
        Act::Pack(next(random) as u8 | 1, offset, cluster.min(SIZE - offset))
    }

    /// The clusters that it touches.
    fn clusters(self, cluster: u64) -> std::ops::Range<u64> {
        match self {
            Act::Write(_, offset, length)
            | Act::Pack(_, offset, length)
            | Act::Zero(offset, length)
            | Act::Discard(offset, length) => offset / cluster..(offset + length).div_ceil(cluster),
            Act::Flush => 0..0,
        }
    }

    fn for_qemu(self) -> String {
        match self {
            Act::Write(byte, offset, length) => format!("write -q -P {byte} {offset} {length}"),
            Act::Zero(offset, length) => format!("write -q -z -u {offset} {length}"),
            Act::Discard(offset, length) => format!("discard -q {offset} {length}"),
            Act::Pack(byte, offset, length) => format!("write -q -c -P {byte} {offset} {length}"),
            Act::Flush => "flush".into(),
        }
    }

    fn on(self, disk: &dyn DiskImage) {
        match self {
            Act::Write(byte, offset, length) => disk.write_at(offset, &vec![byte; length as usize]),
            Act::Zero(offset, length) => disk.write_zeroes(offset, length),
            Act::Discard(offset, length) => disk.discard(offset, length),
            Act::Pack(byte, offset, length) => disk.write_compressed(offset, &vec![byte; length as usize]),
            Act::Flush => disk.flush(),
        }
        .unwrap_or_else(|error| panic!("{self:?}: {error}"));
    }
}

impl Act {
    /// The same on plain bytes.
    fn on_bytes(self, bytes: &mut [u8]) {
        let (byte, offset, length) = match self {
            Act::Write(byte, offset, length) | Act::Pack(byte, offset, length) => (byte, offset, length),
            Act::Zero(offset, length) | Act::Discard(offset, length) => (0, offset, length),
            Act::Flush => return,
        };
        bytes[offset as usize..(offset + length) as usize].fill(byte);
    }
}

fn quiet(folder: &Path, arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).current_dir(folder).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "qemu-img {arguments:?}: {said}");
}

/// One script; `number` chooses the kind of image and seeds all that is random.
fn play(folder: &Path, number: u64, acts: usize) {
    let three = Qcow2Options::default();
    let kinds = [
        Qcow2Options { cluster_size: 4096, ..three },
        three,
        Qcow2Options { cluster_size: 4096, compression: Compression::Zstd, ..three },
        Qcow2Options { cluster_size: 512, ..three },
        Qcow2Options { cluster_size: 16384, refcount_bits: 32, ..three },
        Qcow2Options { cluster_size: 4096, version: 2, ..three },
        Qcow2Options { cluster_size: 16384, extended_l2: true, ..three },
        Qcow2Options { extended_l2: true, compression: Compression::Zstd, ..three },
    ];
    let kind = kinds[number as usize % kinds.len()];
    let with_base = number % 3 == 1 && kind.version == 3;
    let backing = with_base.then(|| Backing { name: "base.raw".into(), format: Format::Raw });
    if with_base {
        let base: Vec<u8> = (0..SIZE - 70_000).map(|at| (at / 777 + number) as u8).collect();
        std::fs::write(folder.join("base.raw"), base).unwrap();
    }
    for name in ["ours.qcow2", "theirs.qcow2"] {
        std::fs::remove_file(folder.join(name)).ok();
        create(&folder.join(name), &CreateOptions { backing: backing.clone(), ..options(kind, SIZE) }).unwrap();
    }
    let mut expected = vec![0; SIZE as usize];
    if with_base {
        let base = std::fs::read(folder.join("base.raw")).unwrap();
        expected[..base.len()].copy_from_slice(&base);
    }
    let mut random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let parts = 3;
    let mut touched = std::collections::HashSet::new();
    for part in 0..parts {
        // QEMU packs only into clusters that were never written, and where a packed one was freed since the file was
        // opened, QEMU 7.2 packs on in the freed host cluster and damages the image. So packing comes first.
        let cluster = kind.cluster_size;
        let mut script = Vec::new();
        for act in (0..acts / parts / 6).map(|_| Act::packing(&mut random, cluster)).collect::<Vec<_>>() {
            if act.clusters(cluster).all(|number| touched.insert(number)) {
                script.push(act);
            }
        }
        script.extend((script.len()..acts / parts).map(|_| Act::random(&mut random, cluster)));
        touched.extend(script.iter().flat_map(|act| act.clusters(cluster)));
        let disk = open(&OpenOptions::new(folder.join("ours.qcow2"))).unwrap();
        script.iter().for_each(|act| act.on(&*disk));
        script.iter().for_each(|act| act.on_bytes(&mut expected));
        assert!(read_all(&*disk) == expected, "script {number}: we differ from plain bytes");
        // Snapshots on both sides, so that what follows is copied on write.
        let is_last = part + 1 == parts;
        if !is_last {
            disk.create_snapshot(&crate::NewSnapshot { name: format!("s{part}"), ..crate::NewSnapshot::default() }).unwrap();
        }
        drop(disk);
        let mut qemu = Command::new("qemu-io")
            .args(["-f", "qcow2", "-d", "unmap", "theirs.qcow2"])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines: String = script.iter().map(|act| act.for_qemu() + "\n").collect();
        let mut input = qemu.stdin.take().unwrap();
        // It prompts for each line, so reading and writing go on side by side.
        let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()));
        let said = qemu.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        let failed = String::from_utf8_lossy(&said.stdout)
            .lines()
            .find(|line| line.contains("failed"))
            .map(|line| line.replace("qemu-io> ", ""));
        assert!(said.status.success() && failed.is_none(), "{failed:?} {}", String::from_utf8_lossy(&said.stderr));
        let theirs = read_all(&*open(&OpenOptions::read_only(folder.join("theirs.qcow2"))).unwrap());
        if let Some(at) = (0..SIZE as usize).find(|at| theirs[*at] != expected[*at]) {
            let touching: Vec<_> = script.iter().filter(|act| act.clusters(1).contains(&(at as u64))).collect();
            panic!("script {number}, {kind:?}: QEMU has {} instead of {} at {at}: {touching:?}", theirs[at], expected[at]);
        }
        if !is_last {
            quiet(folder, &["snapshot", "-c", &format!("s{part}"), "theirs.qcow2"]);
        }
    }
    quiet(folder, &["check", "-q", "ours.qcow2"]);
    quiet(folder, &["check", "-q", "theirs.qcow2"]);
    quiet(folder, &["compare", "-f", "qcow2", "-F", "qcow2", "ours.qcow2", "theirs.qcow2"]);
    // And the other way round: we read both, the snapshots too.
    for snapshot in [None, Some("s0"), Some("s1")] {
        let content = ["ours.qcow2", "theirs.qcow2"].map(|name| {
            let internal_snapshot = snapshot.map(str::to_owned);
            read_all(&*open(&OpenOptions { internal_snapshot, ..OpenOptions::read_only(folder.join(name)) }).unwrap())
        });
        assert!(content[0] == content[1], "script {number}, snapshot {snapshot:?}");
    }
}

#[test]
fn a_few_random_scripts_do_the_same_as_in_qemu() {
    let Some((folder, _alone)) = super::qemu::bench("random scripts") else { return };
    (0..8).for_each(|number| play(folder.path(), number, 150));
}

/// The slow suite: `cargo test --release -p engine_disk -- --ignored --nocapture five_hundred`.
#[test]
#[ignore = "takes half an hour, and needs qemu-io"]
fn five_hundred_random_scripts_of_a_thousand_operations_do_the_same_as_in_qemu() {
    let (folder, _alone) = super::qemu::bench("random scripts").expect("this suite compares with QEMU");
    let began = std::time::Instant::now();
    for number in 0..500 {
        play(folder.path(), number, 1000);
        if number % 50 == 49 {
            println!("{} scripts of 1000 operations agree, {:.0?}", number + 1, began.elapsed());
        }
    }
}
