; KVM's interface: its leaves and registers, the clock, ends of interrupts that need no register, hypercalls, and the kick out of a halt.

%include "start.inc"
%include "protected.inc"
%define MODE 32

APIC    equ 0xfee00000
CLOCK   equ 0x30000
EOI_BIT equ 0x31000
STEAL   equ 0x32000

%macro SELF_IPI 1
        mov     dword [APIC + 0x300], 0x44000 | (%1)
%endmacro
; WRITE register, upper half, lower half
%macro WRITE 3
        mov     ecx, %1
        mov     edx, %2
        mov     eax, %3
        wrmsr
%endmacro
; HYPERCALL number, first to fourth argument; the answer is in EAX
%macro HYPERCALL 5
        mov     eax, %1
        mov     ebx, %2
        mov     ecx, %3
        mov     edx, %4
        mov     esi, %5
        vmcall
%endmacro

guest:  to_protected
        SETGATE idt32, 0x40, CODE32, A(irq40), 0x8e, 0
        SETGATE idt32, 0x51, CODE32, A(irq51), 0x8e, 0
        mov     dword [APIC + 0xf0], 0x1ff
        mov     eax, 0x40000000
        cpuid
        CHECK   "the signature", ebx, 'KVMK'
        mov     eax, 0x40000001
        cpuid
        and     eax, 0x01000aeb
        CHECK   "what is offered", eax, 0x01000aeb

        ; --- the clock
        WRITE   0x4b564d01, 0, CLOCK | 1
        CHECK   "its version is even", dword [CLOCK], 2
        CHECK   "a tick is a nanosecond", dword [CLOCK + 24], 0x80000000
        movzx   eax, word [CLOCK + 28]
        CHECK   "shifted by one, and stable", eax, 0x0101
        mov     ebx, [CLOCK + 16]
        CHECK   "the counter has not been set yet", dword [CLOCK + 8], ebx
        WRITE   0x10, 0x100, 0                          ; the time stamp counter leaps
        CHECK   "the page follows a leap of the counter", dword [CLOCK + 12], 0x100
        mov     eax, [CLOCK + 20]
        shr     eax, 4
        CHECK   "in which no time passes", eax, 0
        mov     ecx, 0x12
        rdmsr
        CHECK   "the old number is the same register", eax, CLOCK | 1
        WRITE   0x4b564d01, 0xff, 0xfffff001            ; where no memory is: nothing happens
        WRITE   0x4b564d00, 0, CLOCK + 0x100
        cmp     dword [CLOCK + 0x104], 1500000000
        setae   al
        movzx   eax, al
        CHECK   "the calendar", eax, 1
        mov     ecx, 0x4b564d03
        xor     edx, edx
        mov     eax, STEAL | 3
        FAULT   "#GP from a reserved bit of steal time", 13 << 16, wrmsr
        WRITE   0x4b564d03, 0, STEAL | 1
        movzx   eax, byte [STEAL + 16]
        CHECK   "a running CPU does not say that it waits", eax, 0
        mov     ecx, 0x4b564d02
        FAULT   "#GP from asynchronous page faults, which are not offered", 13 << 16, rdmsr

        ; --- ends of interrupts
        WRITE   0x4b564d04, 0, EOI_BIT | 1
        SELF_IPI 0x40
        sti
        nop
        cli
        CHECK   "the handler found the bit", dword [by_bit], 1
        CHECK   "and its interrupt is over", dword [APIC + 0x120], 0
        mov     ecx, 1000
.again: push    ecx
        SELF_IPI 0x40
        sti
        nop
        cli
        pop     ecx
        loop    .again
        CHECK   "a thousand of them", dword [count40], 1001
        SELF_IPI 0x40
        SELF_IPI 0x51
        sti
        nop
        nop
        cli
        CHECK   "no bit while another waits", dword [by_register51], 1
        CHECK   "which then has its turn", dword [count40], 1002
        mov     dword [sends_51], 1
        SELF_IPI 0x40
        sti
        nop
        nop
        cli
        CHECK   "a request meanwhile takes the bit away", dword [by_register40], 1
        CHECK   "so that it waits for the register's write", dword [count51], 2
        CHECK   "nothing is in service", dword [APIC + 0x120], 0
        WRITE   0x4b564d04, 0, 0
        SELF_IPI 0x40
        sti
        nop
        cli
        CHECK   "switched off, it is not offered", dword [by_register40], 2

        ; --- hypercalls
        HYPERCALL 1234, 0, 0, 0, 0
        CHECK   "an unknown one", eax, -1000
        HYPERCALL 10, 1, 0, 0, 0x40
        CHECK   "an interrupt to CPU 0", eax, 1
        mov     eax, [APIC + 0x220]
        CHECK   "has arrived", eax, 1
        sti
        nop
        cli
        HYPERCALL 10, 0xfffffffe, 0xffffffff, 0, 0x40
        CHECK   "those to nobody are not counted", eax, 0
        HYPERCALL 10, 1, 0, 0, 0xc0840
        CHECK   "no shorthands", eax, -22
        HYPERCALL 5, 0, 0, 0, 0
        CHECK   "a kick", eax, 0
        hlt                                             ; with interrupts off: only the kick ends it
        CHECK   "ends the next halt", dword [count40], 1005
        mov     eax, 1234
        vmmcall
        CHECK   "AMD's instruction does the same", eax, -1000
        TRAP    "ring 3 may ask", 0x80 << 16, {ENTER3 user_call}
        CHECK   "and is not listened to", dword [answer], -1
        jmp     finish32

user_call:
        mov     eax, 1234
        vmcall
        mov     ecx, UDATA32
        mov     ds, ecx
        mov     [answer], eax
        int     0x80

irq40:  inc     dword [count40]
        cmp     dword [sends_51], 0
        je      .end
        mov     dword [sends_51], 0
        SELF_IPI 0x51
.end:   btr     dword [EOI_BIT], 0
        jc      .bit
        mov     dword [APIC + 0xb0], 0
        inc     dword [by_register40]
        iretd
.bit:   inc     dword [by_bit]
        iretd

irq51:  inc     dword [count51]
        btr     dword [EOI_BIT], 0
        jc      .bit
        mov     dword [APIC + 0xb0], 0
        inc     dword [by_register51]
.bit:   iretd

        align 4
count40:        dd 0
count51:        dd 0
by_bit:         dd 0
by_register40:  dd 0
by_register51:  dd 0
sends_51:       dd 0
answer:         dd 0

        protected_tables
%include "end.inc"
