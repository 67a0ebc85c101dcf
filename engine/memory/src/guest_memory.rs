//! The physical address space as far as memory answers in it.

use crate::layout::Flat;
use crate::{Block, Layer, PAGE_BYTES, PageFlags, PageState, Place};
use arc_swap::ArcSwap;
use engine_base::{RankedMutex, rank};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Guest-physical memory; clones share it.
#[derive(Clone)]
pub struct GuestMemory(Arc<Inner>);

struct Inner {
    flat: ArcSwap<Flat>,
    generation: AtomicU64,
    layers: RankedMutex<Vec<Layer>>,
}

/// Memory could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host has no room.
    #[error("The computer could not provide {mebibytes} MiB of memory for the machine. Give the machine less memory ({reason}).")]
    Refused {
        /// What was asked for.
        mebibytes: u64,
        /// What the host said.
        reason: String,
    },
}

/// No memory answers at this address: a device might, DMA must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no memory at {0:#x}")]
pub struct NotRam(pub u64);

impl Default for GuestMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl GuestMemory {
    /// An empty address space.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            flat: ArcSwap::from_pointee(Flat::default()),
            generation: AtomicU64::new(1),
            layers: RankedMutex::new(rank::LEAF, "memory layers", Vec::new()),
        }))
    }

    /// A new block of zeroes, not mapped anywhere yet.
    ///
    /// # Errors
    /// When the host has no room for it.
    pub fn add_block(&self, name: &'static str, bytes: u64) -> Result<Block, MemoryError> {
        Block::new(name, bytes).map_err(|reason| MemoryError::Refused { mebibytes: bytes >> 20, reason })
    }

    /// A new block whose every write is noted (video memory): see [`PageFlags::WATCHED`].
    ///
    /// # Errors
    /// When the host has no room for it.
    pub fn add_watched_block(&self, name: &'static str, bytes: u64) -> Result<Block, MemoryError> {
        let block = self.add_block(name, bytes)?;
        block.pages().iter().for_each(|page| page.set_flags(PageFlags::WATCHED));
        Ok(block)
    }

    /// Puts a layer into the address space, in place of one with the same name. A layer that is not page aligned or has
    /// no length is left out. CPU backends notice by [`GuestMemory::generation`].
    pub fn set_layer(&self, layer: Layer) {
        let mut layers = self.0.layers.lock();
        layers.retain(|other| other.name != layer.name);
        if layer.is_page_aligned() {
            layers.push(layer);
        } else {
            tracing::warn!(name = layer.name, base = layer.base, len = layer.len, "memory layer is not page aligned; left out");
        }
        self.rebuild(&layers);
    }

    /// Takes a layer out; nothing happens when there is none of this name.
    pub fn remove_layer(&self, name: &str) {
        let mut layers = self.0.layers.lock();
        let before = layers.len();
        layers.retain(|layer| layer.name != name);
        if layers.len() != before {
            self.rebuild(&layers);
        }
    }

    fn rebuild(&self, layers: &[Layer]) {
        self.0.flat.store(Arc::new(Flat::of(layers)));
        self.0.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// The layers, by base address: for `info mtree`.
    pub fn layers(&self) -> Vec<Layer> {
        let mut layers = self.0.layers.lock().clone();
        layers.sort_by_key(|layer| (layer.base, -layer.priority));
        layers
    }

    /// Rises with every change of the layout: whoever caches what [`GuestMemory::find`] said must then forget it.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// What answers at a physical address; `None` when no memory does.
    pub fn find(&self, address: u64) -> Option<Place> {
        self.0.flat.load().find(address)
    }

    /// Copies out of memory.
    ///
    /// # Errors
    /// At the first address where no memory answers; what came before it has been copied.
    pub fn read(&self, address: u64, mut into: &mut [u8]) -> Result<(), NotRam> {
        let mut at = address;
        while !into.is_empty() {
            let place = self.find(at).ok_or(NotRam(at))?;
            let (now, rest) = into.split_at_mut(place.len.min(into.len() as u64) as usize);
            place.read.0.read(place.read.1, now);
            at = at.wrapping_add(now.len() as u64);
            into = rest;
        }
        Ok(())
    }

    /// Copies into memory and notes the write. Writes to ROM are ignored, as hardware does.
    ///
    /// # Errors
    /// At the first address where no memory answers; what came before it has been written.
    pub fn write(&self, address: u64, mut bytes: &[u8]) -> Result<(), NotRam> {
        let mut at = address;
        while !bytes.is_empty() {
            let place = self.find(at).ok_or(NotRam(at))?;
            let (now, rest) = bytes.split_at(place.len.min(bytes.len() as u64) as usize);
            if let Some((block, offset)) = place.write {
                block.write(offset, now);
            }
            at = at.wrapping_add(now.len() as u64);
            bytes = rest;
        }
        Ok(())
    }

    /// Reads a fixed number of bytes: `u32::from_le_bytes(memory.read_array(address)?)`.
    ///
    /// # Errors
    /// Where no memory answers.
    pub fn read_array<const N: usize>(&self, address: u64) -> Result<[u8; N], NotRam> {
        let mut bytes = [0; N];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// The page state behind a physical address, for tests and tools.
    pub fn with_page<T>(&self, address: u64, look: impl FnOnce(&PageState) -> T) -> Option<T> {
        let place = self.find(address)?;
        place.read.0.page(place.read.1 / PAGE_BYTES).map(look)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Contents;

    fn layer(name: &str, priority: i32, base: u64, len: u64, contents: Contents) -> Layer {
        Layer { name: name.to_owned(), priority, base, len, contents }
    }

    #[test]
    fn higher_layers_hide_lower_ones_until_removed() {
        let memory = GuestMemory::new();
        let ram = memory.add_block("ram", 0x10000).unwrap();
        let rom = memory.add_block("rom", 0x1000).unwrap();
        rom.write(0, b"rom!");
        memory.set_layer(layer("ram", 0, 0, 0x10000, Contents::Ram(ram, 0)));
        memory.set_layer(layer("rom", 1, 0x4000, 0x1000, Contents::Rom(rom, 0)));
        memory.set_layer(layer("hole", 2, 0x8000, 0x1000, Contents::Device));
        memory.write(0x3ffe, b"abcdef").unwrap();
        assert_eq!(&memory.read_array::<6>(0x3ffe).unwrap(), b"abrom!", "the write into ROM is ignored");
        assert_eq!(memory.read_array::<4>(0x7ffe), Err(NotRam(0x8000)));
        let before = memory.generation();
        memory.remove_layer("hole");
        assert!(memory.generation() > before);
        assert!(memory.read_array::<4>(0x7ffe).is_ok());
        assert_eq!(memory.read_array::<1>(0x10000), Err(NotRam(0x10000)));
    }

    #[test]
    fn writes_flag_their_pages() {
        let memory = GuestMemory::new();
        let ram = memory.add_block("ram", 0x4000).unwrap();
        memory.set_layer(layer("ram", 0, 0, 0x4000, Contents::Ram(ram.clone(), 0)));
        memory.write(0x1fff, &[1, 2]).unwrap();
        let written: Vec<bool> = ram.pages().iter().map(|page| page.flags() & PageFlags::WRITTEN != 0).collect();
        assert_eq!(written, [false, true, true, false]);
    }

    #[test]
    fn absurd_sizes_are_refused_with_advice() {
        let error = GuestMemory::new().add_block("ram", 1 << 60).unwrap_err();
        assert!(error.to_string().contains("less memory"), "{error}");
    }
}
