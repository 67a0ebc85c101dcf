; Four-level paging: a fault at each level, rights gathered on the way, NX, SMEP, SMAP, WP, reserved bits, 2 MiB and 1 GiB pages,
; accessed and dirty bits, PCIDs.

%include "start.inc"
%include "protected.inc"
%include "long.inc"
%define MODE 32

V       equ 0x0000123456789000          ; where the tests look; its tables:
V_PDPT  equ 0x108000
V_PD    equ 0x109000
V_PT    equ 0x10a000
G       equ 0x0000120000000000          ; a 1 GiB page at PDPT entry 0 of the same PML4 entry
F       equ 0x200000                    ; a frame
USER_AT equ 0x400000                    ; ring 3's code: the third 2 MiB page, a user page
%define INDEX(level) ((V >> (12 + 9 * (level))) & 511)

%macro ENTRY 3                  ; table, level, value
        mov     rax, %3
        mov     [%1 + INDEX(%2) * 8], rax
        mov     rax, V
        invlpg  [rax]
%endmacro
%macro PFAULT 3+
        mov     rbx, V
        FAULT64 %1, 14 << 16 | (%2), %3
        mov     rbx, V
        CHECK   "  its CR2", qword [got_cr2_64], rbx
%endmacro
%macro PFAULT3 3
        TRAP64  %1, 14 << 16 | (%2), {ENTER3_64 %3}
        mov     rbx, V
        CHECK   "  its CR2", qword [got_cr2_64], rbx
%endmacro
%macro CR_SET 2
        mov     rax, %1
        or      rax, %2
        mov     %1, rax
%endmacro
%macro CR_CLEAR 2
        mov     rax, %1
        and     rax, ~(%2)
        mov     %1, rax
%endmacro

guest:  to_protected
%define MODE 64
        to_long
        ; ring 0's pages belong to ring 0, so that SMEP and SMAP leave it alone
        mov     byte [PD], 0x83
        mov     byte [PD + 8], 0x83
        mov     rax, cr3
        mov     cr3, rax
        mov     esi, user_code
        mov     edi, USER_AT
        mov     ecx, user_end - user_code
        rep     movsb
        mov     dword [F], 0x12345678
        mov     byte [F + 8], 0xc3

        PFAULT  "no PML4 entry", 0, {mov eax, [rbx]}
        ENTRY   PML4, 3, V_PDPT | 7
        PFAULT  "no PDPT entry", 2, {mov [rbx], eax}
        ENTRY   V_PDPT, 2, V_PD | 7
        PFAULT3 "no PD entry, ring 3", 4, USER_AT
        ENTRY   V_PD, 1, V_PT | 7
        PFAULT3 "no PT entry, ring 3 write", 6, USER_AT + (user_write - user_code)
        ENTRY   V_PT, 0, F | 7
        mov     rbx, V
        mov     eax, [rbx]
        CHECK   "mapped", rax, 0x12345678
        mov     eax, [PML4 + INDEX(3) * 8]
        and     eax, 0x60
        CHECK   "accessed at level 4", rax, 0x20
        mov     eax, [V_PT + INDEX(0) * 8]
        and     eax, 0x60
        CHECK   "accessed, not dirty", rax, 0x20
        TRAP64  "ring 3 reads it", 0x80 << 16, {ENTER3_64 USER_AT}
        ; rights are those of all levels together
        ENTRY   V_PDPT, 2, V_PD | 3
        PFAULT3 "the PDPT entry is the supervisor's", 5, USER_AT
        ENTRY   V_PDPT, 2, V_PD | 5
        PFAULT  "the PDPT entry is read-only, with WP", 3, {mov [rbx], eax}
        PFAULT3 "the same, ring 3", 7, USER_AT + (user_write - user_code)
        ENTRY   V_PDPT, 2, V_PD | 7
        ENTRY   V_PD, 1, V_PT | 7 | 1 << 63
        TRAP64  "NX at the PD", 14 << 16 | 0x11, {call call_v}
        mov     rsp, STACK0
        TRAP64  "NX at the PD, ring 3", 14 << 16 | 0x15, {ENTER3_64 USER_AT + (user_fetch - user_code)}
        ENTRY   V_PD, 1, V_PT | 7
        TRAP64  "ring 3 fetches", 0x80 << 16, {ENTER3_64 USER_AT + (user_fetch - user_code)}
        ; SMEP, SMAP
        CR_SET  cr4, 1 << 20
        TRAP64  "SMEP", 14 << 16 | 0x11, {call call_v}
        mov     rsp, STACK0
        CR_CLEAR cr4, 1 << 20
        CR_SET  cr4, 1 << 21
        PFAULT  "SMAP", 1, {mov eax, [rbx]}
        stac
        mov     rbx, V
        mov     eax, [rbx]
        clac
        CHECK   "SMAP with AC", rax, 0x12345678
        CR_CLEAR cr4, 1 << 21
        ; reserved bits at each level
        ENTRY   PML4, 3, V_PDPT | 0x87
        PFAULT  "PS in a PML4 entry", 9, {mov eax, [rbx]}
        ENTRY   PML4, 3, V_PDPT | 7 | 1 << 40
        PFAULT  "a bit beyond the physical address in a PML4 entry", 9, {mov eax, [rbx]}
        ENTRY   PML4, 3, V_PDPT | 7
        ENTRY   V_PT, 0, F | 7 | 1 << 51
        PFAULT3 "the same in a PT entry, ring 3", 0xd, USER_AT
        ENTRY   V_PT, 0, F | 7 | 1 << 52 | 1 << 62
        mov     rbx, V
        mov     eax, [rbx]
        CHECK   "bits 52 to 62 are free", rax, 0x12345678
        ; 2 MiB and 1 GiB pages
        ENTRY   V_PD, 1, 0x87 | 1 << 13
        PFAULT  "a reserved bit of a 2 MiB page", 9, {mov eax, [rbx]}
        ENTRY   V_PD, 1, 0x87
        mov     rbx, V & ~0x1fffff | 0x8000
        mov     rax, [rbx]
        CHECK   "a 2 MiB page", rax, qword [0x8000]
        ENTRY   V_PD, 1, V_PT | 7
        mov     dword [V_PDPT], 0x87
        mov     dword [V_PDPT + 4], 0
        mov     rbx, G
        invlpg  [rbx]
        mov     eax, [rbx + F]
        CHECK   "a 1 GiB page", rax, 0x12345678
        mov     [rbx + F + 16], eax
        mov     eax, [V_PDPT]
        and     eax, 0xe0
        CHECK   "accessed and dirty in its entry", rax, 0xe0
        mov     dword [V_PDPT], 0x87 | 1 << 13
        invlpg  [rbx]
        FAULT64 "a reserved bit of a 1 GiB page", 14 << 16 | 9, {mov eax, [rbx]}
        ; PCIDs
        ENTRY   V_PT, 0, F | 7
        CR_SET  cr4, 1 << 17
        mov     rax, cr3
        or      rax, 3
        mov     cr3, rax
        mov     rbx, V
        mov     eax, [rbx]
        CHECK   "under a PCID", rax, 0x12345678
        mov     dword [F + 0x1000], 0x22222222
        mov     rax, (F + 0x1000) | 7
        mov     [V_PT + INDEX(0) * 8], rax
        sub     rsp, 16
        mov     qword [rsp], 3
        mov     [rsp + 8], rbx
        xor     eax, eax
        invpcid rax, [rsp]
        mov     eax, [rbx]
        CHECK   "INVPCID forgets one address", rax, 0x22222222
        jmp     finish64

call_v: mov     rax, V + 8
        jmp     rax
user_code:
        mov     rbx, V
        mov     eax, [rbx]
        int     0x80
user_write:
        mov     rbx, V
        mov     [rbx], eax
        int     0x80
user_fetch:
        mov     rsp, USER_AT + 0x1000
        mov     rax, V + 8
        call    rax
        int     0x80
user_end:

        protected_tables
        long_tables
%include "end.inc"
