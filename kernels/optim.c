/* optim.c - in-place updates and reductions. Work is cut at fixed places (never by the number of threads), so vector
 * remainders and the order of sums, hence the bits, are the same for any number. */
#include "optim.h"

#include <math.h>
#include <omp.h>

enum { CHUNK = 8192 }; /* elements updated by one task */
enum { BLOCKS = 64 };  /* partial sums of a reduction */

#define END(from, step, n) ((n) - (from) < (step) ? (n) : (from) + (step))

typedef struct {
  real b1, b2, c1, c2, eps, scale, share;
} Rates;

/* Elements from .. to of one tensor. */
static void update_chunk(const UpdateSlice *p, Rates r, const double *now, int64_t from, int64_t to) {
  if (p->g) {
    const real *g = p->g;
    real *w = p->w, *m = p->m, *v = p->v;
    const real rate = (real)now[NOW_AGES + 2 * p->age], root = (real)now[NOW_AGES + 2 * p->age + 1]; /* lr m^ = rate m */
    const real shrink = (real)(now[NOW_LR] * p->decay);
#pragma omp simd
    for (int64_t i = from; i < to; i++) {
      real gi = r.scale * g[i];
      real mi = r.b1 * m[i] + r.c1 * gi, vi = r.b2 * v[i] + r.c2 * gi * gi;
      real move = rate * mi / ((real)sqrt(root * vi) + r.eps) + shrink * w[i];
      m[i] = mi;
      v[i] = vi;
      w[i] -= move;
    }
  }
  if (p->average) {
    const real *w = p->w;
    real *average = p->average;
#pragma omp simd
    for (int64_t i = from; i < to; i++) average[i] += r.share * (w[i] - average[i]);
  }
}

void K(adamw_average)(CabStream *stream, int64_t count, const UpdateSlice *list, const double *now) {
  (void)stream;
  const double scale = now[NOW_SCALE], beta1 = now[NOW_BETA1], beta2 = now[NOW_BETA2];
  const Rates r = {(real)beta1,         (real)beta2, (real)(1 - beta1),          (real)(1 - beta2),
                   (real)now[NOW_EPS], (real)scale, (real)(1 - now[NOW_KEEP])};
  int64_t total = 0;
  if (scale != scale) return;
  for (int64_t i = 0; i < count; i++) total += list[i].n;
  /* Chunks are dealt out like cards: small tensors keep all threads busy too. */
#pragma omp parallel if (total > CHUNK)
  {
    const int64_t threads = omp_get_num_threads(), own = omp_get_thread_num();
    int64_t chunk = 0;
    for (int64_t i = 0; i < count; i++)
      for (int64_t from = 0; from < list[i].n; from += CHUNK)
        if (chunk++ % threads == own) update_chunk(&list[i], r, now, from, END(from, CHUNK, list[i].n));
  }
}

static double sum_squares(int64_t n, const real *x) {
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
  return total;
}

void K(grad_norm)(CabStream *stream, int64_t count, const UpdateSlice *list, double *now) {
  (void)stream;
  double total = 0, bad = 0;
  for (int64_t i = 0; i < count; i++) {
    const double squares = list[i].g ? sum_squares(list[i].n, list[i].g) : 0;
    if (squares - squares != 0) bad = (double)(i + 1);
    total += squares;
  }
  optim_note_norm(now, sqrt(total), bad);
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
