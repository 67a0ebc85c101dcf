; Debug registers and traps: single step and what it steps over, instruction, data and I/O breakpoints, RF, general detection, INT1,
; DR4 and DR5, and the order of traps.

%include "start.inc"
%include "protected.inc"
%define MODE 32

; A handler that notes each #DB and goes on.
%macro DR6_CLEAR 0
        mov     eax, 0xffff0ff0
        mov     dr6, eax
%endmacro
%macro TF_ON 0
        pushfd
        or      dword [esp], 0x100
        popfd
%endmacro
%macro TF_OFF 0
        pushfd
        and     dword [esp], ~0x100
        popfd
%endmacro
%macro FRESH 0
        mov     dword [count], 0
        mov     dword [first], 0
        mov     dword [last], 0
        DR6_CLEAR
%endmacro
; WHY "name", wanted low bits of DR6 at the last #DB
%macro WHY 2
        mov     eax, [last_dr6]
        and     eax, 0xe00f
        CHECK   %1, eax, %2
%endmacro

guest:  to_protected
        SETGATE idt32, 1, CODE32, A(on_debug), 0x8e, 0
        SETGATE idt32, 0x91, CODE32, A(just_return), 0x8e, 0

        ; --- single step
        FRESH
        TF_ON
step0:  nop
step1:  nop
        TF_OFF
step2:  nop
        CHECK   "the first trap is behind the first instruction after POPF", dword [first], step1
        CHECK   "the last one behind the POPF that clears TF", dword [last], step2
        CHECK   "one for each instruction", dword [count], 5
        WHY     "DR6.BS", 0x4000
        FRESH
        TF_ON
        int     0x91
behind_int:
        nop
        TF_OFF
        CHECK   "INT n is not stepped into, nor trapped behind", dword [first], behind_int + 1
        FRESH
        TF_ON
        hlt
behind_hlt:
        nop
        TF_OFF
        CHECK   "a step over HLT ends the halt", dword [first], behind_hlt
        CHECK   "and goes on behind it", dword [count], 5
        FRESH
        mov     ebx, ss
        TF_ON
        mov     ss, ebx
        nop
behind_ss:
        TF_OFF
        CHECK   "MOV SS holds the trap back by one instruction", dword [first], behind_ss
        FRESH
        mov     ecx, 3
        mov     esi, 0x30000
        mov     edi, 0x31000
        TF_ON
        rep     movsb
        TF_OFF
        CHECK   "REP traps after each turn", dword [count], 6

        ; --- instruction breakpoints
        FRESH
        mov     eax, break_at
        mov     dr0, eax
        mov     eax, 0x402
        mov     dr7, eax
        xor     ebx, ebx
        nop
break_at:
        inc     ebx
        CHECK   "a breakpoint is before its instruction", dword [last], break_at
        CHECK   "RF in the returned flags lets it run", ebx, 1
        CHECK   "once", dword [count], 1
        CHECK   "RF is not set in what #DB pushes", dword [last_rf], 0
        WHY     "DR6.B0", 1
        ; two registers on the same instruction, one not enabled: both show
        FRESH
        mov     eax, break_2
        mov     dr0, eax
        mov     dr1, eax
        mov     eax, 0x402
        mov     dr7, eax
        nop
break_2:
        nop
        WHY     "a disabled register that matches shows, too", 3
        xor     eax, eax
        mov     dr7, eax

        ; --- data breakpoints
        FRESH
        mov     eax, 0x30010
        mov     dr1, eax
        mov     eax, 0x400 | 1 << 3 | 1 << 20 | 3 << 22         ; write, 4 bytes
        mov     dr7, eax
        mov     eax, [0x30010]
        CHECK   "a read does not meet a write breakpoint", dword [count], 0
        mov     dword [0x3000c], 1
        CHECK   "nor a write beside it", dword [count], 0
        mov     byte [0x30013], 1
data_1: CHECK   "a write to its last byte does", dword [count], 1
        CHECK   "the trap is behind the instruction", dword [last], data_1
        WHY     "DR6.B1", 2
        FRESH
        mov     dword [0x3000e], 0x12345678
data_2: CHECK   "a write that overlaps", dword [last], data_2
        CHECK   "has been done", dword [0x3000e], 0x12345678
        FRESH
        mov     eax, 0x400 | 1 << 3 | 3 << 20 | 0 << 22         ; read and write, 1 byte
        mov     dr7, eax
        mov     eax, [0x30010]
data_3: CHECK   "a read meets a read breakpoint", dword [last], data_3
        FRESH
        push    dword [0x30010]
data_4: pop     eax
        CHECK   "PUSH of it, too", dword [last], data_4
        FRESH
        mov     ecx, 8
        mov     esi, 0x3000c
        mov     edi, 0x31000
        rep     movsb
        CHECK   "REP MOVSB stops behind the turn that met it", dword [seen_ecx], 3
        CHECK   "and goes on", ecx, 0
        xor     eax, eax
        mov     dr7, eax
        ; across a page
        FRESH
        mov     eax, 0x30ffc
        mov     dr2, eax
        mov     eax, 0x400 | 1 << 5 | 1 << 24 | 3 << 26
        mov     dr7, eax
        mov     dword [0x30ffe], 0
        WHY     "a write across pages", 4
        xor     eax, eax
        mov     dr7, eax

        ; --- I/O breakpoints
        FRESH
        mov     eax, cr4
        or      eax, 8
        mov     cr4, eax
        mov     eax, 0xe8
        mov     dr3, eax
        mov     eax, 0x400 | 1 << 7 | 2 << 28
        mov     dr7, eax
        out     0xe8, al
io_1:   nop
        CHECK   "an I/O breakpoint is behind its instruction", dword [last], io_1
        WHY     "DR6.B3", 8
        xor     eax, eax
        mov     dr7, eax
        FAULT   "#UD from DR4 with CR4.DE", 6 << 16, {mov eax, dr4}
        mov     eax, cr4
        and     eax, ~8
        mov     cr4, eax
        mov     eax, dr4
        mov     edx, dr6
        CHECK   "DR4 is DR6 without CR4.DE", eax, edx

        ; --- general detection
        FRESH
        mov     eax, 0x400 | 1 << 13
        mov     dr7, eax
detect: mov     eax, dr0
        CHECK   "GD traps before an access to a debug register", dword [last], detect
        WHY     "DR6.BD", 0x2000
        mov     eax, dr7
        and     eax, 0x2000
        CHECK   "GD is cleared on the way", eax, 0

        ; --- INT1
        FRESH
        db      0xf1
icebp:  CHECK   "INT1 traps behind itself", dword [last], icebp
        mov     eax, [last_dr6]
        and     eax, 0xe00f
        CHECK   "without a bit in DR6", eax, 0

        ; --- what the registers hold
        xor     eax, eax
        mov     dr6, eax
        mov     eax, dr6
        and     eax, 0xfffeffff
        CHECK   "DR6's fixed ones", eax, 0xfffe0ff0
        xor     eax, eax
        mov     dr7, eax
        mov     eax, dr7
        CHECK   "DR7's fixed one", eax, 0x400
        jmp     finish32

        align 4
count:    dd 0
first:    dd 0
last:     dd 0
last_dr6: dd 0
last_rf:  dd 0
seen_ecx: dd 0

on_debug:
        push    eax
        inc     dword [count]
        mov     eax, [esp + 4]
        mov     [last], eax
        cmp     dword [first], 0
        jne     .seen
        mov     [first], eax
.seen:  mov     eax, [esp + 12]
        and     eax, 0x10000
        mov     [last_rf], eax
        mov     [seen_ecx], ecx
        mov     eax, dr6
        mov     [last_dr6], eax
        test    eax, 0xf
        jz      .end
        or      dword [esp + 12], 0x10000       ; RF: do not meet the same breakpoint again
.end:   DR6_CLEAR
        pop     eax
        iretd
just_return:
        iretd

        protected_tables
%include "end.inc"
