/* Product of two 96 by 96 matrices of floats, eight at a time with fused multiply-add, and again with the product. */
#pragma GCC target("avx2,fma")
#include "harness.h"

#include <immintrin.h>

enum { N = 96 };
const uint64_t expected = 0x3df79e1fa2cbe1ec;

static _Alignas(32) float a[N][N], b[N][N], c[N][N];

int supported(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

static void multiply(void) {
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j += 16) {
            __m256 left = _mm256_setzero_ps(), right = _mm256_setzero_ps();
            for (int k = 0; k < N; k++) {
                __m256 factor = _mm256_broadcast_ss(&a[i][k]);
                left = _mm256_fmadd_ps(factor, _mm256_load_ps(&b[k][j]), left);
                right = _mm256_fmadd_ps(factor, _mm256_load_ps(&b[k][j + 8]), right);
            }
            _mm256_store_ps(&c[i][j], left);
            _mm256_store_ps(&c[i][j + 8], right);
        }
}

/* The product back into the first matrix, shrunk so that it keeps its size. */
static void feed_back(void) {
    __m256 least = _mm256_set1_ps(-1), most = _mm256_set1_ps(1), shrink = _mm256_set1_ps(0.125f);
    for (float *to = &a[0][0], *from = &c[0][0]; from < &c[0][0] + N * N; to += 8, from += 8)
        _mm256_store_ps(to, _mm256_min_ps(most, _mm256_max_ps(least, _mm256_mul_ps(shrink, _mm256_load_ps(from)))));
}

uint64_t work(void) {
    uint64_t random = 23, sum = 0;
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
