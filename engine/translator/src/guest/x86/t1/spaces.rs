//! The memory for code of one machine, and who has which part of it.
//!
//! All vCPUs share the memory. At its start are the stubs; the rest is divided into [`PARTS`], each of which is a [`Space`] for
//! blocks and regions. New code goes to the newest space. When that is full another part becomes one, and once all parts are in
//! use the oldest space goes: its code is forgotten, an eighth of all. So a machine that has more code than memory for it
//! loses what it made longest ago, not everything at once.
//!
//! What is wanted of the space that is the next to go is made again, in the newest one, by whoever comes by the dispatcher for
//! it ([`Space::supersede`]). Blocks lead to each other across spaces: those that led to a space that goes are put back as they
//! were ([`Space::cut_off`]).
//!
//! Code may lead a vCPU to a space that is newer than all that it holds. That cannot go before those it holds, for spaces go in
//! the order of their ages and the vCPU's parts are not free.
//!
//! # When a part is free again
//! A vCPU holds the spaces that it may execute in ([`Translator::spaces`](super::Translator)). It looks for others when the
//! number of the newest has changed: in the dispatcher, and whenever it is called for attention, as all are when a space goes.
//! Only then, when no translated code is on its stack, does it let go of the old ones and forget its jump caches. The last to do
//! so drops the space, and its part is free. Nobody waits: as long as there is no free part, hot code is interpreted. (One part
//! is always on its way to be free, so that this is seldom so.)
//!
//! Measured with `-accel tcg,tb-size=N`, in CPU seconds, against one space of half the memory that is replaced as a whole (both
//! on a busy machine): Debian's graphical installer to its first page with 16 MiB 15.3 s for 24.9 s; Linux with 4 CPUs to its
//! shell and off again with 8 MiB 5.9 s for 11.6 s, and with 4 MiB 13.6 s for no end at all. With the usual 128 MiB neither
//! fills the memory.

use super::block::{MAX_BLOCK_BYTES, Space};
use super::emit::field;
use super::regions::Compiler;
use crate::backend::TranslatorOptions;
use crate::host::x64::asm::Asm;
use crate::host::x64::refill::RefillLayout;
use crate::host::x64::stubs::{self, Stubs};
use crate::host::x64::vectors::VectorLayout;
use crate::run::code_memory::{CodeMemory, PARTS};
use crate::watch::code_log::{CodeLog, WatchOptions};
use crate::watch::report::TierFigures;
use crate::watch::sampler::CodePlaces;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

/// Bytes for the stubs.
const STUB_BYTES: usize = 64 * 1024;

/// The memory for code.
pub(super) struct Ground {
    pub memory: CodeMemory,
    pub stubs: Stubs,
    part_bytes: usize,
    /// Parts that nobody has.
    free: Mutex<Vec<usize>>,
}

impl Ground {
    /// # Errors
    /// When the host gives no memory to execute.
    fn new(bytes: usize) -> io::Result<Self> {
        let part_bytes = ((bytes.saturating_sub(STUB_BYTES) / PARTS) & !4095).max(4 * MAX_BLOCK_BYTES);
        let memory = CodeMemory::new(STUB_BYTES + PARTS * part_bytes)?;
        let mut asm = Asm::new(memory.address(0));
        let vectors = VectorLayout {
            resident: field!(t1.vectors_resident),
            xmm: field!(fpu.xmm),
            ymm_high: field!(fpu.ymm_high),
            mxcsr: field!(fpu.mxcsr),
            host_mxcsr: field!(t1.host_mxcsr),
        };
        let refill = RefillLayout {
            tlb: field!(tlb),
            second_level: field!(second_level),
            physical_pages: field!(physical_pages),
            a20_mask: field!(a20_seen),
            apic_base: field!(apic_base),
            dr7: field!(dr7),
            enough: field!(t1.enough),
            missed: field!(t1.missed),
        };
        let callee = super::interpret_one as *const () as u64;
        let layout = stubs::Layout { registers: field!(gpr), callee, vectors, refill };
        let stubs = stubs::write(&mut asm, &layout);
        let code = asm.finish();
        assert!(code.len() <= STUB_BYTES, "stubs of {} bytes", code.len());
        memory.write_at(0, &code);
        Ok(Self { memory, stubs, part_bytes, free: Mutex::new((0..PARTS).rev().collect()) })
    }

    /// Where a part lies.
    pub fn range(&self, part: usize) -> Range<usize> {
        let start = STUB_BYTES + part * self.part_bytes;
        start..start + self.part_bytes
    }

    /// The part in which an address lies.
    pub fn part_of(&self, address: u64) -> Option<usize> {
        let offset = address.checked_sub(self.memory.address(STUB_BYTES))?;
        let part = offset as usize / self.part_bytes;
        (part < PARTS).then_some(part)
    }

    /// For the sampler: where everything lies.
    pub fn places(&self) -> CodePlaces {
        let [start, first] = [0, STUB_BYTES].map(|offset| self.memory.address(offset));
        CodePlaces { start, first, part_bytes: self.part_bytes as u64 }
    }

    fn take(&self) -> Option<usize> {
        self.lock_free().pop()
    }

    /// Nobody executes in a part any more.
    pub fn give_back(&self, part: usize) {
        self.lock_free().push(part);
    }

    fn lock_free(&self) -> std::sync::MutexGuard<'_, Vec<usize>> {
        self.free.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

/// What the translator has done so far, for `info jit`.
#[derive(Default)]
pub(crate) struct Counters {
    pub blocks: AtomicU64,
    pub instructions: AtomicU64,
    pub bytes: AtomicU64,
    pub links: AtomicU64,
    pub revived: AtomicU64,
    pub replaced: AtomicU64,
    pub spaces: AtomicU64,
    pub nanoseconds: AtomicU64,
    pub regions: AtomicU64,
    pub region_instructions: AtomicU64,
    pub region_bytes: AtomicU64,
    pub useless_regions: AtomicU64,
    /// Regions that were not made, by why.
    refusals: Mutex<BTreeMap<String, u64>>,
    pub region_nanoseconds: AtomicU64,
}

impl Counters {
    /// There is no region where one was wanted.
    pub fn count_refusal(&self, why: &impl std::fmt::Display) {
        let mut refusals = self.refusals.lock().unwrap_or_else(|poison| poison.into_inner());
        *refusals.entry(format!("no region: {why}")).or_default() += 1;
    }
}

/// The translator of one machine: its code, and what it has done.
pub(crate) struct Translations {
    spaces: RwLock<Spaces>,
    /// The newest space's number; 0: there is none yet.
    number: AtomicU32,
    code_bytes: usize,
    /// Executions after which a trace is translated.
    pub hot: u32,
    pub counters: Counters,
    pub watch: WatchOptions,
    /// Which host code is whose, where somebody wants to know.
    pub log: CodeLog,
    /// The optimising tier's.
    pub compiler: Compiler,
}

/// Those in use.
#[derive(Default)]
struct Spaces {
    ground: Option<Arc<Ground>>,
    /// The newest last.
    live: VecDeque<Arc<Space>>,
}

impl Translations {
    /// A translator.
    pub fn new(options: TranslatorOptions) -> Self {
        let watch = options.watch;
        let compiler = Compiler::new(options.tier2);
        Self { code_bytes: options.code_bytes.max(1), hot: options.hot, compiler, watch, log: CodeLog::new(watch), ..Self::off() }
    }

    /// No translator.
    pub fn off() -> Self {
        let watch = WatchOptions::default();
        Self {
            spaces: RwLock::default(),
            number: AtomicU32::new(0),
            code_bytes: 0,
            hot: 0,
            counters: Counters::default(),
            compiler: Compiler::new(None),
            watch,
            log: CodeLog::new(watch),
        }
    }

    /// Whether there is one.
    pub fn is_on(&self) -> bool {
        self.code_bytes != 0
    }

    /// Whether the optimising tier has compiled anything.
    pub fn has_regions(&self) -> bool {
        self.counters.regions.load(Ordering::Relaxed) != 0
    }

    /// What each tier has made.
    pub fn figures(&self) -> Vec<TierFigures> {
        if !self.is_on() {
            return Vec::new();
        }
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        let spaces = self.spaces.read().unwrap_or_else(|poison| poison.into_inner());
        let used: Vec<[u64; 2]> = spaces.live.iter().map(|space| space.used()).collect();
        drop(spaces);
        let [used, used_by_regions] = [0, 1].map(|tier| used.iter().map(|used| used[tier]).sum());
        let tier_1 = TierFigures {
            title: "Tier 1",
            pieces: of(&counters.blocks),
            instructions: of(&counters.instructions),
            made_bytes: of(&counters.bytes),
            used_bytes: used,
            most_bytes: self.code_bytes as u64,
            spent: Duration::from_nanos(of(&counters.nanoseconds)),
            more: vec![
                ("links between blocks".to_owned(), of(&counters.links)),
                ("blocks revived".to_owned(), of(&counters.revived)),
                ("blocks replaced by others".to_owned(), of(&counters.replaced)),
                ("parts of the code memory filled so far".to_owned(), of(&counters.spaces)),
            ],
        };
        let mut figures = vec![tier_1];
        if self.compiler.options.is_some() {
            figures.push(TierFigures {
                title: "Tier 2",
                pieces: of(&counters.regions),
                instructions: of(&counters.region_instructions),
                made_bytes: of(&counters.region_bytes),
                used_bytes: used_by_regions,
                most_bytes: self.code_bytes as u64,
                spent: Duration::from_nanos(of(&counters.region_nanoseconds)),
                more: {
                    let refusals = counters.refusals.lock().unwrap_or_else(|poison| poison.into_inner());
                    let given_up = ("regions given up".to_owned(), of(&counters.useless_regions));
                    std::iter::once(given_up).chain(refusals.clone()).collect()
                },
            });
        }
        figures
    }

    /// The newest space's number.
    #[inline]
    pub fn number(&self) -> u32 {
        self.number.load(Ordering::Acquire)
    }

    /// The spaces in use, the newest last; one is made if there is none yet.
    ///
    /// # Errors
    /// When the host gives no memory to execute.
    pub(super) fn spaces(&self) -> io::Result<Vec<Arc<Space>>> {
        if self.number() == 0 {
            self.renew(0)?;
        }
        let spaces = self.spaces.read().unwrap_or_else(|poison| poison.into_inner());
        Ok(spaces.live.iter().cloned().collect())
    }

    /// A space newer than number `full`, if there is room for one and nobody else has made one already.
    ///
    /// # Errors
    /// When the host gives no memory to execute.
    pub(super) fn renew(&self, full: u32) -> io::Result<()> {
        let mut spaces = self.spaces.write().unwrap_or_else(|poison| poison.into_inner());
        if self.number() != full {
            return Ok(());
        }
        let ground = match &spaces.ground {
            Some(ground) => ground.clone(),
            None => spaces.ground.insert(Arc::new(Ground::new(self.code_bytes)?)).clone(),
        };
        let Some(part) = ground.take() else { return Ok(()) };
        let space = Arc::new(Space::new(ground, part, full + 1));
        spaces.live.push_back(space);
        // Before anybody can look for the new one, and let go of the old.
        let gone = if spaces.live.len() < PARTS { None } else { spaces.live.pop_front() };
        gone.iter().for_each(|gone| gone.cut_off());
        self.counters.spaces.fetch_add(1, Ordering::Relaxed);
        self.number.store(full + 1, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_goes_to_somebody_else_only_when_all_have_left_it() {
        let translations = Translations::new(TranslatorOptions { code_bytes: 1 << 20, ..TranslatorOptions::default() });
        let held = translations.spaces().expect("memory for code");
        assert_eq!(held.iter().map(|space| space.number).collect::<Vec<_>>(), [1]);
        for full in 1..PARTS as u32 {
            translations.renew(full).expect("memory for code");
            assert_eq!(translations.number(), full + 1);
        }
        let live = || translations.spaces().expect("memory for code").iter().map(|space| space.number).collect::<Vec<_>>();
        assert_eq!(live(), (2..=PARTS as u32).collect::<Vec<_>>(), "the oldest goes in time");
        let last = PARTS as u32;
        translations.renew(last).expect("memory for code");
        assert_eq!(translations.number(), last, "somebody may still execute in the part");
        let part = held[0].part;
        drop(held);
        translations.renew(last).expect("memory for code");
        let newest = translations.spaces().expect("memory for code").pop().expect("a space");
        assert_eq!((newest.number, newest.part), (last + 1, part));
        translations.renew(1).expect("memory for code");
        assert_eq!(translations.number(), last + 1, "there is a newer one than that already");
    }

    #[test]
    fn addresses_belong_to_parts() {
        let ground = Ground::new(1 << 20).expect("memory for code");
        for part in 0..PARTS {
            let range = ground.range(part);
            for offset in [range.start, range.end - 1] {
                assert_eq!(ground.part_of(ground.memory.address(offset)), Some(part));
            }
        }
        assert_eq!(ground.part_of(ground.memory.address(0)), None, "stubs");
        assert_eq!(ground.part_of(ground.memory.address(ground.range(PARTS - 1).end)), None);
    }
}
