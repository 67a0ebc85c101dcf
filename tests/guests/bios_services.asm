; Build: floppy
; A real-mode program on the BIOS: text by INT 10h, sectors by INT 13h, keys by INT 16h, memory size by INT 12h, ticks by
; INT 1Ah. What happens is said on the screen and, line by line, on COM1:
;
;   BIOS SERVICES START       DISK OK / DISK BAD      MEMORY xxxx      TICKS OK
;   PRESS A KEY               then per key: KEY scan ascii             Escape ends: BIOS SERVICES DONE

        bits 16
        org 0x7c00
        jmp     0:start

%include "real_mode.inc"

start:  xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, 0x7c00
        cld
        sti
        mov     [drive], dl

        mov     ax, 0x0003      ; 80x25 text
        int     0x10
        mov     si, m_start
        call    say

        mov     cx, 3           ; a floppy may need a second try after its motor has started
.read:  push    cx
        mov     ax, 0x0203      ; 3 sectors, from sector 2 of the first track
        mov     bx, second
        mov     cx, 0x0002
        mov     dx, 0
        mov     dl, [drive]
        int     0x13
        pop     cx
        jnc     .there
        xor     ax, ax
        mov     dl, [drive]
        int     0x13            ; reset
        loop    .read
        mov     si, m_bad
        call    say
        mov     al, FAILED
        jmp     exit
.there: jmp     second

say:                            ; ds:si: on the screen and on COM1
        push    si
        call    serial_text
        pop     si
.next:  lodsb
        test    al, al
        jz      .end
        mov     ah, 0x0e        ; teletype
        mov     bx, 7
        int     0x10
        jmp     .next
.end:   ret

drive:  db 0
m_start: db "BIOS SERVICES START", 13, 10, 0
m_bad:  db "DISK BAD", 13, 10, 0

        times 510 - ($ - $$) db 0
        dw 0xaa55

; Sectors 2 to 4. Sector 4 is checked byte by byte.
second: mov     si, pattern
        mov     cx, 512
        xor     bx, bx
.check: lodsb
        cmp     al, bl
        jne     .wrong
        inc     bl
        loop    .check
        mov     si, m_disk
        call    say
        jmp     .memory
.wrong: mov     si, m_bad
        call    say
        mov     al, FAILED
        jmp     exit

.memory:
        mov     si, m_memory
        call    say
        int     0x12            ; KiB below the extended BIOS data area
        push    ax
        mov     al, ah
        call    serial_hex
        pop     ax
        call    serial_hex
        mov     si, m_line
        call    say

        mov     ah, 0           ; the tick count, 18.2 a second
        int     0x1a
        mov     bx, dx
.ticks: mov     ah, 0
        int     0x1a
        sub     dx, bx
        cmp     dx, 3
        jb      .ticks
        mov     si, m_ticks
        call    say

        mov     ax, 0x1300      ; a string with attributes, at row 12
        mov     bx, 0x001e      ; yellow on blue
        mov     cx, banner_end - banner
        mov     dx, 0x0c14
        mov     bp, banner
        int     0x10

        mov     si, m_press
        call    say
.key:   mov     ah, 0
        int     0x16
        push    ax
        mov     si, m_key
        call    say
        pop     ax
        push    ax
        mov     al, ah
        call    serial_hex
        mov     al, ' '
        call    serial_char
        pop     ax
        push    ax
        call    serial_hex
        pop     ax
        push    ax
        cmp     al, ' '
        jb      .quiet
        mov     ah, 0x0e
        mov     bx, 7
        int     0x10
.quiet: mov     si, m_line
        call    say
        pop     ax
        cmp     al, 27          ; Escape
        jne     .key

        mov     si, m_done
        call    say
        mov     al, PASSED
        jmp     exit

m_disk:  db "DISK OK", 13, 10, 0
m_memory: db "MEMORY ", 0
m_ticks: db "TICKS OK", 13, 10, 0
m_press: db "PRESS A KEY", 13, 10, 0
m_key:   db "KEY ", 0
m_line:  db 13, 10, 0
m_done:  db "BIOS SERVICES DONE", 13, 10, 0
banner:  db " Bellglass real-mode guest "
banner_end:

        times 3 * 512 - ($ - $$) db 0
pattern:
%assign value 0
%rep 512
        db value & 255
%assign value value + 1
%endrep
