//! Makes a part of the guest's picture as large as it is shown, on the CPU, pixel for pixel as the shader of
//! `frame_texture.rs` does it: whole multiples are exact, other sizes blend only along pixel borders.

use engine_display::{Picture, Rect};

use super::placement::{PixelRect, Placement};

/// From which two guest pixels a row or column of the display is blended.
#[derive(Clone, Copy)]
struct Blend {
    first: u32,
    second: u32,
    /// The share of the second, in 256ths.
    share: u32,
}

impl Blend {
    /// For display pixel `at` of a picture that shows `guest` pixels on `shown`.
    fn new(at: i32, guest: u32, shown: i32) -> Self {
        let (guest_f, shown_f) = (guest as f32, shown.max(1) as f32);
        let texel = (at as f32 + 0.5) * guest_f / shown_f;
        let scale = (shown_f / guest_f).max(1.0);
        let flat = 0.5 - 0.5 / scale;
        let from_center = texel.fract() - 0.5;
        let blended = texel.floor() + (from_center - from_center.clamp(-flat, flat)) * scale + 0.5;
        // A linear sampler blends the two pixels whose centres are nearest.
        let left = blended - 0.5;
        let last = i64::from(guest) - 1;
        let clamped = |pixel: i64| pixel.clamp(0, last.max(0)) as u32;
        let first = left.floor() as i64;
        Self { first: clamped(first), second: clamped(first + 1), share: ((left - left.floor()) * 256.0).round() as u32 }
    }
}

/// The pixels of the window that change with `damage`; `None` when nothing of it is in sight.
pub fn shown_rect(placement: &Placement, damage: Rect) -> Option<PixelRect> {
    let Placement { view, picture, guest } = *placement;
    let along = |from: u32, to: u32, start: i32, length: i32, guest: u32, view_start: i32, view_length: i32| {
        let scale = f64::from(length) / f64::from(guest.max(1));
        // A display pixel blends at most the guest pixels beside its own.
        let from = (f64::from(from.saturating_sub(1)) * scale).floor() as i32 + start;
        let to = (f64::from(to.saturating_add(1).min(guest)) * scale).ceil() as i32 + start;
        (from.max(view_start).max(start), to.min(view_start + view_length).min(start + length))
    };
    let (left, right) = along(damage.left, damage.right, picture.left, picture.width, guest.0, view.left, view.width);
    let (top, bottom) = along(damage.top, damage.bottom, picture.top, picture.height, guest.1, view.top, view.height);
    (left < right && top < bottom).then_some(PixelRect { left, top, width: right - left, height: bottom - top })
}

/// The pixels of `rect`, row after row, as `0x00RRGGBB`. `rect` lies within the placement's picture.
pub fn enlarge(picture: &Picture, placement: &Placement, rect: PixelRect, pixels: &mut Vec<u32>) {
    pixels.clear();
    let Placement { picture: shown, guest, view: _ } = *placement;
    let columns: Vec<Blend> =
        (rect.left..rect.left + rect.width).map(|x| Blend::new(x - shown.left, guest.0, shown.width)).collect();
    pixels.reserve(columns.len() * rect.height.max(0) as usize);
    let row = |y: u32| {
        let start = y as usize * picture.width as usize;
        picture.pixels.get(start..start + picture.width as usize).unwrap_or(&[])
    };
    let pixel = |row: &[u32], x: u32| row.get(x as usize).copied().unwrap_or(0);
    for y in rect.top..rect.top + rect.height {
        let down = Blend::new(y - shown.top, guest.1, shown.height);
        let (upper, lower) = (row(down.first), row(down.second));
        pixels.extend(columns.iter().map(|across| {
            let blended = |row: &[u32]| match across.share {
                0 => pixel(row, across.first),
                share => mix(pixel(row, across.first), pixel(row, across.second), share),
            };
            match down.share {
                0 => blended(upper),
                share => mix(blended(upper), blended(lower), share),
            }
        }));
    }
}

/// `from` and `to` blended, `share` 256ths of it `to`; red and blue at once, they do not meet.
fn mix(from: u32, to: u32, share: u32) -> u32 {
    const RED_AND_BLUE: u32 = 0x00ff_00ff;
    const GREEN: u32 = 0x0000_ff00;
    let keep = 256 - share;
    let red_and_blue = ((from & RED_AND_BLUE) * keep + (to & RED_AND_BLUE) * share) >> 8 & RED_AND_BLUE;
    let green = ((from & GREEN) * keep + (to & GREEN) * share) >> 8 & GREEN;
    red_and_blue | green
}

#[cfg(test)]
mod tests {
    use super::super::placement::ScaleMode;
    use super::*;

    const VIEW: PixelRect = PixelRect { left: 10, top: 40, width: 1000, height: 700 };

    fn colourful(width: u32, height: u32) -> Picture {
        let pixels = (0..width * height).map(|at| at.wrapping_mul(0x9e37_79b1) & 0x00ff_ffff).collect();
        Picture { width, height, pixels }
    }

    #[test]
    fn at_whole_multiples_every_pixel_is_the_guests() {
        let guest = colourful(320, 200);
        for (mode, scale) in [(ScaleMode::Exact, 1), (ScaleMode::Integer, 3)] {
            let placement = Placement::new(VIEW, (320, 200), mode, (0.5, 0.5));
            let mut pixels = Vec::new();
            enlarge(&guest, &placement, placement.picture, &mut pixels);
            let width = placement.picture.width as usize;
            assert_eq!(width, 320 * scale);
            for (at, pixel) in pixels.iter().enumerate() {
                let (x, y) = (at % width / scale, at / width / scale);
                assert_eq!(*pixel, guest.pixels[y * 320 + x], "at {at}");
            }
        }
    }

    #[test]
    fn a_changed_pixel_changes_only_its_rectangle() {
        let before = colourful(720, 400);
        let placement = Placement::new(VIEW, (720, 400), ScaleMode::Fit, (0.5, 0.5));
        let (mut whole_before, mut whole_after) = (Vec::new(), Vec::new());
        enlarge(&before, &placement, placement.picture, &mut whole_before);
        for (x, y) in [(0, 0), (100, 50), (719, 399)] {
            let mut after = before.clone();
            after.pixels[y * 720 + x] ^= 0x00ff_ffff;
            enlarge(&after, &placement, placement.picture, &mut whole_after);
            let damage = Rect { left: x as u32, top: y as u32, right: x as u32 + 1, bottom: y as u32 + 1 };
            let rect = shown_rect(&placement, damage).unwrap();
            let width = placement.picture.width as usize;
            let mut changed = 0;
            for (at, (old, new)) in whole_before.iter().zip(&whole_after).enumerate() {
                let (left, top) = ((at % width) as i32 + placement.picture.left, (at / width) as i32 + placement.picture.top);
                let inside = rect.contains(f64::from(left), f64::from(top));
                assert!(old == new || inside, "{left}, {top} is outside of {rect:?}");
                changed += usize::from(old != new);
            }
            assert!(changed > 0);
        }
    }

    #[test]
    fn what_is_out_of_sight_is_not_drawn() {
        let placement = Placement::new(VIEW, (1920, 1080), ScaleMode::Exact, (0.0, 0.0));
        assert_eq!(shown_rect(&placement, Rect { left: 1500, top: 0, right: 1600, bottom: 10 }), None);
        let rect = shown_rect(&placement, Rect { left: 900, top: 0, right: 1920, bottom: 2 }).unwrap();
        assert_eq!((rect.left, rect.top, rect.left + rect.width), (10 + 899, 40, 1010));
    }
}
