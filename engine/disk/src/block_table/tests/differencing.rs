//! Disks that are built on others: what shows through, what keeps them together, and what tears them apart.

use super::*;
use crate::{BackingFiles, ExtentKind};

fn differencing() -> impl Iterator<Item = Kind> {
    KINDS.into_iter().filter(|kind| kind.is_differencing)
}

fn extension(format: Format) -> &'static str {
    if format == Format::Vhd { "vhd" } else { format.name() }
}

/// A folder with a base of three mebibytes that holds `[1; …]`, and a disk built on it.
struct Family {
    folder: tempfile::TempDir,
    format: Format,
}

const SIZE: u64 = 3 << 20;

impl Family {
    fn new(format: Format) -> Self {
        let family = Self { folder: tempfile::tempdir().unwrap(), format };
        crate::create(&family.path("base"), &CreateOptions::new(format, SIZE)).unwrap();
        family.open("base").unwrap().write_at(0, &vec![1; SIZE as usize]).unwrap();
        family.build("child", "base");
        family
    }

    fn name(&self, stem: &str) -> String {
        format!("{stem}.{}", extension(self.format))
    }

    fn path(&self, stem: &str) -> std::path::PathBuf {
        self.folder.path().join(self.name(stem))
    }

    fn backing(&self, stem: &str) -> Backing {
        Backing { name: self.name(stem), format: self.format }
    }

    fn build(&self, stem: &str, base: &str) {
        let backing = Some(self.backing(base));
        crate::create(&self.path(stem), &CreateOptions { backing, ..CreateOptions::new(self.format, SIZE) }).unwrap();
    }

    fn open_with(&self, stem: &str, backing_files: BackingFiles) -> Result<Arc<dyn DiskImage>, DiskError> {
        crate::open(&OpenOptions { format: Some(self.format), backing_files, ..OpenOptions::new(self.path(stem)) })
    }

    fn open(&self, stem: &str) -> Result<Arc<dyn DiskImage>, DiskError> {
        self.open_with(stem, BackingFiles::Anywhere)
    }
}

fn bytes_at(disk: &dyn DiskImage, at: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    disk.read_at(at, &mut bytes).unwrap();
    bytes
}

fn refusal(result: Result<Arc<dyn DiskImage>, DiskError>) -> String {
    match result {
        Err(error @ DiskError::Backing { .. }) => error.to_string(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was opened"),
    }
}

#[test]
fn writes_stay_in_the_disk_and_everything_else_shows_the_base() {
    for kind in differencing() {
        let family = Family::new(kind.format);
        let base = std::fs::read(family.path("base")).unwrap();
        let disk = family.open("child").unwrap();
        assert_eq!(bytes_at(&*disk, 0, SIZE as usize), vec![1; SIZE as usize], "{}", kind.name);
        let first = disk.extent_at(0).unwrap();
        assert_eq!((first.kind, first.present, first.length), (ExtentKind::Backing, false, SIZE), "{}", kind.name);
        let mut expected = vec![1; SIZE as usize];
        let mut random = 5;
        for number in 0..300 {
            let at = next(&mut random) % SIZE;
            let length = (1 + next(&mut random) % [700, 5000, 300_000][number % 3]).min(SIZE - at);
            let range = at as usize..(at + length) as usize;
            match next(&mut random) % 3 {
                0 => {
                    disk.write_zeroes(at, length).unwrap();
                    expected[range].fill(0);
                }
                _ => {
                    disk.write_at(at, &vec![number as u8; length as usize]).unwrap();
                    expected[range].fill(number as u8);
                }
            }
            if number % 50 == 0 {
                disk.flush().unwrap();
            }
        }
        assert!(bytes_at(&*disk, 0, SIZE as usize) == expected, "{}", kind.name);
        drop(disk);
        let disk = family.open("child").unwrap();
        assert!(bytes_at(&*disk, 0, SIZE as usize) == expected, "{} after opening again", kind.name);
        // The extents tell no lies: what they call the base's or zeros is that.
        let mut at = 0;
        while at < SIZE {
            let extent = disk.extent_at(at).unwrap();
            let value = match extent.kind {
                ExtentKind::Backing => Some(1),
                ExtentKind::Zero => Some(0),
                ExtentKind::Data => None,
            };
            let found = &expected[at as usize..(at + extent.length) as usize];
            assert!(value.is_none_or(|value| found.iter().all(|byte| *byte == value)), "{}: {extent:?} at {at}", kind.name);
            at += extent.length;
        }
        let info = disk.info();
        assert_eq!(info.backing.map(|backing| backing.name), Some(family.name("base")), "{}", kind.name);
        assert!(std::fs::read(family.path("base")).unwrap() == base, "{}: the base was changed", kind.name);
        let options = OpenOptions { format: Some(kind.format), ..OpenOptions::read_only(family.path("child")) };
        drop(disk);
        let report = crate::check(&options, Repair::Nothing).unwrap();
        assert_eq!((report.errors, report.leaks), (0, 0), "{}: {:?}", kind.name, report.details);
    }
}

#[test]
fn a_base_that_changed_or_was_replaced_is_refused_and_opening_it_is_no_change() {
    for kind in differencing() {
        let family = Family::new(kind.format);
        drop(family.open("base").unwrap());
        family.open("child").unwrap();
        family.open("base").unwrap().write_at(0, &[2; 512]).unwrap();
        // A VHD disk knows its base's identifier, not its content's; the time of the file gives a warning.
        if kind.format == Format::Vhd {
            let past = std::time::SystemTime::now() - Duration::from_secs(3600);
            std::fs::File::options().write(true).open(family.path("base")).unwrap().set_modified(past).unwrap();
            assert!(family.open("child").unwrap().warnings()[0].contains("written to"), "{}", kind.name);
        } else {
            assert!(refusal(family.open("child")).contains("changed or replaced"), "{}", kind.name);
        }
        std::fs::remove_file(family.path("base")).unwrap();
        refusal(family.open("child"));
        crate::create(&family.path("base"), &CreateOptions::new(kind.format, SIZE)).unwrap();
        let message = refusal(family.open("child"));
        // A VDI disk looks for an identifier, and finds none.
        let expected = if kind.format == Format::Vdi { "no such file" } else { "changed or replaced" };
        assert!(message.contains(expected), "{}: {message}", kind.name);
        // Without its base it can still be looked at.
        family.open_with("child", BackingFiles::LeftOut).unwrap();
        assert!(matches!(family.open_with("child", BackingFiles::Refused), Err(DiskError::Backing { .. })), "{}", kind.name);
    }
}

#[test]
fn disks_built_on_each_other_in_a_circle_or_on_themselves_are_refused() {
    for kind in differencing() {
        let family = Family::new(kind.format);
        family.build("grandchild", "child");
        assert_eq!(bytes_at(&*family.open("grandchild").unwrap(), 5000, 3), [1; 3]);
        for base in ["grandchild", "child"] {
            let child = family.open_with("child", BackingFiles::LeftOut).unwrap();
            child.set_backing(Some(&family.backing(base))).unwrap();
            drop(child);
            let message = refusal(family.open("child"));
            assert!(message.contains("circle"), "{} on {base}: {message}", kind.name);
        }
    }
}

#[test]
fn bases_elsewhere_and_things_that_are_no_disks_are_refused() {
    for kind in differencing().filter(|kind| kind.format != Format::Vdi) {
        let family = Family::new(kind.format);
        let below = family.folder.path().join("below");
        std::fs::create_dir(&below).unwrap();
        let path = below.join(family.name("disk"));
        let up = Backing { name: format!("../{}", family.name("base")), format: kind.format };
        crate::create(&path, &CreateOptions { backing: Some(up), ..CreateOptions::new(kind.format, SIZE) }).unwrap();
        let options = OpenOptions { format: Some(kind.format), ..OpenOptions::read_only(&path) };
        crate::open(&options).unwrap();
        let message = refusal(crate::open(&OpenOptions { backing_files: BackingFiles::BesideDisk, ..options }));
        assert!(message.contains("outside the disk's own folder"), "{}: {message}", kind.name);
        // The same file, led astray.
        let content = std::fs::read(family.path("child")).unwrap();
        let old = family.name("base");
        let encodings: [fn(&str) -> Vec<u8>; 2] =
            [|text| text.as_bytes().to_vec(), |text| text.encode_utf16().flat_map(u16::to_le_bytes).collect()];
        let replaced = |new: &str| {
            let mut content = content.clone();
            for encode in encodings {
                let (from, to) = (encode(&old), encode(new));
                while let Some(at) = content.windows(from.len()).position(|window| window == from) {
                    content[at..at + to.len()].copy_from_slice(&to);
                }
            }
            content
        };
        // As long as the old name, so that nothing else moves.
        for hostile in ["/dev/null", "nbd://x:1", "/dev/zero", "nul\0./../", "nowhere.x"] {
            let hostile = format!("{hostile:.<width$}", width = old.len());
            std::fs::write(family.path("astray"), replaced(&hostile[..old.len()])).unwrap();
            assert!(
                matches!(family.open("astray"), Err(DiskError::Backing { .. } | DiskError::WrongFormat { .. })) || {
                    // A VHD's other name led to the base all the same.
                    kind.format == Format::Vhd
                }
            );
        }
    }
}

#[test]
fn a_crash_while_the_base_is_exchanged_leaves_the_old_one_or_the_new_one() {
    for kind in differencing() {
        for target in [Some(base(kind.format, 1)), None] {
            let file = kind.file(kind.empty());
            let disk = open(kind.format, &file, Access::ReadWrite).unwrap();
            disk.write_at(1024, &[7; 512]).unwrap();
            disk.flush().unwrap();
            let image = file.start_recording();
            disk.write_at(4096, &[6; 1024]).unwrap();
            disk.set_backing(target.as_ref()).unwrap();
            drop(disk);
            let mut seen = std::collections::BTreeSet::new();
            let crashes = CrashImages { seed: 3, pairs: 100, random_sets: 50, ..CrashImages::default() };
            crashes.visit(&image, &file.log(), |crashed_at, image| {
                let context = format!("{} to {target:?}, crash at {crashed_at}", kind.name);
                assert_eq!(errors(kind.format, image), Vec::<String>::new(), "{context}");
                let disk = open(kind.format, &kind.file(image.to_vec()), Access::ReadWrite);
                let disk = disk.unwrap_or_else(|error| panic!("{context}: {error}"));
                let name = disk.info().backing.map(|backing| backing.name);
                let number = if name.as_deref().is_some_and(|name| name.starts_with("base1")) { 1 } else { 0 };
                // A sector in a block that nobody wrote to.
                let far = kind.size / SECTOR as u64 / 2 + 1;
                let mut expected = [0; SECTOR];
                if name.is_some() {
                    stamp(far, in_base(number, far), &mut expected);
                }
                assert!(bytes_at(&*disk, far * SECTOR as u64, SECTOR) == expected, "{context}: {name:?}");
                assert_eq!(bytes_at(&*disk, 1024, 512), [7; 512], "{context}");
                seen.insert(name);
            });
            let new = target.as_ref().map(|target| target.name.clone());
            let expected: std::collections::BTreeSet<_> = [new.clone(), Some(base(kind.format, 0).name)].into();
            assert_eq!(seen, expected, "{}", kind.name);
            let disk = open(kind.format, &file, Access::ReadWrite).unwrap();
            assert_eq!(disk.info().backing.map(|backing| backing.name), new);
            assert_eq!(bytes_at(&*disk, 4096, 1024), [6; 1024]);
        }
    }
}

#[test]
fn a_disk_looked_at_alone_forgets_blocks_so_that_the_base_shows_again() {
    for kind in differencing() {
        let family = Family::new(kind.format);
        let disk = family.open("child").unwrap();
        disk.write_at(0, &vec![7; SIZE as usize]).unwrap();
        drop(disk);
        let alone = family.open_with("child", BackingFiles::LeftOut).unwrap();
        // As a commit does it.
        alone.set_backing(Some(&family.backing("base"))).unwrap();
        alone.discard(0, SIZE).unwrap();
        alone.flush().unwrap();
        assert!(!alone.extent_at(0).unwrap().present, "{}", kind.name);
        drop(alone);
        let disk = family.open("child").unwrap();
        assert_eq!(bytes_at(&*disk, 0, SIZE as usize), vec![1; SIZE as usize], "{}", kind.name);
        disk.write_at(SIZE - 700, &[2; 700]).unwrap();
        drop(disk);
        assert_eq!(bytes_at(&*family.open("child").unwrap(), SIZE - 701, 701), [vec![1], vec![2; 700]].concat());
        let options = OpenOptions { format: Some(kind.format), ..OpenOptions::read_only(family.path("child")) };
        let report = crate::check(&options, Repair::Nothing).unwrap();
        assert_eq!((report.errors, report.leaks), (0, 0), "{}: {:?}", kind.name, report.details);
    }
}
