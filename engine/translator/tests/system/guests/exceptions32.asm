; Every exception that an instruction of 32-bit protected mode can raise, with its error code and the address it is reported at.

%include "start.inc"
%include "protected.inc"
%define MODE 32

guest:  to_protected

        ; --- plain exceptions
        xor     ecx, ecx
        mov     eax, 1
        xor     edx, edx
        FAULT   "#DE from DIV", 0 << 16, div ecx
        mov     eax, 0x80000000
        mov     edx, -1
        mov     ecx, -1
        FAULT   "#DE from IDIV overflow", 0 << 16, idiv ecx
        xor     ecx, ecx
        FAULT   "#DE from AAM 0", 0 << 16, aam 0
        TRAP    "#BP from INT3", 3 << 16, int3
        mov     eax, [got_eip]
        mov     al, [eax - 1]
        movzx   eax, al
        CHECK   "#BP is reported behind INT3", eax, 0xcc
        mov     al, 0x7f
        add     al, 1
        TRAP    "#OF from INTO", 4 << 16, into
        mov     eax, [got_eip]
        movzx   eax, byte [eax - 1]
        CHECK   "#OF is reported behind INTO", eax, 0xce
        xor     eax, eax
        into
        CHECK   "INTO without OF does nothing", eax, 0
        mov     eax, 9
        FAULT   "#BR above the bounds", 5 << 16, bound eax, [bounds]
        mov     eax, -3
        FAULT   "#BR below the bounds", 5 << 16, bound eax, [bounds]
        mov     eax, 8
        bound   eax, [bounds]
        CHECK   "BOUND at the bound", eax, 8
        FAULT   "#UD from UD2", 6 << 16, ud2
        FAULT   "#UD from LOCK on a register", 6 << 16, {db 0xf0, 0x01, 0xc0}
        FAULT   "#UD from LOCK on a load", 6 << 16, {db 0xf0, 0x8b, 0x06}
        FAULT   "#UD from MOV CS", 6 << 16, {db 0x8e, 0xc8}
        FAULT   "#UD from MOV from CR1", 6 << 16, {db 0x0f, 0x20, 0xc8}
        FAULT   "#UD from RSM", 6 << 16, rsm
        FAULT   "#GP from 16 bytes", 13 << 16, {times 15 db 0x66}
        nop

        ; --- #NM
        mov     eax, cr0
        or      eax, 8
        mov     cr0, eax
        FAULT   "#NM from FNOP with TS", 7 << 16, fnop
        FAULT   "#UD before #NM from an SSE instruction with TS", 6 << 16, {db 0x0f, 0x57, 0xc0}
        mov     eax, 0x200
        mov     cr4, eax
        FAULT   "#NM from an SSE instruction with TS and OSFXSR", 7 << 16, {db 0x0f, 0x57, 0xc0}
        xor     eax, eax
        mov     cr4, eax
        wait
        CHECK   "WAIT with TS and without MP", 0, 0
        mov     eax, cr0
        or      eax, 2
        mov     cr0, eax
        FAULT   "#NM from WAIT with MP and TS", 7 << 16, wait
        clts
        mov     eax, cr0
        and     eax, ~2
        or      eax, 4
        mov     cr0, eax
        FAULT   "#NM from FNOP with EM", 7 << 16, fnop
        FAULT   "#UD from an SSE instruction with EM", 6 << 16, {db 0x0f, 0x57, 0xc0}
        mov     eax, cr0
        and     eax, ~4
        mov     cr0, eax
        FAULT   "#UD from an SSE instruction without OSFXSR", 6 << 16, {db 0x0f, 0x57, 0xc0}

        ; --- #GP from memory
        SETGDT  T0, 0x30000, 0xfff, 0x93, 4     ; data, 4 KiB, byte granular
        mov     ax, T0
        mov     fs, ax
        mov     dword [fs:0xffc], 1
        FAULT   "#GP past the limit", 13 << 16, {mov eax, [fs:0xffd]}
        FAULT   "#GP past the limit, byte", 13 << 16, {mov al, [fs:0x1000]}
        FAULT   "#GP at the top of the address space", 13 << 16, {mov eax, [fs:0xffffffff]}
        SETGDT  T1, 0x30000, 0xfff, 0x97, 4     ; expand-down: 1000h to FFFFFFFFh
        mov     ax, T1
        mov     fs, ax
        mov     al, [fs:0x1000]
        FAULT   "#GP within an expand-down limit", 13 << 16, {mov al, [fs:0xfff]}
        SETGDT  T1, 0x30000, 0xfff, 0x97, 0     ; 16 bits: 1000h to FFFFh
        mov     ax, T1
        mov     fs, ax
        mov     al, [fs:0xffff]
        FAULT   "#GP above a small expand-down segment", 13 << 16, {mov al, [fs:0x10000]}
        SETGDT  T2, 0x30000, 0xfff, 0x91, 4     ; read-only
        mov     ax, T2
        mov     fs, ax
        mov     al, [fs:0]
        FAULT   "#GP from a write to a read-only segment", 13 << 16, {mov [fs:0], al}
        FAULT   "#GP from a write to a code segment", 13 << 16, {mov [cs:0x30000], al}
        SETGDT  T3, 0, 0xfffff, 0x99, 12        ; execute-only
        mov     eax, T3
        FAULT   "#GP from loading an execute-only segment into DS", 13 << 16 | T3, {mov ds, ax}
        xor     eax, eax
        mov     fs, ax
        FAULT   "#GP from a null segment", 13 << 16, {mov al, [fs:0]}

        ; --- segment loads
%macro LOAD 3                   ; name, segment register, selector
        mov     ecx, %3
        FAULT   %1, GOT, {mov %2, cx}
%endmacro
        %define GOT 13 << 16 | 0x100
        LOAD    "#GP from a selector past the GDT", fs, 0x103
        %define GOT 13 << 16 | 0x4
        LOAD    "#GP from an LDT selector without LDT", fs, 0x7
        %define GOT 13 << 16 | TSS
        LOAD    "#GP from a system segment in DS", fs, TSS
        SETGDT  T4, 0, 0xfffff, 0x13, 12        ; not present
        %define GOT 11 << 16 | T4
        LOAD    "#NP from a segment that is not present", fs, T4
        %define GOT 12 << 16 | T4
        LOAD    "#SS from a stack that is not present", ss, T4
        %define GOT 13 << 16 | 0
        LOAD    "#GP from a null SS", ss, 0
        %define GOT 13 << 16 | CODE32
        LOAD    "#GP from code in SS", ss, CODE32
        %define GOT 13 << 16 | T2
        LOAD    "#GP from read-only data in SS", ss, T2
        %define GOT 13 << 16 | 0x20
        LOAD    "#GP from SS of another privilege", ss, 0x20
        %define GOT 13 << 16 | DATA32
        LOAD    "#GP from SS with another RPL", ss, DATA32 + 1
        %define GOT 13 << 16 | DATA32
        LOAD    "#GP from DS with an RPL above its DPL", fs, DATA32 + 3
        SETGDT  T5, 0, 0xfffff, 0x92, 12        ; not accessed
        mov     ax, T5
        mov     fs, ax
        movzx   eax, byte [gdt + T5 + 5]
        CHECK   "loading a segment marks it accessed", eax, 0x93
        SETGDT  T5, 0, 0xfffff, 0x92, 12
        mov     ax, T5
        lar     eax, eax
        and     eax, 0xf0ff00           ; the limit's bits are undefined
        CHECK   "LAR does not", eax, 0xc09200
        movzx   eax, byte [gdt + T5 + 5]
        CHECK   "and the descriptor stays", eax, 0x92

        ; --- #SS
        SETGDT  T0, 0x30000, 0xfff, 0x93, 4
        mov     ax, T0
        mov     ss, ax
        mov     esp, 0x800
        FAULT   "#SS through ESP", 12 << 16, {mov eax, [esp + 0x800]}
        mov     ebp, 0x1000
        mov     ax, T0
        mov     ss, ax
        mov     esp, 0x800
        FAULT   "#SS through EBP", 12 << 16, {mov eax, [ebp]}
        mov     esp, STACK0
        ; past the limit of a stack in ring 3, so that the handler has a better one
        SETGDT  T0, 0x30000, 0xfff, 0xf3, 4
        TRAP    "#SS from a push past the limit", 12 << 16, {ENTER3 user_stack}

        ; --- far transfers and their selectors
        FAULT   "#GP from a far jump to null", 13 << 16, jmp 0:0
        FAULT   "#GP from a far jump past the GDT", 13 << 16 | 0x108, jmp 0x108:0
        FAULT   "#GP from a far jump to data", 13 << 16 | DATA32, jmp DATA32:0
        FAULT   "#GP from a far jump to ring 3 code", 13 << 16 | 0x18, jmp USER32:0
        SETGDT  T6, 0, 0xfffff, 0x1b, 12
        FAULT   "#NP from a far jump to absent code", 11 << 16 | T6, jmp T6:0
        SETGDT  T6, 0, 0xfff, 0x9b, 4
        FAULT   "#GP from a far jump past the code's limit", 13 << 16, jmp T6:0x1000
        mov     word [0xffe], 0x9090
        TRAP    "#GP at the code's end", 13 << 16, call T6:0xffe
        CHECK   "where the next instruction would be", dword [got_eip], 0x1000
        mov     esp, STACK0
        push    0
        push    0
        FAULT   "#GP from RETF to null", 13 << 16, {retf}
        mov     esp, STACK0
        push    0x20
        push    0
        FAULT   "#GP from RETF to data", 13 << 16 | 0x20, retf
        mov     esp, STACK0

        ; --- interrupts
        mov     dword [idt32 + 0x90 * 8 + 4], 0
        FAULT   "#GP from INT through an empty gate", 13 << 16 | 0x90 << 3 | 2, int 0x90
        mov     dword [idt32 + 0x90 * 8 + 4], 0x0f00
        TRAP    "#NP from INT through an absent gate", 11 << 16 | 0x90 << 3 | 2, int 0x90
        mov     dword [idt32 + 0x90 * 8], 0
        mov     dword [idt32 + 0x90 * 8 + 4], 0x8e00
        TRAP    "#GP from a gate to null", 13 << 16, int 0x90
        mov     dword [idt32 + 0x90 * 8], DATA32 << 16
        TRAP    "#GP from a gate to data", 13 << 16 | DATA32, int 0x90
        mov     dword [idt32 + 0x90 * 8], 0x108 << 16
        TRAP    "#GP from a gate past the GDT", 13 << 16 | 0x108, int 0x90
        SETGDT  T6, 0, 0xfffff, 0x1b, 12
        mov     dword [idt32 + 0x90 * 8], T6 << 16
        TRAP    "#NP from a gate to absent code", 11 << 16 | T6, int 0x90
        lidt    [short_idt]
        TRAP    "#GP from INT past the IDT", 13 << 16 | 0x90 << 3 | 2, int 0x90
        lidt    [idt_pointer]
        ; A fault that cannot be delivered is a double fault: #NP on #GP's gate.
        mov     byte [idt32 + 13 * 8 + 5], 0x0e
        mov     eax, 0x108
        FAULT   "#DF from #GP through an absent gate", 8 << 16, {mov fs, ax}
        mov     byte [idt32 + 13 * 8 + 5], 0x8e
        ; A benign first exception is replaced instead: #UD, then #NP.
        mov     byte [idt32 + 6 * 8 + 5], 0x0e
        TRAP    "#NP replaces #UD through an absent gate", 11 << 16 | 6 << 3 | 3, ud2
        mov     byte [idt32 + 6 * 8 + 5], 0x8e
        TRAP    "a trap gate keeps IF and the error code is none", 0x91 << 16, int 0x91

        ; --- reserved bits of control registers
        mov     eax, cr0
        and     eax, ~1
        or      eax, 0x80000000
        FAULT   "#GP from PG without PE", 13 << 16, mov cr0, eax
        mov     eax, cr0
        or      eax, 0x20000000
        and     eax, ~0x40000000
        FAULT   "#GP from NW without CD", 13 << 16, mov cr0, eax
        mov     eax, 0x80000000
        FAULT   "#GP from a reserved bit of CR4", 13 << 16, mov cr4, eax
        mov     eax, 1 << 17
        FAULT   "#GP from PCID outside long mode", 13 << 16, mov cr4, eax
        mov     ecx, 0x12345
        FAULT   "#GP from RDMSR of nothing", 13 << 16, rdmsr
        mov     ecx, 0x12345
        FAULT   "#GP from WRMSR of nothing", 13 << 16, wrmsr
        mov     ecx, 0xc0000080
        mov     eax, 0x2
        xor     edx, edx
        FAULT   "#GP from a reserved bit of EFER", 13 << 16, wrmsr
        mov     ecx, 0x2000000
        FAULT   "#GP from RDPMC", 13 << 16, rdpmc

        ; --- #AC only in ring 3
        mov     eax, cr0
        or      eax, 1 << 18
        mov     cr0, eax
        pushfd
        or      dword [esp], 1 << 18
        popfd
        mov     eax, [0x30001]
        CHECK   "no #AC in ring 0", 0, 0
        TRAP    "#AC in ring 3", 17 << 16, {ENTER3 user_ac}
        pushfd
        and     dword [esp], ~(1 << 18)
        popfd

        ; --- ring 3
        mov     word [TSS_AT + 102], 0xffff     ; no ports
        TRAP    "ring 3 and back", 0x80 << 16, {ENTER3 user_plain}
        CHECK   "the stack of ring 3 is kept", dword [got_esp], STACK3
        CHECK   "and its selector", dword [got_ss], UDATA32
        CHECK   "the handler runs on the TSS's stack", dword [got_sp], STACK_INT - 20
%macro USER 3+
        TRAP    %1, %2, {ENTER3 %%code}
        jmp     %%go
%%code: %3
        int     0x80
%%go:
%endmacro
        USER    "#GP from CLI in ring 3", 13 << 16, cli
        USER    "#GP from HLT in ring 3", 13 << 16, hlt
        USER    "#GP from IN in ring 3", 13 << 16, {in al, 0x60}
        USER    "#GP from MOV CR0 in ring 3", 13 << 16, {mov eax, cr0}
        USER    "#GP from LGDT in ring 3", 13 << 16, lgdt [gdt_pointer]
        USER    "#GP from INT without DPL 3", 13 << 16 | 0x21 << 3 | 2, int 0x21
        USER    "#GP from LTR in ring 3", 13 << 16, ltr ax
        USER    "#GP from RDMSR in ring 3", 13 << 16, rdmsr
        USER    "#GP from INVLPG in ring 3", 13 << 16, invlpg [0]
        mov     eax, DATA32
        USER    "#GP from a ring 0 segment in ring 3", 13 << 16 | DATA32, {mov ds, ax}
        USER    "#UD before privilege", 6 << 16, ud2
        mov     eax, cr4
        or      eax, 0x800
        mov     cr4, eax
        USER    "#GP from SGDT under UMIP", 13 << 16, sgdt [0x3000]
        USER    "#GP from SIDT under UMIP", 13 << 16, sidt [0x3000]
        USER    "#GP from SLDT under UMIP", 13 << 16, sldt ax
        USER    "#GP from STR under UMIP", 13 << 16, str ax
        USER    "#GP from SMSW under UMIP", 13 << 16, smsw ax
        smsw    eax
        and     eax, 1
        CHECK   "ring 0 stores them all the same", eax, 1
        mov     eax, cr4
        and     eax, ~0x800
        mov     cr4, eax
        USER    "SMSW in ring 3 without UMIP", 0x80 << 16, {smsw ax}

        jmp     finish32

        align 4
bounds: dd      -2, 8
short_idt:
        dw      0x90 * 8 - 1
        dd      idt32

user_ac:
        mov     eax, UDATA32
        mov     ds, eax
        pushfd
        or      dword [esp], 1 << 18
        popfd
        mov     eax, [0x30001]
        int     0x80
user_stack:
        mov     eax, T0 | 3
        mov     ss, eax
        mov     esp, 0x1002
        push    eax
        int     0x80
user_plain:
        int     0x80

        protected_tables
%include "end.inc"
