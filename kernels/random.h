/* random.h - Philox fills: element i depends on (seed, stream, i) alone, whatever the number of threads. */
#ifndef CAB_KERNELS_RANDOM_H
#define CAB_KERNELS_RANDOM_H
#include "kernel.h"
TWIN(random_uniform, int64_t n, uint64_t seed, uint64_t stream, double low, double high, real *y);
TWIN(random_normal, int64_t n, uint64_t seed, uint64_t stream, double mean, double deviation, real *y);
/* Normal cut to [low, high] by redrawing (counter + attempt). */
TWIN(random_trunc_normal, int64_t n, uint64_t seed, uint64_t stream, double mean, double deviation, double low,
     double high, real *y);
#endif
