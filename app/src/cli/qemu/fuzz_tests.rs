//! Fuzzing QEMU's words for drives: `-drive`, `-blockdev` (dotted and JSON) and the devices that name them.
//!
//! ```text
//! IMG_FUZZ_SECONDS=600 cargo test --release -p bellglass --no-default-features -- --ignored --nocapture fuzz_drives
//! ```

use anyhow::Result;

use crate::cli::text_fuzzer::Target;

use super::drives::Drives;
use super::key_values::KeyValues;

const DRIVES: Target = Target {
    seeds: &[
        "-drive file=a,,b.img,format=raw,if=ide,index=1,snapshot=on,werror=stop,discard=ignore,aio=io_uring",
        "-drive file=b.qcow2,if=none,id=b,cache=none,l2-cache-size=4M -device ide-hd,drive=b,bus=ide.1,unit=1,bootindex=1",
        "-blockdev driver=file,node-name=f,filename=c.raw,cache.direct=on -blockdev driver=raw,node-name=d,file=f,read-only=on",
        "-blockdev {\"driver\":\"qcow2\",\"node-name\":\"n\",\"file\":{\"driver\":\"file\",\"filename\":\"d\"}} -device floppy,drive=n",
    ],
    words: WORDS,
    read: drives,
};

#[rustfmt::skip]
const WORDS: &[&str] = &[
    ",", ",,", "=", ":", " ", "\"", "{", "}", "[", "]", ".", " -drive ", " -blockdev ", " -device ", "file", "file=",
    "filename=", "file.filename=", "file.driver=", "driver=", "node-name=", "id=", "drive=", "if=", "none", "ide",
    "floppy", "index=", "bus=", "unit=", "ide.1", "floppy-bus.0", "media=cdrom", "format=", "qcow2", "raw", "luks",
    "vmdk", "cache=", "directsync", "cache.direct=", "cache.no-flush=", "cache.writeback=", "snapshot=", "readonly=",
    "read-only=", "discard=", "unmap", "detect-zeroes=", "aio=", "io_uring", "l2-cache-size=", "cache-size=",
    "rerror=", "werror=", "enospc", "write-cache=", "bootindex=", "on", "off", "throttling.", "copy-on-read=", "4M",
    "-1", "9", "1e400", "18446744073709551616", "\0", "é", "ide-hd", "ide-cd",
];

/// Reads a command line: options with a value each. What is no option is taken for `-device`.
fn drives(text: &str) -> String {
    let mut answer = String::new();
    let mut drives = Drives::default();
    let words: Vec<&str> = text.split(' ').collect();
    for pair in words.chunks(2) {
        let value = pair.get(1).copied().unwrap_or_default();
        let result = match pair[0] {
            "-drive" => drives.drive_option(value),
            "-blockdev" => drives.blockdev_option(value),
            _ => device(&mut drives, value),
        };
        answer += &result.err().map_or(String::new(), |error| format!("{error:#} "));
    }
    match drives.place(text.len().is_multiple_of(2), text.len().is_multiple_of(3)) {
        Ok((drives, notes)) => answer + &format!("{} drives {}", drives.len(), notes.join(" ")),
        Err(error) => answer + &format!("{error:#}"),
    }
}

fn device(drives: &mut Drives, value: &str) -> Result<()> {
    let mut values = KeyValues::parse("-device", value, "driver")?;
    drives.device_option(values.need("driver")?, values);
    Ok(())
}

#[test]
fn no_drive_makes_a_panic_in_a_short_fuzz() {
    DRIVES.fuzz_shortly();
}

#[test]
#[ignore = "runs for minutes"]
fn fuzz_drives() {
    DRIVES.fuzz_long();
}
