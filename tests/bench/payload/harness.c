/* PROGRAM N: does the program's work N times and checks every result against the known answer.
   Ends with 0 and `ok`, with 1 and what was wrong, or with 77 where this processor lacks an instruction set. */
#include "harness.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

__attribute__((weak)) int supported(void) { return 1; }

_Noreturn void fail(const char *what) {
    printf("FAILED %s: %s\n", what, strerror(errno));
    exit(1);
}

int main(int count, char **arguments) {
    long rounds = count > 1 ? atol(arguments[1]) : 1;
    if (!supported()) {
        puts("n/a");
        return 77;
    }
    for (long round = 1; round <= rounds; round++) {
        uint64_t got = work();
        if (got != expected) {
            printf("WRONG round %ld of %ld: got 0x%016" PRIx64 ", expected 0x%016" PRIx64 "\n", round, rounds, got, expected);
            return 1;
        }
    }
    puts("ok");
    return 0;
}
