//! An assembler for what the translator emits: instructions by encoding, labels, nothing clever. Encodings are those of the Intel SDM,
//! volume 2; the tests compare with iced-x86's decoder.

/// A general register, by its number in the encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the architecture's names")]
pub(crate) enum R {
    Ax,
    Cx,
    Dx,
    Bx,
    Sp,
    Bp,
    Si,
    Di,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

/// A vector register, by its number in the encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct X(pub u8);

/// An operand's width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum W {
    B1,
    B2,
    B4,
    B8,
}

impl W {
    /// The width of so many bytes: 1, 2, 4 or 8.
    pub fn of(bytes: usize) -> Option<Self> {
        Some(match bytes {
            1 => Self::B1,
            2 => Self::B2,
            4 => Self::B4,
            8 => Self::B8,
            _ => return None,
        })
    }
    /// Bytes.
    pub fn bytes(self) -> u8 {
        match self {
            Self::B1 => 1,
            Self::B2 => 2,
            Self::B4 => 4,
            Self::B8 => 8,
        }
    }
}

/// A memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mem {
    pub base: R,
    /// Index register (not RSP) and the logarithm of its scale.
    pub index: Option<(R, u8)>,
    pub disp: i32,
}

impl Mem {
    /// `[base + disp]`
    pub const fn at(base: R, disp: i32) -> Self {
        Self { base, index: None, disp }
    }
    /// `[base + index]`
    pub const fn sum(base: R, index: R) -> Self {
        Self { base, index: Some((index, 0)), disp: 0 }
    }
}

/// What ModRM.rm names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rm {
    Reg(R),
    /// Bits 8 to 15 of RAX, RCX, RDX or RBX: byte operations only, with a register operand among the first four.
    High(R),
    /// An XMM register.
    Vector(X),
    Mem(Mem),
}

impl From<R> for Rm {
    fn from(reg: R) -> Self {
        Self::Reg(reg)
    }
}

impl From<X> for Rm {
    fn from(reg: X) -> Self {
        Self::Vector(reg)
    }
}

impl From<Mem> for Rm {
    fn from(mem: Mem) -> Self {
        Self::Mem(mem)
    }
}

/// The eight operations of opcodes 00–3F, by their number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Alu {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    Cmp,
}

/// A condition, by the low four bits of Jcc's opcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cond(pub u8);

#[allow(dead_code, reason = "named as they are needed")]
impl Cond {
    pub const O: Self = Self(0);
    pub const B: Self = Self(2);
    pub const AE: Self = Self(3);
    pub const E: Self = Self(4);
    pub const NE: Self = Self(5);
    pub const A: Self = Self(7);
    pub const S: Self = Self(8);
    pub const NS: Self = Self(9);
}

/// What a VEX prefix says besides registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vex {
    /// VEX.pp: the prefix it stands for: none, 66, F3, F2.
    pub prefix: u8,
    /// VEX.mmmmm: the table: 0F, 0F38, 0F3A from 1.
    pub map: u8,
    /// VEX.W
    pub wide: bool,
    /// VEX.L
    pub long: bool,
}

/// A place in the code that jumps name before or after it is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label(usize);

const UNBOUND: usize = usize::MAX;

/// Code being written for a known address.
pub(crate) struct Asm {
    code: Vec<u8>,
    /// Where the first byte will be executed.
    base: u64,
    labels: Vec<usize>,
    /// (position of a rel32, label)
    fixups: Vec<(usize, Label)>,
}

impl Asm {
    /// Code that will be executed at `base`.
    pub fn new(base: u64) -> Self {
        Self { code: Vec::with_capacity(1024), base, labels: Vec::new(), fixups: Vec::new() }
    }

    /// The finished code: all jumps resolved.
    ///
    /// # Panics
    /// When a label that is used was never bound.
    pub fn finish(mut self) -> Vec<u8> {
        for (at, label) in std::mem::take(&mut self.fixups) {
            let target = self.labels[label.0];
            assert!(target != UNBOUND, "a label was never bound");
            let relative = (target as i64 - (at as i64 + 4)) as i32;
            self.code[at..at + 4].copy_from_slice(&relative.to_le_bytes());
        }
        self.code
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.code.len()
    }

    /// The address of the next byte.
    pub fn here(&self) -> u64 {
        self.base + self.code.len() as u64
    }

    /// A new label.
    pub fn label(&mut self) -> Label {
        self.labels.push(UNBOUND);
        Label(self.labels.len() - 1)
    }

    /// The label is here.
    pub fn bind(&mut self, label: Label) {
        self.labels[label.0] = self.code.len();
    }

    /// Fills with NOPs up to a multiple of `alignment` bytes, so that `offset` bytes further on are aligned.
    pub fn align(&mut self, alignment: u64, offset: u64) {
        let mut missing = ((self.here() + offset).next_multiple_of(alignment) - (self.here() + offset)) as usize;
        while missing > 0 {
            let nop: &[u8] = match missing {
                1 => &[0x90],
                2 => &[0x66, 0x90],
                _ => &[0x0f, 0x1f, 0x00],
            };
            self.code.extend_from_slice(nop);
            missing -= nop.len();
        }
    }

    fn byte(&mut self, byte: u8) {
        self.code.push(byte);
    }

    fn dword(&mut self, value: i32) {
        self.code.extend_from_slice(&value.to_le_bytes());
    }

    /// Prefixes, opcode and ModRM of an instruction. `wide` is REX.W, `byte` says which operands are byte registers (reg, rm).
    fn encode(&mut self, prefix: Option<u8>, wide: bool, byte: (bool, bool), opcode: &[u8], reg: u8, rm: Rm) {
        self.code.extend(prefix);
        let mut rex = u8::from(wide) << 3 | (reg >> 3) << 2;
        let mut needs = byte.0 && (4..8).contains(&reg);
        match rm {
            Rm::Reg(rm) => {
                rex |= rm as u8 >> 3;
                needs |= byte.1 && (4..8).contains(&(rm as u8));
            }
            Rm::High(_) => debug_assert!(rex == 0 && !needs, "no REX with high byte registers"),
            Rm::Vector(rm) => rex |= rm.0 >> 3,
            Rm::Mem(mem) => {
                rex |= mem.base as u8 >> 3;
                rex |= mem.index.map_or(0, |(index, _)| index as u8 >> 3 << 1);
            }
        }
        if rex != 0 || needs {
            self.byte(0x40 | rex);
        }
        self.code.extend_from_slice(opcode);
        self.modrm(reg, rm);
    }

    fn modrm(&mut self, reg: u8, rm: Rm) {
        let reg = (reg & 7) << 3;
        match rm {
            Rm::Reg(rm) => self.byte(0xc0 | reg | rm as u8 & 7),
            Rm::High(rm) => self.byte(0xc0 | reg | (rm as u8 + 4)),
            Rm::Vector(rm) => self.byte(0xc0 | reg | rm.0 & 7),
            Rm::Mem(mem) => self.memory(reg, mem),
        }
    }

    fn memory(&mut self, reg: u8, mem: Mem) {
        let base = mem.base as u8 & 7;
        // Without a displacement, base 5 means something else.
        let mode = if mem.disp == 0 && base != 5 {
            0
        } else if i8::try_from(mem.disp).is_ok() {
            0x40
        } else {
            0x80
        };
        match mem.index {
            Some((index, scale)) => {
                debug_assert!(index != R::Sp && scale < 4);
                self.byte(mode | reg | 4);
                self.byte(scale << 6 | (index as u8 & 7) << 3 | base);
            }
            None if base == 4 => {
                self.byte(mode | reg | 4);
                self.byte(0x24);
            }
            None => self.byte(mode | reg | base),
        }
        match mode {
            0 => {}
            0x40 => self.byte(mem.disp as u8),
            _ => self.dword(mem.disp),
        }
    }

    /// An instruction whose opcode's lowest bit says "not bytes".
    fn sized(&mut self, w: W, opcode: &[u8], reg: u8, rm: Rm, reg_is_operand: bool) {
        let mut bytes = [0; 3];
        bytes[..opcode.len()].copy_from_slice(opcode);
        bytes[opcode.len() - 1] |= u8::from(w != W::B1);
        let byte = w == W::B1;
        self.encode((w == W::B2).then_some(0x66), w == W::B8, (byte && reg_is_operand, byte), &bytes[..opcode.len()], reg, rm);
    }

    /// An instruction of word, doubleword or quadword operands.
    fn worded(&mut self, w: W, opcode: &[u8], reg: u8, rm: Rm) {
        debug_assert!(w != W::B1);
        self.encode((w == W::B2).then_some(0x66), w == W::B8, (false, false), opcode, reg, rm);
    }

    fn immediate(&mut self, w: W, value: i32) {
        match w {
            W::B1 => self.byte(value as u8),
            W::B2 => self.code.extend_from_slice(&(value as i16).to_le_bytes()),
            W::B4 | W::B8 => self.dword(value),
        }
    }

    // ---- Moves -------------------------------------------------------------------------------------------------

    /// `mov rm, reg`
    pub fn mov(&mut self, w: W, rm: impl Into<Rm>, reg: R) {
        self.sized(w, &[0x88], reg as u8, rm.into(), true);
    }
    /// `mov reg, rm`
    pub fn load(&mut self, w: W, reg: R, rm: impl Into<Rm>) {
        self.sized(w, &[0x8a], reg as u8, rm.into(), true);
    }
    /// `mov rm, imm`, sign-extended.
    pub fn mov_imm(&mut self, w: W, rm: impl Into<Rm>, value: i32) {
        self.sized(w, &[0xc6], 0, rm.into(), false);
        self.immediate(w, value);
    }
    /// The whole register becomes `value`, by the shortest MOV.
    pub fn set(&mut self, reg: R, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            if reg as u8 >= 8 {
                self.byte(0x41);
            }
            self.byte(0xb8 | reg as u8 & 7);
            self.dword(value as i32);
        } else if let Ok(value) = i32::try_from(value as i64) {
            self.mov_imm(W::B8, reg, value);
        } else {
            self.set_wide(reg, value);
        }
    }
    /// `mov reg, imm64` in its ten-byte form.
    pub fn set_wide(&mut self, reg: R, value: u64) {
        self.byte(0x48 | reg as u8 >> 3);
        self.byte(0xb8 | reg as u8 & 7);
        self.code.extend_from_slice(&value.to_le_bytes());
    }
    /// `movzx reg, rm`: from `from` to 32 bits (and so to 64).
    pub fn movzx(&mut self, from: W, reg: R, rm: impl Into<Rm>) {
        let opcode = if from == W::B1 { 0xb6 } else { 0xb7 };
        self.encode(None, false, (false, from == W::B1), &[0x0f, opcode], reg as u8, rm.into());
    }
    /// `movzx` to 16 bits from a byte.
    pub fn movzx_word(&mut self, reg: R, rm: impl Into<Rm>) {
        self.encode(Some(0x66), false, (false, true), &[0x0f, 0xb6], reg as u8, rm.into());
    }
    /// `movsx`/`movsxd reg, rm`.
    pub fn movsx(&mut self, to: W, from: W, reg: R, rm: impl Into<Rm>) {
        let opcode: &[u8] = match from {
            W::B1 => &[0x0f, 0xbe],
            W::B2 => &[0x0f, 0xbf],
            _ => &[0x63],
        };
        self.encode((to == W::B2).then_some(0x66), to == W::B8, (false, from == W::B1), opcode, reg as u8, rm.into());
    }
    /// `lea reg, mem`
    pub fn lea(&mut self, w: W, reg: R, mem: Mem) {
        self.worded(w, &[0x8d], reg as u8, mem.into());
    }
    /// `lea reg, [index << scale + disp]`
    pub fn lea_scaled(&mut self, w: W, reg: R, index: R, scale: u8, disp: i32) {
        debug_assert!(index != R::Sp && scale < 4);
        let rex = u8::from(w == W::B8) << 3 | reg as u8 >> 3 << 2 | index as u8 >> 3 << 1;
        if w == W::B2 {
            self.byte(0x66);
        }
        if rex != 0 {
            self.byte(0x40 | rex);
        }
        // Base 5 without a displacement in ModRM is none, and 32 bits follow.
        self.code.extend_from_slice(&[0x8d, (reg as u8 & 7) << 3 | 4, scale << 6 | (index as u8 & 7) << 3 | 5]);
        self.dword(disp);
    }
    /// `xchg rm, reg`
    pub fn xchg(&mut self, w: W, rm: impl Into<Rm>, reg: R) {
        self.sized(w, &[0x86], reg as u8, rm.into(), true);
    }
    /// `bswap reg`
    pub fn bswap(&mut self, w: W, reg: R) {
        debug_assert!(matches!(w, W::B4 | W::B8));
        let rex = u8::from(w == W::B8) << 3 | reg as u8 >> 3;
        if rex != 0 {
            self.byte(0x40 | rex);
        }
        self.code.extend_from_slice(&[0x0f, 0xc8 | reg as u8 & 7]);
    }
    /// `push reg`
    pub fn push(&mut self, reg: R) {
        if reg as u8 >= 8 {
            self.byte(0x41);
        }
        self.byte(0x50 | reg as u8 & 7);
    }
    /// `pop reg`
    pub fn pop(&mut self, reg: R) {
        if reg as u8 >= 8 {
            self.byte(0x41);
        }
        self.byte(0x58 | reg as u8 & 7);
    }

    /// `push qword mem`
    pub fn push_mem(&mut self, mem: Mem) {
        self.encode(None, false, (false, false), &[0xff], 6, mem.into());
    }
    /// `pop qword mem`
    pub fn pop_mem(&mut self, mem: Mem) {
        self.encode(None, false, (false, false), &[0x8f], 0, mem.into());
    }

    // ---- Arithmetic --------------------------------------------------------------------------------------------

    /// The LOCK prefix of the next instruction.
    pub fn lock(&mut self) {
        self.byte(0xf0);
    }
    /// `op rm, reg`
    pub fn alu(&mut self, op: Alu, w: W, rm: impl Into<Rm>, reg: R) {
        self.sized(w, &[(op as u8) << 3], reg as u8, rm.into(), true);
    }
    /// `op reg, rm`
    pub fn alu_load(&mut self, op: Alu, w: W, reg: R, rm: impl Into<Rm>) {
        self.sized(w, &[(op as u8) << 3 | 2], reg as u8, rm.into(), true);
    }
    /// `op rm, imm`, sign-extended.
    pub fn alu_imm(&mut self, op: Alu, w: W, rm: impl Into<Rm>, value: i32) {
        let rm = rm.into();
        if w != W::B1 && i8::try_from(value).is_ok() {
            self.worded(w, &[0x83], op as u8, rm);
            self.byte(value as u8);
        } else {
            self.sized(w, &[0x80], op as u8, rm, false);
            self.immediate(w, value);
        }
    }
    /// `cmp dword mem, imm` in its form with a 32-bit immediate, whatever that is: for immediates that are patched.
    pub fn compare_wide_imm(&mut self, mem: Mem, value: i32) {
        self.worded(W::B4, &[0x81], Alu::Cmp as u8, mem.into());
        self.dword(value);
    }
    /// `test rm, reg`
    pub fn test(&mut self, w: W, rm: impl Into<Rm>, reg: R) {
        self.sized(w, &[0x84], reg as u8, rm.into(), true);
    }
    /// `test rm, imm`
    pub fn test_imm(&mut self, w: W, rm: impl Into<Rm>, value: i32) {
        self.sized(w, &[0xf6], 0, rm.into(), false);
        self.immediate(w, value);
    }
    /// F6/F7: NOT (2), NEG (3), MUL (4), IMUL (5), DIV (6), IDIV (7).
    pub fn group3(&mut self, number: u8, w: W, rm: impl Into<Rm>) {
        self.sized(w, &[0xf6], number, rm.into(), false);
    }
    /// FE/FF: INC (0), DEC (1).
    pub fn group4(&mut self, number: u8, w: W, rm: impl Into<Rm>) {
        self.sized(w, &[0xfe], number, rm.into(), false);
    }
    /// C0/C1: ROL (0), ROR, RCL, RCR, SHL, SHR (5), SAR (7) by an immediate.
    pub fn shift_imm(&mut self, number: u8, w: W, rm: impl Into<Rm>, count: u8) {
        self.sized(w, &[0xc0], number, rm.into(), false);
        self.byte(count);
    }
    /// `rorx reg, source, count`, of 32 bits (BMI2). Keeps flags.
    pub fn rorx(&mut self, reg: R, source: R, count: u8) {
        let vex = Vex { prefix: 3, map: 3, wide: false, long: false };
        self.vex(vex, 0xf0, reg as u8, 0, source.into(), Some(count));
    }
    /// The same by CL.
    pub fn shift_cl(&mut self, number: u8, w: W, rm: impl Into<Rm>) {
        self.sized(w, &[0xd2], number, rm.into(), false);
    }
    /// SHLD (`left`) or SHRD by an immediate.
    pub fn double_shift_imm(&mut self, left: bool, w: W, rm: impl Into<Rm>, reg: R, count: u8) {
        self.worded(w, &[0x0f, if left { 0xa4 } else { 0xac }], reg as u8, rm.into());
        self.byte(count);
    }
    /// SHLD (`left`) or SHRD by CL.
    pub fn double_shift_cl(&mut self, left: bool, w: W, rm: impl Into<Rm>, reg: R) {
        self.worded(w, &[0x0f, if left { 0xa5 } else { 0xad }], reg as u8, rm.into());
    }
    /// `imul reg, rm`
    pub fn imul(&mut self, w: W, reg: R, rm: impl Into<Rm>) {
        self.worded(w, &[0x0f, 0xaf], reg as u8, rm.into());
    }
    /// `imul reg, rm, imm`
    pub fn imul_imm(&mut self, w: W, reg: R, rm: impl Into<Rm>, value: i32) {
        self.worded(w, &[0x69], reg as u8, rm.into());
        self.immediate(w, value);
    }
    /// BT (4), BTS (5), BTR (6), BTC (7) by an immediate.
    pub fn bit_imm(&mut self, number: u8, w: W, rm: impl Into<Rm>, bit: u8) {
        self.worded(w, &[0x0f, 0xba], number, rm.into());
        self.byte(bit);
    }
    /// The same by a register.
    pub fn bit(&mut self, number: u8, w: W, rm: impl Into<Rm>, reg: R) {
        self.worded(w, &[0x0f, 0x83 | number << 3], reg as u8, rm.into());
    }
    /// BSF or BSR (`reverse`).
    pub fn bit_scan(&mut self, reverse: bool, w: W, reg: R, rm: impl Into<Rm>) {
        self.worded(w, &[0x0f, if reverse { 0xbd } else { 0xbc }], reg as u8, rm.into());
    }
    /// `cmpxchg rm, reg`
    pub fn cmpxchg(&mut self, w: W, rm: impl Into<Rm>, reg: R) {
        self.sized(w, &[0x0f, 0xb0], reg as u8, rm.into(), true);
    }
    /// `cmpxchg16b mem`: RDX:RAX, RCX:RBX
    pub fn cmpxchg16b(&mut self, mem: Mem) {
        self.encode(None, true, (false, false), &[0x0f, 0xc7], 1, mem.into());
    }
    /// `xadd rm, reg`
    pub fn xadd(&mut self, w: W, rm: impl Into<Rm>, reg: R) {
        self.sized(w, &[0x0f, 0xc0], reg as u8, rm.into(), true);
    }
    /// `setcc rm8`
    pub fn setcc(&mut self, cond: Cond, rm: impl Into<Rm>) {
        self.encode(None, false, (false, true), &[0x0f, 0x90 | cond.0], 0, rm.into());
    }
    /// `cmovcc reg, rm`
    pub fn cmov(&mut self, cond: Cond, w: W, reg: R, rm: impl Into<Rm>) {
        self.worded(w, &[0x0f, 0x40 | cond.0], reg as u8, rm.into());
    }
    /// CWD/CDQ/CQO for `w` = 2, 4, 8.
    pub fn sign_into_dx(&mut self, w: W) {
        match w {
            W::B2 => self.byte(0x66),
            W::B8 => self.byte(0x48),
            _ => {}
        }
        self.byte(0x99);
    }

    /// LFENCE, MFENCE or SFENCE: 5 to 7.
    pub fn fence(&mut self, number: u8) {
        debug_assert!((5..8).contains(&number));
        self.code.extend_from_slice(&[0x0f, 0xae, 0xc0 | number << 3]);
    }

    /// LAHF
    pub fn lahf(&mut self) {
        self.byte(0x9f);
    }
    /// SAHF
    pub fn sahf(&mut self) {
        self.byte(0x9e);
    }
    /// CLC, STC, CMC by their opcode.
    pub fn carry(&mut self, opcode: u8) {
        debug_assert!(matches!(opcode, 0xf5 | 0xf8 | 0xf9));
        self.byte(opcode);
    }

    // ---- Vectors -----------------------------------------------------------------------------------------------

    /// An instruction on XMM registers: mandatory prefix, REX.W, opcode with its escapes, ModRM.reg, operand, immediate.
    pub fn vector(&mut self, prefix: Option<u8>, wide: bool, opcode: &[u8], reg: u8, rm: Rm, immediate: Option<u8>) {
        self.encode(prefix, wide, (false, false), opcode, reg, rm);
        self.code.extend(immediate);
    }
    /// An instruction with a VEX prefix: opcode, ModRM.reg, the register in the prefix (0 if there is none), operand, immediate.
    pub fn vex(&mut self, vex: Vex, opcode: u8, reg: u8, vvvv: u8, rm: Rm, immediate: Option<u8>) {
        let (index, base) = match rm {
            Rm::Reg(rm) => (0, rm as u8 >> 3),
            Rm::Vector(rm) => (0, rm.0 >> 3),
            Rm::High(_) => unreachable!("no REX with high byte registers"),
            Rm::Mem(mem) => (mem.index.map_or(0, |(index, _)| index as u8 >> 3), mem.base as u8 >> 3),
        };
        let last = (!vvvv & 15) << 3 | u8::from(vex.long) << 2 | vex.prefix;
        if vex.map == 1 && !vex.wide && index | base == 0 {
            self.byte(0xc5);
            self.byte((!reg >> 3 & 1) << 7 | last);
        } else {
            self.byte(0xc4);
            self.byte((!reg >> 3 & 1) << 7 | (1 ^ index) << 6 | (1 ^ base) << 5 | vex.map);
            self.byte(u8::from(vex.wide) << 7 | last);
        }
        self.byte(opcode);
        self.modrm(reg, rm);
        self.code.extend(immediate);
    }
    /// `vinsertf128 ymm, ymm, m128, 1`: the upper half from memory.
    pub fn load_upper(&mut self, reg: X, mem: Mem) {
        self.vex(Vex { prefix: 1, map: 3, wide: false, long: true }, 0x18, reg.0, reg.0, mem.into(), Some(1));
    }
    /// `vextractf128 m128, ymm, 1`: the upper half to memory.
    pub fn store_upper(&mut self, mem: Mem, reg: X) {
        self.vex(Vex { prefix: 1, map: 3, wide: false, long: true }, 0x19, reg.0, 0, mem.into(), Some(1));
    }
    /// `vmovdqu ymm, m256`
    pub fn load_vector(&mut self, reg: X, mem: Mem) {
        self.vex(Vex { prefix: 2, map: 1, wide: false, long: true }, 0x6f, reg.0, 0, mem.into(), None);
    }
    /// `vmovdqu m256, ymm`
    pub fn store_vector(&mut self, mem: Mem, reg: X) {
        self.vex(Vex { prefix: 2, map: 1, wide: false, long: true }, 0x7f, reg.0, 0, mem.into(), None);
    }
    /// VZEROUPPER or VZEROALL (`long`).
    pub fn zero_vectors(&mut self, long: bool) {
        self.byte(0xc5);
        self.byte(0xf8 | u8::from(long) << 2);
        self.byte(0x77);
    }
    /// `movaps xmm, m128`
    pub fn movaps(&mut self, reg: X, mem: Mem) {
        self.vector(None, false, &[0x0f, 0x28], reg.0, mem.into(), None);
    }
    /// `movaps m128, xmm`
    pub fn store_movaps(&mut self, mem: Mem, reg: X) {
        self.vector(None, false, &[0x0f, 0x29], reg.0, mem.into(), None);
    }
    /// EMMS
    pub fn emms(&mut self) {
        self.code.extend_from_slice(&[0x0f, 0x77]);
    }
    /// An x87 instruction on memory: opcode D8 to DF, and its number in ModRM.
    pub fn x87_memory(&mut self, opcode: u8, number: u8, mem: Mem) {
        debug_assert!(opcode & 0xf8 == 0xd8);
        self.encode(None, false, (false, false), &[opcode], number, mem.into());
    }
    /// An x87 instruction on registers: opcode D8 to DF, and ModRM.
    pub fn x87_register(&mut self, opcode: u8, modrm: u8) {
        debug_assert!(opcode & 0xf8 == 0xd8 && modrm >= 0xc0);
        self.code.extend_from_slice(&[opcode, modrm]);
    }
    /// `ldmxcsr m32`
    pub fn ldmxcsr(&mut self, mem: Mem) {
        self.vector(None, false, &[0x0f, 0xae], 2, mem.into(), None);
    }
    /// `stmxcsr m32`
    pub fn stmxcsr(&mut self, mem: Mem) {
        self.vector(None, false, &[0x0f, 0xae], 3, mem.into(), None);
    }

    // ---- Transfers ---------------------------------------------------------------------------------------------

    /// `jcc label`
    pub fn jcc(&mut self, cond: Cond, label: Label) {
        self.code.extend_from_slice(&[0x0f, 0x80 | cond.0]);
        self.relative(label);
    }
    /// `jmp label`
    pub fn jmp(&mut self, label: Label) {
        self.byte(0xe9);
        self.relative(label);
    }

    /// Jumps if RCX is zero. Keeps flags.
    pub fn jump_if_no_rcx(&mut self, label: Label) {
        // JRCXZ reaches 127 bytes: it goes to a jump that others pass.
        self.code.extend_from_slice(&[0xe3, 2, 0xeb, 5]);
        self.jmp(label);
    }

    fn relative(&mut self, label: Label) {
        self.fixups.push((self.code.len(), label));
        self.dword(0);
    }

    /// `jcc label` whose displacement may be patched later; says where that lies.
    pub fn jcc_link(&mut self, cond: Cond, label: Label) -> usize {
        self.jcc(cond, label);
        self.code.len() - 4
    }
    /// `jmp label` whose displacement may be patched later; says where that lies.
    pub fn jmp_link(&mut self, label: Label) -> usize {
        self.jmp(label);
        self.code.len() - 4
    }
    /// `jmp target`: an address within 2 GiB. Returns the position of the relative displacement.
    pub fn jmp_to(&mut self, target: u64) -> usize {
        self.byte(0xe9);
        self.dword(0);
        self.point_at(target)
    }
    /// `call target`: as [`Asm::jmp_to`].
    pub fn call_to(&mut self, target: u64) {
        self.byte(0xe8);
        self.dword(0);
        self.point_at(target);
    }

    fn point_at(&mut self, target: u64) -> usize {
        let at = self.code.len() - 4;
        let relative = i32::try_from(target.wrapping_sub(self.here()) as i64).expect("all code lies within 2 GiB");
        self.code[at..].copy_from_slice(&relative.to_le_bytes());
        at
    }

    /// `jmp rm`
    pub fn jmp_rm(&mut self, rm: impl Into<Rm>) {
        self.encode(None, false, (false, false), &[0xff], 4, rm.into());
    }
    /// `call rm`
    pub fn call_rm(&mut self, rm: impl Into<Rm>) {
        self.encode(None, false, (false, false), &[0xff], 2, rm.into());
    }
    /// `ret`
    pub fn ret(&mut self) {
        self.byte(0xc3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};

    /// What iced reads in the code.
    fn text(write: impl FnOnce(&mut Asm)) -> Vec<String> {
        let mut asm = Asm::new(0x1000);
        write(&mut asm);
        let code = asm.finish();
        let mut decoder = Decoder::with_ip(64, &code, 0x1000, DecoderOptions::NONE);
        let mut formatter = NasmFormatter::new();
        let mut lines = Vec::new();
        while decoder.can_decode() {
            let instruction = decoder.decode();
            assert!(!instruction.is_invalid(), "{code:02x?}");
            let mut line = String::new();
            formatter.format(&instruction, &mut line);
            lines.push(line);
        }
        lines
    }

    const ALL: [R; 16] =
        [R::Ax, R::Cx, R::Dx, R::Bx, R::Sp, R::Bp, R::Si, R::Di, R::R8, R::R9, R::R10, R::R11, R::R12, R::R13, R::R14, R::R15];

    fn name(reg: R, w: W) -> String {
        const LEGACY: [&str; 8] = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"];
        let number = reg as usize;
        match (LEGACY.get(number), w) {
            (Some(name), W::B8) => format!("r{name}"),
            (Some(name), W::B4) => format!("e{name}"),
            (Some(name), W::B2) => (*name).to_owned(),
            (Some(name), W::B1) if number < 4 => format!("{}l", &name[..1]),
            (Some(name), W::B1) => format!("{name}l"),
            (None, W::B8) => format!("r{number}"),
            (None, W::B4) => format!("r{number}d"),
            (None, W::B2) => format!("r{number}w"),
            (None, W::B1) => format!("r{number}b"),
        }
    }

    #[test]
    fn every_register_at_every_width_is_encoded_as_it_is_named() {
        for w in [W::B1, W::B2, W::B4, W::B8] {
            for a in ALL {
                for b in ALL {
                    let (an, bn) = (name(a, w), name(b, w));
                    assert_eq!(text(|asm| asm.mov(w, a, b)), [format!("mov {an},{bn}")]);
                    assert_eq!(text(|asm| asm.alu(Alu::Sbb, w, a, b)), [format!("sbb {an},{bn}")]);
                    assert_eq!(text(|asm| asm.alu_load(Alu::Xor, w, a, b)), [format!("xor {an},{bn}")]);
                    assert_eq!(text(|asm| asm.test(w, a, b)), [format!("test {an},{bn}")]);
                    assert_eq!(text(|asm| asm.movzx(W::B1, a, b)), [format!("movzx {},{}", name(a, W::B4), name(b, W::B1))]);
                }
                assert_eq!(text(|asm| asm.setcc(Cond::E, a)), [format!("sete {}", name(a, W::B1))]);
                assert_eq!(text(|asm| asm.group3(3, w, a)), [format!("neg {}", name(a, w))]);
                assert_eq!(text(|asm| asm.shift_imm(4, w, a, 3)), [format!("shl {},3", name(a, w))]);
                assert_eq!(text(|asm| asm.shift_cl(7, w, a)), [format!("sar {},cl", name(a, w))]);
            }
        }
    }

    #[test]
    fn every_form_of_memory_operand_is_encoded() {
        for base in ALL {
            let b = name(base, W::B8);
            for (disp, shown) in [(0, String::new()), (8, "+8".into()), (-8, "-8".into()), (0x1234, "+1234h".into())] {
                let mem = Mem::at(base, disp);
                assert_eq!(text(|asm| asm.load(W::B8, R::R9, mem)), [format!("mov r9,[{b}{shown}]")]);
                for index in ALL.into_iter().filter(|index| *index != R::Sp) {
                    let mem = Mem { base, index: Some((index, 2)), disp };
                    let want = format!("mov [{b}+{}*4{shown}],cl", name(index, W::B8));
                    assert_eq!(text(|asm| asm.mov(W::B1, mem, R::Cx)), [want]);
                }
            }
        }
    }

    #[test]
    fn the_other_instructions_are_what_they_say() {
        let m = Mem::at(R::Bp, 0x100);
        assert_eq!(text(|asm| asm.alu_imm(Alu::Cmp, W::B4, m, 0)), ["cmp dword [rbp+100h],0"]);
        assert_eq!(text(|asm| asm.alu_imm(Alu::And, W::B8, R::Dx, -4096)), ["and rdx,0FFFFFFFFFFFFF000h"]);
        assert_eq!(text(|asm| asm.alu_imm(Alu::Add, W::B2, R::Si, 0x1234)), ["add si,1234h"]);
        assert_eq!(text(|asm| asm.alu_imm(Alu::Add, W::B1, R::Ax, 127)), ["add al,7Fh"]);
        assert_eq!(text(|asm| asm.alu(Alu::Or, W::B1, Rm::High(R::Dx), R::Cx)), ["or dh,cl"]);
        assert_eq!(text(|asm| asm.movzx(W::B1, R::Cx, Rm::High(R::Cx))), ["movzx ecx,ch"]);
        assert_eq!(text(|asm| asm.movzx(W::B2, R::R8, m)), ["movzx r8d,word [rbp+100h]"]);
        assert_eq!(text(|asm| asm.movzx_word(R::R8, R::Si)), ["movzx r8w,sil"]);
        assert_eq!(text(|asm| asm.movsx(W::B8, W::B4, R::Si, R::R9)), ["movsxd rsi,r9d"]);
        assert_eq!(text(|asm| asm.movsx(W::B2, W::B1, R::Si, R::Di)), ["movsx si,dil"]);
        assert_eq!(text(|asm| asm.lea(W::B4, R::R12, Mem::sum(R::R13, R::R12))), ["lea r12d,[r13+r12]"]);
        assert_eq!(text(|asm| asm.lea_scaled(W::B8, R::R12, R::R13, 3, -8)), ["lea r12,[r13*8-8]"]);
        assert_eq!(text(|asm| asm.lea_scaled(W::B4, R::Ax, R::Bp, 2, 0x100)), ["lea eax,[rbp*4+100h]"]);
        assert_eq!(text(|asm| asm.set(R::R9, 5)), ["mov r9d,5"]);
        assert_eq!(text(|asm| asm.set(R::R9, u64::MAX)), ["mov r9,0FFFFFFFFFFFFFFFFh"]);
        assert_eq!(text(|asm| asm.set(R::Bx, 0x1234_5678_9abc)), ["mov rbx,123456789ABCh"]);
        assert_eq!(text(|asm| asm.mov_imm(W::B2, m, 7)), ["mov word [rbp+100h],7"]);
        assert_eq!(text(|asm| asm.test_imm(W::B1, m, 0x41)), ["test byte [rbp+100h],41h"]);
        assert_eq!(text(|asm| asm.bit_imm(4, W::B2, m, 8)), ["bt word [rbp+100h],8"]);
        assert_eq!(text(|asm| asm.bit(5, W::B8, R::R8, R::Cx)), ["bts r8,rcx"]);
        assert_eq!(text(|asm| asm.bit_scan(true, W::B4, R::R8, R::Cx)), ["bsr r8d,ecx"]);
        assert_eq!(text(|asm| asm.cmov(Cond::A, W::B8, R::R8, m)), ["cmova r8,[rbp+100h]"]);
        assert_eq!(text(|asm| asm.imul(W::B4, R::Bx, R::R8)), ["imul ebx,r8d"]);
        assert_eq!(text(|asm| asm.imul_imm(W::B2, R::Bx, R::R8, 300)), ["imul bx,r8w,12Ch"]);
        assert_eq!(text(|asm| asm.double_shift_imm(true, W::B4, R::Bx, R::R8, 3)), ["shld ebx,r8d,3"]);
        assert_eq!(text(|asm| asm.double_shift_cl(false, W::B8, R::Bx, R::R8)), ["shrd rbx,r8,cl"]);
        assert_eq!(text(|asm| (asm.push_mem(m), asm.pop_mem(m)).0), ["push qword [rbp+100h]", "pop qword [rbp+100h]"]);
        assert_eq!(text(|asm| (5..8).for_each(|number| asm.fence(number))), ["lfence", "mfence", "sfence"]);
        assert_eq!(text(|asm| asm.bswap(W::B8, R::R8)), ["bswap r8"]);
        assert_eq!(text(|asm| asm.xadd(W::B1, m, R::Di)), ["xadd [rbp+100h],dil"]);
        assert_eq!(
            text(|asm| {
                asm.lock();
                asm.cmpxchg(W::B8, m, R::Di);
            }),
            ["lock cmpxchg [rbp+100h],rdi"]
        );
        assert_eq!(text(|asm| asm.cmpxchg16b(Mem::at(R::R10, 0))), ["cmpxchg16b [r10]"]);
        assert_eq!(text(|asm| asm.jmp_rm(Mem::at(R::Cx, 8))), ["jmp qword [rcx+8]"]);
        assert_eq!(text(|asm| asm.call_rm(R::Ax)), ["call rax"]);
        assert_eq!(text(|asm| (asm.push(R::R12), asm.pop(R::Bx)).0), ["push r12", "pop rbx"]);
        assert_eq!(
            text(|asm| (asm.movaps(X(10), m), asm.store_movaps(m, X(1))).0),
            ["movaps xmm10,[rbp+100h]", "movaps [rbp+100h],xmm1"]
        );
        assert_eq!(text(|asm| asm.vector(Some(0x66), true, &[0x0f, 0x3a, 0x22], 0, R::R9.into(), Some(1))), ["pinsrq xmm0,r9,1"]);
        assert_eq!(text(|asm| asm.vector(None, false, &[0x0f, 0x58], 9, X(12).into(), None)), ["addps xmm9,xmm12"]);
        let vex = |prefix, map, wide, long| Vex { prefix, map, wide, long };
        let indexed = Mem { base: R::R9, index: Some((R::R10, 2)), disp: 8 };
        for (got, want) in [
            (text(|asm| asm.vex(vex(0, 1, false, true), 0x58, 1, 2, X(3).into(), None)), "vaddps ymm1,ymm2,ymm3"),
            (text(|asm| asm.vex(vex(2, 1, false, false), 0x58, 9, 10, m.into(), None)), "vaddss xmm9,xmm10,[rbp+100h]"),
            (
                text(|asm| asm.vex(vex(1, 2, true, true), 0xb8, 9, 15, indexed.into(), None)),
                "vfmadd231pd ymm9,ymm15,[r9+r10*4+8]",
            ),
            (text(|asm| asm.vex(vex(3, 3, true, false), 0xf0, 2, 0, R::R15.into(), Some(8))), "rorx rdx,r15,8"),
            (text(|asm| asm.load_upper(X(9), m)), "vinsertf128 ymm9,ymm9,[rbp+100h],1"),
            (text(|asm| asm.load_vector(X(9), m)), "vmovdqu ymm9,[rbp+100h]"),
            (text(|asm| asm.store_vector(m, X(10))), "vmovdqu [rbp+100h],ymm10"),
            (text(|asm| asm.store_upper(m, X(10))), "vextractf128 [rbp+100h],ymm10,1"),
            (text(|asm| asm.zero_vectors(false)), "vzeroupper"),
            (text(|asm| asm.rorx(R::Cx, R::R9, 8)), "rorx ecx,r9d,8"),
        ] {
            assert_eq!(got, [want]);
        }
        assert_eq!(
            text(|asm| (asm.x87_memory(0xdd, 0, m), asm.x87_register(0xd8, 0xc3), asm.emms()).0),
            ["fld qword [rbp+100h]", "fadd st3", "emms"]
        );
        assert_eq!(text(|asm| (asm.sign_into_dx(W::B8), asm.sign_into_dx(W::B4)).0), ["cqo", "cdq"]);
    }

    #[test]
    fn jumps_reach_their_labels() {
        let lines = text(|asm| {
            let (before, after) = (asm.label(), asm.label());
            asm.bind(before);
            asm.jcc(Cond::NE, after);
            asm.jmp(before);
            asm.bind(after);
            asm.jmp_to(0x5000);
        });
        assert_eq!(lines, ["jne near 000000000000100Bh", "jmp 0000000000001000h", "jmp 0000000000005000h"]);
    }
}
