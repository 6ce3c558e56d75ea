/* loss.c - scalar losses. Rows (elements for mse) are cut into LOSS_BLOCKS at places given by their number alone, each
 * block is summed in double by one thread and the blocks are added in order. */
#include "loss.h"

#include <math.h>

#include "simd.h"

enum { CHUNK = 256 };  /* elements of a row held in a stack buffer */
enum { SMALL = 8192 }; /* below this many elements a second thread costs more than it gains */

#define FROM(block, rows) ((block) * (rows) / LOSS_BLOCKS)
#define PART(from, n) ((n) - (from) < CHUNK ? (n) - (from) : CHUNK)

static double total(const real *partial) {
  double sum = 0;
  for (int block = 0; block < LOSS_BLOCKS; block++) sum += (double)partial[block];
  return sum;
}

/* y = exp((x - shift) scale - minus). */
static void exp_part(int64_t n, const real *x, real shift, real scale, real minus, real *y) {
  for (int64_t i = 0; i < n; i += LANES)
    vec_store_n(y + i, vec_exp((vec_load_n(x + i, n - i) - shift) * scale - minus), n - i);
}

/* log softmax(scale x)[c] = (x[c] - max) scale - log_sum. A NaN in the row makes log_sum NaN. */
typedef struct {
  real max, scale, log_sum;
} Softmax;

static Softmax softmax_of(int64_t n, const real *x, double scale) {
  real max = -INFINITY, e[CHUNK];
  double sum = 0;
#pragma omp simd reduction(max : max)
  for (int64_t c = 0; c < n; c++) max = x[c] > max ? x[c] : max;
  for (int64_t from = 0; from < n; from += CHUNK) {
    int64_t part = PART(from, n);
    exp_part(part, x + from, max, (real)scale, 0, e);
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < part; c++) sum += (double)e[c];
  }
  return (Softmax){max, (real)scale, (real)log(sum)};
}

static double log_p(Softmax s, real x) { return ((double)x - (double)s.max) * (double)s.scale - (double)s.log_sum; }

/* ---- cross entropy ------------------------------------------------------------------------- */

static bool counted(const int32_t *labels, const real *target, int64_t row) { return target || labels[row] >= 0; }

static int64_t count_rows(int64_t rows, const int32_t *labels, const real *target) {
  int64_t count = 0;
  for (int64_t r = 0; r < rows; r++) count += counted(labels, target, r);
  return count > 0 ? count : 1; /* no row at all: loss and gradient are 0 */
}

/* -sum_c t[c] log p[c]; a class of weight 0 costs nothing even where its logit is -inf. */
static double soft_cost(int64_t n, const real *x, const real *target, Softmax s) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < n; c++) {
    double cost = log_p(s, x[c]);
    sum += (double)target[c] * (target[c] == 0 ? 0 : cost);
  }
  return -sum;
}

static double hard_cost(int64_t n, const real *x, int32_t label, double smoothing, Softmax s) {
  double sum = 0;
  if (smoothing != 0) {
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < n; c++) sum += log_p(s, x[c]);
  }
  return -(1 - smoothing) * log_p(s, x[label]) - smoothing / (double)n * sum;
}

void K(cross_entropy_forward)(CabStream *stream, int64_t rows, int64_t n, double smoothing, const real *x,
                              const int32_t *labels, const real *target, real *out, real *lse, real *partial) {
  (void)stream;
#pragma omp parallel for schedule(static) if (rows * n > SMALL)
  for (int block = 0; block < LOSS_BLOCKS; block++) {
    double sum = 0;
    for (int64_t r = FROM(block, rows); r < FROM(block + 1, rows); r++) {
      const real *row = x + r * n;
      Softmax s = softmax_of(n, row, 1);
      lse[r] = s.max + s.log_sum;
      if (!counted(labels, target, r)) continue;
      sum += target ? soft_cost(n, row, target + r * n, s) : hard_cost(n, row, labels[r], smoothing, s);
    }
    partial[block] = (real)sum;
  }
  *out = (real)(total(partial) / (double)count_rows(rows, labels, target));
}

void K(cross_entropy_backward)(CabStream *stream, int64_t rows, int64_t n, double smoothing, const real *x,
                               const int32_t *labels, const real *target, const real *lse, const real *gout, real *gx) {
  (void)stream;
  const double each = (double)*gout / (double)count_rows(rows, labels, target);
#pragma omp parallel for schedule(static) if (rows * n > SMALL)
  for (int64_t r = 0; r < rows; r++) {
    real *restrict g = gx + r * n;
    const real *t = target ? target + r * n : NULL;
    if (!counted(labels, target, r)) {
      for (int64_t c = 0; c < n; c++) g[c] = 0;
      continue;
    }
    double mass = 1;
    if (t) {
      mass = 0;
#pragma omp simd reduction(+ : mass)
      for (int64_t c = 0; c < n; c++) mass += (double)t[c];
    }
    const real weight = (real)mass, factor = (real)each, even = t ? 0 : (real)(smoothing / (double)n);
    for (int64_t from = 0; from < n; from += CHUNK) {
      int64_t part = PART(from, n);
      exp_part(part, x + r * n + from, lse[r], 1, 0, g + from);
      if (t)
        for (int64_t c = from; c < from + part; c++) g[c] = factor * (weight * g[c] - t[c]);
      else
        for (int64_t c = from; c < from + part; c++) g[c] = factor * (g[c] - even);
    }
    if (!t) g[labels[r]] -= (real)(each * (1 - smoothing));
  }
}

/* ---- KL with a temperature ----------------------------------------------------------------- */

/* sum_c p (log p - log q); p = 0 adds 0 even where log p is -inf. */
static double kl_row(int64_t n, const real *teacher, Softmax t, const real *student, Softmax s) {
  double sum = 0;
  real p[CHUNK];
  for (int64_t from = 0; from < n; from += CHUNK) {
    int64_t part = PART(from, n);
    exp_part(part, teacher + from, t.max, t.scale, t.log_sum, p);
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < part; c++) {
      double ratio = log_p(t, teacher[from + c]) - log_p(s, student[from + c]);
      sum += (double)p[c] * (p[c] == 0 ? 0 : ratio);
    }
  }
  return sum;
}

void K(kl_forward)(CabStream *stream, int64_t rows, int64_t n, double temperature, const real *student,
                   const real *teacher, real *out, real *partial) {
  (void)stream;
#pragma omp parallel for schedule(static) if (rows * n > SMALL)
  for (int block = 0; block < LOSS_BLOCKS; block++) {
    double sum = 0;
    for (int64_t r = FROM(block, rows); r < FROM(block + 1, rows); r++) {
      Softmax t = softmax_of(n, teacher + r * n, 1 / temperature), s = softmax_of(n, student + r * n, 1 / temperature);
      sum += kl_row(n, teacher + r * n, t, student + r * n, s);
    }
    partial[block] = (real)sum;
  }
  *out = rows ? (real)(temperature * temperature * total(partial) / (double)rows) : 0;
}

void K(kl_backward)(CabStream *stream, int64_t rows, int64_t n, double temperature, const real *student,
                    const real *teacher, const real *gout, real *gstudent, real *gteacher) {
  (void)stream;
  const real factor = (real)((double)*gout * temperature / (double)(rows ? rows : 1));
#pragma omp parallel for schedule(static) if (rows * n > SMALL)
  for (int64_t r = 0; r < rows; r++) {
    const real *a = teacher + r * n, *b = student + r * n;
    Softmax t = softmax_of(n, a, 1 / temperature), s = softmax_of(n, b, 1 / temperature);
    const double kl = gteacher ? kl_row(n, a, t, b, s) : 0;
    real p[CHUNK], q[CHUNK];
    for (int64_t from = 0; from < n; from += CHUNK) {
      int64_t part = PART(from, n);
      exp_part(part, a + from, t.max, t.scale, t.log_sum, p);
      if (gstudent) {
        real *restrict g = gstudent + r * n + from;
        exp_part(part, b + from, s.max, s.scale, s.log_sum, q);
        for (int64_t c = 0; c < part; c++) g[c] = factor * (q[c] - p[c]);
      }
      if (gteacher) {
        real *restrict g = gteacher + r * n + from;
        for (int64_t c = 0; c < part; c++) {
          double excess = log_p(t, a[from + c]) - log_p(s, b[from + c]) - kl;
          g[c] = factor * p[c] * (p[c] == 0 ? 0 : (real)excess);
        }
      }
    }
  }
}

/* ---- mean squared error -------------------------------------------------------------------- */

void K(mse_forward)(CabStream *stream, int64_t n, const real *a, const real *b, real *out, real *partial) {
  (void)stream;
#pragma omp parallel for schedule(static) if (n > SMALL)
  for (int block = 0; block < LOSS_BLOCKS; block++) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = FROM(block, n); i < FROM(block + 1, n); i++) {
      double d = (double)a[i] - (double)b[i];
      sum += d * d;
    }
    partial[block] = (real)sum;
  }
  *out = n ? (real)(total(partial) / (double)n) : 0;
}

void K(mse_backward)(CabStream *stream, int64_t n, const real *a, const real *b, const real *gout, real *ga, real *gb) {
  (void)stream;
  const real factor = (real)(2 * (double)*gout / (double)(n ? n : 1));
#pragma omp parallel for schedule(static) if (n > SMALL)
  for (int block = 0; block < LOSS_BLOCKS; block++) {
    int64_t from = FROM(block, n), to = FROM(block + 1, n);
    if (ga)
      for (int64_t i = from; i < to; i++) ga[i] = factor * (a[i] - b[i]);
    if (gb)
      for (int64_t i = from; i < to; i++) gb[i] = factor * (b[i] - a[i]);
  }
}

/* ---- cosine distance of rows --------------------------------------------------------------- */

typedef struct {
  double ab, aa, bb;
} Dots;

static Dots dots_of(int64_t n, const real *a, const real *b) {
  double ab = 0, aa = 0, bb = 0;
#pragma omp simd reduction(+ : ab, aa, bb)
  for (int64_t i = 0; i < n; i++) {
    ab += (double)a[i] * (double)b[i];
    aa += (double)a[i] * (double)a[i];
    bb += (double)b[i] * (double)b[i];
  }
  return (Dots){ab, aa, bb};
}

void K(cosine_forward)(CabStream *stream, int64_t rows, int64_t n, double eps, const real *a, const real *b, real *out,
                       real *partial) {
  (void)stream;
#pragma omp parallel for schedule(static) if (rows * n > SMALL)
  for (int block = 0; block < LOSS_BLOCKS; block++) {
    double sum = 0;
    for (int64_t r = FROM(block, rows); r < FROM(block + 1, rows); r++) {
      Dots d = dots_of(n, a + r * n, b + r * n);
      double norms = sqrt(d.aa) * sqrt(d.bb);
      sum += 1 - d.ab / (norms <= eps ? eps : norms);
    }
    partial[block] = (real)sum;
  }
  *out = rows ? (real)(total(partial) / (double)rows) : 0;
}

/* d(a.b / |a||b|)/da = b / |a||b| - (a.b / |a||b|) a / a.a; where eps is the denominator, b / eps. */
void K(cosine_backward)(CabStream *stream, int64_t rows, int64_t n, double eps, const real *a, const real *b,
                        const real *gout, real *ga, real *gb) {
  (void)stream;
  const double factor = -(double)*gout / (double)(rows ? rows : 1);
#pragma omp parallel for schedule(static) if (rows * n > SMALL)
  for (int64_t r = 0; r < rows; r++) {
    const real *x = a + r * n, *y = b + r * n;
    Dots d = dots_of(n, x, y);
    double norms = sqrt(d.aa) * sqrt(d.bb);
    bool tiny = norms <= eps;
    const double cross = factor / (tiny ? eps : norms), cosine = tiny ? 0 : factor * d.ab / norms;
    const double own_x = tiny ? 0 : cosine / d.aa, own_y = tiny ? 0 : cosine / d.bb;
    if (ga)
      for (int64_t i = 0; i < n; i++) ga[r * n + i] = (real)(cross * (double)y[i] - own_x * (double)x[i]);
    if (gb)
      for (int64_t i = 0; i < n; i++) gb[r * n + i] = (real)(cross * (double)x[i] - own_y * (double)y[i]);
  }
}

/* ---- Frobenius distance -------------------------------------------------------------------- */

static double distance(int64_t n, const real *a, const real *b) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) {
    double d = (double)a[i] - (double)b[i];
    sum += d * d;
  }
  return sqrt(sum);
}

void K(frobenius_forward)(CabStream *stream, int64_t rows, int64_t n, const real *a, const real *b, real *out,
                          real *partial) {
  (void)stream;
#pragma omp parallel for schedule(static) if (rows * n > SMALL)
  for (int block = 0; block < LOSS_BLOCKS; block++) {
    double sum = 0;
    for (int64_t r = FROM(block, rows); r < FROM(block + 1, rows); r++) sum += distance(n, a + r * n, b + r * n);
    partial[block] = (real)sum;
  }
  *out = rows ? (real)(total(partial) / (double)rows) : 0;
}

void K(frobenius_backward)(CabStream *stream, int64_t rows, int64_t n, const real *a, const real *b, const real *gout,
                           real *ga, real *gb) {
  (void)stream;
#pragma omp parallel for schedule(static) if (rows * n > SMALL)
  for (int64_t r = 0; r < rows; r++) {
    const real *x = a + r * n, *y = b + r * n;
    double norm = distance(n, x, y);
    const real factor = norm == 0 ? 0 : (real)((double)*gout / (double)rows / norm);
    if (ga)
      for (int64_t i = 0; i < n; i++) ga[r * n + i] = factor * (x[i] - y[i]);
    if (gb)
      for (int64_t i = 0; i < n; i++) gb[r * n + i] = factor * (y[i] - x[i]);
  }
}

/* ---- standardised features ----------------------------------------------------------------- */

void K(standardise_forward)(CabStream *stream, int64_t rows, int64_t n, const real *x, const real *mean,
                            const real *deviation, real *y) {
  (void)stream;
#pragma omp parallel for schedule(static) if (rows * n > SMALL)
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < n; c++) y[r * n + c] = (x[r * n + c] - mean[c]) / deviation[c];
}

void K(standardise_backward)(CabStream *stream, int64_t rows, int64_t n, const real *deviation, const real *gy,
                             real *gx) {
  (void)stream;
#pragma omp parallel for schedule(static) if (rows * n > SMALL)
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < n; c++) gx[r * n + c] = gy[r * n + c] / deviation[c];
}
