; Microsoft's interface: its leaves and registers, the hypercall page, reference time, the synthetic interrupt controller and its timers.

%include "start.inc"
%include "protected.inc"
%define MODE 32

APIC    equ 0xfee00000
CALL_PAGE equ 0x30000
TIME    equ 0x31000
MESSAGES equ 0x32000
ASSIST  equ 0x33000
INPUT   equ 0x34000
SLOT2   equ MESSAGES + 2 * 256

; WRITE register, upper half, lower half
%macro WRITE 3
        mov     ecx, %1
        mov     edx, %2
        mov     eax, %3
        wrmsr
%endmacro
; Waits for `cell` to reach a value.
%macro AWAIT 2
        mov     ecx, 200000000
%%wait: cmp     dword [%1], %2
        jae     %%there
        dec     ecx
        jnz     %%wait
%%there:
%endmacro
; HYPERCALL upper and lower half of the input value, address or first parameter, second; the status is in EAX
%macro HYPERCALL 4
        mov     edx, %1
        mov     eax, %2
        xor     ebx, ebx
        mov     ecx, %3
        xor     edi, edi
        mov     esi, %4
        call    CALL_PAGE
%endmacro
; One-shot timer 1 with a message to source 2, 50 µs from now.
%macro SHOOT 0
        mov     ecx, 0x40000020
        rdmsr
        add     eax, 500
        adc     edx, 0
        mov     ecx, 0x400000b3
        wrmsr
%endmacro

guest:  to_protected
        SETGATE idt32, 0x40, CODE32, A(irq40), 0x8e, 0
        SETGATE idt32, 0x51, CODE32, A(irq51), 0x8e, 0
        mov     dword [APIC + 0xf0], 0x1ff
        mov     eax, 0x40000000
        cpuid
        CHECK   "the signature", ebx, 'Micr'
        mov     eax, 0x40000001
        cpuid
        CHECK   "the interface", eax, 'Hv#1'
        mov     eax, 0x40000100
        cpuid
        CHECK   "KVM's leaves are behind", ebx, 'KVMK'

        ; --- hypercalls
        mov     eax, 1234
        vmcall
        CHECK   "without a name calls are KVM's", eax, -1000
        WRITE   0x40000001, 0, CALL_PAGE | 1
        mov     ecx, 0x40000001
        rdmsr
        CHECK   "nor is there a page", eax, 0
        WRITE   0x40000000, 0x81000000, 1
        WRITE   0x40000001, 0, CALL_PAGE | 1
        CHECK   "the page", dword [CALL_PAGE], 0xc3c1010f
        HYPERCALL 0, 0x7777, 0, 0
        CHECK   "an unknown call", eax, 2
        HYPERCALL 0, 0x1000b, 0x40, 1
        CHECK   "an interrupt by parameters in registers", eax, 0
        mov     eax, [APIC + 0x220]
        CHECK   "has arrived", eax, 1
        sti
        nop
        cli
        HYPERCALL 0, 0x1000b, 5, 1
        CHECK   "not of an exception's vector", eax, 3
        mov     dword [INPUT + 8], 1
        HYPERCALL 0, 2, INPUT, 0
        CHECK   "a flush of everybody", eax, 0
        HYPERCALL 0, 2, INPUT + 4, 0
        CHECK   "not with crooked parameters", eax, 4
        HYPERCALL 0, 2, 0xf0000000, 0
        CHECK   "nor with some that are nowhere", eax, 3
        HYPERCALL 3, 3, INPUT, 0
        CHECK   "a list of pages", eax, 0
        CHECK   "all of which are done", edx, 3
        mov     dword [INPUT + 8], 0
        mov     dword [INPUT + 16], 0           ; a sparse set of one bank
        mov     dword [INPUT + 24], 1
        mov     dword [INPUT + 32], 1
        HYPERCALL 0, 0x20013, INPUT, 0
        CHECK   "a flush of a set", eax, 0
        HYPERCALL 0, 0x40013, INPUT, 0
        CHECK   "of as many banks as it says", eax, 3
        HYPERCALL 0, 0x1005d, 1, 0
        CHECK   "nobody has such a connection", eax, 0x12

        ; --- registers and time
        mov     ecx, 0x40000002
        rdmsr
        CHECK   "CPU 0", eax, 0
        mov     ecx, 0x40000022
        rdmsr
        CHECK   "the counter's frequency", eax, 1000000000
        mov     ecx, 0x40000020
        FAULT   "#GP from setting the time", 13 << 16, wrmsr
        WRITE   0x40000021, 0, TIME | 1
        CHECK   "the page of time is of use", dword [TIME], 1
        CHECK   "its scale", dword [TIME + 12], 0x28f5c28
        mov     ecx, 0x40000020
        rdmsr
        mov     ebx, eax
        rdtsc                                   ; by the page
        push    edx
        mul     dword [TIME + 12]               ; lower half of the counter × upper half of the scale
        mov     esi, edx
        pop     eax
        mul     dword [TIME + 12]
        add     eax, esi                        ; less than two units too little
        add     eax, [TIME + 16]
        sub     eax, ebx
        add     eax, 2
        cmp     eax, 10000000                   ; a second later, on a very busy host
        setb    al
        movzx   eax, al
        CHECK   "it and the register agree", eax, 1
        WRITE   0x40000104, 0, 0x4444
        mov     ecx, 0x40000104
        rdmsr
        CHECK   "what a crashed guest says", eax, 0x4444

        ; --- timers
        WRITE   0x400000b1, 0, 10000            ; every millisecond
        WRITE   0x400000b0, 0, 0x40 << 4 | 0x1003
        sti
        AWAIT   count40, 4
        cli
        WRITE   0x400000b0, 0, 0
        mov     eax, [count40]
        cmp     eax, 4
        setae   al
        movzx   eax, al
        CHECK   "a periodic timer with plain interrupts", eax, 1
        mov     ecx, 0x40000092
        xor     edx, edx
        mov     eax, 5
        FAULT   "#GP from a source with an exception's vector", 13 << 16, wrmsr
        WRITE   0x40000092, 0, 0x20051          ; its end is its own
        WRITE   0x40000083, 0, MESSAGES | 1
        WRITE   0x40000080, 0, 1
        WRITE   0x400000b2, 0, 2 << 16 | 8      ; writing the count starts it
        SHOOT
        sti
        AWAIT   count51, 1
        cli
        CHECK   "a timer's interrupt", dword [count51], 1
        CHECK   "is over by itself", dword [APIC + 0x120], 0
        CHECK   "its message", dword [SLOT2], 0x80000010
        CHECK   "is of timer 1", dword [SLOT2 + 16], 1
        mov     ecx, 0x400000b2
        rdmsr
        CHECK   "which has stopped", eax, 2 << 16 | 8
        SHOOT                                   ; the message is still there
        sti
.full:  test    byte [SLOT2 + 5], 1
        jz      .full
        cli
        CHECK   "a full slot is marked", dword [count51], 1
        mov     dword [SLOT2], 0
        sti
        WRITE   0x40000084, 0, 0                ; end of message
        AWAIT   count51, 2
        cli
        CHECK   "and the message comes when there is room", dword [count51], 2
        CHECK   "as such", dword [SLOT2], 0x80000010

        ; --- the assist page
        WRITE   0x40000073, 0, ASSIST | 1
        mov     dword [APIC + 0x300], 0x44040
        sti
        nop
        cli
        CHECK   "an end of interrupt by a bit", dword [by_bit], 1
        CHECK   "is one", dword [APIC + 0x120], 0
        WRITE   0x40000073, 0, 0
        WRITE   0x40000071, 0, 0x44040          ; the command register, to itself
        sti
        nop
        cli
        CHECK   "the command register by its synthetic number", dword [by_bit], 1
        CHECK   "and the end by its", dword [APIC + 0x120], 0
        jmp     finish32

irq40:  push    eax
        push    ecx
        push    edx
        inc     dword [count40]
        btr     dword [ASSIST], 0
        jc      .bit
        WRITE   0x40000070, 0, 0
        jmp     .end
.bit:   inc     dword [by_bit]
.end:   pop     edx
        pop     ecx
        pop     eax
        iretd

irq51:  inc     dword [count51]
        iretd

        align 4
count40:        dd 0
count51:        dd 0
by_bit:         dd 0

        protected_tables
%include "end.inc"
