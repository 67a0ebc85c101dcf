//! Chaos mode: what is rare in life happens all the time, so that tests meet it. Nothing of it changes what guest code
//! computes; whoever runs a test under it compares with a run without.
//!
//! * instructions that have a translation are left to the interpreter, so that each way into and out of it is used behind each
//!   instruction;
//! * whatever the interpreter is called for, translated code is left behind it, as if attention were wanted;
//! * code is called stale that is not; memory for code is replaced that is not full;
//! * the TLB holds one page, or loses all it holds.
//!
//! Chances are in 256. All come from one seed for each vCPU, so a run of one vCPU without a clock is repeatable.

/// What may happen at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chaos {
    /// Where the random numbers start.
    pub seed: u64,
    /// An instruction that could be translated is left to the interpreter.
    pub bails: u8,
    /// Translated code is left behind an instruction that the interpreter executed.
    pub exits: u8,
    /// The block's page is said to have been written to, behind an instruction that the interpreter executed.
    pub stale_pages: u8,
    /// The TLB is emptied, behind an instruction that the interpreter executed.
    pub flushes: u8,
    /// A page entered into the TLB drives all others out.
    pub one_entry: u8,
    /// Memory for code is replaced when something is translated.
    pub replacements: u8,
}

impl Chaos {
    /// A mixture of everything that still gets somewhere.
    pub fn from_seed(seed: u64) -> Self {
        Self { seed, bails: 64, exits: 24, stale_pages: 6, flushes: 24, one_entry: 128, replacements: 1 }
    }

    /// Memory for code that a whole guest soon fills.
    pub const CODE_BYTES_OF_GUESTS: usize = 4 << 20;

    /// A mixture under which a whole guest boots, some ten times slower than without.
    pub fn of_guests(seed: u64) -> Self {
        Self { seed, bails: 16, exits: 6, stale_pages: 1, flushes: 4, one_entry: 24, replacements: 0 }
    }
}

/// A vCPU's dice.
pub(crate) struct Dice {
    pub chances: Chaos,
    state: u64,
}

impl Dice {
    /// The dice of vCPU `index`.
    pub fn new(chances: Chaos, index: u32) -> Self {
        Self { chances, state: chances.seed ^ u64::from(index) << 40 }
    }

    /// Whether something of this chance happens now.
    pub fn fall(&mut self, chance: u8) -> bool {
        // SplitMix64.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) as u8) < chance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dice_fall_as_often_as_they_should() {
        let mut dice = Dice::new(Chaos::from_seed(7), 0);
        let falls = (0..100_000).filter(|_| dice.fall(64)).count();
        assert!((24_000..26_000).contains(&falls), "{falls}");
        assert!(!(0..1000).any(|_| dice.fall(0)));
    }
}
