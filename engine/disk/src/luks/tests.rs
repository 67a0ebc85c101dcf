//! Encrypted disks, ours and QEMU's.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use super::*;
use crate::fields::put;
use crate::open::Chain;
use crate::qcow2::tests::qemu::bench;
use crate::sim_file::{Fault, SimFile};
use crate::{BackingFiles, CheckReport, OpenOptions, Repair, check, create as create_disk, open};

const SIZE: u64 = 3 << 20;

fn passphrase(word: &str) -> Option<Passphrase> {
    Some(Passphrase::new(word.into()))
}

fn options(path: &Path, format: Format, word: &str) -> OpenOptions {
    OpenOptions { format: Some(format), passphrase: passphrase(word), ..OpenOptions::new(path) }
}

fn write_somewhere(disk: &dyn DiskImage) -> Vec<u8> {
    let mut expected = vec![0; SIZE as usize];
    for (at, length, byte) in [(0, 700, 1), (65_000, 140_000, 2), (1 << 20, 512, 3), ((1 << 20) + 100, 5, 4), (66_000, 3, 5)] {
        disk.write_at(at as u64, &vec![byte; length]).unwrap();
        expected[at..at + length].fill(byte);
    }
    disk.write_zeroes(70_001, 99_999).unwrap();
    expected[70_001..170_000].fill(0);
    disk.flush().unwrap();
    expected
}

fn all_of(disk: &dyn DiskImage) -> Vec<u8> {
    let mut content = vec![9; disk.len() as usize];
    disk.read_at(0, &mut content).unwrap();
    content
}

#[test]
fn what_is_written_with_a_passphrase_is_read_with_it_only_and_lies_nowhere_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    for format in [Format::Luks, Format::Qcow2] {
        let path = folder.path().join(format.name());
        create_disk(&path, &CreateOptions { passphrase: passphrase("secret"), ..CreateOptions::new(format, SIZE) }).unwrap();
        let disk = open(&options(&path, format, "secret")).unwrap();
        if format == Format::Luks {
            // A new one holds noise until it is written.
            disk.write_zeroes(0, SIZE).unwrap();
        }
        let expected = write_somewhere(&*disk);
        assert!(all_of(&*disk) == expected, "{format}");
        assert!(disk.info().encrypted && disk.extent_at(0).unwrap().host_offset.is_none());
        drop(disk);
        assert!(all_of(&*open(&options(&path, format, "secret")).unwrap()) == expected, "{format}");

        let raw = std::fs::read(&path).unwrap();
        assert!(!raw.windows(64).any(|bytes| bytes == [2; 64]), "{format}: plain text in the file");
        assert!(matches!(open(&options(&path, format, "Secret")), Err(DiskError::WrongPassphrase { .. })));
        let without = OpenOptions { format: Some(format), ..OpenOptions::new(&path) };
        assert!(matches!(open(&without), Err(DiskError::NeedsPassphrase { .. })));
        // A look from outside needs none, but shows nothing.
        let look = OpenOptions { backing_files: BackingFiles::LeftOut, access: Access::ReadOnly, ..without };
        let disk = open(&look).unwrap();
        assert_eq!((disk.len(), disk.info().encrypted), (SIZE, true));
        assert!(matches!(disk.read_at(0, &mut [0; 512]), Err(DiskError::NeedsPassphrase { .. })));
    }
    let path = folder.path().join("qcow2");
    let CheckReport { errors, leaks, .. } = check(&options(&path, Format::Qcow2, "secret"), Repair::Nothing).unwrap();
    assert_eq!((errors, leaks), (0, 0));
}

#[test]
fn encryption_is_refused_where_it_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let try_with = |format, preallocation, passphrase| {
        let options = CreateOptions { preallocation, passphrase, ..CreateOptions::new(format, SIZE) };
        create_disk(&folder.path().join("x"), &options)
    };
    for (format, preallocation, passphrase) in [
        (Format::Raw, Preallocation::Off, passphrase("x")),
        (Format::Vdi, Preallocation::Off, passphrase("x")),
        (Format::Luks, Preallocation::Off, None),
        (Format::Luks, Preallocation::Metadata, passphrase("x")),
        (Format::Qcow2, Preallocation::Metadata, passphrase("x")),
    ] {
        assert!(matches!(try_with(format, preallocation, passphrase), Err(DiskError::BadOptions { .. })), "{format}");
    }
}

#[test]
fn snapshots_and_overlays_of_encrypted_disks_hold_what_they_should() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    create_disk(&path, &CreateOptions { passphrase: passphrase("a"), ..CreateOptions::new(Format::Qcow2, SIZE) }).unwrap();
    let disk = open(&options(&path, Format::Qcow2, "a")).unwrap();
    let before = write_somewhere(&*disk);
    disk.create_snapshot(&crate::NewSnapshot { name: "s".into(), ..Default::default() }).unwrap();
    disk.write_at(100, &[0x77; 300_000]).unwrap();
    disk.write_vm_state(5, b"state").unwrap();
    assert!(all_of(&*disk) != before);
    assert!(matches!(disk.write_compressed(0, &[1; 65536]), Err(DiskError::NotPossible { .. })));
    disk.apply_snapshot("s").unwrap();
    assert!(all_of(&*disk) == before);
}

#[test]
fn hostile_headers_are_refused_quickly() {
    let header = new_header(&passphrase("x").unwrap(), KeyChange::USUAL_TIME).unwrap();
    let big = |value: u32| value.to_be_bytes().to_vec();
    let cases: [(&str, usize, Vec<u8>); 13] = [
        ("signature", 0, b"x".to_vec()),
        ("version", 6, vec![0, 2]),
        ("cipher", 8, b"des\0".to_vec()),
        ("mode", 40, b"cbc-plain\0".to_vec()),
        ("hash", 72, b"md5\0".to_vec()),
        ("payload past the end", 104, big(u32::MAX)),
        ("key of no bits", 108, big(0)),
        ("endless key", 108, big(u32::MAX)),
        ("endless digest", 164, big(u32::MAX)),
        ("digest of no rounds", 164, big(0)),
        ("endless rounds", 212, big(u32::MAX)),
        ("slot past the end", 248, big(u32::MAX)),
        ("stripes", 252, big(u32::MAX)),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (what, at, bytes) in cases {
        let mut content = header.clone();
        content.extend([0; 4096]);
        put(&mut content, at, &bytes);
        let path = folder.path().join("hostile");
        std::fs::write(&path, &content).unwrap();
        let begun = std::time::Instant::now();
        let error = open(&options(&path, Format::Luks, "x")).err().unwrap_or_else(|| panic!("{what} was opened"));
        assert!(!matches!(error, DiskError::WrongPassphrase { .. }), "{what}: {error}");
        assert!(begun.elapsed().as_secs() < 2, "{what}");
        assert!(std::fs::read(&path).unwrap() == content);
    }
    // The whole header at once: every slot the same one.
    let mut content = [header, vec![0; 4096]].concat();
    let slot = content[208..256].to_vec();
    put(&mut content, 256, &slot);
    let path = folder.path().join("twice");
    std::fs::write(&path, &content).unwrap();
    assert!(matches!(open(&options(&path, Format::Luks, "x")), Err(DiskError::WrongFormat { .. })));
}

/// Runs QEMU's tool with the passphrase as its secret.
fn qemu_img(arguments: &[&str]) -> bool {
    let output = Command::new("qemu-img")
        .args([arguments[0], "--object", "secret,id=s,data=secret"])
        .args(&arguments[1..])
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    true
}

#[test]
#[ignore = "qemu-img cannot always measure its processor time on a busy computer, and then makes no LUKS disk"]
fn qemu_reads_what_we_encrypt_and_we_read_what_it_does() {
    let Some((folder, _alone)) = bench("encryption") else { return };
    let raw = folder.path().join("plain.raw");
    for (format, key) in [(Format::Luks, "key-secret"), (Format::Qcow2, "encrypt.key-secret")] {
        let (ours, theirs) = (folder.path().join(format!("ours.{format}")), folder.path().join(format!("theirs.{format}")));
        create_disk(&ours, &CreateOptions { passphrase: passphrase("secret"), ..CreateOptions::new(format, SIZE) }).unwrap();
        let extra = if format == Format::Qcow2 { ",encrypt.format=luks" } else { "" };
        // Few rounds: this is about the format, not about strength.
        let iteration = if format == Format::Qcow2 { "encrypt.iter-time" } else { "iter-time" };
        let how = format!("{key}=s{extra},{iteration}=200");
        qemu_img(&["create", "-q", "-f", format.name(), "-o", &how, theirs.to_str().unwrap(), "3M"]);
        for path in [&ours, &theirs] {
            let disk = open(&options(path, format, "secret")).unwrap();
            disk.write_zeroes(0, SIZE).unwrap();
            let expected = write_somewhere(&*disk);
            drop(disk);
            std::fs::write(&raw, &expected).unwrap();
            let image = format!("driver={format},file.filename={},{key}=s", path.display());
            let plain = format!("driver=raw,file.filename={}", raw.display());
            assert!(qemu_img(&["compare", "--image-opts", &image, &plain]), "{}", path.display());
            if format == Format::Qcow2 {
                qemu_img(&["check", "-q", "--image-opts", &image]);
            }
            // And back: what QEMU writes over it.
            std::fs::write(&raw, vec![0x5a; SIZE as usize]).unwrap();
            let target = ["convert", "-n", "--image-opts", "--target-image-opts", &plain, &image];
            qemu_img(&target);
            let disk: Arc<dyn DiskImage> = open(&options(path, format, "secret")).unwrap();
            assert!(all_of(&*disk) == vec![0x5a; SIZE as usize], "{}", path.display());
        }
    }
}

#[test]
fn an_encrypted_disk_that_grows_or_shrinks_stays_encrypted_and_readable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let format = Format::Qcow2;
    create_disk(&path, &CreateOptions { passphrase: passphrase("secret"), ..CreateOptions::new(format, SIZE) }).unwrap();
    let disk = open(&options(&path, format, "secret")).unwrap();
    disk.write_at(1000, &[7; 5000]).unwrap();
    // The first-level table moves where it grows so far.
    for size in [8 << 30, 2 << 30] {
        disk.resize(size, crate::Preallocation::Off).unwrap();
    }
    disk.write_at((2 << 30) - 512, &[8; 512]).unwrap();
    disk.flush().unwrap();
    drop(disk);
    let locked = open(&OpenOptions { passphrase: None, ..options(&path, format, "") });
    assert!(matches!(locked, Err(DiskError::NeedsPassphrase { .. })));
    let disk = open(&options(&path, format, "secret")).unwrap();
    assert!(disk.info().encrypted && disk.len() == 2 << 30);
    let mut seen = [0; 5000];
    disk.read_at(1000, &mut seen).unwrap();
    assert_eq!(seen, [7; 5000]);
    disk.read_at((2 << 30) - 512, &mut seen[..512]).unwrap();
    assert_eq!(seen[..512], [8; 512]);
}

#[test]
fn a_failing_host_leaves_every_sector_old_or_new_and_a_second_attempt_succeeds() {
    let word = passphrase("secret");
    for format in [Format::Luks, Format::Qcow2] {
        let (content, _) = fuzz_tests::seed(format);
        let open = |file: &Arc<SimFile>| {
            let chain = Chain::default();
            let opening = Opening::of(Arc::clone(file) as _, Access::ReadWrite, &chain);
            (format.driver().open)(Opening { passphrase: word.as_ref(), ..opening }).unwrap()
        };
        for errno in [5, 28] {
            for at in 0.. {
                let file = Arc::new(SimFile::new(content.clone()));
                let disk = open(&file);
                disk.write_at(0, &[1; 9000]).unwrap();
                disk.flush().unwrap();
                file.fail(Some(Fault { at, persists: false, errno }));
                let write = disk.write_at(700, &[2; 5000]).and_then(|()| disk.write_at(100_000, &[2; 3000]));
                let flush = disk.flush();
                let was_reached = file.operations() > at;
                file.fail(None);
                let context = format!("{format} operation {at}, errno {errno}: {write:?}, {flush:?}");
                let again = disk.write_at(700, &[2; 5000]).and_then(|()| disk.flush());
                drop(disk);
                let found = all_of(&*open(&file));
                assert!(found[..700] == [1; 700] && found[5700..9000] == [1; 3300], "{context}");
                for sector in found[700..5700].chunk_by(|left, right| left == right) {
                    assert!(matches!(sector[0], 1 | 2), "{context}: noise");
                }
                assert!(again.is_err() || found[700..5700] == [2; 5000], "{context}");
                if format == Format::Qcow2 {
                    let report = format.driver().check.unwrap()(file, Repair::Nothing).unwrap();
                    assert_eq!(report.errors, 0, "{context}: {:?}", report.details);
                }
                if !was_reached {
                    assert!(at > 3, "{context}");
                    break;
                }
            }
        }
    }
}
