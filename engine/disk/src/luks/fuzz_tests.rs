//! Fuzzing LUKS: headers damaged with an eye for their fields, in a file of their own and inside qcow2.
//!
//! ```text
//! DISK_FUZZ_SECONDS=600 cargo test --release -p engine_disk -- --ignored --nocapture fuzz_luks
//! ```
//!
//! Each input is opened, unlocked, read and written. A header may ask for rounds that take seconds, within a bound that
//! the parser keeps; so that a fuzzer gets anywhere, most inputs ask for few.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::header::{AT_DIGEST_ROUNDS, AT_SLOTS, HEADER_LENGTH, SLOT_LENGTH, SLOTS, create_with_rounds};
use super::*;
use crate::open::Chain;
use crate::sim_file::{SimFile, next};

const WORD: &[u8] = b"secret";
const FEW_ROUNDS: u32 = 1000;
const SIZE: u64 = 256 << 10;
/// What one input may cost.
const MOST_TIME: Duration = Duration::from_secs(2);

/// A sound image, and where in it the header of its encryption begins.
pub(super) fn seed(format: Format) -> (Vec<u8>, usize) {
    let header = create_with_rounds(&Passphrase::new(WORD.into()), FEW_ROUNDS).unwrap();
    let file = Arc::new(SimFile::new(Vec::new()));
    if format == Format::Luks {
        file.write_at(0, &header).unwrap();
        file.truncate(header.len() as u64 + SIZE).unwrap();
        return (file.content(), 0);
    }
    let passphrase = Some(Passphrase::new(WORD.into()));
    let options = CreateOptions { passphrase, ..CreateOptions::new(format, SIZE) };
    format.driver().create.unwrap()(&*file, &options).unwrap();
    // The same place, with a header that is cheaper to try.
    let mut content = file.content();
    let place = content.windows(6).position(|bytes| bytes == header::MAGIC).unwrap();
    content[place..place + header.len()].copy_from_slice(&header);
    (content, place)
}

fn be32(content: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(content[at..at + 4].try_into().unwrap())
}

fn changed(content: &mut [u8], place: usize, random: &mut u64) {
    let mut roll = |sides: u64| (next(random) >> 16) % sides;
    for _ in 0..1 + roll(3) {
        let at = match roll(8) {
            0 => roll(128) as usize,
            1 => place + roll(4096) as usize,
            _ => place + roll(HEADER_LENGTH as u64) as usize,
        };
        let width = [1, 2, 4, 4][roll(4) as usize];
        let value = match roll(4) {
            0 => [0, 1, 2, 7, 8, 0xff, 512, 4000, 0xdead, 0x00ac_71f3, u32::MAX][roll(11) as usize],
            1 => 1 << roll(32),
            2 => roll(1 << 32) as u32,
            _ => be32(content, at / 4 * 4) ^ 1 << roll(32),
        };
        let at = at / width * width;
        content[at..at + width].copy_from_slice(&value.to_be_bytes()[4 - width..]);
    }
    let rounds = (0..SLOTS).map(|slot| AT_SLOTS + slot * SLOT_LENGTH + 4).chain([AT_DIGEST_ROUNDS]);
    for at in rounds.map(|at| place + at) {
        if be32(content, at) > 8 * FEW_ROUNDS && roll(64) != 0 {
            content[at..at + 4].copy_from_slice(&FEW_ROUNDS.to_be_bytes());
        }
    }
}

/// Does everything with an image; returns what was answered, without figures.
fn work(format: Format, content: &[u8]) -> String {
    let mut answers = String::new();
    let file = Arc::new(SimFile::new(content.to_vec()));
    let passphrase = Passphrase::new(WORD.into());
    // Whoever tries a passphrase agrees to wait; a file alone must not make anybody wait.
    let header = LuksHeader::read(&FencedFile::new(Arc::clone(&file) as _), 0, content.len() as u64);
    let is_cheap = header.is_ok_and(|header| header.rounds() <= u64::from(64 * FEW_ROUNDS)) || format == Format::Qcow2;
    for (access, passphrase) in [(Access::ReadOnly, None), (Access::ReadWrite, Some(&passphrase).filter(|_| is_cheap))] {
        let chain = Chain::default();
        let opened = (format.driver().open)(Opening { passphrase, ..Opening::of(Arc::clone(&file) as _, access, &chain) });
        let used = opened.and_then(|disk| {
            disk.info();
            let mut buffer = vec![0; 3000.min(disk.len()) as usize];
            disk.read_at(0, &mut buffer)?;
            disk.write_at(disk.len().min(700), &[1; 1000][..(disk.len().saturating_sub(700)).min(1000) as usize])?;
            disk.flush()
        });
        answers += &used.err().map_or(String::new(), |error| error.to_string());
    }
    answers.retain(|letter| !letter.is_ascii_digit());
    answers
}

/// So many damaged images.
pub(crate) fn hostile_files(count: usize) -> impl Iterator<Item = (Format, Vec<u8>)> {
    let seeds = [Format::Luks, Format::Qcow2].map(|format| (format, seed(format)));
    let mut random = 0x10c5;
    (0..count).map(move |number| {
        let (format, (sound, place)) = &seeds[number % seeds.len()];
        let mut content = sound.clone();
        changed(&mut content, *place, &mut random);
        (*format, content)
    })
}

fn fuzz(is_done: impl Fn(Duration, u64) -> bool) {
    let mut random = std::env::var("DISK_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0x10c5_u64);
    let seeds = [Format::Luks, Format::Qcow2].map(|format| (format, seed(format)));
    for (format, (content, _)) in &seeds {
        assert!(!work(*format, content).contains("not unlock"), "the sound image cannot be unlocked");
    }
    let (mut answers, mut inputs, begun) = (HashSet::new(), 0, Instant::now());
    while !is_done(begun.elapsed(), inputs) {
        let (format, (sound, place)) = &seeds[(next(&mut random) >> 16) as usize % seeds.len()];
        let mut content = sound.clone();
        let before = random;
        changed(&mut content, *place, &mut random);
        let started = Instant::now();
        let answer = std::panic::catch_unwind(AssertUnwindSafe(|| work(*format, &content)));
        let answer = answer.unwrap_or_else(|_| panic!("{format}: input {inputs} panics; DISK_SEED={before}"));
        let is_slow = started.elapsed() > MOST_TIME && !answer.contains("not unlock");
        assert!(!is_slow, "{format}: input {inputs} takes {:?}; DISK_SEED={before}", started.elapsed());
        inputs += 1;
        answers.insert(answer);
    }
    println!("luks: {inputs} inputs in {:.0?}, {} different answers", begun.elapsed(), answers.len());
    assert!(answers.len() > 10, "only {} different answers: the fuzzer does not get anywhere", answers.len());
}

#[test]
fn no_header_makes_a_panic_in_a_short_fuzz() {
    fuzz(|_, inputs| inputs >= 300);
}

#[test]
#[ignore = "runs for minutes"]
fn fuzz_luks() {
    let seconds = std::env::var("DISK_FUZZ_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(600);
    fuzz(|elapsed, _| elapsed >= Duration::from_secs(seconds));
}
