/* attention.c - blocks of QB queries against blocks of KB keys, so all scores in flight fit a thread's stack and
 * its cache. */
#include "attention.h"

#include <math.h>
#include <string.h>

#include "product.h"
#include "simd.h"

enum { KB = 256, QB = 256 / sizeof(real) }; /* QB x KB of reals: 64 KB, two of them in backward */

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* One block of scores: queries i0 .. i0+m against keys j0 .. j0+n, both rows of stride ld. */
typedef struct {
  int64_t i0, m, j0, n, P, ld;
  double scale;
  bool causal;
} Block;

/* Keys of this block that row i sees. */
static int64_t seen(const Block *b, int64_t i) {
  if (!b->causal) return b->n;
  int64_t count = b->i0 + i - b->j0 + 1;
  return count < 0 ? 0 : least(count, b->n);
}

/* n rounded up to whole vectors; KB is a multiple of LANES. */
static int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

/* Fill the last vector of a row of n with a copy of its first element: it changes no maximum, and costs no underflow
 * (slow on some CPUs) in the exponential. */
static void pad(int64_t n, real *s) {
  for (int64_t j = n; j < padded(n); j++) s[j] = s[0];
}

/* s [m,KB] = scale Q K^T; each row padded after what it sees. */
static void scores(const Block *b, const real *q, const real *k, real *s) {
  const real scale = (real)b->scale;
  K(product)(PRODUCT_NT, b->m, b->n, b->P, q + b->i0 * b->ld, b->ld, k + b->j0 * b->ld, b->ld, NULL, false, s, KB);
  for (int64_t i = 0; i < b->m; i++) {
    for (int64_t j = 0; j < b->n; j++) s[i * KB + j] *= scale;
    pad(seen(b, i), s + i * KB);
  }
}

/* Of a padded row; a NaN is passed over, and met again in the exponential. */
static real row_max(int64_t n, const real *s, real before) {
  vec max = vec_set(before);
  for (int64_t j = 0; j < n; j += LANES) max = vec_max(vec_load(s + j), max);
  return vec_max_of(max);
}

/* s = exp(s - shift) for n elements of a padded row, 0 for the rest up to `stop`; returns the sum. */
static real row_exp(int64_t n, int64_t stop, real *s, real shift) {
  vec sum = vec_set(0);
  for (int64_t j = 0; j < n; j += LANES) {
    vec e = vec_exp(vec_load(s + j) - shift);
    vec_store(s + j, e);
    sum += vec_load_n(s + j, n - j);
  }
  for (int64_t j = n; j < stop; j++) s[j] = 0;
  return vec_sum(sum);
}

/* Element (b, l = 0, h, p = 0) of rows with stride ld; head = b*H + h. */
static int64_t head_at(int64_t head, int64_t L, int64_t H, int64_t P, int64_t ld) {
  return head / H * L * ld + head % H * P;
}

/* Online softmax over the key blocks of queries i0 .. i0+m of one head. */
static void forward_block(int64_t L, Block b, const real *q, const real *k, const real *v, real *out, int64_t out_ld,
                          real *lse, real *map) {
  _Alignas(64) real s[QB * KB];
  real max[QB], sum[QB];
  for (int64_t i = 0; i < b.m; i++) max[i] = -INFINITY, sum[i] = 0;
  int64_t keys = b.causal ? b.i0 + b.m : L;
  for (b.j0 = 0; b.j0 < keys; b.j0 += KB) {
    b.n = least(KB, keys - b.j0);
    scores(&b, q, k, s);
    for (int64_t i = 0; i < b.m; i++) {
      const int64_t n = seen(&b, i);
      real *row = s + i * KB, before = max[i];
      if (map) memcpy(map + i * L + b.j0, row, (size_t)n * sizeof(real));
      max[i] = row_max(n, row, before);
      real fresh = row_exp(n, b.n, row, max[i]);
      real kept = b.j0 == 0 ? 0 : (real)exp((double)(before - max[i]));
      sum[i] = sum[i] * kept + fresh;
      if (b.j0 > 0 && kept != 1)
        for (int64_t p = 0; p < b.P; p++) out[i * out_ld + p] *= kept;
    }
    K(product)(PRODUCT_NN, b.m, b.P, b.n, s, KB, v + b.j0 * b.ld, b.ld, NULL, b.j0 > 0, out, out_ld);
  }
  for (int64_t i = 0; i < b.m; i++) {
    const real share = 1 / sum[i];
    lse[i] = max[i] + (real)log((double)sum[i]);
    for (int64_t p = 0; p < b.P; p++) out[i * out_ld + p] *= share;
    if (!map) continue;
    real *row = map + i * L; /* scores so far */
    const int64_t known = b.causal ? b.i0 + i + 1 : L;
    for (int64_t j = 0; j < known; j += KB) {
      int64_t n = least(KB, known - j);
      memcpy(s, row + j, (size_t)n * sizeof(real));
      pad(n, s);
      row_exp(n, n, s, max[i]);
      for (int64_t at = 0; at < n; at++) row[j + at] = s[at] * share;
    }
    for (int64_t j = known; j < L; j++) row[j] = 0;
  }
}

/* The document of token t, of one sequence's places; NULL: all of it is one. Attention takes each as a sequence of its own. */
typedef struct { int64_t first, end; } Span;
static Span document_at(const int32_t *place, int64_t L, int64_t t) {
  Span d = {place && place[t] < t ? t - place[t] : 0, L};
  for (int64_t u = t + 1; place && d.end == L && u < L; u++)
    if (place[u] == 0) d.end = u;
  return d;
}

void K(attention_forward)(CabStream *stream, int64_t B, int64_t L, int64_t H, int64_t P, double scale, bool causal,
                          const real *q, const real *k, const real *v, int64_t ld, const int32_t *place, real *out, real *lse,
                          real *map) {
  (void)stream;
  const int64_t blocks = (L + QB - 1) / QB;
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int64_t head = 0; head < B * H; head++)
    for (int64_t block = 0; block < blocks; block++)
      for (int64_t i0 = block * QB, m; i0 < least(L, (block + 1) * QB); i0 += m) {
        const Span d = document_at(place ? place + head / H * L : NULL, L, i0);
        const int64_t at = head_at(head, L, H, P, ld) + d.first * ld;
        m = least(least(d.end, (block + 1) * QB) - i0, QB);
        Block b = {.i0 = i0 - d.first, .m = m, .P = P, .ld = ld, .scale = scale, .causal = causal};
        forward_block(d.end - d.first, b, q + at, k + at, v + at, out + head_at(head, L, H, P, H * P) + i0 * H * P, H * P,
                      lse + head * L + i0, map ? map + (head * L + i0) * L : NULL);
      }
}

/* The gradients of one head; a row of them stands gld after the last. */
typedef struct {
  real *q, *k, *v;
  int64_t ld;
} Gradients;

static void clear(real *g, int64_t L, int64_t P, int64_t ld) {
  for (int64_t l = 0; g && l < L; l++) memset(g + l * ld, 0, (size_t)P * sizeof(real));
}

/* p = exp(scale Q K^T - lse), 0 where masked. */
static void probabilities(const Block *b, const real *q, const real *k, const real *lse, real *p) {
  scores(b, q, k, p);
  for (int64_t i = 0; i < b->m; i++) row_exp(seen(b, i), b->n, p + i * KB, lse[b->i0 + i]);
}

/* Queries i0 .. i0+m of one head. With dA = gout V^T + gmap and D_i = sum_j A_ij dA_ij = gout_i.out_i + (A gmap)_ii:
 *   gv += A^T gout, dS = scale A (dA - D), gq = dS K, gk += dS^T Q. */
static void backward_block(int64_t L, Block b, const real *q, const real *k, const real *v, const real *out,
                           int64_t out_ld, const real *lse, const real *gout, const real *gmap, Gradients g) {
  _Alignas(64) real a[QB * KB], d[QB * KB];
  real D[QB];
  int64_t keys = b.causal ? b.i0 + b.m : L;
  const real *go = gout + b.i0 * out_ld;
  for (int64_t i = 0; i < b.m; i++) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t p = 0; p < b.P; p++) sum += (double)go[i * out_ld + p] * (double)out[(b.i0 + i) * out_ld + p];
    D[i] = (real)sum;
  }
  for (b.j0 = 0; gmap && b.j0 < keys; b.j0 += KB) {
    b.n = least(KB, keys - b.j0);
    probabilities(&b, q, k, lse, a);
    for (int64_t i = 0; i < b.m; i++) {
      double sum = 0;
      const real *row = gmap + (b.i0 + i) * L + b.j0;
      int64_t n = seen(&b, i);
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < n; j++) sum += (double)a[i * KB + j] * (double)row[j];
      D[i] += (real)sum;
    }
  }
  for (b.j0 = 0; b.j0 < keys; b.j0 += KB) {
    b.n = least(KB, keys - b.j0);
    if (!gmap || keys > KB) probabilities(&b, q, k, lse, a); /* one block: still there from the loop above */
    if (g.v) K(product)(PRODUCT_TN, b.n, b.P, b.m, a, KB, go, out_ld, NULL, true, g.v + b.j0 * g.ld, g.ld);
    if (!g.q && !g.k) continue;
    for (int64_t i = 0; gmap && i < b.m; i++)
      memcpy(d + i * KB, gmap + (b.i0 + i) * L + b.j0, (size_t)b.n * sizeof(real));
    K(product)(PRODUCT_NT, b.m, b.n, b.P, go, out_ld, v + b.j0 * b.ld, b.ld, NULL, gmap != NULL, d, KB);
    for (int64_t i = 0; i < b.m; i++) {
      const real scale = (real)b.scale, minus = D[i];
      int64_t n = seen(&b, i);
      for (int64_t j = 0; j < n; j++) d[i * KB + j] = scale * a[i * KB + j] * (d[i * KB + j] - minus);
      for (int64_t j = n; j < b.n; j++) d[i * KB + j] = 0;
    }
    if (g.q) K(product)(PRODUCT_NN, b.m, b.P, b.n, d, KB, k + b.j0 * b.ld, b.ld, NULL, b.j0 > 0, g.q + b.i0 * g.ld, g.ld);
    if (g.k) K(product)(PRODUCT_TN, b.n, b.P, b.m, d, KB, q + b.i0 * b.ld, b.ld, NULL, true, g.k + b.j0 * g.ld, g.ld);
  }
}

void K(attention_backward)(CabStream *stream, int64_t B, int64_t L, int64_t H, int64_t P, double scale, bool causal,
                           const real *q, const real *k, const real *v, int64_t ld, const int32_t *place, const real *out,
                           const real *lse, const real *gout, const real *gmap, real *gq, real *gk, real *gv, int64_t gld) {
  (void)stream;
  if (P == 0) return;
#pragma omp parallel for schedule(dynamic)
  for (int64_t head = 0; head < B * H; head++) { /* gk and gv sum over the queries: their blocks go in order */
    const int32_t *places = place ? place + head / H * L : NULL;
    for (Span d = {0, 0}; d.end < L;) {
      d = document_at(places, L, d.end);
      const int64_t n = d.end - d.first, at = head_at(head, L, H, P, ld) + d.first * ld;
      const int64_t at_out = head_at(head, L, H, P, H * P) + d.first * H * P, at_g = head_at(head, L, H, P, gld) + d.first * gld;
      Gradients g = {gq ? gq + at_g : NULL, gk ? gk + at_g : NULL, gv ? gv + at_g : NULL, gld};
      clear(g.k, n, P, gld);
      clear(g.v, n, P, gld);
      for (int64_t i0 = 0; i0 < n; i0 += QB) {
        Block b = {.i0 = i0, .m = least(QB, n - i0), .P = P, .ld = ld, .scale = scale, .causal = causal};
        backward_block(n, b, q + at, k + at, v + at, out + at_out, H * P, lse + head * L + d.first, gout + at_out,
                       gmap ? gmap + head * L * L : NULL, g);
      }
    }
  }
}
