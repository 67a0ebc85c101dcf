//! The table of operations, and the small types that their `aux` and `imm` hold.

use bitflags::bitflags;

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(crate) enum Ty {
    /// No value (a jump's width).
    None,
    /// 0 or 1.
    Bool,
    I8,
    I16,
    I32,
    I64,
    /// A vector register of 128 bits; what its lanes are is the operation's business.
    V128,
    /// A token.
    Flags,
}

impl Ty {
    /// The integer of `bytes`: 1, 2, 4, 8; of 16 the vector.
    pub fn of_bytes(bytes: u8) -> Self {
        match bytes {
            1 => Self::I8,
            2 => Self::I16,
            4 => Self::I32,
            8 => Self::I64,
            _ => Self::V128,
        }
    }
    /// Size in bytes; 0 for what has none.
    pub fn bytes(self) -> u8 {
        match self {
            Self::None | Self::Bool | Self::Flags => 0,
            Self::I8 => 1,
            Self::I16 => 2,
            Self::I32 => 4,
            Self::I64 => 8,
            Self::V128 => 16,
        }
    }
    /// Width in bits.
    pub fn bits(self) -> u32 {
        u32::from(self.bytes()) * 8
    }
    /// Whether it is one of the four integers.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::I8 | Self::I16 | Self::I32 | Self::I64)
    }
    /// All ones, of an integer.
    pub fn mask(self) -> u64 {
        match self {
            Self::Bool => 1,
            Self::I8 => 0xff,
            Self::I16 => 0xffff,
            Self::I32 => 0xffff_ffff,
            _ => u64::MAX,
        }
    }
    /// What a shift keeps of its count.
    pub fn count_mask(self) -> u8 {
        if self == Self::I64 { 63 } else { 31 }
    }
    /// As in text.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Bool => "bool",
            Self::I8 => "i8",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::V128 => "v128",
            Self::Flags => "flags",
        }
    }
}

bitflags! {
    /// The six flags.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub(crate) struct FlagSet: u8 {
        /// Carry; of subtractions the borrow.
        const C = 1 << 0;
        /// The result's low byte has an even number of ones.
        const P = 1 << 1;
        /// Carry out of the low four bits.
        const A = 1 << 2;
        /// The result is zero.
        const Z = 1 << 3;
        /// The result's highest bit.
        const S = 1 << 4;
        /// Signed overflow.
        const O = 1 << 5;
    }
}

impl FlagSet {
    /// Bits of a packed word: the places of EFLAGS.
    pub fn packed(self) -> u64 {
        let places = [(Self::C, 0), (Self::P, 2), (Self::A, 4), (Self::Z, 6), (Self::S, 7), (Self::O, 11)];
        places.iter().filter(|(flag, _)| self.contains(*flag)).map(|(_, place)| 1 << place).sum()
    }
    /// From the places of EFLAGS.
    pub fn from_packed(word: u64) -> Self {
        Self::all().iter().filter(|flag| word & flag.packed() != 0).collect()
    }
}

bitflags! {
    /// What an operation does beside giving a value.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct Effects: u16 {
        /// Depends on slots, the guest's flags or its pc.
        const READ_STATE = 1 << 0;
        /// Changes slots or the guest's flags: a commit.
        const WRITE_STATE = 1 << 1;
        const READ_MEMORY = 1 << 2;
        const WRITE_MEMORY = 1 << 3;
        /// May leave the block, restoring its snapshot.
        const MAY_BAIL = 1 << 4;
        /// May change mappings or the mode: nothing known about memory survives it.
        const MMU = 1 << 5;
        /// May reach devices.
        const IO = 1 << 6;
        /// Depends on and changes the host's floating-point context (MXCSR).
        const FP_ENVIRONMENT = 1 << 7;
        /// The block's exit.
        const ENDS_BLOCK = 1 << 8;
    }
}

impl Effects {
    /// No effect: may be moved, repeated, or removed when unused.
    pub const PURE: Self = Self::empty();
}

/// What an argument must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arg {
    /// Of the instruction's type.
    Same,
    /// The same, or missing.
    SameOrNone,
    /// I64: a linear address or a pc.
    Address,
    /// I8: a shift count or bit number.
    Count,
    Bool,
    /// A token.
    Flags,
    FlagsOrNone,
    I16,
    /// An integer (or `Bool`) narrower than the instruction's type.
    Narrower,
    /// An integer wider than the instruction's type.
    Wider,
    /// A value with flags: see [`Op::flags_written`].
    SetsFlags,
    /// I8 to I64.
    Integer,
    /// The same, or missing.
    IntegerOrNone,
    /// I64, or missing.
    AddressOrNone,
    /// V128.
    Vector,
}

/// What an operation gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gives {
    Nothing,
    /// A value of the instruction's type.
    Same,
    Bool,
    I16,
    Flags,
}

impl Gives {
    /// The result's type when the instruction's is `ty`.
    pub fn ty(self, ty: Ty) -> Option<Ty> {
        match self {
            Self::Nothing => None,
            Self::Same => Some(ty),
            Self::Bool => Some(Ty::Bool),
            Self::I16 => Some(Ty::I16),
            Self::Flags => Some(Ty::Flags),
        }
    }
}

/// Which types an instruction may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Types {
    /// `Ty::None`.
    NoType,
    Integer,
    /// I16, I32, I64.
    Wide,
    /// An integer or `V128`.
    Any,
    Vector,
    Flags,
    /// Whatever a slot or the flags may be.
    Value,
    /// I64 only.
    Word,
}

/// A line of the table.
#[derive(Debug)]
pub(crate) struct Info {
    pub name: &'static str,
    pub types: Types,
    pub args: &'static [Arg],
    pub result: Gives,
    pub effects: Effects,
    /// Which flags `FlagsOf` this writes.
    pub flags: FlagSet,
}

const ALL: FlagSet = FlagSet::all();
const NO_FLAGS: FlagSet = FlagSet::empty();
const CARRY: FlagSet = FlagSet::C;
const BUT_CARRY: FlagSet = FlagSet::C.complement();
const CARRY_AND_OVERFLOW: FlagSet = FlagSet::C.union(FlagSet::O);

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident: $types:ident [$($arg:ident),*] -> $result:ident, $($effect:ident)|+, $flags:ident;)*) => {
        /// What an instruction does. Where a flag is "undefined" the processor's manual leaves it open and so do we, except
        /// that the interpreter, the evaluator and whoever is compared with them give it the value said here.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub(crate) enum Op { $($(#[$doc])* $name),* }

        /// The table, in the order of [`Op`].
        pub(crate) const TABLE: &[Info] = &[$(Info {
            name: stringify!($name),
            types: Types::$types,
            args: &[$(Arg::$arg),*],
            result: Gives::$result,
            effects: Effects::empty()$(.union(Effects::$effect))+,
            flags: $flags,
        }),*];
    };
}

operations! {
    /// Nothing: what a pass has removed.
    Nop: NoType [] -> Nothing, PURE, NO_FLAGS;
    /// In regions: what a block is handed by those before it. `imm`: see [`super::region`].
    Param: Value [] -> Same, PURE, NO_FLAGS;

    // ---- Constants and state ----
    /// `imm`.
    Const: Integer [] -> Same, PURE, NO_FLAGS;
    /// The pc `imm` bytes from the block's start ([`super::Block::target`]), cut to the type. Changes when the block is moved.
    Pc: Wide [] -> Same, PURE, NO_FLAGS;
    /// Slot number `imm`; `aux`: [`super::HIGH_BYTE`].
    GetSlot: Any [] -> Same, READ_STATE, NO_FLAGS;
    /// Commits slot number `imm`; `aux`: [`super::HIGH_BYTE`].
    SetSlot: Any [Same] -> Nothing, WRITE_STATE, NO_FLAGS;

    // ---- Arithmetic ----
    /// a + b.
    Add: Integer [Same, Same] -> Same, PURE, ALL;
    /// a − b. C is the borrow.
    Sub: Integer [Same, Same] -> Same, PURE, ALL;
    /// a + b + C of the token.
    AddCarry: Integer [Same, Same, Flags] -> Same, PURE, ALL;
    /// a − b − C of the token. C is the borrow.
    SubBorrow: Integer [Same, Same, Flags] -> Same, PURE, ALL;
    /// a + 1, without a carry.
    Inc: Integer [Same] -> Same, PURE, BUT_CARRY;
    /// a − 1, without a carry.
    Dec: Integer [Same] -> Same, PURE, BUT_CARRY;
    /// 0 − a. C: a was not zero.
    Neg: Integer [Same] -> Same, PURE, ALL;
    /// C and O are clear; A too (undefined).
    And: Integer [Same, Same] -> Same, PURE, ALL;
    /// Flags as `And`.
    Or: Integer [Same, Same] -> Same, PURE, ALL;
    /// Flags as `And`.
    Xor: Integer [Same, Same] -> Same, PURE, ALL;
    Not: Integer [Same] -> Same, PURE, NO_FLAGS;
    /// The low half of the product. C and O: the product as unsigned does not fit in it. Z S P of the low half, A clear (all
    /// four undefined).
    MulUnsigned: Integer [Same, Same] -> Same, PURE, ALL;
    /// The low half of the product. C and O: the product as signed does not fit in it. Others as `MulUnsigned`.
    MulSigned: Integer [Same, Same] -> Same, PURE, ALL;
    /// The high half of the unsigned product. (Stands behind `MulUnsigned` and its `FlagsOf` when a guest wants both.)
    MulHighUnsigned: Integer [Same, Same] -> Same, PURE, NO_FLAGS;
    /// The high half of the signed product.
    MulHighSigned: Integer [Same, Same] -> Same, PURE, NO_FLAGS;

    // ---- Division: the dividend is high:low, the divisor the third argument. Only behind a `BailIf` that has excluded
    // quotients that do not fit ----
    /// The unsigned quotient: high < divisor.
    DivUnsigned: Integer [Same, Same, Same] -> Same, PURE, NO_FLAGS;
    /// The remainder. (Stands behind `DivUnsigned` of the same arguments.)
    RemUnsigned: Integer [Same, Same, Same] -> Same, PURE, NO_FLAGS;
    /// The signed quotient, truncated: high is low's sign, the divisor neither 0 nor −1.
    DivSigned: Integer [Same, Same, Same] -> Same, PURE, NO_FLAGS;
    /// The remainder; its sign is the dividend's. (Stands behind `DivSigned` of the same arguments.)
    RemSigned: Integer [Same, Same, Same] -> Same, PURE, NO_FLAGS;

    // ---- Shifts: counts are cut to 5 bits, 6 for I64 ([`Ty::count_mask`]); a count of zero leaves all flags ----
    /// C: the last bit shifted out. O: C ≠ the result's sign. A clear (undefined; O too for counts other than 1).
    Shl: Integer [Same, Count] -> Same, PURE, ALL;
    /// C: the last bit shifted out. O: the result's highest two bits differ. A clear. Undefined as for `Shl`.
    Shr: Integer [Same, Count] -> Same, PURE, ALL;
    /// Arithmetic. C: the last bit shifted out. O and A clear.
    Sar: Integer [Same, Count] -> Same, PURE, ALL;
    /// C: the result's lowest bit. O: C ≠ the result's sign.
    Rol: Integer [Same, Count] -> Same, PURE, CARRY_AND_OVERFLOW;
    /// C: the result's sign. O: its highest two bits differ.
    Ror: Integer [Same, Count] -> Same, PURE, CARRY_AND_OVERFLOW;
    /// Rotates through C of the token, `bits + 1` places. C: what comes to stand there. O: C ≠ the result's sign.
    RolCarry: Integer [Same, Count, Flags] -> Same, PURE, CARRY_AND_OVERFLOW;
    /// Rotates right through C of the token. O: the result's highest two bits differ.
    RorCarry: Integer [Same, Count, Flags] -> Same, PURE, CARRY_AND_OVERFLOW;
    /// a shifted left by the third argument, b's high bits coming in. C: the last bit shifted out. O: the sign changed. A
    /// clear. `.i16` with counts above 16: a comes in behind b (undefined).
    ShlDouble: Wide [Same, Same, Count] -> Same, PURE, ALL;
    /// The same to the right, b's low bits coming in.
    ShrDouble: Wide [Same, Same, Count] -> Same, PURE, ALL;

    // ---- Bits ----
    /// a; only for its flag: C is bit n of a (n modulo the width).
    BitTest: Wide [Same, Count] -> Same, PURE, CARRY;
    /// a with bit n set. C: what it was.
    BitSet: Wide [Same, Count] -> Same, PURE, CARRY;
    /// a with bit n clear.
    BitReset: Wide [Same, Count] -> Same, PURE, CARRY;
    /// a with bit n flipped.
    BitFlip: Wide [Same, Count] -> Same, PURE, CARRY;
    /// The number of a's lowest set bit; b if a is zero.
    BitScanForward: Wide [Same, Same] -> Same, PURE, NO_FLAGS;
    /// The number of a's highest set bit; b if a is zero.
    BitScanReverse: Wide [Same, Same] -> Same, PURE, NO_FLAGS;
    /// How many bits are set. Z: none; the others clear.
    CountOnes: Wide [Same] -> Same, PURE, ALL;
    /// The bytes in reverse order. I32 and I64.
    SwapBytes: Wide [Same] -> Same, PURE, NO_FLAGS;

    // ---- Widths ----
    ZeroExtend: Integer [Narrower] -> Same, PURE, NO_FLAGS;
    SignExtend: Integer [Narrower] -> Same, PURE, NO_FLAGS;
    Truncate: Integer [Wider] -> Same, PURE, NO_FLAGS;
    /// In regions: bits 8 to 15.
    HighByte: Integer [Wider] -> Same, PURE, NO_FLAGS;
    /// In regions: a with the narrower b in its low bits.
    InsertLow: Wide [Same, Narrower] -> Same, PURE, NO_FLAGS;
    /// In regions: a with the byte b in bits 8 to 15.
    InsertHigh: Wide [Same, Narrower] -> Same, PURE, NO_FLAGS;
    /// base + (index << `aux`) + `imm`, cut to the type: what addressing modes compute. `aux` ≤ 3. Never has flags. At least
    /// one of the two is there.
    Address: Wide [SameOrNone, SameOrNone] -> Same, PURE, NO_FLAGS;
    /// a if the first argument is true, else b.
    Select: Integer [Bool, Same, Same] -> Same, PURE, NO_FLAGS;

    // ---- Vectors ----
    /// [`super::vector::VectorOp`] number `imm & 255` of a and b, with the immediate `imm >> 8`.
    Vector: Vector [Same, SameOrNone] -> Same, PURE, NO_FLAGS;
    /// The integer in the lowest lane, zero above.
    ToVector: Vector [Integer] -> Same, PURE, NO_FLAGS;
    /// Lane number `imm`, lanes being as wide as the type.
    VectorLane: Integer [Vector] -> Same, PURE, NO_FLAGS;
    /// The highest bits of all lanes, each `aux` bytes wide, as an integer.
    VectorSigns: Wide [Vector] -> Same, PURE, NO_FLAGS;

    // ---- Floating point: under the guest's floating-point context, in which all exceptions are masked; sticky flags gather
    // there ----
    /// [`super::float::FloatOp`] number `imm & 255` of a and b, with the immediate `imm >> 8`.
    VectorFloat: Vector [Same, Same] -> Same, READ_STATE | FP_ENVIRONMENT, NO_FLAGS;
    /// Compares the lowest floats, `aux & 15` bytes each: Z P C are 111 for unordered, 000 for a > b, 001 for a < b, 100 for
    /// equal; the others clear. `aux & 16`: quiet NaNs are invalid too.
    FloatCompare: Flags [Vector, Vector] -> Flags, READ_STATE | FP_ENVIRONMENT, NO_FLAGS;
    /// a with the signed integer b as its lowest float of `aux` bytes.
    IntToFloat: Vector [Same, Integer] -> Same, READ_STATE | FP_ENVIRONMENT, NO_FLAGS;
    /// The lowest float of `aux & 15` bytes as a signed integer (I32, I64), rounded, or truncated with `aux & 16`; the lowest
    /// integer if it does not fit.
    FloatToInt: Wide [Vector] -> Same, READ_STATE | FP_ENVIRONMENT, NO_FLAGS;

    // ---- Flags ----
    /// The token of what the guest's state holds.
    GetFlags: Flags [] -> Flags, READ_STATE, NO_FLAGS;
    /// What the instruction of the first argument leaves of the second: see [`super`].
    FlagsOf: Flags [SetsFlags, FlagsOrNone] -> Flags, PURE, NO_FLAGS;
    /// The flags in `imm` (a [`FlagSet`]) from the second argument, the others from the first.
    FlagsMerge: Flags [FlagsOrNone, Flags] -> Flags, PURE, NO_FLAGS;
    /// From a word with the flags in the places of EFLAGS.
    FlagsUnpack: Flags [I16] -> Flags, PURE, NO_FLAGS;
    /// The flags in the places of EFLAGS, all other bits clear.
    FlagsPack: Flags [Flags] -> I16, PURE, NO_FLAGS;
    /// From here on the guest's flags are these.
    SetFlags: Flags [Flags] -> Nothing, WRITE_STATE, NO_FLAGS;
    /// Whether [`Condition`] number `aux` holds.
    Cond: Flags [Flags] -> Bool, PURE, NO_FLAGS;

    // ---- Memory: `aux` is a [`MemoryAccess`] (an [`Atomic`] for AtomicRmw), `imm` is added to the address ----
    /// [`MemoryAccess::bytes`] bytes, extended to the type.
    Load: Any [Address] -> Same, READ_MEMORY | MAY_BAIL, NO_FLAGS;
    /// The type's bytes.
    Store: Any [Address, Same] -> Nothing, WRITE_MEMORY | MAY_BAIL, NO_FLAGS;
    /// As one locked operation: combines memory with the second argument and gives what was there.
    AtomicRmw: Integer [Address, Same] -> Same, READ_MEMORY | WRITE_MEMORY | MAY_BAIL, NO_FLAGS;
    /// As one locked operation: stores the third argument if the second is there, and gives what was there.
    AtomicCas: Integer [Address, Same, Same] -> Same, READ_MEMORY | WRITE_MEMORY | MAY_BAIL, NO_FLAGS;
    /// All loads and stores before come before all behind.
    Fence: NoType [] -> Nothing, READ_MEMORY | WRITE_MEMORY, NO_FLAGS;

    /// In regions: the addend that makes a host address of the argument, good for the [`super::region::Span`] in `imm` with the
    /// rights in `aux` ([`super::region::PROBE_READ`], [`super::region::PROBE_WRITE`]).
    Probe: Word [Address] -> Same, READ_STATE | MAY_BAIL, NO_FLAGS;
    /// In regions: as `Load`, at a host address: the second argument is the addend, for which a probe has vouched.
    LoadVia: Any [Address, Address] -> Same, READ_MEMORY, NO_FLAGS;
    /// In regions: as `Store`, at a host address: the second argument is the addend, the third the value.
    StoreVia: Any [Address, Address, Same] -> Nothing, WRITE_MEMORY, NO_FLAGS;

    // ---- In regions: a vector instruction of the guest's that the host has too; `imm` and `aux`: see [`super::native`] ----
    /// Changes vector registers, by an integer, or by what is at a host address (of address and addend), or neither.
    Native: NoType [IntegerOrNone, AddressOrNone] -> Nothing, READ_STATE | WRITE_STATE | READ_MEMORY | FP_ENVIRONMENT, NO_FLAGS;
    /// Stores at a host address, of address and addend.
    NativeStore: NoType [Address, Address] -> Nothing, READ_STATE | WRITE_MEMORY | FP_ENVIRONMENT, NO_FLAGS;
    /// Gives an integer, perhaps of what is at a host address.
    NativeInteger: Wide [AddressOrNone, AddressOrNone] -> Same, READ_STATE | READ_MEMORY | FP_ENVIRONMENT, NO_FLAGS;
    /// Gives all flags, perhaps of what is at a host address.
    NativeFlags: Flags [AddressOrNone, AddressOrNone] -> Flags, READ_STATE | READ_MEMORY | FP_ENVIRONMENT, NO_FLAGS;
    /// Loads the elements of a vector, at addresses relative to the argument, or to 0: see [`super::gather`].
    NativeGather: NoType [AddressOrNone] -> Nothing, READ_STATE | WRITE_STATE | READ_MEMORY | MAY_BAIL, NO_FLAGS;
    /// Bails unless the argument + `imm` is a multiple of `aux`.
    CheckAligned: NoType [Address] -> Nothing, MAY_BAIL, NO_FLAGS;

    // ---- Rare things ----
    /// In regions: leaves with the snapshot's state if the vCPU is wanted.
    Poll: NoType [] -> Nothing, READ_STATE | MAY_BAIL, NO_FLAGS;
    /// Bails if true.
    BailIf: NoType [Bool] -> Nothing, MAY_BAIL, NO_FLAGS;
    /// Bails unless a near transfer to the argument is allowed.
    CheckPc: NoType [Address] -> Nothing, READ_STATE | MAY_BAIL, NO_FLAGS;
    /// Has the interpreter execute guest instruction number `imm` of the block.
    CallInterp: NoType [] -> Nothing, READ_STATE | WRITE_STATE | READ_MEMORY | WRITE_MEMORY | MAY_BAIL | MMU | IO | FP_ENVIRONMENT, NO_FLAGS;

    // ---- Exits ----
    /// Goes to the block's start + `imm`.
    Jump: NoType [] -> Nothing, ENDS_BLOCK, NO_FLAGS;
    /// Goes to the block's start + `imm` if true, else to its end.
    Branch: NoType [Bool] -> Nothing, ENDS_BLOCK, NO_FLAGS;
    /// Goes to the argument.
    JumpIndirect: NoType [Address] -> Nothing, ENDS_BLOCK, NO_FLAGS;
    /// Goes to the block's start + `imm`; a `Ret` to the block's end is expected.
    Call: NoType [] -> Nothing, ENDS_BLOCK, NO_FLAGS;
    /// Goes to the argument; a `Ret` to the block's end is expected.
    CallIndirect: NoType [Address] -> Nothing, ENDS_BLOCK, NO_FLAGS;
    /// Goes to the argument, which most likely is where the last call's block ended.
    Ret: NoType [Address] -> Nothing, ENDS_BLOCK, NO_FLAGS;
    /// Goes to where the state's pc points.
    Dispatch: NoType [] -> Nothing, READ_STATE | ENDS_BLOCK, NO_FLAGS;
    /// Leaves for the interpreter, which executes the snapshot's instruction.
    Bail: NoType [] -> Nothing, MAY_BAIL | ENDS_BLOCK, NO_FLAGS;
}

impl Op {
    /// Its line of the table.
    #[inline]
    pub fn info(self) -> &'static Info {
        &TABLE[self as usize]
    }
    /// Which flags `FlagsOf` it writes; the others come from the old token.
    pub fn flags_written(self) -> FlagSet {
        self.info().flags
    }
    /// Whether a count of zero leaves all flags, and in which argument the count is.
    pub fn count_argument(self) -> Option<usize> {
        match self {
            Self::Shl | Self::Shr | Self::Sar | Self::Rol | Self::Ror | Self::RolCarry | Self::RorCarry => Some(1),
            Self::ShlDouble | Self::ShrDouble => Some(2),
            _ => None,
        }
    }
}

/// A question to a token, by x86's numbers; an odd one is the opposite of the even one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Condition {
    Overflow,
    NotOverflow,
    /// C: of a comparison, unsigned less.
    Below,
    NotBelow,
    Equal,
    NotEqual,
    /// C or Z.
    BelowOrEqual,
    Above,
    Sign,
    NotSign,
    Parity,
    NotParity,
    /// S ≠ O: signed less.
    Less,
    NotLess,
    LessOrEqual,
    Greater,
}

impl Condition {
    const ALL: [Self; 16] = [
        Self::Overflow,
        Self::NotOverflow,
        Self::Below,
        Self::NotBelow,
        Self::Equal,
        Self::NotEqual,
        Self::BelowOrEqual,
        Self::Above,
        Self::Sign,
        Self::NotSign,
        Self::Parity,
        Self::NotParity,
        Self::Less,
        Self::NotLess,
        Self::LessOrEqual,
        Self::Greater,
    ];

    /// From its number, of which four bits count.
    pub fn from_number(number: u8) -> Self {
        Self::ALL[usize::from(number & 15)]
    }

    /// The flags it looks at.
    pub fn flags(self) -> FlagSet {
        match self as u8 >> 1 {
            0 => FlagSet::O,
            1 => FlagSet::C,
            2 => FlagSet::Z,
            3 => FlagSet::C | FlagSet::Z,
            4 => FlagSet::S,
            5 => FlagSet::P,
            6 => FlagSet::S | FlagSet::O,
            _ => FlagSet::S | FlagSet::O | FlagSet::Z,
        }
    }

    /// Its answer.
    pub fn holds(self, flags: FlagSet) -> bool {
        let has = |flag| flags.contains(flag);
        let base = match self as u8 >> 1 {
            0 => has(FlagSet::O),
            1 => has(FlagSet::C),
            2 => has(FlagSet::Z),
            3 => has(FlagSet::C) || has(FlagSet::Z),
            4 => has(FlagSet::S),
            5 => has(FlagSet::P),
            6 => has(FlagSet::S) != has(FlagSet::O),
            _ => has(FlagSet::Z) || has(FlagSet::S) != has(FlagSet::O),
        };
        base != (self as u8 & 1 != 0)
    }
}

/// What must be ordered with a load or store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Ordering {
    /// Nothing.
    Plain,
    /// As x86: loads with loads, stores with stores, loads before stores.
    Tso,
    /// All that follows a load; all that precedes a store.
    AcquireRelease,
    /// And these with each other.
    Sequential,
}

/// How a load or store moves: `aux` of `Load`, `Store`, `AtomicCas`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryAccess {
    /// 1, 2, 4, 8, 16; a store's and a compare-and-swap's are their type's.
    pub bytes: u8,
    /// Sign-extend what is loaded.
    pub signed: bool,
    /// A load that needs the rights of a write.
    pub for_write: bool,
    /// Bail unless the address is a multiple of the bytes.
    pub aligned: bool,
    pub ordering: Ordering,
}

impl MemoryAccess {
    /// As x86 moves `bytes`.
    pub const fn tso(bytes: u8) -> Self {
        Self { bytes, signed: false, for_write: false, aligned: false, ordering: Ordering::Tso }
    }
    /// As `aux`: log2 of the bytes, signed (8), for write (16), ordering (32, 64), aligned (128).
    pub fn bits(self) -> u8 {
        self.bytes.trailing_zeros() as u8
            | u8::from(self.signed) << 3
            | u8::from(self.for_write) << 4
            | (self.ordering as u8) << 5
            | u8::from(self.aligned) << 7
    }
    /// From `aux`.
    pub fn from_bits(bits: u8) -> Self {
        let ordering =
            [Ordering::Plain, Ordering::Tso, Ordering::AcquireRelease, Ordering::Sequential][usize::from(bits >> 5 & 3)];
        Self {
            bytes: 1 << (bits & 7).min(4),
            signed: bits & 8 != 0,
            for_write: bits & 16 != 0,
            aligned: bits & 128 != 0,
            ordering,
        }
    }
}

/// What `AtomicRmw` does with memory m and operand b: its `aux`. All are sequentially consistent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Atomic {
    /// b.
    Exchange,
    /// m + b.
    Add,
    /// m − b.
    Sub,
    And,
    Or,
    Xor,
}

impl Atomic {
    /// From `aux`.
    pub fn from_bits(bits: u8) -> Self {
        [Self::Exchange, Self::Add, Self::Sub, Self::And, Self::Or, Self::Xor][usize::from(bits.min(5))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_for_every_operation_in_its_order() {
        assert_eq!(TABLE.len(), Op::Bail as usize + 1);
        assert_eq!(Op::Cond.info().name, "Cond");
        assert_eq!(Op::Bail.info().name, "Bail");
    }

    #[test]
    fn packed_flags_come_back() {
        for bits in 0..64 {
            let flags = FlagSet::from_bits_truncate(bits);
            assert_eq!(FlagSet::from_packed(flags.packed()), flags);
        }
        assert_eq!(FlagSet::all().packed(), 0x8d5, "the places of EFLAGS");
    }

    #[test]
    fn accesses_come_back_from_their_bits() {
        for bytes in [1, 2, 4, 8, 16] {
            for bits in 0..8 {
                let (signed, for_write, aligned) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
                for ordering in [Ordering::Plain, Ordering::Tso, Ordering::AcquireRelease, Ordering::Sequential] {
                    let access = MemoryAccess { bytes, signed, for_write, aligned, ordering };
                    assert_eq!(MemoryAccess::from_bits(access.bits()), access);
                }
            }
        }
    }
}
