//! Data clusters on their way to the file and back: encrypted, if the disk is.

use crate::block_file::Access;
use crate::fenced_file::FencedFile;
use crate::luks::{LuksHeader, Passphrase, Vault};
use crate::open::Chain;
use crate::{DiskError, InfoValue};

use super::Qcow2;
use super::header::Header;

/// How the data of a disk is encrypted.
pub(super) struct Encryption {
    luks: LuksHeader,
    /// Where in the file its header begins.
    start: u64,
    vault: Vault,
    pub(super) info: Vec<(&'static str, InfoValue)>,
}

impl Encryption {
    /// The encryption that a header tells of, as long as nobody has said the passphrase.
    pub(super) fn locked(file: &FencedFile, header: &Header) -> Result<Option<Self>, DiskError> {
        let Some((start, length)) = header.luks else { return Ok(None) };
        let luks = LuksHeader::read(file, start, length)?;
        // Its places are counted from its own beginning.
        let mut info = luks.info(0);
        info.insert(4, ("format", InfoValue::Text("luks".into())));
        let vault = Vault::open(file, &luks, start, None)?;
        Ok(Some(Self { luks, start, vault, info }))
    }
}

impl Qcow2 {
    /// Unlocks an encrypted disk. Without a passphrase it is refused, unless it is only looked at.
    pub(super) fn unlock(&mut self, passphrase: Option<&Passphrase>, chain: &Chain) -> Result<(), DiskError> {
        let Some(encryption) = &mut self.encryption else { return Ok(()) };
        if passphrase.is_none() && chain.leaves_out_backing() && self.access == Access::ReadOnly {
            return Ok(());
        }
        let needs_passphrase = || DiskError::NeedsPassphrase { path: self.file.path().to_path_buf() };
        let passphrase = passphrase.ok_or_else(needs_passphrase)?;
        encryption.vault = Vault::open(&self.file, &encryption.luks, encryption.start, Some(passphrase))?;
        Ok(())
    }

    /// Reads data from a place in the file; what lies past its end is zeros. Returns how many bytes are known to lie
    /// before it.
    pub(super) fn read_payload(&self, host: u64, buffer: &mut [u8]) -> Result<usize, DiskError> {
        match &self.encryption {
            None => self.payload_file()?.read_zero_padded(host, buffer),
            Some(encryption) => encryption.vault.read(self.payload_file()?, 0, host, buffer).map(|()| 0),
        }
    }

    /// Writes data to a place in the file.
    pub(super) fn write_payload(&self, host: u64, data: &[u8]) -> Result<(), DiskError> {
        match &self.encryption {
            None => self.payload_file()?.write_at(host, data),
            Some(encryption) => encryption.vault.write(self.payload_file()?, 0, host, data),
        }
    }
}
