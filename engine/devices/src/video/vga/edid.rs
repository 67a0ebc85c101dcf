//! What the monitor says of itself: a 128-byte EDID block with one preferred size.
//! See: VESA Enhanced EDID Standard, release A revision 2 (EDID 1.4), section 3.

/// A block for a monitor whose best size is `width` × `height` at 60 Hz.
pub fn edid(width: u16, height: u16) -> [u8; 128] {
    let mut block = [0; 128];
    block[..8].copy_from_slice(&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    block[8..10].copy_from_slice(&manufacturer(*b"BGL").to_be_bytes());
    block[10..12].copy_from_slice(&0x1111_u16.to_le_bytes());
    block[16..18].copy_from_slice(&[1, 36]); // Week 1 of 2026
    block[18..20].copy_from_slice(&[1, 4]); // EDID 1.4
    block[20] = 0xa5; // Digital, 8 bits per colour, DisplayPort
    // 96 dots to the inch, in centimetres.
    let centimetres = |pixels: u16| (u32::from(pixels) * 254 / 9600).clamp(1, 255) as u8;
    block[21..23].copy_from_slice(&[centimetres(width), centimetres(height)]);
    block[23] = 120; // Gamma 2.2
    block[24] = 0x06; // sRGB; the first timing is the native one
    // sRGB primaries and white point, ten bits each.
    block[25..35].copy_from_slice(&[0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54]);
    block[35..38].copy_from_slice(&[0x21, 0x08, 0x00]); // 640x480, 800x600, 1024x768 at 60 Hz
    let standard: [(u16, u8); 8] =
        [(1920, 0xc0), (1680, 0x00), (1280, 0x80), (1600, 0x40), (1440, 0x00), (1280, 0x00), (1024, 0x40), (1920, 0x00)];
    for (slot, (columns, aspect)) in block[38..54].chunks_exact_mut(2).zip(standard) {
        slot.copy_from_slice(&[(columns / 8 - 31) as u8, aspect]);
    }
    block[54..72].copy_from_slice(&detailed_timing(width, height));
    block[72..90].copy_from_slice(&text_descriptor(0xfc, b"Bellglass"));
    // Range limits: 50 to 125 Hz, 30 to 160 kHz, up to 2550 MHz; no timing formula.
    block[90..108].copy_from_slice(&[0, 0, 0, 0xfd, 0, 50, 125, 30, 160, 255, 1, 10, 32, 32, 32, 32, 32, 32]);
    block[108..126].copy_from_slice(&text_descriptor(0xff, b"0"));
    block[127] = block.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    block
}

fn manufacturer(letters: [u8; 3]) -> u16 {
    letters.iter().fold(0, |id, letter| id << 5 | u16::from(letter - b'A' + 1))
}

/// An 18-byte timing with blanking in the manner of CVT reduced blanking.
fn detailed_timing(width: u16, height: u16) -> [u8; 18] {
    let (h_blank, v_blank) = (160_u16, (height / 25).max(23));
    let (h_front, h_sync, v_front, v_sync) = (48_u8, 32_u8, 3_u8, 6_u8);
    let dots = u32::from(width + h_blank) * u32::from(height + v_blank) * 60;
    let clock = (dots / 10_000).min(0xffff) as u16;
    let millimetres = |pixels: u16| (u32::from(pixels) * 254 / 960).min(4095) as u16;
    let (h_size, v_size) = (millimetres(width), millimetres(height));
    let [clock_low, clock_high] = clock.to_le_bytes();
    let high = |value: u16| ((value >> 8) & 15) as u8;
    [
        clock_low,
        clock_high,
        width as u8,
        h_blank as u8,
        high(width) << 4 | high(h_blank),
        height as u8,
        v_blank as u8,
        high(height) << 4 | high(v_blank),
        h_front,
        h_sync,
        v_front << 4 | v_sync,
        0,
        h_size as u8,
        v_size as u8,
        high(h_size) << 4 | high(v_size),
        0,
        0,
        0x1e, // Digital separate sync, both positive
    ]
}

fn text_descriptor(tag: u8, text: &[u8]) -> [u8; 18] {
    let mut descriptor = [b' '; 18];
    descriptor[..5].copy_from_slice(&[0, 0, 0, tag, 0]);
    descriptor[5..5 + text.len()].copy_from_slice(text);
    descriptor[5 + text.len()] = b'\n';
    descriptor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_sums_to_zero_and_names_its_size() {
        for (width, height) in [(640, 480), (1280, 800), (4088, 4094)] {
            let block = edid(width, height);
            assert_eq!(block.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
            assert_eq!(u16::from(block[56]) | u16::from(block[58] >> 4) << 8, width);
            assert_eq!(u16::from(block[59]) | u16::from(block[61] >> 4) << 8, height);
        }
    }
}
