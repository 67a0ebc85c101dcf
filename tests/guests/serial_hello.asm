; Build: floppy
; The smallest guest: from the boot sector, without the BIOS, a line on COM1 and one on the debug port 0xe9.

        bits 16
        org 0x7c00
        jmp     0:start

%include "real_mode.inc"

start:  xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     sp, 0x7c00
        cld

        mov     dx, COM1 + 3
        mov     al, 0x80        ; divisor latch
        out     dx, al
        mov     dx, COM1
        mov     al, 1           ; 115200 baud
        out     dx, al
        inc     dx
        mov     al, 0
        out     dx, al
        mov     dx, COM1 + 3
        mov     al, 3           ; 8 bits, no parity, 1 stop bit
        out     dx, al

        mov     si, hello
        call    serial_text
        mov     si, debug
.next:  lodsb
        test    al, al
        jz      .done
        out     0xe9, al
        jmp     .next
.done:  mov     al, PASSED
        jmp     exit

hello:  db "SERIAL HELLO from the boot sector", 13, 10, 0
debug:  db "DEBUG PORT HELLO", 10, 0

        times 510 - ($ - $$) db 0
        dw 0xaa55
