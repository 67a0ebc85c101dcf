//! Instructions on general registers that came after the Pentium Pro: POPCNT, LZCNT, BMI1, BMI2, ADX, MOVBE, CRC32. The guest's
//! own instruction on the host, if that has it. Operands of 16 bits are the interpreter's.

use super::emit::{ALL_FLAGS, Emitter, Operand, Source};
use super::vector::place_of;
use crate::guest::x86::cpu::reg;
use crate::host::x64::asm::{R, Rm, W};
use crate::host::x64::same::Operands;
use crate::host::x64::stubs::PINNED;
use crate::ir::native::Place;
use iced_x86::{CpuidFeature, Instruction, Mnemonic, OpKind};
use std::arch::is_x86_feature_detected;

/// Whether a mnemonic is one of this file's. None of them stops if its operands are registers.
pub(super) fn is_here(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Popcnt | Lzcnt | Tzcnt | Crc32 | Movbe | Adcx | Adox | Mulx | Rorx | Sarx | Shlx | Shrx | Pdep | Pext)
        || matches!(mnemonic, Andn | Bextr | Bzhi | Blsi | Blsr | Blsmsk)
}

/// Whether the host has it. (Whether the guest has it, has been seen by whoever decoded it.)
fn host_has(instruction: &Instruction) -> bool {
    use CpuidFeature as F;
    instruction.cpuid_features().iter().all(|set| match set {
        F::POPCNT => is_x86_feature_detected!("popcnt"),
        F::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        F::LZCNT => is_x86_feature_detected!("lzcnt"),
        F::BMI1 => is_x86_feature_detected!("bmi1"),
        F::BMI2 => is_x86_feature_detected!("bmi2"),
        F::ADX => is_x86_feature_detected!("adx"),
        F::MOVBE => is_x86_feature_detected!("movbe"),
        _ => false,
    })
}

/// Whether an instruction of this file works on the host as it does in the guest.
pub(super) fn is_native(source: &Source) -> bool {
    let instruction = &source.instruction;
    is_here(instruction.mnemonic()) && source.op.code == instruction.code() && host_has(instruction)
}

impl Emitter<'_> {
    /// Translates the current instruction if it is one of this file's. `None`: it is not, or not in this form.
    pub fn bits(&mut self) -> Option<()> {
        let source = self.source();
        let instruction = &source.instruction;
        let mnemonic = instruction.mnemonic();
        if !is_native(source) {
            return None;
        }
        let words = (0..instruction.op_count()).any(|at| self.width(at) == Some(W::B2));
        if words {
            return None;
        }
        match mnemonic {
            Mnemonic::Movbe => self.move_reversed(),
            Mnemonic::Mulx => self.multiply_both(),
            _ => self.compute_register(),
        }
    }

    /// A source operand in a register: its own, or RCX if it is in memory, or else `scratch`. Keeps flags but for a memory
    /// operand's probe.
    fn source_register(&mut self, at: u32, scratch: R) -> Option<R> {
        Some(match self.operand(at) {
            Operand::Mem => {
                let w = self.width(at)?;
                let mem = self.memory(false, w.bytes())?;
                self.asm.load(w, R::Cx, mem);
                R::Cx
            }
            // A byte of a register that has no name without REX, or another with it.
            narrow if self.width(at) == Some(W::B1) => {
                let reg = self.value(narrow, R::Cx);
                self.asm.mov(W::B8, R::Cx, reg);
                R::Cx
            }
            operand => self.value(operand, scratch),
        })
    }

    /// `register ← f(register or memory, maybe a register, maybe an immediate, maybe itself)`
    fn compute_register(&mut self) -> Option<()> {
        let instruction = &self.source().instruction;
        let result = self.operand(0);
        let mut operands = Operands::none(instruction.code());
        let is_rm = |at: &u32| place_of(instruction, *at) == Place::Rm;
        // First what may be in memory: the probe spoils RAX.
        for at in (1..instruction.op_count()).filter(is_rm) {
            let reg = self.source_register(at, R::Cx)?;
            operands.set(Place::Rm, reg.into());
        }
        for at in (1..instruction.op_count()).filter(|at| !is_rm(at) && instruction.op_kind(*at) != OpKind::Immediate8) {
            let reg = self.source_register(at, R::Ax)?;
            operands.set(place_of(instruction, at), reg.into());
        }
        if matches!(instruction.mnemonic(), Mnemonic::Adcx | Mnemonic::Adox) {
            // Each reads and writes one flag and keeps all others.
            self.load_flags();
        }
        let register = self.writable(result);
        operands.set(place_of(instruction, 0), register);
        self.same(operands);
        self.commit(result);
        if instruction.rflags_modified() & ALL_FLAGS != 0 {
            self.wrote_flags();
        }
        Some(())
    }

    fn move_reversed(&mut self) -> Option<()> {
        let instruction = &self.source().instruction;
        let mut operands = Operands::none(instruction.code());
        let (register, memory) = if instruction.op_kind(0) == OpKind::Memory { (1, 0) } else { (0, 1) };
        let w = self.width(memory)?;
        let mem = self.memory(memory == 0, w.bytes())?;
        let general = self.operand(register);
        operands.set(Place::Rm, mem.into());
        if memory == 0 {
            let reg = self.value(general, R::Dx);
            operands.set(Place::Reg, reg.into());
            self.same(operands);
        } else {
            let reg = self.writable(general);
            operands.set(Place::Reg, reg);
            self.same(operands);
            self.commit(general);
        }
        Some(())
    }

    /// MULX: RDX times an operand, to two registers.
    fn multiply_both(&mut self) -> Option<()> {
        let instruction = &self.source().instruction;
        let mut operands = Operands::none(instruction.code());
        let (high, low) = (self.operand(0), self.operand(1));
        let factor = self.source_register(2, R::Cx)?;
        self.asm.mov(W::B8, R::Dx, PINNED[usize::from(reg::DX)]);
        operands.set(Place::Reg, R::Ax.into());
        operands.set(Place::Vex, R::Cx.into());
        operands.set(Place::Rm, factor.into());
        self.same(operands);
        // If both are the same register, the upper half stays.
        for (to, from) in [(low, R::Cx), (high, R::Ax)] {
            let Operand::Reg(number) = to else { return None };
            let to: Rm = self.pinned(number).map_or_else(|| self.slot(number).into(), Rm::Reg);
            self.asm.mov(W::B8, to, from);
        }
        Some(())
    }
}
