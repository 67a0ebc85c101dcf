//! The local APIC of one vCPU: xAPIC page and x2APIC registers over one register file, the timer, and the acceptance of
//! interrupt messages. Shared: the vCPU's thread reads and writes registers; any thread may deliver a message.
//! What the vCPU must look at is summed up in [`LocalApic::events`], one atomic word that its inner loop can test.
//! Not offered: CMCI, EOI suppression, SMI, the APIC bus of before the Pentium 4 (remote read, arbitration ids).
//! See: Intel SDM volume 3, chapter 11, "Advanced programmable interrupt controller".

mod messages;
mod registers;
mod timer;

pub(crate) use messages::ApicBus;

use engine_base::{RankedMutex, VmTime, rank};
use engine_cpu::x86::ApicState;
use engine_cpu::{CpuIo, DeliveryMode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// What waits for a vCPU, as bits of [`LocalApic::events`].
pub(crate) struct Event;

impl Event {
    /// A vector above the processor priority: [`LocalApic::take_interrupt`].
    pub const INTERRUPT: u32 = 1 << 0;
    /// INTR through LINT0 (or past a disabled APIC): [`LocalApic::external_taken`], then ask the PIC for the vector.
    pub const EXTERNAL: u32 = 1 << 1;
    /// An NMI, latched.
    pub const NMI: u32 = 1 << 2;
    /// INIT, latched.
    pub const INIT: u32 = 1 << 3;
    /// A start-up IPI, latched: [`LocalApic::start_up_page`].
    pub const START_UP: u32 = 1 << 4;
    /// The timer has to be looked at: [`LocalApic::service_timer`].
    pub const TIMER: u32 = 1 << 5;
    /// A vector is requested while the end of another may have been noted in guest memory only: [`LocalApic::settle_lazy_end`].
    pub const LAZY_END: u32 = 1 << 6;
    /// Another CPU has kicked this one out of its next halt; [`LocalApic::take_events`].
    pub const KICK: u32 = 1 << 7;
    /// A second NMI, while [`Event::NMI`] was there: the CPU may take one and keep one.
    pub const NMI_AGAIN: u32 = 1 << 8;
    /// Those that wait for EFLAGS.IF.
    pub const MASKABLE: u32 = Self::INTERRUPT | Self::EXTERNAL;
}

/// IA32_APIC_BASE bits.
mod base {
    pub const BOOT_PROCESSOR: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLED: u64 = 1 << 11;
}

/// A write that the architecture answers with #GP(0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

/// How the APIC is addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ApicMode {
    /// Switched off in IA32_APIC_BASE: INTR and NMI go straight to the CPU.
    Disabled,
    /// By its memory page.
    XApic,
    /// By MSRs 800h to 83Fh.
    X2Apic,
}

/// One local APIC.
pub(crate) struct LocalApic {
    cpu: u32,
    wake: Box<dyn Fn() + Send + Sync>,
    events: AtomicU32,
    start_up_page: AtomicU8,
    file: RankedMutex<RegisterFile>,
}

/// What lies behind the lock.
struct RegisterFile {
    state: ApicState,
    /// Added to the clock to give the time stamp counter.
    tsc_offset: u64,
    /// The wires, as last seen.
    intr_high: bool,
    nmi_high: bool,
    /// An ExtINT message came over the bus and waits for its INTA cycle.
    external_latched: bool,
    /// The guest may end the vector in service by a bit in its memory: see [`LocalApic::arm_lazy_end`].
    lazy_end: bool,
    /// Vectors that are never in service: see [`LocalApic::set_auto_ended`].
    auto_ended: [u32; 8],
    /// When the synthetic timers, which share the board's timer, are due next.
    synthetic_deadline: VmTime,
}

impl LocalApic {
    /// The APIC of CPU `cpu`, as after power-on. `wake` is called, without locks held, when something new waits for a
    /// CPU that may be halted or busy.
    pub fn new(cpu: u32, state: ApicState, wake: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        let file = RegisterFile {
            state,
            tsc_offset: 0,
            intr_high: false,
            nmi_high: false,
            external_latched: false,
            lazy_end: false,
            auto_ended: [0; 8],
            synthetic_deadline: VmTime::NEVER,
        };
        Arc::new(Self {
            cpu,
            wake: Box::new(wake),
            events: AtomicU32::new(0),
            start_up_page: AtomicU8::new(0),
            file: RankedMutex::new(rank::LEAF, "local APIC", file),
        })
    }

    /// What waits for the vCPU: bits of [`Event`].
    #[inline]
    pub fn events(&self) -> u32 {
        self.events.load(Ordering::Acquire)
    }

    /// Takes the latched events among `bits`; returns which there were.
    pub fn take_events(&self, bits: u32) -> u32 {
        let latched = Event::NMI | Event::NMI_AGAIN | Event::INIT | Event::START_UP | Event::TIMER | Event::KICK;
        self.events.fetch_and(!(bits & latched), Ordering::AcqRel) & bits
    }

    /// Takes one NMI; a second one stays latched as the first.
    pub fn take_nmi(&self) -> bool {
        let without_one = |events| {
            let last = if events & Event::NMI_AGAIN != 0 { Event::NMI_AGAIN } else { Event::NMI };
            (events & Event::NMI != 0).then_some(events & !last)
        };
        self.events.fetch_update(Ordering::AcqRel, Ordering::Acquire, without_one).is_ok()
    }

    /// Latches an NMI. Two that come at once, from two CPUs, are two.
    fn latch_nmi(&self) {
        let with_one = |events| Some(events | if events & Event::NMI != 0 { Event::NMI_AGAIN } else { Event::NMI });
        let before = self.events.fetch_update(Ordering::AcqRel, Ordering::Acquire, with_one).unwrap_or_else(|events| events);
        if before & Event::NMI == 0 {
            (self.wake)();
        }
    }

    /// The page of the start-up IPI that [`Event::START_UP`] announced: execution begins at `page << 12`.
    pub fn start_up_page(&self) -> u8 {
        self.start_up_page.load(Ordering::Acquire)
    }

    /// How it is addressed.
    pub fn mode(&self) -> ApicMode {
        self.look(|file| file.mode())
    }

    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.look(|file| file.state.base)
    }

    /// The initial APIC id, as CPUID reports it.
    pub fn id(&self) -> u32 {
        self.look(|file| file.state.id)
    }

    /// Writes IA32_APIC_BASE. `physical_bits` is the width of a physical address.
    ///
    /// # Errors
    /// For reserved bits and for the transitions that figure 11-28 of the SDM does not draw.
    pub fn set_base(&self, value: u64, physical_bits: u32) -> Result<(), Refused> {
        let allowed = ((1 << physical_bits) - 1) & !0xfff | base::BOOT_PROCESSOR | base::X2APIC | base::ENABLED;
        if value & !allowed != 0 {
            return Err(Refused);
        }
        let cpu = self.cpu;
        self.change(|file| {
            let wanted = match (value & base::ENABLED != 0, value & base::X2APIC != 0) {
                (false, false) => ApicMode::Disabled,
                (true, false) => ApicMode::XApic,
                (true, true) => ApicMode::X2Apic,
                (false, true) => return Err(Refused),
            };
            match (file.mode(), wanted) {
                (ApicMode::Disabled, ApicMode::X2Apic) | (ApicMode::X2Apic, ApicMode::XApic) => return Err(Refused),
                // All is as after power-on then, the id included (SDM 11.4.3).
                (ApicMode::XApic | ApicMode::X2Apic, ApicMode::Disabled) => {
                    file.state = ApicState { id: cpu, ..state_after_init(&file.state, cpu) };
                }
                (ApicMode::XApic, ApicMode::X2Apic) => {
                    // The id is the CPU's own again, and the logical id follows from it (SDM 11.12.10.2).
                    file.state.id = cpu;
                    file.state.ldr = x2apic_logical_id(cpu);
                    file.state.icr &= 0xffff_ffff;
                }
                _ => {}
            }
            let boot = file.state.base & base::BOOT_PROCESSOR;
            file.state.base = value & !base::BOOT_PROCESSOR | boot;
            Ok(())
        })
    }

    /// CR8: the upper half of the task priority.
    pub fn cr8(&self) -> u64 {
        self.look(|file| u64::from(file.state.tpr >> 4))
    }

    /// Writes CR8 (0 to 15).
    pub fn set_cr8(&self, value: u64) {
        self.change(|file| file.state.tpr = ((value & 15) << 4) as u8);
    }

    /// Accepts the highest requested vector above the processor priority: it moves into service.
    pub fn take_interrupt(&self) -> Option<u8> {
        self.change(|file| {
            let vector = file.deliverable()?;
            clear_bit(&mut file.state.irr, vector);
            if !test_bit(&file.auto_ended, vector) {
                set_bit(&mut file.state.isr, vector);
            }
            Some(vector)
        })
    }

    /// Which vectors are over as soon as they are accepted: synthetic sources can ask for that.
    pub fn set_auto_ended(&self, vectors: [u32; 8]) {
        self.change(|file| file.auto_ended = vectors);
    }

    /// Whether the guest may end `vector`, which has just been accepted, without a write to the register: nothing else is in
    /// service or waits, and no IOAPIC wants to hear of it. If so, [`Event::LAZY_END`] announces the first vector that is
    /// requested meanwhile.
    pub fn arm_lazy_end(&self, vector: u8) -> bool {
        self.change(|file| {
            let mut alone = [0; 8];
            set_bit(&mut alone, vector);
            let waiting = file.state.irr.iter().any(|word| *word != 0);
            file.lazy_end = file.state.isr == alone && !waiting && !test_bit(&file.state.tmr, vector);
            file.lazy_end
        })
    }

    /// The guest has been asked whether it has ended the vector in service; from now on it has to write to the register.
    pub fn settle_lazy_end(&self, ended: bool) {
        self.change(|file| {
            file.lazy_end = false;
            if let Some(vector) = highest(&file.state.isr).filter(|_| ended) {
                clear_bit(&mut file.state.isr, vector);
            }
        });
    }

    /// Another CPU ends this one's halt, or its next one.
    pub fn kick(&self) {
        self.latch(Event::KICK);
    }

    /// When [`Event::TIMER`] is to come for the synthetic timers. The board hears of it by [`LocalApic::service_timer`].
    pub fn set_synthetic_deadline(&self, deadline: VmTime) {
        self.change(|file| file.synthetic_deadline = deadline);
    }

    /// Which CPU it belongs to.
    pub fn cpu(&self) -> u32 {
        self.cpu
    }

    /// The CPU is about to run the INTA cycle of an [`Event::EXTERNAL`].
    pub fn external_taken(&self) {
        self.change(|file| file.external_latched = false);
    }

    /// The PIC's INTR output.
    pub fn set_intr(&self, high: bool) {
        let wire = self.change(|file| {
            let rose = high && !file.intr_high;
            file.intr_high = high;
            let lint0 = file.state.lvt[lvt::LINT0];
            (rose && file.mode() != ApicMode::Disabled && lint0 & lvt::MASKED == 0).then_some(lint0)
        });
        // As ExtINT the level itself counts; in the other modes LINT0 is one more source of messages.
        if let Some(entry) = wire.filter(|entry| lvt::mode(*entry) != Some(DeliveryMode::ExtInt)) {
            self.deliver_local(entry);
        }
    }

    /// The NMI wire, LINT1.
    pub fn set_nmi(&self, high: bool) {
        let entry = self.change(|file| {
            let rose = high && !file.nmi_high;
            file.nmi_high = high;
            match file.mode() {
                _ if !rose => None,
                ApicMode::Disabled => Some((DeliveryMode::Nmi as u32) << 8),
                _ => Some(file.state.lvt[lvt::LINT1]).filter(|entry| entry & lvt::MASKED == 0),
            }
        });
        if let Some(entry) = entry {
            self.deliver_local(entry);
        }
    }

    /// Accepts a message that is addressed to this APIC.
    pub fn deliver(&self, mode: DeliveryMode, vector: u8, level_triggered: bool) {
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                let failed = self.change(|file| file.request(vector, level_triggered));
                if failed.is_err() {
                    self.note_error(esr::RECEIVE_ILLEGAL_VECTOR);
                }
            }
            DeliveryMode::Nmi => self.latch_nmi(),
            DeliveryMode::Init => {
                // A start-up or kick that came before the INIT was for the CPU as it was.
                self.events.fetch_and(!(Event::START_UP | Event::KICK), Ordering::AcqRel);
                self.latch(Event::INIT);
            }
            DeliveryMode::StartUp => {
                self.start_up_page.store(vector, Ordering::Release);
                self.latch(Event::START_UP);
            }
            DeliveryMode::ExtInt => self.change(|file| file.external_latched = true),
            DeliveryMode::Smi => {
                engine_base::warn_limited!(target: "lapic", cpu = self.cpu, "system management interrupt ignored: there is no SMM");
            }
        }
    }

    /// Delivers what a local vector table entry says.
    fn deliver_local(&self, entry: u32) {
        if entry & lvt::MASKED != 0 {
            return;
        }
        match lvt::mode(entry) {
            Some(DeliveryMode::StartUp | DeliveryMode::LowestPriority) | None => {}
            Some(mode) => self.deliver(mode, entry as u8, entry & lvt::LEVEL != 0),
        }
    }

    /// Notes an error (bits of the error status register) and raises the error interrupt.
    fn note_error(&self, error: u32) {
        let entry = self.change(|file| {
            let new = file.state.pending_errors & error != error;
            file.state.pending_errors |= error;
            new.then_some(file.state.lvt[lvt::ERROR])
        });
        // An error entry with an illegal vector must not report itself for ever.
        if let Some(entry) = entry.filter(|entry| entry & 0xff >= 16) {
            self.deliver_local(entry & !lvt::MODE);
        }
    }

    /// End of interrupt: the highest vector in service leaves it; a level-triggered one is told to the IOAPICs.
    fn end_of_interrupt(&self, io: &dyn CpuIo) {
        let level = self.change(|file| {
            let vector = highest(&file.state.isr)?;
            clear_bit(&mut file.state.isr, vector);
            test_bit(&file.state.tmr, vector).then_some(vector)
        });
        if let Some(vector) = level {
            // Without our lock: the IOAPIC may deliver the next interrupt at once.
            io.end_of_interrupt(vector);
        }
    }

    /// The registers.
    pub fn save(&self) -> ApicState {
        self.look(|file| file.state.clone())
    }

    /// Takes registers over, with the offset of the time stamp counter; nothing is latched any more. The levels of the
    /// wires stay; the timer is armed when the vCPU next runs.
    pub fn load(&self, state: &ApicState, tsc_offset: u64) {
        self.events.store(0, Ordering::Release);
        self.replace(|file| {
            file.state = state.clone();
            file.tsc_offset = tsc_offset;
        });
    }

    /// What INIT does to the APIC. Messages that come while it is carried out stay latched: firmware sends the start-up
    /// right behind the INIT, so the two meet here.
    pub fn carry_out_init(&self) {
        self.replace(|file| file.state = state_after_init(&file.state, self.cpu));
    }

    fn replace(&self, registers: impl FnOnce(&mut RegisterFile)) {
        self.change(|file| {
            registers(file);
            file.external_latched = false;
            file.lazy_end = false;
        });
        self.latch(Event::TIMER);
    }

    /// Latches again what a saved state had latched.
    pub fn load_latched(&self, init: bool, start_up: Option<u8>, kick: bool) {
        if kick {
            self.latch(Event::KICK);
        }
        if init {
            self.latch(Event::INIT);
        }
        if let Some(page) = start_up {
            self.deliver(DeliveryMode::StartUp, page, false);
        }
    }

    /// How busy it is, for lowest-priority delivery; `None` while software has it disabled.
    fn arbitration_priority(&self) -> Option<u8> {
        self.look(|file| file.software_enabled().then(|| file.processor_priority()))
    }

    fn latch(&self, event: u32) {
        if self.events.fetch_or(event, Ordering::AcqRel) & event == 0 {
            (self.wake)();
        }
    }

    fn look<R>(&self, ask: impl FnOnce(&RegisterFile) -> R) -> R {
        ask(&self.file.lock())
    }

    /// Changes registers, then brings the level events up to date; wakes the CPU when one of them is new.
    fn change<R>(&self, change: impl FnOnce(&mut RegisterFile) -> R) -> R {
        let mut file = self.file.lock();
        let result = change(&mut file);
        let mut now = 0;
        if file.deliverable().is_some() {
            now |= Event::INTERRUPT;
        }
        if file.external_waits() {
            now |= Event::EXTERNAL;
        }
        if file.lazy_end && file.state.irr.iter().any(|word| *word != 0) {
            now |= Event::LAZY_END;
        }
        // Nobody else touches these bits, for all who do hold the lock.
        const LEVELS: u32 = Event::MASKABLE | Event::LAZY_END;
        let before = self.events.fetch_or(now, Ordering::AcqRel);
        if before & LEVELS & !now != 0 {
            self.events.fetch_and(!(LEVELS & !now), Ordering::AcqRel);
        }
        drop(file);
        if now & !before != 0 {
            (self.wake)();
        }
        result
    }
}

impl RegisterFile {
    fn mode(&self) -> ApicMode {
        match (self.state.base & base::ENABLED != 0, self.state.base & base::X2APIC != 0) {
            (false, _) => ApicMode::Disabled,
            (true, false) => ApicMode::XApic,
            (true, true) => ApicMode::X2Apic,
        }
    }

    fn software_enabled(&self) -> bool {
        self.mode() != ApicMode::Disabled && self.state.svr & registers::SOFTWARE_ENABLE != 0
    }

    /// PPR (SDM 11.8.3.1).
    fn processor_priority(&self) -> u8 {
        let in_service = highest(&self.state.isr).unwrap_or(0);
        if self.state.tpr >> 4 >= in_service >> 4 { self.state.tpr } else { in_service & 0xf0 }
    }

    fn deliverable(&self) -> Option<u8> {
        let vector = highest(&self.state.irr)?;
        (self.software_enabled() && vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    fn external_waits(&self) -> bool {
        let lint0 = self.state.lvt[lvt::LINT0];
        let through = match self.mode() {
            ApicMode::Disabled => true,
            _ => lint0 & lvt::MASKED == 0 && lvt::mode(lint0) == Some(DeliveryMode::ExtInt),
        };
        self.external_latched || self.intr_high && through
    }

    /// Puts a vector into the request register.
    fn request(&mut self, vector: u8, level_triggered: bool) -> Result<(), Refused> {
        if !self.software_enabled() {
            return Ok(());
        }
        if vector < 16 {
            return Err(Refused);
        }
        set_bit(&mut self.state.irr, vector);
        if level_triggered {
            set_bit(&mut self.state.tmr, vector);
        } else {
            clear_bit(&mut self.state.tmr, vector);
        }
        Ok(())
    }
}

/// Local vector table: indices into [`ApicState::lvt`] and the fields of an entry.
mod lvt {
    use engine_cpu::DeliveryMode;

    pub const TIMER: usize = 1;
    pub const LINT0: usize = 4;
    pub const LINT1: usize = 5;
    pub const ERROR: usize = 6;
    pub const MODE: u32 = 7 << 8;
    pub const LEVEL: u32 = 1 << 15;
    pub const MASKED: u32 = 1 << 16;

    pub fn mode(entry: u32) -> Option<DeliveryMode> {
        super::registers::delivery_mode(entry)
    }
}

/// Error status register bits.
mod esr {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// The state after INIT (SDM 11.4.7.3): as after power-on but for the id and IA32_APIC_BASE.
pub(crate) fn state_after_init(state: &ApicState, cpu: u32) -> ApicState {
    let fresh = engine_cpu::x86::X86State::after_reset(cpu).apic;
    let ldr = if state.base & base::X2APIC != 0 { x2apic_logical_id(cpu) } else { 0 };
    ApicState { base: state.base, id: state.id, ldr, timer_started: VmTime::NEVER, ..fresh }
}

/// The logical id that follows from an x2APIC id: cluster and one bit of 16.
fn x2apic_logical_id(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 15)
}

fn test_bit(bits: &[u32; 8], vector: u8) -> bool {
    bits[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0
}

fn set_bit(bits: &mut [u32; 8], vector: u8) {
    bits[usize::from(vector >> 5)] |= 1 << (vector & 31);
}

fn clear_bit(bits: &mut [u32; 8], vector: u8) {
    bits[usize::from(vector >> 5)] &= !(1 << (vector & 31));
}

fn highest(bits: &[u32; 8]) -> Option<u8> {
    let word = bits.iter().rposition(|word| *word != 0)?;
    Some((word * 32) as u8 + (31 - bits[word].leading_zeros()) as u8)
}

#[cfg(test)]
mod tests;
