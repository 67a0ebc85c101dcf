//! Runs cases on the interpreter (or the evaluator), through the seam that machines use: user code in a small paged guest whose
//! interrupt table leads every vector to its own stub, and a stub tells the board that a case is over by writing to a port.
//!
//! As in the native process, code pages are filled with INT3 and nothing is mapped around code and window.

use crate::{
    case::{CODE_BASE, CODE_BYTES, Case, Fault, FxImage, MODE_32, MODE_64, Outcome, Registers, WINDOW_BASE, WINDOW_BYTES},
    generate::{self, Form, Shape},
    native::GS_BASE,
    values::Random,
};
use engine_base::{Clock, ClockMode, VmTime};
use engine_cpu::{
    CpuBackend, CpuIo, CpuModel, CpuState, Exit, Kicker, Topology, Vcpu,
    x86::{FpuState, Segment, TableRegister, X86State},
};
use engine_memory::{Contents, GuestMemory, Layer};
use engine_translator::{Chaos, Evaluation, Interpreter, Tier2Options, TranslatorOptions};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where the supervisor's pages are: far from what cases touch.
const SYSTEM: u64 = 0xffff_9000_0000_0000;
// Physical addresses, and offsets in SYSTEM.
const PML4: u64 = 0x1000;
const LOW_PDPT: u64 = 0x2000;
const LOW_DIRECTORY: u64 = 0x3000;
const CODE_TABLE: u64 = 0x4000;
const WINDOW_TABLE: u64 = 0x5000;
const HIGH_PDPT: u64 = 0x6000;
const HIGH_DIRECTORY: u64 = 0x7000;
const IDT: u64 = 0x8000;
const GDT: u64 = 0x9000;
const TSS: u64 = 0xa000;
const STUBS: u64 = 0xb000;
const STACK_TOP: u64 = 0xe000;
const CODE: u64 = 0x1_0000;
const WINDOW: u64 = 0x2_0000;
const APPROACH: u64 = 0x3_0000;
/// Where the approach to a case is mapped: away from the code that cases jump around in.
const APPROACH_BASE: u64 = CODE_BASE + 0x10_0000;
/// Where a case's code is mapped a second time.
pub const CODE_AGAIN: u64 = CODE_BASE + 0x400_0000;
const RAM: u64 = 0x10_0000;
const STUB_BYTES: u64 = 16;

struct Board {
    clock: Clock,
    kicker: OnceLock<Kicker>,
    /// A stub has said that the case is over.
    over: AtomicBool,
}

impl CpuIo for Board {
    fn port_read(&self, _port: u16, _bytes: u8) -> u32 {
        u32::MAX
    }
    fn port_write(&self, _port: u16, _bytes: u8, _value: u32) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(kicker) = self.kicker.get() {
            kicker.kick();
        }
    }
    fn mmio_read(&self, _address: u64, _bytes: u8) -> u64 {
        u64::MAX
    }
    fn mmio_write(&self, _address: u64, _bytes: u8, _value: u64) {}
    fn acknowledge_interrupt(&self) -> u8 {
        0xff
    }
    fn end_of_interrupt(&self, _vector: u8) {}
    fn clock(&self) -> &Clock {
        &self.clock
    }
    fn set_cpu_timer(&self, _cpu: u32, _deadline: VmTime) {}
    fn next_timer(&self) -> VmTime {
        VmTime::NEVER
    }
    fn fire_timers(&self) {}
}

/// Runs cases on the interpreter or the translator.
pub struct Interpreted {
    memory: GuestMemory,
    board: Board,
    vcpu: Box<dyn Vcpu>,
    base: X86State,
    /// Instructions that the last case took, up to the stub's.
    pub retired: u64,
    /// Whether cases are approached by code that fills the TLB.
    pub approaches: bool,
}

impl Interpreted {
    pub fn new() -> anyhow::Result<Self> {
        Self::with(Interpreter::new)
    }

    /// The same for the evaluator of lifted code.
    pub fn evaluating(evaluation: Evaluation) -> anyhow::Result<Self> {
        Self::with(|memory| Interpreter::evaluating(memory, evaluation))
    }

    /// The same for the translator, which translates everything at its first execution.
    pub fn translating() -> anyhow::Result<Self> {
        let options = TranslatorOptions { hot: 0, ..TranslatorOptions::default() };
        Ok(Self { approaches: true, ..Self::with(|memory| Interpreter::translating(memory, options))? })
    }

    /// The same with the optimising tier, which compiles loops after so many rounds; 0: everything as soon as it is translated.
    pub fn optimizing(threshold: u32) -> anyhow::Result<Self> {
        let tier2 = Some(Tier2Options { threshold, background: false });
        let options = TranslatorOptions { hot: 0, tier2, ..TranslatorOptions::default() };
        Ok(Self { approaches: true, ..Self::with(|memory| Interpreter::translating(memory, options))? })
    }

    /// Both.
    pub fn optimizing_in_chaos(seed: u64) -> anyhow::Result<Self> {
        let tier2 = Some(Tier2Options { threshold: 0, background: false });
        let chaos = Some(Chaos::from_seed(seed));
        let options = TranslatorOptions { hot: 0, code_bytes: 8 << 20, tier2, chaos, ..TranslatorOptions::default() };
        Ok(Self { approaches: true, ..Self::with(|memory| Interpreter::translating(memory, options))? })
    }

    /// The same in chaos mode, with as little memory for code as possible.
    pub fn in_chaos(seed: u64) -> anyhow::Result<Self> {
        let chaos = Some(Chaos::from_seed(seed));
        let options = TranslatorOptions { hot: 0, code_bytes: 0, chaos, ..TranslatorOptions::default() };
        Ok(Self { approaches: true, ..Self::with(|memory| Interpreter::translating(memory, options))? })
    }

    fn with(backend: impl FnOnce(GuestMemory) -> Interpreter) -> anyhow::Result<Self> {
        let memory = GuestMemory::new();
        let block = memory.add_block("ram", RAM)?;
        memory.set_layer(Layer { name: "ram".into(), priority: 0, base: 0, len: RAM, contents: Contents::Ram(block, 0) });
        lay_out(&memory)?;
        let backend = backend(memory.clone());
        let model =
            CpuModel { name: "max".into(), features: Vec::new(), topology: Topology { sockets: 1, cores: 1, threads: 1 } };
        let vcpu = backend.create_vcpu(0, &model)?;
        let clock = Clock::new(ClockMode::Real, VmTime::ZERO);
        let board = Board { clock, kicker: OnceLock::new(), over: AtomicBool::new(false) };
        board.kicker.set(vcpu.kicker()).ok();
        Ok(Self { memory, board, vcpu, base: supervisor_state(), retired: 0, approaches: false })
    }

    /// Gives the data segments of 32-bit code bases of all kinds, one an end before the window, and one the other direction.
    pub fn with_odd_segments(mut self) -> Self {
        let data = self.base.segments[3];
        let es = Segment { base: 0x20, ..data };
        let ss = Segment { base: 0xffff_f800, ..data };
        let ds = Segment { base: 0x10, ..data };
        let fs = Segment { limit: 0x2_0001, ..data };
        // Expands down: what is above the limit is inside.
        let gs = Segment { base: 0x1000, limit: 0x1000_0000, attributes: data.attributes | 4, ..data };
        self.base.segments = [es, self.base.segments[1], ss, ds, fs, gs];
        self
    }

    /// What disturbs it, from any thread.
    pub fn kicker(&self) -> Kicker {
        self.vcpu.kicker()
    }

    pub fn run(&mut self, case: &Case) -> anyhow::Result<Outcome> {
        self.memory.write(CODE + (case.registers.rip - CODE_BASE), &case.code)?;
        self.memory.write(WINDOW, &case.window[..])?;
        let mut state = state_of(&self.base, case);
        if self.approaches {
            state.rip = self.lay_approach(case)?;
        }
        self.vcpu.set_state(&CpuState::X86(Box::new(state)))?;
        let before = self.vcpu.retired_instructions();
        let mut exit = self.vcpu.run(&self.board);
        // Somebody else may have kicked.
        while exit == Exit::Kicked && !self.board.over.load(Ordering::Relaxed) {
            exit = self.vcpu.run(&self.board);
        }
        self.board.over.store(false, Ordering::Relaxed);
        self.retired = self.vcpu.retired_instructions() - before;
        let CpuState::X86(after) = self.vcpu.state()?;
        self.clear_code()?;

        let mut window = Box::new([0; WINDOW_BYTES]);
        self.memory.read(WINDOW, &mut window[..])?;
        let stub = after.rip.wrapping_sub(SYSTEM + STUBS) / STUB_BYTES;
        if exit != Exit::Kicked || stub > 0xff {
            // A triple fault, or something else that must not happen: certainly a difference.
            let registers = Registers {
                fx: to_image(&after.fpu),
                ymm_high: after.fpu.ymm_high,
                gpr: after.gpr,
                rip: after.rip,
                rflags: after.rflags,
            };
            return Ok(Outcome { registers, fault: Some(Fault { vector: 0xff, error: 0, address: 0 }), window });
        }
        let vector = stub as u8;
        let frame = after.gpr[4].wrapping_sub(SYSTEM);
        let has_error = matches!(vector, 8 | 10..=14 | 17 | 21);
        let mut words = [0u64; 6];
        let first = if has_error { 0 } else { 1 };
        for (i, word) in words.iter_mut().enumerate().skip(first) {
            *word = u64::from_le_bytes(self.memory.read_array(frame + 8 * (i - first) as u64)?);
        }
        let [error, rip, _cs, rflags, rsp, _ss] = words;
        let mut registers = Registers { fx: to_image(&after.fpu), ymm_high: after.fpu.ymm_high, gpr: after.gpr, rip, rflags };
        registers.gpr[4] = rsp;
        let fault = if vector == 3 {
            registers.rip = registers.rip.wrapping_sub(1);
            None
        } else {
            Some(Fault { vector, error: error as u32, address: after.cr2 })
        };
        Ok(Outcome { registers, fault, window })
    }
}

impl Interpreted {
    /// Fills the code pages with INT3 again. Not only the case's own bytes: it may have stored behind its end, and of two
    /// engines that are compared only one may have run it.
    fn clear_code(&self) -> anyhow::Result<()> {
        let mut code = [0; CODE_BYTES];
        self.memory.read(CODE, &mut code)?;
        let (first, last) = (code.iter().position(|byte| *byte != 0xcc), code.iter().rposition(|byte| *byte != 0xcc));
        if let (Some(first), Some(last)) = (first, last) {
            code[first..=last].fill(0xcc);
            self.memory.write(CODE + first as u64, &code[first..=last])?;
        }
        Ok(())
    }

    /// Code on the way to the case that touches the window's pages and changes nothing, so that the case's own accesses are
    /// hits in the TLB: translated code does hits by itself. Where it begins.
    fn lay_approach(&self, case: &Case) -> anyhow::Result<u64> {
        let mut code = Vec::new();
        for page in [0, 0x1000u32] {
            for _ in 0..2 {
                // not byte [page]: twice is nothing, and flags stay
                code.extend_from_slice(if case.mode == MODE_32 { &[0xf6, 0x15] } else { &[0xf6, 0x14, 0x25] });
                code.extend_from_slice(&(WINDOW_BASE as u32 + page).to_le_bytes());
            }
        }
        code.push(0xe9);
        let behind = APPROACH_BASE + code.len() as u64 + 4;
        code.extend_from_slice(&(case.registers.rip.wrapping_sub(behind) as u32).to_le_bytes());
        self.memory.write(APPROACH, &code)?;
        Ok(APPROACH_BASE)
    }
}

fn put(memory: &GuestMemory, address: u64, value: u64) -> anyhow::Result<()> {
    Ok(memory.write(address, &value.to_le_bytes())?)
}

/// Page tables, descriptor tables, stubs.
fn lay_out(memory: &GuestMemory) -> anyhow::Result<()> {
    const USER: u64 = 0x67; // present, writable, user, accessed, dirty
    const SUPERVISOR: u64 = 0x63;
    put(memory, PML4, LOW_PDPT | USER)?;
    put(memory, PML4 + 8 * (SYSTEM >> 39 & 511), HIGH_PDPT | SUPERVISOR)?;
    put(memory, LOW_PDPT, LOW_DIRECTORY | USER)?;
    put(memory, LOW_DIRECTORY + 8 * (CODE_BASE >> 21), CODE_TABLE | USER)?;
    put(memory, LOW_DIRECTORY + 8 * (CODE_AGAIN >> 21), CODE_TABLE | USER)?;
    put(memory, LOW_DIRECTORY + 8 * (WINDOW_BASE >> 21), WINDOW_TABLE | USER)?;
    for page in 0..CODE_BYTES as u64 >> 12 {
        put(memory, CODE_TABLE + 8 * page, (CODE + page * 0x1000) | USER)?;
    }
    put(memory, CODE_TABLE + 8 * ((APPROACH_BASE - CODE_BASE) >> 12), APPROACH | USER)?;
    for page in 0..WINDOW_BYTES as u64 >> 12 {
        put(memory, WINDOW_TABLE + 8 * page, (WINDOW + page * 0x1000) | USER | 1 << 63)?;
    }
    put(memory, HIGH_PDPT, HIGH_DIRECTORY | SUPERVISOR)?;
    put(memory, HIGH_DIRECTORY, SUPERVISOR | 0x80)?;
    // Linux's selectors: 10h kernel code, 18h kernel data, 23h 32-bit code, 2Bh data, 33h 64-bit code.
    for (index, descriptor) in [
        (2, 0x00af_9b00_0000_ffff),
        (3, 0x00cf_9300_0000_ffff),
        (4, 0x00cf_fb00_0000_ffff),
        (5, 0x00cf_f300_0000_ffff),
        (6, 0x00af_fb00_0000_ffff),
    ] {
        put(memory, GDT + 8 * index, descriptor)?;
    }
    put(memory, TSS + 4, SYSTEM + STACK_TOP)?;
    // No I/O permission bitmap: it would begin behind the limit.
    put(memory, TSS + 0x60, 0x68 << 48)?;
    for vector in 0..256u64 {
        let stub = SYSTEM + STUBS + vector * STUB_BYTES;
        // INT3 and INTO may be executed by user code.
        let access: u64 = if matches!(vector, 3 | 4) { 0xee } else { 0x8e };
        put(memory, IDT + 16 * vector, stub & 0xffff | 0x10 << 16 | access << 40 | (stub >> 16 & 0xffff) << 48)?;
        put(memory, IDT + 16 * vector + 8, stub >> 32)?;
        // here: out 0xe9, al; jmp here
        memory.write(STUBS + vector * STUB_BYTES, &[0xe6, 0xe9, 0xeb, 0xfc])?;
    }
    memory.write(CODE, &vec![0xcc; CODE_BYTES])?;
    Ok(())
}

fn supervisor_state() -> X86State {
    let mut state = X86State::after_reset(0);
    let data = Segment { selector: 0x2b, base: 0, limit: u32::MAX, attributes: 0xc0f3 };
    let null = Segment { selector: 0, base: 0, limit: 0, attributes: 0 };
    state.segments = [data, data, data, data, null, Segment { base: GS_BASE, ..null }];
    state.gdtr = TableRegister { base: SYSTEM + GDT, limit: 7 * 8 - 1 };
    state.idtr = TableRegister { base: SYSTEM + IDT, limit: 0xfff };
    state.tr = Segment { selector: 0x40, base: SYSTEM + TSS, limit: 0x67, attributes: 0x8b };
    // PE, MP, ET, NE, WP, AM, PG; PAE, PGE, OSFXSR, OSXMMEXCPT, OSXSAVE; SCE, LME, LMA, NXE
    state.cr0 = 0x8005_0033;
    state.cr3 = PML4;
    state.cr4 = 0x4_06a0;
    state.msr.efer = 0xd01;
    state.xcr0 = if crate::native::has_avx() { 7 } else { 3 };
    state
}

fn state_of(base: &X86State, case: &Case) -> X86State {
    let mut state = base.clone();
    state.gpr = case.registers.gpr;
    state.rip = case.registers.rip;
    state.rflags = case.registers.rflags;
    let attributes = if case.mode == MODE_32 { (0x23, 0xc0fb) } else { (0x33, 0xa0fb) };
    state.segments[1] = Segment { selector: attributes.0, base: 0, limit: u32::MAX, attributes: attributes.1 };
    state.fpu = FpuState { ymm_high: case.registers.ymm_high, ..from_image(&case.registers.fx) };
    state
}

fn from_image(fx: &FxImage) -> FpuState {
    let mut fpu =
        FpuState { control: fx.control(), status: fx.status(), tags: fx.tags(), mxcsr: fx.mxcsr(), ..FpuState::default() };
    let top = usize::from(fx.status() >> 11 & 7);
    for i in 0..8 {
        fpu.registers[(top + i) & 7] = fx.st(i);
    }
    for i in 0..16 {
        fpu.xmm[i] = fx.xmm(i);
    }
    fpu
}

fn to_image(fpu: &FpuState) -> FxImage {
    let mut fx = FxImage([0; 512]);
    fx.put(0, &fpu.control.to_le_bytes());
    fx.put(2, &fpu.status.to_le_bytes());
    fx.put(4, &[fpu.tags]);
    // What the host keeps of these differs from vendor to vendor: only engines are compared in them.
    fx.put(6, &fpu.opcode.to_le_bytes());
    fx.put(8, &fpu.instruction_pointer.to_le_bytes());
    fx.put(16, &fpu.data_pointer.to_le_bytes());
    fx.put(464, &fpu.instruction_segment.to_le_bytes());
    fx.put(466, &fpu.data_segment.to_le_bytes());
    fx.put(24, &fpu.mxcsr.to_le_bytes());
    let top = usize::from(fpu.status >> 11 & 7);
    for i in 0..8 {
        fx.put(32 + 16 * i, &fpu.registers[(top + i) & 7].to_le_bytes()[..10]);
    }
    for i in 0..16 {
        fx.put(160 + 16 * i, &fpu.xmm[i].to_le_bytes());
    }
    fx
}

#[test]
fn what_a_case_stores_behind_its_end_is_gone_when_the_next_one_runs() -> anyhow::Result<()> {
    let form = Form { code: iced_x86::Code::Nopd, mode: MODE_64, shape: Shape::Register };
    let mut random = Random::new(1);
    let mut case = std::iter::repeat_with(|| generate::generate(form, &mut random)).flatten().next().expect("there is a case");
    case.registers.rip = CODE_BASE + 0x400;
    let end = case.registers.rip + 8;
    // mov byte [end], 0: with the INT3 behind it, ADD AH, CL.
    case.code = vec![0xc6, 0x04, 0x25];
    case.code.extend(&(end as u32).to_le_bytes());
    case.code.push(0);
    let mut interpreter = Interpreted::new()?;
    interpreter.run(&case)?;
    case.code.fill(0x90);
    let outcome = interpreter.run(&case)?;
    assert_eq!((outcome.registers.rip, outcome.fault), (end, None));
    Ok(())
}
