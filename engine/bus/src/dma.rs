//! DMA reaches RAM only. An access that a device window would answer faults, and so does everything while the function's
//! bus mastering is off: a device can never be made to write into its own registers.

use engine_memory::GuestMemory;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A device's way into guest memory.
#[derive(Clone)]
pub struct Dma {
    memory: GuestMemory,
    enabled: Arc<AtomicBool>,
}

/// Why a DMA access failed. What came before the failing address has been transferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DmaFault {
    /// No RAM there.
    #[error("no RAM at {0:#x}")]
    NotRam(u64),
    /// The PCI command register forbids bus mastering.
    #[error("bus mastering is off")]
    Off,
}

impl Dma {
    pub(crate) fn new(memory: GuestMemory, enabled: Arc<AtomicBool>) -> Self {
        Self { memory, enabled }
    }

    fn check(&self) -> Result<(), DmaFault> {
        if self.enabled.load(Ordering::Acquire) { Ok(()) } else { Err(DmaFault::Off) }
    }

    /// Copies from guest memory.
    ///
    /// # Errors
    /// When bus mastering is off, or where no RAM answers.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), DmaFault> {
        self.check()?;
        self.memory.read(address, into).map_err(|fault| DmaFault::NotRam(fault.0))
    }

    /// Copies into guest memory.
    ///
    /// # Errors
    /// When bus mastering is off, or where no RAM answers.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DmaFault> {
        self.check()?;
        self.memory.write(address, bytes).map_err(|fault| DmaFault::NotRam(fault.0))
    }

    /// Reads a fixed number of bytes.
    ///
    /// # Errors
    /// As [`Dma::read`].
    pub fn read_array<const N: usize>(&self, address: u64) -> Result<[u8; N], DmaFault> {
        let mut bytes = [0; N];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }
}
