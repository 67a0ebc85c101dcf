//! ATA hard disk: what its commands mean. Done: 28- and 48-bit addresses and cylinder/head/sector, PIO, multiple sectors,
//! DMA, flush, TRIM, power commands, SET FEATURES. Left out: SMART, security, streaming, tagged queues; they are aborted,
//! and IDENTIFY DEVICE says so.
//! See: ATA/ATAPI-6 (T13/1410D), chapter 8; ATA8-ACS for DATA SET MANAGEMENT.

use super::ide_drive::{Channel, IdeDrive, Kind, Modes, Purpose, SECTOR_BYTES, Transfer, error_bits};
use engine_bus::RestoreError;
use serde::{Deserialize, Serialize};

/// The most sectors in one block of READ MULTIPLE.
const MOST_MULTIPLE: u8 = 16;
/// The most 512-byte blocks of ranges that one TRIM may bring.
const MOST_TRIM_BLOCKS: u32 = 8;
const HEADS: u8 = 16;
const SECTORS_PER_TRACK: u8 = 63;
const MOST_CYLINDERS: u64 = 16383;

/// What belongs to a disk alone.
pub struct Disk {
    // What the disk is
    sectors: u64,
    serial: String,
    // State the guest can see; all of it is saved
    settings: SavedDisk,
}

/// The saved form: a disk's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDisk {
    heads: u8,
    sectors_per_track: u8,
    /// Sectors in a block of READ MULTIPLE; 0 while the command is not set up.
    multiple: u8,
    write_cache: bool,
}

impl SavedDisk {
    const FRESH: SavedDisk =
        SavedDisk { heads: HEADS, sectors_per_track: SECTORS_PER_TRACK, multiple: MOST_MULTIPLE, write_cache: true };
}

/// Which address a command is given in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Address {
    /// 28 bits, or cylinder, head and sector.
    Short,
    /// 48 bits.
    Long,
}

impl Disk {
    pub fn new(sectors: u64, serial: String) -> Self {
        Self { sectors, serial, settings: SavedDisk::FRESH }
    }

    pub fn reset(&mut self) {
        self.settings = SavedDisk::FRESH;
    }

    pub fn save(&self) -> SavedDisk {
        self.settings
    }

    pub fn restore(&mut self, saved: SavedDisk) -> Result<(), RestoreError> {
        let SavedDisk { heads, sectors_per_track, multiple, write_cache: _ } = saved;
        let possible = (1..=16).contains(&heads) && sectors_per_track > 0 && is_multiple(multiple);
        if !possible {
            return Err(RestoreError::impossible("a disk geometry or block size that cannot be set"));
        }
        self.settings = saved;
        Ok(())
    }

    /// The data of IDENTIFY DEVICE.
    fn identify(&self, modes: Modes) -> Vec<u8> {
        let settings = &self.settings;
        let cylinders = |per_cylinder: u64| (self.sectors / per_cylinder).clamp(1, MOST_CYLINDERS) as u16;
        let native = cylinders(u64::from(HEADS) * u64::from(SECTORS_PER_TRACK));
        let per_cylinder = u16::from(settings.heads) * u16::from(settings.sectors_per_track);
        let current = cylinders(per_cylinder.into());
        let current_sectors = u32::from(current) * u32::from(per_cylinder);
        let lba28 = self.sectors.min(0x0fff_ffff) as u32;
        let mut words = [0_u16; 256];
        words[0] = 0x0040; // Not removable
        words[1] = native;
        words[3] = HEADS.into();
        words[6] = SECTORS_PER_TRACK.into();
        put_text(&mut words[10..20], &self.serial);
        put_text(&mut words[23..27], env!("CARGO_PKG_VERSION"));
        put_text(&mut words[27..47], "Bellglass disk");
        words[47] = 0x8000 | u16::from(MOST_MULTIPLE);
        words[48] = 1; // 32-bit data register
        words[49] = 0x0b00; // IORDY, LBA, DMA
        words[50] = 0x4000;
        (words[51], words[52]) = (0x0200, 0x0200);
        words[53] = 0x0007; // Words 54 to 58, 64 to 70 and 88 are valid
        (words[54], words[55], words[56]) = (current, settings.heads.into(), settings.sectors_per_track.into());
        put_dword(&mut words[57..59], current_sectors);
        words[59] = if settings.multiple > 0 { 0x0100 | u16::from(settings.multiple) } else { 0 };
        put_dword(&mut words[60..62], lba28);
        words[63] = 0x0007 | u16::from(modes.multiword) << 8;
        words[64] = 0x0003; // PIO 3 and 4
        words[65..69].fill(120);
        words[80] = 0x00f0; // ATA-4 to ATA-7
        words[82] = 0x4020; // NOP, write cache
        words[83] = 0x7400; // FLUSH CACHE, FLUSH CACHE EXT, 48-bit addresses
        words[84] = 0x4040; // WRITE DMA FUA EXT
        words[85] = 0x4000 | u16::from(settings.write_cache) << 5;
        words[86] = 0x3400;
        words[87] = 0x4040;
        words[88] = 0x003f | u16::from(modes.ultra) << 8; // Ultra DMA 0 to 5
        words[93] = 0x6001; // 80-conductor cable
        put_dword(&mut words[100..102], self.sectors as u32);
        put_dword(&mut words[102..104], (self.sectors >> 32) as u32);
        words[105] = MOST_TRIM_BLOCKS as u16;
        words[169] = 1; // TRIM
        words[217] = 1; // Nothing turns
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

fn is_multiple(sectors: u8) -> bool {
    sectors <= MOST_MULTIPLE && (sectors == 0 || sectors.is_power_of_two())
}

/// ATA strings are space-filled and have the bytes of each word exchanged.
pub fn put_text(words: &mut [u16], text: &str) {
    let mut bytes = text.bytes().chain(std::iter::repeat(b' '));
    for word in words {
        let (first, second) = (bytes.next().unwrap_or(b' '), bytes.next().unwrap_or(b' '));
        *word = u16::from_be_bytes([first, second]);
    }
}

fn put_dword(words: &mut [u16], value: u32) {
    words.copy_from_slice(&[value as u16, (value >> 16) as u16]);
}

impl IdeDrive {
    fn disk(&mut self) -> &mut Disk {
        match &mut self.kind {
            Kind::Disk(disk) => disk,
            Kind::Cdrom(_) => unreachable!("disk commands go to disks"),
        }
    }

    /// Carries out a command on a disk.
    pub fn disk_command(&mut self, command: u8) {
        use Address::{Long, Short};
        use Channel::{Dma, Pio};
        use Purpose::{Store, StoreSafely};
        match command {
            0x06 => self.data_set_management(),
            0x10..=0x1f | 0xe0..=0xe3 | 0xe6 | 0x94..=0x97 | 0x99 => self.succeed(), // Recalibrate; power modes
            0x20 | 0x21 => self.read_sectors(Short, Pio, SECTOR_BYTES),
            0x24 => self.read_sectors(Long, Pio, SECTOR_BYTES),
            0x25 => self.read_sectors(Long, Dma, SECTOR_BYTES),
            0x29 => self.multiple(|drive, block| drive.read_sectors(Long, Pio, block)),
            0x27 | 0xf8 => self.read_native_max(if command == 0x27 { Long } else { Short }),
            0x30 | 0x31 => self.write_sectors(Short, Pio, SECTOR_BYTES, Store),
            0x34 => self.write_sectors(Long, Pio, SECTOR_BYTES, Store),
            0x35 => self.write_sectors(Long, Dma, SECTOR_BYTES, Store),
            0x39 => self.multiple(|drive, block| drive.write_sectors(Long, Pio, block, Store)),
            0x3d => self.write_sectors(Long, Dma, SECTOR_BYTES, StoreSafely),
            0x40..=0x42 => self.verify(if command == 0x42 { Long } else { Short }),
            0x70..=0x7f => self.seek(),
            0x91 => self.initialize_device_parameters(),
            0xc4 => self.multiple(|drive, block| drive.read_sectors(Short, Pio, block)),
            0xc5 => self.multiple(|drive, block| drive.write_sectors(Short, Pio, block, Store)),
            0xc6 => self.set_multiple_mode(),
            0xc8 | 0xc9 => self.read_sectors(Short, Dma, SECTOR_BYTES),
            0xca | 0xcb => self.write_sectors(Short, Dma, SECTOR_BYTES, Store),
            0xce => self.multiple(|drive, block| drive.write_sectors(Long, Pio, block, StoreSafely)),
            0xe5 | 0x98 => {
                self.task.count[0] = 0xff; // Active
                self.succeed();
            }
            0xe7 | 0xea => self.flush(),
            0xec => {
                let modes = self.modes;
                let data = self.disk().identify(modes);
                self.offer(data);
            }
            0xef => self.set_features(),
            // NOP, SMART, and what is asked of packet devices only.
            0x00 | 0x08 | 0xa0 | 0xa1 | 0xb0 => self.fail(error_bits::ABORTED),
            _ => {
                engine_base::warn_limited!(target: "ide", command = format_args!("{command:#x}"), "unknown disk command");
                self.fail(error_bits::ABORTED);
            }
        }
    }

    /// The address in the task file; `None` when cylinder, head and sector make no sense.
    fn lba(&mut self, address: Address) -> Option<u64> {
        let task = self.task;
        let byte = u64::from;
        if address == Address::Long {
            let now = byte(task.low[0]) | byte(task.mid[0]) << 8 | byte(task.high[0]) << 16;
            return Some(now | byte(task.low[1]) << 24 | byte(task.mid[1]) << 32 | byte(task.high[1]) << 40);
        }
        let head = byte(task.device & 15);
        if task.device & 0x40 != 0 {
            return Some(byte(task.low[0]) | byte(task.mid[0]) << 8 | byte(task.high[0]) << 16 | head << 24);
        }
        let SavedDisk { heads, sectors_per_track, .. } = self.disk().settings;
        let cylinder = byte(task.mid[0]) | byte(task.high[0]) << 8;
        let sector = byte(task.low[0]).checked_sub(1).filter(|sector| *sector < byte(sectors_per_track))?;
        (head < byte(heads)).then_some((cylinder * byte(heads) + head) * byte(sectors_per_track) + sector)
    }

    /// Puts an address into the task file, in the form in which the last command gave its own.
    pub fn put_lba(&mut self, lba: u64) {
        if !matches!(self.kind, Kind::Disk(_)) {
            return;
        }
        let bytes = lba.to_le_bytes();
        if self.task.device & 0x40 != 0 {
            (self.task.low[0], self.task.mid[0], self.task.high[0]) = (bytes[0], bytes[1], bytes[2]);
            // Harmless after 28-bit commands: what was written before is not read without the HOB bit.
            (self.task.low[1], self.task.mid[1], self.task.high[1]) = (bytes[3], bytes[4], bytes[5]);
            return;
        }
        let SavedDisk { heads, sectors_per_track, .. } = self.disk().settings;
        let track = lba / u64::from(sectors_per_track);
        let cylinder = (track / u64::from(heads)).to_le_bytes();
        self.task.low[0] = (lba % u64::from(sectors_per_track)) as u8 + 1;
        (self.task.mid[0], self.task.high[0]) = (cylinder[0], cylinder[1]);
        self.task.device = self.task.device & 0xf0 | (track % u64::from(heads)) as u8;
    }

    fn sector_count(&self, address: Address) -> u32 {
        let count = self.task.count;
        match address {
            Address::Short if count[0] == 0 => 256,
            Address::Short => count[0].into(),
            Address::Long => match u16::from_le_bytes(count) {
                0 => 0x1_0000,
                count => count.into(),
            },
        }
    }

    /// The sectors a command is about; `None` (and the command has failed) when they are not on the disk.
    fn extent(&mut self, address: Address) -> Option<(u64, u32)> {
        let count = self.sector_count(address);
        let sectors = self.disk().sectors;
        let lba = self.lba(address).filter(|lba| lba + u64::from(count) <= sectors);
        if lba.is_none() {
            self.fail(error_bits::ID_NOT_FOUND);
        }
        Some((lba?, count))
    }

    fn read_sectors(&mut self, address: Address, channel: Channel, block: usize) {
        if let Some((lba, left)) = self.extent(address) {
            self.transfer = Transfer { channel, lba, left, block, ..Transfer::NONE };
            self.read_on();
        }
    }

    fn write_sectors(&mut self, address: Address, channel: Channel, block: usize, purpose: Purpose) {
        let Some((lba, left)) = self.extent(address) else { return };
        let purpose = if self.disk().settings.write_cache { purpose } else { Purpose::StoreSafely };
        self.transfer = Transfer { channel, purpose, lba, left, block, ..Transfer::NONE };
        self.accept_data();
    }

    fn multiple(&mut self, command: impl FnOnce(&mut Self, usize)) {
        match self.disk().settings.multiple {
            0 => self.fail(error_bits::ABORTED),
            sectors => command(self, usize::from(sectors) * SECTOR_BYTES),
        }
    }

    fn verify(&mut self, address: Address) {
        if self.extent(address).is_some() {
            self.succeed();
        }
    }

    fn seek(&mut self) {
        self.task.count[0] = 1;
        if self.extent(Address::Short).is_some() {
            self.succeed();
        }
    }

    fn read_native_max(&mut self, address: Address) {
        let last = self.disk().sectors.saturating_sub(1);
        if address == Address::Short {
            let last = last.min(0x0fff_ffff);
            self.task.device = self.task.device & 0xf0 | (last >> 24) as u8 & 0x0f;
            self.put_lba(last);
        } else {
            self.task.device |= 0x40;
            self.put_lba(last);
        }
        self.succeed();
    }

    fn initialize_device_parameters(&mut self) {
        let (sectors, heads) = (self.task.count[0], (self.task.device & 15) + 1);
        if sectors == 0 {
            return self.fail(error_bits::ABORTED);
        }
        let settings = &mut self.disk().settings;
        (settings.sectors_per_track, settings.heads) = (sectors, heads);
        self.succeed();
    }

    fn set_multiple_mode(&mut self) {
        let sectors = self.task.count[0];
        if !is_multiple(sectors) {
            return self.fail(error_bits::ABORTED);
        }
        self.disk().settings.multiple = sectors;
        self.succeed();
    }

    fn data_set_management(&mut self) {
        let blocks = u32::from(u16::from_le_bytes(self.task.count));
        if self.task.features[0] & 1 == 0 || blocks == 0 || blocks > MOST_TRIM_BLOCKS {
            return self.fail(error_bits::ABORTED);
        }
        self.transfer = Transfer { channel: Channel::Dma, purpose: Purpose::Discard, left: blocks, ..Transfer::NONE };
        self.accept_data();
    }

    fn set_features(&mut self) {
        match self.task.features[0] {
            0x02 => self.disk().settings.write_cache = true,
            0x82 => self.disk().settings.write_cache = false,
            0x03 => return self.set_transfer_mode(),
            // Power management, look-ahead, acoustics and reverting to defaults at reset change nothing here.
            0x05 | 0x85 | 0x42 | 0xc2 | 0x55 | 0xaa | 0x66 | 0xcc => {}
            _ => return self.fail(error_bits::ABORTED),
        }
        self.succeed();
    }

    /// SET FEATURES 03h, for disks and packet devices.
    pub fn set_transfer_mode(&mut self) {
        let (kind, mode) = (self.task.count[0] >> 3, self.task.count[0] & 7);
        match kind {
            0 | 1 => self.modes = Modes { multiword: 0, ultra: 0 },
            4 if mode <= 2 => self.modes = Modes { multiword: 1 << mode, ultra: 0 },
            8 if mode <= 5 => self.modes = Modes { multiword: 0, ultra: 1 << mode },
            _ => return self.fail(error_bits::ABORTED),
        }
        self.succeed();
    }
}
