/* The string instructions with a repeat prefix: copies, fills, comparisons and searches of 16 bytes to 64 KiB, both ways. */
#include "harness.h"

enum { MOST = 65536 };
const uint64_t expected = 0xf18b0d3e4c25aedc;

static uint8_t from[MOST + 64], to[MOST + 64];

static void copy_bytes(void *target, const void *source, size_t count) {
    __asm__ volatile("rep movsb" : "+D"(target), "+S"(source), "+c"(count) : : "memory");
}

static void copy_words(void *target, const void *source, size_t count) {
    __asm__ volatile("rep movsq" : "+D"(target), "+S"(source), "+c"(count) : : "memory");
}

static void copy_down(uint8_t *target, const uint8_t *source, size_t count) {
    target += count - 1, source += count - 1;
    __asm__ volatile("std\n\trep movsb\n\tcld" : "+D"(target), "+S"(source), "+c"(count) : : "memory", "cc");
}

static void fill(void *target, uint64_t value, size_t count) {
    __asm__ volatile("rep stosq" : "+D"(target), "+c"(count) : "a"(value) : "memory");
}

static size_t left_after_search(const void *where, uint8_t what, size_t count) {
    __asm__ volatile("repne scasb" : "+D"(where), "+c"(count) : "a"(what) : "memory", "cc");
    return count;
}

static size_t left_after_compare(const void *one, const void *other, size_t count) {
    __asm__ volatile("repe cmpsb" : "+D"(one), "+S"(other), "+c"(count) : : "memory", "cc");
    return count;
}

uint64_t work(void) {
    uint64_t random = 37, sum = 0;
    for (size_t i = 0; i < sizeof from; i++) from[i] = (uint8_t)(next_random(&random) | 1);
    for (size_t size = 16; size <= MOST; size *= 2)
        for (size_t times = 4 * MOST / size, i = 0; i < times; i++) {
            size_t shift = i & 31;
            copy_bytes(to + shift, from, size);
            copy_words(from + 8, to + shift, size / 8);
            copy_down(to + shift + 1, to + shift, size);
            sum = digest(sum, to[shift + size / 2]);
            if (i & 7) continue;
            to[shift + size - 1] = 0;
            sum = digest(sum, left_after_search(to + shift, 0, size));
            sum = digest(sum, left_after_compare(to + shift + 1, from + 8, size - 8));
            fill(to, sum | 0x0101010101010101, size / 8);
        }
    for (size_t i = 0; i < sizeof to; i++) sum = digest(sum, to[i]);
    return sum;
}
