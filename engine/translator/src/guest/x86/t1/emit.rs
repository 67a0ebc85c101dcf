//! The frame in which one block is written: where guest registers and flags are, memory operands with their TLB probe, calls
//! into the interpreter, ways out.
//!
//! # Flags
//! The guest's six arithmetic flags are the host's own while they can be ([`FlagsAt::Host`]), and otherwise packed in the CPU's
//! state ([`FlagsAt::State`]): LAHF's byte in bits 8–15, OF in bit 0. At every block's start and end they are in the state.
//! Whoever is about to spoil the host's flags calls [`Emitter::spoil_flags`], which saves them if anybody still wants them: a
//! later instruction of the block, whatever follows the block, or the frame of a fault that this or a later instruction may
//! raise.

use super::block::{BlockInfo, Heat, Link, Relative, Site, Sites, leave};
use super::flow::Target;
use super::jumps::{self, Jump};
use super::pages::{Alone, Groups};
use super::recipe::Recipe;
use super::x87::{self, Note, emit_note};
use crate::guest::x86::cpu::{Span, reg, seg};
use crate::guest::x86::op::{NO_REGISTER, Op, OpFlags};
use crate::host::x64::asm::{Alu, Asm, Cond, Label, Mem, R, Rm, W, X};
use crate::host::x64::refill;
use crate::host::x64::stubs::{PINNED, Stubs};
use crate::host::x64::vectors::Residency;
use crate::mmu::{read_table, write_table};
use crate::watch::tally::Cause;
use iced_x86::{Instruction, OpKind, Register, RflagsBits};
use std::mem::offset_of;
use std::sync::atomic::AtomicI32;

/// All six arithmetic flags, as iced names them.
pub(super) const ALL_FLAGS: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// The distance of a field of [`Cpu`] from its start.
macro_rules! field {
    ($($path:tt)+) => { std::mem::offset_of!($crate::guest::x86::cpu::Cpu, $($path)+) as i32 };
}
pub(super) use field;

/// `[RBP + distance]`
pub(super) fn state(distance: i32) -> Mem {
    Mem::at(R::Bp, distance)
}

/// The packed flags.
pub(super) fn packed_flags() -> Mem {
    state(field!(t1.flags))
}

/// Their byte that is LAHF's.
pub(super) fn packed_high() -> Mem {
    state(field!(t1.flags) + 1)
}

// XMM registers are accessed by MOVAPS.
const _: () = assert!(offset_of!(crate::guest::x86::cpu::Cpu, fpu.xmm) % 16 == 0);

/// One guest instruction of the block.
pub(super) struct Source {
    pub op: Op,
    pub instruction: Instruction,
    /// Its first byte in the page.
    pub start: u32,
    /// The byte behind it; 4096 at the page's end, more if it ends in the next one.
    pub next: u32,
    /// What a native vector instruction wants to be resident: see `vector.rs`.
    pub vectors: Residency,
    /// It is executed on the host's x87: see `x87.rs`.
    pub x87: bool,
    /// Flags that somebody wants behind it.
    pub live_after: u32,
    /// Flags that somebody wants before it.
    pub live_before: u32,
    /// It is left to the interpreter on purpose (chaos mode).
    pub interpreted: bool,
}

/// Where the guest's flags are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FlagsAt {
    /// Packed in the state (or wanted by nobody).
    State,
    /// In the host's flags; `saved`: in the state as well.
    Host { saved: bool },
    /// Nowhere, and wanted by nobody but the frame of a fault: cold paths compute them again.
    Again(Recipe),
}

/// An operand of a guest instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operand {
    Reg(u8),
    /// AH, CH, DH, BH: of register 0–3.
    High(u8),
    Mem,
    Imm(i64),
    /// A segment, control, vector … register.
    Other,
}

/// A piece of code out of the way: has the interpreter execute the instruction, then goes on behind it.
struct Cold {
    label: Label,
    resume: Label,
    /// One instruction, or several that follow each other.
    sites: Vec<*const Site>,
    /// How to get the flags, if they are not in the state.
    recipe: Option<Recipe>,
    /// The hot path has the flags in the host's.
    load_flags: bool,
    /// Vector registers are to be resident behind the instruction.
    fill_vectors: bool,
    /// What has yet to be noted of x87 instructions before.
    note: Option<Note>,
    /// Vector registers that the hot path has spoilt, and where they are kept.
    undo: Vec<(X, Mem)>,
    /// The site always leaves the block.
    leaves: bool,
}

/// A probe that has missed asks for the page to be entered, out of the way.
struct Miss {
    label: Label,
    /// RCX has what makes the host address of a linear one.
    found: Label,
    /// The page is not to be had like this; no register but RCX and RDX has changed.
    otherwise: Label,
    kind: usize,
}

/// Translated code is left, out of the way.
struct Exit {
    label: Label,
    /// The place to go on at is in RAX; it goes to RIP.
    at_ax: bool,
    reason: u32,
}

/// A look-up that does not find its target in the usual slot.
struct Elsewhere {
    label: Label,
    found: Label,
    miss: Label,
    key: u8,
}

/// The way of a branch that is taken, where the block goes on behind it: out of the way.
struct Side {
    label: Label,
    at: usize,
    flags: FlagsAt,
    key: u8,
    target: Target,
}

/// A block being written.
pub(super) struct Emitter<'a> {
    pub asm: Asm,
    stubs: Stubs,
    /// 64-bit code.
    pub wide: bool,
    /// The host has BMI2.
    rorx: bool,
    /// The mode's key; its class of accesses may change within the block.
    key: u8,
    /// The offset in CS of the page's first byte, where the block was decoded.
    pub page: u64,
    pub sources: &'a [Source],
    /// Which of them is being translated.
    pub at: usize,
    pub flags: FlagsAt,
    /// How many instructions there are up to the last that uses vector registers: until then they are resident, those that any
    /// of them wants.
    vectors_until: usize,
    vectors: Residency,
    /// Where that is done at the block's start if it is to be done, and what comes behind.
    fill: Option<(Label, Label)>,
    /// How many instructions there are up to the last that uses the x87: until then its state is in the host.
    x87_until: usize,
    /// Where it is brought there at the block's start, what comes behind, and how.
    x87_fill: Option<(Label, Label, *const Site)>,
    /// What has yet to be noted of the last x87 instruction.
    pub note: Option<Note>,
    info: *const BlockInfo,
    /// How to compute the host's flags again, and whether that is known.
    recipe: Option<(Recipe, usize)>,
    cold: Vec<Cold>,
    misses: Vec<Miss>,
    exits: Vec<Exit>,
    sides: Vec<Side>,
    /// See `pages.rs`.
    pub groups: Groups,
    pub alones: Vec<Alone>,
    /// Index in `cold` at which those of the current instruction start.
    cold_start: usize,
    pub links: Vec<Link>,
    pub sites: Sites,
    first_link: u32,
    /// After how many jumps back a loop is hot, if anybody wants to know.
    threshold: Option<u32>,
    pub heats: Vec<Heat>,
    first_heat: u32,
    /// Where loops that have become hot leave, and the numbers of their counters.
    hot: Vec<(Label, u32)>,
    elsewheres: Vec<Elsewhere>,
}

impl<'a> Emitter<'a> {
    /// A block of `sources` for mode `key`, to be executed at `base`; its links are numbered from `first_link`.
    pub fn new(
        base: u64,
        stubs: Stubs,
        key: u8,
        page: u64,
        sources: &'a [Source],
        info: *const BlockInfo,
        first_link: u32,
    ) -> Self {
        Self {
            asm: Asm::new(base),
            stubs,
            wide: key & super::WIDE != 0,
            rorx: std::is_x86_feature_detected!("bmi2"),
            key,
            page,
            sources,
            at: 0,
            flags: FlagsAt::State,
            vectors_until: sources.iter().rposition(|source| source.vectors != Residency::Nothing).map_or(0, |at| at + 1),
            vectors: sources.iter().map(|source| source.vectors).max().unwrap_or(Residency::Nothing),
            fill: None,
            x87_until: sources.iter().rposition(|source| source.x87).map_or(0, |at| at + 1),
            x87_fill: None,
            note: None,
            info,
            recipe: None,
            cold: Vec::new(),
            misses: Vec::new(),
            exits: Vec::new(),
            sides: Vec::new(),
            groups: [None; 16],
            alones: Vec::new(),
            cold_start: 0,
            links: Vec::new(),
            sites: Vec::new(),
            first_link,
            threshold: None,
            heats: Vec::new(),
            first_heat: 0,
            hot: Vec::new(),
            elsewheres: Vec::new(),
        }
    }

    /// Jumps back are to be counted, by counters numbered from `first`.
    pub fn count_heat(&mut self, threshold: Option<u32>, first: u32) {
        (self.threshold, self.first_heat) = (threshold.filter(|_| self.wide), first);
    }

    /// The instruction being translated.
    pub fn source(&self) -> &'a Source {
        &self.sources[self.at]
    }

    /// The class of the block's accesses to memory.
    pub fn class(&self) -> u8 {
        self.key & super::CLASS
    }

    /// What is written from here on is for accesses of this class.
    pub fn set_class(&mut self, class: u8) {
        self.key = self.key & !super::CLASS | class;
    }

    /// Accesses to memory are of another class from here on.
    pub fn change_class(&mut self, class: u8) {
        self.set_class(class);
        // What was allowed may not be any more.
        self.groups = [None; 16];
        self.asm.mov_imm(W::B1, state(field!(tlb_class)), class.into());
        self.asm.mov_imm(W::B1, state(field!(t1.key)), self.key.into());
    }

    /// The width of addresses and of the instruction pointer.
    pub fn pointer(&self) -> W {
        if self.wide { W::B8 } else { W::B4 }
    }

    // ---- Flags -------------------------------------------------------------------------------------------------

    /// The host's flags are about to be lost. Spoils RAX if it saves.
    pub fn spoil_flags(&mut self) {
        if self.source().live_before == 0 {
            self.flags = FlagsAt::State;
        } else if self.has_flags_once() {
            self.save_flags();
            self.flags = FlagsAt::State;
        } else if self.flags == (FlagsAt::Host { saved: false }) {
            self.flags = self.recipe.map_or(FlagsAt::State, |(recipe, _)| FlagsAt::Again(recipe));
        } else if self.flags == (FlagsAt::Host { saved: true }) {
            self.flags = FlagsAt::State;
        }
    }

    /// Whether the guest's flags are in the host's alone, and whoever spoils them must save them.
    pub fn has_flags_once(&self) -> bool {
        let lasts = |(recipe, made): (Recipe, usize)| recipe.lasts(self.sources, made, self.at);
        self.flags == FlagsAt::Host { saved: false } && self.source().live_before != 0 && !self.recipe.is_some_and(lasts)
    }

    /// Saves the guest's flags if they are not saved yet; if they are in the host's they stay there too. Spoils RAX.
    pub fn save_flags(&mut self) {
        if let FlagsAt::Again(recipe) = self.flags {
            recipe.emit(&mut self.asm);
            self.flags = FlagsAt::Host { saved: false };
        }
        if self.flags == (FlagsAt::Host { saved: false }) {
            emit_save_flags(&mut self.asm);
            self.flags = FlagsAt::Host { saved: true };
        }
    }

    /// Where the flags are computed again, they are wanted now.
    fn settle_flags(&mut self) {
        if matches!(self.flags, FlagsAt::Again(_)) {
            self.save_flags();
        }
    }

    /// All guest flags are in the host's. Spoils RAX.
    pub fn load_flags(&mut self) {
        self.settle_flags();
        if self.flags == FlagsAt::State {
            emit_load_flags(&mut self.asm);
            self.flags = FlagsAt::Host { saved: true };
        }
    }

    /// CF is in the host's; the others may be lost.
    pub fn load_carry(&mut self) {
        self.settle_flags();
        if self.flags == FlagsAt::State {
            self.asm.bit_imm(4, W::B2, packed_flags(), 8);
        }
    }

    /// The next host instruction writes the flags in `written` and keeps the others: whichever of those somebody wants are in the
    /// host's now. Spoils RAX.
    pub fn keep_flags(&mut self, written: u32) {
        match self.source().live_after & !written {
            0 => {}
            RflagsBits::CF => self.load_carry(),
            _ => self.load_flags(),
        }
    }

    /// Whether [`Emitter::keep_flags`] would spoil RAX.
    pub fn keeps_by_load(&self, written: u32) -> bool {
        let wanted = self.source().live_after & !written;
        match self.flags {
            FlagsAt::State => !matches!(wanted, 0 | RflagsBits::CF),
            FlagsAt::Again(_) => wanted != 0,
            FlagsAt::Host { .. } => false,
        }
    }

    /// The last host instruction has set the guest's flags.
    pub fn wrote_flags(&mut self) {
        self.flags = FlagsAt::Host { saved: false };
        self.recipe = None;
    }

    /// The same, and they can be computed again like this as long as its registers are what they are now.
    pub fn wrote_flags_by(&mut self, recipe: Option<Recipe>) {
        self.wrote_flags();
        self.recipe = recipe.map(|recipe| (recipe, self.at));
    }

    // ---- x87 and vectors ---------------------------------------------------------------------------------------

    /// At the block's start, before vector registers: the x87 state is brought to the host if the block uses it. The guest's
    /// flags are in the state.
    pub fn want_x87(&mut self) {
        if self.x87_until != 0 {
            let (fill, resume) = (self.asm.label(), self.asm.label());
            self.asm.alu_imm(Alu::Cmp, W::B1, state(field!(t1.x87_in_host)), 0);
            self.asm.jcc(Cond::E, fill);
            self.asm.bind(resume);
            let mut site = self.new_site(Cause::RareCase);
            // It comes before the first instruction.
            (site.next, site.behind) = (site.start, site.behind + 1);
            (site.op.handler, site.flags, site.leaves, site.holds_x87) = (x87::nothing, false, false, true);
            let site = self.keep(site);
            self.x87_fill = Some((fill, resume, site));
        }
    }

    /// Whether an instruction behind the current one uses the x87.
    fn wants_x87_behind(&self) -> bool {
        self.at + 1 < self.x87_until
    }

    /// What is noted of x87 instructions goes to the state. Keeps flags; spoils RAX.
    pub fn settle(&mut self) {
        if let Some(note) = self.note.take() {
            let pointer = self.pointer();
            emit_note(&mut self.asm, note, pointer);
        }
    }

    /// At the block's start: vector registers become resident if the block uses any. The guest's flags are in the state.
    pub fn want_vectors(&mut self) {
        if self.vectors_until != 0 {
            let (fill, resume) = (self.asm.label(), self.asm.label());
            self.asm.alu_imm(Alu::Cmp, W::B1, state(field!(t1.vectors_resident)), self.vectors as i32);
            self.asm.jcc(Cond::B, fill);
            self.asm.bind(resume);
            self.fill = Some((fill, resume));
        }
    }

    fn fill_vectors(&mut self) {
        let stub = if self.vectors == Residency::Ymm { self.stubs.fill_ymm } else { self.stubs.fill_xmm };
        self.asm.call_to(stub);
    }

    /// Whether an instruction behind the current one uses vector registers.
    fn wants_vectors_behind(&self) -> bool {
        self.at + 1 < self.vectors_until
    }

    // ---- Registers and operands --------------------------------------------------------------------------------

    /// The host register that holds a guest register.
    pub fn pinned(&self, number: u8) -> Option<R> {
        PINNED.get(usize::from(number)).copied()
    }

    /// Where a guest register is kept in the state.
    pub fn slot(&self, number: u8) -> Mem {
        state(field!(gpr) + 8 * i32::from(number))
    }

    /// Operand `at` of the current instruction.
    pub fn operand(&self, at: u32) -> Operand {
        let instruction = &self.source().instruction;
        match instruction.op_kind(at) {
            OpKind::Register => match instruction.op_register(at) {
                Register::AH => Operand::High(0),
                Register::CH => Operand::High(1),
                Register::DH => Operand::High(2),
                Register::BH => Operand::High(3),
                register if register.is_gpr() => Operand::Reg(register.full_register().number() as u8),
                _ => Operand::Other,
            },
            OpKind::Memory => Operand::Mem,
            OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => Operand::Imm(instruction.immediate(at) as i64),
            _ => Operand::Other,
        }
    }

    /// The width of operand `at`, if it is a general register or memory.
    pub fn width(&self, at: u32) -> Option<W> {
        let instruction = &self.source().instruction;
        match instruction.op_kind(at) {
            OpKind::Register => W::of(instruction.op_register(at).size()),
            OpKind::Memory => W::of(instruction.memory_size().size()),
            _ => None,
        }
    }

    /// A register operand's value in a host register: its own, or `scratch`.
    pub fn value(&mut self, operand: Operand, scratch: R) -> R {
        match operand {
            Operand::Reg(number) => match self.pinned(number) {
                Some(reg) => reg,
                None => {
                    let slot = self.slot(number);
                    self.asm.load(W::B8, scratch, slot);
                    scratch
                }
            },
            Operand::High(number) => {
                self.asm.mov(W::B8, scratch, PINNED[usize::from(number)]);
                self.asm.movzx(W::B1, scratch, Rm::High(scratch));
                scratch
            }
            _ => unreachable!("only registers have values"),
        }
    }

    /// A register operand as what an instruction reads from.
    pub fn readable(&mut self, operand: Operand, scratch: R) -> Rm {
        match operand {
            Operand::Reg(number) => match self.pinned(number) {
                Some(reg) => reg.into(),
                None => self.slot(number).into(),
            },
            _ => self.value(operand, scratch).into(),
        }
    }

    /// A register operand as what an instruction changes: its own register, or RDX with its old value. [`Emitter::commit`] follows.
    pub fn writable(&mut self, operand: Operand) -> Rm {
        match operand {
            Operand::Reg(number) => match self.pinned(number) {
                Some(reg) => reg.into(),
                None => {
                    let slot = self.slot(number);
                    self.asm.load(W::B8, R::Dx, slot);
                    R::Dx.into()
                }
            },
            Operand::High(number) => {
                self.asm.mov(W::B8, R::Dx, PINNED[usize::from(number)]);
                Rm::High(R::Dx)
            }
            _ => unreachable!("only registers are changed"),
        }
    }

    /// A register operand that is written without being read, all 64 bits of it: its own register, or RDX. [`Emitter::commit`]
    /// follows.
    pub fn whole(&self, number: u8) -> R {
        self.pinned(number).unwrap_or(R::Dx)
    }

    /// Puts what [`Emitter::writable`] gave back to where it belongs.
    pub fn commit(&mut self, operand: Operand) {
        match operand {
            Operand::Reg(number) if self.pinned(number).is_none() => {
                let slot = self.slot(number);
                self.asm.mov(W::B8, slot, R::Dx);
            }
            Operand::High(number) => self.asm.mov(W::B8, PINNED[usize::from(number)], R::Dx),
            _ => {}
        }
    }

    // ---- Memory ------------------------------------------------------------------------------------------------

    /// The operand's address as a host address form, if all registers are pinned and nothing else is needed.
    pub fn plain_address(&self) -> Option<Mem> {
        let source = self.source();
        let op = &source.op;
        if source.instruction.is_ip_rel_memory_operand() || op.base == NO_REGISTER {
            return None;
        }
        let disp = self.displacement()?;
        let base = self.pinned(op.base)?;
        let index = match op.index {
            NO_REGISTER => None,
            number => Some((self.pinned(number)?, op.scale)),
        };
        Some(Mem { base, index, disp })
    }

    fn displacement(&self) -> Option<i32> {
        let op = &self.source().op;
        if op.address_shift == 32 { Some(op.disp as i32) } else { i32::try_from(op.disp as i64).ok() }
    }

    /// The width of the memory operand's address: nothing for 16-bit ones, which are left to the interpreter.
    pub fn address_width(&self) -> Option<W> {
        match self.source().op.address_shift {
            0 => Some(W::B8),
            32 => Some(W::B4),
            _ => None,
        }
    }

    /// Puts the offset that the memory operand names into RAX; spoils RCX. Keeps flags. Says `None` (and writes nothing) for
    /// what it does not know.
    pub fn address(&mut self) -> Option<()> {
        let w = self.address_width()?;
        if let Some(mem) = self.plain_address() {
            self.asm.lea(w, R::Ax, mem);
            return Some(());
        }
        let source = self.source();
        let op = &source.op;
        if source.instruction.is_ip_rel_memory_operand() {
            let distance = i32::try_from(op.disp.wrapping_sub(self.page) as i64).ok()?;
            if w != W::B8 {
                return None;
            }
            self.asm.load(W::B8, R::Ax, state(field!(t1.page_base)));
            self.asm.lea(W::B8, R::Ax, Mem::at(R::Ax, distance));
            return Some(());
        }
        let index = (op.index != NO_REGISTER).then_some(op.index);
        if op.base == NO_REGISTER {
            let absolute = if w == W::B4 { u64::from(op.disp as u32) } else { op.disp };
            self.asm.set(R::Ax, absolute);
            if let Some(number) = index {
                let index = self.value(Operand::Reg(number), R::Cx);
                self.asm.lea(w, R::Ax, Mem { base: R::Ax, index: Some((index, op.scale)), disp: 0 });
            }
            return Some(());
        }
        let disp = self.displacement()?;
        let base = self.value(Operand::Reg(op.base), R::Ax);
        let index = index.map(|number| (self.value(Operand::Reg(number), R::Cx), op.scale));
        self.asm.lea(w, R::Ax, Mem { base, index, disp });
        Some(())
    }

    /// Probes the TLB for the memory operand: the hot path goes on with the operand at the address given, made of RCX and of
    /// RAX or a register that holds a guest's. Spoils RAX, RDX and the host's flags.
    pub fn memory(&mut self, write: bool, bytes: u8) -> Option<Mem> {
        self.operand_memory(write, bytes, 1)
    }

    /// As [`Emitter::memory`], for 16 or 32 bytes that must be aligned: those that are not are the cold path's.
    pub fn aligned_memory(&mut self, write: bool, bytes: u8) -> Option<Mem> {
        self.operand_memory(write, bytes, bytes)
    }

    fn operand_memory(&mut self, write: bool, bytes: u8, alignment: u8) -> Option<Mem> {
        let segment = self.source().op.segment;
        if !self.wide && segment == seg::CS && write {
            return None;
        }
        self.address_width()?;
        if alignment == 1
            && let Some(mem) = self.grouped(write, bytes)
        {
            return Some(mem);
        }
        self.spoil_flags();
        // A base register alone is the address already.
        let base = self.plain_address().filter(|mem| mem.index.is_none() && mem.disp == 0 && self.address_width() == Some(W::B8));
        // The x87 notes the address, in RAX.
        if let Some(mem) = base.filter(|_| !matches!(segment, seg::FS | seg::GS) && !self.source().x87) {
            let cold = self.cold_path();
            return Some(self.probe_aligned(write, bytes, alignment, cold, mem.base));
        }
        self.address()?;
        Some(self.memory_at_ax(write, bytes, alignment))
    }

    /// The same for the offset in RAX, in the memory operand's segment. The flags are spoilt.
    pub fn memory_at_ax(&mut self, write: bool, bytes: u8, alignment: u8) -> Mem {
        let segment = self.source().op.segment;
        let cold = self.cold_path();
        if matches!(segment, seg::FS | seg::GS) {
            let span = field!(spans) + i32::from(segment) * size_of::<Span>() as i32;
            let base = state(span + offset_of!(Span, base) as i32);
            if self.wide {
                self.asm.alu_load(Alu::Add, W::B8, R::Ax, base);
            } else {
                let end = if write { offset_of!(Span, write_end) } else { offset_of!(Span, read_end) };
                self.asm.lea(W::B8, R::Cx, Mem::at(R::Ax, i32::from(bytes)));
                self.asm.alu_load(Alu::Cmp, W::B8, R::Cx, state(span + end as i32));
                self.asm.jcc(Cond::A, cold);
                self.asm.alu_load(Alu::Add, W::B4, R::Ax, base);
            }
        }
        self.probe_aligned(write, bytes, alignment, cold, R::Ax)
    }

    /// Probes the TLB for `bytes` bytes at the linear address in `at`: a miss goes to `cold`.
    pub fn probe(&mut self, write: bool, bytes: u8, cold: Label, at: R) -> Mem {
        self.probe_aligned(write, bytes, 1, cold, at)
    }

    /// Addresses that are not multiples of `alignment` (1, or `bytes`) miss, because their low bits stay in what is compared.
    fn probe_aligned(&mut self, write: bool, bytes: u8, alignment: u8, cold: Label, at: R) -> Mem {
        self.look(write, bytes.into(), alignment.into(), cold, at);
        Mem::sum(R::Cx, at)
    }

    /// The same: leaves in RCX what makes the host address of a linear one. Spoils RDX and the host's flags, but not RAX. A
    /// page that the second level of the TLB knows is entered, out of the way.
    pub fn look(&mut self, write: bool, bytes: i32, alignment: i32, otherwise: Label, at: R) {
        let (label, found, kind) = (self.asm.label(), self.asm.label(), refill::kind(self.class(), write));
        self.misses.push(Miss { label, found, otherwise, kind });
        let table = if write { write_table(self.class()) } else { read_table(self.class()) } as i32;
        let asm = &mut self.asm;
        if self.rorx {
            asm.rorx(R::Cx, at, 8);
        } else {
            asm.mov(W::B4, R::Cx, at);
            asm.shift_imm(5, W::B4, R::Cx, 8);
        }
        asm.alu_imm(Alu::And, W::B4, R::Cx, 0x3ff0);
        if bytes == alignment {
            asm.mov(W::B8, R::Dx, at);
        } else {
            asm.lea(W::B8, R::Dx, Mem::at(at, bytes - 1));
        }
        asm.alu_imm(Alu::And, W::B8, R::Dx, -4096 | (alignment - 1));
        asm.alu_load(Alu::Cmp, W::B8, R::Dx, Mem { base: R::Bp, index: Some((R::Cx, 0)), disp: table });
        asm.jcc(Cond::NE, label);
        asm.load(W::B8, R::Cx, Mem { base: R::Bp, index: Some((R::Cx, 0)), disp: table + 8 });
        asm.bind(found);
    }

    /// Writes what probes do that have missed.
    fn write_misses(&mut self) {
        for miss in std::mem::take(&mut self.misses) {
            let asm = &mut self.asm;
            asm.bind(miss.label);
            asm.push(R::Cx);
            asm.push(R::Dx);
            asm.call_to(self.stubs.refill[miss.kind]);
            asm.pop(R::Dx);
            asm.pop(R::Cx);
            asm.jcc(Cond::E, miss.found);
            asm.jmp(miss.otherwise);
        }
    }

    /// Probes the TLB for the stack: `bytes` bytes at the stack pointer plus `above`.
    pub fn stack(&mut self, write: bool, bytes: u8, above: i32) -> Mem {
        self.spoil_flags();
        let cold = self.cold_path();
        self.stack_at(write, bytes, above, cold)
    }

    /// The same where the flags are spoilt and a cold path is at hand.
    pub fn stack_at(&mut self, write: bool, bytes: u8, above: i32, cold: Label) -> Mem {
        let (w, sp) = (self.pointer(), PINNED[usize::from(reg::SP)]);
        if above == 0 && w == W::B8 {
            return self.probe(write, bytes, cold, sp);
        }
        self.asm.lea(w, R::Ax, Mem::at(sp, above));
        self.probe(write, bytes, cold, R::Ax)
    }

    /// Moves the stack pointer. Keeps flags.
    pub fn move_stack(&mut self, by: i32) {
        let (w, sp) = (self.pointer(), PINNED[usize::from(reg::SP)]);
        self.asm.lea(w, sp, Mem::at(sp, by));
    }

    // ---- The interpreter ---------------------------------------------------------------------------------------

    /// Whether the block is left when the interpreter has executed the current instruction: it is a transfer, or something that
    /// no trace goes on behind.
    fn leaves(&self) -> bool {
        self.source().op.flags.contains(OpFlags::LAST)
    }

    /// The record with which the interpreter executes the current instruction.
    fn new_site(&self, cause: Cause) -> Site {
        let behind = self.left_in_segment() - 1;
        let source = self.source();
        let instruction = &source.instruction;
        let relative = if instruction.is_ip_rel_memory_operand() {
            Relative::Displacement
        } else if (0..instruction.op_count())
            .any(|at| matches!(instruction.op_kind(at), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64))
        {
            Relative::Target
        } else {
            Relative::Nothing
        };
        Site {
            op: source.op,
            block: self.info,
            page: self.page,
            start: source.start,
            next: source.next,
            behind: behind as u32,
            relative,
            // Interrupts and system calls save the flags, which the tables do not call reading.
            flags: self.leaves() || (instruction.rflags_read() | instruction.rflags_modified()) & ALL_FLAGS != 0,
            leaves: self.leaves(),
            cause,
            touches_x87: x87::touches_x87(instruction),
            holds_x87: self.wants_x87_behind(),
        }
    }

    fn site(&mut self, cause: Cause) -> *const Site {
        let site = self.new_site(cause);
        self.keep(site)
    }

    fn keep(&mut self, site: Site) -> *const Site {
        let site = Box::new(site);
        let at: *const Site = &*site;
        self.sites.push(site);
        at
    }

    /// Instructions from the current one to the next branch, or the end of the block: they are counted as retired together.
    pub fn left_in_segment(&self) -> usize {
        let last = |source: &Source| source.op.flags.contains(OpFlags::LAST);
        let left = &self.sources[self.at..];
        left.iter().position(last).map_or(left.len(), |at| at + 1)
    }

    /// Counts the instructions of a segment.
    pub fn count_retired(&mut self) {
        let (count, retired) = (self.left_in_segment() as i32, state(field!(retired)));
        if matches!(self.flags, FlagsAt::Host { .. }) {
            self.asm.load(W::B8, R::Ax, retired);
            self.asm.lea(W::B8, R::Ax, Mem::at(R::Ax, count));
            self.asm.mov(W::B8, retired, R::Ax);
        } else {
            self.asm.alu_imm(Alu::Add, W::B8, retired, count);
        }
    }

    /// A cold path for the current instruction: the label to jump to, with flags in the state (or to be computed again) and no
    /// register changed.
    pub fn cold_path(&mut self) -> Label {
        self.cold_path_of(1)
    }

    /// The same, where the hot path has spoilt vector registers: they are loaded first.
    pub fn cold_path_with(&mut self, undo: &[(X, Mem)]) -> Label {
        let label = self.cold_path();
        if let Some(cold) = self.cold.last_mut() {
            cold.undo = undo.to_vec();
        }
        label
    }

    /// The same for `count` instructions from the current one on: all of them are interpreted.
    pub fn cold_path_of(&mut self, count: usize) -> Label {
        let recipe = match self.flags {
            FlagsAt::Again(recipe) => Some(recipe),
            flags => {
                debug_assert_eq!(flags, FlagsAt::State);
                None
            }
        };
        let first = self.at;
        let sites = (first..first + count)
            .map(|at| {
                self.at = at;
                self.site(Cause::RareCase)
            })
            .collect();
        self.at = first + count - 1;
        let (leaves, fill_vectors) = (self.leaves(), self.wants_vectors_behind());
        self.at = first;
        let (label, resume) = (self.asm.label(), self.asm.label());
        let note = self.note;
        let undo = Vec::new();
        self.cold.push(Cold { label, resume, sites, recipe, load_flags: false, fill_vectors, note, undo, leaves });
        label
    }

    /// Has the interpreter execute the current instruction, here.
    pub fn interpret(&mut self) {
        self.save_flags();
        self.settle();
        let site = self.site(Cause::NotTranslated);
        self.asm.set_wide(R::Ax, site as u64);
        self.asm.call_to(self.stubs.call);
        if self.wants_vectors_behind() {
            self.fill_vectors();
        }
        self.flags = FlagsAt::State;
        self.groups = [None; 16];
    }

    /// The current instruction is written: its cold paths come back here.
    pub fn end_instruction(&mut self) {
        let in_host = matches!(self.flags, FlagsAt::Host { .. }) && self.source().live_after != 0;
        for cold in &mut self.cold[self.cold_start..] {
            cold.load_flags = in_host;
            self.asm.bind(cold.resume);
        }
        self.cold_start = self.cold.len();
        self.forget_groups();
    }

    /// Writes all cold paths behind the block.
    pub fn write_cold_paths(&mut self) {
        self.write_misses();
        if let Some((fill, resume, site)) = self.x87_fill.take() {
            self.asm.bind(fill);
            self.asm.set_wide(R::Ax, site as u64);
            self.asm.call_to(self.stubs.call);
            self.asm.jmp(resume);
        }
        for (label, number) in std::mem::take(&mut self.hot) {
            self.asm.bind(label);
            self.leave(number << leave::SHIFT | leave::HOT);
        }
        if let Some((fill, resume)) = self.fill.take() {
            self.asm.bind(fill);
            self.fill_vectors();
            self.asm.jmp(resume);
        }
        let pointer = self.pointer();
        for cold in std::mem::take(&mut self.cold) {
            self.asm.bind(cold.label);
            for (register, from) in cold.undo {
                self.asm.load_vector(register, from);
            }
            if let Some(note) = cold.note {
                emit_note(&mut self.asm, note, pointer);
            }
            if let Some(recipe) = cold.recipe {
                recipe.emit(&mut self.asm);
                emit_save_flags(&mut self.asm);
            }
            for site in cold.sites {
                self.asm.set_wide(R::Ax, site as u64);
                self.asm.call_to(self.stubs.call);
            }
            if cold.leaves {
                continue;
            }
            if cold.fill_vectors {
                self.fill_vectors();
            }
            if cold.load_flags {
                emit_load_flags(&mut self.asm);
            }
            self.asm.jmp(cold.resume);
        }
        self.write_exits();
    }

    /// Writes the ways out that have been asked for so far.
    pub fn write_exits(&mut self) {
        self.write_elsewheres();
        for exit in std::mem::take(&mut self.exits) {
            self.asm.bind(exit.label);
            if exit.at_ax {
                self.asm.mov(W::B8, state(field!(rip)), R::Ax);
            }
            self.leave(exit.reason);
        }
    }

    /// Writes the ways of taken branches behind the block.
    pub fn write_sides(&mut self) {
        for side in std::mem::take(&mut self.sides) {
            (self.at, self.flags, self.key) = (side.at, side.flags, side.key);
            self.asm.bind(side.label);
            self.save_flags();
            self.go(side.target);
        }
    }

    // ---- Ways out ----------------------------------------------------------------------------------------------

    /// Leaves translated code with this reason.
    pub fn leave(&mut self, reason: u32) {
        self.asm.set(R::Ax, reason.into());
        let stub = self.stubs.leave;
        self.asm.jmp_to(stub);
    }

    /// Looks at the attention word: if it is wanted, translated code is left and goes on at a place in this page. Spoils RAX
    /// and flags.
    pub fn poll(&mut self, target: u32) {
        let wanted = self.exit(false, target << leave::SHIFT | leave::POLL);
        self.asm.load(W::B8, R::Ax, state(field!(t1.attention)));
        self.asm.alu_imm(Alu::Cmp, W::B4, Mem::at(R::Ax, 0), 0);
        self.asm.jcc(Cond::NE, wanted);
    }

    /// Counts a jump back to a place in this page.
    pub fn count_jump(&mut self, target: u32) {
        let Some(threshold) = self.threshold else { return };
        let left = Box::new(AtomicI32::new(threshold as i32));
        self.asm.set_wide(R::Ax, std::ptr::from_ref(&*left) as u64);
        self.asm.alu_imm(Alu::Sub, W::B4, Mem::at(R::Ax, 0), 1);
        let label = self.asm.label();
        self.asm.jcc(Cond::S, label);
        self.hot.push((label, self.first_heat + self.heats.len() as u32));
        self.heats.push(Heat { left, target, again: threshold.saturating_mul(4).clamp(1, i32::MAX as u32) as i32 });
    }

    /// Counts how often the block is entered, if it goes on by an indirect jump: loops of those have no way back that is counted.
    /// Spoils RAX and flags.
    pub fn count_entry(&mut self) {
        let last = self.sources.last().map(|source| source.instruction.is_jmp_near_indirect());
        if last == Some(true) {
            self.count_jump(self.sources[0].start);
        }
    }

    /// Remembers where an indirect jump leads: to the offset in RAX. Spoils RDX and flags.
    pub fn note_target(&mut self) {
        if self.threshold.is_none() {
            return;
        }
        let jump = self.source().start as i32;
        let next = state(field!(seen.next));
        self.asm.movzx(W::B1, R::Dx, next);
        let noted = Mem { base: R::Bp, index: Some((R::Dx, 3)), disp: field!(seen.jumps) };
        self.asm.mov(W::B4, noted, R::Ax);
        self.asm.mov_imm(W::B4, Mem { disp: noted.disp + 4, ..noted }, jump);
        self.asm.alu_imm(Alu::Add, W::B1, next, 1);
    }

    /// Code out of the way that leaves with this reason.
    fn exit(&mut self, at_ax: bool, reason: u32) -> Label {
        let label = self.asm.label();
        self.exits.push(Exit { label, at_ax, reason });
        label
    }

    /// A new link to a place in this page, whose displacement is about to be written; where it leads until it is made.
    fn unmade_link(&mut self, target: u32) -> Label {
        debug_assert!(target < 4096);
        debug_assert!(!matches!(self.flags, FlagsAt::Host { saved: false } | FlagsAt::Again(_)));
        let number = self.first_link + self.links.len() as u32;
        self.exit(false, number << leave::SHIFT | leave::LINK)
    }

    /// Goes on at a place in this page: a link, made when its target has been translated. `poll` looks at the attention word first.
    pub fn go_to(&mut self, target: u32, poll: bool) {
        if poll {
            self.poll(target);
        }
        let unmade = self.unmade_link(target);
        // The displacement is patched while others run: it lies in one aligned word.
        self.asm.align(4, 1);
        let at = self.asm.jmp_link(unmade);
        self.links.push(Link { at, target, is_made: false });
    }

    /// Goes on at a place in this page if the condition holds, without a poll.
    pub fn go_to_if(&mut self, cond: Cond, target: u32) {
        let unmade = self.unmade_link(target);
        self.asm.align(4, 2);
        let at = self.asm.jcc_link(cond, unmade);
        self.links.push(Link { at, target, is_made: false });
    }

    /// The way of a taken branch, out of the way.
    pub fn side(&mut self, target: Target) -> Label {
        let label = self.asm.label();
        self.sides.push(Side { label, at: self.at, flags: self.flags, key: self.key, target });
        label
    }

    /// Looks the offset in RAX up in the jump cache: the entry is at RCX if it is there, or else `miss` is jumped to. Spoils flags.
    pub fn look_up(&mut self, miss: Label) {
        let asm = &mut self.asm;
        asm.mov(W::B4, R::Cx, R::Ax);
        asm.shift_imm(5, W::B4, R::Cx, 12);
        asm.alu(Alu::Xor, W::B4, R::Cx, R::Ax);
        asm.alu_imm(Alu::And, W::B4, R::Cx, jumps::JUMPS as i32 - 1);
        asm.shift_imm(4, W::B4, R::Cx, 4);
        asm.alu_load(Alu::Add, W::B8, R::Cx, state(field!(t1.tables) + 8 * i32::from(self.key)));
        asm.alu_load(Alu::Cmp, W::B8, R::Ax, Mem::at(R::Cx, 0));
        asm.jcc(Cond::NE, miss);
    }

    /// The same for the offset in CS that lies `distance` bytes behind the page's start; RAX becomes it. Where the block is
    /// executed at the address for which it was decoded the slot is known; for others it is computed, out of the way.
    pub fn look_up_at(&mut self, distance: i32, miss: Label) {
        let (elsewhere, found) = (self.asm.label(), self.asm.label());
        let usual = self.page.wrapping_add(distance as u64);
        let slot = (jumps::slot(usual) * size_of::<Jump>()) as i32;
        self.offset_in_page(R::Ax, distance);
        self.asm.load(W::B8, R::Cx, state(field!(t1.tables) + 8 * i32::from(self.key)));
        self.asm.alu_load(Alu::Cmp, W::B8, R::Ax, Mem::at(R::Cx, slot));
        self.asm.jcc(Cond::NE, elsewhere);
        self.asm.alu_imm(Alu::Add, W::B8, R::Cx, slot);
        self.asm.bind(found);
        self.elsewheres.push(Elsewhere { label: elsewhere, found, miss, key: self.key });
    }

    fn write_elsewheres(&mut self) {
        let before = self.key;
        for elsewhere in std::mem::take(&mut self.elsewheres) {
            self.key = elsewhere.key;
            self.asm.bind(elsewhere.label);
            self.look_up(elsewhere.miss);
            self.asm.jmp(elsewhere.found);
        }
        self.key = before;
    }

    /// At the start of a block that lies in two pages: it is left unless the jump cache names it. Whoever enters it there has
    /// seen that the second page is the right one, and mappings that change take it out. Spoils RAX, RCX, RDX and flags.
    pub fn check_second_page(&mut self) {
        let start = self.sources[0].start;
        let unknown = self.exit(false, start << leave::SHIFT | leave::CROSSING);
        self.offset_in_page(R::Ax, start as i32);
        self.look_up(unknown);
        let entry = self.asm.here() - self.asm.len() as u64;
        self.asm.set_wide(R::Dx, entry);
        self.asm.alu_load(Alu::Cmp, W::B8, R::Dx, Mem::at(R::Cx, 8));
        self.asm.jcc(Cond::NE, unknown);
    }

    /// Goes to the entry at RCX, whose offset is in RAX, after a poll.
    pub fn take_jump(&mut self) {
        let cold = self.exit(true, leave::LOOK_UP);
        let asm = &mut self.asm;
        asm.load(W::B8, R::Dx, state(field!(t1.attention)));
        asm.alu_imm(Alu::Cmp, W::B4, Mem::at(R::Dx, 0), 0);
        asm.jcc(Cond::NE, cold);
        asm.alu_imm(Alu::And, W::B8, R::Ax, -4096);
        asm.mov(W::B8, state(field!(t1.page_base)), R::Ax);
        asm.jmp_rm(Mem::at(R::Cx, 8));
    }

    /// Out of the way: leaves with the offset in RAX as where to go on.
    pub fn leave_at_ax(&mut self) -> Label {
        self.exit(true, leave::LOOK_UP)
    }

    /// RAX becomes the offset in CS of what lies `distance` bytes behind the page's start.
    pub fn offset_in_page(&mut self, reg: R, distance: i32) {
        let w = self.pointer();
        self.asm.load(W::B8, reg, state(field!(t1.page_base)));
        self.asm.lea(w, reg, Mem::at(reg, distance));
    }
}

/// The host's flags are packed into the state. Keeps them; spoils RAX.
pub(super) fn emit_save_flags(asm: &mut Asm) {
    asm.lahf();
    asm.setcc(Cond::O, R::Ax);
    asm.mov(W::B2, packed_flags(), R::Ax);
}

/// The host's flags become what is packed in the state. Spoils RAX.
pub(super) fn emit_load_flags(asm: &mut Asm) {
    asm.movzx(W::B2, R::Ax, packed_flags());
    // 1 + 127 overflows.
    asm.alu_imm(Alu::Add, W::B1, R::Ax, 127);
    asm.sahf();
}
