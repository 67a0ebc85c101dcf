//! What the wizard tells about a chosen ISO before anything is made: what it is, whether it starts, whether it is whole.

use std::path::Path;

use engine_disk::{Access, BlockFile, BootPlatform, DiskError, GuestArch, GuestFamily, HostFile, describe_iso};

use crate::gui::parts::bytes_text;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsoFacts {
    /// One line: what it is and how large.
    pub summary: String,
    /// A name for a machine that is made for it.
    pub suggested_name: String,
    /// What may go wrong, each a sentence.
    pub warnings: Vec<String>,
    /// What sort of system it is, where its label says so.
    pub family: Option<GuestFamily>,
}

/// Looks at the file.
///
/// # Errors
/// A sentence: why it cannot be used.
pub fn look_at(path: &Path) -> Result<IsoFacts, String> {
    let file = HostFile::open(path, Access::ReadOnly).map_err(|error| error.to_string())?;
    let size = file.len().map_err(|error| format!("This file cannot be read ({error}). Choose another: {}", path.display()))?;
    if size == 0 {
        return Err(format!("This file is empty; was its download finished? Choose another: {}", path.display()));
    }
    let stem = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let described = match describe_iso(&file) {
        Ok(described) => described,
        Err(error @ DiskError::PermissionDenied { .. }) => return Err(error.to_string()),
        Err(error) => return Err(format!("This file cannot be read. {error}")),
    };
    let Some(volume) = described else {
        return Err(format!("This is not a CD or DVD image. Choose an ISO file: {}", path.display()));
    };
    let mut warnings = Vec::new();
    warnings.extend(volume.shortfall_message());
    let (bios, uefi) = (volume.boots(BootPlatform::Bios), volume.boots(BootPlatform::Uefi));
    match (bios, uefi) {
        (true, _) => {}
        (false, true) => warnings.push(
            "This disc starts with UEFI only, and these machines have a BIOS. Choose one that starts with a BIOS too.".into(),
        ),
        (false, false) => {
            warnings.push("Nothing on this disc starts a computer. It can still be read by a system that is installed.".into())
        }
    }
    let guess = volume.guess();
    if guess.as_ref().is_some_and(|guess| guess.arch == Some(GuestArch::Aarch64)) {
        warnings.push("This disc is for Arm computers, and this machine is a PC. Choose the amd64 (x86-64) edition.".into());
    }
    let label = volume.label().trim();
    let title = match &guess {
        Some(guess) if label.is_empty() => guess.name.to_owned(),
        Some(guess) => format!("{} ({label})", guess.name),
        None if label.is_empty() => "A disc without a label".to_owned(),
        None => label.to_owned(),
    };
    let starts = match (bios, uefi) {
        (true, true) => ", starts with BIOS and UEFI",
        (true, false) => ", starts with BIOS",
        (false, true) => ", starts with UEFI",
        (false, false) => "",
    };
    Ok(IsoFacts {
        summary: format!("{title}, {}{starts}", bytes_text(size)),
        suggested_name: suggested_name(guess.as_ref().map(|guess| guess.name), &stem),
        warnings,
        family: guess.map(|guess| guess.family),
    })
}

/// "Debian 12.5.0" from Debian's name and `debian-12.5.0-amd64-netinst`; otherwise the file's own name, made readable.
fn suggested_name(system: Option<&str>, stem: &str) -> String {
    let version = stem.split(['-', ' ']).find(|part| {
        part.starts_with(|letter: char| letter.is_ascii_digit()) && part.contains('.')
            || part.len() <= 2 && part.parse::<u32>().is_ok()
    });
    let name = match (system, version) {
        (Some(system), Some(version)) => format!("{system} {version}"),
        (Some(system), None) => system.to_owned(),
        (None, _) => stem.replace(['_', '-'], " "),
    };
    let name: String = name.chars().filter(|letter| *letter != '/' && !letter.is_control()).take(60).collect();
    let name = name.trim().trim_start_matches('.').trim();
    if name.is_empty() { "New machine".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A small ISO 9660 volume: a primary descriptor and an end, of `declared` blocks in `stored`.
    pub fn iso(label: &str, declared: u32, stored: usize) -> Vec<u8> {
        let mut bytes = vec![0; stored * 2048];
        let primary = &mut bytes[16 * 2048..17 * 2048];
        primary[0] = 1;
        primary[1..6].copy_from_slice(b"CD001");
        primary[6] = 1;
        primary[8..72].fill(b' ');
        primary[40..40 + label.len()].copy_from_slice(label.as_bytes());
        primary[80..84].copy_from_slice(&declared.to_le_bytes());
        let end = &mut bytes[17 * 2048..];
        end[0] = 255;
        end[1..6].copy_from_slice(b"CD001");
        bytes
    }

    #[test]
    fn a_disc_is_told_by_its_label() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("debian-12.5.0-amd64-netinst.iso");
        std::fs::write(&path, iso("Debian 12.5.0 amd64 n", 20, 20)).unwrap();
        let facts = look_at(&path).unwrap();
        assert!(facts.summary.starts_with("Debian (Debian 12.5.0 amd64 n)"), "{}", facts.summary);
        assert_eq!(facts.suggested_name, "Debian 12.5.0");
        assert!(facts.warnings[0].contains("Nothing on this disc starts a computer"));
    }

    #[test]
    fn a_truncated_disc_is_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.iso");
        std::fs::write(&path, iso("X", 2000, 20)).unwrap();
        assert!(look_at(&path).unwrap().warnings[0].contains("short of its own size"));
    }

    #[test]
    fn what_is_no_disc_is_refused_with_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let missing = look_at(&folder.path().join("gone.iso")).unwrap_err();
        assert!(missing.contains("There is no such file"), "{missing}");
        let directory = look_at(folder.path()).unwrap_err();
        assert!(directory.contains("not a disk file"), "{directory}");
        let path = folder.path().join("letter.iso");
        std::fs::write(&path, "Dear Sir").unwrap();
        let text = look_at(&path).unwrap_err();
        assert!(text.contains("not a CD or DVD image"), "{text}");
        std::fs::write(&path, "").unwrap();
        assert!(look_at(&path).unwrap_err().contains("is empty"));
    }

    #[test]
    fn names_are_made_readable() {
        for (system, stem, name) in [
            (Some("Fedora"), "Fedora-Workstation-Live-x86_64-40-1.14", "Fedora 40"),
            (None, "my_own-disc", "my own disc"),
            (None, "...", "New machine"),
            (Some("Memtest86+"), "mt86plus", "Memtest86+"),
        ] {
            assert_eq!(suggested_name(system, stem), name);
        }
    }
}
