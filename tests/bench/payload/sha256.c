/* SHA-256 of a million letters a: long straight runs of rotations and additions. See: FIPS 180-4. */
#include "harness.h"

#include <string.h>

const uint64_t expected = 0xcdc76e5c9914fb92; /* the first eight bytes of the published answer */

static uint32_t constant[64], initial[8];

/* The first 32 bits of the fractional part of a root of `prime`: the largest r with r^power <= prime * 2^(32 * power). */
static uint32_t root(uint32_t prime, int power) {
    unsigned __int128 target = (unsigned __int128)prime << 32 * power;
    uint64_t low = 0, high = (uint64_t)1 << 38;
    while (high - low > 1) {
        uint64_t middle = (low + high) / 2;
        unsigned __int128 product = (unsigned __int128)middle * middle;
        if (power == 3) {
            if (product > target / middle) product = target + 1;
            else product *= middle;
        }
        if (product <= target) low = middle;
        else high = middle;
    }
    return (uint32_t)low;
}

static void make_constants(void) {
    int found = 0;
    for (uint32_t n = 2; found < 64; n++) {
        int prime = 1;
        for (uint32_t d = 2; d * d <= n; d++) prime &= n % d != 0;
        if (!prime) continue;
        if (found < 8) initial[found] = root(n, 2);
        constant[found++] = root(n, 3);
    }
}

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

/* One of the 64 rounds. The eight words change names from round to round, so that none has to move. */
#define ROUND(a, b, c, d, e, f, g, h, i) do { \
    uint32_t one = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + constant[i] + w[i]; \
    d += one; \
    h = one + (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c)); \
} while (0)

static void block(uint32_t state[8], const uint8_t *data) {
    uint32_t w[64], a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)data[4 * i] << 24 | (uint32_t)data[4 * i + 1] << 16 | (uint32_t)data[4 * i + 2] << 8 | data[4 * i + 3];
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
               (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
    for (int i = 0; i < 64; i += 8) {
        ROUND(a, b, c, d, e, f, g, h, i);
        ROUND(h, a, b, c, d, e, f, g, i + 1);
        ROUND(g, h, a, b, c, d, e, f, i + 2);
        ROUND(f, g, h, a, b, c, d, e, i + 3);
        ROUND(e, f, g, h, a, b, c, d, i + 4);
        ROUND(d, e, f, g, h, a, b, c, i + 5);
        ROUND(c, d, e, f, g, h, a, b, i + 6);
        ROUND(b, c, d, e, f, g, h, a, i + 7);
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

uint64_t work(void) {
    enum { LENGTH = 1000000 };
    uint32_t state[8];
    uint8_t last[64] = { 0x80 }, letters[64];
    if (!constant[0]) make_constants();
    memcpy(state, initial, sizeof state);
    memset(letters, 'a', sizeof letters);
    for (int done = 0; done < LENGTH; done += 64) block(state, letters); /* a million is a multiple of 64 */
    for (int i = 0; i < 8; i++) last[56 + i] = (uint8_t)((uint64_t)LENGTH * 8 >> (56 - 8 * i));
    block(state, last);
    return (uint64_t)state[0] << 32 | state[1];
}
