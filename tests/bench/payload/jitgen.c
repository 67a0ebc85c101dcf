/* Code made while it runs, as JavaScript engines do: functions of forty random operations are written into executable
   memory, called a few times, checked against the same operations in C, and overwritten by the next ones. */
#define _GNU_SOURCE
#include "harness.h"

#include <string.h>
#include <sys/mman.h>

enum { FUNCTIONS = 64, OPERATIONS = 40, ROOM = 512, GENERATIONS = 20, CALLS = 10 };
const uint64_t expected = 0xbf6852b57f3cd70b;

enum kind { ADD, XOR, MULTIPLY, SUBTRACT, ROTATE, SHIFT, KINDS };
struct operation { enum kind kind; uint32_t value; };

static uint8_t *put32(uint8_t *at, uint32_t value) {
    memcpy(at, &value, 4);
    return at + 4;
}

/* mov eax, edi; the operations on eax; ret. */
static void generate(uint8_t *at, const struct operation *list) {
    *at++ = 0x89, *at++ = 0xf8;
    for (int i = 0; i < OPERATIONS; i++) {
        uint32_t value = list[i].value;
        switch (list[i].kind) {
        case ADD: *at++ = 0x05, at = put32(at, value); break;
        case XOR: *at++ = 0x35, at = put32(at, value); break;
        case MULTIPLY: *at++ = 0x69, *at++ = 0xc0, at = put32(at, value); break;
        case SUBTRACT: *at++ = 0x2d, at = put32(at, value); break;
        case ROTATE: *at++ = 0xc1, *at++ = 0xc0, *at++ = value & 31; break;
        /* mov ecx, eax; shr ecx, n; add eax, ecx */
        default: *at++ = 0x89, *at++ = 0xc1, *at++ = 0xc1, *at++ = 0xe9, *at++ = value & 31, *at++ = 0x01, *at++ = 0xc8;
        }
    }
    *at = 0xc3;
}

static uint32_t evaluate(const struct operation *list, uint32_t x) {
    for (int i = 0; i < OPERATIONS; i++) {
        uint32_t value = list[i].value, n = value & 31;
        switch (list[i].kind) {
        case ADD: x += value; break;
        case XOR: x ^= value; break;
        case MULTIPLY: x *= value; break;
        case SUBTRACT: x -= value; break;
        case ROTATE: x = n ? x << n | x >> (32 - n) : x; break;
        default: x += x >> n;
        }
    }
    return x;
}

uint64_t work(void) {
    static uint8_t *code;
    uint64_t random = 31, sum = 0;
    if (!code) {
        code = mmap(0, FUNCTIONS * ROOM, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (code == MAP_FAILED) fail("mmap");
    }
    for (int generation = 0; generation < GENERATIONS; generation++)
        for (int function = 0; function < FUNCTIONS; function++) {
            struct operation list[OPERATIONS];
            uint32_t (*call)(uint32_t) = (uint32_t (*)(uint32_t))(void *)(code + function * ROOM);
            for (int i = 0; i < OPERATIONS; i++) {
                uint64_t choice = next_random(&random);
                list[i] = (struct operation){ (enum kind)((choice >> 32) % KINDS), (uint32_t)choice };
            }
            generate(code + function * ROOM, list);
            for (uint32_t i = 0; i < CALLS; i++) sum = digest(sum, call(i));
            if (call(CALLS) != evaluate(list, CALLS)) return 0;
        }
    return sum;
}
