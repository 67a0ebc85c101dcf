//! The floppy controller on a bench, with the ISA DMA controller and a disk in memory.

use super::*;
use crate::bench::Bench;
use crate::storage::memory_disk::{MemoryDisk, medium};
use engine_bus::{DeviceCell, DriveServer};
use std::sync::Arc;

const BUFFER: u64 = 0x8000;
const TO_MEMORY_MODE: u8 = 0x44;
const FROM_MEMORY_MODE: u8 = 0x48;

struct Floppy {
    bench: Bench,
    cell: Arc<DeviceCell>,
    disk: Arc<MemoryDisk>,
    drive: Drive,
    _server: DriveServer,
}

impl Floppy {
    /// A 1.44 MB disk in drive 0, the controller out of reset and its four reports taken.
    fn new() -> Self {
        Self::holding(MemoryDisk::new(2880 * 512))
    }

    fn holding(disk: Arc<MemoryDisk>) -> Self {
        let mut bench = Bench::new();
        let (drive, server) = Drive::new("floppy0");
        drive.set_medium(medium(Arc::clone(&disk)));
        drive.serve_in_place(&bench.board.timers);
        bench.board.drives.insert("floppy0".to_owned(), drive.clone());
        bench.plug(&crate::legacy::i8237::MODEL, &[]);
        let cell = bench.plug(&MODEL, &[]);
        let floppy = Self { bench, cell, disk, drive, _server: server };
        floppy.bench.outb(DIGITAL_OUTPUT, 0x1c);
        for unit in 0..4 {
            assert_eq!(floppy.command(&[0x08]), [0xc0 | unit, 0]);
        }
        floppy.bench.outb(DIGITAL_INPUT, 0);
        floppy
    }

    fn wait(&self) {
        self.bench.advance(20_000_000);
    }

    /// Sends a command and takes its result, whatever it is.
    fn command(&self, bytes: &[u8]) -> Vec<u8> {
        for byte in bytes {
            assert_eq!(self.bench.inb(MAIN_STATUS) & 0xc0, 0x80, "it wants a byte");
            self.bench.outb(FIFO, *byte);
        }
        self.wait();
        std::iter::from_fn(|| (self.bench.inb(MAIN_STATUS) & 0xd0 == 0xd0).then(|| self.bench.inb(FIFO))).collect()
    }

    fn program_dma(&self, mode: u8, bytes: u16) {
        let ([count_low, count_high], [low, high]) = ((bytes - 1).to_le_bytes(), (BUFFER as u16).to_le_bytes());
        let ports = [(0x0a, 6), (0x0c, 0), (0x0b, mode | 2), (0x04, low), (0x04, high), (0x05, count_low), (0x05, count_high)];
        for (port, value) in ports.into_iter().chain([(0x81, 0), (0x0a, 2)]) {
            self.bench.outb(port, value);
        }
    }

    fn memory(&self, offset: u64) -> u8 {
        self.bench.board.memory.read_array::<1>(BUFFER + offset).unwrap()[0]
    }
}

#[test]
fn a_reset_interrupts_and_four_drives_report_in() {
    let floppy = Floppy::new();
    floppy.bench.outb(DIGITAL_OUTPUT, 0x18);
    assert_eq!(floppy.bench.inb(MAIN_STATUS), 0);
    floppy.bench.outb(DIGITAL_OUTPUT, 0x1c);
    assert!(floppy.bench.level("isa-irq6"));
    assert_eq!(floppy.command(&[0x08]), [0xc0, 0]);
    assert!(!floppy.bench.level("isa-irq6"));
    (0..3).for_each(|_| drop(floppy.command(&[0x08])));
    assert_eq!(floppy.command(&[0x08]), [0x80], "nothing more to sense");
}

#[test]
fn sectors_are_read_by_dma_until_terminal_count() {
    let floppy = Floppy::new();
    floppy.program_dma(TO_MEMORY_MODE, 1024);
    // Cylinder 1, head 1, sector 2 is (1 * 2 + 1) * 18 + 1 = 55.
    assert_eq!(floppy.command(&[0x66, 0x04, 1, 1, 2, 2, 18, 0x1b, 0xff]), [0x04, 0, 0, 1, 1, 4, 2]);
    assert_eq!((floppy.memory(0), floppy.memory(511), floppy.memory(1023)), (55, 55, 56));
}

#[test]
fn a_multi_track_read_goes_on_with_the_other_side() {
    let floppy = Floppy::new();
    floppy.program_dma(TO_MEMORY_MODE, 4 * 512);
    assert_eq!(floppy.command(&[0xe6, 0x00, 0, 0, 17, 2, 18, 0x1b, 0xff]), [0x04, 0, 0, 0, 1, 3, 2]);
    assert_eq!((floppy.memory(0), floppy.memory(1024), floppy.memory(2047)), (16, 18, 19));
}

#[test]
fn reading_past_the_last_sector_is_the_end_of_the_cylinder() {
    let floppy = Floppy::new();
    floppy.program_dma(TO_MEMORY_MODE, 4 * 512);
    assert_eq!(floppy.command(&[0x46, 0x00, 0, 0, 17, 2, 18, 0x1b, 0xff])[..2], [0x40, 0x80]);
    assert_eq!(floppy.command(&[0x46, 0x00, 80, 0, 1, 2, 18, 0x1b, 0xff])[..2], [0x40, 0x04]);
}

#[test]
fn the_transfer_waits_for_its_dma_channel() {
    let floppy = Floppy::new();
    assert_eq!(floppy.command(&[0x46, 0x00, 0, 0, 1, 2, 18, 0x1b, 0xff]), []);
    assert_eq!(floppy.bench.inb(MAIN_STATUS), BUSY);
    floppy.program_dma(TO_MEMORY_MODE, 512);
    floppy.wait();
    assert!(floppy.bench.level("isa-irq6"));
    assert_eq!(floppy.bench.inb(FIFO), 0);
}

#[test]
fn sectors_are_written_by_dma_and_protected_disks_are_not() {
    let floppy = Floppy::new();
    floppy.bench.board.memory.write(BUFFER, &[0xab; 512]).unwrap();
    floppy.program_dma(FROM_MEMORY_MODE, 512);
    assert_eq!(floppy.command(&[0x45, 0x00, 0, 0, 3, 2, 18, 0x1b, 0xff])[..2], [0, 0]);
    let bytes = floppy.disk.bytes.lock().unwrap()[1023..1537].to_vec();
    assert_eq!((bytes[0], bytes[1], bytes[512], bytes[513]), (1, 0xab, 0xab, 3));
    floppy.drive.set_medium(medium(Arc::clone(&floppy.disk)).map(|medium| engine_bus::Medium { read_only: true, ..medium }));
    floppy.program_dma(FROM_MEMORY_MODE, 512);
    assert_eq!(floppy.command(&[0x45, 0x00, 0, 0, 3, 2, 18, 0x1b, 0xff])[..2], [0x40, 0x02]);
    assert_eq!(floppy.command(&[0x04, 0x00]), [0x78]);
}

#[test]
fn sectors_are_read_through_the_data_register_without_dma() {
    let floppy = Floppy::new();
    floppy.command(&[0x03, 0xdf, 0x03]);
    for byte in [0x46, 0x00, 0, 0, 5, 2, 5, 0x1b, 0xff] {
        floppy.bench.outb(FIFO, byte);
    }
    floppy.wait();
    assert!(floppy.bench.level("isa-irq6"));
    assert_eq!(floppy.bench.inb(MAIN_STATUS), 0xf0);
    assert!((0..512).all(|_| floppy.bench.inb(FIFO) == 4));
    assert_eq!(floppy.command(&[])[..2], [0x40, 0x80]);
}

#[test]
fn formatting_fills_the_sectors_it_is_told() {
    let floppy = Floppy::new();
    let ids: Vec<u8> = (1..=18).flat_map(|sector| [2, 0, sector, 2]).collect();
    floppy.bench.board.memory.write(BUFFER, &ids).unwrap();
    floppy.program_dma(FROM_MEMORY_MODE, 72);
    floppy.command(&[0x0f, 0, 2]);
    floppy.command(&[0x08]);
    assert_eq!(floppy.command(&[0x4d, 0x00, 2, 18, 0x54, 0xf6])[..2], [0, 0]);
    let bytes = floppy.disk.bytes.lock().unwrap();
    let track = 72 * 512..90 * 512;
    assert!(bytes[track.clone()].iter().all(|byte| *byte == 0xf6));
    assert_ne!((bytes[track.start - 1], bytes[track.end]), (0xf6, 0xf6));
}

#[test]
fn the_disk_change_line_falls_with_a_step_and_rises_with_a_new_disk() {
    let floppy = Floppy::new();
    assert_eq!(floppy.bench.inb(DIGITAL_INPUT), 0x80);
    assert_eq!(floppy.command(&[0x0f, 0, 5]), []);
    assert_eq!(floppy.command(&[0x08]), [0x20, 5]);
    assert_eq!(floppy.bench.inb(DIGITAL_INPUT), 0);
    floppy.drive.set_medium(None);
    assert_eq!(floppy.bench.inb(DIGITAL_INPUT), 0x80);
    floppy.command(&[0x07, 0]);
    assert_eq!(floppy.command(&[0x08]), [0x20, 0]);
    assert_eq!(floppy.bench.inb(DIGITAL_INPUT), 0x80, "there is no disk to step over");
    assert_eq!(floppy.command(&[0x4a, 0])[..2], [0x40, 0x05]);
}

#[test]
fn the_wrong_data_rate_finds_no_address_marks() {
    let floppy = Floppy::new();
    floppy.bench.outb(DIGITAL_INPUT, 2);
    assert_eq!(floppy.command(&[0x4a, 0])[..2], [0x40, 0x01]);
    floppy.bench.outb(DIGITAL_INPUT, 0);
    assert_eq!(floppy.command(&[0x4a, 0]), [0, 0, 0, 0, 0, 1, 2]);
}

#[test]
fn drives_that_are_not_there_never_find_track_0() {
    let floppy = Floppy::new();
    floppy.command(&[0x07, 1]);
    assert_eq!(floppy.command(&[0x08]), [0x71, 0]);
    floppy.command(&[0x07, 3]);
    assert_eq!(floppy.command(&[0x08]), [0x73, 0]);
}

#[test]
fn it_names_itself_and_refuses_what_it_does_not_know() {
    let floppy = Floppy::new();
    assert_eq!(floppy.command(&[0x10]), [0x90]);
    assert_eq!(floppy.command(&[0x94]), [0x10]);
    assert_eq!(floppy.command(&[0x0e]).len(), 10);
    assert_eq!(floppy.command(&[0x1f]), [0x80]);
}

#[test]
fn sizes_choose_geometries() {
    for (kibibytes, expected) in
        [(160, (40, 1, 8)), (360, (40, 2, 9)), (1440, (80, 2, 18)), (1200, (80, 2, 15)), (2880, (80, 2, 36))]
    {
        let found = Geometry::of(kibibytes * 1024).unwrap();
        assert_eq!((found.tracks, found.heads, found.sectors), expected, "{kibibytes} KiB");
    }
    assert_eq!(Geometry::of(0), None);
}

#[test]
fn a_read_under_way_goes_on_in_another_machine() {
    let floppy = Floppy::new();
    for byte in [0x46, 0x00, 0, 0, 1, 2, 18, 0x1b, 0xff] {
        floppy.bench.outb(FIFO, byte);
    }
    let saved = floppy.cell.lock().save();
    let other = Floppy::new();
    other.cell.lock().restore(&saved).unwrap();
    let copy = other.cell.lock().save();
    assert_eq!(copy, saved);
    other.program_dma(TO_MEMORY_MODE, 512);
    other.wait();
    assert_eq!(other.command(&[])[..2], [0, 0]);
}
