//! The interpreter against the host's own CPU: generated cases of single instructions, run by both, compared in registers,
//! defined flags, memory, x87 and SSE state and faults. This is the proof of `engine_translator`'s user-mode instructions.
//!
//! `blocks.rs` compares the interpreter with the evaluator of lifted code in the same way. `native.rs` is the host,
//! `interpret.rs` the interpreter, `generate.rs` makes cases, `compare.rs` says what a difference is, `shrink.rs` makes one
//! small. Every failure is kept as a text file (`case.rs`).
//!
//! * `cargo test -p engine_translator --test differential`: about 200 000 cases.
//! * `cargo test --release -p engine_translator --test differential -- --ignored --nocapture one_million`: the whole proof.
//! * `… ten_million`: all pairs, these and those of `blocks.rs` and `translated.rs`.
//! * `BELLGLASS_SEED=7` repeats a run; `BELLGLASS_CASE=file` with `--ignored replay` runs one kept case.
//! * `BELLGLASS_ENGINE=translator` runs the long proof and replays on the translator, `=chaos` on the translator in chaos mode.
//! * `BELLGLASS_FORM=Fprem` only takes opcodes that start with this.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod blocks;
mod calls;
mod case;
mod chains;
mod compare;
mod generate;
mod interpret;
mod native;
mod optimized;
mod regions;
mod shrink;
mod translated;
mod values;

use case::{Case, MODE_32, MODE_64};
use generate::Form;
use interpret::Interpreted;
use std::{collections::BTreeMap, path::PathBuf, time::Instant};
use values::Random;

/// Failures kept of one form.
const KEPT: usize = 3;

/// What became of one form.
#[derive(Default, Clone)]
struct Tally {
    cases: u64,
    /// Cases that the host finished without a fault, or that cannot but fault.
    completed: u64,
    different: u64,
    kept: Vec<(Case, Vec<String>)>,
}

#[derive(Default)]
struct Report {
    tallies: BTreeMap<Form, Tally>,
    cases: u64,
    lost: u64,
}

impl Report {
    fn add(&mut self, other: Report) {
        self.cases += other.cases;
        self.lost += other.lost;
        for (form, tally) in other.tallies {
            let sum = self.tallies.entry(form).or_default();
            sum.cases += tally.cases;
            sum.completed += tally.completed;
            sum.different += tally.different;
            sum.kept.extend(tally.kept);
        }
    }

    fn different(&self) -> u64 {
        self.tallies.values().map(|tally| tally.different).sum()
    }
}

fn seed(default: u64) -> u64 {
    std::env::var("BELLGLASS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Who is compared with the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Interpreter,
    /// Translated code, from the first execution on.
    Translator,
    /// The same in chaos mode.
    Chaos,
}

impl Engine {
    fn start(self) -> anyhow::Result<Interpreted> {
        match self {
            Self::Interpreter => Interpreted::new(),
            Self::Translator => Interpreted::translating(),
            Self::Chaos => Interpreted::in_chaos(seed(3)),
        }
    }
}

/// The engine for replays and long campaigns.
fn engine() -> anyhow::Result<Engine> {
    match std::env::var("BELLGLASS_ENGINE").as_deref() {
        Ok("translator") => Ok(Engine::Translator),
        Ok("chaos") => Ok(Engine::Chaos),
        Ok("interpreter") | Err(_) => Ok(Engine::Interpreter),
        Ok(other) => anyhow::bail!("no engine {other}"),
    }
}

fn chosen_forms() -> Vec<Form> {
    let only = std::env::var("BELLGLASS_FORM").unwrap_or_default();
    let mut forms = generate::forms(MODE_64);
    forms.extend(generate::forms(MODE_32));
    forms.retain(|form| format!("{:?}", form.code).starts_with(&only));
    forms
}

/// Each form's own seed, so that a form's cases do not depend on the others or on the number of threads.
fn form_seed(seed: u64, form: Form) -> u64 {
    let mut random = Random::new(seed ^ (form.code as u64) << 32 ^ u64::from(form.mode) << 8 ^ form.shape as u64);
    random.u64()
}

/// Runs `per_form` cases of each of `forms`.
fn run_forms(engine: Engine, forms: &[Form], seed: u64, per_form: usize) -> anyhow::Result<Report> {
    let mut native = native::Native::new()?;
    let mut interpreted = engine.start()?;
    let mut report = Report::default();
    let (mut batch_forms, mut batch) = (Vec::new(), Vec::new());
    for form in forms {
        report.tallies.entry(*form).or_default();
        let mut random = Random::new(form_seed(seed, *form));
        let cases = (0..per_form * 4 + 100).filter_map(|_| generate::generate(*form, &mut random)).take(per_form);
        for case in cases {
            batch_forms.push(*form);
            batch.push(case);
            if batch.len() == native::BATCH {
                run_batch(&mut native, &mut interpreted, &batch_forms, &batch, &mut report)?;
                batch_forms.clear();
                batch.clear();
            }
        }
    }
    run_batch(&mut native, &mut interpreted, &batch_forms, &batch, &mut report)?;
    Ok(report)
}

fn run_batch(
    native: &mut native::Native,
    interpreted: &mut interpret::Interpreted,
    forms: &[Form],
    cases: &[Case],
    report: &mut Report,
) -> anyhow::Result<()> {
    for ((form, case), outcome) in forms.iter().zip(cases).zip(native.run(cases)?) {
        let Some(outcome) = outcome else {
            report.lost += 1;
            continue;
        };
        let ours = interpreted.run(case)?;
        report.cases += 1;
        let tally = report.tallies.entry(*form).or_default();
        tally.cases += 1;
        tally.completed += u64::from(outcome.fault.is_none() || outcome.registers.rip != case.registers.rip);
        let differences = compare::differences(case, &outcome, &ours);
        if !differences.is_empty() {
            tally.different += 1;
            if tally.kept.len() < KEPT {
                tally.kept.push((case.clone(), differences));
            }
        }
    }
    Ok(())
}

/// The same on all host CPUs.
fn run_campaign(engine: Engine, seed: u64, per_form: usize) -> anyhow::Result<Report> {
    let forms = chosen_forms();
    let workers = std::thread::available_parallelism().map_or(1, |count| count.get()).min(8);
    let started = Instant::now();
    println!("seed {seed}: {} forms, {per_form} cases each", forms.len());
    let mut report = Report::default();
    let parts: Vec<Vec<Form>> =
        (0..workers).map(|worker| forms.iter().copied().skip(worker).step_by(workers).collect()).collect();
    let results: Vec<anyhow::Result<Report>> = std::thread::scope(|scope| {
        let threads: Vec<_> = parts.iter().map(|part| scope.spawn(|| run_forms(engine, part, seed, per_form))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a worker does not panic")).collect()
    });
    for result in results {
        report.add(result?);
    }
    let seconds = started.elapsed().as_secs_f64();
    print(engine, &report, seconds)?;
    Ok(report)
}

/// Always faulting in user mode, and meant to.
fn only_faults(form: &Form) -> bool {
    use iced_x86::Mnemonic::*;
    let mnemonic = form.code.mnemonic();
    form.code.op_code().is_privileged()
        || matches!(
            mnemonic,
            Ud0 | Ud1
                | Ud2
                | In
                | Out
                | Insb
                | Insw
                | Insd
                | Outsb
                | Outsw
                | Outsd
                | Cli
                | Sti
                | Hlt
                | Lgdt
                | Lidt
                | Lldt
                | Ltr
                | Lmsw
                | Clts
                | Invlpg
                | Invd
                | Wbinvd
                | Rdmsr
                | Wrmsr
                | Swapgs
                | Xsetbv
        )
}

/// Keeps a case as a file.
fn keep(name: &str, case: &Case) -> anyhow::Result<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("differential");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{name}.case"));
    std::fs::write(&path, case.to_text())?;
    Ok(path)
}

fn print(engine: Engine, report: &Report, seconds: f64) -> anyhow::Result<()> {
    let covered = |(form, tally): &(&Form, &Tally)| tally.completed > 0 || tally.cases > 0 && only_faults(form);
    let (total, done) = (report.tallies.len(), report.tallies.iter().filter(covered).count());
    println!(
        "{} cases in {seconds:.1} s ({:.0} a second), {} lost; {done} of {total} forms covered ({:.2} %)",
        report.cases,
        report.cases as f64 / seconds,
        report.lost,
        100.0 * done as f64 / total as f64,
    );
    let uncovered: Vec<String> = report
        .tallies
        .iter()
        .filter(|entry| !covered(entry))
        .map(|(form, _)| format!("{:?}/{}/{:?}", form.code, form.mode, form.shape))
        .collect();
    if !uncovered.is_empty() {
        println!("not covered: {}", uncovered.join(" "));
    }
    let different: Vec<_> = report.tallies.iter().filter(|(_, tally)| tally.different != 0).collect();
    println!("{} differences in {} forms", report.different(), different.len());
    for (form, tally) in different {
        println!("{:?} in {}-bit code, {:?}: {} of {}", form.code, form.mode, form.shape, tally.different, tally.cases);
        for (number, (case, differences)) in tally.kept.iter().enumerate() {
            let (case, differences) =
                if number == 0 { shrink::shrink(engine, case, differences)? } else { (case.clone(), differences.clone()) };
            let path = keep(&format!("{:?}-{}-{:?}-{number}", form.code, form.mode, form.shape), &case)?;
            println!("  {} (kept in {})", compare::text(&case), path.display());
            for line in &differences {
                println!("    {line}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_interpreter_does_what_the_host_does() -> anyhow::Result<()> {
    let report = run_campaign(Engine::Interpreter, seed(1), 52)?;
    assert_eq!(report.different(), 0, "see the list above; each case is kept as a file");
    assert!(report.lost * 1000 <= report.cases, "the native child lost {} cases", report.lost);
    Ok(())
}

#[test]
fn the_translator_does_what_the_host_does() -> anyhow::Result<()> {
    let report = run_campaign(Engine::Translator, seed(2), 52)?;
    assert_eq!(report.different(), 0, "see the list above; each case is kept as a file");
    assert!(report.lost * 1000 <= report.cases, "the native child lost {} cases", report.lost);
    Ok(())
}

#[test]
fn the_translator_in_chaos_does_what_the_host_does() -> anyhow::Result<()> {
    let report = run_campaign(Engine::Chaos, seed(3), 12)?;
    assert_eq!(report.different(), 0, "see the list above; each case is kept as a file");
    Ok(())
}

#[test]
#[ignore = "takes minutes; the command is in the file's head"]
fn one_million_cases_agree() -> anyhow::Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let report = run_campaign(engine()?, seed(now), 280)?;
    assert_eq!(report.different(), 0, "see the list above; each case is kept as a file");
    Ok(())
}

/// All pairs: the host with the interpreter, the translator and the translator in chaos, instruction by instruction; the
/// interpreter with the evaluator of lifted code and with both translators, block by block.
#[test]
#[ignore = "takes half an hour; the command is in the file's head"]
fn ten_million_cases_agree() -> anyhow::Result<()> {
    let seed = seed(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs());
    let started = Instant::now();
    let mut cases = 0;
    let mut different = Vec::new();
    let forms = chosen_forms().len().max(1);
    for (engine, wanted) in [(Engine::Interpreter, 2_500_000), (Engine::Translator, 2_500_000), (Engine::Chaos, 1_500_000)] {
        let report = run_campaign(engine, seed ^ engine as u64, wanted / forms + 1)?;
        cases += report.cases;
        different.push((format!("host and {engine:?}"), report.different()));
    }
    let (blocks, differences) = blocks::run(seed, 600_000)?;
    cases += blocks;
    different.push(("interpreter and evaluator".to_owned(), differences));
    for (engine, each) in [(Engine::Translator, 500_000), (Engine::Chaos, 250_000)] {
        let (blocks, differences) = translated::run(engine, seed, each)?;
        cases += blocks;
        different.push((format!("interpreter and {engine:?}"), differences));
    }
    println!("seed {seed}: {cases} cases of all pairs in {:.0} s", started.elapsed().as_secs_f64());
    different.iter().for_each(|(pair, count)| println!("  {pair}: {count} differences"));
    assert!(different.iter().all(|(_, count)| *count == 0), "see the lists above; each case is kept as a file");
    assert!(cases >= 10_000_000 || forms < 1000, "only {cases} cases");
    Ok(())
}

#[test]
#[ignore = "needs a kept case in BELLGLASS_CASE"]
fn replay() -> anyhow::Result<()> {
    let path = std::env::var("BELLGLASS_CASE")?;
    let case = Case::from_text(&std::fs::read_to_string(path)?)?;
    println!("{}", compare::text(&case));
    let differences = shrink::differences_of(engine()?, &case)?;
    for line in &differences {
        println!("  {line}");
    }
    assert!(differences.is_empty(), "the interpreter and the host disagree");
    Ok(())
}
