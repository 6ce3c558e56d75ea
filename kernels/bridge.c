/* bridge.c - BRIDGE_ROWS rows at a time go through both layers, the error and back again while they are in the cache. */
#include "bridge.h"

#include <cblas.h>

#include "simd.h"

#define CBLAS_f32 cblas_sgemm
#define CBLAS_f64 cblas_dgemm
#define CBLAS CAB_CAT(CBLAS_, REAL)

/* c[m,n] = beta c + op(a) op(b). Inside a parallel region OpenBLAS stays on its caller's thread. */
static void product(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, const real *a, int64_t lda, const real *b,
                    int64_t ldb, real beta, real *c, int64_t ldc) {
  CBLAS(CblasRowMajor, trans_a ? CblasTrans : CblasNoTrans, trans_b ? CblasTrans : CblasNoTrans, (blasint)m, (blasint)n,
        (blasint)k, 1, a, (blasint)lda, b, (blasint)ldb, beta, c, (blasint)ldc);
}

/* What a slab has to itself: a block's h [ROWS,H], silu' [ROWS,H], p [ROWS,D], and sums over its blocks. */
typedef struct {
  real *h, *slope, *p;
  real *gw1, *gb1, *gw2, *gb2, *error; /* one after the other, as bridge_parameters counts; error: sum of squares */
} Room;

static Room room_of(const BridgeShape *s, real *scratch, int64_t slab) {
  const int64_t H = s->H, R = BRIDGE_ROWS;
  real *h = scratch + slab * (bridge_scratch(s) / bridge_slabs(s)), *gw1 = h + R * (2 * H + s->D), *gw2 = gw1 + H * s->N + H;
  return (Room){.h = h, .slope = h + R * H, .p = h + 2 * R * H, .gw1 = gw1, .gb1 = gw1 + H * s->N, .gw2 = gw2,
                .gb2 = gw2 + s->D * H, .error = gw2 + s->D * H + s->D};
}

/* h = silu(h + b1), slope = silu'(h + b1) */
static void activate(int64_t rows, int64_t H, const real *b1, real *h, real *slope) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t j = 0; j < H; j += LANES) {
      const int64_t at = r * H + j, n = H - j;
      vec x = vec_load_n(h + at, n) + vec_load_n(b1 + j, n), sigmoid = vec_sigmoid(x);
      vec_store_n(h + at, x * sigmoid, n);
      vec_store_n(slope + at, vec_silu_slope(x, sigmoid), n);
    }
}

SIMD vec mapped(const BridgeTap *t, BridgeMap map, vec x, int64_t j, int64_t n) {
  switch (map) {
    case BRIDGE_NONE: return x;
    case BRIDGE_RELU: return vec_max(vec_set(0), x);
    case BRIDGE_EXP: return vec_exp(x);
    case BRIDGE_STANDARD: {
      vec deviation = n < LANES ? vec_set(1) : vec_load(t->deviation + j);
      for (int64_t i = 0; n < LANES && i < n; i++) deviation[i] = t->deviation[j + i];
      return (x - vec_load_n(t->mean + j, n)) / deviation;
    }
  }
  return x;
}

/* p = factor (p + b2 - map(target)), added up in gb2; returns the sum of (p + b2 - map(target))^2. */
SIMD double compare(const BridgeShape *s, const BridgeTap *t, BridgeMap map, int64_t from, int64_t rows, real factor, real *p,
                    real *gb2) {
  const int64_t D = s->D;
  double sum = 0;
  for (int64_t r = 0; r < rows; r++) {
    const int64_t image = (from + r) / s->L, token = bridge_token(s, (from + r) % s->L);
    const real *target = t->target + (image * s->T + token) * t->ld_target;
    vec square = vec_set(0);
    for (int64_t j = 0; j < D; j += LANES) {
      const int64_t at = r * D + j, n = D - j;
      vec error = vec_load_n(p + at, n) + vec_load_n(t->b2 + j, n) - mapped(t, map, vec_load_n(target + j, n), j, n);
      if (n < LANES && map == BRIDGE_EXP) /* e^0 in lanes beyond the row */
        for (int64_t i = n; i < LANES; i++) error[i] = 0;
      vec gradient = factor * error;
      square += error * error;
      vec_store_n(p + at, gradient, n);
      vec_store_n(gb2 + j, vec_load_n(gb2 + j, n) + gradient, n);
    }
    sum += (double)vec_sum(square);
  }
  return sum;
}

/* Each map its own loop. */
static double error_of(const BridgeShape *s, const BridgeTap *t, int64_t from, int64_t rows, real factor, real *p, real *gb2) {
  switch (s->map) {
    case BRIDGE_NONE: return compare(s, t, BRIDGE_NONE, from, rows, factor, p, gb2);
    case BRIDGE_RELU: return compare(s, t, BRIDGE_RELU, from, rows, factor, p, gb2);
    case BRIDGE_EXP: return compare(s, t, BRIDGE_EXP, from, rows, factor, p, gb2);
    case BRIDGE_STANDARD: return compare(s, t, BRIDGE_STANDARD, from, rows, factor, p, gb2);
  }
  return 0;
}

/* dh = slope dh, added up in gb1 */
static void descend(int64_t rows, int64_t H, const real *slope, real *dh, real *gb1) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t j = 0; j < H; j += LANES) {
      const int64_t at = r * H + j, n = H - j;
      vec g = vec_load_n(dh + at, n) * vec_load_n(slope + at, n);
      vec_store_n(dh + at, g, n);
      vec_store_n(gb1 + j, vec_load_n(gb1 + j, n) + g, n);
    }
}

/* Rows [from, from + rows): p and its error, then gw2 += dp^T h, dh = dp w2 over h, gw1 += dh^T x, gx = dh w1. */
static double run_block(const BridgeShape *s, const BridgeTap *t, int64_t from, int64_t rows, Room o) {
  const int64_t N = s->N, H = s->H, D = s->D;
  const real *x = t->x + from * t->ldx;
  product(false, true, rows, H, N, x, t->ldx, t->w1, N, 0, o.h, H);
  activate(rows, H, t->b1, o.h, o.slope);
  product(false, true, rows, D, H, o.h, H, t->w2, H, 0, o.p, D);
  double error = error_of(s, t, from, rows, (real)(2 / (double)(s->B * s->L * D)), o.p, o.gb2);
  if (!t->gx && !t->gw1) return error;
  if (t->gw1) product(true, false, D, H, rows, o.p, D, o.h, H, 1, o.gw2, H);
  product(false, false, rows, H, D, o.p, D, t->w2, H, 0, o.h, H);
  descend(rows, H, o.slope, o.h, o.gb1);
  if (t->gw1) product(true, false, H, N, rows, o.h, H, x, t->ldx, 1, o.gw1, N);
  if (t->gx) product(false, false, rows, N, H, o.h, H, t->w1, N, 0, t->gx + from * N, N);
  return error;
}

/* to[i] = sum over slabs of what lies at `from` in their rooms */
static void add_slabs(const BridgeShape *s, const real *from, int64_t n, real *to) {
  const int64_t slabs = bridge_slabs(s), stride = bridge_scratch(s) / slabs;
#pragma omp parallel for schedule(static) if (n * slabs > 16384)
  for (int64_t i = 0; i < n; i++) {
    double sum = 0;
    for (int64_t slab = 0; slab < slabs; slab++) sum += (double)from[slab * stride + i];
    to[i] = (real)sum;
  }
}

static double run_tap(const BridgeShape *s, const BridgeTap *t, real *scratch) {
  const int64_t rows = s->B * s->L, blocks = bridge_blocks(s), slabs = bridge_slabs(s);
  double error = 0;
#pragma omp parallel for schedule(static)
  for (int64_t slab = 0; slab < slabs; slab++) {
    Room o = room_of(s, scratch, slab);
    double sum = 0;
    memset(o.gw1, 0, (size_t)bridge_parameters(s) * sizeof(real));
    for (int64_t block = slab * blocks / slabs; block < (slab + 1) * blocks / slabs; block++) {
      const int64_t from = block * BRIDGE_ROWS;
      sum += run_block(s, t, from, rows - from < BRIDGE_ROWS ? rows - from : BRIDGE_ROWS, o);
    }
    *o.error = (real)sum;
  }
  for (int64_t slab = 0; slab < slabs; slab++) error += (double)*room_of(s, scratch, slab).error;
  if (!t->gw1) return error;
  const Room first = room_of(s, scratch, 0);
  add_slabs(s, first.gw1, s->H * s->N, t->gw1);
  add_slabs(s, first.gb1, s->H, t->gb1);
  add_slabs(s, first.gw2, s->D * s->H, t->gw2);
  add_slabs(s, first.gb2, s->D, t->gb2);
  return error;
}

void K(bridge_forward)(CabStream *stream, const BridgeShape *s, const BridgeTap *tap, real *mse, real *y, real *scratch) {
  (void)stream;
  const int64_t n = s->B * s->L * s->D;
  double total = 0;
  for (int i = 0; i < s->taps; i++) {
    double error = run_tap(s, &tap[i], scratch) / (double)(n ? n : 1);
    mse[i] = (real)error;
    total += error;
  }
  *y = (real)total;
}

static void scale(int64_t n, real factor, const real *from, real *to) {
  for (int64_t i = 0; to && i < n; i++) to[i] = factor * from[i];
}

void K(bridge_backward)(CabStream *stream, const BridgeShape *s, const BridgeTap *tap, const real *gy, const real *gmse,
                        const BridgeTap *to) {
  (void)stream;
  for (int i = 0; i < s->taps; i++) {
    const real factor = (gy ? *gy : 0) + (gmse ? gmse[i] : 0);
    scale(s->B * s->L * s->N, factor, tap[i].gx, to[i].gx);
    scale(s->H * s->N, factor, tap[i].gw1, to[i].gw1);
    scale(s->H, factor, tap[i].gb1, to[i].gb1);
    scale(s->D * s->H, factor, tap[i].gw2, to[i].gw2);
    scale(s->D, factor, tap[i].gb2, to[i].gb2);
  }
}
