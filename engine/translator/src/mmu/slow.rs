//! Accesses that are not plain: exact segment checks, TLB misses, page crossings, devices, the local APIC's page, ROM, watched
//! pages, pages that hold decoded code, alignment checks and data breakpoints.

use super::{Access, PAGE_MASK, class};
use crate::guest::x86::access::{Word, last_page};
use crate::guest::x86::cpu::{Cpu, is_canonical, seg};
use crate::guest::x86::fault::{Exec, Stop, vector};
use crate::guest::x86::paravirt;
use crate::watch::tally::Happening;
use engine_memory::{Block, PAGE_BYTES, PageFlags, PageState};
use std::sync::atomic::{Ordering, fence};

/// What answers at a physical page. Null pointers stand for "no memory" (`read`) and "writes are ignored" (`write`).
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct PhysicalPage {
    tag: u64,
    /// Host address of the page's first byte.
    pub read: *const u8,
    /// State of the page that reads come from.
    pub read_state: *const PageState,
    /// Where writes go.
    pub write: *mut u8,
    /// State of the page that writes go to.
    pub write_state: *const PageState,
}

const NOTHING: PhysicalPage = PhysicalPage {
    tag: 1,
    read: std::ptr::null(),
    read_state: std::ptr::null(),
    write: std::ptr::null_mut(),
    write_state: std::ptr::null(),
};

const SLOTS: usize = 4096;

/// A cache of what the physical address space holds, so that a TLB miss does not search the layout: a page is in the slot of
/// its number's lower bits.
pub(crate) struct PhysicalPages {
    slots: Box<[PhysicalPage; SLOTS]>,
}

/// What code that is made at run time must know of it.
pub(crate) mod layout {
    use super::{PhysicalPage, PhysicalPages};
    use std::mem::offset_of;
    pub const SLOTS: usize = super::SLOTS;
    pub const SLOT_BYTES: usize = size_of::<PhysicalPage>();
    pub const TAG: usize = offset_of!(PhysicalPage, tag);
    pub const READ: usize = offset_of!(PhysicalPage, read);
    pub const WRITE: usize = offset_of!(PhysicalPage, write);
    pub const WRITE_STATE: usize = offset_of!(PhysicalPage, write_state);
    /// The pointer to the slots, from the start of [`PhysicalPages`].
    pub const SLOTS_AT: usize = offset_of!(PhysicalPages, slots);
}

// SAFETY: the pointers lead into blocks that the owning CPU holds; they are used by whichever thread runs that CPU.
unsafe impl Send for PhysicalPages {}

impl PhysicalPages {
    pub fn new() -> Self {
        Self { slots: super::boxed(NOTHING) }
    }

    pub fn forget(&mut self) {
        self.slots.fill(NOTHING);
    }

    /// Memory that is read and written at the page of `physical`.
    #[cfg(test)]
    pub fn put(&mut self, physical: u64, page: *mut u8, state: *const PageState) {
        let tag = physical & PAGE_MASK;
        self.slots[(tag >> 12) as usize % SLOTS] =
            PhysicalPage { tag, read: page, read_state: state, write: page, write_state: state };
    }
}

impl Cpu {
    /// What answers at the page of `physical`.
    pub(crate) fn physical_page(&mut self, physical: u64) -> PhysicalPage {
        let tag = physical & PAGE_MASK;
        let slot = (tag >> 12) as usize % SLOTS;
        if self.physical_pages.slots[slot].tag == tag {
            return self.physical_pages.slots[slot];
        }
        let mut page = PhysicalPage { tag, ..NOTHING };
        if let Some(place) = self.fabric.memory.find(tag) {
            let hold = |block: &Block, offset: u64| {
                let state = block.page(offset / PAGE_BYTES).map_or(std::ptr::null(), |state| state as *const PageState);
                (block.host_address(offset), state)
            };
            let (read, read_state) = hold(&place.read.0, place.read.1);
            (page.read, page.read_state) = (read.cast_const(), read_state);
            self.hold(&place.read.0);
            if let Some((block, offset)) = &place.write {
                (page.write, page.write_state) = hold(block, *offset);
                self.hold(block);
            }
        }
        self.physical_pages.slots[slot] = page;
        page
    }

    /// Keeps a block alive as long as this CPU lives: host addresses into it are cached.
    fn hold(&mut self, block: &Block) {
        if !self.held_blocks.iter().any(|held| held.is(block)) {
            self.held_blocks.push(block.clone());
        }
    }

    /// The exact segment check, for what the span could not decide. Never for 64-bit code.
    #[cold]
    pub(crate) fn check_segment_slowly(&mut self, number: u8, offset: u64, bytes: u64, access: Access) -> Result<u64, Stop> {
        let segment = self.segments[usize::from(number) % 6];
        let fault = Err(if number == seg::SS { Stop::ss(0) } else { Stop::gp(0) });
        let kind = segment.kind();
        let (code, expand_down) = (kind & 8 != 0, kind & 0xc == 4);
        if !self.uses_paragraphs() {
            let allowed = match access {
                Access::Write => !code && kind & 2 != 0,
                Access::Read | Access::Execute => !code || kind & 2 != 0,
            };
            if !segment.is_present() || !allowed {
                return fault;
            }
        }
        let limit = u64::from(segment.limit);
        let last = offset + (bytes - 1);
        let inside = if expand_down {
            let top = if segment.is_big() { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top
        } else {
            last <= limit
        };
        if inside { Ok(segment.base.wrapping_add(offset) & self.linear_mask) } else { fault }
    }

    /// What every slow access checks first.
    fn check_linear(&mut self, class: u8, segment: u8, linear: u64, bytes: u64) -> Exec {
        if self.is_long() && !(is_canonical(linear) && is_canonical(linear.wrapping_add(bytes - 1))) {
            return Err(if segment == seg::SS { Stop::ss(0) } else { Stop::gp(0) });
        }
        // No more than 16 bytes of alignment are asked for.
        if class == class::USER_ALIGNED && bytes.is_power_of_two() && bytes <= 32 && linear & (bytes.min(16) - 1) != 0 {
            return Err(Stop::with_error(vector::AC, 0));
        }
        Ok(())
    }

    /// A read that the TLB could not do.
    #[cold]
    pub(crate) fn read_slowly<T: Word>(&mut self, class: u8, segment: u8, linear: u64) -> Result<T, Stop> {
        if let Some(value) = self.read_crossing(class, linear) {
            return Ok(value);
        }
        self.check_linear(class, segment, linear, T::BYTES)?;
        self.note_breakpoints(linear, T::BYTES, Access::Read);
        if last_page(linear, T::BYTES) == linear & PAGE_MASK {
            let physical = self.enter(class, linear, Access::Read)?;
            return Ok(T::low(self.read_physical::<T>(physical)));
        }
        let (first, second, split) = self.translate_crossing(class, linear, T::BYTES, Access::Read)?;
        let mut value = 0u128;
        for at in 0..T::BYTES {
            let physical = if at < split { first + at } else { second + (at - split) };
            value |= self.read_physical::<u8>(physical) << (8 * at);
        }
        Ok(T::low(value))
    }

    /// A write that the TLB could not do.
    #[cold]
    pub(crate) fn write_slowly<T: Word>(&mut self, class: u8, segment: u8, linear: u64, value: T) -> Exec {
        if self.write_crossing(class, linear, value).is_some() {
            return Ok(());
        }
        self.check_linear(class, segment, linear, T::BYTES)?;
        self.note_breakpoints(linear, T::BYTES, Access::Write);
        if last_page(linear, T::BYTES) == linear & PAGE_MASK {
            let physical = self.enter(class, linear, Access::Write)?;
            self.write_physical(physical, value);
            return Ok(());
        }
        let (first, second, split) = self.translate_crossing(class, linear, T::BYTES, Access::Write)?;
        for at in 0..T::BYTES {
            let physical = if at < split { first + at } else { second + (at - split) };
            self.write_physical(physical, (value.wide() >> (8 * at)) as u8);
        }
        Ok(())
    }

    /// The faults of an access without the access.
    #[cold]
    pub(crate) fn probe_slowly(&mut self, class: u8, segment: u8, linear: u64, bytes: u64, access: Access) -> Exec {
        self.check_linear(class, segment, linear, bytes)?;
        let last = linear.wrapping_add(bytes - 1) & if self.is_long() { u64::MAX } else { 0xffff_ffff };
        self.enter(class, linear, access)?;
        if last & PAGE_MASK != linear & PAGE_MASK {
            self.enter(class, last & PAGE_MASK, access)?;
        }
        Ok(())
    }

    /// Where a locked operation can be done that the TLB could not place: in memory, within one page. After it, the write is to be
    /// noted on the page. `None`: a device, ROM, or a page crossing; all faults have been raised.
    #[cold]
    pub(crate) fn locked_slowly(
        &mut self,
        class: u8,
        segment: u8,
        linear: u64,
        bytes: u64,
    ) -> Result<Option<(*mut u8, PhysicalPage)>, Stop> {
        self.probe_slowly(class, segment, linear, bytes, Access::Write)?;
        self.note_breakpoints(linear, bytes, Access::Write);
        if last_page(linear, bytes) != linear & PAGE_MASK {
            return Ok(None);
        }
        let physical = self.enter(class, linear, Access::Write)?;
        let page = self.physical_page(physical);
        if page.write.is_null() || page.write.cast_const() != page.read || self.is_apic_page(physical) {
            return Ok(None);
        }
        Ok(Some((page.write.wrapping_add((physical & !PAGE_MASK) as usize), page)))
    }

    /// Where the page behind that of `linear` begins, and how many bytes of the page there are from `linear` on.
    fn page_behind(&self, linear: u64) -> (u64, u64) {
        let next = (linear | !PAGE_MASK).wrapping_add(1) & if self.is_long() { u64::MAX } else { 0xffff_ffff };
        (next, PAGE_BYTES - (linear & !PAGE_MASK))
    }

    /// A read across the end of a page, if both pages are entered: then there is nothing to check.
    fn read_crossing<T: Word>(&self, class: u8, linear: u64) -> Option<T> {
        let (next, split) = self.page_behind(linear);
        if split >= T::BYTES {
            return None;
        }
        // The last bytes of the one page and the first of the other, as many as the value has, hold both of its parts.
        let first = self.tlb.read_pointer(class, (linear | !PAGE_MASK) - (T::BYTES - 1), T::BYTES)?;
        let second = self.tlb.read_pointer(class, next, T::BYTES)?;
        // SAFETY: TLB entries point into blocks that `held_blocks` keeps alive, and neither load leaves its page.
        let (first, second) = unsafe { (T::load(first).wide(), T::load(second).wide()) };
        Some(T::low(first >> (8 * (T::BYTES - split)) | second << (8 * split)))
    }

    /// A write across the end of a page, if both pages are entered.
    fn write_crossing<T: Word>(&self, class: u8, linear: u64, value: T) -> Option<()> {
        let (next, split) = self.page_behind(linear);
        if split >= T::BYTES {
            return None;
        }
        let first = self.tlb.write_pointer(class, linear, split)?;
        let second = self.tlb.write_pointer(class, next, T::BYTES - split)?;
        for at in 0..T::BYTES {
            let to = if at < split { first.wrapping_add(at as usize) } else { second.wrapping_add((at - split) as usize) };
            // SAFETY: TLB entries point into blocks that `held_blocks` keeps alive, and each part stays in its page.
            unsafe { ((value.wide() >> (8 * at)) as u8).store(to) };
        }
        Some(())
    }

    fn translate_crossing(&mut self, class: u8, linear: u64, bytes: u64, access: Access) -> Result<(u64, u64, u64), Stop> {
        let (next, split) = self.page_behind(linear);
        debug_assert!(split < bytes);
        let first = self.enter(class, linear, access)?;
        let second = self.enter(class, next, access)?;
        Ok((first, second, split))
    }

    /// Translates and enters the page into the TLB where that is allowed.
    fn enter(&mut self, class: u8, linear: u64, access: Access) -> Result<u64, Stop> {
        self.shared.tally.count(Happening::TlbMissed);
        let found = self.translate(class, linear, access)?;
        if class == class::USER_ALIGNED || self.has_breakpoint_in_page(linear) {
            return Ok(found.physical);
        }
        let page = self.physical_page(found.physical);
        if page.read.is_null() || self.is_apic_page(found.physical) {
            return Ok(found.physical);
        }
        if let Some(dice) = &mut self.dice
            && dice.fall(dice.chances.one_entry)
        {
            self.tlb.flush();
        }
        if access != Access::Write {
            self.tlb.fill_read(class, linear, page.read, found.extent);
        }
        // Memory that reads elsewhere than it writes (ROM being shadowed) keeps to the slow path, so that read-modify-write
        // sees what it should.
        if found.write && access == Access::Write && page.write.cast_const() == page.read {
            // SAFETY: `write` is not null here, so its state points into a held block.
            let state = unsafe { &*page.write_state };
            if takes_fast_writes(state) {
                state.set_flags(PageFlags::WRITTEN | PageFlags::DRAWN_ON);
                self.tlb.fill_write(class, linear, page.write, found.extent);
            }
        }
        Ok(found.physical)
    }

    /// Reads within one page of physical memory, or from a device.
    pub(crate) fn read_physical<T: Word>(&mut self, physical: u64) -> u128 {
        if self.is_apic_page(physical) {
            paravirt::settle_lazy_end(self);
            self.sync_clock();
            let (apic, io) = (self.shared.apic.clone(), self.io());
            return self.by_pieces(physical, T::BYTES, |_, at, bytes| apic.page_read(at & 0xfff, bytes, io));
        }
        let page = self.physical_page(physical);
        if !page.read.is_null() {
            // SAFETY: the page is in a held block and the access stays in the page.
            return unsafe { T::load(page.read.wrapping_add((physical & !PAGE_MASK) as usize)) }.wide();
        }
        self.sync_clock();
        let value = self.by_pieces(physical, T::BYTES, |cpu, at, bytes| cpu.in_device(|io| io.mmio_read(at, bytes)));
        self.after_io();
        value
    }

    /// Writes within one page of physical memory, or to a device.
    pub(crate) fn write_physical<T: Word>(&mut self, physical: u64, value: T) {
        if self.is_apic_page(physical) {
            paravirt::settle_lazy_end(self);
            self.sync_clock();
            let (apic, io) = (self.shared.apic.clone(), self.io());
            self.pieces(physical, T::BYTES, |cpu, at, bytes, shift| {
                let value = (value.wide() >> shift) as u64;
                let value = if bytes == 8 { value } else { value & ((1 << (8 * bytes)) - 1) };
                apic.page_write(at & 0xfff, bytes, value, &cpu.fabric.apics, io);
            });
            // The timer may have been set.
            self.after_io();
            return;
        }
        let page = self.physical_page(physical);
        if !page.write.is_null() {
            let inside = physical & !PAGE_MASK;
            // SAFETY: the page is in a held block and the access stays in the page.
            unsafe { value.store(page.write.wrapping_add(inside as usize)) };
            self.note_physical_write(&page, inside, T::BYTES);
        } else if page.read.is_null() {
            self.sync_clock();
            self.pieces(physical, T::BYTES, |cpu, at, bytes, shift| {
                let value = (value.wide() >> shift) as u64;
                let value = if bytes == 8 { value } else { value & ((1 << (8 * bytes)) - 1) };
                cpu.in_device(|io| io.mmio_write(at, bytes, value));
            });
            self.after_io();
        }
    }

    /// Bytes of a page have been written past the TLB: flags, stale code, and whether the page still needs watching.
    pub(crate) fn note_physical_write(&mut self, page: &PhysicalPage, first: u64, bytes: u64) {
        // SAFETY: callers have written through `page.write`, so it is not null and its state is in a held block.
        let state = unsafe { &*page.write_state };
        if state.note_write(first, bytes) {
            self.shared.tally.count(Happening::WroteCode);
            self.code_went_stale();
            self.fabric.code_was_written(&self.shared);
        }
    }

    /// Splits an access to a device into naturally aligned pieces of at most 8 bytes and puts what is read together.
    fn by_pieces(&mut self, physical: u64, bytes: u64, mut read: impl FnMut(&mut Self, u64, u8) -> u64) -> u128 {
        let mut value = 0u128;
        self.pieces(physical, bytes, |cpu, at, piece, shift| {
            let part = read(cpu, at, piece);
            let part = if piece == 8 { part } else { part & ((1 << (8 * piece)) - 1) };
            value |= u128::from(part) << shift;
        });
        value
    }

    fn pieces(&mut self, physical: u64, bytes: u64, mut each: impl FnMut(&mut Self, u64, u8, u64)) {
        let mut done = 0;
        while done < bytes {
            let at = physical + done;
            let alignment = if at == 0 { 8 } else { 1 << at.trailing_zeros().min(3) };
            let mut piece = (bytes - done).min(alignment);
            piece = 1 << piece.ilog2();
            each(self, at, piece as u8, done * 8);
            done += piece;
        }
    }

    /// Whether the local APIC answers at this address.
    #[inline]
    fn is_apic_page(&self, physical: u64) -> bool {
        // Enabled and not in x2APIC mode.
        self.apic_base & 0xc00 == 0x800 && physical & PAGE_MASK == self.apic_base & 0xf_ffff_ffff_f000
    }

    // ---- Breakpoints -------------------------------------------------------------------------------------------

    /// Whether a data breakpoint is armed in this page.
    fn has_breakpoint_in_page(&self, linear: u64) -> bool {
        self.dr7 & 0xff != 0
            && (0..4).any(|number| {
                let armed = self.dr7 >> (2 * number) & 3 != 0 && self.dr7 >> (16 + 4 * number) & 3 != 0;
                let address = self.dr[number];
                // A breakpoint of 8 bytes never crosses a page: it is aligned to its length.
                armed && address & PAGE_MASK == linear & PAGE_MASK
            })
    }

    /// Notes which data breakpoints an access meets (SDM volume 3, 17.2.5).
    fn note_breakpoints(&mut self, linear: u64, bytes: u64, access: Access) {
        if self.dr7 & 0xff == 0 {
            return;
        }
        let mut met = 0;
        for number in 0..4 {
            let kind = self.dr7 >> (16 + 4 * number) & 3;
            let watches = match access {
                Access::Write => kind & 1 != 0,
                Access::Read => kind == 3,
                Access::Execute => false,
            };
            let len = [1, 2, 8, 4][(self.dr7 >> (18 + 4 * number) & 3) as usize];
            let start = self.dr[number] & !(len - 1);
            if watches && linear < start.wrapping_add(len) && start < linear.wrapping_add(bytes) {
                met |= 1 << number;
                if self.dr7 >> (2 * number) & 3 != 0 {
                    met |= 1 << 63; // At least one is enabled: a trap follows.
                }
            }
        }
        if met >> 63 != 0 {
            self.pending_debug |= met & 15;
        }
    }

    // ---- Changes of memory ------------------------------------------------------------------------------------

    /// After the board has been called: the layout of memory may have changed.
    #[inline]
    pub(crate) fn after_io(&mut self) {
        if self.counts {
            // A timer may have been set: look before going on.
            self.limit = self.retired;
        }
        if self.fabric.memory.generation() != self.memory_generation {
            self.memory_changed();
        }
    }

    /// Forgets everything that was derived from the layout of memory, and tells the other CPUs.
    #[cold]
    pub(crate) fn memory_changed(&mut self) {
        self.memory_generation = self.fabric.memory.generation();
        self.physical_pages.forget();
        self.flush_host_addresses();
        if self.fabric.cpu_count() > 1 {
            self.fabric.flush_all();
        }
    }
}

/// Whether writes to a page may bypass the slow path. A page that held code but does no longer is set free here.
fn takes_fast_writes(state: &PageState) -> bool {
    let flags = state.flags();
    if flags & PageFlags::WATCHED != 0 {
        return false;
    }
    if flags & PageFlags::TRANSLATED == 0 {
        return true;
    }
    if state.code_grains() != 0 {
        return false;
    }
    state.take_flags(PageFlags::TRANSLATED);
    fence(Ordering::SeqCst);
    // Whoever adds code sets its grains first and the flag after: if its grains were not there yet, its flag is still to come.
    if state.code_grains() != 0 {
        state.set_flags(PageFlags::TRANSLATED);
        return false;
    }
    true
}
