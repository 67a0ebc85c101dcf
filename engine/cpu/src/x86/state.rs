//! Registers of one x86 CPU.

use super::ApicState;
use super::paravirt::ParavirtState;
use serde::{Deserialize, Serialize};

/// The whole architectural state of one CPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct X86State {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 … R15: the encoding's order.
    pub gpr: [u64; 16],
    /// Instruction pointer (an offset in CS).
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS: the encoding's order.
    pub segments: [Segment; 6],
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: TableRegister,
    /// Interrupt descriptor table.
    pub idtr: TableRegister,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// The four page-directory-pointer entries latched when CR3 was loaded under PAE (SDM volume 3, 4.4.1).
    pub pdptes: [u64; 4],
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// Model-specific registers.
    pub msr: MsrState,
    /// XCR0.
    pub xcr0: u64,
    /// x87, MMX, SSE.
    pub fpu: FpuState,
    /// Local APIC.
    pub apic: ApicState,
    /// What hypervisors offer beyond a CPU.
    #[serde(default)]
    pub paravirt: ParavirtState,
    /// Running, halted, waiting.
    pub activity: Activity,
    /// STI or MOV SS has just been executed: no interrupt before the next instruction is done.
    pub interrupt_shadow: bool,
    /// An NMI is in progress: no other until IRET.
    pub nmi_blocked: bool,
    /// An NMI is waiting.
    pub nmi_pending: bool,
    /// An INIT has arrived and has not been carried out.
    pub init_pending: bool,
    /// A start-up message has arrived and has not been carried out; its page: execution begins at `page << 12`.
    pub start_up_pending: Option<u8>,
}

/// Whether the CPU executes instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// It does.
    Running,
    /// HLT: until an interrupt.
    Halted,
    /// After INIT: until a start-up interrupt.
    WaitForSipi,
    /// Shut down by a triple fault.
    Shutdown,
}

/// The encoding's order of segment registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the registers' names")]
pub enum SegmentRegister {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
}

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Base.
    pub base: u64,
    /// Last byte's offset (granularity applied).
    pub limit: u32,
    /// Access rights, as in bytes 5 and 6 of the descriptor: bits 0–7 type, S, DPL, P; 12–15 AVL, L, D/B, G.
    /// Zero in the P bit (bit 7) with a null selector means unusable.
    pub attributes: u16,
}

/// An 8-byte descriptor as in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// Base address (32 bits).
    pub fn base(self) -> u64 {
        self.0 >> 16 & 0xff_ffff | self.0 >> 32 & 0xff00_0000
    }
    /// Limit in bytes, granularity applied.
    pub fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.0 >> 55 & 1 != 0 { raw << 12 | 0xfff } else { raw }
    }
    /// Attributes in [`Segment::attributes`] form.
    pub fn attributes(self) -> u16 {
        (self.0 >> 40 & 0xf0ff) as u16
    }
}

impl Segment {
    /// What loading `descriptor` with `selector` gives.
    pub fn from_descriptor(selector: u16, descriptor: Descriptor) -> Self {
        Self { selector, base: descriptor.base(), limit: descriptor.limit(), attributes: descriptor.attributes() }
    }
    /// Type field, 4 bits.
    pub fn kind(&self) -> u8 {
        (self.attributes & 15) as u8
    }
    /// Code or data, not a system descriptor (S = 1).
    pub fn is_code_or_data(&self) -> bool {
        self.attributes & 0x10 != 0
    }
    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }
    /// Present.
    pub fn is_present(&self) -> bool {
        self.attributes & 0x80 != 0
    }
    /// L: 64-bit code.
    pub fn is_long(&self) -> bool {
        self.attributes & 0x2000 != 0
    }
    /// D/B: 32-bit default size, or big stack.
    pub fn is_big(&self) -> bool {
        self.attributes & 0x4000 != 0
    }
    /// A real-mode style segment: base is selector × 16.
    pub fn real_mode(selector: u16, attributes: u16) -> Self {
        Self { selector, base: u64::from(selector) << 4, limit: 0xffff, attributes }
    }
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableRegister {
    /// Linear base.
    pub base: u64,
    /// Last byte's offset.
    pub limit: u16,
}

/// Model-specific registers with state of their own (the local APIC's and those that alias other fields are elsewhere).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the registers' names")]
pub struct MsrState {
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    /// Added to the clock to give the time stamp counter (wrapping).
    pub tsc_offset: u64,
    pub tsc_adjust: u64,
    pub tsc_aux: u64,
    pub pat: u64,
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; 11],
    /// Base and mask of each variable range.
    pub mtrr_variable: [[u64; 2]; 8],
    pub misc_enable: u64,
    pub spec_ctrl: u64,
    pub debugctl: u64,
    pub mcg_status: u64,
    pub mcg_ctl: u64,
    /// CTL, STATUS, ADDR, MISC of each bank.
    pub mc_banks: Vec<[u64; 4]>,
    pub xss: u64,
    pub bios_sign_id: u64,
}

/// x87, MMX and SSE registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FpuState {
    /// Physical registers R0 to R7 (not the stack order): 80 bits each, in the low 10 bytes.
    pub registers: [u128; 8],
    /// Control word.
    pub control: u16,
    /// Status word, TOP included.
    pub status: u16,
    /// One bit per physical register: 1 is not empty (the abridged tag of FXSAVE).
    pub tags: u8,
    /// Last opcode, 11 bits.
    pub opcode: u16,
    /// Last instruction pointer.
    pub instruction_pointer: u64,
    /// Its code segment.
    pub instruction_segment: u16,
    /// Last data pointer.
    pub data_pointer: u64,
    /// Its segment.
    pub data_segment: u16,
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// Upper halves of YMM0 to YMM15.
    pub ymm_high: [u128; 16],
    /// SSE control and status.
    pub mxcsr: u32,
}

impl Default for FpuState {
    /// The state after reset (SDM volume 3, table 9-1).
    fn default() -> Self {
        Self {
            registers: [0; 8],
            control: 0x40,
            status: 0,
            tags: 0xff,
            opcode: 0,
            instruction_pointer: 0,
            instruction_segment: 0,
            data_pointer: 0,
            data_segment: 0,
            xmm: [0; 16],
            ymm_high: [0; 16],
            mxcsr: 0x1f80,
        }
    }
}

impl X86State {
    /// The state after power-on reset or INIT of CPU `index` (SDM volume 3, table 9-1): CPU 0 starts at FFFF_FFF0h, the
    /// others wait for a start-up interrupt.
    pub fn after_reset(index: u32) -> Self {
        let data = Segment::real_mode(0, 0x93);
        let mut segments = [data; 6];
        segments[SegmentRegister::Cs as usize] = Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, attributes: 0x9b };
        let mut gpr = [0; 16];
        gpr[2] = super::PROCESSOR_SIGNATURE.into();
        Self {
            gpr,
            rip: 0xfff0,
            rflags: 2,
            segments,
            ldtr: Segment { selector: 0, base: 0, limit: 0xffff, attributes: 0x82 },
            tr: Segment { selector: 0, base: 0, limit: 0xffff, attributes: 0x8b },
            gdtr: TableRegister { base: 0, limit: 0xffff },
            idtr: TableRegister { base: 0, limit: 0xffff },
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            pdptes: [0; 4],
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            msr: MsrState { pat: 0x0007_0406_0007_0406, misc_enable: 1, mc_banks: vec![[0; 4]; 10], ..MsrState::default() },
            xcr0: 1,
            fpu: FpuState::default(),
            apic: ApicState {
                base: 0xfee0_0800 | if index == 0 { 0x100 } else { 0 },
                id: index,
                tpr: 0,
                ldr: 0,
                dfr: 0xffff_ffff,
                svr: 0xff,
                isr: [0; 8],
                tmr: [0; 8],
                irr: [0; 8],
                esr: 0,
                pending_errors: 0,
                icr: 0,
                lvt: [0x1_0000; 7],
                timer_initial: 0,
                timer_divide: 0,
                timer_started: engine_base::VmTime::ZERO,
                tsc_deadline: 0,
            },
            paravirt: ParavirtState::default(),
            activity: if index == 0 { Activity::Running } else { Activity::WaitForSipi },
            interrupt_shadow: false,
            nmi_blocked: false,
            nmi_pending: false,
            init_pending: false,
            start_up_pending: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_code_descriptor_decodes() {
        let descriptor = Descriptor(0x00cf_9b00_0000_ffff);
        let segment = Segment::from_descriptor(8, descriptor);
        assert_eq!((segment.base, segment.limit, segment.attributes), (0, 0xffff_ffff, 0xc09b));
        assert!(segment.is_big() && !segment.is_long() && segment.is_code_or_data());
    }

    #[test]
    fn only_the_boot_processor_starts_running() {
        assert_eq!(X86State::after_reset(0).activity, Activity::Running);
        assert_eq!(X86State::after_reset(1).activity, Activity::WaitForSipi);
        assert_eq!(X86State::after_reset(0).segments[1].base + X86State::after_reset(0).rip, 0xffff_fff0);
    }
}
