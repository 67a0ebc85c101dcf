//! Where the guest's vector registers are. While translated code runs they may be *resident*: guest XMM0–15 are the host's own, and so is the
//! guest's MXCSR, with the flags that arithmetic raises in it. Otherwise they are in the CPU, and the host's registers are Rust's. One byte of the CPU
//! says which.
//!
//! A block that uses them makes them resident when it starts, unless they are; so a loop pays for a comparison and code
//! without vectors for nothing. Whoever goes from translated code to Rust spills them first if they are resident: Rust never runs under the guest's MXCSR,
//! and sees and may change all registers in the CPU.

use super::asm::{Alu, Asm, Cond, Label, Mem, R, W, X};

/// How many vector registers there are.
const COUNT: u8 = 16;

/// Distances from the start of the CPU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VectorLayout {
    /// A byte: not zero while the registers are resident.
    pub resident: i32,
    /// XMM0–15, at a multiple of 16.
    pub xmm: i32,
    /// The guest's MXCSR; one that the host takes, with all exceptions masked, whenever the registers are made resident.
    pub mxcsr: i32,
    /// What MXCSR is while Rust runs.
    pub host_mxcsr: i32,
}

/// The host's MXCSR.
pub(crate) fn mxcsr() -> u32 {
    let mut value = 0u32;
    // SAFETY: stores a register to a local; every x86-64 host has it.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack, preserves_flags)) };
    value
}

impl VectorLayout {
    fn flag(&self) -> Mem {
        Mem::at(R::Bp, self.resident)
    }

    fn slot(&self, number: u8) -> Mem {
        Mem::at(R::Bp, self.xmm + 16 * i32::from(number))
    }

    /// Jumps if the registers are resident. Spoils flags.
    pub fn jump_if_resident(&self, asm: &mut Asm, target: Label) {
        asm.alu_imm(Alu::Cmp, W::B1, self.flag(), 0);
        asm.jcc(Cond::NE, target);
    }

    /// Makes them resident. Keeps flags and general registers.
    pub fn fill(&self, asm: &mut Asm) {
        for number in 0..COUNT {
            asm.movaps(X(number), self.slot(number));
        }
        asm.ldmxcsr(Mem::at(R::Bp, self.mxcsr));
        asm.mov_imm(W::B1, self.flag(), 1);
    }

    /// Puts resident registers back into the CPU. Keeps flags and general registers.
    pub fn spill(&self, asm: &mut Asm) {
        for number in 0..COUNT {
            asm.store_movaps(self.slot(number), X(number));
        }
        asm.stmxcsr(Mem::at(R::Bp, self.mxcsr));
        asm.ldmxcsr(Mem::at(R::Bp, self.host_mxcsr));
        asm.mov_imm(W::B1, self.flag(), 0);
    }
}
