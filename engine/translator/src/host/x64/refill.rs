//! The stub that refills the first level of the TLB from the second. It is called where a probe has missed, and touches no
//! vector register, no x87 and no general register: a page that the second level knows costs tens of cycles instead of a call
//! into Rust.
//!
//! # How it is called
//! There is one entry for each kind of access: twice the class, plus one for writes. Two words are on the stack: the *slot*
//! that the probe looked at, as the distance from its table's start, pushed first, and the *page* that it compared with the
//! tag. Behind the call both are there still, ZF says whether the page is entered now, and if it is, what was the slot is the
//! addend:
//! ```text
//!     push slot
//!     push page
//!     call refill[kind]
//!     pop  page
//!     pop  slot
//!     je   found            slot: the addend
//! ```
//! All registers keep their values; the flags other than ZF do not. An access that crosses into another page, or is not aligned
//! as its probe wanted it, is not found: then slot and page do not belong together.
//!
//! What has last been driven out of the slot is at hand (see `mmu/tlb.rs`): it takes its place back, and what is there now goes.

use super::asm::{Alu, Asm, Cond, Label, Mem, R, W};
use crate::mmu::refill::{self, first, physical, second};

/// How many kinds of accesses there are.
pub(crate) const KINDS: usize = 2 * first::CLASSES;

/// The kind of an access.
pub(crate) fn kind(class: u8, write: bool) -> usize {
    (2 * usize::from(class) + usize::from(write)) % KINDS
}

/// Distances from the start of the CPU.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RefillLayout {
    /// [`crate::mmu::Tlb`]
    pub tlb: i32,
    /// [`crate::mmu::SecondLevel`]
    pub second_level: i32,
    /// [`crate::mmu::PhysicalPages`]
    pub physical_pages: i32,
    /// What of a physical address the A20 gate lets through.
    pub a20_mask: i32,
    /// IA32_APIC_BASE: its page is not memory.
    pub apic_base: i32,
    /// DR7: breakpoints switch the stub off.
    pub dr7: i32,
    /// [`refill::Enough`]
    pub enough: i32,
    /// A pointer to where misses are counted, 64 bits.
    pub missed: i32,
}

/// What the stub uses, in the order in which it is pushed.
const SAVED: [R; 7] = [R::Ax, R::Bx, R::Cx, R::Dx, R::Si, R::Di, R::R8];
/// Where the caller's words are then, behind the return address.
const PAGE_AT: i32 = 8 * (SAVED.len() as i32 + 1);
const SLOT_AT: i32 = PAGE_AT + 8;

/// Writes the stub: its entries by kind.
pub(crate) fn write(asm: &mut Asm, layout: &RefillLayout) -> [u64; KINDS] {
    let body = asm.label();
    let entries = std::array::from_fn(|kind| {
        asm.align(16, 0);
        let entry = asm.here();
        asm.push(SAVED[0]);
        asm.set(R::Ax, kind as u64);
        asm.jmp(body);
        entry
    });
    asm.align(16, 0);
    asm.bind(body);
    Writer { asm, layout: *layout }.body();
    entries
}

struct Writer<'a> {
    asm: &'a mut Asm,
    layout: RefillLayout,
}

/// `[RBP + distance + inside]`
fn field(distance: i32, inside: usize) -> Mem {
    Mem::at(R::Bp, distance + inside as i32)
}

impl Writer<'_> {
    /// AX is the kind all along, CX the slot and DX the page. SI becomes the second level's entry, DI the physical address,
    /// then the host's.
    fn body(&mut self) {
        let layout = self.layout;
        let (fail, done) = (self.asm.label(), self.asm.label());
        let asm = &mut *self.asm;
        for reg in &SAVED[1..] {
            asm.push(*reg);
        }
        asm.load(W::B8, R::Dx, Mem::at(R::Sp, PAGE_AT));
        asm.load(W::B8, R::Cx, Mem::at(R::Sp, SLOT_AT));
        // A page's address, whose slot is the one that was looked at.
        asm.test_imm(W::B4, R::Dx, 0xfff);
        asm.jcc(Cond::NE, fail);
        asm.mov(W::B4, R::Bx, R::Dx);
        asm.shift_imm(5, W::B4, R::Bx, 8);
        asm.alu_imm(Alu::And, W::B4, R::Bx, 0x3ff0);
        asm.alu(Alu::Cmp, W::B4, R::Bx, R::Cx);
        asm.jcc(Cond::NE, fail);
        let entered = asm.label();
        self.exchange(entered);
        let asm = &mut *self.asm;
        asm.alu_imm(Alu::Cmp, W::B1, field(layout.dr7, 0), 0);
        asm.jcc(Cond::NE, fail);
        self.find_entry(fail);
        self.check_rights(fail);
        self.find_host_page(fail);
        self.enter();
        let asm = &mut *self.asm;
        asm.bind(entered);
        asm.mov(W::B8, Mem::at(R::Sp, SLOT_AT), R::Di);
        asm.load(W::B8, R::Bx, field(layout.missed, 0));
        asm.alu_imm(Alu::Add, W::B8, Mem::at(R::Bx, 0), 1);
        asm.alu(Alu::Cmp, W::B4, R::Ax, R::Ax);
        asm.jmp(done);
        asm.bind(fail);
        // The kind is less than 256.
        asm.alu_imm(Alu::Cmp, W::B4, R::Ax, 0x100);
        asm.bind(done);
        for reg in SAVED.into_iter().rev() {
            asm.pop(reg);
        }
        asm.ret();
    }

    /// A part of what is in the slot, whose distance from the first table is in R8.
    fn slot(&self, inside: usize) -> Mem {
        let disp = self.layout.tlb + (first::TABLES_AT + inside) as i32;
        Mem { base: R::Bp, index: Some((R::R8, 0)), disp }
    }

    /// A part of a victim of the slot, the distance of whose set is in BX.
    fn victim(&self, way: usize, inside: usize) -> Mem {
        let disp = self.layout.tlb + (first::VICTIMS_AT + way * first::ENTRY_BYTES + inside) as i32;
        Mem { base: R::Bp, index: Some((R::Bx, 0)), disp }
    }

    /// R8 becomes the slot's distance from the first table, BX that of its set of victims from the first. Spoils SI.
    fn find_slot(&mut self) {
        let set_bytes = first::WAYS * first::ENTRY_BYTES;
        let asm = &mut *self.asm;
        asm.mov(W::B4, R::R8, R::Ax);
        asm.shift_imm(4, W::B4, R::R8, first::TABLE_BYTES.trailing_zeros() as u8);
        asm.alu(Alu::Add, W::B4, R::R8, R::Cx);
        asm.mov(W::B4, R::Bx, R::Cx);
        asm.alu_imm(Alu::And, W::B4, R::Bx, ((first::SETS - 1) * first::ENTRY_BYTES) as i32);
        asm.shift_imm(4, W::B4, R::Bx, (set_bytes / first::ENTRY_BYTES).trailing_zeros() as u8);
        asm.mov(W::B4, R::Si, R::Ax);
        asm.shift_imm(4, W::B4, R::Si, (first::SETS * set_bytes).trailing_zeros() as u8);
        asm.alu(Alu::Add, W::B4, R::Bx, R::Si);
    }

    /// If the page is among the slot's victims, it changes places with what is in the slot; DI is its addend then. Spoils BX, SI
    /// and R8.
    fn exchange(&mut self, done: Label) {
        self.find_slot();
        for way in 0..first::WAYS {
            let [victim_tag, victim_addend] = [0, 8].map(|inside| self.victim(way, inside));
            let [tag, addend] = [0, 8].map(|inside| self.slot(inside));
            let asm = &mut *self.asm;
            let next = asm.label();
            asm.alu(Alu::Cmp, W::B8, victim_tag, R::Dx);
            asm.jcc(Cond::NE, next);
            asm.load(W::B8, R::Di, victim_addend);
            asm.load(W::B8, R::Si, tag);
            asm.mov(W::B8, victim_tag, R::Si);
            asm.load(W::B8, R::Si, addend);
            asm.mov(W::B8, victim_addend, R::Si);
            asm.mov(W::B8, tag, R::Dx);
            asm.mov(W::B8, addend, R::Di);
            asm.jmp(done);
            asm.bind(next);
        }
    }

    /// What is in the slot becomes a victim. Spoils BX, SI and R8; keeps DI.
    fn drive_out(&mut self) {
        let nothing = self.asm.label();
        self.find_slot();
        let slot = [0, 8].map(|inside| self.slot(inside));
        let victims: [[Mem; 2]; first::WAYS] = std::array::from_fn(|way| [0, 8].map(|inside| self.victim(way, inside)));
        let asm = &mut *self.asm;
        asm.test_imm(W::B4, slot[0], first::NO_PAGE as i32);
        asm.jcc(Cond::NE, nothing);
        for way in (0..first::WAYS).rev() {
            let from = if way == 0 { slot } else { victims[way - 1] };
            for (from, to) in from.into_iter().zip(victims[way]) {
                asm.load(W::B8, R::Si, from);
                asm.mov(W::B8, to, R::Si);
            }
        }
        asm.mov_imm(W::B1, field(self.layout.tlb, first::HAS_VICTIMS_AT), 1);
        asm.bind(nothing);
    }

    /// SI becomes the entry of the page, DI its physical address. Spoils BX and R8.
    fn find_entry(&mut self, fail: Label) {
        let second_level = self.layout.second_level;
        let asm = &mut *self.asm;
        let found = asm.label();
        let (context, global) = (field(second_level, second::CURRENT_AT), field(second_level, second::GLOBAL_AT));
        asm.mov(W::B8, R::Si, R::Dx);
        asm.shift_imm(5, W::B8, R::Si, 12);
        asm.mov(W::B8, R::Bx, R::Dx);
        asm.shift_imm(5, W::B8, R::Bx, 22);
        asm.alu(Alu::Xor, W::B4, R::Si, R::Bx);
        asm.alu_imm(Alu::And, W::B4, R::Si, second::SETS as i32 - 1);
        asm.shift_imm(4, W::B8, R::Si, (second::WAYS * second::ENTRY_BYTES).trailing_zeros() as u8);
        asm.alu_load(Alu::Add, W::B8, R::Si, field(second_level, second::SETS_AT));
        asm.load(W::B4, R::R8, context);
        let inside = |distance: usize| Mem::at(R::Si, distance as i32);
        for way in 0..second::WAYS {
            let next = asm.label();
            asm.alu(Alu::Cmp, W::B8, inside(second::LINEAR), R::Dx);
            asm.jcc(Cond::NE, next);
            asm.load(W::B4, R::Bx, inside(second::CONTEXT));
            asm.load(W::B8, R::Di, inside(second::PHYSICAL));
            asm.alu(Alu::Cmp, W::B4, R::Bx, R::R8);
            asm.jcc(Cond::E, found);
            asm.alu_load(Alu::Cmp, W::B4, R::Bx, global);
            asm.jcc(Cond::E, found);
            asm.bind(next);
            if way + 1 < second::WAYS {
                asm.alu_imm(Alu::Add, W::B8, R::Si, second::ENTRY_BYTES as i32);
            }
        }
        // A part of a larger page.
        asm.mov(W::B8, R::Si, R::Dx);
        asm.shift_imm(5, W::B8, R::Si, second::LARGE_SHIFT);
        asm.alu_imm(Alu::And, W::B4, R::Si, second::LARGE as i32 - 1);
        asm.shift_imm(4, W::B8, R::Si, second::ENTRY_BYTES.trailing_zeros() as u8);
        asm.alu_load(Alu::Add, W::B8, R::Si, field(second_level, second::LARGE_AT));
        asm.load(W::B8, R::Di, inside(second::LINEAR));
        asm.alu(Alu::Xor, W::B8, R::Di, R::Dx);
        asm.shift_imm(5, W::B8, R::Di, second::LARGE_SHIFT);
        asm.jcc(Cond::NE, fail);
        let holds = asm.label();
        asm.load(W::B4, R::Bx, inside(second::CONTEXT));
        asm.alu(Alu::Cmp, W::B4, R::Bx, R::R8);
        asm.jcc(Cond::E, holds);
        asm.alu_load(Alu::Cmp, W::B4, R::Bx, global);
        asm.jcc(Cond::NE, fail);
        asm.bind(holds);
        asm.mov(W::B4, R::Di, R::Dx);
        asm.alu_imm(Alu::And, W::B4, R::Di, (1 << second::LARGE_SHIFT) - 1);
        asm.alu_load(Alu::Add, W::B8, R::Di, inside(second::PHYSICAL));
        asm.bind(found);
    }

    /// Spoils BX and R8.
    fn check_rights(&mut self, fail: Label) {
        let asm = &mut *self.asm;
        asm.movzx(W::B1, R::Bx, Mem::at(R::Si, second::RIGHTS as i32));
        asm.alu_imm(Alu::And, W::B4, R::Bx, refill::RIGHTS.into());
        asm.movzx(W::B1, R::R8, Mem { base: R::Bp, index: Some((R::Ax, 0)), disp: self.layout.enough });
        asm.bit(4, W::B4, R::R8, R::Bx);
        asm.jcc(Cond::AE, fail);
    }

    /// DI, a physical address, becomes the host's, if plain memory is there. Spoils BX and R8.
    fn find_host_page(&mut self, fail: Label) {
        let layout = self.layout;
        let asm = &mut *self.asm;
        asm.alu_load(Alu::And, W::B8, R::Di, field(layout.a20_mask, 0));
        asm.load(W::B8, R::Bx, field(layout.apic_base, 0));
        asm.alu(Alu::Xor, W::B8, R::Bx, R::Di);
        asm.shift_imm(5, W::B8, R::Bx, 12);
        asm.jcc(Cond::E, fail);
        asm.mov(W::B8, R::Bx, R::Di);
        asm.shift_imm(5, W::B8, R::Bx, 12);
        asm.alu_imm(Alu::And, W::B4, R::Bx, physical::SLOTS as i32 - 1);
        asm.imul_imm(W::B8, R::Bx, R::Bx, physical::SLOT_BYTES as i32);
        asm.alu_load(Alu::Add, W::B8, R::Bx, field(layout.physical_pages, physical::SLOTS_AT));
        let inside = |distance: usize| Mem::at(R::Bx, distance as i32);
        asm.alu(Alu::Cmp, W::B8, inside(physical::TAG), R::Di);
        asm.jcc(Cond::NE, fail);
        asm.load(W::B8, R::Di, inside(physical::READ));
        asm.test(W::B8, R::Di, R::Di);
        asm.jcc(Cond::E, fail);
        let readable = asm.label();
        asm.test_imm(W::B1, R::Ax, 1);
        asm.jcc(Cond::E, readable);
        asm.alu(Alu::Cmp, W::B8, inside(physical::WRITE), R::Di);
        asm.jcc(Cond::NE, fail);
        asm.load(W::B8, R::R8, inside(physical::WRITE_STATE));
        let flags = Mem::at(R::R8, engine_memory::PageState::FLAGS_AT as i32);
        asm.movzx(W::B1, R::Bx, flags);
        asm.test_imm(W::B1, R::Bx, refill::NOT_WRITTEN_PAST.into());
        asm.jcc(Cond::NE, fail);
        asm.alu_imm(Alu::And, W::B4, R::Bx, refill::ENTERED.into());
        asm.alu_imm(Alu::Cmp, W::B4, R::Bx, refill::ENTERED.into());
        asm.jcc(Cond::E, readable);
        asm.lock();
        asm.alu_imm(Alu::Or, W::B1, flags, refill::ENTERED.into());
        asm.bind(readable);
    }

    /// Enters the host's page at DI, which becomes the addend, into the table, and notes that. Spoils all but AX, CX and DX.
    fn enter(&mut self) {
        let tlb = self.layout.tlb;
        self.asm.push(R::Si);
        self.drive_out();
        self.asm.pop(R::Si);
        let [tag, addend] = [0, 8].map(|inside| self.slot(inside));
        let asm = &mut *self.asm;
        asm.alu(Alu::Sub, W::B8, R::Di, R::Dx);
        asm.mov(W::B8, tag, R::Dx);
        asm.mov(W::B8, addend, R::Di);
        // What a log has of it: the class above ten bits of the slot's number.
        asm.mov(W::B4, R::R8, R::Ax);
        asm.shift_imm(5, W::B4, R::R8, 1);
        asm.shift_imm(4, W::B4, R::R8, 10);
        asm.mov(W::B4, R::Bx, R::Cx);
        asm.shift_imm(5, W::B4, R::Bx, 4);
        asm.alu(Alu::Or, W::B4, R::R8, R::Bx);
        asm.movzx(W::B1, R::Bx, Mem::at(R::Si, second::RIGHTS as i32));
        asm.movzx(W::B1, R::Si, Mem::at(R::Si, second::SHIFT as i32));
        let (global, logged, small) = (asm.label(), asm.label(), asm.label());
        asm.test_imm(W::B1, R::Bx, refill::GLOBAL.into());
        asm.jcc(Cond::NE, global);
        for (log, is_global) in [(first::LOCAL_AT, false), (first::GLOBAL_AT, true)] {
            if is_global {
                asm.bind(global);
            }
            let len = field(tlb, log + first::LOG_LEN);
            asm.load(W::B4, R::Bx, len);
            asm.alu_imm(Alu::Cmp, W::B4, R::Bx, first::LOG_LIMIT as i32);
            asm.jcc(Cond::AE, logged);
            asm.mov(W::B2, Mem { base: R::Bp, index: Some((R::Bx, 1)), disp: tlb + log as i32 }, R::R8);
            asm.alu_imm(Alu::Add, W::B4, len, 1);
            if !is_global {
                asm.jmp(logged);
            }
        }
        asm.bind(logged);
        // Which larger page a part of which is entered.
        for (number, shift) in refill::LARGE_SHIFTS.into_iter().enumerate() {
            let other = asm.label();
            asm.alu_imm(Alu::Cmp, W::B4, R::Si, shift.into());
            asm.jcc(Cond::NE, other);
            asm.mov(W::B8, R::Bx, R::Dx);
            asm.shift_imm(5, W::B8, R::Bx, shift);
            asm.mov(W::B8, R::R8, R::Bx);
            asm.shift_imm(5, W::B8, R::R8, 10);
            asm.alu(Alu::Xor, W::B4, R::Bx, R::R8);
            asm.alu_imm(Alu::And, W::B4, R::Bx, first::LARGE_BITS as i32 - 1);
            asm.bit(5, W::B8, field(tlb, first::LARGE_AT + number * first::LARGE_BITS / 8), R::Bx);
            asm.jmp(small);
            asm.bind(other);
        }
        asm.bind(small);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmu::class::{SUPERVISOR, USER};
    use crate::mmu::{Leaf, PhysicalPages, SecondLevel, Tlb};
    use crate::run::code_memory::CodeMemory;
    use engine_memory::{PageFlags, PageState};
    use std::mem::offset_of;

    const PAGE: u64 = 0x7fff_1234_5000;
    const PHYSICAL: u64 = 0x12_3000;
    const USUAL: Leaf =
        Leaf { physical: PHYSICAL, writable: true, user: true, no_execute: false, dirty: true, global: false, shift: 12 };

    /// A CPU of nothing but what the stub looks at.
    #[repr(C)]
    struct Bench {
        tlb: Tlb,
        second_level: SecondLevel,
        physical_pages: PhysicalPages,
        a20_mask: u64,
        apic_base: u64,
        dr7: u64,
        enough: refill::Enough,
        missed: *const u64,
        count: u64,
        state: PageState,
        memory: Vec<u8>,
    }

    impl Bench {
        fn new() -> Box<Self> {
            let mut bench = Box::new(Self {
                tlb: Tlb::new(),
                second_level: SecondLevel::new(),
                physical_pages: PhysicalPages::new(),
                a20_mask: u64::MAX,
                apic_base: 0xfee0_0900,
                dr7: 0x400,
                enough: refill::enough(u64::MAX, 0),
                missed: std::ptr::null(),
                count: 0,
                state: PageState::default(),
                memory: vec![0; 4096],
            });
            bench.missed = &raw const bench.count;
            let (page, state): (*mut u8, *const PageState) = (bench.memory.as_mut_ptr(), &raw const bench.state);
            bench.physical_pages.put(PHYSICAL, page, state);
            bench
        }

        /// Calls the stub as a probe at `slot` that wanted `page` does: the addend.
        fn refill_at(&mut self, class: u8, write: bool, slot: u64, page: u64) -> Option<u64> {
            let layout = RefillLayout {
                tlb: offset_of!(Self, tlb) as i32,
                second_level: offset_of!(Self, second_level) as i32,
                physical_pages: offset_of!(Self, physical_pages) as i32,
                a20_mask: offset_of!(Self, a20_mask) as i32,
                apic_base: offset_of!(Self, apic_base) as i32,
                dr7: offset_of!(Self, dr7) as i32,
                enough: offset_of!(Self, enough) as i32,
                missed: offset_of!(Self, missed) as i32,
            };
            let memory = CodeMemory::new(1 << 16).unwrap();
            let mut asm = Asm::new(memory.address(0));
            let entries = super::write(&mut asm, &layout);
            asm.align(16, 0);
            let start = asm.here();
            // fn(bench, slot, page, &mut addend) -> found
            asm.push(R::Bp);
            asm.mov(W::B8, R::Bp, R::Di);
            asm.push(R::Si);
            asm.push(R::Dx);
            asm.call_to(entries[kind(class, write)]);
            asm.pop(R::Dx);
            asm.pop(R::Si);
            asm.setcc(Cond::E, R::Ax);
            asm.movzx(W::B1, R::Ax, R::Ax);
            asm.mov(W::B8, Mem::at(R::Cx, 0), R::Si);
            asm.pop(R::Bp);
            asm.ret();
            memory.write_at(0, &asm.finish());
            let mut addend = 0;
            // SAFETY: the code lies there, keeps the ABI, and touches the bench alone.
            let found = unsafe {
                let call = std::mem::transmute::<u64, extern "sysv64" fn(*mut Self, u64, u64, *mut u64) -> u32>(start);
                call(self, slot, page, &raw mut addend)
            };
            (found != 0).then_some(addend)
        }

        fn refill(&mut self, class: u8, write: bool, page: u64) -> Option<u64> {
            self.refill_at(class, write, page >> 8 & 0x3ff0, page)
        }

        fn addend(&self, page: u64) -> Option<u64> {
            Some((self.memory.as_ptr() as u64).wrapping_sub(page))
        }
    }

    #[test]
    fn what_the_second_level_knows_is_entered_and_forgotten_with_the_rest() {
        let mut bench = Bench::new();
        assert_eq!(bench.refill(USER, false, PAGE), None, "nothing is known yet");
        bench.second_level.fill(PAGE, USUAL);
        assert_eq!(bench.refill(USER, false, PAGE), bench.addend(PAGE));
        assert_eq!(bench.tlb.read_pointer(USER, PAGE + 5, 1), Some(bench.memory.as_ptr().wrapping_add(5)));
        assert!(bench.tlb.write_pointer(USER, PAGE, 1).is_none() && bench.tlb.read_pointer(SUPERVISOR, PAGE, 1).is_none());
        assert_eq!(bench.count, 1);
        bench.tlb.flush_local();
        assert!(bench.tlb.read_pointer(USER, PAGE, 1).is_none(), "it was logged");
        bench.second_level.fill(PAGE, Leaf { global: true, ..USUAL });
        assert_eq!(bench.refill(USER, false, PAGE), bench.addend(PAGE));
        bench.tlb.flush_local();
        assert!(bench.tlb.read_pointer(USER, PAGE, 1).is_some(), "it is global");
        bench.tlb.flush();
        assert!(bench.tlb.read_pointer(USER, PAGE, 1).is_none());
        bench.second_level.forget_all(0);
        assert_eq!(bench.refill(USER, false, PAGE), None);
    }

    #[test]
    fn pages_that_want_the_same_slot_take_turns_until_any_entry_goes() {
        // Pages 4 MiB apart.
        let pages = [0, 1, 2].map(|number| PAGE + (number << 22));
        type Flush = fn(&mut Tlb);
        let flushes: [Flush; 4] =
            [Tlb::flush, Tlb::flush_local, |tlb| tlb.flush_page(0), |tlb| tlb.revoke_writes(std::ptr::null())];
        for (flush, write) in flushes.into_iter().flat_map(|flush| [(flush, false), (flush, true)]) {
            let mut bench = Bench::new();
            for page in pages {
                bench.second_level.fill(page, Leaf { global: page == pages[1], ..USUAL });
                assert_eq!(bench.refill(USER, write, page), bench.addend(page));
            }
            bench.second_level.forget_all(0);
            for page in pages.into_iter().cycle().take(9) {
                assert_eq!(bench.refill(USER, write, page), bench.addend(page));
                assert_eq!(bench.tlb.read_pointer(USER, page, 1).is_some(), !write);
                assert_eq!(bench.tlb.write_pointer(USER, page, 1).is_some(), write);
                assert_eq!(bench.refill(USER, !write, page), None, "the other table has others");
                assert_eq!(bench.refill(SUPERVISOR, write, page), None);
                assert_eq!(bench.refill(USER, write, page ^ 0x8000), None);
            }
            flush(&mut bench.tlb);
            assert_eq!(pages[..2].iter().filter_map(|page| bench.refill(USER, write, *page)).count(), 0);
        }
    }

    #[test]
    fn writes_want_a_dirty_page_without_code_and_note_it() {
        let mut bench = Bench::new();
        bench.second_level.fill(PAGE, Leaf { dirty: false, ..USUAL });
        assert_eq!(bench.refill(USER, true, PAGE), None);
        bench.second_level.fill(PAGE, USUAL);
        for flag in [PageFlags::TRANSLATED, PageFlags::WATCHED] {
            bench.state.set_flags(flag);
            assert_eq!(bench.refill(USER, true, PAGE), None);
            bench.state.take_flags(flag);
        }
        assert_eq!(bench.state.flags(), 0);
        assert_eq!(bench.refill(USER, true, PAGE), bench.addend(PAGE));
        assert_eq!(bench.state.flags(), PageFlags::WRITTEN | PageFlags::DRAWN_ON);
        assert!(bench.tlb.write_pointer(USER, PAGE, 1).is_some());
    }

    #[test]
    fn a_part_of_a_large_page_goes_with_its_other_parts() {
        for shift in [21, 22, 30] {
            let mut bench = Bench::new();
            let part = (PAGE >> shift << shift) + PHYSICAL;
            bench.second_level.fill(part, Leaf { shift, ..USUAL });
            assert_eq!(bench.refill(USER, false, part), bench.addend(part), "pages of 1 << {shift}");
            bench.tlb.flush_page(part ^ 0x8000);
            assert!(bench.tlb.read_pointer(USER, part, 1).is_none(), "pages of 1 << {shift}");
        }
    }

    #[test]
    fn rare_cases_are_left_to_others() {
        let mut bench = Bench::new();
        bench.second_level.fill(PAGE, USUAL);
        let slot = PAGE >> 8 & 0x3ff0;
        assert_eq!(bench.refill_at(USER, false, slot - 16, PAGE), None, "it crosses into this page");
        assert_eq!(bench.refill_at(USER, false, slot, PAGE + 4), None, "it is not aligned");
        bench.dr7 = 0x401;
        assert_eq!(bench.refill(USER, false, PAGE), None, "a breakpoint");
        bench.dr7 = 0x400;
        bench.apic_base = PHYSICAL | 0x900;
        assert_eq!(bench.refill(USER, false, PAGE), None, "the local APIC");
        bench.apic_base = 0xfee0_0900;
        bench.a20_mask = !(1 << 20);
        assert_eq!(bench.refill(USER, false, PAGE), None, "no memory behind the A20 gate");
        bench.a20_mask = u64::MAX;
        bench.second_level.enter(5);
        assert_eq!(bench.refill(USER, false, PAGE), None, "another address space");
        bench.second_level.enter(0);
        assert!(bench.refill(USER, false, PAGE).is_some());
    }
}
