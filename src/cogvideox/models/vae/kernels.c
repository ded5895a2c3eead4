/* The hot spots of the causal VAE for CPUs that multiply bf16 in AVX-512: norm, modulation, SiLU and the 3x3(x3)
 * convolutions, these by Winograd's minimal filtering (Lavin & Gray 2016). `kernels.py` builds and calls this
 * file and says what it guarantees; `layers.py` holds the plain versions.
 *
 * Activations are [T][H][W][C] in bf16, one sample of channels_last_3d; sums are fp32. In fp32 tables and in
 * operands, of each 32 channels the even ones come before the odd ones, which is how pairs of bf16 widen.
 */
#include "native.h"
#include <omp.h>

#define TILES 48   /* at most in a block, a multiple of ROWS */
#define REGION 400 /* voxels per frame that a block of tiles sees, at most */
#define STRIDE (TILES * COLUMNS + 16) /* from product to product; the 16 keep them off the same cache sets */

static inline vec silu(vec x) { return damped(x, x * _mm512_set1_ps(-1.44269504f)); }

/* -------------------------------------------------------------------------------------- norm and modulation */

/* Sums of x and of x^2 per channel, [2][channels]. */
static void channel_sums(const bf16 *x, int64_t pixels, int channels, double *sums) {
    const int64_t run = 256; /* pixels that are summed in fp32 before they go into doubles */
    memset(sums, 0, 2 * channels * sizeof *sums);
#pragma omp parallel
    {
        double own[2 * channels];
        memset(own, 0, sizeof own);
#pragma omp for schedule(static)
        for (int64_t start = 0; start < pixels; start += run) {
            int64_t end = start + run < pixels ? start + run : pixels;
            for (int c = 0; c < channels; c += 32) {
                vec s0 = {0}, s1 = {0}, q0 = {0}, q1 = {0};
                for (int64_t i = start; i < end; i++) {
                    __m512i v = load32(x + i * channels + c);
                    vec a = low(v), b = high(v);
                    s0 += a, s1 += b, q0 += a * a, q1 += b * b;
                }
                for (int k = 0; k < 16; k++) {
                    own[c + 2 * k] += s0[k], own[c + 2 * k + 1] += s1[k];
                    own[channels + c + 2 * k] += q0[k], own[channels + c + 2 * k + 1] += q1[k];
                }
            }
        }
#pragma omp for ordered schedule(static, 1)
        for (int thread = 0; thread < omp_get_num_threads(); thread++) /* always in one order: the same bits */
#pragma omp ordered
            for (int i = 0; i < 2 * channels; i++) sums[i] += own[i];
    }
}

/* GroupNorm over x and the modulation of its result, folded into out[2][cells][channels]: norm(x) is x out[0] +
 * out[1]. `modulation` is [cells][2 channels], scales before shifts, or NULL: scale 1, shift 0. */
void fold_norm(const bf16 *x, int frames, int height, int width, int channels, int groups, double eps,
               const float *gamma, const float *beta, const float *modulation, int cells, float *out) {
    const int size = channels / groups;
    const int64_t pixels = (int64_t)frames * height * width;
    double sums[2 * channels], count = (double)pixels * size;
    float factor[channels], offset[channels];
    channel_sums(x, pixels, channels, sums);
    for (int g = 0; g < channels; g += size) {
        double sum = 0, square = 0;
        for (int c = g; c < g + size; c++) sum += sums[c], square += sums[channels + c];
        double mean = sum / count, variance = square / count - mean * mean;
        double rstd = 1 / sqrt((variance > 0 ? variance : 0) + eps);
        for (int c = g; c < g + size; c++) factor[c] = rstd * gamma[c], offset[c] = beta[c] - mean * rstd * gamma[c];
    }
    const vec one = _mm512_set1_ps(1), none = {0};
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odds = _mm512_or_si512(evens, _mm512_set1_epi32(1));
#pragma omp parallel for schedule(static)
    for (int i = 0; i < cells; i++)
        for (int c = 0; c < channels; c += 32) {
            const float *m = modulation + (int64_t)i * 2 * channels + c;
            float *to = out + (int64_t)i * channels + c;
            vec scale[2], shift[2];
            for (int k = 0; k < 2; k++) {
                vec f = _mm512_loadu_ps(factor + c + 16 * k), o = _mm512_loadu_ps(offset + c + 16 * k);
                vec by = modulation ? _mm512_loadu_ps(m + 16 * k) : one;
                scale[k] = f * by, shift[k] = o * by + (modulation ? _mm512_loadu_ps(m + channels + 16 * k) : none);
            }
            _mm512_storeu_ps(to, _mm512_permutex2var_ps(scale[0], evens, scale[1]));
            _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(scale[0], odds, scale[1]));
            to += (int64_t)cells * channels;
            _mm512_storeu_ps(to, _mm512_permutex2var_ps(shift[0], evens, shift[1]));
            _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(shift[0], odds, shift[1]));
        }
}

/* A frame and how to read it: norm and modulation of voxel (h, w) stand in cell (h >> shift, w >> shift). Without
 * them (NULL) it holds activations. */
struct frame {
    const bf16 *x;        /* [height][width][channels] */
    const float *a, *b;   /* [cells][channels] */
};
struct grid {
    int columns, shift;
};

static inline void activate(const struct frame *f, int width, int channels, struct grid grid, int h, int w, int c, vec *even, vec *odd) {
    __m512i v = load32(f->x + ((int64_t)h * width + w) * channels + c);
    if (!f->a) {
        *even = low(v), *odd = high(v);
        return;
    }
    int64_t cell = ((int64_t)(h >> grid.shift) * grid.columns + (w >> grid.shift)) * channels + c;
    *even = silu(_mm512_fmadd_ps(low(v), _mm512_loadu_ps(f->a + cell), _mm512_loadu_ps(f->b + cell)));
    *odd = silu(_mm512_fmadd_ps(high(v), _mm512_loadu_ps(f->a + cell + 16), _mm512_loadu_ps(f->b + cell + 16)));
}

/* silu(norm(x)) of all frames in bf16, for convolutions that are done elsewhere or later. */
void norm_silu(const struct frame *frames, int count, int height, int width, int channels, struct grid grid, bf16 *out) {
#pragma omp parallel for schedule(static)
    for (int line = 0; line < count * height; line++) {
        bf16 *to = out + (int64_t)line * width * channels;
        for (int w = 0; w < width; w++)
            for (int c = 0; c < channels; c += 32) {
                vec even, odd;
                activate(frames + line / height, width, channels, grid, line % height, w, c, &even, &odd);
                _mm512_storeu_si512(to + w * channels + c, pair(even, odd));
            }
    }
}

/* g = grad silu'(u) of 32 channels of voxel (h, w), where u = x a + b, and that x. */
static inline void turn_back(const struct frame *f, const bf16 *grad, int width, int channels, struct grid grid, int h, int w, int c, vec x[2], vec g[2]) {
    const int64_t at = ((int64_t)h * width + w) * channels + c;
    const int64_t cell = ((int64_t)(h >> grid.shift) * grid.columns + (w >> grid.shift)) * channels + c;
    const __m512i v = load32(f->x + at), d = load32(grad + at);
    const vec one = _mm512_set1_ps(1), come[2] = {low(d), high(d)};
    x[0] = low(v), x[1] = high(v);
    for (int k = 0; k < 2; k++) {
        vec u = _mm512_fmadd_ps(x[k], _mm512_loadu_ps(f->a + cell + 16 * k), _mm512_loadu_ps(f->b + cell + 16 * k));
        vec s = damped(one, u * _mm512_set1_ps(-1.44269504f));
        g[k] = come[k] * s * _mm512_fmadd_ps(u, one - s, one);
    }
}

/* Gradients of b and a, the sums of g and of g x over the voxels of a cell, line by line: out[line][columns][2][channels]. */
void norm_silu_sums(const struct frame *frames, const bf16 *grad, int count, int height, int width, int channels, struct grid grid, float *out) {
#pragma omp parallel for schedule(static)
    for (int line = 0; line < count * height; line++) {
        const bf16 *come = grad + (int64_t)(line / height) * height * width * channels;
        for (int column = 0; column < grid.columns; column++)
            for (int c = 0; c < channels; c += 32) {
                vec sums[2][2] = {{{0}}}, x[2], g[2];
                const int end = grid.columns == 1 ? width : (column + 1) << grid.shift;
                for (int w = column << grid.shift; w < end; w++) {
                    turn_back(frames + line / height, come, width, channels, grid, line % height, w, c, x, g);
                    for (int k = 0; k < 2; k++) sums[0][k] += g[k], sums[1][k] = _mm512_fmadd_ps(g[k], x[k], sums[1][k]);
                }
                float *to = out + ((int64_t)line * grid.columns + column) * 2 * channels + c;
                for (int i = 0; i < 4; i++) _mm512_storeu_ps(to + i / 2 * channels + i % 2 * 16, sums[i / 2][i % 2]);
            }
    }
}

/* Gradient of x: a g + factor x + offset, the latter two [channels] and what the norm's moments add. */
void norm_silu_grad(const struct frame *frames, const bf16 *grad, int count, int height, int width, int channels, struct grid grid,
                    const float *factor, const float *offset, bf16 *out) {
#pragma omp parallel for schedule(static)
    for (int line = 0; line < count * height; line++) {
        const struct frame *f = frames + line / height;
        const int64_t plane = (int64_t)(line / height) * height * width * channels;
        const int h = line % height;
        for (int w = 0; w < width; w++)
            for (int c = 0; c < channels; c += 32) {
                const int64_t cell = ((int64_t)(h >> grid.shift) * grid.columns + (w >> grid.shift)) * channels + c;
                vec x[2], g[2];
                turn_back(f, grad + plane, width, channels, grid, h, w, c, x, g);
                for (int k = 0; k < 2; k++) {
                    vec more = _mm512_fmadd_ps(x[k], _mm512_loadu_ps(factor + c + 16 * k), _mm512_loadu_ps(offset + c + 16 * k));
                    g[k] = _mm512_fmadd_ps(g[k], _mm512_loadu_ps(f->a + cell + 16 * k), more);
                }
                _mm512_storeu_si512(out + plane + ((int64_t)h * width + w) * channels + c, pair(g[0], g[1]));
            }
    }
}

/* ---------------------------------------------------------------------------------------------- convolution */

/* A tile is what is computed together. PAIR: 2 frames x 2 x 2 pixels by 64 products. FIRST: 2 x 2 pixels of the
 * frame that opens a clip and sees itself three times, 16 products. UP: one pixel, doubled in height and width
 * under a 3x3 convolution, each of the four results by 4 products. */
enum kind { PAIR, FIRST, UP };

struct job {
    const struct frame *frames; /* two before the first of the output; UP: the frames themselves */
    int channels, in_height, in_width;
    struct grid grid;
    const bf16 *weights; /* [products][outputs / 32][channels / 2][32][2] */
    const float *bias;
    const bf16 *residual; /* like out, or NULL */
    bf16 *out;            /* [count][height][width][outputs] */
    int count, height, width, outputs;
    int twice, lead; /* every frame is written twice, except a leading one */
    char *scratch;   /* `scratch_bytes` for each of the threads */
    int threads;
};

struct scratch {
    float products[64 * STRIDE];
    vec *region;    /* [channels / 32][4][REGION][2]: activations of 4 frames, frame t in place t % 4 */
    bf16 *operands; /* [64][TILES][channels], products `operand_step` apart */
};

/* As with STRIDE: the numbers of a cache line keep products off the same cache sets. */
static inline int64_t operand_step(int channels) { return (int64_t)TILES * channels + 32; }

int64_t scratch_bytes(int channels) {
    return sizeof(struct scratch) + sizeof(float) * 4 * REGION * channels + sizeof(bf16) * 64 * operand_step(channels) + 64;
}

/* B^T d of F(2, 3): four numbers from four. */
#define SPREAD(d0, d1, d2, d3) { vec s0 = d0 - d2, s1 = d1 + d2, s2 = d2 - d1, s3 = d1 - d3; d0 = s0, d1 = s1, d2 = s2, d3 = s3; }

/* Operands of one tile from the activations around it in 4 frames (FIRST: in one), whose rows are `line` long;
 * products are `step` apart. */
static void spread(enum kind kind, const vec (*const *x)[2], int at, int line, bf16 *to, int64_t step) {
    const int first[] = {0, 1, 2, 1}, second[] = {2, 2, 1, 3};
    for (int t = 0; t < (kind == FIRST ? 1 : 4); t++)
        for (int half = 0; half < 2; half++) {
            const vec *p = &x[kind == FIRST ? 0 : first[t]][at][half], *q = &x[second[t]][at][half];
            vec d[4][4];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                int k = 2 * (i / 4 * line + i % 4);
                d[i / 4][i % 4] = kind == FIRST ? p[k] + p[k] : t == 1 ? p[k] + q[k] : p[k] - q[k];
            }
#pragma GCC unroll 4
            for (int w = 0; w < 4; w++) SPREAD(d[0][w], d[1][w], d[2][w], d[3][w]);
#pragma GCC unroll 4
            for (int h = 0; h < 4; h++) SPREAD(d[h][0], d[h][1], d[h][2], d[h][3]);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                store16(to + (16 * t + i) * step + 16 * half, d[i / 4][i % 4]);
        }
}

/* 16 channels of one voxel from n on: add bias and residual, round, store. */
static inline void emit(const struct job *j, int t, int h, int w, int n, vec sum) {
    if (t >= j->count || h >= j->height || w >= j->width) return;
    const int64_t plane = (int64_t)j->height * j->width * j->outputs;
    int64_t at = t * plane + ((int64_t)h * j->width + w) * j->outputs + n;
    const __mmask16 lanes = j->outputs - n >= 16 ? 0xffff : (1 << (j->outputs - n)) - 1;
    sum += _mm512_maskz_loadu_ps(lanes, j->bias + n);
    if (j->residual)
        sum += widen(_mm256_maskz_loadu_epi16(lanes, j->residual + at));
    __m256i rounded = narrow(sum);
    if (j->twice) {
        at += (t ? t - j->lead : 0) * plane;
        if (t || !j->lead) _mm256_mask_storeu_epi16(j->out + at + plane, lanes, rounded);
    }
    _mm256_mask_storeu_epi16(j->out + at, lanes, rounded);
}

/* A^T m of F(2, 3): two numbers from four. */
#define GATHER0(m0, m1, m2) (m0 + m1 + m2)
#define GATHER1(m1, m2, m3) (m1 - m2 - m3)

static inline void gather_plane(const struct job *j, int t, int row, int column, int n, vec m[4][4]) {
    vec y[2][4];
    for (int w = 0; w < 4; w++) {
        y[0][w] = GATHER0(m[0][w], m[1][w], m[2][w]);
        y[1][w] = GATHER1(m[1][w], m[2][w], m[3][w]);
    }
    for (int h = 0; h < 2; h++) {
        emit(j, t, 2 * row + h, 2 * column, n, GATHER0(y[h][0], y[h][1], y[h][2]));
        emit(j, t, 2 * row + h, 2 * column + 1, n, GATHER1(y[h][1], y[h][2], y[h][3]));
    }
}

/* Results of one tile from its products: 16 channels from n on. */
static void gather(enum kind kind, const struct job *j, int t, int row, int column, int n, const float *products) {
#define M(i) _mm512_loadu_ps(products + (i) * STRIDE)
    if (kind == UP) {
        for (int i = 0; i < 4; i++) emit(j, t, 2 * row + i / 2, 2 * column + i % 2, n, M(i));
        return;
    }
    vec m[2][4][4];
    for (int i = 0; i < 16; i++) {
        vec first = M(i);
        if (kind == PAIR) {
            vec second = M(16 + i), third = M(32 + i);
            first = GATHER0(first, second, third), m[1][i / 4][i % 4] = GATHER1(second, third, M(48 + i));
        }
        m[0][i / 4][i % 4] = first;
    }
    gather_plane(j, t, row, column, n, m[0]);
    if (kind == PAIR) gather_plane(j, t + 1, row, column, n, m[1]);
#undef M
}

/* Activations of a frame and all channels in the rectangle from (top, left) on, zero outside of the picture:
 * [channels / 32][rows][columns], slices `skip` apart. */
static void fill_region(const struct job *j, const struct frame *f, int top, int left, int rows, int columns, vec (*to)[2], int64_t skip) {
    const int begin = left < 0 ? 0 : left, end = left + columns > j->in_width ? j->in_width : left + columns;
    for (int c = 0; c < j->channels; c += 32, to += skip) {
        vec(*line)[2] = to;
        for (int h = top; h < top + rows; h++, line += columns) {
            if (h < 0 || h >= j->in_height || !f->x) {
                memset(line, 0, columns * sizeof *line);
                continue;
            }
            memset(line, 0, (begin - left) * sizeof *line);
            for (int w = begin; w < end; w++) activate(f, j->in_width, j->channels, j->grid, h, w, c, &line[w - left][0], &line[w - left][1]);
            memset(line + (end - left), 0, (left + columns - end) * sizeof *line);
        }
    }
}

/* Operands of the tiles: activations of the frames that the block did not see before (`fresh`: all), spread. */
static void operands(enum kind kind, const struct job *j, int t, int fresh, int row, int column, int rows, int columns, struct scratch *s) {
    const int high = 2 * rows + 2, wide = 2 * columns + 2;
    const int64_t step = operand_step(j->channels), skip = 4 * REGION;
    vec(*region)[2] = (vec(*)[2])s->region;
#define PLACE(k) (region + (t + (k)) % 4 * REGION)
    for (int k = kind == FIRST || !fresh ? 2 : 0; k < (kind == FIRST ? 3 : 4); k++)
        fill_region(j, j->frames + t + k, 2 * row - 1, 2 * column - 1, high, wide, PLACE(k), skip);
    for (int c = 0; c < j->channels; c += 32) {
        const int64_t chunk = c / 32 * skip;
        const vec(*x[])[2] = {PLACE(kind == FIRST ? 2 : 0) + chunk, PLACE(1) + chunk, PLACE(2) + chunk, PLACE(3) + chunk};
        for (int i = 0; i < rows * columns; i++)
            spread(kind, x, 2 * (i / columns) * wide + 2 * (i % columns), wide, s->operands + (int64_t)i * j->channels + c, step);
    }
#undef PLACE
}

/* Operands for UP: each pixel and its eight neighbours, as they are. */
static void neighbours(const struct job *j, int t, int row, int column, int rows, int columns, bf16 *to) {
    for (int n = 0; n < 9; n++, to += operand_step(j->channels))
        for (int i = 0; i < rows * columns; i++) {
            int h = row + i / columns + n / 3 - 1, w = column + i % columns + n % 3 - 1;
            if (h >= 0 && h < j->in_height && w >= 0 && w < j->in_width)
                memcpy(to + (int64_t)i * j->channels, j->frames[t].x + ((int64_t)h * j->in_width + w) * j->channels, sizeof(bf16) * j->channels);
            else
                memset(to + (int64_t)i * j->channels, 0, sizeof(bf16) * j->channels);
        }
}

/* All results of rows x columns tiles from tile (row, column) on; their first frame is t. */
static void block(enum kind kind, const struct job *j, int t, int fresh, int row, int column, int rows, int columns, struct scratch *s) {
    const int channels = j->channels, tiles = rows * columns, blocks = (j->outputs + COLUMNS - 1) / COLUMNS;
    const int64_t step = operand_step(channels), panel = (int64_t)channels * COLUMNS;
    const bf16 *weights = j->weights + (kind == FIRST ? 16 * blocks * panel : 0); /* second quarter: both frames */
    const int products = kind == PAIR ? 64 : kind == FIRST ? 16 : 4, parts = kind == UP ? 4 : 1;
    if (kind == UP)
        neighbours(j, t, row, column, rows, columns, s->operands);
    else
        operands(kind, j, t, fresh, row, column, rows, columns, s);
    for (int n = 0; n < blocks; n++) {
        for (int p = 0; p < products; p++)
            for (int i = 0; i < tiles; i += ROWS) {
                vec sum[ROWS][2] = {{{0}}};
                for (int k = 0; k < parts; k++) { /* UP: result (p / 2, p % 2) sees 2 x 2 of the 3 x 3 */
                    int position = kind == UP ? (p / 2 + k / 2) * 3 + p % 2 + k % 2 : p;
                    const bf16 *right = weights + ((int64_t)(p * parts + k) * blocks + n) * panel;
                    multiply(sum, s->operands + position * step + (int64_t)i * channels, channels, 2, right, channels);
                }
                float *to = s->products + p * STRIDE + i * COLUMNS;
#pragma GCC unroll 12
                for (int r = 0; r < ROWS; r++) _mm512_storeu_ps(to + r * COLUMNS, sum[r][0]), _mm512_storeu_ps(to + r * COLUMNS + 16, sum[r][1]);
            }
        for (int i = 0; i < tiles; i++)
            for (int half = 0; half < COLUMNS && n * COLUMNS + half < j->outputs; half += 16)
                gather(kind, j, t, row + i / columns, column + i % columns, n * COLUMNS + half, s->products + i * COLUMNS + half);
    }
}

/* All tiles of the frames from `first` on, rows x columns of them in each frame or pair. */
static void run(enum kind kind, const struct job *j, int first, int rows, int columns) {
    const int64_t bytes = scratch_bytes(j->channels);
    const int width = columns < ROWS ? columns : ROWS, across = (columns + width - 1) / width;
    int height = TILES / width; /* operands of few channels: half the tiles, which the L2 cache holds */
    while ((2 * height + 2) * (2 * width + 2) > REGION) height--;
    const int down = (rows + height - 1) / height, last = kind == FIRST ? 1 : j->count;
    height = (rows + down - 1) / down; /* blocks of one size */
#pragma omp parallel num_threads(j->threads)
    {
        struct scratch *own = (struct scratch *)(j->scratch + bytes * omp_get_thread_num());
        own->region = (vec *)(((uintptr_t)(own + 1) + 63) / 64 * 64);
        own->operands = (bf16 *)(own->region + (int64_t)4 * REGION * j->channels / 16);
#pragma omp for schedule(dynamic)
        for (int i = 0; i < down * across; i++) {
            int row = i / across * height, column = i % across * width;
            int tall = rows - row < height ? rows - row : height, wide = columns - column < width ? columns - column : width;
            for (int t = first; t < last; t += kind == PAIR ? 2 : 1) block(kind, j, t, t == first, row, column, tall, wide, own);
        }
    }
}

/* 3x3x3 convolution of silu(norm(frames)) into out [count][height][width][outputs], plus bias and residual.
 * `frames` has count + 2 entries and one more, empty, if the last pair is half. `opens`: the clip begins here. */
void convolve(const struct frame *frames, int count, int height, int width, int channels, struct grid grid, int opens,
              const bf16 *weights, const float *bias, const bf16 *residual, int outputs, bf16 *out, char *scratch,
              int threads) {
    struct job j = {frames, channels, height, width, grid, weights, bias, residual, out, count, height, width, outputs, 0, 0, scratch, threads};
    if (opens) run(FIRST, &j, 0, (height + 1) / 2, (width + 1) / 2);
    run(PAIR, &j, opens, (height + 1) / 2, (width + 1) / 2);
}

/* 3x3 convolution after nearest-neighbour doubling of height and width, plus bias: `count` frames into
 * [count][2 height][2 width][outputs]; with `twice` every frame but a `lead`ing one is written two times. */
void upsample_convolve(const struct frame *frames, int count, int height, int width, int channels, int twice, int lead,
                       const bf16 *weights, const float *bias, int outputs, bf16 *out, char *scratch, int threads) {
    struct job j = {frames, channels, height, width, {0, 0}, weights, bias, NULL, out, count, 2 * height, 2 * width, outputs, twice, lead, scratch, threads};
    run(UP, &j, 0, height, width);
}

/* ------------------------------------------------------------------------------------------------- weights */

/* G g of F(2, 3): four factors from three taps. */
static inline void filter(vec *to, int step, vec g0, vec g1, vec g2) {
    const vec half = _mm512_set1_ps(.5f), outer = half * (g0 + g2), inner = half * g1;
    to[0] = g0, to[step] = outer + inner, to[2 * step] = outer - inner, to[3 * step] = g2;
}

/* The 64 factors, [time][height][width], of 16 outputs (`lanes` of them there) from their taps of one channel,
 * which are `stride` numbers apart. */
static void factors_of(const bf16 *taps, __m512i stride, __mmask16 lanes, vec factors[64]) {
    vec g[27], rows[9][4], planes[3][16];
    for (int k = 0; k < 27; k += 2) { /* pairs: never a number behind the last */
        __m512i two = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), lanes, stride, taps + (k < 26 ? k : 25), 2);
        if (k < 26) g[k] = low(two), g[k + 1] = high(two);
        else g[k] = high(two);
    }
    for (int i = 0; i < 9; i++) filter(rows[i], 1, g[3 * i], g[3 * i + 1], g[3 * i + 2]);
    for (int i = 0; i < 12; i++) filter(planes[i / 4] + i % 4, 4, rows[i / 4 * 3][i % 4], rows[i / 4 * 3 + 1][i % 4], rows[i / 4 * 3 + 2][i % 4]);
    for (int i = 0; i < 16; i++) filter(factors + i, 16, planes[0][i], planes[1][i], planes[2][i]);
}

static inline void take_back(vec wanted[2], float share, const vec error[2]) {
    wanted[0] = _mm512_fnmadd_ps(_mm512_set1_ps(share), error[0], wanted[0]);
    wanted[1] = _mm512_fnmadd_ps(_mm512_set1_ps(share), error[1], wanted[1]);
}

#define PANEL 8 /* factors whose sums are in registers together */
#define TURN(p) ((p) < 32 ? (p) ^ 16 : (p)) /* the factor that is rounded at turn p */

/* Weights [outputs][channels][27] -> packed [64][outputs / 32][channels / 2][32][2]: their factors rounded one after
 * another, each so that it makes up for the errors of those before it. feedback[p][q] says how much of q's error p
 * has to take back. The first two of the four in time change places in this order: the frame that opens a clip takes
 * the second alone, without the others that could make up for it. */
void pack_causal(const bf16 *weights, int outputs, int channels, const float *feedback, bf16 *packed) {
    const int groups = (outputs + COLUMNS - 1) / COLUMNS * 2;
    const __m512i stride = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(channels * 27));
#pragma omp parallel for schedule(static)
    for (int i = 0; i < groups * channels / 2; i++) {
        const int n = i / (channels / 2), at = i % (channels / 2), left = outputs - 16 * n;
        const int channel = at / 16 * 32 + at % 8 * 4 + at % 16 / 8; /* of 32 the even ones come first, in pairs */
        const __mmask16 lanes = left >= 16 ? 0xffff : left > 0 ? (1 << left) - 1 : 0;
        const bf16 *taps = weights + ((int64_t)16 * n * channels + channel) * 27;
        vec factors[2][64], errors[64][2];
        for (int c = 0; c < 2; c++) factors_of(taps + c * 2 * 27, stride, lanes, factors[c]);
        for (int p = 0; p < 64; p += PANEL) {
            vec wanted[PANEL][2];
#pragma GCC unroll 8
            for (int r = 0; r < PANEL; r++) wanted[r][0] = factors[0][TURN(p + r)], wanted[r][1] = factors[1][TURN(p + r)];
            for (int q = 0; q < p; q++)
#pragma GCC unroll 8
                for (int r = 0; r < PANEL; r++) take_back(wanted[r], feedback[(p + r) * 64 + q], errors[q]);
#pragma GCC unroll 8
            for (int q = 0; q < PANEL; q++) {
                const int place = TURN(p + q);
                const __m512i rounded = pair(wanted[q][0], wanted[q][1]);
                errors[p + q][0] = low(rounded) - factors[0][place], errors[p + q][1] = high(rounded) - factors[1][place];
#pragma GCC unroll 8
                for (int r = q + 1; r < PANEL; r++) take_back(wanted[r], feedback[(p + r) * 64 + p + q], errors[p + q]);
                const int64_t row = (int64_t)(place * groups / 2 + n / 2) * (channels / 2) + at;
                _mm512_stream_si512((void *)(packed + row * 64 + n % 2 * 32), rounded);
            }
        }
    }
}
