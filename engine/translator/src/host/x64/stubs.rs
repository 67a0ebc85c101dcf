//! The way between Rust and translated code.
//!
//! Inside translated code RBP is the CPU, RAX, RCX and RDX are scratch, and the other eleven registers hold guest registers
//! 0–10 ([`PINNED`]); guest registers 11–15 stay in memory. RSP is the host's own stack, 16-byte aligned between blocks. Rust
//! is called through a stub that writes the pinned registers to the CPU before and reads them after, so Rust sees and may
//! change all of them. Vector registers and MXCSR are the guest's while they are resident (see [`super::vectors`]), and no
//! scratch otherwise; they are in the CPU, and the host's MXCSR is back, wherever Rust is called or returned to. The x87 unit
//! may hold the guest's state even then (see `t1/x87.rs`). The direction flag is never touched by translated code.

use super::asm::{Asm, Cond, Mem, R, W};
use super::refill::{self, RefillLayout};
use super::vectors::{Residency, VectorLayout};

/// Where guest registers 0–10 are held.
pub(crate) const PINNED: [R; 11] = [R::Bx, R::Si, R::Di, R::R8, R::R9, R::R10, R::R11, R::R12, R::R13, R::R14, R::R15];

/// Callee-saved registers of the System V ABI.
const SAVED: [R; 6] = [R::Bx, R::Bp, R::R12, R::R13, R::R14, R::R15];

/// Addresses of the stubs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stubs {
    /// `extern "sysv64" fn(cpu, block) -> u32`: runs translated code until it leaves.
    pub enter: u64,
    /// Jumped to with the reason in EAX: back to the caller of `enter`.
    pub leave: u64,
    /// Called with a pointer in RAX: calls the Rust function with the CPU and that pointer. Zero: goes on; what fits in 32 bits
    /// is the reason with which translated code is left; all else is the address of the code to go on with instead.
    pub call: u64,
    /// Called where no vector registers are resident: XMM registers become so. Keeps flags and general registers.
    pub fill_xmm: u64,
    /// Called where YMM registers are not resident: they become so. Spoils flags; keeps general registers.
    pub fill_ymm: u64,
    /// Called where a probe of the TLB has missed, by kind of access: see [`refill`].
    pub refill: [u64; refill::KINDS],
}

/// Distances from the start of the CPU, and the function that `call` calls.
pub(crate) struct Layout {
    /// The array of guest registers, 8 bytes each.
    pub registers: i32,
    /// `extern "sysv64" fn(cpu, pointer) -> u64`
    pub callee: u64,
    pub vectors: VectorLayout,
    pub refill: RefillLayout,
}

/// Writes the stubs.
pub(crate) fn write(asm: &mut Asm, layout: &Layout) -> Stubs {
    let slot = |number: usize| Mem::at(R::Bp, layout.registers + 8 * number as i32);
    let stored = asm.label();

    let fill_xmm = asm.here();
    layout.vectors.fill_xmm(asm);
    asm.ret();

    asm.align(16, 0);
    let fill_ymm = asm.here();
    layout.vectors.fill_ymm(asm);
    asm.ret();

    asm.align(16, 0);
    let spill_vectors = asm.here();
    layout.vectors.spill(asm);
    asm.ret();

    asm.align(16, 0);

    let enter = asm.here();
    for reg in SAVED {
        asm.push(reg);
    }
    // Six registers and the return address: one more word makes 16-byte alignment.
    asm.push(R::Ax);
    asm.mov(W::B8, R::Bp, R::Di);
    asm.mov(W::B8, R::Ax, R::Si);
    for (number, reg) in PINNED.into_iter().enumerate() {
        asm.load(W::B8, reg, slot(number));
    }
    asm.jmp_rm(R::Ax);

    asm.align(16, 0);
    let leave = asm.here();
    for (number, reg) in PINNED.into_iter().enumerate() {
        asm.mov(W::B8, slot(number), reg);
    }
    let nothing = asm.label();
    layout.vectors.jump_unless(asm, Residency::Xmm, nothing);
    asm.call_to(spill_vectors);
    asm.bind(nothing);
    asm.bind(stored);
    asm.pop(R::Cx);
    for reg in SAVED.into_iter().rev() {
        asm.pop(reg);
    }
    asm.ret();

    asm.align(16, 0);
    let call = asm.here();
    for (number, reg) in PINNED.into_iter().enumerate() {
        asm.mov(W::B8, slot(number), reg);
    }
    let nothing = asm.label();
    layout.vectors.jump_unless(asm, Residency::Xmm, nothing);
    asm.call_to(spill_vectors);
    asm.bind(nothing);
    asm.mov(W::B8, R::Di, R::Bp);
    asm.mov(W::B8, R::Si, R::Ax);
    asm.push(R::Ax);
    asm.set(R::Ax, layout.callee);
    asm.call_rm(R::Ax);
    asm.pop(R::Cx);
    let elsewhere = asm.label();
    asm.test(W::B8, R::Ax, R::Ax);
    asm.jcc(Cond::NE, elsewhere);
    for (number, reg) in PINNED.into_iter().enumerate() {
        asm.load(W::B8, reg, slot(number));
    }
    asm.ret();
    // The return address of this call is dropped. When translated code is left, the registers are where they belong already.
    asm.bind(elsewhere);
    asm.pop(R::Cx);
    asm.mov(W::B8, R::Cx, R::Ax);
    asm.shift_imm(5, W::B8, R::Cx, 32);
    asm.jcc(Cond::E, stored);
    for (number, reg) in PINNED.into_iter().enumerate() {
        asm.load(W::B8, reg, slot(number));
    }
    asm.jmp_rm(R::Ax);

    let refill = refill::write(asm, &layout.refill);
    Stubs { enter, leave, call, fill_xmm, fill_ymm, refill }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::x64::asm::{Alu, Vex, X};
    use crate::host::x64::vectors::mxcsr;
    use crate::run::code_memory::CodeMemory;
    use std::arch::asm;
    use std::mem::offset_of;

    /// A CPU of nothing but registers.
    #[repr(C, align(16))]
    struct Registers {
        general: [u64; 16],
        xmm: [u128; 16],
        ymm_high: [u128; 16],
        mxcsr: u32,
        host_mxcsr: u32,
        resident: u8,
        /// What MXCSR was in the callee.
        seen: u32,
    }

    const HOST_MXCSR: u32 = 0x1f80;
    /// Rounding upwards.
    const GUEST_MXCSR: u32 = 0x5f80;

    /// Adds to general register 3 and XMM15 what it is given, and spoils every vector register of the host.
    extern "sysv64" fn callee(cpu: *mut Registers, pointer: *const u64) -> u64 {
        // SAFETY: the test passes its own registers and a pointer to a number; the vector registers are declared as spoilt.
        unsafe {
            let add = *pointer;
            assert_eq!((*cpu).resident, 0);
            (*cpu).seen = mxcsr();
            (*cpu).general[3] += add;
            (*cpu).xmm[15] += u128::from(add) << 64;
            (*cpu).ymm_high[14] += u128::from(add);
            asm!("pcmpeqb xmm0, xmm0", "pcmpeqb xmm9, xmm9", "pcmpeqb xmm15, xmm15",
                out("xmm0") _, out("xmm9") _, out("xmm15") _, options(nomem, nostack, preserves_flags));
            // A number that cannot be a reason is an address.
            if add >> 32 != 0 { add } else { u64::from(add > 100) }
        }
    }

    struct Bench {
        stubs: Stubs,
        block: u64,
        _memory: CodeMemory,
    }

    /// The stubs, and what `write` writes behind them.
    fn bench(write_block: impl FnOnce(&mut Asm, &Stubs)) -> Bench {
        let memory = CodeMemory::new(1 << 16).unwrap();
        let mut asm = Asm::new(memory.address(0));
        let vectors = VectorLayout {
            resident: offset_of!(Registers, resident) as i32,
            xmm: offset_of!(Registers, xmm) as i32,
            ymm_high: offset_of!(Registers, ymm_high) as i32,
            mxcsr: offset_of!(Registers, mxcsr) as i32,
            host_mxcsr: offset_of!(Registers, host_mxcsr) as i32,
        };
        let layout = Layout { registers: 0, callee: callee as *const () as u64, vectors, refill: RefillLayout::default() };
        let stubs = write(&mut asm, &layout);
        asm.align(16, 0);
        let block = asm.here();
        write_block(&mut asm, &stubs);
        memory.write_at(0, &asm.finish());
        Bench { stubs, block, _memory: memory }
    }

    impl Bench {
        fn run(&self, registers: &mut Registers) -> u32 {
            // SAFETY: the stub lies there, and the code of the tests keeps its rules.
            let enter = unsafe { std::mem::transmute::<u64, extern "sysv64" fn(*mut Registers, u64) -> u32>(self.stubs.enter) };
            enter(registers, self.block)
        }
    }

    fn registers() -> Registers {
        Registers {
            general: std::array::from_fn(|number| 100 * number as u64),
            xmm: std::array::from_fn(|number| 1000 * number as u128),
            ymm_high: std::array::from_fn(|number| 50 * number as u128),
            mxcsr: GUEST_MXCSR,
            host_mxcsr: HOST_MXCSR,
            resident: 0,
            seen: 0,
        }
    }

    #[test]
    fn registers_go_in_and_out_and_through_calls() {
        let (small, big) = (5u64, 1000u64);
        let bench = bench(|asm, stubs| {
            for (number, reg) in PINNED.into_iter().enumerate() {
                asm.alu_imm(Alu::Add, W::B8, reg, number as i32);
            }
            asm.set_wide(R::Ax, &raw const small as u64);
            asm.call_to(stubs.call);
            asm.alu_imm(Alu::Add, W::B8, PINNED[3], 1);
            asm.set_wide(R::Ax, &raw const big as u64);
            asm.call_to(stubs.call);
            asm.alu_imm(Alu::Add, W::B8, PINNED[3], 10_000);
            asm.set(R::Ax, 9);
            asm.jmp_to(stubs.leave);
        });
        let mut found = registers();
        assert_eq!(bench.run(&mut found), 1, "the second call says: leave");
        let mut want: [u64; 16] =
            std::array::from_fn(|number| if number < 11 { 101 * number as u64 } else { 100 * number as u64 });
        want[3] += 5 + 1 + 1000;
        assert_eq!(found.general, want);
    }

    /// `paddd xmm15, xmm15; addss xmm1, xmm2`
    fn compute(asm: &mut Asm) {
        asm.vector(Some(0x66), false, &[0x0f, 0xfe], 15, X(15).into(), None);
        asm.vector(Some(0xf3), false, &[0x0f, 0x58], 1, X(2).into(), None);
    }

    #[test]
    fn resident_vectors_are_the_guests_and_go_back_before_rust_looks() {
        let add = 7u64;
        let bench = bench(|asm, stubs| {
            asm.call_to(stubs.fill_xmm);
            compute(asm);
            asm.set_wide(R::Ax, &raw const add as u64);
            asm.call_to(stubs.call);
            asm.call_to(stubs.fill_xmm);
            compute(asm);
            asm.set(R::Ax, 9);
            asm.jmp_to(stubs.leave);
        });
        let mut found = registers();
        found.xmm[1] = u128::from(1f32.to_bits());
        found.xmm[2] = u128::from(f32::MIN_POSITIVE.to_bits());
        assert_eq!(bench.run(&mut found), 9);
        assert_eq!(found.xmm[15], 15_000 * 4 + (7 << 65), "seen and changed by the callee");
        assert_eq!(found.xmm[1], u128::from(1f32.next_up().next_up().to_bits()), "rounded upwards twice");
        assert_eq!(found.xmm[9], 9000);
        assert_eq!((found.mxcsr, found.resident), (GUEST_MXCSR | 1 << 5, 0), "inexact");
        assert_eq!((found.seen, mxcsr()), (HOST_MXCSR, HOST_MXCSR));
        assert_eq!(found.ymm_high, std::array::from_fn(|number| 50 * number as u128 + if number == 14 { 7 } else { 0 }));
    }

    /// `vpaddd ymm14, ymm14, ymm14; vpaddd xmm15, xmm15, xmm15`
    fn compute_wide(asm: &mut Asm) {
        for (register, long) in [(14, true), (15, false)] {
            let vex = Vex { prefix: 1, map: 1, wide: false, long };
            asm.vex(vex, 0xfe, register, register, X(register).into(), None);
        }
    }

    #[test]
    fn upper_halves_follow_when_they_are_wanted() {
        if !crate::host::x64::vectors::has_ymm() {
            return;
        }
        let add = 7u64;
        let bench = bench(|asm, stubs| {
            asm.call_to(stubs.fill_xmm);
            compute(asm);
            asm.call_to(stubs.fill_ymm);
            compute_wide(asm);
            asm.set_wide(R::Ax, &raw const add as u64);
            asm.call_to(stubs.call);
            asm.call_to(stubs.fill_ymm);
            compute_wide(asm);
            asm.set(R::Ax, 9);
            asm.jmp_to(stubs.leave);
        });
        let mut found = registers();
        assert_eq!(bench.run(&mut found), 9);
        assert_eq!(found.xmm[15], 15_000 * 8 + (7 << 65));
        assert_eq!((found.xmm[14], found.ymm_high[14]), (14_000 * 4, (50 * 14 * 2 + 7) * 2));
        assert_eq!((found.ymm_high[13], found.ymm_high[15]), (50 * 13, 0), "128-bit instructions clear the upper half");
        assert_eq!((found.resident, found.seen, mxcsr()), (0, HOST_MXCSR, HOST_MXCSR));
    }

    #[test]
    fn a_callee_can_send_translated_code_elsewhere() {
        let target = std::cell::Cell::new(0u64);
        let bench = bench(|asm, stubs| {
            asm.set_wide(R::Ax, target.as_ptr() as u64);
            asm.call_to(stubs.call);
            asm.set(R::Ax, 8);
            asm.jmp_to(stubs.leave);
            target.set(asm.here());
            asm.alu_imm(Alu::Add, W::B8, PINNED[5], 1);
            asm.set(R::Ax, 9);
            asm.jmp_to(stubs.leave);
        });
        let mut found = registers();
        assert_eq!(bench.run(&mut found), 9);
        assert_eq!((found.general[3], found.general[5]), (300 + target.get(), 501));
    }
}
