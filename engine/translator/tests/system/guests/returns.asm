; Returns to where a call has been, but where something else is now: another page, another address space, another ring, another
; mode; and more calls than anybody would remember. Each loop counts how often what ran was not what should.

%include "start.inc"
%include "protected.inc"
%include "long.inc"
%define MODE 16

TURNS   equ 300
DEEP    equ 20000
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
DEEP_STACK equ 0x800000
%define INDEX(level) ((V >> (12 + 9 * (level))) & 511)

; WRONG_UNLESS register, register: counts in ebx
%macro WRONG_UNLESS 2
        cmp     %1, %2
        je      %%right
        inc     ebx
%%right:
%endmacro

; Writes `call r8; mov eax, value; ret`, whose first instruction ends 3 bytes behind its start.
%macro CALLER 2                 ; where, value
        mov     word [%1], 0xff41
        mov     byte [%1 + 2], 0xd0
        mov     byte [%1 + 3], 0xb8
        mov     dword [%1 + 4], %2
        mov     byte [%1 + 8], 0xc3
%endmacro

guest:  to_protected
%define MODE 32
        mov     ecx, DEEP
        xor     eax, eax
        mov     ebp, esp
        mov     esp, DEEP_STACK
        call    deep32
        mov     esp, ebp
        CHECK   "32 bits: deep calls", eax, DEEP * (DEEP - 1) / 2
        ; two that take turns on their stacks
        mov     ecx, TURNS
        mov     edx, DEEP_STACK
        mov     dword [edx - 4], other32
        sub     edx, 4
        xor     eax, eax
.turns: call    swap32
        add     eax, 1
        loop    .turns
        CHECK   "32 bits: coroutines", eax, TURNS * 11
        to_long
        bits    64
%define MODE 64
        xor     ebx, ebx
        mov     ecx, DEEP
        xor     eax, eax
        mov     rbp, rsp
        mov     rsp, DEEP_STACK
        call    deep64
        mov     rsp, rbp
        CHECK   "64 bits: deep calls", rax, DEEP * (DEEP - 1) / 2

        ; --- the page that is returned to is another one by then
        mov     qword [PML4 + INDEX(3) * 8], V_PDPT | 7
        mov     qword [V_PDPT + INDEX(2) * 8], V_PD | 7
        mov     qword [V_PD + INDEX(1) * 8], V_PT | 7
        mov     qword [V_PT + INDEX(0) * 8], F1 | 7
        CALLER  F1, 1
        CALLER  F2, 2
        mov     rdi, V
        mov     ecx, TURNS
        mov     edx, 2
        mov     r8d, remap
.remap: call    rdi
        WRONG_UNLESS eax, edx
        xor     edx, 3
        loop    .remap
        CHECK   "a return to a page that was mapped elsewhere", rbx, 0
        mov     qword [V_PT + INDEX(0) * 8], F1 | 7
        invlpg  [rdi]

        ; --- the call ends with its page
        mov     word [F1 + 0xffd], 0xff41
        mov     byte [F1 + 0xfff], 0xd0
        mov     dword [F2], 0x000002b8          ; mov eax, 2; ret
        mov     word [F2 + 4], 0xc300
        mov     dword [F3], 0x000003b8
        mov     word [F3 + 4], 0xc300
        mov     qword [V_PT + INDEX(0) * 8 + 8], F2 | 7
        lea     rsi, [rdi + 0x1000]
        invlpg  [rsi]
        add     rdi, 0xffd
        mov     ecx, TURNS
        mov     edx, 3
        mov     r8d, remap_next
.next:  call    rdi
        WRONG_UNLESS eax, edx
        xor     edx, 1
        loop    .next
        CHECK   "a return behind a page's end", rbx, 0

        ; --- another address space
        CALLER  F2, 2
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
        mov     edx, 2
        mov     r8d, switch
.space: call    rdi
        WRONG_UNLESS eax, edx
        xor     edx, 3
        loop    .space
        CHECK   "a return in another address space", rbx, 0
        mov     rax, PML4
        mov     cr3, rax

        ; --- another ring: what follows the call must not run with the rights of its caller
        mov     qword [V_PT + INDEX(0) * 8 + 16], F3 | 3
        mov     rsi, V + 0x2000
        invlpg  [rsi]
        mov     dword [F3], 0x5a
%rep 3
        mov     byte [goes_down], 0
        mov     rsi, V + 0x2000
        call    reads
        CHECK   "a return in ring 0", rax, 0x5a
        mov     byte [goes_down], 1
        mov     rsi, V + 0x2000
        TRAP64  "a return in ring 3", 14 << 16 | 5, {call reads}
%endrep

        ; --- another mode: 4A FF C3 is INC RBX, or DEC EDX and INC EBX
%rep 3
        mov     edx, 7
        mov     byte [goes_down], 0
        TRAP64  "a return in 64-bit code", 0x80 << 16, {call modes}
        CHECK   "and what it ran", rdx, 7
        mov     byte [goes_down], 1
        mov     edx, 7
        TRAP64  "a return in 32-bit code", 0x80 << 16, {call modes}
        CHECK   "and what that ran", rdx, 6
%endrep
        jmp     finish64

remap:  xor     qword [V_PT + INDEX(0) * 8], F1 ^ F2
        invlpg  [rdi]
        ret

remap_next:
        xor     qword [V_PT + INDEX(0) * 8 + 8], F2 ^ F3
        invlpg  [rsi]
        ret

switch: mov     rax, cr3
        xor     rax, PML4 ^ PML4_B
        mov     cr3, rax
        ret

reads:  call    perhaps_down
        mov     eax, [rsi]
        ret

perhaps_down:
        cmp     byte [goes_down], 0
        je      .away
        mov     rax, rsp
        push    UDATA64
        push    rax
        pushfq
        push    USER64
        push    .away
        iretq
.away:  ret

modes:  call    perhaps_32
        db      0x4a, 0xff, 0xc3
        int     0x80

perhaps_32:
        cmp     byte [goes_down], 0
        je      .away
        push    CODE32
        push    .away
        retfq
.away:  ret                             ; C3 in both

deep64: dec     ecx
        jz      .out
        push    rcx
        call    deep64
        pop     rdx
        add     rax, rdx
.out:   ret

        bits    32
deep32: dec     ecx
        jz      .out
        push    ecx
        call    deep32
        pop     edx
        add     eax, edx
.out:   ret

swap32: xchg    esp, edx
        ret

other32:
        add     eax, 10
        call    swap32
        jmp     other32

goes_down:
        db      0

        protected_tables
        long_tables
%include "end.inc"
