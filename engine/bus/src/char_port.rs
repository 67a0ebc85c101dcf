//! A byte stream between a device (serial port, debug port) and the host (terminal, file, socket).
//! What the guest sends is handed on at once; what the host sends waits in a bounded queue until the device takes it.

use crate::DeviceCell;
use engine_base::{RankedMutex, rank};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const QUEUE_BYTES: usize = 64 * 1024;

/// The device's end.
#[derive(Clone)]
pub struct CharPort(Arc<Shared>);

/// The host's end.
#[derive(Clone)]
pub struct CharHost(Arc<Shared>);

struct Shared {
    to_host: Box<dyn Fn(&[u8]) + Send + Sync>,
    to_guest: RankedMutex<VecDeque<u8>>,
    bell: RankedMutex<Option<Arc<DeviceCell>>>,
    connected: AtomicBool,
}

/// A fresh pair. `to_host` gets what the guest sends, on the vCPU's thread: it must not block for long.
pub fn char_port(to_host: impl Fn(&[u8]) + Send + Sync + 'static) -> (CharPort, CharHost) {
    let shared = Arc::new(Shared {
        to_host: Box::new(to_host),
        to_guest: RankedMutex::new(rank::LEAF, "char queue", VecDeque::new()),
        bell: RankedMutex::new(rank::LEAF, "char bell", None),
        connected: AtomicBool::new(true),
    });
    (CharPort(Arc::clone(&shared)), CharHost(shared))
}

impl CharPort {
    /// Sends bytes to the host.
    pub fn write(&self, bytes: &[u8]) {
        (self.0.to_host)(bytes);
    }

    /// Takes one byte that the host sent.
    pub fn read(&self) -> Option<u8> {
        self.0.to_guest.lock().pop_front()
    }

    /// Whether the host has sent something.
    pub fn is_ready(&self) -> bool {
        !self.0.to_guest.lock().is_empty()
    }

    /// Whether somebody is at the other end: the modem's carrier.
    pub fn is_connected(&self) -> bool {
        self.0.connected.load(Ordering::Relaxed)
    }

    pub(crate) fn attach(&self, cell: Arc<DeviceCell>) {
        *self.0.bell.lock() = Some(cell);
    }
}

impl CharHost {
    /// Hands bytes to the guest and rings the device; returns how many fitted. The rest is to be offered again later.
    pub fn feed(&self, bytes: &[u8]) -> usize {
        let taken = {
            let mut queue = self.0.to_guest.lock();
            let taken = bytes.len().min(QUEUE_BYTES.saturating_sub(queue.len()));
            queue.extend(&bytes[..taken]);
            taken
        };
        let bell = self.0.bell.lock().clone();
        if let Some(cell) = bell {
            cell.ring();
        }
        taken
    }

    /// Somebody came to, or left, the other end.
    pub fn set_connected(&self, connected: bool) {
        self.0.connected.store(connected, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_to_the_guest_is_bounded() {
        let (port, host) = char_port(|_| {});
        assert_eq!(host.feed(&vec![7; QUEUE_BYTES + 5]), QUEUE_BYTES);
        assert_eq!(port.read(), Some(7));
        assert_eq!(host.feed(&[8, 9]), 1);
    }
}
