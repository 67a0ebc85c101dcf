//! Where the guest's picture lies in the window, and which guest pixel is under the pointer. All in physical pixels, so
//! that a picture at 1:1 is exact at every scale factor of the desktop.

/// A rectangle of physical pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PixelRect {
    /// First column.
    pub left: i32,
    /// First row.
    pub top: i32,
    /// Columns.
    pub width: i32,
    /// Rows.
    pub height: i32,
}

impl PixelRect {
    /// Whether the point lies inside.
    pub fn contains(&self, x: f64, y: f64) -> bool {
        x >= f64::from(self.left)
            && y >= f64::from(self.top)
            && x < f64::from(self.left + self.width)
            && y < f64::from(self.top + self.height)
    }
}

/// How large the guest's picture is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleMode {
    /// As large as the window allows, with the guest's proportions.
    Fit,
    /// One guest pixel is one pixel of the display.
    Exact,
    /// The largest whole multiple that the window allows.
    Integer,
}

impl ScaleMode {
    /// All of them, with their words in menus.
    pub const ALL: [(ScaleMode, &'static str); 3] =
        [(ScaleMode::Fit, "Fit the window"), (ScaleMode::Exact, "Actual size"), (ScaleMode::Integer, "Whole multiples")];

    /// The one after this.
    pub fn next(self) -> Self {
        match self {
            ScaleMode::Fit => ScaleMode::Exact,
            ScaleMode::Exact => ScaleMode::Integer,
            ScaleMode::Integer => ScaleMode::Fit,
        }
    }
}

/// A guest's picture in its view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The part of the window that is the guest's.
    pub view: PixelRect,
    /// Where the picture lies; larger than the view where it does not fit.
    pub picture: PixelRect,
    /// The guest's resolution.
    pub guest: (u32, u32),
}

impl Placement {
    /// Places a picture of `guest` pixels into `view`. `look_at` (0 to 1 in both directions) says which part is seen of
    /// a picture that is larger than the view.
    pub fn new(view: PixelRect, guest: (u32, u32), mode: ScaleMode, look_at: (f32, f32)) -> Self {
        let (columns, rows) = (f64::from(guest.0.max(1)), f64::from(guest.1.max(1)));
        let fit = (f64::from(view.width) / columns).min(f64::from(view.height) / rows);
        let scale = match mode {
            ScaleMode::Fit => fit,
            ScaleMode::Exact => 1.0,
            ScaleMode::Integer => fit.floor().max(1.0),
        };
        let size = |length: f64| ((length * scale).round() as i32).max(1);
        let (width, height) = (size(columns), size(rows));
        let start = |view: i32, picture: i32, look_at: f32| {
            let spare = view - picture;
            // What fits is centred; what does not is moved so that the wanted part is seen.
            if spare >= 0 { spare / 2 } else { (spare as f32 * look_at.clamp(0.0, 1.0)).round() as i32 }
        };
        let picture = PixelRect {
            left: view.left + start(view.width, width, look_at.0),
            top: view.top + start(view.height, height, look_at.1),
            width,
            height,
        };
        Self { view, picture, guest }
    }

    /// The guest pixel under a point; points beside the picture count as its nearest edge.
    pub fn guest_pixel(&self, x: f64, y: f64) -> (u32, u32) {
        let along = |at: f64, start: i32, length: i32, count: u32| {
            let pixel = (at - f64::from(start)) * f64::from(count) / f64::from(length.max(1));
            (pixel.floor().max(0.0) as u32).min(count.saturating_sub(1))
        };
        (
            along(x, self.picture.left, self.picture.width, self.guest.0),
            along(y, self.picture.top, self.picture.height, self.guest.1),
        )
    }

    /// The same as a tablet reports it: 0 to 32767, aimed at the middle of the guest pixel so that the guest's own
    /// rounding finds the same one.
    pub fn tablet_position(&self, x: f64, y: f64) -> (u16, u16) {
        let (column, row) = self.guest_pixel(x, y);
        let along = |pixel: u32, count: u32| {
            let position = (u64::from(pixel) * 2 + 1) * 32768 / (u64::from(count.max(1)) * 2);
            position.min(32767) as u16
        };
        (along(column, self.guest.0), along(row, self.guest.1))
    }

    /// What of a larger picture should be seen when the pointer is at this point: its far parts come nearer as the
    /// pointer does.
    pub fn look_at(&self, x: f64, y: f64) -> (f32, f32) {
        let along =
            |at: f64, start: i32, length: i32| ((at - f64::from(start)) / f64::from(length.max(1))).clamp(0.0, 1.0) as f32;
        (along(x, self.view.left, self.view.width), along(y, self.view.top, self.view.height))
    }

    /// Whether some of the picture is out of sight.
    pub fn is_cut(&self) -> bool {
        self.picture.width > self.view.width || self.picture.height > self.view.height
    }

    /// Display pixels for one guest pixel.
    pub fn scale(&self) -> f64 {
        f64::from(self.picture.width) / f64::from(self.guest.0.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIEW: PixelRect = PixelRect { left: 0, top: 60, width: 1200, height: 840 };

    #[test]
    fn the_pixel_pointed_at_is_the_one_that_a_tablet_reports() {
        // Sizes of the view as scale factors 1, 1.5 and 2 make them, and one that fits nothing.
        for (width, height) in [(800, 600), (1200, 900), (1600, 1200), (977, 701)] {
            for guest in [(640, 480), (720, 400), (800, 600), (1024, 768), (1920, 1080)] {
                let view = PixelRect { left: 3, top: 41, width, height };
                for mode in [ScaleMode::Fit, ScaleMode::Exact, ScaleMode::Integer] {
                    let placement = Placement::new(view, guest, mode, (0.5, 0.5));
                    for pixel in [0, 1, guest.0 / 3, guest.0 - 1] {
                        // The middle of that guest pixel, on the display.
                        let scale = f64::from(placement.picture.width) / f64::from(guest.0);
                        let x = f64::from(placement.picture.left) + (f64::from(pixel) + 0.5) * scale;
                        assert_eq!(placement.guest_pixel(x, 100.0).0, pixel);
                        let (position, _) = placement.tablet_position(x, 100.0);
                        assert_eq!(u64::from(position) * u64::from(guest.0) / 32768, u64::from(pixel), "{guest:?} {mode:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn actual_size_is_one_to_one_and_centred() {
        let placement = Placement::new(VIEW, (720, 400), ScaleMode::Exact, (0.0, 0.0));
        assert_eq!(placement.picture, PixelRect { left: 240, top: 60 + 220, width: 720, height: 400 });
        assert_eq!(placement.guest_pixel(240.0, 280.0), (0, 0));
        assert!(!placement.is_cut());
    }

    #[test]
    fn whole_multiples_never_fall_below_one() {
        assert_eq!(Placement::new(VIEW, (400, 300), ScaleMode::Integer, (0.0, 0.0)).picture.width, 800);
        assert_eq!(Placement::new(VIEW, (1920, 1080), ScaleMode::Integer, (0.0, 0.0)).picture.width, 1920);
    }

    #[test]
    fn every_corner_of_a_picture_that_does_not_fit_can_be_reached() {
        let mut placement = Placement::new(VIEW, (1920, 1080), ScaleMode::Exact, (0.0, 0.0));
        assert!(placement.is_cut());
        assert_eq!(placement.guest_pixel(0.0, 60.0), (0, 0));
        let look_at = placement.look_at(1199.9, 899.9);
        placement = Placement::new(VIEW, (1920, 1080), ScaleMode::Exact, look_at);
        assert_eq!(placement.guest_pixel(1199.9, 899.9), (1919, 1079));
    }

    #[test]
    fn points_beside_the_picture_count_as_its_edge() {
        let placement = Placement::new(VIEW, (640, 480), ScaleMode::Fit, (0.0, 0.0));
        assert_eq!(placement.guest_pixel(-50.0, 5000.0), (0, 479));
        assert_eq!(placement.tablet_position(5000.0, 0.0).1, 34);
    }
}
