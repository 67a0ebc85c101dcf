//! The descriptor: lines of `key=value`, and one line for each extent.

use std::ops::Range;

use crate::DiskError;
use crate::fenced_file::FencedFile;

use super::{MAX_DESCRIPTOR, SECTOR, VmdkAdapter, VmdkOptions, unsupported, wrong};

/// Stands in the place of a parent's identifier where there is none.
pub(super) const NO_PARENT: u32 = 0xffff_ffff;
const FIRST_LINE: &str = "# Disk DescriptorFile";

/// What we need of it, and the words themselves.
#[derive(Clone, Debug)]
pub(super) struct Descriptor {
    /// Where in its file it begins, and how many bytes it may take; none if it may be as long as it likes.
    offset: u64,
    room: Option<u64>,
    /// As they lie there: names need not be UTF-8.
    words: Vec<u8>,
    /// Stands for the content as it is now.
    pub(super) cid: u32,
    pub(super) create_type: String,
    pub(super) extents: Vec<ExtentLine>,
    pub(super) parent: Option<Parent>,
}

/// What a disk is built on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) cid: u32,
    pub(super) name: String,
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
    /// The descriptor that stands in `length` bytes of a disk's file.
    pub(super) fn embedded(file: &FencedFile, offset: u64, length: u64) -> Result<Self, DiskError> {
        Self::read(file, offset, length, Some(length))
    }

    /// The descriptor that a file is.
    pub(super) fn file(file: &FencedFile) -> Result<Self, DiskError> {
        Self::read(file, 0, file.len()?, None)
    }

    fn read(file: &FencedFile, offset: u64, length: u64, room: Option<u64>) -> Result<Self, DiskError> {
        if length > MAX_DESCRIPTOR {
            return Err(wrong(file, "its descriptor is too long"));
        }
        let mut bytes = vec![0; length as usize];
        file.read_zero_padded(offset, &mut bytes)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        bytes.truncate(end);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut descriptor =
            Self { offset, room, words: bytes, cid: 0, create_type: String::new(), extents: Vec::new(), parent: None };
        let (mut parent_cid, mut parent_name) = (NO_PARENT, None);
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            if let Some(extent) = ExtentLine::parse(line) {
                descriptor.extents.push(extent);
                continue;
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = value.trim().trim_matches('"');
            match key.trim() {
                "CID" => descriptor.cid = u32::from_str_radix(value, 16).unwrap_or(0),
                "parentCID" => match u32::from_str_radix(value, 16) {
                    Ok(cid) => parent_cid = cid,
                    Err(_) => return Err(wrong(file, "the identifier of its parent is no number")),
                },
                "parentFileNameHint" => parent_name = Some(value.to_owned()),
                "createType" => descriptor.create_type = value.chars().take(64).collect(),
                "encoding" if !["UTF-8", "windows-1252"].contains(&value) => {
                    return Err(unsupported(file, format!("names in the encoding {}", value.escape_debug())));
                }
                _ => {}
            }
        }
        descriptor.parent = match (parent_cid, parent_name) {
            (NO_PARENT, _) => None,
            (cid, Some(name)) if !name.is_empty() => Some(Parent { cid, name }),
            _ => return Err(wrong(file, "it has a parent that it does not name")),
        };
        Ok(descriptor)
    }

    /// Where in its file it stands: position and length.
    pub(super) fn region(&self) -> (u64, u64) {
        (self.offset, self.words.len() as u64)
    }

    /// Says, durably, that the content is another one from now on. A file that says nothing of its content stays so.
    pub(super) fn begin_change(&mut self, file: &FencedFile) -> Result<(), DiskError> {
        let is_number =
            |at: &Range<usize>| (1..=8).contains(&at.len()) && self.words[at.clone()].iter().all(u8::is_ascii_hexdigit);
        let Some(at) = value_of(&self.words, "CID").filter(is_number) else { return Ok(()) };
        // Neither what it was, nor one of the two highest, which mean something else; and as long, so that nothing moves.
        let random = uuid::Uuid::new_v4().as_u128() as u32 & 0x7fff_ffff;
        let mut cid = random >> (32 - 4 * at.len() as u32);
        if cid == self.cid {
            cid ^= 1;
        }
        let text = format!("{cid:0digits$x}", digits = at.len());
        file.write_at(self.offset + at.start as u64, text.as_bytes())?;
        file.flush()?;
        self.words[at].copy_from_slice(text.as_bytes());
        self.cid = cid;
        Ok(())
    }

    /// Writes another parent down, or none.
    pub(super) fn set_parent(&mut self, file: &FencedFile, parent: Option<Parent>) -> Result<(), DiskError> {
        let mut words = self.words.clone();
        set_value(&mut words, "parentCID", &format!("{:08x}", parent.as_ref().map_or(NO_PARENT, |parent| parent.cid)));
        set_value(&mut words, "parentFileNameHint", &parent.as_ref().map_or(String::new(), |parent| quoted(&parent.name)));
        self.replace_words(file, words)?;
        self.parent = parent;
        Ok(())
    }

    /// Writes another length of the last extent down. Says beforehand whether that will be possible.
    pub(super) fn set_last_extent(&mut self, file: &FencedFile, sectors: u64) -> Result<(), DiskError> {
        let words = self.words_with_last_extent(sectors);
        self.replace_words(file, words)?;
        if let Some(last) = self.extents.last_mut() {
            last.sectors = sectors;
        }
        Ok(())
    }

    /// Fails if [`set_last_extent`](Self::set_last_extent) would.
    pub(super) fn check_last_extent(&self, file: &FencedFile, sectors: u64) -> Result<(), DiskError> {
        self.changed_sector(file, &self.words_with_last_extent(sectors)).map(|_| ())
    }

    fn words_with_last_extent(&self, sectors: u64) -> Vec<u8> {
        let mut words = self.words.clone();
        let mut at = 0;
        let mut number = None;
        for line in self.words.split_inclusive(|byte| *byte == b'\n') {
            if ExtentLine::parse(String::from_utf8_lossy(line).trim()).is_some() {
                // Behind the word for its access.
                let is_digit = |place: &usize| line.get(*place).is_some_and(u8::is_ascii_digit);
                let start = (0..line.len()).find(is_digit).unwrap_or(0);
                let end = (start..line.len()).find(|place| !is_digit(place)).unwrap_or(line.len());
                number = Some(at + start..at + end);
            }
            at += line.len();
        }
        if let Some(number) = number {
            words.splice(number, sectors.to_string().into_bytes());
        }
        words
    }

    fn replace_words(&mut self, file: &FencedFile, words: Vec<u8>) -> Result<(), DiskError> {
        if let Some((at, bytes)) = self.changed_sector(file, &words)? {
            file.write_at(at, &bytes)?;
            file.flush()?;
        }
        self.words = words;
        Ok(())
    }

    /// What must be written so that the descriptor has these words. Only what fits one sector cannot be torn by a crash,
    /// and programs expect a descriptor where it was, so more is refused.
    fn changed_sector(&self, file: &FencedFile, words: &[u8]) -> Result<Option<(u64, Vec<u8>)>, DiskError> {
        let refuse = || DiskError::BadOptions {
            reason: "The descriptor of this VMDK disk is too long to be changed safely. Convert the disk to a new one".into(),
            path: file.path().to_path_buf(),
        };
        if self.room.is_some_and(|room| words.len() as u64 > room) {
            return Err(refuse());
        }
        let filler = if self.room.is_some() { 0 } else { b'\n' };
        let length = words.len().max(self.words.len());
        let [old, new] = [self.words.as_slice(), words].map(|words| {
            let mut bytes = words.to_vec();
            bytes.resize(length, filler);
            bytes
        });
        let (Some(first), Some(last)) =
            ((0..length).find(|at| old[*at] != new[*at]), (0..length).rfind(|at| old[*at] != new[*at]))
        else {
            return Ok(None);
        };
        let sector = |at: usize| (self.offset + at as u64) / SECTOR;
        if sector(first) != sector(last) {
            return Err(refuse());
        }
        Ok(Some((self.offset + first as u64, new[first..=last].to_vec())))
    }
}

/// Where in a descriptor's words the value of a key stands.
fn value_of(words: &[u8], key: &str) -> Option<Range<usize>> {
    let mut at = 0;
    for line in words.split_inclusive(|byte| *byte == b'\n') {
        let text = line.trim_ascii_end();
        if let Some(value) = text.strip_prefix(key.as_bytes()).and_then(|rest| rest.strip_prefix(b"=")) {
            return Some(at + text.len() - value.len()..at + text.len());
        }
        at += line.len();
    }
    None
}

/// Where the line ends that has something at `at`.
fn line_end(words: &[u8], at: usize) -> usize {
    words.iter().skip(at).position(|byte| *byte == b'\n').map_or(words.len(), |newline| at + newline + 1)
}

/// Gives a key another value; an empty one takes its line away. A new line stands behind the kind of the disk.
fn set_value(words: &mut Vec<u8>, key: &str, value: &str) {
    match value_of(words, key) {
        Some(at) if value.is_empty() => {
            let end = line_end(words, at.end);
            words.drain(at.start - key.len() - 1..end);
        }
        Some(at) => {
            words.splice(at, value.bytes());
        }
        None if value.is_empty() => {}
        None => {
            let at = line_end(words, value_of(words, "createType").map_or(0, |at| at.end));
            words.splice(at..at, format!("{key}={value}\n").into_bytes());
        }
    }
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
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
pub(super) fn text(options: &VmdkOptions, extents: &[ExtentLine], size: u64, parent: Option<&Parent>) -> String {
    let VmdkOptions { kind, adapter, hardware_version, tools_version, .. } = options;
    let create_type = kind.name();
    let cid = uuid::Uuid::new_v4().as_u128() as u32 & 0x7fff_ffff;
    let parent_cid = parent.map_or(NO_PARENT, |parent| parent.cid);
    let mut text = format!("{FIRST_LINE}\nversion=1\nCID={cid:08x}\nparentCID={parent_cid:08x}\ncreateType=\"{create_type}\"\n");
    if let Some(Parent { name, .. }) = parent {
        text += &format!("parentFileNameHint={}\n", quoted(name));
    }
    text += "\n# Extent description\n";
    for ExtentLine { sectors, kind, file, offset } in extents {
        text += &format!("RW {sectors} {kind} \"{file}\"");
        if kind == "FLAT" {
            text += &format!(" {offset}");
        }
        text.push('\n');
    }
    // What the BIOSes of IDE and of SCSI disks make of a size.
    let (heads, most_cylinders) = if *adapter == VmdkAdapter::Ide { (16, 16383) } else { (255, 65535) };
    let cylinders = (size / SECTOR / heads / 63).min(most_cylinders);
    text += &format!(
        "\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"{hardware_version}\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"{heads}\"\nddb.geometry.sectors = \"63\"\nddb.adapterType = \"{}\"\n",
        adapter.name()
    );
    if let Some(version) = tools_version {
        text += &format!("ddb.toolsVersion = \"{version}\"\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_changed_where_they_stand_added_and_taken_away() {
        let mut words = b"version=1\nCID=12\ncreateType=\"x\"\n\nRW 8 ZERO\n".to_vec();
        set_value(&mut words, "parentFileNameHint", &quoted("b"));
        set_value(&mut words, "CID", "345");
        let expected = "version=1\nCID=345\ncreateType=\"x\"\nparentFileNameHint=\"b\"\n\nRW 8 ZERO\n";
        assert_eq!(String::from_utf8_lossy(&words), expected);
        set_value(&mut words, "parentFileNameHint", "");
        assert_eq!(String::from_utf8_lossy(&words), expected.replace("parentFileNameHint=\"b\"\n", ""));
    }

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
