//! Data between host, floppy disk and image: reading, writing, verifying and formatting, sector by sector along a track.
//!
//! ```text
//!  read:   command ─► Reading ──done──► ToHost ──taken──► next side, or Result
//!  write:  command ─► FromHost ──filled──► Writing ──done──► next side, or Result
//! ```

use super::{
    ABNORMAL, DATA_ERROR, DMA_RETRY_NANOS, END_OF_CYLINDER, Fdc, MISSING_ADDRESS_MARK, MOST_SECTORS, NO_DATA, NOT_WRITABLE,
    Phase, SECTOR_BYTES,
};
use engine_base::warn_limited;
use engine_bus::{Completion, Drive, DriveError, DriveOperation, DriveRequest};
use serde::{Deserialize, Serialize};

/// What a data transfer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Job {
    Read,
    /// No sector has a deleted mark, so that the first one ends it.
    ReadDeleted,
    ReadTrack,
    Verify,
    Write,
    Format,
}

/// A data transfer under way. Sectors `sector` to `end` of a track, then perhaps of the other side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    pub job: Job,
    pub unit: u8,
    pub is_multi_track: bool,
    pub cylinder: u8,
    pub head: u8,
    pub sector: u8,
    pub end: u8,
    /// What is on its way between host and disk, and how much of it the host has moved.
    #[serde(with = "serde_bytes")]
    pub buffer: Vec<u8>,
    pub position: usize,
    /// The DMA controller has said that it has had enough.
    pub is_last: bool,
    /// Formatting: the address of the sector that is being filled; those that are left are in the buffer.
    #[serde(with = "serde_bytes")]
    pub to_fill: Vec<u8>,
    pub filler: u8,
}

impl Fdc {
    /// Why the disk in a drive cannot be read: bits of status register 1.
    pub fn unreadable(&self, unit: u8) -> Option<u8> {
        match self.disk(unit) {
            None => Some(MISSING_ADDRESS_MARK | NO_DATA),
            Some((_, geometry)) if geometry.rates >> self.rate & 1 == 0 => Some(MISSING_ADDRESS_MARK),
            Some(_) => None,
        }
    }

    pub fn read_id(&mut self, bytes: &[u8]) {
        let (unit, head) = (bytes[1] & 3, bytes[1] >> 2 & 1);
        let track = self.units.get(usize::from(unit)).map_or(0, |place| place.track);
        let missing = match self.disk(unit) {
            Some((_, geometry)) if head >= geometry.heads || track >= geometry.tracks => Some(MISSING_ADDRESS_MARK),
            _ => self.unreadable(unit),
        };
        let status = if missing.is_some() { ABNORMAL } else { 0 };
        self.finish_with(status | bytes[1] & 7, missing.unwrap_or(0), [track, head, 1]);
    }

    pub fn start_transfer(&mut self, job: Job, bytes: &[u8]) {
        let [_, select, cylinder, head, sector, size, end, ..] = *bytes else { return };
        let transfer = Transfer {
            job,
            unit: select & 3,
            is_multi_track: bytes[0] & 0x80 != 0,
            cylinder,
            head: head & 1,
            sector: if job == Job::ReadTrack { 1 } else { sector },
            end,
            buffer: Vec::new(),
            position: 0,
            is_last: false,
            to_fill: Vec::new(),
            filler: 0,
        };
        if let Some(missing) = self.unreadable(transfer.unit) {
            return self.finish(&transfer, ABNORMAL, missing);
        }
        if let Some(place) = self.units.get_mut(usize::from(transfer.unit)) {
            place.track = cylinder.min(84);
        }
        if size != 2 {
            return self.finish(&transfer, ABNORMAL, NO_DATA);
        }
        self.next_stretch(transfer);
    }

    /// Begins the sectors from where the transfer stands to the end of its track.
    pub fn next_stretch(&mut self, mut transfer: Transfer) {
        let Some((drive, geometry)) = self.disk(transfer.unit) else {
            return self.finish(&transfer, ABNORMAL, MISSING_ADDRESS_MARK | NO_DATA);
        };
        // A track that is to be read beyond its last sector is read up to it, and then has no more.
        let last = transfer.end.min(geometry.sectors);
        let Some(lba) = geometry.lba(transfer.cylinder, transfer.head, transfer.sector).filter(|_| last >= transfer.sector)
        else {
            return self.finish(&transfer, ABNORMAL, NO_DATA);
        };
        let sectors = match transfer.job {
            Job::ReadDeleted => 1,
            _ => (last - transfer.sector + 1).min(MOST_SECTORS),
        };
        let len = usize::from(sectors) * SECTOR_BYTES;
        transfer.position = 0;
        if transfer.job != Job::Write {
            let read = DriveOperation::Read { offset: lba * SECTOR_BYTES as u64, len };
            let drive = drive.clone();
            transfer.buffer.clear();
            return self.submit(&drive, read, Phase::Reading(transfer));
        }
        if is_write_protected(drive) {
            return self.finish(&transfer, ABNORMAL, NOT_WRITABLE);
        }
        transfer.buffer = vec![0; len];
        self.phase = Phase::FromHost(transfer);
        self.ask_host();
    }

    pub fn submit(&mut self, drive: &Drive, operation: DriveOperation, phase: Phase) {
        let token = self.next_token;
        self.next_token = self.next_token.wrapping_add(1);
        self.pending = Some(token);
        self.phase = phase;
        drive.submit(DriveRequest { token, operation });
    }

    /// Gives the image the request that was under way when the state was saved.
    pub fn ask_again(&mut self) {
        match std::mem::replace(&mut self.phase, Phase::Command(Vec::new())) {
            Phase::Reading(transfer) => self.next_stretch(transfer),
            Phase::Writing(mut transfer) if transfer.job == Job::Format => {
                let again = std::mem::take(&mut transfer.to_fill);
                transfer.buffer.splice(..0, again);
                self.fill_next(transfer);
            }
            Phase::Writing(transfer) => self.write_buffer(transfer),
            phase => self.phase = phase,
        }
    }

    /// The host is to move data: by DMA now or when its channel is ready, or byte by byte with an interrupt.
    pub fn ask_host(&mut self) {
        if self.uses_dma() { self.run_dma() } else { self.set_interrupt(true) }
    }

    pub fn run_dma(&mut self) {
        match std::mem::replace(&mut self.phase, Phase::Command(Vec::new())) {
            Phase::ToHost(mut transfer) => {
                let moved = self.dma.write_memory(transfer.buffer.get(transfer.position..).unwrap_or_default());
                transfer.position += moved.bytes;
                transfer.is_last = moved.terminal_count;
                let is_over = transfer.is_last || transfer.position >= transfer.buffer.len();
                self.phase = Phase::ToHost(transfer);
                if is_over { self.emptied() } else { self.retry_later() }
            }
            Phase::FromHost(mut transfer) => {
                let position = transfer.position.min(transfer.buffer.len());
                let moved = self.dma.read_memory(&mut transfer.buffer[position..]);
                transfer.position = position + moved.bytes;
                transfer.is_last = moved.terminal_count;
                let is_over = transfer.is_last || transfer.position >= transfer.buffer.len();
                self.phase = Phase::FromHost(transfer);
                if is_over { self.filled() } else { self.retry_later() }
            }
            phase => self.phase = phase,
        }
    }

    pub fn retry_later(&self) {
        self.timer.set(self.clock.now().after_nanos(DMA_RETRY_NANOS));
    }

    /// The host has all it wants of what was read.
    pub fn emptied(&mut self) {
        let Phase::ToHost(transfer) = std::mem::replace(&mut self.phase, Phase::Command(Vec::new())) else { return };
        let sectors = transfer.position.div_ceil(SECTOR_BYTES);
        self.go_on(transfer, sectors);
    }

    /// The host has given all there is to write.
    pub fn filled(&mut self) {
        let Phase::FromHost(mut transfer) = std::mem::replace(&mut self.phase, Phase::Command(Vec::new())) else { return };
        if transfer.job == Job::Format {
            return self.fill_next(transfer);
        }
        // The rest of a sector that the host has not filled is zero.
        let len = transfer.position.next_multiple_of(SECTOR_BYTES).min(transfer.buffer.len());
        transfer.buffer[transfer.position.min(len)..].fill(0);
        transfer.buffer.truncate(len);
        self.write_buffer(transfer);
    }

    pub fn write_buffer(&mut self, transfer: Transfer) {
        let place = self.disk(transfer.unit).and_then(|(drive, geometry)| {
            let lba = geometry.lba(transfer.cylinder, transfer.head, transfer.sector)?;
            Some((drive.clone(), lba))
        });
        let Some((drive, lba)) = place else { return self.finish(&transfer, ABNORMAL, NO_DATA) };
        let write = DriveOperation::Write { offset: lba * SECTOR_BYTES as u64, data: transfer.buffer.clone() };
        self.submit(&drive, write, Phase::Writing(transfer));
    }

    /// So many sectors are done: to the next ones, to the other side, or to the end.
    pub fn go_on(&mut self, mut transfer: Transfer, sectors: usize) {
        let next = usize::from(transfer.sector) + sectors;
        let is_track_over = next > usize::from(transfer.end);
        transfer.sector = next as u8;
        let to_other_side = is_track_over && transfer.is_multi_track && transfer.head == 0;
        if to_other_side {
            (transfer.sector, transfer.head) = (1, 1);
        } else if is_track_over {
            transfer.sector = 1;
            transfer.cylinder = transfer.cylinder.wrapping_add(1);
            transfer.head = if transfer.is_multi_track { 0 } else { transfer.head };
        }
        let is_over = is_track_over && !to_other_side;
        match transfer.job {
            _ if transfer.is_last => self.finish(&transfer, 0, 0),
            Job::ReadDeleted => self.finish(&transfer, 0, 0),
            // VERIFY has no DMA to end it: the end of the track is its end.
            Job::Verify if is_over => self.finish(&transfer, 0, 0),
            _ if is_over => self.finish(&transfer, ABNORMAL, END_OF_CYLINDER),
            _ => self.next_stretch(transfer),
        }
    }

    pub fn format_track(&mut self, bytes: &[u8]) {
        let [_, select, size, sectors, _gap, filler] = *bytes else { return };
        let (unit, head) = (select & 3, select >> 2 & 1);
        let cylinder = self.units.get(usize::from(unit)).map_or(0, |place| place.track);
        let transfer = Transfer {
            job: Job::Format,
            unit,
            is_multi_track: false,
            cylinder,
            head,
            sector: 1,
            end: sectors,
            buffer: vec![0; usize::from(sectors) * 4],
            position: 0,
            is_last: false,
            to_fill: Vec::new(),
            filler,
        };
        if let Some(missing) = self.unreadable(unit) {
            return self.finish(&transfer, ABNORMAL, missing);
        }
        let is_protected = self.disk(unit).is_some_and(|(drive, _)| is_write_protected(drive));
        if is_protected || size != 2 || sectors == 0 {
            return self.finish(&transfer, ABNORMAL, NOT_WRITABLE);
        }
        self.phase = Phase::FromHost(transfer);
        self.ask_host();
    }

    /// Fills the next sector of a track that is formatted. The host has given four bytes for each: cylinder, head, sector, size.
    pub fn fill_next(&mut self, mut transfer: Transfer) {
        while let Some(id) = transfer.buffer.get(..4).map(|id| [id[0], id[1], id[2], id[3]]) {
            let place = self.disk(transfer.unit).and_then(|(drive, geometry)| {
                let [cylinder, head, sector, _] = id;
                let is_here = cylinder == transfer.cylinder && head == transfer.head;
                Some((drive.clone(), geometry.lba(cylinder, head, sector).filter(|_| is_here)?))
            });
            let filler = transfer.filler;
            transfer.buffer.drain(..4);
            // Sectors that the image has no place for (other layouts, copy protections) cannot be kept.
            let Some((drive, lba)) = place else {
                warn_limited!(target: "isa-fdc", ?id, "a formatted sector that the disk image has no place for");
                continue;
            };
            transfer.to_fill = id.to_vec();
            let write = DriveOperation::Write { offset: lba * SECTOR_BYTES as u64, data: vec![filler; SECTOR_BYTES] };
            return self.submit(&drive, write, Phase::Writing(transfer));
        }
        self.finish(&transfer, 0, 0);
    }

    pub fn completed(&mut self, completion: Completion) {
        if self.pending != Some(completion.token) {
            return; // Asked before a reset.
        }
        self.pending = None;
        match (std::mem::replace(&mut self.phase, Phase::Command(Vec::new())), completion.result) {
            (Phase::Reading(mut transfer), Ok(data)) => {
                if transfer.job == Job::Verify {
                    return self.go_on(transfer, data.len() / SECTOR_BYTES);
                }
                transfer.buffer = data;
                transfer.position = 0;
                self.phase = Phase::ToHost(transfer);
                self.ask_host();
            }
            (Phase::Writing(mut transfer), Ok(_)) => {
                if transfer.job == Job::Format {
                    transfer.to_fill.clear();
                    return self.fill_next(transfer);
                }
                let sectors = transfer.buffer.len() / SECTOR_BYTES;
                self.go_on(transfer, sectors);
            }
            (Phase::Reading(transfer) | Phase::Writing(transfer), Err(error)) => {
                let why = match error {
                    DriveError::NoMedium => MISSING_ADDRESS_MARK | NO_DATA,
                    DriveError::ReadOnly => NOT_WRITABLE,
                    DriveError::OutOfRange => NO_DATA,
                    _ => DATA_ERROR,
                };
                self.finish(&transfer, ABNORMAL, why);
            }
            (phase, _) => self.phase = phase,
        }
    }

    pub fn finish(&mut self, transfer: &Transfer, status_0: u8, status_1: u8) {
        let place = [transfer.cylinder, transfer.head, transfer.sector];
        self.finish_with(status_0 | transfer.head << 2 | transfer.unit, status_1, place);
    }

    pub fn finish_with(&mut self, status_0: u8, status_1: u8, [cylinder, head, sector]: [u8; 3]) {
        self.timer.cancel();
        self.answer(&[status_0, status_1, 0, cylinder, head, sector, 2]);
        self.set_interrupt(true);
    }
}

/// Whether the disk in a drive may not be written.
pub fn is_write_protected(drive: &Drive) -> bool {
    drive.medium().is_some_and(|medium| medium.read_only || medium.image.read_only())
}
