//! A case: one instruction, the registers and memory it starts with, and what came of it. Cases are kept as text files.

use anyhow::{Context, anyhow};
use std::{collections::HashMap, fmt::Write};

/// Two pages of code, nothing mapped before and after. Not a number that cases like to store to.
pub const CODE_BASE: u64 = 0x1340_0000;
pub const CODE_BYTES: usize = 0x2000;
/// Two pages of data, nothing mapped before and after.
pub const WINDOW_BASE: u64 = 0x2000_0000;
pub const WINDOW_BYTES: usize = 0x2000;

pub const MODE_32: u32 = 32;
pub const MODE_64: u32 = 64;

/// What FXSAVE64 stores.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct FxImage(pub [u8; 512]);

impl FxImage {
    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.0[offset..offset + 2].try_into().expect("two bytes"))
    }
    pub fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.0[offset..offset + 4].try_into().expect("four bytes"))
    }
    pub fn u128(&self, offset: usize) -> u128 {
        u128::from_le_bytes(self.0[offset..offset + 16].try_into().expect("sixteen bytes"))
    }
    pub fn control(&self) -> u16 {
        self.u16(0)
    }
    pub fn status(&self) -> u16 {
        self.u16(2)
    }
    pub fn tags(&self) -> u8 {
        self.0[4]
    }
    pub fn mxcsr(&self) -> u32 {
        self.u32(24)
    }
    /// ST(i), 80 bits.
    pub fn st(&self, i: usize) -> u128 {
        self.u128(32 + 16 * i) & ((1 << 80) - 1)
    }
    pub fn xmm(&self, i: usize) -> u128 {
        self.u128(160 + 16 * i)
    }
    pub fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

/// The registers that user code sees.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    pub fx: FxImage,
    /// The upper halves of YMM0 to YMM15.
    pub ymm_high: [u128; 16],
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
}

#[derive(Clone)]
pub struct Case {
    pub mode: u32,
    pub code: Vec<u8>,
    pub registers: Registers,
    pub window: Box<[u8; WINDOW_BYTES]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub vector: u8,
    pub error: u32,
    /// CR2; meaningful for page faults.
    pub address: u64,
}

#[derive(Clone)]
pub struct Outcome {
    pub registers: Registers,
    pub fault: Option<Fault>,
    pub window: Box<[u8; WINDOW_BYTES]>,
}

const GPR_NAMES: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

fn unhex(text: &str) -> anyhow::Result<Vec<u8>> {
    (0..text.len() / 2).map(|i| Ok(u8::from_str_radix(text.get(2 * i..2 * i + 2).context("not hex")?, 16)?)).collect()
}

impl Case {
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let Registers { fx, ymm_high, gpr, rip, rflags } = &self.registers;
        let mut line = |name: &str, value: String| {
            writeln!(text, "{name} {value}").expect("a string takes everything");
        };
        line("mode", self.mode.to_string());
        line("code", hex(&self.code));
        for (name, value) in GPR_NAMES.iter().zip(gpr) {
            line(name, format!("{value:x}"));
        }
        line("rip", format!("{rip:x}"));
        line("rflags", format!("{rflags:x}"));
        line("fx", hex(&fx.0));
        line("ymm", hex(&ymm_high.map(u128::to_le_bytes).concat()));
        for (index, chunk) in self.window.chunks_exact(64).enumerate() {
            if chunk.iter().any(|byte| *byte != 0) {
                line(&format!("+{:x}", index * 64), hex(chunk));
            }
        }
        text
    }

    pub fn from_text(text: &str) -> anyhow::Result<Self> {
        let lines: HashMap<&str, &str> = text.lines().filter_map(|line| line.split_once(' ')).collect();
        let field = |name: &str| lines.get(name).copied().ok_or_else(|| anyhow!("no line {name}"));
        let number = |name: &str| Ok::<u64, anyhow::Error>(u64::from_str_radix(field(name)?, 16)?);
        let (rip, rflags) = (number("rip")?, number("rflags")?);
        let mut registers = Registers { fx: FxImage([0; 512]), ymm_high: [0; 16], gpr: [0; 16], rip, rflags };
        for (value, name) in registers.gpr.iter_mut().zip(GPR_NAMES) {
            *value = number(name)?;
        }
        let image = unhex(field("fx")?)?;
        anyhow::ensure!(image.len() == 512, "the fx image must be 512 bytes");
        registers.fx.put(0, &image);
        // Cases from before AVX have no such line.
        for (value, bytes) in registers.ymm_high.iter_mut().zip(unhex(field("ymm").unwrap_or_default())?.chunks_exact(16)) {
            *value = u128::from_le_bytes(bytes.try_into()?);
        }
        let mut window = Box::new([0; WINDOW_BYTES]);
        for (name, value) in &lines {
            if let Some(offset) = name.strip_prefix('+') {
                let (offset, bytes) = (usize::from_str_radix(offset, 16)?, unhex(value)?);
                window.get_mut(offset..offset + bytes.len()).context("outside the window")?.copy_from_slice(&bytes);
            }
        }
        Ok(Self { mode: field("mode")?.parse()?, code: unhex(field("code")?)?, registers, window })
    }
}
