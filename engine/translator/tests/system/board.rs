//! A bare board: RAM, a ROM below 4 GiB and below 1 MiB, port E9h for text and F4h to end.

use engine_base::{Clock, ClockMode, VmTime};
use engine_cpu::{CpuBackend, CpuIo, CpuModel, Exit, Kicker, Topology};
use engine_memory::{Contents, GuestMemory, Layer};
use engine_translator::Interpreter;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

const RAM_BYTES: u64 = 16 << 20;
const TEXT: u16 = 0xe9;
const EXIT: u16 = 0xf4;
/// How many CPUs there are besides the one that asks.
const OTHER_CPUS: u16 = 0xf5;
/// A double word written here lands in memory at [`DMA_AT`], as a device's would.
const DMA: u16 = 0xf8;
const DMA_AT: u64 = 0x30_0301;
/// The text of a guest that has gone wild is cut off here.
const TEXT_LIMIT: usize = 1 << 16;

/// How a guest ended.
pub struct Outcome {
    /// What it printed.
    pub text: String,
    /// How each CPU's last run ended.
    pub ends: Vec<Exit>,
}

pub struct Machine {
    board: Arc<Board>,
    cpus: u32,
    model: CpuModel,
}

struct Board {
    clock: Clock,
    memory: GuestMemory,
    backend: Arc<Interpreter>,
    text: Mutex<Vec<u8>>,
    ended: OnceLock<u32>,
    kickers: Mutex<Vec<Kicker>>,
    deadlines: Mutex<Vec<VmTime>>,
    /// The clock counts instructions.
    counted: bool,
}

impl Machine {
    /// A CPU with more features than its model's.
    pub fn with(mut self, features: &[&str]) -> Self {
        self.model.features = features.iter().map(|name| ((*name).to_owned(), true)).collect();
        self
    }

    /// One CPU may count instructions (`counted`), so that its runs are repeatable; several follow the host's clock, and so
    /// does the translator.
    pub fn new(image: &[u8], cpus: u32, model: &str, counted: bool, backend: impl FnOnce(GuestMemory) -> Interpreter) -> Self {
        let memory = GuestMemory::new();
        let ram = memory.add_block("ram", RAM_BYTES).expect("a little memory");
        let rom = memory.add_block("rom", image.len() as u64).expect("a little memory");
        rom.write(0, image);
        let len = image.len() as u64;
        let layer = |name: &str, priority, base, contents, len| Layer { name: name.to_owned(), priority, base, len, contents };
        memory.set_layer(layer("ram", 0, 0, Contents::Ram(ram, 0), RAM_BYTES));
        memory.set_layer(layer("low rom", 1, 0x10_0000 - len, Contents::Rom(rom.clone(), 0), len));
        memory.set_layer(layer("rom", 1, (1 << 32) - len, Contents::Rom(rom, 0), len));
        let counted = counted && cpus == 1;
        let mode = if counted { ClockMode::Counted { picos_per_instruction: 1000 } } else { ClockMode::Real };
        let board = Board {
            clock: Clock::new(mode, VmTime::ZERO),
            backend: Arc::new(backend(memory.clone())),
            memory,
            text: Mutex::default(),
            ended: OnceLock::new(),
            kickers: Mutex::default(),
            deadlines: Mutex::new(vec![VmTime::NEVER; cpus as usize]),
            counted,
        };
        let topology = Topology { sockets: 1, cores: cpus, threads: 1 };
        Self { board: Arc::new(board), cpus, model: CpuModel { name: model.to_owned(), features: Vec::new(), topology } }
    }

    /// Runs until the guest ends, fails, or patience does.
    pub fn run(self, patience: Duration) -> Outcome {
        let Self { board, cpus, model } = self;
        let mut vcpus: Vec<_> =
            (0..cpus).map(|index| board.backend.create_vcpu(index, &model).expect("the model is known")).collect();
        *board.kickers.lock().unwrap() = vcpus.iter().map(|vcpu| vcpu.kicker()).collect();
        board.clock.resume();
        let started = Instant::now();
        let ends = std::thread::scope(|scope| {
            let running: Vec<_> = vcpus
                .iter_mut()
                .map(|vcpu| {
                    let board = board.clone();
                    scope.spawn(move || {
                        loop {
                            let exit = vcpu.run(&*board);
                            if exit != Exit::Kicked || board.ended.get().is_some() {
                                board.end(0);
                                return exit;
                            }
                        }
                    })
                })
                .collect();
            while board.ended.get().is_none() && started.elapsed() < patience {
                std::thread::sleep(Duration::from_micros(200));
                if !board.counted {
                    board.fire_timers();
                }
            }
            board.end(0);
            running.into_iter().map(|thread| thread.join().expect("a CPU never panics")).collect()
        });
        let text = String::from_utf8_lossy(&board.text.lock().unwrap()).into_owned();
        Outcome { text, ends }
    }
}

impl Board {
    fn end(&self, status: u32) {
        self.ended.get_or_init(|| status);
        self.kickers.lock().unwrap().iter().for_each(Kicker::kick);
    }
}

impl CpuIo for Board {
    fn port_read(&self, port: u16, bytes: u8) -> u32 {
        if port == OTHER_CPUS {
            return self.deadlines.lock().unwrap().len() as u32 - 1;
        }
        u32::MAX >> (32 - 8 * u32::from(bytes.clamp(1, 4)))
    }

    fn port_write(&self, port: u16, _: u8, value: u32) {
        match port {
            TEXT => {
                let mut text = self.text.lock().unwrap();
                if text.len() < TEXT_LIMIT {
                    text.push(value as u8);
                }
            }
            EXIT => self.end(value),
            DMA => self.memory.write(DMA_AT, &value.to_le_bytes()).expect("RAM is there"),
            _ => {}
        }
    }

    fn mmio_read(&self, _: u64, _: u8) -> u64 {
        u64::MAX
    }

    fn mmio_write(&self, _: u64, _: u8, _: u64) {}

    fn acknowledge_interrupt(&self) -> u8 {
        0xff
    }

    fn end_of_interrupt(&self, _: u8) {}

    fn clock(&self) -> &Clock {
        &self.clock
    }

    fn set_cpu_timer(&self, cpu: u32, deadline: VmTime) {
        self.deadlines.lock().unwrap()[cpu as usize] = deadline;
    }

    fn next_timer(&self) -> VmTime {
        self.deadlines.lock().unwrap().iter().copied().min().unwrap_or(VmTime::NEVER)
    }

    fn fire_timers(&self) {
        let now = self.clock.now();
        let mut due = Vec::new();
        for (cpu, deadline) in (0..).zip(self.deadlines.lock().unwrap().iter_mut()) {
            if *deadline <= now {
                *deadline = VmTime::NEVER;
                due.push(cpu);
            }
        }
        due.into_iter().for_each(|cpu| self.backend.timer_due(cpu));
    }
}
