//! A queue of bytes that cannot grow past its hardware's size.

use engine_bus::RestoreError;
use std::collections::VecDeque;

/// At most `N` bytes, first in, first out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundedFifo<const N: usize>(VecDeque<u8>);

impl<const N: usize> BoundedFifo<N> {
    /// An empty queue.
    pub fn new() -> Self {
        Self(VecDeque::with_capacity(N))
    }

    /// Appends a byte.
    ///
    /// # Errors
    /// Gives the byte back when the queue is full.
    pub fn push(&mut self, byte: u8) -> Result<(), u8> {
        if self.0.len() >= N {
            return Err(byte);
        }
        self.0.push_back(byte);
        Ok(())
    }

    /// Appends as many of `bytes` as fit; the rest is lost, as in hardware.
    pub fn push_what_fits(&mut self, bytes: &[u8]) {
        let room = N.saturating_sub(self.0.len());
        self.0.extend(bytes.iter().take(room));
    }

    /// Takes the oldest byte.
    pub fn pop(&mut self) -> Option<u8> {
        self.0.pop_front()
    }

    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// For saved state.
    pub fn to_vec(&self) -> Vec<u8> {
        self.0.iter().copied().collect()
    }

    /// From saved state.
    ///
    /// # Errors
    /// When there are more bytes than the hardware holds.
    pub fn of_saved(bytes: &[u8]) -> Result<Self, RestoreError> {
        if bytes.len() > N {
            return Err(RestoreError::impossible(format!("a queue of {N} bytes holds {}", bytes.len())));
        }
        Ok(Self(bytes.iter().copied().collect()))
    }
}

impl<const N: usize> Default for BoundedFifo<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_gives_the_byte_back() {
        let mut fifo = BoundedFifo::<2>::new();
        assert_eq!([fifo.push(1), fifo.push(2), fifo.push(3)], [Ok(()), Ok(()), Err(3)]);
        assert_eq!((fifo.pop(), fifo.len()), (Some(1), 1));
        assert!(BoundedFifo::<2>::of_saved(&[1, 2, 3]).is_err());
    }
}
