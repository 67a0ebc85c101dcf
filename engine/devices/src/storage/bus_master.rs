//! One channel of the bus-master IDE function: its three registers and the walk through the table of physical regions.
//! A region is at least two bytes, so a transfer of so many bytes bounds the entries that are read for it.
//! See: SFF-8038i revision 1.0, "Bus Master Programming Interface for IDE ATA Controllers".

use engine_bus::{Dma, DmaFault, RestoreError};
use serde::{Deserialize, Serialize};

const COMMAND: u16 = 0;
const STATUS: u16 = 2;
const TABLE: u16 = 4;

const START: u8 = 1 << 0;
/// Bus master writes memory: the drive is read.
const TO_MEMORY: u8 = 1 << 3;

const ACTIVE: u8 = 1 << 0;
const ERROR: u8 = 1 << 1;
const INTERRUPT: u8 = 1 << 2;
/// Set by software to say that the drives can do DMA; means nothing to the hardware.
const DRIVES_CAPABLE: u8 = 3 << 5;

const END_OF_TABLE: u32 = 1 << 31;

/// The registers and where the walk stands. Its fields are its saved form.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusMaster {
    command: u8,
    status: u8,
    table: u32,
    /// Address of the next table entry.
    next: u32,
    /// What is left of the region that the walk is in.
    address: u32,
    left: u32,
    is_last: bool,
}

/// Which way the bytes go.
pub enum Way<'a> {
    /// From the drive: these bytes go into memory.
    ToMemory(&'a [u8]),
    /// To the drive: this is filled from memory.
    FromMemory(&'a mut [u8]),
}

/// How a transfer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// All bytes have found a place.
    All,
    /// The table ended first.
    TableTooShort,
    /// Memory did not answer.
    Fault(DmaFault),
}

impl BusMaster {
    /// Whether software has started it, so that a drive with data may go ahead.
    pub fn is_started(&self) -> bool {
        self.status & ACTIVE != 0
    }

    pub fn read(&self, register: u16) -> u8 {
        match register {
            COMMAND => self.command,
            STATUS => self.status,
            TABLE..8 => self.table.to_le_bytes()[usize::from(register - TABLE) & 3],
            _ => 0,
        }
    }

    /// Writes a byte; returns whether the engine has just been started.
    pub fn write(&mut self, register: u16, value: u8) -> bool {
        match register {
            COMMAND => {
                let before = std::mem::replace(&mut self.command, value & (START | TO_MEMORY));
                if value & START == 0 {
                    self.status &= !ACTIVE;
                } else if before & START == 0 {
                    self.status |= ACTIVE;
                    (self.next, self.left, self.is_last) = (self.table, 0, false);
                    return true;
                }
            }
            STATUS => {
                let kept = self.status & ACTIVE | self.status & !value & (ERROR | INTERRUPT);
                self.status = kept | value & DRIVES_CAPABLE;
            }
            TABLE..8 => {
                let mut bytes = self.table.to_le_bytes();
                bytes[usize::from(register - TABLE) & 3] = value;
                self.table = u32::from_le_bytes(bytes) & !3;
            }
            _ => {}
        }
        false
    }

    /// The channel's interrupt line has risen.
    pub fn note_interrupt(&mut self) {
        self.status |= INTERRUPT;
    }

    /// The drive has ended its command: the engine is idle unless the table describes more.
    pub fn end(&mut self) {
        if self.is_last && self.left == 0 {
            self.status &= !ACTIVE;
        }
    }

    /// The drive has failed its command.
    pub fn stop(&mut self) {
        self.status &= !ACTIVE;
    }

    /// Moves bytes along the table.
    pub fn transfer(&mut self, dma: &Dma, mut way: Way<'_>) -> Moved {
        let total = match &way {
            Way::ToMemory(bytes) => bytes.len(),
            Way::FromMemory(bytes) => bytes.len(),
        };
        let mut done = 0;
        while done < total {
            if self.left == 0
                && let Err(end) = self.next_region(dma)
            {
                self.status &= !ACTIVE;
                if matches!(end, Moved::Fault(_)) {
                    self.status |= ERROR;
                }
                return end;
            }
            let now = (total - done).min(self.left as usize);
            let moved = match &mut way {
                Way::ToMemory(bytes) => dma.write(self.address.into(), &bytes[done..done + now]),
                Way::FromMemory(bytes) => dma.read(self.address.into(), &mut bytes[done..done + now]),
            };
            if let Err(fault) = moved {
                self.status = self.status & !ACTIVE | ERROR;
                return Moved::Fault(fault);
            }
            done += now;
            self.left -= now as u32;
            self.address = self.address.wrapping_add(now as u32);
        }
        Moved::All
    }

    fn next_region(&mut self, dma: &Dma) -> Result<(), Moved> {
        if self.is_last {
            return Err(Moved::TableTooShort);
        }
        let entry: [u8; 8] = dma.read_array(self.next.into()).map_err(Moved::Fault)?;
        let entry = u64::from_le_bytes(entry);
        let (address, count) = (entry as u32, (entry >> 32) as u32);
        self.next = self.next.wrapping_add(8);
        self.address = address & !1;
        self.left = match count & 0xfffe {
            0 => 0x1_0000,
            count => count,
        };
        self.is_last = count & END_OF_TABLE != 0;
        Ok(())
    }

    /// Checks a restored one as register writes would.
    pub fn checked(mut self) -> Result<Self, RestoreError> {
        self.command &= START | TO_MEMORY;
        self.status &= ACTIVE | ERROR | INTERRUPT | DRIVES_CAPABLE;
        self.table &= !3;
        if self.left > 0x1_0000 {
            return Err(RestoreError::impossible("a DMA region of more than 64 KiB"));
        }
        Ok(self)
    }
}
