//! The interpreter's core, by little machine-code programs on a bare board: traces and self-modifying code, strings and their
//! faults, locked operations, counted time, saved state.

use engine_base::{Clock, ClockMode, VmTime};
use engine_cpu::x86::{Segment, X86State};
use engine_cpu::{CpuBackend, CpuIo, CpuModel, CpuState, Exit, Kicker, Topology, Vcpu};
use engine_memory::{Contents, GuestMemory, Layer};
use engine_translator::Interpreter;
use std::sync::{Arc, Mutex};

const RAM_BYTES: u64 = 1 << 20;
/// A write to this port ends the run.
const END: u16 = 0xf4;
/// A write to this port stores the value at physical address 9000h, as a device's DMA would.
const DMA: u16 = 0xf6;
/// A write to this address starts the timer: nanoseconds from now.
const TIMER: u64 = 0x10_0100;

/// RAM, two ports, and a device at 10_0000h that remembers what is written to it.
struct Board {
    clock: Clock,
    memory: GuestMemory,
    kicker: Mutex<Option<Kicker>>,
    device: Mutex<Vec<(u64, u8, u64)>>,
    /// When the timer is due, and when it has fired.
    timer: Mutex<(Option<VmTime>, Vec<VmTime>)>,
}

impl CpuIo for Board {
    fn port_read(&self, port: u16, _: u8) -> u32 {
        u32::from(port)
    }
    fn port_write(&self, port: u16, _: u8, value: u32) {
        match port {
            END => self.kicker.lock().unwrap().as_ref().unwrap().kick(),
            DMA => self.memory.write(0x9000, &[value as u8]).unwrap(),
            _ => {}
        }
    }
    fn mmio_read(&self, address: u64, bytes: u8) -> u64 {
        self.device.lock().unwrap().push((address, bytes, 0));
        address & 0xff
    }
    fn mmio_write(&self, address: u64, bytes: u8, value: u64) {
        if address == TIMER {
            self.timer.lock().unwrap().0 = Some(VmTime(self.clock.now().0 + value));
        }
        self.device.lock().unwrap().push((address, bytes, value));
    }
    fn acknowledge_interrupt(&self) -> u8 {
        0
    }
    fn end_of_interrupt(&self, _: u8) {}
    fn clock(&self) -> &Clock {
        &self.clock
    }
    fn set_cpu_timer(&self, _: u32, _: VmTime) {}
    fn next_timer(&self) -> VmTime {
        self.timer.lock().unwrap().0.unwrap_or(VmTime::NEVER)
    }
    fn fire_timers(&self) {
        let mut timer = self.timer.lock().unwrap();
        timer.0 = None;
        timer.1.push(self.clock.now());
    }
}

struct Bench {
    board: Arc<Board>,
    cpu: Box<dyn Vcpu>,
}

impl Bench {
    /// Real mode, all segments 0, CS:IP 0:8000h at `code`, SP 7000h; time counts instructions, a nanosecond each.
    fn real(code: &[u8]) -> Self {
        let mut state = X86State::after_reset(0);
        state.segments = [Segment::real_mode(0, 0x93); 6];
        state.segments[1].attributes = 0x9b;
        state.rip = 0x8000;
        state.gpr[4] = 0x7000;
        Self::with(code, state)
    }

    /// 32-bit protected mode, flat, no paging.
    fn flat32(code: &[u8]) -> Self {
        let mut state = X86State::after_reset(0);
        state.segments = [Segment { selector: 16, base: 0, limit: 0xffff_ffff, attributes: 0xc093 }; 6];
        state.segments[1] = Segment { selector: 8, base: 0, limit: 0xffff_ffff, attributes: 0xc09b };
        state.cr0 = 0x11;
        state.rip = 0x8000;
        state.gpr[4] = 0x7000;
        Self::with(code, state)
    }

    fn with(code: &[u8], state: X86State) -> Self {
        let memory = GuestMemory::new();
        let ram = memory.add_block("ram", RAM_BYTES).unwrap();
        memory.set_layer(Layer { name: "ram".into(), priority: 0, base: 0, len: RAM_BYTES, contents: Contents::Ram(ram, 0) });
        memory.write(0x8000, code).unwrap();
        let backend = Interpreter::new(memory.clone());
        let model =
            CpuModel { name: "max".into(), features: Vec::new(), topology: Topology { sockets: 1, cores: 1, threads: 1 } };
        let mut cpu = backend.create_vcpu(0, &model).unwrap();
        cpu.set_state(&CpuState::X86(Box::new(state))).unwrap();
        let clock = Clock::new(ClockMode::Counted { picos_per_instruction: 1000 }, VmTime::ZERO);
        let kicker = Mutex::new(Some(cpu.kicker()));
        Self { board: Arc::new(Board { clock, memory, kicker, device: Mutex::default(), timer: Mutex::default() }), cpu }
    }

    fn run(&mut self) -> X86State {
        assert_eq!(self.cpu.run(&*self.board), Exit::Kicked);
        self.state()
    }

    fn state(&self) -> X86State {
        let CpuState::X86(state) = self.cpu.state().unwrap();
        *state
    }

    fn byte(&self, at: u64) -> u8 {
        self.board.memory.read_array::<1>(at).unwrap()[0]
    }
}

const OUT_END: [u8; 4] = [0xe6, END as u8, 0xeb, 0xfe];

#[test]
fn a_store_into_the_running_trace_is_seen_by_the_next_instruction() {
    // 8000: mov byte [8006h], 55h   8005: mov al, 0   8007: out
    let mut bench = Bench::real(&[&[0xc6, 0x06, 0x06, 0x80, 0x55, 0xb0, 0x00][..], &OUT_END].concat());
    assert_eq!(bench.run().gpr[0] & 0xff, 0x55);
}

#[test]
fn code_that_was_run_and_then_overwritten_runs_anew() {
    // cx = 300: 8003: mov al, imm   8005: inc byte [8004h]   8009: loop 8003h
    let code = [&[0xb9, 0x2c, 0x01, 0xb0, 0x00, 0xfe, 0x06, 0x04, 0x80, 0xe2, 0xf8][..], &OUT_END].concat();
    let mut bench = Bench::real(&code);
    assert_eq!(bench.run().gpr[0] & 0xff, (300 - 1) & 0xff);
}

#[test]
fn dma_into_code_is_seen() {
    // A subroutine at 9000h returns with al as DMA patched it: mov al, imm8 is B0 ib; DMA replaces the opcode's first byte by
    // B4 (mov ah).
    let code = [
        &[0xc6, 0x06, 0x00, 0x90, 0xb0][..], // mov byte [9000h], b0h
        &[0xc6, 0x06, 0x01, 0x90, 0x77],     // mov byte [9001h], 77h
        &[0xc6, 0x06, 0x02, 0x90, 0xc3],     // mov byte [9002h], c3h
        &[0xe8, 0xee, 0x0f],                 // call 9000h
        &[0xb0, 0xb4, 0xe6, DMA as u8],      // DMA writes b4h to 9000h
        &[0xe8, 0xe7, 0x0f],                 // call 9000h
        &OUT_END,
    ]
    .concat();
    let mut bench = Bench::real(&code);
    assert_eq!(bench.run().gpr[0] & 0xffff, 0x77b4, "the first call set AL, the second AH");
}

#[test]
fn a_fault_in_the_middle_of_rep_leaves_the_registers_at_the_element() {
    // rep movsw to FFFDh: the word at FFFFh is beyond the limit: #GP through vector 13, whose handler ends.
    let code = [&[0xbf, 0xfd, 0xff, 0xbe, 0x00, 0x50, 0xb9, 0x05, 0x00, 0xf3, 0xa5][..], &OUT_END].concat();
    let mut bench = Bench::real(&code);
    bench.board.memory.write(13 * 4, &[0x00, 0x60, 0, 0]).unwrap();
    bench.board.memory.write(0x6000, &OUT_END).unwrap();
    let state = bench.run();
    assert_eq!((state.gpr[1] & 0xffff, state.gpr[6] & 0xffff, state.gpr[7] & 0xffff), (4, 0x5002, 0xffff));
    let pushed_ip = u16::from_le_bytes(bench.board.memory.read_array(0x6ffa).unwrap());
    assert_eq!(pushed_ip, 0x8009, "the instruction is restarted");
}

#[test]
fn overlapping_moves_repeat_what_they_overtake() {
    // es:di = ds:si + 1: the first byte fills the run.
    let code = [&[0xbe, 0x00, 0x50, 0xbf, 0x01, 0x50, 0xb9, 0x40, 0x00, 0xf3, 0xa4][..], &OUT_END].concat();
    let mut bench = Bench::real(&code);
    bench.board.memory.write(0x5000, &[0xaa]).unwrap();
    bench.run();
    assert!((0..=0x40).all(|at| bench.byte(0x5000 + at) == 0xaa));
    assert_eq!(bench.byte(0x5041), 0);
}

#[test]
fn long_fills_stop_for_polls_and_still_finish() {
    // mov edi, 20000h; mov ecx, 4F00h; mov eax, 12345678h; rep stosd
    let code = [&[0xbf, 0, 0, 2, 0, 0xb9, 0, 0x4f, 0, 0, 0xb8, 0x78, 0x56, 0x34, 0x12, 0xf3, 0xab][..], &OUT_END].concat();
    let mut bench = Bench::flat32(&code);
    let state = bench.run();
    assert_eq!((state.gpr[1], state.gpr[7]), (0, 0x20000 + 0x4f00 * 4));
    let last: [u8; 8] = bench.board.memory.read_array(0x20000 + 0x4f00 * 4 - 4).unwrap();
    assert_eq!(last, [0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0]);
}

#[test]
fn unaligned_device_accesses_are_split_naturally() {
    // mov dword [100001h], 44332211h; mov eax, [100008h]
    let code = [&[0xc7, 0x05, 0x01, 0, 0x10, 0, 0x11, 0x22, 0x33, 0x44, 0xa1, 0x08, 0, 0x10, 0][..], &OUT_END].concat();
    let mut bench = Bench::flat32(&code);
    assert_eq!(bench.run().gpr[0], 8);
    let seen = bench.board.device.lock().unwrap().clone();
    assert_eq!(seen, [(0x10_0001, 1, 0x11), (0x10_0002, 2, 0x3322), (0x10_0004, 1, 0x44), (0x10_0008, 4, 0)]);
}

#[test]
fn an_access_across_a_page_border_is_whole() {
    // mov dword [8FFEh], 44332211h (not yet code there); mov eax, [8FFEh]; lock xadd [8FFEh], eax
    let code = [
        &[0xc7, 0x05, 0xfe, 0x5f, 0, 0, 0x11, 0x22, 0x33, 0x44, 0xa1, 0xfe, 0x5f, 0, 0][..],
        &[0xf0, 0x0f, 0xc1, 0x05, 0xfe, 0x5f, 0, 0],
        &OUT_END,
    ]
    .concat();
    let mut bench = Bench::flat32(&code);
    assert_eq!(bench.run().gpr[0], 0x4433_2211);
    assert_eq!(bench.board.memory.read_array::<4>(0x5ffe).unwrap(), 0x8866_4422u32.to_le_bytes());
}

#[test]
fn an_instruction_across_a_page_border_is_checked_on_both_pages() {
    // jmp 8FFDh; there: mov eax, 11223344h (5 bytes, 2 of them on the next page); inc byte [9001h]; loop
    let mut bench = Bench::flat32(&[0xb9, 2, 0, 0, 0, 0xe9, 0xf3, 0x0f, 0, 0]);
    let there = [&[0xb8, 0x44, 0x33, 0x22, 0x11, 0xfe, 0x05, 0x01, 0x90, 0, 0, 0xe2, 0xf3][..], &OUT_END].concat();
    bench.board.memory.write(0x8ffd, &there).unwrap();
    assert_eq!(bench.run().gpr[0], 0x1222_3344, "the second round sees the byte that the first one changed on the second page");
}

#[test]
fn the_same_program_takes_the_same_time_every_time() {
    let code = [&[0xb9, 0x00, 0x10, 0x01, 0xc8, 0x01, 0x06, 0x00, 0x50, 0xe2, 0xf8][..], &OUT_END].concat();
    let ends: Vec<_> = (0..3)
        .map(|_| {
            let mut bench = Bench::real(&code);
            let state = bench.run();
            (state, bench.board.clock.now(), bench.cpu.retired_instructions())
        })
        .collect();
    assert!(ends.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(ends[0].1, VmTime(ends[0].2), "a nanosecond an instruction");
    assert_eq!(ends[0].2, 1 + 3 * 0x1000 + 1);
}

#[test]
fn a_timer_that_a_device_starts_fires_at_its_instruction() {
    // nop ×2; mov dword [100100h], 5; nop ×20
    let code = [&[0x90, 0x90, 0xc7, 0x05, 0x00, 0x01, 0x10, 0, 5, 0, 0, 0][..], &[0x90; 20], &OUT_END].concat();
    let mut bench = Bench::flat32(&code);
    bench.run();
    assert_eq!(bench.board.timer.lock().unwrap().1, [VmTime(2 + 5)]);
}

#[test]
fn state_survives_saving_and_loading() {
    let code = [&[0xb8, 0x34, 0x12, 0x83, 0xe8, 0x35, 0xf9, 0xfd][..], &OUT_END].concat();
    let mut bench = Bench::real(&code);
    let state = bench.run();
    let mut other = Bench::real(&code);
    other.cpu.set_state(&CpuState::X86(Box::new(state.clone()))).unwrap();
    assert_eq!(other.state(), state);
    assert_eq!(state.rflags & 0x401, 0x401, "CF and DF are among it");
}

#[test]
fn near_transfers_beyond_the_limit_fault_before_they_push() {
    // In real mode: call dword with a target above 64 KiB: #GP(13).
    let code = [&[0x66, 0xe8, 0x00, 0x00, 0x01, 0x00][..], &OUT_END].concat();
    let mut bench = Bench::real(&code);
    bench.board.memory.write(13 * 4, &[0x00, 0x60, 0, 0]).unwrap();
    bench.board.memory.write(0x6000, &OUT_END).unwrap();
    assert_eq!(bench.run().gpr[4] & 0xffff, 0x7000 - 6, "only the interrupt frame is on the stack");
}
