/* Product of two 96 by 96 matrices of floats, four at a time, and again with the product. */
#include "harness.h"

#include <xmmintrin.h>

enum { N = 96 };
const uint64_t expected = 0x110754cecf182c4c;

static _Alignas(16) float a[N][N], b[N][N], c[N][N];

static void multiply(void) {
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j += 8) {
            __m128 left = _mm_setzero_ps(), right = _mm_setzero_ps();
            for (int k = 0; k < N; k++) {
                __m128 factor = _mm_set1_ps(a[i][k]);
                left = _mm_add_ps(left, _mm_mul_ps(factor, _mm_load_ps(&b[k][j])));
                right = _mm_add_ps(right, _mm_mul_ps(factor, _mm_load_ps(&b[k][j + 4])));
            }
            _mm_store_ps(&c[i][j], left);
            _mm_store_ps(&c[i][j + 4], right);
        }
}

/* The product back into the first matrix, shrunk so that it keeps its size. */
static void feed_back(void) {
    __m128 least = _mm_set1_ps(-1), most = _mm_set1_ps(1), shrink = _mm_set1_ps(0.125f);
    for (float *to = &a[0][0], *from = &c[0][0]; from < &c[0][0] + N * N; to += 4, from += 4)
        _mm_store_ps(to, _mm_min_ps(most, _mm_max_ps(least, _mm_mul_ps(shrink, _mm_load_ps(from)))));
}

uint64_t work(void) {
    uint64_t random = 17, sum = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = (float)(int32_t)next_random(&random) * 0x1p-31f;
            b[i][j] = (float)(int32_t)next_random(&random) * 0x1p-31f;
        }
    for (int round = 0; round < 8; round++) {
        multiply();
        feed_back();
    }
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            union { float value; uint32_t bits; } both = { c[i][j] };
            sum = digest(sum, both.bits);
        }
    return sum;
}
