; Two CPUs and more: start-up by INIT and SIPI, their ids, locked arithmetic from all of them at once, IPIs to one, to all, by logical and lowest
; priority destination, and INIT of a running CPU. Whoever arrives counts itself, so the guest finds out how many there are.

%include "start.inc"
%include "protected.inc"
%define MODE 32

APIC    equ 0xfee00000
TURNS   equ 20000
CROSSING equ 0x40ffe                    ; a word that crosses pages

%macro AWAIT 2
        mov     ecx, 200000000
%%wait: mov     eax, [%1]
        cmp     eax, %2
        jae     %%there
        pause
        dec     ecx
        jnz     %%wait
%%there:
%endmacro

guest:  to_protected
        mov     dword [APIC + 0xf0], 0x1ff
        SETGATE idt32, 0x40, CODE32, A(ipi), 0x8e, 0
        ; the start-up code below 1 MiB, on a page of its own
        mov     esi, ap_start
        mov     edi, 0x3000
        mov     ecx, ap_end - ap_start
        rep     movsb
        mov     dword [APIC + 0x300], 0xc4500           ; INIT to all but self
        mov     ecx, 100000
.pause: dec     ecx
        jnz     .pause
        mov     dword [APIC + 0x300], 0xc4603           ; start-up at page 3, twice
        mov     ecx, 100000
.again: dec     ecx
        jnz     .again
        mov     dword [APIC + 0x300], 0xc4603
        ; the harness says at port F5h how many there are, less one; QEMU's answer there is all ones
        in      al, 0xf5
        movzx   ebx, al
        cmp     al, 0xff
        jne     .known
        mov     ebx, 1
.known: mov     [others], ebx
        AWAIT   arrived, ebx
        CHECK   "all others started", dword [arrived], dword [others]
        ; ids 1 to n, each once
        mov     ecx, [others]
        mov     eax, 1
        inc     ecx
        shl     eax, cl
        sub     eax, 2
        CHECK   "each has its own id", dword [ids], eax
        CHECK   "they started with the segment of their page", dword [start_cs], 0x300

        ; --- locked arithmetic from all sides
        mov     dword [go], 1
        mov     ecx, TURNS
.add:   lock inc dword [shared]
        lock inc dword [CROSSING]
        lock xadd [shared2], ecx
        mov     ecx, [turns]
        dec     ecx
        mov     [turns], ecx
        jnz     .add
        AWAIT   finished, [others]
        mov     eax, [others]
        inc     eax
        imul    eax, TURNS
        CHECK   "nothing was lost", dword [shared], eax
        CHECK   "nor across a page border", dword [CROSSING], eax
        CHECK   "under a spin lock neither", dword [guarded], dword [guarded_want]

        ; --- IPIs
        mov     dword [APIC + 0x300], 0xc4040           ; all but self
        AWAIT   got_ipi, [others]
        CHECK   "all but self", dword [got_ipi], dword [others]
        mov     dword [got_ipi], 0
        mov     dword [APIC + 0x310], 1 << 24
        mov     dword [APIC + 0x300], 0x4040
        AWAIT   got_ipi, 1
        CHECK   "one by its id", dword [got_ipi], 1
        CHECK   "it was that one", dword [last_ipi], 1
        mov     dword [got_ipi], 0
        mov     dword [APIC + 0x310], 2 << 24
        mov     dword [APIC + 0x300], 0x4840            ; logical: each has bit (id)
        AWAIT   got_ipi, 1
        CHECK   "one by its logical id", dword [last_ipi], 1
        mov     dword [got_ipi], 0
        mov     dword [APIC + 0xd0], 0                  ; not among the destinations
        mov     dword [APIC + 0x310], 0xff << 24
        mov     dword [APIC + 0x300], 0x4940            ; lowest priority
        AWAIT   got_ipi, 1
        mov     ecx, 100000
.wait:  dec     ecx
        jnz     .wait
        CHECK   "one of many by lowest priority", dword [got_ipi], 1
        CHECK   "this CPU got none", dword [own_ipi], 0

        ; --- INIT stops a running CPU, start-up starts it anew
        mov     dword [arrived], 0
        mov     dword [restarted], 1
        mov     dword [APIC + 0x310], 1 << 24
        mov     dword [APIC + 0x300], 0x4500
        mov     ecx, 100000
.init:  dec     ecx
        jnz     .init
        mov     dword [APIC + 0x310], 1 << 24
        mov     dword [APIC + 0x300], 0x4603
        AWAIT   arrived, 1
        CHECK   "INIT and start-up once more", dword [arrived], 1
        jmp     finish32

        align 4
others:   dd 0
arrived:  dd 0
ids:      dd 0
start_cs: dd 0
go:       dd 0
turns:    dd TURNS
shared:   dd 0
shared2:  dd 0
finished: dd 0
lock_at:  dd 0
guarded:  dd 0
guarded_want: dd 0
got_ipi:  dd 0
last_ipi: dd 0
own_ipi:  dd 0
restarted: dd 0
stack_at: dd 0x70000

ipi:    push    eax
        mov     eax, [APIC + 0x20]
        shr     eax, 24
        jnz     .other
        inc     dword [own_ipi]
.other: mov     [last_ipi], eax
        lock inc dword [got_ipi]
        mov     dword [APIC + 0xb0], 0
        pop     eax
        iretd

        bits 16
ap_start:
        cli
        mov     bx, cs
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
        mov     esp, 0x1000
        neg     esp
        lock xadd [stack_at], esp
        movzx   ebx, bx
        mov     [start_cs], ebx
        mov     dword [APIC + 0xf0], 0x1ff
        mov     ecx, [APIC + 0x20]
        shr     ecx, 24
        mov     eax, 1
        shl     eax, cl
        lock or [ids], eax
        shl     eax, 24
        mov     [APIC + 0xd0], eax                      ; logical id
        lock inc dword [arrived]
        cmp     dword [restarted], 0
        jne     sleep
wait_go:
        pause
        cmp     dword [go], 0
        je      wait_go
        mov     ecx, TURNS
count:  lock inc dword [shared]
        lock inc dword [CROSSING]
        ; a spin lock around a plain increment
        mov     eax, 1
try:    xchg    [lock_at], eax
        test    eax, eax
        jz      mine
        pause
        jmp     try
mine:   inc     dword [guarded]
        inc     dword [guarded_want]
        mov     dword [lock_at], 0
        loop    count
        lock inc dword [finished]
sleep:  sti
        hlt
        jmp     sleep

        protected_tables
%include "end.inc"
