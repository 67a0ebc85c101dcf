/* Deep calls and returns: Fibonacci numbers, Ackermann's function, and two functions that call each other ten thousand deep. */
#include "harness.h"

#define APART __attribute__((noipa, optimize("no-optimize-sibling-calls")))
const uint64_t expected = 317811 + 2045 + 20 * 10001;

static APART uint64_t fibonacci(uint64_t n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

static APART uint64_t ackermann(uint64_t m, uint64_t n) {
    if (!m) return n + 1;
    return n ? ackermann(m - 1, ackermann(m, n - 1)) : ackermann(m - 1, 1);
}

static APART uint64_t tock(uint64_t depth);
static APART uint64_t tick(uint64_t depth) { return depth ? 1 + tock(depth - 1) : 1; }
static APART uint64_t tock(uint64_t depth) { return depth ? 1 + tick(depth - 1) : 1; }

uint64_t work(void) {
    uint64_t sum = fibonacci(28) + ackermann(3, 8);
    for (int i = 0; i < 20; i++) sum += tick(10000);
    return sum;
}
