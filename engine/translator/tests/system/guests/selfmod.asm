; Code that changes: by itself in front of and behind the instruction that writes, beside data, by strings, across pages, by a device, under
; another mapping, in 16-bit code, virtual-8086 mode, 32 and 64 bits. Each loop counts how often what ran was not what was written last.

%include "start.inc"
%include "protected.inc"
%include "long.inc"
%define MODE 16

TURNS   equ 300
DMA     equ 0xf8                        ; a double word to 300301h, by the harness
R       equ 0x300000                    ; where routines are written
V       equ 0x0000123456789000          ; where the mapping changes; its tables:
V_PDPT  equ 0x108000
V_PD    equ 0x109000
V_PT    equ 0x10a000
PML4_B  equ 0x10b000                    ; a second address space
V_PDPT_B equ 0x10c000
V_PD_B  equ 0x10d000
V_PT_B  equ 0x10e000
F1      equ 0x200000                    ; frames
F2      equ 0x201000
F3      equ 0x202000
%define INDEX(level) ((V >> (12 + 9 * (level))) & 511)

; WRONG_UNLESS register, register: counts in ebx
%macro WRONG_UNLESS 2
        cmp     %1, %2
        je      %%right
        inc     ebx
%%right:
%endmacro

; Writes `mov eax, value; ret`.
%macro ROUTINE 2                ; where, value
        mov     byte [%1], 0xb8
        mov     dword [%1 + 1], %2
        mov     byte [%1 + 5], 0xc3
%endmacro

guest:  mov     cx, TURNS
        xor     ebx, ebx
.ahead: mov     [.byte + 1], cl
.byte:  mov     al, 0
        WRONG_UNLESS al, cl
        loop    .ahead
        CHECK   "real mode: the next instruction", ebx, 0
        mov     cx, TURNS
        mov     [.back + 1], cx
.back:  mov     ax, 0
        WRONG_UNLESS ax, cx
        mov     ax, cx
        dec     ax
        mov     [.back + 1], ax
        loop    .back
        CHECK   "real mode: an instruction before", ebx, 0

        to_protected
%define MODE 32
        mov     ecx, TURNS
        xor     ebx, ebx
.ahead32:
        mov     [.next32 + 1], ecx
.next32:
        mov     eax, 0
        WRONG_UNLESS eax, ecx
        loop    .ahead32
        CHECK   "32 bits: the next instruction", ebx, 0
        mov     ecx, TURNS
        mov     [.back32 + 1], ecx
.back32:
        mov     eax, 0
        WRONG_UNLESS eax, ecx
        lea     eax, [ecx - 1]
        mov     [.back32 + 1], eax
        loop    .back32
        CHECK   "32 bits: an instruction before", ebx, 0

        ; --- routines of another page
        mov     edi, R
        mov     ecx, TURNS
.call:  ROUTINE R, ecx
        call    edi
        WRONG_UNLESS eax, ecx
        loop    .call
        CHECK   "a routine written before each call", ebx, 0
        mov     ecx, TURNS
        mov     dword [R + 0x800], 0
.data:  inc     dword [R + 0x800]
        call    edi
        WRONG_UNLESS eax, 1
        loop    .data
        CHECK   "data on the page of code", ebx, 0
        CHECK   "and the data itself", dword [R + 0x800], TURNS
        mov     ecx, TURNS
        mov     dword [R + 0x10], 0
.grain: inc     dword [R + 0x10]
        call    edi
        WRONG_UNLESS eax, 1
        loop    .grain
        CHECK   "data beside code", ebx, 0
        CHECK   "and that data", dword [R + 0x10], TURNS
        ; inc dword [R + 120h]; mov eax, [R + 120h]; ret
        mov     word [R + 0x100], 0x05ff
        mov     dword [R + 0x102], R + 0x120
        mov     byte [R + 0x106], 0xa1
        mov     dword [R + 0x107], R + 0x120
        mov     byte [R + 0x10b], 0xc3
        mov     dword [R + 0x120], 0
        mov     edi, R + 0x100
        mov     ecx, TURNS
        xor     edx, edx
.own:   call    edi
        inc     edx
        WRONG_UNLESS eax, edx
        loop    .own
        CHECK   "a routine that counts beside itself", ebx, 0

        ; --- by a string instruction, one body after the other
        mov     ecx, TURNS
.string:
        push    ecx
        mov     esi, body_1
        test    ecx, 1
        jz      .copy
        mov     esi, body_2
.copy:  movzx   edx, byte [esi + 1]
        mov     edi, R + 0x200
        mov     ecx, 6
        rep     movsb
        mov     edi, R + 0x200
        call    edi
        pop     ecx
        WRONG_UNLESS eax, edx
        loop    .string
        CHECK   "copied by REP MOVSB", ebx, 0
        ; mov eax, imm32 from FFEh on: its immediate, and the store into it, lie in two pages
        mov     byte [R + 0xffe], 0xb8
        mov     byte [R + 0x1003], 0xc3
        mov     edi, R + 0xffe
        mov     ecx, TURNS
.cross: imul    edx, ecx, 0x01010101
        mov     [R + 0xfff], edx
        call    edi
        WRONG_UNLESS eax, edx
        loop    .cross
        CHECK   "an instruction across pages, written across pages", ebx, 0

        ; --- by a device. (QEMU's board has none there.)
        ROUTINE R + 0x300, 0
        mov     edi, R + 0x300
        mov     ecx, TURNS
        mov     eax, 0x55
        out     DMA, eax
        cmp     dword [R + 0x301], 0x55
        jne     .no_device
.dma:   mov     eax, ecx
        out     DMA, eax
        call    edi
        WRONG_UNLESS eax, ecx
        loop    .dma
.no_device:
        CHECK   "written by a device", ebx, 0

        ; --- virtual-8086 mode
        xor     ebx, ebx
        TRAP    "out of virtual-8086 mode", 0x80 << 16, {jmp enter_86}
        CHECK   "virtual-8086 mode: the next instruction", ebx, 0

%define MODE 64
        to_long
        xor     ebx, ebx
        mov     ecx, TURNS
.ahead64:
        mov     [rel .next64 + 1], ecx
.next64:
        mov     eax, 0
        WRONG_UNLESS eax, ecx
        loop    .ahead64
        CHECK   "64 bits: the next instruction", rbx, 0
        ; a routine on the stack, right below what is pushed
        mov     ecx, TURNS
.stack: mov     byte [rsp - 64], 0xb8
        mov     [rsp - 63], ecx
        mov     byte [rsp - 59], 0xc3
        lea     rdi, [rsp - 64]
        call    rdi
        WRONG_UNLESS eax, ecx
        loop    .stack
        CHECK   "a routine on the stack", rbx, 0

        ; --- under another mapping
        mov     qword [PML4 + INDEX(3) * 8], V_PDPT | 7
        mov     qword [V_PDPT + INDEX(2) * 8], V_PD | 7
        mov     qword [V_PD + INDEX(1) * 8], V_PT | 7
        mov     qword [V_PT + INDEX(0) * 8], F1 | 7
        ROUTINE F1, 1
        ROUTINE F2, 2
        mov     rdi, V
        mov     ecx, TURNS
        mov     edx, 1
.remap: call    rdi
        WRONG_UNLESS eax, edx
        mov     rax, [V_PT + INDEX(0) * 8]
        xor     rax, F1 ^ F2
        mov     [V_PT + INDEX(0) * 8], rax
        invlpg  [rdi]
        xor     edx, 3
        loop    .remap
        CHECK   "code under a page that is mapped elsewhere", rbx, 0
        mov     ecx, TURNS
.alias: mov     [F1 + 1], ecx
        mov     qword [V_PT + INDEX(0) * 8], F1 | 7
        invlpg  [rdi]
        call    rdi
        WRONG_UNLESS eax, ecx
        loop    .alias
        CHECK   "code written at another address", rbx, 0
        ; mov eax, imm32 from FFEh on, the second page mapped to one frame and the other
        mov     byte [F1 + 0xffe], 0xb8
        mov     byte [F1 + 0xfff], 0x11
        mov     dword [F2], 0xc3222222
        mov     dword [F3], 0xc3333333
        mov     qword [V_PT + INDEX(0) * 8 + 8], F2 | 7
        add     rdi, 0xffe
        lea     rsi, [rdi + 2]
        invlpg  [rsi]
        mov     edx, 0x22222211
        mov     ecx, TURNS
.second:
        call    rdi
        WRONG_UNLESS eax, edx
        mov     rax, [V_PT + INDEX(0) * 8 + 8]
        xor     rax, F2 ^ F3
        mov     [V_PT + INDEX(0) * 8 + 8], rax
        invlpg  [rsi]
        xor     edx, 0x22222200 ^ 0x33333300
        loop    .second
        CHECK   "an instruction whose second page is mapped elsewhere", rbx, 0
        ; the same behind a jump in the first page
        mov     word [F1 + 0xff0], 0x0ceb
        sub     rdi, 0xe
        mov     ecx, TURNS
.jump:  call    rdi
        WRONG_UNLESS eax, edx
        mov     rax, [V_PT + INDEX(0) * 8 + 8]
        xor     rax, F2 ^ F3
        mov     [V_PT + INDEX(0) * 8 + 8], rax
        invlpg  [rsi]
        xor     edx, 0x22222200 ^ 0x33333300
        loop    .jump
        CHECK   "the same behind a jump", rbx, 0
        mov     qword [V_PT + INDEX(0) * 8 + 8], F2 | 7
        invlpg  [rsi]
        mov     ecx, TURNS
.behind:
        mov     [F2 + 2], cl
        mov     edx, ecx
        shl     edx, 24
        or      edx, 0x222211
        call    rdi
        WRONG_UNLESS eax, edx
        loop    .behind
        CHECK   "an instruction whose second page is written", rbx, 0
        ; two address spaces that differ in V alone
        ROUTINE F1, 1
        ROUTINE F2, 2
        mov     esi, PML4
        mov     edi, PML4_B
        mov     ecx, 512
        rep     movsq
        mov     qword [PML4_B + INDEX(3) * 8], V_PDPT_B | 7
        mov     qword [V_PDPT_B + INDEX(2) * 8], V_PD_B | 7
        mov     qword [V_PD_B + INDEX(1) * 8], V_PT_B | 7
        mov     qword [V_PT_B + INDEX(0) * 8], F2 | 7
        mov     rdi, V
        mov     ecx, TURNS
.space: mov     edx, 1
        mov     rax, PML4
        test    cl, 1
        jz      .enter
        mov     edx, 2
        mov     rax, PML4_B
.enter: mov     cr3, rax
        call    rdi
        WRONG_UNLESS eax, edx
        loop    .space
        CHECK   "the same address in two address spaces", rbx, 0
        ; and in the page behind it, where an instruction ends
        mov     dword [F2], 0xc3222222
        mov     qword [V_PT_B + INDEX(0) * 8], F1 | 7
        mov     qword [V_PT_B + INDEX(0) * 8 + 8], F3 | 7
        mov     rdi, V + 0xff0
        mov     ecx, TURNS
.ends:  mov     edx, 0x22222211
        mov     rax, PML4
        test    cl, 1
        jz      .there
        mov     edx, 0x33333311
        mov     rax, PML4_B
.there: mov     cr3, rax
        call    rdi
        WRONG_UNLESS eax, edx
        loop    .ends
        CHECK   "an instruction that ends differently in two address spaces", rbx, 0
        mov     rax, PML4
        mov     cr3, rax
        ; code that maps its own page elsewhere: the frames differ only behind INVLPG
        mov     esi, mapper
        mov     edi, F1
        mov     ecx, mapper_end - mapper
        rep     movsb
        mov     esi, mapper
        mov     edi, F2
        mov     ecx, mapper_end - mapper
        rep     movsb
        mov     dword [F1 + (mapped - mapper) + 1], 1
        mov     dword [F2 + (mapped - mapper) + 1], 2
        mov     rdi, V
        mov     ecx, TURNS
.self:  mov     qword [V_PT + INDEX(0) * 8], F1 | 7
        invlpg  [rdi]
        mov     edx, F2 | 7
        call    rdi
        WRONG_UNLESS eax, 2
        loop    .self
        CHECK   "code that maps its own page elsewhere", rbx, 0
        jmp     finish64

; rdi: its page; rdx: the new entry
mapper: mov     [V_PT + INDEX(0) * 8], rdx
        invlpg  [rdi]
mapped: mov     eax, 0
        ret
mapper_end:

body_1: db      0xb8, 1, 0, 0, 0, 0xc3
body_2: db      0xb8, 2, 0, 0, 0, 0xc3

        bits 32
enter_86:
        push    0
        push    0
        push    0
        push    0
        push    0
        push    STACK3
        push    dword 0x23002
        push    0
        push    code_86
        iretd
        bits 16
code_86:
        mov     cx, TURNS
        xor     ebx, ebx
.ahead: mov     [.byte + 1], cl
.byte:  mov     al, 0
        WRONG_UNLESS al, cl
        loop    .ahead
        int     0x80

        protected_tables
        long_tables
%include "end.inc"
