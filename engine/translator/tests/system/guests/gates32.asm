; Call gates, far calls and returns between privilege levels, parameter copying, conforming code, IOPL and the I/O permission
; bitmap, and the instructions that ask about selectors.

%include "start.inc"
%include "protected.inc"
%define MODE 32

guest:  to_protected
        lea     eax, [0x50000]
        mov     dword [0x50000], 0

        ; --- a far call at the same level
        call    CODE32:far_same
        CHECK   "far call and return", eax, 0x1234
        CHECKSP "the stack is where it was", STACK0

        ; --- a call gate of the same level
        SETGATE gdt, T0 / 8, CODE32, A(far_same), 0x8c, 0
        xor     eax, eax
        call    T0:0xdeadbeef
        CHECK   "call gate, same level", eax, 0x1234
        SETGATE gdt, T0 / 8, CODE32, A(jumped), 0x8c, 0
        jmp     T0:0
jumped: CHECKSP "jump through a call gate", STACK0
        ; a 16-bit gate pushes 16-bit CS:IP
        SETGATE gdt, T1 / 8, CODE32, A(far_same16), 0x84, 0
        xor     eax, eax
        call    T1:0
        CHECK   "16-bit call gate", eax, 0x4321
        CHECKSP "and its stack", STACK0

        ; --- call gate from ring 3 to ring 0 with 3 parameters
        SETGATE gdt, T0 / 8, CODE32, A(inner), 0xec, 3
        TRAP    "ring 3 through a call gate and back", 0x80 << 16, {ENTER3 user_call}
        CHECK   "the gate's code ran in ring 0", dword [inner_cs], CODE32
        CHECK   "on the TSS's stack", dword [inner_esp], STACK_INT - 7 * 4
        CHECK   "parameter 1", dword [inner_p1], 0x11111111
        CHECK   "parameter 2", dword [inner_p2], 0x22222222
        CHECK   "parameter 3", dword [inner_p3], 0x33333333
        CHECK   "the caller's SS was pushed", dword [inner_ss], UDATA32
        CHECK   "the caller's ESP was pushed", dword [inner_sp], STACK3 - 12
        CHECK   "RETF 12 released the caller's parameters", dword [got_esp], STACK3
        CHECK   "back in ring 3", dword [got_cs], USER32
        CHECK   "RETF took the ring 0 data segment away", dword [user_ds], 0
        CHECK   "and left the ring 3 one", dword [user_es], UDATA32

        ; --- gates that may not be used
        SETGATE gdt, T0 / 8, CODE32, A(inner), 0x8c, 0
        TRAP    "#GP from a gate of DPL 0 in ring 3", 13 << 16 | T0, {ENTER3 user_gate}
        SETGATE gdt, T0 / 8, CODE32, A(inner), 0x6c, 0
        TRAP    "#NP from a gate that is not present", 11 << 16 | T0, {ENTER3 user_gate}
        SETGATE gdt, T0 / 8, 0, A(inner), 0xec, 0
        TRAP    "#GP from a gate to null", 13 << 16, {ENTER3 user_gate}
        SETGATE gdt, T0 / 8, DATA32, A(inner), 0xec, 0
        TRAP    "#GP from a gate to data", 13 << 16 | DATA32, {ENTER3 user_gate}
        SETGATE gdt, T0 / 8, CODE32, A(inner), 0xec, 0
        TRAP    "#GP from a jump to inner code through a gate", 13 << 16 | CODE32, {ENTER3 user_jump}
        ; --- the interrupt stack of the TSS
        SETGDT  T3, 0, 0xfffff, 0xf3, 12        ; data, DPL 3
        ; only the tested vector goes to ring 1, so that exceptions keep a good stack
        SETGDT  T4, 0, 0xfffff, 0xbb, 12        ; code, DPL 1
        SETGDT  T5, 0, 0xfffff, 0xb3, 12        ; data, DPL 1
        SETGATE idt32, 0x91, T4 | 1, A(ring1), 0xee, 0
        mov     dword [TSS_AT + 12], 0x6800
        mov     dword [TSS_AT + 16], T5 | 1
        TRAP    "an interrupt to ring 1", 0x80 << 16, {ENTER3 user_91}
        CHECK   "ran at ring 1", dword [inner_cs], T4 | 1
        CHECK   "on ring 1's stack", dword [inner_esp], 0x6800 - 20
        mov     dword [TSS_AT + 16], 0
        TRAP    "#TS(0) from a null ring 1 stack", 10 << 16, {ENTER3 user_91}
        mov     dword [TSS_AT + 16], T5
        TRAP    "#TS from a ring 1 stack with another RPL", 10 << 16 | T5, {ENTER3 user_91}
        mov     dword [TSS_AT + 16], T3 | 1
        TRAP    "#TS from a ring 1 stack of DPL 3", 10 << 16 | T3, {ENTER3 user_91}
        SETGDT  T5, 0, 0xfffff, 0x33, 12        ; data, DPL 1, not present
        mov     dword [TSS_AT + 16], T5 | 1
        TRAP    "#SS from a ring 1 stack that is not present", 12 << 16 | T5, {ENTER3 user_91}
        SETGDT  T5, 0, 0xfffff, 0xb3, 12
        mov     dword [TSS_AT + 16], T5 | 1

        ; --- conforming code runs at the caller's level
        SETGDT  T6, 0, 0xfffff, 0x9f, 12
        TRAP    "ring 3 calls conforming code of DPL 0", 0x80 << 16, {ENTER3 user_conforming}
        CHECK   "and stays in ring 3", dword [inner_cs], T6 | 3

        ; --- IRET to ring 3 takes segments away, too
        mov     ax, DATA32
        mov     fs, ax
        TRAP    "IRET to ring 3", 0x80 << 16, {ENTER3 user_segments}
        CHECK   "FS is null there", dword [user_ds], 0
        push    UDATA32
        push    STACK3
        push    dword 2
        push    CODE32                  ; RPL 0: IRET stays inside
        push    after_same
        iretd
after_same:
        CHECKSP "IRET to the same level pops three words", STACK0 - 8
        mov     esp, STACK0
        push    dword 2
        push    USER32
        push    user_plain
        ; no stack behind it that fits: SS comes from what lies above
        mov     dword [STACK0 + 4], DATA32
        FAULT   "#GP from IRET to ring 3 with a ring 0 stack", 13 << 16 | DATA32, iretd
        mov     esp, STACK0

        ; --- IOPL and the permission bitmap
        mov     word [TSS_AT + 102], 104
        mov     byte [TSS_AT + 104 + 0xe0 / 8], 0
        mov     byte [TSS_AT + 104 + 0x1c], 0           ; ports e0 to e7
        mov     byte [TSS_AT + 104 + 0x1d], 0xf0        ; e8 to eb free, ec to ef not
        TRAP    "a permitted port", 0x80 << 16, {ENTER3 user_in_e8}
        TRAP    "a forbidden port", 13 << 16, {ENTER3 user_in_ec}
        TRAP    "a wide access that reaches a forbidden port", 13 << 16, {ENTER3 user_in_eb}
        TRAP    "a port whose bit is past the limit", 13 << 16, {ENTER3 user_in_200}
        mov     word [TSS_AT + 102], 0xffff
        TRAP    "a bitmap past the limit", 13 << 16, {ENTER3 user_in_e8}
        pushfd
        or      dword [esp], 0x3000
        popfd
        TRAP    "IOPL 3", 0x80 << 16, {ENTER3 user_in_e8}
        TRAP    "CLI and STI at IOPL 3", 0x80 << 16, {ENTER3 user_cli}
        CHECK   "IF is set there", dword [user_ds], 0x3202
        pushfd
        and     dword [esp], ~0x3000
        popfd
        TRAP    "POPF in ring 3 keeps IF and IOPL", 0x80 << 16, {ENTER3 user_popf}
        CHECK   "whatever is popped", dword [user_ds], 0x0002

        ; --- ARPL, LAR, LSL, VERR, VERW
        mov     ax, 0x10
        mov     bx, 3
        arpl    ax, bx
        setz    cl
        movzx   eax, ax
        CHECK   "ARPL raises", eax, 0x13
        movzx   eax, cl
        CHECK   "ARPL says so", eax, 1
        mov     ax, 0x13
        mov     bx, 1
        arpl    ax, bx
        setz    al
        movzx   eax, al
        CHECK   "ARPL does not lower", eax, 0
        mov     ecx, CODE32
        lsl     eax, ecx
        CHECK   "LSL of a 4 GiB segment", eax, 0xffffffff
        mov     ecx, TSS
        lsl     eax, ecx
        CHECK   "LSL of a TSS", eax, 104 + 31
        mov     ecx, T0
        mov     eax, 0x55
        lsl     eax, ecx
        setz    cl
        CHECK   "LSL of a gate leaves the register", eax, 0x55
        movzx   ecx, cl
        CHECK   "and ZF clear", ecx, 0
        mov     ecx, T0
        lar     eax, ecx
        CHECK   "LAR of a call gate", eax, 0xec00
        mov     ecx, 0x1000
        lar     eax, ecx
        setz    cl
        movzx   ecx, cl
        CHECK   "LAR past the GDT", ecx, 0
        mov     ecx, CODE32
        verw    cx
        setz    al
        movzx   eax, al
        CHECK   "VERW of code", eax, 0
        verr    cx
        setz    al
        movzx   eax, al
        CHECK   "VERR of readable code", eax, 1
        xor     ecx, ecx
        verr    cx
        setz    al
        movzx   eax, al
        CHECK   "VERR of null", eax, 0

        ; --- an LDT
        SETGDT  LDT, 0x40000, 15, 0x82, 0
        mov     dword [0x40008], 0x0000ffff
        mov     dword [0x4000c], 0x00cf9300
        mov     ax, LDT
        lldt    ax
        mov     ax, 8 | 4
        mov     fs, ax
        mov     eax, [fs:magic]
        CHECK   "a segment from the LDT", eax, 0x600df00d
        mov     eax, 16 | 4
        FAULT   "#GP past the LDT", 13 << 16 | 16 | 4, {mov fs, ax}
        sldt    eax
        movzx   eax, ax
        CHECK   "SLDT", eax, LDT
        str     eax
        movzx   eax, ax
        CHECK   "STR", eax, TSS
        mov     eax, TSS
        FAULT   "#GP from LTR of a busy TSS", 13 << 16 | TSS, {ltr ax}
        FAULT   "#GP from LLDT of a TSS", 13 << 16 | TSS, {lldt ax}

        ; --- SYSENTER and SYSEXIT
        mov     ecx, 0x174
        xor     edx, edx
        mov     eax, CODE32
        wrmsr
        mov     ecx, 0x175
        mov     eax, 0x6c00
        wrmsr
        mov     ecx, 0x176
        mov     eax, sysenter_target
        wrmsr
        TRAP    "SYSENTER and SYSEXIT", 0x80 << 16, {ENTER3 user_sysenter}
        CHECK   "SYSENTER came to ring 0", dword [inner_cs], CODE32
        CHECK   "with its stack", dword [inner_esp], 0x6c00
        CHECK   "and interrupts off", dword [inner_p1], 0
        CHECK   "SYSEXIT's stack", dword [got_esp], 0x5800
        CHECK   "and its stack segment", dword [got_ss], UDATA32

        jmp     finish32

magic:     dd 0x600df00d
inner_cs:  dd 0
inner_esp: dd 0
inner_p1:  dd 0
inner_p2:  dd 0
inner_p3:  dd 0
inner_ss:  dd 0
inner_sp:  dd 0
user_ds:   dd 0
user_es:   dd 0

far_same:
        mov     eax, 0x1234
        retf
far_same16:
        mov     eax, 0x4321
        o16 retf

%macro note 2
        push    eax
        mov     eax, %2
        mov     [%1], eax
        pop     eax
%endmacro

inner:  mov     eax, DATA32
        mov     ds, eax
        mov     [inner_esp], esp
        mov     ax, cs
        movzx   eax, ax
        mov     [inner_cs], eax
        mov     eax, [esp + 16]
        mov     [inner_p1], eax
        mov     eax, [esp + 12]
        mov     [inner_p2], eax
        mov     eax, [esp + 8]
        mov     [inner_p3], eax
        mov     eax, [esp + 20]
        mov     [inner_sp], eax
        mov     eax, [esp + 24]
        mov     [inner_ss], eax
        retf    12

        ; ring 3: its data segments are those of ring 3
%macro user_data 0
        mov     eax, UDATA32
        mov     ds, eax
        mov     es, eax
%endmacro
user_plain:
        int     0x80
user_call:
        user_data
        push    0x11111111
        push    0x22222222
        push    0x33333333
        call    T0 | 3:0
        mov     ecx, ds
        mov     eax, UDATA32
        mov     ds, eax
        movzx   ecx, cx
        mov     [user_ds], ecx
        mov     ecx, es
        movzx   ecx, cx
        mov     [user_es], ecx
        int     0x80
user_gate:
        call    T0 | 3:0
user_jump:
        jmp     T0 | 3:0
user_91:
        int     0x91
        int     0x80
ring1:  mov     eax, UDATA32
        mov     ds, eax
        mov     [inner_esp], esp
        mov     eax, cs
        movzx   eax, ax
        mov     [inner_cs], eax
        iretd
user_conforming:
        user_data
        call    T6:conforming
        int     0x80
conforming:
        mov     eax, cs
        movzx   eax, ax
        mov     [inner_cs], eax
        retf
user_segments:
        user_data
        mov     eax, fs
        movzx   eax, ax
        mov     [user_ds], eax
        int     0x80
user_in_e8:
        in      al, 0xe8
        int     0x80
user_in_ec:
        in      al, 0xec
        int     0x80
user_in_eb:
        in      ax, 0xeb
        int     0x80
user_in_200:
        mov     dx, 0x200
        in      al, dx
        int     0x80
user_cli:
        user_data
        cli
        sti
        pushfd
        pop     eax
        and     eax, 0x3202
        mov     [user_ds], eax
        cli
        int     0x80
user_popf:
        user_data
        push    dword 0x3202
        popfd
        pushfd
        pop     eax
        and     eax, 0x3202
        mov     [user_ds], eax
        int     0x80
user_sysenter:
        sysenter
sysenter_target:
        mov     eax, DATA32
        mov     ds, eax
        mov     [inner_esp], esp
        pushfd
        pop     eax
        and     eax, 0x200
        mov     [inner_p1], eax
        mov     eax, cs
        movzx   eax, ax
        mov     [inner_cs], eax
        mov     edx, user_plain
        mov     ecx, 0x5800
        sysexit

        protected_tables
%include "end.inc"
