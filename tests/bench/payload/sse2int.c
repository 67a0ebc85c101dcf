/* Whole numbers in 128-bit vectors: a blend of two pictures, sums of absolute differences, and a 16-bit filter. */
#include "harness.h"

#include <emmintrin.h>

enum { SIZE = 65536 };
const uint64_t expected = 0xab12a350e98a609f;

static _Alignas(16) uint8_t a[SIZE], b[SIZE], mixed[SIZE];

static void blend(int alpha) {
    __m128i zero = _mm_setzero_si128(), of_a = _mm_set1_epi16((short)alpha), of_b = _mm_set1_epi16((short)(256 - alpha));
    for (int i = 0; i < SIZE; i += 16) {
        __m128i x = _mm_load_si128((__m128i *)(a + i)), y = _mm_load_si128((__m128i *)(b + i));
        __m128i low = _mm_add_epi16(_mm_mullo_epi16(_mm_unpacklo_epi8(x, zero), of_a), _mm_mullo_epi16(_mm_unpacklo_epi8(y, zero), of_b));
        __m128i high = _mm_add_epi16(_mm_mullo_epi16(_mm_unpackhi_epi8(x, zero), of_a), _mm_mullo_epi16(_mm_unpackhi_epi8(y, zero), of_b));
        _mm_store_si128((__m128i *)(mixed + i), _mm_packus_epi16(_mm_srli_epi16(low, 8), _mm_srli_epi16(high, 8)));
    }
}

static uint64_t differences(int shift) {
    __m128i sum = _mm_setzero_si128();
    for (int i = 0; i + shift + 16 <= SIZE; i += 16)
        sum = _mm_add_epi64(sum, _mm_sad_epu8(_mm_load_si128((__m128i *)(mixed + i)), _mm_loadu_si128((__m128i *)(mixed + i + shift))));
    return (uint64_t)_mm_cvtsi128_si64(_mm_add_epi64(sum, _mm_srli_si128(sum, 8)));
}

static uint32_t filter(void) {
    __m128i taps = _mm_set_epi16(-1, 3, -9, 39, 39, -9, 3, -1), sum = _mm_setzero_si128();
    const int16_t *samples = (const int16_t *)mixed;
    for (int i = 0; i + 8 <= SIZE / 2; i += 2) {
        __m128i product = _mm_madd_epi16(_mm_loadu_si128((const __m128i *)(samples + i)), taps);
        product = _mm_add_epi32(product, _mm_shuffle_epi32(product, _MM_SHUFFLE(1, 0, 3, 2)));
        sum = _mm_xor_si128(_mm_add_epi32(sum, product), _mm_srai_epi32(product, 7));
    }
    return (uint32_t)_mm_cvtsi128_si32(sum);
}

uint64_t work(void) {
    uint64_t random = 13, sum = 0;
    for (int i = 0; i < SIZE; i++) a[i] = (uint8_t)next_random(&random), b[i] = (uint8_t)next_random(&random);
    for (int round = 0; round < 64; round++) {
        blend(round * 4);
        sum = digest(sum, differences(round & 15));
        sum = digest(sum, filter());
        for (int i = 0; i < 64; i++) a[round * 64 + i] ^= mixed[i * 64];
    }
    return sum;
}
