/* Memory mapped, touched page by page, and given back: a thousand page faults at a time. */
#define _GNU_SOURCE
#include "harness.h"

#include <sys/mman.h>

enum { PAGES = 1024, PAGE = 4096, TIMES = 4 };
const uint64_t expected = TIMES * ((uint64_t)PAGES * (PAGES + 1) / 2);

uint64_t work(void) {
    uint64_t sum = 0;
    for (int time = 0; time < TIMES; time++) {
        uint8_t *memory = mmap(0, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) fail("mmap");
        madvise(memory, (size_t)PAGES * PAGE, MADV_NOHUGEPAGE); /* single pages everywhere; a kernel without huge ones says no */
        for (uint64_t page = 0; page < PAGES; page++) {
            uint64_t *word = (uint64_t *)(memory + page * PAGE + page % 512 * 8);
            *word += page + 1; /* fresh memory is zero */
            sum += *word;
        }
        if (munmap(memory, (size_t)PAGES * PAGE)) fail("munmap");
    }
    return sum;
}
