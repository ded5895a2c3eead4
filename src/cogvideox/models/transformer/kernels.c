/* The transformer's attention, for CPUs that multiply bf16 in AVX-512. `kernels.py` builds and calls this file and
 * says what it guarantees; `blocks.py` holds the plain versions. Tensors are bf16 rows, tables fp32; everything in
 * between is fp32.
 */
#include "native.h"

#define HEAD 64    /* numbers per head */
#define PANEL COLUMNS /* keys that lie together */
#define QUERIES 96 /* queries that share a block of keys, a multiple of ROWS */
#define KEYS 256   /* keys per block, a multiple of PANEL */

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

/* Row i of a right operand whose depth are the 64 numbers of a head: [panels][32 pairs][32 rows][2]. */
static inline void put_row(const bf16 *row, int i, bf16 *panels) {
    panels += (int64_t)i / PANEL * PANEL * HEAD + i % PANEL * 2;
    for (int p = 0; p < HEAD / 2; p++) memcpy(panels + p * PANEL * 2, row + 2 * p, 2 * sizeof(bf16));
}

/* Rows i and i + 1, i even, of a right operand whose depth are rows: [2][padded / 2 pairs][32 numbers][2]. */
static inline void put_pair(const bf16 *one, const bf16 *two, int i, int padded, bf16 *panels) {
    for (int half = 0; half < 2; half++)
        for (int quarter = 0; quarter < 2; quarter++) {
            const int from = half * PANEL + quarter * 16;
            __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(one + from)));
            __m512i b = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(two + from)));
            bf16 *to = panels + ((int64_t)half * padded / 2 + i / 2) * PANEL * 2 + quarter * 32;
            _mm512_storeu_si512(to, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
        }
}

#define FACTOR (.125f * 1.44269504f) /* the scale of the scores, with log2(e): softmax by powers of two */

/* Queries, keys (as rows) and values (as depth) of one head of a segment, each of `padded` rows. */
static void arrange(const bf16 *qkv, int length, int heads, int head, int text, const float *cosine, const float *sine,
                    struct norms n, bf16 *q, bf16 *k, bf16 *v, int padded) {
    const bf16 zeros[HEAD] = {0}, *before = zeros;
    for (int i = 0; i < length; i++) {
        const bf16 *row = qkv + ((int64_t)3 * i * heads + head) * HEAD, *value = row + 2 * heads * HEAD;
        const float *c = cosine && i >= text ? cosine + (int64_t)(i - text) * HEAD / 2 : NULL;
        const float *s = c ? sine + (int64_t)(i - text) * HEAD / 2 : NULL;
        bf16 key[HEAD];
        norm_rotate(row, n.q_gamma, n.q_beta, n.eps, c, s, FACTOR, q + (int64_t)i * HEAD);
        norm_rotate(row + heads * HEAD, n.k_gamma, n.k_beta, n.eps, c, s, 1, key);
        put_row(key, i, k);
        if (i % 2) put_pair(before, value, i - 1, padded, v);
        before = value;
    }
    /* a weight of 0 must meet a number */
    for (int i = length / 2 * 2; i < padded; i += 2) put_pair(i < length ? before : zeros, zeros, i, padded, v);
}

/* Powers of the scores of ROWS queries with `count` keys into weights [ROWS][KEYS], zero up to the next panel;
 * their sums are added to totals. */
static void score(const bf16 *q, const bf16 *k, int count, bf16 *weights, vec *totals) {
    for (int first = 0; first < count; first += PANEL) {
        vec sum[ROWS][2] = {{{0}}};
        multiply(sum, q, HEAD, 2, k + (int64_t)first * HEAD, HEAD);
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

/* out [ROWS][64] += weights v, whose depth stands in panels of `padded` rows. */
static inline void weigh(const bf16 *weights, int64_t stride, int64_t step, const bf16 *v, int padded, int depth, float *out) {
    for (int half = 0; half < 2; half++, v += (int64_t)padded * PANEL) {
        vec sum[ROWS][2];
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++)
            sum[r][0] = _mm512_loadu_ps(out + r * HEAD + half * 32), sum[r][1] = _mm512_loadu_ps(out + r * HEAD + half * 32 + 16);
        multiply(sum, weights, stride, step, v, depth);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++)
            _mm512_storeu_ps(out + r * HEAD + half * 32, sum[r][0]), _mm512_storeu_ps(out + r * HEAD + half * 32 + 16, sum[r][1]);
    }
}

/* Rows that a segment takes in the arranged queries, keys and values. */
int padded_length(int length) { return (length + QUERIES - 1) / QUERIES * QUERIES; }

/* Attention inside each of `segments` segments of one shape: qkv [segments][length][3][heads][64] -> out
 * [segments][length][heads][64]. Layer norms on q and k, rotation of what comes behind the text (cosine NULL: none).
 * Scores must stay below 120 in powers of two. `memory`: 3 x padded length x 64 numbers for each head. `logs`
 * [segments][heads][length] (NULL: not wanted): log2 of the sums of their powers. */
void attend(const bf16 *qkv, int segments, int length, int heads, int text, const float *cosine, const float *sine,
            struct norms n, bf16 *memory, float *logs, bf16 *out) {
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
                weigh(weights, KEYS, 2, v + (int64_t)first * PANEL, padded, (count + 1) / 2 * 2, sums + row * HEAD);
            }
        }
        for (int row = 0; row < QUERIES && start + row < length; row++) {
            const float total = _mm512_reduce_add_ps(totals[row]);
            const vec share = _mm512_set1_ps(1 / total);
            if (logs) logs[(int64_t)i * length + start + row] = log2f(total);
            bf16 *to = out + ((int64_t)(i / heads) * length + start + row) * width + i % heads * HEAD;
            for (int d = 0; d < HEAD; d += 16) store16(to + d, _mm512_loadu_ps(sums + row * HEAD + d) * share);
        }
    }
}

/* ------------------------------------------------------------------------------------------------ backward */

#define BACK 192 /* keys per block, a multiple of PANEL and of ROWS */

/* Operands of one head of a segment, each of `padded` rows, and its gradients. */
struct head {
    bf16 *q, *q_depth, *k, *k_depth, *v, *d_out, *d_out_depth;
    float *d_q, *d_k, *d_v, *delta, *log;
};
#define HALVES 7
#define SINGLES 3

/* Numbers of 4 bytes that the work on one head takes. */
int64_t head_size(int length) { return (int64_t)padded_length(length) * (HEAD * HALVES / 2 + HEAD * SINGLES + 2); }

static struct head place(float *memory, int padded) {
    struct head h;
    float **singles[] = {&h.d_q, &h.d_k, &h.d_v};
    bf16 **halves[] = {&h.q, &h.q_depth, &h.k, &h.k_depth, &h.v, &h.d_out, &h.d_out_depth};
    for (int i = 0; i < SINGLES; i++, memory += padded * HEAD) *singles[i] = memory;
    for (int i = 0; i < HALVES; i++, memory += padded * HEAD / 2) *halves[i] = (bf16 *)memory;
    h.delta = memory, h.log = memory + padded;
    return h;
}

/* Powers P of the scores of the queries `start`... with the keys `first`... over their sum, and the gradients dS of
 * the scores: pairs of queries [QUERIES / 2][BACK][2] of both, and rows [QUERIES][BACK] of dS. Returns the queries. */
static int score_backward(struct head h, int length, int start, int first, int count, bf16 *p_pairs, bf16 *d_pairs, bf16 *d_rows) {
    int row = 0;
    for (; row < QUERIES && start + row < length; row += ROWS)
        for (int col = 0; col < count; col += PANEL) {
            vec p[ROWS][2] = {{{0}}}, d[ROWS][2] = {{{0}}};
            multiply(p, h.q + (int64_t)(start + row) * HEAD, HEAD, 2, h.k + (int64_t)(first + col) * HEAD, HEAD);
            multiply(d, h.d_out + (int64_t)(start + row) * HEAD, HEAD, 2, h.v + (int64_t)(first + col) * HEAD, HEAD);
            const uint32_t valid = count - col >= PANEL ? ~0u : (1u << (count - col)) - 1;
            for (int r = 0; r < ROWS; r++) {
                const vec log = _mm512_set1_ps(h.log[start + row + r]), delta = _mm512_set1_ps(h.delta[start + row + r]);
                for (int half = 0; half < 2; half++) {
                    p[r][half] = _mm512_maskz_mov_ps(valid >> 16 * half & 0xffff, power_of_two(p[r][half] - log));
                    d[r][half] = p[r][half] * (d[r][half] - delta);
                    store16(d_rows + (row + r) * BACK + col + 16 * half, d[r][half]);
                }
            }
            for (int r = 0; r < ROWS; r += 2)
                for (int half = 0; half < 2; half++) {
                    const int at = ((row + r) / 2 * BACK + col + 16 * half) * 2;
                    _mm512_storeu_si512(p_pairs + at, pair(p[r][half], p[r + 1][half]));
                    _mm512_storeu_si512(d_pairs + at, pair(d[r][half], d[r + 1][half]));
                }
        }
    return row;
}

/* Gradient d [64] of a head's query or key after norm_rotate -> of the head before; those of gamma and beta [64], even
 * numbers before odd ones, are added to d_gamma and to d_gamma + 64. */
static inline void norm_rotate_backward(const float *d, const bf16 *x, const float *gamma, float eps, const float *cosine,
                                        const float *sine, float factor, float *d_gamma, bf16 *d_x) {
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
    vec n[2][2], g[2][2], mean = {0}, rstd = {0}, first = {0}, second = {0};
    for (int i = 0; i < 2; i++) {
        n[i][0] = low(load32(x + 32 * i)), n[i][1] = high(load32(x + 32 * i));
        mean += n[i][0] + n[i][1];
    }
    mean = _mm512_set1_ps(_mm512_reduce_add_ps(mean) / HEAD);
    for (int i = 0; i < 4; i++) n[i / 2][i % 2] -= mean, rstd += n[i / 2][i % 2] * n[i / 2][i % 2];
    rstd = _mm512_set1_ps(1 / sqrtf(_mm512_reduce_add_ps(rstd) / HEAD + eps));
    for (int i = 0; i < 2; i++) {
        vec a = _mm512_loadu_ps(d + 32 * i) * _mm512_set1_ps(factor), b = _mm512_loadu_ps(d + 32 * i + 16) * _mm512_set1_ps(factor);
        vec even = _mm512_permutex2var_ps(a, evens, b), odd = _mm512_permutex2var_ps(a, odds, b);
        if (cosine) {
            vec c = _mm512_loadu_ps(cosine + 16 * i), s = _mm512_loadu_ps(sine + 16 * i), turned = even * c + odd * s;
            odd = odd * c - even * s, even = turned;
        }
        g[i][0] = even, g[i][1] = odd;
        for (int j = 0; j < 2; j++) {
            float *to = d_gamma + 32 * j + 16 * i;
            n[i][j] *= rstd;
            _mm512_storeu_ps(to, _mm512_fmadd_ps(g[i][j], n[i][j], _mm512_loadu_ps(to)));
            _mm512_storeu_ps(to + HEAD, g[i][j] + _mm512_loadu_ps(to + HEAD));
            g[i][j] *= _mm512_loadu_ps(gamma + 32 * j + 16 * i);
            first += g[i][j], second += g[i][j] * n[i][j];
        }
    }
    first = _mm512_set1_ps(_mm512_reduce_add_ps(first) / HEAD), second = _mm512_set1_ps(_mm512_reduce_add_ps(second) / HEAD);
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 2; j++) g[i][j] = rstd * (g[i][j] - first - second * n[i][j]);
        _mm512_storeu_si512(d_x + 32 * i, pair(g[i][0], g[i][1]));
    }
}

/* Gradients of `attend` from what it took, gave and `logs`. `memory`: head_size for each thread; d_norms
 * [threads][q, k][gamma, beta][64], zero before, even numbers before odd ones. */
void attend_backward(const bf16 *qkv, int segments, int length, int heads, int text, const float *cosine, const float *sine,
                     struct norms n, const float *logs, const bf16 *out, const bf16 *d_out, float *memory, int threads,
                     float *d_norms, bf16 *d_qkv) {
    const int padded = padded_length(length), items = segments * heads;
    const int64_t width = (int64_t)heads * HEAD;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int thread = 0; thread < threads; thread++)
        for (int item = items * thread / threads; item < items * (thread + 1) / threads; item++) {
            const int64_t rows = (int64_t)(item / heads) * length, head = item % heads;
            const struct head h = place(memory + thread * head_size(length), padded);
            float *sums = d_norms + thread * 4 * HEAD;
            memset(h.d_q, 0, head_size(length) * sizeof(float));
            bf16 keys[2][HEAD];
            for (int i = 0; i < padded; i++) h.log[i] = 1e30f; /* rows of padding have no weight */
            for (int i = 0; i < length; i++) {
                const bf16 *row = qkv + ((rows + i) * 3 * heads + head) * HEAD, *o = out + (rows + i) * width + head * HEAD;
                const float *c = cosine && i >= text ? cosine + (int64_t)(i - text) * HEAD / 2 : NULL;
                const float *s = c ? sine + (int64_t)(i - text) * HEAD / 2 : NULL;
                bf16 *query = h.q + (int64_t)i * HEAD, *key = keys[i % 2], *d = h.d_out + (int64_t)i * HEAD;
                norm_rotate(row, n.q_gamma, n.q_beta, n.eps, c, s, FACTOR, query);
                norm_rotate(row + width, n.k_gamma, n.k_beta, n.eps, c, s, 1, key);
                memcpy(d, d_out + (rows + i) * width + head * HEAD, HEAD * sizeof(bf16));
                put_row(key, i, h.k), put_row(row + 2 * width, i, h.v);
                if (i % 2 || i + 1 == length) {
                    const int even = i - i % 2;
                    if (i % 2 == 0) memset(keys[1], 0, sizeof keys[1]); /* behind the last row stand zeros */
                    put_pair(h.q + (int64_t)even * HEAD, h.q + (int64_t)(even + 1) * HEAD, even, padded, h.q_depth);
                    put_pair(keys[0], keys[1], even, padded, h.k_depth);
                    put_pair(h.d_out + (int64_t)even * HEAD, h.d_out + (int64_t)(even + 1) * HEAD, even, padded, h.d_out_depth);
                }
                vec delta = {0};
                for (int j = 0; j < HEAD; j += 16) delta = _mm512_fmadd_ps(load16(d + j), load16(o + j), delta);
                h.delta[i] = _mm512_reduce_add_ps(delta), h.log[i] = logs[(int64_t)item * length + i];
            }
            bf16 p_pairs[QUERIES * BACK], d_pairs[QUERIES * BACK], d_rows[QUERIES * BACK];
            for (int first = 0; first < length; first += BACK)
                for (int start = 0; start < length; start += QUERIES) {
                    const int count = length - first < BACK ? length - first : BACK;
                    const int queries = score_backward(h, length, start, first, count, p_pairs, d_pairs, d_rows);
                    for (int row = 0; row < queries; row += ROWS)
                        weigh(d_rows + row * BACK, BACK, 2, h.k_depth + (int64_t)first * PANEL, padded, (count + 1) / 2 * 2, h.d_q + (int64_t)(start + row) * HEAD);
                    for (int col = 0; col < count; col += ROWS) {
                        const int64_t to = (int64_t)(first + col) * HEAD, from = (int64_t)start * PANEL;
                        weigh(d_pairs + 2 * col, 2, 2 * BACK, h.q_depth + from, padded, queries, h.d_k + to);
                        weigh(p_pairs + 2 * col, 2, 2 * BACK, h.d_out_depth + from, padded, queries, h.d_v + to);
                    }
                }
            for (int i = 0; i < length; i++) {
                const int64_t at = ((rows + i) * 3 * heads + head) * HEAD;
                const float *c = cosine && i >= text ? cosine + (int64_t)(i - text) * HEAD / 2 : NULL;
                const float *s = c ? sine + (int64_t)(i - text) * HEAD / 2 : NULL;
                norm_rotate_backward(h.d_q + (int64_t)i * HEAD, qkv + at, n.q_gamma, n.eps, c, s, .125f, sums, d_qkv + at);
                /* the queries that stand for a key's gradient have log2(e) in them */
                norm_rotate_backward(h.d_k + (int64_t)i * HEAD, qkv + at + width, n.k_gamma, n.eps, c, s, .69314718f, sums + 2 * HEAD, d_qkv + at + width);
                for (int j = 0; j < HEAD; j += 16) store16(d_qkv + at + 2 * width + j, _mm512_loadu_ps(h.d_v + (int64_t)i * HEAD + j));
            }
        }
}
