//! What tools ask of an image: snapshots, sizes, compressed writes, space set aside, another base.

use super::*;
use crate::open::Preallocation;
use crate::sim_file::Fault;
use crate::{Amendment, BackingFiles, NewSnapshot};

fn named(name: &str) -> NewSnapshot {
    NewSnapshot { name: name.into(), taken: (1_700_000_000, 5), vm_clock_nanos: 42, ..NewSnapshot::default() }
}

/// Opens an image in memory as it was at a snapshot.
fn open_snapshot(file: &Arc<SimFile>, name: &str) -> Qcow2 {
    let file: Arc<dyn BlockFile> = Arc::clone(file) as _;
    Qcow2::open_at(file, Access::ReadOnly, Some(name), |_| Ok(None)).unwrap()
}

/// Kinds whose counts are wide enough for a few snapshots.
fn sharing_kinds() -> impl Iterator<Item = Qcow2Options> {
    kinds().into_iter().filter(|kind| kind.refcount_bits >= 4 && kind.cluster_size <= 65536)
}

#[test]
fn snapshots_keep_their_content_through_writes_and_come_back_and_go_without_a_trace() {
    for (number, kind) in sharing_kinds().enumerate() {
        let size = 300 * 1024 + 512;
        let file = Arc::new(SimFile::new(empty(kind, size)));
        let mut script = Script::new(number as u64 + 5, vec![0; size as usize]);
        let mut kept = Vec::new();
        let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
        for round in 0..4 {
            for _ in 0..40 {
                script.step(&disk, 60_000).unwrap();
            }
            let packed = vec![round + 1; kind.cluster_size as usize * 2];
            disk.write_compressed(kind.cluster_size, &packed).unwrap();
            script.bytes[kind.cluster_size as usize..][..packed.len()].copy_from_slice(&packed);
            disk.create_snapshot(&named(&format!("point {round}"))).unwrap();
            kept.push((format!("point {round}"), script.bytes.clone()));
            assert_clean(file.content(), &kind);
        }
        let listed = disk.snapshots();
        assert_eq!(listed.iter().map(|snapshot| snapshot.id.as_str()).collect::<Vec<_>>(), ["1", "2", "3", "4"]);
        assert_eq!((listed[2].name.as_str(), listed[2].disk_size, listed[2].vm_clock_nanos), ("point 2", size, 42));
        for (name, content) in &kept {
            assert!(read_all(&open_snapshot(&file, name)) == *content, "{kind:?}: {name}");
        }
        disk.apply_snapshot("2").unwrap();
        assert_clean(file.content(), &kind);
        script.bytes = kept[1].1.clone();
        assert!(read_all(&disk) == script.bytes, "{kind:?}: applied");
        for _ in 0..40 {
            script.step(&disk, 60_000).unwrap();
        }
        disk.delete_snapshot("point 1").unwrap();
        disk.flush().unwrap();
        for (name, content) in kept.iter().filter(|(name, _)| name != "point 1") {
            assert!(read_all(&open_snapshot(&file, name)) == *content, "{kind:?}: {name} after deleting another");
        }
        for name in ["point 0", "3", "4"] {
            disk.delete_snapshot(name).unwrap();
            disk.flush().unwrap();
            drop(open_sim(&file, Access::ReadOnly, None).unwrap());
        }
        assert!(matches!(disk.delete_snapshot("4"), Err(DiskError::NoSuchSnapshot { .. })));
        assert!(read_all(&disk) == script.bytes);
        drop(disk);
        assert_clean(file.content(), &kind);
        assert!(read_all(&open_sim(&file, Access::ReadWrite, None).unwrap()) == script.bytes);
    }
}

#[test]
fn a_snapshot_that_would_not_fit_the_counts_is_refused_and_changes_nothing() {
    for (bits, fit) in [(1, 0), (2, 2)] {
        let kind = Qcow2Options { refcount_bits: bits, cluster_size: 4096, ..Qcow2Options::default() };
        let file = Arc::new(SimFile::new(empty(kind, 1 << 20)));
        let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
        disk.write_at(0, &[1; 10_000]).unwrap();
        for number in 0..fit {
            disk.create_snapshot(&named(&number.to_string())).unwrap();
        }
        disk.flush().unwrap();
        let before = file.content();
        assert!(matches!(disk.create_snapshot(&named("one too many")), Err(DiskError::TooShared { .. })));
        assert!(file.content() == before, "{bits} bits");
        disk.write_at(0, &[2; 10_000]).unwrap();
        drop(disk);
        assert_clean(file.content(), &bits);
    }
}

#[test]
fn the_state_of_a_machine_stays_with_its_snapshot() {
    let kind = Qcow2Options { cluster_size: 4096, ..Qcow2Options::default() };
    let file = Arc::new(SimFile::new(empty(kind, 3 << 20)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    disk.write_at(0, &[1; 5000]).unwrap();
    let state: Vec<u8> = (0..5_000_000_u32).map(|n| (n / 999) as u8).collect();
    for (number, piece) in state.chunks(70_000).enumerate() {
        disk.write_vm_state(number as u64 * 70_000, piece).unwrap();
    }
    disk.create_snapshot(&NewSnapshot { vm_state_size: state.len() as u64, ..named("running") }).unwrap();
    assert_clean(file.content(), &"with state");
    let mut seen = vec![0; state.len()];
    let snapshot = open_snapshot(&file, "running");
    assert_eq!(snapshot.snapshots()[0].vm_state_size, state.len() as u64);
    snapshot.read_vm_state(0, &mut seen).unwrap();
    assert!(seen == state);
    // A plain snapshot afterwards does not carry the state along.
    disk.create_snapshot(&named("plain")).unwrap();
    disk.delete_snapshot("running").unwrap();
    drop(disk);
    assert_clean(file.content(), &"after");
    // What is left is metadata and two data clusters, not five megabytes.
    let report = check(Arc::new(SimFile::new(file.content()))).unwrap();
    assert_eq!(report.allocated_clusters, 2);
}

#[test]
fn a_disk_grows_with_zeros_and_shrinks_for_good() {
    for kind in kinds() {
        for with_base in [false, true] {
            let size = 40 * 1024 + 512;
            let base: Option<Vec<u8>> = with_base.then(|| vec![9; 200 * 1024]);
            let mut bytes = base.clone().unwrap_or_default();
            bytes.resize(size as usize, 0);
            let file = Arc::new(SimFile::new(empty(kind, size)));
            let disk = open_sim(&file, Access::ReadWrite, base.as_deref()).unwrap();
            let write = |bytes: &mut Vec<u8>, at: usize, length: usize, byte: u8| {
                disk.write_at(at as u64, &vec![byte; length]).unwrap();
                bytes[at..at + length].fill(byte);
            };
            write(&mut bytes, 30_000, 10_000, 1);
            for (step, new) in [60 * 1024, 3 << 20, 100 * 1024, 20 * 1024, 150 * 1024 + 512, 8 << 20].into_iter().enumerate() {
                disk.resize(new, Preallocation::Off).unwrap();
                bytes.resize(new as usize, 0);
                assert_eq!(disk.len(), new);
                assert!(read_all(&disk) == bytes, "{kind:?}, base {with_base}, step {step}");
                write(&mut bytes, new as usize - 3000, 3000, step as u8 + 2);
            }
            assert!(disk.resize(1000, Preallocation::Off).is_err());
            assert!(disk.resize(1 << 63, Preallocation::Off).is_err());
            drop(disk);
            assert_clean(file.content(), &kind);
            let disk = open_sim(&file, Access::ReadWrite, base.as_deref()).unwrap();
            assert!(read_all(&disk) == bytes, "{kind:?}, base {with_base}, opened again");
        }
    }
}

#[test]
fn space_is_set_aside_when_asked_for_and_reads_as_zeros() {
    for kind in kinds() {
        for preallocation in [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full] {
            let size = 500 * 1024 + 512;
            let sim = SimFile::new(Vec::new());
            create::create(&sim, &CreateOptions { preallocation, ..options(kind, size) }).unwrap();
            let file = Arc::new(sim);
            assert_clean(file.content(), &kind);
            let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
            let before = file.content().len();
            disk.write_at(0, &vec![0; size as usize]).unwrap();
            assert_eq!(file.content().len(), before, "nothing had to be allocated");
            disk.discard(0, 100 * 1024).unwrap();
            disk.resize(900 * 1024, preallocation).unwrap();
            assert!(read_all(&disk).iter().all(|byte| *byte == 0));
            let stored = disk.extent_at(800 * 1024).unwrap();
            // With subclusters there is a place in which nothing is stored yet.
            assert_eq!(stored.kind, if kind.extended_l2 { ExtentKind::Zero } else { ExtentKind::Data });
            assert!(stored.host_offset.is_some());
            drop(disk);
            assert_clean(file.content(), &kind);
        }
    }
}

#[test]
fn compressed_writes_read_back_share_clusters_and_leave_no_leak() {
    for kind in kinds() {
        let size = 40 * kind.cluster_size + 512;
        let file = Arc::new(SimFile::new(empty(kind, size)));
        let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
        let mut bytes = vec![0; size as usize];
        let mut random = 9;
        let cluster = kind.cluster_size as usize;
        for round in 0..60_usize {
            let at = next(&mut random) as usize % 41 * cluster;
            let length = ((1 + next(&mut random) as usize % 3) * cluster).min(bytes.len() - at);
            let part = &mut bytes[at..at + length];
            match round % 4 {
                // Text-like, all one byte, and noise, which does not shrink.
                0 | 1 => part.iter_mut().enumerate().for_each(|(n, byte)| *byte = (n / 50 + round) as u8),
                2 => part.fill(round as u8),
                _ => part.iter_mut().for_each(|byte| *byte = next(&mut random) as u8),
            }
            disk.write_compressed(at as u64, part).unwrap();
            if round % 7 == 0 {
                disk.flush().unwrap();
            }
            if round % 5 == 0 {
                disk.write_at(at as u64, &[1; 100]).unwrap();
                bytes[at..at + 100].fill(1);
            }
        }
        assert!(read_all(&disk) == bytes, "{kind:?}");
        assert!(disk.write_compressed(100, &[0; 512]).is_err(), "not between clusters");
        drop(disk);
        assert_clean(file.content(), &kind);
        assert!(read_all(&open_sim(&file, Access::ReadOnly, None).unwrap()) == bytes);
    }
    // Many small pieces go into few clusters.
    let file = Arc::new(SimFile::new(empty(Qcow2Options::default(), 64 << 20)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    for cluster in 0..1000_u64 {
        disk.write_compressed(cluster << 16, &[cluster as u8; 65536]).unwrap();
    }
    drop(disk);
    assert!(file.content().len() < 1 << 20, "{}", file.content().len());
    assert_eq!(check(file).unwrap().compressed_clusters, 1000);
}

#[test]
fn several_threads_pack_at_once() {
    let file = Arc::new(SimFile::new(empty(Qcow2Options { cluster_size: 4096, ..Qcow2Options::default() }, 4 << 20)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let disk = &disk;
            scope.spawn(move || {
                for cluster in (thread..1024).step_by(4) {
                    disk.write_compressed(cluster << 12, &[cluster as u8; 4096]).unwrap();
                }
            });
        }
    });
    let content = read_all(&disk);
    assert!(content.chunks(4096).enumerate().all(|(cluster, bytes)| bytes.iter().all(|byte| *byte == cluster as u8)));
    drop(disk);
    assert_clean(file.content(), &"threads");
}

#[test]
fn another_base_can_be_written_down_and_everything_else_in_the_header_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("top.qcow2");
    let qcow2 = Qcow2Options { compression: Compression::Zstd, lazy_refcounts: true, ..Qcow2Options::default() };
    let base = |name: &str, format| Backing { name: name.into(), format };
    create(&path, &CreateOptions { backing: Some(base("old.raw", Format::Raw)), ..options(qcow2, 1 << 20) }).unwrap();
    // An extension and header bits that nobody knows.
    let mut content = std::fs::read(&path).unwrap();
    let name_at = 112 + 8 + 8 + 8;
    assert_eq!(&content[name_at..name_at + 7], b"old.raw");
    content[128..160].copy_from_slice(b"\x12\x34\x56\x78\0\0\0\x05hello\0\0\0\0\0\0\0\0\0\0\0old.raw\0");
    content[8..16].copy_from_slice(&152_u64.to_be_bytes());
    content[80] = 0x40;
    std::fs::write(&path, &content).unwrap();
    let alone = OpenOptions { backing_files: BackingFiles::LeftOut, ..OpenOptions::new(&path) };
    let long = "x".repeat(1000);
    for (new, word) in [(Some(base("new.qcow2", Format::Qcow2)), "qcow2"), (None, ""), (Some(base(&long, Format::Raw)), "raw")] {
        let disk = open(&alone).unwrap();
        disk.set_backing(new.as_ref()).unwrap();
        drop(disk);
        let info = open(&alone).unwrap().info();
        assert_eq!(info.backing.as_ref().map(|backing| &backing.name), new.as_ref().map(|backing| &backing.name));
        assert_eq!(info.backing.and_then(|backing| backing.format).unwrap_or_default(), word);
        let content = std::fs::read(&path).unwrap();
        assert!(content[..300].windows(13).any(|window| window == b"\x12\x34\x56\x78\0\0\0\x05hello"));
        assert_eq!((content[80], content[87] & 1, content[104]), (0x40, 1, 1), "unknown bit, lazy refcounts, zstd");
    }
    let disk = open(&alone).unwrap();
    assert!(disk.set_backing(Some(&base(&"y".repeat(1024), Format::Raw))).is_err());
}

/// An operation of a tool, by its name.
type ToolWork = (&'static str, fn(&Qcow2) -> Result<(), DiskError>);

#[test]
fn a_fault_at_every_operation_of_a_tool_leaves_the_image_sound() {
    let works: [ToolWork; 9] = [
        ("create", |disk| disk.create_snapshot(&named("new"))),
        ("apply", |disk| disk.apply_snapshot("kept")),
        ("delete", |disk| disk.delete_snapshot("kept")),
        ("grow", |disk| disk.resize(40 << 20, Preallocation::Off)),
        ("shrink", |disk| disk.resize(8192, Preallocation::Off)),
        ("pack", |disk| disk.write_compressed(16384, &[7; 32768])),
        ("add a bitmap", |disk| disk.bitmaps().unwrap().add("new", None)),
        ("remove a bitmap", |disk| disk.bitmaps().unwrap().remove("kept")),
        ("widen the counts", |disk| disk.amend(&Amendment { refcount_bits: Some(64), ..Amendment::default() })),
    ];
    let usual = Qcow2Options::default();
    let kinds = [Qcow2Options { cluster_size: 512, ..usual }, Qcow2Options { cluster_size: 16384, extended_l2: true, ..usual }];
    let faults: u64 = kinds.into_iter().map(|kind| fail_tools_everywhere(kind, &works)).sum();
    println!("{faults} faults, all images sound");
    assert!(faults > 300, "{faults}");
}

/// Fails each work at each of its operations; returns how many faults that were.
fn fail_tools_everywhere(kind: Qcow2Options, works: &[ToolWork]) -> u64 {
    let prepared = {
        let file = Arc::new(SimFile::new(empty(kind, 64 << 10)));
        let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
        disk.write_at(0, &[1; 20_000]).unwrap();
        disk.create_snapshot(&named("kept")).unwrap();
        disk.bitmaps().unwrap().add("kept", Some(512)).unwrap();
        disk.write_at(10_000, &[2; 20_000]).unwrap();
        drop(disk);
        file.content()
    };
    let kept = read_all(&open_snapshot(&Arc::new(SimFile::new(prepared.clone())), "kept"));
    let mut faults = 0;
    for (name, work) in works {
        for errno in [EIO, ENOSPC] {
            for at in 0.. {
                let file = Arc::new(SimFile::new(prepared.clone()));
                let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
                let before = read_all(&disk);
                file.fail(Some(Fault { at, persists: false, errno }));
                let result = work(&disk);
                let reached = file.operations() > at;
                file.fail(None);
                if !reached {
                    result.unwrap();
                    break;
                }
                faults += 1;
                let is_fenced = disk.flush().is_err();
                if result.is_err() && !is_fenced && *name != "pack" {
                    assert!(read_all(&disk) == before, "{name}, fault at {at}: the disk changed although it failed");
                }
                if result.is_err() && !is_fenced {
                    work(&disk).unwrap_or_else(|error| panic!("{name} again after a fault at {at}: {error}"));
                }
                drop(disk);
                let report = check(Arc::clone(&file) as _).unwrap();
                assert_eq!(report.errors, 0, "{name}, fault {errno} at {at}: {:?}", report.details);
                if !is_fenced {
                    assert_eq!(report.leaks, 0, "{name}, fault {errno} at {at}: {:?}", report.details);
                }
                let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
                if disk.snapshots().iter().any(|snapshot| snapshot.name == "kept") {
                    assert!(read_all(&open_snapshot(&file, "kept")) == kept, "{name}, fault at {at}: the snapshot changed");
                }
                disk.write_at(0, &[5; 8192]).unwrap();
                drop(disk);
                assert_eq!(check(file).unwrap().errors, 0);
            }
        }
    }
    faults
}
