//! Golden texts: assembly and the IR that lifting and all passes make of it. `BELLGLASS_BLESS=1 cargo test -p engine_translator
//! golden` writes them anew; read the difference before you commit it.

use super::super::cpu::{CodeSize, seg};
use super::super::cpuid::InstructionSets;
use super::super::decode::{Decoded, decode};
use super::super::op::Op;
use super::{LiftMode, Vectors, lift, lift_again};
use crate::ir::pass;
use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use std::fmt::Write;

/// Flat code: 64-bit, or 32-bit with a based GS.
fn mode(bits: u32) -> LiftMode {
    let wide = bits == 64;
    LiftMode {
        code_size: if wide { CodeSize::Bits64 } else { CodeSize::Bits32 },
        readable: 0x3f,
        writable: if wide { 0x3f } else { 0x3d },
        based: if wide { 1 << seg::FS | 1 << seg::GS } else { 1 << seg::GS },
        vectors: Vectors::Lifted,
        masked_floats: true,
        avx: true,
        wide_stack: true,
        open_code: true,
    }
}

fn ops(bytes: &[u8], size: CodeSize, pc: u64) -> Vec<Op> {
    let (mut ops, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let Decoded::Op(op) = decode(&bytes[at..], size, pc + at as u64, &InstructionSets::all()) else {
            panic!("the sample ends in the middle")
        };
        at += usize::from(op.len);
        ops.push(op);
    }
    ops
}

fn text(bits: u32, bytes: &[u8]) -> String {
    let (mode, pc) = (mode(bits), 0x40_1000);
    let mut block = lift(&ops(bytes, mode.code_size, pc), mode, pc, 0);
    pass::run(&mut block);
    disassembled(bits, bytes, pc) + &block.to_string()
}

fn disassembled(bits: u32, bytes: &[u8], pc: u64) -> String {
    let mut text = String::new();
    let mut decoder = Decoder::with_ip(bits, bytes, pc, DecoderOptions::NONE);
    while decoder.can_decode() {
        let mut line = String::new();
        NasmFormatter::new().format(&decoder.decode(), &mut line);
        writeln!(text, "; {line}").expect("a string takes everything");
    }
    text
}

/// Compares a text with the one in the folder, or puts it there.
fn compare_golden(name: &str, found: &str) {
    let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/guest/x86/lift/golden"));
    let path = folder.join(format!("{name}.txt"));
    if std::env::var_os("BELLGLASS_BLESS").is_some() {
        std::fs::write(&path, found).expect("the folder can be written");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, expected, "{name}");
}

/// Name, code size, code.
#[rustfmt::skip]
const SAMPLES: &[(&str, u32, &[u8])] = &[
    // add rax, [rbx+rcx*8-10h]; jc $+10h
    ("add_memory", 64, &[0x48, 0x03, 0x44, 0xcb, 0xf0, 0x72, 0x0e]),
    // cmp edi, 5; mov eax, [rip+100h]; jle $-20h
    ("compare_across_a_load", 64, &[0x83, 0xff, 5, 0x8b, 5, 0, 1, 0, 0, 0x7e, 0xde]),
    // lock inc dword [gs:1234h]; shl edx, cl; adc edx, 0
    ("locked_and_by_count", 64, &[0x65, 0xf0, 0xff, 4, 0x25, 0x34, 0x12, 0, 0, 0xd3, 0xe2, 0x83, 0xd2, 0]),
    // push rbp; mov rbp, rsp; call $+20h
    ("prologue_and_call", 64, &[0x55, 0x48, 0x89, 0xe5, 0xe8, 0x1b, 0, 0, 0]),
    // mov ah, bl; xchg ax, cx; leave; ret
    ("parts_and_return", 64, &[0x88, 0xdc, 0x66, 0x91, 0xc9, 0xc3]),
    // div ecx; idiv r8
    ("divisions", 64, &[0xf7, 0xf1, 0x49, 0xf7, 0xf8]),
    // cpuid; sub byte [rsi], 1; sti
    ("left_to_the_interpreter", 64, &[0x0f, 0xa2, 0x80, 0x2e, 1, 0xfb]),
    // mov eax, [gs:ebx+4]; push eax; mov [cs:ebx], eax; ret 8
    ("thirty_two_bits", 32, &[0x65, 0x8b, 0x43, 4, 0x50, 0x2e, 0x89, 3, 0xc2, 8, 0]),
    // dec ecx; inc edx; setz al; loop $-7
    ("partial_flags", 32, &[0x49, 0x42, 0x0f, 0x94, 0xc0, 0xe2, 0xf7]),
    // movdqu xmm1, [rsi]; pcmpeqb xmm1, xmm0; pmovmskb eax, xmm1; psrldq xmm1, 8; movaps [rdi+10h], xmm1; movq rdx, xmm1
    ("vectors", 64, &[
        0xf3, 0x0f, 0x6f, 0x0e, 0x66, 0x0f, 0x74, 0xc8, 0x66, 0x0f, 0xd7, 0xc1, 0x66, 0x0f, 0x73, 0xd9, 8, 0x0f, 0x29, 0x4f, 0x10,
        0x66, 0x48, 0x0f, 0x7e, 0xca,
    ]),
    // mulsd xmm1, [rax]; ucomisd xmm0, xmm1; cvttsd2si rcx, xmm1; cmpps xmm2, xmm3, 2; ja $
    ("floats", 64, &[
        0xf2, 0x0f, 0x59, 0x08, 0x66, 0x0f, 0x2e, 0xc1, 0xf2, 0x48, 0x0f, 0x2c, 0xc9, 0x0f, 0xc2, 0xd3, 2, 0x77, 0xfe,
    ]),
    // lock bts [rdi], rax; bt ecx, 3; cmovae eax, edx; bsr eax, ecx
    ("bits", 64, &[0xf0, 0x48, 0x0f, 0xab, 7, 0x0f, 0xba, 0xe1, 3, 0x0f, 0x43, 0xc2, 0x0f, 0xbd, 0xc1]),
];

#[test]
fn golden_texts_are_what_lifting_gives() {
    for (name, bits, bytes) in SAMPLES {
        compare_golden(name, &text(*bits, bytes));
    }
}

#[test]
fn a_block_ends_with_its_first_transfer_or_behind_its_last_instruction() {
    let block = |bytes: &[u8]| {
        let mode = mode(64);
        lift(&ops(bytes, mode.code_size, 0x1000), mode, 0x1000, 0)
    };
    assert_eq!(block(&[0x90, 0xeb, 0xfe]).guest.len(), 2);
    let open = block(&[0x90, 0x90]);
    assert_eq!((open.guest.len(), open.end()), (2, 0x1002));
    assert_eq!(block(&[0xfb, 0x90]).guest.len(), 1, "nothing is lifted past STI");
}

#[test]
#[ignore = "a measurement: cargo test --release -p engine_translator --lib -- --ignored --nocapture lifting_costs"]
fn lifting_costs_so_many_nanoseconds_an_instruction() {
    const ROUNDS: u32 = 100_000;
    let runs: Vec<(LiftMode, Vec<Op>)> =
        SAMPLES.iter().map(|(_, bits, bytes)| (mode(*bits), ops(bytes, mode(*bits).code_size, 0x40_1000))).collect();
    let count: usize = runs.iter().map(|(_, ops)| ops.len()).sum();
    let mut block = Some(lift(&[], runs[0].0, 0, 0));
    let mut measure = |with_passes: bool| {
        let start = cpu_nanoseconds();
        for _ in 0..ROUNDS {
            for (mode, ops) in &runs {
                let mut again = lift_again(block.take().expect("it is put back below"), ops, *mode, 0x40_1000, 0);
                if with_passes {
                    pass::run(&mut again);
                }
                block = Some(again);
            }
        }
        (cpu_nanoseconds() - start) / f64::from(ROUNDS) / count as f64
    };
    let (lifting, both) = (measure(false), measure(true));
    println!("{count} instructions in {} blocks: lifting {lifting:.0} ns, passes {:.0} ns each", runs.len(), both - lifting);
}

/// CPU time of this thread, so that a busy host does not spoil the figures (Linux; elsewhere the clock on the wall).
fn cpu_nanoseconds() -> f64 {
    let spent =
        std::fs::read_to_string("/proc/thread-self/schedstat").ok().and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    spent.unwrap_or_else(|| std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0.0, |since| since.as_nanos() as f64))
}

/// Name, code size, code of regions. Each ends with a return, or where the interpreter is needed.
#[rustfmt::skip]
const REGIONS: &[(&str, u32, &[u8])] = &[
    // add eax, [rsi]; add rsi, 4; dec ecx; jne $-0x0a; ret
    ("region_sum", 64, &[0x03, 0x06, 0x48, 0x83, 0xc6, 4, 0xff, 0xc9, 0x75, 0xf6, 0xc3]),
    // mov byte [rdi+rcx], 0; add rcx, rdx; cmp rcx, [rsp+8]; jb $-0x0e; ret
    ("region_sieve", 64, &[0xc6, 0x04, 0x0f, 0, 0x48, 0x01, 0xd1, 0x48, 0x3b, 0x4c, 0x24, 8, 0x72, 0xf2, 0xc3]),
    // mov al, [rsi]; mov [rdi], al; inc rsi; inc rdi; rcl edx, cl; cmp al, 0; jne $-0x0f; ret
    ("region_copy", 64, &[0x8a, 0x06, 0x88, 0x07, 0x48, 0xff, 0xc6, 0x48, 0xff, 0xc7, 0xd3, 0xd2, 0x3c, 0, 0x75, 0xf0, 0xc3]),
    // push rbx; mov rbx, rdi; test rbx, rbx; je +6; mov eax, [rbx+8]; add eax, [rbx]; pop rbx; ret
    ("region_function", 64, &[0x53, 0x48, 0x89, 0xfb, 0x48, 0x85, 0xdb, 0x74, 5, 0x8b, 0x43, 8, 0x03, 0x03, 0x5b, 0xc3]),
    // dec ecx; lea rax, [rip+0dh]; lea rdx, [rip+0bh]; cmove rax, rdx; jmp rax; add ebx, 1; jmp $-19h; ret
    ("region_switch", 64, &[
        0xff, 0xc9, 0x48, 0x8d, 0x05, 0x0d, 0, 0, 0, 0x48, 0x8d, 0x15, 0x0b, 0, 0, 0, 0x48, 0x0f, 0x44, 0xc2, 0xff, 0xe0,
        0x83, 0xc3, 1, 0xeb, 0xe5, 0xc3,
    ]),
    // lea rdx, [rip+19h]; movzx eax, byte [rsi]; xor eax, ecx; movzx eax, al; shr ecx, 8; xor ecx, [rdx+rax*4]; inc rsi; dec edi;
    // jne $-13h; ret
    ("region_table", 64, &[
        0x48, 0x8d, 0x15, 0x19, 0, 0, 0, 0x0f, 0xb6, 0x06, 0x31, 0xc8, 0x0f, 0xb6, 0xc0, 0xc1, 0xe9, 8, 0x33, 0x0c, 0x82,
        0x48, 0xff, 0xc6, 0xff, 0xcf, 0x75, 0xeb, 0xc3,
    ]),
    // dec edi; js +5; call $-9; inc eax; ret
    ("region_recursion", 64, &[0xff, 0xcf, 0x78, 5, 0xe8, 0xf7, 0xff, 0xff, 0xff, 0xff, 0xc0, 0xc3]),
];

/// Regions of vector instructions that are passed through.
#[rustfmt::skip]
const NATIVE_REGIONS: &[(&str, &[u8])] = &[
    // movsd xmm1, [rsi]; mulsd xmm1, xmm0; addsd xmm1, [rdi]; movsd [rdi], xmm1; add rsi, 8; add rdi, 8; dec ecx; jne $-0x1a; ret
    ("region_daxpy", &[
        0xf2, 0x0f, 0x10, 0x0e, 0xf2, 0x0f, 0x59, 0xc8, 0xf2, 0x0f, 0x58, 0x0f, 0xf2, 0x0f, 0x11, 0x0f, 0x48, 0x83, 0xc6, 8,
        0x48, 0x83, 0xc7, 8, 0xff, 0xc9, 0x75, 0xe4, 0xc3,
    ]),
    // movaps xmm1, [rsi]; cvttsd2si eax, xmm1; comisd xmm1, [rsi+10h]; ja +2; mov eax, ecx; movd xmm2, eax; ret
    ("region_natives", &[
        0x0f, 0x28, 0x0e, 0xf2, 0x0f, 0x2c, 0xc1, 0x66, 0x0f, 0x2f, 0x4e, 0x10, 0x77, 2, 0x89, 0xc8, 0x66, 0x0f, 0x6e, 0xd0, 0xc3,
    ]),
    // vpcmpeqd ymm3, ymm3, ymm3; vpgatherdd ymm1, [rsi+ymm2*4+8], ymm3; vpaddd ymm0, ymm0, ymm1; dec ecx; jne $-0x13; ret
    ("region_gather", &[
        0xc5, 0xe5, 0x76, 0xdb, 0xc4, 0xe2, 0x65, 0x90, 0x4c, 0x96, 8, 0xc5, 0xfd, 0xfe, 0xc1, 0xff, 0xc9, 0x75, 0xed, 0xc3,
    ]),
];

fn region_of(mode: LiftMode, bytes: &[u8]) -> crate::ir::region::Region {
    let mut page = [0xcc; 4096];
    page[..bytes.len()].copy_from_slice(bytes);
    let sets = InstructionSets::all();
    let code = super::region::form_region(0x40_1000, mode, &sets, |base| (base == 0x40_1000).then_some(&page));
    code.expect("the sample begins with something to lift")
}

#[test]
fn golden_regions_are_what_forming_and_all_passes_give() {
    use crate::ir::region::pass;
    let native = mode(64).passing_vectors_through();
    let samples = REGIONS.iter().map(|(name, bits, bytes)| (*name, *bits, mode(*bits), *bytes));
    for (name, bits, mode, bytes) in samples.chain(NATIVE_REGIONS.iter().map(|(name, bytes)| (*name, 64, native, *bytes))) {
        let mut found = disassembled(bits, bytes, 0x40_1000);
        let mut region = region_of(mode, bytes);
        writeln!(found, "\nformed:\n{region}").expect("a string takes everything");
        pass::run(&mut region, pass::PIPELINE);
        write!(found, "after all passes:\n{region}").expect("a string takes everything");
        #[cfg(target_arch = "x86_64")]
        write!(found, "\nhost code:\n{}", crate::host::x64::t2::text::text(&region, &crate::host::x64::stubs::PINNED))
            .expect("a string takes everything");
        compare_golden(name, &found);
    }
}

/// The heads of the loops that an instruction lies in, as offsets.
fn heads(bytes: &[u8], entry: u64) -> Vec<u64> {
    use super::region::{Flow, Targets};
    let mut page = [0xcc; 4096];
    page[..bytes.len()].copy_from_slice(bytes);
    let (sets, seen) = (InstructionSets::all(), Targets::Seen(Default::default()));
    let flow = Flow::explore(0x40_1000 + entry, mode(64), &sets, seen, |base| (base == 0x40_1000).then_some(&page));
    flow.loops_around(100).iter().map(|of| of.head - 0x40_1000).collect()
}

#[test]
#[rustfmt::skip]
fn recursions_are_loops_and_functions_belong_to_their_callers_loops() {
    // dec edi; js +5; call 0; inc eax; ret
    let recursion = [0xff, 0xcf, 0x78, 5, 0xe8, 0xf7, 0xff, 0xff, 0xff, 0xff, 0xc0, 0xc3];
    assert_eq!(heads(&recursion, 0), [0]);
    // inc eax; ret; call 0; call 0; dec ecx; jne 3; hlt
    let called = [0xff, 0xc0, 0xc3, 0xe8, 0xf8, 0xff, 0xff, 0xff, 0xe8, 0xf3, 0xff, 0xff, 0xff, 0xff, 0xc9, 0x75, 0xf2, 0xf4];
    assert_eq!(heads(&called, 3), [3], "a loop around two calls");
    assert!(heads(&called, 0).is_empty(), "from the function alone no caller is known");
    let twice = [&called[..13], &[0xf4]].concat();
    assert!(heads(&twice, 3).is_empty(), "two calls of a function are no loop");
    // dec eax; jne 0; ret; call 0; dec ecx; jne 5; hlt
    let inner = [0xff, 0xc8, 0x75, 0xfc, 0xc3, 0xe8, 0xf6, 0xff, 0xff, 0xff, 0xff, 0xc9, 0x75, 0xf7, 0xf4];
    assert_eq!(heads(&inner, 5), [5]);
    assert_eq!(heads(&inner, 0), [0]);
}

#[test]
fn a_cautious_region_looks_each_access_up_by_itself() {
    use crate::ir::region::{Span, pass};
    let spans = |cautious| {
        let (_, bits, bytes) = REGIONS.iter().find(|(name, ..)| *name == "region_function").expect("it is a sample");
        let mut region = region_of(mode(*bits), bytes);
        region.cautious = cautious;
        pass::run(&mut region, pass::PIPELINE);
        let body = region.blocks.iter().flat_map(|block| &block.body).map(|value| region.def(*value));
        body.filter(|inst| inst.op == crate::ir::Op::Probe).map(|inst| Span::unpack(inst.imm)).collect::<Vec<_>>()
    };
    let widest = |spans: &[Span]| spans.iter().map(|span| span.high - span.low).max();
    let (usual, cautious) = (spans(false), spans(true));
    assert!(widest(&usual) > Some(8), "{usual:?}");
    assert_eq!(widest(&cautious), Some(8), "{cautious:?}");
    assert!(cautious.len() > usual.len());
}

/// Code from a file, as `BELLGLASS_CODE=FILE:ENTRY` says (offset of the entry, hexadecimal; the file's first page is looked
/// at), or all samples.
fn code_to_measure() -> Vec<(u64, [u8; 4096])> {
    let page_of = |bytes: &[u8]| {
        let mut page = [0xcc; 4096];
        let len = bytes.len().min(4096);
        page[..len].copy_from_slice(&bytes[..len]);
        page
    };
    match std::env::var("BELLGLASS_CODE") {
        Ok(place) => {
            let (file, entry) = place.rsplit_once(':').expect("FILE:ENTRY");
            let bytes = std::fs::read(file).expect("the file can be read");
            vec![(u64::from_str_radix(entry, 16).expect("a hexadecimal offset"), page_of(&bytes))]
        }
        Err(_) => REGIONS.iter().map(|(_, _, bytes)| (0, page_of(bytes))).collect(),
    }
}

#[test]
#[ignore = "a measurement: cargo test --release -p engine_translator --lib -- --ignored --nocapture regions_cost"]
fn regions_cost_so_many_nanoseconds_an_instruction() {
    use crate::ir::region::pass;
    const ROUNDS: u32 = 200;
    let sets = InstructionSets::all();
    for (entry, page) in code_to_measure() {
        let form = || {
            let region =
                super::region::form_region(0x40_1000 + entry, mode(64), &sets, |base| (base == 0x40_1000).then_some(&page));
            region.expect("there is something to lift")
        };
        let formed = form();
        let count: u32 = formed.blocks.iter().map(|block| u32::from(block.retired)).sum();
        let measure = |passes: &[pass::Pass]| {
            let start = cpu_nanoseconds();
            for _ in 0..ROUNDS {
                // Without the verifier of debug builds.
                let mut region = form();
                passes.iter().for_each(|pass| (pass.run)(&mut region));
            }
            (cpu_nanoseconds() - start) / f64::from(ROUNDS * count)
        };
        let (forming, all) = (measure(&[]), measure(pass::PIPELINE));
        let mut region = form();
        pass::run(&mut region, pass::PIPELINE);
        if std::env::var_os("BELLGLASS_CODE").is_some() {
            println!("{formed}\n{region}");
        }
        println!("{count} instructions: forming {forming:.0} ns, passes {:.0} ns each", all - forming);
    }
}
