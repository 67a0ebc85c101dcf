//! A block: one stretch of host memory (RAM, video memory, a ROM image) with its page states.

use crate::{PAGE_BYTES, PageState};
use std::sync::Arc;
use vm_memory::{MmapRegion, VolatileMemory};

/// One stretch of host memory; clones share it.
#[derive(Clone)]
pub struct Block(Arc<Inner>);

struct Inner {
    name: &'static str,
    region: MmapRegion,
    pages: Vec<PageState>,
}

impl Block {
    /// `bytes` (rounded up to pages) of zeroes. The host commits memory when it is first touched.
    pub(crate) fn new(name: &'static str, bytes: u64) -> Result<Self, String> {
        let bytes = usize::try_from(bytes.next_multiple_of(PAGE_BYTES)).map_err(|error| error.to_string())?;
        let region = MmapRegion::new(bytes).map_err(|error| error.to_string())?;
        let pages = bytemuck::zeroed_vec(bytes / PAGE_BYTES as usize);
        Ok(Self(Arc::new(Inner { name, region, pages })))
    }

    /// Its name, as in `info mtree`.
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// Its size in bytes, a multiple of 4096.
    pub fn len(&self) -> u64 {
        self.0.region.size() as u64
    }

    /// Whether it has no bytes: never, but clippy asks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The state of page number `page`; `None` past the end.
    pub fn page(&self, page: u64) -> Option<&PageState> {
        self.0.pages.get(usize::try_from(page).ok()?)
    }

    /// All page states in order.
    pub fn pages(&self) -> &[PageState] {
        &self.0.pages
    }

    /// The host address of byte `offset` (for CPU backends and KVM); it stays valid as long as a clone of the block lives.
    ///
    /// # Panics
    /// When `offset` is past the end.
    pub fn host_address(&self, offset: u64) -> *mut u8 {
        assert!(offset < self.len());
        // `wrapping_add` because the arithmetic is in bounds by the assertion and needs no unsafe.
        self.0.region.as_ptr().wrapping_add(offset as usize)
    }

    /// Copies out. Bytes past the end are left as they were in `into`.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        let len = self.len().saturating_sub(offset).min(into.len() as u64) as usize;
        if let Ok(slice) = self.0.region.get_slice(offset as usize, len) {
            slice.copy_to(&mut into[..len]);
        }
    }

    /// Copies in and notes the write on every page touched. Bytes past the end are dropped.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let len = self.len().saturating_sub(offset).min(bytes.len() as u64);
        if len == 0 {
            return;
        }
        if let Ok(slice) = self.0.region.get_slice(offset as usize, len as usize) {
            slice.copy_from(&bytes[..len as usize]);
        }
        self.note_write(offset, len);
    }

    /// Bytes `offset..offset + len` have just been written by other means.
    pub fn note_write(&self, offset: u64, len: u64) {
        let mut at = offset;
        let end = offset.saturating_add(len).min(self.len());
        while at < end {
            let page_end = (at / PAGE_BYTES + 1) * PAGE_BYTES;
            let stop = page_end.min(end);
            if let Some(page) = self.page(at / PAGE_BYTES) {
                page.note_write(at % PAGE_BYTES, stop - at);
            }
            at = stop;
        }
    }

    /// Whether a host address lies in it.
    pub fn holds(&self, host: *const u8) -> bool {
        (host.addr().wrapping_sub(self.host_address(0).addr()) as u64) < self.len()
    }

    /// Whether both are the same memory.
    pub fn is(&self, other: &Block) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Block({}, {} KiB)", self.name(), self.len() / 1024)
    }
}
