//! The optimising tier's code against that of tier 1, which the interpreter has been compared with: blocks of all kinds and of
//! vectors, and programs of several blocks with loops; some of it in chaos and disturbed all the time. What is compared is all
//! but flags that some instruction of the case leaves undefined.
//!
//! * `cargo test -p engine_translator --test differential optimized`: about 45 000 cases.
//! * `cargo test --release -p engine_translator --test differential -- --ignored --nocapture many_optimized`: the whole proof.

use crate::blocks::{blocks, differences, text, vector_blocks};
use crate::case::{Case, MODE_64};
use crate::interpret::Interpreted;
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
            scope.spawn(|| campaign(programs(seed), Interpreted::optimizing()?)),
            scope.spawn(|| campaign(blocks(seed, 64, each), Interpreted::optimizing()?)),
            scope.spawn(|| campaign(vector_blocks(seed, 64, each), Interpreted::optimizing()?)),
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

#[test]
#[ignore = "takes minutes; the command is in the file's head"]
fn many_optimized_cases_agree() -> anyhow::Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    run(seed(now), 200_000)
}
