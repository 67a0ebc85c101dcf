; Paging of 32-bit code: two levels, 4 MiB pages (PSE-36), PAE with its latched pointers: error codes, CR2, accessed and dirty bits,
; write protection, SMEP, SMAP, NX, reserved bits, INVLPG, global pages.

%include "start.inc"
%include "protected.inc"
%define MODE 32

PD      equ 0x100000            ; two levels
PT0     equ 0x101000            ; 0 to 4 MiB
PT1     equ 0x102000            ; 4 to 8 MiB: the tests
PDPT    equ 0x110000            ; PAE
PD_PAE  equ 0x111000
PT_PAE  equ 0x112000            ; 0 to 2 MiB
PT_TEST equ 0x113000            ; 4 to 6 MiB
V       equ 0x400000            ; where the tests look
F       equ 0x200000            ; a frame

; PFAULT "name", error, instruction: #PF with this error code, CR2 = V
%macro PFAULT 3+
        FAULT   %1, 14 << 16 | (%2), %3
        CHECK   "  its CR2", dword [got_cr2], V
%endmacro
; The same out of ring 3.
%macro PFAULT3 3
        TRAP    %1, 14 << 16 | (%2), {ENTER3 %3}
        CHECK   "  its CR2", dword [got_cr2], V
%endmacro
%macro PTE 1
        mov     dword [PT1], %1
        invlpg  [V]
%endmacro
%macro PAE_PTE 2
        mov     dword [PT_TEST], %1
        mov     dword [PT_TEST + 4], %2
        invlpg  [V]
%endmacro
%macro CR_SET 2
        mov     eax, %1
        or      eax, %2
        mov     %1, eax
%endmacro
%macro CR_CLEAR 2
        mov     eax, %1
        and     eax, ~(%2)
        mov     %1, eax
%endmacro

USER_AT equ 0x30000           ; ring 3's code

guest:  to_protected
        mov     edi, PD
        mov     ecx, 0x14000 / 4
        xor     eax, eax
        rep     stosd
        mov     dword [PD], PT0 | 7
        mov     dword [PD + 4], PT1 | 7
        mov     edi, PT0
        mov     eax, 3                  ; ring 0's own pages, so that SMEP and SMAP leave it alone
.fill:  stosd
        add     eax, 0x1000
        cmp     edi, PT1
        jne     .fill
        mov     byte [PT0 + USER_AT / 1024], 7
        mov     byte [PT0 + (STACK3 - 4096) / 1024], 7
        mov     esi, user_read
        mov     edi, USER_AT
        mov     ecx, user_end - user_read
        rep     movsb
        mov     dword [F], 0x12345678
        mov     byte [F + 8], 0xc3              ; RET
        mov     eax, PD
        mov     cr3, eax
        CR_SET  cr0, 0x80000000

        ; --- two levels
        PFAULT  "not present, read", 0, {mov eax, [V]}
        PFAULT  "not present, write", 2, {mov [V], eax}
        TRAP    "not present, fetch", 14 << 16, {call V}
        mov     esp, STACK0
        PFAULT3 "not present, ring 3", 4, USER_AT
        PFAULT3 "not present, ring 3 write", 6, USER_AT + (user_write - user_read)
        PTE     F | 3
        mov     eax, [V]
        CHECK   "mapped", eax, 0x12345678
        mov     eax, [PT1]
        and     eax, 0x60
        CHECK   "a read sets accessed", eax, 0x20
        mov     eax, [PD + 4]
        and     eax, 0x20
        CHECK   "on the way, too", eax, 0x20
        mov     dword [V + 4], 1
        mov     eax, [PT1]
        and     eax, 0x60
        CHECK   "a write sets dirty", eax, 0x60
        PFAULT3 "a supervisor page, ring 3", 5, USER_AT
        PFAULT3 "a supervisor page, ring 3 write", 7, USER_AT + (user_write - user_read)
        PTE     F | 5
        PFAULT3 "a read-only page, ring 3 write", 7, USER_AT + (user_write - user_read)
        TRAP    "a read-only page, ring 3 read", 0x80 << 16, {ENTER3 USER_AT}
        mov     dword [V], 0x11111111
        CHECK   "ring 0 writes through without WP", dword [F], 0x11111111
        CR_SET  cr0, 0x10000
        PFAULT  "a read-only page with WP", 3, {mov [V], eax}
        mov     dword [PD + 4], PT1 | 5
        PTE     F | 7
        mov     eax, cr3
        mov     cr3, eax
        PFAULT  "a directory that is read-only", 3, {mov [V], eax}
        mov     dword [PD + 4], PT1 | 3
        mov     eax, cr3
        mov     cr3, eax
        PFAULT3 "a directory for the supervisor", 5, USER_AT
        mov     dword [PD + 4], PT1 | 7
        mov     eax, cr3
        mov     cr3, eax

        ; a failed access marks nothing
        PTE     F | 1
        TRAP    "a failed write", 14 << 16 | 7, {ENTER3 USER_AT + (user_write - user_read)}
        mov     eax, [PT1]
        and     eax, 0x60
        CHECK   "leaves accessed and dirty alone", eax, 0
        ; page crossing: the second page faults, CR2 is its first byte
        mov     dword [PT1 + 4], 0
        PTE     F | 3
        invlpg  [V + 0x1000]
        FAULT   "a crossing access", 14 << 16 | 2, {mov [V + 0xffe], eax}
        CHECK   "faults at the second page", dword [got_cr2], V + 0x1000
        ; SMEP
        CR_SET  cr4, 1 << 20
        PTE     F | 7
        TRAP    "SMEP: ring 0 fetches from a user page", 14 << 16 | 0x11, {call V + 8}
        mov     esp, STACK0
        CR_CLEAR cr4, 1 << 20
        mov     eax, V + 8
        call    eax
        CHECK   "without SMEP it may", dword [got_error], 0x11
        ; SMAP
        CR_SET  cr4, 1 << 21
        PFAULT  "SMAP: ring 0 reads a user page", 1, {mov eax, [V]}
        PFAULT  "SMAP: ring 0 writes a user page", 3, {mov [V], eax}
        stac
        mov     eax, [V]
        clac
        CHECK   "STAC allows it", eax, 0x11111111
        PFAULT  "CLAC forbids it again", 1, {mov eax, [V]}
        CR_CLEAR cr4, 1 << 21
        ; INVLPG and the TLB
        PTE     F | 7
        mov     eax, [V]
        mov     dword [PT1], (F + 0x1000) | 7
        mov     dword [F + 0x1000], 0x22222222
        invlpg  [V]
        CHECK   "INVLPG forgets", dword [V], 0x22222222

        ; --- 4 MiB pages
        CR_SET  cr4, 0x10
        mov     dword [PD + 4], 0x87
        mov     eax, cr3
        mov     cr3, eax
        CHECK   "a 4 MiB page", dword [V + F], 0x11111111
        mov     eax, [PD + 4]
        and     eax, 0xe0
        CHECK   "is marked in the directory", eax, 0xa0
        mov     dword [PD + 4], 0x87 | 1 << 21
        mov     eax, cr3
        mov     cr3, eax
        PFAULT  "a reserved bit of a 4 MiB page", 9, {mov eax, [V]}
        mov     dword [PD + 4], 0x87 | 1 << 13          ; at 4 GiB: nobody there, but no fault
        mov     eax, cr3
        mov     cr3, eax
        mov     dword [got_vector], 0
        mov     eax, [V]
        CHECK   "PSE-36: bit 32 of the address is not reserved", dword [got_vector], 0
        mov     dword [PD + 4], PT1 | 7
        CR_CLEAR cr4, 0x10

        ; --- PAE
        CR_CLEAR cr0, 0x80000000
        mov     dword [PDPT], PD_PAE | 1
        mov     dword [PD_PAE], PT_PAE | 7
        mov     dword [PD_PAE + 16], PT_TEST | 7        ; 4 to 6 MiB
        mov     dword [PD_PAE + 24], 0x87 | 0x200000    ; 6 to 8 MiB: a 2 MiB page
        mov     edi, PT_PAE
        mov     eax, 3
.pae:   stosd
        mov     dword [edi], 0
        add     edi, 4
        add     eax, 0x1000
        cmp     eax, 0x200000
        jb      .pae
        CR_SET  cr4, 0x20
        mov     eax, PDPT
        mov     cr3, eax
        CR_SET  cr0, 0x80000000
        PFAULT  "PAE: not present", 0, {mov eax, [V]}
        PAE_PTE F | 7, 0
        CHECK   "PAE: mapped", dword [V], 0x11111111
        CHECK   "PAE: a 2 MiB page", dword [0x600000], 0x11111111
        PAE_PTE F | 7, 1 << 8                           ; bit 40: beyond the physical address
        PFAULT  "PAE: a bit beyond the physical address", 9, {mov eax, [V]}
        PAE_PTE F | 7, 1 << 20                          ; bit 52
        PFAULT  "PAE: bit 52 is reserved", 9, {mov eax, [V]}
        PAE_PTE F | 7, 0x80000000
        PFAULT  "PAE: NX without EFER.NXE is reserved", 9, {mov eax, [V]}
        mov     ecx, 0xc0000080
        rdmsr
        or      eax, 0x800
        wrmsr
        invlpg  [V]
        CHECK   "with NXE it can be read", dword [V], 0x11111111
        TRAP    "and not executed", 14 << 16 | 0x11, {call V + 8}
        CHECK   "  its CR2", dword [got_cr2], V + 8
        mov     esp, STACK0
        mov     dword [PD_PAE + 24], 0x87 | 0x200000 | 1 << 13
        invlpg  [0x600000]
        FAULT   "PAE: a reserved bit of a 2 MiB page", 14 << 16 | 9, {mov eax, [0x600000]}
        ; the pointers are latched: changing them in memory does nothing until CR3 is loaded
        PAE_PTE F | 7, 0
        mov     dword [PDPT], 0
        invlpg  [V]
        CHECK   "the pointers are latched", dword [V], 0x11111111
        mov     dword [PDPT], PD_PAE | 3
        mov     eax, PDPT
        FAULT   "#GP from CR3 with a reserved bit in a pointer", 13 << 16, {mov cr3, eax}
        CHECK   "nothing has changed by it", dword [V], 0x11111111
        mov     dword [PDPT], PD_PAE | 1
        mov     eax, PDPT
        mov     cr3, eax
        CHECK   "CR3 loads them again", dword [V], 0x11111111
        ; global pages outlive CR3, with PGE
        CR_SET  cr4, 0x80
        CHECK   "PGE can be set", dword [V], 0x11111111
        CR_CLEAR cr0, 0x80000000
        CR_CLEAR cr4, 0xa0
        CHECK   "and paging be left", dword [F], 0x11111111
        jmp     finish32

user_read:
        mov     ecx, UDATA32
        mov     ds, ecx
        mov     eax, [V]
        int     0x80
user_write:
        mov     ecx, UDATA32
        mov     ds, ecx
        mov     [V], eax
        int     0x80
user_end:

        protected_tables
%include "end.inc"
