//! Hostile files, met as people meet them: each lies in a folder under a name, and is opened by it, read, written to,
//! checked and repaired. One command says how many there were, and that four things hold of all of them:
//!
//! ```text
//! cargo test --release -p engine_disk hostile_files_of_every_kind -- --nocapture
//! ```
//!
//! - none makes a panic;
//! - nothing that is done with one (opening, working, checking, repairing) takes more than [`MOST_TIME`] of the processor;
//! - the process never holds more than [`MOST_MEMORY`] beside what it began with, and [`MOST_WITH_TABLES`] when files have
//!   the largest tables that their format allows here;
//! - none has a file opened that lies outside its folder, by whoever keeps to it ([`BackingFiles::BesideDisk`]) or only wants
//!   to know what the file says of itself ([`BackingFiles::LeftOut`]). Who opens disks as QEMU does
//!   ([`BackingFiles::Anywhere`]) follows the names of base images to other folders, but to ordinary files alone; and the
//!   extents of a VMDK are looked for beside it even then. (What a VDI is built on is told by a look at VDI files around it.)
//!
//! The work is done by a process of its own, because memory belongs to a process. Formats have more hostile files in their
//! own tests, with what is expected of each; these here are for what all have in common.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;

use crate::block_file::BlockFile;
use crate::fuzz_tests::{Fuzzer, MOST_TIME, TARGETS, change_everything, look_at, processor_time, seal_vhd};
use crate::luks::fuzz_tests::hostile_files as luks_files;
use crate::open::{Backing, BackingFiles, CreateOptions, NewDataFile, OpenOptions};
use crate::sim_file::SimFile;
use crate::{Access, Format, HostFile, Qcow2Options, Repair, VhdxOptions, check, create, describe_iso, open, probe, vmdk};

const FEWEST_FILES: usize = 2300;
const FILES_EACH: usize = 450;
/// Memory beside what the process began with.
const MOST_MEMORY: u64 = 64 << 20;
const MOST_WITH_TABLES: u64 = 512 << 20;
/// Says that this process is the one that does the work.
const IS_WORKER: &str = "DISK_HOSTILE_WORKER";
const TEST: &str = "hostile_tests::hostile_files_of_every_kind_keep_to_time_memory_and_their_folder";

#[test]
fn hostile_files_of_every_kind_keep_to_time_memory_and_their_folder() {
    if std::env::var_os(IS_WORKER).is_some() {
        return meet_all();
    }
    let mut worker = std::process::Command::new(std::env::current_exe().unwrap());
    let ended = worker.args(["--exact", TEST, "--nocapture"]).env(IS_WORKER, "1").output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    said.lines().filter(|line| line.contains("hostile")).for_each(|line| println!("{line}"));
    assert!(ended.status.success() && said.contains("foreign files opened: 0"), "{}", String::from_utf8_lossy(&ended.stderr));
}

fn meet_all() {
    let (inbox, foreign) = (Inbox::new(), Foreign::new());
    // Making them opens what they name.
    let with_names = inbox.files_that_name_others(&foreign);
    let watch = Watch::new(&inbox, &foreign);
    let before = memory("VmRSS");
    let mut met = Met::default();
    for target in &TARGETS {
        let mut fuzzer = Fuzzer::new(target, 0xbad_f11e);
        let sound = fuzzer.sound();
        let mut last = sound[0].clone();
        for number in 0..FILES_EACH {
            // Every other one is worse than the one before.
            let from = if number % 2 == 0 { &sound[number / 2 % sound.len()] } else { &last };
            last = fuzzer.change(from);
            met.meet(target.format, &inbox.put(&*fuzzer.file(&last)));
        }
    }
    for (format, content) in luks_files(FILES_EACH) {
        met.meet(format, &inbox.put(&SimFile::new(content)));
    }
    for (format, path) in with_names {
        met.meet_name(format, &path);
    }
    let memory_of_small = memory("VmHWM").saturating_sub(before);
    for (format, write) in LARGE {
        met.meet(format, &inbox.large(write));
    }
    let memory_with_tables = memory("VmHWM").saturating_sub(before);
    let foreign_opened = watch.opened();

    let kinds: Vec<String> = met.files.iter().map(|(format, count)| format!("{count} {format}")).collect();
    let all: usize = met.files.values().sum();
    println!("{all} hostile files: {}; {} of them could be opened", kinds.join(", "), met.opened);
    println!("hostile files: panics: 0; longest: {:.2?} of processor time for {}", met.longest.0, met.longest.1);
    println!("hostile files: memory: {} KiB; with the largest tables: {} KiB", memory_of_small >> 10, memory_with_tables >> 10);
    println!("hostile files: foreign files opened: {}", foreign_opened.len());
    assert!(all >= FEWEST_FILES && met.opened > all / 10, "{all}, {}", met.opened);
    assert!(memory_of_small <= MOST_MEMORY, "{memory_of_small}");
    assert!(memory_with_tables <= MOST_WITH_TABLES, "{memory_with_tables}");
    assert_eq!(foreign_opened, Vec::<String>::new());
    // The watch would have seen it.
    open(&OpenOptions { format: Some(Format::Qcow2), ..OpenOptions::read_only(inbox.path("names-base")) }).unwrap();
    assert_eq!(watch.opened(), ["base.raw"]);
}

/// What was met, and how it went.
#[derive(Default)]
struct Met {
    files: BTreeMap<Format, usize>,
    /// Those that could be opened in any way.
    opened: usize,
    longest: (Duration, String),
}

impl Met {
    /// Does everything with a file that can be done.
    fn meet(&mut self, format: Format, path: &Path) {
        self.count(format, path, |met, name| {
            let mut is_opened = met.work(format, path, BackingFiles::BesideDisk, name);
            if !looks_around(format) {
                is_opened |= met.work(format, path, BackingFiles::LeftOut, name);
            }
            met.check(format, path, name);
            is_opened
        });
    }

    /// The same with one that has another file's name in it: where others are left out, only what it says of itself is asked.
    fn meet_name(&mut self, format: Format, path: &Path) {
        self.count(format, path, |met, name| {
            let is_opened = met.work(format, path, BackingFiles::BesideDisk, name);
            let backing_files = BackingFiles::LeftOut;
            if !looks_around(format) {
                let options = OpenOptions { format: Some(format), backing_files, ..OpenOptions::read_only(path) };
                met.timed("describing", name, || {
                    open(&options).map(|disk| (disk.info(), disk.snapshots(), disk.warnings())).ok()
                });
            }
            if format == Format::Vmdk && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("extent")) {
                met.work(format, path, BackingFiles::Anywhere, name);
            }
            met.check(format, path, name);
            is_opened
        });
    }

    /// Counts a file that is met; `work` says whether it could be opened.
    fn count(&mut self, format: Format, path: &Path, work: impl FnOnce(&mut Self, &str) -> bool) {
        let name = format!("{format} ({})", path.file_name().unwrap_or_default().to_string_lossy());
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| work(self, &name)));
        // A build that is not optimized may take its time.
        let most = if cfg!(debug_assertions) { 3 * MOST_TIME } else { MOST_TIME };
        if result.is_err() || self.longest.0 > most {
            let kept = std::env::temp_dir().join(format!("hostile-{format}"));
            // The large ones are made alike each time.
            let is_kept = path.metadata().is_ok_and(|file| file.len() < 1 << 30) && std::fs::copy(path, &kept).is_ok();
            panic!("a {name} makes a panic or takes too long ({:?}); kept in {} ({is_kept})", self.longest, kept.display());
        }
        *self.files.entry(format).or_default() += 1;
        self.opened += usize::from(result.unwrap_or(false));
    }

    /// Opens, reads and changes a file in every way; says whether it could be opened.
    fn work(&mut self, format: Format, path: &Path, backing_files: BackingFiles, name: &str) -> bool {
        let mut is_opened = false;
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let options = OpenOptions { format: Some(format), access, backing_files, ..OpenOptions::new(path) };
            let Ok(disk) = self.timed("opening", name, || open(&options)) else { continue };
            is_opened = true;
            self.timed("reading", name, || look_at(&*disk, &mut |_| ()));
            if access == Access::ReadWrite {
                self.timed("changing", name, || {
                    let rest = disk.len().saturating_sub(512);
                    disk.write_at(512.min(disk.len()), &vec![7; 2048.min(rest) as usize]).ok();
                    change_everything(&*disk, &mut |_| ());
                });
            }
        }
        is_opened
    }

    fn check(&mut self, format: Format, path: &Path, name: &str) {
        self.timed("probing", name, || probe(path).ok());
        let options = OpenOptions { format: Some(format), ..OpenOptions::new(path) };
        for repair in [Repair::Nothing, Repair::Leaks, Repair::All] {
            self.timed("checking", name, || check(&options, repair).ok());
        }
        if format == Format::Iso {
            self.timed("describing", name, || describe_iso(&HostFile::open(path, Access::ReadOnly).unwrap()).ok());
        }
    }

    /// Does one thing with it.
    fn timed<T>(&mut self, doing: &str, name: &str, step: impl FnOnce() -> T) -> T {
        let began = processor_time();
        let result = step();
        let took = processor_time() - began;
        if took > self.longest.0 {
            self.longest = (took, format!("{doing} a {name}"));
        }
        result
    }
}

/// Whether telling what a disk is built on takes a look at its neighbours: a VDI disk knows its base by an identifier alone, which
/// is looked for in the headers of the VDI files beside it and in the folder above, where VirtualBox puts them.
fn looks_around(format: Format) -> bool {
    format == Format::Vdi
}

/// A figure of this process from the kernel, in bytes.
fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).unwrap() << 10
}

/// In memory where there is such a place: tens of thousands of flushes are no part of this.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// The folder in which hostile files arrive. The folder above it is somebody else's already.
struct Inbox {
    above: tempfile::TempDir,
}

impl Inbox {
    fn new() -> Self {
        let above = folder();
        std::fs::create_dir(above.path().join("inbox")).unwrap();
        // VDI looks for its base there too.
        create(&above.path().join("base.vdi"), &CreateOptions::new(Format::Vdi, 3 << 20)).unwrap();
        Self { above }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.above.path().join("inbox").join(name)
    }

    /// A file with this content, in place of the last one.
    fn put(&self, content: &dyn BlockFile) -> PathBuf {
        self.large(|file| {
            let size = content.len().unwrap();
            file.truncate(size)?;
            // Nothing that was made here reaches further; what says so is a hole.
            let mut page = vec![0; 64 << 10];
            for at in (0..size.min(16 << 20)).step_by(page.len()) {
                let length = content.read_at(at, &mut page)?;
                if page[..length].iter().any(|byte| *byte != 0) {
                    file.write_at(at, &page[..length])?;
                }
            }
            Ok(())
        })
    }

    fn large(&self, write: impl FnOnce(&dyn BlockFile) -> io::Result<()>) -> PathBuf {
        let path = self.path("disk");
        std::fs::remove_file(&path).ok();
        write(&HostFile::create_new(&path).unwrap()).unwrap();
        path
    }

    /// Files that have names of others in them: in other folders, of devices and pipes, of themselves.
    fn files_that_name_others(&self, foreign: &Foreign) -> Vec<(Format, PathBuf)> {
        let mut files = Vec::new();
        let elsewhere = foreign.path("base.raw").display().to_string();
        let relative = format!("../../{}/base.raw", foreign.folder.path().file_name().unwrap().to_string_lossy());
        std::fs::create_dir(self.path("folder")).unwrap();
        let pipe = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, self.path("pipe"), pipe, rustix::fs::Mode::from_raw_mode(0o600), 0).unwrap();
        let names = [
            elsewhere.as_str(),
            &relative,
            "../base.vdi",
            "folder/../../base.vdi",
            "/etc/shadow",
            "/dev/zero",
            "/dev/mem",
            "/proc/self/mem",
            "/proc/kcore",
            "pipe",
            "folder",
            ".",
            "names-9",
            "nbd://127.0.0.1",
            "json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}",
            "host_device:/dev/sda",
            "fat:rw:/",
        ];
        for (number, name) in names.iter().enumerate() {
            let path = self.path(if number == 0 { "names-base".into() } else { format!("names-{number}") }.as_str());
            let backing = Some(Backing { name: (*name).into(), format: Format::Raw });
            create(&path, &CreateOptions { backing, ..CreateOptions::new(Format::Qcow2, 1 << 20) }).unwrap();
            files.push((Format::Qcow2, path));
            // The file for its data: made beside it, under a name as long as the one that is put in its place.
            let path = self.path(&format!("data-{number}"));
            let own = format!("{:x<width$}", format!("d{number}"), width = name.len());
            let data_file = Some(NewDataFile { name: own.clone(), raw: false });
            create(&path, &CreateOptions { data_file, ..CreateOptions::new(Format::Qcow2, 1 << 20) }).unwrap();
            replace(&path, own.as_bytes(), name.as_bytes());
            files.push((Format::Qcow2, path));
            for kind in ["FLAT", "SPARSE", "VMFS"] {
                let path = self.path(&format!("extent-{number}-{kind}"));
                let words = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"custom\"\n";
                std::fs::write(&path, format!("{words}RW 64 {kind} \"{name}\" 0\n")).unwrap();
                files.push((Format::Vmdk, path));
            }
        }
        for format in [Format::Vhd, Format::Vhdx, Format::Vmdk, Format::Vdi] {
            let name = match format {
                Format::Vdi => "../base.vdi".into(),
                _ => relative.replace("raw", format.name()),
            };
            let path = self.path(&format!("differencing-{format}"));
            let backing = Some(Backing { name, format });
            create(&path, &CreateOptions { backing, ..CreateOptions::new(format, 3 << 20) }).unwrap();
            files.push((format, path));
        }
        files
    }
}

/// Puts other bytes in the place of some that stand in a file once.
fn replace(path: &Path, old: &[u8], new: &[u8]) {
    let mut content = std::fs::read(path).unwrap();
    let at = content.windows(old.len()).position(|bytes| bytes == old).unwrap();
    content[at..at + new.len()].copy_from_slice(new);
    std::fs::write(path, content).unwrap();
}

/// A folder with disks that are nobody's business.
struct Foreign {
    folder: tempfile::TempDir,
}

impl Foreign {
    fn new() -> Self {
        let foreign = Self { folder: folder() };
        for format in [Format::Raw, Format::Vhd, Format::Vhdx, Format::Vmdk] {
            create(&foreign.path(&format!("base.{format}")), &CreateOptions::new(format, 3 << 20)).unwrap();
        }
        foreign
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Notes which files of the foreign folders are opened, by whomever.
struct Watch {
    events: OwnedFd,
}

impl Watch {
    fn new(inbox: &Inbox, foreign: &Foreign) -> Self {
        let events = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        for folder in [inbox.above.path(), foreign.folder.path()] {
            inotify::add_watch(&events, folder, inotify::WatchFlags::OPEN).unwrap();
        }
        Self { events }
    }

    /// Files that were opened since this was asked last.
    fn opened(&self) -> Vec<String> {
        let mut buffer = [MaybeUninit::uninit(); 64 << 10];
        let mut reader = inotify::Reader::new(&self.events, &mut buffer);
        let mut names = Vec::new();
        while let Ok(event) = reader.next() {
            if !event.events().contains(inotify::ReadFlags::ISDIR) {
                names.extend(event.file_name().map(|name| name.to_string_lossy().into_owned()));
            }
        }
        names.dedup();
        names
    }
}

type WriteLarge = fn(&dyn BlockFile) -> io::Result<()>;

/// Files with the largest tables that are read, of holes as far as a format lets them be: they cost their maker nothing.
const LARGE: [(Format, WriteLarge); 7] = [
    (Format::Vdi, vdi_whose_blocks_share_a_place),
    (Format::Vhd, vhd_whose_blocks_lie_in_its_header),
    (Format::Vhdx, |file| make(file, CreateOptions { vhdx: SMALL_BLOCKS, ..CreateOptions::new(Format::Vhdx, 16 << 40) })),
    (Format::Vmdk, vmdk_whose_tables_are_one),
    (Format::Qcow2, qcow2_whose_tables_are_one),
    (Format::Qcow2, qcow2_of_many_clusters),
    (Format::Iso, |file| make(file, CreateOptions::new(Format::Raw, 1 << 50))),
];

const SMALL_BLOCKS: VhdxOptions = VhdxOptions { block_size: Some(1 << 20), log_size: 64 << 20, absent_is_zero: false };

fn make(file: &dyn BlockFile, options: CreateOptions) -> io::Result<()> {
    options.format.driver().create.unwrap()(file, &options).map_err(io::Error::other)
}

fn vdi_whose_blocks_share_a_place(file: &dyn BlockFile) -> io::Result<()> {
    make(file, CreateOptions::new(Format::Vdi, 1 << 20))?;
    let data = (64 << 20) + (1 << 20);
    file.write_at(0x158, &(data as u32).to_le_bytes())?;
    file.write_at(0x170, &(1_u64 << 44).to_le_bytes())?;
    file.write_at(0x180, &(1_u32 << 24).to_le_bytes())?;
    file.truncate(data + (1 << 20))
}

fn vhd_whose_blocks_lie_in_its_header(file: &dyn BlockFile) -> io::Result<()> {
    make(file, CreateOptions::new(Format::Vhd, 8 << 20))?;
    let (block_size, blocks) = (4096_u32, 1_u32 << 24);
    file.write_at(48, &(u64::from(block_size) * u64::from(blocks)).to_be_bytes())?;
    file.write_at(512 + 16, &(1_u64 << 20).to_be_bytes())?;
    file.write_at(512 + 28, &[blocks.to_be_bytes(), block_size.to_be_bytes()].concat())?;
    file.truncate((1 << 20) + (64 << 20))?;
    seal_vhd(file);
    Ok(())
}

/// Every entry of both directories leads to one table, whose entries are all of one grain.
fn vmdk_whose_tables_are_one(file: &dyn BlockFile) -> io::Result<()> {
    vmdk::create_small(file, 64 << 30);
    let mut places = [0; 16];
    file.read_at(48, &mut places)?;
    let table = file.len()? / 512;
    file.write_at(table * 512, &[table as u32; 512].map(u32::to_le_bytes).concat())?;
    for place in places.chunks_exact(8).map(|place| u64::from_le_bytes(place.try_into().unwrap())) {
        file.write_at(place * 512, &vec![table as u32; 32768].into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>())?;
    }
    Ok(())
}

/// A first-level table of 32 MiB, whose entries all lead to one table, whose entries all lead to one cluster.
fn qcow2_whose_tables_are_one(file: &dyn BlockFile) -> io::Result<()> {
    let qcow2 = Qcow2Options { cluster_size: 512, ..Qcow2Options::default() };
    make(file, CreateOptions { qcow2, ..CreateOptions::new(Format::Qcow2, 1 << 20) })?;
    let (l2, entries) = (1_u64 << 30, 4_u32 << 20);
    let l1 = l2 + 512;
    file.write_at(l2, &[l2 + 1024; 64].map(u64::to_be_bytes).concat())?;
    file.write_at(l1, &l2.to_be_bytes().repeat(entries as usize))?;
    file.truncate(4 << 30)?;
    file.write_at(24, &(u64::from(entries) * 64 * 512).to_be_bytes())?;
    file.write_at(36, &[&entries.to_be_bytes()[..], &l1.to_be_bytes()].concat())
}

/// As many clusters as are counted, all of them holes; and a mark that it must be repaired.
fn qcow2_of_many_clusters(file: &dyn BlockFile) -> io::Result<()> {
    let qcow2 = Qcow2Options { cluster_size: 512, ..Qcow2Options::default() };
    make(file, CreateOptions { qcow2, ..CreateOptions::new(Format::Qcow2, 1 << 20) })?;
    file.write_at(79, &[1])?;
    file.truncate(512 << 28)
}
