//! What other threads may touch of a vCPU: its attention bits and its local APIC. Everything else of a CPU belongs to
//! the thread that runs it.
//!
//! A thread that wants something of a CPU stores its request, then raises a bit by [`CpuShared::raise`]; the CPU looks
//! at the word between traces ([`CpuShared::attention`]) and takes the requests. A CPU that waits (HLT, wait-for-SIPI) sleeps on
//! the condition variable in here and is woken by the same call.

use crate::guest::x86::lapic::{ApicBus, LocalApic};
use crate::guest::x86::t1::Translations;
use crate::watch::code_log::WatchOptions;
use crate::watch::sampler::Sampler;
use crate::watch::tally::Tally;
use engine_cpu::x86::ApicState;
use engine_cpu::x86::paravirt::HyperVPartition;
use engine_memory::GuestMemory;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, RwLock, Weak};
use std::time::Duration;

/// Bits of the attention word.
pub(crate) mod attention {
    /// [`engine_cpu::Kicker::kick`]: leave `run`.
    pub const KICK: u32 = 1 << 0;
    /// [`LocalApic::events`] has something new: a vector, INTR, NMI, INIT, start-up, or its timer.
    pub const APIC: u32 = 1 << 1;
    /// Cached translations must go: a page became code, the memory layout or the A20 gate changed.
    pub const FLUSH: u32 = 1 << 7;
    /// Another CPU does something that must look like one step: stand by until it is done.
    pub const HOLD: u32 = 1 << 9;
    /// Leave the trace and look at the CPU's own state again (interrupts enabled, single step …). Raised by itself.
    pub const SELF: u32 = 1 << 8;
}

/// What other threads may touch of one vCPU.
pub(crate) struct CpuShared {
    /// Which CPU it is.
    pub index: u32,
    /// See [`attention`].
    attention: AtomicU32,
    /// Counts requests of [`attention::FLUSH`]; `flushes_done` follows when the CPU has obeyed.
    flushes_asked: AtomicU64,
    flushes_done: AtomicU64,
    /// What the guest's page tables said must go too with the next flush.
    shot_down: AtomicBool,
    /// It is not executing guest instructions (halted, outside `run`, or itself waiting for others), so it holds no
    /// translation it could use before looking at its attention word.
    quiet: AtomicBool,
    /// The local APIC: it has its own lock and raises [`attention::APIC`] when its events need a look.
    pub apic: Arc<LocalApic>,
    /// What it counts.
    pub tally: Tally,
    /// Where its time goes.
    pub sampler: Sampler,
    sleep: Mutex<()>,
    wake: Condvar,
}

impl CpuShared {
    /// CPU `index`, whose local APIC is in this state.
    pub fn new(index: u32, apic: ApicState, watch: WatchOptions) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| {
            let me = me.clone();
            let wake = move || {
                if let Some(cpu) = me.upgrade() {
                    cpu.raise(attention::APIC);
                }
            };
            Self {
                index,
                attention: AtomicU32::new(0),
                flushes_asked: AtomicU64::new(0),
                flushes_done: AtomicU64::new(0),
                shot_down: AtomicBool::new(false),
                quiet: AtomicBool::new(true),
                apic: LocalApic::new(index, apic, wake),
                tally: Tally::new(),
                sampler: Sampler::new(watch),
                sleep: Mutex::new(()),
                wake: Condvar::new(),
            }
        })
    }

    /// The attention word; see [`attention`].
    #[inline(always)]
    pub fn attention(&self) -> u32 {
        self.attention.load(Ordering::Acquire)
    }

    /// The attention word itself, for translated code.
    pub fn attention_word(&self) -> *const AtomicU32 {
        &raw const self.attention
    }

    /// Raises attention bits and wakes the CPU if it sleeps. Any thread.
    pub fn raise(&self, bits: u32) {
        let before = self.attention.fetch_or(bits, Ordering::SeqCst);
        if before & bits != bits {
            // Taking the lock orders this notification after the sleeper's last look at the word.
            drop(self.sleep.lock().unwrap_or_else(|poison| poison.into_inner()));
            self.wake.notify_all();
        }
    }

    /// Takes (clears) attention bits; returns which of them were raised.
    pub fn take(&self, bits: u32) -> u32 {
        if self.attention() & bits == 0 {
            return 0;
        }
        self.attention.fetch_and(!bits, Ordering::SeqCst) & bits
    }

    /// Sleeps until any attention bit is raised, at most `limit`. The CPU's own thread.
    pub fn sleep(&self, limit: Option<Duration>) {
        let mut guard = self.sleep.lock().unwrap_or_else(|poison| poison.into_inner());
        while self.attention() == 0 {
            match limit {
                None => guard = self.wake.wait(guard).unwrap_or_else(|poison| poison.into_inner()),
                Some(limit) => {
                    drop(self.wake.wait_timeout(guard, limit));
                    return;
                }
            }
        }
    }

    /// The CPU stops executing guest instructions for a while.
    pub fn enter_quiet(&self) {
        self.quiet.store(true, Ordering::SeqCst);
    }

    /// The CPU goes on. Afterwards it must look at its attention word before it uses any cached translation.
    pub fn leave_quiet(&self) {
        self.quiet.store(false, Ordering::SeqCst);
        // Whoever saw this CPU quiet has raised its bit before; the look at the attention word must not come first.
        fence(Ordering::SeqCst);
    }

    /// The CPU has dropped its cached translations: all requests made up to the returned count are done.
    pub fn flush_done(&self, asked: u64) {
        self.flushes_done.fetch_max(asked, Ordering::SeqCst);
    }

    /// Whether what the guest's page tables said must go too; asked once for each time.
    pub fn take_shot_down(&self) -> bool {
        self.shot_down.swap(false, Ordering::SeqCst)
    }

    /// How many flushes have been asked for.
    pub fn flushes_asked(&self) -> u64 {
        self.flushes_asked.load(Ordering::SeqCst)
    }
}

/// What all vCPUs of a machine share.
pub(crate) struct Fabric {
    /// Guest memory.
    pub memory: GuestMemory,
    /// All vCPUs made so far, by index.
    cpus: RwLock<Vec<Arc<CpuShared>>>,
    /// The way of interrupt messages and wires to the local APICs.
    pub apics: ApicBus,
    /// Held by the CPU that is alone; see [`Fabric::alone`].
    alone: Mutex<()>,
    /// Physical address mask: all ones, or without bit 20 while the A20 gate is closed.
    pub a20_mask: AtomicU64,
    /// What has been translated to host code.
    pub translations: Translations,
    /// What guests of Microsoft's interface have set for all CPUs.
    pub hyper_v: Mutex<HyperVPartition>,
}

impl Fabric {
    pub fn new(memory: GuestMemory, translations: Translations) -> Self {
        Self {
            memory,
            cpus: RwLock::new(Vec::new()),
            apics: ApicBus::new(),
            alone: Mutex::new(()),
            a20_mask: AtomicU64::new(u64::MAX),
            translations,
            hyper_v: Mutex::default(),
        }
    }

    /// Adds a vCPU.
    pub fn add(&self, cpu: Arc<CpuShared>) {
        self.apics.attach(cpu.apic.clone());
        self.cpus.write().unwrap_or_else(|poison| poison.into_inner()).push(cpu);
    }

    /// Calls `each` for every vCPU.
    pub fn for_each(&self, mut each: impl FnMut(&Arc<CpuShared>)) {
        self.cpus.read().unwrap_or_else(|poison| poison.into_inner()).iter().for_each(&mut each);
    }

    /// How many vCPUs there are.
    pub fn cpu_count(&self) -> usize {
        self.cpus.read().unwrap_or_else(|poison| poison.into_inner()).len()
    }

    /// Asks every CPU to drop its cached translations, without waiting.
    pub fn flush_all(&self) {
        self.for_each(|cpu| {
            cpu.flushes_asked.fetch_add(1, Ordering::SeqCst);
            cpu.raise(attention::FLUSH);
        });
    }

    /// CPU `me` has written into decoded code. Blocks look at their page themselves; a loop that the optimising tier has
    /// compiled does so only where it is entered, so every other CPU is to come by a poll.
    pub fn code_was_written(&self, me: &CpuShared) {
        if self.translations.has_regions() && self.cpu_count() > 1 {
            self.for_each(|cpu| {
                if cpu.index != me.index {
                    cpu.raise(attention::SELF);
                }
            });
        }
    }

    /// Asks every CPU but `me` to drop its cached translations and waits until each has done so or is quiet. `me` is quiet
    /// meanwhile and must look at its own attention word afterwards.
    pub fn flush_others_and_wait(&self, me: &CpuShared) {
        self.flush_and_wait(me, |cpu| cpu.index != me.index);
    }

    /// The same for those of the CPUs that are `meant`, and what they know of the guest's page tables goes too: the guest
    /// changed those.
    pub fn shoot_down_and_wait(&self, me: &CpuShared, meant: impl Fn(u32) -> bool) {
        self.flush_and_wait(me, |cpu| {
            let asked = cpu.index != me.index && meant(cpu.index);
            if asked {
                cpu.shot_down.store(true, Ordering::SeqCst);
            }
            asked
        });
    }

    fn flush_and_wait(&self, me: &CpuShared, mut ask: impl FnMut(&CpuShared) -> bool) {
        if self.cpu_count() < 2 {
            return;
        }
        let mut waiting = Vec::new();
        self.for_each(|cpu| {
            if ask(cpu) {
                let ticket = cpu.flushes_asked.fetch_add(1, Ordering::SeqCst) + 1;
                cpu.raise(attention::FLUSH);
                waiting.push((cpu.clone(), ticket));
            }
        });
        me.enter_quiet();
        for (cpu, ticket) in waiting {
            spin_until(|| cpu.flushes_done.load(Ordering::SeqCst) >= ticket || cpu.quiet.load(Ordering::SeqCst));
        }
        me.leave_quiet();
        self.stand_by(me);
    }

    /// Does `work` while no other CPU executes guest instructions: what cannot be made atomic otherwise.
    pub fn alone<T>(&self, me: &CpuShared, work: impl FnOnce() -> T) -> T {
        if self.cpu_count() < 2 {
            return work();
        }
        me.enter_quiet();
        let turn = self.alone.lock().unwrap_or_else(|poison| poison.into_inner());
        me.leave_quiet();
        let mut others = Vec::new();
        self.for_each(|cpu| {
            if cpu.index != me.index {
                cpu.raise(attention::HOLD);
                others.push(cpu.clone());
            }
        });
        for cpu in others {
            spin_until(|| cpu.quiet.load(Ordering::SeqCst));
        }
        let result = work();
        drop(turn);
        result
    }

    /// Waits, quiet, while another CPU wants to be alone. `me` must look at its own attention word afterwards.
    pub fn stand_by(&self, me: &CpuShared) {
        // Again and again: the next one may have seen this CPU quiet.
        while me.take(attention::HOLD) != 0 {
            me.enter_quiet();
            drop(self.alone.lock().unwrap_or_else(|poison| poison.into_inner()));
            me.leave_quiet();
        }
    }
}

/// Waits for what another CPU's thread does soon, leaving the host's CPU to it if that takes longer.
fn spin_until(done: impl Fn() -> bool) {
    let mut spins = 0u32;
    while !done() {
        spins += 1;
        if spins < 200 {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}
