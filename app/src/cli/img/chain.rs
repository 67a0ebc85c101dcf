//! An image seen through to the bottom: which file of the chain decides what is read at a place.

use std::sync::Arc;

use engine_disk::{DiskError, DiskImage, ExtentKind};

/// A stretch that comes from one file of a chain and is all of one kind.
#[derive(Clone, Debug)]
pub struct Layered {
    /// How many bytes; never 0 inside the disk.
    pub length: u64,
    /// How many files lie above the one that decides.
    pub depth: usize,
    /// Whether any file decides: if not, it is zeros because nobody ever wrote there.
    pub present: bool,
    /// Whether it is known to be zeros.
    pub zero: bool,
    /// Where the bytes lie in that file, if they lie there as they are.
    pub host_offset: Option<u64>,
    /// Whether they are stored compressed.
    pub compressed: bool,
}

/// What is at `offset` of `image` and all that it is built on; at most `limit` bytes are looked at.
pub fn layered_at(image: &Arc<dyn DiskImage>, offset: u64, limit: u64) -> Result<Layered, DiskError> {
    layered_above(image, None, offset, limit)
}

/// The same, but only files less than `depth_limit` deep are looked at (1: the image alone).
pub fn layered_above(
    image: &Arc<dyn DiskImage>,
    depth_limit: Option<usize>,
    offset: u64,
    limit: u64,
) -> Result<Layered, DiskError> {
    let mut layer = Arc::clone(image);
    let mut length = limit;
    let mut depth = 0;
    loop {
        if offset >= layer.len() {
            // A base that ends before the disk on it: zeros, which that base decides.
            return Ok(Layered {
                length,
                depth,
                present: depth_limit.is_none(),
                zero: true,
                host_offset: None,
                compressed: false,
            });
        }
        let extent = layer.extent_at(offset)?;
        length = length.min(extent.length);
        let next = layer.backing().filter(|_| depth_limit.is_none_or(|limit| depth + 1 < limit));
        match next {
            Some(next) if !extent.present => {
                layer = next;
                depth += 1;
            }
            _ => {
                let zero = extent.kind == ExtentKind::Zero || (!extent.present && depth_limit.is_none());
                return Ok(Layered {
                    length,
                    depth,
                    present: extent.present,
                    zero,
                    host_offset: extent.host_offset,
                    compressed: extent.compressed,
                });
            }
        }
    }
}

/// The files of a chain, the image itself first.
pub fn layers(image: &Arc<dyn DiskImage>) -> Vec<Arc<dyn DiskImage>> {
    let mut layers = vec![Arc::clone(image)];
    while let Some(next) = layers.last().and_then(|last| last.backing()) {
        layers.push(next);
    }
    layers
}

/// Whether all bytes are zero. Comparing a block with itself one byte on is as fast as memory is.
pub fn is_zero(block: &[u8]) -> bool {
    match block {
        [] => true,
        [first, rest @ ..] => *first == 0 && rest == &block[..rest.len()],
    }
}
