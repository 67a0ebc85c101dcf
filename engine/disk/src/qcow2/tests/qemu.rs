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
pub(super) fn bench(test: &str) -> Option<(tempfile::TempDir, MutexGuard<'static, ()>)> {
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
fn run(folder: &tempfile::TempDir, tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool).args(arguments).current_dir(folder.path()).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{tool} {arguments:?}: {said}");
    said
}

fn img(folder: &tempfile::TempDir, arguments: &[&str]) -> String {
    run(folder, "qemu-img", arguments)
}

fn at(folder: &tempfile::TempDir, name: &str) -> PathBuf {
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
