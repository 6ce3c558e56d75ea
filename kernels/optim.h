/* optim.h - updates in place, and the reductions they need. */
#ifndef CAB_KERNELS_OPTIM_H
#define CAB_KERNELS_OPTIM_H
#include "kernel.h"
/* AdamW (arXiv 1711.05101) on one tensor; `step` counts from 1; `scale` multiplies the gradient first (clipping).
 *   m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; w -= lr (m/(1-b1^step) / (sqrt(v/(1-b2^step)) + eps) + decay w) */
TWIN(adamw, int64_t n, double lr, double beta1, double beta2, double eps, double decay, int64_t step, double scale,
     const real *g, real *w, real *m, real *v);
/* average += (1 - keep) (w - average) */
TWIN(ema, int64_t n, double keep, const real *w, real *average);
/* *out = sum x^2 in f64, fixed order; NaN and Inf propagate. */
TWIN(sum_squares, int64_t n, const real *x, double *out);
/* Number of non-finite values. */
TWIN(count_bad, int64_t n, const real *x, int64_t *out);
/* out = {min, max, sum, sum of squares} of finite values; 0 elements: {inf,-inf,0,0}. */
TWIN(range, int64_t n, const real *x, double out[4]);
#endif
