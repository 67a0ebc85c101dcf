//! How soon translated code that runs in circles notices that somebody wants its CPU: an interrupt, a pause, the end. By the
//! clock on the wall, which a busy host makes as long as it likes, and by the processor time that the CPU's thread needed for
//! it, which is ours.

use engine_base::{Clock, ClockMode, VmTime};
use engine_cpu::x86::{Segment, X86State};
use engine_cpu::{CpuBackend, CpuIo, CpuModel, CpuState, Exit, Topology};
use engine_memory::{Contents, GuestMemory, Layer};
use engine_translator::{Interpreter, TranslatorOptions};
use std::time::{Duration, Instant};

const RAM_BYTES: u64 = 64 << 20;
/// What a guest's timer may be late by.
const MOST: Duration = Duration::from_millis(10);
const KICKS: usize = 40;

struct Board(Clock);

impl CpuIo for Board {
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
    fn clock(&self) -> &Clock {
        &self.0
    }
    fn set_cpu_timer(&self, _: u32, _: VmTime) {}
    fn next_timer(&self) -> VmTime {
        VmTime::NEVER
    }
    fn fire_timers(&self) {}
}

/// The processor time that a thread has used. See: clock_gettime(2), clock_getcpuclockid(3).
#[cfg(target_os = "linux")]
fn processor_time(thread: i32) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one `timespec`, and says so if there is no such thread.
    assert_eq!(unsafe { libc::clock_gettime(!thread << 3 | 6, &raw mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Hosts that cannot say count as if nothing took time.
#[cfg(not(target_os = "linux"))]
fn processor_time(_: i32) -> Duration {
    Duration::ZERO
}

fn this_thread() -> i32 {
    #[cfg(target_os = "linux")]
    // SAFETY: it only asks.
    return unsafe { libc::gettid() };
    #[cfg(not(target_os = "linux"))]
    0
}

/// How long each kick took to end a run of this 32-bit code, which never ends by itself: on the wall, and of the CPU's thread;
/// each sorted.
fn latencies(code: &[u8]) -> [Vec<Duration>; 2] {
    let memory = GuestMemory::new();
    let ram = memory.add_block("ram", RAM_BYTES).unwrap();
    memory.set_layer(Layer { name: "ram".into(), priority: 0, base: 0, len: RAM_BYTES, contents: Contents::Ram(ram, 0) });
    memory.write(0x8000, code).unwrap();
    let backend = Interpreter::translating(memory, TranslatorOptions { hot: 0, ..TranslatorOptions::default() });
    let model = CpuModel { name: "max".into(), features: Vec::new(), topology: Topology { sockets: 1, cores: 1, threads: 1 } };
    let mut cpu = backend.create_vcpu(0, &model).unwrap();
    let mut state = X86State::after_reset(0);
    state.segments = [Segment { selector: 16, base: 0, limit: 0xffff_ffff, attributes: 0xc093 }; 6];
    state.segments[1] = Segment { selector: 8, base: 0, limit: 0xffff_ffff, attributes: 0xc09b };
    (state.cr0, state.rip, state.gpr[4]) = (0x11, 0x8000, 0x7000);
    cpu.set_state(&CpuState::X86(Box::new(state))).unwrap();
    let board = Board(Clock::new(ClockMode::Real, VmTime::ZERO));
    let (kicker, thread) = (cpu.kicker(), this_thread());
    let (mut on_the_wall, mut worked): (Vec<Duration>, Vec<Duration>) = (0..KICKS)
        .map(|_| {
            std::thread::scope(|scope| {
                let kick = scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(5));
                    let kicked = (Instant::now(), processor_time(thread));
                    kicker.kick();
                    kicked
                });
                assert_eq!(cpu.run(&board), Exit::Kicked);
                let (ended, used) = (Instant::now(), processor_time(thread));
                let kicked = kick.join().unwrap();
                (ended - kicked.0, used - kicked.1)
            })
        })
        .unzip();
    on_the_wall.sort();
    worked.sort();
    [on_the_wall, worked]
}

#[test]
fn code_in_a_circle_is_not_deaf() {
    let straight: Vec<u8> = std::iter::repeat_n(0x40, 3000).chain([0xe9, 0x43, 0xf4, 0xff, 0xff]).collect();
    for (name, code) in [
        ("a jump to itself", &[0xeb, 0xfe][..]),
        ("three thousand INC EAX and back", &straight),
        // mov eax, 8000h; jmp eax
        ("an indirect jump", &[0xb8, 0x00, 0x80, 0x00, 0x00, 0xff, 0xe0]),
        // call +0; add esp, 4; jmp back
        ("calls", &[0xe8, 0x00, 0x00, 0x00, 0x00, 0x83, 0xc4, 0x04, 0xeb, 0xf6]),
        // mov ecx, 100000; loop $; jmp back
        ("LOOP", &[0xb9, 0xa0, 0x86, 0x01, 0x00, 0xe2, 0xfe, 0xeb, 0xf7]),
        // mov esi, 10_0000h; mov edi, 200_0000h; mov ecx, 100_0000h; rep movsb; jmp back
        ("REP MOVSB of 16 MiB", &[0xbe, 0, 0, 0x10, 0, 0xbf, 0, 0, 0, 2, 0xb9, 0, 0, 0, 1, 0xf3, 0xa4, 0xeb, 0xed]),
        // cpuid; jmp back: the interpreter's work, inside translated code
        ("CPUID", &[0x0f, 0xa2, 0xeb, 0xfc]),
    ] {
        let [on_the_wall, worked] = latencies(code);
        let millis = |taken: &[Duration], at: usize| taken[at].as_secs_f64() * 1e3;
        println!(
            "{name}: {:.3} ms, at most {:.3} ms; of its own time {:.3} ms, at most {:.3} ms",
            millis(&on_the_wall, KICKS / 2),
            millis(&on_the_wall, KICKS - 1),
            millis(&worked, KICKS / 2),
            millis(&worked, KICKS - 1)
        );
        // A busy host takes the thread away for longer, but not every time.
        assert!(on_the_wall[KICKS / 4] <= MOST, "{name}: {:.3} ms", millis(&on_the_wall, KICKS / 4));
        assert!(worked[KICKS - 1] <= MOST, "{name}: {:.3} ms of its own time", millis(&worked, KICKS - 1));
    }
}
