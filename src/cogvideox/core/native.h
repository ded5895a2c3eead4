/* What the kernels share: powers of two in vectors of 16 fp32 numbers, and for CPUs that multiply bf16 in AVX-512 bf16
 * in and out of such vectors and the register tile of a matrix product. `native.py` builds the files that include this
 * one.
 */
#pragma once
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef __m512 vec;

/* 2^y, y below 127: the integer part by the exponent, the rest by a polynomial with relative error 2e-7. */
static inline vec power_of_two(vec y) {
    const float c[] = {1.3171976e-3f, 9.6741641e-3f, 5.5510201e-2f, 2.4022152e-1f, 6.931468e-1f, 1.0000001f};
    vec n = _mm512_roundscale_ps(y, 8), r = y - n, p = _mm512_set1_ps(c[0]);
    for (int i = 1; i < 6; i++) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c[i]));
    return _mm512_scalef_ps(p, n);
}

/* x / (1 + 2^y), for |x| below 1e30. */
static inline vec damped(vec x, vec y) {
    y = _mm512_max_ps(_mm512_min_ps(y, _mm512_set1_ps(126)), _mm512_set1_ps(-126));
    vec whole = power_of_two(y) + _mm512_set1_ps(1), part = _mm512_rcp14_ps(whole);
    return x * part * _mm512_fnmadd_ps(part, whole, _mm512_set1_ps(2)); /* Newton: 14 bits become 23 */
}

#ifdef __AVX512BF16__
typedef uint16_t bf16;

/* 32 numbers as 16 pairs: `low` are the even ones, `high` the odd ones, `pair` puts them together again. */
static inline __m512i load32(const bf16 *p) { return _mm512_loadu_si512(p); }
static inline vec low(__m512i pairs) { return (vec)_mm512_slli_epi32(pairs, 16); }
static inline vec high(__m512i pairs) { return (vec)_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff0000)); }
static inline __m512i pair(vec even, vec odd) {
    __m512i e = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
    return _mm512_or_si512(e, _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd)), 16));
}

/* 16 numbers in their order. */
static inline __m256i narrow(vec x) { return (__m256i)_mm512_cvtneps_pbh(x); }
static inline vec widen(__m256i x) { return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16); }
static inline vec load16(const bf16 *p) { return widen(_mm256_loadu_si256((const void *)p)); }
static inline void store16(bf16 *p, vec x) { _mm256_storeu_si256((void *)p, narrow(x)); }

/* A register tile: sum[ROWS][2] += left right. Pairs of numbers of left stand `step` apart along its rows, which are
 * `stride` apart; right is [depth / 2][COLUMNS][2]. */
#define ROWS 12
#define COLUMNS 32
static inline __attribute__((always_inline)) void multiply(vec sum[ROWS][2], const bf16 *left, int64_t stride, int64_t step, const bf16 *right, int depth) {
    for (int k = 0; k < depth; k += 2, left += step) {
        __m512bh w0 = (__m512bh)load32(right + k * COLUMNS), w1 = (__m512bh)load32(right + k * COLUMNS + 32);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            int32_t two;
            memcpy(&two, left + r * stride, sizeof two);
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], (__m512bh)_mm512_set1_epi32(two), w0);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], (__m512bh)_mm512_set1_epi32(two), w1);
        }
    }
}
#endif
