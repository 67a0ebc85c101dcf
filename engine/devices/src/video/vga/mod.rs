//! Standard VGA with the Bochs display interface: text, CGA and planar modes, 320x200 with 256 colours chained and
//! unchained, and any size and depth as a linear frame buffer. Registers in `registers.rs`, the planes' logic in
//! `memory.rs`, the display interface in `vbe.rs`, pixels in `draw.rs`.
//!
//! BAR 0 is video memory itself, which CPUs write without asking; its page flags say what to draw again. BAR 2 holds the
//! monitor's EDID, the VGA registers from 400h, the display interface from 500h and the byte order from 604h.
//! Left out: big-endian frame buffers, interrupts at vertical retrace (PCI VGAs have none), light pen.
//! See: IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem"; QEMU `docs/specs/standard-vga`.

mod draw;
mod edid;
mod memory;
mod registers;
#[cfg(test)]
mod tests;
mod vbe;

use draw::{Drawn, Standard};
use engine_base::{Clock, rank, warn_limited};
use engine_bus::{
    BarKind, BuildError, Device, DeviceModel, Mmio, Options, PciConfig, PciFunction, Port, PortIo, ROM_BAR, ResetKind,
    RestoreError, SavedState, ScreenSource, Slot, Width, Wiring,
};
use engine_display::Screen;
use engine_memory::PAGE_BYTES;
use memory::{Latches, View, Vram, Window};
use registers::{Change, Registers};
use vbe::{Effect, Vbe};

/// The model.
pub const MODEL: DeviceModel = DeviceModel {
    id: "VGA",
    title: "Standard VGA",
    slot: Slot::Pci,
    rank: rank::DEVICE,
    options: &[
        ("vgamem_mb", "video memory in MiB: 1 to 256, a power of two"),
        ("xres", "the monitor's preferred width in pixels"),
        ("yres", "the monitor's preferred height in pixels"),
    ],
    build,
};

const LEGACY_WINDOW: u8 = 16;
const LEGACY_BASE: u64 = 0xa_0000;
const LEGACY_BYTES: u64 = 0x2_0000;

const FRAMEBUFFER_BAR: u8 = 0;
const REGISTERS_BAR: u8 = 2;
const REGISTERS_BYTES: u64 = 4096;
const VGA_REGISTERS: u64 = 0x400;
const VBE_REGISTERS: u64 = 0x500;
const EXTENSION_SIZE: u64 = 0x600;
const BYTE_ORDER: u64 = 0x604;
const LITTLE_ENDIAN: u32 = 0x1e1e_1e1e;

const VBE_INDEX_PORT: u16 = 0x1ce;
/// The data register answers at both, since some machines could only reach even addresses with words.
const VBE_DATA_PORTS: std::ops::RangeInclusive<u16> = 0x1cf..=0x1d0;

/// Scan lines a second: 25.175 MHz with 800 dots to a line, the rate of all standard modes.
const LINE_NANOS: u64 = 31_778;

struct Vga {
    // Wires
    clock: Clock,
    screen_memory: Vram,
    edid: [u8; 128],
    // State the guest can see; all of it is saved
    config: PciConfig,
    registers: Registers,
    latches: Latches,
    vbe: Vbe,
    // What the last picture was made from
    drawn: Drawn,
}

fn build(options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    let mebibytes = options.number(MODEL.id, "vgamem_mb", 16, 256)?;
    if !mebibytes.is_power_of_two() {
        let value = mebibytes.to_string();
        return Err(BuildError::Option { device: MODEL.id, option: "vgamem_mb", value, expected: "1, 2, 4 … 256" });
    }
    let width = options.number(MODEL.id, "xres", 1280, 4088)?.max(640) as u16;
    let height = options.number(MODEL.id, "yres", 800, 4094)?.max(480) as u16;
    let block = wiring.video_memory(mebibytes << 20)?;
    let mut config = PciConfig::new(0x1234, 0x1111, (3, 0, 0), 2)
        .with_subsystem(0x1af4, 0x1100)
        .with_bar(FRAMEBUFFER_BAR, BarKind::Ram(block.clone()), block.len())
        .with_bar(REGISTERS_BAR, BarKind::Memory, REGISTERS_BYTES);
    if let Some(rom) = wiring.rom("vgabios")? {
        let size = rom.len();
        config = config.with_bar(ROM_BAR, BarKind::Rom(rom), size);
    }
    for (base, count) in [(0x3b4, 2), (0x3ba, 1), (0x3c0, 16), (0x3d4, 2), (0x3da, 1)] {
        wiring.claim_ports(base, count, Width::Byte);
    }
    wiring.claim_ports(VBE_INDEX_PORT, 3, Width::Word);
    wiring.claim_mmio(LEGACY_WINDOW, LEGACY_BASE, LEGACY_BYTES);
    Ok(Box::new(Vga {
        clock: wiring.clock(),
        vbe: Vbe::new(block.len()),
        screen_memory: Vram::new(block),
        edid: edid::edid(width, height),
        config,
        registers: Registers::new(),
        latches: Latches::default(),
        drawn: Drawn::default(),
    }))
}

impl Vga {
    fn note(&mut self, change: Change) {
        if change == Change::Picture {
            self.drawn.forget();
        }
    }

    fn write_vbe(&mut self, index: u16, value: u16) {
        match self.vbe.write(index, value) {
            Effect::None => return,
            Effect::Picture => {}
            Effect::Clear(bytes) => {
                let zeroes = [0; PAGE_BYTES as usize];
                let end = bytes.min(self.screen_memory.len());
                for page in (0..end).step_by(PAGE_BYTES as usize) {
                    self.screen_memory.write(page, &zeroes[..(end - page).min(PAGE_BYTES) as usize]);
                }
            }
        }
        self.drawn.forget();
    }

    /// Input status 1: whether the beam is outside the picture, and whether it is in vertical retrace.
    fn input_status_1(&self) -> u8 {
        let lines = u64::from(self.registers.total_lines()).max(64);
        let inside = self.clock.now().nanos() % (lines * LINE_NANOS);
        let (line, dot) = (inside / LINE_NANOS, inside % LINE_NANOS);
        let (first, last) = self.registers.retrace_lines();
        let in_retrace = (u64::from(first)..u64::from(last)).contains(&line);
        // A fifth of a line is horizontal blanking.
        let outside = line >= u64::from(self.registers.lines()) || dot >= LINE_NANOS * 4 / 5;
        u8::from(outside || in_retrace) | u8::from(in_retrace) << 3
    }

    /// Whether the CRT controller's ports at 3Bxh or 3Dxh are the ones that answer now.
    fn answers(&self, port: u16) -> bool {
        self.registers.is_colour() == (port >= 0x3d0)
    }

    fn read_register(&mut self, port: u16) -> u8 {
        let registers = &mut self.registers;
        match port {
            0x3c0 => registers.attribute_index,
            0x3c1 => registers.read_attribute(),
            0x3c2 => 0x10, // Input status 0: a monitor's load is sensed
            0x3c4 => registers.sequencer_index,
            0x3c5 => registers.read_sequencer(),
            0x3c6 => registers.dac.mask,
            0x3c7 => registers.dac.state(),
            0x3c8 => registers.dac.write_index,
            0x3c9 => registers.dac.read(),
            0x3ca => registers.feature_control,
            0x3cc => registers.misc_output,
            0x3ce => registers.graphics_index,
            0x3cf => registers.read_graphics(),
            0x3b4 | 0x3d4 if self.answers(port) => self.registers.crtc_index,
            0x3b5 | 0x3d5 if self.answers(port) => self.registers.read_crtc(),
            0x3ba | 0x3da if self.answers(port) => {
                self.registers.attribute_data_next = false;
                self.input_status_1()
            }
            _ => 0xff,
        }
    }

    fn write_register(&mut self, port: u16, value: u8) {
        let dac_width = self.vbe.dac_width();
        let answers = self.answers(port);
        let registers = &mut self.registers;
        let change = match port {
            0x3c0 => registers.write_attribute(value),
            0x3c2 => {
                registers.misc_output = value & !0x10;
                Change::None
            }
            0x3c4 => {
                registers.sequencer_index = value & 7;
                Change::None
            }
            0x3c5 => registers.write_sequencer(value),
            0x3c6 if registers.dac.mask != value => {
                registers.dac.mask = value;
                Change::Picture
            }
            0x3c7 => {
                registers.dac.start_reading(value);
                Change::None
            }
            0x3c8 => {
                registers.dac.start_writing(value);
                Change::None
            }
            0x3c9 => registers.dac.write(value, dac_width),
            0x3ce => {
                registers.graphics_index = value & 15;
                Change::None
            }
            0x3cf => registers.write_graphics(value),
            0x3b4 | 0x3d4 if answers => {
                registers.crtc_index = value;
                Change::None
            }
            0x3b5 | 0x3d5 if answers => registers.write_crtc(value),
            0x3ba | 0x3da if answers => {
                registers.feature_control = value & 0x10;
                Change::None
            }
            _ => Change::None,
        };
        self.note(change);
    }

    fn window(&mut self) -> Window<'_> {
        let view = match self.vbe.mode() {
            None => View::Standard,
            Some(mode) if mode.depth == 4 => View::PlanarBank(self.vbe.bank()),
            Some(_) => View::LinearBank(self.vbe.bank()),
        };
        Window { registers: &self.registers, vram: &self.screen_memory, latches: &mut self.latches, view }
    }

    /// A byte of BAR 2 outside the display interface.
    fn read_bar_byte(&mut self, offset: u64) -> u8 {
        match offset {
            0..0x80 => self.edid[offset as usize],
            VGA_REGISTERS..0x420 => self.read_register(0x3c0 + (offset - VGA_REGISTERS) as u16),
            EXTENSION_SIZE..0x604 => 8_u32.to_le_bytes()[(offset - EXTENSION_SIZE) as usize],
            BYTE_ORDER..0x608 => LITTLE_ENDIAN.to_le_bytes()[(offset - BYTE_ORDER) as usize],
            0x80..0x400 => 0,
            _ => 0xff,
        }
    }

    /// The display interface register at an offset of BAR 2.
    fn bar_vbe_index(offset: u64) -> Option<u16> {
        (VBE_REGISTERS..VBE_REGISTERS + 0x16).contains(&offset).then(|| ((offset - VBE_REGISTERS) / 2) as u16)
    }
}

impl Device for Vga {
    fn reset(&mut self, kind: ResetKind) {
        let Self { clock: _, screen_memory, edid: _, config, registers, latches, vbe, drawn } = self;
        config.reset();
        *registers = Registers::new();
        *latches = Latches::default();
        *vbe = Vbe::new(screen_memory.len());
        drawn.forget();
        // Video memory keeps its contents when the RESET line is pulled.
        if kind == ResetKind::PowerOn {
            screen_memory.clear();
        }
    }

    fn save(&self) -> SavedState {
        let Self { clock: _, screen_memory, edid: _, config, registers, latches, vbe, drawn: _ } = self;
        SavedState::of(saved::VERSION, &saved::Vga::of(config.save(), registers, *latches, vbe, screen_memory))
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        let saved: saved::Vga = saved.read(saved::VERSION)?;
        let registers = saved.registers()?;
        let vbe = saved.vbe(self.screen_memory.len())?;
        self.config.restore(&saved.config)?;
        saved.fill(&self.screen_memory)?;
        self.registers = registers;
        self.vbe = vbe;
        self.latches = Latches(saved.latches);
        self.drawn.forget();
        Ok(())
    }

    fn as_port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn as_mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }

    fn as_screen(&mut self) -> Option<&mut dyn ScreenSource> {
        Some(self)
    }
}

impl PortIo for Vga {
    fn port_read(&mut self, port: Port, _width: Width) -> u32 {
        match port {
            Port::Fixed(VBE_INDEX_PORT) => self.vbe.index.into(),
            Port::Fixed(port) if VBE_DATA_PORTS.contains(&port) => self.vbe.read(self.vbe.index).into(),
            Port::Fixed(port) => self.read_register(port).into(),
            Port::Bar { .. } => u32::MAX,
        }
    }

    fn port_write(&mut self, port: Port, _width: Width, value: u32) {
        match port {
            Port::Fixed(VBE_INDEX_PORT) => self.vbe.index = value as u16,
            Port::Fixed(port) if VBE_DATA_PORTS.contains(&port) => self.write_vbe(self.vbe.index, value as u16),
            Port::Fixed(port) => self.write_register(port, value as u8),
            Port::Bar { .. } => {}
        }
    }
}

impl Mmio for Vga {
    fn mmio_read(&mut self, region: u8, offset: u64, width: Width) -> u64 {
        if region == REGISTERS_BAR
            && let Some(index) = Self::bar_vbe_index(offset)
        {
            return u64::from(self.vbe.read(index)) >> (8 * (offset & 1));
        }
        (0..width.bytes()).rev().fold(0, |value, i| {
            let byte = match region {
                LEGACY_WINDOW => self.window().read(offset + i),
                _ => self.read_bar_byte(offset + i),
            };
            value << 8 | u64::from(byte)
        })
    }

    fn mmio_write(&mut self, region: u8, offset: u64, width: Width, value: u64) {
        let bytes = value.to_le_bytes();
        let bytes = bytes.iter().take(width.bytes() as usize).zip(offset..);
        if region == LEGACY_WINDOW {
            let mut window = self.window();
            bytes.for_each(|(byte, at)| window.write(at, *byte));
        } else if let Some(index) = Self::bar_vbe_index(offset) {
            if width == Width::Word {
                self.write_vbe(index, value as u16);
            } else {
                warn_limited!(target: "vga", offset, ?width, "the display interface takes words only");
            }
        } else {
            for (byte, at) in bytes {
                match at {
                    VGA_REGISTERS..0x420 => self.write_register(0x3c0 + (at - VGA_REGISTERS) as u16, *byte),
                    BYTE_ORDER..0x608 if *byte != LITTLE_ENDIAN as u8 => {
                        warn_limited!(target: "vga", byte, "big-endian frame buffers are not supported; it stays little-endian");
                    }
                    _ => {}
                }
            }
        }
    }
}

impl PciFunction for Vga {
    fn config(&self) -> &PciConfig {
        &self.config
    }

    fn config_mut(&mut self) -> &mut PciConfig {
        &mut self.config
    }
}

impl ScreenSource for Vga {
    fn draw(&mut self, screen: &Screen, everything: bool) {
        let Self { clock, screen_memory, edid: _, config: _, registers, latches: _, vbe, drawn } = self;
        let dac = vbe.dac_width();
        if !registers.is_screen_on() {
            return drawn.blank(screen, screen_memory, everything);
        }
        match vbe.mode() {
            Some(mode) if mode.depth != 4 => drawn.linear(screen, screen_memory, registers, dac, mode, everything),
            planar => {
                let standard = Standard { registers, dac, vbe: planar };
                drawn.planes(screen, screen_memory, &standard, clock.now(), everything);
            }
        }
    }
}

mod saved {
    use super::memory::{Latches, Vram};
    use super::registers::{self, Dac};
    use super::vbe;
    use engine_bus::{RestoreError, SavedPciConfig};
    use engine_memory::PAGE_BYTES;
    use serde::{Deserialize, Serialize};
    use serde_bytes::ByteBuf;

    pub const VERSION: u32 = 1;

    #[derive(Serialize, Deserialize)]
    pub struct Vga {
        pub config: SavedPciConfig,
        misc_output: u8,
        feature_control: u8,
        sequencer_index: u8,
        sequencer: ByteBuf,
        graphics_index: u8,
        graphics: ByteBuf,
        crtc_index: u8,
        crtc: ByteBuf,
        attribute_index: u8,
        attribute_data_next: bool,
        attribute: ByteBuf,
        dac_mask: u8,
        dac_read_index: u8,
        dac_write_index: u8,
        dac_component: u8,
        dac_reading: bool,
        dac_colours: ByteBuf,
        pub latches: [u8; 4],
        vbe_index: u16,
        vbe_values: [u16; vbe::KEPT],
        /// The pages of video memory that are not all zero: number, contents.
        pages: Vec<(u64, ByteBuf)>,
    }

    fn array<const N: usize>(bytes: &[u8], what: &str) -> Result<[u8; N], RestoreError> {
        bytes.try_into().map_err(|_| RestoreError::impossible(format!("{} bytes of {what}, not {N}", bytes.len())))
    }

    impl Vga {
        pub fn of(
            config: SavedPciConfig,
            registers: &registers::Registers,
            latches: Latches,
            vbe: &vbe::Vbe,
            vram: &Vram,
        ) -> Self {
            let registers::Registers {
                misc_output,
                feature_control,
                sequencer_index,
                sequencer,
                graphics_index,
                graphics,
                crtc_index,
                crtc,
                attribute_index,
                attribute_data_next,
                attribute,
                dac,
            } = registers;
            let Dac { mask, read_index, write_index, component, reading, colours } = dac;
            let mut pages = Vec::new();
            let mut page = [0; PAGE_BYTES as usize];
            for number in 0..vram.pages() {
                vram.read(number * PAGE_BYTES, &mut page);
                if page != [0; PAGE_BYTES as usize] {
                    pages.push((number, ByteBuf::from(page)));
                }
            }
            Self {
                config,
                misc_output: *misc_output,
                feature_control: *feature_control,
                sequencer_index: *sequencer_index,
                sequencer: ByteBuf::from(*sequencer),
                graphics_index: *graphics_index,
                graphics: ByteBuf::from(*graphics),
                crtc_index: *crtc_index,
                crtc: ByteBuf::from(*crtc),
                attribute_index: *attribute_index,
                attribute_data_next: *attribute_data_next,
                attribute: ByteBuf::from(*attribute),
                dac_mask: *mask,
                dac_read_index: *read_index,
                dac_write_index: *write_index,
                dac_component: *component,
                dac_reading: *reading,
                dac_colours: ByteBuf::from(*colours),
                latches: latches.0,
                vbe_index: vbe.index,
                vbe_values: vbe.values,
                pages,
            }
        }

        pub fn registers(&self) -> Result<registers::Registers, RestoreError> {
            let dac = Dac {
                mask: self.dac_mask,
                read_index: self.dac_read_index,
                write_index: self.dac_write_index,
                component: self.dac_component,
                reading: self.dac_reading,
                colours: array(&self.dac_colours, "colours")?,
            };
            let registers = registers::Registers {
                misc_output: self.misc_output & !0x10,
                feature_control: self.feature_control & 0x10,
                sequencer_index: self.sequencer_index & 7,
                sequencer: array(&self.sequencer, "sequencer registers")?,
                graphics_index: self.graphics_index & 15,
                graphics: array(&self.graphics, "graphics registers")?,
                crtc_index: self.crtc_index,
                crtc: array(&self.crtc, "CRT controller registers")?,
                attribute_index: self.attribute_index,
                attribute_data_next: self.attribute_data_next,
                attribute: array(&self.attribute, "attribute registers")?,
                dac,
            };
            Ok(registers.masked())
        }

        pub fn vbe(&self, memory_bytes: u64) -> Result<vbe::Vbe, RestoreError> {
            vbe::Vbe::restored(memory_bytes, self.vbe_index, self.vbe_values)
        }

        /// Fills video memory, after all has been checked.
        pub fn fill(&self, vram: &Vram) -> Result<(), RestoreError> {
            let fits = |(number, bytes): &(u64, ByteBuf)| *number < vram.pages() && bytes.len() == PAGE_BYTES as usize;
            if !self.pages.iter().all(fits) {
                return Err(RestoreError::impossible("a page of video memory that there is not"));
            }
            vram.clear();
            self.pages.iter().for_each(|(number, bytes)| vram.write(number * PAGE_BYTES, bytes));
            Ok(())
        }
    }
}
