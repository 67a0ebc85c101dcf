//! What format a file looks like. Only ever called when somebody asked for it: the content of a raw disk is the
//! guest's, and a guest that can make its disk look like another format must not choose how we open it.

use std::path::Path;

use crate::block_file::{Access, BlockFile, read_zero_padded};
use crate::formats::{DRIVERS, HEAD_LENGTH};
use crate::{DiskError, Format, HostFile};

/// Looks for a signature at the start of a file. `None` means that there is none, as in a raw disk.
pub fn probe(path: &Path) -> Result<Option<Format>, DiskError> {
    let file = HostFile::open(path, Access::ReadOnly)?;
    let mut head = vec![0; HEAD_LENGTH];
    read_zero_padded(&file, 0, &mut head).map_err(|source| DiskError::host("read", file.path(), source))?;
    Ok(recognise(&head))
}

/// The format whose signature `head` carries.
pub(crate) fn recognise(head: &[u8]) -> Option<Format> {
    DRIVERS.iter().find(|driver| (driver.recognise)(head)).map(|driver| driver.format)
}
