; Build: floppy
; From the boot sector through protected mode and PAE paging into long mode, and what only works there: 64-bit registers,
; RIP-relative addresses, an interrupt through a 64-bit gate, SSE. Ends with LONG MODE OK (status 33) or LONG MODE BAD.

        bits 16
        org 0x7c00
        jmp     0:start

%include "real_mode.inc"

TABLES  equ 0x10000             ; PML4, PDPT, PD
IDT     equ 0x14000

start:  xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, 0x7c00
        cld
        mov     ax, 0x0202      ; the rest of the program, from the drive in dl
        mov     bx, second
        mov     cx, 0x0002
        xor     dh, dh
        int     0x13
        jc      .bad
        mov     si, m_start
        call    serial_text
        mov     ax, 0x2401      ; A20 on
        int     0x15
        cli
        lgdt    [gdt_pointer]
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        jmp     0x08:protected
.bad:   mov     al, FAILED
        jmp     exit

m_start: db "LONG MODE START", 13, 10, 0

        align 8
gdt:    dq 0
        dq 0x00cf9a000000ffff   ; 08: code, 32 bits
        dq 0x00cf92000000ffff   ; 10: data
        dq 0x00af9a000000ffff   ; 18: code, 64 bits
gdt_pointer:
        dw gdt_pointer - gdt - 1
        dd gdt

        times 510 - ($ - $$) db 0
        dw 0xaa55

second:
        bits 32
protected:
        mov     ax, 0x10
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     esp, 0x7c00

        mov     edi, TABLES     ; the first 2 MiB, one large page
        xor     eax, eax
        mov     ecx, 0x3000 / 4
        rep stosd
        mov     dword [TABLES], TABLES + 0x1003
        mov     dword [TABLES + 0x1000], TABLES + 0x2003
        mov     dword [TABLES + 0x2000], 0x83
        mov     edi, IDT
        mov     ecx, 0x1000 / 4
        rep stosd

        mov     eax, cr4
        or      eax, 0x620      ; PAE, OSFXSR, OSXMMEXCPT
        mov     cr4, eax
        mov     eax, TABLES
        mov     cr3, eax
        mov     ecx, 0xc0000080 ; EFER
        rdmsr
        or      eax, 0x100      ; LME
        wrmsr
        mov     eax, cr0
        and     eax, ~4         ; EM
        or      eax, 0x80000002 ; PG, MP
        mov     cr0, eax
        jmp     0x18:in_long

        bits 64
in_long: mov     rsi, m_entered
        call    text64

        mov     rax, 0x0123456789abcdef
        mov     rbx, 0xfedcba9876543211
        mul     rbx
        mov     rcx, 0x0121fa00ad77d742 ; the upper half of the product
        cmp     rdx, rcx
        jne     bad
        mov     r15, rax
        lea     rax, [rel value]
        mov     rax, [rax]
        cmp     rax, [abs value]
        jne     bad

        mov     rdi, IDT + 0x80 * 16    ; INT 80h: an interrupt gate to `gate`
        lea     rax, [rel gate]
        mov     [rdi], ax
        mov     word [rdi + 2], 0x18
        mov     word [rdi + 4], 0x8e00
        shr     rax, 16
        mov     [rdi + 6], eax
        lidt    [rel idt_pointer]
        xor     r8d, r8d
        int     0x80
        cmp     r8, 0x5a5a
        jne     bad

        mov     eax, 3
        cvtsi2sd xmm0, eax
        mulsd   xmm0, [rel half]
        cvttsd2si eax, xmm0
        cmp     eax, 1          ; 1.5, cut
        jne     bad
        cvtsd2si eax, xmm0
        cmp     eax, 2          ; 1.5, to the nearest even number
        jne     bad

        mov     rsi, m_ok
        call    text64
        mov     al, PASSED
        jmp     end
bad:    mov     rsi, m_bad
        call    text64
        mov     al, FAILED
end:    out     DEBUG_EXIT, al
.stop:  hlt
        jmp     .stop

gate:   mov     r8d, 0x5a5a
        iretq

text64: lodsb
        test    al, al
        jz      .end
        mov     ah, al
        mov     dx, COM1 + 5
.wait:  in      al, dx
        test    al, 0x20
        jz      .wait
        mov     al, ah
        mov     dx, COM1
        out     dx, al
        jmp     text64
.end:   ret

        align 8
value:  dq 0x1122334455667788
half:   dq 0.5
idt_pointer:
        dw 0xfff
        dq IDT
m_entered: db "LONG MODE ENTERED", 13, 10, 0
m_ok:   db "LONG MODE OK", 13, 10, 0
m_bad:  db "LONG MODE BAD", 13, 10, 0

        times 3 * 512 - ($ - $$) db 0
