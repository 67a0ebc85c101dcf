//! A file in memory that records every change, and plays what a crash or a failing host could leave behind.
//!
//! Only in tests. A crash may lose any of the writes since the last flush, in any combination, may tear a write at
//! any 512-byte boundary, and may keep or lose a change of size apart from the data. [`CrashImages`] makes such
//! images; [`Fault`] makes the n-th operation fail.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::block_file::{Access, BlockFile, FileIdentity};

/// A recorded change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Data written at an offset.
    Write(u64, Vec<u8>),
    /// A range turned into zeros: offset, length.
    PunchHole(u64, u64),
    /// The size set.
    Truncate(u64),
    /// Everything before this became durable.
    Flush,
}

/// When and how operations fail.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The first operation to fail, counted from 0 (reads count too).
    pub at: u64,
    /// Whether all later ones fail as well.
    pub persists: bool,
    /// The host's error number.
    pub errno: i32,
}

#[derive(Debug, Default)]
struct State {
    content: Vec<u8>,
    log: Option<Vec<Operation>>,
    /// What has changed since [`SimFile::reset_to`], if that is to be undone.
    touched: Option<Vec<Range<usize>>>,
    operations: u64,
    fault: Option<Fault>,
}

/// The file.
#[derive(Debug)]
pub struct SimFile {
    state: Mutex<State>,
    path: PathBuf,
}

impl SimFile {
    /// A file with some content; nothing is recorded yet.
    pub fn new(content: Vec<u8>) -> Self {
        let state = State { content, ..State::default() };
        Self { state: Mutex::new(state), path: PathBuf::from("/simulated/disk") }
    }

    /// The same under another name, beside which a disk may look for others.
    pub fn named(self, path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..self }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Becomes a file with this content, of which nothing is recorded yet; what is done to it can be undone.
    fn reset_to(&self, content: &[u8]) {
        let mut state = self.state();
        let mut place = std::mem::take(&mut state.content);
        place.clear();
        place.extend_from_slice(content);
        *state = State { content: place, touched: Some(Vec::new()), ..State::default() };
    }

    /// Undoes all that was done since it was reset to `content`, and does these operations instead.
    fn replay<'a>(&self, content: &[u8], operations: impl IntoIterator<Item = &'a Operation>) {
        let state = &mut *self.state();
        let touched = state.touched.take().unwrap_or_default();
        let mut place = std::mem::take(&mut state.content);
        place.resize(content.len(), 0);
        for range in touched {
            let range = range.start.min(content.len())..range.end.min(content.len());
            place[range.clone()].copy_from_slice(&content[range]);
        }
        *state = State { content: place, touched: Some(Vec::new()), ..State::default() };
        operations.into_iter().for_each(|operation| state.apply(operation));
    }

    /// The content as a program sees it.
    pub fn content(&self) -> Vec<u8> {
        self.state().content.clone()
    }

    /// Looks at the content where it is.
    pub fn look<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(&self.state().content)
    }

    /// Begins to record, and returns the content at this moment.
    pub fn start_recording(&self) -> Vec<u8> {
        let mut state = self.state();
        state.log = Some(Vec::new());
        state.content.clone()
    }

    /// How many changes were recorded.
    pub fn recorded(&self) -> usize {
        self.state().log.as_ref().map_or(0, Vec::len)
    }

    /// The recorded changes.
    pub fn log(&self) -> Vec<Operation> {
        self.state().log.clone().unwrap_or_default()
    }

    /// How many operations there have been, reads included.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Plans a failure, counted from now on.
    pub fn fail(&self, fault: Option<Fault>) {
        let mut state = self.state();
        state.operations = 0;
        state.fault = fault;
    }
}

impl State {
    /// Counts an operation; fails if the plan says so.
    fn begin(&mut self) -> io::Result<()> {
        let number = self.operations;
        self.operations += 1;
        match self.fault {
            Some(fault) if number == fault.at || (fault.persists && number > fault.at) => {
                Err(io::Error::from_raw_os_error(fault.errno))
            }
            _ => Ok(()),
        }
    }

    fn apply(&mut self, operation: &Operation) {
        let before = self.content.len();
        apply(&mut self.content, operation);
        if let Some(touched) = &mut self.touched {
            touched.push(match operation {
                Operation::Write(offset, data) => *offset as usize..*offset as usize + data.len(),
                Operation::PunchHole(offset, length) => *offset as usize..(*offset + *length) as usize,
                Operation::Truncate(size) => *size as usize..before.max(*size as usize),
                Operation::Flush => return,
            });
        }
    }

    fn record(&mut self, operation: Operation) {
        self.apply(&operation);
        if let Some(log) = &mut self.log {
            log.push(operation);
        }
    }
}

/// Does to an image what the operation did to the file.
fn apply(image: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Write(offset, data) => {
            let end = *offset as usize + data.len();
            if image.len() < end {
                image.resize(end, 0);
            }
            image[*offset as usize..end].copy_from_slice(data);
        }
        Operation::PunchHole(offset, length) => {
            let start = image.len().min(*offset as usize);
            let end = image.len().min((*offset + *length) as usize);
            image[start..end].fill(0);
        }
        Operation::Truncate(size) => image.resize(*size as usize, 0),
        Operation::Flush => {}
    }
}

impl BlockFile for SimFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state();
        state.begin()?;
        let start = state.content.len().min(offset as usize);
        let count = buffer.len().min(state.content.len() - start);
        buffer[..count].copy_from_slice(&state.content[start..start + count]);
        Ok(count)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        if let Err(error) = state.begin() {
            // A failed write may have done a part of its work.
            let done = data.len() / 2 / 512 * 512;
            if done > 0 {
                state.record(Operation::Write(offset, data[..done].to_vec()));
            }
            return Err(error);
        }
        state.record(Operation::Write(offset, data.to_vec()));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state();
        state.begin()?;
        state.record(Operation::Flush);
        Ok(())
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut state = self.state();
        state.begin()?;
        state.record(Operation::PunchHole(offset, length));
        Ok(())
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut state = self.state();
        state.begin()?;
        let size = state.content.len() as u64;
        if offset + length > size {
            state.record(Operation::Truncate(offset + length));
        }
        Ok(())
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        let mut state = self.state();
        state.begin()?;
        state.record(Operation::Truncate(size));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state().content.len() as u64)
    }

    fn lock(&self, _access: Access) -> io::Result<()> {
        Ok(())
    }

    fn identity(&self) -> Option<FileIdentity> {
        None
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// Images that crashes could have left behind.
#[derive(Clone, Copy, Debug, Default)]
pub struct CrashImages {
    /// Seed of all that is random.
    pub seed: u64,
    /// Pairs of lost writes tried after each flush.
    pub pairs: usize,
    /// Random sets of lost writes tried after each flush.
    pub random_sets: usize,
    /// Up to so many writes between two flushes, every set of lost writes is tried instead, also together with each
    /// write torn at each of its sectors; at some of them, if it has more than 16.
    pub all_sets_up_to: usize,
    /// Crashes before so many operations had been started are left out.
    pub since: usize,
}

impl CrashImages {
    /// Calls `visit` with each image and the number of operations that had been started when the crash came.
    pub fn visit(self, base: &[u8], log: &[Operation], mut visit: impl FnMut(usize, &[u8])) {
        let file = SimFile::new(Vec::new());
        self.visit_on(&file, base, log, |crashed_at| file.look(|image| visit(crashed_at, image)));
    }

    /// The same, with each image on a file that the visitor may work with. One file serves for all, and changes are undone
    /// again, because images are many, and making a copy of each costs more than what is done to it.
    pub fn visit_on(self, file: &SimFile, base: &[u8], log: &[Operation], mut visit: impl FnMut(usize)) {
        let mut random = self.seed | 1;
        let mut durable = base.to_vec();
        let mut started = 0;
        for writes in log.split(|operation| *operation == Operation::Flush) {
            file.reset_to(&durable);
            if started + writes.len() >= self.since {
                Epoch { durable: &durable, writes, started, file, visit: &mut visit }.visit(self, &mut random);
            }
            writes.iter().for_each(|operation| apply(&mut durable, operation));
            started += writes.len() + 1;
        }
        file.reset_to(&durable);
        visit(log.len());
    }
}

/// What was done between two flushes, on what was durable before.
struct Epoch<'a> {
    durable: &'a [u8],
    writes: &'a [Operation],
    /// How many operations had been started before.
    started: usize,
    file: &'a SimFile,
    visit: &'a mut dyn FnMut(usize),
}

impl Epoch<'_> {
    fn visit(&mut self, crashes: CrashImages, random: &mut u64) {
        let count = self.writes.len();
        // Cut off between any two writes, in the order in which they were made.
        for index in crashes.since.saturating_sub(self.started)..count {
            self.file.replay(self.durable, &self.writes[..index]);
            (self.visit)(self.started + index);
        }
        let is_lost_in = |set: u32| move |index: usize| set >> index & 1 == 1;
        let has_every_set = count <= crashes.all_sets_up_to;
        if has_every_set {
            // Nothing lost and the first few kept have been visited already.
            (1_u32..1 << count).for_each(|lost| self.visit_without(is_lost_in(lost)));
            self.visit_every_tear();
        } else {
            (0..count).for_each(|lost| self.visit_without(|index| index == lost));
            let pairs = (0..count).flat_map(|first| (first + 1..count).map(move |second| (first, second)));
            for (first, second) in pairs.take(crashes.pairs) {
                self.visit_without(|index| index == first || index == second);
            }
            for _ in 0..if count > 2 { crashes.random_sets } else { 0 } {
                let salt = next(random);
                self.visit_without(|index| mix(salt ^ index as u64) & 1 == 0);
            }
            self.visit_some_tears(random);
        }
        // The size grew but the data did not come, and the other way round.
        self.file.replay(self.durable, self.writes);
        let new_size = self.file.look(<[u8]>::len);
        if new_size > self.durable.len() {
            let [old_size, new_size] = [self.durable.len(), new_size].map(|size| Operation::Truncate(size as u64));
            self.visit_image(self.writes.iter().chain([&old_size]));
            self.visit_image([&new_size]);
        }
    }

    /// Visits the image that these operations make of what was durable.
    fn visit_image<'b>(&mut self, operations: impl IntoIterator<Item = &'b Operation>) {
        self.file.replay(self.durable, operations);
        (self.visit)(self.started + self.writes.len());
    }

    fn visit_without(&mut self, is_lost: impl Fn(usize) -> bool) {
        let kept = self.writes.iter().enumerate().filter(|(index, _)| !is_lost(*index));
        self.visit_image(kept.map(|(_, write)| write));
    }

    /// Each write torn at its sectors, together with every set of the others.
    fn visit_every_tear(&mut self) {
        for (index, operation) in self.writes.iter().enumerate() {
            let Operation::Write(offset, data) = operation else { continue };
            for part in tears(data.len() / 512).into_iter().flat_map(|sectors| torn(*offset, data, sectors)) {
                for lost in (0_u32..1 << self.writes.len()).filter(|lost| lost >> index & 1 == 0) {
                    let kept = self.writes.iter().enumerate().filter(|(other, _)| lost >> other & 1 == 0);
                    self.visit_image(kept.map(|(other, write)| if other == index { &part } else { write }));
                }
            }
        }
    }

    /// Each write torn at one of its sectors, with or without those after it.
    fn visit_some_tears(&mut self, random: &mut u64) {
        for (index, operation) in self.writes.iter().enumerate() {
            let Operation::Write(offset, data) = operation else { continue };
            let sectors = data.len() / 512;
            if sectors < 2 {
                continue;
            }
            for part in &torn(*offset, data, 1 + next(random) as usize % (sectors - 1)) {
                let with_later = next(random) & 1 == 0;
                let kept = self.writes.iter().enumerate().take(if with_later { self.writes.len() } else { index + 1 });
                self.visit_image(kept.map(|(other, write)| if other == index { part } else { write }));
            }
        }
    }
}

/// The places at which a write of so many sectors is torn: behind how many of them.
fn tears(sectors: usize) -> Vec<usize> {
    match sectors {
        0..=16 => (1..sectors).collect(),
        _ => vec![1, 2, sectors / 4, sectors / 2, sectors / 4 * 3, sectors - 2, sectors - 1],
    }
}

/// The two parts of a write that was torn behind so many of its sectors.
fn torn(offset: u64, data: &[u8], sectors: usize) -> [Operation; 2] {
    let (front, back) = data.split_at(sectors * 512);
    [Operation::Write(offset, front.to_vec()), Operation::Write(offset + front.len() as u64, back.to_vec())]
}

/// The next number of a small random sequence (xorshift).
pub(crate) fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    mix(*state)
}

fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 31).wrapping_mul(0x7fb5_d329_728e_a185);
    value ^ value >> 27
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn flushed_writes_are_in_every_later_image_and_unflushed_ones_in_some() {
        let file = SimFile::new(vec![0; 2048]);
        let base = file.start_recording();
        file.write_at(0, &[1; 512]).unwrap();
        file.flush().unwrap();
        file.write_at(512, &[2; 1024]).unwrap();
        file.write_at(2048, &[3; 512]).unwrap();
        let mut seen = HashSet::new();
        let crashes = CrashImages { seed: 7, pairs: 200, random_sets: 4, ..CrashImages::default() };
        crashes.visit(&base, &file.log(), |started, image| {
            assert!(started < 2 || image[0] == 1);
            seen.insert((image[0], image[512], image[1024], image.get(2048).copied()));
        });
        // Nothing, only the first, the second torn either way, the third without the second, all …
        for expected in
            [(0, 0, 0, None), (1, 0, 0, None), (1, 2, 0, None), (1, 0, 0, Some(3)), (1, 2, 2, Some(3)), (1, 0, 0, Some(0))]
        {
            assert!(seen.contains(&expected), "{expected:?} is missing from {seen:?}");
        }
    }

    #[test]
    fn the_planned_operation_fails_and_the_next_does_not() {
        let file = SimFile::new(vec![0; 2048]);
        file.fail(Some(Fault { at: 1, persists: false, errno: 28 }));
        file.write_at(0, &[1; 512]).unwrap();
        assert_eq!(file.write_at(0, &[2; 2048]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        file.write_at(1536, &[3; 512]).unwrap();
        let content = file.content();
        assert_eq!((content[0], content[1024], content[1536]), (2, 0, 3), "the failed write did half of its work");
    }
}
