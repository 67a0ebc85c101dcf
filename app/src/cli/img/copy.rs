//! The engine of everything that moves content from images into an image: `convert`, `dd`.
//!
//! ```text
//!  cursor (skips what need not be copied) ─► worker: read, find zeros ─► turn ─► write     as many workers as asked for
//! ```
//!
//! Workers claim stretches one after the other, read and pack them side by side, and write in the order of the disk
//! unless any order will do: a file that is written in order is read fast later. What is known to be zeros is neither
//! read nor, where the target is zeros already, written.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use engine_disk::{DiskError, DiskImage};

use super::Failure;
use super::chain::{Layered, is_zero, layered_above};
use super::progress::Progress;

/// Bytes that a worker takes at a time.
const STRETCH: u64 = 2 << 20;
/// Zeros are written in steps of this, so that progress shows and others get their turn.
const ZERO_STRETCH: u64 = 1 << 30;
const SECTOR: usize = 512;

/// The content of one or more images, one behind the other, from some position on.
pub struct Content {
    images: Vec<Arc<dyn DiskImage>>,
    skip: u64,
    /// Whether only the files themselves count, not what they are built on.
    own_only: bool,
}

impl Content {
    /// All bytes of `images`.
    pub fn of(images: Vec<Arc<dyn DiskImage>>) -> Self {
        Self { images, skip: 0, own_only: false }
    }

    /// The bytes from `skip` on.
    pub fn from(self, skip: u64) -> Self {
        Self { skip, ..self }
    }

    /// What the images hold themselves, for a copy that will be built on the same base.
    pub fn without_bases(self) -> Self {
        Self { own_only: true, ..self }
    }

    /// How many bytes there are.
    pub fn len(&self) -> u64 {
        self.images.iter().map(|image| image.len()).sum::<u64>().saturating_sub(self.skip)
    }

    /// The image that holds `offset`, the position in it, and the bytes it has from there on.
    fn locate(&self, offset: u64) -> Option<(&Arc<dyn DiskImage>, u64, u64)> {
        let mut at = offset + self.skip;
        for image in &self.images {
            if at < image.len() {
                return Some((image, at, image.len() - at));
            }
            at -= image.len();
        }
        None
    }

    fn stretch_at(&self, offset: u64, limit: u64) -> Result<Layered, DiskError> {
        match self.locate(offset) {
            None => Ok(Layered { length: limit, depth: 0, present: true, zero: true, host_offset: None, compressed: false }),
            Some((image, at, room)) => layered_above(image, self.own_only.then_some(1), at, limit.min(room)),
        }
    }

    /// Reads; what lies past the end is zeros.
    fn read_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> Result<(), DiskError> {
        while !buffer.is_empty() {
            let Some((image, at, room)) = self.locate(offset) else {
                buffer.fill(0);
                break;
            };
            let length = room.min(buffer.len() as u64);
            let (now, later) = buffer.split_at_mut(length as usize);
            image.read_at(at, now)?;
            offset += length;
            buffer = later;
        }
        Ok(())
    }
}

/// What to copy, and how.
pub struct Copy<'a> {
    /// From where.
    pub content: &'a Content,
    /// To where; as many bytes as the content has, or more.
    pub target: &'a dyn DiskImage,
    /// How many bytes.
    pub length: u64,
    /// How zeros are found and treated.
    pub zeros: Zeros,
    /// Whether the target is zeros (or what its base holds, which is then the same) wherever nothing is written.
    pub target_is_blank: bool,
    /// The cluster size of the target, if clusters are to be stored compressed.
    pub compressed_clusters: Option<u64>,
    /// Whether stretches may be written in any order.
    pub out_of_order: bool,
    /// How many stretches are worked on at once.
    pub workers: usize,
    /// Whether what cannot be read is replaced by zeros.
    pub salvage: bool,
    /// Most bytes per second.
    pub rate_limit: Option<u64>,
}

/// How a copy treats zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// They are copied like other bytes, and the target gets all its space.
    Copied,
    /// Runs of at least this many bytes, as long as they are aligned, are left out.
    LeftOut(u64),
}

/// A stretch that a worker has taken.
struct Claim {
    number: u64,
    start: u64,
    length: u64,
    is_zero: bool,
}

struct Cursor {
    at: u64,
    claims: u64,
}

/// What the workers share.
struct Work<'a> {
    copy: &'a Copy<'a>,
    progress: &'a Progress,
    cursor: Mutex<Cursor>,
    turn: Mutex<u64>,
    next_turn: Condvar,
    failed: AtomicBool,
    begun: std::time::Instant,
    written: std::sync::atomic::AtomicU64,
}

impl Copy<'_> {
    /// Copies everything; does not flush.
    pub fn run(&self, progress: &Progress) -> Result<(), Failure> {
        let work = Work {
            copy: self,
            progress,
            cursor: Mutex::new(Cursor { at: 0, claims: 0 }),
            turn: Mutex::new(0),
            next_turn: Condvar::new(),
            failed: AtomicBool::new(false),
            begun: std::time::Instant::now(),
            written: Default::default(),
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (1..self.workers).map(|_| scope.spawn(|| work.labour())).collect();
            let mut result = work.labour();
            for worker in workers {
                let other = worker.join().unwrap_or_else(|_| Err(Failure::new("a worker ended unexpectedly")));
                result = result.and(other);
            }
            result
        })
    }
}

impl Work<'_> {
    fn labour(&self) -> Result<(), Failure> {
        let result = self.labour_on();
        if result.is_err() {
            self.failed.store(true, Ordering::Release);
            // The lock makes sure that nobody looked at the flag just before and is now falling asleep.
            drop(locked(&self.turn));
            self.next_turn.notify_all();
        }
        result
    }

    fn labour_on(&self) -> Result<(), Failure> {
        let unit = self.copy.compressed_clusters.unwrap_or(1);
        let mut buffer = vec![0; STRETCH.next_multiple_of(unit) as usize];
        while !self.failed.load(Ordering::Acquire) {
            let Some(claim) = self.claim()? else { break };
            if claim.is_zero {
                self.wait_for_turn(claim.number);
                self.copy.target.write_zeroes(claim.start, claim.length).map_err(|error| while_writing(claim.start, error))?;
                self.end_turn();
            } else {
                let buffer = &mut buffer[..claim.length as usize];
                self.read(claim.start, buffer)?;
                match self.copy.compressed_clusters {
                    Some(cluster) => {
                        self.wait_for_turn(claim.number);
                        self.write_compressed(claim.start, buffer, cluster as usize)?;
                    }
                    None => {
                        self.wait_for_turn(claim.number);
                        self.write(claim.start, buffer)?;
                    }
                }
                self.end_turn();
                self.throttle(claim.length);
            }
            self.progress.add(claim.length);
        }
        Ok(())
    }

    /// Takes the next stretch that has to be copied.
    fn claim(&self) -> Result<Option<Claim>, Failure> {
        let Copy { content, length, zeros, target_is_blank, compressed_clusters, .. } = *self.copy;
        let unit = compressed_clusters.unwrap_or(1);
        let mut cursor = locked(&self.cursor);
        while cursor.at < length {
            let start = cursor.at;
            let stretch = self.stretch_at(start, length - start)?;
            let is_hole = content.own_only && !stretch.present;
            if zeros != Zeros::Copied && (is_hole || stretch.zero) {
                // Only whole units are left out; the rest of one is copied with its other bytes.
                let whole = if start + stretch.length >= length { stretch.length } else { stretch.length / unit * unit };
                if whole > 0 && (is_hole || target_is_blank) {
                    cursor.at += whole;
                    self.progress.add(whole);
                    continue;
                }
                if whole > 0 {
                    let length = whole.min(ZERO_STRETCH);
                    cursor.at += length;
                    cursor.claims += 1;
                    return Ok(Some(Claim { number: cursor.claims - 1, start, length, is_zero: true }));
                }
            }
            let mut end = start + stretch.length.min(STRETCH).next_multiple_of(unit);
            while end < length && end - start < STRETCH {
                let next = self.stretch_at(end, length - end)?;
                if zeros != Zeros::Copied && (next.zero || content.own_only && !next.present) {
                    break;
                }
                end += next.length.min(STRETCH - (end - start)).next_multiple_of(unit);
            }
            let end = end.min(length);
            cursor.at = end;
            cursor.claims += 1;
            return Ok(Some(Claim { number: cursor.claims - 1, start, length: end - start, is_zero: false }));
        }
        Ok(None)
    }

    fn stretch_at(&self, offset: u64, limit: u64) -> Result<Layered, Failure> {
        let known = self.copy.content.stretch_at(offset, limit);
        match known {
            // Unreadable tables: each sector is tried, and replaced if need be.
            Err(_) if self.copy.salvage => {
                let length = limit.min(SECTOR as u64);
                Ok(Layered { length, depth: 0, present: true, zero: false, host_offset: None, compressed: false })
            }
            known => known.map_err(|error| while_reading(offset, error)),
        }
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Failure> {
        match self.copy.content.read_at(offset, buffer) {
            Ok(()) => Ok(()),
            Err(error) if !self.copy.salvage => Err(while_reading(offset, error)),
            Err(_) => {
                for (number, sector) in buffer.chunks_mut(SECTOR).enumerate() {
                    let at = offset + (number * SECTOR) as u64;
                    if let Err(error) = self.copy.content.read_at(at, sector) {
                        eprintln!("warning: error while reading offset {at}: {error}");
                        sector.fill(0);
                    }
                }
                Ok(())
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        let Zeros::LeftOut(granule) = self.copy.zeros else {
            return self.copy.target.write_at(offset, data).map_err(|error| while_writing(offset, error));
        };
        let mut run = 0..0;
        let mut run_is_zero = false;
        let mut at = 0;
        while at < data.len() {
            let to_boundary = (granule - (offset + at as u64) % granule) as usize;
            let end = data.len().min(at + to_boundary);
            let is_zero = is_zero(&data[at..end]);
            if is_zero != run_is_zero {
                self.write_run(offset, data, run.clone(), run_is_zero)?;
                run = at..at;
                run_is_zero = is_zero;
            }
            run.end = end;
            at = end;
        }
        self.write_run(offset, data, run, run_is_zero)
    }

    fn write_run(&self, offset: u64, data: &[u8], run: std::ops::Range<usize>, is_zero: bool) -> Result<(), Failure> {
        let at = offset + run.start as u64;
        let result = match is_zero {
            _ if run.is_empty() => Ok(()),
            true if self.copy.target_is_blank => Ok(()),
            true => self.copy.target.write_zeroes(at, run.len() as u64),
            false => self.copy.target.write_at(at, &data[run]),
        };
        result.map_err(|error| while_writing(at, error))
    }

    fn write_compressed(&self, offset: u64, data: &[u8], cluster: usize) -> Result<(), Failure> {
        for (number, cluster_data) in data.chunks(cluster).enumerate() {
            let at = offset + (number * cluster) as u64;
            let result = match self.copy.zeros != Zeros::Copied && is_zero(cluster_data) {
                true if self.copy.target_is_blank => Ok(()),
                true => self.copy.target.write_zeroes(at, cluster_data.len() as u64),
                false => self.copy.target.write_compressed(at, cluster_data),
            };
            result.map_err(|error| while_writing(at, error))?;
        }
        Ok(())
    }

    fn wait_for_turn(&self, number: u64) {
        if self.copy.out_of_order {
            return;
        }
        let mut turn = locked(&self.turn);
        while *turn != number && !self.failed.load(Ordering::Acquire) {
            turn = self.next_turn.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn end_turn(&self) {
        *locked(&self.turn) += 1;
        self.next_turn.notify_all();
    }

    /// Waits until the bytes written so far are no more than the rate allows.
    fn throttle(&self, length: u64) {
        let Some(rate) = self.copy.rate_limit else { return };
        let written = self.written.fetch_add(length, Ordering::Relaxed) + length;
        let due = std::time::Duration::from_secs_f64(written as f64 / rate as f64);
        std::thread::sleep(due.saturating_sub(self.begun.elapsed()));
    }
}

/// How many workers there are unless somebody says: one for each processor, and a second where there is only one, so
/// that reading goes on while something is written.
pub fn usual_workers() -> usize {
    std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 16))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn while_reading(offset: u64, error: DiskError) -> Failure {
    Failure::new(format!("error while reading at byte {offset}: {error}"))
}

fn while_writing(offset: u64, error: DiskError) -> Failure {
    Failure::new(format!("error while writing at byte {offset}: {error}"))
}
