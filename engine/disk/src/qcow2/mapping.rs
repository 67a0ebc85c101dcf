//! From a guest position to a place in the file: cluster arithmetic and second-level entries.
//!
//! A disk is mapped in *units*. With standard entries a unit is a cluster; with extended entries (the specification's
//! "subclusters") it is a 32nd of one, and a second word says of each whether it is stored and whether it reads as zeros.
//! [`Cluster`] is the decoded form of both, so that nobody else need know which one a file has.
//!
//! See: the qcow2 specification, "Cluster mapping" and "Extended L2 Entries".

use std::ops::Range;

use super::header::Header;

/// "Reference count is exactly one": the cluster may be written in place.
pub(super) const COPIED: u64 = 1 << 63;
pub(super) const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros (version 3, standard entries).
pub(super) const ZERO: u64 = 1;
/// Bits 9–55: a host offset.
pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// No host cluster lies at or beyond this offset.
pub(super) const MAX_HOST_OFFSET: u64 = 1 << 56;
/// Units of a cluster with extended entries.
const SUBCLUSTERS: u64 = 32;

/// Sizes that follow from the header and never change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) cluster_bits: u32,
    pub(super) refcount_order: u32,
    pub(super) version: u32,
    /// Whether entries have a second word, for subclusters.
    pub(super) extended_l2: bool,
    /// Whether the guest's data lies in a file of its own, each byte where the guest sees it.
    pub(super) external_data: bool,
}

impl Geometry {
    pub(super) fn of(header: &Header) -> Self {
        Self {
            cluster_bits: header.cluster_bits,
            refcount_order: header.refcount_order,
            version: header.version,
            extended_l2: header.has_extended_l2(),
            external_data: header.has_data_file(),
        }
    }

    pub(super) fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Words of a second-level entry.
    pub(super) fn entry_words(self) -> usize {
        if self.extended_l2 { 2 } else { 1 }
    }

    /// Entries of a second-level table.
    pub(super) fn l2_entries(self) -> u64 {
        self.cluster_size() / (8 * self.entry_words() as u64)
    }

    pub(super) fn units_per_cluster(self) -> u64 {
        if self.extended_l2 { SUBCLUSTERS } else { 1 }
    }

    /// Bytes of the smallest piece that is mapped on its own.
    pub(super) fn unit_size(self) -> u64 {
        self.cluster_size() / self.units_per_cluster()
    }

    /// One bit for each unit of a cluster.
    pub(super) fn all_units(self) -> u32 {
        (u64::MAX >> (64 - self.units_per_cluster())) as u32
    }

    /// One bit for each unit that a range of bytes of a cluster touches.
    pub(super) fn units(self, bytes: Range<u64>) -> u32 {
        if bytes.is_empty() {
            return 0;
        }
        let (first, last) = (bytes.start / self.unit_size(), (bytes.end - 1) / self.unit_size());
        ((u64::MAX >> (63 - last)) & (u64::MAX << first)) as u32
    }

    /// Entries of a refcount block.
    pub(super) fn block_entries(self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// Bytes of the disk that one second-level table maps.
    pub(super) fn bytes_per_table(self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    /// Position in the first-level table, and in the second-level table under it.
    pub(super) fn indices(self, guest_offset: u64) -> (usize, usize) {
        let cluster = guest_offset >> self.cluster_bits;
        ((cluster / self.l2_entries()) as usize, (cluster % self.l2_entries()) as usize)
    }

    /// Takes the mark "ours alone" off every entry of a table.
    pub(super) fn clear_marks(self, words: &mut [u64]) {
        words.iter_mut().step_by(self.entry_words()).for_each(|word| *word &= !COPIED);
    }
}

/// A second-level entry as it stands in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) word: u64,
    /// The second word of an extended entry: which subclusters are stored (bits 0–31), which read as zeros (32–63).
    pub(super) subclusters: u64,
}

impl Entry {
    /// The entry as it stands in a file.
    pub(super) fn bytes(self, geometry: Geometry) -> impl Iterator<Item = u8> {
        [self.word, self.subclusters].into_iter().take(geometry.entry_words()).flat_map(u64::to_be_bytes)
    }
}

/// The entries of a second-level table; none where there is no table.
#[derive(Clone, Copy)]
pub(super) struct Entries<'a> {
    words: &'a [u64],
    geometry: Geometry,
    /// Where on the disk its first cluster lies.
    guest: u64,
}

impl<'a> Entries<'a> {
    pub(super) fn new(words: &'a [u64], geometry: Geometry, guest: u64) -> Self {
        Self { words, geometry, guest }
    }

    pub(super) fn is_empty(self) -> bool {
        self.words.is_empty()
    }

    pub(super) fn len(self) -> usize {
        self.words.len() / self.geometry.entry_words()
    }

    /// The entry of a cluster; one that is not there says nothing.
    pub(super) fn entry(self, index: usize) -> Entry {
        let at = index * self.geometry.entry_words();
        let word = |at: usize| self.words.get(at).copied().unwrap_or(0);
        Entry { word: word(at), subclusters: if self.geometry.extended_l2 { word(at + 1) } else { 0 } }
    }

    /// What the entry of a cluster says.
    pub(super) fn cluster(self, index: usize) -> Result<Cluster, BadEntry> {
        let cluster = Cluster::decode(self.entry(index), self.geometry)?;
        if let (true, Cluster::Mapped { host: Some(host), .. }) = (self.geometry.external_data, cluster)
            && host != self.guest + index as u64 * self.geometry.cluster_size()
        {
            return Err(BadEntry("a cluster lies at another place of the data file than of the disk"));
        }
        Ok(cluster)
    }

    /// All entries that say something.
    pub(super) fn used(self) -> impl Iterator<Item = (usize, Entry)> + 'a {
        (0..self.len()).map(move |index| (index, self.entry(index))).filter(|(_, entry)| *entry != Entry::default())
    }
}

/// What an entry says of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cluster {
    /// Mapped unit by unit, one bit each. A unit that is in neither set shows the base image.
    Mapped {
        /// The host cluster that is there for it, whether or not anything is stored in it.
        host: Option<u64>,
        /// Whether that belongs to nobody else.
        copied: bool,
        stored: u32,
        zeros: u32,
    },
    /// Stored compressed in `length` bytes (at most) from `start` on.
    Compressed { start: u64, length: u64 },
}

/// What is to be read in a unit, and the host cluster that is there for its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// Nothing here; the base image shows through.
    Unallocated { host: Option<u64> },
    /// Zeros.
    Zero { host: Option<u64> },
    /// Stored.
    Data { host: u64 },
    /// Stored compressed, with its whole cluster.
    Compressed { start: u64, length: u64 },
}

/// Why an entry makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadEntry(pub(super) &'static str);

impl Cluster {
    /// Nothing said.
    pub(super) const EMPTY: Cluster = Cluster::Mapped { host: None, copied: false, stored: 0, zeros: 0 };

    pub(super) fn decode(entry: Entry, geometry: Geometry) -> Result<Self, BadEntry> {
        let Entry { word, subclusters } = entry;
        // Compressed first: in such an entry bit 0 belongs to the offset and is no zero flag.
        if word & COMPRESSED != 0 {
            if subclusters != 0 {
                return Err(BadEntry("a compressed cluster has subclusters"));
            }
            return Self::decode_compressed(word, geometry);
        }
        let copied = word & COPIED != 0;
        let place = word & OFFSET_MASK;
        let flags = if geometry.version == 2 || geometry.extended_l2 { 0 } else { ZERO };
        if word & !(COPIED | OFFSET_MASK | flags) != 0 {
            return Err(BadEntry("a cluster entry has reserved bits set"));
        }
        if !place.is_multiple_of(geometry.cluster_size()) {
            return Err(BadEntry("a cluster entry points between clusters"));
        }
        // Only in a file of its own may data lie at the very beginning.
        let host = (place != 0 || (copied && geometry.external_data)).then_some(place);
        if host.is_none() && copied {
            return Err(BadEntry("a cluster entry points at the header"));
        }
        let (stored, zeros) = match geometry.extended_l2 {
            true => (subclusters as u32, (subclusters >> 32) as u32),
            false if word & ZERO != 0 => (0, 1),
            false => (u32::from(host.is_some()), 0),
        };
        if stored & zeros != 0 {
            return Err(BadEntry("a subcluster is stored and zeros at once"));
        }
        if stored != 0 && host.is_none() {
            return Err(BadEntry("subclusters are stored nowhere"));
        }
        Ok(Cluster::Mapped { host, copied, stored, zeros })
    }

    fn decode_compressed(word: u64, geometry: Geometry) -> Result<Self, BadEntry> {
        if word & COPIED != 0 {
            return Err(BadEntry("a compressed cluster claims to be writable in place"));
        }
        if geometry.external_data {
            return Err(BadEntry("a cluster of a data file is compressed"));
        }
        let offset_bits = 62 - (geometry.cluster_bits - 8);
        let start = word & ((1 << offset_bits) - 1);
        let more_sectors = (word & (COMPRESSED - 1)) >> offset_bits;
        let length = (more_sectors + 1) * 512 - start % 512;
        if start >= MAX_HOST_OFFSET {
            return Err(BadEntry("a compressed cluster lies beyond any file"));
        }
        let clusters = (start + length - 1) / geometry.cluster_size() - start / geometry.cluster_size() + 1;
        if start < geometry.cluster_size() || clusters > 2 {
            return Err(BadEntry("a compressed cluster has an impossible place or size"));
        }
        Ok(Cluster::Compressed { start, length })
    }

    /// The entry of a cluster that is mapped; a standard one cannot keep a place for what is neither stored nor zeros.
    pub(super) fn encode(self, geometry: Geometry) -> Entry {
        let Cluster::Mapped { host, copied, stored, zeros } = self else { return Entry::default() };
        let place = host.map_or(0, |host| host | if copied { COPIED } else { 0 });
        if geometry.extended_l2 {
            return Entry { word: place, subclusters: u64::from(zeros) << 32 | u64::from(stored) };
        }
        Entry {
            word: if zeros != 0 {
                place | ZERO
            } else if stored != 0 {
                place
            } else {
                0
            },
            subclusters: 0,
        }
    }

    /// What is read in one of its units.
    pub(super) fn unit(self, number: u64) -> Mapping {
        match self {
            Cluster::Compressed { start, length } => Mapping::Compressed { start, length },
            Cluster::Mapped { host: Some(host), stored, .. } if stored >> number & 1 != 0 => Mapping::Data { host },
            Cluster::Mapped { host, zeros, .. } if zeros >> number & 1 != 0 => Mapping::Zero { host },
            Cluster::Mapped { host, .. } => Mapping::Unallocated { host },
        }
    }

    /// The host cluster that is there for it.
    pub(super) fn place(self) -> Option<u64> {
        match self {
            Cluster::Mapped { host, .. } => host,
            Cluster::Compressed { .. } => None,
        }
    }

    /// Where it may be written to without asking for room: its host cluster, if that belongs to nobody else.
    pub(super) fn own_place(self) -> Option<u64> {
        match self {
            Cluster::Mapped { host, copied: true, .. } => host,
            _ => None,
        }
    }

    /// The host clusters (numbers, not offsets) of the disk file that hold a reference from this entry.
    pub(super) fn host_clusters(self, geometry: Geometry) -> Range<u64> {
        let bits = geometry.cluster_bits;
        match self {
            Cluster::Mapped { host: Some(host), .. } if !geometry.external_data => host >> bits..(host >> bits) + 1,
            Cluster::Mapped { .. } => 0..0,
            Cluster::Compressed { start, length } => start >> bits..((start + length - 1) >> bits) + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(cluster_bits: u32, version: u32) -> Geometry {
        Geometry { cluster_bits, refcount_order: 4, version, extended_l2: false, external_data: false }
    }

    fn extended() -> Geometry {
        Geometry { extended_l2: true, ..geometry(16, 3) }
    }

    /// Decodes a standard entry.
    fn decode(word: u64, geometry: Geometry) -> Result<Cluster, BadEntry> {
        Cluster::decode(Entry { word, subclusters: 0 }, geometry)
    }

    #[test]
    fn all_sixteen_flag_combinations_decode_as_the_specification_says() {
        let host = 0x50000;
        let bad = Err(());
        let data = |copied| Ok(Cluster::Mapped { host: Some(host), copied, stored: 1, zeros: 0 });
        let zero = |host, copied| Ok(Cluster::Mapped { host, copied, stored: 0, zeros: 1 });
        // (copied, compressed, zero flag, has offset)
        let cases = [
            ((0, 0, 0, 0), Ok(Cluster::EMPTY)),
            ((0, 0, 0, 1), data(false)),
            ((0, 0, 1, 0), zero(None, false)),
            ((0, 0, 1, 1), zero(Some(host), false)),
            ((0, 1, 0, 0), bad),
            ((0, 1, 0, 1), Ok(Cluster::Compressed { start: host, length: 512 })),
            ((0, 1, 1, 0), bad),
            // Bit 0 of a compressed entry is the lowest bit of the offset, not the zero flag.
            ((0, 1, 1, 1), Ok(Cluster::Compressed { start: host + 1, length: 511 })),
            ((1, 0, 0, 0), bad),
            ((1, 0, 0, 1), data(true)),
            ((1, 0, 1, 0), bad),
            ((1, 0, 1, 1), zero(Some(host), true)),
            ((1, 1, 0, 0), bad),
            ((1, 1, 0, 1), bad),
            ((1, 1, 1, 0), bad),
            ((1, 1, 1, 1), bad),
        ];
        for ((copied, compressed, zero, offset), expected) in cases {
            let entry = copied << 63 | compressed << 62 | zero | (offset * host);
            let decoded = decode(entry, geometry(16, 3));
            assert_eq!(decoded.map_err(|_| ()), expected, "{entry:#x}");
            if let Ok(mapped @ Cluster::Mapped { .. }) = decoded {
                assert_eq!(mapped.encode(geometry(16, 3)), Entry { word: entry, subclusters: 0 });
            }
        }
    }

    #[test]
    fn all_combinations_of_flags_and_subclusters_decode_as_the_specification_says() {
        let host = 0x50000;
        // (copied, compressed, bit 0, has offset) and the second word.
        for flags in 0..16_u64 {
            let [copied, compressed, zero, offset] = [3, 2, 1, 0].map(|bit| flags >> bit & 1);
            for (stored, zeros) in [(0_u32, 0_u32), (1, 0), (0, 1), (1, 1), (1 << 31, 1), (!0, 0), (0, !0), (5, 2), (5, 4)] {
                let word = copied << 63 | compressed << 62 | zero | (offset * host);
                let entry = Entry { word, subclusters: u64::from(zeros) << 32 | u64::from(stored) };
                let is_sensible = match (copied, compressed, zero, offset) {
                    // Bit 0 of a compressed entry is a part of its offset; it has no subclusters.
                    (0, 1, _, 1) => stored == 0 && zeros == 0,
                    (_, 1, ..) | (1, _, _, 0) | (_, _, 1, _) => false,
                    (.., offset) => stored & zeros == 0 && (stored == 0 || offset == 1),
                };
                let decoded = Cluster::decode(entry, extended());
                assert_eq!(decoded.is_ok(), is_sensible, "{entry:x?}: {decoded:?}");
                let Ok(cluster @ Cluster::Mapped { .. }) = decoded else { continue };
                assert_eq!(cluster.encode(extended()), entry);
                let place = (offset == 1).then_some(host);
                assert_eq!(cluster.own_place(), place.filter(|_| copied == 1));
                for unit in 0..32 {
                    let expected = match (stored >> unit & 1, zeros >> unit & 1) {
                        (1, _) => Mapping::Data { host },
                        (_, 1) => Mapping::Zero { host: place },
                        _ => Mapping::Unallocated { host: place },
                    };
                    assert_eq!(cluster.unit(unit), expected, "{entry:x?}, unit {unit}");
                }
            }
        }
    }

    #[test]
    fn units_are_32nds_of_a_cluster_or_clusters() {
        assert_eq!((extended().unit_size(), extended().l2_entries(), extended().all_units()), (2048, 4096, !0));
        assert_eq!((geometry(16, 3).unit_size(), geometry(16, 3).l2_entries(), geometry(16, 3).all_units()), (65536, 8192, 1));
        let cases = [(0..1, 1), (2047..2049, 3), (2048..4096, 2), (63 * 1024..65536, 1 << 31), (0..65536, !0), (9..9, 0)];
        for (bytes, expected) in cases {
            assert_eq!(extended().units(bytes.clone()), expected, "{bytes:?}");
            assert_eq!(geometry(16, 3).units(bytes.clone()), u32::from(!bytes.is_empty()));
        }
    }

    #[test]
    fn data_files_have_no_compressed_clusters_and_may_begin_with_data() {
        let external = Geometry { external_data: true, ..geometry(16, 3) };
        let first = Cluster::Mapped { host: Some(0), copied: true, stored: 1, zeros: 0 };
        assert_eq!(decode(COPIED, external), Ok(first));
        assert_eq!(first.encode(external).word, COPIED);
        assert!(decode(COMPRESSED | 0x50000, external).is_err());
        let words = [COPIED, COPIED | 0x10000, COPIED | 0x30000];
        let entries = Entries::new(&words, external, 0);
        assert_eq!([0, 1, 2].map(|index| entries.cluster(index).is_ok()), [true, true, false]);
        assert!(entries.cluster(0).unwrap().host_clusters(external).is_empty());
    }

    #[test]
    fn reserved_bits_unaligned_offsets_and_old_versions_are_refused() {
        for bit in (1..9).chain(56..62) {
            assert!(decode(0x50000 | 1 << bit, geometry(16, 3)).is_err(), "bit {bit}");
            assert!(decode(0x50000 | 1 << bit, extended()).is_err(), "bit {bit}");
        }
        assert!(decode(0x50200 | COPIED, geometry(16, 3)).is_err());
        assert!(decode(ZERO, geometry(16, 2)).is_err());
    }

    #[test]
    fn compressed_entries_never_touch_the_header_or_more_than_two_clusters() {
        let bits = 16;
        let offset_bits = 62 - (bits - 8);
        let entry = |start: u64, more: u64| 1 << 62 | more << offset_bits | start;
        assert!(decode(entry(0x8000, 0), geometry(bits, 3)).is_err());
        assert!(decode(entry(0x1ff00, 255), geometry(bits, 3)).is_err(), "three clusters");
        let mapping = decode(entry(0x1ff00, 8), geometry(bits, 3)).unwrap();
        assert_eq!(mapping.host_clusters(geometry(bits, 3)), 1..3);
    }
}
