/* bridge.c - BRIDGE_ROWS rows at a time go through both layers, the error and back again while they are in the cache. */
#include "bridge.h"

#include "product.h"
#include "simd.h"

/* What a slab has to itself: a block's h [ROWS,H], silu' [ROWS,H], p [ROWS,D], 1/deviation [D], and sums over its blocks. */
typedef struct {
  real *h, *slope, *p, *inverse;
  real *gw1, *gb1, *gw2, *gb2, *error; /* one after the other, as bridge_parameters counts; error: sum of squares */
} Room;

static Room room_of(const BridgeShape *s, real *scratch, int64_t slab) {
  const int64_t H = s->H, R = BRIDGE_ROWS;
  real *h = scratch + slab * (bridge_scratch(s) / bridge_slabs(s)), *gw1 = h + R * (2 * H + s->D) + s->D, *gw2 = gw1 + H * s->N + H;
  return (Room){.h = h, .slope = h + R * H, .p = h + 2 * R * H, .inverse = gw1 - s->D, .gw1 = gw1, .gb1 = gw1 + H * s->N, .gw2 = gw2,
                .gb2 = gw2 + s->D * H, .error = gw2 + s->D * H + s->D};
}

/* h = silu(h), slope = silu'(h) */
static void activate(int64_t rows, int64_t H, real *h, real *slope) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t j = 0; j < H; j += LANES) {
      const int64_t at = r * H + j, n = H - j;
      vec x = vec_load_n(h + at, n), sigmoid = vec_sigmoid(x);
      vec_store_n(h + at, x * sigmoid, n);
      vec_store_n(slope + at, vec_silu_slope(x, sigmoid), n);
    }
}

SIMD vec mapped(const BridgeTap *t, BridgeMap map, const real *inverse, vec x, int64_t j, int64_t n) {
  switch (map) {
    case BRIDGE_NONE: return x;
    case BRIDGE_RELU: return vec_max(vec_set(0), x);
    case BRIDGE_EXP: return vec_exp(x);
    case BRIDGE_STANDARD: return (x - vec_load_n(t->mean + j, n)) * vec_load_n(inverse + j, n);
  }
  return x;
}

/* p = factor (p - map(target)), added up in gb2; returns the sum of (p - map(target))^2. */
SIMD double compare(const BridgeShape *s, const BridgeTap *t, BridgeMap map, int64_t from, int64_t rows, real factor, Room o) {
  const int64_t D = s->D;
  double sum = 0;
  for (int64_t r = 0; r < rows; r++) {
    const int64_t image = (from + r) / s->L, token = bridge_token(s, (from + r) % s->L);
    const real *target = t->target + (image * s->T + token) * t->ld_target;
    vec square = vec_set(0);
    for (int64_t j = 0; j < D; j += LANES) {
      const int64_t at = r * D + j, n = D - j;
      vec error = vec_load_n(o.p + at, n) - mapped(t, map, o.inverse, vec_load_n(target + j, n), j, n);
      if (n < LANES && map == BRIDGE_EXP) /* e^0 in lanes beyond the row */
        for (int64_t i = n; i < LANES; i++) error[i] = 0;
      vec gradient = factor * error;
      square += error * error;
      vec_store_n(o.p + at, gradient, n);
      vec_store_n(o.gb2 + j, vec_load_n(o.gb2 + j, n) + gradient, n);
    }
    sum += (double)vec_sum(square);
  }
  return sum;
}

/* Each map its own loop. */
static double error_of(const BridgeShape *s, const BridgeTap *t, int64_t from, int64_t rows, real factor, Room o) {
  switch (s->map) {
    case BRIDGE_NONE: return compare(s, t, BRIDGE_NONE, from, rows, factor, o);
    case BRIDGE_RELU: return compare(s, t, BRIDGE_RELU, from, rows, factor, o);
    case BRIDGE_EXP: return compare(s, t, BRIDGE_EXP, from, rows, factor, o);
    case BRIDGE_STANDARD: return compare(s, t, BRIDGE_STANDARD, from, rows, factor, o);
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
  K(product)(PRODUCT_NT, rows, H, N, x, t->ldx, t->w1, N, t->b1, false, o.h, H);
  activate(rows, H, o.h, o.slope);
  K(product)(PRODUCT_NT, rows, D, H, o.h, H, t->w2, H, t->b2, false, o.p, D);
  double error = error_of(s, t, from, rows, (real)(2 / (double)(s->B * s->L * D)), o);
  if (!t->gx && !t->gw1) return error;
  if (t->gw1) K(product)(PRODUCT_TN, D, H, rows, o.p, D, o.h, H, NULL, true, o.gw2, H);
  K(product)(PRODUCT_NN, rows, H, D, o.p, D, t->w2, H, NULL, false, o.h, H);
  descend(rows, H, o.slope, o.h, o.gb1);
  if (t->gw1) K(product)(PRODUCT_TN, H, N, rows, o.h, H, x, t->ldx, NULL, true, o.gw1, N);
  if (t->gx) K(product)(PRODUCT_NN, rows, N, H, o.h, H, t->w1, N, NULL, false, t->gx + from * N, N);
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
  const int64_t rows = s->B * s->L, slabs = bridge_slabs(s);
  double error = 0;
#pragma omp parallel for schedule(static)
  for (int64_t slab = 0; slab < slabs; slab++) {
    Room o = room_of(s, scratch, slab);
    double sum = 0;
    memset(o.gw1, 0, (size_t)bridge_parameters(s) * sizeof(real));
    for (int64_t j = 0; t->deviation && j < s->D; j++) o.inverse[j] = 1 / t->deviation[j];
    const int64_t first = slab * rows / slabs, count = (slab + 1) * rows / slabs - first;
    const int64_t blocks = (count + BRIDGE_ROWS - 1) / BRIDGE_ROWS;
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t from = block * count / blocks;
      sum += run_block(s, t, first + from, (block + 1) * count / blocks - from, o);
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
