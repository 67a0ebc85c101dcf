//! Sizes as people and scripts write them, and as QEMU's tools print them.

/// A number of bytes: decimal or `0x…`, with a unit letter (`k` 1,024 … `E`), and a fraction where a unit follows.
/// `None` for anything else, and for what does not fit 63 bits.
pub fn parse_size(text: &str) -> Option<u64> {
    parse_with(text, 1)
}

/// The same, in units of `unit` where no letter says otherwise.
pub fn parse_with(text: &str, unit: u64) -> Option<u64> {
    let limit = i64::MAX as u64;
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(digits, 16).ok().filter(|size| *size <= limit);
    }
    let (number, factor) = match text.chars().last()?.to_ascii_uppercase() {
        'B' => (&text[..text.len() - 1], 1),
        letter => match "KMGTPE".find(letter) {
            Some(power) => (&text[..text.len() - 1], 1_u64 << (10 * (power + 1))),
            None => (text, unit),
        },
    };
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let size = match number.split_once('.') {
        None => number.parse::<u64>().ok()?.checked_mul(factor)?,
        // A fraction of a byte makes no sense.
        Some(_) if factor == 1 => return None,
        Some((whole, fraction)) => {
            let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
            let fraction: f64 = format!("0.{fraction}").parse().ok()?;
            whole.checked_mul(factor)?.checked_add((fraction * factor as f64).round() as u64)?
        }
    };
    (size <= limit).then_some(size)
}

/// A number of bytes with three significant digits and its unit: `196 KiB`, `1.27 MiB`, `0 B`.
pub fn short_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut power = 0;
    // From 1,000 of a unit on the next one is used, so that there are never four digits.
    while power + 1 < UNITS.len() && bytes as f64 / (1_u64 << (10 * power)) as f64 >= 1000.0 {
        power += 1;
    }
    format!("{} {}B", three_digits(bytes as f64 / (1_u64 << (10 * power)) as f64), UNITS[power])
}

/// As C's `%.3g` for numbers from 0 to below 1,000.
fn three_digits(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let before_point = (value.log10().floor() as i32 + 1).max(-3);
    let decimals = (3 - before_point).clamp(0, 6) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_fractions_and_nothing_else() {
        for (text, size) in [
            ("512", Some(512)),
            ("1k", Some(1024)),
            ("1.5G", Some(3 << 29)),
            ("0x1f", Some(31)),
            ("4b", Some(4)),
            ("7E", Some(7 << 60)),
            ("8E", None),
            ("1Q", None),
            ("", None),
            ("-1", None),
            ("k", None),
            ("1.5", None),
            ("1e3", None),
        ] {
            assert_eq!(parse_size(text), size, "{text}");
        }
        assert_eq!(parse_with("3", 512), Some(1536));
    }

    #[test]
    fn sizes_are_printed_as_qemu_prints_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (200_704, "196 KiB"),
            (1_327_104, "1.27 MiB"),
            (67_108_864, "64 MiB"),
            (1 << 40, "1 TiB"),
            (10 << 30, "10 GiB"),
        ] {
            assert_eq!(short_size(bytes), text);
        }
    }
}
