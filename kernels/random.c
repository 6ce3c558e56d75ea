/* random.c - Philox fills, computed in double and rounded once. */
#include "random.h"

#include "philox.h"

void K(random_uniform)(CabStream *stream_, int64_t n, uint64_t seed, uint64_t stream, double low, double high,
                       real *y) {
  (void)stream_;
#pragma omp parallel for schedule(static) if (n > 4096)
  for (int64_t block = 0; block < (n + 3) / 4; block++) {
    uint32_t w[4];
    philox_block(seed, stream, (uint64_t)block, w);
    for (int64_t j = 0; j < 4 && 4 * block + j < n; j++)
      y[4 * block + j] = (real)(low + (high - low) * philox_unit(w[j]));
  }
}

void K(random_normal)(CabStream *stream_, int64_t n, uint64_t seed, uint64_t stream, double mean, double deviation,
                      real *y) {
  (void)stream_;
#pragma omp parallel for schedule(static) if (n > 1024)
  for (int64_t block = 0; block < (n + 1) / 2; block++) {
    double z[2];
    philox_normal_pair(seed, stream, (uint64_t)block, 0, z);
    y[2 * block] = (real)(mean + deviation * z[0]);
    if (2 * block + 1 < n) y[2 * block + 1] = (real)(mean + deviation * z[1]);
  }
}

/* An interval that holds next to nothing of the normal would redraw for ever: after this many, take its nearer end. */
enum { MAX_DRAWS = 1024 };

void K(random_trunc_normal)(CabStream *stream_, int64_t n, uint64_t seed, uint64_t stream, double mean,
                            double deviation, double low, double high, real *y) {
  (void)stream_;
#pragma omp parallel for schedule(static) if (n > 1024)
  for (int64_t i = 0; i < n; i++) {
    double value = mean;
    for (uint32_t draw = 0; draw < MAX_DRAWS; draw++) {
      value = mean + deviation * philox_normal(seed, stream, (uint64_t)i, draw);
      if (value >= low && value <= high) break;
    }
    y[i] = (real)(value < low ? low : value > high ? high : value);
  }
}
