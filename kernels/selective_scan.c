/* selective_scan.c - lanes hold channels, a tile is LANES of them; per tile and state n
 *   a_t = 2^(d_t A log2 e),  h_t = a_t h_{t-1} + (d_t u_t) B_t,  y_t = sum_n C_t h_t + D u_t,  y_t *= silu(z_t).
 *
 * Tokens go in chunks of SCAN_CHUNK, states in blocks of NB: NB registers of h walk the chunk. Backward replays a
 * chunk from its stored entry state, keeping a_t and h_t of one state block (8 KB), then runs the adjoint:
 *   gh_t = g_t C_t + a_{t+1} gh_{t+1};  gC_t = g_t h_t;  gB_t = gh_t d_t u_t;  q_t = a_t gh_t h_{t-1};
 *   gA = sum_t q_t d_t;  gd_t = sum_n q_t A + u_t sum_n gh_t B_t;  gu_t = d_t sum_n gh_t B_t + D g_t
 * with g_t = gy_t silu(z_t): one exponential per (t, e, n). gB and gC add up lane by lane over the tiles of a chunk
 * (2 SCAN_CHUNK N registers on the stack) and across lanes once per chunk.
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
  const real *u, *dt, *A, *b, *c, *D, *z, *bias;
} Scan;

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

/* A^T log2 e of channels e0 .. e0 + LANES (0 beyond E). */
static void load_A(const Scan *p, int64_t e0, vec *A) {
  const int64_t N = p->s->N, m = p->s->E - e0 < LANES ? p->s->E - e0 : LANES;
  memset(A, 0, (size_t)N * sizeof(vec));
  for (int64_t l = 0; l < m; l++)
    for (int64_t n = 0; n < N; n++) A[n][l] = p->A[(e0 + l) * N + n] * VEC_LOG2E;
}

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

SIMD void load_inputs(const Scan *p, int64_t b, const Chunk *k, int64_t e0, bool slopes, Token *to) {
  const ScanShape *s = p->s;
  const int64_t next = ahead(s, k, e0, slopes);
  const int64_t m = s->E - e0;
  const vec bias = p->bias ? vec_load_n(p->bias + e0, m) : vec_set(0);
  const vec D = p->D ? vec_load_n(p->D + e0, m) : vec_set(0);
  for (int64_t j = 0; j < k->n; j++) {
    const int64_t at = (b * s->L + k->first + j * k->step) * s->E + e0;
    __builtin_prefetch(p->dt + at + next);
    __builtin_prefetch(p->u + at + next);
    vec x = vec_load_n(p->dt + at, m) + bias, u = vec_load_n(p->u + at, m);
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
    for (; n0_ + NB <= (N); n0_ += NB) f(NB, n0_, __VA_ARGS__);             \
    switch ((N) - n0_) {                                                    \
      case 3: f(3, n0_, __VA_ARGS__); break;                                \
      case 2: f(2, n0_, __VA_ARGS__); break;                                \
      case 1: f(1, n0_, __VA_ARGS__); break;                                \
    }                                                                       \
  } while (0)

static void forward_chunk(const Scan *p, int64_t b, const Chunk *k, int64_t e0, const vec *A, vec peak, vec *h, real *out) {
  const ScanShape *s = p->s;
  const int64_t m = s->E - e0, row = b * s->L + k->first;
  const real *pb = p->b + row * s->ldb, *pc = p->c + row * s->ldc;
  Token tokens[T];
  load_inputs(p, b, k, e0, false, tokens);
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

void K(scan_forward)(CabStream *stream, const ScanShape *s, const real *u, const real *dt, const real *A,
                     const real *b, const real *c, const real *D, const real *z, const real *bias, real *y, real *h) {
  (void)stream;
  const Scan p = {s, u, dt, A, b, c, D, z, bias};
  const int64_t count = chunks(s), all = tiles(s), groups = (all + GROUP - 1) / GROUP, N = s->N;
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int64_t ib = 0; ib < s->B; ib++)
    for (int64_t group = 0; group < groups; group++) {
      const int64_t first = group * GROUP, n = all - first < GROUP ? all - first : GROUP;
      vec rates[n * N + 1], states[n * N + 1], peaks[GROUP]; /* + 1: N may be 0 */
      memset(states, 0, sizeof states);
      for (int64_t i = 0; i < n; i++) {
        load_A(&p, (first + i) * LANES, rates + i * N);
        peaks[i] = peak_of(rates + i * N, N);
      }
      for (int64_t k = 0; k < count; k++) {
        const Chunk chunk = chunk_at(s, k);
        for (int64_t i = 0; i < n; i++) {
          const int64_t e0 = (first + i) * LANES;
          if (h)
            for (int64_t j = 0; j < N; j++)
              vec_store_n(h + ((ib * count + k) * N + j) * s->E + e0, states[i * N + j], s->E - e0);
          forward_chunk(&p, ib, &chunk, e0, rates + i * N, peaks[i], states + i * N, y);
        }
      }
    }
}

/* Scratch of one (batch element, tile): 3N + 3 registers in `partial`. */
typedef struct {
  real *A, *carry, *gA, *gD, *gbias, *peak;
} Tile;

static Tile tile_at(const ScanShape *s, real *partial, int64_t b, int64_t tile) {
  const int64_t N = s->N * LANES;
  real *at = partial + (b * tiles(s) + tile) * (3 * N + 3 * LANES);
  return (Tile){at, at + N, at + 2 * N, at + 3 * N, at + 3 * N + LANES, at + 3 * N + 2 * LANES};
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

typedef struct {
  real *gu, *gdt, *gz;
} Grads;

static void backward_chunk(const Scan *p, int64_t b, const Chunk *k, int64_t e0, const Tile *tile, const real *h0,
                           const real *gy, const Grads *to, vec *gb, vec *gc) {
  const ScanShape *s = p->s;
  const int64_t m = s->E - e0, row = b * s->L + k->first, N = s->N, next = ahead(s, k, e0, true);
  for (int64_t n = 0; n < N; n++) __builtin_prefetch(h0 + n * s->E + LANES);
  const real *pb = p->b + row * s->ldb, *pc = p->c + row * s->ldc;
  Token tokens[T];
  load_inputs(p, b, k, e0, true, tokens);
  for (int64_t j = 0; j < k->n; j++) {
    const int64_t at = row + j * k->step;
    __builtin_prefetch(gy + at * s->E + e0 + next);
    if (to->gdt) __builtin_prefetch(to->gdt + at * s->E + e0, 1);
    if (to->gu) __builtin_prefetch(to->gu + at * s->E + e0, 1);
    if (to->gz) __builtin_prefetch(to->gz + at * s->E + e0, 1);
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
                 k->step * s->ldc, N, gb + (n0), gc + (n0))
  const bool replay_y = p->z && to->gz, still = stands_still(tokens, k->n, vec_load(tile->peak));
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
    const Token *x = &tokens[j];
    const int64_t at = (row + j * k->step) * s->E + e0;
    vec gdt = x->gd * VEC_LN2 + x->gdu * x->u; /* the rates carry log2 e */
    if (s->softplus) gdt *= x->sigmoid;
    gbias += gdt;
    gD += x->g * x->u;
    if (to->gdt) vec_store_n(to->gdt + at, gdt, m);
    if (to->gu) vec_store_n(to->gu + at, x->gdu * x->d + D * x->g, m);
    if (to->gz) vec_store_n(to->gz + at, p->z ? x->slope_z * x->y : vec_set(0), m);
  }
  vec_store(tile->gD, gD);
  vec_store(tile->gbias, gbias);
}

/* Row of slot j in `to` (at the token of slot 0) = lane sums of v[j N ..]; v is readable up to LANES beyond. */
static void sum_lanes(const Chunk *k, int64_t N, const vec *v, real *to) {
  for (int64_t j = 0; j < k->n; j++)
    for (int64_t n = 0; n < N; n += LANES) vec_store_n(to + j * k->step * N + n, vec_sum_each(v + j * N + n), N - n);
}

/* gA, gD, gbias of one tile: sums over the batch in index order. */
static void reduce_tile(const ScanShape *s, real *partial, int64_t tile, real *gA, real *gD, real *gbias) {
  const int64_t N = s->N, e0 = tile * LANES, m = s->E - e0 < LANES ? s->E - e0 : LANES;
  vec sums[N + 2];
  memset(sums, 0, sizeof sums);
  for (int64_t b = 0; b < s->B; b++) {
    const real *from = tile_at(s, partial, b, tile).gA;
    for (int64_t j = 0; j < N + 2; j++) sums[j] += vec_load(from + j * LANES);
  }
  if (gA)
    for (int64_t l = 0; l < m; l++)
      for (int64_t n = 0; n < N; n++) gA[(e0 + l) * N + n] = sums[n][l];
  if (gD) vec_store_n(gD + e0, sums[N], m);
  if (gbias) vec_store_n(gbias + e0, sums[N + 1], m);
}

void K(scan_backward)(CabStream *stream, const ScanShape *s, const real *u, const real *dt, const real *A,
                      const real *b, const real *c, const real *D, const real *z, const real *bias, const real *h,
                      const real *gy, real *gu, real *gdt, real *gA, real *gb, real *gc, real *gD, real *gz,
                      real *gbias, real *partial) {
  (void)stream;
  const Scan p = {s, u, dt, A, b, c, D, z, bias};
  const Grads to = {gu, gdt, gz};
  const int64_t count = chunks(s), all = tiles(s), N = s->N;
#pragma omp parallel
  {
#pragma omp for schedule(dynamic)
    for (int64_t ib = 0; ib < s->B; ib++) {
      vec sums[2 * T * N + APART + LANES], *gb_sums = sums, *gc_sums = sums + T * N + APART;
      for (int64_t i = 0; i < all; i++) {
        const Tile tile = tile_at(s, partial, ib, i);
        memset(tile.A, 0, (size_t)(3 * N + 3) * sizeof(vec));
        vec rates[N + 1];
        load_A(&p, i * LANES, rates);
        memcpy(tile.A, rates, (size_t)N * sizeof(vec));
        vec_store(tile.peak, peak_of(rates, N));
      }
      for (int64_t k = count - 1; k >= 0; k--) {
        const Chunk chunk = chunk_at(s, k);
        const real *h0 = h + (ib * count + k) * N * s->E;
        memset(sums, 0, sizeof sums);
        for (int64_t i = 0; i < all; i++) {
          const Tile tile = tile_at(s, partial, ib, i);
          backward_chunk(&p, ib, &chunk, i * LANES, &tile, h0 + i * LANES, gy, &to, gb_sums, gc_sums);
        }
        const int64_t at = (ib * s->L + chunk.first) * N;
        if (gb) sum_lanes(&chunk, N, gb_sums, gb + at);
        if (gc) sum_lanes(&chunk, N, gc_sums, gc + at);
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < all; i++) reduce_tile(s, partial, i, gA, gD, gbias);
  }
}

void K(scan_matrix)(CabStream *stream, const ScanShape *s, const real *dt, const real *A, const real *b,
                    const real *c, const real *bias, real *m) {
  (void)stream;
  const Scan p = {s, dt, dt, A, b, c, NULL, NULL, bias};
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
