//! QEMU's `key=value,key=value` arguments. A doubled comma is a comma; a word without `=` is the first key's value, or a
//! switch (`server` is `server=on`, `nowait` is `wait=off`).

use anyhow::{Result, anyhow, bail};
use std::collections::BTreeMap;

/// A parsed argument; each value is taken out by who understands it, and what is left over is an error.
#[derive(Debug)]
pub struct KeyValues {
    option: String,
    values: BTreeMap<String, String>,
}

impl KeyValues {
    /// Parses `text`, the argument of `option`; a first word without `=` becomes the value of `implied`.
    pub fn parse(option: &str, text: &str, implied: &str) -> Result<Self> {
        let mut values = BTreeMap::new();
        for (position, word) in split_commas(text).into_iter().enumerate() {
            let (key, value) = match word.split_once('=') {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None if position == 0 && !implied.is_empty() => (implied.to_owned(), word),
                None => match word.strip_prefix("no") {
                    Some("wait") => ("wait".to_owned(), "off".to_owned()),
                    Some("delay") => ("nodelay".to_owned(), "on".to_owned()),
                    _ => (word, "on".to_owned()),
                },
            };
            if key.is_empty() {
                bail!("{option} {text}: there is a comma too many.");
            }
            values.insert(key, value);
        }
        Ok(Self { option: option.to_owned(), values })
    }

    /// Parses `text` where it is JSON: the members of objects inside it are called `outer.inner`.
    pub fn parse_json(option: &str, text: &str) -> Result<Self> {
        let value = serde_json::from_str(text).map_err(|error| anyhow!("{option}: this is not proper JSON: {error}."))?;
        let mut pairs = Vec::new();
        flatten("", &value, &mut pairs);
        Ok(Self { option: option.to_owned(), values: pairs.into_iter().collect() })
    }

    /// The first key of those that are left for which `is_meant` holds.
    pub fn find(&self, is_meant: impl Fn(&str) -> bool) -> Option<String> {
        self.values.keys().find(|key| is_meant(key)).cloned()
    }

    /// Takes a value out.
    pub fn take(&mut self, key: &str) -> Option<String> {
        self.values.remove(key)
    }

    /// Takes a value out that must be there.
    pub fn need(&mut self, key: &str) -> Result<String> {
        let option = self.option.clone();
        self.take(key).ok_or_else(|| anyhow!("{option} needs {key}=…"))
    }

    /// Takes a switch out: `on`, `off`, `yes`, `no`, `true`, `false`.
    pub fn take_switch(&mut self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.as_str() {
            "on" | "yes" | "true" => Ok(Some(true)),
            "off" | "no" | "false" => Ok(Some(false)),
            _ => bail!("{}: {key}={value} must be on or off.", self.option),
        }
    }

    /// Takes a number out.
    pub fn take_number(&mut self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let number = value.parse().map_err(|_| anyhow!("{}: {key}={value} must be a number.", self.option))?;
        Ok(Some(number))
    }

    /// Everything that is left, if all of it is known.
    pub fn only(self, known: &[&str]) -> Result<BTreeMap<String, String>> {
        match self.values.keys().find(|key| !known.contains(&key.as_str())) {
            Some(unknown) => Err(self.unknown(unknown, known)),
            None => Ok(self.values),
        }
    }

    /// Fails if something was not understood; `known` are the keys that would have been.
    pub fn finish(self, known: &[&str]) -> Result<()> {
        match self.values.keys().next() {
            Some(key) => Err(self.unknown(key, known)),
            None => Ok(()),
        }
    }

    fn unknown(&self, key: &str, known: &[&str]) -> anyhow::Error {
        match (nearest(key, known), known) {
            (Some(near), _) => anyhow!("{}: “{key}” is not known here. Did you mean “{near}”?", self.option),
            (None, []) => anyhow!("{}: “{key}” is not known here; nothing can be set.", self.option),
            (None, known) => anyhow!("{}: “{key}” is not known here. Possible are: {}.", self.option, known.join(", ")),
        }
    }
}

/// The known word that looks most like `word`, if any looks like it at all.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    // The dash that all options share makes none of them alike.
    let bare = |word: &str| word.trim_start_matches('-').to_owned();
    let likeness = |candidate: &&str| strsim::jaro_winkler(&bare(word), &bare(candidate));
    let best = known.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&best) > 0.75).then_some(best)
}

/// Nested JSON as dotted keys.
pub fn flatten(prefix: &str, value: &serde_json::Value, pairs: &mut Vec<(String, String)>) {
    match value {
        serde_json::Value::Object(members) => {
            for (key, value) in members {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&key, value, pairs);
            }
        }
        serde_json::Value::String(text) => pairs.push((prefix.to_owned(), text.clone())),
        other => pairs.push((prefix.to_owned(), other.to_string())),
    }
}

fn split_commas(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            ',' if letters.peek() == Some(&',') => {
                letters.next();
                words.last_mut().expect("there is always a word").push(',');
            }
            ',' => words.push(String::new()),
            other => words.last_mut().expect("there is always a word").push(other),
        }
    }
    words
}

/// A size: `512`, `512M`, `2G`, in units of `unit` bytes when no letter says otherwise.
pub fn size(option: &str, text: &str, unit: u64) -> Result<u64> {
    let (digits, factor) = match text.char_indices().last() {
        Some((at, letter)) if letter.is_ascii_alphabetic() => {
            let factor = match letter.to_ascii_uppercase() {
                'B' => 1,
                'K' => 1 << 10,
                'M' => 1 << 20,
                'G' => 1 << 30,
                'T' => 1 << 40,
                _ => bail!("{option} {text}: the size may end in K, M, G or T."),
            };
            (&text[..at], factor)
        }
        _ => (text, unit),
    };
    let bytes =
        digits.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0).map(|number| number * factor as f64);
    match bytes {
        Some(bytes) if bytes < (1_u64 << 60) as f64 => Ok(bytes as u64),
        _ => bail!("{option} {text}: this is not a possible size."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubled_commas_are_commas_and_switches_are_on() {
        let mut values = KeyValues::parse("-drive", "file=a,,b.img,snapshot=on,readonly", "").unwrap();
        assert_eq!(values.take("file").as_deref(), Some("a,b.img"));
        assert_eq!(values.take_switch("snapshot").unwrap(), Some(true));
        assert_eq!(values.take_switch("readonly").unwrap(), Some(true));
        values.finish(&[]).unwrap();
    }

    #[test]
    fn leftovers_name_the_nearest_key() {
        let error = KeyValues::parse("-drive", "fiel=x", "").unwrap().finish(&["file", "format"]).unwrap_err();
        assert!(error.to_string().contains("“file”"), "{error}");
    }

    #[test]
    fn a_word_that_is_like_no_other_has_no_nearest() {
        assert_eq!(nearest("-foo", &["-boot", "-hda", "-serial"]), None);
        assert_eq!(nearest("-seral", &["-boot", "-hda", "-serial"]), Some("-serial"));
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("-m", "512", 1 << 20).unwrap(), 512 << 20);
        assert_eq!(size("-m", "1.5G", 1 << 20).unwrap(), 3 << 29);
        assert!(size("-m", "10Q", 1 << 20).is_err());
        assert!(size("-m", "-5", 1 << 20).is_err());
    }
}
