//! The house's middle: the intermediate representation between guests' front ends and hosts' emitters.
//!
//! A front end (`guest/x86/lift`) turns a straight run of guest instructions into one [`Block`]; passes change it in place; an
//! emitter turns it into host code; the evaluator (`eval.rs`) executes it for tests. (The emitter, `host/x64/t2`, is
//! the optimising tier's.) `ops.rs` holds the one table of operations, from
//! which printer, verifier and builder derive. Nothing here knows x86, nor any host, but for [`native`]
//! and [`gather`].
//!
//! What follows is about blocks. [`region`] says how blocks become a region, the unit of the optimising tier, and what differs
//! there: slots and flags are values, control flow is inside, state is put together only where the region is left. Operations
//! said to be "in regions" are in no block.
//!
//! # Shape
//! A block is a list of [`Inst`]s, executed in order; there is no control flow inside. An instruction defines at most one
//! value, whose name [`Val`] is the instruction's place in the list, so every value is defined once and before its uses. Passes
//! put [`Op::Nop`] where they remove something; places never move. The last instruction that is not a `Nop` is the one exit
//! ([`Effects::ENDS_BLOCK`]), and there is no other.
//!
//! `inst.ty` is the width in which an operation works; what it gives is [`Inst::result`] (`Cond.i8`'s result is a `Bool`, a
//! store has none). Integers are bit patterns; upper bits of a host register that holds a narrow value mean nothing. Shift
//! counts and bit numbers have type [`Ty::I8`]. `Bool` is 0 or 1.
//!
//! # Guest state
//! *Slots* are the guest's registers, each with a name, type and number that the front end declares ([`SlotInfo`]). `GetSlot`
//! reads one as it is *at that point*, `SetSlot` commits one *at once*; a value got earlier keeps what it was (XCHG gets both,
//! then sets both). Narrow rules: `.i64` is all of it; setting `.i32` clears the upper half; setting `.i16` or `.i8` keeps the
//! rest; `aux = HIGH_BYTE` with `.i8` means bits 8 to 15. Vector slots are read and set whole.
//!
//! The *program counter* is not a slot. Every constant derived from it is a [`Op::Pc`] or a displacement of an exit, relative
//! to the block's first instruction, so that one translation can serve at several addresses.
//!
//! # Flags
//! One model for all guests: S Z C O P A ([`FlagSet`]), handled as values of type [`Ty::Flags`], *tokens*, that nobody computes
//! before somebody asks.
//! * `GetFlags`: those in the guest's state. Valid at the block's start and after `CallInterp`, until the first `SetFlags`.
//! * `FlagsOf %r, %old`: those that the instruction which defined `%r` leaves (the token remembers kind, width, operands and
//!   result by pointing at it). It stands directly behind that instruction, so that the host's own flags may still hold them.
//!   Which of the six an operation writes is in the table ([`Op::flags_written`]); the others come from `%old`. A shift or
//!   rotate whose count (masked: 5 bits, or 6 for `.i64`) is zero leaves *all* as in `%old`. Where `%old` is missing nobody
//!   needs what it would bring.
//! * `FlagsMerge %old, %new, mask`: those in `mask` from `%new`, the others from `%old`. `FlagsUnpack`/`FlagsPack`: from and to
//!   an I16 in the places of EFLAGS.
//! * `SetFlags %f`: from here on the guest's flags are `%f`. Not computed either: exits, snapshots and `CallInterp` say where
//!   they matter.
//! * `Cond.i8 %f, aux = Condition`: one question.
//!
//! `need` of a token is what somebody in the block or behind its exit looks at ([`FlagSet::all`] until `pass/flags_need.rs` has
//! run). A token that only snapshots mention has an empty `need`: nothing is to be computed on the way, only to be
//! *recoverable* when something rare happens.
//!
//! # Memory
//! `Load.ty %address + imm` and `Store.ty %address + imm, %value` take linear addresses (segment bases are added by the front
//! end) of type I64; what is moved is [`MemoryAccess`] in `aux`: size, sign extension, order (`Tso` for x86: an x86 host
//! ignores it), `for_write`: a load that will be followed by a store to the same place, so it must have the rights of a write;
//! and `aligned`: bail where it is not. Rights (user, supervisor) are those of the mode for which the block is made. A TLB miss
//! refills and goes on. A page fault, a device, an access across pages that is not plain memory, a store to code: *bail*. A
//! host must not finish a device read by itself and bail later in the same guest instruction, or the device is read twice.
//! `AtomicRmw.ty %address + imm, %operand` gives the old value, `AtomicCas.ty %address + imm, %expected, %new` too; both have
//! the rights of a write.
//!
//! # Vectors and floats
//! `Vector` computes on the lanes of `V128` values what a line of [`vector`] says and has no effects; `VectorFloat` what a line
//! of [`float`] says, under the guest's floating-point context (rounding, flush to zero, sticky flags), all exceptions masked:
//! a front end lifts such code only while they are. A host keeps that context in its own register while translated code runs.
//! Most lines are one host instruction; scalar ones keep a's upper lanes.
//!
//! Or, where the host has the guest's own vector instructions and registers: [`native`] and [`gather`].
//!
//! # Precise state: snapshots and the bail rule
//! *On any rare event restore the state before the guest instruction and let the interpreter execute exactly that one.*
//! Therefore, within a guest instruction: loads and checks first, then at most one store, then `SetSlot` and `SetFlags` (the
//! verifier insists). Until its first commit the guest's slots still are what they were before it, and a [`Snapshot`] needs
//! only to say which guest instruction it is and which token the flags are. Every instruction with [`Effects::MAY_BAIL`]
//! carries one; all of one guest instruction share it.
//!
//! Bailing: put flags and pc into the state, count the guest instructions before it as retired, have the interpreter execute
//! one, go on with whatever it says.
//! * `Bail`: always; ends the block. `BailIf %b`: if true. `CheckPc %target`: unless a transfer to `%target` is allowed
//!   (canonical, within the code segment).
//! * `CallInterp imm`: executes guest instruction number `imm` of the block by its interpreter handler, *inside* the block: put
//!   flags and pc (behind the instruction) into the state, as snapshot; call; if it says "go on", all slots may have changed
//!   and flags are in the state, and the block goes on; otherwise leave the block as after a bail; likewise if the block's own
//!   code has been written to. So every instruction can be in a block from the first day.
//!
//! # Exits
//! `Jump imm` · `Branch %bool, imm` (else to the block's end) · `JumpIndirect %target` · `Call imm`, `CallIndirect %target`
//! (the return address, the block's end, has already been stored) · `Ret %target` (the stack pointer has already been moved) ·
//! `Dispatch`: the pc is in the state already, put there by `CallInterp`; look up and poll. `imm` is relative to the block's
//! start; [`Block::target`] makes the pc of it and [`Block::is_in_page`] says whether it stays in the page. At an exit the
//! guest's flags are the last `SetFlags`' token (or still in the state), and all guest instructions of the block are retired.

pub(crate) mod build;
pub(crate) mod eval;
pub(crate) mod float;
pub(crate) mod gather;
pub(crate) mod native;
pub(crate) mod ops;
pub(crate) mod pass;
pub(crate) mod print;
pub(crate) mod region;
pub(crate) mod vector;
pub(crate) mod verify;

pub(crate) use ops::{Condition, Effects, FlagSet, MemoryAccess, Op, Ty};

/// A value: the place of the instruction that defines it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Val(pub u32);

impl Val {
    /// No value.
    pub const NONE: Self = Self(u32::MAX);

    /// Whether there is one.
    pub fn is_some(self) -> bool {
        self != Self::NONE
    }
    /// The place of its instruction.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl std::fmt::Debug for Val {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_some() { write!(f, "%{}", self.0) } else { f.write_str("-") }
    }
}

/// `GetSlot`/`SetSlot` with `.i8`: bits 8 to 15.
pub(crate) const HIGH_BYTE: u8 = 1;

/// One instruction. What `aux` and `imm` mean is in the table of [`ops`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Inst {
    pub op: Op,
    /// The width in which it works.
    pub ty: Ty,
    /// Of a token: which flags anybody looks at.
    pub need: FlagSet,
    pub aux: u8,
    pub args: [Val; 3],
    pub imm: u64,
    /// Which snapshot, if it may bail.
    pub snapshot: u16,
}

/// `Inst::snapshot` of what cannot bail.
pub(crate) const NO_SNAPSHOT: u16 = u16::MAX;

impl Inst {
    /// An instruction without arguments. Of tokens all flags are needed until somebody knows better.
    pub fn new(op: Op, ty: Ty) -> Self {
        let need = if ty == Ty::Flags { FlagSet::all() } else { FlagSet::empty() };
        Self { op, ty, need, aux: 0, args: [Val::NONE; 3], imm: 0, snapshot: NO_SNAPSHOT }
    }
    /// The type of the value it defines.
    pub fn result(&self) -> Option<Ty> {
        self.op.info().result.ty(self.ty)
    }
    /// Its arguments that are there.
    pub fn arguments(&self) -> impl Iterator<Item = Val> + use<> {
        self.args.into_iter().filter(|arg| arg.is_some())
    }
    /// `aux` of a load or store.
    pub fn access(&self) -> MemoryAccess {
        MemoryAccess::from_bits(self.aux)
    }
    /// `aux` of a `Cond`.
    pub fn condition(&self) -> Condition {
        Condition::from_number(self.aux)
    }
}

/// How to restore the guest's state before one guest instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Its number in [`Block::guest`]; as many are retired before it.
    pub instruction: u16,
    /// The guest's flags then; [`Val::NONE`]: in the state.
    pub flags: Val,
}

/// One guest instruction of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GuestInstruction {
    /// Bytes from the block's start.
    pub offset: u16,
    /// Bytes.
    pub len: u8,
    /// The place of its first IR instruction.
    pub first: u32,
}

/// A guest register.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotInfo {
    pub name: &'static str,
    /// `I64` or `V128`.
    pub ty: Ty,
}

/// A straight run of guest instructions.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub insts: Vec<Inst>,
    pub snapshots: Vec<Snapshot>,
    pub guest: Vec<GuestInstruction>,
    /// The pc of the first instruction.
    pub pc: u64,
    /// What a pc keeps: 64, 32 or 16 bits.
    pub pc_mask: u64,
    /// Where in its page the first byte lies.
    pub page_offset: u16,
    /// The guest's registers.
    pub slots: &'static [SlotInfo],
    /// Room for passes to think in, kept so that a block that is used again allocates nothing.
    room: pass::Room,
}

impl Block {
    /// An empty block at `pc`.
    pub fn new(slots: &'static [SlotInfo], pc: u64, pc_mask: u64, page_offset: u16) -> Self {
        let room = pass::Room::default();
        Self { insts: Vec::new(), snapshots: Vec::new(), guest: Vec::new(), pc, pc_mask, page_offset, slots, room }
    }

    /// The same in a block that is done with, keeping the memory that it has grown.
    pub fn renew(mut self, slots: &'static [SlotInfo], pc: u64, pc_mask: u64, page_offset: u16) -> Self {
        self.insts.clear();
        self.snapshots.clear();
        self.guest.clear();
        Self { pc, pc_mask, page_offset, slots, ..self }
    }

    /// Bytes of all its guest instructions: where what follows begins, relative to its start.
    pub fn bytes(&self) -> u64 {
        self.guest.last().map_or(0, |last| u64::from(last.offset) + u64::from(last.len))
    }

    /// The pc that lies `displacement` from the block's start.
    pub fn target(&self, displacement: u64) -> u64 {
        self.pc.wrapping_add(displacement) & self.pc_mask
    }

    /// The pc behind the block: where it falls through to and where its call returns to.
    pub fn end(&self) -> u64 {
        self.target(self.bytes())
    }

    /// Whether what lies `displacement` from the block's start is in its page.
    pub fn is_in_page(&self, displacement: u64) -> bool {
        u64::from(self.page_offset).wrapping_add(displacement) < 0x1000
    }

    /// The instruction that defines a value.
    pub fn def(&self, value: Val) -> &Inst {
        &self.insts[value.index()]
    }

    /// The number, if a value is a constant, cut to its width.
    pub fn constant(&self, value: Val) -> Option<u64> {
        let def = self.insts.get(value.index())?;
        (def.op == Op::Const).then(|| def.imm & def.ty.mask())
    }

    /// The token that the guest's flags are at the exit; [`Val::NONE`]: they are in the state.
    pub fn flags_at_exit(&self) -> Val {
        let last = self.insts.iter().rev().find(|inst| matches!(inst.op, Op::SetFlags | Op::CallInterp));
        last.map_or(Val::NONE, |inst| inst.args[0])
    }

    /// Whether the flags in the state when the block is entered are replaced before anything can look at them. Whoever jumps
    /// here need not put any there. Best asked after all passes.
    pub fn replaces_flags(&self) -> bool {
        let mut replaced = false;
        for inst in &self.insts {
            let effects = inst.op.info().effects;
            if effects.contains(Effects::MAY_BAIL) {
                let snapshot = self.snapshots.get(usize::from(inst.snapshot));
                return snapshot.is_some_and(|snapshot| snapshot.flags.is_some());
            }
            match inst.op {
                Op::GetFlags => return false,
                Op::SetFlags => replaced = true,
                _ if effects.contains(Effects::ENDS_BLOCK) => return replaced,
                _ => {}
            }
        }
        false
    }

    /// For each value the place of the last instruction that uses it, snapshots included (0: unused). A host that has no
    /// registers to spare frees a value's register there.
    pub fn last_uses(&self) -> Vec<u32> {
        let mut last = vec![0; self.insts.len()];
        let mut current = Val::NONE;
        for (at, inst) in self.insts.iter().enumerate() {
            for arg in inst.arguments() {
                last[arg.index()] = at as u32;
            }
            if let Some(snapshot) = self.snapshots.get(usize::from(inst.snapshot))
                && snapshot.flags.is_some()
            {
                last[snapshot.flags.index()] = at as u32;
            }
            if inst.op == Op::SetFlags {
                current = inst.args[0];
            } else if inst.op == Op::CallInterp {
                current = Val::NONE;
            } else if inst.op.info().effects.contains(Effects::ENDS_BLOCK) && current.is_some() {
                last[current.index()] = at as u32;
            }
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::build::Builder;
    use super::*;

    const SLOTS: &[SlotInfo] = &[SlotInfo { name: "a", ty: Ty::I64 }];

    fn block(build: impl FnOnce(&mut Builder)) -> Block {
        let mut builder = Builder::new(Block::new(SLOTS, 0, u64::MAX, 0));
        builder.guest_instruction(1);
        build(&mut builder);
        builder.exit(Op::Jump, Val::NONE, 1);
        builder.finish()
    }

    fn set_flags(b: &mut Builder) -> Val {
        let a = b.get(Ty::I64, 0);
        let r = b.binary(Op::Add, Ty::I64, a, a);
        let flags = b.flags_of(r, Val::NONE);
        b.set_flags(flags);
        flags
    }

    fn load(b: &mut Builder) {
        b.guest_instruction(1);
        let a = b.get(Ty::I64, 0);
        b.load(Ty::I64, a, 0, MemoryAccess::tso(8));
    }

    #[test]
    fn a_block_replaces_the_flags_unless_something_can_see_them_first() {
        let mut token = Val::NONE;
        let set = block(|b| token = set_flags(b));
        assert!(set.replaces_flags());
        assert_eq!(set.flags_at_exit(), token);
        assert!(
            block(|b| {
                set_flags(b);
                load(b);
            })
            .replaces_flags()
        );
        let bails_first = block(|b| {
            load(b);
            b.guest_instruction(1);
            set_flags(b);
        });
        assert!(!bails_first.replaces_flags(), "a bail shows them to the interpreter");
        let nothing = block(|_| {});
        assert!(!nothing.replaces_flags(), "whoever comes next may look");
        assert_eq!(nothing.flags_at_exit(), Val::NONE);
        let asks = block(|b| {
            b.flags();
            set_flags(b);
        });
        assert!(!asks.replaces_flags());
    }

    #[test]
    fn an_instruction_is_small() {
        assert!(size_of::<Inst>() <= 32, "{}", size_of::<Inst>());
    }
}
