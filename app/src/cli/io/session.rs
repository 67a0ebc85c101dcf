//! The image that commands work on.

use std::sync::Arc;

use engine_disk::{Access, DiskError, DiskImage};

use crate::cli::img::Failure;
use crate::cli::img::source::{How, Source};

/// What follows a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The next command; this one did or did not succeed.
    Continue {
        /// Whether it did.
        succeeded: bool,
    },
    /// Nothing: it was `quit`.
    Quit,
}

/// The open image, if any.
#[derive(Default)]
pub struct Session {
    image: Option<Arc<dyn DiskImage>>,
    again: Option<(Source, How, bool)>,
}

impl Session {
    /// Opens an image; another must have been closed before.
    pub fn open(
        &mut self,
        name: &str,
        format: Option<&str>,
        image_opts: bool,
        how: &How,
        throw_writes_away: bool,
    ) -> Result<(), Failure> {
        let could_not = |failure: Failure| failure.while_doing(format!("can't open device {name}"));
        let source = Source::named(name, format, image_opts).map_err(could_not)?;
        self.again = Some((source, how.clone(), throw_writes_away));
        self.open_again().map_err(could_not)
    }

    fn open_again(&mut self) -> Result<(), Failure> {
        let Some((source, how, throw_writes_away)) = &self.again else { return Ok(()) };
        let options = source.open_options(how)?;
        let options = engine_disk::OpenOptions { snapshot: *throw_writes_away, ..options };
        let image = engine_disk::open(&options);
        self.image = Some(image.map_err(|error| Failure::new(format!("Could not open '{}': {error}", source.name)))?);
        Ok(())
    }

    /// Closes the image and opens it for reading, or for writing.
    pub fn reopen(&mut self, access: Access) -> Result<(), Failure> {
        self.close();
        if let Some((_, how, _)) = &mut self.again {
            how.access = access;
        }
        self.open_again()
    }

    /// The image.
    pub fn image(&self) -> Option<&Arc<dyn DiskImage>> {
        self.image.as_ref()
    }

    /// Closes the image, which writes out what it still holds.
    pub fn close(&mut self) {
        if let Some(image) = self.image.take()
            && !image.read_only()
            && let Err(error) = image.flush()
        {
            eprintln!("closing failed: {error}");
        }
    }
}

/// What the host's C library would say of such an error, as scripts expect to read it.
pub fn in_host_words(error: &DiskError) -> String {
    match error {
        DiskError::NoSpace { .. } => "No space left on device".into(),
        DiskError::ReadOnly { .. } => "Operation not permitted".into(),
        DiskError::NotPossible { .. } | DiskError::Unsupported { .. } => "Operation not supported".into(),
        DiskError::OutOfRange { .. } | DiskError::Damaged { .. } => "Input/output error".into(),
        other => other.to_string(),
    }
}
