/* Quicksort of random numbers: recursion, swaps, branches that cannot be foretold. */
#include "harness.h"

enum { COUNT = 200000 };
const uint64_t expected = 0x546fa7df5d3d5e70;

static void sort(uint32_t *low, uint32_t *high) {
    while (high - low > 12) {
        uint32_t pivot = low[(high - low) / 2], *left = low, *right = high;
        while (left <= right) {
            while (*left < pivot) left++;
            while (*right > pivot) right--;
            if (left <= right) {
                uint32_t held = *left;
                *left++ = *right;
                *right-- = held;
            }
        }
        if (right - low < high - left) {
            sort(low, right);
            low = left;
        } else {
            sort(left, high);
            high = right;
        }
    }
    for (uint32_t *end = low + 1; end <= high; end++) {
        uint32_t value = *end, *at = end;
        for (; at > low && at[-1] > value; at--) *at = at[-1];
        *at = value;
    }
}

uint64_t work(void) {
    static uint32_t numbers[COUNT];
    uint64_t random = 11, sum = 0;
    for (int i = 0; i < COUNT; i++) numbers[i] = (uint32_t)next_random(&random);
    sort(numbers, numbers + COUNT - 1);
    for (int i = 0; i < COUNT; i++) {
        if (i && numbers[i - 1] > numbers[i]) return 0;
        sum = digest(sum, numbers[i]);
    }
    return sum;
}
