//! Regions as text: blocks with their parameters as headings, one line an instruction, guest states where they are looked at.

use super::super::print::{ParamName, Signed, write_inst};
use super::{Edge, GuestState, Region, Terminator, To};
use crate::ir::{FlagSet, Ty};
use std::fmt::{self, Display, Write};

impl Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, block) in self.blocks.iter().enumerate() {
            write!(f, "b{number}(")?;
            for (at, param) in block.params.iter().enumerate() {
                let inst = self.def(*param);
                let ty = if inst.ty == Ty::Flags { String::new() } else { format!(".{}", inst.ty.name()) };
                let separator = if at == 0 { "" } else { ", " };
                write!(f, "{separator}{param:?}{ty} {}", ParamName(inst.imm, self.slots))?;
            }
            writeln!(f, ") @ {}, {} retired, depth {}, weight {}:", Signed(block.pc), block.retired, block.depth, block.weight)?;
            for value in &block.body {
                let inst = self.def(*value);
                f.write_str("    ")?;
                write_inst(f, value.index(), inst, self.slots)?;
                if let Some(state) = self.snapshot(inst) {
                    f.write_str("  ")?;
                    self.write_state(f, state)?;
                }
                f.write_char('\n')?;
            }
            match &block.end {
                Terminator::Jump(edge) => {
                    f.write_str("    Jump ")?;
                    self.write_edge(f, edge)?;
                }
                Terminator::Branch { condition, taken, not_taken } => {
                    write!(f, "    Branch {condition:?}, ")?;
                    self.write_edge(f, taken)?;
                    f.write_str(", ")?;
                    self.write_edge(f, not_taken)?;
                }
                Terminator::Switch { target, ways, otherwise } => {
                    write!(f, "    Switch {target:?}, ")?;
                    for (pc, edge) in ways {
                        write!(f, "{}: ", Signed(*pc))?;
                        self.write_edge(f, edge)?;
                        f.write_str(", ")?;
                    }
                    self.write_edge(f, otherwise)?;
                }
            }
            f.write_char('\n')?;
        }
        for (number, exit) in self.exits.iter().enumerate() {
            write!(f, "x{number}: {}", exit.op.info().name)?;
            if exit.target.is_some() {
                write!(f, " {:?}", exit.target)?;
            }
            if exit.back != 0 {
                write!(f, " back={}", Signed(exit.back))?;
            }
            if exit.need != FlagSet::all() {
                write!(f, " need={}", exit.need)?;
            }
            f.write_char(' ')?;
            self.write_state(f, &exit.state)?;
            f.write_char('\n')?;
        }
        Ok(())
    }
}

impl Region {
    fn write_edge(&self, f: &mut fmt::Formatter<'_>, edge: &Edge) -> fmt::Result {
        match edge.to {
            To::Block(block) => write!(f, "b{block}(")?,
            To::Exit(exit) => return write!(f, "x{exit}"),
        }
        for (at, arg) in edge.args.iter().enumerate() {
            write!(f, "{}{arg:?}", if at == 0 { "" } else { ", " })?;
        }
        f.write_char(')')
    }

    fn write_state(&self, f: &mut fmt::Formatter<'_>, state: &GuestState) -> fmt::Result {
        write!(f, "[{}", Signed(state.pc))?;
        if state.retired != 0 {
            write!(f, " retired {}", state.retired)?;
        }
        if state.flags.is_some() {
            write!(f, " flags={:?}", state.flags)?;
        }
        for held in self.slots_of(state) {
            write!(f, " {}={:?}", ParamName(held.slot.into(), self.slots), held.value)?;
        }
        f.write_char(']')
    }
}
