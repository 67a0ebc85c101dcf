//! What a file is can change while its content stays: version, refcount width, lazy refcounts.

use super::qemu::{at, bench, img};
use super::*;
use crate::{Amendment, NewSnapshot};

#[test]
fn versions_and_refcount_widths_change_and_the_content_stays() {
    let qemu = bench("amending");
    let start = Qcow2Options { cluster_size: 4096, ..Qcow2Options::default() };
    for with_base in [false, true] {
        let size = 700 * 1024;
        let base: Option<Vec<u8>> = with_base.then(|| (0..size - 1000).map(|n| (n / 900 + 1) as u8).collect());
        let file = Arc::new(SimFile::new(empty(start, size)));
        let mut bytes = base.clone().unwrap_or_default();
        bytes.resize(size as usize, 0);
        let mut script = Script::new(3, bytes);
        let to = |version, refcount_bits| Amendment { version, refcount_bits, ..Amendment::default() };
        let changes = [
            to(None, Some(64)),
            to(None, Some(8)),
            to(None, Some(16)),
            to(Some(2), None),
            to(Some(3), Some(32)),
            Amendment { lazy_refcounts: Some(true), ..Amendment::default() },
            to(Some(2), Some(16)),
            to(Some(3), None),
            to(None, Some(1)),
        ];
        for change in changes {
            let disk = open_sim(&file, Access::ReadWrite, base.as_deref()).unwrap();
            for _ in 0..40 {
                script.step(&disk, 60_000).unwrap();
            }
            disk.amend(&change).unwrap_or_else(|error| panic!("{change:?}: {error}"));
            for _ in 0..20 {
                script.step(&disk, 60_000).unwrap();
            }
            assert!(read_all(&disk) == script.bytes, "{change:?}");
            drop(disk);
            assert_clean(file.content(), &change);
            if let Some((folder, _alone)) = &qemu {
                std::fs::write(at(folder, "amended.qcow2"), file.content()).unwrap();
                img(folder, &["check", "-q", "-f", "qcow2", "amended.qcow2"]);
            }
            let disk = open_sim(&file, Access::ReadWrite, base.as_deref()).unwrap();
            assert!(read_all(&disk) == script.bytes, "{change:?} after reopening");
        }
    }
}

#[test]
fn what_another_version_or_width_cannot_say_is_refused_and_nothing_changes() {
    let small = Qcow2Options { cluster_size: 4096, ..Qcow2Options::default() };
    let extended = Qcow2Options { cluster_size: 16384, extended_l2: true, ..small };
    let two = Amendment { version: Some(2), ..Amendment::default() };
    let narrow = Amendment { refcount_bits: Some(1), ..Amendment::default() };
    let cases = [
        (extended, two.clone(), false),
        (Qcow2Options { compression: Compression::Zstd, ..small }, two.clone(), false),
        (Qcow2Options { refcount_bits: 8, ..small }, two.clone(), false),
        (small, two, true),
        (small, narrow.clone(), true),
        (small, Amendment { refcount_bits: Some(3), ..Amendment::default() }, false),
        (Qcow2Options { version: 2, ..small }, narrow, false),
        (Qcow2Options { version: 2, ..small }, Amendment { lazy_refcounts: Some(true), ..Amendment::default() }, false),
        (small, Amendment { data_file: Some("x".into()), ..Amendment::default() }, false),
        (small, Amendment { raw_data_file: Some(true), ..Amendment::default() }, false),
    ];
    for (kind, change, with_snapshot) in cases {
        let file = Arc::new(SimFile::new(empty(kind, 1 << 20)));
        let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
        disk.write_at(0, &[1; 9000]).unwrap();
        if with_snapshot {
            disk.create_snapshot(&NewSnapshot { name: "s".into(), ..NewSnapshot::default() }).unwrap();
        }
        disk.flush().unwrap();
        assert!(disk.amend(&change).is_err(), "{kind:?}: {change:?}");
        drop(disk);
        assert_clean(file.content(), &change);
        let mut seen = [0; 9000];
        open_sim(&file, Access::ReadWrite, None).unwrap().read_at(0, &mut seen).unwrap();
        assert_eq!(seen, [1; 9000]);
    }
}
