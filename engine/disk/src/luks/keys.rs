//! Changing which passphrases open a disk: the key slots of its header.
//!
//! A crash leaves all other passphrases as they were, and the one in question opens the disk or does not: a slot's stripes
//! are durable before the header says that it is used, and the header has forgotten a slot before its stripes are
//! overwritten. A slot may lie across two sectors, so its state is written by itself.

use std::time::Duration;

use crate::DiskError;
use crate::fenced_file::FencedFile;

use super::header::{
    AT_SLOTS, HEADER_LENGTH, LuksHeader, MAX_ROUNDS, MIN_ROUNDS, SLOT_ACTIVE, SLOT_FREE, SLOT_LENGTH, SLOTS, STRIPES, random,
    rounds_in,
};
use super::xts::{SECTOR, Xts};
use super::{Passphrase, TITLE};

/// A change of the passphrases that open an encrypted disk. There are up to eight, each in a slot of its own.
#[derive(Clone, Debug)]
pub enum KeyChange {
    /// One more passphrase opens it.
    Add {
        /// One that opens it now.
        current: Passphrase,
        /// The new one.
        new: Passphrase,
        /// Its slot, from 0 on; `None` takes the first that is free.
        slot: Option<usize>,
        /// How long this computer is to take to try the new one.
        time: Duration,
    },
    /// What is in a slot opens it no more.
    EraseSlot(usize),
    /// A passphrase opens it no more.
    ErasePassphrase(Passphrase),
}

impl KeyChange {
    /// What a new passphrase usually costs whoever tries it.
    pub const USUAL_TIME: Duration = Duration::from_millis(500);
}

/// Changes the slots of the header that begins at `start` and is `length` bytes long at most. `force` also overwrites slots
/// in use, and erases the last one, with which all that is on the disk is lost.
pub(crate) fn change(file: &FencedFile, start: u64, length: u64, change: &KeyChange, force: bool) -> Result<(), DiskError> {
    let header = LuksHeader::read(file, start, length)?;
    let length = if header.payload_offset == 0 { length } else { length.min(header.payload_offset) };
    let slots = Slots { file, start, length, header };
    match change {
        KeyChange::Add { current, new, slot, time } => slots.add(current, new, *slot, *time, force),
        KeyChange::EraseSlot(slot) if *slot >= SLOTS => Err(slots.refuse(NO_SUCH_SLOT)),
        KeyChange::EraseSlot(slot) if !slots.header.slots[*slot].is_active && !force => {
            Err(slots.refuse("This key slot is free already"))
        }
        KeyChange::EraseSlot(slot) => slots.erase(&[*slot], force),
        KeyChange::ErasePassphrase(passphrase) => match &slots.opened_by(passphrase)?[..] {
            [] => Err(DiskError::WrongPassphrase { path: file.path().to_path_buf() }),
            found => slots.erase(found, force),
        },
    }
}

const NO_SUCH_SLOT: &str = "A LUKS disk has key slots 0 to 7";

struct Slots<'a> {
    file: &'a FencedFile,
    start: u64,
    /// Bytes up to the disk's content.
    length: u64,
    header: LuksHeader,
}

impl Slots<'_> {
    fn refuse(&self, reason: &str) -> DiskError {
        DiskError::BadOptions { reason: reason.into(), path: self.file.path().to_path_buf() }
    }

    fn random(&self, bytes: &mut [u8]) -> Result<(), DiskError> {
        random(bytes).map_err(|source| DiskError::host("make a key for", self.file.path(), source))
    }

    /// All slots that a passphrase opens.
    fn opened_by(&self, passphrase: &Passphrase) -> Result<Vec<usize>, DiskError> {
        let mut found = Vec::new();
        for slot in 0..SLOTS {
            if self.header.master_key_in(slot, self.file, self.start, passphrase)?.is_some() {
                found.push(slot);
            }
        }
        Ok(found)
    }

    fn add(
        &self,
        current: &Passphrase,
        new: &Passphrase,
        slot: Option<usize>,
        time: Duration,
        force: bool,
    ) -> Result<(), DiskError> {
        let header = &self.header;
        let slot = match slot {
            Some(slot) if slot >= SLOTS => return Err(self.refuse(NO_SUCH_SLOT)),
            Some(slot) if header.slots[slot].is_active && !force => {
                return Err(self.refuse("This key slot is in use. Erase it first, or choose another"));
            }
            Some(slot) => slot,
            None => header
                .slots
                .iter()
                .position(|slot| !slot.is_active)
                .ok_or_else(|| self.refuse("All eight key slots are in use. Erase one first"))?,
        };
        let place = self.place_of(slot)?;
        let master = header.master_key(self.file, self.start, current)?;
        // All passphrases together must stay quick enough for us to try.
        let others = header.rounds() - if header.slots[slot].is_active { u64::from(header.slots[slot].rounds) } else { 0 };
        let most = u64::from(MAX_ROUNDS).saturating_sub(others);
        if most < u64::from(MIN_ROUNDS) {
            return Err(self.refuse("The other passphrases of this disk take too long already"));
        }
        let rounds = rounds_in(header.hash, time).min(most as u32);
        let mut salt = [0; 32];
        self.random(&mut salt)?;
        let mut stripes = header.split(&master).map_err(|source| DiskError::host("make a key for", self.file.path(), source))?;
        let key = header.hash.stretch(new.bytes(), &salt, rounds, header.key_length);
        Xts::new(&key).ok_or_else(|| self.refuse("Its cipher cannot be used"))?.encrypt(0, &mut stripes);

        if header.slots[slot].is_active {
            self.set_state(slot, SLOT_FREE)?;
        }
        self.file.write_at(self.start + place, &stripes)?;
        let fields =
            [&rounds.to_be_bytes()[..], &salt, &((place / SECTOR as u64) as u32).to_be_bytes(), &(STRIPES as u32).to_be_bytes()];
        self.file.write_at(self.start + entry_of(slot) + 4, &fields.concat())?;
        self.file.flush()?;
        self.set_state(slot, SLOT_ACTIVE)
    }

    /// Where a slot's stripes go, from the header's start on: where its entry says, even if it is free.
    fn place_of(&self, slot: usize) -> Result<u64, DiskError> {
        let size = self.header.stripes_length();
        let place = self.header.slots[slot].offset;
        let overlaps =
            |other: &super::header::Slot| other.is_active && place < other.offset + size && other.offset < place + size;
        let others = self.header.slots.iter().enumerate().filter(|(index, _)| *index != slot);
        if place < HEADER_LENGTH as u64 || place + size > self.length || others.map(|(_, other)| other).any(overlaps) {
            let detail = "a key slot lies where something else is".into();
            return Err(DiskError::WrongFormat { expected: TITLE, detail, path: self.file.path().to_path_buf() });
        }
        Ok(place)
    }

    fn erase(&self, slots: &[usize], force: bool) -> Result<(), DiskError> {
        let stays = (0..SLOTS).any(|slot| self.header.slots[slot].is_active && !slots.contains(&slot));
        if !stays && !force {
            return Err(self.refuse("No other passphrase opens this disk; without this one, all that is on it is lost"));
        }
        for slot in slots {
            self.set_state(*slot, SLOT_FREE)?;
            // A place that is not the slot's own keeps what it holds; without its salt the stripes are worth little.
            self.file.write_at(self.start + entry_of(*slot) + 4, &[0; 4 + 32])?;
            if let Ok(place) = self.place_of(*slot) {
                let mut noise = vec![0; self.header.stripes_length() as usize];
                self.random(&mut noise)?;
                self.file.write_at(self.start + place, &noise)?;
            }
        }
        self.file.flush()
    }

    /// Says, durably, whether a slot is used.
    fn set_state(&self, slot: usize, state: u32) -> Result<(), DiskError> {
        self.file.write_at(self.start + entry_of(slot), &state.to_be_bytes())?;
        self.file.flush()
    }
}

/// Where a slot's entry stands in the header.
fn entry_of(slot: usize) -> u64 {
    (AT_SLOTS + slot * SLOT_LENGTH) as u64
}
