//! Passphrases as `-object secret,id=…` gives them to machines and image tools: in words, or in a file so that no list of
//! processes shows them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail};
use engine_disk::Passphrase;

use super::img::source::key_values;
use super::qemu::flatten;

/// No passphrase is longer than this.
const MAX_LENGTH: u64 = 1 << 20;

/// The secrets of one command line, by their names.
#[derive(Clone, Debug, Default)]
pub struct Secrets(BTreeMap<String, Passphrase>);

impl Secrets {
    /// Those that the arguments of `-object` define.
    ///
    /// # Errors
    /// When one is no secret, is wrong, or has the name of another.
    pub fn of<'a>(objects: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut secrets = Self::default();
        for text in objects {
            let (id, passphrase) = secret(text)?;
            if secrets.0.insert(id.clone(), passphrase).is_some() {
                bail!("attempt to add duplicate property '{id}' to object");
            }
        }
        Ok(secrets)
    }

    /// The secret of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, id: &str) -> Result<Passphrase> {
        self.0.get(id).cloned().ok_or_else(|| anyhow!("No secret with id '{id}'"))
    }
}

/// A secret in QEMU's dotted words or as JSON.
fn secret(text: &str) -> Result<(String, Passphrase)> {
    let mut pairs = Vec::new();
    if text.trim_start().starts_with('{') {
        let value = serde_json::from_str(text).context("this object is not valid JSON")?;
        flatten("", &value, &mut pairs);
    } else {
        pairs = key_values(text);
        // The first word is the kind, with or without its name.
        if let Some((kind, on)) = pairs.first_mut().filter(|(_, value)| value == "on") {
            *on = std::mem::replace(kind, "qom-type".into());
        }
    }
    let (mut kind, mut id, mut passphrase, mut is_base64) = (None, None, None, false);
    for (key, value) in pairs {
        match key.as_str() {
            "qom-type" => kind = Some(value),
            "id" => id = Some(value),
            "data" => passphrase = Some(value.into_bytes()),
            "file" => passphrase = Some(read(&value)?),
            "format" if value == "raw" => is_base64 = false,
            "format" if value == "base64" => is_base64 = true,
            "format" => bail!("Invalid parameter '{value}'; secrets are in the format raw or base64"),
            _ if kind.as_deref().is_some_and(|kind| kind != "secret") => {}
            _ => bail!("Invalid parameter '{key}' of a secret; known are id, data, file and format"),
        }
    }
    match kind.as_deref() {
        Some("secret") => {}
        Some(other) => bail!("invalid object type: {other}; only 'secret' is known here"),
        None => bail!("Parameter 'qom-type' is missing; only 'secret' is known here"),
    }
    match (id, passphrase) {
        (Some(id), Some(passphrase)) if is_base64 => Ok((id, Passphrase::new(from_base64(&passphrase)?))),
        (Some(id), Some(passphrase)) => Ok((id, Passphrase::new(passphrase))),
        (None, _) => bail!("Parameter 'id' is missing"),
        (_, None) => bail!("Must provide 'file' or 'data'"),
    }
}

/// Base64 as people write it into files: in lines, with a line end behind it.
fn from_base64(text: &[u8]) -> Result<Vec<u8>> {
    use base64::Engine;
    let text: Vec<u8> = text.iter().copied().filter(|letter| !letter.is_ascii_whitespace()).collect();
    let decoded = base64::engine::general_purpose::STANDARD.decode(text);
    decoded.map_err(|error| anyhow!("Base64 data of a secret is not valid: {error}"))
}

fn read(path: &str) -> Result<Vec<u8>> {
    use std::io::Read;
    let could_not = |error: std::io::Error| anyhow!("Unable to read {path}: {error}");
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(could_not)?.take(MAX_LENGTH).read_to_end(&mut bytes).map_err(could_not)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(objects: &[&str]) -> String {
        Secrets::of(objects.iter().copied()).unwrap_err().to_string()
    }

    #[test]
    fn secrets_come_in_words_in_files_or_in_json() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, b"in\0file\n").unwrap();
        let found = Secrets::of([
            "secret,id=a,data=x,,y",
            &format!("qom-type=secret,file={},id=b", path.display()),
            "{\"qom-type\":\"secret\",\"id\":\"c\",\"data\":\"c2Vj\\ncmV0\\n\",\"format\":\"base64\"}",
        ])
        .unwrap();
        for (id, expected) in [("a", &b"x,y"[..]), ("b", b"in\0file\n"), ("c", b"secret")] {
            assert_eq!(found.get(id).unwrap(), Passphrase::new(expected.to_vec()), "{id}");
        }
        assert_eq!(found.get("d").unwrap_err().to_string(), "No secret with id 'd'");
    }

    #[test]
    fn what_is_wrong_about_a_secret_is_named() {
        for (object, expected) in [
            ("secret,data=x", "'id' is missing"),
            ("secret,id=x", "'file' or 'data'"),
            ("throttle-group,id=x,limits.bps-total=5", "throttle-group"),
            ("id=x,data=y", "'qom-type' is missing"),
            ("secret,id=x,data=y,format=base64", "Base64"),
            ("secret,id=x,data=y,format=hex", "'hex'"),
            ("secret,id=x,dta=y", "'dta'"),
            ("secret,id=x,file=/nowhere/at/all", "/nowhere/at/all"),
            ("{\"qom-type\":", "JSON"),
        ] {
            let message = refusal(&[object]);
            assert!(message.contains(expected), "{object}: {message}");
        }
        assert!(refusal(&["secret,id=a,data=x", "secret,id=a,data=y"]).contains("duplicate"));
    }
}
