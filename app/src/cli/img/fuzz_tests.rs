//! Fuzzing what stands on command lines: option strings, image names, `json:` names, sizes.
//!
//! ```text
//! IMG_FUZZ_SECONDS=600 cargo test --release -p bellglass --no-default-features -- --ignored --nocapture fuzz_options     (or fuzz_names)
//! ```
//!
//! Texts are put together from words that mean something, then changed letter by letter. Texts whose answer (the words of
//! the failure) was not seen before are kept and changed further.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use engine_disk::Format;

use crate::cli::secrets::Secrets;

use super::format_options::{NewFile, preallocation};
use super::options::{Known, Options};
use super::source::{How, Source, formats, key_values, snapshot_parameter};
use super::units::{parse_size, parse_with};

/// One text may not take longer.
const MOST_TIME: Duration = Duration::from_secs(2);
const MOST_KEPT: usize = 4000;
const LONGEST: usize = 4096;

const WORDS: [&str; 60] = [
    ",",
    ",,",
    "=",
    ":",
    "\"",
    "{",
    "}",
    "[",
    "]",
    "json:",
    "file:",
    "nbd:",
    "driver",
    "file",
    "filename",
    "file.driver",
    "file.filename",
    "read-only",
    "key-secret",
    "encrypt.format",
    "encrypt.key-secret",
    "qcow2",
    "raw",
    "luks",
    "vmdk",
    "on",
    "off",
    "true",
    "null",
    "size",
    "cluster_size",
    "compat",
    "1.1",
    "0.10",
    "v2",
    "backing_file",
    "backing_fmt",
    "lazy_refcounts",
    "refcount_bits",
    "preallocation",
    "falloc",
    "subformat",
    "fixed",
    "compression_type",
    "zstd",
    "static",
    "help",
    "?",
    "64k",
    "1T",
    "8E",
    "-1",
    "0x10",
    "18446744073709551616",
    "1e400",
    "snapshot.id=",
    "snapshot.name=",
    "\0",
    "é",
    "-o",
];

fn next(random: &mut u64) -> usize {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    (*random >> 11) as usize
}

fn changed(text: &str, random: &mut u64) -> String {
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
            _ => drop(letters.splice(at..at, WORDS[next(random) % WORDS.len()].chars())),
        }
    }
    letters.truncate(LONGEST);
    letters.into_iter().collect()
}

/// What a text was answered: the words of all failures, without figures and names.
fn options(text: &str) -> String {
    let mut answer = String::new();
    let mut note = |result: Result<(), super::Failure>| answer += &result.err().map_or(String::new(), |f| f.message);
    for format in formats() {
        let mut file = NewFile::new(format);
        note(file.take(text, "x"));
        note(file.finished(file.size.unwrap_or(512), &Secrets::default()).map(drop));
    }
    for pair in key_values(text) {
        parse_size(&pair.1);
        parse_with(&pair.1, 1);
        preallocation(&pair.1);
    }
    note(snapshot_parameter(text).map(drop));
    let words: Vec<String> = text.split(' ').map(String::from).collect();
    note(Options::parse(&words, &Known { short: "f:o:qp", long: &["object=", "image-opts", "output="] }).map(drop));
    answer
}

fn names(text: &str) -> String {
    let mut answer = String::new();
    for (name, format, image_opts) in
        [(text.to_owned(), None, false), (text.to_owned(), None, true), (format!("json:{text}"), Some("raw"), false)]
    {
        match Source::named(&name, format, image_opts) {
            // A name may be one of a file that is there, so nothing is opened; nobody has secrets here.
            Ok(source) => {
                answer += &source.key_secret.map_or(String::new(), |id| format!("{:?}", How::reading().secrets.get(&id).err()))
            }
            Err(failure) => answer += &failure.message,
        }
    }
    answer
}

fn fuzz(seeds: &[&str], work: fn(&str) -> String, is_done: impl Fn(Duration, u64) -> bool) {
    let mut random = std::env::var("IMG_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0x5eed_u64);
    let mut kept: Vec<String> = seeds.iter().map(|seed| (*seed).to_owned()).collect();
    let (mut answers, mut texts, begun) = (HashSet::new(), 0, Instant::now());
    while !is_done(begun.elapsed(), texts) {
        let text = changed(&kept[next(&mut random) % kept.len()], &mut random);
        let started = Instant::now();
        let answer = std::panic::catch_unwind(|| work(&text)).unwrap_or_else(|_| panic!("{text:?} panics"));
        assert!(started.elapsed() < MOST_TIME, "{text:?} takes {:?}", started.elapsed());
        texts += 1;
        // Only words of ours tell answers apart; what the text itself said comes back between quotes.
        let answer: String =
            answer.split('\'').step_by(2).flat_map(str::chars).filter(|letter| !letter.is_ascii_digit()).collect();
        if answers.insert(answer) && kept.len() < MOST_KEPT {
            kept.push(text);
        }
    }
    println!("{texts} texts in {:.0?}, {} different answers", begun.elapsed(), answers.len());
    assert!(answers.len() > 5, "only {} different answers: the fuzzer does not get anywhere", answers.len());
}

const OPTIONS: [&str; 4] = ["size=1G,cluster_size=64k", "compat=1.1,lazy_refcounts=on", "subformat=fixed", "backing_file=a,,b"];
const NAMES: [&str; 4] = [
    "driver=qcow2,file.driver=file,file.filename=a,,b.img",
    "{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"a\"}}",
    "file:a.img",
    "a,b.img",
];

/// As long as `IMG_FUZZ_SECONDS` says, or ten minutes.
fn long(seeds: &[&str], work: fn(&str) -> String) {
    let seconds = std::env::var("IMG_FUZZ_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(600);
    fuzz(seeds, work, |elapsed, _| elapsed >= Duration::from_secs(seconds));
}

#[test]
fn no_command_line_makes_a_panic_in_a_short_fuzz() {
    assert!(formats().all(|format| format != Format::Iso));
    fuzz(&OPTIONS, options, |_, texts| texts >= 3000);
    fuzz(&NAMES, names, |_, texts| texts >= 3000);
}

#[test]
#[ignore = "runs for minutes"]
fn fuzz_options() {
    long(&OPTIONS, options);
}

#[test]
#[ignore = "runs for minutes"]
fn fuzz_names() {
    long(&NAMES, names);
}
