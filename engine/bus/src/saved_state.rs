//! The saved state of one device: a version and a self-describing value (CBOR). Each device keeps types of its own for
//! it in `mod saved`, apart from its working fields, so that the format changes on purpose only.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What [`crate::Device::save`] returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedState {
    version: u32,
    value: ciborium::Value,
}

/// Saved state could not be taken over; the machine is not started with half of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Made by a newer (or too old) program.
    #[error("the saved state has version {found}, this program knows version {known}")]
    Version {
        /// In the file.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Not what the device writes.
    #[error("the saved state is damaged: {0}")]
    Damaged(String),
}

impl SavedState {
    /// Saves `state` as `version` of its format.
    ///
    /// # Panics
    /// When the type cannot be serialised: a bug in the device's `mod saved`.
    pub fn of<T: Serialize>(version: u32, state: &T) -> Self {
        let value = ciborium::Value::serialized(state).expect("saved types are plain data");
        Self { version, value }
    }

    /// A part without state, said aloud.
    pub fn stateless() -> Self {
        Self { version: 0, value: ciborium::Value::Null }
    }

    /// Reads `version` back.
    ///
    /// # Errors
    /// When the version or the shape is another.
    pub fn read<T: DeserializeOwned>(&self, version: u32) -> Result<T, RestoreError> {
        if self.version != version {
            return Err(RestoreError::Version { found: self.version, known: version });
        }
        self.value.deserialized().map_err(|error| RestoreError::Damaged(error.to_string()))
    }

    /// Checks that this is the state of a part without state.
    ///
    /// # Errors
    /// When there is state after all.
    pub fn expect_stateless(&self) -> Result<(), RestoreError> {
        if *self == Self::stateless() { Ok(()) } else { Err(RestoreError::Damaged("state for a part that has none".into())) }
    }
}

impl RestoreError {
    /// A value the device cannot have.
    pub fn impossible(what: impl Into<String>) -> Self {
        RestoreError::Damaged(what.into())
    }
}
