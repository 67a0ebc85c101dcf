//! The table of x87, MMX, SSE and AVX instructions: `x87_table.rs`, then `sse_table.rs`, then `vex_table.rs`.

use super::op::Handler;
use super::{sse_table, vex_table, x87_table};
use iced_x86::{Code, Instruction};

/// The handler of a floating-point or vector instruction.
pub(super) fn handler(code: Code, instruction: &Instruction) -> Option<Handler> {
    x87_table::handler(code).or_else(|| sse_table::handler(code, instruction)).or_else(|| vex_table::handler(code, instruction))
}

#[cfg(test)]
mod tests {
    //! What user code on the host cannot show: control register rules, FERR#, the layouts of real mode.

    use crate::guest::x86::cpu::{Board, CodeSize, Cpu, cr0, cr4};
    use crate::guest::x86::cpuid::CpuidPolicy;
    use crate::guest::x86::decode::{Decoded, decode};
    use crate::guest::x86::fault::{Exception, Exec, Stop, vector};
    use crate::shared::{CpuShared, Fabric};
    use crate::watch::code_log::WatchOptions;
    use engine_base::{Clock, ClockMode, VmTime};
    use engine_cpu::x86::X86State;
    use engine_cpu::{CpuIo, CpuModel, Topology};
    use engine_memory::{Contents, GuestMemory, Layer};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    const FLD1: &[u8] = &[0xd9, 0xe8];
    const FLDZ: &[u8] = &[0xd9, 0xee];
    const FDIVP: &[u8] = &[0xde, 0xf9];
    const FNSTENV_1000: &[u8] = &[0xd9, 0x36, 0x00, 0x10];
    const FXSAVE_1000: &[u8] = &[0x0f, 0xae, 0x06, 0x00, 0x10];
    const ADDPS: &[u8] = &[0x0f, 0x58, 0xc1];
    const DIVPS: &[u8] = &[0x0f, 0x5e, 0xc1];
    const PADDB_MM: &[u8] = &[0x0f, 0xfc, 0xc1];
    const WAIT: &[u8] = &[0x9b];

    struct Pins {
        clock: Clock,
        ferr: AtomicU32,
    }

    impl CpuIo for Pins {
        fn port_read(&self, _: u16, _: u8) -> u32 {
            0
        }
        fn port_write(&self, _: u16, _: u8, _: u32) {}
        fn mmio_read(&self, _: u64, _: u8) -> u64 {
            0
        }
        fn mmio_write(&self, _: u64, _: u8, _: u64) {}
        fn acknowledge_interrupt(&self) -> u8 {
            0
        }
        fn end_of_interrupt(&self, _: u8) {}
        fn set_ferr(&self) {
            self.ferr.fetch_add(1, Ordering::Relaxed);
        }
        fn clock(&self) -> &Clock {
            &self.clock
        }
        fn set_cpu_timer(&self, _: u32, _: VmTime) {}
        fn next_timer(&self) -> VmTime {
            VmTime::NEVER
        }
        fn fire_timers(&self) {}
    }

    /// A CPU in real mode with FPU and SSE switched on.
    fn cpu() -> Box<Cpu> {
        let memory = GuestMemory::new();
        let block = memory.add_block("ram", 1 << 20).expect("a megabyte is to be had");
        let contents = Contents::Ram(block, 0);
        memory.set_layer(Layer { name: "ram".into(), priority: 0, base: 0, len: 1 << 20, contents });
        let topology = Topology { sockets: 1, cores: 1, threads: 1 };
        let model = CpuModel { name: "max".into(), features: Vec::new(), topology };
        let cpuid = CpuidPolicy::new(&model).expect("the model is known");
        let shared = CpuShared::new(0, X86State::after_reset(0).apic, WatchOptions::default());
        let mut cpu = Cpu::new(0, cpuid, shared, Arc::new(Fabric::new(memory, crate::guest::x86::t1::Translations::off())));
        let mut state = X86State::after_reset(0);
        state.cr0 = cr0::ET | cr0::NE | cr0::MP;
        state.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT;
        state.segments[1].base = 0x2_0000;
        state.segments[1].selector = 0x2000;
        state.fpu.control = 0x37f;
        state.fpu.tags = 0;
        cpu.load(&state);
        cpu
    }

    fn execute(cpu: &mut Cpu, bytes: &[u8]) -> Exec {
        let Decoded::Op(op) = decode(bytes, CodeSize::Bits16, cpu.rip, cpu.cpuid.instruction_sets()) else {
            panic!("incomplete: {bytes:02x?}")
        };
        cpu.rip += u64::from(op.len);
        (op.handler)(cpu, &op)
    }

    fn fault(vector: u8) -> Exec {
        Err(Stop::Exception(Exception { vector, error: None }))
    }

    #[test]
    fn em_and_ts_stop_each_unit_in_its_own_way() {
        let mut cpu = cpu();
        cpu.cr0 |= cr0::EM;
        assert_eq!(execute(&mut cpu, FLD1), fault(vector::NM));
        assert_eq!(execute(&mut cpu, PADDB_MM), fault(vector::UD));
        assert_eq!(execute(&mut cpu, ADDPS), fault(vector::UD));
        assert_eq!(execute(&mut cpu, FXSAVE_1000), fault(vector::NM));
        cpu.cr0 = cpu.cr0 & !cr0::EM | cr0::TS;
        for bytes in [FLD1, PADDB_MM, ADDPS, FXSAVE_1000, WAIT] {
            assert_eq!(execute(&mut cpu, bytes), fault(vector::NM), "{bytes:02x?}");
        }
        cpu.cr0 &= !cr0::MP;
        assert_eq!(execute(&mut cpu, WAIT), Ok(()), "without MP, TS is no matter for WAIT");
    }

    #[test]
    fn sse_is_undefined_until_the_system_says_that_it_saves_it() {
        let mut cpu = cpu();
        cpu.cr4 &= !cr4::OSFXSR;
        assert_eq!(execute(&mut cpu, ADDPS), fault(vector::UD));
        assert_eq!(execute(&mut cpu, PADDB_MM), Ok(()), "MMX does not ask");
        cpu.fpu.xmm[0] = 0x1234;
        assert_eq!(execute(&mut cpu, FXSAVE_1000), Ok(()));
        assert_eq!(cpu.read::<u32>(3, 0x1000 + 160), Ok(0), "no XMM registers in the image");
    }

    #[test]
    fn vex_needs_protected_mode_and_a_system_that_saves_ymm_registers() {
        const VADDPS: &[u8] = &[0xc5, 0xf0, 0x58, 0xc2]; // xmm0, xmm1, xmm2
        const ANDN: &[u8] = &[0xc4, 0xe2, 0x70, 0xf2, 0xc2]; // eax, ecx, edx
        const LDS: &[u8] = &[0xc5, 0x06, 0x00, 0x10]; // ax, [1000h]: VEX only where it names registers
        let mut cpu = cpu();
        cpu.cr4 |= cr4::OSXSAVE;
        cpu.xcr0 = 7;
        assert_eq!(execute(&mut cpu, VADDPS), fault(vector::UD), "real mode");
        assert_eq!(execute(&mut cpu, ANDN), fault(vector::UD));
        assert_ne!(execute(&mut cpu, LDS), fault(vector::UD));
        cpu.cr0 |= cr0::PE;
        cpu.fpu.ymm_high[0] = 1;
        assert_eq!(execute(&mut cpu, VADDPS), Ok(()));
        assert_eq!(cpu.fpu.ymm_high[0], 0, "128 bits clear the rest");
        for xcr0 in [1, 3] {
            cpu.xcr0 = xcr0;
            assert_eq!(execute(&mut cpu, VADDPS), fault(vector::UD), "XCR0 {xcr0}");
        }
        (cpu.xcr0, cpu.cr0) = (7, cpu.cr0 | cr0::TS | cr0::EM);
        assert_eq!(execute(&mut cpu, VADDPS), fault(vector::NM), "EM is no matter");
        cpu.cr4 &= !cr4::OSXSAVE;
        assert_eq!(execute(&mut cpu, VADDPS), fault(vector::UD), "before #NM");
        assert_eq!(execute(&mut cpu, ANDN), Ok(()), "general registers need nothing");
    }

    #[test]
    fn an_unmasked_exception_is_xm_or_undefined() {
        let mut cpu = cpu();
        cpu.fpu.xmm[0] = 0x3f80_0000; // 1.0 / 0.0 in the lowest lane
        cpu.fpu.mxcsr = 0x1f80 & !0x0200 & !0x0080;
        let before = cpu.fpu.xmm[0];
        assert_eq!(execute(&mut cpu, DIVPS), fault(vector::XM));
        assert_eq!((cpu.fpu.xmm[0], cpu.fpu.mxcsr & 0x3f), (before, 0x05), "invalid (0/0) and zero divide, nothing stored");
        cpu.cr4 &= !cr4::OSXMMEXCPT;
        assert_eq!(execute(&mut cpu, DIVPS), fault(vector::UD));
    }

    #[test]
    fn a_pending_x87_exception_waits_for_the_next_instruction() {
        let mut cpu = cpu();
        cpu.fpu.control = 0x37b; // division by zero unmasked
        for bytes in [FLD1, FLDZ, FDIVP] {
            assert_eq!(execute(&mut cpu, bytes), Ok(()));
        }
        assert_eq!(cpu.fpu.status & 0x8084, 0x8084, "ZE, ES and B");
        assert_eq!(execute(&mut cpu, WAIT), fault(vector::MF));
        assert_eq!(execute(&mut cpu, FNSTENV_1000), Ok(()), "a non-waiting instruction does not mind");
    }

    #[test]
    fn with_ne_clear_the_exception_is_the_ferr_pin() {
        let mut cpu = cpu();
        cpu.cr0 &= !cr0::NE;
        let pins = Pins { clock: Clock::new(ClockMode::Real, VmTime::ZERO), ferr: AtomicU32::new(0) };
        cpu.board = Some(Board::new(&pins));
        cpu.fpu.control = 0x37b;
        for bytes in [FLD1, FLDZ, FDIVP] {
            assert_eq!(execute(&mut cpu, bytes), Ok(()));
        }
        assert_eq!(pins.ferr.load(Ordering::Relaxed), 0);
        assert_eq!(execute(&mut cpu, WAIT), Ok(()));
        assert_eq!(pins.ferr.load(Ordering::Relaxed), 1);
        cpu.board = None;
    }

    #[test]
    fn real_mode_environments_hold_linear_addresses() {
        let mut cpu = cpu();
        cpu.rip = 0x345;
        assert_eq!(execute(&mut cpu, FLD1), Ok(()));
        assert_eq!(execute(&mut cpu, FNSTENV_1000), Ok(()));
        let word = |cpu: &mut Cpu, index: u64| cpu.read::<u16>(3, 0x1000 + 2 * index).expect("RAM is there");
        assert_eq!(word(&mut cpu, 0), 0x37f);
        assert_eq!(word(&mut cpu, 1), 0x3800, "TOP is 7");
        assert_eq!(word(&mut cpu, 2), 0x3fff, "R7 valid, the rest empty");
        assert_eq!((word(&mut cpu, 3), word(&mut cpu, 4) & 0xf000), (0x0345, 0x2000), "2000h:345h");
    }
}
