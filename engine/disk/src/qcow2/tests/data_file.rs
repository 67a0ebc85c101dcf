//! Data in a file of its own: written, read, resized and checked, by us and by QEMU; and names that lead astray.

use std::path::Path;

use super::fault::workload;
use super::qemu::{at, bench, img, run};
use super::*;
use crate::open::Chain;
use crate::sim_file::Fault;
use crate::{Amendment, BackingFiles, NewDataFile, NewSnapshot};

fn with_data_file(name: &str, raw: bool, size: u64) -> CreateOptions {
    CreateOptions { data_file: Some(NewDataFile { name: name.into(), raw }), ..CreateOptions::new(Format::Qcow2, size) }
}

/// Opens the disk for part of a script; it must hold what the script says, and be clean once it is closed.
fn run_a_while(path: &Path, script: &mut Script) {
    let disk = open(&OpenOptions::new(path)).unwrap();
    for _ in 0..150 {
        script.step(&*disk, 200_000).unwrap();
    }
    assert!(read_all(&*disk) == script.bytes);
    drop(disk);
    let report = crate::check(&OpenOptions::read_only(path), Repair::Nothing).unwrap();
    assert_eq!((report.errors, report.leaks, report.unmarked), (0, 0, 0), "{:?}", report.details);
}

#[test]
fn a_raw_data_file_reads_as_the_disk_does_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let size = 3 << 20;
    create(&path, &with_data_file("data.raw", true, size)).unwrap();
    let mut script = Script::new(7, vec![0; size as usize]);
    for _ in 0..3 {
        run_a_while(&path, &mut script);
        assert!(std::fs::read(folder.path().join("data.raw")).unwrap() == script.bytes);
    }
    let disk = open(&OpenOptions::new(&path)).unwrap();
    disk.resize(4 << 20, Preallocation::Off).unwrap();
    script.bytes.resize(4 << 20, 0);
    disk.write_at((4 << 20) - 512, &[9; 512]).unwrap();
    script.bytes[(4 << 20) - 512..].fill(9);
    assert!(read_all(&*disk) == script.bytes);
    disk.resize(2 << 20, Preallocation::Off).unwrap();
    disk.resize(3 << 20, Preallocation::Off).unwrap();
    script.bytes.truncate(2 << 20);
    script.bytes.resize(3 << 20, 0);
    assert!(read_all(&*disk) == script.bytes);
    drop(disk);
    assert!(std::fs::read(folder.path().join("data.raw")).unwrap() == script.bytes);
}

#[test]
fn a_data_file_that_is_not_raw_takes_a_base_and_gives_space_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let base: Vec<u8> = (0..(1 << 20) - 1536).map(|n| (n / 700 + 1) as u8).collect();
    std::fs::write(folder.path().join("base.raw"), &base).unwrap();
    for extended_l2 in [false, true] {
        std::fs::remove_file(&path).ok();
        std::fs::remove_file(folder.path().join("data")).ok();
        let backing = Some(Backing { name: "base.raw".into(), format: Format::Raw });
        let qcow2 = Qcow2Options { extended_l2, ..Qcow2Options::default() };
        create(&path, &CreateOptions { backing, qcow2, ..with_data_file("data", false, 2 << 20) }).unwrap();
        let mut bytes = base.clone();
        bytes.resize(2 << 20, 0);
        let mut script = Script::new(8, bytes);
        for _ in 0..3 {
            run_a_while(&path, &mut script);
        }
        let disk = open(&OpenOptions::new(&path)).unwrap();
        disk.discard(0, 2 << 20).unwrap();
        disk.flush().unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!(std::fs::metadata(folder.path().join("data")).unwrap().blocks(), 0);
        assert!(matches!(disk.create_snapshot(&NewSnapshot::default()), Err(DiskError::NotPossible { .. })));
        assert!(matches!(disk.write_compressed(0, &[1; 65536]), Err(DiskError::NotPossible { .. })));
    }
}

/// A disk whose tables and whose data lie in one file each in memory.
fn open_both(tables: &Arc<SimFile>, data: &Arc<SimFile>) -> Qcow2 {
    let mut disk = open_sim(tables, Access::ReadWrite, None).unwrap();
    let chain = Chain::default();
    let place = chain.data_file(tables.path(), Some("data"), Access::ReadWrite).unwrap();
    disk.attach_data_file(DataFile::on(place, Arc::clone(data) as _), &chain).unwrap();
    disk
}

#[test]
fn a_fault_at_every_operation_on_either_file_loses_nothing() {
    let size = 128 << 10;
    let mut faults = 0;
    for (raw, fails_in_data, errno) in [(false, true), (false, false), (true, true), (true, false)]
        .into_iter()
        .flat_map(|(raw, in_data)| [EIO, ENOSPC].map(|errno| (raw, in_data, errno)))
    {
        for at in 0.. {
            let qcow2 = Qcow2Options { cluster_size: 512, ..Qcow2Options::default() };
            let tables = Arc::new(SimFile::new(Vec::new()));
            let options = CreateOptions { qcow2, ..with_data_file("data", raw, size) };
            Format::Qcow2.driver().create.unwrap()(&*tables, &options).unwrap();
            let data = Arc::new(SimFile::new(vec![0; if raw { size as usize } else { 0 }]));
            let mut bytes = vec![0; size as usize];
            let disk = open_both(&tables, &data);
            let failing = if fails_in_data { &data } else { &tables };
            failing.fail(Some(Fault { at, persists: false, errno }));
            let outcome = workload(&disk, &mut bytes);
            let reached = failing.operations() > at;
            failing.fail(None);
            drop(disk);
            let context = format!("raw {raw}, in the data {fails_in_data}, fault {errno} at {at}");
            let report = check(Arc::clone(&tables) as _).unwrap();
            assert_eq!(report.errors, 0, "{context}: {:?}", report.details);
            let disk = open_both(&tables, &data);
            if !outcome.fenced {
                assert_eq!(report.leaks, 0, "{context}");
                assert!(read_all(&disk) == bytes, "{context}");
                assert!(!raw || data.content() == bytes, "{context}: read by itself");
            }
            disk.write_at(0, &vec![0x33; size as usize]).unwrap();
            disk.flush().unwrap();
            assert!(read_all(&disk).iter().all(|byte| *byte == 0x33), "{context}");
            if !reached {
                break;
            }
            faults += u64::from(outcome.failed);
        }
    }
    println!("{faults} faults, nothing lost");
    assert!(faults > 100, "only {faults} operations were reached");
}

#[test]
fn data_file_names_that_lead_astray_are_refused_and_looking_follows_none() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0).unwrap();
    let path = folder.path().join("disk.qcow2");
    let outside = tempfile::NamedTempFile::new().unwrap();
    let outside_name = outside.path().to_str().unwrap();
    create(&path, &with_data_file("data", false, 1 << 20)).unwrap();
    let good = std::fs::read(&path).unwrap();
    for (name, expected) in [
        ("/dev/null", "a device"),
        ("pipe", "a pipe"),
        (".", "a folder"),
        ("/proc/self/mem", "kernel"),
        ("missing", "no such file"),
        ("disk.qcow2", "the disk itself"),
        ("nbd://1.2.3.4", "\"nbd:\""),
        ("json:{\"driver\":\"null-co\"}", "\"json:\""),
        ("host_device:/dev/sda", "\"host_device:\""),
        (outside_name, ""),
    ] {
        std::fs::write(&path, &good).unwrap();
        let look = OpenOptions { backing_files: BackingFiles::LeftOut, ..OpenOptions::new(&path) };
        open(&look).unwrap().amend(&Amendment { data_file: Some(name.into()), ..Amendment::default() }).unwrap();
        let policies = [BackingFiles::Anywhere, BackingFiles::BesideDisk, BackingFiles::Refused];
        for backing_files in policies.into_iter().filter(|policy| !expected.is_empty() || *policy != BackingFiles::Anywhere) {
            for access in [Access::ReadOnly, Access::ReadWrite] {
                let error = open(&OpenOptions { backing_files, access, ..OpenOptions::new(&path) }).err().unwrap();
                assert!(matches!(error, DiskError::DataFile { .. }), "{name}: {error}");
                assert!(backing_files != BackingFiles::Anywhere || error.to_string().contains(expected), "{name}: {error}");
            }
        }
        let look = open(&OpenOptions { backing_files: BackingFiles::LeftOut, ..OpenOptions::read_only(&path) });
        assert_eq!(look.unwrap().info().data_file.unwrap(), name);
        assert!(crate::check(&OpenOptions::read_only(&path), Repair::Nothing).unwrap().errors == 0);
    }
}

#[test]
fn a_data_file_that_has_moved_is_taken_from_where_somebody_says() {
    let folder = tempfile::tempdir().unwrap();
    let (path, moved) = (folder.path().join("disk.qcow2"), folder.path().join("moved"));
    create(&path, &with_data_file("data", false, 1 << 20)).unwrap();
    open(&OpenOptions::new(&path)).unwrap().write_at(5000, b"here").unwrap();
    std::fs::rename(folder.path().join("data"), &moved).unwrap();
    assert!(matches!(open(&OpenOptions::new(&path)), Err(DiskError::DataFile { .. })));
    // A person's word counts where names in images are not followed.
    let backing_files = BackingFiles::Refused;
    let disk = open(&OpenOptions { data_file: Some(moved.clone()), backing_files, ..OpenOptions::new(&path) }).unwrap();
    let mut seen = [0; 4];
    disk.read_at(5000, &mut seen).unwrap();
    assert_eq!(&seen, b"here");
    drop(disk);
    let itself = open(&OpenOptions { data_file: Some(path.clone()), ..OpenOptions::new(&path) });
    assert!(matches!(itself, Err(DiskError::DataFile { .. })));
}

#[test]
fn qemu_and_we_agree_on_disks_with_a_data_file() {
    let Some((folder, _alone)) = bench("data files") else { return };
    for (number, made) in [
        "data_file=d0,data_file_raw=on",
        "data_file=d1",
        "data_file=d2,extended_l2=on",
        "data_file=d3,data_file_raw=on,cluster_size=4k",
    ]
    .into_iter()
    .enumerate()
    {
        let (name, size) = (format!("{number}.qcow2"), 3_u64 << 20);
        // QEMU makes the data file where it is started, and looks for it beside the disk.
        if number % 2 == 0 {
            img(&folder, &["create", "-q", "-f", "qcow2", "-o", made, &name, "3M"]);
        } else {
            let qcow2 = Qcow2Options { cluster_size: if made.contains("4k") { 4096 } else { 65536 }, ..Qcow2Options::default() };
            let options = with_data_file(&format!("d{number}"), made.contains("raw"), size);
            create(&at(&folder, &name), &CreateOptions { qcow2, ..options }).unwrap();
        }
        let mut script = Script::new(number as u64 + 40, vec![0; size as usize]);
        for round in 0..3_u64 {
            let disk = open(&OpenOptions::new(at(&folder, &name))).unwrap();
            for _ in 0..60 {
                script.step(&*disk, 200_000).unwrap();
            }
            drop(disk);
            img(&folder, &["check", "-q", &name]);
            std::fs::write(at(&folder, "expected.raw"), &script.bytes).unwrap();
            img(&folder, &["compare", "-f", "qcow2", "-F", "raw", &name, "expected.raw"]);
            let offset = round * 700_000 / 512 * 512;
            let write = format!("write -P 0x5e {offset} 40960");
            run(&folder, "qemu-io", &["-f", "qcow2", "-c", &write, "-c", "write -z 64k 192k", &name]);
            script.bytes[offset as usize..][..40960].fill(0x5e);
            script.bytes[64 << 10..256 << 10].fill(0);
            assert!(read_all(&*open(&OpenOptions::read_only(at(&folder, &name))).unwrap()) == script.bytes, "{made}");
            if made.contains("raw") {
                assert!(std::fs::read(at(&folder, &format!("d{number}"))).unwrap() == script.bytes, "{made}");
            }
        }
        let disk = open(&OpenOptions::new(at(&folder, &name))).unwrap();
        disk.resize(5 << 20, Preallocation::Off).unwrap();
        drop(disk);
        img(&folder, &["check", "-q", &name]);
        script.bytes.resize(5 << 20, 0);
        std::fs::write(at(&folder, "expected.raw"), &script.bytes).unwrap();
        img(&folder, &["compare", "-f", "qcow2", "-F", "raw", &name, "expected.raw"]);
    }
}
