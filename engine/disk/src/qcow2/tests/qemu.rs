//! Side by side with QEMU's own tools: what they write we read, what we write they find sound and equal, and neither
//! opens what the other has in use. Skipped, with a line that says so, where qemu-img or qemu-io is missing.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::*;

/// One such test at a time: a child that another thread is just starting holds copies of our open files, and with
/// them our locks, until it has become the program it is to be.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A folder for one test, if QEMU's tools are there, and the right to start children.
pub(crate) fn bench(test: &str) -> Option<(tempfile::TempDir, MutexGuard<'static, ()>)> {
    for tool in ["qemu-img", "qemu-io"] {
        let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            println!("skipped: {test} needs {tool}, which is not installed");
            return None;
        }
    }
    Some((tempfile::tempdir().unwrap(), ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// Runs a tool in a folder; panics with what it said if it fails.
pub(super) fn run(folder: &tempfile::TempDir, tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool).args(arguments).current_dir(folder.path()).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{tool} {arguments:?}: {said}");
    said
}

pub(super) fn img(folder: &tempfile::TempDir, arguments: &[&str]) -> String {
    run(folder, "qemu-img", arguments)
}

pub(super) fn at(folder: &tempfile::TempDir, name: &str) -> PathBuf {
    folder.path().join(name)
}

/// Bytes with some structure: text-like stretches, noise and zeros.
fn sample(size: usize, seed: u64) -> Vec<u8> {
    let mut random = seed;
    let mut bytes = vec![0; size];
    for piece in bytes.chunks_mut(9000) {
        match next(&mut random) % 4 {
            0 => {}
            1 => piece.iter_mut().for_each(|byte| *byte = next(&mut random) as u8),
            _ => {
                let start = next(&mut random) as u8;
                piece.iter_mut().enumerate().for_each(|(index, byte)| *byte = start.wrapping_add((index / 90) as u8));
            }
        }
    }
    bytes
}

#[test]
fn qemu_finds_what_we_write_sound_and_equal() {
    let Some((folder, _alone)) = bench("writing for QEMU") else { return };
    for (number, kind) in kinds().into_iter().enumerate() {
        let size = if kind.cluster_size > 65536 { 40 << 20 } else { 3 << 20 };
        let (name, raw) = (format!("{number}.qcow2"), format!("{number}.raw"));
        create(&at(&folder, &name), &options(kind, size)).unwrap();
        let mut script = Script::new(number as u64 + 1, vec![0; size as usize]);
        for round in 0..3 {
            let disk = open(&OpenOptions::new(at(&folder, &name))).unwrap();
            for _ in 0..80 {
                script.step(&*disk, 200_000).unwrap();
            }
            drop(disk);
            img(&folder, &["check", "-q", &name]);
            std::fs::write(at(&folder, &raw), &script.bytes).unwrap();
            img(&folder, &["compare", "-f", "qcow2", "-F", "raw", &name, &raw]);
            // QEMU writes too, and we go on from what it left.
            let offset = round * 70_000 / 512 * 512;
            run(&folder, "qemu-io", &["-f", "qcow2", "-c", &format!("write -P 0x5e {offset} 40960"), &name]);
            script.bytes[offset as usize..][..40960].fill(0x5e);
        }
        let disk = open(&OpenOptions::read_only(at(&folder, &name))).unwrap();
        assert!(read_all(&*disk) == script.bytes, "{kind:?}");
    }
}

#[test]
fn we_read_what_qemu_writes() {
    let Some((folder, _alone)) = bench("reading QEMU's images") else { return };
    let content = sample(5 << 20, 3);
    std::fs::write(at(&folder, "source.raw"), &content).unwrap();
    let made = [
        "compat=0.10",
        "compat=1.1,cluster_size=512",
        "compat=1.1,cluster_size=2M",
        "compat=1.1,refcount_bits=1",
        "compat=1.1,refcount_bits=64,cluster_size=4k",
        "compat=1.1,lazy_refcounts=on",
        "compat=1.1,preallocation=metadata",
        "compat=1.1,preallocation=full",
    ];
    let compressed =
        ["compat=0.10", "cluster_size=4k", "cluster_size=2M", "compression_type=zstd", "compression_type=zstd,cluster_size=1M"];
    let cases = made.iter().map(|made| (*made, None)).chain(compressed.iter().map(|made| (*made, Some("-c"))));
    for (number, (made, flag)) in cases.enumerate() {
        let name = format!("{number}.qcow2");
        let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", made];
        arguments.extend(flag);
        arguments.extend(["source.raw", &name]);
        img(&folder, &arguments);
        let disk = open(&OpenOptions::new(at(&folder, &name))).unwrap();
        assert!(read_all(&*disk) == content, "{made} {flag:?}");
        // Overwriting compressed and preallocated clusters keeps everything else.
        let mut script = Script::new(number as u64 + 9, content.clone());
        for _ in 0..60 {
            script.step(&*disk, 150_000).unwrap();
        }
        drop(disk);
        img(&folder, &["check", "-q", &name]);
        std::fs::write(at(&folder, "after.raw"), &script.bytes).unwrap();
        img(&folder, &["compare", "-f", "qcow2", "-F", "raw", &name, "after.raw"]);
    }
}

#[test]
fn base_images_and_their_sizes_mean_the_same_to_qemu_and_to_us() {
    let Some((folder, _alone)) = bench("base images") else { return };
    // A base shorter by a sector, by half a cluster and by a cluster and a bit.
    for shorter in [512, 32_768, 66_048, 0] {
        let content = sample((1 << 20) - shorter, shorter as u64 + 1);
        std::fs::write(at(&folder, "base.raw"), &content).unwrap();
        img(&folder, &["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "middle.qcow2", "1M"]);
        run(&folder, "qemu-io", &["-f", "qcow2", "-c", "write -z 65536 131072", "-c", "write -P 9 300000 1000", "middle.qcow2"]);
        img(&folder, &["create", "-q", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", "top.qcow2", "2M"]);
        let path = at(&folder, "top.qcow2");
        let mut expected = content;
        expected.resize(2 << 20, 0);
        expected[65536..65536 + 131_072].fill(0);
        expected[300_000..301_000].fill(9);
        let disk = open(&OpenOptions::new(&path)).unwrap();
        assert!(read_all(&*disk) == expected, "base shorter by {shorter}");
        let mut script = Script::new(4, expected);
        for _ in 0..120 {
            script.step(&*disk, 100_000).unwrap();
        }
        drop(disk);
        img(&folder, &["check", "-q", "top.qcow2"]);
        std::fs::write(at(&folder, "after.raw"), &script.bytes).unwrap();
        img(&folder, &["compare", "-f", "qcow2", "-F", "raw", "top.qcow2", "after.raw"]);
    }
}

#[test]
fn internal_snapshots_survive_our_writes() {
    let Some((folder, _alone)) = bench("internal snapshots") else { return };
    for made in ["compat=1.1", "compat=0.10", "cluster_size=512", "refcount_bits=2,cluster_size=4k"] {
        let content = sample(2 << 20, 8);
        std::fs::write(at(&folder, "source.raw"), &content).unwrap();
        // Packed clusters share host clusters, whose counts soon exceed what two bits can hold.
        let pack: &[&str] = if made.contains("refcount_bits=2") { &[] } else { &["-c"] };
        let convert = ["convert", "-f", "raw", "-O", "qcow2", "-o", made];
        img(&folder, &[&convert, pack, &["source.raw", "disk.qcow2"]].concat());
        run(&folder, "qemu-io", &["-f", "qcow2", "-c", "write -P 1 0 100000", "disk.qcow2"]);
        let mut now = content;
        now[..100_000].fill(1);
        let mut snapshots = Vec::new();
        for number in 0..2 {
            let name = format!("point{number}");
            img(&folder, &["snapshot", "-c", &name, "disk.qcow2"]);
            snapshots.push((name, now.clone()));
            let disk = open(&OpenOptions::new(at(&folder, "disk.qcow2"))).unwrap();
            let mut script = Script::new(number + 20, now);
            for _ in 0..100 {
                script.step(&*disk, 60_000).unwrap();
            }
            now = script.bytes;
            drop(disk);
            img(&folder, &["check", "-q", "disk.qcow2"]);
            let ours = check(Arc::new(crate::HostFile::open(&at(&folder, "disk.qcow2"), Access::ReadOnly).unwrap())).unwrap();
            assert_eq!((ours.errors, ours.leaks, ours.unmarked), (0, 0, 0), "{made}: {:?}", ours.details);
        }
        for (name, expected) in &snapshots {
            img(&folder, &["convert", "-f", "qcow2", "-l", name, "-O", "raw", "disk.qcow2", "point.raw"]);
            assert!(std::fs::read(at(&folder, "point.raw")).unwrap() == *expected, "{made}: {name} was damaged");
        }
        std::fs::write(at(&folder, "now.raw"), &now).unwrap();
        img(&folder, &["compare", "-f", "qcow2", "-F", "raw", "disk.qcow2", "now.raw"]);
    }
}

#[test]
fn neither_opens_what_the_other_has_in_use() {
    let Some((folder, _alone)) = bench("locks") else { return };
    create(&at(&folder, "disk.qcow2"), &CreateOptions::new(Format::Qcow2, 1 << 20)).unwrap();
    let path = at(&folder, "disk.qcow2");
    let ours = open(&OpenOptions::new(&path)).unwrap();
    let theirs = Command::new("qemu-io").args(["-c", "read 0 512"]).arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&theirs.stderr).to_lowercase();
    assert!(!theirs.status.success() && said.contains("lock"), "qemu-io opened our disk: {said}");
    drop(ours);

    let ours = open(&OpenOptions::read_only(&path)).unwrap();
    let reader = Command::new("qemu-io").args(["-r", "-c", "read 0 512"]).arg(&path).output().unwrap();
    assert!(reader.status.success(), "two readers may share: {}", String::from_utf8_lossy(&reader.stderr));
    let writer = Command::new("qemu-io").args(["-c", "write 0 512"]).arg(&path).output().unwrap();
    assert!(!writer.status.success(), "qemu-io wrote under our reader");
    drop(ours);

    let mut theirs =
        Command::new("qemu-io").arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut input = theirs.stdin.take().unwrap();
    input.write_all(b"read 0 512\n").unwrap();
    let mut line = String::new();
    BufReader::new(theirs.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let result = open(&OpenOptions::new(&path));
    input.write_all(b"quit\n").unwrap();
    drop(input);
    theirs.wait().unwrap();
    assert!(matches!(result, Err(DiskError::InUse { .. })), "we opened QEMU's disk");
    open(&OpenOptions::new(&path)).unwrap();
}

#[test]
fn qemu_agrees_with_what_our_tools_do() {
    let Some((folder, _alone)) = bench("tools") else { return };
    let mut made = kinds();
    made.retain(|kind| kind.cluster_size <= 65536 && kind.refcount_bits >= 8);
    for (number, kind) in made.into_iter().enumerate() {
        let (name, size) = (format!("{number}.qcow2"), 3_u64 << 20);
        create(&at(&folder, &name), &options(kind, size)).unwrap();
        let disk = open(&OpenOptions::new(at(&folder, &name))).unwrap();
        let mut script = Script::new(number as u64 + 60, vec![0; size as usize]);
        let mut kept = Vec::new();
        for round in 0..3_u8 {
            for _ in 0..40 {
                script.step(&*disk, 150_000).unwrap();
            }
            let packed = sample(4 * 65536, u64::from(round) + 7);
            disk.write_compressed(u64::from(round) << 19, &packed).unwrap();
            script.bytes[usize::from(round) << 19..][..packed.len()].copy_from_slice(&packed);
            let snapshot = crate::NewSnapshot { name: format!("s{round}"), ..crate::NewSnapshot::default() };
            disk.create_snapshot(&snapshot).unwrap();
            kept.push((snapshot.name, script.bytes.clone()));
        }
        disk.apply_snapshot("s1").unwrap();
        disk.delete_snapshot("s0").unwrap();
        let mut now = kept[1].1.clone();
        if kind.version == 3 {
            disk.resize(5 << 20, crate::Preallocation::Metadata).unwrap();
            disk.resize(4 << 20, crate::Preallocation::Off).unwrap();
            now.resize(4 << 20, 0);
        }
        drop(disk);
        img(&folder, &["check", "-q", &name]);
        std::fs::write(at(&folder, "now.raw"), &now).unwrap();
        img(&folder, &["compare", "-f", "qcow2", "-F", "raw", &name, "now.raw"]);
        for (snapshot, content) in &kept[1..] {
            img(&folder, &["convert", "-f", "qcow2", "-l", snapshot, "-O", "raw", &name, "point.raw"]);
            // QEMU gives it the size that the disk has now.
            let point = std::fs::read(at(&folder, "point.raw")).unwrap();
            assert!(point.starts_with(content), "{kind:?}: {snapshot}");
            assert!(point[content.len()..].iter().all(|byte| *byte == 0));
        }
        // QEMU goes on from there, and we from what it leaves.
        img(&folder, &["snapshot", "-a", "s2", &name]);
        img(&folder, &["snapshot", "-d", "s1", &name]);
        img(&folder, &["snapshot", "-c", "theirs", &name]);
        let disk = open(&OpenOptions::new(at(&folder, &name))).unwrap();
        assert!(read_all(&*disk) == kept[2].1, "{kind:?}");
        let names: Vec<String> = disk.snapshots().into_iter().map(|snapshot| snapshot.name).collect();
        assert_eq!(names, ["s2", "theirs"]);
        disk.delete_snapshot("s2").unwrap();
        disk.delete_snapshot("theirs").unwrap();
        drop(disk);
        img(&folder, &["check", "-q", &name]);
    }
    for preallocation in [crate::Preallocation::Metadata, crate::Preallocation::Falloc, crate::Preallocation::Full] {
        let name = format!("{preallocation:?}.qcow2");
        create(&at(&folder, &name), &CreateOptions { preallocation, ..CreateOptions::new(Format::Qcow2, 5 << 20) }).unwrap();
        img(&folder, &["check", "-q", &name]);
    }
}

#[test]
fn what_qemu_left_dirty_we_repair_and_what_is_damaged_we_judge_alike() {
    let Some((folder, _alone)) = bench("dirty images") else { return };
    for cluster in ["512", "4k", "64k"] {
        let made = format!("lazy_refcounts=on,cluster_size={cluster}");
        img(&folder, &["create", "-q", "-f", "qcow2", "-o", &made, "dirty.qcow2", "4M"]);
        let writes =
            ["-c", "write -P 5 0 300k", "-c", "write -z 64k 64k", "-c", "write -P 6 2M 100k", "-c", "flush", "-c", "abort"];
        // It dies of the abort, which is the purpose.
        Command::new("qemu-io").args(writes).arg("dirty.qcow2").current_dir(folder.path()).output().unwrap();
        let path = at(&folder, "dirty.qcow2");
        assert!(open(&OpenOptions::read_only(&path)).unwrap().info().dirty, "{cluster}: QEMU left it clean");
        let disk = open(&OpenOptions::new(&path)).unwrap();
        let mut expected = vec![0; 4 << 20];
        expected[..300 << 10].fill(5);
        expected[64 << 10..128 << 10].fill(0);
        expected[2 << 20..][..100 << 10].fill(6);
        assert!(read_all(&*disk) == expected, "{cluster}");
        disk.write_at(1 << 20, &[7; 100_000]).unwrap();
        drop(disk);
        img(&folder, &["check", "-q", "dirty.qcow2"]);
    }
    // The same figures for the same damage, and QEMU content with our repair.
    for (name, damage) in super::repairs::damages() {
        let (mut content, l2, data) = super::repairs::sound();
        damage(&mut content, l2, data);
        std::fs::write(at(&folder, "damaged.qcow2"), &content).unwrap();
        let theirs =
            Command::new("qemu-img").args(["check", "damaged.qcow2"]).current_dir(folder.path()).output().unwrap().status;
        let options = OpenOptions::read_only(at(&folder, "damaged.qcow2"));
        let ours = crate::check(&options, Repair::Nothing).unwrap();
        let verdict = match (ours.errors + ours.unmarked, ours.leaks) {
            (1.., _) => 2,
            (0, 1..) => 3,
            (0, 0) => 0,
        };
        // QEMU repairs what is only dirty before it judges, and does not mind entries that lead to tables.
        let may_differ = name.contains("bit") || name.starts_with("an entry for") || name.contains("far past");
        assert!(theirs.code() == Some(verdict) || may_differ, "{name}: QEMU says {:?}, we {verdict}", theirs.code());
        crate::check(&options, Repair::All).unwrap();
        img(&folder, &["check", "-q", "damaged.qcow2"]);
    }
}
