//! From video memory to pixels. The standard VGA's picture is made as the chip makes it: scan line by scan line, with an
//! address counter and a row counter, each character clock fetching four planes, which the shift registers (or the
//! character generator) turn into dots. Linear frame buffers are converted row by row.
//!
//! Nothing is drawn while no page of video memory and no register has changed; what is drawn is compared with the picture,
//! so that damage is what really changed. Left out: dot-exact timing (a palette changed in mid-frame), smooth blinking.
//! See: IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem", CRT controller and attribute controller.

use super::memory::Vram;
use super::registers::{DacWidth, Registers};
use super::vbe::Mode;
use engine_base::VmTime;
use engine_display::{Damage, Picture, Rect, Screen};
use engine_memory::PAGE_BYTES;

/// The standard VGA's own memory: four planes of 64 KiB.
const STANDARD_BYTES: usize = 4 * 0x1_0000;
/// The cursor is on for half of this, blinking characters for the whole of it, in nanoseconds. About 32 frames.
const BLINK_NANOS: u64 = 457_000_000;

/// What the last picture was drawn from; none of it is seen by the guest.
#[derive(Default)]
pub struct Drawn {
    /// A register has changed what is to be seen.
    stale: bool,
    blink: Blink,
    /// Pages written since the picture before.
    dirty: Vec<bool>,
    /// Pages drawn last time are drawn once more: a CPU's store may become visible a moment after its page was flagged.
    dirty_before: Vec<bool>,
    memory: Vec<u8>,
    dots: Vec<u8>,
    row: Vec<u32>,
}

/// Which half of their periods the blinking things are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Blink {
    cursor_hidden: bool,
    characters_hidden: bool,
}

impl Blink {
    fn at(now: VmTime) -> Self {
        let halves = now.nanos() / (BLINK_NANOS / 2);
        Self { cursor_hidden: halves & 1 != 0, characters_hidden: halves & 2 != 0 }
    }
}

impl Drawn {
    /// The next picture is drawn whole.
    pub fn forget(&mut self) {
        self.stale = true;
    }

    /// Looks at what was written; returns whether the whole picture is to be drawn.
    fn begin(&mut self, vram: &Vram, everything: bool) -> bool {
        std::mem::swap(&mut self.dirty, &mut self.dirty_before);
        vram.take_drawn_on(&mut self.dirty);
        std::mem::take(&mut self.stale) || everything
    }

    fn is_dirty(&self, from: u64, len: u64) -> bool {
        let pages = (from / PAGE_BYTES) as usize..=((from + len.max(1) - 1) / PAGE_BYTES) as usize;
        let any = |flags: &[bool]| {
            let last = (*pages.end() + 1).min(flags.len());
            flags.get(*pages.start()..last).is_some_and(|flags| flags.contains(&true))
        };
        any(&self.dirty) || any(&self.dirty_before)
    }

    /// A linear frame buffer, 8 to 32 bits deep.
    pub fn linear(&mut self, screen: &Screen, vram: &Vram, registers: &Registers, dac: DacWidth, mode: Mode, everything: bool) {
        let everything = self.begin(vram, everything);
        let palette: Vec<u32> = if mode.depth == 8 { (0..=255).map(|i| registers.dac.rgb(i, dac)).collect() } else { Vec::new() };
        let bytes = (u64::from(mode.width) * u64::from(mode.depth.div_ceil(8))) as usize;
        let first = mode.start;
        let rows: Vec<u32> =
            (0..mode.height).filter(|y| everything || self.is_dirty(first + u64::from(*y) * mode.pitch, bytes as u64)).collect();
        if rows.is_empty() {
            return;
        }
        self.memory.resize(bytes, 0);
        screen.draw(|picture, damage| {
            resize(picture, mode.width, mode.height);
            for y in rows {
                vram.read(first + u64::from(y) * mode.pitch, &mut self.memory);
                self.row.clear();
                convert(&self.memory, mode.depth, &palette, &mut self.row);
                put_row(picture, damage, y, &self.row);
            }
        });
    }

    /// The standard VGA, or planes with the size of a Bochs display interface mode.
    pub fn planes(&mut self, screen: &Screen, vram: &Vram, standard: &Standard<'_>, now: VmTime, everything: bool) {
        let everything = self.begin(vram, everything);
        let blink = Blink::at(now);
        let blinked = std::mem::replace(&mut self.blink, blink) != blink && standard.blinks();
        let used = standard.bytes_used().min(vram.len() as usize);
        if !(everything || blinked || self.is_dirty(0, used as u64)) {
            return;
        }
        self.memory.resize(used, 0);
        vram.read(0, &mut self.memory);
        let (width, height) = (standard.width(), standard.height());
        let colours: Vec<u32> = (0..=255).map(|i| standard.registers.dac.rgb(i, standard.dac)).collect();
        screen.draw(|picture, damage| {
            resize(picture, width, height);
            let mut scan = standard.first_line();
            for y in 0..height {
                self.dots.clear();
                standard.line_dots(&scan, &self.memory, blink, &mut self.dots);
                let skipped = self.dots.iter().skip(scan.skip as usize).chain(std::iter::repeat(&0));
                self.row.clear();
                let stretch = standard.stretch();
                for dot in skipped.take((width / stretch) as usize) {
                    let colour = colours[usize::from(*dot)];
                    self.row.extend(std::iter::repeat_n(colour, stretch as usize));
                }
                put_row(picture, damage, y, &self.row);
                standard.next_line(&mut scan, y);
            }
        });
    }

    /// A screen that is switched off: black, in the size it had.
    pub fn blank(&mut self, screen: &Screen, vram: &Vram, everything: bool) {
        if !self.begin(vram, everything) {
            return;
        }
        screen.draw(|picture, damage| {
            if picture.pixels.iter().any(|pixel| *pixel != 0) {
                picture.pixels.fill(0);
                damage.add(Rect { left: 0, top: 0, right: picture.width, bottom: picture.height });
            }
        });
    }
}

fn resize(picture: &mut Picture, width: u32, height: u32) {
    if (picture.width, picture.height) != (width, height) {
        *picture = Picture::black(width, height);
    }
}

/// Puts a row into the picture and notes what differs.
fn put_row(picture: &mut Picture, damage: &mut Damage, y: u32, row: &[u32]) {
    let width = picture.width as usize;
    let Some(shown) = picture.pixels.get_mut(y as usize * width..(y as usize + 1) * width) else { return };
    let Some(left) = shown.iter().zip(row).position(|(old, new)| old != new) else { return };
    let last = shown.iter().zip(row).rposition(|(old, new)| old != new).unwrap_or(left);
    shown[left..=last].copy_from_slice(&row[left..=last]);
    damage.add(Rect { left: left as u32, top: y, right: last as u32 + 1, bottom: y + 1 });
}

fn convert(bytes: &[u8], depth: u32, palette: &[u32], row: &mut Vec<u32>) {
    let five = |bits: u32| (bits & 31) << 3 | (bits & 31) >> 2;
    let six = |bits: u32| (bits & 63) << 2 | (bits & 63) >> 4;
    let words = || bytes.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_le_bytes(*word)));
    match depth {
        15 => row.extend(words().map(|w| five(w >> 10) << 16 | five(w >> 5) << 8 | five(w))),
        16 => row.extend(words().map(|w| five(w >> 11) << 16 | six(w >> 5) << 8 | five(w))),
        24 => row.extend(bytes.as_chunks::<3>().0.iter().map(|[b, g, r]| u32::from_le_bytes([*b, *g, *r, 0]))),
        32 => row.extend(bytes.as_chunks::<4>().0.iter().map(|pixel| u32::from_le_bytes(*pixel) & 0x00ff_ffff)),
        _ => row.extend(bytes.iter().map(|index| palette.get(usize::from(*index)).copied().unwrap_or(0))),
    }
}

/// How the standard VGA reads its planes now.
pub struct Standard<'a> {
    pub registers: &'a Registers,
    pub dac: DacWidth,
    /// A planar mode of the Bochs display interface, which has its own size and start.
    pub vbe: Option<Mode>,
}

/// Where the address and row counters stand at the start of a scan line.
pub struct Scan {
    /// The address counter, in the CRT controller's own units.
    address: u64,
    row: u32,
    /// With double scanning, whether this line is the second of the two.
    again: bool,
    /// Dots cut off on the left.
    skip: u32,
}

/// What a character clock's four bytes become.
enum Shift {
    Text,
    Planes,
    /// Two bits from each of two planes in turn: CGA's four colours.
    Interleaved,
    /// Eight bits, each pixel two dots wide.
    Bytes,
}

impl Standard<'_> {
    fn shift(&self) -> Shift {
        let graphics = &self.registers.graphics;
        if self.vbe.is_some() {
            Shift::Planes
        } else if graphics[6] & 1 == 0 && self.registers.attribute[0x10] & 1 == 0 {
            Shift::Text
        } else if graphics[5] & 0x40 != 0 {
            Shift::Bytes
        } else if graphics[5] & 0x20 != 0 {
            Shift::Interleaved
        } else {
            Shift::Planes
        }
    }

    fn is_text(&self) -> bool {
        matches!(self.shift(), Shift::Text)
    }

    fn character_dots(&self) -> u32 {
        if self.is_text() && self.registers.sequencer[1] & 1 == 0 { 9 } else { 8 }
    }

    /// How many dots of the picture one dot of ours is.
    fn stretch(&self) -> u32 {
        if self.vbe.is_none() && self.registers.sequencer[1] & 8 != 0 { 2 } else { 1 }
    }

    fn columns(&self) -> u32 {
        match self.vbe {
            Some(mode) => mode.width / 8,
            None => u32::from(self.registers.crtc[1]) + 1,
        }
    }

    fn width(&self) -> u32 {
        self.columns() * self.character_dots() * self.stretch()
    }

    fn height(&self) -> u32 {
        self.vbe.map_or_else(|| self.registers.lines(), |mode| mode.height)
    }

    fn bytes_used(&self) -> usize {
        match self.vbe {
            None => STANDARD_BYTES,
            Some(mode) => usize::try_from((mode.start + mode.pitch * u64::from(mode.height) + 1) * 4).unwrap_or(usize::MAX),
        }
    }

    fn blinks(&self) -> bool {
        self.is_text()
    }

    fn last_row(&self) -> u32 {
        if self.vbe.is_some() { 0 } else { u32::from(self.registers.crtc[9] & 0x1f) }
    }

    fn panning(&self) -> u32 {
        let pan = u32::from(self.registers.attribute[0x13] & 15);
        match self.shift() {
            Shift::Text if self.character_dots() == 9 => (pan + 1) % 9,
            // Eight bits a pixel: two steps make one pixel, which is two dots.
            Shift::Bytes => pan & 6,
            _ => pan & 7,
        }
    }

    fn first_line(&self) -> Scan {
        if let Some(mode) = self.vbe {
            return Scan { address: mode.start, row: 0, again: false, skip: mode.skip };
        }
        let crtc = &self.registers.crtc;
        let byte_panning = u64::from(crtc[8] >> 5 & 3);
        let address = (u64::from(crtc[0x0c]) << 8 | u64::from(crtc[0x0d])) + byte_panning;
        Scan { address, row: u32::from(crtc[8] & 0x1f), again: false, skip: self.panning() }
    }

    /// Moves the counters past line `y`.
    fn next_line(&self, scan: &mut Scan, y: u32) {
        if let Some(mode) = self.vbe {
            scan.address += mode.pitch;
            return;
        }
        let crtc = &self.registers.crtc;
        if y == self.registers.line_compare() {
            *scan = Scan { address: 0, row: 0, again: false, skip: scan.skip };
            if self.registers.attribute[0x10] & 0x20 != 0 {
                scan.skip = 0;
            }
            return;
        }
        if crtc[9] & 0x80 != 0 && !scan.again {
            scan.again = true;
            return;
        }
        scan.again = false;
        if scan.row == self.last_row() {
            scan.row = 0;
            scan.address += u64::from(crtc[0x13]) * 2;
        } else {
            scan.row = (scan.row + 1) & 0x1f;
        }
    }

    /// The plane offset that the memory sees for an address counter.
    fn plane_offset(&self, counter: u64, row: u32) -> u64 {
        if self.vbe.is_some() {
            return counter;
        }
        let crtc = &self.registers.crtc;
        let counter = counter & 0xffff;
        let mut offset = if crtc[0x14] & 0x40 != 0 {
            counter << 2 | counter >> 14 & 3
        } else if crtc[0x17] & 0x40 == 0 {
            let wrapped = if crtc[0x17] & 0x20 != 0 { counter >> 15 } else { counter >> 13 };
            counter << 1 | wrapped & 1
        } else {
            counter
        };
        // CGA and Hercules banks: address bits 13 and 14 come from the row counter.
        if crtc[0x17] & 1 == 0 {
            offset = offset & !0x2000 | u64::from(row & 1) << 13;
        }
        if crtc[0x17] & 2 == 0 {
            offset = offset & !0x4000 | u64::from(row & 2) << 13;
        }
        offset & 0xffff
    }

    /// The dots of one scan line, as indices into the DAC; a character more than is visible, for panning.
    fn line_dots(&self, scan: &Scan, memory: &[u8], blink: Blink, dots: &mut Vec<u8>) {
        let crtc = &self.registers.crtc;
        // "Count by two" and "by four": the counter moves on every second or fourth character only.
        let divider = match self.vbe {
            None if crtc[0x14] & 0x20 != 0 => 4,
            None if crtc[0x17] & 0x08 != 0 => 2,
            _ => 1,
        };
        let palette: [u8; 16] = std::array::from_fn(|bits| self.registers.palette(bits as u8));
        let shift = self.shift();
        let text = matches!(shift, Shift::Text).then(|| Text::new(self, scan, blink));
        for column in 0..=u64::from(self.columns()) {
            let counter = scan.address + column / divider;
            let at = self.plane_offset(counter, scan.row) as usize * 4;
            let cell = memory.get(at..at + 4).and_then(|cell| <[u8; 4]>::try_from(cell).ok()).unwrap_or_default();
            match (&shift, &text) {
                (Shift::Text, Some(text)) => text.dots(counter & 0xffff, cell, memory, &palette, dots),
                (Shift::Bytes, _) => dots.extend(cell.iter().flat_map(|pixel| [*pixel; 2])),
                (Shift::Interleaved, _) => {
                    for (even, odd) in [(cell[0], cell[2]), (cell[1], cell[3])] {
                        for pair in [6, 4, 2, 0] {
                            dots.push(palette[usize::from(even >> pair & 3 | (odd >> pair & 3) << 2)]);
                        }
                    }
                }
                _ => {
                    for bit in (0..8).rev() {
                        let bits = cell.iter().rev().fold(0, |bits, plane| bits << 1 | plane >> bit & 1);
                        dots.push(palette[usize::from(bits)]);
                    }
                }
            }
        }
    }
}

/// The character generator during one scan line.
struct Text {
    row: u32,
    /// Plane offsets of the two fonts: attribute bit 3 clear, and set.
    fonts: [usize; 2],
    nine_dots: bool,
    /// Codes C0h to DFh repeat their eighth dot as the ninth: line drawing characters.
    repeat_eighth: bool,
    blinking: bool,
    characters_hidden: bool,
    underlined: bool,
    /// The cell with the cursor, if this line shows it now.
    cursor: Option<u64>,
}

impl Text {
    fn new(standard: &Standard<'_>, scan: &Scan, blink: Blink) -> Self {
        let Registers { sequencer, crtc, attribute, .. } = standard.registers;
        let font = |low: u8, high: u8| usize::from(low & 3) * 0x4000 + usize::from(high & 1) * 0x2000;
        let map = sequencer[3];
        let (start, end) = (u32::from(crtc[0x0a] & 0x1f), u32::from(crtc[0x0b] & 0x1f));
        let shown = crtc[0x0a] & 0x20 == 0 && !blink.cursor_hidden && (start..=end).contains(&scan.row);
        let location = u64::from(crtc[0x0e]) << 8 | u64::from(crtc[0x0f]);
        let skew = u64::from(crtc[0x0b] >> 5 & 3);
        let monochrome = attribute[0x10] & 2 != 0;
        Self {
            row: scan.row,
            fonts: [font(map, map >> 4), font(map >> 2, map >> 5)],
            nine_dots: standard.character_dots() == 9,
            repeat_eighth: attribute[0x10] & 4 != 0,
            blinking: attribute[0x10] & 8 != 0,
            characters_hidden: blink.characters_hidden,
            underlined: monochrome && u32::from(crtc[0x14] & 0x1f) == scan.row,
            cursor: shown.then_some(location + skew),
        }
    }

    fn dots(&self, counter: u64, cell: [u8; 4], memory: &[u8], palette: &[u8; 16], dots: &mut Vec<u8>) {
        let [code, attribute, ..] = cell;
        let font = self.fonts[usize::from(attribute >> 3 & 1)];
        let glyph = (font + usize::from(code) * 32 + self.row as usize) * 4 + 2;
        let mut bits = memory.get(glyph).copied().unwrap_or(0);
        let mut foreground = attribute & 15;
        let mut background = attribute >> 4;
        if self.blinking {
            background &= 7;
            if attribute & 0x80 != 0 && self.characters_hidden {
                foreground = background;
            }
        }
        let solid = self.underlined && attribute & 7 == 1 || self.cursor == Some(counter);
        if solid {
            bits = 0xff;
        }
        let (foreground, background) = (palette[usize::from(foreground)], palette[usize::from(background)]);
        for bit in (0..8).rev() {
            dots.push(if bits >> bit & 1 != 0 { foreground } else { background });
        }
        if self.nine_dots {
            let repeated = solid || self.repeat_eighth && (0xc0..=0xdf).contains(&code) && bits & 1 != 0;
            dots.push(if repeated { foreground } else { background });
        }
    }
}
