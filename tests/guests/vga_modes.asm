; Build: floppy
; One picture in each kind of video mode, for comparing screens: a key goes on to the next.
;
;   VGA 13h     320x200, 256 colours: column x in colour x, modulo 256
;   VGA 12h     640x480, 16 colours in four planes: vertical bars 40 pixels wide, colours 0 to 15
;   VBE 118h    1024x768, linear frame buffer: red grows with x, green with y, blue is 80h (at 32 bits a pixel)
;   TEXT 03h    80x25: each character cell's code is its column, its attribute 10h + row
;
; Each is announced on COM1 when drawn (`VGA 13h`), VBE also by `VBE BAD` where it cannot be had. The end: VGA MODES DONE.

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
        mov     ax, 0x0203
        mov     bx, second
        mov     cx, 0x0002
        xor     dh, dh
        int     0x13
        jnc     second
        mov     al, FAILED
        jmp     exit

unreal:                         ; fs reaches all of memory: a 4 GiB limit stays in the segment after leaving protected mode
        cli
        lgdt    [gdt_pointer]
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        jmp     .in
.in:    mov     bx, 0x08
        mov     fs, bx
        and     al, 0xfe
        mov     cr0, eax
        jmp     .out
.out:   xor     bx, bx
        mov     fs, bx
        sti
        ret

        align 8
gdt:    dq 0
        dq 0x00cf92000000ffff   ; 08: data, 4 GiB
gdt_pointer:
        dw gdt_pointer - gdt - 1
        dd gdt

        times 510 - ($ - $$) db 0
        dw 0xaa55

second: mov     ax, 0x0013
        int     0x10
        mov     ax, 0xa000
        mov     es, ax
        xor     di, di
        mov     dx, 200
.row:   xor     al, al
        mov     cx, 320
.column:
        stosb
        inc     al
        loop    .column
        dec     dx
        jnz     .row
        mov     si, m_13h
        call    announce

        mov     ax, 0x0012
        int     0x10
        mov     dx, 0x3c4
        mov     ax, 0x0102      ; map mask: plane 0 first
.plane: push    ax
        out     dx, ax
        mov     bl, ah          ; this plane's bit of a colour
        xor     di, di
        mov     cx, 480
.line:  push    cx
        xor     bh, bh          ; the bar's colour
.bar:   mov     al, bh
        and     al, bl
        neg     al
        sbb     al, al          ; ff where the colour has this bit
        mov     cx, 5
        rep stosb
        inc     bh
        cmp     bh, 16
        jb      .bar
        pop     cx
        loop    .line
        pop     ax
        shl     ah, 1
        cmp     ah, 16
        jb      .plane
        mov     ax, 0x0f02
        out     dx, ax
        mov     si, m_12h
        call    announce

        push    ds
        pop     es
        mov     di, mode_info
        mov     ax, 0x4f01
        mov     cx, 0x118
        int     0x10
        cmp     ax, 0x004f
        jne     .no_vbe
        cmp     byte [mode_info + 25], 24   ; bits a pixel; 24 or 32
        jb      .no_vbe
        mov     ax, 0x4f02
        mov     bx, 0x4118
        int     0x10
        cmp     ax, 0x004f
        jne     .no_vbe
        call    unreal
        mov     edi, [mode_info + 40]       ; where the frame buffer is
        movzx   esi, byte [mode_info + 25]
        shr     esi, 3
        xor     ebx, ebx                    ; y
.vbe_row:
        push    edi
        xor     ecx, ecx                    ; x
.vbe_column:
        mov     byte [fs:edi], 0x80         ; blue
        mov     eax, ebx
        shr     eax, 2
        mov     [fs:edi + 1], al            ; green
        mov     eax, ecx
        shr     eax, 2
        mov     [fs:edi + 2], al            ; red
        add     edi, esi
        inc     ecx
        cmp     ecx, 1024
        jb      .vbe_column
        pop     edi
        movzx   eax, word [mode_info + 16]  ; bytes a line
        add     edi, eax
        inc     ebx
        cmp     ebx, 768
        jb      .vbe_row
        mov     si, m_118h
        call    announce
        jmp     .text
.no_vbe:
        mov     si, m_no_vbe
        call    serial_text

.text:  mov     ax, 0x0003
        int     0x10
        mov     ax, 0xb800
        mov     es, ax
        xor     di, di
        mov     ah, 0x10
.text_row:
        xor     al, al
.text_column:
        stosw
        inc     al
        cmp     al, 80
        jb      .text_column
        inc     ah
        cmp     ah, 0x10 + 25
        jb      .text_row
        mov     si, m_03h
        call    announce

        mov     si, m_done
        call    serial_text
        mov     al, PASSED
        jmp     exit

announce:                       ; ds:si: on COM1; then waits for a key
        call    serial_text
        mov     ah, 0
        int     0x16
        ret

m_13h:  db "VGA 13h", 13, 10, 0
m_12h:  db "VGA 12h", 13, 10, 0
m_118h: db "VBE 118h", 13, 10, 0
m_03h:  db "TEXT 03h", 13, 10, 0
m_no_vbe: db "VBE BAD", 13, 10, 0
m_done: db "VGA MODES DONE", 13, 10, 0

        align 16
mode_info:
        times 4 * 512 - ($ - $$) db 0
