; 64-bit mode: exceptions and their frames, IST, canonical addresses, null segments, compatibility mode, call gates, SYSCALL and
; SYSRET, SYSENTER and SYSEXIT, SWAPGS and the base instructions, IRETQ, the rules of entering and leaving long mode.

%include "start.inc"
%include "protected.inc"
%include "long.inc"
%define MODE 32

guest:  to_protected
        ; --- into long mode, with its rules
        mov     ecx, 0xc0000080
        rdmsr
        or      eax, 0x100
        wrmsr
        mov     eax, cr0
        or      eax, 0x80000000
        FAULT   "#GP from PG with LME and without PAE", 13 << 16, {mov cr0, eax}
        mov     ecx, 0xc0000080
        rdmsr
        and     eax, 0x400
        CHECK   "LMA is clear before paging", eax, 0
%define MODE 64
        to_long
        mov     ecx, 0xc0000080
        rdmsr
        and     eax, 0xd00
        CHECK   "LME, LMA and NXE are set", rax, 0xd00
%ifndef QEMU                            ; which lets these happen, and is lost
        and     eax, ~0x100
        mov     ecx, 0xc0000080
        xor     edx, edx
        FAULT64 "#GP from clearing LME under paging", 13 << 16, wrmsr
        mov     rax, cr4
        and     eax, ~0x20
        FAULT64 "#GP from clearing PAE in long mode", 13 << 16, {mov cr4, rax}
        mov     rax, cr0
        and     eax, 0x7fffffff
        FAULT64 "#GP from clearing PG in 64-bit code", 13 << 16, {mov cr0, rax}
        mov     rax, 1 << 40
        FAULT64 "#GP from CR3 beyond the physical address", 13 << 16, {mov cr3, rax}
        mov     rax, 1 << 32
        FAULT64 "#GP from the upper half of CR0", 13 << 16, {mov cr0, rax}
        mov     rax, 1 << 32
        FAULT64 "#GP from the upper half of CR4", 13 << 16, {mov cr4, rax}
        mov     rax, 1 << 32
        FAULT64 "#GP from the upper half of DR7", 13 << 16, {mov dr7, rax}
%endif

        ; --- frames
        xor     ecx, ecx
        FAULT64 "#DE", 0, div rcx
        CHECK   "SS is pushed without a change of level", GOT_SS, DATA64
        CHECK   "and RSP", GOT_RSP, STACK0
        mov     rsp, STACK0 - 8
        FAULT64 "#UD", 6 << 16, ud2
        CHECK   "the frame is aligned to 16", qword [got_rsp_64], STACK0 - 16 - 40
        mov     rsp, STACK0
        TRAP64  "#BP", 3 << 16, int3
        mov     dword [idt64 + 0x91 * 16 + 4], 0
        FAULT64 "#GP from INT through an empty gate", 13 << 16 | 0x91 << 3 | 2, int 0x91
        FAULT64 "#UD: INTO is gone", 6 << 16, {db 0xce}
        FAULT64 "#UD: PUSH ES is gone", 6 << 16, {db 0x06}
        FAULT64 "#UD: far JMP with a pointer is gone", 6 << 16, {db 0xea, 0, 0, 0, 0, 0, 0}
        FAULT64 "#UD: BOUND is gone", 6 << 16, {db 0x62, 0x06}
        SETGATE64 0x91, CODE64, stubs64 + 0x91 * 16, 0x8e, 1
        TRAP64  "a gate with IST", 0x91 << 16, int 0x91
        CHECK   "switches to its stack", qword [got_rsp_64], STACK_IST - 40
        SETGATE64 0x91, CODE32, stubs64 + 0x91 * 16, 0x8e, 0
        TRAP64  "#GP from a gate to 32-bit code", 13 << 16 | CODE32, int 0x91
        SETGATE64 0x91, CODE64, stubs64 + 0x91 * 16, 0x85, 0
        TRAP64  "#GP from a task gate", 13 << 16 | 0x91 << 3 | 2, int 0x91
        SETGATE64 0x91, CODE64, stubs64 + 0x91 * 16, 0x8e, 0
        mov     dword [idt64 + 0x91 * 16 + 8], 0x8000
        TRAP64  "#GP from a gate to a non-canonical address", 13 << 16, int 0x91

        ; --- canonical addresses
        mov     rbx, 0x0000800000000000
        FAULT64 "#GP from a non-canonical read", 13 << 16, {mov rax, [rbx]}
        mov     rbp, rbx
        FAULT64 "#SS from a non-canonical stack read", 12 << 16, {mov rax, [rbp]}
        mov     rbx, 0x00007ffffffffffc
        FAULT64 "#GP from a read across the edge", 13 << 16, {mov rax, [rbx]}
        mov     rbx, 0x0000800000000000
        FAULT64 "#GP from a jump to a non-canonical address", 13 << 16, jmp rbx
        mov     rbx, 0x00007ffffffffff8
        FAULT64 "#PF just below the edge", 14 << 16, {mov rax, [rbx]}
        CHECK   "its CR2", qword [got_cr2_64], rbx
        mov     rbx, 0xffff800000000000
        FAULT64 "#PF just above it", 14 << 16, {mov rax, [rbx]}

        ; --- segments
        xor     eax, eax
        mov     ss, eax
        mov     rax, [rsp]
        mov     eax, ss
        CHECK   "SS may be null in ring 0", rax, 0
        FAULT64 "a fault with a null SS", 6 << 16, ud2
        mov     eax, 3
        FAULT64 "#GP from a null SS with RPL 3", 13 << 16, {mov ss, eax}
        mov     ecx, 0xc0000100
        mov     eax, got64
        xor     edx, edx
        wrmsr
        mov     dword [got64 + 56], 0x1357
        mov     eax, [fs:56]
        CHECK   "FS has a base of its own", rax, 0x1357
        xor     eax, eax
        mov     fs, eax
        mov     ecx, 0xc0000100
        rdmsr
        CHECK   "a null selector clears it", rax, 0
        mov     ecx, 0xc0000100
        mov     edx, 0x8000
        FAULT64 "#GP from a non-canonical base", 13 << 16, wrmsr
        mov     ecx, 0xc0000102
        mov     eax, 0x1234
        xor     edx, edx
        wrmsr
        mov     ecx, 0xc0000101
        mov     eax, 0x5678
        wrmsr
        swapgs
        rdmsr
        CHECK   "SWAPGS", rax, 0x1234
        FAULT64 "#UD from RDFSBASE without CR4.FSGSBASE", 6 << 16, rdfsbase rax
        mov     rax, cr4
        or      eax, 1 << 16
        mov     cr4, rax
        mov     rbx, 0x123456789a
        wrfsbase rbx
        rdfsbase rax
        CHECK   "WRFSBASE and RDFSBASE", rax, rbx
        rdgsbase rax
        CHECK   "RDGSBASE", rax, 0x1234
        mov     rbx, 0x8000000000000000
        FAULT64 "#GP from WRFSBASE of a non-canonical address", 13 << 16, wrfsbase rbx

        ; --- ring 3
        TRAP64  "ring 3 and back", 0x80 << 16, {ENTER3_64 user_int}
        CHECK   "its CS", GOT_CS, USER64
        CHECK   "its SS", GOT_SS, UDATA64
        CHECK   "its RSP", GOT_RSP, STACK3
        CHECK   "on the TSS's stack", qword [got_rsp_64], STACK_INT - 40
        TRAP64  "#GP from HLT", 13 << 16, {ENTER3_64 user_hlt}
        TRAP64  "#GP from SWAPGS", 13 << 16, {ENTER3_64 user_swapgs}
        mov     eax, DATA64
        mov     gs, eax
        mov     eax, 0x5678
        wrgsbase rax
        TRAP64  "IRETQ to ring 3", 0x80 << 16, {ENTER3_64 user_int}
        mov     eax, gs
        CHECK   "takes ring 0's GS away", rax, 0
        rdgsbase rax
        CHECK   "but not its base", rax, 0x5678
        TRAP64  "#UD from SYSCALL without SCE", 6 << 16, {ENTER3_64 user_syscall}
        mov     ecx, 0xc0000080
        rdmsr
        or      eax, 1
        wrmsr
        mov     ecx, 0xc0000081
        xor     eax, eax
        mov     edx, 0x1b << 16 | CODE64
        wrmsr
        mov     ecx, 0xc0000082
        mov     eax, syscall_target
        xor     edx, edx
        wrmsr
        mov     ecx, 0xc0000084
        mov     eax, 0x4400                     ; NT, DF
        wrmsr
        mov     ecx, 0xc0000084
        mov     edx, 1
        FAULT64 "#GP from a wide FMASK", 13 << 16, wrmsr
        TRAP64  "#GP from SYSRET", 13 << 16, {ENTER3_64 user_sysret}
        TRAP64  "SYSCALL and SYSRET", 0x80 << 16, {ENTER3_64 user_syscall}
        CHECK   "SYSCALL: RCX is the return address", qword [saved], user_after_syscall
        CHECK   "R11 the flags", qword [saved + 8], 0x0402
        CHECK   "the mask was applied", qword [saved + 16], 2
        CHECK   "CS", qword [saved + 24], CODE64
        CHECK   "SS", qword [saved + 32], DATA64
        CHECK   "SYSRET: CS", GOT_CS, USER64
        CHECK   "SS", GOT_SS, UDATA32
        CHECK   "flags came from R11", GOT_RFLAGS, 0x0402
        mov     dword [back_to_32], 1
        TRAP64  "SYSRET to compatibility mode", 0x80 << 16, {ENTER3_64 user_syscall}
        CHECK   "CS", GOT_CS, USER32
        mov     rcx, 0x0000800000000000
        mov     r11d, 2
        FAULT64 "#GP from SYSRET to a non-canonical address, in ring 0", 13 << 16, {o64 sysret}
        CHECK   "  its CS", GOT_CS, CODE64
        mov     ecx, 0x174
        mov     eax, CODE32
        xor     edx, edx
        wrmsr
        mov     ecx, 0x175
        mov     eax, 0x6c00
        wrmsr
        mov     ecx, 0x176
        mov     eax, sysenter_target
        wrmsr
        ; CS = 08 must be 64-bit code for SYSENTER's hidden segment only; nothing is read from the GDT
        TRAP64  "SYSENTER and SYSEXIT", 0x80 << 16, {ENTER3_64 user_sysenter}
        CHECK   "SYSENTER's stack", qword [saved], 0x6c00
        CHECK   "SYSEXIT: CS", GOT_CS, USER64
        CHECK   "SS", GOT_SS, UDATA64
        CHECK   "RSP", GOT_RSP, 0x5800

        ; --- compatibility mode
        push    UDATA32
        push    STACK3
        push    2
        push    USER32
        push    compat
        TRAP64  "IRETQ to compatibility mode", 0x80 << 16, iretq
        mov     rsp, STACK0
        CHECK   "DEC EAX is not a prefix there", qword [saved], 0x41
        CHECK   "addresses have 32 bits", qword [saved + 8], 0x77
        CHECK   "its CS", GOT_CS, USER32

        ; --- a 64-bit call gate
        mov     dword [gdt + T0], CODE64 << 16 | A(gate_code) & 0xffff
        mov     dword [gdt + T0 + 4], A(gate_code) & 0xffff0000 | 0xec00
        mov     dword [gdt + T0 + 8], 0
        mov     dword [gdt + T0 + 12], 0
        TRAP64  "a call gate from ring 3 and RETFQ", 0x80 << 16, {ENTER3_64 user_gate}
        CHECK   "ran in ring 0", qword [saved], CODE64
        CHECK   "with a null SS", qword [saved + 8], 0
        CHECK   "four words on the TSS's stack", qword [saved + 16], STACK_INT - 32
        mov     dword [gdt + T0 + 12], 0x1f00
        TRAP64  "#GP from a gate whose upper type is not zero", 13 << 16 | T0, {ENTER3_64 user_gate}

        ; --- IRETQ
        pushfq
        or      qword [rsp], 0x4000
        popfq
        FAULT64 "#GP from IRET with NT", 13 << 16, iretq
        pushfq
        and     qword [rsp], ~0x4000
        popfq
        mov     rsp, STACK0
        push    0
        push    STACK0
        push    2
        push    CODE64
        push    after_null
        iretq
after_null:
        mov     eax, ss
        CHECK   "IRETQ to a null SS in ring 0", rax, 0
        mov     eax, DATA64
        mov     ss, eax
        push    DATA64
        push    STACK0
        push    2
        push    CODE64
        mov     rax, 0x0000800000000000
        push    rax
        FAULT64 "#GP from IRETQ to a non-canonical address", 13 << 16, iretq
        mov     rsp, STACK0
        push    0
        push    STACK3
        push    2
        push    USER64
        push    user_int
        FAULT64 "#GP from IRETQ to ring 3 with a null SS", 13 << 16, iretq
        mov     rsp, STACK0
        mov     rax, 0x0000800000000000
        mov     qword [TSS64 + 4], rax
        TRAP64  "a non-canonical stack in the TSS is a double fault", 8 << 16, {jmp bad_stack}
        mov     qword [TSS64 + 4], STACK_INT

        ; --- CR8 and PCID
        mov     eax, 5
        mov     cr8, rax
        mov     rax, cr8
        CHECK   "CR8", rax, 5
        mov     eax, 16
        FAULT64 "#GP from CR8 over 15", 13 << 16, {mov cr8, rax}
        xor     eax, eax
        mov     cr8, rax
        mov     rax, cr4
        or      eax, 1 << 17
        mov     cr4, rax
        mov     rax, cr3
        or      rax, 5
        mov     cr3, rax
        bts     rax, 63
        mov     cr3, rax
        mov     rax, cr3
        CHECK   "CR3 with a PCID; bit 63 is not kept", rax, PML4 | 5
        sub     rsp, 16
        mov     qword [rsp], 0x1000
        mov     qword [rsp + 8], 0
        xor     eax, eax
        FAULT64 "#GP from INVPCID of a wide PCID", 13 << 16, {invpcid rax, [rsp]}
        mov     qword [rsp], 5
        xor     eax, eax
        invpcid rax, [rsp]
        mov     eax, 4
        FAULT64 "#GP from INVPCID of type 4", 13 << 16, {invpcid rax, [rsp]}
        mov     eax, 2
        invpcid rax, [rsp]
        mov     rax, cr0
        and     eax, 0x7fffffff
        FAULT64 "#GP from clearing PG under PCIDE", 13 << 16, {mov cr0, rax}
        ; --- registers that keep what is written, and those that take only some values
        mov     ecx, 0x1a0                              ; IA32_MISC_ENABLE
        mov     eax, 0x00c51889
        mov     edx, 4
        wrmsr
        xor     eax, eax
        rdmsr
        mov     eax, eax
        CHECK   "IA32_MISC_ENABLE is kept", rax, 0x00c51889
        mov     ecx, 0x400                              ; IA32_MC0_CTL
        mov     eax, -1
        mov     edx, -1
        wrmsr
        rdmsr
        mov     eax, eax
        CHECK   "IA32_MC0_CTL takes all ones", rax, 0xffffffff
        mov     eax, 0x55555555
        mov     edx, 0xaaaaaaaa
        FAULT64 "#GP from some bits in IA32_MC0_CTL", 13 << 16, {wrmsr}
        mov     ecx, 0x402                              ; IA32_MC0_ADDR
        mov     eax, 0x55555555
        mov     edx, 0xaaaaaaaa
        wrmsr
        rdmsr
        mov     eax, eax
        CHECK   "IA32_MC0_ADDR takes anything", rax, 0x55555555
        mov     ecx, 0x401                              ; IA32_MC0_STATUS
        mov     eax, 1
        xor     edx, edx
        FAULT64 "#GP from setting a bit of IA32_MC0_STATUS", 13 << 16, {wrmsr}
        jmp     finish64

        align 8
saved:  times 5 dq 0
back_to_32: dd 0

bad_stack:
        SETGATE64 8, CODE64, stubs64 + 8 * 16, 0x8e, 1
        ENTER3_64 user_int
user_int:
        int     0x80
user_hlt:
        hlt
user_swapgs:
        swapgs
user_sysret:
        o64 sysret
user_syscall:
        push    0x402                           ; DF alone
        popfq
        syscall
user_after_syscall:
        int     0x80
syscall_target:
        mov     [saved], rcx
        mov     [saved + 8], r11
        pushfq
        pop     qword [saved + 16]
        mov     eax, cs
        mov     [saved + 24], rax
        mov     eax, ss
        mov     [saved + 32], rax
        cmp     dword [back_to_32], 0
        jne     .compat
        o64 sysret
.compat:
        sysret
user_sysenter:
        sysenter
sysenter_target:
        mov     [saved], rsp
        mov     edx, user_int
        mov     ecx, 0x5800
        o64 sysexit
        bits 32
compat: mov     ax, UDATA32
        mov     ds, ax
        mov     eax, 0x42
        db      0x48                            ; DEC EAX, or REX.W in 64-bit code
        nop
        mov     [saved], eax
        mov     dword [saved + 4], 0
        mov     dword [saved + 12], 0
        mov     ebx, 0xffffffff
        mov     byte [0x30000], 0x77
        movzx   eax, byte [ebx + 0x30001]
        mov     [saved + 8], eax
        int     0x80
        bits 64
user_gate:
        call    far qword [gate_pointer]
        int     0x80
gate_pointer:
        dq      0
        dw      T0 | 3
gate_code:
        mov     eax, cs
        mov     [saved], rax
        mov     eax, ss
        mov     [saved + 8], rax
        mov     [saved + 16], rsp
        o64 retf

        protected_tables
        long_tables
%include "end.inc"
