//! A mutex that knows its place: locks are taken in rising rank only, so that no two threads can wait for each other.
//! Debug builds check the order on every lock and panic with both names; release builds cost what `std::sync::Mutex` costs.
//! Poison is passed over: a panic is handled once, by [`crate::spawn_guarded`], not again by every thread that meets the lock.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, TryLockError};

/// The ranks, lowest first. A thread that holds one may take only higher ones.
pub mod rank {
    /// Configuration mechanisms that lock a device while held.
    pub const ROUTER: u8 = 5;
    /// One device; never two at once.
    pub const DEVICE: u8 = 10;
    /// A wire between a device and an interrupt router (PCI INTx pins).
    pub const OUTER_WIRE: u8 = 20;
    /// A part that passes interrupts on: the PIIX3's PIRQ router.
    pub const INTERRUPT_ROUTER: u8 = 30;
    /// A wire into the interrupt controllers (ISA IRQs).
    pub const INNER_WIRE: u8 = 40;
    /// PIC, IOAPIC.
    pub const INTERRUPT_CONTROLLER: u8 = 50;
    /// Queues, frames, logs: nothing is locked under these.
    pub const LEAF: u8 = 100;
}

/// A mutex with a rank and a name.
pub struct RankedMutex<T> {
    rank: u8,
    name: &'static str,
    inner: Mutex<T>,
}

impl<T> RankedMutex<T> {
    /// A mutex of `rank` (see [`rank`]); `name` appears when the order is broken.
    pub const fn new(rank: u8, name: &'static str, value: T) -> Self {
        Self { rank, name, inner: Mutex::new(value) }
    }

    /// Takes the lock.
    ///
    /// # Panics
    /// In debug builds, when this thread already holds a lock of the same or a higher rank.
    pub fn lock(&self) -> RankedGuard<'_, T> {
        held::push(self.rank, self.name);
        RankedGuard { rank: self.rank, inner: self.inner.lock().unwrap_or_else(|poison| poison.into_inner()) }
    }

    /// Takes the lock if it is free now.
    pub fn try_lock(&self) -> Option<RankedGuard<'_, T>> {
        let inner = match self.inner.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poison)) => poison.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        held::push(self.rank, self.name);
        Some(RankedGuard { rank: self.rank, inner })
    }

    /// The value, when nobody else can hold the lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut().unwrap_or_else(|poison| poison.into_inner())
    }
}

/// A held [`RankedMutex`].
pub struct RankedGuard<'a, T> {
    rank: u8,
    inner: MutexGuard<'a, T>,
}

impl<T> Drop for RankedGuard<'_, T> {
    fn drop(&mut self) {
        held::remove(self.rank);
    }
}

impl<T> Deref for RankedGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for RankedGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

#[cfg(debug_assertions)]
mod held {
    use std::cell::RefCell;

    thread_local!(static HELD: RefCell<Vec<(u8, &'static str)>> = const { RefCell::new(Vec::new()) });

    pub fn push(rank: u8, name: &'static str) {
        HELD.with_borrow_mut(|held| {
            if let Some((other, other_name)) = held.iter().max() {
                // A thread that already panics may unwind through guards in any order.
                assert!(
                    *other < rank || std::thread::panicking(),
                    "lock order: {name} ({rank}) taken while holding {other_name} ({other})"
                );
            }
            held.push((rank, name));
        });
    }

    pub fn remove(rank: u8) {
        HELD.with_borrow_mut(|held| {
            if let Some(at) = held.iter().rposition(|(r, _)| *r == rank) {
                held.remove(at);
            }
        });
    }
}

#[cfg(not(debug_assertions))]
mod held {
    pub fn push(_rank: u8, _name: &'static str) {}
    pub fn remove(_rank: u8) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rising_ranks_are_allowed() {
        let device = RankedMutex::new(rank::DEVICE, "device", 1);
        let leaf = RankedMutex::new(rank::LEAF, "leaf", 2);
        let first = device.lock();
        let second = leaf.lock();
        assert_eq!(*first + *second, 3);
    }

    #[test]
    #[cfg(debug_assertions)]
    fn falling_ranks_panic_with_both_names() {
        let result = std::panic::catch_unwind(|| {
            let device = RankedMutex::new(rank::DEVICE, "device", ());
            let leaf = RankedMutex::new(rank::LEAF, "leaf", ());
            let _leaf = leaf.lock();
            let _device = device.lock();
        });
        let message = *result.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("device") && message.contains("leaf"), "{message}");
    }
}
