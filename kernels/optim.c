/* optim.c - in-place updates and reductions. Work is cut at fixed places (never by the number of threads), so vector
 * remainders and the order of sums, hence the bits, are the same for any number. */
#include "optim.h"

#include <math.h>

enum { CHUNK = 8192 }; /* elements updated by one task */
enum { BLOCKS = 64 };  /* partial sums of a reduction */

#define END(from, step, n) ((n) - (from) < (step) ? (n) : (from) + (step))

void K(adamw)(CabStream *stream, int64_t n, double lr, double beta1, double beta2, double eps, double decay,
              int64_t step, double scale, const real *g, real *w, real *m, real *v) {
  (void)stream;
  const real b1 = (real)beta1, b2 = (real)beta2, c1 = (real)(1 - beta1), c2 = (real)(1 - beta2);
  const real rate = (real)(lr / (1 - pow(beta1, (double)step))); /* lr m^ = rate m */
  const real root = (real)(1 / (1 - pow(beta2, (double)step)));
  const real shrink = (real)(lr * decay), e = (real)eps, s = (real)scale;
#pragma omp parallel for schedule(static) if (n > CHUNK)
  for (int64_t from = 0; from < n; from += CHUNK) {
    int64_t to = END(from, CHUNK, n);
#pragma omp simd
    for (int64_t i = from; i < to; i++) {
      real gi = s * g[i];
      real mi = b1 * m[i] + c1 * gi, vi = b2 * v[i] + c2 * gi * gi;
      real move = rate * mi / ((real)sqrt(root * vi) + e) + shrink * w[i];
      m[i] = mi;
      v[i] = vi;
      w[i] -= move;
    }
  }
}

void K(ema)(CabStream *stream, int64_t n, double keep, const real *w, real *average) {
  (void)stream;
  const real share = (real)(1 - keep);
#pragma omp parallel for schedule(static) if (n > CHUNK)
  for (int64_t from = 0; from < n; from += CHUNK) {
    int64_t to = END(from, CHUNK, n);
#pragma omp simd
    for (int64_t i = from; i < to; i++) average[i] += share * (w[i] - average[i]);
  }
}

void K(sum_squares)(CabStream *stream, int64_t n, const real *x, double *out) {
  (void)stream;
  double partial[BLOCKS], total = 0;
  int64_t step = (n + BLOCKS - 1) / BLOCKS;
#pragma omp parallel for schedule(static) if (n > CHUNK)
  for (int block = 0; block < BLOCKS; block++) {
    int64_t from = block * step, to = END(from, step, n);
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = from; i < to; i++) sum += (double)x[i] * (double)x[i];
    partial[block] = sum;
  }
  for (int block = 0; block < BLOCKS; block++) total += partial[block];
  *out = total;
}

/* x - x is 0 for finite x, NaN otherwise. */
#define FINITE(x) ((x) - (x) == 0)

void K(count_bad)(CabStream *stream, int64_t n, const real *x, int64_t *out) {
  (void)stream;
  int64_t count = 0;
#pragma omp parallel for simd schedule(static) reduction(+ : count) if (parallel : n > CHUNK)
  for (int64_t i = 0; i < n; i++) count += !FINITE(x[i]);
  *out = count;
}

void K(range)(CabStream *stream, int64_t n, const real *x, double out[4]) {
  (void)stream;
  double partial[BLOCKS][4];
  int64_t step = (n + BLOCKS - 1) / BLOCKS;
#pragma omp parallel for schedule(static) if (n > CHUNK)
  for (int block = 0; block < BLOCKS; block++) {
    int64_t from = block * step, to = END(from, step, n);
    double low = INFINITY, high = -INFINITY, sum = 0, squares = 0;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(+ : sum, squares)
    for (int64_t i = from; i < to; i++) {
      bool finite = FINITE(x[i]);
      double value = finite ? (double)x[i] : 0, floor = finite ? value : INFINITY, ceiling = finite ? value : -INFINITY;
      low = floor < low ? floor : low;
      high = ceiling > high ? ceiling : high;
      sum += value;
      squares += value * value;
    }
    partial[block][0] = low, partial[block][1] = high, partial[block][2] = sum, partial[block][3] = squares;
  }
  out[0] = INFINITY, out[1] = -INFINITY, out[2] = out[3] = 0;
  for (int block = 0; block < BLOCKS; block++) {
    if (partial[block][0] < out[0]) out[0] = partial[block][0];
    if (partial[block][1] > out[1]) out[1] = partial[block][1];
    out[2] += partial[block][2];
    out[3] += partial[block][3];
  }
}
