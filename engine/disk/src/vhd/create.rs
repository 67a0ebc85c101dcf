//! Making empty VHD files.

use crate::DiskError;
use crate::block_file::BlockFile;
use crate::formats::Format;
use crate::image_info::Identity;
use crate::open::{Backing, CreateOptions, Preallocation};
use crate::parent::identify;

use super::SECTOR;
use super::footer::{DIFFERENCING, DYNAMIC, FIXED, FOOTER_LENGTH, Footer};
use super::header::{HEADER_LENGTH, Header};

const BLOCK_SIZE: u64 = 2 << 20;
/// Sector numbers of blocks have 32 bits.
pub(super) const MAX_SIZE: u64 = 2040 << 30;

pub(super) fn create(file: &dyn BlockFile, options: &CreateOptions) -> Result<(), DiskError> {
    let refuse = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: file.path().to_path_buf() };
    let host = |source| DiskError::host("create", file.path(), source);
    if options.size > MAX_SIZE {
        return Err(refuse("A VHD disk cannot be larger than 2,040 GiB. Use VHDX or qcow2 for that"));
    }
    let is_fixed = options.preallocation != Preallocation::Off;
    match &options.backing {
        None if is_fixed => {
            let footer = Footer::new(options.size, FIXED);
            file.truncate(options.size + FOOTER_LENGTH as u64).map_err(host)?;
            file.write_at(options.size, &footer.bytes).map_err(host)
        }
        None => write_dynamic(file, options.size, BLOCK_SIZE, None),
        Some(_) if is_fixed => Err(refuse("A fixed VHD disk cannot be built on another file. Use a dynamic one")),
        Some(backing) => {
            let (identity, size) = identify(file.path(), backing, Format::Vhd)?;
            if size != options.size {
                return Err(refuse("A VHD disk must be as large as the one that it is built on. Leave the size out"));
            }
            write_dynamic(file, size, BLOCK_SIZE, Some((backing, identity)))
        }
    }
}

/// Footer, header and table of a disk without blocks, the names of its base, and the footer again.
fn write_dynamic(file: &dyn BlockFile, size: u64, block_size: u64, base: Option<(&Backing, Identity)>) -> Result<(), DiskError> {
    let footer = Footer::new(size, if base.is_some() { DIFFERENCING } else { DYNAMIC });
    let mut header = Header::new((FOOTER_LENGTH + HEADER_LENGTH) as u64, block_size, size.div_ceil(block_size));
    let names = header.set_base(file.path(), base, header.table_offset + header.table_length());
    let Some(names) = names else {
        let reason = "The name of the base file is too long for a VHD disk. Rename it or put it elsewhere".into();
        return Err(DiskError::BadOptions { reason, path: file.path().to_path_buf() });
    };
    let mut start = footer.bytes.to_vec();
    start.extend(header.bytes);
    start.resize(start.len() + header.table_length() as usize, 0xff);
    start.extend(names);
    debug_assert!((start.len() as u64).is_multiple_of(SECTOR));
    start.extend(footer.bytes);
    file.write_at(0, &start).map_err(|source| DiskError::host("create", file.path(), source))
}

/// A dynamic disk with blocks smaller than anybody makes them, so that small files have many.
#[cfg(test)]
pub(crate) fn create_small(file: &dyn BlockFile, size: u64) {
    write_dynamic(file, size, 4096, None).unwrap();
}

/// The same, built on another.
#[cfg(test)]
pub(crate) fn create_small_over(file: &dyn BlockFile, backing: &Backing) {
    let (identity, size) = identify(file.path(), backing, Format::Vhd).unwrap();
    write_dynamic(file, size, 4096, Some((backing, identity))).unwrap();
}
