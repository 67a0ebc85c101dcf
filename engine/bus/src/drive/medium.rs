//! What is in a drive, and how requests are carried out on it.

use super::queue::Batch;
use super::{DriveError, DriveOperation};
use engine_disk::DiskImage;
use std::sync::Arc;

/// What is in the drive.
#[derive(Clone)]
pub struct Medium {
    /// The image.
    pub image: Arc<dyn DiskImage>,
    /// Whether the guest may not write, whatever the image allows.
    pub read_only: bool,
    /// Where it came from, for people: a path.
    pub title: String,
    /// What becomes of discards, zeros and failures.
    pub rules: DriveRules,
}

/// What becomes of discards, zeros and failures (QEMU's `discard`, `detect-zeroes`, `rerror` and `werror`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriveRules {
    /// Bytes that the guest no longer needs.
    pub discards: Discards,
    /// Writes of nothing but zeros.
    pub zeros: Zeros,
    /// Reads that the host failed.
    pub on_read_error: OnError,
    /// Writes, flushes and discards that the host failed.
    pub on_write_error: OnError,
}

impl Default for DriveRules {
    fn default() -> Self {
        Self {
            discards: Discards::PassedOn,
            zeros: Zeros::Written,
            on_read_error: OnError::Report,
            on_write_error: OnError::StopWhenFull,
        }
    }
}

/// What becomes of bytes that the guest no longer needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discards {
    /// Their space is given back to the host.
    PassedOn,
    /// They stay.
    Ignored,
}

/// What becomes of writes of nothing but zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeros {
    /// They are written like all others.
    Written,
    /// They are looked for in every write, and stored without taking space where the image can.
    Detected,
}

/// What becomes of a request that the host failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// The guest is told.
    Report,
    /// The guest is told that it went well.
    Ignore,
    /// The request is held back until the person has seen to it.
    Stop,
    /// As `Stop` where the host's disk is full, and else as `Report`.
    StopWhenFull,
}

/// What to do now that a request has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Report,
    Ignore,
    HoldBack,
}

impl Medium {
    /// What becomes of a request that failed with `error`.
    pub(super) fn verdict(&self, operation: &DriveOperation, error: DriveError) -> Verdict {
        let is_hosts = matches!(error, DriveError::NoSpace | DriveError::Io);
        let rule = match operation {
            DriveOperation::Read { .. } => self.rules.on_read_error,
            _ => self.rules.on_write_error,
        };
        match rule {
            // What the guest asked wrongly is always its own affair.
            _ if !is_hosts => Verdict::Report,
            OnError::Report => Verdict::Report,
            OnError::Ignore => Verdict::Ignore,
            OnError::Stop => Verdict::HoldBack,
            OnError::StopWhenFull if error == DriveError::NoSpace => Verdict::HoldBack,
            OnError::StopWhenFull => Verdict::Report,
        }
    }

    /// Carries out one request.
    pub(super) fn carry_out(&self, operation: &DriveOperation) -> Result<Vec<u8>, DriveError> {
        let image = &self.image;
        let in_range = |offset: u64, len: u64| match offset.checked_add(len) {
            Some(end) if end <= image.len() => Ok(()),
            _ => Err(DriveError::OutOfRange),
        };
        let writable = || if self.read_only || image.read_only() { Err(DriveError::ReadOnly) } else { Ok(()) };
        let failed = |error: engine_disk::DiskError| {
            tracing::error!(%error, image = self.title, "the image could not be read or written");
            if error.is_no_space() { DriveError::NoSpace } else { DriveError::Io }
        };
        match *operation {
            DriveOperation::Read { offset, len } => {
                in_range(offset, len as u64)?;
                let mut data = vec![0; len];
                image.read_at(offset, &mut data).map_err(failed)?;
                return Ok(data);
            }
            DriveOperation::Write { offset, ref data } => {
                writable()?;
                in_range(offset, data.len() as u64)?;
                if self.rules.zeros == Zeros::Detected && data.iter().all(|byte| *byte == 0) {
                    image.write_zeroes(offset, data.len() as u64).map_err(failed)?;
                } else {
                    image.write_at(offset, data).map_err(failed)?;
                }
            }
            DriveOperation::Flush if image.read_only() => {}
            DriveOperation::Flush => image.flush().map_err(failed)?,
            DriveOperation::Discard { offset, len } => {
                writable()?;
                in_range(offset, len)?;
                if self.rules.discards == Discards::PassedOn {
                    image.discard(offset, len).map_err(failed)?;
                }
            }
        }
        Ok(Vec::new())
    }

    /// Carries out requests that were merged: as one, or where that fails, each by itself, so that each has its own answer.
    pub(super) fn carry_out_all(&self, batch: &Batch) -> Vec<Result<Vec<u8>, DriveError>> {
        let requests = &batch.requests;
        if requests.len() > 1
            && let Some(operation) = merged(batch)
            && let Ok(data) = self.carry_out(&operation)
        {
            let mut rest = data.as_slice();
            let part = |operation: &DriveOperation| match operation {
                DriveOperation::Read { len, .. } => rest.split_off(..*len).unwrap_or_default().to_vec(),
                _ => Vec::new(),
            };
            return requests.iter().map(|(_, request)| &request.operation).map(part).map(Ok).collect();
        }
        requests.iter().map(|(_, request)| self.carry_out(&request.operation)).collect()
    }
}

/// The one operation that does what all of a batch do.
fn merged(batch: &Batch) -> Option<DriveOperation> {
    let operations = batch.requests.iter().map(|(_, request)| &request.operation);
    operations.cloned().reduce(|whole, next| match (whole, next) {
        (DriveOperation::Read { offset, len }, DriveOperation::Read { len: more, .. }) => {
            DriveOperation::Read { offset, len: len + more }
        }
        (DriveOperation::Write { offset, mut data }, DriveOperation::Write { data: more, .. }) => {
            data.extend(more);
            DriveOperation::Write { offset, data }
        }
        (DriveOperation::Discard { offset, len }, DriveOperation::Discard { len: more, .. }) => {
            DriveOperation::Discard { offset, len: len + more }
        }
        // A flush is never merged, nor are two kinds.
        (whole, _) => whole,
    })
}
