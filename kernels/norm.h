/* norm.h - layer_norm and rms_norm. s = x + residual;  layer: y = (s - mean) rstd w + b;  RMS: y = s rstd w (b optional), over the last dim.
 * rstd = 1/sqrt(var + eps), RMS: 1/sqrt(mean(s^2) + eps). */
#ifndef CAB_KERNELS_NORM_H
#define CAB_KERNELS_NORM_H
#include "kernel.h"
/* residual, bias, sum may be NULL. mean is NULL for RMS. */
TWIN(norm_forward, bool rms, double eps, int64_t rows, int64_t n, const real *x, const wide *residual,
     const wide *weight, const wide *bias, real *y, wide *sum, wide *mean, wide *rstd);
/* gsum: gradient arriving at `sum` (may be NULL). gx and gresidual receive the gradient of s;
 * either may be NULL.
 * gweight, gbias may be NULL. partial: scratch of 2 * NORM_BLOCKS * n; fixed order of summation. */
#define NORM_BLOCKS 32
TWIN(norm_backward, bool rms, int64_t rows, int64_t n, const wide *sum, const wide *weight, const wide *mean,
     const wide *rstd, const real *gy, const wide *gsum, real *gx, wide *gresidual, wide *gweight, wide *gbias,
     wide *partial);
#endif
