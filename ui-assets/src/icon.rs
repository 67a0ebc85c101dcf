//! The icons, as strokes on a 24 × 24 grid. A new icon is a variant and a line in [`Icon::strokes`].

use egui::{Color32, Painter, Pos2, Rect, Shape, Stroke, StrokeKind};

/// A picture that stands before (or, with a name for screen readers, instead of) a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Icon {
    /// The program's own sign: a bell jar.
    Bellglass,
    /// Make something new.
    Plus,
    /// Start, resume.
    Play,
    /// Pause.
    Pause,
    /// The power button.
    Power,
    /// The plug.
    Plug,
    /// Reset.
    Reset,
    /// A window or screen.
    Screen,
    /// Throw away.
    Trash,
    /// A folder.
    Folder,
    /// A CD or DVD.
    Disc,
    /// A hard disk.
    HardDisk,
    /// A floppy disk.
    Floppy,
    /// Take out.
    Eject,
    /// A keyboard.
    Keyboard,
    /// Typing text.
    Text,
    /// A screenshot.
    Camera,
    /// The whole screen.
    FullScreen,
    /// How large the picture is.
    Scale,
    /// Something to be careful about.
    Warning,
    /// All is well.
    Check,
    /// Close, or failed.
    Cross,
    /// A processor.
    Chip,
    /// A spark: try something.
    Spark,
    /// Sliders: settings.
    Sliders,
}

/// One element of an icon, on the grid.
enum Stroke24 {
    /// Joined points.
    Line(&'static [(f32, f32)]),
    /// A filled outline.
    Fill(&'static [(f32, f32)]),
    /// A circle.
    Circle(f32, f32, f32),
    /// A filled circle.
    Dot(f32, f32, f32),
    /// Part of a circle: centre, radius, from and to in degrees, clockwise from the right.
    Arc(f32, f32, f32, f32, f32),
    /// A rectangle with round corners: left, top, right, bottom.
    Box(f32, f32, f32, f32),
}
use Stroke24::{Arc, Box, Circle, Dot, Fill, Line};

impl Icon {
    /// Draws the icon into the middle of `rect`, as large as fits.
    pub fn paint(self, painter: &Painter, rect: Rect, color: Color32) {
        let side = rect.width().min(rect.height());
        let grid = Rect::from_center_size(rect.center(), egui::Vec2::splat(side));
        let unit = side / 24.0;
        let at = |(x, y): (f32, f32)| grid.min + egui::vec2(x, y) * unit;
        let pen = Stroke::new((1.8 * unit).max(1.0), color);
        for stroke in self.strokes() {
            let shape = match *stroke {
                Line(points) => Shape::line(points.iter().copied().map(at).collect(), pen),
                Fill(points) => Shape::convex_polygon(points.iter().copied().map(at).collect(), color, Stroke::NONE),
                Circle(x, y, radius) => Shape::circle_stroke(at((x, y)), radius * unit, pen),
                Dot(x, y, radius) => Shape::circle_filled(at((x, y)), radius * unit, color),
                Arc(x, y, radius, from, to) => Shape::line(arc(at((x, y)), radius * unit, from, to), pen),
                Box(left, top, right, bottom) => {
                    let rect = Rect::from_min_max(at((left, top)), at((right, bottom)));
                    Shape::Rect(egui::epaint::RectShape::stroke(rect, 2.0 * unit, pen, StrokeKind::Middle))
                }
            };
            painter.add(shape);
        }
    }

    fn strokes(self) -> &'static [Stroke24] {
        match self {
            Icon::Bellglass => &[
                Arc(12.0, 11.5, 7.0, 180.0, 360.0),
                Line(&[(5.0, 11.5), (5.0, 18.0)]),
                Line(&[(19.0, 11.5), (19.0, 18.0)]),
                Line(&[(3.0, 20.0), (21.0, 20.0)]),
                Circle(12.0, 3.0, 1.4),
                Dot(12.0, 14.0, 2.6),
            ],
            Icon::Plus => &[Line(&[(12.0, 5.0), (12.0, 19.0)]), Line(&[(5.0, 12.0), (19.0, 12.0)])],
            Icon::Play => &[Fill(&[(7.0, 4.5), (19.5, 12.0), (7.0, 19.5)])],
            Icon::Pause => &[
                Fill(&[(6.5, 5.0), (10.0, 5.0), (10.0, 19.0), (6.5, 19.0)]),
                Fill(&[(14.0, 5.0), (17.5, 5.0), (17.5, 19.0), (14.0, 19.0)]),
            ],
            Icon::Power => &[Arc(12.0, 13.0, 7.5, -55.0, 235.0), Line(&[(12.0, 3.0), (12.0, 12.0)])],
            Icon::Plug => &[
                Line(&[(8.5, 3.0), (8.5, 8.0)]),
                Line(&[(15.5, 3.0), (15.5, 8.0)]),
                Line(&[(5.5, 8.0), (18.5, 8.0), (18.5, 11.5), (15.5, 15.5), (8.5, 15.5), (5.5, 11.5), (5.5, 8.0)]),
                Line(&[(12.0, 15.5), (12.0, 21.0)]),
            ],
            Icon::Reset => &[Arc(12.0, 12.5, 7.5, -40.0, 260.0), Fill(&[(14.0, 2.0), (19.8, 6.5), (13.0, 9.0)])],
            Icon::Screen => &[Box(3.0, 4.5, 21.0, 16.5), Line(&[(12.0, 16.5), (12.0, 20.0)]), Line(&[(8.0, 20.0), (16.0, 20.0)])],
            Icon::Trash => &[
                Line(&[(4.0, 6.5), (20.0, 6.5)]),
                Line(&[(9.0, 6.5), (9.5, 3.5), (14.5, 3.5), (15.0, 6.5)]),
                Line(&[(6.0, 6.5), (7.0, 20.5), (17.0, 20.5), (18.0, 6.5)]),
                Line(&[(10.3, 10.5), (10.6, 16.8)]),
                Line(&[(13.7, 10.5), (13.4, 16.8)]),
            ],
            Icon::Folder => &[Line(&[(3.0, 18.5), (3.0, 5.5), (9.5, 5.5), (11.5, 8.0), (21.0, 8.0), (21.0, 18.5), (3.0, 18.5)])],
            Icon::Disc => &[Circle(12.0, 12.0, 9.0), Circle(12.0, 12.0, 2.5), Arc(12.0, 12.0, 5.8, 190.0, 260.0)],
            Icon::HardDisk => &[
                Line(&[(3.5, 13.0), (6.5, 5.0), (17.5, 5.0), (20.5, 13.0)]),
                Box(3.5, 13.0, 20.5, 19.0),
                Dot(17.0, 16.0, 1.2),
                Line(&[(6.5, 16.0), (11.0, 16.0)]),
            ],
            Icon::Floppy => &[
                Line(&[(4.0, 4.0), (17.0, 4.0), (20.0, 7.0), (20.0, 20.0), (4.0, 20.0), (4.0, 4.0)]),
                Line(&[(8.0, 4.0), (8.0, 9.0), (15.5, 9.0), (15.5, 4.0)]),
                Line(&[(7.0, 20.0), (7.0, 13.5), (17.0, 13.5), (17.0, 20.0)]),
            ],
            Icon::Eject => &[Fill(&[(12.0, 5.0), (19.5, 14.0), (4.5, 14.0)]), Line(&[(5.0, 18.5), (19.0, 18.5)])],
            Icon::Keyboard => &[
                Box(2.5, 6.0, 21.5, 18.0),
                Dot(6.5, 10.0, 0.9),
                Dot(10.2, 10.0, 0.9),
                Dot(13.8, 10.0, 0.9),
                Dot(17.5, 10.0, 0.9),
                Line(&[(8.0, 14.5), (16.0, 14.5)]),
            ],
            Icon::Text => &[
                Line(&[(5.0, 7.5), (5.0, 5.0), (19.0, 5.0), (19.0, 7.5)]),
                Line(&[(12.0, 5.0), (12.0, 19.0)]),
                Line(&[(9.5, 19.0), (14.5, 19.0)]),
            ],
            Icon::Camera => &[
                Line(&[
                    (3.0, 19.0),
                    (3.0, 7.5),
                    (7.5, 7.5),
                    (9.0, 5.0),
                    (15.0, 5.0),
                    (16.5, 7.5),
                    (21.0, 7.5),
                    (21.0, 19.0),
                    (3.0, 19.0),
                ]),
                Circle(12.0, 13.0, 3.6),
            ],
            Icon::FullScreen => &[
                Line(&[(4.0, 9.0), (4.0, 4.0), (9.0, 4.0)]),
                Line(&[(15.0, 4.0), (20.0, 4.0), (20.0, 9.0)]),
                Line(&[(20.0, 15.0), (20.0, 20.0), (15.0, 20.0)]),
                Line(&[(9.0, 20.0), (4.0, 20.0), (4.0, 15.0)]),
            ],
            Icon::Scale => &[
                Box(3.5, 3.5, 20.5, 20.5),
                Box(3.5, 12.0, 12.0, 20.5),
                Line(&[(12.5, 11.5), (17.0, 7.0)]),
                Line(&[(13.5, 7.0), (17.0, 7.0), (17.0, 10.5)]),
            ],
            Icon::Warning => &[
                Line(&[(12.0, 3.5), (21.5, 20.0), (2.5, 20.0), (12.0, 3.5)]),
                Line(&[(12.0, 9.5), (12.0, 14.5)]),
                Dot(12.0, 17.3, 1.1),
            ],
            Icon::Check => &[Line(&[(4.5, 12.5), (9.8, 18.0), (19.5, 6.5)])],
            Icon::Cross => &[Line(&[(6.0, 6.0), (18.0, 18.0)]), Line(&[(18.0, 6.0), (6.0, 18.0)])],
            Icon::Chip => &[
                Box(6.0, 6.0, 18.0, 18.0),
                Box(10.0, 10.0, 14.0, 14.0),
                Line(&[(9.5, 6.0), (9.5, 3.0)]),
                Line(&[(14.5, 6.0), (14.5, 3.0)]),
                Line(&[(9.5, 18.0), (9.5, 21.0)]),
                Line(&[(14.5, 18.0), (14.5, 21.0)]),
                Line(&[(6.0, 9.5), (3.0, 9.5)]),
                Line(&[(6.0, 14.5), (3.0, 14.5)]),
                Line(&[(18.0, 9.5), (21.0, 9.5)]),
                Line(&[(18.0, 14.5), (21.0, 14.5)]),
            ],
            Icon::Spark => &[
                Fill(&[(12.0, 2.5), (14.2, 9.8), (12.0, 12.0), (9.8, 9.8)]),
                Fill(&[(12.0, 21.5), (9.8, 14.2), (12.0, 12.0), (14.2, 14.2)]),
                Fill(&[(2.5, 12.0), (9.8, 9.8), (12.0, 12.0), (9.8, 14.2)]),
                Fill(&[(21.5, 12.0), (14.2, 14.2), (12.0, 12.0), (14.2, 9.8)]),
            ],
            Icon::Sliders => &[
                Line(&[(4.0, 7.0), (20.0, 7.0)]),
                Line(&[(4.0, 12.0), (20.0, 12.0)]),
                Line(&[(4.0, 17.0), (20.0, 17.0)]),
                Dot(15.5, 7.0, 2.4),
                Dot(8.5, 12.0, 2.4),
                Dot(13.0, 17.0, 2.4),
            ],
        }
    }
}

fn arc(center: Pos2, radius: f32, from: f32, to: f32) -> Vec<Pos2> {
    const STEPS: usize = 28;
    (0..=STEPS)
        .map(|step| {
            let angle = (from + (to - from) * step as f32 / STEPS as f32).to_radians();
            center + radius * egui::Vec2::angled(angle)
        })
        .collect()
}
