//! The VGA on a bench: registers, planes, modes, the display interface, pictures and damage, saved state.

use super::*;
use crate::bench::{Bench, moved, reset};
use engine_bus::DeviceCell;
use engine_display::{Picture, Rect};
use std::sync::Arc;

const WHITE: u32 = 0x00ff_ffff;

struct VgaBench {
    bench: Bench,
    cell: Arc<DeviceCell>,
}

impl VgaBench {
    fn new() -> Self {
        let (bench, cell) = Bench::with(&MODEL);
        Self { bench, cell }
    }

    fn indexed(&self, port: u16, values: &[u8]) {
        for (index, value) in values.iter().enumerate() {
            self.bench.outw(port, u16::from(*value) << 8 | index as u16);
        }
    }

    fn set_mode(&self, misc: u8, sequencer: &[u8; 5], crtc: &[u8; 25], graphics: &[u8; 9], attribute_mode: u8) {
        let bench = &self.bench;
        bench.outb(0x3c2, misc);
        self.indexed(0x3c4, sequencer);
        bench.outw(0x3d4, 0x0011);
        self.indexed(0x3d4, crtc);
        self.indexed(0x3ce, graphics);
        bench.inb(0x3da);
        for index in 0..16 {
            bench.outb(0x3c0, index);
            bench.outb(0x3c0, index);
        }
        // With nine dots to a character, "no panning" is 8.
        let panning = if attribute_mode & 4 != 0 { 8 } else { 0 };
        for (index, value) in [(0x10, attribute_mode), (0x11, 0), (0x12, 15), (0x13, panning), (0x14, 0)] {
            bench.outb(0x3c0, index);
            bench.outb(0x3c0, value);
        }
        bench.outb(0x3c0, 0x20);
        // Colour n is n/16 of white, with 15 exactly white.
        bench.outb(0x3c8, 0);
        for colour in 0..=255 {
            (0..3).for_each(|_| bench.outb(0x3c9, (colour as u8 & 15) * 4 + (colour as u8 & 15) / 4));
        }
    }

    /// Mode 3: 80x25 cells of 9x16 dots.
    fn text_mode(&self) {
        let crtc = [
            0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x20, 0x0e, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x28, 0x1f,
            0x96, 0xb9, 0xa3, 0xff,
        ];
        self.set_mode(0x67, &[3, 0, 3, 0, 2], &crtc, &[0, 0, 0, 0, 0, 0x10, 0x0e, 0, 0xff], 0x0c);
    }

    /// Mode 12h: 640x480 in four planes.
    fn planar_mode(&self) {
        let crtc = [
            0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0x0b, 0x3e, 0x00, 0x40, 0, 0, 0, 0, 0, 0, 0xea, 0x8c, 0xdf, 0x28, 0, 0xe7, 0x04,
            0xe3, 0xff,
        ];
        self.set_mode(0xe3, &[3, 1, 15, 0, 6], &crtc, &[0, 0, 0, 0, 0, 0, 5, 15, 0xff], 0x01);
    }

    /// Mode 13h: 320x200 in 256 colours.
    fn chained_mode(&self) {
        let crtc = [
            0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0x00, 0x41, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x28, 0x40, 0x96,
            0xb9, 0xa3, 0xff,
        ];
        self.set_mode(0x63, &[3, 1, 15, 0, 0x0e], &crtc, &[0, 0, 0, 0, 0, 0x40, 5, 15, 0xff], 0x41);
    }

    fn vbe(&self, index: u16, value: u16) {
        self.bench.outw(0x1ce, index);
        self.bench.outw(0x1cf, value);
    }

    fn vbe_mode(&self, width: u16, height: u16, depth: u16) {
        for (index, value) in
            [(vbe::ENABLE, 0), (vbe::XRES, width), (vbe::YRES, height), (vbe::BPP, depth), (vbe::ENABLE, vbe::ENABLED | 0x40)]
        {
            self.vbe(index, value);
        }
        self.bench.inb(0x3da);
        self.bench.outb(0x3c0, 0x20);
    }

    fn poke(&self, address: u64, value: u8) {
        self.bench.board.router.mmio_write(address, Width::Byte, value.into());
    }

    fn peek(&self, address: u64) -> u8 {
        self.bench.board.router.mmio_read(address, Width::Byte) as u8
    }

    fn draw(&self) -> Picture {
        let screen = &self.bench.board.screen;
        self.cell.lock().as_screen().unwrap().draw(screen, false);
        screen.picture()
    }

    fn pixel(&self, x: u32, y: u32) -> u32 {
        let picture = self.draw();
        picture.pixels[(y * picture.width + x) as usize]
    }

    /// Puts the frame buffer at 1 GiB and the registers right behind 2 GiB.
    fn map_bars(&self) {
        self.bench.set_config_dword(0x10, 0x4000_0000);
        self.bench.set_config_dword(0x18, 0x8000_0000);
        self.bench.set_config_byte(4, 2);
    }
}

#[test]
fn a_text_cell_shows_its_glyph_in_its_colours() {
    let vga = VgaBench::new();
    // The font goes to plane 2, byte by byte: code 41h has its left half set in row 0.
    vga.planar_mode();
    vga.bench.outw(0x3c4, 0x0402);
    vga.poke(0xa_0000 + 0x41 * 32, 0xf0);
    vga.text_mode();
    vga.bench.outw(0x3d4, 0x200a); // No cursor
    vga.poke(0xb_8000, 0x41);
    vga.poke(0xb_8001, 0x0f);
    assert_eq!((vga.peek(0xb_8000), vga.peek(0xb_8001)), (0x41, 0x0f));
    let picture = vga.draw();
    assert_eq!((picture.width, picture.height), (720, 400));
    assert_eq!(picture.pixels[..9], [WHITE, WHITE, WHITE, WHITE, 0, 0, 0, 0, 0]);
    assert!(picture.pixels[720..729].iter().all(|pixel| *pixel == 0));
}

#[test]
fn the_cursor_is_drawn_at_its_place_and_blinks() {
    let vga = VgaBench::new();
    vga.text_mode();
    vga.poke(0xb_8003, 0x0f);
    for (index, value) in [(0x0a, 14), (0x0b, 15), (0x0e, 0), (0x0f, 1)] {
        vga.bench.outw(0x3d4, value << 8 | index);
    }
    assert_eq!((vga.pixel(9, 13), vga.pixel(9, 14), vga.pixel(17, 15), vga.pixel(18, 15)), (0, WHITE, WHITE, 0));
    vga.bench.advance(250_000_000);
    assert_eq!(vga.pixel(9, 14), 0);
}

#[test]
fn a_changed_cell_damages_no_more_than_itself() {
    let vga = VgaBench::new();
    vga.text_mode();
    vga.bench.outw(0x3d4, 0x200a);
    (0..3).for_each(|_| drop(vga.draw()));
    let mut reader = vga.bench.board.screen.watch(|| {});
    reader.read(|_, _| {});
    vga.draw();
    reader.read(|_, _| panic!("nothing was written"));
    vga.poke(0xb_8000 + 2 * 81 + 1, 0xf0);
    vga.draw();
    let mut seen = Vec::new();
    reader.read(|_, damage| seen.extend_from_slice(damage.rects()));
    assert_eq!(seen, [Rect { left: 9, top: 16, right: 18, bottom: 32 }]);
}

#[test]
fn write_modes_set_planes_through_latches() {
    let vga = VgaBench::new();
    vga.planar_mode();
    // Mode 2: the data is the colour, the bit mask the pixels.
    vga.bench.outw(0x3ce, 0x0205);
    vga.bench.outw(0x3ce, 0x8008);
    vga.peek(0xa_0000);
    vga.poke(0xa_0000, 15);
    assert_eq!((vga.pixel(0, 0), vga.pixel(1, 0)), (WHITE, 0));
    // Mode 1: the latches are copied.
    vga.bench.outw(0x3ce, 0x0105);
    vga.peek(0xa_0000);
    vga.poke(0xa_0001, 0);
    assert_eq!((vga.pixel(8, 0), vga.pixel(9, 0)), (WHITE, 0));
    // Mode 3: the data is a further bit mask, set/reset the colour.
    vga.bench.outw(0x3ce, 0x0305);
    vga.bench.outw(0x3ce, 0x0f00);
    vga.bench.outw(0x3ce, 0xff08);
    vga.peek(0xa_0002);
    vga.poke(0xa_0002, 0x40);
    assert_eq!((vga.pixel(16, 0), vga.pixel(17, 0), vga.pixel(18, 0)), (0, WHITE, 0));
    // Mode 0 with set/reset enabled on planes 0 and 1, and XOR: 1111 becomes 1100.
    for value in [0x0005, 0x0300, 0x0301, 0x1803, 0xff08] {
        vga.bench.outw(0x3ce, value);
    }
    vga.peek(0xa_0001);
    vga.poke(0xa_0001, 0);
    assert_eq!(vga.pixel(8, 0), 0x00cf_cfcf, "colour 12: 6-bit 51");
}

#[test]
fn read_mode_1_compares_colours_in_the_planes_that_care() {
    let vga = VgaBench::new();
    vga.planar_mode();
    vga.bench.outw(0x3c4, 0x0502); // Planes 0 and 2
    vga.poke(0xa_0000, 0x3c);
    vga.bench.outw(0x3ce, 0x0805);
    vga.bench.outw(0x3ce, 0x0502);
    assert_eq!(vga.peek(0xa_0000), 0x3c);
    vga.bench.outw(0x3ce, 0x0007); // No plane cares: everything matches.
    assert_eq!(vga.peek(0xa_0000), 0xff);
}

#[test]
fn chained_and_unchained_pixels_go_where_they_belong() {
    let vga = VgaBench::new();
    vga.chained_mode();
    vga.poke(0xa_0000 + 320 * 3 + 5, 15);
    let picture = vga.draw();
    assert_eq!((picture.width, picture.height), (640, 400));
    let lit: Vec<_> = (0..picture.pixels.len()).filter(|at| picture.pixels[*at] != 0).map(|at| (at % 640, at / 640)).collect();
    assert_eq!(lit, [(10, 6), (11, 6), (10, 7), (11, 7)]);
    // Mode X: unchained, byte addresses; pixel 5 is byte 1 of plane 1.
    for (port, value) in [(0x3c4, 0x0604), (0x3d4, 0x0014), (0x3d4, 0xe317), (0x3c4, 0x0202)] {
        vga.bench.outw(port, value);
    }
    vga.poke(0xa_0000 + 80 * 9 + 1, 15);
    assert_eq!((vga.pixel(10, 18), vga.pixel(12, 18)), (WHITE, 0));
}

#[test]
fn line_compare_starts_again_at_zero_and_the_start_address_scrolls() {
    let vga = VgaBench::new();
    vga.planar_mode();
    vga.bench.outw(0x3ce, 0x0f00);
    vga.bench.outw(0x3ce, 0x0f01);
    vga.poke(0xa_0000, 0xff);
    vga.bench.outw(0x3d4, 80 << 8 | 0x0d); // One row down
    assert_eq!(vga.pixel(0, 0), 0);
    for value in [0x6318, 0x2e07, 0x0009] {
        vga.bench.outw(0x3d4, value); // Split after line 99
    }
    assert_eq!((vga.pixel(0, 99), vga.pixel(0, 100), vga.pixel(0, 101)), (0, WHITE, 0));
}

#[test]
fn every_depth_of_the_display_interface_shows_its_colours() {
    let cases: [(u16, &[u8], u32); 5] = [
        (8, &[15], WHITE),
        (15, &[0x1f, 0x7c], 0x00ff_00ff),
        (16, &[0xe0, 0x07], 0x0000_ff00),
        (24, &[0x12, 0x34, 0x56], 0x0056_3412),
        (32, &[0x12, 0x34, 0x56, 0xff], 0x0056_3412),
    ];
    for (depth, pixel, colour) in cases {
        let vga = VgaBench::new();
        vga.chained_mode();
        vga.map_bars();
        vga.vbe_mode(800, 600, depth);
        let at = (800 * 599 + 799) * pixel.len() as u64;
        vga.draw();
        vga.bench.board.memory.write(0x4000_0000 + at, pixel).unwrap();
        let picture = vga.draw();
        assert_eq!((picture.width, picture.height), (800, 600));
        assert_eq!(picture.pixels.last(), Some(&colour), "{depth} bits");
        // The same byte through the banked window at A0000h.
        vga.vbe(vbe::BANK, (at >> 16) as u16);
        assert_eq!(vga.peek(0xa_0000 + (at & 0xffff)), pixel[0]);
    }
}

#[test]
fn sixteen_colours_with_a_size_of_the_display_interface_use_the_planes() {
    let vga = VgaBench::new();
    vga.planar_mode();
    vga.vbe_mode(800, 600, 4);
    vga.poke(0xa_0000 + 100 * 599 + 99, 1);
    let picture = vga.draw();
    assert_eq!((picture.width, picture.height, picture.pixels.last()), (800, 600, Some(&WHITE)));
}

#[test]
fn panning_in_a_larger_frame_buffer_moves_the_picture() {
    let vga = VgaBench::new();
    vga.map_bars();
    vga.vbe_mode(640, 480, 32);
    vga.vbe(vbe::VIRTUAL_WIDTH, 1024);
    vga.vbe(vbe::X_OFFSET, 8);
    vga.vbe(vbe::Y_OFFSET, 500);
    vga.bench.board.memory.write(0x4000_0000 + (500 * 1024 + 8) * 4, &[0xff; 3]).unwrap();
    assert_eq!(vga.pixel(0, 0), WHITE);
}

#[test]
fn what_does_not_fit_into_video_memory_is_bent_until_it_does() {
    let vga = VgaBench::new();
    vga.map_bars();
    for depth in [4, 8, 13, 16, 24, 32, 0xffff] {
        vga.vbe_mode(0xffff, 0xffff, depth);
        for (index, value) in
            [(vbe::VIRTUAL_WIDTH, 0xffff), (vbe::X_OFFSET, 0xffff), (vbe::Y_OFFSET, 0xffff), (vbe::BANK, 0xffff)]
        {
            vga.vbe(index, value);
        }
        let picture = vga.draw();
        assert!(picture.width as usize * picture.height as usize <= 16 << 20, "{} x {}", picture.width, picture.height);
        vga.poke(0xa_ffff, 1);
        vga.peek(0xa_ffff);
    }
}

#[test]
fn linuxs_driver_finds_its_version_memory_size_and_monitor() {
    let vga = VgaBench::new();
    vga.map_bars();
    let registers = |offset: u64, width| vga.bench.board.router.mmio_read(0x8000_0000 + offset, width);
    assert_eq!(registers(0x500, Width::Word), 0xb0c5);
    assert_eq!(registers(0x514, Width::Word), 256, "16 MiB in units of 64 KiB");
    assert_eq!(registers(0x600, Width::Dword), 8);
    assert_eq!(registers(0, Width::Qword), 0x00ff_ffff_ffff_ff00);
    vga.bench.board.router.mmio_write(0x8000_0502, Width::Word, 1024);
    vga.bench.outw(0x1ce, vbe::XRES);
    assert_eq!(vga.bench.inw(0x1cf), 1024);
    // The VGA's own registers are there too: miscellaneous output.
    vga.bench.board.router.mmio_write(0x8000_0402, Width::Byte, 0x67);
    assert_eq!(vga.bench.inb(0x3cc), 0x67);
}

#[test]
fn retrace_comes_and_goes_with_the_clock() {
    let vga = VgaBench::new();
    vga.text_mode();
    let mut seen = [0; 16];
    for _ in 0..2000 {
        seen[usize::from(vga.bench.inb(0x3da))] += 1;
        vga.bench.advance(10_000);
    }
    assert!(seen[0] > 1000 && seen[1] > 300 && seen[9] > 5, "{seen:?}");
    assert_eq!(vga.bench.inb(0x3ba), 0xff, "the monochrome ports do not answer");
}

#[test]
fn protected_timing_registers_keep_their_values() {
    let vga = VgaBench::new();
    vga.text_mode();
    vga.bench.outw(0x3d4, 0x0001);
    vga.bench.outb(0x3d4, 1);
    assert_eq!(vga.bench.inb(0x3d5), 0x4f);
}

#[test]
fn state_moves_to_another_machine_and_reset_blanks_the_screen() {
    let vga = VgaBench::new();
    vga.chained_mode();
    vga.poke(0xa_0000, 15);
    let picture = vga.draw();
    let (other, copy) = moved(&vga.bench, &vga.cell, &MODEL);
    copy.lock().as_screen().unwrap().draw(&other.board.screen, true);
    assert_eq!(other.board.screen.picture(), picture);
    reset(&vga.cell);
    assert!(vga.draw().pixels.iter().all(|pixel| *pixel == 0));
}

#[test]
fn hostile_saved_state_is_refused_or_bent() {
    let vga = VgaBench::new();
    assert!(vga.cell.lock().restore(&SavedState::of(saved::VERSION, &"nonsense")).is_err());
    assert!(vga.cell.lock().restore(&SavedState::stateless()).is_err());
}
