//! The Bochs display interface ("DISPI"): sixteen-bit registers behind ports 1CEh and 1CFh, or in BAR 2 from 500h on,
//! that set any size and depth with a linear frame buffer.
//! What is asked for is bent to what fits into video memory, so that drawing needs no further checks.
//! See: Bochs `vbe_display_api.txt`; QEMU `docs/specs/standard-vga`.

use super::registers::DacWidth;
use engine_bus::RestoreError;

pub const ID: u16 = 0;
pub const XRES: u16 = 1;
pub const YRES: u16 = 2;
pub const BPP: u16 = 3;
pub const ENABLE: u16 = 4;
pub const BANK: u16 = 5;
pub const VIRTUAL_WIDTH: u16 = 6;
pub const VIRTUAL_HEIGHT: u16 = 7;
pub const X_OFFSET: u16 = 8;
pub const Y_OFFSET: u16 = 9;
const MEMORY_64K: u16 = 10;
/// Registers 0 to 9 are kept; 10 is computed.
pub const KEPT: usize = 10;

const OLDEST_ID: u16 = 0xb0c0;
const NEWEST_ID: u16 = 0xb0c5;
const MOST_XRES: u16 = 16000;
const MOST_YRES: u16 = 12000;
const MOST_BPP: u16 = 32;

pub const ENABLED: u16 = 0x01;
const GET_CAPABILITIES: u16 = 0x02;
const DAC_8_BIT: u16 = 0x20;
const KEEP_MEMORY: u16 = 0x80;

/// The registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vbe {
    pub index: u16,
    pub values: [u16; KEPT],
    memory_bytes: u64,
}

/// What a write asks the device to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing that can be seen.
    None,
    /// The picture has another shape or start.
    Picture,
    /// A mode was set: clear this many bytes of video memory first.
    Clear(u64),
}

/// How the frame buffer of an enabled mode is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    pub width: u32,
    pub height: u32,
    /// 4 (planes), 8, 15, 16, 24 or 32.
    pub depth: u32,
    /// Bytes from one row to the next; of one plane when there are four.
    pub pitch: u64,
    /// First visible byte; of one plane when there are four.
    pub start: u64,
    /// Pixels to leave out on the left: what of the x offset is less than a byte (planes only).
    pub skip: u32,
}

impl Vbe {
    /// All zero but the version: disabled.
    pub fn new(memory_bytes: u64) -> Self {
        let mut values = [0; KEPT];
        values[ID as usize] = NEWEST_ID;
        Self { index: 0, values, memory_bytes }
    }

    /// From saved state, through the same checks as register writes.
    pub fn restored(memory_bytes: u64, index: u16, values: [u16; KEPT]) -> Result<Self, RestoreError> {
        let mut vbe = Self { index, values, memory_bytes };
        if !(OLDEST_ID..=NEWEST_ID).contains(&vbe.value(ID)) {
            return Err(RestoreError::impossible("a display interface version that there is not"));
        }
        vbe.values[BANK as usize] &= (memory_bytes >> 16).saturating_sub(1) as u16;
        if vbe.is_enabled() {
            vbe.fit();
        }
        Ok(vbe)
    }

    fn value(&self, index: u16) -> u16 {
        self.values.get(usize::from(index)).copied().unwrap_or(0)
    }

    pub fn is_enabled(&self) -> bool {
        self.value(ENABLE) & ENABLED != 0
    }

    pub fn dac_width(&self) -> DacWidth {
        if self.value(ENABLE) & DAC_8_BIT != 0 { DacWidth::Eight } else { DacWidth::Six }
    }

    pub fn bank(&self) -> u64 {
        self.value(BANK).into()
    }

    pub fn read(&self, index: u16) -> u16 {
        let capabilities = self.value(ENABLE) & GET_CAPABILITIES != 0;
        match index {
            XRES if capabilities => MOST_XRES,
            YRES if capabilities => MOST_YRES,
            BPP if capabilities => MOST_BPP,
            MEMORY_64K => u16::try_from(self.memory_bytes >> 16).unwrap_or(u16::MAX),
            _ => self.value(index),
        }
    }

    pub fn write(&mut self, index: u16, value: u16) -> Effect {
        let before = self.clone();
        match index {
            ID if (OLDEST_ID..=NEWEST_ID).contains(&value) => self.values[ID as usize] = value,
            XRES | YRES | BPP | VIRTUAL_WIDTH | VIRTUAL_HEIGHT | X_OFFSET | Y_OFFSET => {
                self.values[usize::from(index)] = value;
                if self.is_enabled() {
                    self.fit();
                }
            }
            BANK => self.values[BANK as usize] = value & (self.memory_bytes >> 16).saturating_sub(1) as u16,
            ENABLE => {
                self.values[ENABLE as usize] = value;
                if value & ENABLED != 0 && !before.is_enabled() {
                    self.values[VIRTUAL_WIDTH as usize] = 0;
                    self.values[VIRTUAL_HEIGHT as usize] = 0;
                    self.values[X_OFFSET as usize] = 0;
                    self.values[Y_OFFSET as usize] = 0;
                    self.values[BANK as usize] = 0;
                    self.fit();
                    if value & KEEP_MEMORY == 0 {
                        return Effect::Clear(self.screen_bytes());
                    }
                }
            }
            _ => engine_base::warn_limited!(target: "vga", index, value, "write to an unknown display interface register"),
        }
        if *self == before { Effect::None } else { Effect::Picture }
    }

    fn bits_per_pixel(&self) -> u64 {
        match self.value(BPP) {
            15 => 16,
            // Four planes take a quarter of a byte each and no more room than 8 bits: the four lie side by side.
            4 => 8,
            bits => bits.into(),
        }
    }

    fn screen_bytes(&self) -> u64 {
        u64::from(self.value(VIRTUAL_WIDTH)) * u64::from(self.value(YRES)) * self.bits_per_pixel() / 8
    }

    /// Bends the registers to a mode that exists and fits into video memory.
    pub fn fit(&mut self) {
        let [_, xres, yres, bpp, _, _, virtual_width, virtual_height, x_offset, y_offset] = &mut self.values;
        if !matches!(*bpp, 4 | 8 | 15 | 16 | 24 | 32) {
            if *bpp != 0 {
                engine_base::warn_limited!(target: "vga", bpp = *bpp, "unknown colour depth, 8 bits are used");
            }
            *bpp = 8;
        }
        let bytes_per_pixel = u64::from(bpp.div_ceil(8));
        *xres = (*xres & !7).clamp(8, MOST_XRES);
        *virtual_width = (*virtual_width & !7).clamp(*xres, MOST_XRES);
        let pitch = u64::from(*virtual_width) * bytes_per_pixel;
        let rows = (self.memory_bytes / pitch).min(u64::from(u16::MAX)) as u16;
        *yres = (*yres).clamp(1, MOST_YRES.min(rows.max(1)));
        *virtual_height = rows;
        // The x offset may run past a row's end: Linux's bochs-drm says any start address this way.
        let left = self.memory_bytes.saturating_sub(u64::from(*yres) * pitch);
        if u64::from(*y_offset) * pitch + u64::from(*x_offset) * bytes_per_pixel > left {
            *y_offset = 0;
            if u64::from(*x_offset) * bytes_per_pixel > left {
                *x_offset = 0;
            }
        }
    }

    /// The mode, while enabled.
    pub fn mode(&self) -> Option<Mode> {
        if !self.is_enabled() {
            return None;
        }
        let depth = u32::from(self.value(BPP));
        let columns = u64::from(self.value(VIRTUAL_WIDTH));
        let (x, y) = (u64::from(self.value(X_OFFSET)), u64::from(self.value(Y_OFFSET)));
        let (pitch, first, skip) = match depth {
            4 => (columns / 8, x / 8, (x % 8) as u32),
            _ => (columns * self.bits_per_pixel() / 8, x * self.bits_per_pixel() / 8, 0),
        };
        let (width, height) = (u32::from(self.value(XRES)), u32::from(self.value(YRES)));
        Some(Mode { width, height, depth, pitch, start: y * pitch + first, skip })
    }
}
