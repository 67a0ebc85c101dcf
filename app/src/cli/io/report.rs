//! How much was done and how fast, in QEMU's words.

use std::time::Duration;

/// What a command moved.
pub struct Moved {
    /// `read`, `wrote` or `discard`.
    pub verb: &'static str,
    /// Where it began.
    pub offset: u64,
    /// Bytes asked for.
    pub asked: u64,
    /// Bytes done.
    pub done: u64,
    /// Requests.
    pub requests: u64,
    /// How long it took.
    pub took: Duration,
}

impl Moved {
    /// Two lines for people, or one of figures (`-C`).
    pub fn print(&self, as_figures: bool) {
        let seconds = self.took.as_secs_f64().max(1e-9);
        let bytes_per_second = self.done as f64 / seconds;
        let requests_per_second = self.requests as f64 / seconds;
        let Self { verb, offset, asked, done, requests, .. } = self;
        if as_figures {
            println!("{done},{requests},{},{bytes_per_second:.3},{requests_per_second:.3}", long_time(self.took));
            return;
        }
        println!("{verb} {done}/{asked} bytes at offset {offset}");
        let (amount, speed) = (size(*done as f64), size(bytes_per_second));
        println!("{amount}, {requests} ops; {} ({speed}/sec and {requests_per_second:.4} ops/sec)", short_time(self.took));
    }
}

/// Bytes in the largest unit that fits, with three decimals unless they are zeros.
pub fn size(bytes: f64) -> String {
    const UNITS: [(&str, u32); 6] = [("EiB", 60), ("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, power) in UNITS {
        let scaled = bytes / (1_u64 << power) as f64;
        if scaled >= 1.0 {
            return format!("{} {unit}", trimmed(&format!("{scaled:.3}")));
        }
    }
    format!("{} bytes", trimmed(&format!("{bytes:.6}")))
}

/// Without a fraction of zeros.
fn trimmed(number: &str) -> &str {
    match number.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|digit| digit == b'0') => whole,
        _ => number,
    }
}

fn short_time(took: Duration) -> String {
    match took.as_secs() {
        0..60 => format!("{:05.2} sec", took.as_secs_f64()),
        _ => long_time(took),
    }
}

fn long_time(took: Duration) -> String {
    let seconds = took.as_secs();
    format!("{}:{:02}:{:02}.{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60, took.subsec_millis() / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_decimals_or_none() {
        for (bytes, text) in [
            (64.0, "64 bytes"),
            (65_536.0, "64 KiB"),
            (274_944.0, "268.500 KiB"),
            (58_612_215.0, "55.897 MiB"),
            (42.450741, "42.450741 bytes"),
            (0.0, "0 bytes"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(short_time(Duration::from_millis(20)), "00.02 sec");
        assert_eq!(long_time(Duration::from_millis(3_723_450)), "1:02:03.45");
    }
}
