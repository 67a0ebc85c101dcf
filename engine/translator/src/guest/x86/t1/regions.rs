//! The optimising tier as this guest sees it: when a loop is hot enough to become a region, what a region's code finds where,
//! and how it takes the place of a block.
//!
//! A region is the code of one page at one offset in CS. Its way in is that of the block at its first instruction: `jmp region`
//! stands there instead of the block's first instruction, so links and jump caches lead to the region without knowing of it.
//! Like a block it begins with a look at the page's generation; if that is not what it was made for, the block runs instead, and
//! so it does when something rare happens in the region's very first instruction. Elsewhere a bail
//! goes on with the block at the instruction in question. All ways out poll, so no cycle of regions and blocks is deaf. A
//! region with vector instructions has the registers resident from its way in to wherever it is left.
//!
//! # What is compiled
//! A block that loops have jumped back to often ([`Tier2Options::threshold`]) becomes the region of the outermost loop around
//! it that fits and whose head is a block too, with all loops inside and nothing else: [`Flow::loops_around`]. So a nest of
//! loops is entered by its head and its inner loops can be treated as such. If the way never leads by that head, the counter,
//! which goes on, asks for a loop further in.
//!
//! Like a block it may be executed at several addresses: a library is where each process has it. Places in the code are computed
//! from `t1.page_base`, which is the address of its page just then, and compared after that was subtracted.
//!
//! A function that is called in the page is part of its callers' loops, and one that calls itself is a loop, whose calls back
//! are counted like jumps.
//!
//! Indirect jumps count as branches to where they have led lately ([`Seen`](super::seen::Seen)); blocks that end with one count
//! how often they are entered, so the loop of an interpreter, whose ways back are all indirect, becomes a region too.
//!
//! # Publishing
//! A thread of the machine ([`Compiler`]) works on a copy of the page. What it has made a vCPU publishes: it looks at the
//! generation, marks all of the region's bytes as code, compares them with those that were compiled, and only then points the
//! block at it. A write before the mark shows in the bytes; one after it raises the generation.

use super::block::{BlockInfo, Link, Space, leave};
use super::emit::{Emitter, field, state};
use crate::backend::Tier2Options;
use crate::guest::x86::cpu::{CodeSize, Cpu, Span, seg};
use crate::guest::x86::cpuid::InstructionSets;
use crate::guest::x86::lift::region::{Flow, LoopAround, Targets, form_region};
use crate::guest::x86::lift::{GPR, LiftMode, SEGMENT_BASE, SLOTS, Vectors};
use crate::guest::x86::trace::copy_code;
use crate::host::x64::asm::{Alu, Asm, Cond, Label, Mem, R, W};
use crate::host::x64::refill;
use crate::host::x64::stubs::{PINNED, Stubs};
use crate::host::x64::t2::{self, Frame, Home, Ways};
use crate::host::x64::vectors::Residency;
use crate::ir::Op;
use crate::ir::native::Native;
use crate::ir::region::{Exit, Loops, Region, pass};
use crate::mmu::{PAGE_MASK, class, read_table, write_table};
use crate::shared::{CpuShared, attention};
use engine_memory::PageState;
use iced_x86::EncodingKind;
use std::collections::{BTreeMap, VecDeque};
use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Cells of eight bytes that a region may keep values in.
pub(super) const CELLS: usize = 96;
/// Requests that wait at most; those beyond are forgotten, to come again.
const QUEUE: usize = 64;
/// Where every core of the host has a vCPU to run, compiling takes one of so many parts of the time.
const SHARE: u32 = 7;
/// Bails after which a look is taken at whether a region is worth it …
pub(super) const BAILS: i32 = 1000;
/// … and in what time they may happen. One costs about 50 ns; a loop over memory has one for each page that it comes to, and is
/// worth it.
const BAIL_TIME: Duration = Duration::from_micros(250);
/// How often in a row that must be so. A region that is given up is made once more, cautious. A loop that writes where code has been bails with each byte of a page or two, and then
/// never again.
const STRIKES: u32 = 64;
/// Most guest instructions of a loop that is compiled with those in it.
const MOST_IN_LOOP: usize = 250;
/// Guest instructions between two looks at whether the vCPU is wanted: about a microsecond.
const INTERVAL: i32 = 4096;
/// Bytes of the first instruction of every block, the one that a region takes the place of.
const FIRST_INSTRUCTION: u64 = 10;

/// A page of memory and its state, kept alive by the space that the request belongs to.
#[derive(Clone, Copy)]
struct Page {
    state: *const PageState,
    first: *const u8,
}

// SAFETY: only vCPUs look at what is behind the pointers; the thread in between carries them.
unsafe impl Send for Page {}

/// What is to be compiled.
pub(super) struct Request {
    space: Arc<Space>,
    page: Page,
    generation: u32,
    bytes: Box<[u8; 4096]>,
    key: u8,
    /// The key and address of the block that it is to replace, and that block's code.
    block: u64,
    block_entry: u64,
    /// The page's offset in CS, and where in it the region begins.
    page_base: u64,
    start: u32,
    mode: LiftMode,
    sets: InstructionSets,
    cpu: Arc<CpuShared>,
    /// What the general registers held.
    registers: [u64; 16],
    /// Where indirect jumps have led lately, by their places in the page.
    targets: BTreeMap<u32, Vec<u64>>,
    /// What is in no loop is compiled too.
    everything: bool,
    /// The one before bailed too often.
    cautious: bool,
    /// How many vCPUs the machine has.
    cpus: usize,
}

/// What has come of it.
pub(super) struct Compiled {
    request: Request,
    /// Its first byte in the space, and its way in.
    pub offset: usize,
    pub entry: usize,
    pub code: Vec<u8>,
    pub first_link: u32,
    pub links: Vec<Link>,
    /// Runs of guest bytes that it was made of: places in the page, and the bytes themselves.
    pub ranges: Vec<(u32, Box<[u8]>)>,
    pub bails: Box<AtomicI32>,
    pub instructions: u64,
}

impl Compiled {
    pub fn block(&self) -> u64 {
        self.request.block
    }
    pub fn generation(&self) -> u32 {
        self.request.generation
    }
    /// The pc of its first instruction.
    pub fn rip(&self) -> u64 {
        self.request.page_base + u64::from(self.request.start)
    }
    pub fn is_user(&self) -> bool {
        self.request.key & super::CLASS == class::USER
    }
    /// The bytes of its first block.
    pub fn first_bytes(&self) -> Box<[u8]> {
        let first = self.ranges.iter().find(|(first, _)| *first == self.request.start);
        first.map_or_else(Box::default, |(_, bytes)| bytes.clone())
    }
}

/// A region that has taken the place of a block.
pub(super) struct Published {
    /// Its way in, from the space's start.
    pub entry: usize,
    pub ranges: Vec<(u32, Box<[u8]>)>,
    pub bails: Box<AtomicI32>,
    since: Instant,
    strikes: u32,
}

impl Published {
    pub fn new(compiled: &mut Compiled) -> Self {
        let bails = std::mem::take(&mut compiled.bails);
        Self { entry: compiled.entry, ranges: std::mem::take(&mut compiled.ranges), bails, since: Instant::now(), strikes: 0 }
    }

    /// It has bailed [`BAILS`] times more: whether that was too often for the time, once more in a row. If not, it may do so
    /// again.
    pub fn is_useless(&mut self) -> bool {
        let spent = self.since.elapsed();
        self.since = Instant::now();
        self.bails.store(BAILS, Ordering::Relaxed);
        self.strikes = if spent < BAIL_TIME { self.strikes + 1 } else { 0 };
        self.strikes >= STRIKES
    }

    /// Whether the page still holds what the region was made of. `mark` says of each run that it is code.
    pub fn is_unchanged(ranges: &[(u32, Box<[u8]>)], page: *const u8, mut mark: impl FnMut(u64, u64)) -> bool {
        ranges.iter().all(|(first, bytes)| {
            mark((*first).into(), bytes.len() as u64);
            let mut now = vec![0; bytes.len()];
            copy_code(page, (*first).into(), &mut now);
            *now == **bytes
        })
    }
}

// ---- The thread ------------------------------------------------------------------------------------------------------

/// The machine's compiler: what waits for it, and what it has done.
pub(crate) struct Compiler {
    pub options: Option<Tier2Options>,
    shared: Arc<Shared>,
    started: AtomicBool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Something is in `done`.
    has_done: AtomicBool,
    done: Mutex<Vec<Outcome>>,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Request>,
    ends: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

impl Compiler {
    pub fn new(options: Option<Tier2Options>) -> Self {
        Self { options, shared: Arc::default(), started: AtomicBool::new(false) }
    }

    /// Asks for a region. Says whether it will be looked at.
    fn ask(&self, request: Request) -> bool {
        if !self.started.swap(true, Ordering::AcqRel) {
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().name("optimiser".to_owned());
            if let Err(error) = thread.spawn(move || shared.work()) {
                tracing::warn!("the optimising translator is off: no thread: {error}");
            }
        }
        let mut queue = lock(&self.shared.queue);
        let has_room = queue.requests.len() < QUEUE;
        if has_room {
            queue.requests.push_back(request);
            self.shared.wake.notify_one();
        }
        has_room
    }

    /// What has been compiled since the last time.
    fn take_done(&self) -> Vec<Outcome> {
        if !self.shared.has_done.load(Ordering::Acquire) {
            return Vec::new();
        }
        self.shared.has_done.store(false, Ordering::Release);
        std::mem::take(&mut *lock(&self.shared.done))
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        let mut queue = lock(&self.shared.queue);
        queue.ends = true;
        queue.requests.clear();
        self.shared.wake.notify_one();
    }
}

impl Shared {
    /// Compiles until the machine is gone, behind everybody who has something better to do.
    fn work(&self) {
        let me = Some(rustix::thread::gettid());
        if let Err(error) = rustix::process::setpriority_process(me, 5) {
            tracing::debug!("the optimiser keeps its priority: {error}");
        }
        loop {
            let request = {
                let mut queue = lock(&self.queue);
                loop {
                    if queue.ends {
                        return;
                    }
                    match queue.requests.pop_front() {
                        Some(request) => break request,
                        None => queue = self.wake.wait(queue).unwrap_or_else(|poison| poison.into_inner()),
                    }
                }
            };
            let (cpu, cpus) = (request.cpu.clone(), request.cpus);
            let outcome = compile(request);
            let spent = outcome.spent;
            lock(&self.done).push(outcome);
            self.has_done.store(true, Ordering::Release);
            cpu.raise(attention::SELF);
            if std::thread::available_parallelism().is_ok_and(|cores| cores.get() <= cpus) {
                self.rest(spent * (SHARE - 1));
            }
        }
    }
}

impl Shared {
    /// Does nothing for a while, unless the machine goes.
    fn rest(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut queue = lock(&self.queue);
        while !queue.ends {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = self.wake.wait_timeout(queue, left).unwrap_or_else(|poison| poison.into_inner()).0;
        }
    }
}

// ---- Compiling -------------------------------------------------------------------------------------------------------

/// What lifted code of a mode takes for granted: of 64-bit code the key says all of it.
fn lift_mode(key: u8) -> LiftMode {
    let vectors = if key & super::VECTOR != 0 { Vectors::Native } else { Vectors::Interpreted };
    LiftMode {
        code_size: CodeSize::Bits64,
        readable: 0x3f,
        writable: 0x3f,
        based: 1 << seg::FS | 1 << seg::GS,
        wide_stack: true,
        vectors,
        masked_floats: vectors == Vectors::Native,
        avx: key & super::AVX != 0,
        open_code: true,
    }
}

/// Where a region's code finds everything.
fn frame(key: u8, stubs: &Stubs, everything: bool) -> Frame {
    let mut homes = vec![None; SLOTS.len()];
    for number in 0..16 {
        let memory = field!(gpr) + 8 * number as i32;
        homes[usize::from(GPR) + number] = Some(Home { register: PINNED.get(number).copied(), memory });
    }
    for number in [seg::FS, seg::GS] {
        let span = field!(spans) + i32::from(number) * size_of::<Span>() as i32;
        homes[usize::from(SEGMENT_BASE + number)] = Some(Home { register: None, memory: span + offset_of!(Span, base) as i32 });
    }
    let class = key & super::CLASS;
    Frame {
        homes,
        flags: field!(t1.flags),
        countdown: field!(countdown),
        interval: if everything { 1 } else { INTERVAL },
        retired: field!(retired),
        cells: field!(t1.cells),
        cell_count: CELLS,
        attention: field!(t1.attention),
        page: field!(t1.page_base),
        gather: super::gather::ROOM,
        bmi2: std::is_x86_feature_detected!("bmi2"),
        tables: [read_table(class) as i32, write_table(class) as i32],
        refills: [false, true].map(|write| stubs.refill[refill::kind(class, write)]),
    }
}

/// What has come of a request, and how long it took.
struct Outcome {
    compiled: Result<Compiled, NoRegion>,
    spent: Duration,
}

/// Why there is no region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoRegion {
    /// The block is in no loop that fits, as far as direct branches in the page tell.
    NoLoop,
    /// It begins with an instruction that is the interpreter's.
    Interpreted,
    /// All ways around the loop lead through one that is.
    Broken,
    /// There is no room for its code.
    NoRoom,
    Refused(t2::Refused),
}

impl std::fmt::Display for NoRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoLoop => f.write_str("no small loop in the page"),
            Self::Interpreted => f.write_str("begins with an instruction for the interpreter"),
            Self::Broken => f.write_str("a loop with an instruction for the interpreter"),
            Self::NoRoom => f.write_str("no room for code"),
            Self::Refused(why) => why.fmt(f),
        }
    }
}

fn compile(request: Request) -> Outcome {
    let began = Instant::now();
    let compiled = compile_region(request);
    Outcome { compiled, spent: began.elapsed() }
}

/// Forms the region of a request: that of the outermost loop around the block that fits and whose head has a block too, which
/// the request then is for.
fn form(request: &mut Request) -> Result<Region, NoRegion> {
    let (entry, page_base) = (request.page_base + u64::from(request.start), request.page_base);
    let bytes = |page: u64| (page == page_base).then_some(&*request.bytes);
    // Tests take loops or all that can be reached, by an arbitrary rule.
    if request.everything && request.start & 1 != 0 {
        return form_region(entry, request.mode, &request.sets, bytes).ok_or(NoRegion::Interpreted);
    }
    let targets = match request.everything {
        true => Targets::Guessed(Vec::new()),
        false => Targets::Seen(std::mem::take(&mut request.targets)),
    };
    let flow = Flow::explore(entry, request.mode, &request.sets, targets, bytes);
    let around = flow.loops_around(MOST_IN_LOOP);
    let chosen = around.iter().find(|of| of.head == entry || request.move_to(of));
    match chosen {
        Some(of) => match flow.loop_region(of) {
            None => Err(NoRegion::Interpreted),
            Some(region) if Loops::find(&region).loops.is_empty() => Err(NoRegion::Broken),
            Some(region) => Ok(region),
        },
        None if request.everything => {
            form_region(entry, request.mode, &request.sets, |page| (page == page_base).then_some(&*request.bytes))
                .ok_or(NoRegion::Interpreted)
        }
        None => Err(NoRegion::NoLoop),
    }
}

impl Request {
    /// Makes it one for the head of a loop around its block, if that has a block and nobody has asked for it. Its own may then
    /// be asked for again.
    fn move_to(&mut self, of: &LoopAround) -> bool {
        let start = (of.head & !PAGE_MASK) as u32;
        let Some((block, wanted)) = self.space.want_region(self.page.first as u64 + u64::from(start), self.key) else {
            return false;
        };
        self.space.forget_region(self.block);
        self.cautious |= wanted.cautious;
        (self.block, self.block_entry, self.start) = (block, wanted.entry, start);
        true
    }
}

fn compile_region(mut request: Request) -> Result<Compiled, NoRegion> {
    let mut region = form(&mut request)?;
    const { assert!(GPR == 0, "the general registers are the first slots") };
    region.guesses = request.registers.to_vec();
    region.cautious = request.cautious;
    pass::run(&mut region, pass::PIPELINE);
    tracing::trace!("a region:\n{region}");
    let bails = Box::new(AtomicI32::new(BAILS));
    let space = request.space.clone();
    let frame = frame(request.key, &space.stubs(), request.everything);
    let write = |base: u64, first_link: u32| {
        let mut entry = 0;
        let (asm, exits) = t2::emit(&region, &frame, || begin(&request, &region, &bails, base, first_link, &mut entry))?;
        Ok::<_, t2::Refused>((asm.finish(), entry, exits.links))
    };
    // Once to know how much room it takes, which does not depend on where it is.
    let (draft, _, links) = write(space.address(0), 0).map_err(NoRegion::Refused)?;
    let (offset, first_link) = space.reserve(draft.len(), links.len()).ok_or(NoRegion::NoRoom)?;
    let (code, entry, links) = write(space.address(offset), first_link).map_err(NoRegion::Refused)?;
    assert_eq!(code.len(), draft.len(), "a region's code depends on its place");
    let ranges = region.code.iter().map(|run| {
        let first = place(request.start, run.pc);
        let bytes = request.bytes[first as usize..][..run.len as usize].into();
        (first, bytes)
    });
    let ranges = ranges.collect();
    let instructions = region.blocks.iter().map(|block| u64::from(block.retired)).sum();
    Ok(Compiled { request, offset, entry: offset + entry, code, first_link, links, ranges, bails, instructions })
}

/// The place in the page that lies `pc` from the region's start.
fn place(start: u32, pc: u64) -> u32 {
    start.wrapping_add(pc as u32) & !PAGE_MASK as u32
}

/// What stands before a region's blocks: the block's own first instruction and a jump to what follows it there, for those who
/// cannot run the region; then the way in.
fn begin<'a>(
    request: &'a Request,
    region: &'a Region,
    bails: &'a AtomicI32,
    base: u64,
    first_link: u32,
    entry: &mut usize,
) -> (Asm, Exits<'a>) {
    let mut asm = Asm::new(base);
    // SAFETY: the page's state is in a block of memory that the space holds.
    let cell = std::ptr::from_ref(unsafe { (*request.page.state).code_generation_cell() }) as u64;
    let instead = asm.label();
    asm.bind(instead);
    asm.set_wide(R::Ax, cell);
    asm.jmp_to(request.block_entry + FIRST_INSTRUCTION);
    let stubs = request.space.stubs();
    let vectors = vectors_of(region);
    let (fill, resume) = (asm.label(), asm.label());
    if vectors != Residency::Nothing {
        asm.bind(fill);
        asm.call_to(if vectors == Residency::Ymm { stubs.fill_ymm } else { stubs.fill_xmm });
        asm.jmp(resume);
    }
    asm.align(16, 0);
    *entry = asm.len();
    asm.set_wide(R::Ax, cell);
    asm.compare_wide_imm(Mem::at(R::Ax, 0), request.generation as i32);
    asm.jcc(Cond::NE, instead);
    if vectors != Residency::Nothing {
        asm.alu_imm(Alu::Cmp, W::B1, state(field!(t1.vectors_resident)), vectors as i32);
        asm.jcc(Cond::B, fill);
        asm.bind(resume);
    }
    (asm, Exits { request, bails, base, instead, stubs, first_link, links: Vec::new() })
}

/// What of the vector registers must be resident in a region: from its start to wherever it is left, for nothing in it goes to Rust.
fn vectors_of(region: &Region) -> Residency {
    let insts = region.blocks.iter().flat_map(|block| &block.body).map(|value| region.def(*value));
    let is_native = |op| matches!(op, Op::Native | Op::NativeStore | Op::NativeInteger | Op::NativeFlags | Op::NativeGather);
    let natives = insts.filter(|inst| is_native(inst.op));
    let wanted = natives.map(|inst| match Native::of(inst).code.op_code().encoding() {
        EncodingKind::VEX => Residency::Ymm,
        _ => Residency::Xmm,
    });
    wanted.max().unwrap_or(Residency::Nothing)
}

/// The ways out of a region, in the terms of blocks.
struct Exits<'a> {
    request: &'a Request,
    bails: &'a AtomicI32,
    base: u64,
    /// Where the block runs that the region stands in for.
    instead: Label,
    stubs: Stubs,
    first_link: u32,
    links: Vec<Link>,
}

impl Exits<'_> {
    /// Writes with what writes blocks. `write` does not fall through: ways out are behind it.
    fn by_block(&mut self, asm: &mut Asm, write: impl FnOnce(&mut Emitter<'_>)) {
        let first = self.first_link + self.links.len() as u32;
        let nothing: *const BlockInfo = std::ptr::null();
        let request = self.request;
        let mut emitter = Emitter::new(self.base, self.stubs, request.key, request.page_base, &[], nothing, first);
        std::mem::swap(&mut emitter.asm, asm);
        write(&mut emitter);
        emitter.write_exits();
        std::mem::swap(&mut emitter.asm, asm);
        self.links.append(&mut emitter.links);
    }

    fn place(&self, pc: u64) -> u32 {
        place(self.request.start, pc)
    }
}

impl Ways for Exits<'_> {
    fn bail(&mut self, asm: &mut Asm, pc: u64) {
        let place = self.place(pc);
        asm.set_wide(R::Ax, std::ptr::from_ref(self.bails) as u64);
        asm.alu_imm(Alu::Sub, W::B4, Mem::at(R::Ax, 0), 1);
        let (enough, is_start, instead) = (asm.label(), place == self.request.start, self.instead);
        asm.jcc(Cond::NS, enough);
        asm.set_wide(R::Ax, self.request.block);
        asm.mov(W::B8, state(field!(t1.scratch)), R::Ax);
        asm.set(R::Ax, (place << leave::SHIFT | leave::USELESS).into());
        asm.jmp_to(self.stubs.leave);
        asm.bind(enough);
        if is_start {
            self.by_block(asm, |emitter| {
                emitter.poll(place);
                emitter.asm.jmp(instead);
            });
        } else {
            self.by_block(asm, |emitter| emitter.go_to(place, true));
        }
    }

    fn poll(&mut self, asm: &mut Asm, pc: u64) {
        asm.set(R::Ax, (self.place(pc) << leave::SHIFT | leave::POLL).into());
        asm.jmp_to(self.stubs.leave);
    }

    fn exit(&mut self, asm: &mut Asm, exit: &Exit) {
        let is_direct = matches!(exit.op, Op::Jump | Op::Call);
        if is_direct {
            let distance = i64::from(self.request.start).wrapping_add(exit.state.pc as i64);
            if let Some(place) = u32::try_from(distance).ok().filter(|place| *place < 4096) {
                return self.by_block(asm, |emitter| emitter.go_to(place, true));
            }
            asm.set(R::Ax, distance as u64);
            asm.alu_load(Alu::Add, W::B8, R::Ax, state(field!(t1.page_base)));
        }
        self.by_block(asm, |emitter| {
            let miss = emitter.asm.label();
            emitter.look_up(miss);
            emitter.take_jump();
            emitter.asm.bind(miss);
            emitter.leave_at_ax();
        });
    }
}

// ---- The vCPU's side -------------------------------------------------------------------------------------------------

impl Cpu {
    /// The block at RIP has become hot: asks for a region that begins there.
    pub(super) fn want_region(&mut self, space: &Arc<Space>) -> Option<()> {
        let fabric = self.fabric.clone();
        let compiler = &fabric.translations.compiler;
        let options = compiler.options?;
        let key = self.t1.key;
        if key == super::NO_KEY || key & super::WIDE == 0 {
            return None;
        }
        let fetch = self.fetch_page(self.rip).ok()?;
        if fetch.page.is_null() {
            return None;
        }
        let start = (self.rip & !PAGE_MASK) as u32;
        let (block, wanted) = space.want_region(fetch.page as u64 + u64::from(start), key)?;
        let page = Page { state: wanted.state, first: wanted.page };
        // SAFETY: the space holds the page's block of memory.
        let generation = unsafe { (*page.state).code_generation() };
        let mut bytes = Box::new([0; 4096]);
        copy_code(page.first, 0, &mut bytes[..]);
        let request = Request {
            space: space.clone(),
            page,
            generation,
            bytes,
            key,
            block,
            block_entry: wanted.entry,
            page_base: self.rip & PAGE_MASK,
            start,
            mode: lift_mode(key),
            sets: self.cpuid.instruction_sets().clone(),
            cpu: self.shared.clone(),
            registers: std::array::from_fn(|number| self.gpr[number]),
            targets: self.seen.targets(self.rip & PAGE_MASK),
            everything: options.threshold == 0,
            cautious: wanted.cautious,
            cpus: fabric.cpu_count(),
        };
        if !options.background {
            self.publish_region(compile(request));
        } else if !compiler.ask(request) {
            space.forget_region(block);
        }
        Some(())
    }

    /// Publishes what has been compiled.
    pub(super) fn publish_regions(&mut self) {
        let fabric = self.fabric.clone();
        if fabric.translations.compiler.options.is_some() {
            for compiled in fabric.translations.compiler.take_done() {
                self.publish_region(compiled);
            }
        }
    }

    fn publish_region(&mut self, outcome: Outcome) {
        let counters = &self.fabric.translations.counters;
        counters.region_nanoseconds.fetch_add(outcome.spent.as_nanos() as u64, Ordering::Relaxed);
        let compiled = match outcome.compiled {
            Ok(compiled) => compiled,
            Err(why) => return counters.count_refusal(&why),
        };
        let request = &compiled.request;
        let space = request.space.clone();
        if !self.t1.spaces.iter().any(|current| current.number == space.number) {
            return;
        }
        let page = request.page;
        // SAFETY: the space holds the page's block of memory.
        let state = unsafe { &*page.state };
        let is_fresh = state.code_generation() == request.generation
            && Published::is_unchanged(&compiled.ranges, page.first, |first, len| self.mark_code(state, page.first, first, len));
        if is_fresh {
            space.publish(compiled, &self.fabric.translations);
        } else {
            space.forget_region(request.block);
        }
    }
}
