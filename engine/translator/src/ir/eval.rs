//! The evaluator: executes a block as `ir/mod.rs` says, one instruction after the other. Slow and plain: it is what emitters
//! and passes are tested against, and what tells whether a front end says what the interpreter does.
//!
//! It is strict where a host may be lax: flags outside a token's `need` are wrong on purpose, so that a pass that
//! drops one too many is found; only snapshots get to see all six.

use super::float::FloatOp;
use super::gather::Gather;
use super::native::Native;
use super::ops::{Atomic, Effects, FlagSet, MemoryAccess, Op, Ty};
use super::region::{PROBE_WRITE, Span};
use super::vector::VectorOp;
use super::{Block, HIGH_BYTE, Inst, Val};

/// The guest that a block is evaluated on. Memory functions give `None` where a host would bail.
pub(crate) trait Guest {
    /// All of a slot.
    fn slot(&self, slot: u8) -> u128;
    /// Sets all of a slot.
    fn set_slot(&mut self, slot: u8, value: u128);
    /// The flags in the state.
    fn flags(&self) -> FlagSet;
    /// Puts flags into the state.
    fn set_flags(&mut self, flags: FlagSet);
    /// Loads 1 to 16 bytes; `for_write`: with the rights of a write.
    fn load(&mut self, address: u64, bytes: u8, for_write: bool) -> Option<u128>;
    /// Stores 1 to 16 bytes.
    fn store(&mut self, address: u64, bytes: u8, value: u128) -> Option<()>;
    /// Whether all of some bytes, which may be more than one access can have, can be loaded or, `for_write`, stored. Never
    /// across pages.
    fn probe(&mut self, address: u64, bytes: u32, for_write: bool) -> bool;
    /// Replaces 1 to 8 bytes as one locked operation, and gives what was there. `compute` may be called several times.
    fn exchange(&mut self, address: u64, bytes: u8, compute: &dyn Fn(u64) -> u64) -> Option<u64>;
    /// Whether a near transfer to `pc` is allowed.
    fn may_go_to(&self, pc: u64) -> bool;
    /// A floating-point operation, gathering sticky flags.
    fn float(&mut self, op: FloatOp, a: u128, b: u128, immediate: u8) -> u128;
    /// The flags of a comparison of the lowest floats, of 4 or 8 bytes.
    fn float_compare(&mut self, a: u128, b: u128, bytes: u8, signals: bool) -> FlagSet;
    /// `a` with an integer of `from` bytes as its lowest float of `to` bytes.
    fn int_to_float(&mut self, a: u128, value: u64, from: u8, to: u8) -> u128;
    /// The lowest float of `from` bytes as an integer of `to` bytes.
    fn float_to_int(&mut self, value: u128, from: u8, to: u8, truncates: bool) -> u64;
    /// Executes a vector instruction with its memory operand at the address `operand`, or with that as its general register:
    /// the register afterwards, and the flags. A probe has vouched for memory.
    fn native(&mut self, native: &Native, operand: u64, has_memory: bool) -> (u64, FlagSet);
    /// Executes a gather relative to `base`: all of it, or nothing.
    fn gather(&mut self, gather: &Gather, base: u64) -> Option<()>;
    /// Has the interpreter execute guest instruction `number` of the block; says whether the block goes on.
    fn interpret(&mut self, number: u16) -> bool;
    /// Whether to bail here for no reason.
    fn bails_at_random(&mut self) -> bool;
}

/// How a block was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// By its exit, to this pc. All its guest instructions are retired.
    To(u64),
    /// By its exit, with the pc in the state.
    Dispatch,
    /// The interpreter is to execute guest instruction number `.0`; those before it are retired, and slots and flags are as before it.
    Bailed(u16),
    /// The interpreter executed guest instruction number `.0` and the block does not go on.
    Interpreted(u16),
}

/// A value, or a token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Value {
    pub bits: u128,
    /// Of a token: all six flags, for snapshots.
    pub all: FlagSet,
}

impl Value {
    /// What is no token.
    pub fn plain(bits: u128) -> Self {
        Self { bits, all: FlagSet::empty() }
    }
    /// A token, its flags wrong where nobody needs them.
    pub fn token(all: FlagSet, need: FlagSet) -> Self {
        Self { bits: (all ^ need.complement()).bits().into(), all }
    }
}

/// Executes a block.
pub(crate) fn evaluate(block: &Block, guest: &mut impl Guest) -> Left {
    let machine = Machine::new(&block.insts, block.pc, block.pc_mask, guest);
    let mut run = Run { block, machine, current: Val::NONE };
    for (at, inst) in block.insts.iter().enumerate() {
        let effects = inst.op.info().effects;
        if effects.contains(Effects::MAY_BAIL) && (inst.op == Op::Bail || run.machine.guest.bails_at_random()) {
            return run.bail(inst);
        }
        if effects.contains(Effects::ENDS_BLOCK) {
            return run.leave(inst);
        }
        let value = match inst.op {
            Op::CallInterp => {
                let number = inst.imm as u16;
                run.flush_flags();
                if !run.machine.guest.interpret(number) {
                    return Left::Interpreted(number);
                }
                Value::plain(0)
            }
            Op::SetFlags => {
                run.current = inst.args[0];
                Value::plain(0)
            }
            _ => match run.machine.execute(inst) {
                Some(value) => value,
                None => return run.bail(inst),
            },
        };
        run.machine.values[at] = value;
    }
    unreachable!("a block ends with an exit")
}

struct Run<'a, G: Guest> {
    block: &'a Block,
    machine: Machine<'a, G>,
    /// What `SetFlags` said last; `NONE`: they are in the state.
    current: Val,
}

impl<G: Guest> Run<'_, G> {
    fn bail(&mut self, inst: &Inst) -> Left {
        let snapshot = self.block.snapshots[usize::from(inst.snapshot)];
        if snapshot.flags.is_some() {
            let flags = self.machine.values[snapshot.flags.index()].all;
            self.machine.guest.set_flags(flags);
        }
        Left::Bailed(snapshot.instruction)
    }

    fn flush_flags(&mut self) {
        if self.current.is_some() {
            let flags = self.machine.token(self.current);
            self.machine.guest.set_flags(flags);
            self.current = Val::NONE;
        }
    }

    fn leave(&mut self, inst: &Inst) -> Left {
        self.flush_flags();
        let block = self.block;
        match inst.op {
            Op::Jump | Op::Call => Left::To(block.target(inst.imm)),
            Op::Branch if self.machine.int(inst.args[0]) != 0 => Left::To(block.target(inst.imm)),
            Op::Branch => Left::To(block.end()),
            Op::JumpIndirect | Op::CallIndirect | Op::Ret => Left::To(self.machine.int(inst.args[0])),
            _ => Left::Dispatch,
        }
    }
}

/// What executes instructions: the values that they have given.
pub(super) struct Machine<'a, G: Guest> {
    insts: &'a [Inst],
    pc: u64,
    pc_mask: u64,
    pub guest: &'a mut G,
    /// By the places of their instructions.
    pub values: Vec<Value>,
}

impl<'a, G: Guest> Machine<'a, G> {
    pub fn new(insts: &'a [Inst], pc: u64, pc_mask: u64, guest: &'a mut G) -> Self {
        Self { insts, pc, pc_mask, guest, values: vec![Value::plain(0); insts.len()] }
    }

    pub fn int(&self, value: Val) -> u64 {
        self.bits(value) as u64
    }
    fn bits(&self, value: Val) -> u128 {
        self.values[value.index()].bits
    }
    fn token(&self, value: Val) -> FlagSet {
        FlagSet::from_bits_truncate(self.bits(value) as u8)
    }
    fn def(&self, value: Val) -> &'a Inst {
        &self.insts[value.index()]
    }

    /// All but exits, `SetFlags` and `CallInterp`. `None`: bail.
    pub fn execute(&mut self, inst: &Inst) -> Option<Value> {
        let plain = |bits: u128| Some(Value::plain(bits));
        let token = |all: FlagSet, need: FlagSet| Some(Value::token(all, need));
        let [a, b, _] = inst.args;
        let imm = inst.imm;
        match inst.op {
            Op::Nop | Op::Fence => plain(0),
            Op::GetSlot => {
                let whole = self.guest.slot(imm as u8);
                let part = if inst.aux == HIGH_BYTE { whole >> 8 } else { whole };
                plain(if inst.ty == Ty::V128 { part } else { part & u128::from(inst.ty.mask()) })
            }
            Op::SetSlot => {
                self.set_slot(inst);
                plain(0)
            }
            Op::GetFlags => token(self.guest.flags(), inst.need),
            Op::FlagsOf => {
                let (hot, all) = self.flags_of(a, b);
                Some(Value { bits: (hot ^ inst.need.complement()).bits().into(), all })
            }
            Op::FlagsMerge => {
                let mask = FlagSet::from_bits_truncate(imm as u8);
                let old = if a.is_some() { (self.token(a), self.values[a.index()].all) } else { Default::default() };
                let new = (self.token(b), self.values[b.index()].all);
                let merge = |old: FlagSet, new: FlagSet| old & mask.complement() | new & mask;
                let (hot, all) = (merge(old.0, new.0), merge(old.1, new.1));
                Some(Value { bits: (hot ^ inst.need.complement()).bits().into(), all })
            }
            Op::FlagsUnpack => token(FlagSet::from_packed(self.int(a)), inst.need),
            Op::FlagsPack => plain(self.token(a).packed().into()),
            Op::Cond => plain(inst.condition().holds(self.token(a)).into()),
            Op::Vector => {
                let op = VectorOp::from_number(imm as u8).expect("the verifier has seen the operation");
                let (b, immediate) = (if b.is_some() { self.bits(b) } else { u128::from(imm >> 8) }, (imm >> 8) as u8);
                plain((op.info().run)(self.bits(a), b, immediate))
            }
            Op::VectorFloat => {
                let op = FloatOp::from_number(imm as u8).expect("the verifier has seen the operation");
                let (a, b) = (self.bits(a), self.bits(b));
                plain(self.guest.float(op, a, b, (imm >> 8) as u8))
            }
            Op::FloatCompare => {
                let (a, b) = (self.bits(a), self.bits(b));
                token(self.guest.float_compare(a, b, inst.aux & 15, inst.aux & 16 != 0), inst.need)
            }
            Op::IntToFloat => {
                let bytes = self.def(b).ty.bytes();
                let (a, b) = (self.bits(a), self.int(b));
                plain(self.guest.int_to_float(a, b, bytes, inst.aux))
            }
            Op::FloatToInt => {
                let a = self.bits(a);
                let value = self.guest.float_to_int(a, inst.aux & 15, inst.ty.bytes(), inst.aux & 16 != 0);
                plain((value & inst.ty.mask()).into())
            }
            Op::ToVector => plain(self.int(a).into()),
            Op::VectorLane => plain((self.bits(a) >> (imm as u32 * inst.ty.bits())) & u128::from(inst.ty.mask())),
            Op::VectorSigns => {
                let (vector, bits) = (self.bits(a), u32::from(inst.aux) * 8);
                plain((0..128 / bits).map(|lane| (vector >> ((lane + 1) * bits - 1) & 1) << lane).sum())
            }
            Op::Load | Op::Store if !is_aligned(inst.access(), self.int(a).wrapping_add(imm)) => None,
            Op::Load | Op::LoadVia => {
                let access = inst.access();
                let value = self.guest.load(self.int(a).wrapping_add(imm), access.bytes, access.for_write)?;
                let from = Ty::of_bytes(access.bytes);
                plain(match inst.ty {
                    Ty::V128 => value,
                    ty if access.signed => u128::from(sign_extended(value as u64, from) & ty.mask()),
                    _ => value & u128::from(from.mask()),
                })
            }
            Op::Store | Op::StoreVia => {
                let value = self.bits(if inst.op == Op::Store { b } else { inst.args[2] });
                self.guest.store(self.int(a).wrapping_add(imm), inst.ty.bytes(), value)?;
                plain(0)
            }
            Op::Probe => {
                let span = Span::unpack(imm);
                let from = self.int(a).wrapping_add(span.low as u64);
                let bytes = span.high.wrapping_sub(span.low) as u32;
                self.guest.probe(from, bytes, inst.aux & PROBE_WRITE != 0).then_some(Value::plain(0))
            }
            Op::AtomicRmw => {
                let operand = self.int(b);
                let compute = |old: u64| match Atomic::from_bits(inst.aux) {
                    Atomic::Exchange => operand,
                    Atomic::Add => old.wrapping_add(operand),
                    Atomic::Sub => old.wrapping_sub(operand),
                    Atomic::And => old & operand,
                    Atomic::Or => old | operand,
                    Atomic::Xor => old ^ operand,
                };
                plain(self.guest.exchange(self.int(a).wrapping_add(imm), inst.ty.bytes(), &compute)?.into())
            }
            Op::AtomicCas => {
                let (expected, new) = (self.int(b), self.int(inst.args[2]));
                let compute = |old: u64| if old == expected { new } else { old };
                plain(self.guest.exchange(self.int(a).wrapping_add(imm), inst.ty.bytes(), &compute)?.into())
            }
            Op::Native | Op::NativeStore | Op::NativeInteger | Op::NativeFlags => {
                let (native, has_memory) = (Native::of(inst), b.is_some());
                let operand = match (a.is_some(), has_memory) {
                    (false, _) => 0,
                    (true, false) => self.int(a),
                    (true, true) => self.int(a).wrapping_add(i64::from(native.displacement) as u64),
                };
                let (integer, flags) = self.guest.native(&native, operand, has_memory);
                if inst.op == Op::NativeFlags { token(flags, inst.need) } else { plain((integer & inst.ty.mask()).into()) }
            }
            Op::NativeGather => {
                let base = if a.is_some() { self.int(a) } else { 0 };
                self.guest.gather(&Gather::of(inst), base)?;
                plain(0)
            }
            Op::CheckAligned => self.int(a).wrapping_add(imm).is_multiple_of(inst.aux.into()).then_some(Value::plain(0)),
            Op::BailIf => (self.int(a) == 0).then_some(Value::plain(0)),
            Op::CheckPc => self.guest.may_go_to(self.int(a)).then_some(Value::plain(0)),
            Op::Pc => plain((self.pc.wrapping_add(imm) & self.pc_mask & inst.ty.mask()).into()),
            _ => {
                let args = inst.args.map(|arg| if arg.is_some() { self.int(arg) } else { 0 });
                plain((integer(|value| self.def(value).result(), inst, args, |flags| self.token(flags)) & inst.ty.mask()).into())
            }
        }
    }

    fn set_slot(&mut self, inst: &Inst) {
        let slot = inst.imm as u8;
        let value = self.bits(inst.args[0]);
        let old = self.guest.slot(slot);
        let new = match inst.ty {
            Ty::I8 if inst.aux == HIGH_BYTE => old & !0xff00 | value << 8,
            Ty::I8 | Ty::I16 => old & !u128::from(inst.ty.mask()) | value,
            _ => value,
        };
        self.guest.set_slot(slot, new);
    }

    /// The flags that the instruction of `%r` leaves of `%old`: as consumers may see them, and all of them.
    fn flags_of(&self, r: Val, old: Val) -> (FlagSet, FlagSet) {
        let inst = self.def(r);
        let args = inst.args.map(|arg| if arg.is_some() { self.int(arg) } else { 0 });
        let (old_hot, old_all) = if old.is_some() { (self.token(old), self.values[old.index()].all) } else { Default::default() };
        let is_kept = inst.op.count_argument().is_some_and(|count| args[count] as u8 & inst.ty.count_mask() == 0);
        let written = if is_kept { FlagSet::empty() } else { inst.op.flags_written() };
        let flags = if is_kept { FlagSet::empty() } else { left_by(inst, args, self.int(r), |token| self.token(token)) };
        let merge = |old: FlagSet| old & written.complement() | flags & written;
        (merge(old_hot), merge(old_all))
    }
}

fn is_aligned(access: MemoryAccess, address: u64) -> bool {
    !access.aligned || address.is_multiple_of(access.bytes.into())
}

fn sign_extended(value: u64, ty: Ty) -> u64 {
    let unused = 64 - ty.bits();
    ((value << unused) as i64 >> unused) as u64
}

fn double(high: u64, low: u64, ty: Ty) -> u128 {
    u128::from(high) << ty.bits() | u128::from(low)
}

fn bit(value: u64, number: u32) -> bool {
    value >> number & 1 != 0
}

/// The result of a pure integer operation without flags, not cut.
pub(super) fn fold(inst: &Inst, args: [u64; 3], type_of: impl Fn(Val) -> Option<Ty>) -> u64 {
    integer(type_of, inst, args, |_| FlagSet::empty())
}

/// The result of an integer operation, not cut.
fn integer(type_of: impl Fn(Val) -> Option<Ty>, inst: &Inst, [a, b, c]: [u64; 3], token: impl Fn(Val) -> FlagSet) -> u64 {
    let ty = inst.ty;
    let bits = ty.bits();
    let carry = |number: usize| u64::from(token(inst.args[number]).contains(FlagSet::C));
    let signed = |value: u64| sign_extended(value, ty) as i64;
    match inst.op {
        Op::Const => inst.imm,
        Op::Add => a.wrapping_add(b),
        Op::Sub => a.wrapping_sub(b),
        Op::AddCarry => a.wrapping_add(b).wrapping_add(carry(2)),
        Op::SubBorrow => a.wrapping_sub(b).wrapping_sub(carry(2)),
        Op::Inc => a.wrapping_add(1),
        Op::Dec => a.wrapping_sub(1),
        Op::Neg => a.wrapping_neg(),
        Op::And => a & b,
        Op::Or => a | b,
        Op::Xor => a ^ b,
        Op::Not => !a,
        Op::MulUnsigned | Op::MulSigned => a.wrapping_mul(b),
        Op::MulHighUnsigned => ((u128::from(a) * u128::from(b)) >> bits) as u64,
        Op::MulHighSigned => ((i128::from(signed(a)) * i128::from(signed(b))) >> bits) as u64,
        Op::DivUnsigned => (double(a, b, ty) / u128::from(c)) as u64,
        Op::RemUnsigned => (double(a, b, ty) % u128::from(c)) as u64,
        Op::DivSigned => (signed(b) / signed(c)) as u64,
        Op::RemSigned => (signed(b) % signed(c)) as u64,
        Op::Shl | Op::Shr | Op::Sar | Op::Rol | Op::Ror => shifted(inst.op, ty, a, b as u8),
        Op::RolCarry | Op::RorCarry => rotated_through(inst.op, ty, a, b as u8, carry(2) != 0).0,
        Op::ShlDouble | Op::ShrDouble => shifted_in(inst.op, ty, a, b, c as u8).0,
        Op::BitTest => a,
        Op::BitSet => a | 1 << (b & u64::from(bits - 1)),
        Op::BitReset => a & !(1 << (b & u64::from(bits - 1))),
        Op::BitFlip => a ^ 1 << (b & u64::from(bits - 1)),
        Op::BitScanForward => {
            if a == 0 {
                b
            } else {
                a.trailing_zeros().into()
            }
        }
        Op::BitScanReverse => {
            if a == 0 {
                b
            } else {
                a.ilog2().into()
            }
        }
        Op::CountOnes => a.count_ones().into(),
        Op::SwapBytes => a.swap_bytes() >> (64 - bits),
        Op::ZeroExtend | Op::Truncate => a,
        Op::HighByte => a >> 8,
        Op::InsertLow => match type_of(inst.args[1]) {
            Some(from) => a & !from.mask() | b,
            None => unreachable!("the verifier has seen the argument's type"),
        },
        Op::InsertHigh => a & !0xff00 | b << 8,
        Op::SignExtend => match type_of(inst.args[0]) {
            Some(Ty::Bool) => a.wrapping_neg(),
            Some(from) => sign_extended(a, from),
            None => unreachable!("the verifier has seen the argument's type"),
        },
        Op::Address => a.wrapping_add(b << (inst.aux & 3)).wrapping_add(inst.imm),
        Op::Select => {
            if a != 0 {
                b
            } else {
                c
            }
        }
        op => unreachable!("{op:?} is no integer operation"),
    }
}

fn shifted(op: Op, ty: Ty, a: u64, count: u8) -> u64 {
    let (bits, count) = (ty.bits(), u32::from(count & ty.count_mask()));
    match op {
        Op::Shl => a.checked_shl(count).unwrap_or(0),
        Op::Shr => a.checked_shr(count).unwrap_or(0),
        Op::Sar => (sign_extended(a, ty) as i64 >> count.min(63)) as u64,
        Op::Rol => (u128::from(a) << (count % bits) | u128::from(a) >> (bits - count % bits)) as u64,
        _ => (u128::from(a) >> (count % bits) | u128::from(a) << (bits - count % bits)) as u64,
    }
}

/// The result, and what comes to stand in the carry.
fn rotated_through(op: Op, ty: Ty, a: u64, count: u8, carry: bool) -> (u64, bool) {
    let bits = ty.bits();
    let (mut a, mut carry) = (a, carry);
    for _ in 0..u32::from(count & ty.count_mask()) % (bits + 1) {
        let came = u64::from(carry);
        if op == Op::RolCarry {
            carry = bit(a, bits - 1);
            a = (a << 1 | came) & ty.mask();
        } else {
            carry = bit(a, 0);
            a = a >> 1 | came << (bits - 1);
        }
    }
    (a, carry)
}

/// The result, and the last bit shifted out.
fn shifted_in(op: Op, ty: Ty, a: u64, b: u64, count: u8) -> (u64, bool) {
    let (bits, count) = (ty.bits(), u32::from(count & ty.count_mask()));
    let mut ring = a;
    let mut out = false;
    for step in 0..count {
        // Behind b's bits come a's, where the count is larger than the width.
        let source = if step < bits { b } else { a };
        if op == Op::ShlDouble {
            out = bit(ring, bits - 1);
            ring = (ring << 1 | u64::from(bit(source, bits - 1 - step % bits))) & ty.mask();
        } else {
            out = bit(ring, 0);
            ring = ring >> 1 | u64::from(bit(source, step % bits)) << (bits - 1);
        }
    }
    (ring, out)
}

/// The flags that an operation with these arguments and this result leaves.
fn left_by(inst: &Inst, [a, b, c]: [u64; 3], r: u64, token: impl Fn(Val) -> FlagSet) -> FlagSet {
    let ty = inst.ty;
    let bits = ty.bits();
    let sign = |value: u64| bit(value, bits - 1);
    let signed = |value: u64| i128::from(sign_extended(value, ty) as i64);
    let result = {
        let mut flags = FlagSet::empty();
        flags.set(FlagSet::Z, r == 0);
        flags.set(FlagSet::S, sign(r));
        flags.set(FlagSet::P, (r as u8).count_ones().is_multiple_of(2));
        flags
    };
    let with = |base: FlagSet, carry: bool, overflow: bool, half: bool| {
        let mut flags = base;
        flags.set(FlagSet::C, carry);
        flags.set(FlagSet::O, overflow);
        flags.set(FlagSet::A, half);
        flags
    };
    let sum = |a: u64, b: u64, carry: u64| {
        let whole = u128::from(a) + u128::from(b) + u128::from(carry);
        let overflow = signed(a) + signed(b) + i128::from(carry) != signed(r);
        with(result, whole > u128::from(ty.mask()), overflow, (a & 15) + (b & 15) + carry > 15)
    };
    let difference = |a: u64, b: u64, borrow: u64| {
        let below = u128::from(a) < u128::from(b) + u128::from(borrow);
        let overflow = signed(a) - signed(b) - i128::from(borrow) != signed(r);
        with(result, below, overflow, a & 15 < (b & 15) + borrow)
    };
    let carry = |number: usize| token(inst.args[number]).contains(FlagSet::C);
    match inst.op {
        Op::Add => sum(a, b, 0),
        Op::Sub => difference(a, b, 0),
        Op::AddCarry => sum(a, b, carry(2).into()),
        Op::SubBorrow => difference(a, b, carry(2).into()),
        Op::Inc => sum(a, 1, 0),
        Op::Dec => difference(a, 1, 0),
        Op::Neg => difference(0, a, 0),
        Op::And | Op::Or | Op::Xor => result,
        Op::MulUnsigned => {
            let over = u128::from(a) * u128::from(b) > u128::from(ty.mask());
            with(result, over, over, false)
        }
        Op::MulSigned => {
            let over = signed(a) * signed(b) != signed(r);
            with(result, over, over, false)
        }
        Op::Shl | Op::Shr | Op::Sar => {
            let count = u32::from(b as u8 & ty.count_mask());
            let out = match inst.op {
                Op::Shl => count <= bits && bit(a, bits - count),
                Op::Shr => count <= bits && bit(a, count - 1),
                _ => bit(sign_extended(a, ty), (count - 1).min(63)),
            };
            let overflow = match inst.op {
                Op::Shl => out != sign(r),
                Op::Shr => sign(r) != sign(r << 1),
                _ => false,
            };
            with(result, out, overflow, false)
        }
        Op::Rol => with(result, bit(r, 0), bit(r, 0) != sign(r), false),
        Op::Ror => with(result, sign(r), sign(r) != sign(r << 1), false),
        Op::RolCarry => {
            let out = rotated_through(inst.op, ty, a, b as u8, carry(2)).1;
            with(result, out, out != sign(r), false)
        }
        Op::RorCarry => {
            let out = rotated_through(inst.op, ty, a, b as u8, carry(2)).1;
            with(result, out, sign(r) != sign(r << 1), false)
        }
        Op::ShlDouble | Op::ShrDouble => {
            let out = shifted_in(inst.op, ty, a, b, c as u8).1;
            with(result, out, sign(r) != sign(a), false)
        }
        Op::BitTest | Op::BitSet | Op::BitReset | Op::BitFlip => with(result, bit(a, b as u32 & (bits - 1)), false, false),
        Op::CountOnes => {
            if a == 0 {
                FlagSet::Z
            } else {
                FlagSet::empty()
            }
        }
        op => unreachable!("{op:?} has no flags"),
    }
}
