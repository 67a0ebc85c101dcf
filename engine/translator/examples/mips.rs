//! How many million guest instructions a second the interpreter and the translator run, in a few tight loops: `cargo run
//! --release -p engine_translator --example mips`.

use engine_base::{Clock, ClockMode, VmTime};
use engine_cpu::x86::{Segment, X86State};
use engine_cpu::{CpuBackend, CpuIo, CpuModel, CpuState, Exit, Kicker, Topology};
use engine_memory::{Contents, GuestMemory, Layer};
use engine_translator::{Interpreter, TranslatorOptions};
use std::sync::Mutex;

/// A board with one port: any write to it ends the run.
struct Board {
    clock: Clock,
    kicker: Mutex<Option<Kicker>>,
}

impl CpuIo for Board {
    fn port_read(&self, _: u16, _: u8) -> u32 {
        0xffff_ffff
    }
    fn port_write(&self, _: u16, _: u8, _: u32) {
        if let Some(kicker) = &*self.kicker.lock().unwrap() {
            kicker.kick();
        }
    }
    fn mmio_read(&self, _: u64, _: u8) -> u64 {
        u64::MAX
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

/// `mov ecx, 20_000_000`, the loop's body, `dec ecx`, `jnz`, `out 0xf4, al`.
fn program(body: &[u8]) -> Vec<u8> {
    let mut code = vec![0xb9];
    code.extend_from_slice(&20_000_000u32.to_le_bytes());
    let top = code.len();
    code.extend_from_slice(body);
    code.extend_from_slice(&[0xff, 0xc9]);
    code.extend_from_slice(&[0x0f, 0x85]);
    let back = top as i32 - (code.len() as i32 + 4);
    code.extend_from_slice(&back.to_le_bytes());
    code.extend_from_slice(&[0xe6, 0xf4, 0xeb, 0xfe]);
    code
}

/// CPU time of this thread, so that a busy host does not spoil the figures (Linux; elsewhere the clock on the wall).
fn cpu_seconds() -> f64 {
    let nanos =
        std::fs::read_to_string("/proc/thread-self/schedstat").ok().and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    nanos
        .map_or_else(|| std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0.0, |since| since.as_secs_f64()), |nanos| nanos / 1e9)
}

fn main() {
    let loops: &[(&str, &[u8])] = &[
        ("empty", &[]),
        // add rax, rbx; xor rdx, rax; lea rsi, [rax+rdx*2]; and rdi, rsi
        ("registers", &[0x48, 0x01, 0xd8, 0x48, 0x31, 0xc2, 0x48, 0x8d, 0x34, 0x50, 0x48, 0x21, 0xf7]),
        // mov rax, [0x5000]; add rax, 1; mov [0x5008], rax; push rax; pop rbx
        (
            "memory",
            &[0x48, 0x8b, 0x04, 0x25, 0, 0x50, 0, 0, 0x48, 0x83, 0xc0, 1, 0x48, 0x89, 0x04, 0x25, 8, 0x50, 0, 0, 0x50, 0x5b],
        ),
        // movdqu xmm0, [0x5000]; paddd xmm0, xmm1; pxor xmm2, xmm0; movdqa [0x5010], xmm2
        (
            "vectors",
            &[
                0xf3, 0x0f, 0x6f, 0x04, 0x25, 0, 0x50, 0, 0, 0x66, 0x0f, 0xfe, 0xc1, 0x66, 0x0f, 0xef, 0xd0, 0x66, 0x0f, 0x7f,
                0x14, 0x25, 0x10, 0x50, 0, 0,
            ],
        ),
        // mulsd xmm0, xmm1; addsd xmm0, xmm2; subsd xmm3, xmm0; cvtsi2sd xmm4, ecx
        ("floats", &[0xf2, 0x0f, 0x59, 0xc1, 0xf2, 0x0f, 0x58, 0xc2, 0xf2, 0x0f, 0x5c, 0xd8, 0xf2, 0x0f, 0x2a, 0xe1]),
        // call +2; jmp +1; ret: three transfers
        ("calls", &[0xe8, 2, 0, 0, 0, 0xeb, 1, 0xc3]),
    ];
    println!("million instructions a second      interpreter   translator");
    for (name, body) in loops {
        let (slow, fast) = (measure(body, false), measure(body, true));
        println!("{name:33} {slow:12.1} {fast:12.1}  {:5.1} times", fast / slow);
    }
}

/// Million instructions a second of a loop with this body.
fn measure(body: &[u8], translates: bool) -> f64 {
    let memory = GuestMemory::new();
    let ram = memory.add_block("ram", 0x20_0000).expect("memory");
    memory.set_layer(Layer { name: "ram".into(), priority: 0, base: 0, len: 0x20_0000, contents: Contents::Ram(ram, 0) });
    memory.write(0x8000, &program(body)).expect("ram");
    memory.write(0x1000, &0x2007u64.to_le_bytes()).expect("ram");
    memory.write(0x2000, &0x3007u64.to_le_bytes()).expect("ram");
    memory.write(0x3000, &0x87u64.to_le_bytes()).expect("ram");
    let backend =
        if translates { Interpreter::translating(memory, TranslatorOptions::default()) } else { Interpreter::new(memory) };
    let model = CpuModel { name: "max".into(), features: Vec::new(), topology: Topology { sockets: 1, cores: 1, threads: 1 } };
    let mut cpu = backend.create_vcpu(0, &model).expect("a CPU");
    let mut state = X86State::after_reset(0);
    state.cr0 = 0x8000_0031;
    state.cr3 = 0x1000;
    state.cr4 = 0x220;
    state.msr.efer = 0x500;
    state.segments = [Segment { selector: 16, base: 0, limit: 0xffff_ffff, attributes: 0xc093 }; 6];
    state.segments[1] = Segment { selector: 8, base: 0, limit: 0xffff_ffff, attributes: 0xa09b };
    state.rip = 0x8000;
    state.gpr[4] = 0x7000;
    cpu.set_state(&CpuState::X86(Box::new(state))).expect("a state");
    let board = Board { clock: Clock::new(ClockMode::Real, VmTime::ZERO), kicker: Mutex::new(Some(cpu.kicker())) };
    let start = cpu_seconds();
    let exit = cpu.run(&board);
    let seconds = cpu_seconds() - start;
    assert_eq!(exit, Exit::Kicked);
    cpu.retired_instructions() as f64 / seconds / 1e6
}
