; Real mode: the interrupt table, faults through it, 64 KiB limits, wrap of offsets, unreal mode, what is undefined here, and the way back
; from protected mode.

%include "start.inc"
%include "protected.inc"
%define MODE 16

; RFAULT "name", vector, instruction: its vector is called with the address of the instruction
%macro RFAULT 3+
        mov     word [0x500], 0xffff
        mov     word [resume16], %%after
        mov     [resume_sp], sp
%%at:   %3
%%after:
        movzx   eax, word [0x500]
        cmp     word [0x502], %%at
        je      %%here
        or      eax, 0x80000000
%%here: CHECK   %1, eax, %2
%endmacro
%macro RTRAP 3+
        mov     word [0x500], 0xffff
        mov     word [resume16], %%after
        mov     [resume_sp], sp
        %3
%%after:
        movzx   eax, word [0x500]
        CHECK   %1, eax, %2
%endmacro

guest:  xor     ax, ax                  ; vectors 0 to 31
        mov     es, ax
        xor     di, di
        mov     bx, stubs16
        mov     cx, 32
.fill:  mov     ax, bx
        stosw
        xor     ax, ax
        stosw
        add     bx, 8
        loop    .fill
        mov     word [0x60 * 4], int60
        mov     word [0x60 * 4 + 2], 0

        xor     cx, cx
        RFAULT  "#DE", 0, div cx
        RTRAP   "INT3", 3, int3
        mov     al, 0x7f
        inc     al
        RTRAP   "INTO", 4, into
        mov     ax, 9
        RFAULT  "#BR", 5, bound ax, [bounds16]
        RFAULT  "#UD", 6, ud2
        RFAULT  "#UD from LLDT", 6, lldt ax
        RFAULT  "#UD from ARPL", 6, {arpl ax, bx}
        RFAULT  "#UD from SYSCALL", 6, syscall
        RFAULT  "#GP from SYSENTER", 13, sysenter
        mov     bx, 0xffff
        RFAULT  "#GP from a word at FFFFh", 13, {mov ax, [bx]}
        mov     bx, 0xfffe
        mov     ax, [bx]
        RFAULT  "#GP from a doubleword at FFFEh", 13, {mov eax, [bx]}
        mov     bp, 0xffff
        RFAULT  "#SS from a word at SS:FFFFh", 12, {mov ax, [bp]}
        mov     ebx, 0x10000
        RFAULT  "#GP past 64 KiB", 13, {mov al, [ebx]}
        mov     cx, sp
        mov     sp, 0
        push    cx
        mov     ax, sp
        mov     sp, cx
        movzx   eax, ax
        CHECK   "PUSH at SP 0 wraps", eax, 0xfffe
        mov     dx, 0x1234
        mov     cx, 7
        int     0x60
        movzx   eax, dx
        CHECK   "INT and IRET", eax, 0x4321
        pushf
        pop     ax
        and     eax, 0xf000
        CHECK   "bits 12 to 15 of the flags start clear", eax, 0
        push    word 0x7000
        popf
        pushf
        pop     ax
        movzx   eax, ax
        and     eax, 0xf000
        CHECK   "IOPL and NT can be set here", eax, 0x7000
        push    word 0
        popf
        ; the address wraps at 64 KiB
        mov     byte [0x0010], 0xa5
        mov     bx, 0xffff
        mov     al, [bx + 0x11]
        movzx   eax, al
        CHECK   "an offset wraps", eax, 0xa5
        mov     ax, 0xffff
        mov     es, ax
        mov     byte [es:0x20], 0x5a
        mov     byte [0x0010], 0
        mov     al, [es:0x20]
        movzx   eax, al
        CHECK   "FFFF:0020 is above 1 MiB with A20 open", eax, 0x5a
        ; IDT limit
        lidt    [short16]
        RTRAP   "INT past the table's limit is #GP", 13, int 0x60
        lidt    [idt_real]
        ; a far call and return
        call    0:far16
        movzx   eax, ax
        CHECK   "far call", eax, 0x77

        ; --- unreal mode
        lgdt    [gdt_pointer]
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        mov     bx, DATA32
        mov     fs, bx
        and     al, ~1
        mov     cr0, eax
        mov     ebx, 0x200000
        mov     dword [fs:ebx], 0x600df00d
        mov     eax, [fs:ebx]
        CHECK   "unreal mode: 4 GiB through FS", eax, 0x600df00d
        mov     ax, 0x10
        mov     fs, ax
        mov     eax, [fs:ebx - 0x100]
        CHECK   "a new selector keeps the limit", eax, 0x600df00d
        ; 16-bit protected mode and back
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        jmp     CODE16:in16
in16:   mov     ax, DATA16
        mov     ds, ax
        mov     es, ax
        mov     fs, ax
        mov     ss, ax
        mov     word [0x600], 0x1616
        mov     eax, cr0
        and     al, ~1
        mov     cr0, eax
        jmp     0:back
back:   xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     es, ax
        movzx   eax, word [0x600]
        CHECK   "16-bit protected mode", eax, 0x1616
        mov     ebx, 0x10000
        mov     fs, ax
        RFAULT  "and its limit of 64 KiB stays in FS", 13, {mov al, [fs:ebx]}

        jmp     finish16

        align 4
resume16: dw 0
resume_sp: dw 0
bounds16: dw -2, 8
short16:  dw 0x60 * 4 - 1
          dd 0

%macro stub16 1
        align 8
        push    word %1
        jmp     caught16
%endmacro
        align 8
stubs16:
%assign v 0
%rep 32
        stub16  v
  %assign v v + 1
%endrep
caught16:
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        pop     word [0x500]
        pop     word [0x502]
        mov     sp, [resume_sp]
        jmp     [resume16]
int60:  mov     dx, 0x4321
        iret
far16:  mov     ax, 0x77
        retf

        protected_tables
        bits 16
%include "end.inc"
