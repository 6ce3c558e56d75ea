/* conv1d.c - a work unit is one batch element (backward: a block of them) and GROUP channels, token by token: reads
 * run along rows of x, and the W tokens of a window stay in L1. "Step i" is the i-th token in scan order, token
 * t = i or L-1-i, so the reverse direction is the same code. With W the width and pre = bias + conv:
 *   pre_i = bias + sum_j w_j x_{i-(W-1)+j};  gp = gy act'(pre);  gx_i = sum_j w_j gp_{i+(W-1)-j};
 *   gw_j = sum_i gp_i x_{i-(W-1)+j} */
#include "conv1d.h"

#include "simd.h"

enum { WMAX = 8, TILES = 4, GROUP = TILES * LANES, PARALLEL = 16384, AHEAD = 8 /* tokens */ };

typedef struct {
  int64_t L, E, W, ld;
  bool silu, reverse;
  int64_t e0, n; /* first channel, channels (<= GROUP) */
  vec w[WMAX][TILES], bias[TILES];
} Conv;

static void load_weights(Conv *c, const real *weight, const real *bias) {
  memset(c->w, 0, sizeof c->w);
  for (int64_t e = 0; e < c->n; e++)
    for (int64_t j = 0; j < c->W; j++) c->w[j][e / LANES][e % LANES] = weight[(c->e0 + e) * c->W + j];
  for (int64_t k = 0; k < TILES; k++)
    c->bias[k] = bias && k * LANES < c->n ? vec_load_n(bias + c->e0 + k * LANES, c->n - k * LANES) : vec_set(0);
}
SIMD int64_t token(const Conv *c, int64_t step) { return c->reverse ? c->L - 1 - step : step; }

/* m valid lanes of pre at a step; x is at tile k of the batch element's first row. */
SIMD vec window(const Conv *c, const int W, const real *x, int64_t step, int64_t k, int64_t m) {
  const int64_t first = step < W - 1 ? W - 1 - step : 0; /* taps before the first token read zeros */
  vec sum = c->bias[k];
#pragma GCC unroll 8
  for (int64_t j = 0; j < W; j++)
    if (j >= first) sum += c->w[j][k] * vec_load_n(x + token(c, step - (W - 1) + j) * c->ld, m);
  return sum;
}

/* One batch element; W and whole (all tiles are) are constants where it matters. Rows lie too far apart for the processor to
 * fetch ahead by itself. The two together: 1.1 to 0.5 ms, backward 1.8 to 0.95 (one core, b 8, l 197, E 384, W 4). */
SIMD void forward_rows(const Conv *c, const int W, const bool whole, const real *x, real *y) {
  for (int64_t i = 0; i < c->L; i++)
    for (int64_t k = 0; k * LANES < c->n; k++) {
      const int64_t m = whole ? LANES : c->n - k * LANES;
      __builtin_prefetch(x + token(c, i + AHEAD) * c->ld + k * LANES);
      __builtin_prefetch(y + token(c, i + AHEAD) * c->E + k * LANES, 1);
      vec v = window(c, W, x + k * LANES, i, k, m);
      if (c->silu) v = vec_silu(v);
      vec_store_n(y + token(c, i) * c->E + k * LANES, v, m);
    }
}

/* The token after the document that begins at t; all is one without places. */
static int64_t document_end(const int32_t *place, int64_t L, int64_t t) {
  if (!place) return L;
  for (t++; t < L && place[t] != 0; t++) {}
  return t;
}

void K(conv1d_forward)(CabStream *stream, int64_t B, int64_t L, int64_t E, int64_t W, bool silu, bool reverse,
                       const real *x, int64_t ld, const int32_t *place, const real *weight, const real *bias, real *y) {
  (void)stream;
#pragma omp parallel for collapse(2) schedule(static) if (B * L * E > PARALLEL)
  for (int64_t b = 0; b < B; b++)
    for (int64_t e0 = 0; e0 < E; e0 += GROUP) {
      Conv c = {.L = L, .E = E, .W = W, .ld = ld, .silu = silu, .reverse = reverse, .e0 = e0};
      c.n = E - e0 < GROUP ? E - e0 : GROUP;
      load_weights(&c, weight, bias);
      for (int64_t t = 0, end; t < L; t = end) {
        const real *from = x + (b * L + t) * ld + e0;
        real *to = y + (b * L + t) * E + e0;
        end = document_end(place ? place + b * L : NULL, L, t);
        c.L = end - t;
        if (W == 4 && c.n % LANES == 0) forward_rows(&c, 4, true, from, to);
        else forward_rows(&c, (int)W, false, from, to);
      }
    }
}

/* One batch element; gw[W] is the bias gradient. gp of the last WMAX steps sits in a ring. */
SIMD void backward_rows(const Conv *c, const int W, const bool whole, const real *x, const real *gy, real *gx, int64_t gld,
                        bool add_gx, vec gw[WMAX + 1][TILES]) {
  vec ring[WMAX][TILES];
  for (int64_t i = 0; i < c->L + W - 1; i++)
    for (int64_t k = 0; k * LANES < c->n; k++) {
      const int64_t m = whole ? LANES : c->n - k * LANES, at = k * LANES;
      vec g = vec_set(0);
      __builtin_prefetch(x + token(c, i + AHEAD) * c->ld + at);
      __builtin_prefetch(gy + token(c, i + AHEAD) * c->E + at);
      if (gx) __builtin_prefetch(gx + token(c, i + AHEAD) * gld + at, 1);
      if (i < c->L) {
        g = vec_load_n(gy + token(c, i) * c->E + at, m);
        if (c->silu) {
          const vec pre = window(c, W, x + at, i, k, m);
          g *= vec_silu_slope(pre, vec_sigmoid(pre));
        }
        const int64_t first = i < W - 1 ? W - 1 - i : 0;
#pragma GCC unroll 8
        for (int64_t j = 0; j < W; j++)
          if (j >= first) gw[j][k] += g * vec_load_n(x + token(c, i - (W - 1) + j) * c->ld + at, m);
        gw[W][k] += g;
      }
      ring[i % WMAX][k] = g;
      const int64_t done = i - (W - 1); /* the step whose last gp has just arrived */
      if (!gx || done < 0) continue;
      vec sum = add_gx ? vec_load_n(gx + token(c, done) * gld + at, m) : vec_set(0);
#pragma GCC unroll 8
      for (int64_t j = 0; j < W; j++) sum += c->w[j][k] * ring[(i - j) % WMAX][k];
      vec_store_n(gx + token(c, done) * gld + at, sum, m);
    }
}

void K(conv1d_backward)(CabStream *stream, int64_t B, int64_t L, int64_t E, int64_t W, bool silu, bool reverse,
                        const real *x, int64_t ld, const int32_t *place, const real *weight, const real *bias, const real *gy,
                        real *gx, int64_t gld, bool add_gx, real *gweight, real *gbias, real *partial) {
  (void)stream;
#pragma omp parallel if (B * L * E > PARALLEL)
  {
#pragma omp for collapse(2) schedule(static)
    for (int64_t block = 0; block < CONV1D_BLOCKS; block++)
      for (int64_t e0 = 0; e0 < E; e0 += GROUP) {
        Conv c = {.L = L, .E = E, .W = W, .ld = ld, .silu = silu, .reverse = reverse, .e0 = e0};
        c.n = E - e0 < GROUP ? E - e0 : GROUP;
        load_weights(&c, weight, bias);
        vec gw[WMAX + 1][TILES] = {0};
        for (int64_t row = block * B / CONV1D_BLOCKS * L, last = (block + 1) * B / CONV1D_BLOCKS * L; row < last; row += c.L) {
          const real *from = x + row * ld + e0, *g = gy + row * E + e0;
          real *to = gx ? gx + row * gld + e0 : NULL;
          c.L = document_end(place ? place + row / L * L : NULL, L, row % L) - row % L;
          if (W == 4 && c.n % LANES == 0)
            backward_rows(&c, 4, true, from, g, to, gld, add_gx, gw);
          else
            backward_rows(&c, (int)W, false, from, g, to, gld, add_gx, gw);
        }
        for (int64_t j = 0; j <= W; j++)
          memcpy(partial + (block * (W + 1) + j) * E + e0, gw[j], (size_t)c.n * sizeof(real));
      }
#pragma omp for schedule(static)
    for (int64_t e = 0; e < E; e++)
      for (int64_t j = 0; j <= W; j++) {
        real sum = 0;
        for (int64_t block = 0; block < CONV1D_BLOCKS; block++) sum += partial[(block * (W + 1) + j) * E + e];
        if (j < W && gweight) gweight[e * W + j] = sum;
        if (j == W && gbias) gbias[e] = sum;
      }
  }
}
