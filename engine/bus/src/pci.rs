//! PCI: the 256-byte configuration space of a function with its write masks and base address registers, and the bus that
//! routes configuration accesses (mechanism #1, ports CF8h/CFCh).
//! See: PCI Local Bus Specification 3.0, chapter 6 and 3.2.2.3.2.

use crate::{DeviceCell, Width};
use engine_memory::Block;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a function sits on bus 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// 0 to 31.
    pub device: u8,
    /// 0 to 7.
    pub function: u8,
}

/// A base address register.
#[derive(Debug, Clone)]
pub struct Bar {
    /// What kind of addresses it decodes.
    pub kind: BarKind,
    /// A power of two: at least 4 for I/O, at least 4096 for memory (so that it is page aligned).
    pub size: u64,
}

/// What a base address register decodes.
#[derive(Debug, Clone)]
pub enum BarKind {
    /// I/O ports: the function's [`crate::PortIo`] face.
    Io,
    /// 32-bit memory with registers behind it: the function's [`crate::Mmio`] face.
    Memory,
    /// 32-bit prefetchable memory that is a block (video memory): the CPU reaches it directly.
    Ram(Block),
    /// The expansion ROM.
    Rom(Block),
}

/// The number of the expansion ROM among the base address registers.
pub const ROM_BAR: u8 = 6;

const COMMAND: usize = 0x04;
const BAR0: usize = 0x10;
const ROM: usize = 0x30;

/// The configuration space of one function.
#[derive(Debug, Clone)]
pub struct PciConfig {
    bytes: [u8; 256],
    writable: [u8; 256],
    write_one_to_clear: [u8; 256],
    bars: [Option<Bar>; 7],
    windows: Vec<IoWindow>,
}

/// I/O ports whose base is not in a base address register but in one of the function's own (PIIX4 power management).
#[derive(Debug, Clone)]
struct IoWindow {
    index: u8,
    register: u8,
    enable: (u8, u8),
    bar: Bar,
}

/// The saved form: the bytes alone, since masks and sizes belong to the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPciConfig(Vec<u8>);

impl PciConfig {
    /// A function with these identifiers. `class` is `(base class, subclass, programming interface)`.
    pub fn new(vendor: u16, device: u16, class: (u8, u8, u8), revision: u8) -> Self {
        let mut config = Self {
            bytes: [0; 256],
            writable: [0; 256],
            write_one_to_clear: [0; 256],
            bars: [const { None }; 7],
            windows: Vec::new(),
        };
        config.bytes[0..2].copy_from_slice(&vendor.to_le_bytes());
        config.bytes[2..4].copy_from_slice(&device.to_le_bytes());
        config.bytes[8..12].copy_from_slice(&[revision, class.2, class.1, class.0]);
        config.allow(COMMAND as u8, &[0x07, 0x04]); // I/O, memory, bus master; interrupt disable
        config.allow(0x0c, &[0xff, 0xff]); // cache line size, latency timer
        config.allow(0x3c, &[0xff]); // interrupt line
        config
    }

    /// Subsystem identifiers.
    #[must_use]
    pub fn with_subsystem(mut self, vendor: u16, device: u16) -> Self {
        self.bytes[0x2c..0x2e].copy_from_slice(&vendor.to_le_bytes());
        self.bytes[0x2e..0x30].copy_from_slice(&device.to_le_bytes());
        self
    }

    /// Interrupt pin: 1 for INTA#.
    #[must_use]
    pub fn with_interrupt_pin(mut self, pin: u8) -> Self {
        self.bytes[0x3d] = pin;
        self
    }

    /// Marks the function as one of several of its device.
    #[must_use]
    pub fn multifunction(mut self) -> Self {
        self.bytes[0x0e] |= 0x80;
        self
    }

    /// Gives it base address register `index` (0 to 5, or [`ROM_BAR`]).
    ///
    /// # Panics
    /// When the size is not a power of two in the allowed range: a bug in the model.
    #[must_use]
    pub fn with_bar(mut self, index: u8, kind: BarKind, size: u64) -> Self {
        let least = if matches!(kind, BarKind::Io) { 4 } else { 4096 };
        assert!(size.is_power_of_two() && size >= least && size <= 1 << 31, "impossible BAR size {size:#x}");
        let at = if index == ROM_BAR { ROM } else { BAR0 + 4 * usize::from(index) };
        let mask = !(size as u32 - 1);
        let (fixed, mask) = match kind {
            BarKind::Io => (1, mask & !3),
            BarKind::Memory => (0, mask & !15),
            BarKind::Ram(_) => (8, mask & !15),
            BarKind::Rom(_) => (0, (mask & !0x7ff) | 1),
        };
        self.bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(fixed));
        self.writable[at..at + 4].copy_from_slice(&mask.to_le_bytes());
        self.bars[usize::from(index)] = Some(Bar { kind, size });
        self
    }

    /// Gives it `size` I/O ports whose base is in the 32-bit register at `register`, and which answer while the bit `enable`
    /// (offset, mask) is set, whatever the command register says. They arrive as [`crate::Port::Bar`] with `index`, which
    /// must be above [`ROM_BAR`]. The masks of both registers are the caller's to set.
    ///
    /// # Panics
    /// When the size or the index is not possible: a bug in the model.
    #[must_use]
    pub fn with_io_window(mut self, index: u8, register: u8, size: u64, enable: (u8, u8)) -> Self {
        assert!(size.is_power_of_two() && (4..=256).contains(&size) && index > ROM_BAR, "impossible I/O window");
        self.windows.push(IoWindow { index, register, enable, bar: Bar { kind: BarKind::Io, size } });
        self
    }

    /// Lets the guest write these bits from `offset` on.
    pub fn allow(&mut self, offset: u8, masks: &[u8]) {
        for (i, mask) in masks.iter().enumerate() {
            if let Some(byte) = self.writable.get_mut(usize::from(offset) + i) {
                *byte |= mask;
            }
        }
    }

    /// Lets the guest clear these bits from `offset` on by writing ones (status registers).
    pub fn allow_clear(&mut self, offset: u8, masks: &[u8]) {
        for (i, mask) in masks.iter().enumerate() {
            if let Some(byte) = self.write_one_to_clear.get_mut(usize::from(offset) + i) {
                *byte |= mask;
            }
        }
    }

    /// A byte.
    pub fn byte(&self, offset: u8) -> u8 {
        self.bytes[usize::from(offset)]
    }

    /// Sets a byte past the masks: the device's own doing.
    pub fn set_byte(&mut self, offset: u8, value: u8) {
        self.bytes[usize::from(offset)] = value;
    }

    /// Four bytes, little endian; reads past the end as zero.
    pub fn dword(&self, offset: u8) -> u32 {
        (0..4).rev().fold(0, |value, i| value << 8 | u32::from(*self.bytes.get(usize::from(offset) + i).unwrap_or(&0)))
    }

    /// A guest read.
    pub fn read(&self, offset: u8, width: Width) -> u32 {
        self.dword(offset) & width.all_ones() as u32
    }

    /// A guest write, through the masks.
    pub fn write(&mut self, offset: u8, width: Width, value: u32) {
        for (i, new) in value.to_le_bytes().iter().take(width.bytes() as usize).enumerate() {
            let Some(at) = usize::from(offset).checked_add(i).filter(|at| *at < 256) else { return };
            let mask = self.writable[at];
            let kept = self.bytes[at] & !mask & !(new & self.write_one_to_clear[at]);
            self.bytes[at] = kept | new & mask;
        }
    }

    /// Whether the function may be bus master.
    pub fn is_bus_master(&self) -> bool {
        self.bytes[COMMAND] & 4 != 0
    }

    /// Whether the command register masks INTx.
    pub fn is_intx_disabled(&self) -> bool {
        self.bytes[COMMAND + 1] & 4 != 0
    }

    /// The base address registers that decode now: index, base address, register.
    pub fn mapped(&self) -> impl Iterator<Item = (u8, u64, &Bar)> {
        let command = self.bytes[COMMAND];
        let windows = self.windows.iter().filter_map(|window| {
            let base = u64::from(self.dword(window.register)) & 0xffff & !(window.bar.size - 1);
            let enabled = self.byte(window.enable.0) & window.enable.1 != 0;
            (enabled && base != 0).then_some((window.index, base, &window.bar))
        });
        let bars = self.bars.iter().enumerate().filter_map(move |(index, bar)| {
            let bar = bar.as_ref()?;
            let rom = index == usize::from(ROM_BAR);
            let raw = self.dword(if rom { ROM } else { BAR0 + 4 * index } as u8);
            let enabled = match bar.kind {
                BarKind::Io => command & 1 != 0,
                BarKind::Rom(_) => command & 2 != 0 && raw & 1 != 0,
                _ => command & 2 != 0,
            };
            let base = u64::from(raw) & !(bar.size - 1);
            // A register that still holds zero, or all ones while its size is probed, decodes nothing.
            let placed = base != 0 && base + bar.size <= if matches!(bar.kind, BarKind::Io) { 0x1_0000 } else { 0xffff_f000 };
            (enabled && placed).then_some((index as u8, base, bar))
        });
        bars.chain(windows)
    }

    /// Back to the state after reset: every guest-writable bit zero.
    pub fn reset(&mut self) {
        for (byte, mask) in self.bytes.iter_mut().zip(&self.writable) {
            *byte &= !mask;
        }
    }

    /// For the device's saved state.
    pub fn save(&self) -> SavedPciConfig {
        SavedPciConfig(self.bytes.to_vec())
    }

    /// Takes saved bytes over: only the guest-writable and clearable bits, the rest is the model's.
    ///
    /// # Errors
    /// When there are not 256 bytes.
    pub fn restore(&mut self, saved: &SavedPciConfig) -> Result<(), crate::RestoreError> {
        if saved.0.len() != 256 {
            return Err(crate::RestoreError::impossible("PCI configuration space is not 256 bytes"));
        }
        for (at, byte) in self.bytes.iter_mut().enumerate() {
            let guest = self.writable[at] | self.write_one_to_clear[at];
            *byte = *byte & !guest | saved.0[at] & guest;
        }
        Ok(())
    }
}

/// Bus 0: which function sits where.
#[derive(Default)]
pub struct PciBus {
    functions: BTreeMap<PciAddress, Arc<DeviceCell>>,
}

impl PciBus {
    pub(crate) fn insert(&mut self, address: PciAddress, cell: Arc<DeviceCell>) {
        self.functions.insert(address, cell);
    }

    /// The function at an address.
    pub fn function(&self, address: PciAddress) -> Option<&Arc<DeviceCell>> {
        self.functions.get(&address)
    }

    /// All functions.
    pub fn functions(&self) -> impl Iterator<Item = (PciAddress, &Arc<DeviceCell>)> {
        self.functions.iter().map(|(address, cell)| (*address, cell))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizing_a_bar_reads_its_mask_and_maps_nothing() {
        let mut config = PciConfig::new(0x1234, 0x1111, (3, 0, 0), 2).with_bar(0, BarKind::Io, 32);
        config.write(4, Width::Word, 1);
        config.write(0x10, Width::Dword, 0xffff_ffff);
        assert_eq!(config.read(0x10, Width::Dword), 0xffff_ffe1);
        assert_eq!(config.mapped().count(), 0);
        config.write(0x10, Width::Dword, 0xc041);
        let mapped: Vec<_> = config.mapped().map(|(index, base, bar)| (index, base, bar.size)).collect();
        assert_eq!(mapped, [(0, 0xc040, 32)]);
    }

    #[test]
    fn an_io_window_follows_its_register_and_its_enable_bit() {
        let mut config = PciConfig::new(0x8086, 0x7113, (6, 0x80, 0), 3).with_io_window(8, 0x40, 64, (0x80, 1));
        config.allow(0x40, &[0xc0, 0xff]);
        config.allow(0x80, &[1]);
        config.write(0x40, Width::Dword, 0xffff_0601);
        assert_eq!(config.mapped().count(), 0);
        config.write(0x80, Width::Byte, 1);
        let mapped: Vec<_> = config.mapped().map(|(index, base, bar)| (index, base, bar.size)).collect();
        assert_eq!(mapped, [(8, 0x600, 64)]);
    }

    #[test]
    fn identifiers_cannot_be_written() {
        let mut config = PciConfig::new(0x8086, 0x1237, (6, 0, 0), 2);
        config.write(0, Width::Dword, 0);
        assert_eq!(config.read(0, Width::Dword), 0x1237_8086);
    }
}
