//! What differencing disks share: the base that shows through, and how they make sure that it is the right one.
//!
//! A differencing disk remembers its base by an [`Identity`]. VDI remembers nothing else, so its base is looked for among
//! its neighbours; VHD, VHDX and VMDK also keep a name. A base whose identity is another one was changed or replaced since,
//! and is refused: what is stored above it would not fit.

use std::path::Path;
use std::sync::Arc;

use crate::DiskError;
use crate::formats::Format;
use crate::image::DiskImage;
use crate::image_info::Identity;
use crate::open::{Backing, Chain};

/// What shows through where a disk has nothing of its own.
pub(crate) enum Base {
    /// Nothing: zeros.
    None,
    /// The file names one, but is looked at alone.
    LeftOut,
    /// This disk.
    Open(Arc<dyn DiskImage>),
}

impl Base {
    /// Opens the base that the disk at `overlay` names, and makes sure that it is the one it was built on.
    pub(crate) fn open(
        chain: &Chain,
        overlay: &Path,
        backing: &Backing,
        is_expected: impl Fn(&Identity) -> bool,
    ) -> Result<Self, DiskError> {
        if chain.leaves_out_backing() {
            return Ok(Base::LeftOut);
        }
        let base = chain.open_backing(overlay, &backing.name, Some(backing.format))?;
        if base.info().identity.is_some_and(|identity| is_expected(&identity)) {
            return Ok(Base::Open(base));
        }
        let reason = format!(
            "\"{}\" is not as it was when this disk was built on it: it was changed or replaced since (if all that happened is that \
             a commit into it was cut off, \"bellglass img rebase -u -b\" with its name makes the two fit again)",
            backing.name.escape_debug()
        );
        Err(DiskError::Backing { reason, path: overlay.to_path_buf() })
    }

    pub(crate) fn image(&self) -> Option<&Arc<dyn DiskImage>> {
        match self {
            Base::Open(image) => Some(image),
            Base::None | Base::LeftOut => None,
        }
    }

    /// Reads from the base; zeros where it ends or where there is none.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let length = self.image().map_or(0, |image| image.len());
        let inside = length.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (stored, past_end) = buffer.split_at_mut(inside);
        past_end.fill(0);
        match self.image() {
            Some(image) if !stored.is_empty() => image.read_at(offset, stored),
            _ => Ok(()),
        }
    }
}

/// The base of a disk that is being made, or given another base: what to remember of it, and its size.
pub(crate) fn identify(overlay: &Path, backing: &Backing, wanted: Format) -> Result<(Identity, u64), DiskError> {
    let title = wanted.driver().title;
    let refuse = |reason: String| DiskError::BadOptions { reason, path: overlay.to_path_buf() };
    if backing.format != wanted {
        return Err(refuse(format!("A {title} can only be built on another {title}. Use qcow2 over other formats")));
    }
    if backing.name.contains(['\\', '\0', '\n', '"']) {
        return Err(refuse(format!("A {title} cannot write down this name of its base file. Rename the base file")));
    }
    let base = Chain::look_at(overlay, backing)?;
    match base.info().identity {
        Some(identity) => Ok((identity, base.len())),
        None => Err(refuse(format!("This {title} has no identifier by which another could know it. Convert it first"))),
    }
}

/// Of the names that a file gives its base, as Windows writes them: the first under which something is there, else the
/// first. Where none leads anywhere, a file of that name beside the disk will do: both may have moved together.
pub(crate) fn name_of_base(overlay: &Path, written: &[String]) -> Option<String> {
    let names: Vec<String> = written.iter().map(|name| name.replace('\\', "/")).filter(|name| !name.is_empty()).collect();
    let beside = names.iter().filter_map(|name| name.rsplit('/').next().map(str::to_owned));
    let folder = overlay.parent().unwrap_or(Path::new(""));
    let mut candidates: Vec<String> = names.iter().map(|name| name.strip_prefix("./").unwrap_or(name).to_owned()).collect();
    candidates.extend(beside.filter(|name| !name.is_empty() && name != ".."));
    let there = candidates.iter().position(|name| !name.contains('\0') && folder.join(name).exists()).unwrap_or(0);
    (there < candidates.len()).then(|| candidates.swap_remove(there))
}

/// A name as Windows would write it: relative ones begin with `.\`.
pub(crate) fn for_windows(name: &str) -> String {
    let turned = name.replace('/', "\\");
    if turned.starts_with(['\\', '.']) { turned } else { format!(".\\{turned}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_found_by_any_of_its_names_or_beside_its_disk() {
        let folder = tempfile::tempdir().unwrap();
        let overlay = folder.path().join("child.vhd");
        std::fs::write(folder.path().join("base.vhd"), []).unwrap();
        let name = |names: &[&str]| name_of_base(&overlay, &names.iter().map(|name| name.to_string()).collect::<Vec<_>>());
        for (names, expected) in [
            (&[".\\base.vhd"][..], Some("base.vhd")),
            (&["..\\elsewhere\\base.vhd"], Some("base.vhd")),
            (&["missing.vhd", "C:\\disks\\base.vhd"], Some("base.vhd")),
            (&["missing.vhd", "gone.vhd"], Some("missing.vhd")),
            (&["", ""], None),
            (&["..\\.."], Some("../..")),
        ] {
            assert_eq!(name(names).as_deref(), expected, "{names:?}");
        }
        assert_eq!(for_windows("a/b.vhd"), ".\\a\\b.vhd");
        assert_eq!(for_windows("../b.vhd"), "..\\b.vhd");
    }
}
