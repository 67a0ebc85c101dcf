//! QEMU's firmware configuration device: numbered items and named files that the machine has for firmware, read byte by
//! byte at port 511h or by DMA (ports 514h and 518h, big endian). Signature, revision and the file directory are made here.
//! Left out: writing to items, which is answered with an error as for a read-only file.
//! See: QEMU, docs/specs/fw_cfg.rst.

use engine_base::{rank, warn_limited};
use engine_bus::{
    BuildError, Device, DeviceModel, Dma, FirmwareFile, Options, Port, PortIo, ResetKind, RestoreError, SavedState, SharedNumber,
    Slot, Width, Wiring,
};
use std::collections::BTreeMap;

/// The model.
pub const MODEL: DeviceModel =
    DeviceModel { id: "fw_cfg", title: "Firmware configuration", slot: Slot::Chipset, rank: rank::DEVICE, options: &[], build };

const SELECTOR_PORT: u16 = 0x510;
const DATA_PORT: u16 = 0x511;
const DMA_HIGH_PORT: u16 = 0x514;
const DMA_LOW_PORT: u16 = 0x518;

const SIGNATURE_KEY: u16 = 0x00;
const REVISION_KEY: u16 = 0x01;
const DIRECTORY_KEY: u16 = 0x19;
const FIRST_FILE_KEY: u16 = 0x20;
/// Asks for writing in the old protocol; the item is the same.
const WRITE_CHANNEL: u16 = 0x4000;
const NAME_BYTES: usize = 56;

/// Traditional interface and DMA interface.
const REVISION: u32 = 3;
/// What the DMA register reads.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";

mod control {
    pub const ERROR: u32 = 1 << 0;
    pub const READ: u32 = 1 << 1;
    pub const SKIP: u32 = 1 << 2;
    pub const SELECT: u32 = 1 << 3;
    pub const WRITE: u32 = 1 << 4;
}

/// How many bytes past an item's end one DMA read may ask for.
const MOST_PADDING: u64 = 1 << 20;
const CHUNK: usize = 64 * 1024;

struct FwCfg {
    // Wires
    dma: Dma,
    items: BTreeMap<u16, Item>,
    // State the guest can see; all of it is saved
    key: u16,
    offset: u64,
    dma_high: u32,
}

/// What is behind a key.
#[derive(Default)]
struct Item {
    bytes: Vec<u8>,
    /// A number that is filled in when the item is selected, and where.
    filled: Option<(SharedNumber, Vec<(usize, u32)>)>,
}

impl From<Vec<u8>> for Item {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, filled: None }
    }
}

impl Item {
    /// Brings the numbers in it up to date.
    fn fill(&mut self) {
        let Some((number, places)) = &self.filled else { return };
        let number = number.get();
        for (at, added) in places.iter().filter(|_| number != 0) {
            if let Some(place) = self.bytes.get_mut(*at..*at + 4) {
                place.copy_from_slice(&number.wrapping_add(*added).to_le_bytes());
            }
        }
    }
}

fn build(_options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    let items = items_of(wiring.firmware_files(), |number| wiring.shared_number(number))?;
    wiring.claim_ports(SELECTOR_PORT, 2, Width::Word);
    wiring.claim_ports(DMA_HIGH_PORT, 8, Width::Dword);
    Ok(Box::new(FwCfg { dma: wiring.board_dma(), items, key: 0, offset: 0, dma_high: 0 }))
}

/// Numbers the named files, and makes their directory.
fn items_of(files: Vec<FirmwareFile>, shared_number: impl Fn(&str) -> SharedNumber) -> Result<BTreeMap<u16, Item>, BuildError> {
    let mut items: BTreeMap<u16, Item> =
        BTreeMap::from([(SIGNATURE_KEY, b"QEMU".to_vec().into()), (REVISION_KEY, REVISION.to_le_bytes().to_vec().into())]);
    let mut directory = Vec::new();
    let mut count = 0;
    for file in files {
        let (name, item) = match file {
            FirmwareFile::Item { key, bytes } => {
                items.insert(key, bytes.into());
                continue;
            }
            FirmwareFile::Named { name, bytes } => (name, Item::from(bytes)),
            FirmwareFile::Filled { name, bytes, number, places } => {
                (name, Item { bytes, filled: Some((shared_number(number), places)) })
            }
        };
        let key = FIRST_FILE_KEY + count;
        let size = u32::try_from(item.bytes.len());
        let (true, true, Ok(size)) = (name.len() < NAME_BYTES, key < WRITE_CHANNEL, size) else {
            let missing = format!("the firmware file does not fit into the directory: {name}");
            return Err(BuildError::Missing { device: MODEL.id, missing });
        };
        directory.extend(size.to_be_bytes());
        directory.extend(key.to_be_bytes());
        directory.extend([0, 0]);
        let mut padded = [0; NAME_BYTES];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        directory.extend(padded);
        items.insert(key, item);
        count += 1;
    }
    directory.splice(0..0, u32::from(count).to_be_bytes());
    items.insert(DIRECTORY_KEY, directory.into());
    Ok(items)
}

impl FwCfg {
    fn select(&mut self, key: u16) {
        self.key = key & !WRITE_CHANNEL;
        self.offset = 0;
        if let Some(item) = self.items.get_mut(&self.key) {
            item.fill();
        }
    }

    /// The rest of the selected item.
    fn rest(&self) -> &[u8] {
        let item = self.items.get(&self.key).map_or(&[][..], |item| &item.bytes);
        usize::try_from(self.offset).ok().and_then(|offset| item.get(offset..)).unwrap_or(&[])
    }

    fn read_byte(&mut self) -> u8 {
        let byte = self.rest().first().copied().unwrap_or(0);
        self.offset = self.offset.saturating_add(1);
        byte
    }

    /// Runs the command structure at `address`, and answers in its control word.
    fn run_dma(&mut self, address: u64) {
        let Ok(command) = self.dma.read_array::<16>(address) else {
            warn_limited!(address, "fw_cfg: the DMA command is not in RAM");
            return;
        };
        let [c0, c1, c2, c3, l0, l1, l2, l3, target @ ..] = command;
        let flags = u32::from_be_bytes([c0, c1, c2, c3]);
        let length = u64::from(u32::from_be_bytes([l0, l1, l2, l3]));
        let target = u64::from_be_bytes(target);
        if flags & control::SELECT != 0 {
            self.select((flags >> 16) as u16);
        }
        let done = if flags & control::READ != 0 {
            self.transfer(target, length)
        } else if flags & control::WRITE != 0 {
            warn_limited!(key = self.key, "fw_cfg: the guest writes to an item; they are read-only");
            false
        } else {
            if flags & control::SKIP != 0 {
                self.offset = self.offset.saturating_add(length);
            }
            true
        };
        let answer = if done { 0 } else { control::ERROR };
        if self.dma.write(address, &answer.to_be_bytes()).is_err() {
            warn_limited!(address, "fw_cfg: no place for the answer to a DMA command");
        }
    }

    fn transfer(&mut self, target: u64, length: u64) -> bool {
        if length > self.rest().len() as u64 + MOST_PADDING {
            warn_limited!(key = self.key, length, "fw_cfg: a DMA read far past the end of its item");
            return false;
        }
        let mut done = 0;
        while done < length {
            let now = (length - done).min(CHUNK as u64) as usize;
            let rest = self.rest();
            let mut chunk = rest[..now.min(rest.len())].to_vec();
            chunk.resize(now, 0);
            if self.dma.write(target.wrapping_add(done), &chunk).is_err() {
                warn_limited!(target, length, "fw_cfg: a DMA read to where no RAM is");
                return false;
            }
            self.offset = self.offset.saturating_add(now as u64);
            done += now as u64;
        }
        true
    }
}

impl Device for FwCfg {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { dma: _, items: _, key, offset, dma_high } = self;
        *key = 0;
        *offset = 0;
        *dma_high = 0;
    }

    fn save(&self) -> SavedState {
        let Self { dma: _, items: _, key, offset, dma_high } = self;
        SavedState::of(saved::VERSION, &saved::FwCfg { key: *key, offset: *offset, dma_high: *dma_high })
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        let saved::FwCfg { key, offset, dma_high } = saved.read(saved::VERSION)?;
        self.select(key);
        self.offset = offset;
        self.dma_high = dma_high;
        Ok(())
    }

    fn as_port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for FwCfg {
    fn port_read(&mut self, port: Port, width: Width) -> u32 {
        match (port, width) {
            (Port::Fixed(DATA_PORT), Width::Byte) => self.read_byte().into(),
            (Port::Fixed(port), _) if port >= DMA_HIGH_PORT => {
                let at = usize::from(port - DMA_HIGH_PORT);
                let bytes = DMA_SIGNATURE.iter().skip(at).take(width.bytes() as usize);
                bytes.enumerate().fold(0, |value, (i, byte)| value | u32::from(*byte) << (8 * i))
            }
            _ => 0,
        }
    }

    fn port_write(&mut self, port: Port, width: Width, value: u32) {
        match (port, width) {
            (Port::Fixed(SELECTOR_PORT), Width::Word) => self.select(value as u16),
            (Port::Fixed(DMA_HIGH_PORT), Width::Dword) => self.dma_high = value.swap_bytes(),
            (Port::Fixed(DMA_LOW_PORT), Width::Dword) => {
                // The high half holds for one command.
                let high = std::mem::take(&mut self.dma_high);
                self.run_dma(u64::from(high) << 32 | u64::from(value.swap_bytes()));
            }
            _ => warn_limited!(?port, ?width, "fw_cfg: write that no register takes"),
        }
    }
}

mod saved {
    use serde::{Deserialize, Serialize};

    pub const VERSION: u32 = 1;

    #[derive(Serialize, Deserialize)]
    pub struct FwCfg {
        pub key: u16,
        pub offset: u64,
        pub dma_high: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Bench;

    fn bench() -> Bench {
        let mut bench = Bench::new();
        bench.board.firmware_files = vec![
            FirmwareFile::Item { key: 0x05, bytes: vec![4, 0] },
            FirmwareFile::Named { name: "etc/e820".into(), bytes: b"0123456789".to_vec() },
            FirmwareFile::Named { name: "etc/table-loader".into(), bytes: vec![7] },
        ];
        bench.plug(&MODEL, &[]);
        bench
    }

    fn read(bench: &Bench, key: u16, len: usize) -> Vec<u8> {
        bench.outw(SELECTOR_PORT, key);
        (0..len).map(|_| bench.inb(DATA_PORT)).collect()
    }

    /// Runs a DMA command at 1000h; returns the control word that comes back.
    fn dma(bench: &Bench, control: u32, length: u32, target: u64) -> u32 {
        let command = [&control.to_be_bytes()[..], &length.to_be_bytes(), &target.to_be_bytes()].concat();
        bench.board.memory.write(0x1000, &command).unwrap();
        bench.outl(DMA_HIGH_PORT, 0);
        bench.outl(DMA_LOW_PORT, 0x1000_u32.swap_bytes());
        u32::from_be_bytes(bench.board.memory.read_array(0x1000).unwrap())
    }

    #[test]
    fn firmware_finds_signature_items_and_directory() {
        let bench = bench();
        assert_eq!(read(&bench, 0, 4), b"QEMU");
        assert_eq!(read(&bench, 1, 4), [3, 0, 0, 0]);
        assert_eq!(read(&bench, 5, 4), [4, 0, 0, 0], "zeroes past the end");
        let directory = read(&bench, 0x19, 4 + 2 * 64);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        assert_eq!(directory[4..12], [0, 0, 0, 10, 0, 0x20, 0, 0]);
        assert_eq!(&directory[12..21], b"etc/e820\0");
        assert_eq!(directory[68..76], [0, 0, 0, 1, 0, 0x21, 0, 0]);
    }

    #[test]
    fn what_firmware_decided_is_filled_in_when_it_reads() {
        let mut bench = Bench::new();
        let places = vec![(0, 0), (6, 4)];
        let tables = FirmwareFile::Filled { name: "etc/acpi/tables".into(), bytes: vec![9; 10], number: "a base", places };
        bench.board.firmware_files = vec![tables];
        bench.plug(&MODEL, &[]);
        assert_eq!(read(&bench, 0x20, 10), [9; 10], "nobody has decided yet");
        bench.board.shared_number("a base").set(0xb000);
        assert_eq!(read(&bench, 0x20, 10), [0, 0xb0, 0, 0, 9, 9, 4, 0xb0, 0, 0]);
    }

    #[test]
    fn the_dma_register_shows_its_signature() {
        let bench = bench();
        assert_eq!(bench.inl(DMA_HIGH_PORT).to_le_bytes(), *b"QEMU");
        assert_eq!(bench.inl(DMA_LOW_PORT).to_le_bytes(), *b" CFG");
    }

    #[test]
    fn dma_selects_skips_and_reads_on() {
        let bench = bench();
        assert_eq!(dma(&bench, 0x20 << 16 | control::SELECT | control::SKIP, 3, 0), 0);
        assert_eq!(dma(&bench, control::READ, 4, 0x2000), 0);
        assert_eq!(&bench.board.memory.read_array::<4>(0x2000).unwrap(), b"3456");
        assert_eq!(dma(&bench, control::READ, 6, 0x2000), 0);
        assert_eq!(&bench.board.memory.read_array::<6>(0x2000).unwrap(), b"789\0\0\0");
    }

    #[test]
    fn impossible_dma_is_an_error_and_costs_nothing() {
        let bench = bench();
        let select = 0x20 << 16 | control::SELECT;
        assert_eq!(dma(&bench, select | control::WRITE, 4, 0x2000), control::ERROR);
        assert_eq!(dma(&bench, select | control::READ, 4, 1 << 40), control::ERROR);
        assert_eq!(dma(&bench, select | control::READ, u32::MAX, 0x2000), control::ERROR);
        bench.outl(DMA_LOW_PORT, 0xffff_ffff);
    }
}
