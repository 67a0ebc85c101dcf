//! The LUKS header: which cipher, and the master key under up to eight passphrases.
//!
//! The master key is spread over 4,000 stripes, so that a slot can be destroyed by losing any of them, and encrypted with
//! a key made from the passphrase. Whether a passphrase is right shows in a digest of what it unlocks.
//! See: Fruhwirth, "LUKS On-Disk Format Specification" 1.2.3.

use std::io::Read;
use std::time::{Duration, Instant};

use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use zeroize::Zeroizing;

use crate::DiskError;
use crate::fenced_file::FencedFile;
use crate::fields::{Fields, put};

use super::xts::{SECTOR, Xts};
use super::{Passphrase, TITLE};

pub(super) const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
pub(super) const HEADER_LENGTH: usize = 592;
pub(super) const SLOTS: usize = 8;
pub(super) const AT_SLOTS: usize = 208;
pub(super) const AT_DIGEST_ROUNDS: usize = 164;
pub(super) const SLOT_LENGTH: usize = 48;
pub(super) const SLOT_ACTIVE: u32 = 0x00ac_71f3;
pub(super) const SLOT_FREE: u32 = 0x0000_dead;
pub(super) const STRIPES: usize = 4000;
const DIGEST_LENGTH: usize = 20;
/// No header may ask for more rounds than this in all slots together. Eight passphrases of QEMU's, each of which it lets cost
/// two seconds of a fast computer, stay below it.
pub(super) const MAX_ROUNDS: u32 = 80_000_000;
/// No new passphrase takes more.
const MAX_NEW_ROUNDS: u32 = 10_000_000;
/// Fewer would make guessing too easy.
pub(super) const MIN_ROUNDS: u32 = 1000;

/// What we make: the same as QEMU and cryptsetup.
const NEW_KEY_LENGTH: usize = 64;
/// Slots begin here, and each is a multiple of this long.
const SLOT_ALIGNMENT: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    Sha1,
    Sha256,
    Sha512,
}

impl Hash {
    fn named(word: &str) -> Option<Self> {
        Some(match word {
            "sha1" => Hash::Sha1,
            "sha256" => Hash::Sha256,
            "sha512" => Hash::Sha512,
            _ => return None,
        })
    }

    /// The digest of a number and what follows it.
    fn digest(self, number: u32, bytes: &[u8]) -> Vec<u8> {
        let parts = [&number.to_be_bytes()[..], bytes];
        match self {
            Hash::Sha1 => parts.iter().fold(Sha1::new(), |hash, part| hash.chain_update(part)).finalize().to_vec(),
            Hash::Sha256 => parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part)).finalize().to_vec(),
            Hash::Sha512 => parts.iter().fold(Sha512::new(), |hash, part| hash.chain_update(part)).finalize().to_vec(),
        }
    }

    fn length(self) -> usize {
        match self {
            Hash::Sha1 => 20,
            Hash::Sha256 => 32,
            Hash::Sha512 => 64,
        }
    }

    /// A key from a passphrase.
    pub(super) fn stretch(self, passphrase: &[u8], salt: &[u8], rounds: u32, length: usize) -> Zeroizing<Vec<u8>> {
        let mut key = Zeroizing::new(vec![0; length]);
        match self {
            Hash::Sha1 => pbkdf2::pbkdf2_hmac::<Sha1>(passphrase, salt, rounds, &mut key),
            Hash::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>(passphrase, salt, rounds, &mut key),
            Hash::Sha512 => pbkdf2::pbkdf2_hmac::<Sha512>(passphrase, salt, rounds, &mut key),
        }
        key
    }
}

/// A place for the master key under one passphrase.
pub(super) struct Slot {
    pub(super) is_active: bool,
    pub(super) rounds: u32,
    salt: [u8; 32],
    /// Where its stripes begin, in bytes from the header's start.
    pub(super) offset: u64,
}

/// The header, checked.
pub(crate) struct LuksHeader {
    mode: String,
    hash_word: String,
    pub(super) hash: Hash,
    pub(super) key_length: usize,
    digest: [u8; DIGEST_LENGTH],
    digest_salt: [u8; 32],
    digest_rounds: u32,
    /// [`SLOTS`] of them.
    pub(super) slots: Vec<Slot>,
    uuid: String,
    /// Where the disk begins in a file of its own, in bytes from the header's start.
    pub(super) payload_offset: u64,
}

impl LuksHeader {
    /// Reads the header that begins at `start` and, with all its slots, is no longer than `length`.
    pub(crate) fn read(file: &FencedFile, start: u64, length: u64) -> Result<Self, DiskError> {
        let wrong = |detail: &str| DiskError::WrongFormat { expected: TITLE, detail: detail.into(), path: file.path().into() };
        let unsupported = |feature: String| DiskError::Unsupported { feature, path: file.path().into() };
        let mut bytes = [0; HEADER_LENGTH];
        file.read_zero_padded(start, &mut bytes)?;
        let fields = Fields(&bytes);
        if !bytes.starts_with(MAGIC) || length < HEADER_LENGTH as u64 {
            return Err(wrong("its signature is missing"));
        }
        if fields.be16(6) != 1 {
            return Err(unsupported(format!("LUKS version {}", fields.be16(6))));
        }
        let (cipher, mode, hash_word) = (word(&bytes[8..40]), word(&bytes[40..72]), word(&bytes[72..104]));
        let key_length = fields.be32(108) as usize;
        if cipher != "aes" || mode != "xts-plain64" && mode != "xts-plain" || !matches!(key_length, 32 | 64) {
            let cipher = format!("{cipher}-{mode} with a key of {} bits", key_length.saturating_mul(8));
            return Err(unsupported(format!("the cipher {}", cipher.escape_debug())));
        }
        let hash = Hash::named(&hash_word).ok_or_else(|| unsupported(format!("the hash {}", hash_word.escape_debug())))?;
        let stripes_length = (key_length * STRIPES) as u64;
        let mut slots = Vec::new();
        for slot in bytes[AT_SLOTS..].chunks_exact(SLOT_LENGTH).take(SLOTS) {
            let fields = Fields(slot);
            let offset = u64::from(fields.be32(40)) * SECTOR as u64;
            let is_active = match fields.be32(0) {
                SLOT_ACTIVE => true,
                SLOT_FREE => false,
                _ => return Err(wrong("a key slot is neither used nor free")),
            };
            let fits = offset >= HEADER_LENGTH as u64 && offset + stripes_length <= length;
            if is_active && (fields.be32(44) as usize != STRIPES || !fits) {
                return Err(wrong("a key slot lies outside the header"));
            }
            let salt = slot[8..40].try_into().unwrap_or_default();
            slots.push(Slot { is_active, rounds: fields.be32(4), salt, offset });
        }
        let mut places: Vec<u64> = slots.iter().filter(|slot| slot.is_active).map(|slot| slot.offset).collect();
        places.sort_unstable();
        if places.windows(2).any(|pair| pair[1] - pair[0] < stripes_length) {
            return Err(wrong("two key slots overlap"));
        }
        let header = Self {
            mode,
            hash_word,
            hash,
            key_length,
            digest: bytes[112..132].try_into().unwrap_or_default(),
            digest_salt: bytes[132..164].try_into().unwrap_or_default(),
            digest_rounds: fields.be32(AT_DIGEST_ROUNDS),
            slots,
            uuid: word(&bytes[168..208]),
            payload_offset: u64::from(fields.be32(104)) * SECTOR as u64,
        };
        if header.digest_rounds == 0 || header.slots.iter().any(|slot| slot.is_active && slot.rounds == 0) {
            return Err(wrong("a key is to be made in no rounds"));
        }
        if header.rounds() > u64::from(MAX_ROUNDS) {
            return Err(unsupported("a passphrase that takes this program too long to try".into()));
        }
        Ok(header)
    }

    /// How many rounds of a key's making it takes at most to try a passphrase.
    pub(super) fn rounds(&self) -> u64 {
        let active = self.slots.iter().filter(|slot| slot.is_active);
        active.map(|slot| u64::from(slot.rounds)).sum::<u64>() + u64::from(self.digest_rounds)
    }

    /// Unlocks the disk with a passphrase.
    pub(crate) fn unlock(&self, file: &FencedFile, start: u64, passphrase: &Passphrase) -> Result<Xts, DiskError> {
        let master = self.master_key(file, start, passphrase)?;
        Xts::new(&master).ok_or_else(|| DiskError::WrongPassphrase { path: file.path().to_path_buf() })
    }

    /// Finds the master key by a passphrase.
    pub(super) fn master_key(
        &self,
        file: &FencedFile,
        start: u64,
        passphrase: &Passphrase,
    ) -> Result<Zeroizing<Vec<u8>>, DiskError> {
        for slot in 0..self.slots.len() {
            if let Some(master) = self.master_key_in(slot, file, start, passphrase)? {
                return Ok(master);
            }
        }
        Err(DiskError::WrongPassphrase { path: file.path().to_path_buf() })
    }

    /// The master key, if a passphrase opens this slot.
    pub(super) fn master_key_in(
        &self,
        slot: usize,
        file: &FencedFile,
        start: u64,
        passphrase: &Passphrase,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, DiskError> {
        let Some(slot) = self.slots.get(slot).filter(|slot| slot.is_active) else { return Ok(None) };
        let key = self.hash.stretch(passphrase.bytes(), &slot.salt, slot.rounds, self.key_length);
        let mut stripes = Zeroizing::new(vec![0; (self.key_length * STRIPES).next_multiple_of(SECTOR)]);
        file.read_zero_padded(start + slot.offset, &mut stripes)?;
        let Some(cipher) = Xts::new(&key) else { return Ok(None) };
        cipher.decrypt(0, &mut stripes);
        let master = self.merge(&stripes[..self.key_length * STRIPES]);
        Ok((self.digest_of(&master)[..] == self.digest).then_some(master))
    }

    /// Bytes of a slot's stripes.
    pub(super) fn stripes_length(&self) -> u64 {
        (self.key_length * STRIPES) as u64
    }

    fn digest_of(&self, master: &[u8]) -> Zeroizing<Vec<u8>> {
        self.hash.stretch(master, &self.digest_salt, self.digest_rounds, DIGEST_LENGTH)
    }

    /// Puts the master key together from its stripes.
    fn merge(&self, stripes: &[u8]) -> Zeroizing<Vec<u8>> {
        let mut key = Zeroizing::new(vec![0; self.key_length]);
        let last = STRIPES - 1;
        for (number, stripe) in stripes.chunks_exact(self.key_length).enumerate() {
            key.iter_mut().zip(stripe).for_each(|(byte, other)| *byte ^= other);
            if number < last {
                self.diffuse(&mut key);
            }
        }
        key
    }

    fn diffuse(&self, key: &mut [u8]) {
        for (number, part) in key.chunks_mut(self.hash.length()).enumerate() {
            let digest = Zeroizing::new(self.hash.digest(number as u32, part));
            part.copy_from_slice(&digest[..part.len()]);
        }
    }

    /// Spreads the master key over stripes of which all but the last are random.
    pub(super) fn split(&self, master: &[u8]) -> std::io::Result<Zeroizing<Vec<u8>>> {
        let mut stripes = Zeroizing::new(vec![0; self.key_length * STRIPES]);
        random(&mut stripes)?;
        let at = self.key_length * (STRIPES - 1);
        stripes[at..].fill(0);
        // What the random ones come to is what the last must make up for.
        let mut last = self.merge(&stripes);
        last.iter_mut().zip(master).for_each(|(byte, other)| *byte ^= other);
        stripes[at..].copy_from_slice(&last);
        Ok(stripes)
    }

    /// What the header says of itself, as `qemu-img info` names it.
    pub(crate) fn info(&self, start: u64) -> Vec<(&'static str, crate::InfoValue)> {
        use crate::InfoValue::{Flag, List, Number, Record, Text};
        let slot = |slot: &Slot| {
            let mut record = vec![("active", Flag(slot.is_active))];
            record.extend(slot.is_active.then(|| ("iters", Number(slot.rounds.into()))));
            record.push(("key-offset", Number(start + slot.offset)));
            record.extend(slot.is_active.then_some(("stripes", Number(STRIPES as u64))));
            Record(record)
        };
        vec![
            ("ivgen-alg", Text(self.mode.trim_start_matches("xts-").into())),
            ("hash-alg", Text(self.hash_word.clone())),
            ("cipher-alg", Text(format!("aes-{}", self.key_length * 4))),
            ("uuid", Text(self.uuid.clone())),
            ("cipher-mode", Text("xts".into())),
            ("slots", List(self.slots.iter().map(slot).collect())),
            ("payload-offset", Number(start + self.payload_offset)),
            ("master-key-iters", Number(self.digest_rounds.into())),
        ]
    }
}

/// A new header with one passphrase, as it stands in a file: so long is what comes before the disk.
pub(crate) fn create(passphrase: &Passphrase, time: Duration) -> std::io::Result<Vec<u8>> {
    create_with_rounds(passphrase, rounds_in(Hash::Sha256, time))
}

/// The same, with a number of rounds that says what trying a passphrase costs.
pub(super) fn create_with_rounds(passphrase: &Passphrase, rounds: u32) -> std::io::Result<Vec<u8>> {
    let hash = Hash::Sha256;
    let slot_length = (NEW_KEY_LENGTH * STRIPES).next_multiple_of(SLOT_ALIGNMENT);
    let offset_of = |slot: usize| SLOT_ALIGNMENT + slot * slot_length;
    let mut master = Zeroizing::new(vec![0; NEW_KEY_LENGTH]);
    random(&mut master)?;
    let mut header = LuksHeader {
        mode: "xts-plain64".into(),
        hash_word: "sha256".into(),
        hash,
        key_length: NEW_KEY_LENGTH,
        digest: [0; DIGEST_LENGTH],
        digest_salt: [0; 32],
        digest_rounds: 0,
        slots: Vec::new(),
        uuid: uuid::Uuid::new_v4().to_string(),
        payload_offset: offset_of(SLOTS) as u64,
    };
    let mut salt = [0; 32];
    random(&mut salt)?;
    random(&mut header.digest_salt)?;
    header.digest_rounds = (rounds / 8).max(MIN_ROUNDS);
    header.digest = header.digest_of(&master)[..].try_into().unwrap_or_default();

    let mut bytes = vec![0; header.payload_offset as usize];
    put(&mut bytes, 0, MAGIC);
    put(&mut bytes, 6, &1_u16.to_be_bytes());
    put(&mut bytes, 8, b"aes");
    put(&mut bytes, 40, header.mode.as_bytes());
    put(&mut bytes, 72, header.hash_word.as_bytes());
    put(&mut bytes, 104, &((header.payload_offset / SECTOR as u64) as u32).to_be_bytes());
    put(&mut bytes, 108, &(NEW_KEY_LENGTH as u32).to_be_bytes());
    put(&mut bytes, 112, &header.digest);
    put(&mut bytes, 132, &header.digest_salt);
    put(&mut bytes, AT_DIGEST_ROUNDS, &header.digest_rounds.to_be_bytes());
    put(&mut bytes, 168, header.uuid.as_bytes());
    for slot in 0..SLOTS {
        let at = AT_SLOTS + slot * SLOT_LENGTH;
        put(&mut bytes, at, &if slot == 0 { SLOT_ACTIVE } else { SLOT_FREE }.to_be_bytes());
        if slot == 0 {
            put(&mut bytes, at + 4, &rounds.to_be_bytes());
            put(&mut bytes, at + 8, &salt);
        }
        put(&mut bytes, at + 40, &((offset_of(slot) / SECTOR) as u32).to_be_bytes());
        put(&mut bytes, at + 44, &(STRIPES as u32).to_be_bytes());
    }
    let mut stripes = header.split(&master)?;
    let key = hash.stretch(passphrase.bytes(), &salt, rounds, NEW_KEY_LENGTH);
    if let Some(cipher) = Xts::new(&key) {
        cipher.encrypt(0, &mut stripes);
    }
    put(&mut bytes, offset_of(0), &stripes);
    Ok(bytes)
}

/// How many rounds of the key's making fit into a time on this computer.
pub(super) fn rounds_in(hash: Hash, time: Duration) -> u32 {
    let trial = 10_000;
    let seconds_of_trial = || {
        let begun = Instant::now();
        hash.stretch(b"trial", &[0; 32], trial, NEW_KEY_LENGTH);
        begun.elapsed().as_secs_f64()
    };
    // The quickest of several, so that other programs make no passphrase weaker.
    let quickest = (0..5).map(|_| seconds_of_trial()).fold(f64::INFINITY, f64::min);
    let rounds = f64::from(trial) * time.as_secs_f64() / quickest.max(1e-6);
    (rounds as u32).clamp(MIN_ROUNDS, MAX_NEW_ROUNDS)
}

/// Bytes that nobody can guess, from the kernel.
pub(super) fn random(bytes: &mut [u8]) -> std::io::Result<()> {
    std::fs::File::open("/dev/urandom")?.read_exact(bytes)
}

/// A word that zeros fill up.
fn word(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}
