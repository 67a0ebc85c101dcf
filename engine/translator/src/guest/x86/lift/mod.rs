//! The x86 front end: from decoded [`Op`]s to a block of IR ([`crate::ir`]).
//!
//! Every instruction can be in a block: what is not lifted becomes a `CallInterp`. An area's function says [`ByInterpreter`]
//! before its first commit where a form, a segment or a prefix is not worth lifting, and what it has emitted for the
//! instruction is taken back.
//!
//! What a block takes for granted is [`LiftMode`]: it belongs to the key under which a translation is found. `operand.rs` makes
//! addresses and operands; `integer.rs`, `shift.rs`, `bits.rs`, `moves.rs`, `flow.rs`, `vector.rs` and `float.rs` lift.

mod bits;
mod float;
mod flow;
mod gather;
mod integer;
mod moves;
mod native;
mod operand;
pub(crate) mod region;
mod shift;
#[cfg(test)]
mod tests;
mod vector;

use super::cpu::{CodeSize, Cpu, seg};
use super::op::{Op, OpFlags};
use super::sse_unmasked::MASKS;
use crate::ir::build::Builder;
use crate::ir::{self, Block, SlotInfo, Ty, Val};
use iced_x86::{Mnemonic, OpCodeOperandKind};

/// Slot numbers: the general registers in the encoding's order …
pub(crate) const GPR: u8 = 0;
/// … XMM0 to XMM15 …
pub(crate) const XMM: u8 = 16;
/// … and the bases of ES, CS, SS, DS, FS, GS.
pub(crate) const SEGMENT_BASE: u8 = 32;

/// The slots of an x86 guest.
pub(crate) const SLOTS: &[SlotInfo] = &{
    const NAMES: [&str; 38] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0",
        "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
        "xmm15", "es_base", "cs_base", "ss_base", "ds_base", "fs_base", "gs_base",
    ];
    let mut slots = [SlotInfo { name: "", ty: Ty::I64 }; 38];
    let mut at = 0;
    while at < slots.len() {
        let vector = at >= XMM as usize && at < SEGMENT_BASE as usize;
        slots[at] = SlotInfo { name: NAMES[at], ty: if vector { Ty::V128 } else { Ty::I64 } };
        at += 1;
    }
    slots
};

/// What lifted code takes for granted about the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LiftMode {
    pub code_size: CodeSize,
    /// Segments (bit = number) through which all of the address space can be read.
    pub readable: u8,
    /// Segments through which all of it can be written.
    pub writable: u8,
    /// Segments whose base is not zero, or may be.
    pub based: u8,
    /// The stack pointer has 64 bits, or 32.
    pub wide_stack: bool,
    pub vectors: Vectors,
    /// MXCSR masks all exceptions.
    pub masked_floats: bool,
    /// AVX is switched on.
    pub avx: bool,
    /// Every transfer within CS stays within its limit (64-bit code: is checked for canonical form only).
    pub open_code: bool,
}

/// What becomes of instructions on vector registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Vectors {
    /// They may raise #UD or #NM: the interpreter has them.
    Interpreted,
    /// Operations on values.
    Lifted,
    /// The same instructions, on the host's own registers ([`ir::native`]): MXCSR masks all exceptions.
    Native,
}

impl LiftMode {
    /// The same for a host that has the guest's vector registers, if nothing is in the way.
    pub fn passing_vectors_through(self) -> Self {
        let native = self.vectors == Vectors::Lifted && self.masked_floats && self.is_64_bit();
        Self { vectors: if native { Vectors::Native } else { Vectors::Interpreted }, masked_floats: native, ..self }
    }

    /// What holds for a CPU now.
    pub fn of(cpu: &Cpu) -> Self {
        let wide = cpu.code_size == CodeSize::Bits64;
        let all = |end: u64| end >= 1 << 32;
        let mut mode = Self {
            code_size: cpu.code_size,
            readable: 0,
            writable: 0,
            based: if wide { 1 << seg::FS | 1 << seg::GS } else { 0 },
            vectors: Vectors::Interpreted,
            masked_floats: false,
            avx: cpu.avx_enabled(),
            wide_stack: cpu.stack_mask > 0xffff,
            open_code: wide || cpu.segments[usize::from(seg::CS)].limit == u32::MAX,
        };
        if super::host_fp::available() && super::sse::sse_ready(cpu).is_ok() {
            (mode.vectors, mode.masked_floats) = (Vectors::Lifted, cpu.fpu.mxcsr & MASKS == MASKS);
        }
        for (number, span) in cpu.spans.iter().enumerate().take(6) {
            mode.readable |= u8::from(all(span.read_end)) << number;
            mode.writable |= u8::from(all(span.write_end)) << number;
            mode.based |= u8::from(!wide && span.base != 0) << number;
        }
        mode
    }

    /// 64-bit code.
    pub fn is_64_bit(&self) -> bool {
        self.code_size == CodeSize::Bits64
    }

    /// Whether the offset in CS is the linear address, and no transfer needs a look at the limit.
    pub fn is_flat(&self) -> bool {
        self.open_code && self.code_size != CodeSize::Bits16 && self.based >> seg::CS & 1 == 0
    }

    fn pc_mask(&self) -> u64 {
        if self.is_64_bit() { u64::MAX } else { 0xffff_ffff }
    }
}

/// The instruction is left to its interpreter handler. Nothing has been committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ByInterpreter;

/// How an instruction was lifted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// The next one follows.
    Next,
    /// It ended the block.
    Ended,
}

type Lifted = Result<Flow, ByInterpreter>;

/// Lifts a run of instructions that begins at offset `pc` of CS, `page_offset` bytes into its page.
pub(crate) fn lift(ops: &[Op], mode: LiftMode, pc: u64, page_offset: u16) -> Block {
    lift_into(Block::new(SLOTS, pc, mode.pc_mask(), page_offset), ops, mode)
}

/// The same into a block that is done with: nothing is allocated once it has grown.
#[allow(dead_code, reason = "for the block translator, and measured by a test")]
pub(crate) fn lift_again(old: Block, ops: &[Op], mode: LiftMode, pc: u64, page_offset: u16) -> Block {
    lift_into(old.renew(SLOTS, pc, mode.pc_mask(), page_offset), ops, mode)
}

fn lift_into(block: Block, ops: &[Op], mode: LiftMode) -> Block {
    let mut lift = Lift { b: Builder::new(block), mode, next: 0 };
    for op in ops {
        lift.b.guest_instruction(op.len);
        lift.next = lift.b.block().bytes();
        let flow = match lift.instruction(op) {
            Ok(flow) => flow,
            Err(ByInterpreter) => {
                lift.b.take_back();
                lift.by_interpreter(op)
            }
        };
        if flow == Flow::Ended {
            return lift.finish();
        }
    }
    let end = lift.b.block().bytes();
    lift.b.exit(ir::Op::Jump, Val::NONE, end);
    lift.finish()
}

/// A block in the making.
struct Lift {
    b: Builder,
    mode: LiftMode,
    /// Where the next instruction begins, from the block's start.
    next: u64,
}

impl Lift {
    fn finish(self) -> Block {
        let block = self.b.finish();
        if cfg!(debug_assertions)
            && let Err(why) = ir::verify::verify(&block)
        {
            panic!("lifting gave a wrong block: {why}");
        }
        block
    }

    fn by_interpreter(&mut self, op: &Op) -> Flow {
        self.b.call_interpreter();
        if op.flags.contains(OpFlags::LAST) || changes_mode(op) {
            self.b.exit(ir::Op::Dispatch, Val::NONE, 0);
            return Flow::Ended;
        }
        Flow::Next
    }

    fn instruction(&mut self, op: &Op) -> Lifted {
        use Mnemonic as M;
        match op.code.mnemonic() {
            M::Add | M::Or | M::Adc | M::Sbb | M::And | M::Sub | M::Xor | M::Cmp | M::Test => self.arithmetic(op),
            M::Inc | M::Dec | M::Neg | M::Not => self.unary(op),
            M::Mul | M::Imul | M::Div | M::Idiv => self.multiply_or_divide(op),
            M::Xadd => self.exchange_add(op),
            M::Cmpxchg => self.compare_exchange(op),
            M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr => self.shift(op),
            M::Shld | M::Shrd => self.double_shift(op),
            M::Bt | M::Bts | M::Btr | M::Btc => self.bit_test(op),
            M::Bsf | M::Bsr | M::Popcnt | M::Bswap => self.bits(op),
            M::Mov | M::Movnti => self.move_value(op),
            M::Movzx | M::Movsx | M::Movsxd => self.move_extended(op),
            M::Lea => self.load_address(op),
            M::Xchg => self.exchange(op),
            M::Push => self.push(op),
            M::Pop => self.pop(op),
            M::Leave => self.leave(op),
            M::Cbw | M::Cwde | M::Cdqe | M::Cwd | M::Cdq | M::Cqo => self.spread_accumulator(op),
            M::Lahf | M::Sahf | M::Clc | M::Stc | M::Cmc => self.move_flags(op),
            M::Nop
            | M::Reservednop
            | M::Prefetch
            | M::Prefetchw
            | M::Prefetchwt1
            | M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Endbr32
            | M::Endbr64 => Ok(Flow::Next),
            M::Lfence | M::Sfence | M::Mfence => {
                self.b.fence();
                Ok(Flow::Next)
            }
            M::Jmp | M::Call | M::Ret | M::Jcxz | M::Jecxz | M::Jrcxz | M::Loop => self.transfer(op),
            mnemonic => match condition_of(mnemonic) {
                Some(Conditional::Jump(condition)) => self.jump_if(op, condition),
                Some(Conditional::Set(condition)) => self.set_if(op, condition),
                Some(Conditional::Move(condition)) => self.move_if(op, condition),
                None => self.vector(op),
            },
        }
    }
}

enum Conditional {
    Jump(ir::Condition),
    Set(ir::Condition),
    Move(ir::Condition),
}

fn condition_of(mnemonic: Mnemonic) -> Option<Conditional> {
    macro_rules! each {
        ($($jump:ident $set:ident $cmov:ident $number:literal),*) => {
            match mnemonic {
                $(Mnemonic::$jump => Some(Conditional::Jump(ir::Condition::from_number($number))),
                  Mnemonic::$set => Some(Conditional::Set(ir::Condition::from_number($number))),
                  Mnemonic::$cmov => Some(Conditional::Move(ir::Condition::from_number($number))),)*
                _ => None,
            }
        };
    }
    each!(
        Jo Seto Cmovo 0, Jno Setno Cmovno 1, Jb Setb Cmovb 2, Jae Setae Cmovae 3, Je Sete Cmove 4, Jne Setne Cmovne 5,
        Jbe Setbe Cmovbe 6, Ja Seta Cmova 7, Js Sets Cmovs 8, Jns Setns Cmovns 9, Jp Setp Cmovp 10, Jnp Setnp Cmovnp 11,
        Jl Setl Cmovl 12, Jge Setge Cmovge 13, Jle Setle Cmovle 14, Jg Setg Cmovg 15
    )
}

/// Instructions behind which something that a block takes for granted is likely to have changed: nothing is lifted past them.
fn changes_mode(op: &Op) -> bool {
    use Mnemonic as M;
    use OpCodeOperandKind as K;
    let system_register = || {
        let kind = op.code.op_code().op_kind(0);
        matches!(kind, K::seg_reg | K::cr_reg | K::dr_reg | K::es | K::ss | K::ds | K::fs | K::gs)
    };
    if matches!(op.code.mnemonic(), M::Mov | M::Pop) {
        return system_register();
    }
    matches!(
        op.code.mnemonic(),
        M::Sti
            | M::Popf
            | M::Popfd
            | M::Popfq
            | M::Wrmsr
            | M::Swapgs
            | M::Wrfsbase
            | M::Wrgsbase
            | M::Lmsw
            | M::Clts
            | M::Invlpg
            | M::Invpcid
            | M::Invd
            | M::Wbinvd
            | M::Xsetbv
            | M::Stac
            | M::Clac
            | M::Lds
            | M::Les
            | M::Lss
            | M::Lfs
            | M::Lgs
            | M::Ldmxcsr
            | M::Fxrstor
            | M::Fxrstor64
            | M::Xrstor
            | M::Xrstor64
            | M::INVALID
    )
}
