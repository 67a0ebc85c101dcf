//! Which VEX-encoded vector instruction is which shape of `vex.rs` with which operation.
//!
//! A line of the table is: the mnemonic, the operation. The heading says the shape, and how many bytes the last source has when
//! it is memory: with 128 bits, with 256 bits.

use super::host_fp::*;
use super::op::Handler;
use super::shuffle::*;
use super::vex::*;
use super::vex_lanes::*;
use super::vex_memory::*;
use super::{fxsave, host_fp};
use iced_x86::{Code, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind, OpKind};

/// The handler of a VEX-encoded vector instruction.
pub(super) fn handler(code: Code, instruction: &Instruction) -> Option<Handler> {
    if instruction.op_code().encoding() != EncodingKind::VEX || !host_fp::available() {
        return None;
    }
    let form = Form::of(instruction);
    let mnemonic = instruction.mnemonic();
    by_immediate(mnemonic, form)
        .or_else(|| moves(mnemonic, form))
        .or_else(|| table(mnemonic, form))
        .or_else(|| single(code, form))
}

/// What a handler depends on besides the mnemonic.
#[derive(Clone, Copy)]
struct Form {
    /// 256 bits.
    wide: bool,
    /// The last source is memory.
    load: bool,
    /// The destination is memory.
    store: bool,
    /// The destination is in ModRM.rm.
    reversed: bool,
    /// There is an immediate, not counting one that names a register.
    immediate: bool,
}

impl Form {
    fn of(instruction: &Instruction) -> Self {
        use OpCodeOperandKind as Kind;
        let info = instruction.op_code();
        let is_memory = |at: u32| instruction.op_kind(at) == OpKind::Memory;
        let count = instruction.op_count();
        Self {
            wide: info.l() == 1,
            load: (1..count).any(is_memory),
            store: count > 0 && is_memory(0),
            reversed: matches!(info.op0_kind(), Kind::xmm_or_mem | Kind::ymm_or_mem | Kind::xmm_rm | Kind::ymm_rm),
            immediate: count > 0 && instruction.op_kind(count - 1) == OpKind::Immediate8,
        }
    }
}

macro_rules! table {
    (
        $mnemonic:ident, $form:ident;
        $($shape:ident($narrow:literal, $wide:literal) { $($name:ident = $operation:ty;)* })*
        ; $($scalar:ident($bytes:literal) { $($scalar_name:ident = $scalar_operation:ty;)* })*
    ) => {
        match $mnemonic {
            $($(Mnemonic::$name => match ($form.wide, $form.load) {
                (false, false) => $shape::<$operation, Reg, false> as Handler,
                (false, true) => $shape::<$operation, Mem<$narrow>, false>,
                (true, false) => $shape::<$operation, Reg, true>,
                (true, true) => $shape::<$operation, Mem<$wide>, true>,
            },)*)*
            $($(Mnemonic::$scalar_name => match $form.load {
                false => $scalar::<$scalar_operation, Reg> as Handler,
                true => $scalar::<$scalar_operation, Mem<$bytes>>,
            },)*)*
            _ => return None,
        }
    };
}

#[rustfmt::skip]
fn table(mnemonic: Mnemonic, form: Form) -> Option<Handler> {
    Some(table! {
        mnemonic, form;
        lanes(16, 32) {
            Vpaddb = Each<Paddb>; Vpaddw = Each<Paddw>; Vpaddd = Each<Paddd>; Vpaddq = Each<Paddq>;
            Vpaddsb = Each<Paddsb>; Vpaddsw = Each<Paddsw>; Vpaddusb = Each<Paddusb>; Vpaddusw = Each<Paddusw>;
            Vpsubb = Each<Psubb>; Vpsubw = Each<Psubw>; Vpsubd = Each<Psubd>; Vpsubq = Each<Psubq>;
            Vpsubsb = Each<Psubsb>; Vpsubsw = Each<Psubsw>; Vpsubusb = Each<Psubusb>; Vpsubusw = Each<Psubusw>;
            Vpmullw = Each<Pmullw>; Vpmulhw = Each<Pmulhw>; Vpmulhuw = Each<Pmulhuw>; Vpmuludq = Each<Pmuludq>;
            Vpmaddwd = Each<Pmaddwd>; Vpmuldq = Each<Pmuldq>; Vpmulld = Each<Pmulld>;
            Vpmulhrsw = Each<Pmulhrsw>; Vpmaddubsw = Each<Pmaddubsw>;
            Vpcmpeqb = Each<Pcmpeqb>; Vpcmpeqw = Each<Pcmpeqw>; Vpcmpeqd = Each<Pcmpeqd>; Vpcmpeqq = Each<Pcmpeqq>;
            Vpcmpgtb = Each<Pcmpgtb>; Vpcmpgtw = Each<Pcmpgtw>; Vpcmpgtd = Each<Pcmpgtd>; Vpcmpgtq = Each<Pcmpgtq>;
            Vpavgb = Each<Pavgb>; Vpavgw = Each<Pavgw>; Vpsadbw = Each<Psadbw>; Vphminposuw = Each<Phminposuw>;
            Vpminub = Each<Pminub>; Vpminuw = Each<Pminuw>; Vpminud = Each<Pminud>;
            Vpminsb = Each<Pminsb>; Vpminsw = Each<Pminsw>; Vpminsd = Each<Pminsd>;
            Vpmaxub = Each<Pmaxub>; Vpmaxuw = Each<Pmaxuw>; Vpmaxud = Each<Pmaxud>;
            Vpmaxsb = Each<Pmaxsb>; Vpmaxsw = Each<Pmaxsw>; Vpmaxsd = Each<Pmaxsd>;
            Vpacksswb = Each<Packsswb>; Vpackssdw = Each<Packssdw>; Vpackuswb = Each<Packuswb>; Vpackusdw = Each<Packusdw>;
            Vpunpcklbw = Each<Punpcklbw>; Vpunpcklwd = Each<Punpcklwd>; Vpunpckldq = Each<Punpckldq>; Vpunpcklqdq = Each<Punpcklqdq>;
            Vpunpckhbw = Each<Punpckhbw>; Vpunpckhwd = Each<Punpckhwd>; Vpunpckhdq = Each<Punpckhdq>; Vpunpckhqdq = Each<Punpckhqdq>;
            Vunpcklps = Each<Unpcklps>; Vunpckhps = Each<Unpckhps>; Vunpcklpd = Each<Unpcklpd>; Vunpckhpd = Each<Unpckhpd>;
            Vpshufb = Each<Pshufb>; Vpsignb = Each<Psignb>; Vpsignw = Each<Psignw>; Vpsignd = Each<Psignd>;
            Vpabsb = Each<Pabsb>; Vpabsw = Each<Pabsw>; Vpabsd = Each<Pabsd>;
            Vphaddw = Each<Phaddw>; Vphaddd = Each<Phaddd>; Vphaddsw = Each<Phaddsw>;
            Vphsubw = Each<Phsubw>; Vphsubd = Each<Phsubd>; Vphsubsw = Each<Phsubsw>;
            Vmovshdup = Each<Movshdup>; Vmovsldup = Each<Movsldup>;
            Vrcpps = Each<Rcpps>; Vrsqrtps = Each<Rsqrtps>;
            Vandps = Each<And>; Vandpd = Each<And>; Vpand = Each<And>;
            Vandnps = Each<AndNot>; Vandnpd = Each<AndNot>; Vpandn = Each<AndNot>;
            Vorps = Each<Or>; Vorpd = Each<Or>; Vpor = Each<Or>;
            Vxorps = Each<Xor>; Vxorpd = Each<Xor>; Vpxor = Each<Xor>;
            Vpsllvd = Each<Psllvd>; Vpsllvq = Each<Psllvq>; Vpsrlvd = Each<Psrlvd>; Vpsrlvq = Each<Psrlvq>; Vpsravd = Each<Psravd>;
            Vpermilps = Each<Permilps>; Vpermilpd = Each<Permilpd>;
            Vpermd = PermuteDoubles; Vpermps = PermuteDoubles;
            Vperm2f128 = PermuteHalves; Vperm2i128 = PermuteHalves; Vpermq = PermuteQuads; Vpermpd = PermuteQuads;
            Vshufps = By<Shufps, 0>; Vshufpd = By<Shufpd, 2>;
            Vblendps = By<Blendps, 4>; Vblendpd = By<Blendpd, 2>; Vpblendw = By<Pblendw, 0>; Vpblendd = By<Pblendd, 4>;
            Vpalignr = By<Palignr, 0>; Vmpsadbw = By<Mpsadbw, 3>;
            Vpshufd = By<Pshufd, 0>; Vpshufhw = By<Pshufhw, 0>; Vpshuflw = By<Pshuflw, 0>;
            Vaesenc = Each<Aesenc>; Vaesenclast = Each<Aesenclast>; Vaesdec = Each<Aesdec>; Vaesdeclast = Each<Aesdeclast>;
            Vaesimc = Each<Aesimc>; Vaeskeygenassist = By<Aeskeygenassist, 0>; Vpclmulqdq = By<Pclmulqdq, 0>;
        }
        lanes(8, 16) {
            Vpmovsxbw = Extend<Pmovsxbw, 64>; Vpmovsxwd = Extend<Pmovsxwd, 64>; Vpmovsxdq = Extend<Pmovsxdq, 64>;
            Vpmovzxbw = Extend<Pmovzxbw, 64>; Vpmovzxwd = Extend<Pmovzxwd, 64>; Vpmovzxdq = Extend<Pmovzxdq, 64>;
        }
        lanes(4, 8) {
            Vpmovsxbd = Extend<Pmovsxbd, 32>; Vpmovsxwq = Extend<Pmovsxwq, 32>;
            Vpmovzxbd = Extend<Pmovzxbd, 32>; Vpmovzxwq = Extend<Pmovzxwq, 32>;
        }
        lanes(2, 4) {
            Vpmovsxbq = Extend<Pmovsxbq, 16>; Vpmovzxbq = Extend<Pmovzxbq, 16>;
        }
        lanes(16, 16) {
            Vpsllw = Count<Psllw>; Vpslld = Count<Pslld>; Vpsllq = Count<Psllq>;
            Vpsrlw = Count<Psrlw>; Vpsrld = Count<Psrld>; Vpsrlq = Count<Psrlq>;
            Vpsraw = Count<Psraw>; Vpsrad = Count<Psrad>;
        }
        lanes(8, 32) { Vmovddup = Each<Movddup>; }
        lanes(4, 4) { Vrcpss = Each<Rcpss>; Vrsqrtss = Each<Rsqrtss>; }
        lanes(16, 16) {
            Vinsertf128 = InsertHalf; Vinserti128 = InsertHalf; Vbroadcastf128 = BroadcastHalf; Vbroadcasti128 = BroadcastHalf;
        }
        lanes(1, 1) { Vpbroadcastb = Broadcast<8>; }
        lanes(2, 2) { Vpbroadcastw = Broadcast<16>; }
        lanes(4, 4) { Vpbroadcastd = Broadcast<32>; Vbroadcastss = Broadcast<32>; }
        lanes(8, 8) { Vpbroadcastq = Broadcast<64>; Vbroadcastsd = Broadcast<64>; }
        float(16, 32) {
            Vaddps = F<Addps>; Vaddpd = F<Addpd>; Vsubps = F<Subps>; Vsubpd = F<Subpd>;
            Vmulps = F<Mulps>; Vmulpd = F<Mulpd>; Vdivps = F<Divps>; Vdivpd = F<Divpd>;
            Vminps = F<Minps>; Vminpd = F<Minpd>; Vmaxps = F<Maxps>; Vmaxpd = F<Maxpd>;
            Vsqrtps = F<Sqrtps>; Vsqrtpd = F<Sqrtpd>; Vaddsubps = F<Addsubps>; Vaddsubpd = F<Addsubpd>;
            Vhaddps = F<Haddps>; Vhaddpd = F<Haddpd>; Vhsubps = F<Hsubps>; Vhsubpd = F<Hsubpd>;
            Vcvtdq2ps = F<Cvtdq2ps>; Vcvtps2dq = F<Cvtps2dq>; Vcvttps2dq = F<Cvttps2dq>;
            Vcvtpd2ps = Narrow<Cvtpd2ps>; Vcvtpd2dq = Narrow<Cvtpd2dq>; Vcvttpd2dq = Narrow<Cvttpd2dq>;
            Vcmpps = Vcmpps; Vcmppd = Vcmppd;
            Vroundps = FBy<Roundps>; Vroundpd = FBy<Roundpd>; Vdpps = FBy<Dpps>; Vdppd = FBy<Dppd>;
        }
        float(8, 16) { Vcvtps2pd = Widen<Cvtps2pd>; Vcvtdq2pd = Widen<Cvtdq2pd>; Vcvtph2ps = Widen<Vcvtph2ps>; }
        float(4, 4) {
            Vaddss = F<Addss>; Vsubss = F<Subss>; Vmulss = F<Mulss>; Vdivss = F<Divss>; Vminss = F<Minss>; Vmaxss = F<Maxss>;
            Vsqrtss = F<Sqrtss>; Vcvtss2sd = F<Cvtss2sd>; Vcmpss = Vcmpss; Vroundss = FBy<Roundss>;
        }
        float(8, 8) {
            Vaddsd = F<Addsd>; Vsubsd = F<Subsd>; Vmulsd = F<Mulsd>; Vdivsd = F<Divsd>; Vminsd = F<Minsd>; Vmaxsd = F<Maxsd>;
            Vsqrtsd = F<Sqrtsd>; Vcvtsd2ss = F<Cvtsd2ss>; Vcmpsd = Vcmpsd; Vroundsd = FBy<Roundsd>;
        }
        fused(16, 32) {
            Vfmadd132ps = Vfmadd132ps; Vfmadd213ps = Vfmadd213ps; Vfmadd231ps = Vfmadd231ps;
            Vfmadd132pd = Vfmadd132pd; Vfmadd213pd = Vfmadd213pd; Vfmadd231pd = Vfmadd231pd;
            Vfmsub132ps = Vfmsub132ps; Vfmsub213ps = Vfmsub213ps; Vfmsub231ps = Vfmsub231ps;
            Vfmsub132pd = Vfmsub132pd; Vfmsub213pd = Vfmsub213pd; Vfmsub231pd = Vfmsub231pd;
            Vfnmadd132ps = Vfnmadd132ps; Vfnmadd213ps = Vfnmadd213ps; Vfnmadd231ps = Vfnmadd231ps;
            Vfnmadd132pd = Vfnmadd132pd; Vfnmadd213pd = Vfnmadd213pd; Vfnmadd231pd = Vfnmadd231pd;
            Vfnmsub132ps = Vfnmsub132ps; Vfnmsub213ps = Vfnmsub213ps; Vfnmsub231ps = Vfnmsub231ps;
            Vfnmsub132pd = Vfnmsub132pd; Vfnmsub213pd = Vfnmsub213pd; Vfnmsub231pd = Vfnmsub231pd;
            Vfmaddsub132ps = Vfmaddsub132ps; Vfmaddsub213ps = Vfmaddsub213ps; Vfmaddsub231ps = Vfmaddsub231ps;
            Vfmaddsub132pd = Vfmaddsub132pd; Vfmaddsub213pd = Vfmaddsub213pd; Vfmaddsub231pd = Vfmaddsub231pd;
            Vfmsubadd132ps = Vfmsubadd132ps; Vfmsubadd213ps = Vfmsubadd213ps; Vfmsubadd231ps = Vfmsubadd231ps;
            Vfmsubadd132pd = Vfmsubadd132pd; Vfmsubadd213pd = Vfmsubadd213pd; Vfmsubadd231pd = Vfmsubadd231pd;
        }
        fused(4, 4) {
            Vfmadd132ss = Vfmadd132ss; Vfmadd213ss = Vfmadd213ss; Vfmadd231ss = Vfmadd231ss;
            Vfmsub132ss = Vfmsub132ss; Vfmsub213ss = Vfmsub213ss; Vfmsub231ss = Vfmsub231ss;
            Vfnmadd132ss = Vfnmadd132ss; Vfnmadd213ss = Vfnmadd213ss; Vfnmadd231ss = Vfnmadd231ss;
            Vfnmsub132ss = Vfnmsub132ss; Vfnmsub213ss = Vfnmsub213ss; Vfnmsub231ss = Vfnmsub231ss;
        }
        fused(8, 8) {
            Vfmadd132sd = Vfmadd132sd; Vfmadd213sd = Vfmadd213sd; Vfmadd231sd = Vfmadd231sd;
            Vfmsub132sd = Vfmsub132sd; Vfmsub213sd = Vfmsub213sd; Vfmsub231sd = Vfmsub231sd;
            Vfnmadd132sd = Vfnmadd132sd; Vfnmadd213sd = Vfnmadd213sd; Vfnmadd231sd = Vfnmadd231sd;
            Vfnmsub132sd = Vfnmsub132sd; Vfnmsub213sd = Vfnmsub213sd; Vfnmsub231sd = Vfnmsub231sd;
        }
        ;
        compare(4) { Vcomiss = Comiss; Vucomiss = Ucomiss; }
        compare(8) { Vcomisd = Comisd; Vucomisd = Ucomisd; }
        string_index(16) { Vpcmpistri = Pcmpistri; Vpcmpestri = Pcmpestri; Vpcmpestri64 = Pcmpestri; }
        string_mask(16) { Vpcmpistrm = Pcmpistrm; Vpcmpestrm = Pcmpestrm; Vpcmpestrm64 = Pcmpestrm; }
    })
}

/// What has the mnemonic of another instruction and an immediate.
fn by_immediate(mnemonic: Mnemonic, form: Form) -> Option<Handler> {
    if !form.immediate {
        return None;
    }
    macro_rules! shifts {
        ($($name:ident $operation:ident)*) => {
            match mnemonic {
                $(Mnemonic::$name => if form.wide { shift::<$operation, true> as Handler } else { shift::<$operation, false> },)*
                Mnemonic::Vpermilps => permuted::<Pshufd, 0>(form),
                Mnemonic::Vpermilpd => permuted::<PermilpdImmediate, 2>(form),
                _ => return None,
            }
        };
    }
    Some(shifts! {
        Vpsllw Psllw Vpslld Pslld Vpsllq Psllq Vpsrlw Psrlw Vpsrld Psrld Vpsrlq Psrlq Vpsraw Psraw Vpsrad Psrad
        Vpslldq Pslldq Vpsrldq Psrldq
    })
}

fn permuted<O: Shuffle, const SHIFT: u32>(form: Form) -> Handler {
    match (form.wide, form.load) {
        (false, false) => lanes::<By<O, SHIFT>, Reg, false>,
        (false, true) => lanes::<By<O, SHIFT>, Mem<16>, false>,
        (true, false) => lanes::<By<O, SHIFT>, Reg, true>,
        (true, true) => lanes::<By<O, SHIFT>, Mem<32>, true>,
    }
}

/// Moves to memory, in the store's encoding, or aligned.
fn moves(mnemonic: Mnemonic, form: Form) -> Option<Handler> {
    use Mnemonic::*;
    let aligned = match mnemonic {
        Vmovaps | Vmovapd | Vmovdqa | Vmovntps | Vmovntpd | Vmovntdq | Vmovntdqa => true,
        Vmovups | Vmovupd | Vmovdqu | Vlddqu => false,
        _ => return None,
    };
    Some(match (form.wide, aligned) {
        (false, true) if form.store => store_aligned::<16>,
        (true, true) if form.store => store_aligned::<32>,
        (false, false) if form.store => store_to_memory::<16>,
        (true, false) if form.store => store_to_memory::<32>,
        (false, _) if form.reversed => store_register::<false>,
        (true, _) if form.reversed => store_register::<true>,
        (false, _) if !form.load => lanes::<Copy, Reg, false>,
        (true, _) if !form.load => lanes::<Copy, Reg, true>,
        (false, true) => lanes::<Copy, Aligned<16>, false>,
        (true, true) => lanes::<Copy, Aligned<32>, true>,
        (false, false) => lanes::<Copy, Mem<16>, false>,
        (true, false) => lanes::<Copy, Mem<32>, true>,
    })
}

/// What is one of a kind.
fn single(code: Code, form: Form) -> Option<Handler> {
    use Code::*;
    let either = |in_register: Handler, in_memory: Handler| if form.load { in_memory } else { in_register };
    Some(match code {
        VEX_Vmovss_xmm_xmm_xmm => lanes::<LowSingle, Reg, false>,
        VEX_Vmovss_xmm_m32 => lanes::<Copy, Mem<4>, false>,
        VEX_Vmovss_xmm_xmm_xmm_0F11 => store_register_low::<32>,
        VEX_Vmovss_m32_xmm => store_to_memory::<4>,
        VEX_Vmovsd_xmm_xmm_xmm => lanes::<LowDouble, Reg, false>,
        VEX_Vmovsd_xmm_m64 => lanes::<Copy, Mem<8>, false>,
        VEX_Vmovsd_xmm_xmm_xmm_0F11 => store_register_low::<64>,
        VEX_Vmovsd_m64_xmm | VEX_Vmovlps_m64_xmm | VEX_Vmovlpd_m64_xmm => store_to_memory::<8>,
        VEX_Vmovlps_xmm_xmm_m64 | VEX_Vmovlpd_xmm_xmm_m64 => lanes::<LowDouble, Mem<8>, false>,
        VEX_Vmovhps_xmm_xmm_m64 | VEX_Vmovhpd_xmm_xmm_m64 => lanes::<LowToHigh, Mem<8>, false>,
        VEX_Vmovlhps_xmm_xmm_xmm => lanes::<LowToHigh, Reg, false>,
        VEX_Vmovhlps_xmm_xmm_xmm => lanes::<HighToLow, Reg, false>,
        VEX_Vmovhps_m64_xmm | VEX_Vmovhpd_m64_xmm => store_high,
        VEX_Vmovq_xmm_xmmm64 => either(lanes::<Quad, Reg, false>, lanes::<Quad, Mem<8>, false>),
        VEX_Vmovq_xmmm64_xmm => {
            if form.store {
                store_to_memory::<8>
            } else {
                store_register_quad
            }
        }
        VEX_Vmovd_xmm_rm32 => from_general::<4>,
        VEX_Vmovq_xmm_rm64 => from_general::<8>,
        VEX_Vmovd_rm32_xmm => extract::<4>,
        VEX_Vmovq_rm64_xmm => extract::<8>,
        VEX_Vextractf128_xmmm128_ymm_imm8 | VEX_Vextracti128_xmmm128_ymm_imm8 => extract_half,

        VEX_Vcvtsi2ss_xmm_xmm_rm32 => from_integer::<Cvtsi2ss32, 4>,
        VEX_Vcvtsi2ss_xmm_xmm_rm64 => from_integer::<Cvtsi2ss64, 8>,
        VEX_Vcvtsi2sd_xmm_xmm_rm32 => from_integer::<Cvtsi2sd32, 4>,
        VEX_Vcvtsi2sd_xmm_xmm_rm64 => from_integer::<Cvtsi2sd64, 8>,
        VEX_Vcvtss2si_r32_xmmm32 => either(to_integer::<Cvtss2si32, Reg>, to_integer::<Cvtss2si32, Mem<4>>),
        VEX_Vcvtss2si_r64_xmmm32 => either(to_integer::<Cvtss2si64, Reg>, to_integer::<Cvtss2si64, Mem<4>>),
        VEX_Vcvttss2si_r32_xmmm32 => either(to_integer::<Cvttss2si32, Reg>, to_integer::<Cvttss2si32, Mem<4>>),
        VEX_Vcvttss2si_r64_xmmm32 => either(to_integer::<Cvttss2si64, Reg>, to_integer::<Cvttss2si64, Mem<4>>),
        VEX_Vcvtsd2si_r32_xmmm64 => either(to_integer::<Cvtsd2si32, Reg>, to_integer::<Cvtsd2si32, Mem<8>>),
        VEX_Vcvtsd2si_r64_xmmm64 => either(to_integer::<Cvtsd2si64, Reg>, to_integer::<Cvtsd2si64, Mem<8>>),
        VEX_Vcvttsd2si_r32_xmmm64 => either(to_integer::<Cvttsd2si32, Reg>, to_integer::<Cvttsd2si32, Mem<8>>),
        VEX_Vcvttsd2si_r64_xmmm64 => either(to_integer::<Cvttsd2si64, Reg>, to_integer::<Cvttsd2si64, Mem<8>>),
        VEX_Vcvtps2ph_xmmm64_xmm_imm8 => to_halves::<false>,
        VEX_Vcvtps2ph_xmmm128_ymm_imm8 => to_halves::<true>,

        VEX_Vmovmskps_r32_xmm | VEX_Vmovmskps_r64_xmm => mask_to_general::<false, 32>,
        VEX_Vmovmskps_r32_ymm | VEX_Vmovmskps_r64_ymm => mask_to_general::<true, 32>,
        VEX_Vmovmskpd_r32_xmm | VEX_Vmovmskpd_r64_xmm => mask_to_general::<false, 64>,
        VEX_Vmovmskpd_r32_ymm | VEX_Vmovmskpd_r64_ymm => mask_to_general::<true, 64>,
        VEX_Vpmovmskb_r32_xmm | VEX_Vpmovmskb_r64_xmm => mask_to_general::<false, 8>,
        VEX_Vpmovmskb_r32_ymm | VEX_Vpmovmskb_r64_ymm => mask_to_general::<true, 8>,
        VEX_Vpinsrb_xmm_xmm_r32m8_imm8 | VEX_Vpinsrb_xmm_xmm_r64m8_imm8 => insert::<1>,
        VEX_Vpinsrw_xmm_xmm_r32m16_imm8 | VEX_Vpinsrw_xmm_xmm_r64m16_imm8 => insert::<2>,
        VEX_Vpinsrd_xmm_xmm_rm32_imm8 => insert::<4>,
        VEX_Vpinsrq_xmm_xmm_rm64_imm8 => insert::<8>,
        VEX_Vpextrb_r32m8_xmm_imm8 | VEX_Vpextrb_r64m8_xmm_imm8 => extract::<1>,
        VEX_Vpextrw_r32m16_xmm_imm8 | VEX_Vpextrw_r64m16_xmm_imm8 => extract::<2>,
        VEX_Vpextrd_rm32_xmm_imm8 | VEX_Vextractps_rm32_xmm_imm8 | VEX_Vextractps_r64m32_xmm_imm8 => extract::<4>,
        VEX_Vpextrq_rm64_xmm_imm8 => extract::<8>,
        VEX_Vpextrw_r32_xmm_imm8 | VEX_Vpextrw_r64_xmm_imm8 => extract_word,
        VEX_Vinsertps_xmm_xmm_xmmm32_imm8 => {
            either(lanes::<By<InsertpsRegister, 0>, Reg, false>, lanes::<By<InsertpsMemory, 0>, Mem<4>, false>)
        }
        VEX_Vpblendvb_xmm_xmm_xmmm128_xmm => either(blend::<Reg, false, 8>, blend::<Mem<16>, false, 8>),
        VEX_Vpblendvb_ymm_ymm_ymmm256_ymm => either(blend::<Reg, true, 8>, blend::<Mem<32>, true, 8>),
        VEX_Vblendvps_xmm_xmm_xmmm128_xmm => either(blend::<Reg, false, 32>, blend::<Mem<16>, false, 32>),
        VEX_Vblendvps_ymm_ymm_ymmm256_ymm => either(blend::<Reg, true, 32>, blend::<Mem<32>, true, 32>),
        VEX_Vblendvpd_xmm_xmm_xmmm128_xmm => either(blend::<Reg, false, 64>, blend::<Mem<16>, false, 64>),
        VEX_Vblendvpd_ymm_ymm_ymmm256_ymm => either(blend::<Reg, true, 64>, blend::<Mem<32>, true, 64>),
        VEX_Vptest_xmm_xmmm128 => either(test::<Reg, false, 128>, test::<Mem<16>, false, 128>),
        VEX_Vptest_ymm_ymmm256 => either(test::<Reg, true, 128>, test::<Mem<32>, true, 128>),
        VEX_Vtestps_xmm_xmmm128 => either(test::<Reg, false, 32>, test::<Mem<16>, false, 32>),
        VEX_Vtestps_ymm_ymmm256 => either(test::<Reg, true, 32>, test::<Mem<32>, true, 32>),
        VEX_Vtestpd_xmm_xmmm128 => either(test::<Reg, false, 64>, test::<Mem<16>, false, 64>),
        VEX_Vtestpd_ymm_ymmm256 => either(test::<Reg, true, 64>, test::<Mem<32>, true, 64>),

        VEX_Vmaskmovps_xmm_xmm_m128 | VEX_Vpmaskmovd_xmm_xmm_m128 => masked_load::<false, 32>,
        VEX_Vmaskmovps_ymm_ymm_m256 | VEX_Vpmaskmovd_ymm_ymm_m256 => masked_load::<true, 32>,
        VEX_Vmaskmovpd_xmm_xmm_m128 | VEX_Vpmaskmovq_xmm_xmm_m128 => masked_load::<false, 64>,
        VEX_Vmaskmovpd_ymm_ymm_m256 | VEX_Vpmaskmovq_ymm_ymm_m256 => masked_load::<true, 64>,
        VEX_Vmaskmovps_m128_xmm_xmm | VEX_Vpmaskmovd_m128_xmm_xmm => masked_store::<false, 32>,
        VEX_Vmaskmovps_m256_ymm_ymm | VEX_Vpmaskmovd_m256_ymm_ymm => masked_store::<true, 32>,
        VEX_Vmaskmovpd_m128_xmm_xmm | VEX_Vpmaskmovq_m128_xmm_xmm => masked_store::<false, 64>,
        VEX_Vmaskmovpd_m256_ymm_ymm | VEX_Vpmaskmovq_m256_ymm_ymm => masked_store::<true, 64>,
        VEX_Vmaskmovdqu_rDI_xmm_xmm => masked_bytes,
        VEX_Vpgatherdd_xmm_vm32x_xmm | VEX_Vgatherdps_xmm_vm32x_xmm => gather::<32, 32, 4>,
        VEX_Vpgatherdd_ymm_vm32y_ymm | VEX_Vgatherdps_ymm_vm32y_ymm => gather::<32, 32, 8>,
        VEX_Vpgatherdq_xmm_vm32x_xmm | VEX_Vgatherdpd_xmm_vm32x_xmm => gather::<32, 64, 2>,
        VEX_Vpgatherdq_ymm_vm32x_ymm | VEX_Vgatherdpd_ymm_vm32x_ymm => gather::<32, 64, 4>,
        VEX_Vpgatherqd_xmm_vm64x_xmm | VEX_Vgatherqps_xmm_vm64x_xmm => gather::<64, 32, 2>,
        VEX_Vpgatherqd_xmm_vm64y_xmm | VEX_Vgatherqps_xmm_vm64y_xmm => gather::<64, 32, 4>,
        VEX_Vpgatherqq_xmm_vm64x_xmm | VEX_Vgatherqpd_xmm_vm64x_xmm => gather::<64, 64, 2>,
        VEX_Vpgatherqq_ymm_vm64y_ymm | VEX_Vgatherqpd_ymm_vm64y_ymm => gather::<64, 64, 4>,

        VEX_Vzeroupper => zero_registers::<false>,
        VEX_Vzeroall => zero_registers::<true>,
        VEX_Vldmxcsr_m32 => fxsave::ldmxcsr::<true>,
        VEX_Vstmxcsr_m32 => fxsave::stmxcsr::<true>,
        _ => return None,
    })
}
