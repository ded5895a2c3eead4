/* The transformer's chains of small operations, for CPUs with AVX-512: once for rows of bf16, where it multiplies those,
 * and once with -DFP32 for rows of fp32. `kernels.py` builds and calls this file and says what it guarantees;
 * `blocks.py` holds the plain versions. Tables and everything in between are fp32.
 */
#include "native.h"

#ifdef FP32
typedef float number;
static inline vec load(const number *p) { return _mm512_loadu_ps(p); }
static inline void store(number *p, vec x) { _mm512_storeu_ps(p, x); }
#else
typedef bf16 number;
static inline vec load(const number *p) { return load16(p); }
static inline void store(number *p, vec x) { store16(p, x); }
#endif

/* Where the modulation of a row stands: part p of kind r is table + (r * parts + p) * width. */
struct modulation {
    const float *table;
    const int32_t *kind; /* of each row */
    int parts, gate, shift, scale;
};

/* x + gate h -> sum (h NULL: sum is x), then layer norm(sum) (1 + scale) + shift -> out (NULL: not wanted). */
void gate_norm(const number *x, const number *h, int rows, int width, struct modulation m, const float *gamma,
               const float *beta, float eps, number *sum, number *out) {
#pragma omp parallel for schedule(static)
    for (int row = 0; row < rows; row++) {
        const int64_t at = (int64_t)row * width;
        const float *table = m.table + (int64_t)m.kind[row] * m.parts * width;
        float line[width];
        vec total = {0}, squares = {0};
        for (int i = 0; i < width; i += 16) {
            vec v = load(x + at + i);
            if (h) {
                v = _mm512_fmadd_ps(_mm512_loadu_ps(table + m.gate * width + i), load(h + at + i), v);
                store(sum + at + i, v);
                v = load(sum + at + i);
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
            store(out + at + i, _mm512_fmadd_ps(v, scale, _mm512_loadu_ps(table + m.shift * width + i)));
        }
    }
}

/* Gradients of gate_norm, d_out NULL where it has no norm: of x, of h (NULL: there was none), and for each kind the
 * sums over its rows of d_out n, d_out and d_sum h, n being the normed row: into totals [threads][kinds][3][width],
 * which are zero before. */
void gate_norm_backward(const number *d_sum, const number *d_out, const number *h, const number *sum, int rows, int width,
                        int kinds, struct modulation m, const float *gamma, float eps, number *d_x, number *d_h,
                        float *totals, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int thread = 0; thread < threads; thread++)
        for (int row = (int64_t)rows * thread / threads; row < (int64_t)rows * (thread + 1) / threads; row++) {
            const int64_t at = (int64_t)row * width;
            const float *table = m.table + (int64_t)m.kind[row] * m.parts * width;
            float *to = totals + ((int64_t)thread * kinds + m.kind[row]) * 3 * width;
            float line[width], grads[width];
            vec mean = {0}, rstd = {0}, first = {0}, second = {0};
            if (d_out) {
                for (int i = 0; i < width; i += 16) mean += load(sum + at + i);
                mean = _mm512_set1_ps(_mm512_reduce_add_ps(mean) / width);
                for (int i = 0; i < width; i += 16) {
                    vec v = load(sum + at + i) - mean;
                    rstd += v * v;
                }
                rstd = _mm512_set1_ps(1 / sqrtf(_mm512_reduce_add_ps(rstd) / width + eps));
                for (int i = 0; i < width; i += 16) {
                    vec n = (load(sum + at + i) - mean) * rstd, d = load(d_out + at + i);
                    _mm512_storeu_ps(to + i, _mm512_fmadd_ps(d, n, _mm512_loadu_ps(to + i)));
                    _mm512_storeu_ps(to + width + i, d + _mm512_loadu_ps(to + width + i));
                    d *= _mm512_loadu_ps(gamma + i) * (_mm512_set1_ps(1) + _mm512_loadu_ps(table + m.scale * width + i));
                    _mm512_storeu_ps(line + i, n), _mm512_storeu_ps(grads + i, d);
                    first += d, second += d * n;
                }
                first = _mm512_set1_ps(_mm512_reduce_add_ps(first) / width);
                second = _mm512_set1_ps(_mm512_reduce_add_ps(second) / width);
            }
            for (int i = 0; i < width; i += 16) {
                vec g = load(d_sum + at + i);
                if (d_out) g += rstd * (_mm512_loadu_ps(grads + i) - first - second * _mm512_loadu_ps(line + i));
                store(d_x + at + i, g);
                if (!h) continue;
                store(d_h + at + i, g * _mm512_loadu_ps(table + m.gate * width + i));
                _mm512_storeu_ps(to + 2 * width + i, _mm512_fmadd_ps(g, load(h + at + i), _mm512_loadu_ps(to + 2 * width + i)));
            }
        }
}

/* The tanh form of GELU is x / (1 + 2^y) with y = x (a x^2 + b). */
#define GELU_A _mm512_set1_ps(-.10294324f)
#define GELU_B _mm512_set1_ps(-2.3022082f)

/* y may be x. */
void gelu(const number *x, int64_t count, number *y) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += 16) {
        vec v = load(x + i);
        store(y + i, damped(v, v * _mm512_fmadd_ps(v * v, GELU_A, GELU_B)));
    }
}

/* With part = 1 / (1 + 2^y), the derivative is part - x part (1 - part) ln 2 (3 a x^2 + b). */
void gelu_backward(const number *x, const number *d_y, int64_t count, number *d_x) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += 16) {
        vec v = load(x + i), one = _mm512_set1_ps(1), part = damped(one, v * _mm512_fmadd_ps(v * v, GELU_A, GELU_B));
        vec slope = v * _mm512_set1_ps(.69314718f) * _mm512_fmadd_ps(v * v, _mm512_set1_ps(3) * GELU_A, GELU_B);
        store(d_x + i, load(d_y + i) * part * (one - slope * (one - part)));
    }
}
