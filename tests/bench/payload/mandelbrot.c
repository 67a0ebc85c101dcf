/* The Mandelbrot set, 192 by 192 points in doubles: short loops that end on a comparison of two doubles. */
#include "harness.h"

enum { SIDE = 192, MOST = 200 };
const uint64_t expected = 0x09cbc1f2ec6a7afd;

uint64_t work(void) {
    uint64_t sum = 0;
    for (int row = 0; row < SIDE; row++)
        for (int column = 0; column < SIDE; column++) {
            double cr = -2.0 + 2.75 * column / SIDE, ci = -1.25 + 2.5 * row / SIDE, r = 0, i = 0;
            uint64_t count = 0;
            for (; count < MOST; count++) {
                double rr = r * r, ii = i * i;
                if (rr + ii > 4) break;
                i = 2 * r * i + ci;
                r = rr - ii + cr;
            }
            sum = digest(sum, count);
        }
    return sum;
}
