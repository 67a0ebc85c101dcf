; Virtual-8086 mode: entering by IRET, what is sensitive at IOPL 0 and free at IOPL 3, interrupts and faults out of it with all
; segment registers on the ring 0 stack, and the shape of segments in it.

%include "start.inc"
%include "protected.inc"
%define MODE 32

; ENTER86 label, flags: all segments 0 but DS 0x1234, ES 0x2345, FS 0x3456, GS 0x4567
%macro ENTER86 2
        push    0x4567
        push    0x3456
        push    0x1234
        push    0x2345
        push    0
        push    STACK3
        push    dword 0x20000 | (%2)
        push    0
        push    %1
        iretd
%endmacro

guest:  to_protected
        mov     byte [TSS_AT + 104 + 0x1d], 0xff        ; ports e8 to ef are not for ring 3
        TRAP    "INT 80h from V86 at IOPL 3", 0x80 << 16, {ENTER86 v86_int, 0x3002}
        CHECK   "VM is in the pushed flags", dword [got_eflags], 0x23002
        CHECK   "CS", dword [got_cs], 0
        CHECK   "EIP is behind INT", dword [got_eip], v86_int + 2
        CHECK   "ESP", dword [got_esp], STACK3
        CHECK   "SS", dword [got_ss], 0
        CHECK   "ES", dword [got_es], 0x2345
        CHECK   "DS", dword [got_ds], 0x1234
        CHECK   "FS", dword [got_fs], 0x3456
        CHECK   "GS", dword [got_gs], 0x4567
        CHECK   "nine words and two were pushed", dword [got_sp], STACK_INT - 36
        mov     eax, fs
        movzx   eax, ax
        CHECK   "FS is null in the handler", eax, 0
        mov     eax, gs
        movzx   eax, ax
        CHECK   "GS too", eax, 0

%macro SENSITIVE 2+
        TRAP    %1, 13 << 16, {ENTER86 %%code, 0x2}
        CHECK   "at the instruction", dword [got_eip], %%code
        jmp     %%go
        bits 16
%%code: %2
        int     0x80
        bits 32
%%go:
%endmacro
        SENSITIVE "#GP in V86 at IOPL 0 from CLI", cli
        SENSITIVE "#GP in V86 at IOPL 0 from STI", sti
        SENSITIVE "#GP in V86 at IOPL 0 from PUSHF", pushf
        SENSITIVE "#GP in V86 at IOPL 0 from POPF", popf
        SENSITIVE "#GP in V86 at IOPL 0 from INT n", int 0x80
        SENSITIVE "#GP in V86 at IOPL 0 from IRET", iret
        SENSITIVE "#GP in V86 at IOPL 0 from IN without permission", {in al, 0xe9}
        SENSITIVE "#GP in V86 at IOPL 0 from HLT", hlt
        SENSITIVE "#GP in V86 at IOPL 0 from MOV CR0", {mov eax, cr0}
        SENSITIVE "#GP in V86 at IOPL 0 from LMSW", lmsw ax
        SENSITIVE "#GP in V86 at IOPL 0 from LGDT", lgdt [0x100]

%macro FREE 3+
        TRAP    %1, %2, {ENTER86 %%code, 0x3002}
        jmp     %%go
        bits 16
%%code: %3
        int     0x80
        bits 32
%%go:
%endmacro
        FREE    "#UD from SLDT in V86", 6 << 16, sldt ax
        FREE    "#UD from LAR in V86", 6 << 16, {lar ax, bx}
        FREE    "#UD from ARPL in V86", 6 << 16, {arpl ax, bx}
        FREE    "#BP from INT3 in V86 reaches its gate of DPL 0 by #GP", 13 << 16 | 3 << 3 | 2, int3
        FREE    "#GP from IN at IOPL 3 without permission", 13 << 16, {in al, 0xe9}
        mov     byte [TSS_AT + 104 + 0x1d], 0
        FREE    "IN with permission", 0x80 << 16, {in al, 0xe9}
        FREE    "#GP past the 64 KiB limit", 13 << 16, {mov eax, [0xfffe]}
        FREE    "#GP with a 32-bit address past it", 13 << 16, {a32 mov al, [dword 0x10000]}
        FREE    "#DE in V86", 0, {aam 0}
        FREE    "#UD in V86", 6 << 16, ud2

        TRAP    "CLI, STI and POPF at IOPL 3", 0x80 << 16, {ENTER86 v86_flags, 0x3002}
        CHECK   "PUSHF sees IF and IOPL, not VM", dword [0x30000], 0x3202
        CHECK   "POPF cannot lower IOPL", dword [0x30004], 0x3002

        TRAP    "segments are paragraphs", 0x80 << 16, {ENTER86 v86_segments, 0x3002}
        CHECK   "base = selector * 16", dword [0x30008], 0x77
        TRAP    "IRET within V86", 0x80 << 16, {ENTER86 v86_iret, 0x3002}
        CHECK   "goes where the stack says", dword [got_eip], v86_int + 2
        CHECK   "and keeps IOPL and VM", dword [got_eflags], 0x23202

        ; a gate that V86 may not use: DPL 3 code
        SETGATE idt32, 0x91, USER32, A(v86_int), 0xee, 0
        FREE    "#GP from a gate to ring 3 code", 13 << 16 | 0x18, int 0x91
        ; conforming code
        SETGDT  T6, 0, 0xfffff, 0x9f, 12
        SETGATE idt32, 0x91, T6, A(v86_int), 0xee, 0
        FREE    "#GP from a gate to conforming code", 13 << 16 | T6, int 0x91
        jmp     finish32

        bits 16
v86_int:
        int     0x80
v86_flags:
        mov     ax, 0x3000
        mov     ds, ax
        sti
        pushfd
        pop     eax
        mov     [0], eax
        cli
        push    word 0x0002
        popf
        pushfd
        pop     eax
        mov     [4], eax
        int     0x80
v86_segments:
        mov     ax, 0x2fff
        mov     es, ax
        mov     dword [es:0x18], 0x77
        int     0x80
v86_iret:
        push    word 0x0202
        push    word 0
        push    word v86_int
        iret
        bits 32

        protected_tables
%include "end.inc"
