//! The memory map that the BIOS hands to operating systems (INT 15h, AX=E820h), given to SeaBIOS as `etc/e820`.

/// PCI devices get the addresses from here to 4 GiB, so RAM below 4 GiB ends here at most.
pub const PCI_HOLE: u64 = 0xe000_0000;
const FOUR_GIB: u64 = 1 << 32;

/// How RAM is laid out around the PCI hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamLayout {
    /// Bytes from address 0.
    pub below_4g: u64,
    /// Bytes from 4 GiB.
    pub above_4g: u64,
}

impl RamLayout {
    /// Where `bytes` of RAM go.
    pub fn of(bytes: u64) -> Self {
        let below_4g = bytes.min(PCI_HOLE);
        Self { below_4g, above_4g: bytes - below_4g }
    }

    /// The `etc/e820` file: for each range an address, a length and a type (1 is RAM, 2 reserved), little endian. SeaBIOS
    /// adds what it reserves itself.
    pub fn e820(&self) -> Vec<u8> {
        let ram_above = (self.above_4g > 0).then_some((FOUR_GIB, self.above_4g, 1_u32));
        let ranges = std::iter::once((0, self.below_4g, 1_u32)).chain(ram_above);
        ranges
            .flat_map(|(base, len, kind)| [&u64::to_le_bytes(base)[..], &len.to_le_bytes(), &kind.to_le_bytes()].concat())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_beyond_the_hole_moves_above_four_gib() {
        let layout = RamLayout::of(4 << 30);
        assert_eq!((layout.below_4g, layout.above_4g), (0xe000_0000, 0x2000_0000));
        assert_eq!(layout.e820().len(), 40);
        assert_eq!(RamLayout::of(512 << 20).e820().len(), 20);
    }
}
