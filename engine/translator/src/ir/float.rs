//! What `VectorFloat` does: IEEE 754 arithmetic on vectors and on their lowest lanes, under the guest's rounding, flush and
//! sticky flags, all exceptions masked. The evaluator asks the guest for the results ([`super::eval::Guest::float`]); a host
//! has one instruction for each.

macro_rules! floats {
    ($($(#[$doc:meta])* $name:ident: $immediate:literal;)*) => {
        /// An operation on floating-point vectors a and b. "F32x4", "F64x2": in each lane; "F32", "F64": in the lowest, the
        /// others are a's.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[allow(clippy::enum_variant_names, reason = "the type is part of each name")]
        pub(crate) enum FloatOp { $($(#[$doc])* $name),* }

        const ALL: &[(FloatOp, &str, bool)] = &[$((FloatOp::$name, stringify!($name), $immediate)),*];
    };
}

floats! {
    AddF32x4: false;
    AddF64x2: false;
    AddF32: false;
    AddF64: false;
    SubF32x4: false;
    SubF64x2: false;
    SubF32: false;
    SubF64: false;
    MulF32x4: false;
    MulF64x2: false;
    MulF32: false;
    MulF64: false;
    DivF32x4: false;
    DivF64x2: false;
    DivF32: false;
    DivF64: false;
    /// b unless a < b: b too for NaNs and zeros of either sign.
    MinF32x4: false;
    MinF64x2: false;
    MinF32: false;
    MinF64: false;
    /// b unless a > b: likewise.
    MaxF32x4: false;
    MaxF64x2: false;
    MaxF32: false;
    MaxF64: false;
    /// √b.
    SqrtF32x4: false;
    SqrtF64x2: false;
    SqrtF32: false;
    SqrtF64: false;
    /// Ones where predicate number `immediate` (equal, less, less or equal, unordered, and their opposites) holds for a and b.
    CompareF32x4: true;
    CompareF64x2: true;
    CompareF32: true;
    CompareF64: true;
    /// b's two low F32, widened.
    WidenF32x2: false;
    /// b's two F64, narrowed; zero above.
    NarrowF64x2: false;
    /// b's lowest F32, widened into a.
    WidenF32: false;
    /// b's lowest F64, narrowed into a.
    NarrowF64: false;
    /// b's four I32 as F32.
    FromI32x4: false;
    /// b's two low I32 as F64.
    FromI32x2: false;
    /// b's four F32 as I32, rounded; what does not fit becomes the lowest integer.
    ToI32x4: false;
    /// The same, truncated.
    TruncateToI32x4: false;
    /// b's two F64 as I32, rounded; zero above.
    ToI32x2: false;
    /// The same, truncated.
    TruncateToI32x2: false;
}

impl FloatOp {
    /// By its number.
    pub fn from_number(number: u8) -> Option<Self> {
        ALL.get(usize::from(number)).map(|(op, ..)| *op)
    }
    /// As in text.
    pub fn name(self) -> &'static str {
        ALL[self as usize].1
    }
    /// Whether the immediate counts.
    pub fn takes_immediate(self) -> bool {
        ALL[self as usize].2
    }
    /// `imm` of a `VectorFloat` instruction.
    pub fn pack(self, immediate: u8) -> u64 {
        self as u64 | u64::from(immediate) << 8
    }
}
