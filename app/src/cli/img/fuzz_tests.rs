//! Fuzzing what stands on the image tool's command lines: option strings, image names, `json:` names, sizes.
//!
//! ```text
//! IMG_FUZZ_SECONDS=600 cargo test --release -p bellglass --no-default-features -- --ignored --nocapture fuzz_options     (or fuzz_names)
//! ```

use engine_disk::Format;

use crate::cli::secrets::Secrets;
use crate::cli::text_fuzzer::Target;

use super::format_options::{NewFile, preallocation};
use super::options::{Known, Options};
use super::source::{How, Source, formats, key_values, snapshot_parameter};
use super::units::{parse_size, parse_with};

#[rustfmt::skip]
const WORDS: &[&str] = &[
    ",", ",,", "=", ":", "\"", "{", "}", "[", "]", "json:", "file:", "nbd:", "driver", "file", "filename",
    "file.driver", "file.filename", "read-only", "key-secret", "encrypt.format", "encrypt.key-secret", "qcow2", "raw",
    "luks", "vmdk", "on", "off", "true", "null", "size", "cluster_size", "compat", "1.1", "0.10", "v2",
    "backing_file", "backing_fmt", "lazy_refcounts", "refcount_bits", "preallocation", "falloc", "subformat", "fixed",
    "compression_type", "zstd", "static", "help", "?", "64k", "1T", "8E", "-1", "0x10", "18446744073709551616",
    "1e400", "snapshot.id=", "snapshot.name=", "\0", "é", "-o",
];

const OPTIONS: Target = Target {
    seeds: &["size=1G,cluster_size=64k", "compat=1.1,lazy_refcounts=on", "subformat=fixed", "backing_file=a,,b"],
    words: WORDS,
    read: options,
};

const NAMES: Target = Target {
    seeds: &[
        "driver=qcow2,file.driver=file,file.filename=a,,b.img",
        "{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"a\"}}",
        "file:a.img",
        "a,b.img",
    ],
    words: WORDS,
    read: names,
};

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

#[test]
fn no_command_line_makes_a_panic_in_a_short_fuzz() {
    assert!(formats().all(|format| format != Format::Iso));
    OPTIONS.fuzz_shortly();
    NAMES.fuzz_shortly();
}

#[test]
#[ignore = "runs for minutes"]
fn fuzz_options() {
    OPTIONS.fuzz_long();
}

#[test]
#[ignore = "runs for minutes"]
fn fuzz_names() {
    NAMES.fuzz_long();
}
