//! The interpreter against the evaluator of regions, before and after each pass: random programs of several blocks with
//! branches and loops, whose accesses hit and miss memory, compared in every bit of what they leave and in how many
//! instructions retired. The evaluator bails and polls at random.
//!
//! * `cargo test -p engine_translator --test differential regions`: some thousands of programs.
//! * `cargo test --release -p engine_translator --test differential -- --ignored --nocapture many_programs`: the whole proof.
//! * `BELLGLASS_SEED` as in `main.rs`.

use crate::{
    blocks::{differences, text},
    case::{CODE_BASE, Case, MODE_32, MODE_64, WINDOW_BASE},
    generate::{self, Form, Shape},
    interpret::Interpreted,
    seed,
    values::Random,
};
use engine_translator::{Evaluation, EvaluationUnit, REGION_PASSES};
use iced_x86::Code;
use std::time::Instant;

/// Random bails of 256 chances.
const BAILS: [u8; 3] = [0, 1, 24];

/// Registers by their numbers. FUEL is what loops count down and nothing else touches; the addresses are in the others.
const SP: u8 = 4;
const BASES: [u8; 4] = [3, 4, 6, 7];
const FUEL_64: u8 = 15;
const FUEL_32: u8 = 5;

/// What a vector instruction's ModRM names.
#[derive(Clone, Copy)]
enum Operands {
    /// A vector register; one or memory that is read.
    Load,
    /// The same the other way round.
    Store,
    /// Two vector registers.
    Registers,
    /// A vector register; a general one or memory.
    FromInteger,
    /// The same the other way round.
    ToMemory,
    /// A general register that is written; a vector register.
    ToInteger,
    /// A general register that is written; a vector register or memory.
    Convert,
    /// A part of the opcode; a vector register.
    Digit(u8),
}

/// A vector instruction: its prefix, or none (0), its opcode, and, if it is one with VEX, the map.
#[derive(Clone, Copy)]
struct Vector {
    prefix: u8,
    opcode: &'static [u8],
    form: Operands,
    immediate: bool,
    map: Option<u8>,
    /// VEX.vvvv names a register.
    has_source: bool,
    /// How many of a hundred have VEX.L.
    long: u64,
}

const fn legacy(prefix: u8, opcode: &'static [u8], form: Operands, immediate: bool) -> Vector {
    Vector { prefix, opcode, form, immediate, map: None, has_source: false, long: 0 }
}

const fn vex(prefix: u8, map: u8, opcode: &'static [u8], form: Operands, has_source: bool, long: u64) -> Vector {
    Vector { prefix, opcode, form, immediate: map == 3, map: Some(map), has_source, long }
}

#[rustfmt::skip]
const VECTORS: &[Vector] = &[
    // ADDPS, ADDPD, ADDSD, MULSS, MULSD, DIVPS, SUBSD, MINPS, SQRTSD
    legacy(0, &[0x0f, 0x58], Operands::Registers, false), legacy(0x66, &[0x0f, 0x58], Operands::Load, false),
    legacy(0xf2, &[0x0f, 0x58], Operands::Load, false), legacy(0xf3, &[0x0f, 0x59], Operands::Load, false),
    legacy(0xf2, &[0x0f, 0x59], Operands::Load, false), legacy(0, &[0x0f, 0x5e], Operands::Registers, false),
    legacy(0xf2, &[0x0f, 0x5c], Operands::Load, false), legacy(0, &[0x0f, 0x5d], Operands::Registers, false),
    legacy(0xf2, &[0x0f, 0x51], Operands::Load, false),
    // MOVAPS, MOVUPS, MOVSD, MOVSS, MOVDQU, MOVQ, MOVHPS, MOVNTPS
    legacy(0, &[0x0f, 0x28], Operands::Load, false), legacy(0, &[0x0f, 0x29], Operands::Store, false),
    legacy(0, &[0x0f, 0x10], Operands::Load, false), legacy(0, &[0x0f, 0x11], Operands::Store, false),
    legacy(0xf2, &[0x0f, 0x10], Operands::Load, false), legacy(0xf2, &[0x0f, 0x11], Operands::Store, false),
    legacy(0xf3, &[0x0f, 0x10], Operands::Load, false), legacy(0xf3, &[0x0f, 0x11], Operands::Store, false),
    legacy(0xf3, &[0x0f, 0x6f], Operands::Load, false), legacy(0xf3, &[0x0f, 0x7f], Operands::Store, false),
    legacy(0xf3, &[0x0f, 0x7e], Operands::Load, false), legacy(0x66, &[0x0f, 0xd6], Operands::Store, false),
    // PADDD, PXOR, PCMPEQB, PMULLW, SHUFPS, PSHUFD, PSRLDQ, PSLLD
    legacy(0x66, &[0x0f, 0xfe], Operands::Registers, false), legacy(0x66, &[0x0f, 0xef], Operands::Load, false),
    legacy(0x66, &[0x0f, 0x74], Operands::Registers, false), legacy(0x66, &[0x0f, 0xd5], Operands::Registers, false),
    legacy(0, &[0x0f, 0xc6], Operands::Registers, true), legacy(0x66, &[0x0f, 0x70], Operands::Load, true),
    legacy(0x66, &[0x0f, 0x73], Operands::Digit(3), true), legacy(0x66, &[0x0f, 0x72], Operands::Digit(6), true),
    // MOVD, CVTSI2SD, CVTTSD2SI, CVTSS2SI, PMOVMSKB, MOVMSKPS, PEXTRD, PINSRD, PEXTRB
    legacy(0x66, &[0x0f, 0x6e], Operands::FromInteger, false), legacy(0x66, &[0x0f, 0x7e], Operands::ToMemory, false),
    legacy(0xf2, &[0x0f, 0x2a], Operands::FromInteger, false), legacy(0xf2, &[0x0f, 0x2c], Operands::Convert, false),
    legacy(0xf3, &[0x0f, 0x2d], Operands::Convert, false), legacy(0x66, &[0x0f, 0xd7], Operands::ToInteger, false),
    legacy(0, &[0x0f, 0x50], Operands::ToInteger, false), legacy(0x66, &[0x0f, 0x3a, 0x16], Operands::ToMemory, true),
    legacy(0x66, &[0x0f, 0x3a, 0x22], Operands::FromInteger, true), legacy(0x66, &[0x0f, 0x3a, 0x14], Operands::ToMemory, true),
    // UCOMISD, COMISS, COMISD, PTEST
    legacy(0x66, &[0x0f, 0x2e], Operands::Load, false), legacy(0, &[0x0f, 0x2f], Operands::Load, false),
    legacy(0x66, &[0x0f, 0x2f], Operands::Registers, false), legacy(0x66, &[0x0f, 0x38, 0x17], Operands::Registers, false),
    // VADDPS, VADDSD, VMULPD, VFMADD231PS, VPADDD, VPERM2F128, VINSERTF128, VEXTRACTF128, VBROADCASTSS
    vex(0, 1, &[0x58], Operands::Load, true, 60), vex(0xf2, 1, &[0x58], Operands::Load, true, 0),
    vex(0x66, 1, &[0x59], Operands::Load, true, 60), vex(0x66, 2, &[0xb8], Operands::Load, true, 60),
    vex(0x66, 1, &[0xfe], Operands::Load, true, 60), vex(0x66, 3, &[0x06], Operands::Load, true, 100),
    vex(0x66, 3, &[0x18], Operands::Load, true, 100), vex(0x66, 3, &[0x19], Operands::Store, false, 100),
    vex(0x66, 2, &[0x18], Operands::Load, false, 60),
    // VMOVUPS, VMOVDQU, VMOVAPD, VMOVD, VCVTTSD2SI, VCVTSI2SD, VPMOVMSKB, VUCOMISD, VPTEST, VBLENDVPD
    vex(0, 1, &[0x10], Operands::Load, false, 60), vex(0, 1, &[0x11], Operands::Store, false, 60),
    vex(0xf3, 1, &[0x6f], Operands::Load, false, 60), vex(0xf3, 1, &[0x7f], Operands::Store, false, 60),
    vex(0x66, 1, &[0x28], Operands::Load, false, 60), vex(0x66, 1, &[0x6e], Operands::FromInteger, false, 0),
    vex(0xf2, 1, &[0x2c], Operands::Convert, false, 0), vex(0xf2, 1, &[0x2a], Operands::FromInteger, true, 0),
    vex(0x66, 1, &[0xd7], Operands::ToInteger, false, 60), vex(0x66, 1, &[0x2e], Operands::Load, false, 0),
    vex(0x66, 2, &[0x17], Operands::Load, false, 60), vex(0x66, 3, &[0x4b], Operands::Load, true, 60),
];

/// Writes machine code.
struct Writer<'a> {
    code: Vec<u8>,
    /// How many instructions of a hundred are vector instructions.
    vectors: u64,
    wide: bool,
    random: &'a mut Random,
}

impl Writer<'_> {
    fn fuel(&self) -> u8 {
        if self.wide { FUEL_64 } else { FUEL_32 }
    }

    /// A register that may be written. Addresses seldom are.
    fn register(&mut self) -> u8 {
        loop {
            let number = self.random.below(if self.wide { 16 } else { 8 }) as u8;
            let kept = number == SP || number == self.fuel() || BASES.contains(&number) && !self.random.chance(8);
            if !kept {
                return number;
            }
        }
    }

    /// An opcode with ModRM: `reg` and a register, or memory near one of the bases. `bytes` is the operand's size: 1, 2, 4, 8.
    fn encode(&mut self, bytes: u8, opcode: &[u8], reg: u8, rm: Option<u8>) {
        if bytes == 2 {
            self.code.push(0x66);
        }
        let (mut modrm, mut sib, mut displacement) = ((reg & 7) << 3, None, Vec::new());
        let mut rex = (reg >> 3) << 2 | if bytes == 8 { 8 } else { 0 };
        match rm {
            Some(rm) => {
                modrm |= 0xc0 | rm & 7;
                rex |= rm >> 3;
            }
            None => {
                let base = self.random.pick(&BASES);
                let indexed = self.random.chance(25);
                let far = self.random.chance(6);
                modrm |= if far { 0x80 } else { 0x40 } | if indexed || base == SP { 4 } else { base };
                if indexed || base == SP {
                    // RCX, or none.
                    let index = if indexed { 1 } else { 4 };
                    sib = Some((self.random.below(4) as u8) << 6 | index << 3 | base);
                }
                let near = (self.random.below(16) as i32 - 8) * self.random.pick(&[1, 4, 8]);
                let value = if far { near * 512 } else { near };
                displacement.extend(if far { value.to_le_bytes().to_vec() } else { vec![value as i8 as u8] });
            }
        }
        // Without REX numbers 4 to 7 of bytes are AH to BH.
        let needs_rex = rex != 0 || self.wide && bytes == 1 && self.random.chance(60);
        if needs_rex && self.wide {
            self.code.push(0x40 | rex);
        }
        self.code.extend(opcode);
        self.code.push(modrm);
        self.code.extend(sib);
        self.code.extend(displacement);
    }

    /// The number of a byte register, such that RSP and the fuel are not touched.
    fn byte_register(&mut self) -> u8 {
        self.random.below(4) as u8
    }

    fn immediate(&mut self, bytes: u8) {
        let value = self.random.integer().to_le_bytes();
        self.code.extend(&value[..usize::from(bytes.min(4))]);
    }

    fn size(&mut self) -> u8 {
        let sizes: &[u8] = if self.wide { &[1, 2, 4, 4, 4, 8, 8, 8] } else { &[1, 2, 4, 4, 4] };
        self.random.pick(sizes)
    }

    fn destination(&mut self, bytes: u8) -> u8 {
        if bytes == 1 { self.byte_register() } else { self.register() }
    }

    /// A vector instruction.
    fn vector(&mut self) {
        if self.wide && self.random.chance(4) {
            // VZEROUPPER
            return self.code.extend([0xc5, 0xf8, 0x77]);
        }
        let vector = VECTORS[self.random.below(VECTORS.len() as u64) as usize];
        let count = if self.wide { 16 } else { 8 };
        let mut number = || self.random.below(count) as u8;
        let (reg, rm, vvvv) = (number(), number(), number());
        let may_be_memory = matches!(
            vector.form,
            Operands::Load | Operands::Store | Operands::FromInteger | Operands::ToMemory | Operands::Convert
        );
        let memory = may_be_memory && self.random.chance(55);
        let (reg, rm) = match vector.form {
            Operands::Load | Operands::Store | Operands::Registers => (reg, rm),
            Operands::FromInteger => (reg, self.random.below(count) as u8),
            Operands::ToMemory if memory => (reg, rm),
            Operands::ToMemory => (reg, self.register()),
            Operands::ToInteger | Operands::Convert => (self.register(), rm),
            Operands::Digit(digit) => (digit, rm),
        };
        let rm = (!memory).then_some(rm);
        let takes_wide = matches!(vector.form, Operands::FromInteger | Operands::ToMemory | Operands::Convert) && self.wide;
        let bytes = if takes_wide && self.random.chance(40) { 8 } else { 4 };
        match vector.map {
            Some(map) if self.wide => {
                let start = self.code.len();
                self.encode(bytes, vector.opcode, reg, rm);
                let mut rest = self.code.split_off(start);
                let rex = if rest[0] & 0xf0 == 0x40 { rest.remove(0) } else { 0x40 };
                let source = if vector.has_source { vvvv } else { 0 };
                let long = u8::from(self.random.chance(vector.long));
                let prefix = [0, 0x66, 0xf3, 0xf2].iter().position(|prefix| *prefix == vector.prefix).unwrap_or(0) as u8;
                self.code.extend([0xc4, (!rex & 7) << 5 | map, (rex & 8) << 4 | (!source & 15) << 3 | long << 2 | prefix]);
                self.code.extend(rest);
            }
            Some(_) => return,
            None => {
                if vector.prefix != 0 {
                    self.code.push(vector.prefix);
                }
                self.encode(bytes, vector.opcode, reg, rm);
            }
        }
        if vector.immediate {
            self.code.push(self.random.below(256) as u8);
        }
    }

    /// An instruction with VEX on 256 bits and three registers, prefix 66.
    fn lanes(&mut self, map: u8, opcode: u8, reg: u8, vvvv: u8, rm: u8) {
        let rex = (!reg >> 3 & 1) << 7 | 1 << 6 | (!rm >> 3 & 1) << 5;
        self.code.extend([0xc4, rex | map, (!vvvv & 15) << 3 | 4 | 1, opcode, 0xc0 | (reg & 7) << 3 | rm & 7]);
    }

    /// A gather, mostly of all elements, from places most of which are in the window.
    fn gather(&mut self) {
        let names = self.random.below(16) as u8;
        let (result, mask, index) = (names, (names + 5) & 15, (names + 1 + self.random.below(16) as u8 / 4) & 15);
        let (wide_index, wide, long) = (self.random.below(2) as u8, self.random.below(2) as u8, self.random.below(2) as u8);
        if self.random.chance(90) {
            // VPSRLD, VPSRLQ: what is left is 0 to 2047 at most.
            self.lanes(1, 0x72 + wide_index, 2, index, index);
            self.code.push(21 + 32 * wide_index + self.random.below(8) as u8);
        }
        if self.random.chance(60) {
            // VPCMPEQD
            self.lanes(1, 0x76, mask, mask, mask);
        }
        let base = self.random.pick(&BASES);
        let opcode = self.random.pick(&[0x90, 0x92]) | wide_index;
        let rex = (!result >> 3 & 1) << 7 | (!index >> 3 & 1) << 6 | 1 << 5;
        self.code.extend([0xc4, rex | 2, wide << 7 | (!mask & 15) << 3 | long << 2 | 1, opcode, 0x44 | (result & 7) << 3]);
        let scale = self.random.below(4) as u8;
        let displacement = self.random.below(16) as u8 * 4;
        self.code.extend([scale << 6 | (index & 7) << 3 | base, displacement]);
    }

    fn instruction(&mut self) {
        if self.random.chance(self.vectors) {
            if self.wide && self.random.chance(8) {
                return self.gather();
            }
            return self.vector();
        }
        let bytes = self.size();
        let wide = u8::from(bytes != 1);
        let to = self.destination(bytes);
        let from = if bytes == 1 { self.byte_register() } else { self.random.below(if self.wide { 16 } else { 8 }) as u8 };
        let memory = self.random.chance(45);
        if memory && self.random.chance(15) {
            // MOVZX ECX, CL: what is indexed then is a table.
            self.code.extend([0x0f, 0xb6, 0xc9]);
        }
        match self.random.below(24) {
            // ADD … CMP, in three forms
            0..6 => {
                let operation = (self.random.below(8) as u8) << 3;
                match self.random.below(3) {
                    0 => self.encode(bytes, &[operation | wide], from, (!memory).then_some(to)),
                    1 => self.encode(bytes, &[operation | 2 | wide], to, (!memory).then_some(from)),
                    _ => {
                        self.encode(bytes, &[0x80 | wide], operation >> 3, (!memory).then_some(to));
                        self.immediate(bytes);
                    }
                }
            }
            // MOV
            6..9 => {
                if self.random.chance(50) {
                    self.encode(bytes, &[0x88 | wide], from, (!memory).then_some(to));
                } else {
                    self.encode(bytes, &[0x8a | wide], to, (!memory).then_some(from));
                }
            }
            // MOVZX, MOVSX
            9 => {
                let opcode = 0xb6 | self.random.below(2) as u8 | (self.random.below(2) as u8) << 3;
                let rm = if opcode & 1 == 0 { self.byte_register() } else { from };
                let to = self.register();
                self.encode(bytes.max(4), &[0x0f, opcode], to, (!memory).then_some(rm));
            }
            // LEA
            10 => {
                let to = self.register();
                self.encode(bytes.max(4), &[0x8d], to, None);
            }
            // INC, DEC
            11 => {
                let down = self.random.below(2) as u8;
                self.encode(bytes, &[0xfe | wide], down, (!memory).then_some(to));
            }
            // NOT, NEG, MUL, IMUL
            12 => {
                let operation = 2 + self.random.below(4) as u8;
                self.encode(bytes, &[0xf6 | wide], operation, (!memory).then_some(to));
            }
            // Shifts and rotates by an immediate, 1 or CL
            13 | 14 => {
                let (form, operation) = (self.random.below(3) as u8, self.random.pick(&[0, 1, 2, 3, 4, 5, 7]));
                self.encode(bytes, &[[0xc0, 0xd0, 0xd2][usize::from(form)] | wide], operation, (!memory).then_some(to));
                if form == 0 {
                    self.code.push(self.random.below(40) as u8);
                }
            }
            // IMUL r, rm
            15 => {
                let to = self.register();
                self.encode(bytes.max(4), &[0x0f, 0xaf], to, (!memory).then_some(from));
            }
            // SETcc
            16 => {
                let to = self.byte_register();
                let condition = self.random.below(16) as u8;
                self.encode(1, &[0x0f, 0x90 | condition], 0, (!memory).then_some(to));
            }
            // CMOVcc
            17 => {
                let to = self.register();
                let condition = self.random.below(16) as u8;
                self.encode(bytes.max(4), &[0x0f, 0x40 | condition], to, (!memory).then_some(from));
            }
            // XCHG
            18 => {
                let other = self.destination(bytes);
                self.encode(bytes, &[0x86 | wide], other, (!memory).then_some(to));
            }
            // TEST
            19 => self.encode(bytes, &[0x84 | wide], from, (!memory).then_some(to)),
            // PUSH, POP
            20 => {
                let push = self.random.chance(50);
                let register = if push { from } else { self.register() };
                if register >= 8 {
                    self.code.push(0x41);
                }
                self.code.push(if push { 0x50 } else { 0x58 } | register & 7);
            }
            // ADD or SUB of an address, small
            21 => {
                let base = self.random.pick(&BASES);
                let by = self.random.pick(&[1, 4, 8, 16]);
                let operation = if self.random.chance(70) { 0 } else { 5 };
                self.encode(if self.wide { 8 } else { 4 }, &[0x83], operation, Some(base));
                self.code.push(by);
            }
            // BT, BTS, BTR, BTC by an immediate
            22 => {
                let (to, operation) = (self.register(), 4 + self.random.below(4) as u8);
                self.encode(bytes.max(2), &[0x0f, 0xba], operation, Some(to));
                self.code.push(self.random.below(64) as u8);
            }
            // CDQ and its kind, CLC, STC, CMC, LAHF, CPUID (which is the interpreter's)
            _ => {
                let opcode: &[u8] = self.random.pick(&[&[0x98], &[0x99], &[0xf8], &[0xf9], &[0xf5], &[0x9f], &[0x0f, 0xa2]]);
                self.code.extend(opcode);
            }
        }
    }
}

/// A program of several blocks, which ends because every way back, and every RET, burns fuel. A mode's blank case has a
/// form of no consequence.
pub fn program(mode: u32, random: &mut Random) -> Option<Case> {
    let form = Form { code: Code::Nopd, mode, shape: Shape::Register };
    let mut case = generate::generate(form, random)?;
    let wide = mode == MODE_64;
    let fuel = if wide { FUEL_64 } else { FUEL_32 };
    for base in BASES {
        // Mostly in the window, sometimes near an end.
        let near_end = random.chance(20);
        let inside = if near_end { random.pick(&[0x40, 0xfc0, 0x1fc0]) } else { 0x100 + random.below(0x1e00) };
        case.registers.gpr[usize::from(base)] = WINDOW_BASE + (inside & !7) + if random.chance(20) { random.below(8) } else { 0 };
    }
    case.registers.gpr[1] = random.below(32);
    case.registers.gpr[usize::from(fuel)] = random.below(24);
    case.registers.rflags &= !(1 << 18 | 1 << 10);
    let count = 1 + random.below(7) as usize;
    if random.chance(90) {
        let masked = case.registers.fx.mxcsr() | 0x1f80;
        case.registers.fx.put(24, &masked.to_le_bytes());
    }
    let vectors = random.pick(&[0, 0, 30, 70]);
    let mut writer = Writer { code: Vec::new(), vectors, wide, random };
    let (mut starts, mut holes) = (Vec::new(), Vec::new());
    for block in 0..count {
        starts.push(writer.code.len());
        for _ in 0..writer.random.below(6) {
            writer.instruction();
        }
        match writer.random.below(10) {
            // A way back while fuel lasts: dec fuel; jg.
            0..4 => {
                if wide {
                    writer.code.push(0x41);
                }
                writer.code.extend([0xff, 0xc8 | fuel & 7, 0x0f, 0x8f]);
                holes.push((writer.code.len(), writer.random.below(block as u64 + 1) as usize));
                writer.code.extend([0; 4]);
            }
            4..8 => {
                let condition = writer.random.below(16) as u8;
                writer.code.extend([0x0f, 0x80 | condition]);
                holes.push((writer.code.len(), block + 1 + writer.random.below((count - block) as u64) as usize));
                writer.code.extend([0; 4]);
            }
            8 if wide && writer.random.chance(60) => {
                let (back, choice) = (writer.random.chance(50), writer.random.chance(60));
                if back {
                    // While fuel lasts: dec fuel; jle behind.
                    writer.code.extend([0x41, 0xff, 0xc8 | fuel & 7, 0x7e, if choice { 20 } else { 9 }]);
                }
                let target = |random: &mut Random| match back {
                    true => random.below(block as u64 + 1) as usize,
                    false => block + 1 + random.below((count - block) as u64) as usize,
                };
                // lea rax, [rip + there]; perhaps lea rdx, [rip + elsewhere]; cmovcc rax, rdx; jmp rax
                for reg in if choice { &[0x05, 0x15][..] } else { &[0x05] } {
                    writer.code.extend([0x48, 0x8d, *reg]);
                    holes.push((writer.code.len(), target(writer.random)));
                    writer.code.extend([0; 4]);
                }
                if choice {
                    let condition = writer.random.below(16) as u8;
                    writer.code.extend([0x48, 0x0f, 0x40 | condition, 0xc2]);
                }
                writer.code.extend([0xff, 0xe0]);
            }
            8 => {
                // JMP, or CALL: whether anybody comes back is left to chance.
                let opcode = writer.random.pick(&[0xe9, 0xe8]);
                writer.code.push(opcode);
                holes.push((writer.code.len(), block + 1 + writer.random.below((count - block) as u64) as usize));
                writer.code.extend([0; 4]);
            }
            _ if writer.random.chance(60) => {
                // A program may have pushed where it is: dec fuel; jle behind; ret.
                if wide {
                    writer.code.push(0x41);
                }
                writer.code.extend([0xff, 0xc8 | fuel & 7, 0x7e, 1, 0xc3]);
            }
            _ => {}
        }
    }
    let mut code = writer.code;
    starts.push(code.len());
    for (hole, target) in holes {
        let displacement = starts[target] as i32 - (hole as i32 + 4);
        code[hole..hole + 4].copy_from_slice(&displacement.to_le_bytes());
    }
    case.registers.rip = CODE_BASE + if random.chance(10) { 0x1000 - random.below(code.len() as u64 + 1) } else { 0x400 };
    case.code = code;
    Some(case)
}

/// One evaluator for each number of passes and each rate of bails.
struct Engines {
    interpreter: Interpreted,
    evaluators: Vec<(EvaluationUnit, Interpreted)>,
}

impl Engines {
    fn new() -> anyhow::Result<Self> {
        let evaluators = (0..=REGION_PASSES)
            .flat_map(|passes| BAILS.map(|bails| (EvaluationUnit::Region { passes }, bails)))
            .map(|(unit, bails)| {
                let evaluator = Interpreted::evaluating(Evaluation { seed: 0x5eed, bails, unit })?;
                Ok((unit, evaluator))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self { interpreter: Interpreted::new()?, evaluators })
    }

    fn differences(&mut self, case: &Case, which: usize) -> anyhow::Result<Vec<String>> {
        let expected = self.interpreter.run(case)?;
        let (_, evaluator) = &mut self.evaluators[which];
        let found = evaluator.run(case)?;
        let mut lines = differences(&expected, &found);
        if self.interpreter.retired != evaluator.retired {
            lines.push(format!("retired: {} and {}", self.interpreter.retired, evaluator.retired));
        }
        Ok(lines)
    }
}

/// Cuts instructions out (they become NOPs) as long as the engines differ.
fn shrunk(engines: &mut Engines, case: &Case, which: usize) -> anyhow::Result<(Case, Vec<String>)> {
    let mut best = (case.clone(), engines.differences(case, which)?);
    let mut decoder = iced_x86::Decoder::with_ip(case.mode, &case.code, case.registers.rip, iced_x86::DecoderOptions::NONE);
    while decoder.can_decode() {
        let from = decoder.position();
        decoder.decode_out(&mut iced_x86::Instruction::default());
        let mut fewer = best.0.clone();
        fewer.code[from..decoder.position()].fill(0x90);
        // A loop that has lost its fuel would not end.
        if case.code[from..].starts_with(&[0x41, 0xff]) || case.code[from..].starts_with(&[0xff]) {
            continue;
        }
        let found = engines.differences(&fewer, which)?;
        if !found.is_empty() {
            best = (fewer, found);
        }
    }
    Ok(best)
}

fn campaign(mode: u32, seed: u64, count: usize) -> anyhow::Result<(u64, u64)> {
    let mut engines = Engines::new()?;
    let mut random = Random::new(seed ^ u64::from(mode) << 32);
    let (mut done, mut different) = (0u64, 0);
    let programs = std::iter::repeat_with(move || program(mode, &mut random)).flatten().take(count);
    for case in programs {
        let which = done as usize % engines.evaluators.len();
        done += 1;
        let found = engines.differences(&case, which)?;
        if found.is_empty() {
            continue;
        }
        different += 1;
        if different <= 3 {
            let (case, again) = shrunk(&mut engines, &case, which)?;
            let lines = if again.is_empty() { found } else { again };
            let unit = engines.evaluators[which].0;
            println!(
                "{}-bit code, {unit:?}, {} of 256 bails:\n{}  {}",
                case.mode,
                BAILS[which % 3],
                text(&case),
                lines.join("\n  ")
            );
            println!("{}", case.to_text().lines().filter(|line| !line.starts_with('+')).collect::<Vec<_>>().join("; "));
        }
    }
    Ok((done, different))
}

fn run(seed: u64, each: usize) -> anyhow::Result<()> {
    let started = Instant::now();
    let results: Vec<anyhow::Result<(u64, u64)>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            [MODE_32, MODE_64].map(|mode| scope.spawn(move || campaign(mode, seed, each))).into_iter().collect();
        threads.into_iter().map(|thread| thread.join().expect("a campaign does not panic")).collect()
    });
    let (mut count, mut different) = (0, 0);
    for result in results {
        let (cases, differences) = result?;
        (count, different) = (count + cases, different + differences);
    }
    println!("seed {seed}: {count} programs, {different} differences, {:.1} s", started.elapsed().as_secs_f64());
    assert_eq!(different, 0, "see the list above");
    Ok(())
}

#[test]
fn regions_do_what_the_interpreter_does() -> anyhow::Result<()> {
    run(seed(1), 10_000)
}

#[test]
#[ignore = "takes minutes; the command is in the file's head"]
fn many_programs_agree() -> anyhow::Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    run(seed(now), 200_000)
}
