//! RFLAGS with lazy arithmetic flags. An arithmetic instruction stores its result and its carries; each flag is
//! computed from these two words when somebody looks.
//!
//! `result` is the result, sign-extended: ZF and SF, and its low byte PF. `aux` is a word of carries: bit 63 the carry out
//! (CF), bit 62 the carry into the sign bit (so OF = bit 63 ^ bit 62), bit 3 the carry out of the low nibble (AF); bits 8–15
//! are XORed to the byte of which PF is taken and bit 0 to SF, so that flags set by POPF and the like can be any combination.

use super::cpu::Cpu;

/// Bits of RFLAGS.
#[allow(dead_code, reason = "the register is complete")]
pub(crate) mod bit {
    pub const CF: u64 = 1 << 0;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The six that arithmetic sets.
    pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
    /// All that exist, without the always-set bit 1.
    pub const ALL: u64 = ARITHMETIC | TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;
}

const CARRY: u64 = 1 << 63;
const CARRY_INTO_SIGN: u64 = 1 << 62;
const HALF_CARRY: u64 = 1 << 3;

/// The flags register.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flags {
    result: u64,
    aux: u64,
    /// All but the arithmetic flags.
    rest: u64,
}

impl Flags {
    /// Where the flags that are not arithmetic lie, for translated code: in their places, in a word of their own.
    pub const OTHERS: usize = std::mem::offset_of!(Flags, rest);

    /// From an RFLAGS value.
    pub fn new(value: u64) -> Self {
        let mut flags = Self { result: 0, aux: 0, rest: 0 };
        flags.set(value);
        flags
    }

    /// All of RFLAGS.
    #[inline]
    pub fn value(&self) -> u64 {
        self.rest | 2 | self.arithmetic()
    }

    /// The six arithmetic flags in their places.
    #[inline]
    pub fn arithmetic(&self) -> u64 {
        u64::from(self.cf())
            | u64::from(self.pf()) << 2
            | u64::from(self.af()) << 4
            | u64::from(self.zf()) << 6
            | u64::from(self.sf()) << 7
            | u64::from(self.of()) << 11
    }

    /// Sets all of RFLAGS (reserved bits are dropped). Who may change what is the caller's business.
    pub fn set(&mut self, value: u64) {
        self.rest = value & bit::ALL & !bit::ARITHMETIC;
        self.set_arithmetic(value);
    }

    /// Sets the six arithmetic flags from their places in `value`.
    pub fn set_arithmetic(&mut self, value: u64) {
        let zf = value & bit::ZF != 0;
        let cf = value & bit::CF != 0;
        let of = value & bit::OF != 0;
        let odd = value & bit::PF == 0;
        self.result = u64::from(!zf);
        let parity_byte = u64::from(!zf) ^ u64::from(odd);
        self.aux = (u64::from(cf) << 63)
            | (u64::from(cf != of) << 62)
            | (parity_byte << 8)
            | (u64::from(value & bit::AF != 0) << 3)
            | u64::from(value & bit::SF != 0);
    }

    /// CF
    #[inline(always)]
    pub fn cf(&self) -> bool {
        self.aux >> 63 != 0
    }
    /// PF
    #[inline(always)]
    pub fn pf(&self) -> bool {
        ((self.result ^ (self.aux >> 8)) as u8).count_ones() & 1 == 0
    }
    /// AF
    #[inline(always)]
    pub fn af(&self) -> bool {
        self.aux & HALF_CARRY != 0
    }
    /// ZF
    #[inline(always)]
    pub fn zf(&self) -> bool {
        self.result == 0
    }
    /// SF
    #[inline(always)]
    pub fn sf(&self) -> bool {
        (self.result >> 63) ^ (self.aux & 1) != 0
    }
    /// OF
    #[inline(always)]
    pub fn of(&self) -> bool {
        (self.aux ^ (self.aux << 1)) >> 63 != 0
    }
    /// Whether one of the non-arithmetic flags in `mask` is set.
    #[inline(always)]
    pub fn has(&self, mask: u64) -> bool {
        debug_assert!(mask & bit::ARITHMETIC == 0);
        self.rest & mask != 0
    }
    /// Sets non-arithmetic flags.
    #[inline(always)]
    pub fn insert(&mut self, mask: u64) {
        debug_assert!(mask & bit::ARITHMETIC == 0);
        self.rest |= mask;
    }
    /// Clears non-arithmetic flags.
    #[inline(always)]
    pub fn remove(&mut self, mask: u64) {
        debug_assert!(mask & bit::ARITHMETIC == 0);
        self.rest &= !mask;
    }
    /// The I/O privilege level.
    #[inline(always)]
    pub fn iopl(&self) -> u8 {
        (self.rest >> 12 & 3) as u8
    }

    /// Sets CF alone.
    #[inline(always)]
    pub fn set_cf(&mut self, cf: bool) {
        // OF is the difference of two bits, so both move together.
        if cf != self.cf() {
            self.aux ^= CARRY | CARRY_INTO_SIGN;
        }
    }

    /// Sets OF alone.
    #[inline(always)]
    pub fn set_of(&mut self, of: bool) {
        if of != self.of() {
            self.aux ^= CARRY_INTO_SIGN;
        }
    }

    /// Sets ZF alone (CMPXCHG8B, LAR, VERR …).
    pub fn set_zf(&mut self, zf: bool) {
        let value = self.arithmetic() & !bit::ZF | u64::from(zf) << 6;
        self.set_arithmetic(value);
    }

    /// After a logical operation: ZF, SF, PF from the sign-extended `result`; CF, OF, AF clear.
    #[inline(always)]
    pub fn set_logic(&mut self, result: u64) {
        self.result = result;
        self.aux = 0;
    }

    /// ZF, SF, PF from the sign-extended `result`; CF, OF, AF as given.
    #[inline(always)]
    pub fn set_result(&mut self, result: u64, cf: bool, of: bool, af: bool) {
        self.result = result;
        self.aux = u64::from(cf) << 63 | u64::from(cf != of) << 62 | u64::from(af) << 3;
    }

    /// After an addition or subtraction of `BITS`-wide values: `result` sign-extended, `carries` the carry (borrow) out of every bit
    /// position: `a & b | (a | b) & !r` for sums, `!a & b | (!a | b) & r` for differences.
    #[inline(always)]
    pub fn set_carries<const BITS: u32>(&mut self, result: u64, carries: u64) {
        self.result = result;
        self.aux = (carries << (64 - BITS)) & (CARRY | CARRY_INTO_SIGN) | carries & HALF_CARRY;
    }

    /// The same, keeping CF (INC, DEC).
    #[inline(always)]
    pub fn set_carries_keep_cf<const BITS: u32>(&mut self, result: u64, carries: u64) {
        let cf = self.aux >> 63;
        self.set_carries::<BITS>(result, carries);
        // Replace the carry and keep OF, the difference of the two bits.
        let flip = (self.aux >> 63) ^ cf;
        self.aux ^= flip << 63 | flip << 62;
    }
}

impl Cpu {
    /// The condition `number` of Jcc, SETcc, CMOVcc: the low four bits of their opcodes.
    #[inline(always)]
    pub fn condition<const NUMBER: u8>(&self) -> bool {
        let flags = &self.flags;
        let base = match NUMBER >> 1 {
            0 => flags.of(),
            1 => flags.cf(),
            2 => flags.zf(),
            3 => flags.cf() || flags.zf(),
            4 => flags.sf(),
            5 => flags.pf(),
            6 => flags.sf() != flags.of(),
            _ => flags.zf() || flags.sf() != flags.of(),
        };
        base != (NUMBER & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_combination_of_flags_survives_setting_and_reading() {
        let all = [bit::CF, bit::PF, bit::AF, bit::ZF, bit::SF, bit::OF];
        for mask in 0..64u64 {
            let value = all.iter().enumerate().filter(|(at, _)| mask >> at & 1 != 0).map(|(_, bit)| bit).sum::<u64>();
            let mut flags = Flags::new(value | bit::IF);
            assert_eq!(flags.value(), value | bit::IF | 2);
            for cf in [true, false] {
                flags.set_cf(cf);
                assert_eq!(flags.value() & !bit::CF, (value & !bit::CF) | bit::IF | 2, "CF alone changes");
                assert_eq!(flags.cf(), cf);
            }
            flags.set_zf(value & bit::ZF == 0);
            assert_eq!((flags.value() ^ value) & bit::ARITHMETIC & !bit::CF, bit::ZF, "ZF alone changes");
        }
    }
}
