//! Gathers, passed through like what [`native`](super::native) has, but for their memory: of that there is a place for each
//! element, so no probe stands before. Either all elements are loaded, or the instruction bails with no register changed, and
//! the interpreter does what is right when one of them faults.
//! See: Intel SDM volume 2, "VPGATHERDD/VPGATHERDQ", "VGATHERDPS/VGATHERDPD".

use super::Inst;
use super::native::Native;
use iced_x86::{Code, Mnemonic};

/// Bytes of a vector register.
const VECTOR_BYTES: u8 = 32;

/// A gather's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    /// Bytes of an index: 4, which are sign-extended, or 8.
    pub index: u8,
    /// Bytes of an element: 4 or 8.
    pub element: u8,
    pub count: u8,
}

impl Form {
    /// That of an instruction, if it is a gather.
    pub fn of(code: Code) -> Option<Self> {
        use Mnemonic::*;
        let (index, element) = match code.mnemonic() {
            Vpgatherdd | Vgatherdps => (4, 4),
            Vpgatherdq | Vgatherdpd => (4, 8),
            Vpgatherqd | Vgatherqps => (8, 4),
            Vpgatherqq | Vgatherqpd => (8, 8),
            _ => return None,
        };
        let bytes = if code.op_code().l() == 1 { VECTOR_BYTES } else { VECTOR_BYTES / 2 };
        Some(Self { index, element, count: bytes / index.max(element) })
    }

    /// Elements in half a vector register.
    pub fn half(self) -> u8 {
        VECTOR_BYTES / 2 / self.element
    }

    /// The mask that VMOVMSKPS or VMOVMSKPD gives if all elements are wanted.
    pub fn all(self) -> i32 {
        (1 << self.count) - 1
    }
}

/// What a gather says, but for the base of its addresses, which is a value: element n lies at base + (index n << `scale`) +
/// `displacement`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gather {
    pub code: Code,
    /// Numbers of vector registers.
    pub result: u8,
    pub mask: u8,
    pub index: u8,
    /// At most 3.
    pub scale: u8,
    pub displacement: i32,
}

impl Gather {
    /// As `aux` and `imm`.
    pub fn pack(self) -> (u8, u64) {
        let Self { code, result, mask, index, scale, displacement } = self;
        Native { code, reg: result, vvvv: mask, rm: index, immediate: scale, displacement }.pack()
    }

    /// That of an instruction.
    pub fn of(inst: &Inst) -> Self {
        let Native { code, reg, vvvv, rm, immediate, displacement } = Native::of(inst);
        Self { code, result: reg, mask: vvvv, index: rm, scale: immediate, displacement }
    }

    /// Whether it names no register twice, which is #UD.
    pub fn is_valid(&self) -> bool {
        self.result != self.mask && self.result != self.index && self.mask != self.index
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Op, Ty};
    use super::*;

    #[test]
    fn elements_are_as_many_as_both_vectors_have_room_for() {
        let cases = [
            (Code::VEX_Vgatherdps_ymm_vm32y_ymm, 4, 4, 8),
            (Code::VEX_Vpgatherdq_ymm_vm32x_ymm, 4, 8, 4),
            (Code::VEX_Vpgatherqd_xmm_vm64x_xmm, 8, 4, 2),
            (Code::VEX_Vgatherqps_xmm_vm64y_xmm, 8, 4, 4),
            (Code::VEX_Vgatherqpd_xmm_vm64x_xmm, 8, 8, 2),
        ];
        for (code, index, element, count) in cases {
            assert_eq!(Form::of(code), Some(Form { index, element, count }), "{code:?}");
        }
        assert_eq!(Form::of(Code::VEX_Vpmaskmovd_ymm_ymm_m256), None);
    }

    #[test]
    fn a_gather_comes_back_from_its_bits() {
        let code = Code::VEX_Vpgatherqq_ymm_vm64y_ymm;
        let gather = Gather { code, result: 15, mask: 9, index: 4, scale: 3, displacement: -0x1234_5678 };
        let (aux, imm) = gather.pack();
        assert_eq!(Gather::of(&Inst { aux, imm, ..Inst::new(Op::NativeGather, Ty::None) }), gather);
        assert!(gather.is_valid() && !Gather { index: 9, ..gather }.is_valid());
    }
}
