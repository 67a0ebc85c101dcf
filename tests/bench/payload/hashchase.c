/* Memory with no order in it: an open hash table that is filled and asked, and a chain of pointers through 4 MiB. */
#include "harness.h"

#include <string.h>

enum { SLOTS = 1 << 18, KEYS = 150000, NODES = 1 << 19, HOPS = 500000 };
const uint64_t expected = 0x403ade1fb96c52c5;

static struct { uint64_t key, value; } table[SLOTS];
static uint64_t next[NODES];

static size_t slot_of(uint64_t key) {
    size_t at = key * 0x9e3779b97f4a7c15 >> 46;
    while (table[at].key && table[at].key != key) at = (at + 1) & (SLOTS - 1);
    return at;
}

uint64_t work(void) {
    uint64_t random = 3, sum = 0, at = 0;
    memset(table, 0, sizeof table);
    for (int i = 0; i < KEYS; i++) {
        uint64_t key = next_random(&random) | 1;
        size_t slot = slot_of(key);
        table[slot].key = key;
        table[slot].value += (uint64_t)i;
    }
    random = 3;
    for (int i = 0; i < 2 * KEYS; i++) sum += table[slot_of(next_random(&random) | 1)].value; /* the second half is not there */

    /* Sattolo's shuffle: one cycle through all nodes. */
    for (uint64_t i = 0; i < NODES; i++) next[i] = i;
    for (uint64_t i = NODES - 1; i > 0; i--) {
        uint64_t other = next_random(&random) % i, held = next[i];
        next[i] = next[other];
        next[other] = held;
    }
    for (int i = 0; i < HOPS; i++) at = next[at], sum = digest(sum, at);
    return sum;
}
