//! Images as command lines name them: a file name, `file:NAME`, `json:{…}`, or with `--image-opts` a list of
//! `key=value`. Probing only where no format was given, and with QEMU's warning where the answer is "raw".

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine_disk::{Access, BackingFiles, CacheMode, DiskImage, Format, OpenOptions, ProbedRaw, Sharing, probe};

use crate::cli::qemu::{flatten, nearest};
use crate::cli::secrets::Secrets;

use super::Failure;
use super::options::Options;

/// An image that a command line names, before it is opened.
#[derive(Clone, Debug)]
pub struct Source {
    /// As it was given, for messages and output.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// The format, if one was given.
    pub format: Option<Format>,
    /// Whether it is only to be read, by its own options.
    pub read_only: bool,
    /// The secret that unlocks it, by its name.
    pub key_secret: Option<String>,
    /// The file that holds its data, in place of the one that it names.
    pub data_file: Option<PathBuf>,
}

/// How to open one.
#[derive(Clone, Debug)]
pub struct How {
    /// Reading or writing.
    pub access: Access,
    /// Whether base images are opened with it.
    pub backing_files: BackingFiles,
    /// Whether others may work on it (`-U`).
    pub sharing: Sharing,
    /// The cache mode (`-t unsafe`).
    pub cache: CacheMode,
    /// The snapshot to read (`-l`).
    pub internal_snapshot: Option<String>,
    /// The secrets that unlock encrypted images.
    pub secrets: Secrets,
}

impl How {
    /// For reading.
    pub fn reading() -> Self {
        Self {
            access: Access::ReadOnly,
            backing_files: BackingFiles::Anywhere,
            sharing: Sharing::Locked,
            cache: CacheMode::default(),
            internal_snapshot: None,
            secrets: Secrets::default(),
        }
    }

    /// For writing, where every flush counts.
    pub fn writing() -> Self {
        Self { access: Access::ReadWrite, ..Self::reading() }
    }

    /// With locks as `-U` (`--force-share`) among `options` says, and the secrets that `--object` gives.
    pub fn asked_by(self, options: &Options) -> Result<Self, Failure> {
        let unlocked = options.has("U") || options.has("force-share");
        let sharing = if unlocked { Sharing::Unlocked } else { Sharing::Locked };
        Ok(Self { sharing, secrets: options.secrets()?, ..self })
    }

    /// Without the base images.
    pub fn alone(self) -> Self {
        Self { backing_files: BackingFiles::LeftOut, ..self }
    }

    /// With the cache mode of that name (`-t`).
    pub fn cached_by(self, mode: &str) -> Result<Self, Failure> {
        let cache = CacheMode::named(mode).ok_or_else(|| Failure::new(format!("Invalid cache option: {mode}")))?;
        Ok(Self { cache, ..self })
    }
}

/// The formats that the image tool speaks. A CD image is raw to it.
pub fn formats() -> impl Iterator<Item = Format> {
    Format::all().filter(|format| *format != Format::Iso)
}

/// The format of that name. `what` begins the message when there is none.
pub fn format_by_name(name: &str, what: &str) -> Result<Format, Failure> {
    formats().find(|format| format.name() == name).ok_or_else(|| {
        let names: Vec<&str> = formats().map(Format::name).collect();
        let near = nearest(name, &names).map(|near| format!("; did you mean '{near}'?")).unwrap_or_default();
        Failure::new(format!("{what} '{name}'{near}"))
    })
}

impl Source {
    /// The image called `name`, in the format that `-f` gave, or by its options under `--image-opts`.
    pub fn named(name: &str, format: Option<&str>, image_opts: bool) -> Result<Self, Failure> {
        let could_not = |failure: Failure| failure.while_doing(format!("Could not open '{name}'"));
        let format = format.map(|format| format_by_name(format, "Unknown driver")).transpose().map_err(could_not)?;
        if image_opts {
            if format.is_some() {
                return Err(Failure::new("--image-opts and --format are mutually exclusive"));
            }
            let pairs = key_values(name);
            return Self::from_pairs(name, pairs).map_err(could_not);
        }
        if let Some(json) = name.strip_prefix("json:") {
            let value: serde_json::Value = serde_json::from_str(json)
                .map_err(|error| could_not(Failure::new(format!("this is not valid JSON ({error})"))))?;
            let mut pairs = Vec::new();
            flatten("", &value, &mut pairs);
            let source = Self::from_pairs(name, pairs).map_err(could_not)?;
            return Ok(Self { format: source.format.or(format), ..source });
        }
        let path = plain_path(name).map_err(could_not)?;
        Ok(Self { name: name.to_owned(), path, format, read_only: false, key_secret: None, data_file: None })
    }

    fn from_pairs(name: &str, pairs: Vec<(String, String)>) -> Result<Self, Failure> {
        const KNOWN: [&str; 11] = [
            "data-file.driver",
            "data-file.filename",
            "driver",
            "file",
            "file.driver",
            "file.filename",
            "filename",
            "read-only",
            "key-secret",
            "encrypt.format",
            "encrypt.key-secret",
        ];
        let mut source = Self {
            name: name.to_owned(),
            path: PathBuf::new(),
            format: None,
            read_only: false,
            key_secret: None,
            data_file: None,
        };
        let mut protocol = None;
        for (key, value) in pairs {
            match key.as_str() {
                "driver" if value == "file" => protocol = Some(value),
                "driver" => source.format = Some(format_by_name(&value, "Unknown driver")?),
                "file.driver" => protocol = Some(value),
                "filename" | "file" | "file.filename" => source.path = plain_path(&value)?,
                "key-secret" | "encrypt.key-secret" => source.key_secret = Some(value),
                "encrypt.format" if value == "luks" => {}
                "data-file.filename" | "data-file" => source.data_file = Some(plain_path(&value)?),
                "data-file.driver" if value == "file" => {}
                "read-only" => source.read_only = value == "on" || value == "true",
                // How the host reads and writes is our own business; these change nothing that is stored.
                "file.locking" | "locking" | "cache.direct" | "cache.no-flush" | "file.aio" | "discard" | "detect-zeroes" => {}
                _ => {
                    let near = nearest(&key, &KNOWN).map(|near| format!("; did you mean '{near}'?")).unwrap_or_default();
                    return Err(Failure::new(format!("the option '{key}' is not known here{near}")));
                }
            }
        }
        if let Some(protocol) = protocol.filter(|protocol| protocol != "file") {
            return Err(Failure::new(format!("Unknown protocol '{protocol}'; only files of this computer can be used")));
        }
        if source.path.as_os_str().is_empty() {
            return Err(Failure::new("A block device must be specified for \"file\""));
        }
        Ok(source)
    }

    /// The options to open it, with its format decided.
    pub fn open_options(&self, how: &How) -> Result<OpenOptions, Failure> {
        let could_not = |error: engine_disk::DiskError| Failure::new(format!("Could not open '{}': {error}", self.name));
        let access = if self.read_only { Access::ReadOnly } else { how.access };
        let (format, probed_raw) = match self.format {
            Some(format) => (format, ProbedRaw::Stated),
            None => match probe(&self.path).map_err(could_not)? {
                Some(format) if format != Format::Iso => (format, ProbedRaw::Stated),
                _ => (Format::Raw, ProbedRaw::Guarded),
            },
        };
        let is_guess = probed_raw == ProbedRaw::Guarded && access == Access::ReadWrite;
        if is_guess {
            warn_of_guess(&self.name);
        }
        Ok(OpenOptions {
            // Only without a stated format is the first sector guarded, and a file without signature is taken as raw.
            format: if is_guess { None } else { Some(format) },
            access,
            backing_files: how.backing_files,
            probed_raw,
            sharing: how.sharing,
            flushing: how.cache.flushing,
            host_cache: how.cache.host_cache,
            internal_snapshot: how.internal_snapshot.clone(),
            data_file: self.data_file.clone(),
            passphrase: self.key_secret.as_ref().map(|id| how.secrets.get(id)).transpose()?,
            ..OpenOptions::new(&self.path)
        })
    }

    /// Opens it.
    pub fn open(&self, how: &How) -> Result<Arc<dyn DiskImage>, Failure> {
        let options = self.open_options(how)?;
        engine_disk::open(&options).map_err(|error| Failure::new(format!("Could not open '{}': {error}", self.name)))
    }
}

/// QEMU's warning that guessing is dangerous.
fn warn_of_guess(name: &str) {
    eprintln!("WARNING: Image format was not specified for '{name}' and probing guessed raw.");
    eprintln!(
        "         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted."
    );
    eprintln!("         Specify the 'raw' format explicitly to remove the restrictions.");
}

/// A file name; other places (`nbd:`, `https:`) are refused by name.
pub fn plain_path(name: &str) -> Result<PathBuf, Failure> {
    if let Some(path) = name.strip_prefix("file:") {
        return Ok(path.into());
    }
    match name.split_once(':') {
        Some((protocol, _)) if !protocol.contains('/') && !Path::new(name).exists() => {
            Err(Failure::new(format!("Unknown protocol '{protocol}'; only files of this computer can be used")))
        }
        _ if name.is_empty() => Err(Failure::new("The name is empty")),
        _ => Ok(name.into()),
    }
}

/// Splits `key=value,key=value`; a doubled comma is a comma, a first word without `=` the file's name.
pub fn key_values(text: &str) -> Vec<(String, String)> {
    let mut words = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            ',' if letters.next_if_eq(&',').is_none() => words.push(String::new()),
            other => words.last_mut().expect("there is always a word").push(other),
        }
    }
    let pair = |word: String| match word.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (word, "on".to_owned()),
    };
    words.into_iter().filter(|word| !word.is_empty()).map(pair).collect()
}

/// The snapshot that `-l` names: an id or a name, or `snapshot.id=…` or `snapshot.name=…`.
pub fn snapshot_parameter(text: &str) -> Result<String, Failure> {
    if !text.starts_with("snapshot.") {
        return Ok(text.to_owned());
    }
    match key_values(text).into_iter().find(|(key, _)| key == "snapshot.id" || key == "snapshot.name") {
        Some((_, name)) => Ok(name),
        None => Err(Failure::new(format!("Failed in parsing snapshot param '{text}'"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_named_plainly_by_options_or_in_json() {
        for (name, image_opts) in [
            ("a,b.img", false),
            ("file:a,b.img", false),
            ("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"a,b.img\"}}", false),
            ("driver=qcow2,file.driver=file,file.filename=a,,b.img", true),
        ] {
            let source = Source::named(name, None, image_opts).unwrap();
            assert_eq!(source.path, Path::new("a,b.img"), "{name}");
            assert_eq!(source.format.is_some(), name.contains("driver"));
        }
    }

    #[test]
    fn other_places_unknown_options_and_formats_are_refused_by_name() {
        for (name, image_opts, expected) in [
            ("nbd:localhost:10809", false, "'nbd'"),
            ("driver=qcow2,file.filname=x", true, "did you mean 'file.filename'"),
            ("driver=qcow,file.filename=x", true, "did you mean 'qcow2'"),
            ("driver=raw,file.driver=https,file.filename=x", true, "'https'"),
            ("driver=raw", true, "must be specified"),
        ] {
            let failure = Source::named(name, None, image_opts).unwrap_err();
            assert!(failure.message.contains(expected), "{}", failure.message);
        }
    }
}
