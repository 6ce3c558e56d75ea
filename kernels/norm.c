/* norm.c - rows in parallel, lanes along the row; the variance in a second pass over the (cached) row.
 * With xhat = (s - mean) rstd and g = gy w:  gs = rstd (g - mean(g) - xhat mean(g xhat)) + gsum  (RMS: no mean(g));
 * gw = sum gy xhat, gb = sum gy over rows, in NORM_BLOCKS fixed blocks of rows. */
#include "norm.h"

#include "simd.h"

enum { PARALLEL = 16384 };

void K(norm_forward)(CabStream *stream, bool rms, double eps, int64_t rows, int64_t n, const real *x,
                     const real *residual, const real *weight, const real *bias, real *y, real *sum, real *mean,
                     real *rstd) {
  (void)stream;
  const real inverse = 1 / (real)n;
#pragma omp parallel for schedule(static) if (rows * n > PARALLEL)
  for (int64_t i = 0; i < rows; i++) {
    const real *s = x + i * n;
    vec total = vec_set(0), squares = vec_set(0);
    if (residual) {
      for (int64_t j = 0; j < n; j += LANES)
        vec_store_n(sum + i * n + j, vec_load_n(s + j, n - j) + vec_load_n(residual + i * n + j, n - j), n - j);
      s = sum + i * n;
    }
    real center = 0;
    if (!rms) {
      for (int64_t j = 0; j < n; j += LANES) total += vec_load_n(s + j, n - j);
      center = vec_sum(total) * inverse;
    }
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) {
      vec d = vec_load(s + j) - center;
      squares += d * d;
    }
    real square = vec_sum(squares);
    for (; j < n; j++) square += (s[j] - center) * (s[j] - center);
    const real scale = 1 / (real)sqrt(square * inverse + (real)eps);
    for (j = 0; j < n; j += LANES) {
      vec v = (vec_load_n(s + j, n - j) - center) * scale * vec_load_n(weight + j, n - j);
      if (bias) v += vec_load_n(bias + j, n - j);
      vec_store_n(y + i * n + j, v, n - j);
    }
    if (mean) mean[i] = center;
    if (rstd) rstd[i] = scale;
  }
}

void K(norm_backward)(CabStream *stream, bool rms, int64_t rows, int64_t n, const real *sum, const real *weight,
                      const real *mean, const real *rstd, const real *gy, const real *gsum, real *gx,
                      real *gresidual, real *gweight, real *gbias, real *partial) {
  (void)stream;
  const real inverse = 1 / (real)n;
  const bool parameters = gweight || gbias;
#pragma omp parallel if (rows * n > PARALLEL)
  {
#pragma omp for schedule(static)
    for (int64_t block = 0; block < NORM_BLOCKS; block++) {
      real *pw = partial + block * 2 * n, *pb = pw + n;
      if (parameters) memset(pw, 0, (size_t)(2 * n) * sizeof(real));
      for (int64_t i = block * rows / NORM_BLOCKS; i < (block + 1) * rows / NORM_BLOCKS; i++) {
        const real *s = sum + i * n, *g = gy + i * n, center = rms ? 0 : mean[i], scale = rstd[i];
        vec dot = vec_set(0), total = vec_set(0);
        for (int64_t j = 0; j < n; j += LANES) {
          const int64_t m = n - j;
          const vec gv = vec_load_n(g + j, m), hat = (vec_load_n(s + j, m) - center) * scale;
          const vec gw = gv * vec_load_n(weight + j, m); /* 0 beyond n */
          dot += gw * hat;
          total += gw;
          if (parameters) {
            vec_store_n(pw + j, vec_load_n(pw + j, m) + gv * hat, m);
            vec_store_n(pb + j, vec_load_n(pb + j, m) + gv, m);
          }
        }
        const real slope = vec_sum(dot) * inverse, shift = rms ? 0 : vec_sum(total) * inverse;
        if (!gx && !gresidual) continue;
        for (int64_t j = 0; j < n; j += LANES) {
          const int64_t m = n - j;
          const vec hat = (vec_load_n(s + j, m) - center) * scale;
          vec v = (vec_load_n(g + j, m) * vec_load_n(weight + j, m) - shift - hat * slope) * scale;
          if (gsum) v += vec_load_n(gsum + i * n + j, m);
          if (gx) vec_store_n(gx + i * n + j, v, m);
          if (gresidual) vec_store_n(gresidual + i * n + j, v, m);
        }
      }
    }
    if (parameters) {
#pragma omp for schedule(static)
      for (int64_t j = 0; j < n; j += LANES) {
        vec w = vec_set(0), b = vec_set(0);
        for (int64_t block = 0; block < NORM_BLOCKS; block++) {
          w += vec_load_n(partial + block * 2 * n + j, n - j);
          b += vec_load_n(partial + (block * 2 + 1) * n + j, n - j);
        }
        if (gweight) vec_store_n(gweight + j, w, n - j);
        if (gbias) vec_store_n(gbias + j, b, n - j);
      }
    }
  }
}
