//! The code of a region as text, for golden tests: with labels where jumps lead, and with ways out that only say what they are.

use super::{Frame, Home, Ways, emit};
use crate::host::x64::asm::{Asm, R};
use crate::ir::region::{Exit, Region};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Formatter, Instruction, NasmFormatter};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What leaves the region puts this and a pc into RAX; then comes RET.
const BAIL: u64 = 0xba11_0000;
const POLL: u64 = 0x9011_0000;
const EXIT: u64 = 0xe417_0000;

struct Marks;

impl Marks {
    fn mark(asm: &mut Asm, what: u64, pc: u64) {
        asm.set(R::Ax, what | pc & 0xffff);
        asm.ret();
    }
}

impl Ways for Marks {
    fn bail(&mut self, asm: &mut Asm, pc: u64) {
        Self::mark(asm, BAIL, pc);
    }
    fn poll(&mut self, asm: &mut Asm, pc: u64) {
        Self::mark(asm, POLL, pc);
    }
    fn exit(&mut self, asm: &mut Asm, exit: &Exit) {
        Self::mark(asm, EXIT, exit.state.pc);
    }
}

/// A region's code where slot n is in `registers[n]`, or else in memory.
pub(crate) fn text(region: &Region, registers: &[R]) -> String {
    let home = |slot: usize| Some(Home { register: registers.get(slot).copied(), memory: 8 * slot as i32 });
    let frame = Frame {
        homes: (0..region.slots.len()).map(home).collect(),
        flags: 0x200,
        countdown: 0x208,
        interval: 100,
        retired: 0x220,
        cells: 0x400,
        cell_count: 64,
        attention: 0x210,
        page: 0x218,
        gather: 0x300,
        bmi2: false,
        tables: [0x1000, 0x5000],
        refills: [0x10_0000, 0x10_0100],
    };
    let code = match emit(region, &frame, || (Asm::new(0), Marks)) {
        Ok((asm, _)) => asm.finish(),
        Err(why) => return format!("refused: {why}\n"),
    };
    let mut decoder = Decoder::with_ip(64, &code, 0, DecoderOptions::NONE);
    let instructions: Vec<Instruction> = decoder.iter().collect();
    let branches = |of: &Instruction| {
        matches!(of.flow_control(), FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch)
            .then(|| of.near_branch_target())
    };
    let mut targets: Vec<u64> = instructions.iter().filter_map(branches).collect();
    targets.sort_unstable();
    targets.dedup();
    let labels: BTreeMap<u64, usize> = targets.into_iter().zip(1..).collect();
    let mut text = String::new();
    for instruction in &instructions {
        if let Some(number) = labels.get(&instruction.ip()) {
            writeln!(text, "l{number}:").expect("a string takes everything");
        }
        let mut line = String::new();
        NasmFormatter::new().format(instruction, &mut line);
        if let Some(label) = branches(instruction).and_then(|target| labels.get(&target)) {
            let name = line.split(' ').next().unwrap_or_default().to_owned();
            line = format!("{name} l{label}");
        }
        writeln!(text, "    {line}").expect("a string takes everything");
    }
    text
}
