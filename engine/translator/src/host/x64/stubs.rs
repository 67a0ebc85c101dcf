//! The way between Rust and translated code.
//!
//! Inside translated code RBP is the CPU, RAX, RCX and RDX are scratch, and the other eleven registers hold guest registers 0–10
//! ([`PINNED`]); guest registers 11–15 stay in memory. RSP is the host's own stack, 16-byte aligned between blocks. Rust is called
//! through a stub that writes the pinned registers to the CPU before and reads them after, so Rust sees and may change all of
//! them. XMM0 and XMM1 are scratch. MXCSR is the host's wherever Rust is called or returned to. The x87 unit and the direction flag are never
//! touched by translated code.

use super::asm::{Asm, Mem, R, W};

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
    /// Called with a pointer in RAX: calls the Rust function with the CPU and that pointer. Zero: goes on; all else is the reason
    /// with which translated code is left.
    pub call: u64,
}

/// Distances from the start of the CPU, and the function that `call` calls.
pub(crate) struct Layout {
    /// The array of guest registers, 8 bytes each.
    pub registers: i32,
    /// `extern "sysv64" fn(cpu, pointer) -> u32`
    pub callee: u64,
}

/// Writes the stubs.
pub(crate) fn write(asm: &mut Asm, layout: &Layout) -> Stubs {
    let slot = |number: usize| Mem::at(R::Bp, layout.registers + 8 * number as i32);
    let (leave_label, stored) = (asm.label(), asm.label());

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
    asm.bind(leave_label);
    for (number, reg) in PINNED.into_iter().enumerate() {
        asm.mov(W::B8, slot(number), reg);
    }
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
    asm.mov(W::B8, R::Di, R::Bp);
    asm.mov(W::B8, R::Si, R::Ax);
    asm.push(R::Ax);
    asm.set(R::Ax, layout.callee);
    asm.call_rm(R::Ax);
    asm.pop(R::Cx);
    let go_on = asm.label();
    asm.test(W::B4, R::Ax, R::Ax);
    asm.jcc(super::asm::Cond::E, go_on);
    // Leaves: the return address of this call is dropped, and the registers are where they belong already.
    asm.pop(R::Cx);
    asm.jmp(stored);
    asm.bind(go_on);
    for (number, reg) in PINNED.into_iter().enumerate() {
        asm.load(W::B8, reg, slot(number));
    }
    asm.ret();
    Stubs { enter, leave, call }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::x64::asm::Alu;
    use crate::run::code_memory::CodeMemory;

    /// A CPU of nothing but registers; the callee adds to register 3 what it is given.
    extern "sysv64" fn callee(cpu: *mut [u64; 16], pointer: *const u64) -> u32 {
        // SAFETY: the test passes its own array and a pointer to a number.
        unsafe {
            let add = *pointer;
            (*cpu)[3] += add;
            u32::from(add > 100)
        }
    }

    #[test]
    fn registers_go_in_and_out_and_through_calls() {
        let memory = CodeMemory::new(1 << 16).unwrap();
        let mut asm = Asm::new(memory.address(0));
        let stubs = write(&mut asm, &Layout { registers: 0, callee: callee as *const () as u64 });
        let (small, big) = (5u64, 1000u64);
        asm.align(16, 0);
        let block = asm.here();
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
        let second = asm.here();
        asm.set(R::Ax, 9);
        asm.jmp_to(stubs.leave);
        memory.write_at(0, &asm.finish());
        let mut registers: [u64; 16] = std::array::from_fn(|number| 100 * number as u64);
        // SAFETY: the stub lies there, and the code above keeps its rules.
        let enter = unsafe { std::mem::transmute::<u64, extern "sysv64" fn(*mut [u64; 16], u64) -> u32>(stubs.enter) };
        assert_eq!(enter(&mut registers, block), 1, "the second call says: leave");
        let mut want: [u64; 16] =
            std::array::from_fn(|number| if number < 11 { 101 * number as u64 } else { 100 * number as u64 });
        want[3] += 5 + 1 + 1000;
        assert_eq!(registers, want);
        assert_eq!(enter(&mut registers, second), 9);
        assert_eq!(registers, want);
    }
}
