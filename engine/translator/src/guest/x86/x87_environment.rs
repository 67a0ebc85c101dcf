//! The x87 environment in memory: FNSTENV, FLDENV, FNSAVE, FRSTOR in their four layouts (16 or 32 bits; real and
//! virtual-8086 mode have linear pointers and the opcode, protected mode has selectors).
//! See: Intel SDM volume 1, 8.1.10.

use super::cpu::Cpu;
use super::fault::{Exec, Stop};
use super::op::Op;
use super::x87::{available, begin, initialise, stack_register, update_summary, valid_control};

/// The full tag word, two bits a physical register: 0 valid, 1 zero, 2 special, 3 empty.
fn tag_word(cpu: &Cpu) -> u16 {
    (0..8).rev().fold(0, |word, i| {
        let value = cpu.fpu.registers[i];
        let exponent = (value >> 64) as u16 & 0x7fff;
        let significand = value as u64;
        let tag = if cpu.fpu.tags >> i & 1 == 0 {
            3
        } else if exponent == 0 && significand == 0 {
            1
        } else if exponent == 0 || exponent == 0x7fff || significand >> 63 == 0 {
            2
        } else {
            0
        };
        word << 2 | tag
    })
}

/// One bit a register: not empty.
fn abridged(tags: u16) -> u8 {
    (0..8).fold(0, |bits, i| bits | u8::from(tags >> (2 * i) & 3 != 3) << i)
}

/// The seven words or double words.
fn environment<const WIDE: bool>(cpu: &Cpu) -> [u32; 7] {
    let fpu = &cpu.fpu;
    let (mut ip, mut dp) = (fpu.instruction_pointer as u32, fpu.data_pointer as u32);
    // The upper halves of 32-bit fields that hold 16 bits read as ones.
    let high = 0xffff_0000;
    let head = [u32::from(fpu.control), u32::from(fpu.status), u32::from(tag_word(cpu))].map(|word| word | high);
    let tail = if cpu.uses_paragraphs() {
        ip = ip.wrapping_add(u32::from(fpu.instruction_segment) << 4);
        dp = dp.wrapping_add(u32::from(fpu.data_segment) << 4);
        let opcode = u32::from(fpu.opcode & 0x7ff);
        if WIDE {
            [ip & 0xffff, ip >> 16 << 12 | opcode, dp & 0xffff, dp >> 16 << 12]
        } else {
            [ip, ip >> 4 & 0xf000 | opcode, dp, dp >> 4 & 0xf000]
        }
    } else {
        let opcode = if WIDE { u32::from(fpu.opcode & 0x7ff) << 16 } else { 0 };
        [ip, u32::from(fpu.instruction_segment) | opcode, dp, u32::from(fpu.data_segment) | high]
    };
    [head[0], head[1], head[2], tail[0], tail[1], tail[2], tail[3]]
}

fn load_environment<const WIDE: bool>(cpu: &mut Cpu, words: [u32; 7]) {
    let paragraphs = cpu.uses_paragraphs();
    let fpu = &mut cpu.fpu;
    fpu.control = valid_control(words[0] as u16);
    fpu.status = words[1] as u16;
    fpu.tags = abridged(words[2] as u16);
    let [ip, cs, dp, ds] = [words[3], words[4], words[5], words[6]];
    if paragraphs {
        let high = |word: u32| if WIDE { (word >> 12 & 0xffff) << 16 } else { (word & 0xf000) << 4 };
        fpu.instruction_pointer = u64::from(ip & 0xffff | high(cs));
        fpu.data_pointer = u64::from(dp & 0xffff | high(ds));
        (fpu.instruction_segment, fpu.data_segment) = (0, 0);
        fpu.opcode = cs as u16 & 0x7ff;
    } else {
        (fpu.instruction_pointer, fpu.data_pointer) = (u64::from(ip), u64::from(dp));
        (fpu.instruction_segment, fpu.data_segment) = (cs as u16, ds as u16);
        if WIDE {
            fpu.opcode = (cs >> 16) as u16 & 0x7ff;
        }
    }
    update_summary(cpu);
}

/// Bytes of an environment.
const fn environment_bytes(wide: bool) -> u64 {
    if wide { 28 } else { 14 }
}

fn write_environment<const WIDE: bool>(cpu: &mut Cpu, op: &Op, start: u64) -> Exec {
    for (i, word) in environment::<WIDE>(cpu).into_iter().enumerate() {
        let i = i as u64;
        if WIDE {
            cpu.write(op.segment, start.wrapping_add(4 * i) & op.address_mask(), word)?;
        } else {
            cpu.write(op.segment, start.wrapping_add(2 * i) & op.address_mask(), word as u16)?;
        }
    }
    Ok(())
}

fn read_environment<const WIDE: bool>(cpu: &mut Cpu, op: &Op, start: u64) -> Result<[u32; 7], Stop> {
    let mut words = [0; 7];
    for (i, word) in words.iter_mut().enumerate() {
        let i = i as u64;
        *word = if WIDE {
            cpu.read(op.segment, start.wrapping_add(4 * i) & op.address_mask())?
        } else {
            u32::from(cpu.read::<u16>(op.segment, start.wrapping_add(2 * i) & op.address_mask())?)
        };
    }
    Ok(words)
}

/// FNSTENV: and then all exceptions are masked.
pub(super) fn store_environment<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    available(cpu)?;
    let start = cpu.operand_address(op);
    cpu.probe_write(op.segment, start, if WIDE { 4 } else { 2 })?;
    cpu.probe_write(op.segment, start, environment_bytes(WIDE))?;
    write_environment::<WIDE>(cpu, op, start)?;
    cpu.fpu.control |= 0x3f;
    update_summary(cpu);
    Ok(())
}

/// FLDENV
pub(super) fn fetch_environment<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    let start = cpu.operand_address(op);
    let words = read_environment::<WIDE>(cpu, op, start)?;
    load_environment::<WIDE>(cpu, words);
    Ok(())
}

/// FNSAVE: environment and registers, then FNINIT.
pub(super) fn save<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    available(cpu)?;
    let start = cpu.operand_address(op);
    let head = environment_bytes(WIDE);
    cpu.probe_write(op.segment, start, if WIDE { 4 } else { 2 })?;
    cpu.probe_write(op.segment, start, head + 80)?;
    write_environment::<WIDE>(cpu, op, start)?;
    let mut image = [0; 80];
    for (i, place) in image.chunks_exact_mut(10).enumerate() {
        place.copy_from_slice(&stack_register(cpu, i as u8).to_le_bytes()[..10]);
    }
    // In pieces as large as the environment's fields, which is what alignment is checked by.
    for (i, piece) in image.chunks_exact(if WIDE { 4 } else { 2 }).enumerate() {
        let at = start.wrapping_add(head + (i * piece.len()) as u64) & op.address_mask();
        match *piece {
            [a, b, c, d] => cpu.write(op.segment, at, u32::from_le_bytes([a, b, c, d]))?,
            _ => cpu.write(op.segment, at, u16::from_le_bytes([piece[0], piece[1]]))?,
        }
    }
    initialise(cpu);
    Ok(())
}

/// FRSTOR
pub(super) fn restore<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    begin(cpu, op)?;
    let start = cpu.operand_address(op);
    let words = read_environment::<WIDE>(cpu, op, start)?;
    let mut image = [0; 80];
    for (i, piece) in image.chunks_exact_mut(if WIDE { 4 } else { 2 }).enumerate() {
        let at = start.wrapping_add(environment_bytes(WIDE) + (i * piece.len()) as u64) & op.address_mask();
        if WIDE {
            piece.copy_from_slice(&cpu.read::<u32>(op.segment, at)?.to_le_bytes());
        } else {
            piece.copy_from_slice(&cpu.read::<u16>(op.segment, at)?.to_le_bytes());
        }
    }
    load_environment::<WIDE>(cpu, words);
    let top = usize::from(cpu.fpu.status >> 11 & 7);
    for (i, bytes) in image.chunks_exact(10).enumerate() {
        cpu.fpu.registers[(top + i) & 7] = bytes.iter().rev().fold(0, |value, byte| value << 8 | u128::from(*byte));
    }
    Ok(())
}
