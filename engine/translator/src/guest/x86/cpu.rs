//! One x86 CPU: all of its state, in the form in which handlers use it. Conventions of handlers are in `op.rs`.
//!
//! Architectural fields are public to the crate and may be written by the handlers of their area; what is *derived* from
//! them (segment spans, masks, mode, TLB class) is recomputed by [`Cpu::mode_changed`] and only there.

use super::cpuid::CpuidPolicy;
use super::fault::{Exec, Stop};
use super::flags::{Flags, bit};
use super::lapic::Event;
use super::op::Op;
use super::paravirt::{self, StealMeter};
use super::t1::{Seen, Translator};
use super::trace::{Running, Traces};
use crate::chaos::Dice;
use crate::mmu::{PhysicalPages, SecondLevel, Tlb};
use crate::shared::{CpuShared, Fabric};
use crate::watch::sampler::Place;
use engine_cpu::CpuIo;
use engine_cpu::x86::paravirt::ParavirtState;
use engine_cpu::x86::{Activity, FpuState, MsrState, Segment, TableRegister, X86State};
use engine_memory::Block;
use std::sync::{Arc, PoisonError};

/// CR0 bits.
#[allow(dead_code, reason = "the register is complete")]
pub(crate) mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits.
#[allow(dead_code, reason = "the register is complete")]
pub(crate) mod cr4 {
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
}

/// EFER bits.
#[allow(dead_code, reason = "the register is complete")]
pub(crate) mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}

/// The encoding's numbers of the segment registers.
#[allow(dead_code, reason = "all six")]
pub(crate) mod seg {
    pub const ES: u8 = 0;
    pub const CS: u8 = 1;
    pub const SS: u8 = 2;
    pub const DS: u8 = 3;
    pub const FS: u8 = 4;
    pub const GS: u8 = 5;
}

/// The encoding's numbers of the general registers.
#[allow(dead_code, reason = "all sixteen")]
pub(crate) mod reg {
    pub const AX: u8 = 0;
    pub const CX: u8 = 1;
    pub const DX: u8 = 2;
    pub const BX: u8 = 3;
    pub const SP: u8 = 4;
    pub const BP: u8 = 5;
    pub const SI: u8 = 6;
    pub const DI: u8 = 7;
}

/// The size of code: CS.L and CS.D.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum CodeSize {
    Bits16 = 0,
    Bits32 = 1,
    Bits64 = 2,
}

/// A segment as the fast path of memory accesses sees it. Derived.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Span {
    /// Added to the offset (0 for all but FS and GS in 64-bit code).
    pub base: u64,
    /// An access that ends at or before this offset may read; 0 sends every access through the exact check.
    pub read_end: u64,
    /// The same for writing.
    pub write_end: u64,
}

/// One CPU. Translated code addresses the fields it needs from the start of this: what is used most comes first, the tables of the TLB
/// (see `mmu/tlb.rs`) and the ring of jumps come last.
#[repr(C)]
pub(crate) struct Cpu {
    /// RAX … R15 in the encoding's order; entry 16 is always zero (see [`super::op::NO_REGISTER`]).
    pub gpr: [u64; 32],
    /// In a handler: the offset of the *next* instruction in CS.
    pub rip: u64,
    /// RFLAGS.
    pub flags: Flags,
    /// Derived: see [`Span`]. Indexed by segment register.
    pub spans: [Span; 8],
    /// Derived: what a linear address keeps (32 bits outside 64-bit code).
    pub linear_mask: u64,
    /// Derived: what of RSP is the stack pointer (SS.B, or all 64 bits).
    pub stack_mask: u64,
    /// Derived: which class of TLB entries ordinary accesses use.
    pub tlb_class: u8,
    /// Derived: the mode that decoded traces depend on.
    pub mode: u8,
    /// Derived: code size.
    pub code_size: CodeSize,
    /// Current privilege level. Whoever sets it calls [`Cpu::mode_changed`].
    pub cpl: u8,

    /// Segment registers with their hidden parts, in the encoding's order.
    pub segments: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: TableRegister,
    pub idtr: TableRegister,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub pdptes: [u64; 4],
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub msr: MsrState,
    pub xcr0: u64,
    pub fpu: FpuState,
    pub activity: Activity,
    /// STI or MOV SS was the last instruction: no interrupt (and for MOV SS no debug trap) before the next is done.
    pub interrupt_shadow: bool,
    pub nmi_blocked: bool,
    pub nmi_pending: bool,

    /// The linear address of the last page fault: becomes CR2 on delivery.
    pub fault_address: u64,
    /// DR6 bits of data and I/O breakpoints (and BS) that the current instruction has met; delivered as a trap after it.
    pub pending_debug: u64,
    /// An interrupt or NMI waits for RFLAGS.IF, the end of a shadow or a lower priority: look again after every change of these.
    pub events_waiting: bool,
    /// Instructions retired since reset.
    pub retired: u64,

    /// Decoded traces.
    pub traces: Box<Traces>,
    /// Blocks of which the TLB or a trace holds addresses: keeps them alive.
    pub held_blocks: Vec<Block>,
    /// [`engine_memory::GuestMemory::generation`] at the last flush.
    pub memory_generation: u64,
    /// The second level of the software TLB.
    pub second_level: SecondLevel,
    /// The A20 gate's mask for which translations hold.
    pub a20_seen: u64,
    /// What the physical address space holds, as far as it has been looked up.
    pub physical_pages: PhysicalPages,
    /// Copy of IA32_APIC_BASE: where the local APIC answers. Whoever changes the MSR (or loads the APIC) changes this too.
    pub apic_base: u64,
    /// What other threads may touch.
    pub shared: Arc<CpuShared>,
    /// What all CPUs of the machine share.
    pub fabric: Arc<Fabric>,
    /// Which CPU the guest sees (CPUID).
    pub cpuid: CpuidPolicy,
    /// What it holds for hypervisors' interfaces; of what all CPUs share, the fabric holds what is true.
    pub paravirt: ParavirtState,
    /// The guest may end the interrupt in service by a bit at this physical address.
    pub(super) lazy_end: Option<u64>,
    pub(super) steal_meter: StealMeter,
    /// Which CPU this is.
    pub index: u32,
    /// The board, while `run` is active.
    pub(super) board: Option<Board>,
    /// PAUSE instructions so far.
    pub pauses: u32,
    /// The trace that is being executed.
    pub(super) running: Running,
    /// `retired` may not pass this before timers are looked at.
    pub limit: u64,
    /// The limit of CS for which links between traces were made.
    linked_limit: u32,
    /// Whether traces are lifted and evaluated instead of interpreted, and how.
    pub evaluation: Option<super::evaluate::Evaluation>,
    /// Chaos mode, for tests.
    pub dice: Option<Dice>,
    /// Clock counting instructions: how many of `retired` the clock knows about.
    pub(super) counted: u64,
    /// Whether the machine's clock counts instructions.
    pub counts: bool,
    /// Translated code: what the CPU keeps for it.
    pub t1: Translator,
    /// The first level of the software TLB.
    pub tlb: Tlb,
    /// Where indirect jumps have led lately.
    pub seen: Seen,
    /// What regions count down from; what it is less than zero is missing in `retired`, while translated code runs.
    pub countdown: i64,
}

/// The board during `run`.
#[derive(Clone, Copy)]
pub(super) struct Board(*const dyn CpuIo);

// SAFETY: the pointer is only set while `run` borrows the board, on the thread that runs the CPU.
unsafe impl Send for Board {}

impl Board {
    /// Remembers `io`; the caller forgets it before `io`'s borrow ends.
    pub(super) fn new(io: &dyn CpuIo) -> Self {
        // SAFETY: only the lifetime changes; see `Cpu::io`.
        Self(unsafe { std::mem::transmute::<*const (dyn CpuIo + '_), *const (dyn CpuIo + 'static)>(io) })
    }
}

impl Cpu {
    /// CPU `index`, just reset.
    pub fn new(index: u32, cpuid: CpuidPolicy, shared: Arc<CpuShared>, fabric: Arc<Fabric>) -> Box<Self> {
        let t1 = Translator::new(&shared, &fabric.translations);
        let mut cpu = Box::new(Self {
            gpr: [0; 32],
            rip: 0,
            flags: Flags::new(0),
            spans: [Span::default(); 8],
            linear_mask: 0,
            stack_mask: 0,
            tlb_class: 0,
            mode: 0,
            code_size: CodeSize::Bits16,
            cpl: 0,
            segments: [Segment::default(); 6],
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: TableRegister::default(),
            idtr: TableRegister::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            pdptes: [0; 4],
            dr: [0; 4],
            dr6: 0,
            dr7: 0,
            msr: MsrState::default(),
            xcr0: 1,
            fpu: FpuState::default(),
            activity: Activity::Running,
            interrupt_shadow: false,
            nmi_blocked: false,
            nmi_pending: false,
            fault_address: 0,
            pending_debug: 0,
            events_waiting: false,
            retired: 0,
            traces: Traces::new(),
            held_blocks: Vec::new(),
            memory_generation: fabric.memory.generation(),
            second_level: SecondLevel::new(),
            a20_seen: u64::MAX,
            physical_pages: PhysicalPages::new(),
            apic_base: 0,
            shared,
            fabric,
            cpuid,
            paravirt: ParavirtState::default(),
            lazy_end: None,
            steal_meter: StealMeter::default(),
            index,
            board: None,
            pauses: 0,
            running: Running::nothing(),
            limit: u64::MAX,
            linked_limit: 0,
            evaluation: None,
            dice: None,
            counted: 0,
            counts: false,
            t1,
            tlb: Tlb::new(),
            seen: Seen::default(),
            countdown: 0,
        });
        cpu.reset();
        cpu
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        self.load(&X86State::after_reset(self.index));
    }

    /// Takes an architectural state over.
    pub fn load(&mut self, state: &X86State) {
        let apic = &self.shared.apic;
        apic.load(&state.apic, state.msr.tsc_offset);
        apic.load_latched(state.init_pending, state.start_up_pending, state.paravirt.kvm.kicked);
        self.load_core(state);
        self.fabric.hyper_v.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&state.paravirt.hyper_v_partition);
    }

    /// Takes over all of an architectural state but the local APIC, which other threads may be writing to.
    pub fn load_core(&mut self, state: &X86State) {
        let X86State {
            gpr,
            rip,
            rflags,
            segments,
            ldtr,
            tr,
            gdtr,
            idtr,
            cr0,
            cr2,
            cr3,
            cr4,
            pdptes,
            dr,
            dr6,
            dr7,
            msr,
            xcr0,
            fpu,
            apic,
            paravirt,
            activity,
            interrupt_shadow,
            nmi_blocked,
            nmi_pending,
            init_pending: _,
            start_up_pending: _,
        } = state;
        self.gpr[..16].copy_from_slice(gpr);
        self.rip = *rip;
        self.flags.set(*rflags);
        self.segments = *segments;
        (self.ldtr, self.tr, self.gdtr, self.idtr) = (*ldtr, *tr, *gdtr, *idtr);
        (self.cr0, self.cr2, self.cr3, self.cr4, self.pdptes) = (*cr0, *cr2, *cr3, *cr4, *pdptes);
        (self.dr, self.dr6, self.dr7) = (*dr, *dr6, *dr7);
        self.msr = msr.clone();
        self.xcr0 = *xcr0;
        self.fpu = fpu.clone();
        self.activity = *activity;
        (self.interrupt_shadow, self.nmi_blocked, self.nmi_pending) = (*interrupt_shadow, *nmi_blocked, *nmi_pending);
        self.apic_base = apic.base;
        self.paravirt = paravirt.clone();
        self.lazy_end = None;
        self.steal_meter = StealMeter::default();
        paravirt::loaded(self);
        // The privilege level is SS.DPL whenever the CPU is in protected mode (SDM volume 3, 5.5); V86 code is at 3.
        self.cpl = if self.cr0 & cr0::PE == 0 {
            0
        } else if self.flags.has(bit::VM) {
            3
        } else {
            self.segments[seg::SS as usize].dpl()
        };
        self.pending_debug = 0;
        self.events_waiting = true;
        self.flush_tlb();
        self.mode_changed();
    }

    /// The architectural state.
    pub fn save(&self) -> X86State {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.gpr[..16]);
        let latched = self.shared.apic.events();
        let mut paravirt = self.paravirt.clone();
        paravirt.kvm.kicked = latched & Event::KICK != 0;
        paravirt.hyper_v_partition.clone_from(&self.fabric.hyper_v.lock().unwrap_or_else(PoisonError::into_inner));
        X86State {
            gpr,
            rip: self.rip,
            rflags: self.flags.value(),
            segments: self.segments,
            ldtr: self.ldtr,
            tr: self.tr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            pdptes: self.pdptes,
            dr: self.dr,
            dr6: self.dr6,
            dr7: self.dr7,
            msr: self.msr.clone(),
            xcr0: self.xcr0,
            fpu: self.fpu.clone(),
            apic: self.shared.apic.save(),
            paravirt,
            activity: self.activity,
            interrupt_shadow: self.interrupt_shadow,
            nmi_blocked: self.nmi_blocked,
            nmi_pending: self.nmi_pending || latched & Event::NMI != 0,
            init_pending: latched & Event::INIT != 0,
            start_up_pending: (latched & Event::START_UP != 0).then(|| self.shared.apic.start_up_page()),
        }
    }

    // ---- Modes -------------------------------------------------------------------------------------------------

    /// CR0.PE
    #[inline]
    pub fn is_protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }
    /// Virtual-8086 mode.
    #[inline]
    pub fn is_v86(&self) -> bool {
        self.flags.has(bit::VM)
    }
    /// Real or virtual-8086 mode: selectors are paragraphs.
    #[inline]
    pub fn uses_paragraphs(&self) -> bool {
        !self.is_protected() || self.is_v86()
    }
    /// EFER.LMA: long mode is active (64-bit or compatibility).
    #[inline]
    pub fn is_long(&self) -> bool {
        self.msr.efer & efer::LMA != 0
    }
    /// 64-bit code is running.
    #[inline]
    pub fn is_64_bit(&self) -> bool {
        self.code_size == CodeSize::Bits64
    }
    /// Whether the system lets VEX instructions use YMM registers; if not they are #UD. (CR0.TS is another matter.)
    #[inline]
    pub fn avx_enabled(&self) -> bool {
        self.cr4 & cr4::OSXSAVE != 0 && self.xcr0 & 0b110 == 0b110 && !self.uses_paragraphs()
    }
    /// CR0.PG
    #[inline]
    pub fn is_paged(&self) -> bool {
        self.cr0 & cr0::PG != 0
    }

    /// Recomputes everything that is derived from CR0, CR4, EFER, RFLAGS.VM/AC, CPL and the segment registers. Call it after
    /// changing any of them (after a group of changes, once), before the next memory access.
    pub fn mode_changed(&mut self) {
        let cs = &self.segments[seg::CS as usize];
        let was = self.code_size;
        self.code_size = if self.is_long() && cs.is_long() {
            CodeSize::Bits64
        } else if cs.is_big() {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        };
        let wide = self.code_size == CodeSize::Bits64;
        self.linear_mask = if wide { u64::MAX } else { 0xffff_ffff };
        self.stack_mask = if wide {
            u64::MAX
        } else if self.segments[seg::SS as usize].is_big() {
            0xffff_ffff
        } else {
            0xffff
        };
        let checks_types = self.is_protected() && !self.is_v86();
        // In 64-bit code only the bases of FS and GS are left of segments.
        let unchanged = if wide && was == CodeSize::Bits64 { seg::FS as usize } else { 0 };
        for number in unchanged..6 {
            let segment = &self.segments[number];
            self.spans[number] = if wide {
                let base = if number >= seg::FS as usize { segment.base } else { 0 };
                Span { base, read_end: u64::MAX, write_end: u64::MAX }
            } else {
                let end = u64::from(segment.limit) + 1;
                let kind = segment.kind();
                let usable = segment.is_present() || !checks_types;
                // The type's lower bits: for data expand down, writable; for code conforming, readable.
                let (code, second, first) = (kind & 8 != 0, kind & 4 != 0, kind & 2 != 0);
                let upwards = code || !second;
                let readable = !code || first || !checks_types;
                let writable = !code && first || !checks_types;
                let reads = usable && upwards && readable;
                let writes = usable && upwards && writable;
                Span { base: segment.base, read_end: if reads { end } else { 0 }, write_end: if writes { end } else { 0 } }
            };
        }
        // Links skip the check of the limit of CS.
        if self.linked_limit != self.segments[usize::from(seg::CS)].limit {
            self.linked_limit = self.segments[usize::from(seg::CS)].limit;
            self.traces.forget_links();
        }
        self.tlb_class = self.current_tlb_class();
        self.mode = Self::mode_of(self.code_size, self.cpl);
        self.translation_mode_changed();
    }

    /// The mode of traces of some size in some ring.
    pub const fn mode_of(code_size: CodeSize, cpl: u8) -> u8 {
        code_size as u8 | ((cpl == 3) as u8) << 2
    }

    /// Where the limit of CS for which links were made lies, for translated code.
    #[allow(dead_code, reason = "for the block translator")]
    pub const LINKED_LIMIT: usize = std::mem::offset_of!(Cpu, linked_limit);

    // ---- Registers ---------------------------------------------------------------------------------------------

    /// An 8-bit register (see [`super::op::HIGH_BYTE`]).
    #[inline(always)]
    pub fn reg8(&self, number: u8) -> u8 {
        (self.gpr[usize::from(number & 15)] >> ((number & 16) >> 1)) as u8
    }
    /// Sets an 8-bit register.
    #[inline(always)]
    pub fn set_reg8(&mut self, number: u8, value: u8) {
        let shift = (number & 16) >> 1;
        let whole = &mut self.gpr[usize::from(number & 15)];
        *whole = *whole & !(0xff << shift) | u64::from(value) << shift;
    }
    /// A 16-bit register.
    #[inline(always)]
    pub fn reg16(&self, number: u8) -> u16 {
        self.gpr[usize::from(number & 15)] as u16
    }
    /// Sets a 16-bit register; the rest stays.
    #[inline(always)]
    pub fn set_reg16(&mut self, number: u8, value: u16) {
        let whole = &mut self.gpr[usize::from(number & 15)];
        *whole = *whole & !0xffff | u64::from(value);
    }
    /// A 32-bit register.
    #[inline(always)]
    pub fn reg32(&self, number: u8) -> u32 {
        self.gpr[usize::from(number & 15)] as u32
    }
    /// Sets a 32-bit register; the upper half becomes zero.
    #[inline(always)]
    pub fn set_reg32(&mut self, number: u8, value: u32) {
        self.gpr[usize::from(number & 15)] = u64::from(value);
    }
    /// A 64-bit register.
    #[inline(always)]
    pub fn reg64(&self, number: u8) -> u64 {
        self.gpr[usize::from(number & 15)]
    }
    /// Sets a 64-bit register.
    #[inline(always)]
    pub fn set_reg64(&mut self, number: u8, value: u64) {
        self.gpr[usize::from(number & 15)] = value;
    }
    /// A register of `bytes` (2, 4, 8; 1 with [`super::op::HIGH_BYTE`] numbering), zero-extended.
    #[inline]
    pub fn reg(&self, number: u8, bytes: u8) -> u64 {
        match bytes {
            1 => u64::from(self.reg8(number)),
            2 => u64::from(self.reg16(number)),
            4 => u64::from(self.reg32(number)),
            _ => self.reg64(number),
        }
    }
    /// Sets a register of `bytes`, by the rules of its size.
    #[inline]
    pub fn set_reg(&mut self, number: u8, bytes: u8, value: u64) {
        match bytes {
            1 => self.set_reg8(number, value as u8),
            2 => self.set_reg16(number, value as u16),
            4 => self.set_reg32(number, value as u32),
            _ => self.set_reg64(number, value),
        }
    }

    /// The offset that an op's memory operand names.
    #[inline(always)]
    pub fn operand_address(&self, op: &Op) -> u64 {
        let base = self.gpr[usize::from(op.base & 31)];
        let index = self.gpr[usize::from(op.index & 31)];
        base.wrapping_add(index << op.scale).wrapping_add(op.disp) & op.address_mask()
    }

    /// A near transfer within CS: checks the limit (#GP(0)) or canonical form, then sets RIP. The last action of a handler.
    #[inline(always)]
    pub fn jump(&mut self, target: u64) -> Exec {
        if self.code_size == CodeSize::Bits64 {
            if !is_canonical(target) {
                return Err(Stop::gp(0));
            }
        } else if target > u64::from(self.segments[seg::CS as usize].limit) {
            return Err(Stop::gp(0));
        }
        self.rip = target;
        Ok(())
    }

    // ---- The board ---------------------------------------------------------------------------------------------

    /// The board. Before using anything that depends on time or may fire timers, call [`Cpu::sync_clock`]. Its code may use the
    /// host's x87.
    ///
    /// # Panics
    /// Outside `run`.
    #[inline]
    pub fn io<'board>(&mut self) -> &'board dyn CpuIo {
        self.x87_from_host();
        self.board()
    }

    fn board<'board>(&self) -> &'board dyn CpuIo {
        let Board(pointer) = self.board.expect("a CPU executes only inside run");
        // SAFETY: `run` sets the pointer from a reference that outlives it and clears it on return; handlers run only within.
        unsafe { &*pointer }
    }

    /// Does something with the board that may take its time: a device answers.
    pub fn in_device<T>(&mut self, work: impl FnOnce(&dyn CpuIo) -> T) -> T {
        let before = self.shared.sampler.begin(Place::Device);
        let result = work(self.io());
        self.shared.sampler.end(before);
        result
    }

    /// Guest time in nanoseconds: what RDTSC and the APIC timer are made from.
    pub fn now(&mut self) -> engine_base::VmTime {
        self.sync_clock();
        self.board().clock().now()
    }
}

/// Whether a 64-bit address is canonical (48 bits).
#[inline(always)]
pub(crate) fn is_canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}
