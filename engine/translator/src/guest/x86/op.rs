//! A pre-decoded instruction, and the conventions of all handlers.
//!
//! # Conventions
//! A [`Handler`] executes one instruction: `fn(&mut Cpu, &Op) -> Exec`.
//! * **On entry** `cpu.rip` already points *behind* the instruction. A near transfer sets `cpu.rip` by [`Cpu::jump`] as its
//!   last action. On `Err(Stop::Exception)` the run loop puts `cpu.rip` back to the instruction's start and delivers it, so a
//!   handler never undoes `rip` — but it must not have changed anything else: *loads first, then at most one store, then
//!   register and flag commits*. Where two stores are needed (PUSHA, ENTER, far CALL), probe the later ones first by
//!   [`Cpu::probe_write`].
//! * **Results**: `Ok(())` — go on with the next instruction of the trace. `Err(Stop::EndTrace)` — the instruction is
//!   *complete* (`cpu.rip` is where to go on), but mode, segments, paging, CPL, the interrupt flag or something else that a
//!   trace relies on has changed: look everything up again and poll. `Err(Stop::Exception(..))` — a fault, made by
//!   [`Stop::gp`], [`Stop::ud`], …; nothing was changed. `Err(Stop::Again)` — repeat this instruction after a poll (an
//!   unfinished REP): registers are committed, `rip` goes back to its start.
//! * **Operands**: `op.reg` is the register named by ModRM.reg, `op.rm` the one named by ModRM.rm or the opcode's low bits,
//!   when `!op.has_memory()`; an implied first operand (AL, AX, ST0 …) is `rm` 0 too, an implied second one `reg`. For
//!   MMX/XMM/ST/segment/ control/debug registers it is that register's number. 8-bit registers are numbered 0–15, plus
//!   [`HIGH_BYTE`] for AH, CH, DH, BH. Immediates are sign- or zero-extended to 64 bits as the instruction wants them. Near
//!   branch targets are absolute in `op.imm` (masked to the operand size). Far pointers: offset in `op.imm`, selector in
//!   `op.disp`. ENTER: size in `imm`, level in `imm2`. VEX: `op.vvvv` is the register in the prefix, `op.imm2` the one in the
//!   immediate; the vector index of a gather is `op.index`.
//! * **Which handler**: each area has one `handler(code, instruction) -> Option<Handler>`; see `handlers.rs`. Choose by `Code`
//!   at decode time and monomorphise by operand form and size, instead of testing at run time.
//! * **Memory**: `access.rs`: [`Cpu::read`]/[`Cpu::write`] take a segment and an offset and do all checks;
//!   [`Cpu::operand_address`] is the effective address of an op; [`Cpu::read_system`]/[`Cpu::write_system`] are supervisor
//!   accesses at linear addresses (descriptor tables, TSS).
//! * **Flags**: `flags.rs`. CF PF AF ZF SF OF live in lazy form; never read `cpu.flags` fields directly.
//! * **After changing** CR0/CR3/CR4/EFER, a segment register, or CPL, call [`Cpu::mode_changed`] (and [`Cpu::flush_tlb`] when
//!   the page tables may mean something else, or `Cpu::enter_address_space` for CR3), then return `Err(Stop::EndTrace)`.

use super::cpu::Cpu;
use super::fault::Exec;
use iced_x86::Code;

/// Executes one instruction.
pub(crate) type Handler = fn(&mut Cpu, &Op) -> Exec;

/// The base or index number that stands for "none": `cpu.gpr[NO_REGISTER]` is always zero.
pub(crate) const NO_REGISTER: u8 = 16;
/// Added to the number of an 8-bit register: bits 8–15 of that register.
pub(crate) const HIGH_BYTE: u8 = 16;

/// One pre-decoded instruction.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Op {
    /// Executes it.
    pub handler: Handler,
    /// Immediate, or near branch target, or far offset.
    pub imm: u64,
    /// Displacement, sign-extended; absolute for RIP-relative operands; the selector of a far pointer.
    pub disp: u64,
    /// Which instruction, for handlers that serve several.
    pub code: Code,
    /// Bytes, 1 to 15.
    pub len: u8,
    /// ModRM.reg's register.
    pub reg: u8,
    /// ModRM.rm's register.
    pub rm: u8,
    /// Base register of the memory operand, or [`NO_REGISTER`].
    pub base: u8,
    /// Index register of the memory operand, or [`NO_REGISTER`].
    pub index: u8,
    /// Log2 of the scale.
    pub scale: u8,
    /// Segment of the memory operand (overrides applied), in the encoding's order.
    pub segment: u8,
    /// 64 minus the address size in bits: 0, 32, 48.
    pub address_shift: u8,
    /// Second immediate (ENTER's level, EXTRQ/INSERTQ), or the register in the upper half of a VEX instruction's immediate.
    pub imm2: u8,
    /// The register in a VEX prefix (VEX.vvvv): most often the first source.
    pub vvvv: u8,
    /// Operand size in bytes that prefixes and mode select: 2, 4, 8.
    pub operand_bytes: u8,
    /// See [`OpFlags`].
    pub flags: OpFlags,
}

bitflags::bitflags! {
    /// Prefixes and forms.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct OpFlags: u8 {
        /// LOCK.
        const LOCK = 1 << 0;
        /// F3: REP, REPE.
        const REP = 1 << 1;
        /// F2: REPNE.
        const REPNE = 1 << 2;
        /// Has an explicit memory operand.
        const MEMORY = 1 << 3;
        /// The trace ends behind it.
        const LAST = 1 << 4;
        /// REX.W or a 64-bit default: 64-bit operands.
        const WIDE = 1 << 5;
        /// The memory operand is relative to the program counter: `disp` holds the address.
        const RIP_RELATIVE = 1 << 6;
    }
}

impl Op {
    /// Whether it has an explicit memory operand.
    #[inline(always)]
    pub fn has_memory(&self) -> bool {
        self.flags.contains(OpFlags::MEMORY)
    }

    /// What the address size keeps of an address.
    #[inline(always)]
    pub fn address_mask(&self) -> u64 {
        u64::MAX >> self.address_shift
    }
}
