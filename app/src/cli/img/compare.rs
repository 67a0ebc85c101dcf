//! `compare`: whether two images hold the same. Zeros that are not stored are equal to zeros that are.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use engine_disk::DiskImage;

use super::Failure;
use super::chain::{is_zero, layered_at};
use super::copy::usual_workers;
use super::create::told_unless_quiet;
use super::options::{Known, Options};
use super::progress::Progress;
use super::source::{How, Source};

pub const SYNOPSIS: &str =
    "[--object secret,id=…] [--image-opts] [-f fmt] [-F fmt] [-T src_cache] [-p] [-q] [-s] [-U] filename1 filename2";

const DIFFERENT: u8 = 1;
/// Opening or reading failed, so nothing can be said.
const FAILED: u8 = 2;
/// Bytes that a worker compares at a time.
const STRETCH: u64 = 2 << 20;
const SECTOR: usize = 512;

pub fn run(arguments: &[String]) -> Result<u8, Failure> {
    run_inner(arguments).map_err(|failure| failure.with_status(FAILED))
}

fn run_inner(arguments: &[String]) -> Result<u8, Failure> {
    let known = Known { short: "f:F:T:pqsU", long: &["object=", "image-opts", "force-share"] };
    let options = Options::parse(arguments, &known)?;
    let [first, second] = options.operands.as_slice() else { return Err(Failure::usage("Expecting two image file names")) };
    let how = How::reading().cached_by(options.value("T").unwrap_or("writeback"))?.asked_by(&options)?;
    let image_opts = options.has("image-opts");
    let first = Source::named(first, options.value("f"), image_opts)?.open(&how)?;
    let second = Source::named(second, options.value("F"), image_opts)?.open(&how)?;
    let is_strict = options.has("s");
    if is_strict && first.len() != second.len() {
        told_unless_quiet(&options, "Strict mode: Image size mismatch!")?;
        return Ok(DIFFERENT);
    }
    let total = first.len().max(second.len());
    let progress = Progress::start(options.has("p") && !options.has("q"), total);
    let comparison = Comparison {
        images: [first, second],
        total,
        is_strict,
        next: AtomicU64::new(0),
        mismatch: AtomicU64::new(u64::MAX),
        status_mismatch: AtomicU64::new(u64::MAX),
        failure: Mutex::new(None),
        progress: &progress,
    };
    comparison.run()?;
    progress.finish();
    let (content, status) = (comparison.mismatch.load(Ordering::Acquire), comparison.status_mismatch.load(Ordering::Acquire));
    if status < content {
        told_unless_quiet(&options, &format!("Strict mode: Offset {status} block status mismatch!"))?;
        return Ok(DIFFERENT);
    }
    if content != u64::MAX {
        told_unless_quiet(&options, &format!("Content mismatch at offset {content}!"))?;
        return Ok(DIFFERENT);
    }
    if comparison.images[0].len() != comparison.images[1].len() {
        told_unless_quiet(&options, "Warning: Image size mismatch!")?;
    }
    told_unless_quiet(&options, "Images are identical.")?;
    Ok(0)
}

struct Comparison<'a> {
    images: [Arc<dyn DiskImage>; 2],
    total: u64,
    is_strict: bool,
    next: AtomicU64,
    /// The first differing sector found so far.
    mismatch: AtomicU64,
    /// The first place found so far that only one image stores.
    status_mismatch: AtomicU64,
    failure: Mutex<Option<Failure>>,
    progress: &'a Progress,
}

impl Comparison<'_> {
    fn run(&self) -> Result<(), Failure> {
        std::thread::scope(|scope| {
            for _ in 0..usual_workers() {
                scope.spawn(|| {
                    if let Err(failure) = self.labour() {
                        self.next.store(self.total, Ordering::Release);
                        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
                    }
                });
            }
        });
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }

    fn labour(&self) -> Result<(), Failure> {
        let mut buffers = [vec![0; STRETCH as usize], vec![0; STRETCH as usize]];
        loop {
            let start = self.next.fetch_add(STRETCH, Ordering::AcqRel);
            // Nothing behind a mismatch that is known already can matter.
            let known = self.mismatch.load(Ordering::Acquire).min(self.status_mismatch.load(Ordering::Acquire));
            if start >= self.total || start > known {
                return Ok(());
            }
            let end = self.total.min(start.saturating_add(STRETCH));
            let mut at = start;
            while at < end {
                at += self.compare_at(at, end - at, &mut buffers)?;
            }
            self.progress.add(end - start);
        }
    }

    /// Compares from `at` on as far as both images are each of one kind; returns how far that was.
    fn compare_at(&self, at: u64, limit: u64, buffers: &mut [Vec<u8>; 2]) -> Result<u64, Failure> {
        let mut length = limit;
        let mut zero = [true; 2];
        let mut present = [true; 2];
        for (number, image) in self.images.iter().enumerate() {
            if at >= image.len() {
                continue;
            }
            let layered = layered_at(image, at, length.min(image.len() - at))?;
            length = layered.length;
            (zero[number], present[number]) = (layered.zero, layered.present);
        }
        if self.is_strict && present[0] != present[1] {
            self.status_mismatch.fetch_min(at, Ordering::AcqRel);
            return Ok(length);
        }
        let [first, second] = buffers;
        let (first, second) = (&mut first[..length as usize], &mut second[..length as usize]);
        let differs_at = match zero {
            [true, true] => return Ok(length),
            [false, true] => {
                self.images[0].read_at(at, first)?;
                first.chunks(SECTOR).position(|sector| !is_zero(sector))
            }
            [true, false] => {
                self.images[1].read_at(at, second)?;
                second.chunks(SECTOR).position(|sector| !is_zero(sector))
            }
            [false, false] => {
                self.images[0].read_at(at, first)?;
                self.images[1].read_at(at, second)?;
                let differ = || first.chunks(SECTOR).zip(second.chunks(SECTOR)).position(|(one, other)| one != other);
                if first == second { None } else { differ() }
            }
        };
        if let Some(sector) = differs_at {
            self.mismatch.fetch_min(at + (sector * SECTOR) as u64, Ordering::AcqRel);
        }
        Ok(length)
    }
}
