; Build: elf32
; An ELF kernel for the Multiboot specification 0.6.96: says on COM1 what the loader handed over.
;
;   MULTIBOOT START | MULTIBOOT LOADER BAD      LOWER xxxxxxxx  UPPER xxxxxxxx (KiB)     COMMAND text
;   MODULE START END text: first line of it     REGION BASE LENGTH TYPE (low halves)     MULTIBOOT DONE

        bits 32
COM1    equ 0x3f8
DEBUG_EXIT equ 0xf4
PASSED  equ 0x10
FAILED  equ 0x11

        section .text align=4
        dd 0x1badb002           ; magic
        dd 3                    ; flags: modules on page boundaries, memory information
        dd -(0x1badb002 + 3)

        global _start
_start: mov     esp, stack_end
        cld
        cmp     eax, 0x2badb002
        je      .loader
        mov     esi, m_bad
        call    text
        mov     al, FAILED
        jmp     end
.loader:
        mov     ebp, ebx        ; the information structure
        mov     esi, m_start
        call    text

        test    dword [ebp], 1
        jz      .command
        mov     esi, m_lower
        call    text
        mov     eax, [ebp + 4]
        call    hex
        mov     esi, m_upper
        call    text
        mov     eax, [ebp + 8]
        call    hex
        call    line
.command:
        test    dword [ebp], 4
        jz      .modules
        mov     esi, m_command
        call    text
        mov     esi, [ebp + 16]
        call    text
        call    line
.modules:
        test    dword [ebp], 8
        jz      .map
        mov     ecx, [ebp + 20]
        mov     ebx, [ebp + 24]
.module:
        jecxz   .map
        push    ecx
        mov     esi, m_module
        call    text
        mov     eax, [ebx]
        call    hex
        mov     al, ' '
        call    char
        mov     eax, [ebx + 4]
        call    hex
        mov     al, ' '
        call    char
        mov     esi, [ebx + 8]
        call    text
        mov     al, ':'
        call    char
        mov     al, ' '
        call    char
        mov     esi, [ebx]
.content:
        cmp     esi, [ebx + 4]
        jae     .next
        lodsb
        cmp     al, ' '
        jb      .next
        call    char
        jmp     .content
.next:  call    line
        pop     ecx
        add     ebx, 16
        dec     ecx
        jmp     .module
.map:
        test    dword [ebp], 0x40
        jz      .done
        mov     ebx, [ebp + 48]
        mov     edi, ebx
        add     edi, [ebp + 44]
.region:
        cmp     ebx, edi
        jae     .done
        mov     esi, m_region
        call    text
        mov     eax, [ebx + 4]
        call    hex
        mov     al, ' '
        call    char
        mov     eax, [ebx + 12]
        call    hex
        mov     al, ' '
        call    char
        mov     eax, [ebx + 20]
        call    hex
        call    line
        mov     eax, [ebx]
        lea     ebx, [ebx + eax + 4]
        jmp     .region
.done:  mov     esi, m_done
        call    text
        mov     al, PASSED
end:    out     DEBUG_EXIT, al
.stop:  cli
        hlt
        jmp     .stop

line:   mov     al, 13
        call    char
        mov     al, 10
char:   push    edx
        push    eax
        mov     dx, COM1 + 5
.wait:  in      al, dx
        test    al, 0x20
        jz      .wait
        pop     eax
        mov     dx, COM1
        out     dx, al
        pop     edx
        ret

text:   lodsb
        test    al, al
        jz      .end
        call    char
        jmp     text
.end:   ret

hex:    push    ecx
        mov     ecx, 8
.digit: rol     eax, 4
        push    eax
        and     al, 15
        cmp     al, 10
        sbb     al, 0x69
        das
        call    char
        pop     eax
        loop    .digit
        pop     ecx
        ret

        section .rodata
m_bad:  db "MULTIBOOT LOADER BAD", 13, 10, 0
m_start: db "MULTIBOOT START", 13, 10, 0
m_lower: db "LOWER ", 0
m_upper: db " UPPER ", 0
m_command: db "COMMAND ", 0
m_module: db "MODULE ", 0
m_region: db "REGION ", 0
m_done: db "MULTIBOOT DONE", 13, 10, 0

        section .bss align=16
        resb 4096
stack_end:
