/* Code that changes itself: a loop stores the constant that its very next instruction adds. */
#define _GNU_SOURCE
#include "harness.h"

#include <string.h>
#include <sys/mman.h>

enum { TIMES = 2000 };
const uint64_t expected = (uint64_t)TIMES * (TIMES + 1) / 2;

static const uint8_t loop[] = {
    0x31, 0xc0,             /*        xor eax, eax             */
    0x89, 0x3d, 1, 0, 0, 0, /* again: mov [rip + patched], edi */
    0x05, 0, 0, 0, 0,       /*        add eax, patched         */
    0xff, 0xcf,             /*        dec edi                  */
    0x75, 0xf1,             /*        jnz again                */
    0xc3,                   /*        ret                      */
};

uint64_t work(void) {
    static uint8_t *code;
    if (!code) {
        code = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (code == MAP_FAILED) fail("mmap");
        memcpy(code, loop, sizeof loop);
    }
    return ((uint32_t (*)(uint32_t))(void *)code)(TIMES);
}
