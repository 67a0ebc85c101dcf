//! Tier 1: hot traces as host code. x86-64 hosts run x86 guests' integer, SSE, x87 and MMX instructions as what they are: the
//! same instruction on registers that hold the guest's, with the host's own flags. What is not translated, and whatever is rare
//! (a TLB miss, a fault, a device), the interpreter does for one instruction, inside the block: the *bail rule* of the plan. So
//! every instruction can be in a block, and every exception is the interpreter's.
//!
//! * `block.rs`: blocks, the space they share, how they go stale.
//! * `emit.rs`: the frame of a block: registers, flags, memory, ways out.
//! * `integer.rs`, `exchange.rs`, `bits.rs`, `vector.rs`, `gather.rs`, `x87.rs`, `flow.rs`, `fast_calls.rs`, `system.rs`:
//!   the instructions; the host's `same.rs` writes the guest's own with other operands.
//! * `pages.rs`: memory operands that share a look at the TLB.
//! * `recipe.rs`: flags that only faults would want.
//! * `jumps.rs`: where indirect transfers find their targets' code; `seen.rs`: where indirect jumps have led lately.
//! * `regions.rs`: the optimising tier, whose code takes the place of blocks.
//! * `spaces.rs`: who has which part of the memory for code, and what goes when it is full.
//! * here: the vCPU's side: when to translate, how to enter, what to do when translated code is left.
//!
//! # What is translated
//! Traces that have run often enough ([`crate::TranslatorOptions::hot`]), in 64-bit code and in 32-bit code with flat segments.
//! 16-bit code, segments with bases or limits, alignment checks, single steps, breakpoints and interrupt shadows stay with the
//! interpreter, and so do machines whose clock counts instructions: those need to stop at every instruction that a timer names.
//!
//! # Time and attention
//! Translated code looks at the attention word at every backward and every indirect transfer, so it is never deaf for longer
//! than a page of code takes.

mod bits;
mod block;
mod emit;
mod exchange;
mod fast_calls;
mod flow;
mod gather;
mod integer;
mod jumps;
mod pages;
mod recipe;
mod regions;
mod seen;
mod spaces;
mod system;
mod vector;
mod x87;

pub(super) use crate::host::x64::same::host_has;
pub(super) use gather::with_accumulator as gather_with_accumulator;
pub(crate) use spaces::Translations;
pub(super) use vector::with_accumulator;

use super::cpu::{CodeSize, Cpu, cr0, cr4, seg};
use super::cpuid::InstructionSets;
use super::decode;
use super::fault::Stop;
use super::flags::{Flags, bit};
use super::host_fp;
use super::op::OpFlags;
use super::sse_unmasked::MASKS;
use super::system::deliver;
use super::trace::{TraceCode, TraceRef};
use crate::chaos::Dice;
use crate::host::x64::vectors::{self, Residency};
use crate::mmu::{PAGE_MASK, class, refill};
use crate::run::code_memory::PARTS;
use crate::shared::CpuShared;
use crate::watch::sampler::Place;
use crate::watch::tally::Happening;
use block::{Numbered, Relative, Request, Site, Space, leave};
use emit::Source;
use engine_cpu::x86::Activity;
use engine_memory::PAGE_BYTES;
use jumps::{Jump, JumpCaches};
pub(crate) use seen::Seen;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Most instructions of a block.
const MOST_INSTRUCTIONS: usize = 64;
/// Parts of a mode's key: the class of memory accesses, 64-bit code, and SSE instructions that raise nothing by themselves: CR0
/// and CR4 let them run, and MXCSR masks all exceptions.
const CLASS: u8 = 3;
const WIDE: u8 = 4;
const VECTOR: u8 = 8;
/// And x87 and MMX instructions that raise nothing: CR0 lets them run, and the control word masks all exceptions.
const X87: u8 = 16;
/// And AVX is switched on.
const AVX: u8 = 32;
/// How many keys there are.
const KEYS: usize = 64;
/// No translation in this mode.
const NO_KEY: u8 = u8::MAX;

/// A vCPU's part of the translator.
#[repr(C)]
pub(crate) struct Translator {
    /// The arithmetic flags while translated code runs: LAHF's byte in bits 8–15, OF in bit 0.
    flags: u16,
    /// The mode's key, or [`NO_KEY`]. Derived.
    key: u8,
    /// The guest's x87 state is in the host's x87, not in the CPU.
    x87_in_host: bool,
    /// Switched on.
    enabled: bool,
    /// Executions after which a trace is translated.
    hot: u32,
    /// Not zero: the guest's vector registers and MXCSR are in the host's; see [`crate::host::x64::vectors`].
    vectors_resident: u8,
    /// What MXCSR must be while Rust code runs.
    host_mxcsr: u32,
    /// The offset in CS of the page that is executed.
    page_base: u64,
    scratch: [u64; 2],
    /// Where a gather keeps three vector registers: see `gather.rs`.
    gather: [[u128; 2]; 3],
    /// Where regions keep values for which they have no register.
    cells: [u64; regions::CELLS],
    /// What makes host addresses of linear ones off general registers, while a block says so; 0: nothing.
    pages: [u64; 16],
    /// The CPU's attention word.
    attention: *const AtomicU32,
    /// Which rights of a page let it into the first level of the TLB without Rust. Derived.
    enough: refill::Enough,
    /// Where misses of that level are counted.
    missed: *const AtomicU64,
    /// The jump caches, by key.
    tables: [*mut Jump; KEYS],
    /// A handler's panic, on its way past translated code.
    panic: Option<Box<dyn std::any::Any + Send>>,
    /// What the interpreter stopped with, and where the instruction starts.
    stop: Option<(u64, Stop)>,
    /// Where `tables` points into.
    jumps: JumpCaches,
    /// The spaces whose code may run, the newest last, and the number of that.
    spaces: Vec<Arc<Space>>,
    newest: u32,
    /// Those that may be gone: translated code that is on the stack may lie in them.
    leaving: Vec<Arc<Space>>,
    /// From where on the sampler takes the newest one's code to be regions'.
    regions_from: u64,
}

// SAFETY: the pointers lead into `jumps`, which never moves its tables, and into the CPU's shared part, which the CPU holds.
unsafe impl Send for Translator {}

impl Translator {
    /// Nothing translated yet.
    pub fn new(shared: &CpuShared, translations: &Translations) -> Self {
        let (attention, missed) = (shared.attention_word(), shared.tally.cell(Happening::TlbMissed));
        let enabled = translations.is_on();
        let mut jumps = JumpCaches::new(if enabled { KEYS } else { 0 });
        Self {
            flags: 0,
            key: NO_KEY,
            x87_in_host: false,
            enabled,
            hot: translations.hot,
            vectors_resident: 0,
            host_mxcsr: host_fp::HOST_MXCSR,
            page_base: 0,
            scratch: [0; 2],
            gather: [[0; 2]; 3],
            cells: [0; regions::CELLS],
            pages: [0; 16],
            attention,
            enough: refill::NEVER_ENOUGH,
            missed,
            tables: jumps.tables(),
            panic: None,
            stop: None,
            jumps,
            spaces: Vec::new(),
            newest: 0,
            leaving: Vec::new(),
            regions_from: 0,
        }
    }
}

/// Arithmetic flags in their RFLAGS places, as translated code keeps them.
fn pack(flags: &Flags) -> u16 {
    let value = flags.arithmetic() as u16;
    (value & 0xd5 | 2) << 8 | value >> 11 & 1
}

/// The reverse.
fn unpack(packed: u16, flags: &mut Flags) {
    flags.set_arithmetic(u64::from(packed >> 8 & 0xd5 | (packed & 1) << 11));
}

/// What is known of a translation that is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// Nothing against it.
    Fresh,
    /// It has just been left because it is stale.
    Stale,
}

/// How translated code was left.
#[derive(Debug)]
pub(super) enum Left {
    /// RIP says where to go on: there is no translation.
    At,
    /// Poll, then go on at RIP.
    Poll,
    /// The instruction that starts at this offset stopped.
    Stopped(u64, Stop),
}

impl Cpu {
    /// Whether translated code may run: not when something counts every instruction.
    #[inline(always)]
    pub(super) fn translates(&self) -> bool {
        self.t1.key != NO_KEY && !self.counts
    }

    /// Recomputes the mode's key; part of [`Cpu::mode_changed`].
    pub(super) fn translation_mode_changed(&mut self) {
        self.t1.key = NO_KEY;
        // Chaos mode wants each miss.
        self.t1.enough = if self.dice.is_some() { refill::NEVER_ENOUGH } else { refill::enough(self.cr0, self.cr4) };
        if !self.t1.enabled || self.tlb_class == class::USER_ALIGNED {
            return;
        }
        let wide = match self.code_size {
            CodeSize::Bits64 => WIDE,
            CodeSize::Bits32 => {
                let flat = |number: u8| {
                    let span = &self.spans[usize::from(number)];
                    span.base == 0 && span.read_end == 1 << 32 && (number == seg::CS || span.write_end == 1 << 32)
                };
                if self.stack_mask != 0xffff_ffff || ![seg::CS, seg::SS, seg::DS, seg::ES].into_iter().all(flat) {
                    return;
                }
                0
            }
            CodeSize::Bits16 => return,
        };
        let vector = host_fp::available()
            && self.cr0 & (cr0::EM | cr0::TS) == 0
            && self.cr4 & cr4::OSFXSR != 0
            // Bits that no MXCSR has would be #GP on the host.
            && self.fpu.mxcsr & (MASKS | 0xffff_0000) == MASKS;
        let x87 = host_fp::available() && self.cr0 & (cr0::EM | cr0::TS) == 0 && self.x87_is_masked();
        let vectors = if vector { VECTOR } else { 0 } | if vector && self.avx_enabled() { AVX } else { 0 };
        self.t1.key = self.tlb_class | wide | vectors | if x87 { X87 } else { 0 };
    }

    /// MXCSR was loaded: its masks are part of the mode's key.
    pub(super) fn mxcsr_changed(&mut self) {
        self.translation_mode_changed();
    }

    /// Counts an execution of a trace. Its translation, if it has become hot enough for one.
    pub(super) fn hot_translation(&mut self, at: TraceRef) -> Option<u64> {
        if self.traces.heat(at) <= self.t1.hot {
            return None;
        }
        let entry = self.translated(self.rip, Found::Fresh).or_else(|| self.translate_trace(at));
        if entry.is_none() {
            self.traces.cool(at);
        }
        entry
    }

    /// The translation at RIP, if there is one, for this address or for another at which the same code was executed.
    pub(super) fn known_translation(&mut self) -> Option<u64> {
        self.rip &= self.linear_mask;
        self.translated(self.rip, Found::Fresh)
    }

    /// The translation at an offset in CS, if there is one. `found`: what the one that is known turned out to be.
    fn translated(&mut self, rip: u64, found: Found) -> Option<u64> {
        if self.t1.key == NO_KEY {
            return None;
        }
        self.enter_spaces()?;
        // The checks that finding a trace makes: whoever fails them is for the interpreter.
        if self.code_size == CodeSize::Bits64 && !super::cpu::is_canonical(rip) {
            return None;
        }
        let fetch = self.fetch_page(rip).ok()?;
        if fetch.page.is_null() {
            return None;
        }
        let host = fetch.page as u64 + (rip & !PAGE_MASK);
        let place = block::block_key(host, self.t1.key);
        if found == Found::Stale {
            self.t1.jumps.remember_place(place, 0);
        }
        let known = self.t1.jumps.find_place(place).filter(|code| *code != 0);
        let mut in_global_pages = fetch.epoch != self.traces.epoch();
        let entry = match known {
            Some(entry) => entry,
            None => {
                let (entry, second) = self.find_in_spaces(host)?;
                match second {
                    None => self.t1.jumps.remember_place(place, entry),
                    // Places know nothing of second pages: such a block is looked for here each time.
                    Some(page) => {
                        let behind = (rip & PAGE_MASK).wrapping_add(PAGE_BYTES) & self.linear_mask;
                        let fetch = self.fetch_page(behind).ok().filter(|fetch| fetch.page == page)?;
                        in_global_pages &= fetch.epoch != self.traces.epoch();
                    }
                }
                entry
            }
        };
        self.t1.jumps.remember(self.t1.key, rip, entry, in_global_pages);
        Some(entry)
    }

    /// The valid block at a host address in any space (see [`Space::find`]) but one that is the next to go: what is still wanted
    /// of that is made anew.
    fn find_in_spaces(&mut self, host: u64) -> Option<(u64, Option<*const u8>)> {
        let fabric = self.fabric.clone();
        let oldest = usize::from(self.t1.spaces.len() == PARTS - 1);
        for at in (oldest..self.t1.spaces.len()).rev() {
            let space = self.t1.spaces[at].clone();
            let counters = &fabric.translations.counters;
            let found = space.find(host, self.t1.key, counters, |state, page, first, bytes| {
                // SAFETY: the space holds the page's block of memory.
                self.mark_code(unsafe { &*state }, page, first, bytes);
            });
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Makes the vCPU's view current: the spaces, and the jump caches.
    fn enter_spaces(&mut self) -> Option<()> {
        let number = self.fabric.translations.number();
        if self.t1.newest != number || number == 0 {
            self.t1.jumps.forget_all();
            match self.fabric.translations.spaces() {
                Ok(spaces) => {
                    self.t1.leaving.append(&mut self.t1.spaces);
                    self.t1.newest = spaces.last()?.number;
                    self.t1.spaces = spaces;
                    self.t1.regions_from = 0;
                    for space in &self.t1.spaces {
                        self.shared.sampler.set_code(space.ground().places(), space.part, space.regions_from(), space.number);
                    }
                }
                Err(error) => {
                    tracing::warn!("the translator is off: no memory for code: {error}");
                    (self.t1.enabled, self.t1.key) = (false, NO_KEY);
                    return None;
                }
            }
        }
        let newest = self.t1.spaces.last()?;
        if self.t1.regions_from != newest.regions_from() {
            self.t1.regions_from = newest.regions_from();
            self.shared.sampler.set_code(newest.ground().places(), newest.part, self.t1.regions_from, newest.number);
        }
        if self.t1.jumps.enter(self.traces.epochs()) {
            self.t1.tables = self.t1.jumps.tables();
        }
        Some(())
    }

    /// What a block is made from: a trace, and those that follow where its last branch is not taken, as far as they are warm.
    fn request(&mut self, first: TraceRef) -> Option<Request> {
        let code = self.traces.code(first)?;
        let (rip, page_base) = (code.rip, code.rip & PAGE_MASK);
        let mut request = Request {
            key: self.t1.key,
            state: code.state,
            page: code.page,
            generation: code.generation,
            second: code.second,
            page_base,
            sources: Vec::with_capacity(code.ops.len()),
            bytes: Vec::new(),
        };
        let size = self.code_size;
        request.add(&code, size, self.cpuid.instruction_sets(), self.dice.as_mut())?;
        let mut last = first;
        while let Some(next) = self.warm_trace_behind(&request, last, rip) {
            let Some(code) = self.traces.code(next) else { break };
            if (code.page, code.generation) != (request.page, request.generation)
                || code.second.is_some()
                || request.add(&code, size, self.cpuid.instruction_sets(), self.dice.as_mut()).is_none()
            {
                break;
            }
            last = next;
        }
        block::find_live_flags(&mut request.sources);
        Some(request)
    }

    /// The trace behind `last`, which is the last of what began at `first`, if that ends in a branch that has not always been taken.
    fn warm_trace_behind(&mut self, request: &Request, last: TraceRef, first: u64) -> Option<TraceRef> {
        let source = request.sources.last()?;
        let branch = source.op.flags.contains(OpFlags::LAST) && source.instruction.is_jcc_short_or_near();
        if !branch || source.next >= 4096 || request.sources.len() > MOST_INSTRUCTIONS / 2 {
            return None;
        }
        if self.t1.hot == 0 {
            // Where everything is translated at once, everything is warm.
            let (rip, epoch) = (self.rip, self.traces.epoch());
            self.rip = first.wrapping_add(request.bytes.len() as u64);
            let found = self.find_trace();
            self.rip = rip;
            // The traces may have been dropped for want of room.
            return found.ok().filter(|_| self.traces.epoch() == epoch);
        }
        self.traces.behind(last).filter(|next| self.traces.get(*next).heat > self.t1.hot / 4)
    }

    /// Translates a trace. `None`: it cannot be, or not now.
    fn translate_trace(&mut self, at: TraceRef) -> Option<u64> {
        let before = self.shared.sampler.begin(Place::Translating);
        let entry = self.translate_now(at);
        self.shared.sampler.end(before);
        entry
    }

    fn translate_now(&mut self, at: TraceRef) -> Option<u64> {
        let began = std::time::Instant::now();
        let request = self.request(at)?;
        let fabric = self.fabric.clone();
        let translations = &fabric.translations;
        if let Some(dice) = &mut self.dice
            && dice.fall(dice.chances.replacements)
        {
            translations.renew(self.t1.newest).ok()?;
            self.enter_spaces()?;
        }
        let mut space = self.t1.spaces.last()?.clone();
        let pages = [Some(request.page), request.second.map(|second| second.page)];
        let hold = |held_blocks: &Vec<engine_memory::Block>, held: &mut Vec<engine_memory::Block>| {
            for page in pages.into_iter().flatten() {
                if let Some(block) = held_blocks.iter().find(|block| block.holds(page))
                    && !held.iter().any(|held| held.is(block))
                {
                    held.push(block.clone());
                }
            }
        };
        let mut entry = space.translate(&request, |held| hold(&self.held_blocks, held), translations);
        if entry.is_none() {
            translations.renew(space.number).ok()?;
            // The others are to leave what goes soon.
            fabric.for_each(|cpu| cpu.raise(crate::shared::attention::SELF));
            self.enter_spaces()?;
            let newest = self.t1.spaces.last()?.clone();
            if newest.number != space.number {
                space = newest;
                entry = space.translate(&request, |held| hold(&self.held_blocks, held), translations);
            }
        }
        if let Some(entry) = entry {
            let key = request.block_key();
            self.t1.spaces.iter().filter(|older| older.number < space.number).for_each(|older| older.supersede(key, entry));
        }
        translations.counters.nanoseconds.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        if translations.compiler.options.is_some_and(|options| options.threshold == 0) {
            self.want_region(&space);
        }
        entry
    }

    /// Chaos mode, behind an instruction that the interpreter has executed for translated code.
    #[cold]
    fn make_trouble(&mut self, site: &Site) {
        let Some(dice) = &mut self.dice else { return };
        let chances = dice.chances;
        let [leave, write, flush] = [chances.exits, chances.stale_pages, chances.flushes].map(|chance| dice.fall(chance));
        if leave {
            self.shared.raise(crate::shared::attention::SELF);
        }
        if flush {
            self.tlb.flush();
        }
        // SAFETY: the block's record lives as long as the space, and so does the state of the block's page.
        let page = unsafe { &*(*site.block).page };
        if write && page.note_write(site.start.into(), 1) {
            self.code_went_stale();
        }
    }

    /// Runs translated code from `entry`, which is that of the block at RIP, until there is something else to do.
    pub(super) fn run_translated(&mut self, entry: u64) -> Left {
        let left = self.run_blocks(entry);
        self.x87_from_host();
        left
    }

    fn run_blocks(&mut self, mut entry: u64) -> Left {
        self.running.count = 0;
        let mut link: Option<(Arc<Space>, Numbered)> = None;
        loop {
            self.publish_regions();
            if let Some((space, number)) = link.take()
                && let Some(target) = self.t1.space_at(entry)
            {
                space.make_link(number, entry, &target);
                self.fabric.translations.counters.links.fetch_add(1, Ordering::Relaxed);
            }
            // Nothing that is translated is on the stack now.
            self.t1.leaving.clear();
            let Some(space) = self.t1.spaces.last() else { return Left::At };
            let enter = space.ground().stubs.enter;
            self.t1.page_base = self.rip & PAGE_MASK;
            self.t1.flags = pack(&self.flags);
            let this: *mut Self = self;
            // SAFETY: the stub lies there; `entry` is a block of one of `t1.spaces`, which stay alive there or in `t1.leaving` until
            // translated code has been left; that keeps the ABI and touches the CPU only through `this`.
            let reason = unsafe {
                let enter = std::mem::transmute::<u64, extern "sysv64" fn(*mut Self, u64) -> u32>(enter);
                enter(this, entry)
            };
            self.retired = self.retired.wrapping_add_signed(-std::mem::take(&mut self.countdown));
            self.shared.tally.count(happening(reason));
            // Other CPUs may have led blocks on to a space that has come since.
            if self.t1.newest != self.fabric.translations.number() {
                self.enter_spaces();
            }
            let mut flags = self.flags;
            unpack(self.t1.flags, &mut flags);
            self.flags = flags;
            let place = |this: &Self, place: u32| this.t1.page_base.wrapping_add(u64::from(place)) & this.linear_mask;
            let argument = reason >> leave::SHIFT;
            let mut found = Found::Fresh;
            match reason & leave::MASK {
                leave::LOOK_UP => {}
                leave::ATTEND => return Left::Poll,
                leave::LINK => {
                    let number = Numbered(argument);
                    let space = self.t1.space_of(number);
                    self.rip = place(self, space.link_target(number));
                    link = Some((space, number));
                }
                leave::POLL => {
                    self.rip = place(self, argument);
                    return Left::Poll;
                }
                leave::STALE | leave::CROSSING => {
                    self.rip = place(self, argument);
                    found = Found::Stale;
                }
                leave::HOT => {
                    let number = Numbered(argument);
                    let space = self.t1.space_of(number);
                    self.rip = place(self, space.heat_target(number));
                    if space.number == self.t1.newest {
                        self.want_region(&space);
                    } else {
                        // There is no more room in its space: it becomes a block of the newest, and hot there.
                        self.translate_again();
                    }
                }
                leave::USELESS => {
                    self.rip = place(self, argument);
                    let counters = &self.fabric.translations.counters;
                    self.t1.spaces.iter().for_each(|space| space.consider(self.t1.scratch[0], counters));
                }
                leave::PANIC => match self.t1.panic.take() {
                    Some(panic) => {
                        self.x87_from_host();
                        std::panic::resume_unwind(panic)
                    }
                    None => return Left::At,
                },
                _ => {
                    let (start, stop) = self.t1.stop.take().unwrap_or((self.rip, Stop::EndTrace));
                    return Left::Stopped(start, stop);
                }
            }
            if self.shared.attention() != 0 {
                return Left::Poll;
            }
            match self.translated(self.rip, found) {
                Some(next) => entry = next,
                None => return Left::At,
            }
        }
    }

    /// Translates what is at RIP once more, into the newest space.
    fn translate_again(&mut self) -> Option<u64> {
        let trace = self.find_trace().ok()?;
        self.translate_trace(trace)
    }

    /// No translated code is on the stack: what is not current any more need not be kept. Part of every poll.
    pub(super) fn leave_old_spaces(&mut self) {
        if self.t1.newest != self.fabric.translations.number() && self.t1.newest != 0 {
            self.enter_spaces();
        }
        self.t1.leaving.clear();
    }
}

impl Translator {
    /// The space that may run in which an address lies.
    fn space_at(&self, address: u64) -> Option<Arc<Space>> {
        let part = self.spaces.last()?.ground().part_of(address)?;
        self.spaces.iter().find(|space| space.part == part).cloned()
    }

    /// The space of a link or counter that translated code has just named. (Nobody else has the part as long as this CPU holds a
    /// space there.)
    fn space_of(&self, number: Numbered) -> Arc<Space> {
        let space = self.spaces.iter().chain(&self.leaving).find(|space| space.part == number.part());
        space.expect("a CPU holds the spaces in which it executes").clone()
    }
}

/// What it means that translated code was left for a reason.
fn happening(reason: u32) -> Happening {
    match reason & leave::MASK {
        leave::LOOK_UP | leave::LINK | leave::CROSSING => Happening::JumpMissed,
        leave::POLL | leave::ATTEND => Happening::Polled,
        leave::STALE => Happening::WasStale,
        _ => Happening::Stopped,
    }
}

/// Called by translated code: the interpreter executes one instruction. Zero: the block goes on behind it. What fits in 32 bits
/// is why translated code is left; all else is the address of the code to go on with.
///
/// A panic does not unwind through translated code: it waits in the CPU until that has been left.
extern "sysv64" fn interpret_one(cpu: *mut Cpu, site: *const Site) -> u64 {
    // SAFETY: translated code passes the CPU that runs it, of which nobody else holds a reference now, and a site of the space that it lies in.
    let (cpu, site) = unsafe { (&mut *cpu, &*site) };
    debug_assert_eq!((cpu.t1.vectors_resident, vectors::mxcsr() & !0x3f), (0, cpu.t1.host_mxcsr), "Rust under the guest's MXCSR");
    let shielded = std::panic::AssertUnwindSafe(|| interpret(&mut *cpu, site));
    match std::panic::catch_unwind(shielded) {
        Ok(answer) => answer,
        Err(panic) => {
            cpu.t1.panic = Some(panic);
            leave::PANIC.into()
        }
    }
}

#[inline(always)]
fn interpret(cpu: &mut Cpu, site: &Site) -> u64 {
    let page = cpu.t1.page_base;
    let epoch = cpu.traces.epoch();
    let next = page.wrapping_add(u64::from(site.next)) & cpu.linear_mask;
    cpu.rip = next;
    let key = cpu.t1.key;
    let packed = cpu.t1.flags;
    if site.touches_x87 {
        cpu.x87_from_host();
    }
    if site.flags {
        unpack(packed, &mut cpu.flags);
    }
    let result = if page == site.page || site.relative == Relative::Nothing {
        let mut result = (site.op.handler)(cpu, &site.op);
        // A repeated instruction goes on as long as nobody waits for its end.
        while result == Err(Stop::Again) && is_fresh(site) && cpu.t1.key == key && cpu.is_undisturbed() {
            cpu.retired += 1;
            result = (site.op.handler)(cpu, &site.op);
        }
        result
    } else {
        let mut op = site.op;
        let moved = page.wrapping_sub(site.page);
        match site.relative {
            Relative::Target => op.imm = op.imm.wrapping_add(moved) & cpu.linear_mask,
            _ => op.disp = op.disp.wrapping_add(moved),
        }
        (op.handler)(cpu, &op)
    };
    if site.flags {
        cpu.t1.flags = pack(&cpu.flags);
    }
    cpu.shared.tally.count_call(site.cause, site.op.code);
    if cpu.dice.is_some() {
        cpu.make_trouble(site);
    }
    let behind = u64::from(site.behind);
    match result {
        Ok(()) => {
            // A handler that waited for other CPUs may come back to a request of theirs, which goes first.
            let quiet = cpu.shared.attention() == 0;
            if !site.leaves && quiet && is_fresh(site) && cpu.t1.key == key && cpu.traces.epoch() == epoch {
                if site.holds_x87 {
                    cpu.x87_to_host();
                }
                return 0;
            }
            cpu.shared.tally.count(Happening::ChangedCourse);
            cpu.retired -= behind;
            if quiet { cpu.go_on() } else { leave::ATTEND.into() }
        }
        Err(Stop::EndTrace) => {
            cpu.retired -= behind;
            if cpu.is_undisturbed() { cpu.go_on() } else { leave::ATTEND.into() }
        }
        Err(Stop::Exception(exception)) => {
            cpu.retired -= behind + 1;
            cpu.rip = page.wrapping_add(u64::from(site.start)) & cpu.linear_mask;
            unpack(cpu.t1.flags, &mut cpu.flags);
            let delivered = deliver(cpu, exception);
            cpu.t1.flags = pack(&cpu.flags);
            match delivered {
                Ok(()) if cpu.is_undisturbed() => cpu.go_on(),
                Ok(()) | Err(Stop::EndTrace) => leave::ATTEND.into(),
                Err(stop) => {
                    cpu.t1.stop = Some((cpu.rip, stop));
                    leave::STOP.into()
                }
            }
        }
        Err(stop) => {
            cpu.retired -= behind + 1;
            cpu.t1.stop = Some((page.wrapping_add(u64::from(site.start)) & cpu.linear_mask, stop));
            leave::STOP.into()
        }
    }
}

fn is_fresh(site: &Site) -> bool {
    // SAFETY: the block's record lives as long as the space, and its code calls with this site.
    unsafe { (*site.block).is_fresh() }
}

impl Cpu {
    /// Whether a poll would find nothing to do, and nothing watches the next instruction.
    fn is_undisturbed(&self) -> bool {
        // Interrupts that RFLAGS.IF holds back wait for its return, which asks for a poll.
        let waits = self.events_waiting && (self.nmi_pending || self.flags.has(bit::IF));
        self.shared.attention() == 0
            && !waits
            && self.pending_debug == 0
            && self.activity == Activity::Running
            && !self.is_watched()
            && self.fabric.memory.generation() == self.memory_generation
    }

    /// The code at RIP, or the reason to leave translated code with.
    fn go_on(&mut self) -> u64 {
        self.rip &= self.linear_mask;
        // Only the dispatcher lets go of spaces.
        let is_current = self.t1.newest == self.fabric.translations.number();
        if self.t1.key == NO_KEY || !is_current || self.enter_spaces().is_none() {
            return leave::LOOK_UP.into();
        }
        let entry = self.t1.jumps.find(self.t1.key, self.rip).or_else(|| self.translated(self.rip, Found::Fresh));
        match entry {
            Some(entry) => {
                self.t1.page_base = self.rip & PAGE_MASK;
                entry
            }
            None => leave::LOOK_UP.into(),
        }
    }
}

impl Request {
    /// Appends the instructions of a trace. Nothing is appended if it is not what it seems.
    fn add(&mut self, code: &TraceCode<'_>, size: CodeSize, sets: &InstructionSets, mut dice: Option<&mut Dice>) -> Option<()> {
        let mask = if size == CodeSize::Bits64 { u64::MAX } else { 0xffff_ffff };
        let mut place = (code.rip & !PAGE_MASK) as u32;
        let mut left = &code.bytes[..];
        let already = self.sources.len();
        for op in code.ops {
            let rip = self.page_base.wrapping_add(u64::from(place)) & mask;
            let instruction = decode::instruction(left, size, rip, sets);
            if instruction.len() != usize::from(op.len) {
                self.sources.truncate(already);
                return None;
            }
            let next = place + u32::from(op.len);
            let interpreted = dice.as_mut().is_some_and(|dice| dice.fall(dice.chances.bails));
            let vectors = if interpreted { Residency::Nothing } else { vector::wanted(op, &instruction, self.key) };
            let x87 = !interpreted && x87::is_native(op, &instruction, self.key);
            let (live_after, live_before) = (0, 0);
            self.sources.push(Source {
                op: *op,
                instruction,
                start: place,
                next,
                vectors,
                x87,
                live_after,
                live_before,
                interpreted,
            });
            place = next;
            left = left.get(usize::from(op.len)..)?;
        }
        self.bytes.extend_from_slice(&code.bytes);
        Some(())
    }
}
