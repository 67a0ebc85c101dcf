//! Long additions as libraries of large numbers write them: chains of ADC, and of ADCX and ADOX between MULX, over numbers in
//! memory, some of them across a page's end or beyond what is mapped. Their flags live through every access.

use crate::{
    case::{CODE_BASE, Case, MODE_64, WINDOW_BASE},
    generate::{self, Form, Shape},
    values::Random,
};
use iced_x86::Code;

/// The registers that point to numbers: RSI, RDI, R8, R12.
const BASES: [u8; 4] = [6, 7, 8, 12];

struct Writer<'a> {
    code: Vec<u8>,
    random: &'a mut Random,
}

impl Writer<'_> {
    /// A register that is no base, nor RSP.
    fn register(&mut self) -> u8 {
        self.random.pick(&[0, 1, 2, 3, 5, 9, 10, 11, 13, 14, 15])
    }

    /// ModRM and what follows it: `reg`, and a limb of a number or a register; and REX's or, inverted, VEX's R and B.
    fn operand(&mut self, reg: u8, memory: bool) -> (Vec<u8>, u8) {
        let rm = if memory { self.random.pick(&BASES) } else { self.register() };
        let mut bytes = vec![(reg & 7) << 3 | rm & 7 | if memory { 0x40 } else { 0xc0 }];
        if memory {
            if rm & 7 == 4 {
                bytes.push(0x24);
            }
            bytes.push((self.random.below(8) * 8) as u8);
        }
        (bytes, (reg >> 3) << 2 | rm >> 3)
    }

    fn legacy(&mut self, prefix: &[u8], opcode: &[u8], reg: u8, memory: bool) {
        let (operand, bits) = self.operand(reg, memory);
        self.code.extend(prefix);
        self.code.push(0x48 | bits);
        self.code.extend(opcode);
        self.code.extend(operand);
    }

    /// Map 0F38, 64 bits.
    fn vex(&mut self, prefix: u8, opcode: u8, reg: u8, vvvv: u8, memory: bool) {
        let (operand, bits) = self.operand(reg, memory);
        let inverted = (!bits >> 2 & 1) << 7 | 1 << 6 | (!bits & 1) << 5;
        self.code.extend([0xc4, inverted | 2, 0x80 | (!vvvv & 15) << 3 | prefix, opcode]);
        self.code.extend(operand);
    }

    fn instruction(&mut self) {
        let (reg, other, memory) = (self.register(), self.register(), self.random.chance(60));
        match self.random.below(16) {
            // MULX
            0..4 => self.vex(3, 0xf6, reg, other, memory),
            // ADCX, ADOX
            4..6 => self.legacy(&[0x66], &[0x0f, 0x38, 0xf6], reg, memory),
            6..8 => self.legacy(&[0xf3], &[0x0f, 0x38, 0xf6], reg, memory),
            // ADC, SBB
            8 | 9 => self.legacy(&[], &[0x13], reg, memory),
            10 => self.legacy(&[], &[0x1b], reg, memory),
            // MOV to and from memory, MOVZX
            11 => self.legacy(&[], &[0x89], reg, true),
            12 => self.legacy(&[], &[0x8b], reg, true),
            13 => self.legacy(&[], &[0x0f, 0xb6], reg, true),
            // SHLX, INC
            14 => self.vex(1, 0xf7, reg, other, memory),
            _ => self.legacy(&[], &[0xff], 0, false),
        }
    }
}

fn chain(random: &mut Random) -> Option<Case> {
    let form = Form { code: Code::Nopd, mode: MODE_64, shape: Shape::Register };
    let mut case = generate::generate(form, random)?;
    for base in BASES {
        // Some run over the end of a page, and of what there is.
        let inside = if random.chance(30) { random.pick(&[0xfc8, 0xff9, 0x1fe0]) } else { 0x100 + random.below(0xd00) };
        case.registers.gpr[usize::from(base)] = WINDOW_BASE + inside;
    }
    case.registers.rip = CODE_BASE + 0x400;
    case.registers.rflags &= !(1 << 18 | 1 << 10);
    let mut writer = Writer { code: Vec::new(), random };
    for _ in 0..4 + writer.random.below(24) {
        writer.instruction();
    }
    case.code = writer.code;
    Some(case)
}

/// Some of them.
pub fn chains(seed: u64, count: usize) -> impl Iterator<Item = Case> {
    let mut random = Random::new(seed ^ 1 << 50);
    std::iter::repeat_with(move || chain(&mut random)).flatten().take(count)
}
