/* norm.h - s = x + residual;  layer: y = (s - mean) rstd w + b;  RMS: y = s rstd w (b optional), over the last dim.
 * rstd = 1/sqrt(var + eps), RMS: 1/sqrt(mean(s^2) + eps). */
#ifndef CAB_KERNELS_NORM_H
#define CAB_KERNELS_NORM_H
#include "kernel.h"
/* residual may be NULL (then sum is not written and may be NULL). bias may be NULL. mean is NULL for RMS. */
TWIN(norm_forward, bool rms, double eps, int64_t rows, int64_t n, const real *x, const real *residual,
     const real *weight, const real *bias, real *y, real *sum, real *mean, real *rstd);
/* gsum: gradient arriving at `sum` (may be NULL). gx receives the gradient of s (shared by x and residual).
 * gweight, gbias may be NULL. partial: scratch of 2 * NORM_BLOCKS * n; fixed order of summation. */
#define NORM_BLOCKS 32
TWIN(norm_backward, bool rms, int64_t rows, int64_t n, const real *sum, const real *weight, const real *mean,
     const real *rstd, const real *gy, const real *gsum, real *gx, real *gweight, real *gbias, real *partial);
#endif
