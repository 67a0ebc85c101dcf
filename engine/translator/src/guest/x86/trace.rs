//! Decoded traces: making them, finding them, and noticing that they are stale.
//!
//! A trace is up to 32 instructions that follow each other in memory. It is known by the host address of its first byte, its
//! offset, linear address and mode, and valid as long as the page's `code_generation` is what it was when the bytes were read.
//! Traces never cross a page, but for a first instruction that does: then it is alone and both pages are checked.
//!
//! Links from a trace to its successors, and fetched pages, hold for one *epoch*: until a mapping changes. There are two at a
//! time: one for what lies in global pages and one for the rest. Each address space has its own of the latter, which holds
//! again when it is entered again.

use super::cpu::{CodeSize, Cpu, seg};
use super::decode::{Decoded, MAX_BYTES, decode};
use super::fault::{Exec, Stop};
use super::fetched::Fetched;
use super::op::Op;
use crate::mmu::{Access, PAGE_MASK, PhysicalPage};
use engine_memory::{PAGE_BYTES, PageState};

/// Most instructions in a trace.
const MAX_OPS: usize = 32;
/// Traces that can be kept; when they run out, all are dropped.
const MAX_TRACES: usize = 96 * 1024;
/// Ops that can be kept.
const MAX_ARENA: usize = 640 * 1024;
/// Slots of the table that finds a trace.
const TABLE: usize = 1 << 16;
/// Slots of the cache of fetched pages.
const FETCHES: usize = 512;
/// How many address spaces' epochs are remembered.
const CONTEXTS: usize = 64;
/// Slots of the cache of jump targets.
const JUMPS: usize = 4096;
/// Places in code whose heat is remembered: a power of two.
const WARMTHS: usize = 1 << 17;
const NONE: u32 = u32::MAX;

/// The epochs that hold now, as numbers that never come back for anything else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Epochs {
    /// That of the address space, for what is not global.
    pub local: u64,
    /// That of global pages.
    pub global: u64,
}

/// A trace by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceRef(u32);

/// A trace.
pub(crate) struct Trace {
    /// Its ops.
    pub first: *const Op,
    /// How many.
    pub count: u32,
    mode: u8,
    /// Bytes of all ops.
    bytes: u16,
    /// Until when it may be reached by what led to it last.
    epoch: u32,
    rip: u64,
    linear: u64,
    host: u64,
    generation: u32,
    second_generation: u32,
    state: *const PageState,
    /// The page in which a first instruction that crosses ends; null for all others.
    second_state: *const PageState,
    second_host: u64,
    links: [Link; 2],
    /// Executions, as far as the translator counts them; those of the same code at other addresses are among them.
    pub heat: u32,
    /// Under what that is remembered.
    place: u32,
}

/// What a trace was made from.
pub(super) struct TraceCode<'a> {
    pub ops: &'a [Op],
    pub rip: u64,
    pub bytes: Vec<u8>,
    /// The page, in the host.
    pub page: *const u8,
    pub state: *const PageState,
    /// The page's generation for which ops and bytes hold.
    pub generation: u32,
    /// The page in which its only instruction ends, if that is another.
    pub second: Option<SecondPage>,
}

/// The page behind that of an instruction which lies in both.
#[derive(Debug, Clone, Copy)]
pub(super) struct SecondPage {
    /// The page, in the host.
    pub page: *const u8,
    pub state: *const PageState,
    /// The page's generation for which the instruction holds.
    pub generation: u32,
}

#[derive(Clone, Copy)]
struct Link {
    rip: u64,
    epoch: u32,
    to: u32,
}

const NO_LINK: Link = Link { rip: 0, epoch: 0, to: NONE };

/// A page as instructions are fetched from it. Null pointers: no memory there.
#[derive(Clone, Copy)]
pub(super) struct Fetch {
    tag: u64,
    /// Until when it holds.
    pub epoch: u32,
    user: bool,
    pub page: *const u8,
    state: *const PageState,
    physical: u64,
}

/// All traces of one vCPU.
pub(crate) struct Traces {
    table: Vec<u32>,
    traces: Vec<Trace>,
    /// `MAX_ARENA` ops, allocated once; raw because a running trace's ops are patched behind a shared reference to one of them.
    ops: *mut Op,
    ops_used: usize,
    /// The epoch of what is not global, that of what is, and the last that was given out.
    epoch: u32,
    global_epoch: u32,
    last_epoch: u32,
    /// How often all numbers have been used.
    rounds: u32,
    /// The epochs of address spaces, by the second-level TLB's number for them.
    contexts: [(u32, u32); CONTEXTS],
    /// The second-level TLB's number for the current one.
    context: u32,
    /// Pages from which something has been fetched since links to them were forgotten: those that are not global, and the others.
    fetched: [Fetched; 2],
    fetches: Vec<Fetch>,
    jumps: Vec<Link>,
    /// The heat of places in memory, whatever their addresses: programs that are started again lie at others, and so do
    /// libraries, but what is hot in all of them together is worth a translation.
    warmth: Vec<Warmth>,
    /// The op of code that lies in no memory (device space): executed once and not kept.
    loose: Option<u32>,
}

/// The trace that is being executed: what [`Cpu::sync_clock`] needs to count.
pub(crate) struct Running {
    pub first: *const Op,
    pub rip: u64,
    pub trace: TraceRef,
    /// 0 between traces.
    pub count: u32,
}

// SAFETY: the pointers lead into blocks that the owning CPU holds and into the arena; whichever thread runs that CPU uses them.
unsafe impl Send for Traces {}
// SAFETY: as above.
unsafe impl Send for Running {}

impl Running {
    pub const fn nothing() -> Self {
        Self { first: std::ptr::null(), rip: 0, trace: TraceRef(NONE), count: 0 }
    }
}

fn arena_layout() -> std::alloc::Layout {
    std::alloc::Layout::array::<Op>(MAX_ARENA).expect("the arena's size is a constant that fits")
}

impl Drop for Traces {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout; `Op` needs no drop.
        unsafe { std::alloc::dealloc(self.ops.cast(), arena_layout()) }
    }
}

impl Traces {
    pub fn new() -> Box<Self> {
        // SAFETY: the layout is not empty. The memory is committed by the host as it is used.
        let ops = unsafe { std::alloc::alloc(arena_layout()) }.cast::<Op>();
        assert!(!ops.is_null(), "no memory for decoded instructions");
        let nowhere = Fetch { tag: 1, epoch: 0, user: false, page: std::ptr::null(), state: std::ptr::null(), physical: 0 };
        Box::new(Self {
            table: vec![NONE; TABLE],
            traces: Vec::new(),
            ops,
            ops_used: 0,
            epoch: 1,
            global_epoch: 2,
            last_epoch: 2,
            rounds: 0,
            contexts: [(0, 0); CONTEXTS],
            context: 0,
            fetched: [Fetched::default(), Fetched::default()],
            fetches: vec![nowhere; FETCHES],
            jumps: vec![NO_LINK; JUMPS],
            warmth: vec![Warmth::default(); WARMTHS],
            loose: None,
        })
    }

    /// The trace `at`.
    #[inline(always)]
    pub fn get(&self, at: TraceRef) -> &Trace {
        &self.traces[at.0 as usize]
    }

    /// No link may be followed any more: mappings have changed.
    pub fn forget_links(&mut self) {
        self.contexts = [(0, 0); CONTEXTS];
        self.fetched.iter_mut().for_each(Fetched::clear);
        self.global_epoch = self.new_epoch();
        self.epoch = self.new_epoch();
    }

    /// An address space is entered, which has this number at the second-level TLB: its own links hold, and the global ones.
    pub fn enter(&mut self, context: u32) {
        let slot = context as usize % CONTEXTS;
        if self.contexts[slot].0 != context {
            self.contexts[slot] = (context, self.new_epoch());
        }
        self.context = context;
        self.epoch = self.contexts[slot].1;
    }

    /// The mapping of the page of `linear`, of whatever size, has changed in the current address space or for all.
    pub fn forget_page(&mut self, linear: u64) {
        if self.fetched[1].has(linear) {
            self.forget_links();
        } else if self.fetched[0].has(linear) {
            // The current address space alone: others still have what they had.
            self.epoch = self.new_epoch();
            if let Some(context) = self.contexts.get_mut(self.context as usize % CONTEXTS) {
                *context = (self.context, self.epoch);
            }
        }
    }

    /// The same in an address space that is not the current one.
    pub fn forget_page_elsewhere(&mut self, linear: u64) {
        if self.fetched.iter().any(|fetched| fetched.has(linear)) {
            self.forget_links();
        }
    }

    fn new_epoch(&mut self) -> u32 {
        if self.last_epoch == u32::MAX {
            self.last_epoch = 0;
            self.rounds = self.rounds.wrapping_add(1);
            self.drop_traces();
            self.contexts = [(0, 0); CONTEXTS];
            // Neither may match what was made under the numbers before.
            (self.global_epoch, self.epoch, self.last_epoch) = (1, 2, 2);
        }
        self.last_epoch += 1;
        self.last_epoch
    }

    fn forget_all(&mut self) {
        self.drop_traces();
        self.forget_links();
    }

    fn drop_traces(&mut self) {
        self.table.fill(NONE);
        self.traces.clear();
        self.ops_used = 0;
        self.fetches.iter_mut().for_each(|fetch| fetch.tag = 1);
        self.jumps.fill(NO_LINK);
        self.loose = None;
    }

    /// Whether what was found under this epoch still holds.
    #[inline(always)]
    pub fn holds(&self, epoch: u32) -> bool {
        epoch == self.epoch || epoch == self.global_epoch
    }

    /// The successor of `from` at `rip`, if it is known and still valid. Only within a chain: mode and CS have not changed.
    #[inline(always)]
    pub fn follow(&mut self, from: TraceRef, rip: u64) -> Option<TraceRef> {
        let trace = &self.traces[from.0 as usize];
        let [first, second] = trace.links;
        let to = if first.rip == rip && self.holds(first.epoch) {
            first.to
        } else if second.rip == rip && self.holds(second.epoch) {
            second.to
        } else {
            let jump = &self.jumps[jump_slot(rip)];
            if jump.rip != rip || !self.holds(jump.epoch) {
                return None;
            }
            let target = self.traces.get(jump.to as usize)?;
            if target.mode != trace.mode || target.linear.wrapping_sub(rip) != trace.linear.wrapping_sub(trace.rip) {
                return None;
            }
            jump.to
        };
        let target = self.traces.get(to as usize)?;
        target.is_fresh().then_some(TraceRef(to))
    }

    /// Counts an execution of a trace; returns how many there were.
    #[inline(always)]
    pub fn heat(&mut self, at: TraceRef) -> u32 {
        let trace = &mut self.traces[at.0 as usize];
        trace.heat = trace.heat.saturating_add(1);
        self.warmth[trace.place as usize % WARMTHS] = Warmth { place: trace.place, heat: trace.heat };
        trace.heat
    }

    /// A trace is not to be heard of for a while.
    pub fn cool(&mut self, at: TraceRef) {
        if let Some(trace) = self.traces.get_mut(at.0 as usize) {
            trace.heat = 0;
            self.warmth[trace.place as usize % WARMTHS].heat = 0;
        }
    }

    /// The trace that begins where another ends, if it is known and fresh.
    pub fn behind(&self, at: TraceRef) -> Option<TraceRef> {
        let trace = self.get(at);
        let bytes = u64::from(trace.bytes);
        let (host, rip, linear) = (trace.host + bytes, trace.rip.wrapping_add(bytes), trace.linear.wrapping_add(bytes));
        let number = self.table[table_slot(host, rip)];
        let next = self.traces.get(number as usize)?;
        let same = next.host == host && next.rip == rip && next.linear == linear && next.mode == trace.mode;
        (same && next.second_state.is_null() && next.is_fresh()).then_some(TraceRef(number))
    }

    /// What a trace was made from; nothing if it is stale, or not from memory.
    pub(super) fn code(&self, at: TraceRef) -> Option<TraceCode<'_>> {
        let trace = self.get(at);
        if trace.bytes == 0 {
            return None;
        }
        let inside = trace.linear & !PAGE_MASK;
        let page = (trace.host - inside) as *const u8;
        let mut bytes = vec![0; trace.bytes.into()];
        let in_page = bytes.len().min((PAGE_BYTES - inside) as usize);
        copy_code(page, inside, &mut bytes[..in_page]);
        let second = (!trace.second_state.is_null()).then_some(SecondPage {
            page: trace.second_host as *const u8,
            state: trace.second_state,
            generation: trace.second_generation,
        });
        if let Some(second) = &second {
            copy_code(second.page, 0, &mut bytes[in_page..]);
        }
        // SAFETY: the trace's ops are in the arena.
        let ops = unsafe { std::slice::from_raw_parts(trace.first, trace.count as usize) };
        let (rip, state, generation) = (trace.rip, trace.state, trace.generation);
        trace.is_fresh().then_some(TraceCode { ops, rip, bytes, page, state, generation, second })
    }

    /// The epoch: references and links from before another epoch must not be used. It changes whenever any mapping does, and may come
    /// back only when all mappings are again what they were under it.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The epochs that hold now.
    pub fn epochs(&self) -> Epochs {
        let number = |epoch: u32| u64::from(self.rounds) << 32 | u64::from(epoch);
        Epochs { local: number(self.epoch), global: number(self.global_epoch) }
    }

    /// Remembers `to` as a successor of `from`.
    pub fn link(&mut self, from: TraceRef, to: TraceRef) {
        let Some(target) = self.traces.get(to.0 as usize) else { return };
        let link = Link { rip: target.rip, epoch: target.epoch, to: to.0 };
        self.jumps[jump_slot(link.rip)] = link;
        let (epoch, global) = (self.epoch, self.global_epoch);
        let Some(trace) = self.traces.get_mut(from.0 as usize) else { return };
        let first = trace.links[0];
        if (first.epoch == epoch || first.epoch == global) && first.rip != link.rip {
            trace.links[1] = link;
        } else {
            trace.links[0] = link;
        }
    }
}

impl Trace {
    /// Whether its bytes are still what was decoded.
    #[inline(always)]
    pub(super) fn is_fresh(&self) -> bool {
        // SAFETY: states lie in blocks that the owning CPU holds.
        unsafe {
            (*self.state).code_generation() == self.generation
                && (self.second_state.is_null() || (*self.second_state).code_generation() == self.second_generation)
        }
    }
}

#[inline(always)]
fn jump_slot(rip: u64) -> usize {
    (rip ^ rip >> 12) as usize % JUMPS
}

fn table_slot(host: u64, rip: u64) -> usize {
    let mixed = (host ^ rip.rotate_left(20)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 48) as usize % TABLE
}

/// How often the code at a place in memory has been executed.
#[derive(Clone, Copy, Default)]
struct Warmth {
    place: u32,
    heat: u32,
}

/// A number for a place in memory; code that has been written anew is at another.
fn place_of(host: u64, generation: u32) -> u32 {
    let mixed = (host ^ u64::from(generation).rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32
}

impl Cpu {
    /// The trace at CS:RIP: found, or decoded now. Faults are those of fetching its first instruction.
    pub(super) fn find_trace(&mut self) -> Result<TraceRef, Stop> {
        self.rip &= self.linear_mask;
        let rip = self.rip;
        let linear = self.spans[usize::from(seg::CS)].base.wrapping_add(rip) & self.linear_mask;
        let wide = self.code_size == CodeSize::Bits64;
        let limit = if wide { u64::MAX } else { u64::from(self.segments[usize::from(seg::CS)].limit) };
        if rip > limit || (wide && !super::cpu::is_canonical(rip)) {
            return Err(Stop::gp(0));
        }
        let fetch = self.fetch_page(linear)?;
        if fetch.page.is_null() {
            return self.decode_loose(linear, rip, limit);
        }
        let host = fetch.page as u64 + (linear & !PAGE_MASK);
        let slot = table_slot(host, rip);
        if let Some(trace) = self.traces.traces.get_mut(self.traces.table[slot] as usize) {
            let at = TraceRef(self.traces.table[slot]);
            let same =
                trace.host == host && trace.rip == rip && trace.linear == linear && trace.mode == self.mode && trace.is_fresh();
            if same && (wide || rip + u64::from(trace.bytes) - 1 <= limit) {
                trace.epoch = fetch.epoch;
                if trace.second_state.is_null() {
                    return Ok(at);
                }
                let (bytes, second_host) = (trace.bytes, trace.second_host);
                let last = linear.wrapping_add(u64::from(bytes) - 1) & self.linear_mask;
                let second = self.fetch_page(last & PAGE_MASK)?;
                if second.page as u64 == second_host {
                    // The trace holds as long as both pages do.
                    let both = if fetch.epoch == second.epoch { fetch.epoch } else { self.traces.epoch };
                    self.traces.traces[at.0 as usize].epoch = both;
                    return Ok(at);
                }
            }
        }
        self.decode_trace(fetch, slot, linear, rip, limit)
    }

    /// Translates the page of `linear` for execution.
    pub(super) fn fetch_page(&mut self, linear: u64) -> Result<Fetch, Stop> {
        let tag = linear & PAGE_MASK;
        let user = self.cpl == 3;
        let slot = (tag >> 12) as usize % FETCHES;
        let known = &self.traces.fetches[slot];
        if known.tag == tag && self.traces.holds(known.epoch) && known.user == user {
            return Ok(*known);
        }
        let class = if user { crate::mmu::class::USER } else { crate::mmu::class::SUPERVISOR };
        let found = self.translate(class, linear, Access::Execute)?;
        let physical = found.physical & PAGE_MASK;
        let PhysicalPage { read, read_state, .. } = self.physical_page(physical);
        let epoch = if found.extent.global { self.traces.global_epoch } else { self.traces.epoch };
        let fetch = Fetch { tag, epoch, user, page: read, state: read_state, physical };
        self.traces.fetches[slot] = fetch;
        self.traces.fetched[usize::from(found.extent.global)].add(linear, found.extent.shift);
        Ok(fetch)
    }

    fn decode_trace(&mut self, fetch: Fetch, slot: usize, linear: u64, rip: u64, limit: u64) -> Result<TraceRef, Stop> {
        if self.traces.traces.len() >= MAX_TRACES || self.traces.ops_used + MAX_OPS >= MAX_ARENA {
            self.traces.forget_all();
        }
        let inside = linear & !PAGE_MASK;
        let in_page = (PAGE_BYTES - inside).min(limit.saturating_sub(rip).saturating_add(1));
        let window = in_page.min((MAX_OPS * 8) as u64) as usize;
        let first_op = self.traces.ops.wrapping_add(self.traces.ops_used);
        // SAFETY: the state lies in a held block.
        let state = unsafe { &*fetch.state };
        let (mut before, mut after) = ([0u8; MAX_OPS * 8], [0u8; MAX_OPS * 8]);
        for _attempt in 0..8 {
            // The order matters: generation, bytes, mark, bytes again. A write after the mark raises the generation; one before
            // it shows in the bytes.
            let generation = state.code_generation();
            copy_code(fetch.page, inside, &mut before[..window]);
            let (count, bytes) = self.decode_ops(&before[..window], first_op, rip);
            if count == 0 {
                return self.decode_crossing(fetch, slot, linear, rip, limit);
            }
            self.mark_code(state, fetch.page, inside, bytes as u64);
            copy_code(fetch.page, inside, &mut after[..bytes]);
            if before[..bytes] != after[..bytes] {
                continue;
            }
            self.traces.ops_used += count;
            let trace = Trace {
                first: first_op,
                count: count as u32,
                mode: self.mode,
                bytes: bytes as u16,
                epoch: fetch.epoch,
                rip,
                linear,
                host: fetch.page as u64 + inside,
                generation,
                second_generation: 0,
                state: fetch.state,
                second_state: std::ptr::null(),
                second_host: 0,
                links: [NO_LINK; 2],
                heat: 0,
                place: 0,
            };
            return Ok(self.publish(trace, slot));
        }
        // Somebody writes this code all the time: execute what is there now, once.
        self.decode_loose(linear, rip, limit)
    }

    fn publish(&mut self, mut trace: Trace, slot: usize) -> TraceRef {
        let at = self.traces.traces.len() as u32;
        trace.place = place_of(trace.host, trace.generation);
        let known = self.traces.warmth[trace.place as usize % WARMTHS];
        trace.heat = if known.place == trace.place { known.heat } else { 0 };
        self.traces.traces.push(trace);
        self.traces.table[slot] = at;
        TraceRef(at)
    }

    /// Decodes instructions from `bytes` into the arena; returns how many and their length. None when the first is incomplete.
    fn decode_ops(&mut self, bytes: &[u8], first: *mut Op, rip: u64) -> (usize, usize) {
        let (mut count, mut at) = (0, 0);
        while count < MAX_OPS && at < bytes.len() {
            let Decoded::Op(op) =
                decode(&bytes[at..], self.code_size, rip.wrapping_add(at as u64), self.cpuid.instruction_sets())
            else {
                break;
            };
            // SAFETY: the arena has room for `MAX_OPS` more, by the check in `decode_trace`.
            unsafe { first.wrapping_add(count).write(op) };
            count += 1;
            at += usize::from(op.len);
            if op.flags.contains(super::op::OpFlags::LAST) {
                break;
            }
        }
        (count, at)
    }

    /// Says that all of a page is code.
    pub(super) fn mark_page(&mut self, fetch: &Fetch) {
        // SAFETY: the state lies in a held block.
        let state = unsafe { &*fetch.state };
        self.mark_code(state, fetch.page, 0, PAGE_BYTES);
    }

    /// Says that code was decoded from a page, and takes the fast write path to it away from everybody.
    pub(super) fn mark_code(&mut self, state: &PageState, page: *const u8, first: u64, bytes: u64) {
        if state.add_code(first, bytes) {
            self.tlb.revoke_writes(page);
            let shared = self.shared.clone();
            self.fabric.clone().flush_others_and_wait(&shared);
            self.after_quiet();
        }
    }

    /// The first instruction does not end in this page, or not within the limit of CS.
    fn decode_crossing(&mut self, fetch: Fetch, slot: usize, linear: u64, rip: u64, limit: u64) -> Result<TraceRef, Stop> {
        let inside = linear & !PAGE_MASK;
        let in_page = (PAGE_BYTES - inside) as usize;
        let by_limit = limit.saturating_sub(rip).saturating_add(1).min(MAX_BYTES as u64) as usize;
        if in_page >= by_limit {
            // Nothing is left to fetch: too long, or beyond the limit.
            return Err(Stop::gp(0));
        }
        let second = self.fetch_page(linear.wrapping_add(in_page as u64) & self.linear_mask & PAGE_MASK)?;
        if second.page.is_null() {
            return self.decode_loose(linear, rip, limit);
        }
        // SAFETY: both states lie in held blocks.
        let (state, second_state) = unsafe { (&*fetch.state, &*second.state) };
        let first_op = self.traces.ops.wrapping_add(self.traces.ops_used);
        for _attempt in 0..8 {
            let (generation, second_generation) = (state.code_generation(), second_state.code_generation());
            let read = || {
                let mut bytes = [0; MAX_BYTES];
                copy_code(fetch.page, inside, &mut bytes[..in_page]);
                copy_code(second.page, 0, &mut bytes[in_page..by_limit]);
                bytes
            };
            let bytes = read();
            let Decoded::Op(op) = decode(&bytes[..by_limit], self.code_size, rip, self.cpuid.instruction_sets()) else {
                return Err(Stop::gp(0));
            };
            let len = usize::from(op.len);
            self.mark_code(state, fetch.page, inside, in_page.min(len) as u64);
            if len > in_page {
                self.mark_code(second_state, second.page, 0, (len - in_page) as u64);
            }
            if read()[..len] != bytes[..len] {
                continue;
            }
            // SAFETY: the arena has room, by the check in `decode_trace`.
            unsafe { first_op.write(op) };
            self.traces.ops_used += 1;
            let trace = Trace {
                first: first_op,
                count: 1,
                mode: self.mode,
                bytes: op.len.into(),
                epoch: if fetch.epoch == second.epoch { fetch.epoch } else { self.traces.epoch },
                rip,
                linear,
                host: fetch.page as u64 + inside,
                generation,
                second_generation,
                state: fetch.state,
                second_state: second.state,
                second_host: second.page as u64,
                links: [NO_LINK; 2],
                heat: 0,
                place: 0,
            };
            return Ok(self.publish(trace, slot));
        }
        self.decode_loose(linear, rip, limit)
    }

    /// Code outside memory, or code that changes while it is looked at: decodes one instruction from what can be read and keeps
    /// it for one use.
    fn decode_loose(&mut self, linear: u64, rip: u64, limit: u64) -> Result<TraceRef, Stop> {
        let by_limit = limit.saturating_sub(rip).saturating_add(1).min(MAX_BYTES as u64) as usize;
        let mut bytes = [0; MAX_BYTES];
        let mut have = 0;
        let op = loop {
            if have == by_limit {
                return Err(Stop::gp(0));
            }
            let at = linear.wrapping_add(have as u64) & self.linear_mask;
            let fetch = self.fetch_page(at)?;
            bytes[have] = self.read_physical::<u8>(fetch.physical | at & !PAGE_MASK) as u8;
            have += 1;
            if let Decoded::Op(op) = decode(&bytes[..have], self.code_size, rip, self.cpuid.instruction_sets()) {
                break op;
            }
        };
        static NEVER_STALE: std::sync::LazyLock<PageState> = std::sync::LazyLock::new(PageState::default);
        let state: &PageState = &NEVER_STALE;
        let at = match self.traces.loose {
            Some(at) if (at as usize) < self.traces.traces.len() => at,
            _ => {
                let at = self.traces.traces.len() as u32;
                let first = self.traces.ops.wrapping_add(self.traces.ops_used);
                self.traces.ops_used += 1;
                self.traces.traces.push(Trace {
                    first,
                    count: 1,
                    mode: 0,
                    bytes: 0,
                    epoch: 0,
                    rip: 0,
                    linear: 0,
                    host: 0,
                    generation: 0,
                    second_generation: 0,
                    state,
                    second_state: std::ptr::null(),
                    second_host: 0,
                    links: [NO_LINK; 2],
                    heat: 0,
                    place: 0,
                });
                self.traces.loose = Some(at);
                at
            }
        };
        let mode = self.mode;
        let trace = &mut self.traces.traces[at as usize];
        // SAFETY: the slot was set aside above and no trace that runs uses it now.
        unsafe { trace.first.cast_mut().write(op) };
        (trace.rip, trace.linear, trace.mode, trace.links) = (rip, linear, mode, [NO_LINK; 2]);
        // Its links must never be made, or a chain would run it a second time without looking.
        trace.generation = 1;
        Ok(TraceRef(at))
    }

    /// A write went into decoded code. If the running trace is stale now, it ends behind the current instruction: its remaining ops
    /// become exits. (It is never entered again, so nothing has to be put back.)
    #[cold]
    pub(crate) fn code_went_stale(&mut self) {
        if self.running.count < 2 || self.traces.get(self.running.trace).is_fresh() {
            return;
        }
        for at in 1..self.running.count {
            let op = self.running.first.wrapping_add(at as usize).cast_mut();
            // SAFETY: within the running trace's ops; the current op, to which the run loop holds a reference, is skipped below.
            unsafe {
                if !self.is_current(at) {
                    (&raw mut (*op).handler).write(leave_stale_trace);
                }
            }
        }
    }

    /// Whether op `at` of the running trace is the one whose handler runs now: `rip` points behind it.
    fn is_current(&self, at: u32) -> bool {
        let mut rip = self.running.rip;
        for before in 0..=at {
            // SAFETY: within the running trace's ops.
            rip = rip.wrapping_add(u64::from(unsafe { (*self.running.first.wrapping_add(before as usize)).len }));
        }
        rip == self.rip
    }
}

/// Stands in for the ops of a stale trace: the instruction has not been executed; look it up anew.
fn leave_stale_trace(_cpu: &mut Cpu, _op: &Op) -> Exec {
    Err(Stop::Stale)
}

/// Copies code bytes out of a page.
pub(super) fn copy_code(page: *const u8, inside: u64, into: &mut [u8]) {
    use super::access::Word;
    let from = page.wrapping_add(inside as usize);
    let (words, rest) = into.as_chunks_mut::<8>();
    for (at, word) in words.iter_mut().enumerate() {
        // SAFETY: callers stay within the page, which lies in a held block.
        *word = unsafe { u64::load(from.wrapping_add(8 * at)) }.to_le_bytes();
    }
    let done = 8 * words.len();
    for (at, byte) in rest.iter_mut().enumerate() {
        // SAFETY: as above.
        *byte = unsafe { u8::load(from.wrapping_add(done + at)) };
    }
}
