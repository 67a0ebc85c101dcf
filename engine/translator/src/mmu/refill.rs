//! What a stub in translated code must know to refill the first level of the TLB from the second without Rust: where tables and
//! fields lie, and which rights of a page are enough. The stub is in `host/x64/refill.rs`; whatever it does not find, or may
//! not decide, `slow.rs` does.

use super::l2::{self, right};
use super::walk::allows;
use super::{Access, slow, tlb};
use crate::guest::x86::cpu::{cr0, cr4};
use engine_memory::PageFlags;

pub(crate) use l2::layout as second;
pub(crate) use slow::layout as physical;
pub(crate) use tlb::{LARGE_SHIFTS, layout as first};

/// The rights that [`Enough`] is asked about, and the one that says that a page survives CR3 loads.
pub(crate) const RIGHTS: u8 = right::MASK;
pub(crate) const GLOBAL: u8 = right::GLOBAL;
/// Flags of a page to which writes do not go past the slow path, and those that a page gets when it is entered for writing.
pub(crate) const NOT_WRITTEN_PAST: u8 = PageFlags::WATCHED | PageFlags::TRANSLATED;
pub(crate) const ENTERED: u8 = PageFlags::WRITTEN | PageFlags::DRAWN_ON;

/// For each kind of access (twice its class, plus one for writes): bit `n` says that a page with the rights `n` may be entered for it.
pub(crate) type Enough = [u8; 2 * tlb::class::COUNT];

/// Nothing is ever enough.
pub(crate) const NEVER_ENOUGH: Enough = [0; 2 * tlb::class::COUNT];

/// What is enough under these control registers.
pub(crate) const fn enough(cr0: u64, cr4: u64) -> Enough {
    ENOUGH[(cr0 & cr0::WP != 0) as usize + 2 * (cr4 & cr4::SMAP != 0) as usize]
}

const ENOUGH: [Enough; 4] = [of(0, 0), of(cr0::WP, 0), of(0, cr4::SMAP), of(cr0::WP, cr4::SMAP)];

const fn of(cr0: u64, cr4: u64) -> Enough {
    let mut enough = NEVER_ENOUGH;
    let mut rights = 0;
    while rights <= RIGHTS {
        let leaf = l2::leaf(0, rights, 12);
        let mut class = 0;
        // Accesses that check alignment are never entered.
        while class < tlb::class::USER_ALIGNED {
            let reads = allows(cr0, cr4, class, Access::Read, &leaf);
            let writes = leaf.dirty && allows(cr0, cr4, class, Access::Write, &leaf);
            enough[2 * class as usize] |= (reads as u8) << rights;
            enough[2 * class as usize + 1] |= (writes as u8) << rights;
            class += 1;
        }
        rights += 1;
    }
    enough
}

#[cfg(test)]
mod tests {
    use super::*;
    use tlb::class::{SUPERVISOR, SUPERVISOR_AC, USER};

    #[test]
    fn a_page_is_entered_for_what_its_rights_allow() {
        let all = right::USER | right::WRITABLE | right::DIRTY;
        let cases = [
            (USER, false, right::USER, 0, 0, true),
            (USER, false, right::WRITABLE, 0, 0, false),
            (USER, true, all, 0, 0, true),
            (USER, true, all & !right::DIRTY, 0, 0, false),
            (USER, true, all & !right::WRITABLE, 0, 0, false),
            (SUPERVISOR, true, right::DIRTY, 0, 0, true),
            (SUPERVISOR, true, right::DIRTY, cr0::WP, 0, false),
            (SUPERVISOR, false, all, cr0::WP, 0, true),
            (SUPERVISOR, false, all, cr0::WP, cr4::SMAP, false),
            (SUPERVISOR_AC, false, all, cr0::WP, cr4::SMAP, true),
            (tlb::class::USER_ALIGNED, false, all, 0, 0, false),
        ];
        for (class, write, rights, cr0, cr4, entered) in cases {
            let enough = enough(cr0, cr4)[2 * usize::from(class) + usize::from(write)];
            assert_eq!(enough >> rights & 1 != 0, entered, "class {class}, write {write}, rights {rights:03b}");
        }
    }
}
