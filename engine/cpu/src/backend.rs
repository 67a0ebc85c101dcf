//! A CPU backend and its vCPUs.

use crate::{ApicMessage, CpuIo, Section, x86::X86State};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Makes the CPUs of one machine. All methods may be called from any thread.
pub trait CpuBackend: Send + Sync {
    /// Its name, as `info kvm` and the status bar show it: `interpreter`, `kvm`.
    fn name(&self) -> &'static str;
    /// Makes vCPU `index` (0 is the boot processor), in the state after power-on reset.
    ///
    /// # Errors
    /// When the model asks for what this backend cannot do.
    fn create_vcpu(&self, index: u32, model: &CpuModel) -> Result<Box<dyn Vcpu>, CpuError>;
    /// An interrupt message from the IOAPIC, the HPET or an MSI-capable card.
    fn signal(&self, message: ApicMessage);
    /// The level of the PIC's INTR output, which is wired to LINT0 of every local APIC (and to the CPU while its APIC is off).
    fn set_intr(&self, high: bool);
    /// The level of the NMI wire (LINT1).
    fn set_nmi(&self, high: bool);
    /// The A20 gate: closed, bit 20 of every physical address is zero.
    fn set_a20(&self, open: bool);
    /// CPU `cpu`'s own timer ([`CpuIo::set_cpu_timer`]) has passed.
    fn timer_due(&self, cpu: u32);
    /// What it has done so far, for people. Nothing where a backend counts nothing.
    fn statistics(&self) -> Vec<Section>;
    /// The hottest guest code so far, as text. `None` when no profile is being taken.
    fn profile(&self) -> Option<String>;
}

/// One vCPU. It belongs to the thread that runs it.
pub trait Vcpu: Send {
    /// Runs until something needs the machine. A halted CPU waits in here.
    fn run(&mut self, io: &dyn CpuIo) -> Exit;
    /// The handle that makes `run` return soon.
    fn kicker(&self) -> Kicker;
    /// The architectural state. Only between runs.
    ///
    /// # Errors
    /// When the backend cannot read it.
    fn state(&self) -> Result<CpuState, CpuError>;
    /// Takes an architectural state over. Only between runs.
    ///
    /// # Errors
    /// When a CPU cannot be in this state.
    fn set_state(&mut self, state: &CpuState) -> Result<(), CpuError>;
    /// Back to the state after a system reset. Only between runs.
    fn reset(&mut self);
    /// Guest instructions retired so far (0 where the backend cannot count).
    fn retired_instructions(&self) -> u64;
}

/// Why [`Vcpu::run`] returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// Somebody kicked.
    Kicked,
    /// A fault while delivering a double fault: a PC resets.
    TripleFault,
    /// The backend met something it cannot go on from; the machine stops and says so.
    Failed(String),
}

/// Makes a vCPU return from [`Vcpu::run`]; clones do the same. A kick while it is not running makes the next run return at once.
#[derive(Clone)]
pub struct Kicker(Arc<dyn Fn() + Send + Sync>);

impl Kicker {
    /// A kicker that calls `kick`.
    pub fn new(kick: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(kick))
    }

    /// Kicks.
    pub fn kick(&self) {
        (self.0)();
    }
}

/// The architectural state of a CPU, whichever backend runs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum CpuState {
    /// x86 and x86-64.
    X86(Box<X86State>),
}

/// Which CPU the guest sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuModel {
    /// `qemu64`, `max`, `host`.
    pub name: String,
    /// Features switched on (`true`) or off by `+flag`/`-flag`, by their CPUID names in lower case. Those with a value carry it:
    /// `hv-spinlocks=0x1fff`.
    pub features: Vec<(String, bool)>,
    /// How the CPUs are arranged.
    pub topology: Topology,
}

/// Sockets × cores × threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Packages.
    pub sockets: u32,
    /// Cores in a package.
    pub cores: u32,
    /// Threads in a core.
    pub threads: u32,
}

impl Topology {
    /// How many CPUs there are.
    pub fn cpus(&self) -> u32 {
        self.sockets * self.cores * self.threads
    }
}

/// A backend could not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    /// No such CPU model or feature.
    #[error("{0}")]
    Model(String),
    /// A state that no CPU can be in.
    #[error("the saved CPU state is damaged: {0}")]
    State(String),
    /// The host refused.
    #[error("the host's processor could not be used: {0}")]
    Host(String),
}
