/* selective_scan.c - lanes hold channels, a tile is LANES of them; per tile and state n
 *   a_t = 2^(d_t A log2 e),  h_t = a_t h_{t-1} + (d_t u_t) B_t,  y_t = sum_n C_t h_t + D u_t,  y_t *= silu(z_t).
 *
 * Tokens go in chunks of SCAN_CHUNK, states in blocks of NB: NB registers of h walk the chunk. Backward replays a
 * chunk from its stored entry state, keeping a_t and h_t of one state block (8 KB), then runs the adjoint:
 *   gh_t = g_t C_t + a_{t+1} gh_{t+1};  gC_t = g_t h_t;  gB_t = gh_t d_t u_t;  q_t = a_t gh_t h_{t-1};
 *   gA = sum_t q_t d_t;  gd_t = sum_n q_t A + u_t sum_n gh_t B_t;  gu_t = d_t sum_n gh_t B_t + D g_t;
 *   with a weight, gx_t = gd_t softplus': gdt_t = sum_e gx_t weight;  gweight = sum_t gx_t dt_t
 * with g_t = gy_t silu(z_t): one exponential per (t, e, n). gB, gC and gdt of a weight add up lane by lane over the
 * tiles of a chunk (SCAN_CHUNK (2 N + R) registers on the stack) and across lanes once per chunk.
 *
 * Where every |d_t A log2 e| of a chunk is below STILL, each a_t rounds to 1 (decay "identity" starts at A = -2e-9): the
 * chunk then runs without exponentials, to the same bits. That takes half the time forward, two thirds backward (one core,
 * b 8, l 197, E 384, N 16).
 *
 * Sums over channels and batch run in index order inside one work unit, so the bits do not depend on the threads. */
#include "selective_scan.h"

#include "simd.h"

#if REAL_BITS == 32
#define STILL 0x1p-25f
#else
#define STILL 0x1p-54
#endif
enum { T = SCAN_CHUNK, NB = 4, GROUP = 8 /* tiles of one forward work unit */ };
/* Registers between the sums of gB and of gC: at a multiple of 4 KB a load of one would wait for a store to the other (N 32:
 * backward 7.0 to 5.1 ms). */
enum { APART = 16 };

typedef struct {
  const ScanShape *s;
  const real *u, *dt, *A, *b, *c, *D, *z, *bias, *weight;
} Scan;

static Scan scan_of(const ScanShape *s, const ScanInputs *in) {
  return (Scan){s, in->u, in->dt, in->A, in->b, in->c, in->D, in->z, in->bias, in->weight};
}

/* A chunk of n tokens; slot j, in scan order, is token first + j step. */
typedef struct {
  int64_t n, first, step;
} Chunk;

static int64_t chunks(const ScanShape *s) { return (s->L + T - 1) / T; }
static int64_t tiles(const ScanShape *s) { return (s->E + LANES - 1) / LANES; }

static Chunk chunk_at(const ScanShape *s, int64_t k) {
  const int64_t begin = k * T, n = s->L - begin < T ? s->L - begin : T;
  return s->reverse ? (Chunk){n, s->L - 1 - begin, -1} : (Chunk){n, begin, 1};
}

/* to[n] = scale rows[e,n] of channels e0 .. e0 + LANES (0 beyond E). */
static void load_columns(const ScanShape *s, const real *rows, int64_t N, int64_t e0, real scale, vec *to) {
  const int64_t m = s->E - e0 < LANES ? s->E - e0 : LANES;
  memset(to, 0, (size_t)N * sizeof(vec));
  for (int64_t l = 0; l < m; l++)
    for (int64_t n = 0; n < N; n++) to[n][l] = rows[(e0 + l) * N + n] * scale;
}

static void load_A(const Scan *p, int64_t e0, vec *A) { load_columns(p->s, p->A, p->s->N, e0, VEC_LOG2E, A); }

/* One tile at one token. The inner loops walk an array of these: one pointer, constant offsets. */
typedef struct {
  vec d, u, du;
  vec y;       /* sum C h + D u; backward fills it when gz is wanted */
  vec sigmoid; /* d softplus(x) / dx */
  vec g;       /* gradient of y before the gate */
  vec gd, gdu; /* sum_n q A log2 e, sum_n gh B */
  vec slope_z; /* gy silu'(z) */
} Token;

/* From a token's elements of this tile to those that the next step of the scan will ask for. A tile takes 64 bytes of each
 * row, which the processor does not see coming: fetching them early took the backward from 6.5 to 4.6 ms on one core (b 8,
 * l 197, E 384, N 16, with a gate). */
static int64_t ahead(const ScanShape *s, const Chunk *k, int64_t e0, bool adjoint) {
  return e0 + LANES < s->E ? LANES : (adjoint ? -T : T) * k->step * s->E - e0;
}

/* d of n tokens = weight dt; `low` is dt of the first. */
SIMD void project(const int n, const real *low, int64_t step, const vec *weight, int64_t R, Token *to) {
  vec x[4];
#pragma GCC unroll 4
  for (int i = 0; i < n; i++) x[i] = vec_set(0);
  for (int64_t r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) x[i] += weight[r] * low[i * step + r];
#pragma GCC unroll 4
  for (int i = 0; i < n; i++) to[i].d = x[i];
}

/* d before bias and softplus. */
SIMD void load_steps(const Scan *p, const vec *weight, int64_t row, const Chunk *k, int64_t e0, int64_t next, Token *to) {
  const ScanShape *s = p->s;
  const real *dt = p->dt + row * s->ldt;
  const int64_t step = k->step * s->ldt;
  int64_t j = 0;
  if (p->weight) {
    for (; j + 4 <= k->n; j += 4) project(4, dt + j * step, step, weight, s->R, to + j);
    for (; j < k->n; j++) project(1, dt + j * step, step, weight, s->R, to + j);
  }
  for (; j < k->n; j++) {
    __builtin_prefetch(dt + j * step + e0 + next);
    to[j].d = vec_load_n(dt + j * step + e0, s->E - e0);
  }
}

SIMD void load_inputs(const Scan *p, const vec *weight, int64_t b, const Chunk *k, int64_t e0, bool slopes, Token *to) {
  const ScanShape *s = p->s;
  const int64_t next = ahead(s, k, e0, slopes), m = s->E - e0;
  load_steps(p, weight, b * s->L + k->first, k, e0, next, to);
  const vec bias = p->bias ? vec_load_n(p->bias + e0, m) : vec_set(0);
  const vec D = p->D ? vec_load_n(p->D + e0, m) : vec_set(0);
  for (int64_t j = 0; j < k->n; j++) {
    const int64_t at = (b * s->L + k->first + j * k->step) * s->E + e0;
    __builtin_prefetch(p->u + at + next);
    vec x = to[j].d + bias, u = vec_load_n(p->u + at, m);
    if (s->softplus) x = vec_softplus_d(x, slopes ? &to[j].sigmoid : NULL);
    to[j].d = x;
    to[j].u = u;
    to[j].du = x * u;
    to[j].y = D * u;
  }
}

/* max_n |A[n]|; NaN where a rate is NaN or infinite. */
static vec peak_of(const vec *A, int64_t N) {
  vec peak = vec_set(0), finite = vec_set(0);
  for (int64_t n = 0; n < N; n++) {
    peak = vec_max(peak, vec_abs(A[n]));
    finite += A[n] * 0;
  }
  return peak + finite;
}

/* True if every a_t of the chunk rounds to 1. */
static bool stands_still(const Token *token, int64_t count, vec peak) {
  vec d = vec_set(0);
  for (int64_t j = 0; j < count; j++) d = vec_max(d, vec_abs(token[j].d));
  return vec_all(peak * d < STILL);
}

/* nb states through a chunk. b, c point at slot 0 and state n0, rows of ldb, ldc (negative in reverse). */
SIMD void forward_block(const int nb, const bool still, int64_t count, Token *at, const vec *A, const real *b, int64_t ldb,
                        const real *c, int64_t ldc, vec *h) {
  vec state[NB], rate[NB];
#pragma GCC unroll 4
  for (int n = 0; n < nb; n++) state[n] = h[n], rate[n] = A[n];
  for (const Token *end = at + count; at < end; at++, b += ldb, c += ldc) {
    const vec d = at->d, du = at->du;
    vec sum = at->y;
#pragma GCC unroll 4
    for (int n = 0; n < nb; n++) {
      state[n] = (still ? state[n] : vec_exp2(d * rate[n]) * state[n]) + du * b[n];
      sum += state[n] * c[n];
    }
    at->y = sum;
  }
#pragma GCC unroll 4
  for (int n = 0; n < nb; n++) h[n] = state[n];
}

/* Calls f(nb, n0, ...) for state blocks of constant size. */
#define STATE_BLOCKS(N, f, ...)                                             \
  do {                                                                      \
    int64_t n0_ = 0;                                                        \
    for (; n0_ + NB <= (N); n0_ += NB) f(NB, n0_, ##__VA_ARGS__);             \
    switch ((N) - n0_) {                                                    \
      case 3: f(3, n0_, ##__VA_ARGS__); break;                                \
      case 2: f(2, n0_, ##__VA_ARGS__); break;                                \
      case 1: f(1, n0_, ##__VA_ARGS__); break;                                \
    }                                                                       \
  } while (0)

static void forward_chunk(const Scan *p, int64_t b, const Chunk *k, int64_t e0, const vec *A, const vec *weight, vec peak, vec *h,
                          real *out) {
  const ScanShape *s = p->s;
  const int64_t m = s->E - e0, row = b * s->L + k->first;
  const real *pb = p->b + row * s->ldb, *pc = p->c + row * s->ldc;
  Token tokens[T];
  load_inputs(p, weight, b, k, e0, false, tokens);
#define BLOCK(nb, n0, still) \
  forward_block(nb, still, k->n, tokens, A + (n0), pb + (n0), k->step * s->ldb, pc + (n0), k->step * s->ldc, h + (n0))
  if (stands_still(tokens, k->n, peak))
    STATE_BLOCKS(s->N, BLOCK, true);
  else
    STATE_BLOCKS(s->N, BLOCK, false);
#undef BLOCK
  for (int64_t j = 0; j < k->n; j++) {
    const int64_t at = row + j * k->step;
    vec v = tokens[j].y;
    if (p->z) v *= vec_silu(vec_load_n(p->z + at * s->ldz + e0, m));
    vec_store_n(out + at * s->E + e0, v, m);
  }
}

void K(scan_forward)(CabStream *stream, const ScanShape *s, const ScanInputs *in, real *y, real *h) {
  (void)stream;
  const Scan p = scan_of(s, in);
  const int64_t count = chunks(s), all = tiles(s), groups = (all + GROUP - 1) / GROUP, N = s->N, R = s->R;
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int64_t ib = 0; ib < s->B; ib++)
    for (int64_t group = 0; group < groups; group++) {
      const int64_t first = group * GROUP, n = all - first < GROUP ? all - first : GROUP;
      vec rates[n * N + 1], states[n * N + 1], weights[n * R + 1], peaks[GROUP]; /* + 1: N may be 0 */
      memset(states, 0, sizeof states);
      for (int64_t i = 0; i < n; i++) {
        load_A(&p, (first + i) * LANES, rates + i * N);
        load_columns(s, p.weight, R, (first + i) * LANES, 1, weights + i * R);
        peaks[i] = peak_of(rates + i * N, N);
      }
      for (int64_t k = 0; k < count; k++) {
        const Chunk chunk = chunk_at(s, k);
        for (int64_t i = 0; i < n; i++) {
          const int64_t e0 = (first + i) * LANES;
          if (h)
            for (int64_t j = 0; j < N; j++)
              vec_store_n(h + ((ib * count + k) * N + j) * s->E + e0, states[i * N + j], s->E - e0);
          forward_chunk(&p, ib, &chunk, e0, rates + i * N, weights + i * R, peaks[i], states + i * N, y);
        }
      }
    }
}

/* Scratch of one (batch element, tile): 3 N + 3 + 2 R registers in `partial`. gA, gD, gbias, gweight lie one after another. */
typedef struct {
  real *A, *carry, *gA, *gD, *gbias, *gweight, *weight, *peak;
} Tile;

static int64_t tile_registers(const Scan *p) { return 3 * p->s->N + 3 + 2 * p->s->R; }

static Tile tile_at(const Scan *p, real *partial, int64_t b, int64_t tile) {
  const int64_t N = p->s->N * LANES, R = p->s->R * LANES;
  real *at = partial + (b * tiles(p->s) + tile) * tile_registers(p) * LANES, *sums = at + 2 * N, *rest = sums + N + 2 * LANES;
  return (Tile){at, at + N, sums, sums + N, sums + N + LANES, rest, rest + R, rest + 2 * R};
}

/* nb states of one tile: replay the chunk from h0, then its adjoint. gb, gc: lane sums by slot, rows of N. */
SIMD void backward_block(const int nb, const bool replay_y, const bool still, int64_t count, Token *token, const Tile *tile, int64_t n0,
                         const real *h0, int64_t E, int64_t m, const real *b, int64_t ldb, const real *c, int64_t ldc,
                         int64_t N, vec *gb, vec *gc) {
  struct {
    vec decay[NB], h[NB]; /* a of this token, h of the one before */
  } steps[T + 1];
  vec state[NB], rate[NB];
#pragma GCC unroll 4
  for (int n = 0; n < nb; n++) {
    rate[n] = vec_load(tile->A + (n0 + n) * LANES);
    state[n] = vec_load_n(h0 + n * E, m);
  }
  for (int64_t j = 0; j < count; j++, b += ldb, c += ldc) {
    const vec d = token[j].d, du = token[j].du;
    vec y = vec_set(0);
#pragma GCC unroll 4
    for (int n = 0; n < nb; n++) {
      steps[j].h[n] = state[n];
      if (!still) {
        const vec decay = vec_exp2(d * rate[n]);
        steps[j].decay[n] = decay;
        state[n] *= decay;
      }
      state[n] += du * b[n];
      if (replay_y) y += state[n] * c[n];
    }
    if (replay_y) token[j].y += y;
  }
  vec carry[NB], gA[NB];
#pragma GCC unroll 4
  for (int n = 0; n < nb; n++) {
    carry[n] = vec_load(tile->carry + (n0 + n) * LANES);
    gA[n] = vec_load(tile->gA + (n0 + n) * LANES);
  }
  gb += count * N;
  gc += count * N;
  for (int64_t j = count - 1; j >= 0; j--) {
    b -= ldb, c -= ldc, gb -= N, gc -= N;
    const vec d = token[j].d, du = token[j].du, g = token[j].g;
    vec gd = token[j].gd, gdu = token[j].gdu;
#pragma GCC unroll 4
    for (int n = 0; n < nb; n++) {
      const vec gh = carry[n] + g * c[n], before = steps[j].h[n];
      gc[n] += g * state[n];
      gb[n] += gh * du;
      gdu += gh * b[n];
      carry[n] = still ? gh : gh * steps[j].decay[n];
      const vec q = carry[n] * before;
      gd += q * rate[n];
      gA[n] += q * d;
      state[n] = before;
    }
    token[j].gd = gd;
    token[j].gdu = gdu;
  }
#pragma GCC unroll 4
  for (int n = 0; n < nb; n++) {
    vec_store(tile->carry + (n0 + n) * LANES, carry[n]);
    vec_store(tile->gA + (n0 + n) * LANES, gA[n]);
  }
}

/* nb columns of the weight: from the gradient of x (in gd) to their own and that of dt, lane sums by slot in rows of R. */
SIMD void project_back(const int nb, int64_t count, const Token *token, const Tile *tile, int64_t r0, const real *low, int64_t step,
                       int64_t R, vec *glow) {
  vec weight[NB], gweight[NB];
#pragma GCC unroll 4
  for (int r = 0; r < nb; r++) {
    weight[r] = vec_load(tile->weight + (r0 + r) * LANES);
    gweight[r] = vec_load(tile->gweight + (r0 + r) * LANES);
  }
  for (int64_t j = 0; j < count; j++, low += step, glow += R) {
    const vec g = token[j].gd;
#pragma GCC unroll 4
    for (int r = 0; r < nb; r++) {
      glow[r] += g * weight[r];
      gweight[r] += g * low[r];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < nb; r++) vec_store(tile->gweight + (r0 + r) * LANES, gweight[r]);
}

/* The gradient that goes to dt, of a chunk: stored, or through the weight. */
static void steps_back(const Scan *p, int64_t row, const Chunk *k, int64_t e0, const Tile *tile, const Token *tokens,
                       const ScanGradients *to, vec *glow) {
  const ScanShape *s = p->s;
  const int64_t step = k->step * s->ldt;
  const real *low = p->dt + row * s->ldt;
  real *gdt = to->dt;
#define BLOCK(nb, r0) project_back(nb, k->n, tokens, tile, r0, low + (r0), step, s->R, glow + (r0))
  if (p->weight) STATE_BLOCKS(s->R, BLOCK);
#undef BLOCK
  else if (gdt)
    for (int64_t j = 0; j < k->n; j++) vec_store_n(gdt + (row + j * k->step) * to->ldt + e0, tokens[j].gd, s->E - e0);
}

/* Lane sums of a chunk, by slot: gb and gc in rows of N, gdt of a weight in rows of R. */
typedef struct {
  vec *gb, *gc, *glow;
} Sums;

static void backward_chunk(const Scan *p, int64_t b, const Chunk *k, int64_t e0, const Tile *tile, const real *h0,
                           const real *gy, const ScanGradients *to, const Sums *sums) {
  real *gu = to->u, *gz = to->z, *gdt = p->weight ? NULL : to->dt;
  const ScanShape *s = p->s;
  const int64_t m = s->E - e0, row = b * s->L + k->first, N = s->N, next = ahead(s, k, e0, true);
  for (int64_t n = 0; n < N; n++) __builtin_prefetch(h0 + n * s->E + LANES);
  const real *pb = p->b + row * s->ldb, *pc = p->c + row * s->ldc;
  Token tokens[T];
  vec weight[p->s->R + 1];
  memcpy(weight, tile->weight, (size_t)p->s->R * sizeof(vec));
  load_inputs(p, weight, b, k, e0, true, tokens);
  for (int64_t j = 0; j < k->n; j++) {
    const int64_t at = row + j * k->step;
    __builtin_prefetch(gy + at * s->E + e0 + next);
    if (gdt) __builtin_prefetch(gdt + at * to->ldt + e0, 1);
    if (gu) __builtin_prefetch(gu + at * s->E + e0, 1);
    if (gz) __builtin_prefetch(gz + at * s->E + e0, 1);
    if (p->z) __builtin_prefetch(p->z + at * s->ldz + e0 + LANES);
    vec g = vec_load_n(gy + at * s->E + e0, m);
    if (p->z) {
      vec z = vec_load_n(p->z + at * s->ldz + e0, m), sigmoid = vec_sigmoid(z);
      tokens[j].slope_z = g * vec_silu_slope(z, sigmoid);
      g *= z * sigmoid;
    }
    tokens[j].g = g;
    tokens[j].gd = tokens[j].gdu = vec_set(0);
  }
#define BLOCK(nb, n0, y, still)                                                                                   \
  backward_block(nb, y, still, k->n, tokens, tile, n0, h0 + (n0)*s->E, s->E, m, pb + (n0), k->step * s->ldb, pc + (n0),  \
                 k->step * s->ldc, N, sums->gb + (n0), sums->gc + (n0))
  const bool replay_y = p->z && gz, still = stands_still(tokens, k->n, vec_load(tile->peak));
  if (replay_y && still)
    STATE_BLOCKS(N, BLOCK, true, true);
  else if (replay_y)
    STATE_BLOCKS(N, BLOCK, true, false);
  else if (still)
    STATE_BLOCKS(N, BLOCK, false, true);
  else
    STATE_BLOCKS(N, BLOCK, false, false);
#undef BLOCK
  const vec D = p->D ? vec_load_n(p->D + e0, m) : vec_set(0);
  vec gD = vec_load(tile->gD), gbias = vec_load(tile->gbias);
  for (int64_t j = 0; j < k->n; j++) {
    Token *x = &tokens[j];
    const int64_t at = (row + j * k->step) * s->E + e0;
    vec gx = x->gd * VEC_LN2 + x->gdu * x->u; /* the rates carry log2 e */
    if (s->softplus) gx *= x->sigmoid;
    gbias += gx;
    gD += x->g * x->u;
    x->gd = gx;
    if (gu) vec_store_n(gu + at, x->gdu * x->d + D * x->g, m);
    if (gz) vec_store_n(gz + at, p->z ? x->slope_z * x->y : vec_set(0), m);
  }
  steps_back(p, row, k, e0, tile, tokens, to, sums->glow);
  vec_store(tile->gD, gD);
  vec_store(tile->gbias, gbias);
}

/* Row of slot j in `to` (rows of stride ld; `row` is that of slot 0) = its sum if `add`, + lane sums of v[j N ..]; v is readable
 * up to LANES beyond. */
static void sum_lanes(const Chunk *k, int64_t row, int64_t N, const vec *v, real *to, int64_t ld, bool add) {
  for (int64_t j = 0; to && j < k->n; j++)
    for (int64_t n = 0; n < N; n += LANES) {
      real *at = to + (row + j * k->step) * ld + n;
      vec sum = vec_sum_each(v + j * N + n);
      if (add) sum += vec_load_n(at, N - n);
      vec_store_n(at, sum, N - n);
    }
}

/* rows[e,n] of channels e0 .. e0 + LANES = from[n]. */
static void store_columns(const ScanShape *s, const vec *from, int64_t N, int64_t e0, real *rows) {
  for (int64_t l = 0; rows && l < LANES && l < s->E - e0; l++)
    for (int64_t n = 0; n < N; n++) rows[(e0 + l) * N + n] = from[n][l];
}

/* gA, gD, gbias, gweight of one tile: sums over the batch in index order. */
static void reduce_tile(const Scan *p, real *partial, int64_t tile, const ScanGradients *to) {
  const ScanShape *s = p->s;
  const int64_t N = s->N, R = p->s->R, e0 = tile * LANES, m = s->E - e0;
  vec sums[N + 2 + R];
  memset(sums, 0, sizeof sums);
  for (int64_t b = 0; b < s->B; b++) {
    const real *from = tile_at(p, partial, b, tile).gA;
    for (int64_t j = 0; j < N + 2 + R; j++) sums[j] += vec_load(from + j * LANES);
  }
  store_columns(s, sums, N, e0, to->A);
  if (to->D) vec_store_n((real *)to->D + e0, sums[N], m);
  if (to->bias) vec_store_n((real *)to->bias + e0, sums[N + 1], m);
  store_columns(s, sums + N + 2, R, e0, to->weight);
}

void K(scan_backward)(CabStream *stream, const ScanShape *s, const ScanInputs *in, const real *h, const real *gy,
                      const ScanGradients *to, real *partial) {
  (void)stream;
  const Scan p = scan_of(s, in);
  const int64_t count = chunks(s), all = tiles(s), N = s->N, R = s->R;
#pragma omp parallel
  {
#pragma omp for schedule(dynamic)
    for (int64_t ib = 0; ib < s->B; ib++) {
      vec room[T * (2 * N + R) + 2 * APART + LANES];
      const Sums sums = {room, room + T * N + APART, room + 2 * (T * N + APART)};
      for (int64_t i = 0; i < all; i++) {
        const Tile tile = tile_at(&p, partial, ib, i);
        memset(tile.A, 0, (size_t)tile_registers(&p) * sizeof(vec));
        vec rates[N + 1], weight[R + 1];
        load_A(&p, i * LANES, rates);
        load_columns(s, p.weight, R, i * LANES, 1, weight);
        memcpy(tile.A, rates, (size_t)N * sizeof(vec));
        memcpy(tile.weight, weight, (size_t)R * sizeof(vec));
        vec_store(tile.peak, peak_of(rates, N));
      }
      for (int64_t k = count - 1; k >= 0; k--) {
        const Chunk chunk = chunk_at(s, k);
        const real *h0 = h + (ib * count + k) * N * s->E;
        memset(room, 0, sizeof room);
        for (int64_t i = 0; i < all; i++) {
          const Tile tile = tile_at(&p, partial, ib, i);
          backward_chunk(&p, ib, &chunk, i * LANES, &tile, h0 + i * LANES, gy, to, &sums);
        }
        const int64_t row = ib * s->L + chunk.first;
        sum_lanes(&chunk, row, N, sums.gb, to->b, to->ldb, to->add_b);
        sum_lanes(&chunk, row, N, sums.gc, to->c, to->ldc, to->add_c);
        if (R) sum_lanes(&chunk, row, R, sums.glow, to->dt, to->ldt, false);
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < all; i++) reduce_tile(&p, partial, i, to);
  }
}

void K(scan_matrix)(CabStream *stream, const ScanShape *s, const real *dt, const real *A, const real *b,
                    const real *c, const real *bias, real *m) {
  (void)stream;
  const Scan p = {.s = s, .dt = dt, .A = A, .b = b, .c = c, .bias = bias};
  const int64_t N = s->N, L = s->L, E = s->E, step = s->reverse ? -1 : 1;
  memset(m, 0, (size_t)(s->B * L * L) * sizeof(real));
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int64_t ib = 0; ib < s->B; ib++)
    for (int64_t from = 0; from < L; from++) { /* d_s B_s at s = from, carried on; column `from` of m */
      vec rates[N + 1], state[N + 1];
      for (int64_t e0 = 0; e0 < E; e0 += LANES) {
        load_A(&p, e0, rates);
        const vec shift = bias ? vec_load_n(bias + e0, E - e0) : vec_set(0);
        for (int64_t t = from; t >= 0 && t < L; t += step) {
          const int64_t row = ib * L + t;
          vec d = vec_load_n(dt + row * E + e0, E - e0) + shift, sum = vec_set(0);
          if (s->softplus) d = vec_softplus(d);
          for (int64_t n = 0; n < N; n++) {
            state[n] = t == from ? d * b[row * s->ldb + n] : state[n] * vec_exp2(d * rates[n]);
            sum += state[n] * c[row * s->ldc + n];
          }
          real total = 0;
          for (int64_t l = 0; l < LANES && l < E - e0; l++) total += sum[l]; /* lanes beyond E hold softplus(0) */
          m[row * L + from] += total / (real)E;
        }
      }
    }
}
