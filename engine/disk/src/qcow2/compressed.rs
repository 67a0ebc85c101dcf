//! Packing and unpacking clusters. What is unpacked is always exactly one cluster, so no input can make it grow; the input is
//! at most two clusters, which bounds the time too.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};

use super::header::Compression;

/// A zstd frame may ask for a window of this size (as a power of two), four times our largest cluster.
const ZSTD_MAX_WINDOW_LOG: u32 = 23;

/// Why a cluster could not be unpacked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CannotUnpack;

/// Fills `output` from `input`; what follows in the input is ignored.
pub(super) fn unpack(compression: Compression, input: &[u8], output: &mut [u8]) -> Result<(), CannotUnpack> {
    match compression {
        Compression::Deflate => {
            let mut inflate = Decompress::new(false);
            let status = inflate.decompress(input, output, FlushDecompress::Finish);
            let filled = inflate.total_out() == output.len() as u64;
            match status {
                // "Out of room" is the usual end: the stream's own end mark need not have been reached.
                Ok(Status::Ok | Status::BufError | Status::StreamEnd) if filled => Ok(()),
                _ => Err(CannotUnpack),
            }
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(|_| CannotUnpack)?.single_frame();
            decoder.window_log_max(ZSTD_MAX_WINDOW_LOG).map_err(|_| CannotUnpack)?;
            decoder.read_exact(output).map_err(|_| CannotUnpack)
        }
    }
}

/// Readers of such files know no window beyond 4 KiB.
const DEFLATE_WINDOW_LOG: u8 = 12;

/// Packs a cluster; `None` if that would not make it smaller.
pub(super) fn pack(compression: Compression, input: &[u8]) -> Option<Vec<u8>> {
    thread_local! {
        static DEFLATE: RefCell<Compress> =
            RefCell::new(Compress::new_with_window_bits(flate2::Compression::default(), false, DEFLATE_WINDOW_LOG));
        static ZSTD: RefCell<Option<zstd::bulk::Compressor<'static>>> = RefCell::new(zstd::bulk::Compressor::new(0).ok());
    }
    // Room for whatever comes out: a deflate stream that was cut short for want of room leaves its packer in a state from
    // which a reset does not bring it back, and after some hundreds of those it panics.
    let mut output = vec![0; input.len() + input.len() / 8 + 64];
    let length = match compression {
        Compression::Deflate => DEFLATE.with_borrow_mut(|deflate| {
            deflate.reset();
            let status = deflate.compress(input, &mut output, FlushCompress::Finish);
            (matches!(status, Ok(Status::StreamEnd))).then(|| deflate.total_out() as usize)
        }),
        Compression::Zstd => ZSTD.with_borrow_mut(|zstd| zstd.as_mut()?.compress_to_buffer(input, &mut output[..]).ok()),
    }?;
    output.truncate(length);
    // One byte of gain is the least, so a piece never fills its cluster.
    (length < input.len()).then_some(output)
}

/// The clusters unpacked last. Guests read a cluster in many small pieces; unpacking it each time would be slow.
pub(super) struct UnpackedCache {
    recent: Mutex<VecDeque<(u64, Arc<[u8]>)>>,
    capacity: usize,
}

/// Bytes of unpacked clusters that are kept.
const CACHE_BYTES: u64 = 4 << 20;

impl UnpackedCache {
    pub(super) fn new(cluster_size: u64) -> Self {
        Self { recent: Mutex::default(), capacity: (CACHE_BYTES / cluster_size).clamp(2, 256) as usize }
    }

    /// The unpacked content of the cluster that begins at a host position.
    pub(super) fn get(&self, start: u64) -> Option<Arc<[u8]>> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().find(|(known, _)| *known == start).map(|(_, content)| Arc::clone(content))
    }

    /// Keeps only the clusters whose host position is wanted.
    pub(super) fn retain(&self, is_wanted: impl Fn(u64) -> bool) {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).retain(|(start, _)| is_wanted(*start));
    }

    pub(super) fn put(&self, start: u64, content: Arc<[u8]>) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= self.capacity {
            recent.pop_front();
        }
        recent.push_back((start, content));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn deflated(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn both_kinds_unpack_and_ignore_what_follows() {
        let content: Vec<u8> = (0..65536_u32).map(|n| (n / 7) as u8).collect();
        let packed =
            [(Compression::Deflate, deflated(&content)), (Compression::Zstd, zstd::encode_all(&content[..], 3).unwrap())];
        for (kind, mut packed) in packed {
            packed.extend([0xee; 300]);
            let mut output = vec![0; content.len()];
            assert_eq!(unpack(kind, &packed, &mut output), Ok(()));
            assert!(output == content);
        }
    }

    #[test]
    fn noise_is_not_packed_however_often_it_is_tried_and_what_can_be_packed_still_is() {
        let mut random = 77;
        for kind in [Compression::Deflate, Compression::Zstd] {
            for size in [512, 4096, 65536] {
                for _ in 0..(1 << 19) / size + 4 {
                    let noise: Vec<u8> = (0..size).map(|_| crate::sim_file::next(&mut random) as u8).collect();
                    assert_eq!(pack(kind, &noise), None, "{kind:?}");
                }
                let plain: Vec<u8> = (0..size as u32).map(|n| (n / 60) as u8).collect();
                let packed = pack(kind, &plain).unwrap();
                let mut output = vec![0; size];
                assert_eq!(unpack(kind, &packed, &mut output), Ok(()));
                assert!(output == plain && packed.len() < size, "{kind:?}, {size}");
            }
        }
    }

    #[test]
    fn garbage_short_streams_and_greedy_frames_are_refused() {
        let mut output = vec![0; 65536];
        let empty_blocks = [0, 0, 0, 0xff, 0xff].repeat(20_000);
        let mut greedy = zstd::encode_all(&[1; 65536][..], 3).unwrap();
        // Frame header descriptor 0: no single segment, so a window byte follows; 0xa8 asks for 2 GiB.
        greedy.splice(4..6, [0, 0xa8]);
        let cases: [(Compression, &[u8]); 6] = [
            (Compression::Deflate, &[0xff; 1000]),
            (Compression::Deflate, &deflated(&[5; 1000])),
            (Compression::Deflate, &empty_blocks),
            (Compression::Zstd, &[0xff; 1000]),
            (Compression::Zstd, &zstd::encode_all(&[5; 1000][..], 3).unwrap()),
            (Compression::Zstd, &greedy),
        ];
        for (index, (kind, input)) in cases.into_iter().enumerate() {
            assert_eq!(unpack(kind, input, &mut output), Err(CannotUnpack), "case {index}");
        }
    }
}
