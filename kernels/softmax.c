/* softmax.c - over the middle of [outer, n, inner]. inner = 1: one row at a time, lanes along n; else lanes along
 * inner, columns side by side. Both subtract the maximum; y holds the exponentials between the passes. */
#include "softmax.h"

#include "simd.h"

enum { PARALLEL = 16384 };

static void row_forward(int64_t n, const real *x, real *y) {
  vec top = vec_set(-INFINITY);
  int64_t j = 0;
  for (; j + LANES <= n; j += LANES) top = vec_max(top, vec_load(x + j));
  real max = vec_max_of(top);
  for (; j < n; j++) max = x[j] > max ? x[j] : max;
  vec sums = vec_set(0);
  for (j = 0; j + LANES <= n; j += LANES) {
    vec e = vec_exp(vec_load(x + j) - max);
    vec_store(y + j, e);
    sums += e;
  }
  real sum = 0;
  if (j < n) {
    vec e = vec_exp(vec_load_n(x + j, n - j) - max);
    vec_store_n(y + j, e, n - j);
    for (int64_t i = 0; i < n - j; i++) sum += e[i];
  }
  const real inverse = 1 / (sum + vec_sum(sums));
  for (j = 0; j < n; j += LANES) vec_store_n(y + j, vec_load_n(y + j, n - j) * inverse, n - j);
}

void K(softmax_forward)(CabStream *stream, int64_t outer, int64_t n, int64_t inner, const real *x, real *y) {
  (void)stream;
  if (n <= 0) return;
  if (inner == 1) {
#pragma omp parallel for schedule(static) if (outer * n > PARALLEL)
    for (int64_t i = 0; i < outer; i++) row_forward(n, x + i * n, y + i * n);
    return;
  }
#pragma omp parallel for collapse(2) schedule(static) if (outer * n * inner > PARALLEL)
  for (int64_t i = 0; i < outer; i++)
    for (int64_t c = 0; c < inner; c += LANES) {
      const real *from = x + i * n * inner + c;
      real *to = y + i * n * inner + c;
      const int64_t m = inner - c;
      vec max = vec_set(-INFINITY), sum = vec_set(0);
      for (int64_t j = 0; j < n; j++) max = vec_max(max, vec_load_n(from + j * inner, m));
      for (int64_t j = 0; j < n; j++) {
        vec e = vec_exp(vec_load_n(from + j * inner, m) - max);
        vec_store_n(to + j * inner, e, m);
        sum += e;
      }
      sum = 1 / sum;
      for (int64_t j = 0; j < n; j++) vec_store_n(to + j * inner, vec_load_n(to + j * inner, m) * sum, m);
    }
}

/* gx = y (gy - sum(y gy)) */
void K(softmax_backward)(CabStream *stream, int64_t outer, int64_t n, int64_t inner, const real *y, const real *gy,
                         real *gx) {
  (void)stream;
  if (inner == 1) {
#pragma omp parallel for schedule(static) if (outer * n > PARALLEL)
    for (int64_t i = 0; i < outer; i++) {
      const real *p = y + i * n, *g = gy + i * n;
      vec sums = vec_set(0);
      for (int64_t j = 0; j < n; j += LANES) sums += vec_load_n(p + j, n - j) * vec_load_n(g + j, n - j);
      const real dot = vec_sum(sums);
      for (int64_t j = 0; j < n; j += LANES)
        vec_store_n(gx + i * n + j, vec_load_n(p + j, n - j) * (vec_load_n(g + j, n - j) - dot), n - j);
    }
    return;
  }
#pragma omp parallel for collapse(2) schedule(static) if (outer * n * inner > PARALLEL)
  for (int64_t i = 0; i < outer; i++)
    for (int64_t c = 0; c < inner; c += LANES) {
      const int64_t at = i * n * inner + c, m = inner - c;
      vec dot = vec_set(0);
      for (int64_t j = 0; j < n; j++) dot += vec_load_n(y + at + j * inner, m) * vec_load_n(gy + at + j * inner, m);
      for (int64_t j = 0; j < n; j++)
        vec_store_n(gx + at + j * inner,
                    vec_load_n(y + at + j * inner, m) * (vec_load_n(gy + at + j * inner, m) - dot), m);
    }
}
