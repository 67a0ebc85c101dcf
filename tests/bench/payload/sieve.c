/* The sieve of Eratosthenes, a byte a number: short strided loops over two million bytes. */
#include "harness.h"

#include <string.h>

enum { LIMIT = 2000000 };
const uint64_t expected = 148933; /* the number of primes below two million */

uint64_t work(void) {
    static uint8_t composite[LIMIT];
    uint64_t primes = 0;
    memset(composite, 0, sizeof composite);
    for (uint32_t n = 2; n < LIMIT; n++) {
        if (composite[n]) continue;
        primes++;
        for (uint64_t multiple = (uint64_t)n * n; multiple < LIMIT; multiple += n) composite[multiple] = 1;
    }
    return primes;
}
