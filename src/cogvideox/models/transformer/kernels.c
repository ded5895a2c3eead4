/* The transformer's chains of small operations and its attention, for CPUs that multiply bf16 in AVX-512.
 * `kernels.py` builds and calls this file and says what it guarantees; `blocks.py` holds the plain versions.
 * Tensors are bf16 rows, tables fp32; everything in between is fp32.
 */
#include "native.h"

#define HEAD 64    /* numbers per head */
#define PANEL COLUMNS /* keys that lie together */
#define QUERIES 96 /* queries that share a block of keys, a multiple of ROWS */
#define KEYS 256   /* keys per block, a multiple of PANEL */

/* Where the modulation of a row stands: part p of kind r is table + (r * parts + p) * width. */
struct modulation {
    const float *table;
    const int32_t *kind; /* of each row */
    int parts, gate, shift, scale;
};

/* x + gate h -> sum (h NULL: sum is x), then layer norm(sum) (1 + scale) + shift -> out (NULL: not wanted). */
void gate_norm(const bf16 *x, const bf16 *h, int rows, int width, struct modulation m, const float *gamma,
               const float *beta, float eps, bf16 *sum, bf16 *out) {
#pragma omp parallel for schedule(static)
    for (int row = 0; row < rows; row++) {
        const int64_t at = (int64_t)row * width;
        const float *table = m.table + (int64_t)m.kind[row] * m.parts * width;
        float line[width];
        vec total = {0}, squares = {0};
        for (int i = 0; i < width; i += 16) {
            vec v = load16(x + at + i);
            if (h) {
                v = _mm512_fmadd_ps(_mm512_loadu_ps(table + m.gate * width + i), load16(h + at + i), v);
                store16(sum + at + i, v);
                v = load16(sum + at + i);
            }
            _mm512_storeu_ps(line + i, v);
            total += v;
        }
        if (!out) continue;
        const vec mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) / width);
        for (int i = 0; i < width; i += 16) {
            vec v = _mm512_loadu_ps(line + i) - mean;
            squares = _mm512_fmadd_ps(v, v, squares);
        }
        const vec rstd = _mm512_set1_ps(1 / sqrtf(_mm512_reduce_add_ps(squares) / width + eps));
        for (int i = 0; i < width; i += 16) {
            vec v = (_mm512_loadu_ps(line + i) - mean) * rstd;
            v = _mm512_fmadd_ps(v, _mm512_loadu_ps(gamma + i), _mm512_loadu_ps(beta + i));
            vec scale = _mm512_set1_ps(1) + _mm512_loadu_ps(table + m.scale * width + i);
            store16(out + at + i, _mm512_fmadd_ps(v, scale, _mm512_loadu_ps(table + m.shift * width + i)));
        }
    }
}

/* The tanh form of GELU in place: x / (1 + e^(-2 sqrt(2 / pi) (x + 0.044715 x^3))). */
void gelu(bf16 *x, int64_t count) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += 16) {
        vec v = load16(x + i), y = v * _mm512_fmadd_ps(v * v, _mm512_set1_ps(-.10294324f), _mm512_set1_ps(-2.3022082f));
        store16(x + i, damped(v, y));
    }
}

/* ------------------------------------------------------------------------------------------------ attention */

/* Layer norm of one head and rotation by (cos, sin), [32] each or NULL, times `factor`. */
static inline void norm_rotate(const bf16 *x, const float *gamma, const float *beta, float eps, const float *cosine,
                               const float *sine, float factor, bf16 *to) {
    vec v[2][2], total = {0}, squares = {0};
    for (int i = 0; i < 2; i++) {
        v[i][0] = low(load32(x + 32 * i)), v[i][1] = high(load32(x + 32 * i));
        total += v[i][0] + v[i][1];
    }
    const vec mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) / HEAD);
    for (int i = 0; i < 4; i++) v[i / 2][i % 2] -= mean, squares += v[i / 2][i % 2] * v[i / 2][i % 2];
    const vec rstd = _mm512_set1_ps(1 / sqrtf(_mm512_reduce_add_ps(squares) / HEAD + eps));
    for (int i = 0; i < 2; i++) {
        /* gamma and beta come with the 32 even numbers before the odd ones */
        vec even = _mm512_fmadd_ps(v[i][0] * rstd, _mm512_loadu_ps(gamma + 16 * i), _mm512_loadu_ps(beta + 16 * i));
        vec odd = _mm512_fmadd_ps(v[i][1] * rstd, _mm512_loadu_ps(gamma + 32 + 16 * i), _mm512_loadu_ps(beta + 32 + 16 * i));
        if (cosine) {
            vec c = _mm512_loadu_ps(cosine + 16 * i), s = _mm512_loadu_ps(sine + 16 * i), turned = even * c - odd * s;
            odd = odd * c + even * s, even = turned;
        }
        _mm512_storeu_si512(to + 32 * i, pair(even * _mm512_set1_ps(factor), odd * _mm512_set1_ps(factor)));
    }
}

struct norms {
    const float *q_gamma, *q_beta, *k_gamma, *k_beta;
    float eps;
};

/* Queries [ROWS..][64], keys [panels][32 pairs][32][2] and values [2][pairs of keys][32][2] of one head of a segment. */
static void arrange(const bf16 *qkv, int length, int heads, int head, int text, const float *cosine, const float *sine,
                    struct norms n, bf16 *q, bf16 *k, bf16 *v, int padded) {
    const int64_t stride = (int64_t)3 * heads * HEAD;
    for (int i = 0; i < length; i++) {
        const bf16 *row = qkv + i * stride + head * HEAD;
        const float *c = cosine && i >= text ? cosine + (int64_t)(i - text) * HEAD / 2 : NULL;
        const float *s = c ? sine + (int64_t)(i - text) * HEAD / 2 : NULL;
        bf16 key[HEAD];
        /* the scale of the scores, with log2(e): softmax by powers of two */
        norm_rotate(row, n.q_gamma, n.q_beta, n.eps, c, s, .125f * 1.44269504f, q + (int64_t)i * HEAD);
        norm_rotate(row + heads * HEAD, n.k_gamma, n.k_beta, n.eps, c, s, 1, key);
        bf16 *panel = k + (int64_t)i / PANEL * PANEL * HEAD + i % PANEL * 2;
        for (int p = 0; p < HEAD / 2; p++) memcpy(panel + p * PANEL * 2, key + 2 * p, 2 * sizeof(bf16));
        const bf16 *value = row + 2 * heads * HEAD;
        for (int half = 0; half < 2; half++) {
            bf16 *to = v + ((int64_t)half * padded / 2 + i / 2) * PANEL * 2 + i % 2;
            for (int col = 0; col < PANEL; col++) to[2 * col] = value[half * PANEL + col];
        }
    }
    for (int i = length; i < padded; i++) /* a weight of 0 must meet a number */
        for (int half = 0; half < 2; half++)
            for (int col = 0; col < PANEL; col++) v[(((int64_t)half * padded / 2 + i / 2) * PANEL + col) * 2 + i % 2] = 0;
}

/* Powers of the scores of ROWS queries with `count` keys into weights [ROWS][KEYS], zero up to the next panel;
 * their sums are added to totals. */
static void score(const bf16 *q, const bf16 *k, int count, bf16 *weights, vec *totals) {
    for (int first = 0; first < count; first += PANEL) {
        vec sum[ROWS][2] = {{{0}}};
        multiply(sum, q, HEAD, k + (int64_t)first * HEAD, HEAD);
        const uint32_t valid = count - first >= PANEL ? ~0u : (1u << (count - first)) - 1;
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            vec a = _mm512_maskz_mov_ps(valid & 0xffff, power_of_two(sum[r][0]));
            vec b = _mm512_maskz_mov_ps(valid >> 16, power_of_two(sum[r][1]));
            totals[r] += a + b;
            _mm512_storeu_si512(weights + r * KEYS + first, (__m512i)_mm512_cvtne2ps_pbh(b, a));
        }
    }
}

/* out [ROWS][64] += weights v, `depth` keys. */
static void weigh(const bf16 *weights, const bf16 *v, int64_t half_size, int depth, float *out) {
    for (int half = 0; half < 2; half++, v += half_size) {
        vec sum[ROWS][2];
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++)
            sum[r][0] = _mm512_loadu_ps(out + r * HEAD + half * 32), sum[r][1] = _mm512_loadu_ps(out + r * HEAD + half * 32 + 16);
        multiply(sum, weights, KEYS, v, depth);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++)
            _mm512_storeu_ps(out + r * HEAD + half * 32, sum[r][0]), _mm512_storeu_ps(out + r * HEAD + half * 32 + 16, sum[r][1]);
    }
}

/* Rows that a segment takes in the arranged queries, keys and values. */
int padded_length(int length) { return (length + QUERIES - 1) / QUERIES * QUERIES; }

/* Attention inside each of `segments` segments of one shape: qkv [segments][length][3][heads][64] -> out
 * [segments][length][heads][64]. Layer norms on q and k, rotation of what comes behind the text (cosine NULL: none).
 * Scores must stay below 120 in powers of two. `memory`: 3 x padded length x 64 numbers for each head. */
void attend(const bf16 *qkv, int segments, int length, int heads, int text, const float *cosine, const float *sine,
            struct norms n, bf16 *memory, bf16 *out) {
    const int padded = padded_length(length), blocks = padded / QUERIES;
    const int64_t size = (int64_t)padded * HEAD, width = (int64_t)heads * HEAD;
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < segments * heads; i++) {
        bf16 *q = memory + i * 3 * size;
        arrange(qkv + i / heads * length * 3 * width, length, heads, i % heads, text, cosine, sine, n, q, q + size, q + 2 * size, padded);
    }
#pragma omp parallel for schedule(dynamic)
    for (int item = 0; item < segments * heads * blocks; item++) {
        const int i = item / blocks, start = item % blocks * QUERIES;
        const bf16 *q = memory + i * 3 * size, *k = q + size, *v = k + size;
        float sums[QUERIES * HEAD] = {0};
        vec totals[QUERIES] = {{0}};
        bf16 weights[ROWS * KEYS];
        for (int first = 0; first < length; first += KEYS) {
            const int count = length - first < KEYS ? length - first : KEYS;
            for (int row = 0; row < QUERIES && start + row < length; row += ROWS) {
                score(q + (int64_t)(start + row) * HEAD, k + (int64_t)first * HEAD, count, weights, totals + row);
                weigh(weights, v + (int64_t)first * PANEL, size / 2, (count + 1) / 2 * 2, sums + row * HEAD);
            }
        }
        for (int row = 0; row < QUERIES && start + row < length; row++) {
            const vec share = _mm512_set1_ps(1 / _mm512_reduce_add_ps(totals[row]));
            bf16 *to = out + ((int64_t)(i / heads) * length + start + row) * width + i % heads * HEAD;
            for (int d = 0; d < HEAD; d += 16) store16(to + d, _mm512_loadu_ps(sums + row * HEAD + d) * share);
        }
    }
}
