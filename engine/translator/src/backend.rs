//! The seam: [`Interpreter`] is the backend, `InterpreterCpu` one vCPU of it.

use crate::chaos::{Chaos, Dice};
use crate::guest::x86::cpu::Cpu;
use crate::guest::x86::cpuid::CpuidPolicy;
use crate::guest::x86::evaluate::Evaluation;
use crate::guest::x86::t1::Translations;
use crate::shared::{CpuShared, Fabric, attention};
use crate::watch::code_log::WatchOptions;
use crate::watch::{profile, report};
use engine_cpu::x86::X86State;
use engine_cpu::{ApicMessage, CpuBackend, CpuError, CpuIo, CpuModel, CpuState, Exit, Kicker, Section, Vcpu};
use engine_memory::GuestMemory;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The interpreter: the CPUs of one machine.
pub struct Interpreter {
    fabric: Arc<Fabric>,
    evaluation: Option<Evaluation>,
    chaos: Option<Chaos>,
}

impl Interpreter {
    /// A backend for a machine with this memory.
    pub fn new(memory: GuestMemory) -> Self {
        Self { fabric: Arc::new(Fabric::new(memory, Translations::off())), evaluation: None, chaos: None }
    }

    /// A backend that lifts guest code to the translator's intermediate representation and evaluates that, slowly: what tests
    /// compare with the interpreter.
    pub fn evaluating(memory: GuestMemory, evaluation: Evaluation) -> Self {
        Self { evaluation: Some(evaluation), ..Self::new(memory) }
    }

    /// The same as [`Interpreter::new`], with hot code translated to code of the host. On hosts for which there is no
    /// translator it *is* the same.
    pub fn translating(memory: GuestMemory, options: TranslatorOptions) -> Self {
        Self { fabric: Arc::new(Fabric::new(memory, Translations::new(options))), evaluation: None, chaos: options.chaos }
    }
}

/// How the translator works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TranslatorOptions {
    /// Bytes of host code that are kept at most.
    pub code_bytes: usize,
    /// Executions after which a trace is translated. Tests translate everything at once.
    pub hot: u32,
    /// What somebody wants to know of it.
    pub watch: WatchOptions,
    /// For tests: what goes wrong on purpose.
    pub chaos: Option<Chaos>,
    /// The optimising tier, if it is on.
    pub tier2: Option<Tier2Options>,
}

impl Default for TranslatorOptions {
    /// 128 MiB; 16 executions, after which the interpreter has cost as much as the translation will.
    fn default() -> Self {
        Self { code_bytes: 128 << 20, hot: 16, tier2: None, watch: WatchOptions::default(), chaos: None }
    }
}

/// What the optimising tier does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tier2Options {
    /// How often a loop goes round before it is compiled. 0: every block is compiled as soon as it is translated.
    pub threshold: u32,
    /// Compile on a thread of its own. Tests do it at once.
    pub background: bool,
}

impl Default for Tier2Options {
    fn default() -> Self {
        Self { threshold: 8192, background: true }
    }
}

impl CpuBackend for Interpreter {
    fn name(&self) -> &'static str {
        if self.fabric.translations.is_on() { "translator" } else { "interpreter" }
    }

    fn create_vcpu(&self, index: u32, model: &CpuModel) -> Result<Box<dyn Vcpu>, CpuError> {
        let cpuid = CpuidPolicy::new(model)?;
        let shared = CpuShared::new(index, X86State::after_reset(index).apic, self.fabric.translations.watch);
        self.fabric.add(shared.clone());
        let mut cpu = Cpu::new(index, cpuid, shared, self.fabric.clone());
        cpu.evaluation = self.evaluation;
        cpu.dice = self.chaos.map(|chances| Dice::new(chances, index));
        Ok(Box::new(InterpreterCpu { cpu }))
    }

    fn signal(&self, message: ApicMessage) {
        self.fabric.apics.signal(message);
    }

    fn set_intr(&self, high: bool) {
        self.fabric.apics.each(|apic| apic.set_intr(high));
    }

    fn set_nmi(&self, high: bool) {
        self.fabric.apics.each(|apic| apic.set_nmi(high));
    }

    fn set_a20(&self, open: bool) {
        let mask = if open { u64::MAX } else { !(1 << 20) };
        if self.fabric.a20_mask.swap(mask, Ordering::SeqCst) != mask {
            self.fabric.flush_all();
        }
    }

    fn timer_due(&self, cpu: u32) {
        if let Some(apic) = self.fabric.apics.of_cpu(cpu) {
            apic.timer_due();
        }
    }

    fn statistics(&self) -> Vec<Section> {
        report::sections(&self.fabric)
    }

    fn profile(&self) -> Option<String> {
        profile::text(&self.fabric)
    }
}

/// One vCPU.
struct InterpreterCpu {
    cpu: Box<Cpu>,
}

impl Vcpu for InterpreterCpu {
    fn run(&mut self, io: &dyn CpuIo) -> Exit {
        self.cpu.run(io)
    }

    fn kicker(&self) -> Kicker {
        let shared = self.cpu.shared.clone();
        Kicker::new(move || shared.raise(attention::KICK))
    }

    fn state(&self) -> Result<CpuState, CpuError> {
        Ok(CpuState::X86(Box::new(self.cpu.save())))
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), CpuError> {
        let CpuState::X86(state) = state;
        if state.rflags & 2 == 0 {
            return Err(CpuError::State("the flags register has an impossible value".to_owned()));
        }
        // A state from another CPU model, or from a damaged file, must not reach code that relies on these.
        if state.xcr0 & 1 == 0 || state.xcr0 & !self.cpu.cpuid.xcr0_allowed() != 0 {
            return Err(CpuError::State("XCR0 names register sets that this CPU model does not have".to_owned()));
        }
        if state.fpu.mxcsr >> 16 != 0 {
            return Err(CpuError::State("MXCSR has bits that do not exist".to_owned()));
        }
        self.cpu.load(state);
        Ok(())
    }

    fn reset(&mut self) {
        self.cpu.reset();
    }

    fn retired_instructions(&self) -> u64 {
        self.cpu.retired
    }
}
