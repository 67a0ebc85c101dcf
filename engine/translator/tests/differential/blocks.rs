//! The interpreter against the evaluator of lifted code: whole blocks, compared in every bit of what they leave, undefined
//! flags included, and in how many instructions retired. The evaluator bails at random, so that each snapshot is used; accesses
//! fault at any instruction of a block.
//!
//! * `cargo test -p engine_translator --test differential blocks`: about 40 000 blocks and one case of each form.
//! * `cargo test --release -p engine_translator --test differential -- --ignored --nocapture a_million_blocks`: the whole proof.
//! * `BELLGLASS_SEED` and `BELLGLASS_FORM` as in `main.rs`.

use crate::{
    case::{CODE_BASE, Case, Outcome, WINDOW_BASE},
    chosen_forms, form_seed,
    generate::{self, Form},
    interpret::Interpreted,
    keep, seed,
    values::Random,
};
use engine_translator::{Evaluation, EvaluationUnit};
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Formatter, Instruction, NasmFormatter, OpCodeOperandKind, OpKind, Register,
};
use std::time::Instant;

/// Random bails of 256 chances, from none to many.
const BAILS: [u8; 4] = [0, 2, 16, 96];

/// The data segments of 32-bit code.
#[derive(Clone, Copy)]
enum Segments {
    Flat,
    Odd,
}

struct Engines {
    interpreter: Interpreted,
    evaluators: Vec<Interpreted>,
}

impl Engines {
    fn new(segments: Segments) -> anyhow::Result<Self> {
        let prepared = |engine: Interpreted| match segments {
            Segments::Flat => engine,
            Segments::Odd => engine.with_odd_segments(),
        };
        let evaluators = BAILS
            .iter()
            .map(|&bails| Interpreted::evaluating(Evaluation { seed: 0x5eed, bails, unit: EvaluationUnit::Block }).map(prepared))
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self { interpreter: prepared(Interpreted::new()?), evaluators })
    }

    /// The differences of one of the evaluators.
    fn differences(&mut self, case: &Case, evaluator: usize) -> anyhow::Result<Vec<String>> {
        let expected = self.interpreter.run(case)?;
        let evaluator = &mut self.evaluators[evaluator % BAILS.len()];
        let found = evaluator.run(case)?;
        let mut lines = differences(&expected, &found);
        if self.interpreter.retired != evaluator.retired {
            lines.push(format!("retired: {} and {}", self.interpreter.retired, evaluator.retired));
        }
        Ok(lines)
    }
}

/// What two engines must agree in: everything.
pub fn differences(expected: &Outcome, found: &Outcome) -> Vec<String> {
    let mut lines = Vec::new();
    let mut differ = |what: String, a: u128, b: u128| {
        if a != b {
            lines.push(format!("{what}: interpreter {a:x}, evaluator {b:x}"));
        }
    };
    let (a, b) = (&expected.registers, &found.registers);
    for (i, (a, b)) in a.gpr.iter().zip(&b.gpr).enumerate() {
        differ(format!("gpr {i}"), (*a).into(), (*b).into());
    }
    differ("rip".into(), a.rip.into(), b.rip.into());
    differ("rflags".into(), a.rflags.into(), b.rflags.into());
    for (i, (a, b)) in a.fx.0.chunks(16).zip(b.fx.0.chunks(16)).enumerate() {
        let number = |bytes: &[u8]| u128::from_le_bytes(bytes.try_into().expect("sixteen bytes"));
        differ(format!("fx + {:x}", 16 * i), number(a), number(b));
    }
    for (i, (a, b)) in a.ymm_high.iter().zip(&b.ymm_high).enumerate() {
        differ(format!("ymm{i} high"), *a, *b);
    }
    for (i, (a, b)) in expected.window.chunks(8).zip(found.window.chunks(8)).enumerate() {
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes")).into();
        differ(format!("window + {:x}", 8 * i), number(a), number(b));
    }
    if expected.fault != found.fault {
        lines.push(format!("fault: interpreter {:?}, evaluator {:?}", expected.fault, found.fault));
    }
    lines
}

/// The block as text, one line an instruction.
pub fn text(case: &Case) -> String {
    let mut lines = String::new();
    let mut decoder = Decoder::with_ip(case.mode, &case.code, case.registers.rip, DecoderOptions::NONE);
    let mut formatter = NasmFormatter::new();
    while decoder.can_decode() {
        let at = decoder.ip();
        let instruction = decoder.decode();
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        lines += &format!("    {at:x} {line}\n");
    }
    lines
}

/// Instructions that most programs consist of.
fn is_common(form: &Form) -> bool {
    use CpuidFeature as F;
    form.code
        .cpuid_features()
        .iter()
        .all(|feature| matches!(feature, F::INTEL8086 | F::INTEL186 | F::INTEL386 | F::INTEL486 | F::X64 | F::CMOV | F::POPCNT))
}

/// How many instructions a block has: some, or so many that it is several blocks for the translator.
#[derive(Clone, Copy)]
enum Length {
    Short,
    Long,
}

/// A block: the instructions of several generated cases behind each other, with moves between that put addresses into the
/// registers that the next one wants them in.
fn block(pools: [&[Form]; 2], length: Length, random: &mut Random) -> Option<Case> {
    let pick = |random: &mut Random| {
        let pool = pools[usize::from(random.chance(15))];
        random.pick(pool)
    };
    let mut whole = generate::generate(pick(random), random)?;
    whole.registers.rip = CODE_BASE + if random.chance(8) { 0xfd0 + random.below(48) } else { 0x800 + random.below(16) };
    whole.registers.rflags &= !(1 << 18);
    let (instructions, bytes) = match length {
        Length::Short => (1 + random.below(9), 240),
        Length::Long => (30 + random.below(50), 1200),
    };
    for _ in 0..instructions {
        let next = generate::generate(pick(random), random)?;
        if whole.code.len() + next.code.len() + 40 > bytes {
            break;
        }
        let instruction = Decoder::with_ip(next.mode, &next.code, next.registers.rip, DecoderOptions::NONE).decode();
        for register in [instruction.memory_base(), instruction.memory_index(), implied(&instruction)] {
            if register.is_gpr() && random.chance(85) {
                let number = register.full_register().number();
                load_register(&mut whole.code, next.mode, number, next.registers.gpr[number]);
            }
        }
        whole.code.extend(&next.code);
    }
    goes_forward(&whole).then_some(whole)
}

/// A register that the instruction addresses memory by without saying so.
fn implied(instruction: &Instruction) -> Register {
    if instruction.is_stack_instruction() {
        return Register::RSP;
    }
    match instruction.op_kind(0) {
        OpKind::MemoryESRDI | OpKind::MemoryESEDI => Register::RDI,
        OpKind::MemorySegRSI | OpKind::MemorySegESI => Register::RSI,
        _ => Register::None,
    }
}

/// MOV register, immediate.
fn load_register(code: &mut Vec<u8>, mode: u32, number: usize, value: u64) {
    if mode == crate::case::MODE_64 {
        code.extend([0x48 | (number >> 3) as u8, 0xb8 | (number & 7) as u8]);
        code.extend(value.to_le_bytes());
    } else {
        code.push(0xb8 | (number & 7) as u8);
        code.extend((value as u32).to_le_bytes());
    }
}

/// Whether no branch leads back into the block: it would run for ever.
fn goes_forward(case: &Case) -> bool {
    let (start, end) = (case.registers.rip, case.registers.rip + case.code.len() as u64);
    if end > CODE_BASE + crate::case::CODE_BYTES as u64 {
        return false;
    }
    let mut decoder = Decoder::with_ip(case.mode, &case.code, start, DecoderOptions::NONE);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.op_count() > 0 && (start..end).contains(&instruction.near_branch_target()) {
            return false;
        }
    }
    // Pages of the window must not be where the code writes itself.
    case.registers.gpr.iter().all(|value| *value < CODE_BASE || *value >= WINDOW_BASE)
}

/// Cuts instructions off the end, and registers' contents, as long as the engines differ.
fn shrunk(engines: &mut Engines, case: &Case, evaluator: usize) -> anyhow::Result<(Case, Vec<String>)> {
    let mut best = (case.clone(), engines.differences(case, evaluator)?);
    let mut ends = Vec::new();
    let mut decoder = Decoder::with_ip(case.mode, &case.code, case.registers.rip, DecoderOptions::NONE);
    while decoder.can_decode() {
        decoder.decode_out(&mut Instruction::default());
        ends.push(decoder.position());
    }
    for end in ends {
        let mut shorter = case.clone();
        shorter.code.truncate(end);
        let found = engines.differences(&shorter, evaluator)?;
        if !found.is_empty() {
            best = (shorter, found);
            break;
        }
    }
    Ok(best)
}

/// Compares and tells; gives how many were different.
fn campaign(segments: Segments, cases: impl Iterator<Item = Case>) -> anyhow::Result<(u64, u64)> {
    let mut engines = Engines::new(segments)?;
    let (mut count, mut different) = (0u64, 0);
    for case in cases {
        let evaluator = count as usize;
        count += 1;
        let found = engines.differences(&case, evaluator)?;
        if found.is_empty() {
            continue;
        }
        different += 1;
        if different <= 5 {
            // Random bails may not fall the same way again: then the block is shown whole.
            let (case, again) = shrunk(&mut engines, &case, evaluator)?;
            let lines = if again.is_empty() { found } else { again };
            println!("{}-bit code, {} of 256 bails:\n{}  {}", case.mode, BAILS[evaluator % 4], text(&case), lines.join("\n  "));
            println!("  kept in {}", keep(&format!("lifted-{}-{different}", case.mode), &case)?.display());
        }
    }
    Ok((count, different))
}

pub fn blocks(seed: u64, mode: u32, count: usize) -> impl Iterator<Item = Case> {
    let forms: Vec<Form> = chosen_forms().into_iter().filter(|form| form.mode == mode).collect();
    let common: Vec<Form> = forms.iter().copied().filter(is_common).collect();
    let mut random = Random::new(seed ^ u64::from(mode) << 32);
    std::iter::repeat_with(move || block([if common.is_empty() { &forms } else { &common }, &forms], Length::Short, &mut random))
        .flatten()
        .take(count)
}

/// Blocks of instructions on XMM registers and of loads and stores of MXCSR, with others between them.
pub fn vector_blocks(seed: u64, mode: u32, count: usize) -> impl Iterator<Item = Case> {
    let forms: Vec<Form> = chosen_forms().into_iter().filter(|form| form.mode == mode).collect();
    let is_vector = |form: &Form| {
        use CpuidFeature as F;
        let features = form.code.cpuid_features();
        let of_sse = |feature: &F| matches!(feature, F::SSE | F::SSE2 | F::SSE3 | F::SSSE3 | F::SSE4_1 | F::SSE4_2);
        features.iter().any(|feature| of_sse(feature) || matches!(feature, F::AVX | F::AVX2 | F::FMA | F::F16C))
    };
    let mut vectors: Vec<Form> = forms.iter().copied().filter(is_vector).collect();
    let controls: Vec<Form> =
        forms.iter().copied().filter(|form| matches!(form.code, Code::Ldmxcsr_m32 | Code::Stmxcsr_m32)).collect();
    // About one instruction in fourteen.
    let more = vectors.len() / 14;
    vectors.extend(controls.into_iter().cycle().take(more));
    let mut random = Random::new(seed ^ u64::from(mode) << 32 ^ 1 << 48);
    std::iter::repeat_with(move || {
        block([if vectors.is_empty() { &forms } else { &vectors }, &forms], Length::Short, &mut random)
    })
    .flatten()
    .take(count)
}

/// Runs of x87 and MMX instructions, short and long, with vector and other instructions between them.
pub fn x87_blocks(seed: u64, mode: u32, count: usize) -> impl Iterator<Item = Case> {
    use CpuidFeature as F;
    let forms: Vec<Form> = chosen_forms().into_iter().filter(|form| form.mode == mode).collect();
    let pool = |wanted: &dyn Fn(&Form) -> bool| forms.iter().copied().filter(wanted).collect::<Vec<Form>>();
    let is_x87 = |form: &Form| {
        form.code.cpuid_features().iter().any(|feature| matches!(feature, F::FPU | F::FPU287 | F::FPU387))
            || matches!(form.code, Code::Fisttp_m16int | Code::Fisttp_m32int | Code::Fisttp_m64int)
    };
    let is_mmx = |form: &Form| {
        let op_code = form.code.op_code();
        let operands = [op_code.op0_kind(), op_code.op1_kind()];
        operands
            .iter()
            .any(|kind| matches!(kind, OpCodeOperandKind::mm_reg | OpCodeOperandKind::mm_rm | OpCodeOperandKind::mm_or_mem))
    };
    let is_vector = |form: &Form| form.code.cpuid_features().iter().any(|feature| matches!(feature, F::SSE | F::SSE2));
    // Several times, so that one unit's instructions follow each other and the other's come between.
    let (x87, mmx, vectors, common) = (pool(&is_x87), pool(&is_mmx), pool(&is_vector), pool(&is_common));
    let mut mixed: Vec<Form> = x87.iter().chain(&x87).chain(&x87).chain(&mmx).copied().collect();
    for (others, parts) in [(vectors, 10), (common, 6)] {
        let more = mixed.len() / parts;
        mixed.extend(others.into_iter().cycle().step_by(7).take(more));
    }
    let mut random = Random::new(seed ^ u64::from(mode) << 32 ^ 1 << 49);
    std::iter::repeat_with(move || {
        let length = if random.chance(40) { Length::Long } else { Length::Short };
        block([if mixed.is_empty() { &forms } else { &mixed }, &forms], length, &mut random)
    })
    .flatten()
    .take(count)
}

pub fn run(seed: u64, each: usize) -> anyhow::Result<(u64, u64)> {
    let started = Instant::now();
    let results: Vec<anyhow::Result<(u64, u64)>> = std::thread::scope(|scope| {
        let parts = [(32, Segments::Flat, each * 3 / 4), (32, Segments::Odd, each / 4), (64, Segments::Flat, each)];
        let threads: Vec<_> = parts
            .into_iter()
            .map(|(mode, segments, count)| {
                let seed = seed ^ (segments as u64) << 40;
                scope.spawn(move || campaign(segments, blocks(seed, mode, count)))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a campaign does not panic")).collect()
    });
    let (mut count, mut different) = (0, 0);
    for result in results {
        let (cases, differences) = result?;
        (count, different) = (count + cases, different + differences);
    }
    println!("seed {seed}: {count} blocks, {different} differences, {:.1} s", started.elapsed().as_secs_f64());
    Ok((count, different))
}

#[test]
fn blocks_do_what_the_interpreter_does() -> anyhow::Result<()> {
    assert_eq!(run(seed(1), 20_000)?.1, 0, "see the list above");
    Ok(())
}

#[test]
fn blocks_of_one_instruction_of_every_form_do_what_the_interpreter_does() -> anyhow::Result<()> {
    let seed = seed(1);
    let cases = chosen_forms().into_iter().flat_map(|form| {
        let mut random = Random::new(form_seed(seed, form));
        (0..40).filter_map(move |_| generate::generate(form, &mut random)).take(8).collect::<Vec<_>>()
    });
    let (count, different) = campaign(Segments::Flat, cases)?;
    println!("seed {seed}: {count} cases, {different} differences");
    assert_eq!(different, 0, "see the list above");
    Ok(())
}

/// ADD r32, imm32 again and again, and between them MOVs to memory that change the immediates of those that follow (or came
/// before), in the same block.
fn self_modifying(random: &mut Random) -> Case {
    let mut case = None;
    while case.is_none() {
        let form = Form { code: Code::Nopd, mode: crate::case::MODE_64, shape: generate::Shape::Register };
        case = generate::generate(form, random);
    }
    let mut case = case.expect("the loop ends with a case");
    case.registers.rip = CODE_BASE + if random.chance(30) { 0xf80 + random.below(128) } else { 0x800 };
    case.code.clear();
    let (steps, add_bytes, store_bytes) = (3 + random.below(8), 6, 10);
    for _ in 0..steps {
        // add r32, imm32, not ESP: 81 /0 id
        case.code.extend([0x81, 0xc0 | random.pick(&[0, 1, 2, 3, 5, 6, 7])]);
        case.code.extend((random.u64() as u32).to_le_bytes());
        // mov dword [rip+to], imm32: C7 /0 id
        let next = case.code.len() as u64 + store_bytes;
        let to = random.below(steps) * (add_bytes + store_bytes) + 2;
        case.code.extend([0xc7, 0x05]);
        case.code.extend((to.wrapping_sub(next) as u32).to_le_bytes());
        case.code.extend((random.u64() as u32).to_le_bytes());
    }
    case
}

#[test]
fn blocks_that_modify_themselves_do_what_the_interpreter_does() -> anyhow::Result<()> {
    let mut random = Random::new(seed(1));
    let (count, different) = campaign(Segments::Flat, (0..2000).map(|_| self_modifying(&mut random)))?;
    println!("{count} self-modifying blocks, {different} differences");
    assert_eq!(different, 0, "see the list above");
    Ok(())
}

#[test]
#[ignore = "takes minutes; the command is in the file's head"]
fn a_million_blocks_agree() -> anyhow::Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    assert_eq!(run(seed(now), 500_000)?.1, 0, "see the list above");
    Ok(())
}
