/* head.c - a row to a thread: the logits' log-sum-exp, the losses, then the gradient where the logits were. */
#include "head.h"

#include <math.h>

#include "simd.h"

/* The target of a row, or -1. */
static int32_t target_of(int64_t L, int64_t row, const int32_t *ids, const int32_t *segment) {
  if (row % L == L - 1) return -1;
  if (segment && (segment[row] < 0 || segment[row + 1] != segment[row])) return -1;
  return ids[row + 1];
}

void K(head_count)(CabStream *stream, int64_t B, int64_t L, const int32_t *ids, const int32_t *segment, real *count) {
  (void)stream;
  int64_t targets = 0, tokens = 0;
  for (int64_t row = 0; row < B * L; row++) {
    targets += target_of(L, row, ids, segment) >= 0;
    tokens += !segment || segment[row] >= 0;
  }
  count[0] = (real)(targets > 1 ? targets : 1);
  count[1] = (real)(tokens > 1 ? tokens : 1);
}

/* Lanes from n on become `with`. */
SIMD vec cut(vec v, int64_t n, real with) {
  if (__builtin_expect(n < LANES, 0))
    for (int64_t l = n; l < LANES; l++) v[l] = with;
  return v;
}

static void add_bias(int64_t n, const real *bias, real *x) {
  for (int64_t i = 0; bias && i < n; i += LANES) vec_store_n(x + i, vec_load_n(x + i, n - i) + vec_load_n(bias + i, n - i), n - i);
}

/* log sum exp(scale x), n > 0. A NaN in the row makes it NaN. */
static real log_sum(int64_t n, real scale, const real *x) {
  vec top = vec_set(-INFINITY);
  double sum = 0;
  for (int64_t i = 0; i < n; i += LANES) top = vec_max(cut(scale * vec_load_n(x + i, n - i), n - i, -INFINITY), top);
  const real max = vec_max_of(top);
  for (int64_t i = 0; i < n; i += LANES) sum += (double)vec_sum(cut(vec_exp(scale * vec_load_n(x + i, n - i) - max), n - i, 0));
  return max + (real)log(sum);
}

/* A row of logits of one side: log softmax is scale x - lse. */
typedef struct {
  const real *x;
  real scale, lse;
} Side;

SIMD vec log_softmax(const Side *s, int64_t i, int64_t left) { return s->scale * vec_load_n(s->x + i, left) - s->lse; }

/* log((p + q) / 2) from log p and log q. */
SIMD vec log_mean(vec lp, vec lq) { return vec_max(lp, lq) + vec_log1p01(vec_exp(-vec_abs(lp - lq))) - VEC_LN2; }

/* Forward forms: the teacher's row becomes p, whose gradient is q - p; returns sum p (log p - log q), CROSS without log p. */
static double forward_divergence(bool cross, int64_t n, const Side *teacher, const Side *student, real *t) {
  vec sum = vec_set(0);
  double total = 0;
  for (int64_t i = 0; i < n; i += LANES) {
    const int64_t left = n - i;
    const vec lp = log_softmax(teacher, i, left), lq = log_softmax(student, i, left), p = vec_exp(lp);
    sum += cut(vec_select(p == 0, p, p * (cross ? -lq : lp - lq)), left, 0); /* p = 0 costs nothing even where log q is infinite */
    vec_store_n(t + i, p, left);
    if (i / LANES % 64 == 63) total += (double)vec_sum(sum), sum = vec_set(0);
  }
  return total + (double)vec_sum(sum);
}

/* REVERSE and JSD: *slope is the sum of q f(q), which the gradient q (f(q) - *slope) needs. */
static double other_divergence(bool reverse, int64_t n, const Side *teacher, const Side *student, double *slope) {
  double sum = 0, own = 0;
  for (int64_t i = 0; i < n; i += LANES) {
    const int64_t left = n - i;
    const vec lp = log_softmax(teacher, i, left), lq = log_softmax(student, i, left), p = vec_exp(lp), q = vec_exp(lq);
    const vec lm = reverse ? lp : log_mean(lp, lq), of_q = cut(vec_select(q == 0, q, q * (lq - lm)), left, 0);
    own += (double)vec_sum(of_q);
    if (!reverse) sum += 0.5 * (double)vec_sum(cut(vec_select(p == 0, p, p * (lp - lm)), left, 0) + of_q);
  }
  *slope = own;
  return reverse ? own : sum;
}

/* The teacher's row becomes the gradient of that, negative. */
static void other_gradient(bool reverse, int64_t n, real slope, const Side *teacher, const Side *student, real *t) {
  const real half = reverse ? 1 : (real)0.5;
  for (int64_t i = 0; i < n; i += LANES) {
    const int64_t left = n - i;
    const vec lp = log_softmax(teacher, i, left), lq = log_softmax(student, i, left), q = vec_exp(lq);
    vec_store_n(t + i, vec_select(q == 0, q, half * q * (slope + (reverse ? lp : log_mean(lp, lq)) - lq)), left);
  }
}

/* The same as forward_divergence from the teacher's K largest logits t, at the places `top` of the student's row. */
static double top_divergence(const HeadShape *s, real *t, const int32_t *top, const Side *student) {
  const real scale = student->scale, lse = log_sum(s->K, scale, t);
  double sum = 0;
  for (int64_t k = 0; k < s->K; k++) {
    const double lp = (double)(scale * t[k] - lse), lq = (double)(scale * student->x[top[k]] - student->lse), p = exp(lp);
    if (p > 0) sum += p * ((s->divergence == HEAD_CROSS ? 0 : lp) - lq);
    t[k] = (real)p;
  }
  return sum;
}

/* x = a softmax(x) - even + b softmax(x / T) - c t; t may be NULL. One exponential if T is 1. */
static void row_gradient(int64_t n, real a, real lse, real even, real b, real c, const Side *student, const real *t, real *x) {
  if (b != 0 && student->scale == 1) a += b, b = 0, lse = student->lse;
  for (int64_t i = 0; i < n; i += LANES) {
    const int64_t left = n - i;
    const vec v = vec_load_n(x + i, left);
    vec g = vec_set(-even);
    if (a != 0) g += a * vec_exp(v - lse);
    if (b != 0) g += b * vec_exp(student->scale * v - student->lse);
    if (t) g -= c * vec_load_n(t + i, left);
    vec_store_n(x + i, g, left);
  }
}

static double entropy(const HeadShape *s, const real *x, real lse, int32_t target) {
  double mean = 0;
  for (int64_t i = 0; s->smoothing != 0 && i < s->vocab; i++) mean += (double)x[i] / (double)s->vocab;
  return (double)lse - (1 - s->smoothing) * (double)x[target] - s->smoothing * mean;
}

/* The divergence of a row; t becomes what row_gradient takes. */
static double row_divergence(const HeadShape *s, const Side *teacher, const Side *student, const int32_t *top, bool gradient, real *t) {
  const bool reverse = s->divergence == HEAD_REVERSE;
  double slope;
  if (s->K) return top_divergence(s, t, top, student);
  if (s->divergence <= HEAD_CROSS) return forward_divergence(s->divergence == HEAD_CROSS, s->vocab, teacher, student, t);
  const double sum = other_divergence(reverse, s->vocab, teacher, student, &slope);
  if (gradient) other_gradient(reverse, s->vocab, (real)slope, teacher, student, t);
  return sum;
}

/* One row; its shares of the two means go to ce and kl. */
static void head_row(const HeadShape *s, int32_t target, bool counts, const real *count, real *x, real *t, const int32_t *top,
                     bool gradient, real *ce, real *kl) {
  const int64_t n = s->vocab;
  const bool has_ce = s->ce != 0 && target >= 0, has_kl = s->kl != 0 && counts;
  const real inverse = (real)(1 / s->temperature);
  const double each_ce = has_ce ? s->ce / (double)count[0] : 0, each_kl = has_kl ? s->kl * s->temperature / (double)count[1] : 0;
  const real lse = has_ce ? log_sum(n, 1, x) : 0;
  Side student = {x, inverse, 0}, teacher = {t, inverse, 0};
  if (has_ce) *ce = (real)(entropy(s, x, lse, target) / (double)count[0]);
  if (has_kl) {
    student.lse = has_ce && inverse == 1 ? lse : log_sum(n, inverse, x);
    if (!s->K) teacher.lse = log_sum(n, inverse, t);
    *kl = (real)(s->temperature * s->temperature * row_divergence(s, &teacher, &student, top, gradient, t) / (double)count[1]);
  }
  if (!gradient) return;
  row_gradient(n, (real)each_ce, lse, (real)(each_ce * s->smoothing / (double)n), s->divergence <= HEAD_CROSS ? (real)each_kl : 0,
               (real)each_kl, &student, has_kl && !s->K ? t : NULL, x);
  if (has_ce) x[target] -= (real)(each_ce * (1 - s->smoothing));
  for (int64_t k = 0; has_kl && k < s->K; k++) x[top[k]] -= (real)(each_kl * (double)t[k]);
  for (int64_t i = n; i < s->V; i++) x[i] = 0;
}

void K(head_rows)(CabStream *stream, const HeadShape *s, int64_t first, int64_t rows, const int32_t *ids, const int32_t *segment,
                  const real *count, real *logits, const real *bias, real *teacher, const real *teacher_bias, const int32_t *top,
                  bool gradient, real *losses) {
  (void)stream;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < rows; i++) {
    const int64_t row = first + i;
    real *x = logits + i * s->V, *t = teacher ? teacher + i * (s->K ? s->K : s->U) : NULL;
    real *ce = losses + row, *kl = losses + s->B * s->L + row;
    *ce = *kl = 0;
    add_bias(s->vocab, bias, x);
    if (t && !s->K) add_bias(s->vocab, teacher_bias, t);
    head_row(s, target_of(s->L, row, ids, segment), !segment || segment[row] >= 0, count, x, t, top ? top + i * s->K : NULL, gradient,
             ce, kl);
  }
}

void K(head_scaled)(CabStream *stream, int64_t n, const real *x, const real *factor, real *y) {
  (void)stream;
#pragma omp parallel for schedule(static) if (n > 1 << 15)
  for (int64_t i = 0; i < n; i += LANES) vec_store_n(y + i, *factor * vec_load_n(x + i, n - i), n - i);
}
