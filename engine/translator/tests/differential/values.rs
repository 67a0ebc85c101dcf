//! Where the numbers of a case come from: a seeded generator, and the values at which arithmetic changes its behaviour.

/// SplitMix64: small, seedable, and good enough to hit every corner of one instruction.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
    pub fn u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.u64()) * u128::from(limit)) >> 64) as u64
    }
    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An integer that is small, near a power of two, a repeated pattern, or anything.
    pub fn integer(&mut self) -> u64 {
        match self.below(8) {
            0 => self.below(4),
            1 => self.below(0x100),
            2 => (1u64 << self.below(64)).wrapping_add(self.below(3)).wrapping_sub(1),
            3 => self.below(0x21).wrapping_neg(),
            4 => {
                self.pick(&[0x7f, 0x80, 0x7fff, 0x8000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, i64::MAX as u64, i64::MIN as u64])
            }
            5 => u64::from_ne_bytes([self.u64() as u8; 8]),
            _ => self.u64() >> self.below(64),
        }
    }

    pub fn f32_bits(&mut self) -> u32 {
        const EDGES: [u32; 24] = [
            0,
            1,
            0x40_0000,
            0x7f_ffff,
            0x80_0000,
            0x80_0001,
            0x3f80_0000,
            0x3f7f_ffff,
            0x3f80_0001,
            0x3f00_0000,
            0x4000_0000,
            0x4080_0000,
            0x7f7f_ffff,
            0x7f80_0000,
            0x7f80_0001,
            0x7fbf_ffff,
            0x7fc0_0000,
            0x7fff_ffff,
            0x4f00_0000,
            0x4eff_ffff,
            0x5f00_0000,
            0x5eff_ffff,
            0x4b00_0001,
            0x3fc0_0000,
        ];
        let sign = (self.u64() as u32) & 0x8000_0000;
        match self.below(10) {
            0..5 => self.pick(&EDGES) | sign,
            5 | 6 => (self.below(2000) as f32 / 4.0).to_bits() | sign,
            7 => (100 + self.below(56) as u32) << 23 | self.u64() as u32 & 0x7f_ffff | sign,
            _ => self.u64() as u32,
        }
    }

    pub fn f64_bits(&mut self) -> u64 {
        const EDGES: [u64; 26] = [
            0,
            1,
            0x8_0000_0000_0000,
            0xf_ffff_ffff_ffff,
            0x10_0000_0000_0000,
            0x10_0000_0000_0001,
            0x3ff0_0000_0000_0000,
            0x3fef_ffff_ffff_ffff,
            0x3ff0_0000_0000_0001,
            0x3fe0_0000_0000_0000,
            0x4000_0000_0000_0000,
            0x7fef_ffff_ffff_ffff,
            0x7ff0_0000_0000_0000,
            0x7ff0_0000_0000_0001,
            0x7ff7_ffff_ffff_ffff,
            0x7ff8_0000_0000_0000,
            0x7fff_ffff_ffff_ffff,
            0x41e0_0000_0000_0000,
            0x41df_ffff_ffc0_0000,
            0x41df_ffff_ffe0_0000,
            0x43e0_0000_0000_0000,
            0x43df_ffff_ffff_ffff,
            0x47ef_ffff_e000_0000,
            0x380f_ffff_ffff_ffff,
            0x36a0_0000_0000_0000,
            0x3ff8_0000_0000_0000,
        ];
        let sign = self.u64() & 1 << 63;
        match self.below(10) {
            0..5 => self.pick(&EDGES) | sign,
            5 | 6 => (self.below(2000) as f64 / 4.0).to_bits() | sign,
            7 => (990 + self.below(66)) << 52 | self.u64() & 0xf_ffff_ffff_ffff | sign,
            _ => self.u64(),
        }
    }

    /// An extended real: sign and exponent in bits 64–79. Includes encodings that no operation makes.
    pub fn f80_bits(&mut self) -> u128 {
        const ONE: u64 = 1 << 63;
        let (exponent, significand): (u64, u64) = match self.below(26) {
            0 => (0, 0),
            1 => (0, 1),
            2 => (0, self.u64() >> 1),
            3 => (0, ONE | self.u64() >> 1), // pseudo-denormal
            4 => (1, ONE),
            5 | 6 => (0x3fff, ONE),
            7 => (0x3fff, ONE | 1),
            8 => (0x3ffe, !0),
            9 => (0x7ffe, !0),
            10 => (0x7fff, ONE),
            11 => (0x7fff, ONE | 1),
            12 => (0x7fff, 3 << 62),
            13 => (0x7fff, self.u64() | ONE),
            14 => (0x7fff, self.u64() >> 1),                 // pseudo-NaN or pseudo-infinity
            15 => (self.below(0x7ffe) + 1, self.u64() >> 1), // unnormal
            16 => (0x3fff + self.below(65), ONE | (self.u64() & self.u64())),
            17 => (0x3fff + self.below(70), ONE | self.u64() << self.below(63)),
            18 => (0x3fff - self.below(70), ONE | self.u64()),
            19 => (0x401e, ONE | self.pick(&[0, 1 << 32, 1, !0])),
            20 => (0x403e, self.pick(&[ONE, !0])),
            21 => (0x407e + self.below(2), ONE | self.u64()),
            22 => (0x3f80 + self.below(4), ONE | self.u64()),
            23 => (0x3c00 + self.below(4), ONE | self.u64()),
            24 => (0x4000, 0xc90f_daa2_2168_c235),
            _ => (self.u64() & 0x7fff, self.u64() | ONE),
        };
        u128::from(exponent | (self.u64() & 0x8000)) << 64 | u128::from(significand)
    }

    /// Packed BCD of 18 digits, now and then not decimal.
    pub fn bcd_bits(&mut self) -> u128 {
        let digits = if self.chance(85) { 10 } else { 16 };
        let number = (0..18).fold(0u128, |number, _| number << 4 | u128::from(self.below(digits)));
        number >> (4 * self.below(18)) | u128::from(self.u64() & 0x80) << 72
    }

    /// A vector of bytes, words, double words, quad words, floats or doubles.
    pub fn vector(&mut self) -> u128 {
        match self.below(8) {
            0 | 1 => (0..4).fold(0, |v, _| v << 32 | u128::from(self.f32_bits())),
            2 | 3 => (0..2).fold(0, |v, _| v << 64 | u128::from(self.f64_bits())),
            4 => (0..2).fold(0, |v, _| v << 64 | u128::from(self.integer())),
            5 => (0..4).fold(0, |v, _| v << 32 | u128::from(self.integer() as u32)),
            6 => (0..8).fold(0, |v, _| v << 16 | u128::from(self.integer() as u16)),
            // Few different bytes, zeros among them: strings for the string comparisons.
            _ => (0..16).fold(0, |v, _| v << 8 | u128::from(self.below(5))),
        }
    }
}
