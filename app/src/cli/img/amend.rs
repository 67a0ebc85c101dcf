//! `amend`: changes options of an image that exists: its size, its base image's name, what kind of file it is, and which
//! passphrases open it.

use std::time::Duration;

use engine_disk::{Amendment, Format, KeyChange};

use crate::cli::secrets::Secrets;

use super::Failure;
use super::format_options::{NewFile, asks_for_help, list};
use super::info::one_file;
use super::options::{Known, Options};
use super::source::{How, Source, key_values};

pub const SYNOPSIS: &str = "[--object secret,id=…] [--image-opts] [-p] [-q] [-f fmt] [-t cache] [--force] -o options filename";

/// What can be changed where it stands.
const AMENDABLE: [&str; 8] =
    ["size", "backing_file", "backing_fmt", "compat", "data_file", "data_file_raw", "lazy_refcounts", "refcount_bits"];

pub fn run(arguments: &[String]) -> Result<u8, Failure> {
    let options = Options::parse(arguments, &Known { short: "o:f:t:pq", long: &["object=", "image-opts", "force"] })?;
    if options.value("o").is_none() {
        return Err(Failure::usage("Must specify options (-o)"));
    }
    let name = one_file(&options)?;
    let source = Source::named(name, options.value("f"), options.has("image-opts"))?;
    let secrets = options.secrets()?;
    let image = source.open(&How::writing().alone().asked_by(&options)?)?;
    if options.values("o").any(asks_for_help) {
        list(image.format())?;
        return Ok(0);
    }
    let mut wanted = NewFile::new(image.format());
    let mut keys = WantedKeys::default();
    let mut given = Vec::new();
    for (key, value) in options.values("o").flat_map(key_values) {
        if !keys.take(image.format(), &key, &value)? {
            wanted.set(&key, &value, name)?;
            given.push(key);
        }
    }
    if let Some(key) = given.iter().find(|key| !AMENDABLE.contains(&key.as_str())) {
        return Err(Failure::new(format!("'{key}' cannot be changed in place; convert the image with -o {key}=… instead")));
    }
    let is_given = |key: &str| given.iter().any(|given| given == key);
    let new = &wanted.options.qcow2;
    let amendment = Amendment {
        version: is_given("compat").then_some(new.version),
        lazy_refcounts: is_given("lazy_refcounts").then_some(new.lazy_refcounts),
        refcount_bits: is_given("refcount_bits").then_some(new.refcount_bits),
        data_file: wanted.data_file.take(),
        raw_data_file: wanted.data_file_raw.take(),
    };
    if let Some(change) = keys.change(&source, &secrets)? {
        image.change_keys(&change, options.has("force"))?;
    }
    if amendment != Amendment::default() {
        image.amend(&amendment)?;
    }
    if wanted.backing.is_some() {
        image.set_backing(wanted.finished(0, &secrets)?.backing.as_ref())?;
    }
    if let Some(size) = wanted.size {
        let size = wanted.finished(size, &secrets)?.size;
        image.resize(size, wanted.options.preallocation)?;
    }
    Ok(0)
}

/// What `-o` says of the passphrases that open an encrypted image.
#[derive(Default)]
struct WantedKeys {
    /// Whether a passphrase is to be added (`active`) or erased (`inactive`).
    state: Option<String>,
    new_secret: Option<String>,
    old_secret: Option<String>,
    slot: Option<usize>,
    iter_time: Option<Duration>,
}

impl WantedKeys {
    /// Takes an option if it is about passphrases; says whether it was.
    fn take(&mut self, format: Format, key: &str, value: &str) -> Result<bool, Failure> {
        let name = match format {
            Format::Qcow2 => key.strip_prefix("encrypt."),
            Format::Luks => Some(key),
            _ => None,
        };
        let number = || value.parse().map_err(|_| Failure::new(format!("Parameter '{key}' expects a number")));
        match name {
            Some("state") if matches!(value, "active" | "inactive") => self.state = Some(value.into()),
            Some("state") => return Err(Failure::new(format!("Parameter '{key}' expects active or inactive"))),
            Some("new-secret") => self.new_secret = Some(value.into()),
            Some("old-secret") => self.old_secret = Some(value.into()),
            Some("keyslot") => self.slot = Some(number()? as usize),
            Some("iter-time") => self.iter_time = Some(Duration::from_millis(number()?)),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The change that they come to, if any.
    fn change(self, source: &Source, secrets: &Secrets) -> Result<Option<KeyChange>, Failure> {
        let Self { state, new_secret, old_secret, slot, iter_time } = self;
        let refuse = |reason: &str| Err(Failure::new(reason));
        match (state.as_deref(), new_secret, old_secret) {
            (None, None, None) if slot.is_none() && iter_time.is_none() => Ok(None),
            (None, ..) => refuse("Parameter 'state' is missing: active adds a passphrase, inactive erases one"),
            (Some("active"), None, _) => refuse("'new-secret' is required to activate a keyslot"),
            (Some("active"), _, Some(_)) => refuse("'old-secret' must not be given when activating keyslots"),
            (Some("active"), Some(new), None) => {
                let Some(current) = &source.key_secret else {
                    return refuse("A passphrase is added by one that is there: give it with --image-opts …,key-secret=…");
                };
                let (current, new) = (secrets.get(current)?, secrets.get(&new)?);
                Ok(Some(KeyChange::Add { current, new, slot, time: iter_time.unwrap_or(KeyChange::USUAL_TIME) }))
            }
            (_, Some(_), _) => refuse("'new-secret' must not be given when erasing keyslots"),
            (_, None, _) if iter_time.is_some() => refuse("'iter-time' must not be given when erasing keyslots"),
            (_, None, Some(_)) if slot.is_some() => refuse("'old-secret' and 'keyslot' cannot be given together"),
            (_, None, Some(old)) => Ok(Some(KeyChange::ErasePassphrase(secrets.get(&old)?))),
            (_, None, None) => match slot {
                Some(slot) => Ok(Some(KeyChange::EraseSlot(slot))),
                None => refuse("To erase keyslots, 'keyslot' or 'old-secret' must be given"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `-o` with these words asks of the passphrases of an image that the secret “a” opens.
    fn change(format: Format, words: &str) -> Result<Option<KeyChange>, String> {
        let secrets = Secrets::of(["secret,id=a,data=first", "secret,id=b,data=second"]).unwrap();
        let source = Source { key_secret: Some("a".into()), ..Source::named("x", None, false).unwrap() };
        let mut keys = WantedKeys::default();
        for (key, value) in key_values(words) {
            assert!(keys.take(format, &key, &value).map_err(|failure| failure.message)?, "{key}");
        }
        keys.change(&source, &secrets).map_err(|failure| failure.message)
    }

    #[test]
    fn passphrases_are_added_and_erased_in_qemus_words() {
        let added = change(Format::Qcow2, "encrypt.state=active,encrypt.new-secret=b,encrypt.keyslot=3,encrypt.iter-time=10");
        let Ok(Some(KeyChange::Add { current, new, slot: Some(3), time })) = added else { panic!("{added:?}") };
        let passphrase = |word: &str| engine_disk::Passphrase::new(word.into());
        assert_eq!((current, new, time), (passphrase("first"), passphrase("second"), Duration::from_millis(10)));
        assert!(matches!(change(Format::Luks, "state=inactive,keyslot=2"), Ok(Some(KeyChange::EraseSlot(2)))));
        assert!(matches!(change(Format::Luks, "state=inactive,old-secret=b"), Ok(Some(KeyChange::ErasePassphrase(_)))));
        assert!(matches!(change(Format::Qcow2, ""), Ok(None)));
    }

    #[test]
    fn words_that_do_not_go_together_are_refused() {
        for (words, expected) in [
            ("keyslot=1", "'state' is missing"),
            ("state=on", "active or inactive"),
            ("state=active", "'new-secret' is required"),
            ("state=active,new-secret=b,old-secret=a", "'old-secret' must not"),
            ("state=active,new-secret=c", "No secret with id 'c'"),
            ("state=inactive", "must be given"),
            ("state=inactive,new-secret=b", "'new-secret' must not"),
            ("state=inactive,keyslot=1,old-secret=b", "together"),
            ("state=inactive,keyslot=1,iter-time=5", "'iter-time' must not"),
            ("keyslot=one", "expects a number"),
        ] {
            let refusal = change(Format::Luks, words).unwrap_err();
            assert!(refusal.contains(expected), "{words}: {refusal}");
        }
        let mut keys = WantedKeys::default();
        assert!(!keys.take(Format::Raw, "state", "active").unwrap(), "a raw image has no passphrases");
        assert!(!keys.take(Format::Qcow2, "state", "active").unwrap(), "a qcow2 image's options have a prefix");
    }
}
