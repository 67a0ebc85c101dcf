//! Translated blocks and the space they lie in.
//!
//! A block is a T0 trace in host code, with those that follow it where branches are not taken: up to 64 instructions in one
//! page. It belongs to a physical page, a place in it and a mode, and can be used at any virtual address: whatever depends on
//! that is computed from the page's offset in CS, which is kept in the CPU (`t1.page_base`).
//!
//! An instruction that lies in two pages is a block of its own, which belongs to both. No link may take it for granted that the
//! second page is still the same: such a block goes on only if the jump cache names it for where it is executed, and the
//! dispatcher enters it there when it has looked.
//!
//! # Stale code
//! Every block begins with a look at its page's `code_generation`; if it is not the one for which the block was made, the block
//! is left at once. So a stale block needs no hunting down: links and jump caches may lead to it. A stale block whose bytes are
//! still the same is made valid again; one that was replaced gets a jump to its successor.
//!

use super::emit::{ALL_FLAGS, Emitter, Source};
use super::integer::may_keep_all_flags;
use super::regions::{Compiled, Published};
use super::spaces::{Counters, Ground, Translations};
use crate::guest::x86::op::{Op, OpFlags};
use crate::guest::x86::trace::SecondPage;
use crate::host::x64::asm::{Asm, Cond, Mem, R};
use crate::host::x64::stubs::Stubs;
use crate::host::x64::vectors::Residency;
use crate::run::code_memory::PARTS;
use crate::watch::code_log::Placed;
use crate::watch::sampler::Place;
use crate::watch::tally::Cause;
use engine_memory::{Block, PageState};
use iced_x86::{Instruction, Mnemonic, OpKind};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Why translated code was left: in the low bits of what the stub returns; the rest is a place in the page, or the number of a link
/// or counter ([`Numbered`]).
pub(super) mod leave {
    pub const MASK: u32 = 15;
    pub const SHIFT: u32 = 4;
    /// RIP is in the state: go on there.
    pub const LOOK_UP: u32 = 1;
    /// A link that is not made yet.
    pub const LINK: u32 = 2;
    /// Attention is wanted; go on at a place in the page.
    pub const POLL: u32 = 3;
    /// The block at a place in the page is stale.
    pub const STALE: u32 = 4;
    /// An instruction stopped: see `t1.stop`.
    pub const STOP: u32 = 5;
    /// A handler panicked: see `t1.panic`.
    pub const PANIC: u32 = 6;
    /// RIP is in the state: poll, then go on there.
    pub const ATTEND: u32 = 7;
    /// A loop has become hot; the argument is the number of its counter.
    pub const HOT: u32 = 8;
    /// A region has bailed often; go on at a place in the page. The key of its block is in `t1.scratch`.
    pub const USELESS: u32 = 9;
    /// The block at a place in the page lies in two pages, and the second is not known to be the right one.
    pub const CROSSING: u32 = 10;
}

/// The number of a link, or of a counter: which part of the memory its space is, and its place there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbered(pub u32);

impl Numbered {
    const BITS: u32 = 25;

    /// A place in the list of a space.
    ///
    /// # Panics
    /// Beyond 2^25: a space has no room for so many.
    pub fn new(part: usize, place: usize) -> Self {
        assert!(place >> Self::BITS == 0 && part < PARTS, "place {place} of part {part}");
        Self((part as u32) << Self::BITS | place as u32)
    }
    /// The part of the memory.
    pub fn part(self) -> usize {
        (self.0 >> Self::BITS) as usize
    }
    /// The place in the list of its space.
    pub fn place(self) -> usize {
        self.0 as usize & ((1 << Self::BITS) - 1)
    }
}

/// What of an op depends on where it was decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relative {
    Nothing,
    /// `disp`, of a RIP-relative operand.
    Displacement,
    /// `imm`, of a near branch.
    Target,
}

/// How the interpreter executes one instruction of a block.
pub(super) struct Site {
    pub op: Op,
    pub block: *const BlockInfo,
    /// The offset of the page in CS for which `op` was decoded.
    pub page: u64,
    /// Where it starts and ends in the page.
    pub start: u32,
    pub next: u32,
    /// Instructions of the block behind it.
    pub behind: u32,
    pub relative: Relative,
    /// It reads, saves or writes arithmetic flags.
    pub flags: bool,
    /// The block is left afterwards in any case.
    pub leaves: bool,
    /// Why the interpreter is called.
    pub cause: Cause,
    /// Its handler wants the x87 state in the CPU.
    pub touches_x87: bool,
    /// The block goes on with the x87 state in the host.
    pub holds_x87: bool,
}

/// What the interpreter must know of the block that called it.
pub(super) struct BlockInfo {
    pub page: *const PageState,
    /// The generation of the page for which the block holds.
    pub generation: AtomicU32,
    /// The page in which the block ends, if that is another.
    pub second: Option<SecondPage>,
}

impl BlockInfo {
    /// Whether the page's code is still what was translated.
    pub fn is_fresh(&self) -> bool {
        // SAFETY: the space holds the blocks of memory to which the pages belong.
        unsafe {
            (*self.page).code_generation() == self.generation.load(Ordering::Relaxed)
                && self.second.is_none_or(|second| (*second.state).code_generation() == second.generation)
        }
    }
}

/// A jump to a place in the page that may be pointed at that place's block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    /// Where its displacement lies: in the block while it is written, in the space afterwards.
    pub at: usize,
    /// The place in the page.
    pub target: u32,
    /// It leads there, and not to where it is made.
    pub is_made: bool,
}

/// A place in a page that counts how often it is jumped back to.
pub(super) struct Heat {
    pub left: Box<AtomicI32>,
    pub target: u32,
    /// How often it counts down next time.
    pub again: i32,
}

/// What a region that is wanted will replace.
pub(super) struct Wanted {
    pub state: *const PageState,
    pub page: *const u8,
    pub entry: u64,
    /// The region is to be cautious: see [`crate::ir::region::Region::cautious`].
    pub cautious: bool,
}

impl Request {
    /// The block's key.
    pub fn block_key(&self) -> u64 {
        let start = self.sources.first().map_or(0, |first| first.start);
        block_key(self.page as u64 + u64::from(start), self.key)
    }
}

/// A block in the table.
struct Translated {
    /// Its first byte in the space.
    offset: usize,
    info: Box<BlockInfo>,
    bytes: Box<[u8]>,
    /// The page's first byte in the host.
    page: *const u8,
    /// The first instruction's place in the page.
    start: u32,
    /// What runs in its stead.
    region: Option<Published>,
}

/// The distance from a block's start to the page generation in its entry check.
const GENERATION_AT: usize = 12;
/// Most code of one block.
pub(super) const MAX_BLOCK_BYTES: usize = 64 * 1024;

#[allow(clippy::vec_box, reason = "translated code holds their addresses")]
pub(super) type Sites = Vec<Box<Site>>;

#[derive(Default)]
struct Inner {
    /// Blocks fill the memory from its start …
    used: usize,
    /// … and regions from its end, down to here.
    regions: usize,
    blocks: HashMap<u64, Translated, Mixed>,
    links: Vec<Link>,
    /// Links of newer spaces that lead here, and their displacements before.
    incoming: Vec<(Arc<Space>, Numbered, [u8; 4])>,
    /// Nobody is to be led here any more.
    is_going: bool,
    sites: Sites,
    heats: Vec<Heat>,
    /// Blocks for which a region has been asked.
    wanted: HashSet<u64>,
    /// Blocks whose regions bailed too often: the next one is to be cautious.
    cautious: HashSet<u64>,
    /// Replaced blocks may still be executed: what they point to stays.
    #[allow(clippy::vec_box, reason = "translated code and sites hold their addresses")]
    replaced: Vec<Box<BlockInfo>>,
    replaced_regions: Vec<Published>,
    held: Vec<Block>,
}

/// A part of the memory for code (see `spaces.rs`) with everything that belongs to what lies there.
pub(super) struct Space {
    ground: Arc<Ground>,
    /// Which part of the memory it is.
    pub part: usize,
    /// Its number: spaces are counted.
    pub number: u32,
    /// The lowest address of a region.
    regions_from: AtomicU64,
    inner: Mutex<Inner>,
}

impl Drop for Space {
    fn drop(&mut self) {
        self.ground.give_back(self.part);
    }
}

// SAFETY: the raw pointers in it lead to page states and pages in blocks that `held` keeps alive, and to boxes that it owns itself.
unsafe impl Send for Space {}
// SAFETY: as above; all that changes is behind the lock.
unsafe impl Sync for Space {}

/// Keys are mixed already.
#[derive(Default, Clone)]
struct Mixed(u64);

impl std::hash::BuildHasher for Mixed {
    type Hasher = Self;
    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

impl std::hash::Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are numbers");
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = key.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

/// The key of a block: host address of its first byte and mode. Never 0.
pub(super) fn block_key(host: u64, key: u8) -> u64 {
    host | u64::from(key) << 56
}

/// Everything a block is made from.
pub(super) struct Request {
    pub key: u8,
    /// Page state, the page in the host, and the block of memory it belongs to.
    pub state: *const PageState,
    pub page: *const u8,
    pub generation: u32,
    /// The page in which its only instruction ends, if that is another.
    pub second: Option<SecondPage>,
    /// Offset of the page in CS.
    pub page_base: u64,
    pub sources: Vec<Source>,
    pub bytes: Vec<u8>,
}

impl Space {
    /// A space in a part of the memory.
    pub fn new(ground: Arc<Ground>, part: usize, number: u32) -> Self {
        let range = ground.range(part);
        let regions_from = AtomicU64::new(ground.memory.address(range.end));
        let inner = Inner { used: range.start, regions: range.end, ..Inner::default() };
        Self { ground, part, number, regions_from, inner: Mutex::new(inner) }
    }

    /// The memory that it is a part of.
    pub fn ground(&self) -> &Ground {
        &self.ground
    }

    /// Bytes that blocks and regions take.
    pub fn used(&self) -> [u64; 2] {
        let range = self.ground.range(self.part);
        let inner = self.lock();
        [inner.used - range.start, range.end - inner.regions].map(|bytes| bytes as u64)
    }

    /// From where on its code is regions'; there is more and more of that.
    #[inline]
    pub fn regions_from(&self) -> u64 {
        self.regions_from.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// The valid block at a host address: its entry, and the page in which it ends, if that is another: which the caller has
    /// yet to compare. `mark` says that code was taken from a place in a page (see `trace.rs`).
    pub fn find(
        &self,
        host: u64,
        key: u8,
        counters: &Counters,
        mut mark: impl FnMut(*const PageState, *const u8, u64, u64),
    ) -> Option<(u64, Option<*const u8>)> {
        let (page, start, len) = {
            let inner = self.lock();
            let found = inner.blocks.get(&block_key(host, key))?;
            let second = found.info.second.map(|second| second.page);
            if found.info.is_fresh() {
                return Some((self.ground.memory.address(found.offset), second));
            }
            if second.is_some() {
                // It is but one instruction: cheaper to make again than to compare.
                return None;
            }
            (found.page, found.start, found.bytes.len())
        };
        // Stale, but perhaps the same bytes. As with decoding: generation, mark, bytes; a write after the mark raises the
        // generation. No lock is held while marking, which may wait for other vCPUs.
        let read = |bytes: &mut Vec<u8>| {
            bytes.resize(len, 0);
            crate::guest::x86::trace::copy_code(page, u64::from(start), bytes);
        };
        let state = {
            let inner = self.lock();
            inner.blocks.get(&block_key(host, key))?.info.page
        };
        // SAFETY: `held` keeps the page's block of memory alive.
        let generation = unsafe { (*state).code_generation() };
        let mut now = Vec::new();
        read(&mut now);
        if *self.lock().blocks.get(&block_key(host, key))?.bytes != *now {
            return None;
        }
        mark(state, page, u64::from(start), len as u64);
        read(&mut now);
        let ranges = self.lock().blocks.get(&block_key(host, key))?.region.as_ref().map(|region| region.ranges.clone());
        let same_region =
            ranges.as_ref().map(|ranges| Published::is_unchanged(ranges, page, |first, len| mark(state, page, first, len)));
        let mut inner = self.lock();
        let found = inner.blocks.get_mut(&block_key(host, key))?;
        if *found.bytes != *now {
            return None;
        }
        match (&found.region, same_region) {
            (Some(region), Some(true)) => self.ground.memory.patch(region.entry + GENERATION_AT, &generation.to_le_bytes()),
            (Some(_), _) => {
                let region = self.take_back(found);
                inner.replaced_regions.extend(region);
                inner.wanted.remove(&block_key(host, key));
            }
            (None, _) => {}
        }
        let found = inner.blocks.get(&block_key(host, key))?;
        found.info.generation.store(generation, Ordering::Relaxed);
        self.ground.memory.patch(found.offset + GENERATION_AT, &generation.to_le_bytes());
        counters.revived.fetch_add(1, Ordering::Relaxed);
        Some((self.ground.memory.address(found.offset), None))
    }

    // ---- Regions -----------------------------------------------------------------------------------------------

    /// The address of a byte.
    pub fn address(&self, offset: usize) -> u64 {
        self.ground.memory.address(offset)
    }

    /// Its stubs.
    pub fn stubs(&self) -> Stubs {
        self.ground.stubs
    }

    /// A counter has run out: it begins anew, farther away each time, and says where it is counted.
    pub fn heat_target(&self, number: Numbered) -> u32 {
        let mut inner = self.lock();
        let heat = &mut inner.heats[number.place()];
        heat.left.store(heat.again, Ordering::Relaxed);
        heat.again = heat.again.saturating_mul(8);
        heat.target
    }

    /// A region is wanted in place of the block at a host address, if there is one and nobody has asked before: its key, and
    /// what must be known of it.
    pub fn want_region(&self, host: u64, key: u8) -> Option<(u64, Wanted)> {
        let mut inner = self.lock();
        let key = block_key(host, key);
        let block = inner.blocks.get(&key).filter(|block| block.info.is_fresh() && block.info.second.is_none())?;
        let wanted = Wanted {
            state: block.info.page,
            page: block.page,
            entry: self.ground.memory.address(block.offset),
            cautious: inner.cautious.contains(&key),
        };
        inner.wanted.insert(key).then_some((key, wanted))
    }

    /// There will be no region in place of a block now; it may be asked for again.
    pub fn forget_region(&self, key: u64) {
        self.lock().wanted.remove(&key);
    }

    /// Sets room aside for a region's code and its links: where it begins, and the first link's number.
    pub fn reserve(&self, bytes: usize, links: usize) -> Option<(usize, u32)> {
        let mut inner = self.lock();
        let offset = inner.regions.checked_sub(bytes)? & !63;
        if inner.used + MAX_BLOCK_BYTES > offset {
            return None;
        }
        inner.regions = offset;
        self.regions_from.store(self.ground.memory.address(offset), Ordering::Relaxed);
        let first_link = inner.links.len();
        inner.links.resize(first_link + links, Link { at: 0, target: 0, is_made: false });
        Some((offset, Numbered::new(self.part, first_link).0))
    }

    /// Puts a region in place of its block, if that is still the one.
    pub fn publish(&self, mut compiled: Compiled, translations: &Translations) {
        let counters = &translations.counters;
        let mut inner = self.lock();
        let inner = &mut *inner;
        let Some(block) = inner.blocks.get_mut(&compiled.block()) else { return };
        if block.info.generation.load(Ordering::Relaxed) != compiled.generation() || block.region.is_some() {
            return;
        }
        self.ground.memory.write_at(compiled.offset, &compiled.code);
        for (at, link) in compiled.links.iter().enumerate() {
            inner.links[Numbered(compiled.first_link).place() + at] = Link { at: link.at + compiled.offset, ..*link };
        }
        counters.regions.fetch_add(1, Ordering::Relaxed);
        counters.region_instructions.fetch_add(compiled.instructions, Ordering::Relaxed);
        counters.region_bytes.fetch_add(compiled.code.len() as u64, Ordering::Relaxed);
        self.point_block_at(block.offset, self.address(compiled.entry));
        if translations.log.is_on() {
            translations.log.add(Placed {
                tier: Place::Tier2,
                space: self.number,
                offset: compiled.offset as u32,
                address: self.ground.memory.address(compiled.offset),
                rip: compiled.rip(),
                bits: 64,
                user: compiled.is_user(),
                guest: compiled.first_bytes(),
                host: compiled.code.clone().into_boxed_slice(),
            });
        }
        block.region = Some(Published::new(&mut compiled));
    }

    /// `jmp entry` in place of the first instruction of a block, which lies in one aligned word.
    fn point_block_at(&self, block: usize, entry: u64) {
        let relative = entry.wrapping_sub(self.ground.memory.address(block + 5)) as i32;
        let mut jump = [0xe9, 0, 0, 0, 0];
        jump[1..].copy_from_slice(&relative.to_le_bytes());
        self.ground.memory.patch(block, &jump);
    }

    /// The block itself runs again. Gives the region, which may be executed still, and counts in there.
    fn take_back(&self, block: &mut Translated) -> Option<Published> {
        let mut asm = Asm::new(0);
        // SAFETY: the space holds the page's block of memory.
        asm.set_wide(R::Ax, std::ptr::from_ref(unsafe { (*block.info.page).code_generation_cell() }) as u64);
        self.ground.memory.patch(block.offset, &asm.finish()[..5]);
        block.region.take()
    }

    /// The region in place of a block has bailed often: perhaps it is not worth it.
    pub fn consider(&self, key: u64, counters: &Counters) {
        let mut inner = self.lock();
        if let Some(block) = inner.blocks.get_mut(&key)
            && block.region.as_mut().is_some_and(Published::is_useless)
        {
            let region = self.take_back(block);
            inner.replaced_regions.extend(region);
            // Once more, with care; then no more.
            if inner.cautious.insert(key) {
                inner.wanted.remove(&key);
            }
            counters.useless_regions.fetch_add(1, Ordering::Relaxed);
        }
    }

    // ---- Blocks ------------------------------------------------------------------------------------------------

    /// The place in the page that a link leads to.
    pub fn link_target(&self, number: Numbered) -> u32 {
        self.lock().links[number.place()].target
    }

    /// Points a link at a block's entry, which lies in `target`.
    pub fn make_link(self: &Arc<Self>, number: Numbered, entry: u64, target: &Arc<Self>) {
        let mut inner = self.lock();
        let link = &mut inner.links[number.place()];
        if link.is_made {
            return;
        }
        let relative = entry.wrapping_sub(self.address(link.at + 4)) as i32;
        let patch = |link: &Link| self.ground.memory.patch(link.at, &relative.to_le_bytes());
        if target.number >= self.number {
            patch(link);
        } else {
            // It goes before this one, and must find those that lead to it.
            let mut of_target = target.lock();
            if of_target.is_going {
                return;
            }
            of_target.incoming.push((self.clone(), number, self.ground.memory.read(link.at)));
            patch(link);
        }
        link.is_made = true;
    }

    /// The space is about to go: nothing in newer ones leads here any more.
    pub fn cut_off(&self) {
        let incoming = {
            let mut inner = self.lock();
            inner.is_going = true;
            std::mem::take(&mut inner.incoming)
        };
        for (from, number, before) in incoming {
            let mut inner = from.lock();
            let link = &mut inner.links[number.place()];
            from.ground.memory.patch(link.at, &before);
            link.is_made = false;
        }
    }

    /// A newer space has a block for what a block here is for: that leads to it from now on. (It lies in no space that goes
    /// before this one.)
    pub fn supersede(&self, key: u64, entry: u64) {
        let mut inner = self.lock();
        let Some(old) = inner.blocks.remove(&key) else { return };
        self.point_block_at(old.offset, entry);
        inner.replaced.push(old.info);
        inner.replaced_regions.extend(old.region);
        inner.wanted.remove(&key);
    }

    /// Translates. `None`: the space is full.
    pub fn translate(&self, request: &Request, hold: impl FnOnce(&mut Vec<Block>), translations: &Translations) -> Option<u64> {
        let counters = &translations.counters;
        let threshold = translations.compiler.options.map(|options| options.threshold);
        let first = request.sources.first()?;
        let mut inner = self.lock();
        let key = request.block_key();
        if let Some(found) = inner.blocks.get(&key)
            && found.info.is_fresh()
            && found.info.second.map(|second| second.page) == request.second.map(|second| second.page)
        {
            return Some(self.ground.memory.address(found.offset));
        }
        let offset = inner.used.next_multiple_of(16);
        if offset + MAX_BLOCK_BYTES > inner.regions {
            return None;
        }
        let info =
            Box::new(BlockInfo { page: request.state, generation: AtomicU32::new(request.generation), second: request.second });
        let mut emitter = Emitter::new(
            self.ground.memory.address(offset),
            self.ground.stubs,
            request.key,
            request.page_base,
            &request.sources,
            &*info,
            Numbered::new(self.part, inner.links.len()).0,
        );
        emitter.count_heat(threshold, Numbered::new(self.part, inner.heats.len()).0);
        let (code, links, sites, heats) = write_block(emitter, &info);
        assert!(code.len() <= MAX_BLOCK_BYTES, "a block of {} bytes", code.len());
        self.ground.memory.write_at(offset, &code);
        inner.used = offset + code.len();
        inner.links.extend(links.into_iter().map(|link| Link { at: link.at + offset, ..link }));
        inner.sites.extend(sites);
        inner.heats.extend(heats);
        hold(&mut inner.held);
        counters.blocks.fetch_add(1, Ordering::Relaxed);
        counters.instructions.fetch_add(request.sources.len() as u64, Ordering::Relaxed);
        counters.bytes.fetch_add(code.len() as u64, Ordering::Relaxed);
        let entry = self.ground.memory.address(offset);
        if translations.log.is_on() {
            translations.log.add(Placed {
                tier: Place::Tier1,
                space: self.number,
                offset: offset as u32,
                address: entry,
                rip: request.page_base + u64::from(first.start),
                bits: if request.key & super::WIDE != 0 { 64 } else { 32 },
                user: request.key & super::CLASS == crate::mmu::class::USER,
                guest: request.bytes.as_slice().into(),
                host: code.into_boxed_slice(),
            });
        }
        let translated = Translated {
            offset,
            info,
            bytes: request.bytes.as_slice().into(),
            page: request.page,
            start: first.start,
            region: None,
        };
        if let Some(old) = inner.blocks.insert(key, translated) {
            self.point_block_at(old.offset, entry);
            inner.replaced.push(old.info);
            inner.replaced_regions.extend(old.region);
            inner.wanted.remove(&key);
            counters.replaced.fetch_add(1, Ordering::Relaxed);
        }
        Some(entry)
    }
}

/// Writes a block: code, links, sites.
fn write_block(mut emitter: Emitter<'_>, info: &BlockInfo) -> (Vec<u8>, Vec<Link>, Sites, Vec<Heat>) {
    let count = emitter.sources.len();
    let start = emitter.sources[0].start;
    // The entry: ten bytes, then a comparison whose immediate lies at `GENERATION_AT`.
    // SAFETY: the page's state is in a block of memory that the space is about to hold.
    let generation_cell = unsafe { (*info.page).code_generation_cell() };
    emitter.asm.set_wide(R::Ax, std::ptr::from_ref(generation_cell) as u64);
    let generation = info.generation.load(Ordering::Relaxed) as i32;
    emitter.asm.compare_wide_imm(Mem::at(R::Ax, 0), generation);
    debug_assert_eq!(emitter.asm.len(), GENERATION_AT + 4);
    let stale = emitter.asm.label();
    emitter.asm.jcc(Cond::NE, stale);
    if let Some(second) = &info.second {
        // SAFETY: as above.
        let generation_cell = unsafe { (*second.state).code_generation_cell() };
        emitter.asm.set_wide(R::Ax, std::ptr::from_ref(generation_cell) as u64);
        emitter.asm.compare_wide_imm(Mem::at(R::Ax, 0), second.generation as i32);
        emitter.asm.jcc(Cond::NE, stale);
        emitter.check_second_page();
    } else {
        emitter.count_entry();
    }
    emitter.count_retired();
    emitter.want_x87();
    emitter.want_vectors();
    let mut at = 0;
    while at < count {
        emitter.at = at;
        let last = emitter.source().op.flags.contains(OpFlags::LAST);
        if at > 0 && emitter.sources[at - 1].op.flags.contains(OpFlags::LAST) {
            // Behind a branch that was not taken.
            emitter.count_retired();
        }
        let group = emitter.stack_group();
        if group > 0 {
            emitter.end_instruction();
            at += group;
            emitter.at = at - 1;
            if at == count && !emitter.source().op.flags.contains(OpFlags::LAST) {
                emitter.settle();
                emitter.fall_through();
            }
            continue;
        }
        let done = if emitter.source().interpreted {
            None
        } else if last {
            emitter.settle();
            // A transfer does not come back; its cold paths do not either.
            emitter.transfer().or_else(|| emitter.fast_call())
        } else {
            let done = emitter.stack_instruction().or_else(|| emitter.integer()).or_else(|| emitter.x87());
            done.or_else(|| emitter.vector()).or_else(|| emitter.bits()).or_else(|| emitter.system())
        };
        if done.is_none() {
            emitter.interpret();
        }
        emitter.end_instruction();
        at += 1;
        if at == count && !last {
            emitter.settle();
            emitter.fall_through();
        }
    }
    emitter.write_sides();
    emitter.write_alones();
    emitter.write_cold_paths();
    emitter.asm.bind(stale);
    emitter.leave(start << leave::SHIFT | leave::STALE);
    let (links, sites) = (std::mem::take(&mut emitter.links), std::mem::take(&mut emitter.sites));
    let heats = std::mem::take(&mut emitter.heats);
    (emitter.asm.finish(), links, sites, heats)
}

/// Says of each instruction which flags somebody wants before and behind it. Behind the block everybody wants all, and so
/// does the frame of a fault.
pub(super) fn find_live_flags(sources: &mut [Source]) {
    let mut live = ALL_FLAGS;
    for source in sources.iter_mut().rev() {
        source.live_after = live;
        let instruction = &source.instruction;
        // So does whatever a branch in the middle of the block leads to.
        if may_stop(source) || source.op.flags.contains(OpFlags::LAST) {
            live = ALL_FLAGS;
        } else {
            if !may_keep_all_flags(instruction) {
                live &= !instruction.rflags_modified();
            }
            live |= instruction.rflags_read() & ALL_FLAGS;
        }
        source.live_before = live;
    }
}

/// Whether an instruction may fault, or is left to the interpreter.
fn may_stop(source: &Source) -> bool {
    use Mnemonic::*;
    let instruction = &source.instruction;
    if source.interpreted {
        return true;
    }
    if source.vectors != Residency::Nothing || source.x87 {
        // All their exceptions are masked.
        return source.op.has_memory();
    }
    if source.op.code != instruction.code() {
        // This CPU model does not have it.
        return true;
    }
    if matches!(instruction.mnemonic(), Lea | Nop | Endbr32 | Endbr64) {
        return false;
    }
    let registers = (0..instruction.op_count())
        .filter(|at| instruction.op_kind(*at) == OpKind::Register)
        .all(|at| instruction.op_register(at).is_gpr());
    !is_plain_arithmetic(instruction.mnemonic()) || !registers || source.op.has_memory()
}

/// Whether an instruction works on general registers and memory alone, and does not fault but by its memory operand.
pub(super) fn is_plain(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    let mnemonic = instruction.mnemonic();
    matches!(mnemonic, Lea | Nop | Endbr32 | Endbr64 | Push | Pop) || is_plain_arithmetic(mnemonic)
}

fn is_plain_arithmetic(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Add | Or
            | Adc
            | Sbb
            | And
            | Sub
            | Xor
            | Cmp
            | Test
            | Inc
            | Dec
            | Neg
            | Not
            | Mov
            | Movzx
            | Movsx
            | Movsxd
            | Xchg
            | Cbw
            | Cwde
            | Cdqe
            | Cwd
            | Cdq
            | Cqo
            | Shl
            | Sal
            | Shr
            | Sar
            | Rol
            | Ror
            | Rcl
            | Rcr
            | Shld
            | Shrd
            | Imul
            | Mul
            | Bt
            | Bts
            | Btr
            | Btc
            | Bsf
            | Bsr
            | Bswap
            | Stc
            | Clc
            | Cmc
    ) || super::integer::condition(mnemonic).is_some()
        || super::bits::is_here(mnemonic)
}
