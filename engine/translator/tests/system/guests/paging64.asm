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
PML4_B  equ 0x10b000                    ; a second address space
V_PDPT_B equ 0x10c000
V_PD_B  equ 0x10d000
V_PT_B  equ 0x10e000
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
; Changes the entry of V in a page table, and says nothing to the CPU.
%macro MAP 2
        mov     rax, %2
        mov     [%1 + INDEX(0) * 8], rax
%endmacro
%macro SPACE 1                  ; loads CR3
        mov     rax, %1
        mov     cr3, rax
%endmacro
%macro KEEP 1                   ; loads CR3 and keeps what is known of the PCID
        mov     rax, (%1) | 1 << 63
        mov     cr3, rax
%endmacro
%macro FORGET 3                 ; INVPCID: type, PCID, address
        mov     qword [descriptor], %2
        mov     rax, %3
        mov     [descriptor + 8], rax
        mov     eax, %1
        invpcid rax, [descriptor]
%endmacro
%macro LOOKS 2
        mov     rbx, V
        mov     eax, [rbx]
        CHECK   %1, rax, %2
%endmacro
%macro RUNS 2
        mov     rbx, V + 0x100
        call    rbx
        CHECK   %1, rax, %2
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

        ; What must be forgotten, is. Whether anything else is remembered is the CPU's business.
        ; From here on PCID 3 and PCID 4 are two address spaces that differ at V: frame F with 11111111h, frame F + 1000h with 22222222h.
        mov     dword [F], 0x11111111
        mov     esi, PML4
        mov     edi, PML4_B
        mov     ecx, 0x1000 / 8
        rep     movsq
        mov     rax, V_PDPT_B | 7
        mov     [PML4_B + INDEX(3) * 8], rax
        mov     rax, V_PD_B | 7
        mov     [V_PDPT_B + INDEX(2) * 8], rax
        mov     rax, V_PT_B | 7
        mov     [V_PD_B + INDEX(1) * 8], rax
        MAP     V_PT, F | 7
        MAP     V_PT_B, (F + 0x1000) | 7
        SPACE   PML4 | 3
        LOOKS   "address space A", 0x11111111
        SPACE   PML4_B | 4
        LOOKS   "address space B", 0x22222222
        KEEP    PML4 | 3
        LOOKS   "A again, kept", 0x11111111
        KEEP    PML4_B | 4
        LOOKS   "B again, kept", 0x22222222
        ; code too: each frame returns its own number
        mov     dword [F + 0x100], 0x0000aab8           ; mov eax, 0aah; ret
        mov     word [F + 0x104], 0xc300
        mov     dword [F + 0x1100], 0x0000bbb8
        mov     word [F + 0x1104], 0xc300
%rep 3
        KEEP    PML4 | 3
        RUNS    "A's code", 0xaa
        KEEP    PML4_B | 4
        RUNS    "B's code", 0xbb
%endrep
        ; a changed entry of the other space, which is then named
        KEEP    PML4 | 3
        MAP     V_PT_B, F | 7
        FORGET  0, 4, V
        KEEP    PML4_B | 4
        LOOKS   "INVPCID of an address of another PCID", 0x11111111
        RUNS    "and its code", 0xaa
        KEEP    PML4 | 3
        MAP     V_PT_B, (F + 0x1000) | 7
        FORGET  1, 4, 0
        KEEP    PML4_B | 4
        LOOKS   "INVPCID of another PCID", 0x22222222
        RUNS    "and its code", 0xbb
        KEEP    PML4 | 3
        MAP     V_PT_B, F | 7
        FORGET  3, 0, 0
        KEEP    PML4_B | 4
        LOOKS   "INVPCID of all but global pages", 0x11111111
        RUNS    "and its code", 0xaa
        KEEP    PML4 | 3
        MAP     V_PT_B, (F + 0x1000) | 7
        SPACE   PML4_B | 4
        LOOKS   "MOV to CR3 that does not keep", 0x22222222
        RUNS    "and its code", 0xbb
        ; global pages
        CR_SET  cr4, 1 << 7
        MAP     V_PT_B, F | 0x107
        SPACE   PML4_B | 4
        LOOKS   "a global page", 0x11111111
        MAP     V_PT_B, (F + 0x1000) | 0x107
        mov     rbx, V
        invlpg  [rbx]
        LOOKS   "INVLPG forgets a global page", 0x22222222
        RUNS    "and its code", 0xbb
        MAP     V_PT_B, F | 0x107
        FORGET  2, 0, 0
        LOOKS   "INVPCID of everything", 0x11111111
        RUNS    "and its code", 0xaa
        MAP     V_PT_B, (F + 0x1000) | 7
        CR_CLEAR cr4, 1 << 7
        LOOKS   "CR4.PGE cleared", 0x22222222
        ; dirty bits: a page that was only read gets its bit with the first write, each time
        MAP     V_PT_B, F | 7
        SPACE   PML4_B | 4
        mov     rbx, V
        mov     eax, [rbx]
        mov     [rbx + 0x20], eax
        mov     eax, [V_PT_B + INDEX(0) * 8]
        and     eax, 0x60
        CHECK   "dirty after a read and a write", rax, 0x60
        MAP     V_PT_B, F | 7
        FORGET  1, 4, 0
        mov     rbx, V
        mov     [rbx + 0x20], eax
        mov     eax, [V_PT_B + INDEX(0) * 8]
        and     eax, 0x60
        CHECK   "dirty again after it was cleared", rax, 0x60
        ; rights that were given without a word are seen (a CPU may fault here first; ours looks again)
        MAP     V_PT_B, F | 5
        SPACE   PML4_B | 4
        PFAULT  "read-only", 3, {mov [rbx], eax}
        MAP     V_PT_B, F | 7
        mov     rbx, V
        mov     dword [rbx], 0x33333333
        LOOKS   "writable now", 0x33333333
        ; a large page: any of its addresses names all of it
        mov     rax, 0x200087
        mov     [V_PD_B + INDEX(1) * 8], rax
        SPACE   PML4_B | 4
        mov     rbx, V & ~0x1fffff
        mov     eax, [rbx]
        mov     eax, [rbx + 0x1000]
        mov     rax, 0x400087
        mov     [V_PD_B + INDEX(1) * 8], rax
        invlpg  [rbx + 0x5000]
        mov     dword [0x401000], 0x44444444
        mov     eax, [rbx + 0x1000]
        CHECK   "INVLPG within a 2 MiB page", rax, 0x44444444
        jmp     finish64

        align 16
descriptor: dq 0, 0
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
