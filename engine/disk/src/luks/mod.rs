//! LUKS: disks that nobody reads without a passphrase, as files of their own and inside qcow2.
//!
//! Done: version 1 with AES in XTS mode (what QEMU and cryptsetup make), up to eight passphrases, new disks with one; they
//! are added and erased in `keys.rs`. Not here: version 2, other ciphers. Without a passphrase a file can still be looked at, but not
//! into: reading and writing fail with [`DiskError::NeedsPassphrase`].
//!
//! A sector's cipher depends on where it lies, so nothing in an encrypted file reads as zeros until zeros were written
//! there: there are no holes, and discarding does nothing.

mod header;
mod keys;
mod xts;

use std::sync::{Arc, Mutex, PoisonError};

use zeroize::Zeroizing;

use crate::DiskError;
use crate::block_file::{Access, BlockFile, ZEROS};
use crate::fenced_file::FencedFile;
use crate::formats::{Driver, Format, Opening};
use crate::image::{DiskImage, Extent, ExtentKind, check_range};
use crate::image_info::ImageInfo;
use crate::open::{CreateOptions, Preallocation, set_space_aside};

pub(crate) use header::{LuksHeader, create as new_header};
pub use keys::KeyChange;
pub(crate) use keys::change as change_keys;
use xts::{SECTOR, Xts};

const TITLE: &str = "LUKS disk";

pub(crate) const DRIVER: Driver = Driver {
    format: Format::Luks,
    name: "luks",
    title: TITLE,
    recognise: |head| head.starts_with(header::MAGIC),
    open: |opening| Ok(Arc::new(Luks::open(opening)?)),
    create: Some(create),
    check: None,
    writable: true,
    has_snapshots: false,
};

/// What unlocks a disk. Wiped from memory when it is dropped, and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// A passphrase of any bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Passphrase(…)")
    }
}

/// Sectors of a file that are encrypted by their position.
pub(crate) struct Vault {
    /// `None` while nobody has said the passphrase.
    cipher: Option<Xts>,
    /// Held where a part of a sector is changed, because that takes reading and writing it.
    partial: Mutex<()>,
}

impl Vault {
    /// Unlocks what the header at `start` describes; without a passphrase it stays locked.
    pub(crate) fn open(
        file: &FencedFile,
        header: &LuksHeader,
        start: u64,
        passphrase: Option<&Passphrase>,
    ) -> Result<Self, DiskError> {
        let cipher = passphrase.map(|passphrase| header.unlock(file, start, passphrase)).transpose()?;
        Ok(Self { cipher, partial: Mutex::new(()) })
    }

    fn cipher(&self, file: &FencedFile) -> Result<&Xts, DiskError> {
        self.cipher.as_ref().ok_or_else(|| DiskError::NeedsPassphrase { path: file.path().to_path_buf() })
    }

    /// Reads from `origin + offset`; sectors are numbered from `origin` on.
    pub(crate) fn read(&self, file: &FencedFile, origin: u64, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let cipher = self.cipher(file)?;
        let sector = SECTOR as u64;
        if offset.is_multiple_of(sector) && buffer.len().is_multiple_of(SECTOR) {
            file.read_zero_padded(origin + offset, buffer)?;
            cipher.decrypt(offset / sector, buffer);
            return Ok(());
        }
        let start = offset / sector * sector;
        let mut whole = vec![0; ((offset - start) as usize + buffer.len()).next_multiple_of(SECTOR)];
        self.read(file, origin, start, &mut whole)?;
        let from = (offset - start) as usize;
        buffer.copy_from_slice(&whole[from..from + buffer.len()]);
        Ok(())
    }

    /// Writes at `origin + offset`.
    pub(crate) fn write(&self, file: &FencedFile, origin: u64, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let cipher = self.cipher(file)?;
        let sector = SECTOR as u64;
        let start = offset / sector * sector;
        let from = (offset - start) as usize;
        let mut whole = vec![0; (from + data.len()).next_multiple_of(SECTOR)];
        let is_partial = whole.len() != data.len();
        let _alone = is_partial.then(|| self.partial.lock().unwrap_or_else(PoisonError::into_inner));
        if is_partial {
            self.read(file, origin, start, &mut whole)?;
        }
        whole[from..from + data.len()].copy_from_slice(data);
        cipher.encrypt(start / sector, &mut whole);
        file.write_at(origin + start, &whole)
    }
}

/// An encrypted disk in a file of its own.
struct Luks {
    file: FencedFile,
    access: Access,
    header: LuksHeader,
    vault: Vault,
    size: u64,
}

impl Luks {
    fn open(opening: Opening<'_>) -> Result<Self, DiskError> {
        let Opening { file, access, passphrase, chain, .. } = opening;
        let file = FencedFile::new(file);
        let end = file.len()?;
        let header = LuksHeader::read(&file, 0, end)?;
        let Some(size) = end.checked_sub(header.payload_offset) else {
            let detail = "it ends before its disk begins".into();
            return Err(DiskError::WrongFormat { expected: TITLE, detail, path: file.path().to_path_buf() });
        };
        if passphrase.is_none() && !(chain.leaves_out_backing() && access == Access::ReadOnly) {
            return Err(DiskError::NeedsPassphrase { path: file.path().to_path_buf() });
        }
        let vault = Vault::open(&file, &header, 0, passphrase)?;
        Ok(Self { file, access, vault, size: size / SECTOR as u64 * SECTOR as u64, header })
    }

    fn check_write(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        if self.access == Access::ReadOnly {
            return Err(DiskError::ReadOnly { path: self.file.path().to_path_buf() });
        }
        self.file.check_fence()?;
        check_range(self.file.path(), self.size, offset, length)
    }
}

impl DiskImage for Luks {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        check_range(self.file.path(), self.size, offset, buffer.len() as u64)?;
        self.vault.read(&self.file, self.header.payload_offset, offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.check_write(offset, data.len() as u64)?;
        self.vault.write(&self.file, self.header.payload_offset, offset, data)
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.access == Access::ReadOnly { Ok(()) } else { self.file.flush() }
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        // A hole would read as noise, not as zeros or what was there.
        self.check_write(offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(ZEROS.len() as u64);
            self.write_at(offset + done, &ZEROS[..piece as usize])?;
            done += piece;
        }
        self.check_write(offset, length)
    }

    fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn format(&self) -> Format {
        Format::Luks
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        check_range(self.file.path(), self.size, offset, 0)?;
        Ok(Extent::new(ExtentKind::Data, self.size - offset))
    }

    fn change_keys(&self, change: &KeyChange, force: bool) -> Result<(), DiskError> {
        self.check_write(0, 0)?;
        change_keys(&self.file, 0, self.file.len()?, change, force)
    }

    fn info(&self) -> ImageInfo {
        ImageInfo { encrypted: true, specific: self.header.info(0), ..ImageInfo::default() }
    }
}

fn create(file: &dyn BlockFile, options: &CreateOptions) -> Result<(), DiskError> {
    let refuse = |reason: &str| DiskError::BadOptions { reason: reason.into(), path: file.path().to_path_buf() };
    let host = |source| DiskError::host("create", file.path(), source);
    if options.backing.is_some() {
        return Err(refuse("A LUKS disk cannot be built on another file. Use an encrypted qcow2 for that"));
    }
    if options.preallocation == Preallocation::Metadata {
        return Err(refuse("A LUKS disk has no tables that could be made before they are needed. Use falloc or full"));
    }
    let passphrase = options.passphrase.as_ref().ok_or_else(|| refuse("An encrypted disk needs a passphrase"))?;
    let header = new_header(passphrase, options.passphrase_time).map_err(host)?;
    let end = (header.len() as u64).checked_add(options.size).filter(|end| *end <= i64::MAX as u64);
    let end = end.ok_or_else(|| refuse("This size is larger than any file can be. Choose a smaller one"))?;
    file.truncate(end).map_err(host)?;
    file.write_at(0, &header).map_err(host)?;
    set_space_aside(file, header.len() as u64, options.size, options.preallocation)
}

#[cfg(test)]
pub(crate) mod fuzz_tests;
#[cfg(test)]
mod key_tests;
#[cfg(test)]
mod tests;
