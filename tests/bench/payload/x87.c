/* Extended precision on the x87: a series for pi, Newton's square roots, a polynomial, and conversions to and from integers. */
#include "harness.h"

#include <string.h>

const uint64_t expected = 0xddfc98aaf0057366;

static uint64_t add(uint64_t sum, long double value) {
    uint64_t mantissa = 0;
    uint16_t exponent = 0;
    memcpy(&mantissa, &value, 8);
    memcpy(&exponent, (char *)&value + 8, 2);
    return digest(digest(sum, mantissa), exponent);
}

uint64_t work(void) {
    uint64_t sum = 0;
    long double pi = 0, x, y;
    for (int64_t i = 0; i < 100000; i++) pi += (i & 1 ? -4.0L : 4.0L) / (2 * i + 1);
    if (pi < 3.14158L || pi > 3.14160L) return 0;
    sum = add(sum, pi);

    for (int i = 2; i < 8000; i++) {
        x = i;
        for (int round = 0; round < 8; round++) x = 0.5L * (x + i / x);
        __asm__("fsqrt" : "=t"(y) : "0"((long double)i));
        sum = add(add(sum, x), y);
    }
    for (int i = 0; i < 100000; i++) {
        x = i * 1e-5L;
        y = 1 + x * (1 + x * (0.5L + x * (1 / 6.0L + x * (1 / 24.0L + x * (1 / 120.0L)))));
        sum += (uint64_t)(int64_t)(y * 1e15L);
    }
    return sum;
}
