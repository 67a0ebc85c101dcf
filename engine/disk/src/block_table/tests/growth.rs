//! Disks whose size changes, crashed and failed in the middle.

use super::*;

/// All kinds that change their size; the fixed ones too.
fn growing_kinds() -> impl Iterator<Item = Kind> {
    fn fixed(format: Format, file: &dyn BlockFile, size: u64) {
        let options = CreateOptions { preallocation: Preallocation::Full, ..CreateOptions::new(format, size) };
        format.driver().create.unwrap()(file, &options).unwrap();
    }
    KINDS.into_iter().chain([
        Kind::alone("fixed vdi", Format::Vdi, 2 << 20, |file, size| fixed(Format::Vdi, file, size)),
        Kind::alone("fixed vhd", Format::Vhd, 160 << 10, |file, size| fixed(Format::Vhd, file, size)),
    ])
}

fn assert_reads(disk: &dyn DiskImage, at: u64, expected: &[u8], context: &str) {
    let mut found = vec![9; expected.len()];
    disk.read_at(at, &mut found).unwrap();
    assert!(found == expected, "{context}: at {at}: {:02x?}…", &found[..16]);
}

#[test]
fn a_crash_while_a_disk_grows_leaves_the_old_size_or_the_new_one() {
    for kind in growing_kinds() {
        // Sizes that end in the middle of a block, and more blocks than the old tables had room for.
        let sizes = if kind.size > 1 << 20 { [kind.size + (3 << 20) + 512, kind.size + (5 << 20)] } else { [300 << 10, 3 << 20] };
        let file = kind.file(good(&kind));
        let image = file.start_recording();
        let disk = open(kind.format, &file, Access::ReadWrite).unwrap();
        disk.write_at(8192, &[5; 512]).unwrap();
        for size in sizes {
            disk.resize(size, Preallocation::Off).unwrap();
            assert_eq!(disk.len(), size);
            disk.write_at(size - 512, &[6; 512]).unwrap();
        }
        drop(disk);
        let mut seen = std::collections::BTreeMap::new();
        let crashes = CrashImages { seed: 3, pairs: 100, random_sets: 50, ..CrashImages::default() };
        crashes.visit(&image, &file.log(), |crashed_at, image| {
            let context = format!("{}, crash at {crashed_at}", kind.name);
            assert_eq!(errors(kind.format, image), Vec::<String>::new(), "{context}");
            let disk = open(kind.format, &kind.file(image.to_vec()), Access::ReadWrite).unwrap();
            *seen.entry(disk.len()).or_insert(0) += 1;
            assert_reads(&*disk, kind.size - 4096, &[8; 4096], &context);
            if disk.len() > kind.size {
                assert_reads(&*disk, kind.size, &[0; 4096], &context);
                // What was written before the size changed is durable with it.
                assert_reads(&*disk, 8192, &[5; 512], &context);
            }
            // It can go on from there.
            let longer = disk.len() + (1 << 20);
            disk.resize(longer, Preallocation::Off).unwrap();
            disk.write_at(longer - 1024, &[4; 1024]).unwrap();
            disk.flush().unwrap();
            assert_reads(&*disk, longer - 1536, &[0; 512], &context);
        });
        let expected: Vec<u64> = [kind.size].into_iter().chain(sizes).collect();
        assert_eq!(seen.keys().copied().collect::<Vec<_>>(), expected, "{}", kind.name);
        let disk = open(kind.format, &file, Access::ReadWrite).unwrap();
        for size in sizes {
            assert_reads(&*disk, size - 512, &[6; 512], kind.name);
        }
        let last = sizes[1];
        for (size, mode) in [
            (512, Preallocation::Off),
            (last + 100, Preallocation::Off),
            (last + 512, Preallocation::Full),
            (1 << 60, Preallocation::Off),
        ] {
            assert!(matches!(disk.resize(size, mode), Err(DiskError::BadOptions { .. })), "{} to {size}", kind.name);
            assert_eq!(disk.len(), last, "{}", kind.name);
        }
    }
}

#[test]
fn a_host_that_fails_while_a_disk_grows_leaves_the_old_size_or_the_new_one() {
    for kind in growing_kinds() {
        for (errno, at) in (0..60).flat_map(|at| [(5, at), (28, at)]) {
            let file = kind.file(good(&kind));
            let disk = open(kind.format, &file, Access::ReadWrite).unwrap();
            let size = kind.size + (2 << 20);
            file.fail(Some(Fault { at, persists: false, errno }));
            let resized = disk.resize(size, Preallocation::Off);
            file.fail(None);
            drop(disk);
            let context = format!("{} operation {at}, errno {errno}: {resized:?}", kind.name);
            assert_eq!(errors(kind.format, &file.content()), Vec::<String>::new(), "{context}");
            let disk = open(kind.format, &file, Access::ReadWrite).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(disk.len() == size || (resized.is_err() && disk.len() == kind.size), "{context}: {} bytes", disk.len());
            assert_reads(&*disk, 0, &[7; 8192], &context);
            assert_reads(&*disk, kind.size - 4096, &[8; 4096], &context);
            if disk.len() == size {
                assert_reads(&*disk, kind.size, &vec![0; 2 << 20], &context);
            }
        }
    }
}

#[test]
fn a_disk_shrinks_where_nothing_is_lost_and_a_crash_leaves_the_old_size_or_the_new_one() {
    for kind in KINDS.into_iter().filter(|kind| matches!(kind.format, Format::Vdi | Format::Vhdx)) {
        let file = kind.file(good(&kind));
        let disk = open(kind.format, &file, Access::ReadWrite).unwrap();
        // The last block is there, but holds only zeros afterwards.
        let small = (1 << 20) + 512;
        assert!(matches!(disk.resize(small, Preallocation::Off), Err(DiskError::BadOptions { .. })), "{}", kind.name);
        disk.write_zeroes(kind.size - 4096, 4096).unwrap();
        if kind.is_differencing {
            // A VDI block was copied whole.
            disk.write_zeroes(kind.size - (1 << 20), 1 << 20).unwrap();
        }
        disk.flush().unwrap();
        let image = file.start_recording();
        disk.resize(small, Preallocation::Off).unwrap();
        assert_eq!(disk.len(), small);
        disk.write_at(small - 512, &[3; 512]).unwrap();
        disk.flush().unwrap();
        drop(disk);
        let mut seen = std::collections::BTreeSet::new();
        let crashes = CrashImages { seed: 3, pairs: 100, random_sets: 50, ..CrashImages::default() };
        crashes.visit(&image, &file.log(), |crashed_at, image| {
            let context = format!("{}, crash at {crashed_at}", kind.name);
            assert_eq!(errors(kind.format, image), Vec::<String>::new(), "{context}");
            let disk = open(kind.format, &kind.file(image.to_vec()), Access::ReadWrite).unwrap();
            seen.insert(disk.len());
            assert_reads(&*disk, 0, &[7; 8192], &context);
        });
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [small, kind.size], "{}", kind.name);
        let disk = open(kind.format, &file, Access::ReadWrite).unwrap();
        assert_reads(&*disk, small - 512, &[3; 512], kind.name);
        if !kind.is_differencing {
            // What was cut off does not come back.
            disk.resize(kind.size, Preallocation::Off).unwrap();
            assert_reads(&*disk, small, &vec![0; (kind.size - small) as usize], kind.name);
        }
    }
}
