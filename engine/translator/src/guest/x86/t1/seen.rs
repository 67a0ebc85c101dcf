//! Where indirect jumps have led lately: a ring that blocks write to as they jump, for the optimising tier, which takes the
//! frequent targets into its regions. It only hints: regions compare targets before they go there.

use crate::mmu::PAGE_MASK;
use std::collections::BTreeMap;

/// Jumps that are remembered: as many as a byte counts.
const JUMPS: usize = 256;
/// Most targets of one jump.
const MOST: usize = 8;

/// The ring of one vCPU.
#[repr(C)]
pub(crate) struct Seen {
    /// The lower half of each jump's target, and the jump's place in its page.
    pub jumps: [[u32; 2]; JUMPS],
    /// Where the next one goes.
    pub next: u8,
}

impl Default for Seen {
    fn default() -> Self {
        Self { jumps: [[0; 2]; JUMPS], next: 0 }
    }
}

impl Seen {
    /// The targets in the page at an offset in CS by the places of the jumps that led there, the frequent ones first.
    pub fn targets(&self, page: u64) -> BTreeMap<u32, Vec<u64>> {
        let mut counts: BTreeMap<u32, BTreeMap<u64, usize>> = BTreeMap::new();
        let mask = PAGE_MASK as u32;
        for [target, jump] in self.jumps.iter().filter(|[target, _]| target & mask == page as u32 & mask) {
            *counts.entry(*jump).or_default().entry(page | u64::from(target & !mask)).or_default() += 1;
        }
        let by_count = |targets: BTreeMap<u64, usize>| {
            let mut targets: Vec<(u64, usize)> = targets.into_iter().collect();
            targets.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            targets.into_iter().map(|(target, _)| target).take(MOST).collect()
        };
        counts.into_iter().map(|(jump, targets)| (jump, by_count(targets))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_targets_in_the_page_come_first_and_others_not_at_all() {
        let mut seen = Seen::default();
        let jumps = [(0x1010, 8), (0x1020, 8), (0x1020, 8), (0x2010, 8), (0x1ff0, 0x44)];
        for (at, (target, jump)) in jumps.into_iter().enumerate() {
            seen.jumps[at] = [target, jump];
        }
        let found = seen.targets(0xffff_0000_0000_1000);
        let wanted = [(8, vec![0xffff_0000_0000_1020, 0xffff_0000_0000_1010]), (0x44, vec![0xffff_0000_0000_1ff0])];
        assert_eq!(found, BTreeMap::from(wanted));
    }
}
