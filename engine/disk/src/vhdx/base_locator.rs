//! What a differencing disk says of its base: named texts, of which one is the identifier that the base's content had, and
//! others are names under which its file may be found.

use uuid::{Uuid, uuid};

use crate::fields::{Fields, put};
use crate::image_info::Identity;
use crate::open::Backing;
use crate::parent::for_windows;

/// The only kind of locator there is: VHDX files as bases.
const KIND: Uuid = uuid!("B04AEFB7-D19E-4A81-B789-25B8E9445913");
const HEAD: usize = 20;
const ENTRY: usize = 12;

/// The texts, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BaseLocator {
    texts: Vec<(String, String)>,
}

impl BaseLocator {
    /// Longer ones are nobody's.
    pub(super) const MAX_LENGTH: u64 = 64 << 10;

    pub(super) fn new(backing: &Backing, identity: Identity) -> Self {
        let linkage = Uuid::from_u128(identity.content).braced().to_string();
        let key = if backing.name.starts_with('/') { "absolute_win32_path" } else { "relative_path" };
        let texts = [("parent_linkage", linkage), (key, for_windows(&backing.name))];
        Self { texts: texts.into_iter().map(|(key, value)| (key.to_owned(), value)).collect() }
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let fields = Fields(bytes);
        if bytes.len() < HEAD || Uuid::from_bytes_le(fields.id(0)) != KIND {
            return None;
        }
        let text = |at: usize, length: usize| {
            let bytes = bytes.get(at..at.checked_add(length)?)?;
            let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
            Some(String::from_utf16_lossy(&units))
        };
        let mut texts = Vec::new();
        let entries = bytes.get(HEAD..HEAD + usize::from(fields.le16(18)) * ENTRY)?;
        for entry in entries.chunks_exact(ENTRY) {
            let fields = Fields(entry);
            let key = text(fields.le32(0) as usize, fields.le16(8).into())?;
            texts.push((key, text(fields.le32(4) as usize, fields.le16(10).into())?));
        }
        Some(Self { texts })
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEAD + self.texts.len() * ENTRY];
        put(&mut bytes, 0, &KIND.to_bytes_le());
        put(&mut bytes, 18, &(self.texts.len() as u16).to_le_bytes());
        for (number, (key, value)) in self.texts.iter().enumerate() {
            for (text, offset_at, length_at) in [(key, 0, 8), (value, 4, 10)] {
                let start = bytes.len();
                bytes.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
                let length = bytes.len() - start;
                let at = HEAD + number * ENTRY;
                put(&mut bytes, at + offset_at, &(start as u32).to_le_bytes());
                put(&mut bytes, at + length_at, &(length as u16).to_le_bytes());
            }
        }
        bytes
    }

    fn values<'a>(&'a self, keys: &'a [&str]) -> impl Iterator<Item = &'a str> {
        keys.iter().filter_map(|wanted| self.texts.iter().find(|(key, _)| key == wanted)).map(|(_, value)| value.as_str())
    }

    /// Whether a base's content is the one that was built on.
    pub(super) fn expects(&self, identity: &Identity) -> bool {
        self.values(&["parent_linkage", "parent_linkage2"])
            .any(|text| Uuid::try_parse(text).is_ok_and(|id| id.as_u128() == identity.content))
    }

    /// The names under which the base's file may be found.
    pub(super) fn names(&self) -> Vec<String> {
        self.values(&["relative_path", "absolute_win32_path"]).map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format;

    #[test]
    fn what_is_said_of_a_base_is_read_again_and_cut_texts_are_not() {
        let backing = Backing { name: "folder/base.vhdx".into(), format: Format::Vhdx };
        let identity = Identity { disk: 0, content: 0x1234_5678_9abc_def0 };
        let locator = BaseLocator::new(&backing, identity);
        let bytes = locator.bytes();
        assert_eq!(BaseLocator::parse(&bytes).as_ref(), Some(&locator));
        assert!(locator.expects(&identity) && !locator.expects(&Identity { disk: 0, content: 1 }));
        assert_eq!(locator.names(), [".\\folder\\base.vhdx"]);
        for length in 0..bytes.len() - 1 {
            assert_eq!(BaseLocator::parse(&bytes[..length]), None, "{length}");
        }
    }
}
