/* ssd.c - a head runs through its chunks in order; inside a chunk ROWS queries at a time meet the keys up to theirs, so
 * scores never take more than ROWS x SSD_MOST. Products are small GEMMs: OpenBLAS stays on its caller's thread in a parallel
 * region. Work units are heads forward and groups backward (their heads add to one gB, gC, in order), so the bits do not
 * depend on the threads.
 *
 * Backward of a chunk, with w_j = exp(c_last - c_j), M_ij = exp(c_i - c_j), e_i = exp(c_i), R the gradient of its last state:
 *   gV = (CB^T o M)^T gY + w o (B R^T)            gx = dt gV + D gY,  gdt_j = x_j . gV_j
 *   Z = (gY X^T) dt o M                           gC = Z B + e o (gY S),  gB = Z^T C + w dt o (X R)
 *   gradient of c_i: row sums of Z o CB^T less its column sums + e_i C_i . (gY_i S) - u_i, u_j = w_j dt_j x_j . (B_j R^T);
 *   of c_last also + e_last <S, R> + sum u;       gl_t = sum of these from t on;   gS = e_last R + (e o gY)^T C
 * where a segment begins between two tokens their M, e or w is 0. */
#include "ssd.h"

#include <cblas.h>
#include <string.h>

#include "simd.h"

#define CBLAS_f32 cblas_sgemm
#define CBLAS_f64 cblas_dgemm
#define CBLAS CAB_CAT(CBLAS_, REAL)

enum { ROWS = 64, MOST = SSD_MOST };

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* C [m,n] = op(A) op(B) + beta C; no empty sizes. */
static void mm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, const real *a, int64_t lda, const real *b,
               int64_t ldb, int beta, real *c, int64_t ldc) {
  CBLAS(CblasRowMajor, trans_a ? CblasTrans : CblasNoTrans, trans_b ? CblasTrans : CblasNoTrans, (blasint)m, (blasint)n,
        (blasint)k, 1, a, (blasint)lda, b, (blasint)ldb, (real)beta, c, (blasint)ldc);
}

static real dot(int64_t n, const real *a, const real *b) {
  vec sum = vec_set(0);
  for (int64_t i = 0; i < n; i += LANES) sum += vec_load_n(a + i, n - i) * vec_load_n(b + i, n - i);
  return vec_sum(sum);
}

/* to = scale from, n of them; add: to += scale from. */
static void scaled(int64_t n, real scale, const real *from, bool add, real *to) {
  for (int64_t i = 0; i < n; i += LANES) {
    vec v = scale * vec_load_n(from + i, n - i);
    if (add) v += vec_load_n(to + i, n - i);
    vec_store_n(to + i, v, n - i);
  }
}

/* Decays below FAINT (e^-64 in f32) count as 0: on their way down they would become subnormal numbers, and products of
 * those take 5 times as long. */
#define FAINT ((real)(REAL_BITS == 32 ? -64 : -600))

static void exp_row(int64_t n, real *x) {
  for (int64_t i = 0; i < n; i += LANES) {
    const vec v = vec_load_n(x + i, n - i);
    vec_store_n(x + i, vec_select(v < FAINT, vec_set(0), vec_exp(v)), n - i);
  }
}

/* One chunk of one head: n tokens from `first` on. */
typedef struct {
  int64_t n, row, H, ldx, ldb, ldc, P, N;
  const real *x, *b, *c, *dt;    /* at its first token, head or group; dt: stride H, or NULL */
  real a[MOST];                  /* contiguous copies */
  real step[MOST];               /* dt, or 1 */
  double sum[MOST];              /* c_i */
  int32_t part[MOST];            /* segments begun since the chunk's entry, by token */
  real enter[MOST], leave[MOST]; /* e_i, w_j */
  real keep;                     /* e_last */
} Chunk;

static bool begins(const int32_t *segment, int64_t t) { return segment && t > 0 && segment[t] != segment[t - 1]; }

static void load_chunk(const SsdShape *s, int64_t ib, int64_t h, int64_t first, const real *x, const real *a, const real *b,
                       const real *c, const real *dt, const int32_t *segment, Chunk *k) {
  const int64_t g = h / (s->H / s->G), row = ib * s->L + first;
  k->n = least(s->chunk, s->L - first), k->row = row, k->H = s->H, k->P = s->P, k->N = s->N;
  k->ldx = s->ldx, k->ldb = s->ldb, k->ldc = s->ldc;
  k->x = x + row * s->ldx + h * s->P, k->b = b + row * s->ldb + g * s->N, k->c = c + row * s->ldc + g * s->N;
  k->dt = dt ? dt + row * s->H + h : NULL;
  real l[MOST];
  for (int64_t i = 0; i < k->n; i++) {
    k->a[i] = l[i] = a[(row + i) * s->H + h];
    k->step[i] = k->dt ? k->dt[i * s->H] : 1;
  }
  if (!s->log)
    for (int64_t i = 0; i < k->n; i += LANES) vec_store_n(l + i, -vec_softplus(vec_load_n(l + i, k->n - i)), k->n - i);
  double sum = 0;
  int32_t part = 0;
  const int32_t *at = segment ? segment + ib * s->L : NULL;
  for (int64_t i = 0; i < k->n; i++) {
    k->sum[i] = sum += (double)l[i];
    k->part[i] = part += begins(at, first + i);
  }
  for (int64_t i = 0; i < k->n; i++) k->enter[i] = (real)k->sum[i], k->leave[i] = (real)(sum - k->sum[i]);
  exp_row(k->n, k->enter);
  exp_row(k->n, k->leave);
  for (int64_t i = 0; i < k->n; i++) {
    if (k->part[i]) k->enter[i] = 0;
    if (k->part[i] != part) k->leave[i] = 0;
  }
  k->keep = k->enter[k->n - 1];
}

/* m[j] = M_ij for j < n: 0 after i and before its segment. */
static void decay_row(const Chunk *k, int64_t i, int64_t n, real *m) {
  int64_t from = 0;
  const double sum = k->sum[i];
  while (k->part[from] != k->part[i]) m[from++] = 0;
  for (int64_t j = from; j <= i; j++) m[j] = (real)(sum - k->sum[j]);
  exp_row(i + 1 - from, m + from);
  for (int64_t j = i + 1; j < n; j++) m[j] = 0;
}

static void forward_chunk(const Chunk *k, real D, bool fresh, real *y, int64_t ldy, real *state) {
  _Alignas(64) real w[ROWS * MOST], rows[ROWS * MOST], m[MOST];
  for (int64_t i0 = 0; i0 < k->n; i0 += ROWS) {
    const int64_t count = least(ROWS, k->n - i0), keys = i0 + count;
    real *to = y + i0 * ldy;
    mm(false, true, count, keys, k->N, k->c + i0 * k->ldc, k->ldc, k->b, k->ldb, 0, w, MOST);
    for (int64_t i = 0; i < count; i++) {
      decay_row(k, i0 + i, keys, m);
      for (int64_t j = 0; j < keys; j++) w[i * MOST + j] *= m[j] * k->step[j];
      if (!fresh) scaled(k->N, k->enter[i0 + i], k->c + (i0 + i) * k->ldc, false, rows + i * MOST);
      if (D != 0) scaled(k->P, D, k->x + (i0 + i) * k->ldx, false, to + i * ldy);
    }
    mm(false, false, count, k->P, keys, w, MOST, k->x, k->ldx, D != 0, to, ldy);
    if (!fresh) mm(false, true, count, k->P, k->N, rows, MOST, state, k->N, 1, to, ldy);
  }
  scaled(k->P * k->N, k->keep, state, false, state);
  for (int64_t j0 = 0; j0 < k->n; j0 += ROWS) {
    const int64_t count = least(ROWS, k->n - j0);
    for (int64_t j = 0; j < count; j++)
      scaled(k->P, k->leave[j0 + j] * k->step[j0 + j], k->x + (j0 + j) * k->ldx, false, rows + j * MOST);
    mm(true, false, k->P, k->N, count, rows, MOST, k->b + j0 * k->ldb, k->ldb, 1, state, k->N);
  }
}

void K(ssd_forward)(CabStream *stream, const SsdShape *s, const real *x, const real *a, const real *b, const real *c,
                    const real *dt, const real *D, const real *start, const int32_t *segment, real *y, real *state, real *h) {
  (void)stream;
  const int64_t chunks = (s->L + s->chunk - 1) / s->chunk, size = s->P * s->N;
#pragma omp parallel for schedule(dynamic)
  for (int64_t unit = 0; unit < s->B * s->H; unit++) {
    const int64_t ib = unit / s->H, ih = unit % s->H;
    real *S = state + unit * size;
    if (start) memcpy(S, start + unit * size, (size_t)size * sizeof(real));
    else memset(S, 0, (size_t)size * sizeof(real));
    Chunk k;
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      load_chunk(s, ib, ih, chunk * s->chunk, x, a, b, c, dt, segment, &k);
      if (h) memcpy(h + ((ib * chunks + chunk) * s->H + ih) * size, S, (size_t)size * sizeof(real));
      forward_chunk(&k, D ? D[ih] : 0, chunk == 0 && !start, y + k.row * s->H * s->P + ih * s->P, s->H * s->P, S);
    }
  }
}

/* Where one chunk of one head puts its gradients: rows at its first token. */
typedef struct {
  real *x, *b, *c; /* strides H*P, G*N, G*N */
  int64_t ldx, ldb;
  bool add;        /* to b and c: not the first head of its group */
} Grads;

/* The part of R, the gradient of the chunk's last state: gx = w o (B R^T), gB, and to `sum` what it says of c; R becomes
 * e_last R. */
static void backward_state(const Chunk *k, const real *S, real *R, const Grads *g, double *sum) {
  _Alignas(64) real rows[ROWS * MOST];
  double all = (double)k->keep * (double)dot(k->P * k->N, S, R);
  mm(false, true, k->n, k->P, k->N, k->b, k->ldb, R, k->N, 0, g->x, g->ldx);
  for (int64_t j0 = 0; j0 < k->n; j0 += ROWS) {
    const int64_t count = least(ROWS, k->n - j0);
    for (int64_t j = 0; j < count; j++) {
      const int64_t at = j0 + j;
      real *gx = g->x + at * g->ldx;
      scaled(k->P, k->leave[at], gx, false, gx);
      const double u = (double)k->step[at] * (double)dot(k->P, k->x + at * k->ldx, gx);
      all += u;
      sum[at] -= u;
      scaled(k->P, k->leave[at] * k->step[at], k->x + at * k->ldx, false, rows + j * MOST);
    }
    mm(false, false, count, k->N, k->P, rows, MOST, R, k->N, g->add, g->b + j0 * g->ldb, g->ldb);
  }
  sum[k->n - 1] += all;
  scaled(k->P * k->N, k->keep, R, false, R);
}

/* ROWS queries from i0 on; gy at the chunk's first token, rows of g->ldx. */
static void backward_rows(const Chunk *k, int64_t i0, const real *S, const real *gy, real *R, const Grads *g, double *sum,
                          real *columns) {
  _Alignas(64) real w[ROWS * MOST], z[ROWS * MOST], rows[ROWS * MOST], m[MOST];
  const int64_t count = least(ROWS, k->n - i0), keys = i0 + count;
  const real *c = k->c + i0 * k->ldc, *go = gy + i0 * g->ldx;
  mm(false, true, count, keys, k->N, c, k->ldc, k->b, k->ldb, 0, w, MOST);
  mm(false, true, count, keys, k->P, go, g->ldx, k->x, k->ldx, 0, z, MOST);
  for (int64_t i = 0; i < count; i++) {
    real *wi = w + i * MOST, *zi = z + i * MOST;
    decay_row(k, i0 + i, keys, m);
    vec total = vec_set(0);
    for (int64_t j = 0; j < keys; j += LANES) {
      const int64_t left = keys - j;
      vec mj = vec_load_n(m + j, left), wj = vec_load_n(wi + j, left) * mj;
      vec zj = vec_load_n(zi + j, left) * vec_load_n(k->step + j, left), t = zj * wj;
      total += t;
      vec_store_n(columns + j, vec_load_n(columns + j, left) + t, left);
      vec_store_n(wi + j, wj, left);
      vec_store_n(zi + j, zj * mj, left);
    }
    sum[i0 + i] += (double)vec_sum(total);
    scaled(k->P, k->enter[i0 + i], go + i * g->ldx, false, rows + i * MOST);
  }
  real *gc = g->c + i0 * g->ldb;
  mm(true, false, keys, k->P, count, w, MOST, go, g->ldx, 1, g->x, g->ldx);
  mm(true, false, keys, k->N, count, z, MOST, c, k->ldc, 1, g->b, g->ldb);
  mm(false, false, count, k->N, keys, z, MOST, k->b, k->ldb, g->add, gc, g->ldb);
  mm(true, false, k->P, k->N, count, rows, MOST, c, k->ldc, 1, R, k->N);
  mm(false, false, count, k->N, k->P, rows, MOST, S, k->N, 0, w, MOST); /* e o (gY S) */
  for (int64_t i = 0; i < count; i++) {
    sum[i0 + i] += (double)dot(k->N, c + i * k->ldc, w + i * MOST);
    scaled(k->N, 1, w + i * MOST, true, gc + i * g->ldb);
  }
}

/* ga from the gradients of c; a token that begins a segment has none. */
static void backward_decay(const Chunk *k, bool log, const double *sum, real *ga) {
  double total = 0;
  real l[MOST], slope[MOST];
  for (int64_t i = k->n - 1; i >= 0; i--) {
    total += sum[i];
    l[i] = i > 0 && k->part[i] != k->part[i - 1] ? 0 : i == 0 && k->part[0] ? 0 : (real)total;
    slope[i] = 1;
  }
  if (!log)
    for (int64_t i = 0; i < k->n; i += LANES) vec_store_n(slope + i, -vec_sigmoid(vec_load_n(k->a + i, k->n - i)), k->n - i);
  for (int64_t i = 0; i < k->n; i++) ga[i * k->H] = slope[i] * l[i];
}

/* One chunk; returns what it adds to gD. */
static double backward_chunk(const Chunk *k, bool log, real D, const real *S, const real *gy, real *R, const Grads *g, real *ga,
                             real *gdt) {
  double sum[MOST] = {0}, gD = 0;
  real columns[MOST] = {0};
  backward_state(k, S, R, g, sum);
  for (int64_t i0 = 0; i0 < k->n; i0 += ROWS) backward_rows(k, i0, S, gy, R, g, sum, columns);
  for (int64_t i = 0; i < k->n; i++) {
    const real *x = k->x + i * k->ldx, *go = gy + i * g->ldx;
    real *gx = g->x + i * g->ldx;
    sum[i] -= (double)columns[i];
    if (gdt) gdt[i * k->H] = dot(k->P, x, gx);
    gD += (double)dot(k->P, x, go);
    scaled(k->P, k->step[i], gx, false, gx);
    if (D != 0) scaled(k->P, D, go, true, gx);
  }
  backward_decay(k, log, sum, ga);
  return gD;
}

void K(ssd_backward)(CabStream *stream, const SsdShape *s, const real *x, const real *a, const real *b, const real *c,
                     const real *dt, const real *D, const real *start, const int32_t *segment, const real *h, const real *gy,
                     real *carry, real *gx, real *ga, real *gb, real *gc, real *gdt, real *gD, real *partial) {
  (void)stream, (void)start;
  const int64_t chunks = (s->L + s->chunk - 1) / s->chunk, size = s->P * s->N, each = s->H / s->G;
  const int64_t ldx = s->H * s->P, ldb = s->G * s->N;
#pragma omp parallel for schedule(dynamic)
  for (int64_t unit = 0; unit < s->B * s->G; unit++)
    for (int64_t i = 0; i < each; i++) {
      const int64_t ib = unit / s->G, ig = unit % s->G, ih = ig * each + i;
      double total = 0;
      Chunk k;
      for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
        load_chunk(s, ib, ih, chunk * s->chunk, x, a, b, c, dt, segment, &k);
        const Grads g = {gx + k.row * ldx + ih * s->P, gb + k.row * ldb + ig * s->N, gc + k.row * ldb + ig * s->N, ldx, ldb, i > 0};
        const int64_t at = k.row * s->H + ih;
        total += backward_chunk(&k, s->log, D ? D[ih] : 0, h + ((ib * chunks + chunk) * s->H + ih) * size,
                                gy + k.row * ldx + ih * s->P, carry + (ib * s->H + ih) * size, &g, ga + at, gdt ? gdt + at : NULL);
      }
      partial[ib * s->H + ih] = (real)total;
    }
  for (int64_t ih = 0; gD && ih < s->H; ih++) {
    double total = 0;
    for (int64_t ib = 0; ib < s->B; ib++) total += (double)partial[ib * s->H + ih];
    gD[ih] = (real)total;
  }
}
