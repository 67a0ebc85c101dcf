; The local APIC of one CPU: self IPIs and priorities, TPR, NMI and its blocking, one-shot and periodic timer, TSC deadline, HLT, the STI and
; MOV SS shadows, x2APIC, and IA32_APIC_BASE.

%include "start.inc"
%include "protected.inc"
%define MODE 32

APIC    equ 0xfee00000

%macro SELF_IPI 1
        mov     dword [APIC + 0x300], 0x44000 | (%1)
%endmacro
; Waits for `cell` to reach a value, at most some ten million turns.
%macro AWAIT 2
        mov     ecx, 10000000
%%wait: cmp     dword [%1], %2
        jae     %%there
        dec     ecx
        jnz     %%wait
%%there:
%endmacro

guest:  to_protected
        SETGATE idt32, 0x40, CODE32, A(irq40), 0x8e, 0
        SETGATE idt32, 0x51, CODE32, A(irq51), 0x8e, 0
        SETGATE idt32, 0x62, CODE32, A(irq62), 0x8f, 0
        SETGATE idt32, 2, CODE32, A(nmi), 0x8e, 0
        mov     dword [APIC + 0xf0], 0x1ff
        mov     eax, [APIC + 0x20]
        CHECK   "APIC id", eax, 0
        mov     eax, [APIC + 0x30]
        and     eax, 0xff
        CHECK   "version", eax, 0x14

        ; --- acceptance
        SELF_IPI 0x40
        mov     eax, [APIC + 0x220]
        CHECK   "with IF clear it waits in IRR", eax, 1
        CHECK   "and is not taken", dword [count40], 0
        sti
        CHECK   "STI holds it back for one instruction", dword [shadowed], 0
        nop
        CHECK   "then it is taken", dword [count40], 1
        mov     eax, [APIC + 0x220]
        CHECK   "and has left IRR", eax, 0
        cli
        SELF_IPI 0x40
        SELF_IPI 0x51
        SELF_IPI 0x62
        mov     dword [order], 0
        sti
        nop
        nop
        cli
        CHECK   "the highest vector first", dword [order], 0x625140
        mov     dword [APIC + 0x80], 0x50
        SELF_IPI 0x51
        SELF_IPI 0x40
        SELF_IPI 0x62
        mov     dword [order], 0
        sti
        nop
        cli
        CHECK   "TPR holds its own class and below back", dword [order], 0x62
        mov     dword [APIC + 0x80], 0
        sti
        nop
        cli
        CHECK   "until it falls", dword [order], 0x625140
        ; nested: 62h is a trap gate, IF stays set, so 40h would interrupt it but for the priority
        mov     dword [order], 0
        mov     dword [nest], 1
        SELF_IPI 0x62
        sti
        nop
        cli
        mov     dword [nest], 0
        CHECK   "a lower vector waits for the end of interrupt", dword [order], 0x6240
        CHECK   "while the handler ran", dword [seen_in_62], 0

        ; --- HLT
        mov     dword [order], 0
        SELF_IPI 0x40
        sti
        hlt
        cli
        CHECK   "STI; HLT wakes", dword [order], 0x40

        ; --- NMI
        mov     dword [APIC + 0x300], 0x44400
        AWAIT   count_nmi, 1
        CHECK   "NMI ignores IF", dword [count_nmi], 1
        mov     dword [nmi_again], 1
        mov     dword [APIC + 0x300], 0x44400
        nop
        nop
        CHECK   "a second one waits for IRET", dword [nmi_depth_max], 1
        CHECK   "and then comes", dword [count_nmi], 3

        ; --- timer
        mov     dword [order], 0
        mov     dword [count40], 0
        mov     dword [APIC + 0x3e0], 0xb
        mov     dword [APIC + 0x320], 0x40
        mov     dword [APIC + 0x380], 50000
        mov     eax, [APIC + 0x390]
        cmp     eax, 50000
        setbe   al
        movzx   eax, al
        CHECK   "the count runs down", eax, 1
        sti
        AWAIT   count40, 1
        cli
        CHECK   "one-shot", dword [count40], 1
        mov     eax, [APIC + 0x390]
        CHECK   "stays at zero", eax, 0
        mov     dword [APIC + 0x320], 0x20040
        mov     dword [APIC + 0x380], 20000
        sti
        AWAIT   count40, 6
        cli
        mov     eax, [count40]
        cmp     eax, 6
        setae   al
        movzx   eax, al
        CHECK   "periodic", eax, 1
        mov     dword [APIC + 0x380], 0
        mov     dword [APIC + 0x320], 0x10040
        mov     dword [count40], 0
        sti
        nop
        cli
        mov     dword [count40], 0
        ; a masked timer does not fire
        mov     dword [APIC + 0x380], 1000
        mov     ecx, 10000
.spin:  dec     ecx
        jnz     .spin
        sti
        nop
        cli
        CHECK   "masked", dword [count40], 0

        ; --- TSC deadline
        mov     eax, 1
        cpuid
        shr     ecx, 24
        and     ecx, 1
        jz      no_deadline
        mov     dword [APIC + 0x320], 0x40040
        rdtsc
        inc     edx                                     ; seconds away, so that it does not pass meanwhile
        mov     ecx, 0x6e0
        mov     esi, eax
        wrmsr
        rdmsr
        CHECK   "the deadline reads back", eax, esi
        rdtsc
        add     eax, 50000
        adc     edx, 0
        mov     esi, eax
        wrmsr
        sti
.sleep: hlt
        cmp     dword [count40], 1
        jb      .sleep
        cli
        CHECK   "TSC deadline", dword [count40], 1
        rdtsc
        sub     eax, esi
        sar     eax, 31
        CHECK   "not before its time", eax, 0
        mov     ecx, 0x6e0
        rdmsr
        CHECK   "and is disarmed", eax, 0
        mov     eax, 1
        xor     edx, edx
        wrmsr
        sti
        nop
        cli
        CHECK   "a time that has passed fires at once", dword [count40], 2
no_deadline:

        ; --- errors
        mov     dword [APIC + 0x280], 0
        SELF_IPI 3
        mov     dword [APIC + 0x280], 0
        mov     eax, [APIC + 0x280]
        and     eax, 0x20
        CHECK   "an illegal vector is an error", eax, 0x20

        ; --- MSRs
        mov     ecx, 0x802
        FAULT   "#GP from an x2APIC register in xAPIC mode", 13 << 16, rdmsr
        mov     ecx, 0x1b
        rdmsr
        mov     ebx, eax
        and     eax, 0xd00
        CHECK   "IA32_APIC_BASE: enabled, boot processor", eax, 0x900
        mov     eax, 1
        cpuid
        test    ecx, 1 << 21
        jz      no_x2apic
        mov     eax, ebx
        or      eax, 0x400
        xor     edx, edx
        mov     ecx, 0x1b
        wrmsr
        mov     ecx, 0x802
        rdmsr
        CHECK   "x2APIC id", eax, 0
        mov     ecx, 0x80d
        rdmsr
        CHECK   "logical x2APIC id", eax, 1
        mov     dword [order], 0
        mov     ecx, 0x83f
        mov     eax, 0x51
        xor     edx, edx
        wrmsr
        mov     dword [x2apic], 1
        sti
        nop
        cli
        CHECK   "self IPI register", dword [order], 0x51
        mov     ecx, 0x80b
        mov     eax, 1
        FAULT   "#GP from EOI of something", 13 << 16, wrmsr
        mov     ecx, 0x80e
        FAULT   "#GP from DFR, which is not there", 13 << 16, rdmsr
        mov     ecx, 0x1b
        mov     eax, ebx
        xor     edx, edx
        FAULT   "#GP from x2APIC straight to xAPIC", 13 << 16, wrmsr
no_x2apic:
        mov     eax, ebx
        and     eax, ~0xc00
        xor     edx, edx
        mov     ecx, 0x1b
        wrmsr
        mov     eax, 1
        cpuid
        shr     edx, 9
        and     edx, 1
        CHECK   "a disabled APIC is not in CPUID", edx, 0
        jmp     finish32

        align 4
count40:  dd 0
count_nmi: dd 0
nmi_again: dd 0
nmi_depth: dd 0
nmi_depth_max: dd 0
order:    dd 0
shadowed: dd 0
nest:     dd 0
seen_in_62: dd 0
x2apic:   dd 0

%macro end_of_interrupt 0
        cmp     dword [x2apic], 0
        jne     %%msr
        mov     dword [APIC + 0xb0], 0
        jmp     %%done
%%msr:  pushad
        mov     ecx, 0x80b
        xor     eax, eax
        xor     edx, edx
        wrmsr
        popad
%%done:
%endmacro

irq40:  inc     dword [count40]
        shl     dword [order], 8
        or      byte [order], 0x40
        end_of_interrupt
        iretd
irq51:  shl     dword [order], 8
        or      byte [order], 0x51
        end_of_interrupt
        iretd
irq62:  shl     dword [order], 8
        or      byte [order], 0x62
        cmp     dword [nest], 0
        je      .end
        SELF_IPI 0x40
        nop
        mov     eax, [order]
        xor     eax, 0x62
        mov     [seen_in_62], eax
.end:   cli
        end_of_interrupt
        iretd
nmi:    inc     dword [count_nmi]
        inc     dword [nmi_depth]
        push    eax
        mov     eax, [nmi_depth]
        cmp     eax, [nmi_depth_max]
        jb      .less
        mov     [nmi_depth_max], eax
.less:  pop     eax
        cmp     dword [nmi_again], 0
        je      .end
        mov     dword [nmi_again], 0
        mov     dword [APIC + 0x300], 0x44400
        nop
.end:   dec     dword [nmi_depth]
        iretd

        protected_tables
%include "end.inc"
