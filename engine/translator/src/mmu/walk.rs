//! The page walk: linear to physical addresses in every paging mode, with all checks (Intel SDM volume 3, chapter 4).
//! Accessed and dirty bits are set only when the access is allowed, by an atomic compare-and-exchange on the entry.

use super::l2::Leaf;
use super::{Access, Extent, PAGE_MASK, class};
use crate::guest::x86::access::Word;
use crate::guest::x86::cpu::{Cpu, cr0, cr4, efer};
use crate::guest::x86::fault::{Stop, vector};
use crate::watch::tally::Happening;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Physical address bits (CPUID leaf 8000_0008h).
pub(crate) const PHYSICAL_BITS: u32 = 40;

/// Bits of paging-structure entries.
mod entry {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITABLE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const LARGE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    pub const NO_EXECUTE: u64 = 1 << 63;
    /// Address bits of an 8-byte entry, before the reserved ones are looked at.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// Bits of a page fault's error code.
mod error {
    pub const PRESENT: u16 = 1 << 0;
    pub const WRITE: u16 = 1 << 1;
    pub const USER: u16 = 1 << 2;
    pub const RESERVED: u16 = 1 << 3;
    pub const FETCH: u16 = 1 << 4;
}

/// Address bits at and above [`PHYSICAL_BITS`], reserved in every entry.
const BEYOND_PHYSICAL: u64 = 0x000f_ffff_ffff_ffff & !((1 << PHYSICAL_BITS) - 1);

/// What a walk found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Translation {
    /// Physical address (A20 applied).
    pub physical: u64,
    /// Whether writes of the same class would succeed without a further walk: allowed, and the dirty bit is set.
    pub write: bool,
    /// The page it is in.
    pub extent: Extent,
}

/// A level of the walk so far: where its entry is, what it held.
#[derive(Clone, Copy, Default)]
struct Step {
    at: u64,
    value: u64,
}

/// Rights gathered on the way down.
struct Rights {
    writable: bool,
    user: bool,
    no_execute: bool,
}

enum Found {
    /// The leaf: the physical address of the byte, and log2 of the page's size.
    Page(u64, u8),
    NotPresent,
    Reserved,
}

impl Cpu {
    /// Translates a linear address (canonical, or 32 bits) for an access of `class`; sets accessed and dirty bits.
    pub(crate) fn translate(&mut self, class: u8, linear: u64, access: Access) -> Result<Translation, Stop> {
        if !self.is_paged() {
            let physical = linear & self.fabric.a20_mask.load(Ordering::Relaxed);
            return Ok(Translation { physical, write: true, extent: Extent { global: false, shift: 12 } });
        }
        // What the second level does not allow is looked up again: the guest may have given rights without telling.
        let known = self.second_level.find(linear);
        if let Some(leaf) = known
            && (access != Access::Write || leaf.dirty)
            && self.allows(class, access, &leaf)
        {
            return Ok(self.translation(class, linear, &leaf));
        }
        self.shared.tally.count(Happening::Walked);
        let leaf = match self.walk(class, linear, access) {
            Ok(leaf) => leaf,
            Err(stop) => {
                // A page fault takes what is known of the page with it (SDM volume 3, 4.10.4.1).
                self.forget_faulted(linear);
                return Err(stop);
            }
        };
        self.second_level.fill(linear, leaf);
        Ok(self.translation(class, linear, &leaf))
    }

    fn translation(&self, class: u8, linear: u64, leaf: &Leaf) -> Translation {
        let a20 = self.fabric.a20_mask.load(Ordering::Relaxed);
        Translation {
            physical: (leaf.physical | linear & !PAGE_MASK) & a20,
            write: leaf.dirty && self.allows(class, Access::Write, leaf),
            extent: Extent { global: leaf.global, shift: leaf.shift },
        }
    }

    fn walk(&mut self, class: u8, linear: u64, access: Access) -> Result<Leaf, Stop> {
        loop {
            let mut steps = [Step::default(); 4];
            let mut depth = 0;
            let mut rights = Rights { writable: true, user: true, no_execute: false };
            let found = if self.cr4 & cr4::PAE == 0 {
                self.walk_two_levels(linear, &mut steps, &mut depth, &mut rights)
            } else {
                self.walk_long_entries(linear, &mut steps, &mut depth, &mut rights)
            };
            let (physical, shift) = match found {
                Found::Page(physical, shift) => (physical, shift),
                Found::NotPresent => return Err(self.page_fault(class, linear, access, 0)),
                Found::Reserved => return Err(self.page_fault(class, linear, access, error::PRESENT | error::RESERVED)),
            };
            let last = steps[depth - 1].value;
            let leaf = Leaf {
                physical: physical & PAGE_MASK,
                writable: rights.writable,
                user: rights.user,
                no_execute: rights.no_execute,
                dirty: access == Access::Write || last & entry::DIRTY != 0,
                global: last & entry::GLOBAL != 0 && self.cr4 & cr4::PGE != 0,
                shift,
            };
            if !self.allows(class, access, &leaf) {
                return Err(self.page_fault(class, linear, access, error::PRESENT));
            }
            if self.mark_used(&steps[..depth], access) {
                return Ok(leaf);
            }
            // Another CPU changed an entry under us.
        }
    }

    fn walk_two_levels(&mut self, linear: u64, steps: &mut [Step; 4], depth: &mut usize, rights: &mut Rights) -> Found {
        let directory = (self.cr3 & 0xffff_f000) | (linear >> 22 & 0x3ff) << 2;
        let pde = self.read_entry::<u32>(directory);
        steps[0] = Step { at: directory, value: pde };
        *depth = 1;
        if pde & entry::PRESENT == 0 {
            return Found::NotPresent;
        }
        rights.add(pde);
        if pde & entry::LARGE != 0 && self.cr4 & cr4::PSE != 0 {
            // PSE-36: bits 13–20 are bits 32–39 of the page; bit 21 is reserved.
            if pde & 1 << 21 != 0 {
                return Found::Reserved;
            }
            return Found::Page((pde & 0xffc0_0000) | (pde >> 13 & 0xff) << 32 | linear & 0x3f_ffff, 22);
        }
        let table = (pde & 0xffff_f000) | (linear >> 12 & 0x3ff) << 2;
        let pte = self.read_entry::<u32>(table);
        steps[1] = Step { at: table, value: pte };
        *depth = 2;
        if pte & entry::PRESENT == 0 {
            return Found::NotPresent;
        }
        rights.add(pte);
        Found::Page((pte & 0xffff_f000) | linear & 0xfff, 12)
    }

    fn walk_long_entries(&mut self, linear: u64, steps: &mut [Step; 4], depth: &mut usize, rights: &mut Rights) -> Found {
        let no_execute_reserved = if self.msr.efer & efer::NXE == 0 { entry::NO_EXECUTE } else { 0 };
        let mut reserved = BEYOND_PHYSICAL | no_execute_reserved;
        let (mut table, mut shift) = if self.is_long() {
            (self.cr3 & entry::ADDRESS, 39)
        } else {
            let pdpte = self.pdptes[(linear >> 30 & 3) as usize];
            if pdpte & entry::PRESENT == 0 {
                return Found::NotPresent;
            }
            // Outside long mode bits 52–62 are reserved too.
            reserved |= 0x7ff0_0000_0000_0000;
            (pdpte & entry::ADDRESS, 21)
        };
        loop {
            let at = table | (linear >> shift & 0x1ff) << 3;
            let value = self.read_entry::<u64>(at);
            steps[*depth] = Step { at, value };
            *depth += 1;
            if value & entry::PRESENT == 0 {
                return Found::NotPresent;
            }
            if value & reserved != 0 || (shift == 39 && value & entry::LARGE != 0) {
                return Found::Reserved;
            }
            rights.add(value);
            let leaf = shift == 12 || (shift != 39 && value & entry::LARGE != 0);
            if leaf {
                let inside = (1u64 << shift) - 1;
                // Between the PAT bit (12) and the page's first address bit, large pages have reserved bits.
                if shift > 12 && value & inside & !0x1fff != 0 {
                    return Found::Reserved;
                }
                return Found::Page(value & entry::ADDRESS & !inside | linear & inside, shift as u8);
            }
            table = value & entry::ADDRESS;
            shift -= 9;
        }
    }

    fn allows(&self, class: u8, access: Access, rights: &Leaf) -> bool {
        allows(self.cr0, self.cr4, class, access, rights)
    }

    fn page_fault(&mut self, class: u8, linear: u64, access: Access, mut code: u16) -> Stop {
        match access {
            Access::Read => {}
            Access::Write => code |= error::WRITE,
            Access::Execute => {
                let tells = self.cr4 & cr4::SMEP != 0 || (self.cr4 & cr4::PAE != 0 && self.msr.efer & efer::NXE != 0);
                code |= if tells { error::FETCH } else { 0 };
            }
        }
        if class == class::USER || class == class::USER_ALIGNED {
            code |= error::USER;
        }
        self.fault_address = linear;
        Stop::with_error(vector::PF, code)
    }

    /// Sets accessed bits on the way and the dirty bit of the leaf. Says `false` when an entry is no longer what was read.
    fn mark_used(&mut self, steps: &[Step], access: Access) -> bool {
        let wide = self.cr4 & cr4::PAE != 0;
        for (level, step) in steps.iter().enumerate() {
            let leaf = level + 1 == steps.len();
            let wanted = entry::ACCESSED | if leaf && access == Access::Write { entry::DIRTY } else { 0 };
            if step.value & wanted == wanted {
                continue;
            }
            let page = self.physical_page(step.at);
            if page.write.is_null() {
                continue; // Tables in ROM or nowhere keep their bits.
            }
            let inside = (step.at & !PAGE_MASK) as usize;
            let at = page.write.wrapping_add(inside);
            let (old, new) = (step.value, step.value | wanted);
            let unchanged = if wide {
                // SAFETY: `at` is inside a held block and 8-byte aligned: the page is aligned and entries are at multiples of 8.
                let cell = unsafe { AtomicU64::from_ptr(at.cast()) };
                cell.compare_exchange(old.to_le(), new.to_le(), Ordering::SeqCst, Ordering::Relaxed).is_ok()
            } else {
                // SAFETY: as above, with multiples of 4.
                let cell = unsafe { AtomicU32::from_ptr(at.cast()) };
                cell.compare_exchange((old as u32).to_le(), (new as u32).to_le(), Ordering::SeqCst, Ordering::Relaxed).is_ok()
            };
            if !unchanged {
                return false;
            }
            self.note_physical_write(&page, inside as u64, if wide { 8 } else { 4 });
        }
        true
    }

    /// Reads a paging-structure entry; where no memory answers, the bus floats high.
    fn read_entry<T: Word>(&mut self, at: u64) -> u64
    where
        u64: From<T>,
    {
        let at = at & self.fabric.a20_mask.load(Ordering::Relaxed);
        let page = self.physical_page(at);
        if page.read.is_null() {
            return u64::from(T::low(u128::MAX));
        }
        // SAFETY: the page is in a held block, and entries do not cross pages.
        u64::from(unsafe { T::load(page.read.wrapping_add((at & !PAGE_MASK) as usize)) })
    }

    /// PAE paging: reads the four page-directory pointers of `cr3`. #GP(0) when a present one has reserved bits set; then
    /// nothing is latched.
    pub(crate) fn load_pdptes(&mut self, cr3: u64) -> Result<(), Stop> {
        let table = cr3 & 0xffff_ffe0;
        let mut loaded = [0; 4];
        for (number, pdpte) in loaded.iter_mut().enumerate() {
            *pdpte = self.read_entry::<u64>(table + number as u64 * 8);
            // Bits 1–2, 5–8 and 52–63 are reserved.
            if *pdpte & entry::PRESENT != 0 && *pdpte & (0xfff0_0000_0000_01e6 | BEYOND_PHYSICAL) != 0 {
                return Err(Stop::gp(0));
            }
        }
        self.pdptes = loaded;
        Ok(())
    }

    /// Which class ordinary accesses belong to now.
    pub(crate) fn current_tlb_class(&self) -> u8 {
        use crate::guest::x86::flags::bit;
        let ac = self.flags.has(bit::AC);
        if self.cpl == 3 {
            if ac && self.cr0 & cr0::AM != 0 { class::USER_ALIGNED } else { class::USER }
        } else if ac && self.cr4 & cr4::SMAP != 0 {
            class::SUPERVISOR_AC
        } else {
            class::SUPERVISOR
        }
    }
}

impl Rights {
    fn add(&mut self, value: u64) {
        self.writable &= value & entry::WRITABLE != 0;
        self.user &= value & entry::USER != 0;
        self.no_execute |= value & entry::NO_EXECUTE != 0;
    }
}

/// Whether a page's rights allow an access under these control registers.
pub(super) const fn allows(cr0: u64, cr4: u64, class: u8, access: Access, rights: &Leaf) -> bool {
    if class == class::USER || class == class::USER_ALIGNED {
        return rights.user
            && match access {
                Access::Read => true,
                Access::Write => rights.writable,
                Access::Execute => !rights.no_execute,
            };
    }
    match access {
        Access::Execute if rights.user && cr4 & cr4::SMEP != 0 => false,
        Access::Execute => !rights.no_execute,
        _ if rights.user && cr4 & cr4::SMAP != 0 && class != class::SUPERVISOR_AC => false,
        Access::Read => true,
        Access::Write => rights.writable || cr0 & cr0::WP == 0,
    }
}
