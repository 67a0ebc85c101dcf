//! Which host code was made from which guest code: remembered for a profile, and told to `perf` through the file that it looks
//! for. Both cost memory or disk with every block, so neither is kept unless somebody asked.

use super::sampler::Place;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

/// Most pieces of code that are remembered.
const MOST: usize = 1 << 20;

/// What somebody wants to know of the translator while it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WatchOptions {
    /// Remember which guest code is hot, for [`engine_cpu::CpuBackend::profile`].
    pub profile: bool,
    /// Write `/tmp/perf-PID.map`, by which `perf` names host code.
    pub perf_map: bool,
}

/// A piece of host code.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    /// [`Place::Tier1`] or [`Place::Tier2`].
    pub tier: Place,
    /// The number of the memory that it lies in, as told to the sampler, and the distance from that memory's start.
    pub space: u32,
    pub offset: u32,
    /// Where the host executes it, while that memory is in use.
    pub address: u64,
    pub host: Box<[u8]>,
    /// The guest's address (offset in CS) for which it was made; it may be used at others too.
    pub rip: u64,
    /// Width of the guest's code: 16, 32, 64.
    pub bits: u32,
    /// Code of CPL 3.
    pub user: bool,
    pub guest: Box<[u8]>,
}

/// The pieces made so far.
pub(crate) struct CodeLog {
    pieces: Option<Mutex<Vec<Placed>>>,
    map: Option<Mutex<File>>,
}

impl CodeLog {
    /// A log that keeps what is asked for. A perf map that cannot be written is done without.
    pub fn new(options: WatchOptions) -> Self {
        let map = options.perf_map.then(|| create_map().inspect_err(|error| tracing::warn!("no map for perf: {error}")).ok());
        Self { pieces: options.profile.then(Mutex::default), map: map.flatten().map(Mutex::new) }
    }

    /// Whether anybody wants to know.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.pieces.is_some() || self.map.is_some()
    }

    /// A piece of code has been made.
    pub fn add(&self, piece: Placed) {
        if let Some(map) = &self.map {
            let tier = if piece.tier == Place::Tier2 { 2 } else { 1 };
            let who = if piece.user { "user" } else { "kernel" };
            let line =
                format!("{:x} {:x} guest{}_{who}_{:x}_tier{tier}\n", piece.address, piece.host.len(), piece.bits, piece.rip);
            // A full disk costs names in somebody's perf report.
            lock(map).write_all(line.as_bytes()).ok();
        }
        if let Some(pieces) = &self.pieces {
            let mut pieces = lock(pieces);
            if pieces.len() < MOST {
                pieces.push(piece);
            }
        }
    }

    /// The remembered pieces, by tier, space and offset. `None`: nobody asked for them.
    pub fn pieces(&self) -> Option<Vec<Placed>> {
        let mut pieces = lock(self.pieces.as_ref()?).clone();
        pieces.sort_by_key(|piece| (piece.tier as u8, piece.space, piece.offset));
        Some(pieces)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// The name is perf's and known to everybody: what is there may be somebody's trap, and is never followed.
fn create_map() -> io::Result<File> {
    let path = PathBuf::from(format!("/tmp/perf-{}.map", std::process::id()));
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::create_new(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: u32) -> Placed {
        Placed {
            tier: Place::Tier1,
            space: 1,
            offset,
            address: 0x7000_0000 + u64::from(offset),
            host: [0xc3].into(),
            rip: 0xffff_8000_0000_0000,
            bits: 64,
            user: false,
            guest: [0x90].into(),
        }
    }

    #[test]
    fn pieces_come_back_in_order() {
        let log = CodeLog::new(WatchOptions { profile: true, perf_map: false });
        assert!(log.is_on());
        for offset in [64, 16, 32] {
            log.add(piece(offset));
        }
        let offsets: Vec<u32> = log.pieces().unwrap().iter().map(|piece| piece.offset).collect();
        assert_eq!(offsets, [16, 32, 64]);
        assert!(!CodeLog::new(WatchOptions::default()).is_on());
    }

    #[test]
    fn perf_finds_its_map() {
        let log = CodeLog::new(WatchOptions { profile: false, perf_map: true });
        log.add(piece(16));
        let path = format!("/tmp/perf-{}.map", std::process::id());
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(text, "70000010 1 guest64_kernel_ffff800000000000_tier1\n");
    }
}
