//! Fuzzing what people and scripts write on command lines. Texts are put together from words that mean something, then
//! changed letter by letter. Texts whose answer (the words of the failure) was not seen before are kept and changed further.

use std::collections::HashSet;
use std::time::{Duration, Instant};

/// One text may not take longer.
const MOST_TIME: Duration = Duration::from_secs(2);
const MOST_KEPT: usize = 4000;
const LONGEST: usize = 4096;
/// So many texts are enough for the ordinary tests.
const FEW: u64 = 3000;

/// A reader of texts under fire.
pub struct Target {
    /// Texts to begin with.
    pub seeds: &'static [&'static str],
    /// What is put into them.
    pub words: &'static [&'static str],
    /// Reads a text; returns what it was answered.
    pub read: fn(&str) -> String,
}

impl Target {
    /// A few texts.
    pub fn fuzz_shortly(&self) {
        self.fuzz(|_, texts| texts >= FEW);
    }

    /// As long as `IMG_FUZZ_SECONDS` says, or ten minutes.
    pub fn fuzz_long(&self) {
        let seconds = std::env::var("IMG_FUZZ_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(600);
        self.fuzz(|elapsed, _| elapsed >= Duration::from_secs(seconds));
    }

    fn fuzz(&self, is_done: impl Fn(Duration, u64) -> bool) {
        let mut random = std::env::var("IMG_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0x5eed_u64);
        let mut kept: Vec<String> = self.seeds.iter().map(|seed| (*seed).to_owned()).collect();
        let (mut answers, mut texts, begun) = (HashSet::new(), 0, Instant::now());
        while !is_done(begun.elapsed(), texts) {
            let text = self.changed(&kept[next(&mut random) % kept.len()], &mut random);
            let started = Instant::now();
            let answer = std::panic::catch_unwind(|| (self.read)(&text)).unwrap_or_else(|_| panic!("{text:?} panics"));
            assert!(started.elapsed() < MOST_TIME, "{text:?} takes {:?}", started.elapsed());
            texts += 1;
            if kept.len() < MOST_KEPT && answers.insert(own_words(&answer, &text)) {
                kept.push(text);
            }
        }
        println!("{texts} texts in {:.0?}, {} different answers", begun.elapsed(), answers.len());
        assert!(answers.len() > 5, "only {} different answers: the fuzzer does not get anywhere", answers.len());
    }

    fn changed(&self, text: &str, random: &mut u64) -> String {
        let mut letters: Vec<char> = text.chars().collect();
        for _ in 0..1 + next(random) % 4 {
            let at = next(random) % (letters.len() + 1);
            match next(random) % 6 {
                0 if !letters.is_empty() => {
                    let from = at.min(letters.len() - 1);
                    let to = (from + 1 + next(random) % 4).min(letters.len());
                    letters.drain(from..to);
                }
                1 if at < letters.len() => letters[at] = char::from_u32(next(random) as u32 % 0x3000).unwrap_or('x'),
                2 if at < letters.len() => {
                    let to = (at + next(random) % 64).min(letters.len());
                    let copied = letters[at..to].to_vec();
                    letters.splice(at..at, copied);
                }
                _ => drop(letters.splice(at..at, self.words[next(random) % self.words.len()].chars())),
            }
        }
        letters.truncate(LONGEST);
        letters.into_iter().collect()
    }
}

/// The words of an answer that are ours: what the text itself said comes back between quotes or as it stands.
fn own_words(answer: &str, text: &str) -> String {
    let unquoted = answer.split('\'').step_by(2).collect::<String>();
    let words =
        unquoted.split([' ', ',', '=', ':']).filter(|word| !word.contains(|c: char| c.is_ascii_digit()) && !text.contains(word));
    words.collect()
}

fn next(random: &mut u64) -> usize {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    (*random >> 11) as usize
}
