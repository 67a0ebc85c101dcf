//! Memory operands off the same base register share a look at the TLB: the first of them asks for the page of all, and keeps
//! what turns its linear addresses into host addresses in the CPU (`t1.pages`); the others find it there. Where all of them do
//! not lie in one page, or the page is not to be had for all, each asks for itself, out of the way.
//!
//! Who finds the page kept can do so without touching the host's flags, where these are the guest's and not easily had again:
//! that is what long additions are made of.
//!
//! What is kept holds to the end of the block, as long as the register does: a mapping changes only by instructions that end
//! the block or that are interpreted in it, behind which nothing is kept; and what other CPUs want revoked waits for this one's
//! next poll.

use super::bits;
use super::block::is_plain;
use super::emit::{Emitter, FlagsAt, Source, emit_load_flags, emit_save_flags, field, state};
use super::recipe::written_registers;
use crate::guest::x86::cpu::seg;
use crate::guest::x86::op::NO_REGISTER;
use crate::host::x64::asm::{Cond, Label, Mem, R, W};
use crate::host::x64::vectors::Residency;
use iced_x86::{Mnemonic, OpKind};

/// How many instructions are looked at for more operands.
const AHEAD: usize = 32;
/// Most bytes from the first of the operands to the last: who asks for more meets a page's end more often.
const SPAN: i32 = 256;

/// Operands off one register.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    /// Distances from the register: the first byte, and the one behind the last.
    low: i32,
    high: i32,
    /// One of them is written.
    write: bool,
}

/// The groups of a block at one of its instructions, by the number of the base register.
pub(super) type Groups = [Option<Group>; 16];

/// An operand whose group found no page: asks for itself.
pub(super) struct Alone {
    label: Label,
    back: Label,
    cold: Label,
    /// Where it is.
    at: Mem,
    bytes: u8,
    write: bool,
    class: u8,
    /// It is the first of its group: the others are told.
    tell: Option<Mem>,
    /// The guest's flags are in the host's alone, and wanted there.
    keeps_flags: bool,
}

/// Whether a memory operand's probe is all that touches the host's flags in an instruction that does not write them, or reads
/// and writes just one.
fn leaves_flags(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Mov | Movzx | Movsx | Movsxd | Mulx | Adcx | Adox | Rorx | Sarx | Shlx | Shrx)
}

/// A memory operand's base register, distance, size and whether it may be written: of those that can be in a group.
fn operand(source: &Source) -> Option<(u8, i32, i32, bool)> {
    let (op, instruction) = (&source.op, &source.instruction);
    let native = is_plain(instruction) || source.vectors != Residency::Nothing || bits::is_native(source);
    if !op.has_memory() || !native || source.interpreted || instruction.mnemonic() == Mnemonic::Lea {
        return None;
    }
    let plain =
        op.base != NO_REGISTER && op.index == NO_REGISTER && op.address_shift == 0 && !instruction.is_ip_rel_memory_operand();
    if !plain || matches!(op.segment, seg::FS | seg::GS) {
        return None;
    }
    let bytes = i32::try_from(instruction.memory_size().size()).ok().filter(|bytes| *bytes > 0)?;
    let reads = matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Bt | Mnemonic::Push);
    let write = !reads && (instruction.op_kind(0) == OpKind::Memory || instruction.mnemonic() == Mnemonic::Xchg);
    Some((op.base, i32::try_from(op.disp as i64).ok()?, bytes, write))
}

impl Group {
    /// The group that begins with instruction `at`, if there are others to share with.
    fn plan(sources: &[Source], at: usize, base: u8, bytes: i32, write: bool) -> Option<Self> {
        let (_, low, _, _) = operand(&sources[at])?;
        let mut group = Self { low, high: low.checked_add(bytes)?, write };
        let mut others = 0;
        for pair in sources[at..].windows(2).take(AHEAD) {
            if written_registers(&pair[0]).is_none_or(|written| written >> base & 1 != 0) {
                break;
            }
            if let Some((register, disp, bytes, write)) = operand(&pair[1])
                && register == base
                && let Some(end) = disp.checked_add(bytes)
            {
                let (low, high) = (group.low.min(disp), group.high.max(end));
                if high.checked_sub(low).is_some_and(|span| span <= SPAN) {
                    group = Self { low, high, write: group.write | write };
                    others += 1;
                }
            }
        }
        (others > 0).then_some(group)
    }

    fn covers(&self, disp: i32, bytes: i32, write: bool) -> bool {
        disp >= self.low && disp.checked_add(bytes).is_some_and(|end| end <= self.high) && (self.write || !write)
    }
}

impl Emitter<'_> {
    /// The current instruction's memory operand as one of a group. Nothing is written if it is in none.
    pub fn grouped(&mut self, write: bool, bytes: u8) -> Option<Mem> {
        if !self.wide {
            return None;
        }
        let (base, disp, _, _) = operand(self.source())?;
        let register = self.pinned(base)?;
        let known = self.groups[usize::from(base)].filter(|group| group.covers(disp, bytes.into(), write));
        let first = match known {
            Some(_) => None,
            None => Some(Group::plan(self.sources, self.at, base, bytes.into(), write)?),
        };
        let keeps_flags = known.is_some() && leaves_flags(self.source().instruction.mnemonic()) && self.has_flags_once();
        let flags = self.flags;
        if keeps_flags {
            // Whoever comes to the cold path has saved them.
            self.flags = FlagsAt::State;
        } else {
            self.spoil_flags();
        }
        let (cold, alone, back) = (self.cold_path(), self.asm.label(), self.asm.label());
        let kept = state(field!(t1.pages) + 8 * i32::from(base));
        if let Some(group) = first {
            let from = match group.low {
                0 => register,
                low => {
                    self.asm.lea(W::B8, R::Ax, Mem::at(register, low));
                    R::Ax
                }
            };
            self.look(group.write, group.high - group.low, 1, alone, from);
            self.asm.mov(W::B8, kept, R::Cx);
            self.groups[usize::from(base)] = Some(group);
        } else {
            self.asm.load(W::B8, R::Cx, kept);
            if keeps_flags {
                self.flags = flags;
                self.asm.jump_if_no_rcx(alone);
            } else {
                self.asm.test(W::B8, R::Cx, R::Cx);
                self.asm.jcc(Cond::E, alone);
            }
        }
        self.asm.bind(back);
        let (at, class, tell) = (Mem::at(register, disp), self.class(), first.map(|_| kept));
        self.alones.push(Alone { label: alone, back, cold, at, bytes, write, class, tell, keeps_flags });
        Some(Mem { base: R::Cx, index: Some((register, 0)), disp })
    }

    /// Behind the current instruction: groups go whose register it may have written.
    pub fn forget_groups(&mut self) {
        let written = written_registers(self.source()).unwrap_or(u16::MAX);
        for (number, group) in self.groups.iter_mut().enumerate() {
            if written >> number & 1 != 0 {
                *group = None;
            }
        }
    }

    /// Writes what operands do that ask for themselves.
    pub fn write_alones(&mut self) {
        for alone in std::mem::take(&mut self.alones) {
            self.asm.bind(alone.label);
            if let Some(kept) = alone.tell {
                self.asm.mov_imm(W::B8, kept, 0);
            }
            if alone.keeps_flags {
                emit_save_flags(&mut self.asm);
            }
            self.set_class(alone.class);
            self.asm.lea(W::B8, R::Ax, alone.at);
            self.look(alone.write, alone.bytes.into(), 1, alone.cold, R::Ax);
            if alone.keeps_flags {
                emit_load_flags(&mut self.asm);
            }
            self.asm.jmp(alone.back);
        }
    }
}
