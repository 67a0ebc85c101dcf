//! AES in XTS mode, one 512-byte sector a unit, its number the tweak ("plain64").
//!
//! See: IEEE 1619-2007; NIST SP 800-38E.

use aes::cipher::consts::U16;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit};
use aes::{Aes128, Aes256, Block};

pub(super) const SECTOR: usize = 512;
const BLOCKS: usize = SECTOR / 16;

/// Two ciphers each: for the data, and for the sector's number.
enum Ciphers {
    Aes128(Box<[Aes128; 2]>),
    Aes256(Box<[Aes256; 2]>),
}

/// A key, ready for use.
pub(crate) struct Xts(Ciphers);

#[derive(Clone, Copy)]
enum Direction {
    Encrypt,
    Decrypt,
}

impl Xts {
    /// A key of 32 or 64 bytes: one half for the data, one for the sector's number. `None` for other lengths.
    pub(crate) fn new(key: &[u8]) -> Option<Self> {
        let (data, tweak) = key.split_at(key.len() / 2);
        let ciphers = match key.len() {
            32 => Ciphers::Aes128(Box::new([Aes128::new_from_slice(data).ok()?, Aes128::new_from_slice(tweak).ok()?])),
            64 => Ciphers::Aes256(Box::new([Aes256::new_from_slice(data).ok()?, Aes256::new_from_slice(tweak).ok()?])),
            _ => return None,
        };
        Some(Self(ciphers))
    }

    /// Encrypts whole sectors in place; the first has the number `first`.
    pub(crate) fn encrypt(&self, first: u64, sectors: &mut [u8]) {
        self.run(first, sectors, Direction::Encrypt);
    }

    /// Decrypts whole sectors in place.
    pub(crate) fn decrypt(&self, first: u64, sectors: &mut [u8]) {
        self.run(first, sectors, Direction::Decrypt);
    }

    fn run(&self, first: u64, sectors: &mut [u8], direction: Direction) {
        debug_assert!(sectors.len().is_multiple_of(SECTOR));
        for (number, sector) in sectors.as_chunks_mut::<SECTOR>().0.iter_mut().enumerate() {
            let number = first.wrapping_add(number as u64);
            match &self.0 {
                Ciphers::Aes128(both) => one_sector(&both[0], &both[1], number, sector, direction),
                Ciphers::Aes256(both) => one_sector(&both[0], &both[1], number, sector, direction),
            }
        }
    }
}

fn one_sector<C>(data: &C, tweak: &C, number: u64, sector: &mut [u8; SECTOR], direction: Direction)
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16>,
{
    let mut first = Block::from(u128::from(number).to_le_bytes());
    tweak.encrypt_block(&mut first);
    let mut mask = u128::from_le_bytes(first.into());
    let mut masks = [0; BLOCKS];
    for place in &mut masks {
        *place = mask;
        // Times x in the field that XTS is made in.
        mask = mask << 1 ^ if mask >> 127 == 1 { 0x87 } else { 0 };
    }
    let mut blocks = [Block::default(); BLOCKS];
    let masked = |bytes: &[u8; 16], mask: u128| (u128::from_le_bytes(*bytes) ^ mask).to_le_bytes();
    for ((block, bytes), mask) in blocks.iter_mut().zip(sector.as_chunks::<16>().0).zip(masks) {
        *block = masked(bytes, mask).into();
    }
    match direction {
        Direction::Encrypt => data.encrypt_blocks(&mut blocks),
        Direction::Decrypt => data.decrypt_blocks(&mut blocks),
    }
    for ((block, bytes), mask) in blocks.into_iter().zip(sector.as_chunks_mut::<16>().0).zip(masks) {
        *bytes = masked(&block.into(), mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_of_the_standards_tenth_vector_is_encrypted_as_printed_there() {
        // IEEE 1619-2007, annex B, vector 10: XTS-AES-256, sector FFh, plain text 00h, 01h, … twice over.
        let key: Vec<u8> = [
            "2718281828459045235360287471352662497757247093699959574966967627",
            "3141592653589793238462643383279502884197169399375105820974944592",
        ]
        .concat()
        .as_bytes()
        .chunks(2)
        .map(|digits| u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap())
        .collect();
        let plain: Vec<u8> = (0..512_u32).map(|number| number as u8).collect();
        let mut sector = plain.clone();
        let xts = Xts::new(&key).unwrap();
        xts.encrypt(0xff, &mut sector);
        assert_eq!(
            sector[..16],
            [0x1c, 0x3b, 0x3a, 0x10, 0x2f, 0x77, 0x03, 0x86, 0xe4, 0x83, 0x6c, 0x99, 0xe3, 0x70, 0xcf, 0x9b]
        );
        xts.decrypt(0xff, &mut sector);
        assert_eq!(sector, plain);
        assert!(Xts::new(&key[..48]).is_none());
    }
}
