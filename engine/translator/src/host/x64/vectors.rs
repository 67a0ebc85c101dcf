//! Where the guest's vector registers are. While translated code runs they may be *resident*: guest XMM0–15 (or YMM0–15) are
//! the host's own, and so is the guest's MXCSR, with the flags that arithmetic raises in it. Otherwise they are in the CPU, and
//! the host's registers are Rust's. One byte of the CPU says which ([`Residency`]).
//!
//! A block that uses them makes them resident when it starts, unless they are; so a loop pays for a comparison and code without
//! vectors for nothing. Whoever goes from translated code to Rust spills them first if they are resident: Rust never runs under
//! the guest's MXCSR, and sees and may change all registers in the CPU.

use super::asm::{Alu, Asm, Cond, Label, Mem, R, W, X};

/// What of the guest's vector registers is in the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Residency {
    Nothing,
    /// MXCSR and the lower halves; the upper halves are in the CPU, and nothing that runs looks at them.
    Xmm,
    /// Everything.
    Ymm,
}

/// How many vector registers there are.
const COUNT: u8 = 16;

/// Distances from the start of the CPU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VectorLayout {
    /// The byte: a [`Residency`].
    pub resident: i32,
    /// XMM0–15, at a multiple of 16.
    pub xmm: i32,
    /// The upper halves of YMM0–15.
    pub ymm_high: i32,
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

    fn each(&self, array: i32) -> impl Iterator<Item = (X, Mem)> {
        (0..COUNT).map(move |number| (X(number), Mem::at(R::Bp, array + 16 * i32::from(number))))
    }

    fn set(&self, asm: &mut Asm, residency: Residency) {
        asm.mov_imm(W::B1, self.flag(), residency as i32);
    }

    /// Jumps unless at least `wanted` is resident. Spoils flags.
    pub fn jump_unless(&self, asm: &mut Asm, wanted: Residency, target: Label) {
        asm.alu_imm(Alu::Cmp, W::B1, self.flag(), wanted as i32);
        asm.jcc(Cond::B, target);
    }

    /// Makes the lower halves resident; nothing is yet. Keeps flags and general registers.
    pub fn fill_xmm(&self, asm: &mut Asm) {
        for (register, slot) in self.each(self.xmm) {
            asm.movaps(register, slot);
        }
        asm.ldmxcsr(Mem::at(R::Bp, self.mxcsr));
        self.set(asm, Residency::Xmm);
    }

    /// Makes everything resident; the upper halves are not yet. Spoils flags; keeps general registers.
    pub fn fill_ymm(&self, asm: &mut Asm) {
        let lower = asm.label();
        asm.alu_imm(Alu::Cmp, W::B1, self.flag(), Residency::Xmm as i32);
        asm.jcc(Cond::E, lower);
        self.fill_xmm(asm);
        asm.bind(lower);
        for (register, slot) in self.each(self.ymm_high) {
            asm.load_upper(register, slot);
        }
        self.set(asm, Residency::Ymm);
    }

    /// Puts what is resident back into the CPU; something is. Spoils flags; keeps general registers.
    pub fn spill(&self, asm: &mut Asm) {
        if has_ymm() {
            let lower = asm.label();
            self.jump_unless(asm, Residency::Ymm, lower);
            for (register, slot) in self.each(self.ymm_high) {
                asm.store_upper(slot, register);
            }
            // Rust's own SSE code is slow beside upper halves in use.
            asm.zero_vectors(false);
            asm.bind(lower);
        }
        for (register, slot) in self.each(self.xmm) {
            asm.store_movaps(slot, register);
        }
        asm.stmxcsr(Mem::at(R::Bp, self.mxcsr));
        asm.ldmxcsr(Mem::at(R::Bp, self.host_mxcsr));
        self.set(asm, Residency::Nothing);
    }
}

/// Whether the host has YMM registers.
pub(crate) fn has_ymm() -> bool {
    std::arch::is_x86_feature_detected!("avx")
}
