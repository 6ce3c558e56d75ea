/* gate.h - y = scale (a + b) silu(z): the join of both scan directions. b may be NULL. z rows have stride ldz. */
#ifndef CAB_KERNELS_GATE_H
#define CAB_KERNELS_GATE_H
#include "kernel.h"
TWIN(gate_forward, int64_t rows, int64_t n, double scale, const real *a, const real *b, const real *z, int64_t ldz,
     real *y);
/* ga is the gradient of a and of b alike. gz rows have stride ldgz. Either may be NULL. */
TWIN(gate_backward, int64_t rows, int64_t n, double scale, const real *a, const real *b, const real *z, int64_t ldz,
     const real *gy, real *ga, real *gz, int64_t ldgz);
#endif
