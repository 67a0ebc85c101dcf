//! System semantics, proven by guests: each file in `guests/` is a ROM image for a bare machine (RAM, port E9h, isa-debug-exit) that
//! checks one topic from the inside and prints `PASS name` or `FAIL name got … want …`. The same images run under QEMU
//! (`-bios`), which is how their expectations were checked where QEMU itself is exact.
//! They are assembled by nasm when it is there; without it the tests say so and pass.

mod board;

use board::Machine;
use engine_translator::{Chaos, Evaluation, EvaluationUnit, Interpreter, Tier2Options, TranslatorOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long a guest may take; each needs well under a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// Assembles a guest; `None` where there is no nasm.
fn assemble(name: &str) -> Option<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/system/guests");
    let image: PathBuf = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.bin"));
    let run = Command::new("nasm")
        .current_dir(&folder)
        .args(["-f", "bin", "-w-prefix-seg", "-o"])
        .arg(&image)
        .arg(format!("{name}.asm"))
        .output();
    match run {
        Ok(output) => {
            assert!(output.status.success(), "{name}.asm: {}", String::from_utf8_lossy(&output.stderr));
            Some(std::fs::read(&image).expect("nasm has written it"))
        }
        Err(error) => {
            println!("skipped: {name} needs nasm to be assembled ({error})");
            None
        }
    }
}

/// Runs a guest on `cpus` CPUs of `model`, "max,hv-time", and asserts that it came to its end and all of its checks passed.
fn passes(name: &str, cpus: u32, model: &str) {
    let Some(image) = assemble(name) else { return };
    let mut words = model.split(',');
    let model = words.next().unwrap_or_default();
    let features: Vec<&str> = words.collect();
    let runs = |name: &str, machine: Machine| runs(name, machine.with(&features));
    runs(name, Machine::new(&image, cpus, model, true, Interpreter::new));
    // The same by lifted code, with a bail at every eighth chance.
    let evaluation = Evaluation { seed: 1, bails: 32, unit: EvaluationUnit::Block };
    runs(name, Machine::new(&image, cpus, model, true, |memory| Interpreter::evaluating(memory, evaluation)));
    // And by translated code, from the first execution on.
    let options = TranslatorOptions { hot: 0, ..TranslatorOptions::default() };
    runs(name, Machine::new(&image, cpus, model, false, |memory| Interpreter::translating(memory, options)));
    // The same where everything that is rare happens all the time.
    let options = TranslatorOptions { code_bytes: 0, chaos: Some(Chaos::from_seed(1)), ..options };
    runs(name, Machine::new(&image, cpus, model, false, |memory| Interpreter::translating(memory, options)));
    // And both with the optimising tier, which compiles everything at once.
    let tier2 = Some(Tier2Options { threshold: 0, background: false });
    let options = TranslatorOptions { hot: 0, tier2, ..TranslatorOptions::default() };
    runs(name, Machine::new(&image, cpus, model, false, |memory| Interpreter::translating(memory, options)));
    let options = TranslatorOptions { code_bytes: 8 << 20, chaos: Some(Chaos::from_seed(2)), ..options };
    runs(name, Machine::new(&image, cpus, model, false, |memory| Interpreter::translating(memory, options)));
}

fn runs(name: &str, machine: Machine) {
    let outcome = machine.run(PATIENCE);
    let failed: Vec<&str> = outcome.text.lines().filter(|line| !line.starts_with("PASS ")).collect();
    let passed = outcome.text.lines().filter(|line| line.starts_with("PASS ")).count();
    println!("{name}: {passed} checks passed");
    let last = outcome.text.lines().rfind(|line| line.starts_with("PASS ")).unwrap_or("nothing");
    assert_eq!(failed, ["DONE"], "{name}: {passed} checks passed, last “{last}”; the CPU said {:?}", outcome.ends);
    assert!(passed > 0);
}

macro_rules! guests {
    ($($test:ident: $name:literal, $cpus:literal, $model:literal;)*) => {
        $(
            #[test]
            fn $test() {
                passes($name, $cpus, $model);
            }
        )*
    };
}

guests! {
    exceptions_of_32_bit_code_have_their_error_codes: "exceptions32", 1, "max";
    gates_and_privilege_levels_in_32_bit_code: "gates32", 1, "max";
    tasks_switch_in_every_way: "tasks", 1, "max";
    virtual_8086_mode_is_fenced_in: "vm86", 1, "max";
    paging_of_32_bit_code_in_every_mode: "paging32", 1, "max";
    long_mode_and_its_own_rules: "long", 1, "max";
    the_local_apic_of_one_cpu: "apic", 1, "qemu64";
    four_level_paging: "paging64", 1, "max";
    real_and_unreal_mode: "real", 1, "qemu64";
    debug_registers_and_single_steps: "debug", 1, "qemu64";
    code_that_changes_runs_as_it_is_now: "selfmod", 1, "max";
    returns_to_where_something_else_is_now: "returns", 1, "max";
    code_that_another_cpu_changes: "selfmod_smp", 2, "max";
    a_loop_that_another_cpu_changes: "selfmod_loop", 2, "max";
    two_cpus_start_and_talk: "smp", 2, "qemu64";
    four_cpus_start_and_talk: "smp", 4, "qemu64";
    kvms_interface: "paravirt_kvm", 1, "qemu64";
    microsofts_interface: "paravirt_hyperv", 1,
        "max,hv-vapic,hv-time,hv-vpindex,hv-frequencies,hv-crash,hv-synic,hv-stimer,hv-stimer-direct,hv-tlbflush,hv-ipi";
}
