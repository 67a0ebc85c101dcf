//! Flags that nobody will look at unless something faults first: instead of being saved before each memory access they are
//! computed again in the cold path, from the registers of the instruction that set them.

use super::block::is_plain;
use super::emit::{ALL_FLAGS, Source};
use super::integer::{condition, may_keep_all_flags};
use crate::guest::x86::cpu::reg;
use crate::guest::x86::op::OpFlags;
use crate::host::x64::asm::{Alu, Asm, Mem, R, W};
use crate::host::x64::vectors::Residency;
use iced_x86::{Mnemonic, OpKind};

/// How many instructions are looked at for the one that sets the flags anew.
const AHEAD: usize = 12;

/// An operand: a register that holds a guest's, or an immediate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Second {
    Reg(R),
    Imm(i32),
}

/// An instruction of 32 or 64 bits that has set the flags, and what became of its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Recipe {
    pub op: Alu,
    /// TEST, which is AND without a result.
    pub test: bool,
    pub w: W,
    /// The first operand; where the operation has a result, that.
    pub first: R,
    pub second: Second,
    /// The guest registers of both, by number.
    pub registers: u16,
}

impl Recipe {
    /// Computes the flags again. Spoils RAX.
    pub fn emit(&self, asm: &mut Asm) {
        let Self { op, test, w, first, second, .. } = *self;
        match (op, second) {
            // Logic clears CF and OF, and the others follow from the result.
            (Alu::And, Second::Reg(second)) if test => asm.test(w, first, second),
            (Alu::And, Second::Imm(second)) if test => asm.test_imm(w, first, second),
            (Alu::And | Alu::Or | Alu::Xor, _) => asm.test(w, first, first),
            (Alu::Cmp, Second::Reg(second)) => asm.alu(op, w, first, second),
            (Alu::Cmp, Second::Imm(second)) => asm.alu_imm(op, w, first, second),
            // Back to what the first operand was, then the same again.
            (_, Second::Reg(second)) => {
                asm.mov(w, R::Ax, first);
                asm.alu(if op == Alu::Add { Alu::Sub } else { Alu::Add }, w, R::Ax, second);
                asm.alu(op, w, R::Ax, second);
            }
            (_, Second::Imm(second)) => {
                asm.lea(w, R::Ax, Mem::at(first, if op == Alu::Add { second.wrapping_neg() } else { second }));
                asm.alu_imm(op, w, R::Ax, second);
            }
        }
    }

    /// Whether nobody looks at the flags from instruction `now` on until they are all set anew, and the registers stay what
    /// they were behind instruction `made` until then.
    pub fn lasts(&self, sources: &[Source], made: usize, now: usize) -> bool {
        if !sources[made + 1..now].iter().all(|source| self.survives(source)) {
            return false;
        }
        for source in sources[now..].iter().take(AHEAD) {
            let instruction = &source.instruction;
            let (read, written) = (instruction.rflags_read() & ALL_FLAGS, instruction.rflags_modified() & ALL_FLAGS);
            if source.op.flags.contains(OpFlags::LAST) || read != 0 || !is_plain(instruction) {
                return false;
            }
            if written == ALL_FLAGS && !may_keep_all_flags(instruction) {
                return true;
            }
            if written != 0 || !self.survives(source) {
                return false;
            }
        }
        false
    }

    /// Whether an instruction is known to leave the registers alone.
    fn survives(&self, source: &Source) -> bool {
        written_registers(source).is_some_and(|written| written & self.registers == 0)
    }
}

/// The general registers that an instruction writes, by number. Nothing where that is not known.
pub(super) fn written_registers(source: &Source) -> Option<u16> {
    use Mnemonic as M;
    let instruction = &source.instruction;
    let register = |at: u32| match instruction.op_kind(at) {
        OpKind::Register if instruction.op_register(at).is_gpr() => 1 << instruction.op_register(at).full_register().number(),
        _ => 0u16,
    };
    if source.vectors != Residency::Nothing {
        let index = super::vector::string_compare(instruction.mnemonic()).is_some_and(|strings| strings.index);
        return Some(register(0) | u16::from(index) << reg::CX);
    }
    Some(match instruction.mnemonic() {
        M::Cmp | M::Test | M::Bt | M::Nop | M::Endbr32 | M::Endbr64 => 0,
        M::Push => 1 << reg::SP,
        M::Pop => register(0) | 1 << reg::SP,
        M::Mov | M::Movzx | M::Movsx | M::Movsxd | M::Lea | M::Not | M::Bswap => register(0),
        M::Add | M::Or | M::And | M::Sub | M::Xor | M::Adc | M::Sbb | M::Inc | M::Dec | M::Neg => register(0),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd => register(0),
        M::Imul if instruction.op_count() > 1 => register(0),
        M::Mul | M::Imul | M::Div | M::Idiv | M::Cwd | M::Cdq | M::Cqo => 1 << reg::AX | 1 << reg::DX,
        M::Cbw | M::Cwde | M::Cdqe => 1 << reg::AX,
        M::Xchg | M::Xadd => register(0) | register(1),
        M::Cmpxchg => register(0) | 1 << reg::AX,
        M::Bts | M::Btr | M::Btc | M::Bsf | M::Bsr => register(0),
        M::Mulx => register(0) | register(1),
        mnemonic if super::bits::is_here(mnemonic) || condition(mnemonic).is_some() => register(0),
        _ => return None,
    })
}
