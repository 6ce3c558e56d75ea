/* largest.h - the K largest of each row of x[rows,C], largest first, of equals the first; place: their columns from 0. */
#ifndef CAB_KERNELS_LARGEST_H
#define CAB_KERNELS_LARGEST_H
#include "kernel.h"
TWIN(largest, int64_t rows, int64_t C, int64_t count, const real *x, real *y, int32_t *place);
#endif
