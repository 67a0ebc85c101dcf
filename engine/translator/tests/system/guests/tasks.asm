; Hardware task switches: JMP, CALL, IRET and task gates, TSSs of 32 and 16 bits, busy bits, NT, back links, CR0.TS, CR3, the T bit,
; and what a switch to a bad TSS raises.

%include "start.inc"
%include "protected.inc"
%define MODE 32

TSS_B   equ 0x23000
TSS_C   equ 0x24000             ; 16 bits

; TASK32 at, eip, esp
%macro TASK32 3
        mov     edi, %1
        mov     ecx, 26
        xor     eax, eax
        rep     stosd
        mov     dword [%1 + 28], 0x123000               ; CR3, not looked at while paging is off
        mov     dword [%1 + 32], %2
        mov     dword [%1 + 36], 2
        mov     dword [%1 + 40], 0xa0a0a0a0             ; EAX
        mov     dword [%1 + 56], %3                     ; ESP
        mov     dword [%1 + 72], DATA32
        mov     dword [%1 + 76], CODE32
        mov     dword [%1 + 80], DATA32
        mov     dword [%1 + 84], DATA32
        mov     dword [%1 + 88], DATA32
        mov     dword [%1 + 92], 0
        mov     word [%1 + 102], 104
%endmacro

guest:  to_protected
        SETGDT  T0, TSS_B, 103, 0x89, 0
        SETGDT  T1, TSS_C, 43, 0x81, 0

        ; --- CALL and IRET
        TASK32  TSS_B, task_b, 0x5000
        mov     ebx, 0xb0b0b0b0
        clts
        call    T0:0
        CHECK   "CALL to a task and IRET from it", ebx, 0xb0b0b0b0
        CHECK   "it saw its own EAX", dword [seen_eax], 0xa0a0a0a0
        CHECK   "and its own stack", dword [seen_esp], 0x5000
        CHECK   "NT was set in it", dword [seen_flags], 0x4002
        CHECK   "its back link is the caller", dword [TSS_B], TSS
        mov     eax, cr0
        and     eax, 8
        CHECK   "the return set TS again", eax, 8
        CHECK   "TS was set on the way in", dword [seen_cr0], 8
        movzx   eax, byte [gdt + TSS + 5]
        CHECK   "the caller is busy", eax, 0x8b
        movzx   eax, byte [gdt + T0 + 5]
        CHECK   "the task that has returned is not", eax, 0x89
        pushfd
        pop     eax
        and     eax, 0x4000
        CHECK   "NT is clear here", eax, 0
        CHECK   "the caller's EBX lies in its TSS", dword [TSS_AT + 52], 0xb0b0b0b0
        CHECK   "the task's EIP is behind its IRET", dword [TSS_B + 32], task_b_again
        and     dword [TSS_B + 36], 0xffff
        CHECK   "and its saved NT is clear", dword [TSS_B + 36], 0x46
        call    T0:0
        CHECK   "a second CALL goes on behind the IRET", dword [seen_count], 2

        ; --- JMP there and JMP back
        TASK32  TSS_B, task_jump, 0x5000
        jmp     T0:0
        movzx   eax, byte [gdt + TSS + 5]
        CHECK   "JMP back made this task busy", eax, 0x8b
        movzx   eax, byte [gdt + T0 + 5]
        CHECK   "and the other free", eax, 0x89
        CHECK   "NT was not set by JMP", dword [seen_flags], 2
        CHECK   "the other was busy meanwhile", dword [seen_type], 0x8b
        CHECK   "and this one free", dword [seen_type2], 0x89

        ; --- through a task gate, in the GDT and in the IDT
        TASK32  TSS_B, task_b, 0x5000
        SETGATE gdt, T2 / 8, T0, 0, 0x85, 0
        mov     dword [seen_count], 0
        call    T2:0
        CHECK   "CALL through a task gate", dword [seen_count], 1
        TASK32  TSS_B, task_b, 0x5000
        SETGATE idt32, 0x91, T0, 0, 0x85, 0
        int     0x91
        CHECK   "INT through a task gate", dword [seen_count], 2
        TASK32  TSS_B, task_error, 0x5000
        SETGATE idt32, 13, T0, 0, 0x85, 0
        mov     eax, 0x108
go_on_at:
        mov     fs, ax
        SETGATE idt32, 13, CODE32, A(stubs32) + 13 * 16, 0x8e, 0
        CHECK   "a fault through a task gate pushes its error code", dword [seen_eax], 0x108
        CHECK   "the saved EIP is the instruction's", dword [seen_eip], go_on_at

        ; --- a 16-bit task
        mov     edi, TSS_C
        mov     ecx, 11
        xor     eax, eax
        rep     stosd
        mov     word [TSS_C + 14], task_c
        mov     word [TSS_C + 16], 2
        mov     word [TSS_C + 26], 0x4800               ; SP
        mov     word [TSS_C + 34], DATA32
        mov     word [TSS_C + 36], CODE16
        mov     word [TSS_C + 38], DATA16
        mov     word [TSS_C + 40], DATA32
        mov     dword [seen_count], 0
        mov     esi, 0x12345678
        call    T1:0
        CHECK   "CALL to a 16-bit task", dword [seen_count], 0x16
        CHECK   "the caller's registers are whole", esi, 0x12345678
        mov     eax, fs
        movzx   eax, ax
        CHECK   "and its FS is back", eax, DATA32

        ; --- bad ones
        FAULT   "#GP from CALL to a busy task", 13 << 16 | TSS, call TSS:0
        SETGDT  T0, TSS_B, 102, 0x89, 0
        FAULT   "#TS from a TSS that is too short", 10 << 16 | T0, call T0:0
        SETGDT  T0, TSS_B, 103, 0x09, 0
        FAULT   "#NP from a TSS that is not present", 11 << 16 | T0, call T0:0
        SETGDT  T0, TSS_B, 103, 0x89, 0
        mov     word [TSS_AT], T1
        pushfd
        or      dword [esp], 0x4000
        popfd
        FAULT   "#TS from IRET to a task that is not busy", 10 << 16 | T1, iretd
        pushfd
        and     dword [esp], ~0x4000
        popfd
        TASK32  TSS_B, task_b, 0x5000
        mov     word [TSS_B + 84], 0x108                ; DS
        TRAP    "#TS from a task's DS, in the new task", 10 << 16 | 0x108, call T0:0
        CHECK   "at its first instruction", dword [got_eip], task_b
        str     ax
        movzx   eax, ax
        CHECK   "with its TR", eax, T0
        ; back to the first task by hand
        mov     byte [gdt + TSS + 5], 0x89
        mov     ax, TSS
        ltr     ax
        pushfd
        and     dword [esp], ~0x4000
        popfd
        mov     byte [gdt + T0 + 5], 0x89
        TASK32  TSS_B, task_b, 0x5000
        ; --- the T bit traps at the new task's first instruction
        TASK32  TSS_B, task_b, 0x5000
        mov     word [TSS_B + 100], 1
        mov     eax, 0xffff0ff0
        mov     dr6, eax
        TRAP    "#DB from the T bit", 1 << 16, call T0:0
        CHECK   "before anything of the task has run", dword [got_eip], task_b
        mov     eax, dr6
        and     eax, 0xe00f
        CHECK   "DR6.BT says why", eax, 0x8000

        jmp     finish32

seen_eax:   dd 0
seen_esp:   dd 0
seen_flags: dd 0
seen_cr0:   dd 0
seen_count: dd 0
seen_type:  dd 0
seen_type2: dd 0
seen_eip:   dd 0

task_b: mov     [seen_eax], eax
        mov     [seen_esp], esp
        pushfd
        pop     dword [seen_flags]
        mov     eax, cr0
        and     eax, 8
        mov     [seen_cr0], eax
        clts
        inc     dword [seen_count]
        xor     eax, eax
        iretd
task_b_again:
        inc     dword [seen_count]
        iretd

task_jump:
        pushfd
        pop     dword [seen_flags]
        movzx   eax, byte [gdt + T0 + 5]
        mov     [seen_type], eax
        movzx   eax, byte [gdt + TSS + 5]
        mov     [seen_type2], eax
        jmp     TSS:0

task_error:
        pop     dword [seen_eax]
        mov     eax, [TSS_AT + 32]
        mov     [seen_eip], eax
        add     dword [TSS_AT + 32], 2                  ; over MOV FS, AX
        iretd

        bits 16
task_c: mov     dword [seen_count], 0x16
        iret
        bits 32

        protected_tables
%include "end.inc"
