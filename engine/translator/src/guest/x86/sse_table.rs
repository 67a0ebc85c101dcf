//! Which MMX or SSE instruction (AES, SHA and PCLMULQDQ among them) is which shape of `sse.rs` with which operation.
//!
//! A line of the table is: the code, the operation, where the second operand is when it is a register, where it is when it is
//! memory. `M128` must be aligned. (For SHA that is so on Intel's CPUs but not on AMD's; no program can tell but by the fault.)

use super::host_fp::*;
use super::op::Handler;
use super::shuffle::*;
use super::sse::*;
use super::{fxsave, host_fp};
use iced_x86::{Code, Instruction, OpKind};

/// The handler of an MMX or SSE instruction.
pub(super) fn handler(code: Code, instruction: &Instruction) -> Option<Handler> {
    // FXSAVE and the like need nothing of the host's vector unit.
    fxsave::handler(code)
        .or_else(|| if host_fp::available() { table(code, instruction).or_else(|| moves(code, instruction)) } else { None })
}

fn has_memory(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory)
}

macro_rules! table {
    (
        $code:ident, $memory:ident;
        $($shape:ident { $($name:ident = $operation:ty | $register:ty | $source:ty;)* })*
        ; $($shift:ident { $($shift_name:ident = $shift_operation:ty;)* })*
    ) => {
        match $code {
            $($(Code::$name => if $memory { $shape::<$operation, $source> as Handler } else { $shape::<$operation, $register> },)*)*
            $($(Code::$shift_name => $shift::<$shift_operation> as Handler,)*)*
            _ => return None,
        }
    };
}

#[rustfmt::skip]
fn table(code: Code, instruction: &Instruction) -> Option<Handler> {
    let memory = has_memory(instruction);
    Some(table! {
        code, memory;
        lanes {
            Movsldup_xmm_xmmm128 = Movsldup | Xmm | M128;
            Movddup_xmm_xmmm64 = Movddup | Xmm | M<8>;
            Unpcklps_xmm_xmmm128 = Unpcklps | Xmm | M128;
            Unpcklpd_xmm_xmmm128 = Unpcklpd | Xmm | M128;
            Unpckhps_xmm_xmmm128 = Unpckhps | Xmm | M128;
            Unpckhpd_xmm_xmmm128 = Unpckhpd | Xmm | M128;
            Movshdup_xmm_xmmm128 = Movshdup | Xmm | M128;
            Rsqrtps_xmm_xmmm128 = Rsqrtps | Xmm | M128;
            Rsqrtss_xmm_xmmm32 = Rsqrtss | Xmm | M<4>;
            Rcpps_xmm_xmmm128 = Rcpps | Xmm | M128;
            Rcpss_xmm_xmmm32 = Rcpss | Xmm | M<4>;
            Andps_xmm_xmmm128 = And | Xmm | M128;
            Andpd_xmm_xmmm128 = And | Xmm | M128;
            Andnps_xmm_xmmm128 = AndNot | Xmm | M128;
            Andnpd_xmm_xmmm128 = AndNot | Xmm | M128;
            Orps_xmm_xmmm128 = Or | Xmm | M128;
            Orpd_xmm_xmmm128 = Or | Xmm | M128;
            Xorps_xmm_xmmm128 = Xor | Xmm | M128;
            Xorpd_xmm_xmmm128 = Xor | Xmm | M128;
            Punpcklbw_xmm_xmmm128 = Punpcklbw | Xmm | M128;
            Punpcklwd_xmm_xmmm128 = Punpcklwd | Xmm | M128;
            Punpckldq_xmm_xmmm128 = Punpckldq | Xmm | M128;
            Packsswb_xmm_xmmm128 = Packsswb | Xmm | M128;
            Pcmpgtb_xmm_xmmm128 = Pcmpgtb | Xmm | M128;
            Pcmpgtw_xmm_xmmm128 = Pcmpgtw | Xmm | M128;
            Pcmpgtd_xmm_xmmm128 = Pcmpgtd | Xmm | M128;
            Packuswb_xmm_xmmm128 = Packuswb | Xmm | M128;
            Punpckhbw_xmm_xmmm128 = Punpckhbw | Xmm | M128;
            Punpckhwd_xmm_xmmm128 = Punpckhwd | Xmm | M128;
            Punpckhdq_xmm_xmmm128 = Punpckhdq | Xmm | M128;
            Packssdw_xmm_xmmm128 = Packssdw | Xmm | M128;
            Punpcklqdq_xmm_xmmm128 = Punpcklqdq | Xmm | M128;
            Punpckhqdq_xmm_xmmm128 = Punpckhqdq | Xmm | M128;
            Pcmpeqb_xmm_xmmm128 = Pcmpeqb | Xmm | M128;
            Pcmpeqw_xmm_xmmm128 = Pcmpeqw | Xmm | M128;
            Pcmpeqd_xmm_xmmm128 = Pcmpeqd | Xmm | M128;
            Psrlw_xmm_xmmm128 = Psrlw | Xmm | M128;
            Psrld_xmm_xmmm128 = Psrld | Xmm | M128;
            Psrlq_xmm_xmmm128 = Psrlq | Xmm | M128;
            Paddq_xmm_xmmm128 = Paddq | Xmm | M128;
            Pmullw_xmm_xmmm128 = Pmullw | Xmm | M128;
            Psubusb_xmm_xmmm128 = Psubusb | Xmm | M128;
            Psubusw_xmm_xmmm128 = Psubusw | Xmm | M128;
            Pminub_xmm_xmmm128 = Pminub | Xmm | M128;
            Pand_xmm_xmmm128 = And | Xmm | M128;
            Paddusb_xmm_xmmm128 = Paddusb | Xmm | M128;
            Paddusw_xmm_xmmm128 = Paddusw | Xmm | M128;
            Pmaxub_xmm_xmmm128 = Pmaxub | Xmm | M128;
            Pandn_xmm_xmmm128 = AndNot | Xmm | M128;
            Pavgb_xmm_xmmm128 = Pavgb | Xmm | M128;
            Psraw_xmm_xmmm128 = Psraw | Xmm | M128;
            Psrad_xmm_xmmm128 = Psrad | Xmm | M128;
            Pavgw_xmm_xmmm128 = Pavgw | Xmm | M128;
            Pmulhuw_xmm_xmmm128 = Pmulhuw | Xmm | M128;
            Pmulhw_xmm_xmmm128 = Pmulhw | Xmm | M128;
            Psubsb_xmm_xmmm128 = Psubsb | Xmm | M128;
            Psubsw_xmm_xmmm128 = Psubsw | Xmm | M128;
            Pminsw_xmm_xmmm128 = Pminsw | Xmm | M128;
            Por_xmm_xmmm128 = Or | Xmm | M128;
            Paddsb_xmm_xmmm128 = Paddsb | Xmm | M128;
            Paddsw_xmm_xmmm128 = Paddsw | Xmm | M128;
            Pmaxsw_xmm_xmmm128 = Pmaxsw | Xmm | M128;
            Pxor_xmm_xmmm128 = Xor | Xmm | M128;
            Psllw_xmm_xmmm128 = Psllw | Xmm | M128;
            Pslld_xmm_xmmm128 = Pslld | Xmm | M128;
            Psllq_xmm_xmmm128 = Psllq | Xmm | M128;
            Pmuludq_xmm_xmmm128 = Pmuludq | Xmm | M128;
            Pmaddwd_xmm_xmmm128 = Pmaddwd | Xmm | M128;
            Psadbw_xmm_xmmm128 = Psadbw | Xmm | M128;
            Psubb_xmm_xmmm128 = Psubb | Xmm | M128;
            Psubw_xmm_xmmm128 = Psubw | Xmm | M128;
            Psubd_xmm_xmmm128 = Psubd | Xmm | M128;
            Psubq_xmm_xmmm128 = Psubq | Xmm | M128;
            Paddb_xmm_xmmm128 = Paddb | Xmm | M128;
            Paddw_xmm_xmmm128 = Paddw | Xmm | M128;
            Paddd_xmm_xmmm128 = Paddd | Xmm | M128;
            Pshufb_xmm_xmmm128 = Pshufb | Xmm | M128;
            Phaddw_xmm_xmmm128 = Phaddw | Xmm | M128;
            Phaddd_xmm_xmmm128 = Phaddd | Xmm | M128;
            Phaddsw_xmm_xmmm128 = Phaddsw | Xmm | M128;
            Pmaddubsw_xmm_xmmm128 = Pmaddubsw | Xmm | M128;
            Phsubw_xmm_xmmm128 = Phsubw | Xmm | M128;
            Phsubd_xmm_xmmm128 = Phsubd | Xmm | M128;
            Phsubsw_xmm_xmmm128 = Phsubsw | Xmm | M128;
            Psignb_xmm_xmmm128 = Psignb | Xmm | M128;
            Psignw_xmm_xmmm128 = Psignw | Xmm | M128;
            Psignd_xmm_xmmm128 = Psignd | Xmm | M128;
            Pmulhrsw_xmm_xmmm128 = Pmulhrsw | Xmm | M128;
            Pabsb_xmm_xmmm128 = Pabsb | Xmm | M128;
            Pabsw_xmm_xmmm128 = Pabsw | Xmm | M128;
            Pabsd_xmm_xmmm128 = Pabsd | Xmm | M128;
            Pmovsxbw_xmm_xmmm64 = Pmovsxbw | Xmm | M<8>;
            Pmovsxbd_xmm_xmmm32 = Pmovsxbd | Xmm | M<4>;
            Pmovsxbq_xmm_xmmm16 = Pmovsxbq | Xmm | M<2>;
            Pmovsxwd_xmm_xmmm64 = Pmovsxwd | Xmm | M<8>;
            Pmovsxwq_xmm_xmmm32 = Pmovsxwq | Xmm | M<4>;
            Pmovsxdq_xmm_xmmm64 = Pmovsxdq | Xmm | M<8>;
            Pmuldq_xmm_xmmm128 = Pmuldq | Xmm | M128;
            Pcmpeqq_xmm_xmmm128 = Pcmpeqq | Xmm | M128;
            Packusdw_xmm_xmmm128 = Packusdw | Xmm | M128;
            Pmovzxbw_xmm_xmmm64 = Pmovzxbw | Xmm | M<8>;
            Pmovzxbd_xmm_xmmm32 = Pmovzxbd | Xmm | M<4>;
            Pmovzxbq_xmm_xmmm16 = Pmovzxbq | Xmm | M<2>;
            Pmovzxwd_xmm_xmmm64 = Pmovzxwd | Xmm | M<8>;
            Pmovzxwq_xmm_xmmm32 = Pmovzxwq | Xmm | M<4>;
            Pmovzxdq_xmm_xmmm64 = Pmovzxdq | Xmm | M<8>;
            Pcmpgtq_xmm_xmmm128 = Pcmpgtq | Xmm | M128;
            Pminsb_xmm_xmmm128 = Pminsb | Xmm | M128;
            Pminsd_xmm_xmmm128 = Pminsd | Xmm | M128;
            Pminuw_xmm_xmmm128 = Pminuw | Xmm | M128;
            Pminud_xmm_xmmm128 = Pminud | Xmm | M128;
            Pmaxsb_xmm_xmmm128 = Pmaxsb | Xmm | M128;
            Pmaxsd_xmm_xmmm128 = Pmaxsd | Xmm | M128;
            Pmaxuw_xmm_xmmm128 = Pmaxuw | Xmm | M128;
            Pmaxud_xmm_xmmm128 = Pmaxud | Xmm | M128;
            Pmulld_xmm_xmmm128 = Pmulld | Xmm | M128;
            Phminposuw_xmm_xmmm128 = Phminposuw | Xmm | M128;
            Aesenc_xmm_xmmm128 = Aesenc | Xmm | M128;
            Aesenclast_xmm_xmmm128 = Aesenclast | Xmm | M128;
            Aesdec_xmm_xmmm128 = Aesdec | Xmm | M128;
            Aesdeclast_xmm_xmmm128 = Aesdeclast | Xmm | M128;
            Aesimc_xmm_xmmm128 = Aesimc | Xmm | M128;
            Sha1nexte_xmm_xmmm128 = Sha1nexte | Xmm | M<16>;
            Sha1msg1_xmm_xmmm128 = Sha1msg1 | Xmm | M<16>;
            Sha1msg2_xmm_xmmm128 = Sha1msg2 | Xmm | M<16>;
            Sha256msg1_xmm_xmmm128 = Sha256msg1 | Xmm | M<16>;
            Sha256msg2_xmm_xmmm128 = Sha256msg2 | Xmm | M<16>;
        }
        float {
            Sqrtps_xmm_xmmm128 = Sqrtps | Xmm | M128;
            Sqrtpd_xmm_xmmm128 = Sqrtpd | Xmm | M128;
            Sqrtss_xmm_xmmm32 = Sqrtss | Xmm | M<4>;
            Sqrtsd_xmm_xmmm64 = Sqrtsd | Xmm | M<8>;
            Addps_xmm_xmmm128 = Addps | Xmm | M128;
            Addpd_xmm_xmmm128 = Addpd | Xmm | M128;
            Addss_xmm_xmmm32 = Addss | Xmm | M<4>;
            Addsd_xmm_xmmm64 = Addsd | Xmm | M<8>;
            Mulps_xmm_xmmm128 = Mulps | Xmm | M128;
            Mulpd_xmm_xmmm128 = Mulpd | Xmm | M128;
            Mulss_xmm_xmmm32 = Mulss | Xmm | M<4>;
            Mulsd_xmm_xmmm64 = Mulsd | Xmm | M<8>;
            Cvtps2pd_xmm_xmmm64 = Cvtps2pd | Xmm | M<8>;
            Cvtpd2ps_xmm_xmmm128 = Cvtpd2ps | Xmm | M128;
            Cvtss2sd_xmm_xmmm32 = Cvtss2sd | Xmm | M<4>;
            Cvtsd2ss_xmm_xmmm64 = Cvtsd2ss | Xmm | M<8>;
            Cvtdq2ps_xmm_xmmm128 = Cvtdq2ps | Xmm | M128;
            Cvtps2dq_xmm_xmmm128 = Cvtps2dq | Xmm | M128;
            Cvttps2dq_xmm_xmmm128 = Cvttps2dq | Xmm | M128;
            Subps_xmm_xmmm128 = Subps | Xmm | M128;
            Subpd_xmm_xmmm128 = Subpd | Xmm | M128;
            Subss_xmm_xmmm32 = Subss | Xmm | M<4>;
            Subsd_xmm_xmmm64 = Subsd | Xmm | M<8>;
            Minps_xmm_xmmm128 = Minps | Xmm | M128;
            Minpd_xmm_xmmm128 = Minpd | Xmm | M128;
            Minss_xmm_xmmm32 = Minss | Xmm | M<4>;
            Minsd_xmm_xmmm64 = Minsd | Xmm | M<8>;
            Divps_xmm_xmmm128 = Divps | Xmm | M128;
            Divpd_xmm_xmmm128 = Divpd | Xmm | M128;
            Divss_xmm_xmmm32 = Divss | Xmm | M<4>;
            Divsd_xmm_xmmm64 = Divsd | Xmm | M<8>;
            Maxps_xmm_xmmm128 = Maxps | Xmm | M128;
            Maxpd_xmm_xmmm128 = Maxpd | Xmm | M128;
            Maxss_xmm_xmmm32 = Maxss | Xmm | M<4>;
            Maxsd_xmm_xmmm64 = Maxsd | Xmm | M<8>;
            Haddpd_xmm_xmmm128 = Haddpd | Xmm | M128;
            Haddps_xmm_xmmm128 = Haddps | Xmm | M128;
            Hsubpd_xmm_xmmm128 = Hsubpd | Xmm | M128;
            Hsubps_xmm_xmmm128 = Hsubps | Xmm | M128;
            Addsubpd_xmm_xmmm128 = Addsubpd | Xmm | M128;
            Addsubps_xmm_xmmm128 = Addsubps | Xmm | M128;
            Cvttpd2dq_xmm_xmmm128 = Cvttpd2dq | Xmm | M128;
            Cvtdq2pd_xmm_xmmm64 = Cvtdq2pd | Xmm | M<8>;
            Cvtpd2dq_xmm_xmmm128 = Cvtpd2dq | Xmm | M128;
        }
        float_immediate {
            Cmpps_xmm_xmmm128_imm8 = Cmpps | Xmm | M128;
            Cmppd_xmm_xmmm128_imm8 = Cmppd | Xmm | M128;
            Cmpss_xmm_xmmm32_imm8 = Cmpss | Xmm | M<4>;
            Cmpsd_xmm_xmmm64_imm8 = Cmpsd | Xmm | M<8>;
            Roundps_xmm_xmmm128_imm8 = Roundps | Xmm | M128;
            Roundpd_xmm_xmmm128_imm8 = Roundpd | Xmm | M128;
            Roundss_xmm_xmmm32_imm8 = Roundss | Xmm | M<4>;
            Roundsd_xmm_xmmm64_imm8 = Roundsd | Xmm | M<8>;
            Dpps_xmm_xmmm128_imm8 = Dpps | Xmm | M128;
            Dppd_xmm_xmmm128_imm8 = Dppd | Xmm | M128;
        }
        compare {
            Ucomiss_xmm_xmmm32 = Ucomiss | Xmm | M<4>;
            Ucomisd_xmm_xmmm64 = Ucomisd | Xmm | M<8>;
            Comiss_xmm_xmmm32 = Comiss | Xmm | M<4>;
            Comisd_xmm_xmmm64 = Comisd | Xmm | M<8>;
        }
        shuffle {
            Pshufd_xmm_xmmm128_imm8 = Pshufd | Xmm | M128;
            Pshufhw_xmm_xmmm128_imm8 = Pshufhw | Xmm | M128;
            Pshuflw_xmm_xmmm128_imm8 = Pshuflw | Xmm | M128;
            Shufps_xmm_xmmm128_imm8 = Shufps | Xmm | M128;
            Shufpd_xmm_xmmm128_imm8 = Shufpd | Xmm | M128;
            Blendps_xmm_xmmm128_imm8 = Blendps | Xmm | M128;
            Blendpd_xmm_xmmm128_imm8 = Blendpd | Xmm | M128;
            Pblendw_xmm_xmmm128_imm8 = Pblendw | Xmm | M128;
            Palignr_xmm_xmmm128_imm8 = Palignr | Xmm | M128;
            Mpsadbw_xmm_xmmm128_imm8 = Mpsadbw | Xmm | M128;
            Aeskeygenassist_xmm_xmmm128_imm8 = Aeskeygenassist | Xmm | M128;
            Pclmulqdq_xmm_xmmm128_imm8 = Pclmulqdq | Xmm | M128;
            Sha1rnds4_xmm_xmmm128_imm8 = Sha1rnds4 | Xmm | M<16>;
        }
        mmx {
            Punpcklbw_mm_mmm32 = Punpcklbw | Mm | M<4>;
            Punpcklwd_mm_mmm32 = Punpcklwd | Mm | M<4>;
            Punpckldq_mm_mmm32 = Punpckldq | Mm | M<4>;
            Packsswb_mm_mmm64 = Joined<Packsswb> | Mm | M<8>;
            Pcmpgtb_mm_mmm64 = Pcmpgtb | Mm | M<8>;
            Pcmpgtw_mm_mmm64 = Pcmpgtw | Mm | M<8>;
            Pcmpgtd_mm_mmm64 = Pcmpgtd | Mm | M<8>;
            Packuswb_mm_mmm64 = Joined<Packuswb> | Mm | M<8>;
            Punpckhbw_mm_mmm64 = UpperOf<Punpcklbw> | Mm | M<8>;
            Punpckhwd_mm_mmm64 = UpperOf<Punpcklwd> | Mm | M<8>;
            Punpckhdq_mm_mmm64 = UpperOf<Punpckldq> | Mm | M<8>;
            Packssdw_mm_mmm64 = Joined<Packssdw> | Mm | M<8>;
            Pcmpeqb_mm_mmm64 = Pcmpeqb | Mm | M<8>;
            Pcmpeqw_mm_mmm64 = Pcmpeqw | Mm | M<8>;
            Pcmpeqd_mm_mmm64 = Pcmpeqd | Mm | M<8>;
            Psrlw_mm_mmm64 = Psrlw | Mm | M<8>;
            Psrld_mm_mmm64 = Psrld | Mm | M<8>;
            Psrlq_mm_mmm64 = Psrlq | Mm | M<8>;
            Paddq_mm_mmm64 = Paddq | Mm | M<8>;
            Pmullw_mm_mmm64 = Pmullw | Mm | M<8>;
            Psubusb_mm_mmm64 = Psubusb | Mm | M<8>;
            Psubusw_mm_mmm64 = Psubusw | Mm | M<8>;
            Pminub_mm_mmm64 = Pminub | Mm | M<8>;
            Pand_mm_mmm64 = And | Mm | M<8>;
            Paddusb_mm_mmm64 = Paddusb | Mm | M<8>;
            Paddusw_mm_mmm64 = Paddusw | Mm | M<8>;
            Pmaxub_mm_mmm64 = Pmaxub | Mm | M<8>;
            Pandn_mm_mmm64 = AndNot | Mm | M<8>;
            Pavgb_mm_mmm64 = Pavgb | Mm | M<8>;
            Psraw_mm_mmm64 = Psraw | Mm | M<8>;
            Psrad_mm_mmm64 = Psrad | Mm | M<8>;
            Pavgw_mm_mmm64 = Pavgw | Mm | M<8>;
            Pmulhuw_mm_mmm64 = Pmulhuw | Mm | M<8>;
            Pmulhw_mm_mmm64 = Pmulhw | Mm | M<8>;
            Psubsb_mm_mmm64 = Psubsb | Mm | M<8>;
            Psubsw_mm_mmm64 = Psubsw | Mm | M<8>;
            Pminsw_mm_mmm64 = Pminsw | Mm | M<8>;
            Por_mm_mmm64 = Or | Mm | M<8>;
            Paddsb_mm_mmm64 = Paddsb | Mm | M<8>;
            Paddsw_mm_mmm64 = Paddsw | Mm | M<8>;
            Pmaxsw_mm_mmm64 = Pmaxsw | Mm | M<8>;
            Pxor_mm_mmm64 = Xor | Mm | M<8>;
            Psllw_mm_mmm64 = Psllw | Mm | M<8>;
            Pslld_mm_mmm64 = Pslld | Mm | M<8>;
            Psllq_mm_mmm64 = Psllq | Mm | M<8>;
            Pmuludq_mm_mmm64 = Pmuludq | Mm | M<8>;
            Pmaddwd_mm_mmm64 = Pmaddwd | Mm | M<8>;
            Psadbw_mm_mmm64 = Psadbw | Mm | M<8>;
            Psubb_mm_mmm64 = Psubb | Mm | M<8>;
            Psubw_mm_mmm64 = Psubw | Mm | M<8>;
            Psubd_mm_mmm64 = Psubd | Mm | M<8>;
            Psubq_mm_mmm64 = Psubq | Mm | M<8>;
            Paddb_mm_mmm64 = Paddb | Mm | M<8>;
            Paddw_mm_mmm64 = Paddw | Mm | M<8>;
            Paddd_mm_mmm64 = Paddd | Mm | M<8>;
            Pshufb_mm_mmm64 = PshufbMmx | Mm | M<8>;
            Phaddw_mm_mmm64 = Joined<Phaddw> | Mm | M<8>;
            Phaddd_mm_mmm64 = Joined<Phaddd> | Mm | M<8>;
            Phaddsw_mm_mmm64 = Joined<Phaddsw> | Mm | M<8>;
            Pmaddubsw_mm_mmm64 = Pmaddubsw | Mm | M<8>;
            Phsubw_mm_mmm64 = Joined<Phsubw> | Mm | M<8>;
            Phsubd_mm_mmm64 = Joined<Phsubd> | Mm | M<8>;
            Phsubsw_mm_mmm64 = Joined<Phsubsw> | Mm | M<8>;
            Psignb_mm_mmm64 = Psignb | Mm | M<8>;
            Psignw_mm_mmm64 = Psignw | Mm | M<8>;
            Psignd_mm_mmm64 = Psignd | Mm | M<8>;
            Pmulhrsw_mm_mmm64 = Pmulhrsw | Mm | M<8>;
            Pabsb_mm_mmm64 = Pabsb | Mm | M<8>;
            Pabsw_mm_mmm64 = Pabsw | Mm | M<8>;
            Pabsd_mm_mmm64 = Pabsd | Mm | M<8>;
        }
        mmx_shuffle {
            Pshufw_mm_mmm64_imm8 = Pshufw | Mm | M<8>;
            Palignr_mm_mmm64_imm8 = PalignrMmx | Mm | M<8>;
        }
        to_integer {
            Cvttss2si_r32_xmmm32 = Cvttss2si32 | Xmm | M<4>;
            Cvttss2si_r64_xmmm32 = Cvttss2si64 | Xmm | M<4>;
            Cvttsd2si_r32_xmmm64 = Cvttsd2si32 | Xmm | M<8>;
            Cvttsd2si_r64_xmmm64 = Cvttsd2si64 | Xmm | M<8>;
            Cvtss2si_r32_xmmm32 = Cvtss2si32 | Xmm | M<4>;
            Cvtss2si_r64_xmmm32 = Cvtss2si64 | Xmm | M<4>;
            Cvtsd2si_r32_xmmm64 = Cvtsd2si32 | Xmm | M<8>;
            Cvtsd2si_r64_xmmm64 = Cvtsd2si64 | Xmm | M<8>;
        }
        string_index {
            Pcmpestri_xmm_xmmm128_imm8 = Pcmpestri | Xmm | M<16>;
            Pcmpestri64_xmm_xmmm128_imm8 = Pcmpestri | Xmm | M<16>;
            Pcmpistri_xmm_xmmm128_imm8 = Pcmpistri | Xmm | M<16>;
        }
        string_mask {
            Pcmpestrm_xmm_xmmm128_imm8 = Pcmpestrm | Xmm | M<16>;
            Pcmpestrm64_xmm_xmmm128_imm8 = Pcmpestrm | Xmm | M<16>;
            Pcmpistrm_xmm_xmmm128_imm8 = Pcmpistrm | Xmm | M<16>;
        }
        ;
        shift {
            Psrlw_xmm_imm8 = Psrlw;
            Psraw_xmm_imm8 = Psraw;
            Psllw_xmm_imm8 = Psllw;
            Psrld_xmm_imm8 = Psrld;
            Psrad_xmm_imm8 = Psrad;
            Pslld_xmm_imm8 = Pslld;
            Psrlq_xmm_imm8 = Psrlq;
            Psrldq_xmm_imm8 = Psrldq;
            Psllq_xmm_imm8 = Psllq;
            Pslldq_xmm_imm8 = Pslldq;
        }
        mmx_shift {
            Psrlw_mm_imm8 = Psrlw;
            Psraw_mm_imm8 = Psraw;
            Psllw_mm_imm8 = Psllw;
            Psrld_mm_imm8 = Psrld;
            Psrad_mm_imm8 = Psrad;
            Pslld_mm_imm8 = Pslld;
            Psrlq_mm_imm8 = Psrlq;
            Psllq_mm_imm8 = Psllq;
        }
    })
}

/// What is one of a kind.
fn moves(code: Code, instruction: &Instruction) -> Option<Handler> {
    use Code::*;
    let memory = has_memory(instruction);
    let either = |in_register: Handler, in_memory: Handler| if memory { in_memory } else { in_register };
    Some(match code {
        Movaps_xmm_xmmm128 | Movapd_xmm_xmmm128 | Movdqa_xmm_xmmm128 => either(load::<Xmm>, load::<M128>),
        Movups_xmm_xmmm128 | Movupd_xmm_xmmm128 | Movdqu_xmm_xmmm128 => either(load::<Xmm>, load::<M<16>>),
        Lddqu_xmm_m128 => load::<M<16>>,
        Movntdqa_xmm_m128 => load::<M128>,
        Movaps_xmmm128_xmm | Movapd_xmmm128_xmm | Movdqa_xmmm128_xmm => either(store_register, store_aligned),
        Movups_xmmm128_xmm | Movupd_xmmm128_xmm | Movdqu_xmmm128_xmm => either(store_register, store_low::<16>),
        Movntps_m128_xmm | Movntpd_m128_xmm | Movntdq_m128_xmm => store_aligned,
        Movss_xmm_xmmm32 => either(load_low::<Xmm, 32>, load::<M<4>>),
        Movsd_xmm_xmmm64 => either(load_low::<Xmm, 64>, load::<M<8>>),
        Movss_xmmm32_xmm => either(store_register_low::<32>, store_low::<4>),
        Movsd_xmmm64_xmm => either(store_register_low::<64>, store_low::<8>),
        Movlps_xmm_m64 | Movlpd_xmm_m64 => load_low::<M<8>, 64>,
        Movhps_xmm_m64 | Movhpd_xmm_m64 => load_high::<M<8>>,
        Movlhps_xmm_xmm => load_high::<Xmm>,
        Movhlps_xmm_xmm => high_to_low,
        Movlps_m64_xmm | Movlpd_m64_xmm => store_low::<8>,
        Movhps_m64_xmm | Movhpd_m64_xmm => store_high,
        Movq_xmm_xmmm64 => either(move_quad, load::<M<8>>),
        Movq_xmmm64_xmm => either(store_register_quad, store_low::<8>),
        Movd_xmm_rm32 => from_general::<4>,
        Movq_xmm_rm64 => from_general::<8>,
        Movd_rm32_xmm => to_general::<4>,
        Movq_rm64_xmm => to_general::<8>,
        Movd_mm_rm32 => mmx_from_general::<4>,
        Movq_mm_rm64 => mmx_from_general::<8>,
        Movd_rm32_mm => mmx_to_general::<4>,
        Movq_rm64_mm => mmx_to_general::<8>,
        Movq_mm_mmm64 => either(mmx_load::<Mm>, mmx_load::<M<8>>),
        Movq_mmm64_mm => either(mmx_store_register, mmx_store),
        Movntq_m64_mm => mmx_store,
        Movq2dq_xmm_mm => mmx_to_xmm,
        Movdq2q_mm_xmm => xmm_to_mmx,
        Movnti_m32_r32 => store_integer::<4>,
        Movnti_m64_r64 => store_integer::<8>,
        Emms => emms,
        Maskmovq_rDI_mm_mm => masked_store::<true>,
        Maskmovdqu_rDI_xmm_xmm => masked_store::<false>,

        Cvtsi2ss_xmm_rm32 => from_integer::<Cvtsi2ss32, 4>,
        Cvtsi2ss_xmm_rm64 => from_integer::<Cvtsi2ss64, 8>,
        Cvtsi2sd_xmm_rm32 => from_integer::<Cvtsi2sd32, 4>,
        Cvtsi2sd_xmm_rm64 => from_integer::<Cvtsi2sd64, 8>,
        Cvtpi2ps_xmm_mmm64 => either(from_mmx::<Cvtdq2ps, Mm, true, true>, from_mmx::<Cvtdq2ps, M<8>, true, false>),
        Cvtpi2pd_xmm_mmm64 => either(from_mmx::<Cvtdq2pd, Mm, false, true>, from_mmx::<Cvtdq2pd, M<8>, false, false>),
        Cvtps2pi_mm_xmmm64 => either(to_mmx::<Cvtps2dq, Xmm, true>, to_mmx::<Cvtps2dq, M<8>, true>),
        Cvttps2pi_mm_xmmm64 => either(to_mmx::<Cvttps2dq, Xmm, true>, to_mmx::<Cvttps2dq, M<8>, true>),
        Cvtpd2pi_mm_xmmm128 => either(to_mmx::<Cvtpd2dq, Xmm, false>, to_mmx::<Cvtpd2dq, M128, false>),
        Cvttpd2pi_mm_xmmm128 => either(to_mmx::<Cvttpd2dq, Xmm, false>, to_mmx::<Cvttpd2dq, M128, false>),

        Movmskps_r32_xmm | Movmskps_r64_xmm => mask_to_general::<32>,
        Movmskpd_r32_xmm | Movmskpd_r64_xmm => mask_to_general::<64>,
        Pmovmskb_r32_xmm | Pmovmskb_r64_xmm => mask_to_general::<8>,
        Pmovmskb_r32_mm | Pmovmskb_r64_mm => mmx_mask_to_general,
        Pinsrb_xmm_r32m8_imm8 | Pinsrb_xmm_r64m8_imm8 => insert::<1>,
        Pinsrw_xmm_r32m16_imm8 | Pinsrw_xmm_r64m16_imm8 => insert::<2>,
        Pinsrd_xmm_rm32_imm8 => insert::<4>,
        Pinsrq_xmm_rm64_imm8 => insert::<8>,
        Pinsrw_mm_r32m16_imm8 | Pinsrw_mm_r64m16_imm8 => mmx_insert_word,
        Pextrb_r32m8_xmm_imm8 | Pextrb_r64m8_xmm_imm8 => extract::<1>,
        Pextrw_r32m16_xmm_imm8 | Pextrw_r64m16_xmm_imm8 => extract::<2>,
        Pextrd_rm32_xmm_imm8 | Extractps_rm32_xmm_imm8 | Extractps_r64m32_xmm_imm8 => extract::<4>,
        Pextrq_rm64_xmm_imm8 => extract::<8>,
        Pextrw_r32_xmm_imm8 | Pextrw_r64_xmm_imm8 => extract_word,
        Pextrw_r32_mm_imm8 | Pextrw_r64_mm_imm8 => mmx_extract_word,
        Insertps_xmm_xmmm32_imm8 => either(shuffle::<InsertpsRegister, Xmm>, shuffle::<InsertpsMemory, M<4>>),
        Pblendvb_xmm_xmmm128 => either(blend_by_xmm0::<Xmm, 8>, blend_by_xmm0::<M128, 8>),
        Blendvps_xmm_xmmm128 => either(blend_by_xmm0::<Xmm, 32>, blend_by_xmm0::<M128, 32>),
        Blendvpd_xmm_xmmm128 => either(blend_by_xmm0::<Xmm, 64>, blend_by_xmm0::<M128, 64>),
        Sha256rnds2_xmm_xmmm128 => either(sha256_rounds::<Xmm>, sha256_rounds::<M<16>>),
        Ptest_xmm_xmmm128 => either(test::<Xmm>, test::<M128>),
        Crc32_r32_rm8 | Crc32_r64_rm8 => crc32::<1>,
        Crc32_r32_rm16 => crc32::<2>,
        Crc32_r32_rm32 => crc32::<4>,
        Crc32_r64_rm64 => crc32::<8>,

        Prefetch_m8 | Prefetchw_m8 | Prefetchnta_m8 | Prefetcht0_m8 | Prefetcht1_m8 | Prefetcht2_m8 | Prefetchreserved3_m8
        | Prefetchreserved4_m8 | Prefetchreserved5_m8 | Prefetchreserved6_m8 | Prefetchreserved7_m8 => prefetch,
        Lfence | Lfence_E9 | Lfence_EA | Lfence_EB | Lfence_EC | Lfence_ED | Lfence_EE | Lfence_EF | Mfence | Mfence_F1
        | Mfence_F2 | Mfence_F3 | Mfence_F4 | Mfence_F5 | Mfence_F6 | Mfence_F7 | Sfence | Sfence_F9 | Sfence_FA | Sfence_FB
        | Sfence_FC | Sfence_FD | Sfence_FE | Sfence_FF => fence,
        Clflush_m8 => clflush,
        _ => return None,
    })
}
