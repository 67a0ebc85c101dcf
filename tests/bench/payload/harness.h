/* What every benchmark program offers to harness.c, and the few things many of them use. */
#ifndef HARNESS_H
#define HARNESS_H

#include <stddef.h>
#include <stdint.h>

/* One unit of the program's work: the same each time. Returns a digest of all it computed. */
uint64_t work(void);

/* The digest that a right processor computes. Where mathematics or a standard knows the answer, that is the answer. */
extern const uint64_t expected;

/* Whether this processor has what the program needs. harness.c has one that says yes. */
int supported(void);

/* Ends the program as failed, naming the call that did. */
_Noreturn void fail(const char *what);

/* SplitMix64: the same "random" numbers everywhere. */
static inline uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* FNV-1a over 64-bit words: adds a value to a digest. */
static inline uint64_t digest(uint64_t sum, uint64_t value) { return (sum ^ value) * 0x100000001b3; }

/* The bits of a double, so that a digest sees each of them. */
static inline uint64_t bits_of(double value) {
    union { double value; uint64_t bits; } both = { value };
    return both.bits;
}

#endif
