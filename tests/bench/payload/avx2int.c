/* Whole numbers in 256-bit vectors, with what AVX2 brought: gathers, permutations, shifts by lane, byte shuffles. */
#pragma GCC target("avx2")
#include "harness.h"

#include <immintrin.h>

enum { WORDS = 16384 };
const uint64_t expected = 0x20895a0387cb83f1;

static _Alignas(32) uint32_t data[WORDS];

int supported(void) { return __builtin_cpu_supports("avx2"); }

static __m256i round_of(__m256i x, __m256i index, __m256i turn) {
    __m256i far = _mm256_i32gather_epi32((const int *)data, index, 4);
    __m256i mixed = _mm256_xor_si256(_mm256_mullo_epi32(x, far), _mm256_sllv_epi32(far, _mm256_srli_epi32(x, 28)));
    mixed = _mm256_shuffle_epi8(mixed, turn);
    mixed = _mm256_permutevar8x32_epi32(mixed, _mm256_set_epi32(0, 7, 6, 5, 4, 3, 2, 1));
    return _mm256_blendv_epi8(_mm256_add_epi32(mixed, x), _mm256_sub_epi32(mixed, far), _mm256_cmpgt_epi32(x, far));
}

uint64_t work(void) {
    uint64_t random = 19, sum = 0;
    _Alignas(32) uint32_t lanes[8];
    __m256i turn = _mm256_setr_epi8(3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14, 3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14);
    __m256i all = _mm256_setzero_si256();
    for (int i = 0; i < WORDS; i++) data[i] = (uint32_t)next_random(&random);
    for (int round = 0; round < 24; round++)
        for (int i = 0; i < WORDS; i += 8) {
            __m256i x = _mm256_load_si256((__m256i *)(data + i));
            __m256i index = _mm256_and_si256(_mm256_srli_epi32(x, 3), _mm256_set1_epi32(WORDS - 1));
            x = round_of(x, index, turn);
            _mm256_store_si256((__m256i *)(data + i), x);
            all = _mm256_add_epi64(all, _mm256_mul_epu32(x, _mm256_srli_epi64(x, 32)));
        }
    _mm256_store_si256((__m256i *)lanes, all);
    for (int i = 0; i < 8; i++) sum = digest(sum, lanes[i]);
    return sum;
}
