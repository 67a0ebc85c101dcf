/* A dense system of 160 equations in doubles, solved by elimination with pivoting: streams of multiply and add. */
#include "harness.h"

#include <math.h>

enum { N = 160 };
const uint64_t expected = 0x167e2b40bad0947b;

static double a[N][N], b[N], copy[N][N];

uint64_t work(void) {
    uint64_t random = 5, sum = 0;
    double worst = 0;
    for (int i = 0; i < N; i++) {
        b[i] = 0;
        for (int j = 0; j < N; j++) copy[i][j] = a[i][j] = (double)(next_random(&random) >> 11) * 0x1p-53 - 0.5;
    }
    for (int i = 0; i < N; i++) /* so that the solution is all ones */
        for (int j = 0; j < N; j++) b[i] += a[i][j];

    for (int column = 0; column < N; column++) {
        int pivot = column;
        for (int row = column + 1; row < N; row++)
            if (fabs(a[row][column]) > fabs(a[pivot][column])) pivot = row;
        if (pivot != column) {
            double held = b[pivot];
            b[pivot] = b[column];
            b[column] = held;
            for (int k = column; k < N; k++) {
                held = a[pivot][k];
                a[pivot][k] = a[column][k];
                a[column][k] = held;
            }
        }
        for (int row = column + 1; row < N; row++) {
            double factor = a[row][column] / a[column][column];
            for (int k = column; k < N; k++) a[row][k] -= factor * a[column][k];
            b[row] -= factor * b[column];
        }
    }
    for (int row = N - 1; row >= 0; row--) {
        for (int k = row + 1; k < N; k++) b[row] -= a[row][k] * b[k];
        b[row] /= a[row][row];
    }
    for (int i = 0; i < N; i++) {
        if (!(fabs(b[i] - 1) <= worst)) worst = fabs(b[i] - 1);
        sum = digest(sum, bits_of(b[i]));
    }
    return worst < 1e-9 ? sum : 0;
}
