//! Passphrases as `--object secret,id=…` gives them: in words, or in a file so that no list of processes shows them.

use std::collections::BTreeMap;

use engine_disk::Passphrase;

use super::Failure;
use super::options::Options;
use super::source::key_values;

/// No passphrase is longer than this.
const MAX_LENGTH: u64 = 1 << 20;

/// The secrets of one command line, by their names.
#[derive(Clone, Debug, Default)]
pub struct Secrets(BTreeMap<String, Passphrase>);

impl Secrets {
    /// Those that `--object` defines among `options`.
    pub fn of(options: &Options) -> Result<Self, Failure> {
        let mut secrets = Self::default();
        for text in options.values("object") {
            let (id, passphrase) = secret(text)?;
            if secrets.0.insert(id.clone(), passphrase).is_some() {
                return Err(Failure::new(format!("attempt to add duplicate property '{id}' to object")));
            }
        }
        Ok(secrets)
    }

    /// The secret of that name.
    pub fn get(&self, id: &str) -> Result<Passphrase, Failure> {
        self.0.get(id).cloned().ok_or_else(|| Failure::new(format!("No secret with id '{id}'")))
    }
}

fn secret(text: &str) -> Result<(String, Passphrase), Failure> {
    let (mut id, mut passphrase, mut is_base64) = (None, None, false);
    for (number, (key, value)) in key_values(text).into_iter().enumerate() {
        match key.as_str() {
            "secret" if number == 0 => {}
            "qom-type" if value == "secret" => {}
            _ if number == 0 || key == "qom-type" => {
                return Err(Failure::new(format!(
                    "invalid object type: {}; only 'secret' is known here",
                    if number == 0 { key } else { value }
                )));
            }
            "id" => id = Some(value),
            "data" => passphrase = Some(value.into_bytes()),
            "file" => passphrase = Some(read(&value)?),
            "format" if value == "raw" => is_base64 = false,
            "format" if value == "base64" => is_base64 = true,
            "format" => {
                return Err(Failure::new(format!("Invalid parameter '{value}'; secrets are in the format raw or base64")));
            }
            _ => return Err(Failure::new(format!("Invalid parameter '{key}' of a secret; known are id, data, file and format"))),
        }
    }
    match (id, passphrase) {
        (Some(id), Some(passphrase)) if is_base64 => Ok((id, Passphrase::new(from_base64(&passphrase)?))),
        (Some(id), Some(passphrase)) => Ok((id, Passphrase::new(passphrase))),
        (None, _) => Err(Failure::new("Parameter 'id' is missing")),
        (_, None) => Err(Failure::new("Must provide 'file' or 'data'")),
    }
}

/// Base64 as people write it into files: in lines, with a line end behind it.
fn from_base64(text: &[u8]) -> Result<Vec<u8>, Failure> {
    use base64::Engine;
    let text: Vec<u8> = text.iter().copied().filter(|letter| !letter.is_ascii_whitespace()).collect();
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|error| Failure::new(format!("Base64 data of a secret is not valid: {error}")))
}

fn read(path: &str) -> Result<Vec<u8>, Failure> {
    use std::io::Read;
    let could_not = |error: std::io::Error| Failure::new(format!("Unable to read {path}: {error}"));
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(could_not)?.take(MAX_LENGTH).read_to_end(&mut bytes).map_err(could_not)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::img::options::Known;

    fn secrets(objects: &[&str]) -> Result<Secrets, String> {
        let words: Vec<String> = objects.iter().map(|object| format!("--object={object}")).collect();
        let options = Options::parse(&words, &Known { short: "", long: &["object="] }).unwrap();
        Secrets::of(&options).map_err(|failure| failure.message)
    }

    #[test]
    fn secrets_come_in_words_or_in_files_and_what_is_wrong_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, b"in\0file\n").unwrap();
        let found = secrets(&["secret,id=a,data=x,,y", &format!("qom-type=secret,file={},id=b", path.display())]).unwrap();
        assert_eq!(from_base64(b"c2Vj\ncmV0\n").unwrap(), b"secret");
        assert!(secrets(&["secret,id=x,data=c2VjcmV0,format=base64"]).is_ok());
        assert!(found.get("a").is_ok() && found.get("b").is_ok());
        assert_eq!(found.get("c").unwrap_err().message, "No secret with id 'c'");
        for (object, expected) in [
            ("secret,data=x", "'id' is missing"),
            ("secret,id=x", "'file' or 'data'"),
            ("throttle-group,id=x", "throttle-group"),
            ("secret,id=x,data=y,format=base64", "Base64"),
            ("secret,id=x,data=y,format=hex", "'hex'"),
            ("secret,id=x,dta=y", "'dta'"),
            ("secret,id=x,file=/nowhere/at/all", "/nowhere/at/all"),
        ] {
            let message = secrets(&[object]).unwrap_err();
            assert!(message.contains(expected), "{object}: {message}");
        }
        assert!(secrets(&["secret,id=a,data=x", "secret,id=a,data=y"]).is_err());
    }
}
