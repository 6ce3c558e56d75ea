/* rotary.c - a work unit is a token of all sequences: sines and cosines, in double, are found once for all heads. */
#include "rotary.h"

#include <math.h>
#include <string.h>

enum { HALF = 256, PARALLEL = 4096 };

void K(rotary)(CabStream *stream, int64_t B, int64_t L, int64_t H, int64_t P, int64_t W, double base, double start, double turn,
               const real *x, int64_t ldx, real *y) {
  (void)stream;
#pragma omp parallel for schedule(static) if (B * L * H * P > PARALLEL)
  for (int64_t l = 0; l < L; l++)
    for (int64_t i0 = 0; i0 == 0 || i0 < W / 2; i0 += HALF) {
      const int64_t n = W / 2 - i0 < HALF ? W / 2 - i0 : HALF;
      real c[HALF], s[HALF];
      for (int64_t i = 0; i < n; i++) {
        const double angle = (start + (double)l) * pow(base, -2.0 * (double)(i0 + i) / (double)W);
        c[i] = (real)cos(angle), s[i] = (real)(turn * sin(angle));
      }
      for (int64_t b = 0; b < B; b++)
        for (int64_t h = 0; h < H; h++) {
          const real *from = x + (b * L + l) * ldx + h * P, *far = from + W / 2;
          real *restrict to = y + ((b * L + l) * H + h) * P;
          for (int64_t i = 0; i < n; i++) {
            to[i0 + i] = from[i0 + i] * c[i] - far[i0 + i] * s[i];
            to[W / 2 + i0 + i] = far[i0 + i] * c[i] + from[i0 + i] * s[i];
          }
          if (i0 == 0) memcpy(to + W, from + W, (size_t)(P - W) * sizeof(real));
        }
    }
}
