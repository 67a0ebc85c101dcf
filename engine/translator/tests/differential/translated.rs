//! The interpreter against translated code: the generated blocks of `blocks.rs`, compared in all they leave but flags that are
//! undefined then, and in how many instructions retired. Blocks that look at undefined flags are left out: translated code has
//! the host's.
//!
//! * `cargo test -p engine_translator --test differential translated`: about 120 000 blocks, a third of them of SSE
//!   instructions, a third of x87 and MMX.
//! * `cargo test --release -p engine_translator --test differential -- --ignored --nocapture a_million_translated`: the whole proof.

use crate::blocks::{blocks, differences, text, vector_blocks, x87_blocks};
use crate::case::{Case, MODE_64, Outcome, WINDOW_BASE};
use crate::chains::chains;
use crate::generate::{Form, Shape, generate};
use crate::interpret::Interpreted;
use crate::values::Random;
use crate::{Engine, engine, keep, seed};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, RflagsBits};
use std::time::Instant;

/// Places of the six arithmetic flags in RFLAGS.
const PLACES: [(u32, u64); 6] = [
    (RflagsBits::CF, 1),
    (RflagsBits::PF, 1 << 2),
    (RflagsBits::AF, 1 << 4),
    (RflagsBits::ZF, 1 << 6),
    (RflagsBits::SF, 1 << 7),
    (RflagsBits::OF, 1 << 11),
];

/// Flags that an instruction leaves undefined, for any of its operands.
fn undefined(instruction: &Instruction) -> u32 {
    use Mnemonic::*;
    let mut flags = instruction.rflags_undefined();
    if is_shift(instruction) {
        // OF behind counts other than 1, and CF when everything has been shifted out.
        flags |= RflagsBits::OF;
        if !matches!(instruction.mnemonic(), Rol | Ror | Rcl | Rcr) {
            flags |= RflagsBits::AF | RflagsBits::CF;
        }
    }
    flags
}

fn is_shift(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    let last = instruction.op_count().saturating_sub(1);
    let by_one = instruction.op_kind(last) == OpKind::Immediate8 && instruction.immediate8() == 1;
    matches!(instruction.mnemonic(), Rol | Ror | Rcl | Rcr | Shl | Sal | Shr | Sar | Shld | Shrd) && !by_one
}

/// RFLAGS bits that any instruction of a case leaves undefined, whatever way it takes. `None`: another may look at such a flag,
/// or a result is undefined.
pub fn undefined_anywhere(case: &Case) -> Option<u64> {
    let decoder = || Decoder::with_ip(case.mode, &case.code, case.registers.rip, DecoderOptions::NONE);
    let anywhere = decoder().iter().fold(0, |flags, instruction| flags | undefined(&instruction));
    let targets: Vec<u64> = decoder()
        .iter()
        .filter(|instruction| instruction.op_count() > 0)
        .map(|instruction| instruction.near_branch_target())
        .collect();
    // A way into the middle of an instruction leads to others, of which nothing is known here.
    let starts: Vec<u64> = decoder().iter().map(|instruction| instruction.ip()).collect();
    let inside = case.registers.rip..case.registers.rip + case.code.len() as u64;
    if targets.iter().any(|target| inside.contains(target) && !starts.contains(target)) {
        return None;
    }
    // An indirect jump may lead to any of them; a call may come back.
    let jumps = decoder().iter().any(|instruction| instruction.flow_control() == FlowControl::IndirectBranch);
    let (mut flags, mut is_behind_call) = (0, false);
    for instruction in decoder().iter() {
        if jumps || is_behind_call || targets.contains(&instruction.ip()) {
            flags = anywhere;
        }
        is_behind_call = matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
        let narrow = matches!(instruction.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd) && instruction.op1_register().size() == 2;
        if instruction.rflags_read() & flags != 0 || narrow {
            return None;
        }
        if !is_shift(&instruction) {
            flags &= !(instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set());
        }
        flags |= undefined(&instruction);
    }
    Some(PLACES.iter().filter(|(flag, _)| anywhere & flag != 0).map(|(_, place)| place).sum())
}

/// RFLAGS bits that are undefined when the case ends where `outcome` says. `None`: an instruction before that looks at such flags.
fn undefined_at_end(case: &Case, outcome: &Outcome) -> Option<u64> {
    let mut decoder = Decoder::with_ip(case.mode, &case.code, case.registers.rip, DecoderOptions::NONE);
    // Branches never lead back into the block: it ends behind one of them, or at its end, or at a fault.
    let (mut flags, mut at_branches) = (0, 0);
    while decoder.can_decode() && decoder.ip() != outcome.registers.rip {
        let instruction = decoder.decode();
        let stores_flags = matches!(instruction.code(), Code::Int3 | Code::Into | Code::Int1);
        if instruction.rflags_read() & flags != 0 || (stores_flags && flags != 0) {
            return None;
        }
        // A repeated comparison of nothing leaves all flags as they were.
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        if !is_shift(&instruction) && !repeated {
            flags &= !(instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set());
        }
        flags |= undefined(&instruction);
        if instruction.flow_control() != FlowControl::Next {
            at_branches |= flags;
        }
    }
    flags |= at_branches;
    Some(PLACES.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, place)| place).sum())
}

fn campaign(engine: Engine, cases: impl Iterator<Item = Case>) -> anyhow::Result<(u64, u64)> {
    let (mut interpreter, mut translator) = (Interpreted::new()?, engine.start()?);
    interpreter.approaches = true;
    let mut compare = |case: &Case| -> anyhow::Result<Option<Vec<String>>> {
        let mut expected = interpreter.run(case)?;
        let Some(undefined) = undefined_at_end(case, &expected) else { return Ok(None) };
        let mut found = translator.run(case)?;
        expected.registers.rflags &= !undefined;
        found.registers.rflags &= !undefined;
        let mut lines = differences(&expected, &found);
        if interpreter.retired != translator.retired {
            lines.push(format!("retired: {} and {}", interpreter.retired, translator.retired));
        }
        Ok(Some(lines))
    };
    let (mut count, mut different) = (0u64, 0);
    for case in cases {
        let Some(lines) = compare(&case)? else { continue };
        count += 1;
        if lines.is_empty() {
            continue;
        }
        different += 1;
        if different <= 5 {
            let mut best = (case.clone(), lines);
            let mut decoder = Decoder::with_ip(case.mode, &case.code, case.registers.rip, DecoderOptions::NONE);
            while decoder.can_decode() {
                decoder.decode_out(&mut Instruction::default());
                let mut shorter = case.clone();
                shorter.code.truncate(decoder.position());
                if let Some(lines) = compare(&shorter)?.filter(|lines| !lines.is_empty()) {
                    best = (shorter, lines);
                    break;
                }
            }
            println!("{}-bit code:\n{}  {}", case.mode, text(&best.0), best.1.join("\n  "));
            println!("  kept in {}", keep(&format!("{engine:?}-{}-{different}", case.mode), &best.0)?.display());
        }
    }
    Ok((count, different))
}

pub fn run(engine: Engine, seed: u64, each: usize) -> anyhow::Result<(u64, u64)> {
    let started = Instant::now();
    let cases = |mode| blocks(seed, mode, each).chain(vector_blocks(seed, mode, each)).chain(x87_blocks(seed, mode, each));
    let results: Vec<anyhow::Result<(u64, u64)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = [32, 64].map(|mode| scope.spawn(move || campaign(engine, cases(mode)))).into_iter().collect();
        threads.into_iter().map(|thread| thread.join().expect("a campaign does not panic")).collect()
    });
    let (mut count, mut different) = (0, 0);
    for result in results {
        let (cases, differences) = result?;
        (count, different) = (count + cases, different + differences);
    }
    println!("seed {seed}: {count} blocks on {engine:?}, {different} differences, {:.1} s", started.elapsed().as_secs_f64());
    assert!(count > each as u64, "most blocks were left out");
    Ok((count, different))
}

/// RCL of a byte by 27 is three times around: it neither reads nor writes a flag. Before it stand flags that are to be had again
/// only by way of RAX, which holds its address.
#[rustfmt::skip]
const AROUND: &[u8] = &[
    0x81, 0xeb, 0xe1, 0x80, 0xf4, 0x13,              // sub ebx, 13f480e1h
    0x8b, 0x16,                                      // mov edx, [rsi]
    0x67, 0xc0, 0x94, 0x4e, 0x10, 0, 0, 0, 27,       // rcl byte [esi+ecx*2+10h], 27
    0x41, 0xf7, 0xc1, 0x20, 0x20, 0x20, 0x20,        // test r9d, 20202020h
];

#[test]
fn a_rotation_all_around_with_the_carry_is_none() -> anyhow::Result<()> {
    let mut random = Random::new(1);
    let form = Form { code: Code::Nopd, mode: MODE_64, shape: Shape::Register };
    let mut case = generate(form, &mut random).expect("a case comes of any seed");
    case.code = AROUND.to_vec();
    (case.registers.gpr[1], case.registers.gpr[6]) = (3, WINDOW_BASE + 0x100);
    assert_eq!(campaign(Engine::Translator, [case].into_iter())?, (1, 0));
    Ok(())
}

#[test]
fn translated_blocks_do_what_the_interpreter_does() -> anyhow::Result<()> {
    assert_eq!(run(Engine::Translator, seed(1), 20_000)?.1, 0, "see the list above");
    Ok(())
}

#[test]
fn translated_blocks_in_chaos_do_what_the_interpreter_does() -> anyhow::Result<()> {
    assert_eq!(run(Engine::Chaos, seed(4), 10_000)?.1, 0, "see the list above");
    Ok(())
}

#[test]
fn long_additions_do_what_the_interpreter_does() -> anyhow::Result<()> {
    assert_eq!(campaign(Engine::Translator, chains(seed(5), 20_000))?.1, 0, "see the list above");
    assert_eq!(campaign(Engine::Chaos, chains(seed(6), 10_000))?.1, 0, "see the list above");
    Ok(())
}

#[test]
#[ignore = "takes minutes; the command is in the file's head"]
fn a_million_translated_blocks_agree() -> anyhow::Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    assert_eq!(run(engine()?, seed(now), 500_000)?.1, 0, "see the list above");
    Ok(())
}
