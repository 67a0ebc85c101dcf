//! Video memory as the CPU sees it through the windows at A0000h to BFFFFh: four planes behind latches, or plain bytes in
//! the banks of the Bochs display interface. Planes are kept interleaved: byte `offset * 4 + plane`.
//! [`Vram`] is the only way to video memory in this device, and it checks every offset.
//! See: IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem", graphics controller and sequencer registers.

use super::registers::Registers;
use engine_memory::{Block, PAGE_BYTES, PageFlags};

/// Video memory. Reads past its end give zeroes, writes past its end are dropped.
#[derive(Clone)]
pub struct Vram(Block);

impl Vram {
    pub fn new(block: Block) -> Self {
        Self(block)
    }

    pub fn len(&self) -> u64 {
        self.0.len()
    }

    pub fn read(&self, offset: u64, into: &mut [u8]) {
        into.fill(0);
        if offset < self.0.len() {
            self.0.read(offset, into);
        }
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) {
        if offset < self.0.len() {
            self.0.write(offset, bytes);
        }
    }

    /// All zeroes, as after power-on. Pages that are zero already are not touched, so the host need not commit them.
    pub fn clear(&self) {
        const ZEROES: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];
        let mut page = ZEROES;
        for number in 0..self.pages() {
            self.read(number * PAGE_BYTES, &mut page);
            if page != ZEROES {
                self.write(number * PAGE_BYTES, &ZEROES);
            }
        }
    }

    /// The four planes at one plane offset.
    fn cell(&self, offset: u64) -> [u8; 4] {
        let mut cell = [0; 4];
        self.read(offset * 4, &mut cell);
        cell
    }

    /// Takes the "written since drawn" flags: one entry per page.
    pub fn take_drawn_on(&self, pages: &mut Vec<bool>) {
        pages.clear();
        pages.extend(self.0.pages().iter().map(|page| page.take_flags(PageFlags::DRAWN_ON) != 0));
    }

    pub fn pages(&self) -> u64 {
        self.0.len() / PAGE_BYTES
    }
}

/// Where an access through the legacy windows goes.
enum Target {
    /// A plain byte of video memory.
    Linear(u64),
    /// A byte behind the planes' latches.
    Planar(Cell),
}

struct Cell {
    offset: u64,
    /// The address as the CPU gave it, whose low bits choose planes.
    address: u64,
}

/// The latches and the logic around them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latches(pub [u8; 4]);

/// Which view of memory the Bochs display interface asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// The standard VGA's 256 KiB.
    Standard,
    /// Planes, with a bank of 64 KiB of addresses.
    PlanarBank(u64),
    /// Plain bytes, with a bank of 64 KiB.
    LinearBank(u64),
}

/// One plane in each byte, set where the bit is.
const fn spread(bits: u8) -> u32 {
    let mut planes = 0;
    let mut plane = 0;
    while plane < 4 {
        if bits >> plane & 1 != 0 {
            planes |= 0xff << (8 * plane);
        }
        plane += 1;
    }
    planes
}

const fn all_planes(byte: u8) -> u32 {
    byte as u32 * 0x0101_0101
}

/// The legacy window, for the length of one access.
pub struct Window<'a> {
    pub registers: &'a Registers,
    pub vram: &'a Vram,
    pub latches: &'a mut Latches,
    pub view: View,
}

impl Window<'_> {
    /// `offset` is from A0000h, up to 1FFFFh.
    fn target(&self, offset: u64) -> Option<Target> {
        if !self.registers.memory_enabled() {
            return None;
        }
        let address = match self.registers.graphics[6] >> 2 & 3 {
            0 => offset,
            1 => Some(offset).filter(|offset| *offset < 0x1_0000)?,
            2 => offset.checked_sub(0x1_0000).filter(|offset| *offset < 0x8000)?,
            _ => offset.checked_sub(0x1_8000)?,
        };
        let bank = match self.view {
            View::LinearBank(bank) => return Some(Target::Linear(bank * 0x1_0000 + address)),
            View::PlanarBank(bank) => bank * 0x1_0000,
            View::Standard => 0,
        };
        let inside = address & 0xffff;
        // Address bits that choose a plane do not reach the memory's address lines.
        let lines = if self.is_chained() {
            inside & !3
        } else if self.registers.graphics[6] & 2 != 0 {
            inside & !1
        } else {
            inside
        };
        Some(Target::Planar(Cell { offset: bank + lines, address }))
    }

    fn is_chained(&self) -> bool {
        self.registers.sequencer[4] & 8 != 0
    }

    pub fn read(&mut self, offset: u64) -> u8 {
        let cell = match self.target(offset) {
            None => return 0xff,
            Some(Target::Linear(at)) => {
                let mut byte = [0];
                self.vram.read(at, &mut byte);
                return byte[0];
            }
            Some(Target::Planar(cell)) => cell,
        };
        self.latches.0 = self.vram.cell(cell.offset);
        let graphics = &self.registers.graphics;
        if graphics[5] & 8 != 0 {
            // Read mode 1: the pixels whose colour matches in the planes that care.
            let differs = u32::from_le_bytes(self.latches.0) ^ spread(graphics[2]);
            let counted = (differs & spread(graphics[7])).to_le_bytes();
            return !counted.iter().fold(0, |any, plane| any | plane);
        }
        let plane = if self.is_chained() {
            cell.address as usize & 3
        } else if graphics[5] & 0x10 != 0 {
            usize::from(graphics[4] & 2) | cell.address as usize & 1
        } else {
            usize::from(graphics[4] & 3)
        };
        self.latches.0[plane]
    }

    /// Writes.
    pub fn write(&mut self, offset: u64, value: u8) {
        match self.target(offset) {
            None => {}
            Some(Target::Linear(at)) => self.vram.write(at, &[value]),
            Some(Target::Planar(cell)) => self.write_planes(&cell, value),
        }
    }

    fn write_planes(&self, cell: &Cell, value: u8) {
        let Registers { sequencer, graphics, .. } = self.registers;
        let mut planes = sequencer[2] & 0x0f;
        if self.is_chained() {
            planes &= 1 << (cell.address & 3);
        } else if sequencer[4] & 4 == 0 {
            planes &= 0b0101 << (cell.address & 1);
        }
        if planes == 0 {
            return;
        }
        let latches = u32::from_le_bytes(self.latches.0);
        let rotated = value.rotate_right(u32::from(graphics[3] & 7));
        let set_reset = spread(graphics[0]);
        let (source, bits) = match graphics[5] & 3 {
            0 => {
                let enabled = spread(graphics[1]);
                (set_reset & enabled | all_planes(rotated) & !enabled, graphics[8])
            }
            1 => (latches, 0),
            2 => (spread(value), graphics[8]),
            _ => (set_reset, graphics[8] & rotated),
        };
        let combined = match graphics[3] >> 3 & 3 {
            0 => source,
            1 => source & latches,
            2 => source | latches,
            _ => source ^ latches,
        };
        let bits = all_planes(bits);
        let new = combined & bits | latches & !bits;
        let chosen = spread(planes);
        let old = u32::from_le_bytes(self.vram.cell(cell.offset));
        self.vram.write(cell.offset * 4, &(old & !chosen | new & chosen).to_le_bytes());
    }
}
