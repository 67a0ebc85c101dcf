//! How floppy disks are laid out, by their size.

use super::SECTOR_BYTES;

/// How a disk is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    pub tracks: u8,
    pub heads: u8,
    pub sectors: u8,
    /// The data rates that can read it, a bit each: 500, 300, 250 kbit/s, 1 Mbit/s.
    pub rates: u8,
}

const fn geometry(tracks: u8, heads: u8, sectors: u8, rates: u8) -> Geometry {
    Geometry { tracks, heads, sectors, rates }
}

/// All disks there were, by size.
const GEOMETRIES: &[Geometry] = &[
    geometry(40, 1, 8, 0b0110),  // 160 KiB
    geometry(40, 1, 9, 0b0110),  // 180 KiB
    geometry(40, 2, 8, 0b0110),  // 320 KiB
    geometry(40, 2, 9, 0b0110),  // 360 KiB
    geometry(80, 2, 9, 0b0110),  // 720 KiB
    geometry(80, 2, 15, 0b0001), // 1.2 MiB
    geometry(80, 2, 18, 0b0001), // 1.44 MB
    geometry(80, 2, 21, 0b0001), // 1.68 MB (DMF)
    geometry(82, 2, 21, 0b0001), // 1.72 MB
    geometry(80, 2, 36, 0b1000), // 2.88 MB
];

impl Geometry {
    /// The layout of a disk of so many bytes; short images have the layout of the smallest disk that holds them.
    pub fn of(bytes: u64) -> Option<Self> {
        let size = |geometry: &Geometry| {
            u64::from(geometry.tracks) * u64::from(geometry.heads) * u64::from(geometry.sectors) * SECTOR_BYTES as u64
        };
        if bytes == 0 {
            return None;
        }
        GEOMETRIES.iter().find(|geometry| size(geometry) >= bytes).or(GEOMETRIES.last()).copied()
    }

    /// The sector's number on the disk, where there is one.
    pub fn lba(self, cylinder: u8, head: u8, sector: u8) -> Option<u64> {
        let is_there = cylinder < self.tracks && head < self.heads && (1..=self.sectors).contains(&sector);
        let track = u64::from(cylinder) * u64::from(self.heads) + u64::from(head);
        is_there.then(|| track * u64::from(self.sectors) + u64::from(sector) - 1)
    }
}
