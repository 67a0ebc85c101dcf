//! What counts as a difference between the host's outcome and the interpreter's, and how one is told.

use crate::case::{Case, FxImage, MODE_32, Outcome, WINDOW_BASE};
use iced_x86::{Code, Decoder, DecoderOptions, Formatter, Instruction, Mnemonic, NasmFormatter, OpKind, Register, RflagsBits};

/// RFLAGS that user code can see change. RF and the system flags are the signal's and the host kernel's.
const VISIBLE_FLAGS: u64 = 0x4_0cd5;

pub fn decode(case: &Case) -> Instruction {
    Decoder::with_ip(case.mode, &case.code, case.registers.rip, DecoderOptions::NONE).decode()
}

pub fn text(case: &Case) -> String {
    let mut text = String::new();
    NasmFormatter::new().format(&decode(case), &mut text);
    text
}

/// RFLAGS that the architecture leaves undefined after this instruction with these operands.
fn undefined_flags(case: &Case, instruction: &Instruction) -> u64 {
    let mut bits = instruction.rflags_undefined();
    let immediate_or_cl = |operand| match instruction.op_kind(operand) {
        OpKind::Immediate8 => u64::from(instruction.immediate8()),
        _ => case.registers.gpr[1] & 0xff,
    };
    let operand_bits = match instruction.op0_kind() {
        OpKind::Register => instruction.op0_register().size() * 8,
        _ => instruction.memory_size().size() * 8,
    } as u64;
    match instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Shr | Mnemonic::Sar | Mnemonic::Sal => {
            let count = immediate_or_cl(1) & if operand_bits == 64 { 63 } else { 31 };
            if count != 0 {
                bits |= RflagsBits::AF;
            }
            if count > 1 {
                bits |= RflagsBits::OF;
            }
            if count > operand_bits || count == operand_bits && instruction.mnemonic() != Mnemonic::Sar {
                bits |= RflagsBits::CF;
            }
        }
        Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr => {
            let count = immediate_or_cl(1) & if operand_bits == 64 { 63 } else { 31 };
            if count > 1 {
                bits |= RflagsBits::OF;
            }
        }
        Mnemonic::Shld | Mnemonic::Shrd => {
            let count = immediate_or_cl(2) & if operand_bits == 64 { 63 } else { 31 };
            if count != 0 {
                bits |= RflagsBits::AF;
            }
            if count > 1 {
                bits |= RflagsBits::OF;
            }
            if count > operand_bits {
                bits = u32::MAX;
            }
        }
        _ => {}
    }
    [
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
        (RflagsBits::AF, 4),
        (RflagsBits::ZF, 6),
        (RflagsBits::SF, 7),
        (RflagsBits::OF, 11),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & bit != 0)
    .map(|(_, place)| 1 << place)
    .sum()
}

/// Whether the result itself is undefined: SHLD and SHRD by more than a 16-bit operand has.
fn has_undefined_result(case: &Case, instruction: &Instruction) -> bool {
    let count = match instruction.op_count() {
        3 if instruction.op2_kind() == OpKind::Immediate8 => instruction.immediate8(),
        _ => case.registers.gpr[1] as u8,
    };
    let word = instruction.op1_register().is_gpr16();
    matches!(instruction.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd) && word && count & 31 > 16
}

/// Bytes of the x87 pointers and the opcode in an image that the instruction stores: vendors differ in when they are kept.
fn pointer_bytes(instruction: &Instruction) -> &'static [(usize, usize)] {
    match instruction.mnemonic() {
        Mnemonic::Fxsave
        | Mnemonic::Fxsave64
        | Mnemonic::Xsave
        | Mnemonic::Xsave64
        | Mnemonic::Xsavec
        | Mnemonic::Xsavec64
        | Mnemonic::Xsaveopt
        | Mnemonic::Xsaveopt64 => &[(6, 24), (28, 32)],
        Mnemonic::Fnstenv | Mnemonic::Fnsave => match instruction.memory_size().size() {
            14 | 94 => &[(6, 14)],
            _ => &[(12, 28)],
        },
        _ => &[],
    }
}

/// PUSH of a segment register in 32-bit code: whether the upper half of the stack slot is written differs between CPUs.
fn half_pushed(case: &Case, instruction: &Instruction) -> Option<u64> {
    let pushes = instruction.mnemonic() == Mnemonic::Push && instruction.op0_register().is_segment_register();
    (pushes && case.mode == MODE_32).then(|| (case.registers.gpr[4].wrapping_sub(2)) & 0xffff_ffff)
}

/// Whether CMPS faulted at either of its operands: which of the two is read first differs between CPUs, and on one CPU between its
/// forms (AMD: REPE CMPSB begins with the source, REPE CMPSD and CMPSB with the destination).
fn compares_at(instruction: &Instruction, outcome: &Outcome) -> bool {
    let compares =
        matches!(instruction.code(), Code::Cmpsb_m8_m8 | Code::Cmpsw_m16_m16 | Code::Cmpsd_m32_m32 | Code::Cmpsq_m64_m64);
    let mask = match instruction.op0_kind() {
        OpKind::MemorySegSI => 0xffff,
        OpKind::MemorySegESI => 0xffff_ffff,
        _ => u64::MAX,
    };
    let operands = [outcome.registers.gpr[6] & mask, outcome.registers.gpr[7] & mask];
    // A #GP tells no address: the source's segment, for no other operand has one that is not flat.
    compares && outcome.fault.is_some_and(|fault| fault.vector == 13 || operands.contains(&fault.address))
}

/// The linear address of the memory operand.
fn operand_address(case: &Case, instruction: &Instruction) -> Option<u64> {
    instruction.virtual_address(0, 0, |register, _, _| match register {
        Register::ES | Register::CS | Register::SS | Register::DS => Some(0),
        Register::GS => Some(crate::native::GS_BASE),
        _ if register.is_gpr() => {
            let value = case.registers.gpr[register.full_register().number()];
            Some(if register.size() == 4 { value & 0xffff_ffff } else { value })
        }
        _ => None,
    })
}

/// The differences, one line each; empty if there are none.
pub fn differences(case: &Case, native: &Outcome, interpreted: &Outcome) -> Vec<String> {
    let mut lines = Vec::new();
    let mut differ = |what: &str, native: u128, ours: u128| {
        if native != ours {
            lines.push(format!("{what}: host {native:x}, interpreter {ours:x}"));
        }
    };
    let instruction = decode(case);
    let (theirs, ours) = (&native.registers, &interpreted.registers);

    // A transfer to where nothing is mapped: the host shows the fault of the next instruction's fetch.
    let is_fetch = |outcome: &Outcome| {
        outcome.fault.is_some_and(|fault| matches!(fault.vector, 14 | 13)) && outcome.registers.rip != case.registers.rip
    };
    if is_fetch(native) || is_fetch(interpreted) {
        differ("rip", theirs.rip.into(), ours.rip.into());
    } else {
        let either_operand = compares_at(&instruction, native) && compares_at(&instruction, interpreted);
        let vector = |outcome: &Outcome| outcome.fault.map(|fault| fault.vector);
        let one_each = either_operand && vector(native) != vector(interpreted);
        let key = |outcome: &Outcome| match outcome.fault {
            None => (0x100, 0, 0),
            Some(_) if one_each => (0x101, 0, 0),
            Some(fault) if fault.vector == 14 => {
                // The kernel hides whether its own addresses (from the last page of the lower half on) are mapped.
                let hidden = if fault.address >= 0x7fff_ffff_f000 { 1 } else { 0 };
                // Which part of a long operand is touched first is the CPU's own business.
                let long = !matches!(instruction.memory_size().size(), 1..=8 | 10 | 16);
                let page = if long || either_operand { 0 } else { u64::MAX };
                (14, fault.error | hidden, fault.address & page)
            }
            Some(fault) => (u32::from(fault.vector), fault.error, 0),
        };
        let (native, interpreted) = (key(native), key(interpreted));
        differ("vector (100: none)", native.0.into(), interpreted.0.into());
        if native.0 == interpreted.0 {
            differ("error code", native.1.into(), interpreted.1.into());
            differ("fault address", native.2.into(), interpreted.2.into());
        }
        differ("rip", theirs.rip.into(), ours.rip.into());
    }

    let undefined = undefined_flags(case, &instruction);
    let flags =
        VISIBLE_FLAGS & if native.fault.is_some() && native.registers.rip == case.registers.rip { u64::MAX } else { !undefined };
    differ("rflags", (theirs.rflags & flags).into(), (ours.rflags & flags).into());
    // A POPA that faults half way may have loaded some registers; it is restarted anyway.
    let half_popped = matches!(instruction.mnemonic(), Mnemonic::Popa | Mnemonic::Popad) && native.fault.is_some();
    let undefined_result = has_undefined_result(case, &instruction);
    if !undefined_result && !half_popped {
        let (count, mask) = if case.mode == MODE_32 { (8, 0xffff_ffff) } else { (16, u64::MAX) };
        for i in 0..count {
            differ(&format!("gpr {i}"), (theirs.gpr[i] & mask).into(), (ours.gpr[i] & mask).into());
        }
    }
    compare_images(&theirs.fx, &ours.fx, &instruction, &mut differ);
    for (i, (native, ours)) in theirs.ymm_high.iter().zip(&ours.ymm_high).enumerate() {
        differ(&format!("ymm{i} high"), *native, *ours);
    }

    // And what several stores leave behind that end in a fault.
    let half_pushed_all =
        matches!(instruction.mnemonic(), Mnemonic::Pusha | Mnemonic::Pushad | Mnemonic::Enter) && native.fault.is_some();
    if !undefined_result && !half_pushed_all {
        let (mut native, mut ours) = (native.window.clone(), interpreted.window.clone());
        if let Some(address) = half_pushed(case, &instruction) {
            for window in [&mut native, &mut ours] {
                for byte in window.iter_mut().skip(address.wrapping_sub(WINDOW_BASE) as usize).take(2) {
                    *byte = 0;
                }
            }
        }
        let pointers = pointer_bytes(&instruction);
        if !pointers.is_empty()
            && let Some(address) = operand_address(case, &instruction)
        {
            for (from, to) in pointers {
                for byte in *from..*to {
                    let offset = (address.wrapping_sub(WINDOW_BASE) as usize).wrapping_add(byte);
                    for window in [&mut native, &mut ours] {
                        if let Some(byte) = window.get_mut(offset) {
                            *byte = 0;
                        }
                    }
                }
            }
        }
        for (i, (native, ours)) in native.chunks_exact(8).zip(ours.chunks_exact(8)).enumerate() {
            if native != ours {
                let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes")).into();
                differ(&format!("memory at window + {:x}", 8 * i), number(native), number(ours));
            }
        }
    }
    lines
}

fn compare_images(native: &FxImage, ours: &FxImage, instruction: &Instruction, differ: &mut impl FnMut(&str, u128, u128)) {
    let bits = instruction.rflags_undefined();
    let undefined: u16 = [(RflagsBits::C0, 8), (RflagsBits::C1, 9), (RflagsBits::C2, 10), (RflagsBits::C3, 14)]
        .into_iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, place)| 1 << place)
        .sum();
    differ("x87 control", native.control().into(), ours.control().into());
    differ("x87 status", (native.status() & !undefined).into(), (ours.status() & !undefined).into());
    differ("x87 tags", native.tags().into(), ours.tags().into());
    differ("mxcsr", native.mxcsr().into(), ours.mxcsr().into());
    for i in 0..8 {
        differ(&format!("st{i}"), native.st(i), ours.st(i));
    }
    for i in 0..16 {
        differ(&format!("xmm{i}"), native.xmm(i), ours.xmm(i));
    }
}
