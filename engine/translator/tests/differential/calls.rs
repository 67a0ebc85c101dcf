//! The interpreter against translated code where calls and returns are concerned: random programs of functions that call each
//! other directly and indirectly, across the page's end too, and do what well-behaved ones do not: drop their callers, return
//! to where nobody has called from, change return addresses, switch stacks, and change the code that they return to. Compared
//! in every bit of what they leave and in how many instructions retired.
//!
//! * `cargo test -p engine_translator --test differential calls`: some ten thousand programs.
//! * `cargo test --release -p engine_translator --test differential -- --ignored --nocapture many_calls`: the whole proof.
//! * `BELLGLASS_SEED` as in `main.rs`.

use crate::{
    blocks::{differences, text},
    case::{CODE_BASE, CODE_BYTES, Case, MODE_32, MODE_64, WINDOW_BASE},
    generate::{self, Form, Shape},
    interpret::Interpreted,
    seed,
    values::Random,
};
use iced_x86::Code;
use std::time::Instant;

/// Registers by their numbers. Every call and return burns fuel; OTHER_STACK is what RSP is exchanged with.
const SP: usize = 4;
const OTHER_STACK: usize = 3;
const FUEL_64: usize = 15;
const FUEL_32: usize = 5;
/// What instructions between calls compute with: RCX, RDX, RSI, RDI. RAX is scratch.
const VALUES: [u8; 4] = [1, 2, 6, 7];

/// What a displacement or an address in the code means.
#[derive(Clone, Copy)]
enum Place {
    Function(usize),
    /// Where programs end that have burnt their fuel.
    Out,
    /// One of the immediates that are changed.
    Immediate(usize),
    /// So many bytes behind the program's start.
    At(usize),
}

struct Writer<'a> {
    code: Vec<u8>,
    start: u64,
    wide: bool,
    functions: usize,
    /// Where four bytes are missing, where the instruction ends, and whether they are an absolute address.
    holes: Vec<(usize, usize, bool, Place)>,
    immediates: Vec<usize>,
    random: &'a mut Random,
}

impl Writer<'_> {
    fn hole(&mut self, behind: usize, absolute: bool, place: Place) {
        let at = self.code.len();
        self.holes.push((at, at + 4 + behind, absolute, place));
        self.code.extend([0; 4]);
    }

    /// `dec fuel; js out`
    fn burn(&mut self) {
        self.code.extend(if self.wide { &[0x49, 0xff, 0xcf, 0x0f, 0x88][..] } else { &[0xff, 0xcd, 0x0f, 0x88] });
        self.hole(0, false, Place::Out);
    }

    fn function(&mut self) -> Place {
        Place::Function(self.random.below(self.functions as u64) as usize)
    }

    /// RAX becomes an address.
    fn address(&mut self, place: Place) {
        if self.wide {
            // lea rax, [rip + there]
            self.code.extend([0x48, 0x8d, 0x05]);
        } else {
            self.code.push(0xb8);
        }
        let absolute = !self.wide;
        self.hole(0, absolute, place);
    }

    /// ADD, ADC or SUB of registers, or of an immediate that somebody may change.
    fn compute(&mut self) {
        let (to, from) = (self.random.pick(&VALUES), self.random.pick(&VALUES));
        if self.random.chance(50) {
            let operation = self.random.pick(&[0x01, 0x11, 0x29]);
            self.code.extend([operation, 0xc0 | from << 3 | to]);
        } else {
            self.code.extend([0x81, 0xc0 | to]);
            self.immediates.push(self.code.len());
            self.code.extend((self.random.u64() as u32).to_le_bytes());
        }
    }

    /// `add rsp, bytes`
    fn drop_words(&mut self, words: u8) {
        if self.wide {
            self.code.push(0x48);
        }
        self.code.extend([0x83, 0xc4, words * if self.wide { 8 } else { 4 }]);
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..30 => self.compute(),
            30..58 => {
                self.code.push(0xe8);
                let function = self.function();
                self.hole(0, false, function);
                if self.random.chance(60) {
                    self.compute();
                }
            }
            58..68 => {
                let function = self.function();
                self.address(function);
                // call rax
                self.code.extend([0xff, 0xd0]);
            }
            68..72 => {
                // call next; next: pop rax
                self.code.extend([0xe8, 0, 0, 0, 0, 0x58]);
            }
            72..76 => {
                // push there; ret; there:
                let behind = self.code.len() + if self.wide { 9 } else { 7 };
                self.address(Place::At(behind));
                self.code.extend([0x50, 0xc3]);
            }
            76..80 => {
                // mov [rsp], function: somebody else is returned to.
                let function = self.function();
                self.address(function);
                self.code.extend(if self.wide { &[0x48, 0x89, 0x04, 0x24][..] } else { &[0x89, 0x04, 0x24] });
            }
            80..83 => self.drop_words(1),
            83..86 => {
                // push rdi: it is taken for a return address, or dropped by RET's immediate.
                self.code.push(0x57);
            }
            86..91 => {
                // xchg rsp, rbx
                self.code.extend(if self.wide { &[0x48, 0x87, 0xdc][..] } else { &[0x87, 0xdc] });
            }
            91..94 => {
                // mov rbx, rsp
                self.code.extend(if self.wide { &[0x48, 0x89, 0xe3][..] } else { &[0x89, 0xe3] });
            }
            94..98 if !self.immediates.is_empty() => {
                // mov dword [immediate], imm32: what is returned to may not be what was left.
                self.code.extend([0xc7, 0x05]);
                let which = self.random.below(self.immediates.len() as u64) as usize;
                let absolute = !self.wide;
                self.hole(4, absolute, Place::Immediate(which));
                self.code.extend((self.random.u64() as u32).to_le_bytes());
            }
            _ => {
                // Away without a return address.
                self.burn();
                self.code.push(0xe9);
                let function = self.function();
                self.hole(0, false, function);
            }
        }
    }

    fn end_function(&mut self) {
        self.burn();
        if self.random.chance(85) {
            return self.code.push(0xc3);
        }
        let words = self.random.below(3) as u8;
        self.code.extend([0xc2, words * if self.wide { 8 } else { 4 }, 0]);
    }

    /// Bytes that nobody executes, so that functions lie in both pages and now and then across the end of the first.
    fn gap(&mut self) {
        let here = self.start + self.code.len() as u64;
        let left = (CODE_BASE + 0x1000).saturating_sub(here);
        let bytes = match self.random.below(10) {
            0..6 => self.random.below(16),
            6..9 if left > 64 => left - self.random.below(40),
            _ => self.random.below(512),
        };
        self.code.extend(std::iter::repeat_n(0xcc, bytes as usize));
    }
}

/// A program that ends, for nothing is executed twice without a call, a return or a jump that burns fuel in between.
fn program(mode: u32, random: &mut Random) -> Option<Case> {
    let form = Form { code: Code::Nopd, mode, shape: Shape::Register };
    let mut case = generate::generate(form, random)?;
    let wide = mode == MODE_64;
    let functions = 1 + random.below(6) as usize;
    let start = CODE_BASE + 0x400 + random.below(0xb00);
    let (immediates, holes, code) = (Vec::new(), Vec::new(), Vec::new());
    let mut writer = Writer { code, start, wide, functions, holes, immediates, random };
    let mut entries = Vec::new();
    for _ in 0..functions {
        entries.push(writer.code.len());
        writer.burn();
        for _ in 0..writer.random.below(9) {
            writer.step();
        }
        writer.end_function();
        writer.gap();
    }
    let out = writer.code.len();
    writer.code.push(0xcc);
    let Writer { mut code, holes, immediates, .. } = writer;
    if start + code.len() as u64 > CODE_BASE + CODE_BYTES as u64 {
        return None;
    }
    let find = |place| match place {
        Place::Function(number) => entries[number],
        Place::Out => out,
        Place::Immediate(number) => immediates[number],
        Place::At(at) => at,
    };
    for (at, behind, absolute, place) in holes {
        let value = if absolute { start as u32 + find(place) as u32 } else { (find(place) as u32).wrapping_sub(behind as u32) };
        code[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    // Both stacks hold functions, so that whoever drops too much goes on; and now and then something else.
    let word = if wide { 8 } else { 4 };
    for slot in case.window.chunks_exact_mut(word) {
        let function = start + random.pick(&entries) as u64;
        let value = match random.below(20) {
            0 => start + out as u64,
            // Not canonical, if the upper half counts.
            1 if random.chance(20) => function | 1 << 60,
            _ => function,
        };
        slot.copy_from_slice(&value.to_le_bytes()[..word]);
    }
    let stack = |random: &mut Random| {
        let at = if random.chance(10) { random.pick(&[0x20, 0x1008, 0x1ff0]) } else { 0x200 + (random.below(0x1c00) & !7) };
        WINDOW_BASE + at + if random.chance(8) { random.below(8) } else { 0 }
    };
    case.registers.gpr[SP] = stack(random);
    case.registers.gpr[OTHER_STACK] = stack(random);
    case.registers.gpr[if wide { FUEL_64 } else { FUEL_32 }] = 10 + random.below(400);
    case.registers.rflags &= !(1 << 18 | 1 << 10 | 1 << 8);
    case.registers.rip = start;
    case.code = code;
    Some(case)
}

fn campaign(mode: u32, seed: u64, count: usize, engine: impl Fn() -> anyhow::Result<Interpreted>) -> anyhow::Result<u64> {
    let (mut interpreter, mut translator) = (Interpreted::new()?, engine()?);
    interpreter.approaches = true;
    let mut random = Random::new(seed ^ u64::from(mode) << 32 ^ 1 << 51);
    let mut different = 0;
    let programs = std::iter::repeat_with(move || program(mode, &mut random)).flatten().take(count);
    for case in programs {
        let (expected, found) = (interpreter.run(&case)?, translator.run(&case)?);
        let mut lines = differences(&expected, &found);
        if interpreter.retired != translator.retired {
            lines.push(format!("retired: {} and {}", interpreter.retired, translator.retired));
        }
        if lines.is_empty() {
            continue;
        }
        different += 1;
        if different <= 3 {
            let code: String =
                text(&case).lines().filter(|line| !line.ends_with(" int3")).map(|line| format!("{line}\n")).collect();
            println!("{}-bit code:\n{code}  {}", case.mode, lines.join("\n  "));
            println!("  kept in {}", crate::keep(&format!("calls-{}-{different}", case.mode), &case)?.display());
        }
    }
    Ok(different)
}

fn run(seed: u64, each: usize) -> anyhow::Result<()> {
    let started = Instant::now();
    let different: Vec<anyhow::Result<u64>> = std::thread::scope(|scope| {
        let threads = [
            scope.spawn(move || campaign(MODE_64, seed, each, Interpreted::translating)),
            scope.spawn(move || campaign(MODE_32, seed, each, Interpreted::translating)),
            scope.spawn(move || campaign(MODE_64, !seed, each / 2, move || Interpreted::in_chaos(seed))),
            scope.spawn(move || campaign(MODE_32, !seed, each / 2, move || Interpreted::in_chaos(seed))),
            scope.spawn(move || campaign(MODE_64, seed, each / 2, || Interpreted::optimizing(0))),
            scope.spawn(move || campaign(MODE_64, !seed, each / 4, move || Interpreted::optimizing_in_chaos(seed))),
            // Recursions as machines take them.
            scope.spawn(move || campaign(MODE_64, seed ^ 1 << 52, each / 4, || Interpreted::optimizing(4))),
        ];
        threads.into_iter().map(|thread| thread.join().expect("a campaign does not panic")).collect()
    });
    let different = different.into_iter().sum::<anyhow::Result<u64>>()?;
    println!("seed {seed}: {} programs, {different} differences, {:.1} s", each * 4, started.elapsed().as_secs_f64());
    assert_eq!(different, 0, "see the list above");
    Ok(())
}

#[test]
fn calls_and_returns_do_what_the_interpreter_does() -> anyhow::Result<()> {
    run(seed(1), 4000)
}

#[test]
#[ignore = "takes minutes; the command is in the file's head"]
fn many_calls_agree() -> anyhow::Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    run(seed(now), 100_000)
}
