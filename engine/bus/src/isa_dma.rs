//! The eight ISA DMA channels: their registers, which the 8237 pair shows to the guest ([`IsaDma`]), and the end that a
//! card with a DREQ line holds ([`IsaDmaChannel`]). The registers lie here, under a leaf lock, because the card moves
//! data while its own lock is held and may not lock another device.
//! Left out: cascade masters on a channel, memory-to-memory transfers, bus timing.
//! See: Intel 231466-005, "8237A High Performance Programmable DMA Controller".

use engine_base::{RankedMutex, rank};
use engine_memory::GuestMemory;
use std::sync::Arc;

/// All channels of a board; clones share them. Channel 4 is the cascade of the first controller into the second.
#[derive(Clone)]
pub struct IsaDma(Arc<RankedMutex<[IsaDmaRegisters; 8]>>);

/// The registers of one channel. Addresses and counts of channels 5 to 7 are in 16-bit words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IsaDmaRegisters {
    /// What the address starts from, and returns to with autoinitialisation.
    pub base_address: u16,
    /// Units less one.
    pub base_count: u16,
    /// Where the next unit goes.
    pub address: u16,
    /// Units left, less one.
    pub count: u16,
    /// Address bits 16 to 23 (17 to 23 on channels 5 to 7).
    pub page: u8,
    /// The mode register, without its channel number: see [`IsaDmaRegisters::direction`].
    pub mode: u8,
    /// Requests of the card are ignored.
    pub masked: bool,
    /// The whole controller is switched off by its command register.
    pub disabled: bool,
    /// The count has run out since the status register was last read.
    pub terminal_count: bool,
}

/// Which way a channel is programmed to move data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IsaDmaDirection {
    /// Nothing moves, but addresses and counts run.
    Verify,
    /// From the card to memory ("write transfer").
    ToMemory,
    /// From memory to the card ("read transfer").
    FromMemory,
}

/// What a transfer came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IsaDmaTransfer {
    /// Bytes moved; fewer than offered when the count ran out.
    pub bytes: usize,
    /// The count ran out: the TC line.
    pub terminal_count: bool,
}

const MODE_DECREMENT: u8 = 1 << 5;
const MODE_AUTOINITIALISE: u8 = 1 << 4;

impl IsaDmaRegisters {
    /// After reset: masked.
    pub const RESET: Self = Self {
        base_address: 0,
        base_count: 0,
        address: 0,
        count: 0,
        page: 0,
        mode: 0,
        masked: true,
        disabled: false,
        terminal_count: false,
    };

    /// Mode register bits 2 and 3; the reserved value moves nothing.
    pub fn direction(&self) -> IsaDmaDirection {
        match self.mode >> 2 & 3 {
            1 => IsaDmaDirection::ToMemory,
            2 => IsaDmaDirection::FromMemory,
            _ => IsaDmaDirection::Verify,
        }
    }

    /// Takes up to `units` off the channel in one stretch of rising addresses (or one unit of falling ones): where it
    /// starts in memory, how many units, and whether the count ran out.
    fn take(&mut self, units: usize, wide: bool) -> (u64, usize, bool) {
        let down = self.mode & MODE_DECREMENT != 0;
        let until_wrap = if down { 1 } else { 0x1_0000 - usize::from(self.address) };
        let units = units.min(until_wrap).min(usize::from(self.count) + 1);
        let start = if wide {
            u64::from(self.page & 0xfe) << 16 | u64::from(self.address) << 1
        } else {
            u64::from(self.page) << 16 | u64::from(self.address)
        };
        self.address = if down { self.address.wrapping_sub(1) } else { self.address.wrapping_add(units as u16) };
        let end = units > usize::from(self.count);
        self.count = self.count.wrapping_sub(units as u16);
        if end {
            self.terminal_count = true;
            if self.mode & MODE_AUTOINITIALISE != 0 {
                (self.address, self.count) = (self.base_address, self.base_count);
            } else {
                self.masked = true;
            }
        }
        (start, units, end)
    }
}

impl Default for IsaDma {
    fn default() -> Self {
        Self(Arc::new(RankedMutex::new(rank::LEAF, "isa dma", [IsaDmaRegisters::RESET; 8])))
    }
}

impl IsaDma {
    /// Looks at, and changes, the registers of channel `number` (0 to 7).
    pub fn with<T>(&self, number: u8, look: impl FnOnce(&mut IsaDmaRegisters) -> T) -> T {
        look(&mut self.0.lock()[usize::from(number & 7)])
    }
}

/// A card's end of one channel.
#[derive(Clone)]
pub struct IsaDmaChannel {
    dma: IsaDma,
    number: u8,
    memory: GuestMemory,
}

impl IsaDmaChannel {
    pub(crate) fn new(dma: IsaDma, number: u8, memory: GuestMemory) -> Self {
        Self { dma, number: number & 7, memory }
    }

    /// The direction the guest has set up; `None` while the channel is masked, so that the card has to wait.
    pub fn ready(&self) -> Option<IsaDmaDirection> {
        self.dma.with(self.number, |channel| (!channel.masked && !channel.disabled).then(|| channel.direction()))
    }

    /// Offers `bytes` to memory. They are dropped when the channel is set to verify or to the other direction, and where
    /// no RAM answers: the controller cannot tell.
    pub fn write_memory(&self, bytes: &[u8]) -> IsaDmaTransfer {
        self.run(bytes.len(), |direction, address, range| {
            if direction == IsaDmaDirection::ToMemory && self.memory.write(address, &bytes[range]).is_err() {
                engine_base::warn_limited!(channel = self.number, address, "ISA DMA to an address without RAM");
            }
        })
    }

    /// Fills `into` from memory; what cannot be read is all ones.
    pub fn read_memory(&self, into: &mut [u8]) -> IsaDmaTransfer {
        into.fill(0xff);
        self.run(into.len(), |direction, address, range| {
            if direction == IsaDmaDirection::FromMemory && self.memory.read(address, &mut into[range]).is_err() {
                engine_base::warn_limited!(channel = self.number, address, "ISA DMA from an address without RAM");
            }
        })
    }

    fn run(&self, len: usize, mut copy: impl FnMut(IsaDmaDirection, u64, std::ops::Range<usize>)) -> IsaDmaTransfer {
        let wide = self.number >= 4;
        let unit = if wide { 2 } else { 1 };
        let mut done = 0;
        while done + unit <= len {
            let stretch = self.dma.with(self.number, |channel| {
                let ready = !channel.masked && !channel.disabled;
                ready.then(|| (channel.direction(), channel.take((len - done) / unit, wide)))
            });
            let Some((direction, (address, units, end))) = stretch else { break };
            copy(direction, address, done..done + units * unit);
            done += units * unit;
            if end {
                return IsaDmaTransfer { bytes: done, terminal_count: true };
            }
        }
        IsaDmaTransfer { bytes: done, terminal_count: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_memory::{Contents, Layer};

    fn board() -> (IsaDma, GuestMemory) {
        let memory = GuestMemory::new();
        let ram = memory.add_block("ram", 1 << 20).unwrap();
        memory.set_layer(Layer { name: "ram".into(), priority: 0, base: 0, len: 1 << 20, contents: Contents::Ram(ram, 0) });
        (IsaDma::default(), memory)
    }

    fn program(dma: &IsaDma, number: u8, mode: u8, page: u8, address: u16, count: u16) {
        let registers =
            IsaDmaRegisters { address, count, base_address: address, base_count: count, page, mode, ..IsaDmaRegisters::RESET };
        dma.with(number, |channel| *channel = IsaDmaRegisters { masked: false, ..registers });
    }

    #[test]
    fn a_masked_channel_moves_nothing() {
        let (dma, memory) = board();
        let channel = IsaDmaChannel::new(dma, 2, memory);
        assert_eq!(channel.ready(), None);
        assert_eq!(channel.write_memory(&[1, 2, 3]), IsaDmaTransfer { bytes: 0, terminal_count: false });
    }

    #[test]
    fn the_address_wraps_inside_its_page_and_the_count_ends_the_transfer() {
        let (dma, memory) = board();
        program(&dma, 2, 0x44, 2, 0xfffe, 3);
        let channel = IsaDmaChannel::new(dma.clone(), 2, memory.clone());
        assert_eq!(channel.write_memory(b"abcdef"), IsaDmaTransfer { bytes: 4, terminal_count: true });
        assert_eq!(&memory.read_array::<2>(0x2fffe).unwrap(), b"ab");
        assert_eq!(&memory.read_array::<2>(0x20000).unwrap(), b"cd");
        assert!(dma.with(2, |channel| channel.masked && channel.terminal_count));
    }

    #[test]
    fn autoinitialisation_starts_over_unmasked() {
        let (dma, memory) = board();
        program(&dma, 1, 0x58, 0, 0x100, 1);
        memory.write(0x100, b"xy").unwrap();
        let channel = IsaDmaChannel::new(dma, 1, memory);
        for _ in 0..2 {
            let mut got = [0; 2];
            assert!(channel.read_memory(&mut got).terminal_count);
            assert_eq!(&got, b"xy");
        }
    }

    #[test]
    fn channels_5_to_7_count_words() {
        let (dma, memory) = board();
        program(&dma, 5, 0x44, 3, 0x8000, 0);
        let channel = IsaDmaChannel::new(dma, 5, memory.clone());
        assert_eq!(channel.write_memory(b"wxyz"), IsaDmaTransfer { bytes: 2, terminal_count: true });
        assert_eq!(&memory.read_array::<2>(0x30000).unwrap(), b"wx", "page bit 0 is not used, the address is doubled");
    }
}
