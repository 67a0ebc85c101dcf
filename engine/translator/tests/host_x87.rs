//! The guest's x87 state while translated code has it in the host's x87: nobody else may see it there, and nobody else may disturb it.
//!
//! A loop adds numbers on the x87. Now and then it reads from a device, whose code looks at the host's x87, uses it and stops
//! the CPU, so that another one has its turn on the same thread; then it stores and loads the environment. The sums are exact
//! all the same. All the while the guest has a rounding of its own in MXCSR and the direction flag set, of which the host's
//! code sees nothing either.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use engine_base::{Clock, ClockMode, VmTime};
use engine_cpu::x86::{Segment, X86State};
use engine_cpu::{CpuBackend, CpuIo, CpuModel, CpuState, Exit, Kicker, Topology, Vcpu};
use engine_memory::{Contents, GuestMemory, Layer};
use engine_translator::{Interpreter, TranslatorOptions};
use std::arch::asm;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// How many numbers are added.
const COUNT: u32 = 300_000;
const SUM: f64 = (COUNT as u64 * (COUNT as u64 + 1) / 2) as f64;

/// Towards zero, denormals and what would become some flushed to zero, all masked.
const GUEST_MXCSR: u32 = 0xffc0;
const DIRECTION: u64 = 1 << 10;

/// ```asm
///         fninit
///         fldz
///         mov ecx, COUNT
/// again:  mov [6000h], ecx
///         fiadd dword [6000h]
///         test ecx, 0fffh
///         jnz skip
///         mov eax, [100000h]      ; the device
///         fnstenv [6100h]
///         fldenv [6100h]
/// skip:   addps xmm1, xmm1        ; under the guest's MXCSR
///         dec ecx
///         jnz again
///         fstp qword [6010h]
///         mov eax, 5678h
///         movd mm3, eax
///         movd [6018h], mm3
///         emms
///         mov dx, 0f4h            ; the end
///         out dx, al
///         jmp $
/// ```
const CODE: &[u8] = &[
    0xdb, 0xe3, 0xd9, 0xee, 0xb9, 0xe0, 0x93, 0x04, 0x00, 0x89, 0x0d, 0x00, 0x60, 0x00, 0x00, 0xda, 0x05, 0x00, 0x60, 0x00, 0x00,
    0xf7, 0xc1, 0xff, 0x0f, 0x00, 0x00, 0x75, 0x11, 0xa1, 0x00, 0x00, 0x10, 0x00, 0xd9, 0x35, 0x00, 0x61, 0x00, 0x00, 0xd9, 0x25,
    0x00, 0x61, 0x00, 0x00, 0x0f, 0x58, 0xc9, 0x49, 0x75, 0xd5, 0xdd, 0x1d, 0x10, 0x60, 0x00, 0x00, 0xb8, 0x78, 0x56, 0x00, 0x00,
    0x0f, 0x6e, 0xd8, 0x0f, 0x7e, 0x1d, 0x18, 0x60, 0x00, 0x00, 0x0f, 0x77, 0x66, 0xba, 0xf4, 0x00, 0xee, 0xeb, 0xfe,
];

/// Control, status and tag word of the host's x87.
fn host_x87() -> [u32; 3] {
    let mut environment = [0u32; 7];
    // SAFETY: stores 28 bytes; what FNSTENV masks is put back.
    unsafe { asm!("fnstenv [{e}]", "fldenv [{e}]", e = in(reg) &raw mut environment, options(nostack)) };
    [environment[0] & 0xffff, environment[1] & 0xffff, environment[2] & 0xffff]
}

/// What the host's code must find: MXCSR as the ABI wants it (rounding to nearest, all masked, whatever the sticky flags), and
/// strings going upwards.
fn assert_host_is_clean() {
    assert_eq!(host_x87(), CLEAN);
    let (mut mxcsr, mut flags) = (0u32, 0u64);
    // SAFETY: stores MXCSR and copies the flags through the stack.
    unsafe { asm!("stmxcsr [{m}]", "pushfq", "pop {f}", m = in(reg) &raw mut mxcsr, f = inout(reg) flags) };
    assert_eq!((mxcsr & !0x3f, flags >> 10 & 1), (0x1f80, 0));
}

const CLEAN: [u32; 3] = [0x37f, 0, 0xffff];

/// Pushes eight numbers and pops them.
fn use_host_x87() {
    // SAFETY: the stack is empty before and after.
    unsafe {
        asm!(
            "fldpi", "fld1", "fldpi", "fld1", "fldpi", "fld1", "fldpi", "fld1", "fadd st(0), st(5)",
            "fstp st(0)", "fstp st(0)", "fstp st(0)", "fstp st(0)", "fstp st(0)", "fstp st(0)", "fstp st(0)", "fstp st(0)", "fninit",
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            options(nostack)
        );
    }
}

struct Board {
    clock: Clock,
    reads: AtomicU32,
    ended: AtomicBool,
    kicker: Kicker,
}

impl CpuIo for Board {
    fn port_read(&self, _: u16, _: u8) -> u32 {
        0
    }
    fn port_write(&self, _: u16, _: u8, _: u32) {
        assert_host_is_clean();
        self.ended.store(true, Ordering::Relaxed);
        self.kicker.kick();
    }
    fn mmio_read(&self, _: u64, _: u8) -> u64 {
        assert_host_is_clean();
        use_host_x87();
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.kicker.kick();
        0
    }
    fn mmio_write(&self, _: u64, _: u8, _: u64) {}
    fn acknowledge_interrupt(&self) -> u8 {
        0
    }
    fn end_of_interrupt(&self, _: u8) {}
    fn clock(&self) -> &Clock {
        &self.clock
    }
    fn set_cpu_timer(&self, _: u32, _: VmTime) {}
    fn next_timer(&self) -> VmTime {
        VmTime::NEVER
    }
    fn fire_timers(&self) {}
}

/// A computer of its own with the program in it.
struct Adder {
    memory: GuestMemory,
    board: Board,
    cpu: Box<dyn Vcpu>,
}

impl Adder {
    fn new() -> Self {
        let memory = GuestMemory::new();
        let ram = memory.add_block("ram", 1 << 20).unwrap();
        memory.set_layer(Layer { name: "ram".into(), priority: 0, base: 0, len: 1 << 20, contents: Contents::Ram(ram, 0) });
        memory.write(0x8000, CODE).unwrap();
        let mut state = X86State::after_reset(0);
        state.segments = [Segment { selector: 16, base: 0, limit: 0xffff_ffff, attributes: 0xc093 }; 6];
        state.segments[1] = Segment { selector: 8, base: 0, limit: 0xffff_ffff, attributes: 0xc09b };
        (state.cr0, state.cr4) = (0x31, 0x200);
        (state.fpu.mxcsr, state.rflags) = (GUEST_MXCSR, 2 | DIRECTION);
        state.rip = 0x8000;
        let backend = Interpreter::translating(memory.clone(), TranslatorOptions { hot: 0, ..TranslatorOptions::default() });
        let topology = Topology { sockets: 1, cores: 1, threads: 1 };
        let mut cpu = backend.create_vcpu(0, &CpuModel { name: "max".into(), features: Vec::new(), topology }).unwrap();
        cpu.set_state(&CpuState::X86(Box::new(state))).unwrap();
        let board = Board {
            clock: Clock::new(ClockMode::Real, VmTime::ZERO),
            reads: AtomicU32::new(0),
            ended: AtomicBool::new(false),
            kicker: cpu.kicker(),
        };
        Self { memory, board, cpu }
    }

    /// Runs until somebody kicks. Whether the program has ended.
    fn run(&mut self) -> bool {
        assert_eq!(self.cpu.run(&self.board), Exit::Kicked);
        assert_host_is_clean();
        let CpuState::X86(state) = self.cpu.state().unwrap();
        let ended = self.board.ended.load(Ordering::Relaxed);
        // While it adds, the sum is the only number on the stack, and what FNINIT and the additions leave is all there is.
        assert_eq!((state.fpu.mxcsr & !0x3f, state.rflags & DIRECTION), (GUEST_MXCSR, DIRECTION));
        let adding = (0x8004..0x8034).contains(&state.rip);
        assert!(!adding || state.fpu.tags == 0x80 && state.fpu.control == 0x37f, "{:x?}", state.fpu);
        ended
    }

    fn check(&self) {
        assert_eq!(f64::from_le_bytes(self.memory.read_array(0x6010).unwrap()), SUM);
        assert_eq!(u32::from_le_bytes(self.memory.read_array(0x6018).unwrap()), 0x5678);
        assert_eq!(self.board.reads.load(Ordering::Relaxed), COUNT / 0x1000);
    }
}

#[test]
fn a_sum_survives_the_boards_code_and_another_cpu_on_the_same_thread() {
    let mut adders = [Adder::new(), Adder::new()];
    let mut turns = 0;
    while adders.each_mut().map(|adder| adder.board.ended.load(Ordering::Relaxed) || adder.run()) != [true; 2] {
        turns += 1;
    }
    assert!(turns >= COUNT / 0x1000, "each access of the device ends a turn: {turns}");
    adders.iter().for_each(Adder::check);
}
