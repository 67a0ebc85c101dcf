//! The descriptor: lines of `key=value`, and one line for each extent.

use crate::DiskError;
use crate::fenced_file::FencedFile;

use super::{MAX_DESCRIPTOR, unsupported, wrong};

/// Stands in the place of a parent's identifier where there is none.
pub(super) const NO_PARENT: u32 = 0xffff_ffff;
const FIRST_LINE: &str = "# Disk DescriptorFile";

/// What we need of it.
#[derive(Clone, Debug)]
pub(super) struct Descriptor {
    pub(super) cid: u32,
    pub(super) create_type: String,
    pub(super) extents: Vec<ExtentLine>,
}

/// A line such as `RW 4192256 SPARSE "disk-s001.vmdk"` or `RW 4192256 FLAT "disk-flat.vmdk" 0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExtentLine {
    pub(super) sectors: u64,
    pub(super) kind: String,
    pub(super) file: String,
    /// Where in its file a flat extent begins, in sectors.
    pub(super) offset: u64,
}

/// Whether a file begins as descriptors do. Comments and empty lines may stand before the first line that counts.
pub(super) fn is_descriptor(head: &[u8]) -> bool {
    let text = &head[..head.len().min(512)];
    text.split(|byte| *byte == b'\n').any(|line| line.trim_ascii_end() == FIRST_LINE.as_bytes())
        && text.iter().take(FIRST_LINE.len()).all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
}

impl Descriptor {
    pub(super) fn read(file: &FencedFile, offset: u64, length: u64) -> Result<Self, DiskError> {
        if length > MAX_DESCRIPTOR {
            return Err(wrong(file, "its descriptor is too long"));
        }
        let mut bytes = vec![0; length as usize];
        file.read_zero_padded(offset, &mut bytes)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let text = String::from_utf8_lossy(&bytes[..end]);
        let mut descriptor = Self { cid: 0, create_type: String::new(), extents: Vec::new() };
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            if let Some(extent) = ExtentLine::parse(line) {
                descriptor.extents.push(extent);
                continue;
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = value.trim().trim_matches('"');
            match key.trim() {
                "CID" => descriptor.cid = u32::from_str_radix(value, 16).unwrap_or(0),
                "parentCID" if u32::from_str_radix(value, 16) != Ok(NO_PARENT) => {
                    return Err(unsupported(file, "a parent (a VMDK delta disk)"));
                }
                "createType" => descriptor.create_type = value.chars().take(64).collect(),
                "encoding" if !["UTF-8", "windows-1252"].contains(&value) => {
                    return Err(unsupported(file, format!("names in the encoding {}", value.escape_debug())));
                }
                _ => {}
            }
        }
        Ok(descriptor)
    }
}

impl ExtentLine {
    fn parse(line: &str) -> Option<Self> {
        let (access, rest) = line.split_once(' ')?;
        if !matches!(access, "RW" | "RDONLY" | "NOACCESS") {
            return None;
        }
        let (sectors, rest) = rest.trim_start().split_once(' ')?;
        let sectors = sectors.parse().ok()?;
        let rest = rest.trim_start();
        let (kind, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let (file, after) = match rest.trim_start().strip_prefix('"') {
            Some(quoted) => quoted.rsplit_once('"')?,
            None => ("", ""),
        };
        Some(Self { sectors, kind: kind.to_owned(), file: file.to_owned(), offset: after.trim().parse().unwrap_or(0) })
    }
}

/// The words of a new descriptor.
pub(super) fn text(create_type: &str, extents: &[ExtentLine], size: u64) -> String {
    let cid = uuid::Uuid::new_v4().as_u128() as u32 & 0x7fff_ffff;
    let mut text = format!(
        "{FIRST_LINE}\nversion=1\nCID={cid:08x}\nparentCID={NO_PARENT:08x}\ncreateType=\"{create_type}\"\n\n# Extent description\n"
    );
    for ExtentLine { sectors, kind, file, offset } in extents {
        text += &format!("RW {sectors} {kind} \"{file}\"");
        if kind == "FLAT" {
            text += &format!(" {offset}");
        }
        text.push('\n');
    }
    let cylinders = (size / 512 / 16 / 63).min(16383);
    text + &format!(
        "\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\nddb.adapterType = \"ide\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extent_lines_of_every_kind_are_read_and_others_are_not() {
        let line = |sectors, kind: &str, file: &str, offset| ExtentLine { sectors, kind: kind.into(), file: file.into(), offset };
        for (text, expected) in [
            ("RW 4192256 SPARSE \"a b-s001.vmdk\"", Some(line(4192256, "SPARSE", "a b-s001.vmdk", 0))),
            ("RW 63 FLAT \"x-flat.vmdk\" 128", Some(line(63, "FLAT", "x-flat.vmdk", 128))),
            ("RW 100 ZERO", Some(line(100, "ZERO", "", 0))),
            ("RW many FLAT \"x\" 0", None),
            ("createType=\"vmfs\"", None),
        ] {
            assert_eq!(ExtentLine::parse(text), expected, "{text}");
        }
    }
}
