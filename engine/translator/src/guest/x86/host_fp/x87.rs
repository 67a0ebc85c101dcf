//! x87 operations on the host's x87: one function per instruction and operand form.
//!
//! The operands are pushed on the host's (empty) register stack, the instruction runs under the guest's control word, and
//! what is then on the stack is popped. The status word tells how many that are, so unmasked exceptions, which leave
//! operands in place or store scaled results, come out as the hardware does them.

#[cfg(target_arch = "x86_64")]
use core::arch::asm;

/// What an operation works on: ST(0) and ST(1), or ST(0) and the memory operand, in and out. 80 bits each.
pub type Frame = [u128; 2];

/// What the host said after an operation.
#[derive(Debug, Clone, Copy)]
pub struct Report(u32);

impl Report {
    /// The six exception flags of the status word. Stack faults do not happen here: the caller looks at the tags.
    pub fn exceptions(self) -> u16 {
        self.0 as u16 & 0x3f
    }
    /// C0, C1, C2, C3 where the status word has them.
    pub fn condition(self) -> u16 {
        self.0 as u16 & 0x4700
    }
    /// How many registers the operation left on the stack.
    pub fn depth(self) -> u32 {
        (8 - (self.0 >> 11 & 7)) & 7
    }
    /// SF, ZF, AF, PF, CF.
    pub fn rflags(self) -> u64 {
        u64::from(self.0 >> 16 & 0xd5)
    }
}

/// One x87 instruction in one operand form.
pub trait Operation {
    /// How many registers it finds on the stack.
    const OPERANDS: u32;
    /// Executes it under the guest's `control` word.
    fn run(control: u16, frame: &mut Frame) -> Report;
}

#[cfg(target_arch = "x86_64")]
static HOST_CONTROL: u16 = 0x37f;

macro_rules! operations {
    ($($Name:ident [$($load:literal)*] $text:literal;)*) => {$(
        #[doc = concat!("`", $text, "`")]
        pub struct $Name;
        impl Operation for $Name {
            const OPERANDS: u32 = { const LOADS: &[&str] = &[$($load),*]; LOADS.len() } as u32;
            #[cfg(target_arch = "x86_64")]
            fn run(control: u16, frame: &mut Frame) -> Report {
                let result: u32;
                let frame = frame.as_mut_ptr();
                // SAFETY: reads and writes the two elements of `frame` (10 bytes at most each) and registers. The x87 stack
                // is empty before and after, as Rust has it; the host's control word is back at the end. Unmasked
                // exceptions do not trap: `fnclex` comes before any waiting instruction. (A store's exception also waits.)
                unsafe {
                    asm!(
                        "fnclex",
                        "fldcw word ptr [{control}]",
                        $($load,)*
                        $text,
                        "lahf",
                        "movzx edx, ah",
                        "fnstsw ax",
                        "fnclex",
                        "movzx eax, ax",
                        "shl edx, 16",
                        "or edx, eax",
                        "shr eax, 11",
                        "and eax, 7",
                        "jz 2f",
                        "fstp tbyte ptr [{a}]",
                        "cmp eax, 7",
                        "je 2f",
                        "fstp tbyte ptr [{b}]",
                        "2:",
                        "fldcw word ptr [{host}]",
                        control = in(reg) &raw const control,
                        host = in(reg) &raw const HOST_CONTROL,
                        a = in(reg) frame, b = in(reg) frame.add(1),
                        out("edx") result, out("eax") _,
                        out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                        out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                        options(nostack)
                    );
                }
                Report(result)
            }
            #[cfg(not(target_arch = "x86_64"))]
            fn run(_: u16, _: &mut Frame) -> Report {
                Report(1)
            }
        }
    )*};
}

operations! {
    // ST(0) and ST(1)
    Fadd ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fadd st(0), st(1)";
    Fmul ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fmul st(0), st(1)";
    Fsub ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fsub st(0), st(1)";
    Fsubr ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fsubr st(0), st(1)";
    Fdiv ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fdiv st(0), st(1)";
    Fdivr ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fdivr st(0), st(1)";
    Fcom ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fcom st(1)";
    Fucom ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fucom st(1)";
    Fcomi ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fcomi st(0), st(1)";
    Fucomi ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fucomi st(0), st(1)";
    Fcomp ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fcomp st(1)";
    Fcompp ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fcompp";
    Fucomp ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fucomp st(1)";
    Fucompp ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fucompp";
    Fcomip ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fcomip st(0), st(1)";
    Fucomip ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fucomip st(0), st(1)";
    Fprem ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fprem";
    Fprem1 ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fprem1";
    Fscale ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fscale";
    Fpatan ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fpatan";
    Fyl2x ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fyl2x";
    Fyl2xp1 ["fld tbyte ptr [{b}]" "fld tbyte ptr [{a}]"] "fyl2xp1";
    // ST(0)
    Fsqrt ["fld tbyte ptr [{a}]"] "fsqrt";
    Frndint ["fld tbyte ptr [{a}]"] "frndint";
    F2xm1 ["fld tbyte ptr [{a}]"] "f2xm1";
    Fsin ["fld tbyte ptr [{a}]"] "fsin";
    Fcos ["fld tbyte ptr [{a}]"] "fcos";
    Fsincos ["fld tbyte ptr [{a}]"] "fsincos";
    Fptan ["fld tbyte ptr [{a}]"] "fptan";
    Fxtract ["fld tbyte ptr [{a}]"] "fxtract";
    Ftst ["fld tbyte ptr [{a}]"] "ftst";
    Fxam ["fld tbyte ptr [{a}]"] "fxam";
    // ST(0) and memory
    FaddM32 ["fld tbyte ptr [{a}]"] "fadd dword ptr [{b}]";
    FmulM32 ["fld tbyte ptr [{a}]"] "fmul dword ptr [{b}]";
    FsubM32 ["fld tbyte ptr [{a}]"] "fsub dword ptr [{b}]";
    FsubrM32 ["fld tbyte ptr [{a}]"] "fsubr dword ptr [{b}]";
    FdivM32 ["fld tbyte ptr [{a}]"] "fdiv dword ptr [{b}]";
    FdivrM32 ["fld tbyte ptr [{a}]"] "fdivr dword ptr [{b}]";
    FcomM32 ["fld tbyte ptr [{a}]"] "fcom dword ptr [{b}]";
    FcompM32 ["fld tbyte ptr [{a}]"] "fcomp dword ptr [{b}]";
    FaddM64 ["fld tbyte ptr [{a}]"] "fadd qword ptr [{b}]";
    FmulM64 ["fld tbyte ptr [{a}]"] "fmul qword ptr [{b}]";
    FsubM64 ["fld tbyte ptr [{a}]"] "fsub qword ptr [{b}]";
    FsubrM64 ["fld tbyte ptr [{a}]"] "fsubr qword ptr [{b}]";
    FdivM64 ["fld tbyte ptr [{a}]"] "fdiv qword ptr [{b}]";
    FdivrM64 ["fld tbyte ptr [{a}]"] "fdivr qword ptr [{b}]";
    FcomM64 ["fld tbyte ptr [{a}]"] "fcom qword ptr [{b}]";
    FcompM64 ["fld tbyte ptr [{a}]"] "fcomp qword ptr [{b}]";
    FiaddM16 ["fld tbyte ptr [{a}]"] "fiadd word ptr [{b}]";
    FimulM16 ["fld tbyte ptr [{a}]"] "fimul word ptr [{b}]";
    FisubM16 ["fld tbyte ptr [{a}]"] "fisub word ptr [{b}]";
    FisubrM16 ["fld tbyte ptr [{a}]"] "fisubr word ptr [{b}]";
    FidivM16 ["fld tbyte ptr [{a}]"] "fidiv word ptr [{b}]";
    FidivrM16 ["fld tbyte ptr [{a}]"] "fidivr word ptr [{b}]";
    FicomM16 ["fld tbyte ptr [{a}]"] "ficom word ptr [{b}]";
    FicompM16 ["fld tbyte ptr [{a}]"] "ficomp word ptr [{b}]";
    FiaddM32 ["fld tbyte ptr [{a}]"] "fiadd dword ptr [{b}]";
    FimulM32 ["fld tbyte ptr [{a}]"] "fimul dword ptr [{b}]";
    FisubM32 ["fld tbyte ptr [{a}]"] "fisub dword ptr [{b}]";
    FisubrM32 ["fld tbyte ptr [{a}]"] "fisubr dword ptr [{b}]";
    FidivM32 ["fld tbyte ptr [{a}]"] "fidiv dword ptr [{b}]";
    FidivrM32 ["fld tbyte ptr [{a}]"] "fidivr dword ptr [{b}]";
    FicomM32 ["fld tbyte ptr [{a}]"] "ficom dword ptr [{b}]";
    FicompM32 ["fld tbyte ptr [{a}]"] "ficomp dword ptr [{b}]";
    // Loads: memory to ST(0)
    FldM32 [] "fld dword ptr [{b}]";
    FldM64 [] "fld qword ptr [{b}]";
    FildM16 [] "fild word ptr [{b}]";
    FildM32 [] "fild dword ptr [{b}]";
    FildM64 [] "fild qword ptr [{b}]";
    Fbld [] "fbld tbyte ptr [{b}]";
    // Constants
    Fld1 [] "fld1";
    Fldl2t [] "fldl2t";
    Fldl2e [] "fldl2e";
    Fldpi [] "fldpi";
    Fldlg2 [] "fldlg2";
    Fldln2 [] "fldln2";
    Fldz [] "fldz";
    // Stores: ST(0) to memory; the depth is then 0 unless an unmasked exception kept it back
    FstpM32 ["fld tbyte ptr [{a}]"] "fstp dword ptr [{b}]";
    FstpM64 ["fld tbyte ptr [{a}]"] "fstp qword ptr [{b}]";
    FistpM16 ["fld tbyte ptr [{a}]"] "fistp word ptr [{b}]";
    FistpM32 ["fld tbyte ptr [{a}]"] "fistp dword ptr [{b}]";
    FistpM64 ["fld tbyte ptr [{a}]"] "fistp qword ptr [{b}]";
    FisttpM16 ["fld tbyte ptr [{a}]"] "fisttp word ptr [{b}]";
    FisttpM32 ["fld tbyte ptr [{a}]"] "fisttp dword ptr [{b}]";
    FisttpM64 ["fld tbyte ptr [{a}]"] "fisttp qword ptr [{b}]";
    Fbstp ["fld tbyte ptr [{a}]"] "fbstp tbyte ptr [{b}]";
}
