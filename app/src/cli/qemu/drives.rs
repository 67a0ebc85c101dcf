//! QEMU's words for drives: `-drive`, `-blockdev`, and the devices that name one of them.
//!
//! A `-drive` with an interface has a place of its own; one with `if=none` and a `-blockdev` only become drives when a
//! `-device ide-hd`, `ide-cd` or `floppy` names them. Options that would change what the guest sees or what survives a
//! crash are obeyed or refused; those that only change how the work is done are answered with a note.

use anyhow::{Context as _, Result, bail};
use engine_bus::{Discards, OnError, Zeros};
use engine_disk::{CacheMode, Flushing, Format, HostCache};
use engine_session::{DriveSlot, DriveSpec, ImageSource, MachineDriveKind as DriveKind};
use std::collections::BTreeMap;
use std::path::PathBuf;

use super::key_values::{KeyValues, size};
use crate::cli::secrets::Secrets;

/// What the command line has said of drives so far.
#[derive(Default)]
pub struct Drives {
    drives: Vec<Wanted>,
    /// What waits for a device, by its `id` or `node-name`.
    waiting: BTreeMap<String, ImageSource>,
    /// Devices of this name, which may come before the images that they name.
    devices: Vec<(String, KeyValues)>,
    /// What unlocks encrypted images.
    secrets: Secrets,
    /// What the person should know.
    notes: Vec<String>,
}

/// A drive; `slot` is `None` where any will do.
struct Wanted {
    slot: Option<DriveSlot>,
    kind: DriveKind,
    source: Option<ImageSource>,
}

/// Options of `-drive` and `-blockdev` alike.
const IMAGE_OPTIONS: &[&str] = &[
    "aio",
    "cache-size",
    "cache.direct",
    "cache.no-flush",
    "data-file.driver",
    "data-file.filename",
    "detect-zeroes",
    "discard",
    "encrypt.format",
    "encrypt.key-secret",
    "key-secret",
    "l2-cache-size",
    "read-only",
];
/// Options of `-drive` alone.
const DRIVE_OPTIONS: &[&str] = &[
    "bus",
    "cache",
    "cache.writeback",
    "file",
    "format",
    "id",
    "if",
    "index",
    "media",
    "readonly",
    "rerror",
    "snapshot",
    "unit",
    "werror",
];
/// What QEMU has and we have not, with the reason.
const REFUSED: &[(&str, &str)] = &[
    ("backing", "base images are those that the disk itself names"),
    ("bps", "nothing limits a disk's speed here"),
    ("copy-on-read", "what is read from a base image is not copied; “bellglass img rebase” can make a disk independent"),
    ("iops", "nothing limits a disk's speed here"),
    ("overlap-check", "every write is checked against all tables in memory; that cannot be changed"),
    ("serial", "a disk's serial number follows from its place"),
    ("throttling", "nothing limits a disk's speed here"),
];

impl Drives {
    /// `-hda`, `-cdrom`, `-fda` and the like.
    pub fn add(&mut self, slot: Option<DriveSlot>, kind: DriveKind, source: Option<ImageSource>) {
        self.drives.push(Wanted { slot, kind, source });
    }

    /// What `-object` says comes before all that names it.
    pub fn with_secrets(secrets: Secrets) -> Self {
        Self { secrets, ..Self::default() }
    }

    /// `-drive`.
    ///
    /// # Errors
    /// With a sentence that names the option.
    pub fn drive_option(&mut self, value: &str) -> Result<()> {
        let mut values = KeyValues::parse("-drive", value, "")?;
        let interface = values.take("if").unwrap_or_else(|| "ide".to_owned());
        let media = values.take("media");
        let (index, bus, unit) = (values.take_number("index")?, values.take_number("bus")?, values.take_number("unit")?);
        let id = values.take("id");
        let cache = match values.take("cache") {
            None => CacheMode::default(),
            Some(mode) => {
                CacheMode::named(&mode).with_context(|| format!("-drive cache={mode}: possible are {}.", CacheMode::NAMES))?
            }
        };
        let format = values.take("format").or_else(|| values.take("driver"));
        let file = values.take("file").or_else(|| values.take("file.filename")).filter(|file| !file.is_empty());
        let mut source = ImageSource { cache, ..ImageSource::new(file.clone().unwrap_or_default()) };
        if let Some(name) = format {
            source.format = Some(name.parse().map_err(|error| anyhow::anyhow!("-drive format={name}: {error}"))?);
        }
        source.snapshot = values.take_switch("snapshot")?.unwrap_or(false);
        source.read_only = values.take_switch("readonly")?.unwrap_or(false);
        if values.take_switch("cache.writeback")? == Some(false) {
            source.cache.flushing = Flushing::EachWrite;
        }
        if let Some(rule) = values.take("rerror") {
            source.rules.on_read_error = on_error("rerror", &rule)?;
        }
        if let Some(rule) = values.take("werror") {
            source.rules.on_write_error = on_error("werror", &rule)?;
        }
        self.image_options("-drive", &mut values, &mut source)?;
        values.finish(&[DRIVE_OPTIONS, IMAGE_OPTIONS].concat())?;
        let kind = match (interface.as_str(), media.as_deref()) {
            ("ide", None | Some("disk")) => DriveKind::Disk,
            ("ide", Some("cdrom")) => DriveKind::Cdrom,
            ("floppy", None | Some("disk")) => DriveKind::Floppy,
            ("none", _) => {
                let id = id.context("-drive if=none needs id=…, by which a -device can name it.")?;
                file.context("-drive if=none needs file=….")?;
                return self.wait_for_device("-drive", id, source);
            }
            ("ide" | "floppy", Some(media)) => bail!("-drive media={media}: possible are disk and cdrom."),
            _ => bail!("-drive if={interface}: possible are ide, floppy and none."),
        };
        let place = match (index, bus, unit) {
            (None, None, None) => None,
            (Some(index), None, None) => Some(index),
            (None, bus, unit) => Some(bus.unwrap_or(0) * 2 + unit.unwrap_or(0)),
            _ => bail!("-drive: give index, or bus and unit, not both."),
        };
        let slot = place.map(|place| slot_at(kind, place)).transpose()?;
        self.add(slot, kind, file.map(|_| source));
        Ok(())
    }

    /// `-blockdev`, in QEMU's dotted words or as JSON: one image with its file. Nodes that only lead to another node's file
    /// are understood where they are a plain file.
    ///
    /// # Errors
    /// With a sentence that names the option.
    pub fn blockdev_option(&mut self, value: &str) -> Result<()> {
        let mut values = match value.trim_start().starts_with('{') {
            true => KeyValues::parse_json("-blockdev", value)?,
            false => KeyValues::parse("-blockdev", value, "driver")?,
        };
        let driver = values.need("driver")?;
        let name = values.need("node-name")?;
        values.take_switch("auto-read-only")?;
        values.take("locking");
        let mut source = if driver == "file" {
            ImageSource::new(values.need("filename")?)
        } else {
            let format = driver.parse().map_err(|error| anyhow::anyhow!("-blockdev driver={driver}: {error}"))?;
            let below = match values.take("file") {
                Some(node) => self.waiting.remove(&node).with_context(|| {
                    format!("-blockdev file={node}: there is no node of this name before it, or it is in use.")
                })?,
                None => {
                    match values.take("file.driver").as_deref() {
                        None | Some("file") => {}
                        Some(other) => bail!("-blockdev file.driver={other}: possible is file."),
                    }
                    for lower in ["file.auto-read-only", "file.locking", "file.node-name"] {
                        values.take(lower);
                    }
                    let mut below = ImageSource::new(values.need("file.filename")?);
                    below.read_only = values.take_switch("file.read-only")?.unwrap_or(false);
                    self.file_options("-blockdev", "file.", &mut values, &mut below)?;
                    below
                }
            };
            ImageSource { format: Some(format), ..below }
        };
        // Unlike -drive, a -blockdev gives space back only when it is told to.
        source.rules.discards = Discards::Ignored;
        self.image_options("-blockdev", &mut values, &mut source)?;
        values.finish(&[&["driver", "file", "file.driver", "file.filename", "filename", "node-name"], IMAGE_OPTIONS].concat())?;
        self.wait_for_device("-blockdev", name, source)
    }

    /// `-device ide-hd,drive=…`, `ide-cd` or `floppy`.
    pub fn device_option(&mut self, driver: String, values: KeyValues) {
        self.devices.push((driver, values));
    }

    fn put_in(&mut self, driver: &str, mut values: KeyValues) -> Result<()> {
        let (kind, default_bus) = match driver {
            "ide-hd" => (DriveKind::Disk, "ide"),
            "ide-cd" => (DriveKind::Cdrom, "ide"),
            _ => (DriveKind::Floppy, "floppy-bus"),
        };
        let option = format!("-device {driver}");
        let mut source = match values.take("drive") {
            None if kind == DriveKind::Disk => bail!("{option} needs drive=…, the id of a -drive or the name of a -blockdev."),
            None => None,
            Some(id) => Some(self.waiting.remove(&id).with_context(|| {
                format!("{option}: there is no -drive if=none,id={id} or -blockdev node-name={id}, or it is in another drive.")
            })?),
        };
        if let Some(source) = &mut source {
            if let Some(rule) = values.take("rerror") {
                source.rules.on_read_error = on_error("rerror", &rule)?;
            }
            if let Some(rule) = values.take("werror") {
                source.rules.on_write_error = on_error("werror", &rule)?;
            }
            if values.take_switch("write-cache")? == Some(false) && source.cache.flushing == Flushing::Durable {
                source.cache.flushing = Flushing::EachWrite;
            }
        }
        let bus = match values.take("bus") {
            None => None,
            Some(bus) => match bus.strip_prefix(default_bus).and_then(|rest| rest.strip_prefix('.')).map(str::parse::<u64>) {
                Some(Ok(number)) => Some(number),
                _ => bail!("{option},bus={bus}: the buses for it are {default_bus}.0 and so on."),
            },
        };
        let unit = values.take_number("unit")?;
        let place = match (kind, bus, unit) {
            (_, None, None) => None,
            (DriveKind::Floppy, _, unit) => unit,
            (_, bus, unit) => Some(bus.unwrap_or(0) * 2 + unit.unwrap_or(0)),
        };
        // The boot order is that of -boot; who counts the devices gets the same answer in most cases.
        if let Some(index) = values.take_number("bootindex")? {
            self.notes.push(format!("{option},bootindex={index}: what is booted from is said by -boot."));
        }
        values.finish(&["bus", "drive", "rerror", "unit", "werror", "write-cache"])?;
        let slot = place.map(|place| slot_at(kind, place)).transpose()?;
        self.add(slot, kind, source);
        Ok(())
    }

    fn wait_for_device(&mut self, option: &str, name: String, source: ImageSource) -> Result<()> {
        match self.waiting.insert(name.clone(), source) {
            None => Ok(()),
            Some(_) => bail!("{option}: two images are called “{name}”."),
        }
    }

    /// What `-drive` and `-blockdev` say of an image in the same words.
    fn image_options(&mut self, option: &str, values: &mut KeyValues, source: &mut ImageSource) -> Result<()> {
        for (name, reason) in REFUSED {
            let is_meant =
                |key: &str| key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-', '_']));
            if let Some(key) = values.find(is_meant) {
                match values.take(&key).as_deref() {
                    Some("off") => {}
                    _ => bail!("{option} {key}: {reason}."),
                }
            }
        }
        if let Some(read_only) = values.take_switch("read-only")? {
            source.read_only = read_only;
        }
        match values.take("discard").as_deref() {
            None => {}
            Some("unmap" | "on") => source.rules.discards = Discards::PassedOn,
            Some("ignore" | "off") => source.rules.discards = Discards::Ignored,
            Some(other) => bail!("{option} discard={other}: possible are ignore and unmap."),
        }
        match values.take("detect-zeroes").as_deref() {
            None | Some("off") => {}
            Some("on" | "unmap") => source.rules.zeros = Zeros::Detected,
            Some(other) => bail!("{option} detect-zeroes={other}: possible are off, on and unmap."),
        }
        let table_cache = match (values.take("l2-cache-size"), values.take("cache-size")) {
            (Some(bytes), _) => Some(("l2-cache-size", bytes)),
            (None, bytes) => bytes.map(|bytes| ("cache-size", bytes)),
        };
        if let Some((name, bytes)) = table_cache {
            source.table_cache_bytes = Some(size(&format!("{option} {name}"), &bytes, 1)?);
        }
        match values.take("data-file.driver").as_deref() {
            None | Some("file") => {}
            Some(other) => bail!("{option} data-file.driver={other}: possible is file."),
        }
        source.data_file = values.take("data-file.filename").map(PathBuf::from);
        if let Some(node) = values.take("data-file") {
            let below = self.waiting.remove(&node);
            let below = below.with_context(|| format!("{option} data-file={node}: there is no node of this name before it."))?;
            source.data_file = Some(below.path);
        }
        self.key(option, values, source)?;
        self.file_options(option, "", values, source)
    }

    /// Which secret unlocks an image. A qcow2 disk is encrypted inside, `luks` is a format of its own.
    fn key(&self, option: &str, values: &mut KeyValues, source: &mut ImageSource) -> Result<()> {
        match values.take("encrypt.format").as_deref() {
            None | Some("luks") => {}
            Some(other) => bail!("{option} encrypt.format={other}: possible is luks."),
        }
        for (name, format) in [("encrypt.key-secret", Format::Qcow2), ("key-secret", Format::Luks)] {
            let Some(id) = values.take(name) else { continue };
            if source.format.is_some_and(|stated| stated != format) {
                bail!("{option} {name}={id}: it is for images in the format {}.", format.name());
            }
            let secret = self.secrets.get(&id);
            source.passphrase =
                Some(secret.with_context(|| format!("{option} {name}={id}: -object secret,id={id},… would say it"))?);
        }
        Ok(())
    }

    /// What is said of how a file is used.
    fn file_options(&mut self, option: &str, prefix: &str, values: &mut KeyValues, source: &mut ImageSource) -> Result<()> {
        match values.take_switch(&format!("{prefix}cache.direct"))? {
            Some(true) => source.cache.host_cache = HostCache::Bypassed,
            Some(false) => source.cache.host_cache = HostCache::Used,
            None => {}
        }
        if values.take_switch(&format!("{prefix}cache.no-flush"))? == Some(true) {
            source.cache.flushing = Flushing::Skipped;
        }
        match values.take(&format!("{prefix}aio")).as_deref() {
            None | Some("threads") => Ok(()),
            Some(mode @ ("native" | "io_uring")) => {
                self.notes.push(format!(
                    "{option} aio={mode}: threads do the work, as with aio=threads; the guest sees no difference."
                ));
                Ok(())
            }
            Some(other) => bail!("{option} aio={other}: possible are threads, native and io_uring."),
        }
    }

    /// The drives, and what the person should know of them. Those without a place take the first free one of their kind;
    /// there is always a CD drive unless `-nodefaults`.
    ///
    /// # Errors
    /// When two want one place, there are too many, or a device names what is not there.
    pub fn place(mut self, throw_away: bool, no_defaults: bool) -> Result<(Vec<DriveSpec>, Vec<String>)> {
        for (driver, values) in std::mem::take(&mut self.devices) {
            self.put_in(&driver, values)?;
        }
        let unused = |name| format!("The image “{name}” is in no drive; -device ide-hd,drive={name} would put it into one.");
        self.notes.extend(self.waiting.keys().map(unused));
        let mut taken: BTreeMap<DriveSlot, DriveSpec> = BTreeMap::new();
        let (placed, free): (Vec<_>, Vec<_>) = self.drives.into_iter().partition(|wanted| wanted.slot.is_some());
        for Wanted { slot, kind, mut source } in placed.into_iter().chain(free) {
            let slot = match (slot, kind) {
                (Some(slot), _) => slot,
                (None, DriveKind::Floppy) => {
                    let free = (0..2).map(DriveSlot::Floppy).find(|slot| !taken.contains_key(slot));
                    free.context("There are only two floppy drives.")?
                }
                (None, kind) => {
                    let order: [u8; 4] = if kind == DriveKind::Cdrom { [2, 3, 1, 0] } else { [0, 1, 2, 3] };
                    let free = order.into_iter().map(ide).find(|slot| !taken.contains_key(slot));
                    free.context("There are only four IDE drives.")?
                }
            };
            if let Some(source) = &mut source {
                source.snapshot |= throw_away;
            }
            if taken.insert(slot, DriveSpec { slot, kind, source }).is_some() {
                bail!("Two drives want the place {}. -hdc and -cdrom share one.", slot.board_name());
            }
        }
        if !no_defaults && !taken.values().any(|drive| drive.kind == DriveKind::Cdrom) {
            taken.entry(ide(2)).or_insert(DriveSpec { slot: ide(2), kind: DriveKind::Cdrom, source: None });
        }
        Ok((taken.into_values().collect(), self.notes))
    }
}

/// The place of an IDE drive, 0 to 3.
pub fn ide(index: u8) -> DriveSlot {
    DriveSlot::Ide { channel: index / 2, unit: index % 2 }
}

fn slot_at(kind: DriveKind, place: u64) -> Result<DriveSlot> {
    match place {
        _ if kind == DriveKind::Floppy && place < 2 => Ok(DriveSlot::Floppy(place as u8)),
        _ if kind != DriveKind::Floppy && place < 4 => Ok(ide(place as u8)),
        _ => bail!("There is no place {place} for a drive; IDE has 0 to 3, floppies 0 and 1."),
    }
}

fn on_error(name: &str, rule: &str) -> Result<OnError> {
    Ok(match rule {
        "report" => OnError::Report,
        "ignore" => OnError::Ignore,
        "stop" => OnError::Stop,
        "enospc" => OnError::StopWhenFull,
        _ => bail!("{name}={rule}: possible are report, ignore, stop and enospc."),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_bus::DriveRules;
    use engine_disk::Passphrase;

    /// `-drive`, `-blockdev` and `-device` as on a command line.
    fn placed(line: &str) -> Result<(Vec<DriveSpec>, Vec<String>)> {
        let mut drives = Drives::with_secrets(Secrets::of(["secret,id=key,data=open sesame"])?);
        let words: Vec<&str> = line.split_whitespace().collect();
        for pair in words.chunks(2) {
            match pair[0] {
                "-drive" => drives.drive_option(pair[1])?,
                "-blockdev" => drives.blockdev_option(pair[1])?,
                _ => {
                    let mut values = KeyValues::parse("-device", pair[1], "driver")?;
                    drives.device_option(values.need("driver")?, values);
                }
            }
        }
        drives.place(false, true)
    }

    fn sources(line: &str) -> Vec<ImageSource> {
        placed(line).unwrap().0.into_iter().filter_map(|drive| drive.source).collect()
    }

    #[test]
    fn cache_modes_say_what_a_flush_means_and_who_caches() {
        for (mode, flushing, host_cache) in [
            ("", Flushing::Durable, HostCache::Used),
            (",cache=none", Flushing::Durable, HostCache::Bypassed),
            (",cache=writeback", Flushing::Durable, HostCache::Used),
            (",cache=writethrough", Flushing::EachWrite, HostCache::Used),
            (",cache=directsync", Flushing::EachWrite, HostCache::Bypassed),
            (",cache=unsafe", Flushing::Skipped, HostCache::Used),
            (",cache.direct=on", Flushing::Durable, HostCache::Bypassed),
            (",cache.writeback=off", Flushing::EachWrite, HostCache::Used),
            (",cache.no-flush=on,cache.direct=on", Flushing::Skipped, HostCache::Bypassed),
        ] {
            let source = sources(&format!("-drive file=a.img,format=raw{mode}")).remove(0);
            assert_eq!(source.cache, CacheMode { flushing, host_cache }, "{mode}");
        }
    }

    #[test]
    fn a_drive_says_where_it_is_and_what_becomes_of_what_happens() {
        let (drives, notes) = placed(
            "-drive file=a.img,format=raw,if=ide,index=1,snapshot=on,werror=stop,rerror=ignore,discard=ignore,aio=io_uring \
             -drive file=b.iso,media=cdrom -drive file=c.img,if=floppy,readonly=on,l2-cache-size=4M,detect-zeroes=unmap",
        )
        .unwrap();
        assert_eq!(drives.iter().map(|drive| drive.slot).collect::<Vec<_>>(), [ide(1), ide(2), DriveSlot::Floppy(0)]);
        assert_eq!(drives[1].kind, DriveKind::Cdrom);
        let source = drives[0].source.as_ref().unwrap();
        assert!(source.snapshot && source.format == Some(Format::Raw));
        let rules = DriveRules {
            discards: Discards::Ignored,
            on_read_error: OnError::Ignore,
            on_write_error: OnError::Stop,
            ..DriveRules::default()
        };
        assert_eq!(source.rules, rules);
        let source = drives[2].source.as_ref().unwrap();
        assert!(source.read_only && !source.snapshot && source.rules.zeros == Zeros::Detected);
        assert_eq!(source.table_cache_bytes, Some(4 << 20));
        assert!(notes.len() == 1 && notes[0].contains("aio=io_uring"), "{notes:?}");
    }

    #[test]
    fn images_are_put_into_drives_by_devices_that_name_them_in_any_order() {
        let (drives, notes) = placed(
            "-device ide-hd,drive=root,bus=ide.1,unit=1,bootindex=1 -drive file=a.qcow2,if=none,id=root,cache=none \
             -blockdev driver=file,node-name=below,filename=b.raw,cache.direct=on \
             -blockdev driver=raw,node-name=disk,file=below,read-only=on,discard=unmap -device ide-hd,drive=disk,write-cache=off \
             -blockdev {\"driver\":\"qcow2\",\"node-name\":\"c\",\"file\":{\"driver\":\"file\",\"filename\":\"c.qcow2\",\"aio\":\"native\"}} \
             -device floppy,drive=c -device ide-cd -drive file=d.img,if=none,id=spare",
        )
        .unwrap();
        let at = |slot| drives.iter().find(|drive| drive.slot == slot).unwrap();
        assert_eq!(at(ide(3)).source.as_ref().unwrap().cache.host_cache, HostCache::Bypassed);
        let disk = at(ide(0)).source.as_ref().unwrap();
        assert_eq!((disk.path.to_str(), disk.format, disk.read_only), (Some("b.raw"), Some(Format::Raw), true));
        let cache = CacheMode { flushing: Flushing::EachWrite, host_cache: HostCache::Bypassed };
        assert_eq!((disk.cache, disk.rules.discards), (cache, Discards::PassedOn));
        let floppy = at(DriveSlot::Floppy(0)).source.as_ref().unwrap();
        assert_eq!((floppy.path.to_str(), floppy.rules.discards), (Some("c.qcow2"), Discards::Ignored));
        assert_eq!((at(ide(2)).kind, at(ide(2)).source.as_ref()), (DriveKind::Cdrom, None));
        assert_eq!(notes.len(), 3, "bootindex, aio, and a disk that is in no drive: {notes:?}");
    }

    #[test]
    fn data_lies_where_the_command_line_says() {
        for line in [
            "-drive file=a.qcow2,data-file.filename=b.raw",
            "-blockdev driver=file,node-name=b,filename=b.raw \
             -blockdev driver=qcow2,node-name=a,file.filename=a.qcow2,data-file=b -device ide-hd,drive=a",
        ] {
            assert_eq!(sources(line)[0].data_file, Some("b.raw".into()), "{line}");
        }
    }

    #[test]
    fn an_encrypted_image_is_unlocked_by_the_secret_it_names() {
        for line in [
            "-drive file=a.qcow2,format=qcow2,encrypt.key-secret=key",
            "-drive file=a.qcow2,encrypt.format=luks,encrypt.key-secret=key",
            "-drive file=a.luks,format=luks,key-secret=key",
            "-blockdev driver=luks,node-name=a,key-secret=key,file.driver=file,file.filename=a.luks -device ide-hd,drive=a",
            "-blockdev {\"driver\":\"qcow2\",\"node-name\":\"a\",\"encrypt\":{\"format\":\"luks\",\"key-secret\":\"key\"},\
             \"file\":{\"driver\":\"file\",\"filename\":\"a.qcow2\"}} -device ide-hd,drive=a",
        ] {
            let line = line.replace("             ", "");
            assert_eq!(sources(&line)[0].passphrase, Some(Passphrase::new(b"open sesame".to_vec())), "{line}");
        }
    }

    #[test]
    fn what_is_not_there_is_refused_by_name_with_the_reason() {
        for (line, expected) in [
            ("-drive file=x,if=virtio", "if=virtio: possible are ide"),
            ("-drive file=x,format=zip", "format=zip"),
            ("-drive file=x,index=9", "place 9"),
            ("-drive file=x,index=1,bus=0", "not both"),
            ("-drive fil=x", "“file”"),
            ("-drive file=x,cache=sometimes", "writethrough"),
            ("-drive file=x,werror=panic", "enospc"),
            ("-drive file=x,throttling.bps-total=1000", "throttling.bps-total: nothing limits"),
            ("-drive file=x,iops_rd=5", "iops_rd: nothing limits"),
            ("-drive file=x,copy-on-read=on", "rebase"),
            ("-drive file=x,discard=sometimes", "ignore and unmap"),
            ("-drive file=x,l2-cache-size=many", "l2-cache-size"),
            ("-drive file=x,if=none", "id=…"),
            ("-device ide-hd", "drive=…"),
            ("-device ide-hd,drive=nobody", "id=nobody"),
            ("-drive file=x,if=none,id=a -device ide-hd,drive=a -device ide-cd,drive=a", "another drive"),
            ("-drive file=x,if=none,id=a -device ide-hd,drive=a,bus=pci.0", "ide.0"),
            ("-blockdev driver=nbd,node-name=a,host=b", "driver=nbd"),
            ("-blockdev driver=qcow2,node-name=a,file=b", "file=b"),
            ("-blockdev driver=raw,node-name=a,file.driver=https,file.url=b", "file.driver=https"),
            ("-blockdev {\"driver\":", "JSON"),
            ("-drive file=x,if=none,id=a -drive file=y,if=none,id=a", "two images"),
            ("-blockdev driver=qcow2,node-name=a,file.filename=x,data-file=nobody", "data-file=nobody"),
            ("-drive file=x,data-file.driver=nbd", "data-file.driver=nbd"),
            ("-drive file=x,format=qcow2,encrypt.key-secret=other", "-object secret,id=other"),
            ("-drive file=x,format=qcow2,encrypt.format=aes", "encrypt.format=aes: possible is luks"),
            ("-drive file=x,format=raw,key-secret=key", "in the format luks"),
            ("-drive file=x,format=luks,encrypt.key-secret=key", "in the format qcow2"),
        ] {
            let refusal = placed(line).err().unwrap_or_else(|| panic!("{line} was accepted")).to_string();
            assert!(refusal.contains(expected), "{line}: {refusal}");
        }
        placed("-drive file=x,copy-on-read=off").unwrap();
    }
}
