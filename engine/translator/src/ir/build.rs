//! Making a block: one method for each shape of instruction. The builder knows which guest instruction is being lifted, so
//! that whatever may bail gets its snapshot, and which token the guest's flags are.

use super::float::FloatOp;
use super::gather::Gather;
use super::native::{Memory, Native};
use super::ops::{Atomic, Condition, Effects, FlagSet, MemoryAccess, Op, Ordering, Ty};
use super::region::{PROBE_READ, PROBE_WRITE, Span};
use super::vector::VectorOp;
use super::{Block, GuestInstruction, HIGH_BYTE, Inst, NO_SNAPSHOT, Snapshot, Val};

/// A block in the making.
#[derive(Debug)]
pub(crate) struct Builder {
    block: Block,
    /// The guest's flags at this point; `NONE`: in the state and not got yet.
    flags: Val,
    /// Whether `flags` is the last `SetFlags` (and not just what `GetFlags` gave).
    flags_set: bool,
    /// The current guest instruction's snapshot, once something needed it.
    snapshot: u16,
}

impl Builder {
    /// Goes on in an empty block.
    pub fn new(block: Block) -> Self {
        debug_assert!(block.insts.is_empty());
        Self { block, flags: Val::NONE, flags_set: false, snapshot: NO_SNAPSHOT }
    }

    /// The block so far.
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// The finished block.
    pub fn finish(self) -> Block {
        self.block
    }

    /// The next guest instruction begins.
    pub fn guest_instruction(&mut self, len: u8) {
        let offset = self.block.bytes() as u16;
        let first = self.block.insts.len() as u32;
        self.block.guest.push(GuestInstruction { offset, len, first });
        self.snapshot = NO_SNAPSHOT;
    }

    /// Takes the current guest instruction's IR back, so that it can be lifted in another way. Only before its first commit of flags.
    pub fn take_back(&mut self) {
        let Some(guest) = self.block.guest.last() else { return };
        self.block.insts.truncate(guest.first as usize);
        if self.snapshot != NO_SNAPSHOT {
            self.block.snapshots.pop();
            self.snapshot = NO_SNAPSHOT;
        }
        if self.flags.is_some() && self.flags.index() >= self.block.insts.len() {
            self.flags = Val::NONE;
            self.flags_set = false;
        }
    }

    // ---- Every instruction comes through here -------------------------------------------------------------------

    fn push(&mut self, op: Op, ty: Ty, aux: u8, args: [Val; 3], imm: u64) -> Val {
        let effects = op.info().effects;
        let snapshot = if effects.contains(Effects::MAY_BAIL) { self.snapshot() } else { NO_SNAPSHOT };
        let need = if op.info().types == super::ops::Types::Flags { FlagSet::all() } else { FlagSet::empty() };
        let at = Val(self.block.insts.len() as u32);
        self.block.insts.push(Inst { op, ty, need, aux, args, imm, snapshot });
        at
    }

    fn snapshot(&mut self) -> u16 {
        if self.snapshot == NO_SNAPSHOT {
            self.snapshot = self.block.snapshots.len() as u16;
            let instruction = (self.block.guest.len() - 1) as u16;
            let flags = if self.flags_set { self.flags } else { Val::NONE };
            self.block.snapshots.push(Snapshot { instruction, flags });
        }
        self.snapshot
    }

    // ---- Constants and slots -------------------------------------------------------------------------------------

    /// A constant, cut to the type.
    pub fn constant(&mut self, ty: Ty, value: u64) -> Val {
        self.push(Op::Const, ty, 0, [Val::NONE; 3], value & ty.mask())
    }
    /// The pc `displacement` bytes from the block's start.
    pub fn pc(&mut self, ty: Ty, displacement: u64) -> Val {
        self.push(Op::Pc, ty, 0, [Val::NONE; 3], displacement)
    }
    /// A slot, or its low part.
    pub fn get(&mut self, ty: Ty, slot: u8) -> Val {
        self.push(Op::GetSlot, ty, 0, [Val::NONE; 3], slot.into())
    }
    /// Bits 8 to 15 of a slot.
    pub fn get_high(&mut self, slot: u8) -> Val {
        self.push(Op::GetSlot, Ty::I8, HIGH_BYTE, [Val::NONE; 3], slot.into())
    }
    /// Commits a slot, or its low part.
    pub fn set(&mut self, ty: Ty, slot: u8, value: Val) {
        self.push(Op::SetSlot, ty, 0, [value, Val::NONE, Val::NONE], slot.into());
    }
    /// Commits bits 8 to 15 of a slot.
    pub fn set_high(&mut self, slot: u8, value: Val) {
        self.push(Op::SetSlot, Ty::I8, HIGH_BYTE, [value, Val::NONE, Val::NONE], slot.into());
    }

    // ---- Arithmetic ----------------------------------------------------------------------------------------------

    /// An operation with one argument: arithmetic, extension, truncation.
    pub fn unary(&mut self, op: Op, ty: Ty, a: Val) -> Val {
        self.push(op, ty, 0, [a, Val::NONE, Val::NONE], 0)
    }
    /// An operation with two arguments.
    pub fn binary(&mut self, op: Op, ty: Ty, a: Val, b: Val) -> Val {
        self.push(op, ty, 0, [a, b, Val::NONE], 0)
    }
    /// An operation with three arguments.
    pub fn ternary(&mut self, op: Op, ty: Ty, a: Val, b: Val, c: Val) -> Val {
        self.push(op, ty, 0, [a, b, c], 0)
    }
    /// base + (index << scale) + displacement.
    pub fn address(&mut self, ty: Ty, base: Val, index: Val, scale: u8, displacement: u64) -> Val {
        self.push(Op::Address, ty, scale, [base, index, Val::NONE], displacement)
    }

    // ---- Vectors -------------------------------------------------------------------------------------------------

    /// A vector operation.
    pub fn vector(&mut self, op: VectorOp, a: Val, b: Val, immediate: u8) -> Val {
        self.push(Op::Vector, Ty::V128, 0, [a, b, Val::NONE], op.pack(immediate))
    }
    /// One lane of a vector.
    pub fn vector_lane(&mut self, ty: Ty, vector: Val, lane: u8) -> Val {
        self.push(Op::VectorLane, ty, 0, [vector, Val::NONE, Val::NONE], lane.into())
    }
    /// The signs of a vector's lanes, each `bytes` wide.
    pub fn vector_signs(&mut self, ty: Ty, vector: Val, bytes: u8) -> Val {
        self.push(Op::VectorSigns, ty, bytes, [vector, Val::NONE, Val::NONE], 0)
    }

    /// A floating-point operation.
    pub fn float(&mut self, op: FloatOp, a: Val, b: Val, immediate: u8) -> Val {
        self.push(Op::VectorFloat, Ty::V128, 0, [a, b, Val::NONE], op.pack(immediate))
    }
    /// The flags of a comparison of floats of `bytes`.
    pub fn float_compare(&mut self, a: Val, b: Val, bytes: u8, signals: bool) -> Val {
        self.push(Op::FloatCompare, Ty::Flags, bytes | u8::from(signals) << 4, [a, b, Val::NONE], 0)
    }
    /// An integer as the lowest float, of `bytes`.
    pub fn int_to_float(&mut self, a: Val, integer: Val, bytes: u8) -> Val {
        self.push(Op::IntToFloat, Ty::V128, bytes, [a, integer, Val::NONE], 0)
    }
    /// The lowest float, of `bytes`, as an integer.
    pub fn float_to_int(&mut self, ty: Ty, value: Val, bytes: u8, truncates: bool) -> Val {
        self.push(Op::FloatToInt, ty, bytes | u8::from(truncates) << 4, [value, Val::NONE, Val::NONE], 0)
    }

    /// What makes a host address of the memory operand of a vector instruction, which lies `displacement` from an address.
    pub fn vouched(&mut self, address: Val, displacement: i32, memory: Memory) -> Val {
        let Memory { bytes, written, aligned } = memory;
        if aligned {
            self.push(Op::CheckAligned, Ty::None, bytes, [address, Val::NONE, Val::NONE], displacement as u64);
        }
        let span = Span { low: displacement, high: displacement.saturating_add(bytes.into()) };
        let rights = if written { PROBE_WRITE } else { PROBE_READ };
        self.push(Op::Probe, Ty::I64, rights, [address, Val::NONE, Val::NONE], span.pack())
    }
    /// A vector instruction of the guest's that the host has too.
    pub fn native(&mut self, op: Op, ty: Ty, args: [Val; 2], native: Native) -> Val {
        let (aux, imm) = native.pack();
        self.push(op, ty, aux, [args[0], args[1], Val::NONE], imm)
    }
    /// A gather relative to a base, or to 0.
    pub fn gather(&mut self, base: Val, gather: Gather) {
        let (aux, imm) = gather.pack();
        self.push(Op::NativeGather, Ty::None, aux, [base, Val::NONE, Val::NONE], imm);
    }

    // ---- Flags ---------------------------------------------------------------------------------------------------

    /// The guest's flags now.
    pub fn flags(&mut self) -> Val {
        if !self.flags.is_some() {
            self.flags = self.push(Op::GetFlags, Ty::Flags, 0, [Val::NONE; 3], 0);
        }
        self.flags
    }
    /// The flags of the value just made. `old` is given where the operation does not write all of them.
    pub fn flags_of(&mut self, value: Val, old: Val) -> Val {
        debug_assert_eq!(value.index() + 1, self.block.insts.len(), "FlagsOf follows its instruction");
        self.push(Op::FlagsOf, Ty::Flags, 0, [value, old, Val::NONE], 0)
    }
    /// Those in `mask` from `new`, the others from `old`.
    pub fn flags_merge(&mut self, old: Val, new: Val, mask: FlagSet) -> Val {
        self.push(Op::FlagsMerge, Ty::Flags, 0, [old, new, Val::NONE], mask.bits().into())
    }
    /// From a packed word.
    pub fn flags_unpack(&mut self, word: Val) -> Val {
        self.push(Op::FlagsUnpack, Ty::Flags, 0, [word, Val::NONE, Val::NONE], 0)
    }
    /// To a packed word.
    pub fn flags_pack(&mut self, flags: Val) -> Val {
        self.push(Op::FlagsPack, Ty::Flags, 0, [flags, Val::NONE, Val::NONE], 0)
    }
    /// Commits the guest's flags.
    pub fn set_flags(&mut self, flags: Val) {
        self.push(Op::SetFlags, Ty::Flags, 0, [flags, Val::NONE, Val::NONE], 0);
        (self.flags, self.flags_set) = (flags, true);
    }
    /// Whether a condition holds.
    pub fn condition(&mut self, flags: Val, condition: Condition) -> Val {
        self.push(Op::Cond, Ty::Flags, condition as u8, [flags, Val::NONE, Val::NONE], 0)
    }

    // ---- Memory --------------------------------------------------------------------------------------------------

    /// Loads from `address + displacement`.
    pub fn load(&mut self, ty: Ty, address: Val, displacement: u64, access: MemoryAccess) -> Val {
        self.push(Op::Load, ty, access.bits(), [address, Val::NONE, Val::NONE], displacement)
    }
    /// Stores to `address + displacement`.
    pub fn store(&mut self, ty: Ty, address: Val, displacement: u64, value: Val) {
        let access = MemoryAccess::tso(ty.bytes());
        self.push(Op::Store, ty, access.bits(), [address, value, Val::NONE], displacement);
    }
    /// Stores, bailing where the address is not a multiple of the type's bytes.
    pub fn store_aligned(&mut self, ty: Ty, address: Val, displacement: u64, value: Val) {
        let access = MemoryAccess { aligned: true, ..MemoryAccess::tso(ty.bytes()) };
        self.push(Op::Store, ty, access.bits(), [address, value, Val::NONE], displacement);
    }
    /// A locked read-modify-write; gives the old value.
    pub fn atomic(&mut self, kind: Atomic, ty: Ty, address: Val, displacement: u64, operand: Val) -> Val {
        self.push(Op::AtomicRmw, ty, kind as u8, [address, operand, Val::NONE], displacement)
    }
    /// A locked compare and swap; gives the old value.
    pub fn compare_and_swap(&mut self, ty: Ty, address: Val, displacement: u64, expected: Val, new: Val) -> Val {
        let access = MemoryAccess { ordering: Ordering::Sequential, ..MemoryAccess::tso(ty.bytes()) };
        self.push(Op::AtomicCas, ty, access.bits(), [address, expected, new], displacement)
    }
    /// A full fence.
    pub fn fence(&mut self) {
        self.push(Op::Fence, Ty::None, 0, [Val::NONE; 3], 0);
    }

    // ---- Rare things and exits -----------------------------------------------------------------------------------

    /// `BailIf` and `CheckPc`.
    pub fn check(&mut self, op: Op, value: Val) {
        self.push(op, Ty::None, 0, [value, Val::NONE, Val::NONE], 0);
    }
    /// Has the interpreter execute the current guest instruction.
    pub fn call_interpreter(&mut self) {
        let number = self.block.guest.len() as u64 - 1;
        self.push(Op::CallInterp, Ty::None, 0, [Val::NONE; 3], number);
        (self.flags, self.flags_set) = (Val::NONE, false);
    }
    /// Any exit. `value` where it takes one, `displacement` of a direct target from the block's start.
    pub fn exit(&mut self, op: Op, value: Val, displacement: u64) {
        debug_assert!(op.info().effects.contains(Effects::ENDS_BLOCK));
        self.push(op, Ty::None, 0, [value, Val::NONE, Val::NONE], displacement);
    }
}
