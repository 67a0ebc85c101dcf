//! One drive on an IDE cable: its task file, and the engine that moves sectors between the image, the data register and
//! the bus master. What a command means is in `ata_disk.rs` and `atapi_cdrom.rs`.
//!
//! ```text
//!  read:   command ─► Reading ──done──► PioIn (a block at a time) / DmaIn ──more──► Reading … ─► Idle
//!  write:  command ─► PioOut / DmaOut ──full──► Writing ──done, more──► PioOut / DmaOut … ─► (Flushing) ─► Idle
//! ```
//! Every request to the image has a token of its own. A reset forgets the token that was waited for, so what was asked
//! before it is dropped when it comes back, and nothing that comes back chooses where anything is written.
//! See: ATA/ATAPI-6 (T13/1410D), chapters 7 and 9.

use super::ata_disk::Disk;
use super::atapi_cdrom::Cdrom;
use super::bus_master::{BusMaster, Moved, Way};
use bitflags::bitflags;
use engine_bus::{Completion, Dma, Drive, DriveError, DriveOperation, DriveRequest, RestoreError};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use std::ops::Range;

/// Bytes in a sector of a disk.
pub const SECTOR_BYTES: usize = 512;
/// Bytes of user data in a block of a CD.
pub const CD_BLOCK_BYTES: usize = 2048;
/// Bytes of a block of a CD with its synchronisation, header and error correction.
pub const CD_RAW_BYTES: usize = 2352;
/// The most sectors asked of the image at once: whatever the pieces in which the bus master moves them, one access.
const MOST_SECTORS: u32 = 2048;
/// The most blocks of a CD asked of the image at once.
const MOST_BLOCKS: u32 = 64;
/// The largest buffer there can be.
const MOST_BUFFER: usize = CD_RAW_BYTES * MOST_BLOCKS as usize;

bitflags! {
    /// The status register.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Status: u8 {
        const BUSY = 0x80;
        const READY = 0x40;
        const SEEK_COMPLETE = 0x10;
        const DATA_REQUEST = 0x08;
        /// "CHECK" for packet devices.
        const ERROR = 0x01;
    }
}

/// Bits of the error register.
pub mod error_bits {
    pub const ABORTED: u8 = 0x04;
    pub const ID_NOT_FOUND: u8 = 0x10;
    pub const UNCORRECTABLE: u8 = 0x40;
}

/// The registers a command is given in. Those that 48-bit commands use remember the value before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFile {
    /// Features, sector count, LBA low, mid, high: the latest value and the one before it.
    pub features: [u8; 2],
    pub count: [u8; 2],
    pub low: [u8; 2],
    pub mid: [u8; 2],
    pub high: [u8; 2],
    pub device: u8,
}

/// What a drive is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// Nothing.
    Idle,
    /// The software reset bit is set.
    InReset,
    /// The image is read.
    Reading,
    /// The image is written.
    Writing,
    /// The image is flushed.
    Flushing,
    /// Ranges of the image are discarded, one after another.
    Discarding,
    /// The host reads the data register.
    PioIn,
    /// The host writes the data register.
    PioOut,
    /// The host writes a command packet to the data register.
    Packet,
    /// The bus master is to take the buffer.
    DmaIn,
    /// The bus master is to fill the buffer.
    DmaOut,
}

/// How data goes between host and drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Channel {
    Pio,
    Dma,
}

/// What the data of a write command is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// To be stored.
    Store,
    /// To be stored and made safe before the command ends.
    StoreSafely,
    /// A list of ranges to discard (TRIM).
    Discard,
}

/// The data transfer of the command under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    pub channel: Channel,
    pub purpose: Purpose,
    /// The next sector (or block) to ask for, how many are left, and how many are asked for now (of a list of ranges: its
    /// entries).
    pub lba: u64,
    pub left: u32,
    pub now: u32,
    /// Bytes that the host moves for each interrupt.
    pub block: usize,
    /// Whether the blocks of a CD are given with all their 2352 bytes.
    pub is_raw: bool,
    /// Whether it belongs to a command packet, which announces its blocks and its end in the task file.
    pub is_packet: bool,
}

impl Transfer {
    pub const NONE: Transfer = Transfer {
        channel: Channel::Pio,
        purpose: Purpose::Store,
        lba: 0,
        left: 0,
        now: 0,
        block: SECTOR_BYTES,
        is_raw: false,
        is_packet: false,
    };
}

/// What kind of drive it is.
pub enum Kind {
    Disk(Disk),
    Cdrom(Cdrom),
}

/// Which transfer mode software has chosen; it changes IDENTIFY only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modes {
    /// Multiword DMA mode, as a bit.
    pub multiword: u8,
    /// Ultra DMA mode, as a bit.
    pub ultra: u8,
}

/// A drive on the cable.
pub struct IdeDrive {
    // Wires
    pub drive: Drive,
    // State the guest can see; all of it is saved
    pub kind: Kind,
    pub task: TaskFile,
    pub status: Status,
    pub error: u8,
    pub modes: Modes,
    pub activity: Activity,
    pub transfer: Transfer,
    pub buffer: Vec<u8>,
    pub position: usize,
    block_end: usize,
    // What is under way
    /// The token of the request that is waited for.
    pending: Option<u64>,
    next_token: u64,
    /// The drive wants to interrupt; the channel takes it.
    pub interrupt: bool,
}

impl IdeDrive {
    pub fn new(drive: Drive, kind: Kind) -> Self {
        let mut new = Self {
            drive,
            kind,
            task: TaskFile::default(),
            status: Status::empty(),
            error: 0,
            modes: Modes { multiword: 4, ultra: 0 },
            activity: Activity::Idle,
            transfer: Transfer::NONE,
            buffer: Vec::new(),
            position: 0,
            block_end: 0,
            pending: None,
            next_token: 0,
            interrupt: false,
        };
        new.reset();
        new
    }

    /// Whether the drive owns its registers now, so that writes to them are lost.
    pub fn is_busy(&self) -> bool {
        self.status.contains(Status::BUSY)
    }

    fn forget_transfer(&mut self) {
        self.activity = Activity::Idle;
        self.pending = None;
        self.interrupt = false;
        self.transfer = Transfer::NONE;
        self.buffer.clear();
        (self.position, self.block_end) = (0, 0);
    }

    /// The RESET line: settings go back to their defaults, too.
    pub fn reset(&mut self) {
        self.modes = Modes { multiword: 4, ultra: 0 };
        self.task = TaskFile::default();
        match &mut self.kind {
            Kind::Disk(disk) => disk.reset(),
            Kind::Cdrom(cdrom) => {
                cdrom.reset();
                self.drive.set_locked(false);
            }
        }
        self.soft_reset();
    }

    /// Software reset has been asked for and not yet taken back.
    pub fn begin_soft_reset(&mut self) {
        self.forget_transfer();
        self.activity = Activity::InReset;
        self.status = Status::BUSY | Status::SEEK_COMPLETE;
    }

    /// The state after a software reset: the signature says what kind of drive this is.
    pub fn soft_reset(&mut self) {
        self.forget_transfer();
        self.task.device &= !0x10;
        self.error = 0x01; // Diagnostic code: passed
        self.put_signature();
        self.status = match self.kind {
            Kind::Disk(_) => Status::READY | Status::SEEK_COMPLETE,
            Kind::Cdrom(_) => Status::empty(),
        };
    }

    /// Puts the signature into the task file.
    pub fn put_signature(&mut self) {
        let (mid, high) = if matches!(self.kind, Kind::Disk(_)) { (0, 0) } else { (0x14, 0xeb) };
        (self.task.count, self.task.low) = ([1, 0], [1, 0]);
        (self.task.mid, self.task.high) = ([mid, 0], [high, 0]);
        self.task.device &= 0x10;
    }

    /// Ends the command well.
    pub fn succeed(&mut self) {
        self.forget_transfer();
        self.status = Status::READY | Status::SEEK_COMPLETE;
        self.interrupt = true;
    }

    /// Ends the command with bits of the error register.
    pub fn fail(&mut self, error: u8) {
        self.forget_transfer();
        self.error = error;
        self.status = Status::READY | Status::SEEK_COMPLETE | Status::ERROR;
        self.interrupt = true;
    }

    /// A command is written to the command register. The channel has checked that the drive is not busy.
    pub fn command(&mut self, command: u8) {
        self.forget_transfer();
        self.error = 0;
        match self.kind {
            Kind::Disk(_) => self.disk_command(command),
            Kind::Cdrom(_) => self.cdrom_command(command),
        }
    }

    fn unit_bytes(&self) -> usize {
        if matches!(self.kind, Kind::Disk(_)) { SECTOR_BYTES } else { CD_BLOCK_BYTES }
    }

    // Requests to the image

    fn submit(&mut self, activity: Activity, operation: DriveOperation) {
        let token = self.next_token;
        self.next_token = self.next_token.wrapping_add(1);
        self.pending = Some(token);
        self.activity = activity;
        self.status = Status::BUSY | Status::READY | Status::SEEK_COMPLETE;
        self.drive.submit(DriveRequest { token, operation });
    }

    fn read_operation(&self) -> DriveOperation {
        let bytes = self.unit_bytes();
        DriveOperation::Read { offset: self.transfer.lba * bytes as u64, len: self.transfer.now as usize * bytes }
    }

    fn write_operation(&self) -> DriveOperation {
        // A copy stays here, so that saved state can ask again.
        DriveOperation::Write { offset: self.transfer.lba * SECTOR_BYTES as u64, data: self.buffer.clone() }
    }

    /// Starts (or goes on with) reading what is left of the transfer.
    pub fn read_on(&mut self) {
        let most = if matches!(self.kind, Kind::Disk(_)) { MOST_SECTORS } else { MOST_BLOCKS };
        self.transfer.now = self.transfer.left.min(most);
        self.submit(Activity::Reading, self.read_operation());
    }

    /// Flushes the image; the command ends with it.
    pub fn flush(&mut self) {
        self.submit(Activity::Flushing, DriveOperation::Flush);
    }

    /// Something came back from the image.
    pub fn completed(&mut self, completion: Completion) {
        if self.pending != Some(completion.token) {
            return; // Asked before a reset.
        }
        self.pending = None;
        match completion.result {
            Ok(data) => self.went_well(data),
            Err(error) => self.went_wrong(error),
        }
    }

    fn went_well(&mut self, data: Vec<u8>) {
        let now = self.transfer.now;
        match self.activity {
            Activity::Reading => {
                self.buffer = if self.transfer.is_raw { super::atapi_cdrom::raw_blocks(self.transfer.lba, &data) } else { data };
                self.position = 0;
                self.transfer.lba += u64::from(now);
                self.transfer.left = self.transfer.left.saturating_sub(now);
                self.offer_buffer();
            }
            Activity::Writing => {
                self.transfer.lba += u64::from(now);
                self.transfer.left = self.transfer.left.saturating_sub(now);
                if self.transfer.left > 0 {
                    self.accept_data();
                    self.interrupt = self.transfer.channel == Channel::Pio;
                } else if self.transfer.purpose == Purpose::StoreSafely {
                    self.flush();
                } else {
                    self.succeed();
                }
            }
            Activity::Flushing => self.succeed(),
            Activity::Discarding => self.discard_on(),
            _ => {}
        }
    }

    fn went_wrong(&mut self, error: DriveError) {
        if matches!(self.kind, Kind::Cdrom(_)) {
            return self.cdrom_read_failed(error);
        }
        let failed_at = self.transfer.lba;
        let bits = match (error, self.activity) {
            (DriveError::OutOfRange, _) => error_bits::ID_NOT_FOUND,
            (DriveError::Io, Activity::Reading) => error_bits::UNCORRECTABLE,
            _ => error_bits::ABORTED,
        };
        self.put_lba(failed_at);
        self.fail(bits);
    }

    // Data to the host

    /// Offers the buffer to the host: all that a command returns, or the first part of it.
    pub fn offer(&mut self, buffer: Vec<u8>) {
        self.buffer = buffer;
        self.position = 0;
        self.offer_buffer();
    }

    fn offer_buffer(&mut self) {
        match self.transfer.channel {
            Channel::Dma => {
                self.activity = Activity::DmaIn;
                self.status = Status::READY | Status::SEEK_COMPLETE | Status::DATA_REQUEST;
            }
            Channel::Pio => self.offer_block(),
        }
    }

    fn offer_block(&mut self) {
        let len = self.transfer.block.max(2).min(self.buffer.len() - self.position);
        self.block_end = self.position + len;
        self.activity = Activity::PioIn;
        self.status = Status::READY | Status::SEEK_COMPLETE | Status::DATA_REQUEST;
        self.interrupt = true;
        if self.transfer.is_packet {
            self.announce_packet_block(len);
        }
    }

    /// The host has taken a block, or the bus master the whole buffer.
    fn taken(&mut self) {
        if self.position < self.buffer.len() {
            self.offer_block();
        } else if self.transfer.left > 0 {
            self.read_on();
        } else if self.transfer.is_packet {
            self.packet_done();
        } else {
            // The interrupt came with the last block; only DMA has one of its own at the end.
            let by_dma = self.transfer.channel == Channel::Dma;
            self.succeed();
            self.interrupt = by_dma;
        }
    }

    /// Reads the data register.
    pub fn read_data(&mut self, bytes: usize) -> u32 {
        if self.activity != Activity::PioIn {
            return 0;
        }
        let mut value = [0; 4];
        for byte in value.iter_mut().take(bytes) {
            if self.position < self.block_end {
                *byte = self.buffer.get(self.position).copied().unwrap_or(0);
                self.position += 1;
            }
        }
        if self.position >= self.block_end {
            self.taken();
        }
        u32::from_le_bytes(value)
    }

    /// Reads `bytes` bytes from the data register again and again, but not the block's last: says how many it put `into`.
    pub fn read_ready(&mut self, bytes: usize, into: &mut [u8]) -> usize {
        if self.activity != Activity::PioIn {
            return 0;
        }
        let ready = self.buffer.get(self.position..self.block_end).unwrap_or(&[]);
        let most = ready.len().saturating_sub(1).min(into.len());
        let (into, ready) = (&mut into[..most - most % bytes], &ready[..most - most % bytes]);
        into.copy_from_slice(ready);
        self.position += ready.len();
        ready.len()
    }

    // Data from the host

    /// Asks the host for the next part of a write.
    pub fn accept_data(&mut self) {
        let most = match self.transfer.channel {
            Channel::Pio => (self.transfer.block / SECTOR_BYTES).max(1) as u32,
            Channel::Dma => MOST_SECTORS,
        };
        self.transfer.now = self.transfer.left.min(most);
        self.buffer.clear();
        self.buffer.resize(self.transfer.now as usize * SECTOR_BYTES, 0);
        self.position = 0;
        self.block_end = self.buffer.len();
        self.activity = if self.transfer.channel == Channel::Pio { Activity::PioOut } else { Activity::DmaOut };
        self.status = Status::READY | Status::SEEK_COMPLETE | Status::DATA_REQUEST;
    }

    /// Asks the host for a command packet.
    pub fn accept_packet(&mut self, bytes: usize) {
        self.buffer.clear();
        self.buffer.resize(bytes, 0);
        (self.position, self.block_end) = (0, bytes);
        self.activity = Activity::Packet;
        self.status = Status::READY | Status::SEEK_COMPLETE | Status::DATA_REQUEST;
    }

    /// Writes the data register.
    pub fn write_data(&mut self, bytes: usize, value: u32) {
        if !matches!(self.activity, Activity::PioOut | Activity::Packet) {
            return;
        }
        for byte in value.to_le_bytes().iter().take(bytes) {
            if let Some(place) = self.buffer.get_mut(self.position) {
                *place = *byte;
                self.position += 1;
            }
        }
        if self.position >= self.block_end {
            if self.activity == Activity::Packet { self.packet_received() } else { self.filled() }
        }
    }

    fn filled(&mut self) {
        if self.transfer.purpose == Purpose::Discard {
            self.position = 0;
            self.discard_on();
        } else {
            self.submit(Activity::Writing, self.write_operation());
        }
    }

    /// Discards the next ranges of the list in the buffer, those that follow each other as one, or ends the command.
    fn discard_on(&mut self) {
        // An entry says at most 65535 sectors, so a long stretch comes in many.
        let mut wanted: Option<Range<u64>> = None;
        self.transfer.now = 0;
        while let Some(entry) = self.buffer.get(self.position..self.position + 8) {
            let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
            let (lba, sectors) = (entry & 0xffff_ffff_ffff, entry >> 48);
            wanted = match wanted {
                wanted if sectors == 0 => wanted,
                None => Some(lba..lba + sectors),
                Some(wanted) if wanted.end == lba => Some(wanted.start..lba + sectors),
                Some(_) => break,
            };
            self.position += 8;
            self.transfer.now += 1;
        }
        match wanted {
            Some(sectors) => {
                let (offset, len) = (sectors.start * SECTOR_BYTES as u64, (sectors.end - sectors.start) * SECTOR_BYTES as u64);
                self.submit(Activity::Discarding, DriveOperation::Discard { offset, len });
            }
            None => self.succeed(),
        }
    }

    // Bus master

    /// Whether the drive waits for the bus master.
    pub fn wants_dma(&self) -> bool {
        matches!(self.activity, Activity::DmaIn | Activity::DmaOut)
    }

    /// Moves the buffer with a started bus master.
    pub fn dma(&mut self, bus_master: &mut BusMaster, dma: &Dma) {
        let is_in = self.activity == Activity::DmaIn;
        let way = if is_in { Way::ToMemory(&self.buffer) } else { Way::FromMemory(&mut self.buffer) };
        match bus_master.transfer(dma, way) {
            Moved::All if is_in => {
                self.position = self.buffer.len();
                self.taken();
            }
            Moved::All => self.filled(),
            Moved::TableTooShort => {
                // As on the PIIX: the engine stops without an interrupt, and software times out.
                self.succeed();
                self.interrupt = false;
            }
            Moved::Fault(fault) => {
                engine_base::warn_limited!(target: "ide", %fault, "bus-master transfer to or from where there is no RAM");
                self.fail(error_bits::ABORTED);
            }
        }
    }

    // Saved state

    pub fn save(&self) -> SavedIdeDrive {
        let Self {
            drive,
            kind,
            task,
            status,
            error,
            modes,
            activity,
            transfer,
            buffer,
            position,
            block_end,
            pending: _,
            next_token: _,
            interrupt: _,
        } = self;
        SavedIdeDrive {
            kind: match kind {
                Kind::Disk(disk) => SavedKind::Disk(disk.save()),
                Kind::Cdrom(cdrom) => SavedKind::Cdrom(cdrom.save(drive)),
            },
            task: *task,
            status: status.bits(),
            error: *error,
            modes: *modes,
            activity: *activity,
            transfer: *transfer,
            buffer: ByteBuf::from(buffer.clone()),
            position: *position as u64,
            block_end: *block_end as u64,
        }
    }

    /// Checks saved state; nothing is changed when it is refused.
    pub fn restore(&mut self, saved: SavedIdeDrive) -> Result<(), RestoreError> {
        let SavedIdeDrive { kind, task, status, error, modes, activity, transfer, buffer, position, block_end } = saved;
        let buffer = buffer.into_vec();
        let impossible = |what: &str| Err(RestoreError::impossible(what));
        if buffer.len() > MOST_BUFFER.max(MOST_SECTORS as usize * SECTOR_BYTES)
            || block_end > buffer.len() as u64
            || position > buffer.len() as u64
        {
            return impossible("an IDE buffer or position beyond its end");
        }
        if transfer.now > MOST_SECTORS || transfer.lba >> 48 != 0 {
            return impossible("an IDE transfer of more sectors than a command can have");
        }
        if transfer.block == 0 || transfer.block > 0x1_0000 {
            return impossible("an IDE block size");
        }
        let length = |sectors: u32| buffer.len() == sectors as usize * SECTOR_BYTES;
        match activity {
            Activity::Writing if !length(transfer.now) || transfer.now > transfer.left => {
                return impossible("a write without its data");
            }
            Activity::DmaOut | Activity::PioOut if !length(transfer.now) => return impossible("a write without its buffer"),
            Activity::Packet if buffer.len() != 12 => return impossible("a command packet that has not 12 bytes"),
            _ => {}
        }
        match (&mut self.kind, kind) {
            (Kind::Disk(disk), SavedKind::Disk(saved)) => disk.restore(saved)?,
            (Kind::Cdrom(cdrom), SavedKind::Cdrom(saved)) => cdrom.restore(saved, &self.drive),
            _ => return impossible("a disk where there is a CD-ROM drive, or the other way round"),
        }
        self.task = task;
        self.status = Status::from_bits_truncate(status);
        (self.error, self.modes, self.activity, self.transfer) = (error, modes, activity, transfer);
        (self.buffer, self.position, self.block_end) = (buffer, position as usize, block_end as usize);
        self.pending = None;
        self.interrupt = false;
        self.ask_again();
        Ok(())
    }

    /// Gives the image the request that was under way when the state was saved.
    fn ask_again(&mut self) {
        match self.activity {
            Activity::Reading => self.submit(Activity::Reading, self.read_operation()),
            Activity::Writing => self.submit(Activity::Writing, self.write_operation()),
            Activity::Flushing => self.flush(),
            Activity::Discarding => {
                self.position = self.position.saturating_sub(8 * self.transfer.now as usize);
                self.discard_on();
            }
            _ => {}
        }
    }
}

/// The saved form of a drive.
#[derive(Serialize, Deserialize)]
pub struct SavedIdeDrive {
    kind: SavedKind,
    task: TaskFile,
    status: u8,
    error: u8,
    modes: Modes,
    activity: Activity,
    transfer: Transfer,
    buffer: ByteBuf,
    position: u64,
    block_end: u64,
}

#[derive(Serialize, Deserialize)]
enum SavedKind {
    Disk(super::ata_disk::SavedDisk),
    Cdrom(super::atapi_cdrom::SavedCdrom),
}
