//! Intel 440FX host bridge (0:0.0), as far as software needs it: the PAM registers, which decide for each stretch of
//! C0000h–FFFFFh whether RAM or what lies behind it answers, and the SMRAM register, which can open RAM under the VGA window.
//!
//! Layers in guest memory: the machine puts RAM at priority 0 before this device is plugged in, and the BIOS ROM at the top
//! of 4 GiB. This device lays `i440fx pam …` (priority 5) over RAM: at E0000h–FFFFFh the end of the board's ROM `bios`, below
//! that nothing (device space). `i440fx smram` (priority 25) lies above the VGA window (priority 20).
//! Left out: DRAM row and timing registers (read as zero, are not writable), system management RAM that only SMM sees.
//! See: Intel 290549-001, "440FX PCIset: 82441FX PMC and 82442FX DBX".

use engine_base::rank;
use engine_bus::{
    BuildError, Device, DeviceModel, Options, PciConfig, PciFunction, ResetKind, RestoreError, SavedState, Slot, Wiring,
};
use engine_memory::{Block, Contents, GuestMemory, Layer, MemoryError};
use std::ops::Range;

/// The model.
pub const MODEL: DeviceModel =
    DeviceModel { id: "i440fx", title: "440FX host bridge", slot: Slot::Pci, rank: rank::DEVICE, options: &[], build };

const PAM: Range<u8> = 0x59..0x60;
const SMRAM: u8 = 0x72;
const SMRAM_AT_RESET: u8 = 0x02;
const SMRAM_OPEN: u8 = 1 << 6;
const SMRAM_LOCK: u8 = 1 << 4;
const SMRAM_WRITABLE: u8 = 0x78;

const PAM_PRIORITY: i32 = 5;
const SMRAM_PRIORITY: i32 = 25;
const SMRAM_LAYER: &str = "i440fx smram";

const MEBIBYTE: u64 = 0x10_0000;
const BEHIND_RAM: Range<u64> = 0xc0000..MEBIBYTE;
const VGA_WINDOW: Range<u64> = 0xa0000..0xc0000;

struct HostBridge {
    // Wires
    memory: GuestMemory,
    bios: Option<Block>,
    /// What an undriven bus reads, for stretches that are written to RAM but not read from it.
    open_bus: Block,
    // State the guest can see; all of it is saved
    config: PciConfig,
    /// The SMRAM register: once locked it stays as it is, whatever is written.
    smram: u8,
}

/// A stretch of memory with its two PAM bits.
struct Stretch {
    base: u64,
    len: u64,
    reads_ram: bool,
    writes_ram: bool,
}

fn build(_options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    let memory = wiring.memory();
    let mut config = PciConfig::new(0x8086, 0x1237, (6, 0, 0), 2).with_subsystem(0x1af4, 0x1100);
    config.allow(PAM.start, &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
    config.allow(SMRAM, &[SMRAM_WRITABLE]);
    let mut bridge =
        HostBridge { bios: wiring.rom("bios")?, open_bus: open_bus(&memory)?, memory, config, smram: SMRAM_AT_RESET };
    bridge.reset(ResetKind::PowerOn);
    Ok(Box::new(bridge))
}

fn open_bus(memory: &GuestMemory) -> Result<Block, MemoryError> {
    let len = BEHIND_RAM.end - BEHIND_RAM.start;
    let block = memory.add_block("open bus", len)?;
    block.write(0, &vec![0xff; len as usize]);
    Ok(block)
}

impl HostBridge {
    fn stretches(&self) -> impl Iterator<Item = Stretch> {
        // PAM0's high half is the whole of F0000h–FFFFFh; every other half is 16 KiB, rising from C0000h.
        let first = (0xf0000, 0x10000, self.config.byte(PAM.start) >> 4);
        let config = &self.config;
        let others = (0..12_u8).map(move |i| {
            let register = config.byte(PAM.start + 1 + i / 2);
            (0xc0000 + 0x4000 * u64::from(i), 0x4000, register >> (4 * (i % 2)))
        });
        std::iter::once(first).chain(others).map(|(base, len, bits)| Stretch {
            base,
            len,
            reads_ram: bits & 1 != 0,
            writes_ram: bits & 2 != 0,
        })
    }

    /// RAM at `base`: the machine's layer of priority 0, as a block and an offset.
    fn ram_at(&self, base: u64) -> Option<(Block, u64)> {
        self.memory.layers().into_iter().find_map(|layer| match layer.contents {
            Contents::Ram(block, offset) if layer.priority == 0 && layer.base <= base && base - layer.base < layer.len => {
                Some((block, offset + (base - layer.base)))
            }
            _ => None,
        })
    }

    /// What lies behind RAM at `base`: the end of the BIOS ROM just below 1 MiB, else nothing.
    fn behind_ram(&self, base: u64) -> Option<(Block, u64)> {
        let bios = self.bios.as_ref().filter(|_| base >= 0xe0000)?;
        Some((bios.clone(), bios.len().checked_sub(MEBIBYTE - base)?))
    }

    /// Takes a new value of the SMRAM register as far as its lock allows.
    fn take_smram(&mut self, value: u8) {
        if self.smram & SMRAM_LOCK == 0 {
            let value = value & SMRAM_WRITABLE | SMRAM_AT_RESET;
            self.smram = if value & SMRAM_LOCK != 0 { value & !SMRAM_OPEN } else { value };
        }
        self.config.set_byte(SMRAM, self.smram);
    }

    /// Lays the memory out as the registers say, touching only what changes.
    fn lay_out(&self) {
        let present = self.memory.layers();
        for stretch in self.stretches() {
            let name = format!("i440fx pam {:05x}", stretch.base);
            let Some(contents) = self.contents(&stretch) else {
                self.memory.remove_layer(&name);
                continue;
            };
            let old = present.iter().find(|layer| layer.name == name).map(|layer| &layer.contents);
            if !old.is_some_and(|old| is_same(old, &contents)) {
                self.memory.set_layer(Layer { name, priority: PAM_PRIORITY, base: stretch.base, len: stretch.len, contents });
            }
        }
        let open = self.smram & SMRAM_OPEN != 0;
        match self.ram_at(VGA_WINDOW.start).filter(|_| open) {
            Some((ram, offset)) => self.memory.set_layer(Layer {
                name: SMRAM_LAYER.to_owned(),
                priority: SMRAM_PRIORITY,
                base: VGA_WINDOW.start,
                len: VGA_WINDOW.end - VGA_WINDOW.start,
                contents: Contents::Ram(ram, offset),
            }),
            None => self.memory.remove_layer(SMRAM_LAYER),
        }
    }

    /// What hides RAM in a stretch; `None` where RAM itself answers.
    fn contents(&self, stretch: &Stretch) -> Option<Contents> {
        let ram = self.ram_at(stretch.base);
        let behind = self.behind_ram(stretch.base);
        match (stretch.reads_ram, stretch.writes_ram, ram) {
            (true, true, _) => None,
            (true, false, Some((ram, offset))) => Some(Contents::Rom(ram, offset)),
            (false, true, Some(write)) => {
                let read = behind.unwrap_or_else(|| (self.open_bus.clone(), stretch.base - BEHIND_RAM.start));
                Some(Contents::Split { read, write })
            }
            _ => Some(behind.map_or(Contents::Device, |(rom, offset)| Contents::Rom(rom, offset))),
        }
    }
}

fn is_same(one: &Contents, other: &Contents) -> bool {
    match (one, other) {
        (Contents::Rom(a, x), Contents::Rom(b, y)) => a.is(b) && x == y,
        (Contents::Split { read: (a, x), write: (c, v) }, Contents::Split { read: (b, y), write: (d, w) }) => {
            a.is(b) && x == y && c.is(d) && v == w
        }
        (Contents::Device, Contents::Device) => true,
        _ => false,
    }
}

impl Device for HostBridge {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { memory: _, bios: _, open_bus: _, config, smram } = self;
        config.reset();
        *smram = SMRAM_AT_RESET;
        config.set_byte(SMRAM, SMRAM_AT_RESET);
        self.lay_out();
    }

    fn save(&self) -> SavedState {
        // The SMRAM register is saved as part of the configuration space.
        let Self { memory: _, bios: _, open_bus: _, config, smram: _ } = self;
        SavedState::of(saved::VERSION, &saved::HostBridge { config: config.save() })
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        let saved::HostBridge { config } = saved.read(saved::VERSION)?;
        self.config.restore(&config)?;
        self.smram = 0;
        self.take_smram(self.config.byte(SMRAM));
        self.lay_out();
        Ok(())
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

impl PciFunction for HostBridge {
    fn config(&self) -> &PciConfig {
        &self.config
    }

    fn config_mut(&mut self) -> &mut PciConfig {
        &mut self.config
    }

    fn config_written(&mut self, offset: u8, len: u8) {
        let written = offset..offset.saturating_add(len);
        if written.contains(&SMRAM) {
            self.take_smram(self.config.byte(SMRAM));
        }
        if written.start < PAM.end && PAM.start < written.end || written.contains(&SMRAM) {
            self.lay_out();
        }
    }
}

mod saved {
    use engine_bus::SavedPciConfig;
    use serde::{Deserialize, Serialize};

    pub const VERSION: u32 = 1;

    #[derive(Serialize, Deserialize)]
    pub struct HostBridge {
        pub config: SavedPciConfig,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Bench, moved, reset};

    /// A board with a 256 KiB BIOS whose every 16 KiB begin with their number.
    fn bench() -> (Bench, std::sync::Arc<engine_bus::DeviceCell>) {
        let mut bench = Bench::new();
        let mut rom = vec![0; 0x40000];
        rom.chunks_mut(0x4000).enumerate().for_each(|(i, chunk)| chunk[0] = i as u8 + 1);
        bench.board.roms.insert("bios".into(), rom);
        let cell = bench.plug(&MODEL, &[]);
        (bench, cell)
    }

    fn byte(bench: &Bench, address: u64) -> Option<u8> {
        bench.board.memory.read_array::<1>(address).ok().map(|[byte]| byte)
    }

    #[test]
    fn after_reset_the_end_of_the_bios_is_below_1_mib_and_nothing_else_is() {
        let (bench, _cell) = bench();
        assert_eq!(byte(&bench, 0xbffff), Some(0));
        assert_eq!(byte(&bench, 0xc0000), None);
        assert_eq!(byte(&bench, 0xdc000), None);
        assert_eq!([0xe0000, 0xf0000, 0xfc000].map(|at| byte(&bench, at)), [Some(9), Some(13), Some(16)]);
        bench.board.memory.write(0xf0000, &[99]).unwrap();
        assert_eq!(byte(&bench, 0xf0000), Some(13));
    }

    #[test]
    fn firmware_copies_itself_into_the_ram_behind_it() {
        let (bench, _cell) = bench();
        bench.set_config_byte(0x59, 0x20); // read ROM, write RAM
        bench.board.memory.write(0xf0000, &[77]).unwrap();
        assert_eq!(byte(&bench, 0xf0000), Some(13));
        bench.set_config_byte(0x59, 0x10); // read RAM, write nothing
        assert_eq!(byte(&bench, 0xf0000), Some(77));
        bench.board.memory.write(0xf0000, &[1]).unwrap();
        assert_eq!(byte(&bench, 0xf0000), Some(77));
        bench.set_config_byte(0x59, 0x30);
        bench.board.memory.write(0xf0000, &[1]).unwrap();
        assert_eq!(byte(&bench, 0xf0000), Some(1));
    }

    #[test]
    fn each_half_register_moves_its_own_16_kib() {
        let (bench, cell) = bench();
        bench.set_config_dword(0x58, 0x0003_0000); // PAM1 low: C0000h
        bench.set_config_byte(0x5d, 0x30); // PAM4 high: DC000h
        bench.set_config_byte(0x5b, 0x20); // PAM2 high: CC000h, written only
        bench.board.memory.write(0xcc000, &[5]).unwrap();
        let seen = [0xc0000, 0xc4000, 0xcc000, 0xd8000, 0xdc000].map(|at| byte(&bench, at));
        assert_eq!(seen, [Some(0), None, Some(0xff), None, Some(0)]);
        bench.set_config_byte(0x5b, 0x10);
        assert_eq!(byte(&bench, 0xcc000), Some(5));
        reset(&cell);
        assert_eq!(byte(&bench, 0xdc000), None);
    }

    #[test]
    fn smram_opens_under_the_vga_window_until_locked() {
        let (bench, _cell) = bench();
        let vga = Layer { name: "vga".into(), priority: 20, base: 0xa0000, len: 0x20000, contents: Contents::Device };
        bench.board.memory.set_layer(vga);
        assert_eq!(byte(&bench, 0xa0000), None);
        bench.set_config_byte(SMRAM, 0x4a);
        assert_eq!(byte(&bench, 0xa0000), Some(0));
        bench.set_config_byte(SMRAM, 0x1a);
        assert_eq!(byte(&bench, 0xa0000), None);
        bench.set_config_byte(SMRAM, 0x4a);
        assert_eq!((bench.config_byte(SMRAM), byte(&bench, 0xa0000)), (0x1a, None), "locked");
    }

    #[test]
    fn the_layout_survives_being_saved() {
        let (bench, cell) = bench();
        bench.set_config_byte(0x5a, 0x33);
        let (copy, _) = moved(&bench, &cell, &MODEL);
        assert_eq!([0xc0000, 0xc4000, 0xc8000].map(|at| byte(&copy, at)), [Some(0), Some(0), None]);
    }
}
