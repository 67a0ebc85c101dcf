; Two CPUs in 64-bit mode and a loop: one never leaves it and never has interrupts on, the other changes what the loop does, and waits until that is what it does.

%include "start.inc"
%include "protected.inc"
%include "long.inc"
%define MODE 32

APIC    equ 0xfee00000
TURNS   equ 400
R       equ 0x300003                    ; its immediate is aligned

guest:  to_protected
        mov     dword [APIC + 0xf0], 0x1ff
        ; mov eax, imm32; mov [rdi], eax; cmp dword [rsi], 0; je R; ret
        mov     byte [R], 0xb8
        mov     dword [R + 1], 0
        mov     dword [R + 5], 0x3e830789
        mov     dword [R + 9], 0xc3f47400
        mov     esi, ap_start
        mov     edi, 0x3000
        mov     ecx, ap_end - ap_start
        rep     movsb
%define MODE 64
        to_long
        mov     ebx, APIC
        mov     dword [rbx + 0x300], 0xc4500            ; INIT to all but self
        mov     ecx, 100000
.pause: loop    .pause
        mov     dword [rbx + 0x300], 0xc4603            ; start-up at page 3
        mov     ecx, 200000000
.start: cmp     dword [arrived], 1
        jae     .there
        pause
        loop    .start
.there: CHECK   "the other has started", qword [arrived], 1

        xor     ebx, ebx
        mov     esi, TURNS
.turn:  mov     [R + 1], esi
        mov     ecx, 50000000
.wait:  cmp     [seen], esi
        je      .seen
        pause
        loop    .wait
        inc     ebx
.seen:  dec     esi
        jnz     .turn
        CHECK   "the other's loop does what was written", rbx, 0
        mov     dword [over], 1
        mov     ecx, 200000000
.done:  cmp     dword [finished], 1
        jae     .both
        pause
        loop    .done
.both:  CHECK   "and ends", qword [finished], 1
        jmp     finish64

        align 8
arrived:  dq 0
seen:     dq 0
over:     dq 0
finished: dq 0

        bits 16
ap_start:
        cli
        xor     ax, ax
        mov     ds, ax
        lgdt    [gdt_pointer]
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        jmp     CODE32:ap32
ap_end:
        bits 32
ap32:   mov     ax, DATA32
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     esp, 0x70000
        mov     eax, 0x620
        mov     cr4, eax
        mov     eax, PML4
        mov     cr3, eax
        mov     ecx, 0xc0000080
        xor     edx, edx
        mov     eax, 0x900
        wrmsr
        mov     eax, 0x80010011
        mov     cr0, eax
        jmp     CODE64:ap64
        bits 64
ap64:   mov     dword [arrived], 1
        mov     edi, seen
        mov     esi, over
        mov     eax, R
        call    rax
        mov     dword [finished], 1
sleep:  hlt
        jmp     sleep

        protected_tables
        long_tables
%include "end.inc"
