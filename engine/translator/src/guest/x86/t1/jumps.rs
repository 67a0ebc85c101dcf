//! Jump caches: where translated code finds the code of an offset in CS by itself. What is in one is true without further
//! looks: what is not any more is taken out before translated code runs again.
//!
//! There is a table for each mode's key. Those of ring 0 hold for all address spaces, for kernels are mapped in all of them:
//! only what lies in pages that are not global goes when another one is entered. Those of ring 3 are of one address space; a
//! few are kept beside the current one's, so that processes that take turns find theirs again.
//!
//! What none of them knows is looked for by its place in host memory, which is the same for all address spaces
//! ([`JumpCaches::find_place`]), and only then in the table that all vCPUs share.
//!
//! # Returns
//! They ask here like all indirect transfers. The other way was built and measured on a Zen 4 host: a mirror of the guest's calls
//! on the host's stack, 16,384 frames of a return address and a host CALL's own, so that a RET of the host's returns to a landing
//! that compares the guest's address and the mode's key. It was exact, but it did not pay: with tier 1 alone the benchmarks'
//! `calls`, which are deep, took 1.20 times the processor time (medians of three runs, 0.395 s and 0.330 s; five other runs said
//! the same). Whatever else was tried (`python` 1.10, `sqlite` 0.96, `openssl` 0.91, `pipes` 0.87, …) stayed within what
//! single runs differ by on the busy machine of that day. Neither way is shorter, for what a look-up computes and polls the
//! other way spends on frames, their limit and two comparisons; and the host seems to know where the jump of a look-up goes as
//! well as where a RET does, or better, when calls are deeper than its return
//! stack. RET shares its look at the TLB with the POPs before it instead.

use super::CLASS;
use super::KEYS;
use crate::guest::x86::trace::Epochs;
use crate::mmu::class;

/// Entries of a table.
pub(super) const JUMPS: usize = 1 << 14;
/// Entries of the table by place.
const PLACES: usize = 1 << 16;
/// Address spaces whose tables are kept.
const BANKS: usize = 8;

/// An offset in CS, and the code of the block there. Entries that hold nothing have an offset that belongs elsewhere.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Jump {
    pub rip: u64,
    pub code: u64,
}

/// The slot of an offset; translated code computes the same ([`super::emit::Emitter::look_up`]), or knows it
/// ([`super::emit::Emitter::look_up_at`]).
pub(super) fn slot(rip: u64) -> usize {
    (rip as u32 ^ rip as u32 >> 12) as usize % JUMPS
}

/// Tables, with what has been filled.
struct Bank {
    /// `[rip, code]`, as [`Jump`] has it: zeroes cost the host nothing until they are written.
    tables: Vec<[u64; 2]>,
    /// Places of entries that lie in pages of this address space, and of others.
    local: Vec<u32>,
    global: Vec<u32>,
    /// Ring 3: the epoch of the address space.
    epoch: u64,
}

impl Bank {
    fn new(tables: usize) -> Self {
        let mut bank = Self { tables: vec![[0; 2]; tables * JUMPS], local: Vec::new(), global: Vec::new(), epoch: 0 };
        for first in bank.tables.iter_mut().step_by(JUMPS) {
            *first = empty(0);
        }
        bank
    }

    fn forget_local(&mut self) {
        for at in self.local.drain(..) {
            self.tables[at as usize] = empty(at as usize % JUMPS);
        }
    }

    fn forget(&mut self) {
        self.forget_local();
        for at in self.global.drain(..) {
            self.tables[at as usize] = empty(at as usize % JUMPS);
        }
    }
}

/// An entry that matches nothing: offset 0 belongs to slot 0, offset 1 to slot 1.
fn empty(slot: usize) -> [u64; 2] {
    [u64::from(slot == 0), 0]
}

/// The jump caches of one vCPU.
pub(super) struct JumpCaches {
    kernel: Bank,
    users: Vec<Bank>,
    /// Whose turn it is to be replaced.
    victim: usize,
    current: usize,
    /// `[place, code]` of blocks, which check themselves whether they are fresh.
    places: Vec<[u64; 2]>,
    /// For which everything holds.
    epochs: Epochs,
}

impl JumpCaches {
    /// Tables for so many keys.
    pub fn new(keys: usize) -> Self {
        let users = (0..if keys == 0 { 0 } else { BANKS }).map(|_| Bank::new(keys.div_ceil(class::COUNT))).collect();
        let places = vec![[0; 2]; if keys == 0 { 0 } else { PLACES }];
        Self { kernel: Bank::new(keys), users, victim: 0, current: 0, places, epochs: Epochs::default() }
    }

    /// Where each key's table begins. They never move, but [`JumpCaches::enter`] may choose others.
    pub fn tables(&mut self) -> [*mut Jump; KEYS] {
        std::array::from_fn(|key| {
            let (bank, number) = match is_user(key as u8) {
                true => (self.users.get_mut(self.current), key / class::COUNT),
                false => (Some(&mut self.kernel), key),
            };
            bank.map_or(std::ptr::null_mut(), |bank| bank.tables.as_mut_ptr().wrapping_add(number * JUMPS).cast())
        })
    }

    /// The epochs that hold now: takes out what does not hold any more. Says whether [`JumpCaches::tables`] are others.
    pub fn enter(&mut self, epochs: Epochs) -> bool {
        if epochs == self.epochs {
            return false;
        }
        if epochs.global != self.epochs.global {
            self.kernel.forget();
        } else {
            self.kernel.forget_local();
        }
        self.epochs = epochs;
        self.current = match self.users.iter().position(|bank| bank.epoch == epochs.local) {
            Some(bank) => bank,
            None => {
                self.victim = (self.victim + 1) % BANKS;
                self.victim
            }
        };
        if let Some(bank) = self.users.get_mut(self.current)
            && bank.epoch != epochs.local
        {
            bank.forget();
            bank.epoch = epochs.local;
        }
        true
    }

    /// Forgets everything.
    pub fn forget_all(&mut self) {
        self.kernel.forget();
        self.users.iter_mut().for_each(Bank::forget);
        self.places.fill([0; 2]);
    }

    /// The code of the block at a place: a host address and a mode, see [`super::block::block_key`].
    #[inline]
    pub fn find_place(&self, place: u64) -> Option<u64> {
        let [known, code] = *self.places.get(place_slot(place))?;
        (known == place).then_some(code)
    }

    /// Enters the code of the block at a place.
    pub fn remember_place(&mut self, place: u64, code: u64) {
        if let Some(entry) = self.places.get_mut(place_slot(place)) {
            *entry = [place, code];
        }
    }

    /// The code of an offset, if it is known.
    #[inline]
    pub fn find(&self, key: u8, rip: u64) -> Option<u64> {
        let (bank, first) = match is_user(key) {
            true => (self.users.get(self.current)?, usize::from(key) / class::COUNT * JUMPS),
            false => (&self.kernel, usize::from(key) * JUMPS),
        };
        let [known, code] = *bank.tables.get(first + slot(rip))?;
        (known == rip).then_some(code)
    }

    /// Enters the code of an offset; `global`: whatever address space is entered, it holds.
    pub fn remember(&mut self, key: u8, rip: u64, code: u64, global: bool) {
        let (bank, first) = match is_user(key) {
            true => (&mut self.users[self.current], usize::from(key) / class::COUNT * JUMPS),
            false => (&mut self.kernel, usize::from(key) * JUMPS),
        };
        let at = first + slot(rip);
        // What replaces an entry of the other kind may be logged as both: being forgotten too often does no harm.
        if bank.tables[at][1] == 0 || !global {
            if bank.local.len() >= bank.tables.len() {
                bank.forget();
            }
            if global { &mut bank.global } else { &mut bank.local }.push(at as u32);
        }
        bank.tables[at] = [rip, code];
    }
}

fn place_slot(place: u64) -> usize {
    (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % PLACES
}

fn is_user(key: u8) -> bool {
    key & CLASS == class::USER
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmu::class::{SUPERVISOR, USER};

    fn epochs(local: u64, global: u64) -> Epochs {
        Epochs { local, global }
    }

    #[test]
    fn address_spaces_that_take_turns_keep_their_own_entries() {
        let mut jumps = JumpCaches::new(KEYS);
        jumps.enter(epochs(1, 100));
        jumps.remember(USER, 0x1000, 11, false);
        jumps.enter(epochs(2, 100));
        assert_eq!(jumps.find(USER, 0x1000), None);
        jumps.remember(USER, 0x1000, 22, false);
        jumps.enter(epochs(1, 100));
        assert_eq!(jumps.find(USER, 0x1000), Some(11));
        for other in 3..20 {
            jumps.enter(epochs(other, 100));
            assert_eq!(jumps.find(USER, 0x1000), None);
        }
        jumps.enter(epochs(1, 100));
        assert_eq!(jumps.find(USER, 0x1000), None, "somebody else has its place");
    }

    #[test]
    fn kernel_entries_in_global_pages_outlive_address_spaces_but_not_global_epochs() {
        let mut jumps = JumpCaches::new(KEYS);
        jumps.enter(epochs(1, 100));
        jumps.remember(SUPERVISOR, 0x1000, 11, true);
        jumps.remember(SUPERVISOR, 0x2000, 22, false);
        jumps.enter(epochs(2, 100));
        assert_eq!((jumps.find(SUPERVISOR, 0x1000), jumps.find(SUPERVISOR, 0x2000)), (Some(11), None));
        jumps.enter(epochs(2, 101));
        assert_eq!(jumps.find(SUPERVISOR, 0x1000), None);
    }

    #[test]
    fn offset_0_is_not_found_in_an_empty_table() {
        let mut jumps = JumpCaches::new(KEYS);
        assert_eq!((jumps.find(SUPERVISOR, 0), jumps.find(USER, 0)), (None, None));
        jumps.remember(SUPERVISOR, 0, 5, false);
        assert_eq!(jumps.find(SUPERVISOR, 0), Some(5));
        jumps.forget_all();
        assert_eq!(jumps.find(SUPERVISOR, 0), None);
    }
}
