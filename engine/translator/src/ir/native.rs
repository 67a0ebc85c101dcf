//! Vector instructions that a guest and its host have in common, passed through as they are. The one machine that is both is
//! x86, so here is the one place of the IR that knows a machine: what an instruction says, packed into an [`Inst`], and which
//! of its operands are not vector registers.
//!
//! Guest vector registers have no values: they live in the host's own, all the time (a front end lifts such code only while
//! nothing about the unit is in the way), so there is nothing to allocate and nothing to restore. A `Native` is executed where
//! it stands. What it shares with the rest of the region are addresses, general registers and flags:
//!
//! * `Native` changes vector registers. Arguments: nothing; an integer; or address and addend of what it loads.
//! * `NativeStore` stores: address and addend.
//! * `NativeInteger` gives an integer of its type, and may load.
//! * `NativeFlags` gives all six flags, and may load.
//!
//! Who lifts memory operands puts the `Probe` (and `CheckAligned`) before: both bail, and the instruction itself then cannot fault.

use super::{Inst, Ty};
use iced_x86::{Code, OpCodeOperandKind as Kind};

/// Which part of an encoding names an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// ModRM.reg
    Reg,
    /// VEX.vvvv
    Vex,
    /// ModRM.rm
    Rm,
    /// The upper half of the immediate.
    Immediate,
    /// None: an immediate, or implied.
    Nowhere,
}

impl Place {
    /// That of an operand.
    pub fn of(kind: Kind) -> Self {
        use Kind as K;
        match kind {
            K::xmm_reg | K::ymm_reg | K::mm_reg | K::r32_reg | K::r64_reg => Self::Reg,
            K::xmm_vvvv | K::ymm_vvvv | K::r32_vvvv | K::r64_vvvv => Self::Vex,
            K::xmm_is4 | K::ymm_is4 => Self::Immediate,
            K::xmm_or_mem | K::ymm_or_mem | K::mm_or_mem | K::xmm_rm | K::ymm_rm | K::mm_rm | K::mem => Self::Rm,
            K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::r32_rm | K::r64_rm => Self::Rm,
            _ => Self::Nowhere,
        }
    }
}

/// What an instruction says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Native {
    pub code: Code,
    /// The vector registers in ModRM.reg, VEX.vvvv and ModRM.rm, as far as these name any.
    pub reg: u8,
    pub vvvv: u8,
    pub rm: u8,
    /// The immediate byte; where it names a register, that is in its upper half.
    pub immediate: u8,
    /// What is added to the address.
    pub displacement: i32,
}

impl Native {
    /// As `aux` and `imm`.
    pub fn pack(self) -> (u8, u64) {
        let registers = u64::from(self.reg & 15) | u64::from(self.vvvv & 15) << 4 | u64::from(self.rm & 15) << 8;
        (self.immediate, u64::from(self.displacement as u32) | (self.code as u64) << 32 | registers << 48)
    }

    /// That of an instruction.
    pub fn of(inst: &Inst) -> Self {
        let imm = inst.imm;
        let register = |at: u32| (imm >> at) as u8 & 15;
        Self {
            code: Code::try_from((imm >> 32) as usize & 0xffff).unwrap_or(Code::INVALID),
            reg: register(48),
            vvvv: register(52),
            rm: register(56),
            immediate: inst.aux,
            displacement: imm as u32 as i32,
        }
    }
}

/// What an instruction has besides vector registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub memory: Option<Memory>,
    pub integer: Option<Integer>,
    /// It writes the flags.
    pub flags: bool,
}

/// Its memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    pub bytes: u8,
    pub written: bool,
    /// It must lie at a multiple of its bytes.
    pub aligned: bool,
}

/// Its general register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Integer {
    pub place: Place,
    pub ty: Ty,
    pub written: bool,
}

impl Shape {
    /// That of an instruction on vector registers. `None`: it is none, or has operands that are not for us (MMX registers, a
    /// vector of addresses, implied registers).
    pub fn of(code: Code, has_memory: bool) -> Option<Self> {
        use Code as C;
        use Kind as K;
        let op_code = code.op_code();
        let mut shape = Self { memory: None, integer: None, flags: false };
        let (mut has_vector, count) = (false, op_code.op_count());
        for at in 0..count {
            let kind = op_code.op_kind(at);
            let (is_vector, is_memory) = match kind {
                K::xmm_reg | K::ymm_reg | K::xmm_vvvv | K::ymm_vvvv | K::xmm_is4 | K::ymm_is4 | K::xmm_rm | K::ymm_rm => {
                    (true, false)
                }
                K::xmm_or_mem | K::ymm_or_mem => (true, has_memory),
                K::mem => (false, true),
                K::r32_or_mem | K::r64_or_mem if has_memory => (false, true),
                K::r32_reg | K::r32_rm | K::r32_or_mem | K::r64_reg | K::r64_rm | K::r64_or_mem => {
                    let ty = if matches!(kind, K::r32_reg | K::r32_rm | K::r32_or_mem) { Ty::I32 } else { Ty::I64 };
                    shape.integer = Some(Integer { place: Place::of(kind), ty, written: at == 0 });
                    (false, false)
                }
                K::imm8 => (false, false),
                _ => return None,
            };
            has_vector |= is_vector;
            if is_memory {
                let bytes = op_code.memory_size().size() as u8;
                let aligned = is_aligned(code, bytes);
                shape.memory = Some(Memory { bytes, written: at == 0, aligned });
            }
        }
        // String comparisons have implied registers.
        let is_string = matches!(
            code,
            C::Pcmpestri_xmm_xmmm128_imm8
                | C::Pcmpestri64_xmm_xmmm128_imm8
                | C::Pcmpestrm_xmm_xmmm128_imm8
                | C::Pcmpestrm64_xmm_xmmm128_imm8
                | C::Pcmpistri_xmm_xmmm128_imm8
                | C::Pcmpistrm_xmm_xmmm128_imm8
                | C::VEX_Vpcmpestri_xmm_xmmm128_imm8
                | C::VEX_Vpcmpestri64_xmm_xmmm128_imm8
                | C::VEX_Vpcmpestrm_xmm_xmmm128_imm8
                | C::VEX_Vpcmpestrm64_xmm_xmmm128_imm8
                | C::VEX_Vpcmpistri_xmm_xmmm128_imm8
                | C::VEX_Vpcmpistrm_xmm_xmmm128_imm8
        );
        let whole_file = matches!(code, C::VEX_Vzeroupper | C::VEX_Vzeroall);
        shape.flags = writes_flags(code);
        (has_vector && !is_string || whole_file).then_some(shape)
    }
}

/// Whether a memory operand of so many bytes must be aligned.
fn is_aligned(code: Code, bytes: u8) -> bool {
    use iced_x86::{EncodingKind, Mnemonic::*};
    let mnemonic = code.mnemonic();
    if code.op_code().encoding() == EncodingKind::Legacy {
        return bytes == 16 && !matches!(mnemonic, Movups | Movupd | Movdqu | Lddqu);
    }
    matches!(mnemonic, Vmovaps | Vmovapd | Vmovdqa | Vmovntps | Vmovntpd | Vmovntdq | Vmovntdqa)
}

fn writes_flags(code: Code) -> bool {
    use iced_x86::Mnemonic::*;
    matches!(
        code.mnemonic(),
        Comiss | Comisd | Ucomiss | Ucomisd | Vcomiss | Vcomisd | Vucomiss | Vucomisd | Ptest | Vptest | Vtestps | Vtestpd
    )
}

#[cfg(test)]
mod tests {
    use super::super::Op;
    use super::*;

    #[test]
    fn an_instruction_comes_back_from_its_bits() {
        let (code, displacement) = (Code::VEX_Vblendvpd_ymm_ymm_ymmm256_ymm, -0x1234_5678);
        let native = Native { code, reg: 15, vvvv: 9, rm: 4, immediate: 0xc0, displacement };
        let (aux, imm) = native.pack();
        assert_eq!(Native::of(&Inst { aux, imm, ..Inst::new(Op::Native, Ty::None) }), native);
    }

    #[test]
    fn operands_that_are_not_vectors_are_found() {
        let load = |bytes, aligned| Some(Memory { bytes, written: false, aligned });
        let integer = |place, ty, written| Some(Integer { place, ty, written });
        let plain = Shape { memory: None, integer: None, flags: false };
        let cases = [
            (Code::Addps_xmm_xmmm128, true, Some(Shape { memory: load(16, true), ..plain })),
            (Code::Addsd_xmm_xmmm64, true, Some(Shape { memory: load(8, false), ..plain })),
            (Code::VEX_Vaddps_ymm_ymm_ymmm256, true, Some(Shape { memory: load(32, false), ..plain })),
            (Code::Movd_rm32_xmm, false, Some(Shape { integer: integer(Place::Rm, Ty::I32, true), ..plain })),
            (Code::Cvtsi2sd_xmm_rm64, false, Some(Shape { integer: integer(Place::Rm, Ty::I64, false), ..plain })),
            (
                Code::Cvttsd2si_r32_xmmm64,
                true,
                Some(Shape { memory: load(8, false), integer: integer(Place::Reg, Ty::I32, true), ..plain }),
            ),
            (Code::Ucomisd_xmm_xmmm64, false, Some(Shape { flags: true, ..plain })),
            (Code::VEX_Vzeroupper, false, Some(plain)),
            (
                Code::Pextrd_rm32_xmm_imm8,
                true,
                Some(Shape { memory: Some(Memory { bytes: 4, written: true, aligned: false }), ..plain }),
            ),
            (Code::Cvtpi2ps_xmm_mmm64, false, None),
            (Code::VEX_Vgatherdps_ymm_vm32y_ymm, true, None),
            (Code::Ldmxcsr_m32, true, None),
            (Code::VEX_Andn_r32_r32_rm32, false, None),
            (Code::Pcmpistri_xmm_xmmm128_imm8, false, None),
            (Code::Maskmovdqu_rDI_xmm_xmm, false, None),
        ];
        for (code, has_memory, shape) in cases {
            assert_eq!(Shape::of(code, has_memory), shape, "{code:?}");
        }
    }
}
