//! What a CD or DVD image says of itself: names, size, boot entries, and from these a guess at the system on it.
//!
//! Reads the volume descriptors (primary, Joliet, boot record) and the El Torito boot catalog; no directories.
//! All of it may lie, so every loop and read is bounded.
//! See: ECMA-119 (ISO 9660), "El Torito" Bootable CD-ROM Format Specification 1.0.

use std::io;

use crate::DiskError;
use crate::block_file::{BlockFile, read_zero_padded};

const BLOCK: usize = 2048;
/// Volume descriptors begin here.
const FIRST_DESCRIPTOR: u64 = 16;
/// Real discs have three to five descriptors; more than this is nonsense.
const MAX_DESCRIPTORS: u64 = 32;
/// Entries of a boot catalog that we list.
const MAX_BOOT_ENTRIES: usize = 64;
const STANDARD_ID: &[u8] = b"CD001";
const EL_TORITO_ID: &[u8] = b"EL TORITO SPECIFICATION";

/// What starts from a boot entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootPlatform {
    /// A PC BIOS.
    Bios,
    /// UEFI firmware; the image is a FAT file system.
    Uefi,
    /// Another platform, by its El Torito number (1 PowerPC, 2 Mac).
    Other(u8),
}

/// One bootable image on the disc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootEntry {
    /// What it is for.
    pub platform: BootPlatform,
    /// Where it begins, in 2,048-byte blocks.
    pub block: u32,
    /// How much the firmware loads, in 512-byte sectors; 0 and 1 often mean "all of it".
    pub sectors: u16,
}

/// The kind of system on a disc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestFamily {
    /// A Linux distribution.
    Linux,
    /// Windows NT 6 and later.
    Windows,
    /// Windows before Vista.
    OldWindows,
    /// FreeBSD, OpenBSD, NetBSD …
    Bsd,
    /// MS-DOS and its likes.
    Dos,
    /// Something else that we know by name.
    Other,
}

/// The processor a disc is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestArch {
    /// 64-bit PC.
    X86_64,
    /// 32-bit PC.
    X86,
    /// 64-bit Arm.
    Aarch64,
}

/// What the labels suggest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestGuess {
    /// The family.
    pub family: GuestFamily,
    /// A name for people, such as "Debian".
    pub name: &'static str,
    /// The processor, where the label tells it.
    pub arch: Option<GuestArch>,
}

/// The disc's own description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeDescription {
    /// Its label, for example `Debian 12.5.0 amd64 1`.
    pub volume_id: String,
    /// The longer label of the Joliet descriptor, if there is one.
    pub joliet_volume_id: Option<String>,
    /// The system field.
    pub system_id: String,
    /// The publisher field.
    pub publisher_id: String,
    /// The application field.
    pub application_id: String,
    /// Bytes that the disc says it has.
    pub declared_size: u64,
    /// Bytes that the file has.
    pub file_size: u64,
    /// Its boot entries, in catalog order.
    pub boot_entries: Vec<BootEntry>,
}

/// Whether `head`, the start of a file, carries a volume descriptor.
pub(crate) fn carries_descriptor(head: &[u8]) -> bool {
    head.get(FIRST_DESCRIPTOR as usize * BLOCK + 1..).is_some_and(|rest| rest.starts_with(STANDARD_ID))
}

/// Reads a disc's description; `None` if it has no ISO 9660 volume.
pub fn describe_iso(file: &dyn BlockFile) -> Result<Option<VolumeDescription>, DiskError> {
    read_description(file).map_err(|source| DiskError::host("read", file.path(), source))
}

fn read_description(file: &dyn BlockFile) -> io::Result<Option<VolumeDescription>> {
    let mut description = None;
    let mut joliet_volume_id = None;
    let mut catalog_block = None;
    let mut sector = [0; BLOCK];
    for number in FIRST_DESCRIPTOR..FIRST_DESCRIPTOR + MAX_DESCRIPTORS {
        read_zero_padded(file, number * BLOCK as u64, &mut sector)?;
        if !sector[1..].starts_with(STANDARD_ID) {
            break;
        }
        match sector[0] {
            0 if sector[7..].starts_with(EL_TORITO_ID) => catalog_block = Some(le32(&sector, 0x47)),
            1 if description.is_none() => {
                description = Some(VolumeDescription {
                    volume_id: text(&sector[40..72]),
                    joliet_volume_id: None,
                    system_id: text(&sector[8..40]),
                    publisher_id: text(&sector[318..446]),
                    application_id: text(&sector[574..702]),
                    // The block size field is 2,048 on every real disc; another value would be a lie or a rarity.
                    declared_size: u64::from(le32(&sector, 80)) * BLOCK as u64,
                    file_size: file.len()?,
                    boot_entries: Vec::new(),
                });
            }
            // Joliet: a supplementary descriptor whose escape sequence selects UCS-2.
            2 if matches!(&sector[88..91], b"%/@" | b"%/C" | b"%/E") => joliet_volume_id = Some(ucs2_text(&sector[40..72])),
            255 => break,
            _ => {}
        }
    }
    let Some(mut description) = description else { return Ok(None) };
    description.joliet_volume_id = joliet_volume_id;
    if let Some(block) = catalog_block {
        read_zero_padded(file, u64::from(block) * BLOCK as u64, &mut sector)?;
        description.boot_entries = boot_entries(&sector);
    }
    Ok(Some(description))
}

/// The bootable entries of a boot catalog's first block.
fn boot_entries(catalog: &[u8; BLOCK]) -> Vec<BootEntry> {
    const VALIDATION: u8 = 0x01;
    const BOOTABLE: u8 = 0x88;
    const SECTION: u8 = 0x90;
    const LAST_SECTION: u8 = 0x91;
    let mut records = catalog.as_chunks::<32>().0.iter();
    let Some(validation) = records.next() else { return Vec::new() };
    if validation[0] != VALIDATION || validation[30..32] != [0x55, 0xaa] {
        return Vec::new();
    }
    let mut platform = platform_of(validation[1]);
    let mut entries = Vec::new();
    for record in records.take(MAX_BOOT_ENTRIES) {
        match record[0] {
            SECTION | LAST_SECTION => platform = platform_of(record[1]),
            BOOTABLE => {
                entries.push(BootEntry { platform, block: le32(record, 8), sectors: u16::from_le_bytes([record[6], record[7]]) })
            }
            _ => {}
        }
    }
    entries
}

fn platform_of(id: u8) -> BootPlatform {
    match id {
        0 => BootPlatform::Bios,
        0xef => BootPlatform::Uefi,
        other => BootPlatform::Other(other),
    }
}

impl VolumeDescription {
    /// The label that tells most.
    pub fn label(&self) -> &str {
        match &self.joliet_volume_id {
            Some(joliet) if joliet.len() > self.volume_id.len() => joliet,
            _ => &self.volume_id,
        }
    }

    /// Whether a boot entry for `platform` exists.
    pub fn boots(&self, platform: BootPlatform) -> bool {
        self.boot_entries.iter().any(|entry| entry.platform == platform)
    }

    /// How many per cent of its own size the file is short, rounded up; `None` if it is whole.
    pub fn shortfall_percent(&self) -> Option<u64> {
        let missing = self.declared_size.checked_sub(self.file_size)?;
        // Some writers leave out the padding at the end: up to 150 blocks that hold nothing.
        if missing <= 150 * BLOCK as u64 {
            return None;
        }
        Some((missing.saturating_mul(100)).div_ceil(self.declared_size))
    }

    /// The sentence about a file that is too short; `None` if it is whole.
    pub fn shortfall_message(&self) -> Option<String> {
        let percent = self.shortfall_percent()?;
        Some(format!("The file is {percent} % short of its own size, so it will not work. Download it again."))
    }

    /// What system the labels suggest.
    pub fn guess(&self) -> Option<GuestGuess> {
        let label = format!("{} {}", self.label(), self.volume_id).to_lowercase();
        let all = format!("{label} {} {} {}", self.system_id, self.publisher_id, self.application_id).to_lowercase();
        let &(_, family, name) = KNOWN_LABELS
            .iter()
            .find(|(word, _, _)| label.contains(word))
            .or_else(|| KNOWN_LABELS.iter().find(|(word, _, _)| word.len() > 4 && all.contains(word)))?;
        let arch = ARCH_WORDS.iter().find(|(word, _)| all.contains(word)).map(|(_, arch)| *arch);
        Some(GuestGuess { family, name, arch })
    }
}

/// Parts of labels, in lower case, most telling first.
const KNOWN_LABELS: &[(&str, GuestFamily, &str)] = &[
    ("kali", GuestFamily::Linux, "Kali Linux"),
    ("linux mint", GuestFamily::Linux, "Linux Mint"),
    ("lubuntu", GuestFamily::Linux, "Lubuntu"),
    ("kubuntu", GuestFamily::Linux, "Kubuntu"),
    ("xubuntu", GuestFamily::Linux, "Xubuntu"),
    ("ubuntu", GuestFamily::Linux, "Ubuntu"),
    ("d-live", GuestFamily::Linux, "Debian"),
    ("debian", GuestFamily::Linux, "Debian"),
    ("fedora", GuestFamily::Linux, "Fedora"),
    ("centos", GuestFamily::Linux, "CentOS"),
    ("rocky", GuestFamily::Linux, "Rocky Linux"),
    ("almalinux", GuestFamily::Linux, "AlmaLinux"),
    ("rhel", GuestFamily::Linux, "Red Hat Enterprise Linux"),
    ("opensuse", GuestFamily::Linux, "openSUSE"),
    ("sle-", GuestFamily::Linux, "SUSE Linux Enterprise"),
    ("manjaro", GuestFamily::Linux, "Manjaro"),
    ("endeavouros", GuestFamily::Linux, "EndeavourOS"),
    ("arch_", GuestFamily::Linux, "Arch Linux"),
    ("alpine", GuestFamily::Linux, "Alpine Linux"),
    ("gentoo", GuestFamily::Linux, "Gentoo"),
    ("nixos", GuestFamily::Linux, "NixOS"),
    ("void_live", GuestFamily::Linux, "Void Linux"),
    ("slackware", GuestFamily::Linux, "Slackware"),
    ("tinycore", GuestFamily::Linux, "Tiny Core"),
    ("pop_os", GuestFamily::Linux, "Pop!_OS"),
    ("tails", GuestFamily::Linux, "Tails"),
    ("rescue", GuestFamily::Linux, "Linux rescue system"),
    ("bellglass", GuestFamily::Linux, "Bellglass live Linux"),
    ("freebsd", GuestFamily::Bsd, "FreeBSD"),
    ("_release_", GuestFamily::Bsd, "FreeBSD"),
    ("openbsd", GuestFamily::Bsd, "OpenBSD"),
    ("netbsd", GuestFamily::Bsd, "NetBSD"),
    ("dragonfly", GuestFamily::Bsd, "DragonFly BSD"),
    ("ccsa_", GuestFamily::Windows, "Windows"),
    ("cccoma_", GuestFamily::Windows, "Windows"),
    ("cpba_", GuestFamily::Windows, "Windows"),
    ("cena_", GuestFamily::Windows, "Windows"),
    ("sss_x64", GuestFamily::Windows, "Windows Server"),
    ("esd-iso", GuestFamily::Windows, "Windows"),
    ("gsp1rm", GuestFamily::Windows, "Windows 7"),
    ("grmc", GuestFamily::Windows, "Windows 7"),
    ("irm_", GuestFamily::Windows, "Windows 8.1"),
    ("win98", GuestFamily::OldWindows, "Windows 98"),
    ("win95", GuestFamily::OldWindows, "Windows 95"),
    ("winme", GuestFamily::OldWindows, "Windows Me"),
    ("w2p", GuestFamily::OldWindows, "Windows 2000"),
    ("wxp", GuestFamily::OldWindows, "Windows XP"),
    ("grtmp", GuestFamily::OldWindows, "Windows XP"),
    ("virtio-win", GuestFamily::Windows, "Windows drivers (virtio)"),
    ("memtest", GuestFamily::Other, "Memtest86+"),
    ("mt86plus", GuestFamily::Other, "Memtest86+"),
    ("reactos", GuestFamily::OldWindows, "ReactOS"),
    ("haiku", GuestFamily::Other, "Haiku"),
    ("freedos", GuestFamily::Dos, "FreeDOS"),
    ("msdos", GuestFamily::Dos, "MS-DOS"),
    ("grub", GuestFamily::Other, "GRUB"),
    ("linux", GuestFamily::Linux, "Linux"),
    ("microsoft corporation", GuestFamily::Windows, "Windows"),
];

/// How labels name processors, in lower case, longest first.
const ARCH_WORDS: &[(&str, GuestArch)] = &[
    ("aarch64", GuestArch::Aarch64),
    ("arm64", GuestArch::Aarch64),
    ("a64fre", GuestArch::Aarch64),
    ("x86_64", GuestArch::X86_64),
    ("x86-64", GuestArch::X86_64),
    ("amd64", GuestArch::X86_64),
    ("x64", GuestArch::X86_64),
    ("64bit", GuestArch::X86_64),
    ("i386", GuestArch::X86),
    ("i486", GuestArch::X86),
    ("i586", GuestArch::X86),
    ("i686", GuestArch::X86),
    ("x86fre", GuestArch::X86),
    ("32bit", GuestArch::X86),
];

fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|field| field.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// A padded text field. Control characters would let a disc write over the person's terminal.
fn text(field: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(field).chars().filter(|c| !c.is_control()).collect();
    text.trim().to_owned()
}

fn ucs2_text(field: &[u8]) -> String {
    let units = field.as_chunks::<2>().0.iter().map(|pair| u16::from_be_bytes(*pair));
    let decoded: String = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    text(decoded.as_bytes())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{Access, Format, HostFile, OpenOptions, open};
    use std::path::PathBuf;

    /// A small disc: primary descriptor, boot record with BIOS and UEFI entries, Joliet, terminator.
    pub(crate) fn disc(label: &str, declared_blocks: u32, file_blocks: usize) -> Vec<u8> {
        let mut disc = vec![0; 24 * BLOCK];
        let mut descriptor = |block: usize, kind: u8| {
            disc[block * BLOCK] = kind;
            disc[block * BLOCK + 1..][..5].copy_from_slice(STANDARD_ID);
            block * BLOCK
        };
        let primary = descriptor(16, 1);
        let boot = descriptor(17, 0);
        let joliet = descriptor(18, 2);
        descriptor(19, 255);
        disc[primary + 8..][..64].fill(b' ');
        disc[primary + 40..][..label.len()].copy_from_slice(label.as_bytes());
        disc[primary + 80..][..4].copy_from_slice(&declared_blocks.to_le_bytes());
        disc[boot + 7..][..EL_TORITO_ID.len()].copy_from_slice(EL_TORITO_ID);
        disc[boot + 0x47] = 20;
        disc[joliet + 88..][..3].copy_from_slice(b"%/E");
        for (index, byte) in "Long".bytes().enumerate() {
            disc[joliet + 41 + index * 2] = byte;
        }
        let catalog = 20 * BLOCK;
        disc[catalog] = 1;
        disc[catalog + 30..][..2].copy_from_slice(&[0x55, 0xaa]);
        disc[catalog + 32] = 0x88;
        disc[catalog + 32 + 6] = 4;
        disc[catalog + 32 + 8] = 21;
        disc[catalog + 64] = 0x91;
        disc[catalog + 65] = 0xef;
        disc[catalog + 96] = 0x88;
        disc[catalog + 96 + 8] = 22;
        disc.resize(file_blocks * BLOCK, 0);
        disc
    }

    fn saved(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cd.iso");
        std::fs::write(&path, content).unwrap();
        (folder, path)
    }

    fn described(content: &[u8]) -> Option<VolumeDescription> {
        let (_folder, path) = saved(content);
        describe_iso(&HostFile::open(&path, Access::ReadOnly).unwrap()).unwrap()
    }

    #[test]
    fn labels_boot_entries_and_system_are_read() {
        let description = described(&disc("Debian 12.5.0 amd64 1", 24, 24)).unwrap();
        assert_eq!(description.label(), "Debian 12.5.0 amd64 1");
        assert_eq!(description.joliet_volume_id.as_deref(), Some("Long"));
        assert_eq!(
            description.boot_entries,
            [
                BootEntry { platform: BootPlatform::Bios, block: 21, sectors: 4 },
                BootEntry { platform: BootPlatform::Uefi, block: 22, sectors: 0 },
            ]
        );
        let guess = description.guess().unwrap();
        assert_eq!((guess.family, guess.name, guess.arch), (GuestFamily::Linux, "Debian", Some(GuestArch::X86_64)));
        assert_eq!(description.shortfall_message(), None);
    }

    #[test]
    fn a_truncated_download_is_recognised() {
        let (_folder, path) = saved(&disc("UBUNTU", 10_000, 2_500));
        let image = open(&OpenOptions::read_only(&path)).unwrap();
        assert_eq!(image.format(), Format::Iso);
        let warnings = image.warnings();
        assert!(warnings[0].contains("75 % short of its own size"), "{warnings:?}");
    }

    #[test]
    fn known_labels_are_guessed() {
        let cases = [
            ("CCCOMA_X64FRE_EN-US_DV9", Some(("Windows", Some(GuestArch::X86_64)))),
            ("ARCH_202401", Some(("Arch Linux", None))),
            ("alpine-std 3.19.1 x86_64", Some(("Alpine Linux", Some(GuestArch::X86_64)))),
            ("14_1_RELEASE_AMD64_CD", Some(("FreeBSD", Some(GuestArch::X86_64)))),
            ("Ubuntu 24.04 LTS arm64", Some(("Ubuntu", Some(GuestArch::Aarch64)))),
            ("HOLIDAY_PHOTOS", None),
        ];
        for (label, expected) in cases {
            let guess = described(&disc(label, 24, 24)).unwrap().guess();
            assert_eq!(guess.map(|guess| (guess.name, guess.arch)), expected, "{label}");
        }
    }

    #[test]
    fn nonsense_of_any_kind_is_survived() {
        assert_eq!(described(&[]), None);
        assert_eq!(described(&[0xff; 40 * BLOCK]), None);
        let mut endless = vec![0; 200 * BLOCK];
        for block in 16..200 {
            endless[block * BLOCK + 1..][..5].copy_from_slice(STANDARD_ID);
            endless[block * BLOCK] = 9;
        }
        assert_eq!(described(&endless), None);
        let mut far_catalog = disc("X", u32::MAX, 24);
        far_catalog[17 * BLOCK + 0x47..][..4].copy_from_slice(&[0xff; 4]);
        assert_eq!(described(&far_catalog).unwrap().boot_entries, []);
        // A label may not carry escape sequences to the person's terminal.
        assert_eq!(described(&disc("a\x1b[2Jb", 24, 24)).unwrap().volume_id, "a[2Jb");
    }
}
