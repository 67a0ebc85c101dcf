//! Which block answers at which physical address. Layers with priorities (RAM below, ROM above it, a device window
//! above that) are flattened into one sorted list, so that looking an address up is a binary search.

use crate::{Block, PAGE_BYTES};

/// What a layer puts at its addresses.
#[derive(Debug, Clone)]
pub enum Contents {
    /// A block from `offset` on, readable and writable.
    Ram(Block, u64),
    /// A block from `offset` on; writes to it are ignored.
    Rom(Block, u64),
    /// Reads come from the first, writes go to the second (i440FX PAM in its "write RAM, read ROM" state and such).
    Split {
        /// Where reads come from: a block and an offset in it.
        read: (Block, u64),
        /// Where writes go.
        write: (Block, u64),
    },
    /// A device: hides what lies below, so that the router answers.
    Device,
}

/// One layer of the physical address space. Base and length are multiples of 4096.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its name: setting a layer of the same name replaces it; `info mtree` shows it.
    pub name: String,
    /// Higher hides lower.
    pub priority: i32,
    /// First physical address.
    pub base: u64,
    /// Bytes.
    pub len: u64,
    /// What is there.
    pub contents: Contents,
}

/// What [`crate::GuestMemory::find`] found: a stretch of memory that answers at an address.
#[derive(Debug, Clone)]
pub struct Place {
    /// The block to read from and the offset of the address in it.
    pub read: (Block, u64),
    /// The block to write to and the offset; `None` when writes are ignored (ROM).
    pub write: Option<(Block, u64)>,
    /// Bytes from the address to the end of the stretch.
    pub len: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Flat {
    pieces: Vec<Piece>,
}

#[derive(Debug)]
struct Piece {
    base: u64,
    end: u64,
    layer_base: u64,
    contents: Contents,
}

impl Flat {
    pub fn of(layers: &[Layer]) -> Self {
        let mut edges: Vec<u64> = layers.iter().flat_map(|layer| [layer.base, layer.base.saturating_add(layer.len)]).collect();
        edges.sort_unstable();
        edges.dedup();
        let pieces = edges
            .windows(2)
            .filter_map(|pair| {
                let (base, end) = (pair[0], pair[1]);
                let top = layers
                    .iter()
                    .filter(|layer| layer.base <= base && end <= layer.base.saturating_add(layer.len))
                    .max_by_key(|layer| layer.priority)?;
                Some(Piece { base, end, layer_base: top.base, contents: top.contents.clone() })
            })
            .collect();
        Self { pieces }
    }

    pub fn find(&self, address: u64) -> Option<Place> {
        let at = self.pieces.partition_point(|piece| piece.end <= address);
        let piece = self.pieces.get(at).filter(|piece| piece.base <= address)?;
        let inside = address - piece.layer_base;
        let len = piece.end - address;
        let at = |(block, offset): &(Block, u64)| (block.clone(), offset + inside);
        match &piece.contents {
            Contents::Device => None,
            Contents::Ram(block, offset) => {
                let here = (block.clone(), offset + inside);
                Some(Place { read: here.clone(), write: Some(here), len })
            }
            Contents::Rom(block, offset) => Some(Place { read: (block.clone(), offset + inside), write: None, len }),
            Contents::Split { read, write } => Some(Place { read: at(read), write: Some(at(write)), len }),
        }
    }
}

impl Layer {
    pub(crate) fn is_page_aligned(&self) -> bool {
        self.base.is_multiple_of(PAGE_BYTES) && self.len.is_multiple_of(PAGE_BYTES) && self.len > 0
    }
}
