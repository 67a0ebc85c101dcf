//! The register files of the VGA: sequencer, CRT controller, graphics controller, attribute controller, DAC.
//! Only storage and the fields that drawing and memory need; unused bits read back as the masks below leave them.
//! See: IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem", section 4.

/// How many registers each file has.
pub const SEQUENCER_COUNT: usize = 8;
pub const CRTC_COUNT: usize = 0x19;
pub const GRAPHICS_COUNT: usize = 9;
pub const ATTRIBUTE_COUNT: usize = 0x15;
pub const DAC_BYTES: usize = 256 * 3;

const SEQUENCER_MASKS: [u8; SEQUENCER_COUNT] = [0x03, 0x3d, 0x0f, 0x3f, 0x0e, 0, 0, 0xff];
const GRAPHICS_MASKS: [u8; GRAPHICS_COUNT] = [0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff];
const ATTRIBUTE_MASKS: [u8; ATTRIBUTE_COUNT] = [
    0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0xef, 0xff, 0x3f, 0x0f, 0x0f,
];

/// In the attribute index: the palette is the screen's, not the CPU's.
const PALETTE_ADDRESS_SOURCE: u8 = 0x20;

/// What a register write may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Change {
    /// Nothing that can be seen.
    None,
    /// The picture.
    Picture,
}

fn store(register: &mut u8, value: u8) -> Change {
    if std::mem::replace(register, value) == value { Change::None } else { Change::Picture }
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registers {
    pub misc_output: u8,
    pub feature_control: u8,
    pub sequencer_index: u8,
    pub sequencer: [u8; SEQUENCER_COUNT],
    pub graphics_index: u8,
    pub graphics: [u8; GRAPHICS_COUNT],
    pub crtc_index: u8,
    pub crtc: [u8; CRTC_COUNT],
    pub attribute_index: u8,
    /// Whether the next write to 3C0h is data, not an index.
    pub attribute_data_next: bool,
    pub attribute: [u8; ATTRIBUTE_COUNT],
    pub dac: Dac,
}

impl Registers {
    /// The state after power-on: the screen is off until the video BIOS has been.
    pub fn new() -> Self {
        Self {
            misc_output: 0,
            feature_control: 0,
            sequencer_index: 0,
            sequencer: [0; SEQUENCER_COUNT],
            graphics_index: 0,
            graphics: [0; GRAPHICS_COUNT],
            crtc_index: 0,
            crtc: [0; CRTC_COUNT],
            attribute_index: 0,
            attribute_data_next: false,
            attribute: [0; ATTRIBUTE_COUNT],
            dac: Dac::new(),
        }
    }

    /// Whether the CRT controller answers at 3Dxh (colour) rather than 3Bxh (monochrome).
    pub fn is_colour(&self) -> bool {
        self.misc_output & 1 != 0
    }

    /// Whether the CPU reaches video memory at A0000h.
    pub fn memory_enabled(&self) -> bool {
        self.misc_output & 2 != 0
    }

    pub fn read_sequencer(&self) -> u8 {
        self.sequencer.get(usize::from(self.sequencer_index)).copied().unwrap_or(0)
    }

    pub fn write_sequencer(&mut self, value: u8) -> Change {
        let index = usize::from(self.sequencer_index);
        match self.sequencer.get_mut(index) {
            Some(register) => store(register, value & SEQUENCER_MASKS[index]),
            None => Change::None,
        }
    }

    pub fn read_graphics(&self) -> u8 {
        self.graphics.get(usize::from(self.graphics_index)).copied().unwrap_or(0)
    }

    pub fn write_graphics(&mut self, value: u8) -> Change {
        let index = usize::from(self.graphics_index);
        let Some(register) = self.graphics.get_mut(index) else { return Change::None };
        let change = store(register, value & GRAPHICS_MASKS[index]);
        // Only "mode" and "miscellaneous" are looked at by the display side.
        if matches!(index, 5 | 6) { change } else { Change::None }
    }

    pub fn read_crtc(&self) -> u8 {
        self.crtc.get(usize::from(self.crtc_index)).copied().unwrap_or(0)
    }

    pub fn write_crtc(&mut self, value: u8) -> Change {
        let index = usize::from(self.crtc_index);
        let locked = self.crtc[0x11] & 0x80 != 0;
        match (index, self.crtc.get_mut(index)) {
            (_, None) => Change::None,
            // While CR11 protects registers 0 to 7, the line compare bit of CR7 stays writable.
            (7, Some(register)) if locked => {
                let value = *register & !0x10 | value & 0x10;
                store(register, value)
            }
            (0..=7, Some(_)) if locked => Change::None,
            (_, Some(register)) => store(register, value),
        }
    }

    /// 3C0h: index and data in turn.
    pub fn write_attribute(&mut self, value: u8) -> Change {
        let is_data = self.attribute_data_next;
        self.attribute_data_next = !is_data;
        if !is_data {
            let before = std::mem::replace(&mut self.attribute_index, value & 0x3f);
            return if (before ^ value) & PALETTE_ADDRESS_SOURCE != 0 { Change::Picture } else { Change::None };
        }
        let index = usize::from(self.attribute_index & 0x1f);
        match self.attribute.get_mut(index) {
            Some(register) => store(register, value & ATTRIBUTE_MASKS[index]),
            None => Change::None,
        }
    }

    pub fn read_attribute(&self) -> u8 {
        self.attribute.get(usize::from(self.attribute_index & 0x1f)).copied().unwrap_or(0)
    }

    /// Whether the screen shows anything: the palette is given to it, and the sequencer has not switched it off.
    pub fn is_screen_on(&self) -> bool {
        self.attribute_index & PALETTE_ADDRESS_SOURCE != 0 && self.sequencer[1] & 0x20 == 0
    }

    /// Visible scan lines.
    pub fn lines(&self) -> u32 {
        let overflow = u32::from(self.crtc[7]);
        (u32::from(self.crtc[0x12]) | (overflow & 0x02) << 7 | (overflow & 0x40) << 3) + 1
    }

    /// All scan lines of a frame.
    pub fn total_lines(&self) -> u32 {
        let overflow = u32::from(self.crtc[7]);
        (u32::from(self.crtc[6]) | (overflow & 0x01) << 8 | (overflow & 0x20) << 4) + 2
    }

    /// First and last scan line of the vertical retrace pulse.
    pub fn retrace_lines(&self) -> (u32, u32) {
        let overflow = u32::from(self.crtc[7]);
        let start = u32::from(self.crtc[0x10]) | (overflow & 0x04) << 6 | (overflow & 0x80) << 2;
        let length = (u32::from(self.crtc[0x11]).wrapping_sub(start) & 15).max(2);
        (start, start + length)
    }

    /// The scan line after which the address counter starts again at zero.
    pub fn line_compare(&self) -> u32 {
        u32::from(self.crtc[0x18]) | (u32::from(self.crtc[7]) & 0x10) << 4 | (u32::from(self.crtc[9]) & 0x40) << 3
    }

    /// The colour that the attribute controller makes of four bits, as an index into the DAC.
    pub fn palette(&self, bits: u8) -> u8 {
        let colour = self.attribute[usize::from(bits & self.attribute[0x12] & 0x0f)];
        let select = self.attribute[0x14];
        if self.attribute[0x10] & 0x80 != 0 { colour & 0x0f | (select & 0x0f) << 4 } else { colour & 0x3f | (select & 0x0c) << 4 }
    }

    /// Takes values over as register writes would.
    pub fn masked(mut self) -> Self {
        for (register, mask) in self.sequencer.iter_mut().zip(SEQUENCER_MASKS) {
            *register &= mask;
        }
        for (register, mask) in self.graphics.iter_mut().zip(GRAPHICS_MASKS) {
            *register &= mask;
        }
        for (register, mask) in self.attribute.iter_mut().zip(ATTRIBUTE_MASKS) {
            *register &= mask;
        }
        self.attribute_index &= 0x3f;
        self.dac.component = self.dac.component.min(2);
        self
    }
}

/// The palette DAC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dac {
    pub mask: u8,
    pub read_index: u8,
    pub write_index: u8,
    /// Which of red, green and blue comes next.
    pub component: u8,
    /// Whether the last index written was one to read from: what 3C7h reports.
    pub reading: bool,
    /// As the guest wrote them: 6 or 8 significant bits.
    pub colours: [u8; DAC_BYTES],
}

/// How many bits of a DAC component count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DacWidth {
    Six,
    Eight,
}

impl Dac {
    fn new() -> Self {
        Self { mask: 0xff, read_index: 0, write_index: 0, component: 0, reading: false, colours: [0; DAC_BYTES] }
    }

    pub fn state(&self) -> u8 {
        if self.reading { 3 } else { 0 }
    }

    pub fn start_reading(&mut self, index: u8) {
        (self.read_index, self.component, self.reading) = (index, 0, true);
    }

    pub fn start_writing(&mut self, index: u8) {
        (self.write_index, self.component, self.reading) = (index, 0, false);
    }

    fn next_component(component: &mut u8, index: &mut u8) -> usize {
        let at = usize::from(*index) * 3 + usize::from(*component);
        *component += 1;
        if *component > 2 {
            *component = 0;
            *index = index.wrapping_add(1);
        }
        at
    }

    pub fn read(&mut self) -> u8 {
        self.colours[Self::next_component(&mut self.component, &mut self.read_index)]
    }

    pub fn write(&mut self, value: u8, width: DacWidth) -> Change {
        let value = if width == DacWidth::Eight { value } else { value & 0x3f };
        store(&mut self.colours[Self::next_component(&mut self.component, &mut self.write_index)], value)
    }

    /// The colour of an index as `0x00RRGGBB`, through the pixel mask.
    pub fn rgb(&self, index: u8, width: DacWidth) -> u32 {
        let at = usize::from(index & self.mask) * 3;
        self.colours[at..at + 3].iter().fold(0, |rgb, component| {
            let eight = match width {
                DacWidth::Eight => *component,
                DacWidth::Six => (component & 0x3f) << 2 | (component & 0x3f) >> 4,
            };
            rgb << 8 | u32::from(eight)
        })
    }
}
