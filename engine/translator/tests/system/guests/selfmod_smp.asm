; Two CPUs and code: one runs a routine again and again, the other changes it, and waits until what it wrote is what runs. Then both at once: each
; runs a routine that counts on the page of the other's.

%include "start.inc"
%include "protected.inc"
%define MODE 32

APIC    equ 0xfee00000
TURNS   equ 400
R       equ 0x300003                    ; its immediate is aligned

guest:  to_protected
        mov     dword [APIC + 0xf0], 0x1ff
        mov     byte [R], 0xb8                          ; mov eax, imm32; ret
        mov     dword [R + 1], 0
        mov     byte [R + 5], 0xc3
        ; inc dword [R + 100h + n * 200h]; ret, on the same page, for each of two CPUs
        mov     word [R + 0xfd], 0x05ff
        mov     dword [R + 0xff], 0x300120
        mov     byte [R + 0x103], 0xc3
        mov     word [R + 0x2fd], 0x05ff
        mov     dword [R + 0x2ff], 0x300320
        mov     byte [R + 0x303], 0xc3
        mov     dword [0x300120], 0
        mov     dword [0x300320], 0
        mov     esi, ap_start
        mov     edi, 0x3000
        mov     ecx, ap_end - ap_start
        rep     movsb
        mov     dword [APIC + 0x300], 0xc4500           ; INIT to all but self
        mov     ecx, 100000
.pause: loop    .pause
        mov     dword [APIC + 0x300], 0xc4603           ; start-up at page 3
        mov     ecx, 200000000
.start: cmp     dword [arrived], 1
        jae     .there
        pause
        loop    .start
.there: CHECK   "the other has started", dword [arrived], 1

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
        CHECK   "the other runs what was written", ebx, 0

        mov     dword [second], 1
        mov     edi, R + 0xfd
        mov     ecx, TURNS * 50
.count: call    edi
        loop    .count
        mov     ecx, 200000000
.done:  cmp     dword [finished], 1
        jae     .both
        pause
        loop    .done
.both:  CHECK   "one counted beside its code", dword [0x300120], TURNS * 50
        CHECK   "so did the other, on the same page", dword [0x300320], TURNS * 50
        jmp     finish32

        align 4
arrived:  dd 0
seen:     dd 0
second:   dd 0
finished: dd 0

        bits 16
ap_start:
        cli
        xor     ax, ax
        mov     ds, ax
        lgdt    [gdt_pointer]
        lidt    [idt_pointer]
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
        mov     dword [arrived], 1
        mov     edi, R
run:    call    edi
        mov     [seen], eax
        cmp     dword [second], 0
        je      run
        mov     edi, R + 0x2fd
        mov     ecx, TURNS * 50
count:  call    edi
        loop    count
        mov     dword [finished], 1
sleep:  hlt
        jmp     sleep

        protected_tables
%include "end.inc"
