//! Which parts of a picture changed: a handful of rectangles, merged when they grow too many.

/// A rectangle in pixels; `right` and `bottom` are one past the last pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rect {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// One past the last column.
    pub right: u32,
    /// One past the last row.
    pub bottom: u32,
}

impl Rect {
    /// The smallest rectangle that holds both.
    pub fn union(self, other: Rect) -> Rect {
        Rect {
            left: self.left.min(other.left),
            top: self.top.min(other.top),
            right: self.right.max(other.right),
            bottom: self.bottom.max(other.bottom),
        }
    }

    /// The part inside a `width` × `height` picture; `None` when nothing is.
    pub fn clipped(self, width: u32, height: u32) -> Option<Rect> {
        let clipped = Rect { right: self.right.min(width), bottom: self.bottom.min(height), ..self };
        (clipped.left < clipped.right && clipped.top < clipped.bottom).then_some(clipped)
    }

    fn touches(self, other: Rect) -> bool {
        self.left <= other.right && other.left <= self.right && self.top <= other.bottom && other.top <= self.bottom
    }
}

/// A bounded set of rectangles.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damage {
    rects: Vec<Rect>,
}

const MOST_RECTS: usize = 16;

impl Damage {
    /// Adds a rectangle, merging it with what it touches; beyond 16 rectangles everything becomes one.
    pub fn add(&mut self, rect: Rect) {
        if let Some(neighbour) = self.rects.iter_mut().find(|other| other.touches(rect)) {
            *neighbour = neighbour.union(rect);
            return;
        }
        self.rects.push(rect);
        if self.rects.len() > MOST_RECTS {
            let all = self.rects.drain(..).reduce(Rect::union);
            self.rects.extend(all);
        }
    }

    /// The rectangles, in no order.
    pub fn rects(&self) -> &[Rect] {
        &self.rects
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.rects.is_empty()
    }

    /// Takes the rectangles out.
    pub fn take(&mut self) -> Damage {
        std::mem::take(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_rows_become_one_rectangle() {
        let mut damage = Damage::default();
        for top in 0..100 {
            damage.add(Rect { left: 3, top, right: 9, bottom: top + 1 });
        }
        assert_eq!(damage.rects(), [Rect { left: 3, top: 0, right: 9, bottom: 100 }]);
    }

    #[test]
    fn many_scattered_rectangles_stay_bounded_and_covered() {
        let mut damage = Damage::default();
        for i in 0..1000 {
            damage.add(Rect { left: i * 10, top: i * 10, right: i * 10 + 1, bottom: i * 10 + 1 });
        }
        assert!(damage.rects().len() <= MOST_RECTS);
        assert!(damage.rects().iter().any(|rect| rect.left == 0));
        assert!(damage.rects().iter().any(|rect| rect.right == 9991));
    }
}
