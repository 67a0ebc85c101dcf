//! The optimising tier's code against that of tier 1, which the interpreter has been compared with: blocks of all kinds and of
//! vectors, and programs of several blocks with loops; some of it in chaos and disturbed all the time. What is compared is all
//! but flags that some instruction of the case leaves undefined.
//!
//! * `cargo test -p engine_translator --test differential optimized`: about 45 000 cases.
//! * `cargo test --release -p engine_translator --test differential -- --ignored --nocapture many_optimized`: the whole proof.

use crate::blocks::{blocks, differences, text, vector_blocks};
use crate::case::{CODE_BASE, Case, MODE_64, WINDOW_BASE};
use crate::interpret::{CODE_AGAIN, Interpreted};
use crate::regions::program;
use crate::seed;
use crate::translated::undefined_anywhere;
use crate::values::Random;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

struct Engines {
    plain: Interpreted,
    optimizing: Interpreted,
}

impl Engines {
    /// Nothing for a case that looks at what is undefined.
    fn differences(&mut self, case: &Case) -> anyhow::Result<Option<Vec<String>>> {
        let Some(undefined) = undefined_anywhere(case) else { return Ok(None) };
        let mut expected = self.plain.run(case)?;
        let mut found = self.optimizing.run(case)?;
        expected.registers.rflags &= !undefined;
        found.registers.rflags &= !undefined;
        let mut lines = differences(&expected, &found);
        if self.plain.retired != self.optimizing.retired {
            lines.push(format!("retired: {} and {}", self.plain.retired, self.optimizing.retired));
        }
        Ok(Some(lines))
    }

    /// Cuts instructions out (they become NOPs) as long as the tiers differ.
    fn shrunk(&mut self, case: &Case) -> anyhow::Result<(Case, Vec<String>)> {
        let mut best = (case.clone(), self.differences(case)?.unwrap_or_default());
        let mut decoder = iced_x86::Decoder::with_ip(case.mode, &case.code, case.registers.rip, iced_x86::DecoderOptions::NONE);
        while decoder.can_decode() {
            let from = decoder.position();
            decoder.decode_out(&mut iced_x86::Instruction::default());
            // A loop that has lost what it counts down would not end.
            if case.code[from..].starts_with(&[0x41, 0xff, 0xcf]) {
                continue;
            }
            let mut fewer = best.0.clone();
            fewer.code[from..decoder.position()].fill(0x90);
            let found = self.differences(&fewer)?.unwrap_or_default();
            if !found.is_empty() {
                best = (fewer, found);
            }
        }
        Ok(best)
    }
}

fn campaign(cases: impl Iterator<Item = Case>, optimizing: Interpreted) -> anyhow::Result<(u64, u64)> {
    let mut engines = Engines { plain: Interpreted::translating()?, optimizing };
    let (mut count, mut different) = (0u64, 0);
    for case in cases {
        let Some(found) = engines.differences(&case)? else { continue };
        count += 1;
        if found.is_empty() {
            continue;
        }
        different += 1;
        if different <= 4 {
            let (case, again) = engines.shrunk(&case)?;
            let lines = if again.is_empty() { found } else { again };
            let text: String =
                text(&case).lines().filter(|line| !line.ends_with(" nop")).map(|line| format!("{line}\n")).collect();
            println!("{text}  {}", lines.join("\n  "));
            println!("{}", case.to_text().lines().filter(|line| !line.starts_with('+')).collect::<Vec<_>>().join("; "));
        }
    }
    Ok((count, different))
}

fn run(seed: u64, each: usize) -> anyhow::Result<()> {
    let started = Instant::now();
    let programs = |seed: u64| {
        let mut random = Random::new(seed ^ 1 << 50);
        std::iter::repeat_with(move || program(MODE_64, &mut random)).flatten().take(each)
    };
    let over = AtomicBool::new(false);
    let results: Vec<anyhow::Result<(u64, u64)>> = std::thread::scope(|scope| {
        let disturbed = Interpreted::optimizing_in_chaos(seed)?;
        let kicker = disturbed.kicker();
        let threads = [
            scope.spawn(|| campaign(programs(seed), Interpreted::optimizing(0)?)),
            scope.spawn(|| campaign(blocks(seed, 64, each), Interpreted::optimizing(0)?)),
            scope.spawn(|| campaign(vector_blocks(seed, 64, each), Interpreted::optimizing(0)?)),
            // Loops as machines take them, with the targets that indirect jumps have had.
            scope.spawn(|| campaign(programs(seed ^ 1 << 51).take(each / 3), Interpreted::optimizing(4)?)),
            scope.spawn(|| campaign(programs(!seed).take(each / 50), disturbed)),
        ];
        // Polls are taken wherever there is one.
        let over = &over;
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                kicker.kick();
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        let results = threads.into_iter().map(|thread| thread.join().expect("a campaign does not panic")).collect();
        over.store(true, Ordering::Relaxed);
        anyhow::Ok(results)
    })?;
    let (mut count, mut different) = (0, 0);
    for result in results {
        let (cases, differences) = result?;
        (count, different) = (count + cases, different + differences);
    }
    println!("seed {seed}: {count} optimized cases, {different} differences, {:.1} s", started.elapsed().as_secs_f64());
    assert_eq!(different, 0, "see the list above");
    assert!(count > each as u64 / 2, "most cases were left out");
    Ok(())
}

#[test]
fn optimized_code_does_what_tier_1_does() -> anyhow::Result<()> {
    run(seed(1), 15_000)
}

/// A loop that reads beside itself and adds up where it is, and then jumps to R9 once; a number behind it.
#[rustfmt::skip]
const WANDERING: &[u8] = &[
    0xb9, 20, 0, 0, 0,                         // mov ecx, 20
    0x48, 0x03, 0x05, 0x19, 0, 0, 0,           // add rax, [rip+19h]
    0x48, 0x8d, 0x15, 0xf2, 0xff, 0xff, 0xff,  // lea rdx, [rip-0eh]
    0x48, 0x01, 0xd3,                          // add rbx, rdx
    0xff, 0xc9,                                // dec ecx
    0x75, 0xeb,                                // jne $-13h
    0x41, 0x83, 0xe8, 1,                       // sub r8d, 1
    0x78, 3,                                   // js $+5
    0x41, 0xff, 0xe1,                          // jmp r9
    0xcc, 0xcc,
    1, 2, 3, 4, 5, 6, 7, 8,
];

#[test]
fn a_region_runs_wherever_its_page_is() -> anyhow::Result<()> {
    let mut case = program(MODE_64, &mut Random::new(1)).expect("a program comes of any seed");
    case.code = WANDERING.to_vec();
    case.registers.rip = CODE_BASE + 0x400;
    case.registers.gpr[8] = 1;
    case.registers.gpr[9] = CODE_AGAIN + 0x400;
    let mut engines = Engines { plain: Interpreted::translating()?, optimizing: Interpreted::optimizing(0)? };
    let end = engines.plain.run(&case)?;
    assert_eq!(end.registers.rip & !0xfff, CODE_AGAIN);
    assert_eq!(engines.differences(&case)?, Some(Vec::new()));
    Ok(())
}

/// Adds up numbers of tables, by bytes that count down from ECX: of the table at RBX, then of that at RDX, at RSI, at RDI.
#[rustfmt::skip]
const TABLES: &[u8] = &[
    0x41, 0xb8, 4, 0, 0, 0,        // mov r8d, 4
    0x89, 0xc8,                    // mov eax, ecx
    0x44, 0x0f, 0xb6, 0xc8,        // movzx r9d, al
    0x4e, 0x03, 0x14, 0xcb,        // add r10, [rbx+r9*8]
    0x46, 0x01, 0x14, 0x8b,        // add [rbx+r9*4], r10d
    0xff, 0xc8,                    // dec eax
    0x75, 0xf0,                    // jne $-0eh
    0x48, 0x89, 0xd3,              // mov rbx, rdx
    0x48, 0x89, 0xf2,              // mov rdx, rsi
    0x48, 0x89, 0xfe,              // mov rsi, rdi
    0x41, 0xff, 0xc8,              // dec r8d
    0x75, 0xe0,                    // jne $-1eh
];

#[test]
fn tables_are_found_whole_where_they_are_in_one_page_and_elsewhere_too() -> anyhow::Result<()> {
    for tables in
        [[0x100, 0x200, 0xc00, 0x700], [0xff8, 0x100, 0x1800, 0x900], [0x800, 0x801, 0x17fd, 0x1ff0], [0x1, 0xd00, 0x2, 0x800]]
    {
        let mut case = program(MODE_64, &mut Random::new(1)).expect("a program comes of any seed");
        case.code = TABLES.to_vec();
        case.registers.rip = CODE_BASE;
        case.registers.gpr[1] = 300;
        for (register, table) in [3, 2, 6, 7].into_iter().zip(tables) {
            case.registers.gpr[register] = WINDOW_BASE + table;
        }
        for threshold in [0, 8] {
            let mut engines = Engines { plain: Interpreted::translating()?, optimizing: Interpreted::optimizing(threshold)? };
            assert_eq!(engines.differences(&case)?, Some(Vec::new()), "{tables:x?}");
        }
    }
    Ok(())
}

#[test]
#[ignore = "takes minutes; the command is in the file's head"]
fn many_optimized_cases_agree() -> anyhow::Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    run(seed(now), 200_000)
}
