//! Options as QEMU's tools take them: short ones in bundles (`-qpc`), with their value attached or behind; long ones with
//! `=` or the value behind, shortened as long as only one fits; options and file names in any order until `--`.

use crate::cli::qemu::nearest;
use crate::cli::secrets::Secrets;

use super::Failure;

/// What was given on a command line.
#[derive(Debug, Default)]
pub struct Options {
    given: Vec<(String, String)>,
    /// What is no option, in order.
    pub operands: Vec<String>,
}

/// The options that a command has: `short` as in getopt (`"f:q"`: `-f VALUE` and `-q`), `long` likewise with `=` for a value.
pub struct Known<'a> {
    /// One letter each; a colon behind those that take a value.
    pub short: &'a str,
    /// Words without dashes; an equals sign behind those that take a value.
    pub long: &'a [&'a str],
}

impl Options {
    /// Sorts `arguments` out.
    pub fn parse(arguments: &[String], known: &Known<'_>) -> Result<Self, Failure> {
        let mut options = Self::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            if argument == "--" {
                options.operands.extend(rest.by_ref().cloned());
            } else if let Some(long) = argument.strip_prefix("--") {
                let (name, attached) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (long, None),
                };
                let (name, takes_value) = known.find_long(name)?;
                let value = match (takes_value, attached) {
                    (true, Some(value)) => value,
                    (true, None) => rest.next().cloned().ok_or_else(|| needs_value(&format!("--{name}")))?,
                    (false, None) => String::new(),
                    (false, Some(_)) => return Err(Failure::usage(format!("option '--{name}' doesn't allow an argument"))),
                };
                options.given.push((name.to_owned(), value));
            } else if let Some(bundle) = argument.strip_prefix('-').filter(|bundle| !bundle.is_empty()) {
                options.take_bundle(bundle, &mut rest, known)?;
            } else {
                options.operands.push(argument.clone());
            }
        }
        Ok(options)
    }

    fn take_bundle(&mut self, bundle: &str, rest: &mut std::slice::Iter<'_, String>, known: &Known<'_>) -> Result<(), Failure> {
        for (at, letter) in bundle.char_indices() {
            match known.takes_value(letter) {
                None => return Err(Failure::usage(known.unknown(&format!("-{letter}")))),
                Some(false) => self.given.push((letter.to_string(), String::new())),
                Some(true) => {
                    let attached = &bundle[at + letter.len_utf8()..];
                    let value = match attached {
                        "" => rest.next().cloned().ok_or_else(|| needs_value(&format!("-{letter}")))?,
                        attached => attached.to_owned(),
                    };
                    self.given.push((letter.to_string(), value));
                    break;
                }
            }
        }
        Ok(())
    }

    /// Whether an option was given.
    pub fn has(&self, name: &str) -> bool {
        self.given.iter().any(|(given, _)| given == name)
    }

    /// The value of an option; the last one counts.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.given.iter().rev().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// All values of an option, in order.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.given.iter().filter(move |(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// The secrets that `--object` defines.
    pub fn secrets(&self) -> Result<Secrets, Failure> {
        Ok(Secrets::of(self.values("object"))?)
    }

    /// All options in the order in which they were given.
    pub fn in_order(&self) -> impl Iterator<Item = (&str, &str)> {
        self.given.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl Known<'_> {
    fn takes_value(&self, letter: char) -> Option<bool> {
        let at = self.short.find(letter).filter(|_| letter != ':')?;
        Some(self.short[at + letter.len_utf8()..].starts_with(':'))
    }

    fn find_long(&self, name: &str) -> Result<(&str, bool), Failure> {
        let split = |known: &'_ str| -> (usize, bool) { (known.trim_end_matches('=').len(), known.ends_with('=')) };
        let fitting: Vec<&str> = self.long.iter().copied().filter(|known| known.starts_with(name)).collect();
        let exact = fitting.iter().copied().find(|known| known.trim_end_matches('=') == name);
        match (exact, fitting.as_slice()) {
            (Some(found), _) | (None, &[found]) => {
                let (length, takes_value) = split(found);
                Ok((&found[..length], takes_value))
            }
            (None, []) => Err(Failure::usage(self.unknown(&format!("--{name}")))),
            (None, several) => {
                let several: Vec<String> = several.iter().map(|long| format!("--{}", long.trim_end_matches('='))).collect();
                Err(Failure::usage(format!("option '--{name}' is ambiguous; possibilities: {}", several.join(", "))))
            }
        }
    }

    fn unknown(&self, option: &str) -> String {
        let long: Vec<String> = self.long.iter().map(|long| format!("--{}", long.trim_end_matches('='))).collect();
        let long: Vec<&str> = long.iter().map(String::as_str).collect();
        match nearest(option, &long).filter(|_| option.starts_with("--")) {
            Some(near) => format!("unrecognized option '{option}'; did you mean '{near}'?"),
            None => format!("unrecognized option '{option}'"),
        }
    }
}

fn needs_value(option: &str) -> Failure {
    Failure::usage(format!("missing argument for option '{option}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Known<'_> = Known { short: "f:qp", long: &["output=", "image-opts", "backing-chain"] };

    fn parse(words: &str) -> Result<Options, String> {
        let words: Vec<String> = words.split_whitespace().map(String::from).collect();
        Options::parse(&words, &KNOWN).map_err(|failure| failure.message)
    }

    #[test]
    fn options_come_in_bundles_attached_shortened_and_anywhere() {
        let options = parse("a -qf raw b --out json --image-opts -fqcow2 -- -p").unwrap();
        assert_eq!(options.operands, ["a", "b", "-p"]);
        assert_eq!(options.value("f"), Some("qcow2"));
        assert_eq!(options.values("f").collect::<Vec<_>>(), ["raw", "qcow2"]);
        assert_eq!(options.value("output"), Some("json"));
        assert!(options.has("q") && options.has("image-opts") && !options.has("p"));
    }

    #[test]
    fn what_is_unknown_or_lacks_its_value_is_named_with_the_nearest() {
        assert_eq!(parse("--ouptut=json").unwrap_err(), "unrecognized option '--ouptut'; did you mean '--output'?");
        assert_eq!(parse("-x").unwrap_err(), "unrecognized option '-x'");
        assert_eq!(parse("-f").unwrap_err(), "missing argument for option '-f'");
        assert_eq!(parse("--image-opts=1").unwrap_err(), "option '--image-opts' doesn't allow an argument");
    }
}
