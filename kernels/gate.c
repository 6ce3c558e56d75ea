/* gate.c - y = scale (a + b) silu(z), and its gradient. */
#include "gate.h"

#include "simd.h"

enum { PARALLEL = 16384 }; /* elements worth a second thread */

void K(gate_forward)(CabStream *stream, int64_t rows, int64_t n, double scale, const real *a, const real *b,
                     const real *z, int64_t ldz, real *y) {
  (void)stream;
  const real s = (real)scale;
#pragma omp parallel for schedule(static) if (rows * n > PARALLEL)
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < n; j += LANES) {
      const int64_t at = i * n + j, m = n - j;
      vec x = vec_load_n(a + at, m);
      if (b) x += vec_load_n(b + at, m);
      vec_store_n(y + at, s * x * vec_silu(vec_load_n(z + i * ldz + j, m)), m);
    }
}

/* ga = scale silu(z) gy;  gz = scale (a + b) silu'(z) gy */
void K(gate_backward)(CabStream *stream, int64_t rows, int64_t n, double scale, const real *a, const real *b,
                      const real *z, int64_t ldz, const real *gy, real *ga, real *gz, int64_t ldgz) {
  (void)stream;
  const real s = (real)scale;
#pragma omp parallel for schedule(static) if (rows * n > PARALLEL)
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < n; j += LANES) {
      const int64_t at = i * n + j, m = n - j;
      vec g = s * vec_load_n(gy + at, m), zz = vec_load_n(z + i * ldz + j, m), sigmoid = vec_sigmoid(zz);
      if (gz) {
        vec x = vec_load_n(a + at, m);
        if (b) x += vec_load_n(b + at, m);
        vec_store_n(gz + i * ldgz + j, g * x * vec_silu_slope(zz, sigmoid), m);
      }
      if (ga) vec_store_n(ga + at, g * zz * sigmoid, m);
    }
}
