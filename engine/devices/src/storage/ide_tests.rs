//! The IDE function on a bench: disks and a CD-ROM drive in memory, driven through ports and guest memory.

use super::memory_disk::{MemoryDisk, medium};
use super::piix3_ide::MODEL;
use crate::bench::Bench;
use engine_bus::{DeviceCell, Drive, DriveServer, Options, PciAddress, ResetKind};
use std::sync::Arc;

const COMMAND: u16 = 0x1f0;
const CD: u16 = 0x170;
const BUS_MASTER: u16 = 0xc000;
const TABLE: u64 = 0x1000;
const BUFFER: u64 = 0x4000;

const READY: u8 = 0x50;
const READY_WITH_DATA: u8 = 0x58;
const FAILED: u8 = 0x51;

struct Ide {
    bench: Bench,
    cell: Arc<DeviceCell>,
    disk: Arc<MemoryDisk>,
    cd: Drive,
    _servers: Vec<DriveServer>,
}

const DISK_BYTES: usize = 2048 * 512;
const DISC_BLOCKS: usize = 100;

impl Ide {
    /// A disk of 2048 sectors as ide0-0, a CD-ROM drive with 100 blocks as ide1-0, bus masters at C000h.
    fn new() -> Self {
        Self::with(MemoryDisk::new(DISK_BYTES))
    }

    fn with(disk: Arc<MemoryDisk>) -> Self {
        let mut bench = Bench::new();
        let mut servers = Vec::new();
        for (name, image) in [("ide0-0", Arc::clone(&disk)), ("ide1-0", MemoryDisk::new(DISC_BLOCKS * 2048))] {
            let (drive, server) = Drive::new(name);
            drive.set_medium(medium(image));
            drive.serve_in_place(&bench.board.timers);
            bench.board.drives.insert(name.to_owned(), drive);
            servers.push(server);
        }
        let cd = bench.board.drives["ide1-0"].clone();
        let at = PciAddress { device: 3, function: 0 };
        let cell = bench.board.plug(&MODEL, "ide", Some(at), &Options::of(&[("ide1-0", "cd")])).unwrap();
        bench.set_config_dword(0x20, BUS_MASTER.into());
        bench.set_config_byte(4, 5);
        Self { bench, cell, disk, cd, _servers: servers }
    }

    /// Lets requests to the images finish.
    fn wait(&self) {
        self.bench.advance(10_000_000);
    }

    fn status(&self, base: u16) -> u8 {
        self.bench.inb(base + 7)
    }

    fn command28(&self, lba: u32, count: u8, command: u8) {
        let [low, mid, high, top] = lba.to_le_bytes();
        for (register, value) in [(6, 0xe0 | top), (2, count), (3, low), (4, mid), (5, high), (7, command)] {
            self.bench.outb(COMMAND + register, value);
        }
    }

    fn read_words(&self, base: u16, words: usize) -> Vec<u8> {
        (0..words).flat_map(|_| self.bench.inw(base).to_le_bytes()).collect()
    }

    fn write_words(&self, base: u16, bytes: &[u8]) {
        bytes.chunks_exact(2).for_each(|word| self.bench.outw(base, u16::from_le_bytes([word[0], word[1]])));
    }

    /// One region for the bus master of a channel, started in a direction (8: to memory).
    fn start_dma(&self, channel: u16, address: u64, bytes: u32, direction: u8) {
        let entry = [(address as u32).to_le_bytes(), (bytes & 0xffff | 1 << 31).to_le_bytes()].concat();
        self.bench.board.memory.write(TABLE, &entry).unwrap();
        self.bench.outl(BUS_MASTER + 8 * channel + 4, TABLE as u32);
        self.bench.outb(BUS_MASTER + 8 * channel, direction);
        self.bench.outb(BUS_MASTER + 8 * channel, direction | 1);
    }

    fn bus_master_status(&self, channel: u16) -> u8 {
        self.bench.inb(BUS_MASTER + 8 * channel + 2)
    }

    /// Sends a packet by PIO and reads what comes, or the sense key that it failed with.
    fn packet(&self, packet: &[u8]) -> Result<Vec<u8>, u8> {
        for (register, value) in [(6, 0xa0), (1, 0), (4, 0x00), (5, 0x08), (7, 0xa0)] {
            self.bench.outb(CD + register, value);
        }
        assert_eq!((self.status(CD), self.bench.inb(CD + 2)), (READY_WITH_DATA, 1));
        let mut bytes = packet.to_vec();
        bytes.resize(12, 0);
        self.write_words(CD, &bytes);
        let mut data = Vec::new();
        loop {
            self.wait();
            assert!(self.bench.level("isa-irq15"));
            let status = self.status(CD);
            if status & 8 == 0 {
                assert_eq!(self.bench.inb(CD + 2), 3, "interrupt reason: done");
                return if status & 1 != 0 { Err(self.bench.inb(CD + 1) >> 4) } else { Ok(data) };
            }
            assert_eq!(self.bench.inb(CD + 2), 2, "interrupt reason: data to the host");
            let len = usize::from(self.bench.inb(CD + 4)) | usize::from(self.bench.inb(CD + 5)) << 8;
            assert!(len <= 0x800);
            let mut block = self.read_words(CD, len.div_ceil(2));
            block.truncate(len);
            data.extend(block);
        }
    }

    /// Sense key, code and qualifier of the last failure.
    fn sense(&self) -> (u8, u8, u8) {
        let bytes = self.packet(&[0x03, 0, 0, 0, 18]).unwrap();
        (bytes[2], bytes[12], bytes[13])
    }
}

const TEST_UNIT_READY: [u8; 1] = [0x00];
const OPEN_TRAY: [u8; 5] = [0x1b, 0, 0, 0, 2];
const CLOSE_TRAY: [u8; 5] = [0x1b, 0, 0, 0, 3];

#[test]
fn identify_tells_size_and_features_and_interrupts() {
    let ide = Ide::new();
    ide.command28(0, 0, 0xec);
    assert!(ide.bench.level("isa-irq14"));
    assert_eq!(ide.status(COMMAND), READY_WITH_DATA);
    assert!(!ide.bench.level("isa-irq14"), "reading the status takes the interrupt back");
    let data = ide.read_words(COMMAND, 256);
    let word = |at: usize| u16::from_le_bytes([data[2 * at], data[2 * at + 1]]);
    assert_eq!((word(60), word(100), word(1), word(3), word(6)), (2048, 2048, 2, 16, 63));
    assert_eq!(&data[54..68], b"eBlllgsa sidks");
    assert_eq!(ide.status(COMMAND), READY);
}

#[test]
fn sectors_are_read_by_pio_one_interrupt_each() {
    let ide = Ide::new();
    ide.command28(5, 2, 0x20);
    assert_eq!(ide.bench.inb(0x3f6), 0xd0, "busy while the image is read");
    ide.wait();
    for sector in [5, 6] {
        assert!(ide.bench.level("isa-irq14"));
        assert_eq!(ide.status(COMMAND), READY_WITH_DATA);
        assert_eq!(ide.read_words(COMMAND, 256), [sector; 512]);
    }
    assert_eq!(ide.status(COMMAND), READY);
    assert!(!ide.bench.level("isa-irq14"));
}

#[test]
fn multiple_sectors_come_in_blocks_and_dwords_work() {
    let ide = Ide::new();
    ide.command28(0, 4, 0xc6);
    ide.command28(8, 6, 0xc4);
    ide.wait();
    let mut sectors = Vec::new();
    for block in [4, 2] {
        assert_eq!(ide.status(COMMAND), READY_WITH_DATA);
        for _ in 0..block {
            let dwords: Vec<u32> = (0..128).map(|_| ide.bench.inl(COMMAND)).collect();
            sectors.push(dwords[127] as u8);
        }
    }
    assert_eq!(sectors, [8, 9, 10, 11, 12, 13]);
    assert_eq!(ide.status(COMMAND), READY);
}

#[test]
fn cylinder_head_and_sector_reach_the_same_sectors() {
    let ide = Ide::new();
    // Cylinder 1, head 2, sector 3 is (1 * 16 + 2) * 63 + 2 = 1136.
    for (register, value) in [(6, 0xa2), (2, 1), (3, 3), (4, 1), (5, 0), (7, 0x20)] {
        ide.bench.outb(COMMAND + register, value);
    }
    ide.wait();
    assert_eq!(ide.read_words(COMMAND, 256), [(1136 % 256) as u8; 512]);
}

#[test]
fn sectors_are_written_by_pio_and_flushed() {
    let ide = Ide::new();
    ide.command28(10, 2, 0x30);
    assert_eq!((ide.status(COMMAND), ide.bench.level("isa-irq14")), (READY_WITH_DATA, false));
    ide.write_words(COMMAND, &[0xaa; 512]);
    ide.wait();
    assert!(ide.bench.level("isa-irq14"));
    assert_eq!(ide.status(COMMAND), READY_WITH_DATA);
    ide.write_words(COMMAND, &[0xbb; 512]);
    ide.wait();
    assert_eq!(ide.status(COMMAND), READY);
    let bytes = ide.disk.bytes.lock().unwrap().clone();
    assert_eq!((bytes[5119], bytes[5120], bytes[5632], bytes[6144]), (9, 0xaa, 0xbb, 12));
    ide.command28(0, 0, 0xe7);
    ide.wait();
    assert_eq!((ide.status(COMMAND), *ide.disk.flushes.lock().unwrap()), (READY, 1));
}

#[test]
fn without_write_cache_every_write_is_flushed() {
    let ide = Ide::new();
    ide.bench.outb(COMMAND + 1, 0x82);
    ide.command28(0, 0, 0xef);
    ide.command28(3, 1, 0x30);
    ide.write_words(COMMAND, &[1; 512]);
    ide.wait();
    assert_eq!((ide.status(COMMAND), *ide.disk.flushes.lock().unwrap()), (READY, 1));
}

#[test]
fn dma_reads_scatter_along_the_table() {
    let ide = Ide::new();
    let table = [[BUFFER as u32, 512], [BUFFER as u32 + 0x1000, 1 << 31 | 512]];
    let bytes: Vec<u8> = table.iter().flatten().flat_map(|dword| dword.to_le_bytes()).collect();
    ide.bench.board.memory.write(TABLE, &bytes).unwrap();
    ide.bench.outl(BUS_MASTER + 4, TABLE as u32);
    ide.bench.outb(BUS_MASTER, 8);
    ide.command28(20, 2, 0xc8);
    ide.bench.outb(BUS_MASTER, 9);
    assert_eq!(ide.bus_master_status(0), 1);
    ide.wait();
    assert_eq!((ide.bus_master_status(0), ide.status(COMMAND)), (4, READY));
    assert_eq!(ide.bench.board.memory.read_array::<1>(BUFFER + 511).unwrap(), [20]);
    assert_eq!(ide.bench.board.memory.read_array::<1>(BUFFER + 0x1000).unwrap(), [21]);
    ide.bench.outb(BUS_MASTER + 2, 6);
    assert_eq!(ide.bus_master_status(0), 0);
}

#[test]
fn dma_writes_longer_than_a_chunk_arrive_whole() {
    let ide = Ide::new();
    let ones = vec![0x11; 0x40000];
    ide.bench.board.memory.write(0x10_0000, &ones).unwrap();
    let entries = (0..4).map(|i| [0x10_0000 + i * 0x1_0000, if i == 3 { 1 << 31 } else { 0 }]);
    let bytes: Vec<u8> = entries.flatten().flat_map(u32::to_le_bytes).collect();
    ide.bench.board.memory.write(TABLE, &bytes).unwrap();
    ide.bench.outl(BUS_MASTER + 4, TABLE as u32);
    ide.bench.outb(BUS_MASTER, 1);
    // 512 sectors need the 48-bit command: high bytes first.
    for value in
        [[2, 2, 0], [2, 0, 0], [3, 0, 0], [3, 100, 0], [4, 0, 0], [4, 0, 0], [5, 0, 0], [5, 0, 0], [6, 0x40, 0], [7, 0x35, 0]]
    {
        ide.bench.outb(COMMAND + u16::from(value[0]), value[1]);
    }
    ide.wait();
    assert_eq!((ide.status(COMMAND), ide.bus_master_status(0)), (READY, 4));
    let bytes = ide.disk.bytes.lock().unwrap();
    assert!(bytes[100 * 512..612 * 512].iter().all(|byte| *byte == 0x11));
    assert_eq!((bytes[100 * 512 - 1], bytes[612 * 512]), (99, (612 % 256) as u8));
}

#[test]
fn dma_to_where_there_is_no_ram_is_an_error_and_not_a_panic() {
    let ide = Ide::new();
    ide.command28(0, 1, 0xc8);
    ide.start_dma(0, 0x8000_0000, 512, 8);
    ide.wait();
    assert_eq!((ide.bus_master_status(0), ide.status(COMMAND)), (6, FAILED));
}

#[test]
fn a_reset_during_a_transfer_drops_it() {
    let ide = Ide::new();
    let before = ide.disk.bytes.lock().unwrap().clone();
    ide.command28(7, 1, 0xca);
    ide.command28(9, 1, 0xc8);
    ide.bench.outb(0x3f6, 4);
    assert_eq!(ide.status(COMMAND) & 0x80, 0x80);
    ide.bench.outb(0x3f6, 0);
    ide.start_dma(0, BUFFER, 512, 0);
    ide.wait();
    assert_eq!((ide.status(COMMAND), ide.bench.inb(COMMAND + 2), ide.bench.inb(COMMAND + 4)), (READY, 1, 0));
    assert!(!ide.bench.level("isa-irq14"));
    assert_eq!(*ide.disk.bytes.lock().unwrap(), before);
}

#[test]
fn addresses_beyond_the_end_are_not_found() {
    let ide = Ide::new();
    for (lba, count) in [(2048, 1), (2047, 2), (0x0fff_ffff, 0)] {
        ide.command28(lba, count, 0x20);
        assert_eq!((ide.status(COMMAND), ide.bench.inb(COMMAND + 1)), (FAILED, 0x10), "{lba}+{count}");
    }
    ide.command28(0, 0, 0xf8);
    assert_eq!((ide.bench.inb(COMMAND + 3), ide.bench.inb(COMMAND + 4)), (0xff, 7));
}

#[test]
fn an_unreadable_sector_is_reported_with_its_address() {
    let ide = Ide::with(MemoryDisk::broken(DISK_BYTES));
    ide.command28(0x123, 1, 0x20);
    ide.wait();
    assert_eq!((ide.status(COMMAND), ide.bench.inb(COMMAND + 1)), (FAILED, 0x40));
    assert_eq!((ide.bench.inb(COMMAND + 3), ide.bench.inb(COMMAND + 4)), (0x23, 1));
}

#[test]
fn trim_discards_each_range_of_its_list_and_those_that_follow_each_other_as_one() {
    let ide = Ide::new();
    let mut list = [0; 512];
    list[..8].copy_from_slice(&(16_u64 | 8 << 48).to_le_bytes());
    list[16..24].copy_from_slice(&(64_u64 | 1 << 48).to_le_bytes());
    list[24..32].copy_from_slice(&(65_u64 | 3 << 48).to_le_bytes());
    ide.bench.board.memory.write(BUFFER, &list).unwrap();
    ide.bench.outb(COMMAND + 1, 1);
    ide.command28(0, 0, 0xe5);
    for (register, value) in [(2, 0), (2, 1), (7, 0x06)] {
        ide.bench.outb(COMMAND + register, value);
    }
    ide.start_dma(0, BUFFER, 512, 0);
    ide.wait();
    assert_eq!(ide.status(COMMAND), READY);
    assert_eq!(*ide.disk.discards.lock().unwrap(), [(16 * 512, 8 * 512), (64 * 512, 4 * 512)]);
}

#[test]
fn a_place_without_a_drive_reads_as_zero() {
    let ide = Ide::new();
    ide.bench.outb(COMMAND + 6, 0xb0);
    ide.bench.outb(COMMAND + 2, 0x55);
    assert_eq!((ide.bench.inb(COMMAND + 2), ide.status(COMMAND)), (0, 0));
}

#[test]
fn interrupts_are_hidden_by_nien_and_shown_when_it_goes() {
    let ide = Ide::new();
    ide.bench.outb(0x3f6, 2);
    ide.command28(0, 0, 0xec);
    assert!(!ide.bench.level("isa-irq14"));
    ide.bench.outb(0x3f6, 0);
    assert!(ide.bench.level("isa-irq14"));
}

#[test]
fn a_packet_device_shows_its_signature() {
    let ide = Ide::new();
    let signature = || (ide.bench.inb(CD + 2), ide.bench.inb(CD + 3), ide.bench.inb(CD + 4), ide.bench.inb(CD + 5));
    assert_eq!(signature(), (1, 1, 0x14, 0xeb));
    ide.bench.outb(CD + 4, 0);
    ide.bench.outb(CD + 7, 0xec);
    assert_eq!((ide.status(CD), signature()), (FAILED, (1, 1, 0x14, 0xeb)));
    ide.bench.outb(CD + 7, 0xa1);
    assert_eq!(ide.status(CD), READY_WITH_DATA);
    assert_eq!(ide.read_words(CD, 256)[..2], [0xc0, 0x85]);
}

#[test]
fn blocks_of_a_disc_are_read_by_pio_in_pieces_the_host_allows() {
    let ide = Ide::new();
    let data = ide.packet(&[0x28, 0, 0, 0, 0, 3, 0, 0, 2]).unwrap();
    assert_eq!((data.len(), data[0], data[4095]), (4096, 12, 19));
    let raw = ide.packet(&[0xbe, 0, 0, 0, 0, 0, 0, 0, 1, 0xf8]).unwrap();
    assert_eq!((raw.len(), raw[12..16].to_vec(), raw[16]), (2352, vec![0, 2, 0, 1], 0));
    assert_eq!(ide.packet(&[0x28, 0, 0, 0, 0, 100, 0, 0, 1]), Err(5));
    assert_eq!(ide.sense(), (5, 0x21, 0));
    assert_eq!(ide.packet(&[0x28, 0, 0, 0, 0, 100, 0, 0, 0]), Ok(vec![]), "no blocks are no error");
}

#[test]
fn blocks_of_a_disc_are_read_by_dma() {
    let ide = Ide::new();
    ide.bench.outb(CD + 1, 1);
    ide.bench.outb(CD + 7, 0xa0);
    ide.write_words(CD, &[0xa8, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0]);
    ide.start_dma(1, BUFFER, 2048, 8);
    ide.wait();
    assert_eq!((ide.bus_master_status(1), ide.status(CD), ide.bench.inb(CD + 2)), (4, READY, 3));
    assert_eq!(ide.bench.board.memory.read_array::<1>(BUFFER + 2047).unwrap(), [7]);
}

#[test]
fn ejecting_raises_unit_attention_once() {
    let ide = Ide::new();
    assert_eq!(ide.packet(&TEST_UNIT_READY), Ok(vec![]));
    ide.cd.set_medium(None);
    assert_eq!(ide.packet(&TEST_UNIT_READY), Err(6));
    assert_eq!(ide.sense(), (6, 0x28, 0));
    assert_eq!(ide.packet(&TEST_UNIT_READY), Err(2));
    assert_eq!(ide.sense(), (2, 0x3a, 0));
    ide.cd.set_medium(medium(MemoryDisk::new(2048)));
    assert_eq!(ide.packet(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8]).unwrap()[4..6], [2, 2], "new medium, which is there");
    assert_eq!(ide.packet(&TEST_UNIT_READY), Err(6));
    assert_eq!(ide.packet(&[0x25]), Ok(vec![0, 0, 0, 0, 0, 0, 8, 0]));
}

#[test]
fn the_tray_opens_unless_locked_and_closes_on_the_same_disc() {
    let ide = Ide::new();
    ide.packet(&[0x1e, 0, 0, 0, 1]).unwrap();
    assert!(ide.cd.is_locked());
    assert_eq!(ide.packet(&OPEN_TRAY), Err(5));
    assert_eq!(ide.sense(), (5, 0x53, 2));
    ide.packet(&[0x1e, 0, 0, 0, 0]).unwrap();
    let moves = Arc::new(std::sync::Mutex::new(Vec::new()));
    let heard = Arc::clone(&moves);
    ide.cd.on_tray(move |open| heard.lock().unwrap().push(open));
    ide.packet(&OPEN_TRAY).unwrap();
    ide.packet(&OPEN_TRAY).unwrap();
    assert!(ide.cd.is_tray_open() && ide.cd.medium().is_some());
    assert_eq!(ide.packet(&TEST_UNIT_READY), Err(2));
    ide.packet(&CLOSE_TRAY).unwrap();
    assert_eq!(ide.packet(&TEST_UNIT_READY), Err(6));
    assert_eq!(ide.packet(&TEST_UNIT_READY), Ok(vec![]));
    assert_eq!(*moves.lock().unwrap(), [true, false]);
}

#[test]
fn a_guest_that_holds_the_disc_hears_of_the_eject_button_once() {
    let ide = Ide::new();
    ide.packet(&[0x1e, 0, 0, 0, 1]).unwrap();
    ide.cd.want_eject();
    let get_event = [0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8];
    assert_eq!(ide.packet(&get_event).unwrap()[4..6], [1, 2], "eject request; the medium is there");
    assert_eq!(ide.packet(&get_event).unwrap()[4..6], [0, 2]);
}

#[test]
fn a_saved_drive_comes_back_with_its_tray_open() {
    let ide = Ide::new();
    ide.packet(&OPEN_TRAY).unwrap();
    let saved = ide.cell.lock().save();
    let other = Ide::new();
    other.cell.lock().restore(&saved).unwrap();
    assert!(other.cd.is_tray_open());
    assert_eq!(other.cell.lock().save(), saved);
}

#[test]
fn tables_of_contents_end_with_the_lead_out() {
    let ide = Ide::new();
    let toc = ide.packet(&[0x43, 0, 0, 0, 0, 0, 0, 0xff, 0xff]).unwrap();
    assert_eq!(toc, [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xaa, 0, 0, 0, 0, 100]);
    let toc = ide.packet(&[0x43, 2, 0, 0, 0, 0, 0xaa, 0, 12]).unwrap();
    assert_eq!(toc[8..], [0, 0, 3, 25], "100 blocks after two seconds");
    assert_eq!(ide.packet(&[0x43, 0, 1, 0, 0, 0, 0, 0, 4]).unwrap(), [0, 10, 1, 1]);
    assert_eq!(ide.packet(&[0x43, 0, 2, 0, 0, 0, 0, 1, 0]).unwrap().len(), 48);
}

#[test]
fn information_commands_answer_and_are_cut_to_the_length_asked_for() {
    let ide = Ide::new();
    assert_eq!(ide.packet(&[0x12, 0, 0, 0, 36]).unwrap()[..5], [5, 0x80, 0, 0x21, 31]);
    assert_eq!(ide.packet(&[0x12, 0, 0, 0, 0]).unwrap(), []);
    assert_eq!(ide.packet(&[0x12, 0, 0, 0, 5]).unwrap().len(), 5);
    let configuration = ide.packet(&[0x46, 0, 0, 0, 0, 0, 0, 0, 255]).unwrap();
    assert_eq!(configuration[6..12], [0, 8, 0, 0, 3, 8]);
    assert_eq!(ide.packet(&[0x51, 0, 0, 0, 0, 0, 0, 0, 34]).unwrap()[..3], [0, 32, 0x0e]);
    assert_eq!(ide.packet(&[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 255]).unwrap()[8..10], [0x2a, 20]);
    assert_eq!(ide.packet(&[0xff]), Err(5));
}

#[test]
fn a_write_under_way_is_asked_for_again_after_restore() {
    let ide = Ide::new();
    ide.command28(4, 1, 0x30);
    ide.write_words(COMMAND, &[0xcc; 512]);
    let saved = ide.cell.lock().save();
    let other = Ide::new();
    other.cell.lock().restore(&saved).unwrap();
    other.bench.board.router.rebuild();
    assert_eq!(other.cell.lock().save(), saved);
    other.wait();
    assert_eq!((other.status(COMMAND), other.disk.bytes.lock().unwrap()[2048]), (READY, 0xcc));
}

#[test]
fn reset_is_the_state_after_power_on() {
    let ide = Ide::new();
    ide.command28(4, 1, 0x30);
    ide.packet(&[0x1e, 0, 0, 0, 1]).unwrap();
    ide.cell.lock().reset(ResetKind::System);
    let fresh = Ide::new();
    fresh.cell.lock().reset(ResetKind::PowerOn);
    let saved = ide.cell.lock().save();
    assert_eq!(saved, fresh.cell.lock().save());
    assert!(!ide.cd.is_locked());
}
