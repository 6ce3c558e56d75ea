/* softmax.h - y = softmax(x) over the middle of x[outer,n,inner] (inner = 1: the last dim). */
#ifndef CAB_KERNELS_SOFTMAX_H
#define CAB_KERNELS_SOFTMAX_H
#include "kernel.h"
TWIN(softmax_forward, int64_t outer, int64_t n, int64_t inner, const real *x, real *y);
/* gx = y (gy - sum(y gy)) */
TWIN(softmax_backward, int64_t outer, int64_t n, int64_t inner, const real *y, const real *gy, real *gx);
#endif
