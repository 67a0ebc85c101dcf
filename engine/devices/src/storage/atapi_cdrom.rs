//! ATAPI CD-ROM drive: command packets over IDE. A disc is one data track of 2048-byte blocks, whatever the image's length;
//! discs too long for a CD are called DVDs. A change of disc is reported once as a unit attention, then the drive is
//! ready (or empty). The tray opens and closes by command; what lies in it stays there, and closing brings it back.
//! A person's wish to eject a locked disc reaches the guest as an event.
//! Left out: audio, several tracks or sessions, subchannels, writing, MODE SELECT.
//! See: SFF-8020i revision 2.6; MMC-3 (T10/1363-D).

use super::ata_disk::put_text;
use super::ide_drive::{Activity, CD_BLOCK_BYTES, CD_RAW_BYTES, Channel, IdeDrive, Kind, Status, Transfer, error_bits};
use engine_base::warn_limited;
use engine_bus::{Drive, DriveError};
use serde::{Deserialize, Serialize};

/// Bytes of a command packet.
const PACKET_BYTES: usize = 12;
/// More blocks than an 80-minute CD has make a disc a DVD.
const MOST_CD_BLOCKS: u64 = 80 * 60 * 75;
const PROFILE_CD_ROM: u16 = 0x0008;
const PROFILE_DVD_ROM: u16 = 0x0010;

/// The interrupt reason in the sector count register: command or data, and which way.
const REASON_COMMAND: u8 = 1;
const REASON_TO_HOST: u8 = 2;

/// Why a command failed: sense key, additional sense code and its qualifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sense {
    key: u8,
    code: u8,
    qualifier: u8,
}

impl Sense {
    const fn new(key: u8, code: u8, qualifier: u8) -> Self {
        Self { key, code, qualifier }
    }

    pub const NONE: Sense = Sense::new(0, 0, 0);
    pub const NO_MEDIUM: Sense = Sense::new(2, 0x3a, 0);
    pub const UNREADABLE: Sense = Sense::new(3, 0x11, 0);
    pub const UNKNOWN_COMMAND: Sense = Sense::new(5, 0x20, 0);
    pub const BLOCK_OUT_OF_RANGE: Sense = Sense::new(5, 0x21, 0);
    pub const INVALID_FIELD: Sense = Sense::new(5, 0x24, 0);
    pub const SAVING_NOT_SUPPORTED: Sense = Sense::new(5, 0x39, 0);
    pub const REMOVAL_PREVENTED: Sense = Sense::new(5, 0x53, 2);
    pub const MEDIUM_CHANGED: Sense = Sense::new(6, 0x28, 0);
}

/// What belongs to a CD-ROM drive alone.
pub struct Cdrom {
    serial: String,
    // State the guest can see; all of it is saved
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    sense: Sense,
    /// A new disc has not been reported as a unit attention yet.
    attention: bool,
    /// For GET EVENT STATUS NOTIFICATION.
    event: MediaEvent,
    /// The drive's count of changes that the above takes account of.
    changes: u64,
}

/// What happened to the disc since it was last asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum MediaEvent {
    None = 0,
    EjectRequest = 1,
    NewMedia = 2,
    Removed = 3,
}

/// The saved form.
#[derive(Serialize, Deserialize)]
pub struct SavedCdrom {
    sense: Sense,
    is_tray_open: bool,
    attention: bool,
    event: MediaEvent,
    /// Whether the disc has been changed and the drive has not looked since.
    change_pending: bool,
}

impl Cdrom {
    /// A drive; a disc that is in it from the start is no change.
    pub fn new(serial: String, drive: &Drive) -> Self {
        let state = State { sense: Sense::NONE, attention: false, event: MediaEvent::None, changes: drive.changes() };
        Self { serial, state }
    }

    /// The tray stays as it is: an installer that ejects its disc before a restart does not meet it again.
    pub fn reset(&mut self) {
        self.state.sense = Sense::NONE;
        self.state.attention = false;
        self.state.event = MediaEvent::None;
    }

    pub fn save(&self, drive: &Drive) -> SavedCdrom {
        let State { sense, attention, event, changes } = self.state;
        let (is_tray_open, change_pending) = (drive.is_tray_open(), changes != drive.changes());
        SavedCdrom { sense, is_tray_open, attention, event, change_pending }
    }

    pub fn restore(&mut self, saved: SavedCdrom, drive: &Drive) {
        let SavedCdrom { sense, is_tray_open, attention, event, change_pending } = saved;
        // Another machine's drive counts from another number.
        let changes = drive.changes().wrapping_sub(u64::from(change_pending));
        self.state = State { sense, attention, event, changes };
        drive.set_tray_open(is_tray_open);
    }
}

/// What a command packet asks for, when it can be done.
enum Answer {
    /// Nothing to transfer.
    Done,
    /// These bytes, of which the host takes so many at most.
    Bytes(Vec<u8>, usize),
    /// Blocks of the disc.
    Blocks { lba: u64, blocks: u32, is_raw: bool },
}

fn word(packet: &[u8; PACKET_BYTES], at: usize) -> usize {
    packet.get(at..at + 2).map_or(0, |bytes| usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
}

fn dword(packet: &[u8; PACKET_BYTES], at: usize) -> u32 {
    packet.get(at..at + 4).map_or(0, |bytes| bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
}

/// Block `lba` as minutes, seconds and frames; the first block is at 2 seconds.
fn msf(lba: u64) -> [u8; 3] {
    let frames = lba + 150;
    [(frames / 75 / 60) as u8, (frames / 75 % 60) as u8, (frames % 75) as u8]
}

/// An address in a table of contents: a block number, or minutes, seconds and frames.
fn address(lba: u64, is_msf: bool) -> [u8; 4] {
    if is_msf {
        let [minutes, seconds, frames] = msf(lba);
        [0, minutes, seconds, frames]
    } else {
        (lba as u32).to_be_bytes()
    }
}

/// Blocks with what surrounds them on a CD: synchronisation, address, mode 1; error correction is left zero.
pub fn raw_blocks(first: u64, data: &[u8]) -> Vec<u8> {
    let bcd = |value: u8| ((value / 10) << 4) | (value % 10);
    let mut raw = Vec::with_capacity(data.len() / CD_BLOCK_BYTES * CD_RAW_BYTES);
    for (lba, block) in (first..).zip(data.chunks_exact(CD_BLOCK_BYTES)) {
        let start = raw.len();
        raw.extend([0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
        raw.extend(msf(lba).map(bcd));
        raw.push(1);
        raw.extend(block);
        raw.resize(start + CD_RAW_BYTES, 0);
    }
    raw
}

impl IdeDrive {
    fn cdrom(&mut self) -> &mut Cdrom {
        match &mut self.kind {
            Kind::Cdrom(cdrom) => cdrom,
            Kind::Disk(_) => unreachable!("packet commands go to packet devices"),
        }
    }

    fn cdrom_state(&mut self) -> &mut State {
        &mut self.cdrom().state
    }

    /// Carries out a command of the command register.
    pub fn cdrom_command(&mut self, command: u8) {
        match command {
            0x08 => self.soft_reset(), // DEVICE RESET
            0xa0 => {
                self.transfer = Transfer {
                    channel: if self.task.features[0] & 1 != 0 { Channel::Dma } else { Channel::Pio },
                    block: self.byte_count_limit(),
                    is_packet: true,
                    ..Transfer::NONE
                };
                self.task.count[0] = REASON_COMMAND;
                self.accept_packet(PACKET_BYTES);
            }
            0xa1 => {
                let data = self.identify_packet_device();
                self.offer(data);
            }
            0xe0..=0xe3 | 0xe6 | 0x94..=0x97 | 0x99 => self.succeed(), // Power modes
            0xe5 | 0x98 => {
                self.task.count[0] = 0xff;
                self.succeed();
            }
            0xef if self.task.features[0] == 0x03 => self.set_transfer_mode(),
            0xef if matches!(self.task.features[0], 0x05 | 0x85 | 0x55 | 0xaa | 0x66 | 0xcc) => self.succeed(),
            // IDENTIFY DEVICE and READ SECTORS fail with the signature, by which software knows a packet device.
            0x20 | 0xec => {
                self.put_signature();
                self.fail(error_bits::ABORTED);
            }
            _ => self.fail(error_bits::ABORTED),
        }
    }

    /// How many bytes the host is ready to take for one interrupt: even, so that no block but the last ends in half a word.
    fn byte_count_limit(&self) -> usize {
        match usize::from(self.task.mid[0]) | usize::from(self.task.high[0]) << 8 {
            0 | 0xffff => 0xfffe,
            1 => 2,
            limit => limit & !1,
        }
    }

    /// Tells the host the length of the block that it is to read.
    pub fn announce_packet_block(&mut self, len: usize) {
        self.task.count[0] = REASON_TO_HOST;
        (self.task.mid[0], self.task.high[0]) = (len as u8, (len >> 8) as u8);
    }

    /// The command is done.
    pub fn packet_done(&mut self) {
        self.cdrom_state().sense = Sense::NONE;
        self.succeed();
        self.task.count[0] = REASON_COMMAND | REASON_TO_HOST;
    }

    fn packet_failed(&mut self, sense: Sense) {
        self.cdrom_state().sense = sense;
        self.fail(sense.key << 4 | if sense.key == 5 { error_bits::ABORTED } else { 0 });
        self.task.count[0] = REASON_COMMAND | REASON_TO_HOST;
    }

    /// The image could not be read.
    pub fn cdrom_read_failed(&mut self, error: DriveError) {
        self.packet_failed(match error {
            DriveError::NoMedium => Sense::NO_MEDIUM,
            DriveError::OutOfRange => Sense::BLOCK_OUT_OF_RANGE,
            _ => Sense::UNREADABLE,
        });
    }

    /// The twelve bytes of a packet have arrived.
    pub fn packet_received(&mut self) {
        let mut packet = [0; PACKET_BYTES];
        packet.copy_from_slice(&self.buffer[..PACKET_BYTES]);
        self.activity = Activity::Idle;
        self.status = Status::READY | Status::SEEK_COMPLETE;
        match self.execute(&packet) {
            Err(sense) => self.packet_failed(sense),
            Ok(Answer::Done) => self.packet_done(),
            Ok(Answer::Bytes(mut bytes, most)) => {
                bytes.truncate(most);
                if bytes.is_empty() { self.packet_done() } else { self.offer(bytes) }
            }
            Ok(Answer::Blocks { blocks: 0, .. }) => self.packet_done(),
            Ok(Answer::Blocks { lba, blocks, is_raw }) => {
                (self.transfer.lba, self.transfer.left, self.transfer.is_raw) = (lba, blocks, is_raw);
                self.read_on();
            }
        }
    }

    /// Looks whether the machine has changed the disc since.
    fn notice_change(&mut self) {
        let (changes, is_there) = (self.drive.changes(), self.drive.medium().is_some());
        let state = self.cdrom_state();
        if state.changes != changes {
            state.changes = changes;
            state.attention = true;
            state.event = if is_there { MediaEvent::NewMedia } else { MediaEvent::Removed };
        }
    }

    /// Blocks of the disc.
    fn blocks(&mut self) -> Result<u64, Sense> {
        if self.drive.is_tray_open() || self.drive.medium().is_none() {
            return Err(Sense::NO_MEDIUM);
        }
        Ok((self.drive.len() / CD_BLOCK_BYTES as u64).min(u32::MAX.into()))
    }

    fn execute(&mut self, packet: &[u8; PACKET_BYTES]) -> Result<Answer, Sense> {
        self.notice_change();
        let asks_for_state = matches!(packet[0], 0x03 | 0x12 | 0x46 | 0x4a);
        if !asks_for_state && std::mem::take(&mut self.cdrom_state().attention) {
            return Err(Sense::MEDIUM_CHANGED);
        }
        match packet[0] {
            0x00 => self.blocks().map(|_| Answer::Done), // TEST UNIT READY
            0x03 => Ok(self.request_sense(packet)),
            0x12 => Ok(inquiry(packet)),
            0x1b => self.start_stop_unit(packet),
            0x1e => {
                // PREVENT ALLOW MEDIUM REMOVAL
                self.drive.set_locked(packet[4] & 1 != 0);
                Ok(Answer::Done)
            }
            0x25 => {
                // READ CAPACITY: the last block and the length of blocks
                let last = self.blocks()?.saturating_sub(1) as u32;
                let bytes = [last.to_be_bytes(), (CD_BLOCK_BYTES as u32).to_be_bytes()].concat();
                Ok(Answer::Bytes(bytes, 8))
            }
            0x28 => self.read(dword(packet, 2), word(packet, 7) as u32, Raw::No),
            0xa8 => self.read(dword(packet, 2), dword(packet, 6), Raw::No),
            0x2b => {
                // SEEK
                if u64::from(dword(packet, 2)) < self.blocks()? { Ok(Answer::Done) } else { Err(Sense::BLOCK_OUT_OF_RANGE) }
            }
            0x42 => self.read_subchannel(packet),
            0x43 => self.read_toc(packet),
            0x46 => Ok(self.get_configuration(packet)),
            0x4a => self.get_event_status_notification(packet),
            0x51 => self.read_disc_information(packet),
            0x5a => self.mode_sense(packet),
            0xbb => Ok(Answer::Done), // SET CD SPEED
            0xbd => {
                // MECHANISM STATUS: no changer
                let state = u8::from(self.drive.is_tray_open()) << 4;
                Ok(Answer::Bytes(vec![0, state, 0, 0, 0, 1, 0, 0], word(packet, 8)))
            }
            0xbe => self.read_cd(packet),
            command => {
                warn_limited!(target: "ide", command = format_args!("{command:#x}"), "unknown packet command");
                Err(Sense::UNKNOWN_COMMAND)
            }
        }
    }

    fn request_sense(&mut self, packet: &[u8; PACKET_BYTES]) -> Answer {
        let state = self.cdrom_state();
        let sense = if state.sense == Sense::NONE && std::mem::take(&mut state.attention) {
            Sense::MEDIUM_CHANGED
        } else {
            std::mem::replace(&mut state.sense, Sense::NONE)
        };
        let mut bytes = vec![0; 18];
        bytes[0] = 0x70;
        bytes[2] = sense.key;
        bytes[7] = 10; // Bytes that follow
        bytes[12] = sense.code;
        bytes[13] = sense.qualifier;
        Answer::Bytes(bytes, packet[4].into())
    }

    fn start_stop_unit(&mut self, packet: &[u8; PACKET_BYTES]) -> Result<Answer, Sense> {
        let (is_start, moves_tray) = (packet[4] & 1 != 0, packet[4] & 2 != 0);
        if moves_tray && !is_start {
            if self.drive.is_locked() {
                return Err(Sense::REMOVAL_PREVENTED);
            }
            if !self.drive.is_tray_open() {
                self.drive.set_tray_open(true);
                self.cdrom_state().event = MediaEvent::Removed;
            }
        } else if moves_tray && self.drive.is_tray_open() {
            self.drive.set_tray_open(false);
            if self.drive.medium().is_some() {
                let state = self.cdrom_state();
                state.attention = true;
                state.event = MediaEvent::NewMedia;
            }
        }
        Ok(Answer::Done)
    }

    fn read(&mut self, lba: u32, blocks: u32, raw: Raw) -> Result<Answer, Sense> {
        let end = u64::from(lba) + u64::from(blocks);
        if end > self.blocks()? {
            return Err(Sense::BLOCK_OUT_OF_RANGE);
        }
        Ok(Answer::Blocks { lba: lba.into(), blocks, is_raw: raw == Raw::Yes })
    }

    fn read_cd(&mut self, packet: &[u8; PACKET_BYTES]) -> Result<Answer, Sense> {
        let blocks = dword(packet, 5) & 0x00ff_ffff;
        let lba = dword(packet, 2);
        // Only data sectors of mode 1 (or of any type) are here.
        if !matches!(packet[1] >> 2 & 7, 0 | 2) || packet[10] & 7 != 0 {
            return Err(Sense::INVALID_FIELD);
        }
        match packet[9] & 0xf8 {
            0x00 => self.read(lba, 0, Raw::No),
            0x10 => self.read(lba, blocks, Raw::No),
            0xf8 => self.read(lba, blocks, Raw::Yes),
            _ => Err(Sense::INVALID_FIELD),
        }
    }

    fn read_subchannel(&mut self, packet: &[u8; PACKET_BYTES]) -> Result<Answer, Sense> {
        self.blocks()?;
        let no_audio = 0x15;
        let mut bytes = vec![0, no_audio, 0, 0];
        if packet[2] & 0x40 != 0 {
            let format = packet[3];
            let len = match format {
                1 => 12,
                2 | 3 => 20,
                _ => return Err(Sense::INVALID_FIELD),
            };
            bytes[3] = len;
            bytes.resize(4 + usize::from(len), 0);
            bytes[4] = format;
        }
        Ok(Answer::Bytes(bytes, word(packet, 7)))
    }

    fn read_toc(&mut self, packet: &[u8; PACKET_BYTES]) -> Result<Answer, Sense> {
        let blocks = self.blocks()?;
        let is_msf = packet[1] & 2 != 0;
        // Old software puts the format into the control byte.
        let format = if packet[2] & 15 != 0 { packet[2] & 15 } else { packet[9] >> 6 };
        let (first_track, lead_out) = (packet[6], 0xaa);
        let data_track = 0x14;
        let mut bytes = match format {
            0 => {
                if first_track > 1 && first_track != lead_out {
                    return Err(Sense::INVALID_FIELD);
                }
                let mut toc = vec![0, 0, 1, 1];
                if first_track <= 1 {
                    toc.extend([0, data_track, 1, 0]);
                    toc.extend(address(0, is_msf));
                }
                toc.extend([0, data_track, lead_out, 0]);
                toc.extend(address(blocks, is_msf));
                toc
            }
            // The last session begins with track 1.
            1 => [[0, 0, 1, 1], [0, data_track, 1, 0], address(0, is_msf)].concat(),
            2 => {
                let mut toc = vec![0, 0, 1, 1];
                let lead_out_at = if is_msf { address(blocks, true) } else { (blocks as u32).to_be_bytes() };
                for (point, at) in [(0xa0, [0, 1, 0, 0]), (0xa1, [0, 1, 0, 0]), (0xa2, lead_out_at), (1, address(0, is_msf))] {
                    toc.extend([1, data_track, 0, point, 0, 0, 0]);
                    toc.extend(at);
                }
                toc
            }
            _ => return Err(Sense::INVALID_FIELD),
        };
        put_length(&mut bytes, 2);
        Ok(Answer::Bytes(bytes, word(packet, 7)))
    }

    fn get_configuration(&mut self, packet: &[u8; PACKET_BYTES]) -> Answer {
        let current = match self.blocks() {
            Err(_) => 0,
            Ok(blocks) if blocks > MOST_CD_BLOCKS => PROFILE_DVD_ROM,
            Ok(_) => PROFILE_CD_ROM,
        };
        let profile = |number: u16| {
            let [high, low] = number.to_be_bytes();
            [high, low, u8::from(current == number), 0]
        };
        let [current_high, current_low] = current.to_be_bytes();
        let mut bytes = vec![0, 0, 0, 0, 0, 0, current_high, current_low];
        let profiles = [profile(PROFILE_DVD_ROM), profile(PROFILE_CD_ROM)].concat();
        let core: &[u8] = &[0, 0, 0, 2, 1, 0, 0, 0]; // ATAPI; device busy events
        let removable: &[u8] = &[0x29, 0, 0, 0]; // A tray that locks and opens
        let features: [(u16, u8, &[u8]); 3] = [(0, 0x03, &profiles), (1, 0x0b, core), (3, 0x03, removable)];
        let (kind, first) = (packet[1] & 3, word(packet, 2));
        for (number, flags, data) in features {
            let wanted = if kind == 2 { usize::from(number) == first } else { usize::from(number) >= first };
            if wanted {
                bytes.extend(number.to_be_bytes());
                bytes.extend([flags, data.len() as u8]);
                bytes.extend(data);
            }
        }
        let after = (bytes.len() - 4) as u32;
        bytes[..4].copy_from_slice(&after.to_be_bytes());
        Answer::Bytes(bytes, word(packet, 7))
    }

    fn get_event_status_notification(&mut self, packet: &[u8; PACKET_BYTES]) -> Result<Answer, Sense> {
        if packet[1] & 1 == 0 {
            return Err(Sense::INVALID_FIELD); // Only polling is done.
        }
        let media = 4;
        let supported = 1 << media;
        if packet[4] & supported == 0 {
            return Ok(Answer::Bytes(vec![0, 2, 0x80, supported], word(packet, 7)));
        }
        let (is_open, is_there) = (self.drive.is_tray_open(), self.drive.medium().is_some());
        let mut event = std::mem::replace(&mut self.cdrom_state().event, MediaEvent::None);
        if event == MediaEvent::None && self.drive.take_eject_wanted() {
            event = MediaEvent::EjectRequest;
        }
        let presence = u8::from(is_open) | u8::from(is_there && !is_open) << 1;
        Ok(Answer::Bytes(vec![0, 6, media, supported, event as u8, presence, 0, 0], word(packet, 7)))
    }

    fn read_disc_information(&mut self, packet: &[u8; PACKET_BYTES]) -> Result<Answer, Sense> {
        if packet[1] & 7 != 0 {
            return Err(Sense::INVALID_FIELD);
        }
        self.blocks()?;
        let mut bytes = vec![0; 34];
        bytes[2] = 0x0e; // A complete disc, the last session complete
        bytes[3..7].fill(1); // First track, sessions, first and last track of the last session
        bytes[7] = 0x20; // Unrestricted use
        bytes[16..24].fill(0xff); // No further lead-in and lead-out
        put_length(&mut bytes, 2);
        Ok(Answer::Bytes(bytes, word(packet, 7)))
    }

    fn mode_sense(&mut self, packet: &[u8; PACKET_BYTES]) -> Result<Answer, Sense> {
        let (control, wanted) = (packet[2] >> 6, packet[2] & 0x3f);
        if control == 3 {
            return Err(Sense::SAVING_NOT_SUPPORTED);
        }
        let speed = (706 * 5_u16).to_be_bytes(); // 20x CD in kB/s
        let is_locked = u8::from(self.drive.is_locked()) << 1;
        let recovery: &[u8] = &[0, 0x05, 0, 0, 0, 0];
        let audio: &[u8] = &[0x04, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let capabilities: &[u8] = &[
            0x3b,
            0, // Reads CD-R, CD-RW, DVD-ROM, DVD-R
            0x70,
            0x03,             // Mode 2 form 1 and 2, several sessions; CD-DA
            0x29 | is_locked, // A tray that locks and opens
            0,
            speed[0],
            speed[1],
            0,
            2, // Speed; volume levels
            2,
            0,
            speed[0],
            speed[1],
            0,
            0,
            0,
            0,
            0,
            0, // Buffer of 512 KiB; current speed
        ];
        let pages = [(0x01, recovery), (0x0e, audio), (0x2a, capabilities)];
        let disc_type = if self.blocks().is_ok() { 0x01 } else { 0x70 };
        let mut bytes = vec![0, 0, disc_type, 0, 0, 0, 0, 0];
        for (page, data) in pages.iter().filter(|(page, _)| wanted == 0x3f || wanted == *page) {
            bytes.extend([*page, data.len() as u8]);
            // Nothing can be changed.
            if control == 1 { bytes.resize(bytes.len() + data.len(), 0) } else { bytes.extend(*data) }
        }
        if bytes.len() == 8 {
            return Err(Sense::INVALID_FIELD);
        }
        put_length(&mut bytes, 2);
        Ok(Answer::Bytes(bytes, word(packet, 7)))
    }

    fn identify_packet_device(&mut self) -> Vec<u8> {
        let modes = self.modes;
        let mut words = [0_u16; 256];
        words[0] = 0x85c0; // CD-ROM, removable, DRQ within 50 µs, 12-byte packets
        put_text(&mut words[10..20], &self.cdrom().serial);
        put_text(&mut words[23..27], env!("CARGO_PKG_VERSION"));
        put_text(&mut words[27..47], "Bellglass DVD-ROM");
        words[48] = 1;
        words[49] = 0x0b00;
        words[53] = 0x0006;
        words[63] = 0x0007 | u16::from(modes.multiword) << 8;
        words[64] = 0x0003;
        words[65..69].fill(120);
        words[71] = 30;
        words[72] = 30;
        words[80] = 0x001e; // ATA-1 to ATA/ATAPI-4
        words[82] = 0x0210; // DEVICE RESET, PACKET
        words[83] = 0x4000;
        words[84] = 0x4000;
        words[85] = 0x0210;
        words[87] = 0x4000;
        words[88] = 0x003f | u16::from(modes.ultra) << 8;
        words[93] = 0x6001;
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Raw {
    No,
    Yes,
}

/// Puts the number of bytes that follow the length field of `size` bytes into it.
fn put_length(bytes: &mut [u8], size: usize) {
    let after = (bytes.len() - size) as u16;
    bytes[..2].copy_from_slice(&after.to_be_bytes());
}

fn inquiry(packet: &[u8; PACKET_BYTES]) -> Answer {
    let mut bytes = vec![0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0]; // CD-ROM, removable, ATAPI, 31 bytes follow
    bytes.extend(b"BELLGLSSDVD-ROM         ");
    bytes.extend(format!("{:<4.4}", env!("CARGO_PKG_VERSION")).bytes());
    Answer::Bytes(bytes, word(packet, 3))
}
