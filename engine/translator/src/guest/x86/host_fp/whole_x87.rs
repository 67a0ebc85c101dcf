//! The guest's whole x87 state in the host's x87, and back: what lets translated code execute x87 and MMX instructions as themselves.
//!
//! While it is there, the host's registers are not empty and its control word is not the host's, as the ABI wants them between
//! functions. Rust's own code does not mind: on x86-64 it uses neither x87 nor MMX. Code that is not ours might, so it is never
//! called meanwhile (`t1/x87.rs` sees to that), and signal handlers and other threads have an x87 of their own, by the
//! operating system's doing.
//! See: Intel SDM volume 1, 8.1.10 (the image); volume 2, FNSAVE and FRSTOR.

use engine_cpu::x86::FpuState;

/// All six exceptions masked.
pub const MASKED: u16 = 0x3f;
/// ES and B.
#[cfg(target_arch = "x86_64")]
const SUMMARY: u16 = 0x8080;

/// What FNSAVE stores in 32-bit layout: the environment, and ST(0) to ST(7).
#[cfg(target_arch = "x86_64")]
#[repr(C, align(16))]
struct Image {
    control: u32,
    status: u32,
    tags: u32,
    pointers: [u32; 4],
    stack: [[u8; 10]; 8],
}

/// Puts the guest's x87 state into the host's. Nothing can trap there: exceptions are masked, whatever the control word says;
/// callers do not call with one that says otherwise. Pointers and opcode stay behind.
#[cfg(target_arch = "x86_64")]
pub fn enter(fpu: &FpuState) {
    let top = usize::from(fpu.status >> 11 & 7);
    let image = Image {
        control: u32::from(fpu.control | MASKED),
        status: u32::from(fpu.status & !SUMMARY),
        // Two bits a register, of which only "empty", 3, is looked at.
        tags: (0..8).map(|at| if fpu.tags >> at & 1 == 0 { 3 << (2 * at) } else { 0 }).sum(),
        pointers: [0; 4],
        stack: std::array::from_fn(|i| {
            let mut register = [0; 10];
            register.copy_from_slice(&fpu.registers[(top + i) & 7].to_le_bytes()[..10]);
            register
        }),
    };
    // SAFETY: reads the image. What is in the host's x87 is nobody's: see the head of this file.
    unsafe { core::arch::asm!("frstor [{}]", in(reg) &raw const image, options(nostack, readonly, preserves_flags)) };
}

/// Takes it back, and leaves the host's x87 as FNINIT does: empty, and everything masked.
#[cfg(target_arch = "x86_64")]
pub fn leave(fpu: &mut FpuState) {
    let mut image = Image { control: 0, status: 0, tags: 0, pointers: [0; 4], stack: [[0; 10]; 8] };
    // SAFETY: writes the image, which is as large as FNSAVE's; the host's x87 becomes what Rust has it be.
    unsafe { core::arch::asm!("fnsave [{}]", in(reg) &raw mut image, options(nostack, preserves_flags)) };
    fpu.control = image.control as u16;
    fpu.status = image.status as u16;
    fpu.tags = (0..8).map(|at| u8::from(image.tags >> (2 * at) & 3 != 3) << at).sum();
    let top = usize::from(fpu.status >> 11 & 7);
    for (i, register) in image.stack.iter().enumerate() {
        let mut bytes = [0; 16];
        bytes[..10].copy_from_slice(register);
        fpu.registers[(top + i) & 7] = u128::from_le_bytes(bytes);
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn any_masked_state_goes_in_and_comes_back_and_the_host_is_left_clean() {
        for (round, tags) in [0u8, 0xff, 0x81, 0x3c].into_iter().enumerate() {
            let mut fpu = FpuState { control: 0x0c7f, status: (round as u16) << 11 | 0x4521, tags, ..FpuState::default() };
            // All kinds of numbers, those that no operation makes among them.
            for (at, register) in fpu.registers.iter_mut().enumerate() {
                *register = [1u128 << 79 | 5, 0x7fff << 64, 0x3fff_8000_0000_0000_0000, 0xffff << 64 | 0x1234][(at + round) % 4];
            }
            let mut back = FpuState::default();
            enter(&fpu);
            leave(&mut back);
            let mut environment = [0u32; 7];
            // SAFETY: stores 28 bytes, and masks what is masked.
            unsafe { core::arch::asm!("fnstenv [{}]", in(reg) &raw mut environment, options(nostack)) };
            assert_eq!((back.control, back.status, back.tags), (fpu.control, fpu.status, fpu.tags));
            assert_eq!(back.registers, fpu.registers);
            assert_eq!(environment[..3].iter().map(|word| word & 0xffff).collect::<Vec<_>>(), [0x37f, 0, 0xffff]);
        }
    }
}
