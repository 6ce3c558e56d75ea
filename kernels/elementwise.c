/* elementwise.c - maps and copies. Strided kernels first merge dimensions that are contiguous for all operands, then
 * run over rows of the last one: fast when each operand is contiguous or constant along it. */
#include "elementwise.h"

#include <stdlib.h>

#include "simd.h"

enum { RANK = 8, BLOCK = 4096 /* elements of one work unit */, PARALLEL = 32768 /* worth a second thread */ };

/* 2k (x + c x^3), k = sqrt(2/pi): (1 + tanh v)/2 = sigmoid(2v), which does not cancel at v -> -inf. Three roundings:
 * the exponential multiplies their error by up to 30. */
#define GELU_K ((real)0.797884560802865355879892)
#define GELU_C ((real)0.044715)
SIMD vec gelu_argument(vec x) { return x * (x * x * (2 * GELU_K * GELU_C) + 2 * GELU_K); }

SIMD vec unary_value(UnaryKind kind, vec x) {
  switch (kind) {
    case UNARY_NEG: return -x;
    case UNARY_EXP: return vec_exp(x);
    case UNARY_LOG: return REAL_BITS == 32 ? VEC_EACH(logf, x) : VEC_EACH(log, x);
    case UNARY_SQRT: return vec_sqrt(x);
    case UNARY_SQUARE: return x * x;
    case UNARY_ABS: return vec_abs(x);
    case UNARY_RECIPROCAL: return 1 / x;
    case UNARY_RELU: return vec_max(vec_set(0), x);
    case UNARY_SIGMOID: return vec_sigmoid(x);
    case UNARY_TANH: return vec_tanh(x);
    case UNARY_SOFTPLUS: return vec_softplus(x);
    case UNARY_SILU: return vec_silu(x);
    case UNARY_GELU: return x * vec_normal(x, NULL);
    case UNARY_GELU_TANH: return x * vec_sigmoid(gelu_argument(x));
  }
  return x;
}

SIMD vec unary_slope(UnaryKind kind, vec x) {
  vec s;
  switch (kind) {
    case UNARY_NEG: return vec_set(-1);
    case UNARY_EXP: return vec_exp(x);
    case UNARY_LOG: return 1 / x;
    case UNARY_SQRT: return (real)0.5 / vec_sqrt(x);
    case UNARY_SQUARE: return x + x;
    case UNARY_ABS: return vec_select(x > 0, vec_set(1), vec_select(x < 0, vec_set(-1), x)); /* 0, or NaN */
    case UNARY_RECIPROCAL: return -1 / (x * x);
    case UNARY_RELU: return vec_select(x > 0, vec_set(1), vec_select(x <= 0, vec_set(0), x));
    case UNARY_SIGMOID: s = vec_sigmoid(x); return s * (1 - s);
    case UNARY_TANH: s = vec_tanh(x); return 1 - s * s;
    case UNARY_SOFTPLUS: return vec_sigmoid(x);
    case UNARY_SILU: return vec_silu_slope(x, vec_sigmoid(x));
    case UNARY_GELU: {
      vec density, phi = vec_normal(x, &density);
      return phi + x * density;
    }
    case UNARY_GELU_TANH:
      s = vec_sigmoid(gelu_argument(x));
      return s + x * s * (1 - s) * (2 * GELU_K + 6 * GELU_K * GELU_C * x * x);
  }
  return x;
}

/* Runs MAP(j, m), m valid lanes at j, over fixed blocks of 0 .. n. */
#define MAP_BLOCKS(n, MAP)                                            \
  _Pragma("omp parallel for schedule(static) if (n > PARALLEL)")      \
  for (int64_t block_ = 0; block_ < n; block_ += BLOCK) {             \
    const int64_t end_ = n - block_ < BLOCK ? n : block_ + BLOCK;     \
    for (int64_t j_ = block_; j_ < end_; j_ += LANES) MAP(j_, end_ - j_); \
  }

SIMD void unary_map(UnaryKind kind, int64_t n, const real *x, real *y) {
#define MAP(j, m) vec_store_n(y + j, unary_value(kind, vec_load_n(x + j, m)), m)
  MAP_BLOCKS(n, MAP)
#undef MAP
}
SIMD void unary_map_backward(UnaryKind kind, int64_t n, const real *x, const real *gy, real *gx) {
#define MAP(j, m) vec_store_n(gx + j, vec_load_n(gy + j, m) * unary_slope(kind, vec_load_n(x + j, m)), m)
  MAP_BLOCKS(n, MAP)
#undef MAP
}

/* One loop per kind, its function inlined. */
#define UNARY_KINDS(CASE)                                                                                      \
  CASE(UNARY_NEG) CASE(UNARY_EXP) CASE(UNARY_LOG) CASE(UNARY_SQRT) CASE(UNARY_SQUARE) CASE(UNARY_ABS)          \
  CASE(UNARY_RECIPROCAL) CASE(UNARY_RELU) CASE(UNARY_SIGMOID) CASE(UNARY_TANH) CASE(UNARY_SOFTPLUS)            \
  CASE(UNARY_SILU) CASE(UNARY_GELU) CASE(UNARY_GELU_TANH)

void K(unary)(CabStream *stream, UnaryKind kind, int64_t n, const real *x, real *y) {
  (void)stream;
  switch (kind) {
#define CASE(k) case k: unary_map(k, n, x, y); break;
    UNARY_KINDS(CASE)
#undef CASE
  }
}

void K(unary_backward)(CabStream *stream, UnaryKind kind, int64_t n, const real *x, const real *gy, real *gx) {
  (void)stream;
  switch (kind) {
#define CASE(k) case k: unary_map_backward(k, n, x, gy, gx); break;
    UNARY_KINDS(CASE)
#undef CASE
  }
}

void K(affine)(CabStream *stream, int64_t n, double scale, double shift, const real *x, real *y) {
  (void)stream;
  const real a = (real)scale, b = (real)shift;
#pragma omp parallel for simd schedule(static) if (parallel : n > PARALLEL)
  for (int64_t i = 0; i < n; i++) y[i] = a * x[i] + b;
}

void K(axpy)(CabStream *stream, int64_t n, double alpha, const real *x, real *y) {
  (void)stream;
  const real a = (real)alpha;
#pragma omp parallel for simd schedule(static) if (parallel : n > PARALLEL)
  for (int64_t i = 0; i < n; i++) y[i] += a * x[i];
}

void K(fill)(CabStream *stream, int64_t n, double value, real *y) {
  (void)stream;
  const real a = (real)value;
#pragma omp parallel for simd schedule(static) if (parallel : n > PARALLEL)
  for (int64_t i = 0; i < n; i++) y[i] = a;
}

/* Up to three strided operands over one shape; unused operands have stride 0 everywhere. */
enum { OPERANDS = 3 };
typedef struct {
  int rank;
  int64_t shape[RANK], stride[OPERANDS][RANK];
} Walk;

static int64_t size_of(const Walk *w) {
  int64_t n = 1;
  for (int d = 0; d < w->rank; d++) n *= w->shape[d];
  return n;
}

/* Drops dimensions of size 1 and merges d, d+1 where every operand's stride[d] = shape[d+1] stride[d+1]. The result
 * has rank >= 1. `sorted`: dimensions may be reordered, largest stride of operand 0 first. */
static Walk merged(int rank, const int64_t *shape, const int64_t *s0, const int64_t *s1, const int64_t *s2,
                   bool sorted) {
  const int64_t *from[OPERANDS] = {s0, s1, s2};
  int order[RANK], n = 0;
  for (int d = 0; d < rank; d++) {
    if (shape[d] == 1) continue;
    int at = n++;
    for (; sorted && at > 0 && llabs(s0[order[at - 1]]) < llabs(s0[d]); at--) order[at] = order[at - 1];
    order[at] = d;
  }
  Walk w = {.rank = 0};
  for (int i = 0; i < n; i++) {
    const int64_t size = shape[order[i]];
    bool merge = w.rank > 0;
    for (int o = 0; o < OPERANDS && merge; o++)
      merge = !from[o] || w.stride[o][w.rank - 1] == size * from[o][order[i]];
    const int d = merge ? w.rank - 1 : w.rank++;
    w.shape[d] = merge ? w.shape[d] * size : size;
    for (int o = 0; o < OPERANDS; o++) w.stride[o][d] = from[o] ? from[o][order[i]] : 0;
  }
  if (!w.rank) w = (Walk){.rank = 1, .shape = {1}};
  return w;
}

/* Offsets of the operands at `row`, an index over all dimensions but the last `inner`. */
static void seek(const Walk *w, int inner, int64_t row, int64_t *offset) {
  for (int o = 0; o < OPERANDS; o++) offset[o] = 0;
  for (int d = w->rank - inner - 1; d >= 0; d--) {
    const int64_t i = row % w->shape[d];
    row /= w->shape[d];
    for (int o = 0; o < OPERANDS; o++) offset[o] += i * w->stride[o][d];
  }
}

/* One row of n elements. Writes y = a op b, or (grads) ga and gb of it: gy da, gy db. */
typedef struct {
  BinaryKind kind;
  const real *a, *b, *gy;
  real *y, *ga, *gb;
} Binary;

SIMD void binary_lanes(BinaryKind kind, const Binary *p, vec a, vec b, int64_t i, int64_t m) {
  if (p->y) {
    vec y = kind == BINARY_ADD ? a + b : kind == BINARY_SUB ? a - b : kind == BINARY_MUL ? a * b : a / b;
    vec_store_n(p->y + i, y, m);
    return;
  }
  const vec g = vec_load_n(p->gy + i, m);
  if (p->ga) vec_store_n(p->ga + i, kind == BINARY_MUL ? g * b : kind == BINARY_DIV ? g / b : g, m);
  if (p->gb)
    vec_store_n(p->gb + i,
                kind == BINARY_ADD ? g : kind == BINARY_SUB ? -g : kind == BINARY_MUL ? g * a : -g * a / (b * b), m);
}
SIMD vec lanes_at(const real *p, int64_t stride, int64_t m) {
  if (stride == 0) return vec_set(*p);
  if (stride == 1) return vec_load_n(p, m);
  vec v = vec_set(0);
  for (int64_t l = 0; l < LANES && l < m; l++) v[l] = p[l * stride];
  return v;
}
SIMD void binary_row(BinaryKind kind, const Binary *p, int64_t n, const real *a, int64_t sa, const real *b,
                     int64_t sb, int64_t at) {
  for (int64_t j = 0; j < n; j += LANES)
    binary_lanes(kind, p, lanes_at(a + j * sa, sa, n - j), lanes_at(b + j * sb, sb, n - j), at + j, n - j);
}
SIMD void binary_strides(BinaryKind kind, const Binary *p, int64_t n, const real *a, int64_t sa, const real *b,
                         int64_t sb, int64_t at) {
  if (sa == 1 && sb == 1) binary_row(kind, p, n, a, 1, b, 1, at);
  else if (sa == 1 && sb == 0) binary_row(kind, p, n, a, 1, b, 0, at);
  else if (sa == 0 && sb == 1) binary_row(kind, p, n, a, 0, b, 1, at);
  else binary_row(kind, p, n, a, sa, b, sb, at);
}

static void binary_walk(int rank, const int64_t *shape, const int64_t *stride_a, const int64_t *stride_b,
                        const Binary *p) {
  const Walk w = merged(rank, shape, stride_a, stride_b, NULL, false);
  const int64_t total = size_of(&w), n = w.shape[w.rank - 1], sa = w.stride[0][w.rank - 1],
                sb = w.stride[1][w.rank - 1];
  if (!total) return;
  /* A unit is part of a long row, or several short ones. */
  const int64_t parts = (n + BLOCK - 1) / BLOCK, rows = total / n, step = n < BLOCK ? BLOCK / n : 1;
#pragma omp parallel for collapse(2) schedule(static) if (total > PARALLEL)
  for (int64_t first = 0; first < rows; first += step)
    for (int64_t part = 0; part < parts; part++)
      for (int64_t row = first; row < first + step && row < rows; row++) {
        int64_t offset[OPERANDS];
        seek(&w, 1, row, offset);
        const int64_t j = part * BLOCK, m = n - j < BLOCK ? n - j : BLOCK, at = row * n + j;
        const real *a = p->a + offset[0] + j * sa, *b = p->b + offset[1] + j * sb;
        switch (p->kind) {
          case BINARY_ADD: binary_strides(BINARY_ADD, p, m, a, sa, b, sb, at); break;
          case BINARY_SUB: binary_strides(BINARY_SUB, p, m, a, sa, b, sb, at); break;
          case BINARY_MUL: binary_strides(BINARY_MUL, p, m, a, sa, b, sb, at); break;
          case BINARY_DIV: binary_strides(BINARY_DIV, p, m, a, sa, b, sb, at); break;
        }
      }
}

void K(binary)(CabStream *stream, BinaryKind kind, int rank, const int64_t *shape, const real *a,
               const int64_t *stride_a, const real *b, const int64_t *stride_b, real *y) {
  (void)stream;
  binary_walk(rank, shape, stride_a, stride_b, &(Binary){.kind = kind, .a = a, .b = b, .y = y});
}

void K(binary_backward)(CabStream *stream, BinaryKind kind, int rank, const int64_t *shape, const real *a,
                        const int64_t *stride_a, const real *b, const int64_t *stride_b, const real *gy, real *ga,
                        real *gb) {
  (void)stream;
  binary_walk(rank, shape, stride_a, stride_b,
              &(Binary){.kind = kind, .a = a, .b = b, .gy = gy, .ga = ga, .gb = gb});
}

/* rows x n of dst and src, strides (r, c) each: in tiles, so that neither side of a transpose skips through memory. */
static void copy_plane(int64_t rows, int64_t n, const real *src, int64_t sr, int64_t sc, real *dst, int64_t dr,
                       int64_t dc, bool accumulate) {
  enum { TILE = 32 };
  for (int64_t i0 = 0; i0 < rows; i0 += TILE)
    for (int64_t j0 = 0; j0 < n; j0 += TILE)
      for (int64_t i = i0; i < i0 + TILE && i < rows; i++) {
        const int64_t m = n - j0 < TILE ? n - j0 : TILE;
        const real *from = src + i * sr + j0 * sc;
        real *to = dst + i * dr + j0 * dc;
        if (accumulate)
          for (int64_t j = 0; j < m; j++) to[j * dc] += from[j * sc];
        else
          for (int64_t j = 0; j < m; j++) to[j * dc] = from[j * sc];
      }
}

static void copy_row(int64_t n, const real *src, int64_t ss, real *dst, int64_t ds, bool accumulate) {
  if (ds == 1 && ss == 1 && !accumulate)
    memcpy(dst, src, (size_t)n * sizeof(real));
  else if (ds == 1 && (ss == 1 || ss == 0))
    for (int64_t j = 0; j < n; j += LANES) {
      vec v = ss ? vec_load_n(src + j, n - j) : vec_set(*src);
      if (accumulate) v += vec_load_n(dst + j, n - j);
      vec_store_n(dst + j, v, n - j);
    }
  else
    for (int64_t j = 0; j < n; j++) dst[j * ds] = accumulate ? dst[j * ds] + src[j * ss] : src[j * ss];
}

void K(copy_strided)(CabStream *stream, int rank, const int64_t *shape, const real *src, const int64_t *stride_src,
                     real *dst, const int64_t *stride_dst, bool accumulate) {
  (void)stream;
  Walk w = merged(rank, shape, stride_dst, stride_src, NULL, true);
  const int64_t total = size_of(&w);
  if (!total) return;
  const int last = w.rank - 1;
  /* A dimension along which src is contiguous, when the last is not: it becomes the last but one, a plane to tile. */
  int across = -1;
  if (llabs(w.stride[1][last]) > 1)
    for (int d = 0; d < last; d++)
      if (w.stride[1][d] == 1) across = d;
  if (across >= 0)
    for (int d = across; d + 1 < last; d++) {
      const Walk v = w;
      w.shape[d] = v.shape[d + 1], w.shape[d + 1] = v.shape[d];
      for (int o = 0; o < OPERANDS; o++) w.stride[o][d] = v.stride[o][d + 1], w.stride[o][d + 1] = v.stride[o][d];
    }
  const int inner = across >= 0 ? 2 : 1;
  const int64_t n = w.shape[last], ds = w.stride[0][last], ss = w.stride[1][last];
  const int64_t height = inner == 2 ? w.shape[last - 1] : 1, rows = total / n / height;
  /* Units: several short rows, part of a long one, or a strip of a plane. */
  const int64_t wide = inner == 2 ? 256 : BLOCK, parts = (n + wide - 1) / wide;
  const int64_t step = n * height < BLOCK ? BLOCK / (n * height) : 1;
#pragma omp parallel for collapse(2) schedule(static) if (total > PARALLEL)
  for (int64_t first = 0; first < rows; first += step)
    for (int64_t part = 0; part < parts; part++)
      for (int64_t row = first; row < first + step && row < rows; row++) {
        int64_t offset[OPERANDS];
        seek(&w, inner, row, offset);
        const int64_t j = part * wide, m = n - j < wide ? n - j : wide;
        real *to = dst + offset[0] + j * ds;
        const real *from = src + offset[1] + j * ss;
        if (inner == 2)
          copy_plane(height, m, from, w.stride[1][last - 1], ss, to, w.stride[0][last - 1], ds, accumulate);
        else
          copy_row(m, from, ss, to, ds, accumulate);
      }
}

/* Sum of m rows (stride `inner`) of tile x: in blocks of 128 rows, so that long f32 sums keep their precision. */
static vec sum_rows(int64_t m, int64_t inner, const real *x, int64_t lanes) {
  vec total = vec_set(0);
  for (int64_t i0 = 0; i0 < m; i0 += 128) {
    vec sum = vec_set(0);
    for (int64_t i = i0; i < i0 + 128 && i < m; i++) sum += vec_load_n(x + i * inner, lanes);
    total += sum;
  }
  return total;
}
/* The same for contiguous numbers, whole vectors as rows. */
static real sum_row(int64_t m, const real *x) {
  const int64_t whole = m / LANES;
  vec sum = sum_rows(whole, LANES, x, LANES);
  if (whole * LANES < m) sum += vec_load_n(x + whole * LANES, m - whole * LANES);
  return vec_sum(sum);
}

void K(sum_middle)(CabStream *stream, int64_t outer, int64_t middle, int64_t inner, double scale, const real *x,
                   real *y) {
  (void)stream;
  const real s = (real)scale;
  enum { PARTS = 64 };
  if (outer * inner < PARTS && inner == 1 && middle > PARALLEL) { /* few long rows: cut each into PARTS */
    const int64_t step = (middle + PARTS - 1) / PARTS;
    for (int64_t i = 0; i < outer; i++) {
      real parts[PARTS], sum = 0;
#pragma omp parallel for schedule(static)
      for (int64_t k = 0; k < PARTS; k++) {
        const int64_t left = middle - k * step;
        parts[k] = left > 0 ? sum_row(left < step ? left : step, x + i * middle + k * step) : 0;
      }
      for (int64_t k = 0; k < PARTS; k++) sum += parts[k];
      y[i] = s * sum;
    }
    return;
  }
#pragma omp parallel for collapse(2) schedule(static) if (outer * middle * inner > PARALLEL)
  for (int64_t i = 0; i < outer; i++)
    for (int64_t j = 0; j < inner; j += LANES) {
      const real *from = x + i * middle * inner + j;
      if (inner == 1)
        y[i] = s * sum_row(middle, from);
      else
        vec_store_n(y + i * inner + j, s * sum_rows(middle, inner, from, inner - j), inner - j);
    }
}

void K(sum_middle_backward)(CabStream *stream, int64_t outer, int64_t middle, int64_t inner, double scale,
                            const real *gy, real *gx) {
  (void)stream;
  const real s = (real)scale;
  if (inner == 1) {
#pragma omp parallel for collapse(2) schedule(static) if (outer * middle > PARALLEL)
    for (int64_t i = 0; i < outer; i++)
      for (int64_t k = 0; k < middle; k += BLOCK)
        for (int64_t j = k; j < k + BLOCK && j < middle; j++) gx[i * middle + j] = s * gy[i];
    return;
  }
#pragma omp parallel for collapse(2) schedule(static) if (outer * middle * inner > PARALLEL)
  for (int64_t i = 0; i < outer; i++)
    for (int64_t k = 0; k < middle; k++) {
      real *to = gx + (i * middle + k) * inner;
      for (int64_t j = 0; j < inner; j++) to[j] = s * gy[i * inner + j];
    }
}
